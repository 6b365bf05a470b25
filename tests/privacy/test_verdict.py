import json

import numpy as np
import pyarrow as pa
import pytest

from facecrowd.privacy.classes import histogram
from facecrowd.privacy.closeness import t_closeness
from facecrowd.privacy.diversity import entropy_l
from facecrowd.privacy.errors import ColumnError, PolicyError, TooFewSubjectsError
from facecrowd.privacy.verdict import Closeness, Diversity, Policy, WorstClass, judge, table_histogram

TABLE = pa.table(
    {
        "person": ["a", "a", "a", "b", "c", "d", "e"],
        "Male": [False, False, False, False, True, True, True],
        "Attractive": [True, True, True, False, True, True, True],
        "Chubby": [True, True, True, False, False, False, True],
    }
)
ROLES = {"subject": "person", "quasi_identifiers": ("Male",), "sensitive": ("Attractive", "Chubby")}


def verdict(**asked):
    policy = Policy(**ROLES, **asked)
    return judge(table_histogram(TABLE, policy), policy)


def test_k_is_met_by_people_and_names_its_worst_class():
    (k,) = verdict(k=2).requirements
    assert k.met
    assert (k.found, k.worst_class.shows, k.worst_class.subjects, k.worst_class.rows) == (2, {"Male": False}, 2, 4)
    assert "effective k 1.33" in k.note
    failed = verdict(k=3)
    assert not failed.met
    assert [r.name for r in failed.failures] == ["k"]


def test_rows_are_counted_only_when_asked_and_said_so():
    policy = Policy(**ROLES, k=3)
    (k,) = judge(table_histogram(TABLE, policy), policy, unit="rows").requirements
    assert k.met
    assert "rows counted, not people" in k.note


def test_l_is_held_for_each_sensitive_attribute_on_its_own():
    requirements = verdict(l=Diversity("distinct", 2)).requirements
    assert [(r.name, r.found, r.met) for r in requirements] == [
        ("l (distinct) of Attractive", 1, False),
        ("l (distinct) of Chubby", 2, True),
    ]
    assert requirements[0].worst_class.shows == {"Male": True}


@pytest.mark.parametrize("n", range(2, 12))
def test_entropy_l_of_n_equal_values_is_n_despite_rounding(n):
    table = pa.table({"p": range(n), "q": [0] * n, "s": range(n)})
    policy = Policy("p", ("q",), ("s",), l=Diversity("entropy", n))
    assert judge(table_histogram(table, policy), policy).met


def test_recursive_diversity_needs_more_than_the_found_ratio():
    table = pa.table({"p": np.arange(100), "q": [0] * 100, "s": [0] * 98 + [1] * 2})
    for c, met in ((49.0, False), (49.1, True)):
        policy = Policy("p", ("q",), ("s",), l=Diversity("recursive", 2, c=c))
        assert judge(table_histogram(table, policy), policy).met is met


def test_t_is_joint_for_hamming_and_per_attribute_otherwise():
    joint = verdict(t=Closeness(0.2, "hamming")).requirements
    assert [r.name for r in joint] == ["t (hamming)"]
    policy = Policy(**ROLES)
    found = table_histogram(TABLE, policy)
    assert joint[0].found == t_closeness(found, "hamming").value
    each = verdict(t=Closeness(0.2, "equal")).requirements
    assert [(r.name, r.found) for r in each] == [
        (f"t (equal) of {a}", t_closeness(found, attribute=a).value) for a in ROLES["sensitive"]
    ]


def test_epsilon_and_suppression_are_held_against_what_was_spent():
    policy = Policy(**ROLES, epsilon=1.0, max_suppression=0.1)
    found = table_histogram(TABLE, policy)
    assert [r.met for r in judge(found, policy).requirements] == [False, True]
    spent = judge(found, policy, epsilon=0.5, suppressed_rows=1).requirements
    assert [(r.found, r.met) for r in spent] == [(0.5, True), (1 / 8, False)]


def test_clusters_are_never_a_formal_claim():
    policy = Policy(**ROLES, k=2)
    (k,) = judge(table_histogram(TABLE, policy), policy, clustered=True).requirements
    assert "not a formal claim" in k.note


def test_a_partition_without_attributes_is_judged_by_its_classes():
    (k,) = judge(histogram(["a", "b", "c"], class_ids=[4, 4, 9]), Policy("subject", (), k=2)).requirements
    assert not k.met
    assert k.worst_class.shows == {"class": 9}


@pytest.mark.parametrize(
    "asked,words",
    [
        ({"k": 0}, "k is 0"),
        ({"quasi_identifiers": ("Chubby",)}, "both a quasi-identifier and sensitive"),
        ({"quasi_identifiers": ("person",)}, "cannot also be an attribute"),
        ({"sensitive": (), "t": Closeness(0.1)}, "no attribute is sensitive"),
        ({"t": Closeness(0.0)}, "t is 0"),
        ({"l": Diversity("distinct", 0.5)}, "l is 0.5"),
        ({"l": Diversity("recursive", 2)}, "positive c"),
        ({"l": Diversity("entropy", 2, c=1.0)}, "c belongs to recursive"),
        ({"epsilon": -1.0}, "epsilon is -1"),
        ({"max_suppression": 2.0}, "share of rows"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(asked, words):
    with pytest.raises(PolicyError, match=words):
        Policy(**{**ROLES, **asked})


def test_a_policy_that_does_not_fit_the_table_is_refused():
    with pytest.raises(ColumnError, match="the policy names column 'Bald'"):
        table_histogram(TABLE, Policy("person", ("Bald",)))
    with pytest.raises(TooFewSubjectsError, match="k = 9 is asked of a table with 5 subjects"):
        verdict(k=9)


def test_a_verdict_reads_as_a_line_per_requirement():
    lines = verdict(k=3, l=Diversity("distinct", 1), epsilon=1.0).lines()
    assert lines[0] == "no: 2 of 4 requirements not met"
    assert lines[1].startswith(
        "  k: asked 3, found 2: NOT MET; worst class: none of 1 attributes (2 subjects, 4 rows); "
    )
    assert lines[2] == "  l (distinct) of Attractive: asked 1, found 1: met; worst class: Male (3 subjects, 3 rows)"
    assert verdict(k=2).lines()[0] == "yes: 1 requirement met"
    assert verdict().lines() == ["the policy asks for nothing"]


def test_a_class_of_many_attributes_is_a_short_line():
    shows = {f"a{i}": i % 2 == 0 for i in range(30)} | {"Age": "[20, 30]", "Hat": "*"}
    assert str(WorstClass(0, shows, 1, 2)) == (
        "a0, a2, a4, a6, a8, a10, a12, a14, 8 more, not the other 15, 1 left open (1 subject, 2 rows)"
    )
    labelled = {name: str(value) for name, value in shows.items()}
    assert str(WorstClass(0, labelled, 1, 2)) == str(WorstClass(0, shows, 1, 2))


def test_a_verdict_is_plain_values_and_infinity_is_none():
    plain = json.loads(json.dumps(verdict(k=3, epsilon=1.0).as_dict(), allow_nan=False))
    assert [(r["name"], r["found"], r["met"]) for r in plain["requirements"]] == [
        ("k", 2, False),
        ("epsilon", None, False),
    ]
    assert plain["requirements"][0]["worst_class"] == {"index": 0, "shows": {"Male": False}, "subjects": 2, "rows": 4}


def test_the_verdict_on_the_real_table_is_the_measures_worst(celeba):
    quasi = tuple(celeba.column_names[3:15])
    policy = Policy(
        "subject_id", quasi, ("Young", "Smiling"), k=10, l=Diversity("entropy", 1.5), t=Closeness(0.2, "hamming")
    )
    found = table_histogram(celeba, policy)
    verdict = judge(found, policy)
    assert [r.name for r in verdict.failures] == ["k", "l (entropy) of Young", "l (entropy) of Smiling", "t (hamming)"]
    assert verdict.requirements[1].found == entropy_l(found, "Young").value
    assert (verdict.rows, verdict.subjects, verdict.classes) == (202_599, 10_177, len(found.subjects))
