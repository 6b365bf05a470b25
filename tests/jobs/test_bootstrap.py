"""Every person weighs the same, and intervals are over people."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from facecrowd.jobs.bootstrap import People, auc, balanced, correlation, mean
from facecrowd.jobs.figures import Figure

RATE = Figure("utility", "detected", better="higher")
DRAWS = np.random.default_rng(3)
SUBJECT = np.array([f"p{i}" for i in DRAWS.integers(0, 60, 200)])
EVERY = np.ones(200, bool)
WEIGHTS = DRAWS.random((3, 200))


def people(groups: dict[str, np.ndarray] | None = None) -> People:
    return People(SUBJECT, groups or {}, np.random.default_rng(0))


def test_a_person_with_many_photos_weighs_as_much_as_one_with_few() -> None:
    crowd = People(np.array(["a"] * 9 + ["b"]), {}, np.random.default_rng(0))
    found = crowd.figure(RATE, mean(np.array([1.0] * 9 + [0])), np.ones(10, bool))
    assert found.value == pytest.approx(0.5)
    assert (found.faces, found.subjects) == (10, 2)


def test_the_interval_is_that_of_the_mean_over_people() -> None:
    values = DRAWS.normal(0, 1, 200) + 2
    found = people().figure(RATE, mean(values), EVERY)
    means = [values[name == SUBJECT].mean() for name in np.unique(SUBJECT)]
    expected = stats.bootstrap((means,), np.mean, method="percentile", rng=1).confidence_interval
    assert found.value == pytest.approx(np.mean(means))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_a_rate_at_which_all_agree_has_the_exact_limit_of_its_people() -> None:
    names = len(np.unique(SUBJECT))
    for value, limits in ((0.0, (0, 1 - 0.025 ** (1 / names))), (1.0, (0.025 ** (1 / names), 1))):
        found = people().figure(RATE, mean(np.full(200, value)), EVERY, rate=True)
        assert (found.low, found.high) == pytest.approx(limits)


def test_weighted_rates_are_scikit_learns() -> None:
    truth, guess = DRAWS.random(200) < 0.3, DRAWS.random(200) < 0.5
    scores = np.round(DRAWS.normal(0, 1, 200) + truth, 1)  # with ties
    for row, w in enumerate(WEIGHTS):
        expected = balanced_accuracy_score(truth, guess, sample_weight=w)
        assert balanced(guess == truth, truth)(WEIGHTS)[row] == pytest.approx(expected)
        assert auc(scores, truth)(WEIGHTS)[row] == pytest.approx(roc_auc_score(truth, scores, sample_weight=w))


def test_correlation_is_pearsons_and_takes_weights() -> None:
    x, y = DRAWS.normal(5, 1, (2, 200))
    y = y + x
    assert correlation(x, y)(np.ones((1, 200)))[0] == pytest.approx(stats.pearsonr(x, y).statistic)
    for row, w in enumerate(WEIGHTS):
        spread = np.cov(x, y, aweights=w)
        expected = spread[0, 1] / np.sqrt(spread[0, 0] * spread[1, 1])
        assert correlation(x, y)(WEIGHTS)[row] == pytest.approx(expected)


def test_the_worst_group_is_named_and_groups_of_few_people_are_not_measured() -> None:
    old = np.isin(SUBJECT, np.unique(SUBJECT)[:20])
    lone = np.isin(SUBJECT, np.unique(SUBJECT)[:3])
    groups = {"Young": np.where(old, "0", "1"), "Rare": np.where(lone, "yes", "")}
    whole, *parts = people(groups).mean(RATE, np.where(old, 0.25, 0.75), by_group=True)
    assert whole.note == "worst group: Young = 0 (0.25)"
    assert {part.group: part.value for part in parts[:2]} == pytest.approx({"Young = 0": 0.25, "Young = 1": 0.75})
    assert (parts[-1].group, parts[-1].value) == ("Rare = yes", None)
    assert parts[-1].note == "not measured: 3 people are too few"
    lower = Figure("utility", "lpips", better="lower")
    assert "Young = 1" in people(groups).mean(lower, np.where(old, 0.25, 0.75), by_group=True)[0].note


def test_faces_without_a_value_are_left_out_and_none_at_all_is_said() -> None:
    values = np.where(np.arange(200) < 150, 1.0, np.nan)
    (found,) = people().mean(RATE, values)
    assert found.value == pytest.approx(1)
    assert found.faces == 150
    (none,) = people().mean(RATE, np.full(200, np.nan))
    assert none.value is None
    assert none.note == "not measured: no face to measure it on"


def test_folds_part_people_not_photos_and_are_of_one_size() -> None:
    fold = people().folds(5, np.random.default_rng(0))
    assert all(len(set(fold[name == SUBJECT])) == 1 for name in np.unique(SUBJECT))
    sizes = [len(np.unique(SUBJECT[fold == i])) for i in range(5)]
    assert max(sizes) - min(sizes) <= 1
