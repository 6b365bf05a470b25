"""``facecrowd evaluate attributes``: every predictor and backbone on people none of them was trained on.

The shipped predictors face the subjects of the test split. Beside them stands each probe recipe by cross-validation
over all subjects (as much data to learn from as there is, every face judged by weights that never saw its person).
Intervals are bootstrapped over subjects, since faces of one person are not independent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from facecrowd.jobs import train_attributes as recipes
from facecrowd.jobs.labelled import Faces
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.stages import models as registry
from facecrowd.stages.attributes import ATTRIBUTES, SHIPPED, Calibration, Descriptor, Predictor, pictures
from facecrowd.stages.forests import Forests

RESAMPLES = 1000
ROUNDS, FEATURES = 3, 1000
BINS = 10
COMMON = 0.05
"""Attributes with at least this share of positives are asked for a balanced accuracy of 0.60."""

RULES = ("half", "0.5", "prior")
"""Thresholds: half-way in log odds between 0.5 and the prior (what the pipeline uses), 0.5, the training prior."""


@dataclass(frozen=True)
class Judgement:
    """What one predictor said of N faces.

    probability : (N, A); threshold, prior : (A,), or (N, A) where several fits judged
    """

    name: str
    how: str
    faces: Faces
    probability: np.ndarray
    threshold: np.ndarray
    prior: np.ndarray

    def cut(self, rule: str) -> np.ndarray:
        """The threshold of a rule, of the prior's shape."""
        return {"half": self.threshold, "0.5": np.full_like(self.prior, 0.5), "prior": self.prior}[rule]


def accuracy(value: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(..., A) share of faces named right. value, truth : (N, A) bool; weight : (..., N)."""
    return (weight @ (value == truth).astype(float)) / weight.sum(axis=-1, keepdims=True)


def balanced(value: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(..., A) mean of the true-positive and the true-negative rate; NaN where an attribute has only one value."""
    with np.errstate(invalid="ignore", divide="ignore"):
        positive = (weight @ (value & truth).astype(float)) / (weight @ truth.astype(float))
        negative = (weight @ (~value & ~truth).astype(float)) / (weight @ (~truth).astype(float))
    return (positive + negative) / 2


def calibration_error(probability: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error in ten equal bins (Naeini et al., AAAI 2015), of one attribute."""
    of = np.minimum((probability * BINS).astype(int), BINS - 1)
    gaps = [
        abs(probability[of == b].mean() - truth[of == b].mean()) * (of == b).mean()
        for b in range(BINS)
        if (of == b).any()
    ]
    return float(sum(gaps))


def figures(judged: Judgement, seed: int = 0) -> dict[str, Any]:
    """All figures of one predictor: means over attributes with intervals, and per attribute."""
    truth = judged.faces.labels > 0.5
    p = judged.probability
    ones = np.ones(len(truth))
    people, person = np.unique(judged.faces.subject, return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(people), np.full(len(people), 1 / len(people)), RESAMPLES)
    weights = draws[:, person].astype(float)
    common = truth.mean(axis=0) >= COMMON
    varied = np.asarray(truth.any(axis=0) & ~truth.all(axis=0))
    found: dict[str, Any] = {
        "predictor": judged.name,
        "how": judged.how,
        "faces": len(truth),
        "subjects": len(people),
        "majority": float(np.maximum(truth.mean(0), 1 - truth.mean(0)).mean()),
        "common_attributes": int(common.sum()),
    }
    for rule in RULES:
        value = p >= judged.cut(rule)
        scores = {"accuracy": accuracy, "balanced": balanced}
        for name, score in scores.items():
            mean = float(np.nanmean(score(value, truth, ones)))
            spread = np.quantile(np.nanmean(score(value, truth, weights), axis=1), (0.025, 0.975))
            found[f"{name}@{rule}"] = {"mean": mean, "low": float(spread[0]), "high": float(spread[1])}
        found[f"balanced>=0.60@{rule}"] = int((balanced(value, truth, ones)[common] >= 0.6).sum())
    value = p >= judged.threshold
    right, even = accuracy(value, truth, ones), balanced(value, truth, ones)
    spread = np.zeros((2, len(varied)))
    spread[:, varied] = np.nanquantile(balanced(value, truth, weights)[:, varied], (0.025, 0.975), axis=0)
    thresholds = np.atleast_2d(judged.threshold).mean(axis=0, dtype=float)
    rows, rates = [], {}
    for a, attribute in enumerate(ATTRIBUTES):
        both = bool(varied[a])
        rows.append(
            {
                "attribute": attribute,
                "positives": float(truth[:, a].mean()),
                "majority": float(max(truth[:, a].mean(), 1 - truth[:, a].mean())),
                "accuracy": float(right[a]),
                "balanced": float(even[a]) if both else None,
                "balanced_low": float(spread[0, a]) if both else None,
                "balanced_high": float(spread[1, a]) if both else None,
                "auc": float(roc_auc_score(truth[:, a], p[:, a])) if both else None,
                "ece": calibration_error(p[:, a], truth[:, a]),
                "threshold": float(thresholds[a]),
            }
        )
        if both:
            rates[attribute] = {
                "tpr": float(value[truth[:, a], a].mean()),
                "tnr": float((~value[~truth[:, a], a]).mean()),
            }
    found["auc"] = float(np.mean([row["auc"] for row in rows if row["auc"] is not None]))
    found["ece"] = float(np.mean([row["ece"] for row in rows]))
    found["attributes"] = rows
    found["confusion"] = {"predictor": judged.name, "attributes": rates}
    return found


def shipped(name: str, faces: Faces, models: str | None = None, collection: str | None = None) -> Judgement:
    """A predictor on faces. Raises InputError when some of their people trained it, or it saw their collection
    unlabelled. collection : its ``crops_sha256`` where the faces are only a part of it
    """
    predictor = Predictor.load(name, models)
    if (collection or faces.crops_sha256) in predictor.about.get("unlabelled_crops", ()):
        raise InputError(f"{name} was trained on these very photos, labelled by its teacher; judge it on others")
    known = set(predictor.about["splits"]) & set(faces.splits.tolist())
    if known:
        raise InputError(f"{name} was trained on people of the split {', '.join(sorted(known))}; judge it on others")
    c = predictor.calibration
    trained = f"trained on {'+'.join(predictor.about['splits'])} ({predictor.about['subjects']} people)"
    return Judgement(predictor.name, trained, faces, predictor.predict(faces.pixels()), c.threshold, c.prior)


def cross_validated(kind: str, faces: Faces, models: str | None = None, folds: int = recipes.FOLDS) -> Judgement:
    """A probe recipe, every face judged by a fit on other subjects; temperatures from the training folds alone."""
    features = recipes.descriptors(Descriptor.load(recipes.PROBES[kind], models), faces)
    fold = faces.folds(folds)
    p, cut, prior = (np.zeros(faces.labels.shape, np.float32) for _ in range(3))
    for i in range(folds):
        seen, new = faces.take(fold != i), fold == i
        x = features[~new]
        inner = recipes.out_of_fold(seen, x, lambda a, b: recipes.fit_probe(a, b).logits, folds=3)
        calibration: Calibration = recipes.calibrate(inner, seen.labels, seen.labels.mean(axis=0))
        logits = recipes.fit_probe(x, seen.labels).logits(features[new])
        p[new] = expit(logits / calibration.temperature)
        cut[new], prior[new] = calibration.threshold, calibration.prior
    how = f"{folds}-fold cross-validation over all people"
    return Judgement(f"probe {kind}", how, faces, p, cut, prior)


def evaluate(
    faces: Faces,
    predictors: Sequence[str] = SHIPPED,
    kinds: Sequence[str] = tuple(recipes.PROBES),
    models: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Figures of shipped predictors on the test split, then of probe recipes by cross-validation.

    Raises InputError when the faces have no labels, or none are of the test split; ConfigError on a kind that is none.
    """
    if unknown := [kind for kind in kinds if kind not in recipes.PROBES]:
        raise ConfigError(f"--probes {unknown[0]}: is none of {', '.join(recipes.PROBES)}")
    collection = faces.crops_sha256
    faces = faces.take(~np.isnan(faces.labels).any(axis=1))
    test = faces.of("test")
    if not len(test):
        raise InputError("no labelled face of a test subject: give --table, or more people")
    found = []
    for name in predictors:
        say(f"{name}: {len(test)} faces of {len(set(test.subject.tolist()))} test subjects")
        found.append(figures(shipped(name, test, models, collection)))
    for kind in kinds:
        say(f"probe {kind}: cross-validation over {len(set(faces.subject.tolist()))} subjects")
        found.append(figures(cross_validated(kind, faces, models)))
    return found


def detailed(names: str, predictors: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Whose attributes to print: ``all``, the comma-separated names, or, where there is none, the first two.

    Raises ConfigError on a name that is not judged.
    """
    judged = [name if name in SHIPPED else Path(name).stem for name in predictors] + [f"probe {k}" for k in kinds]
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if wanted == ["all"]:
        return judged
    if unknown := [name for name in wanted if name not in judged]:
        raise ConfigError(f"--detailed {unknown[0]}: is none of all, {', '.join(judged)}")
    return wanted or judged[:2]


def show(found: Sequence[dict[str, Any]], detailed: Sequence[str]) -> None:
    """Print the summary of all, and the attributes of ``detailed``."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=200)

    def cell(row: dict[str, Any], name: str) -> str:
        s = row[name]
        return f"{100 * s['mean']:.1f} [{100 * s['low']:.1f}, {100 * s['high']:.1f}]"

    table = Table(
        "predictor",
        "judged on",
        "majority",
        "accuracy @ half",
        "balanced @ half",
        "≥ 0.60",
        "accuracy @ 0.5",
        "balanced @ prior",
        "AUC",
        "ECE",
        title="Means over 40 attributes, per cent, with 95 % intervals over subjects",
    )
    for row in found:
        table.add_row(
            row["predictor"],
            f"{row['faces']} faces, {row['subjects']} people, {row['how']}",
            f"{100 * row['majority']:.1f}",
            cell(row, "accuracy@half"),
            cell(row, "balanced@half"),
            f"{row['balanced>=0.60@half']}/{row['common_attributes']}",
            cell(row, "accuracy@0.5"),
            cell(row, "balanced@prior"),
            f"{row['auc']:.3f}",
            f"{row['ece']:.3f}",
        )
    console.print(table)
    console.print(
        "Thresholds: 'half' lies half-way in log odds between 0.5 and the attribute's share among the training faces; "
        "'≥ 0.60' counts the attributes with 5 % or more positives whose balanced accuracy reaches it."
    )
    for row in found:
        if row["predictor"] not in detailed:
            continue
        each = Table("attribute", "positives", "majority", "accuracy", "balanced", "AUC", "ECE", title=row["predictor"])
        for a in row["attributes"]:
            even = (
                "–"
                if a["balanced"] is None
                else (f"{100 * a['balanced']:.1f} [{100 * a['balanced_low']:.0f}, {100 * a['balanced_high']:.0f}]")
            )
            auc = "–" if a["auc"] is None else f"{a['auc']:.3f}"
            each.add_row(
                a["attribute"],
                f"{100 * a['positives']:.1f}",
                f"{100 * a['majority']:.1f}",
                f"{100 * a['accuracy']:.1f}",
                even,
                auc,
                f"{a['ece']:.3f}",
            )
        console.print(each)


def throughput(
    faces: Faces, predictors: Sequence[str] = SHIPPED, models: str | None = None, count: int = 96
) -> list[dict[str, Any]]:
    """Faces per second on one CPU thread (median of three rounds), and on a GPU where there is one: of each predictor
    from decoded crops, of forests alone on drawn features, and of ONNX Runtime on the ArcFace network, face by face.
    """
    crops = faces.take(np.arange(min(count, len(faces)))).pixels()
    threads = torch.get_num_threads()
    rows = []
    for name in predictors:
        predictor = Predictor.load(name, models)
        row: dict[str, Any] = {"predictor": predictor.name}
        torch.set_num_threads(1)
        row["fp32, 1 thread"] = _rate(lambda p=predictor: p.predict(crops), len(crops))  # type: ignore[misc]
        with torch.autocast("cpu", torch.bfloat16):
            row["bf16, 1 thread"] = _rate(lambda p=predictor: p.predict(crops), len(crops))  # type: ignore[misc]
        torch.set_num_threads(threads)
        if torch.cuda.is_available():
            predictor = predictor.cuda()
            x = pictures(crops, predictor.descriptor.size).cuda().repeat(8, 1, 1, 1)
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
                row["bf16, GPU"] = _rate(lambda p=predictor, x=x: p.logits(x).sum().item(), len(x))  # type: ignore[misc]
        rows.append(row)
        if isinstance(predictor.head, Forests):
            forests = predictor.head
            drawn = np.random.default_rng(0).standard_normal((FEATURES, int(forests.width)), np.float32)
            rate = _rate(lambda f=forests, x=drawn: f.predict(x), len(drawn))  # type: ignore[misc]
            rows.append({"predictor": f"{predictor.name}, forests alone", "NumPy, 1 thread": rate})
    rows.append({"predictor": "arcface-mobilefacenet", "ONNX Runtime, 1 thread": _onnx_rate(models)})
    return rows


def _onnx_rate(models: str | None, faces: int = 32) -> float:
    """The ArcFace network alone, in the runtime most people use: what the probe on it is compared with."""
    import onnxruntime

    file = registry.path("arcface-mobilefacenet", folder=models)
    session = onnxruntime.InferenceSession(str(file), **registry.session("cpu", 1))
    (given,) = session.get_inputs()
    face = np.random.default_rng(0).standard_normal((1, 3, 112, 112), np.float32)
    return _rate(lambda: [session.run(None, {given.name: face}) for _ in range(faces)], faces)


def _rate(work: Callable[[], Any], faces: int) -> float:
    """Faces per second, the median of three rounds after one that does not count."""
    work()
    took = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return faces / float(np.median(took))


def show_throughput(rows: Sequence[dict[str, Any]]) -> None:
    """Print faces per second."""
    for row in rows:
        rates = ", ".join(f"{name} {value:.0f}" for name, value in row.items() if name != "predictor")
        print(f"{row['predictor']}: faces/s: {rates}")
