"""k-same on aligned pixels: one surrogate per class, the mean of its subjects' mean faces.

Newton, Sweeney, Malin: Preserving privacy by de-identifying face images, IEEE TKDE 17(2), 2005 (k-Same-Pixel), with
the *subject* as the unit: the mean over a subject's photos is taken first, so that somebody with many photos does not
pull the class towards themselves.
"""

from __future__ import annotations

import cv2
import numpy as np

from facecrowd.stages.decode import decode
from facecrowd.stages.stage import OK, Batch, Stage


def class_mean(subjects: list[list[np.ndarray]]) -> np.ndarray:
    """The mean of subject means.

    subjects : per subject its aligned faces, each (H, W, 3) uint8, all of one size.

    Returns (H, W, 3) uint8, rounded to the nearest level. Raises ValueError for a class or a subject without faces.
    """
    if not subjects or not all(subjects):
        raise ValueError("a class mean needs at least one subject, and at least one face of each")
    total = np.zeros(subjects[0][0].shape, dtype=np.float64)
    for faces in subjects:
        # Whole numbers add up exactly, whatever the order of the photos.
        total += np.sum(faces, axis=0, dtype=np.uint32) / len(faces)
    return np.clip(np.rint(total / len(subjects)), 0, 255).astype(np.uint8)


class Average(Stage):
    """Turns the crops of each class into its surrogate.

    crops : per row (a class) a list of subjects, each a list of JPEG bytes
    rendered : (size, size, 3) uint8 RGB
    """

    name = "average"
    inputs = ("crops",)
    outputs = ("rendered", "status", "reason")
    transient = ("rendered", "crops")

    def __init__(self, size: int = 256) -> None:
        self.size = size

    def setup(self) -> None:
        cv2.setNumThreads(1)

    def __call__(self, batch: Batch) -> Batch:
        # A class that cannot be averaged means a damaged workspace: that stops the job, it is not a row's fault.
        rendered = [class_mean([[decode(crop) for crop in faces] for faces in crops]) for crops in batch["crops"]]
        count = len(rendered)
        return {**batch, "rendered": rendered, "status": [OK] * count, "reason": [""] * count}
