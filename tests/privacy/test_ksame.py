"""Claims of privacy/ksame.py: classes of k people who look alike, showing what most of them have, meeting l and t."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from facecrowd.privacy.cells import cells, planned
from facecrowd.privacy.errors import TooFewSubjectsError, UnreachableError
from facecrowd.privacy.ksame import k_same
from facecrowd.privacy.policy import Closeness, Diversity, Policy
from facecrowd.privacy.verdict import judge

NAMES = ("a", "b", "c", "d")


def people(seed: int = 0, count: int = 60) -> tuple[np.ndarray, pa.Table, pa.Table]:
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(count), rng.integers(1, 4, count))
    vectors = {name: (rng.random(count) < 0.4)[who] for name in NAMES}
    return who, pa.table(vectors), pa.table({"sick": rng.random(len(who)) < 0.5})


@pytest.mark.parametrize(
    "asked", [{}, {"t": Closeness(0.15)}, {"l": Diversity("entropy", 1.7)}, {"t": Closeness(0.2, "hamming")}]
)
@pytest.mark.parametrize("seed", range(3))
def test_every_plan_meets_its_policy_measured_independently(seed: int, asked: dict[str, object]) -> None:
    table = cells(*people(seed))
    policy = Policy("who", NAMES, ("sick",), k=5, **asked)  # type: ignore[arg-type]
    found = k_same(table, policy)
    released = planned(found.cells, found.plan)
    assert released is not None
    assert judge(released, policy).met
    assert released.total_subjects == 60


def test_a_class_shows_what_most_of_its_people_have() -> None:
    who, vectors, sick = people()
    found = k_same(cells(who, vectors, sick), Policy("who", NAMES, k=5))
    first = np.unique(who, return_index=True)[1]
    class_of = np.empty(60, dtype=np.int64)
    class_of[found.cells.partial.cell_subject] = found.plan.class_of_cell[found.cells.partial.cell_class]
    for name, shown in zip(NAMES, found.plan.low.T, strict=True):
        value = vectors[name].to_numpy()[first]
        for class_id in range(found.plan.classes):
            share = value[class_of == class_id].mean()
            assert shown[class_id] == (share > 0.5)
    assert (found.plan.low == found.plan.high).all()


def test_what_cannot_be_reached_is_said() -> None:
    table = cells(*people())
    with pytest.raises(TooFewSubjectsError):
        k_same(table, Policy("who", NAMES, k=61))
    with pytest.raises(UnreachableError):
        k_same(table, Policy("who", NAMES, ("sick",), k=5, l=Diversity("distinct", 3)))
