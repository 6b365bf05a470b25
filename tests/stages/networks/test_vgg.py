"""LPIPS is the published measure, its gradients are finite, and no stranger's object comes out of its file."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from facecrowd.stages.models import ModelError
from facecrowd.stages.networks.vgg import Lpips

pytestmark = pytest.mark.usefixtures("one_thread")

FACES = Path(__file__).resolve().parents[3] / "jobs" / "faces"
# features.0.weight[0, 0, 0] as torch prints it, to four digits, in public notebooks that loaded torchvision's files
# (vgg16-397923af.pth and the AlexNet of the same time): its first three and last three numbers.
FIRST_WEIGHTS = {
    "vgg16": ((-0.5537, 0.1427, 0.5290), (-0.5537, 0.1427, 0.5290)),
    "alexnet": ((0.1186, 0.0941, 0.0954), (0.0558, 0.0216, 0.0500)),
}


@pytest.fixture(scope="module", params=["vgg16", "alexnet"])
def network(request: pytest.FixtureRequest, weights: Callable[[str], Path]) -> tuple[str, Lpips]:
    return request.param, Lpips.load(weights(f"lpips-{request.param}"))


@pytest.fixture(scope="module")
def vgg(weights: Callable[[str], Path]) -> Lpips:
    return Lpips.load(weights("lpips-vgg16"))


def faces(sigma: float = 0.0, side: int = 128) -> Tensor:
    """Two synthetic people, (2, 3, side, side)."""
    shown = []
    for person in ("p01", "p02"):
        picture = cv2.cvtColor(cv2.imread(str(FACES / person / "1.jpg")), cv2.COLOR_BGR2RGB)
        picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        shown.append(cv2.GaussianBlur(picture, (0, 0), sigma) if sigma else picture)
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float() / 255


def test_distance_equals_torchmetrics_with_its_own_heads(
    network: tuple[str, Lpips], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, ours = network
    layers = torch.nn.Sequential(*(layer for block in ours.blocks for layer in block))
    # Only the backbone's layers, which come from torchvision there, are handed in.
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda *_, **__: layers)
    theirs = torchmetrics_lpips._LPIPS(net=name.removesuffix("16").removesuffix("net"))
    x = faces()
    for y in (faces(2.0), faces().flip(0)):
        with torch.no_grad():
            expected = theirs(x, y, normalize=True).flatten()
        torch.testing.assert_close(ours.distance(x, y), expected, rtol=1e-5, atol=1e-6)
    for head, lin in zip(ours.heads, theirs.lins, strict=True):
        assert torch.equal(head, lin.model[-1].weight.flatten())


def test_backbones_begin_as_torchvisions_do(network: tuple[str, Lpips]) -> None:
    name, ours = network
    row = ours.blocks[0][0].weight[0, 0, 0]
    for found, printed in zip((row[:3], row[-3:]), FIRST_WEIGHTS[name], strict=True):
        torch.testing.assert_close(found, torch.tensor(printed), rtol=0, atol=6e-5)


def test_distance_is_the_formula_of_the_paper(vgg: Lpips) -> None:
    x, y = faces(side=64), faces(3.0, side=64)
    expected = np.zeros(2)
    for head, a, b in zip(vgg.heads, vgg.features(x), vgg.features(y), strict=True):
        one, other = a.double().numpy(), b.double().numpy()
        one, other = (maps / np.sqrt((maps**2).sum(1, keepdims=True)) for maps in (one, other))
        expected += ((one - other) ** 2 * head.double().numpy()[None, :, None, None]).sum(1).mean((1, 2))
    np.testing.assert_allclose(vgg.distance(x, y).numpy(), expected, rtol=1e-5)


def test_the_same_picture_is_at_zero_blur_is_near_and_another_person_is_far(network: tuple[str, Lpips]) -> None:
    _, ours = network
    x = faces()
    same, blurred, other = (ours.distance(x, y) for y in (x, faces(1.0), x.flip(0)))
    assert torch.equal(same, torch.zeros(2))
    assert (blurred > 0.05).all()
    assert (blurred < other).all()


@pytest.mark.parametrize("side", [64, 128])
def test_vgg_maps_halve_in_size_from_the_full_picture(vgg: Lpips, side: int) -> None:
    shapes = [tuple(maps.shape[1:]) for maps in vgg.features(faces(side=side))]
    assert shapes == [(c, side >> i, side >> i) for i, c in enumerate((64, 128, 256, 512, 512))]


def test_the_first_maps_cost_only_their_own_layers(vgg: Lpips) -> None:
    x, ran = faces(side=64), []
    handles = [block.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(vgg.blocks)]
    few = vgg.features(x, depth=2)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]
    for one, other in zip(few, vgg.features(x), strict=False):
        assert torch.equal(one, other)


def test_maps_of_a_fixed_picture_can_be_kept(vgg: Lpips) -> None:
    x, y = faces(side=64), faces(2.0, side=64)
    assert torch.equal(vgg.compare(vgg.features(x), vgg.features(y)), vgg.distance(x, y))


def test_following_the_gradient_lowers_the_distance(vgg: Lpips) -> None:
    x, y = faces(2.0, side=64).requires_grad_(), faces(side=64)
    before = vgg.distance(x, y)
    (gradient,) = torch.autograd.grad(before.sum(), x)
    step = 0.01 * gradient / gradient.abs().amax((1, 2, 3), keepdim=True)
    assert (vgg.distance(x - step, y) < before).all()
    assert not any(parameter.requires_grad for parameter in vgg.parameters())


def test_gradients_are_finite_where_no_feature_fires(vgg: Lpips) -> None:
    maps = tuple(torch.zeros(1, len(head), 4, 4, requires_grad=True) for head in vgg.heads)
    other = tuple(torch.rand(1, len(head), 4, 4) for head in vgg.heads)
    vgg.compare(maps, other).sum().backward()
    assert all(torch.isfinite(part.grad).all() for part in maps if part.grad is not None)


class Spy:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("a stranger's code ran",))


@pytest.mark.parametrize("content", [{"VGG16_0": Spy()}, {"VGG16_0": {}}, {"something": 1}, [], b""])
def test_a_file_that_holds_more_or_less_than_the_arrays_is_refused(
    content: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.ckpt"
    file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(ModelError, match="does not hold the weights of LPIPS"):
        Lpips.load(file)
    assert "stranger" not in capsys.readouterr().out
