"""Uniting classes until each meets the policy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy.merging import merge_until_met


def mixed(subjects, weights):
    """At least a quarter of each of two values."""
    return (weights >= subjects[:, None] / 4).all(axis=1)


def united(weights, where, group=None):
    """Labels, with costs by the distance between places on a line."""
    where = np.array(where, dtype=float)
    weights = np.array(weights, dtype=float)
    told = []
    label = merge_until_met(
        weights.sum(axis=1).astype(np.int64),
        weights,
        mixed,
        lambda a, others: np.abs(where[others] - where[a]),
        lambda a, b: told.append((a, b)),
        group=None if group is None else np.array(group),
    )
    return label.tolist(), told


def test_the_nearest_class_that_mends_is_taken():
    assert united([[4, 0], [2, 2], [2, 2]], [0, 3, 2]) == ([0, 1, 0], [(0, 2)])
    assert united([[4, 0], [9, 3], [0, 4]], [0, 1, 5]) == ([0, 1, 0], [(0, 2)])  # the nearer one mends nothing


def test_a_partner_that_is_not_met_either_counts_half():
    assert united([[4, 0], [2, 2], [0, 4]], [0, 1.0, 1.9]) == ([0, 1, 0], [(0, 2)])
    assert united([[4, 0], [2, 2], [0, 4]], [0, 1.0, 2.1])[0][:2] == [0, 0]


def test_groups_stay_apart_and_one_that_cannot_be_mended_stays():
    label, _ = united([[4, 0], [3, 0], [0, 4], [2, 2]], [0, 1, 2, 3], group=[0, 0, 1, 1])
    assert label == [0, 0, 2, 2]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(any), min_size=1, max_size=12), st.randoms())
def test_everything_is_met_whenever_the_whole_is(weights, random):
    where = [random.random() for _ in weights]
    label, told = united(weights, where)
    sums = np.array([np.sum([w for w, i in zip(weights, label, strict=True) if i == c], axis=0) for c in set(label)])
    whole = np.sum(weights, axis=0)[None, :]
    assert bool(mixed(sums.sum(axis=1), sums).all()) == bool(mixed(whole.sum(axis=1), whole)[0])
    assert len(told) == len(weights) - len(set(label))
    assert all(label[c] == c for c in label)  # named by the smallest of each
