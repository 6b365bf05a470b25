r"""Recognition at scale: closed-set ranks, verification and open-set identification from one pass over the scores.

With σ(p, s), the score of a probe with a subject's best gallery face (``reidentification``):

- a **genuine** score is σ(p, own subject), without the probe's own source photo; an **impostor** score is σ(p, s) of
  another subject. The true-accept rate at a false-accept rate *f* (TAR at FAR) is the share of genuine scores above the
  :math:`(\lfloor f m \rfloor + 1)`-th highest of the *m* impostor scores, as in ``verification`` [1]_.
- a **mated search** finds whom it looks for where the own subject is first (ties as in ``reidentification``) and scores
  above a threshold; a **non-mated search** is the search of a probe in the gallery without its own subject. The
  true-positive identification rate at a false-positive identification rate *f* (TPIR at FPIR) takes the threshold that
  at most a share *f* of the non-mated searches passes [1]_.

A million probes and 100,000 subjects make 10¹¹ impostor scores. They are counted on a grid of 2⁻²⁰ and never kept: a
score counts as the multiple that it is nearest to, on both sides alike, which is finer than the tolerance (1e-6) within
which two float32 scores are one. On that grid thresholds are exact. Of more than ``impostor_pairs`` of them every
*n*-th is counted, from an offset drawn for each block: each pair is as likely as any other, and none comes twice.

.. [1] ISO/IEC 19795-1:2021, verification and open-set identification metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from facecrowd.privacy.errors import EmptyTableError
from facecrowd.privacy.reidentification import (
    BLOCK_BYTES,
    TOLERANCE,
    Identification,
    Rate,
    Search,
    check_ranks,
    identified,
    rate,
    search,
)

GRID = 2**20
"""Levels per unit of a score."""
IMPOSTOR_PAIRS = 2 * 10**8
NO_IMPOSTOR = "there is no impostor score, so no threshold; give a gallery of two subjects or more"


class ScoreCounts:
    """How many scores in [-1, 1] lie at each level of the grid, 16 MiB however many they are."""

    def __init__(self) -> None:
        self._counts = np.zeros(2 * GRID + 1, np.int64)
        self._waiting: list[NDArray[np.int64]] = []

    def add(self, scores: ArrayLike) -> None:
        """Count scores of any shape; -inf, where there is none, is left out."""
        flat = np.asarray(scores).reshape(-1)
        for start in range(0, len(flat), GRID):
            piece = flat[start : start + GRID]
            self._waiting.append(levels(piece[piece > -np.inf]))
            # One pass over the grid for many small blocks.
            if sum(map(len, self._waiting)) >= GRID:
                self._settle()

    def _settle(self) -> None:
        if self._waiting:
            self._counts += np.bincount(np.concatenate(self._waiting), minlength=len(self._counts))
            self._waiting = []

    @property
    def counts(self) -> NDArray[np.int64]:
        """Scores at each level, (2 ``GRID`` + 1,)."""
        self._settle()
        return self._counts

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def threshold(self, share: ArrayLike) -> NDArray[np.int64]:
        """The level above which at most a share in (0, 1) of the scores lies, for each: verification's threshold.

        Raises
        ------
        EmptyTableError
            Where no score was counted.
        ValueError
            For a share outside (0, 1).
        """
        shares = check_shares(share)
        upward = np.cumsum(self.counts[::-1])
        if not upward[-1]:
            raise EmptyTableError(NO_IMPOSTOR)
        # The small number takes back what the product's rounding took: 0.29 of 100 pairs are 29.
        wanted = (shares * int(upward[-1]) + 1e-9).astype(np.int64) + 1
        level: NDArray[np.int64] = 2 * GRID - np.searchsorted(upward, wanted)
        return level

    def above(self, level: ArrayLike) -> NDArray[np.float64]:
        """The share of the scores above each level."""
        upward = np.append(np.cumsum(self.counts[::-1])[::-1], 0)
        share: NDArray[np.float64] = upward[np.asarray(level) + 1] / upward[0]
        return share

    def exceeded(self, level: ArrayLike) -> NDArray[np.float64]:
        """The chance that a random one of the scores is below each level, ties half: its mean is the ROC's area."""
        at = np.asarray(level)
        return 1.0 - self.above(at) - self.counts[at] / (2 * self.total)


def check_shares(share: ArrayLike) -> NDArray[np.float64]:
    """False-accept rates as an array. Raises ValueError for one outside (0, 1)."""
    shares = np.asarray(share, np.float64)
    if not ((shares > 0) & (shares < 1)).all():
        raise ValueError(f"false-accept rates lie between 0 and 1, not {shares.tolist()}")
    return shares


def levels(scores: ArrayLike) -> NDArray[np.int64]:
    """Scores in [-1, 1] as levels of the grid, 0 … 2 ``GRID``."""
    shifted = np.rint(np.asarray(scores, np.float64) * GRID).astype(np.int64) + GRID
    return np.clip(shifted, 0, 2 * GRID, out=shifted)


@dataclass(frozen=True)
class Threshold:
    """True accepts or identifications at one rate of false ones.

    Attributes
    ----------
    rate : Rate
        Of the genuine scores, or of the mated searches; its interval holds the threshold.
    threshold : float
        Scores above it are accepted.
    false : float
        Share of the impostor scores, or of the non-mated searches, that is; at most the rate that was asked for.
    """

    rate: Rate
    threshold: float
    false: float


@dataclass(frozen=True)
class Recognition:
    """What a recogniser does with a gallery.

    Attributes
    ----------
    identification : Identification
        The closed-set ranks.
    tar : mapping of false-accept rate to Threshold
    tpir : mapping of false-positive identification rate to Threshold
    impostor_pairs : int
        Impostor scores that were counted.
    all_impostor_pairs : int
        About how many there are (those that an excluded source leaves without a face counted in).
    search : Search
        What was found for each probe.
    """

    identification: Identification
    tar: Mapping[float, Threshold]
    tpir: Mapping[float, Threshold]
    impostor_pairs: int
    all_impostor_pairs: int
    search: Search


def recognise(
    probe: ArrayLike | Iterator[NDArray[Any]],
    probe_subject: ArrayLike | pa.Array | pa.ChunkedArray,
    gallery: ArrayLike,
    gallery_subject: ArrayLike | pa.Array | pa.ChunkedArray,
    *,
    rng: np.random.Generator,
    fars: Sequence[float] = (0.1, 1e-2, 1e-3),
    fpirs: Sequence[float] = (),
    exclude: ArrayLike | None = None,
    ranks: Sequence[int] = (1, 5),
    impostor_pairs: int = IMPOSTOR_PAIRS,
    tolerance: float = TOLERANCE,
    block_bytes: int = BLOCK_BYTES,
) -> Recognition:
    """Attack probes with a gallery: ranks as ``identify`` reports them, and accepts at thresholds.

    Parameters
    ----------
    probe, probe_subject, gallery, gallery_subject, exclude, tolerance, block_bytes
        As for ``reidentification.search``. Probes whose subject is not enrolled are impostors and non-mated searches.
    rng : numpy.random.Generator
        Draws the bootstrap, and which impostor scores are counted where not all are.
    fars, fpirs : sequence of float
        In (0, 1).
    ranks : sequence of int
    impostor_pairs : int
        At least so many impostor scores are counted, and all where there are no more.

    Raises
    ------
    EmptyTableError
        As ``identify``, and where the gallery has one subject, so no impostor.
    EmbeddingError, LengthError, ColumnError, NullValueError, ValueError
    """
    check_ranks(ranks)
    check_shares([*fars, *fpirs])
    impostors, seen = ScoreCounts(), 0
    probes = len(probe_subject)  # type: ignore[arg-type]
    subjects = len(np.unique(np.asarray(gallery_subject)))
    step = max(1, probes * max(0, subjects - 1) // max(1, impostor_pairs))
    # Odd, so that the steps through blocks of 1024 probes visit each of them.
    step -= 1 - step % 2

    def watch(scores: NDArray[np.float32]) -> None:
        nonlocal seen
        seen += scores.size
        impostors.add(scores.reshape(-1)[int(rng.integers(step)) :: step])

    found = search(
        probe,
        probe_subject,
        gallery,
        gallery_subject,
        exclude=exclude,
        tolerance=tolerance,
        block_bytes=block_bytes,
        everybody=True,
        watch=watch,
    )
    mated = found.mated
    person, genuine = found.person[mated], levels(found.score[mated])
    tar = {}
    for far in fars:
        at = int(impostors.threshold(far))
        tar[far] = Threshold(rate(genuine > at, person, rng), (at - GRID) / GRID, float(impostors.above(at)))
    tpir = {}
    if fpirs:
        rivals = ScoreCounts()
        rivals.add(found.rival)
        first = found.success(1)
        for fpir in fpirs:
            at = int(rivals.threshold(fpir))
            false = float(rivals.above(at))
            tpir[fpir] = Threshold(rate(first * (genuine > at), person, rng), (at - GRID) / GRID, false)
    return Recognition(
        identification=identified(found, ranks, rng),
        tar=tar,
        tpir=tpir,
        impostor_pairs=impostors.total,
        all_impostor_pairs=seen - int(mated.sum()),
        search=found,
    )
