"""The backbones for attributes: what they compute, at which sizes, and that a gradient reaches the picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from facecrowd.stages import models
from facecrowd.stages.networks.bisenet import CLASSES, BiSeNet
from facecrowd.stages.networks.mobilefacenet import MobileFaceNet
from facecrowd.stages.networks.mobilenetv2 import MobileNetV2

pytestmark = pytest.mark.usefixtures("one_thread")

PEOPLE = Path(__file__).resolve().parents[3] / "jobs" / "faces"
BACKBONES = {"arcface-mobilefacenet": MobileFaceNet, "bisenet": BiSeNet, "mobilenetv2": MobileNetV2}
CHANNELS = {"arcface-mobilefacenet": (128, 256, 512), "bisenet": (128, 256, 512), "mobilenetv2": (32, 96, 1280)}
FINEST = {"arcface-mobilefacenet": 4, "bisenet": 8, "mobilenetv2": 8}
"""Stride of the first map; each next one doubles it."""


@pytest.fixture(params=sorted(BACKBONES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backbone(name: str, weights: Callable[[str], Path]) -> nn.Module:
    return BACKBONES[name].load(weights(name))


def pictures(size: int, count: int = 3) -> Tensor:
    """(count, 3, size, size) float32 RGB in [0, 1] of people who do not exist."""
    files = sorted(PEOPLE.glob("p*/1.jpg"))[:count]
    images = [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files]
    images = [cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def test_mobilefacenet_computes_what_onnx_runtime_computes_from_the_published_file(weights):
    file = weights("arcface-mobilefacenet")
    graph = onnx.load(str(file))
    for tap in ("397", "473", "658"):
        graph.graph.output.append(onnx.helper.make_tensor_value_info(tap, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), **models.session())
    network, x = MobileFaceNet.load(file), pictures(112, 8)
    embedding, *taps = session.run(None, {"input.1": ((x * 255 - 127.5) / 127.5).numpy()})
    assert np.abs(network(x).numpy() - embedding).max() < 1e-3
    for own, theirs in zip(network.maps(x), taps, strict=True):
        assert np.abs(own.numpy() - theirs).max() < 1e-3


def test_mobilefacenet_embeds_only_the_size_it_was_trained_for(weights):
    network = MobileFaceNet.load(weights("arcface-mobilefacenet"))
    with pytest.raises(ValueError, match="112 x 112"):
        network(pictures(128, 1))


def test_maps_go_from_fine_to_coarse_for_pictures_of_any_size(name, backbone):
    for size in (backbone.SIZE, 128, 192):
        maps = backbone.maps(pictures(size, 2))
        sides = [size // (FINEST[name] << k) for k in range(3)]
        assert [tuple(m.shape) for m in maps] == [
            (2, channels, side, side) for channels, side in zip(CHANNELS[name], sides, strict=True)
        ]


def test_a_picture_s_maps_do_not_depend_on_its_batch(backbone):
    x = pictures(128)
    for together, alone in zip(backbone.maps(x), backbone.maps(x[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def test_a_loaded_network_is_frozen_and_in_eval_mode(backbone):
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_the_gradient_with_respect_to_the_picture_is_the_finite_difference(backbone):
    network = backbone.double()
    x = pictures(96, 1).double()
    draws = torch.Generator().manual_seed(1)
    directions = [torch.randn(m.shape, generator=draws, dtype=torch.float64) for m in network.maps(x)]

    def loss(picture: Tensor) -> Tensor:
        return sum(((m * d).mean() for m, d in zip(network.maps(picture), directions, strict=True)), torch.zeros(()))

    (gradient,) = torch.autograd.grad(loss(x.requires_grad_()), x)
    step = 1e-6
    for place in ((0, 0, 40, 40), (0, 1, 48, 61), (0, 2, 70, 33)):
        nudge = torch.zeros_like(x)
        nudge[place] = step
        with torch.no_grad():
            slope = (loss(x + nudge) - loss(x - nudge)) / (2 * step)
        assert slope.item() == pytest.approx(gradient[place].item(), rel=1e-4, abs=1e-9)
        assert abs(slope.item()) > 1e-7


def test_a_file_of_something_else_is_refused_by_name(name, weights, tmp_path):
    for wrong in (weights("mobilenetv2" if name == "bisenet" else "bisenet"), tmp_path / "text"):
        if not wrong.exists():
            wrong.write_bytes(b"not a network")
        with pytest.raises(models.WrongWeights, match=wrong.name):
            BACKBONES[name].load(wrong)


def test_another_onnx_network_is_no_mobilefacenet(weights):
    with pytest.raises(models.WrongWeights, match="other layers than MobileFaceNet"):
        MobileFaceNet.load(weights("sface"))


def test_bisenet_finds_skin_hair_and_hats_where_they_are(weights):
    """Two of the first six people wear a hat over their hair; the face is in the middle of every picture."""
    scores = BiSeNet.load(weights("bisenet")).parse(pictures(256, 6))
    assert scores.shape == (6, len(CLASSES), 256, 256)
    seen = scores.argmax(1)
    share = {name: (seen == CLASSES.index(name)).float().mean((1, 2)) for name in ("skin", "hair", "hat")}
    assert (share["skin"] > 0.2).all()
    assert [bool(hat > 0.1) for hat in share["hat"]] == [False, False, True, True, False, False]
    assert [bool(hair > 0.1) for hair in share["hair"]] == [True, True, False, False, True, True]
    middle = (seen[:, 120:180, 112:144] == CLASSES.index("skin")) | (seen[:, 120:180, 112:144] == CLASSES.index("nose"))
    assert (middle.float().mean((1, 2)) > 0.6).all()


def test_a_gradient_passes_from_the_parser_to_the_picture(weights):
    network, x = BiSeNet.load(weights("bisenet")), pictures(128, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(network.parse(x)[:, CLASSES.index("hair")].mean(), x)
    assert gradient.abs().max() > 0
