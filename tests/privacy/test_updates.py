"""A later release that keeps its own policy can undo an earlier one; an extension cannot."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facecrowd.privacy.attributes import Hierarchy
from facecrowd.privacy.cells import CellPlan, cells, planned
from facecrowd.privacy.errors import ColumnError, PolicyError, UnreachableError
from facecrowd.privacy.mondrian import mondrian
from facecrowd.privacy.policy import Closeness, Diversity, Policy
from facecrowd.privacy.updates import ABSENT, Published, check_updates, extend
from facecrowd.privacy.verdict import judge

POLICY = Policy("subject", ("a", "b", "c"), ("sick",), k=3)


def table(names, seed=0, bits=3, moved=()):
    """People by number, each with attributes of their own whoever else is there; those in ``moved`` have changed."""
    rows = [np.random.default_rng([seed, n, 1 if n in moved else 0]).integers(0, 2, bits + 1) for n in names]
    return cells(
        np.array(names),
        {n: [r[i] for r in rows] for i, n in enumerate("abcdefgh"[:bits])},
        {"sick": [r[-1] for r in rows]},
    )


def published(names, policy=POLICY, **options):
    some = table(names, **options)
    return Published(some, mondrian(some, policy))


def test_two_releases_of_k_each_can_leave_a_crowd_of_one():
    """Four people in two pairs, and then in the other two pairs."""
    people = cells(np.arange(4), {"a": [0, 0, 1, 1], "b": [0, 1, 0, 1]})
    shown = np.zeros((2, 2), dtype=np.int32)
    rows, columns = (Published(people, CellPlan(np.array(c), shown, shown, "")) for c in ([0, 0, 1, 1], [0, 1, 0, 1]))
    found = check_updates(rows, columns, 2)
    assert found.crowd.tolist() == [1, 1, 1, 1]
    assert not found.holds
    assert found.below().to_pylist() == [0, 1, 2, 3]
    assert check_updates(rows, rows, 2).holds
    assert check_updates([rows, rows], columns, 2).crowd.tolist() == [1, 1, 1, 1]


@given(st.data())
def test_crowds_are_those_with_the_same_classes_throughout(data):
    releases, where = [], []
    for _ in range(3):
        names = sorted(data.draw(st.sets(st.integers(0, 12), min_size=1)))
        class_of = data.draw(st.lists(st.integers(-1, 2), min_size=len(names), max_size=len(names)))
        some = cells(np.array(names), {"a": np.array(names)})
        shown = np.zeros((3, 1), dtype=np.int32)
        releases.append(Published(some, CellPlan(np.array(class_of), shown, shown, "")))
        where.append(dict(zip(names, class_of, strict=True)))
    everybody = sorted({n for one in where for n, c in one.items() if c != ABSENT})
    if not everybody:
        return
    found = check_updates(releases[:2], releases[2], 2)
    path = {n: tuple(one.get(n, ABSENT) for one in where) for n in everybody}
    count = Counter(path.values())
    assert found.subjects.to_pylist() == everybody
    assert found.crowd.tolist() == [count[path[n]] for n in everybody]
    assert found.new.tolist() == [path[n][:2] == (ABSENT, ABSENT) for n in everybody]
    assert found.left.tolist() == [path[n][2] == ABSENT for n in everybody]


grown = st.tuples(
    st.sets(st.integers(0, 60), min_size=12, max_size=40),
    st.sets(st.integers(61, 110), max_size=25),
    st.sets(st.integers(0, 60), max_size=4),
    st.sets(st.integers(0, 60), max_size=6),
    st.integers(0, 30),
)


@given(
    grown,
    st.sampled_from([None, Diversity("distinct", 2), Diversity("entropy", 1.6)]),
    st.sampled_from([None, 0.15, 0.4]),
    st.integers(2, 5),
)
@settings(max_examples=40)
def test_an_extension_keeps_the_policy_and_everybodys_crowd(case, diversity, t, k):
    first, more, gone, moved, seed = case
    policy = replace(POLICY, k=k, l=diversity, t=None if t is None else Closeness(t))
    try:
        earlier = published(sorted(first), policy, seed=seed)
    except UnreachableError:
        return
    names = sorted((first - gone) | more)
    later = table(names, seed=seed, moved=moved)
    try:
        found = extend(earlier, later, policy)
    except UnreachableError:  # the next test: never without need
        return
    assert judge(planned(found.cells, found.plan), policy).met
    updates = check_updates(earlier, found, k)
    assert updates.holds
    # an earlier class is still one class
    of = dict(zip(found.subjects.to_pylist(), found.class_of_subject.tolist(), strict=True))
    was = dict(zip(earlier.subjects.to_pylist(), earlier.class_of_subject.tolist(), strict=True))
    together = {}
    for n in set(of) & set(was):
        assert together.setdefault(was[n], of[n]) == of[n]
    # only those are left out whom no plan could have hidden
    stay = Counter(was[n] for n in of if n in was)
    fresh = sum(n not in was for n in of)
    for n, c in of.items():
        if c == ABSENT:
            assert (stay[was[n]] if n in was else fresh) < k
    # and a third release extends both, with people who come back
    names = sorted({*first, *range(200, 200 + 2 * k)} - moved)
    try:
        third = extend([earlier, found], table(names, seed=seed, moved=moved), policy)
    except UnreachableError:
        return
    assert check_updates([earlier, found], third, k).holds


@given(st.sets(st.integers(0, 60), min_size=12, max_size=30), st.sets(st.integers(61, 90), min_size=4, max_size=20))
def test_what_the_grown_table_can_meet_at_all_an_extension_meets(first, more):
    policy = replace(POLICY, l=Diversity("entropy", 1.5), t=Closeness(0.2))
    try:
        earlier = published(sorted(first), policy)
    except UnreachableError:
        return
    later = table(sorted(first | more))
    everybody = later.regroup(np.zeros(len(later), dtype=np.int64))
    if judge(everybody, policy).met:
        assert extend(earlier, later, policy).plan.classes >= 1
    else:
        with pytest.raises(UnreachableError, match="all people in one class do not"):
            extend(earlier, later, policy)


def test_break_it_planning_the_grown_table_anew_undoes_the_first_release():
    earlier = published(range(40), seed=1)
    later = table(range(60), seed=1)
    anew = check_updates(earlier, Published(later, mondrian(later, POLICY)), 3)
    assert judge(planned(later, mondrian(later, POLICY)), POLICY).met  # each release on its own is fine
    assert not anew.holds
    assert extend(earlier, later, POLICY).updates.holds


def test_nothing_changes_for_a_class_that_nobody_joins():
    earlier = published(range(40))
    found = extend(earlier, table(range(40)), POLICY)
    assert found.updates.holds
    before, after = earlier.plan.labels(earlier.cells.attributes), found.plan.labels(found.cells.attributes)
    assert sorted(map(str, before.to_pylist())) == sorted(map(str, after.to_pylist()))
    assert (planned(found.cells, found.plan).subjects.sum()) == 40


def test_an_earlier_class_shows_what_it_showed_also_when_a_member_changed():
    earlier = published(range(40))
    found = extend(earlier, table(range(40), moved=range(10)), POLICY)
    assert {str(r) for r in found.plan.labels(found.cells.attributes).to_pylist()} == {
        str(r) for r in earlier.plan.labels(earlier.cells.attributes).to_pylist()
    }


def test_break_it_the_last_release_alone_does_not_tell_who_came_back():
    """Two leave, and come back with new people: known from before, they are a crowd of two."""
    earlier = published(range(40))
    away = extend(earlier, table(range(2, 40)), POLICY)
    back = table(range(50))
    forgetful, mindful = extend(away, back, POLICY), extend([earlier, away], back, POLICY)
    assert not check_updates([earlier, away], forgetful, 3).holds
    assert check_updates([earlier, away], mindful, 3).holds
    assert (mindful.class_of_subject[:2] == ABSENT).all()


def test_fewer_than_k_newcomers_are_left_out_or_refused():
    earlier = published(range(40))
    later = table(range(42))
    found = extend(earlier, later, POLICY)
    assert (found.class_of_subject[40:] == ABSENT).all()
    assert "2 new people, who are fewer than k = 3" in found.plan.notes[-1]
    with pytest.raises(UnreachableError, match=r"suppression = 0.01 is asked.*2 new people"):
        extend(earlier, later, replace(POLICY, max_suppression=0.01))


def test_a_class_that_lost_too_many_people_is_left_out():
    earlier = published(range(40), replace(POLICY, k=5))
    crowd = earlier.class_of_subject
    victim = int(np.argmin(np.bincount(crowd)))
    inside = np.flatnonzero(crowd == victim)
    stay = sorted(set(range(40)) - set(inside[2:].tolist()))
    found = extend(earlier, table(stay), replace(POLICY, k=5))
    of = dict(zip(found.subjects.to_pylist(), found.class_of_subject.tolist(), strict=True))
    assert all(of[int(n)] == ABSENT for n in inside[:2])
    assert "of whose earlier class fewer than k = 5 are left" in found.plan.notes[-1]
    with pytest.raises(UnreachableError, match="nobody can be released"):
        extend(earlier, table(inside[:2].tolist()), replace(POLICY, k=5))


def test_new_values_and_hierarchies_keep_the_meaning_of_codes():
    hair = Hierarchy((("black", "dark", "*"), ("brown", "dark", "*"), ("blond", "light", "*"), ("red", "light", "*")))
    policy = Policy("subject", ("hair", "age"), k=2)

    def some(rows):
        names, values, ages = zip(*rows, strict=True)
        return cells(
            np.array(names), {"hair": values, "age": ages}, hierarchies={"hair": hair}, kinds={"age": "ordered"}
        )

    first = [(0, "black", 3), (1, "brown", 3), (2, "red", 5), (3, "red", 7)]
    old = some(first)
    earlier = Published(old, mondrian(old, policy))
    found = extend(earlier, some([*first, (4, "blond", 1), (5, "blond", 1)]), policy)
    shown = found.plan.labels(found.cells.attributes).to_pylist()
    assert {"hair": "blond", "age": "1"} in shown
    for row in earlier.plan.labels(old.attributes).to_pylist():
        assert row in shown
    assert found.updates.holds


def test_a_star_stays_a_star_when_the_domain_grows():
    policy = Policy("subject", ("age",), k=4)
    old = cells(np.arange(4), {"age": [3, 3, 5, 7]})
    earlier = Published(old, mondrian(old, policy))
    assert earlier.plan.labels(old.attributes).to_pylist() == [{"age": "*"}]
    found = extend(earlier, cells(np.arange(8), {"age": [3, 3, 5, 7, 1, 1, 1, 9]}), policy)
    assert {"age": "*"} in found.plan.labels(found.cells.attributes).to_pylist()
    assert {"age": "[3, 7]"} not in found.plan.labels(found.cells.attributes).to_pylist()


def test_bad_input_gets_one_clear_sentence():
    earlier = published(range(20))
    with pytest.raises(ColumnError, match="show the same"):
        extend(earlier, table(range(20), bits=2), replace(POLICY, quasi_identifiers=("a", "b")))
    words = cells(
        np.array([f"p{i}" for i in range(20)]), {n: np.arange(20) % 2 for n in "abc"}, {"sick": np.arange(20) % 2}
    )
    with pytest.raises(ColumnError, match="string"):
        extend(earlier, words, POLICY)
    with pytest.raises(ColumnError, match="different types"):
        check_updates(earlier, Published(words, mondrian(words, POLICY)), 3)
    with pytest.raises(PolicyError, match="no earlier release"):
        extend([], table(range(20)), POLICY)
    with pytest.raises(PolicyError, match="k is 0"):
        check_updates(earlier, earlier, 0)
    several = cells([1, 1, 2], {"a": [0, 1, 0]}, per_subject=False)
    with pytest.raises(PolicyError, match="several vectors"):
        Published(several, CellPlan(np.zeros(2, dtype=np.int64), several.codes[:1], several.codes[:1], ""))


def test_celeba_grown_by_a_tenth_keeps_every_crowd(celeba: pa.Table):
    names = ["Male", "Young", "Black_Hair", "Blond_Hair", "Brown_Hair", "Big_Nose", "Big_Lips", "Eyeglasses", "Bangs"]
    policy = Policy("subject_id", tuple(names), ("Attractive",), k=10, t=Closeness(0.3))
    known = np.asarray(celeba["subject_id"]) % 10 != 0

    def some(rows):
        return cells(rows["subject_id"], rows.select(names), rows.select(["Attractive"]))

    old, new = some(celeba.filter(pa.array(known))), some(celeba)
    earlier = Published(old, mondrian(old, policy))
    anew = check_updates(earlier, Published(new, mondrian(new, policy)), 10)
    assert len(anew.below()) > 100
    found = extend(earlier, new, policy)
    assert found.updates.holds
    assert (found.class_of_subject != ABSENT).all()
