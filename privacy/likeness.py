r"""delta-disclosure and beta-likeness: how much more, or less, likely a class makes a sensitive value [1]_ [2]_.

:math:`p_{c,v} = w_{c,v} / k_c` is the distribution of the originals' sensitive values in class *c*, one weight per
subject (``privacy/classes.py``), and :math:`q_v` a reference: the released table's subjects, or a public distribution.
t-closeness bounds a distance and so lets a rare value become many times likelier; these two bound the ratio.

.. [1] J. Brickell, V. Shmatikov, "The cost of privacy: destruction of data-mining utility in anonymized data
   publishing", KDD 2008.
.. [2] J. Cao, P. Karras, "Publishing microdata with a robust privacy guarantee", PVLDB 5(11), 2012.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facecrowd.privacy.classes import Histogram
from facecrowd.privacy.closeness import aligned
from facecrowd.privacy.measure import Measure, largest


def delta_disclosure(
    histogram: Histogram,
    attribute: str | None = None,
    *,
    reference: Mapping[Any, float] | None = None,
    absent: bool = True,
) -> Measure:
    r"""The largest change, either way, of the probability of a sensitive value.

    .. math:: \delta_c = \max_{v : q_v > 0} \left| \ln \frac{p_{c,v}}{q_v} \right|

    The table is delta-disclosure-private for every delta *above* the value, strictly. A class without a value that the
    reference has tells that its people do not have it, :math:`\ln 0`, so its delta is infinite.

    Parameters
    ----------
    histogram : Histogram
    attribute : str, optional
        One sensitive attribute; without it their joint distribution.
    reference : mapping of value to probability, optional
        As for ``t_closeness``. Default: the table's subjects, one weight each.
    absent : bool
        False leaves out the values that a class does not have. That is no guarantee of the model, and is here for
        comparison with tools that do so.

    Returns
    -------
    Measure
        ``per_class`` in nats (divide by ln 2 for bits); the worst class is the largest.

    Raises
    ------
    ColumnError
        If ``attribute`` is not sensitive in this table.
    GroundDistanceError
        If the table has no sensitive attribute.
    ReferenceDistributionError
        If the reference is not a distribution.
    """
    weights, q = _shares(histogram, attribute, reference)
    change = np.abs(_log_ratio(weights, q))
    delta = np.maximum.reduceat(change, weights.indptr[:-1])
    if absent:
        present = np.add.reduceat((q[weights.indices] > 0).astype(np.int64), weights.indptr[:-1])
        delta = np.where(present < np.count_nonzero(q), np.inf, delta)
    return largest(delta)


def beta_likeness(
    histogram: Histogram,
    attribute: str | None = None,
    *,
    enhanced: bool = False,
    reference: Mapping[Any, float] | None = None,
) -> Measure:
    r"""The largest relative gain of the probability of a sensitive value.

    Basic and enhanced likeness ask, of every value that a class makes likelier,

    .. math::
        \frac{p_{c,v} - q_v}{q_v} \le \beta \quad \text{(basic)}, \qquad
        \frac{p_{c,v} - q_v}{q_v} \le \min(\beta, -\ln q_v) \quad \text{(enhanced)}

    so the smallest beta that a class satisfies is

    .. math::
        \beta_c = \max_v \left( \frac{p_{c,v}}{q_v} - 1 \right)^+

    and, for the enhanced kind, infinite where a gain exceeds :math:`-\ln q_v`: no beta allows that. The enhanced kind
    keeps :math:`p_{c,v} \le (1 - \ln q_v) \, q_v < 1`, so that no class makes a value certain.

    Parameters
    ----------
    histogram : Histogram
    attribute : str, optional
        One sensitive attribute; without it their joint distribution.
    enhanced : bool
    reference : mapping of value to probability, optional
        As for ``t_closeness``. Default: the table's subjects, one weight each.

    Returns
    -------
    Measure
        ``per_class`` without unit (1: twice as likely); the worst class is the largest.

    Raises
    ------
    ColumnError
        If ``attribute`` is not sensitive in this table.
    GroundDistanceError
        If the table has no sensitive attribute.
    ReferenceDistributionError
        If the reference is not a distribution.
    """
    weights, q = _shares(histogram, attribute, reference)
    log_ratio = _log_ratio(weights, q)
    gain = np.where(log_ratio > 0, np.expm1(log_ratio), 0.0)
    if enhanced:
        with np.errstate(divide="ignore"):
            limit = -np.log(q[weights.indices])
        # a value that everybody has gains nothing and is allowed nothing: equal up to rounding
        gain = np.where(gain > limit + ROUNDING, np.inf, gain)
    return largest(np.maximum.reduceat(gain, weights.indptr[:-1]))


ROUNDING = 1e-12


def _shares(
    histogram: Histogram, attribute: str | None, reference: Mapping[Any, float] | None
) -> tuple[Any, NDArray[np.float64]]:
    """The classes' distributions, (C, V) sparse without stored zeros, and the reference's, (V,)."""
    source = histogram if attribute is None else histogram.marginal([attribute])
    _, weights, q = aligned(source, reference)
    shares = weights.copy()
    shares.eliminate_zeros()
    shares.data = shares.data / np.repeat(source.subjects, np.diff(shares.indptr))
    return shares, q


def _log_ratio(shares: Any, q: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln(p / q) of every value that a class has; infinite where the reference lacks it."""
    with np.errstate(divide="ignore"):
        ratio = np.log(shares.data / q[shares.indices])
    # equal shares differ in their last bit, by the order in which they were added up
    return np.where(np.abs(ratio) < ROUNDING, 0.0, ratio)
