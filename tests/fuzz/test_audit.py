"""Claims of what reads releases of others: whatever a card, a manifest or an audit holds, it is one line or a release,
and nothing is read from outside of the folder."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from facecrowd.jobs.audit import _baseline, _checked
from facecrowd.jobs.compare import KEYS, compare, markdown, read_audit
from facecrowd.pipeline.errors import ReleaseError, WorkspaceError
from facecrowd.pipeline.publish import AUDIT, CARD, MANIFEST
from facecrowd.pipeline.record import Record
from facecrowd.pipeline.storage import Folder

FUZZ = settings.get_profile("fuzz")
FEW = settings(FUZZ, max_examples=FUZZ.max_examples // 4)
Mutated = Callable[[bytes], st.SearchStrategy[bytes]]

IMAGE = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
AUDITED: dict[str, Any] = {
    "classes": {"effective_k": 5.0},
    "counts": {"released_images": 1, "subjects_released": 1, "distinct_faces": 1},
    "detection_rate": 1.0,
    "guarantee": {"kind": "formal", "text": "."},
    "identity": {},
    "leaks": [],
    "met": True,
    "method": "k-same",
    "reidentification": [{"gallery": "originals", "rank1_per_subject": 0.1, "low": 0.0, "high": 0.2}],
    "requirements": [{"name": "k", "asked": 5, "found": 5, "met": True, "kind": "formal", "note": ""}],
}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def manifest(**changes: list[Any]) -> bytes:
    return parquet(pa.table({"name": ["a"], "file": ["images/a.jpg"], "sha256": [digest(IMAGE)], **changes}))


def release(place: Path, rows: bytes, files: dict[str, bytes], listed: dict[str, str] | None = None) -> Folder:
    """A release of these files, all of which its card lists by their hashes."""
    files = {"images/a.jpg": IMAGE, AUDIT: json.dumps(AUDITED).encode(), MANIFEST: rows, **files}
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    objects = {name: digest(data) for name, data in files.items()} | (listed or {})
    card = [{"@type": "cr:FileObject", "contentUrl": name, "sha256": value} for name, value in objects.items()]
    (place / CARD).write_text(json.dumps({"distribution": card}))
    return Folder(str(place))


def whole(folder: Folder) -> bool:
    """Whether all of a release is as it says; what is not is one line."""
    said = None
    try:
        _checked(folder)
    except ReleaseError as error:
        said = str(error)
    assert said is None or (said and said.isprintable()), said
    return said is None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("releases")
    (place / "secret.jpg").write_bytes(IMAGE)
    return place


def test_the_sound_release_is_whole(place: Path) -> None:
    assert whole(release(place / "sound", manifest(), {}))


OUTSIDE = ["../secret.jpg", "images/../../secret.jpg", "./images/a.jpg", "images//a.jpg", "", ".", "..", "a\0.jpg"]
OUTSIDE += [
    "images/a.jpg/",
    "images/a.jpg/b.jpg",
    "images",
    "file:///etc/passwd",
    "simplecache::http://localhost/x.jpg",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_row_and_no_card_names_a_file_outside_of_the_release(name: str, place: Path) -> None:
    assert not whole(release(place / "row", manifest(file=[name]), {}))
    assert not whole(release(place / "card", manifest(), {}, {name: digest(IMAGE)}))
    absolute = str(place / "secret.jpg")
    assert not whole(release(place / "absolute", manifest(file=[absolute]), {}, {absolute: digest(IMAGE)}))


values = st.sampled_from([None, True, 0, 1.5, "", "a", "images/a.jpg", "\u202e", b"\xff", [], ["a"], {"a": 1}, [[1]]])


@FUZZ
@given(column=st.sampled_from(["name", "file", "sha256", "more"]), value=values, rows=st.sampled_from([0, 1, 2]))
def test_a_manifest_of_other_types_is_one_line(column: str, value: Any, rows: int, place: Path) -> None:
    columns = {"name": ["a"] * rows, "file": ["images/a.jpg"] * rows, "sha256": [digest(IMAGE)] * rows}
    whole(release(place / "typed", parquet(pa.table({**columns, column: pa.array([value] * rows)})), {}))


@FUZZ
@given(data=st.data())
def test_a_damaged_file_of_a_release_is_one_line(data: st.DataObject, place: Path, mutated: Mutated) -> None:
    folder = release(place / "damaged", manifest(), {})
    name = data.draw(st.sampled_from([CARD, MANIFEST, AUDIT, "images/a.jpg"]))
    (place / "damaged" / name).write_bytes(data.draw(mutated((place / "damaged" / name).read_bytes())))
    whole(folder)
    # What a stranger published so is listed so.
    rows = data.draw(mutated(manifest()))
    whole(release(place / "published", rows, {}))


def test_a_shard_that_is_none_is_one_line(place: Path, pickled: Callable[[Path], bytes]) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../secret.jpg"
        tar.addfile(link)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    shards = [b"", b"no archive", out.getvalue(), packed.getvalue(), pickled(place / "loaded"), parquet(pa.table({}))]
    for number, shard in enumerate(shards):
        for kind in ("tar", "parquet"):
            name = f"images/{number}.{kind}"
            assert not whole(release(place / "shard", manifest(file=[name]), {name: shard}))
    assert not (place / "loaded").exists()


# ------------------------------------------------------------------------------------------------------ audit.json


def compared(place: Path, text: bytes) -> None:
    (place / "told").mkdir(exist_ok=True)
    (place / "told" / AUDIT).write_bytes(text)
    (place / "told" / "audit.json").write_bytes(text)
    for reader in (
        lambda: markdown(compare([str(place / "told")])),
        lambda: read_audit(Folder(str(place / "told"))),
        lambda: _baseline(str(place / "told")),
    ):
        said = ""
        try:
            reader()
        except ReleaseError as error:
            said = str(error)
        assert said.isprintable()


leaves = st.sampled_from([None, True, 0, -1, 1e308, 10**400, float("nan"), "", "x|y\nz", "<script>", "\u202e", [], {}])


@FUZZ
@given(key=st.sampled_from(sorted(KEYS)), inner=st.none() | st.text(max_size=3), value=leaves)
@example(key="counts", inner="released_images", value="x|y\nz")
def test_an_audit_of_other_types_is_one_line(key: str, inner: str | None, value: Any, place: Path) -> None:
    old = AUDITED[key]
    if inner is not None and isinstance(old, dict):
        value = {**old, **dict.fromkeys(old, value), inner: value}
    elif inner is not None and isinstance(old, list) and old:
        value = [{**old[0], **dict.fromkeys(old[0], value)}]
    compared(place, json.dumps({**AUDITED, key: value}).encode())


@FUZZ
@given(data=st.data())
@example(data=None)
def test_a_damaged_audit_is_one_line(data: st.DataObject | None, place: Path, mutated: Mutated) -> None:
    for text in (b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"\xff", b"", b"null", b'{"figures": [1]}'):
        compared(place, text)
    if data is not None:
        compared(place, data.draw(mutated(json.dumps(AUDITED).encode())))


def test_a_name_stays_in_its_cell_of_markdown(place: Path) -> None:
    (place / "x").mkdir()
    (place / "x" / AUDIT).write_text(json.dumps({**AUDITED, "method": "=cmd|' /C calc'!A0\n| injected | row |\u202e"}))
    (row,) = markdown(compare([str(place / "x")])).splitlines()[2:]
    assert row.replace("\\|", "").count("|") == markdown(compare([str(place / "x")])).splitlines()[0].count("|")
    assert row.isprintable()


# ---------------------------------------------------------------------------------------------------------- record


@FEW
@given(data=st.data())
@example(data=None)
def test_a_damaged_record_is_one_line(data: st.DataObject | None, place: Path, mutated: Mutated) -> None:
    sound = {"card": "c", "config": {}, "runs": {}, "parts": 1, "counts": {"photos": 1, "named": 1}}
    sound |= {"subjects_from": "folder", "split_rate": None, "merged": 0}
    (place / "releases").mkdir(exist_ok=True)
    (place / "releases" / "r").write_text(json.dumps(sound))
    assert Record.read(Folder(str(place)), "releases/r").card == "c"
    texts = [b"", b"[]", b"null", b"{}", b"\xff", json.dumps({**sound, "config": 5}).encode()]
    if data is not None:
        texts = [data.draw(mutated(json.dumps(sound).encode()))]
    for text in texts:
        (place / "releases" / "r").write_bytes(text)
        said = "x"
        try:
            Record.read(Folder(str(place)), "releases/r")
        except WorkspaceError as error:
            said = str(error)
        assert said.isprintable()
