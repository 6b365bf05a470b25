"""Publishing: the release folder, written beside its final place and moved there whole.

Images get random names (HMAC of the run key) and lie in the order of those names; every file carries the same
modification time; ``metadata.json``, the Croissant description that lists all other files with their hashes, is written
last: a folder without it is no release.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import yaml

from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.errors import ConfigError, ReleaseError
from facecrowd.pipeline.leaks import NOTE
from facecrowd.pipeline.schema import RELEASED, SHARD
from facecrowd.pipeline.storage import Folder, to_parquet

FILES_UP_TO = 50_000
"""format: auto writes single JPEG files up to this many images, Parquet shards beyond."""

MODIFIED = 315_532_800
"""1980-01-01 UTC: the modification time of every released file, so that times say nothing (and zip can hold it)."""

MANIFEST, AUDIT, CONFIG, README, CARD, LICENCES = (
    "manifest.parquet",
    "audit.json",
    "release.yaml",
    "README.md",
    "metadata.json",
    "LICENCES.md",
)


@dataclass(frozen=True)
class Image:
    """One image to release. ``name`` is its random name; ``attributes`` the released values."""

    name: str
    data: bytes
    width: int
    height: int
    identity: str
    attributes: dict[str, str]


def storage_format(config: ReleaseConfig, images: int) -> str:
    """files, parquet or webdataset."""
    if config.release.format != "auto":
        return config.release.format
    return "files" if images <= FILES_UP_TO else "parquet"


def check_target(config: ReleaseConfig, ours: bool) -> None:
    """Refuse an output that holds something else. ``ours``: this run reached its publication before.

    Raises ConfigError.
    """
    target = Folder(str(config.release.path))
    if target.local is not None and target.local.is_file():
        raise ConfigError(f"output {config.release.path}: a file is in the way")
    # A local release is moved there whole, so without its card what is there is somebody else's.
    if target.names() and not (ours and (target.local is None or target.exists(CARD))):
        raise ConfigError(
            f"output {config.release.path}: not empty, and not this run's; choose another folder or remove it first"
        )


class Publication:
    """A release being written. Use: ``write_images``, ``write_texts``, then ``finish``."""

    def __init__(self, target: Folder, scratch: Path) -> None:
        self.target = target
        local = target.local
        # Until it is scanned it is nowhere that others look: hidden beside its final place, or here, not yet uploaded.
        self.staging = Folder(
            str(local.parent / f".{local.name}.partial" if local is not None else scratch / "release")
        )
        self.scratch = scratch
        self.hashes: dict[str, str] = {}
        self.rows: list[dict[str, Any]] = []
        self.staging.remove()
        if local is not None:
            local.parent.mkdir(parents=True, exist_ok=True)

    def _write(self, data: bytes, name: str) -> None:
        self.staging.write(data, *name.split("/"))
        self.hashes[name] = hashlib.sha256(data).hexdigest()

    def write_images(
        self, images: Iterator[Image], count: int, form: str, shard_images: int, note: str | None = None
    ) -> None:
        """Store the images in the order of their names, whatever order they come in, in bounded memory.

        note : what a reader of the manifest must know, kept in its metadata
        """
        shards = max(1, -(-count // shard_images))
        for shard, members in enumerate(self._sorted_shards(images, shards)):
            if form == "files":
                # In the order of the names too: a file system remembers in which order files were made.
                for image in members:
                    file = f"images/{image.name}.jpg"
                    self.staging.write(image.data, *file.split("/"))
                    self._row(image, file)
                continue
            file = f"images/shard-{shard:05d}.{'parquet' if form == 'parquet' else 'tar'}"
            self._write((_parquet_shard if form == "parquet" else _tar_shard)(members), file)
            for image in members:
                self._row(image, file)
        names = [row["name"] for row in self.rows]
        if len(set(names)) != len(names):
            raise ReleaseError("two images drew the same random name")
        attributes = sorted({a for row in self.rows for a in row["attributes"]})
        schema = RELEASED.arrow
        columns = {field.name: [row[field.name] for row in self.rows] for field in schema}
        table = pa.table(columns, schema=schema)
        for attribute in attributes:
            table = table.append_column(attribute, pa.array([row["attributes"].get(attribute) for row in self.rows]))
        if note:
            table = table.replace_schema_metadata({NOTE: note})
        self._write(to_parquet(table), MANIFEST)

    def _row(self, image: Image, file: str) -> None:
        self.rows.append(
            {
                "name": image.name,
                "file": file,
                "width": image.width,
                "height": image.height,
                "sha256": hashlib.sha256(image.data).hexdigest(),
                "identity": image.identity,
                "attributes": image.attributes,
            }
        )

    def _sorted_shards(self, images: Iterator[Image], shards: int) -> Iterator[list[Image]]:
        """External bucket sort by name: names are uniform, so the leading digits share them out evenly."""
        folder = self.scratch / "shards"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        schema = pa.schema(
            [
                ("name", pa.string()),
                ("data", pa.binary()),
                ("width", pa.int32()),
                ("height", pa.int32()),
                ("identity", pa.string()),
                ("attributes", pa.string()),
            ]
        )
        writers = [pa.ipc.new_stream(str(folder / f"{i}.arrow"), schema) for i in range(shards)]
        for image in images:
            bucket = int(image.name[:12], 16) * shards >> 48
            row = [image.name, image.data, image.width, image.height, image.identity, json.dumps(image.attributes)]
            writers[bucket].write_batch(
                pa.record_batch([pa.array([v], type=f.type) for v, f in zip(row, schema, strict=True)], schema=schema)
            )
        for writer in writers:
            writer.close()
        for i in range(shards):
            with pa.ipc.open_stream(str(folder / f"{i}.arrow")) as reader:
                rows = reader.read_all().to_pylist()
            yield sorted(
                (Image(**{**row, "attributes": json.loads(row["attributes"])}) for row in rows), key=lambda m: m.name
            )
        shutil.rmtree(folder)

    def write_text(self, name: str, text: str) -> None:
        self._write(text.encode(), name)

    def finish(self, config: ReleaseConfig, title: str, description: str) -> str:
        """Write the card, set the times, move the folder into place or upload it. Returns the card's SHA-256."""
        card = json.dumps(self._card(config, title, description), indent=1, sort_keys=True) + "\n"
        self.staging.write(card.encode(), CARD)
        self.stamp()
        if self.target.exists(CARD) and self.target.local is not None:
            # A job that was killed right after the move, before its record said so.
            if self.target.read(CARD) != card.encode():
                raise ReleaseError(f"release {self.target.url}: changed since it was published; remove it first")
            self.staging.remove()
        elif self.target.local is not None:
            try:
                os.replace(self.staging.root, self.target.local)
            except OSError as error:  # by the name of what is moved, which nobody knows
                raise ReleaseError(
                    f"release {self.target.url}: cannot be moved there ({error.strerror}); make way and start again"
                ) from None
        else:
            # An object store cannot move a folder; the card, uploaded last, is what makes it a release.
            for name in (*sorted(self.expected()), CARD):
                self.target.write(self.staging.read(*name.split("/")), *name.split("/"))
        return hashlib.sha256(card.encode()).hexdigest()

    def stamp(self) -> None:
        """Give every file written so far the one modification time."""
        for folder, _, files in os.walk(self.staging.root, topdown=False):
            for name in files:
                os.utime(Path(folder) / name, (MODIFIED, MODIFIED))
            os.utime(folder, (MODIFIED, MODIFIED))

    def expected(self) -> set[str]:
        """Every file of the release but the card."""
        return set(self.hashes) | {row["file"] for row in self.rows}

    def images(self) -> Iterator[tuple[str, bytes]]:
        """The images as written, in the manifest's order."""
        return read_images(self.staging, self.rows)

    def _card(self, config: ReleaseConfig, title: str, description: str) -> dict[str, Any]:
        objects: list[dict[str, Any]] = [
            {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "encodingFormat": _encoding(name),
                "sha256": digest,
            }
            for name, digest in sorted(self.hashes.items())
        ]
        if not any(name.startswith("images/") for name in self.hashes):
            objects.append(
                {
                    "@type": "cr:FileSet",
                    "@id": "images",
                    "name": "images",
                    "description": "One JPEG file per released image; manifest.parquet holds the hash of each.",
                    "encodingFormat": "image/jpeg",
                    "includes": "images/*.jpg",
                }
            )
        schema = pq.read_schema(pa.BufferReader(self.staging.read(MANIFEST)))
        meanings = {column.name: column.meaning for column in RELEASED.columns}
        fields = [
            {
                "@type": "cr:Field",
                "@id": f"{MANIFEST}/{field.name}",
                "name": field.name,
                "description": meanings.get(field.name, "released value of this attribute"),
                "dataType": "sc:Integer" if pa.types.is_integer(field.type) else "sc:Text",
                "source": {"fileObject": {"@id": MANIFEST}, "extract": {"column": field.name}},
            }
            for field in schema
        ]
        return {
            "@context": CROISSANT_CONTEXT,
            "@type": "sc:Dataset",
            "conformsTo": "http://mlcommons.org/croissant/1.0",
            "name": title,
            "description": description,
            "license": config.release.licence,
            "version": "1.0.0",
            "distribution": objects,
            "recordSet": [{"@type": "cr:RecordSet", "@id": "images-table", "name": "images-table", "field": fields}],
        }


def read_images(release: Folder, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """The images of a release as (name, JPEG bytes), in the order of ``rows`` of its manifest; one shard at a time."""
    shard, held = "", {}
    for row in rows:
        file = row["file"]
        if file.endswith(".jpg"):
            yield row["name"], release.read(*file.split("/"))
            continue
        if file != shard:
            shard, held = file, _read_shard(release.read(*file.split("/")), file)
        if row["name"] not in held:
            raise ReleaseError(f"{file}: holds no image {row['name']}")
        yield row["name"], held[row["name"]]


def _read_shard(data: bytes, file: str) -> dict[str, bytes]:
    if file.endswith(".parquet"):
        table = pq.read_table(pa.BufferReader(data), use_threads=False, pre_buffer=False)
        return dict(zip(table["name"].to_pylist(), table["image"].to_pylist(), strict=True))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:  # ours are not packed, and a bomb would be
        members = [m for m in tar.getmembers() if m.name.endswith(".jpg")]
        return {m.name.removesuffix(".jpg"): tar.extractfile(m).read() for m in members}  # type: ignore[union-attr]


def _parquet_shard(images: Sequence[Image]) -> bytes:
    table = pa.table({"name": [i.name for i in images], "image": [i.data for i in images]}, schema=SHARD.arrow)
    return to_parquet(table, row_group=256)


def _tar_shard(images: Sequence[Image]) -> bytes:
    """WebDataset: ``<name>.jpg`` and ``<name>.json`` side by side."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image in images:
            text = json.dumps({"identity": image.identity, **image.attributes}, sort_keys=True).encode()
            for suffix, data in (("jpg", image.data), ("json", text)):
                info = tarfile.TarInfo(f"{image.name}.{suffix}")
                info.size, info.mtime, info.mode = len(data), MODIFIED, 0o644
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _encoding(name: str) -> str:
    kinds = {
        ".parquet": "application/x-parquet",
        ".json": "application/json",
        ".md": "text/markdown",
        ".yaml": "application/yaml",
        ".tar": "application/x-tar",
    }
    return kinds[Path(name).suffix]


def config_text(config: ReleaseConfig) -> str:
    """The effective config as it travels with the release: nothing private in it."""
    return yaml.safe_dump(config.public(), sort_keys=False)


CROISSANT_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context every Croissant 1.0 file carries (MLCommons Croissant 1.0 specification, appendix)."""
