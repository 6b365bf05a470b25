"""Claims of stages/translate.py, with a translator and a predictor whose every step is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from facecrowd.stages import translate as translation
from facecrowd.stages.attributes import ATTRIBUTES
from facecrowd.stages.networks import stargan
from facecrowd.stages.regions import PARTS
from facecrowd.stages.translate import Network, Translate, opposites, targets, translate

MALE, YOUNG, BLACK, BLOND = (ATTRIBUTES.index(n) for n in ("Male", "Young", "Black_Hair", "Blond_Hair"))


class Reads:
    """Says that an attribute is there where the pixel of its column is bright."""

    attributes = ATTRIBUTES

    def logits(self, x: Tensor) -> Tensor:
        return (x[:, 0, 0, : len(ATTRIBUTES)] - 0.5) * 20

    def values(self, probabilities: np.ndarray) -> np.ndarray:
        return (probabilities >= 0.5).astype(np.int8)


class Writes:
    """Moves the pixels of the attributes it knows by ``step`` towards the target; a dark face's only by half of it."""

    generates = False

    def __init__(self, *names: str, step: float = 1.0) -> None:
        self.attributes, self.step = names, step
        self.faces: list[int] = []

    def change(self, x: Tensor, values: np.ndarray, target: np.ndarray) -> Tensor:
        self.faces.append(len(x))
        made = x.clone()
        slow = torch.where(x[:, 1, 1, 0] < 0.5, 0.5, 1.0)[:, None, None]
        shift = torch.from_numpy((target - values).astype(np.float32))[:, None, :]
        made[:, :, 0, : len(ATTRIBUTES)] += self.step * slow * shift
        return made.clamp(0, 1)


def faces(*shown: dict[int, float], side: int = 64) -> Tensor:
    """Faces that show nothing but the columns given, with their brightness; bright inside."""
    x = torch.zeros(len(shown), 3, side, side)
    x[:, :, 1] = 1.0
    for n, columns in enumerate(shown):
        for column, value in columns.items():
            x[n, :, 0, column] = value
    return x


def wishes(*asked: dict[int, int]) -> np.ndarray:
    out = np.full((len(asked), len(ATTRIBUTES)), -1, np.int8)
    for n, columns in enumerate(asked):
        for column, value in columns.items():
            out[n, column] = value
    return out


def run(translator: Any, x: Tensor, wanted: np.ndarray, passes: int = 2) -> translation.Translated:
    return translate(translator, Reads(), x, wanted, passes=passes)  # type: ignore[arg-type]


def test_a_face_that_shows_what_is_wanted_is_left_as_it_is_to_the_bit() -> None:
    x = faces({MALE: 1.0})
    writes = Writes("Male")
    found = run(writes, x, wishes({MALE: 1}))
    assert torch.equal(found.pictures, x)
    assert found.passes.tolist() == [0]
    assert found.realised[0, MALE] == 1
    assert not writes.faces


def test_a_translator_that_generates_renders_every_face_at_least_once_and_again_what_it_missed() -> None:
    class Generates(Writes):
        generates = True

        def change(self, x: Tensor, values: np.ndarray, target: np.ndarray) -> Tensor:
            made = super().change(x, values, target)
            made[:, :, 1:] = 0.7  # what is no attribute is made anew
            if len(self.faces) == 1:
                made[0, :, 0, MALE] = 0.0  # and the first time the face that showed it all is missed
            return made

    writes = Generates("Male")
    found = run(writes, faces({MALE: 1.0}, {}, {}), wishes({MALE: 1}, {MALE: 1}, {}))
    assert (found.pictures[:, :, 1:] == 0.7).all()
    assert writes.faces == [3, 1]
    assert found.passes.tolist() == [2, 1, 1]
    assert found.realised[:, MALE].tolist() == [1, 1, -1]
    assert (translation.Latent.generates, Network.generates) == (True, False)


def test_another_pass_follows_only_for_faces_that_the_predictor_says_were_missed() -> None:
    x = faces({}, {})
    x[1, :, 1, 0] = 0.0  # a slow one
    writes = Writes("Male", step=0.9)
    found = run(writes, x, wishes({MALE: 1}, {MALE: 1}))
    assert writes.faces == [2, 1]
    assert found.passes.tolist() == [1, 2]
    assert found.realised[:, MALE].tolist() == [1, 1]


def test_what_the_translator_does_not_know_is_reported_as_missed_and_the_rest_is_done() -> None:
    found = run(Writes("Male"), faces({}), wishes({MALE: 1, YOUNG: 1}))
    assert found.realised[0, [MALE, YOUNG]].tolist() == [1, 0]
    assert (np.delete(found.realised[0], [MALE, YOUNG]) == -1).all()


def test_a_pass_that_makes_it_worse_is_not_the_one_that_is_kept() -> None:
    class Breaks(Writes):
        def change(self, x: Tensor, values: np.ndarray, target: np.ndarray) -> Tensor:
            if self.faces:
                self.faces.append(len(x))
                return torch.zeros_like(x)
            return super().change(x, values, target)

    found = run(Breaks("Male"), faces({}), wishes({MALE: 1, YOUNG: 1}))
    assert found.realised[0, MALE] == 1
    assert found.passes.tolist() == [1]


def test_asking_for_one_colour_of_hair_takes_the_other_away() -> None:
    values = np.zeros((1, len(ATTRIBUTES)), np.int8)
    values[0, BLACK] = 1
    found = targets(values, wishes({BLOND: 1}), ATTRIBUTES)
    assert found[0, [BLACK, BLOND]].tolist() == [0, 1]


def test_an_obfuscated_part_is_asked_to_show_the_opposite_and_no_other() -> None:
    values = np.zeros((1, len(ATTRIBUTES)), np.int8)
    nose, lips = (ATTRIBUTES.index(PARTS[part]) for part in ("nose", "lips"))
    values[0, nose] = 1
    found = opposites(values, np.array([[False, False, False, True, True]]), ATTRIBUTES)
    assert found[0, [nose, lips]].tolist() == [0, 1]
    assert (np.delete(found[0], [nose, lips]) == -1).all()


def test_a_network_that_has_learned_nothing_changes_nothing() -> None:
    network = Network(stargan.Generator(stargan.Shape(("Male",), 4, 32)), ATTRIBUTES)
    x = torch.rand(1, 3, 64, 64)
    assert torch.allclose(network.change(x, np.zeros((1, 40), np.int8), np.ones((1, 40), np.int8)), x, atol=1e-6)


@pytest.fixture
def stage() -> Translate:
    made = Translate(size=64)
    made.networks = (Writes("Male"), Reads())  # type: ignore[assignment]
    return made


def test_the_stage_renders_what_is_wanted_and_says_how_it_went(stage: Translate) -> None:
    crop = (faces({})[0].permute(1, 2, 0) * 255).byte().numpy()
    found = stage({"crop": [crop], "wanted": [{"Male": True}]})
    assert found["status"].tolist() == ["ok"]
    assert found["rendered"][0].shape == (64, 64, 3)
    assert found["rendered"][0][0, MALE].tolist() == [255, 255, 255]
    assert (found["realised"][0, MALE], found["passes"][0]) == (1, 1)


def test_a_bad_row_costs_no_other_and_says_why(stage: Translate) -> None:
    crop = np.zeros((64, 64, 3), np.uint8)
    found = stage({"crop": [crop, crop[:5], crop], "wanted": [{"Male": True}, {}, {"Tall": True}]})
    assert found["status"].tolist() == ["ok", "failed", "failed"]
    assert "(5, 64, 3)" in found["reason"][1]
    assert "Tall" in found["reason"][2]
    assert found["rendered"][1] is None
