"""Attributes: their kind, the order of their values, and the hierarchies along which values generalise.

A released value is always an interval ``[low, high]`` of codes. That covers all kinds: the codes of an attribute are
put in an order in which every group that may be released together is contiguous (the order of the values for ordered
and numeric attributes, the order of the tree's leaves for hierarchies), so generalising is widening an interval, the
whole domain is ``*``, and one formula measures what is lost.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from facecrowd.privacy.errors import ColumnError, HierarchyError

Kind = Literal["binary", "categorical", "ordered", "numeric"]

ANY = "*"
"""The label of the whole domain."""


@dataclass(frozen=True)
class Hierarchy:
    """A value generalisation hierarchy (Sweeney 2002; the CSV form of ARX).

    Attributes
    ----------
    levels : tuple of tuples of str
        One tuple per leaf: its label at each level, the value itself first, ``*`` last. All have the same length.
    """

    levels: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.levels:
            raise HierarchyError("the hierarchy has no values; give one line per value")
        height = len(self.levels[0])
        for line, labels in enumerate(self.levels):
            if len(labels) != height:
                raise HierarchyError(f"line {line + 1} has {len(labels)} levels where line 1 has {height}")
        leaves = [labels[0] for labels in self.levels]
        if len(set(leaves)) < len(leaves):
            twice = next(v for v in leaves if leaves.count(v) > 1)
            raise HierarchyError(f"the value {twice!r} has two lines; give one each")
        for level in range(1, height):
            above: dict[str, str] = {}
            for labels in self.levels:
                if above.setdefault(labels[level - 1], labels[level]) != labels[level]:
                    raise HierarchyError(
                        f"{labels[level - 1]!r} of level {level - 1} lies under both "
                        f"{above[labels[level - 1]]!r} and {labels[level]!r}; a hierarchy is a tree"
                    )
        if len({labels[-1] for labels in self.levels}) > 1:
            raise HierarchyError(f"the last level has several labels; it must be one for all values, as {ANY!r}")

    @classmethod
    def read(cls, path: str | Path) -> Hierarchy:
        """A hierarchy from a CSV file, comma or semicolon separated, one line per value, its levels left to right."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise HierarchyError(f"hierarchy {path}: {error.strerror or error}") from None
        except ValueError as error:
            raise HierarchyError(f"hierarchy {path}: not readable: {error}") from None
        separator = ";" if text.partition("\n")[0].count(";") else ","
        try:
            lines = csv.reader(text.splitlines(), delimiter=separator)
            return cls(tuple(tuple(cell.strip() for cell in row) for row in lines if row))
        except (HierarchyError, csv.Error) as error:
            raise HierarchyError(f"hierarchy {path}: {error}") from None

    @property
    def leaves(self) -> tuple[str, ...]:
        """The values in the order of the tree: everything under one label is contiguous."""
        return tuple(labels[0] for labels in sorted(self.levels, key=lambda labels: tuple(reversed(labels))))


@dataclass(frozen=True)
class Attribute:
    """One attribute of the table.

    Attributes
    ----------
    name : str
    kind : {"binary", "categorical", "ordered", "numeric"}
    values : tuple
        The domain in the order of the codes 0 … size - 1.
    hierarchy : Hierarchy, optional
        For categorical attributes; without one a value is either kept or ``*``.
    """

    name: str
    kind: Kind
    values: tuple[Any, ...]
    hierarchy: Hierarchy | None = None

    @property
    def size(self) -> int:
        """The number of values."""
        return len(self.values)

    def nodes(self) -> list[tuple[int, int, str]]:
        """Every interval that may be released, as (low, high, label), narrow ones first.

        For ordered and numeric attributes any interval may be; listed are only the single values and ``*``.
        """
        found = {(code, code): str(value) for code, value in enumerate(self.values)}
        if self.hierarchy is not None:
            of = {labels[0]: labels for labels in self.hierarchy.levels}
            for level in range(1, len(self.hierarchy.levels[0])):
                label = [of[str(value)][level] for value in self.values]
                for name in dict.fromkeys(label):
                    low, high = label.index(name), self.size - 1 - label[::-1].index(name)
                    found.setdefault((low, high), name)
        found[(0, self.size - 1)] = ANY if self.size > 1 else str(self.values[0])
        return sorted(((low, high, name) for (low, high), name in found.items()), key=lambda n: (n[1] - n[0], n[0]))

    def levels(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """What every value becomes at each level of generalisation, as (low, high) of shape (size,): from the value
        itself, through the levels of the hierarchy where there is one, to the whole domain.
        """
        codes = np.arange(self.size)
        found = [(codes, codes)]
        if self.hierarchy is not None:
            of = {labels[0]: labels for labels in self.hierarchy.levels}
            for level in range(1, len(self.hierarchy.levels[0])):
                label = np.array([of[str(value)][level] for value in self.values])
                new = np.append(True, label[1:] != label[:-1])
                first, run = np.flatnonzero(new), np.cumsum(new) - 1
                found.append((first[run], np.append(first[1:], self.size)[run] - 1))
        found.append((np.zeros_like(codes), np.full_like(codes, self.size - 1)))
        return [
            level for i, level in enumerate(found) if i == 0 or not np.array_equal(level, found[i - 1])
        ]  # levels that change nothing are none

    def label(self, low: int, high: int) -> str:
        """What an interval is called in a release: its value, its node, ``*`` or ``[from, to]``."""
        for start, end, name in self.nodes():
            if (start, end) == (low, high):
                return name
        return f"[{self.values[low]}, {self.values[high]}]"

    def loss(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.float64]:
        r"""The normalised certainty penalty of intervals, in [0, 1] (Xu et al., KDD 2006).

        .. math::
            \mathrm{NCP} = \frac{x_{high} - x_{low}}{x_{max} - x_{min}} \text{ (numeric)}, \qquad
            \frac{high - low}{size - 1} \text{ (else, in codes)}
        """
        if self.size == 1:
            return np.zeros(len(low))
        if self.kind == "numeric":
            x = np.asarray(self.values, dtype=np.float64)
            return (x[high] - x[low]) / (x[-1] - x[0])
        return (np.asarray(high, dtype=np.float64) - low) / (self.size - 1)


def domain(name: str, values: Sequence[Any], kind: Kind | None = None, hierarchy: Hierarchy | None = None) -> Attribute:
    """The attribute whose sorted distinct values are ``values``.

    ``kind`` defaults to binary for at most two values, numeric for numbers, else categorical. With a hierarchy the
    order is the tree's, and values of the hierarchy that do not occur stay in the domain.

    Raises
    ------
    HierarchyError
        If a value is not in the hierarchy.
    """
    if hierarchy is not None:
        missing = [value for value in values if str(value) not in set(hierarchy.leaves)]
        if missing:
            raise HierarchyError(
                f"attribute {name!r}: its value {missing[0]!r} is not in the hierarchy; add a line for it"
            )
        typed = {str(value): value for value in values}
        return Attribute(name, "categorical", tuple(typed.get(leaf, leaf) for leaf in hierarchy.leaves), hierarchy)
    if kind is None:
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
        kind = "binary" if len(values) <= 2 else "numeric" if numbers else "categorical"
    if kind == "numeric" and (strange := [value for value in values if not _finite(value)]):
        raise ColumnError(f"column {name!r} is to be numeric, and its value {strange[0]!r} is no finite number")
    return Attribute(name, kind, tuple(values))


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
