"""The encoder: from an aligned face to a latent of the generator, in one pass.

The maps of a frozen MobileFaceNet (trained on 600,000 people) say what the face is; a small network trained here says
which latent shows it. On generated faces the latent is known exactly; on real ones the generated picture is compared.
The design follows pSp (Richardson et al., CVPR 2021): maps of three resolutions, and styles predicted as differences
from the mean latent; the coarse, middle and fine rows share most of their path, so that it stays small.

    x (N, 3, S, S) -- MobileFaceNet --> maps -- reduce, join --> 4 x 4 -- linear --> four styles + a difference per row
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from facecrowd.stages import models
from facecrowd.stages.networks.mobilefacenet import MobileFaceNet
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE

SHIPPED = Path(__file__).parents[1] / "weights" / "encoder.safetensors"
BACKBONE = "arcface-mobilefacenet"
GROUPS = (0, 4, 8, 13, ROWS)
"""Rows 0-3 (pose and shape), 4-7 (parts), 8-12 (fine parts, hair), 13-22 (colour and light)."""


class Translator(nn.Module):
    """What is trained: maps of a face to w+. 3.5 million parameters."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()

        def reduce(inputs: int, outputs: int, stride: int) -> nn.Module:
            layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
            while stride > 1:
                layers += [
                    nn.Conv2d(outputs, outputs, 3, 2, 1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.LeakyReLU(0.2),
                ]
                stride //= 2
            return nn.Sequential(*layers)

        self.fine, self.middle, self.coarse = reduce(128, 64, 4), reduce(256, 96, 2), reduce(512, 160, 1)
        self.join = nn.Sequential(
            nn.Conv2d(320, 160, 3, padding=1, bias=False),
            nn.BatchNorm2d(160),
            nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool2d(4),
        )
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(160 * 16, STYLE), nn.LeakyReLU(0.2))
        self.styles = nn.ModuleList(nn.Linear(STYLE, STYLE) for _ in GROUPS[1:])
        self.narrow = nn.Linear(STYLE, 64)
        self.rows = nn.Parameter(torch.zeros(ROWS, 64, STYLE))
        self.register_buffer("mean", torch.zeros(STYLE))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N, 128, s, s), (N, 256, s/2, s/2), (N, 512, s/4, s/4) to w+ (N, 23, 512)."""
        fine, middle, coarse = (
            branch(m) for branch, m in zip((self.fine, self.middle, self.coarse), maps, strict=True)
        )
        size = coarse.shape[-2:]
        joined = torch.cat([F.adaptive_avg_pool2d(fine, size), F.adaptive_avg_pool2d(middle, size), coarse], dim=1)
        x = self.trunk(self.join(joined))
        shared = [
            style(x)[:, None].expand(-1, high - low, -1)
            for style, (low, high) in zip(self.styles, itertools.pairwise(GROUPS), strict=True)
        ]
        own = torch.einsum("nk,rkd->nrd", self.narrow(x), self.rows)
        return self.mean + torch.cat(shared, dim=1) + own


class Encoder(nn.Module):
    """Frozen backbone and translator. Differentiable with respect to the picture."""

    def __init__(self, backbone: MobileFaceNet, translator: Translator) -> None:
        super().__init__()
        self.backbone, self.translator = backbone, translator

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] = SHIPPED,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    ) -> Self:
        """The encoder of a file that ``facecrowd train encoder`` wrote, frozen, on the CPU. Raises ``ModelError``."""
        translator = Translator()
        try:
            translator.load_state_dict(load_file(os.fspath(path)))
        except RuntimeError as error:
            raise models.ModelError(f"{os.fspath(path)} does not hold an encoder: {error}") from error
        network = cls(MobileFaceNet.load(models.path(BACKBONE, folder=folder)), translator.float())
        return network.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, S, S), RGB in [0, 1], FFHQ's alignment, any size, to w+ (N, 23, 512)."""
        return self.translator(self.backbone.maps(shrink(x)))


def shrink(x: Tensor) -> Tensor:
    """A picture at the size the backbone looks at."""
    if x.shape[-1] == MobileFaceNet.SIZE:
        return x
    return F.interpolate(
        x, size=(MobileFaceNet.SIZE, MobileFaceNet.SIZE), mode="bilinear", antialias=True, align_corners=False
    )
