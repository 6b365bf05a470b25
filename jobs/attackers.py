"""Attackers that are trained for the purpose: DeepBlur's three threat models, T1 to T3.

Li and Choi, DeepBlur, CVPR Workshops 2021, section 3.1. An attacker learns to name people by their photos:

    threat      learns from   is shown      who
    originals   originals     originals     nobody: how good it is where nothing was done (table 2, "Original")
    T1          originals     released      knows the people, and finds their released faces
    T2          released      originals     has a release with names, and names photos by it
    T3          released      released      has a release with names, and names another one

so two trainings serve four rows: one on originals, which every release of the same photos shares, one on the release.
An attacker stops, and chooses among its epochs, by validation pictures of the kind that it learns from.

The attackers: the paper's two networks, trained from nothing (``stages/networks/classifiers.py``), and for each
recogniser at hand a linear head on its frozen embeddings, which knows millions of other faces and is by far stronger.

The photos of each person are split 7/1/2 (section 4.1), by the run's seed and by what the photos are, never by their
order; a photo is the same part in every threat. Nobody is shown a photo, or the release of one, that anybody learnt
from. **A released picture may be**: where one surrogate stands for a class (k-same), the same file is in training under
several names. Then an attacker can do no better than to name one of them, and the notes say what that achieves.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from facecrowd.jobs import training
from facecrowd.jobs.bootstrap import People
from facecrowd.jobs.figures import Figure
from facecrowd.jobs.renditions import Say, kept
from facecrowd.pipeline.errors import ConfigError
from facecrowd.privacy.reidentification import TOLERANCE
from facecrowd.stages.attributes import pictures
from facecrowd.stages.decode import decode
from facecrowd.stages.networks.classifiers import NETWORKS, SIDE, Name

VERSION = 1
"""Of what a training makes of the same pictures: part of the name under which it is kept."""

LEAST = 4
"""Photos of a person, below which there is none to validate and test by."""

RANKS = (1, 5)
TRAIN, VALIDATION, TEST = range(3)

THREATS = {
    "originals": ("originals", "originals"),
    "T1": ("originals", "released"),
    "T2": ("released", "originals"),
    "T3": ("released", "released"),
}
"""What the attacker learns from, and what it is shown."""

CURVES = pa.schema(
    [
        *(("attacker", pa.string()), ("threat", pa.string()), ("epoch", pa.int64()), ("train_loss", pa.float64())),
        *(("train_top1", pa.float64()), ("validation_top1", pa.float64()), ("seconds", pa.float64())),
    ]
)
"""threat: "T1" for the training on originals, "T2, T3" for the one on the release. Heads have no epochs."""

REGULARISERS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""A head's C: the inverse of what its squared weights cost, beside the sum of cross entropies."""


@dataclass(frozen=True)
class Order:
    """How attackers are trained.

    networks : which; subjects, photos : most people, and most photos of each
    vgg_width, resnet_width : channels of a network's first layer
    epochs : most of them; patience : epochs without a better validation top-1 after which it stops, 0 for never
    batch : pictures; rate : of AdamW, at its highest; decay : of weights; smoothing : of labels
    """

    networks: tuple[Name, ...] = ("VGG16", "ResNet18")
    subjects: int = 100
    photos: int = 10
    vgg_width: int = 16
    resnet_width: int = 32
    epochs: int = 60
    patience: int = 20
    batch: int = 32
    rate: float = 2e-3
    decay: float = 0.05
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.subjects < 2 or self.photos < LEAST or self.epochs < 1 or self.batch < 2:
            raise ConfigError(
                f"attackers need 2 subjects, {LEAST} photos of each, 1 epoch and batches of 2 at least; "
                f"asked for {self.subjects}, {self.photos}, {self.epochs} and {self.batch}"
            )

    def width(self, name: Name) -> int:
        return self.vgg_width if name == "VGG16" else self.resnet_width


PRESETS = {
    "cpu": Order(),
    "paper": Order(vgg_width=64, resnet_width=64, epochs=500, patience=0),
    "smoke": Order(subjects=8, photos=6, vgg_width=4, resnet_width=4, epochs=16, patience=0, batch=8, rate=4e-3),
}
"""cpu: narrower networks, which learn 100 people with 10 photos in some minutes of one core. On CelebA they then name
originals about as often as the paper's (0.21 and 0.42, by chance 0.01): VGG 0.2, ResNet 0.35.
paper: the widths and the 500 epochs of DeepBlur; what it leaves open is as in ``cpu``."""


def trained_figures(
    original: Sequence[bytes],
    released: Sequence[bytes],
    subject: np.ndarray,
    embeddings: Mapping[str, tuple[np.ndarray, np.ndarray]],
    order: Order,
    *,
    seed: int,
    work: Path,
    crowd: np.ndarray | None = None,
    say: Say = lambda line: None,
) -> tuple[list[Figure], pa.Table]:
    """Section ``trained`` of an audit, and the networks' learning curves (``CURVES``).

    original, released : n encoded crops, FFHQ's alignment, paired
    subject : (n,) str, "" where unknown
    embeddings : recogniser → (n, D) of the originals and (n, D) of the released, unit vectors
    seed : of split, weights, batches and bootstrap; the same seed gives the same figures on the same kind of machine
    work : folder that keeps every training that is done, so a killed run goes on with the next
    crowd : see ``chosen``
    """
    rows = chosen(subject, order, seed, crowd)
    cut = split([original[i] for i in rows.tolist()], subject[rows], order, seed)
    left = len({name for name in subject.tolist() if name}) - cut.people
    if cut.people < 2:
        why = f"fewer than 2 people with {LEAST} different photos"
        return [Figure("trained", "top1", setting=name, note=why) for name in THREATS], CURVES.empty_table()
    rows = rows[cut.rows]
    note = f"at most {order.subjects} people are taken, with {LEAST} photos at least" if left else ""
    figures = [Figure("trained", "people left out", value=float(left), subjects=cut.people, note=note)]
    files = {"originals": [original[i] for i in rows.tolist()], "released": [released[i] for i in rows.tolist()]}
    notes = _notes(files["released"], cut)
    curves: list[dict[str, object]] = []
    tested = cut.person[cut.part == TEST].astype(str)
    people = People(tested, {}, np.random.default_rng(seed))

    pixels = {kind: _pixels(crops) for kind, crops in files.items()} if order.networks else {}
    for name in order.networks:
        settings = [VERSION, name, {**asdict(order), "networks": None}, seed, training.device().type]
        learnt = {}
        for kind, threats in (("originals", "T1"), ("released", "T2, T3")):
            say(f"{name} learns from {kind}: {cut.people} people, {int((cut.part == TRAIN).sum())} pictures")
            make = _Learn(name, pixels[kind], cut, order, seed, say)
            learnt[kind] = kept(work, f"attacker-{name}", [settings, _seen(files[kind], cut)], make)
            curves += _curve(learnt[kind]["curve"], name, threats)
        for threat, (source, shown) in THREATS.items():
            tests = pixels[shown][torch.from_numpy(cut.part == TEST)]
            score = _test(name, learnt[source], tests, cut.people, order.width(name))
            figures += _figures(score, cut, name, threat, notes[threat], people)

    for recogniser, sides in embeddings.items():
        vectors = dict(zip(("originals", "released"), (side[rows] for side in sides), strict=True))
        by, learnt = f"{recogniser} head", {}
        for kind in vectors:
            told = [VERSION, by, hashlib.sha256(vectors[kind].tobytes()).hexdigest(), cut.told]
            learnt[kind] = kept(work, "attacker-head", told, _Head(vectors[kind], cut))
        say(f"{by}: learnt")
        for threat, (source, shown) in THREATS.items():
            head = learnt[source]
            score = vectors[shown][cut.part == TEST] @ head["weight"].T + head["bias"]
            figures += _figures(score, cut, by, threat, notes[threat], people)
    return figures, pa.Table.from_pylist(curves, schema=CURVES)


# -------------------------------------------------------------------------------------------------------------- split


@dataclass(frozen=True)
class Split:
    """M faces of P people. rows : (M,) positions; person : (M,) int64; part : (M,) TRAIN, VALIDATION or TEST;
    people : P; told : what makes two splits the same, for a hash"""

    rows: np.ndarray
    person: np.ndarray
    part: np.ndarray
    people: int
    told: str


def chosen(subject: np.ndarray, order: Order, seed: int, crowd: np.ndarray | None = None) -> np.ndarray:
    """The faces of those who are tried: positions, at most ``order.subjects`` people of ``LEAST`` photos or more, those
    with the most first (no photo beyond ``order.photos`` counts), among equals by the seed.

    Names and counts alone decide, so an audit need not read the other pictures.

    crowd : (n,) the class of each face, where one picture stands for a class: who shares a class with a person who is
        taken is taken next. Where people of other classes only are left, k-same's 1/k could not be seen. None else
    """
    count = Counter(subject.tolist())
    able = [name for name in count if name and count[name] >= LEAST]
    rank = {name: (-min(count[name], order.photos), _draw("person", seed, name)) for name in able}
    first = dict(rank)
    if crowd is not None:
        of: dict[str, list[str]] = {}
        for name, cell in sorted({*zip(subject.tolist(), map(str, crowd.tolist()), strict=True)}):
            if name in rank:
                of.setdefault(cell, []).append(name)
        for members in of.values():
            best = min(rank[name] for name in members)
            for name in members:
                first[name] = min(first[name], best)
    taken = sorted(able, key=lambda name: (first[name], rank[name]))[: order.subjects]
    return np.flatnonzero(np.isin(subject, taken)) if taken else np.zeros(0, np.int64)


def split(original: Sequence[bytes], subject: np.ndarray, order: Order, seed: int) -> Split:
    """Each person's photos, in an order drawn by seed, name and content, into 7 to train, 1 to validate, 2 to test by;
    of other numbers a fifth and a tenth, one at least. A photo that a person has twice counts once."""
    digests = [hashlib.sha256(photo).hexdigest() for photo in original]
    own: dict[str, dict[str, int]] = {}
    for i, (name, digest) in enumerate(zip(subject.tolist(), digests, strict=True)):
        own.setdefault(name, {}).setdefault(digest, i)
    rows, person, part = [], [], []
    names = sorted(name for name, photos in own.items() if len(photos) >= LEAST)
    for number, name in enumerate(names):
        photos = sorted(own[name], key=lambda digest: _draw("photo", seed, name, digest))[: order.photos]
        test, validation = max(1, round(len(photos) * 0.2)), max(1, round(len(photos) * 0.1))
        rows += [own[name][digest] for digest in photos]
        person += [number] * len(photos)
        part += [TEST] * test + [VALIDATION] * validation + [TRAIN] * (len(photos) - test - validation)
    told = hashlib.sha256(json.dumps([person, part]).encode()).hexdigest()
    return Split(np.array(rows, np.int64), np.array(person, np.int64), np.array(part, np.int64), len(names), told)


def _draw(purpose: str, seed: int, *names: str) -> bytes:
    return hashlib.sha256(json.dumps(["facecrowd attackers", purpose, seed, *names]).encode()).digest()


def _seen(crops: Sequence[bytes], cut: Split) -> list[str]:
    """What a training sees: its pictures, whose they are and which of them validate."""
    learnt = np.flatnonzero(cut.part != TEST)
    return [cut.told, *(hashlib.sha256(crops[i]).hexdigest() for i in learnt.tolist())]


# ----------------------------------------------------------------------------------------------------------- networks


def _pixels(crops: Sequence[bytes]) -> Tensor:
    """(M, 3, 64, 64) uint8."""
    return (pictures([decode(crop) for crop in crops], SIDE) * 255).round().byte()


@dataclass(frozen=True)
class _Learn:
    """A training of a network: the arrays that it is kept as."""

    name: Name
    pixels: Tensor
    cut: Split
    order: Order
    seed: int
    say: Say

    def __call__(self) -> dict[str, np.ndarray]:
        """The weights of the epoch with the best validation top-1 (among equals, the smallest validation loss), and
        ``curve``: (epochs, 4) train_loss, train_top1, validation_top1, seconds."""
        order, device = self.order, training.device()
        part, person = torch.from_numpy(self.cut.part), torch.from_numpy(self.cut.person)
        x, y = self.pixels[part == TRAIN].to(device), person[part == TRAIN].to(device)
        held, held_y = self.pixels[part == VALIDATION], person[part == VALIDATION]
        draw = torch.Generator().manual_seed(self.seed)
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), flags:
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=draw)))
            network = NETWORKS[self.name](self.cut.people, order.width(self.name))
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            scale = _scale(x)
            # As many batches as are full: one of a single picture has no variance to normalise by.
            batches = max(1, len(x) // order.batch)
            optimiser, schedule = _optimiser(network, order, batches * order.epochs)
            best, state, curve, since = (-1.0, -math.inf), {}, [], 0
            for epoch in range(order.epochs):
                began, loss, hits = time.perf_counter(), 0.0, 0
                network.train()
                for some in torch.randperm(len(x), generator=draw).to(device).tensor_split(batches):
                    logits = network(_standard(vary(x[some], draw), scale))
                    cost = F.cross_entropy(logits, y[some], label_smoothing=order.smoothing)
                    optimiser.zero_grad()
                    cost.backward()
                    optimiser.step()
                    schedule.step()
                    loss += cost.item() * len(some)
                    hits += int((logits.argmax(1) == y[some]).sum())
                score = _scores(network, held, scale)
                top1 = float(success(score.numpy(), held_y.numpy(), 1).mean())
                curve.append((loss / len(x), hits / len(x), top1, time.perf_counter() - began))
                since = 0 if top1 > best[0] else since + 1
                if (found := (top1, -float(F.cross_entropy(score, held_y)))) > best:
                    best, state = found, {told: value.cpu().numpy().copy() for told, value in _weights(network)}
                if epoch % 10 == 9:
                    self.say(f"{self.name}: epoch {epoch + 1}, validation top-1 {top1:.3f}, best {best[0]:.3f}")
                if order.patience and since >= order.patience:
                    break
        return {"curve": np.array(curve), "scale": scale.cpu().numpy()} | state


def vary(x: Tensor, draw: torch.Generator) -> Tensor:
    """Pictures (N, 3, S, S) uint8 as a training sees them, float32 in [0, 255]: mirrored or not, moved by up to a
    sixteenth of the side each way (borders mirrored), and in light and contrast changed by up to a fifth."""
    n, _, side, _ = x.shape
    reach = side // 16
    mirrored = torch.rand(n, generator=draw) < 0.5
    corner = torch.randint(2 * reach + 1, (n, 2), generator=draw)
    gain, shift = (1 + (torch.rand(2, n, 1, 1, 1, generator=draw) * 2 - 1) * 0.2).to(x.device)
    x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(3), x).float()
    x = F.pad(x, (reach,) * 4, mode="reflect")
    x = torch.stack(
        [one[:, top : top + side, left : left + side] for one, (top, left) in zip(x, corner.tolist(), strict=True)]
    )
    return x * gain + (shift - 1) * 128


def _scale(x: Tensor) -> Tensor:
    """Mean and standard deviation of each channel of (N, 3, S, S) pictures: (2, 3, 1, 1)."""
    mean = x.float().mean((0, 2, 3))
    # A release may be of one flat colour.
    return torch.stack([mean, x.float().std((0, 2, 3)).clamp(min=1.0)])[:, :, None, None]


def _standard(x: Tensor, scale: Tensor) -> Tensor:
    return ((x.float() - scale[0]) / scale[1]).contiguous(memory_format=torch.channels_last)


def _optimiser(network: nn.Module, order: Order, steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """AdamW (Loshchilov and Hutter, ICLR 2019): a tenth of the steps warm up, the rest fall by a cosine to 0. Neither
    biases nor normalisations decay."""
    weights = [one for one in network.parameters() if one.ndim > 1]
    others = [one for one in network.parameters() if one.ndim <= 1]
    groups = [{"params": weights, "weight_decay": order.decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, order.rate)

    def rate(step: int) -> float:
        return min((step + 1) / (0.1 * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


@torch.no_grad()
def _scores(network: nn.Module, x: Tensor, scale: Tensor) -> Tensor:
    """Logits of pictures (N, 3, S, S) uint8, mean of each picture's and its mirror image's: (N, P), on the CPU."""
    network.eval()
    out = []
    for some in x.to(scale.device).split(256):
        seen = _standard(some, scale)
        out.append((network(seen) + network(seen.flip(3))) / 2)
    return torch.cat(out).float().cpu()


def _weights(network: nn.Module) -> list[tuple[str, Tensor]]:
    """The state of a network, under the names by which it is kept."""
    return [(f"weight.{name}", value) for name, value in network.state_dict().items()]


def _test(name: Name, learnt: dict[str, np.ndarray], x: Tensor, people: int, width: int) -> np.ndarray:
    """What a trained network says of pictures (N, 3, S, S) uint8: (N, P)."""
    device = training.device()
    with torch.random.fork_rng(devices=[]):
        network = NETWORKS[name](people, width)
    network.load_state_dict(
        {told.removeprefix("weight."): torch.from_numpy(learnt[told]) for told, _ in _weights(network)}
    )
    return _scores(network.to(device), x, torch.from_numpy(learnt["scale"]).to(device)).numpy()


# -------------------------------------------------------------------------------------------------------------- heads


@dataclass(frozen=True)
class _Head:
    """Multinomial logistic regression on frozen embeddings (M, D): the arrays that it is kept as.

    Of ``REGULARISERS`` the one with the best validation top-1; among equals, of the smallest validation loss.
    """

    vectors: np.ndarray
    cut: Split

    def __call__(self) -> dict[str, np.ndarray]:
        x, y = self.vectors[self.cut.part == TRAIN], self.cut.person[self.cut.part == TRAIN]
        held, held_y = self.vectors[self.cut.part == VALIDATION], self.cut.person[self.cut.part == VALIDATION]
        best, found = (-1.0, -math.inf), {}
        for c in REGULARISERS:
            with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
                fitted = LogisticRegression(C=c, max_iter=300).fit(x, y)
            weight, bias = fitted.coef_, fitted.intercept_
            if self.cut.people == 2:
                # Of two people scikit-learn keeps one row, for the second.
                weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
            score = held @ weight.T + bias
            top1 = float(success(score, held_y, 1).mean())
            loss = float((logsumexp(score, axis=1) - score[np.arange(len(held_y)), held_y]).mean())
            if (top1, -loss) > best:
                best, found = (top1, -loss), {"weight": weight, "bias": bias, "c": np.array(c)}
        return found


# ------------------------------------------------------------------------------------------------------------ figures


def success(score: np.ndarray, person: np.ndarray, rank: int) -> np.ndarray:
    """For each of N faces, how probably its person is among the ``rank`` best of (N, P) scores; among equals a guess.

    As in ``privacy/reidentification.py``: min(1, max(0, (rank - above) / tied)).
    """
    own = score[np.arange(len(person)), person][:, None]
    above = (score > own + TOLERANCE).sum(1)
    tied = (score >= own - TOLERANCE).sum(1) - above
    return np.clip((rank - above) / tied, 0.0, 1.0)


def _figures(score: np.ndarray, cut: Split, by: str, threat: str, note: str, people: People) -> Iterator[Figure]:
    """Top-1 and top-5: by subject, the unit of privacy, with its interval; and by face, as the paper counts."""
    person = cut.person[cut.part == TEST]
    better: Literal["lower", ""] = "" if threat == "originals" else "lower"
    for rank in RANKS:
        right, chance = success(score, person, rank), min(1.0, rank / cut.people)
        one = Figure("trained", f"top{rank}", by, threat, chance=chance, better=better, note=note)
        found = people.mean(one, right, rate=True)[0]
        yield found
        yield replace(found, name=f"top{rank} per face", value=float(right.mean()), low=None, high=None)


def _notes(released: Sequence[bytes], cut: Split) -> dict[str, str]:
    """What must be said of each threat where one released picture stands for several people."""
    digests = [hashlib.sha256(crop).hexdigest() for crop in released]
    stands_for: dict[str, set[int]] = {}
    for digest, person in zip(digests, cut.person.tolist(), strict=True):
        stands_for.setdefault(digest, set()).add(person)
    tests = [digests[i] for i in np.flatnonzero(cut.part == TEST)]
    learnt = {digests[i] for i in np.flatnonzero(cut.part != TEST)}
    crowds = [len(stands_for[digest]) for digest in tests]
    notes = dict.fromkeys(THREATS, "")
    if max(crowds) > 1:
        guess = float(np.mean([1 / crowd for crowd in crowds]))
        several = f"a released picture stands for {np.mean(crowds):.1f} of these people"
        shared = f"{several}; naming one of them achieves {guess:.2f}"
        notes |= dict.fromkeys(("T1", "T2", "T3"), shared)
    again = float(np.mean([digest in learnt for digest in tests]))
    if again:
        also = f"{again:.0%} of the pictures shown are files that the attacker learnt from"
        notes["T3"] = f"{notes['T3']}; {also}" if notes["T3"] else also
    return notes


def _curve(curve: np.ndarray, attacker: str, threat: str) -> list[dict[str, object]]:
    return [
        {"attacker": attacker, "threat": threat, "epoch": epoch} | dict(zip(CURVES.names[3:], row, strict=True))
        for epoch, row in enumerate(curve.tolist(), start=1)
    ]


# ---------------------------------------------------------------------------------------------------------- the paper

PAPER: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "Original": {
        "T1": (0.208, 0.421, 0.973, 0.935),
        "T2": (0.208, 0.421, 0.973, 0.935),
        "T3": (0.208, 0.421, 0.973, 0.935),
    },
    "Pixelation": {
        "T1": (0.160, 0.305, 0.458, 0.255),
        "T2": (0.168, 0.373, 0.116, 0.391),
        "T3": (0.182, 0.155, 0.292, 0.653),
    },
    "Blurring": {
        "T1": (0.151, 0.157, 0.922, 0.592),
        "T2": (0.193, 0.056, 0.942, 0.684),
        "T3": (0.190, 0.397, 0.912, 0.871),
    },
    "Masking": {
        "T1": (0.136, 0.072, 0.614, 0.289),
        "T2": (0.124, 0.223, 0.646, 0.201),
        "T3": (0.157, 0.114, 0.537, 0.051),
    },
    "AdvNoise": {
        "T1": (0.180, 0.366, 0.951, 0.765),
        "T2": (0.187, 0.314, 0.908, 0.878),
        "T3": (0.211, 0.256, 0.910, 0.760),
    },
    "DeepBlur 0.5": {
        "T1": (0.084, 0.209, 0.683, 0.330),
        "T2": (0.092, 0.213, 0.908, 0.500),
        "T3": (0.072, 0.225, 0.541, 0.460),
    },
    "DeepBlur 1.0": {
        "T1": (0.016, 0.043, 0.060, 0.000),
        "T2": (0.020, 0.020, 0.180, 0.000),
        "T3": (0.026, 0.032, 0.070, 0.126),
    },
}
"""DeepBlur, table 2: top-1 of VGG, ResNet18, Face++ and Azure on 100 people, after 500 epochs. AdvNoise is Fawkes."""

PAPER_BY = ("VGG", "ResNet18", "Face++", "Azure")


def paper_row(method: str) -> str | None:
    """The row of table 2 that a method of ours stands beside: blur, pixelate, mask, deepblur at sigma 0.5 or 1, and
    advnoise, where the paper's is Fawkes."""
    words = method.lower()
    if "deepblur" in words:
        sigma = re.search(r"\d+(\.\d+)?", words)
        return {0.5: "DeepBlur 0.5", 1.0: "DeepBlur 1.0"}.get(float(sigma[0])) if sigma else None
    rows = {
        "original": "Original",
        "pixelat": "Pixelation",
        "blur": "Blurring",
        "mask": "Masking",
        "advnoise": "AdvNoise",
    }
    return next((row for stem, row in rows.items() if words.startswith(stem)), None)


def table2(rows: Mapping[str, Sequence[Figure]]) -> str:
    """Top-1 by method, threat and attacker in the layout of DeepBlur's table 2, as Markdown.

    rows : method → its figures. In brackets stands what the paper printed for that method; in the columns of a head, of
    Face++ and Azure, whose place it takes here. The paper's other rows follow. A head on other embeddings than the
    first method's is named in its cell
    """
    trained = {m: [f for f in of if (f.section, f.name) == ("trained", "top1") and f.by] for m, of in rows.items()}
    found: dict[str, dict[tuple[str, str], Figure | None]] = {
        method: {(one.setting, _column(one.by)): one for one in figures} for method, figures in trained.items()
    }
    every = [one.by for figures in trained.values() for one in figures]
    by = list(dict.fromkeys(map(_column, every)))
    if not by:
        return f"No attacker was trained: too few people have {LEAST} photos.\n"
    usual = next((name for name in every if _column(name) == "head"), "")
    heads = [f"{threat} {usual if name == 'head' else name}" for threat in ("T1", "T2", "T3") for name in by]
    lines = ["| method | " + " | ".join(heads) + " |", "| --- |" + " --: |" * len(heads)]
    # Nothing was done to originals, so T1 to T3 are one there; every method has the same.
    if first := next((cells for cells in found.values() if any(t == "originals" for t, _ in cells)), None):
        plain = {(threat, name): first.get(("originals", name)) for threat in ("T1", "T2", "T3") for name in by}
        found = {"original": plain, **found}
    for method, cells in found.items():
        row = paper_row(method)
        shown = [_cell(cells.get((t, n)), row, t, n, usual) for t in ("T1", "T2", "T3") for n in by]
        lines.append(_line(method, shown))
    for row in PAPER:
        if row not in {paper_row(method) for method in found}:
            shown = [_cell(None, row, t, n, usual) for t in ("T1", "T2", "T3") for n in by]
            lines.append(_line(f"{row} (the paper's)", shown))
    return "\n".join(lines) + "\n"


def _line(method: str, cells: Sequence[str]) -> str:
    return f"| {method} | " + " | ".join(cells) + " |"


def _column(by: str) -> str:
    return "head" if by.endswith(" head") else by


def _cell(one: Figure | None, row: str | None, threat: str, by: str, usual: str) -> str:
    ours = "–" if one is None or one.value is None else f"{one.value:.3f}"
    if one is not None and by == "head" and one.by != usual:
        ours += f" {one.by.removesuffix(' head')}"
    if row is None:
        return ours
    printed = dict(zip(PAPER_BY, PAPER[row][threat], strict=True))
    beside = [name for name in PAPER_BY if by.startswith(name)] or ["Face++", "Azure"]
    return f"{ours} ({', '.join(f'{printed[name]:.3f}' for name in beside)})"
