"""Claims of jobs/forget.py: a workspace is destroyed whole, key first, and nothing outside of it is touched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyiceberg.catalog import load_catalog
from pyiceberg.utils.config import Config

from facecrowd.jobs import forget as forgetting
from facecrowd.jobs.forget import forget
from facecrowd.pipeline.errors import ConfigError, WorkspaceError
from facecrowd.pipeline.schema import MEMBERS
from facecrowd.pipeline.storage import NAMESPACE, Workspace

Tree = Callable[[Path | str], dict[str, bytes]]


def fill(workspace: Workspace, run: str) -> None:
    """A run key, and one committed run of one table in two parts."""
    with workspace.locked():
        workspace.create()
    parts = workspace.parts(MEMBERS, run)
    for part in range(2):
        numbers = np.arange(3, dtype=np.int32)
        people = [f"{run}-{n}" for n in numbers]
        parts.write(part, {"class_id": numbers, "subject_id": people, "part": numbers, "row": numbers})
    workspace.commit(parts, 2)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workspace as a release leaves it, with what audits add."""
    workspace = Workspace(str(tmp_path / "work"))
    fill(workspace, "0123456789abcdef")
    for name in ("releases/a.json", "perturbations/a.png", "audits/a/identity.parquet"):
        workspace.folder.write(b"{}", *name.split("/"))
    return tmp_path / "work"


# --------------------------------------------------------------------------------------------------------- the whole


def test_without_yes_it_says_what_it_would_destroy_and_touches_nothing(work: Path, tree: Tree) -> None:
    before = tree(work)
    report, lines = forget(str(work))
    assert tree(work) == before
    assert not report["destroyed"]
    assert not report["met"]
    assert "the run key, 1 tables with 1 runs" in lines[0]
    assert lines[-1] == "nothing was destroyed; give --yes to destroy it"
    json.dumps(report)


def test_with_yes_nothing_of_the_workspace_is_left_and_nothing_beside_it_is_touched(
    work: Path, tmp_path: Path, tree: Tree
) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "manifest.parquet").write_bytes(b"released")
    report, lines = forget(str(work), yes=True)
    assert not work.exists()
    assert tree(tmp_path) == {"release/manifest.parquet": b"released"}
    assert report["destroyed"]
    assert report["met"]
    said = "\n".join(lines)
    for promise in ("overwritten before it was deleted", "copy-on-write", "no later release can be planned against it"):
        assert promise in said


def test_the_run_key_is_overwritten_on_the_disk_before_anything_else_is_deleted(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = (work / "run.key").read_bytes()
    seen = os.open(work / "run.key", os.O_RDONLY)  # the blocks that were the key's, whatever becomes of its name

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(forgetting, "_withdraw", stop)
    with pytest.raises(KeyboardInterrupt):
        forget(str(work), yes=True)
    assert not (work / "run.key").exists()
    assert (work / "tables").exists()
    left = os.pread(seen, 1000, 0)
    os.close(seen)
    assert len(left) == len(secret)
    assert left != secret


def test_one_that_is_killed_at_any_step_is_finished_by_the_next(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(work, tmp_path / "copy", symlinks=True)
    shutil.rmtree(work)
    steps: list[str] = []
    killed_at = [0]

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def act(*arguments: Any, **options: Any) -> Any:
            steps.append(name)
            if len(steps) == killed_at[0]:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, act)

    counted(forgetting, "_destroy_key")
    counted(forgetting, "_withdraw")
    counted(forgetting, "_remove")
    counted(Path, "unlink")
    counted(Path, "rmdir")
    kills = 0
    for killed_at[0] in range(1, 100):
        shutil.copytree(tmp_path / "copy", work)
        steps.clear()
        try:
            forget(str(work), yes=True)
        except KeyboardInterrupt:
            kills += 1
            steps[:] = [""] * 1000
            if work.exists() and os.listdir(work):
                report, _ = forget(str(work), yes=True)
                assert report["met"]
        else:
            break
        if work.exists():  # killed between its last file and the folder itself
            work.rmdir()
    assert kills > 10
    assert not work.exists()


def test_what_a_release_and_its_audit_leave_is_known_to_be_ours(released: Any) -> None:
    assert forgetting.survey(Workspace(released.workspace.url)).key


# ----------------------------------------------------------------------------------------------------------- refused


def test_what_is_no_workspace_is_refused(tmp_path: Path, work: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(ConfigError, match="nothing is there"):
        forget(str(tmp_path / "photos"), yes=True)
    with pytest.raises(ConfigError, match="nothing is there"):
        forget(str(tmp_path / "nowhere"), yes=True)
    (tmp_path / "photos" / "ann.jpg").write_bytes(b"a photo")
    with pytest.raises(ConfigError, match="is it a facecrowd workspace"):
        forget(str(tmp_path / "photos"), yes=True)
    assert (tmp_path / "photos" / "ann.jpg").exists()
    assert not (tmp_path / "photos" / "lock").exists()
    # A folder above one is none either, so a slip of the hand takes nothing with it.
    with pytest.raises(ConfigError, match="is it a facecrowd workspace"):
        forget(str(tmp_path), yes=True)
    assert (work / "run.key").exists()


def test_what_facecrowd_did_not_put_there_stops_it(work: Path, tree: Tree) -> None:
    (work / "thesis.tex").write_text("mine")
    before = tree(work)
    with pytest.raises(ConfigError, match=r"holds thesis.tex, which facecrowd did not put there; move it away"):
        forget(str(work), yes=True)
    assert tree(work) == before
    (work / "thesis.tex").unlink()
    (work / "run.key.123-abcdef01.tmp").write_text("half")  # of a job that was killed while it drew the key
    assert forget(str(work), yes=True)[0]["met"]


def test_a_workspace_that_a_job_holds_is_not_touched(work: Path, tree: Tree) -> None:
    with Workspace(str(work)).locked():
        before = tree(work)
        with pytest.raises(WorkspaceError, match="a job is using it; nothing was destroyed") as refused:
            forget(str(work), yes=True)
        assert tree(work) == before
    assert refused.value.exit_code == 3
    assert forget(str(work), yes=True)[0]["met"]


def test_a_workspace_that_an_audit_or_a_sweep_reads_is_not_touched(work: Path) -> None:
    with Workspace(str(work)).used(), Workspace(str(work)).used():
        with pytest.raises(WorkspaceError, match="a job is using it; nothing was destroyed"):
            forget(str(work), yes=True)
        assert (work / "run.key").exists()
        with Workspace(str(work)).locked():  # which keeps no release from being made
            pass
    assert forget(str(work), yes=True)[0]["met"]


# ------------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("where", ["tables/elsewhere", "audits", "warehouse/deep"])
def test_links_are_removed_and_never_followed(work: Path, tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.tmp").write_text("keep me")
    link = work / where
    if link.is_dir():
        shutil.rmtree(link)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    report, lines = forget(str(work), yes=True)
    assert not work.exists()
    assert (outside / "precious.tmp").read_text() == "keep me"
    # What it pointed to may be private, and is still there: said, and told by the exit code.
    assert not report["met"]
    assert f"LEFT: {where} is a symbolic link: it is removed, what lies at {outside} is not" in lines


@pytest.mark.parametrize("name", ["lock", "run.key", "forgetting"])
def test_a_link_in_the_place_of_its_own_files_overwrites_nothing(work: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "precious").write_text("keep me")
    (work / name).unlink(missing_ok=True)
    (work / name).symlink_to(tmp_path / "precious")
    if name == "lock":
        with pytest.raises(WorkspaceError, match="its lock cannot be opened"):
            forget(str(work), yes=True)
        assert (work / "run.key").exists()
    else:
        assert not forget(str(work), yes=True)[0]["met"]
    assert (tmp_path / "precious").read_text() == "keep me"


def test_a_workspace_named_by_a_link_is_refused(work: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(work)
    with pytest.raises(ConfigError, match="is a symbolic link; name the folder that it leads to"):
        forget(str(tmp_path / "link"), yes=True)
    assert (work / "run.key").exists()


def test_files_with_other_names_are_said_to_stay(work: Path, tmp_path: Path) -> None:
    os.link(work / "releases" / "a.json", tmp_path / "backup.json")
    report, lines = forget(str(work), yes=True)
    assert not report["met"]
    assert "LEFT: 1 files have other names (hard links), under which they stay" in lines


# ------------------------------------------------------------------------------------------------- a catalog outside


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A SQLite catalog that two workspaces share."""
    (tmp_path / "catalog").mkdir()
    properties = {
        "type": "sql",
        "uri": f"sqlite:///{tmp_path}/catalog/shared.db",
        "warehouse": f"file://{tmp_path}/catalog",
    }
    for name, value in properties.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__OUTSIDE__{name.upper()}", value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # which it reads when it is imported
    for name, run in (("a", "aaaaaaaaaaaaaaaa"), ("b", "bbbbbbbbbbbbbbbb")):
        fill(Workspace(str(tmp_path / name), "outside"), run)
    return load_catalog("outside", **properties)


def rows(catalog: Any) -> list[str]:
    return sorted(set(catalog.load_table((NAMESPACE, "members")).scan().to_arrow()["run"].to_pylist()))


def test_a_shared_catalog_gives_up_the_rows_of_this_workspace_and_no_others(outside: Any, tmp_path: Path) -> None:
    assert len(rows(outside)) == 2
    report, lines = forget(str(tmp_path / "a"), catalog="outside", yes=True)
    assert report["met"]
    assert any("older snapshots and metadata files still list the files of this workspace" in line for line in lines)
    # The other workspace reads its rows as before, and knows what it committed.
    assert rows(outside) == ["bbbbbbbbbbbbbbbb"]
    assert Workspace(str(tmp_path / "b"), "outside").committed(MEMBERS, "bbbbbbbbbbbbbbbb")
    assert forget(str(tmp_path / "b"), catalog="outside", yes=True)[0]["met"]
    assert outside.list_tables(NAMESPACE) == []


def test_a_catalog_outside_that_nobody_names_is_asked_for(outside: Any, tmp_path: Path) -> None:
    _, lines = forget(str(tmp_path / "a"))
    assert any("no catalog of its own is in it" in line and "name it with --catalog" in line for line in lines)
    with pytest.raises(ConfigError, match="no PyIceberg catalog of this name"):
        forget(str(tmp_path / "a"), catalog="unheard-of", yes=True)
    assert (tmp_path / "a" / "run.key").exists()


def test_one_killed_while_the_catalog_is_asked_is_finished_by_the_next(
    outside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "_remove_tree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            forget(str(tmp_path / "a"), catalog="outside", yes=True)
    assert rows(outside) == ["bbbbbbbbbbbbbbbb"]
    assert forget(str(tmp_path / "a"), catalog="outside", yes=True)[0]["met"]
    assert rows(outside) == ["bbbbbbbbbbbbbbbb"]


def test_what_a_shared_catalog_still_tells_is_what_is_said(outside: Any, tmp_path: Path) -> None:
    """The warning is no figure of speech: after the forgetting a person's name is still in the old manifests."""
    forget(str(tmp_path / "a"), catalog="outside", yes=True)
    table = outside.load_table((NAMESPACE, "members"))
    first = next(snapshot for snapshot in table.snapshots() if snapshot.summary["facecrowd.run"] == "a" * 16)
    entries = [e for m in first.manifests(table.io) for e in m.fetch_manifest_entry(table.io, discard_deleted=False)]
    bounds = {bound for entry in entries for bound in entry.data_file.lower_bounds.values()}
    assert b"aaaaaaaaaaaaaaaa" in bounds  # truncated to 16 bytes, as people's names would be


# --------------------------------------------------------------------------------------------------- an object store


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client of an S3 server on loopback with the bucket ``private``, and a catalog ``s3`` for its tables."""
    server_module = pytest.importorskip("moto.server", reason="the S3 server of the tests is moto's")
    pytest.importorskip("s3fs")
    import boto3
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint, access = f"http://{host}:{port}", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    for name in access:
        monkeypatch.setenv(name, "loopback")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    catalog = {"TYPE": "sql", "URI": f"sqlite:///{tmp_path}/catalog.db", "WAREHOUSE": "s3://private/warehouse"}
    catalog |= {"S3__ENDPOINT": endpoint, "S3__ACCESS_KEY_ID": "loopback", "S3__SECRET_ACCESS_KEY": "loopback"}
    for name, value in {**catalog, "S3__REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__S3__{name}", value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="private")
    yield client
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def keys(client: Any) -> list[str]:
    return [item["Key"] for item in client.list_objects_v2(Bucket="private").get("Contents", [])]


def test_a_workspace_on_an_object_store_goes_with_its_rows_and_metadata_that_others_need_stay(bucket: Any) -> None:
    for name, run in (("a", "a" * 16), ("b", "b" * 16)):
        fill(Workspace(f"s3://private/{name}", "s3"), run)
    bucket.put_object(Bucket="private", Key="a-released/manifest.parquet", Body=b"released")
    with pytest.raises(ConfigError, match="name it with --catalog NAME"):
        forget("s3://private/a", yes=True)
    # The first workspace of a catalog holds the metadata of its tables.
    report, lines = forget("s3://private/a", catalog="s3", yes=True)
    assert not report["met"]
    assert any(line.startswith("LEFT: iceberg/members: the metadata of a table") for line in lines)
    assert {key.split("/")[1] for key in keys(bucket) if key.startswith("a/")} == {"iceberg", "forgetting"}
    assert rows(load_catalog("s3")) == ["b" * 16]
    assert forget("s3://private/b", catalog="s3", yes=True)[0]["met"]
    # With nobody left who needs it, the rest goes too.
    assert forget("s3://private/a", catalog="s3", yes=True)[0]["met"]
    assert keys(bucket) == ["a-released/manifest.parquet"]


def test_a_bucket_that_keeps_versions_is_said_to_keep_the_key(bucket: Any) -> None:
    workspace = Workspace("s3://private/a", "s3")
    fill(workspace, "a" * 16)
    secret = workspace.folder.read("run.key")
    assert not any("versions" in line for line in forget("s3://private/a", catalog="s3")[1])
    bucket.put_bucket_versioning(Bucket="private", VersioningConfiguration={"Status": "Enabled"})
    bucket.put_object(Bucket="private", Key="a/run.key", Body=secret)
    _, lines = forget("s3://private/a", catalog="s3", yes=True)
    assert any("the run key and every object are still there as older versions" in line for line in lines)
    # And there it is.
    versions = bucket.list_object_versions(Bucket="private", Prefix="a/run.key")["Versions"]
    bodies = [bucket.get_object(Bucket="private", Key="a/run.key", VersionId=v["VersionId"]) for v in versions]
    assert secret in [body["Body"].read() for body in bodies]
