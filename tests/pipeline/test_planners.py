"""Claims of pipeline/planners.py: a name makes the plan that its module makes, and randomness comes from the digest."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from facecrowd.pipeline.planners import METHODS, made, planner
from facecrowd.privacy.cells import Cells, cells, planned
from facecrowd.privacy.errors import PolicyError
from facecrowd.privacy.mondrian import mondrian
from facecrowd.privacy.policy import Closeness, Policy
from facecrowd.privacy.ppas import ppas
from facecrowd.privacy.suppression import suppress
from facecrowd.stages.runkey import RunKey

KEY = RunKey(bytes(range(32)))
POLICY = Policy("who", ("a", "b"), ("sick",), k=4, t=Closeness(0.4), max_suppression=0.1)


def people(count: int = 60) -> Cells:
    rng = np.random.default_rng(3)
    columns = {name: pa.array((rng.random(count) < p).astype(int).astype(str)) for name, p in (("a", 0.5), ("b", 0.2))}
    sick = pa.array((rng.random(count) < 0.4).astype(int).astype(str))
    return cells(np.arange(count), pa.table(columns), pa.table({"sick": sick}), per_subject=False)


@pytest.mark.parametrize("method", METHODS)
def test_every_planner_has_a_name_and_all_but_ppas_as_printed_meet_k(method: str) -> None:
    released = made(method, people(), POLICY, KEY.digest).released
    assert (released.subjects.min() >= 4) or method == "ppas"


def test_a_name_makes_the_plan_of_its_module() -> None:
    table = people()
    for method, function in (("mondrian", mondrian), ("suppress", suppress)):
        assert np.array_equal(made(method, table, POLICY).plan.class_of_cell, function(table, POLICY).class_of_cell)
        assert np.array_equal(planner(method)(table, POLICY).low, function(table, POLICY).low)
    found, direct = made("ppas", table, POLICY), ppas(table, POLICY)
    assert [choice["flipped"] for choice in found.choices] == [choice.flipped for choice in direct.choices]
    assert planned(found.cells, found.plan).classes.equals(planned(direct.cells, direct.plan).classes)


@pytest.mark.parametrize("method", ["mondrian", "suppress", "k-same", "ppas", "ppas-verified"])
def test_what_randomises_does_so_by_the_digest_and_says_what_it_spent(method: str) -> None:
    limits = Policy("who", ("a", "b"), ("sick",), k=2, t=Closeness(0.9), epsilon=1.0, max_suppression=0.2)
    plans = [made(method, people(), limits, RunKey(bytes([i]) * 32).digest) for i in (1, 1, 2)]
    codes = [plan.cells.codes[plan.cells.partial.cell_class].tolist() for plan in plans]
    assert codes[0] == codes[1] != codes[2]
    assert all(plan.epsilon is not None and 0 < plan.epsilon <= 1 for plan in plans)


def test_epsilon_without_a_digest_is_refused() -> None:
    limits = Policy("who", ("a", "b"), ("sick",), k=2, t=Closeness(0.9), epsilon=1.0)
    with pytest.raises(PolicyError, match="no run key"):
        made("ppas-verified", people(), limits)
