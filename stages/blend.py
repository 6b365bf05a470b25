"""Whole photos: surrogates pasted back where the faces were, and every other face covered.

Inside an ellipse that holds the face no original pixel is left; around it the surrogate fades into the photo. Hair,
clothes and background stay as they were, which is why no formal bound holds for photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from facecrowd.stages import align
from facecrowd.stages.batch import explain, outcomes, take
from facecrowd.stages.obscure import FACE_AXES, FACE_CENTRE
from facecrowd.stages.stage import OK, Batch, Resources, Stage

FADE = 1.22
"""The mask falls from one to zero between the face's ellipse and this multiple of it, still inside the crop."""

COVER = 1.45
"""A cover's half axes, as a multiple of half the box: an ellipse that holds the box's corners (more than √2)."""

SURROUND = 1.8
"""The colour of a cover is the mean between its ellipse and the ellipse this much larger than the box."""


@lru_cache(maxsize=8)
def face_mask(size: int, fade: float = FADE) -> np.ndarray:
    """The weight of the surrogate in a crop: (size, size) uint8, 255 on the face, falling smoothly to 0 around it."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    radius = np.hypot(
        (x + 0.5 - FACE_CENTRE[0] * size) / (FACE_AXES[0] * size),
        (y + 0.5 - FACE_CENTRE[1] * size) / (FACE_AXES[1] * size),
    )
    t = np.clip((fade - radius) / (fade - 1), 0, 1)
    # Smoothstep: no edge shows where the slope of a straight ramp would begin and end.
    return np.rint(255 * t * t * (3 - 2 * t)).astype(np.uint8)


def paste(photo: np.ndarray, rendered: np.ndarray, matrix: np.ndarray, match_colour: bool = False) -> None:
    """Put a rendered crop back into ``photo``, in place.

    photo : (H, W, 3) uint8 RGB, changed
    rendered : (S, S, 3) uint8 RGB
    matrix : (6,) or (2, 3), photo → crop
    match_colour : shift the surrogate's mean colour to that of the photo around it. Off where a surrogate must depend
        on nothing but its class: the shift is taken from the original photo
    """
    size = rendered.shape[0]
    back = align.invert(np.asarray(matrix, np.float64).reshape(2, 3))
    seen = align.apply(back, np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float64))
    height, width = photo.shape[:2]
    x1, y1 = np.maximum(np.floor(seen.min(axis=0)).astype(int), 0)
    x2, y2 = np.minimum(np.ceil(seen.max(axis=0)).astype(int) + 1, (width, height))
    if x1 >= x2 or y1 >= y2:
        return
    back[:, 2] -= (x1, y1)
    extent = (int(x2 - x1), int(y2 - y1))
    region = photo[y1:y2, x1:x2]
    face = align.warp(rendered, back, extent, "replicate")
    weight = align.warp(face_mask(size), back, extent, "black")[..., None].astype(np.float32) / 255
    if match_colour:
        rim = (weight[..., 0] > 0) & (weight[..., 0] < 1)
        if rim.any():
            shift = region[rim].mean(axis=0) - face[rim].mean(axis=0)
            face = np.clip(face + shift, 0, 255).astype(np.float32)
    region[:] = np.rint(region + (face.astype(np.float32) - region) * weight).astype(np.uint8)


def cover(photo: np.ndarray, box: np.ndarray) -> None:
    """Cover a face by one flat colour, in place: nothing of it can be recovered, since nothing of it is kept.

    photo : (H, W, 3) uint8 RGB, changed
    box : (4,) x1 y1 x2 y2; the cover is the ellipse around it. Its colour is the mean of what surrounds the ellipse,
        mid-grey where nothing does
    """
    height, width = photo.shape[:2]
    x1, y1, x2, y2 = (float(value) for value in box)
    centre = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    half = np.array([(x2 - x1) / 2, (y2 - y1) / 2])
    left, top = np.maximum(np.floor(centre - SURROUND * half).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(centre + SURROUND * half).astype(int) + 2, (width, height))
    region = photo[top:bottom, left:right]
    y, x = np.mgrid[top:bottom, left:right]
    # In units of the box's half sides, of at least half a pixel: a box of no extent still hides its pixel.
    radius = np.hypot((x - centre[0]) / max(half[0], 0.5), (y - centre[1]) / max(half[1], 0.5))
    inside, around = radius <= COVER, (radius > COVER) & (radius <= SURROUND)
    region[inside] = np.rint(region[around].mean(axis=0)) if around.any() else 128


def blend(
    photo: np.ndarray,
    surrogates: Sequence[tuple[np.ndarray, np.ndarray]],
    covers: Sequence[np.ndarray],
    match_colour: bool = False,
) -> np.ndarray:
    """A photo with all its faces treated: (H, W, 3) uint8 RGB, a new array.

    surrogates : pairs (rendered crop, matrix photo → crop), the most prominent face first
    covers : boxes (4,) of the faces that have no surrogate
    """
    out = photo.copy()
    # Covers first and the most prominent face last: what fades around a surrogate then shows no untreated neighbour
    # that a cover would have hidden, and is itself hidden by none.
    for box in covers:
        cover(out, box)
    for rendered, matrix in reversed(surrogates):
        paste(out, rendered, matrix, match_colour)
    return out


class Blend(Stage):
    """One row per photo from its rows of faces: the photo with every face replaced or covered.

    All rows of a photo must come in one batch. A face with status ``ok`` and a rendering is replaced; any other row
    that has a box is covered, whatever its status says (``low_score``, ``too_small``, suppressed, failed).

    blended : (H, W, 3) uint8 RGB; None where the photo could not be read or treated
    faces_replaced, faces_covered : int32
    status : ``ok``, ``no_face`` (nothing was found, so nothing was hidden: the photo is passed on unchanged),
        ``unreadable`` or ``failed``

    Of the other columns the photo's first row speaks.
    """

    name = "blend"
    inputs = ("photo", "rendered", "matrix", "box")
    outputs = ("blended", "faces_replaced", "faces_covered", "status", "reason")
    transient = ("blended",)

    def __init__(self, key: str = "path", match_colour: bool = False, resources: Resources | None = None) -> None:
        """``key`` is the column that names the photo; ``match_colour`` as in ``paste``."""
        self.key, self.match_colour = key, match_colour
        self.resources = resources or Resources()

    def setup(self) -> None:
        cv2.setNumThreads(1)

    def __call__(self, batch: Batch) -> Batch:
        face_status, face_reason = outcomes(batch)
        groups: dict[object, list[int]] = {}
        for i, key in enumerate(batch[self.key]):
            groups.setdefault(key, []).append(i)
        first = [members[0] for members in groups.values()]
        out = take({k: v for k, v in batch.items() if k not in ("photo", "rendered")}, first)
        photos: list[np.ndarray | None] = []
        counts = np.zeros((len(groups), 2), np.int32)
        status, reason = face_status[first], face_reason[first]
        for n, members in enumerate(groups.values()):
            photos.append(None)
            photo = batch["photo"][members[0]]
            if photo is None:
                continue
            try:
                replaced = [i for i in members if face_status[i] == OK and batch["rendered"][i] is not None]
                rest = [i for i in members if i not in replaced and np.isfinite(batch["box"][i]).all()]
                surrogates = [(batch["rendered"][i], batch["matrix"][i]) for i in replaced]
                photos[n] = blend(photo, surrogates, [batch["box"][i] for i in rest], self.match_colour)
                counts[n] = len(replaced), len(rest)
                if replaced or rest:
                    status[n], reason[n] = OK, ""
            except Exception as error:
                photos[n] = None
                status[n], reason[n] = "failed", explain(self.name, error)
        out.update(blended=photos, faces_replaced=counts[:, 0], faces_covered=counts[:, 1])
        out.update(status=status, reason=reason)
        return out
