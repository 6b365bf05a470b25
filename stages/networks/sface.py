"""SFace as OpenCV publishes it: the recogniser ``sface`` as a differentiable module.

Y. Zhong, W. Deng, J. Hu et al., "SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition", IEEE
Transactions on Image Processing 2021 (arXiv:2205.12010), on a MobileNet (A. Howard et al., "MobileNets: Efficient
Convolutional Neural Networks for Mobile Vision Applications", 2017, arXiv:1704.04861, table 1) whose first layer keeps
the size and whose activation is PReLU. The published file is an ONNX graph.
"""

from __future__ import annotations

import os
from typing import Self

from torch import Tensor, nn

from facecrowd.stages.networks import onnx

WIDTH = 128
LAYERS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
"""Output channels and stride of the depthwise-separable convolutions, which the file calls conv_2 to conv_14."""


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, PReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs, eps=1e-3), nn.PReLU(outputs))


class SFace(nn.Module):
    """``forward`` embeds aligned faces."""

    SIZE = 112

    def __init__(self) -> None:
        super().__init__()
        named = {"conv_1": convolution(3, 32, 3)}
        inputs = 32
        for number, (outputs, stride) in enumerate(LAYERS, start=2):
            named[f"conv_{number}_dw"] = convolution(inputs, inputs, 3, stride, inputs)
            named[f"conv_{number}"] = convolution(inputs, outputs, 1)
            inputs = outputs
        self.features = nn.ModuleDict(named)
        self.bn1 = nn.BatchNorm2d(inputs, eps=2e-5)
        self.pre_fc1 = nn.Linear(inputs * 7 * 7, WIDTH)
        self.fc1 = nn.BatchNorm1d(WIDTH, eps=2e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings of aligned faces, not normalised.

        x : (N, 3, 112, 112) RGB in [0, 1]

        Returns (N, 128). Raises ``ValueError`` for another size.
        """
        if x.shape[-2:] != (self.SIZE, self.SIZE):
            raise ValueError(f"SFace embeds faces of {self.SIZE} x {self.SIZE} pixels, not {tuple(x.shape)}")
        x = (x * 255 - 127.5) / 128
        for layer in self.features.values():
            x = layer(x)
        out: Tensor = self.fc1(self.pre_fc1(self.bn1(x).flatten(1)))
        return out

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The network of ``face_recognition_sface_2021dec.onnx``, in eval mode and frozen. Raises ``WrongWeights``."""
        network = cls().requires_grad_(False).eval()
        onnx.read_weights(path, network)
        return network
