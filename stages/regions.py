"""Identity-aware regions: which parts of a face a recogniser knows the person by, and which may therefore be changed.

J. Li et al., "Identity-Preserving Face Anonymization via Adaptively Facial Attributes Obfuscation", ACM Multimedia
2021, section 3.1. A class activation map says where in the picture the evidence for a person lies; its mean over each
of five parts ranks them; the parts least tied to the person are obfuscated, each by the attribute that stands for it.

    crop -- chip -- recogniser --> heatmap --+
      |                                      +--> mean per part --> rank --> indicator L_t
      +---- landmarks or parsing --> parts --+

The paper puts a softmax over its training subjects on the averaged last maps of a recogniser (Zhou et al., "Learning
Deep Features for Discriminative Localization", CVPR 2016): ``fit_cam``. Its heatmaps are of those subjects alone.
``ActivationMaps.grad_cam`` is of any face (Selvaraju et al., "Grad-CAM", ICCV 2017): in place of a subject's logit it
takes <f(x), c>, the embedding along the unit vector c of the person. Not the cosine, since c is by default the face's
own embedding, where the cosine has its maximum, 1, and no gradient.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facecrowd.stages import align, models
from facecrowd.stages.attributes import square
from facecrowd.stages.batch import FAILED, explain, outcomes
from facecrowd.stages.chip import grid
from facecrowd.stages.decode import Undecodable, decode
from facecrowd.stages.networks.bisenet import CLASSES, BiSeNet
from facecrowd.stages.networks.mobilefacenet import MobileFaceNet
from facecrowd.stages.obscure import FACE_AXES, FACE_CENTRE
from facecrowd.stages.stage import Batch, Resources, Stage, live

PARTS = {
    "hair": "Receding_Hairline",
    "eyebrows": "Bushy_Eyebrows",
    "eyes": "Narrow_Eyes",
    "nose": "Big_Nose",
    "lips": "Big_Lips",
}
"""The five parts and the attribute that stands for each, in the order of every array here."""

SPARED = ("hair",)
"""What the authors leave as it is: people hardly look at the hairline (section 4.6)."""

MOST = 4
"""So many parts are obfuscated at most (Tables 2 to 4)."""

THRESHOLD = 1.0
"""Adaptive: a part goes whose evidence per area is less than the whole face's."""

SIDE = 64
"""Heatmaps and masks are SIDE x SIDE, of the whole crop whatever its size."""

PRESENT = 2.0
"""A part is there if this many cells of SIDE x SIDE show it: two thousandths of a face. Eyes have some 20."""

Folder = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
Layer = Literal["middle", "last"]


# ----------------------------------------------------------------------------------------------------------- heatmaps


@dataclass(frozen=True)
class Cam:
    """A softmax over subjects on globally averaged maps. weight : (C, D) float32; subjects : the C of them."""

    weight: Tensor
    subjects: tuple[str, ...]

    def scores(self, maps: Tensor) -> Tensor:
        """Equation 1: S_c = sum_d w_dc mean_xy F_dxy. Maps (N, D, h, w) to (N, C)."""
        return maps.mean((2, 3)) @ self.weight.to(maps).T

    def activation(self, maps: Tensor, subjects: Sequence[str]) -> Tensor:
        """Equation 2: CAM_c(x, y) = sum_d w_dc F_dxy, for one subject per face. Its mean is that subject's score.

        maps : (N, D, h, w)

        Returns (N, h, w), of either sign. Raises ``ValueError`` for a subject that was not fitted.
        """
        unknown = set(subjects) - set(self.subjects)
        if unknown:
            raise ValueError(f"no class activation map of {min(unknown)}: it is none of the subjects of the head")
        chosen = self.weight[[self.subjects.index(s) for s in subjects]].to(maps)
        return torch.einsum("nd,ndhw->nhw", chosen, maps)


def fit_cam(maps: Tensor, subjects: Sequence[str], penalty: float = 1e-2, steps: int = 100) -> Cam:
    """The head that tells ``subjects`` apart by their globally averaged maps: softmax regression by L-BFGS, from zero.

    maps : (N, D, h, w) of the same layer as those that it is to explain
    penalty : times half the squared weights, of features at unit spread, is added to the mean cross-entropy

    Without a bias, as equation 1 has none. Raises ``ValueError`` unless there are two subjects, and one per face.
    """
    people = tuple(sorted(set(subjects)))
    if len(people) < 2 or len(subjects) != len(maps):
        raise ValueError(f"{len(maps)} faces of {len(subjects)} names, {len(people)} of them different, fit no head")
    features = maps.mean((2, 3)).detach().float()
    spread = features.std(0).clamp_min(1e-6)
    x, at = features / spread, {person: i for i, person in enumerate(people)}
    labels = torch.tensor([at[s] for s in subjects], device=x.device)
    weight = torch.zeros(len(people), x.shape[1], device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x @ weight.T, labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return Cam(weight.detach() / spread, people)


class ActivationMaps:
    """Where the ArcFace MobileFaceNet sees a person.

    layer : "last", the maps before its head, 7 x 7 cells of 16 px on the chip, or "middle", those of 14 x 14 cells
        before them. On the last ones a cell holds eye and brow and has seen the whole face, as the paper remarks, and
        the nose, in the middle, is twice as active as the face. Hiding the part that they call least active costs the
        cosines of three other recognisers 0.17 to 0.19, on 200 photos, a part drawn by lot 0.20; by the middle ones,
        the default, it costs 0.12 to 0.13.
    """

    def __init__(self, network: MobileFaceNet, layer: Layer = "middle", device: str = "cpu", at_once: int = 16) -> None:
        if layer not in ("middle", "last"):
            raise ValueError(f"layer is {layer!r}, not 'middle' or 'last'")
        self.network, self.layer, self.device, self.at_once = network.to(device), layer, device, at_once

    @classmethod
    def load(cls, folder: Folder = None, layer: Layer = "middle", device: str = "cpu", at_once: int = 16) -> Self:
        """Raises ``ModelError``."""
        return cls(MobileFaceNet.load(models.path("arcface-mobilefacenet", folder=folder)), layer, device, at_once)

    def chips(self, crops: Sequence[np.ndarray]) -> Tensor:
        """(S, S, 3) uint8 RGB crops in FFHQ's alignment to the network's input (N, 3, 112, 112) in [0, 1]."""
        target = align.template(align.ARCFACE_SIZE, "arcface")
        cut = [
            align.warp(c, align.similarity(align.template(c.shape[0])[None], target)[0], align.ARCFACE_SIZE, "black")
            for c in crops
        ]
        return torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).to(self.device).float() / 255

    @torch.no_grad()
    def maps(self, crops: Sequence[np.ndarray]) -> Tensor:
        """The maps of the layer, of which ``fit_cam`` makes a head: (N, D, h, w), D 256 and h 14, or 512 and 7."""
        at = 1 if self.layer == "middle" else 2
        starts = range(0, len(crops), self.at_once)
        return torch.cat([self.network.maps(self.chips(crops[i : i + self.at_once]))[at] for i in starts])

    def grad_cam(self, crops: Sequence[np.ndarray], identity: np.ndarray | None = None) -> np.ndarray:
        """Grad-CAM heatmaps of (S, S, 3) uint8 RGB crops: ReLU(sum_d a_d F_d), a_d the mean gradient of <f(x), c>.

        identity : (N, 512) the embedding c of each face's person, such as the mean of their faces', of any length;
            rows of NaN, and None, stand for the face's own

        Returns what ``heatmaps`` does.
        """
        if identity is None:
            identity = np.full((len(crops), 512), np.nan, np.float32)
        found = [np.empty((0, SIDE, SIDE), np.float32)]
        for i in range(0, len(crops), self.at_once):
            chips = self.chips(crops[i : i + self.at_once])
            known = torch.from_numpy(np.asarray(identity[i : i + self.at_once], np.float32)).to(self.device)
            found.append(heatmaps(self.attribute(chips, known)))
        return np.concatenate(found)

    def attribute(self, chips: Tensor, identity: Tensor) -> Tensor:
        """As ``grad_cam``, of chips (N, 3, 112, 112) on their own grid: (N, h, w), not yet scaled."""
        # Imported where it is used: it brings matplotlib along, a second that other users of the parts need not wait.
        from captum.attr import LayerGradCam

        def logit(x: Tensor) -> Tensor:
            out: Tensor = self.network(x)
            person = torch.where(identity.isfinite().all(1, keepdim=True), identity, out.detach())
            return (out * F.normalize(person)).sum(1)

        layer = self.network.stage2 if self.layer == "middle" else self.network.expand
        # The network is frozen; without a gradient at the input there would be none at the layer.
        x = chips.detach().requires_grad_()
        found: Tensor = LayerGradCam(logit, layer).attribute(x, relu_attributions=True)
        return found.detach()[:, 0]

    def cam(self, crops: Sequence[np.ndarray], head: Cam, subjects: Sequence[str]) -> np.ndarray:
        """The paper's heatmaps, of the positive evidence for one subject per crop. Returns what ``heatmaps`` does."""
        return heatmaps(head.activation(self.maps(crops), subjects))


def heatmaps(activation: Tensor) -> np.ndarray:
    """Maps on the chip's grid as heatmaps of the crop: (N, h, w) to (N, SIDE, SIDE) float32 in [0, 1].

    Negative evidence is none, the strongest cell of a face is 1, and what lies outside the chip is 0: the recogniser
    does not look there. A face without positive evidence is 0 all over.
    """
    own = activation.float().relu()[:, None]
    spread = F.grid_sample(own, _grid().to(own).expand(len(own), -1, -1, -1), "bilinear", "border", False)[:, 0]
    found = spread.cpu().numpy() * seen()
    most = found.max(axis=(1, 2), keepdims=True, initial=0)
    return found / np.where(most > 0, most, 1)


def seen() -> np.ndarray:
    """The cells of a heatmap that the recogniser's chip shows: (SIDE, SIDE) bool, four fifths of each axis."""
    return (_grid()[0].abs() <= 1).all(-1).numpy()


def _grid() -> Tensor:
    """Where on the chip the cells of a heatmap lie, in ``grid_sample``'s terms: (1, SIDE, SIDE, 2)."""
    chip = align.template(align.ARCFACE_SIZE, "arcface")
    return grid(align.similarity(chip[None], align.template(SIDE))[0], align.ARCFACE_SIZE, SIDE)


# -------------------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class Masks:
    """What the cells of N heatmaps show, as shares in [0, 1]; cells that the recogniser does not see are 0.

    parts : (N, 5, SIDE, SIDE) float32, in the order of ``PARTS``
    face : (N, SIDE, SIDE) float32, skin and parts, without hair
    """

    parts: np.ndarray
    face: np.ndarray


class Finder(Protocol):
    """Finds the parts in FFHQ-aligned (S, S, 3) uint8 RGB crops."""

    def find(self, crops: Sequence[np.ndarray]) -> Masks: ...


def _masks(parts: Sequence[np.ndarray], face: Sequence[np.ndarray]) -> Masks:
    """Masks of any size, (5, S, S) and (S, S) per crop, on the heatmaps' grid."""

    def small(mask: np.ndarray) -> np.ndarray:
        return cv2.resize(mask.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA) * seen()

    n = len(parts)
    five = np.array([[small(mask) for mask in five] for five in parts], np.float32).reshape(n, len(PARTS), SIDE, SIDE)
    return Masks(five, np.array([small(mask) for mask in face], np.float32).reshape(n, SIDE, SIDE))


class Parsing:
    """Parts by what BiSeNet says of each pixel. Eyes behind glasses are glasses to it, and so absent.

    It needs faces of 512 px to find eyes and brows: of crops of 256 px given as they are it misses half of the eyes.
    Only what the recogniser sees is parsed.
    """

    SIZE, MARGIN = 512, 48
    SHOWN = (("hair",), ("left brow", "right brow"), ("left eye", "right eye"), ("nose",), ("upper lip", "lower lip"))
    """The parser's classes of each part."""
    FACE = ("skin", *(name for part in SHOWN[1:] for name in part), "eyeglasses", "mouth")

    def __init__(self, network: BiSeNet, device: str = "cpu", at_once: int = 4) -> None:
        self.network, self.device, self.at_once = network.to(device), device, at_once

    @classmethod
    def load(cls, folder: Folder = None, device: str = "cpu", at_once: int = 4) -> Self:
        """Raises ``ModelError``."""
        return cls(BiSeNet.load(models.path("bisenet", folder=folder)), device, at_once)

    @torch.inference_mode()
    def find(self, crops: Sequence[np.ndarray]) -> Masks:
        """See ``Finder``."""
        inner = slice(self.MARGIN, self.SIZE - self.MARGIN)
        classes = np.zeros((len(crops), self.SIZE, self.SIZE), np.uint8)
        for i in range(0, len(crops), self.at_once):
            large = [
                cv2.resize(c, (self.SIZE, self.SIZE), interpolation=_interpolation(c, self.SIZE))[inner, inner]
                for c in crops[i : i + self.at_once]
            ]
            x = torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2).to(self.device).float() / 255
            classes[i : i + self.at_once, inner, inner] = self.network.parse(x).argmax(1).cpu().numpy()

        def showing(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
            return np.isin(labels, [CLASSES.index(name) for name in names])

        parts = [np.stack([showing(labels, names) for names in self.SHOWN]) for labels in classes]
        return _masks(parts, [showing(labels, self.FACE) for labels in classes])


class Landmarks:
    """Parts as the hulls of InsightFace's 106 landmarks; each is always there, also behind glasses or hair.

    The hair has no landmarks: it is what lies above the brows, as wide as the face, and holds forehead and hairline.
    """

    OUTLINE = range(33)
    BROWS, EYES = (range(43, 52), range(97, 106)), (range(33, 43), range(87, 97))
    NOSE, LIPS = (range(72, 87),), (range(52, 72),)
    SIZE, ROOM = 192, 1.5
    """The network looks at a square around the face with half as much room again, as InsightFace cuts it."""

    def __init__(self, file: Path, threads: int = 1) -> None:
        self.model: Any = models.load(file, "cpu", threads)

    @classmethod
    def load(cls, folder: Folder = None, threads: int = 1) -> Self:
        """Raises ``ModelError``."""
        return cls(models.path("landmarks-2d106", folder=folder), threads)

    def points(self, crop: np.ndarray) -> np.ndarray:
        """The (106, 2) landmarks of an (S, S, 3) uint8 RGB crop in FFHQ's alignment, in pixels."""
        size = crop.shape[0]
        scale = self.SIZE / (2 * self.ROOM * max(FACE_AXES) * size)
        shift = self.SIZE / 2 - scale * size * np.array(FACE_CENTRE)
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        x = align.warp(crop, matrix, self.SIZE, "black").transpose(2, 0, 1)[None].astype(np.float32)
        (found,) = self.model.session.run(None, {self.model.input_name: x})
        return align.apply(align.invert(matrix), (found.reshape(-1, 2) + 1) * (self.SIZE / 2))

    def find(self, crops: Sequence[np.ndarray]) -> Masks:
        """See ``Finder``."""
        parts, face = [], []
        # Hulls of a few pixels need more of them than small crops have.
        size = 512
        for crop in crops:
            points = self.points(crop) * (size / crop.shape[0])
            left, right = points[self.OUTLINE, 0].min(), points[self.OUTLINE, 0].max()
            brow = min(points[each, 1].min() for each in self.BROWS)
            hair = np.zeros((size, size), np.uint8)
            hair[: max(0, int(brow)), max(0, int(left)) : max(0, int(right))] = 1
            others = (self.BROWS, self.EYES, self.NOSE, self.LIPS)
            parts.append(np.stack([hair, *(_hulls(points, groups, size) for groups in others)]))
            face.append(_hulls(points, (range(106),), size))
        return _masks(parts, face)


def _hulls(points: np.ndarray, groups: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """The convex hulls of groups of points: (size, size) uint8."""
    mask = np.zeros((size, size), np.uint8)
    for group in groups:
        cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(points[list(group)]).astype(np.int32)), 1)
    return mask


def _interpolation(crop: np.ndarray, size: int) -> int:
    return cv2.INTER_AREA if crop.shape[0] > size else cv2.INTER_CUBIC


FINDERS = {"landmarks": Landmarks, "parsing": Parsing}


# ---------------------------------------------------------------------------------------------------------- indicator


def activation(heatmaps: np.ndarray, masks: Masks) -> np.ndarray:
    """How active each part is: the heatmap's mean over the part, in units of its mean over the face.

    heatmaps : (N, SIDE, SIDE)

    Returns (N, 5) float32, at least 0: 1 is as much evidence per area as the whole face has. NaN for a part that is
    absent, and for all parts where the face is, or its heatmap is 0.
    """
    heat = np.asarray(heatmaps, np.float64)
    area, face = masks.parts.sum((2, 3), dtype=np.float64), masks.face.sum((1, 2), dtype=np.float64)
    mean = (masks.parts * heat[:, None]).sum((2, 3)) / np.where(area >= PRESENT, area, np.nan)
    whole = (masks.face * heat).sum((1, 2)) / np.where(face >= PRESENT, face, np.nan)
    return (mean / np.where(whole > 0, whole, np.nan)[:, None]).astype(np.float32)


def ranking(activation: np.ndarray) -> np.ndarray:
    """Each part's rank within its face, 0 the least active: (N, 5) to (N, 5) int; -1 for NaN, ties keep their order."""
    order = np.argsort(activation, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    return np.where(np.isnan(activation), -1, rank)


def indicator(
    activation: np.ndarray,
    parts: int | Literal["adaptive"] = "adaptive",
    threshold: float = THRESHOLD,
    spare: Sequence[str] = SPARED,
) -> np.ndarray:
    """The attribute indicator L_t: which parts to obfuscate, those least tied to the identity.

    activation : (N, 5), see ``activation``
    parts : how many, 1 to 4; of a face that shows fewer, all; or "adaptive": those below ``threshold``, but at least
        the least active and at most 4
    threshold : in units of the face's mean; with a higher one, no fewer parts go
    spare : parts that are never obfuscated

    Returns (N, 5) bool. An absent part (NaN) is never obfuscated. Raises ``ValueError`` for settings that mean nothing.
    """
    check(parts, threshold, spare)
    open_ = np.array([part not in spare for part in PARTS])
    rank = ranking(np.where(open_, activation, np.nan))
    there = rank >= 0
    if parts == "adaptive":
        below = there & (activation < threshold) & (rank < MOST)
        return below | (rank == 0)
    return there & (rank < parts)


def check(parts: int | Literal["adaptive"], threshold: float, spare: Sequence[str]) -> None:
    """Raises ``ValueError`` for settings of ``indicator`` that mean nothing."""
    unknown = [part for part in spare if part not in PARTS]
    if unknown:
        raise ValueError(f"spare names {unknown[0]!r}, which is none of {', '.join(PARTS)}")
    most = min(MOST, len(PARTS) - len(set(spare)))
    if most < 1 or not threshold > 0:
        raise ValueError(f"threshold is {threshold} and {len(set(spare))} of 5 parts are spared: nothing is left to do")
    if parts != "adaptive" and (type(parts) is not int or not 1 <= parts <= most):
        others = f" where {', '.join(spare)} are spared" if spare else ""
        raise ValueError(f"parts is {parts!r}, but must be 'adaptive' or 1 to {most}{others}")


def overlay(crop: np.ndarray, heatmap: np.ndarray, strength: float = 0.45) -> np.ndarray:
    """The heatmap over the crop, blue where it is 0 to red where it is 1: (S, S, 3) uint8 RGB both ways."""
    size = crop.shape[0]
    large = cv2.resize(np.clip(heatmap, 0, 1).astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(np.rint(large * 255).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    return np.rint((1 - strength) * crop + strength * colours).astype(np.uint8)


class Regions(Stage):
    """Finds what to obfuscate in a batch's faces: ``column`` holds (S, S, 3) uint8 RGB crops, or their encoded bytes.

    activation : (5,) float32, see ``activation``; NaN in rows that are not ``ok``
    obfuscate : (5,) bool, see ``indicator``; all false in rows that are not ``ok``

    A face in which none of the parts that may be obfuscated is found is a row that failed.
    """

    name = "regions"

    def __init__(
        self,
        parts: int | Literal["adaptive"] = "adaptive",
        threshold: float = THRESHOLD,
        spare: Sequence[str] = SPARED,
        finder: Literal["landmarks", "parsing"] = "landmarks",
        layer: Layer = "middle",
        column: str = "crop",
        identity: str | None = None,
        folder: Folder = None,
        threads: int = 1,
        at_once: int = 16,
        device: str = "cpu",
        resources: Resources | None = None,
    ) -> None:
        """identity : column of (512,) embeddings of each face's person, such as the mean of theirs; by default, and
        where a row has None or NaN, the face's own. Raises ``ValueError`` for settings that mean nothing.
        """
        check(parts, threshold, spare)
        if finder not in FINDERS:
            raise ValueError(f"finder is {finder!r}, not one of {', '.join(FINDERS)}")
        self.parts, self.threshold, self.spare, self.finder, self.layer = parts, threshold, tuple(spare), finder, layer
        self.column, self.identity, self.folder = column, identity, folder
        self.threads, self.at_once, self.device = threads, at_once, device
        self.inputs = (column, *([identity] if identity else []))  # type: ignore[misc]
        self.outputs = ("activation", "obfuscate", "status", "reason")  # type: ignore[misc]
        self.resources = resources or Resources()
        self._maps: ActivationMaps | None = None
        self._finder: Finder | None = None

    def setup(self) -> None:
        torch.set_num_threads(self.threads)
        self._maps = ActivationMaps.load(self.folder, self.layer, self.device, self.at_once)
        if self.finder == "parsing":
            self._finder = Parsing.load(self.folder, self.device)
        else:
            self._finder = Landmarks.load(self.folder, self.threads)

    def __call__(self, batch: Batch) -> Batch:
        if self._maps is None:
            self.setup()
        assert self._maps is not None
        assert self._finder is not None
        status, reason = outcomes(batch)
        found = np.full((len(status), len(PARTS)), np.nan, np.float32)
        chosen = np.zeros((len(status), len(PARTS)), bool)
        crops: dict[int, np.ndarray] = {}
        person: dict[int, np.ndarray] = {}
        for i in live({"status": status}):
            cell = batch[self.column][i]
            try:
                crops[i] = square(decode(cell) if isinstance(cell, bytes) else cell)
                person[i] = _vector(batch[self.identity][i] if self.identity else None)
            except Undecodable as error:
                status[i], reason[i] = "unreadable", error.reason
            except ValueError as error:
                status[i], reason[i] = FAILED, explain(self.name, error)
        positions = list(person)
        for start in range(0, len(positions), self.at_once):
            rows = positions[start : start + self.at_once]
            try:
                some = [crops[i] for i in rows]
                heat = self._maps.grad_cam(some, np.stack([person[i] for i in rows]))
                active = activation(heat, self._finder.find(some))
            except Exception as error:
                status[rows], reason[rows] = FAILED, explain(self.name, error)
                continue
            targets = indicator(active, self.parts, self.threshold, self.spare)
            for i, values, target in zip(rows, active, targets, strict=True):
                if target.any():
                    found[i], chosen[i] = values, target
                else:
                    status[i], reason[i] = FAILED, f"{self.name}: no part that may be obfuscated was found in the face"
        return {**batch, "activation": found, "obfuscate": chosen, "status": status, "reason": reason}


def _vector(cell: Any) -> np.ndarray:
    """An embedding (512,) float32; NaN for None."""
    if cell is None:
        return np.full(512, np.nan, np.float32)
    vector = np.asarray(cell, np.float32)
    if vector.shape != (512,):
        raise ValueError(f"not an embedding of 512 numbers but {vector.shape}")
    return vector
