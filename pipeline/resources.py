"""``release --plan-resources``: what a release will take, foretold by releasing a sample of its photos for practice.

The sample runs through the release itself, on this machine, into a private folder that is removed at the end. It runs
more than once, in more than one size, so that what a release takes to start is told apart from what each photo takes:

    step on workers  start + (photos · seconds each + parts · pause between parts) / workers
    plan, publish    start + photos · seconds each + parts · seconds each        (the driver, one process)
    + growth         what no sample shows, because it grows faster than the photos do, timed on vectors drawn at random

Seconds of a worker are wall time, of a machine as busy as it is now; a worker's first rows, by which its networks warm
up, count as start. Growth is of three kinds:

    people who look alike   n² of people, or of faces where they are clustered            (privacy/clusters.py)
    classes                 n² of people up to a block of them, n beyond, cut in n log n  (privacy/microaggregation.py)
    attacks of the audit    n² of faces up to its largest sample of probes, n beyond      (privacy/reidentification.py)

Not foretold: planners of attributes are taken as linear, a store's requests as they were for the sample, and workers of
other machines as those of this one. The interval is of the sample's spread alone: 95 % of bootstrap draws of the rows
that went through the stages together.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from facecrowd.pipeline import ray_data, steps
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.audit import PROBES
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.config import Workspace as WorkspaceConfig
from facecrowd.pipeline.errors import NotMetError, PolicyError
from facecrowd.pipeline.photos import Listing
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.release import Prepared
from facecrowd.pipeline.schema import FACES
from facecrowd.pipeline.storage import Workspace
from facecrowd.privacy.clusters import cluster_subjects
from facecrowd.privacy.errors import PrivacyError
from facecrowd.privacy.microaggregation import BLOCK, microaggregate
from facecrowd.privacy.reidentification import identify
from facecrowd.stages.stage import Batch

SAMPLE = 200
"""Photos."""
SMALLER = 4
"""How many times fewer the second sample has."""
WORKERS = 24
"""As many micro-batches as there are CPUs, up to this many, are made of the sample: a worker without one would tell
nothing of how they slow each other down."""
ROWS = 4
"""Rows that go through the stages together, at most, so that there is a spread to draw from."""
DRAWS, LEVEL = 500, 0.95
SEED = 20261120
TIMED = 1024
"""People, or faces, on which growth is timed."""
ATTACKS = 3
"""Galleries that the recorded audit attacks with."""
BUSY = 0.85
"""Share of their time that workers compute, below which they are said to wait."""
CLOSE = 0.05
"""Share of the time below which an interval would only look sure."""
SHOWN = 0.05
"""Share of a step from which one of its stages is shown."""
HELD_EACH = 2_000
"""Bytes that the driver holds of each face beside its embedding: names, places, values."""
COPIES = 7
"""Of the embeddings in the driver at its peak: as they were read, as NumPy has them, of people, in float64."""
WATCH_S = 0.25


@dataclass(frozen=True)
class Cost:
    """What a step takes of the whole input.

    workers : 0 for what the driver does alone; seconds_each : of one worker, or of the driver, per photo; cpu_each : of
    its CPU, too; start_s : once; seconds : wall time of the whole input; stages : each stage's share of the
    workers' time; memory, disk : bytes
    """

    name: str
    workers: int
    seconds_each: float
    cpu_each: float
    start_s: float
    seconds: float
    stages: dict[str, float]
    memory: int
    disk: int


@dataclass(frozen=True)
class Forecast:
    """What a release takes: its steps in order, and the whole.

    cores : CPUs that were counted on; parallel_s : worker seconds of all steps; memory : bytes of all processes at the
    worst moment; elsewhere : seconds on other numbers of cores
    """

    photos: int
    people: int
    sampled_photos: int
    sampled_people: int
    cores: int
    steps: tuple[Cost, ...]
    seconds: float
    low: float
    high: float
    memory: int
    disk: int
    elsewhere: dict[int, float]
    notes: tuple[str, ...]

    @property
    def bottleneck(self) -> Cost:
        return max(self.steps, key=lambda cost: cost.seconds)

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        told = {**asdict(self), "bottleneck": self.bottleneck.name, "verdict": self.verdict()}
        return {**told, "elsewhere": {str(cores): s for cores, s in self.elsewhere.items()}, "notes": list(self.notes)}

    def verdict(self) -> str:
        """Where the bottleneck is, in a sentence."""
        worst = self.bottleneck
        name = worst.name
        if worst.stages and name != START:
            most = max(worst.stages, key=lambda stage: worst.stages[stage])
            name = name if most == name else f"{name} (most of it {most})"
        said = f"{name} takes {worst.seconds / self.seconds:.0%} of {span(self.seconds)} on {self.cores} CPUs"
        cores, seconds = max(self.elsewhere.items())
        if not worst.workers:
            alone = "starting does not grow with the photos" if name == START else "it runs in one process"
            return f"{said}; {alone}: {cores} CPUs would make it {span(seconds)}"
        few = ", ".join(f"{cores} would make it {span(seconds)}" for cores, seconds in sorted(self.elsewhere.items()))
        return f"{said}; {few}"


START, PLAN, COMMIT, PUBLISH = "start", "plan", "commit", "publish"
READ, WRITE = "its input", "its output"


def foretell(prepared: Prepared, progress: Progress, checked_s: float = 0.0) -> Forecast:
    """Release a sample of the input for practice, and scale what that took up to all of it.

    Nothing is published, the real workspace is not touched, and of the practice nothing stays.

    checked_s : seconds that it took to prepare the release

    Raises PolicyError where the sample cannot be released by this config.
    """
    config, listed = prepared.config, prepared.listing
    cores = config.compute.cpus or os.cpu_count() or 1
    sample = drawn(listed, SAMPLE, _least(config))
    smaller = drawn(sample, len(sample.photos) // SMALLER, _least(config))
    asked = config.compute.micro_batch
    cut = max(1, min(asked, math.ceil(len(sample.photos) / min(cores, WORKERS))))
    tries = [(drawn(sample, 1, _least(config)), asked), (sample, cut)]
    if len(smaller.photos) < len(sample.photos):
        # Where parts are cut smaller than asked, a third one tells what a part takes from what a photo takes.
        tries += [(smaller, cut), *([(smaller, asked)] if cut < asked else [])]
    runs = []
    with _scratch(prepared) as folder:
        begin = time.monotonic()
        with ray_data.session("local", config.compute.cpus), _Watch() as watch:
            started_s = time.monotonic() - begin
            for number, (listing, micro_batch) in enumerate(tries):
                progress.say(f"practice {number + 1} of {len(tries)}: {len(listing.photos)} photos")
                runs.append(_run(prepared, listing, micro_batch, folder / str(number)))
        workers = {int(file.stem) for file in folder.glob("*/notes/*/*.jsonl")}
    return _scaled(prepared, runs[0], runs[1:], cores, checked_s + started_s, watch.without(workers))


def _least(config: ReleaseConfig) -> int:
    """People without whom a sample can hardly be released: some have no usable face."""
    return 2 * (config.policy.k or 2)


def drawn(listed: Listing, count: int, least: int) -> Listing:
    """About ``count`` photos of a listing, of whole people where they are known and that leaves ``least`` of them."""
    photos = listed.photos
    if len(photos) <= count:
        return listed
    rng = np.random.default_rng(SEED)
    names = sorted({photo.subject for photo in photos})
    if listed.subjects == "clusters" or names == [""]:
        chosen = sorted(rng.permutation(len(photos))[: max(count, least)])
        return replace(listed, photos=[photos[at] for at in chosen])
    theirs = defaultdict(list)
    for at, photo in enumerate(photos):
        theirs[photo.subject].append(at)
    order = [names[at] for at in rng.permutation(len(names)) if names[at]]
    wanted = min(least, len(order))
    total = np.cumsum([len(theirs[name]) for name in order])
    people = int(np.searchsorted(total, count)) + 1
    each = len(photos)
    if people < wanted:
        people, each = wanted, max(1, count // wanted)
    kept = {at for name in order[:people] for at in theirs[name][:each]}
    return replace(listed, photos=[photo for at, photo in enumerate(photos) if at in kept])


@contextmanager
def _scratch(prepared: Prepared) -> Iterator[Path]:
    """A folder of the owner's alone, on the disk of the workspace where that is a local one; gone afterwards."""
    local = prepared.workspace.folder.local
    place = None if local is None else next(p for p in local.absolute().parents if p.is_dir())
    with tempfile.TemporaryDirectory(prefix=".facecrowd-sample-", dir=place) as folder:
        # Somebody's photos are in it, so it must go even where this process is killed: then its end of the pipe closes.
        guard = subprocess.Popen(
            [sys.executable, "-IS", "-c", GUARD, folder], stdin=subprocess.PIPE, start_new_session=True
        )
        assert guard.stdin is not None
        try:
            yield Path(folder)
        finally:
            guard.stdin.write(b"mine")
            guard.stdin.close()
            guard.wait()


GUARD = """
import os, shutil, sys, time
if sys.stdin.read():
    sys.exit()
for _ in range(20):  # workers that are still dying may write into it
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    time.sleep(0.5)
"""
"""Removes a folder, once its standard input ends without a word."""


# ------------------------------------------------------------------------------------------------- what is written down


@dataclass(frozen=True)
class _Probe:
    """Writes down, in the process where it happens, when each micro-batch begins and ends, and what the stages took."""

    folder: Path
    inner: Any
    what: str
    name: str = ""

    def note(self, **more: Any) -> None:
        line = {"what": self.what, "name": self.name, "at": time.monotonic(), **more}
        with open(self.folder / f"{os.getpid()}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def __call__(self, *arguments: Any) -> Any:
        begin, cpu = time.monotonic(), time.process_time()
        out = self.inner(*arguments)
        self.note(begin=begin, cpu=time.process_time() - cpu, peak=_peak())
        return out


class _Timed:
    """A stage, and what each of its calls took."""

    def __init__(self, stage: Any, folder: Path) -> None:
        self.stage, self.resources, self.transient = stage, stage.resources, stage.transient
        self._probe = _Probe(folder, stage, "stage", stage.name)

    def setup(self) -> None:
        self.stage.setup()

    def __call__(self, batch: Batch) -> Batch:
        out: Batch = self._probe(batch)
        return out


def _peak() -> int:
    """The most memory that this process held, in bytes."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    # Which on Linux may be that of the process it was started by.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass
class _Slice:
    """Rows that went through the stages together: seconds and CPU seconds of each stage, and of reading and writing."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    cpu: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class _Step:
    """A step of a practice run, as its workers wrote it down.

    parts : it had; start_s : until the first part began, from the last one's end, and the warming up; pauses : between
    a worker's parts; peak : bytes of the largest worker
    """

    name: str
    parts: int
    asked: float
    gpus: float
    start_s: float
    slices: tuple[_Slice, ...]
    pauses: tuple[float, ...]
    workers: int
    peak: int


@dataclass(frozen=True)
class _Practice:
    """One run of a sample. driver : seconds between its steps, by what the driver did in them; disk : bytes written,
    by the step that wrote them; faces, people : it found; width : of embeddings"""

    photos: int
    parts: int
    steps: dict[str, _Step]
    driver: dict[str, float]
    disk: dict[str, int]
    faces: int
    people: int
    width: int


def _run(prepared: Prepared, listing: Listing, micro_batch: int, folder: Path) -> _Practice:
    """Release a listing into a folder, and read what was written down."""
    written = folder / "notes"
    written.mkdir(parents=True)
    folder = folder / "release"
    folder.mkdir()
    config = prepared.config.model_copy(
        update={
            "workspace": WorkspaceConfig(path=str(folder / "workspace")),
            "release": prepared.config.release.model_copy(update={"path": str(folder / "release")}),
            "compute": prepared.config.compute.model_copy(update={"micro_batch": micro_batch, "address": "local"}),
        }
    )
    marks: list[tuple[str, float, float, int, int]] = []
    found: list[_Step] = []

    def execute(step: ray_data.Step, parts: Sequence[int], progress: Progress) -> None:
        notes = written / f"{len(marks)}"
        notes.mkdir()
        before = _size(folder)
        source = _Probe(notes, step.source, "source", READ)
        sink = _Probe(notes, step.sink, "sink", WRITE)
        stages: Any = tuple(_Timed(stage, notes) for stage in step.stages)
        of_class = isinstance(step.source, steps.MemberSource | steps.LatentSource)
        at_once = step.at_once if config.compute.gpus_per_worker else min(step.at_once, 1 if of_class else ROWS)
        begin = time.monotonic()
        ray_data.run(replace(step, source=source, sink=sink, stages=stages, at_once=at_once), parts, progress)
        end = time.monotonic()
        found.append(_read(step, len(parts), notes, begin, end))
        marks.append((step.name, begin, end, before, _size(folder)))

    begin = time.monotonic()
    try:
        outcome = releases.release(replace(prepared, config=config, listing=listing), Progress(quiet=True), execute)
    except (PolicyError, NotMetError, PrivacyError) as error:
        raise PolicyError(
            f"a sample of {len(listing.photos)} photos cannot be released for practice, though all of them may: {error}"
        ) from None
    end = time.monotonic()
    driver: dict[str, float] = defaultdict(float)
    disk: dict[str, int] = defaultdict(int)
    edges = [("", begin, begin, 0, 0), *marks, ("", end, end, _size(folder), 0)]
    for (last, _, left, _, size), (_, entered, _, before, _) in pairwise(edges):
        # What lies between two steps is the driver's: it commits, and once the faces are there it plans.
        doing = PUBLISH if entered == end else PLAN if last in ("", "detect") else COMMIT
        driver[doing] += entered - left
        disk[doing] += before - size
    for name, _, _, before, after in marks:
        disk[name] += after - before
    merged: dict[str, _Step] = {}
    for step in found:
        merged[step.name] = _both(merged[step.name], step) if step.name in merged else step
    workspace, counts = Workspace(str(folder / "workspace")), outcome.audit["counts"]
    (run,) = workspace.folder.child("tables", FACES.name).names()
    embeddings = workspace.parts(FACES, run).read(0, ["embedding"])["embedding"]
    width = steps.embedding_array(embeddings).shape[1]
    parts = -(-len(listing.photos) // micro_batch)
    return _Practice(
        len(listing.photos), parts, merged, dict(driver), dict(disk), counts["faces"], counts["subjects"], width
    )


def _size(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _read(step: ray_data.Step, parts: int, notes: Path, begin: float, end: float) -> _Step:
    """What the workers of a step wrote down between two instants."""
    slices: list[_Slice] = []
    pauses: list[float] = []
    warming: list[float] = []
    first, last, peak = end, begin, 0
    files = sorted(notes.glob("*.jsonl"))
    for file in files:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        mine: list[_Slice] = []
        idle_since: float | None = None
        first, last = min(first, lines[0]["begin"]), max(last, lines[-1]["at"])
        peak = max(peak, *(line["peak"] for line in lines))
        reading: dict[str, Any] = {}
        part: list[_Slice] = []
        stages = 0
        for line in lines:
            seconds = line["at"] - line["begin"]
            if line["what"] == "source":
                reading, part, stages = line, [], 0
                pauses += [] if idle_since is None else [line["begin"] - idle_since]
            elif line["what"] == "stage":
                if stages % len(step.stages) == 0:
                    part.append(_Slice())
                part[-1].seconds[line["name"]] += seconds
                part[-1].cpu += line["cpu"]
                stages += 1
            else:
                part = part or [_Slice()]
                for one in part:
                    one.seconds[READ] += (reading["at"] - reading["begin"]) / len(part)
                    one.seconds[WRITE] += seconds / len(part)
                    one.cpu += (reading["cpu"] + line["cpu"]) / len(part)
                mine, idle_since = mine + part, line["at"]
        if len(mine) > 1:
            # The first rows of a worker also pay for what its libraries put off until then.
            usual = statistics.median(one.total for one in mine[1:])
            extra = max(0.0, mine[0].total - usual)
            warming.append(extra)
            share = (mine[0].total - extra) / mine[0].total
            for name in mine[0].seconds:
                mine[0].seconds[name] *= share
        slices += mine
    start = (first - begin) + (end - last) + (statistics.mean(warming) if warming else 0.0)
    fused = ray_data.groups(step.stages)
    asked = sum(max((stage.resources.cpus for stage in group), default=1.0) for group in fused)
    gpus = sum(max((stage.resources.gpus for stage in group), default=0.0) for group in fused)
    return _Step(step.name, parts, asked, gpus, start, tuple(slices), tuple(pauses), len(files), peak)


def _both(one: _Step, other: _Step) -> _Step:
    """A step that a release makes twice."""
    return replace(
        one,
        parts=one.parts + other.parts,
        start_s=one.start_s + other.start_s,
        slices=one.slices + other.slices,
        pauses=one.pauses + other.pauses,
        workers=max(one.workers, other.workers),
        peak=max(one.peak, other.peak),
    )


class _Watch:
    """The private memory of all processes that this one started, and theirs, looked at now and then."""

    def __init__(self) -> None:
        self.peaks: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._over.wait(WATCH_S):
            for pid, private in _descendants().items():
                self.peaks[pid] = max(self.peaks.get(pid, 0), private)

    def without(self, workers: set[int]) -> int:
        """Bytes of all but these: what Ray itself takes."""
        return sum(private for pid, private in self.peaks.items() if pid not in workers)


def _descendants() -> dict[int, int]:
    """Of each process below this one, its private memory in bytes. Nothing where there is no /proc."""
    page = os.sysconf("SC_PAGE_SIZE")
    parent: dict[int, int] = {}
    private: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):  # it ended meanwhile
            pid = int(entry.name)
            parent[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            resident, shared = (int(value) for value in (entry / "statm").read_text().split()[1:3])
            private[pid] = (resident - shared) * page
    ours = {os.getpid()}
    while more := {pid for pid, above in parent.items() if above in ours} - ours:
        ours |= more
    return {pid: private[pid] for pid in ours - {os.getpid()} if pid in private}


# ------------------------------------------------------------------------------------------------------- scaling it up


@dataclass(frozen=True)
class _Whole:
    """The input to be foretold. parts : micro-batches; scale : how many times the sample"""

    photos: int
    parts: int
    people: int
    faces: int
    scale: float


def _scaled(
    prepared: Prepared, warm: _Practice, runs: Sequence[_Practice], cores: int, start_s: float, others: int
) -> Forecast:
    """The forecast from practice runs: ``warm`` paid for what is loaded once, the first of ``runs`` is the largest."""
    config, listed, largest = prepared.config, prepared.listing, runs[0]
    scale = len(listed.photos) / largest.photos
    people = round(largest.people * scale) if listed.subjects == "clusters" else listed.named_subjects()
    parts = -(-len(listed.photos) // config.compute.micro_batch)
    whole = _Whole(len(listed.photos), parts, people, round(largest.faces * scale), scale)

    def driver(name: str, photos: int, of: int) -> float:
        return _fitted(runs, [run.driver.get(name, 0.0) for run in runs], photos, of)

    once = sum(warm.driver.values()) - sum(driver(name, warm.photos, warm.parts) for name in warm.driver)
    grown = growth(config, listed.subjects, whole.people, whole.faces, largest.width)
    held = _peak() + whole.faces * (4 * largest.width * COPIES + HELD_EACH)
    rng = np.random.default_rng(SEED)
    costs: list[Cost] = []
    spread: list[np.ndarray] = []

    def alone(name: str, seconds: float, start: float, wrote: int) -> None:
        each = max(0.0, seconds - start) / whole.photos
        costs.append(Cost(name, 0, each, each, start, seconds, {}, held, wrote))
        spread.append(np.full(DRAWS, seconds))

    def disk(*names: str) -> int:
        return round(
            sum(_fitted(runs, [float(run.disk.get(n, 0)) for run in runs], whole.photos, parts) for n in names)
        )

    alone(START, start_s + max(0.0, once), start_s + max(0.0, once), 0)
    for name, step in largest.steps.items():
        costs.append(_step_cost(step, largest, whole, cores, disk(name), held + others))
        spread.append(_spread(step, costs[-1], whole, rng))
        if name == "detect":
            planning = driver(PLAN, whole.photos, parts) + grown[PLAN]
            alone(PLAN, planning, driver(PLAN, 0, 0), disk(PLAN))
    publishing = sum(driver(name, whole.photos, parts) for name in (COMMIT, PUBLISH)) + grown[PUBLISH]
    alone(PUBLISH, publishing, sum(driver(name, 0, 0) for name in (COMMIT, PUBLISH)), disk(COMMIT, PUBLISH))

    drawn_totals = np.sum(spread, axis=0)
    low, high = np.quantile(drawn_totals, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    total = sum(cost.seconds for cost in costs)
    elsewhere = {}
    for more in (cores * 4, cores * 16):
        steps_there = [_step_cost(step, largest, whole, more, 0, 0).seconds for step in largest.steps.values()]
        elsewhere[more] = sum(steps_there) + sum(cost.seconds for cost in costs if not cost.workers)
    return Forecast(
        whole.photos,
        whole.people,
        largest.photos,
        largest.people,
        cores,
        tuple(costs),
        total,
        float(low),
        float(high),
        max(cost.memory for cost in costs),
        sum(cost.disk for cost in costs),
        elsewhere,
        _notes(prepared, largest, costs),
    )


def _fitted(runs: Sequence[_Practice], found: Sequence[float], photos: int, parts: int) -> float:
    """What runs took, as a start and a share of each photo and each part, none below nothing, for so many of them."""
    sizes = np.array([[1.0, run.photos, run.parts] for run in runs])
    if len(runs) == 1:
        # Nothing tells the start apart, so all is counted for photos.
        sizes[:, [0, 2]] = 0.0
    scaling = np.maximum(sizes.max(axis=0), 1e-12)
    shares = nnls(sizes / scaling, np.asarray(found, dtype=float))[0] / scaling
    return float(shares @ [1.0, photos, parts])


def _workers(step: _Step, parts: int, cores: int) -> int:
    workers = ray_data.pool(parts, cores, step.asked)
    # How many share the GPUs here was seen; CPUs elsewhere bring no more of them.
    return min(workers, step.workers) if step.gpus and step.workers < step.parts else workers


def _parts(step: _Step, run: _Practice, whole: _Whole) -> int:
    return whole.parts if step.parts == run.parts else math.ceil(step.parts * whole.scale)


def _step_cost(step: _Step, run: _Practice, whole: _Whole, cores: int, wrote: int, held: int) -> Cost:
    parts = _parts(step, run, whole)
    workers = _workers(step, parts, cores)
    work = sum(one.total for one in step.slices)
    pauses = statistics.median(step.pauses) * parts if step.pauses else 0.0
    seconds = step.start_s + (work * whole.scale + pauses) / workers
    taken: dict[str, float] = defaultdict(float)
    for one in step.slices:
        for name, spent in one.seconds.items():
            taken[name] += spent / work
    return Cost(
        step.name,
        workers,
        work / run.photos,
        sum(one.cpu for one in step.slices) / run.photos,
        step.start_s,
        seconds,
        dict(sorted(taken.items(), key=lambda item: -item[1])),
        held + workers * step.peak,
        wrote,
    )


def _spread(step: _Step, cost: Cost, whole: _Whole, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap draws of a step's seconds: (DRAWS,) float64."""
    each = np.array([one.total for one in step.slices])
    drawn_work = each[rng.integers(0, len(each), (DRAWS, len(each)))].sum(axis=1)
    found: np.ndarray = cost.seconds + (drawn_work - each.sum()) * whole.scale / cost.workers
    return found


def growth(config: ReleaseConfig, source: str, people: int, faces: int, width: int) -> dict[str, float]:
    """Seconds that planning and publishing take beside what grows with the photos, timed on random unit vectors.

    source : of subjects, as in ``photos.Listing``; width : of embeddings
    """
    rng = np.random.default_rng(SEED)

    def vectors(count: int) -> np.ndarray:
        drawn_vectors = rng.standard_normal((count, width)).astype(np.float32)
        return drawn_vectors / np.linalg.norm(drawn_vectors, axis=1, keepdims=True)

    def square(work: Callable[[np.ndarray], object], count: int, most: int | None = None) -> float:
        """Seconds of work that takes a n + b n² of ``count`` rows; where only ``most`` are held against all, with a
        and b of those."""
        sizes = [max(1, min(count, TIMED) // 2), max(1, min(count, TIMED))]
        found = [_seconds(partial(work, vectors(size))) for size in sizes]
        each, pair = nnls(np.array([[size, size**2] for size in sizes], dtype=float), np.array(found))[0]
        of = count if most is None else min(count, most)
        return float(each * of + pair * of * count)

    def attack(points: np.ndarray) -> object:
        names = np.arange(len(points)) // 2
        return identify(points, names, points, names, rng=np.random.default_rng(SEED))

    planning = 0.0
    if source == "clusters":
        planning += square(lambda points: cluster_subjects(points, threshold=config.input.cluster_threshold), faces)
    elif config.input.same_person < 1:
        planning += square(lambda points: cluster_subjects(points, threshold=config.input.same_person), people)
    k = config.policy.k or 1
    if config.method.of_class and people >= k:
        blocks = max(1.0, people / BLOCK)
        planning += blocks * square(lambda points: microaggregate(points, min(k, len(points))), min(people, BLOCK))
        points = vectors(min(people, TIMED))
        level = _seconds(lambda: [points.astype(np.float64) @ points[0] for _ in range(4)]) / len(points)
        planning += people * math.log2(blocks) * level
    return {PLAN: planning, PUBLISH: ATTACKS * square(attack, faces, PROBES)}


def _seconds(work: Callable[[], object]) -> float:
    """The shorter of two times: what is loaded at first, and what other processes take, is no growth."""
    found = []
    for _ in range(2):
        begin = time.monotonic()
        work()
        found.append(time.monotonic() - begin)
    return min(found)


def _notes(prepared: Prepared, largest: _Practice, costs: Sequence[Cost]) -> tuple[str, ...]:
    config, notes = prepared.config, []
    work = sum(cost.seconds_each for cost in costs if cost.workers)
    computed = sum(cost.cpu_each for cost in costs if cost.workers) / work
    if computed < BUSY and not config.compute.gpus_per_worker:
        alone = sum(cost.cpu_each * len(prepared.listing.photos) / cost.workers for cost in costs if cost.workers)
        notes.append(
            f"workers computed {computed:.0%} of their time and waited for the rest, for other processes, the disk or "
            f"the network; what they compute would take {span(alone)} on as many CPUs that nobody else uses"
        )
    if config.compute.address != "local":
        notes.append(
            f"measured on this machine, and its CPUs are counted: of {config.compute.address} nothing is known here"
        )
    for what, folder in (("workspace", prepared.workspace.folder), ("release", prepared.target)):
        if folder.local is None:
            notes.append(f"the sample's {what} was written to the disk here; writing to {folder.url} takes longer")
    if config.policy.l is not None or config.policy.t is not None or config.method.name == "translation":
        notes.append("what it takes to plan for l, t or released attributes is counted as growing with the photos")
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if (need := max(cost.memory for cost in costs)) > have:
        notes.append(f"memory: about {volume(need)} needed, this machine has {volume(have)}")
    local, wrote = prepared.workspace.folder.local, sum(cost.disk for cost in costs)
    if local is not None:
        free = shutil.disk_usage(next(p for p in local.absolute().parents if p.is_dir())).free
        notes += [f"disk: about {volume(wrote)} needed, {volume(free)} free"] if wrote > free else []
    if largest.photos == len(prepared.listing.photos):
        notes.append("the sample is the whole input")
    return tuple(notes)


# ---------------------------------------------------------------------------------------------------------- saying it


def lines(forecast: Forecast) -> list[str]:
    """The forecast as a table for a terminal, and the bottleneck in a sentence."""
    f = forecast
    who = f" of {f.sampled_people} people" if f.sampled_people else ""
    rows: list[tuple[str, ...]] = [("step", "workers", "s/photo", "CPU s", "start", "time", "share", "memory", "disk")]
    for cost in f.steps:
        workers = str(cost.workers) if cost.workers else "-"
        each = [f"{seconds:.4f}" if cost.name != START else "" for seconds in (cost.seconds_each, cost.cpu_each)]
        share = f"{cost.seconds / f.seconds:.0%}"
        size = [volume(cost.memory), volume(cost.disk)]
        rows.append((cost.name, workers, *each, span(cost.start_s), span(cost.seconds), share, *size))
        main = [(name, part) for name, part in cost.stages.items() if part >= SHOWN and len(cost.stages) > 2]
        for name, part in main:
            there = part * (cost.seconds - cost.start_s)
            shown = (f"{part * cost.seconds_each:.4f}", "", "", span(there), f"{there / f.seconds:.0%}", "", "")
            rows.append((f"  {name}", "", *shown))
    rows.append(("all", "", "", "", "", span(f.seconds), "100%", volume(f.memory), volume(f.disk)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return [
        f"foretold for {f.photos} photos from a sample of {f.sampled_photos}{who}; nothing was published",
        *table,
        f"time: {span(f.seconds)} ({_between(f)})",
        *(f"note: {note}" for note in f.notes),
        f"bottleneck: {f.verdict()}",
    ]


def _between(f: Forecast) -> str:
    if f.high - f.low < CLOSE * f.seconds:
        return f"the photos' own differences move it by less than {CLOSE:.0%}, what else the machine does by more"
    return f"{span(f.low)} to {span(f.high)} by the spread of the sample"


def span(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def volume(size: float) -> str:
    """Bytes as a person says them."""
    for unit, power in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= power:
            return f"{size / power:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"
