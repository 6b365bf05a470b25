"""Figures over people: every person weighs the same, however many photos, with bootstraps over people.

A statistic is a function of the faces' weights, so that one resampling serves means, rates, AUCs and correlations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from facecrowd.jobs.figures import Figure
from facecrowd.privacy.measure import figure

FEW = 5
"""People under whom a group is not measured."""
RESAMPLES = 2_000
BLOCK = 2**22
"""Weights held at once."""
ROUNDING = 1e-9

Statistic = Callable[[np.ndarray], np.ndarray]
"""Weights of faces (b, n) to a value for each of the b: (b,)."""


class People:
    """Figures of faces in which every person weighs the same, with their bootstrap over people.

    All figures share the same draws of people, so the interval of a difference is that of the pair.
    """

    def __init__(self, subject: np.ndarray, groups: Mapping[str, np.ndarray], rng: np.random.Generator) -> None:
        """subject : (n,) str; groups : attribute → (n,) str, "" where unknown."""
        people, self.person = np.unique(subject, return_inverse=True)
        self.count, self._groups = len(people), groups
        self.draws = rng.multinomial(self.count, np.full(self.count, 1 / self.count), RESAMPLES)

    def folds(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(n,) int: a fold per face, the same for all faces of a person, of nearly equally many people."""
        folds: np.ndarray = (rng.permutation(self.count) % count)[self.person]
        return folds

    def among(self, rows: np.ndarray) -> int:
        """People with a face where the mask ``rows`` is true."""
        return len(np.unique(self.person[rows]))

    def weights(self, rows: np.ndarray) -> np.ndarray:
        """Of the faces where the mask is true, such that each of their people weighs 1: (n of them,)."""
        person = self.person[rows]
        weights: np.ndarray = 1 / np.bincount(person, minlength=self.count)[person]
        return weights

    def share(self, values: np.ndarray, rows: np.ndarray) -> float | None:
        """The mean over people of values (n,) where the mask ``rows`` is true; None where it is so of no face."""
        each = self.weights(rows)
        return float(each @ values[rows] / each.sum()) if rows.any() else None

    def figure(self, one: Figure, statistic: Statistic, rows: np.ndarray, rate: bool = False) -> Figure:
        """``one`` with its value, interval and counts, of the faces where the mask ``rows`` is true.

        rate : a share in [0, 1]; where it is 0 or 1 every resample agrees, and the exact (Clopper-Pearson) limit for as
            many people stands in for the bootstrap's false certainty
        """
        person, each, subjects = self.person[rows], self.weights(rows), self.among(rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = figure(float(statistic(each[None])[0])) if subjects else None
            if value is None:
                return replace(one, note=joined("not measured: no face to measure it on", one.note))
            one = replace(one, value=value, faces=int(rows.sum()), subjects=subjects)
            if subjects < 2:
                return replace(one, note=joined(one.note, "no interval: one person"))
            step = max(1, BLOCK // len(person))
            found = np.concatenate(
                [statistic(self.draws[i : i + step][:, person] * each) for i in range(0, RESAMPLES, step)]
            )
        found = found[np.isfinite(found)]
        if not len(found):
            return one
        low, high = np.quantile(found, (0.025, 0.975))
        exact = 0.025 ** (1 / subjects)
        if rate and found.max() < ROUNDING:
            high = 1 - exact
        elif rate and found.min() > 1 - ROUNDING:
            low = exact
        return replace(one, low=float(low), high=float(high))

    def mean(
        self,
        one: Figure,
        values: np.ndarray,
        rate: bool = False,
        by_group: bool = False,
        guessed: np.ndarray | None = None,
    ) -> list[Figure]:
        """The mean over subjects of values (n,), NaN where there is none; then those of the groups.

        guessed : (n,), of which ``chance`` is the mean. The worst group is named in the note of the first figure.
        """

        def of(some: np.ndarray, one: Figure) -> Figure:
            rows = some & np.isfinite(values)
            if guessed is not None:
                one = replace(one, chance=self.share(guessed, rows))
            return self.figure(one, mean(values[rows]), rows, rate)

        whole = of(np.ones(len(self.person), bool), one)
        parts = []
        for group, some in self.groups() if by_group else ():
            part = replace(one, group=group, chance=None, note="")
            people = self.among(some & np.isfinite(values))
            too_few = replace(part, note=f"not measured: {people} people are too few")
            parts.append(of(some, part) if people >= FEW else too_few)
        return [replace(whole, note=joined(whole.note, worst(parts))), *parts]

    def groups(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each group by its name, "Male = 1", and the mask of its faces."""
        for attribute, values in self._groups.items():
            for value in sorted(set(values.tolist()) - {""}):
                yield f"{attribute} = {value}", values == value


def worst(parts: Sequence[Figure]) -> str:
    """A note that names the group with the worst value; empty where no two groups were measured."""
    measured = [(part.value, part.group) for part in parts if part.value is not None]
    if len(measured) < 2 or not parts[0].better:
        return ""
    value, group = (min if parts[0].better == "higher" else max)(measured)
    return f"worst group: {group} ({value:.3g})"


def mean(values: np.ndarray) -> Statistic:
    """The weighted mean."""
    x = values.astype(np.float64)
    return lambda w: (w @ x) / w.sum(1)


def balanced(right: np.ndarray, truth: np.ndarray) -> Statistic:
    """The mean of the shares of each value that are right."""
    hit, true, miss = (part.astype(np.float64) for part in (right & truth, truth, right & ~truth))
    return lambda w: (w @ hit / (w @ true) + w @ miss / (w @ (1 - true))) / 2


def auc(scores: np.ndarray, truth: np.ndarray) -> Statistic:
    """The probability that a face that has it scores above one that has not; equal scores count half."""
    _, level = np.unique(scores, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.flatnonzero(np.diff(level[order], prepend=-1))
    true = truth[order].astype(np.float64)

    def statistic(w: np.ndarray) -> np.ndarray:
        has = np.add.reduceat(w[:, order] * true, starts, axis=1)
        lacks = np.add.reduceat(w[:, order] * (1 - true), starts, axis=1)
        below = np.cumsum(lacks, 1) - lacks / 2
        found: np.ndarray = (has * below).sum(1) / (has.sum(1) * lacks.sum(1))
        return found

    return statistic


def correlation(x: np.ndarray, y: np.ndarray) -> Statistic:
    """Pearson's."""
    x, y = x - x.mean(), y - y.mean()

    def statistic(w: np.ndarray) -> np.ndarray:
        w = w / w.sum(1, keepdims=True)
        a, b = w @ x, w @ y
        found: np.ndarray = (w @ (x * y) - a * b) / np.sqrt((w @ x**2 - a**2) * (w @ y**2 - b**2))
        return found

    return statistic


def joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
