"""The benchmark measures what it says: windows, process trees, and every figure of a tiny run."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facecrowd.jobs import bench
from facecrowd.pipeline.errors import ConfigError, UnfinishedError
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Pictures of nobody: five folders of grain."""
    for person in range(5):
        (tmp_path / "faces" / f"p{person}").mkdir(parents=True)
        pixels = np.random.default_rng(person).integers(0, 256, (80, 60, 3), dtype=np.uint8)
        (tmp_path / "faces" / f"p{person}" / "1.jpg").write_bytes(encode(pixels))
    return tmp_path / "faces"


def note(worker: int, part: int, begin: float, end: float, rows: int = 10) -> list[dict[str, Any]]:
    common = {"step": "detect", "part": part, "worker": worker}
    return [{**common, "what": "begin", "at": begin, "rows": 0}, {**common, "what": "end", "at": end, "rows": rows}]


def test_photos_are_vga_equal_for_equal_seeds_and_made_once(tmp_path: Path, faces: Path) -> None:
    first = bench.photos(12, tmp_path / "a", faces)
    second = bench.photos(12, tmp_path / "b", faces)
    files = sorted(p.relative_to(first) for p in first.rglob("*.jpg"))
    assert len(files) == 12
    assert {f.parent.name for f in files} == {f"p{i}" for i in range(5)}
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)
    assert len({(first / f).read_bytes() for f in files}) == 12
    assert decode((first / files[0]).read_bytes()).shape == (480, 640, 3)
    before = (first / files[0]).stat().st_mtime_ns
    assert bench.photos(12, tmp_path / "a", faces) == first
    assert (first / files[0]).stat().st_mtime_ns == before


def test_photos_need_faces_of_five_people(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 5 people"):
        bench.photos(12, tmp_path, tmp_path / "nowhere")


def test_the_window_opens_when_the_last_worker_begins_and_closes_with_the_last_micro_batch() -> None:
    # Worker 2 comes two seconds late; until then worker 1 has made one micro-batch of two seconds.
    notes = [*note(1, 0, 0, 2), *note(1, 1, 2, 4), *note(1, 2, 4, 6), *note(2, 3, 2, 4), *note(2, 4, 4, 6)]
    window = bench.steady(notes)
    assert (window.begin, window.end) == (2, 6)
    assert window.factor == pytest.approx(50 / 40)


def test_a_micro_batch_counts_with_its_share_inside_the_window() -> None:
    window = bench.steady([*note(1, 0, 0, 4), *note(2, 1, 2, 4)])
    assert (window.begin, window.end) == (2, 4)
    assert window.factor == pytest.approx(20 / 15)


def test_a_micro_batch_made_again_counts_once() -> None:
    lost = [note(1, 0, 0, 1)[0]]
    assert bench.steady([*lost, *note(2, 0, 2, 4), *note(2, 1, 4, 6)]).factor == pytest.approx(1)


def test_the_cpu_time_of_children_counts() -> None:
    burn = "import time\nwhile time.process_time() < 1.2: pass"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess,sys; subprocess.run([sys.executable,'-c',{burn!r}])"]
    )
    tree = bench.Tree(parent.pid)
    while parent.poll() is None:
        tree.sample()
        time.sleep(0.05)
    used = tree.between(tree.cpu[0][0], tree.cpu[-1][0])
    assert 0.8 < used < 2.5
    assert tree.private > 0


def test_a_candidate_that_fails_says_why() -> None:
    with pytest.raises(UnfinishedError, match="exit code 1: ValueError: broken"):
        bench._watched([sys.executable, "-c", "raise ValueError('broken')"], {})


def run(what: str, detector: str, **seconds: float) -> bench.Measured:
    values: dict[str, Any] = {f.name: None for f in dataclasses.fields(bench.Measured)}
    values |= {"what": what, "detector": detector, "photos": 100, "cores": 2, "job_s": 1, "job_cpu_s": 1}
    return bench.Measured(**(values | seconds))


def test_ratios_compare_cores_with_cores_and_are_reached_only_by_both_measures() -> None:
    own = run("facecrowd", "scrfd-500m", kernels_s=2, kernels_cpu_s=4, job_s=3, job_cpu_s=5)
    loop = run("loop", "scrfd-500m", cores=1, kernels_s=4, kernels_cpu_s=3)
    other = run("deface", "centerface", job_s=9, job_cpu_s=10)
    found = {r.against: r for r in bench.ratios([own, loop, other])}
    assert found["loop"].core == pytest.approx(1.0)
    assert found["loop"].cpu == pytest.approx(0.75)
    assert not found["loop"].met
    assert found["deface"].core == pytest.approx(3.0)
    assert found["deface"].met


@pytest.mark.slow
def test_a_tiny_run_gives_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not bench.FACES.is_dir():
        pytest.skip("jobs/faces is not there")
    figures = bench.bench_pipeline(12, ("scrfd-500m",), folder=tmp_path, deface=None, micro_batch=2)
    assert figures["photos"]["count"] == 12
    own, loop, loops = figures["medians"]
    assert (own["what"], loop["what"], loops["what"]) == ("facecrowd", "loop", "loops")
    for row in (own, loop, loops):
        for over in ("kernels", "job"):
            assert row[f"{over}_photos_per_core_s"] > 0
            assert row[f"{over}_photos_per_cpu_s"] > 0
        assert 0 < row["startup_s"] < row["wall_s"]
        assert row["driver_mb"] > 50
    assert own["worker_mb"] > 50
    assert own["cpu_s"] > loop["cpu_s"]
    assert [ratio["against"] for ratio in figures["ratios"]] == ["loop", "loops"]
    for ratio in figures["ratios"]:
        assert 0.1 < ratio["core"] < 5
        assert 0.05 < ratio["cpu"] < 1.5
    for one in figures["runs"]:
        assert set(one["steps"]) == {"detect", "average", "render", "driver"}
        assert one["images"] >= 10
    bench.show(figures)
    said = capsys.readouterr().out
    assert "scrfd-500m" in said
    assert "aim 0.9" in said
