"""Catalogs other than the workspace's SQLite, on loopback: PostgreSQL, and a server of the Iceberg REST specification.

A run is committed exactly once whatever the catalog does meanwhile, and what it is asked with is kept nowhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import yaml
from pyiceberg.catalog.rest import CommitTableRequest, CreateTableRequest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.utils.config import Config
from typer.testing import CliRunner

from facecrowd.jobs.cli import BAD_INPUT, NOT_MET, OK, UNFINISHED, app
from facecrowd.jobs.evidence import Evidence
from facecrowd.pipeline import ray_data, storage
from facecrowd.pipeline.errors import ConfigError, StoreError
from facecrowd.pipeline.schema import LINK, MEMBERS
from facecrowd.pipeline.storage import NAMESPACE, READ_TRIES, Workspace

SCRIPT = Path(__file__).with_name("kill_run.py")
KILLED = -9
SECRET = "loopback-secret-nobody-else-uses"
RUN = "0123456789abcdef"


# ------------------------------------------------------------------------------------------ the REST specification


class Refusal(Exception):
    """An answer with this status, and with what a careless server says."""

    def __init__(self, status: int, message: str = "the server says no more") -> None:
        self.status, self.message = status, message


@dataclass
class Rest:
    """A catalog server of the Iceberg REST specification, over SQLite; what it needs of it and no more.

    requests : "METHOD path" of each
    trouble : called with each request before it is served, and again ("after") before the answer is sent; it may raise
    """

    catalog: SqlCatalog
    requests: list[str] = field(default_factory=list)
    trouble: Callable[[str, str], None] | None = None
    url: str = ""

    def answer(self, method: str, path: str, body: bytes, authorisation: str) -> tuple[int, dict[str, Any] | None]:
        """Status and body. Errors are the specification's: {"error": {"message", "type", "code"}}."""
        self.requests.append(f"{method} {path}")
        try:
            if path == "/v1/oauth/tokens":
                return self._token(body)
            if path != "/v1/config" and authorisation != f"Bearer {SECRET}":
                return 401, _error(401, "NotAuthorizedException", "not you")
            if self.trouble:
                self.trouble(f"{method} {path}", "before")
            found = self._route(method, path.removeprefix("/v1/").split("/"), body)
            if self.trouble:
                self.trouble(f"{method} {path}", "after")
            return found
        except (NoSuchTableError, NoSuchNamespaceError) as error:
            return 404, _error(404, type(error).__name__, str(error))
        except (TableAlreadyExistsError, NamespaceAlreadyExistsError) as error:
            return 409, _error(409, type(error).__name__, str(error))
        except CommitFailedException as error:
            return 409, _error(409, "CommitFailedException", str(error))
        except Refusal as refusal:
            return refusal.status, _error(refusal.status, "Trouble", refusal.message)
        except CommitStateUnknownException as error:
            return 500, _error(500, "CommitStateUnknownException", str(error))

    def _token(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """OAuth2 client credentials, for the token that all else asks for."""
        asked = parse_qs(body.decode())
        if asked.get("client_secret") != [SECRET] or asked.get("grant_type") != ["client_credentials"]:
            return 401, {"error": "invalid_client", "error_description": "not you"}
        return 200, {"access_token": SECRET, "token_type": "bearer", "expires_in": 3600}

    def _route(self, method: str, path: list[str], body: bytes) -> tuple[int, dict[str, Any] | None]:
        match (method, path):
            case ("GET", ["config"]):
                return 200, {"defaults": {}, "overrides": {}}
            case ("POST", ["namespaces"]):
                name = json.loads(body)["namespace"]
                self.catalog.create_namespace(tuple(name))
                return 200, {"namespace": name, "properties": {}}
            case ("GET" | "HEAD", ["namespaces", name]):
                return 200, {"namespace": [name], "properties": self.catalog.load_namespace_properties(name)}
            case ("GET", ["namespaces", name, "tables"]):
                tables = self.catalog.list_tables(name)
                return 200, {"identifiers": [{"namespace": list(t[:-1]), "name": t[-1]} for t in tables]}
            case ("POST", ["namespaces", name, "tables"]):
                unsaid = dict.fromkeys(("location", "partition-spec", "write-order"))
                asked = CreateTableRequest.model_validate_json(json.dumps({**unsaid, **json.loads(body)}))
                table = self.catalog.create_table(
                    (name, asked.name),
                    asked.table_schema,
                    asked.location,
                    asked.partition_spec or UNPARTITIONED_PARTITION_SPEC,
                    asked.write_order or UNSORTED_SORT_ORDER,
                    asked.properties,
                )
                return 200, _table(table)
            case ("GET", ["namespaces", name, "tables", table]):
                return 200, _table(self.catalog.load_table((name, table)))
            case ("HEAD", ["namespaces", name, "tables", table]):
                self.catalog.load_table((name, table))
                return 204, None
            case ("POST", ["namespaces", name, "tables", table]):
                commit = CommitTableRequest.model_validate_json(body)
                done = self.catalog.commit_table(
                    self.catalog.load_table((name, table)), commit.requirements, commit.updates
                )
                return 200, _located(done.metadata_location, done.metadata)
            case ("DELETE", ["namespaces", name, "tables", table]):
                self.catalog.drop_table((name, table))
                return 204, None
        return 404, _error(404, "NotFoundException", "/".join(path))


def _table(table: Any) -> dict[str, Any]:
    return _located(table.metadata_location, table.metadata)


def _located(where: str, metadata: Any) -> dict[str, Any]:
    return {"metadata-location": where, "metadata": json.loads(metadata.model_dump_json()), "config": {}}


def _error(code: int, kind: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code}}


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[Rest]:
    """The server in a thread of this process, on a port of loopback."""
    (tmp_path / "served").mkdir()
    place = tmp_path / "served"
    served = Rest(SqlCatalog("served", uri=f"sqlite:///{place}/catalog.db", warehouse=f"file://{place}/warehouse"))

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            said = self.headers.get("Authorization") or ""
            status, found = served.answer(self.command, urlsplit(self.path).path, body, said)
            data = b"" if found is None or self.command == "HEAD" else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


# ------------------------------------------------------------------------------------------------------- PostgreSQL


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of this module's own, with a password; its URI. A skip where there is none."""
    pytest.importorskip("psycopg2", reason="the PostgreSQL catalog needs facecrowd[postgres]")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if not found:
        pytest.skip("no PostgreSQL server is installed (Debian: postgresql)")
    binaries = found[-1].parent
    user: str | None = None
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam("postgres").pw_name
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="facecrowd-pg-"))
    server = None
    try:
        (folder / "password").write_text(SECRET)
        if user is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        initdb = [binaries / "initdb", "-D", folder / "data", "-U", "catalog", "-A", "scram-sha-256", "--no-sync"]
        subprocess.run(
            [*initdb, "--pwfile", folder / "password"], check=True, capture_output=True, user=user, timeout=120
        )
        (folder / "password").unlink()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", folder / "data", *settings], stdout=log, stderr=log, user=user
            )
        for _ in range(600):
            ready = [binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
            if subprocess.run(ready, check=False).returncode == 0:
                break
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"postgresql+psycopg2://catalog:{SECRET}@127.0.0.1:{port}/postgres"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------- what they share


@dataclass(frozen=True)
class Outside:
    """A catalog as a user configures one: by name, from the environment."""

    name: str
    environment: dict[str, str]

    def workspace(self, path: Path) -> Workspace:
        return Workspace(str(path), self.name)


Catalogs = Callable[..., Outside]


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Catalogs:
    """``configured(name, uri=…, …)``: PYICEBERG_CATALOG__NAME__… of this process and of those it starts."""

    def configure(name: str, **properties: str) -> Outside:
        prefix = f"PYICEBERG_CATALOG__{name.upper()}__"
        for key, value in properties.items():
            monkeypatch.setenv(f"{prefix}{key.upper()}", value)
        monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # which it reads when it is imported
        return Outside(name, dict(os.environ))

    return configure


@pytest.fixture(
    params=["rest-token", "rest-credential", pytest.param("postgres", marks=pytest.mark.slow)],
)
def outside(request: pytest.FixtureRequest, configured: Catalogs, tmp_path: Path) -> Outside:
    if request.param == "postgres":
        uri = request.getfixturevalue("postgres")
        # Of its own among the others that the server holds.
        name = f"pg{secrets.token_hex(4)}"
        return configured(name, type="sql", uri=uri, warehouse=f"file://{tmp_path}/warehouse")
    rest = request.getfixturevalue("rest")
    how = {"token": SECRET} if request.param == "rest-token" else {"credential": f"loopback:{SECRET}"}
    return configured("rest", type="rest", uri=rest.url, **how)


def write(workspace: Workspace, run: str = RUN, count: int = 2) -> Any:
    """A run of ``count`` parts with 3 rows each, not committed."""
    with workspace.locked():
        workspace.create()
    parts = workspace.parts(MEMBERS, run)
    for part in range(count):
        numbers = np.arange(3, dtype=np.int32)
        parts.write(
            part, {"class_id": numbers, "subject_id": [f"s{n}" for n in numbers], "part": numbers, "row": numbers}
        )
    return parts


def rows(workspace: Workspace) -> Counter[str]:
    table = workspace.catalog().load_table((NAMESPACE, "members"))
    return Counter(table.scan(selected_fields=("run",)).to_arrow()["run"].to_pylist())


def told(folder: Path) -> list[str]:
    """The files below that hold the secret."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return [str(file) for file in files if SECRET.encode() in file.read_bytes()]


def test_a_run_is_committed_exactly_once_to_a_catalog_outside(outside: Outside, tmp_path: Path) -> None:
    first = outside.workspace(tmp_path / "work")
    parts = write(first)
    assert not first.committed(MEMBERS, RUN)
    for _ in range(2):
        first.commit(parts, 2)
    # Another process, which knows the workspace and the catalog and nothing more.
    second = outside.workspace(tmp_path / "work")
    assert second.committed(MEMBERS, RUN)
    second.commit(parts, 2)
    assert rows(second) == {RUN: 6}
    # And another workspace in the same catalog.
    other = outside.workspace(tmp_path / "other")
    other.commit(write(other, "f" * 16), 2)
    assert rows(second) == {RUN: 6, "f" * 16: 6}
    assert len(second.snapshots(MEMBERS)) == 2


def test_what_a_catalog_is_asked_with_is_kept_in_no_file_and_in_no_word(
    outside: Outside, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    workspace = outside.workspace(tmp_path / "work")
    with caplog.at_level("DEBUG"):
        workspace.commit(write(workspace), 2)
    assert told(tmp_path / "work") == []
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err + caplog.text + repr(workspace)


MEMBERS_AT = "/v1/namespaces/facecrowd/tables/members"
COMMIT = f"POST {MEMBERS_AT}"


def refusing(rest: Rest, status: int, times: int, *requests: str) -> list[str]:
    """Answer the first ``times`` of these requests (default: all that read a table) with a status; those answered."""
    answered: list[str] = []

    def trouble(request: str, when: str) -> None:
        if request in (requests or (f"GET {MEMBERS_AT}",)) and when == "before" and len(answered) < times:
            answered.append(request)
            raise Refusal(status)

    rest.trouble = trouble
    return answered


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting before a catalog is asked again."""
    monkeypatch.setattr(storage, "READ_WAIT_S", 0.0)


@pytest.mark.parametrize("how", ["token", "credential"])
def test_wrong_credentials_are_refused_in_a_sentence_that_does_not_repeat_them(
    how: str, rest: Rest, configured: Catalogs, tmp_path: Path
) -> None:
    wrong = f"not-{SECRET[::-1]}"
    given = {"token": wrong} if how == "token" else {"credential": f"loopback:{wrong}"}
    workspace = configured("rest", type="rest", uri=rest.url, **given).workspace(tmp_path / "work")
    parts = write(workspace)
    with pytest.raises(StoreError, match=r"^catalog rest: does not know who asks; check its credentials: ") as refused:
        workspace.commit(parts, 2)
    assert wrong not in str(refused.value)


def test_what_a_careless_catalog_repeats_of_its_credentials_is_left_out(
    rest: Rest, configured: Catalogs, tmp_path: Path
) -> None:
    def trouble(request: str, when: str) -> None:
        raise Refusal(403, f"no entry for Bearer {SECRET} from http://user:{SECRET[::-1]}@127.0.0.1/")

    for how in ({"token": SECRET}, {"credential": f"loopback:{SECRET}"}):
        workspace = configured("rest", type="rest", uri=rest.url, **how).workspace(tmp_path / "work")
        rest.trouble = trouble
        with pytest.raises(StoreError, match=r"Trouble: no entry for Bearer … from http://…@127\.0\.0\.1/$"):
            workspace.committed(MEMBERS, RUN)


def test_what_a_catalog_does_not_allow_is_said(rest: Rest, configured: Catalogs, tmp_path: Path) -> None:
    workspace = configured("rest", type="rest", uri=rest.url, token=SECRET).workspace(tmp_path / "work")
    parts = write(workspace)
    answered = refusing(rest, 403, 99, "POST /v1/namespaces/facecrowd/tables")
    with pytest.raises(StoreError, match=r"^catalog rest: does not allow that to who asks: ForbiddenError: "):
        workspace.commit(parts, 2)
    assert len(answered) == 1


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_catalog_that_fails_for_a_moment_is_asked_again(
    status: int, rest: Rest, configured: Catalogs, tmp_path: Path
) -> None:
    workspace = configured("rest", type="rest", uri=rest.url, token=SECRET).workspace(tmp_path / "work")
    workspace.commit(write(workspace), 2)
    tables = "/v1/namespaces/facecrowd/tables"
    for request in ("GET /v1/config", "POST /v1/namespaces", f"POST {tables}", f"GET {MEMBERS_AT}"):
        answered = refusing(rest, status, READ_TRIES - 1, request)
        again = Workspace(str(tmp_path / "work"), "rest")
        again.commit(again.parts(MEMBERS, RUN), 2)
        assert answered == [request] * (READ_TRIES - 1)
    assert rows(workspace) == {RUN: 6}


@pytest.mark.usefixtures("at_once")
def test_a_catalog_that_goes_on_failing_is_asked_so_often_and_then_named(
    rest: Rest, configured: Catalogs, tmp_path: Path
) -> None:
    workspace = configured("rest", type="rest", uri=rest.url, token=SECRET).workspace(tmp_path / "work")
    workspace.commit(write(workspace), 2)
    answered = refusing(rest, 503, 99)
    with pytest.raises(StoreError, match=r"^catalog rest: failed: ServiceUnavailableError: "):
        workspace.committed(MEMBERS, RUN)
    assert len(answered) == READ_TRIES


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_commit_is_sent_once_whatever_the_catalog_answers(
    status: int, rest: Rest, configured: Catalogs, tmp_path: Path
) -> None:
    workspace = configured("rest", type="rest", uri=rest.url, token=SECRET).workspace(tmp_path / "work")
    parts = write(workspace)
    answered = refusing(rest, status, 99, COMMIT)
    with pytest.raises(StoreError, match="failed while it committed members, and whether that was done is not known"):
        workspace.commit(parts, 2)
    assert answered == [COMMIT]
    rest.trouble = None
    workspace.commit(parts, 2)
    assert rows(workspace) == {RUN: 6}


@pytest.mark.parametrize("url", ["http://loopback:{}@127.0.0.1:{}", "http://127.0.0.1:{1}/?token={0}"])
def test_a_catalog_that_is_away_is_named(configured: Catalogs, tmp_path: Path, url: str) -> None:
    uri = url.format(SECRET, unused())
    workspace = configured("rest", type="rest", uri=uri, token=SECRET).workspace(tmp_path / "work")
    with pytest.raises(StoreError, match=r"^catalog rest: cannot be reached: ConnectionError: ") as refused:
        workspace.committed(MEMBERS, RUN)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("properties", [{"type": "unheard-of"}, {"type": "rest"}, {"type": "sql", "uri": "no uri"}])
def test_a_catalog_that_is_configured_wrongly_is_named_without_its_credentials(
    properties: dict[str, str], configured: Catalogs, tmp_path: Path
) -> None:
    workspace = configured("wrong", token=SECRET, **properties).workspace(tmp_path / "work")
    with pytest.raises((StoreError, ConfigError), match=r"^catalog wrong: ") as refused:
        workspace.committed(MEMBERS, RUN)
    assert SECRET not in str(refused.value)


def test_a_release_whose_catalog_is_away_ends_in_one_sentence(
    configured: Catalogs, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    configured("rest", type="rest", uri=f"http://127.0.0.1:{unused()}", token=SECRET)
    result = CliRunner().invoke(app, [*flags(tmp_path / "release", "--catalog", "rest", "--quiet")])
    assert result.exit_code == UNFINISHED
    assert result.stderr.startswith("facecrowd: catalog rest: cannot be reached: ")
    assert result.stderr.count("\n") == 1
    assert SECRET not in result.output
    assert not (tmp_path / "release").exists()


@pytest.mark.slow
def test_a_postgresql_that_is_away_or_refuses_is_named_without_its_password(
    postgres: str, configured: Catalogs, tmp_path: Path
) -> None:
    away = re.sub(r":\d+/", f":{unused()}/", postgres)
    wrong = postgres.replace(SECRET, SECRET[::-1])
    for uri, why in ((away, "Connection refused"), (wrong, "password authentication failed")):
        workspace = configured("pg", type="sql", uri=uri, warehouse=f"file://{tmp_path}").workspace(tmp_path / "work")
        with pytest.raises(StoreError, match=f"^catalog pg: cannot be reached: OperationalError: .*{why}") as refused:
            workspace.committed(MEMBERS, RUN)
        assert SECRET not in str(refused.value)
        assert SECRET[::-1] not in str(refused.value)
        assert "sqlalche" not in str(refused.value)


def unused() -> int:
    """A port of loopback where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def test_an_answer_that_is_lost_after_the_commit_does_not_make_it_twice(
    rest: Rest, configured: Catalogs, tmp_path: Path
) -> None:
    """The server commits and then fails to say so; the job stops, is started again, and finds its run there."""
    workspace = configured("rest", type="rest", uri=rest.url, token=SECRET).workspace(tmp_path / "work")
    parts = write(workspace)
    lost: list[str] = []

    def trouble(request: str, when: str) -> None:
        if request == "POST /v1/namespaces/facecrowd/tables/members" and when == "after" and not lost:
            lost.append(request)
            raise CommitStateUnknownException("the answer was lost")

    rest.trouble = trouble
    with pytest.raises(StoreError, match="whether that was done is not known; start it again to go on"):
        workspace.commit(parts, 2)
    assert lost
    again = Workspace(str(tmp_path / "work"), "rest")
    assert again.committed(MEMBERS, RUN)
    again.commit(parts, 2)
    assert rows(again) == {RUN: 6}


def test_a_commit_that_another_workspace_forestalls_is_made_on_top_of_it(
    rest: Rest, configured: Catalogs, tmp_path: Path
) -> None:
    outside = configured("rest", type="rest", uri=rest.url, token=SECRET)
    mine, other = outside.workspace(tmp_path / "mine"), outside.workspace(tmp_path / "other")
    mine.commit(write(mine, "a" * 16), 2)
    forestall(rest, lambda: other.commit(write(other, "b" * 16), 2))
    mine.commit(write(mine), 2)
    assert rows(mine) == {"a" * 16: 6, "b" * 16: 6, RUN: 6}


def forestall(rest: Rest, act: Callable[[], Any]) -> None:
    """Do this right before the server looks at the next commit: in the server's own thread, so past the network."""
    done: list[bool] = []

    def trouble(request: str, when: str) -> None:
        if request == "POST /v1/namespaces/facecrowd/tables/members" and when == "before" and not done:
            done.append(True)
            real, Workspace.catalog = Workspace.catalog, lambda self: rest.catalog  # type: ignore[method-assign]
            try:
                act()
            finally:
                Workspace.catalog = real  # type: ignore[method-assign]

    rest.trouble = trouble


def test_two_jobs_that_commit_the_same_run_at_once_commit_it_once(
    rest: Rest, configured: Catalogs, tmp_path: Path
) -> None:
    """An object store has no locks, so two jobs may both find the run missing; the catalog decides."""
    outside = configured("rest", type="rest", uri=rest.url, token=SECRET)
    first, second = outside.workspace(tmp_path / "work"), outside.workspace(tmp_path / "work")
    first.commit(write(first, "a" * 16), 2)
    parts = write(first)
    forestall(rest, lambda: second.commit(parts, 2))
    first.commit(parts, 2)
    assert rows(first) == {"a" * 16: 6, RUN: 6}


# --------------------------------------------------------------------------------------------------- a whole release


def test_an_audit_reaches_a_catalog_that_has_another_name_here(
    rest: Rest,
    configured: Catalogs,
    settings: Callable[..., Any],
    make_release: Callable[..., Any],
    in_process: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = {"type": "rest", "uri": rest.url, "token": SECRET}
    configured("there", **where)
    outcome = make_release(settings(tmp_path / "release", **{"workspace.catalog": "there"}))
    for name in where:
        monkeypatch.delenv(f"PYICEBERG_CATALOG__THERE__{name.upper()}")
    space = configured("here", **where).workspace(Path(outcome.workspace.root))
    monkeypatch.setattr(ray_data, "run", in_process)
    monkeypatch.setattr(ray_data, "session", lambda *_: contextlib.nullcontext())
    (snapshot,) = space.snapshots(LINK)

    def audit(*arguments: object) -> Any:
        asked = ["audit", *arguments, "--depth", "checks", "--quiet"]
        return CliRunner().invoke(app, [str(one) for one in asked])

    for what in ((tmp_path / "release",), ("--snapshot", snapshot)):
        named = audit(*what, "--workspace", space.url, "--catalog", "here")
        assert named.exit_code in (OK, NOT_MET), named.output
        unheard = audit(*what, "--workspace", space.url, "--catalog", "elsewhere")
        assert (unheard.exit_code, "workspace.catalog elsewhere: no PyIceberg" in unheard.stderr) == (BAD_INPUT, True)
        assert audit(*what, "--catalog", "here").exit_code == BAD_INPUT
    unnamed = audit("--snapshot", snapshot, "--workspace", space.url)
    assert (unnamed.exit_code, "workspace.catalog there: no PyIceberg" in unnamed.stderr) == (BAD_INPUT, True)
    assert Evidence(str(tmp_path / "release"), space.url, catalog="here").snapshot == snapshot
    assert Evidence(str(tmp_path / "release"), space.url).snapshot is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rest", "postgres"])
def test_a_release_killed_and_resumed_with_a_catalog_outside_equals_one_with_its_own(
    kind: str,
    request: pytest.FixtureRequest,
    configured: Catalogs,
    tmp_path: Path,
    settings: Callable[..., Any],
    released: Any,
    tree: Callable[[Path | str], dict[str, bytes]],
) -> None:
    if kind == "rest":
        where = {"type": "rest", "uri": request.getfixturevalue("rest").url, "token": SECRET}
    else:
        where = {"type": "sql", "uri": request.getfixturevalue("postgres"), "warehouse": f"file://{tmp_path}/warehouse"}
    outside = configured(kind, **where)
    config = settings(tmp_path / "release", **{"workspace.catalog": kind})
    work = Path(config.workspace_path)
    work.mkdir(mode=0o700)
    (work / "run.key").write_bytes(released.workspace.read("run.key"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")

    def run(act: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), str(act), str(tmp_path / "config.yaml")]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=600, check=False, env=outside.environment
        )

    assert run(60).returncode == KILLED
    result = run(0)
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "release") == tree(released.release.root)
    # Once each, whatever was killed.
    workspace = outside.workspace(work)
    for name, count in (("photos", 12), ("faces", 12), ("link", 12)):
        table = workspace.catalog().load_table((NAMESPACE, name))
        assert set(Counter(table.scan(selected_fields=("run",)).to_arrow()["run"].to_pylist()).values()) == {count}
    for folder in (work, tmp_path / "release"):
        assert told(folder) == []
    assert SECRET not in (tmp_path / "config.yaml").read_text()
    assert SECRET not in result.stdout + result.stderr
