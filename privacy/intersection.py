r"""Intersection: what is left of a crowd when several photos of one person are released in different classes [1]_.

With ``per_subject: false`` a person's photos fall into several classes. A photo shown by its class has that class's
subjects :math:`K_c` as candidates; an adversary who knows that some photos are of one person (by their pseudonym, the
clothes, the place) intersects them:

.. math::
    a_s(m) = \min_{c_1, \dots, c_m \in C_s} |K_{c_1} \cap \dots \cap K_{c_m}|

where :math:`C_s` are the classes of subject *s*. It falls with *m*, and :math:`a_s(|C_s|)` is what all photos leave.

.. [1] S. Ganta, S. Kasiviswanathan, A. Smith, "Composition attacks and auxiliary information in data
   privacy", KDD 2008.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.sparse
from numpy.typing import NDArray
from scipy.special import gammaln

from facecrowd.privacy.classes import PartialHistogram

BLOCK_PAIRS = 2**22
"""Pairs of classes, or of subjects, looked at once."""


@dataclass(frozen=True, eq=False)
class Intersection:
    """The candidates that an adversary is left with, per subject.

    Attributes
    ----------
    subjects : pyarrow.Array, length S
    classes : ndarray of int64, shape (S,)
        Different classes that each subject's photos are in.
    smallest : ndarray of int64, shape (M, S)
        Row m - 1: the fewest candidates that m photos can leave, the adversary having the m that serve best. Exact for
        one and two and for all of a subject's classes; between, by adding the photo that leaves fewest (an adversary
        with more patience may come lower, never below ``all``).
    all : ndarray of int64, shape (S,)
        Candidates left by all photos.
    """

    subjects: pa.Array
    classes: NDArray[np.int64]
    smallest: NDArray[np.int64]
    all: NDArray[np.int64]

    def candidates(self, photos: int | None = None) -> NDArray[np.int64]:
        """Per subject, with so many photos; None for all. A subject with fewer shows all of them."""
        return self.all if photos is None or photos > len(self.smallest) else self.smallest[photos - 1]

    def under(self, k: int, photos: int | None = None) -> float:
        """The share of people with fewer than k candidates."""
        return float((self.candidates(photos) < k).mean())

    def alone(self, photos: int | None = None) -> float:
        """The share of people who are the only candidate left."""
        return self.under(2, photos)


def intersection(partial: PartialHistogram, *, most: int | None = None) -> Intersection:
    r"""Intersect the classes of each subject's photos.

    Parameters
    ----------
    partial : PartialHistogram
        Classes as released (``classes.regrouped`` by a plan), of every photo.
    most : int, optional
        The most photos for which ``smallest`` gets a row; all, by default.

    Returns
    -------
    Intersection

    Notes
    -----
    Time :math:`O(\sum_s |C_s|^2 + \sum_s |C_s| \min_c |K_c|)`: nothing is ever the square of the subjects.
    """
    pair_class, pair_subject = _pairs(partial)
    subjects, classes = len(partial.subjects), partial.classes.num_rows
    key = pair_class * subjects + pair_subject
    bounds = np.searchsorted(pair_class, np.arange(classes + 1))
    size = np.diff(bounds)
    by_subject = np.argsort(pair_subject, kind="stable")
    own_class = pair_class[by_subject]
    start = np.searchsorted(pair_subject[by_subject], np.arange(subjects + 1))
    degree = np.diff(start)
    depth = int(degree.max()) if most is None else max(1, min(most, int(degree.max())))

    one = np.minimum.reduceat(size[own_class], start[:-1])
    two, first, second = _two(pair_class, pair_subject, own_class, start, one)
    smallest = np.empty((depth, subjects), dtype=np.int64)
    smallest[0] = one
    if depth > 1:
        smallest[1:] = two
    everything = two.copy()
    for s in np.flatnonzero((two > 1) & (degree > 2)):
        mine = own_class[start[s] : start[s + 1]]
        a, b = int(first[s]), int(second[s])
        left = np.intersect1d(
            pair_subject[bounds[a] : bounds[a + 1]], pair_subject[bounds[b] : bounds[b + 1]], assume_unique=True
        )
        rest = mine[(mine != a) & (mine != b)]
        wanted = rest[None, :] * subjects + left[:, None]
        inside = key[np.minimum(np.searchsorted(key, wanted), len(key) - 1)] == wanted
        everything[s] = int(inside.all(axis=1).sum())
        for m in range(2, depth):
            if len(inside) > everything[s]:
                inside = inside[inside[:, int(inside.sum(axis=0).argmin())]]
            smallest[m, s] = len(inside)
    return Intersection(partial.subjects, degree.astype(np.int64), smallest, everything)


def pair_exposure(partial: PartialHistogram, k: int) -> NDArray[np.float64]:
    """Per subject, the chance that two different classes of theirs, drawn at random, leave fewer than k candidates.

    Where ``Intersection.smallest`` has the adversary find the best two, here any two come to light. (S,); 0 for
    subjects with one class.
    """
    pair_class, pair_subject = _pairs(partial)
    order = np.argsort(pair_subject, kind="stable")
    start = np.searchsorted(pair_subject[order], np.arange(len(partial.subjects) + 1))
    shared = _shared(pair_class, pair_subject, partial.classes.num_rows)
    found = np.zeros(len(partial.subjects))
    for people, a, b, of in _class_pairs(pair_class[order], start):
        few = _lookup(shared, a, b) < k
        found[people] = np.bincount(of, weights=few, minlength=len(people)) / np.maximum(
            np.bincount(of, minlength=len(people)), 1
        )
    return found


def expected_candidates(partial: PartialHistogram, photos: int) -> NDArray[np.float64]:
    r"""The mean number of candidates when ``photos`` of a subject's photos come to light at random, per subject.

    Of the :math:`n_s` photos, :math:`o_{ss'}` lie in classes that *s'* is in too, and *s'* stays a candidate if all *m*
    are among them:

    .. math:: E|K| = \sum_{s'} \binom{o_{ss'}}{m} \Big/ \binom{n_s}{m}

    with *m* at most :math:`n_s`. Exact; time :math:`O(\sum_c k_c^2)`.
    """
    cell = (partial.cell_rows.astype(np.float64), (partial.cell_subject, partial.cell_class))
    rows = scipy.sparse.csr_array(cell, shape=(len(partial.subjects), partial.classes.num_rows))
    rows.sum_duplicates()
    member = rows.copy()
    member.data[:] = 1.0
    n = np.bincount(partial.cell_subject, weights=partial.cell_rows, minlength=len(partial.subjects))
    m = np.minimum(photos, n)
    found = np.empty(len(n))
    others = scipy.sparse.csr_array(member.T)
    height = max(1, BLOCK_PAIRS // len(n))
    for low in range(0, len(n), height):
        overlap = scipy.sparse.csr_array(rows[low : low + height] @ others)
        of = np.repeat(np.arange(overlap.shape[0]), np.diff(overlap.indptr)) + low
        enough = overlap.data >= m[of]
        o, of = overlap.data[enough], of[enough]
        # log of C(o, m) / C(n, m)
        chance = np.exp(gammaln(o + 1) - gammaln(o - m[of] + 1) - gammaln(n[of] + 1) + gammaln(n[of] - m[of] + 1))
        found[low : low + height] = np.bincount(of - low, weights=chance, minlength=overlap.shape[0])
    return found


def _pairs(partial: PartialHistogram) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct (class, subject) pairs, sorted."""
    first = np.ones(len(partial.cell_class), dtype=bool)
    first[1:] = (np.diff(partial.cell_class) != 0) | (np.diff(partial.cell_subject) != 0)
    return partial.cell_class[first], partial.cell_subject[first]


Shared = tuple[NDArray[np.int64], NDArray[np.int64], int]


def _shared(pair_class: NDArray[np.int64], pair_subject: NDArray[np.int64], classes: int) -> Shared:
    """How many subjects two classes share, for the pairs that share any: sorted keys, counts, number of classes."""
    member = scipy.sparse.csr_array(
        (np.ones(len(pair_class), dtype=np.int32), (pair_class, pair_subject)),
        shape=(classes, int(pair_subject.max()) + 1),
    )
    both = scipy.sparse.csr_array(member @ member.T)
    both.sort_indices()
    row = np.repeat(np.arange(classes, dtype=np.int64), np.diff(both.indptr))
    return row * classes + both.indices, both.data.astype(np.int64), classes


def _lookup(shared: Shared, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    keys, counts, classes = shared
    return counts[np.searchsorted(keys, a * classes + b)]


def _class_pairs(
    own_class: NDArray[np.int64], start: NDArray[np.int64]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Every two classes of each subject, by number of classes: subjects, first class, second class, whose pair."""
    degree = np.diff(start)
    found = []
    for d in np.unique(degree[degree > 1]):
        everybody = np.flatnonzero(degree == d)
        i, j = np.triu_indices(int(d), 1)
        for part in np.array_split(everybody, max(1, len(everybody) * len(i) // BLOCK_PAIRS)):
            mine = own_class[start[part][:, None] + np.arange(d)]
            found.append((part, mine[:, i].ravel(), mine[:, j].ravel(), np.repeat(np.arange(len(part)), len(i))))
    return found


def _two(
    pair_class: NDArray[np.int64],
    pair_subject: NDArray[np.int64],
    own_class: NDArray[np.int64],
    start: NDArray[np.int64],
    one: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The fewest subjects that two classes of each subject share, and which two."""
    fewest = one.copy()
    first, second = own_class[start[:-1]].copy(), own_class[start[:-1]].copy()
    shared = _shared(pair_class, pair_subject, int(pair_class.max()) + 1)
    for people, a, b, _ in _class_pairs(own_class, start):
        common = _lookup(shared, a, b).reshape(len(people), -1)
        best = common.argmin(axis=1)
        line = np.arange(len(people))
        fewest[people] = common[line, best]
        first[people], second[people] = a.reshape(common.shape)[line, best], b.reshape(common.shape)[line, best]
    return fewest, first, second
