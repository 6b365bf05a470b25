"""Claims of pipeline/histogram.py: files, parts, CSV and Ray all count to the same bits as the table held in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from facecrowd.pipeline import histogram
from facecrowd.pipeline.errors import InputError
from facecrowd.pipeline.histogram import Roles, Table
from facecrowd.pipeline.progress import Progress
from facecrowd.privacy import classes
from facecrowd.privacy.cells import Cells
from facecrowd.privacy.cells import cells as held_cells
from facecrowd.privacy.errors import NullValueError

QUIET = Progress(quiet=True)
ROLES = Roles("who", ("f0", "f1", "f2", "hair", "age"), ("sick", "grade"))


@pytest.fixture(scope="module")
def people() -> pa.Table:
    """4,000 photos of 300 people."""
    rng = np.random.default_rng(5)
    who = rng.integers(0, 300, 4000)
    hair = np.array(["black", "brown", "grey"])[(who + (rng.random(4000) < 0.2)) % 3]
    return pa.table(
        {
            "who": pa.array([f"p{i:03d}" for i in who]),
            **{f"f{i}": (who % (i + 2) == 0) ^ (rng.random(4000) < 0.1) for i in range(3)},
            "hair": pa.array(hair).dictionary_encode(),
            "age": pa.array(20 + who % 7, pa.int16()),
            "sick": rng.random(4000) < 0.3,
            "grade": rng.integers(1, 5, 4000),
        }
    )


@pytest.fixture(scope="module")
def files(people: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same rows as one file, as many row groups, as a folder of parts, and as CSV."""
    folder = tmp_path_factory.mktemp("tables")
    pq.write_table(people, folder / "one.parquet")
    pq.write_table(people, folder / "groups.parquet", row_group_size=333)
    (folder / "parts").mkdir()
    for i, start in enumerate(range(0, 4000, 900)):
        pq.write_table(people.slice(start, 900), folder / "parts" / f"part-{i:02d}.parquet", row_group_size=400)
    flat = people.set_column(4, "hair", people["hair"].cast(pa.string()))
    pacsv.write_csv(flat, folder / "rows.csv")
    names = {"one": "one.parquet", "groups": "groups.parquet", "parts": "parts", "csv": "rows.csv"}
    return {name: str(folder / file) for name, file in names.items()}


def measured(path: str) -> classes.Histogram:
    table = Table(path, subject="who")
    return histogram.measured(table, histogram.layout_of(table, ROLES, QUIET), QUIET)


def cells(path: str, per_subject: bool = True) -> Cells:
    table = Table(path, subject="who")
    return histogram.cells(table, histogram.layout_of(table, ROLES, QUIET), QUIET, per_subject=per_subject)


def same_histogram(one: Any, two: Any) -> None:
    for field in ("rows", "subjects", "largest_share", "reference"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    np.testing.assert_array_equal(one.weights.toarray(), two.weights.toarray())
    assert one.classes.to_pydict() == two.classes.to_pydict()


def same_cells(one: Cells, two: Cells) -> None:
    assert one.attributes == two.attributes
    np.testing.assert_array_equal(one.codes, two.codes)
    for field in ("cell_class", "cell_subject", "cell_value", "cell_rows"):
        np.testing.assert_array_equal(getattr(one.partial, field), getattr(two.partial, field))
    assert one.partial.subjects.to_pylist() == two.partial.subjects.to_pylist()


def test_a_table_on_disk_counts_like_the_table_in_memory(people: pa.Table, files: dict[str, str]) -> None:
    held = classes.histogram(
        people["who"],
        quasi_identifiers=people.select(ROLES.quasi_identifiers),
        sensitive=people.select(ROLES.sensitive),
    )
    found = measured(files["one"])
    for field in ("rows", "subjects", "largest_share"):
        np.testing.assert_array_equal(getattr(found, field), getattr(held, field))
    np.testing.assert_array_equal(found.weights.toarray(), held.weights.toarray())
    np.testing.assert_allclose(found.reference, held.reference, rtol=1e-12)
    assert found.classes.to_pydict() == held.classes.to_pydict()


@pytest.mark.parametrize("per_subject", [True, False])
def test_cells_of_a_table_on_disk_are_those_in_memory(
    people: pa.Table, files: dict[str, str], per_subject: bool
) -> None:
    quasi, sensitive = people.select(ROLES.quasi_identifiers), people.select(ROLES.sensitive)
    same_cells(cells(files["one"], per_subject), held_cells(people["who"], quasi, sensitive, per_subject=per_subject))


@pytest.mark.parametrize("form", ["groups", "parts"])
def test_row_groups_and_parts_are_the_whole(files: dict[str, str], form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    same_histogram(measured(files[form]), measured(files["one"]))
    same_cells(cells(files[form]), cells(files["one"]))


def test_the_order_of_the_rows_changes_nothing(people: pa.Table, files: dict[str, str], tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(len(people))
    pq.write_table(people.take(pa.array(order)), tmp_path / "shuffled.parquet", row_group_size=777)
    same_histogram(measured(str(tmp_path / "shuffled.parquet")), measured(files["one"]))
    same_cells(cells(str(tmp_path / "shuffled.parquet")), cells(files["one"]))


def test_csv_gives_numbers_where_all_are_numbers_and_never_for_people(files: dict[str, str], tmp_path: Path) -> None:
    table = Table(files["csv"], subject="who")
    kinds = {field.name: str(field.type) for field in table.schema}
    assert (kinds["age"], kinds["grade"], kinds["hair"], kinds["f0"]) == ("int64", "int64", "string", "string")
    one, two = measured(files["csv"]), measured(files["one"])
    np.testing.assert_array_equal(np.sort(one.subjects), np.sort(two.subjects))
    (tmp_path / "ids.csv").write_text("who,a,code,x\n007,1,01,1.50\n7,2,1,2\n")
    kinds = {f.name: str(f.type) for f in Table(str(tmp_path / "ids.csv"), subject="who").schema}
    assert kinds == {"who": "string", "a": "int64", "code": "string", "x": "double"}


def test_an_empty_csv_cell_is_a_null(tmp_path: Path) -> None:
    (tmp_path / "gap.csv").write_text("who,a,s\nann,1,x\nbob,,y\n")
    table = Table(str(tmp_path / "gap.csv"), subject="who")
    with pytest.raises(NullValueError, match="'a' is null in row 1"):
        histogram.layout_of(table, Roles("who", ("a",), ("s",)), QUIET)


def test_a_table_that_is_not_there_or_not_whole_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.parquet: no such file"):
        Table(str(tmp_path / "nowhere.parquet")).need(["a"])
    (tmp_path / "text.parquet").write_text("not Parquet")
    with pytest.raises(InputError, match=r"text\.parquet: not readable"):
        Table(str(tmp_path / "text.parquet")).need(["a"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"no \.parquet file"):
        Table(str(tmp_path / "folder")).need(["a"])
    pq.write_table(pa.table({"a": pa.array([], pa.bool_())}), tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="the table is empty"):
        Table(str(tmp_path / "empty.parquet")).need(["a"])
    with pytest.raises(InputError, match=r"no column 'b' \(there are a\)"):
        Table(str(tmp_path / "empty.parquet")).need(["b"])


def test_ray_counts_to_the_same_bits(files: dict[str, str], monkeypatch: pytest.MonkeyPatch, ray_session: None) -> None:
    monkeypatch.setattr(histogram, "PART_ROWS", 900)
    monkeypatch.setattr(histogram, "PARTITION_ROWS", 1500)
    assert len(Table(files["parts"]).parts) == 5
    table = Table(files["parts"])
    layout = histogram.layout_of(table, ROLES, QUIET, ray=True)
    same_histogram(histogram.measured(table, layout, QUIET, ray=True), measured(files["one"]))
    same_cells(histogram.cells(table, layout, QUIET, ray=True), cells(files["one"]))


def test_what_ray_workers_find_wrong_reaches_the_user(
    people: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    monkeypatch.setattr(histogram, "PART_ROWS", 900)
    values = people["age"].to_pylist()
    values[2500] = None
    bad = people.set_column(people.schema.get_field_index("age"), "age", pa.array(values, pa.int16()))
    pq.write_table(bad, tmp_path / "bad.parquet", row_group_size=500)
    with pytest.raises(NullValueError, match="'age' is null in row 2500"):
        histogram.layout_of(Table(str(tmp_path / "bad.parquet")), ROLES, QUIET, ray=True)
