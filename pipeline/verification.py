"""The closed loop: released pixels are held against what was asked of them, and what fails is made anew or left out.

Two things can be asked, each measured by networks that took no part in making the faces:

recognition   rank 1 per subject, of the released faces against all originals, by an independent recogniser; of faces
              that were perturbed also, by the release's own, before they were, and the worse counts
attributes    the share of the planned values that the pixels do not show. Where the judge contradicts a plan it may be
              the judge who errs, so its errors are taken off: of an observed share o of contradictions to a planned
              value, r being the judge's error rate for that value on originals whose value is known, what failed is
              (o - r) / (1 - r - r'), r' the error rate for the other value [1]_

The figures decide what is released, so what is left within a tolerance is selected by them: they flatter, and others
may achieve more. The audit asks other recognisers too.

.. [1] W. J. Rogan, B. Gladen, "Estimating prevalence from the results of a screening test", American Journal of
   Epidemiology 107(1), 1978.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

import facecrowd.privacy.verdict as verdicts
from facecrowd.pipeline.attributes import truth
from facecrowd.pipeline.audit import crowded, crowds
from facecrowd.pipeline.config import ReleaseConfig, Verify
from facecrowd.pipeline.plan import NO_CLASS, SUPPRESSED, Plan, asked
from facecrowd.pipeline.presets import predictable
from facecrowd.privacy.misprediction import Rates, rogan_gladen
from facecrowd.privacy.reidentification import identify

NAMES = {"recognition": "recognised (rank 1)", "attributes": "planned attributes not shown"}
LEFT_OUT = "what its pixels show was not within the tolerance asked"
BROKEN = "its class no longer met the policy, once others were left out"
FEWEST = 20
"""Originals of a value that the judge's error rate is taken of; with fewer it counts as free of errors."""


@dataclass(frozen=True)
class Seen:
    """What was seen in n released faces.

    row : (n,) positions in the plan; embedding : (n, D), originals : (N, D) by the independent recogniser, zeros where
    there is none; shows, known : (n, 40) and (N, 40), the judge's values 1, 0 and -1 of released faces and of
    originals, None without a judge; before : (n, D'), where faces were perturbed, the release's own recogniser of them
    before that, and shows_before what the judge saw then
    """

    row: np.ndarray
    embedding: np.ndarray | None = None
    originals: np.ndarray | None = None
    shows: np.ndarray | None = None
    known: np.ndarray | None = None
    before: np.ndarray | None = None
    shows_before: np.ndarray | None = None


@dataclass(frozen=True)
class Found:
    """What was measured of one of the two.

    name : see the module; share : the figure, where faces were perturbed the worse of before and after; low, high : its
    95 % interval, None where there is none; observed : without taking the judge's errors off; faces : (n,) how much
    each released face adds to it, 0 for one that is as it should be
    """

    name: str
    asked: float
    share: float
    faces: np.ndarray
    low: float | None = None
    high: float | None = None
    observed: float | None = None

    @property
    def met(self) -> bool:
        return self.share <= self.asked

    def as_dict(self) -> dict[str, Any]:
        """For a report: the figures alone."""
        told = {k: v for k, v in vars(self).items() if k not in ("name", "faces")}
        return {"name": self.name, "met": self.met, **{k: v if v is None else round(v, 6) for k, v in told.items()}}


def measure(tolerance: Verify, plan: Plan, seen: Seen, rng: np.random.Generator) -> list[Found]:
    """Both figures, as far as they are asked for."""
    found = []
    if tolerance.recognition is not None:
        found.append(recognition(tolerance.recognition, plan, seen, rng))
    if tolerance.attributes is not None:
        found.append(attributes(tolerance.attributes, plan, seen))
    return found


def recognition(most: float, plan: Plan, seen: Seen, rng: np.random.Generator) -> Found:
    """Rank 1 per subject, ties counted as their expected success."""
    now = _recognised(most, plan, seen, rng)
    if seen.before is None:
        return now
    # Whoever takes a perturbation off again has the face from before it, which only the release's own recogniser saw.
    then = _recognised(most, plan, replace(seen, embedding=seen.before, originals=plan.embedding), rng)
    return max(now, then, key=lambda found: found.share)


def _recognised(most: float, plan: Plan, seen: Seen, rng: np.random.Generator) -> Found:
    assert seen.embedding is not None
    assert seen.originals is not None
    subject = plan.subject_id.astype(str)
    if not len(seen.row):
        return Found("recognition", most, 0.0, np.zeros(0))
    # The attacker knows who is in the release: people who were left out make nobody hard to find.
    people, person = np.unique(subject[seen.row], return_inverse=True)
    enrolled = np.flatnonzero((seen.originals != 0).any(axis=1) & np.isin(subject, people))
    usable = (seen.embedding != 0).any(axis=1) & np.isin(subject[seen.row], subject[enrolled])
    # A face that could not be looked at is not thereby safe.
    success = np.ones(len(seen.row))
    if usable.any():
        probes, names = seen.embedding[usable], subject[seen.row[usable]]
        result = identify(probes, names, seen.originals[enrolled], subject[enrolled], rng=rng)
        success[usable] = (result.above == 0) / np.maximum(result.tied, 1)
    faces = success / np.bincount(person)[person] / len(people)
    rate = result.rank_one if usable.all() else None
    low, high = (rate.low, rate.high) if rate is not None else (None, None)
    return Found("recognition", most, float(faces.sum()), faces, low, high)


def attributes(most: float, plan: Plan, seen: Seen) -> Found:
    """The share of planned values that are not shown, of all planned values that a predictor knows."""
    now = _not_shown(most, plan, seen)
    if seen.shows_before is None:
        return now
    return max(now, _not_shown(most, plan, replace(seen, shows=seen.shows_before)), key=lambda found: found.share)


def _not_shown(most: float, plan: Plan, seen: Seen) -> Found:
    contradicted, told, failed, planned = np.zeros(len(seen.row)), 0, 0.0, 0
    known = predictable()
    for name, values in plan.released.items():
        if name not in known or seen.shows is None:
            continue
        at = known.index(name)
        wanted, shows = truth(values[seen.row]), seen.shows[:, at]
        both = (wanted >= 0) & (shows >= 0)
        wrong = both & (wanted != shows)
        rates = judge_rates(truth(plan.originals[name]), None if seen.known is None else seen.known[:, at])
        for value in (0, 1):
            mine = both & (wanted == value)
            if not mine.any():
                continue
            positive = float((shows[mine] == 1).mean())
            shown = positive if rates is None else float(rogan_gladen(positive, rates))
            failed += mine.sum() * (shown if value == 0 else 1 - shown)
        contradicted += wrong
        planned += int(both.sum())
        told += int(wrong.sum())
    if not planned:
        return Found("attributes", most, 0.0, contradicted, observed=0.0)
    return Found("attributes", most, failed / planned, contradicted / planned, observed=told / planned)


def judge_rates(truths: np.ndarray, seen: np.ndarray | None) -> Rates | None:
    """How often the judge is right about an attribute, on originals of which it is known; None where that cannot be
    said, or the judge is no better than chance."""
    if seen is None:
        return None
    both = (truths >= 0) & (seen >= 0)
    positives, negatives = both & (truths == 1), both & (truths == 0)
    if min(positives.sum(), negatives.sum()) < FEWEST:
        return None
    tpr, tnr = float((seen[positives] == 1).mean()), float((seen[negatives] == 0).mean())
    return Rates(tpr, tnr) if tpr + tnr > 1 else None


def failing(found: Sequence[Found]) -> np.ndarray:
    """Positions among the released faces that add to a figure that is not met, those that add most first: (m,)."""
    total = sum((one.faces for one in found if not one.met), np.zeros(len(found[0].faces) if found else 0))
    order = np.argsort(-total, kind="stable")
    return order[total[order] > 0]


def fewest(found: Sequence[Found], unit: np.ndarray, again: Callable[[np.ndarray], Sequence[Found]]) -> np.ndarray:
    """The positions to leave out, whole units at a time, so that every figure is within its tolerance: (m,).

    unit : (n,) of each released face, its class or itself; again : the figures of the faces at given positions. Those
    that add most go first, as many as bring the figures down, found by bisection; what is left is measured, never
    computed from the parts. Where leaving out all that add is not enough (fewer people are easier to tell apart),
    those, and whoever asks measures again.
    """
    total = sum((one.faces for one in found if not one.met), np.zeros(len(unit)))
    member = np.unique(unit, return_inverse=True)[1]
    weight = np.bincount(member, weights=total) / np.bincount(member)
    order = np.argsort(-weight, kind="stable")
    most = int((weight > 0).sum())

    def left(count: int) -> np.ndarray:
        return np.flatnonzero(~np.isin(member, order[:count]))

    def holds(count: int) -> bool:
        rest = left(count)
        return not len(rest) or all(one.met for one in again(rest))

    low, high, enough = 0, most, holds(most)
    while enough and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return np.setdiff1d(np.arange(len(unit)), left(high))


def of(seen: Seen, which: np.ndarray) -> Seen:
    """What was seen in some of the released faces."""
    faces = ("embedding", "shows", "before", "shows_before")
    cut = {name: None if (array := getattr(seen, name)) is None else array[which] for name in faces}
    return replace(seen, row=seen.row[which], **cut)


def without(plan: Plan, rows: Mapping[int, str]) -> Plan:
    """The plan with these rows left out, each for its reason."""
    status, reason = plan.subjects.status.copy(), plan.subjects.reason.copy()
    images, class_id = plan.images.copy(), plan.class_id.copy()
    released = {name: values.copy() for name, values in plan.released.items()}
    for row, why in rows.items():
        status[row], reason[row], images[row], class_id[row] = SUPPRESSED, why, 0, NO_CLASS
        for values in released.values():
            values[row] = None
    subjects = replace(plan.subjects, status=status, reason=reason)
    return replace(plan, subjects=subjects, images=images, class_id=class_id, released=released)


def broken(config: ReleaseConfig, plan: Plan) -> np.ndarray:
    """Rows of the plan whose class no longer meets k, l and t, once others were left out: (m,)."""
    gone: list[np.ndarray] = []
    rows = plan.kept
    while len(rows) and (table := crowded(config, plan, rows)) is not None:
        unmet = [r for r in verdicts.judge(table, asked(config.policy)).requirements if not r.met]
        worst = {r.worst_class.index for r in unmet if r.worst_class is not None}
        if not worst:
            break
        own = crowds(plan, rows)
        classes, small = np.unique(own), table.subjects < (config.policy.k or 1)
        out = np.isin(own, classes[small] if small.any() else classes[sorted(worst)])
        gone.append(rows[out])
        rows = rows[~out]
    return np.concatenate(gone) if gone else np.empty(0, np.int64)


@dataclass(frozen=True)
class Verified:
    """What the closed loop did: by whom, after how many renderings, and how many faces were left out for it.

    rounds : the figures of each round, the last those of what is released
    """

    recogniser: str | None
    judge: str | None
    rounds: tuple[tuple[dict[str, Any], ...], ...]
    rendered_anew: int = 0
    left_out: int = 0
    broken: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rounds": [list(one) for one in self.rounds]}

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Verified:
        return cls(**{**data, "rounds": tuple(tuple(one) for one in data["rounds"])})

    def requirements(self) -> list[dict[str, Any]]:
        """The last round as requirements of a report."""
        by = {"recognition": self.recogniser, "attributes": self.judge}
        anew = self.rendered_anew or self.left_out
        note = f"after {self.rendered_anew} faces were rendered anew and {self.left_out + self.broken} left out for it"
        return [
            {
                "name": NAMES[one["name"]],
                "asked": one["asked"],
                "found": one["share"],
                "met": one["met"],
                "kind": f"measured against {by[one['name']]}",
                "note": note if anew else "",
            }
            for one in (self.rounds[-1] if self.rounds else ())
        ]


def stated(report: dict[str, Any], verified: Verified | None) -> dict[str, Any]:
    """A report that also says what the closed loop found."""
    if verified is None:
        return report
    requirements = [*report["requirements"], *verified.requirements()]
    met = report["met"] and all(r["met"] for r in requirements)
    return {**report, "requirements": requirements, "met": met, "verification": verified.as_dict()}
