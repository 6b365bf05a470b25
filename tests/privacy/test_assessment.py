import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facecrowd.privacy.assessment import FORMAT, assess, cost_curve, levels, stricter
from facecrowd.privacy.cells import SUPPRESSED, CellPlan, cells, planned
from facecrowd.privacy.classes import histogram
from facecrowd.privacy.closeness import t_closeness
from facecrowd.privacy.errors import EmptyTableError, PlanError, UnreachableError
from facecrowd.privacy.policy import Closeness, Diversity, Policy
from facecrowd.privacy.verdict import judge

ROLES = ("person", ("x", "y"), ("ill", "rich"))


def table_of(seed=0, people=40):
    rng = np.random.default_rng(seed)
    person = np.append(np.arange(people), rng.integers(0, people, people))
    qi = {"x": rng.integers(0, 3, 2 * people), "y": rng.integers(0, 2, 2 * people).astype(bool)}
    sensitive = {"ill": rng.choice(["cold", "flu", "rash"], 2 * people), "rich": rng.integers(0, 2, 2 * people)}
    return cells(person, qi, sensitive)


def population_of(table):
    """Thrice the people of every cell."""
    vectors = table.partial.classes.take(np.repeat(np.arange(len(table)), 3 * table.histogram.subjects))
    return cells(np.arange(vectors.num_rows), vectors)


def suppress_small(table, policy):
    """Every cell a class, those of fewer than k people left out: the simplest planner there is."""
    kept = table.histogram.subjects >= (policy.k or 1)
    if not kept.any():
        raise UnreachableError(f"k = {policy.k}: no cell has so many people")
    return CellPlan(
        np.where(kept, np.cumsum(kept) - 1, SUPPRESSED), table.codes[kept], table.codes[kept], "suppress small"
    )


def one_class(table, policy):
    """Everybody in one class that shows nothing."""
    high = np.array([[attribute.size - 1 for attribute in table.attributes]], np.int32)
    return CellPlan(np.zeros(len(table), int), np.zeros_like(high), high, "one class")


DIVERSITIES = [None, Diversity("distinct", 2), Diversity("entropy", 1.2), Diversity("recursive", 2, 3.0)]
POLICIES = st.builds(
    lambda k, diversity, t, ground: Policy(*ROLES, k=k, l=diversity, t=Closeness(t, ground)),
    st.integers(1, 6),
    st.sampled_from(DIVERSITIES),
    st.sampled_from([0.1, 0.3]),
    st.sampled_from(["equal", "hamming"]),
)


@given(st.integers(0, 200), POLICIES)
@settings(max_examples=25)
def test_the_levels_are_the_strictest_that_the_verdict_accepts(seed, policy):
    found = table_of(seed).histogram
    held = {level.name: level.value for level in levels(found, policy)}
    for requirement in judge(found, policy).requirements:
        if requirement.name.startswith("l (recursive) of "):
            name = requirement.name.replace("l (recursive) of ", "c (recursive, l = 2) of ")
        else:
            name = requirement.name
        assert held[name] == requirement.found


@given(st.integers(0, 200))
@settings(max_examples=25)
def test_the_joint_t_is_the_one_of_every_class_though_few_are_solved(seed):
    rng = np.random.default_rng(seed)
    found = histogram(
        np.arange(300),
        class_ids=rng.integers(0, 60, 300),
        sensitive={"a": rng.integers(0, 3, 300), "b": rng.integers(0, 2, 300), "c": rng.integers(0, 2, 300)},
    )
    (joint,) = [level for level in levels(found) if level.name == "t (hamming)"]
    expected = t_closeness(found, "hamming")
    assert joint.value == pytest.approx(expected.value, abs=1e-12)
    assert expected.per_class[joint.worst_class.index] == pytest.approx(expected.value, abs=1e-12)


def test_the_farthest_class_is_found_though_forty_others_have_more_mass_to_move():
    # forty classes of one a (half the mass moves, a third of the way); one class moves less mass, all the way
    rng = np.random.default_rng(0)
    a, ids = [], []
    for c in range(40):
        a += [(c % 2, b, d) for b in (0, 1) for d in (0, 1) for _ in range(5)]
        ids += [c] * 20
    a += [(0, 0, 0)] * 9 + [(b, d, e) for b in (0, 1) for d in (0, 1) for e in (0, 1)] * 2
    ids += [40] * 25
    columns = dict(zip("abc", np.array(a).T, strict=True))
    found = histogram(rng.permutation(len(ids)), class_ids=ids, sensitive=columns)
    total_variation, hamming = t_closeness(found, "equal"), t_closeness(found, "hamming")
    assert total_variation.per_class.argsort()[0] == hamming.worst_class == 40
    (joint,) = [level for level in levels(found) if level.name == "t (hamming)"]
    assert (joint.worst_class.index, joint.value) == (40, pytest.approx(hamming.value))


def test_what_no_value_satisfies_is_said_and_is_none_in_json():
    found = histogram([1, 2, 3], class_ids=[0, 0, 1], sensitive={"ill": ["a", "b", "a"]})
    (delta,) = [level for level in levels(found) if level.name == "delta of ill"]
    assert str(delta).startswith("delta of ill: holds for no value")
    assert delta.as_dict()["value"] is None


def test_people_decide_k_and_rows_stand_beside_it():
    found = histogram(["a"] * 5 + ["b"], class_ids=[0] * 6)
    held = {level.name: level.value for level in levels(found, epsilon=0.5)}
    assert held == {"k": 2, "k (rows)": 6, "effective k": 6 / 5, "epsilon": 0.5}


def test_the_three_questions_are_answered_in_words_and_in_json():
    table = table_of()
    policy = Policy(*ROLES, k=3, t=Closeness(0.3, "hamming"), max_suppression=0.5)
    answer = assess(table, policy, planner=suppress_small, population=population_of(table))
    text = "\n".join(answer.lines())
    for words in ("is it private now?", "k: asked 3", "worst class: ", "how private is it?", "k-map: ", "delta of ill"):
        assert words in text
    for words in ("journalist risk", "alone in their class", "can it be more private?", "k = 20, t (hamming) = 0.3"):
        assert words in text
    plain = json.loads(json.dumps(answer.as_dict(), allow_nan=False))
    assert plain["format"] == FORMAT
    assert plain["met"] is answer.verdict.met
    assert set(plain) == {"format", "met", "verdict", "levels", "uniqueness", "risks", "loss", "curve"}
    assert set(plain["levels"][0]) == {"name", "value", "better", "worst_class", "note"}
    assert set(plain["curve"][0]) == {"asked", "k", "l", "t", "reached", "why", "classes", "loss"}
    requirement = {"name", "asked", "found", "met", "worst_class", "note"}
    assert set(plain["verdict"]["requirements"][0]) == requirement


def test_a_plan_is_assessed_as_it_releases_the_table():
    table = table_of()
    policy = Policy(*ROLES, k=7)
    plan = suppress_small(table, policy)
    answer = assess(table, policy, plan=plan, population=population_of(table))
    assert answer.met
    assert table.histogram.subjects.min() < 7
    assert answer.loss.rows_suppressed == table.histogram.rows[table.histogram.subjects < 7].sum()
    assert answer.verdict.rows == table.histogram.total_rows - answer.loss.rows_suppressed
    assert answer.verdict.classes == planned(table, plan).classes.num_rows
    assert [risk.adversary for risk in answer.risks] == ["prosecutor", "journalist", "marketer"]
    assert answer.risks[1].maximum <= answer.risks[0].maximum <= 1 / 7


def test_each_stricter_policy_tightens_one_thing():
    table = table_of().histogram
    policy = Policy(*ROLES, k=5, l=Diversity("entropy", 1.2), t=Closeness(0.2))
    grid = stricter(policy, table)
    assert grid[0] == policy
    assert [p.k for p in grid[1:] if p.k != 5] == [10, 20]  # 50 exceeds the people there are
    assert [p.l.value for p in grid if p.l != policy.l] == [1.25, 1.5, 1.75, 2.0]  # rich has two values
    assert [p.t.value for p in grid if p.t != policy.t] == [0.15, 0.1, 0.05]
    changed = [(p.k != policy.k) + (p.l != policy.l) + (p.t != policy.t) for p in grid[1:]]
    assert set(changed) == {1}
    whole = stricter(Policy(*ROLES, l=Diversity("distinct", 1), t=Closeness(4.0, np.ones((6, 6)) - np.eye(6))), table)
    assert [p.l.value for p in whole if p.l.value != 1] == [2]
    assert [p.t.value for p in whole if p.t.value != 4] == [2, 1, 0.5]
    recursive = stricter(Policy(*ROLES, l=Diversity("recursive", 2, 3.0)), table)
    assert [p.l.c for p in recursive if p.l.c != 3] == [2, 1.5, 1]


def test_the_curve_says_what_each_policy_takes():
    table = table_of()
    curve = cost_curve(table, [Policy(*ROLES, k=k) for k in (1, 4, 40)], suppress_small)
    assert [cost.reached for cost in curve] == [True, True, False]
    suppressed = [cost.loss.rows_suppressed for cost in curve[:2]]
    assert suppressed == sorted(suppressed)
    assert curve[0].loss.ncp == 0
    assert curve[2].why == "k = 40: no cell has so many people"
    assert str(curve[2]) == "k = 40: not reached: k = 40: no cell has so many people"


def test_a_planner_is_not_taken_at_its_word():
    table = table_of()
    impossible = Policy(*ROLES, k=2, l=Diversity("distinct", 3))
    (cost,) = cost_curve(table, [impossible], one_class)
    assert not cost.reached
    assert cost.why == "l (distinct) of rich is 2 where 3 is asked"
    assert "NOT reached" in str(cost)
    (cost,) = cost_curve(
        table, [Policy(*ROLES, k=30, max_suppression=0.0)], lambda t, p: suppress_small(t, Policy(*ROLES, k=6))
    )
    assert "k is " in cost.why
    nothing = np.zeros((0, 2), np.int32)
    (cost,) = cost_curve(table, [impossible], lambda t, _: CellPlan(np.full(len(t), SUPPRESSED), nothing, nothing, ""))
    assert (cost.reached, cost.why) == (False, "the plan suppresses every row")


def test_an_error_of_the_planner_that_is_none_of_the_table_is_raised():
    with pytest.raises(ZeroDivisionError):
        cost_curve(table_of(), [Policy(*ROLES, k=2)], lambda cells, policy: 1 // 0)


def test_bad_input_is_named():
    table = table_of()
    policy = Policy(*ROLES, k=2)
    with pytest.raises(PlanError, match="only cells can be planned"):
        assess(table.histogram, policy, planner=one_class)
    with pytest.raises(PlanError, match="of 3 cells"):
        assess(table, policy, plan=CellPlan(np.zeros(3, int), table.codes[:1], table.codes[:1], "other"))
    nothing = np.zeros((0, 2), np.int32)
    with pytest.raises(EmptyTableError, match="suppresses every row"):
        assess(table, policy, plan=CellPlan(np.full(len(table), SUPPRESSED), nothing, nothing, "none"))


def test_a_table_of_classes_is_assessed_without_a_plan():
    released = histogram(["a", "b", "c"], class_ids=[4, 4, 9], sensitive={"s": [1, 2, 1]})
    answer = assess(released, Policy("subject", (), ("s",), k=2), population_size=30)
    assert not answer.met
    assert answer.curve == ()
    assert answer.uniqueness.population == 30
    assert "class = 9 (1 subject, 1 row)" in answer.lines()[2]


def test_the_real_table_is_assessed(celeba):
    quasi = tuple(celeba.column_names[3:15])
    policy = Policy("subject_id", quasi, ("Young", "Smiling"), k=10, l=Diversity("entropy", 1.5))
    table = cells(celeba["subject_id"], celeba.select(list(quasi)), celeba.select(["Young", "Smiling"]))
    answer = assess(table, policy, planner=suppress_small, population_size=1_000_000)
    assert not answer.met
    assert [cost.reached for cost in answer.curve[:1]] == [False]  # suppression alone does not give l
    assert answer.risks[0].maximum == 1
    assert pa.table(celeba).num_rows == answer.verdict.rows == 202_599
