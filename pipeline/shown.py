"""k as the released pixels show it: the crowds that a judge of attributes would sort people into, and how much of what
is too small is the judge's own noise.

A predictor that errs for one face in twenty puts many people into small crowds by itself. So what it sees is held
against what it would see if every picture showed just what was planned: its errors, as often as they occur on originals
whose value is known, are drawn for every picture, and crowds counted again. What exceeds nearly all of those draws is
not noise; the excess over their mean is the share of people whom the pixels really betray.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from facecrowd.pipeline.attributes import truth
from facecrowd.pipeline.plan import Plan
from facecrowd.pipeline.presets import predictable
from facecrowd.pipeline.verification import Seen, judge_rates

DRAWS = 200


def shown(
    plan: Plan, seen: Seen, k: int, picture: np.ndarray, by: str, rng: np.random.Generator, draws: int = DRAWS
) -> dict[str, Any] | None:
    """The line ``shown`` of the requirement k; None without planned attributes that a judge has seen.

    seen : of the released faces, ``shows`` and ``known`` among it; picture : (n,) equal where faces are one picture

    A person's vector is the majority of their pictures. A value that was left open (*) is taken as it is seen.
    """
    names = [name for name in plan.released if name in predictable()]
    if seen.shows is None or not names or not len(seen.row):
        return None
    known = predictable()
    looks = seen.shows[:, [known.index(name) for name in names]]
    planned = np.stack([truth(plan.released[name][seen.row]) for name in names], axis=1)
    sure = (planned >= 0) & (looks >= 0)
    # A judge that says nothing of a picture says the same of all that it says nothing of.
    observed = np.where(looks >= 0, looks, 2)
    errs = np.zeros((len(names), 2))
    for a, name in enumerate(names):
        seen_before = None if seen.known is None else seen.known[:, known.index(name)]
        rates = judge_rates(truth(plan.originals[name]), seen_before)
        if rates is not None:
            errs[a] = 1 - rates.tnr, 1 - rates.tpr
    person = np.unique(plan.subject_id[seen.row].astype(str), return_inverse=True)[1]
    first, of = np.unique(picture.astype(str), return_index=True, return_inverse=True)[1:]
    smallest, share = _crowds(observed, person, k)
    expected = np.where(sure, planned, observed)
    chance = np.take_along_axis(errs, np.clip(expected[first], 0, 1).T, axis=1).T * sure[first]
    below = np.empty(draws)
    for i in range(draws):
        flips = (rng.random(chance.shape) < chance)[of]
        below[i] = _crowds(np.where(flips, 1 - expected, expected), person, k)[1]
    low, high = np.quantile(below, [0.025, 0.975])
    figures = {
        "seen": share,
        "by_noise": float(below.mean()),
        "low": low,
        "high": high,
        "excess": max(0.0, share - float(below.mean())),
    }
    return {
        "by": by,
        "found": smallest,
        "below": {name: round(float(value), 6) for name, value in figures.items()},
        "met": bool(share <= high),
        "note": (
            f"{share:.1%} of people are seen in crowds under {k}; if pictures showed what was planned, "
            + ("the judge's own errors would put " if errs.any() else "(the judge's error rates are not known here) ")
            + f"{below.mean():.1%} [{low:.1%}, {high:.1%}] there"
        ),
    }


def _crowds(values: np.ndarray, person: np.ndarray, k: int) -> tuple[int, float]:
    """The smallest crowd of people with one vector, and the share of people in crowds under k.

    values : (n, A) small integers of faces; person : (n,) int
    """
    people = int(person.max()) + 1
    faces = np.bincount(person, minlength=people)
    ones, none = (
        np.stack([np.bincount(person, weights=column, minlength=people) for column in (values == what).T])
        for what in (1, 2)
    )
    vector = np.where(none == faces, 2, 2 * ones > faces - none).astype(np.int8)
    _, crowd, size = np.unique(vector, axis=1, return_inverse=True, return_counts=True)
    return int(size.min()), float((size[crowd] < k).mean())
