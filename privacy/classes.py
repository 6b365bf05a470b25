r"""Equivalence classes and the sparse histogram on which every table-level measure works.

Rows reduce to counts :math:`n_{c,s,v}`: the faces of subject *s* in class *c* that have the sensitive value *v*. That
is a ``PartialHistogram``; parts made anywhere, of any shards of the rows, ``merge`` into the one of the union, exactly.
When no more rows follow, ``finish`` forgets the subjects and keeps what the measures need (a ``Histogram``):

.. math::
    n_c = \sum_{s,v} n_{c,s,v}, \qquad
    k_c = |\{s : n_{c,s,\cdot} > 0\}|, \qquad
    w_{c,v} = \sum_s \frac{n_{c,s,v}}{n_{c,s,\cdot}}, \qquad
    r_v = \frac{1}{|S|} \sum_s \frac{n_{\cdot,s,v}}{n_{\cdot,s,\cdot}}

so a subject has weight 1 in its class, however many photos it has there, shared among its photos' values:
:math:`\sum_v w_{c,v} = k_c`. Classes, subjects and values are kept in the order of their values, never in the order of
the rows, so neither the order of the rows nor their sharding can change a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice, takewhile
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from facecrowd.privacy.errors import ColumnError, EmptyTableError, LengthError, NullValueError
from facecrowd.privacy.packing import packed_flags

Columns: TypeAlias = pa.Table | Mapping[str, Any]
"""Named columns of equal length: an Arrow table, or a mapping of names to arrays of any kind Arrow can read."""

CODE_BITS = 64


@dataclass(frozen=True, eq=False)
class Classes:
    """Rows grouped by equal vectors.

    Attributes
    ----------
    ids : ndarray of int64, shape (N,)
        The class of each row, 0 … C - 1, in the lexicographic order of the vectors.
    vectors : pyarrow.Table, C rows
        The vector of each class, one column per attribute.
    """

    ids: NDArray[np.int64]
    vectors: pa.Table


@dataclass(frozen=True, eq=False)
class SubjectVectors:
    """One vector per subject.

    Attributes
    ----------
    subjects : pyarrow.Array, length S
        The distinct subjects, sorted.
    vectors : pyarrow.Table, S rows
        The vector of each subject.
    row_subject : ndarray of int64, shape (N,)
        For each input row, the position of its subject.
    """

    subjects: pa.Array
    vectors: pa.Table
    row_subject: NDArray[np.int64]

    def rows(self) -> pa.Table:
        """The vector of every input row (N rows): the same for all rows of a subject."""
        return self.vectors.take(pa.array(self.row_subject))


@dataclass(frozen=True, eq=False)
class PartialHistogram:
    """Counts of (class, subject, sensitive value), sorted by the three: the mergeable form.

    Attributes
    ----------
    classes : pyarrow.Table, C rows
        The quasi-identifier vector of each class, or one column ``class`` where classes were given by id.
    subjects : pyarrow.Array, length S
    values : pyarrow.Table, V rows
        The distinct combinations of the sensitive attributes; without sensitive attributes one row and no column.
    cell_class, cell_subject, cell_value, cell_rows : ndarray of int64, shape (M,)
        The non-zero cells: positions in the three above, and the number of rows.
    """

    classes: pa.Table
    subjects: pa.Array
    values: pa.Table
    cell_class: NDArray[np.int64]
    cell_subject: NDArray[np.int64]
    cell_value: NDArray[np.int64]
    cell_rows: NDArray[np.int64]

    def finish(self) -> Histogram:
        """The measurable form. Linear in the number of cells."""
        classes, values = self.classes.num_rows, max(self.values.num_rows, 1)
        # Cells are sorted by class and subject first, so each (class, subject) pair is one run.
        first = np.ones(len(self.cell_class), dtype=bool)
        first[1:] = (np.diff(self.cell_class) != 0) | (np.diff(self.cell_subject) != 0)
        start = np.flatnonzero(first)
        pair_rows = np.add.reduceat(self.cell_rows, start)
        pair_class = self.cell_class[start]
        subjects = np.bincount(pair_class, minlength=classes)
        rows = _sums(pair_class, pair_rows, classes).astype(np.int64)
        pair_bounds = np.concatenate(([0], np.cumsum(subjects)[:-1]))
        largest_share = np.maximum.reduceat(pair_rows, pair_bounds) / rows

        share = self.cell_rows / np.repeat(pair_rows, np.diff(np.append(start, len(first))))
        key, slot = np.unique(self.cell_class * values + self.cell_value, return_inverse=True)
        indptr = np.searchsorted(key, np.arange(classes + 1, dtype=np.int64) * values)
        weights = scipy.sparse.csr_array(
            (_sums(slot, share, len(key)), (key % values).astype(np.int64), indptr), shape=(classes, values)
        )
        subject_rows = _sums(self.cell_subject, self.cell_rows, len(self.subjects))
        reference = _sums(self.cell_value, self.cell_rows / subject_rows[self.cell_subject], values)
        return Histogram(
            classes=self.classes,
            values=self.values,
            rows=rows,
            subjects=subjects,
            largest_share=largest_share,
            weights=weights,
            reference=reference / len(self.subjects),
            total_rows=int(rows.sum()),
            total_subjects=len(self.subjects),
        )


@dataclass(frozen=True, eq=False)
class Histogram:
    """Class × sensitive value, in subjects. The module's docstring has the formulas.

    Attributes
    ----------
    classes : pyarrow.Table, C rows
        What each class shows.
    values : pyarrow.Table, V rows
        The distinct combinations of the sensitive attributes.
    rows : ndarray of int64, shape (C,)
        Faces per class.
    subjects : ndarray of int64, shape (C,)
        Distinct subjects per class.
    largest_share : ndarray of float64, shape (C,)
        The largest share of a class's faces that belongs to one subject, in (0, 1].
    weights : scipy.sparse.csr_array of float64, shape (C, V)
        Sensitive values per class, one weight per subject: row sums are ``subjects``.
    reference : ndarray of float64, shape (V,)
        The distribution over the whole table, one weight per subject; sums to 1.
    total_rows, total_subjects : int
        Of the whole table. A subject in two classes counts once here and once in each class.
    """

    classes: pa.Table
    values: pa.Table
    rows: NDArray[np.int64]
    subjects: NDArray[np.int64]
    largest_share: NDArray[np.float64]
    weights: Any
    reference: NDArray[np.float64]
    total_rows: int
    total_subjects: int

    @property
    def sensitive(self) -> list[str]:
        """The names of the sensitive attributes."""
        return list(self.values.column_names)

    def describe(self, class_index: int) -> dict[str, Any]:
        """What one class shows, as plain values: ``{attribute: value}``."""
        return dict(self.classes.slice(class_index, 1).to_pylist()[0])

    def marginal(self, attributes: Sequence[str]) -> Histogram:
        """The same classes with the distribution of only these sensitive attributes.

        Raises
        ------
        ColumnError
            If an attribute is not among the sensitive ones.
        """
        if list(attributes) == self.sensitive:
            return self
        projection, values = fold(self.values, attributes)
        weights = scipy.sparse.csr_array(self.weights @ projection)
        weights.sort_indices()
        return Histogram(
            classes=self.classes,
            values=values,
            rows=self.rows,
            subjects=self.subjects,
            largest_share=self.largest_share,
            weights=weights,
            reference=self.reference @ projection,
            total_rows=self.total_rows,
            total_subjects=self.total_subjects,
        )


def fold(values: pa.Table, attributes: Sequence[str]) -> tuple[Any, pa.Table]:
    """How weights of combinations of sensitive values add up to those of fewer attributes.

    Parameters
    ----------
    values : pyarrow.Table, V rows
        Distinct combinations.
    attributes : sequence of str

    Returns
    -------
    csr_array, shape (V, W)
        One 1 per row: the combination that each becomes.
    pyarrow.Table, W rows
        The distinct combinations of ``attributes``.

    Raises
    ------
    ColumnError
        If an attribute is not among the columns.
    """
    for name in attributes:
        if name not in values.column_names:
            raise ColumnError(
                f"{name!r} is not a sensitive attribute of this table; it has {list(values.column_names)}"
            )
    grouped = equivalence_classes(values.select(list(attributes)))
    old = len(grouped.ids)
    ones = (np.ones(old), (np.arange(old), grouped.ids))
    return scipy.sparse.csr_array(ones, shape=(old, grouped.vectors.num_rows)), grouped.vectors


def equivalence_classes(columns: Columns) -> Classes:
    """Group rows by equal vectors.

    Each column becomes the ranks of its values; the ranks of all columns are packed into one 64-bit code, the first
    column in the highest bits. Where 64 bits do not suffice, the code so far is replaced by its own rank (a row code)
    before the next column is added, so any number of columns of any kind group exactly.

    Parameters
    ----------
    columns : Columns
        (N,) each. Booleans, integers, numbers, strings, dates, dictionaries (categories).

    Raises
    ------
    EmptyTableError, LengthError, ColumnError, NullValueError
    """
    arrays = _arrow_columns(columns)
    code = _packed(arrays)
    # np.unique with return_index sorts stably, at several times the cost; any row can stand for its class
    order = np.argsort(code)
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = np.diff(code[order]) != 0
    ids = np.empty(len(order), dtype=np.int64)
    ids[order] = np.cumsum(starts) - 1
    first = pa.array(order[starts])
    return Classes(ids, pa.table({name: array.take(first) for name, array in arrays.items()}))


def partial_histogram(
    subject: ArrayLike | pa.Array | pa.ChunkedArray,
    *,
    quasi_identifiers: Columns | None = None,
    class_ids: ArrayLike | None = None,
    sensitive: Columns | None = None,
) -> PartialHistogram:
    """Count rows by class, subject and sensitive value.

    Parameters
    ----------
    subject : array, shape (N,)
        Who each row shows; any type that can be sorted.
    quasi_identifiers : Columns, optional
        What the release shows of each row; equal vectors are one class.
    class_ids : array, shape (N,), optional
        The class of each row where it is not given by attributes (a k-same partition). Exactly one of the two.
    sensitive : Columns, optional
        What must not be inferred from the class, taken from the originals.

    Raises
    ------
    EmptyTableError, LengthError, ColumnError, NullValueError
    """
    if (quasi_identifiers is None) == (class_ids is None):
        raise ColumnError("give either quasi-identifiers or class ids, so that rows fall into classes")
    columns = {"class": class_ids} if quasi_identifiers is None else quasi_identifiers
    subject_array = _arrow(subject, "subject")
    length = len(subject_array)
    if length == 0:
        raise EmptyTableError("the table has no rows, so nothing can be measured; check the input and its filters")
    people, person = _people(subject_array)
    grouped = _grouped(columns, length)
    values = _grouped(sensitive, length)
    return _count(
        grouped.vectors, people, values.vectors, grouped.ids, person, values.ids, np.ones(length, dtype=np.int64)
    )


def histogram(
    subject: ArrayLike | pa.Array | pa.ChunkedArray,
    *,
    quasi_identifiers: Columns | None = None,
    class_ids: ArrayLike | None = None,
    sensitive: Columns | None = None,
) -> Histogram:
    """``partial_histogram(...).finish()``, for rows that are all at hand."""
    return partial_histogram(
        subject, quasi_identifiers=quasi_identifiers, class_ids=class_ids, sensitive=sensitive
    ).finish()


def merge(parts: Sequence[PartialHistogram]) -> PartialHistogram:
    """The histogram of the union of the parts' rows. Associative and commutative, and exact.

    Raises
    ------
    EmptyTableError
        If there is no part.
    ColumnError
        If the parts differ in the names or types of their columns.
    """
    if not parts:
        raise EmptyTableError("there is no partial histogram to merge; count at least one shard of rows first")
    classes = _stacked([part.classes for part in parts], "quasi-identifiers")
    values = _stacked([part.values for part in parts], "sensitive attributes")
    subjects = _stacked([pa.table({"subject": part.subjects}) for part in parts], "subjects")
    people, person = _people(_arrow(subjects.column("subject"), "subject"))
    grouped = _grouped(classes, classes.num_rows)
    valued = _grouped(values, values.num_rows) if values.num_columns else _grouped(None, len(parts))

    def globally(ids: NDArray[np.int64], sizes: list[int], cells: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        return np.concatenate([ids[start + cell] for start, cell in zip(starts, cells, strict=True)])

    return _count(
        grouped.vectors,
        people,
        valued.vectors,
        globally(grouped.ids, [p.classes.num_rows for p in parts], [p.cell_class for p in parts]),
        globally(person, [len(p.subjects) for p in parts], [p.cell_subject for p in parts]),
        globally(valued.ids, [max(p.values.num_rows, 1) for p in parts], [p.cell_value for p in parts]),
        np.concatenate([part.cell_rows for part in parts]),
    )


def regrouped(partial: PartialHistogram, class_of: NDArray[np.int64]) -> PartialHistogram:
    """The same rows in other classes: class c of ``partial`` becomes class ``class_of[c]``, or is left out below 0.

    The new classes are numbered 0 … C - 1 as given, every number in use, under the one column ``class``. A subject with
    rows in several old classes that fall together counts once. Exact.

    Raises
    ------
    LengthError
        If ``class_of`` has not one entry per class.
    EmptyTableError
        If every class is left out.
    """
    if len(class_of) != partial.classes.num_rows:
        raise LengthError(
            f"{len(class_of)} classes are mapped where there are {partial.classes.num_rows}; give one each"
        )
    target = np.asarray(class_of, dtype=np.int64)[partial.cell_class]
    kept = target >= 0
    if not kept.any():
        raise EmptyTableError("every class is left out, so nothing is released; relax the policy")
    classes = pa.table({"class": pa.array(np.arange(int(class_of.max()) + 1))})
    people, person = np.unique(partial.cell_subject[kept], return_inverse=True)
    return _count(
        classes,
        partial.subjects.take(pa.array(people)),
        partial.values,
        target[kept],
        person.astype(np.int64, copy=False),
        partial.cell_value[kept],
        partial.cell_rows[kept],
    )


def per_subject_majority(subject: ArrayLike | pa.Array | pa.ChunkedArray, columns: Columns) -> SubjectVectors:
    """One vector per subject: per attribute, the value that most of the subject's rows have.

    Among values equally frequent the smaller wins (False before True, numbers by size, text by code point). Attributes
    are decided one by one, so the vector may be one that no single photo of the subject shows.

    Parameters
    ----------
    subject : array, shape (N,)
    columns : Columns
        (N,) each.

    Raises
    ------
    EmptyTableError, LengthError, ColumnError, NullValueError
    """
    subject_array = _arrow(subject, "subject")
    arrays = _arrow_columns(columns, len(subject_array))
    people, person = _people(subject_array)
    chosen = {}
    for name, array in arrays.items():
        labels, code = _ranked(array, name)
        if len(people) * len(labels) <= 4 * len(person) + 1024:
            votes = np.bincount(person * len(labels) + code, minlength=len(people) * len(labels))
            winner = votes.reshape(len(people), len(labels)).argmax(axis=1)
        else:  # many values, few rows each: only the pairs that occur
            pair, votes = np.unique(person * len(labels) + code, return_counts=True)
            order = np.lexsort((pair % len(labels), -votes, pair // len(labels)))
            winner = (pair % len(labels))[order[np.unique((pair // len(labels))[order], return_index=True)[1]]]
        chosen[name] = labels.take(pa.array(winner))
    return SubjectVectors(people, pa.table(chosen), person)


def _arrow(values: Any, name: str) -> pa.Array:
    """One contiguous Arrow array without dictionaries."""
    try:
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError) as error:
        raise ColumnError(f"column {name!r} mixes types or is not a plain column: {error}") from error
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _arrow_columns(columns: Columns, length: int | None = None) -> dict[str, pa.Array]:
    """Columns as Arrow arrays of one length."""
    names = columns.column_names if isinstance(columns, pa.Table) else list(columns)
    if not names:
        raise ColumnError("no attribute was named; name at least one column")
    if len(set(names)) < len(names):
        raise ColumnError(f"an attribute is named twice among {names}; name each once")
    arrays = {name: _arrow(columns[name], name) for name in names}
    expected = len(arrays[names[0]]) if length is None else length
    for name, array in arrays.items():
        if len(array) != expected:
            raise LengthError(f"column {name!r} has {len(array)} rows where {expected} are expected; give one per row")
    if expected == 0:
        raise EmptyTableError("the table has no rows, so nothing can be measured; check the input and its filters")
    return arrays


def _ranked(array: pa.Array, name: str) -> tuple[pa.Array, NDArray[Any]]:
    """The distinct values in order, and the position of each row's value among them."""
    kind = array.type
    missing = array.null_count
    if pa.types.is_floating(kind):
        missing += int(pc.sum(pc.is_nan(array)).as_py() or 0)
    if missing:
        bad = pc.is_null(array, nan_is_null=True).index(pa.scalar(True)).as_py()
        raise NullValueError(
            f"column {name!r} is null in {missing} of {len(array)} rows, first in row {bad}; "
            "fill the values in or leave the rows out"
        )
    if pa.types.is_boolean(kind):
        flags = np.asarray(array.to_numpy(zero_copy_only=False))
        if flags.all() or not flags.any():
            return pa.array([bool(flags[0])]), np.zeros(len(flags), dtype=np.uint8)
        return pa.array([False, True]), flags.view(np.uint8)
    if pa.types.is_integer(kind):
        numbers = array.to_numpy(zero_copy_only=False)
        low, high = int(numbers.min()), int(numbers.max())
        if kind != pa.uint64() and high - low < 4 * len(numbers):  # dense: a table look-up beats a sort
            offset = numbers.astype(np.int64) - low
            seen = np.zeros(high - low + 1, dtype=bool)
            seen[offset] = True
            return pa.array(np.flatnonzero(seen) + low).cast(kind), (np.cumsum(seen) - 1)[offset]
        distinct, code = np.unique(numbers, return_inverse=True)
        return pa.array(distinct, type=kind), code.astype(np.int64, copy=False)
    try:
        encoded = array.dictionary_encode()
        order = pc.array_sort_indices(encoded.dictionary).to_numpy()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise ColumnError(
            f"column {name!r} has type {kind}, which has no order; give numbers, text or booleans"
        ) from error
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return encoded.dictionary.take(pa.array(order)), rank[encoded.indices.to_numpy()]


def _people(subject: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    people, person = _ranked(subject, "subject")
    return people, person.astype(np.int64, copy=False)  # ranks of two people may come as bytes, and are multiplied


def _packed(arrays: Mapping[str, pa.Array]) -> NDArray[np.uint64]:
    """One code per row, ordered like the rows' vectors: packed bits, or row codes where 64 bits are too few.

    Columns are ranked one at a time, so that only one column's ranks are held beside the code; booleans that come first
    go there together, eight bitmaps at a time.
    """
    rows = len(next(iter(arrays.values())))
    packed = np.zeros(rows, dtype=np.uint64)
    used = 0
    flags = list(takewhile(lambda name: pa.types.is_boolean(arrays[name].type), arrays))[:CODE_BITS]
    if flags and not any(arrays[name].null_count for name in flags):
        packed, used = packed_flags([arrays[name] for name in flags], rows), len(flags)
    else:
        flags = []
    for name, array in islice(arrays.items(), len(flags), None):
        labels, code = _ranked(array, name)
        bits = (len(labels) - 1).bit_length()
        if bits == 0:
            continue
        if used + bits > CODE_BITS:
            distinct, rank = np.unique(packed, return_inverse=True)
            packed, used = rank.astype(np.uint64), (len(distinct) - 1).bit_length()
        packed <<= np.uint64(bits)
        packed |= code.astype(np.uint64)
        used += bits
    return packed


def _grouped(columns: Columns | None, length: int) -> Classes:
    """``equivalence_classes``; without columns all rows are alike."""
    if columns is None:
        return Classes(np.zeros(length, dtype=np.int64), pa.table({}))
    arrays = _arrow_columns(columns, length)
    if len(arrays) == 1:  # ranks of one column are the classes already
        ((name, array),) = arrays.items()
        label, code = _ranked(array, name)
        return Classes(code.astype(np.int64, copy=False), pa.table({name: label}))
    return equivalence_classes(pa.table(arrays))


def _stacked(tables: Sequence[pa.Table], what: str) -> pa.Table:
    try:
        return pa.concat_tables(tables)
    except pa.ArrowInvalid as error:
        schemas = reduce(
            lambda seen, s: seen if s in seen else [*seen, s], (str(t.schema) for t in tables), list[str]()
        )
        shown = " and ".join("; ".join(schema.splitlines()) for schema in schemas[:2])
        raise ColumnError(f"the parts to merge differ in their {what}: {shown}; count all parts alike") from error


def _sums(slot: NDArray[np.int64], amount: NDArray[Any], length: int) -> NDArray[np.float64]:
    return np.bincount(slot, weights=amount, minlength=length).astype(np.float64, copy=False)


def _count(
    classes: pa.Table,
    subjects: pa.Array,
    values: pa.Table,
    class_id: NDArray[np.int64],
    subject_id: NDArray[np.int64],
    value_id: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> PartialHistogram:
    """Sort the triples and add up equal ones."""
    value_bits = max(values.num_rows - 1, 0).bit_length()
    subject_bits = max(len(subjects) - 1, 0).bit_length()
    class_bits = max(classes.num_rows - 1, 0).bit_length()
    if class_bits + subject_bits + value_bits <= CODE_BITS:
        shift_s, shift_c = np.uint64(value_bits), np.uint64(value_bits + subject_bits)
        key = (class_id.astype(np.uint64) << shift_c) | (subject_id.astype(np.uint64) << shift_s)
        key |= value_id.astype(np.uint64)
        if (rows == 1).all():  # single rows carry no payload, and sorting keys alone is several times faster
            key.sort()
            order = None
        else:
            order = np.argsort(key)
            key = key[order]
        first = np.ones(len(key), dtype=bool)
        first[1:] = key[1:] != key[:-1]
        start = np.flatnonzero(first)
        key = key[start]
        cell_class = (key >> shift_c).astype(np.int64)
        cell_subject = ((key >> shift_s) & np.uint64((1 << subject_bits) - 1)).astype(np.int64)
        cell_value = (key & np.uint64((1 << value_bits) - 1)).astype(np.int64)
    else:
        order = np.lexsort((value_id, subject_id, class_id))
        triples = np.stack([class_id[order], subject_id[order], value_id[order]])
        first = np.ones(len(order), dtype=bool)
        first[1:] = (triples[:, 1:] != triples[:, :-1]).any(axis=0)
        start = np.flatnonzero(first)
        cell_class, cell_subject, cell_value = triples[:, start]
    if order is None:
        cell_rows = np.diff(np.append(start, len(first)))
    else:
        cell_rows = np.add.reduceat(rows[order], start)
    return PartialHistogram(classes, subjects, values, cell_class, cell_subject, cell_value, cell_rows)
