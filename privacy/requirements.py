r"""What a policy requires of a single class: the predicate that the verdict and all planners share.

A class is given by its distinct subjects :math:`k_c` and its sensitive weights :math:`w_{c,v}`
(``privacy/classes.py``). ``Requirements`` is prepared once and then asked for many classes at a time.

Where a sensitive attribute has two values, the class rate :math:`x = w_{c,1} / k_c` decides, and every condition is an
interval of it:

.. math::
    |x - q| \, d_{01} \le t, \qquad
    -x \log x - (1 - x) \log (1 - x) \ge \log l, \qquad
    0 < x < 1, \qquad
    \max(x, 1 - x) < \tfrac{c}{1 + c} \; (l = 2)

Rates within ``MARGIN`` of a bound are decided by the measure itself, so the short cut never changes an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse
from numpy.typing import NDArray

from facecrowd.privacy.classes import fold
from facecrowd.privacy.closeness import class_distances, transport_bounds
from facecrowd.privacy.diversity import distinct_values, effective_values, recursive_ratio
from facecrowd.privacy.policy import Closeness, Diversity, Policy

MARGIN = 1e-9
ROUNDING = 1e-12
"""exp(log 2) is 2, and a sum of shares its total, only up to rounding."""

NEVER = (2.0, -1.0, 2.0, -1.0)
"""The interval of a condition that no rate meets."""

PerClass = Callable[[NDArray[Any], Any], NDArray[Any]]
"""(subjects (C,), weights (C, V)) to one number per class."""


@dataclass(frozen=True, eq=False)
class Condition:
    """One requirement on the sensitive values of a class.

    Attributes
    ----------
    name : str
        As in ``Requirement.name``: ``l (entropy) of Attractive``, ``t (hamming)``.
    asked : float
    found : callable
        What is measured, per class: of subjects (C,) and weights (C, S) in csr form.
    holds : callable
        Whether such measures are enough.
    largest_is_worst : bool
    note : str
    bounds : callable, optional
        Of the same as ``found``, quicker: measures surely not above, and surely not below, the class's.
    interval : tuple of float, optional
        Inner low, inner high, outer low, outer high of the rate of the second value, for two values: inside the inner
        the condition holds, outside the outer it fails.
    column : ndarray of float64, shape (S,), optional
        Which sensitive combinations have that second value.
    """

    name: str
    asked: float
    found: PerClass
    holds: Callable[[NDArray[Any]], NDArray[np.bool_]]
    largest_is_worst: bool
    note: str = ""
    bounds: Callable[[NDArray[Any], Any], tuple[NDArray[Any], NDArray[Any]]] | None = None
    interval: tuple[float, float, float, float] | None = None
    column: NDArray[np.float64] | None = None


class Requirements:
    """A policy's k, l and t, ready to be asked of classes.

    Parameters
    ----------
    values : pyarrow.Table, S rows
        The distinct combinations of the sensitive attributes (``Histogram.values``).
    reference : ndarray, shape (S,)
        Their distribution among the released table's subjects (``Histogram.reference``).
    policy : Policy
    public : mapping of value to probability, optional
        The public distribution that t is taken against instead (``t_closeness``).

    Raises
    ------
    ColumnError
        If the policy names a sensitive attribute that ``values`` lacks.
    GroundDistanceError, ReferenceDistributionError
        If the ground distance or the public distribution does not fit the values.
    """

    def __init__(
        self,
        values: pa.Table,
        reference: NDArray[np.float64],
        policy: Policy,
        public: Mapping[Any, float] | None = None,
    ) -> None:
        self.k = policy.k
        conditions = []
        if policy.l is not None:
            conditions += [_diversity(values, policy.l, attribute) for attribute in policy.sensitive]
        if policy.t is not None:
            conditions += _closeness(values, np.asarray(reference), policy.t, policy.sensitive, public)
        self.conditions: tuple[Condition, ...] = tuple(conditions)

    def met(self, subjects: NDArray[Any], weights: Any, *, size: NDArray[Any] | None = None) -> NDArray[np.bool_]:
        """Whether each class meets k, l and t. An empty class meets nothing.

        Parameters
        ----------
        subjects : ndarray, shape (C,)
            Distinct subjects per class.
        weights : ndarray or csr_array, shape (C, S)
            Sensitive values per class, one weight per subject.
        size : ndarray, shape (C,), optional
            What k counts, where that is not the subjects but the rows.

        Returns
        -------
        ndarray of bool, shape (C,)
        """
        size = subjects if size is None else size
        met: NDArray[np.bool_] = (subjects > 0) if self.k is None else (subjects > 0) & (size >= self.k)
        for condition in self.conditions:
            open_classes = np.flatnonzero(met)
            if len(open_classes) == 0:
                break
            everybody = len(open_classes) == len(met)
            part = subjects if everybody else subjects[open_classes]
            met[open_classes] = _met(condition, part, weights if everybody else weights[open_classes])
        return met

    def shortfalls(self, subjects: int, weights: Any, *, size: int | None = None) -> tuple[str, ...]:
        """What one class lacks, a sentence per unmet requirement: what is asked, what is found, what it would meet.

        Of the class of everybody this is what no plan without suppression can reach: k counts subjects, and the
        distributions that meet l and t form convex sets, so classes that meet them still do when united.
        """
        lacks = []
        size = subjects if size is None else size
        if self.k is not None and size < self.k:
            lacks.append(f"k = {self.k} is asked and there are {size}, {self.k - size} too few; k = {size} is reached")
        one = scipy.sparse.csr_array(np.atleast_2d(np.asarray(weights, dtype=np.float64)))
        for condition in self.conditions:
            found = condition.found(np.array([subjects]), one)
            if not condition.holds(found)[0]:
                value, strictly = float(found[0]), "more than " if "recursive" in condition.name else ""
                lacks.append(
                    f"{condition.name} = {condition.asked:g} is asked and all people in one class have {value:.4g}, "
                    f"off by {abs(condition.asked - value):.4g}; {strictly}{value:.4g} is reached"
                )
        return tuple(lacks)


def _met(condition: Condition, subjects: NDArray[Any], weights: Any) -> NDArray[np.bool_]:
    if condition.interval is not None and condition.column is not None:
        low, high, outer_low, outer_high = condition.interval
        rate = (weights @ condition.column) / subjects
        met = np.asarray((rate >= low) & (rate <= high))
        unsure = np.flatnonzero(~met & (rate >= outer_low) & (rate <= outer_high))
    elif condition.bounds is not None:
        lower, upper = condition.bounds(subjects, _sparse(weights))
        met = condition.holds(upper)
        unsure = np.flatnonzero(~met & condition.holds(lower))
    else:
        return condition.holds(condition.found(subjects, _sparse(weights)))
    if len(unsure):
        met[unsure] = condition.holds(condition.found(subjects[unsure], _sparse(weights[unsure])))
    return met


def _sparse(weights: Any) -> Any:
    return weights if scipy.sparse.issparse(weights) else scipy.sparse.csr_array(weights)


def _second(values: pa.Table, attribute: str) -> NDArray[np.float64] | None:
    """The combinations with the larger of an attribute's two values; None where it has not two."""
    projection, single = fold(values, [attribute])
    if single.num_rows != 2:
        return None
    return np.asarray(projection.toarray()[:, 1])


def _diversity(values: pa.Table, asked: Diversity, attribute: str) -> Condition:
    projection, _ = fold(values, [attribute])
    column = _second(values, attribute)
    if asked.kind == "recursive":
        c, least = float(asked.c or 0.0), int(asked.value)
        return Condition(
            f"l (recursive) of {attribute}",
            c,
            lambda subjects, weights: recursive_ratio(weights @ projection, least),
            lambda found: np.asarray(found < c * (1 - ROUNDING)),
            largest_is_worst=True,
            note=f"c must exceed the found ratio, at l = {least}",
            interval=None if column is None else _around(*_recursive_rates(c, least)),
            column=column,
        )
    measure = _distinct(projection) if asked.kind == "distinct" else _entropy(projection)
    rates = _distinct_rates(asked.value) if asked.kind == "distinct" else _entropy_rates(asked.value)
    enough = asked.value * (1 - ROUNDING)
    return Condition(
        f"l ({asked.kind}) of {attribute}",
        asked.value,
        measure,
        lambda found: np.asarray(found >= enough),
        largest_is_worst=False,
        interval=None if column is None else rates,
        column=column,
    )


def _distinct(projection: Any) -> PerClass:
    return lambda subjects, weights: distinct_values(weights @ projection)


def _entropy(projection: Any) -> PerClass:
    return lambda subjects, weights: effective_values(subjects, weights @ projection)


def _distinct_rates(least: float) -> tuple[float, float, float, float]:
    """The rates of two values that have at least this many values."""
    return _around(-1.0, 2.0) if least <= 1 else _around(0.0, 1.0) if least <= 2 else NEVER


def _recursive_rates(c: float, least: int) -> tuple[float, float]:
    """The rates of two values that are recursively (c, l)-diverse."""
    top = c if least == 1 else c / (1 + c) if least == 2 else -1.0  # the larger rate stays under this
    return (1 - top, top)


def _entropy_rates(least: float) -> tuple[float, float, float, float]:
    """The rates of two values that have at least this many effective values."""
    if least <= 1:
        return _around(-1.0, 2.0)
    if least > 2 - MARGIN:  # the entropy is flat there, so rounding is worth its root in the rate
        return (*NEVER[:2], 0.499, 0.501) if least < 2 + MARGIN else NEVER
    low, high = 0.0, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        entropy = -middle * np.log(middle) - (1 - middle) * np.log1p(-middle)
        low, high = (low, middle) if np.exp(entropy) >= least else (middle, high)
    return _around(high, 1 - high)


def _around(low: float, high: float) -> tuple[float, float, float, float]:
    return (low + MARGIN, high - MARGIN, low - MARGIN, high + MARGIN)


def _closeness(
    values: pa.Table,
    reference: NDArray[np.float64],
    asked: Closeness,
    sensitive: tuple[str, ...],
    public: Mapping[Any, float] | None,
) -> list[Condition]:
    ground = asked.ground
    name = ground if isinstance(ground, str) else type(ground).__name__.replace("ndarray", "matrix").lower()
    against = "the released table's subjects" if public is None else "a given public distribution"
    limit = asked.value + ROUNDING
    joint = name in ("hamming", "matrix")

    def condition(attributes: list[str], label: str, note: str) -> Condition:
        projection, folded = fold(values, attributes)
        distance = class_distances(folded, reference @ projection, ground, public)
        bounds = transport_bounds(folded, reference @ projection, ground, public)
        column = _second(values, attributes[0]) if len(attributes) == 1 else None
        return Condition(
            label,
            asked.value,
            lambda subjects, weights: distance(subjects, weights @ projection),
            lambda found: np.asarray(found <= limit),
            largest_is_worst=True,
            note=note,
            bounds=None if bounds is None else lambda subjects, weights: bounds(subjects, weights @ projection),
            interval=None if column is None else _close_rates(distance, asked.value),
            column=column,
        )

    if joint:
        return [condition(list(sensitive), f"t ({name})", f"joint distribution, against {against}")]
    return [condition([a], f"t ({name}) of {a}", f"against {against}") for a in sensitive]


def _close_rates(distance: PerClass, t: float) -> tuple[float, float, float, float] | None:
    """The rates of two values that are at most t from the reference: |x - q| d with q and d read off the distance."""
    ends = distance(np.array([1, 1]), scipy.sparse.csr_array(np.eye(2)))
    width = float(ends.sum())
    if width < MARGIN:
        return None
    rate = float(ends[0]) / width
    at_reference = distance(np.array([1]), scipy.sparse.csr_array([[1 - rate, rate]]))
    # a public distribution with values that the table lacks has no class at distance 0, and no such form
    return _around(rate - t / width, rate + t / width) if at_reference[0] < ROUNDING else None
