"""MobileFaceNet as InsightFace trained it: the recogniser ``arcface-mobilefacenet`` as a differentiable module.

S. Chen, Y. Liu, X. Gao, Z. Han, "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile
Devices", CCBR 2018 (arXiv:1804.07573), twice as wide, trained with the loss of J. Deng et al., "ArcFace: Additive
Angular Margin Loss for Deep Face Recognition", CVPR 2019. The published file is an ONNX graph whose batch norms were
folded into its convolutions.

    x (N, 3, 112, 112) RGB in [0, 1] -- stem, stages of inverted residual blocks, head --> embedding (N, 512)
"""

from __future__ import annotations

import os
from typing import Self

from torch import Tensor, nn

from facecrowd.stages.networks import onnx

WIDTH = 512


def pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1 x 1 convolution."""
    return nn.Conv2d(inputs, outputs, 1)


def spatial(inputs: int, outputs: int, groups: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size, or halves it."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups)


class Block(nn.Module):
    """Expand, filter each channel, project: 1 x 1, depthwise 3 x 3, linear 1 x 1; adds its input at stride 1."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = stride == 1
        self.layers = nn.Sequential(
            pointwise(inputs, hidden),
            nn.PReLU(hidden),
            spatial(hidden, hidden, hidden, stride),
            nn.PReLU(hidden),
            pointwise(hidden, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileFaceNet(nn.Module):
    """``forward`` embeds aligned faces; ``maps`` gives the features on the way, of pictures of any size."""

    SIZE = 112

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(spatial(3, 128, 1, stride=2), nn.PReLU(128), spatial(128, 128, 64), nn.PReLU(128))
        self.stage1 = nn.Sequential(Block(128, 128, 128, stride=2), *(Block(128, 128, 128) for _ in range(4)))
        self.stage2 = nn.Sequential(Block(128, 256, 256, stride=2), *(Block(256, 256, 256) for _ in range(6)))
        self.stage3 = nn.Sequential(Block(256, 512, 256, stride=2), *(Block(256, 256, 256) for _ in range(2)))
        self.expand = pointwise(256, 512)
        self.head = nn.Sequential(nn.PReLU(512), pointwise(512, 64), nn.PReLU(64), nn.Flatten())
        self.embedding = nn.Linear(64 * 7 * 7, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at strides 4, 8 and 16: (N, 128, S/4, S/4), (N, 256, S/8, S/8), (N, 512, S/16, S/16).

        x : (N, 3, S, S) RGB in [0, 1]; any S, trained at 112
        """
        fine = self.stage1(self.stem((x * 255 - 127.5) / 127.5))
        middle = self.stage2(fine)
        return fine, middle, self.expand(self.stage3(middle))

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings of aligned faces, not normalised.

        x : (N, 3, 112, 112) RGB in [0, 1]

        Returns (N, 512). Raises ``ValueError`` for another size.
        """
        if x.shape[-2:] != (self.SIZE, self.SIZE):
            raise ValueError(f"MobileFaceNet embeds faces of {self.SIZE} x {self.SIZE} pixels, not {tuple(x.shape)}")
        out: Tensor = self.norm(self.embedding(self.head(self.maps(x)[-1])))
        return out

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The network of ``w600k_mbf.onnx``, in eval mode and frozen. Raises ``WrongWeights``."""
        network = cls().requires_grad_(False).eval()
        onnx.read_weights(path, network)
        return network
