"""Earlier plans, read back: ``facecrowd plan --earlier`` and ``audit --table --plan … --earlier``.

A plan folder's classes.parquet carries, in its metadata, the domain of every attribute and what each class shows as
intervals of codes, so that a later plan can go on from exactly what was released. Row *i* of it is class *i* of
plan.parquet.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facecrowd.pipeline.errors import InputError
from facecrowd.pipeline.photos import read_table
from facecrowd.pipeline.storage import Folder
from facecrowd.privacy.attributes import Attribute, Hierarchy
from facecrowd.privacy.cells import SUPPRESSED, CellPlan, Cells
from facecrowd.privacy.classes import partial_histogram
from facecrowd.privacy.updates import Published, Updates

KEY = b"facecrowd.intervals"
"""Key of the metadata of classes.parquet."""


def intervals(attributes: Sequence[Attribute], plan: CellPlan) -> dict[bytes, bytes]:
    """The metadata that ``published`` reads: domains and intervals."""
    domains = [{"name": a.name, "kind": a.kind, "values": list(a.values)} for a in attributes]
    note = {"attributes": domains, "low": plan.low.tolist(), "high": plan.high.tolist()}
    return {KEY: json.dumps(note, default=str).encode()}


def published(folder: str, subject: str, kind: pa.DataType, hierarchies: Mapping[str, Hierarchy]) -> Published:
    """An earlier plan folder as a release to be kept.

    subject : the column that names the person; kind : its type in today's table; hierarchies : of today's policy

    Raises InputError when the folder holds no plan with one vector per subject.
    """
    where = f"earlier plan {folder}"
    try:
        data = Folder(folder).read("classes.parquet")
    except FileNotFoundError:
        raise InputError(f"{where}: no classes.parquet in it; was it written by 'facecrowd plan'?") from None
    rows = read_table(f"{folder.rstrip('/')}/plan.parquet", "earlier plan", [subject, "class_id", "suppressed"])
    with written_here(where):
        note = json.loads((pq.read_schema(io.BytesIO(data)).metadata or {})[KEY])
        return _published(where, note, rows, subject, kind, hierarchies)


@contextmanager
def written_here(where: str) -> Iterator[None]:
    """Say of what is not as a plan has it that it is none."""
    try:
        yield
    except InputError:
        raise
    # A damaged file makes its readers raise whatever they stumble over.
    except Exception:
        raise InputError(f"{where}: not written by this version of 'facecrowd plan'") from None


def _published(
    where: str, note: Any, rows: pa.Table, subject: str, kind: pa.DataType, hierarchies: Mapping[str, Hierarchy]
) -> Published:
    subjects = rows[subject].combine_chunks().cast(kind)
    if subjects.null_count or len(subjects.unique()) < len(subjects):
        raise InputError(f"{where}: a subject has several rows; only plans with per_subject: true can be kept")
    attributes = tuple(
        Attribute(d["name"], d["kind"], tuple(d["values"]), hierarchies.get(d["name"])) for d in note["attributes"]
    )
    low = np.array(note["low"], dtype=np.int32).reshape(-1, len(attributes))
    high = np.array(note["high"], dtype=np.int32).reshape(-1, len(attributes))
    left_out = rows["suppressed"].cast(pa.bool_()).to_numpy()
    # Whoever was left out shares one cell of no class.
    class_id = np.where(left_out, len(low), rows["class_id"].fill_null(0).to_numpy()).astype(np.int64)
    partial = partial_histogram(subjects, class_ids=class_id)
    used = partial.classes["class"].to_numpy()
    codes = np.vstack([low, np.zeros((1, len(attributes)), np.int32)])[used]
    class_of_cell = np.where(used == len(low), SUPPRESSED, used)
    return Published(Cells(attributes, codes, partial), CellPlan(class_of_cell, low, high, "earlier"))


def figures(updates: Updates) -> dict[str, Any]:
    """What several releases leave of everybody's crowd, for a report."""
    stay = ~updates.left
    return {
        "k": updates.k,
        "people": int(stay.sum()),
        "new": int(updates.new.sum()),
        "returning": int(updates.returning.sum()),
        "left": int(updates.left.sum()),
        "smallest_crowd": int(updates.crowd[stay].min()) if stay.any() else None,
        "below_k": len(updates.below()),
        "holds": updates.holds,
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """The same in words."""
    head = (
        f"with the earlier releases: {found['returning']:,} people return, {found['new']:,} are new, "
        f"{found['left']:,} left"
    )
    left = f"  all their classes intersected leave everybody a crowd of {found['smallest_crowd']} or more: met"
    if not found["holds"]:
        left = (
            f"  all their classes intersected leave {found['below_k']:,} people a crowd under k = {found['k']} "
            f"(the smallest: {found['smallest_crowd']}): NOT MET"
        )
    return [head, left]
