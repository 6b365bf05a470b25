"""Claims of ``release --plan-resources``: what it foretells is near what is measured, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from facecrowd.jobs.cli import BAD_INPUT, OK, app
from facecrowd.pipeline import ray_data, resources
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.errors import PolicyError
from facecrowd.pipeline.photos import Listing, Photo
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.resources import drawn, foretell, span, volume
from facecrowd.stages.stage import Batch, Stage

FACTOR = 2.0
"""How far a forecast may be from what is measured, on a machine that others use too."""


def photo(name: str) -> Photo:
    return Photo(name, f"/{name}", 1, name.partition("/")[0] if "/" in name else "", {}, "")


def listing(people: int, each: int) -> Listing:
    return Listing([photo(f"p{p:03d}/{i}.jpg") for p in range(people) for i in range(each)], "folder")


# ---------------------------------------------------------------------------------------------------------- the sample


def test_a_sample_is_of_whole_people() -> None:
    listed = listing(100, 7)
    sample = drawn(listed, 200, 10)
    assert 200 <= len(sample.photos) < 207
    assert {len([p for p in sample.photos if p.subject == who]) for who in {p.subject for p in sample.photos}} == {7}
    assert sample.photos == sorted(sample.photos, key=lambda p: p.photo)
    assert len({p.subject for p in sample.photos} - {f"p{n:03d}" for n in range(40)}) > 5  # not the first of them


def test_a_sample_has_people_enough_for_the_policy_though_not_all_their_photos() -> None:
    sample = drawn(listing(100, 50), 200, 20)
    assert (sample.named_subjects(), len(sample.photos)) == (20, 200)
    assert drawn(listing(300, 2), 20, 100).named_subjects() == 100


def test_an_input_of_fewer_photos_is_its_own_sample() -> None:
    listed = listing(10, 4)
    assert drawn(listed, 200, 10) is listed


def test_where_people_are_not_known_photos_are_drawn() -> None:
    listed = Listing([photo(f"{n:04d}.jpg") for n in range(1000)], "clusters")
    sample = drawn(listed, 200, 10)
    assert len(sample.photos) == 200
    assert sample.photos == sorted(sample.photos, key=lambda p: p.photo)


# ------------------------------------------------------------------------------------------------------------- scaling


class Clock:
    """A clock that only work moves on: so many seconds for each row, and each pair of rows."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    process_time = monotonic

    def work(self, each: float, pair: float) -> Callable[..., None]:
        def done(points: np.ndarray, *_: Any, **__: Any) -> None:
            self.now += each * len(points) + pair * len(points) ** 2

        return done


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The only time that passes in the module."""
    found = Clock()
    monkeypatch.setattr(resources, "time", found)
    return found


class Steady(Stage):
    """A stage that takes as long for each row; the first call of a worker takes longer."""

    name = "steady"

    def __init__(self, clock: Clock) -> None:
        self.clock, self.begun = clock, False

    def __call__(self, batch: Batch) -> Batch:
        self.clock.now += EACH_S * len(batch["row"]) + (0.0 if self.begun else WARM_S)
        self.begun = True
        return batch


EACH_S, WARM_S, PAUSE_S, READ_S = 0.004, 0.3, 0.001, 0.002


def in_turn(step: ray_data.Step, parts: Sequence[int], progress: Progress) -> None:
    for part in parts:
        step.sink(part, ray_data.apply(step.stages, step.source(part), step.at_once))


def steady(folder: Path, parts: int, clock: Clock) -> Any:
    """What was written down of a step of ``parts`` parts, 10 rows each, by one worker."""

    def source(part: int) -> Batch:
        clock.now += READ_S
        return {"row": list(range(10))}

    step = ray_data.Step("work", source, (Steady(clock),), lambda part, batch: 10, at_once=5)
    probed = replace(
        step,
        source=resources._Probe(folder, step.source, "source", resources.READ),
        sink=resources._Probe(folder, step.sink, "sink", resources.WRITE),
        stages=tuple(resources._Timed(stage, folder) for stage in step.stages),  # type: ignore[arg-type]
    )
    begin = clock.monotonic()
    for part in range(parts):
        clock.now += PAUSE_S
        in_turn(probed, [part], Progress(quiet=True))
    return resources._read(step, parts, folder, begin, clock.monotonic())


def test_what_each_row_takes_is_told_apart_from_warming_up(tmp_path: Path, clock: Clock) -> None:
    step = steady(tmp_path, 8, clock)
    assert len(step.slices) == 16
    assert sum(one.total for one in step.slices) == pytest.approx(80 * EACH_S + 8 * READ_S)
    assert step.start_s == pytest.approx(PAUSE_S + WARM_S)
    assert step.pauses == pytest.approx([PAUSE_S] * 7)
    assert step.peak > 10e6
    whole = resources._Whole(photos=8000, parts=800, people=0, faces=0, scale=100)
    run = resources._Practice(80, 8, {"work": step}, {}, {}, 0, 0, 0)
    for cores in (1, 2, 8):
        cost = resources._step_cost(step, run, whole, cores, 0, 0)
        work = 8000 * EACH_S + 800 * (READ_S + PAUSE_S)
        assert (cost.workers, cost.seconds) == (cores, pytest.approx(PAUSE_S + WARM_S + work / cores))
        assert cost.stages["steady"] == pytest.approx(80 * EACH_S / (80 * EACH_S + 8 * READ_S), rel=0.01)
    assert resources._step_cost(step, run, whole, 10_000, 0, 0).workers == 800  # no more than there are parts
    spread = resources._spread(step, cost, whole, np.random.default_rng(1))
    assert spread == pytest.approx(np.full(len(spread), cost.seconds))  # all rows take the same


def test_what_the_driver_takes_is_parted_into_start_photos_and_parts() -> None:
    def run(photos: int, parts: int) -> Any:
        return resources._Practice(photos, parts, {}, {}, {}, 0, 0, 0)

    runs = [run(200, 16), run(50, 16), run(50, 1)]
    found = [3 + 0.01 * one.photos + 0.2 * one.parts for one in runs]
    assert resources._fitted(runs, found, 10_000, 157) == pytest.approx(3 + 100 + 31.4)
    assert resources._fitted(runs, found, 0, 0) == pytest.approx(3)
    assert resources._fitted(runs[:1], [2.0], 1000, 100) == pytest.approx(10.0)  # nothing tells a start apart
    assert resources._fitted(runs[:2], [1.0, 5.0], 10_000, 800) >= 0.0


def test_growth_is_as_fast_as_the_steps_grow(
    settings: Callable[..., ReleaseConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    for name, each, pair in (("cluster_subjects", 0, 1e-8), ("microaggregate", 1e-5, 2e-7), ("identify", 1e-4, 1e-8)):
        monkeypatch.setattr(resources, name, clock.work(each, pair))
    config = settings(tmp_path / "release", **{"policy.k": 5})
    for n in (100, 1000, 10**6):
        found = resources.growth(config, "folder", n, 2 * n, 8)
        block = min(n, 4096)
        # Pairs of all people for those who look alike; of the people of a block for classes.
        assert found["plan"] == pytest.approx(1e-8 * n**2 + n / block * (1e-5 * block + 2e-7 * block**2))
        # Three attacks by at most 20,000 faces, each on all.
        probes = min(2 * n, 20_000)
        assert found["publish"] == pytest.approx(3 * (1e-4 * probes + 1e-8 * probes * 2 * n))
    unnamed = resources.growth(config, "clusters", 500, 10**6, 8)
    assert unnamed["plan"] == pytest.approx(1e-8 * 10**12 + 1e-5 * 500 + 2e-7 * 500**2)
    masked = settings(tmp_path / "release", **{"method.name": "mask", "policy.k": None, "input.same_person": 1.0})
    assert resources.growth(masked, "folder", 10**6, 10**6, 8)["plan"] == 0


def test_sizes_and_times_are_said_as_people_say_them() -> None:
    assert [span(s) for s in (0.25, 42, 600, 11_520)] == ["0.2 s", "42 s", "10 min", "3.2 h"]
    assert [volume(b) for b in (900, 4.2e6, 1.5e9, 2e12)] == ["1 kB", "4.2 MB", "1.5 GB", "2.0 TB"]


# ------------------------------------------------------------------------------------------------------------ the whole


@pytest.fixture
def more(people: list[Path], tmp_path: Path) -> Path:
    """30 people with 4 pictures each."""
    folder = tmp_path / "many"
    for person in people[:30]:
        (folder / person.name).mkdir(parents=True)
        for picture in sorted(person.glob("*.jpg"))[:4]:
            shutil.copy(picture, folder / person.name / picture.name)
    return folder


@pytest.fixture
def practised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str]]:
    """Practice without Ray; of each release: its photos, its micro-batch and its workspace."""
    made: list[tuple[int, int, str]] = []
    real = releases.release

    def noted(prepared: Any, *more: Any) -> Any:
        config = prepared.config
        made.append((len(prepared.listing.photos), config.compute.micro_batch, config.workspace_path))
        folder = Path(config.workspace_path).parents[1]
        assert folder.stat().st_mode & 0o77 == 0 or folder.parent.stat().st_mode & 0o77 == 0
        return real(prepared, *more)

    monkeypatch.setattr(releases, "release", noted)
    monkeypatch.setattr(ray_data, "run", lambda step, parts, progress: _set_up(step, parts, progress))
    monkeypatch.setattr(ray_data, "session", lambda *_: _Nothing())
    return made


def _set_up(step: ray_data.Step, parts: Sequence[int], progress: Progress) -> None:
    for stage in step.stages:
        stage.setup()
    in_turn(step, parts, progress)


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def call(arguments: list[str]) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_nothing_is_published_and_nothing_is_left(
    practised: list[tuple[int, int, str]], flags: Callable[..., list[str]], tmp_path: Path, tree: Callable[..., Any]
) -> None:
    (tmp_path / "here").mkdir()
    work = tmp_path / "here" / "release.workspace"
    work.mkdir()
    (work / "run.key").write_text("ab" * 32)
    before = tree(tmp_path / "here")
    result = call([*flags(tmp_path / "here" / "release", "--plan-resources", "--json", str(tmp_path / "f.json"))])
    assert result.exit_code == OK, result.output
    assert tree(tmp_path / "here") == before
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["release.workspace"]
    assert practised
    assert all(Path(where).parents[2].parent == tmp_path / "here" for _, _, where in practised)
    found = json.loads((tmp_path / "f.json").read_text())
    assert (found["photos"], found["sampled_photos"], found["people"]) == (12, 12, 6)
    assert [step["name"] for step in found["steps"]] == ["start", "detect", "plan", "average", "render", "publish"]
    assert found["verdict"] in result.stdout
    assert found["seconds"] == pytest.approx(sum(step["seconds"] for step in found["steps"]))
    assert found["low"] <= found["seconds"] <= found["high"]
    for step in found["steps"]:
        assert f"\n{step['name']} " in result.stdout


def test_nothing_is_left_of_a_practice_that_fails(
    practised: list[tuple[int, int, str]],
    settings: Callable[..., ReleaseConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    prepared = releases.prepare(settings(tmp_path / "here" / "release"))

    def fails(*_: Any) -> None:
        raise SystemExit(143)  # as one that is asked to end does

    monkeypatch.setattr(ray_data, "run", fails)
    with pytest.raises(SystemExit):
        foretell(prepared, Progress(quiet=True))
    assert practised
    assert list((tmp_path / "here").iterdir()) == []


def test_nothing_is_left_where_the_practice_is_killed(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from facecrowd.pipeline.resources import _scratch
from facecrowd.pipeline.storage import Workspace
with _scratch(SimpleNamespace(workspace=Workspace(sys.argv[1]))) as folder:
    (folder / "crop.jpg").write_bytes(b"somebody")
    print(folder.stat().st_mode & 0o777, flush=True)
    os.kill(os.getpid(), 9)
"""
    (tmp_path / "here").mkdir()
    place = str(tmp_path / "here" / "workspace")
    killed = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=False)
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, f"{0o700}\n"), killed.stderr
    for _ in range(100):
        if not list((tmp_path / "here").iterdir()):
            break
        time.sleep(0.1)
    assert list((tmp_path / "here").iterdir()) == []


def test_what_cannot_be_released_is_said_before_the_practice_or_of_it(
    practised: list[tuple[int, int, str]],
    flags: Callable[..., list[str]],
    settings: Callable[..., ReleaseConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "release"
    for more, why in (
        (["--input", str(tmp_path / "nowhere")], "no such folder"),
        (["--k", "50"], "k = 50 cannot be reached"),
        (["--epsilon", "1"], "policy.epsilon is for method translation"),
        (["--dry-run"], "--dry-run fetches nothing, --plan-resources runs a sample; give one of them"),
    ):
        result = call(flags(out, "--plan-resources", *more))
        assert (result.exit_code, why in result.stderr) == (BAD_INPUT, True), result.output
        assert result.stderr.count("\n") <= 2
    assert not practised

    def unreachable(*_: Any) -> None:
        raise PolicyError("k = 3 cannot be reached: 2 people have a usable face")

    prepared = releases.prepare(settings(out))
    monkeypatch.setattr(releases, "release", unreachable)
    with pytest.raises(PolicyError, match=r"^a sample of .* photos cannot be released for practice, though all .* may"):
        foretell(prepared, Progress(quiet=True))
    assert not [path for path in tmp_path.iterdir() if path.name != "many"]


@pytest.fixture
def asked(
    settings: Callable[..., ReleaseConfig], more: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> releases.Prepared:
    """A release of 120 photos, to be foretold from 40."""
    monkeypatch.setattr(resources, "SAMPLE", 40)
    config = settings(tmp_path / "release", **{"input.path": str(more), "compute.micro_batch": 8, "policy.k": 4})
    return releases.prepare(config)


def written(outcome: releases.Outcome, tree: Callable[..., dict[str, bytes]]) -> int:
    return sum(len(data) for folder in (outcome.release, outcome.workspace) for data in tree(folder.root).values())


@pytest.mark.slow
@pytest.mark.usefixtures("practised")
def test_work_and_disk_are_foretold_from_a_third_of_the_people(
    asked: releases.Prepared, tree: Callable[..., dict[str, bytes]]
) -> None:
    """CPU seconds of the steps within a factor of 1.5, bytes within 1.2: neither hangs on who else uses the machine."""
    found = foretell(asked, Progress(quiet=True))
    assert (found.photos, found.people, found.sampled_photos) == (120, 30, 40)
    spent: dict[str, float] = {}

    def timed(step: ray_data.Step, parts: Sequence[int], progress: Progress) -> None:
        for stage in step.stages:
            stage.setup()
        begin = time.process_time()
        in_turn(step, parts, progress)
        spent[step.name] = time.process_time() - begin

    wrote = written(releases.release(asked, Progress(quiet=True), timed), tree)
    foretold = {step.name: step.cpu_each * found.photos for step in found.steps if step.workers}
    print(f"CPU s foretold {foretold}, measured {spent}; {volume(found.disk)} foretold, {volume(wrote)} measured")
    assert foretold.keys() == spent.keys()
    assert 1 / 1.5 < sum(foretold.values()) / sum(spent.values()) < 1.5
    assert 1 / 1.2 < found.disk / wrote < 1.2
    # Pixels are what it takes: the driver and the joining of tables are little beside them.
    assert max(spent, key=lambda name: spent[name]) == max(foretold, key=lambda name: foretold[name]) == "detect"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_time_is_foretold_within_a_factor_of_two(
    asked: releases.Prepared, tree: Callable[..., dict[str, bytes]]
) -> None:
    found = foretell(asked, Progress(quiet=True))
    begin = time.monotonic()
    wrote = written(releases.release(asked, Progress(quiet=True)), tree)
    seconds = time.monotonic() - begin
    print(f"foretold {found.seconds:.1f} s ({found.low:.1f} to {found.high:.1f}), measured {seconds:.1f} s")
    assert 1 / 1.2 < found.disk / wrote < 1.2
    assert 100e6 < found.memory < 20e9
    if os.getloadavg()[0] > 2 * (os.cpu_count() or 1):
        pytest.skip(f"{os.getloadavg()[0]:.0f} processes want this machine at once: no time foretells another")
    assert 1 / FACTOR < found.seconds / seconds < FACTOR
