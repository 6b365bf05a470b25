"""Labelled faces for training and evaluation: a folder of photos by subject, joined with a table of attributes.

The photos go through the pipeline's own detect and align stages, once; the crops are packed into one Parquet file
(JPEG, 60 MB for 4,700 faces at 256²) that travels to where training runs. The split is by *subject*: a person's name
decides, by a hash, whether all their faces serve the steering predictor, the judge, or the test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facecrowd.pipeline.errors import InputError
from facecrowd.stages.align import Align
from facecrowd.stages.attributes import ATTRIBUTES
from facecrowd.stages.decode import ReadPhotos, decode
from facecrowd.stages.detect import Detect
from facecrowd.stages.encode import Encode
from facecrowd.stages.stage import OK, Batch

SPLITS = {"steer": 0.45, "judge": 0.35, "test": 0.20}
"""Shares of the subjects. No subject is in two."""

QUALITY = 95
AT_ONCE = 64
TABLE = "celeba-attributes.parquet"
CACHE = Path.home() / ".cache" / "facecrowd" / "faces"


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
        """A hash of names and crops."""
        digest = hashlib.sha256()
        for name, crop in zip(self.name.tolist(), self.crop, strict=True):
            digest.update(name.encode() + b"\0" + hashlib.sha256(crop).digest())
        return digest.hexdigest()

    def write(self, file: Path) -> None:
        """Pack into one Parquet file."""
        table = pa.table(
            {
                "name": self.name.tolist(),
                "subject": self.subject.tolist(),
                "crop": self.crop,
                "labels": self.labels.tolist(),
            }
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file, compression="none")

    @classmethod
    def read(cls, file: Path) -> Faces:
        """What ``write`` packed."""
        table = pq.read_table(file)
        labels = np.array(table["labels"].to_pylist(), np.float32).reshape(len(table), len(ATTRIBUTES))
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

    table : Parquet with image_id and the 40 attributes, by default ``celeba-attributes.parquet`` beside the folder;
        without one the labels are NaN. cache : folder that keeps the packed file of this folder and table.

    Raises InputError when the folder holds no photo or the table lacks an attribute.
    """
    if data.is_file():
        return Faces.read(data)
    photos = sorted(p for p in data.glob("*/*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not photos:
        raise InputError(f"{data}: no photos in sub-folders, one per person")
    table = table or (data.parent / TABLE if (data.parent / TABLE).is_file() else None)
    packed = cache / f"faces-{_state(photos, table)}.parquet" if cache else None
    if packed is not None and packed.is_file():
        return Faces.read(packed)
    labels = _labels(table, [p.name for p in photos])
    found = Faces(
        np.array([p.name for p in photos]),
        np.array([p.parent.name for p in photos]),
        _crops(photos, models, say),
        labels,
    )
    kept = found.take(np.array([bool(crop) for crop in found.crop]))
    say(f"faces: {len(kept)} of {len(photos)} photos, {len(set(kept.subject.tolist()))} people")
    if packed is not None:
        kept.write(packed)
    return kept


def _state(photos: Sequence[Path], table: Path | None) -> str:
    told = [f"{p.parent.name}/{p.name} {p.stat().st_size}" for p in photos] + [table.name if table else ""]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _crops(photos: Sequence[Path], models: str | None, say: Callable[[str], None]) -> list[bytes]:
    stages = (ReadPhotos(), Detect(folder=models), Align(), Encode(column="crop", quality=QUALITY))
    for stage in stages:
        stage.setup()
    crops: list[bytes] = []
    for start in range(0, len(photos), AT_ONCE):
        chosen = photos[start : start + AT_ONCE]
        batch: Batch = {"path": [str(p) for p in chosen], "photo_name": [p.name for p in chosen]}
        for stage in stages:
            batch = stage(batch)
        best = {}
        for i, (name, status, index) in enumerate(
            zip(batch["photo_name"], batch["status"], batch["face_index"], strict=True)
        ):
            if status == OK and index == 0:
                best[name] = batch["image"][i]
        crops += [best.get(p.name, b"") for p in chosen]
        if start % (AT_ONCE * 10) == 0:
            say(f"detect and align: {start} of {len(photos)}")
    return crops


def _labels(table: Path | None, names: Sequence[str]) -> np.ndarray:
    labels = np.full((len(names), len(ATTRIBUTES)), np.nan, np.float32)
    if table is None:
        return labels
    missing = sorted(set(ATTRIBUTES) - set(pq.read_schema(table).names))
    if missing:
        raise InputError(f"{table}: lacks the columns {', '.join(missing)}")
    read = pq.read_table(table, columns=["image_id", *ATTRIBUTES])
    at = {name: i for i, name in enumerate(read["image_id"].to_pylist())}
    values = np.stack([read[a].to_numpy() for a in ATTRIBUTES], axis=1).astype(np.float32)
    rows = np.array([at.get(name, -1) for name in names])
    labels[rows >= 0] = values[rows[rows >= 0]]
    return labels
