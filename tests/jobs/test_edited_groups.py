"""Claims of jobs/edited_groups.py."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from facecrowd.jobs import edited_groups
from facecrowd.jobs.edited_groups import VARIANTS, composed, matched, recoloured
from facecrowd.stages.places import ELLIPSES, region


@pytest.fixture
def base() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)


def test_beyond_its_region_an_edit_leaves_every_pixel_as_it_was(base: np.ndarray) -> None:
    for name in (*ELLIPSES, "face"):
        made = composed(base, 255 - base, region(name, 128))
        outside = region(name, 128) == 0
        assert outside.any()
        assert np.array_equal(made[outside], base[outside])
        assert not np.array_equal(made, base)


def test_an_edit_takes_on_the_light_of_the_face_it_is_put_into(base: np.ndarray) -> None:
    dark = (base * 0.5).astype(np.uint8)
    assert np.abs(matched(dark, np.clip(dark + 60.0, 0, 255), region("nose", 128)) - dark).mean() < 1


def test_hair_takes_another_hairs_colours_and_keeps_its_shape_and_all_else_its_own(base: np.ndarray) -> None:
    brown = (base * 0.2 + np.array([60, 40, 20])).astype(np.uint8)
    blond = (base * 0.2 + np.array([180, 160, 100])).astype(np.uint8)
    hair = np.zeros((128, 128), np.float32)
    hair[:60] = 1
    made = recoloured(brown, blond, hair, hair)
    assert np.abs(made[:50].mean((0, 1)) - blond[:50].mean((0, 1))).max() < 6
    assert np.array_equal(made[70:], brown[70:])
    luma, own = (cv2.cvtColor(p[:50], cv2.COLOR_RGB2GRAY).ravel() for p in (made, brown))
    assert np.corrcoef(luma, own)[0, 1] > 0.95


def test_a_face_without_hair_is_not_recoloured(base: np.ndarray) -> None:
    none, some = np.zeros((128, 128), np.float32), np.ones((128, 128), np.float32)
    assert recoloured(base, 255 - base, none, some) is base


@pytest.mark.slow
def test_a_groups_pictures_differ_where_their_attribute_lies_and_are_told_by_the_predictor(model_folder: str) -> None:
    maker = edited_groups.Maker(("Big_Nose", "Narrow_Eyes", "Bushy_Eyebrows", "Big_Lips"))
    with torch.inference_mode():
        pictures, values = maker.group(torch.Generator().manual_seed(1))
    assert len(pictures) == 1 + VARIANTS == len(values)
    corner = np.s_[:8, :8]
    for picture in pictures[1:]:
        assert np.array_equal(picture[corner], pictures[0][corner])
        assert not np.array_equal(picture, pictures[0])
    assert (values[1:] != values[0]).any()
