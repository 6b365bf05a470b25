"""Where attributes lie on an aligned face: soft regions of FFHQ's template, for edits that stay in their place."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from facecrowd.stages import align
from facecrowd.stages.obscure import FACE_AXES, FACE_CENTRE

HAIR_COLOURS = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
"""Of which a face has one."""

REGIONS = {
    "Bushy_Eyebrows": "brows",
    "Arched_Eyebrows": "brows",
    "Narrow_Eyes": "eyes",
    "Big_Nose": "nose",
    "Pointy_Nose": "nose",
    "Big_Lips": "lips",
    "Wearing_Lipstick": "lips",
    "Mouth_Slightly_Open": "lips",
    "Receding_Hairline": "forehead",
    "Bangs": "forehead",
    **dict.fromkeys(HAIR_COLOURS, "hair"),
}
"""Where an attribute lies; all others in the face as a whole. Hair may be anywhere."""

ELLIPSES = {
    "brows": (("left eye", (0.0, -0.36), (0.48, 0.22)), ("right eye", (0.0, -0.36), (0.48, 0.22))),
    "eyes": (("left eye", (0.0, 0.0), (0.44, 0.26)), ("right eye", (0.0, 0.0), (0.44, 0.26))),
    "nose": (("nose", (0.0, -0.2), (0.42, 0.6)),),
    "lips": (("mouth", (0.0, 0.0), (0.6, 0.36)),),
    "forehead": (("eyes", (0.0, -1.05), (1.0, 0.6)),),
}
"""By region: anchor on the template, centre from it and half axes, in distances between the eyes."""

FADE = 0.5
"""Over this share of an ellipse's radius, beyond it, the edit fades out."""


@lru_cache(maxsize=16)
def region(name: str, size: int) -> np.ndarray:
    """The weight of an edit by pixel, (size, size) float32 in [0, 1], in FFHQ's alignment.

    name : of ``ELLIPSES``, "face", or "hair", which is the whole picture
    """
    if name == "hair":
        return np.ones((size, size), np.float32)
    points = align.template(size)
    apart = float(np.linalg.norm(points[1] - points[0]))
    anchors = {
        "left eye": points[0],
        "right eye": points[1],
        "nose": points[2],
        "mouth": points[3:].mean(axis=0),
        "eyes": points[:2].mean(axis=0),
    }
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    shapes = [(np.array(FACE_CENTRE) * size, np.array(FACE_AXES) * size)]
    if name != "face":
        shapes = [(anchors[a] + np.array(c) * apart, np.array(h) * apart) for a, c, h in ELLIPSES[name]]
    weight = np.zeros((size, size), np.float32)
    for (x, y), (a, b) in shapes:
        inside = np.clip((1 + FADE - np.hypot((columns - x) / a, (rows - y) / b)) / FADE, 0, 1)
        weight = np.maximum(weight, inside * inside * (3 - 2 * inside))
    return weight.astype(np.float32)


def place(attribute: str, size: int) -> np.ndarray:
    """The region in which an attribute lies, (size, size) float32 in [0, 1]."""
    return region(REGIONS.get(attribute, "face"), size)
