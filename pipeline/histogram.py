"""Tables that are counted where they lie: Parquet and CSV read batch by batch, in this process or by Ray's workers.

``privacy/counting.py`` has the mathematics; here is only where batches come from and who counts. On Ray every part of
the table becomes sorted keys on some worker, keys are dealt to partitions by a hash of their class (or subject), so
that a class is never cut, and each partition is counted on some worker. What comes out is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facecrowd.pipeline import presets, ray_data
from facecrowd.pipeline.errors import InputError, UnfinishedError, reason
from facecrowd.pipeline.photos import read_table
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.storage import Folder
from facecrowd.privacy import counting
from facecrowd.privacy.cells import Cells, Hierarchy, Kind, of_partial
from facecrowd.privacy.classes import Histogram, PartialHistogram
from facecrowd.privacy.errors import PrivacyError
from facecrowd.privacy.packing import Words, pack

PART_ROWS = 2**21
"""Rows that one of Ray's workers reads at once."""

PARTITION_ROWS = 8_000_000
"""Rows that one of Ray's workers counts at once."""

By = Literal["class", "subject", "cell"]


@dataclass(frozen=True)
class Part:
    """A stretch of a table that can be read on its own: row groups of one Parquet file."""

    file: int
    groups: tuple[int, ...]
    start: int
    rows: int


@dataclass(frozen=True)
class Table:
    """A table on disk: a Parquet file, a folder of them, or a CSV file; local or any fsspec URL. Picklable.

    A CSV file is read whole; its columns become whole numbers or numbers where every value is one.
    """

    path: str
    role: str = "table"
    subject: str = ""
    classes: Classes | None = None

    @cached_property
    def files(self) -> list[str]:
        """The Parquet files, in the order of their names."""
        folder = Folder(self.path)
        try:
            if not folder.fs.isdir(folder.root):
                return [folder.root]
            names = [name for name in folder.names() if name.endswith(".parquet") and not name.startswith((".", "_"))]
        except (FileNotFoundError, OSError):
            return [folder.root]
        if not names:
            raise InputError(f"{self.role} {self.path}: no .parquet file in this folder")
        return [folder.at(name) for name in names]

    @cached_property
    def memory(self) -> pa.Table | None:
        """The whole table where it is CSV."""
        if not self.path.lower().endswith(".csv"):
            return None
        table = read_table(self.path, self.role)
        names = table.column_names
        # Spreadsheets leave columns without a name.
        if twice := [n for n in names if n and names.count(n) > 1]:
            raise InputError(f"{self.role} {self.path}: column {twice[0]!r} is there {names.count(twice[0])} times")
        return pa.table({n: _typed(table[n], keep=n == self.subject) for n in names if names.count(n) == 1})

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns as ``batches`` gives them."""
        own = self.memory.schema if self.memory is not None else self._open(0).schema_arrow
        return own if self.classes is None else own.append(pa.field(CLASS, pa.int32()))

    @cached_property
    def parts(self) -> list[Part]:
        """The table in pieces of about ``PART_ROWS`` rows that follow each other."""
        found: list[Part] = []
        start = 0
        for number in range(len(self.files)):
            metadata = self._open(number).metadata
            groups: list[int] = []
            rows = 0
            for group in range(metadata.num_row_groups):
                groups.append(group)
                rows += metadata.row_group(group).num_rows
                if rows >= PART_ROWS or group == metadata.num_row_groups - 1:
                    found.append(Part(number, tuple(groups), start, rows))
                    start, groups, rows = start + rows, [], 0
        return found

    @property
    def rows(self) -> int:
        """Rows in the file, suppressed ones included."""
        if self.memory is not None:
            return int(self.memory.num_rows)
        return sum(self._open(number).metadata.num_rows for number in range(len(self.files)))

    def batches(
        self, columns: Sequence[str], part: Part | None = None, rows: int = counting.BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """The named columns, at most ``rows`` rows at a time, of the whole table or of one part."""
        wanted = list(dict.fromkeys(columns))
        if self.classes is not None:
            wanted = list(dict.fromkeys([*(name for name in wanted if name != CLASS), *self.classes.columns]))
        row = part.start if part else 0
        for batch in self._raw(wanted, part, rows):
            row += batch.num_rows
            yield batch if self.classes is None else self.classes.add(batch, row - batch.num_rows)

    def _raw(self, columns: list[str], part: Part | None, rows: int) -> Iterator[pa.RecordBatch]:
        if self.memory is not None:
            yield from self.memory.select(columns).to_batches(max_chunksize=rows)
            return
        for number in [part.file] if part else range(len(self.files)):
            groups = list(part.groups) if part else None
            try:
                for batch in self._open(number).iter_batches(rows, row_groups=groups, columns=columns):
                    for column in batch.columns:
                        if pa.types.is_dictionary(column.type):
                            column.dictionary.validate(full=True)  # that text is UTF-8
                    yield batch
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{self.role} {self.files[number]}: not readable: {reason(error)}") from None

    def _open(self, number: int) -> pq.ParquetFile:
        folder = Folder(self.path)
        path = self.files[number]
        try:
            source = path if folder.local is not None else folder.fs.open(path, "rb")
            schema = pq.read_schema(source)
            text = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
            return pq.ParquetFile(source, read_dictionary=text)
        except (FileNotFoundError, IsADirectoryError):
            raise InputError(f"{self.role} {self.path}: no such file") from None
        # On a damaged file Arrow raises whatever it stumbled over.
        except Exception as error:
            raise InputError(f"{self.role} {path}: not readable: {reason(error)}") from None

    def need(self, columns: Sequence[str]) -> None:
        """Raise InputError, naming what is there, if a column is missing, or if the table is empty."""
        names = self.schema.names
        for column in columns:
            if column not in names:
                near = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
                sets = "" if column == self.subject else f"; {presets.hint(predicted=False)}"
                raise InputError(f"{self.role} {self.path}: no column {column!r} (there are {near}){sets}")
            if names.count(column) > 1:
                raise InputError(f"{self.role} {self.path}: column {column!r} is there {names.count(column)} times")
            if pa.types.is_nested(self.schema.field(column).type):
                raise InputError(f"{self.role} {self.path}: column {column!r} holds several values a row; give it one")
        if not self.rows:
            raise InputError(f"{self.role} {self.path}: the table is empty")


CLASS = "released class"
"""The column that ``Classes`` adds."""


@dataclass(frozen=True, eq=False)
class Classes:
    """A plan laid over the rows of a table: each row gets its class, suppressed rows go.

    subject : the column that names the person, where classes belong to people; None where they belong to rows
    subjects : the people of the plan; class_id : (their number or the table's rows,) int32, -1 for suppressed
    """

    subject: str | None
    subjects: pa.Array | None
    class_id: np.ndarray

    @property
    def columns(self) -> list[str]:
        return [self.subject] if self.subject else []

    def add(self, batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
        """The released rows of a batch, with their class.

        Raises InputError for a person whom the plan does not know.
        """
        if self.subject is None:
            found = self.class_id[start : start + batch.num_rows]
        else:
            column = batch.column(self.subject)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            position = pc.index_in(column, self.subjects)
            if position.null_count:
                unknown = column.filter(pc.is_null(position))[0].as_py()
                raise InputError(f"plan: it does not know subject {unknown!r} of the table; plan this table again")
            found = self.class_id[position.to_numpy()]
        with_class = batch.append_column(CLASS, pa.array(found, pa.int32()))
        return with_class if (found >= 0).all() else with_class.filter(pa.array(found >= 0))


def _typed(column: pa.ChunkedArray, keep: bool) -> pa.ChunkedArray:
    """A CSV column: empty is null; whole numbers or numbers where all values are, in one spelling each."""
    column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    if keep:
        return column
    try:
        whole = column.cast(pa.int64())
        return whole if whole.cast(pa.string()).equals(column) else column  # 007 is no number
    except pa.ArrowInvalid:
        pass
    try:
        return column.cast(pa.float64())
    except pa.ArrowInvalid:
        return column


# --------------------------------------------------------------------------------------------------------- counting


@dataclass(frozen=True)
class Roles:
    """Which columns are what."""

    subject: str
    quasi_identifiers: tuple[str, ...]
    sensitive: tuple[str, ...] = field(default=())

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.subject, *self.quasi_identifiers, *self.sensitive)


def layout_of(table: Table, roles: Roles, progress: Progress, ray: bool = False) -> counting.Layout:
    """How the rows of a table become keys, after a look at the columns that are not boolean.

    ray : count on the running Ray session's workers, here and below; CSV is always counted in this process

    Raises InputError, or an error of ``privacy/`` that names the column and the row.
    """
    table.need(roles.columns)

    def here(look: Any) -> Any:
        for batch in table.batches(look.columns):
            look.add(batch)
        return look

    look = partial(_looked_by_ray, table, progress) if ray and table.memory is None else here
    return counting.surveyed(look, table.schema, roles.subject, roles.quasi_identifiers, roles.sensitive)


def measured(table: Table, layout: counting.Layout, progress: Progress, ray: bool = False) -> Histogram:
    """The histogram of the rows as they are. Raises as ``layout_of``."""
    return counting.histogram_of(_pieces(table, layout, "class", progress, ray), layout)


def cells(
    table: Table,
    layout: counting.Layout,
    progress: Progress,
    *,
    per_subject: bool = True,
    kinds: Mapping[str, Kind] | None = None,
    hierarchies: Mapping[str, Hierarchy] | None = None,
    ray: bool = False,
) -> Cells:
    """The cells that planners work on: ``privacy.cells.cells`` of a table that is never held.

    Raises as ``layout_of``.
    """
    return of_partial(_partial(table, layout, per_subject, progress, ray), kinds=kinds, hierarchies=hierarchies)


def cell_of_rows(table: Table, layout: counting.Layout, cells: Cells) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Batch by batch the subjects of the rows, and the cell of each row (``per_subject`` false)."""
    (known,) = cells.partial.classes.combine_chunks().to_batches()
    words = pack(layout.quasi_identifiers, known)
    for batch in table.batches(layout.columns, rows=layout.batch_rows):
        asked, slot = np.unique(pack(layout.quasi_identifiers, batch), return_inverse=True)
        yield batch.select([layout.subject.name]), np.searchsorted(words, asked)[slot]


def _partial(
    table: Table, layout: counting.Layout, per_subject: bool, progress: Progress, ray: bool
) -> PartialHistogram:
    if per_subject:
        return counting.majority_of(_pieces(table, layout, "subject", progress, ray), layout)
    return counting.partial_of(_pieces(table, layout, "cell", progress, ray), layout)


def _pieces(table: Table, layout: counting.Layout, by: By, progress: Progress, ray: bool) -> Iterable[Any]:
    if ray and table.memory is None:
        return _counted_by_ray(table, layout, by, progress)
    with progress.step("count", -(-table.rows // layout.batch_rows)) as advance:
        batches = table.batches(layout.columns, rows=layout.batch_rows)
        runs = counting.runs_of(batches, layout, _order(by), advance)
    return counting.counted(runs, partial(_piece, layout=layout, by=by))


def _order(by: By) -> str:
    return "subject" if by == "subject" else "class"


def _piece(keys: Words, *, layout: counting.Layout, by: By) -> Any:
    if by == "class":
        return counting.class_piece(keys, layout.subject_bits, layout.value_bits)
    return counting.subject_piece(keys, layout) if by == "subject" else counting.cell_piece(keys)


# -------------------------------------------------------------------------------------------------------------- Ray


def _looked_by_ray(table: Table, progress: Progress, look: Any) -> Any:
    """The parts' looks, merged."""
    import ray

    parts = table.parts

    def see(one: Any, part: Part) -> Any:
        own = replace(one, before=part.start)
        for batch in table.batches(own.columns, part):
            own.add(batch)
        return own

    task, given = ray.remote(see), ray.put(look)
    with progress.step("survey", len(parts)) as advance:
        for own in _worked([task.remote(given, part) for part in parts], "survey"):
            look.merge(own)
            advance(own.rows)
    return look


def _counted_by_ray(table: Table, layout: counting.Layout, by: By, progress: Progress) -> Iterator[Any]:
    """The pieces, each from one partition.

    Plain Ray tasks, not Ray Data: its shuffle starts actors and copies rows, and here whole arrays change hands once.
    """
    import ray

    parts = table.parts
    partitions = max(2, -(-sum(part.rows for part in parts) // PARTITION_ROWS))
    low = layout.value_bits + (layout.class_bits if by == "subject" else layout.subject_bits)

    def deal(how: counting.Layout, part: Part) -> list[Words]:
        dealt: list[list[Words]] = [[] for _ in range(partitions)]
        start = part.start
        for batch in table.batches(how.columns, part, how.batch_rows):
            keys = how.keys(batch, _order(by), start)
            start += len(keys)
            at = _partition(keys, low, partitions)
            order = np.argsort(at, kind="stable")
            bounds = np.searchsorted(at[order], np.arange(partitions + 1))
            keys = keys[order]
            for i in range(partitions):
                dealt[i].append(keys[bounds[i] : bounds[i + 1]])
        return [np.concatenate(one) for one in dealt]

    def count(how: counting.Layout, *slices: Words) -> Any:
        keys = counting.merged(slices)
        return _piece(keys, layout=how, by=by) if len(keys) else None

    given = ray.put(layout)
    dealing, counted = ray.remote(num_returns=partitions)(deal), ray.remote(count)
    dealt = [dealing.remote(given, part) for part in parts]
    tasks = [counted.remote(given, *(hands[i] for hands in dealt)) for i in range(partitions)]
    del dealt
    with progress.step("count", partitions) as advance:
        for piece in _worked(tasks, "count"):
            if piece is not None:
                advance(0)
                yield piece


def _partition(keys: Words, low: int, partitions: int) -> np.ndarray:
    """The partition of each key: a hash of the bits that must stay together."""
    high = keys >> np.uint64(low) if low < 64 else np.zeros(len(keys), dtype=np.uint64)
    mixed = (high + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(33)) % np.uint64(partitions)).astype(np.int32)


def _worked(tasks: list[Any], name: str) -> Iterator[Any]:
    """What the tasks return, whichever is done first; what was wrong with the table as it was raised."""
    import ray

    try:
        while tasks:
            done, tasks = ray.wait(tasks, num_returns=1)
            yield ray.get(done[0])
    except Exception as error:
        cause = ray_data.root_cause(error)
        if isinstance(cause, PrivacyError | InputError):
            raise cause from None
        what = (str(cause).strip().splitlines() or ["no message"])[0]
        raise UnfinishedError(f"{name}: {type(cause).__name__}: {what}") from error
