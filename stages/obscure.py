"""The baselines of the papers: blur, pixelate, mask and noise, as published. They hide a face; they promise nothing.

All work on an aligned (S, S, 3) uint8 RGB crop. Sizes given in pixels hold at 256² and grow with the crop, so that a
method means the same at every output size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from facecrowd.stages import align
from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import Batch, Resources, Stage, live

REFERENCE = 256
"""The crop size at which lengths in pixels are given."""

FACE_CENTRE = (256.0 / 512, 300.0 / 512)
FACE_AXES = (140.0 / 512, 172.0 / 512)
"""The ellipse that holds a face, brow to chin and ear to ear, in FFHQ's alignment: centre and half axes, as shares of
the crop's side."""


@dataclass(frozen=True)
class Blur:
    """Gaussian blur. ``sigma`` is its standard deviation in pixels at 256²."""

    sigma: float = 8.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"blur: sigma is {self.sigma}, but must be above 0")

    def __call__(self, crop: np.ndarray, points: np.ndarray, draws: np.random.Generator | None) -> np.ndarray:
        sigma = self.sigma * crop.shape[0] / REFERENCE
        return cv2.GaussianBlur(crop, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)


@dataclass(frozen=True)
class Pixelate:
    """Mosaic: the mean colour of square cells. ``blocks`` cells lie across the face, which is 55 % of the crop."""

    blocks: int = 8

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"pixelate: blocks is {self.blocks}, but must be at least 1")

    def __call__(self, crop: np.ndarray, points: np.ndarray, draws: np.random.Generator | None) -> np.ndarray:
        size = crop.shape[0]
        cells = int(np.clip(round(self.blocks / (2 * FACE_AXES[0])), 1, size))
        means = cv2.resize(crop, (cells, cells), interpolation=cv2.INTER_AREA)
        return cv2.resize(means, (size, size), interpolation=cv2.INTER_NEAREST)


@dataclass(frozen=True)
class Mask:
    """A black cover: a bar over both eyes, or a box over the whole face."""

    region: Literal["eyes", "face"] = "eyes"

    def __post_init__(self) -> None:
        if self.region not in ("eyes", "face"):
            raise ValueError(f"mask: region is {self.region!r}, but must be eyes or face")

    def __call__(self, crop: np.ndarray, points: np.ndarray, draws: np.random.Generator | None) -> np.ndarray:
        out, size = crop.copy(), crop.shape[0]
        if self.region == "face":
            (x, y), (a, b) = FACE_CENTRE, FACE_AXES
            corners = np.array([[x - a, y - b], [x + a, y - b], [x + a, y + b], [x - a, y + b]]) * size
        else:
            left, right = np.asarray(points, np.float64)[:2]
            along = right - left
            up = np.array([along[1], -along[0]])
            # Half an eye distance past each pupil ends beyond the temples; a quarter up and down takes in the brows.
            ends = np.array([left - 0.5 * along, right + 0.5 * along])
            corners = np.array([ends[0] + 0.3 * up, ends[1] + 0.3 * up, ends[1] - 0.25 * up, ends[0] - 0.25 * up])
        cv2.fillConvexPoly(out, np.round(corners).astype(np.int32), (0, 0, 0))
        return out


@dataclass(frozen=True)
class Noise:
    """AnonymousNet's randomisation of pixels (Li and Lin, CVPR Workshops 2019, section 3, "Randomness").

    "Given an individual sample, we can randomly select part of its features with a ratio of γ, and add Gaussian noise
    N(0, σ)." And for new samples: "the value x_i of pixel i in an original image can be replaced with 255 − x_i with
    Gaussian noise N(0, σ) added". The paper gives no values.

    gamma : share of the pixels selected, in [0, 1]; a pixel is taken with its three channels
    sigma : standard deviation of the noise, in grey levels, drawn per channel
    invert : replace the selected pixels by 255 − x before the noise is added
    """

    gamma: float = 0.5
    sigma: float = 50.0
    invert: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"noise: gamma is {self.gamma}, but lies between 0 and 1")
        if not self.sigma >= 0:
            raise ValueError(f"noise: sigma is {self.sigma}, but must not be negative")

    def __call__(self, crop: np.ndarray, points: np.ndarray, draws: np.random.Generator | None) -> np.ndarray:
        if draws is None:
            raise ValueError("noise needs the run key")
        pixels = crop.shape[0] * crop.shape[1]
        chosen = draws.permutation(pixels)[: round(self.gamma * pixels)]
        out = crop.reshape(pixels, 3).copy()
        values = out[chosen].astype(np.float32)
        if self.invert:
            values = 255 - values
        values += self.sigma * draws.standard_normal(values.shape, dtype=np.float32)
        out[chosen] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return out.reshape(crop.shape)


Method = Blur | Pixelate | Mask | Noise

METHODS: dict[str, type[Blur] | type[Pixelate] | type[Mask] | type[Noise]] = {
    "blur": Blur,
    "pixelate": Pixelate,
    "mask": Mask,
    "noise": Noise,
}


class Obscure(Stage):
    """Obscures the crops of a batch by one of ``METHODS``.

    rendered : (S, S, 3) uint8 RGB; None in rows that are not ``ok``

    The eye bar follows the face's own landmarks where the batch has ``landmarks`` and ``matrix``, else the template's.
    """

    name = "obscure"
    inputs = ("crop", "face_id")
    outputs = ("rendered", "status", "reason")
    transient = ("rendered",)

    def __init__(self, method: Method, key: RunKey | None = None, resources: Resources | None = None) -> None:
        """``key`` is needed by ``Noise`` alone: every face draws from it by its ``face_id``."""
        if isinstance(method, Noise) and key is None:
            raise ValueError("noise draws from the run key, but none was given")
        self.method, self.key = method, key
        self.resources = resources or Resources()

    def setup(self) -> None:
        cv2.setNumThreads(1)

    def __call__(self, batch: Batch) -> Batch:
        status, reason = outcomes(batch)
        rendered: list[np.ndarray | None] = [None] * len(status)
        for i in live({"status": status}):
            try:
                crop = batch["crop"][i]
                points = align.template(crop.shape[0])
                if "matrix" in batch and "landmarks" in batch:
                    points = align.apply(batch["matrix"][i], np.asarray(batch["landmarks"][i]).reshape(5, 2))
                draws = None
                if isinstance(self.method, Noise) and self.key is not None:
                    draws = self.key.generator("noise", batch["face_id"][i])
                rendered[i] = self.method(crop, points, draws)
            except Exception as error:
                status[i], reason[i] = "failed", explain(self.name, error)
        return {**batch, "rendered": rendered, "status": status, "reason": reason}
