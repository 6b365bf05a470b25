"""Claims of pipeline/photos.py: what is taken for a photo, who is on it, and bad input is named before work starts."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facecrowd.pipeline.config import Input, Policy
from facecrowd.pipeline.errors import InputError
from facecrowd.pipeline.photos import Listing, listing, read_table
from facecrowd.stages.decode import ReadPhotos


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def found(folder: Path | str, policy: Policy | None = None, **options: object) -> Listing:
    return listing(Input(path=str(folder), **options), policy or Policy())  # type: ignore[arg-type]


def subjects(listed: Listing) -> dict[str, str]:
    return {photo.photo: photo.subject for photo in listed.photos}


def refused(folder: Path | str, policy: Policy | None = None, **options: object) -> str:
    with pytest.raises(InputError) as error:
        found(folder, policy, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def manifest(file: Path, /, **columns: list[object]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        rows = zip(*columns.values(), strict=True)
        lines = [",".join(columns), *(",".join("" if v is None else str(v) for v in row) for row in rows)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        pq.write_table(pa.table(columns), file)
    return file


# --------------------------------------------------------------------------------------------------------- folders


def test_photos_are_listed_in_the_order_of_their_paths_and_named_relative_to_the_input(tmp_path: Path) -> None:
    files(tmp_path, "b/2.JPG", "a/1.jpeg", "a/notes.txt", "a/.hidden.jpg")
    listed = found(tmp_path)
    assert [photo.photo for photo in listed.photos] == ["a/1.jpeg", "b/2.JPG"]
    assert [photo.bytes for photo in listed.photos] == [1, 1]


def test_the_folder_of_a_photo_is_its_subject_where_there_are_at_least_two(tmp_path: Path) -> None:
    listed = found(files(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg"))
    assert (listed.subjects, listed.named_subjects()) == ("folder", 2)
    assert subjects(listed) == {"a/1.jpg": "a", "a/2.jpg": "a", "b/1.jpg": "b"}


def test_the_sessions_of_a_person_are_one_person(tmp_path: Path) -> None:
    files(tmp_path, "a/s1/1.jpg", "a/s2/1.jpg", "a/2.jpg", "b/s1/1.jpg", "3.jpg")
    of_path = {"a/s1/1.jpg": "a", "a/s2/1.jpg": "a", "a/2.jpg": "a", "b/s1/1.jpg": "b", "3.jpg": ""}
    listed = found(tmp_path)
    assert (listed.subjects, listed.named_subjects()) == ("folder", 2)
    assert subjects(listed) == of_path
    file = manifest(tmp_path / "photos.csv", path=[f"./{name}" for name in of_path])
    assert subjects(found(file, subjects="folder")) == of_path


def test_the_sessions_of_a_single_person_are_not_people(tmp_path: Path) -> None:
    assert found(files(tmp_path, "a/s1/1.jpg", "a/s2/1.jpg")).subjects == "clusters"


@pytest.mark.parametrize("suffix", [".avif", ".HEIC", ".heif", ".jp2", ".jfif", ".jpe"])
def test_a_photo_of_a_kind_that_may_not_be_readable_is_a_row_all_the_same(tmp_path: Path, suffix: str) -> None:
    files(tmp_path, "a/1.jpg", f"b/2{suffix}")
    assert set(subjects(found(tmp_path))) == {"a/1.jpg", f"b/2{suffix}"}
    (row,) = [i for i, p in enumerate(found(tmp_path).photos) if p.photo != "a/1.jpg"]
    paths = np.array([photo.path for photo in found(tmp_path).photos], dtype=object)
    read = ReadPhotos()({"path": paths})
    assert read["status"][row] == "unreadable"
    assert read["reason"][row] == "not an image of a known kind"


def test_other_files_are_counted_by_extension(tmp_path: Path) -> None:
    files(tmp_path, "a/1.jpg", "b/1.jpg", "a/n.txt", "b/N.TXT", "b/raw.cr2", "a/.DS_Store", "a/._1.jpg", "README")
    assert found(tmp_path).skipped == {
        ".cr2": 1,
        ".txt": 2,
        "hidden": 1,
        "hidden .jpg": 1,
        "without extension": 1,
    }
    files(tmp_path / "texts", "a.txt", "b.txt")
    assert refused(tmp_path / "texts").endswith("; found 2 .txt)")


def test_a_name_that_is_not_utf8_is_refused_by_its_escaped_form(tmp_path: Path) -> None:
    files(tmp_path, "a/1.jpg", "b/1.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b/\xff.jpg")).write_bytes(b"x")
    assert refused(tmp_path) == "input 'b/\\udcff.jpg': its name is not UTF-8; rename it"


@pytest.mark.parametrize("names", [("1.jpg", "2.jpg"), ("all/1.jpg", "all/2.jpg")])
def test_photos_in_one_place_name_nobody_so_people_are_clusters(tmp_path: Path, names: tuple[str, ...]) -> None:
    listed = found(files(tmp_path, *names))
    assert (listed.subjects, listed.named_subjects()) == ("clusters", 0)


def test_a_changed_photo_is_another_input(tmp_path: Path) -> None:
    files(tmp_path, "a/1.jpg", "b/1.jpg")
    before = found(tmp_path).photos
    assert found(tmp_path).photos == before
    os.utime(tmp_path / "a/1.jpg", (1, 1))
    assert found(tmp_path).photos != before


def test_bad_folders_are_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere") == f"input {tmp_path}/nowhere: no such folder"
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").startswith(f"input {tmp_path}/empty: no photo in it")
    files(tmp_path, "flat/1.jpg", "one.jpg")
    assert "folders name no subjects" in refused(tmp_path / "flat", subjects="folder")
    assert "needs a manifest" in refused(tmp_path / "flat", subjects="column", subject_column="who")
    assert "not a folder" in refused(tmp_path / "one.jpg")


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    files(tmp_path, "outside/secret.jpg", "in/a/1.jpg", "in/b/1.jpg")
    (tmp_path / "in/b/2.jpg").symlink_to(tmp_path / "outside/secret.jpg")
    assert refused(tmp_path / "in") == "input b/2.jpg: a link that leads out of the input folder"


def test_a_link_within_the_input_is_a_photo_like_any_other(tmp_path: Path) -> None:
    files(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "b/2.jpg").symlink_to(tmp_path / "a/1.jpg")
    assert set(subjects(found(tmp_path))) == {"a/1.jpg", "b/1.jpg", "b/2.jpg"}


def test_people_behind_a_linked_folder_are_not_left_out_in_silence(tmp_path: Path) -> None:
    files(tmp_path, "outside/c/1.jpg", "in/a/1.jpg", "in/b/1.jpg")
    (tmp_path / "in/c").symlink_to(tmp_path / "outside/c")
    assert refused(tmp_path / "in").startswith("input c: a link to a folder")


def test_a_pipe_named_like_a_photo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    files(tmp_path, "a/1.jpg", "b/1.jpg")
    os.mkfifo(tmp_path / "b/2.jpg")
    assert refused(tmp_path) == "input b/2.jpg: not a file"


# ------------------------------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize("name", ["photos.parquet", "photos.csv"])
def test_a_manifest_names_photos_subjects_and_attributes(tmp_path: Path, name: str) -> None:
    files(tmp_path, "x/1.jpg", "y.jpg")
    file = manifest(tmp_path / name, path=["x/1.jpg", "y.jpg"], who=["ann", "007"], Male=["0", "1"])
    listed = found(file, Policy(sensitive=("Male",)), subject_column="who")
    assert listed.subjects == "column"
    assert subjects(listed) == {"x/1.jpg": "ann", "y.jpg": "007"}
    assert [photo.attributes for photo in listed.photos] == [{"Male": "0"}, {"Male": "1"}]
    assert [photo.bytes for photo in listed.photos] == [1, 1]


def test_a_photo_changed_behind_a_manifest_is_another_input(tmp_path: Path) -> None:
    files(tmp_path, "1.jpg", "2.jpg")
    file = manifest(tmp_path / "photos.csv", path=["1.jpg", "2.jpg"])
    before = found(file).photos
    (tmp_path / "1.jpg").write_bytes(b"another")
    assert found(file).photos != before


def test_booleans_and_numbers_become_the_text_the_release_shows(tmp_path: Path) -> None:
    file = manifest(tmp_path / "photos.parquet", path=["1.jpg", "2.jpg"], Male=[True, False], age=[30, 40])
    photos = found(file, Policy(quasi_identifiers=("Male", "age"))).photos
    assert [photo.attributes for photo in photos] == [{"Male": "1", "age": "30"}, {"Male": "0", "age": "40"}]


@pytest.mark.parametrize(
    "path", ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd.jpg", "..", "s3://bucket/x.jpg", "file:///x.jpg"]
)
def test_manifest_rows_that_lead_out_are_refused(tmp_path: Path, path: str) -> None:
    file = manifest(tmp_path / "photos.parquet", path=["1.jpg", path])
    assert refused(file) == f"input {file}, row 1: {path!r} leads out of the manifest's folder"


def test_a_manifest_row_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    files(tmp_path, "secret.jpg", "in/1.jpg")
    (tmp_path / "in/2.jpg").symlink_to(tmp_path / "secret.jpg")
    file = manifest(tmp_path / "in/photos.csv", path=["1.jpg", "2.jpg"])
    assert "row 1: '2.jpg': a link that leads out" in refused(file)


@pytest.mark.parametrize(
    "columns, options, message",
    [
        ({"path": ["1.jpg", "./1.jpg"]}, {}, "row 1: './1.jpg' is there twice"),
        ({"path": ["1.jpg", None]}, {}, "row 1: path is empty"),
        ({"path": ["1.jpg", "2.jpg"], "who": ["a", None]}, {"subject_column": "who"}, "row 1: who is empty"),
        ({"path": ["1.jpg", "2.jpg"], "who": ["a", ""]}, {"subject_column": "who"}, "row 1: who is empty"),
        ({"path": ["1.jpg"], "x": ["a"]}, {"subject_column": "who"}, "no column 'who' (there are path, x)"),
        ({"file": ["1.jpg"]}, {}, "no column 'path' (there are file)"),
        ({"path": pa.array([], pa.string())}, {}, "the table is empty"),
    ],
)
def test_bad_manifests_are_named_by_row_and_column(
    tmp_path: Path, columns: dict[str, list[object]], options: dict[str, object], message: str
) -> None:
    file = manifest(tmp_path / "photos.parquet", **columns)
    said = refused(file, **options)
    assert said.startswith(f"input {file}")
    assert said.endswith(message)


def test_missing_and_unreadable_manifests_are_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.csv") == f"input {tmp_path}/no.csv: no such file"
    for name in ("bad.parquet", "bad.csv"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00a,b\n\x80")
        assert refused(tmp_path / name).startswith(f"input {tmp_path}/{name}: ")


def test_a_character_across_a_read_border_does_not_make_a_csv_unreadable(tmp_path: Path) -> None:
    for pad in range(3):
        name = "ab"[: pad % 2] + "é" * 40
        rows = [f"{i:05d}{name}.jpg" for i in range(1000)]
        file = manifest(tmp_path / f"{pad}.csv", path=["x" * pad + ".jpg", *rows])
        assert file.stat().st_size > 65536
        assert len(found(file).photos) == 1001


# ------------------------------------------------------------------------------------------------------ attributes


@pytest.mark.parametrize("key", ["a/1.jpg", "1.jpg"])
def test_attributes_are_joined_by_file_name_or_by_path(tmp_path: Path, key: str) -> None:
    files(tmp_path / "in", "a/1.jpg", "b/2.jpg")
    table = manifest(tmp_path / "t.csv", image_id=[key, "2.jpg", "other.jpg"], Male=["1", "0", "1"])
    listed = found(tmp_path / "in", Policy(sensitive=("Male",)), attributes=str(table))
    assert [photo.attributes for photo in listed.photos] == [{"Male": "1"}, {"Male": "0"}]


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            {"image_id": ["1.jpg"], "Male": ["1"]},
            "1 photos have no row in it, the first 'b/2.jpg' (joined by image_id)",
        ),
        ({"image_id": ["1.jpg", "2.jpg"], "Male": ["1", None]}, "row 'b/2.jpg': Male is empty"),
        ({"image_id": ["1.jpg", "2.jpg"], "Male": [1.0, float("nan")]}, "row 'b/2.jpg': Male is empty"),
        ({"image_id": ["1.jpg", "2.jpg", "1.jpg"], "Male": ["1", "0", "0"]}, "row 2: '1.jpg' is there twice"),
        ({"image_id": ["1.jpg", "2.jpg", None], "Male": ["1", "0", "0"]}, "row 2: image_id is empty"),
        ({"image_id": ["1.jpg", "2.jpg"]}, "no column 'Male' (there are image_id); presets: anonymousnet, five-parts"),
        ({"photo": ["1.jpg"], "Male": ["1"]}, "no column 'image_id' (there are photo, Male)"),
    ],
)
def test_bad_attribute_tables_are_named_by_row_and_column(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    files(tmp_path / "in", "a/1.jpg", "b/2.jpg")
    table = manifest(tmp_path / "t.parquet", **columns)
    said = refused(tmp_path / "in", Policy(sensitive=("Male",)), attributes=str(table))
    assert said.startswith(f"input.attributes {table}")
    assert said.endswith(message)


def test_a_name_that_several_photos_have_is_no_key(tmp_path: Path) -> None:
    files(tmp_path / "in", "a/1.jpg", "b/1.jpg", "b/2.jpg")
    policy = Policy(sensitive=("Male",))
    table = manifest(tmp_path / "t.csv", image_id=["1.jpg", "2.jpg"], Male=["1", "0"])
    assert refused(tmp_path / "in", policy, attributes=str(table)) == (
        f"input.attributes {table}: 2 photos of the input are called '1.jpg', among them 'a/1.jpg'; put the path "
        "relative to the input into image_id"
    )
    table = manifest(tmp_path / "t.csv", image_id=["a/1.jpg", "b/1.jpg", "2.jpg"], Male=["1", "0", "0"])
    photos = found(tmp_path / "in", policy, attributes=str(table)).photos
    assert [photo.attributes["Male"] for photo in photos] == ["1", "0", "0"]


def test_a_table_keeps_leading_zeros_of_csv_and_its_columns(tmp_path: Path) -> None:
    file = manifest(tmp_path / "t.csv", image_id=["007.jpg"], code=["01"])
    assert read_table(str(file), "input").to_pylist() == [{"image_id": "007.jpg", "code": "01"}]
