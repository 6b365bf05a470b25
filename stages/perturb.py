"""The perturbation of a release: rendered faces, each moved within its bound, and by how much.

What perturbs is ``tipim`` or ``universal``; here they become a step between rendering and encoding, with the judges'
word on a face from before it, and the task that fits one universal vector on a sample of a release's own faces.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from facecrowd.stages import models, recognise
from facecrowd.stages.attributes import Predictor
from facecrowd.stages.batch import outcomes
from facecrowd.stages.channel import Channel
from facecrowd.stages.decode import decode
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import Batch, Resources, Stage, live
from facecrowd.stages.tipim import TipIm
from facecrowd.stages.universal import Gallery, Norm, Perturbation, Target, Traits, Universal, fit


class Perturb(Stage):
    """Perturbs ``rendered``.

    rendered : (S, S, 3) uint8 RGB, within the bound of what it was; None in rows that failed here
    target : int16, which of its targets a face was taken to last; -1 without targets and in rows that are not ``ok``
    linf : int16, the largest change of a value in grey levels; rms : float32, the root mean square of all 3 S^2
        changes; 0 in rows that are not ``ok``
    """

    name = "perturb"
    outputs = ("rendered", "target", "linf", "rms", "status", "reason")
    transient = ("rendered",)

    def __init__(
        self, method: TipIm | Universal, names: Sequence[str] = ("face_id",), resources: Resources | None = None
    ) -> None:
        """names : columns that together tell a face from all others, by which it gets draws of its own"""
        self.method, self.names = method, tuple(names)
        self.inputs = ("rendered", *self.names)  # type: ignore[misc]
        self.resources = resources or Resources()

    def setup(self) -> None:
        self.method.setup()

    def __call__(self, batch: Batch) -> Batch:
        status, reason = outcomes(batch)
        before = list(batch["rendered"])
        named = zip(*(batch[name] for name in self.names), strict=True)
        asked: Batch = {"rendered": before, "status": status, "reason": reason}
        done = self.method({**asked, "face_id": ["/".join(map(str, of)) for of in named]})
        linf, rms = np.zeros(len(status), np.int16), np.zeros(len(status), np.float32)
        for i in live(done):
            moved = done["rendered"][i].astype(np.int16) - before[i]
            linf[i], rms[i] = np.abs(moved).max(), np.sqrt(np.square(moved, dtype=np.float64).mean())
        target = done.get("target", np.full(len(status), -1, np.int16))
        same = {name: done[name] for name in ("rendered", "status", "reason")}
        return {**batch, **same, "target": target, "linf": linf, "rms": rms}


class Before(Stage):
    """Keeps what the judges said of a face that is perturbed next, under names of its own.

    detected_before : bool; embedding_before : (width,) float32; attributes_before : (40,) float32, where they were
        inferred
    """

    name = "before"
    inputs = ("detected", "embedding")
    outputs = ("detected_before", "embedding_before", "attributes_before")
    JUDGED = ("detected", "embedding", "attributes")

    def __call__(self, batch: Batch) -> Batch:
        return {**batch, **{f"{name}_before": batch[name] for name in self.JUDGED if name in batch}}


class Fit(Stage):
    """Fits a universal perturbation on the faces of each row.

    crops : files of FFHQ-aligned faces of one size; people : of each, who it is (a subject, or a class)
    perturbation : the ``Perturbation``

    Raises what ``universal.fit`` raises: there is nothing to go on with.
    """

    name = "fit"
    inputs = ("crops", "people")
    outputs = ("perturbation",)

    def __init__(
        self,
        key: RunKey,
        surrogates: Sequence[str | os.PathLike[str]],
        attributes: Sequence[str] = (),
        predictor: str | None = None,
        norm: Norm = "linf",
        bound: float = 8.0,
        jpeg: int | None = None,
        device: str = "cpu",
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        resources: Resources | None = None,
        delta: float = 0.0,
    ) -> None:
        """
        surrogates : recognisers to fool, as in ``recognise.load``
        attributes : of ``predictor``, to flip; none of them, and no predictor is fooled
        bound : of "linf", in grey levels; of "l2", of the root mean square of all 3 S^2 values
        jpeg : quality of the files that it is to survive
        delta : as in ``universal.fit``
        """
        self.delta = delta
        self.key, self.surrogates, self.attributes, self.predictor = key, surrogates, tuple(attributes), predictor
        self.norm, self.bound, self.device, self.folder = norm, bound, device, folder
        self.channel = Channel(jpeg=(jpeg, jpeg)) if jpeg else Channel()
        self.resources = resources or Resources()
        self._recognisers: list[recognise.Recogniser] = []
        self._traits: list[Target] = []

    def setup(self) -> None:
        cv2.setNumThreads(1)
        torch.set_num_threads(1)  # with more, the last bits could depend on how many cores there are
        kind: models.Device = "cpu" if self.device == "cpu" else "gpu"
        self._recognisers = [recognise.load(name, kind, folder=self.folder) for name in self.surrogates]
        if self.attributes and self.predictor:
            self._traits = [Traits(Predictor.load(self.predictor, self.folder, self.device), self.attributes)]

    def __call__(self, batch: Batch) -> Batch:
        found = [self._fitted(*row) for row in zip(batch["crops"], batch["people"], strict=True)]
        return {**batch, "perturbation": found}

    def _fitted(self, crops: Sequence[bytes], people: Sequence[str]) -> Perturbation:
        faces = torch.from_numpy(np.stack([decode(crop) for crop in crops])).permute(0, 3, 1, 2).contiguous()
        galleries = [Gallery.of(recogniser, faces, people) for recogniser in self._recognisers]
        targets: list[Target] = [*galleries, *self._traits]
        draws = self.key.generator("universal", "fit")
        return fit(
            targets,
            faces,
            draws,
            norm=self.norm,
            xi=radius(self.norm, self.bound, faces),
            delta=self.delta,
            channel=self.channel,
            device=self.device,
        )


def radius(norm: Norm, bound: float, faces: Tensor) -> float:
    """The bound in the units of ``universal``: of "l2" not the root of the mean but of the sum of squares."""
    return bound if norm == "linf" else bound * float(faces[0].numel()) ** 0.5
