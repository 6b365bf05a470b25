r"""l-diversity: how many sensitive values a class leaves possible [1]_.

:math:`p_{c,v} = w_{c,v} / k_c` is the distribution of the originals' sensitive values in class *c*, one weight per
subject (``privacy/classes.py``). Every function takes the attribute to look at; without one it looks at the joint
distribution of all sensitive attributes, which is never less diverse than any one of them.

.. [1] A. Machanavajjhala, D. Kifer, J. Gehrke, M. Venkitasubramaniam, "l-diversity: privacy beyond k-anonymity",
   ACM TKDD 1(1), 2007.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from facecrowd.privacy.classes import Histogram
from facecrowd.privacy.errors import PolicyError
from facecrowd.privacy.measure import Measure, largest, smallest


def distinct_l(histogram: Histogram, attribute: str | None = None) -> Measure:
    r"""The number of sensitive values in each class.

    .. math:: l_c = |\{v : p_{c,v} > 0\}|

    Returns
    -------
    Measure
        ``per_class`` in values; the worst class is the smallest.

    Raises
    ------
    ColumnError
        If ``attribute`` is not sensitive in this table.
    """
    return smallest(distinct_values(_weights(histogram, attribute)))


def entropy_l(histogram: Histogram, attribute: str | None = None) -> Measure:
    r"""The effective number of sensitive values in each class.

    .. math:: l_c = \exp \left( - \sum_v p_{c,v} \log p_{c,v} \right)

    Returns
    -------
    Measure
        ``per_class`` in values, real; between 1 and the distinct l. The worst class is the smallest.

    Raises
    ------
    ColumnError
        If ``attribute`` is not sensitive in this table.
    """
    return smallest(effective_values(histogram.subjects, _weights(histogram, attribute)))


def recursive_c(histogram: Histogram, l: int, attribute: str | None = None) -> Measure:  # noqa: E741 the field's name
    r"""The c below which recursive (c, l)-diversity fails.

    With the values of a class sorted by weight, :math:`r_1 \ge r_2 \ge \dots \ge r_m`, the class is recursively
    (c, l)-diverse when :math:`r_1 < c \, (r_l + \dots + r_m)`. Returned is

    .. math:: c_c = \frac{r_1}{r_l + \dots + r_m}

    so the requirement holds for every ``c > value``, strictly. A class with fewer than l values has c = ∞.

    Parameters
    ----------
    l : int
        At least 1.

    Returns
    -------
    Measure
        ``per_class`` without unit; the worst class is the largest.

    Raises
    ------
    PolicyError
        If ``l`` is smaller than 1.
    ColumnError
        If ``attribute`` is not sensitive in this table.
    """
    if l < 1:
        raise PolicyError(f"recursive (c, l)-diversity was asked with l = {l}; l counts values and is at least 1")
    return largest(recursive_ratio(_weights(histogram, attribute), l))


def distinct_values(weights: Any) -> NDArray[np.int64]:
    """``distinct_l`` of each class, from its (C, V) weights in csr form."""
    return np.diff(_without_zeros(weights).indptr).astype(np.int64)


def effective_values(subjects: NDArray[Any], weights: Any) -> NDArray[np.float64]:
    """``entropy_l`` of each class, from its (C,) subjects and (C, V) weights in csr form."""
    weights = _without_zeros(weights)
    of_class = np.repeat(np.arange(len(subjects)), np.diff(weights.indptr))
    share = weights.data / subjects[of_class]
    return np.asarray(np.exp(np.bincount(of_class, weights=-share * np.log(share), minlength=len(subjects))))


def recursive_ratio(weights: Any, l: int) -> NDArray[np.float64]:  # noqa: E741 the field's name
    """``recursive_c`` of each class, from its (C, V) weights in csr form."""
    weights = _without_zeros(weights)
    classes = weights.shape[0]
    of_class = np.repeat(np.arange(classes), np.diff(weights.indptr))
    order = np.lexsort((-weights.data, of_class))
    rank = np.arange(len(order)) - np.repeat(weights.indptr[:-1], np.diff(weights.indptr))
    sorted_weights = weights.data[order]
    first = sorted_weights[weights.indptr[:-1]]
    tail = np.bincount(of_class, weights=np.where(rank >= l - 1, sorted_weights, 0.0), minlength=classes)
    with np.errstate(divide="ignore"):
        return np.asarray(first / tail)


def _weights(histogram: Histogram, attribute: str | None) -> Any:
    """The (C, V) weights of one attribute, or of all jointly."""
    return histogram.weights if attribute is None else histogram.marginal([attribute]).weights


def _without_zeros(weights: Any) -> Any:
    """The same weights, values in order and none stored that nobody has."""
    data: NDArray[np.float64] = weights.data
    if not (data > 0).all():
        weights = weights.copy()
        weights.eliminate_zeros()
    if not weights.has_sorted_indices:
        weights = weights.sorted_indices()
    return weights
