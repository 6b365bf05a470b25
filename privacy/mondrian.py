r"""Mondrian: classes by cutting the space of quasi-identifiers [1]_, and then by moving cells between them.

**Cuts.** A node is a set of cells. It is cut in two, the cells whose value of one attribute lies in an interval of
codes against the others, while both sides meet k, l and t; what cannot be cut is a class. Candidates are the two values
of a binary attribute, thresholds of ordered and numeric ones, nodes of a hierarchy, single values of other categorical
ones. Of a node of *n* people, the cut into :math:`n_1 + n_2` is taken that gains most certainty per bit of crowd it
spends:

.. math::
    \frac{n \, \mathrm{NCP}(a) - n_1 \mathrm{NCP}_1(a) - n_2 \mathrm{NCP}_2(a)}{n \log n - n_1 \log n_1 - n_2 \log n_2}

with NCP the normalised certainty penalty of what the attribute *a* would show. For binary attributes the numerator is
*n* and this is *rarest first*: the smallest side that is still a crowd. All open nodes of a level are worked on at
once.

**Moves.** A cut divides all cells of a node alike, so cells end in classes where they, or their classmates, could lose
less elsewhere. In rounds, every cell whose class can spare it looks for the class where it costs least; the best moves,
one per class and round, are made if both classes still meet the policy. Being suppressed is one more place to go.

What is lost, and minimised, is the mean over rows and attributes of the NCP of what is shown,

.. math:: L = \frac{1}{N A} \sum_i \sum_a \mathrm{NCP}_a(\text{class of } i)

where a suppressed row counts 1 for each attribute. For binary attributes it is the share of quasi-identifier cells that
are generalised.

.. [1] K. LeFevre, D. DeWitt, R. Ramakrishnan, "Mondrian multidimensional k-anonymity", ICDE 2006.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from facecrowd.privacy.anonymity import Unit
from facecrowd.privacy.attributes import Attribute
from facecrowd.privacy.cells import SUPPRESSED, CellPlan, Cells
from facecrowd.privacy.classes import Histogram, regrouped
from facecrowd.privacy.errors import UnreachableError
from facecrowd.privacy.policy import Policy
from facecrowd.privacy.requirements import Requirements

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EFFORT = 10**8
"""Pairs of a cell and a class that moves may weigh, in all: about a second on one core for binary attributes."""

CYCLES = 2
"""Moves, new cuts of what became large, moves again."""

ROUNDS = 24
"""Rounds of moves in a cycle, at most."""

NEIGHBOURS = 128
"""Classes that a cell weighs in a round, at least: fewer cost as much time and find less."""

THRESHOLDS = 16
"""Thresholds of an ordered attribute tried in a node: all where it has so few values, else quantiles of the node."""

MARGIN = 1e-6
"""Smaller gains are rounding: what a row loses is counted in attributes."""

BLOCK = 2**22
"""Numbers made at once."""


def mondrian(
    cells: Cells,
    policy: Policy,
    *,
    release: Literal["interval", "majority"] = "interval",
    reference: Mapping[Any, float] | None = None,
    unit: Unit = "subjects",
    effort: int | None = None,
) -> CellPlan:
    """Classes that meet a policy's k, l and t, and lose little.

    Cells never divide. The plan depends on the cells alone: there is no random number and no clock, and ties go to the
    first attribute and the smaller cell.

    Parameters
    ----------
    cells : Cells
        With one vector per subject (``additive``) counts add up; else the distinct subjects of every candidate part are
        counted.
    policy : Policy
    release : {"interval", "majority"}
        What a class shows: the interval that its values span, ``*`` where that is everything (of a hierarchy its
        lowest node); or the value that most of its subjects have.
    reference : mapping, optional
        The public distribution for t (``t_closeness``). Default: the released table's subjects.
    unit : {"subjects", "rows"}
        What k counts; ``rows`` only for comparison with tools that do.
    effort : int, optional
        Pairs of cells and classes that moves may weigh; 0 leaves the cuts as they are. Default: ``EFFORT``, or enough
        for two rounds of each cycle in large tables.

    Returns
    -------
    CellPlan
        Classes with equal released vectors are one class.

    Raises
    ------
    UnreachableError
        If even the class of everybody does not meet the policy.
    ColumnError, GroundDistanceError, ReferenceDistributionError

    Notes
    -----
    Time is about O(V A log V + effort), memory O(V A) for V cells and A attributes.
    """
    table = _Table(cells, policy, reference, unit)
    everybody = table.state(np.zeros(len(cells), dtype=np.int64), 1)
    if not everybody.met.all():
        lacks = table.requirements.shortfalls(
            int(everybody.subjects[0]), _dense_row(everybody.weights), size=int(everybody.size[0])
        )
        raise UnreachableError(
            f"no plan reaches the policy, as all people in one class do not: {'; '.join(lacks)}. "
            "Ask for what is reached, or add people"
        )
    effort = max(EFFORT, 2 * CYCLES * NEIGHBOURS * len(cells)) if effort is None else effort
    cut = _cut(table, np.zeros(len(cells), dtype=np.int64))
    spare = int((policy.max_suppression or 0.0) * table.rows.sum())
    # Boxes of cuts never coincide, so what their intervals show are these very classes. What was moved, and majorities,
    # can show one vector twice; and leaving people out moves the distribution that t is held against.
    attempts = [(spare, effort, release)] if spare else []
    for limit, work, shown in [*attempts, (0, effort, release), (0, 0, release), (0, 0, "interval")]:
        plan = _released(table, _improved(table, cut, work, limit) if work else cut, shown)
        if _holds(table, plan, reference):
            return plan
    raise UnreachableError("the classes that were found do not meet the policy when measured; please report this table")


def information_lost(cells: Cells, plan: CellPlan) -> float:
    r"""The loss *L* of a plan's intervals, in [0, 1] (the module's docstring has the formula).

    Of a plan that shows majorities the same formula holds for what was changed: NCP between a cell's value and the one
    that its class shows.
    """
    kept = plan.class_of_cell != SUPPRESSED
    class_of = plan.class_of_cell[kept]
    rows = cells.histogram.rows
    lost = float(rows[~kept].sum()) * len(cells.attributes)
    for a, attribute in enumerate(cells.attributes):
        low, high = plan.low[class_of, a], plan.high[class_of, a]
        code = cells.codes[kept, a]
        lost += float((attribute.loss(np.minimum(low, code), np.maximum(high, code)) * rows[kept]).sum())
    return lost / (float(rows.sum()) * max(len(cells.attributes), 1))


@dataclass(frozen=True, eq=False)
class _State:
    """Classes as requirements see them."""

    subjects: Ints
    size: Ints
    weights: Any
    met: NDArray[np.bool_]


class _Table:
    """The cells, ready to be cut and moved."""

    def __init__(self, cells: Cells, policy: Policy, reference: Mapping[Any, float] | None, unit: Unit) -> None:
        found = cells.histogram
        self.cells, self.policy, self.unit = cells, policy, unit
        self.codes = cells.codes
        self.rows = found.rows.astype(np.int64)
        self.subjects = found.subjects.astype(np.int64)
        self.size = self.rows if unit == "rows" else self.subjects
        self.weights = found.weights.toarray() if found.weights.shape[1] <= 64 else found.weights
        self.requirements = Requirements(found.values, found.reference, policy, reference)
        # what k counts adds up over cells
        self.adds = unit == "rows" or cells.additive
        self.attributes = [_Shown(attribute) for attribute in cells.attributes]
        sizes = np.array([attribute.size for attribute in cells.attributes])
        self.binary = np.flatnonzero(sizes == 2)
        self.wide = np.flatnonzero(sizes > 2)

    @cached_property
    def pairs(self) -> tuple[Ints, Ints]:
        """The subjects of each cell: bounds (V + 1,) and subjects."""
        partial = self.cells.partial
        first = np.ones(len(partial.cell_class), dtype=bool)
        first[1:] = (np.diff(partial.cell_class) != 0) | (np.diff(partial.cell_subject) != 0)
        bounds = np.searchsorted(partial.cell_class[first], np.arange(len(self.codes) + 1))
        return bounds.astype(np.int64), partial.cell_subject[first]

    @cached_property
    def words(self) -> NDArray[np.uint64]:
        """The binary attributes packed, (V, W)."""
        return _packed(self.codes[:, self.binary] > 0)

    def state(self, class_of: Ints, classes: int) -> _State:
        """The classes of a grouping; cells of class ``SUPPRESSED`` are in none."""
        if self.cells.additive or not self.requirements.conditions:
            kept = np.flatnonzero(class_of >= 0)
            size = _counts(class_of[kept], self.size[kept], classes)
            if self.cells.additive:
                subjects = _counts(class_of[kept], self.subjects[kept], classes)
            else:
                distinct = self.people_of(kept, class_of[kept])[2]
                subjects = size if self.unit == "rows" else np.bincount(distinct, minlength=classes)
                size = size if self.unit == "rows" else subjects
            weights: Any = np.zeros((classes, 0))
            if self.requirements.conditions:
                weights = _indicator(class_of, classes) @ self.weights
        else:
            names, number = np.unique(class_of, return_inverse=True)
            number = number - int(names[0] == SUPPRESSED)
            present = names[names != SUPPRESSED]
            found = regrouped(self.cells.partial, number.astype(np.int64)).finish()
            subjects = np.zeros(classes, dtype=np.int64)
            subjects[present] = found.subjects
            size = subjects.copy()
            if self.unit == "rows":
                size[present] = found.rows
            placed = scipy.sparse.csr_array(
                (np.ones(len(present)), (present, np.arange(len(present)))), shape=(classes, len(present))
            )
            weights = placed @ found.weights
        return _State(subjects, size, weights, self.requirements.met(subjects, weights, size=size))

    def people_of(self, entries: Ints, group: Ints) -> tuple[Ints, Ints, Ints]:
        """The cells of each person in each group, as runs.

        Returns
        -------
        ndarray of int64, shape (P,)
            Positions in ``entries``, by group and then by subject.
        ndarray of int64, shape (R,)
            Where the runs of one subject in one group begin.
        ndarray of int64, shape (R,)
            The group of each run.
        """
        entry, subject = self.subjects_of(entries)
        people = int(self.cells.histogram.total_subjects)
        bits = int(group.max()).bit_length(), (people - 1).bit_length(), max(len(entries) - 1, 1).bit_length()
        if sum(bits) <= 64:  # sorting keys alone is several times faster than sorting positions
            shift = np.uint64(bits[2])
            key = (group[entry].astype(np.uint64) << np.uint64(bits[1] + bits[2])) | (
                subject.astype(np.uint64) << shift
            )
            key |= entry.astype(np.uint64)
            key.sort()
            run = key >> shift
            first = _starts(run)
            of_run = (run[first] >> np.uint64(bits[1])).astype(np.int64)
            return (key & np.uint64((1 << bits[2]) - 1)).astype(np.int64), first, of_run
        rank = np.lexsort((subject, group[entry]))
        entry, subject = entry[rank], subject[rank]
        here = group[entry]
        first = np.flatnonzero(np.append(True, (here[1:] != here[:-1]) | (subject[1:] != subject[:-1])))
        return entry, first, here[first]

    def subjects_of(self, entries: Ints) -> tuple[Ints, Ints]:
        """The (position in ``entries``, subject) pairs of some cells."""
        bounds, subject = self.pairs
        length = bounds[entries + 1] - bounds[entries]
        position = np.repeat(np.arange(len(entries)), length)
        offset = np.arange(len(position)) - np.repeat(np.cumsum(length) - length, length)
        return position, subject[bounds[entries][position] + offset]


class _Shown:
    """What an attribute shows of a span of codes, and where it may be cut."""

    def __init__(self, attribute: Attribute) -> None:
        self.attribute = attribute
        self.ranked = attribute.kind in ("ordered", "numeric") and attribute.hierarchy is None
        nodes = sorted(((low, high) for low, high, _ in attribute.nodes()), key=lambda n: n[1] - n[0])
        # the root is no cut, and of two values one cut is enough
        self.nodes = np.array([n for n in nodes if n != (0, attribute.size - 1)] or [(0, 0)], dtype=np.int64)
        self.tall = attribute.hierarchy is not None
        self.levels = attribute.levels()

    def cover(self, low: NDArray[Any], high: NDArray[Any]) -> tuple[Ints, Ints]:
        """The smallest interval that may be released and holds [low, high]."""
        low, high = np.asarray(low, dtype=np.int64), np.asarray(high, dtype=np.int64)
        if self.ranked:
            return low, high
        start, end = np.zeros_like(low), np.full_like(high, self.attribute.size - 1)
        if not self.tall:
            single = low == high
            return np.where(single, low, start), np.where(single, high, end)
        for level_low, level_high in reversed(self.levels):  # wide ones first, so that the narrowest stays
            inside = level_high[low] >= high
            start = np.where(inside, level_low[low], start)
            end = np.where(inside, level_high[low], end)
        return start, end

    def loss(self, low: NDArray[Any], high: NDArray[Any]) -> Floats:
        """NCP of what is shown of spans; of an empty span (low > high) 0."""
        empty = low > high
        start, end = self.cover(np.where(empty, 0, low), np.where(empty, 0, high))
        return np.where(empty, 0.0, self.attribute.loss(start.ravel(), end.ravel()).reshape(start.shape))


def _cut(table: _Table, class_of: Ints) -> Ints:
    """Cut classes until none can be cut; new classes are numbered in the order of the tree."""
    entries = np.flatnonzero(class_of >= 0)
    order = entries[np.argsort(class_of[entries], kind="stable")]
    node = class_of[order]
    node = np.cumsum(np.append(False, node[1:] != node[:-1]))
    begin = _starts(node)  # where a node's cells begin in the order of the tree
    ones = np.empty((0, 0))
    place = np.empty(len(class_of), dtype=np.int64)
    small = None
    size = np.empty(0)
    while len(order):
        starts = _starts(node)
        total = _segments(table.size[order].astype(np.float64), starts)
        if table.adds:
            ones = _ones(table, order, starts) if small is None else _inherited(table, order, starts, small, ones)
            sides = ones, total[:, None] - ones
        else:
            one, zero, total = _distinct_sides(table, order, node, starts, table.words)
            sides = one[:, : len(table.binary)], zero[:, : len(table.binary)]
        size = total
        cut = _chosen(table, order, node, starts, size, sides)
        done = cut.attribute < 0
        leaves = done[node]
        place[order[leaves]] = begin[node[leaves]]
        going = np.flatnonzero(~done)
        if len(going) == 0:
            break
        order, node = order[~leaves], (np.cumsum(~done) - 1)[node[~leaves]]
        cut, begin = cut.take(going), begin[going]
        ones = ones[going] if table.adds else ones
        inside = cut.inside(table.codes, order, node)
        # the side with fewer cells is counted, the other is what remains of the node
        cells_inside = np.bincount(node, weights=inside, minlength=len(going))
        fewer_inside = 2 * cells_inside <= np.bincount(node, minlength=len(going))
        minor = inside == fewer_inside[node]
        child = 2 * node + minor
        rank = np.argsort(child, kind="stable")
        order, node = order[rank], child[rank]
        major = np.bincount(node, minlength=2 * len(going))[::2]
        begin = np.stack([begin, begin + major], axis=1).ravel()
        small = True
    tree = np.full(len(class_of), SUPPRESSED, dtype=np.int64)
    tree[entries] = np.unique(place[entries], return_inverse=True)[1]
    return tree


@dataclass(frozen=True, eq=False)
class _Cuts:
    """One cut per node: the cells whose code lies in [low, high]; attribute -1 for none."""

    attribute: Ints
    low: Ints
    high: Ints

    def take(self, nodes: Ints) -> _Cuts:
        return _Cuts(self.attribute[nodes], self.low[nodes], self.high[nodes])

    def inside(self, codes: NDArray[np.int32], order: Ints, node: Ints) -> NDArray[np.bool_]:
        code = codes[order, self.attribute[node]]
        return np.asarray((code >= self.low[node]) & (code <= self.high[node]))


def _chosen(table: _Table, order: Ints, node: Ints, starts: Ints, size: Floats, sides: tuple[Floats, Floats]) -> _Cuts:
    """The best cut of each node of which both sides meet the policy."""
    nodes, k = len(starts), max(table.policy.k or 1, 1)
    columns = [table.binary]
    lows = [np.ones((nodes, len(table.binary)), dtype=np.int64)]
    highs = [np.ones((nodes, len(table.binary)), dtype=np.int64)]
    scores = [_score(size, *sides, np.broadcast_to(size[:, None], sides[0].shape), k)]
    for a in table.wide:
        low, high = _candidates(table, int(a), order, node, starts)
        scores.append(_wide_scores(table, int(a), order, node, starts, size, low, high, k))
        columns.append(np.full(low.shape[1], a))
        lows.append(low)
        highs.append(high)
    column = np.concatenate(columns)
    score = np.concatenate(scores, axis=1)
    low, high = np.concatenate(lows, axis=1), np.concatenate(highs, axis=1)
    every = np.arange(nodes)
    chosen = np.full(nodes, -1)
    pending = every if score.shape[1] else every[:0]
    while len(pending):
        best = score[pending].argmax(axis=1)
        possible = score[pending, best] > 0
        pending, best = pending[possible], best[possible]
        if not table.requirements.conditions:
            chosen[pending] = best
            break
        if len(pending) == 0:
            break
        number = np.full(nodes, -1)
        number[pending] = np.arange(len(pending))
        part = np.flatnonzero(number[node] >= 0)
        cut = _Cuts(column[best], low[pending, best], high[pending, best])
        here = number[node[part]]
        inside = cut.inside(table.codes, order[part], here)
        class_of = np.full(len(table.codes), SUPPRESSED, dtype=np.int64)
        class_of[order[part]] = 2 * here + inside
        met = table.state(class_of, 2 * len(pending)).met.reshape(-1, 2).all(axis=1)
        chosen[pending[met]] = best[met]
        score[pending[~met], best[~met]] = -1.0
        pending = pending[~met]
    found = chosen >= 0
    safe = np.maximum(chosen, 0)
    if score.shape[1] == 0:
        return _Cuts(chosen, chosen, chosen)
    return _Cuts(np.where(found, column[safe], -1), low[every, safe], high[every, safe])


def _score(size: Floats, inside: Floats, outside: Floats, gain: Floats, k: int) -> Floats:
    """Certainty gained per bit of crowd; -1 where a side is no crowd."""
    whole = size[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        # subjects on both sides make the parts larger than the whole: shares of the sum then
        both = inside + outside
        spent = both * np.log(both) - inside * np.log(inside) - outside * np.log(outside)
        score = gain / spent
    crowd = (inside >= k) & (outside >= k) & (whole > 0)
    return np.where(crowd, score, -1.0)


def _candidates(table: _Table, a: int, order: Ints, node: Ints, starts: Ints) -> tuple[Ints, Ints]:
    """Intervals of codes at which each node may be cut, (nodes, G) each."""
    shown, nodes = table.attributes[a], len(starts)
    if not shown.ranked:
        low, high = shown.nodes.T
        return np.tile(low, (nodes, 1)), np.tile(high, (nodes, 1))
    size = shown.attribute.size
    if size <= THRESHOLDS + 1:
        high = np.tile(np.arange(size - 1), (nodes, 1))
    else:
        code = table.codes[order, a].astype(np.int64)
        ranked = np.sort(node * size + code) - node * size  # by node, then by code
        length = np.diff(np.append(starts, len(order)))
        share = np.arange(1, THRESHOLDS + 1) / (THRESHOLDS + 1)
        position = starts[:, None] + np.minimum((length[:, None] * share).astype(np.int64), length[:, None] - 1)
        # a threshold at a node's last value would cut nothing off
        top = ranked[np.append(starts[1:], len(order)) - 1][:, None]
        high = np.where(ranked[position] < top, ranked[position], np.maximum(top - 1, 0))
    return np.zeros_like(high), high


def _wide_scores(
    table: _Table,
    a: int,
    order: Ints,
    node: Ints,
    starts: Ints,
    size: Floats,
    low: Ints,
    high: Ints,
    k: int,
) -> Floats:
    """The scores of an attribute of more than two values, (nodes, G), some candidates at a time."""
    shown = table.attributes[a]
    code = table.codes[order, a].astype(np.int64)
    rows = table.size[order].astype(np.float64)
    every_low, every_high = np.minimum.reduceat(code, starts), np.maximum.reduceat(code, starts)
    whole = shown.loss(every_low, every_high)
    scores = np.empty(low.shape)
    step = max(1, BLOCK // max(len(order), 1))
    for first in range(0, low.shape[1], step):
        part = slice(first, first + step)
        inside = (code[:, None] >= low[node, part]) & (code[:, None] <= high[node, part])
        column = code[:, None]
        far = shown.attribute.size
        low_in = np.minimum.reduceat(np.where(inside, column, far), starts, axis=0)
        high_in = np.maximum.reduceat(np.where(inside, column, -1), starts, axis=0)
        low_out = np.minimum.reduceat(np.where(inside, far, column), starts, axis=0)
        high_out = np.maximum.reduceat(np.where(inside, -1, column), starts, axis=0)
        if table.adds:
            one = np.add.reduceat(np.where(inside, rows[:, None], 0.0), starts, axis=0)
            zero = size[:, None] - one
        else:
            words = _packed(inside)
            one, zero, _ = _distinct_sides(table, order, node, starts, words, of_order=True)
            one, zero = one[:, : inside.shape[1]], zero[:, : inside.shape[1]]
        gain = (one + zero) * whole[:, None] - one * shown.loss(low_in, high_in) - zero * shown.loss(low_out, high_out)
        # a cut that gains nothing by itself may still open others
        scores[:, part] = _score(size, one, zero, np.maximum(gain, 1e-9), k)
    return scores


def _improved(table: _Table, class_of: Ints, effort: int, spare: int) -> Ints:
    """Moves, cuts of what became large enough, and moves again; suppresses at most ``spare`` rows."""
    for cycle in range(CYCLES):
        class_of = _moved(table, class_of, effort // CYCLES, 0)
        if cycle + 1 < CYCLES:
            class_of = _cut(table, class_of)
    # last, so that a plan that may suppress never loses more than one that may not
    return _moved(table, class_of, effort // CYCLES, spare) if spare else class_of


class _Spans:
    """What each class shows, kept while cells move: spans of codes, and the loss of a row."""

    def __init__(self, table: _Table, class_of: Ints) -> None:
        self.table = table
        self.classes = int(class_of.max()) + 1
        kept = np.flatnonzero(class_of >= 0)
        self.cells = np.bincount(class_of[kept], minlength=self.classes)
        self.rows = _counts(class_of[kept], table.rows[kept], self.classes)
        order = kept[np.argsort(class_of[kept], kind="stable")]
        starts = np.append(0, np.cumsum(self.cells)[:-1])
        self.ones = _bits_per_class(table, order, starts)
        self.refresh(class_of)

    def move(self, cell: Ints, source: Ints, target: Ints) -> None:
        """Take cells out of their classes and put them into others; below 0 is none."""
        bits = (self.table.codes[cell][:, self.table.binary] > 0).astype(np.int64)
        for where, sign in ((source, -1), (target, 1)):
            real = where >= 0
            np.add.at(self.cells, where[real], sign)
            np.add.at(self.rows, where[real], sign * self.table.rows[cell[real]])
            np.add.at(self.ones, where[real], sign * bits[real])

    def refresh(self, class_of: Ints) -> None:
        """Bring spans and losses up to what was moved."""
        several = self.cells[:, None] > 1
        self.mixed = _packed((self.ones > 0) & (self.ones < self.cells[:, None]))
        self.constant = _packed((self.ones == self.cells[:, None]) & (self.cells[:, None] > 0))
        self.only_one = _packed((self.ones == 1) & several)
        self.only_zero = _packed((self.ones == self.cells[:, None] - 1) & several)
        self.loss = np.bitwise_count(self.mixed).sum(axis=1).astype(np.float64)
        words = self.table.words
        kept = class_of >= 0
        home = np.where(kept, class_of, 0)
        alone = (words & self.only_one[home]) | (~words & self.only_zero[home])
        self.freed = np.where(kept, np.bitwise_count(alone).sum(axis=1), 0.0).astype(np.float64)
        self.low: dict[int, Ints] = {}
        self.high: dict[int, Ints] = {}
        for a in map(int, self.table.wide):
            self._refresh_wide(a, class_of)

    def _refresh_wide(self, a: int, class_of: Ints) -> None:
        shown = self.table.attributes[a]
        kept = np.flatnonzero(class_of >= 0)
        code = self.table.codes[kept, a].astype(np.int64)
        order = np.lexsort((code, class_of[kept]))
        kept, code = kept[order], code[order]
        some = np.flatnonzero(self.cells > 0)
        length = self.cells[some]
        first = np.cumsum(length) - length
        last = first + length - 1
        low, high = np.zeros(self.classes, dtype=np.int64), np.zeros(self.classes, dtype=np.int64)
        low[some], high[some] = code[first], code[last]
        self.low[a], self.high[a] = low, high
        whole = shown.loss(low, high)
        self.loss += np.where(self.cells > 0, whole, 0.0)
        # without its lowest (highest) cell, a class spans from the next
        inner = length > 1
        for edge, span in (
            (first[inner], (code[first[inner] + 1], high[some[inner]])),
            (last[inner], (low[some[inner]], code[last[inner] - 1])),
        ):
            self.freed[kept[edge]] += whole[some[inner]] - shown.loss(*span)

    def joined(self, cell: Ints, target: Ints) -> NDArray[np.float32]:
        """The loss of a row of class ``target`` once ``cell`` is in it; the two broadcast."""
        words, table = self.table.words, self.table
        mixed = np.zeros(np.broadcast_shapes(cell.shape, target.shape), dtype=np.float32)
        for word in range(words.shape[1]):
            differs = words[cell, word] ^ self.constant[target, word]
            differs |= self.mixed[target, word]
            mixed += np.bitwise_count(differs)
        for a in map(int, table.wide):
            code = table.codes[cell, a].astype(np.int64)
            low, high = np.minimum(self.low[a][target], code), np.maximum(self.high[a][target], code)
            mixed += table.attributes[a].loss(low, high).astype(np.float32)
        return mixed


def _moved(table: _Table, class_of: Ints, effort: int, spare: int) -> Ints:
    """Rounds of moves, of which some suppress, in all at most ``spare`` rows."""
    class_of = class_of.copy()
    spans = _Spans(table, class_of)
    barred = np.zeros(len(class_of), dtype=bool)
    width, k = len(table.attributes), max(table.policy.k or 1, 1)
    left = effort
    for turn in range(ROUNDS):
        parting, size = _parting(table, class_of, spans.classes)
        cell = np.flatnonzero((class_of >= 0) & ~barred)
        home, rows = class_of[cell], table.rows[cell].astype(np.float64)
        saved = spans.loss[home] * rows + spans.freed[cell] * (spans.rows[home] - rows)
        # the last cell of a class may always leave: there is no class then
        able = (saved > MARGIN) & ((size[home] - parting[cell] >= k) | (spans.cells[home] == 1))
        if not able.any():
            break
        cell, home, rows, saved = cell[able], home[able], rows[able], saved[able]
        looked = min(max(effort // ROUNDS // len(cell), NEIGHBOURS), spans.classes)
        left -= looked * len(cell)
        if left < 0:
            break
        target, cost = _cheapest(table, spans, cell, home, looked, turn)
        if spare:
            out = (width * rows < cost) & (spans.cells[home] > 1)
            target, cost = np.where(out, SUPPRESSED, target), np.where(out, width * rows, cost)
        made = _pick(home, target, saved - cost, table.rows[cell], spans.classes, spare)
        cell, home, target = cell[made], home[made], target[made]
        class_of[cell] = target
        if table.requirements.conditions:
            met = table.state(class_of, spans.classes).met | (spans.cells + _arrivals(home, target, spans.classes) == 0)
            # each class is in one move, so taking a move back mends both
            wrong = ~met[home] | ~met[target] & (target >= 0)
            class_of[cell[wrong]] = home[wrong]
            barred[cell[wrong]] = True
            cell, home, target = cell[~wrong], home[~wrong], target[~wrong]
        if len(made) == 0:
            break
        spans.move(cell, home, target)
        spans.refresh(class_of)
        spare -= int(table.rows[cell[target < 0]].sum())
    names, number = np.unique(class_of, return_inverse=True)
    return (number - int(names[0] == SUPPRESSED)).astype(np.int64)


def _arrivals(home: Ints, target: Ints, classes: int) -> Ints:
    """Cells that come to each class, less those that leave."""
    return np.bincount(target[target >= 0], minlength=classes) - np.bincount(home, minlength=classes)


def _cheapest(table: _Table, spans: _Spans, cell: Ints, home: Ints, block: int, turn: int) -> tuple[Ints, Floats]:
    """For each cell the class where it costs least, and the cost: of all classes, or of a block of them.

    Blocks are of neighbours in the tree, who share most cuts, and in other turns of neighbours
    by what they show, read from another attribute each time.
    """
    target, cost = np.zeros(len(cell), dtype=np.int64), np.full(len(cell), np.inf)
    order, place = np.arange(spans.classes), home
    if block < spans.classes and turn % 3:
        start = np.uint64((7 * turn) % max(len(table.binary), 1))
        shown = _rotated(spans.constant[:, 0], start)
        order = np.argsort(shown, kind="stable")
        place = np.searchsorted(shown[order], _rotated(table.words[cell, 0], start))
    shift = 0 if block == spans.classes else (turn * block) // 2 % block
    number = (place + shift) // block
    by_block = np.argsort(number, kind="stable")
    for part in np.split(by_block, _starts(number[by_block])[1:]):
        first = int(number[part[0]]) * block - shift
        near = order[max(first, 0) : first + block]
        if len(near) == 0:
            continue
        crowd = spans.rows[near].astype(np.float32)
        present = np.where(crowd > 0, spans.loss[near].astype(np.float32) * crowd, -np.inf).astype(np.float32)
        step = max(1, BLOCK // 8 // len(near))
        for begin in range(0, len(part), step):
            some = part[begin : begin + step]
            price = spans.joined(cell[some, None], near[None, :])
            price *= crowd + table.rows[cell[some], None].astype(np.float32)
            price -= present
            price[near[None, :] == home[some, None]] = np.inf
            best = price.argmin(axis=1)
            target[some], cost[some] = near[best], price[np.arange(len(some)), best]
    real = np.flatnonzero(np.isfinite(cost))
    goal, rows = target[real], table.rows[cell[real]]
    joined = spans.joined(cell[real], goal).astype(np.float64)
    cost[real] = joined * (spans.rows[goal] + rows) - spans.loss[goal] * spans.rows[goal]
    return target, cost


def _rotated(words: NDArray[np.uint64], start: np.uint64) -> NDArray[np.uint64]:
    return (words >> start) | (words << (np.uint64(64) - start)) if start else words


def _pick(source: Ints, target: Ints, gain: Floats, rows: Ints, classes: int, spare: int) -> Ints:
    """The best moves, each class in one at most, and no more suppressed rows than may be."""
    order = np.argsort(-gain, kind="stable")
    order = order[gain[order] > MARGIN]
    used = bytearray(classes)
    made = []
    for i, a, b, n in zip(
        order.tolist(), source[order].tolist(), target[order].tolist(), rows[order].tolist(), strict=True
    ):
        if used[a] or (b >= 0 and used[b]) or (b < 0 and n > spare):
            continue
        used[a] = 1
        if b >= 0:
            used[b] = 1
        else:
            spare -= n
        made.append(i)
    return np.array(made, dtype=np.int64)


def _parting(table: _Table, class_of: Ints, classes: int) -> tuple[Ints, Ints]:
    """What each cell would take out of its class, (V,), and what the classes have, (C,), in what k counts.

    Of subjects, a cell takes those who have no other cell in its class.
    """
    kept = np.flatnonzero(class_of >= 0)
    if table.adds:
        return table.size, _counts(class_of[kept], table.size[kept], classes)
    entry, first, of_run = table.people_of(kept, class_of[kept])
    single = first[np.diff(np.append(first, len(entry))) == 1]
    return np.bincount(kept[entry[single]], minlength=len(class_of)), np.bincount(of_run, minlength=classes)


def _bits_per_class(table: _Table, order: Ints, starts: Ints) -> Ints:
    """Cells of each class with the larger value of each binary attribute."""
    return _ones(table, order, starts, np.ones(len(table.codes))).astype(np.int64)


def _released(table: _Table, class_of: Ints, release: str) -> CellPlan:
    """What each class shows; classes that show the same become one."""
    kept = np.flatnonzero(class_of >= 0)
    order = kept[np.argsort(class_of[kept], kind="stable")]
    starts = _starts(class_of[order])
    low = np.empty((len(starts), len(table.attributes)), dtype=np.int32)
    high = np.empty_like(low)
    for a, shown in enumerate(table.attributes):
        code = table.codes[order, a].astype(np.int64)
        if release == "majority":
            low[:, a] = high[:, a] = _majority(code, class_of[order], table.subjects[order], shown.attribute.size)
        else:
            low[:, a], high[:, a] = shown.cover(np.minimum.reduceat(code, starts), np.maximum.reduceat(code, starts))
    vectors, number = np.unique(np.hstack([low, high]), axis=0, return_inverse=True)
    final = np.full(len(class_of), SUPPRESSED, dtype=np.int64)
    final[kept] = number.ravel()[class_of[kept]]
    left_out = int(table.rows[class_of < 0].sum())
    notes = [f"{left_out} of {int(table.rows.sum())} rows suppressed"] if left_out else []
    if release == "majority":
        notes.append("a class shows the value that most of its people have, so some are shown with a value not theirs")
    low, high = np.split(vectors, 2, axis=1)
    return CellPlan(final, low, high, "mondrian", tuple(notes))


def _majority(code: Ints, class_of: Ints, people: Ints, size: int) -> Ints:
    """The value of most people in each class; among equals the first."""
    pair, slot = np.unique(class_of * size + code, return_inverse=True)
    votes = np.bincount(slot, weights=people)
    best = np.lexsort((pair % size, -votes, pair // size))
    first = _starts(pair[best] // size)
    return pair[best][first] % size


def _holds(table: _Table, plan: CellPlan, reference: Mapping[Any, float] | None) -> bool:
    """Whether a plan meets its policy, measured from the start."""
    found: Histogram | None = table.cells.regroup(plan.class_of_cell)
    if found is None:
        return False
    size = found.rows if table.unit == "rows" else found.subjects
    asked = Requirements(found.values, found.reference, table.policy, reference)
    return bool(asked.met(found.subjects, found.weights, size=size).all())


def _ones(table: _Table, order: Ints, starts: Ints, size: NDArray[Any] | None = None) -> Floats:
    """What k counts (or ``size`` of cells) of each node with the larger value of each binary attribute, (nodes, B)."""
    size = table.size if size is None else size
    found = np.zeros((len(starts), len(table.binary)))
    step = max(1, BLOCK // max(len(table.binary), 1))
    bounds = np.append(starts, len(order))
    for begin in range(0, len(order), step):
        end = min(begin + step, len(order))
        first, last = np.searchsorted(bounds, begin, side="right") - 1, np.searchsorted(bounds, end, side="left")
        inner = np.clip(bounds[first : last + 1], begin, end) - begin
        entries = order[begin:end]
        bits = table.codes[entries][:, table.binary].astype(np.float64)
        here = scipy.sparse.csr_array(
            (size[entries].astype(np.float64), np.arange(end - begin), inner), shape=(last - first, end - begin)
        )
        found[first:last] += here @ bits
    return found


def _inherited(table: _Table, order: Ints, starts: Ints, small: bool, parents: Floats) -> Floats:
    """``_ones`` of children: the minor ones are counted, the major ones are what remains of their parents."""
    length = np.diff(np.append(starts, len(order)))
    minor = np.repeat(np.arange(len(starts)) % 2 == 1, length)
    counted = _ones(table, order[minor], np.append(0, np.cumsum(length[1::2])[:-1]))
    found = np.empty((len(starts), parents.shape[1]))
    found[1::2] = counted
    found[::2] = parents - counted
    return found


def _distinct_sides(
    table: _Table, order: Ints, node: Ints, starts: Ints, words: NDArray[np.uint64], of_order: bool = False
) -> tuple[Floats, Floats, Floats]:
    """Distinct subjects of each node with a 1, and with a 0, in each bit of ``words``: (nodes, 64 W) each; and all."""
    entry, first, of_run = table.people_of(order, node)
    shown = words[entry] if of_order else words[order[entry]]
    bounds = _starts(of_run)
    some = _bit_counts(np.bitwise_or.reduceat(shown, first, axis=0), bounds)
    none = _bit_counts(np.bitwise_or.reduceat(~shown, first, axis=0), bounds)
    return some, none, np.diff(np.append(bounds, len(of_run))).astype(np.float64)


_SPREAD = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.uint64).ravel()
"""The 8 bits of a byte as 8 counters of a byte each."""


def _bit_counts(words: NDArray[np.uint64], starts: Ints) -> Floats:
    """How many words of each segment have each bit, (segments, 64 W): eight counters are added at a time."""
    count, width = words.shape
    lanes = _SPREAD[np.ascontiguousarray(words).view(np.uint8).reshape(count, 8 * width).T]
    # a counter of one byte holds 255
    pieces = np.union1d(starts, np.arange(0, count, 255))
    sums = np.add.reduceat(lanes, pieces, axis=1)
    counters = np.ascontiguousarray(sums.T).view(np.uint8).reshape(len(pieces), 64 * width).astype(np.float64)
    return np.asarray(np.add.reduceat(counters, np.searchsorted(pieces, starts), axis=0))


def _packed(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Rows of bits as words, (N, W): the first bit is the lowest of the first word."""
    width = max(1, -(-bits.shape[1] // 64))
    octets = np.zeros((len(bits), 8 * width), dtype=np.uint8)
    packed = np.packbits(bits, axis=1, bitorder="little")
    octets[:, : packed.shape[1]] = packed
    return octets.view("<u8").astype(np.uint64, copy=False)


def _starts(sorted_ids: NDArray[Any]) -> Ints:
    return np.flatnonzero(np.append(True, sorted_ids[1:] != sorted_ids[:-1]))


def _segments(amount: Floats, starts: Ints) -> Floats:
    return np.asarray(np.add.reduceat(amount, starts))


def _counts(group: Ints, amount: Ints, groups: int) -> Ints:
    return np.bincount(group, weights=amount, minlength=groups).astype(np.int64)


def _indicator(class_of: Ints, classes: int) -> Any:
    """(C, V) with a 1 for each cell in its class."""
    kept = np.flatnonzero(class_of >= 0)
    return scipy.sparse.csr_array(
        (np.ones(len(kept)), (class_of[kept], kept)), shape=(classes, len(class_of)), dtype=np.float64
    )


def _dense_row(weights: Any) -> Floats:
    return np.asarray(weights.toarray() if scipy.sparse.issparse(weights) else weights)[0]
