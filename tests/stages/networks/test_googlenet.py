"""Claims of stages/networks/googlenet.py: the network of the paper's table 1, with 40 outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from facecrowd.stages.networks.googlenet import FEATURES, Convolution, GoogLeNet, Inception

pytestmark = pytest.mark.usefixtures("one_thread")

TABLE_1 = """
3a  256   64   96  128   16   32   32
3b  480  128  128  192   32   96   64
4a  512  192   96  208   16   48   64
4b  512  160  112  224   24   64   64
4c  512  128  128  256   24   64   64
4d  528  112  144  288   32   64   64
4e  832  256  160  320   32  128  128
5a  832  256  160  320   32  128  128
5b 1024  384  192  384   48  128  128
"""
"""The paper's: block, output, #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj."""


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


def test_every_block_has_the_channels_of_table_1(network):
    blocks = [m for m in network.modules() if isinstance(m, Inception)]
    rows = [line.split() for line in TABLE_1.split("\n") if line]
    inputs = 192
    for (name, *numbers), block in zip(rows, blocks, strict=True):
        output, *channels = map(int, numbers)
        assert [c.out_channels for c in convolutions(block)] == channels, name
        assert [c.kernel_size[0] for c in convolutions(block)] == [1, 1, 3, 1, 5, 1]
        assert block(torch.zeros(1, inputs, 7, 7)).shape == (1, output, 7, 7)
        inputs = output


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
