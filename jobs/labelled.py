"""Labelled faces for training and evaluation: a folder of photos by subject, joined with a table of attributes.

The photos go through the pipeline's own detect and align stages, once; the crops are packed into one Parquet file
(JPEG, 60 MB for 4,700 faces at 256²) that travels to where training runs. The split is by *subject*: a person's name
decides, by a hash, whether all their faces serve the steering predictor, the judge, or the test.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from facecrowd.pipeline.errors import InputError
from facecrowd.stages.align import Align
from facecrowd.stages.attributes import ATTRIBUTES
from facecrowd.stages.decode import ReadPhotos, decode
from facecrowd.stages.detect import Detect
from facecrowd.stages.encode import Encode
from facecrowd.stages.models import resolve, sha256
from facecrowd.stages.stage import OK, Batch

SPLITS = {"steer": 0.45, "judge": 0.35, "test": 0.20}
"""Shares of the subjects. No subject is in two."""

QUALITY = 95
AT_ONCE = 64
TABLE = "celeba-attributes.parquet"
CACHE = Path.home() / ".cache" / "facecrowd" / "faces"
NOWHERE = Path("none")
"""Given as the cache: keep nothing."""
VERSION = 1
"""Grows when the same photos come to be other crops."""


@dataclass(frozen=True)
class Faces:
    """N faces. crop : JPEG bytes, FFHQ's alignment; subject : (N,) str; labels : (N, 40) float32, NaN where unknown."""

    name: np.ndarray
    subject: np.ndarray
    crop: list[bytes]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.crop)

    def take(self, rows: np.ndarray) -> Faces:
        """The faces at these positions, or where a mask is true."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Faces(self.name[rows], self.subject[rows], [self.crop[i] for i in rows], self.labels[rows])

    def of(self, *splits: str) -> Faces:
        """The faces of the subjects of these splits."""
        return self.take(np.isin(self.splits, splits))

    @cached_property
    def splits(self) -> np.ndarray:
        """(N,) str: the split of each face's subject."""
        return np.array([split(s) for s in self.subject])

    def folds(self, count: int) -> np.ndarray:
        """(N,) int: a fold per face, the same for all faces of a subject, folds of nearly equally many subjects."""
        people = sorted(set(self.subject.tolist()), key=lambda s: _uniform("fold", s))
        of = {person: i % count for i, person in enumerate(people)}
        return np.array([of[s] for s in self.subject.tolist()])

    def pixels(self) -> list[np.ndarray]:
        """The crops decoded, (S, S, 3) uint8 RGB."""
        return [decode(crop) for crop in self.crop]

    @property
    def fingerprint(self) -> str:
        """A hash of names, crops and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, np.float32).tobytes())
        for name, crop in zip(self.name.tolist(), self.crop, strict=True):
            digest.update(name.encode() + b"\0" + hashlib.sha256(crop).digest())
        return digest.hexdigest()

    @property
    def crops_sha256(self) -> str:
        """A hash of the crops alone, whatever their order: it tells a collection again and names nobody."""
        return hashlib.sha256(b"".join(sorted(hashlib.sha256(crop).digest() for crop in self.crop))).hexdigest()

    def write(self, file: Path) -> None:
        """Pack into one Parquet file, whole or not at all; it shows people, so it is the owner's alone."""
        table = pa.table(
            {
                "name": self.name.tolist(),
                "subject": self.subject.tolist(),
                "crop": self.crop,
                "labels": self.labels.tolist(),
            }
        )
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        partial.unlink(missing_ok=True)
        with open(partial, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
            pq.write_table(table, stream, compression="none")
        os.replace(partial, file)

    @classmethod
    def read(cls, file: Path) -> Faces:
        """What ``write`` packed. Raises InputError on another file."""
        try:
            table = pq.read_table(file, columns=["name", "subject", "crop", "labels"])
            labels = np.array(table["labels"].to_pylist(), np.float32).reshape(len(table), len(ATTRIBUTES))
        except (pa.ArrowException, ValueError) as error:
            raise InputError(f"{file}: not a file of faces that --pack wrote ({_line(error)})") from None
        name, subject = (np.array(table[c].to_pylist(), dtype=str) for c in ("name", "subject"))
        return cls(name, subject, table["crop"].to_pylist(), labels)


def split(subject: str) -> str:
    """steer, judge or test: a function of the name alone, so it holds on any machine and for any part of the data."""
    at = _uniform("split", subject)
    for name, portion in SPLITS.items():
        if at < portion:
            return name
        at -= portion
    return "test"


def _uniform(purpose: str, name: str) -> float:
    return int.from_bytes(hashlib.sha256(f"facecrowd {purpose} {name}".encode()).digest()[:6]) / 2**48


def faces(
    data: Path,
    table: Path | None = None,
    cache: Path | None = None,
    models: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Faces:
    """The faces of a folder ``<subject>/<photo>``, or of a packed file; of each photo the most prominent one.

    table : Parquet or CSV with image_id (``<photo>`` or ``<subject>/<photo>``) and the 40 attributes, each true or
        false, 1 or 0, or 1 or -1; by default ``celeba-attributes.parquet`` beside the folder; without one the labels
        are NaN
    cache : folder that keeps the aligned crops of these photos; None or NOWHERE keeps nothing

    Raises InputError when there is no photo, or the table cannot be read as such.
    """
    if data.is_file():
        return Faces.read(data)
    photos = sorted(p for p in data.glob("*/*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not photos:
        raise InputError(f"{data}: no photos in sub-folders, one per person")
    default = data.resolve().parent / TABLE
    table = table or (default if default.is_file() else None)
    name, subject = np.array([p.name for p in photos]), np.array([p.parent.name for p in photos])
    labels = _labels(table, name.tolist(), subject.tolist())
    packed = cache / f"faces-{_state(photos, models)}.parquet" if cache not in (None, NOWHERE) else None
    if packed is not None and packed.is_file():
        crops = Faces.read(packed).crop
    else:
        crops = _crops(photos, models, say)
        if packed is not None:
            Faces(name, subject, crops, np.full_like(labels, np.nan)).write(packed)
    kept = Faces(name, subject, crops, labels).take(np.array([bool(crop) for crop in crops]))
    say(f"faces: {len(kept)} of {len(photos)} photos, {len(set(kept.subject.tolist()))} people")
    return kept


def _state(photos: Sequence[Path], models: str | None) -> str:
    """What the crops depend on: the photos, the detector and how they are cut."""
    detector = sha256(resolve(Detect().detector, "detection", folder=models))
    told = [f"{p.parent.name}/{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in photos]
    return hashlib.sha256("\n".join([f"{VERSION} {detector} {QUALITY}", *told]).encode()).hexdigest()[:16]


def _crops(photos: Sequence[Path], models: str | None, say: Callable[[str], None]) -> list[bytes]:
    stages = (ReadPhotos(), Detect(folder=models), Align(), Encode(column="crop", quality=QUALITY))
    for stage in stages:
        stage.setup()
    crops: list[bytes] = []
    for start in range(0, len(photos), AT_ONCE):
        chosen = photos[start : start + AT_ONCE]
        batch: Batch = {"path": [str(p) for p in chosen]}
        for stage in stages:
            batch = stage(batch)
        best = {}
        for path, status, index, image in zip(
            batch["path"], batch["status"], batch["face_index"], batch["image"], strict=True
        ):
            if status == OK and index == 0:
                best[path] = image
        crops += [best.get(str(p), b"") for p in chosen]
        if start % (AT_ONCE * 10) == 0:
            say(f"detect and align: {start} of {len(photos)}")
    return crops


def _labels(table: Path | None, names: Sequence[str], subjects: Sequence[str]) -> np.ndarray:
    labels = np.full((len(names), len(ATTRIBUTES)), np.nan, np.float32)
    if table is None:
        return labels
    columns = ["image_id", *ATTRIBUTES]
    try:
        if table.suffix.lower() == ".csv":
            # An image_id of digits alone is a name too.
            kinds = csv.ConvertOptions(column_types={"image_id": pa.string()})
            read = csv.read_csv(table, convert_options=kinds)
            there = read.column_names
        else:
            there = pq.read_schema(table).names
        missing = sorted(set(columns) - set(there))
        if missing:
            raise InputError(f"{table}: lacks the columns {', '.join(missing)}")
        if table.suffix.lower() != ".csv":
            read = pq.read_table(table, columns=columns)
        values = np.stack([read[a].to_pandas().to_numpy(np.float32, na_value=np.nan) for a in ATTRIBUTES], axis=1)
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise InputError(f"{table}: not a Parquet or CSV table of attributes ({_line(error)})") from None
    if not np.isin(values[~np.isnan(values)], (-1, 0, 1)).all():
        raise InputError(f"{table}: an attribute is neither true nor false (1 or 0, or 1 or -1)")
    row = {str(name): i for i, name in enumerate(read["image_id"].to_pylist())}
    count = Counter(names)
    for i, (subject, name) in enumerate(zip(subjects, names, strict=True)):
        # A photo's name alone tells it only where no other person has a photo of that name.
        at = row.get(f"{subject}/{name}", row.get(name, -1) if count[name] == 1 else -1)
        if at >= 0:
            labels[i] = np.maximum(values[at], 0)
    return labels


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
