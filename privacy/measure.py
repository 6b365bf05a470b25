"""What every measurement of classes returns: the value of each class and the worst of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Measure:
    """One quantity, per class and at its worst.

    Attributes
    ----------
    per_class : ndarray, shape (C,)
        The value of each class, in the order of ``Histogram.classes``.
    worst_class : int
        The class at which the quantity is worst; among equals, the first.
    """

    per_class: NDArray[Any]
    worst_class: int

    @property
    def value(self) -> float:
        """The value at the worst class: what the whole table can claim."""
        return float(self.per_class[self.worst_class])


def smallest(per_class: NDArray[Any]) -> Measure:
    """A measure whose worst class is the one with the smallest value (k, l)."""
    return Measure(per_class, int(np.argmin(per_class)))


def largest(per_class: NDArray[Any]) -> Measure:
    """A measure whose worst class is the one with the largest value (t, c)."""
    return Measure(per_class, int(np.argmax(per_class)))


def figure(value: float) -> float | None:
    """A number as JSON knows it: None for infinity and NaN, so for "without bound" and "no estimate"."""
    return float(value) if np.isfinite(value) else None
