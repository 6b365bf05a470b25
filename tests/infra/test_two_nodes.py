"""Claims of infra/README.md on several machines, with two Ray nodes on this one: a node that dies is worked around, and
who has no token starts nothing.

Each node is started as on a machine of its own (``ray start``), with token authentication, and the release is submitted
as a user submits it (``ray job submit``). Everything is killed by process id: other Ray clusters may run here.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
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

    def submit(self, *entrypoint: str, **changes: str | None) -> subprocess.Popen[str]:
        """``ray job submit``, with some variables of its environment set, or taken away (None)."""
        environment = {k: v for k, v in {**self.environment, **changes}.items() if v is not None}
        return subprocess.Popen(
            [RAY, "job", "submit", "--address", self.dashboard, "--", *entrypoint],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )


@pytest.fixture
def cluster(marked: Callable[[], Any]) -> Iterator[Cluster]:
    # The sockets below have a path of at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="fc-", dir="/tmp"))
    (folder / "token").write_text(secrets.token_hex(32))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    base = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    base |= {**token, "HOME": str(folder), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
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
    job = cluster.submit(sys.executable, "-m", "facecrowd.jobs.cli", *release)
    end = time.monotonic() + SECONDS
    while not (parts(workspace, "faces") and cluster.second.processes("_Group")):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end, "no part was made, or nothing ran on the second node"
        time.sleep(0.02)
    assert parts(workspace, "faces") < 6
    assert cluster.second.processes("raylet/raylet ")
    while cluster.second.kill():
        time.sleep(0.02)
    assert not (tmp_path / "release").exists()
    said = job.communicate(timeout=2 * SECONDS)[0]
    assert job.returncode == 0, said
    assert cluster.head.processes("raylet/raylet ")
    assert not cluster.second.processes()
    assert_as_undisturbed(config)


@pytest.mark.parametrize("token", [None, "0" * 64])
def test_who_has_no_token_of_the_cluster_submits_nothing(cluster: Cluster, tmp_path: Path, token: str | None) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "token").write_text(token or "")
    theirs = {"RAY_AUTH_MODE": "token" if token else None, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    refused = cluster.submit("touch", str(ran), **theirs)
    said = refused.communicate(timeout=SECONDS)[0]
    assert refused.returncode != 0, said
    assert "authenticat" in said.lower() or "token" in said.lower() or "unauthorized" in said.lower(), said
    mine = cluster.submit("touch", str(ran.with_name("mine")))
    assert mine.communicate(timeout=SECONDS)[0] is not None
    assert mine.returncode == 0
    assert ran.with_name("mine").exists()
    assert not ran.exists()
