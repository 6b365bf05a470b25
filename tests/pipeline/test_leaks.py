"""Claims of pipeline/leaks.py: what was planted in a release is found, and a clean release has nothing to find."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from facecrowd.pipeline.leaks import Leak, scan
from facecrowd.pipeline.storage import Folder
from facecrowd.stages.encode import encode

PICTURE = encode(np.full((64, 64, 3), 90, np.uint8))


@pytest.fixture
def release(tmp_path: Path) -> Folder:
    """A folder as a release has it: two images, a manifest, two texts, one modification time."""
    folder = Folder(str(tmp_path / "release"))
    for name in ("aa", "bb"):
        folder.write(PICTURE, "images", f"{name}.jpg")
    table = {"name": ["aa", "bb"], "file": ["images/aa.jpg", "images/bb.jpg"], "identity": ["", ""]}
    pq.write_table(pa.table(table), folder.at("manifest.parquet"))
    folder.write(b"{}", "audit.json")
    folder.write(b"two images of two people called May and Rose", "README.md")
    return folder


def scanned(release: Folder, names: tuple[str, ...] = ("aa", "bb"), **known: Any) -> list[Leak]:
    for file in Path(release.root).rglob("*"):
        os.utime(file, (1, 1))
    images = [(name, release.read("images", f"{name}.jpg")) for name in names]
    expected = {"images/aa.jpg", "images/bb.jpg", "manifest.parquet", "audit.json", "README.md"}
    return scan(release, images, expected, **known)


def test_a_clean_release_has_none(release: Folder) -> None:
    sources = {"photos/may/1.jpg", "/data/photos/may/1.jpg", "1.jpg", "May", "Rose"}
    assert scanned(release, sources=sources, original_hashes={"0" * 64}) == []


@pytest.mark.parametrize("kind", ["EXIF", "ICC", "comment", "trailing data", "thumbnail"])
def test_metadata_in_an_image_is_found(release: Folder, kind: str) -> None:
    out = io.BytesIO()
    image = Image.open(io.BytesIO(PICTURE))
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    options = {"EXIF": {"exif": exif}, "ICC": {"icc_profile": b"profile"}, "comment": {"comment": b"who"}}
    image.save(out, "JPEG", **options.get(kind, {}))
    data = out.getvalue() if kind in options else PICTURE
    if kind == "trailing data":
        data += b"the original"
    if kind == "thumbnail":
        jfxx = b"JFXX\x00\x13\x01\x01\x00\x00\x00"
        data = data[:2] + b"\xff\xe0" + (len(jfxx) + 2).to_bytes(2, "big") + jfxx + data[2:]
    release.write(data, "images", "bb.jpg")
    (leak,) = scanned(release)
    assert (leak.kind, leak.where) == ("metadata", "bb")
    assert leak.what.startswith(kind)


def test_an_original_among_the_images_is_found(release: Folder) -> None:
    (leak,) = scanned(release, names=("aa",), original_hashes={hashlib.sha256(PICTURE).hexdigest()})
    assert (leak.kind, leak.where) == ("original pixels", "aa")


def test_an_extra_file_is_found(release: Folder) -> None:
    release.write(b"", "images", ".DS_Store")
    assert [(leak.kind, leak.where) for leak in scanned(release)] == [("unexpected file", "images/.DS_Store")]


def test_another_order_than_that_of_the_random_names_is_found(release: Folder) -> None:
    assert [leak.kind for leak in scanned(release, names=("bb", "aa"))] == ["order"]


def test_a_modification_time_of_its_own_is_found(release: Folder) -> None:
    scanned(release)
    os.utime(release.at("README.md"), (2, 2))
    images = [(name, PICTURE) for name in ("aa", "bb")]
    expected = {name for name, _ in release.files()}
    assert [leak.kind for leak in scan(release, images, expected)] == ["timestamps"]
    assert scan(release, images, expected, timestamps=False) == []


def test_a_source_file_named_in_a_text_is_found(release: Folder) -> None:
    release.write(b'{"worst": "may/1.jpg"}', "audit.json")
    (leak,) = scanned(release, sources={"may/1.jpg", "May"})
    assert (leak.kind, leak.where) == ("source name", "audit.json")
    assert "may/1.jpg" in leak.what


@pytest.mark.parametrize("column", ["name", "file", "identity"])
def test_a_subject_or_source_named_in_the_manifest_is_found(release: Folder, column: str) -> None:
    table = {"name": ["aa", "bb"], "file": ["images/aa.jpg", "images/bb.jpg"], "identity": ["", ""]}
    table[column] = ["May", "Rose"]
    pq.write_table(pa.table(table), release.at("manifest.parquet"))
    found = scanned(release, sources={"May", "Rose"})
    assert {(leak.kind, leak.where) for leak in found} == {("source name", "manifest.parquet")}
    assert len(found) == 2


OWNERS = {"aa": "brown", "bb": "rose"}


def with_hair(release: Folder, *hair: str) -> None:
    table = {"name": ["aa", "bb"], "file": ["images/aa.jpg", "images/bb.jpg"], "identity": ["", ""], "hair": list(hair)}
    pq.write_table(pa.table(table), release.at("manifest.parquet"))


def test_what_a_manifest_carries_beside_its_columns_is_found_but_for_the_releases_own_note(release: Folder) -> None:
    table = pq.read_table(release.at("manifest.parquet"))
    for metadata, found in (
        ({"facecrowd": "recognisers match"}, []),
        ({"source": "x"}, ["the table carries source"]),
        ({"facecrowd": "from /data/may.jpg"}, ["the table carries facecrowd"]),
    ):
        pq.write_table(table.replace_schema_metadata(metadata), release.at("manifest.parquet"))
        assert [leak.what for leak in scanned(release, sources={"/data/may.jpg"})] == found
    field = pa.field("name", pa.string(), metadata={"of": "rose"})
    pq.write_table(table.cast(pa.schema([field, *list(table.schema)[1:]])), release.at("manifest.parquet"))
    assert [leak.what for leak in scanned(release, sources={"/data/may.jpg"})] == ["column name carries of"]


@pytest.mark.parametrize("owners", [OWNERS, None])
def test_a_subject_named_by_an_attribute_is_found(release: Folder, owners: dict[str, str] | None) -> None:
    with_hair(release, "brown", "rose")
    leaks = scanned(release, sources={"brown", "rose"}, owners=owners)
    assert [(leak.kind, leak.where) for leak in leaks] == [("source name", "manifest.parquet")] * 2


def test_a_value_that_others_have_too_is_nobodys_name(release: Folder) -> None:
    with_hair(release, "brown", "brown")
    assert scanned(release, sources={"brown", "rose"}, owners=OWNERS) == []
    with_hair(release, "black", "brown")
    assert scanned(release, sources={"brown", "rose"}, owners=OWNERS) == []


@pytest.mark.parametrize("cells", [{"identity": "brown"}, {"identity": "", "celebrity": "brown"}])
def test_a_subject_named_beside_an_image_of_a_shard_is_found(release: Folder, cells: dict[str, str]) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        text = json.dumps(cells).encode()
        info = tarfile.TarInfo("aa.json")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    release.write(out.getvalue(), "images", "shard-00000.tar")
    for file in Path(release.root).rglob("*"):
        os.utime(file, (1, 1))
    expected = {name for name, _ in release.files()}
    (leak,) = scan(release, [], expected, sources={"brown"}, owners=OWNERS)
    assert (leak.kind, leak.where) == ("source name", "images/shard-00000.tar")
