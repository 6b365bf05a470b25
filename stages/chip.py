"""The recognisers' view of a crop, with a gradient: ``align.warp`` from FFHQ's alignment to ArcFace's, in PyTorch.

An aligned crop has its five points on FFHQ's template, so one fixed similarity serves all crops of a size.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facecrowd.stages import align


class Chip(nn.Module):
    """FFHQ-aligned x (N, 3, size, size) to ArcFace's (N, 3, 112, 112); both RGB in [0, 1], on the module's device.

    As in ``align.warp``, a face larger than the chip's is first shrunk by area averaging; what lies outside is black.
    """

    shrink: Tensor | None
    grid: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        matrix = align.similarity(align.template(size)[None], align.template(align.ARCFACE_SIZE, "arcface"))[0]
        factor, small = align.scale(matrix), size
        if factor < 0.75:
            small = round(size * factor * 1.2)
            grow = size / small
            # Pixel centres: x = (x_small + 1/2) grow - 1/2.
            matrix = matrix @ np.array([[grow, 0, grow / 2 - 0.5], [0, grow, grow / 2 - 0.5], [0, 0, 1]])
        self.register_buffer("shrink", _areas(size, small) if small < size else None, persistent=False)
        self.register_buffer("grid", grid(matrix, small, align.ARCFACE_SIZE), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Raises ``ValueError`` for crops of another size."""
        if x.shape[-2:] != (self.size, self.size):
            raise ValueError(f"a chip is cut from crops of {self.size} pixels a side here, not {tuple(x.shape)}")
        if self.shrink is not None:
            x = self.shrink.to(x) @ x @ self.shrink.to(x).T
        return F.grid_sample(x, self.grid.to(x).expand(len(x), -1, -1, -1), align_corners=False)


def grid(matrix: np.ndarray, side: int, size: int) -> Tensor:
    """For ``grid_sample``: where in a picture of ``side`` pixels each of the (size, size) pixels of a warp lies.

    matrix : (2, 3), picture to warp

    Returns (1, size, size, 2) float32.
    """
    at = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).reshape(-1, 2)
    where = (align.apply(align.invert(matrix), at) + 0.5) / side * 2 - 1
    return torch.from_numpy(where.reshape(1, size, size, 2)).float()


def _areas(size: int, small: int) -> Tensor:
    """(small, size) float32: row i holds the share of each pixel in the mean over the i-th of ``small`` equal parts."""
    edges = np.arange(small + 1) * (size / small)
    start = np.arange(size)
    overlap = np.minimum(edges[1:, None], start + 1) - np.maximum(edges[:-1, None], start)
    return torch.from_numpy(overlap.clip(min=0) * (small / size)).float()
