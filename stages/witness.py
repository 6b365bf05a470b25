"""Witnesses: what several recognisers see in a picture, as an attacker with all of them would look.

The face is searched once, and cut once; every recogniser then embeds the same chip.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from facecrowd.stages import align, models
from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.decode import Undecodable, decode
from facecrowd.stages.detect import Detector
from facecrowd.stages.embed import vectors
from facecrowd.stages.stage import Batch, Resources, Stage, live

REMEMBERED = 1024
"""Files whose embeddings a worker remembers: of a release that shows one face for a class, most are alike."""

_Looked = tuple[float, np.ndarray, dict[str, np.ndarray]]
"""Score, landmarks and embeddings."""


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


class Witness(Stage):
    """Searches the face of each crop, and embeds it by every recogniser: ``column`` holds JPEG bytes or pixels.

    detected : bool, a face scores ``threshold`` or more
    detection_score : float32, of the best face; 0 without one
    landmarks : (10,) float32, x and y of five points in px of the crop; NaN where no face is found
    embeddings : recogniser → (width,) float32 of length 1; None in rows that are not ``ok``. Where no face is found,
        of the place where the crops' alignment puts it, as in ``Judge``
    """

    name = "witness"
    inputs = ("image",)
    outputs = ("detected", "detection_score", "landmarks", "embeddings", "status", "reason")

    def __init__(
        self,
        recognisers: Sequence[str | os.PathLike[str]],
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
        self.recognisers, self.detector, self.threshold = recognisers, detector, threshold
        self.device, self.threads, self.folder = device, threads, folder
        self.resources = resources or Resources()
        self._recognisers: dict[str, Any] = {}
        self._detector: Detector | None = None
        self._known: dict[bytes, _Looked] = {}

    def setup(self) -> None:
        import torch

        from facecrowd.stages import recognise

        cv2.setNumThreads(1)
        torch.set_num_threads(self.threads)
        self._recognisers = {
            os.fspath(name): recognise.load(
                name, self.device, gradients=False, threads=self.threads, folder=self.folder
            )
            for name in self.recognisers
        }
        self._detector = Detector.load(
            self.detector,
            threshold=self.threshold,
            cover_threshold=self.threshold,
            device=self.device,
            threads=self.threads,
            folder=self.folder,
        )

    def __call__(self, batch: Batch) -> Batch:
        if self._detector is None:
            self.setup()
        assert self._detector is not None
        status, reason = outcomes(batch)
        scores = np.zeros(len(status), np.float32)
        landmarks = np.full((len(status), 10), np.nan, np.float32)
        embeddings: list[dict[str, np.ndarray] | None] = [None] * len(status)
        for i in live({"status": status}):
            try:
                scores[i], points, embeddings[i] = self._seen(batch[self.column][i])
                if scores[i]:
                    landmarks[i] = points
            except Undecodable as error:
                status[i], reason[i] = "unreadable", error.reason
            except Exception as error:
                status[i], reason[i] = "failed", explain(self.name, error)
        seen = {"detected": scores >= self.threshold, "detection_score": scores, "landmarks": landmarks}
        return {**batch, **seen, "embeddings": embeddings, "status": status, "reason": reason}

    def _seen(self, cell: bytes | np.ndarray) -> _Looked:
        """What is seen in a picture; in a file that this worker looked at lately, what was seen then."""
        if not isinstance(cell, bytes):
            return self._look(cell)
        key = hashlib.sha256(cell).digest()
        if key not in self._known:
            if len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = self._look(decode(cell))
        return self._known[key]

    def _look(self, crop: np.ndarray) -> _Looked:
        assert self._detector is not None
        found = find(self._detector, crop)
        vector = {name: vectors(one, [found.chip])[0] for name, one in self._recognisers.items()}
        return found.score, found.landmarks.reshape(10), vector
