"""What translators make of a set of faces, for evaluations and sheets; kept like the generator's in ``renditions``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from facecrowd.jobs.labelled import Faces
from facecrowd.jobs.renditions import STEER, WORK, Networks, by_chunk, crowds, embeddings
from facecrowd.stages import models, regions, translate
from facecrowd.stages.attributes import ATTRIBUTES, JUDGE, Predictor
from facecrowd.stages.attributes import STEER as STEER_PREDICTOR
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode
from facecrowd.stages.networks import stargan

SIZE = 128
"""The papers' pictures have this side."""

PLANNED_K = 5


class Makers:
    """What makes translated pictures, each loaded when it is first needed. ``networks`` : those of other methods"""

    def __init__(self, networks: Networks, work: Path = WORK) -> None:
        self.networks, self.work = networks, work
        self.translators: dict[str, translate.Translator] = {}

    @cached_property
    def steer(self) -> Predictor:
        return Predictor.load(STEER_PREDICTOR, self.networks.folder, str(self.networks.device))

    @cached_property
    def judge(self) -> Predictor:
        return Predictor.load(JUDGE, self.networks.folder, str(self.networks.device))

    @cached_property
    def maps(self) -> regions.ActivationMaps:
        return regions.ActivationMaps.load(self.networks.folder, device=str(self.networks.device))

    @cached_property
    def landmarks(self) -> regions.Landmarks:
        return regions.Landmarks.load(self.networks.folder)

    def translator(self, name: str) -> translate.Translator:
        if name not in self.translators:
            device, half = str(self.networks.device), self.networks.half
            self.translators[name] = translate.load(
                name, self.steer, device=device, half=half, folder=self.networks.folder
            )
        return self.translators[name]

    def about(self, name: str) -> dict[str, Any]:
        """What a translator's weights say of themselves."""
        made = self.translator(name)
        return made.generator.about if isinstance(made, translate.Network) else {}

    def told(self, name: str) -> list[str]:
        """The hashes of what a translator is made of."""
        own = self.networks.told if name == translate.LATENT else [models.sha256(stargan.locate(name))]
        return [*own, self.steer.sha256]

    def probabilities(self, crops: Sequence[bytes], judge: bool) -> np.ndarray:
        """(N, 40), of encoded pictures."""
        predictor = self.judge if judge else self.steer

        def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
            return {"p": predictor.predict([decode(crop) for crop in some])}

        return by_chunk(crops, self.work, "attributes", predictor.sha256, make)["p"]

    def values(self, crops: Sequence[bytes], judge: bool = False) -> np.ndarray:
        """(N, 40) int8."""
        return (self.judge if judge else self.steer).values(self.probabilities(crops, judge))

    def translated(self, name: str, crops: Sequence[bytes], wanted: np.ndarray, size: int = SIZE) -> list[bytes]:
        """Faces that show what is wanted, (N, 40) int8, as far as a translator can: JPEG files, ``size`` px a side."""
        rows = {hashlib.sha256(crop).digest(): i for i, crop in enumerate(crops)}

        def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
            at = [rows[hashlib.sha256(crop).digest()] for crop in some]
            found = translate.translate(self.translator(name), self.steer, self.networks.pixels(some, size), wanted[at])
            return {"image": (found.pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()}

        strength = getattr(self.translator(name), "strength", None)
        told = [self.told(name), strength, hashlib.sha256(wanted.tobytes()).hexdigest(), size, translate.PASSES]
        pictures = by_chunk(crops, self.work, "translated", told, make, 32)["image"]
        return [encode(picture, 95) for picture in pictures]

    def activations(self, crops: Sequence[bytes]) -> np.ndarray:
        """(N, 5), how tied each part is to the identity."""

        def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
            pictures = [decode(crop) for crop in some]
            return {"a": regions.activation(self.maps.grad_cam(pictures), self.landmarks.find(pictures))}

        return by_chunk(crops, self.work, "activation", "middle, landmarks", make)["a"]

    def chosen(self, crops: Sequence[bytes], parts: Any) -> np.ndarray:
        """(N, 5) bool, the parts to obfuscate; the hairline never, as in the paper."""
        return regions.indicator(self.activations(crops), parts)

    def obfuscated(self, name: str, crops: Sequence[bytes], parts: Any, size: int = SIZE) -> list[bytes]:
        """Faces whose least identifying parts show the opposite attribute."""
        wanted = translate.opposites(self.values(crops), self.chosen(crops, parts), ATTRIBUTES)
        return self.translated(name, crops, wanted, size)


def planned(makers: Makers, faces: Faces, k: int = PLANNED_K) -> np.ndarray:
    """(N, 40) int8 wishes: of each attribute, what most of the people of a class of k show; -1 nowhere."""
    vectors = embeddings(makers.networks, faces.crop, [STEER], makers.work)[STEER]
    by = crowds(faces.subject, vectors, k)
    values = makers.values(faces.crop)
    of = by.ids[by.person]
    wanted = np.empty_like(values)
    for number in range(by.classes):
        wanted[of == number] = values[of == number].mean(axis=0) >= 0.5
    return wanted
