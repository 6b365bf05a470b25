"""Claims of stages/chip.py: the recognisers' view of an aligned crop, with a gradient."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from facecrowd.stages import align
from facecrowd.stages.chip import Chip


def smooth(size: int) -> np.ndarray:
    """A picture of nothing, (size, size, 3) uint8 RGB."""
    draws = np.random.Generator(np.random.Philox(7))
    return cv2.resize(draws.integers(0, 255, (12, 12, 3), dtype=np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("size", [96, 128, 200, 256, 512])
def test_the_chip_is_the_one_that_align_cuts(size):
    crop = smooth(size)
    matrix = align.similarity(align.template(size)[None], align.template(112, "arcface"))[0]
    expected = align.warp(crop, matrix, 112, "black").astype(np.float32)
    x = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
    found = Chip(size)(x)[0].permute(1, 2, 0).numpy() * 255
    # align rounds to grey levels, twice where it shrinks first.
    assert np.abs(found - expected).mean() < 0.6
    assert np.abs(found - expected).max() < 3


def test_a_gradient_reaches_the_crop():
    x = torch.rand(2, 3, 256, 256, requires_grad=True)
    Chip(256)(x).sum().backward()
    assert x.grad is not None
    # Every pixel of the chip is a mean of the crop's, so as much comes back as there are pixels.
    assert float(x.grad.sum()) == pytest.approx(2 * 3 * 112 * 112, rel=1e-4)
    assert (x.grad[:, :, 80:180, 80:180] > 0).all()


def test_a_crop_of_another_size_is_refused():
    with pytest.raises(ValueError, match="256 pixels"):
        Chip(256)(torch.rand(1, 3, 128, 128))
