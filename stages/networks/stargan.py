"""StarGAN: one network that translates a face's attributes, and the discriminator that it is trained against.

    x (3) + c attributes -> 7 x 7 -> two down-sampling convolutions -> six residual blocks -> two transposed -> 7 x 7

Choi et al., "StarGAN: Unified Generative Adversarial Networks for Multi-Domain Image-to-Image Translation", CVPR 2018;
the translator of AnonymousNet (Li and Lin, 2019, stage III) and, with an identity loss, of adaptive attribute
obfuscation (Li et al., ACM Multimedia 2021, section 3.2).

Two departures, each of which the papers' presets turn off:

    residual   the network gives the change, not the picture, and begins as the identity: what need not change is kept.
               c also scales and shifts the channels of every residual block: as constant planes alone it hardly gets
               in, since the instance normalisation after the first layer takes constants away but along the borders.
               And the change fades out where the attributes asked for do not lie (``places``): a nose changes no hair
    difference c holds +1 for an attribute to be added, -1 for one to be removed, 0 for one to be left (Liu et al.,
               STGAN, CVPR 2019; Lin et al., RelGAN, ICCV 2019), so nothing needs to be known of what is left; the
               papers' c is the target itself, 0 or 1
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from facecrowd.stages.models import ModelError
from facecrowd.stages.places import place

WEIGHTS = Path(__file__).parent.parent / "weights"
KIND = "attribute translator"
Encoding = Literal["difference", "target"]


@dataclass(frozen=True)
class Shape:
    """attributes : names, in the order of c; width : channels of the first layer; side : pixels it works at"""

    attributes: tuple[str, ...]
    width: int = 64
    side: int = 128
    blocks: int = 6
    residual: bool = True
    encoding: Encoding = "difference"


def locate(name: str | os.PathLike[str]) -> Path:
    """The file of weights: a shipped one by its name, or the file itself."""
    return Path(name) if Path(name).suffix else WEIGHTS / f"{name}.safetensors"


def _norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


class Residual(nn.Module):
    """conditions : numbers in c that scale and shift its channels; 0 where c does not reach it"""

    def __init__(self, channels: int, conditions: int = 0) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), _norm(channels))
        self.told = nn.Linear(conditions, 2 * channels, bias=False) if conditions else None
        self.second = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, 1, 1, bias=False), _norm(channels))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        inner = self.first(x)
        if self.told is not None:
            scale, shift = self.told(c)[:, :, None, None].chunk(2, dim=1)
            inner = inner * (1 + scale) + shift
        return x + self.second(inner)


class Generator(nn.Module):
    """x (N, 3, S, S) RGB in [-1, 1], S the ``side``, and c (N, A) to a picture of the same shape.

    With ``residual`` the picture may lie outside [-1, 1] by a little; ``translate`` clamps it.
    """

    where: Tensor

    def __init__(self, shape: Shape, about: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.shape, self.about = shape, about or {}
        width, c = shape.width, len(shape.attributes)
        start: list[nn.Module] = [nn.Conv2d(3 + c, width, 7, 1, 3, bias=False), _norm(width), nn.ReLU()]
        for _ in range(2):
            start += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), _norm(2 * width), nn.ReLU()]
            width *= 2
        end: list[nn.Module] = []
        for _ in range(2):
            end += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False)]
            end += [_norm(width // 2), nn.ReLU()]
            width //= 2
        last = nn.Conv2d(width, 3, 7, 1, 3, bias=False)
        if shape.residual:
            nn.init.zeros_(last.weight)
        where = np.stack([place(name, shape.side) for name in shape.attributes])
        self.register_buffer("where", torch.from_numpy(where), persistent=False)
        inner = 4 * shape.width
        self.start = nn.Sequential(*start)
        self.blocks = nn.ModuleList(Residual(inner, c if shape.residual else 0) for _ in range(shape.blocks))
        self.end = nn.Sequential(*end, last)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        c = c.to(x)
        planes = c[:, :, None, None].expand(-1, -1, *x.shape[-2:])
        if self.shape.residual:
            planes = planes * self.where
        deep = self.start(torch.cat([x, planes], dim=1))
        for block in self.blocks:
            deep = block(deep, c)
        made: Tensor = self.end(deep)
        return x + planes.abs().amax(dim=1, keepdim=True) * made if self.shape.residual else made.tanh()

    def condition(self, source: Tensor, target: Tensor) -> Tensor:
        """c of values 0 and 1 before and after, both (N, A)."""
        return target - source if self.shape.encoding == "difference" else target

    def translate(self, x: Tensor, c: Tensor, strength: float = 1.0) -> Tensor:
        """Faces of any size: x (N, 3, H, W) RGB in [0, 1] to the same shape and range.

        The network sees ``side`` pixels; its change is scaled up and added, so a larger picture keeps its detail.
        strength : of the change; 1 is what was trained
        """
        side = self.shape.side
        small = x if x.shape[-1] == side else F.interpolate(x, (side, side), mode="area")
        change = self(small * 2 - 1, c).float() / 2 + 0.5 - small
        if change.shape != x.shape:
            change = F.interpolate(change, x.shape[-2:], mode="bicubic", align_corners=False)
        return (x + strength * change).clamp(0, 1)

    def metadata(self) -> dict[str, str]:
        return {"facecrowd": json.dumps({"kind": KIND, **asdict(self.shape), **self.about})}

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Self:
        """A file that ``facecrowd train stargan`` wrote, or a shipped one by name. Raises ``ModelError``."""
        path = locate(file)
        try:
            with safe_open(str(path), framework="pt") as stored:
                about = json.loads((stored.metadata() or {}).get("facecrowd", "{}"))
                if about.pop("kind", None) != KIND:
                    raise ValueError("it says of itself that it is something else")
                shape = Shape(**{name: about.pop(name) for name in Shape.__dataclass_fields__})
                shape = Shape(**{**asdict(shape), "attributes": tuple(shape.attributes)})
                made = cls(shape, about)
                tensors = {key: stored.get_tensor(key).float() for key in stored.keys()}  # noqa: SIM118 (not a mapping)
            if not all(t.isfinite().all() for t in tensors.values()):
                raise ValueError("its weights are not all finite")
            made.load_state_dict(tensors)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            what = " ".join(str(error).split())[:200]
            raise ModelError(f"{path} is no attribute translator of this version ({what})") from None
        return made.requires_grad_(False).eval()


class Discriminator(nn.Module):
    """PatchGAN: x (N, 3, S, S) in [-1, 1] to the patches' realness (N, 1, s, s) and attribute logits (N, A).

    layers : halvings; widths double up to ``most``
    """

    def __init__(self, attributes: int, side: int = 128, width: int = 64, layers: int = 6, most: int = 2048) -> None:
        super().__init__()
        stack: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.01)]
        for _ in range(layers - 1):
            wider = min(2 * width, most)
            stack += [nn.Conv2d(width, wider, 4, 2, 1), nn.LeakyReLU(0.01)]
            width = wider
        self.stack = nn.Sequential(*stack)
        self.real = nn.Conv2d(width, 1, 3, 1, 1, bias=False)
        self.classes = nn.Conv2d(width, attributes, side >> layers, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        deep = self.stack(x)
        return self.real(deep), self.classes(deep).flatten(1)


# ------------------------------------------------------------------------------------------------------------- losses


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """E (|grad D(x)|_2 - 1)^2 at x = alpha real + (1 - alpha) fake (AnonymousNet, equation 12; without its weight).

    alpha : (N, 1, 1, 1) in [0, 1]. Computed in float32 whatever surrounds it.
    """
    with torch.autocast(real.device.type, enabled=False):
        x = (alpha * real.float() + (1 - alpha) * fake.float()).requires_grad_(True)
        score, _ = discriminator(x)
        (slope,) = torch.autograd.grad(score.sum() / score[0].numel(), x, create_graph=True)
        return ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()


def classification(logits: Tensor, values: Tensor) -> Tensor:
    """Cross entropy summed over attributes, mean over faces (StarGAN's L_cls); values (N, A) in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits.float(), values, reduction="sum") / len(logits)


def identity(layers: list[Tensor], others: list[Tensor]) -> Tensor:
    """Sum over a recogniser's layers of |R_k(x) - R_k(x')|_2 over |R_k(x)|_2, mean over faces (equation 7 of adaptive
    obfuscation; the division, which is ours, makes layers of different size weigh alike)."""
    parts = [(a - b).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1) for a, b in zip(layers, others, strict=True)]
    return torch.stack(parts).sum(dim=0).mean()


def augment(x: Tensor, draw: torch.Generator, reach: float = 0.1, hole: float = 0.3) -> Tensor:
    """Shifts and holes, differentiable, that keep a discriminator of few faces from knowing them by heart (Zhao et al.,
    DiffAugment, NeurIPS 2020: translation and cutout; not colour, which is an attribute here).

    reach : largest shift, hole : side of the hole, as shares of the picture's side
    """
    n, _, side, _ = x.shape
    shift = (torch.rand(n, 2, generator=draw) * 2 - 1) * 2 * reach
    theta = torch.eye(2, 3).repeat(n, 1, 1)
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(x.shape), align_corners=False).to(x.device)
    x = F.grid_sample(x.float(), grid, padding_mode="zeros", align_corners=False)
    at = torch.arange(side)
    corner = torch.rand(n, 2, 1, generator=draw) * (1 + hole) * side - hole * side
    inside = (at >= corner) & (at < corner + hole * side)
    keep = ~(inside[:, 0, :, None] & inside[:, 1, None, :])
    return x * keep[:, None].to(x)
