import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy.anonymity import k_anonymity, k_map, population_counts, population_of_plan
from facecrowd.privacy.cells import CellPlan, cells
from facecrowd.privacy.classes import histogram
from facecrowd.privacy.errors import ColumnError, LengthError, PolicyError, PopulationError
from facecrowd.privacy.risk import journalist_risk, marketer_risk, prosecutor_risk

SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12)


def people(sizes):
    return histogram(np.arange(sum(sizes)), class_ids=np.repeat(np.arange(len(sizes)), sizes))


@given(SIZES, st.sampled_from([0.1, 0.2, 0.5, 1.0]))
def test_risks_are_what_an_adversary_gets_right_person_by_person(sizes, threshold):
    here, everywhere = [k for k, _ in sizes], [k + more for k, more in sizes]
    released, n = people(here), sum(here)
    right = [1 / k for k in here for _ in range(k)]
    prosecutor = prosecutor_risk(released, threshold=threshold)
    assert prosecutor.maximum == max(right)
    assert prosecutor.average == pytest.approx(sum(right) / n)
    assert prosecutor.at_risk == pytest.approx(sum(r > threshold + 1e-12 for r in right) / n)
    right = [1 / f for k, f in zip(here, everywhere, strict=True) for _ in range(k)]
    journalist = journalist_risk(released, np.array(everywhere), threshold=threshold)
    assert journalist.maximum == max(right) == 1 / k_map(released, np.array(everywhere)).value
    assert journalist.average == pytest.approx(max(sum(right) / n, len(here) / sum(everywhere)))
    assert journalist.at_risk == pytest.approx(sum(r > threshold + 1e-12 for r in right) / n)
    assert marketer_risk(released, np.array(everywhere)).average == pytest.approx(sum(right) / n)
    assert marketer_risk(released).average == pytest.approx(prosecutor.average)


@given(SIZES)
def test_who_does_not_know_who_is_in_the_release_never_does_better(sizes):
    released, everywhere = people([k for k, _ in sizes]), np.array([k + more for k, more in sizes])
    prosecutor, journalist = prosecutor_risk(released), journalist_risk(released, everywhere)
    assert journalist.maximum <= prosecutor.maximum
    assert journalist.average <= prosecutor.average + 1e-12
    assert journalist.at_risk <= prosecutor.at_risk
    assert marketer_risk(released, everywhere).average <= journalist.average + 1e-12
    assert k_map(released, everywhere).value >= k_anonymity(released).value


def test_a_class_of_five_is_not_above_a_fifth():
    assert prosecutor_risk(people([5, 5])).at_risk == 0
    assert prosecutor_risk(people([5, 4])).at_risk == pytest.approx(4 / 9)


def test_arxs_example_of_seven_people_in_three_classes():
    released = people([2, 2, 3])
    assert (prosecutor_risk(released).average, prosecutor_risk(released).maximum) == (0.42857142857142855, 0.5)


def test_people_are_counted_and_rows_only_when_asked():
    released = histogram(["ann"] * 10 + ["bob", "cyd"], class_ids=[0] * 11 + [1])
    assert prosecutor_risk(released).maximum == 1
    assert prosecutor_risk(released).average == 2 / 3
    assert prosecutor_risk(released, unit="rows").average == 2 / 12


def test_risks_are_plain_values():
    assert json.loads(json.dumps(marketer_risk(people([2, 3])).as_dict())) == {
        "adversary": "marketer",
        "unit": "subjects",
        "average": 0.4,
        "maximum": None,
        "threshold": None,
        "at_risk": None,
    }


POPULATION = {"Male": [0, 0, 0, 1, 1, 1, 1], "Hair": ["a", "a", "b", "b", "b", "b", "c"]}


def test_k_map_matches_classes_by_what_they_show():
    released = histogram([1, 2, 3], quasi_identifiers={"Male": [0, 1, 1], "Hair": ["a", "b", "b"]})
    population = histogram(np.arange(7), quasi_identifiers={**POPULATION, "City": list("xxyyxyx")})
    with pytest.raises(PopulationError, match="in the population; a population includes"):
        k_map(released, histogram(np.arange(2), quasi_identifiers={"Male": [0, 1], "Hair": ["a", "c"]}))
    population = histogram(np.arange(7), quasi_identifiers=POPULATION)
    assert population_counts(released, population).tolist() == [2, 3]
    assert k_map(released, population).value == 2
    assert released.describe(k_map(released, population).worst_class) == {"Male": 0, "Hair": "a"}


@given(st.integers(0, 300))
def test_a_generalised_class_fits_everybody_inside_its_intervals(seed):
    rng = np.random.default_rng(seed)
    qi = {"x": rng.integers(0, 4, 25), "y": rng.integers(0, 3, 25)}
    qi["x"][:4], qi["y"][:3] = range(4), range(3)
    table = cells(np.arange(25), qi)
    low = np.stack([rng.integers(0, 4, 6), rng.integers(0, 3, 6)], 1).astype(np.int32)
    high = np.maximum(low, np.stack([rng.integers(0, 4, 6), rng.integers(0, 3, 6)], 1)).astype(np.int32)
    plan = CellPlan(np.arange(len(table)) % 6, low, high, "given")
    theirs = {"x": rng.integers(0, 6, 40), "y": rng.integers(0, 3, 40)}
    whole = (low == 0) & (high == [3, 2])
    expected = [
        sum(
            all(low[c, a] <= theirs[name][person] <= high[c, a] or whole[c, a] for a, name in enumerate(("x", "y")))
            for person in range(40)
        )
        for c in range(6)
    ]
    assert population_of_plan(table, plan, cells(np.arange(40), theirs)).tolist() == expected


def test_bad_input_is_named():
    released = people([2, 3])
    with pytest.raises(LengthError, match="one whole number per class"):
        k_map(released, [3])
    with pytest.raises(LengthError, match="one whole number per class"):
        k_map(released, [3.5, 4.5])
    with pytest.raises(PopulationError, match="2 subjects in the release and 1 in the population"):
        journalist_risk(released, [1, 3])
    with pytest.raises(ColumnError, match="no column 'class'"):
        k_map(released, histogram([1], quasi_identifiers={"Male": [0]}))
    with pytest.raises(ColumnError, match="other types"):
        k_map(released, histogram([1], class_ids=["text"]))
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(PolicyError, match="it is a probability"):
            prosecutor_risk(released, threshold=threshold)
    table = cells([1, 2], {"x": [0, 1]})
    plan = CellPlan(np.array([0, 0]), np.array([[0]], np.int32), np.array([[1]], np.int32), "given")
    with pytest.raises(ColumnError, match="no column 'x'"):
        population_of_plan(table, plan, cells([1], {"y": [0]}))
    with pytest.raises(PopulationError, match="several vectors"):
        population_of_plan(table, plan, cells([1, 1], pa.table({"x": [0, 1]}), per_subject=False))
