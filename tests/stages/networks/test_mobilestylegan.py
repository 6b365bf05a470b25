"""MobileStyleGAN computes what its publishers computed, and a gradient reaches every row of the latent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from facecrowd.stages import models
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE, MobileStyleGAN, WeightsError, inverse_haar, save

pytestmark = pytest.mark.usefixtures("one_thread")

REFERENCE = json.loads(Path(__file__).with_name("mobilestylegan_reference.json").read_text())


@pytest.fixture(scope="module")
def published() -> MobileStyleGAN:
    try:
        weights = models.path("mobilestylegan-ffhq", download=False)
    except models.Unobtainable:
        pytest.skip("the generator is not in the model cache; get it by: facecrowd models pull mobilestylegan-ffhq")
    return MobileStyleGAN.load(weights)


@pytest.fixture(scope="module")
def untrained() -> MobileStyleGAN:
    """Random weights and a head for 128 pixels, so that most claims need neither the weights nor much time."""
    torch.manual_seed(1)
    network = MobileStyleGAN(heads=(128, 1024)).requires_grad_(False).eval()
    torch.nn.init.normal_(network.constant)
    return network


def latents(count: int, seed: int = 7) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, STYLE), dtype=np.float32))


@pytest.fixture(scope="module")
def rendered(published: MobileStyleGAN) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's w+ and their pictures, made once: the whole network takes seconds."""
    with torch.no_grad():
        w_plus = published.mapping(latents(2, REFERENCE["seed"]))[:, None].expand(-1, ROWS, -1)
        return w_plus, published.synthesis(w_plus)


def test_converted_network_agrees_with_openvino_in_float32(rendered: tuple[torch.Tensor, torch.Tensor]) -> None:
    w_plus, image = rendered
    grid = torch.tensor(REFERENCE["grid"])
    np.testing.assert_allclose(w_plus[:, 0, :8], REFERENCE["w_values"], atol=2e-5)
    np.testing.assert_allclose(2 * image[:, :, grid][:, :, :, grid] - 1, REFERENCE["pixel_values"], atol=1e-3)


def test_mean_latent_is_where_the_mapping_centres(published: MobileStyleGAN) -> None:
    with torch.no_grad():
        w = published.mapping(latents(1024, seed=8))
    spread = w.std(dim=0).norm() / np.sqrt(len(w))
    assert (w.mean(dim=0) - published.mean_latent).norm() < 3 * spread


def test_smaller_picture_is_the_large_one_averaged(
    published: MobileStyleGAN, rendered: tuple[torch.Tensor, torch.Tensor]
) -> None:
    w_plus, image = rendered
    small = published.synthesis(w_plus[:1], 512)
    torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(image[:1], 2), rtol=1e-4, atol=1e-4)


def test_a_head_of_its_own_comes_near_the_large_picture_averaged(published: MobileStyleGAN) -> None:
    z = torch.randn(2, STYLE, generator=torch.Generator().manual_seed(7))
    w_plus = published.truncate(published.mapping(z), 0.7)
    large = published.synthesis(w_plus)
    for size in (256, 128):
        wanted = torch.nn.functional.avg_pool2d(large, 1024 // size).clamp(0, 1)
        error = (published.synthesis(w_plus, size).clamp(0, 1) - wanted).square().mean()
        assert -10 * torch.log10(error) > 23


def test_same_latent_gives_the_same_picture_alone_or_in_a_batch(untrained: MobileStyleGAN) -> None:
    w_plus = torch.randn(3, ROWS, STYLE, generator=torch.Generator().manual_seed(2))
    batch = untrained.synthesis(w_plus, 128)
    assert torch.equal(batch, untrained.synthesis(w_plus, 128))
    torch.testing.assert_close(batch[1:2], untrained.synthesis(w_plus[1:2], 128), rtol=1e-4, atol=1e-4)


def test_gradient_reaches_every_row_that_the_picture_uses(untrained: MobileStyleGAN) -> None:
    w_plus = torch.randn(1, ROWS, STYLE, generator=torch.Generator().manual_seed(3)).requires_grad_()
    untrained.synthesis(w_plus, 128).square().mean().backward()
    assert w_plus.grad is not None
    used = w_plus.grad[0].abs().sum(dim=1) > 0
    assert used.tolist() == [row < 1 + 3 * 4 or row == ROWS - 1 for row in range(ROWS)]


def test_a_head_for_a_small_size_is_read_from_the_file_and_saves_the_blocks_above(
    untrained: MobileStyleGAN, tmp_path: Path
) -> None:
    save(untrained.state_dict(), tmp_path / "generator.safetensors")
    loaded = MobileStyleGAN.load(tmp_path / "generator.safetensors")
    w_plus = torch.randn(1, ROWS, STYLE, generator=torch.Generator().manual_seed(4))
    loaded.blocks[4].forward = pytest.fail  # type: ignore[assignment, method-assign]
    assert loaded.synthesis(w_plus, 128).shape == (1, 3, 128, 128)


def test_truncation_to_nothing_is_the_mean_latent(untrained: MobileStyleGAN) -> None:
    w = untrained.mapping(latents(2))
    assert torch.equal(untrained.truncate(w, 0.0), untrained.mean_latent.expand(2, ROWS, STYLE))


def test_inverse_haar_keeps_energy_and_spreads_the_average() -> None:
    x = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(5))
    y = inverse_haar(x)
    assert y.shape == (2, 2, 6, 10)
    torch.testing.assert_close(y.square().sum(), x.square().sum())
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(y, 2) * 2, x[:, :2])


def test_wrong_shapes_sizes_and_files_are_named(untrained: MobileStyleGAN, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size must be one of"):
        untrained.synthesis(torch.zeros(1, ROWS, STYLE), 300)
    with pytest.raises(ValueError, match=r"must have the shape \(N, 23, 512\)"):
        untrained.synthesis(torch.zeros(1, STYLE))
    save({"heads.1024.mix.bias": torch.zeros(12)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="does not hold the weights"):
        MobileStyleGAN.load(tmp_path / "other.safetensors")
