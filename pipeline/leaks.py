"""The leak scan: what in a release folder could lead back to a source, looked for in the files as they lie there."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from facecrowd.pipeline.storage import Folder
from facecrowd.stages.encode import metadata


@dataclass(frozen=True)
class Leak:
    kind: str  # metadata | unexpected file | order | source name | original pixels | timestamps
    where: str
    what: str


def scan(
    release: Folder,
    images: Iterable[tuple[str, bytes]],
    expected: set[str],
    sources: set[str] | None = None,
    original_hashes: set[str] | None = None,
) -> list[Leak]:
    """Look through a release.

    images : its images as (name, bytes); expected : the files it should hold, relative; sources : names that must not
    appear in any text or table (photo paths, subjects), where the workspace is at hand; original_hashes : SHA-256 of
    source files and crops.
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
    times = {info.get("mtime") for name, info in release.files() if release.local is not None and name in expected}
    if len(times) > 1:
        leaks.append(Leak("timestamps", release.url, f"{len(times)} different modification times among the files"))
    if sources:
        leaks += _named(release, expected, sources)
    return leaks


def _named(release: Folder, expected: set[str], sources: set[str]) -> list[Leak]:
    """Source names in texts (only file names: people may be called what any text says) and in the manifest's cells."""
    leaks = []
    for name in sorted(expected):
        if name.endswith((".json", ".md", ".yaml")):
            text = release.read(name).decode("utf-8", errors="replace")
            hits = sorted(s for s in sources if posixpath.splitext(s)[1] and s in text)
        elif name == "manifest.parquet":
            hits = sorted(sources & _cells(release.read(name)))
        else:
            continue
        leaks += [Leak("source name", name, f"holds the source name {hit!r}") for hit in hits[:5]]
    return leaks


def _cells(parquet: bytes) -> set[str]:
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(parquet), columns=["name", "file", "identity"])
    cells: set[str] = set()
    for column in table.columns:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            cells.update(str(v) for v in np.unique(np.asarray(column.drop_null().to_pylist(), dtype=str)))
    return cells
