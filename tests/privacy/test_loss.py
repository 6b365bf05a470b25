import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy.attributes import Hierarchy
from facecrowd.privacy.cells import SUPPRESSED, CellPlan, cells, planned
from facecrowd.privacy.classes import histogram
from facecrowd.privacy.errors import PlanError
from facecrowd.privacy.loss import average_class_size, discernibility, information_loss

CITY = Hierarchy((("bonn", "west", "*"), ("essen", "west", "*"), ("jena", "east", "*")))


def table_of(seed):
    """80 photos of 30 people: a binary, a numeric and a categorical attribute."""
    rng = np.random.default_rng(seed)
    qi = {
        "Male": rng.integers(0, 2, 80).astype(bool),
        "Age": rng.choice([20, 30, 50, 90], 80),
        "City": rng.choice(["bonn", "essen", "jena"], 80),
    }
    return cells(rng.integers(0, 30, 80), qi, per_subject=False, hierarchies={"City": CITY})


def plan_of(table, seed, suppress=True):
    """A plan that nobody would want: random classes, intervals that need not hold their own cells."""
    rng = np.random.default_rng(seed + 1)
    class_of_cell = rng.integers(SUPPRESSED if suppress else 0, 4, len(table))
    sizes = [attribute.size for attribute in table.attributes]
    low = np.stack([rng.integers(0, size, 4) for size in sizes], 1).astype(np.int32)
    high = np.stack([rng.integers(0, size, 4) for size in sizes], 1).astype(np.int32)
    return used_only(class_of_cell, np.minimum(low, high), np.maximum(low, high))


def used_only(class_of_cell, low, high):
    """A plan of the classes that have cells."""
    used = np.unique(class_of_cell[class_of_cell != SUPPRESSED])
    renumbered = np.where(class_of_cell == SUPPRESSED, SUPPRESSED, np.searchsorted(used, class_of_cell))
    return CellPlan(renumbered, low[used], high[used], "random")


def as_it_is(table):
    return CellPlan(np.arange(len(table)), table.codes, table.codes, "kept")


@given(st.integers(0, 500))
def test_every_figure_is_its_definition_row_by_row(seed):
    table = table_of(seed)
    plan = plan_of(table, seed)
    loss = information_loss(table, plan)
    rows = [code for cell, code in enumerate(table.codes) for _ in range(table.histogram.rows[cell])]
    shown = [
        None if c == SUPPRESSED else (plan.low[c], plan.high[c])
        for cell, c in enumerate(plan.class_of_cell)
        for _ in range(table.histogram.rows[cell])
    ]
    generalised = changed = ncp = bits = most = 0.0
    touched = 0
    for code, shows in zip(rows, shown, strict=True):
        different = shows is None
        for a, attribute in enumerate(table.attributes):
            own = sum(other[a] == code[a] for other in rows)
            most += np.log2(len(rows) / own)
            if shows is None:
                generalised, ncp, bits = generalised + 1, ncp + 1, bits + np.log2(len(rows) / own)
                continue
            low, high = shows[0][a], shows[1][a]
            generalised += low < high
            changed += not low <= code[a] <= high
            different |= low < high or low != code[a]
            x = attribute.values if attribute.kind == "numeric" else range(attribute.size)
            ncp += (x[high] - x[low]) / (x[-1] - x[0]) if attribute.size > 1 else 0
            inside = sum(low <= other[a] <= high for other in rows) if low <= code[a] <= high else len(rows)
            bits += np.log2(inside / own)
        touched += different
    every = 3 * len(rows)
    assert (loss.rows, loss.rows_changed) == (len(rows), touched)
    assert loss.rows_suppressed == sum(shows is None for shows in shown)
    assert loss.generalised == pytest.approx(generalised / every)
    assert loss.changed == pytest.approx(changed / every)
    assert loss.ncp == pytest.approx(ncp / every)
    assert loss.entropy_bits == pytest.approx(bits)
    assert loss.entropy == pytest.approx(bits / most)
    assert np.mean(list(loss.by_attribute.values())) == pytest.approx(loss.ncp)


@given(st.integers(0, 500))
def test_discernibility_counts_the_pairs_that_look_alike(seed):
    table = table_of(seed)
    plan = plan_of(table, seed)
    loss = information_loss(table, plan)
    of_row = np.repeat(plan.class_of_cell, table.histogram.rows)
    alike = (of_row[:, None] == of_row) | (of_row[:, None] == SUPPRESSED)
    alike &= ~((of_row == SUPPRESSED) & (of_row[:, None] != SUPPRESSED))
    assert loss.discernibility == alike.sum()
    released = planned(table, plan)
    if released is not None:
        assert discernibility(released, loss.rows_suppressed) == loss.discernibility
        assert loss.average_class == released.subjects.mean()


@given(st.integers(0, 500))
def test_nothing_changed_costs_nothing_and_everything_suppressed_costs_all(seed):
    table = table_of(seed)
    kept = information_loss(table, as_it_is(table))
    assert (kept.rows_changed, kept.generalised, kept.changed, kept.ncp, kept.entropy) == (0, 0, 0, 0, 0)
    none = np.zeros((0, 3), np.int32)
    lost = information_loss(table, CellPlan(np.full(len(table), SUPPRESSED), none, none, "nothing"))
    assert (lost.suppressed, lost.generalised, lost.ncp, lost.discernibility_share) == (1, 1, 1, 1)
    assert lost.entropy == pytest.approx(1)
    assert lost.average_class is None


@given(st.integers(0, 500), st.integers(0, 10))
def test_suppressing_one_more_cell_never_lowers_k_nor_the_loss(seed, which):
    table = table_of(seed)
    plan = plan_of(table, seed, suppress=False)
    fewer = plan.class_of_cell.copy()
    fewer[plan.class_of_cell == plan.class_of_cell[which % len(fewer)]] = SUPPRESSED  # a whole class, as planners do
    after = used_only(fewer, plan.low, plan.high)
    loss, more = information_loss(table, plan), information_loss(table, after)
    assert more.ncp >= loss.ncp - 1e-12
    assert more.generalised >= loss.generalised
    assert more.entropy >= loss.entropy - 1e-12
    assert more.discernibility >= loss.discernibility
    assert more.rows_suppressed > loss.rows_suppressed == 0
    if after.classes:
        assert planned(table, after).subjects.min() >= planned(table, plan).subjects.min()


def test_a_rare_value_hidden_among_frequent_ones_loses_more_than_they_do():
    table = cells(np.arange(100), {"Bald": [True] + [False] * 99})
    star = CellPlan(np.array([0, 0]), np.array([[0]], np.int32), np.array([[1]], np.int32), "star")
    bits = information_loss(table, star).entropy_bits
    assert bits == pytest.approx(np.log2(100) + 99 * np.log2(100 / 99))
    # released as the majority, the one row is wrong and nothing is wide
    majority = CellPlan(np.array([0, 0]), np.array([[0]], np.int32), np.array([[0]], np.int32), "majority")
    loss = information_loss(table, majority)
    assert (loss.ncp, loss.changed, loss.rows_changed) == (0, 0.01, 1)
    assert loss.entropy_bits == pytest.approx(np.log2(100))


def test_the_average_class_is_in_multiples_of_k():
    found = histogram(["a", "a", "b", "c", "d", "e"], class_ids=[0, 0, 0, 1, 1, 1])
    assert average_class_size(found) == pytest.approx(2.5 / 2)
    assert average_class_size(found, k=5) == pytest.approx(0.5)
    assert average_class_size(found, unit="rows") == 1
    with pytest.raises(PlanError, match="k is 0"):
        average_class_size(found, k=0)


def test_a_loss_is_plain_values():
    loss = information_loss(table_of(0), plan_of(table_of(0), 0))
    assert json.loads(json.dumps(loss.as_dict(), allow_nan=False))["by_attribute"].keys() == {"Male", "Age", "City"}


@pytest.mark.parametrize(
    "broken,words",
    [
        ({"class_of_cell": np.zeros(3, int)}, "of 3 cells"),
        ({"class_of_cell": 4}, "classes that it has not"),
        ({"class_of_cell": 1}, "describes class 0 and puts no cell"),
        ({"class_of_cell": -2}, "classes that it has not"),
        ({"low": np.zeros((4, 2), np.int32), "high": np.zeros((4, 2), np.int32)}, "shows 2 attributes"),
        ({"high": np.full((4, 3), 9, np.int32)}, "empty or outside"),
        ({"low": np.full((4, 3), 1, np.int32), "high": np.zeros((4, 3), np.int32)}, "empty or outside"),
    ],
)
def test_a_plan_of_another_table_is_refused(broken, words):
    table = table_of(0)
    plan = plan_of(table, 0)
    parts = {"class_of_cell": plan.class_of_cell, "low": plan.low, "high": plan.high, **broken}
    if isinstance(parts["class_of_cell"], int):
        parts["class_of_cell"] = np.full(len(table), parts["class_of_cell"])
    with pytest.raises(PlanError, match=words):
        information_loss(table, CellPlan(**parts, method="broken"))
