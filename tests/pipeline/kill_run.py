"""A release, without Ray, that stops at its Nth act on the disk; run by the tests of kills and of faults.

    python kill_run.py N CONFIG.yaml    there it kills its own process (SIGKILL)
    python kill_run.py serve            one job after the other, as asked for by lines of JSON

An act is a file written or moved into place, or a commit to an Iceberg table; each counts twice, before and after. With
N = 0 it runs to its end. In the end it prints the number of acts. An error ends it as it ends the command line.

A served job is a process of its own, which has no more to import: {"act": N, "config": FILE, "said": FILE}. It prints
"pid", at its Nth act "held", and goes on when a line comes in; what it says on standard error is in the file. At last
there is a line "ended" with its return code, negative for a signal.
"""

from __future__ import annotations

import json
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


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hold() -> None:
    print("held", flush=True)
    sys.stdin.readline()


def counted(function: Callable[..., Any], at: int, stop: Callable[[], None]) -> Callable[..., Any]:
    def act() -> None:
        global acts
        acts += 1
        if acts == at:
            stop()

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


def job(file: str, at: int, stop: Callable[[], None]) -> int:
    """The release to its end; the exit code."""
    Folder.write = counted(Folder.write, at, stop)  # type: ignore[method-assign]
    SqlCatalog.commit_table = counted(SqlCatalog.commit_table, at, stop)  # type: ignore[method-assign]
    os.replace = counted(os.replace, at, stop)

    def main() -> None:
        release.release(release.prepare(config.load(file)), Progress(quiet=True), loop)
        print(acts, flush=True)

    try:
        cli.speaking(main)()
    except typer.Exit as done:
        return done.exit_code
    return 0


def serve() -> None:
    import cv2  # noqa: F401
    import insightface  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            code = 3
            try:
                with open(asked["said"], "wb") as said:
                    os.dup2(said.fileno(), 2)
                print("pid", os.getpid(), flush=True)
                code = job(asked["config"], asked["act"], hold)
            finally:
                sys.stderr.flush()
                os._exit(code)
        status = os.waitpid(pid, 0)[1]
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        sys.exit(job(sys.argv[2], int(sys.argv[1]), kill))
