"""k-anonymity: how many people a class hides its members among [1]_.

.. [1] L. Sweeney, "k-anonymity: a model for protecting privacy", Int. J. Uncertainty, Fuzziness and Knowledge-Based
   Systems 10(5), 2002.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from facecrowd.privacy.classes import Histogram
from facecrowd.privacy.measure import Measure, smallest

Unit = Literal["subjects", "rows"]


@dataclass(frozen=True, eq=False)
class ClassSizes:
    """How class sizes are distributed.

    Attributes
    ----------
    size : ndarray of int64, shape (U,)
        The sizes that occur, ascending.
    classes, rows : ndarray of int64, shape (U,)
        Classes, and faces in classes, of each size.
    """

    size: NDArray[np.int64]
    classes: NDArray[np.int64]
    rows: NDArray[np.int64]

    @property
    def minimum(self) -> int:
        """The smallest class."""
        return int(self.size[0])

    @property
    def maximum(self) -> int:
        """The largest class."""
        return int(self.size[-1])

    @property
    def mean(self) -> float:
        """The mean size over classes."""
        return float((self.size * self.classes).sum() / self.classes.sum())

    @property
    def median(self) -> int:
        """The (lower) median size over classes."""
        cumulative = np.cumsum(self.classes)
        return int(self.size[np.searchsorted(cumulative, (cumulative[-1] + 1) // 2)])

    def rows_below(self, k: int) -> int:
        """Faces in classes smaller than ``k``: what suppression to ``k`` would cost."""
        return int(self.rows[self.size < k].sum())


def k_anonymity(histogram: Histogram, unit: Unit = "subjects") -> Measure:
    r"""The size of each class and of the smallest.

    .. math:: k = \min_c k_c, \qquad k_c = |\{s : n_{c,s} > 0\}|

    Parameters
    ----------
    histogram : Histogram
    unit : {"subjects", "rows"}
        What is counted. ``rows`` is what table tools do, :math:`\sum_s n_{c,s}`, and is here for comparison: ten photos
        of one person are no crowd.

    Returns
    -------
    Measure
        ``per_class`` in subjects (or rows); the worst class is the smallest.
    """
    return smallest(histogram.subjects if unit == "subjects" else histogram.rows)


def effective_k(histogram: Histogram) -> Measure:
    r"""One over the largest share of a class's faces that belongs to one subject.

    .. math:: k^{\text{eff}}_c = \left( \max_s \frac{n_{c,s}}{n_{c,\cdot}} \right)^{-1} \le k_c

    An adversary who names the most-photographed subject of the class for every face is right this often; it equals
    :math:`k_c` exactly when all its subjects have equally many faces.

    Returns
    -------
    Measure
        ``per_class`` in subjects, real-valued; the worst class is the smallest.
    """
    return smallest(1.0 / histogram.largest_share)


def class_sizes(histogram: Histogram, unit: Unit = "subjects") -> ClassSizes:
    """The distribution of class sizes, in subjects (or rows)."""
    per_class = k_anonymity(histogram, unit).per_class
    size, slot, classes = np.unique(per_class, return_inverse=True, return_counts=True)
    rows: NDArray[Any] = np.bincount(slot, weights=histogram.rows)
    return ClassSizes(size.astype(np.int64), classes.astype(np.int64), rows.astype(np.int64))
