"""Embeddings: one unit vector per face, by a recogniser on its 112² crop (through InsightFace).

ArcFace: Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import cv2
import numpy as np

from facecrowd.stages import models
from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.stage import Batch, Resources, Stage, live


class Recogniser:
    """A recogniser: (112, 112, 3) uint8 RGB crops in ArcFace's alignment to unit vectors of ``width`` numbers."""

    def __init__(
        self,
        name: str | os.PathLike[str] = "arcface-mobilefacenet",
        device: models.Device = "cpu",
        threads: int = 1,
        at_once: int = 1,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    ) -> None:
        """``name`` as in ``models.resolve``. ``at_once`` faces go through the network together: on a CPU one at a time
        is fastest (measured 9.6 ms a face against 16 ms at 32). Raises ``ModelError``.
        """
        file = models.resolve(name, "recognition", folder=folder)
        self.model = models.load(file, device, threads)
        if getattr(self.model, "taskname", None) != "recognition":
            raise models.ModelError(f"{file} is not a face recogniser that InsightFace can run")
        self.at_once = at_once
        self.size: tuple[int, int] = self.model.input_size
        self.width = int(self.model.output_shape[-1])

    def embed(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """The embeddings of ``crops``: (n, width) float32 of length 1."""
        out = np.empty((len(crops), self.width), np.float32)
        for start in range(0, len(crops), self.at_once):
            blob = np.stack([self._planes(crop) for crop in crops[start : start + self.at_once]])
            out[start : start + self.at_once] = self.model.forward(blob)
        length = np.linalg.norm(out, axis=1, keepdims=True)
        return out / np.maximum(length, np.finfo(np.float32).tiny)

    def _planes(self, crop: np.ndarray) -> np.ndarray:
        """(3, h, w) float32 RGB in [0, 255], at the size the network takes."""
        if crop.shape[1::-1] != self.size:
            crop = cv2.resize(crop, self.size, interpolation=cv2.INTER_LINEAR)
        return np.ascontiguousarray(crop.transpose(2, 0, 1), dtype=np.float32)


class Embed(Stage):
    """Embeds the aligned faces of a batch.

    embedding : (512,) float32 of length 1 (other recognisers: their own width); NaN in rows that are not ``ok``
    """

    name = "embed"
    inputs = ("arcface",)
    outputs = ("embedding", "status", "reason")

    def __init__(
        self,
        recogniser: str | os.PathLike[str] = "arcface-mobilefacenet",
        device: models.Device = "cpu",
        threads: int = 1,
        at_once: int = 1,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        resources: Resources | None = None,
    ) -> None:
        """See ``Recogniser``."""
        self.recogniser, self.device, self.threads, self.at_once = recogniser, device, threads, at_once
        self.folder = folder
        self.resources = resources or Resources()
        self._recogniser: Recogniser | None = None

    def setup(self) -> None:
        cv2.setNumThreads(1)
        self._recogniser = Recogniser(self.recogniser, self.device, self.threads, self.at_once, self.folder)

    def __call__(self, batch: Batch) -> Batch:
        if self._recogniser is None:
            self.setup()
        assert self._recogniser is not None
        status, reason = outcomes(batch)
        embeddings = np.full((len(status), self._recogniser.width), np.nan, np.float32)
        step = self.at_once
        positions = live({"status": status})
        for start in range(0, len(positions), step):
            chosen = positions[start : start + step]
            try:
                embeddings[chosen] = self._recogniser.embed([batch["arcface"][i] for i in chosen])
            except Exception as error:
                status[chosen], reason[chosen] = "failed", explain(self.name, error)
        return {**batch, "embedding": embeddings, "status": status, "reason": reason}
