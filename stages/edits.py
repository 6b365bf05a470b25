"""Attribute edits in latent space: one direction in w per attribute, and the strength that makes a predictor agree.

The idea is InterFaceGAN's (Shen et al., "Interpreting the Latent Space of GANs for Semantic Face Editing", CVPR 2020):
an attribute's score is close to linear in w, so its normal n says how to read it, and moving w changes it. Two
attributes whose normals are not orthogonal change together; InterFaceGAN projects one normal off another. Here all are
taken off each other at once. With the normals as rows of N (D, 512), fitted jointly by ridge regression on sampled
faces, and S (512, 512) the covariance of those faces' w, the directions are the columns of

    S Nᵀ (N S Nᵀ + o diag(N S Nᵀ))⁻¹,    each scaled so that n · d = 1.

For o = 0 it is the dual basis N D = I: of all steps that change one reading by 1 and no other, the one most like the
faces the generator draws (least dᵀ S⁻¹ d). Attributes correlate, and where two are nearly one (Male and No_Beard), the
exact dual leaves the faces altogether; ``overlap`` o > 0 lets correlated attributes move along a little.

A direction is added to some rows of w+ only: pose and shape live in the coarse rows, light and colour in the fine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from facecrowd.stages import models
from facecrowd.stages.attributes import STEER, Predictor
from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE, MobileStyleGAN
from facecrowd.stages.stage import Batch, Resources, Stage, live

SHIPPED_DIRECTIONS = Path(__file__).parent / "weights" / "mobilestylegan-directions.safetensors"
KIND = "latent directions"

POSE = ("yaw", "pitch")
LIGHT = ("light_across", "light_down", "brightness")
EXPRESSION = ("Smiling", "Mouth_Slightly_Open")
"""What has a direction beside the 40 attributes (``jobs/train_directions.py``), and the attributes of expression."""

OVERLAP = 0.1
RIDGES = tuple(float(10.0**e) for e in np.arange(-3, 2.01, 0.5))
FOLDS = 5
AIM = 0.25
"""How far beyond the margin a step aims, in logits, so that the steps end."""


class DirectionsError(models.ModelError):
    """A file holds no directions of this generator."""


class Generator(Protocol):
    """What edits need of a generator."""

    def synthesis(self, w_plus: Tensor, size: int) -> Tensor:
        """w+ (N, 23, 512) to RGB pictures (N, 3, size, size), white 1 and black 0."""


class Reader(Protocol):
    """What edits need of an attribute predictor; never the judge."""

    attributes: tuple[str, ...]
    calibration: Any

    def logits(self, x: Tensor) -> Tensor:
        """x (N, 3, S, S), RGB in [0, 1], to (N, A)."""


@dataclass(frozen=True)
class Directions:
    """D directions of one generator, in the units of what they change: logits for attributes, else see ``about``.

    names : D of them
    normals : (D, 512), how to read: a change of w by v changes the reading by normals · v
    directions : (D, 512), how to edit: w + c d reads c more, and the other readings hardly change
    scale : (D,), standard deviation of the reading among faces drawn by the generator
    rows : (D, 2), the rows of w+ an edit touches: first, and one past the last
    mean : (512,), where every reading is 0
    """

    names: tuple[str, ...]
    normals: Tensor
    directions: Tensor
    scale: Tensor
    rows: Tensor
    mean: Tensor
    about: dict[str, Any]

    @classmethod
    def load(cls, path: str | os.PathLike[str] = SHIPPED_DIRECTIONS) -> Directions:
        """The directions of a file that ``facecrowd train directions`` wrote. Raises ``DirectionsError``."""
        if not Path(path).is_file():
            raise DirectionsError(f"{os.fspath(path)} is not there; make it by: facecrowd train directions")
        with safe_open(os.fspath(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("facecrowd", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if about.get("kind") != KIND:
            raise DirectionsError(f"{os.fspath(path)} holds no directions; make some by: facecrowd train directions")
        names = tuple(about.pop("names"))
        values = {name: value.long() if name == "rows" else value.float() for name, value in tensors.items()}
        return cls(names, about=about, **values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """fp16 safetensors, with names and ``about`` in the header."""
        tensors = {
            "normals": self.normals.half(),
            "directions": self.directions.half(),
            "scale": self.scale.float(),
            "rows": self.rows.to(torch.uint8),
            "mean": self.mean.half(),
        }
        about = {**self.about, "kind": KIND, "names": self.names}
        contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
        save_file(contiguous, os.fspath(path), metadata={"facecrowd": json.dumps(about, sort_keys=True)})

    def to(self, device: str | torch.device) -> Directions:
        tensors = ("normals", "directions", "scale", "rows", "mean")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    def positions(self, names: Sequence[str]) -> list[int]:
        """Where ``names`` are. Raises ``DirectionsError`` for one that is not there."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise DirectionsError(f"there is no direction for {', '.join(missing)}")
        return [self.names.index(name) for name in names]

    def spread(self) -> Tensor:
        """(D, 23): 1 in the rows of w+ that a direction edits, else 0."""
        row = torch.arange(ROWS, device=self.rows.device)
        return ((row >= self.rows[:, :1]) & (row < self.rows[:, 1:])).float()

    def read(self, latent: Tensor) -> Tensor:
        """w+ (N, 23, 512) to readings (N, D): normals · (the mean of the rows that the direction edits - mean)."""
        weight = self.spread()
        weight = weight / weight.sum(dim=1, keepdim=True)
        by_row = torch.einsum("nrk,dk->ndr", latent - self.mean, self.normals)
        return (by_row * weight).sum(dim=2)


def apply(latent: Tensor, directions: Directions, coefficients: Tensor) -> Tensor:
    """w+ moved along the directions: row r gets the sum of c_d d over the directions that edit row r.

    latent : (N, 23, 512); coefficients : (N, D), in the units of the readings

    Returns (N, 23, 512).
    """
    steps = torch.einsum("nd,dr,dk->nrk", coefficients, directions.spread(), directions.directions)
    return latent + steps


def fit(
    latents: np.ndarray,
    readings: np.ndarray,
    names: Sequence[str],
    mean: np.ndarray,
    overlap: float = OVERLAP,
    about: Mapping[str, Any] | None = None,
) -> Directions:
    """Normals and directions from sampled faces, editing all rows; the formula is at the head of this module.

    latents : (N, 512), the samples' w; readings : (N, D), what each shows: logits, angles, light; mean : (512,)

    The ridge of each reading is the one of ``RIDGES`` (times the mean variance of w) with the least five-fold
    cross-validated error; ``about["variance_read"]`` is the share of the variance it then explains in faces it was not
    fitted on. Raises ``ValueError`` for a reading that is the same in all samples, or for fewer than ten samples.
    """
    x = np.asarray(latents, np.float64)
    y = np.asarray(readings, np.float64)
    if len(x) < 2 * FOLDS:
        raise ValueError(f"directions are fitted on {2 * FOLDS} samples or more, not on {len(x)}")
    spread = y.std(axis=0)
    if not (spread > 0).all():
        raise ValueError(f"{names[int(np.argmin(spread))]} is the same in all samples")
    x, y = x - x.mean(axis=0), (y - y.mean(axis=0)) / spread
    fold = np.arange(len(x)) % FOLDS
    errors = np.zeros((len(RIDGES), y.shape[1]))
    for f in range(FOLDS):
        for i, guess in enumerate(_ridge(x[fold != f], y[fold != f])):
            errors[i] += ((y[fold == f] - x[fold == f] @ guess) ** 2).sum(axis=0)
    best = errors.argmin(axis=0)
    found = _ridge(x, y)
    normal = np.stack([found[b][:, d] for d, b in enumerate(best)])
    read = 1 - errors.min(axis=0) / len(x)
    covariance = x.T @ x / len(x)
    gram = normal @ covariance @ normal.T
    step = covariance @ normal.T @ np.linalg.inv(gram + overlap * np.diag(np.diag(gram)))
    step /= np.einsum("dk,kd->d", normal, step)
    told = {**(about or {}), "overlap": overlap, "samples": len(x), "variance_read": read.round(3).tolist()}
    return Directions(
        names=tuple(names),
        normals=torch.from_numpy(normal * spread[:, None]).float(),
        directions=torch.from_numpy((step / spread).T.copy()).float(),
        scale=torch.from_numpy(np.sqrt(np.diag(gram)) * spread).float(),
        rows=torch.tensor([[0, ROWS]] * len(names)),
        mean=torch.as_tensor(mean).float(),
        about=told,
    )


def _ridge(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """The coefficients (512, D) of every one of ``RIDGES``; x (N, 512) and y (N, D) have means near 0."""
    values, vectors = np.linalg.eigh(x.T @ x)
    share, penalty = vectors.T @ (x.T @ y), values.mean()
    return [vectors @ (share / (values + (ridge + 1e-12) * penalty)[:, None]) for ridge in RIDGES]


# ----------------------------------------------------------------------------------------------------------- realise


@dataclass(frozen=True)
class Realised:
    """Faces edited until a predictor agreed, or the limit was hit.

    latent : (N, 23, 512); coefficients : (N, D), what was added; logits : (N, A), what the predictor says of them
    agrees : (N, A) int8, 1 shows what was wanted, 0 does not, -1 nothing was wanted
    """

    latent: Tensor
    coefficients: Tensor
    logits: Tensor
    agrees: np.ndarray


def wishes(
    wanted: Mapping[str, bool | Sequence[bool]] | np.ndarray, attributes: Sequence[str], faces: int
) -> np.ndarray:
    """What is wanted as an array: (N, A) int8, 1 and 0 wanted, -1 free.

    wanted : per attribute one value for all faces or one for each; or the array itself, (N, A) or (A,)

    Raises ``ValueError`` for an attribute that is not among ``attributes``, or an array of another shape.
    """
    out = np.full((faces, len(attributes)), -1, np.int8)
    if isinstance(wanted, Mapping):
        for name, value in wanted.items():
            if name not in attributes:
                raise ValueError(f"{name} is no attribute of the predictor")
            out[:, list(attributes).index(name)] = value
        return out
    if np.shape(wanted) not in (out.shape, out.shape[1:]):
        raise ValueError(f"wanted has the shape {np.shape(wanted)}, but must have {out.shape}")
    out[:] = wanted
    return out


def pictures(generator: Generator, latent: Tensor, size: int, at_once: int) -> Tensor:
    """w+ (N, 23, 512) to RGB (N, 3, size, size) clamped to [0, 1].

    Always ``at_once`` go through the network together, the last ones filled up: a face's last bits do not depend on
    how many others there are.
    """
    made = []
    for start in range(0, len(latent), at_once):
        chunk = latent[start : start + at_once]
        filled = torch.cat([chunk, chunk[-1:].expand(at_once - len(chunk), -1, -1)])
        made.append(generator.synthesis(filled, size)[: len(chunk)].float().clamp(0, 1))
    return torch.cat(made)


def look(generator: Generator, predictor: Reader, latent: Tensor, size: int, at_once: int) -> Tensor:
    """What the predictor says of the pictures of w+ (N, 23, 512): logits (N, A)."""
    found = []
    for start in range(0, len(latent), at_once):
        x = pictures(generator, latent[start : start + at_once], size, at_once)
        filled = torch.cat([x, x[-1:].expand(at_once - len(x), -1, -1, -1)])
        found.append(predictor.logits(filled)[: len(x)].float())
    return torch.cat(found)


@torch.inference_mode()
def realise(
    generator: Generator,
    predictor: Reader,
    directions: Directions,
    latent: Tensor,
    wanted: Mapping[str, bool | Sequence[bool]] | np.ndarray,
    limit: float = 4.0,
    steps: int = 10,
    margin: float = 0.5,
    size: int = 128,
    at_once: int = 1,
) -> Realised:
    """Edit faces until the predictor sees what is wanted.

    latent : (N, 23, 512); wanted : see ``wishes``
    limit : largest coefficient, in the direction's typical ``scale``
    steps : most rounds of rendering and looking
    margin : how far beyond the predictor's threshold a logit must be, in logits; above 0, agreement survives the way
        through another size and through JPEG
    size : of the pictures that are looked at

    All wanted attributes are solved together, face by face: each round moves the coefficients of those that fall short
    by what is missing over the slope seen in the last round (secant), and so also mends what another edit disturbed.
    Only coefficients of directions move, never w+ along the predictor's own gradient, which would find pictures that
    fool it. Of the rounds, the one with the most agreement is kept, and of equals the one that lacks least. What agrees
    by the margin from the start is left as it is. An attribute without a direction is looked at and never edited.
    """
    ask = wishes(wanted, predictor.attributes, len(latent))
    asked = torch.as_tensor(ask >= 0, device=latent.device)
    sign = torch.as_tensor(np.where(ask == 1, 1.0, -1.0), device=latent.device, dtype=torch.float32)
    threshold = torch.logit(torch.as_tensor(predictor.calibration.threshold, device=latent.device).float())
    column = {name: i for i, name in enumerate(predictor.attributes)}
    movable = [(d, column[name]) for d, name in enumerate(directions.names) if name in column]
    d, a = (list(v) for v in zip(*movable, strict=True))
    most = limit * directions.scale[d]

    coefficients = latent.new_zeros(len(latent), len(directions.names))
    slope = torch.ones_like(coefficients[:, d])
    logits = look(generator, predictor, latent, size, at_once)
    best, best_logits = coefficients.clone(), logits.clone()
    best_short = _short(logits, threshold, sign, asked, margin)
    now, rows = logits, torch.arange(len(latent), device=latent.device)
    for _ in range(steps):
        need = sign * (margin + AIM - sign * (now - threshold)) * asked
        need = need[:, a] * (sign * (now - threshold) < margin)[:, a]
        before = coefficients[rows][:, d]
        move = (need[rows] / slope[rows]).clamp(-most / 2, most / 2)
        after = (before + move).clamp(-most, most)
        moving = (after != before).any(dim=1) & (best_short[rows].sum(dim=1) > 0)
        rows, before, after = rows[moving], before[moving], after[moving]
        if not len(rows):
            break
        changed = coefficients[rows]
        changed[:, d] = after
        coefficients[rows] = changed
        seen = look(generator, predictor, apply(latent[rows], directions, changed), size, at_once)
        step = after - before
        rise = (seen - now[rows])[:, a] / torch.where(step == 0, torch.ones_like(step), step)
        slope[rows] = torch.where(step.abs() > 1e-3, rise.clamp(0.25, 2.0), slope[rows])
        now = now.clone()
        now[rows] = seen
        short = _short(seen, threshold[None], sign[rows], asked[rows], margin)
        wrong, wrong_best = (short > margin).sum(1), (best_short[rows] > margin).sum(1)
        better = (wrong < wrong_best) | ((wrong == wrong_best) & (short.sum(1) < best_short[rows].sum(1)))
        won = rows[better]
        best[won], best_logits[won], best_short[won] = changed[better], seen[better], short[better]
    agrees = torch.where(asked, sign * (best_logits - threshold) >= 0, torch.tensor(-1, device=latent.device))
    return Realised(apply(latent, directions, best), best, best_logits, agrees.cpu().numpy().astype(np.int8))


def _short(logits: Tensor, threshold: Tensor, sign: Tensor, asked: Tensor, margin: float) -> Tensor:
    """(N, A): how far each wanted attribute falls short of threshold and margin; 0 where it does not."""
    return (margin - sign * (logits - threshold)).clamp(min=0) * asked


class Edit(Stage):
    """Edits latents until the predictor sees what is wanted of each row.

    latent : (23, 512) float32; after the stage the edited one, None in rows that are not ``ok``
    wanted : (40,) int8 in the predictor's order, 1 and 0 wanted, -1 free; or a dict of attribute to bool
    realised : (40,) int8, 1 the predictor agrees, 0 it does not, -1 nothing was wanted
    """

    name = "edit"
    inputs = ("latent", "wanted")
    outputs = ("latent", "realised", "status", "reason")

    def __init__(
        self,
        predictor: str | os.PathLike[str] = STEER,
        directions: str | os.PathLike[str] = SHIPPED_DIRECTIONS,
        limit: float = 4.0,
        steps: int = 10,
        margin: float = 0.5,
        size: int = 128,
        at_once: int = 1,
        device: str = "cpu",
        threads: int = 1,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        resources: Resources | None = None,
    ) -> None:
        """See ``realise``."""
        self.predictor, self.directions, self.folder = predictor, directions, folder
        self.limit, self.steps, self.margin = limit, steps, margin
        self.size, self.at_once, self.device, self.threads = size, at_once, device, threads
        self.resources = resources or Resources()
        self.networks: tuple[Generator, Reader, Directions] | None = None

    def setup(self) -> None:
        torch.set_num_threads(self.threads)
        self.networks = (
            MobileStyleGAN.load(models.path("mobilestylegan-ffhq", folder=self.folder)).to(self.device),
            Predictor.load(self.predictor, self.folder, self.device),
            Directions.load(self.directions).to(self.device),
        )

    def __call__(self, batch: Batch) -> Batch:
        if self.networks is None:
            self.setup()
        assert self.networks is not None
        generator, predictor, directions = self.networks
        status, reason = outcomes(batch)
        latents: list[np.ndarray | None] = [None] * len(status)
        realised = np.full((len(status), len(predictor.attributes)), -1, np.int8)
        given: dict[int, np.ndarray] = {}
        asked: dict[int, np.ndarray] = {}
        for i in live({"status": status}):
            try:
                latent = np.asarray(batch["latent"][i], np.float32)
                if latent.shape != (ROWS, STYLE):
                    raise ValueError(f"the latent has the shape {latent.shape}, but must have {(ROWS, STYLE)}")
                asked[i] = wishes(batch["wanted"][i], predictor.attributes, 1)[0]
                given[i] = latent
            except Exception as error:
                status[i], reason[i] = "failed", explain(self.name, error)
        rows = list(given)
        try:
            if rows:
                found = realise(
                    generator,
                    predictor,
                    directions,
                    torch.from_numpy(np.stack([given[i] for i in rows])).to(self.device),
                    np.stack([asked[i] for i in rows]),
                    self.limit,
                    self.steps,
                    self.margin,
                    self.size,
                    self.at_once,
                )
                realised[rows] = found.agrees
                for i, latent in zip(rows, found.latent.cpu().numpy(), strict=True):
                    latents[i] = latent
        except Exception as error:
            status[rows], reason[rows] = "failed", explain(self.name, error)
        return {**batch, "latent": latents, "realised": realised, "status": status, "reason": reason}
