"""``facecrowd demo``: the main job on the embedded set of synthetic people; ``--methods`` runs every method.

The picture in the README is made by ``facecrowd demo --methods --sheet docs/images/methods.jpg``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from facecrowd.jobs.compare import compare, markdown
from facecrowd.pipeline import config as configs
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.config import PIXEL_METHODS
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.record import Record
from facecrowd.pipeline.schema import FACES as FACES_MANIFEST
from facecrowd.pipeline.schema import RENDERED
from facecrowd.pipeline.storage import Folder, Workspace
from facecrowd.pipeline.summary import verdict_lines
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode

FACES = Path(__file__).parent / "faces"
"""Synthetic people, made by ``python -m facecrowd.jobs.faceset``."""

SHEET_PEOPLE = 10


def settings(output: Path, method: str = "k-same") -> configs.ReleaseConfig:
    """The demo's config: k-same in latent space with k = 5, l and t on the set's measured attributes; or a baseline.

    One workspace for all.
    """
    values: dict[str, Any] = {
        "input.path": str(FACES),
        "release.path": str(output / ("release" if method == "k-same" else f"release-{method}")),
        "workspace.path": str(output / "workspace"),
        "method.name": method,
    }
    if method == "k-same":
        values |= {
            "input.attributes": str(FACES / "attributes.csv"),
            "release.identity": "class",
            "method.surrogates_per_subject": 5,
            "policy.k": 5,
            "policy.quasi_identifiers": ["long_face", "component_1", "component_2"],
            "policy.sensitive": ["wide_smile"],
            "policy.l": {"kind": "entropy", "value": 1.5},
            "policy.t": {"value": 0.2},
        }
    return configs.load(None, values)


def run_demo(output: Path, progress: Progress, methods: bool = False, sheet: Path | None = None) -> dict[str, Any]:
    """Release the demo set below ``output`` and say where everything is. Returns the audit of k-same."""
    outcome = releases.release(releases.prepare(settings(output)), progress)
    for line in verdict_lines(outcome.audit):
        print(line)
    root = output.resolve()
    print(
        f"\nreleased images:  {root / 'release' / 'images'}"
        f"\nmanifest:         {root / 'release' / 'manifest.parquet'}"
        f"\nreport:           {root / 'release' / 'README.md'} (every figure: audit.json)"
        f"\nprivate tables:   {root / 'workspace'} (Iceberg catalog catalog.db; keep it to yourself)"
    )
    if methods:
        for method in PIXEL_METHODS:
            releases.release(releases.prepare(settings(output, method)), progress)
        folders = [str(settings(output, method).release.path) for method in ("k-same", *PIXEL_METHODS)]
        print("\n" + markdown(compare(folders)))
        if sheet is not None:
            sheet.parent.mkdir(parents=True, exist_ok=True)
            sheet.write_bytes(contact_sheet(output / "workspace"))
            print(f"\npicture: {sheet}")
    return outcome.audit


def contact_sheet(workspace: Path) -> bytes:
    """The first face of some people as a JPEG sheet: the original, then what each method released for it."""
    from facecrowd.jobs.sheet import QUALITY, draw

    folder = Folder(str(workspace))
    rows: dict[str, list[np.ndarray]] = {}
    for name in folder.child("releases").names():
        record = Record.read(folder, f"releases/{name}")
        space = Workspace(str(workspace))
        faces = space.parts(FACES_MANIFEST, record.runs["faces"]).read_all(record.parts, ["photo", "status", "crop"])
        rendered = space.parts(RENDERED, record.runs["rendered"]).read_all(record.parts, ["image"])["image"]
        photos, status = faces["photo"].to_pylist(), faces["status"].to_pylist()
        people = sorted({photo.split("/")[0] for photo in photos})
        step = max(1, len(people) // SHEET_PEOPLE)
        chosen = [
            next(i for i, photo in enumerate(photos) if photo.startswith(f"{person}/") and status[i] == "ok")
            for person in people[::step][:SHEET_PEOPLE]
        ]
        rows["original"] = [decode(faces["crop"][i].as_py()) for i in chosen]
        rows[record.config.method.name] = [decode(rendered[i].as_py()) for i in chosen]
    order = ("original", *PIXEL_METHODS, "k-same")
    names = [name for name in order if name in rows]
    return encode(draw([rows[name] for name in names], left=names), QUALITY)
