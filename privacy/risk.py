r"""Re-identification risk by the three classical adversaries [1]_ [2]_.

A class holds :math:`k_c` people of the release and :math:`F_c \ge k_c` of the population from which they were drawn.

- The *prosecutor* knows that a person is in the release, and is right with probability :math:`1 / k_c`.
- The *journalist* does not know, matches against the population, and is right with :math:`1 / F_c`.
- The *marketer* links everybody and counts how many are right.

People are counted by default, one weight each, as in the rest of this package; ``rows`` is what table tools count. A
person with several vectors is in several classes and counts in each. The probabilities hold for an adversary who knows
the quasi-identifiers and nothing else: they say nothing of an adversary who recognises the face.

.. [1] K. El Emam, F. K. Dankar, "Protecting privacy using k-anonymity", J. Am. Med. Inform. Assoc. 15(5), 2008.
.. [2] K. El Emam, "Guide to the de-identification of personal health information", CRC Press, 2013, chapter 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facecrowd.privacy.anonymity import Unit, k_anonymity, population_counts
from facecrowd.privacy.classes import Histogram
from facecrowd.privacy.errors import PolicyError

Adversary = Literal["prosecutor", "journalist", "marketer"]

THRESHOLD = 0.2
"""The risk of a class of five, the most common bound in practice [2]_."""


@dataclass(frozen=True, eq=False)
class Risk:
    """What one adversary achieves.

    Attributes
    ----------
    adversary : {"prosecutor", "journalist", "marketer"}
    unit : {"subjects", "rows"}
    average : float
        The expected share of correct matches, in (0, 1].
    maximum : float, optional
        The probability for the people of the worst class; None for the marketer, who has no single target.
    threshold : float, optional
    at_risk : float, optional
        The share of the release's people whose probability exceeds the threshold.
    per_class : ndarray of float64, shape (C,)
        The probability for a person of each class.
    """

    adversary: Adversary
    unit: Unit
    average: float
    maximum: float | None
    threshold: float | None
    at_risk: float | None
    per_class: NDArray[np.float64]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without those per class."""
        return {
            "adversary": self.adversary,
            "unit": self.unit,
            "average": self.average,
            "maximum": self.maximum,
            "threshold": self.threshold,
            "at_risk": self.at_risk,
        }


def prosecutor_risk(released: Histogram, *, threshold: float = THRESHOLD, unit: Unit = "subjects") -> Risk:
    r"""The risk of people who are known to be in the release.

    .. math::
        \text{maximum} = \frac{1}{\min_c k_c}, \qquad
        \text{average} = \frac{1}{n} \sum_c k_c \frac{1}{k_c} = \frac{C}{n}, \qquad
        \text{at risk} = \frac{1}{n} \sum_{c \,:\, 1 / k_c > \tau} k_c

    Parameters
    ----------
    released : Histogram
    threshold : float
        tau, in (0, 1].
    unit : {"subjects", "rows"}

    Raises
    ------
    PolicyError
        If the threshold is no probability.
    """
    size = k_anonymity(released, unit).per_class
    return _targeted("prosecutor", unit, threshold, size, 1.0 / size, float(len(size) / size.sum()))


def journalist_risk(
    released: Histogram,
    population: Histogram | ArrayLike,
    *,
    threshold: float = THRESHOLD,
    unit: Unit = "subjects",
) -> Risk:
    r"""The risk of people of whom it is not known whether they are in the release.

    .. math::
        \text{maximum} = \frac{1}{\min_c F_c}, \qquad
        \text{average} = \max \left( \frac{C}{\sum_c F_c}, \; \frac{1}{n} \sum_c \frac{k_c}{F_c} \right), \qquad
        \text{at risk} = \frac{1}{n} \sum_{c \,:\, 1 / F_c > \tau} k_c

    The average is the larger of matching the population to the release and the release to the population [2]_.

    Parameters
    ----------
    released : Histogram
    population : Histogram or array, shape (C,)
        As for ``k_map``.
    threshold : float
        tau, in (0, 1].
    unit : {"subjects", "rows"}

    Raises
    ------
    PopulationError, ColumnError, LengthError
        As ``k_map``.
    PolicyError
        If the threshold is no probability.
    """
    size, people = k_anonymity(released, unit).per_class, population_counts(released, population, unit)
    average = max(len(size) / people.sum(), (size / people).sum() / size.sum())
    return _targeted("journalist", unit, threshold, size, 1.0 / people, float(average))


def marketer_risk(
    released: Histogram, population: Histogram | ArrayLike | None = None, *, unit: Unit = "subjects"
) -> Risk:
    r"""The expected share of the release that is linked correctly when everybody is.

    .. math:: \frac{1}{n} \sum_c \frac{k_c}{F_c}

    Without a population :math:`F_c = k_c`: the adversary holds a table of just the people released, the worst case.

    Parameters
    ----------
    released : Histogram
    population : Histogram or array, shape (C,), optional
        As for ``k_map``.
    unit : {"subjects", "rows"}

    Raises
    ------
    PopulationError, ColumnError, LengthError
        As ``k_map``.
    """
    size = k_anonymity(released, unit).per_class
    people = size if population is None else population_counts(released, population, unit)
    average = float((size / people).sum() / size.sum())
    return Risk("marketer", unit, average, None, None, None, 1.0 / people)


def _targeted(
    adversary: Adversary,
    unit: Unit,
    threshold: float,
    size: NDArray[Any],
    probability: NDArray[np.float64],
    average: float,
) -> Risk:
    if not 0 < threshold <= 1:
        raise PolicyError(f"the risk threshold is {threshold:g}; it is a probability, above 0 and at most 1")
    # 1 / 5 exceeds 0.2 by no more than rounding
    exceeds = probability > threshold * (1 + 1e-12)
    at_risk = float(size[exceeds].sum() / size.sum())
    return Risk(adversary, unit, average, float(probability.max()), threshold, at_risk, probability)
