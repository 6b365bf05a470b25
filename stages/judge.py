"""The judge of released pictures: is a face still found in them, and which embedding does it have?

It reads the encoded file, as an attacker would, not the pixels in memory before compression.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from facecrowd.stages.stage import Batch
from facecrowd.stages.witness import Witness


class Judge(Witness):
    """Re-detects and re-embeds released crops: ``column`` holds their JPEG bytes, or pixels cut from a released photo.

    The face is searched again (also with room around it: a crop's face fills the frame) and aligned by the landmarks
    found. Where none is found, the landmarks of the FFHQ template serve, since that is where an attacker who knows how
    the crops were made would look: a face that no detector finds is not thereby safe.

    detected : bool, a face scores ``threshold`` or more
    detection_score : float32, of the best face; 0 without one
    embedding : (width,) float32 of length 1, as wide as the recogniser makes it; NaN in rows that are not ``ok``
    """

    name = "judge"
    outputs = ("detected", "detection_score", "embedding", "status", "reason")  # type: ignore[assignment] # one less

    def __init__(self, recogniser: str | os.PathLike[str] = "arcface-mobilefacenet", **options: Any) -> None:
        """Options as of ``Witness``."""
        super().__init__((recogniser,), **options)

    def __call__(self, batch: Batch) -> Batch:
        seen = super().__call__(batch)
        (recogniser,) = self._recognisers.values()
        embedding = np.full((len(seen["status"]), recogniser.width), np.nan, np.float32)
        for i, found in enumerate(seen.pop("embeddings")):
            if found is not None:
                (embedding[i],) = found.values()
        del seen["landmarks"]
        return {**seen, "embedding": embedding}
