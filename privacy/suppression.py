r"""Full-domain generalisation: every attribute at one level of its hierarchy for the whole table [1]_ [2]_.

A node of the lattice is a level per attribute; for a binary attribute that is kept or suppressed (``*``), and so it is
for others without a hierarchy. Cells that look alike at the node are one class, and classes that do not meet the policy
are left out, while the rows left out are no more than the policy allows. Sought is the node of least loss,

.. math:: L = \frac{1}{N A} \Bigl( A \cdot \text{rows left out} + \sum_{i \text{ kept}} \sum_a \mathrm{NCP}_a(i) \Bigr)

**What may be pruned.** If a node cannot meet a *monotone* requirement, no finer node can. With rows left out, k and
distinct l are monotone: classes only grow and gain values when they are united. Entropy and recursive l, and t, are
not: a class left out at a fine node can spoil the one it joins. Without leaving out rows they are too, as long as
counts add up, because the distributions that meet them form convex sets. What is not monotone is asked of each node and
prunes nothing.

**The search** goes from the coarsest node to finer ones, one attribute after the other. A branch fixes the levels of
some attributes; the loss of all nodes in it is at least

.. math::
    G = \sum_{a \text{ fixed}} g_a(\text{level}_a) + \sum_{a \text{ open}} \min \{ g_a(l) : l \text{ not pruned} \}

with :math:`g_a(l)` the mean NCP of the attribute at a level, because rows left out lose more. Branches are taken by
least bound, deeper ones first among equals. When every branch is worse than the best node that was found, that node is
optimal; when the budget ends before, the least bound that is left proves how far from optimal it may be.

.. [1] P. Samarati, "Protecting respondents' identities in microdata release", IEEE TKDE 13(6), 2001.
.. [2] K. LeFevre, D. DeWitt, R. Ramakrishnan, "Incognito: efficient full-domain k-anonymity", SIGMOD 2005.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from facecrowd.privacy.anonymity import Unit
from facecrowd.privacy.cells import SUPPRESSED, CellPlan, Cells
from facecrowd.privacy.errors import UnreachableError
from facecrowd.privacy.policy import Diversity, Policy
from facecrowd.privacy.requirements import Requirements

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BUDGET = 2 * 10**5
"""Nodes that are measured before the search ends with a bound; 20 binary attributes of faces took 120,000."""

WORK = 4 * 10**9
"""Cells that are visited, so that large tables get fewer nodes."""


@dataclass(frozen=True, eq=False)
class Generalisation:
    """The best node of the lattice that was found.

    Attributes
    ----------
    plan : CellPlan
    levels : dict of str to int
        The level of each attribute; 0 shows its values.
    loss : float
        L, in [0, 1].
    bound : float
        No node loses less than this.
    nodes : int
        Nodes that were measured.
    """

    plan: CellPlan
    levels: dict[str, int]
    loss: float
    bound: float
    nodes: int

    @property
    def gap(self) -> float:
        """How much less the best node may lose, at most; 0 when this one is proven optimal."""
        return max(0.0, self.loss - self.bound)


def suppress(
    cells: Cells,
    policy: Policy,
    *,
    reference: Mapping[Any, float] | None = None,
    unit: Unit = "subjects",
    budget: int | None = None,
) -> CellPlan:
    """The plan of ``generalise``, whose notes say what was left out and whether it is optimal."""
    return generalise(cells, policy, reference=reference, unit=unit, budget=budget).plan


def generalise(
    cells: Cells,
    policy: Policy,
    *,
    reference: Mapping[Any, float] | None = None,
    unit: Unit = "subjects",
    budget: int | None = None,
) -> Generalisation:
    """The node of the full-domain lattice that meets a policy and loses least.

    Parameters
    ----------
    cells : Cells
    policy : Policy
        ``max_suppression`` is the share of rows that may be left out; none without it.
    reference : mapping, optional
        The public distribution for t. Default: the released table's subjects; classes are then left out until those
        that stay meet the policy against the subjects who stay.
    unit : {"subjects", "rows"}
        What k counts; ``rows`` only for comparison with tools that do.
    budget : int, optional
        Nodes that are measured at most. Default: ``BUDGET``, or fewer on more than 20,000 cells.

    Returns
    -------
    Generalisation

    Raises
    ------
    UnreachableError
        If even the coarsest node does not meet the policy.
    ColumnError, GroundDistanceError, ReferenceDistributionError

    Notes
    -----
    Exact within the default budget for some 20 binary attributes of the kind that faces have. A node costs time linear
    in the cells; where a subject has several cells, in the (cell, subject) pairs.
    """
    lattice = _Lattice(cells, policy, reference, unit)
    coarsest = tuple(len(levels) - 1 for levels in lattice.levels)
    best, best_loss = coarsest, lattice.measured(coarsest)
    budget = min(BUDGET, WORK // len(cells)) if budget is None else budget
    if not np.isfinite(best_loss):
        raise UnreachableError(lattice.beyond_reach())
    for start in lattice.dives(coarsest):
        loss = lattice.measured(start)
        if loss < best_loss:
            best, best_loss = start, loss
    everything = tuple((a, tuple(range(coarsest[a]))) for a in lattice.order if coarsest[a] > 0)
    first = lattice.pruned(coarsest, everything)
    heap: list[_Branch] = [(lattice.bound(coarsest, first), 0, 0, coarsest, first)]
    serial = 0
    while heap and heap[0][0] < best_loss - ROUNDING and lattice.asked < budget:
        _, depth, _, levels, undecided = heapq.heappop(heap)
        (a, choices), rest = undecided[0], undecided[1:]
        for level in (*choices, levels[a]):
            here = (*levels[:a], level, *levels[a + 1 :])
            remaining = rest
            if level != levels[a]:
                loss = lattice.least(here)
                # what was not pruned meets what is monotone; the rest is measured, where it can matter
                if loss < best_loss - ROUNDING and (lattice.spare or not lattice.monotone):
                    loss = lattice.measured(here)
                if loss < best_loss - ROUNDING:
                    best, best_loss = here, loss
                remaining = lattice.pruned(here, rest)
            bound = lattice.bound(here, remaining)
            if remaining and bound < best_loss - ROUNDING:
                serial += 1
                heapq.heappush(heap, (bound, depth - 1, serial, here, remaining))
    proven = min([best_loss] + [branch[0] for branch in heap[:1]])
    return lattice.generalisation(best, best_loss, proven, lattice.asked)


ROUNDING = 1e-12
Levels = tuple[int, ...]
_Open = tuple[tuple[int, tuple[int, ...]], ...]
"""Attributes whose level is open, with the levels that are not pruned, fine ones first."""

_Branch = tuple[float, int, int, Levels, _Open]
"""Bound, less for deeper ones, order of creation, levels with open attributes at their coarsest, what is open."""


class _Lattice:
    """The cells at any node of the lattice."""

    def __init__(self, cells: Cells, policy: Policy, reference: Mapping[Any, float] | None, unit: Unit) -> None:
        found = cells.histogram
        self.cells, self.policy, self.reference, self.unit = cells, policy, reference, unit
        self.rows = found.rows.astype(np.int64)
        self.total = int(self.rows.sum())
        self.spare = int((policy.max_suppression or 0.0) * self.total + ROUNDING)
        self.asked = 0
        self.requirements = Requirements(found.values, found.reference, policy, reference)
        self.monotone = self._monotone()
        self.levels = [attribute.levels() for attribute in cells.attributes]
        # at each level of each attribute, the value of each cell as a number, and how many there are
        self.ranks = []
        for levels, code in zip(self.levels, cells.codes.T, strict=True):
            numbered = [np.unique(low, return_inverse=True) for low, _ in levels]
            self.ranks.append([(number[code], len(names)) for names, number in numbered])
        width = max(len(self.levels), 1)
        # the mean over rows of what an attribute loses at each level, as a share of L
        self.penalty = [
            np.array(
                [
                    float((attribute.loss(low[code], high[code]) * self.rows).sum()) / self.total / width
                    for low, high in levels
                ]
            )
            for attribute, levels, code in zip(cells.attributes, self.levels, cells.codes.T, strict=True)
        ]
        # attributes that split evenly leave least room for others: decided first, they prune most
        most = [float(np.bincount(code, weights=self.rows).max()) for code in cells.codes.T]
        self.order = sorted(range(len(most)), key=lambda a: (most[a], a))

    def _monotone(self) -> bool:
        """Find what no finer node meets where a coarser does not (``prunes``), and whether it is all that is asked."""
        policy, found = self.policy, self.cells.histogram
        whole = self.spare == 0 and (self.cells.additive or not self.requirements.conditions)
        distinct = policy.l is None or policy.l.kind == "distinct"
        if whole or (policy.t is None and distinct):
            self.prunes = self.requirements
            return True
        weaker = Policy(
            policy.subject,
            policy.quasi_identifiers,
            policy.sensitive,
            k=policy.k,
            l=policy.l if distinct else Diversity("distinct", 1),
        )
        self.prunes = Requirements(found.values, found.reference, weaker)
        return False

    @cached_property
    def pairs(self) -> tuple[Ints, Ints]:
        """The (cell, subject) pairs."""
        partial = self.cells.partial
        first = np.ones(len(partial.cell_class), dtype=bool)
        first[1:] = (np.diff(partial.cell_class) != 0) | (np.diff(partial.cell_subject) != 0)
        return partial.cell_class[first], partial.cell_subject[first]

    def classes(self, levels: Levels) -> Ints:
        """The class of each cell at a node."""
        key = np.zeros(len(self.rows), dtype=np.int64)
        size = 1
        for a, level in enumerate(levels):
            if level == len(self.levels[a]) - 1:
                continue
            rank, width = self.ranks[a][level]
            if size * width > 4 * len(key) + 1024:
                present, key = np.unique(key, return_inverse=True)
                size = len(present)
            key = key * width + rank
            size *= width
        if size <= 8 * len(key) + 2048:
            seen = np.zeros(size, dtype=bool)
            seen[key] = True
            return np.asarray((np.cumsum(seen) - 1)[key])
        return np.unique(key, return_inverse=True)[1].astype(np.int64)

    def failing(self, class_of: Ints, requirements: Requirements) -> tuple[NDArray[np.bool_], Floats]:
        """Which classes do not meet the requirements, and the rows of each; numbers that no cell has have no rows."""
        count = int(class_of.max()) + 1
        rows: Floats = np.bincount(class_of, weights=self.rows, minlength=count).astype(np.float64, copy=False)
        found = self.cells.histogram
        weights: Any = np.zeros((count, 0))
        if self.cells.additive or (self.unit == "rows" and not requirements.conditions):
            subjects = np.bincount(class_of, weights=found.subjects, minlength=count)
            if requirements.conditions:
                place = scipy.sparse.csr_array(
                    (np.ones(len(class_of)), (class_of, np.arange(len(class_of)))), shape=(count, len(class_of))
                )
                weights = place @ found.weights
        elif not requirements.conditions:
            cell, subject = self.pairs
            pair = class_of[cell] * self.cells.histogram.total_subjects + subject
            pair.sort()
            pair = pair[np.append(True, pair[1:] != pair[:-1])]
            subjects = np.bincount(pair // self.cells.histogram.total_subjects, minlength=count)
        else:
            _, number = np.unique(class_of, return_inverse=True)
            grouped = self.cells.regroup(number.astype(np.int64))
            assert grouped is not None
            subjects, weights, rows = grouped.subjects, grouped.weights, grouped.rows.astype(np.float64)
        return ~requirements.met(subjects, weights, size=rows if self.unit == "rows" else subjects), rows

    def kept(self, levels: Levels) -> Ints | None:
        """The class of each cell, ``SUPPRESSED`` where it is left out; None where too much would be."""
        self.asked += 1
        class_of = self.classes(levels)
        bad, rows = self.failing(class_of, self.requirements)
        if rows[bad].sum() > self.spare:
            return None
        if not bad.any():
            return class_of
        class_of = np.where(bad[class_of], SUPPRESSED, class_of)
        # leaving people out moves the distribution that t is held against, so what stays is measured again
        while self.policy.t is not None and self.reference is None:
            names, number = np.unique(class_of, return_inverse=True)
            if names[-1] == SUPPRESSED:
                return None
            found = self.cells.regroup((number - 1).astype(np.int64))
            assert found is not None
            again = Requirements(found.values, found.reference, self.policy)
            size = found.rows if self.unit == "rows" else found.subjects
            failed = names[1:][~again.met(found.subjects, found.weights, size=size)]
            if len(failed) == 0:
                break
            class_of = np.where(np.isin(class_of, failed), SUPPRESSED, class_of)
            if self.rows[class_of == SUPPRESSED].sum() > self.spare:
                return None
        return None if (class_of == SUPPRESSED).all() else class_of

    def measured(self, levels: Levels) -> float:
        """L of a node; infinite where it does not meet the policy."""
        class_of = self.kept(levels)
        if class_of is None:
            return float("inf")
        left_out = class_of == SUPPRESSED
        if not left_out.any():
            return self.least(levels)
        lost = float(self.rows[left_out].sum()) * len(levels)
        rows, codes = self.rows[~left_out], self.cells.codes[~left_out]
        for a, level in enumerate(levels):
            low, high = self.levels[a][level]
            lost += float((self.cells.attributes[a].loss(low[codes[:, a]], high[codes[:, a]]) * rows).sum())
        return lost / (self.total * max(len(levels), 1))

    def least(self, levels: Levels) -> float:
        """L of a node if nothing is left out."""
        return float(sum(self.penalty[a][level] for a, level in enumerate(levels)))

    def pruned(self, levels: Levels, undecided: _Open) -> _Open:
        """What is left of the choices of open attributes, when each is refined alone."""
        class_of = self.classes(levels)
        left = []
        for a, choices in undecided:
            possible = []
            for level in reversed(choices):  # coarse ones first: where one fails, finer ones do
                if not self.may(class_of, a, level):
                    break
                possible.append(level)
            if possible:
                left.append((a, tuple(reversed(possible))))
        return tuple(left)

    def may(self, class_of: Ints, a: int, level: int) -> bool:
        """Whether classes may still meet the policy with one more attribute, as far as monotone requirements tell."""
        self.asked += 1
        rank, width = self.ranks[a][level]
        bad, rows = self.failing(class_of * width + rank, self.prunes)
        return int(rows[bad].sum()) <= self.spare

    def bound(self, levels: Levels, undecided: _Open) -> float:
        """The least loss of a branch."""
        return self.least(levels) + float(
            sum(self.penalty[a][choices[0]] - self.penalty[a][levels[a]] for a, choices in undecided)
        )

    def dives(self, coarsest: Levels) -> list[Levels]:
        """Nodes from which to start: attributes refined one after the other, in two orders, while that may be."""
        found = []
        for order in (self.order, self.order[::-1]):
            levels = coarsest
            for a in order:
                for level in range(coarsest[a]):
                    if self.may(self.classes(levels), a, level):
                        levels = (*levels[:a], level, *levels[a + 1 :])
                        found.append(levels)
                        break
        return found

    def beyond_reach(self) -> str:
        """Why the coarsest node does not meet the policy."""
        found = self.cells.regroup(np.zeros(len(self.rows), dtype=np.int64))
        assert found is not None
        size = found.rows if self.unit == "rows" else found.subjects
        lacks = self.requirements.shortfalls(int(found.subjects[0]), found.weights.toarray()[0], size=int(size[0]))
        return (
            f"no plan reaches the policy, as all people in one class do not: {'; '.join(lacks)}. "
            "Ask for what is reached, or add people"
        )

    def generalisation(self, levels: Levels, loss: float, bound: float, nodes: int) -> Generalisation:
        class_of = self.kept(levels)
        assert class_of is not None
        names, first, number = np.unique(class_of, return_index=True, return_inverse=True)
        shift = int(names[0] == SUPPRESSED)
        spans = [
            (low[code], high[code])
            for (low, high), code in zip(
                (self.levels[a][level] for a, level in enumerate(levels)),
                self.cells.codes[first[shift:]].T,
                strict=True,
            )
        ]
        left_out = int(self.rows[class_of == SUPPRESSED].sum())
        notes = [f"{left_out} of {self.total} rows suppressed"] if left_out else []
        gap = max(0.0, loss - bound)
        notes.append(
            f"optimal among full-domain generalisations, {nodes} nodes measured"
            if gap <= ROUNDING
            else f"within {gap:.4f} of the optimal loss ({loss:.4f}, at least {bound:.4f}), {nodes} nodes measured"
        )
        plan = CellPlan(
            (number - shift).astype(np.int64),
            np.stack([low for low, _ in spans], axis=1).astype(np.int32),
            np.stack([high for _, high in spans], axis=1).astype(np.int32),
            "suppress",
            tuple(notes),
        )
        names_of = [attribute.name for attribute in self.cells.attributes]
        return Generalisation(plan, dict(zip(names_of, levels, strict=True)), loss, bound, nodes)
