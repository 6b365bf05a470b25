import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy.classes import histogram
from facecrowd.privacy.errors import ColumnError, GroundDistanceError, ReferenceDistributionError
from facecrowd.privacy.likeness import beta_likeness, delta_disclosure

CLASSES = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), min_size=1, max_size=6)


def classes_of(classes):
    ids = np.repeat(np.arange(len(classes)), [len(c) for c in classes])
    return histogram(np.arange(len(ids)), class_ids=ids, sensitive={"s": [v for c in classes for v in c]})


@given(CLASSES)
def test_likeness_is_its_definition_in_every_class(classes):
    found = classes_of(classes)
    everybody = [v for c in classes for v in c]
    q = {v: everybody.count(v) / len(everybody) for v in set(everybody)}
    for i, members in enumerate(classes):
        p = {v: members.count(v) / len(members) for v in q}
        delta = max(abs(math.log(p[v] / q[v])) if p[v] else math.inf for v in q)
        assert delta_disclosure(found).per_class[i] == pytest.approx(delta, abs=1e-9)
        present = max(abs(math.log(p[v] / q[v])) for v in q if p[v])
        assert delta_disclosure(found, absent=False).per_class[i] == pytest.approx(present, abs=1e-9)
        gains = {v: (p[v] - q[v]) / q[v] for v in q}
        beta = max(0.0, *gains.values())
        assert beta_likeness(found).per_class[i] == pytest.approx(beta, abs=1e-9)
        allowed = all(gain <= -math.log(q[v]) + 1e-9 for v, gain in gains.items())
        enhanced = beta_likeness(found, enhanced=True).per_class[i]
        assert enhanced == pytest.approx(beta if allowed else math.inf, abs=1e-9)
    for measure in (delta_disclosure(found), beta_likeness(found)):
        assert measure.value == measure.per_class.max()


@given(CLASSES)
def test_a_smaller_delta_never_allows_a_larger_gain(classes):
    found = classes_of(classes)
    assert (beta_likeness(found).per_class <= np.expm1(delta_disclosure(found).per_class) + 1e-9).all()
    assert (beta_likeness(found).per_class <= beta_likeness(found, enhanced=True).per_class).all()


@given(CLASSES)
def test_merging_two_classes_never_makes_the_worst_likeness_worse(classes):
    merged = [[*classes[0], *(classes[1] if len(classes) > 1 else [])], *classes[2:]]
    for measure in (delta_disclosure, beta_likeness):
        assert measure(classes_of(merged)).value <= measure(classes_of(classes)).value + 1e-9


def test_one_class_of_everybody_discloses_nothing():
    found = classes_of([["a", "b", "b"]])
    assert delta_disclosure(found).value == beta_likeness(found).value == beta_likeness(found, enhanced=True).value == 0


def test_ten_photos_of_one_illness_are_one_person_who_has_it():
    people = ["ann"] * 10 + ["bob"] + ["cyd", "dan"]
    ill = ["flu"] * 10 + ["cold"] + ["flu", "cold"]
    found = histogram(people, class_ids=[0] * 11 + [1] * 2, sensitive={"illness": ill})
    assert delta_disclosure(found).value == beta_likeness(found).value == 0


def test_a_value_that_a_class_lacks_is_disclosed():
    assert delta_disclosure(classes_of([["a", "b"], ["a", "a"]])).per_class.tolist()[1] == math.inf


def test_enhanced_likeness_never_lets_a_value_be_certain():
    # gain of a: (1 - 0.5) / 0.5 = 1 > -ln 0.5
    assert beta_likeness(classes_of([["a", "a"], ["b", "b"]])).value == 1
    assert beta_likeness(classes_of([["a", "a"], ["b", "b"]]), enhanced=True).value == math.inf


def test_a_public_distribution_takes_the_place_of_the_tables():
    found = classes_of([["a", "b"]])
    public = {"a": 0.25, "b": 0.75}
    assert delta_disclosure(found, reference=public).value == pytest.approx(math.log(2))
    assert beta_likeness(found, reference=public).value == pytest.approx(1)
    assert beta_likeness(found, reference={"a": 1.0}).value == math.inf
    assert delta_disclosure(found, reference={"a": 0.5, "b": 0.25, "c": 0.25}).value == math.inf


def test_bad_input_is_named():
    found = classes_of([["a", "b"]])
    for measure in (delta_disclosure, beta_likeness):
        with pytest.raises(ColumnError, match="'z' is not a sensitive"):
            measure(found, "z")
        with pytest.raises(ReferenceDistributionError, match="sums to 2"):
            measure(found, reference={"a": 1.0, "b": 1.0})
        with pytest.raises(GroundDistanceError, match="no sensitive"):
            measure(histogram(["p"], class_ids=[0]))
