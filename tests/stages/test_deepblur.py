"""DeepBlur: a wider kernel leaves less of the person, and in the limit the average face."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from facecrowd.stages import align, recognise
from facecrowd.stages.attributes import pictures
from facecrowd.stages.deepblur import DeepBlur, low_pass, render
from facecrowd.stages.inversion import Networks, Space
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE, MobileStyleGAN
from facecrowd.stages.networks.vgg import Lpips

SIGMAS = (0.5, 1.0, 2.0, 5.0, 100.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def networks(weights: Callable[[str], Path]) -> Networks:
    generator = MobileStyleGAN.load(weights("mobilestylegan-ffhq"))
    if min(map(int, generator.heads)) > 256:
        pytest.skip("the generator has no head for small pictures, and the whole network takes too long")
    return Networks(generator, Lpips.load(weights("lpips-vgg16")), Space.of(generator))


@pytest.fixture(scope="module")
def people(networks: Networks) -> Tensor:
    """The latents of 4 random faces: (4, 23, 512)."""
    z = torch.randn(4, STYLE, generator=torch.Generator().manual_seed(11))
    return networks.generator.truncate(networks.generator.mapping(z))


def residual(count: int = 2) -> Tensor:
    return torch.randn(count, ROWS, STYLE, generator=torch.Generator().manual_seed(12))


def chips(crops: np.ndarray) -> Tensor:
    """Crops (N, S, S, 3) uint8 in the recogniser's alignment, by the template: (N, 3, 112, 112)."""
    matrix = align.similarity(align.template(crops.shape[1])[None], align.template(112, "arcface"))[0]
    return pictures([align.warp(crop, matrix, 112, "black") for crop in crops], 112)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_filter_is_scipys_gaussian_with_nothing_beyond_the_edges(sigma: float) -> None:
    mean = torch.randn(STYLE, generator=torch.Generator().manual_seed(13))
    ours = low_pass(mean + residual(), mean, sigma) - mean
    theirs = [
        scipy.ndimage.gaussian_filter(row.double().numpy(), sigma, mode="constant", truncate=10) for row in residual()
    ]
    np.testing.assert_allclose(ours, np.stack(theirs), atol=1e-5)


def test_sigma_100_leaves_the_mean_latent_and_a_tiny_sigma_everything() -> None:
    mean = torch.zeros(STYLE)
    assert low_pass(residual(), mean, 100).norm() < 0.01 * residual().norm()
    torch.testing.assert_close(low_pass(residual(), mean, 0.1), residual())


def test_the_mean_latent_passes_unchanged_at_every_sigma() -> None:
    mean = torch.randn(STYLE, generator=torch.Generator().manual_seed(13))
    for sigma in SIGMAS:
        torch.testing.assert_close(low_pass(mean.expand(1, ROWS, -1), mean, sigma), mean.expand(1, ROWS, -1))


def test_identity_distance_grows_with_sigma(networks: Networks, people: Tensor, weights: Callable[[str], Path]) -> None:
    recogniser = recognise.load(weights("arcface-mobilefacenet"), gradients=False)
    own = recogniser.embed(chips(render(networks, people, 128)))
    cosines = []
    for sigma in SIGMAS:
        shown = render(networks, low_pass(people, networks.space.mean, sigma), 128)
        cosines.append(float((own * recogniser.embed(chips(shown))).sum(1).mean()))
    assert all(after <= before + 0.02 for before, after in itertools.pairwise(cosines)), cosines
    assert cosines[0] > cosines[-1] + 0.15, cosines


def test_sigma_100_shows_everybody_as_the_average_face(networks: Networks, people: Tensor) -> None:
    mean = networks.space.mean
    shown = render(networks, low_pass(people, mean, 100), 128).astype(int)
    average = render(networks, mean.expand(1, ROWS, -1), 128).astype(int)
    assert np.abs(shown - average).mean() < 3
    assert np.abs(render(networks, people, 128).astype(int) - average).mean() > 20


def test_a_bad_row_costs_no_other_and_rows_in_are_rows_out(networks: Networks, people: Tensor) -> None:
    crop = render(networks, people[:1], 128)[0]
    stage = DeepBlur(sigma=1.0, steps=2, start="mean", size=128)
    stage.networks = networks
    batch = {
        "crop": [crop, None, crop[:64], crop],
        "status": np.array(["ok", "ok", "ok", "no_face"], dtype=object),
        "reason": np.array(["", "", "", "nothing found"], dtype=object),
    }
    out = stage(batch)
    assert list(out["status"]) == ["ok", "failed", "failed", "no_face"]
    assert out["reason"][1].startswith("deepblur: ValueError")
    assert out["rendered"][0].shape == (128, 128, 3)
    assert out["rendered"][0].dtype == np.uint8
    assert [picture is None for picture in out["rendered"]] == [False, True, True, True]
    assert out["search_steps"].tolist() == [2, 0, 0, 0]
    assert np.isfinite(out["search_loss"]).tolist() == [True, False, False, False]


def test_settings_that_make_no_sense_are_refused_before_work() -> None:
    with pytest.raises(ValueError, match="sigma is 0"):
        DeepBlur(sigma=0)
    with pytest.raises(ValueError, match="size is 200"):
        DeepBlur(size=200)
    with pytest.raises(ValueError, match="average face"):
        DeepBlur(steps=0, start="mean")
    with pytest.raises(ValueError, match="above 0"):
        low_pass(residual(), torch.zeros(STYLE), -1)
