"""Image quality equals the published implementations, on synthetic people, their blurred copies and each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import linalg, ndimage
from skimage import metrics
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as torchmetrics_ms_ssim
from torchmetrics.functional.image import structural_similarity_index_measure as torchmetrics_ssim
from torchmetrics.image.fid import FrechetInceptionDistance

from facecrowd.stages import quality
from facecrowd.stages.quality import InceptionFeatures, Quality, fid, frechet, ms_ssim, ms_ssim_window, psnr, ssim

pytestmark = pytest.mark.usefixtures("one_thread")

FACES = Path(__file__).resolve().parents[2] / "jobs" / "faces"
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def people(side: int, sigma: float = 0.0) -> np.ndarray:
    """Four synthetic people: (4, side, side, 3) uint8 RGB."""
    shown = []
    for person in ("p01", "p02", "p03", "p04"):
        picture = cv2.cvtColor(cv2.imread(str(FACES / person / "1.jpg")), cv2.COLOR_BGR2RGB)
        picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        shown.append(cv2.GaussianBlur(picture, (0, 0), sigma) if sigma else picture)
    return np.stack(shown)


def tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module", params=["blurred", "another person"])
def pair(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """The fixed set at 256 px."""
    return people(256), people(256, 4.0) if request.param == "blurred" else np.roll(people(256), 1, 0)


def test_psnr_equals_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    expected = [metrics.peak_signal_noise_ratio(a, b) for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(psnr(*map(tensor, pair)).numpy(), expected, rtol=1e-5)


def test_ssim_equals_scikit_image_with_wangs_settings(pair: tuple[np.ndarray, np.ndarray]) -> None:
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2}
    expected = [metrics.structural_similarity(a, b, **wang) for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(ssim(*map(tensor, pair)).numpy(), expected, atol=1e-5)


def test_ssim_equals_the_map_of_torchmetrics_within_its_padded_border(pair: tuple[np.ndarray, np.ndarray]) -> None:
    _, similarity = torchmetrics_ssim(*map(tensor, pair), data_range=1.0, reduction="none", return_full_image=True)
    expected = similarity[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(ssim(*map(tensor, pair)), expected, rtol=0, atol=1e-5)


def by_the_formula(x: np.ndarray, y: np.ndarray, window: int) -> float:
    """MS-SSIM of one channel, (H, W) float64 in [0, 1], equation 7 of the paper."""
    taps = np.exp(-((np.arange(window) - window // 2) ** 2) / (2 * 1.5**2))
    edge = slice(window // 2, -(window // 2))

    def smooth(values: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            values = ndimage.correlate1d(values, taps / taps.sum(), axis)
        return values[edge, edge]

    product = 1.0
    for scale, weight in enumerate(WEIGHTS):
        mx, my = smooth(x), smooth(y)
        vx, vy, vxy = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
        similarity = (2 * vxy + 0.03**2) / (vx + vy + 0.03**2)
        if scale == len(WEIGHTS) - 1:
            similarity = similarity * (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
        product *= max(0.0, similarity.mean()) ** weight
        x, y = (v.reshape(len(v) // 2, 2, -1, 2).mean((1, 3)) for v in (x, y))
    return float(product)


@pytest.mark.parametrize("side, window", [(256, 11), (128, 7), (64, 3)])
def test_ms_ssim_is_the_papers_formula_per_channel(side: int, window: int) -> None:
    for a, b in ((people(side), people(side, 2.0)), (people(side), np.roll(people(side), 1, 0))):
        pairs = zip(a / 255, b / 255, strict=True)
        channels = [[by_the_formula(x[..., c], y[..., c], window) for c in range(3)] for x, y in pairs]
        np.testing.assert_allclose(ms_ssim(tensor(a), tensor(b)).numpy(), np.mean(channels, 1), atol=2e-5)


def test_ms_ssim_on_grey_agrees_with_torchmetrics_but_for_its_padded_border() -> None:
    x, y = (tensor(pictures).mean(1, keepdim=True) for pictures in (people(256), people(256, 4.0)))
    expected = torchmetrics_ms_ssim(x, y, data_range=1.0, reduction="none")
    torch.testing.assert_close(ms_ssim(x, y), expected, rtol=0, atol=1e-3)


def test_the_window_of_ms_ssim_is_the_published_one_from_161_pixels_on() -> None:
    sides = (1024, 256, 161, 160, 128, 112, 64, 33)
    assert [ms_ssim_window(side, 1024) for side in sides] == [11, 11, 11, 9, 7, 7, 3, 3]
    for side in (33, 64, 112, 128, 160, 161):
        assert torch.isfinite(ms_ssim(torch.rand(1, 3, side, side), torch.rand(1, 3, side, side))).all()


def test_pictures_too_small_or_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 33 px, not 32 × 64"):
        ms_ssim(torch.rand(1, 3, 32, 64), torch.rand(1, 3, 32, 64))
    with pytest.raises(ValueError, match="at least 11 px"):
        ssim(torch.rand(1, 3, 10, 64), torch.rand(1, 3, 10, 64))
    for measure in (psnr, ssim, ms_ssim):
        with pytest.raises(ValueError, match="different sizes"):
            measure(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 1, 64))


def covariance(draws: np.random.Generator, size: int) -> np.ndarray:
    root = draws.standard_normal((size, size))
    return root @ root.T / size


def test_frechet_distance_equals_the_formula_with_scipys_matrix_root() -> None:
    draws = np.random.default_rng(3)
    m, n = draws.standard_normal((2, 40))
    a, b = covariance(draws, 40), covariance(draws, 40)
    expected = ((m - n) ** 2).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet(m, a, n, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(n, b, m, a) == pytest.approx(expected, rel=1e-9)
    assert frechet(m, a, m, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_independent_features_is_that_of_their_deviations() -> None:
    draws = np.random.default_rng(4)
    (m, n), (s, t) = draws.standard_normal((2, 12)), draws.uniform(0, 3, (2, 12))
    expected = ((m - n) ** 2).sum() + ((s - t) ** 2).sum()
    assert frechet(m, np.diag(s**2), n, np.diag(t**2)) == pytest.approx(expected, rel=1e-12)


def test_fid_of_samples_approaches_that_of_their_gaussians() -> None:
    draws = np.random.default_rng(5)
    a = draws.normal(0, 1, (40_000, 4))
    b = draws.normal((1, 0, 0, 0), (2, 1, 1, 1), (40_000, 4))
    assert fid(a, b) == pytest.approx(2.0, abs=0.06)


def test_fid_is_exact_with_fewer_pictures_than_features() -> None:
    draws = np.random.default_rng(6)
    a, b = draws.standard_normal((9, 64)), 1 + 2 * draws.standard_normal((7, 64))
    # tr (C_a C_b)^(1/2) is the nuclear norm of the centred samples' product.
    x, y = (a - a.mean(0)) / math.sqrt(8), (b - b.mean(0)) / math.sqrt(6)
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * overlap
    assert fid(a, b) == pytest.approx(expected, rel=1e-6)


class Given(torch.nn.Module):
    """In the network's place: what is given are the features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


@pytest.mark.parametrize("pictures", [200, 20])
def test_fid_equals_torchmetrics_on_the_same_features(pictures: int) -> None:
    draws = np.random.default_rng(7)
    mix = draws.normal(0, 1, (32, 32))
    a, b = draws.normal(0, 1, (pictures, 32)) @ mix, 0.5 + 1.5 * draws.normal(0, 1, (pictures + 5, 32)) @ mix
    theirs = FrechetInceptionDistance(feature=Given(32)).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(a), real=True)
    theirs.update(torch.from_numpy(b), real=False)
    assert fid(a, b) == pytest.approx(float(theirs.compute()), rel=1e-4)


def test_fid_of_one_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        fid(np.zeros((1, 8)), np.zeros((5, 8)))


@pytest.fixture
def without_network() -> Quality:
    return Quality("original", "released", network=None, at_once=2)


def png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def test_the_stage_measures_every_row_as_if_it_were_alone(without_network: Quality) -> None:
    a, b = people(128), people(128, 2.0)
    small, wide = people(64)[0], np.ascontiguousarray(people(128)[0][:64])
    batch = without_network(
        {"original": [*a, small, png(a[0]), wide], "released": [*b, people(64, 1.0)[0], png(b[0]), wide]}
    )
    assert set(batch["status"]) == {"ok"}
    for name, measure in (("psnr", psnr), ("ssim", ssim), ("ms_ssim", ms_ssim)):
        assert batch[name].dtype == np.float32
        np.testing.assert_allclose(batch[name][:4], measure(tensor(a), tensor(b)).numpy(), rtol=1e-5)
        assert batch[name][5] == pytest.approx(batch[name][0], rel=1e-5)
    assert batch["psnr"][6] == np.inf
    assert batch["ssim"][6] == pytest.approx(1, abs=1e-6)
    assert np.isnan(batch["lpips"]).all()


def test_a_row_that_cannot_be_compared_is_named_and_costs_no_other(without_network: Quality) -> None:
    a = people(64)
    batch = without_network(
        {
            "original": [a[0], a[0], a[1], a[2], a[3][:20, :20]],
            "released": [a[1], people(128)[0], b"no picture", None, a[3][:20, :20]],
            "status": ["ok", "ok", "ok", "suppressed", "ok"],
            "reason": ["", "", "", "class too small", ""],
        }
    )
    assert list(batch["status"]) == ["ok", "failed", "unreadable", "suppressed", "failed"]
    assert "different sizes" in batch["reason"][1]
    assert "at least 33 px" in batch["reason"][4]
    assert batch["reason"][3] == "class too small"
    assert np.isfinite(batch["ssim"][0])
    for name in ("psnr", "ssim", "ms_ssim"):
        assert np.isnan(batch[name][1:]).all()


def test_the_stage_measures_lpips_too(weights: Callable[[str], Path]) -> None:
    stage = Quality("original", "released", "lpips-alexnet", folder=weights("lpips-alexnet").parent)
    a, b = people(128), people(128, 2.0)
    batch = stage({"original": list(a), "released": list(b)})
    assert stage._lpips is not None
    expected = quality.lpips(stage._lpips, tensor(a), tensor(b))
    np.testing.assert_allclose(batch["lpips"], expected.numpy(), rtol=1e-5)
    assert (batch["lpips"] > 0.05).all()


def test_features_for_fid_put_blurred_people_further_than_other_pictures_of_people(
    weights: Callable[[str], Path],
) -> None:
    stage = InceptionFeatures("picture", folder=weights("inception-fid").parent)
    a, b = people(128), people(128, 4.0)
    batch = stage({"picture": [*a, *np.ascontiguousarray(a[:, :, ::-1]), *b, b"broken"]})
    features = batch["inception"][:, ::8]  # fewer, for time
    assert list(batch["status"]) == ["ok"] * 12 + ["unreadable"]
    assert np.isnan(features[12]).all()
    mirrored, blurred = fid(features[:4], features[4:8]), fid(features[:4], features[8:12])
    assert fid(features[:4], features[:4]) == pytest.approx(0, abs=1e-4)
    assert 0 < mirrored < blurred
