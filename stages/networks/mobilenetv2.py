"""MobileNetV2 trained on ImageNet, without its classifier.

M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018 (arXiv:1801.04381), table 2, at
width 1. The names of the modules are those of the published state dict.
"""

from __future__ import annotations

import os
from typing import Self

import torch
from torch import Tensor, nn

from facecrowd.stages.models import read_tensors

BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Of each row of table 2: expansion t, output channels c, repetitions n, stride of the first s."""

TAPS = (6, 13, 18)
"""The last layers at strides 8, 16 and 32."""


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project linearly (the paper's figure 4); adds its input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([convolution(inputs, hidden, 1)] if expansion > 1 else []),
            convolution(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Features of a picture at three strides."""

    SIZE = 256
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(3, 32, 3, 2)]
        inputs = 32
        for expansion, outputs, count, stride in BLOCKS:
            for k in range(count):
                layers.append(InvertedResidual(inputs, outputs, stride if k == 0 else 1, expansion))
                inputs = outputs
        layers.append(convolution(inputs, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features at strides 8, 16 and 32: (N, 32, S/8, S/8), (N, 96, S/16, S/16), (N, 1280, S/32, S/32).

        x : (N, 3, S, S) RGB in [0, 1]; any S, trained at 224
        """
        x = (x - self.mean) / self.std
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in TAPS:
                found.append(x)
        return tuple(found)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The network of ``mobilenet_v2-b0353104.pth``, in eval mode and frozen. Raises ``WrongWeights``."""
        network = cls().requires_grad_(False).eval()
        read_tensors(path, network, ignore=("classifier.",))
        return network
