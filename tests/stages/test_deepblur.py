"""DeepBlur: a wider kernel leaves less of the person, and in the limit the average face."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from facecrowd.stages import align, recognise
from facecrowd.stages.attributes import pictures
from facecrowd.stages.deepblur import DeepBlur, low_pass
from facecrowd.stages.inversion import Networks
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE
from facecrowd.stages.searching import Searching

pytestmark = pytest.mark.usefixtures("one_thread")

SIGMAS = (0.5, 1.0, 2.0, 5.0, 100.0)


@pytest.fixture(scope="module")
def people(searching: Networks) -> Tensor:
    """The latents of 4 random faces: (4, 23, 512)."""
    z = torch.randn(4, STYLE, generator=torch.Generator().manual_seed(11))
    return searching.generator.truncate(searching.generator.mapping(z))


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


def test_identity_distance_grows_with_sigma(
    searching: Networks, people: Tensor, weights: Callable[[str], Path]
) -> None:
    recogniser = recognise.load(weights("arcface-mobilefacenet"), gradients=False)
    own = recogniser.embed(chips(searching.render(people, 128)))
    cosines = []
    for sigma in SIGMAS:
        shown = searching.render(low_pass(people, searching.space.mean, sigma), 128)
        cosines.append(float((own * recogniser.embed(chips(shown))).sum(1).mean()))
    assert all(after <= before + 0.02 for before, after in itertools.pairwise(cosines)), cosines
    assert cosines[0] > cosines[-1] + 0.15, cosines


def test_sigma_100_shows_everybody_as_the_average_face(searching: Networks, people: Tensor) -> None:
    mean = searching.space.mean
    shown = searching.render(low_pass(people, mean, 100), 128).astype(int)
    average = searching.render(mean.expand(1, ROWS, -1), 128).astype(int)
    assert np.abs(shown - average).mean() < 3
    assert np.abs(searching.render(people, 128).astype(int) - average).mean() > 20


def test_what_is_shown_is_the_filtered_latent_of_the_search(searching: Networks, people: Tensor) -> None:
    """Without a step, of the start."""
    stage = DeepBlur(2.0, Searching(steps=0, size=128))
    stage.networks = replace(searching, encoder=lambda x: people[: len(x)])
    out = stage({"crop": list(searching.render(people[:1], 128))})
    shown = searching.render(low_pass(people[:1], searching.space.mean, 2.0), 128)
    assert np.array_equal(out["rendered"][0], shown[0])
    assert out["search_steps"].tolist() == [0]
    assert np.isnan(out["search_loss"]).tolist() == [True]


def test_how_the_search_went_is_told_of_every_face(searching: Networks, people: Tensor) -> None:
    stage = DeepBlur(1.0, Searching(steps=2, start="mean", size=128))
    stage.networks = searching
    out = stage({"crop": [searching.render(people[:1], 128)[0], None]})
    assert list(out["status"]) == ["ok", "failed"]
    assert out["search_steps"].tolist() == [2, 0]
    assert np.isfinite(out["search_loss"]).tolist() == [True, False]
    assert out["converged"].tolist() == [False, False]


def test_settings_that_make_no_sense_are_refused_before_work() -> None:
    with pytest.raises(ValueError, match="sigma is 0"):
        DeepBlur(sigma=0)
    with pytest.raises(ValueError, match="average face"):
        DeepBlur(how=Searching(steps=0, start="mean"))
    with pytest.raises(ValueError, match="above 0"):
        low_pass(residual(), torch.zeros(STYLE), -1)
