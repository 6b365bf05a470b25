"""Claims of pipeline/photos.py: whatever the input is called and holds, it is photos inside it, or one clear line."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from facecrowd.pipeline.config import Input, Policy
from facecrowd.pipeline.errors import InputError
from facecrowd.pipeline.photos import Listing, listing, read_table
from facecrowd.stages.decode import ReadPhotos

FUZZ = settings.get_profile("fuzz")
Fresh = Callable[[], Path]
Mutated = Callable[[bytes], st.SearchStrategy[bytes]]

SECRET = b"not of the input"

WORDS = ("photo", "e\u0301", "\u00e9", "\u202egpj.exe", "\U0001f600", "=cmd|' /C calc'!A0", "+1", "@x", "-", "<script>")
WORDS += (
    "a\nb",
    "\x1b[31m",
    "a::b",
    "zip::x",
    "%2e%2e",
    "..\\..\\x",
    "~",
    "$HOME",
    "*",
    "?",
    "[a]",
    "#",
    "'",
    '"',
    " ",
)
WORDS += ("file:", "a,b", "x" * 200, "CON", ".", "..")
"""Names, and parts of names, that have hurt somebody."""

name = st.lists(st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="/\0"), max_size=4), max_size=2)
name = name.map(lambda parts: "".join(parts)[:120] + ".jpg")


def refused(error: BaseException) -> None:
    """That an error is one that a person can read: one line, without what would move a terminal's cursor."""
    assert str(error)
    assert str(error).isprintable(), str(error)


def asked(path: Path | str, **options: Any) -> Listing | None:
    """The listing, or None where it was refused in one line."""
    policy = Policy(quasi_identifiers=("Young",)) if options.pop("policy", False) else Policy()
    try:
        return listing(Input(path=str(path), **options), policy, ("Young",))
    except InputError as error:
        refused(error)
        return None


def inside(found: Listing | None, root: Path) -> None:
    """That all photos lie below ``root``, and each is read or says why not."""
    if found is None:
        return
    paths = [photo.path for photo in found.photos]
    for path in paths:
        assert Path(os.path.realpath(path)).is_relative_to(root.resolve())
    out = ReadPhotos()({"path": paths})
    assert len(out["status"]) == len(paths)
    assert all(status == "unreadable" and reason for status, reason in zip(out["status"], out["reason"], strict=True))
    assert [photo.photo for photo in found.photos] == sorted({photo.photo for photo in found.photos})


# --------------------------------------------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """``fresh()``: an empty folder for an input, beside one that is none of its business."""

    def make() -> Path:
        place = tmp_path_factory.mktemp("place")
        (place / "secret").mkdir()
        (place / "secret" / "photo.jpg").write_bytes(SECRET)
        (place / "in").mkdir()
        return place / "in"

    return make


@FUZZ
@given(names=st.lists(st.tuples(name, name | st.none()), min_size=1, max_size=5))
@example(names=[("e\u0301.jpg", "\u00e9.jpg"), ("\u00e9.jpg", "e\u0301.jpg")])
def test_whatever_files_are_called_they_are_listed_or_named(names: list[tuple[str, str | None]], fresh: Fresh) -> None:
    root = fresh()
    for parts in names:
        file = root.joinpath(*[part for part in parts if part])
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"no image")
        except (OSError, UnicodeEncodeError):  # no name here, a file where a folder is to be
            continue
    there = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.name[0] != ".")
    found = asked(root)
    inside(found, root)
    assert found is None or [photo.photo for photo in found.photos] == there


@FUZZ
@given(
    links=st.dictionaries(
        st.sampled_from(["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/deep/4.jpg", "c.jpg", "d"]),
        st.sampled_from(
            ["1.jpg", "2.jpg", "../a/1.jpg", "../../secret/photo.jpg", "../secret", ".", "..", "/etc/passwd", "/", "no"]
        ),
        min_size=1,
    )
)
@example(links={"a/1.jpg": "2.jpg", "a/2.jpg": "1.jpg"})
@example(links={"a/1.jpg": "1.jpg"})
@example(links={"d": "."})
def test_links_lead_nowhere_out_of_the_input_and_in_no_circle(links: dict[str, str], fresh: Fresh) -> None:
    root = fresh()
    (root / "a").mkdir()
    (root / "a" / "0.jpg").write_bytes(b"no image")
    for link, target in links.items():
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(target)
    inside(asked(root), root)


@pytest.mark.parametrize("name", ["photos::more", "a::b", "zip::x", "file::Photos"])
def test_a_folder_that_would_be_read_as_joined_urls_is_not_taken_for_another(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "1.jpg").write_bytes(b"x")
    (tmp_path / name.partition("::")[0]).mkdir()
    (tmp_path / name.partition("::")[0] / "another.jpg").write_bytes(SECRET)
    assert asked(tmp_path / name) is None


def test_an_objects_name_on_a_store_never_names_another_file() -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/fuzz-store/p/1.jpg", b"x")
    store.pipe_file("/fuzz-store/p/1.jpg::/etc/passwd.jpg", b"x")
    store.pipe_file("/fuzz-store/manifest.csv", b"path\np/1.jpg\np/1.jpg::/etc/passwd.jpg\n")
    try:
        assert asked("memory://fuzz-store") is None
        assert asked("memory://fuzz-store/manifest.csv") is None
    finally:
        store.rm("/fuzz-store", recursive=True)


@pytest.mark.parametrize("url", ["zip://::photos.zip", "simplecache::memory://x", "filecache::zip://a::b.zip"])
def test_an_input_inside_of_another_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert asked(url) is None


# ------------------------------------------------------------------------------------------------------- manifests


@FUZZ
@given(
    rows=st.lists(
        name
        | st.sampled_from(
            [
                *(
                    "../secret/photo.jpg",
                    "a/../../secret/photo.jpg",
                    "/etc/passwd",
                    "//etc/passwd",
                    "a/./../b.jpg",
                    ".",
                ),
                *("file:///etc/passwd", "simplecache::http://localhost/x.jpg", "file:/etc/passwd", "a\0.jpg", "..", ""),
                *("memory://x.jpg", "%2e%2e/secret/photo.jpg", "..%2fsecret%2fphoto.jpg", "..\\secret\\photo.jpg"),
                *("local::../secret/photo.jpg", "x" * 5000, "x/" * 3000 + "y.jpg", "out/photo.jpg", "loop.jpg", "pipe"),
                *("=HYPERLINK(1)", "https:x.jpg", "~/x.jpg", "1.jpg/2.jpg", "a//1.jpg", "1.jpg"),
            ]
        ),
        min_size=1,
        max_size=4,
    ),
    kind=st.sampled_from(["csv", "parquet"]),
)
@example(rows=["x" * 5000], kind="parquet")
@example(rows=["x/" * 3000 + "y.jpg"], kind="csv")
@example(rows=["loop.jpg"], kind="csv")
def test_a_row_leads_nowhere_out_of_the_manifests_folder(rows: list[str], kind: str, fresh: Fresh) -> None:
    root = fresh()
    (root / "1.jpg").write_bytes(b"no image")
    (root / "out").symlink_to("../secret")
    (root / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(root / "pipe")
    try:
        table = pa.table({"path": rows, "Young": ["1"] * len(rows)})
    except UnicodeEncodeError:  # no text, so in no table
        return
    (pacsv.write_csv if kind == "csv" else pq.write_table)(table, root / f"m.{kind}")
    inside(asked(root / f"m.{kind}"), root)


values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=8).filter(lambda t: t.isprintable())
    | st.binary(max_size=8)
    | st.datetimes()
    | st.lists(st.integers(0, 3), max_size=2)
    | st.fixed_dictionaries({"a": st.integers(0, 3)})
)


def columns(most: int = 4) -> st.SearchStrategy[list[tuple[str, list[Any]]]]:
    """Columns of all types, of one length, some of the names that are looked for, also twice."""
    column = st.sampled_from(["path", "who", "Young", "image_id", "", "k"])
    return st.integers(0, 3).flatmap(
        lambda rows: st.lists(
            st.tuples(
                column,
                values.flatmap(lambda v: st.just([v] * rows))
                | st.just([f"{i}.jpg" for i in range(rows)])
                | st.just([None, *["0.jpg"] * rows][:rows]),
            ),
            min_size=1,
            max_size=most,
        )
    )


def arrow(found: list[tuple[str, list[Any]]]) -> pa.Table:
    return pa.table([pa.array(column) for _, column in found], names=[name for name, _ in found])


@FUZZ
@given(found=columns())
@example(found=[("path", ["0.jpg"]), ("path", ["1.jpg"])])
@example(found=[("path", ["0.jpg"]), ("who", [float("nan")])])
@example(found=[("path", [["0.jpg"]])])
def test_columns_of_any_type_are_photos_or_one_line(found: list[tuple[str, list[Any]]], fresh: Fresh) -> None:
    root = fresh()
    pq.write_table(arrow(found), root / "m.parquet")
    for options in ({}, {"subject_column": "who"}, {"policy": True}, {"path_column": "k", "subjects": "folder"}):
        listed = asked(root / "m.parquet", **options)
        inside(listed, root)
        if listed is not None:
            named = [name for name, _ in found]
            assert named.count(options.get("path_column", "path")) == 1
            assert all(photo.subject not in ("nan", "None") for photo in listed.photos)
    (root / "photos").mkdir()
    (root / "photos" / "0.jpg").write_bytes(b"no image")
    asked(root / "photos", attributes=str(root / "m.parquet"), policy=True)


def strange_parquets() -> dict[str, bytes]:
    """Sound files with values that Python has no object for."""
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    late = pa.array([2**58], pa.timestamp("us"))
    tables = {
        "text that is no UTF-8": pa.table({"path": bad, "Young": ["1"]}),
        "a time after all calendars": pa.table({"path": ["0.jpg"], "Young": late}),
        "a dictionary": pa.table({"path": pa.array(["0.jpg"]).dictionary_encode(), "Young": ["1"]}),
        "a map": pa.table({"path": ["0.jpg"], "Young": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32()))}),
        "no columns": pa.table({"path": ["0.jpg"]}).select([]),
        "nulls alone": pa.table({"path": pa.nulls(1), "Young": pa.nulls(1)}),
    }
    out = {}
    for what, table in tables.items():
        sink = io.BytesIO()
        pq.write_table(table, sink)
        out[what] = sink.getvalue()
    return out


PARQUETS = strange_parquets()


@pytest.mark.parametrize("what", PARQUETS)
def test_values_that_python_has_no_object_for_are_one_line(what: str, tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(PARQUETS[what])
    for options in ({}, {"subject_column": "Young"}, {"policy": True}):
        asked(tmp_path / "m.parquet", **options)


@FUZZ
@given(data=st.data())
def test_a_damaged_manifest_is_photos_or_one_line(data: st.DataObject, fresh: Fresh, mutated: Mutated) -> None:
    root = fresh()
    sink = io.BytesIO()
    table = pa.table({"path": ["0.jpg", "1.jpg"], "who": ["a", "b"], "Young": [True, None], "x": [[1], [2, 3]]})
    pq.write_table(table, sink, compression=data.draw(st.sampled_from(["none", "zstd", "snappy"])))
    csv = b'path,who,Young\r\n"0.jpg",a,1\r\n1.jpg,"b ""c""",0\r\n'
    for kind, sound in (("parquet", sink.getvalue()), ("csv", csv)):
        (root / f"m.{kind}").write_bytes(data.draw(mutated(sound)))
        for options in ({}, {"subject_column": "who", "policy": True}):
            inside(asked(root / f"m.{kind}", **options), root)


@pytest.mark.parametrize(
    "text, paths",
    [
        (b"path\r0.jpg\r1.jpg\r", ["0.jpg", "1.jpg"]),
        (b"\xef\xbb\xbfpath\r\n0.jpg\r\n", ["0.jpg"]),
        (b"path,path\n0.jpg,1.jpg\n", None),
        (b"path\n" + b"x" * 200_000 + b"\n", ["x" * 200_000]),
        (b"a" * 200_000 + b",path\n1,0.jpg\n", ["0.jpg"]),
        ("path\n0.jpg\n".encode("utf-16"), None),
        (b"path\n\xff.jpg\n", None),
        (b'path\n"0.jpg\n', ["0.jpg\n"]),
        (b"", None),
        (b"\n\n\n", None),
        (b"\0" * 100, None),
    ],
)
def test_a_csv_of_any_make_is_photos_or_one_line(text: bytes, paths: list[str] | None, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(text)
    found = asked(tmp_path / "m.csv")
    assert paths == (found and [photo.photo for photo in found.photos])


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_pickle_in_the_place_of_a_manifest_is_never_loaded(
    kind: str, tmp_path: Path, pickled: Callable[[Path], bytes]
) -> None:
    (tmp_path / f"m.{kind}").write_bytes(pickled(tmp_path / "loaded"))
    assert asked(tmp_path / f"m.{kind}") is None
    with pytest.raises(InputError):
        read_table(str(tmp_path / f"m.{kind}"), "input", ["path"])
    assert not (tmp_path / "loaded").exists()
