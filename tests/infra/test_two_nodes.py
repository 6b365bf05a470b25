"""Claims of infra/README.md on several machines, with two Ray nodes on this one: a node that dies is worked around, and
who has no token starts nothing.

Each node is started as on a machine of its own (``ray start``), with token authentication, and the release is submitted
as a user submits it (``ray job submit``). Everything is killed by process id: other Ray clusters may run here.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from facecrowd.pipeline.config import ReleaseConfig

pytest.importorskip("opencensus", reason="ray job submit needs ray[default]")

pytestmark = pytest.mark.slow
RAY = Path(sys.executable).with_name("ray")
SECONDS = 900


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Cluster:
    """head, second : the processes of either node, by their marks"""

    head: Any
    second: Any
    dashboard: str
    environment: dict[str, str]

    def submit(self, name: str, *entrypoint: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
        """``ray job submit``, with some variables of its environment set, or taken away (None)."""
        environment = {k: v for k, v in {**self.environment, **changes}.items() if v is not None}
        return subprocess.run(
            [
                RAY,
                "job",
                "submit",
                "--address",
                self.dashboard,
                "--no-wait",
                "--submission-id",
                name,
                "--",
                *entrypoint,
            ],
            capture_output=True,
            text=True,
            env=environment,
            timeout=SECONDS,
            check=False,
        )

    def job(self, name: str, what: str = "") -> Any:
        """What the head says of a job, its logs with ``/logs``: asked for with the token, as the command does."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        asked = urllib.request.Request(
            f"{self.dashboard}/api/jobs/{name}{what}", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
            return json.load(answer)

    def until(self, condition: Callable[[], bool], name: str) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, self.job(name, "/logs")
            time.sleep(0.05)

    def ended(self, name: str) -> dict[str, Any]:
        self.until(lambda: self.job(name)["status"] in ("SUCCEEDED", "FAILED", "STOPPED"), name)
        return dict(self.job(name))


@pytest.fixture
def cluster(marked: Callable[[], Any]) -> Iterator[Cluster]:
    # The sockets below have a path of at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="fc-", dir="/tmp"))
    (folder / "token").write_text(secrets.token_hex(32))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    base = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    # Ray's workers give way to everything else; on a busy machine they would never come to their turn.
    base |= {**token, "HOME": str(folder), "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    base["RAY_USAGE_STATS_ENABLED"] = "0"
    port, dashboard = free_port(), free_port()
    common = ["--num-cpus", "1", "--object-store-memory", str(128 * 2**20), "--node-ip-address", "127.0.0.1"]
    common += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port"]
    head = ["--head", "--port", str(port), "--temp-dir", str(folder / "ray"), "--dashboard-port", str(dashboard)]
    head += ["--include-dashboard", "true", "--ray-client-server-port", str(free_port())]
    nodes = []
    try:
        for role in (head, ["--address", f"127.0.0.1:{port}"]):
            node = marked()
            nodes.append(node)
            name, _, value = node.mark.partition("=")
            started = subprocess.run(
                [RAY, "start", *role, *common, str(free_port())],
                env={**base, name: value},
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            assert started.returncode == 0, started.stdout + started.stderr
        yield Cluster(nodes[0], nodes[1], f"http://127.0.0.1:{dashboard}", base)
    finally:
        for node in nodes:
            node.end()
        shutil.rmtree(folder, ignore_errors=True)


def parts(workspace: str, table: str) -> int:
    return len(list(Path(workspace).glob(f"tables/{table}/*/part-*.parquet")))


def test_a_release_submitted_to_two_nodes_loses_one_and_equals_the_undisturbed(
    cluster: Cluster,
    tmp_path: Path,
    settings: Callable[..., ReleaseConfig],
    flags: Callable[..., list[str]],
    given_key: Callable[[str], None],
    assert_as_undisturbed: Callable[[ReleaseConfig], None],
) -> None:
    config = settings(tmp_path / "release")
    workspace = config.workspace_path
    given_key(workspace)
    release = flags(config.release.path, "--address", "auto")
    submitted = cluster.submit("release", sys.executable, "-m", "facecrowd.jobs.cli", *release)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    cluster.until(lambda: bool(parts(workspace, "faces") and cluster.second.processes("_Group")), "release")
    assert cluster.second.processes("raylet/raylet ")
    while cluster.second.kill():
        time.sleep(0.02)
    assert not (tmp_path / "release").exists()
    ended = cluster.ended("release")
    assert (ended["status"], ended["driver_exit_code"]) == ("SUCCEEDED", 0), cluster.job("release", "/logs")
    assert cluster.head.processes("raylet/raylet ")
    assert not cluster.second.processes()
    assert_as_undisturbed(config)


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_who_has_no_token_of_the_cluster_submits_nothing(cluster: Cluster, tmp_path: Path, token: str | None) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "token").write_text(token or "")
    theirs = {"RAY_AUTH_MODE": "token" if token else None, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    refused = cluster.submit("theirs", "touch", str(ran), **theirs)
    said = refused.stdout + refused.stderr
    assert refused.returncode != 0, said
    assert "token" in said.lower() or "unauthorized" in said.lower(), said
    assert cluster.submit("mine", "touch", str(tmp_path / "mine")).returncode == 0
    assert cluster.ended("mine")["status"] == "SUCCEEDED"
    assert (tmp_path / "mine").exists()
    assert not ran.exists()
