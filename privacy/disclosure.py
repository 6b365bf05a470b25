r"""Singling out, linkability and inference: the three risks of the Article 29 Working Party [2]_, attacked on a
released table in the manner of anonymeter [1]_.

Every attack guesses about **one subject at a time, once**: a row is a subject, however many photos there are. Three
rates are taken: of the attack, of a naive one that guesses without looking, and, where there are any, of the attack
against people who are *not* in the release. What it gains on those is general knowledge, so the risk is what is left
([1]_, equation 1),

.. math::
    R = \frac{r_{attack} - r_{control}}{1 - r_{control}}, \qquad
    r = \frac{n_s + z^2/2}{n + z^2}, \qquad
    \delta = \frac{z}{n + z^2} \sqrt{\frac{n_s (n - n_s)}{n} + \frac{z^2}{4}}

with *r* the centre of Wilson's score interval [3]_ of :math:`n_s` successes in *n* guesses, :math:`\delta` half its
width (z = 1.96), and the interval of *R* by propagation of the two, cut to [0, 1]. Without control R is
:math:`r_{attack}`. Where the naive attack does as well as the attack, the figure says little: ``Risk.naive_wins``.

What ``*`` means
----------------
A released ``*`` is the whole domain. A predicate may hold of such a row, so for "exactly one released row" it does, and
``*`` itself is never a condition. In a distance it counts as the expected mismatch: against the value *x*, one minus
the share of *x* among the released subjects who show a value (0 would make a row of ``*`` everybody's nearest, 1
nobody's). A secret released as ``*`` is guessed as the naive attack does. A value of a target that is not known takes
no part in distances and meets no predicate.

Ties
----
Binary attributes tie all the time. Where several released rows are equally near, the attacker picks one at random and
the *expected* success counts, as everywhere in this package; anonymeter takes the first in the table, which makes a
class of k equal rows look like k hits of its first.

.. [1] M. Giomi, F. Boenisch, C. Wehmeyer, B. Tasnadi, "A unified framework for quantifying privacy risk in synthetic
   data", PoPETs 2023(2).
.. [2] Article 29 Data Protection Working Party, Opinion 05/2014 on anonymisation techniques (WP216).
.. [3] E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
.. [4] A. Cohen, K. Nissim, "Towards formalizing the GDPR's notion of singling out", PNAS 117(15), 2020.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hypergeom

from facecrowd.privacy.attributes import ANY
from facecrowd.privacy.classes import Columns, per_subject_majority
from facecrowd.privacy.errors import ColumnError, EmptyTableError, LengthError

GUESSES = 1000
"""Subjects attacked at most."""
ATTEMPTS = 20_000
"""Predicates tried at most, to find those that hold of one released subject."""
Z = 1.959963984540054
"""Half-width of a 95 % interval, in standard deviations."""
TIE = 1e-5
"""Distances that differ by no more are equal: single precision sums of at most a few hundred shares."""
BLOCK_BYTES = 64 * 2**20
OPEN = -1
"""The code of ``*`` and of a value that is not known."""

Predicate = tuple[tuple[int, str, int], ...]
"""Conditions that all hold: (attribute, ``=``, ``!``, ``<`` or ``>``, code); the last two include the code."""


@dataclass(frozen=True)
class Rate:
    """``successes`` (expected ones, so not always whole) of ``guesses``."""

    successes: float
    guesses: int

    @property
    def share(self) -> float:
        """Plain share, in [0, 1]; 0 of no guess."""
        return self.successes / self.guesses if self.guesses else 0.0

    @property
    def centre(self) -> float:
        """Of Wilson's interval: what the risk is computed from."""
        return (self.successes + Z**2 / 2) / (self.guesses + Z**2)

    @property
    def error(self) -> float:
        """Half the width of Wilson's interval."""
        spread = self.successes * (self.guesses - self.successes) / self.guesses if self.guesses else 0.0
        return Z / (self.guesses + Z**2) * math.sqrt(max(spread, 0.0) + Z**2 / 4)


@dataclass(frozen=True)
class Risk:
    """The outcome of one attack.

    Attributes
    ----------
    attack, naive : Rate
        Against the subjects of the release, and of guessing without looking.
    control : Rate, optional
        Against people who are not in the release; None where none were given.
    """

    attack: Rate
    naive: Rate
    control: Rate | None = None

    @property
    def value(self) -> float:
        """R in [0, 1]. Where the attack found nothing to guess it is 0, exactly."""
        return min(max(self._residual()[0], 0.0), 1.0) if self.attack.guesses else 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, in [0, 1]; None where there was nothing to guess."""
        if not self.attack.guesses:
            return None
        value, error = self._residual()
        return min(max(value - error, 0.0), 1.0), min(max(value + error, 0.0), 1.0)

    @property
    def naive_wins(self) -> bool:
        """Whether guessing without looking does as well: then the attack is too weak for its figure to say much."""
        return bool(self.attack.guesses) and self.naive.share >= self.attack.share

    def _residual(self) -> tuple[float, float]:
        r, dr = self.attack.centre, self.attack.error
        if self.control is None:
            return r, dr
        c, dc = self.control.centre, self.control.error
        return (r - c) / (1 - c), math.hypot(dr / (1 - c), dc * (1 - r) / (1 - c) ** 2)


@dataclass(frozen=True, eq=False)
class Tables:
    """A release, its originals and people who are not in it, a row per subject, in codes (``tables`` makes them).

    Attributes
    ----------
    names : tuple of A str
    ordered : tuple of A bool
        Whether codes are numbers by size, of which predicates may say "at most".
    values : tuple of A ndarrays
        What the codes stand for.
    released, originals : ndarray of int32, shapes (S, A) and (T, A)
        The rows need not be in the same order. ``OPEN`` stands for ``*`` and for unknown.
    control : ndarray of int32, shape (C, A), optional
    """

    names: tuple[str, ...]
    ordered: tuple[bool, ...]
    values: tuple[NDArray[Any], ...]
    released: NDArray[np.int32]
    originals: NDArray[np.int32]
    control: NDArray[np.int32] | None = None

    def only(self, originals: NDArray[Any], control: NDArray[Any] | None = None) -> Tables:
        """The same release against some of the people: masks or positions, shapes (T,) and (C,)."""
        others = None if self.control is None or control is None else self.control[control]
        others = None if others is None or not len(others) else others
        return Tables(self.names, self.ordered, self.values, self.released, self.originals[originals], others)

    def at(self, names: Sequence[str]) -> list[int]:
        """Columns by name. Raises ColumnError."""
        for name in names:
            if name not in self.names:
                raise ColumnError(f"{name!r} is not released; the table has {list(self.names)}")
        return [self.names.index(name) for name in names]


def tables(released: Columns, originals: Columns, control: Columns | None = None) -> Tables:
    """Bring the three tables to the codes of one domain.

    Parameters
    ----------
    released : Columns
        (S,) each: what is released of each subject; ``*``, null or NaN for any value.
    originals, control : Columns
        (T,) and (C,) each, with at least the released columns: the truth about the subjects in the release, and about
        people who are not; ``*``, null or NaN where it is not known. Columns of numbers are compared by size, all
        others by equality.

    Raises
    ------
    EmptyTableError, LengthError, ColumnError
    """
    sides = [released, originals] + ([] if control is None else [control])
    names = tuple(released.column_names if isinstance(released, pa.Table) else released)
    if not names:
        raise EmptyTableError("the release shows no attributes, so there is no table to attack")
    coded: list[list[NDArray[np.int32]]] = [[] for _ in sides]
    ordered, values = [], []
    for name in names:
        columns = [_column(side, name) for side in sides]
        numeric = all(pa.types.is_integer(c.type) or pa.types.is_floating(c.type) for c in columns)
        if not numeric:
            columns = [c.cast(pa.string()) for c in columns]
        known = [pc.fill_null(c.is_valid() if numeric else pc.not_equal(c, ANY), False) for c in columns]
        distinct = pc.unique(pa.chunked_array([c.filter(k) for c, k in zip(columns, known, strict=True)]))
        distinct = distinct.take(pc.array_sort_indices(distinct))
        for side, column in zip(coded, columns, strict=True):
            side.append(np.asarray(pc.fill_null(pc.index_in(column, distinct), OPEN)).astype(np.int32))
        ordered.append(numeric)
        values.append(distinct.to_numpy(zero_copy_only=False))
    for side in coded:
        if len({len(column) for column in side}) > 1:
            raise LengthError(f"columns have {sorted({len(c) for c in side})} rows; give every subject one value each")
    if not len(coded[0][0]) or not len(coded[1][0]):
        raise EmptyTableError("there are no subjects to attack")
    stacked = [np.stack(side, axis=1) for side in coded]
    others = stacked[2] if control is not None and len(stacked[2]) else None
    return Tables(names, tuple(ordered), tuple(values), stacked[0], stacked[1], others)


def of_subjects(subject: ArrayLike | pa.Array | pa.ChunkedArray, columns: Columns) -> pa.Table:
    """One row per subject, sorted: per attribute what most of their rows have, ``*`` where none is known.

    Parameters
    ----------
    subject : array, shape (N,)
    columns : Columns
        (N,) each. ``*`` and null are not known and have no vote; without any other value the subject shows ``*``.

    Raises
    ------
    EmptyTableError, LengthError, ColumnError, NullValueError
    """
    who = subject if isinstance(subject, pa.Array | pa.ChunkedArray) else pa.array(subject)
    people = pc.unique(who)
    people = people.take(pc.array_sort_indices(people))
    found = {}
    for name in columns.column_names if isinstance(columns, pa.Table) else columns:
        column = _column(columns, name).cast(pa.string())
        if len(column) != len(who):
            raise LengthError(f"column {name!r} has {len(column)} rows and there are {len(who)} subjects' rows")
        known = pc.fill_null(pc.not_equal(column, ANY), False)
        if not pc.any(known).as_py():
            found[name] = pa.array([ANY] * len(people))
            continue
        votes = per_subject_majority(who.filter(known), {name: column.filter(known)})
        at = pc.index_in(people, votes.subjects)
        found[name] = pc.fill_null(votes.vectors[name].combine_chunks().take(at), ANY)
    return pa.table(found)


# ------------------------------------------------------------------------------------------------------ singling out


def singling_out(
    table: Tables,
    *,
    rng: np.random.Generator,
    width: int = 1,
    guesses: int = GUESSES,
    attempts: int = ATTEMPTS,
) -> Risk:
    r"""Say something that holds of exactly one released subject, and find that it holds of exactly one original ([1]_,
    section 4.2; [4]_).

    ``width`` 1 tries every value that one released subject shows alone, and of numbers the smallest and largest. Wider
    predicates are made from the record of one released subject at a time: that many attributes drawn at random, equal
    to the record's values, or for numbers at least or at most that, away from the median. Of each released subject one
    predicate is a guess. Where none is found there is nothing to guess, and the risk is 0.

    The naive attack draws attributes, values and comparisons at random. People outside the release singled out by
    chance are fewer where they are fewer: their successes are taken to the size of the originals as in [1]_, by how
    often the same predicates single out in samples of the originals; instead of fitting a curve to samples, by the
    expectation over all of them,

    .. math:: f(n) = \sum_p \frac{m_p \binom{T - m_p}{n - 1}}{\binom{T}{n}}

    with :math:`m_p` the originals that the predicate holds of. Of more people than originals a sample is expected.

    Parameters
    ----------
    table : Tables
    rng : numpy.random.Generator
    width : int
        Attributes in a predicate; all of them where there are fewer. Those that a record leaves open are passed over.
    guesses : int
        Released subjects singled out at most.
    attempts : int
        Predicates tried at most.
    """
    width = min(width, len(table.names))
    released = _Bits(table.released, match_open=True)
    made = _rare(table, released) if width == 1 else _records(table, released, rng, width, guesses, attempts)
    predicates: list[Predicate] = []
    seen: set[int] = set()
    for row, predicate in made:
        if row not in seen:
            seen.add(row)
            predicates.append(predicate)
    if width == 1:
        predicates = [predicates[at] for at in rng.permutation(len(predicates))[:guesses]]
    originals = _Bits(table.originals)
    held = np.array([originals.count(p) for p in predicates], dtype=np.int64)
    drawn = [_any_predicate(table, rng, width) for _ in range(len(predicates) or guesses)]
    naive = Rate(sum(originals.count(p) == 1 for p in drawn), len(drawn))
    control = None
    if table.control is not None and len(predicates):
        others = _Bits(table.control)
        found = np.array([others.count(p) for p in predicates], dtype=np.int64)
        control = Rate(_as_many(found, len(table.control), held, len(table.originals)), len(predicates))
    return Risk(Rate(int((held == 1).sum()), len(predicates)), naive, control)


def _rare(table: Tables, released: _Bits) -> Iterator[tuple[int, Predicate]]:
    """Every condition on one attribute that holds of one released subject, and of whom."""
    for at, values in enumerate(table.values):
        column = table.released[:, at]
        count = np.bincount(column[column != OPEN], minlength=len(values))
        conditions = []
        if table.ordered[at] and count.any():
            shown = np.flatnonzero(count)
            conditions = [(at, "<", int(shown[0])), (at, ">", int(shown[-1]))]
        conditions += [(at, "=", int(code)) for code in np.flatnonzero(count == 1)]
        for condition in conditions:
            if released.count((condition,)) == 1:
                yield int(np.flatnonzero(column == condition[2])[0]), (condition,)


def _records(
    table: Tables, released: _Bits, rng: np.random.Generator, width: int, guesses: int, attempts: int
) -> Iterator[tuple[int, Predicate]]:
    """Predicates of the records of released subjects, each in turn, that hold of no other; of ``guesses`` subjects."""
    people, attributes = table.released.shape
    middle = [np.median(c[c != OPEN]) if (c != OPEN).any() else 0 for c in table.released.T]
    # With all attributes a record has one predicate, and trying it again tells nothing.
    rounds = 1 if width == attributes else -(-attempts // people)
    done: set[int] = set()
    tried = 0
    for _ in range(rounds):
        for row in rng.permutation(people).tolist():
            if len(done) >= guesses or tried >= attempts:
                return
            if row in done:
                continue
            tried += 1
            columns = sorted(rng.choice(attributes, size=width, replace=False).tolist())
            record = table.released[row]
            predicate = tuple(
                (at, (">" if record[at] > middle[at] else "<") if table.ordered[at] else "=", int(record[at]))
                for at in columns
                if record[at] != OPEN
            )
            if predicate and released.count(predicate) == 1:
                done.add(row)
                yield row, predicate


def _any_predicate(table: Tables, rng: np.random.Generator, width: int) -> Predicate:
    """Conditions on attributes, with values and comparisons, all drawn at random."""
    conditions = []
    for at in rng.choice(len(table.names), size=width, replace=False).tolist():
        if len(table.values[at]):
            compare = ("=", "!", "<", ">") if table.ordered[at] else ("=", "!")
            conditions.append((at, compare[rng.integers(len(compare))], int(rng.integers(len(table.values[at])))))
    return tuple(conditions)


def _as_many(found: NDArray[np.int64], others: int, held: NDArray[np.int64], people: int) -> float:
    """Successes among ``others`` control people as they would be among as many as there are originals."""
    if others >= people:
        return float(np.sum(hypergeom.pmf(1, others, found, people)))
    here, fewer = float((held == 1).sum()), float(hypergeom.pmf(1, people, held, others).sum())
    factor = here / fewer if fewer > 0 else 1.0
    return min(float((found == 1).sum()) * factor, float(len(found)))


class _Bits:
    """How many rows of a table meet a predicate: a bit per row for each condition, kept for values that come again.

    codes : (N, A); match_open : whether ``OPEN`` meets every condition, or none
    """

    COMMON = 64

    def __init__(self, codes: NDArray[np.int32], match_open: bool = False) -> None:
        self.codes, self.match_open = np.asfortranarray(codes), match_open
        self.kept: dict[tuple[int, str, int], NDArray[np.uint64]] = {}

    def count(self, predicate: Predicate) -> int:
        """Rows that meet all conditions; a predicate without conditions is met by none."""
        if not predicate:
            return 0
        bits = self._of(predicate[0])
        for condition in predicate[1:]:
            bits = bits & self._of(condition)
        return int(np.bitwise_count(bits).sum())

    def _of(self, condition: tuple[int, str, int]) -> NDArray[np.uint64]:
        if condition in self.kept:
            return self.kept[condition]
        at, compare, code = condition
        column = self.codes[:, at]
        meets = {"=": column.__eq__, "!": column.__ne__, "<": column.__le__, ">": column.__ge__}[compare](code)
        meets = (meets | (column == OPEN)) if self.match_open else (meets & (column != OPEN))
        packed = np.packbits(meets)
        bits = np.zeros(-(-len(packed) // 8), dtype=np.uint64)
        bits.view(np.uint8)[: len(packed)] = packed
        if code < self.COMMON:
            self.kept[condition] = bits
        return bits


# ------------------------------------------------------------------------------------------ linkability and inference


def linkability(
    table: Tables,
    sides: tuple[Sequence[str], Sequence[str]],
    *,
    rng: np.random.Generator,
    guesses: int = GUESSES,
) -> Risk:
    r"""Two datasets each know some attributes of a subject: do both lead to the same released row? ([1]_, section 4.3)

    Each side picks the released subject nearest to what it knows (Hamming distance, of numbers their difference over
    the range: Gower's). With ties it picks at random, so a subject is linked with probability
    :math:`|T_1 \cap T_2| / (|T_1| |T_2|)`, the sets being those at the smallest distance. The naive attack picks any
    two rows.

    Parameters
    ----------
    table : Tables
    sides : two sequences of str
        The attributes that each knows, apart from each other.
    rng : numpy.random.Generator
        Draws the targets, where there are more than ``guesses``.
    guesses : int

    Raises
    ------
    ColumnError
        If a side is empty, names an attribute that is not released, or one of the other's.
    """
    first, second = (table.at(side) for side in sides)
    if not first or not second or set(first) & set(second):
        raise ColumnError(f"the sides are {list(sides[0])} and {list(sides[1])}; give each attributes of its own")

    one, other = _Nearest(table, first), _Nearest(table, second)

    def linked(people: NDArray[np.int32]) -> Rate:
        chosen = _targets(people, guesses, rng)
        success, height = 0.0, min(one.height, other.height)
        for left, right in zip(one.of(chosen, height), other.of(chosen, height), strict=True):
            for a, b in zip(left, right, strict=True):
                both = np.count_nonzero(a[one.group] & b[other.group])
                success += both / (int(one.sizes[a].sum()) * int(other.sizes[b].sum()))
        return Rate(float(success), len(chosen))

    attack = linked(table.originals)
    naive = Rate(attack.guesses / len(table.released), attack.guesses)
    return Risk(attack, naive, None if table.control is None else linked(table.control))


def inference(
    table: Tables,
    secret: str,
    known: Sequence[str] | None = None,
    *,
    rng: np.random.Generator,
    guesses: int = GUESSES,
) -> Risk:
    """Who knows some attributes of a subject guesses another from the nearest released row ([1]_, section 4.4).

    With ties one of the nearest is picked at random, and the expected success counts; of numbers within 5 %, as in
    [1]_. The naive attack takes the secret of any released row. Subjects whose secret is not known are not attacked.

    Parameters
    ----------
    table : Tables
    secret : str
        A released attribute.
    known : sequence of str, optional
        Default: all others.
    rng : numpy.random.Generator
        Draws the targets, where there are more than ``guesses``.
    guesses : int

    Raises
    ------
    ColumnError
        If an attribute is not released, or the secret is known.
    EmptyTableError
        If nobody's secret is known, or no released subject shows one.
    """
    known = [name for name in table.names if name != secret] if known is None else known
    (at,), columns = table.at([secret]), table.at(known)
    if at in columns or not columns:
        raise ColumnError(f"{secret!r} is to be guessed from {list(known)}; give other attributes")
    shown = table.released[:, at]
    if not (shown != OPEN).any():
        raise EmptyTableError(f"{secret!r} is released as {ANY} of everybody, so there is nothing to guess from")
    domain = len(table.values[at])
    right = np.eye(domain)
    if table.ordered[at]:
        x = table.values[at].astype(np.float64)
        # as anonymeter has it: relative to the guess (rows: the truth, columns: the guess)
        right = (np.abs(x[None, :] - x[:, None]) <= 0.05 * np.abs(x[None, :]) + 1e-12).astype(np.float64)
    base = np.bincount(shown[shown != OPEN], minlength=domain) / (shown != OPEN).sum()
    nearest = _Nearest(table, columns)
    # what the rows of each group say, where they leave it open as often as all do
    says = np.zeros((len(nearest.sizes), domain))
    np.add.at(says, (nearest.group[shown != OPEN], shown[shown != OPEN]), 1.0)
    says += np.bincount(nearest.group[shown == OPEN], minlength=len(says))[:, None] * base

    def guessed(people: NDArray[np.int32]) -> tuple[Rate, Rate] | None:
        people = people[people[:, at] != OPEN]
        if not len(people):
            return None
        chosen = _targets(people, guesses, rng)
        success, start = 0.0, 0
        for near in nearest.of(chosen, nearest.height):
            truth = chosen[start : start + len(near), at]
            tied = near.astype(np.float64)
            said = (tied @ says) / (tied @ nearest.sizes)[:, None]
            success += float(np.einsum("iv,iv->", said, right[truth]))
            start += len(near)
        naive = float((right[chosen[:, at]] @ base).sum())
        return Rate(min(success, len(chosen)), len(chosen)), Rate(min(naive, len(chosen)), len(chosen))

    found = guessed(table.originals)
    if found is None:
        raise EmptyTableError(f"{secret!r} is not known of anybody in the release, so no guess can be checked")
    control = None if table.control is None else guessed(table.control)
    return Risk(*found, None if control is None else control[0])


def _targets(people: NDArray[np.int32], guesses: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """At most so many rows, each at most once."""
    if len(people) <= guesses:
        return people
    return people[np.sort(rng.choice(len(people), size=guesses, replace=False))]


class _Nearest:
    """The released rows nearest to targets, by some columns. Rows with equal values form a group and tie.

    group : (S,) int64, of each released row; sizes : (G,) float64, its rows
    """

    def __init__(self, table: Tables, columns: Sequence[int]) -> None:
        self.columns = list(columns)
        self.group, first = _groups(table.released[:, self.columns])
        self.sizes = np.bincount(self.group).astype(np.float64)
        codes = table.released[first][:, self.columns]
        self.numbers: list[tuple[NDArray[np.float64], NDArray[np.float32]]] = []
        blocks, self.match = [], []
        for at, (column, shown) in enumerate(zip(self.columns, codes.T, strict=True)):
            everybody = table.released[:, column]
            share = np.bincount(everybody[everybody != OPEN], minlength=len(table.values[column])).astype(np.float64)
            share /= max(share.sum(), 1.0)
            if table.ordered[column]:
                x = table.values[column].astype(np.float64)
                x = (x - x.min()) / max(float(np.ptp(x)), 1e-300) if len(x) else x
                apart = np.abs(x[:, None] - x[share > 0][None, :]) @ share[share > 0] if len(x) else x
                # a column for each row: its place, NaN where open; and for each value how far open is from it
                self.numbers.append((apart, np.where(shown == OPEN, np.nan, np.append(x, np.nan)[shown])))
                self.match.append((at, x))
                continue
            here = np.zeros((len(codes), len(share)), dtype=np.float32)
            valued = shown != OPEN
            here[np.flatnonzero(valued), shown[valued]] = 1.0
            here[~valued] = share
            blocks.append((at, here))
        self.categories = [(at, here.shape[1]) for at, here in blocks]
        self.alike = np.concatenate([np.zeros((len(codes), 0), np.float32), *(here for _, here in blocks)], axis=1).T

    @property
    def height(self) -> int:
        """Targets that may be looked at together."""
        return max(1, BLOCK_BYTES // (8 * len(self.sizes)))

    def of(self, targets: NDArray[np.int32], height: int) -> Iterator[NDArray[np.bool_]]:
        """``height`` targets at a time, whether each group is at the smallest distance: (b, G) bool."""
        known = targets[:, self.columns]
        for start in range(0, len(known), height):
            rows = known[start : start + height]
            wants = [np.zeros((len(rows), 0), dtype=np.float32)]
            for at, size in self.categories:
                want = np.zeros((len(rows), size), dtype=np.float32)
                told = rows[:, at] != OPEN
                want[np.flatnonzero(told), rows[told, at]] = 1.0
                wants.append(want)
            alike = np.concatenate(wants, axis=1) @ self.alike
            for (apart, place), (at, x) in zip(self.numbers, self.match, strict=True):
                told = np.flatnonzero(rows[:, at] != OPEN)
                code = rows[told, at]
                gap = np.abs(x[code][:, None] - place[None, :])
                alike[told] += 1.0 - np.where(np.isnan(place)[None, :], apart[code][:, None], gap)
            yield alike >= alike.max(axis=1, keepdims=True) - TIE


def _groups(codes: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of equal codes: the group of each row, (S,), and the first row of each group."""
    key = np.zeros(len(codes), dtype=np.int64)
    range_of_key = 1
    for column in codes.T:
        size = int(column.max()) + 2
        if range_of_key * size >= 2**62:
            key = np.unique(key, return_inverse=True)[1].astype(np.int64)
            range_of_key = int(key.max()) + 1
        key, range_of_key = key * size + (column + 1), range_of_key * size
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    return group.astype(np.int64), first


def _column(columns: Columns, name: str) -> pa.Array:
    """A column as one Arrow array, NaN as null. Raises ColumnError."""
    held = columns.column_names if isinstance(columns, pa.Table) else list(columns)
    if name not in held:
        raise ColumnError(f"column {name!r} is released but not known of the people; they have {held}")
    column = columns[name]
    column = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column, from_pandas=True)
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column
