"""Whole photos: surrogates pasted back where the faces were, and every other face covered.

Inside the ellipses of the template and of the detected box no original pixel is left; around them the surrogate fades
into the photo. Hair, clothes and background stay as they were, which is why no formal bound holds for photos.
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

SHIFT = np.array([15, 8, 8], np.float32)
GAIN = (0.8, 1.25)
"""Limits of the colour match in L, a, b: the rim shows hair and background too, whose colours skin must not take on.
Without them a face before a dark wall turned dark, and one before grass green."""

NO_FACE = "no_face"

SURROUND = 1.8
"""The colour of a cover is the mean between its ellipse and the ellipse this much larger than the box."""


@lru_cache(maxsize=8)
def face_mask(size: int, fade: float = FADE, reach: float = 1.0) -> np.ndarray:
    """The weight of the surrogate in a crop: (size, size) uint8, 255 on the face, falling smoothly to 0 around it.

    reach : what is the face, as a multiple of the template's ellipse, less than ``fade``, where the weight is 0
    """
    y, x = np.mgrid[:size, :size].astype(np.float32)
    radius = np.hypot(
        (x + 0.5 - FACE_CENTRE[0] * size) / (FACE_AXES[0] * size),
        (y + 0.5 - FACE_CENTRE[1] * size) / (FACE_AXES[1] * size),
    )
    return np.rint(255 * _fade(radius / reach, fade / reach)).astype(np.uint8)


def paste(
    photo: np.ndarray,
    rendered: np.ndarray,
    matrix: np.ndarray,
    box: np.ndarray | None = None,
    match_colour: bool = False,
    reach: float = 1.0,
) -> None:
    """Put a rendered crop back into ``photo``, in place.

    photo : (H, W, 3) uint8 RGB, changed
    rendered : (S, S, 3) uint8 RGB
    matrix : (6,) or (2, 3), photo → crop
    box : (4,) x1 y1 x2 y2 of the detected face; its ellipse is replaced too. On a face in profile it reaches beyond the
        template's
    match_colour : bring the surrogate's light and colour nearer to the photo's around it (``matched``). Off where a
        surrogate must depend on nothing but its class: what it is brought nearer to is the original photo
    reach : as in ``face_mask``

    Raises ``ValueError`` where the matrix is not finite: nothing would be pasted, and the face left as it was.
    """
    if not np.isfinite(matrix).all():
        raise ValueError("the face has no alignment to be pasted by")
    size = rendered.shape[0]
    back = align.invert(np.asarray(matrix, np.float64).reshape(2, 3))
    seen = align.apply(back, np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float64))
    if box is not None:
        centre, half = _ellipse(box)
        seen = np.vstack([seen, centre - FADE * half, centre + FADE * half])
    height, width = photo.shape[:2]
    x1, y1 = np.maximum(np.floor(seen.min(axis=0)).astype(int), 0)
    x2, y2 = np.minimum(np.ceil(seen.max(axis=0)).astype(int) + 1, (width, height))
    if x1 >= x2 or y1 >= y2:
        return
    back[:, 2] -= (x1, y1)
    extent = (int(x2 - x1), int(y2 - y1))
    region = photo[y1:y2, x1:x2]
    face = align.warp(rendered, back, extent, "replicate").astype(np.float32)
    weight = align.warp(face_mask(size, reach=reach), back, extent, "black").astype(np.float32) / 255
    if box is not None:
        y, x = np.ogrid[y1:y2, x1:x2]
        weight = np.maximum(weight, _fade(np.hypot((x - centre[0]) / half[0], (y - centre[1]) / half[1])))
    if match_colour:
        rim = (weight > 0) & (weight < 1)
        if rim.any():
            face = matched(face, region, rim)
    region[:] = np.rint(region + (face - region) * weight[..., None]).astype(np.uint8)


def matched(face: np.ndarray, photo: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """The face with mean and spread of its L, a, b on the rim brought towards the photo's there: (H, W, 3) float32.

    Reinhard et al., "Color Transfer between Images", 2001, on a rim and within ``SHIFT`` and ``GAIN``.

    face : (H, W, 3) float32; photo : (H, W, 3) uint8; both RGB in 0 … 255; rim : (H, W) bool, not empty
    """
    ours = cv2.cvtColor(face / np.float32(255), cv2.COLOR_RGB2LAB)
    theirs = cv2.cvtColor(photo.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[rim]
    mean, spread = ours[rim].mean(axis=0), ours[rim].std(axis=0)
    gain = np.clip(theirs.std(axis=0) / np.maximum(spread, 1e-3), *GAIN)
    shift = np.clip(theirs.mean(axis=0) - mean, -SHIFT, SHIFT)
    made = cv2.cvtColor(((ours - mean) * gain + mean + shift).astype(np.float32), cv2.COLOR_LAB2RGB)
    return np.clip(made * 255, 0, 255)


def _fade(radius: np.ndarray, fade: float = FADE) -> np.ndarray:
    """1 up to radius 1, 0 from ``fade`` on. Smoothstep: no edge shows where a straight ramp would begin and end."""
    t = np.clip((fade - radius) / (fade - 1), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def _ellipse(box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half sides of a box, in pixels; at least half a pixel, so that a box of no extent hides its pixel."""
    corners = np.asarray(box, np.float64).reshape(2, 2)
    return corners.mean(axis=0), np.maximum((corners[1] - corners[0]) / 2, 0.5)


def cover(photo: np.ndarray, box: np.ndarray) -> None:
    """Cover a face by one flat colour, in place: nothing of it can be recovered, since nothing of it is kept.

    photo : (H, W, 3) uint8 RGB, changed
    box : (4,) x1 y1 x2 y2; the cover is the ellipse around it. Its colour is the mean of what surrounds the ellipse,
        mid-grey where nothing does
    """
    height, width = photo.shape[:2]
    centre, half = _ellipse(box)
    left, top = np.maximum(np.floor(centre - SURROUND * half).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(centre + SURROUND * half).astype(int) + 2, (width, height))
    region = photo[top:bottom, left:right]
    y, x = np.ogrid[top:bottom, left:right]
    radius = np.hypot((x - centre[0]) / half[0], (y - centre[1]) / half[1])
    inside, around = radius <= COVER, (radius > COVER) & (radius <= SURROUND)
    region[inside] = np.rint(region[around].mean(axis=0)) if around.any() else 128


def blend(
    photo: np.ndarray,
    surrogates: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    covers: Sequence[np.ndarray],
    match_colour: bool = False,
    reach: float = 1.0,
) -> np.ndarray:
    """A photo with all its faces treated: (H, W, 3) uint8 RGB, a new array.

    surrogates : (rendered crop, matrix photo → crop, box), the most prominent face first
    covers : boxes (4,) of the faces that have no surrogate
    """
    out = photo.copy()
    # Covers first and the most prominent face last: what fades around a surrogate then shows no untreated neighbour
    # that a cover would have hidden, and is itself hidden by none.
    for hidden in covers:
        cover(out, hidden)
    for rendered, matrix, box in reversed(surrogates):
        paste(out, rendered, matrix, box, match_colour, reach)
    return out


class Blend(Stage):
    """One row per photo from its rows of faces: the photo with every face replaced or covered.

    All rows of a photo must come in one batch. A face with status ``ok`` and a rendering is replaced; any other row
    that has a box is covered, whatever its status says (``low_score``, ``too_small``, suppressed, failed). A photo with
    a row that can be neither is withheld.

    Where a batch's ``status`` says how the photo fares (``ok`` to read it for its weak faces too), ``face_status`` says
    what became of each face.

    blended : (H, W, 3) uint8 RGB; None where the photo could not be read or treated
    faces_replaced, faces_covered : int32
    status : ``ok``, ``unreadable``, ``failed``, or ``no_face``: nothing was found, so nothing was hidden. Its pixels
        are as they were, and no later stage works on it unless somebody decides that it may be released so

    Of the other columns the photo's first row speaks.
    """

    name = "blend"
    inputs = ("photo", "rendered", "matrix", "box")
    outputs = ("blended", "faces_replaced", "faces_covered", "status", "reason")
    transient = ("blended",)

    def __init__(
        self, key: str = "path", match_colour: bool = False, reach: float = 1.0, resources: Resources | None = None
    ) -> None:
        """``key`` is the column that names the photo; ``match_colour`` and ``reach`` as in ``paste``."""
        self.key, self.match_colour, self.reach = key, match_colour, reach
        self.resources = resources or Resources()

    def setup(self) -> None:
        cv2.setNumThreads(1)

    def __call__(self, batch: Batch) -> Batch:
        status_in, face_reason = outcomes(batch)
        face_status = np.asarray(batch.get("face_status", status_in), dtype=object)
        groups: dict[object, list[int]] = {}
        for i, key in enumerate(batch[self.key]):
            groups.setdefault(key, []).append(i)
        first = [members[0] for members in groups.values()]
        out = take({k: v for k, v in batch.items() if k not in ("photo", "rendered")}, first)
        photos: list[np.ndarray | None] = []
        counts = np.zeros((len(groups), 2), np.int32)
        status, reason = status_in[first], face_reason[first]
        for n, members in enumerate(groups.values()):
            photos.append(None)
            photo = batch["photo"][members[0]]
            if photo is None:
                continue
            try:
                replaced = [i for i in members if self._replaceable(batch, i, face_status[i])]
                rest = [i for i in members if i not in replaced and face_status[i] != NO_FACE]
                for i in rest:
                    if not np.isfinite(batch["box"][i]).all():
                        raise ValueError(f"a face has no box to be covered by ({face_status[i]}: {face_reason[i]})")
                surrogates = [(batch["rendered"][i], batch["matrix"][i], batch["box"][i]) for i in replaced]
                photos[n] = blend(photo, surrogates, [batch["box"][i] for i in rest], self.match_colour, self.reach)
                counts[n] = len(replaced), len(rest)
                status[n], reason[n] = (OK, "") if replaced or rest else (NO_FACE, "no face was found in it")
            except Exception as error:
                photos[n] = None
                status[n], reason[n] = "failed", explain(self.name, error)
        out.update(blended=photos, faces_replaced=counts[:, 0], faces_covered=counts[:, 1])
        out.update(status=status, reason=reason)
        return out

    def _replaceable(self, batch: Batch, row: int, status: str) -> bool:
        return status == OK and batch["rendered"][row] is not None and bool(np.isfinite(batch["matrix"][row]).all())
