"""GoogLeNet: 22 layers with parameters, nine Inception blocks, here with 40 sigmoid outputs (AnonymousNet, stage I).

C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, table 1; with batch normalisation after every
convolution (Ioffe and Szegedy, 2015) and, since that makes them needless, without the two auxiliary classifiers and the
local response normalisation.

    x (N, 3, S, S) -- nine Inception blocks --> (N, 1024) features -- linear --> (N, 40) logits
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

INCEPTION = {
    # block: inputs, 1x1, (reduce, 3x3), (reduce, 5x5), pool projection
    "3a": (192, 64, (96, 128), (16, 32), 32),
    "3b": (256, 128, (128, 192), (32, 96), 64),
    "4a": (480, 192, (96, 208), (16, 48), 64),
    "4b": (512, 160, (112, 224), (24, 64), 64),
    "4c": (512, 128, (128, 256), (24, 64), 64),
    "4d": (512, 112, (144, 288), (32, 64), 64),
    "4e": (528, 256, (160, 320), (32, 128), 128),
    "5a": (832, 256, (160, 320), (32, 128), 128),
    "5b": (832, 384, (192, 384), (48, 128), 128),
}
"""Table 1 of the paper."""

FEATURES = 1024
DROPOUT = 0.4


class Convolution(nn.Sequential):
    """Convolution, batch normalisation, rectifier."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Inception(nn.Module):
    """Four branches over the same input, put side by side: 1x1, 3x3, 5x5 and pooling."""

    def __init__(self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], projection: int) -> None:
        super().__init__()
        self.one = Convolution(inputs, one, 1)
        self.three = nn.Sequential(Convolution(inputs, three[0], 1), Convolution(three[0], three[1], 3))
        self.five = nn.Sequential(Convolution(inputs, five[0], 1), Convolution(five[0], five[1], 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), Convolution(inputs, projection, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, one + three + five + projection, H, W)."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], dim=1)


class GoogLeNet(nn.Module):
    """The network. ``SIZE`` is the side it was trained at; 224, the paper's, and others of 64 or more run too."""

    SIZE = 128

    def __init__(self, outputs: int = 40) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        blocks = {name: Inception(*shape) for name, shape in INCEPTION.items()}
        self.body = nn.Sequential(
            Convolution(3, 64, 7, 2),
            pool(),
            Convolution(64, 64, 1),
            Convolution(64, 192, 3),
            pool(),
            *(blocks[name] for name in ("3a", "3b")),
            pool(),
            *(blocks[name] for name in ("4a", "4b", "4c", "4d", "4e")),
            pool(),
            *(blocks[name] for name in ("5a", "5b")),
        )
        self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(FEATURES, outputs))

    @classmethod
    def restore(cls, state: Mapping[str, Tensor]) -> Self:
        """The network with these weights, in float32, frozen and in evaluation mode."""
        network = cls(len(state["head.1.bias"]))
        network.load_state_dict(dict(state))
        return network.float().requires_grad_(False).eval()

    def features(self, x: Tensor) -> Tensor:
        """x (N, 3, S, S), RGB in [0, 1], to the deep features before the last layer, (N, 1024)."""
        return self.body(x * 2 - 1).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, S, S), RGB in [0, 1], to (N, outputs) logits."""
        return self.head(self.features(x))
