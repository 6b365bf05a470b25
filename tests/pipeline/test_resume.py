"""A job killed at any moment and started again ends as if it had never been killed.

The release is the same byte for byte, and the Iceberg tables have every row exactly once. Processes are really killed
(SIGKILL).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.schema import WORKSPACE
from facecrowd.pipeline.storage import NAMESPACE, Workspace

KILLED = -signal.SIGKILL
LIFE = 99
"""Acts on the disk of each life of a job that is killed over and over; all it has to do takes twice as many."""
SCRIPT = Path(__file__).with_name("kill_run.py")
ROWS = {"photos": 12, "faces": 12, "plan": 12, "members": 12, "surrogates": 2, "rendered": 12, "link": 12}

Tree = Callable[[Path | str], dict[str, bytes]]


def rows_per_run(workspace: str) -> dict[str, Counter[str]]:
    """For every Iceberg table: run → rows. Checks that a run is one snapshot."""
    catalog = Workspace(workspace).catalog()
    out = {}
    for manifest in WORKSPACE:
        if not catalog.table_exists((NAMESPACE, manifest.name)):
            continue
        table = catalog.load_table((NAMESPACE, manifest.name))
        out[manifest.name] = Counter(table.scan(selected_fields=("run",)).to_arrow()["run"].to_pylist())
        runs = [snapshot.summary.additional_properties["facecrowd.run"] for snapshot in table.snapshots()]
        assert sorted(runs) == sorted(out[manifest.name])
    return out


def assert_as_undisturbed(config: ReleaseConfig, undisturbed: Outcome, tree: Tree) -> None:
    assert tree(str(config.release.path)) == tree(undisturbed.release.root)
    found = rows_per_run(config.workspace_path)
    assert {name: list(runs.values()) for name, runs in found.items()} == {n: [rows] for n, rows in ROWS.items()}


# ------------------------------------------------------------------------------------------- at any act on the disk


def run_killed(config: ReleaseConfig, act: int, file: Path) -> subprocess.CompletedProcess[str]:
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(act), str(file)], capture_output=True, text=True, timeout=300, check=False
    )


def test_a_job_killed_over_and_over_ends_as_if_undisturbed(
    tmp_path: Path,
    settings: Callable[..., ReleaseConfig],
    given_key: Callable[[str], None],
    released: Outcome,
    tree: Tree,
) -> None:
    config = settings(tmp_path / "release")
    given_key(config.workspace_path)
    kills = 0
    while (run := run_killed(config, LIFE, tmp_path / "config.yaml")).returncode == KILLED:
        assert not (tmp_path / "release").exists()
        kills += 1
        assert kills < 20
    assert run.returncode == 0, run.stderr
    assert kills >= 2
    assert_as_undisturbed(config, released, tree)


AFTER_THE_MOVE = 4
"""The last acts of a job are the move of the release into place and the record of it in the workspace (4 acts)."""


def test_a_job_killed_between_the_release_and_its_record_ends_as_if_undisturbed(
    tmp_path: Path,
    settings: Callable[..., ReleaseConfig],
    make_release: Callable[..., Outcome],
    given_key: Callable[[str], None],
    released: Outcome,
    tree: Tree,
) -> None:
    config, other = settings(tmp_path / "release"), settings(tmp_path / "whole")
    given_key(config.workspace_path)
    given_key(other.workspace_path)
    acts = int(run_killed(other, 0, tmp_path / "config.yaml").stdout)
    assert run_killed(config, acts - AFTER_THE_MOVE, tmp_path / "config.yaml").returncode == KILLED
    assert tree(tmp_path / "release") == tree(released.release.root)
    assert not make_release(config).reused
    assert_as_undisturbed(config, released, tree)
    assert make_release(config).reused


@pytest.mark.slow
def test_a_job_killed_at_each_of_its_acts_ends_as_if_undisturbed(
    tmp_path: Path,
    settings: Callable[..., ReleaseConfig],
    make_release: Callable[..., Outcome],
    given_key: Callable[[str], None],
    released: Outcome,
    tree: Tree,
) -> None:
    whole = settings(tmp_path / "whole")
    given_key(whole.workspace_path)
    acts = int(run_killed(whole, 0, tmp_path / "config.yaml").stdout)
    for act in range(1, acts + 1, 3):
        config = settings(tmp_path / f"release-{act}")
        given_key(config.workspace_path)
        assert run_killed(config, act, tmp_path / "config.yaml").returncode == KILLED
        make_release(config)
        assert_as_undisturbed(config, released, tree)


# ---------------------------------------------------------------------------------------------------- workers of Ray


class Job:
    """``facecrowd release`` in a process of its own, with the processes that Ray starts for it."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.mark = f"FACECROWD_TEST_JOB={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        self.log = log
        with log.open("w") as out:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "facecrowd.jobs.cli", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, name: value},
            )

    def processes(self) -> dict[int, str]:
        """pid → command line of everything that belongs to the job."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if self.mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def wait_for(self, condition: Callable[[], bool], seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.driver.poll() is None, f"ended by itself: {self.log.read_text()}"
            assert time.monotonic() < end, f"waited in vain: {self.log.read_text()}"
            time.sleep(0.01)

    def kill_driver(self) -> None:
        self.driver.kill()
        self.driver.wait()

    def kill_worker(self) -> bool:
        """Kill an actor that works on micro-batches, where there is one right now."""
        workers = [pid for pid, line in self.processes().items() if "ray::" in line and "_Group" in line]
        if workers:
            os.kill(workers[0], signal.SIGKILL)
        return bool(workers)

    def end(self) -> None:
        """Nothing of the job is left running."""
        for _ in range(100):
            left = self.processes()
            if not left:
                break
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        self.driver.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str]], Job]]:
    jobs: list[Job] = []

    def run(arguments: list[str]) -> Job:
        jobs.append(Job(arguments, tmp_path / f"job-{len(jobs)}.log"))
        return jobs[-1]

    yield run
    for job in jobs:
        job.end()


def parts(workspace: str, table: str) -> int:
    return len(list(Path(workspace).glob(f"tables/{table}/*/part-*.parquet")))


def test_a_killed_worker_is_replaced_and_a_killed_driver_resumed(
    tmp_path: Path,
    settings: Callable[..., ReleaseConfig],
    flags: Callable[..., list[str]],
    start: Callable[[list[str]], Job],
    given_key: Callable[[str], None],
    released: Outcome,
    tree: Tree,
) -> None:
    config = settings(tmp_path / "release")
    workspace = config.workspace_path
    given_key(workspace)
    job = start(flags(config.release.path))
    job.wait_for(lambda: parts(workspace, "faces") > 0)
    job.kill_driver()
    job.end()
    assert parts(workspace, "faces") < 6
    job = start(flags(config.release.path))
    job.wait_for(job.kill_worker)
    assert job.driver.wait(300) == 0, job.log.read_text()
    assert "resuming" in job.log.read_text()
    assert_as_undisturbed(config, released, tree)


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["driver", "worker"])
@pytest.mark.parametrize(
    "table, count", [("photos", 1), ("faces", 1), ("faces", 4), ("plan", 6), ("surrogates", 1), ("rendered", 3)]
)
def test_a_job_killed_in_any_step_ends_as_if_undisturbed(
    tmp_path: Path,
    settings: Callable[..., ReleaseConfig],
    flags: Callable[..., list[str]],
    start: Callable[[list[str]], Job],
    given_key: Callable[[str], None],
    released: Outcome,
    tree: Tree,
    kill: str,
    table: str,
    count: int,
) -> None:
    config = settings(tmp_path / "release")
    workspace = config.workspace_path
    given_key(workspace)
    job = start(flags(config.release.path))
    job.wait_for(lambda: parts(workspace, table) >= count)
    if kill == "worker":
        # Between two steps there is no worker; then the next one's is killed.
        job.wait_for(job.kill_worker)
    else:
        job.kill_driver()
        job.end()
        assert not (tmp_path / "release").exists()
        job = start(flags(config.release.path))
    assert job.driver.wait(300) == 0, job.log.read_text()
    assert_as_undisturbed(config, released, tree)


# ------------------------------------------------------------------------------------------------------------- lock


def test_a_workspace_in_use_is_refused_and_free_again_once_its_job_is_killed(
    tmp_path: Path,
    settings: Callable[..., ReleaseConfig],
    flags: Callable[..., list[str]],
    command: Callable[..., subprocess.CompletedProcess[str]],
    given_key: Callable[[str], None],
    tree: Tree,
) -> None:
    config = settings(tmp_path / "release")
    given_key(config.workspace_path)
    hold = "import sys, time; from facecrowd.pipeline.storage import Workspace\n"
    hold += "with Workspace(sys.argv[1]).locked(): print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", hold, config.workspace_path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = tree(config.workspace_path)
        refused = command(*flags(config.release.path))
        assert refused.returncode == 3
        assert refused.stderr == (
            f"facecrowd: workspace {config.workspace_path}: another job is using it; wait for it or stop it\n"
        )
        assert tree(config.workspace_path) == before
        assert not (tmp_path / "release").exists()
    finally:
        holder.kill()
        holder.wait()
    with Workspace(config.workspace_path).locked():
        pass
