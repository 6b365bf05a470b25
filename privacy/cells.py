r"""Cells: what a planner works on, whatever the number of rows.

A cell is a distinct quasi-identifier vector; rows reduce to counts :math:`n_{v,s,x}` of faces of subject *s* in cell
*v* with the sensitive value *x* (``classes.PartialHistogram``). A plan groups cells into classes and says what each
class shows; ``Cells.regroup`` then gives the exact histogram of the plan's classes, subjects counted once however many
of their cells fall together. Where every subject has one cell (``per_subject``, the default) the counts of cells simply
add up, and ``additive`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from facecrowd.privacy.attributes import Attribute, Hierarchy, Kind, domain
from facecrowd.privacy.classes import (
    Columns,
    Histogram,
    PartialHistogram,
    partial_histogram,
    per_subject_majority,
    regrouped,
)

SUPPRESSED = -1


@dataclass(frozen=True, eq=False)
class Cells:
    """The table as cells.

    Attributes
    ----------
    attributes : tuple of A Attribute
        The quasi-identifiers.
    codes : ndarray of int32, shape (V, A)
        The value of each cell in each attribute.
    partial : PartialHistogram
        Counts of (cell, subject, sensitive value).
    """

    attributes: tuple[Attribute, ...]
    codes: NDArray[np.int32]
    partial: PartialHistogram

    @cached_property
    def histogram(self) -> Histogram:
        """The cells themselves as classes: rows, subjects and weights of each."""
        return self.partial.finish()

    @cached_property
    def additive(self) -> bool:
        """Whether every subject has one cell, so that subjects and weights of cells add up."""
        return int(self.histogram.subjects.sum()) == self.histogram.total_subjects

    def __len__(self) -> int:
        return len(self.codes)

    def regroup(self, class_of_cell: NDArray[np.int64]) -> Histogram | None:
        """The histogram of a grouping; cells of class ``SUPPRESSED`` are left out. None when all are.

        ``reference`` becomes that of the subjects who are left, as DESIGN's guarantee 1 has it.
        """
        if (class_of_cell == SUPPRESSED).all():
            return None
        return regrouped(self.partial, class_of_cell).finish()


@dataclass(frozen=True, eq=False)
class CellPlan:
    """What a planner decides.

    Attributes
    ----------
    class_of_cell : ndarray of int64, shape (V,)
        0 … C - 1, or ``SUPPRESSED``.
    low, high : ndarray of int32, shape (C, A)
        What each class shows, as intervals of codes; ``low == high`` is a value.
    method : str
    notes : tuple of str
        What a reader of the plan must know.
    """

    class_of_cell: NDArray[np.int64]
    low: NDArray[np.int32]
    high: NDArray[np.int32]
    method: str
    notes: tuple[str, ...] = field(default=())

    @property
    def classes(self) -> int:
        return len(self.low)

    def labels(self, attributes: Sequence[Attribute]) -> pa.Table:
        """What each class shows, in words: C rows, one string column per attribute."""
        columns = {}
        for a, attribute in enumerate(attributes):
            pairs, which = np.unique(np.stack([self.low[:, a], self.high[:, a]], 1), axis=0, return_inverse=True)
            names = pa.array([attribute.label(int(low), int(high)) for low, high in pairs], pa.string())
            columns[attribute.name] = names.take(pa.array(which.ravel()))
        return pa.table(columns)


def cells(
    subject: ArrayLike | pa.Array | pa.ChunkedArray,
    quasi_identifiers: Columns,
    sensitive: Columns | None = None,
    *,
    per_subject: bool = True,
    kinds: Mapping[str, Kind] | None = None,
    hierarchies: Mapping[str, Hierarchy] | None = None,
) -> Cells:
    """Reduce rows to cells.

    Parameters
    ----------
    subject : array, shape (N,)
    quasi_identifiers, sensitive : Columns
        (N,) each.
    per_subject : bool
        Give every subject one vector, the majority of their photos' values (``classes.per_subject_majority``).
    kinds, hierarchies : mapping of attribute to its kind or hierarchy, optional

    Raises
    ------
    EmptyTableError, LengthError, ColumnError, NullValueError, HierarchyError
    """
    if per_subject:
        quasi_identifiers = per_subject_majority(subject, quasi_identifiers).rows()
    partial = partial_histogram(subject, quasi_identifiers=quasi_identifiers, sensitive=sensitive)
    return of_partial(partial, kinds=kinds, hierarchies=hierarchies)


def of_partial(
    partial: PartialHistogram,
    *,
    kinds: Mapping[str, Kind] | None = None,
    hierarchies: Mapping[str, Hierarchy] | None = None,
) -> Cells:
    """The cells of a histogram counted elsewhere (merged from parts, say)."""
    attributes, codes = [], []
    for name in partial.classes.column_names:
        column = partial.classes[name].combine_chunks()
        distinct = pc.unique(column)
        distinct = distinct.take(pc.array_sort_indices(distinct))
        attribute = domain(name, distinct.to_pylist(), (kinds or {}).get(name), (hierarchies or {}).get(name))
        order = {value: code for code, value in enumerate(attribute.values)}
        position = np.array([order[value] for value in distinct.to_pylist()], dtype=np.int32)
        codes.append(position[np.asarray(pc.index_in(column, distinct))])
        attributes.append(attribute)
    return Cells(tuple(attributes), np.stack(codes, axis=1), partial)


def planned(cells: Cells, plan: CellPlan) -> Histogram | None:
    """The exact histogram of a plan's classes, labelled with what they show; None when everything is suppressed."""
    found = cells.regroup(plan.class_of_cell)
    return None if found is None else replace(found, classes=plan.labels(cells.attributes))
