"""Claims of privacy/bound.py: the test's level and power by simulation, SciPy's integral and binomial beside it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom

from facecrowd.privacy.bound import bound_test
from facecrowd.privacy.errors import EmptyTableError, LengthError, PolicyError

K = 5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def crowds(classes: int, k: int = K) -> tuple[np.ndarray, np.ndarray]:
    """Subjects and classes of ``classes`` classes of k people, a face each."""
    return np.arange(classes * k), np.repeat(np.arange(classes), k)


def one_of_k(rng: np.random.Generator, classes: int) -> np.ndarray:
    """Exactly one of each class is named: what k-same with one surrogate does."""
    named = np.zeros((classes, K))
    named[np.arange(classes), rng.integers(K, size=classes)] = 1
    return named.ravel()


def all_or_none(rng: np.random.Generator, classes: int) -> np.ndarray:
    """Everybody of a class is named together, one time in k: the strongest dependence that the bound allows."""
    return np.repeat(rng.random(classes) < 1 / K, K).astype(float)


def alone(rng: np.random.Generator, classes: int) -> np.ndarray:
    """Each person is named by their own luck, one time in k."""
    return (rng.random(classes * K) < 1 / K).astype(float)


@pytest.mark.parametrize("luck", [one_of_k, all_or_none, alone])
@pytest.mark.parametrize("classes", [3, 20, 100])
def test_a_bound_that_holds_is_refuted_no_more_often_than_the_level(
    luck: Callable[[np.random.Generator, int], np.ndarray], classes: int, rng: np.random.Generator
) -> None:
    subject, crowd = crowds(classes)
    p = np.array([bound_test(luck(rng, classes), subject, crowd, 1 / K).p for _ in range(1500)])
    for level in (0.2, 0.05, 0.01):
        # as often as a coin of that level would, but for one run in 10,000
        assert (p <= level).sum() <= binom.ppf(1 - 1e-4, len(p), level)


def test_taking_subjects_for_independent_would_refute_bounds_that_hold(rng: np.random.Generator) -> None:
    """Why the class is the unit: the binomial test over people fails where a class falls together."""
    named = np.array([all_or_none(rng, 40).sum() for _ in range(1000)])
    wrong = binom.sf(named - 1, 40 * K, 1 / K) <= 0.05
    assert wrong.mean() > 0.15


@pytest.mark.parametrize(("rate", "classes", "power"), [(0.4, 20, 0.95), (0.3, 60, 0.9), (0.3, 300, 0.999)])
def test_more_than_one_in_k_is_found(rate: float, classes: int, power: float, rng: np.random.Generator) -> None:
    subject, crowd = crowds(classes)
    found = [bound_test(rng.random(len(subject)) < rate, subject, crowd, 1 / K).refuted for _ in range(200)]
    assert np.mean(found) >= power - 0.05


def test_even_where_classes_fall_together_enough_of_them_tell(rng: np.random.Generator) -> None:
    subject, crowd = crowds(100)
    found = [bound_test(np.repeat(rng.random(100) < 0.45, K), subject, crowd, 1 / K).refuted for _ in range(200)]
    assert np.mean(found) > 0.95


def test_the_p_value_is_one_over_the_average_capital(rng: np.random.Generator) -> None:
    subject, crowd = crowds(12)
    named = (rng.random(len(subject)) < 0.3).astype(float)
    mean = named.reshape(12, K).mean(axis=1)
    capital, _ = quad(lambda stake: np.prod(1 + stake * (mean * K - 1)), 0, 1)
    assert bound_test(named, subject, crowd, 1 / K).p == pytest.approx(min(1, 1 / capital), rel=1e-4)


def test_one_in_k_each_is_at_the_bound_and_named_always_is_far_above(rng: np.random.Generator) -> None:
    subject, crowd = crowds(12)
    held = bound_test(one_of_k(rng, 12), subject, crowd, 1 / K)
    assert (held.p, held.refuted, held.over) == (1.0, False, 0)
    assert held.observed == pytest.approx(held.bound)
    assert "not refuted" in held.text
    # K(θ) = (1 + 4θ)^12: the integral by hand
    broken = bound_test(np.ones(60), subject, crowd, 1 / K)
    assert broken.p == pytest.approx(1 / ((5**13 - 1) / (4 * 13)), rel=1e-3)
    assert broken.refuted
    assert "The bound is refuted: 100.0% of 60 people in 12 classes" in broken.text


def test_subjects_weigh_alike_however_many_photos_they_have_and_classes_keep_their_own_bounds() -> None:
    success = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0]
    subject = ["a", "a", "a", "a", "b", "c", "d", "e", "f", "f"]
    classes = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    found = bound_test(success, subject, classes, 1 / 3)
    assert found.observed == pytest.approx(1 / 3)
    assert found.p == 1
    other = bound_test(success, subject, classes, [1 / 3] * 6 + [1 / 4] * 4)
    assert other.bound == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert other.over == 1


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(EmptyTableError):
        bound_test([], [], [], 0.2)
    with pytest.raises(LengthError):
        bound_test([1, 0], [0, 1], [0], 0.2)
    with pytest.raises(PolicyError, match=r"\(0, 1\]"):
        bound_test([1.0], [0], [0], 0.0)
    with pytest.raises(PolicyError, match="outside"):
        bound_test([2.0], [0], [0], 0.5)
    with pytest.raises(PolicyError, match="different bounds"):
        bound_test([1, 0], [0, 1], [0, 0], [0.2, 0.3])


def test_so_few_classes_that_naming_everybody_would_refute_nothing_are_said_to_be_too_few() -> None:
    few = bound_test(np.ones(6), np.arange(6), np.repeat([0, 1], 3), 1 / 3)
    assert few.p == few.least > few.level
    assert few.text.startswith("The bound cannot be tested by wager with so few classes")
    many = bound_test(np.ones(60), np.arange(60), np.repeat(np.arange(20), 3), 1 / 3)
    assert many.least <= many.level
    assert many.refuted
    assert bound_test(np.zeros(60), np.arange(60), np.repeat(np.arange(20), 3), 1 / 3).text.startswith(
        "The bound is not refuted"
    )
