"""Is a table private? A policy's requirements, each held against what was measured on the worst class.

Table level only: nothing here is about pixels, recognisers or names of files. The claims are those of DESIGN's
*What is guaranteed*: k counts distinct subjects, l and t are taken over the originals' sensitive values with one weight
per subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from facecrowd.privacy.anonymity import Unit, effective_k, k_anonymity
from facecrowd.privacy.classes import Histogram, histogram
from facecrowd.privacy.closeness import Ground, t_closeness
from facecrowd.privacy.diversity import distinct_l, entropy_l, recursive_c
from facecrowd.privacy.errors import ColumnError, PolicyError, TooFewSubjectsError
from facecrowd.privacy.measure import Measure


@dataclass(frozen=True)
class Diversity:
    """l-diversity to be reached: ``value`` is l; ``c`` belongs to the recursive kind only."""

    kind: Literal["distinct", "entropy", "recursive"]
    value: float
    c: float | None = None


@dataclass(frozen=True)
class Closeness:
    """t-closeness to be kept: ``value`` is t, in the unit of the ground distance."""

    value: float
    ground: Ground = "equal"


@dataclass(frozen=True)
class Policy:
    """What is asked of a table, and the roles of its columns.

    Attributes
    ----------
    subject : str
        The column that names the person.
    quasi_identifiers, sensitive : tuple of str
        Quasi-identifiers may be none where classes are given by id (a k-same partition).
    k : int, optional
        Smallest class, in distinct subjects.
    l : Diversity, optional
        Held for each sensitive attribute on its own.
    t : Closeness, optional
        ``hamming`` and a ground array are held for the joint distribution, the other grounds for each attribute.
    epsilon : float, optional
        Largest total privacy loss per subject of the randomisation of released attributes.
    max_suppression : float, optional
        Largest share of rows left out of the release.

    Raises
    ------
    PolicyError
        If a value is out of range or a column has two roles.
    """

    subject: str
    quasi_identifiers: tuple[str, ...]
    sensitive: tuple[str, ...] = ()
    k: int | None = None
    l: Diversity | None = None  # noqa: E741 the field's name
    t: Closeness | None = None
    epsilon: float | None = None
    max_suppression: float | None = None

    def __post_init__(self) -> None:
        both = [name for name in self.quasi_identifiers if name in self.sensitive]
        if both:
            raise PolicyError(f"{both[0]!r} is both a quasi-identifier and sensitive; give it one role")
        if self.subject in (*self.quasi_identifiers, *self.sensitive):
            raise PolicyError(f"{self.subject!r} names the person and cannot also be an attribute; give it one role")
        if self.k is not None and self.k < 1:
            raise PolicyError(f"k is {self.k}; a class has at least 1 subject")
        if (self.l or self.t) and not self.sensitive:
            raise PolicyError("l or t is asked but no attribute is sensitive; name at least one under 'sensitive'")
        if self.l is not None:
            _check_diversity(self.l)
        if self.t is not None and not self.t.value > 0:
            raise PolicyError(f"t is {self.t.value:g}; it must be positive")
        if self.epsilon is not None and not self.epsilon > 0:
            raise PolicyError(f"epsilon is {self.epsilon:g}; it must be positive")
        if self.max_suppression is not None and not 0 <= self.max_suppression <= 1:
            raise PolicyError(f"max_suppression is {self.max_suppression:g}; it is a share of rows, from 0 to 1")


@dataclass(frozen=True)
class WorstClass:
    """The class that decides a requirement: its index, what it shows, and its size."""

    index: int
    shows: Mapping[str, Any]
    subjects: int
    rows: int


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
    if policy.l is not None:
        requirements += [_diversity(released, policy.l, attribute) for attribute in policy.sensitive]
    if policy.t is not None:
        requirements += _closeness(released, policy.t, policy.sensitive, reference)
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


def _check_diversity(asked: Diversity) -> None:
    if asked.kind not in ("distinct", "entropy", "recursive"):
        raise PolicyError(f"l has the kind {asked.kind!r}; use distinct, entropy or recursive")
    if not asked.value >= 1:
        raise PolicyError(f"l is {asked.value:g}; it counts values and is at least 1")
    if asked.kind == "recursive" and (asked.c is None or not asked.c > 0 or asked.value != int(asked.value)):
        raise PolicyError("recursive (c, l)-diversity needs a whole l and a positive c; give both")
    if asked.kind != "recursive" and asked.c is not None:
        raise PolicyError(f"c belongs to recursive (c, l)-diversity and l has the kind {asked.kind!r}; leave it out")


def _diversity(released: Histogram, asked: Diversity, attribute: str) -> Requirement:
    if asked.kind == "recursive":
        bound = float(asked.c or 0.0)
        found = recursive_c(released, int(asked.value), attribute)
        note = f"c must exceed the found ratio, at l = {int(asked.value)}"
        return _requirement(f"l (recursive) of {attribute}", bound, found, found.value < bound, released, note)
    found = distinct_l(released, attribute) if asked.kind == "distinct" else entropy_l(released, attribute)
    # exp(log 2) is 2 only up to rounding
    met = found.value >= asked.value * (1 - 1e-12)
    return _requirement(f"l ({asked.kind}) of {attribute}", asked.value, found, met, released)


def _closeness(
    released: Histogram, asked: Closeness, sensitive: tuple[str, ...], reference: Mapping[Any, float] | None
) -> list[Requirement]:
    ground = asked.ground
    name = ground if isinstance(ground, str) else type(ground).__name__.replace("ndarray", "matrix").lower()
    against = "the released table's subjects" if reference is None else "a given public distribution"
    limit = asked.value + 1e-12
    if name in ("hamming", "matrix"):
        found = t_closeness(released.marginal(list(sensitive)), ground, reference=reference)
        note = f"joint distribution, against {against}"
        return [_requirement(f"t ({name})", asked.value, found, found.value <= limit, released, note)]
    measured = [(a, t_closeness(released, ground, attribute=a, reference=reference)) for a in sensitive]
    return [
        _requirement(f"t ({name}) of {a}", asked.value, m, m.value <= limit, released, f"against {against}")
        for a, m in measured
    ]


def _requirement(
    name: str, asked: float, found: Measure, met: bool, released: Histogram, note: str = ""
) -> Requirement:
    index = found.worst_class
    worst = WorstClass(index, released.describe(index), int(released.subjects[index]), int(released.rows[index]))
    return Requirement(name, float(asked), found.value, met, worst, note)
