"""Claims of stages/networks/classifiers.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from facecrowd.stages.networks.classifiers import NETWORKS, SIDE, ResNet18, Unit, Vgg


def layers(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, kind)]


def convolution_weights(network: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Conv2d))


def test_the_vgg_has_the_papers_13_convolutions_and_3_linear_layers() -> None:
    network = Vgg(100)
    assert len(layers(network, nn.Conv2d)) == 13
    assert len(layers(network, nn.Linear)) == 3
    # Of 138,357,544 weights that VGG16 is published with, 14,710,464 are those of convolutions.
    assert convolution_weights(network) == 14_710_464


def test_the_resnet_has_the_papers_17_convolutions_and_1_linear_layer() -> None:
    network = ResNet18(100)
    looking = [layer for layer in layers(network, nn.Conv2d) if layer.kernel_size == (3, 3)]
    assert len(looking) == 17
    assert len(layers(network, nn.Linear)) == 1
    # Published: 11,689,512, of which 513,000 name 1000 classes and 9,600 normalise; here the stem is 3 x 3, not 7 x 7.
    assert convolution_weights(network) == 11_689_512 - 513_000 - 9_600 - 64 * 3 * (49 - 9)


def test_a_residual_unit_keeps_what_it_was_given_to_the_bit_where_its_last_convolution_is_silent() -> None:
    unit = Unit(4, 4, 1)
    nn.init.zeros_(unit.wide.weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(unit(x), x)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("people", [2, 7])
def test_a_picture_becomes_a_logit_per_person(name: str, people: int) -> None:
    network = NETWORKS[name](people, width=4)  # type: ignore[index]
    logits = network(torch.randn(3, 3, SIDE, SIDE))
    assert logits.shape == (3, people)
    logits.sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())
