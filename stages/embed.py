"""Embeddings: one unit vector per face, by a recogniser of ``recognise.load`` on its 112² crop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from facecrowd.stages import models
from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.stage import Batch, Resources, Stage, live

if TYPE_CHECKING:
    from facecrowd.stages.recognise import Recogniser


def vectors(recogniser: Recogniser, crops: Sequence[np.ndarray]) -> np.ndarray:
    """The embeddings of ``crops``, each (112, 112, 3) uint8 RGB in ArcFace's alignment: (N, width) float32 of length 1.

    Raises ``ValueError`` for crops of another shape.
    """
    import torch

    planes = np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32, order="C") / 255
    return recogniser.embed(torch.from_numpy(planes)).numpy()


class Embed(Stage):
    """Embeds the aligned faces of a batch.

    embedding : (width,) float32 of length 1, as wide as the recogniser makes it; NaN in rows that are not ``ok``
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
        """``recogniser`` and ``threads`` as in ``recognise.load``; ``at_once`` faces are handed to it together."""
        self.recogniser, self.device, self.threads, self.at_once = recogniser, device, threads, at_once
        self.folder = folder
        self.resources = resources or Resources()
        self._recogniser: Recogniser | None = None

    def setup(self) -> None:
        # These take a second to import, which the process that only plans need not spend.
        import torch

        from facecrowd.stages import recognise

        cv2.setNumThreads(1)
        torch.set_num_threads(self.threads)
        self._recogniser = recognise.load(
            self.recogniser, self.device, gradients=False, threads=self.threads, folder=self.folder
        )

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
                embeddings[chosen] = vectors(self._recogniser, [batch["arcface"][i] for i in chosen])
            except Exception as error:
                status[chosen], reason[chosen] = "failed", explain(self.name, error)
        return {**batch, "embedding": embeddings, "status": status, "reason": reason}
