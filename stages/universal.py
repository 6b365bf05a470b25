"""Universal perturbation: one vector v for a whole release, added to every face, that makes models decide otherwise.

Stage IV of AnonymousNet (Li and Lin, CVPR Workshops 2019, equations 8 and 9): with k(x) what a model decides,

    |v|_p <= xi,    P(k(x + v) != k(x)) >= 1 - delta.

Two ways to find v on a sample of faces, both in mini-batches:

    deepfool  Moosavi-Dezfooli et al., "Universal adversarial perturbations", CVPR 2017, algorithm 1: for every face
              that v does not fool yet, v <- P(v + the least step that fools it). A batch of one is the paper's
              algorithm; the steps of a larger one are all taken from the same v, and their sum is added
    sgd       Shafahi et al., "Universal adversarial training", AAAI 2020, algorithm 2: ascend the sum over the models
              of the mean of min(-margin, clip) by Adam or by the gradient's sign, v <- P(v + step). It begins not at 0
              but where one class gains most, since a universal vector drives most faces into one of few classes (the
              first paper's dominant labels) and from 0 the ascent ends at the class that happens to be nearest

P projects onto the ball. After every pass v is rounded to whole grey levels and tried on the sample; the best is kept.

What v is worth is measured, never promised. Whoever has v, or averages enough released faces to guess it, can take it
off again up to rounding, so v belongs into the workspace and not into the release.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from facecrowd.stages import models
from facecrowd.stages.attributes import Predictor
from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.channel import Channel
from facecrowd.stages.chip import Chip
from facecrowd.stages.deepfool import Kind, decide, deepfool, margins
from facecrowd.stages.recognise import NotDifferentiable, Recogniser
from facecrowd.stages.stage import Batch, Resources, Stage, live

KIND = "universal perturbation"
LEVELS = 255

SCALE = 32.0
"""Cosines times this are a recogniser's logits, as in its training (ArcFace: 64), on the scale of other models'."""

CLIP = 4.0
"""No face adds more to the loss than this, in logits beyond the boundary (Shafahi et al., section 4.2)."""

PROBED = 64
"""So many faces choose where sgd begins."""

Form = Literal["deepfool", "sgd"]
Norm = Literal["linf", "l2"]
Step = Literal["adam", "sign"]


class PerturbationError(models.ModelError):
    """A file holds no universal perturbation."""


class Target(Protocol):
    """A model to be fooled.

    name, sha256 : which weights it is
    kind : "classes", it decides for the highest score; "labels", each score's sign is a decision of its own
    """

    name: str
    sha256: str
    kind: Kind

    def scores(self, x: Tensor) -> Tensor:
        """FFHQ-aligned faces x (N, 3, S, S), RGB in [0, 1], to (N, C), differentiable."""
        ...


class Traits:
    """An attribute predictor as a target: a face is fooled when any of ``attributes`` flips.

    The scores are the calibrated logits less the logit of the attribute's own threshold, so that their signs are the
    values of ``Predictor.values``.
    """

    kind: Kind = "labels"

    def __init__(self, predictor: Predictor, attributes: Sequence[str]) -> None:
        """Raises ``ValueError`` for none or unknown attributes."""
        unknown = sorted(set(attributes) - set(predictor.attributes))
        if unknown or not attributes:
            raise ValueError(f"{predictor.name} knows no attribute {', '.join(unknown) or '(none was named)'}")
        self.predictor, self.attributes = predictor, tuple(attributes)
        self.name, self.sha256 = predictor.name, predictor.sha256
        self.columns = [predictor.attributes.index(a) for a in attributes]
        self.threshold = torch.logit(torch.from_numpy(predictor.calibration.threshold)[self.columns])

    def scores(self, x: Tensor) -> Tensor:
        """See ``Target.scores``: (N, number of attributes)."""
        return self.predictor.logits(x)[:, self.columns] - self.threshold.to(x.device)


class Gallery:
    """A face recogniser as a target: its classes are the subjects of a gallery, and a face is fooled when the subject
    nearest to it is another than before.

    The score of a subject is ``SCALE`` times the cosine between the face and the mean of the subject's unit vectors.
    """

    kind: Kind = "classes"

    def __init__(self, recogniser: Recogniser, centres: Tensor) -> None:
        """centres : (subjects, width), of any length. Raises ``ValueError``, ``NotDifferentiable``."""
        if not recogniser.differentiable:
            raise NotDifferentiable(f"{recogniser.name} has no gradient; it can judge a perturbation, not make one")
        if centres.ndim != 2 or len(centres) < 2 or centres.shape[1] != recogniser.width:
            raise ValueError(f"a gallery is (two or more subjects, {recogniser.width}), not {tuple(centres.shape)}")
        self.recogniser, self.centres = recogniser, F.normalize(centres.float())
        self.name, self.sha256 = recogniser.name, recogniser.sha256
        self._chips: dict[int, Chip] = {}

    @classmethod
    def of(cls, recogniser: Recogniser, faces: Tensor, subjects: Sequence[Any], at_once: int = 32) -> Gallery:
        """The gallery of faces (N, 3, S, S) uint8, FFHQ-aligned: the means of their vectors by these N subjects."""
        chip = Chip(faces.shape[-1])
        with torch.no_grad():
            vectors = torch.cat([recogniser.embed(chip(part.float() / LEVELS)) for part in faces.cpu().split(at_once)])
        people = {subject: number for number, subject in enumerate(dict.fromkeys(subjects))}
        rows = torch.tensor([people[subject] for subject in subjects])
        return cls(recogniser, torch.zeros(len(people), vectors.shape[1]).index_add_(0, rows, vectors.float().cpu()))

    def scores(self, x: Tensor) -> Tensor:
        """See ``Target.scores``: (N, subjects)."""
        side = x.shape[-1]
        if side not in self._chips:
            self._chips[side] = Chip(side).to(x.device)
        if self.centres.device != x.device:
            self.centres = self.centres.to(x.device)
        return SCALE * self.recogniser.embed(self._chips[side](x)) @ self.centres.T


@dataclass(frozen=True)
class Perturbation:
    """A universal perturbation.

    vector : (3, S, S) int16, whole grey levels of 255, RGB, for faces of S pixels a side
    norm, xi : the ball it lies in, exactly: of "linf", no value is beyond xi grey levels; of "l2", the root of the sum
        of squares is at most xi (at another size S', xi S'/S: as much per pixel)
    about : how it was made; nothing that leads back to the faces
    """

    vector: np.ndarray
    norm: Norm
    xi: float
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Perturbation:
        """Raises ``PerturbationError``: no such file, another kind of file, or a vector beyond its bound."""
        try:
            with safe_open(os.fspath(path), framework="np") as file:
                about = json.loads((file.metadata() or {}).get("facecrowd", "{}"))
                if not isinstance(about, dict) or about.pop("kind", None) != KIND:
                    raise ValueError("it says of itself that it is something else")
                vector, norm, xi = file.get_tensor("vector"), about.pop("norm"), float(about.pop("xi"))
            if vector.dtype != np.int16 or vector.shape != (3, *vector.shape[1:2] * 2):
                raise ValueError(f"its vector is {vector.shape} {vector.dtype}, not (3, S, S) int16")
            if norm not in ("linf", "l2") or not _length(vector, norm) <= xi:
                raise ValueError("its vector lies beyond its bound")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            what = " ".join(str(error).split())[:200]
            raise PerturbationError(f"{os.fspath(path)} holds no universal perturbation ({what})") from None
        return cls(vector, norm, xi, about)

    def save(self, path: str | os.PathLike[str]) -> None:
        """As safetensors; what ``about`` says goes into the header."""
        about = {**self.about, "kind": KIND, "norm": self.norm, "xi": self.xi}
        vector = torch.from_numpy(np.ascontiguousarray(self.vector))
        save_file({"vector": vector}, os.fspath(path), metadata={"facecrowd": json.dumps(about, sort_keys=True)})

    def picture(self) -> bytes:
        """A PNG file of the vector, amplified: grey is 0, and the largest value reaches black or white."""
        most = max(1, int(np.abs(self.vector).max()))
        grey = np.rint(128 + self.vector.transpose(1, 2, 0) * (127 / most)).astype(np.uint8)
        return cv2.imencode(".png", cv2.cvtColor(grey, cv2.COLOR_RGB2BGR))[1].tobytes()

    def sized(self, size: int) -> Perturbation:
        """For faces of ``size`` pixels a side; still in its ball after rounding."""
        own = self.vector.shape[-1]
        if size == own:
            return self
        way = cv2.INTER_AREA if size < own else cv2.INTER_LINEAR
        resized = cv2.resize(self.vector.transpose(1, 2, 0).astype(np.float32), (size, size), interpolation=way)
        xi = self.xi if self.norm == "linf" else self.xi * size / own
        return replace(self, vector=_whole(resized.transpose(2, 0, 1), self.norm, xi), xi=xi)

    def add(self, crops: np.ndarray) -> np.ndarray:
        """Faces (…, 3, S, S) uint8 of the vector's own size, perturbed and clipped to 0 to 255; the same shape."""
        return np.clip(crops.astype(np.int16) + self.vector, 0, LEVELS).astype(np.uint8)


def _length(vector: np.ndarray, norm: Norm) -> float:
    values = vector.astype(np.float64)
    return float(np.abs(values).max() if norm == "linf" else math.sqrt((values**2).sum()))


def _whole(vector: np.ndarray, norm: Norm, xi: float) -> np.ndarray:
    """int16, the vector in grey levels rounded such that it lies in the ball.

    In l-2, rounding may lengthen it; then the longest scaling of it is taken whose rounding fits.
    """
    vector = np.asarray(vector, np.float64)
    if norm == "linf":
        return np.rint(vector.clip(-math.floor(xi), math.floor(xi))).astype(np.int16)
    low, high = 0.0, 1.0
    if _length(np.rint(vector), norm) <= xi:
        return np.rint(vector).astype(np.int16)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _length(np.rint(middle * vector), norm) <= xi else (low, middle)
    return np.rint(low * vector).astype(np.int16)


def noise(like: Perturbation, form: Literal["gaussian", "sign"], draws: np.random.Generator) -> Perturbation:
    """What a perturbation has to beat: noise as long in l-2, Gaussian or of one size; signs at the bound of "linf"."""
    shape = like.vector.shape
    if form == "sign" and like.norm == "linf":
        vector = np.where(draws.random(shape) < 0.5, -1.0, 1.0) * like.xi
        return Perturbation(_whole(vector, "linf", like.xi), "linf", like.xi)
    vector = draws.standard_normal(shape) if form == "gaussian" else np.where(draws.random(shape) < 0.5, -1.0, 1.0)
    xi = _length(like.vector, "l2")
    return Perturbation(_whole(vector * xi / _length(vector, "l2"), "l2", xi), "l2", xi)


def fooled(target: Target, faces: Tensor, others: Tensor, device: str = "cpu", at_once: int = 32) -> Tensor:
    """Whether a model decides otherwise about ``others`` than about ``faces``, both (N, 3, S, S) uint8.

    Returns (N, 1) bool of classes, (N, labels) bool of labels, on the CPU.
    """
    before, after = (decide(_scores(target, x, device, at_once), target.kind) for x in (faces, others))
    return before != after


@torch.no_grad()
def _scores(target: Target, faces: Tensor, device: str, at_once: int = 32) -> Tensor:
    """Of faces (N, 3, S, S) uint8: (N, C), on the CPU."""
    return torch.cat([target.scores(part.to(device).float() / LEVELS).cpu() for part in faces.split(at_once)])


def fit(
    targets: Sequence[Target],
    faces: Tensor,
    draws: np.random.Generator,
    *,
    form: Form = "sgd",
    norm: Norm = "linf",
    xi: float = 8.0,
    delta: float = 0.2,
    passes: int = 10,
    batch: int = 16,
    step: Step = "adam",
    rate: float | None = None,
    channel: Channel | None = None,
    candidates: int = 10,
    overshoot: float = 0.02,
    max_iter: int = 10,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> Perturbation:
    """The vector that fools all targets on a sample of faces.

    faces : (N, 3, S, S) uint8 RGB, FFHQ-aligned; the vector has their size
    draws : decides the order of the faces and what the channel does
    xi : radius of the ball in grey levels of 255, at least 1 in "linf", as whole grey levels are added
    delta : stop when every target decides otherwise about 1 - delta of the faces; 0 makes all passes
    rate : of sgd, the step in grey levels; by default an eighth of what a value may be
    channel : of sgd, what the faces go through before a model sees them
    candidates, overshoot, max_iter : of deepfool, as there; so many classes are also tried for where sgd begins

    Returns the best v of all passes: the last of those with the highest fooling rate on the sample, of several targets
    by the lowest of theirs. Raises ``ValueError``.
    """
    if not targets or faces.ndim != 4 or faces.shape[1] != 3 or faces.shape[2] != faces.shape[3] or not len(faces):
        raise ValueError("a universal perturbation needs one target at least, and faces (N, 3, S, S)")
    if faces.dtype != torch.uint8:
        raise ValueError(f"faces are 8-bit pictures, not {faces.dtype}")
    if norm not in ("linf", "l2") or not xi >= 1:
        raise ValueError(f"universal: norm is {norm} and xi is {xi}, but norms are linf and l2, and xi is 1 at least")
    if not 0 <= delta < 1 or passes < 1 or batch < 1:
        raise ValueError("universal: delta lies between 0 and 1, and passes and batch are 1 at least")
    side = faces.shape[-1]
    clean = [_scores(target, faces, device) for target in targets]
    decided = [decide(scores, target.kind) for target, scores in zip(targets, clean, strict=True)]
    v = torch.zeros(3, side, side, device=device)
    if form == "deepfool":
        move = _deepfool_steps(targets, norm, xi, candidates, overshoot, max_iter)
    else:
        typical = xi if norm == "linf" else xi / math.sqrt(v.numel())
        move = _sgd_steps(targets, norm, xi, step, rate or typical / 8, channel or Channel(), draws)
        some = torch.from_numpy(draws.permutation(len(faces))[:PROBED])
        v = _start(targets, faces[some], [scores[some] for scores in clean], norm, xi, candidates, device)
    best, reached, taken = np.zeros(v.shape, np.int16), [-1.0], 0
    for taken in range(passes + 1):
        for rows in _batches(len(faces), batch, draws) if taken else ():
            v = move(v, faces[rows].to(device).float() / LEVELS, [d[rows].to(device) for d in decided])
        whole = _whole(v.cpu().numpy(), norm, xi)
        moved = torch.from_numpy(Perturbation(whole, norm, xi).add(faces.cpu().numpy()))
        rates = [
            float((decide(_scores(target, moved, device), target.kind) != d).any(dim=1).float().mean())
            for target, d in zip(targets, decided, strict=True)
        ]
        if min(rates) >= min(reached):
            best, reached = whole, rates
        told = ", ".join(f"{target.name} {rate:.3f}" for target, rate in zip(targets, rates, strict=True))
        say(f"pass {taken}: fooling rate {told}")
        if delta and min(rates) >= 1 - delta:
            break
    about = {
        "form": form,
        "targets": [{"name": target.name, "sha256": target.sha256} for target in targets],
        "fooling_rates": [round(rate, 4) for rate in reached],
        "sample": len(faces),
        "passes": taken,
    }
    return Perturbation(best, norm, xi, about)


Move = Callable[[Tensor, Tensor, list[Tensor]], Tensor]
"""v (3, S, S) in grey levels, faces x (B, 3, S, S) in [0, 1] and what each target decided of them, to the next v."""


def _batches(count: int, size: int, draws: np.random.Generator) -> Iterator[Tensor]:
    order = torch.from_numpy(draws.permutation(count))
    yield from order.split(size)


def project(v: Tensor, norm: Norm, xi: float) -> Tensor:
    """The point of the ball nearest to v."""
    return v.clamp(-xi, xi) if norm == "linf" else v * min(1.0, xi / max(float(v.norm()), 1e-12))


def _deepfool_steps(
    targets: Sequence[Target], norm: Norm, xi: float, candidates: int, overshoot: float, max_iter: int
) -> Move:
    def move(v: Tensor, x: Tensor, decided: list[Tensor]) -> Tensor:
        for target, d in zip(targets, decided, strict=True):
            start = (x + v / LEVELS).clamp(0, 1)
            found = deepfool(
                target.scores,
                start,
                kind=target.kind,
                decided=d,
                candidates=candidates,
                overshoot=overshoot,
                max_iter=max_iter,
                clamp=False,
            )
            useful = found.success & (found.steps > 0)
            if useful.any():
                steps = (found.x - start)[useful] * LEVELS
                v = project(v + steps.sum(dim=0), norm, xi)
        return v

    return move


def _start(
    targets: Sequence[Target],
    faces: Tensor,
    clean: list[Tensor],
    norm: Norm,
    xi: float,
    candidates: int,
    device: str,
) -> Tensor:
    """Where sgd begins: 0, or the point of the ball's surface up the mean gradient of one class over the decided ones.

    Looked at are the ``candidates`` classes nearest to being decided for; labels are driven away from what most faces
    have. Chosen is the point that fools most, or else comes closest to it.
    """
    starts = [torch.zeros(faces.shape[1:], device=device)]
    decided = [decide(scores, target.kind) for target, scores in zip(targets, clean, strict=True)]
    for target, d, scores in zip(targets, decided, clean, strict=True):
        if target.kind == "classes":
            held = margins(scores, d, target.kind)
            mean = held.masked_fill(held.isinf(), 0).sum(dim=0) / held.isfinite().sum(dim=0).clamp(min=1)
        else:
            mean = scores.mean(dim=0).abs()
        goals = mean.topk(min(candidates, len(mean)), largest=False).indices
        away = (1 - 2 * (d.float().mean(dim=0) > 0.5).float()).to(device) if target.kind == "labels" else None
        sums = [torch.zeros_like(starts[0]) for _ in goals]
        for rows in torch.arange(len(faces)).split(16):
            x = (faces[rows].to(device).float() / LEVELS).requires_grad_()
            found = target.scores(x)
            gains = found * away if away is not None else found - found.gather(1, d[rows].to(device))
            for total, goal in zip(sums, goals, strict=True):
                total += torch.autograd.grad(gains[:, goal].sum(), x, retain_graph=True)[0].sum(dim=0)
        starts += [xi * (total.sign() if norm == "linf" else total / total.norm().clamp(min=1e-12)) for total in sums]

    def worth(v: Tensor) -> tuple[float, float]:
        moved = torch.from_numpy(Perturbation(_whole(v.cpu().numpy(), norm, xi), norm, xi).add(faces.cpu().numpy()))
        least = [
            margins(_scores(target, moved, device), d, target.kind).min(dim=1).values
            for target, d in zip(targets, decided, strict=True)
        ]
        return min(float((m <= 0).float().mean()) for m in least), -sum(float(m.mean()) for m in least)

    return max(starts, key=worth)


def _sgd_steps(
    targets: Sequence[Target],
    norm: Norm,
    xi: float,
    step: Step,
    rate: float,
    channel: Channel,
    draws: np.random.Generator,
) -> Move:
    first = second = torch.zeros(())
    count = 0

    def move(v: Tensor, x: Tensor, decided: list[Tensor]) -> Tensor:
        nonlocal first, second, count
        at = v.clone().requires_grad_()
        seen = channel((x + at / LEVELS).clamp(0, 1), draws)
        gain = torch.zeros((), device=v.device)
        for target, d in zip(targets, decided, strict=True):
            m = margins(target.scores(seen), d, target.kind)
            least = m.min(dim=1, keepdim=True).values if target.kind == "classes" else m
            gain = gain + (-least).clamp(max=CLIP).mean()
        (g,) = torch.autograd.grad(gain, at)
        if step == "sign":
            return project(v + rate * (g.sign() if norm == "linf" else g * (math.sqrt(g.numel()) / g.norm())), norm, xi)
        count += 1
        first, second = (b * old.to(g) + (1 - b) * new for b, old, new in ((0.9, first, g), (0.999, second, g * g)))
        direction = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-12)
        return project(v + rate * direction, norm, xi)

    return move


class Universal(Stage):
    """Adds one universal perturbation to every face of a batch.

    rendered : (S, S, 3) uint8 RGB; None in rows that are not ``ok``. Against ``column`` every value differs by whole
        grey levels within the perturbation's bound, exactly
    """

    name = "universal"
    outputs = ("rendered", "status", "reason")
    transient = ("rendered",)

    def __init__(
        self,
        perturbation: Perturbation | str | os.PathLike[str],
        column: str = "rendered",
        resources: Resources | None = None,
    ) -> None:
        """perturbation : or the file that holds it; column : what it is added to, "crop" for the originals."""
        self.perturbation, self.column = perturbation, column
        self.inputs = (column,)  # type: ignore[misc]
        self.resources = resources or Resources()
        self._added: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def setup(self) -> None:
        cv2.setNumThreads(1)
        if not isinstance(self.perturbation, Perturbation):
            self.perturbation = Perturbation.load(Path(self.perturbation))

    def __call__(self, batch: Batch) -> Batch:
        if not isinstance(self.perturbation, Perturbation):
            self.setup()
        status, reason = outcomes(batch)
        rendered: list[np.ndarray | None] = [None] * len(status)
        for i in live({"status": status}):
            try:
                rendered[i] = self._perturbed(batch[self.column][i])
            except Exception as error:
                status[i], reason[i] = "failed", explain(self.name, error)
        return {**batch, "rendered": rendered, "status": status, "reason": reason}

    def _perturbed(self, crop: np.ndarray) -> np.ndarray:
        if crop.dtype != np.uint8 or crop.shape != (*crop.shape[:1] * 2, 3):
            raise ValueError(f"not an (S, S, 3) uint8 crop but {crop.shape} {crop.dtype}")
        size = crop.shape[0]
        if size not in self._added:
            assert isinstance(self.perturbation, Perturbation)
            vector = np.ascontiguousarray(self.perturbation.sized(size).vector.transpose(1, 2, 0))
            self._added[size] = vector.clip(0, LEVELS).astype(np.uint8), (-vector).clip(0, LEVELS).astype(np.uint8)
        up, down = self._added[size]
        # Saturated 8-bit sums are SIMD throughout; where one of the two is not 0 the other is.
        return cv2.subtract(cv2.add(crop, up), down)
