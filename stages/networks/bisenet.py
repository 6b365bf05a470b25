"""The context path of BiSeNet trained to parse faces: a ResNet-18 that knows hair, glasses, hats, skin and mouths.

C. Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation", ECCV 2018
(arXiv:1808.00897), trained on CelebAMask-HQ (19 classes) by github.com/zllrunning/face-parsing.PyTorch; the backbone is
K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. The names of the modules are those of the
published state dict.
"""

from __future__ import annotations

import os
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facecrowd.stages.models import read_tensors


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (ResNet, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.downsample(x) + y)


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Two blocks, of which the first changes size and channels."""
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))


class ResNet18(nn.Module):
    """ResNet-18 without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(64, 64, 1)
        self.layer2 = stage(64, 128, 2)
        self.layer3 = stage(128, 256, 2)
        self.layer4 = stage(256, 512, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, S, S) to features at strides 8, 16 and 32 of 128, 256 and 512 channels."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        fine = self.layer2(self.layer1(x))
        middle = self.layer3(fine)
        return fine, middle, self.layer4(middle)


class BiSeNet(nn.Module):
    """Features of a picture at three strides, from the backbone of the face parser."""

    SIZE = 256
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet18()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at strides 8, 16 and 32: (N, 128, S/8, S/8), (N, 256, S/16, S/16), (N, 512, S/32, S/32).

        x : (N, 3, S, S) RGB in [0, 1]; any S, trained at 448
        """
        found: tuple[Tensor, Tensor, Tensor] = self.resnet((x - self.mean) / self.std)
        return found

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The backbone in ``79999_iter.pth``, in eval mode and frozen. Raises ``WrongWeights``."""
        network = cls().requires_grad_(False).eval()
        read_tensors(path, network, prefix="cp.", ignore=("arm", "conv_"))
        return network
