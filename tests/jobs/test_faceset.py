"""The shipped demo set: about forty people, several pictures each, small, clean, and told apart by a recogniser."""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from facecrowd.jobs import faceset
from facecrowd.stages import models
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode, metadata

FACES = Path(str(files("facecrowd.jobs"))) / "faces"
PEOPLE = sorted(path for path in FACES.glob("p*") if path.is_dir())
PICTURES = sorted(FACES.glob("p*/*.jpg"))


def attributes() -> list[dict[str, str]]:
    with (FACES / "attributes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def judge() -> faceset.Judge:
    try:
        paths = [models.path(name, download=False) for name in ("scrfd-500m", "arcface-mobilefacenet")]
    except models.Unobtainable:
        pytest.skip("detector or recogniser is not at hand; get them by: facecrowd models pull")
    return faceset.Judge(*paths)


def test_set_holds_about_forty_people_with_four_to_six_pictures_each() -> None:
    assert 35 <= len(PEOPLE) <= 45
    counts = [len(list(person.glob("*.jpg"))) for person in PEOPLE]
    assert set(counts) <= {4, 5, 6}
    assert len(set(counts)) > 1


def test_set_is_small() -> None:
    assert sum(path.stat().st_size for path in FACES.rglob("*") if path.is_file()) < 5_000_000


def test_pictures_carry_no_metadata() -> None:
    assert [(path.name, metadata(path.read_bytes())) for path in PICTURES if metadata(path.read_bytes())] == []


def test_pictures_differ_in_size_and_framing() -> None:
    shapes = {decode(path.read_bytes()).shape for path in PICTURES}
    assert len(shapes) >= 3
    assert all(256 <= side <= 400 for shape in shapes for side in shape[:2])


def test_every_picture_has_binary_attributes_of_which_three_are_the_persons() -> None:
    rows = attributes()
    assert [row["image_id"] for row in rows] == [path.relative_to(FACES).as_posix() for path in PICTURES]
    assert all(row[name] in ("0", "1") for row in rows for name in faceset.ATTRIBUTES)
    for name in faceset.ATTRIBUTES:
        values = {(row["image_id"][:3], row[name]) for row in rows}
        assert (len(values) == len(PEOPLE)) == (name in faceset.ATTRIBUTES[:3])
        assert 0.15 < np.mean([row[name] == "1" for row in rows]) < 0.85


def test_same_person_scores_above_different_people(judge: faceset.Judge) -> None:
    chosen = [path for person in PEOPLE[::4] for path in sorted(person.glob("*.jpg"))[:3]]
    seen = [judge(decode(path.read_bytes())) for path in chosen]
    assert None not in seen
    embeddings = np.array([face.embedding for face in seen if face is not None])
    figures = faceset.separation(embeddings, np.array([path.parent.name for path in chosen]))
    assert figures["same_min"] > 0.45
    assert figures["different_max"] < 0.40


def test_separation_is_the_area_under_the_roc_curve() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    subjects = np.repeat(np.arange(6), 4)
    embeddings = rng.normal(size=(6, 8))[subjects] + rng.normal(size=(24, 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    upper = np.triu_indices(24, 1)
    alike, cosine = (subjects[:, None] == subjects)[upper], (embeddings @ embeddings.T)[upper]
    figures = faceset.separation(embeddings, subjects)
    assert figures["auc"] == pytest.approx(metrics.roc_auc_score(alike, cosine))
    assert figures["same_pairs"] == alike.sum()
    assert figures["different_max"] == pytest.approx(cosine[~alike].max())


def test_photo_is_a_function_of_its_generator_and_keeps_the_portrait_in_view() -> None:
    portrait = np.zeros((faceset.PICTURE, faceset.PICTURE, 3), np.uint8)
    portrait[160:400, 160:352] = 200
    for seed in range(8):
        photo = faceset.frame(portrait, np.random.default_rng(seed))
        assert np.array_equal(photo, faceset.frame(portrait, np.random.default_rng(seed)))
        bright = (photo > 100).all(axis=2)
        assert bright.mean() > 0.08
        assert not bright[0].any()
        assert metadata(encode(photo)) == []


def test_too_few_people_in_the_pool_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Blank:
        def __call__(self, photo: np.ndarray) -> faceset.Face:
            return faceset.Face(np.array([[0, 0], [2, 0], [1, 1], [0, 2], [2, 2.0]]), np.eye(1, 512)[0])

    step = np.zeros(512)
    nowhere = faceset.Directions(np.zeros((2, 512)), np.zeros((faceset.NUISANCE, 512)), step, step)
    monkeypatch.setattr(faceset, "Judge", lambda *_: Blank())
    monkeypatch.setattr(faceset, "render", lambda *_: np.zeros((512, 512, 3), np.uint8))
    monkeypatch.setattr(faceset, "explore", lambda *_: nowhere)
    monkeypatch.setattr(faceset.MobileStyleGAN, "load", lambda _: faceset.MobileStyleGAN())
    with pytest.raises(faceset.FaceSetError, match="draw a larger pool"):
        faceset.make(tmp_path, tmp_path / "weights", people=3, pool=4)
