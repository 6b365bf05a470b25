"""Is a table private? A policy's requirements, each held against what was measured on the worst class.

Table level only: nothing here is about pixels, recognisers or names of files. The claims are those of DESIGN's
*What is guaranteed*: k counts distinct subjects, l and t are taken over the originals' sensitive values with one weight
per subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from facecrowd.privacy.anonymity import Unit, effective_k, k_anonymity
from facecrowd.privacy.attributes import ANY
from facecrowd.privacy.classes import Histogram, histogram
from facecrowd.privacy.errors import ColumnError, TooFewSubjectsError
from facecrowd.privacy.measure import Measure, figure, largest, smallest
from facecrowd.privacy.policy import Closeness, Diversity, Policy
from facecrowd.privacy.requirements import Requirements

__all__ = [
    "Closeness",
    "Diversity",
    "Policy",
    "Requirement",
    "Verdict",
    "WorstClass",
    "judge",
    "table_histogram",
]

SHOWN = 8
"""Attributes of a class that a line of text names."""


@dataclass(frozen=True)
class WorstClass:
    """The class that decides a requirement: its index, what it shows, and its size."""

    index: int
    shows: Mapping[str, Any]
    subjects: int
    rows: int

    @classmethod
    def of(cls, released: Histogram, index: int) -> WorstClass:
        """The class of this index."""
        return cls(index, released.describe(index), int(released.subjects[index]), int(released.rows[index]))

    def __str__(self) -> str:
        """What it shows, shortened to a line, and its size: binary attributes by name, the absent ones counted."""
        words = {name: str(value) for name, value in self.shows.items()}  # plans label their values, as text
        named = [name if value == "True" else f"{name} = {value}" for name, value in words.items()]
        named = [label for label, value in zip(named, words.values(), strict=True) if value not in ("False", ANY)]
        absent, any_value = (list(words.values()).count(value) for value in ("False", ANY))
        parts = named[:SHOWN]
        parts += [f"{len(named) - SHOWN} more"] if len(named) > SHOWN else []
        parts += [f"not the other {absent}" if named else f"none of {absent} attributes"] if absent else []
        parts += [f"{any_value} left open"] if any_value else []
        return f"{', '.join(parts)} ({self.size})"

    @property
    def size(self) -> str:
        """How large it is, in words."""
        return f"{_count(self.subjects, 'subject')}, {_count(self.rows, 'row')}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        shows = {name: _plain(value) for name, value in self.shows.items()}
        return {"index": self.index, "shows": shows, "subjects": self.subjects, "rows": self.rows}


@dataclass(frozen=True)
class Requirement:
    """One thing asked, what was found, and where it is worst.

    Attributes
    ----------
    name : str
        ``k``, ``l (entropy) of Attractive``, ``t (hamming)``, ``epsilon``, ``suppression``.
    asked, found : float
    met : bool
    worst_class : WorstClass, optional
        None where no class decides.
    note : str
        What a reader must know beside the figure.
    """

    name: str
    asked: float
    found: float
    met: bool
    worst_class: WorstClass | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values; None stands for infinity."""
        return {
            "name": self.name,
            "asked": figure(self.asked),
            "found": figure(self.found),
            "met": self.met,
            "worst_class": self.worst_class and self.worst_class.as_dict(),
            "note": self.note,
        }

    def __str__(self) -> str:
        """One line: what was asked and found, whether that is enough, and where it is worst."""
        line = f"{self.name}: asked {self.asked:.4g}, found {self.found:.4g}: {'met' if self.met else 'NOT MET'}"
        line += f"; worst class: {self.worst_class}" if self.worst_class else ""
        return f"{line}; {self.note}" if self.note else line


@dataclass(frozen=True)
class Verdict:
    """Every requirement of a policy, held against one table."""

    requirements: tuple[Requirement, ...]
    classes: int
    subjects: int
    rows: int

    @property
    def met(self) -> bool:
        """Whether all requirements are met."""
        return all(requirement.met for requirement in self.requirements)

    @property
    def failures(self) -> tuple[Requirement, ...]:
        """The requirements that are not met."""
        return tuple(requirement for requirement in self.requirements if not requirement.met)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {
            "met": self.met,
            "requirements": [requirement.as_dict() for requirement in self.requirements],
            "classes": self.classes,
            "subjects": self.subjects,
            "rows": self.rows,
        }

    def lines(self) -> list[str]:
        """The verdict as a person reads it, a line per requirement."""
        if not self.requirements:
            return ["the policy asks for nothing"]
        failed = len(self.failures)
        asked = _count(len(self.requirements), "requirement")
        head = f"yes: {asked} met" if self.met else f"no: {failed} of {asked} not met"
        return [head, *(f"  {requirement}" for requirement in self.requirements)]


def table_histogram(table: pa.Table, policy: Policy) -> Histogram:
    """The histogram of a table's columns in the roles that the policy gives them.

    Raises
    ------
    ColumnError
        If the policy names a column that the table lacks.
    EmptyTableError, NullValueError
    """
    for name in (policy.subject, *policy.quasi_identifiers, *policy.sensitive):
        if name not in table.column_names:
            raise ColumnError(f"the policy names column {name!r}; the table has {table.column_names}")
    return histogram(
        table[policy.subject],
        quasi_identifiers=table.select(list(policy.quasi_identifiers)),
        sensitive=table.select(list(policy.sensitive)) if policy.sensitive else None,
    )


def judge(
    released: Histogram,
    policy: Policy,
    *,
    unit: Unit = "subjects",
    suppressed_rows: int = 0,
    epsilon: float | None = None,
    reference: Mapping[Any, float] | None = None,
    clustered: bool = False,
) -> Verdict:
    """Hold a policy against the table that is released.

    Parameters
    ----------
    released : Histogram
        Of the released rows: classes by what they show, sensitive values of the originals.
    policy : Policy
    unit : {"subjects", "rows"}
        What k counts; ``rows`` only for comparison with tools that do.
    suppressed_rows : int
        Rows that were left out.
    epsilon : float, optional
        The total per subject that randomisation has spent; None where nothing was randomised.
    reference : mapping, optional
        The public distribution for t (``t_closeness``). Default: the released table's subjects.
    clustered : bool
        Whether subjects come from clustering, which may split a person and so overstate k.

    Raises
    ------
    TooFewSubjectsError
        If k exceeds the number of subjects in the table.
    ColumnError, GroundDistanceError, ReferenceDistributionError
    """
    if policy.k is not None and policy.k > released.total_subjects:
        raise TooFewSubjectsError(
            f"k = {policy.k} is asked of a table with {released.total_subjects} subjects; lower k or add people"
        )
    requirements = []
    if policy.k is not None:
        found = k_anonymity(released, unit)
        notes = [f"effective k {effective_k(released).value:.2f} (1 / largest share of a class's faces)"]
        notes += ["rows counted, not people"] if unit == "rows" else []
        notes += ["people are clusters: not a formal claim"] if clustered else []
        requirements.append(_requirement("k", policy.k, found, found.value >= policy.k, released, "; ".join(notes)))
    for condition in Requirements(released.values, released.reference, policy, reference).conditions:
        per_class = condition.found(released.subjects, released.weights)
        found = largest(per_class) if condition.largest_is_worst else smallest(per_class)
        met = bool(condition.holds(per_class).all())
        requirements.append(_requirement(condition.name, condition.asked, found, met, released, condition.note))
    if policy.epsilon is not None:
        requirements.append(
            Requirement(
                "epsilon",
                policy.epsilon,
                float("inf") if epsilon is None else epsilon,
                epsilon is not None and epsilon <= policy.epsilon,
                note="total per subject, of the released attributes; it never covers pixels rendered from an original"
                if epsilon is not None
                else "the attributes were not randomised",
            )
        )
    if policy.max_suppression is not None:
        share = suppressed_rows / (released.total_rows + suppressed_rows)
        note = f"{suppressed_rows} of {released.total_rows + suppressed_rows} rows"
        requirements.append(
            Requirement("suppression", policy.max_suppression, share, share <= policy.max_suppression, note=note)
        )
    return Verdict(tuple(requirements), len(released.subjects), released.total_subjects, released.total_rows)


def _requirement(
    name: str, asked: float, found: Measure, met: bool, released: Histogram, note: str = ""
) -> Requirement:
    return Requirement(name, float(asked), found.value, met, WorstClass.of(released, found.worst_class), note)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
