r"""Updates: a second release of a grown dataset must not undo the first.

Every release can keep its policy on its own, and two of them break it together: whoever knows that a person is in both
intersects the person's classes. With :math:`c_1(s), c_2(s), \dots` the classes of subject *s*, "not there" being one
too, the crowd that is left is

.. math:: K(s) = \{ s' : c_1(s') = c_1(s), \; c_2(s') = c_2(s), \dots \}

This is the view of an adversary who knows who was in each release (m-invariance [1]_ grants the same). Of a person who
came later it counts the others who came with them into the same class; of a person who left, those who left it too.

**Merge only.** ``extend`` plans a release under which nobody's crowd falls: the people of an earlier class stay
together, so an earlier class may only be united with others or grow; new people form classes of at least k new people,
which may be united with earlier ones. This never makes a policy unreachable that the grown table can meet at all: sizes
add up, and the distributions that meet l and t form convex sets, so the union of classes that meet the policy meets it
(``merging.py``).

What planning cannot repair is left out: people of the same classes so far of whom fewer than k are still there, and
fewer than k new people. Somebody who left and comes back has a history that the new people lack, and is counted with
others of the same history; so ``extend`` wants all releases so far, not only the last.

.. [1] X. Xiao, Y. Tao, "m-invariance: towards privacy preserving re-publication of dynamic datasets", SIGMOD 2007.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from facecrowd.privacy.attributes import Attribute, domain
from facecrowd.privacy.cells import SUPPRESSED, CellPlan, Cells, planned
from facecrowd.privacy.classes import regrouped
from facecrowd.privacy.errors import ColumnError, PolicyError, UnreachableError
from facecrowd.privacy.merging import merge_until_met
from facecrowd.privacy.mondrian import mondrian
from facecrowd.privacy.policy import Policy
from facecrowd.privacy.randomisation import cell_of_subject, recoded
from facecrowd.privacy.requirements import Requirements
from facecrowd.privacy.verdict import judge

ABSENT = -1
"""The class of a subject who is not in a release, or was left out of it."""


@dataclass(frozen=True, eq=False)
class Published:
    """One release: the cells it was planned on, and its plan."""

    cells: Cells
    plan: CellPlan

    def __post_init__(self) -> None:
        if not self.cells.additive:
            raise PolicyError(
                "a subject has several vectors in this release, so the releases cannot be compared class by class; "
                "use per_subject: true, one vector per subject"
            )

    @property
    def subjects(self) -> pa.Array:
        """Everybody in the table, released or not: length S."""
        return self.cells.partial.subjects

    @property
    def class_of_subject(self) -> NDArray[np.int64]:
        """(S,); ``ABSENT`` for those left out."""
        return self.plan.class_of_cell[cell_of_subject(self.cells)]


@dataclass(frozen=True, eq=False)
class Updates:
    """What several releases leave of everybody's crowd.

    Attributes
    ----------
    subjects : pyarrow.Array, length U
        Everybody released in any of them, sorted.
    classes : ndarray of int64, shape (R, U)
        Their class in each release, the last one last; ``ABSENT`` where they are not in it.
    crowd : ndarray of int64, shape (U,)
        People with the same classes throughout, the subject included.
    k : int
        What was asked.
    """

    subjects: pa.Array
    classes: NDArray[np.int64]
    crowd: NDArray[np.int64]
    k: int

    @property
    def new(self) -> NDArray[np.bool_]:
        """Who is only in the last release."""
        return np.asarray((self.classes[:-1] == ABSENT).all(axis=0))

    @property
    def left(self) -> NDArray[np.bool_]:
        """Who is not in the last release."""
        return np.asarray(self.classes[-1] == ABSENT)

    @property
    def returning(self) -> NDArray[np.bool_]:
        """Who is in the last release and in one before."""
        return ~self.new & ~self.left

    def below(self, among: NDArray[np.bool_] | None = None) -> pa.Array:
        """Whose crowd has fallen below k. By default of those in the last release: those who left are past planning."""
        who = ~self.left if among is None else among
        return self.subjects.filter(pa.array(who & (self.crowd < self.k)))

    @property
    def holds(self) -> bool:
        """Whether everybody in the last release still has a crowd of k."""
        return len(self.below()) == 0


@dataclass(frozen=True, eq=False)
class Extension(Published):
    """A later release that does not undo an earlier one.

    ``cells`` are the later table's with people of different earlier classes apart, also where their vectors are equal;
    ``plan`` is of these.
    """

    updates: Updates


def check_updates(earlier: Published | Sequence[Published], later: Published, k: int) -> Updates:
    """Intersect everybody's classes over all releases.

    Parameters
    ----------
    earlier : Published, or a sequence of them
    later : Published
    k : int
        The crowd that everybody must keep.

    Raises
    ------
    PolicyError
        If k is smaller than 1.
    ColumnError
        If the releases name their subjects by different types.
    """
    if k < 1:
        raise PolicyError(f"k is {k}; a crowd has at least 1 subject")
    releases = [*([earlier] if isinstance(earlier, Published) else earlier), later]
    kinds = {str(release.subjects.type) for release in releases}
    if len(kinds) > 1:
        raise ColumnError(f"the releases name their subjects by different types: {sorted(kinds)}; use one")
    released = [release.class_of_subject != ABSENT for release in releases]
    names = pa.concat_arrays([r.subjects.filter(pa.array(kept)) for r, kept in zip(releases, released, strict=True)])
    subjects = pc.unique(names)
    subjects = subjects.take(pc.array_sort_indices(subjects))
    classes = np.full((len(releases), len(subjects)), ABSENT, dtype=np.int64)
    for i, (release, kept) in enumerate(zip(releases, released, strict=True)):
        at = np.asarray(pc.index_in(release.subjects.filter(pa.array(kept)), subjects))
        classes[i, at] = release.class_of_subject[kept]
    _, group, size = np.unique(classes, axis=1, return_inverse=True, return_counts=True)
    return Updates(subjects, classes, size[group.reshape(-1)].astype(np.int64), k)


def extend(
    earlier: Published | Sequence[Published],
    cells: Cells,
    policy: Policy,
    *,
    planner: Callable[[Cells, Policy], CellPlan] | None = None,
    reference: Mapping[Any, float] | None = None,
) -> Extension:
    """Plan the release of a grown table so that it meets the policy and nobody's crowd falls below k.

    An earlier class goes on to show what it showed, also where a member's photos now say something else: a release must
    not contradict the one before.

    Parameters
    ----------
    earlier : Published, or a sequence of them
        All releases so far, the last one last.
    cells : Cells
        The grown table, one vector per subject, with the same attributes.
    policy : Policy
        Its epsilon is not looked at: randomise first.
    planner : callable, optional
        (cells, policy) to the classes of the new people. Default: ``mondrian``, with t against everybody.
    reference : mapping, optional
        The public distribution for t (``t_closeness``).

    Raises
    ------
    UnreachableError
        If the policy cannot be met; also where more must be left out than ``max_suppression``.
    ColumnError
        If the attributes differ.
    PolicyError
        If a subject has several vectors, or there is no earlier release.
    """
    releases = [earlier] if isinstance(earlier, Published) else list(earlier)
    if not releases:
        raise PolicyError("there is no earlier release to extend; plan the first one with a planner")
    last = releases[-1]
    Published(cells, CellPlan(np.zeros(len(cells), dtype=np.int64), cells.codes[:1], cells.codes[:1], ""))
    cells, maps = _joint(last.cells.attributes, cells)
    k, policy = policy.k or 1, replace(policy, epsilon=None)
    history = np.stack([_earlier_class(release, cells.partial.subjects) for release in releases])
    paths, path, crowd = np.unique(history, axis=1, return_inverse=True, return_counts=True)
    path = path.reshape(-1).astype(np.int64)
    refined = recoded(cells, cells.codes[cell_of_subject(cells)], apart=path)
    path_of_cell = np.empty(len(refined), dtype=np.int64)
    path_of_cell[cell_of_subject(refined)] = path

    unknown = (paths == ABSENT).all(axis=0)
    few, new = int(crowd[(crowd < k) & ~unknown].sum()), int(crowd[unknown].sum())
    reasons = [f"{few} people of whose earlier class fewer than k = {k} are left"] if few else []
    reasons += [f"{new} new people, who are fewer than k = {k}"] if 0 < new < k else []
    reason = " and ".join(reasons)
    keeps = crowd[path_of_cell] >= k
    if not keeps.any():
        raise UnreachableError(f"nobody can be released: there are only {reason}; wait for more people, or lower k")
    unit, low, high = _units(last, maps, refined, paths, path_of_cell, keeps, policy, planner, reference)
    plan = _united(refined, unit, low, high, policy, reference)
    left_out = int(refined.histogram.rows[plan.class_of_cell == SUPPRESSED].sum())
    if left_out:
        plan = replace(plan, notes=(*plan.notes, f"left out: {reason}"))
    table = planned(refined, plan)
    assert table is not None
    verdict = judge(table, policy, suppressed_rows=left_out, reference=reference)
    updates = check_updates(releases, Published(refined, plan), k)
    if not verdict.met or not updates.holds:
        lacks = [f"{r.name} = {r.asked:g} is asked, {r.found:.4g} found" for r in verdict.failures]
        lacks += [] if updates.holds else [f"{len(updates.below())} people would be left with fewer than k = {k}"]
        raise UnreachableError(
            f"the grown table cannot meet the policy without undoing an earlier release: {'; '.join(lacks)}"
            + (f" (left out are {reason})" if reason else "")
        )
    return Extension(refined, plan, updates)


def _earlier_class(earlier: Published, subjects: pa.Array) -> NDArray[np.int64]:
    if earlier.subjects.type != subjects.type:
        raise ColumnError(
            f"the earlier release names subjects by {earlier.subjects.type}, this table by {subjects.type}"
        )
    at = pc.fill_null(pc.index_in(subjects, earlier.subjects), ABSENT).to_numpy()
    return np.where(at == ABSENT, ABSENT, earlier.class_of_subject[at]).astype(np.int64)


def _joint(earlier: Sequence[Attribute], later: Cells) -> tuple[Cells, list[NDArray[np.int32]]]:
    """The later cells over the values that occur in either release, and per attribute what an earlier code is there."""
    names = [attribute.name for attribute in earlier], [attribute.name for attribute in later.attributes]
    if names[0] != names[1]:
        raise ColumnError(f"the earlier release shows {names[0]} and this one {names[1]}; show the same, in one order")
    attributes, codes, maps = [], [], []
    for a, (old, now) in enumerate(zip(earlier, later.attributes, strict=True)):
        both = now
        if now.hierarchy is not None or old.hierarchy is not None:
            if old.hierarchy != now.hierarchy:
                raise ColumnError(f"attribute {now.name!r} has another hierarchy than in the earlier release; use one")
        elif old.values != now.values:
            values = sorted({*old.values, *now.values})
            both = domain(now.name, values, None if "binary" in (old.kind, now.kind) and len(values) > 2 else now.kind)
        place = {str(value): code for code, value in enumerate(both.values)}
        old_code, new_code = (np.array([place[str(v)] for v in side.values], dtype=np.int32) for side in (old, now))
        attributes.append(both)
        codes.append(new_code[later.codes[:, a]])
        maps.append(old_code)
    return replace(later, attributes=tuple(attributes), codes=np.stack(codes, axis=1)), maps


def _units(
    last: Published,
    maps: Sequence[NDArray[np.int32]],
    refined: Cells,
    paths: NDArray[np.int64],
    path_of_cell: NDArray[np.int64],
    keeps: NDArray[np.bool_],
    policy: Policy,
    planner: Callable[[Cells, Policy], CellPlan] | None,
    reference: Mapping[Any, float] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """What may be united but not divided: (V,) unit of each cell, and what each unit shows, (U, A)."""
    unit = np.full(len(refined), SUPPRESSED, dtype=np.int64)
    home = paths[-1][path_of_cell]
    old, which = np.unique(home[keeps & (home != ABSENT)], return_inverse=True)
    unit[keeps & (home != ABSENT)] = which.reshape(-1)
    low, high = (
        np.stack([code[bound[old, a]] for a, code in enumerate(maps)], axis=1)
        for bound in (last.plan.low, last.plan.high)
    )
    # what was shown as * stays *, whatever has joined the domain
    for a, (was, now) in enumerate(zip(last.cells.attributes, refined.attributes, strict=True)):
        whole = (last.plan.low[old, a] == 0) & (last.plan.high[old, a] == was.size - 1) & (was.size > 1)
        low[whole, a], high[whole, a] = 0, now.size - 1
    for path in np.unique(path_of_cell[keeps & (home == ABSENT)]):
        fresh = np.flatnonzero(path_of_cell == path)
        part = np.full(len(refined), SUPPRESSED, dtype=np.int64)
        part[fresh] = np.arange(len(fresh))
        newcomers = Cells(refined.attributes, refined.codes[fresh], regrouped(refined.partial, part))
        found = _planned_apart(refined, keeps, newcomers, policy, planner, reference)
        unit[fresh] = np.where(found.class_of_cell == SUPPRESSED, SUPPRESSED, found.class_of_cell + len(low))
        low, high = np.concatenate([low, found.low]), np.concatenate([high, found.high])
    return unit, low, high


def _planned_apart(
    refined: Cells,
    keeps: NDArray[np.bool_],
    newcomers: Cells,
    policy: Policy,
    planner: Callable[[Cells, Policy], CellPlan] | None,
    reference: Mapping[Any, float] | None,
) -> CellPlan:
    """The new people's own classes, close to everybody's distribution if they can be; uniting mends what cannot."""
    asked = replace(policy, max_suppression=None)
    if planner is None:
        everybody = refined.regroup(np.where(keeps, 0, SUPPRESSED))
        ground = policy.t.ground if policy.t is not None else None
        joint = isinstance(ground, str) and (ground == "hamming" or len(policy.sensitive) == 1)
        if reference is None and joint and everybody is not None:
            everybody = everybody.marginal(list(policy.sensitive))
            values = [tuple(row.values()) for row in everybody.values.to_pylist()]
            reference = dict(zip(values, everybody.reference.tolist(), strict=True))

        def planner(cells: Cells, policy: Policy) -> CellPlan:
            return mondrian(cells, policy, reference=reference)

    try:
        return planner(newcomers, asked)
    except UnreachableError:
        return planner(newcomers, replace(asked, l=None, t=None))


def _united(
    refined: Cells,
    unit: NDArray[np.int64],
    low: NDArray[np.int32],
    high: NDArray[np.int32],
    policy: Policy,
    reference: Mapping[Any, float] | None,
) -> CellPlan:
    """Units united until each class meets the policy; then classes that show the same."""
    table = refined.regroup(unit)
    assert table is not None
    asked = Requirements(table.values, table.reference, policy, reference)
    weights = table.weights.toarray()
    lacks = asked.shortfalls(table.total_subjects, weights.sum(axis=0))
    if lacks:
        raise UnreachableError(f"no plan reaches the policy, as all people in one class do not: {'; '.join(lacks)}")
    low, high, rows = low.copy(), high.copy(), table.rows.astype(np.float64)
    covers = [_covers(attribute) for attribute in refined.attributes]

    def hull(a: int, b: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        below, above = np.minimum(low[a], low[b]), np.maximum(high[a], high[b])
        for i, cover in enumerate(covers):
            if cover is not None:
                below[:, i], above[:, i] = cover[below[:, i], above[:, i]].T
        return below, above

    def lost(below: NDArray[Any], above: NDArray[Any]) -> NDArray[np.float64]:
        each = [attribute.loss(below[:, i], above[:, i]) for i, attribute in enumerate(refined.attributes)]
        return np.sum(each, axis=0, dtype=np.float64)

    def cost(a: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
        together = lost(*hull(a, others)) * (rows[a] + rows[others])
        return together - lost(low[others], high[others]) * rows[others] - lost(low[[a]], high[[a]]) * rows[a]

    def join(a: int, b: int) -> None:
        (low[a],), (high[a],) = hull(a, np.array([b]))
        rows[a] += rows[b]

    label = merge_until_met(table.subjects, weights, asked.met, cost, join)
    shown, number = np.unique(np.hstack([low, high])[label], axis=0, return_inverse=True)
    class_of = np.full(len(unit), SUPPRESSED, dtype=np.int64)
    class_of[unit != SUPPRESSED] = number.reshape(-1)[unit[unit != SUPPRESSED]]
    bounds = np.split(shown, 2, axis=1)
    return CellPlan(class_of, bounds[0], bounds[1], "extend", ("people of an earlier class stay together",))


def _covers(attribute: Attribute) -> NDArray[np.int64] | None:
    """The narrowest interval that may be shown around each, (m, m, 2); None where any may be."""
    if attribute.size <= 2 or attribute.kind in ("numeric", "ordered"):
        return None
    found = np.full((attribute.size, attribute.size, 2), -1, dtype=np.int64)
    for low, high, _ in attribute.nodes():  # narrow ones first
        inside = found[low : high + 1, low : high + 1]
        inside[inside[..., 0] == -1] = (low, high)
    return found
