"""A release, without Ray, that stops at its Nth act on the disk; run by the tests of kills and of faults.

    python kill_run.py N CONFIG.yaml         there it kills its own process (SIGKILL)
    python kill_run.py N CONFIG.yaml hold    there it says "held", and goes on when a line comes in

An act is a file written or moved into place, or a commit to an Iceberg table; each counts twice, before and after. With
N = 0 it runs to its end. In the end it prints the number of acts. An error ends it as it ends the command line.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from pyiceberg.catalog.sql import SqlCatalog

from facecrowd.jobs import cli
from facecrowd.pipeline import config, ray_data, release
from facecrowd.pipeline.errors import UnfinishedError
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.storage import Folder

acts = 0


def act() -> None:
    global acts
    acts += 1
    if acts != int(sys.argv[1]):
        return
    if sys.argv[3:] != ["hold"]:
        os.kill(os.getpid(), signal.SIGKILL)
    print("held", flush=True)
    sys.stdin.readline()


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        act()
        result = function(*arguments, **options)
        act()
        return result

    return run


def loop(step: ray_data.Step, parts: Sequence[int], progress: Progress) -> None:
    try:
        for stage in step.stages:
            stage.setup()
        for part in parts:
            step.sink(part, ray_data.apply(step.stages, step.source(part), step.at_once))
    except Exception as error:  # as on Ray
        raise UnfinishedError(f"{step.name}: {type(error).__name__}: {error}; start it again to go on") from error


def main() -> None:
    release.release(release.prepare(config.load(sys.argv[2])), Progress(quiet=True), loop)
    print(acts)


if __name__ == "__main__":
    Folder.write = counted(Folder.write)  # type: ignore[method-assign]
    SqlCatalog.commit_table = counted(SqlCatalog.commit_table)  # type: ignore[method-assign]
    os.replace = counted(os.replace)
    try:
        cli.speaking(main)()
    except typer.Exit as done:
        sys.exit(done.exit_code)
