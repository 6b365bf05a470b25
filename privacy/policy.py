"""A policy: what is asked of a table, and the roles of its columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from facecrowd.privacy.closeness import Ground
from facecrowd.privacy.errors import PolicyError


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


def _check_diversity(asked: Diversity) -> None:
    if asked.kind not in ("distinct", "entropy", "recursive"):
        raise PolicyError(f"l has the kind {asked.kind!r}; use distinct, entropy or recursive")
    if not asked.value >= 1:
        raise PolicyError(f"l is {asked.value:g}; it counts values and is at least 1")
    if asked.kind == "recursive" and (asked.c is None or not asked.c > 0 or asked.value != int(asked.value)):
        raise PolicyError("recursive (c, l)-diversity needs a whole l and a positive c; give both")
    if asked.kind != "recursive" and asked.c is not None:
        raise PolicyError(f"c belongs to recursive (c, l)-diversity and l has the kind {asked.kind!r}; leave it out")
