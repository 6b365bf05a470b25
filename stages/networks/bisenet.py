"""BiSeNet trained to parse faces, and its backbone: a ResNet-18 that knows hair, glasses, hats, skin and mouths.

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


CLASSES = (
    "background",
    "skin",
    "left brow",
    "right brow",
    "left eye",
    "right eye",
    "eyeglasses",
    "left ear",
    "right ear",
    "earring",
    "nose",
    "mouth",
    "upper lip",
    "lower lip",
    "neck",
    "necklace",
    "cloth",
    "hair",
    "hat",
)
"""What the channels of ``BiSeNet.parse`` stand for. It mixes up left and right: take both together."""


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        return F.relu(self.bn(self.conv(x)))


class Refinement(nn.Module):
    """Attention refinement (the paper's figure 2b): each channel weighed by what the whole map says of it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Convolution(inputs, outputs)
        self.conv_atten = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        y: Tensor = self.conv(x)
        return y * torch.sigmoid(self.bn_atten(self.conv_atten(y.mean((2, 3), keepdim=True))))


class ContextPath(nn.Module):
    """The backbone and what brings its coarse features back to stride 8 (figure 2a)."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet18()
        self.arm16 = Refinement(256, 128)
        self.arm32 = Refinement(512, 128)
        self.conv_head32 = Convolution(128, 128)
        self.conv_head16 = Convolution(128, 128)
        self.conv_avg = Convolution(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) to detail and context at stride 8, (N, 128, S/8, S/8) each."""
        fine, middle, coarse = self.resnet(x)
        whole = self.conv_avg(coarse.mean((2, 3), keepdim=True))
        context = self.conv_head32(F.interpolate(self.arm32(coarse) + whole, middle.shape[2:]))
        context = self.conv_head16(F.interpolate(self.arm16(middle) + context, fine.shape[2:]))
        return fine, context


class Fusion(nn.Module):
    """Feature fusion (figure 2c): both paths together, each channel weighed and added once more."""

    def __init__(self) -> None:
        super().__init__()
        self.convblk = Convolution(256, 256, 1)
        self.conv1 = nn.Conv2d(256, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        """(N, 128, H, W) twice to (N, 256, H, W)."""
        y: Tensor = self.convblk(torch.cat([detail, context], dim=1))
        weight = torch.sigmoid(self.conv2(F.relu(self.conv1(y.mean((2, 3), keepdim=True)))))
        return y + y * weight


class Output(nn.Module):
    """A score for each class and place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Convolution(256, 256)
        self.conv_out = nn.Conv2d(256, len(CLASSES), 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 256, H, W) to (N, 19, H, W)."""
        out: Tensor = self.conv_out(self.conv(x))
        return out


class BiSeNet(nn.Module):
    """``parse`` says what every pixel shows; ``maps`` gives the backbone's features at three strides.

    As trained here, the spatial path of the paper is replaced by the backbone's features at stride 8.
    """

    SIZE = 256
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.cp = ContextPath()
        self.ffm = Fusion()
        self.conv_out = Output()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at strides 8, 16 and 32: (N, 128, S/8, S/8), (N, 256, S/16, S/16), (N, 512, S/32, S/32).

        x : (N, 3, S, S) RGB in [0, 1]; any S, trained at 448
        """
        found: tuple[Tensor, Tensor, Tensor] = self.cp.resnet((x - self.mean) / self.std)
        return found

    def parse(self, x: Tensor) -> Tensor:
        """A score (logit) for each of ``CLASSES`` and each pixel: (N, 19, S, S).

        x : (N, 3, S, S) RGB in [0, 1] of faces with hair and neck; any S, best at 512
        """
        scores = self.conv_out(self.ffm(*self.cp((x - self.mean) / self.std)))
        return F.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The network of ``79999_iter.pth``, in eval mode and frozen. Raises ``WrongWeights``."""
        network = cls().requires_grad_(False).eval()
        # Two more outputs served training only.
        read_tensors(path, network, ignore=("conv_out16.", "conv_out32."))
        return network
