"""Facial attributes in a release: which predictors speak, what their probabilities mean, and what is measured by them.

Two predictors that share no weights: one infers what the input does not bring (``steer``), the other reads released
pixels (``judge``). What either says is measured against it, never a guarantee.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from facecrowd.pipeline import presets
from facecrowd.pipeline.config import Attributes, Policy
from facecrowd.pipeline.errors import ConfigError
from facecrowd.privacy.attributes import ANY
from facecrowd.stages import models

if TYPE_CHECKING:
    from facecrowd.pipeline.perturbation import Perturbations
    from facecrowd.pipeline.translation import Translations

UNKNOWN = -1

TERMS = f"facecrowd's own; trained on CelebA, which is for {models.NON_COMMERCIAL}"
"""Of the weights that come with the package."""


@dataclass(frozen=True)
class Predictor:
    """An attribute predictor's file as it was found; its networks are not loaded.

    file : shipped name or path; backbone : the model it builds on, by its name, and that file's hash (both empty where
    it brings its own); threshold : (40,) probability from which each attribute is true
    """

    file: str
    sha256: str
    backbone: str
    backbone_sha256: str
    threshold: tuple[float, ...]

    @property
    def name(self) -> str:
        """How a report calls it: never by a path of this machine."""
        shipped = not self.file.endswith(".safetensors")
        return self.file if shipped else f"the user's own ({os.path.basename(self.file)})"

    @property
    def digest(self) -> tuple[str, str]:
        """Equal digests speak alike."""
        return self.sha256, self.backbone_sha256

    @property
    def prior(self) -> tuple[float, ...]:
        """(40,) share of positives it was trained on: logit(threshold) = logit(prior) / 2."""
        return tuple(t**2 / (t**2 + (1 - t) ** 2) for t in self.threshold)

    def values(self, probabilities: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """(N, 40) int8, see ``stages.attributes.Calibration.values``."""
        from facecrowd.stages.attributes import Calibration

        # In 64 bits the way from thresholds to priors and back ends at the very same thresholds.
        return Calibration(np.ones(len(self.threshold)), np.array(self.prior)).values(probabilities, margin)

    def rows(self, purpose: str) -> list[dict[str, str]]:
        """It and what it builds on, as the audit names models."""
        own = {"name": self.name, "purpose": purpose, "sha256": self.sha256}
        own["licence"] = "as the user has it" if self.file.endswith(".safetensors") else TERMS
        if not self.backbone:
            return [own]
        known = models.MODELS.get(self.backbone)
        below = {"name": self.backbone, "purpose": f"backbone of the {purpose}", "sha256": self.backbone_sha256}
        return [own, {**below, "licence": known.licence if known else TERMS}]


@dataclass(frozen=True)
class Predictors:
    """Who speaks in a run: both may be None."""

    steer: Predictor | None = None
    judge: Predictor | None = None

    def rows(self) -> list[dict[str, str]]:
        """As the audit names models."""
        steer = self.steer.rows("attribute predictor") if self.steer else []
        return steer + (self.judge.rows("judge of attributes") if self.judge else [])

    def line(self) -> str:
        """What a dry run says of them."""
        said = [f"predicted by {self.steer.name}"] if self.steer else []
        return "attributes: " + ", ".join(said + ([f"judged by {self.judge.name}"] if self.judge else []))


def predictors(
    config: Attributes,
    policy: Policy,
    brought: Collection[str],
    folder: str | None = None,
    download: bool = True,
    shown: Collection[str] = (),
) -> Predictors:
    """The predictors of a run. Nothing is looked for, and no network imported, where nobody asks for attributes.

    brought : attributes of the policy that the input has; shown : what released pixels are to show beside the policy's

    Raises ModelError, and ConfigError where the judge is not independent of the predictor.
    """
    names = (*policy.quasi_identifiers, *policy.sensitive)
    if not names and not shown and config.predictor in ("auto", "none"):
        return Predictors()
    from facecrowd.stages.attributes import ATTRIBUTES, JUDGE, STEER

    missing = set(names) - set(brought)
    steers = {"none": None, "auto": STEER if missing else None}.get(config.predictor, config.predictor)
    judges = {"none": None, "auto": JUDGE}.get(config.judge, config.judge)
    steer = find(steers, folder, download) if steers else None
    judge = None
    if judges and {*policy.quasi_identifiers, *shown} & set(ATTRIBUTES):
        judge = find(judges, folder, download)
    if steer and judge:
        independent(judge, steer.file, "the predictor")
    return Predictors(steer, judge)


def independent(judge: Predictor, other: str, what: str) -> None:
    """Refuse a judge that shares weights or people with predictor ``other`` (name or file), which is ``what``.

    Raises ConfigError, ModelError.
    """
    from facecrowd.stages.attributes import Card, shared

    theirs = Card.read(other)
    if theirs.sha256 == judge.sha256:
        raise ConfigError(
            f"attributes.judge: {judge.name} is {what} itself, and would judge itself; name another, or none"
        )
    if common := shared(theirs, Card.read(judge.file)):
        raise ConfigError(
            f"attributes.judge: {judge.name} is not independent of {what}: {common}; name another, or none"
        )


def find(name: str, folder: str | None = None, download: bool = True) -> Predictor:
    """A predictor by its shipped name or file; the backbone it builds on is fetched where it is missing.

    Without ``download`` the hash of a missing backbone is empty. Raises ModelError.
    """
    from facecrowd.stages.attributes import Card
    from facecrowd.stages.attributes import Predictor as Net

    card = Card.read(name)
    backbone, digest = card.backbone, card.backbone_sha256
    if card.base is None and backbone in models.MODELS:
        digest = ""
        try:
            digest = models.sha256(models.path(backbone, folder=folder, download=download))
        except models.Unobtainable:
            if download:
                raise
    elif card.base is None:
        backbone = digest = ""
    if download:
        Net.load(name, folder)  # what does not fit together is found before any work
    return Predictor(name, card.sha256, backbone, digest, tuple(float(t) for t in card.calibration.threshold))


def priors(name: str, wanted: Sequence[str], folder: str | None = None) -> dict[str, float]:
    """Of those attributes that a predictor knows, how often each is true among those it was trained on."""
    known = presets.predictable()
    shares = find(name, folder).prior if set(wanted) & set(known) else ()
    return {attribute: shares[known.index(attribute)] for attribute in wanted if attribute in known}


# ------------------------------------------------------------------------------------------------------------ tables


def columns(predictor: Predictor, purpose: str) -> dict[str, list[Any]]:
    """The predictor as rows of the manifest ``predictors``: one per attribute, in the order of the probabilities."""
    names = presets.predictable()
    same = {
        "purpose": purpose,
        "file": predictor.file,
        "sha256": predictor.sha256,
        "backbone": predictor.backbone,
        "backbone_sha256": predictor.backbone_sha256,
    }
    return {
        **{name: [value] * len(names) for name, value in same.items()},
        "attribute": list(names),
        "threshold": list(predictor.threshold),
    }


def read(table: pa.Table) -> Predictor:
    """The predictor of such rows."""
    first = table.select(["file", "sha256", "backbone", "backbone_sha256"]).slice(0, 1).to_pylist()[0]
    return Predictor(**first, threshold=tuple(table["threshold"].to_pylist()))


def inferred(predictor: Predictor, probabilities: np.ndarray, policy: Policy, margin: float) -> dict[str, np.ndarray]:
    """What the plan takes for the attributes of the policy: '1', '0', or None where unknown; (N,) object each.

    A sensitive value is never unknown but where there is no face: as a value of its own it would fake diversity.
    """
    known = presets.predictable()
    text = np.array(["0", "1", None], dtype=object)
    found: dict[str, np.ndarray] = {}
    for names, width in ((policy.quasi_identifiers, margin), (policy.sensitive, 0.0)):
        values = predictor.values(probabilities, width)
        found |= {name: text[values[:, known.index(name)]] for name in names if name in known}
    return found


def truth(values: Iterable[str | None]) -> np.ndarray:
    """A table's words for yes and no as (N,) int8: 1, 0, and -1 for anything else."""
    words = {"true": 1, "yes": 1, "false": 0, "no": 0, 1.0: 1, 0.0: 0, -1.0: 0}

    def word(value: str | None) -> str | float:
        text = str(value).strip().lower()
        try:
            return float(text)  # as a column with gaps has numbers: 1.0
        except ValueError:
            return text

    return np.array([words.get(word(v), UNKNOWN) for v in values], dtype=np.int8)


# ---------------------------------------------------------------------------------------------------------- measured


@dataclass(frozen=True)
class Looked:
    """What was predicted of the N faces of a plan.

    brought : attributes that the input had; predicted, judged : (N, 40) float32 probabilities of the originals by the
    predictor and by the judge, NaN in rows without; None where nobody looked; translations : what was done to the
    faces, where attributes were translated; perturbations : and where they were perturbed
    """

    predictors: Predictors
    brought: tuple[str, ...]
    margin: float
    predicted: np.ndarray | None = None
    judged: np.ndarray | None = None
    translations: Translations | None = None
    perturbations: Perturbations | None = None


def measured(
    policy: Policy,
    looked: Looked,
    subject: np.ndarray,
    originals: dict[str, np.ndarray],
    released: dict[str, np.ndarray],
    rows: np.ndarray,
    pixels: np.ndarray | None,
    picture: Sequence[str] | np.ndarray | None = None,
    unit: tuple[str, np.ndarray] | None = None,
) -> dict[str, Any] | None:
    """What an audit says of attributes; None where no predictor spoke.

    subject : (N,) of the plan; originals, released : attribute → (N,) object values of the plan; rows : (n,) positions
    of the released faces; pixels : (n, 40) the judge's probabilities of the released faces; picture : (n,) equal where
    released faces are one picture (default: all differ); unit : over what the interval is drawn, by name, and its (n,)
    values for the released faces (default: subjects)
    """
    steer, judge = looked.predictors.steer, looked.predictors.judge
    if steer is None and judge is None:
        return None
    known = presets.predictable()
    names = (*policy.quasi_identifiers, *policy.sensitive)
    faces = np.unique(rows)
    out: dict[str, Any] = {
        "predictor": steer.name if steer else None,
        "judge": judge.name if judge else None,
        "brought": list(looked.brought),
        "predicted": [name for name in names if name not in looked.brought],
        "unknown_margin": looked.margin,
        "unknown": {
            name: share([value is None for value in originals[name][faces]])
            for name in policy.quasi_identifiers
            if name not in looked.brought
        },
        "disagreement": [],
        "shown": [],
    }
    if steer is not None and looked.predicted is not None:
        values = steer.values(looked.predicted[faces])
        for name in looked.brought:
            if name in known:
                theirs, ours = truth(originals[name][faces]), values[:, known.index(name)]
                out["disagreement"].append({"attribute": name, **_disagreement(subject[faces], theirs, ours)})
    if judge is not None and pixels is not None:
        shown = judge.values(pixels)
        seen = None if looked.judged is None else judge.values(looked.judged[faces])
        over, group = unit or ("subjects", subject[rows])
        pictured = np.arange(len(rows)) if picture is None else np.asarray(picture), over, np.asarray(group)
        for name in policy.quasi_identifiers:
            if name not in known:
                out["shown"].append({"attribute": name, "not_measured": "no predictor knows this attribute"})
                continue
            at = known.index(name)
            stated = released[name][rows]
            told = truth(stated)
            found = {
                "attribute": name,
                "left_open": share(stated == ANY),
                "neither": share((told < 0) & (stated != ANY)),
                **_shown(told, shown[:, at], *pictured),
            }
            if seen is not None:
                found |= _agreement("originals", truth(originals[name][faces]), seen[:, at])
            out["shown"].append(found)
    return out


def _disagreement(subject: np.ndarray, theirs: np.ndarray, ours: np.ndarray) -> dict[str, Any]:
    """Of brought (``theirs``) and predicted values: of faces, and of subjects' majorities (a tie is false)."""
    both = (theirs >= 0) & (ours >= 0)
    people, person = np.unique(subject[both].astype(str), return_inverse=True)
    faces = np.bincount(person, minlength=len(people))
    most = [2 * np.bincount(person, weights=v[both], minlength=len(people)) > faces for v in (theirs, ours)]
    return {
        "faces": int(both.sum()),
        "share_of_faces": share(theirs[both] != ours[both]),
        "subjects": len(people),
        "share_of_subjects": share(most[0] != most[1]),
        "neither": share(theirs < 0),
    }


BOOTSTRAPS, SEED = 2000, 0


def _shown(told: np.ndarray, seen: np.ndarray, picture: np.ndarray, over: str, group: np.ndarray) -> dict[str, Any]:
    """The share of distinct pictures whose seen value is the told one, with a 95 % percentile bootstrap over groups.

    A picture counts once, its copies share its weight. Where all groups agree on 0 or 1 every resample does too; the
    exact (Clopper-Pearson) limit for G groups, 1 - 0.025^(1/G), stands in.
    """
    both = (told >= 0) & (seen >= 0)
    _, which, copies = np.unique(picture[both].astype(str), return_inverse=True, return_counts=True)
    found: dict[str, Any] = {"released_pictures": len(copies), "released_agreement": None}
    if not len(copies):
        return found
    weight = 1 / copies[which]
    groups, of = np.unique(group[both].astype(str), return_inverse=True)
    total = np.bincount(of, weights=weight)
    right = np.bincount(of, weights=weight * (told[both] == seen[both]))
    share, exact = right.sum() / total.sum(), 1 - 0.025 ** (1 / len(groups))
    if not right.any():
        low, high = 0.0, exact
    elif np.isclose(right, total).all():
        low, high = 1 - exact, 1.0
    else:
        rng, shares = np.random.default_rng(SEED), np.empty(BOOTSTRAPS)
        even = np.full(len(groups), 1 / len(groups))
        for i in range(BOOTSTRAPS):  # one at a time: a table of all draws would be as long as the release times these
            drawn = rng.multinomial(len(groups), even)
            shares[i] = drawn @ right / (drawn @ total)
        low, high = np.quantile(shares, [0.025, 0.975])
    found |= {"released_agreement": share, "low": low, "high": high}
    found = {name: value if name == "released_pictures" else round(float(value), 6) for name, value in found.items()}
    return {**found, "over": over, "groups": len(groups)}


def _agreement(what: str, planned: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    both = (planned >= 0) & (seen >= 0)
    return {f"{what}_faces": int(both.sum()), f"{what}_agreement": share(planned[both] == seen[both])}


def share(flags: Sequence[bool] | np.ndarray) -> float | None:
    """None of nothing."""
    return round(float(np.mean(flags)), 6) if len(flags) else None
