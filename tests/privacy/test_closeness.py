import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from facecrowd.privacy.classes import histogram
from facecrowd.privacy.closeness import (
    Hierarchy,
    Ordered,
    earth_movers_distance,
    equal_distance,
    hamming_ground,
    hierarchical_distance,
    ordered_distance,
    t_closeness,
)
from facecrowd.privacy.errors import GroundDistanceError, ReferenceDistributionError

V = 6
MASSES = arrays(np.float64, V, elements=st.sampled_from([0.0, 1.0, 2.0, 5.0, 0.25])).filter(lambda m: m.sum() > 0)
TREE = {
    "flu": ("airway", "any"),
    "cold": ("airway", "any"),
    "cough": ("airway", "any"),
    "ulcer": ("stomach", "any"),
    "gastritis": ("stomach", "any"),
    "rash": ("skin", "any"),
}


@given(MASSES, MASSES)
def test_the_equal_distance_is_pots(p, q):
    p, q = p / p.sum(), q / q.sum()
    assert equal_distance(p, q) == pytest.approx(earth_movers_distance(p, q, 1 - np.eye(V)), abs=1e-12)


@given(MASSES, MASSES)
def test_the_ordered_distance_is_pots(p, q):
    p, q = p / p.sum(), q / q.sum()
    ground = np.abs(np.arange(V)[:, None] - np.arange(V)) / (V - 1)
    assert ordered_distance(p, q) == pytest.approx(earth_movers_distance(p, q, ground), abs=1e-12)


@given(MASSES, MASSES, st.lists(st.integers(0, 2), min_size=V, max_size=V), st.lists(st.integers(0, 1), min_size=3))
def test_the_hierarchical_distance_is_pots(p, q, middle, upper):
    p, q = p / p.sum(), q / q.sum()
    nodes = np.array([[m, upper[m], 0] for m in middle])  # a tree of height 3 over six leaves
    leaves = np.column_stack([np.arange(V), nodes])
    ground = (leaves[:, None, :] != leaves[None, :, :]).sum(axis=2) / 3
    assert hierarchical_distance(p, q, nodes) == pytest.approx(earth_movers_distance(p, q, ground), abs=1e-12)


@given(MASSES)
def test_a_class_like_everybody_is_at_no_distance(p):
    p = p / p.sum()
    assert equal_distance(p, p) == ordered_distance(p, p) == 0
    assert earth_movers_distance(p, p, 1 - np.eye(V)) == pytest.approx(0, abs=1e-12)


def table(seed=0, values=V, n=200):
    rng = np.random.default_rng(seed)
    return histogram(
        rng.integers(0, 60, n),
        class_ids=rng.integers(0, 12, n),
        sensitive={"illness": rng.choice(sorted(TREE), n), "rich": rng.integers(0, 2, n)},
    )


def by_pot(found, ground, q=None):
    p = found.weights.toarray() / found.subjects[:, None]
    return [earth_movers_distance(row, found.reference if q is None else q, ground) for row in p]


def test_t_under_every_ground_distance_is_pots_and_its_worst_is_the_largest():
    both = table()
    illness = both.marginal(["illness"])
    names = [row["illness"] for row in illness.values.to_pylist()]
    leaves = [(name, *TREE[name]) for name in names]
    tree = np.array([[sum(a != b for a, b in zip(x, y, strict=True)) / 2 for y in leaves] for x in leaves])
    line = np.abs(np.arange(V)[:, None] - np.arange(V)) / (V - 1)
    shuffled = Ordered(("rash", "flu", "ulcer", "cold", "gastritis", "cough"))
    place = np.array([shuffled.values.index(name) for name in names])
    for ground, matrix in [
        ("equal", 1 - np.eye(V)),
        ("hamming", 1 - np.eye(V)),
        ("ordered", line),
        (shuffled, line[np.ix_(place, place)]),
        (Hierarchy(TREE), tree),
        (tree, tree),
    ]:
        found = t_closeness(both, ground, attribute="illness")
        np.testing.assert_allclose(found.per_class, by_pot(illness, matrix), atol=1e-12)
        assert found.value == found.per_class.max() == found.per_class[found.worst_class]


def test_joint_t_moves_mass_by_the_share_of_attributes_that_differ():
    both = table()
    values = [tuple(row.values()) for row in both.values.to_pylist()]
    ground = hamming_ground(values)
    assert ground[0, 0] == 0
    assert set(np.unique(ground)) == {0.0, 0.5, 1.0}
    np.testing.assert_allclose(t_closeness(both, "hamming").per_class, by_pot(both, ground), atol=1e-12)


def test_t_is_taken_over_people_not_photos():
    crowd = histogram(
        ["ann"] * 9 + ["bob", "cyd", "dan"], class_ids=[0] * 10 + [1, 1], sensitive={"s": [1] * 9 + [0, 1, 0]}
    )
    assert t_closeness(crowd).per_class.tolist() == [0.0, 0.0]


def test_a_public_reference_may_know_values_that_the_table_lacks():
    found = histogram([1, 2], class_ids=[0, 1], sensitive={"age": [10, 30]})
    t = t_closeness(found, "ordered", reference={10: 0.5, 20: 0.25, 30: 0.25})
    np.testing.assert_allclose(t.per_class, [(0.5 + 0.25) / 2, (0.5 + 0.75) / 2])
    t = t_closeness(
        histogram([1, 2], class_ids=[0, 1], sensitive={"age": [10, 40]}), "ordered", reference={20: 0.5, 30: 0.5}
    )
    np.testing.assert_allclose(t.per_class, [1.5 / 3, 1.5 / 3])
    t = t_closeness(
        histogram([1, 2], class_ids=[0, 1], sensitive={"age": [10, 40]}), reference={20: 0.5, 40: 0.5, 30: 0}
    )
    np.testing.assert_allclose(t.per_class, [1.0, 0.5])
    joint = histogram([1], class_ids=[0], sensitive={"a": [True], "b": [False]})
    assert t_closeness(joint, "hamming", reference={(True, True): 1.0}).value == pytest.approx(0.5)


def test_a_ground_or_reference_that_does_not_fit_is_refused():
    both = table()
    for ground, words in [
        (np.zeros((2, 2)), "6 values of the table"),
        (np.ones((V, V)), "diagonal"),
        (Hierarchy({"flu": ("any",)}), "no line for 'cold'"),
        (Hierarchy({**TREE, "flu": ("any",)}), "different numbers"),
        (Hierarchy({**TREE, "flu": ("airway", "other")}), "make it a tree"),
        (Hierarchy({**TREE, "rash": ("skin", "other")}), "share one root"),
        (Ordered(("flu",)), "lacks"),
        ("euclidean", "not a ground distance"),
    ]:
        with pytest.raises(GroundDistanceError, match=words):
            t_closeness(both, ground, attribute="illness")
    with pytest.raises(GroundDistanceError, match="name one, or use 'hamming'"):
        t_closeness(both, "ordered")
    with pytest.raises(GroundDistanceError, match="no sensitive attribute"):
        t_closeness(histogram([1], class_ids=[0]))
    with pytest.raises(ReferenceDistributionError, match=r"sums to 0\.5"):
        t_closeness(both, attribute="illness", reference={"flu": 0.5})
    with pytest.raises(ReferenceDistributionError, match="one value for each"):
        t_closeness(both, reference={"flu": 1.0})
