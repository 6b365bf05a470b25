r"""Merging: classes that break a requirement are united with others until none does.

The distributions that meet l or t form convex sets, and sizes add up, so the union of classes that meet a policy meets
it too. Two things follow. Uniting always ends: a policy can be met by merging exactly if the class of everybody meets
it. And a class that was published may be united with another later, without breaking what it met (``updates.py``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Met = Callable[[NDArray[np.int64], NDArray[np.float64]], NDArray[np.bool_]]
"""(subjects (C,), weights (C, S)) to whether each class meets the policy, as ``Requirements.met``."""

Cost = Callable[[int, NDArray[np.int64]], NDArray[np.float64]]
"""What uniting a class with each of others would cost; any unit, not negative."""

Join = Callable[[int, int], None]
"""Told that the second class is now part of the first."""

LEAST_WEIGHT = 1e-9
"""Weights that rounding leaves where nobody is."""


def merge_until_met(
    subjects: NDArray[np.int64],
    weights: NDArray[np.float64],
    met: Met,
    cost: Cost,
    join: Join,
    group: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Unite every class that is not met with the cheapest class that mends it.

    A partner that is not met either is mended by the same step, so it counts half. Where no single partner mends the
    class, the cheapest is taken of those that bring it at least half as near to everybody's distribution as the best.

    Parameters
    ----------
    subjects : ndarray, shape (C,)
    weights : ndarray, shape (C, S)
        Sensitive values per class, one weight per subject.
    met, cost, join : callables
    group : ndarray of int64, shape (C,), optional
        Unite only within a group.

    Returns
    -------
    ndarray of int64, shape (C,)
        For each class the smallest index among those it is united with. A group that is one class and still not met
        stays so.
    """
    subjects, weights = subjects.copy(), weights.copy()
    label = np.arange(len(subjects))
    group = np.zeros(len(subjects), dtype=np.int64) if group is None else group
    centre = weights.sum(axis=0) / subjects.sum()
    alive, ok, stuck = (np.full(len(subjects), value) for value in (True, False, False))
    ok[:] = met(subjects, weights)
    while True:
        failing = np.flatnonzero(alive & ~ok & ~stuck)
        if not len(failing):
            return label
        a = int(failing[0])
        others = np.flatnonzero(alive & (group == group[a]))
        others = others[others != a]
        if not len(others):
            stuck[a] = True
            continue
        size, held = subjects[a] + subjects[others], weights[a] + weights[others]
        mends = met(size, held)
        if not mends.any():
            away = np.abs(held / size[:, None] - centre).sum(axis=1)
            before = np.abs(weights[a] / subjects[a] - centre).sum()
            mends = before - away >= (before - away.min()) / 2 - 1e-12
        price = cost(a, others) * np.where(ok[others], 1.0, 0.5)
        price[~mends] = np.inf
        b = int(others[np.argmin(price)])
        a, b = min(a, b), max(a, b)
        join(a, b)
        subjects[a] += subjects[b]
        weights[a] += weights[b]
        label[label == b] = a
        alive[b] = False
        ok[a] = met(subjects[a : a + 1], weights[a : a + 1])[0]
