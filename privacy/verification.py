r"""Verification: are two faces of the same person? True accepts at a given rate of false ones.

With the scores :math:`i_1 \ge i_2 \ge \dots` of *m* impostor pairs, the threshold at a false-accept rate *f* is the
:math:`(\lfloor f m \rfloor + 1)`-th of them, and a pair is accepted whose score is **above** it: at most a share *f* of
the impostor pairs is, whatever ties there are (ISO/IEC 19795-1; TAR at FAR of LFW's and IJB's protocols).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facecrowd.privacy.errors import EmptyTableError, LengthError

BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Accepts:
    """True accepts at one rate of false ones.

    Attributes
    ----------
    rate : float
        Share of the genuine pairs that is accepted.
    low, high : float
        95 % confidence interval of ``rate``, by bootstrap over the pairs' subjects; the threshold is held.
    threshold : float
        Scores above it are accepted.
    false : float
        Share of the impostor pairs that is; at most the rate that was asked for.
    """

    rate: float
    low: float
    high: float
    threshold: float
    false: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Verification:
    """By false-accept rate the true accepts, and of how many pairs."""

    rates: Mapping[float, Accepts]
    genuine: int
    impostor: int


def verify(
    genuine: ArrayLike,
    impostor: ArrayLike,
    fars: Sequence[float],
    *,
    rng: np.random.Generator,
    subject: ArrayLike | None = None,
) -> Verification:
    """True accepts of genuine pairs at false-accept rates of impostor pairs.

    Parameters
    ----------
    genuine : array, shape (G,)
        Scores of pairs of one person, higher for more alike.
    impostor : array, shape (M,)
        Scores of pairs of two people.
    fars : sequence of float
        Rates in (0, 1). Below 1 / M no impostor pair may be accepted, and the threshold is the highest of them.
    rng : numpy.random.Generator
        Draws the bootstrap only.
    subject : array, shape (G,), optional
        Whose each genuine pair is, the unit of the bootstrap; by default every pair is its own.

    Raises
    ------
    EmptyTableError
        Without a pair on either side.
    LengthError
        If ``subject`` is of another length.
    ValueError
        For a rate outside (0, 1).
    """
    mine, theirs = np.asarray(genuine, np.float64), np.sort(np.asarray(impostor, np.float64))[::-1]
    if not len(mine) or not len(theirs):
        raise EmptyTableError("verification needs genuine and impostor pairs")
    unit = np.arange(len(mine)) if subject is None else np.unique(np.asarray(subject), return_inverse=True)[1]
    if len(unit) != len(mine):
        raise LengthError(f"{len(unit)} subjects for {len(mine)} genuine pairs")
    if not all(0 < far < 1 for far in fars):
        raise ValueError(f"false-accept rates lie between 0 and 1, not {list(fars)}")
    count = np.bincount(unit).astype(np.float64)
    draws = rng.multinomial(len(count), np.full(len(count), 1 / len(count)), BOOTSTRAPS)
    rates = {}
    for far in fars:
        # The small number takes back what the product's rounding took: 0.29 of 100 pairs are 29.
        threshold = float(theirs[int(far * len(theirs) + 1e-9)])
        accepted = mine > threshold
        per = np.bincount(unit, weights=accepted)
        low, high = np.quantile((draws @ per) / (draws @ count), (0.025, 0.975))
        false = float((theirs > threshold).mean())
        rates[far] = Accepts(float(accepted.mean()), float(low), float(high), threshold, false)
    return Verification(rates, len(mine), len(theirs))


def pairs(
    subject: ArrayLike, genuine: int, impostor: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of different faces of one person, and of two people, drawn without repetition, first and second in order.

    Parameters
    ----------
    subject : array, shape (N,)
        Whose each face is.
    genuine, impostor : int
        How many of each; fewer where there are not so many.

    Returns
    -------
    genuine, impostor : ndarray of int64, shape (G, 2) and (M, 2)
        Positions of faces. People weigh alike among the genuine pairs: they take turns.
    """
    who = np.unique(np.asarray(subject), return_inverse=True)[1]
    order = rng.permutation(len(who))
    turns: list[tuple[int, int, int, int]] = []
    for person in range(int(who.max(initial=-1)) + 1):
        own = order[who[order] == person]
        couples = [(int(a), int(b)) for i, a in enumerate(own) for b in own[i + 1 :]]
        places = rng.permutation(len(couples))[:genuine]
        turns += [(turn, person, *couples[at]) for turn, at in enumerate(places)]
    same = np.array([row[2:] for row in sorted(turns)[:genuine]], np.int64).reshape(-1, 2)
    apart: set[tuple[int, int]] = set()
    most = (len(who) ** 2 - int((np.bincount(who, minlength=1) ** 2).sum())) if len(who) else 0
    while len(apart) < min(impostor, most):
        drawn = rng.integers(len(who), size=(2 * impostor, 2))
        for a, b in drawn[who[drawn[:, 0]] != who[drawn[:, 1]]].tolist():
            if len(apart) < min(impostor, most):
                apart.add((a, b))
    return same, np.array(sorted(apart), np.int64).reshape(-1, 2)
