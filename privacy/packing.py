r"""Packing: rows as 64-bit codes, batch by batch, without seeing the whole table at once.

Each column has a coding that keeps the order of its values; the codes of several columns stand side by side in one
word, the first in the highest bits, so that words are ordered like the rows they stand for. Boolean columns, which
Arrow keeps as bitmaps, are never unpacked: eight bitmaps are transposed into one byte per row, eight rows at a time.

A coding must be known before the first row is packed, so a table that does not fit into memory is read twice: a
``Survey`` of the columns that are not boolean (their bounds or distinct values), then the rows. Surveys of any shards
merge. Where the bits of a role do not suffice, its words are themselves surveyed and replaced by their ranks
(``Compound``), so any number of columns of any kind packs exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from facecrowd.privacy.errors import ColumnError, NullValueError

WORD_BITS = 64
RANGE_BITS = 27
"""Integers within a range of this many bits are coded by their offset; wider ones by rank among those that occur."""

PENDING_VALUES = 4_000_000
"""Distinct values kept from single batches before they are merged."""

Batch: TypeAlias = Mapping[str, pa.Array] | pa.RecordBatch
Words: TypeAlias = NDArray[np.uint64]


@dataclass(frozen=True)
class Flag:
    """A boolean column: one bit."""

    name: str

    @property
    def bits(self) -> int:
        return 1

    def codes(self, batch: Batch) -> Words:
        array = _plain(batch[self.name])
        return np.asarray(array.to_numpy(zero_copy_only=False)).astype(np.uint64)

    def values(self, codes: Words) -> pa.Array:
        return pa.array(codes.astype(bool))


@dataclass(frozen=True)
class Range:
    """An integer column: the offset from its least value."""

    name: str
    type: pa.DataType
    low: int
    high: int

    @property
    def bits(self) -> int:
        return (self.high - self.low).bit_length()

    def codes(self, batch: Batch) -> Words:
        return (_plain(batch[self.name]).to_numpy().astype(np.int64) - self.low).astype(np.uint64)

    def values(self, codes: Words) -> pa.Array:
        return pa.array(codes.astype(np.int64) + self.low).cast(self.type)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A column of any other kind: the rank among its distinct values, which are kept sorted."""

    name: str
    distinct: pa.Array

    @property
    def bits(self) -> int:
        return (len(self.distinct) - 1).bit_length()

    def codes(self, batch: Batch) -> Words:
        array = batch[self.name]
        if not pa.types.is_dictionary(array.type):
            array = _plain(array).dictionary_encode()
        rank = pc.index_in(array.dictionary, self.distinct).fill_null(-1).to_numpy()
        found = rank[array.indices.to_numpy()]
        if len(found) and found.min() < 0:
            raise ColumnError(f"column {self.name!r} has a value that its survey did not see; survey the same rows")
        return found.astype(np.uint64)

    def values(self, codes: Words) -> pa.Array:
        return self.distinct.take(pa.array(codes.astype(np.int64)))


@dataclass(frozen=True, eq=False)
class Compound:
    """Several columns as one: the rank of their word among those that occur."""

    parts: tuple[Coding, ...]
    words: Words

    @property
    def bits(self) -> int:
        return (len(self.words) - 1).bit_length()

    def codes(self, batch: Batch) -> Words:
        asked, slot = np.unique(pack(self.parts, batch), return_inverse=True)
        rank = np.minimum(np.searchsorted(self.words, asked), len(self.words) - 1)
        if (self.words[rank] != asked).any():
            raise ColumnError("rows have a combination of values that the survey did not see; survey the same rows")
        return rank.astype(np.uint64)[slot]


Coding: TypeAlias = Flag | Range | Vocabulary | Compound


@dataclass(frozen=True)
class Field:
    """Where the code of one column lies: in which of the words that ``words_of`` gives, and at which bits."""

    coding: Flag | Range | Vocabulary
    word: int
    shift: int


def width(codings: Sequence[Coding]) -> int:
    """Bits of a word of these columns."""
    return sum(coding.bits for coding in codings)


def pack(codings: Sequence[Coding], batch: Batch) -> Words:
    """One word per row of the batch: (N,) uint64, at most 64 bits wide.

    Raises
    ------
    NullValueError
        If a value is null or NaN.
    ColumnError
        If a value was not surveyed.
    """
    words: Words | None = None
    position = 0
    while position < len(codings):
        run = position
        while run < len(codings) and isinstance(codings[run], Flag):
            run += 1
        if run > position:
            names = _flag_names(codings[position:run])
            codes, bits = packed_flags([batch[name] for name in names], _length(batch)), len(names)
            position = run
        else:
            codes, bits = codings[position].codes(batch), codings[position].bits
            position += 1
        if words is None:
            words = codes
        elif bits:
            words <<= np.uint64(bits)
            words |= codes
    return np.zeros(_length(batch), dtype=np.uint64) if words is None else words


def unpack(codings: Sequence[Coding], words: Words) -> pa.Table:
    """The columns that words stand for, the inverse of ``pack``: N rows."""
    expanded = words_of(codings, words)
    columns: dict[str, pa.Array] = {}
    placed = fields(codings)
    flags: dict[int, list[Field]] = {}
    for place in placed:
        if isinstance(place.coding, Flag):
            flags.setdefault(place.word, []).append(place)
    planes = {word: bitmaps(expanded[word], [p.shift for p in places]) for word, places in flags.items()}
    for place in placed:
        if isinstance(place.coding, Flag):
            buffer = pa.py_buffer(planes[place.word][place.shift])
            columns[place.coding.name] = pa.Array.from_buffers(pa.bool_(), len(words), [None, buffer])
        else:
            columns[place.coding.name] = place.coding.values(codes_at(place, expanded))
    return pa.table(columns)


def fields(codings: Sequence[Coding]) -> list[Field]:
    """Where each column's code lies, in the order of the columns."""
    return _fields(codings, 0, [0])


def _fields(codings: Sequence[Coding], word: int, last: list[int]) -> list[Field]:
    found, shift = [], width(codings)
    for coding in codings:
        shift -= coding.bits
        if isinstance(coding, Compound):
            last[0] += 1
            found += _fields(coding.parts, last[0], last)
        else:
            found.append(Field(coding, word, shift))
    return found


def words_of(codings: Sequence[Coding], words: Words) -> list[Words]:
    """The words themselves, then those of each compound column in them, depth first, as ``Field.word`` counts."""
    found, shift = [words], width(codings)
    for coding in codings:
        shift -= coding.bits
        if isinstance(coding, Compound):
            rank = (words >> np.uint64(shift)) & _mask(coding.bits)
            found += words_of(coding.parts, coding.words[rank.astype(np.int64)])
    return found


def codes_at(place: Field, expanded: Sequence[Words]) -> Words:
    """The codes of one column out of ``words_of``."""
    return (expanded[place.word] >> np.uint64(place.shift)) & _mask(place.coding.bits)


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


# ---------------------------------------------------------------------------------------------------------- bitmaps


def _length(batch: Batch) -> int:
    return batch.num_rows if isinstance(batch, pa.RecordBatch) else len(next(iter(batch.values())))


def _plain(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _bitmap(array: pa.Array) -> NDArray[np.uint8]:
    """The bits of a boolean array, first row in the lowest bit; what follows the last row is undefined."""
    if array.offset % 8 == 0:
        start, size = array.offset // 8, (len(array) + 7) // 8
        return np.frombuffer(array.buffers()[1], dtype=np.uint8)[start : start + size]
    return np.packbits(np.asarray(array.to_numpy(zero_copy_only=False)), bitorder="little")


def _flag_names(codings: Sequence[Coding]) -> list[str]:
    return [coding.name for coding in codings if isinstance(coding, Flag)]


def packed_flags(arrays: Sequence[pa.Array], rows: int) -> Words:
    """One word per row from up to 64 boolean arrays without nulls, the first in the highest bit: (rows,) uint64."""
    out = np.zeros((rows, 8), dtype=np.uint8)
    size = (rows + 7) // 8
    lowest_first = [_bitmap(_plain(array)) for array in reversed(arrays)]
    for byte in range((len(arrays) + 7) // 8):
        block = np.zeros((size, 8), dtype=np.uint8)
        for bit, bitmap in enumerate(lowest_first[8 * byte : 8 * byte + 8]):
            block[:, bit] = bitmap
        out[:, byte] = _transposed(block.view("<u8")[:, 0]).view(np.uint8)[:rows]
    return out.view("<u8")[:, 0].astype(np.uint64, copy=False)


def bitmaps(words: Words, bits: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
    """The bitmap of each of the given bit positions over all words: ``{bit: (ceil(N / 8),) uint8}``."""
    size = (len(words) + 7) // 8
    octets = words.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
    found = {}
    for byte in sorted({bit // 8 for bit in bits}):
        padded = np.zeros(size * 8, dtype=np.uint8)
        padded[: len(words)] = octets[:, byte]
        block = _transposed(padded.view("<u8")).view(np.uint8).reshape(-1, 8)
        found.update({bit: np.ascontiguousarray(block[:, bit % 8]) for bit in bits if bit // 8 == byte})
    return {bit: found[bit] for bit in bits}


def _transposed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """8 × 8 bit matrices transposed, one per word (H. S. Warren, "Hacker's Delight", 7-3): bit 8 r + c ↔ 8 c + r."""
    x = x.copy()
    for distance, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        swap = x >> np.uint64(distance)
        swap ^= x
        swap &= np.uint64(mask)
        x ^= swap
        swap <<= np.uint64(distance)
        x ^= swap
    return x


# ----------------------------------------------------------------------------------------------------------- survey


@dataclass
class Survey:
    """What must be known of columns before they can be packed; of shards, ``merge`` it.

    ``add`` any batches with the surveyed columns, then ask for their ``codings``. Integer columns are surveyed for
    their bounds only; one that proves too wide (``too_wide``) needs a second look with ``distinct=True``. ``before``
    rows of the table come earlier than this shard's.
    """

    columns: tuple[str, ...]
    distinct: bool = False
    before: int = 0
    rows: int = 0
    types: dict[str, pa.DataType] = field(default_factory=dict)
    bounds: dict[str, tuple[int, int]] = field(default_factory=dict)
    seen: dict[str, list[pa.Array]] = field(default_factory=dict)

    def add(self, batch: Batch) -> None:
        """Look at some rows.

        Raises
        ------
        NullValueError
            If a value is null or NaN.
        ColumnError
            If a column has a type without an order.
        """
        for name in self.columns:
            array = batch[name]
            check_nulls(array, name, self.before + self.rows)
            kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
            self.types[name] = kind
            if pa.types.is_boolean(kind) or not len(array):
                continue
            if pa.types.is_integer(kind) and kind != pa.uint64() and not self.distinct:
                ends = pc.min_max(_plain(array)).as_py()
                low, high = self.bounds.get(name, (ends["min"], ends["max"]))
                self.bounds[name] = (min(low, ends["min"]), max(high, ends["max"]))
                continue
            if pa.types.is_nested(kind):
                raise ColumnError(
                    f"column {name!r} has type {kind}, which has no order; give numbers, text or booleans"
                )
            values = array.dictionary.take(pc.unique(array.indices)) if array.type != kind else pc.unique(array)
            pending = self.seen.setdefault(name, [])
            pending.append(values)
            if len(pending) > 1 and sum(len(one) for one in pending[1:]) > PENDING_VALUES:
                self.seen[name] = [_united(pending)]
        self.rows += _length(batch)

    def merge(self, other: Survey) -> None:
        """Add what another survey of the same columns found."""
        self.rows += other.rows
        for name, kind in other.types.items():
            if self.types.setdefault(name, kind) != kind:
                raise ColumnError(f"column {name!r} is {self.types[name]} in one part and {kind} in another")
        for name, (low, high) in other.bounds.items():
            least, most = self.bounds.get(name, (low, high))
            self.bounds[name] = (min(least, low), max(most, high))
        for name, values in other.seen.items():
            self.seen[name] = [_united([*self.seen.get(name, []), *values])]

    @property
    def too_wide(self) -> tuple[str, ...]:
        """Integer columns whose bounds are too far apart to count from the least value."""
        return tuple(n for n, (low, high) in self.bounds.items() if (high - low).bit_length() > RANGE_BITS)

    def coding(self, name: str) -> Flag | Range | Vocabulary:
        """The coding of one column."""
        if name in self.bounds:
            return Range(name, self.types[name], *self.bounds[name])
        if name in self.seen:
            values = _united(self.seen[name])
            try:
                return Vocabulary(name, values.take(pc.array_sort_indices(values)))
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
                raise ColumnError(_unordered(name, values.type)) from error
        return Flag(name)


@dataclass
class WordSurvey:
    """The distinct words of several columns together; of shards, ``merge`` it."""

    parts: tuple[Coding, ...]
    before: int = 0
    rows: int = 0
    seen: list[Words] = field(default_factory=list)

    @property
    def columns(self) -> tuple[str, ...]:
        return names_of(self.parts)

    def add(self, batch: Batch) -> None:
        """Look at some rows."""
        for name in self.columns:
            check_nulls(batch[name], name, self.before + self.rows)
        self._take(np.unique(pack(self.parts, batch)))
        self.rows += _length(batch)

    def merge(self, other: WordSurvey) -> None:
        """Add what another survey of the same columns found."""
        self.rows += other.rows
        for words in other.seen:
            self._take(words)

    def _take(self, words: Words) -> None:
        self.seen.append(words)
        if sum(map(len, self.seen[1:])) > max(PENDING_VALUES, len(self.seen[0])):
            self.seen = [np.unique(np.concatenate(self.seen))]

    def coding(self) -> Compound:
        """The columns as one."""
        return Compound(self.parts, np.unique(np.concatenate(self.seen)))


def names_of(codings: Sequence[Coding]) -> tuple[str, ...]:
    """The columns that these codings read."""
    return tuple(n for c in codings for n in (names_of(c.parts) if isinstance(c, Compound) else (c.name,)))


def _unordered(name: str, kind: pa.DataType) -> str:
    return f"column {name!r} has type {kind}, which has no order; give numbers, text or booleans"


def _united(values: Sequence[pa.Array]) -> pa.Array:
    return values[0] if len(values) == 1 else pc.unique(pa.concat_arrays(values))


def check_nulls(array: pa.Array, name: str, before: int = 0) -> None:
    """Raise NullValueError if a value is null or NaN; ``before`` rows of the table came earlier."""
    if not array.null_count and not pa.types.is_floating(array.type):
        return
    missing = pc.is_null(array, nan_is_null=pa.types.is_floating(array.type))
    first = missing.index(pa.scalar(True)).as_py()
    if first >= 0:
        raise NullValueError(
            f"column {name!r} is null in row {before + first} and perhaps in more; fill the values in or leave the "
            "rows out"
        )
