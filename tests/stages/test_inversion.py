"""The latent search falls, sees only what it may, and treats every face as if it were alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facecrowd.stages import inversion
from facecrowd.stages.inversion import OPTIMISERS, Networks, Optimiser, Search, Space, search
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE
from facecrowd.stages.networks.vgg import Lpips

pytestmark = pytest.mark.usefixtures("one_thread")


class Toy(nn.Module):
    """A generator of 32 colours per side, smooth in its latent and cheap."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(3)
        self.paint = torch.randn(STYLE, 3 * 32 * 32, generator=draws) / STYLE**0.5
        self.weight = torch.linspace(1.5, 0.1, ROWS)
        self.scale = torch.logspace(0.3, -0.7, STYLE)
        self.mean_latent = 0.1 * torch.randn(STYLE, generator=draws)

    def mapping(self, z: Tensor) -> Tensor:
        return self.mean_latent + z * self.scale

    def synthesis(self, w_plus: Tensor, size: int) -> Tensor:
        w = torch.einsum("nrd,r->nd", w_plus - self.mean_latent, self.weight) / ROWS**0.5
        return F.interpolate(torch.sigmoid(w @ self.paint).view(-1, 3, 32, 32), (size, size), mode="bilinear")


@pytest.fixture(scope="module")
def toy() -> Any:
    return Toy()


@pytest.fixture(scope="module")
def backbone() -> Lpips:
    """LPIPS' form with few channels and random weights."""
    torch.manual_seed(4)
    blocks = [nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())]
    return Lpips(blocks, [torch.ones(8), torch.ones(16)])


@pytest.fixture(scope="module")
def find(toy: Any, backbone: Lpips) -> Callable[..., Search]:
    """``find(pictures, …)``: a search with the toy."""
    space = Space.of(toy)

    def run(faces: Tensor, **options: Any) -> Search:
        return search(toy, backbone, faces, **{"depth": 2, "space": space, **options})

    return run


def pictures(generator: Any, count: int, seed: int = 5, size: int = 128) -> Tensor:
    """Faces of random latents, the same in all rows."""
    z = torch.randn(count, STYLE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return generator.synthesis(generator.mapping(z)[:, None].expand(-1, ROWS, -1), size)


def test_a_generated_face_is_found_again(searching: Networks) -> None:
    generator, backbone = searching.generator, searching.backbone
    z = torch.randn(1, STYLE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        target = generator.synthesis(generator.truncate(generator.mapping(z)), 128)
    found = search(generator, backbone, target, steps=15)
    assert found.loss[-1, 0] < 0.5 * found.loss[0, 0]
    with torch.no_grad():
        average = generator.synthesis(generator.mean_latent.expand(1, ROWS, -1), 128)
        made = generator.synthesis(found.latent, 128)
    assert backbone.distance(made, target) < 0.4 * backbone.distance(average, target)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_every_optimiser_lowers_the_loss_of_every_face(
    toy: Any, find: Callable[..., Search], optimiser: Optimiser
) -> None:
    found = find(pictures(toy, 2), steps=25, optimiser=optimiser, tolerance=0)
    assert (found.loss[-1] < 0.5 * found.loss[0]).all()
    assert (found.loss.diff(dim=0) <= 0).all()


def test_lbfgs_needs_the_fewest_steps_as_in_the_papers_figure_7(toy: Any, find: Callable[..., Search]) -> None:
    last = {name: find(pictures(toy, 1), steps=25, optimiser=name, tolerance=0).loss[-1].mean() for name in OPTIMISERS}
    assert min(last, key=lambda name: float(last[name])) == "lbfgs"


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_face_ends_at_the_same_latent_alone_or_in_a_batch(
    toy: Any, find: Callable[..., Search], optimiser: Optimiser
) -> None:
    # Neighbours that are easy, hard, and converge at other steps.
    x = torch.cat([pictures(toy, 2), torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(6))])

    options = {"steps": 12, "optimiser": optimiser, "tolerance": 1e-3}
    together = find(x, **options)
    for i in range(len(x)):
        alone = find(x[i : i + 1], **options)
        # First-order rules that divide by the gradient's size turn its rounding near 0 into steps: AdaGrad's 4 %.
        moved = (alone.latent[0] - toy.mean_latent).norm()
        assert (together.latent[i] - alone.latent[0]).norm() < 0.05 * moved
        torch.testing.assert_close(together.loss[:, i], alone.loss[:, 0], rtol=1e-3, atol=1e-5)
        assert together.steps_taken[i] == alone.steps_taken[0]


def test_lbfgs_gets_as_far_as_scipys(toy: Any, find: Callable[..., Search], backbone: Lpips) -> None:
    x, space = pictures(toy, 1), Space.of(toy)
    loss_of = inversion._Loss(
        toy, backbone, space, x, None, torch.zeros(1, ROWS, STYLE), 2, inversion.PULL, inversion.HOLD, False
    )

    def value(point: Any) -> tuple[float, Any]:
        loss, gradient = loss_of(torch.from_numpy(point).float()[None], torch.tensor([0]))
        return float(loss[0]), gradient[0].double().numpy()

    theirs = scipy.optimize.minimize(
        value, torch.zeros(ROWS * STYLE).double().numpy(), jac=True, method="L-BFGS-B", options={"maxfun": 20}
    )
    ours = find(x, steps=theirs.nfev, tolerance=0)
    assert float(ours.loss[-1, 0]) < 1.2 * theirs.fun


def test_hidden_pixels_change_nothing_and_shown_ones_do(toy: Any, find: Callable[..., Search]) -> None:
    x, mask = pictures(toy, 1), torch.ones(1, 1, 128, 128)
    mask[..., 40:90, 40:90] = 0
    noise = torch.where(mask > 0, x, torch.rand(x.shape, generator=torch.Generator().manual_seed(7)))
    poison = torch.where(mask > 0, x, torch.nan)
    first = find(x, steps=5, mask=mask)
    for other in (noise, poison):
        assert torch.equal(find(other, steps=5, mask=mask).latent, first.latent)
    assert not torch.equal(find(noise, steps=5).latent, first.latent)


def test_a_face_that_stops_falling_stops_early_and_says_so(toy: Any, find: Callable[..., Search]) -> None:
    average = toy.synthesis(toy.mean_latent.expand(1, ROWS, -1), 128)
    found = find(torch.cat([average, pictures(toy, 1)]), steps=20, tolerance=0.01)
    assert found.converged[0]
    assert found.steps_taken[0] == inversion.PATIENCE
    assert found.steps_taken[1] > inversion.PATIENCE
    assert found.loss.shape == (21, 2)
    assert found.seconds.shape == (21,)
    assert (found.seconds.diff() >= 0).all()


def test_the_search_begins_at_the_start_it_is_given(toy: Any, find: Callable[..., Search]) -> None:
    z = torch.randn(1, STYLE, generator=torch.Generator().manual_seed(5))
    truth = toy.mapping(z)[:, None].expand(-1, ROWS, -1)
    near = find(pictures(toy, 1), start=truth, steps=1, pull=0)
    assert near.loss[0, 0] < 1e-6
    torch.testing.assert_close(near.latent, truth, rtol=0, atol=1e-2)


def test_a_stronger_hold_ends_nearer_to_the_start(toy: Any, find: Callable[..., Search]) -> None:
    start = toy.mapping(torch.randn(1, STYLE, generator=torch.Generator().manual_seed(8)))[:, None].expand(-1, ROWS, -1)
    away = [(find(pictures(toy, 1), start=start, steps=15, hold=hold).latent - start).norm() for hold in (0.0, 10.0)]
    assert away[1] < 0.7 * away[0]


def test_scaled_coordinates_lead_back_to_the_same_latent(toy: Any) -> None:
    space = Space.of(toy)
    latent = torch.randn(2, ROWS, STYLE, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(space.colour(space.whiten(latent)), latent, rtol=0, atol=1e-3)


def test_in_bfloat16_the_picture_is_nearly_the_same_and_without_asking_it_is_float32(searching: Networks) -> None:
    z = torch.randn(2, STYLE, generator=torch.Generator().manual_seed(10))
    latent = searching.generator.truncate(searching.generator.mapping(z))
    single, half = (replace(searching, half=half).render(latent, 256) for half in (False, True))
    exact = searching.generator.synthesis(latent, 256).clamp(0, 1).permute(0, 2, 3, 1) * 255
    assert np.abs(single - exact.numpy()).max() < 0.51
    assert np.array_equal(searching.render(latent, 256), single)
    assert not np.array_equal(half, single)
    assert psnr(half, single) > 45


def test_a_search_in_bfloat16_gets_about_as_far(toy: Any, find: Callable[..., Search]) -> None:
    """To another latent, though: what is rounded decides which steps a line search takes."""
    single, half = (find(pictures(toy, 3), steps=20, tolerance=0, half=half) for half in (False, True))
    assert half.latent.dtype == half.loss.dtype == torch.float32
    assert not torch.equal(half.latent, single.latent)
    # Looked at in float32, and without the pull to where each search began.
    reached = [find(pictures(toy, 3), start=s.latent, steps=0, hold=0).loss[0] for s in (single, half)]
    assert reached[1].mean() < 1.3 * reached[0].mean(), reached
    assert (reached[1] < 0.1 * single.loss[0]).all()


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((one.astype(float) - other) ** 2).mean()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": torch.zeros(1, 3, 64, 65)}, "pictures must be"),
        ({"start": torch.zeros(1, 2, STYLE)}, "start must be"),
        ({"steps": -1}, "not be negative"),
        ({"size": 200}, "128 or 256"),
        ({"optimiser": "newton"}, "one of lbfgs"),
        ({"mask": torch.ones(1, 1, 64, 64)}, "mask must be"),
        ({"depth": 6}, "5 maps"),
    ],
)
def test_what_does_not_fit_is_named(toy: Any, backbone: Lpips, change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"pictures": torch.zeros(1, 3, 128, 128), **change}
    with pytest.raises(ValueError, match=message):
        search(toy, backbone, values.pop("pictures"), **values)
