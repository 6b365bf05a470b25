from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy.errors import ColumnError, EmbeddingError, LengthError, PolicyError, TooFewSubjectsError
from facecrowd.privacy.microaggregation import _integers, microaggregate
from facecrowd.privacy.reidentification import identify


def people(n, d=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def sse(points, ids):
    return sum(((points[ids == c] - points[ids == c].mean(axis=0)) ** 2).sum() for c in np.unique(ids))


@given(st.integers(1, 90), st.integers(1, 9), st.sampled_from([8, 30, 4096]), st.integers(0, 3))
def test_every_class_has_k_to_2k_minus_1_subjects(n, k, block, passes):
    if k > n:
        with pytest.raises(TooFewSubjectsError, match=f"k = {k} people .* only {n}"):
            microaggregate(people(n), k)
        return
    found = microaggregate(people(n, seed=n), k, block=block, passes=passes)
    assert np.array_equal(np.bincount(found.ids), found.sizes)
    assert len(found.sizes) == n // k  # as many classes as there can be, in blocks too
    assert k <= found.sizes.min()
    assert found.sizes.max() <= 2 * k - 1
    first = np.unique(found.ids, return_index=True)[1]
    assert (np.diff(first) > 0).all()  # classes are numbered by their first subject


@given(st.permutations(range(50)), st.sampled_from([12, 4096]))
def test_the_order_of_rows_never_changes_who_shares_a_class(order, block):
    points = np.round(people(50, 3), 1)  # coarse, so that ties occur
    points[20:30] = points[10:20]
    names = np.array([f"s{i:02}" for i in range(50)])
    group = np.arange(50) % 2
    order = np.array(order)
    for within in (None, group):
        straight = microaggregate(points, 4, subjects=names, within=within, block=block)
        shuffled = microaggregate(
            points[order],
            4,
            subjects=names[order],
            within=None if within is None else within[order],
            block=block,
        )
        assert np.array_equal(straight.ids[order], shuffled.ids)
        assert straight.sse == shuffled.sse


def test_look_alikes_share_a_class():
    centres = people(20, 8) * 10
    points = np.repeat(centres, 5, axis=0) + 0.01 * people(100, 8, seed=1)
    order = np.random.default_rng(2).permutation(100)
    found = microaggregate(points[order], 5)
    truth = np.repeat(np.arange(20), 5)[order]
    assert all(len(np.unique(truth[found.ids == c])) == 1 for c in range(20))


def test_the_reported_spread_is_the_spread():
    points = people(60)
    found = microaggregate(points, 5)
    assert found.sse == pytest.approx(sse(points, found.ids), rel=1e-4)
    assert found.total == pytest.approx(sse(points, np.zeros(60)), rel=1e-4)


def test_refinement_only_lowers_the_spread_and_no_swap_is_left_to_make():
    points = people(61, 4)
    plain, refined = (microaggregate(points, 3, passes=passes) for passes in (0, 50))
    assert refined.sse < plain.sse
    best = refined.sse
    for i in range(61):
        for j in range(i):
            ids = refined.ids.copy()
            ids[i], ids[j] = ids[j], ids[i]
            assert sse(points, ids) > best * (1 - 1e-3)


def test_it_is_close_to_the_best_partition_of_few_people():
    for seed in range(5):
        points = people(8, 2, seed)
        best = min(sse(points, np.array(ids)) for ids in set(permutations([0, 0, 0, 0, 1, 1, 1, 1])))
        assert microaggregate(points, 4).sse <= 1.5 * best


def test_it_beats_chance_by_far_and_plain_mdav_by_some():
    points = people(1000, 8)
    found, mdav = (microaggregate(points, 5, passes=passes).sse for passes in (8, 0))
    shuffled = np.random.default_rng(0).permutation(np.arange(1000) // 5)
    assert found < 0.95 * mdav
    assert found < 0.5 * sse(points, shuffled)


def test_k_same_select_never_mixes_values():
    male = np.array([False] * 13 + [True] * 17)
    found = microaggregate(people(30), 5, within=male)
    assert all(len(np.unique(male[found.ids == c])) == 1 for c in range(len(found.sizes)))
    assert found.sizes.min() >= 5
    with pytest.raises(TooFewSubjectsError, match="only 3 people have the value True"):
        microaggregate(people(10), 5, within=np.arange(10) > 6)


def test_blocks_cost_little_spread():
    points = people(2000, 8)
    whole, blocks = (microaggregate(points, 5, block=block) for block in (4096, 256))
    assert blocks.sse < 1.25 * whole.sse


def test_bad_input_gets_one_clear_sentence():
    broken = people(4)
    broken[2, 3] = np.nan
    with pytest.raises(EmbeddingError, match="not finite, first in row 2"):
        microaggregate(broken, 2)
    with pytest.raises(EmbeddingError, match="shape"):
        microaggregate(np.zeros(4), 2)
    with pytest.raises(PolicyError, match="k is 0"):
        microaggregate(people(4), 0)
    with pytest.raises(ColumnError, match="repeated"):
        microaggregate(people(4), 2, subjects=["a", "a", "b", "c"])
    with pytest.raises(LengthError, match="3 subject names for 4"):
        microaggregate(people(4), 2, subjects=["a", "b", "c"])
    assert microaggregate(np.zeros((7, 3)), 3).sizes.tolist() == [4, 3]


def test_neither_threads_nor_the_order_of_sums_can_change_the_partition():
    points = people(700, 64)
    exact, _ = _integers(points, 5)
    gram = exact.astype(np.float64) @ exact.T.astype(np.float64)
    assert np.array_equal(gram, (exact.astype(np.int64) @ exact.T.astype(np.int64)).astype(np.float64))


@pytest.mark.parametrize("n,k", [(20_000, 5), (400, 200)])
def test_whole_numbers_are_small_enough_for_exact_sums(n, k):
    exact, _ = _integers(np.ones((n, 512)), k)
    assert max(n, (2 * k) ** 2) * 512 * int(exact.max()) ** 2 <= 2**53


@pytest.mark.slow
def test_real_people_in_classes_of_five_are_named_once_in_five(lfw):
    points, names = lfw
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    people, person = np.unique(names, return_inverse=True)
    mean = np.array([unit[person == i].mean(axis=0) for i in range(len(people))])
    found = microaggregate(mean, 5, subjects=people)
    shuffled = np.random.default_rng(0).permutation(np.arange(len(people)) // 5)
    assert found.sse < 0.87 * sse(mean, shuffled)
    surrogate = np.array([mean[found.ids == c].mean(axis=0) for c in range(len(found.sizes))])[found.ids][person]
    attack = identify(surrogate, names, points, names, rng=np.random.default_rng(0)).rank_one
    assert attack.low <= 1 / 5 <= attack.high
