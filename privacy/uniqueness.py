r"""Uniqueness: how many are alone in their class, in the table and, by estimate, in the population it was drawn from.

A table of *n* is drawn from a population of *N*, :math:`\pi = n / N`. With :math:`f_i` classes of size *i* in the table
and :math:`F_i` in the population, sample uniqueness is :math:`f_1 / n`, and what an adversary can exploit who does not
know who was drawn are the population uniques, :math:`F_1`. Three models estimate them, none of them well everywhere,
and a rule chooses between the three [5]_.

Sizes count subjects; someone with several vectors is in several classes and counts in each. The estimates are models,
never a guarantee: they suppose a simple random sample, which a face set hardly ever is.

.. [1] L. V. Zayatz, "Estimation of the percent of unique population elements on a microdata file using the sample",
   US Bureau of the Census, report RR-91/08, 1991.
.. [2] G. Chen, S. Keller-McNulty, "Estimation of identification disclosure risk in microdata", J. Official Statistics
   14(1), 1998.
.. [3] P. J. Haas, L. Stokes, "Estimating the number of classes in a finite population", JASA 93(444), 1998.
.. [4] N. Hoshino, "Applying Pitman's sampling formula to microdata disclosure risk assessment", J. Official Statistics
   17(4), 2001.
.. [5] F. K. Dankar, K. El Emam, A. Neisa, T. Roffey, "Estimating the re-identification risk of clinical data sets",
   BMC Medical Informatics and Decision Making 12:66, 2012.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from numpy.typing import NDArray

from facecrowd.privacy.anonymity import ClassSizes, Unit, class_sizes
from facecrowd.privacy.classes import Histogram
from facecrowd.privacy.errors import PopulationError
from facecrowd.privacy.measure import figure

Model = Literal["zayatz", "snb", "pitman"]

SMALL_FRACTION = 0.1
"""Dankar's rule: Pitman's model up to this share of the population, else Zayatz's or SNB."""
SMALLEST_ALPHA = 1e-9
"""Stands for alpha = 0 in Pitman's model, which is then Ewens's."""


@dataclass(frozen=True)
class Uniqueness:
    """Sample uniqueness and, where a population is given, its estimates.

    Attributes
    ----------
    unit : {"subjects", "rows"}
    sample, uniques : int
        Members of the table's classes, and those who are alone in theirs.
    population : int, optional
    estimates : dict of model to float
        Uniques of the population, by model; NaN where a model has no solution. Empty without a population.
    model : str, optional
        The one that Dankar's rule chooses.
    """

    unit: Unit
    sample: int
    uniques: int
    population: int | None
    estimates: dict[Model, float]
    model: Model | None

    @property
    def sample_share(self) -> float:
        """The share of the table's members who are alone in their class."""
        return self.uniques / self.sample

    @property
    def population_share(self) -> float | None:
        """The share of the population who are alone, by the chosen model; None without a population."""
        if self.population is None or self.model is None:
            return None
        return self.estimates[self.model] / self.population

    def as_dict(self) -> dict[str, Any]:
        """Plain values; an estimate without a solution is None."""
        return {
            "unit": self.unit,
            "sample": self.sample,
            "sample_uniques": self.uniques,
            "sample_share": self.sample_share,
            "population": self.population,
            "estimates": {model: figure(value) for model, value in self.estimates.items()},
            "model": self.model,
            "population_share": None if self.population_share is None else figure(self.population_share),
        }


def uniqueness(histogram: Histogram, population: int | None = None, unit: Unit = "subjects") -> Uniqueness:
    r"""Who is alone, and who of the population would be.

    Dankar's rule: Pitman's estimate where :math:`\pi \le 0.1`, else the smaller of Zayatz's and SNB's; Zayatz's, which
    always exists, where the other has no solution.

    Parameters
    ----------
    histogram : Histogram
    population : int, optional
        The number of people (or rows) from whom the table's were drawn.
    unit : {"subjects", "rows"}

    Raises
    ------
    PopulationError
        If the population is smaller than the table.
    """
    sizes = class_sizes(histogram, unit)
    sample, uniques = _drawn(sizes, population)
    if population is None:
        return Uniqueness(unit, sample, uniques, None, {}, None)
    estimates: dict[Model, float] = {
        "zayatz": zayatz(sizes, population),
        "snb": snb(sizes, population),
        "pitman": pitman(sizes, population),
    }
    return Uniqueness(unit, sample, uniques, population, estimates, _dankar(estimates, sample / population))


def zayatz(sizes: ClassSizes, population: int) -> float:
    r"""Population uniques by Zayatz's model [1]_.

    The sizes of the population's classes are taken to be distributed as those of the sample, so that a sample unique is
    a population unique with probability

    .. math::
        \Pr(F = 1 \mid f = 1) = \frac{f_1 h_1}{\sum_i f_i h_i}, \qquad
        h_i = \binom{i}{1} \binom{N - i}{n - 1} \bigg/ \binom{N}{n}, \qquad
        \hat F_1 = \frac{f_1}{\pi} \Pr(F = 1 \mid f = 1)

    Parameters
    ----------
    sizes : ClassSizes
    population : int
        N.

    Returns
    -------
    float
        Uniques, from 0 to N.

    Raises
    ------
    PopulationError
        If N is smaller than the sample.
    """
    n, f1 = _drawn(sizes, population)
    if f1 == 0:
        return 0.0
    drawn_once = scipy.stats.hypergeom.pmf(1, population, sizes.size, n)
    weights = sizes.classes * drawn_once
    return float(f1 * population / n * weights[0] / weights.sum())


def snb(sizes: ClassSizes, population: int) -> float:
    r"""Population uniques by the slide negative binomial model [2]_.

    The sizes of the population's *K* classes less one are negative binomial, so with :math:`d = (1 - \pi)(1 - \beta)`

    .. math::
        F_1 &= K \beta^\alpha \\
        E f_1 &= K \pi \left( \frac{\beta}{1 - d} \right)^{\alpha} \frac{1 - d + \alpha d}{1 - d} \\
        E f_2 &= \frac{K \pi^2 \alpha (1 - \beta) \beta^\alpha}{2 (1 - d)^{\alpha + 2}} (2 - d + \alpha d)

    *K* is estimated by Shlosser's estimator in the third form of Haas and Stokes [3]_, and the two moments are solved
    for alpha and beta: their ratio is a quadratic in alpha with one positive root, which leaves one equation in beta.

    Parameters
    ----------
    sizes : ClassSizes
    population : int
        N.

    Returns
    -------
    float
        Uniques, from 0 to N; NaN where the moments have no solution.

    Raises
    ------
    PopulationError
        If N is smaller than the sample.
    """
    n, f1 = _drawn(sizes, population)
    if f1 in (0, n) or n == population:
        return float(f1 / n * population)
    f2 = float(sizes.classes[sizes.size == 2].sum())
    if f2 == 0:
        return float("nan")
    share = n / population
    classes = shlosser(sizes, population)

    def solved(beta: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """alpha that fits f2 / f1 at this beta, and by how much the logarithm of f1 is then missed."""
        b = 1 - beta
        d = (1 - share) * b
        ratio = 2 * f2 / (share * f1)
        linear = b * (2 - d) - ratio * (1 - d) * d
        constant = -ratio * (1 - d) ** 2
        root = np.sqrt(linear**2 - 4 * b * d * constant)
        # the form without cancellation, by the sign of the linear term
        alpha = np.where(linear > 0, -2 * constant / (linear + root), (root - linear) / (2 * b * d))
        found = np.log(classes * share) + alpha * np.log(beta / (1 - d)) + np.log1p(alpha * d / (1 - d))
        return alpha, found - np.log(f1)

    grid = scipy.special.expit(np.linspace(-20, 20, 2001))
    missed = solved(grid)[1]
    signs = np.flatnonzero(np.sign(missed[:-1]) * np.sign(missed[1:]) < 0)
    if len(signs) == 0:
        return float("nan")
    # of two solutions the larger beta: the other has few large classes and next to no uniques
    at = int(signs[-1])
    beta = scipy.optimize.brentq(lambda b: float(solved(np.array(b))[1]), grid[at], grid[at + 1], xtol=1e-14)
    uniques = float(classes * beta ** float(solved(np.array(beta))[0]))
    return uniques if uniques <= population else float("nan")


def shlosser(sizes: ClassSizes, population: int) -> float:
    r"""The number of classes of the population, by Shlosser's estimator in the third form of Haas and Stokes [3]_.

    .. math::
        \hat K = u + f_1
        \frac{\sum_i i \pi^2 (1 - \pi^2)^{i - 1} f_i}{\sum_i (1 - \pi)^i \left( (1 + \pi)^i - 1 \right) f_i}
        \left( \frac{\sum_i (1 - \pi)^i f_i}{\sum_i i \pi (1 - \pi)^{i - 1} f_i} \right)^2

    with *u* classes in the sample.

    Raises
    ------
    PopulationError
        If N is smaller than the sample.
    """
    n, f1 = _drawn(sizes, population)
    u = float(sizes.classes.sum())
    if n == population:
        return u
    p, i, f = n / population, sizes.size.astype(np.float64), sizes.classes
    missed = (1 - p) ** i
    first = (i * p**2 * (1 - p**2) ** (i - 1) * f).sum() / (((1 - p**2) ** i - missed) * f).sum()
    return float(u + f1 * first * ((missed * f).sum() / (i * p * (1 - p) ** (i - 1) * f).sum()) ** 2)


def pitman(sizes: ClassSizes, population: int) -> float:
    r"""Population uniques by Pitman's sampling formula [4]_.

    The n-th member joins a class of size i with probability :math:`(i - \alpha) / (\theta + n - 1)` and else founds a
    new one. Alpha and theta maximise the likelihood of the sample,

    .. math::
        \log L = \sum_{i=1}^{u-1} \log(\theta + i \alpha) - \sum_{i=1}^{n-1} \log(\theta + i)
        + \sum_i f_i \sum_{j=1}^{i-1} \log(j - \alpha), \qquad 0 \le \alpha < 1, \; \theta > -\alpha

    and the expected uniques among N are

    .. math::
        \hat F_1 = N \frac{\Gamma(\theta + 1) \, \Gamma(\theta + \alpha + N - 1)}
        {\Gamma(\theta + \alpha) \, \Gamma(\theta + N)}
        \approx \frac{\Gamma(\theta + 1)}{\Gamma(\theta + \alpha)} N^\alpha

    (the exact form, where [4]_ gives the limit).

    Parameters
    ----------
    sizes : ClassSizes
    population : int
        N.

    Returns
    -------
    float
        Uniques, from 0 to N; NaN where the likelihood grows without end in theta.

    Raises
    ------
    PopulationError
        If N is smaller than the sample.
    """
    n, f1 = _drawn(sizes, population)
    if f1 in (0, n) or n == population:
        return float(f1 / n * population)
    u = int(sizes.classes.sum())

    def parameters(point: NDArray[np.float64]) -> tuple[float, float]:
        alpha = max(float(scipy.special.expit(point[0])), SMALLEST_ALPHA)
        return alpha, float(np.exp(point[1])) - alpha

    def negative(point: NDArray[np.float64]) -> float:
        alpha, theta = parameters(point)
        founded = (u - 1) * np.log(alpha) + _log_rising(theta / alpha + 1, u - 1) if u > 1 else 0.0
        joined = scipy.special.gammaln(sizes.size - alpha) - scipy.special.gammaln(1 - alpha)
        return -float(founded - _log_rising(theta + 1, n - 1) + (sizes.classes * joined).sum())

    starts = [(0.0, np.log(u)), (2.0, np.log(n)), (-2.0, 0.0)]
    options = {"xatol": 1e-9, "fatol": 1e-10, "maxiter": 4000, "maxfev": 4000}
    fits = [scipy.optimize.minimize(negative, start, method="Nelder-Mead", options=options) for start in starts]
    best = min(fits, key=lambda fit: float(fit.fun))
    alpha, theta = parameters(best.x)
    if alpha > 1 - SMALLEST_ALPHA or theta > 1e6 * n:
        return float("nan")
    uniques = population * np.exp(_log_rising(theta + alpha, population - 1) - _log_rising(theta + 1, population - 1))
    return float(uniques)


def _log_rising(x: float, m: int) -> float:
    r""":math:`\sum_{i=0}^{m-1} \log(x + i)`, without the cancellation of two large log-gammas."""
    return float(scipy.special.gammaln(m) - scipy.special.betaln(x, m)) if m else 0.0


def _dankar(estimates: dict[Model, float], share: float) -> Model:
    if share <= SMALL_FRACTION:
        return "zayatz" if np.isnan(estimates["pitman"]) else "pitman"
    return "snb" if estimates["snb"] < estimates["zayatz"] else "zayatz"


def _drawn(sizes: ClassSizes, population: int | None) -> tuple[int, int]:
    """n and f_1, checked."""
    n = int((sizes.size * sizes.classes).sum())
    if population is not None and population < n:
        raise PopulationError(f"the population has {population} members and the table {n}; give the larger group")
    return n, int(sizes.classes[sizes.size == 1].sum())
