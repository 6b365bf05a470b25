"""``facecrowd bench table``: seconds and memory of measuring and planning a table, against others and the floor.

Every measurement is a process of its own, one after the other on the same files; its seconds are taken inside, from
opening the file to the last figure, without starting Python; its memory is the peak resident set that the operating
system accounts to it. Tables are the given one and generated ones: 40 correlated bits of people, of whom each has a
vector drawn from one of ten archetypes and shows it with a few bits flipped in each photo, rows in random order.

floor         the same columns read and packed the same way, then one NumPy sort of (class, subject) and a count of
              distinct subjects per class: nothing that measures k can do less
measure       k, distinct l, entropy l and t (equal distance) of three sensitive attributes, subjects counted
plan METHOD   one vector per subject, then a plan for k = 10 subjects, in memory; ``counting`` is what comes before it
pycanon       k, l, entropy l and t, on rows (it knows no subjects), from a pandas frame that is already loaded
anjana        suppression and generalisation to k = 10 rows, likewise

Tables of less than a million rows are measured five times in one process, and the median run is shown: the first also
loads what is loaded late. Others run in throw-away virtual environments below ``--folder`` and are stopped after
``--cap`` seconds a figure.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facecrowd.pipeline import histogram
from facecrowd.pipeline.config import TablePolicy
from facecrowd.pipeline.errors import ConfigError, InputError, UnfinishedError
from facecrowd.pipeline.histogram import Roles, Table
from facecrowd.pipeline.progress import Progress
from facecrowd.privacy import packing

CACHE = Path.home() / ".cache" / "facecrowd" / "bench"
QUASI, SENSITIVE = 37, 3
SEED, BATCH, ARCHETYPES = 20260004, 2**21, 10
K = 10
SMALL_ROWS, SMALL_REPEATS = 10**6, 5
METHODS = ("mondrian", "suppress", "ppas", "ppas-verified")
OTHERS = {"pycanon": "pycanon==1.3.6", "anjana": "anjana==1.2.3"}
CELEBA_SENSITIVE = ("Attractive", "Chubby", "Heavy_Makeup")
WITHIN_FLOOR, OVER_PYCANON, PLAN_S, MEMORY_GB = 2.0, 100.0, 2.0, 8.0


# -------------------------------------------------------------------------------------------------------- the table


def names() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Quasi-identifiers and sensitive attributes of a generated table."""
    return tuple(f"q{i:02d}" for i in range(QUASI)), tuple(f"s{i}" for i in range(SENSITIVE))


def generated(rows: int, share: float, folder: Path) -> Path:
    """A Parquet table of ``rows`` rows of ``share * rows`` people, made once per folder, the same everywhere."""
    people = max(2, int(rows * share))
    path = folder / f"table-{rows}-{people}.parquet"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    width = QUASI + SENSITIVE
    rng = np.random.default_rng(SEED)
    # As many bits set, pairs correlated and vectors distinct as among faces: at 200,000 rows of 10,000 people 24 %
    # (CelebA 23 %), |r| of 0.10 on average (0.11) and 0.61 vectors per row (0.57).
    rates = rng.beta(0.15, 0.5, (ARCHETYPES, width))
    flips = rng.beta(0.3, 10, width)
    kind = rng.integers(0, ARCHETYPES, people)
    base = np.zeros((people, width // 8), dtype=np.uint8)
    for start in range(0, people, 2**18):
        end = min(start + 2**18, people)
        base[start:end] = np.packbits(rng.random((end - start, width)) < rates[kind[start:end]], axis=1)
    bits = [*names()[0], *names()[1]]
    schema = pa.schema([("subject_id", pa.int32()), *((name, pa.bool_()) for name in bits)])
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    limits = np.round(flips * 2**16).astype(np.uint16)
    try:
        with pq.ParquetWriter(scratch, schema, use_dictionary=False) as writer:
            for start in range(0, rows, BATCH):
                count = min(BATCH, rows - start)
                rng = np.random.default_rng([SEED, rows, start])
                # Some people have several times as many photos as others.
                who = (people * rng.random(count) ** 1.3).astype(np.int32)
                changed = np.empty((count, width // 8), dtype=np.uint8)
                for low in range(0, count, 2**17):
                    high = min(low + 2**17, count)
                    drawn = np.frombuffer(rng.bytes((high - low) * width * 2), dtype=np.uint16).reshape(-1, width)
                    changed[low:high] = np.packbits(drawn < limits, axis=1)
                shown = np.zeros((count, 8), dtype=np.uint8)
                np.bitwise_xor(base[who], changed, out=shown[:, : width // 8])
                columns = packing.bitmaps(shown.view("<u8")[:, 0], [8 * (i // 8) + 7 - i % 8 for i in range(width)])
                arrays = [pa.Array.from_buffers(pa.bool_(), count, [None, pa.py_buffer(c)]) for c in columns.values()]
                writer.write_batch(pa.record_batch([pa.array(who), *arrays], schema=schema), row_group_size=count)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


# ------------------------------------------------------------------------------------------------ inside a candidate


def floor(table: Table, roles: Roles) -> dict[str, Any]:
    """Seconds to read and pack, and to count the distinct subjects of each class."""
    begin = time.perf_counter()
    flags = [packing.Flag(name) for name in (*roles.quasi_identifiers, *roles.sensitive)]
    keys = np.empty(table.rows, dtype=np.uint64)
    subjects = np.empty(table.rows, dtype=np.uint32)
    at = 0
    for batch in table.batches(roles.columns):
        part = slice(at, at + batch.num_rows)
        keys[part] = packing.pack(flags, batch)
        subjects[part] = batch.column(roles.subject).to_numpy()
        at += batch.num_rows
    packed = time.perf_counter()
    bits = np.uint64(int(subjects.max()).bit_length())
    keys >>= np.uint64(len(roles.sensitive))
    keys <<= bits
    keys |= subjects
    keys.sort()
    first = np.empty(len(keys), dtype=bool)
    first[0] = True
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    keys = keys[first] >> bits
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    sizes = np.diff(np.append(starts, len(keys)))
    return {
        "read_s": packed - begin,
        "seconds": time.perf_counter() - begin,
        "classes": len(sizes),
        "k": int(sizes.min()),
    }


def measure(table: Table, roles: Roles) -> dict[str, Any]:
    """Seconds to count, and to measure k, l, entropy l and t."""
    from facecrowd.privacy.anonymity import k_anonymity
    from facecrowd.privacy.closeness import t_closeness
    from facecrowd.privacy.diversity import distinct_l, entropy_l

    begin = time.perf_counter()
    quiet = Progress(quiet=True)
    released = histogram.measured(table, histogram.layout_of(table, roles, quiet), quiet)
    counted = time.perf_counter()
    figures: dict[str, Any] = {"k": k_anonymity(released).value}
    for name in roles.sensitive:
        one = released.marginal([name])
        figures[f"l of {name}"] = distinct_l(one).value
        figures[f"entropy l of {name}"] = round(entropy_l(one).value, 6)
        figures[f"t of {name}"] = round(t_closeness(one).value, 6)
    return {
        "counting_s": counted - begin,
        "seconds": time.perf_counter() - begin,
        "classes": released.classes.num_rows,
        "subjects": released.total_subjects,
        **figures,
    }


def plan(table: Table, roles: Roles, method: str) -> dict[str, Any]:
    """Seconds to count one vector per subject, and to plan k = 10."""
    from facecrowd.jobs import table as tables
    from facecrowd.privacy.loss import information_loss

    policy = TablePolicy.model_validate(
        {
            "subject": roles.subject,
            "quasi_identifiers": roles.quasi_identifiers,
            "sensitive": roles.sensitive,
            "k": K,
            **({"t": {"value": 0.5, "ground": "equal"}} if method.startswith("ppas") else {}),
        }
    )
    asked = tables.ask(table, policy)
    begin = time.perf_counter()
    quiet = Progress(quiet=True)
    cells = histogram.cells(table, histogram.layout_of(table, roles, quiet), quiet)
    counted = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="facecrowd-bench-") as scratch:
        made = tables.made(method, cells, asked, f"{scratch}/workspace")
    planned = time.perf_counter()
    loss = information_loss(made.cells, made.plan)
    released = made.released
    return {
        "counting_s": counted - begin,
        "planning_s": planned - counted,
        "seconds": planned - begin,
        "vectors": len(cells),
        "classes": made.plan.classes,
        "k": int(released.subjects.min()),
        "information_lost": round(loss.ncp, 4),
        "suppressed": round(loss.suppressed, 5),
    }


PYCANON = """
import json, sys, time
import pandas
from pycanon import anonymity
path, quasi, sensitive = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
frame = pandas.read_parquet(path, columns=quasi + sensitive).astype(int)
for name, call in (
    ("k", lambda: anonymity.k_anonymity(frame, quasi)),
    ("l", lambda: anonymity.l_diversity(frame, quasi, sensitive)),
    ("entropy l", lambda: anonymity.entropy_l_diversity(frame, quasi, sensitive)),
    ("t", lambda: anonymity.t_closeness(frame, quasi, sensitive)),
):
    begin = time.perf_counter()
    found = call()
    print(json.dumps({"figure": name, "seconds": time.perf_counter() - begin, "value": float(found)}), flush=True)
"""

ANJANA = """
import json, sys, time
import pandas
from anjana.anonymity import k_anonymity
path, quasi = sys.argv[1], sys.argv[2].split(",")
frame = pandas.read_parquet(path, columns=quasi).astype(int).astype(str)
levels = {name: {0: frame[name].unique(), 1: ["*"] * frame[name].nunique()} for name in quasi}
begin = time.perf_counter()
found = k_anonymity(frame, [], quasi, 10, 5, levels)
shown = found.astype(str)
lost = 1 - (shown != "*").to_numpy().sum() / (len(frame) * len(quasi))
print(json.dumps({"figure": "k = 10", "seconds": time.perf_counter() - begin, "value": float(lost)}), flush=True)
"""


def _candidate(arguments: Sequence[str]) -> None:
    """Run one measurement in this process and print its figures."""
    what, path, roles_json, method = arguments
    subject, quasi, sensitive = json.loads(roles_json)
    roles = Roles(subject, tuple(quasi), tuple(sensitive))
    found = []
    for _ in range(SMALL_REPEATS if Table(path).rows < SMALL_ROWS else 1):
        table = Table(path)
        found.append(
            {"floor": floor, "measure": measure}[what](table, roles) if not method else plan(table, roles, method)
        )
    found.sort(key=lambda one: float(one["seconds"]))
    print(json.dumps({**found[len(found) // 2], "repeats": len(found)}))


# ------------------------------------------------------------------------------------------------------ measurement


@dataclass(frozen=True)
class Run:
    """One process: what it printed, a JSON object a line, its peak memory, and why it has no more to say."""

    lines: tuple[dict[str, Any], ...]
    peak_mb: float
    wall_s: float
    failed: str = ""


def _process(command: Sequence[str], cap: float) -> Run:
    """Run a command to its end, or until ``cap`` seconds have passed since its last line."""
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        lines = fresh = 0
        since, stopped = begin, False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            fresh = os.fstat(out.fileno()).st_size
            if fresh > lines:
                lines, since = fresh, time.monotonic()
            if time.monotonic() - since > cap and not stopped:
                process.kill()
                stopped = True
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        said = tuple(json.loads(line) for line in out.read().splitlines() if line.startswith("{"))
        last = (err.read().strip().splitlines() or ["it said nothing"])[-1]
    failed = f"stopped after {cap:g} s" if stopped else f"exit code {process.returncode}: {last}"
    return Run(said, usage.ru_maxrss / 1024, time.monotonic() - begin, failed if process.returncode else "")


def environment(tool: str, folder: Path) -> Path:
    """The Python of a virtual environment that holds one tool, made once. Raises UnfinishedError."""
    place = folder / OTHERS[tool].replace("==", "-")
    python, done = place / "bin" / "python", place / "complete"
    if not done.is_file():
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", OTHERS[tool], "pyarrow"]
        run = subprocess.run(install, capture_output=True, text=True, check=False)
        if run.returncode:
            last = (run.stderr.strip().splitlines() or ["no message"])[-1]
            raise UnfinishedError(f"{tool} could not be installed: {last}; leave it out with --no-others")
        done.touch()
    return python


def bench_table(
    rows: Sequence[int] = (10_000_000, 100_000_000),
    table: str | None = None,
    *,
    share: float = 0.02,
    methods: Sequence[str] = METHODS,
    others: bool = True,
    cap: float = 300.0,
    folder: Path = CACHE,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every measurement on the given table and on generated ones; every figure as plain data.

    share : distinct people per row of the generated tables; cap : seconds after which another tool is stopped

    Raises ConfigError, InputError or UnfinishedError.
    """
    progress = progress or Progress()
    unknown = [m for m in methods if m not in METHODS]
    if unknown:
        raise ConfigError(f"--methods {unknown[0]}: use {', '.join(METHODS)}")
    load = os.getloadavg()[0]
    pythons = {tool: environment(tool, folder) for tool in OTHERS} if others else {}
    quasi, sensitive = names()
    tables: list[tuple[str, str, Roles]] = [] if table is None else [("given", table, _roles(table))]
    for count in rows:
        progress.say(f"bench: a table of {count:,} rows")
        path = str(generated(count, share, folder))
        tables.append((f"generated {count:,}", path, Roles("subject_id", quasi, sensitive)))
    runs: list[dict[str, Any]] = []
    for name, path, roles in tables:
        count = pq.read_metadata(path).num_rows
        for what in ("floor", "measure", *(f"plan {m}" for m in methods)):
            progress.say(f"bench: {name}, {what}")
            runs.append({"table": name, "rows": count, "what": what, **_own(what, path, roles)})
        for tool, python in pythons.items():
            progress.say(f"bench: {name}, {tool}")
            runs.append({"table": name, "rows": count, "what": tool, **_other(tool, python, path, roles, cap)})
    return {
        "schema": 1,
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "processor": _processor(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "load_before": round(load, 2),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "pyarrow", "scipy")},
            **{tool: OTHERS[tool].partition("==")[2] for tool in pythons},
        },
        "columns": {"quasi_identifiers": QUASI, "sensitive": SENSITIVE, "people_share": share, "k": K},
        "runs": runs,
        "ratios": ratios(runs),
    }


def _roles(path: str) -> Roles:
    """Roles of a given table: all its boolean columns; the three sensitive ones of CelebA, or the last three."""
    schema = Table(path).schema
    flags = [field.name for field in schema if pa.types.is_boolean(field.type)]
    if "subject_id" not in schema.names or len(flags) <= SENSITIVE:
        raise InputError(f"table {path}: the benchmark needs a column subject_id and more than 3 boolean columns")
    known = all(name in flags for name in CELEBA_SENSITIVE)
    sensitive = CELEBA_SENSITIVE if known else tuple(flags[-SENSITIVE:])
    return Roles("subject_id", tuple(name for name in flags if name not in sensitive), sensitive)


def _own(what: str, path: str, roles: Roles) -> dict[str, Any]:
    kind, _, method = what.partition(" ")
    spec = json.dumps([roles.subject, roles.quasi_identifiers, roles.sensitive])
    run = _process([sys.executable, "-m", "facecrowd.jobs.bench_table", kind, path, spec, method], float("inf"))
    if run.failed:
        return {"failed": run.failed, "peak_mb": round(run.peak_mb)}
    return {**_rounded(run.lines[-1]), "peak_mb": round(run.peak_mb), "wall_s": round(run.wall_s, 3)}


def _other(tool: str, python: Path, path: str, roles: Roles, cap: float) -> dict[str, Any]:
    script = {"pycanon": PYCANON, "anjana": ANJANA}[tool]
    run = _process([str(python), "-c", script, path, ",".join(roles.quasi_identifiers), ",".join(roles.sensitive)], cap)
    found: dict[str, Any] = {
        "figures": {line["figure"]: round(line["seconds"], 3) for line in run.lines},
        "peak_mb": round(run.peak_mb),
    }
    if run.failed:
        return {**found, "failed": run.failed}
    return {**found, "seconds": round(sum(line["seconds"] for line in run.lines), 3)}


def _rounded(found: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


# ----------------------------------------------------------------------------------------------------------- report


def ratios(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons that have an aim, of measurements that both finished (or, for others, lasted that long)."""
    out: list[dict[str, Any]] = []
    for name in dict.fromkeys(run["table"] for run in runs):
        of = {run["what"]: run for run in runs if run["table"] == name}
        own, base, canon = of.get("measure", {}), of.get("floor", {}), of.get("pycanon")
        if "seconds" in own and "seconds" in base:
            value = own["seconds"] / base["seconds"]
            out.append(_ratio(name, "measure / floor, seconds", value, WITHIN_FLOOR, value <= WITHIN_FLOOR))
        if "seconds" in own and canon is not None and canon["figures"]:
            value = sum(canon["figures"].values()) / own["seconds"]
            text = "pycanon / measure, seconds" + (" (pycanon's finished figures only)" if "failed" in canon else "")
            out.append(_ratio(name, text, value, OVER_PYCANON, value >= OVER_PYCANON))
        for what, run in of.items():
            if what.startswith("plan ") and "planning_s" in run and run["rows"] < 10**6:
                met = run["planning_s"] < PLAN_S
                out.append(_ratio(name, f"{what}, seconds", run["planning_s"], PLAN_S, met))
            if "peak_mb" in run and what not in OTHERS and run["rows"] >= 10**8:
                gigabytes = run["peak_mb"] / 1024
                out.append(_ratio(name, f"{what}, GiB", gigabytes, MEMORY_GB, gigabytes <= MEMORY_GB))
    return out


def _ratio(table: str, text: str, value: float, aim: float, met: bool) -> dict[str, Any]:
    return {"table": table, "text": text, "value": round(value, 3), "aim": aim, "met": bool(met)}


def show(figures: dict[str, Any]) -> None:
    """Print the figures: a table on a terminal, plain columns elsewhere."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 160, highlight=False)
    machine, columns = figures["machine"], figures["columns"]
    console.print(
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gb']} GiB, load before "
        f"{machine['load_before']}; {columns['quasi_identifiers']} quasi-identifiers, {columns['sensitive']} sensitive"
    )
    console.print(", ".join(f"{name} {number}" for name, number in figures["versions"].items()))
    grid = Grid(box=box.ROUNDED if terminal else box.ASCII2)
    for name in ("table", "what", "seconds", "of it", "peak MB", "found"):
        grid.add_column(name, justify="right" if name in ("seconds", "peak MB") else "left")
    for run in figures["runs"]:
        parts = [f"{n[:-2]} {run[n]:.2f}" for n in ("read_s", "counting_s", "planning_s") if n in run]
        parts += [f"{n} {seconds:.2f}" for n, seconds in run.get("figures", {}).items()]
        found = [f"{n.replace('_', ' ')} {run[n]}" for n in ("classes", "k", "information_lost") if n in run]
        seconds = f"{run['seconds']:.2f}" if "seconds" in run else "–"
        grid.add_row(
            run["table"],
            run["what"],
            seconds,
            ", ".join(parts),
            str(run["peak_mb"]),
            run.get("failed", ", ".join(found)),
        )
    console.print(grid)
    for ratio in figures["ratios"]:
        reached = "reached" if ratio["met"] else "missed"
        console.print(f"{ratio['table']}: {ratio['text']}: {ratio['value']:.2f}; aim {ratio['aim']:g}: {reached}")


if __name__ == "__main__":
    _candidate(sys.argv[1:])
