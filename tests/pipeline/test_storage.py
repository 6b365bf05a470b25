"""Claims of pipeline/storage.py: a part is there whole or not at all, and its rows are committed exactly once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facecrowd.pipeline.errors import ConfigError, StoreError, WorkspaceError
from facecrowd.pipeline.schema import MEMBERS, PHOTOS, SURROGATES, Manifest
from facecrowd.pipeline.storage import NAMESPACE, ROW_GROUP, Folder, Parts, Workspace, fingerprint, without_password


def members(count: int, start: int = 0) -> dict[str, Any]:
    numbers = np.arange(start, start + count, dtype=np.int32)
    return {"class_id": numbers, "subject_id": [f"s{n}" for n in numbers], "part": numbers, "row": numbers}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "work"))


@pytest.fixture
def parts(workspace: Workspace) -> Parts:
    with workspace.locked():
        workspace.create()
    return workspace.parts(MEMBERS, "run-1")


def counted(workspace: Workspace) -> dict[str, int]:
    table = workspace.catalog().load_table((NAMESPACE, "members"))
    runs = table.scan().to_arrow()["run"].to_pylist()
    return {run: runs.count(run) for run in set(runs)}


# ---------------------------------------------------------------------------------------------------------- folders


def test_a_write_that_fails_leaves_nothing_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write(b"before", "a", "file")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for name in ("file", "other"):
        with pytest.raises(OSError, match="No space left"):
            folder.write(b"after", "a", name)
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "a").iterdir()] == [("file", b"before")]


def test_files_are_listed_sorted_and_relative(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "x/"))
    assert folder.names() == []
    for name in ("b", "a/z", "a/b"):
        folder.write(b"", *name.split("/"))
    assert [name for name, _ in folder.files()] == ["a/b", "a/z", "b"]
    assert folder.names() == ["a", "b"]


def test_a_full_disk_is_told_by_the_file_that_found_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left") as told:
        Folder(str(tmp_path)).write(b"more", "file")
    assert told.value.filename == str(tmp_path / "file")


def test_joined_urls_are_refused_for_another_folder_would_be_meant() -> None:
    with pytest.raises(ConfigError, match="joins URLs"):
        Folder("out::release").exists()


@pytest.mark.parametrize("url", ["https://bob:S3CRET@host/photos", "s3://KEY:S3CRET@bucket/x", "nope://a:S3CRET@b"])
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    for asked in (lambda: Folder(url).exists(), lambda: Workspace("work", url).check()):
        with pytest.raises(ConfigError, match=r"environment|PYICEBERG_CATALOG") as told:
            asked()
        assert "S3CRET" not in str(told.value)


def test_a_user_in_a_url_is_no_password() -> None:
    without_password("abfs://container@account.dfs.core.windows.net/photos")
    without_password("ssh://bob@host/photos")
    without_password("photos/a:b@c/d")


def test_a_url_that_nothing_serves_is_named() -> None:
    with pytest.raises(ConfigError, match="nope://x: Protocol not known: nope"):
        Folder("nope://x").exists()


def test_what_a_store_raises_is_one_of_our_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder("memory://somewhere")

    class NoCredentialsError(Exception):
        pass

    def refuse(*_: object) -> None:
        raise NoCredentialsError("Unable to locate\ncredentials")

    monkeypatch.setattr(type(folder.fs), "cat_file", refuse)
    with pytest.raises(StoreError) as error:
        folder.read("x")
    assert str(error.value) == "memory://somewhere: cannot be reached: NoCredentialsError: Unable to locate credentials"


# ------------------------------------------------------------------------------------------------------------ parts


def test_the_bytes_of_a_part_follow_from_its_rows(parts: Parts, tmp_path: Path) -> None:
    other = Parts(Folder(str(tmp_path / "other")), MEMBERS, "run-1")
    for place in (parts, other):
        assert place.write(3, members(40)) == 40
    assert parts.folder.read(parts.name(3)) == other.folder.read(other.name(3))


def test_a_damaged_part_is_made_again(parts: Parts) -> None:
    for part in range(3):
        parts.write(part, members(4))
    file = Path(parts.folder.at(parts.name(1)))
    file.write_bytes(file.read_bytes()[:-20])
    (file.parent / "part-000002.parquet.7-abc.tmp").write_bytes(b"half")
    assert parts.done() == {0, 2}


def test_single_rows_come_in_the_order_asked_from_the_groups_that_hold_them(parts: Parts) -> None:
    parts.write(0, members(5 * ROW_GROUP))
    rows = [ROW_GROUP * 3 + 1, 0, 4 * ROW_GROUP, ROW_GROUP - 1, ROW_GROUP * 3]
    assert parts.read_rows(0, rows, ["row"])["row"].to_pylist() == rows


def test_all_parts_come_in_the_order_of_their_numbers(parts: Parts) -> None:
    for part in (2, 0, 1):
        parts.write(part, members(2, start=2 * part))
    assert parts.read_all(3, ["row"])["row"].to_pylist() == [0, 1, 2, 3, 4, 5]


def nulls(manifest: Manifest, rows: int) -> dict[str, list[None]]:
    """Every column of a manifest, empty."""
    return {column.name: [None] * rows for column in manifest.columns if column.name != "run"}


def test_embeddings_and_maps_keep_their_values(workspace: Workspace) -> None:
    vectors = np.random.Generator(np.random.Philox(1)).standard_normal((2, 512)).astype(np.float32)
    surrogates = workspace.parts(SURROGATES, "r")
    columns = {"class_id": [0, 1], "subjects": [3, 3], "faces": [3, 4], "image": [b"a", None], "detected": [True, None]}
    columns |= {"variant": [0, 0], "face_id": ["", ""], "status": ["ok", "failed"], "reason": ["", "why"]}
    columns["realised"] = [{"Male": True}, {}]
    columns |= {"embedding": [vectors[0], None], "attributes": [None, [0.5] * 40]}
    surrogates.write(0, {**nulls(SURROGATES, 2), **columns})
    found = surrogates.read(0)["embedding"].to_pylist()
    assert np.array_equal(np.float32(found[0]), vectors[0])
    assert found[1] is None
    photos = workspace.parts(PHOTOS, "r")
    named = {"photo": ["a"], "path": ["/a"], "bytes": [1], "subject": ["s"], "attributes": [{"b": "2", "a": "1"}]}
    photos.write(0, named)
    assert photos.read(0)["attributes"].to_pylist() == [[("a", "1"), ("b", "2")]]


# ---------------------------------------------------------------------------------------------------------- commits


def test_a_run_is_committed_exactly_once(workspace: Workspace, parts: Parts) -> None:
    for part in range(3):
        parts.write(part, members(5))
    assert not workspace.committed(MEMBERS, "run-1")
    for _ in range(3):
        workspace.commit(parts, 3)
    assert workspace.committed(MEMBERS, "run-1")
    assert counted(workspace) == {"run-1": 15}
    second = workspace.parts(MEMBERS, "run-2")
    second.write(0, members(2))
    workspace.commit(second, 1)
    assert counted(workspace) == {"run-1": 15, "run-2": 2}
    assert len(workspace.catalog().load_table((NAMESPACE, "members")).snapshots()) == 2


def test_a_run_with_missing_parts_is_not_committed(workspace: Workspace, parts: Parts) -> None:
    parts.write(0, members(5))
    with pytest.raises(WorkspaceError, match="members: 2 of 3 parts are missing; run it again"):
        workspace.commit(parts, 3)
    assert not workspace.committed(MEMBERS, "run-1")


def test_a_workspace_of_an_earlier_version_takes_manifests_with_more_columns(workspace: Workspace) -> None:
    with workspace.locked():
        workspace.create()
    fewer = Manifest("surrogates", SURROGATES.row, tuple(c for c in SURROGATES.columns if c.name != "attributes"))
    row = {"class_id": [0], "subjects": [3], "faces": [3], "image": [b"a"], "detected": [True], "embedding": [None]}
    row |= {"variant": [0], "face_id": [""], "status": ["ok"], "reason": [""], "realised": [{}]}
    for manifest, run, more in ((fewer, "old", {}), (SURROGATES, "new", {"attributes": [[0.5] * 40]})):
        parts = workspace.parts(manifest, run)
        parts.write(0, {**nulls(manifest, 1), **row, **more})
        workspace.commit(parts, 1)
    table = workspace.catalog().load_table((NAMESPACE, "surrogates")).scan().to_arrow()
    found = dict(zip(table["run"].to_pylist(), table["attributes"].to_pylist(), strict=True))
    assert found == {"old": None, "new": [0.5] * 40}


def test_a_run_is_named_by_all_that_decides_it_in_any_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [2, "x"]}) == fingerprint({"b": [2, "x"], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"}) != fingerprint({"a": 1}, None)
    assert len(fingerprint(json)) == 16


# ------------------------------------------------------------------------------------------------------------- lock


def test_one_job_holds_a_workspace_at_a_time(workspace: Workspace) -> None:
    with workspace.locked():
        with pytest.raises(WorkspaceError, match="another job is using it") as error, workspace.locked():
            pass
        assert error.value.exit_code == 3
    with workspace.locked():
        assert workspace.create() == workspace.create()


def test_a_key_never_shows_in_a_message(workspace: Workspace) -> None:
    with workspace.locked():
        key = workspace.create()
    assert key.secret.hex() not in repr(key) + repr(workspace)


def test_a_workspace_on_an_object_store_needs_a_named_catalog() -> None:
    with pytest.raises(ConfigError, match="SQLite cannot live on an object store"):
        Workspace("memory://work").check()
    with pytest.raises(ConfigError, match="no PyIceberg catalog of this name is configured"):
        Workspace("memory://work", "unheard-of").check()


# ------------------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize(
    "every", [pytest.param(61, id="every 61st byte"), pytest.param(3, id="every 3rd byte", marks=pytest.mark.slow)]
)
def test_no_flipped_bit_of_a_part_goes_unseen(parts: Parts, every: int) -> None:
    """It is read as it was written, or not at all."""
    parts = Parts(parts.folder, SURROGATES, parts.run)
    crops = [np.random.default_rng(i).bytes(700) for i in range(2)]
    parts.write(0, {field.name: [None, None] for field in SURROGATES.arrow} | {"image": crops, "class_id": [3, 4]})
    file = Path(parts.folder.at(parts.name(0)))
    whole, written, seen = parts.read(0), file.read_bytes(), 0
    assert crops == whole["image"].to_pylist()
    for at in range(0, len(written), every):
        damaged = bytearray(written)
        damaged[at] ^= 1 << at % 8
        file.write_bytes(damaged)
        # What is not there at all is told by the one who asks for it.
        for columns in (None, whole.column_names):
            try:
                found = parts.read(0, columns)
            except WorkspaceError as error:
                assert str(file) in str(error)  # noqa: PT017 - which of the two it is follows from the byte
                seen += 1
            else:
                assert all(found[name].equals(whole[name]) for name in found.column_names)
                assert columns is None or found.column_names == columns
                assert len(found) == 2
    assert seen > len(range(0, len(written), every)) / 2
    file.write_bytes(written[: len(written) // 2])
    with pytest.raises(WorkspaceError, match=r"damaged .*; remove this file and start again to have it made anew"):
        parts.read_rows(0, [1], ["image"])


def test_a_part_that_is_cut_short_is_there_but_not_done(parts: Parts) -> None:
    for part in range(3):
        parts.write(part, members(3))
    file = Path(parts.folder.at(parts.name(1)))
    file.write_bytes(file.read_bytes()[:-1])
    assert parts.done() == {0, 2}
    assert parts.there() == {0, 1, 2}
