"""What a release is still good for, and what its pixels tell of the originals: sections ``utility`` and ``inference``.

Released faces are compared with the originals they stand for, each pair of people by what each measure needs:

    pictures      PSNR, SSIM, MS-SSIM, LPIPS (VGG16) of the pair; FID and KID of the two sets
    geometry      whether a face is found, how far its five landmarks and its pose moved (``stages/pose.py``)
    attributes    whether the judge predictor still sees the attributes that should stay, and sees the planned ones
    downstream    a classifier of attributes trained on the release and tested on originals of other people, beside one
                  trained on the originals of the same people
    inference     the attack: a classifier trained on released faces of people whose originals' attributes are known
                  tells those of other people from their released faces, beside guessing the majority

Every subject weighs the same, however many photos; intervals are 95 % percentile bootstraps over subjects, except where
a figure's note says otherwise. Of a large release whole subjects are sampled, in an order that only their names decide
(``sampled``), so that releases of one workspace are compared on the same people.

Classifiers are ridge logistic regressions (``train_attributes.fit_probe``) on features of frozen networks, in five
folds of subjects. Downstream use takes Inception's features, as no renderer, recogniser or attack here looks through
it, and FID needs them anyway; without its weights those of ``stages/hog.py``, which needs none. The attack tries all
features, the judge's backbone too, and the strongest is named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from facecrowd.jobs.bootstrap import People, Statistic, auc, balanced, correlation, joined, mean
from facecrowd.jobs.figures import Figure
from facecrowd.jobs.renditions import SIDE, Networks, Say, by_chunk
from facecrowd.jobs.train_attributes import fit_probe
from facecrowd.stages import hog, models, quality
from facecrowd.stages.attributes import ATTRIBUTES, BACKBONES, JUDGE, Card, Predictor, pictures
from facecrowd.stages.decode import decode
from facecrowd.stages.networks.inception import Inception
from facecrowd.stages.networks.vgg import Lpips
from facecrowd.stages.pose import pose

ASKED = ("Male", "Young", "Smiling", "Eyeglasses")
"""Attributes that are measured one by one, whatever the policy names."""

SAMPLE = 1_000
"""Faces looked at, by default: about eleven minutes of one thread, most of it LPIPS and Inception."""

FOLDS = 5
LEAST = 10
"""People of each value that a classifier is trained and tested with."""
AT_ONCE = 8

ANGLES = ("yaw", "pitch", "roll")
EVERY = "mean of attributes"
HOG = "hog"
PAIRED = ("psnr", "ssim", "ms_ssim", "lpips")


def sampled(subject: np.ndarray, most: int = SAMPLE) -> np.ndarray:
    """Positions of the faces of whole subjects, at most ``most`` of them where the first subject has no more.

    subject : (n,) str; the order of subjects is decided by a hash of their names, that of a subject's faces stays.
    """
    people, person, photos = np.unique(subject, return_inverse=True, return_counts=True)
    order = np.array(sorted(range(len(people)), key=lambda i: hashlib.sha256(str(people[i]).encode()).digest()), int)
    rank = np.empty(len(people), int)
    rank[order] = np.arange(len(people))
    taken = max(1, int(np.searchsorted(np.cumsum(photos[order]), most, side="right")))
    rows = np.flatnonzero(rank[person] < taken)
    return rows[np.argsort(rank[person[rows]], kind="stable")]


@dataclass(frozen=True)
class Pairs:
    """n released faces and the originals they stand for.

    original, released : JPEG bytes of aligned crops
    subject : (n,) str
    original_points, released_points : (n, 5, 2) px, landmarks found anew in each picture, NaN where no face was found
    labels : attribute → (n,) int8 of the originals: 1, 0, and -1 where unknown
    shown : attribute → (n,) str, what the release states: "1", "0", "*"
    groups : attribute → (n,) str, "" where unknown
    out_of : faces of the release of which these were sampled; 0 for all
    """

    original: Sequence[bytes]
    released: Sequence[bytes]
    subject: np.ndarray
    original_points: np.ndarray
    released_points: np.ndarray
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    shown: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    out_of: int = 0

    def __len__(self) -> int:
        return len(self.subject)


@dataclass(frozen=True)
class Eyes:
    """The networks that look; None for those that are not at hand, so that what they would say is not measured."""

    lpips: Lpips | None = None
    inception: Inception | None = None
    judge: Predictor | None = None
    device: str = "cpu"

    @classmethod
    def load(cls, networks: Networks, judge: str = JUDGE) -> Eyes:
        """Those whose weights are on this machine: nothing is fetched."""
        device = str(networks.device)

        def had(*names: str) -> bool:
            try:
                for name in names:
                    models.path(name, folder=networks.folder, download=False)
            except models.ModelError:
                return False
            return True

        predictor = None
        try:
            if had(*(card.backbone for card in Card.read(judge).line() if card.backbone in BACKBONES)):
                predictor = Predictor.load(judge, networks.folder, device)
        except models.ModelError:
            predictor = None
        return cls(
            networks.lpips if had("lpips-vgg16") else None,
            networks.inception if had("inception-fid") else None,
            predictor,
            device,
        )


# ------------------------------------------------------------------------------------------------------------ looking


@dataclass(frozen=True)
class Looked:
    """What the networks saw in the m distinct pictures.

    features : extractor → (m, D); judged : (m, 40) probabilities, or None
    original, released : (n,) positions of the pairs' pictures among the m
    """

    features: dict[str, np.ndarray]
    judged: np.ndarray | None
    original: np.ndarray
    released: np.ndarray


def look(pairs: Pairs, eyes: Eyes, work: Path, say: Say = lambda line: None) -> Looked:
    """Look at every distinct picture once: one decode for all networks, kept in ``work`` by the chunk.

    One surrogate that stands for a class is looked at once, and an original once for all releases of it.
    """
    originals = list(dict.fromkeys(pairs.original))
    known = set(originals)
    others = [picture for picture in dict.fromkeys(pairs.released) if picture not in known]
    told = ["looked", 1, HOG, "" if eyes.judge is None else eyes.judge.sha256]
    told.append("" if eyes.inception is None else models.MODELS["inception-fid"].sha256)

    def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
        return _seen([decode(picture) for picture in some], eyes)

    parts = []
    for what, some in (("originals", originals), ("released", others)):
        if some:
            say(f"look at {len(some)} {what}")
            parts.append(by_chunk(some, work, "looked", told, make, say=say))
    features = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    place = {picture: i for i, picture in enumerate([*originals, *others])}
    return Looked(
        {name: found for name, found in features.items() if name != "judged"},
        features.get("judged"),
        np.array([place[picture] for picture in pairs.original]),
        np.array([place[picture] for picture in pairs.released]),
    )


@torch.no_grad()
def _seen(crops: Sequence[np.ndarray], eyes: Eyes) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {HOG: [hog.features(crop)[None].astype(np.float16) for crop in crops]}
    for start in range(0, len(crops), AT_ONCE):
        some = crops[start : start + AT_ONCE]
        if eyes.inception is not None:
            seen = eyes.inception.features(pictures(some, SIDE).to(eyes.device))
            found.setdefault("inception", []).append(seen.float().cpu().numpy())
        if eyes.judge is not None:
            descriptor = eyes.judge.descriptor
            seen = descriptor(pictures(some, descriptor.size).to(eyes.device))
            found.setdefault(backbone(eyes.judge), []).append(seen.half().cpu().numpy())
            temperature = torch.as_tensor(eyes.judge.calibration.temperature, device=seen.device)
            p = torch.sigmoid(eyes.judge.score(seen) / temperature)
            found.setdefault("judged", []).append(p.float().cpu().numpy())
    return {name: np.concatenate(part) for name, part in found.items()}


def backbone(predictor: Predictor) -> str:
    """The name of the features that a predictor looks through."""
    return str(predictor.about.get("backbone", "")) or predictor.name


def compared(pairs: Pairs, eyes: Eyes, work: Path, say: Say = lambda line: None) -> dict[str, np.ndarray]:
    """PSNR (infinite for equal pictures), SSIM, MS-SSIM and, where it is at hand, LPIPS of each pair: (n,) float64.

    At 256 px. Kept by the chunk of pairs.
    """
    both = [_digest(a) + _digest(b) for a, b in zip(pairs.original, pairs.released, strict=True)]
    place = {name: i for i, name in enumerate(both)}

    @torch.no_grad()
    def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
        rows, found = [place[name] for name in some], {name: np.empty(len(some)) for name in names}
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            x, y = (
                pictures([decode(side[i]) for i in part], SIDE).to(eyes.device)
                for side in (pairs.original, pairs.released)
            )
            for name, values in _compare(eyes, x, y).items():
                found[name][start : start + len(part)] = values.double().cpu().numpy()
        return found

    names = PAIRED if eyes.lpips is not None else PAIRED[:3]
    say(f"compare {len(pairs)} pairs")
    return by_chunk(both, work, "pairs", ["pairs", 1, *names], make, say=say)


def _compare(eyes: Eyes, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    values = {"psnr": quality.psnr(x, y), "ssim": quality.ssim(x, y), "ms_ssim": quality.ms_ssim(x, y)}
    return values if eyes.lpips is None else {**values, "lpips": quality.lpips(eyes.lpips, x, y)}


def _digest(picture: bytes) -> bytes:
    return hashlib.sha256(picture).digest()


# ------------------------------------------------------------------------------------------------------------ utility


def utility_figures(
    pairs: Pairs,
    eyes: Eyes,
    rng: np.random.Generator,
    *,
    work: Path,
    attributes: Sequence[str] = (),
    say: Say = lambda line: None,
    names: Sequence[str] = (),
) -> list[Figure]:
    """Section ``utility``.

    attributes : the policy's, measured beside ``ASKED``
    names : of figures that are wanted; what makes none of them is left out. None for all
    work : folder in which what takes long is kept; it shows people, so it belongs into the workspace
    """
    if not len(pairs):
        return [Figure("utility", "psnr", better="higher", note="no released face")]
    people = People(pairs.subject, pairs.groups, rng)
    asked = tuple(dict.fromkeys([*ASKED, *attributes]))

    def wanted(*made: str) -> bool:
        return not names or any(name.startswith(made) for name in names)

    if not wanted("lpips"):
        eyes = replace(eyes, lpips=None)
    if not wanted("fid", "kid", "downstream"):
        eyes = replace(eyes, inception=None)
    looked = cache(lambda: look(pairs, eyes, work, say))
    found: list[Figure] = []
    if wanted(*PAIRED):
        found += _likeness(people, compared(pairs, eyes, work, say))
    if wanted("fid", "kid"):
        found += _distance(people, looked())
    if wanted("detected", "landmark", "pose"):
        found += _geometry(people, pairs)
    if wanted("agreement", "shown"):
        found += _agreement(people, pairs, eyes, looked(), asked)
    if wanted("downstream"):
        say("downstream use")
        found += _downstream(people, pairs, looked(), asked, people.folds(FOLDS, rng))
    return _of_a_sample(pairs, found)


def _of_a_sample(pairs: Pairs, found: Sequence[Figure]) -> list[Figure]:
    if pairs.out_of <= len(pairs):
        return list(found)
    note = f"a sample of whole subjects, of {pairs.out_of} faces"
    return [replace(one, note=joined(one.note, note)) if one.group == "" else one for one in found]


def _likeness(people: People, values: Mapping[str, np.ndarray]) -> list[Figure]:
    out = []
    for name in PAIRED[:3]:
        equal = np.isinf(values[name])
        note = f"infinite for {equal.sum()} pictures that equal their originals; they are left out"
        one = Figure("utility", name, "", "originals", better="higher", note=note if equal.any() else "")
        out += people.mean(one, np.where(equal, np.nan, values[name]))
    one = Figure("utility", "lpips", "lpips-vgg16", "originals", better="lower")
    if "lpips" in values:
        return out + people.mean(one, values["lpips"], by_group=True)
    return [*out, replace(one, note=_absent("lpips-vgg16"))]


def _absent(name: str) -> str:
    return f"not measured: {name} is not at hand (facecrowd models pull {name})"


def _distance(people: People, looked: Looked) -> list[Figure]:
    """FID and KID, of the originals and the released faces that stand for them."""
    fid = Figure("utility", "fid", "inception-fid", "originals", better="lower")
    kid = replace(fid, name="kid")
    if "inception" not in looked.features or people.count < 3:
        few = f"not measured: {people.count} people are too few"
        note = few if "inception" in looked.features else _absent("inception-fid")
        return [replace(fid, note=note), replace(kid, note=note)]
    a, b = (looked.features["inception"][rows] for rows in (looked.original, looked.released))
    value, low, high = kernel_distance(a, b, people.person)
    few = (
        f"{len(a)} pictures on each side; biased upwards for so few, so compare it only with that of as many; no "
        f"interval, as resampling people repeats pictures and adds to the bias"
    )
    unbiased = "unbiased, over pairs of different people; interval by jackknife over subjects"
    fid = replace(fid, value=quality.fid(a, b), note=few)
    kid = replace(kid, value=value, low=low, high=high, note=unbiased)
    return [replace(one, faces=len(a), subjects=people.count) for one in (fid, kid)]


def kernel_distance(a: np.ndarray, b: np.ndarray, person: np.ndarray) -> tuple[float, float, float]:
    r"""Kernel Inception distance of paired sets, (n, d) each, and its 95 % interval by jackknife over people.

    .. math:: E k(a, a') + E k(b, b') - 2 E k(a, b'), \quad k(x, y) = (x^\top y / d + 1)^3

    (Bińkowski et al., Demystifying MMD GANs, ICLR 2018), each mean over all pairs of faces of *different* people: a
    person's photos, and a picture and what became of it, are not independent. 0 in expectation for like sets.

    person : (n,) int from 0 on; three people at least
    """
    order = np.argsort(person, kind="stable")
    starts = np.unique(person[order], return_index=True)[1]
    count = np.diff(starts, append=len(person)).astype(np.float64)
    x, y = a[order].astype(np.float64), b[order].astype(np.float64)
    between = np.zeros((len(starts), len(starts)))
    for one, other, sign in ((x, x, 1), (y, y, 1), (x, y, -1), (y, x, -1)):
        kernel = (one @ other.T / x.shape[1] + 1) ** 3
        between += sign * np.add.reduceat(np.add.reduceat(kernel, starts, axis=0), starts, axis=1)
    pairs = np.outer(count, count)
    for matrix in (between, pairs):
        np.fill_diagonal(matrix, 0)
    value = between.sum() / pairs.sum()
    without = (between.sum() - 2 * between.sum(1)) / (pairs.sum() - 2 * pairs.sum(1))
    spread = np.sqrt((len(count) - 1) * np.var(without))
    return float(value), float(value - 1.96 * spread), float(value + 1.96 * spread)


def _geometry(people: People, pairs: Pairs) -> list[Figure]:
    before, after = (np.asarray(x, np.float64) for x in (pairs.original_points, pairs.released_points))
    seen = [np.asarray(np.isfinite(points).all((1, 2))) for points in (before, after)]
    one = Figure("utility", "detected", "detector", "released", better="higher")
    out = people.mean(one, seen[1], True, by_group=True)
    out += people.mean(replace(one, setting="originals"), seen[0], True)
    both = seen[0] & seen[1]
    without = f"not of the {(~both).sum()} faces that were found in one of the pictures only, or in none"
    note = "" if both.all() else without
    eyes = np.linalg.norm(before[:, 1] - before[:, 0], axis=1)
    moved = np.linalg.norm(after - before, axis=2).mean(1) / eyes
    one = Figure("utility", "landmark_distance", "detector", "distance of the eyes", better="lower", note=note)
    out += people.mean(one, np.where(both, moved, np.nan))
    turned = np.where(both[:, None, None], np.stack([pose(before), pose(after)], 2), np.nan)
    for angle, name in enumerate(ANGLES):
        x, y = turned[:, angle].T
        apart = np.abs((y - x + 180) % 360 - 180)
        one = Figure("utility", "pose_difference", "detector", name, better="lower", note=joined("degrees", note))
        out += people.mean(one, apart)
        upright = "crops are turned upright, which leaves little of it" if name == "roll" else ""
        one = replace(one, name="pose_correlation", better="higher", note=joined(note, upright))
        rows = np.isfinite(apart)
        if rows.sum() < 3 or min(np.std(x[rows]), np.std(y[rows])) < 1e-9:
            out.append(replace(one, note=joined("not measured: too few heads, or none that differ", note)))
        else:
            out.append(people.figure(one, correlation(x[rows], y[rows]), rows))
    return out


def _agreement(people: People, pairs: Pairs, eyes: Eyes, looked: Looked, asked: Sequence[str]) -> list[Figure]:
    """The judge on the pairs: attributes that no plan sets stay, those that it sets are shown."""
    kept = Figure("utility", "agreement", setting=EVERY, better="higher")
    planned = [name for name, values in pairs.shown.items() if np.isin(values, ("0", "1")).any()]
    if eyes.judge is None or looked.judged is None:
        note = "not measured: no judge predictor is at hand (facecrowd models pull)"
        return [replace(kept, note=note), *(replace(kept, name="shown", setting=name, note=note) for name in planned)]
    kept = replace(kept, by=eyes.judge.name)
    values = eyes.judge.values(looked.judged)
    before, after = values[looked.original], values[looked.released]
    everybody = np.ones(len(pairs), bool)

    def guess(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> float:
        """Of two independent values that both are as often true as these."""
        p, q = people.share(x, rows) or 0.0, people.share(y, rows) or 0.0
        return p * q + (1 - p) * (1 - q)

    stay = [a for a, name in enumerate(ATTRIBUTES) if name not in planned]
    same = before == after
    one = replace(kept, chance=float(np.mean([guess(before[:, a], after[:, a], everybody) for a in stay])))
    one = replace(one, note=f"{len(stay)} attributes that no plan sets, as the predictor sees them in both pictures")
    out = people.mean(one, same[:, stay].mean(1), by_group=True)
    for a in (a for a in stay if ATTRIBUTES[a] in asked):
        one = replace(kept, setting=ATTRIBUTES[a], chance=guess(before[:, a], after[:, a], everybody))
        out += people.mean(one, same[:, a], True)
    for name in planned:
        one = replace(kept, name="shown", setting=name)
        if name not in ATTRIBUTES:
            out.append(replace(one, note="not measured: the predictor does not know it"))
            continue
        a, stated = ATTRIBUTES.index(name), np.isin(pairs.shown[name], ("0", "1"))
        asked_for = pairs.shown[name] == "1"
        labels = pairs.labels.get(name, np.full(len(pairs), -1))
        known = labels >= 0
        sure = float(np.mean(before[known, a] == labels[known])) if known.any() else None
        note = f"the predictor agrees with the labels of {sure:.0%} of the originals" if sure is not None else ""
        chance = guess(asked_for, after[:, a], stated)
        right = np.where(stated, after[:, a] == asked_for, np.nan)
        out += people.mean(replace(one, chance=chance, note=note), right, True)
    return out


# -------------------------------------------------------------------------------------------------------- classifiers


@dataclass(frozen=True)
class Scores:
    """Of attributes by classifiers that saw no face of the same subject, (n, A) each, NaN where none could be trained.

    logits : of the attribute; prior : of its share among the faces that the classifier learned from
    """

    logits: np.ndarray
    prior: np.ndarray

    def likely(self, a: int) -> np.ndarray:
        """Where attribute a is likelier than not: what is most often right."""
        return np.asarray(self.logits[:, a] >= 0)

    def raised(self, a: int) -> np.ndarray:
        """Where it is likelier than in the training faces: what is best for balanced accuracy."""
        return np.asarray(self.logits[:, a] >= self.prior[:, a])


def crossed(train: np.ndarray, labels: np.ndarray, tests: Sequence[np.ndarray], fold: np.ndarray) -> list[Scores]:
    """Train on the faces outside each fold, and score those inside it in every one of ``tests``.

    train, tests : (n, D) features, of the same n faces; labels : (n, A) int8, 1, 0, and -1 where unknown;
    fold : (n,) int, the same for all faces of a subject
    """
    out = [Scores(np.full(labels.shape, np.nan), np.full(labels.shape, np.nan)) for _ in tests]
    for number in np.unique(fold):
        rest, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        # Attributes that are known of the same faces are trained together.
        known, which = np.unique(labels[rest] >= 0, axis=1, return_inverse=True)
        for pattern in range(known.shape[1]):
            columns, rows = np.flatnonzero(which == pattern), rest[known[:, pattern]]
            if not len(rows):
                continue
            target = labels[np.ix_(rows, columns)].astype(np.float32)
            share = target.mean(0).clip(1e-3, 1 - 1e-3)
            prior = np.log(share / (1 - share))
            given = train[rows].astype(np.float32)
            probe = fit_probe(given, target) if np.ptp(given, axis=0).any() else None
            for scores, test in zip(out, tests, strict=True):
                at = np.ix_(held, columns)
                scores.logits[at] = prior if probe is None else probe.logits(test[held].astype(np.float32))
                scores.prior[at] = prior
    return out


def _labels(pairs: Pairs, names: Sequence[str]) -> np.ndarray:
    """(n, A) int8 of the originals."""
    unknown = np.full(len(pairs), -1, np.int8)
    return np.stack([np.asarray(pairs.labels.get(name, unknown), np.int8) for name in names], 1)


def _refusal(people: People, labels: np.ndarray) -> str:
    """Why an attribute (n,) cannot be measured; empty where it can."""
    if not (labels >= 0).any():
        return "not measured: the originals have no such label"
    least = min(people.among(labels == value) for value in (0, 1))
    return f"not measured: only {least} people have its rarer value" if least < LEAST else ""


def _judged(people: People, one: Figure, scores: Scores, a: int, labels: np.ndarray, name: str = "") -> list[Figure]:
    """Accuracy, balanced accuracy and AUC of attribute a, labels (n,) of the originals; ``name`` goes before theirs.

    Chance for the first is the share of the commoner value.
    """
    rows = (labels >= 0) & np.isfinite(scores.logits[:, a])
    truth = labels[rows] == 1
    one, share = replace(one, chance=0.5), people.share(labels == 1, rows)
    chance = None if share is None else max(share, 1 - share)
    accuracy = replace(one, name=f"{name}accuracy", chance=chance)
    raised = scores.raised(a)[rows] == truth
    lead = (scores.logits - scores.prior)[rows, a]
    return [
        people.figure(accuracy, mean(scores.likely(a)[rows] == truth), rows, True),
        people.figure(replace(one, name=f"{name}balanced_accuracy"), balanced(raised, truth), rows, True),
        people.figure(replace(one, name=f"{name}auc"), auc(lead, truth), rows, True),
    ]


def _per_face(people: People, scores: Scores, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of a face's attributes that is told right, and that guessing the commoner value gets: (n,) each."""
    known = (labels >= 0) & np.isfinite(scores.logits)
    common = [(people.share(column == 1, rows) or 0.0) >= 0.5 for column, rows in zip(labels.T, known.T, strict=True)]
    with np.errstate(invalid="ignore"):
        right, majority = (
            (known & (guess == (labels == 1))).sum(1) / known.sum(1) for guess in (scores.logits >= 0, np.array(common))
        )
    return right, majority


def _measurable(people: People, one: Figure, pairs: Pairs, asked: Sequence[str]) -> tuple[list[str], list[Figure]]:
    """The attributes that can be measured, and figures that say why the others cannot."""
    reasons = {name: _refusal(people, labels) for name, labels in zip(asked, _labels(pairs, asked).T, strict=True)}
    if people.count < FOLDS:
        reasons = dict.fromkeys(asked, f"not measured: {people.count} people are too few")
    return (
        [name for name in asked if not reasons[name]],
        [replace(one, setting=name, note=reasons[name]) for name in asked if reasons[name]],
    )


def _downstream(people: People, pairs: Pairs, looked: Looked, asked: Sequence[str], fold: np.ndarray) -> list[Figure]:
    extractor = "inception" if "inception" in looked.features else HOG
    sides = (f"{extractor}, trained on the release", f"{extractor}, trained on originals")
    one = Figure("utility", "downstream_balanced_accuracy", sides[0], better="higher")
    names, out = _measurable(people, one, pairs, asked)
    if not names:
        return out
    truth = _labels(pairs, names)
    stated = truth.copy()
    for a, name in enumerate(names):
        shown = pairs.shown.get(name)
        if shown is not None and np.isin(shown, ("0", "1")).any():
            stated[:, a] = np.select([shown == "1", shown == "0"], [1, 0], -1)
    original, released = (looked.features[extractor][rows] for rows in (looked.original, looked.released))
    by_release, by_originals = (
        crossed(train, labels, [original], fold)[0] for train, labels in ((released, stated), (original, truth))
    )
    for scores, by in ((by_release, sides[0]), (by_originals, sides[1])):
        for a, name in enumerate(names):
            out += _judged(people, replace(one, by=by, setting=name), scores, a, truth[:, a], "downstream_")
        right, majority = _per_face(people, scores, truth)
        every = replace(one, name="downstream_accuracy", by=by, setting=EVERY)
        out += people.mean(every, right, by_group=True, guessed=majority)
    loss = Figure("utility", "downstream_loss", extractor, EVERY, better="lower")
    note = "balanced accuracy trained on originals, less that trained on the release"
    out.append(people.figure(replace(loss, note=note), *_loss(by_originals, by_release, truth)))
    return out


def _loss(a: Scores, b: Scores, truth: np.ndarray) -> tuple[Statistic, np.ndarray]:
    """The mean over attributes of the balanced accuracy of a less that of b, and the faces that it is of."""
    known = (truth >= 0) & np.isfinite(a.logits) & np.isfinite(b.logits)
    rows = known.any(1)
    parts = []
    for i in range(truth.shape[1]):
        some = known[rows, i]
        has = truth[rows, i][some] == 1
        parts.append((some, *(balanced(scores.raised(i)[rows][some] == has, has) for scores in (a, b))))
    return (lambda w: np.mean([one(w[:, some]) - other(w[:, some]) for some, one, other in parts], axis=0)), rows


# ---------------------------------------------------------------------------------------------------------- inference


def inference_figures(
    pairs: Pairs,
    eyes: Eyes,
    rng: np.random.Generator,
    *,
    work: Path,
    attributes: Sequence[str] = (),
    say: Say = lambda line: None,
) -> list[Figure]:
    """Section ``inference``: attributes of the originals from released faces, by each extractor of features.

    The attacker knows the originals' attributes of four fifths of the subjects, and the released faces of all. Against
    the majority, which knows the former alone. Arguments as of ``utility_figures``, which looks at the same pictures:
    what both need is kept in ``work``.
    """
    asked = tuple(dict.fromkeys([*ASKED, *attributes]))
    one = Figure("inference", "balanced_accuracy", better="lower")
    if not len(pairs):
        return [replace(one, setting=name, note="no released face") for name in asked]
    people = People(pairs.subject, pairs.groups, rng)
    names, out = _measurable(people, one, pairs, asked)
    if not names:
        return _of_a_sample(pairs, out)
    looked, truth, fold = look(pairs, eyes, work, say), _labels(pairs, names), people.folds(FOLDS, rng)
    found: dict[str, list[Figure]] = {name: [] for name in names}
    means: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for extractor, features in looked.features.items():
        say(f"inference: {extractor}")
        original, released = features[looked.original], features[looked.released]
        (scores,) = crossed(released, truth, [released], fold)
        (reference,) = crossed(original, truth, [original], fold)
        for a, name in enumerate(names):
            told = replace(one, by=extractor, setting=name)
            rows = (_judged(people, told, by, a, truth[:, a]) for by in (scores, reference))
            for row, on_originals in zip(*rows, strict=True):
                best = on_originals.value
                note = "" if best is None else f"on the originals themselves: {best:.3f}"
                found[name].append(replace(row, note=joined(row.note, note)))
        means[extractor] = _per_face(people, scores, truth)
    for name in names:
        out += _strongest(found[name], "the release states this attribute" if name in pairs.shown else "")
    best = max(means, key=lambda extractor: float(np.nanmean(means[extractor][0])))
    for extractor, (right, majority) in means.items():
        told = Figure("inference", "accuracy", extractor, EVERY, better="lower")
        if extractor == best:
            told = replace(told, note=_named(means))
        out += people.mean(told, right, by_group=extractor == best, guessed=majority)
    return _of_a_sample(pairs, out)


def _named(extractors: Iterable[str]) -> str:
    return f"the strongest of {', '.join(extractors)}"


def _strongest(found: Sequence[Figure], note: str) -> list[Figure]:
    """The figures of one attribute, with a note at those of the extractor whose balanced accuracy is highest."""
    of = {one.by: one.value for one in found if one.name == "balanced_accuracy" and one.value is not None}
    best = max(of, key=lambda by: of[by], default="")
    return [replace(one, note=joined(_named(of) if one.by == best else "", note, one.note)) for one in found]
