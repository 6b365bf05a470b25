"""What goes in: the listing of the input, who is on each photo as the input has it, and the attributes it brings."""

from __future__ import annotations

import csv
import io
import math
import os
import posixpath
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from facecrowd.pipeline import presets
from facecrowd.pipeline.config import Input, Policy
from facecrowd.pipeline.errors import InputError, reason
from facecrowd.pipeline.storage import Folder

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm"),
    *(".avif", ".heic", ".heif", ".jp2", ".j2k"),
)
"""What is taken for a photo. One of a kind that cannot be decoded here becomes a row that says so, like a damaged one.
"""


@dataclass(frozen=True)
class Photo:
    """One input file. ``state`` changes when its bytes may have changed (size, time, etag)."""

    photo: str
    path: str
    bytes: int
    subject: str
    attributes: dict[str, str]
    state: str


@dataclass(frozen=True)
class Listing:
    """The input as found: the photos sorted by path, and how their subjects are known.

    skipped : files of a folder that are no photos, counted by extension; brought : the attributes of the policy that
    the input has, for every photo; the others are to be predicted.
    """

    photos: list[Photo]
    subjects: str  # folder | column | clusters
    skipped: dict[str, int] = field(default_factory=dict)
    brought: tuple[str, ...] = ()

    def named_subjects(self) -> int:
        return len({p.subject for p in self.photos if p.subject})


def listing(config: Input, policy: Policy, predictable: Collection[str] = ()) -> Listing:
    """List the input.

    predictable : attributes that the input need not bring

    Raises InputError, naming what is missing: the input, its photos, a column, or attributes of the policy.
    """
    if not config.path:
        raise InputError("no input: give --input PHOTOS (a folder, or a Parquet/CSV manifest)")
    if "::" in config.path:
        # The photos inside have no URL of their own, by which a worker could read them.
        raise InputError(f"input {config.path}: '::' joins URLs; unpack what lies inside, or rename the folder")
    names = (*policy.quasi_identifiers, *policy.sensitive)
    skipped: Counter[str] = Counter()
    if config.path.lower().endswith((".parquet", ".csv")):
        photos, subjects, brought = _from_manifest(config, names, predictable)
    else:
        photos, subjects = _from_folder(config, skipped)
        brought = ()
    if not photos:
        there = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        raise InputError(
            f"input {config.path}: no photo in it (looked for {', '.join(SUFFIXES)}{there and f'; found {there}'})"
        )
    if config.attributes:
        photos, brought = _joined(config, photos, names, predictable)
    return Listing(sorted(photos, key=lambda p: p.photo), subjects, dict(sorted(skipped.items())), brought)


def _from_folder(config: Input, skipped: Counter[str]) -> tuple[list[Photo], str]:
    assert config.path
    folder = Folder(config.path)
    if not folder.exists():
        raise InputError(f"input {config.path}: no such folder")
    if not folder.fs.isdir(folder.root):
        raise InputError(f"input {config.path}: not a folder, and not a .parquet or .csv manifest")
    local = folder.local
    root = local.resolve() if local else None
    found: list[tuple[str, str, dict[str, Any]]] = []
    for name, info in folder.files():
        if root is not None and (root / name).is_dir():
            # A walk does not follow links, so the people behind one would be missing without a word.
            raise InputError(f"input {name}: a link to a folder; put the folder itself there, or give a manifest")
        if not name.lower().endswith(SUFFIXES) or posixpath.basename(name).startswith("."):
            skipped[_kind(name)] += 1
            continue
        _storable(name, f"input {name!r}")
        if root is None:
            _single(name, f"input {name!r}")
        path = folder.fs.unstrip_protocol(folder.at(name)) if root is None else folder.at(name)
        if root is not None:
            _inside(root, name, f"input {name}")
        found.append((name, path, info))
    people = {_person(name) for name, _, _ in found} - {""}
    if config.subjects == "column":
        raise InputError("input.subjects: column needs a manifest (.parquet or .csv) as input, not a folder")
    if config.subjects == "folder" and not people:
        raise InputError(f"input {config.path}: its photos lie in no sub-folders, so folders name no subjects")
    kind = "clusters" if config.subjects == "clusters" or (config.subjects == "auto" and len(people) < 2) else "folder"
    return [
        Photo(
            photo=name,
            path=path,
            bytes=int(info.get("size") or 0),
            subject=_person(name) if kind == "folder" else "",
            attributes={},
            state=str(info.get("ETag") or info.get("mtime") or ""),
        )
        for name, path, info in found
    ], kind


def _person(name: str) -> str:
    """The first folder below the input: PERSON/photo and PERSON/SESSION/photo show one person; '' beside the folders.

    Were each session a person of its own, a class of k people could be k sessions of one.
    """
    return name.partition("/")[0] if "/" in name else ""


def _kind(name: str) -> str:
    """A file that is no photo, by its extension."""
    base = posixpath.basename(name)
    suffix = posixpath.splitext(base)[1].lower()
    return f"hidden {suffix}".strip() if base.startswith(".") else ascii(suffix)[1:-1] or "without extension"


def _storable(name: str, where: str) -> None:
    """Refuse a name that is no text: the manifests hold UTF-8, so a row could not say which photo it is."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: its name is not UTF-8; rename it") from None


def _single(name: str, where: str) -> None:
    """Refuse a name on a store that would be taken for several joined by ``::``, and so for another file."""
    if "::" in name:
        raise InputError(f"{where}: '::' joins names of files in URLs; rename it")


def _inside(root: Path, name: str, where: str) -> None:
    """Refuse what no photo can be: a link that leads out of the input, or a pipe, on which reading would wait.

    A link to itself and a name that is too long are of no file, which reading says.
    """
    file = os.path.realpath(root / name)
    if not Path(file).is_relative_to(root):
        raise InputError(f"{where}: a link that leads out of the input folder")
    if os.path.exists(file) and not os.path.isfile(file):
        raise InputError(f"{where}: not a file")


def _from_manifest(
    config: Input, names: Iterable[str], predictable: Collection[str]
) -> tuple[list[Photo], str, tuple[str, ...]]:
    assert config.path
    table = read_table(config.path, "input")
    _need(table, [config.path_column], f"input {config.path}")
    if config.subjects == "folder":
        kind = "folder"
    elif config.subject_column and config.subjects in ("auto", "column"):
        kind = "column"
        _need(table, [config.subject_column], f"input {config.path}")
    else:
        kind = "clusters"
    brought = () if config.attributes else _brought(table, names, predictable, f"input {config.path}")
    base = Folder(posixpath.dirname(config.path) or ".")
    root = base.local.resolve() if base.local else None
    photos, seen = [], set()
    wanted = [config.path_column, *([config.subject_column] if kind == "column" and config.subject_column else [])]
    for index, row in enumerate(objects(table, [*wanted, *brought], f"input {config.path}")):
        name = row[config.path_column]
        if not isinstance(name, str) or not name:
            what = "empty" if name in (None, "") else "no text"
            raise InputError(f"input {config.path}, row {index}: {config.path_column} is {what}")
        normal = posixpath.normpath(name)
        if _leads_out(name) or (root is None and _leads_out(unquote(name))):
            raise InputError(f"input {config.path}, row {index}: {name!r} leads out of the manifest's folder")
        if normal in seen:
            raise InputError(f"input {config.path}, row {index}: {name!r} is there twice")
        seen.add(normal)
        _storable(normal, f"input {config.path}, row {index}: {name!r}")
        if root is None:
            _single(name, f"input {config.path}, row {index}: {name!r}")
        size, changed = -1, ""
        if root is not None:
            _inside(root, normal, f"input {config.path}, row {index}: {name!r}")
            # A photo that is not there is a row with a reason, like any that cannot be read.
            if os.path.exists(root / normal):
                found = (root / normal).stat()
                size, changed = found.st_size, str(found.st_mtime)
        subject = row[config.subject_column] if kind == "column" and config.subject_column else ""
        if kind == "column" and _nothing(subject):
            raise InputError(f"input {config.path}, row {index}: {config.subject_column} is empty")
        photos.append(
            Photo(
                photo=normal,
                path=base.fs.unstrip_protocol(base.at(normal)) if base.local is None else base.at(normal),
                bytes=size,
                subject=_person(normal) if kind == "folder" else str(subject),
                attributes={n: _text(row[n], n, f"input {config.path}", index) for n in brought},
                state=changed,
            )
        )
    return photos, kind, brought


def _leads_out(name: str) -> bool:
    normal = posixpath.normpath(name)
    return normal.startswith(("../", "/")) or normal == ".." or "://" in name or "\0" in name


def _joined(
    config: Input, photos: list[Photo], asked: tuple[str, ...], predictable: Collection[str]
) -> tuple[list[Photo], tuple[str, ...]]:
    assert config.attributes
    table = read_table(config.attributes, "input.attributes")
    _need(table, [config.attributes_key], f"input.attributes {config.attributes}")
    names = _brought(table, asked, predictable, f"input.attributes {config.attributes}")
    rows: dict[str, dict[str, Any]] = {}
    where = f"input.attributes {config.attributes}"
    for index, row in enumerate(objects(table, [config.attributes_key, *names], where)):
        key = _text(row[config.attributes_key], config.attributes_key, f"input.attributes {config.attributes}", index)
        if key in rows:
            raise InputError(f"input.attributes {config.attributes}, row {index}: {key!r} is there twice")
        rows[key] = row
    out, missing = [], []
    shared = Counter(posixpath.basename(photo.photo) for photo in photos)
    for photo in photos:
        base = posixpath.basename(photo.photo)
        match = rows.get(photo.photo) or rows.get(base)
        if match is not None and photo.photo not in rows and shared[base] > 1:
            raise InputError(
                f"input.attributes {config.attributes}: {shared[base]} photos of the input are called {base!r}, among "
                f"them {photo.photo!r}; put the path relative to the input into {config.attributes_key}"
            )
        if match is None:
            missing.append(photo.photo)
            continue
        values = {n: _text(match[n], n, f"input.attributes {config.attributes}", repr(photo.photo)) for n in names}
        out.append(Photo(photo.photo, photo.path, photo.bytes, photo.subject, values, photo.state))
    if missing and names:
        raise InputError(
            f"input.attributes {config.attributes}: {len(missing)} photos have no row in it, the first {missing[0]!r} "
            f"(joined by {config.attributes_key})"
        )
    return (out if names else photos), names


def read_table(path: str, role: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet or CSV table from any fsspec URL.

    Raises InputError when it is missing, not readable, or lacks a column.
    """
    folder = Folder(path)
    try:
        data = folder.read()
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{role} {path}: no such file") from None
    try:
        if path.lower().endswith(".csv"):
            # The cut may fall inside a character; what is no UTF-8 at all is found by the reader.
            start = io.StringIO(data[:65536].decode("utf-8-sig", errors="replace"), newline="")
            header = next(csv.reader(start), [])
            text = {name: pa.string() for name in header}
            options = pacsv.ConvertOptions(column_types=text, strings_can_be_null=False)
            # Arrow's threads may outlive the table, and a process that ends meanwhile, on bad input, aborts.
            alone = pacsv.ReadOptions(use_threads=False)
            table = pacsv.read_csv(io.BytesIO(data), read_options=alone, convert_options=options)
        else:
            table = pq.read_table(io.BytesIO(data), use_threads=False, pre_buffer=False)
            table.validate(full=True)
        names = table.column_names
    # On a damaged file Arrow raises whatever it stumbled over.
    except Exception as error:
        raise InputError(f"{role} {path}: not readable: {reason(error)}") from None
    if columns is not None:
        _need(table, columns, f"{role} {path}")
        table = table.select(list(dict.fromkeys(columns)))
    if not len(table) or not names:
        raise InputError(f"{role} {path}: the table is empty")
    return table


def _brought(table: pa.Table, names: Iterable[str], predictable: Collection[str], where: str) -> tuple[str, ...]:
    """Those of the policy's attributes that are columns here. Raises InputError for one that is none, and unknown."""
    try:
        _need(table, [n for n in names if n not in predictable], where)
    except InputError as error:
        raise InputError(f"{error}; {presets.hint(bool(predictable))}") from None
    brought = tuple(n for n in names if n in table.column_names)
    _need(table, brought, where)
    return brought


def objects(table: pa.Table, columns: Iterable[str], where: str) -> list[dict[str, Any]]:
    """Columns of a table as Python's objects. Raises InputError for what it has none of: text that is no UTF-8."""
    try:
        found: list[dict[str, Any]] = table.select(list(dict.fromkeys(columns))).to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise InputError(f"{where}: not readable: {reason(error)}") from None
    return found


def _need(table: pa.Table, columns: Iterable[str], where: str) -> None:
    for column in columns:
        if table.column_names.count(column) > 1:
            raise InputError(f"{where}: column {column!r} is there {table.column_names.count(column)} times")
        if column not in table.column_names:
            near = ", ".join(table.column_names[:12])
            raise InputError(
                f"{where}: no column {column!r} (there are {near}{', …' if table.num_columns > 12 else ''})"
            )


def _nothing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _text(value: Any, name: str, table: str, row: Any) -> str:
    if _nothing(value):
        raise InputError(f"{table}, row {row}: {name} is empty")
    return {True: "1", False: "0"}.get(value, str(value)) if isinstance(value, bool) else str(value)
