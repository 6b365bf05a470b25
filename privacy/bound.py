r"""k-same's bound as a statistical hypothesis: is a person named more often than one time in k?

**What the bound says.** Everybody of a class shows the class, so whatever an attacker knows, a released face lets it
name one of the class's people and is silent about which: of the successes of *one class*, averaged over its subjects,
the expectation is at most :math:`b_c = 1/k` (Newton, Sweeney and Malin 2005, theorem 2.1; where released faces and not
subjects weigh, 1 / effective k).

    H0:  E[Y_c | the classes before] ≤ b_c  for every class c,      Y_c = mean over subjects of their success, in [0, 1]

**The unit is the class.** Subjects of one class share a face: where one is named the others are not, or, in a bad
release, all are. Nothing is assumed about that. Only classes are independent (each is drawn by its own key), and less
is needed: that no class is expected to do better after what the others did.

**The test** is a wager [1]_ [2]_. Who stakes a share θ of a capital on each class, at the odds that the bound calls
fair, has

.. math:: K(\theta) = \prod_c \Bigl(1 + \theta \bigl(Y_c / b_c - 1\bigr)\Bigr), \qquad \theta \in [0, 1],

which under H0 is not expected to exceed the 1 it began with, for each θ and so for an average over θ. By Markov's
inequality

.. math:: p = \min\Bigl(1,\; 1 \Big/ \int_0^1 K(\theta)\, d\theta\Bigr)

is a p-value: :math:`P(p \le \alpha) \le \alpha` at any number of classes, without an approximation, whatever their
sizes, bounds and inner dependence. It does not depend on their order. It gains power where classes vary little, which
Hoeffding's or a binomial bound, made for the worst variance, cannot. The average over θ is the universal portfolio
[3]_, and costs a factor of about :math:`\sqrt{C}` against the best stake known beforehand.

References
----------
.. [1] Shafer, Testing by betting, JRSS A 184 (2021).
.. [2] Waudby-Smith, Ramdas, Estimating means of bounded random variables by betting, JRSS B 86 (2024).
.. [3] Cover, Universal portfolios, Mathematical Finance 1 (1991); Orabona, Jun, Tight concentrations and confidence
   sequences from the regret of universal portfolio, IEEE Trans. Inf. Theory 70 (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from facecrowd.privacy.errors import EmptyTableError, LengthError, PolicyError

STAKES = (np.arange(1000) + 0.5) / 1000
"""θ: midpoints, an average over which is the integral; a mixture of wagers, so valid by itself."""


@dataclass(frozen=True)
class BoundTest:
    """The bound held against what an attacker achieved.

    Attributes
    ----------
    p : float
        One-sided p-value, in (0, 1]: small where the bound is refuted.
    observed : float
        Mean success over subjects of the classes (a subject in two classes counts in both).
    by_class : float
        Mean over classes of Y_c.
    bound : float
        What the mean success over subjects may be: the mean of the classes' bounds, by subjects.
    classes, subjects : int
    over : int
        Classes whose own success is above their bound; chance alone makes some.
    level : float
        At and below which the bound counts as refuted.
    least : float
        The p-value that naming everybody would have: above ``level``, so few classes cannot refute the bound.
    """

    p: float
    observed: float
    by_class: float
    bound: float
    classes: int
    subjects: int
    over: int
    level: float
    least: float = 0.0

    @property
    def refuted(self) -> bool:
        return self.p <= self.level

    @property
    def text(self) -> str:
        """The verdict as a sentence."""
        seen = (
            f"{self.observed:.1%} of {self.subjects} people in {self.classes} classes are named, where the bound "
            f"allows {self.bound:.1%} (p = {self.p:.2g}, one-sided, the class as unit)"
        )
        if self.refuted:
            return f"The bound is refuted: {seen}."
        if self.least > self.level:
            few = f"even if everybody were named, p would be {self.least:.2g}"
            return f"The bound cannot be tested by wager with so few classes ({few}): {seen}."
        return f"The bound is not refuted: {seen}."


def bound_test(
    success: ArrayLike,
    subject: ArrayLike,
    classes: ArrayLike,
    bound: float | ArrayLike,
    *,
    level: float = 0.05,
) -> BoundTest:
    """Test that each class's people are named no more often than a bound says.

    Parameters
    ----------
    success : array, shape (P,)
        Of each attacked face the success in [0, 1], expected where the attacker guesses among equals
        (``Search.success``).
    subject : array, shape (P,)
        Whose it is.
    classes : array, shape (P,)
        The class it was released in.
    bound : float or array, shape (P,)
        b in (0, 1], 1/k or 1 / effective k: one, or that of each face's class, equal in a class.
    level : float
        The chance of refuting a bound that holds.

    Raises
    ------
    EmptyTableError
        If there is no face.
    LengthError
        If the arrays are not of one length.
    PolicyError
        If a bound is outside (0, 1] or differs inside a class, or a success is outside [0, 1].
    """
    named = np.asarray(success, np.float64)
    if not named.size:
        raise EmptyTableError("there is no attacked face, so no bound to test")
    limit = np.broadcast_to(np.asarray(bound, np.float64), named.shape)
    who, crowd = (np.unique(np.asarray(names), return_inverse=True)[1] for names in (subject, classes))
    if not named.shape == who.shape == crowd.shape:
        raise LengthError(f"{named.shape} successes of {who.shape} subjects in {crowd.shape} classes; give one each")
    if not ((limit > 0) & (limit <= 1)).all():
        raise PolicyError(f"bounds lie in (0, 1], not {float(limit.min())} … {float(limit.max())}")
    if not ((named >= 0) & (named <= 1)).all():
        raise PolicyError("a success lies outside [0, 1]")

    pairs, pair = np.unique(np.stack([crowd, who], axis=1), axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    per_subject = np.bincount(pair, weights=named) / np.bincount(pair)
    people = np.bincount(pairs[:, 0])
    per_class = np.bincount(pairs[:, 0], weights=per_subject) / people
    allowed = np.zeros(len(people))
    allowed[crowd] = limit
    if (allowed[crowd] != limit).any():
        raise PolicyError("faces of one class have different bounds")
    return BoundTest(
        p=_p_value(per_class, allowed),
        observed=float(per_subject.mean()),
        by_class=float(per_class.mean()),
        bound=float((allowed * people).sum() / people.sum()),
        classes=len(people),
        subjects=len(np.unique(who)),
        # Sums of thirds and fifths round.
        over=int((per_class > allowed + 1e-9).sum()),
        level=level,
        least=_p_value(np.ones(len(people)), allowed),
    )


def _p_value(per_class: NDArray[Any], allowed: NDArray[Any]) -> float:
    """p of class means (C,) in [0, 1] and their bounds (C,), equation above."""
    capital = np.zeros(len(STAKES))
    for mean, limit in zip(per_class, allowed, strict=True):
        capital += np.log1p(STAKES * (mean / limit - 1.0))
    return float(min(1.0, np.exp(np.log(len(STAKES)) - logsumexp(capital))))
