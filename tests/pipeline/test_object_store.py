"""Input, workspace and release on an object store: a real S3 server on loopback, started here.

The job runs as a user runs it: the server's address, the credentials and the Iceberg catalog by environment.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyiceberg.catalog import load_catalog

from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.photos import listing
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.storage import Folder

SCRIPT = Path(__file__).with_name("kill_run.py")
KILLED = -9

Settings = Callable[..., ReleaseConfig]
Tree = Callable[[Path | str], dict[str, bytes]]


def on_s3(settings: Settings, name: str, given: bytes, store: Any, **changes: Any) -> ReleaseConfig:
    store.put(f"{name}.workspace/run.key", given)
    return settings(
        f"s3://private/{name}", **{"input.path": "s3://private/photos", "workspace.catalog": "loopback", **changes}
    )


def run(config: ReleaseConfig, store: Any, folder: Path, act: int = 0) -> subprocess.CompletedProcess[str]:
    """The job without Ray, killed at its Nth act on the store if ``act`` is given."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(act), str(folder / "config.yaml")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=store.environment,
    )


@pytest.fixture(scope="module")
def key(released: Outcome) -> bytes:
    return released.workspace.read("run.key")


@pytest.fixture(scope="module")
def plain(
    settings: Settings, bucket: Any, key: bytes, tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    """A release from ``photos`` to ``plain``, never disturbed."""
    result = run(on_s3(settings, "plain", key, bucket), bucket, tmp_path_factory.mktemp("plain"))
    assert result.returncode == 0, result.stderr
    return result


def test_a_release_made_on_an_object_store_equals_the_local_one_byte_for_byte(
    plain: subprocess.CompletedProcess[str], bucket: Any, released: Outcome, tree: Tree
) -> None:
    assert bucket.tree("plain") == tree(released.release.root)


def test_no_credential_is_kept_or_said_anywhere(plain: subprocess.CompletedProcess[str], bucket: Any) -> None:
    kept = {**bucket.tree("plain"), **bucket.tree("plain.workspace"), **bucket.tree("warehouse")}
    assert len(kept) > 50
    key_id, secret = (bucket.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    for name, data in kept.items():
        assert secret.encode() not in data, name
        assert key_id.encode() not in data, name
    assert secret not in plain.stdout + plain.stderr


def test_a_job_killed_on_an_object_store_resumes_there_beside_others_in_its_catalog(
    tmp_path: Path,
    settings: Settings,
    bucket: Any,
    key: bytes,
    plain: subprocess.CompletedProcess[str],
    released: Outcome,
    tree: Tree,
) -> None:
    config = on_s3(settings, "killed", key, bucket)
    # A publication begins anew when it is killed (it takes some 110 acts here), so the kills come at chosen ones: twice
    # among the tables, while the release is written here, and while it is uploaded.
    for act in (70, 70, 60, 100):
        assert run(config, bucket, tmp_path, act=act).returncode == KILLED
        # Without its card, what lies there is no release.
        assert "metadata.json" not in bucket.tree("killed")
    result = run(config, bucket, tmp_path, act=0)
    assert result.returncode == 0, result.stderr
    assert bucket.tree("killed") == tree(released.release.root)
    # Both workspaces have their rows in the one catalog, each exactly once.
    catalog = load_catalog("loopback", **bucket.catalog)
    for name, rows in (("photos", 12), ("faces", 12), ("surrogates", 2), ("link", 12)):
        table = catalog.load_table(("facecrowd", name))
        runs = [snapshot.summary.additional_properties["facecrowd.run"] for snapshot in table.snapshots()]
        counts = Counter(table.scan(selected_fields=("run",)).to_arrow()["run"].to_pylist())
        assert counts == dict.fromkeys(runs, rows)
        assert len(runs) == len(set(runs)) >= 2


def test_the_command_line_reads_and_writes_an_object_store(
    tmp_path: Path,
    flags: Callable[..., list[str]],
    bucket: Any,
    key: bytes,
    released: Outcome,
    tree: Tree,
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    bucket.put("line.workspace/run.key", key)
    arguments = flags("s3://private/line", "--input", "s3://private/photos", "--catalog", "loopback")
    result = command(*arguments, env=bucket.environment)
    assert result.returncode == 0, result.stderr
    assert bucket.tree("line") == tree(released.release.root)
    again = command(*arguments, env=bucket.environment)
    assert again.stdout.startswith("already released with these settings and inputs; nothing to do")
    audit = command("audit", "s3://private/line", "--workspace", "s3://private/line.workspace", env=bucket.environment)
    assert audit.returncode == 0, audit.stderr


def test_what_is_wrong_with_a_store_is_a_sentence(
    tmp_path: Path,
    flags: Callable[..., list[str]],
    bucket: Any,
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    nowhere = flags(tmp_path / "release", "--input", "s3://private/nowhere")
    nobody = {k: v for k, v in bucket.environment.items() if not k.startswith("AWS_")}
    nobody |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": bucket.environment["AWS_ENDPOINT_URL"]}
    nobody |= {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    unreachable = {**bucket.environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
    here = flags(tmp_path / "release", "--input", "s3://private/photos")
    for arguments, environment, message in (
        (nowhere, bucket.environment, "facecrowd: input s3://private/nowhere: no such folder\n"),
        (here, nobody, "s3://private/photos"),
        (here, unreachable, "s3://private/photos"),
    ):
        result = command(*arguments, env=environment)
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not list(tmp_path.iterdir())


def test_what_another_process_wrote_is_seen(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.use(monkeypatch)
    folder = Folder("s3://private/parts")
    bucket.put("parts/1", b"one")
    assert (folder.names(), folder.exists("2")) == (["1"], False)
    bucket.put("parts/2", b"two")
    assert (folder.names(), folder.exists("2"), folder.read("2")) == (["1", "2"], True, b"two")
    bucket.client.delete_object(Bucket="private", Key="parts/1")
    assert [name for name, _ in folder.files()] == ["2"]


def test_photos_that_changed_on_the_store_are_another_input(
    settings: Settings, bucket: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.use(monkeypatch)
    config = settings("unused", **{"input.path": "s3://private/photos"})
    before = listing(config.input, config.policy)
    first = before.photos[0].photo
    assert listing(config.input, config.policy) == before
    data = bucket.get(f"photos/{first}")
    try:
        bucket.put(f"photos/{first}", data[:-2] + b"xx")
        assert listing(config.input, config.policy) != before
    finally:
        bucket.put(f"photos/{first}", data)
