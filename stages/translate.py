"""Translating attributes: a face and what it shall show, to a face that shows it.

    stargan   a network made for it (``networks/stargan.py``): the face's own pixels, changed where the attribute is
    latent    the face's latent (``inversion``), moved along attribute directions (``edits``): every pixel is generated

Both ask the predictor that steers what a face shows. A first pass changes every attribute that differs from what is
wanted; another follows only for faces and attributes that the predictor says were missed; of the passes the one with
the most agreement is kept. What is wanted and already there is left alone; by ``stargan`` so is the whole face that
shows it all, while ``latent`` renders every face at least once.

AnonymousNet (Li and Lin, 2019), stage III. With ``opposite``, adaptive attribute obfuscation (Li et al., ACM Multimedia
2021, section 3.2): not given values, but the opposite of what the face shows, in the parts that ``regions`` chose.

What the judge and a person see may be another matter, and is measured. The picture depends on the original.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facecrowd.stages import edits, regions
from facecrowd.stages.attributes import STEER, Predictor, pictures
from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.inversion import Networks, precision, search
from facecrowd.stages.networks import stargan
from facecrowd.stages.places import HAIR_COLOURS
from facecrowd.stages.searching import whole
from facecrowd.stages.stage import Batch, Resources, Stage, live

SHIPPED = ("stargan", "stargan-identity")
LATENT = "latent"
PASSES = 2


@dataclass(frozen=True)
class Translated:
    """pictures : (N, 3, S, S) in [0, 1]; realised : (N, 40) int8, 1 the predictor sees what is wanted, 0 it does not,
    -1 nothing was wanted; passes : (N,) int8, how many it took, 0 where nothing had to change or could and the face is
    as it was"""

    pictures: Tensor
    realised: np.ndarray
    passes: np.ndarray


class Translator(Protocol):
    """One pass over faces.

    attributes : what it can change; generates : whether every pixel is made anew, so that a face that is to stay as it
    is has to be made too
    """

    attributes: tuple[str, ...]
    generates: bool

    def change(self, x: Tensor, values: np.ndarray, target: np.ndarray) -> Tensor:
        """x (N, 3, S, S) in [0, 1]; values and target (N, 40) int8, what the faces show and what they shall show."""
        ...


class Network:
    """StarGAN as a translator. ``strength`` : of its change, as its weights' file says; 1 is what was trained."""

    generates = False

    def __init__(self, generator: stargan.Generator, columns: Sequence[str], half: bool = False) -> None:
        self.generator, self.half = generator, half
        self.strength = float(generator.about.get("strength", 1.0))
        self.attributes = generator.shape.attributes
        self.at = [list(columns).index(name) for name in self.attributes]

    @torch.inference_mode()
    def change(self, x: Tensor, values: np.ndarray, target: np.ndarray) -> Tensor:
        before, after = (torch.from_numpy(v[:, self.at]).to(x) for v in (values, target))
        with precision(x.device, self.half):
            return self.generator.translate(x, self.generator.condition(before, after), self.strength)


class Latent:
    """Latent search and attribute directions as a translator; the directions find their own strength."""

    generates = True

    def __init__(self, networks: Networks, directions: edits.Directions, predictor: Predictor, steps: int) -> None:
        self.networks, self.directions, self.predictor, self.steps = networks, directions, predictor, steps
        self.attributes = tuple(name for name in predictor.attributes if name in directions.names)

    def change(self, x: Tensor, values: np.ndarray, target: np.ndarray) -> Tensor:
        small = F.interpolate(x, (128, 128), mode="area") if x.shape[-1] != 128 else x
        n = self.networks
        start = n.start(small)
        found = start
        if self.steps or start is None:
            found = search(
                n.generator, n.backbone, small, start=start, steps=self.steps, space=n.space, half=n.half
            ).latent
        assert found is not None
        wanted = np.where(values != target, target, -1)
        edited = edits.realise(n.generator, self.predictor, self.directions, found, wanted).latent
        with torch.inference_mode(), precision(x.device, n.half):
            return edits.pictures(n.generator, edited, x.shape[-1], len(x))


def targets(values: np.ndarray, wanted: np.ndarray, attributes: Sequence[str]) -> np.ndarray:
    """(N, 40) int8: what faces shall show: what is wanted, else what they show; of hair colours one at a time."""
    out = np.where(wanted >= 0, wanted, values).astype(np.int8)
    hair = [i for i, name in enumerate(attributes) if name in HAIR_COLOURS]
    asked = (wanted[:, hair] == 1).any(axis=1)
    out[np.ix_(asked, hair)] = np.maximum(wanted[np.ix_(asked, hair)], 0)
    return out


def opposites(values: np.ndarray, obfuscate: np.ndarray, attributes: Sequence[str]) -> np.ndarray:
    """(N, 40) int8 wishes: the opposite of what faces show in the attribute of each part that is obfuscated, (N, 5)."""
    wanted = np.full(values.shape, -1, np.int8)
    for part, name in enumerate(regions.PARTS.values()):
        at = list(attributes).index(name)
        wanted[:, at] = np.where(obfuscate[:, part], 1 - values[:, at], -1)
    return wanted


def translate(
    translator: Translator,
    predictor: Predictor,
    x: Tensor,
    wanted: np.ndarray,
    values: np.ndarray | None = None,
    passes: int = PASSES,
) -> Translated:
    """Faces that show what is wanted, as far as the translator can.

    x : (N, 3, S, S) RGB in [0, 1]; wanted : (N, 40) int8, 1 and 0 wanted, -1 free; values : (N, 40) int8, what the
    faces show by the predictor, looked at where not given
    """
    values = _values(predictor, x) if values is None else values
    target = targets(values, wanted, predictor.attributes)
    able = np.isin(predictor.attributes, translator.attributes)
    best, taken = x.clone(), np.zeros(len(x), np.int8)
    missed = (wanted >= 0) & (values != wanted)
    now, seen = x, values
    for number in range(1, passes + 1):
        off = ((seen != target) & (wanted >= 0) & able).any(axis=1)
        rows = np.flatnonzero(off | (translator.generates and number == 1))
        if not len(rows):
            break
        # Only what was asked for is pushed again; what else moved is left to the best pass.
        goal = np.where((wanted >= 0) | (number == 1), target, seen)[rows]
        made = translator.change(now[rows], seen[rows], np.where(able, goal, seen[rows]))
        look = _values(predictor, made)
        short = (wanted[rows] >= 0) & (look != wanted[rows])
        better = short.sum(axis=1) < missed[rows].sum(axis=1)
        # A first pass that reaches nothing more is still shown: half a change hides more than none.
        better |= number == 1
        won = rows[better]
        best[won], missed[won], taken[won] = made[better], short[better], number
        now, seen = now.clone(), seen.copy()
        now[rows], seen[rows] = made, look
    realised = np.where(wanted >= 0, ~missed, -1).astype(np.int8)
    return Translated(best, realised, taken)


def _values(predictor: Predictor, x: Tensor) -> np.ndarray:
    with torch.inference_mode():
        return predictor.values(torch.sigmoid(predictor.logits(x)).float().cpu().numpy())


def load(
    name: str | os.PathLike[str],
    predictor: Predictor,
    *,
    steps: int = 10,
    device: str = "cpu",
    half: bool = False,
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
) -> Translator:
    """``stargan``, ``stargan-identity``, a .safetensors file of ``facecrowd train stargan``, or ``latent``
    (``steps`` of search from the encoder's guess). Raises ``ModelError``."""
    if name == LATENT:
        networks = Networks.load("encoder", device, folder, half=half)
        return Latent(networks, edits.Directions.load().to(device), predictor, steps)
    return Network(stargan.Generator.load(name).to(device), predictor.attributes, half)


class Translate(Stage):
    """Translates the crops of a batch.

    crop : (S, S, 3) uint8 RGB
    wanted : dict of attribute to bool, or (40,) int8 in the predictor's order, 1 and 0 wanted, -1 free; or, with
        ``opposite``, obfuscate : (5,) bool, the parts whose attribute is turned round
    rendered : (size, size, 3) uint8 RGB; None in rows that are not ``ok``
    realised : (40,) int8, 1 the predictor agrees, 0 it does not, -1 nothing was wanted
    passes : int8, passes taken; 0 where the face was left as it was (never by ``latent``)
    """

    name = "translate"
    outputs = ("rendered", "realised", "passes", "status", "reason")
    transient = ("rendered",)

    def __init__(
        self,
        translator: str | os.PathLike[str] = SHIPPED[0],
        predictor: str | os.PathLike[str] = STEER,
        *,
        opposite: bool = False,
        passes: int = PASSES,
        steps: int = 10,
        size: int = 256,
        at_once: int = 16,
        device: str = "cpu",
        half: bool = False,
        threads: int = 1,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        resources: Resources | None = None,
    ) -> None:
        """See ``load`` and ``translate``; size : side of what is rendered, in px."""
        if passes < 1:
            raise ValueError(f"translate: passes is {passes}, but must be 1 or more")
        self.inputs = ("crop", "obfuscate" if opposite else "wanted")  # type: ignore[misc]
        self.translator, self.predictor, self.opposite = translator, predictor, opposite
        self.passes, self.steps, self.size, self.at_once = passes, steps, size, at_once
        self.device, self.half, self.threads, self.folder = device, half, threads, folder
        self.resources = resources or Resources()
        self.networks: tuple[Translator, Predictor] | None = None

    def setup(self) -> None:
        cv2.setNumThreads(1)
        torch.set_num_threads(self.threads)
        predictor = Predictor.load(self.predictor, self.folder, self.device)
        self.networks = (
            load(self.translator, predictor, steps=self.steps, device=self.device, half=self.half, folder=self.folder),
            predictor,
        )

    def __call__(self, batch: Batch) -> Batch:
        if self.networks is None:
            self.setup()
        assert self.networks is not None
        predictor = self.networks[1]
        status, reason = outcomes(batch)
        rendered: list[np.ndarray | None] = [None] * len(status)
        realised = np.full((len(status), len(predictor.attributes)), -1, np.int8)
        passes = np.zeros(len(status), np.int8)
        rows = whole(batch, status, reason, self.name)
        asked: dict[int, Any] = {}
        for i in rows:
            try:
                asked[int(i)] = self._asked(batch[self.inputs[1]][i], predictor)
            except (ValueError, TypeError) as error:
                status[i], reason[i] = "failed", explain(self.name, error)
        rows = live({"status": status})
        for first in range(0, len(rows), self.at_once):
            chosen = rows[first : first + self.at_once]
            try:
                found = self._translated([batch["crop"][i] for i in chosen], [asked[int(i)] for i in chosen])
                shown = (found.pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
                realised[chosen], passes[chosen] = found.realised, found.passes
                for n, i in enumerate(chosen):
                    rendered[i] = shown[n]
            except Exception as error:
                status[chosen], reason[chosen] = "failed", explain(self.name, error)
        out = {"rendered": rendered, "realised": realised, "passes": passes}
        return {**batch, **out, "status": status, "reason": reason}

    def _asked(self, cell: Any, predictor: Predictor) -> np.ndarray:
        if not self.opposite:
            return edits.wishes(cell, predictor.attributes, 1)[0]
        parts = np.asarray(cell, bool)
        if parts.shape != (len(regions.PARTS),):
            raise ValueError(f"obfuscate has the shape {parts.shape}, but must have {(len(regions.PARTS),)}")
        return parts

    def _translated(self, crops: list[np.ndarray], asked: list[np.ndarray]) -> Translated:
        assert self.networks is not None
        translator, predictor = self.networks
        x = pictures(crops, self.size).to(self.device)
        values = _values(predictor, x)
        wanted = np.stack(asked)
        if self.opposite:
            wanted = opposites(values, wanted, predictor.attributes)
        return translate(translator, predictor, x, wanted, values, self.passes)
