r"""Microaggregation: the k-same partition, fixed-size clustering of subject embeddings [1]_ [2]_.

Every class has at least *k* subjects and at most :math:`2k - 1`, and subjects that look alike share one, so that

.. math:: \mathrm{SSE} = \sum_c \sum_{i \in c} \lVert x_i - \bar x_c \rVert^2

is small. Three steps: bisect the subjects into blocks of neighbours, run MDAV [1]_ within each block, and swap or move
subjects between classes of a block while that lowers the SSE.

The partition depends on the data alone: there is no random number, ties go to the smaller index, and embeddings are
first rounded to integers small enough for every sum and product below to be exact in float64. So neither the order of
the rows (with ``subjects`` given), nor the number of threads, nor the linear-algebra library can change it.

With ``requirements`` every class also meets l and t: a class that does not is mended by swapping subjects with its
neighbours [3]_, or united with another where no swap does.

.. [1] J. Domingo-Ferrer, V. Torra, "Ordinal, continuous and heterogeneous k-anonymity through microaggregation", Data
   Mining and Knowledge Discovery 11(2), 2005.
.. [2] E. Newton, L. Sweeney, B. Malin, "Preserving privacy by de-identifying face images", IEEE TKDE 17(2), 2005.
.. [3] J. Soria-Comas, J. Domingo-Ferrer, D. Sánchez, S. Martínez, "t-closeness through microaggregation: strict privacy
   with enhanced utility preservation", IEEE TKDE 27(11), 2015 (algorithms 1, merging, and 2, swapping).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from facecrowd.privacy.attributes import Attribute
from facecrowd.privacy.embeddings import checked, pieces
from facecrowd.privacy.errors import (
    ColumnError,
    LengthError,
    PolicyError,
    TooFewSubjectsError,
    UnreachableError,
)
from facecrowd.privacy.merging import LEAST_WEIGHT, merge_until_met
from facecrowd.privacy.requirements import Requirements

BLOCK = 4096
"""Subjects per block: the block's Gram matrix takes 8 · BLOCK² bytes (128 MiB)."""

PASSES = 8
"""Refinement stops after so many passes over a block, or when one changes nothing."""

NEIGHBOURS = 256
"""Subjects nearest to a class that are tried as swaps."""


@dataclass(frozen=True, eq=False)
class Microaggregation:
    """A partition of subjects into classes of at least k.

    Attributes
    ----------
    ids : ndarray of int64, shape (N,)
        The class of each subject, numbered 0 … C - 1 by the first subject of each class.
    sizes : ndarray of int64, shape (C,)
        Subjects per class, k … 2k - 1; more where ``requirements`` united classes.
    sse : float
        Sum of squared distances to the class means, in squared units of the embedding.
    total : float
        The same with one class for everybody; ``sse / total`` is the share of the spread that is lost.
    """

    ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    sse: float
    total: float


def microaggregate(
    embeddings: ArrayLike,
    k: int,
    *,
    subjects: ArrayLike | pa.Array | None = None,
    within: ArrayLike | pa.Array | None = None,
    block: int = BLOCK,
    passes: int = PASSES,
    sensitive: ArrayLike | None = None,
    requirements: Requirements | None = None,
) -> Microaggregation:
    """Partition subjects into classes of k … 2k - 1 that look alike, and meet l and t where that is required.

    Parameters
    ----------
    embeddings : array, shape (N, D)
        One row per *subject* (the mean of the subject's face embeddings), not per image.
    k : int
        The smallest number of subjects in a class.
    subjects : array, shape (N,), optional
        The name of each subject, distinct. Rows are sorted by it first, which makes the result independent of their
        order; without it ties are broken by position.
    within : array, shape (N,), optional
        Partition separately within each value (k-same-select). A value with fewer than k subjects is an error: merging
        it with another value would show its subjects with an attribute they do not have.
    block : int
        Subjects compared with each other at once. Larger is slower and a little better.
    passes : int
        The most refinement passes; 0 leaves plain MDAV within blocks.
    sensitive : array, shape (N, S), optional
        The sensitive values of each subject, a weight of 1 shared among them (``Histogram.values`` in columns).
    requirements : Requirements, optional
        Held by every class. What is met by no partition at all is found before any work: by convexity (``merging.py``)
        it is what the class of everybody, or of everybody with one value of ``within``, does not meet.

    Returns
    -------
    Microaggregation

    Raises
    ------
    TooFewSubjectsError
        If there are fewer than k subjects, in all or with one value of ``within``.
    UnreachableError
        If no partition meets the requirements; says which, and by how much.
    EmbeddingError, LengthError, ColumnError, EmptyTableError, PolicyError

    Notes
    -----
    Time is O(N · block · (D + passes)), memory O(block²) beside the input. Mending adds O(block · D) per class
    that does not meet the requirements.
    """
    points = checked(embeddings, "subject")
    n = len(points)
    if k < 1:
        raise PolicyError(f"k is {k}; a class has at least 1 subject")
    if k > n:
        raise TooFewSubjectsError(
            f"k = {k} people were asked for in each class but there are only {n}; lower k or add people"
        )
    order = _order(subjects, n)
    points = points[order]
    exact, step = _integers(points, k)
    held = None if requirements is None else _weights(sensitive, n)[order]
    ids = np.full(n, -1, dtype=np.int64)
    count, sse = 0, 0.0
    strata = _strata(within, order, k)
    if held is not None and requirements is not None:
        for members in strata:
            _reachable(held[members], requirements, "" if within is None else f" of {len(members)} to stay within")
    for members in strata:
        first_class = count
        for part in _blocks(exact, members, k, max(block, 2 * k)):
            inside = exact[part].astype(np.float64)
            local = _cluster(inside, k, passes)
            if held is not None and requirements is not None:
                local = _mend(inside, local, held[part], held.mean(axis=0), requirements)
            sse += _sse(inside, local)
            ids[part] = local + count
            count += int(local.max()) + 1
        if held is not None and requirements is not None:
            # a block that is one class and still not met looks for others outside
            joined, rise = _unite(exact[members], ids[members] - first_class, held[members], requirements)
            ids[members], sse, count = joined + first_class, sse + rise, first_class + int(joined.max()) + 1
    _, first, ids = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(count, dtype=np.int64)
    rank[np.argsort(first)] = np.arange(count)
    ids = rank[ids]
    unsorted = np.empty(n, dtype=np.int64)
    unsorted[order] = ids
    return Microaggregation(
        ids=unsorted,
        sizes=np.bincount(ids),
        sse=sse * step * step,
        total=_total(exact) * step * step,
    )


def attribute_points(codes: NDArray[np.int32], attributes: Sequence[Attribute]) -> NDArray[np.float64]:
    r"""Attribute vectors as points whose squared Euclidean distance is the sum of the attributes' distances.

    .. math::
        \left( \frac{x - y}{x_{max} - x_{min}} \right)^2 \text{ (numeric)}, \quad
        \left( \frac{i - j}{m - 1} \right)^2 \text{ (ordered, in codes)}, \quad
        \frac{\text{level of the lowest common ancestor}}{\text{height}} \text{ (hierarchy)}, \quad
        [x \ne y] \text{ (else)}

    so ``microaggregate`` clusters attributes of mixed kinds, alone or beside embeddings (``mixed_points``).

    Parameters
    ----------
    codes : ndarray of int32, shape (N, A)
        One vector per subject.
    attributes : sequence of A Attribute

    Returns
    -------
    ndarray of float64, shape (N, D)
    """
    if codes.ndim != 2 or codes.shape[1] != len(attributes):
        raise LengthError(
            f"codes of shape {codes.shape} are given for {len(attributes)} attributes; give one column each"
        )
    parts = []
    for a, attribute in enumerate(attributes):
        m = attribute.size
        if m <= 2 or attribute.kind in ("numeric", "ordered"):
            x = np.asarray(attribute.values, dtype=np.float64) if attribute.kind == "numeric" else np.arange(float(m))
            parts.append(((x - x.min()) / max(float(x.max() - x.min()), 1e-300))[codes[:, a], None])
        elif attribute.hierarchy is not None:
            of = {labels[0]: labels for labels in attribute.hierarchy.levels}
            height = max(len(attribute.hierarchy.levels[0]) - 1, 1)
            for level in range(height):
                _, node = np.unique([of[str(value)][level] for value in attribute.values], return_inverse=True)
                parts.append(np.eye(int(node.max()) + 1)[node][codes[:, a]] / np.sqrt(2.0 * height))
        else:
            parts.append(np.eye(m)[codes[:, a]] / np.sqrt(2.0))
    return np.concatenate(parts, axis=1)


def mixed_points(embeddings: ArrayLike, attributes: ArrayLike, share: float = 0.5) -> NDArray[np.float64]:
    """Embeddings and ``attribute_points`` side by side, each scaled so that attributes make ``share`` of the spread.

    Parameters
    ----------
    embeddings : array, shape (N, D)
    attributes : array, shape (N, E)
    share : float
        In [0, 1].
    """
    if not 0 <= share <= 1:
        raise PolicyError(f"the share of the attributes is {share:g}; give one from 0 to 1")
    parts = []
    for points, part in ((np.asarray(embeddings, dtype=np.float64), 1 - share), (np.asarray(attributes), share)):
        spread = float(((points - points.mean(axis=0)) ** 2).sum()) / len(points)
        parts.append(points * np.sqrt(part / spread) if spread > 0 else points)
    return np.concatenate(parts, axis=1)


def _order(subjects: ArrayLike | pa.Array | None, n: int) -> NDArray[np.int64]:
    """Positions sorted by subject."""
    if subjects is None:
        return np.arange(n)
    names = subjects if isinstance(subjects, pa.Array | pa.ChunkedArray) else pa.array(subjects)
    if len(names) != n:
        raise LengthError(f"there are {len(names)} subject names for {n} embeddings; give one each")
    if names.null_count or len(pc.unique(names)) < n:
        raise ColumnError("subject names are null or repeated; give one embedding per subject, under a name of its own")
    return np.asarray(pc.sort_indices(names)).astype(np.int64)


def _strata(within: ArrayLike | pa.Array | None, order: NDArray[np.int64], k: int) -> list[NDArray[np.int64]]:
    """The (sorted) positions to be partitioned together."""
    n = len(order)
    if within is None:
        return [np.arange(n)]
    values = within if isinstance(within, pa.Array | pa.ChunkedArray) else pa.array(within)
    if len(values) != n:
        raise LengthError(f"there are {len(values)} values to stay within for {n} embeddings; give one each")
    distinct = pc.unique(values)
    distinct = distinct.take(pc.sort_indices(distinct))
    codes = np.asarray(pc.index_in(values, distinct))[order]
    counts = np.bincount(codes, minlength=len(distinct))
    if counts.min() < k:
        worst = int(np.argmin(counts))
        raise TooFewSubjectsError(
            f"only {counts[worst]} people have the value {distinct[worst].as_py()!r} to stay within, under k = {k}; "
            "lower k, merge the value with another, or leave its people out"
        )
    return [np.flatnonzero(codes == code) for code in range(len(distinct))]


def _integers(points: NDArray[Any], k: int) -> tuple[NDArray[np.int16], float]:
    """Points rounded to whole multiples of ``step``, and the step.

    With coordinates of at most q steps, a sum of M inner products is at most M · D · q². M is N where points are summed
    and (2k)² within a class; below 2⁵³ every such sum is exact in float64, in whatever order it is taken.
    """
    n, d = points.shape
    largest = max(float(np.abs(points[rows]).max()) for rows in pieces(n))
    levels = min(2.0**15 - 1, np.floor(np.sqrt(2.0**53 / (max(n, 4 * k * k) * d))))
    step = largest / levels if largest > 0 else 1.0
    exact = np.empty((n, d), dtype=np.int16)
    for rows in pieces(n):
        exact[rows] = np.rint(points[rows].astype(np.float64) / step)
    return exact, step


def _blocks(points: NDArray[np.int16], members: NDArray[np.int64], k: int, block: int) -> list[NDArray[np.int64]]:
    """Neighbours in blocks of at most ``block``: bisect at the median along the line between two far points.

    All sizes but one are multiples of k, so that only one block has a remainder to spread.
    """
    if len(members) <= block:
        return [members]
    n = len(members)
    norms, to_mean, to_far, along = (np.empty(n) for _ in range(4))
    mean = np.zeros(points.shape[1])
    for rows in pieces(n):
        mean += points[members[rows]].sum(axis=0, dtype=np.float64)
    for rows in pieces(n):
        inside = points[members[rows]].astype(np.float64)
        norms[rows] = np.einsum("ij,ij->i", inside, inside)
        to_mean[rows] = inside @ mean
    far = points[members[np.argmax(n * norms - 2 * to_mean)]].astype(np.float64)
    for rows in pieces(n):
        to_far[rows] = points[members[rows]].astype(np.float64) @ far
    farther = points[members[np.argmax(norms - 2 * to_far)]].astype(np.float64)
    for rows in pieces(n):
        along[rows] = points[members[rows]].astype(np.float64) @ (farther - far)
    ranked = members[np.argsort(along, kind="stable")]
    half = n // (2 * k) * k
    return _blocks(points, np.sort(ranked[:half]), k, block) + _blocks(points, np.sort(ranked[half:]), k, block)


def _cluster(points: NDArray[np.float64], k: int, passes: int) -> NDArray[np.int64]:
    """Classes of k … 2k - 1 within one block."""
    if len(points) < 2 * k:
        return np.zeros(len(points), dtype=np.int64)
    gram = points @ points.T
    ids = _mdav(gram, k)
    if k > 1 and passes > 0:
        _refine(gram, ids, k, passes)
    return ids


def _mdav(gram: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Maximum distance to average vector, on inner products.

    Take the point farthest from the mean of those left and its k - 1 nearest as a class, then the point farthest from
    that one likewise, until fewer than k are left; each of those joins the class whose mean is nearest.
    """
    n = len(gram)
    norms = np.diag(gram).copy()
    ids = np.full(n, -1, dtype=np.int64)
    left = np.arange(n)
    to_sum = gram.sum(axis=1)
    count = 0
    seed: int | None = None
    while len(left) >= k:
        if seed is None:
            centre = seed = int(left[np.argmax(len(left) * norms[left] - 2 * to_sum[left])])
        else:
            centre, seed = int(left[np.argmax(norms[left] - 2 * gram[seed, left])]), None
        distance = norms[left] - 2 * gram[centre, left]
        distance[left == centre] = -np.inf
        chosen = np.argsort(distance, kind="stable")[:k]
        members = left[chosen]
        ids[members] = count
        count += 1
        to_sum -= gram[members].sum(axis=0)
        left = np.delete(left, chosen)
    if len(left):
        sums = _class_sums(gram, ids, count)
        inner = np.array([sums[c, np.flatnonzero(ids == c)].sum() for c in range(count)])
        sizes = np.bincount(ids[ids >= 0], minlength=count)
        for point in left:
            ids[point] = int(np.argmin(inner / sizes**2 - 2 * sums[:, point] / sizes))
    return ids


def _class_sums(gram: NDArray[np.float64], ids: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """S[c, i]: the sum of the inner products of point i with the members of class c; (C, n)."""
    members = np.flatnonzero(ids >= 0)
    order = members[np.argsort(ids[members], kind="stable")]
    starts = np.searchsorted(ids[order], np.arange(count))
    return np.add.reduceat(gram[order], starts, axis=0)


def _refine(gram: NDArray[np.float64], ids: NDArray[np.int64], k: int, passes: int) -> None:
    """Swap two points of different classes, or move one, while the SSE falls. Changes ``ids``.

    With Q_c the sum of all inner products within class c, SSE = const - Σ Q_c / n_c. Replacing i by j in class a
    changes Q_a by -2 S_ai + 2 (S_aj - G_ij) + G_ii + G_jj: the gain of i against every j at once is a few vectors.
    """
    n = len(ids)
    count = int(ids.max()) + 1
    sizes = np.bincount(ids, minlength=count).astype(np.float64)
    sums = _class_sums(gram, ids, count)
    own = sums[ids, np.arange(n)]
    inner = np.bincount(ids, weights=own, minlength=count)
    norms = np.diag(gram).copy()
    least = 1e-9 * float(norms.sum()) / n  # gains below the rounding of the divisions are ties
    per_point = 1.0 / sizes[ids]
    for _ in range(passes):
        changed = False
        for i in range(n):
            a = int(ids[i])
            row = gram[i]
            both = norms + (norms[i] - 2.0 * row)
            gain = (2.0 * (sums[a] - own[i]) + both) * per_point[i]
            gain += (2.0 * (sums[:, i][ids] - own) + both) * per_point
            gain[ids == a] = 0.0
            j = int(np.argmax(gain))
            best, target = float(gain[j]), -1
            if sizes[a] > k:
                joined = (inner + 2.0 * sums[:, i] + norms[i]) / (sizes + 1.0) - inner / sizes
                left = (inner[a] - 2.0 * own[i] + norms[i]) / (sizes[a] - 1.0) - inner[a] / sizes[a]
                # a block has at most k - 1 points to spare, so no class can outgrow 2k - 1
                move = joined + left
                move[a] = -np.inf
                if float(move.max()) > best:
                    best, target = float(move.max()), int(np.argmax(move))
            if best <= least:
                continue
            changed = True
            if target >= 0:
                b = target
                sums[a] -= row
                sums[b] += row
                ids[i] = b
                sizes[a] -= 1.0
                sizes[b] += 1.0
            else:
                b = int(ids[j])
                step = gram[j] - row
                sums[a] += step
                sums[b] -= step
                ids[i], ids[j] = b, a
            for c in (a, b):
                inside = np.flatnonzero(ids == c)
                own[inside] = sums[c, inside]
                inner[c] = own[inside].sum()
                per_point[inside] = 1.0 / sizes[c]
        if not changed:
            return


def _weights(sensitive: ArrayLike | None, n: int) -> NDArray[np.float64]:
    held = np.ones((n, 1)) if sensitive is None else np.asarray(sensitive, dtype=np.float64)
    if held.ndim != 2 or len(held) != n:
        raise LengthError(f"sensitive weights of shape {held.shape} are given for {n} subjects; give a row each")
    if (held < 0).any() or not np.allclose(held.sum(axis=1), 1.0):
        raise ColumnError("a subject's sensitive weights do not sum to 1; share one weight among its values")
    return held


def _reachable(held: NDArray[np.float64], requirements: Requirements, where: str) -> None:
    lacks = requirements.shortfalls(len(held), held.sum(axis=0))
    if lacks:
        raise UnreachableError(f"no partition of the people{where} meets the policy: {'; '.join(lacks)}")


def _mend(
    points: NDArray[np.float64],
    ids: NDArray[np.int64],
    held: NDArray[np.float64],
    centre: NDArray[np.float64],
    requirements: Requirements,
) -> NDArray[np.int64]:
    """The classes of a block, each meeting the requirements if the block as a whole does: first swaps, then unions."""
    ids = ids.copy()
    count = int(ids.max()) + 1
    sizes = np.bincount(ids, minlength=count)
    of_class = np.stack([held[ids == c].sum(axis=0) for c in range(count)])
    ok = requirements.met(sizes, of_class)
    sums = np.stack([points[ids == c].sum(axis=0) for c in range(count)])
    norms = np.einsum("ij,ij->i", points, points)
    for a in np.flatnonzero(~ok).tolist():
        for _ in range(int(sizes[a])):
            swap = (
                None if ok[a] else _swap(a, points, norms, ids, sizes, sums, held, of_class, ok, centre, requirements)
            )
            if swap is None:
                break
            i, j = swap
            b = int(ids[j])
            ids[i], ids[j] = b, a
            for c in (a, b):
                sums[c] = points[ids == c].sum(axis=0)
                of_class[c] = held[ids == c].sum(axis=0)
            both = np.array([a, b])
            ok[both] = requirements.met(sizes[both], of_class[both])
    return _unite(points, ids, held, requirements)[0]


def _swap(
    a: int,
    points: NDArray[np.float64],
    norms: NDArray[np.float64],
    ids: NDArray[np.int64],
    sizes: NDArray[np.int64],
    sums: NDArray[np.float64],
    held: NDArray[np.float64],
    of_class: NDArray[np.float64],
    ok: NDArray[np.bool_],
    centre: NDArray[np.float64],
    requirements: Requirements,
) -> tuple[int, int] | None:
    """The cheapest swap of a member of class a with a neighbour that mends a; else the one that brings it nearest to
    ``centre``, everybody's distribution. No swap may break another class, or take a broken one further away."""
    mine = np.flatnonzero(ids == a)
    distance = norms - 2.0 * (points @ sums[a]) / sizes[a]
    distance[mine] = np.inf
    near = np.argsort(distance, kind="stable")[: min(NEIGHBOURS, len(ids) - len(mine))]
    if not len(near):
        return None
    b = ids[near]
    given, taken = held[mine][:, None, :], held[near][None, :, :]
    here, there = (
        _clean(w).reshape(-1, held.shape[1]) for w in (of_class[a] - given + taken, of_class[b] + given - taken)
    )
    size_here, size_there = np.full(len(here), sizes[a]), np.tile(sizes[b], len(mine))
    away = np.abs(here / size_here[:, None] - centre).sum(axis=1)
    away_there = np.abs(there / size_there[:, None] - centre).sum(axis=1)
    before = np.abs(of_class[a] / sizes[a] - centre).sum()
    before_there = np.tile(np.abs(of_class[b] / sizes[b][:, None] - centre).sum(axis=1), len(mine))
    fine = np.tile(ok[b], len(mine))
    allowed = (away < before - LEAST_WEIGHT) & (fine | (away_there <= before_there + LEAST_WEIGHT))
    allowed[allowed & fine] = requirements.met(size_there[allowed & fine], there[allowed & fine])
    if not allowed.any():
        return None
    mends = np.zeros(len(allowed), dtype=bool)
    mends[allowed] = requirements.met(size_here[allowed], here[allowed])
    if not mends.any():
        mends = allowed & (away <= away[allowed].min() + LEAST_WEIGHT)
    # as in _refine, with Q_c / n_c for every pair at once; less of it is more SSE
    x, y = points[mine], points[near]
    both = norms[mine][:, None] + norms[near][None, :] - 2.0 * (x @ y.T)
    gain = (2.0 * ((y @ sums[a])[None, :] - (x @ sums[a])[:, None]) + both) / sizes[a]
    gain += (2.0 * (x @ sums[b].T - np.einsum("ij,ij->i", y, sums[b])[None, :]) + both) / sizes[b][None, :]
    rise = np.where(mends, -gain.ravel(), np.inf)
    best = int(np.argmin(rise))
    return int(mine[best // len(near)]), int(near[best % len(near)])


def _unite(
    points: NDArray[Any], ids: NDArray[np.int64], held: NDArray[np.float64], requirements: Requirements
) -> tuple[NDArray[np.int64], float]:
    """Classes united until each meets the requirements, numbered anew, and what that adds to the SSE."""
    count = int(ids.max()) + 1
    sizes = np.bincount(ids, minlength=count)
    order = np.argsort(ids, kind="stable")
    starts = np.searchsorted(ids[order], np.arange(count))
    of_class = np.add.reduceat(held[order], starts, axis=0)
    if requirements.met(sizes, of_class).all():
        return ids, 0.0
    sums = np.add.reduceat(points[order].astype(np.float64), starts, axis=0)
    members = sizes.astype(np.float64)
    added = 0.0

    def cost(a: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
        gap = sums[others] / members[others, None] - sums[a] / members[a]
        return members[a] * members[others] / (members[a] + members[others]) * np.einsum("ij,ij->i", gap, gap)

    def join(a: int, b: int) -> None:
        nonlocal added
        added += float(cost(a, np.array([b]))[0])
        sums[a] += sums[b]
        members[a] += members[b]

    label = merge_until_met(sizes, of_class, requirements.met, cost, join)
    return np.unique(label[ids], return_inverse=True)[1].astype(np.int64), added


def _clean(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without what rounding leaves where nobody is."""
    return np.where(weights < LEAST_WEIGHT, 0.0, weights)


def _sse(points: NDArray[np.float64], ids: NDArray[np.int64]) -> float:
    """Σ |x|² - Σ_c |Σ_{i ∈ c} x_i|² / n_c."""
    order = np.argsort(ids, kind="stable")
    starts = np.searchsorted(ids[order], np.arange(int(ids.max()) + 1))
    sums = np.add.reduceat(points[order], starts, axis=0)
    sizes = np.bincount(ids)
    return float(np.einsum("ij,ij->", points, points) - (np.einsum("ij,ij->i", sums, sums) / sizes).sum())


def _total(points: NDArray[np.int16]) -> float:
    """The SSE of one class of everybody."""
    squares, sums = 0.0, np.zeros(points.shape[1])
    for rows in pieces(len(points)):
        inside = points[rows].astype(np.float64)
        squares += float(np.einsum("ij,ij->", inside, inside))
        sums += inside.sum(axis=0)
    return squares - float(sums @ sums) / len(points)
