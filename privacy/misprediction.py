r"""What wrong predictions do to k, l and t: a table whose binary attributes a classifier predicted, errors and all.

Of attribute *a* let :math:`r_1 = P(\hat x = 1 | x = 1)` be the true-positive rate, :math:`r_0 = P(\hat x = 0 | x = 0)`
the true-negative rate and :math:`J = r_1 + r_0 - 1 > 0`. Errors are taken as independent between people and between
attributes, given the truth, and as frequent in every class. What is observed of a rate q is then
:math:`o = r_1 q + (1 - r_0)(1 - q)`, and turned round [1]_

.. math:: q = \mathrm{clip}\left( \frac{o + r_0 - 1}{J}, 0, 1 \right)

**k.** Classes are formed from what is released, so predictions, right or wrong, do not move k. But who knows the *true*
attributes of a person faces another crowd: the people whose true vector is the same. With the prevalence
:math:`\pi_a` (given, or q of the whole table, one weight per person) a person who shows v has the true value 1 with

.. math::
    P(x = 1 | \hat x = 1) = \frac{r_1 \pi}{r_1 \pi + (1 - r_0)(1 - \pi)}, \qquad
    P(x = 1 | \hat x = 0) = \frac{(1 - r_1) \pi}{(1 - r_1) \pi + r_0 (1 - \pi)}

``true_crowds`` draws everybody's true vector from these, attribute by attribute, and counts the classes anew. What has
a closed form is not drawn: that all of a vector is right, :math:`\prod_a P(x_a = \hat x_a | \hat x_a)`, and the
expected crowd of a person of class c, with :math:`m_a(u, v)` the chance that who shows u and who shows v are alike,

.. math:: E_c = 1 - M_{cc} + \sum_d k_d M_{cd}, \qquad M_{cd} = \prod_a m_a(v_{ca}, v_{da})

A generalised value stays as it is: everybody is drawn among the values that their class shows.

**l and t.** An adversary still sees the released classes, so it is only a class's rate of a *sensitive* attribute that
was observed with errors. ``corrected`` puts q in its place, in the classes and in the reference (a public one stays),
and asks the policy again; t under the equal distance becomes :math:`|q_c - q|`. A joint distribution is corrected by
the inverse confusion matrices of its attributes; shares below 0 become 0 and the rest is scaled to 1. Of the
:math:`k_c` people of a class, of whom o are predicted positive, m truly are; the 95 % interval holds every m with

.. math:: |o - m r_1 - (k_c - m)(1 - r_0)| - \tfrac12 \le 1.96 \sqrt{m r_1 (1 - r_1) + (k_c - m) r_0 (1 - r_0)}

(a score interval; the class is all there is, so with exact rates it is o alone). It is of each class by itself; the
rates and the reference are taken as known.

.. [1] W. J. Rogan, B. Gladen, "Estimating prevalence from the results of a screening test", Am. J. Epidemiology 107(1),
   1978.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from facecrowd.privacy.attributes import ANY
from facecrowd.privacy.classes import Histogram, equivalence_classes
from facecrowd.privacy.errors import ColumnError, PolicyError
from facecrowd.privacy.measure import figure
from facecrowd.privacy.policy import Policy
from facecrowd.privacy.requirements import Condition, Requirements

Z95 = 1.959963984540054

KNOWN = ((False, True), (0, 1), (-1, 1), (0.0, 1.0), ("False", "True"), ("false", "true"), ("0", "1"), ("-1", "1"))
"""Negative and positive value where a table has only one of them; of two values the larger is the positive one."""

NOTHING = 1e-12
"""A corrected share under this is rounding."""

CODE_BITS = 63

PAIRS = 400_000_000
"""Pairs of classes up to which the expected crowd is computed; above, it is the mean of the draws."""

DRAWN = 200_000_000
"""Attributes × people × draws that ``draws_for`` stays under, as far as 20 draws allow."""


class ConfusionError(PolicyError):
    """Confusion rates are no rates, no better than chance, or contradict the table."""


@dataclass(frozen=True)
class Rates:
    """How often a predictor is right about one attribute.

    Attributes
    ----------
    tpr, tnr : float
        True-positive and true-negative rate, in [0, 1], together above 1.
    prevalence : float, optional
        The true share of positives among people. Default: estimated from the table.

    Raises
    ------
    ConfusionError
    """

    tpr: float
    tnr: float
    prevalence: float | None = None

    def __post_init__(self) -> None:
        for name in ("tpr", "tnr", "prevalence"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfusionError(f"{name} is {value:g}; it is a share, from 0 to 1")
        if self.tpr + self.tnr <= 1:
            raise ConfusionError(
                f"tpr {self.tpr:g} and tnr {self.tnr:g} add up to no more than 1, so the predictor is no better than "
                "chance and nothing can be corrected; leave the attribute out of the table"
            )


@dataclass(frozen=True)
class Posterior:
    """What a released value of one quasi-identifier says of the true one.

    Attributes
    ----------
    attribute : str
    observed : float
        The share of people who show the positive value, among those who show a value.
    prevalence : float
        The true share, given or corrected.
    negative, positive : float
        P(true = 1) of people who show 0, and 1.
    """

    attribute: str
    observed: float
    prevalence: float
    negative: float
    positive: float


@dataclass(frozen=True)
class Spread:
    """A quantity over the draws: its mean and its quantiles at 2.5, 50 and 97.5 %."""

    mean: float
    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: ArrayLike) -> Spread:
        drawn = np.asarray(values, dtype=np.float64)
        return cls(float(drawn.mean()), *(float(q) for q in np.quantile(drawn, (0.025, 0.5, 0.975))))


@dataclass(frozen=True)
class Crowds:
    """k of the true attributes beside that of the released ones.

    Attributes
    ----------
    k : int
        What ``below`` is held against.
    people : int
        Everybody in every class that they are in.
    draws : int
    right : float
        The expected share of people whose released vector is right in every value.
    smallest_released : int
    smallest : Spread
        The smallest class, as released and by true attributes.
    below_released : float
    below : Spread
        The share of people in classes under k.
    mean_released, mean : float
        The class size of a person, on average over people.
    closed_form : bool
        Whether ``mean`` is the exact expectation, or that of the draws.
    """

    k: int
    people: int
    draws: int
    right: float
    smallest_released: int
    smallest: Spread
    below_released: float
    below: Spread
    mean_released: float
    mean: float
    closed_form: bool


@dataclass(frozen=True)
class Corrected:
    """One requirement on sensitive values, with the predicted and with the corrected distributions.

    Attributes
    ----------
    name : str
        As in ``Requirement.name``.
    asked : float
    found, corrected : float
        The measure at the worst class.
    interval : (float, float), optional
        Of ``corrected``; None for a joint distribution.
    met, met_corrected : bool
    classes : int
    fail, fail_corrected : int
        Classes that do not meet it.
    changed : int
        Classes of which one of the two says met and the other not.
    changed_interval : (int, int), optional
        Classes whose verdict changes wherever in its interval the truth lies, and those where it may.
    """

    name: str
    asked: float
    found: float
    corrected: float
    interval: tuple[float, float] | None
    met: bool
    met_corrected: bool
    classes: int
    fail: int
    fail_corrected: int
    changed: int
    changed_interval: tuple[int, int] | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values; None stands for infinity and for what has no interval."""
        return {
            **asdict(self),
            "found": figure(self.found),
            "corrected": figure(self.corrected),
            "interval": self.interval and [figure(end) for end in self.interval],
            "changed_interval": self.changed_interval and list(self.changed_interval),
        }

    def __str__(self) -> str:
        span = f" ({self.interval[0]:.4g} to {self.interval[1]:.4g})" if self.interval else ""
        may = f" ({self.changed_interval[0]:,} to {self.changed_interval[1]:,})" if self.changed_interval else ""
        return (
            f"{self.name}: asked {self.asked:.4g}, found {self.found:.4g}, corrected {self.corrected:.4g}{span}: "
            f"{'met' if self.met_corrected else 'NOT MET'}; the verdict changes for {self.changed:,}{may} of "
            f"{self.classes:,} classes, and {self.fail_corrected:,} fail instead of {self.fail:,}"
        )


@dataclass(frozen=True)
class Misprediction:
    """How wrong predictions move k, l and t.

    Attributes
    ----------
    predictor : str
    exact : tuple of str
        Attributes without rates, taken as true.
    posteriors : tuple of Posterior
        Of the quasi-identifiers with rates.
    crowds : Crowds, optional
        None where no quasi-identifier has rates.
    requirements : tuple of Corrected
        Of the policy's l and t, on sensitive attributes with rates.
    """

    predictor: str
    exact: tuple[str, ...]
    posteriors: tuple[Posterior, ...]
    crowds: Crowds | None
    requirements: tuple[Corrected, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {
            "predictor": self.predictor,
            "exact": list(self.exact),
            "posteriors": [asdict(posterior) for posterior in self.posteriors],
            "crowds": self.crowds and asdict(self.crowds),
            "requirements": [requirement.as_dict() for requirement in self.requirements],
        }

    def lines(self) -> list[str]:
        """As a person reads it."""
        by = f" by {self.predictor}" if self.predictor else ""
        kept = f"; taken as exact: {', '.join(self.exact)}" if self.exact else ""
        lines = [
            f"were the attributes predicted{by} with these error rates (the verdict is of the table as it is{kept}):"
        ]
        if (found := self.crowds) is not None:
            low, high, below = found.smallest.low, found.smallest.high, found.below
            drawn = "" if found.closed_form else ", by the draws"
            lines += [
                f"  {found.right:.1%} of people show only values that are true",
                f"  smallest crowd with the same true values: {found.smallest.mean:.3g} ({low:.0f} to {high:.0f}), "
                f"as released {found.smallest_released:,}",
                f"  people in such crowds under {found.k}: {below.mean:.1%} ({below.low:.1%} to {below.high:.1%}), "
                f"as released {found.below_released:.1%}",
                f"  a person's crowd, on average: {found.mean:,.1f}, as released {found.mean_released:,.1f} "
                f"({found.draws} draws{drawn})",
            ]
        return lines + [f"  {requirement}" for requirement in self.requirements]


def misprediction(
    released: Histogram,
    policy: Policy,
    rates: Mapping[str, Rates],
    rng: np.random.Generator,
    *,
    predictor: str = "",
    draws: int | None = None,
    public: Mapping[Any, float] | None = None,
) -> Misprediction:
    """How wrong predictions move the k, l and t of a table.

    Parameters
    ----------
    released : Histogram
        As for ``verdict.judge``.
    policy : Policy
        Without k, crowds are held against 2.
    rates : mapping of attribute to Rates
        Attributes without are exact; those without a role here are passed over.
    rng : numpy.random.Generator
    predictor : str
        Its name, to be repeated.
    draws : int, optional
        Of everybody's true vector. Default: ``draws_for``.
    public : mapping, optional
        The public distribution for t.

    Raises
    ------
    ConfusionError
        If no attribute of the table has rates, or a given prevalence makes a value impossible that the table has.
    ColumnError
        If an attribute with rates has more than two values.
    """
    shown = [name for name in released.classes.column_names if name in rates]
    hidden = [name for name in released.sensitive if name in rates]
    if not shown and not hidden:
        raise ConfusionError(
            f"no attribute of this table has error rates (there are {', '.join(rates) or 'none'}); name its columns"
        )
    posteriors: tuple[Posterior, ...] = ()
    crowds = None
    if shown:
        posteriors, crowds = true_crowds(released, rates, rng, k=policy.k or 2, draws=draws)
    exact = [name for name in (*released.classes.column_names, *released.sensitive) if name not in rates]
    return Misprediction(predictor, tuple(exact), posteriors, crowds, corrected(released, policy, rates, public))


def rogan_gladen(observed: ArrayLike, rates: Rates) -> NDArray[np.float64]:
    """The true rate behind an observed one, clipped to [0, 1]; shapes (...) → (...)."""
    apparent = np.asarray(observed, dtype=np.float64)
    return np.asarray(np.clip((apparent + rates.tnr - 1) / (rates.tpr + rates.tnr - 1), 0, 1))


def posterior(observed: float, rates: Rates, attribute: str = "") -> Posterior:
    """P(true = 1) given each predicted value, in a table where this share is predicted positive.

    Raises
    ------
    ConfusionError
        If the prevalence makes a predicted value impossible that occurs.
    """
    prior = float(rogan_gladen(observed, rates)) if rates.prevalence is None else rates.prevalence
    chance = []
    for value, occurs, hit, miss in (
        (0, observed < 1, 1 - rates.tpr, rates.tnr),
        (1, observed > 0, rates.tpr, 1 - rates.tnr),
    ):
        seen = hit * prior + miss * (1 - prior)
        if seen == 0 and occurs:
            raise ConfusionError(
                f"{attribute!r} is {value} in the table, which a prevalence of {prior:g} with tpr {rates.tpr:g} and "
                f"tnr {rates.tnr:g} makes impossible; correct the rates"
            )
        chance.append(hit * prior / seen if seen > 0 else float(value))
    return Posterior(attribute, observed, prior, *chance)


def draws_for(people: int, attributes: int) -> int:
    """How often to draw: 200 times, fewer (but 20) in large tables."""
    return int(np.clip(DRAWN // max(people * attributes, 1), 20, 200))


def true_crowds(
    released: Histogram,
    rates: Mapping[str, Rates],
    rng: np.random.Generator,
    *,
    k: int,
    draws: int | None = None,
) -> tuple[tuple[Posterior, ...], Crowds]:
    """The classes that people would form by their true attributes.

    Parameters
    ----------
    released : Histogram
        With at least one column that has rates.
    rates : mapping of attribute to Rates
    rng : numpy.random.Generator
    k : int
    draws : int, optional

    Raises
    ------
    ConfusionError, ColumnError
    """
    size = released.subjects
    names, values, base = _bits(released.classes, rates)
    posteriors = [
        posterior(float(size[bit == 1].sum() / size[bit >= 0].sum()), rates[name], name)
        for name, bit in zip(names, values.T, strict=True)
    ]
    people = int(size.sum())
    draws = draws_for(people, values.shape[1]) if draws is None else draws

    # a generalised value, -1, is the last of the three
    chance = [np.array([p.negative, p.positive, 0.0])[bit] for p, bit in zip(posteriors, values.T, strict=True)]
    right = np.ones(len(size))
    for p, bit in zip(chance, values.T, strict=True):
        right *= np.where(bit == 1, p, 1 - p)
    smallest, below, mean = np.empty(draws, np.int64), np.empty(draws), np.empty(draws)
    everybody = np.repeat(base, size)
    each = [np.repeat(row.astype(np.float32), size) for row in chance]
    for draw in range(draws):
        crowd = _crowds(everybody, each, rng)
        smallest[draw], below[draw] = crowd.min(), crowd[crowd < k].sum() / people
        mean[draw] = (crowd.astype(np.float64) ** 2).sum() / people
    expected = expected_crowd(size, values, base, posteriors)
    average = float(mean.mean()) if expected is None else float(size @ expected) / people
    return tuple(posteriors), Crowds(
        k=k,
        people=people,
        draws=draws,
        right=float(size @ right) / people,
        smallest_released=int(size.min()),
        smallest=Spread.of(smallest),
        below_released=float(size[size < k].sum()) / people,
        below=Spread.of(below),
        mean_released=float((size.astype(np.float64) ** 2).sum()) / people,
        mean=average,
        closed_form=expected is not None,
    )


def expected_crowd(
    size: NDArray[np.int64],
    values: NDArray[np.int8],
    base: NDArray[np.int64],
    posteriors: Sequence[Posterior],
) -> NDArray[np.float64] | None:
    r"""The people with the same true vector as a person of each class, that person included, in expectation.

    The logarithm of :math:`m_a(u, v)` is bilinear in u and v, so all pairs of classes are one matrix product.

    Parameters
    ----------
    size : ndarray of int64, shape (C,)
        People per class.
    values : ndarray of int8, shape (C, A)
        0, 1, or -1 where a class shows no value.
    base : ndarray of int64, shape (C,)
        Classes with the same number agree in all that has no rates, and in which values they show.
    posteriors : sequence of A Posterior

    Returns
    -------
    ndarray of float64, shape (C,), optional
        None where there are more than ``PAIRS`` pairs of classes.
    """
    order = np.argsort(base, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(base[order])) + 1)
    if sum(len(group) ** 2 for group in groups) > PAIRS:
        return None
    p = np.array([[q.negative, q.positive] for q in posteriors]).reshape(-1, 2)
    same = p[:, :, None] * p[:, None, :] + (1 - p)[:, :, None] * (1 - p)[:, None, :]
    m = np.log(np.maximum(same, 1e-300))  # (A, 2, 2); only exact attributes have zeros, which then stay zeros
    found = np.empty(len(size))
    for group in groups:
        known = values[group[0]] >= 0
        v, part = values[group][:, known].astype(np.float64), m[known]
        alone = part[:, 0, 0].sum() + v @ (part[:, 1, 0] - part[:, 0, 0])
        both = part[:, 1, 1] - part[:, 1, 0] - part[:, 0, 1] + part[:, 0, 0]
        other = v @ (part[:, 0, 1] - part[:, 0, 0])
        itself = np.exp(alone + other + (v * both * v).sum(axis=1))
        step = max(4_000_000 // len(group), 1)
        for start in range(0, len(group), step):
            rows = slice(start, start + step)
            pairs = np.exp(alone[rows, None] + other + (v[rows] * both) @ v.T)
            found[group[rows]] = 1 - itself[rows] + pairs @ size[group]
    return found


def corrected(
    released: Histogram,
    policy: Policy,
    rates: Mapping[str, Rates],
    public: Mapping[Any, float] | None = None,
) -> tuple[Corrected, ...]:
    """The policy's l and t, with the sensitive values corrected for their prediction.

    Parameters
    ----------
    released : Histogram
    policy : Policy
    rates : mapping of attribute to Rates
    public : mapping, optional
        The public distribution for t.

    Raises
    ------
    ColumnError, GroundDistanceError, ReferenceDistributionError
    """
    hidden = [name for name in policy.sensitive if name in rates]
    joint = policy.t is not None and (isinstance(policy.t.ground, np.ndarray) or policy.t.ground == "hamming")
    asked = []
    if policy.l is not None:
        asked += [replace(policy, sensitive=(name,), t=None) for name in hidden]
    if policy.t is not None:
        asked += [
            replace(policy, sensitive=s, l=None) for s in ([policy.sensitive] if joint else [(n,) for n in hidden])
        ]
    if not hidden:
        return ()
    return tuple(_held(released.marginal(one.sensitive), one, rates, public) for one in asked)


def true_positives(observed: ArrayLike, people: ArrayLike, rates: Rates) -> tuple[NDArray[Any], NDArray[Any]]:
    """The 95 % interval of how many of a class truly have an attribute (the module's last formula).

    Parameters
    ----------
    observed : array, shape (C,)
        Predicted positives; people with several photos may count in part.
    people : array, shape (C,)
    rates : Rates

    Returns
    -------
    low, high : ndarray of float64, shape (C,)
        Whole numbers in [0, people] (with exact rates: ``observed``), around the corrected number.
    """
    o, n = np.asarray(observed, dtype=np.float64), np.asarray(people, dtype=np.float64)
    if rates.tpr == rates.tnr == 1:
        return o, o
    false, j = 1 - rates.tnr, rates.tpr + rates.tnr - 1
    v0, v1 = n * false * rates.tnr, rates.tpr * (1 - rates.tpr) - false * rates.tnr
    ends = []
    for sign in (-1, 1):
        d = o + sign / 2 - n * false
        middle = 2 * d * j + Z95**2 * v1
        width = Z95 * np.sqrt(np.maximum(4 * j * d * v1 + Z95**2 * v1**2 + 4 * j**2 * v0, 0))
        ends.append((middle + sign * width) / (2 * j**2))
    point = rogan_gladen(o / n, rates) * n
    low = np.clip(np.ceil(ends[0] - 1e-9), 0, np.floor(point))
    high = np.clip(np.floor(ends[1] + 1e-9), np.ceil(point), n)
    return low, high


def _held(
    source: Histogram, asked: Policy, rates: Mapping[str, Rates], public: Mapping[Any, float] | None
) -> Corrected:
    """One requirement with the predicted and the corrected distributions."""
    (before,) = Requirements(source.values, source.reference, asked, public).conditions
    values, spread = _inverse(source.values, rates)
    reference = _distribution(np.atleast_2d(source.reference @ spread))[0]
    (after,) = Requirements(values, reference, asked, public).conditions
    size = source.subjects
    share = _distribution((source.weights @ spread) / size[:, None])
    then = before.found(size, source.weights)
    now = _found(after, size, share)
    met, met_now = before.holds(then), after.holds(now)
    worst = np.max if before.largest_is_worst else np.min
    interval, between = None, None
    if values.num_columns == 1:
        (name,) = values.column_names
        low, high = true_positives(source.weights @ _signs(source.values[name], name), size, rates[name])
        # what meets l or t is an interval of rates around this one
        centre = 0.5 if asked.t is None else _reference_rate(values, reference, public)
        at_low, at_high, at_best = (
            _found(after, size, np.stack([1 - q, q], axis=1))
            for q in (low / size, high / size, np.clip(centre, low / size, high / size))
        )
        always, ever = after.holds(at_low) & after.holds(at_high), after.holds(at_best)
        ends = sorted((float(worst(at_best)), float(worst([worst(at_low), worst(at_high)]))))
        interval = (ends[0], ends[1])
        between = (int(np.where(met, ~ever, always).sum()), int(np.where(met, ~always, ever).sum()))
    return Corrected(
        name=before.name,
        asked=before.asked,
        found=float(worst(then)),
        corrected=float(worst(now)),
        interval=interval,
        met=bool(met.all()),
        met_corrected=bool(met_now.all()),
        classes=len(size),
        fail=int((~met).sum()),
        fail_corrected=int((~met_now).sum()),
        changed=int((met != met_now).sum()),
        changed_interval=between,
    )


def _found(condition: Condition, size: NDArray[np.int64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """The measure of classes with these distributions, (C, V)."""
    return np.asarray(condition.found(size, scipy.sparse.csr_array(share * size[:, None])), dtype=np.float64)


def _distribution(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares that a correction may have driven below 0, as distributions; rows of (…, V)."""
    kept = np.where(shares < NOTHING, 0.0, shares)
    return np.asarray(kept / kept.sum(axis=-1, keepdims=True))


def _reference_rate(values: pa.Table, reference: NDArray[np.float64], public: Mapping[Any, float] | None) -> float:
    """The rate of the positive value that is closest to what t is taken against."""
    if public is None:
        return float(reference[1])
    negative, positive = (float(public.get(value, 0.0)) for value in values.column(0).to_pylist())
    return positive / (negative + positive) if negative + positive else 0.5


def _pair(column: pa.ChunkedArray, name: str) -> tuple[Any, Any]:
    """The negative and the positive value of a column with error rates; ``ANY`` is none."""
    found = sorted({value for value in pc.unique(column).to_pylist() if value != ANY})
    if len(found) == 1:
        pairs = [pair for pair in KNOWN if any(type(v) is type(found[0]) and v == found[0] for v in pair)]
        if not pairs:
            raise ColumnError(
                f"{name!r} is {found[0]!r} everywhere, and error rates need to know which value it is not"
            )
        return pairs[0]
    if len(found) > 2:
        shown = ", ".join(repr(value) for value in found[:4])
        raise ColumnError(f"{name!r} has error rates and {len(found)} values ({shown}, …); only two can be corrected")
    return found[0], found[1]


def _signs(column: pa.ChunkedArray, name: str) -> NDArray[np.int8]:
    """1 where a column has its positive value, 0 where its negative one, -1 where it shows none."""
    distinct = pc.unique(column)
    if distinct.to_pylist() == [ANY]:
        return np.full(len(column), -1, np.int8)
    _, positive = _pair(column, name)
    sign = np.array([-1 if v == ANY else int(v == positive) for v in distinct.to_pylist()], np.int8)
    return np.asarray(sign[np.asarray(pc.index_in(column, distinct))])


def _bits(classes: pa.Table, rates: Mapping[str, Rates]) -> tuple[list[str], NDArray[np.int8], NDArray[np.int64]]:
    """The columns with rates that show something, their values (C, A), and in which of them, and in everything that has
    no rates, classes agree (C,).
    """
    signs = {name: _signs(classes[name], name) for name in classes.column_names if name in rates}
    names = [name for name, sign in signs.items() if (sign >= 0).any()]
    rest = {name: pa.array(signs[name] >= 0) if name in signs else classes[name] for name in classes.column_names}
    values = np.stack([signs[name] for name in names], axis=1) if names else np.empty((len(classes), 0), np.int8)
    return names, values, equivalence_classes(rest).ids


def _crowds(
    base: NDArray[np.int64], chance: Sequence[NDArray[np.float32]], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Sizes of the classes of one draw of everybody's true vector: base (N,), chance A times (N,)."""
    code, used = base, int(base.max()).bit_length()
    for p in chance:
        if used == CODE_BITS:
            _, code = np.unique(code, return_inverse=True)
            used = int(code.max()).bit_length()
        code, used = code * 2 + (rng.random(len(p), dtype=np.float32) < p), used + 1
    return np.asarray(np.unique(code, return_counts=True)[1])


def _inverse(values: pa.Table, rates: Mapping[str, Rates]) -> tuple[pa.Table, NDArray[np.float64]]:
    """The combinations that may be true where these were predicted; what each predicted one adds to them, (V, W)."""
    names = values.column_names
    pairs = {a: _pair(values[name], name) for a, name in enumerate(names) if name in rates}

    def other(row: tuple[Any, ...], a: int) -> tuple[Any, ...]:
        negative, positive = pairs[a]
        return (*row[:a], negative if row[a] == positive else positive, *row[a + 1 :])

    given = [tuple(row.values()) for row in values.to_pylist()]
    rows = set(given)
    for a in pairs:
        rows |= {other(row, a) for row in rows}
    order = {row: place for place, row in enumerate(sorted(rows))}
    spread = np.eye(len(order))[[order[row] for row in given]]
    for a, (_, positive) in pairs.items():
        r = rates[names[a]]
        inverse = np.zeros((len(order), len(order)))
        for row, place in order.items():
            right = r.tnr if row[a] == positive else r.tpr
            inverse[place, place] = right
            inverse[place, order[other(row, a)]] = r.tpr + r.tnr - 1 - right
        spread = spread @ (inverse / (r.tpr + r.tnr - 1))
    columns = [pa.array([row[a] for row in order], values.schema.field(a).type) for a in range(len(names))]
    return pa.table(columns, names=names), spread
