"""Alignment: the similarity that takes five landmarks onto a template, and the crops it gives.

A similarity of the plane is z ↦ a z + b with complex a, b: it has no reflection in it. Over the five points the least
squares are solved by (with centred z, w)

    a = Σ conj(z) w / Σ |z|²,   b = mean(w) − a mean(z)

which is Umeyama's estimate (IEEE TPAMI 13(4), 1991) wherever that is no reflection, for a whole batch at once.

Coordinates put the centre of the first pixel at (0, 0), as OpenCV's warps do. A matrix is (…, 2, 3), photo → crop.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.stage import Batch, Resources, Stage, live

FFHQ = np.array(
    [[192.98, 239.95], [318.90, 240.19], [256.63, 314.02], [201.26, 371.41], [313.09, 371.15]], dtype=np.float64
)
"""(5, 2) eyes, nose and mouth corners of FFHQ's alignment at 512², measured on its pictures."""
FFHQ_SIZE = 512

ARCFACE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float64,
)
"""(5, 2) the points ArcFace recognisers are trained on, at 112² (InsightFace's ``arcface_dst``)."""
ARCFACE_SIZE = 112

BORDERS = {"replicate": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT_101, "black": cv2.BORDER_CONSTANT}
Border = Literal["replicate", "reflect", "black"]


def template(size: int, kind: Literal["ffhq", "arcface"] = "ffhq") -> np.ndarray:
    """The five points of a template in a crop of ``size`` pixels: (5, 2) float64."""
    points, own = (FFHQ, FFHQ_SIZE) if kind == "ffhq" else (ARCFACE, ARCFACE_SIZE)
    return points * (size / own)


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares similarities that take ``points`` onto ``target``.

    points : (n, p, 2); target : (p, 2) or (n, p, 2)

    Returns (n, 2, 3) float64. Raises ``ValueError`` where the points of one coincide: they have no similarity.
    """
    points = np.asarray(points, np.float64)
    z = points[..., 0] + 1j * points[..., 1]
    w = np.broadcast_to(target[..., 0] + 1j * target[..., 1], z.shape)
    z_mean, w_mean = z.mean(axis=-1, keepdims=True), w.mean(axis=-1, keepdims=True)
    z0, w0 = z - z_mean, w - w_mean
    spread = (z0.real**2 + z0.imag**2).sum(axis=-1)
    if not (spread > 0).all():
        raise ValueError("the landmarks of a face coincide or are not numbers")
    a = (z0.conj() * w0).sum(axis=-1) / spread
    b = w_mean[..., 0] - a * z_mean[..., 0]
    return np.stack([np.stack([a.real, -a.imag, b.real], -1), np.stack([a.imag, a.real, b.imag], -1)], -2)


def invert(matrix: np.ndarray) -> np.ndarray:
    """The inverses of affine matrices: (…, 2, 3) to (…, 2, 3). Flat (…, 6) are taken too, and returned so."""
    matrix = np.asarray(matrix, np.float64)
    shape = matrix.shape
    matrix = matrix.reshape(*shape[:-1], 2, 3) if shape[-1] == 6 else matrix
    linear = np.linalg.inv(matrix[..., :2])
    return np.concatenate([linear, -linear @ matrix[..., 2:]], axis=-1).reshape(shape)


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points through an affine matrix: (2, 3) or flat (6,), (…, 2) to (…, 2)."""
    matrix = np.asarray(matrix, np.float64).reshape(2, 3)
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def scale(matrix: np.ndarray) -> float:
    """How many crop pixels one photo pixel becomes, along one axis."""
    m = np.asarray(matrix, np.float64).reshape(2, 3)
    return float(np.sqrt(abs(m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0])))


def warp(photo: np.ndarray, matrix: np.ndarray, size: int | tuple[int, int], border: Border = "reflect") -> np.ndarray:
    """The crop that ``matrix`` (photo → crop) makes of an (H, W, …) uint8 photo.

    size : side of the crop, or its (width, height), in pixels

    A face larger than the crop is first shrunk by area averaging, by a factor that leaves it at least as large as the
    crop: bilinear sampling alone would alias. Only the part of the photo that the crop shows is touched.
    """
    matrix = np.asarray(matrix, np.float64).reshape(2, 3)
    height, width = photo.shape[:2]
    across, down = (size, size) if isinstance(size, int) else size
    corners = np.array([[0, 0], [across, 0], [0, down], [across, down]], np.float64)
    seen = apply(invert(matrix), corners)
    low, high = np.floor(seen.min(axis=0)).astype(int) - 2, np.ceil(seen.max(axis=0)).astype(int) + 3
    end = np.array([width, height])
    first, last = np.maximum(low, 0), np.minimum(high, end)
    if border == "reflect":
        # What is mirrored from beyond an edge has to be in the part too.
        first, last = np.minimum(first, 2 * (end - 1) - high), np.maximum(last, 2 - low)
        first, last = np.maximum(first, 0), np.minimum(last, end)
    if (first < last).all():
        photo = photo[first[1] : last[1], first[0] : last[0]]
        matrix = matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ first
    factor = scale(matrix)
    if factor < 0.75:
        height, width = photo.shape[:2]
        small_width, small_height = max(1, round(width * factor * 1.2)), max(1, round(height * factor * 1.2))
        photo = cv2.resize(photo, (small_width, small_height), interpolation=cv2.INTER_AREA)
        fx, fy = width / small_width, height / small_height
        # Pixel centres: x = (x_small + 1/2) fx − 1/2.
        grow = np.array([[fx, 0, fx / 2 - 0.5], [0, fy, fy / 2 - 0.5], [0, 0, 1]])
        matrix = matrix @ grow
    return cv2.warpAffine(
        photo, matrix, (across, down), flags=cv2.INTER_LINEAR, borderMode=BORDERS[border], borderValue=(0, 0, 0)
    )


class Align(Stage):
    """Aligned crops of the faces of a batch.

    crop : (crop_size, crop_size, 3) uint8 RGB, FFHQ's alignment; what lies outside the photo is mirrored
    arcface : (112, 112, 3) uint8 RGB, the recogniser's alignment; black outside, as its training crops
    matrix : (6,) float32, photo → crop, row by row; NaN where there is no crop

    Rows that are not ``ok`` have None and NaN.
    """

    name = "align"
    inputs = ("photo", "landmarks")
    outputs = ("crop", "arcface", "matrix", "status", "reason")
    transient = ("crop", "arcface")

    def __init__(self, crop_size: int = 256, border: Border = "reflect", resources: Resources | None = None) -> None:
        if crop_size < 32:
            raise ValueError(f"crop_size is {crop_size}, but a crop has at least 32 pixels a side")
        self.crop_size, self.border = crop_size, border
        self.resources = resources or Resources()

    def setup(self) -> None:
        cv2.setNumThreads(1)

    def __call__(self, batch: Batch) -> Batch:
        status, reason = outcomes(batch)
        crops: list[np.ndarray | None] = [None] * len(status)
        chips: list[np.ndarray | None] = [None] * len(status)
        matrices = np.full((len(status), 6), np.nan, np.float32)
        to_crop, to_chip = template(self.crop_size), template(ARCFACE_SIZE, "arcface")
        for i in live({"status": status}):
            try:
                points = np.asarray(batch["landmarks"][i], np.float64).reshape(1, 5, 2)
                # Rounded before it is used, so that the manifest's matrix is the one that made the crop.
                matrix = similarity(points, to_crop)[0].astype(np.float32)
                crops[i] = warp(batch["photo"][i], matrix, self.crop_size, self.border)
                chips[i] = warp(batch["photo"][i], similarity(points, to_chip)[0], ARCFACE_SIZE, "black")
                matrices[i] = matrix.ravel()
            except Exception as error:
                crops[i] = None
                status[i], reason[i] = "failed", explain(self.name, error)
        return {**batch, "crop": crops, "arcface": chips, "matrix": matrices, "status": status, "reason": reason}
