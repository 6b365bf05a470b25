from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from facecrowd.privacy.attributes import Hierarchy
from facecrowd.privacy.cells import SUPPRESSED, cells, planned
from facecrowd.privacy.classes import histogram
from facecrowd.privacy.errors import UnreachableError
from facecrowd.privacy.suppression import generalise, suppress
from facecrowd.privacy.verdict import Closeness, Diversity, Policy, judge

TREE = Hierarchy((("a", "ab", "*"), ("b", "ab", "*"), ("c", "cd", "*"), ("d", "cd", "*")))
UP = {  # what each value becomes at each level, and what that loses, written out by hand
    "m": [{True: (True, 0), False: (False, 0)}, {True: ("*", 1), False: ("*", 1)}],
    "n": [{True: (True, 0), False: (False, 0)}, {True: ("*", 1), False: ("*", 1)}],
    "h": [{v: (v, 0) for v in "xyz"}, dict.fromkeys("xyz", ("*", 1))],
    "p": [
        {v: (v, 0) for v in "abcd"},
        {"a": ("ab", 1 / 3), "b": ("ab", 1 / 3), "c": ("cd", 1 / 3), "d": ("cd", 1 / 3)},
        dict.fromkeys("abcd", ("*", 1)),
    ],
}
POLICIES = [
    {"k": 3},
    {"k": 4, "max_suppression": 0.15},
    {"k": 2, "l": Diversity("distinct", 2), "max_suppression": 0.2},
    {"k": 2, "l": Diversity("entropy", 1.6)},
    {"k": 2, "l": Diversity("entropy", 1.6), "max_suppression": 0.25},
    {"l": Diversity("recursive", 2, 3.0), "max_suppression": 0.2},
    {"k": 2, "t": Closeness(0.25)},
    {"k": 2, "t": Closeness(0.25), "max_suppression": 0.3},
]


def table(seed):
    random = np.random.default_rng(seed)
    person = np.append(np.arange(24), random.integers(0, 24, 8))
    m = random.random(32) < 0.5
    quasi = {
        "m": m,
        "n": (m ^ (random.random(32) < 0.2)),
        "h": np.array(list("xxxyyz"))[random.integers(0, 6, 32)],
        "p": np.array(list("aaabbcd"))[random.integers(0, 7, 32)],
    }
    quasi["m"][:2] = quasi["n"][:2] = [False, True]
    quasi["h"][:3], quasi["p"][:4] = list("xyz"), list("abcd")  # every value occurs
    return person, quasi, {"s": random.random(32) < 0.4}


def cheapest(person, quasi, sensitive, policy):
    """The least loss over every node of the lattice, each made as a table and judged."""
    best, size = np.inf, len(person)
    for levels in product(*(range(len(UP[name])) for name in quasi)):
        shown = {n: [UP[n][level][v] for v in quasi[n].tolist()] for n, level in zip(quasi, levels, strict=True)}
        keep = np.ones(size, dtype=bool)
        vector = list(zip(*([str(value) for value, _ in column] for column in shown.values()), strict=True))
        while keep.any():
            stay = [i for i in range(size) if keep[i]]
            bad = set()
            everyone = histogram(person[stay], class_ids=np.zeros(len(stay)), sensitive={"s": sensitive["s"][stay]})
            share = dict(zip(everyone.values["s"].to_pylist(), everyone.reference.tolist(), strict=True))
            for one in {vector[i] for i in stay}:
                rows = [i for i in stay if vector[i] == one]
                alone = histogram(person[rows], class_ids=np.zeros(len(rows)), sensitive={"s": sensitive["s"][rows]})
                relaxed = Policy("who", (), ("s",), l=policy.l, t=policy.t)
                if (policy.k or 1) > alone.total_subjects or not judge(alone, relaxed, reference=share).met:
                    bad.add(one)
            if not bad:
                lost = sum(
                    sum(column[i][1] for column in shown.values()) if keep[i] else len(shown) for i in range(size)
                )
                best = min(best, lost / size / len(shown))
                break
            keep &= np.array([one not in bad for one in vector])
            if (~keep).sum() > (policy.max_suppression or 0) * size:
                break
    return best


@settings(max_examples=16)
@given(st.integers(0, 10**6), st.sampled_from(POLICIES), st.booleans())
@example(12, POLICIES[-1], True)  # classes that fail only once others are left out
def test_the_search_finds_what_trying_every_node_finds(seed, asked, per_subject):
    person, quasi, sensitive = table(seed)
    if per_subject:
        person = np.arange(len(person))
    policy = Policy("who", tuple(quasi), ("s",), **asked)
    found = cells(person, quasi, sensitive, per_subject=per_subject, hierarchies={"p": TREE})
    expected = cheapest(person, quasi, sensitive, policy)
    if np.isinf(expected):
        with pytest.raises(UnreachableError):
            generalise(found, policy)
        return
    best = generalise(found, policy)
    assert best.loss == pytest.approx(expected)
    assert best.gap == 0
    assert "optimal among" in best.plan.notes[-1]
    released = planned(found, best.plan)
    assert judge(released, policy, suppressed_rows=len(person) - released.total_rows).met


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(POLICIES), st.integers(1, 30))
def test_a_search_cut_short_gives_a_plan_that_holds_and_a_true_bound(seed, asked, budget):
    person, quasi, sensitive = table(seed)
    policy = Policy("who", tuple(quasi), ("s",), **asked)
    found = cells(person, quasi, sensitive, per_subject=False, hierarchies={"p": TREE})
    try:
        full = generalise(found, policy)
    except UnreachableError:
        return
    short = generalise(found, policy, budget=budget)
    assert short.bound - 1e-12 <= full.loss <= short.loss + 1e-12
    released = planned(found, short.plan)
    assert judge(released, policy, suppressed_rows=len(person) - released.total_rows).met
    if short.gap:
        assert f"within {short.gap:.4f} of the optimal loss" in short.plan.notes[-1]


def test_people_in_several_cells_count_once():
    # 10 people, all with a photo of each value of q, half of them with one of each value of r
    person = np.append(np.repeat(np.arange(10), 2), np.arange(5))
    quasi = {"q": np.append(np.tile([0, 1], 10), np.zeros(5, dtype=int)), "r": np.arange(25) >= 20}
    found = cells(person, quasi, per_subject=False)
    assert generalise(found, Policy("who", ("q", "r"), k=10)).levels == {"q": 0, "r": 1}
    with pytest.raises(UnreachableError, match="k = 11 is asked and there are 10"):
        generalise(found, Policy("who", ("q", "r"), k=11))
    assert generalise(found, Policy("who", ("q", "r"), k=12), unit="rows").levels["r"] == 1


def test_the_order_of_the_rows_does_not_change_the_plan():
    person, quasi, _ = table(5)
    policy = Policy("who", tuple(quasi), k=3, max_suppression=0.1)
    mixed = np.random.default_rng(0).permutation(len(person))
    plans = [
        suppress(cells(who, columns, per_subject=False, hierarchies={"p": TREE}), policy)
        for who, columns in ((person, quasi), (person[mixed], {n: c[mixed] for n, c in quasi.items()}))
    ]
    assert np.array_equal(plans[0].class_of_cell, plans[1].class_of_cell)
    assert np.array_equal(plans[0].low, plans[1].low)


def test_levels_are_those_of_the_whole_table_and_rows_beyond_the_limit_stay():
    quasi = {"m": np.array([True] * 10 + [False] * 9 + [True]), "n": np.array([True] * 19 + [False])}
    found = cells(np.arange(20), quasi)
    strict = generalise(found, Policy("who", ("m", "n"), k=5))
    assert strict.levels == {"m": 0, "n": 1}
    assert strict.loss == 0.5
    lenient = generalise(found, Policy("who", ("m", "n"), k=5, max_suppression=0.05))
    assert lenient.levels == {"m": 0, "n": 0}
    assert lenient.loss == 0.05
    assert lenient.plan.notes[0] == "1 of 20 rows suppressed"
    assert (lenient.plan.class_of_cell == SUPPRESSED).sum() == 1
    assert lenient.plan.labels(found.attributes).num_rows == 2


def test_a_policy_beyond_reach_says_by_how_much():
    found = cells(np.arange(8), {"q": np.arange(8) % 2})
    with pytest.raises(UnreachableError, match="k = 9 is asked and there are 8, 1 too few; k = 8 is reached"):
        suppress(found, Policy("who", ("q",), k=9))


def test_twenty_attributes_of_the_real_table_are_solved_exactly(celeba):
    names = [n for n in celeba.column_names[3:] if n not in ("Attractive", "Chubby", "Heavy_Makeup")]
    chosen = names[:20]
    found = cells(celeba["subject_id"], celeba.select(chosen))
    policy = Policy("subject_id", tuple(chosen), k=10)
    best = generalise(found, policy)
    assert best.gap == 0
    released = planned(found, best.plan)
    assert judge(released, policy).met
    # one attribute more than the best would already need a class too small, whichever it is
    kept = [name for name, level in best.levels.items() if level == 0]
    for more in set(chosen) - set(kept):
        finer = histogram(
            pa.array(range(found.histogram.total_subjects)), quasi_identifiers=_per_subject(celeba, [*kept, more])
        )
        assert finer.subjects.min() < 10


def _per_subject(celeba, columns):
    from facecrowd.privacy.classes import per_subject_majority

    return per_subject_majority(celeba["subject_id"], celeba.select(columns)).vectors
