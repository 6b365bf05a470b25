"""The judge of released pictures: is a face still found in them, and which embedding does it have?

It reads the encoded file, as an attacker would, not the pixels in memory before compression.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from facecrowd.stages import align, models
from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.decode import Undecodable, decode
from facecrowd.stages.detect import Detector
from facecrowd.stages.embed import vectors
from facecrowd.stages.stage import Batch, Resources, Stage, live

if TYPE_CHECKING:
    from facecrowd.stages.recognise import Recogniser


@dataclass(frozen=True)
class Found:
    """The best face of a crop. score : 0 without one; landmarks : (5, 2) px, without a face those of the FFHQ template;
    chip : (112, 112, 3) uint8 RGB, cut by them in ArcFace's alignment"""

    score: float
    landmarks: np.ndarray
    chip: np.ndarray


def find(detector: Detector, crop: np.ndarray) -> Found:
    """The best face of an (S, S, 3) uint8 RGB crop."""
    faces = detector.find(crop)
    points = faces.landmarks[:1].reshape(-1, 5, 2) if len(faces) else align.template(crop.shape[0])[None]
    matrix = align.similarity(points, align.template(align.ARCFACE_SIZE, "arcface"))[0]
    chip = align.warp(crop, matrix, align.ARCFACE_SIZE, "black")
    return Found(float(faces.scores[0]) if len(faces) else 0.0, points[0], chip)


class Judge(Stage):
    """Re-detects and re-embeds released crops: ``column`` holds their JPEG bytes, or pixels cut from a released photo.

    The face is searched again (also with room around it: a crop's face fills the frame) and aligned by the landmarks
    found. Where none is found, the landmarks of the FFHQ template serve, since that is where an attacker who knows how
    the crops were made would look: a face that no detector finds is not thereby safe.

    detected : bool, a face scores ``threshold`` or more
    detection_score : float32, of the best face; 0 without one
    embedding : (width,) float32 of length 1, as wide as the recogniser makes it; NaN in rows that are not ``ok``
    """

    name = "judge"
    inputs = ("image",)
    outputs = ("detected", "detection_score", "embedding", "status", "reason")

    def __init__(
        self,
        recogniser: str | os.PathLike[str] = "arcface-mobilefacenet",
        detector: str | os.PathLike[str] = "scrfd-500m",
        threshold: float = 0.5,
        device: models.Device = "cpu",
        threads: int = 1,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        column: str = "image",
        resources: Resources | None = None,
    ) -> None:
        """Models as in ``models.resolve`` and ``recognise.load``; ``threshold``: the score that counts as detected."""
        self.column = column
        self.inputs = (column,)  # type: ignore[misc]
        self.recogniser, self.detector, self.threshold = recogniser, detector, threshold
        self.device, self.threads, self.folder = device, threads, folder
        self.resources = resources or Resources()
        self._recogniser: Recogniser | None = None
        self._detector: Detector | None = None

    def setup(self) -> None:
        import torch

        from facecrowd.stages import recognise

        cv2.setNumThreads(1)
        torch.set_num_threads(self.threads)
        self._recogniser = recognise.load(
            self.recogniser, self.device, gradients=False, threads=self.threads, folder=self.folder
        )
        self._detector = Detector.load(
            self.detector,
            threshold=self.threshold,
            cover_threshold=self.threshold,
            device=self.device,
            threads=self.threads,
            folder=self.folder,
        )

    def look(self, crop: np.ndarray) -> tuple[float, np.ndarray]:
        """The best face's score (0 without one) and the embedding of an (S, S, 3) uint8 RGB crop."""
        if self._detector is None or self._recogniser is None:
            self.setup()
        assert self._detector is not None
        assert self._recogniser is not None
        found = find(self._detector, crop)
        return found.score, vectors(self._recogniser, [found.chip])[0]

    def __call__(self, batch: Batch) -> Batch:
        if self._recogniser is None:
            self.setup()
        assert self._recogniser is not None
        status, reason = outcomes(batch)
        scores = np.zeros(len(status), np.float32)
        embeddings = np.full((len(status), self._recogniser.width), np.nan, np.float32)
        for i in live({"status": status}):
            try:
                cell = batch[self.column][i]
                scores[i], embeddings[i] = self.look(decode(cell) if isinstance(cell, bytes) else cell)
            except Undecodable as error:
                status[i], reason[i] = "unreadable", error.reason
            except Exception as error:
                status[i], reason[i] = "failed", explain(self.name, error)
        return {
            **batch,
            "detected": scores >= self.threshold,
            "detection_score": scores,
            "embedding": embeddings,
            "status": status,
            "reason": reason,
        }
