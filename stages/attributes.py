"""Facial attributes: for every aligned face, the probability of each of CelebA's 40.

A predictor is a backbone, a linear head (or forests) on what the backbone says of the face, and a calibration. Two are
used at a time, which share neither backbone nor training subjects: ``STEER`` infers the attributes of the originals and
steers rendering, ``JUDGE`` looks at the released pixels. Weights trained here lie in ``stages/weights``; the pretrained
backbones come through the model registry.

    crop (S, S, 3) -- resize --> backbone -- 4 x 4 means of its maps --> head --> logit -- / temperature --> probability

The attributes: Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015. GoogLeNet and one random forest per
attribute: Li and Lin, AnonymousNet, 2019, section 4, stage I.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from facecrowd.stages import models
from facecrowd.stages.batch import FAILED, explain, outcomes
from facecrowd.stages.decode import Undecodable, decode
from facecrowd.stages.forests import Forests
from facecrowd.stages.networks.bisenet import BiSeNet
from facecrowd.stages.networks.googlenet import GoogLeNet
from facecrowd.stages.networks.mobilefacenet import MobileFaceNet
from facecrowd.stages.networks.mobilenetv2 import MobileNetV2
from facecrowd.stages.stage import Batch, Resources, Stage, live

ATTRIBUTES = (
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
)
"""In the order of the official table."""

STEER, JUDGE = "attributes-arcface", "attributes-bisenet"
SHIPPED = (STEER, JUDGE, "attributes-googlenet", "googlenet-forest")
"""The predictors in ``stages/weights``, by name."""

GRID = 4
"""Maps are averaged over this many cells each way."""

BACKBONES: dict[str, Callable[[Path], nn.Module]] = {
    "arcface-mobilefacenet": MobileFaceNet.load,
    "bisenet": BiSeNet.load,
    "mobilenetv2": MobileNetV2.load,
}
"""The pretrained ones, by their names in the model registry."""


class PredictorError(models.ModelError):
    """A file is no attribute predictor of this version."""


class Descriptor(nn.Module):
    """What a backbone says of a face: the 4 x 4 means of its maps, or GoogLeNet's own features.

    Differentiable: x (N, 3, H, W), RGB in [0, 1], FFHQ-aligned, of any size, to (N, D) float32.
    """

    def __init__(self, backbone: nn.Module, size: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.size = size or int(backbone.SIZE)  # type: ignore[arg-type]

    @classmethod
    def load(
        cls, backbone: str, folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None
    ) -> Self:
        """A pretrained backbone by its registry name. Raises ``ModelError``."""
        return cls(BACKBONES[backbone](models.path(backbone, folder=folder)))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.size, self.size):
            smaller = x.shape[-1] > self.size
            x = F.interpolate(
                x,
                size=(self.size, self.size),
                mode="area" if smaller else "bilinear",
                align_corners=None if smaller else False,
            )
        if isinstance(self.backbone, GoogLeNet):
            return self.backbone.features(x).float()
        maps: tuple[Tensor, ...] = self.backbone.maps(x)  # type: ignore[operator]
        return torch.cat([F.adaptive_avg_pool2d(m.float(), GRID).flatten(1) for m in maps], dim=1)


@dataclass(frozen=True)
class Calibration:
    """How a predictor's scores become values; all (A,) float32.

    temperature : divides the logit, fitted on subjects the weights never saw (Guo et al., ICML 2017)
    prior : share of positives among the training subjects' faces
    threshold : probability from which the value is true: logit(threshold) = logit(prior) / 2, half-way between the rule
        that serves accuracy (0.5) and the one that serves balanced accuracy (the prior)
    """

    temperature: np.ndarray
    prior: np.ndarray

    @property
    def threshold(self) -> np.ndarray:
        odds = np.sqrt(self.prior / (1 - self.prior))
        return (odds / (1 + odds)).astype(np.float32)

    def values(self, probabilities: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """(N, A) int8: 1 true, 0 false, -1 unknown: no probability (NaN), or one within the margin.

        margin : in [0, 1), share of the way from the threshold to 0 below it and to 1 above it; thresholds differ much
            between attributes, and so wide a margin is as fair to both values of each. 0 and 1 are never unknown
        """
        p, threshold = np.asarray(probabilities, np.float64), self.threshold.astype(np.float64)
        values = (p >= threshold).astype(np.int8)
        near = (p > threshold - margin * threshold) & (p < threshold + margin * (1 - threshold))
        values[np.isnan(p) | near] = -1
        return values


@dataclass(frozen=True)
class Card:
    """What a predictor's file says of itself; reading it loads no network.

    backbone : by its name in the model registry, "googlenet" where the file brings it, or the predictor ``base`` on
        whose features its forests grew, by its name; backbone_sha256 : of that file, empty for GoogLeNet
    splits : of the people whom it learned from; about : all of its metadata
    """

    file: Path
    sha256: str
    backbone: str
    backbone_sha256: str
    splits: tuple[str, ...]
    calibration: Calibration
    about: dict[str, Any]
    base: Card | None = None

    @classmethod
    def read(cls, name: str | os.PathLike[str]) -> Card:
        """Of a shipped predictor by name, or of a file. Raises ``PredictorError``."""
        file = locate(name)
        try:
            if file.suffix != ".safetensors":
                raise ValueError("its name does not end in .safetensors")
            with safe_open(str(file), framework="pt") as stored:
                about = json.loads((stored.metadata() or {}).get("facecrowd", "{}"))
                if not isinstance(about, dict) or about.get("kind") != "attribute predictor":
                    raise ValueError("it says of itself that it is something else")
                if about.get("attributes") != list(ATTRIBUTES):
                    raise ValueError("its attributes are not CelebA's 40")
                calibration = _calibration(*(stored.get_tensor(key).float() for key in ("temperature", "prior")))
                grown = "forests.feature" in stored.keys()  # noqa: SIM118 (not a mapping)
            backbone, digest, splits, side = (about.get(k) for k in ("backbone", "backbone_sha256", "splits", "side"))
            if not isinstance(backbone, str) or not (grown or backbone in {"googlenet", *BACKBONES}):
                raise ValueError(f"its backbone is {backbone!r}, not one of googlenet, {', '.join(BACKBONES)}")
            if not isinstance(digest, str | None) or (side is not None and (type(side) is not int or side < 1)):
                raise ValueError("its backbone_sha256 is no text, or its side no number of pixels")
            if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
                raise ValueError("its splits do not say whom it learned from")
            base = _base(file, backbone, digest) if grown and backbone != "googlenet" else None
            return cls(file, models.sha256(file), backbone, digest or "", tuple(splits), calibration, about, base)
        except REFUSED as error:
            raise _refusal(file, error) from None

    def line(self) -> list[Card]:
        """Itself and the predictors below it."""
        return [self, *(self.base.line() if self.base else ())]


def shared(one: Card, other: Card) -> str:
    """What makes two predictors err alike, in words: a file, a backbone, people. Empty where they are independent.

    Networks of one kind that were trained apart (two of GoogLeNet) share nothing.
    """
    mine, theirs = one.line(), other.line()
    files = {card.sha256 for card in mine} & {card.sha256 for card in theirs}
    if files:
        return f"both build on {next(card.file.stem for card in mine if card.sha256 in files)}"
    backbones = {card.backbone for card in mine} & {card.backbone for card in theirs} & set(BACKBONES)
    if backbones:
        return f"both build on {min(backbones)}"
    splits = {split for card in mine for split in card.splits} & {split for card in theirs for split in card.splits}
    return f"both learned from people of {', '.join(sorted(splits))}" if splits else ""


REFUSED = (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError)
"""What a malformed file makes readers raise."""


def _refusal(file: Path, error: Exception) -> PredictorError:
    what = " ".join(str(error).split())[:200]
    return PredictorError(
        f"{file} is no attribute predictor of this version ({what}); train one with: facecrowd train attributes"
    )


def _calibration(temperature: Tensor, prior: Tensor) -> Calibration:
    """Raises ``ValueError`` for numbers that calibrate nothing."""
    if {tuple(temperature.shape), tuple(prior.shape)} != {(len(ATTRIBUTES),)}:
        raise ValueError(f"its arrays are not of {len(ATTRIBUTES)} attributes")
    if not ((temperature > 0) & torch.isfinite(temperature)).all():
        raise ValueError("its temperatures are not all above 0 and finite")
    if not ((prior > 0) & (prior < 1)).all():
        raise ValueError("its priors do not all lie between 0 and 1")
    return Calibration(temperature.numpy(), prior.numpy())


def _base(file: Path, name: str, digest: str | None) -> Card:
    """Of the predictor on which the forests of ``file`` grew: shipped, or beside them. Raises ``PredictorError``."""
    below = locate(name if name in SHIPPED else file.with_name(f"{name}.safetensors"))
    if models.sha256(below) != digest:
        raise PredictorError(f"{file} was trained on other weights of {name}; train it again on these")
    return Card.read(below)


class Predictor(nn.Module):
    """40 calibrated probabilities per face. ``name`` and ``sha256`` say which weights spoke."""

    def __init__(
        self,
        name: str,
        digest: str,
        descriptor: Descriptor,
        head: nn.Linear | Forests,
        calibration: Calibration,
        about: dict[str, Any],
    ) -> None:
        super().__init__()
        self.name, self.sha256, self.about = name, digest, about
        self.descriptor, self.head, self.calibration = descriptor, head, calibration
        self.attributes: tuple[str, ...] = tuple(about["attributes"])

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str] = STEER,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        device: str = "cpu",
    ) -> Self:
        """A shipped predictor by name, or any .safetensors file that ``facecrowd train attributes`` wrote.

        Raises ``PredictorError``, or ``ModelError`` where the backbone cannot be had.
        """
        card = Card.read(name)
        try:
            with safe_open(str(card.file), framework="pt") as stored:
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (not a mapping)
            if not all(t.isfinite().all() for t in tensors.values() if t.is_floating_point()):
                raise ValueError("its weights are not all finite")
            descriptor, head = cls._parts(card, tensors, folder)
            if (head.attributes if isinstance(head, Forests) else head.out_features) != len(ATTRIBUTES):
                raise ValueError(f"its arrays are not of {len(ATTRIBUTES)} attributes")
        except REFUSED as error:
            raise _refusal(card.file, error) from None
        label = str(name) if str(name) in SHIPPED else card.file.stem
        made = cls(label, card.sha256, descriptor, head, card.calibration, card.about)
        return made.requires_grad_(False).eval().to(device)

    @classmethod
    def _parts(
        cls,
        card: Card,
        tensors: dict[str, Tensor],
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    ) -> tuple[Descriptor, nn.Linear | Forests]:
        """Backbone and head; forests build on another predictor."""
        if card.backbone == "googlenet":
            network = GoogLeNet.restore(_below(tensors, "googlenet"))
            return Descriptor(network, card.about.get("side")), network.head[1]  # type: ignore[return-value]
        if card.base is not None:
            return cls.load(card.base.file, folder).descriptor, Forests.restore(_below(tensors, "forests"))
        weight, bias = tensors["head.weight"].float(), tensors["head.bias"].float()
        head = nn.Linear(weight.shape[1], weight.shape[0])
        head.load_state_dict({"weight": weight, "bias": bias})
        return Descriptor.load(card.backbone, folder), head

    def logits(self, x: Tensor) -> Tensor:
        """x (N, 3, H, W), RGB in [0, 1], to calibrated logits (N, A); differentiable but for forests."""
        temperature = torch.as_tensor(self.calibration.temperature, device=x.device)
        return self.score(self.descriptor(x)) / temperature

    def score(self, descriptors: Tensor) -> Tensor:
        """Descriptors (N, D) to logits (N, A), not yet calibrated."""
        if isinstance(self.head, Forests):
            p = self.head.predict(descriptors.detach().cpu().numpy())
            return torch.logit(torch.from_numpy(p), eps=1e-3).to(descriptors.device)
        logits: Tensor = self.head(descriptors)
        return logits

    @torch.inference_mode()
    def predict(self, crops: Sequence[np.ndarray], at_once: int = 16) -> np.ndarray:
        """(S, S, 3) uint8 RGB crops in FFHQ's alignment to (N, A) float32 probabilities."""
        out = np.empty((len(crops), len(self.attributes)), np.float32)
        device = next(self.descriptor.parameters()).device
        for start in range(0, len(crops), at_once):
            x = pictures(crops[start : start + at_once], self.descriptor.size).to(device)
            out[start : start + at_once] = torch.sigmoid(self.logits(x)).cpu().numpy()
        return out

    def values(self, probabilities: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """(N, A) int8, see ``Calibration.values``."""
        return self.calibration.values(probabilities, margin)


def locate(name: str | os.PathLike[str]) -> Path:
    """The file of a shipped predictor, or the file itself. Raises ``PredictorError``."""
    if str(name) in SHIPPED:
        file = Path(str(resources.files("facecrowd.stages.weights") / f"{name}.safetensors"))
        if not file.is_file():
            raise PredictorError(f"the weights of {name} are not installed; train them: facecrowd train attributes")
        return file
    file = Path(name).expanduser()
    if not file.is_file():
        raise PredictorError(f"no attribute predictor is called {name}; there are: {', '.join(SHIPPED)}, or a file")
    return file


def pictures(crops: Sequence[np.ndarray], size: int) -> Tensor:
    """(S, S, 3) uint8 RGB crops, shrunk to ``size`` where they are larger, as (N, 3, size, size) float32 in [0, 1]."""
    shrunk = [
        crop if crop.shape[0] == size else cv2.resize(crop, (size, size), interpolation=_interpolation(crop, size))
        for crop in crops
    ]
    return torch.from_numpy(np.stack(shrunk)).permute(0, 3, 1, 2).float() / 255


def square(crop: Any) -> np.ndarray:
    """The crop, checked before it joins others: one that is none must cost no other row."""
    whole = isinstance(crop, np.ndarray) and crop.dtype == np.uint8 and crop.size > 0
    if not whole or crop.shape != (*crop.shape[:1] * 2, 3):
        raise ValueError(f"not an (S, S, 3) uint8 crop but {getattr(crop, 'shape', type(crop).__name__)}")
    return crop


def _interpolation(crop: np.ndarray, size: int) -> int:
    return cv2.INTER_AREA if crop.shape[0] > size else cv2.INTER_LINEAR


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


class Attributes(Stage):
    """Infers the attributes of a batch's faces: ``column`` holds (S, S, 3) uint8 RGB crops, or their encoded bytes.

    attributes : (40,) float32 calibrated probabilities in ``ATTRIBUTES``'s order; NaN in rows that are not ``ok``
    """

    name = "attributes"

    def __init__(
        self,
        predictor: str | os.PathLike[str] = STEER,
        column: str = "crop",
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        threads: int = 1,
        at_once: int = 16,
        device: str = "cpu",
        resources: Resources | None = None,
    ) -> None:
        """See ``Predictor.load``; ``at_once`` faces go through the network together."""
        self.predictor, self.column, self.folder = predictor, column, folder
        self.threads, self.at_once, self.device = threads, at_once, device
        self.inputs = (column,)  # type: ignore[misc]
        self.outputs = ("attributes", "status", "reason")  # type: ignore[misc]
        self.resources = resources or Resources()
        self._predictor: Predictor | None = None

    def setup(self) -> None:
        torch.set_num_threads(self.threads)
        self._predictor = Predictor.load(self.predictor, self.folder, self.device)

    def __call__(self, batch: Batch) -> Batch:
        if self._predictor is None:
            self.setup()
        assert self._predictor is not None
        status, reason = outcomes(batch)
        found = np.full((len(status), len(self._predictor.attributes)), np.nan, np.float32)
        crops: dict[int, np.ndarray] = {}
        for i in live({"status": status}):
            cell = batch[self.column][i]
            try:
                crops[i] = square(decode(cell) if isinstance(cell, bytes) else cell)
            except Undecodable as error:
                status[i], reason[i] = "unreadable", error.reason
            except ValueError as error:
                status[i], reason[i] = FAILED, explain(self.name, error)
        positions = list(crops)
        for start in range(0, len(positions), self.at_once):
            chosen = positions[start : start + self.at_once]
            try:
                found[chosen] = self._predictor.predict([crops[i] for i in chosen], self.at_once)
            except Exception as error:
                status[chosen], reason[chosen] = FAILED, explain(self.name, error)
        return {**batch, "attributes": found, "status": status, "reason": reason}
