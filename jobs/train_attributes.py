"""``facecrowd train attributes``: a predictor of CelebA's 40 attributes, from a few thousand labelled faces.

Three kinds, all on the subjects of one split, so that two predictors need share no person:

probe             a linear head on the 4 x 4 means of a frozen, pretrained backbone's maps: logistic regression
googlenet         GoogLeNet from scratch (AnonymousNet), on labelled faces and on unlabelled ones that a probe labelled
googlenet-forest  40 random forests on GoogLeNet's features (AnonymousNet), or one forest with 40 outputs

Temperatures come from subjects that the weights did not see: for probes by five-fold cross-validation within the split,
for GoogLeNet and the forests on it from the fold that both leave out. Priors are the shares of the whole split.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from facecrowd.jobs import training
from facecrowd.jobs.labelled import CACHE, NOWHERE, SPLITS, Faces
from facecrowd.jobs.labelled import faces as faces_of
from facecrowd.pipeline.errors import ConfigError
from facecrowd.pipeline.ray_data import session
from facecrowd.stages import models
from facecrowd.stages.attributes import ATTRIBUTES, SHIPPED, Calibration, Descriptor, Predictor, locate, pictures
from facecrowd.stages.forests import LEAVES, TREES, Kind, fit_forests
from facecrowd.stages.networks.googlenet import GoogLeNet

FOLDS = 5
FEW = 20
"""People under which a probe is trained with a warning."""
RIDGE = 0.1
"""Weight of the probes' squared norm, for descriptors of mean square 1; cross-validation is flat from 0.03 to 0.3."""
RANK = 1500
"""Directions kept of the span of the faces, the widest ones."""
PROBES = {"arcface": "arcface-mobilefacenet", "bisenet": "bisenet", "mobilenetv2": "mobilenetv2"}
KINDS = (*PROBES, "googlenet", "googlenet-forest")


@dataclass(frozen=True)
class Taught:
    """What a predictor learned from beside its labelled faces, itself or through its teacher or base.

    splits : of labelled people; unlabelled_splits : of unlabelled ones; unlabelled_crops : ``Faces.crops_sha256`` of
        the collections whose unlabelled faces it saw
    """

    splits: tuple[str, ...] = ()
    unlabelled_splits: tuple[str, ...] = ()
    unlabelled_crops: tuple[str, ...] = ()

    @classmethod
    def by(cls, predictor: Predictor) -> Taught:
        """All that this predictor learned from."""
        said = predictor.about
        return cls(*(tuple(said.get(name, ())) for name in ("splits", "unlabelled_splits", "unlabelled_crops")))

    def and_on(self, unlabelled: Faces, collection: str) -> Taught:
        """The same, and unlabelled faces of a collection."""
        splits = sorted({*self.unlabelled_splits, *unlabelled.splits.tolist()})
        return Taught(self.splits, tuple(splits), tuple(sorted({*self.unlabelled_crops, collection})))


NOTHING = Taught()


# ------------------------------------------------------------------------------------------------------------ probes


@dataclass(frozen=True)
class Probe:
    """weight : (A, D), bias : (A,) float32."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, descriptors: np.ndarray) -> np.ndarray:
        """(N, D) to (N, A)."""
        return descriptors @ self.weight.T + self.bias


def fit_probe(descriptors: np.ndarray, labels: np.ndarray, ridge: float = RIDGE) -> Probe:
    """Logistic regression of all attributes at once, in the span of the faces (D is larger than N): with z the
    standardised descriptors over sqrt(D), the w and b of the least sum of cross-entropies + ridge / 2 |w|^2.

    descriptors : (N, D) float32; labels : (N, A) in [0, 1]
    """
    mean, spread = descriptors.mean(axis=0), descriptors.std(axis=0)
    scale = (1 / ((spread + 1e-3 * descriptors.std()) * np.sqrt(descriptors.shape[1]))).astype(np.float32)
    x = torch.from_numpy((descriptors - mean) * scale)
    values, vectors = torch.linalg.eigh(x @ x.T)
    values, vectors = values[-RANK:].clamp(min=1e-6), vectors[:, -RANK:]
    basis = x.T @ (vectors / values.sqrt())
    span, y = x @ basis, torch.from_numpy(labels)
    weight = torch.zeros(span.shape[1], y.shape[1], requires_grad=True)
    share = y.mean(dim=0).clamp(1e-3, 1 - 1e-3)
    bias = torch.logit(share).requires_grad_()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.binary_cross_entropy_with_logits(span @ weight + bias, y, reduction="sum")
        value = value + ridge / 2 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    found = (basis @ weight.detach()).numpy() * scale[:, None]
    return Probe(found.T.copy(), (bias.detach().numpy() - mean @ found).astype(np.float32))


def out_of_fold(
    faces: Faces,
    features: np.ndarray,
    fit: Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]],
    folds: int = FOLDS,
) -> np.ndarray:
    """(N, A) logits of every face by a fit on the other folds' subjects."""
    fold = faces.folds(folds)
    out = np.zeros(faces.labels.shape, np.float32)
    for i in range(folds):
        out[fold == i] = fit(features[fold != i], faces.labels[fold != i])(features[fold == i])
    return out


def calibrate(logits: np.ndarray, labels: np.ndarray, prior: np.ndarray) -> Calibration:
    """One temperature per attribute that makes the likelihood of the labels largest (Guo et al., ICML 2017)."""
    x, y = torch.from_numpy(logits), torch.from_numpy(labels)
    log_t = torch.zeros(x.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([log_t], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.binary_cross_entropy_with_logits(x / log_t.exp(), y, reduction="sum")
        value.backward()
        return value

    optimiser.step(loss)
    temperature = log_t.detach().exp().clamp(0.2, 5).numpy()
    return Calibration(temperature, np.clip(prior, 1e-3, 1 - 1e-3).astype(np.float32))


@torch.inference_mode()
def descriptors(descriptor: Descriptor, faces: Faces, at_once: int = 16) -> np.ndarray:
    """(N, D) float32 of all faces."""
    device = next(descriptor.parameters()).device
    crops = faces.pixels()
    return np.concatenate(
        [
            descriptor(pictures(crops[i : i + at_once], descriptor.size).to(device)).float().cpu().numpy()
            for i in range(0, len(crops), at_once)
        ]
    )


def train_probe(kind: str, faces: Faces, file: Path, models_folder: str | None = None) -> None:
    """Fit, calibrate and write a probe."""
    backbone = PROBES[kind]
    descriptor = Descriptor.load(backbone, models_folder).to(training.device())
    features = descriptors(descriptor, faces)
    logits = out_of_fold(faces, features, lambda x, y: fit_probe(x, y).logits)
    probe = fit_probe(features, faces.labels)
    tensors = {
        "head.weight": torch.from_numpy(probe.weight).half(),
        "head.bias": torch.from_numpy(probe.bias).half(),
    }
    digest = models.sha256(models.path(backbone, folder=models_folder))
    calibration = calibrate(logits, faces.labels, faces.labels.mean(axis=0))
    write(file, tensors, calibration, faces, backbone=backbone, backbone_sha256=digest)


def train_forest(
    base: str | Path, faces: Faces, file: Path, kind: Kind = "per-attribute", trees: int = TREES, leaves: int = LEAVES
) -> None:
    """Fit, calibrate and write random forests on the features of predictor ``base``.

    Features of faces that the base was trained on tell more than those of new ones do. So the forests leave out the
    same fold of subjects as the base did, and are calibrated there; folds are those of the same people only.

    Raises ConfigError when the base is a file elsewhere than beside the output, or was trained on other people.
    """
    predictor = Predictor.load(base)
    if predictor.name not in SHIPPED and locate(base).resolve().parent != file.resolve().parent:
        raise ConfigError(f"--base {base}: must lie beside --output {file}, which needs it to run")
    people, splits = len(set(faces.subject.tolist())), set(faces.splits.tolist())
    said = predictor.about
    if (said["faces"], said["subjects"]) != (len(faces), people) or not splits <= set(said["splits"]):
        raise ConfigError(
            f"--base {base}: was trained on {said['faces']} faces of {said['subjects']} people of the split "
            f"{'+'.join(said['splits'])}, and these are {len(faces)} of {people}, {'+'.join(sorted(splits))}; "
            f"take the same --data and --split, or train a base on these"
        )
    features = descriptors(predictor.descriptor.to(training.device()), faces)
    held = faces.folds(FOLDS) == VALIDATION_FOLD
    forests = fit_forests(features[~held], faces.labels[~held], kind=kind, trees=trees, leaves=leaves, seed=0)
    tensors = {f"forests.{name}": tensor for name, tensor in forests.state().items()}
    calibration = calibrate(_logit(forests.predict(features[held])), faces.labels[held], faces.labels.mean(axis=0))
    about = {"backbone": predictor.name, "backbone_sha256": predictor.sha256}
    write(file, tensors, calibration, faces, Taught.by(predictor), **about)


def _logit(p: np.ndarray) -> np.ndarray:
    return torch.logit(torch.from_numpy(p.astype(np.float32)), eps=1e-3).numpy()


# --------------------------------------------------------------------------------------------------------- GoogLeNet


@dataclass(frozen=True)
class Preset:
    """Settings of GoogLeNet's training. ``steps`` of ``batch`` faces, a checkpoint ``every`` few; ``side`` in px."""

    optimiser: str
    rate: float
    decay: float
    batch: int
    steps: int
    side: int = 128
    momentum: float = 0.9
    augment: bool = True
    every: int = 100


PRESETS = {
    # "base learning rate of 1e-5, polynomial decay with gamma 0.5, momentum 0.9, weight decay 2e-4, batch 64, 6e5
    # iterations" (AnonymousNet, section 5)
    "paper": Preset("sgd", 1e-5, 2e-4, 64, 600_000, augment=False),
    "adamw": Preset("adamw", 2e-3, 5e-2, 64, 1_600),
    "smoke": Preset("adamw", 1e-3, 5e-2, 8, 12, side=64, every=2),
}
POLYNOMIAL = 0.5
VALIDATION_FOLD = 0


class GoogLeNetTask:
    """GoogLeNet under sigmoid cross-entropy (AnonymousNet, equation 10) on faces with labels in [0, 1].

    faces : those of the split; fold 0 of its subjects is held out. more : further faces, labelled by another predictor;
    those of subjects that are held out are left out of it too.
    """

    def __init__(self, faces: Faces, more: Faces | None, preset: Preset, seed: int = 0) -> None:
        self.preset, self.seed, self.steps = preset, seed, preset.steps
        self.device = training.device()
        held = faces.folds(FOLDS) == VALIDATION_FOLD
        self.held = faces.take(held)
        if more:
            more = more.take(~np.isin(more.subject, self.held.subject))
        outcome = {name: value for name, value in asdict(preset).items() if name != "every"}
        told = [outcome, seed, faces.fingerprint, more.fingerprint if more else ""]
        self.identity = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        parts = [faces.take(~held)] + ([more] if more else [])
        crops = [crop for part in parts for crop in part.pixels()]
        self.pixels = torch.cat([_bytes(crops[i : i + 64], preset.side) for i in range(0, len(crops), 64)]).to(
            self.device
        )
        self.labels = torch.from_numpy(np.concatenate([part.labels for part in parts])).to(self.device)
        torch.manual_seed(seed)
        self.network = GoogLeNet().to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        parameters = self.network.parameters()
        self.optimiser: torch.optim.Optimizer
        if preset.optimiser == "sgd":
            self.optimiser = torch.optim.SGD(parameters, preset.rate, preset.momentum, weight_decay=preset.decay)
        else:
            self.optimiser = torch.optim.AdamW(parameters, preset.rate, weight_decay=preset.decay)

    def rate(self, number: int) -> float:
        """The learning rate of a step."""
        at = number / self.steps
        if self.preset.optimiser == "sgd":
            return self.preset.rate * (1 - at) ** POLYNOMIAL
        warm = min(1.0, (number + 1) / max(1, self.steps // 20))
        return self.preset.rate * warm * 0.5 * (1 + float(np.cos(np.pi * at)))

    def step(self, number: int) -> dict[str, float]:
        draw = training.generator(self.seed, number)
        rows = training.share(torch.randint(len(self.pixels), (self.preset.batch,), generator=draw))
        x = self.pixels[rows.to(self.device)].permute(0, 3, 1, 2).float() / 255
        if self.preset.augment:
            x = augment(x, draw)
        y = self.labels[rows.to(self.device)]
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(number)
        # Dropout draws from the global generator.
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=draw)))
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.network(x.contiguous(memory_format=torch.channels_last))
        loss = F.binary_cross_entropy_with_logits(logits.float(), y)
        loss.backward()
        training.average(self.network.parameters())
        self.optimiser.step()
        return {"loss": float(loss.detach())}

    @torch.inference_mode()
    def logits(self, faces: Faces) -> np.ndarray:
        """(N, A) logits of the network as it stands."""
        self.network.eval()
        crops = faces.pixels()
        found = [
            self.network(pictures(crops[i : i + 64], self.preset.side).to(self.device)).float().cpu()
            for i in range(0, len(crops), 64)
        ]
        self.network.train()
        return torch.cat(found).numpy()

    def measure(self) -> dict[str, float]:
        logits = self.logits(self.held)
        loss = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(self.held.labels))
        return {"held_loss": float(loss), "held_accuracy": float(((logits > 0) == (self.held.labels > 0.5)).mean())}

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


def augment(x: Tensor, draw: torch.Generator) -> Tensor:
    """Mirror, turn (10 degrees), scale (12 %), shift (6 %), and change brightness, contrast and saturation (25 %).

    x : (N, 3, S, S) in [0, 1], on any device; the same draws give the same picture
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw).to(x.device) * 2 - 1

    n = len(x)
    angle, grow, shift = uniform(n) * 0.175, 1 + 0.12 * uniform(n), 0.12 * uniform(n, 2)
    mirror = torch.where(uniform(n) > 0, 1.0, -1.0)
    cos, sin = angle.cos() * grow, angle.sin() * grow
    matrix = torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], dim=1).view(n, 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    light, contrast, colour = (1 + 0.25 * uniform(n, 1, 1, 1) for _ in range(3))
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * colour
    middle = x.mean(dim=(1, 2, 3), keepdim=True)
    return ((x - middle) * contrast + middle * light).clamp(0, 1)


def _bytes(crops: list[np.ndarray], side: int) -> Tensor:
    return (pictures(crops, side) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def pseudo_labelled(faces: Faces, teacher: str, models_folder: str | None = None) -> Faces:
    """The faces with a predictor's probabilities as labels."""
    predictor = Predictor.load(teacher, models_folder, str(training.device()))
    return Faces(faces.name, faces.subject, faces.crop, predictor.predict(faces.pixels()))


def finish_googlenet(task: GoogLeNetTask, faces: Faces, file: Path, taught: Taught = NOTHING) -> None:
    """Calibrate on the held-out fold and write the network."""
    tensors = {f"googlenet.{k}": v.detach().cpu() for k, v in task.network.state_dict().items()}
    # Variances can lie outside of what 16 bits hold.
    tensors = {k: v if "running" in k or not v.is_floating_point() else v.half() for k, v in tensors.items()}
    calibration = calibrate(task.logits(task.held), task.held.labels, faces.labels.mean(axis=0))
    write(file, tensors, calibration, faces, taught, backbone="googlenet", side=task.preset.side)


# -------------------------------------------------------------------------------------------------------------- file


def write(
    file: Path,
    tensors: dict[str, Tensor],
    calibration: Calibration,
    faces: Faces,
    taught: Taught = NOTHING,
    **about: str | int,
) -> None:
    """Write a predictor; its metadata says what it is, and no name of a person or path. faces : what trained it."""
    said = {
        "kind": "attribute predictor",
        "attributes": list(ATTRIBUTES),
        "splits": sorted({*faces.splits.tolist(), *taught.splits}),
        "faces": len(faces),
        "subjects": len(set(faces.subject.tolist())),
        **about,
    }
    if taught.unlabelled_crops:
        said |= {
            "unlabelled_splits": list(taught.unlabelled_splits),
            "unlabelled_crops": list(taught.unlabelled_crops),
        }
    tensors = tensors | {
        "temperature": torch.from_numpy(calibration.temperature),
        "prior": torch.from_numpy(calibration.prior),
    }
    if not file.name.endswith(".safetensors"):
        raise ConfigError(f"--output {file}: must end in .safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_bytes(save({k: v.contiguous() for k, v in tensors.items()}, metadata={"facecrowd": json.dumps(said)}))
    os.replace(partial, file)


# --------------------------------------------------------------------------------------------------------------- job


@dataclass(frozen=True)
class Order:
    """What the flags of ``facecrowd train attributes`` say; its help explains each.

    Raises ConfigError on a kind, split, preset, forest or file that is none.
    """

    data: Path
    kind: str
    output: Path
    table: Path | None = None
    split: str = "steer"
    preset: str = "adamw"
    steps: int | None = None
    unlabelled: Path | None = None
    teacher: str = "attributes-arcface"
    base: str = "attributes-googlenet"
    forest: Kind = "per-attribute"
    work: Path | None = None
    workers: int = 0
    address: str = "local"
    every: int | None = None
    pack: Path | None = None
    cache: Path = CACHE
    models: str | None = None

    def __post_init__(self) -> None:
        for what, value, known in (
            ("kind", self.kind, KINDS),
            ("split", self.split, ("all", *SPLITS)),
            ("preset", self.preset, tuple(PRESETS)),
            ("forest", self.forest, get_args(Kind)),
        ):
            if value not in known:
                raise ConfigError(f"--{what} {value}: is none of {', '.join(known)}")
        if not self.output.name.endswith(".safetensors"):
            raise ConfigError(f"--output {self.output}: must end in .safetensors")
        if self.workers and self.settings.batch % self.workers:
            raise ConfigError(f"--workers {self.workers}: cannot share a batch of {self.settings.batch} faces equally")

    @property
    def settings(self) -> Preset:
        """GoogLeNet's, with the steps that were asked for."""
        preset = PRESETS[self.preset]
        return replace(preset, steps=self.steps or preset.steps, every=self.every or preset.every)


def run(order: Order, say: Callable[[str], None]) -> None:
    """What the command does. Raises ConfigError when the split has too few people."""
    found = faces_of(order.data, order.table, order.cache, order.models, say)
    if order.pack is not None:
        found.write(order.pack)
    labelled = found.take(~np.isnan(found.labels).any(axis=1))
    chosen = labelled if order.split == "all" else labelled.of(order.split)
    people = set(chosen.subject.tolist())
    if len(people) < FOLDS:
        raise ConfigError(
            f"--split {order.split}: {len(chosen)} labelled faces of {len(people)} people in {order.data}, and "
            f"{FOLDS} people are the least; give --table, or more people"
        )
    say(f"{order.kind}: {len(chosen)} faces of {len(people)} people of the split {order.split}")
    if order.kind in PROBES:
        if len(people) < FEW:
            say(f"warning: {len(people)} people are few to learn from; expect it to err on others (under {FEW})")
        train_probe(order.kind, chosen, order.output, order.models)
    elif order.kind == "googlenet-forest":
        train_forest(order.base, chosen, order.output, order.forest)
    else:
        train_googlenet(order, found, chosen, say)
    say(f"wrote {order.output}")


def train_googlenet(order: Order, found: Faces, chosen: Faces, say: Callable[[str], None]) -> None:
    """Train, calibrate and write GoogLeNet on ``chosen``, and on unlabelled faces.

    Of the people of ``found``, only those it may learn from take part unlabelled; others may be of any split, and the
    file says so. What tells their collection again is written too: to be judged on that is refused.
    """
    folder = order.work or order.output.with_suffix(".work")
    more: Faces | None = None
    taught = NOTHING
    if order.unlabelled is not None:
        more = faces_of(order.unlabelled, None, order.cache, order.models, say)
        collection = more.crops_sha256
        held = chosen.subject[chosen.folds(FOLDS) == VALIDATION_FOLD]
        allowed = {*chosen.subject.tolist()} - {*held.tolist()}
        more = more.take(~np.isin(more.subject, list({*found.subject.tolist()} - allowed)))
        more, taught = _taught(more, order, folder, say)
        taught = taught.and_on(more, collection)

    def make() -> GoogLeNetTask:
        return GoogLeNetTask(chosen, more, order.settings)

    if order.workers:
        with session(order.address):
            task = training.train_on_ray(
                make, folder, order.settings.every, order.workers, torch.cuda.is_available(), say
            )
    else:
        task = training.train(make, folder, order.settings.every, say=say)
    finish_googlenet(task, chosen, order.output, taught)


def _taught(more: Faces, order: Order, folder: Path, say: Callable[[str], None]) -> tuple[Faces, Taught]:
    """The faces as the teacher labels them, kept: a resumed training must meet the same labels to the last bit."""
    teacher = Predictor.load(order.teacher, order.models)
    told = hashlib.sha256(f"{teacher.sha256} {more.fingerprint}".encode()).hexdigest()
    file = (folder if order.cache == NOWHERE else order.cache) / f"labelled-{told[:16]}.parquet"
    if not file.is_file():
        say(f"{teacher.name} labels {len(more)} faces of {order.unlabelled}")
        pseudo_labelled(more, order.teacher, order.models).write(file)
    return Faces.read(file), Taught.by(teacher)
