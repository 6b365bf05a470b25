"""Claims of jobs/labelled.py: no person in two splits, whoever else is there; bad tables are one sentence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.jobs import labelled
from facecrowd.jobs.labelled import SPLITS, TABLE, Faces, faces, split
from facecrowd.pipeline.errors import InputError
from facecrowd.stages.attributes import ATTRIBUTES
from facecrowd.stages.decode import decode

NAMES = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=30)


def of_people(names: list[str]) -> Faces:
    """One face without pixels per name."""
    labels = np.zeros((len(names), len(ATTRIBUTES)), np.float32)
    return Faces(np.array([f"{i}.jpg" for i in range(len(names))]), np.array(names), [b"x"] * len(names), labels)


@pytest.fixture(scope="module")
def read(collection: Path, model_folder: str | None, tmp_path_factory: pytest.TempPathFactory) -> Faces:
    return faces(collection, cache=tmp_path_factory.mktemp("cache"), models=model_folder)


def without_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "_crops", lambda photos, models, say: [p.read_bytes()[:8] for p in photos])


# ------------------------------------------------------------------------------------------------------------ splits


@given(NAMES)
def test_no_subject_is_in_two_splits_and_every_face_is_in_one(names):
    found = of_people(names)
    parts = [set(found.of(s).subject.tolist()) for s in SPLITS]
    assert sum(len(found.of(s)) for s in SPLITS) == len(found)
    for i, part in enumerate(parts):
        assert all(part.isdisjoint(other) for other in parts[i + 1 :])
    assert len(found.of(*SPLITS)) == len(found)


@given(NAMES, NAMES)
def test_the_split_of_a_person_does_not_depend_on_who_else_is_there(names, others):
    alone, together = of_people(names), of_people([*others, *names])
    assert together.splits[len(others) :].tolist() == alone.splits.tolist()


def test_splits_have_the_shares_they_say():
    found = [split(f"{i}") for i in range(20_000)]
    assert sum(SPLITS.values()) == pytest.approx(1)
    for name, portion in SPLITS.items():
        assert found.count(name) / len(found) == pytest.approx(portion, abs=0.01)


def test_a_known_name_stays_in_its_split():
    """The shipped weights were trained on these splits: they may never move."""
    known = {"1": "judge", "2": "judge", "Tom_Hanks": "steer", "p01": "judge", "9999": "test"}
    assert {name: split(name) for name in known} == known


@given(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=60), st.integers(2, 6))
def test_all_faces_of_a_person_share_a_fold_and_folds_have_equally_many_people(names, count):
    found = of_people(names)
    fold = found.folds(count)
    of = {name: set(fold[found.subject == name].tolist()) for name in set(names)}
    assert all(len(folds) == 1 for folds in of.values())
    sizes = [sum(folds == {i} for folds in of.values()) for i in range(count)]
    assert max(sizes) - min(sizes) <= 1


# ------------------------------------------------------------------------------------------------------------ reading


def test_a_folder_and_its_table_become_aligned_labelled_faces(collection, read):
    assert len(read) == 40
    table = pq.read_table(collection.parent / TABLE).to_pydict()
    assert read.name.tolist() == table["image_id"]
    assert (read.subject == [name[:3] for name in read.name.tolist()]).all()
    np.testing.assert_array_equal(read.labels, np.stack([table[a] for a in ATTRIBUTES], axis=1).astype(np.float32))
    assert {pixels.shape for pixels in read.take(np.arange(4)).pixels()} == {(256, 256, 3)}


def test_what_is_kept_of_people_is_for_its_owner_alone_and_nothing_where_nothing_is_to_be(
    collection, model_folder, tmp_path, monkeypatch
):
    without_networks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    umask = os.umask(0o022)
    try:
        found = faces(collection, cache=tmp_path / "cache", models=model_folder)
        found.write(tmp_path / "pack.parquet")
        for nowhere in (labelled.NOWHERE, None):
            assert faces(collection, cache=nowhere, models=model_folder).crop == found.crop
    finally:
        os.umask(umask)
    (kept,) = (tmp_path / "cache").iterdir()
    modes = [path.stat().st_mode & 0o777 for path in (kept.parent, kept, tmp_path / "pack.parquet")]
    assert modes == [0o700, 0o600, 0o600]
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "pack.parquet"}


def test_crops_are_made_again_for_another_photo_detector_or_version(collection, model_folder, tmp_path, monkeypatch):
    folder, cache = tmp_path / "people", tmp_path / "cache"
    shutil.copytree(collection, folder)
    without_networks(monkeypatch)

    def kept() -> int:
        faces(folder, cache=cache, models=model_folder)
        return len(list(cache.iterdir()))

    assert (kept(), kept()) == (1, 1)
    photo = next(folder.glob("*/*.jpg"))
    os.utime(photo, ns=(0, photo.stat().st_mtime_ns + 1))
    assert kept() == 2
    monkeypatch.setattr(labelled, "sha256", lambda file: "of another detector")
    assert kept() == 3
    monkeypatch.setattr(labelled, "VERSION", labelled.VERSION + 1)
    assert kept() == 4


def test_the_crops_are_kept_and_a_changed_table_is_read_again(collection, model_folder, tmp_path, monkeypatch):
    folder = tmp_path / "people"
    shutil.copytree(collection, folder)
    shutil.copy(collection.parent / TABLE, tmp_path / TABLE)
    without_networks(monkeypatch)
    first = faces(folder, cache=tmp_path / "cache", models=model_folder)
    monkeypatch.setattr(labelled, "_crops", lambda *_: pytest.fail("the crops were made again"))
    again = faces(folder, cache=tmp_path / "cache", models=model_folder)
    assert again.crop == first.crop
    assert again.fingerprint == first.fingerprint
    table = pq.read_table(tmp_path / TABLE)
    flipped = {a: np.logical_not(table[a].to_numpy()) for a in ATTRIBUTES}
    pq.write_table(pa.table({"image_id": table["image_id"], **flipped}), tmp_path / TABLE)
    changed = faces(folder, cache=tmp_path / "cache", models=model_folder)
    np.testing.assert_array_equal(changed.labels, 1 - first.labels)
    assert changed.fingerprint != first.fingerprint


def test_photos_of_the_same_name_are_told_apart_by_their_person(people, model_folder, tmp_path):
    """Every demo person has a 1.jpg."""
    for person in people[:3]:
        (tmp_path / "people" / person.name).mkdir(parents=True)
        shutil.copy(person / "1.jpg", tmp_path / "people" / person.name / "1.jpg")
    values = {a: [1, 0] for a in ATTRIBUTES}
    ids = [f"{people[0].name}/1.jpg", f"{people[1].name}/1.jpg"]
    pq.write_table(pa.table({"image_id": ids, **values}), tmp_path / TABLE)
    found = faces(tmp_path / "people", models=model_folder)
    assert len(set(found.crop)) == 3
    assert found.labels[:, 0].tolist()[:2] == [1, 0]
    assert np.isnan(found.labels[2]).all()
    pq.write_table(pa.table({"image_id": ["1.jpg", "2.jpg"], **values}), tmp_path / TABLE)
    assert np.isnan(faces(tmp_path / "people", models=model_folder).labels).all()


def test_a_photo_without_a_face_is_left_out(collection, model_folder, tmp_path, texture_photo):
    (tmp_path / "people" / "p01").mkdir(parents=True)
    (tmp_path / "people" / "p02").mkdir()
    shutil.copy(next((collection / "p01").glob("*.jpg")), tmp_path / "people" / "p01" / "a.jpg")
    (tmp_path / "people" / "p01" / "b.jpg").write_bytes(texture_photo)
    (tmp_path / "people" / "p02" / "torn.jpg").write_bytes(texture_photo[:50])
    found = faces(tmp_path / "people", models=model_folder, cache=tmp_path / "cache")
    assert found.name.tolist() == ["a.jpg"]
    assert faces(tmp_path / "people", models=model_folder, cache=tmp_path / "cache").name.tolist() == ["a.jpg"]


@pytest.fixture
def texture_photo() -> bytes:
    from facecrowd.stages.encode import encode

    return encode(np.random.default_rng(0).integers(0, 256, (200, 150, 3), dtype=np.uint8))


def test_a_pack_read_back_is_the_same_also_where_labels_are_unknown(labelled, tmp_path):
    found = labelled.take(np.arange(7))
    found.labels[3] = np.nan
    found.write(tmp_path / "deep" / "pack.parquet")
    again = faces(tmp_path / "deep" / "pack.parquet")
    assert again.name.tolist() == found.name.tolist()
    assert again.subject.tolist() == found.subject.tolist()
    assert again.crop == found.crop
    np.testing.assert_array_equal(again.labels, found.labels)
    assert again.labels.dtype == np.float32
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["pack.parquet"]
    assert (again.pixels()[0] == decode(found.crop[0])).all()


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda t: t.drop_columns(["Male", "Young"]), "lacks the columns Male, Young"),
        (lambda t: t.drop_columns(["image_id"]), "lacks the columns image_id"),
        (lambda t: t.set_column(1, ATTRIBUTES[0], pa.array([7] * len(t))), "neither true nor false"),
        (
            lambda t: t.set_column(1, ATTRIBUTES[0], pa.array(["yes"] * len(t))),
            "not a Parquet or CSV table of attributes",
        ),
    ],
)
def test_a_bad_table_is_one_sentence(collection, tmp_path, monkeypatch, change, said):
    without_networks(monkeypatch)
    pq.write_table(change(pq.read_table(collection.parent / TABLE)), tmp_path / "bad.parquet")
    with pytest.raises(InputError, match=said) as caught:
        faces(collection, tmp_path / "bad.parquet")
    assert "\n" not in str(caught.value)
    assert "bad.parquet" in str(caught.value)


def test_a_table_that_is_none_or_not_there_is_one_sentence(collection, tmp_path, monkeypatch):
    without_networks(monkeypatch)
    (tmp_path / "text.parquet").write_text("image_id,Male\n")
    for file in ("text.parquet", "nowhere.parquet"):
        with pytest.raises(InputError, match=rf"{file}: not a Parquet or CSV table of attributes \(.+\)$"):
            faces(collection, tmp_path / file)
    with pytest.raises(InputError, match=r"text.parquet: not a file of faces that --pack wrote"):
        faces(tmp_path / "text.parquet")
    with pytest.raises(InputError, match="no photos in sub-folders"):
        faces(tmp_path)


def test_true_is_1_in_tables_of_minus_one_and_one_and_unknown_where_the_table_is_empty(
    collection, tmp_path, monkeypatch
):
    without_networks(monkeypatch)
    table = pq.read_table(collection.parent / TABLE)
    columns = {a: np.where(table[a].to_numpy(), 1, -1).tolist() for a in ATTRIBUTES}
    columns["Male"][0] = None
    pq.write_table(pa.table({"image_id": table["image_id"], **columns}), tmp_path / "signs.parquet")
    expected = faces(collection).labels.copy()
    expected[0, ATTRIBUTES.index("Male")] = np.nan
    np.testing.assert_array_equal(faces(collection, tmp_path / "signs.parquet").labels, expected)


@pytest.mark.parametrize("signs", [False, True])
def test_a_csv_table_says_what_the_same_parquet_table_says(collection, tmp_path, monkeypatch, signs):
    without_networks(monkeypatch)
    table = pq.read_table(collection.parent / TABLE)
    if signs:
        rows = {a: np.where(table[a].to_numpy(), 1, -1) for a in ATTRIBUTES}
        table = pa.table({"image_id": table["image_id"], **rows})
    csv.write_csv(table, tmp_path / "table.csv")
    np.testing.assert_array_equal(faces(collection, tmp_path / "table.csv").labels, faces(collection).labels)
    (tmp_path / "table.csv").write_text("image_id,Male\n1.jpg,1\n")
    with pytest.raises(InputError, match="lacks the columns 5_o_Clock_Shadow"):
        faces(collection, tmp_path / "table.csv")
