"""Claims of stages/channel.py: what a release does to a picture, with a gradient through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facecrowd.stages.channel import Channel
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode


@pytest.fixture
def draws() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(1))


@pytest.fixture
def x(texture) -> torch.Tensor:
    """(2, 3, 128, 128), not in whole grey levels."""
    crop = torch.from_numpy(texture[:128, :128]).permute(2, 0, 1).float() / 255
    return (torch.stack([crop, crop.flip(2)]) + 0.001).clamp(0, 1)


def test_by_default_pictures_are_rounded_to_grey_levels(x, draws):
    out = Channel()(x, draws)
    assert torch.equal((out * 255).round() / 255, out)
    assert float((out - x).abs().max()) <= 0.5 / 255 + 1e-6


def test_jpeg_is_the_file_a_release_holds(x, draws):
    out = Channel(jpeg=(75, 75))(x, draws)
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for made, crop in zip(out, pixels, strict=True):
        held = torch.from_numpy(decode(encode(crop, 75))).permute(2, 0, 1)
        assert torch.equal((made * 255).round().to(torch.uint8), held)


def test_qualities_are_drawn_per_picture(x, draws):
    same = x[:1].expand(6, -1, -1, -1)
    out = Channel(jpeg=(20, 95))(same, draws)
    assert len({tuple(p.flatten().tolist()) for p in out}) > 3


def test_the_gradient_passes_straight_through_rounding_and_jpeg(x, draws):
    at = x.clone().requires_grad_()
    weight = torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
    (Channel(jpeg=(30, 90))(at, draws) * weight).sum().backward()
    assert torch.equal(at.grad, weight)


def test_a_shift_moves_the_picture_and_repeats_its_edge(draws):
    x = torch.arange(64.0).reshape(1, 1, 8, 8).expand(1, 3, 8, 8) / 255
    seen = set()
    for _ in range(200):
        out = (Channel(shift=0.25)(x, draws) * 255).round()[0, 0]
        down, right = divmod(int(x[0, 0, 4, 4] * 255 + 0.5) - int(out[4, 4]) + 18, 8)
        seen.add((down - 2, right - 2))
        rows = (torch.arange(8) - (down - 2)).clamp(0, 7)
        columns = (torch.arange(8) - (right - 2)).clamp(0, 7)
        assert torch.equal(out, (x[0, 0] * 255).round()[rows][:, columns])
    assert len(seen) == 25


def test_a_smaller_size_and_back_loses_only_what_is_fine(draws):
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    slope = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    channel = Channel(scale=(0.4, 0.5))
    assert float(channel(stripes, draws)[..., 8:-8].std()) < 0.15
    assert float((channel(slope, draws) - slope)[..., 8:-8].abs().max()) < 0.01
    at = slope.clone().requires_grad_()
    channel(at, draws).sum().backward()
    assert float(at.grad.sum()) == pytest.approx(at.numel(), rel=1e-3)


@pytest.mark.parametrize(
    "settings", [{"jpeg": (0, 90)}, {"jpeg": (90, 80)}, {"scale": (0.0, 1.0)}, {"scale": (1.2, 1.0)}, {"shift": 1.0}]
)
def test_a_setting_out_of_range_is_an_error(settings):
    with pytest.raises(ValueError, match="channel"):
        Channel(**settings)
