"""The two networks that DeepBlur's attackers train from nothing: a VGG of 16 layers and a ResNet of 18.

Li and Choi, DeepBlur, CVPR Workshops 2021, section 4.3: "VGG16 which consists of 13 convolutional layers and 3 linear
layers" (Simonyan and Zisserman, ICLR 2015) and "ResNet18 which has 17 convolutional layers with skip connections and 1
linear layer and uses the pre-activation residual unit" (He et al., Identity Mappings, ECCV 2016).

The paper leaves open the side of the pictures, the normalisation of features, whether the networks knew other pictures
before, and whether its VGG has 16 layers (text, and the caption of table 2) or 19 (the head of table 2). Here: 64
pixels, so the ResNet's stem halves once, by 3 x 3, where ImageNet's halves twice; 16 layers; weights drawn anew; batch
normalisation before every activation of the VGG, which without it learns nothing from 7 photos a person; and linear
layers as wide as the last block has channels, where ImageNet's hold 4096 numbers for 1000 classes. ``width`` is the
number of channels of the first layer, 64 in the papers; a narrower network has as many layers.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 64
Name = Literal["VGG16", "ResNet18"]


class Vgg(nn.Module):
    """x (N, 3, 64, 64) RGB, standardised, to logits (N, P).

    people : P; width : channels of the first of five blocks, in later ones up to eight times as many; dropout : of the
    linear layers
    """

    def __init__(self, people: int, width: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for times, convolutions in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, times * width, 3, padding=1, bias=False)]
                layers += [nn.BatchNorm2d(times * width), nn.ReLU(inplace=True)]
                inputs = times * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(),
            *_linear(inputs * (SIDE // 32) ** 2, inputs, dropout),
            *_linear(inputs, inputs, dropout),
            nn.Linear(inputs, people),
        )
        _draw(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def _linear(inputs: int, outputs: int, dropout: float) -> list[nn.Module]:
    return [
        *(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)),
        *(nn.ReLU(inplace=True), nn.Dropout(dropout)),
    ]


class Unit(nn.Module):
    """The pre-activation residual unit: x + conv(relu(norm(conv(relu(norm(x))))))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.narrow = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.wide = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.skip = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.first(x))
        kept = x if self.skip is None else self.skip(active)
        changed: Tensor = self.wide(F.relu(self.second(self.narrow(active))))
        return kept + changed


class ResNet18(nn.Module):
    """x (N, 3, 64, 64) RGB, standardised, to logits (N, P).

    people : P; width : channels of the first of four stages of two units, doubled from stage to stage
    """

    def __init__(self, people: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, padding=1, bias=False)
        units: list[nn.Module] = []
        inputs = width
        for stage in range(4):
            outputs = width << stage
            units += [Unit(inputs, outputs, 1 if stage == 0 else 2), Unit(outputs, outputs, 1)]
            inputs = outputs
        self.units = nn.Sequential(*units, nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, people))
        _draw(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.units(self.stem(x)))
        return logits


def _draw(network: nn.Module) -> None:
    """Weights after He et al. (ICCV 2015), from torch's generator."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(
                layer.weight, mode="fan_out" if isinstance(layer, nn.Conv2d) else "fan_in", nonlinearity="relu"
            )
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


NETWORKS: dict[Name, type[Vgg] | type[ResNet18]] = {"VGG16": Vgg, "ResNet18": ResNet18}
