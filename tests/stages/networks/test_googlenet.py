"""Claims of stages/networks/googlenet.py: the network of the paper's table 1, with 40 outputs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from facecrowd.stages.networks.googlenet import FEATURES, INCEPTION, Convolution, GoogLeNet, Inception

DEEPER = {"3a": 256, "3b": 480, "4a": 512, "4b": 512, "4c": 512, "4d": 528, "4e": 832, "5a": 832, "5b": 1024}
"""Output channels by table 1 ("output size")."""

PARAMETERS = {
    "3a": 159e3,
    "3b": 380e3,
    "4a": 364e3,
    "4b": 437e3,
    "4d": 580e3,
    "4e": 840e3,
    "5a": 1072e3,
    "5b": 1388e3,
}
"""Table 1 ("params"), rounded there by 1,000 or 1,024. Its 463K of 4c do not follow from its own channels (510K)."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network() -> GoogLeNet:
    torch.manual_seed(0)
    return GoogLeNet().requires_grad_(False).eval()


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def test_it_has_nine_inception_blocks_and_22_layers_with_parameters_as_the_paper_counts(network):
    """A layer counts once along the depth: an Inception block is two, a convolution or linear layer one."""
    blocks = [m for m in network.modules() if isinstance(m, Inception)]
    stem = [m for m in network.body if isinstance(m, Convolution)]
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert len(blocks) == 9
    assert len(stem) + 2 * len(blocks) + len(linear) == 22
    for block in blocks:
        depths = [len(convolutions(branch)) for branch in (block.one, block.three, block.five, block.pool)]
        assert depths == [1, 2, 2, 1]


def test_every_block_puts_out_the_channels_and_costs_the_parameters_of_table_1(network):
    blocks = [m for m in network.modules() if isinstance(m, Inception)]
    inputs = 192
    for (name, (declared, *_)), block in zip(INCEPTION.items(), blocks, strict=True):
        assert declared == inputs, name
        found = block(torch.zeros(1, inputs, 7, 7))
        assert found.shape == (1, DEEPER[name], 7, 7)
        weights = sum(c.weight.numel() + c.out_channels for c in convolutions(block))
        assert weights == pytest.approx(PARAMETERS.get(name, 510e3), rel=0.05), name
        inputs = DEEPER[name]


@pytest.mark.parametrize("side,last", [(224, 7), (128, 4)])
def test_maps_shrink_as_in_table_1_to_1024_features_and_40_logits(network, side, last):
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    sides, y = [], x * 2 - 1
    for layer in network.body:
        y = layer(y)
        sides.append(y.shape[-1])
    assert y.shape == (1, FEATURES, last, last)
    if side == 224:
        assert list(dict.fromkeys(sides)) == [112, 56, 28, 14, 7]
    assert network.features(x).shape == (1, 1024)
    assert network(x).shape == (1, 40)
    torch.testing.assert_close(network(x), network.head(y.mean((2, 3))))


def test_a_face_is_judged_alike_alone_and_in_a_batch_and_every_time(network):
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(network(x), network(x))
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-4, atol=1e-5)


def test_a_gradient_reaches_every_pixel_s_colour(network):
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(3)).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x)
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).float().mean() > 0.99


def test_restored_weights_are_frozen_float32_and_say_the_same(network):
    again = GoogLeNet.restore(network.state_dict())
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    assert torch.equal(again(x), network(x))
    assert not any(p.requires_grad for p in again.parameters())
    assert not any(m.training for m in again.modules())
    halved = GoogLeNet.restore({k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()})
    assert all(p.dtype == torch.float32 for p in halved.parameters())
    torch.testing.assert_close(halved(x), network(x), atol=1e-2, rtol=0)


def test_the_number_of_outputs_is_that_of_the_weights():
    assert GoogLeNet.restore(GoogLeNet(5).state_dict())(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
