"""What a release does to a picture after it was perturbed, with a gradient: so a perturbation learns to survive it.

JPEG and rounding are not differentiable; they happen as they are, and the gradient passes straight through them
(Bengio, Léonard and Courville, arXiv:1308.3432). Resizing and shifting stand for what others do to the file: a random
size and back, a random shift (as in input diversity, Xie et al., CVPR 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facecrowd.stages.decode import decode
from facecrowd.stages.encode import Subsampling, encode


@dataclass(frozen=True)
class Channel:
    """What happens to every picture. By default nothing but the rounding to 8 bits.

    jpeg : qualities drawn from, lowest and highest, 1 to 100; None leaves the file out
    subsampling : of its colours, as in ``encode.encode``
    scale : sizes drawn from, smallest and largest, as shares of the picture's; one per batch, and back again
    shift : pixels at most, per batch, in both directions, as a share of the picture's side
    """

    jpeg: tuple[int, int] | None = None
    subsampling: Subsampling = "420"
    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.jpeg is not None and not 1 <= self.jpeg[0] <= self.jpeg[1] <= 100:
            raise ValueError(f"channel: JPEG qualities are {self.jpeg}, but must rise and lie between 1 and 100")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"channel: scales are {self.scale}, but must rise and be above 0")
        if not 0 <= self.shift < 1:
            raise ValueError(f"channel: shift is {self.shift}, but lies between 0 and 1")

    def __call__(self, x: Tensor, draws: np.random.Generator) -> Tensor:
        """x (N, 3, S, S) RGB in [0, 1], as it arrives: of the same shape and range, in whole grey levels before the
        resizing; the gradient is that of the resizing and the shift alone."""
        qualities = None if self.jpeg is None else draws.integers(self.jpeg[0], self.jpeg[1] + 1, len(x))
        out = x + (_filed(x.detach(), qualities, self.subsampling) - x.detach())
        side = x.shape[-1]
        scale = draws.uniform(*self.scale) if self.scale != (1.0, 1.0) else 1.0
        if (other := max(1, round(scale * side))) != side:
            out = F.interpolate(out, size=(other, other), mode="bilinear", antialias=True)
            out = F.interpolate(out, size=(side, side), mode="bilinear", antialias=True)
        if reach := round(self.shift * side):
            right, down = (int(d) for d in draws.integers(-reach, reach + 1, 2))
            edges = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
            out = F.pad(out, edges, mode="replicate")[..., edges[3] : edges[3] + side, edges[1] : edges[1] + side]
        return out


def _filed(x: Tensor, qualities: np.ndarray | None, subsampling: Subsampling) -> Tensor:
    """x (N, 3, S, S) as 8-bit pictures, or as JPEG files of these qualities (N,) hold them; in [0, 1] again."""
    whole = (x * 255).round().clamp(0, 255)
    if qualities is not None:
        pixels = whole.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        read = [decode(encode(p, int(q), subsampling)) for p, q in zip(pixels, qualities, strict=True)]
        whole = torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).to(x)
    return whole / 255
