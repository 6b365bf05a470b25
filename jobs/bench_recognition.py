"""``facecrowd bench recognition``: seconds and memory of attacking many faces with a gallery of many people.

    facecrowd bench recognition --probes 1000000 --subjects 100000 --dim 512 --json F

Embeddings are made up: each person is a direction, and a photo of it that direction with noise, such that a probe and
a gallery face of one person have a cosine of 1 / (1 + noise²) on average: 0.24 at the noise of 1.8, where different
people's are 0 ± 0.04 in 512 dimensions. Probes are made block by block from the seed while they are read, as they would
be read from a file, and never lie in memory together. The measurement is a process of its own; its memory is the peak
resident set that the operating system accounts to it, the gallery and Python included.

search      the whole attack: rank 1 and 5, TAR and TPIR at each rate, the bootstrap; without making the probes
product     what the float32 products of that size alone take here, by a few of them, timed just before and repeated
            just after: nothing that compares every probe with every face in float32 can do better
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

from facecrowd.pipeline.errors import UnfinishedError
from facecrowd.privacy.openset import IMPOSTOR_PAIRS, recognise
from facecrowd.privacy.reidentification import BLOCK_BYTES, PROBES_AT_ONCE

SEED = 20261120
NOISE = 1.8
BLOCK = 16384
"""Probes made at once."""
FARS = (0.1, 1e-2, 1e-3)
MINUTES, GIBIBYTES, PAIRS = 15.0, 8.0, 10**8
"""The aims, for a million probes and 100,000 people on two cores."""


@dataclass(frozen=True)
class Size:
    """probes : faces to name; subjects : people in the gallery; photos : gallery faces of each; dim : of embeddings."""

    probes: int = 1_000_000
    subjects: int = 100_000
    photos: int = 1
    dim: int = 512
    noise: float = NOISE
    impostor_pairs: int = IMPOSTOR_PAIRS
    seed: int = SEED


def bench_recognition(size: Size) -> dict[str, Any]:
    """Measure the attack in a process of its own. Raises UnfinishedError where that fails."""
    command = [sys.executable, "-m", "facecrowd.jobs.bench_recognition", json.dumps(asdict(size))]
    load = round(os.getloadavg()[0], 2)
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnfinishedError(f"the measurement ended with exit code {run.returncode}: {last}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    machine = {"cores": os.cpu_count(), "processor": _processor(), "load_before": load}
    aims = [
        _aim("minutes", found["seconds"] / 60, MINUTES),
        _aim("GiB", found["peak_mib"] / 1024, GIBIBYTES),
        _aim("impostor pairs", found["impostor_pairs"], PAIRS, least=True),
    ]
    return {"size": asdict(size), "machine": machine, "numpy": np.__version__, **found, "aims": aims}


def measured(size: Size) -> dict[str, Any]:
    """Make up the people, attack them, and say what it took; in this process."""
    people = _unit(np.random.default_rng([size.seed, 0]), size.subjects, size.dim)
    gallery = np.repeat(people, size.photos, axis=0)
    _add_noise(gallery, size.noise, np.random.default_rng([size.seed, 1]))
    whose = np.repeat(np.arange(size.subjects), size.photos)
    who = np.random.default_rng([size.seed, 2]).integers(size.subjects, size=size.probes)
    making = 0.0

    def probes() -> Iterator[np.ndarray]:
        nonlocal making
        for start in range(0, size.probes, BLOCK):
            begin = time.perf_counter()
            block = people[who[start : start + BLOCK]]
            _add_noise(block, size.noise, np.random.default_rng([size.seed, 3, start]))
            making += time.perf_counter() - begin
            yield block

    before = _product_rate(gallery, size.probes)
    begin = time.perf_counter()
    found = recognise(
        probes(),
        who,
        gallery,
        whose,
        rng=np.random.default_rng([size.seed, 4]),
        fars=FARS,
        fpirs=FARS,
        impostor_pairs=size.impostor_pairs,
    )
    seconds = time.perf_counter() - begin - making
    after = _product_rate(gallery, size.probes)
    operations = 2.0 * size.probes * len(gallery) * size.dim
    rates = found.identification.rates
    return {
        "seconds": round(seconds, 2),
        "making_s": round(making, 2),
        "product_s": round(operations / max(before, after), 2),
        "gflop": round(operations / 1e9),
        "gflop_per_s": round(operations / seconds / 1e9, 1),
        "product_gflop_per_s": [round(rate / 1e9, 1) for rate in (before, after)],
        "kernels": sorted(
            {str(found.get("architecture")) for found in threadpool_info() if found["user_api"] == "blas"}
        ),
        "threads": max((found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"), default=1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "rank1": _rate(rates[1]),
        "rank5": _rate(rates[5]),
        "chance": {rank: round(value, 8) for rank, value in found.identification.chance.items()},
        "impostor_pairs": found.impostor_pairs,
        "all_impostor_pairs": found.all_impostor_pairs,
        "tar": {f"{far:g}": {**_rate(at.rate), "threshold": round(at.threshold, 6)} for far, at in found.tar.items()},
        "tpir": {f"{far:g}": {**_rate(at.rate), "threshold": round(at.threshold, 6)} for far, at in found.tpir.items()},
    }


def _unit(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    points = rng.standard_normal((count, dim), dtype=np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


def _add_noise(faces: np.ndarray, noise: float, rng: np.random.Generator) -> None:
    """Noise of length ``noise`` to unit vectors (N, D), in place and in pieces."""
    for start in range(0, len(faces), BLOCK):
        piece = faces[start : start + BLOCK]
        drawn = rng.standard_normal(piece.shape, dtype=np.float32)
        drawn *= np.float32(noise / np.sqrt(faces.shape[1]))
        piece += drawn


def _product_rate(gallery: np.ndarray, probes: int) -> float:
    """Operations per second of float32 products, of the attack's block sizes: the best of ten."""
    width = min(PROBES_AT_ONCE, probes)
    faces = gallery[: max(1, BLOCK_BYTES // (4 * width))]
    block = np.ascontiguousarray(np.random.default_rng(0).standard_normal((gallery.shape[1], width), dtype=np.float32))
    scores = np.empty((len(faces), width), np.float32)
    taken = []
    for _ in range(10):
        begin = time.perf_counter()
        np.matmul(faces, block, out=scores)
        taken.append(time.perf_counter() - begin)
    return 2.0 * scores.size * gallery.shape[1] / min(taken)


def _rate(rate: Any) -> dict[str, float]:
    return {
        "per_subject": round(rate.per_subject, 6),
        "low": round(rate.low, 6),
        "high": round(rate.high, 6),
        "per_face": round(rate.per_face, 6),
    }


def _aim(text: str, value: float, aim: float, least: bool = False) -> dict[str, Any]:
    met = value >= aim if least else value <= aim
    return {"text": text, "value": round(value, 3), "aim": aim, "met": bool(met)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(figures: dict[str, Any]) -> None:
    """Print the figures, a line each."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    size, machine = figures["size"], figures["machine"]
    console.print(
        f"{size['probes']:,} probes, {size['subjects']:,} people with {size['photos']} gallery face"
        f"{'s' if size['photos'] > 1 else ''} each, {size['dim']} dimensions; {machine['cores']} cores "
        f"({machine['processor']}), load before {machine['load_before']}, NumPy {figures['numpy']}, "
        f"{figures['threads']} threads, kernels for {', '.join(figures['kernels'])}"
    )
    console.print(
        f"search {figures['seconds']:.1f} s ({figures['gflop_per_s']:.0f} GFLOP/s), its products alone "
        f"{figures['product_s']:.1f} s ({max(figures['product_gflop_per_s']):.0f} GFLOP/s); making the probes "
        f"{figures['making_s']:.1f} s; peak {figures['peak_mib']:,} MiB"
    )
    named = [("rank 1", figures["rank1"]), ("rank 5", figures["rank5"])]
    named += [(f"TAR at FAR {far}", rate) for far, rate in figures["tar"].items()]
    named += [(f"TPIR at FPIR {far}", rate) for far, rate in figures["tpir"].items()]
    for name, rate in named:
        console.print(f"{name}: {rate['per_subject']:.4f} ({rate['low']:.4f} to {rate['high']:.4f}, by subject)")
    console.print(f"{figures['impostor_pairs']:,} impostor pairs counted of {figures['all_impostor_pairs']:,}")
    for aim in figures["aims"]:
        console.print(f"{aim['text']}: {aim['value']:,.2f}; aim {aim['aim']:,.0f}: {'met' if aim['met'] else 'missed'}")


if __name__ == "__main__":
    print(json.dumps(measured(Size(**json.loads(sys.argv[1])))))
