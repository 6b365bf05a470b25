"""``facecrowd demo``: the main job on the embedded set of synthetic people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facecrowd.pipeline import config as configs
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.summary import verdict_lines

FACES = Path(__file__).parent / "faces"
"""Synthetic people, made by ``python -m facecrowd.jobs.faceset``."""


def settings(output: Path) -> configs.ReleaseConfig:
    """The demo's config: k-same with k = 5, and two attributes of the people as quasi-identifiers."""
    return configs.load(
        None,
        {
            "input.path": str(FACES),
            "release.path": str(output / "release"),
            "release.identity": "class",
            "workspace.path": str(output / "workspace"),
            "method.name": "k-same",
            "policy.k": 5,
        },
    )


def run_demo(output: Path, progress: Progress) -> dict[str, Any]:
    """Release the demo set below ``output`` and say where everything is. Returns the audit."""
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
    return outcome.audit
