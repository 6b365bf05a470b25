"""Claims of jobs/table.py: whatever a table, a hierarchy, a plan or rates of error hold, it is measured or one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from facecrowd.jobs import table as tables
from facecrowd.pipeline.config import TablePolicy
from facecrowd.pipeline.errors import FacecrowdError
from facecrowd.pipeline.progress import Progress
from facecrowd.privacy.errors import PrivacyError

FUZZ = settings.get_profile("fuzz")
FEW = settings(FUZZ, max_examples=FUZZ.max_examples // 4)
Mutated = Callable[[bytes], st.SearchStrategy[bytes]]

QUIET = Progress(quiet=True)
POLICY = {"subject": "who", "quasi_identifiers": ["a", "b"], "sensitive": ["s"], "k": 2, "max_suppression": 1.0}
SOUND = {
    "who": ["p", "q", "r", "t", "u", "v"],
    "a": ["x", "x", "y", "y", "z", "z"],
    "b": [1, 1, 2, 2, 3, 3],
    "s": ["ill", "well", "ill", "well", "ill", "well"],
}


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def measured(folder: Path, data: bytes, policy: dict[str, Any] | None = None, **options: Any) -> bool:
    """Audit a table, and plan it; whether that could be done. What could not is one line."""
    name = options.pop("name", "table.parquet")
    (folder / name).write_bytes(data)
    asked, said = TablePolicy(**{**POLICY, **(policy or {})}), None
    try:
        tables.audit_table(str(folder / name), asked, QUIET, base=folder, **options)
        if not options:
            tables.plan_table(str(folder / name), asked, "mondrian", str(folder / "plan"), QUIET, base=folder)
    except FacecrowdError as error:
        said = str(error)
        assert said.isprintable()
    except PrivacyError as error:
        said = str(error)
    assert said is None or (said and "\n" not in said), said
    return said is None


def test_the_sound_table_is_measured(folder: Path) -> None:
    assert measured(folder, parquet(pa.table(SOUND)))


values = st.sampled_from(
    [
        *(
            None,
            True,
            0,
            -1,
            2**63 - 1,
            -(2**63),
            0.5,
            float("nan"),
            float("inf"),
            float("-inf"),
            5e-324,
            "",
            "*",
            "nan",
        ),
        *("=cmd|' /C calc'!A0", "\u202e", "e\u0301", "\u00e9", "a\nb", "x" * 300, "[1, 2]", "\0", b"\xff", b""),
        *([], [1], [None], {"a": 1}, [[1]], [float("nan")]),
    ]
)


@FEW
@given(
    found=st.lists(st.tuples(st.sampled_from(["who", "a", "b", "s", "class_id", ""]), values), max_size=3),
    rows=st.sampled_from([0, 1, 6]),
    kinds=st.sampled_from([{}, {"kinds": {"a": "numeric"}}, {"kinds": {"b": "binary"}}, {"t": {"value": 0.5}}]),
)
@example(found=[("a", "y")], rows=6, kinds={})
@example(found=[], rows=6, kinds={"kinds": {"a": "numeric"}})
@example(found=[("b", float("inf"))], rows=6, kinds={"kinds": {"b": "numeric"}})
@example(found=[("s", [1])], rows=6, kinds={})
def test_columns_of_any_type_are_measured_or_one_line(
    found: list[tuple[str, Any]], rows: int, kinds: dict[str, Any], folder: Path
) -> None:
    columns = [(name, pa.array(column[:rows])) for name, column in SOUND.items()]
    columns += [(name, pa.array([value] * rows)) for name, value in found]
    there = [name for name, _ in columns]
    policy = {**kinds, "per_subject": len(found) % 2 == 0}
    measured(folder, parquet(pa.table([column for _, column in columns], names=there)), policy)
    for name, value in found:  # in the place of the column
        replaced = {**dict(columns[:4]), name: pa.array([value] * rows)}
        measured(folder, parquet(pa.table(replaced)), policy)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@FUZZ
@given(data=st.data())
def test_a_damaged_table_is_measured_or_one_line(
    kind: str, data: st.DataObject, folder: Path, mutated: Mutated
) -> None:
    lines = [",".join(SOUND), *(",".join(map(str, row)) for row in zip(*SOUND.values(), strict=True))]
    sound = parquet(pa.table(SOUND)) if kind == "parquet" else "\n".join(lines).encode()
    measured(folder, data.draw(mutated(sound)), name=f"damaged.{kind}")


def test_text_that_is_no_utf8_is_one_line(folder: Path) -> None:
    buffers = [None, pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in range(7))), pa.py_buffer(b"\xff" * 6)]
    bad = pa.Array.from_buffers(pa.string(), 6, buffers)
    for column in SOUND:
        assert not measured(folder, parquet(pa.table({**SOUND, column: bad})))


# ------------------------------------------------------------------------------------------- files beside the table


@FUZZ
@given(data=st.data())
def test_a_damaged_hierarchy_is_read_or_one_line(data: st.DataObject, folder: Path, mutated: Mutated) -> None:
    sound = data.draw(st.sampled_from([b"x,xy,*\ny,xy,*\nz,z,*\n", b"x;*\r\ny;*\r\nz;*\r\n"]))
    text = data.draw(st.one_of(mutated(sound), st.binary(max_size=30)))
    (folder / "h.csv").write_bytes(text)
    measured(folder, parquet(pa.table(SOUND)), {"hierarchies": {"a": "h.csv"}})


@pytest.mark.parametrize(
    "name", ["", ".", "no.csv", "a\0b", "x" * 5000, "h.csv/x", "long.csv", "pickle.csv", "quote.csv"]
)
def test_a_hierarchy_that_is_none_is_one_line(name: str, folder: Path, pickled: Callable[[Path], bytes]) -> None:
    (folder / "h.csv").write_bytes(b"x,*\n")
    (folder / "long.csv").write_bytes(b"x" * 200_000 + b",*\n")
    (folder / "quote.csv").write_bytes(b'x,"*\n')
    (folder / "pickle.csv").write_bytes(pickled(folder / "loaded"))
    assert not measured(folder, parquet(pa.table(SOUND)), {"hierarchies": {"a": name}})
    assert not (folder / "loaded").exists()


JSON = [
    *(
        "",
        "{",
        "[]",
        "1",
        "null",
        "NaN",
        '{"predictors": 1}',
        '{"predictors": [1]}',
        '{"predictors": []}',
        "[" * 100_000,
    ),
    *(
        '{"attributes": {"a": 1}}',
        '{"attributes": {"a": {}}}',
        '{"attributes": {"a": {"tpr": "x", "tnr": 1}}}',
        "9" * 5000,
    ),
    *('{"attributes": {"a": {"tpr": NaN, "tnr": 2}}}', '{"attributes": {"a": {"tpr": 1e999, "tnr": -1}}}'),
    '{"attributes": {"a": {"tpr": 1' + "0" * 400 + ', "tnr": 1}}}',
    *('{"attributes": {"zz": {"tpr": 1, "tnr": 1}}}', '{"predictor": {}, "attributes": []}', '{"confusion": 5}'),
]


@pytest.mark.parametrize("text", JSON, ids=lambda text: text[:40])
def test_rates_of_error_that_are_none_are_one_line(text: str, folder: Path) -> None:
    (folder / "rates.json").write_text(text)
    assert not measured(folder, parquet(pa.table(SOUND)), confusion=str(folder / "rates.json"))


@FUZZ
@given(
    share=st.lists(values | st.floats(), min_size=2, max_size=2).filter(lambda v: type(v[0]) is type(v[1])),
    s=st.sampled_from([["ill", "well"], ["ill", "ill"], [1, 2], [None, "ill"], [[1], [2]], [True, False]]),
)
@example(share=[None, None], s=["ill", "well"])
@example(share=[0.5, 0.5], s=[[1], [2]])
def test_a_reference_of_any_type_is_used_or_one_line(share: list[Any], s: list[Any], folder: Path) -> None:
    (folder / "public.parquet").write_bytes(parquet(pa.table({"s": pa.array(s), "share": pa.array(share)})))
    measured(folder, parquet(pa.table(SOUND)), {"reference": "public.parquet", "t": {"value": 0.9}})


# ------------------------------------------------------------------------------------------------------------- plans


@pytest.fixture(scope="module")
def planned(folder: Path) -> Path:
    """A plan of the sound table."""
    (folder / "sound.parquet").write_bytes(parquet(pa.table(SOUND)))
    tables.plan_table(str(folder / "sound.parquet"), TablePolicy(**POLICY), "mondrian", str(folder / "sound"), QUIET)
    return folder / "sound"


@FEW
@given(data=st.data())
def test_a_damaged_plan_is_held_or_one_line(data: st.DataObject, folder: Path, planned: Path, mutated: Mutated) -> None:
    (folder / "broken").mkdir(exist_ok=True)
    bad = data.draw(st.sampled_from(["plan.parquet", "classes.parquet"]))
    for name in ("plan.parquet", "classes.parquet"):
        whole = (planned / name).read_bytes()
        (folder / "broken" / name).write_bytes(data.draw(mutated(whole)) if name == bad else whole)
    sound = parquet(pa.table(SOUND))
    measured(folder, sound, plan=str(folder / "broken"))
    measured(folder, sound, plan=str(planned), earlier=[str(folder / "broken")])


@FEW
@given(
    column=st.sampled_from(["who", "a", "b", "class_id", "suppressed", "reason"]),
    value=values,
    note=st.sampled_from([*JSON, '{"per_subject": 5}', '{"attributes": 5, "low": [], "high": []}']),
)
def test_a_plan_of_other_types_is_held_or_one_line(
    column: str, value: Any, note: str, folder: Path, planned: Path
) -> None:
    (folder / "typed").mkdir(exist_ok=True)
    rows, classes = (pq.read_table(planned / name) for name in ("plan.parquet", "classes.parquet"))
    at = rows.column_names.index(column)
    typed = rows.set_column(at, column, pa.array([value] * len(rows)))
    noted = [
        (typed, classes),
        (rows.replace_schema_metadata({b"facecrowd": note.encode()}), classes),
        (rows, classes.replace_schema_metadata({b"facecrowd.intervals": note.encode()})),
    ]
    for plan, of in noted:
        (folder / "typed" / "plan.parquet").write_bytes(parquet(plan))
        (folder / "typed" / "classes.parquet").write_bytes(parquet(of))
        measured(folder, parquet(pa.table(SOUND)), plan=str(folder / "typed"))
        measured(folder, parquet(pa.table(SOUND)), plan=str(planned), earlier=[str(folder / "typed")])


def test_a_pickle_in_the_place_of_a_table_or_a_plan_is_never_loaded(
    folder: Path, planned: Path, pickled: Callable[[Path], bytes]
) -> None:
    bomb = pickled(folder / "loaded")
    assert not measured(folder, bomb)
    (folder / "bomb").mkdir()
    (folder / "bomb" / "plan.parquet").write_bytes(bomb)
    (folder / "bomb" / "classes.parquet").write_bytes(bomb)
    sound = parquet(pa.table(SOUND))
    assert not measured(folder, sound, plan=str(folder / "bomb"))
    assert not measured(folder, sound, plan=str(planned), earlier=[str(folder / "bomb")])
    (folder / "rates.json").write_bytes(bomb)
    assert not measured(folder, sound, confusion=str(folder / "rates.json"))
    assert not (folder / "loaded").exists()
