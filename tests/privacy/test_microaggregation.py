from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy import microaggregation
from facecrowd.privacy.attributes import Attribute, Hierarchy
from facecrowd.privacy.classes import histogram
from facecrowd.privacy.errors import (
    ColumnError,
    EmbeddingError,
    LengthError,
    PolicyError,
    TooFewSubjectsError,
    UnreachableError,
)
from facecrowd.privacy.microaggregation import _integers, attribute_points, microaggregate, mixed_points
from facecrowd.privacy.policy import Closeness, Diversity, Policy
from facecrowd.privacy.randomisation import attribute_distance
from facecrowd.privacy.reidentification import identify
from facecrowd.privacy.requirements import Requirements
from facecrowd.privacy.verdict import judge


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


def required(values, policy):
    """Requirements and one-hot weights of one value per subject."""
    table = histogram(np.arange(len(values)), class_ids=np.zeros(len(values)), sensitive={"x": values})
    order = {value: i for i, value in enumerate(table.values["x"].to_pylist())}
    weights = np.eye(len(order))[[order[value] for value in values]]
    return Requirements(table.values, table.reference, policy), weights


def measured(ids, values, policy):
    return judge(histogram(np.arange(len(ids)), class_ids=ids, sensitive={"x": np.asarray(values)}), policy)


policies = st.builds(
    lambda k, diversity, t: Policy("subject", (), ("x",), k=k, l=diversity, t=t),
    st.integers(2, 6),
    st.sampled_from([None, Diversity("distinct", 2), Diversity("entropy", 1.5), Diversity("recursive", 2, 3.0)]),
    st.sampled_from([None, Closeness(0.1), Closeness(0.3), Closeness(0.2, "ordered")]),
)


@given(st.lists(st.integers(0, 2), min_size=6, max_size=60), policies, st.sampled_from([12, 4096]), st.integers(0, 9))
def test_every_class_meets_k_l_and_t_or_no_partition_does(values, policy, block, seed):
    values = [int(v) for v in values]
    needs, weights = required(values, policy)
    points = people(len(values), 4, seed)
    one = measured(np.zeros(len(values), dtype=int), values, policy)
    if not one.met:  # by convexity nobody can do better than the class of everybody
        with pytest.raises(UnreachableError, match="no partition of the people meets the policy"):
            microaggregate(points, policy.k, block=block, sensitive=weights, requirements=needs)
        return
    found = microaggregate(points, policy.k, block=block, sensitive=weights, requirements=needs)
    assert measured(found.ids, values, policy).met
    assert np.array_equal(np.bincount(found.ids), found.sizes)
    assert found.sse == pytest.approx(sse(points, found.ids), rel=1e-3)


def test_a_partition_that_meets_the_policy_already_is_left_alone():
    values = np.arange(60) % 2
    needs, weights = required(values, Policy("subject", (), ("x",), k=3, l=Diversity("distinct", 1)))
    plain, held = microaggregate(people(60), 3), microaggregate(people(60), 3, sensitive=weights, requirements=needs)
    assert np.array_equal(plain.ids, held.ids)
    assert plain.sse == held.sse


def test_break_it_without_the_requirements_classes_of_look_alikes_give_the_value_away():
    """The sensitive value shows in the face: plain classes are of one value, and held ones stay near everybody's."""
    values = np.arange(400) % 2
    points = people(400, 8)
    points[:, 0] += 6 * values
    policy = Policy("subject", (), ("x",), k=5, l=Diversity("distinct", 2), t=Closeness(0.2))
    needs, weights = required(values, policy)
    plain = measured(microaggregate(points, 5).ids, values, policy)
    assert [r.met for r in plain.requirements] == [True, False, False]
    assert plain.requirements[2].found == pytest.approx(0.5)
    held = microaggregate(points, 5, sensitive=weights, requirements=needs)
    assert measured(held.ids, values, policy).met
    assert len(held.sizes) > 40  # swaps mend without uniting everything


def test_swaps_cost_less_than_uniting_alone():
    rng = np.random.default_rng(3)
    values = (rng.random(600) < 0.4).astype(int)
    policy = Policy("subject", (), ("x",), k=5, t=Closeness(0.25))
    needs, weights = required(values, policy)
    points = people(600, 8)
    held = microaggregate(points, 5, sensitive=weights, requirements=needs)
    united = microaggregation._unite(points, microaggregate(points, 5).ids, weights, needs)[0]
    assert measured(united, values, policy).met
    assert held.sse < 0.95 * sse(points, united)
    assert held.sse < 1.15 * microaggregate(points, 5).sse
    assert len(held.sizes) > 110


@given(st.permutations(range(40)))
def test_the_order_of_rows_never_changes_a_mended_partition(order):
    points, values = people(40, 3), np.arange(40) % 3
    needs, weights = required(values, Policy("subject", (), ("x",), k=4, l=Diversity("distinct", 3)))
    names = np.array([f"s{i:02}" for i in range(40)])
    order = np.array(order)
    straight, shuffled = (
        microaggregate(points[o], 4, subjects=names[o], sensitive=weights[o], requirements=needs)
        for o in (np.arange(40), order)
    )
    assert np.array_equal(straight.ids[order], shuffled.ids)


def test_a_value_to_stay_within_that_lacks_diversity_is_named_before_any_work():
    values = np.r_[np.zeros(10, dtype=int), np.arange(10) % 2]
    needs, weights = required(values, Policy("subject", (), ("x",), k=5, l=Diversity("distinct", 2)))
    with pytest.raises(UnreachableError, match=r"of 10 to stay within .* l \(distinct\) of x = 2 is asked"):
        microaggregate(people(20), 5, within=np.arange(20) < 10, sensitive=weights, requirements=needs)
    found = microaggregate(people(20), 5, sensitive=weights, requirements=needs)
    assert measured(found.ids, values, Policy("subject", (), ("x",), k=5, l=Diversity("distinct", 2))).met
    with pytest.raises(ColumnError, match="sum to 1"):
        microaggregate(people(20), 5, sensitive=2 * weights, requirements=needs)
    with pytest.raises(LengthError, match="a row each"):
        microaggregate(people(20), 5, sensitive=weights[:3], requirements=needs)


@given(st.integers(0, 50))
def test_attribute_points_are_as_far_apart_as_their_attributes(seed):
    tree = Hierarchy((("red", "warm", "*"), ("orange", "warm", "*"), ("blue", "cold", "*")))
    attributes = (
        Attribute("b", "binary", (False, True)),
        Attribute("c", "categorical", ("x", "y", "z")),
        Attribute("o", "ordered", ("low", "middle", "high")),
        Attribute("n", "numeric", (1, 2, 11)),
        Attribute("h", "categorical", ("blue", "orange", "red"), tree),
        Attribute("one", "binary", (1,)),
    )
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, a.size, 2) for a in attributes], axis=1).astype(np.int32)
    points = attribute_points(codes, attributes)
    expected = sum(
        attribute_distance(a)[codes[0, i], codes[1, i]] ** (2 if a.kind in ("ordered", "numeric") else 1)
        for i, a in enumerate(attributes)
    )
    assert ((points[0] - points[1]) ** 2).sum() == pytest.approx(expected)


def test_equal_vectors_share_a_class_and_attributes_weigh_what_is_asked():
    codes = np.repeat(np.indices((2, 2)).reshape(2, -1).T, 6, axis=0).astype(np.int32)
    attributes = (Attribute("a", "binary", (0, 1)), Attribute("b", "binary", (0, 1)))
    found = microaggregate(attribute_points(codes, attributes), 6)
    assert found.sse == 0
    assert len(found.sizes) == 4
    both = mixed_points(people(24), attribute_points(codes, attributes), share=0.25)
    spread = ((both - both.mean(axis=0)) ** 2).sum(axis=0)
    assert spread[-2:].sum() / spread.sum() == pytest.approx(0.25)
    with pytest.raises(PolicyError, match="share of the attributes is 2"):
        mixed_points(both, both, share=2)
    with pytest.raises(LengthError, match="one column each"):
        attribute_points(codes, attributes[:1])
