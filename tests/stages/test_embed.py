"""Claims of stages/embed.py and stages/judge.py: unit vectors, as InsightFace computes them, that tell people apart."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from insightface.utils import face_align

from facecrowd.stages import models, recognise
from facecrowd.stages.align import Align
from facecrowd.stages.detect import Detect
from facecrowd.stages.embed import Embed, vectors
from facecrowd.stages.encode import Encode, encode
from facecrowd.stages.judge import Judge
from facecrowd.stages.stage import Batch


@pytest.fixture(scope="module")
def recogniser(weights) -> recognise.OnnxRecogniser:
    found = recognise.load(weights("arcface-mobilefacenet"), gradients=False)
    assert isinstance(found, recognise.OnnxRecogniser)
    return found


@pytest.fixture(scope="module")
def judge(weights) -> Judge:
    stage = Judge(weights("arcface-mobilefacenet"), detector=weights("scrfd-500m"))
    stage.setup()
    return stage


@pytest.fixture(scope="module")
def six(weights, group) -> Batch:
    """The six people, aligned and embedded."""
    batch: Batch = {"photo": [group], "status": np.array(["ok"], dtype=object)}
    for stage in (Detect(weights("scrfd-500m")), Align(), Embed(weights("arcface-mobilefacenet"))):
        batch = stage(batch)
    return batch


def test_embeddings_are_unit_vectors_of_512(six):
    assert six["embedding"].shape == (6, 512)
    assert six["embedding"].dtype == np.float32
    assert np.allclose(np.linalg.norm(six["embedding"], axis=1), 1, atol=1e-5)


def test_insightface_embeds_the_same(recogniser, six, group):
    for points, chip, embedding in zip(six["landmarks"], six["arcface"], six["embedding"], strict=True):
        theirs = recogniser.model.get_feat(chip[..., ::-1].copy())[0]
        assert embedding @ theirs / np.linalg.norm(theirs) > 0.9999
        # Its own crop samples a larger face without averaging; the person stays the same.
        own = face_align.norm_crop(group[..., ::-1].copy(), points.reshape(5, 2))
        theirs = recogniser.model.get_feat(own)[0]
        assert embedding @ theirs / np.linalg.norm(theirs) > 0.95


def test_six_people_are_six_people(six):
    cosines = six["embedding"] @ six["embedding"].T
    assert cosines[~np.eye(6, dtype=bool)].max() < 0.3


def test_the_size_of_a_batch_changes_nothing(weights, recogniser, six):
    together = Embed(weights("arcface-mobilefacenet"), at_once=4)({"arcface": six["arcface"], "status": ["ok"] * 6})
    assert np.array_equal(together["embedding"], six["embedding"])
    recogniser.at_once = 4
    assert np.abs(vectors(recogniser, six["arcface"]) - six["embedding"]).max() < 1e-4


def test_a_crop_loses_nothing_on_its_way_to_the_network(recogniser, six):
    """Levels are divided by 255 for the interface and multiplied by it for the network, which is exact in 32 bits."""
    levels = np.stack(six["arcface"][:1]).transpose(0, 3, 1, 2).astype(np.float32)
    raw = recogniser.model.forward(levels)
    assert np.array_equal(six["embedding"][:1], raw / np.linalg.norm(raw, axis=1, keepdims=True))


def test_a_row_that_cannot_be_embedded_costs_no_other(weights, six):
    batch = {
        "arcface": [six["arcface"][0], None, np.zeros(7, np.uint8), six["arcface"][1]],
        "status": np.array(["ok", "no_face", "ok", "ok"], dtype=object),
    }
    out = Embed(weights("arcface-mobilefacenet"))(batch)
    assert list(out["status"]) == ["ok", "no_face", "failed", "ok"]
    assert out["reason"][2].startswith("embed: ")
    assert np.isnan(out["embedding"][1:3]).all()
    assert np.allclose(out["embedding"][[0, 3]], six["embedding"][:2], atol=1e-5)


@pytest.mark.parametrize("name,width", [("sface", 128), ("edgeface-s", 512), ("facex-zoo-1", 512)])
def test_other_recognisers_drop_in(weights, six, name, width):
    out = Embed(name, folder=weights(name).parent)({"arcface": six["arcface"], "status": ["ok"] * 6})
    found = out["embedding"]
    assert found.shape == (6, width)
    assert (found @ found.T)[~np.eye(6, dtype=bool)].max() < 0.5


def test_a_file_that_is_no_recogniser_is_refused(weights):
    with pytest.raises(models.ModelError, match="not a face recogniser"):
        Embed(weights("scrfd-500m")).setup()


def test_the_judge_recognises_an_untouched_crop(judge, six):
    out = judge(Encode("crop")({"crop": six["crop"], "status": six["status"]}))
    assert out["detected"].all()
    assert (out["detection_score"] > 0.5).all()
    assert (out["embedding"] * six["embedding"]).sum(axis=1).min() > 0.9


def test_the_judge_still_looks_where_no_face_is_detected(judge, six):
    """A face too blurred to be found sits where the template says, and is compared all the same."""
    blurred = [encode(cv2.GaussianBlur(crop, (0, 0), 20)) for crop in six["crop"]]
    flat = encode(np.full((256, 256, 3), 127, np.uint8))
    out = judge({"image": [*blurred, flat, b"torn", None], "status": ["ok"] * 8 + ["suppressed"]})
    assert list(out["status"]) == ["ok"] * 7 + ["unreadable", "suppressed"]
    assert not out["detected"][6:].any()
    assert np.allclose(np.linalg.norm(out["embedding"][:7], axis=1), 1, atol=1e-5)
    assert np.isnan(out["embedding"][7:]).all()
