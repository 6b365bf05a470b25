"""``facecrowd bench scale``: what a release and a table take as they grow, and whether that grows in step.

    facecrowd bench scale --json scale.json --markdown infra/SCALE.md

**Images.** Each size is one real release (``pipeline.release``: k-same, k = 5, average, Parquet shards) in a process of
its own: listing, Ray Data steps, planner, manifests, Iceberg commits, publication, audit, leak scan. Only what sees is
left out: photos are drawn from a seed where they would be read, 64 px, ten of each person, and in the places of
detector and recogniser stands a random projection of the pixels to 128 numbers. Real ones are measured beside
(``kernels``).

**Rows.** Generated tables through ``facecrowd bench table``: measured, and planned.

**Stream.** Faces drawn and embedded by one pool of workers, written by another, which is slow; between them they travel
through an object store that is much smaller than they are. This is what must hold back the first pool.

A stage's CPU seconds are user + system of all processes (driver, workers, Ray), its wall seconds include waiting for a
processor that others use, its bytes went through read and write calls (``/proc/PID/io``), from cache or disk. What a
stage does inside another counts for the inner alone. Memory is sampled once a second: resident of the driver and of the
largest worker, and private of all processes together.

The JSON file is written after each measurement, and what it holds already is not measured again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facecrowd.jobs import bench
from facecrowd.pipeline import audit as audits
from facecrowd.pipeline import config as configs
from facecrowd.pipeline import leaks, publish, ray_data, steps, subjects
from facecrowd.pipeline import plan as planning
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.attributes import Predictors
from facecrowd.pipeline.errors import ConfigError, UnfinishedError
from facecrowd.pipeline.photos import listing
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.schema import FACES
from facecrowd.pipeline.storage import Folder, Parts, Workspace
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode
from facecrowd.stages.judge import Judge
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import OK, Batch, Resources, Stage, rows

SEED = 20261121
SIDE, CELLS, PHOTOS, QUALITY = 64, 16, 10, 90
"""Side of a photo in px (the least that a release takes), of its pattern, photos of each person, JPEG quality."""
WIDTH, REAL_WIDTH = 128, 512
"""Numbers of an embedding: here, and of the recogniser that a release uses."""
K = 5
SAME_PERSON = 0.7
"""The shorter an embedding, the more alike strangers are: of 128 numbers, 0.7 is as far out as 0.5 is of 512."""
STORE = 256 * 2**20
SAMPLE_S, LINE_S, POINTS = 1.0, 5.0, 120
METHODS, PEOPLE_SHARE = ("mondrian", "suppress"), 0.02
"""Planners of a table, and its people a row."""


@dataclass(frozen=True)
class Settings:
    """width : numbers in an embedding; micro_batch : photos per unit of work; cpus : that Ray uses; store : size of its
    object store in bytes; slow : seconds that a worker of the stream waits over each micro-batch"""

    width: int = WIDTH
    micro_batch: int = 512
    cpus: int = 2
    store: int = STORE
    slow: float = 0.1


# ----------------------------------------------------------------------------------------------------------- faces


def named(index: int) -> tuple[str, str]:
    """The name of a photo, PERSON/NUMBER.jpg, and its person."""
    person, number = divmod(index, PHOTOS)
    return f"{person:08d}/{number:02d}.jpg", f"{person:08d}"


def picture(name: str) -> bytes:
    """The JPEG file of such a photo: its person's pattern of colours, and a little of its own."""
    person, number = int(name[:8]), int(name[9:11])
    own = np.random.default_rng([SEED, person, number]).integers(-24, 25, (CELLS, CELLS, 3), dtype=np.int16)
    small = np.clip(_pattern(person) + own, 0, 255).astype(np.uint8)
    return encode(cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR), QUALITY)


@lru_cache(maxsize=4)
def _pattern(person: int) -> np.ndarray:
    return np.random.default_rng([SEED, person]).integers(40, 216, (CELLS, CELLS, 3), dtype=np.int16)


@dataclass(frozen=True)
class Drawn:
    """In the place of photos that are read and of a detector: each photo is a face, drawn when it is asked for."""

    photos: ray_data.Source

    def __call__(self, part: int) -> Batch:
        names = self.photos(part)["photo_name"]
        n = len(names)
        return {
            "photo_name": names,
            "image": [picture(name) for name in names],
            "status": [OK] * n,
            "reason": [""] * n,
            "face_index": [0] * n,
            "faces_in_photo": [1] * n,
            "photo_width": [SIDE] * n,
            "photo_height": [SIDE] * n,
            "box": np.tile(np.array([0, 0, SIDE, SIDE], np.float32), (n, 1)),
            "landmarks": np.zeros((n, 10), np.float32),
            "score": np.ones(n, np.float32),
            "matrix": np.tile(np.array([1, 0, 0, 0, 1, 0], np.float32), (n, 1)),
        }


class Project(Stage):
    """In the place of a recogniser: the colours of 16 × 16 cells, less their mean, projected at random, of length 1."""

    name = "project"
    inputs = ("image",)
    outputs = ("embedding", "detected")

    def __init__(self, width: int) -> None:
        self.width = width
        self._matrix: np.ndarray | None = None

    def setup(self) -> None:
        cv2.setNumThreads(1)
        shape = (CELLS * CELLS * 3, self.width)
        self._matrix = np.random.default_rng([SEED, 0, 1]).standard_normal(shape, dtype=np.float32)

    def __call__(self, batch: Batch) -> Batch:
        if self._matrix is None:
            self.setup()
        assert self._matrix is not None
        small = [cv2.resize(decode(image), (CELLS, CELLS), interpolation=cv2.INTER_AREA) for image in batch["image"]]
        flat = np.array(small, np.float32).reshape(len(small), -1)
        found = (flat - flat.mean(axis=1, keepdims=True)) @ self._matrix
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return {**batch, "embedding": found, "detected": np.ones(len(small), bool)}


class Slow(Stage):
    """Hardware of another kind, and too little of it: a group of its own that waits over every micro-batch."""

    name = "slow"
    resources = Resources(cpus=1.0, gpus=0.5)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, batch: Batch) -> Batch:
        time.sleep(self.seconds)
        return batch


# ------------------------------------------------------------------------------------------------------ what is used


@dataclass
class Usage:
    """Memory, CPU time and bytes of this process and all below it, sampled by a thread; memory by ``stage``."""

    stage: str = "other"
    peaks: dict[str, dict[str, int]] = field(default_factory=dict)
    line: list[dict[str, float]] = field(default_factory=list)
    spill: Path | None = None
    spilled: int = 0
    _seen: dict[tuple[int, int], tuple[float, int, int]] = field(default_factory=dict)
    _begin: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sample(self) -> dict[str, int]:
        """Bytes of memory now: driver, worker (the largest), private (all together)."""
        root = os.getpid()
        with self._lock:
            table = {row.pid: row for row in bench._processes()}
            known = {pid for pid, _ in self._seen}
            now = {"driver": 0, "worker": 0, "private": 0}
            for row in table.values():
                if not ((row.pid, row.start) in self._seen or bench._descends(row.pid, root, table, known)):
                    continue
                before = self._seen.get((row.pid, row.start), (0.0, 0, 0))
                self._seen[row.pid, row.start] = (row.cpu, *(_bytes(row.pid) or before[1:]))
                kind = "driver" if row.pid == root else "worker" if row.name.startswith("ray::MapWorker") else ""
                if kind:
                    now[kind] = max(now[kind], row.resident)
                now["private"] += row.private
            peak = self.peaks.setdefault(self.stage, dict.fromkeys(now, 0))
            for name, value in now.items():
                peak[name] = max(peak[name], value)
        return now

    def total(self) -> np.ndarray:
        """CPU seconds, bytes read and bytes written of all of them so far: (3,) float64."""
        self.sample()
        return np.array(list(self._seen.values()), dtype=np.float64).sum(axis=0)

    def follow(self) -> None:
        last = -math.inf
        while not self._stop.wait(SAMPLE_S):
            now, at = self.sample(), time.monotonic()
            if self.spill is not None:
                self.spilled = max(self.spilled, _size(self.spill))
            if at - last < LINE_S:
                continue
            last = at
            point = {"s": round(at - self._begin, 1), **{f"{name}_mb": round(v / 1e6, 1) for name, v in now.items()}}
            if self.spill is not None:
                point |= {"store_mb": round(ray_data.stored()[0] / 1e6, 1), "spilled_mb": round(self.spilled / 1e6, 1)}
            self.line.append(point)

    @contextmanager
    def following(self) -> Iterator[None]:
        thread = threading.Thread(target=self.follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def points(self) -> list[dict[str, float]]:
        """At most ``POINTS`` of the samples, evenly; the peak of each stretch."""
        pieces = np.array_split(np.arange(len(self.line)), min(POINTS, len(self.line))) if self.line else []
        return [{n: max(self.line[i].get(n, 0.0) for i in piece) for n in self.line[piece[0]]} for piece in pieces]


def _bytes(pid: int) -> tuple[int, int] | None:
    """Bytes that a process read and wrote, by its system calls; None where it ended."""
    try:
        lines = Path("/proc", str(pid), "io").read_text().splitlines()
    except OSError:
        return None
    return int(lines[0].split()[1]), int(lines[1].split()[1])


@dataclass
class Stages:
    """What each stage took: wall seconds, CPU seconds, bytes read and written."""

    usage: Usage
    spent: dict[str, np.ndarray] = field(default_factory=dict)
    _stack: list[str] = field(default_factory=lambda: ["other"])
    _last: np.ndarray = field(default_factory=lambda: _own())

    def _turn(self) -> None:
        """Put down what this process used since the last turn, to the stage it was in."""
        now = _own()
        self.spent[self._stack[-1]] = self.spent.get(self._stack[-1], np.zeros(4)) + (now - self._last)
        self._last = now

    @contextmanager
    def stage(self, name: str, workers: bool = False) -> Iterator[None]:
        """``workers``: what other processes use meanwhile counts too."""
        self._turn()
        self._stack.append(name)
        self.usage.stage = name
        before = self.usage.total() - _own()[1:] if workers else None
        try:
            yield
        finally:
            if before is not None:
                others = self.usage.total() - _own()[1:] - before
                self.spent[name] = self.spent.get(name, np.zeros(4)) + np.array([0.0, *np.maximum(others, 0.0)])
            self._turn()
            self._stack.pop()
            self.usage.stage = self._stack[-1]

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **more: Any) -> Any:
            with self.stage(name):
                return function(*args, **more)

        return timed

    def rows(self) -> dict[str, dict[str, float]]:
        self._turn()
        out = {}
        for name, (wall, cpu, read, written) in self.spent.items():
            peak = self.usage.peaks.get(name, {})
            out[name] = {
                "wall_s": round(wall, 3),
                "cpu_s": round(cpu, 3),
                "read_mb": round(read / 1e6, 2),
                "written_mb": round(written / 1e6, 2),
                **{f"{kind}_mb": round(value / 1e6, 1) for kind, value in peak.items()},
            }
        return out


def _own() -> np.ndarray:
    """Wall and CPU seconds, bytes read and written of this process: (4,) float64."""
    return np.array([time.monotonic(), time.process_time(), *(_bytes(os.getpid()) or (0, 0))], dtype=np.float64)


DRIVER: tuple[tuple[Any, str, str], ...] = (
    # Where the driver works alone: owner, function, stage.
    (planning, "make", "plan"),
    (subjects, "cluster_subjects", "same person"),
    (planning, "microaggregate", "classes"),
    (Parts, "write", "manifests"),
    (Workspace, "commit", "commit"),
    (publish.Publication, "write_images", "write"),
    (releases, "audit", "audit"),
    (audits, "identify", "rank 1"),
    (leaks, "scan", "scan"),
)
STEPS = {"detect": "embed", "average": "surrogates", "render": "look-up"}
"""The steps of the release that Ray works off, and what they are called here."""
ORDER: dict[str, str] = {
    "list": "manifest to listing, with a look at each file's place",
    "embed": "faces drawn, decoded, embedded; faces manifest with crops (Ray)",
    "same person": "everybody's mean face with everybody's: names that mean one person",
    "classes": "k-same: microaggregation in blocks of 4,096 people",
    "plan": "the rest of the plan",
    "surrogates": "crops of each class, decoded, averaged, encoded, looked at (Ray)",
    "look-up": "each face gets its class's surrogate (Ray)",
    "write": "release: names drawn, sorted, shards, manifest",
    "audit": "the table: k, classes, counts",
    "rank 1": "at most 20,000 released faces against all originals and all released",
    "scan": "every released file for what leads back",
    "manifests": "photos, plan, members and link, written by the driver",
    "commit": "Iceberg: every part looked at, one transaction per table",
    "other": "run names, Ray's start, lookups, the card",
}


# ------------------------------------------------------------------------------------------------- inside a candidate


@contextmanager
def _bounded(settings: Settings, scratch: Path, gpus: int = 0) -> Iterator[None]:
    """A Ray session with an object store of ``settings.store``, which spills below ``scratch``.

    GPUs are logical: nothing runs on one.
    """
    import ray

    ray.init(
        address="local",
        num_cpus=settings.cpus,
        num_gpus=gpus,
        object_store_memory=settings.store,
        object_spilling_directory=str(scratch / "spill"),
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        with ray_data.session():
            yield
    finally:
        ray.shutdown()


def released(images: int, settings: Settings, scratch: Path, progress: Progress) -> dict[str, Any]:
    """One release of ``images`` photos in this process, below ``scratch``."""
    usage = Usage()
    stages = Stages(usage)
    for owner, name, stage in DRIVER:
        setattr(owner, name, stages.within(stage, getattr(owner, name)))
    begin = time.monotonic()
    with usage.following():
        config = _config(images, settings, scratch)
        with stages.stage("list"):
            found = listing(config.input, config.policy)
        hashes = {"detector": "none", "recogniser": "none"}
        prepared = releases.Prepared(config, found, hashes, Predictors())

        def execute(step: ray_data.Step, parts: Sequence[int], progress: Progress) -> None:
            with stages.stage(STEPS[step.name], workers=True):
                ray_data.run(_without_networks(step, settings.width), parts, progress)

        with _bounded(settings, scratch):
            usage.spill = scratch / "spill"
            outcome = releases.release(prepared, progress, execute)
            usage.spill = None
        wall = time.monotonic() - begin
        rows = stages.rows()
        cpu = float(usage.total()[0])
    if not outcome.met:
        raise UnfinishedError(f"the release of {images} faces misses its policy: {outcome.audit['requirements']}")
    counts, attacks = outcome.audit["counts"], outcome.audit["reidentification"]
    return {
        "images": images,
        "people": counts["subjects"],
        "merged": counts["subjects_merged"],
        "classes": counts["classes"],
        "released": counts["released_images"],
        "rank1": {attack["gallery"]: attack.get("rank1_per_subject") for attack in attacks},
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "workspace_mb": round(_size(scratch / "workspace") / 1e6, 1),
        "release_mb": round(_size(scratch / "release") / 1e6, 1),
        "peak_mb": {
            kind: max(row[f"{kind}_mb"] for row in rows.values() if f"{kind}_mb" in row)
            for kind in ("driver", "worker", "private")
        },
        "store_mb": max((point.get("store_mb", 0.0) for point in usage.line), default=0.0),
        "spilled_mb": round(usage.spilled / 1e6, 1),
        "stages": {name: rows[name] for name in ORDER if name in rows},
        "line": usage.points(),
    }


def _config(images: int, settings: Settings, scratch: Path) -> configs.ReleaseConfig:
    manifest = scratch / "input" / "photos.parquet"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    names = [named(index) for index in range(images)]
    pq.write_table(pa.table({"path": [n for n, _ in names], "person": [p for _, p in names]}), manifest)
    return configs.load(
        None,
        {
            "input.path": str(manifest),
            "input.subject_column": "person",
            "input.same_person": SAME_PERSON,
            "workspace.path": str(scratch / "workspace"),
            "release.path": str(scratch / "release"),
            "release.format": "parquet",
            "detect.crop_size": SIDE,
            "method.name": "k-same",
            "method.surrogate": "average",
            "policy.k": K,
            "compute.micro_batch": settings.micro_batch,
            "compute.cpus": settings.cpus,
        },
    )


def _without_networks(step: ray_data.Step, width: int) -> ray_data.Step:
    """The step with faces that are drawn, and a projection wherever a network would look."""
    if step.name == "detect":
        return replace(step, source=Drawn(step.source), stages=(Project(width),), at_once=0)
    seen = tuple(Project(width) if isinstance(stage, Judge) else stage for stage in step.stages)
    return replace(step, stages=seen)


@dataclass(frozen=True)
class Listed:
    """The photos of a micro-batch, by number."""

    images: int
    size: int

    def __call__(self, part: int) -> Batch:
        return {"photo_name": [named(i)[0] for i in range(part * self.size, min((part + 1) * self.size, self.images))]}


def streamed(images: int, settings: Settings, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Faces through two pools of workers, the second too slow for the first; a session must be open."""
    usage = Usage(spill=scratch / "spill")
    source = Drawn(Listed(images, settings.micro_batch))
    project = Project(settings.width)
    faces = Parts(Folder(str(scratch / f"faces-{images}")), FACES, "stream")
    sink = steps.FaceSink(faces, RunKey(bytes(32)))
    step = ray_data.Step("stream", source, (project, Slow(settings.slow)), sink)
    batch = len(pickle.dumps(ray_data.apply((project,), source(0))))
    at = time.monotonic()
    with usage.following():
        ray_data.run(step, range(-(-images // settings.micro_batch)), progress)
        cpu = float(usage.total()[0])
    line = usage.points()
    half = len(line) // 2
    return {
        "images": images,
        "wall_s": round(time.monotonic() - at, 1),
        "cpu_s": round(cpu, 1),
        "through_store_mb": round(batch / rows(source(0)) * images / 1e6, 1),
        "store_size_mb": round(ray_data.stored()[1] / 1e6, 1),
        "store_mb": max((point.get("store_mb", 0.0) for point in line), default=0.0),
        "spilled_mb": round(usage.spilled / 1e6, 1),
        "peak_mb": {kind: round(value / 1e6, 1) for kind, value in usage.peaks["other"].items()},
        "worker_mb_by_half": [max((p["worker_mb"] for p in part), default=0.0) for part in (line[:half], line[half:])],
        "driver_mb_by_half": [max((p["driver_mb"] for p in part), default=0.0) for part in (line[:half], line[half:])],
        "line": line,
    }


def kernels(photos: int, models: str | None, scratch: Path) -> dict[str, Any]:
    """CPU milliseconds per photo (or face) of the real stages, one at a time on one thread."""
    names = sorted(bench.photos(photos, scratch).glob("*/*.jpg"))
    config = configs.Detect(models=models)
    last = (*steps.average_stages(config), *steps.shown(config, 92))
    batch: Batch = {"photo_name": [n.name for n in names], "path": [str(n) for n in names]}
    taken: dict[str, float] = {}

    def through(stages: Sequence[Stage], batch: Batch, per: int) -> Batch:
        for stage in stages:
            stage.setup()
        stop = 4
        out = []
        for start in range(0, rows(batch), stop):
            piece = steps.take(batch, range(start, min(start + stop, rows(batch))))
            for stage in stages:
                before = time.process_time()
                piece = stage(piece)
                taken[stage.name] = taken.get(stage.name, 0.0) + (time.process_time() - before) * 1e3 / per
            out.append(ray_data._portable(stages, piece))
        return steps.concatenate(out)

    found = through(steps.detect_stages(config), batch, len(names))
    crops = [image for image in found["image"] if image is not None]
    taken["crop"] = taken.pop("encode")
    classes = [[crops[i : i + 1] for i in range(start, start + K)] for start in range(0, len(crops) - K + 1, K)]
    averaged = {"crops": classes, "status": [OK] * len(classes), "reason": [""] * len(classes)}
    made = through(last, averaged, len(classes))
    taken["average"] /= K
    return {
        "photos": len(names),
        "faces": len(crops),
        "size": f"{bench.WIDTH}×{bench.HEIGHT}",
        "detector": config.detector,
        "recogniser": config.recogniser,
        "crop_kb": round(sum(map(len, crops)) / len(crops) / 1e3, 2),
        "rendered_kb": round(sum(map(len, made["image"])) / len(made["image"]) / 1e3, 2),
        "cpu_ms": {name: round(value, 3) for name, value in taken.items()},
    }


def _size(folder: Path) -> int:
    """Bytes of the files below a folder, as far as they are there."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _candidate(what: str, spec: str, result: str) -> None:
    """Run one measurement in this process; its figures go to the file ``result``."""
    given = json.loads(spec)
    settings, scratch, progress = Settings(**given["settings"]), Path(given["scratch"]), Progress()
    if what == "release":
        figures = released(given["images"], settings, scratch, progress)
    elif what == "stream":
        with _bounded(settings, scratch, gpus=1):
            figures = {str(n): streamed(n, settings, scratch, progress) for n in given["images"]}
    else:
        figures = kernels(given["images"], given["models"], scratch)
    Path(result).write_text(json.dumps(figures))


# ------------------------------------------------------------------------------------------------------- measurement


def _child(what: str, images: int | Sequence[int], settings: Settings, folder: Path, models: str | None = None) -> Any:
    """A measurement in a process of its own; its scratch, below ``folder``, is removed. Raises UnfinishedError."""
    one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")} if what == "kernels" else {}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    # Workers at the driver's own priority, so that other load hits both alike.
    environment = {**os.environ, **one, **quiet, "RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scale-", dir=folder) as scratch:
        spec = {"images": images, "settings": asdict(settings), "scratch": scratch, "models": models}
        result = Path(scratch, "result.json")
        command = [sys.executable, "-m", "facecrowd.jobs.bench_scale", what, json.dumps(spec), str(result)]
        run = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
        if run.returncode:
            raise UnfinishedError(f"bench scale: {what} of {images} ended with exit code {run.returncode}; see above")
        return json.loads(result.read_text())


def bench_scale(
    images: Sequence[int],
    table_rows: Sequence[int],
    file: Path,
    *,
    settings: Settings | None = None,
    stream: int = 0,
    photos: int = 200,
    models: str | None = None,
    folder: Path = bench.CACHE,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure what ``file`` does not hold yet, and write it there after each measurement.

    stream : faces of the stream; photos : that real networks are measured on; 0 leaves either out

    Raises ConfigError where the file is of other settings, UnfinishedError where a measurement fails.
    """
    progress = progress or Progress()
    settings = settings or Settings(cpus=len(os.sched_getaffinity(0)))
    if not Path("/proc/self/io").is_file():
        raise ConfigError("the benchmark reads CPU times and bytes from /proc, which this system does not have")
    figures = _begun(file, settings)

    def keep() -> None:
        figures["images"] = dict(sorted(figures["images"].items(), key=lambda one: int(one[0])))
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
        os.replace(temporary, file)

    for count in sorted(images):
        if str(count) not in figures["images"]:
            progress.say(f"bench scale: a release of {count:,} images")
            figures["images"][str(count)] = _child("release", count, settings, folder)
            keep()
    for count in sorted(table_rows):
        if str(count) not in figures["rows"]:
            progress.say(f"bench scale: a table of {count:,} rows")
            figures["rows"][str(count)] = _table(count, folder)
            keep()
    if stream and str(stream) not in figures["stream"]:
        progress.say(f"bench scale: a stream of {stream:,} faces")
        sizes = sorted({max(settings.micro_batch, stream // 10), stream})
        figures["stream"] |= _child("stream", sizes, settings, folder)
        keep()
    if photos and not figures["kernels"]:
        progress.say(f"bench scale: the real networks on {photos} photos")
        figures["kernels"] = _child("kernels", photos, settings, folder, models)
        keep()
    return figures


def _begun(file: Path, settings: Settings) -> dict[str, Any]:
    """What the file holds, or an empty one. Raises ConfigError where it is of something else."""
    asked = asdict(settings)
    if file.exists():
        try:
            found: dict[str, Any] = json.loads(file.read_text())
            same = found["settings"] == asked
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"--json {file}: not a file of this benchmark; name another") from None
        if not same:
            raise ConfigError(f"--json {file}: measured with {found['settings']}, now {asked}; name another file")
        return found
    file.parent.mkdir(parents=True, exist_ok=True)
    names = ("ray", "numpy", "pyarrow", "pyiceberg", "simplejpeg")
    return {
        "schema": 1,
        "settings": asked,
        "machine": {
            "cores": os.cpu_count(),
            "processor": bench._processor(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "images": {},
        "rows": {},
        "stream": {},
        "kernels": {},
    }


def _table(count: int, folder: Path) -> dict[str, Any]:
    """Measuring and planning a generated table, and its size; the table is removed again."""
    from facecrowd.jobs import bench_table as tables

    place = folder / f"scale-table-{count}"
    quasi, sensitive = tables.names()
    runs = []
    try:
        path = tables.generated(count, PEOPLE_SHARE, place)
        for what in ("floor", "measure", *(f"plan {method}" for method in METHODS)):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            found = tables._own(what, str(path), tables.Roles("subject_id", quasi, sensitive))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            runs.append({"what": what, "rows": count, "cpu_s": round(cpu, 2), **found})
        size = _size(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {"file_mb": round(size / 1e6, 1), "runs": runs}


if __name__ == "__main__":
    # Workers find the stages in the module of their own name, not in this one.
    from facecrowd.jobs import bench_scale as module

    module._candidate(*sys.argv[1:])
