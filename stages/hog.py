"""Features of a face that need no weights: histograms of oriented gradients, and colours.

Dalal and Triggs, Histograms of oriented gradients for human detection, CVPR 2005: cells of 8 px, blocks of 2 × 2 cells
in steps of one, nine directions without sign, each pixel in the histogram of its cell and direction alone.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SIDE = 64
CELL = 8
BLOCK = 2
DIRECTIONS = 9
COLOURS = 16
"""Side of the picture whose colours are taken, in px."""
WIDTH = (SIDE // CELL - BLOCK + 1) ** 2 * BLOCK**2 * DIRECTIONS + 3 * COLOURS**2


def features(crop: np.ndarray) -> np.ndarray:
    """An (S, S, 3) uint8 RGB crop to (2532,) float32: gradients of its grey levels at 64 px, colours at 16 px."""
    small = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    colours = cv2.resize(crop, (COLOURS, COLOURS), interpolation=cv2.INTER_AREA)
    gradients = histograms(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY) / 255)
    return np.concatenate([gradients.ravel(), colours.ravel() / 255]).astype(np.float32)


def histograms(grey: np.ndarray) -> np.ndarray:
    """Grey levels (H, W), whole cells, to (blocks down, blocks across, 2, 2, 9) float64: each block of length 1.

    Gradients are central differences, 0 at the edge of the picture.
    """
    down, across = np.zeros_like(grey, np.float64), np.zeros_like(grey, np.float64)
    down[1:-1] = grey[2:] - grey[:-2]
    across[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    direction = (np.degrees(np.arctan2(down, across)) % 180 // (180 / DIRECTIONS)).astype(int) % DIRECTIONS
    votes = np.where(direction[..., None] == np.arange(DIRECTIONS), np.hypot(down, across)[..., None], 0)
    rows, columns = (side // CELL for side in grey.shape)
    cells = votes.reshape(rows, CELL, columns, CELL, DIRECTIONS).mean((1, 3))
    blocks = sliding_window_view(cells, (BLOCK, BLOCK), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    length = np.sqrt((blocks**2).sum((2, 3, 4), keepdims=True) + 1e-10)
    found: np.ndarray = blocks / length
    return found
