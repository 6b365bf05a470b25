from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facecrowd.privacy.classes import histogram
from facecrowd.privacy.closeness import Hierarchy, Ordered, class_distances, transport_bounds
from facecrowd.privacy.requirements import Requirements
from facecrowd.privacy.verdict import Closeness, Diversity, Policy, judge

TREE = Hierarchy({0: ("low", "any"), 1: ("low", "any"), 2: ("high", "any"), 3: ("high", "any")})
DIVERSITIES = [
    None,
    *(Diversity("distinct", l) for l in (1, 2, 3)),  # noqa: E741
    *(Diversity("entropy", l) for l in (1.0, 1.3, 1.75, 2.0, 2.4)),  # noqa: E741
    *(Diversity("recursive", l, c) for l, c in ((1, 0.75), (2, 1.0), (2, 3.0), (3, 2.0))),  # noqa: E741
]
GROUNDS = ["equal", "ordered", "hamming", Ordered((2, 0, 3, 1)), TREE]


def people(values, seed):
    """60 photos of 30 people in 6 classes, with two sensitive attributes of so many values."""
    random = np.random.default_rng(seed)
    person = np.append(np.arange(30), random.integers(0, 30, 30))
    sensitive = {
        name: random.binomial(high - 1, rate, 60) for name, high, rate in zip("st", values, (0.3, 0.5), strict=True)
    }
    return histogram(person, class_ids=random.integers(0, 6, 60), sensitive=sensitive)


@settings(max_examples=40)
@given(
    st.tuples(st.integers(2, 4), st.integers(2, 3)),
    st.integers(0, 500),
    st.sampled_from(DIVERSITIES),
    st.sampled_from(GROUNDS),
    st.sampled_from([0.05, 0.1, 0.2, 0.3, 1 / 3, 0.5]),
    st.booleans(),
)
def test_a_class_meets_the_requirements_exactly_when_its_verdict_does(values, seed, diversity, ground, t, joint):
    sensitive = ("s", "t") if joint and ground in ("equal", "ordered", "hamming") else ("s",)
    found = people(values, seed).marginal(list(sensitive))
    policy = Policy("p", (), sensitive, k=3, l=diversity, t=Closeness(t, ground))
    requirements = Requirements(found.values, found.reference, policy)
    one_by_one = []
    for c in range(len(found.subjects)):
        alone = replace(
            found,
            classes=found.classes.slice(c, 1),
            rows=found.rows[c : c + 1],
            subjects=found.subjects[c : c + 1],
            largest_share=found.largest_share[c : c + 1],
            weights=found.weights[[c]],
        )
        one_by_one.append(judge(alone, policy).met)
    assert requirements.met(found.subjects, found.weights).tolist() == one_by_one
    assert requirements.met(found.subjects, found.weights.toarray()).tolist() == one_by_one


@pytest.mark.parametrize(
    "policy,rates",
    [
        ({"t": Closeness(0.25)}, (0.25, 0.75)),
        ({"l": Diversity("distinct", 2)}, (0.01, 0.99)),
        ({"l": Diversity("entropy", 2)}, (0.5, 0.5)),
        ({"l": Diversity("recursive", 2, 3.0)}, (0.26, 0.74)),  # 3 to 1 is not less than 3
        ({"l": Diversity("recursive", 1, 0.75)}, (0.26, 0.74)),
        ({"l": Diversity("distinct", 3)}, (2, -1)),
    ],
)
def test_the_conditions_on_two_values_are_these_intervals_of_the_rate(policy, rates):
    values, reference = pa.table({"s": [False, True]}), np.array([0.5, 0.5])
    requirements = Requirements(values, reference, Policy("p", (), ("s",), **policy))
    rate = np.arange(101) / 100
    weights = 100 * np.column_stack([1 - rate, rate])
    met = requirements.met(np.full(101, 100), weights)
    assert np.array_equal(met, (rate >= rates[0]) & (rate <= rates[1]))


@pytest.mark.parametrize("ground", ["hamming", np.array([[0, 1, 3, 3], [1, 0, 2, 2], [3, 2, 0, 1], [3, 2, 1, 0.0]])])
def test_transport_distances_lie_between_their_bounds(ground):
    found = people((2, 2), 7)
    lower, upper = transport_bounds(found.values, found.reference, ground)(found.subjects, found.weights)
    exact = class_distances(found.values, found.reference, ground)(found.subjects, found.weights)
    assert (lower <= exact + 1e-12).all()
    assert (exact <= upper + 1e-12).all()
    assert (lower > 0).any()
    assert transport_bounds(found.values, found.reference, "equal") is None


def test_a_public_distribution_over_values_that_the_table_lacks_has_no_interval_and_the_same_answer():
    values, weights = pa.table({"s": [0, 1]}), np.array([[5.0, 5.0], [10.0, 0.0]])
    policy = Policy("p", (), ("s",), t=Closeness(0.2))
    for public, met in (({0: 0.5, 1: 0.5}, [True, False]), ({0: 0.4, 1: 0.4, 2: 0.2}, [True, False])):
        requirements = Requirements(values, np.array([0.5, 0.5]), policy, public)
        assert (requirements.conditions[0].interval is None) == (2 in public)
        assert requirements.met(np.array([10, 10]), weights).tolist() == met


def test_an_empty_class_meets_nothing_and_k_may_count_rows():
    requirements = Requirements(pa.table({}), np.ones(1), Policy("p", (), k=3))
    subjects, rows = np.array([0, 2, 3]), np.array([0, 9, 3])
    assert requirements.met(subjects, np.zeros((3, 1))).tolist() == [False, False, True]
    assert requirements.met(subjects, np.zeros((3, 1)), size=rows).tolist() == [False, True, True]


def test_shortfalls_name_the_requirement_the_gap_and_what_is_reached():
    policy = Policy("p", (), ("s",), k=12, l=Diversity("entropy", 3), t=Closeness(0.1))
    requirements = Requirements(pa.table({"s": [0, 1]}), np.array([0.5, 0.5]), policy)
    k, diversity, close = requirements.shortfalls(10, [9.0, 1.0])
    assert "k = 12" in k
    assert "2 too few; k = 10 is reached" in k
    assert "l (entropy) of s = 3 is asked" in diversity
    assert "have 1.384, off by 1.616" in diversity
    assert "t (equal) of s = 0.1 is asked" in close
    assert "have 0.4, off by 0.3" in close
    assert requirements.shortfalls(20, [10.0, 10.0])[:1] != requirements.shortfalls(10, [5.0, 5.0])[:1]
