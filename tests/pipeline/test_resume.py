"""A job killed at any moment and started again ends as if it had never been killed.

The release is the same byte for byte, and the Iceberg tables have every row exactly once. Processes are really killed
(SIGKILL).
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.storage import Workspace

KILLED = -signal.SIGKILL
LIFE = 99
"""Acts on the disk of each life of a job that is killed over and over; all it has to do takes twice as many."""
SCRIPT = Path(__file__).with_name("kill_run.py")

Tree = Callable[[Path | str], dict[str, bytes]]
As = Callable[[ReleaseConfig], None]


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
    assert_as_undisturbed: As,
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
    assert_as_undisturbed(config)


AFTER_THE_MOVE = 4
"""The last acts of a job are the move of the release into place and the record of it in the workspace (4 acts)."""


def test_a_job_killed_between_the_release_and_its_record_ends_as_if_undisturbed(
    tmp_path: Path,
    settings: Callable[..., ReleaseConfig],
    make_release: Callable[..., Outcome],
    given_key: Callable[[str], None],
    released: Outcome,
    tree: Tree,
    assert_as_undisturbed: As,
) -> None:
    config, other = settings(tmp_path / "release"), settings(tmp_path / "whole")
    given_key(config.workspace_path)
    given_key(other.workspace_path)
    acts = int(run_killed(other, 0, tmp_path / "config.yaml").stdout)
    assert run_killed(config, acts - AFTER_THE_MOVE, tmp_path / "config.yaml").returncode == KILLED
    assert tree(tmp_path / "release") == tree(released.release.root)
    assert not make_release(config).reused
    assert_as_undisturbed(config)
    assert make_release(config).reused


@pytest.mark.slow
def test_a_job_killed_at_each_of_its_acts_ends_as_if_undisturbed(
    tmp_path: Path,
    settings: Callable[..., ReleaseConfig],
    make_release: Callable[..., Outcome],
    given_key: Callable[[str], None],
    assert_as_undisturbed: As,
) -> None:
    whole = settings(tmp_path / "whole")
    given_key(whole.workspace_path)
    acts = int(run_killed(whole, 0, tmp_path / "config.yaml").stdout)
    for act in range(1, acts + 1, 3):
        config = settings(tmp_path / f"release-{act}")
        given_key(config.workspace_path)
        assert run_killed(config, act, tmp_path / "config.yaml").returncode == KILLED
        make_release(config)
        assert_as_undisturbed(config)


# ---------------------------------------------------------------------------------------------------- workers of Ray


def parts(workspace: str, table: str) -> int:
    return len(list(Path(workspace).glob(f"tables/{table}/*/part-*.parquet")))


def test_a_killed_worker_is_replaced_and_a_killed_driver_resumed(
    tmp_path: Path,
    settings: Callable[..., ReleaseConfig],
    flags: Callable[..., list[str]],
    start: Callable[[list[str]], Any],
    given_key: Callable[[str], None],
    assert_as_undisturbed: As,
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
    assert_as_undisturbed(config)


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["driver", "worker"])
@pytest.mark.parametrize(
    "table, count", [("photos", 1), ("faces", 1), ("faces", 4), ("plan", 6), ("surrogates", 1), ("rendered", 3)]
)
def test_a_job_killed_in_any_step_ends_as_if_undisturbed(
    tmp_path: Path,
    settings: Callable[..., ReleaseConfig],
    flags: Callable[..., list[str]],
    start: Callable[[list[str]], Any],
    given_key: Callable[[str], None],
    kill: str,
    table: str,
    count: int,
    assert_as_undisturbed: As,
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
    assert_as_undisturbed(config)


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
