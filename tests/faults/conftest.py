"""The bench on which faults are injected, and the count of what came of them.

A small release (``released``) is disturbed once and then, when it did not end, started again. Most jobs run without Ray
in processes forked from one that has imported everything: a run takes a second, and can be killed as any process can.
"""

from __future__ import annotations

import contextlib
import glob
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from pyiceberg.catalog import load_catalog

from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.publish import CARD
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.storage import Workspace

AT_LEAST = 50
SCRIPT = Path(__file__).parents[1] / "pipeline" / "kill_run.py"
COUNTS = pytest.StashKey[dict[str, Counter[str]]]()
CHOSEN = pytest.StashKey[list[str]]()
CLOCK = pytest.StashKey[Path]()
COLUMNS = ("injected", "same release", "clear failure", "half-published", "lost", "twice")

Tree = Callable[[Path | str], dict[str, bytes]]
Serve = Callable[[str, dict[str, str]], "Server"]
Rows = dict[str, Counter[str]]
Strike = Callable[[int], bool | None]
"""What is done to a job, by its process id; true where that killed it."""


# ------------------------------------------------------------------------------------------------------------- counts


def counts(config: pytest.Config) -> dict[str, Counter[str]]:
    return config.stash.setdefault(COUNTS, {})


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was counted; a full run of too few faults has failed."""
    if file := os.environ.get("FACECROWD_FAULTS"):
        found = {kind: {name: count[name] for name in COLUMNS} for kind, count in counts(session.config).items()}
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if sum(count["injected"] for count in found.values()) < AT_LEAST:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = counts(config)
    if not found:
        return
    terminalreporter.section("faults")
    if CHOSEN in config.stash:
        terminalreporter.line(f"of this day: {', '.join(config.stash[CHOSEN])}")
    widths = [max(map(len, (*found, "fault"))), *map(len, COLUMNS)]
    total = sum(found.values(), Counter[str]())
    for kind, *cells in (
        ("fault", *COLUMNS),
        *((kind, *(str(count[name]) for name in COLUMNS)) for kind, count in found.items()),
        ("all", *(str(total[name]) for name in COLUMNS)),
    ):
        row = [kind.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))]
        terminalreporter.line("  ".join(row))
    if os.environ.get("FACECROWD_FAULTS") and total["injected"] < AT_LEAST:
        terminalreporter.line(f"FAILED: fewer than {AT_LEAST} were injected")


@pytest.fixture
def chosen_faults(request: pytest.FixtureRequest) -> list[str]:
    """Names of the day's faults, to be told at the end."""
    return request.config.stash.setdefault(CHOSEN, [])


# -------------------------------------------------------------------------------------------------------------- jobs


class Server:
    """``kill_run.py serve``: jobs without Ray, one after the other."""

    def __init__(self, environment: dict[str, str], said: Path) -> None:
        self.said, self.acts = said, 0
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # A library's threads would not be there after a fork.
            env={**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def run(self, file: Path, act: int = 0, strike: Strike | None = None, after: float = 0.0) -> tuple[int, str]:
        """A job's return code and what it said. ``strike`` comes at its Nth act, or when that many seconds are over."""
        self._say(json.dumps({"act": act, "config": str(file), "said": str(self.said)}))
        timer = None
        while True:
            what, *rest = self._hear().split()
            if what == "pid":
                pid = int(rest[0])
                if strike and not act:
                    timer = threading.Timer(after, strike, [pid])
                    timer.start()
            elif what == "held":
                if not (strike and strike(pid)):
                    self._say("")
            elif what == "ended":
                if timer:
                    timer.cancel()
                return int(rest[0]), self.said.read_text(encoding="utf-8")
            else:
                self.acts = int(what)

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def _hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server of jobs has gone"
        return line

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """``serve(name, environment)``: the one server of jobs with this environment."""
    servers: dict[str, Server] = {}

    def get(name: str, environment: dict[str, str]) -> Server:
        if name not in servers:
            servers[name] = Server(environment, tmp_path_factory.mktemp(name) / "said")
        return servers[name]

    yield get
    for server in servers.values():
        server.end()


# ------------------------------------------------------------------------------------------------------------- bench


@dataclass
class Bench:
    """A small release of its own workspace, and what came of it. Fields are what it is run with and held against."""

    kind: str
    config: ReleaseConfig
    file: Path
    server: Server
    undisturbed: dict[str, bytes]
    rows: dict[str, int]
    acts: int
    tree: Callable[[], dict[str, bytes]]
    count_rows: Callable[[], Rows]
    found: Counter[str] = field(default_factory=Counter)

    @property
    def workspace(self) -> Path:
        return Path(self.config.workspace_path)

    def run(self, act: int = 0, strike: Strike | None = None, after: float = 0.0) -> str:
        """Run or go on with the release: "same", "killed", or the sentence that it failed with."""
        return self.judge(*self.server.run(self.file, act, strike, after))

    def judge(self, code: int, said: str) -> str:
        """What a job has come to, by its return code and its words. Anything but those three fails the test."""
        now = self.tree()
        if now != self.undisturbed and CARD in now:
            self.found["half-published"] += 1
        if code == -signal.SIGKILL:
            return "killed"
        if code == 0:
            assert now == self.undisturbed, "another release"
            return "same"
        sentence = said.strip().splitlines()[-1]
        assert code in (2, 3), said
        assert sentence.startswith("facecrowd: "), said
        assert "unexpected" not in sentence, said
        assert "Traceback" not in said
        self.found["clear failure"] = 1
        return sentence

    def again(self) -> None:
        """Start it again, with nothing in its way: it ends in the same release, every row exactly once."""
        came = self.run()
        assert came == "same"
        self.counted()

    def counted(self) -> None:
        found = self.count_rows()
        assert set(found) == set(self.rows)
        for name, rows in self.rows.items():
            total = sum(found[name].values())
            self.found["lost"] += max(0, rows - total)
            self.found["twice"] += max(0, total - rows)
        assert not self.found["lost"] + self.found["twice"], found
        assert all(len(runs) == 1 for runs in found.values())
        self.found["same release"] = 1


@pytest.fixture(scope="module")
def acts(
    serve: Serve,
    settings: Callable[..., ReleaseConfig],
    given_key: Callable[..., None],
    released: Outcome,
    tree: Tree,
    tmp_path_factory: pytest.TempPathFactory,
) -> int:
    """How many acts the release takes that nobody disturbs; it equals ``released``."""
    folder = tmp_path_factory.mktemp("acts")
    config, server = settings(folder / "release"), serve("plain", dict(os.environ))
    given_key(config.workspace_path)
    code, said = server.run(written(config, folder))
    assert code == 0, said
    assert tree(folder / "release") == tree(released.release.root)
    return server.acts


def written(config: ReleaseConfig, folder: Path) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return file


@pytest.fixture
def bench(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    serve: Serve,
    settings: Callable[..., ReleaseConfig],
    given_key: Callable[..., None],
    released: Outcome,
    tree: Tree,
    acts: int,
    rows_of_each_table: dict[str, int],
    rows_per_run: Callable[[Any], Rows],
) -> Iterator[Callable[..., Bench]]:
    """``bench(kind, **settings)``: a release to disturb; what comes of it is counted under that kind of fault.

    server : where the job needs an environment of its own
    remote, count_rows : what reads the release and the tables, where they are not in local folders
    """
    made: list[Bench] = []

    def make(
        kind: str,
        output: Path | str | None = None,
        server: Server | None = None,
        remote: Callable[[], dict[str, bytes]] | None = None,
        count_rows: Callable[[], Rows] | None = None,
        **changes: Any,
    ) -> Bench:
        config = settings(output or tmp_path / "release", **changes)
        place = str(config.release.path)
        if remote is None:
            given_key(config.workspace_path)
        made.append(
            Bench(
                kind,
                config,
                written(config, tmp_path),
                server or serve("plain", dict(os.environ)),
                tree(released.release.root),
                rows_of_each_table,
                acts,
                remote or (lambda: tree(place) if Path(place).is_dir() else {}),
                count_rows or (lambda: rows_per_run(Workspace(config.workspace_path).catalog())),
            )
        )
        return made[-1]

    yield make
    for one in made:
        count = counts(request.config).setdefault(one.kind, Counter())
        count.update({"injected": 1, **one.found})


# -------------------------------------------------------------------------------------------------------------- disk


@dataclass(frozen=True)
class Disk:
    """A small file system of its own, in memory."""

    folder: Path

    def fill(self, room: int = 0) -> None:
        """Leave so many bytes free, to the next page."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while file.write(b"\1" * 4096):
                    pass
            file.truncate(max(0, file.tell() - room))

    def free(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def read_only(self, on: bool = True) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if on else 'rw'}", self.folder], check=True, timeout=60)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "faults", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        pytest.skip("no disk to fill: there is no mount here")
    if done.returncode:
        pytest.skip(f"no disk to fill: {done.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True, timeout=60)


# ------------------------------------------------------------------------------------------------------------- clock


@dataclass(frozen=True)
class Clock:
    """The wall clock of a server's jobs, by libfaketime."""

    server: Server
    file: Path

    def set(self, days: float) -> None:
        """So many days from now, backwards or forwards."""
        self.file.write_text(f"{days * 86400:+.0f}s\n", encoding="utf-8")


@pytest.fixture
def clock(serve: Serve, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Clock:
    found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    if not found:
        pytest.skip("no clock to set: libfaketime is not installed (Debian: libfaketime)")
    file = request.session.stash.setdefault(CLOCK, tmp_path_factory.mktemp("clock") / "offset")
    faked = {"FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    environment = {**os.environ, **faked, "NO_FAKE_STAT": "1", "LD_PRELOAD": found[0]}
    file.write_text("-3d\n", encoding="utf-8")
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert abs(float(told.stdout) + 3 * 86400 - time.time()) < 3600
    file.write_text("+0\n", encoding="utf-8")
    return Clock(serve("clock", environment), file)


# ------------------------------------------------------------------------------------------------------ object store


class Proxy:
    """What stands between a job and the object store, on loopback. ``trouble(n)`` is what the nth request meets:
    a status that it gets for an answer (0: the store's own), and seconds that it waits for it."""

    def __init__(self, target: str) -> None:
        self.requests = 0
        self.trouble: Callable[[int], tuple[int, float]] = lambda n: (0, 0.0)
        proxy, host = self, urlsplit(target).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self._body()
                proxy.requests += 1
                status, seconds = proxy.trouble(proxy.requests)
                time.sleep(seconds)
                if status:
                    self._answer(status, [("Content-Type", "application/xml")], PROBLEM)
                    return
                passed = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
                there = http.client.HTTPConnection(host, timeout=60)
                there.request(self.command, self.path, body, {**passed, "Content-Length": str(len(body))})
                found = there.getresponse()
                data = found.read()
                headers = [(k, v) for k, v in found.getheaders() if k.lower() not in HOP]
                self._answer(found.status, headers, data, found.getheader("Content-Length"))
                there.close()

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                out = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    out += self.rfile.read(size)
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return out

            def _answer(
                self, status: int, headers: list[tuple[str, str]], data: bytes, length: str | None = None
            ) -> None:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                head = self.command == "HEAD"
                self.send_header("Content-Length", (length or "0") if head else str(len(data)))
                self.end_headers()
                if not head:
                    self.wfile.write(data)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "date", "server"}
PROBLEM = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>Injected.</Message></Error>"


@pytest.fixture(scope="module")
def proxy(store: Any) -> Iterator[Proxy]:
    made = Proxy(store.environment["AWS_ENDPOINT_URL"])
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def remote(
    bench: Callable[..., Bench],
    bucket: Any,
    proxy: Proxy,
    serve: Serve,
    released: Outcome,
    rows_per_run: Callable[[Any], Rows],
    tmp_path: Path,
) -> Callable[[str], Bench]:
    """``remote(kind)``: a release from the object store to the object store, all through ``proxy``."""

    def make(kind: str) -> Bench:
        name = tmp_path.name.replace("_", "-")
        bucket.put(f"{name}.workspace/run.key", released.workspace.read("run.key"))
        endpoint = {"AWS_ENDPOINT_URL": proxy.url, "PYICEBERG_CATALOG__LOOPBACK__S3__ENDPOINT": proxy.url}
        proxy.trouble = lambda n: (0, 0.0)
        proxy.requests = 0
        catalog = load_catalog("loopback", **bucket.catalog)
        before = rows_per_run(catalog)

        def count_rows() -> Rows:
            found = rows_per_run(catalog)
            return {
                t: Counter({r: n for r, n in runs.items() if r not in before.get(t, {})}) for t, runs in found.items()
            }

        return bench(
            kind,
            f"s3://private/{name}",
            **{"input.path": "s3://private/photos", "workspace.catalog": "loopback"},
            server=serve("s3", {**bucket.environment, **endpoint, "AWS_MAX_ATTEMPTS": "2"}),
            remote=lambda: bucket.tree(name),
            count_rows=count_rows,
        )

    return make
