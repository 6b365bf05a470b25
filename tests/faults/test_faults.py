"""After a fault, whichever and whenever, there is the same release or a clear failure, and nothing half-published.

A clear failure is one sentence and exit code 2 or 3; started again when its cause is gone, the release is the same. The
Iceberg tables have every row once: none is lost, none is there twice. `make faults` does all of it; the fast tests take
five a day in turn.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import random
import signal
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

A_DAY = 5
SEED = 9
"""Of the points at which faults strike: each is drawn from this, its kind and its number."""

Get = Callable[[str], Any]
Fault = Callable[[Get, str, random.Random, int], None]


def kill(pid: int) -> bool:
    os.kill(pid, signal.SIGKILL)
    return True


def point(bench: Any, draw: random.Random, first: float = 0.0, last: float = 1.0) -> int:
    """An act of the release, within these shares of it."""
    return draw.randint(max(1, int(first * bench.acts)), int(last * bench.acts))


# ------------------------------------------------------------------------------------------------------------- kills


def killed_at_an_act(get: Get, kind: str, draw: random.Random, number: int) -> None:
    bench = get("bench")(kind)
    assert bench.run(point(bench, draw), kill) == "killed"
    bench.again()


def killed_at_a_moment(get: Get, kind: str, draw: random.Random, number: int) -> None:
    """A second or two is what the release takes on an idle machine; several are killed one after the other."""
    bench = get("bench")(kind)
    came = [bench.run(strike=kill, after=draw.uniform(0.1, 1.5)) for _ in range(3)]
    assert set(came) <= {"killed", "same"}
    bench.again()


def parts(bench: Any, table: str) -> int:
    return len(list(bench.workspace.glob(f"tables/{table}/*/part-*.parquet")))


def on_ray(get: Get, kind: str, draw: random.Random) -> tuple[Any, Any]:
    """A job of the command line with all its processes, at a point that is drawn: some parts of a table are there."""
    bench = get("bench")(kind)
    job = get("start")(get("flags")(bench.config.release.path))
    table, count = draw.choice([("faces", 1), ("faces", 3), ("faces", 5), ("plan", 1), ("surrogates", 1)])
    job.wait_for(lambda: parts(bench, table) >= count)
    return bench, job


def driver_killed(get: Get, kind: str, draw: random.Random, number: int) -> None:
    bench, job = on_ray(get, kind, draw)
    job.driver.kill()
    assert bench.judge(job.driver.wait(), "") == "killed"
    job.end()
    bench.again()


def worker_killed(get: Get, kind: str, draw: random.Random, number: int) -> None:
    """It is replaced."""
    bench, job = on_ray(get, kind, draw)
    job.wait_for(job.kill_worker)
    assert bench.judge(job.driver.wait(300), job.log.read_text()) == "same"
    bench.counted()


def raylet_killed(get: Get, kind: str, draw: random.Random, number: int) -> None:
    bench, job = on_ray(get, kind, draw)
    job.wait_for(job.kill_raylet)
    came = bench.judge(job.driver.wait(300), job.log.read_text())
    job.end()
    if came == "same":
        bench.counted()
    else:
        bench.again()


# -------------------------------------------------------------------------------------------------------------- disk


def disk_full(get: Get, kind: str, draw: random.Random, number: int) -> None:
    """Full before the start, of workspace and release, of either alone."""
    disk = get("disk")
    own, both = disk.folder.parent, number % 3 < 2
    changes = {} if both else {"workspace.path": str(own / "work")}
    bench = get("bench")(kind, disk.folder / "release", **changes)
    if number == 0:
        disk.fill()
        came = bench.run()
    else:
        room = draw.choice([0, 8192, 32768])
        came = bench.run(point(bench, draw, 0.0, 0.5 if both else 0.8), lambda pid: disk.fill(room))
    assert "space" in came.lower() or "full" in came.lower() or "room" in came.lower(), came
    disk.free()
    bench.again()


def release_folder_read_only(get: Get, kind: str, draw: random.Random, number: int) -> None:
    """Before the start, in the middle, and where a file is in the folder's place."""
    if number == 2:
        bench = get("bench")(kind)
        blocked = Path(bench.config.release.path)
        came = bench.run(point(bench, draw, 0.0, 0.5), lambda pid: blocked.write_text("in the way") and None)
        assert str(blocked) in came
        blocked.unlink()
    else:
        disk = get("disk")
        bench = get("bench")(kind, disk.folder / "release", **{"workspace.path": str(disk.folder.parent / "work")})
        if number == 0:
            disk.read_only()
            came = bench.run()
        else:
            came = bench.run(point(bench, draw, 0.0, 0.9), lambda pid: disk.read_only())
        assert ("not writable" if number == 0 else "read-only") in came.lower(), came
        disk.read_only(False)
    bench.again()


# ------------------------------------------------------------------------------------------------------------ damage


def damaged(bench: Any, draw: random.Random, damage: Callable[[bytes], bytes]) -> None:
    """A part of a killed job; what is wrong with it is said, and what was said to do helps."""
    assert bench.run(point(bench, draw, 0.25), kill) == "killed"
    files = sorted(bench.workspace.glob("tables/*/*/part-*.parquet"), key=lambda f: (f.parts[-3], f.name))
    file = draw.choice(files)
    file.write_bytes(damage(file.read_bytes()))
    came = bench.run()
    if came == "same":
        bench.counted()
    else:
        assert str(file) in came, came
        assert "remove this file and start again" in came, came
        file.unlink()
        bench.again()


def part_flipped(get: Get, kind: str, draw: random.Random, number: int) -> None:
    def flip(data: bytes) -> bytes:
        at, bit = draw.randrange(len(data)), draw.randrange(8)
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]

    damaged(get("bench")(kind), draw, flip)


def part_cut(get: Get, kind: str, draw: random.Random, number: int) -> None:
    damaged(get("bench")(kind), draw, lambda data: data[: draw.randrange(len(data))])


def metadata_cut(get: Get, kind: str, draw: random.Random, number: int) -> None:
    """Of the Iceberg tables: the catalog first, then any of their files. It cannot be made anew, but put back."""
    bench = get("bench")(kind)
    assert bench.run(point(bench, draw, 0.4), kill) == "killed"
    files = sorted(bench.workspace.glob("warehouse/**/metadata/*"), key=lambda f: (f.parts[-3], f.stat().st_mtime_ns))
    file = draw.choice(files) if number else bench.workspace / "catalog.db"
    whole = file.read_bytes()
    file.write_bytes(whole[: draw.randrange(len(whole))])
    came = bench.run()
    if number or came != "same":
        file.write_bytes(whole)
    bench.again()


def record_cut(get: Get, kind: str, draw: random.Random, number: int) -> None:
    """The record of a release that was published: it is made again from what is there."""
    bench = get("bench")(kind)
    assert bench.run() == "same"
    (file,) = bench.workspace.glob("releases/*.json")
    whole = file.read_bytes()
    file.write_bytes(whole[: draw.randrange(len(whole))])
    came = bench.run()
    assert str(file) in came, came
    file.write_bytes(whole)
    bench.again()


# ------------------------------------------------------------------------------------------------------------- locks


def catalog_locked(get: Get, kind: str, draw: random.Random, number: int) -> None:
    """Held by somebody else for a moment, or for good."""
    bench = get("bench")(kind)
    held: list[sqlite3.Connection] = []

    def lock(pid: int) -> None:
        held.append(sqlite3.connect(bench.workspace / "catalog.db", isolation_level=None, check_same_thread=False))
        held[0].execute("BEGIN EXCLUSIVE")
        if number == 0:
            threading.Timer(1.0, held[0].close).start()

    came = bench.run(point(bench, draw, 0.0, 0.5), lock)
    if number == 0:
        assert came == "same"
        bench.counted()
        return
    assert "locked" in came, came
    held[0].close()
    bench.again()


def workspace_locked(get: Get, kind: str, draw: random.Random, number: int) -> None:
    bench = get("bench")(kind)
    with (bench.workspace / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another job is using it" in bench.run()
    bench.again()


# ------------------------------------------------------------------------------------------------------ object store


def store_fails_now_and_then(get: Get, kind: str, draw: random.Random, number: int) -> None:
    """Every few requests; whoever asks again is answered."""
    bench, proxy = get("remote")(kind), get("proxy")
    every, status = draw.randint(5, 15), (500, 503)[number % 2]
    proxy.trouble = lambda n: (0 if n % every else status, 0.0)
    came = bench.run()
    proxy.trouble = lambda n: (0, 0.0)
    if came == "same":
        bench.counted()
    else:
        bench.again()


def store_slow(get: Get, kind: str, draw: random.Random, number: int) -> None:
    bench, proxy = get("remote")(kind), get("proxy")
    every, seconds = draw.randint(15, 40), draw.uniform(0.5, 2.0)
    proxy.trouble = lambda n: (0, 0.0 if n % every else seconds)
    assert bench.run() == "same"
    bench.counted()


def store_gone(get: Get, kind: str, draw: random.Random, number: int) -> None:
    """From some request on there are no answers but 503."""
    bench, proxy = get("remote")(kind), get("proxy")
    first = draw.randint(1, 400)
    proxy.trouble = lambda n: (503 if n >= first else 0, 0.0)
    came = bench.run()
    assert came not in ("same", "killed")
    proxy.trouble = lambda n: (0, 0.0)
    bench.again()


# ------------------------------------------------------------------------------------------------------------- clock


def clock_jumps(get: Get, kind: str, draw: random.Random, number: int) -> None:
    """By days, in the middle of a run; and again, the other way round, before the next of one that was killed."""
    clock = get("clock")
    bench = get("bench")(kind, server=clock.server)
    days = draw.uniform(1, 30) * (-1) ** number
    came = bench.run(point(bench, draw, 0.0, 0.6), lambda pid: clock.set(days))
    assert came == "same"
    bench.counted()


def clock_jumps_between(get: Get, kind: str, draw: random.Random, number: int) -> None:
    clock = get("clock")
    bench = get("bench")(kind, server=clock.server)
    assert bench.run(point(bench, draw), kill) == "killed"
    clock.set(draw.uniform(1, 30) * (-1) ** number)
    bench.again()


# --------------------------------------------------------------------------------------------------------------- all

FAULTS: tuple[tuple[str, Fault, int], ...] = (
    ("SIGKILL of the job at an act", killed_at_an_act, 14),
    ("SIGKILL of the job at a moment", killed_at_a_moment, 4),
    ("SIGKILL of the driver (Ray)", driver_killed, 2),
    ("SIGKILL of a worker (Ray)", worker_killed, 2),
    ("SIGKILL of the raylet (Ray)", raylet_killed, 2),
    ("full disk", disk_full, 4),
    ("read-only release folder", release_folder_read_only, 3),
    ("flipped bit in a part", part_flipped, 5),
    ("part cut short", part_cut, 4),
    ("Iceberg metadata cut short", metadata_cut, 4),
    ("record of a release cut short", record_cut, 1),
    ("catalog locked", catalog_locked, 3),
    ("workspace locked", workspace_locked, 1),
    ("object store: 500 and 503", store_fails_now_and_then, 3),
    ("object store: slow", store_slow, 1),
    ("object store: gone", store_gone, 2),
    ("clock jumps in a run", clock_jumps, 2),
    ("clock jumps between runs", clock_jumps_between, 2),
)
ALL = [(kind, fault, number) for kind, fault, count in FAULTS for number in range(count)]
DAYS = -(-len(ALL) // A_DAY)
TODAY = datetime.date.today().toordinal() % DAYS
OF_TODAY = [f"{kind} {number}" for i, (kind, _, number) in enumerate(ALL) if i % DAYS == TODAY]


@pytest.mark.parametrize(
    "kind, fault, number",
    [
        pytest.param(*one, id=f"{one[0]} {one[2]}", marks=() if i % DAYS == TODAY else pytest.mark.slow)
        for i, one in enumerate(ALL)
    ],
)
def test_after_a_fault_there_is_the_same_release_or_a_clear_failure(
    kind: str, fault: Fault, number: int, request: pytest.FixtureRequest
) -> None:
    fault(request.getfixturevalue, kind, random.Random(f"{SEED} {kind} {number}"), number)


def test_all_faults_come_around_in_the_fast_tests(chosen_faults: list[str]) -> None:
    chosen_faults += OF_TODAY
    days = [[one for i, one in enumerate(ALL) if i % DAYS == day] for day in range(DAYS)]
    assert {len(day) for day in days} <= {A_DAY - 1, A_DAY}
    assert sum(map(len, days)) == len(ALL) >= 50
