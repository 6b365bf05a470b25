r"""Counting at scale: the histogram of a table that is seen batch by batch and never held.

Each row becomes one 64-bit key, and everything is counted from sorted keys:

- by class, ``class | subject | sensitive value``, for the histogram of the rows as they are (``histogram_of``);
- by subject, ``subject | attributes | sensitive value``, for one vector per subject (``majority_of``).

Keys of a shard are sorted where they arise (``Runs``); shards are then cut at the same boundaries, between classes (or
subjects), and the pieces counted one after the other (``class_piece``, ``subject_piece``), so besides 8 bytes per row
and the result only a piece is in memory at a time. Pieces are disjoint and what they give is put together exactly.
Neither the order of the rows, nor their sharding, nor who counted which piece changes a bit of the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import scipy.sparse
from numpy.typing import NDArray

from facecrowd.privacy.classes import Histogram, PartialHistogram, equivalence_classes
from facecrowd.privacy.errors import ColumnError, EmptyTableError
from facecrowd.privacy.packing import (
    WORD_BITS,
    Batch,
    Coding,
    Compound,
    Field,
    Flag,
    Range,
    Survey,
    Vocabulary,
    Words,
    WordSurvey,
    check_nulls,
    codes_at,
    fields,
    names_of,
    pack,
    unpack,
    width,
    words_of,
)

PIECE_ROWS = 100_000
"""Rows counted at once, few enough for the processor's cache; a class or subject with more is still counted whole."""

BATCH_ROWS = 2**18
"""Rows packed and sorted at once, likewise."""

WIDE_BATCH_ROWS = 2**22
"""The same where a column has very many distinct values, which each batch looks up in a table of them all."""

LANE = 255
"""Rows whose bits are added up in byte-wide lanes before the lanes are emptied."""

NO_ROWS = "the table has no rows, so nothing can be measured; check the input and its filters"

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """How a row becomes a key: the codings of its columns by role."""

    subject: Flag | Range | Vocabulary
    quasi_identifiers: tuple[Coding, ...]
    sensitive: tuple[Coding, ...]

    @property
    def subject_bits(self) -> int:
        return self.subject.bits

    @property
    def class_bits(self) -> int:
        return width(self.quasi_identifiers)

    @property
    def value_bits(self) -> int:
        return width(self.sensitive)

    @property
    def columns(self) -> list[str]:
        """The columns that a batch must have."""
        return list(dict.fromkeys(names_of([self.subject, *self.quasi_identifiers, *self.sensitive])))

    @property
    def batch_rows(self) -> int:
        """Rows that a batch should have."""
        parts = (self.subject, *self.quasi_identifiers, *self.sensitive)
        largest = max((len(one.distinct) for one in parts if isinstance(one, Vocabulary)), default=0)
        return BATCH_ROWS if largest <= BATCH_ROWS // 4 else WIDE_BATCH_ROWS

    def keys(self, batch: Batch, by: str, before: int = 0) -> Words:
        """One key per row: class, subject, value (``by="class"``) or subject, class, value (``by="subject"``).

        ``before`` rows of the table came earlier; errors name rows by it.

        Raises
        ------
        NullValueError, ColumnError
        """
        for name in self.columns:
            check_nulls(batch[name], name, before)
        roles: list[tuple[Coding, ...]] = [(self.subject,), self.quasi_identifiers]
        return pack(
            [c for role in (roles if by == "subject" else roles[::-1]) for c in role] + [*self.sensitive], batch
        )


class Look(Protocol):
    """What is gathered in one pass over some columns, in shards that merge: ``Survey`` or ``WordSurvey``."""

    before: int
    rows: int

    @property
    def columns(self) -> tuple[str, ...]: ...

    def add(self, batch: Batch) -> None: ...

    def merge(self, other: Any) -> None: ...


def surveyed(
    look: Callable[[Any], Any],
    schema: pa.Schema,
    subject: str,
    quasi_identifiers: Sequence[str],
    sensitive: Sequence[str],
) -> Layout:
    """The layout of a table's keys, after as many looks at single columns as it takes; usually one.

    Parameters
    ----------
    look : callable
        Shows an empty ``Look`` every row of the table, or merges such looks made elsewhere, and returns it.
    schema : pyarrow.Schema
    subject : str
    quasi_identifiers, sensitive : sequence of str

    Raises
    ------
    EmptyTableError, NullValueError, ColumnError
    """
    names = list(dict.fromkeys([subject, *quasi_identifiers, *sensitive]))
    other = tuple(name for name in names if not pa.types.is_boolean(schema.field(name).type))
    found = look(Survey(other)) if other else Survey(())
    if other and not found.rows:
        raise EmptyTableError(NO_ROWS)
    wide = found.too_wide
    again = look(Survey(wide, distinct=True)) if wide else Survey(())
    of = {name: (again if name in wide else found).coding(name) for name in names}
    layout = Layout(of[subject], tuple(of[n] for n in quasi_identifiers), tuple(of[n] for n in sensitive))
    return _narrowed(look, layout)


def _narrowed(look: Callable[[Any], Any], layout: Layout) -> Layout:
    """The same layout with ranks in the place of words until a key has at most 64 bits."""
    while layout.subject_bits + layout.class_bits + layout.value_bits > WORD_BITS:
        roles = {"quasi_identifiers": layout.quasi_identifiers, "sensitive": layout.sensitive}
        name = max(roles, key=lambda n: width(roles[n]))
        role, length = roles[name], 0
        while length < len(role) and width(role[: length + 1]) <= WORD_BITS:
            length += 1
        if length == 1 and isinstance(role[0], Compound):
            raise ColumnError(
                f"rows need keys of {layout.subject_bits} + {layout.class_bits} + {layout.value_bits} bits, more than "
                f"{WORD_BITS}; measure fewer attributes at a time"
            )
        roles[name] = (look(WordSurvey(role[:length])).coding(), *role[length:])
        layout = Layout(layout.subject, roles["quasi_identifiers"], roles["sensitive"])
    return layout


# ------------------------------------------------------------------------------------------------------------- runs


@dataclass
class Runs:
    """Sorted keys of shards, cut into pieces at boundaries that all shards share.

    ``low_bits`` is the number of low bits that are not cut: a piece holds all keys that agree above them.
    """

    low_bits: int
    runs: list[Words] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(len(run) for run in self.runs)

    def add(self, keys: Words) -> None:
        """Take a shard's keys; they are sorted in place."""
        keys.sort()
        self.runs.append(keys)

    def pieces(self, rows: int = PIECE_ROWS) -> Iterator[list[Words]]:
        """Slices of all runs, piece by piece in the order of the keys; about ``rows`` keys each."""
        count = max(1, self.rows // rows)
        step = max(1, self.rows // (count * 256))
        sample = np.sort(np.concatenate([run[::step] for run in self.runs]))
        cuts = sample[np.linspace(0, len(sample), count, endpoint=False, dtype=np.int64)[1:]]
        low = np.uint64(self.low_bits)
        cuts = np.unique((cuts >> low) << low) if self.low_bits < WORD_BITS else cuts[:0]
        bounds = [np.concatenate(([0], np.searchsorted(run, cuts), [len(run)])) for run in self.runs]
        for piece in range(len(cuts) + 1):
            slices = [run[at[piece] : at[piece + 1]] for run, at in zip(self.runs, bounds, strict=True)]
            if any(len(one) for one in slices):
                yield slices


def merged(slices: Sequence[Words]) -> Words:
    """The sorted keys of all slices."""
    keys = np.concatenate(slices)
    keys.sort()
    return keys


def runs_of(batches: Iterable[Batch], layout: Layout, by: str, advance: Callable[[int], None] | None = None) -> Runs:
    """The sorted keys of a table in this process; one batch is sorted while the next is read.

    Raises
    ------
    EmptyTableError, NullValueError, ColumnError
    """
    low = layout.value_bits + (layout.subject_bits if by == "class" else layout.class_bits)
    runs, before, waiting = Runs(low), 0, list[Future[None]]()
    with ThreadPoolExecutor(max_workers=_cores()) as pool:
        for batch in batches:
            keys = layout.keys(batch, by, before)
            before += len(keys)
            waiting.append(pool.submit(runs.add, keys))
            while len(waiting) > 2 * _cores():
                waiting.pop(0).result()
            if advance:
                advance(len(keys))
        for future in waiting:
            future.result()
    if not runs.rows:
        raise EmptyTableError(NO_ROWS)
    return runs


def counted(runs: Runs, count: Callable[[Words], T], rows: int | None = None) -> Iterator[T]:
    """``count`` of the sorted keys of each piece, in order; as many pieces at a time as there are cores."""
    with ThreadPoolExecutor(max_workers=_cores()) as pool:
        waiting: list[Future[T]] = []
        for slices in runs.pieces(rows or PIECE_ROWS):
            waiting.append(pool.submit(lambda slices=slices: count(merged(slices))))  # type: ignore[misc]
            if len(waiting) > _cores():
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


# --------------------------------------------------------------------------------------------------------- by class


@dataclass(frozen=True, eq=False)
class ClassPiece:
    """The finished counts of some whole classes.

    Attributes
    ----------
    classes : ndarray of uint64, shape (C,)
        Their words, ascending.
    rows, subjects : ndarray of int64, shape (C,)
    largest_share : ndarray of float64, shape (C,)
    weight : ndarray of float64, shape (W,); value : ndarray of uint64, shape (W,)
        Non-zero weights and their sensitive values, class after class.
    weights : ndarray of int64, shape (C,)
        How many of them each class has.
    held, held_rows : ndarray of uint64 and int64, shape (H,)
        Distinct ``subject | value`` words of the piece with their rows, from which the reference is made.
    """

    classes: Words
    rows: NDArray[np.int64]
    subjects: NDArray[np.int64]
    largest_share: NDArray[np.float64]
    weight: NDArray[np.float64]
    value: Words
    weights: NDArray[np.int64]
    held: Words
    held_rows: NDArray[np.int64]


def class_piece(keys: Words, subject_bits: int, value_bits: int) -> ClassPiece:
    """Count sorted keys ``class | subject | value``; linear.

    ``held`` may repeat a word, once for each class in which its subject is.
    """
    start = _starts(keys)
    cell_rows = np.diff(np.append(start, len(keys)))
    cells = keys[start]
    pairs = cells >> np.uint64(value_bits)
    pair_start = _starts(pairs)
    pair_class = pairs[pair_start] >> np.uint64(subject_bits)
    alone = len(pair_start) == len(cells)
    pair_cells = np.diff(np.append(pair_start, len(cells)))
    pair_rows = cell_rows if alone else np.add.reduceat(cell_rows, pair_start)
    class_start = _starts(pair_class)
    subjects = np.diff(np.append(class_start, len(pair_class)))
    rows = np.add.reduceat(pair_rows, class_start)
    share = np.ones(len(cells)) if alone else cell_rows / np.repeat(pair_rows, pair_cells)
    # Within a class the same value comes from several subjects: add up in the order of class, value, subject.
    cell_class = np.repeat(np.arange(len(subjects)), np.add.reduceat(pair_cells, class_start))
    value = cells & np.uint64((1 << value_bits) - 1)
    if value_bits <= 8 and len(subjects) << value_bits <= 8 * len(cells) + 4096:
        dense = np.bincount((cell_class << value_bits) | value.astype(np.int64), share, len(subjects) << value_bits)
        slot = np.flatnonzero(dense)
        weight = dense[slot].astype(np.float64, copy=False)
    else:
        slots, inverse = np.unique((cell_class.astype(np.uint64) << np.uint64(value_bits)) | value, return_inverse=True)
        weight = np.bincount(inverse, share).astype(np.float64, copy=False)
        slot = slots.astype(np.int64)
    return ClassPiece(
        classes=pair_class[class_start],
        rows=rows,
        subjects=subjects,
        largest_share=np.maximum.reduceat(pair_rows, class_start) / rows,
        weight=weight,
        value=(slot & ((1 << value_bits) - 1)).astype(np.uint64),
        weights=np.bincount(slot >> value_bits, minlength=len(subjects)),
        held=cells & np.uint64((1 << (subject_bits + value_bits)) - 1),
        held_rows=cell_rows,
    )


def _starts(words: Words) -> NDArray[np.int64]:
    """Where each new word begins in a sorted array."""
    first = np.empty(len(words), dtype=bool)
    first[:1] = True
    np.not_equal(words[1:], words[:-1], out=first[1:])
    return np.flatnonzero(first)


@dataclass
class Reference:
    """Rows of each subject by sensitive value, over pieces: what the reference distribution is made of."""

    value_bits: int
    size: int
    dense: NDArray[np.int32] | None = None
    words: list[Words] = field(default_factory=list)
    rows: list[NDArray[np.int64]] = field(default_factory=list)

    DENSE = 2**28

    def __post_init__(self) -> None:
        if self.size << self.value_bits <= self.DENSE:
            self.dense = np.zeros(self.size << self.value_bits, dtype=np.int32)

    def add(self, held: Words, rows: NDArray[np.int64]) -> None:
        """Take the ``subject | value`` words of a piece."""
        if self.dense is not None:
            np.add.at(self.dense, held.astype(np.int64), rows.astype(np.int32))
            return
        self.words.append(held)
        self.rows.append(rows)
        if sum(map(len, self.words[1:])) > max(40 * PIECE_ROWS, len(self.words[0])):
            self._unite()

    def _unite(self) -> None:
        words, inverse = np.unique(np.concatenate(self.words), return_inverse=True)
        self.rows = [np.bincount(inverse, np.concatenate(self.rows)).astype(np.int64)]
        self.words = [words]

    def cells(self) -> tuple[Words, NDArray[np.int64]]:
        """The distinct words, ascending, and their rows."""
        if self.dense is not None:
            words = np.flatnonzero(self.dense)
            return words.astype(np.uint64), self.dense[words].astype(np.int64)
        self._unite()
        return self.words[0], self.rows[0]


def histogram_of(pieces: Iterable[ClassPiece], layout: Layout) -> Histogram:
    """Put disjoint pieces together, in whatever order they come."""
    totals = Reference(layout.value_bits, 1 << layout.subject_bits)
    kept: list[ClassPiece] = []
    for piece in pieces:
        totals.add(piece.held, piece.held_rows)
        empty = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        kept.append(ClassPiece(**{**vars(piece), "held": empty[0], "held_rows": empty[1]}))
    held, held_rows = totals.cells()
    subject_start = _starts(held >> np.uint64(layout.value_bits))
    people = len(subject_start)
    values = held & np.uint64((1 << layout.value_bits) - 1)
    present = np.unique(values)
    slot = np.searchsorted(present, values)
    total = np.add.reduceat(held_rows, subject_start)
    share = held_rows / np.repeat(total, np.diff(np.append(subject_start, len(held))))
    reference = np.bincount(slot, share, minlength=len(present)) / people
    del totals, held, held_rows, values, slot, share

    # What is joined is dropped at once, so that no array is held twice.
    classes = np.concatenate([piece.classes for piece in kept])
    order = None if (classes[1:] > classes[:-1]).all() else np.argsort(classes)
    of_class = np.concatenate([piece.weights for piece in kept])
    indptr = np.concatenate(([0], np.cumsum(of_class)))
    weights = scipy.sparse.csr_array(
        (
            np.concatenate([piece.weight for piece in kept]),
            np.searchsorted(present, np.concatenate([piece.value for piece in kept])),
            indptr,
        ),
        shape=(len(classes), len(present)),
    )

    def joined(name: str) -> NDArray[np.generic]:
        found = np.concatenate([getattr(piece, name) for piece in kept])
        return found if order is None else found[order]

    rows = joined("rows").astype(np.int64, copy=False)
    return Histogram(
        classes=unpack(layout.quasi_identifiers, classes if order is None else classes[order]),
        values=unpack(layout.sensitive, present) if layout.sensitive else pa.table({}),
        rows=rows,
        subjects=joined("subjects").astype(np.int64, copy=False),
        largest_share=joined("largest_share").astype(np.float64, copy=False),
        weights=weights if order is None else weights[order],
        reference=reference,
        total_rows=int(rows.sum()),
        total_subjects=people,
    )


@dataclass(frozen=True, eq=False)
class CellPiece:
    """The counts of some whole classes, subject by subject: ``class | subject | value`` words and their rows."""

    cells: Words
    rows: NDArray[np.int64]


def cell_piece(keys: Words) -> CellPiece:
    """Count sorted keys; linear."""
    start = _starts(keys)
    return CellPiece(keys[start], np.diff(np.append(start, len(keys))))


def partial_of(pieces: Iterable[CellPiece], layout: Layout) -> PartialHistogram:
    """The mergeable histogram of disjoint pieces of classes, in whatever order they come. 40 bytes a cell."""
    kept = list(pieces)
    cells = np.concatenate([piece.cells for piece in kept])
    rows = np.concatenate([piece.rows for piece in kept])
    if not (cells[1:] > cells[:-1]).all():
        order = np.argsort(cells)
        cells, rows = cells[order], rows[order]
    del kept
    subject_bits, value_bits = layout.subject_bits, layout.value_bits
    words = cells >> np.uint64(subject_bits + value_bits)
    start = _starts(words)
    cell_class = np.repeat(np.arange(len(start)), np.diff(np.append(start, len(cells))))
    classes = words[start]
    del words
    person = (cells >> np.uint64(value_bits)) & np.uint64((1 << subject_bits) - 1)
    people, cell_subject = _compacted(person, subject_bits)
    value = cells & np.uint64((1 << value_bits) - 1)
    values, cell_value = _compacted(value, value_bits)
    return PartialHistogram(
        unpack(layout.quasi_identifiers, classes),
        layout.subject.values(people),
        unpack(layout.sensitive, values) if layout.sensitive else pa.table({}),
        cell_class,
        cell_subject,
        cell_value,
        rows,
    )


def _compacted(codes: Words, bits: int) -> tuple[Words, NDArray[np.int64]]:
    """The codes in use, and the position of each among them."""
    if bits <= 28:
        seen = np.zeros(1 << bits, dtype=bool)
        seen[codes.astype(np.int64)] = True
        return np.flatnonzero(seen).astype(np.uint64), (np.cumsum(seen) - 1)[codes.astype(np.int64)]
    distinct, position = np.unique(codes, return_inverse=True)
    return distinct, position.astype(np.int64)


# ------------------------------------------------------------------------------------------------------- by subject


@dataclass(frozen=True, eq=False)
class SubjectPiece:
    """One vector each for some subjects, and how their rows spread over the sensitive values.

    Attributes
    ----------
    subjects : ndarray of uint64, shape (S,)
        Their codes, ascending.
    vectors : pyarrow.Table, S rows
        The majority of each attribute, as ``classes.per_subject_majority`` has it.
    person, value : ndarray of int64 and uint64, shape (M,)
        The (subject, value) pairs that occur, sorted; ``person`` counts within the piece.
    rows : ndarray of int64, shape (M,)
    """

    subjects: Words
    vectors: pa.Table
    person: NDArray[np.int64]
    value: Words
    rows: NDArray[np.int64]


def subject_piece(keys: Words, layout: Layout) -> SubjectPiece:
    """Reduce sorted keys ``subject | attributes | value`` to one vector per subject; linear."""
    class_bits, value_bits = layout.class_bits, layout.value_bits
    owner = keys >> np.uint64(class_bits + value_bits) if class_bits + value_bits < WORD_BITS else keys * np.uint64(0)
    start = _starts(owner)
    size = np.diff(np.append(start, len(keys)))
    words = keys >> np.uint64(value_bits)
    if class_bits < WORD_BITS:
        words &= np.uint64((1 << class_bits) - 1)
    expanded = words_of(layout.quasi_identifiers, words)
    columns = _majorities(fields(layout.quasi_identifiers), expanded, start, size)

    person = np.repeat(np.arange(len(start)), size)
    value = keys & np.uint64((1 << value_bits) - 1)
    if value_bits <= 6:
        counts = np.bincount((person << value_bits) | value.astype(np.int64), minlength=len(start) << value_bits)
        slot = np.flatnonzero(counts)
        rows = counts[slot]
    else:
        slots, rows = np.unique((person.astype(np.uint64) << np.uint64(value_bits)) | value, return_counts=True)
        slot = slots.astype(np.int64)
    return SubjectPiece(
        owner[start],
        pa.table(columns),
        slot >> value_bits,
        (slot & ((1 << value_bits) - 1)).astype(np.uint64),
        rows.astype(np.int64, copy=False),
    )


def _majorities(
    placed: Sequence[Field], expanded: Sequence[Words], start: NDArray[np.int64], size: NDArray[np.int64]
) -> dict[str, pa.Array]:
    """Per column the most frequent code of each run of rows; among equals the smaller."""
    octets = sorted({(p.word, p.shift // 8) for p in placed if p.coding.bits == 1})
    ones = {octet: _ones(expanded[octet[0]], octet[1], start, size) for octet in octets}
    columns = {}
    person: NDArray[np.int64] | None = None
    for place in placed:
        if place.coding.bits == 1:
            true = ones[place.word, place.shift // 8][:, place.shift % 8]
            columns[place.coding.name] = place.coding.values((2 * true > size).astype(np.uint64))
            continue
        if person is None:
            person = np.repeat(np.arange(len(start)), size)
        columns[place.coding.name] = place.coding.values(_winners(codes_at(place, expanded), person, len(start)))
    return columns


def _ones(words: Words, octet: int, start: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rows of each run have each bit of one byte of their words: (S, 8).

    The eight bits are spread over the eight bytes of a word, and whole words are added: eight sums at once. A byte
    holds at most 255, so longer runs are added up in stretches.
    """
    stretches = -(-size // LANE)
    if (stretches == 1).all():
        cuts = start
    else:
        within = np.arange(int(stretches.sum())) - np.repeat(np.cumsum(stretches) - stretches, stretches)
        cuts = np.repeat(start, stretches) + LANE * within
    lanes = np.add.reduceat(_SPREAD[(words >> np.uint64(8 * octet)).astype(np.uint8)], cuts)
    counts = lanes.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8).astype(np.int64)
    if len(cuts) > len(start):
        counts = np.add.reduceat(counts, np.cumsum(stretches) - stretches, axis=0)
    return counts


_SPREAD: Words = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view("<u8")[:, 0]
"""Bit b of the index in byte b of the word."""


def _winners(codes: Words, person: NDArray[np.int64], people: int) -> Words:
    labels = int(codes.max()) + 1
    if people * labels <= 4 * len(person) + 1024:
        votes = np.bincount(person * labels + codes.astype(np.int64), minlength=people * labels)
        return votes.reshape(people, labels).argmax(axis=1).astype(np.uint64)
    # many values, few rows each: only the pairs that occur
    pair, count = np.unique(person * labels + codes.astype(np.int64), return_counts=True)
    order = np.lexsort((pair % labels, -count, pair // labels))
    return (pair % labels)[order[np.unique((pair // labels)[order], return_index=True)[1]]].astype(np.uint64)


def majority_of(pieces: Iterable[SubjectPiece], layout: Layout) -> PartialHistogram:
    """The histogram of one vector per subject, from disjoint pieces in whatever order they come."""
    kept = sorted((piece for piece in pieces if len(piece.subjects)), key=lambda piece: int(piece.subjects[0]))
    subjects = np.concatenate([piece.subjects for piece in kept])
    offset = np.concatenate(([0], np.cumsum([len(piece.subjects) for piece in kept])))
    vectors = pa.concat_tables([piece.vectors for piece in kept])
    person = np.concatenate([piece.person + at for piece, at in zip(kept, offset, strict=False)])
    value = np.concatenate([piece.value for piece in kept])
    rows = np.concatenate([piece.rows for piece in kept])
    del kept
    if not (subjects[1:] > subjects[:-1]).all():  # pieces of a hash partition interleave
        order = np.argsort(subjects)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        subjects, vectors, person = subjects[order], vectors.take(pa.array(order)), rank[person]
        by_person = np.argsort(person, kind="stable")
        person, value, rows = person[by_person], value[by_person], rows[by_person]
    grouped = equivalence_classes(vectors)
    values, cell_value = _compacted(value, layout.value_bits)
    cell_class = grouped.ids[person]
    # Pairs are sorted by subject and value already, so a stable sort by class is all that is left.
    order = np.argsort(cell_class, kind="stable")
    return PartialHistogram(
        grouped.vectors,
        layout.subject.values(subjects),
        unpack(layout.sensitive, values) if layout.sensitive else pa.table({}),
        cell_class[order],
        person[order],
        cell_value[order],
        rows[order],
    )
