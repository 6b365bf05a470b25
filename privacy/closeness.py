r"""t-closeness: how far a class's sensitive values are from everybody's [1]_.

A class *c* is t-close when the Earth Mover's Distance between the distribution of its originals' sensitive values,
:math:`p_{c,v} = w_{c,v} / k_c` (one weight per subject, ``privacy/classes.py``), and a reference :math:`q` is at most
t:

.. math::
    D(p, q) = \min_{f \ge 0} \sum_{u,v} f_{uv} d_{uv}
    \quad \text{with} \quad \sum_v f_{uv} = p_u, \; \sum_u f_{uv} = q_v

for a ground distance :math:`d` between values, from 0 to 1. Three have closed forms; the others go to POT [2]_.

.. [1] N. Li, T. Li, S. Venkatasubramanian, "t-closeness: privacy beyond k-anonymity and l-diversity", ICDE 2007.
.. [2] R. Flamary et al., "POT: Python Optimal Transport", JMLR 22(78), 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from facecrowd.privacy.classes import Histogram
from facecrowd.privacy.errors import GroundDistanceError, ReferenceDistributionError
from facecrowd.privacy.measure import Measure, largest

BLOCK_CELLS = 4 * 2**20
"""Classes × values made dense at once."""


@dataclass(frozen=True)
class Ordered:
    """Values in an order that their own does not give, lowest first: ``Ordered(("child", "adult", "senior"))``."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Hierarchy:
    """A generalisation tree: for each value its ancestors, from the nearest to the root (the columns of an ARX file).

    All values have equally many; the last is the same for all.
    """

    ancestors: Mapping[Any, tuple[Any, ...]]


Ground: TypeAlias = Literal["equal", "ordered", "hamming"] | Ordered | Hierarchy | NDArray[np.float64]
"""The distance between two sensitive values.

``equal``: 1 between any two. ``ordered`` (or ``Ordered``): difference of ranks over the number of values less one.
``Hierarchy``: height of the lowest common ancestor over the height of the tree. ``hamming``: share of the sensitive
attributes that differ. An array: (V, V), in the order of ``Histogram.values``.
"""

Distances: TypeAlias = Callable[[NDArray[Any], Any], NDArray[np.float64]]
"""Of subjects (C,) and weights (C, V) in csr form, to the distance of each class to the reference, (C,)."""


def equal_distance(p: ArrayLike, q: ArrayLike) -> NDArray[np.float64]:
    r"""EMD when all values are equally far apart: total variation.

    .. math:: D(p, q) = \tfrac12 \sum_v |p_v - q_v|

    Parameters
    ----------
    p, q : array, shape (..., V)
        Distributions; broadcast.

    Returns
    -------
    ndarray, shape (...)
        In [0, 1].
    """
    return np.asarray(0.5 * np.abs(np.asarray(p, dtype=np.float64) - np.asarray(q)).sum(axis=-1))


def ordered_distance(p: ArrayLike, q: ArrayLike) -> NDArray[np.float64]:
    r"""EMD between distributions over V ranked values.

    .. math:: D(p, q) = \frac{1}{V - 1} \sum_{v=1}^{V-1} \Bigl| \sum_{u \le v} (p_u - q_u) \Bigr|

    Parameters
    ----------
    p, q : array, shape (..., V)
        Distributions, lowest value first; broadcast.

    Returns
    -------
    ndarray, shape (...)
        In [0, 1].
    """
    difference = np.asarray(p, dtype=np.float64) - np.asarray(q)
    steps = max(difference.shape[-1] - 1, 1)
    return np.asarray(np.abs(np.cumsum(difference, axis=-1)[..., :-1]).sum(axis=-1) / steps)


def hierarchical_distance(p: ArrayLike, q: ArrayLike, nodes: ArrayLike) -> NDArray[np.float64]:
    r"""EMD when values are the leaves of a tree of height H.

    With :math:`d_{uv}` the level of the lowest common ancestor over H, every edge of the tree is worth 1/(2H) and what
    crosses it is the difference of mass below:

    .. math::
        D(p, q) = \frac{1}{2H} \sum_{h=0}^{H-1} \sum_{a \in \text{level } h}
        \Bigl| \sum_{v \text{ under } a} (p_v - q_v) \Bigr|

    Parameters
    ----------
    p, q : array, shape (..., V)
        Distributions; broadcast.
    nodes : array of int, shape (V, H)
        The node of each value at levels 1 … H; the last column is the root.

    Returns
    -------
    ndarray, shape (...)
        In [0, 1].
    """
    difference = np.asarray(p, dtype=np.float64) - np.asarray(q)
    tree = np.asarray(nodes)
    total = np.abs(difference).sum(axis=-1)
    for level in range(tree.shape[1] - 1):
        _, node = np.unique(tree[:, level], return_inverse=True)
        below = np.eye(int(node.max()) + 1)[node]
        total = total + np.abs(difference @ below).sum(axis=-1)
    return np.asarray(total / (2 * tree.shape[1]))


def earth_movers_distance(p: ArrayLike, q: ArrayLike, ground: ArrayLike) -> float:
    """EMD between two distributions under any ground distance, by POT's network simplex on their supports.

    Parameters
    ----------
    p, q : array, shape (V,)
        Non-negative; each is scaled to sum to 1.
    ground : array, shape (V, V)
        Distances between values.

    Returns
    -------
    float
        In the unit of ``ground``.
    """
    # POT looks for every array library when it is imported, which takes seconds; most runs need only closed forms.
    from ot.lp import emd2

    source, sink = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    here, there = np.flatnonzero(source > 0), np.flatnonzero(sink > 0)
    cost = np.ascontiguousarray(np.asarray(ground, dtype=np.float64)[np.ix_(here, there)])
    mass, target = source[here] / source.sum(), sink[there] / sink.sum()
    return float(emd2(mass, target, cost, numItermax=1_000_000))


def hamming_ground(values: Sequence[Sequence[Any]]) -> NDArray[np.float64]:
    r"""The share of attributes in which two combinations of values differ.

    .. math:: d_{uv} = \frac{1}{A} |\{a : u_a \ne v_a\}|

    Parameters
    ----------
    values : sequence of V tuples of A values

    Returns
    -------
    ndarray of float64, shape (V, V)
        In [0, 1].
    """
    width = max(len(values[0]), 1)
    different = np.zeros((len(values), len(values)))
    for position in range(len(values[0])):
        code = {value: i for i, value in enumerate(dict.fromkeys(row[position] for row in values))}
        codes = np.array([code[row[position]] for row in values])
        different += codes[:, None] != codes[None, :]
    return different / width


def t_closeness(
    histogram: Histogram,
    ground: Ground = "equal",
    *,
    attribute: str | None = None,
    reference: Mapping[Any, float] | None = None,
) -> Measure:
    """The Earth Mover's Distance of each class to the reference, and the largest.

    Parameters
    ----------
    histogram : Histogram
    ground : Ground
        The distance between values.
    attribute : str, optional
        One sensitive attribute; without it their joint distribution.
    reference : mapping of value to probability, optional
        A public distribution; keys are values, or tuples of values (in the order of ``Histogram.sensitive``) for a
        joint distribution. Default: the table's subjects, one weight each.

    Returns
    -------
    Measure
        ``per_class`` in the unit of ``ground`` (0 … 1 for all but a given array); the worst class is the largest.

    Raises
    ------
    ColumnError
        If ``attribute`` is not sensitive in this table.
    GroundDistanceError
        If the ground distance does not fit the values.
    ReferenceDistributionError
        If the reference is not a distribution.
    """
    source = histogram if attribute is None else histogram.marginal([attribute])
    distances = class_distances(source.values, source.reference, ground, reference)
    return largest(distances(source.subjects, source.weights))


def class_distances(
    values: pa.Table,
    reference: NDArray[np.float64],
    ground: Ground = "equal",
    public: Mapping[Any, float] | None = None,
) -> Distances:
    """``t_closeness`` made ready for many calls.

    Parameters
    ----------
    values : pyarrow.Table, V rows
        The distinct combinations of one or several sensitive attributes.
    reference : ndarray, shape (V,)
        Their distribution in the table.
    ground : Ground
    public : mapping of value to probability, optional
        A public distribution in place of ``reference``.

    Returns
    -------
    callable
        Of subjects (C,) and weights (C, V) in csr form, to the distance of each class, (C,).

    Raises
    ------
    GroundDistanceError, ReferenceDistributionError
    """
    names, spread, q = _aligned(values, reference, public)
    attributes = list(values.column_names)
    if isinstance(ground, str) and ground == "hamming" and len(attributes) > 1:
        return _by_transport(spread, q, hamming_ground(names))
    if isinstance(ground, str) and ground in ("equal", "hamming"):  # Hamming on one attribute is the equal distance
        return _by_form(spread, q, np.arange(len(names)), equal_distance)
    if isinstance(ground, np.ndarray):
        if len(names) > values.num_rows:
            raise GroundDistanceError(
                "the reference has values that the table has not, so a ground matrix over the table's values does not "
                "cover them; name a ground distance instead"
            )
        return _by_transport(spread, q, _checked_ground(ground, len(names)))
    if len(attributes) != 1:
        raise GroundDistanceError(
            f"this ground distance ranks the values of one attribute and there are {len(attributes)}: "
            f"{attributes}; name one, or use 'hamming'"
        )
    single = [name[0] for name in names]
    if isinstance(ground, Hierarchy):
        nodes = _tree(ground, single)

        def hierarchical(p: NDArray[np.float64], r: NDArray[np.float64]) -> NDArray[np.float64]:
            return hierarchical_distance(p, r, nodes)

        return _by_form(spread, q, np.arange(len(names)), hierarchical)
    if isinstance(ground, Ordered) or ground == "ordered":
        return _by_form(spread, q, _ranks(ground, single), ordered_distance)
    raise GroundDistanceError(
        f"{ground!r} is not a ground distance; use 'equal', 'ordered', 'hamming', a hierarchy or a (V, V) array"
    )


def transport_bounds(
    values: pa.Table,
    reference: NDArray[np.float64],
    ground: Ground,
    public: Mapping[Any, float] | None = None,
) -> Callable[[NDArray[Any], Any], tuple[NDArray[np.float64], NDArray[np.float64]]] | None:
    r"""Between what the distances lie that need a transport problem each; None for those with a closed form.

    The mass that must move is the total variation, each unit by at least the smallest and at most the largest distance
    between two values; and under the Hamming distance every attribute is moved on its own at best:

    .. math::
        d_{\min} \, \mathrm{TV}(p, q) \le D(p, q) \le d_{\max} \, \mathrm{TV}(p, q), \qquad
        \frac{1}{A} \sum_a \mathrm{TV}(p_a, q_a) \le D_{\text{Hamming}}(p, q)

    Parameters
    ----------
    values, reference, ground, public
        As for ``class_distances``.

    Returns
    -------
    callable, optional
        Of subjects (C,) and weights (C, V) in csr form, to the lower and upper bound of each class, (C,) each.
    """
    joint_hamming = isinstance(ground, str) and ground == "hamming" and values.num_columns > 1
    if not joint_hamming and not isinstance(ground, np.ndarray):
        return None
    names, spread, q = _aligned(values, reference, public)
    distance = hamming_ground(names) if joint_hamming else _checked_ground(np.asarray(ground), len(names))
    apart = distance[~np.eye(len(names), dtype=bool)]
    near, far = (float(apart.min()), float(apart.max())) if len(apart) else (0.0, 0.0)
    margins = [np.ones((len(names), 0))]
    if joint_hamming:
        for position in range(values.num_columns):
            code = {value: i for i, value in enumerate(dict.fromkeys(name[position] for name in names))}
            margins.append(np.eye(len(code))[[code[name[position]] for name in names]])
    projection, share = np.hstack(margins), 0.5 / max(values.num_columns, 1)

    def bounds(subjects: NDArray[Any], weights: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        lower, upper = np.empty(len(subjects)), np.empty(len(subjects))
        for rows, p in _dense(weights if spread is None else weights @ spread, subjects):
            variation = equal_distance(p, q)
            single = share * np.abs((p - q) @ projection).sum(axis=1)
            lower[rows], upper[rows] = np.maximum(near * variation, single), far * variation
        return lower, upper

    return bounds


def aligned(
    histogram: Histogram, public: Mapping[Any, float] | None = None
) -> tuple[list[tuple[Any, ...]], Any, NDArray[np.float64]]:
    """The values of table and public distribution together, the (C, V) weights, and the (V,) probabilities.

    Raises
    ------
    GroundDistanceError
        If the table has no sensitive attribute.
    ReferenceDistributionError
        If the public distribution does not fit the values.
    """
    names, spread, q = _aligned(histogram.values, histogram.reference, public)
    return names, histogram.weights if spread is None else histogram.weights @ spread, q


def _aligned(
    table: pa.Table, reference: NDArray[np.float64], public: Mapping[Any, float] | None
) -> tuple[list[tuple[Any, ...]], Any, NDArray[np.float64]]:
    """The values of table and public distribution together, the map of the table's onto them, their probabilities."""
    values = [tuple(row.values()) for row in table.to_pylist()]
    attributes = list(table.column_names)
    if not attributes:
        raise GroundDistanceError("the table has no sensitive attribute, so nothing can be close; name one")
    if public is None:
        return values, None, np.asarray(reference)
    given = {key if isinstance(key, tuple) else (key,): float(share) for key, share in public.items()}
    total = sum(given.values())
    if not given or min(given.values()) < 0 or abs(total - 1.0) > 1e-6:
        raise ReferenceDistributionError(
            f"the reference distribution sums to {total:g} or has a negative share; give probabilities that sum to 1"
        )
    for key in given:
        if len(key) != len(attributes):
            raise ReferenceDistributionError(
                f"the reference names {key!r} where one value for each of {attributes} is expected"
            )
    everything = values + [key for key in given if key not in set(values)]
    try:
        order = sorted(range(len(everything)), key=lambda i: everything[i])
    except TypeError as error:
        raise ReferenceDistributionError(f"the reference's values do not sort with the table's: {error}") from error
    spread = scipy.sparse.csr_array(
        (np.ones(len(values)), (np.arange(len(values)), np.argsort(order)[: len(values)])),
        shape=(len(values), len(everything)),
    )
    ordered = [everything[i] for i in order]
    return ordered, spread, np.array([given.get(value, 0.0) for value in ordered]) / total


def _dense(weights: Any, subjects: NDArray[np.int64]) -> list[tuple[slice, NDArray[np.float64]]]:
    """Blocks of classes with their distributions, so that classes × values is never dense at once."""
    height = max(1, BLOCK_CELLS // max(weights.shape[1], 1))
    return [
        (rows, weights[rows].toarray() / subjects[rows, None])
        for rows in (slice(i, min(i + height, len(subjects))) for i in range(0, len(subjects), height))
    ]


def _by_form(spread: Any, q: NDArray[np.float64], order: NDArray[np.int64], distance: Any) -> Distances:
    """A closed form, in blocks of classes."""

    def distances(subjects: NDArray[Any], weights: Any) -> NDArray[np.float64]:
        found = np.empty(len(subjects))
        for rows, p in _dense(weights if spread is None else weights @ spread, subjects):
            found[rows] = distance(p[:, order], q[order])
        return found

    return distances


def _by_transport(spread: Any, q: NDArray[np.float64], ground: NDArray[np.float64]) -> Distances:
    """POT once per *distinct* distribution: most small classes share a few."""

    def distances(subjects: NDArray[Any], weights: Any) -> NDArray[np.float64]:
        found = np.empty(len(subjects))
        for rows, p in _dense(weights if spread is None else weights @ spread, subjects):
            distinct, slot = np.unique(p, axis=0, return_inverse=True)
            moved = np.array([earth_movers_distance(one, q, ground) for one in distinct])
            found[rows] = moved[slot.reshape(-1)]
        return found

    return distances


def _checked_ground(ground: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    if ground.shape != (size, size) or not np.isfinite(ground).all() or (ground < 0).any():
        raise GroundDistanceError(
            f"the ground matrix has shape {ground.shape} or negative entries; give non-negative distances between the "
            f"{size} values of the table"
        )
    if np.diag(ground).any():
        raise GroundDistanceError("the ground matrix puts a value at a distance from itself; its diagonal must be 0")
    return ground


def _tree(hierarchy: Hierarchy, values: list[Any]) -> NDArray[np.int64]:
    """The node of each value per level, (V, H), checked to be a tree."""
    unknown = [value for value in values if value not in hierarchy.ancestors]
    if unknown:
        raise GroundDistanceError(f"the hierarchy has no line for {unknown[0]!r}; give its ancestors up to the root")
    paths = [tuple(hierarchy.ancestors[value]) for value in values]
    height = len(paths[0])
    if height == 0 or any(len(path) != height for path in paths):
        raise GroundDistanceError("the hierarchy's values have different numbers of ancestors; give each the same, ≥ 1")
    nodes = np.empty((len(values), height), dtype=np.int64)
    for level in range(height):
        code = {node: i for i, node in enumerate(dict.fromkeys(path[level] for path in paths))}
        nodes[:, level] = [code[path[level]] for path in paths]
        if level:
            parents = dict[int, int]()
            for child, parent in zip(nodes[:, level - 1], nodes[:, level], strict=True):
                if parents.setdefault(int(child), int(parent)) != int(parent):
                    raise GroundDistanceError(
                        f"the hierarchy puts a node of level {level} under two of level {level + 1}; make it a tree"
                    )
    if nodes[:, -1].any():
        raise GroundDistanceError("the hierarchy's values do not share one root; end every line with the same node")
    return nodes


def _ranks(ground: Ordered | str, values: list[Any]) -> NDArray[np.int64]:
    """The positions of ``values``, lowest first."""
    if isinstance(ground, str):
        return np.arange(len(values))  # the histogram keeps values in their own order
    rank = {value: i for i, value in enumerate(ground.values)}
    unknown = [value for value in values if value not in rank]
    if unknown or len(rank) < len(ground.values):
        raise GroundDistanceError(
            f"the given order repeats a value or lacks {unknown[:1]}; name every value of the table once"
        )
    return np.argsort([rank[value] for value in values])
