"""A release, without Ray, that kills its own process (SIGKILL) at its Nth act on the disk; run by test_resume.py.

    python kill_run.py N CONFIG.yaml

An act is a file written or moved into place, or a commit to an Iceberg table; each counts twice, before and after. With
N = 0 it runs to its end and prints the number of acts.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pyiceberg.catalog.sql import SqlCatalog

from facecrowd.pipeline import config, ray_data, release
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.storage import Folder

acts = 0


def act() -> None:
    global acts
    acts += 1
    if acts == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        act()
        result = function(*arguments, **options)
        act()
        return result

    return run


def loop(step: ray_data.Step, parts: Sequence[int], progress: Progress) -> None:
    for stage in step.stages:
        stage.setup()
    for part in parts:
        step.sink(part, ray_data.apply(step.stages, step.source(part), step.at_once))


if __name__ == "__main__":
    Folder.write = counted(Folder.write)  # type: ignore[method-assign]
    SqlCatalog.commit_table = counted(SqlCatalog.commit_table)  # type: ignore[method-assign]
    os.replace = counted(os.replace)
    release.release(release.prepare(config.load(sys.argv[2])), Progress(quiet=True), loop)
    print(acts)
