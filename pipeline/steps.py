"""The steps of a release that touch pixels: for each, its source, its stages and its sink, all picklable.

detect      photos → ReadPhotos, Detect, Align, [Attributes], Embed, Encode → faces
average     members + crops → Average, Encode, Judge, [Attributes] → surrogates          (k-same)
render      faces + plan (+ surrogates) → [DecodeCrop, Obscure, Encode, Judge, [Attributes]] → rendered
blend       photos + faces + rendered → ReadPhotos, Blend, Encode → rendered_photos      (output: photo)
look        faces + plan → Attributes → originals                                        (where there is a judge)

Attributes are inferred only where a predictor is named; its networks are imported only then.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from facecrowd.pipeline.config import Detect as DetectConfig
from facecrowd.pipeline.config import Method
from facecrowd.pipeline.publish import read_images
from facecrowd.pipeline.schema import ATTRIBUTES, EMBEDDING_SIZE
from facecrowd.pipeline.storage import Folder, Parts
from facecrowd.stages.align import Align
from facecrowd.stages.average import Average
from facecrowd.stages.blend import Blend
from facecrowd.stages.decode import DecodeImages, ReadPhotos
from facecrowd.stages.detect import Detect
from facecrowd.stages.embed import Embed
from facecrowd.stages.encode import Encode
from facecrowd.stages.judge import Judge
from facecrowd.stages.obscure import Blur, Mask, Noise, Obscure, Pixelate
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import OK, Batch, Stage, rows

CLASSES_PER_PART = 32
IMAGES_PER_PART = 64
PHOTOS_AT_ONCE = 4
"""Photos in a worker's memory: decoded, 20 megapixels are 60 MB."""
CROP_QUALITY = 95
"""Of the crops kept in the workspace: high, because they are encoded once more for a release."""


# ---------------------------------------------------------------------------------------------------------- detect


@dataclass(frozen=True)
class PhotoSource:
    photos: Parts

    def __call__(self, part: int) -> Batch:
        return _named(self.photos.read(part, ["photo", "path"]))


@dataclass(frozen=True)
class FaceSink:
    faces: Parts
    key: RunKey

    def __call__(self, part: int, batch: Batch) -> int:
        names, index = batch["photo_name"], [int(i) for i in batch["face_index"]]
        found = [s == OK or i >= 0 for s, i in zip(batch["status"], index, strict=True)]
        return self.faces.write(
            part,
            {
                "face_id": [self.key.token("face", f"{n}#{i}", 32) for n, i in zip(names, index, strict=True)],
                "photo": names,
                "part": [part] * len(names),
                "face_index": index,
                "faces_in_photo": batch["faces_in_photo"],
                "status": list(batch["status"]),
                "reason": list(batch["reason"]),
                "photo_width": batch["photo_width"],
                "photo_height": batch["photo_height"],
                "box": _where(found, batch["box"]),
                "landmarks": _where(found, batch["landmarks"]),
                "score": [float(s) if f else None for f, s in zip(found, batch["score"], strict=True)],
                "matrix": _where([s == OK for s in batch["status"]], batch["matrix"]),
                "crop": list(batch["image"]),
                "embedding": _where([s == OK for s in batch["status"]], batch["embedding"]),
                "attributes": _probabilities(batch),
            },
        )


def detect_stages(config: DetectConfig, predictor: str | None = None) -> tuple[Stage, ...]:
    return (
        ReadPhotos(max_pixels=config.max_pixels),
        Detect(
            config.detector,
            size=config.detection_size or "auto",
            threshold=config.threshold,
            cover_threshold=config.cover_threshold,
            min_face=config.min_face,
            folder=config.models,
        ),
        Align(crop_size=config.crop_size),
        *attributes(config, predictor, column="crop"),
        Embed(config.recogniser, folder=config.models),
        Encode(column="crop", quality=CROP_QUALITY),
    )


# --------------------------------------------------------------------------------------------------------- average


@dataclass(frozen=True)
class MemberSource:
    """The crops of the classes of one part, grouped by class and subject."""

    members: Parts
    faces: Parts

    def __call__(self, part: int) -> Batch:
        table = self.members.read(part)
        crops = self._crops(table["part"].to_numpy(), table["row"].to_numpy())
        classes = table["class_id"].to_numpy()
        people = np.asarray(table["subject_id"].to_pylist(), dtype=object)
        ids = np.unique(classes)
        grouped = []
        for class_id in ids:
            rows = np.flatnonzero(classes == class_id)
            grouped.append([[crops[r] for r in rows if people[r] == s] for s in sorted(set(people[rows]))])
        return {
            "class_id": ids,
            "crops": grouped,
            "subjects": np.array([len(g) for g in grouped]),
            "faces": np.array([sum(len(s) for s in g) for g in grouped]),
        }

    def _crops(self, parts: np.ndarray, rows: np.ndarray) -> list[bytes]:
        crops: list[bytes] = [b""] * len(parts)
        for part in np.unique(parts):
            where = np.flatnonzero(parts == part)
            table = self.faces.read_rows(int(part), [int(r) for r in rows[where]], ["crop"])
            for position, crop in zip(where, table["crop"].to_pylist(), strict=True):
                crops[position] = crop
        return crops


@dataclass(frozen=True)
class SurrogateSink:
    surrogates: Parts

    def __call__(self, part: int, batch: Batch) -> int:
        names = ("class_id", "subjects", "faces", "image", "detected", "embedding")
        return self.surrogates.write(
            part, {**{name: batch[name] for name in names}, "attributes": _probabilities(batch)}
        )


def average_stages(config: DetectConfig, quality: int, predictor: str | None = None) -> tuple[Stage, ...]:
    return (
        Average(size=config.crop_size),
        Encode(column="rendered", quality=quality),
        *judges(config, predictor),
    )


def judges(config: DetectConfig, predictor: str | None = None, column: str = "image") -> tuple[Stage, ...]:
    """What looks at released pixels: the run's own detector and recogniser, and the judge of attributes if any."""
    found = Judge(config.recogniser, config.detector, threshold=config.threshold, folder=config.models, column=column)
    return (found, *attributes(config, predictor, column))


def attributes(config: DetectConfig, predictor: str | None, column: str) -> tuple[Stage, ...]:
    """The stage that infers attributes, where a predictor is named."""
    if predictor is None:
        return ()
    # The networks behind it take a second to import, which a run without attributes need not spend.
    from facecrowd.stages.attributes import Attributes

    return (Attributes(predictor, column, config.models),)


# ---------------------------------------------------------------------------------------------------------- render


@dataclass(frozen=True)
class SurrogateSource:
    """Every planned face with its class's surrogate, already encoded and judged once per class."""

    plan: Parts
    surrogates: Parts

    def __call__(self, part: int) -> Batch:
        table = self.plan.read(part, ["face_id", "photo", "status", "reason", "class_id"])
        batch = _named(table)
        classes = table["class_id"].to_numpy()
        faces = Faces.empty(len(table))
        for shard in np.unique(classes[classes >= 0] // CLASSES_PER_PART):
            where = np.flatnonzero((classes >= 0) & (classes // CLASSES_PER_PART == shard))
            wanted = np.unique(classes[where])
            found = self.surrogates.read_rows(
                int(shard), [int(c) % CLASSES_PER_PART for c in wanted], ["class_id", *(f.name for f in fields(Faces))]
            )
            assert found["class_id"].to_pylist() == wanted.tolist()
            for row in where:
                faces.set(int(row), found, int(np.searchsorted(wanted, classes[row])))
        return {**batch, **faces.columns()}


@dataclass
class Faces:
    """Rendered faces being gathered."""

    image: list[bytes | None]
    detected: list[bool | None]
    embedding: list[Any]
    attributes: list[Any]

    @classmethod
    def empty(cls, rows: int) -> Faces:
        return cls([None] * rows, [None] * rows, [None] * rows, [None] * rows)

    def set(self, row: int, found: pa.Table, at: int) -> None:
        for name, column in self.columns().items():
            column[row] = found[name][at].as_py()

    def columns(self) -> Batch:
        return dict(vars(self))


@dataclass(frozen=True)
class CropSource:
    """Every planned face with its own crop."""

    plan: Parts
    faces: Parts

    def __call__(self, part: int) -> Batch:
        batch = _named(self.plan.read(part, ["face_id", "photo", "status", "reason"]))
        own = self.faces.read(part, ["crop", "landmarks", "matrix"])
        return {
            **batch,
            "crop_image": own["crop"].to_pylist(),
            "landmarks": _floats(own["landmarks"].to_pylist(), 10),
            "matrix": _floats(own["matrix"].to_pylist(), 6),
        }


@dataclass(frozen=True)
class RenderedSink:
    rendered: Parts
    size: int

    def __call__(self, part: int, batch: Batch) -> int:
        ok = [s == OK for s in batch["status"]]
        return self.rendered.write(
            part,
            {
                "face_id": batch["face_id"],
                "photo": batch["photo_name"],
                "status": list(batch["status"]),
                "reason": list(batch["reason"]),
                "image": _where(ok, batch["image"]),
                "width": [self.size if o else None for o in ok],
                "height": [self.size if o else None for o in ok],
                "detected": [bool(d) if o else None for o, d in zip(ok, batch["detected"], strict=True)],
                "embedding": _where(ok, batch["embedding"]),
                "attributes": _probabilities(batch),
            },
        )


def obscure_stages(
    config: DetectConfig, method: Method, quality: int, key: RunKey, predictor: str | None = None
) -> tuple[Stage, ...]:
    how: dict[str, Blur | Pixelate | Mask | Noise] = {
        "blur": Blur(method.sigma),
        "pixelate": Pixelate(method.blocks),
        "mask": Mask(method.mask),
        "noise": Noise(method.gamma, method.noise_sigma, method.invert),
    }
    return (
        DecodeImages("crop_image", "crop"),
        Obscure(how[method.name], key),
        Encode(column="rendered", quality=quality),
        *judges(config, predictor),
    )


# ----------------------------------------------------------------------------------------------------------- blend


@dataclass(frozen=True)
class BlendSource:
    """One row per detection of each photo, with the rendered face where it gets one."""

    photos: Parts
    faces: Parts
    rendered: Parts

    def __call__(self, part: int) -> Batch:
        paths = self.photos.read(part, ["photo", "path"])
        path_of = dict(zip(paths["photo"].to_pylist(), paths["path"].to_pylist(), strict=True))
        batch = _named(self.faces.read(part, ["photo", "face_id", "box", "landmarks", "matrix"]))
        batch |= _named(self.rendered.read(part, ["status", "reason", "image"]))
        names = batch["photo_name"]
        # A weak detection is not ok, yet its photo is read and the face covered.
        return {
            **batch,
            "path": [path_of[name] for name in names],
            "face_status": batch["status"],
            "status": [OK] * len(names),
            "reason": [""] * len(names),
            **{name: _floats(batch[name], size) for name, size in (("box", 4), ("landmarks", 10), ("matrix", 6))},
        }


@dataclass(frozen=True)
class PhotoSink:
    rendered_photos: Parts

    def __call__(self, part: int, batch: Batch) -> int:
        ok = [s == OK for s in batch["status"]]
        shapes = [p.shape if o else None for o, p in zip(ok, batch["blended"], strict=True)]
        return self.rendered_photos.write(
            part,
            {
                "photo": batch["photo_name"],
                "status": list(batch["status"]),
                "reason": list(batch["reason"]),
                "image": _where(ok, batch["image"]),
                "width": [s[1] if s else None for s in shapes],
                "height": [s[0] if s else None for s in shapes],
                "replaced": _where(ok, batch["faces_replaced"]),
                "covered": _where(ok, batch["faces_covered"]),
            },
        )


def blend_stages(config: DetectConfig, quality: int) -> tuple[Stage, ...]:
    return (
        ReadPhotos(max_pixels=config.max_pixels),
        DecodeImages("image", "rendered"),
        Blend(key="path"),
        Encode(column="blended", quality=quality),
    )


@dataclass(frozen=True)
class BlendedSource:
    """Every released face of the released photos, where the original lay."""

    faces: Parts
    rendered: Parts
    rendered_photos: Parts

    def __call__(self, part: int) -> Batch:
        photos = self.rendered_photos.read(part, ["photo", "status", "reason", "image"]).to_pylist()
        by_name = {photo["photo"]: photo for photo in photos}
        batch = _named(self.rendered.read(part, ["face_id", "photo", "status", "reason"]))
        of = [by_name[name] for name in batch["photo_name"]]
        # A photo that failed takes its faces with it.
        for row, photo in enumerate(of):
            if batch["status"][row] == OK and photo["status"] != OK:
                batch["status"][row], batch["reason"][row] = photo["status"], photo["reason"]
        landmarks = self.faces.read(part, ["landmarks"])["landmarks"].to_pylist()
        return {**batch, "image": [photo["image"] for photo in of], "landmarks": _floats(landmarks, 10)}


@dataclass(frozen=True)
class JudgedSink:
    """The rendered faces as seen in the released photos; the pixels are the photo's."""

    rendered: Parts
    size: int

    def __call__(self, part: int, batch: Batch) -> int:
        return RenderedSink(self.rendered, self.size)(part, {**batch, "image": [None] * len(batch["face_id"])})


def judge_photo_stages(config: DetectConfig, predictor: str | None = None) -> tuple[Stage, ...]:
    return (
        DecodeImages("image", "photo"),
        Align(crop_size=config.crop_size),
        *judges(config, predictor, column="crop"),
    )


# ------------------------------------------------------------------------------------------------------------ look


@dataclass(frozen=True)
class LookSource:
    """The original crop of every face that is released."""

    plan: Parts
    faces: Parts

    def __call__(self, part: int) -> Batch:
        batch = _named(self.plan.read(part, ["face_id", "status", "reason"]))
        return {**batch, "crop": self.faces.read(part, ["crop"])["crop"].to_pylist()}


@dataclass(frozen=True)
class LookSink:
    originals: Parts

    def __call__(self, part: int, batch: Batch) -> int:
        same = {name: list(batch[name]) for name in ("face_id", "status", "reason")}
        return self.originals.write(part, {**same, "attributes": _probabilities(batch)})


# ----------------------------------------------------------------------------------------------------------- audit


@dataclass(frozen=True)
class ReleasedSource:
    """The faces of a published release, from its files, by the private link."""

    release: Folder
    link: Parts
    faces: Parts

    def __call__(self, part: int) -> Batch:
        link = self.link.read(part)
        shown = {(row["name"], row["file"]): row for row in link.select(["name", "file"]).to_pylist()}
        image_of = dict(read_images(self.release, list(shown.values())))
        landmarks = np.full((len(link), 10), np.nan, np.float32)
        parts = link["part"].to_numpy()
        for source in np.unique(parts):
            where = np.flatnonzero(parts == source)
            found = self.faces.read_rows(int(source), link["row"].to_numpy()[where].tolist(), ["landmarks"])
            landmarks[where] = _floats(found["landmarks"].to_pylist(), 10)
        batch = _named(link.select(["face_id", "photo"]))
        image = [image_of[name] for name in link["name"].to_pylist()]
        return {**batch, "status": [OK] * len(link), "reason": [""] * len(link), "image": image, "landmarks": landmarks}


# --------------------------------------------------------------------------------------------------------- columns


def _where(keep: list[bool], values: Any) -> list[Any]:
    """The values, None where they do not count."""
    return [value if k else None for k, value in zip(keep, values, strict=True)]


def _probabilities(batch: Batch) -> list[Any]:
    """The attributes of a batch; None where nothing was predicted."""
    if "attributes" not in batch:
        return [None] * rows(batch)
    found = zip(batch.get("status", [OK] * rows(batch)), batch["attributes"], strict=True)
    return [cell if status == OK and cell is not None else None for status, cell in found]


def _floats(cells: list[Any], size: int) -> np.ndarray:
    """(N, size) float32; NaN where a cell is null."""
    return np.array([[np.nan] * size if cell is None else cell for cell in cells], dtype=np.float32).reshape(-1, size)


def _named(table: pa.Table) -> Batch:
    """The columns of a manifest as a batch, where ``photo`` is kept for pixels: the name becomes ``photo_name``."""
    return {"photo_name" if name == "photo" else name: table[name].to_pylist() for name in table.column_names}


def embedding_array(column: pa.ChunkedArray) -> np.ndarray:
    """(N, 512) float32; zeros where a row has none."""
    return _vectors(column, EMBEDDING_SIZE, 0.0)


def attribute_array(column: pa.ChunkedArray) -> np.ndarray:
    """(N, 40) float32 probabilities; NaN where a row has none."""
    return _vectors(column, ATTRIBUTES, np.nan)


def _vectors(column: pa.ChunkedArray, width: int, missing: float) -> np.ndarray:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    out = np.full((len(array), width), missing, dtype=np.float32)
    valid = np.asarray(array.is_valid())
    out[valid] = array.drop_null().flatten().to_numpy().reshape(-1, width)
    return out
