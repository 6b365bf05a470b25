"""The one place that knows Ray: it maps declared stages onto Ray Data.

The unit of work is a micro-batch with a fixed number, so what a worker makes never depends on the order of work. Stages
that need the same hardware run fused in one actor, decoded pixels staying in its memory; between groups a micro-batch
travels as one row of serialised columns without its transient (pixel) columns.
"""

from __future__ import annotations

import logging
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from facecrowd.pipeline.errors import ConfigError, UnfinishedError, reason
from facecrowd.pipeline.progress import Progress
from facecrowd.stages.batch import concatenate, take, without
from facecrowd.stages.stage import Batch, Stage, rows

NO_PROGRESS_TIMEOUT_S = 600
CONNECT_TIMEOUT_S = 15
START_TIMEOUT_S = 300
"""How long Ray's native side waits for its own processes, which take their time on a machine that others use. Its
Python side gives a new node 30 s, and cannot be told otherwise, so it is started again."""
STARTS = 3
"""How often a session of this machine's own is begun before it is given up."""
STORE_EVERY_S = 5.0
"""How often a running step asks what the object store holds."""
CPU_HEADROOM = 0.95
"""Pools that together take every CPU starve Ray's own tasks and hang; they share this much of them."""

Source = Callable[[int], Batch]
Sink = Callable[[int, Batch], int]


@dataclass(frozen=True)
class Step:
    """What happens to each micro-batch of one table: where it comes from, the stages, where it goes.

    at_once : rows that go through the stages together, for stages that look at each row alone (0: all). Pixels of that
    many rows are in memory at a time, and the sink gets none.
    """

    name: str
    source: Source
    stages: tuple[Stage, ...]
    sink: Sink
    at_once: int = 0


@contextmanager
def session(address: str = "local", cpus: int = 0) -> Iterator[None]:
    """A Ray session for one job; one that runs already is used and left running.

    Raises ConfigError when the cluster cannot be reached, UnfinishedError when Ray does not start.
    """
    # Workers are told apart from the driver by nothing but Ray, so its chatter is off unless asked for.
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(START_TIMEOUT_S))
    import ray

    started = not ray.is_initialized()
    if started:
        options: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
        if address == "local":
            options |= {"include_dashboard": False, "object_store_memory": 512 * 2**20}
            if cpus:
                options["num_cpus"] = cpus
        answers(address)
        _start(options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    # What a worker raised reaches the caller; Ray's own account of it would only stand above it.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        with _outliving(_node() if started else None):
            yield
    finally:
        if started:
            ray.shutdown()


def _start(options: dict[str, Any]) -> None:
    """Begin a session, again where Ray's processes did not come up in time. Raises as ``session``."""
    import ray

    address = options["address"]
    for left in reversed(range(STARTS if address == "local" else 1)):
        try:
            with _hushed(), _own_end():
                ray.init(**options)
            return
        # What an address can have wrong beside: no cluster started, or ray:// without Ray's client installed.
        except (ConnectionError, ValueError, ImportError) as error:
            what = str(error).strip().splitlines()[0]
            raise ConfigError(f"compute.address {address}: no Ray cluster answers there ({what})") from None
        except Exception as error:  # not in time: Ray has no name for that
            ray.shutdown()  # a half-started node is not known to it, and ends at exit
            if not left:
                raise UnfinishedError(f"Ray did not start: {reason(error)} Start it again.") from None


def _node() -> subprocess.Popen[bytes] | None:
    """Ray's own process of this machine (the raylet), where this process started one."""
    from ray._private import worker

    started = getattr(worker._global_node, "all_processes", {}).get("raylet")
    return started[0].process if started else None


@contextmanager
def _outliving(node: subprocess.Popen[bytes] | None) -> Iterator[None]:
    """End this process with a sentence and exit code 3 where Ray's own one dies first: at its next call, or after ten
    seconds, Ray would end it without a word, and nothing in here could be caught. None for nothing to watch."""
    if node is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        node.wait()
        if not over.is_set():
            said = "Ray's own process on this machine was killed, as where memory runs out; start it again to go on"
            print(f"facecrowd: {said}", file=sys.stderr, flush=True)
            os._exit(UnfinishedError.exit_code)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def answers(address: str) -> None:
    """Refuse a host and port where nothing listens: Ray would try them again for many minutes, without a word."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(f"compute.address {address}: no Ray cluster answers there ({error})") from None


@contextmanager
def _own_end() -> Iterator[None]:
    """What this process does when it is told to end (SIGTERM) stays its own: Ray's way prints a trace of its C++."""
    own = signal.getsignal(signal.SIGTERM)
    yield
    if callable(own) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, own)


@contextmanager
def _hushed() -> Iterator[None]:
    """Ray's C++ side announces on standard error that it will be quiet; nothing else is lost, errors are raised."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _Group:
    """Consecutive stages that share one actor."""

    def __init__(self, stages: tuple[Stage, ...], source: Source | None, sink: Sink | None, at_once: int) -> None:
        self.stages, self.source, self.sink, self.at_once = stages, source, sink, at_once
        for stage in stages:
            stage.setup()

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, Any]:
        out: dict[str, list[Any]] = {"part": [], "rows": [], "columns": [], "peak": []}
        for i, number in enumerate(block["part"]):
            part = int(number)
            batch = self.source(part) if self.source else pickle.loads(block["columns"][i])  # noqa: S301 - our own bytes
            batch = apply(self.stages, batch, self.at_once)
            out["part"].append(part)
            out["rows"].append(self.sink(part, batch) if self.sink else -1)
            out["columns"].append(b"" if self.sink else pickle.dumps(_portable(self.stages, batch)))
            before = int(block["peak"][i]) if "peak" in block else 0
            out["peak"].append(max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        return out


def apply(stages: Sequence[Stage], batch: Batch, at_once: int = 0) -> Batch:
    """The stages one after the other, in this process; ``at_once`` as in ``Step``."""
    if stages and 0 < at_once < rows(batch):
        count = rows(batch)
        slices = [take(batch, range(start, min(start + at_once, count))) for start in range(0, count, at_once)]
        return concatenate([_portable(stages, apply(stages, piece)) for piece in slices])
    for stage in stages:
        batch = stage(batch)
    return batch


def _portable(stages: Sequence[Stage], batch: Batch) -> Batch:
    """The batch without the pixels that only its stages share."""
    return without(batch, *(name for stage in stages for name in stage.transient))


def groups(stages: Sequence[Stage]) -> list[tuple[Stage, ...]]:
    """Neighbours that need the same hardware, fused."""
    return [tuple(members) for _, members in groupby(stages, key=lambda s: s.resources.gpus)] or [()]


def pool(parts: int, cpus: float, cpus_each: float, gpus: float = 0.0, gpus_each: float = 0.0) -> int:
    """As many workers as CPUs and GPUs carry, never more than there is work: an actor that finds no room waits forever.

    Raises ConfigError where the cluster has not the GPU for a single one.
    """
    workers = max(1, min(parts, int(cpus // cpus_each)))
    if not gpus_each:
        return workers
    # Tenths of a GPU do not add up exactly.
    carried = int(gpus / gpus_each + 1e-9)
    if carried < 1:
        raise ConfigError(f"compute.gpus_per_worker {gpus_each:g}: the Ray cluster has {gpus:g} GPUs")
    return min(workers, carried)


def stored() -> tuple[int, int]:
    """Bytes that the object stores of all nodes hold, and could hold, as Ray's nodes report them ten times a second."""
    import ray

    size, free = (
        found.get("object_store_memory", 0.0) for found in (ray.cluster_resources(), ray.available_resources())
    )
    return int(size - free), int(size)


@dataclass
class Used:
    """The peaks of a step in bytes: resident memory of the largest worker, and what the object stores held."""

    worker: int = 0
    store: int = 0
    size: int = 0
    _asked: float = float("-inf")

    def look(self, worker: int) -> None:
        self.worker = max(self.worker, worker)
        if time.monotonic() - self._asked >= STORE_EVERY_S:
            self._asked = time.monotonic()
            held, self.size = stored()
            self.store = max(self.store, held)

    def line(self, name: str) -> str:
        return (
            f"{name}: the largest worker took {self.worker / 1e6:.0f} MB, the object store held at most "
            f"{self.store / 1e6:.0f} of {self.size / 1e6:.0f} MB"
        )


def run(step: Step, parts: Sequence[int], progress: Progress) -> None:
    """Work off the micro-batches ``parts`` of a step; returns when every sink has been called.

    A worker that dies is replaced and its micro-batch made again. The memory it all took is said at the end.

    Raises UnfinishedError when a stage fails for a reason that repeats.
    """
    if not parts:
        return
    import ray

    fused = groups(step.stages)
    found = ray.cluster_resources()
    total = found.get("CPU", 1.0)
    asked = [max((s.resources.cpus for s in group), default=1.0) for group in fused]
    gpus = [max((s.resources.gpus for s in group), default=0.0) for group in fused]
    workers = pool(len(parts), total, sum(asked), found.get("GPU", 0.0), sum(gpus))
    scale = min(1.0, CPU_HEADROOM * total / (workers * sum(asked)))
    dataset = ray.data.from_items([{"part": int(p)} for p in parts], override_num_blocks=len(parts))
    for index, group in enumerate(fused):
        dataset = dataset.map_batches(
            _Group,
            fn_constructor_args=(
                group,
                step.source if index == 0 else None,
                step.sink if index == len(fused) - 1 else None,
                step.at_once,
            ),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=asked[index] * scale,
            num_gpus=gpus[index] or None,
        )
    used = Used()
    try:
        with progress.step(step.name, len(parts)) as advance:
            for batch in dataset.iter_batches(batch_size=1, prefetch_batches=0):
                advance(int(batch["rows"][0]))
                used.look(int(batch["peak"][0]))
    except Exception as error:
        cause = root_cause(error)
        raise UnfinishedError(
            f"{step.name}: {type(cause).__name__}: {_said(cause)}; start it again to go on"
        ) from error
    progress.say(used.line(step.name))


def _said(error: BaseException) -> str:
    """The first line of what was raised. Ray makes errors anew with words of its own, in a file error as the name."""
    if isinstance(error, OSError) and error.strerror and "UDF" in str(error.filename):
        return error.strerror
    return (str(error).strip().splitlines() or ["no message"])[0]


def root_cause(error: BaseException) -> BaseException:
    """What a worker raised, below Ray's wrapping."""
    cause = getattr(error, "cause", None) or error.__cause__
    return root_cause(cause) if isinstance(cause, BaseException) and cause is not error else error
