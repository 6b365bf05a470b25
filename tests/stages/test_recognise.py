"""Claims of stages/recognise.py: one interface to recognisers of several families, right, and with a gradient."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from facecrowd.stages import align, models, recognise
from facecrowd.stages.detect import Detector
from facecrowd.stages.embed import Embed

pytestmark = pytest.mark.usefixtures("one_thread")

PEOPLE = Path(__file__).resolve().parents[2] / "jobs" / "faces"
ALL = [*recognise.NETWORKS, "edgeface-s"]
LFW = os.environ.get("FACECROWD_LFW", "")


@pytest.fixture(scope="module")
def load(weights: Callable[[str], Path]) -> Callable[..., recognise.Recogniser]:
    def of(name: str, **options: object) -> recognise.Recogniser:
        return recognise.load(name, folder=weights(name).parent, **options)  # type: ignore[arg-type]

    return of


def crops(files: list[Path], detector: Detector) -> list[np.ndarray]:
    """(112, 112, 3) uint8 RGB crops of the largest face of each photo, in ArcFace's alignment."""
    out = []
    for file in files:
        photo = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        matrix = align.similarity(detector.find(photo).landmarks[:1].reshape(1, 5, 2), align.template(112, "arcface"))
        out.append(align.warp(photo, matrix[0], 112, "black"))
    return out


def tensor(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def curve(recogniser: recognise.Recogniser, faces: Tensor, people: list[str]) -> float:
    """Area under the ROC of all pairs: how surely two photos of one person are closer than two of two people."""
    vectors = torch.cat([recogniser.embed(part) for part in faces.split(32)]).numpy()
    names = np.array(people)
    first, second = np.triu_indices(len(names), 1)
    return float(roc_auc_score(names[first] == names[second], (vectors @ vectors.T)[first, second]))


@pytest.fixture(scope="module")
def aligned(weights: Callable[[str], Path]) -> list[np.ndarray]:
    """Two pictures each of forty people who do not exist."""
    files = [PEOPLE / f"p{person:02}" / f"{picture}.jpg" for person in range(1, 41) for picture in (1, 2)]
    return crops(files, Detector.load(weights("scrfd-500m")))


@pytest.fixture(scope="module")
def faces(aligned: list[np.ndarray]) -> Tensor:
    return tensor(aligned)


@pytest.mark.parametrize("name", ALL)
def test_every_recogniser_gives_unit_vectors_of_its_width(name, load, faces, weights):
    recogniser = load(name)
    vectors = recogniser.embed(faces[:3])
    assert vectors.shape == (3, recogniser.width)
    assert recogniser.width == (128 if name == "sface" else 512)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
    assert recogniser.name == name
    assert recogniser.sha256 == models.sha256(weights(name)) == models.MODELS[name].sha256
    assert recogniser.differentiable == (name in recognise.NETWORKS)
    assert recogniser.embed(faces[:0]).shape == (0, recogniser.width)


@pytest.mark.parametrize("name", ["arcface-mobilefacenet", "sface"])
def test_pytorch_and_onnx_runtime_give_the_same_vectors(name, load, faces):
    own, theirs = load(name), load(name, gradients=False)
    assert (own.differentiable, theirs.differentiable) == (True, False)
    assert (own.embed(faces) - theirs.embed(faces)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ALL)
def test_the_vectors_are_those_of_the_embed_stage(name, load, weights, aligned, faces):
    theirs = Embed(name, folder=weights(name).parent)({"arcface": aligned[:4], "status": ["ok"] * 4})["embedding"]
    assert np.abs(load(name).embed(faces[:4]).numpy() - theirs).max() < 1e-4


@pytest.mark.parametrize("name", ALL)
def test_pictures_of_one_person_are_closer_than_pictures_of_two(name, load, faces):
    people = [str(index // 2) for index in range(len(faces))]
    assert curve(load(name), faces, people) > 0.97


@pytest.mark.parametrize("name", ["facex-zoo-1", "facex-zoo-2"])
def test_facex_zoo_takes_blue_first_which_tells_people_best_apart(name, load, faces):
    """No other implementation is at hand to compare with; with the colours the wrong way round both lose."""
    recogniser = load(name)
    same = torch.arange(len(faces)) // 2
    same = same[:, None] == same[None]

    def apart(pictures: Tensor) -> float:
        """Distance of the means of cosines within and between people, in standard deviations."""
        vectors = recogniser.embed(pictures)
        cosines, pairs = vectors @ vectors.T, torch.ones(len(vectors), len(vectors)).triu(1).bool()
        within, between = cosines[pairs & same], cosines[pairs & ~same]
        return float((within.mean() - between.mean()) / ((within.var() + between.var()) / 2).sqrt())

    assert apart(faces) > apart(faces.flip(1)) + 0.05


@pytest.mark.parametrize("name", list(recognise.NETWORKS))
def test_the_gradient_of_a_cosine_is_the_finite_difference(name, load, faces):
    recogniser = load(name)
    assert isinstance(recogniser, recognise.TorchRecogniser)
    recogniser.network.double()
    x, other = faces[:1].double(), recogniser.embed(faces[1:2])

    def cosine(picture: Tensor) -> Tensor:
        return (recogniser.embed(picture) * other).sum()

    (gradient,) = torch.autograd.grad(cosine(x.requires_grad_()), x)
    step = 1e-6
    for place in ((0, 0, 40, 40), (0, 1, 52, 56), (0, 2, 80, 61)):
        nudge = torch.zeros_like(x)
        nudge[place] = step
        with torch.no_grad():
            slope = ((cosine(x + nudge) - cosine(x - nudge)) / (2 * step)).item()
        assert slope == pytest.approx(gradient[place].item(), rel=1e-4, abs=1e-9)
        assert abs(slope) > 1e-6


def test_a_step_along_the_gradient_moves_two_people_together(load, faces):
    recogniser = load("arcface-mobilefacenet")
    target = recogniser.embed(faces[2:3])
    x = faces[:1].clone().requires_grad_()
    before = (recogniser.embed(x) * target).sum()
    (gradient,) = torch.autograd.grad(before, x)
    after = (recogniser.embed((x + 2 / 255 * gradient.sign()).clamp(0, 1)) * target).sum()
    assert after > before + 0.1


def test_a_gradient_asked_of_onnx_runtime_is_refused_not_lost(load, faces):
    recogniser = load("edgeface-s")
    with pytest.raises(recognise.NotDifferentiable, match=r"edgeface-s .* facex-zoo-1"):
        recogniser.embed(faces[:1].clone().requires_grad_())
    with torch.no_grad():
        recogniser.embed(faces[:1].clone().requires_grad_())


def test_a_file_with_the_bytes_of_a_known_network_is_that_network(weights, tmp_path):
    file = shutil.copyfile(weights("sface"), tmp_path / "own.onnx")
    recogniser = recognise.load(file)
    assert recogniser.differentiable
    assert recogniser.name == str(file)


def test_faces_of_another_shape_or_kind_are_refused(load, faces):
    for name in ("sface", "edgeface-s"):
        recogniser = load(name)
        for wrong in (faces[:, :, :100], faces[0], (faces * 255).byte(), faces.permute(0, 2, 3, 1)):
            with pytest.raises(ValueError, match="112"):
                recogniser.embed(wrong)


def test_what_is_no_recogniser_is_refused(weights, tmp_path):
    with pytest.raises(models.WrongTask, match="no recogniser"):
        recognise.load("scrfd-500m")
    file = shutil.copyfile(weights("landmarks-2d106"), tmp_path / "own.onnx")
    with pytest.raises(models.WrongTask, match="not a face recogniser"):
        recognise.load(file)


@pytest.mark.skipif(not LFW, reason="FACECROWD_LFW names no folder of LFW photos")
def test_on_real_people_the_recognisers_are_as_good_as_published(load, weights):
    """All pairs of two photos each of 80 people, the most prominent face of each."""
    people = [folder for folder in sorted(Path(LFW).iterdir()) if len(list(folder.glob("*.jpg"))) > 1][::15][:80]
    files = [file for person in people for file in sorted(person.glob("*.jpg"))[:2]]
    batch = tensor(crops(files, Detector.load(weights("scrfd-500m"))))
    found = {name: curve(load(name), batch, [file.parent.name for file in files]) for name in ALL}
    print(found)
    assert all(area > 0.98 for area in found.values())
