"""The leak scan: what in a release folder could lead back to a source, looked for in the files as they lie there.

What can only be told by who holds the workspace is in ``traces``.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from facecrowd.pipeline.storage import Folder
from facecrowd.stages.encode import metadata

NOTE = "facecrowd"
"""Key of what a manifest says of itself: that recognisers still match its faces, or that they are cloaked originals."""


@dataclass(frozen=True)
class Leak:
    kind: (
        str  # metadata | unexpected file | order | source name | original pixels | original face | timestamps | column
    )
    where: str
    what: str


def scan(
    release: Folder,
    images: Iterable[tuple[str, bytes]],
    expected: set[str],
    sources: set[str] | None = None,
    original_hashes: set[str] | None = None,
    timestamps: bool = True,
    owners: Mapping[str, str] | None = None,
) -> list[Leak]:
    """Look through a release.

    images : its images as (name, bytes); expected : the files it should hold, relative; sources : names that must not
    appear in any text or table (photo paths, subjects), where the workspace is at hand; original_hashes : SHA-256 of
    source files and crops; timestamps : whether differing modification times are a leak, as they are at publication (a
    copy has others); owners : the subject of each image by its name: an attribute's value that happens to be a
    subject's name is let be where another subject has it too.
    """
    leaks = [
        Leak("unexpected file", name, "not listed in the release's metadata")
        for name, _ in release.files()
        if name not in expected
    ]
    names = []
    for name, data in images:
        names.append(name)
        leaks += [Leak("metadata", name, str(found)) for found in metadata(data)]
        if original_hashes and hashlib.sha256(data).hexdigest() in original_hashes:
            leaks.append(Leak("original pixels", name, "the file equals an original, byte for byte"))
    if names != sorted(names):
        leaks.append(Leak("order", "manifest.parquet", "rows are not in the order of their random names"))
    if timestamps and times(release, expected) > 1:
        many = times(release, expected)
        leaks.append(Leak("timestamps", release.url, f"{many} different modification times among the files"))
    if sources:
        leaks += named(release, expected, sources, owners or {})
    return leaks


def times(release: Folder, expected: set[str]) -> int:
    """How many different modification times the files have; 0 on an object store, which sets its own."""
    if release.local is None:
        return 0
    return len({info.get("mtime") for name, info in release.files() if name in expected})


def named(release: Folder, expected: set[str], sources: set[str], owners: Mapping[str, str]) -> list[Leak]:
    """Source names in texts (only of files and folders: people may be called what any text says), in the cells of
    tables and in what a table says of itself."""
    leaks = []
    for name in sorted(expected):
        if name.endswith((".json", ".md", ".yaml")):
            text = release.read(name).decode("utf-8", errors="replace")
            hits = _names_files(text, sources)
        elif name == "manifest.parquet":
            data = release.read(name)
            hits = _in_cells(_table_cells(data), sources, owners)
            leaks += [Leak("metadata", name, text) for text in _said_of_itself(data, sources)]
        elif name.endswith(".tar"):
            hits = _in_cells(_side_cells(release.read(*name.split("/"))), sources, owners)
        else:
            continue
        leaks += [Leak("source name", name, f"holds the source name {hit!r}") for hit in hits[:5]]
    return leaks


FIXED = ("name", "file", "identity", "sha256")
"""Columns that say which image a row is: a source's name has no reason at all to be in one."""

Cell = tuple[str, str, str]  # image, column, value


def _in_cells(cells: Iterator[Cell], sources: set[str], owners: Mapping[str, str]) -> list[str]:
    """The source names that are whole cells."""
    hits = set()
    shown: dict[tuple[str, str], set[str]] = {}
    for image, column, value in cells:
        if value not in sources:
            continue
        if column in FIXED:
            hits.add(value)
        else:
            shown.setdefault((column, value), set()).add(owners.get(image, value))
    # Brown is a colour where others have it too; where nobody but Brown has it, it is their name.
    hits |= {value for (_, value), subjects in shown.items() if not subjects - {value}}
    return sorted(hits)


def _table_cells(parquet: bytes) -> Iterator[Cell]:
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(parquet), use_threads=False, pre_buffer=False)
    names = table["name"].to_pylist()
    for column in table.column_names:
        if pa.types.is_string(table[column].type) or pa.types.is_large_string(table[column].type):
            for name, value in zip(names, table[column].to_pylist(), strict=True):
                if value:
                    yield name, column, value


def _said_of_itself(parquet: bytes, sources: set[str]) -> Iterator[str]:
    """What a Parquet file holds beside its columns, but for the release's own note, which names no source."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(pa.BufferReader(parquet))
    for where, held in [
        ("the table", schema.metadata),
        *((f"column {field.name}", field.metadata) for field in schema),
    ]:
        # Field ids are the writer's own.
        told = {key.decode("utf-8", "replace"): text.decode("utf-8", "replace") for key, text in (held or {}).items()}
        told.pop("PARQUET:field_id", None)
        keys = sorted(key for key, text in told.items() if key != NOTE or _names_files(text, sources))
        if keys:
            yield f"{where} carries {', '.join(keys)}"


def _names_files(text: str, sources: set[str]) -> list[str]:
    """The files and folders of the source that a text names."""
    return sorted(s for s in sources if (posixpath.splitext(s)[1] or "/" in s.strip("/")) and s in text)


def _side_cells(tar: bytes) -> Iterator[Cell]:
    """The cells of the JSON files beside the images of a WebDataset shard."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as shard:
        for member in shard:
            if member.isfile() and member.name.endswith(".json"):
                content = shard.extractfile(member)
                assert content is not None
                name = member.name.removesuffix(".json")
                for column, value in json.loads(content.read()).items():
                    yield name, column, str(value)
