"""The steps of a release that touch pixels: for each, its source, its stages and its sink, all picklable.

detect      photos → ReadPhotos, Detect, Align, [Attributes], Embed, Encode → faces
sample      some rows of the next step, rendered → Encode → sample                       (perturb: universal)
fit         sample → Fit → perturbation                                                  (perturb: universal)
surrogates  members + crops (+ plan) → Surrogate | Average, *shown → surrogates          (k-same)
render      faces + plan (+ surrogates) → [DecodeCrop, [Obscure | DeepBlur | Inpaint | [Regions], Translate], *shown]
            → rendered
blend       photos + faces + rendered → ReadPhotos, Blend, Encode → rendered_photos      (output: photo)
look        faces + plan → Attributes → originals                                        (where there is a judge)

*shown is Encode, Judge, [Attributes]; where faces are perturbed they are shown twice, before and after.

Attributes are inferred only where a predictor is named; its networks, and the generator's, are imported only then.

On a GPU all stages of a step share one actor (``together``): it loads the generator once, and a picture goes from the
generator to whatever alters it, to the encoder of files and to the judges without leaving the actor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from facecrowd.pipeline.attributes import truth
from facecrowd.pipeline.config import CLOAK, Method
from facecrowd.pipeline.config import Detect as DetectConfig
from facecrowd.pipeline.config import Perturb as PerturbConfig
from facecrowd.pipeline.presets import predictable
from facecrowd.pipeline.publish import read_images
from facecrowd.pipeline.schema import ATTRIBUTES
from facecrowd.pipeline.storage import Folder, Parts
from facecrowd.privacy.attributes import ANY
from facecrowd.stages.align import Align
from facecrowd.stages.average import Average
from facecrowd.stages.batch import concatenate, take
from facecrowd.stages.blend import Blend
from facecrowd.stages.decode import DecodeImages, ReadPhotos
from facecrowd.stages.detect import Detect
from facecrowd.stages.embed import Embed
from facecrowd.stages.encode import Encode
from facecrowd.stages.judge import Judge
from facecrowd.stages.obscure import Blur, Mask, Noise, Obscure, Pixelate
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import OK, Batch, Resources, Stage, rows
from facecrowd.stages.witness import Witness

if TYPE_CHECKING:
    from facecrowd.stages.universal import Perturbation

CLASSES_PER_PART = 32
FACES_AT_ONCE = 64
"""Faces in a worker's memory, rendered and not yet encoded: of 1024 pixels a side they are 200 MB. A part has as many
as its classes have faces."""
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
        batch = self.grouped(table, self.crops(table))
        count = len(batch["class_id"])
        return {**batch, "variant": [0] * count, "face_id": [""] * count}

    @staticmethod
    def grouped(table: pa.Table, crops: list[bytes]) -> Batch:
        """A row for each class, with its members' crops by subject."""
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

    def crops(self, table: pa.Table) -> list[bytes]:
        """The crop of every row of members."""
        parts, rows = table["part"].to_numpy(), table["row"].to_numpy()
        crops: list[bytes] = [b""] * len(parts)
        for part in np.unique(parts):
            where = np.flatnonzero(parts == part)
            table = self.faces.read_rows(int(part), [int(r) for r in rows[where]], ["crop"])
            for position, crop in zip(where, table["crop"].to_pylist(), strict=True):
                crops[position] = crop
        return crops


@dataclass(frozen=True)
class LatentSource:
    """The classes of one part as rows to render: each of their variants, or with ``own`` each of their faces.

    priors : released attribute → how often it is true anywhere; a value that a class leaves open (``*``) is drawn by it
    """

    classes: MemberSource
    plan: Parts
    key: RunKey
    variants: int
    own: bool
    priors: dict[str, float]

    def __call__(self, part: int) -> Batch:
        table = self.classes.members.read(part)
        crops = self.classes.crops(table)
        face_id, released = self._planned(table["part"].to_numpy(), table["row"].to_numpy())
        batch = self.classes.grouped(table, crops)
        ids, class_of = np.unique(table["class_id"].to_numpy(), return_inverse=True)
        first = np.unique(class_of, return_index=True)[1]
        wanted = [self._wanted(int(c), released[at]) for c, at in zip(ids, first, strict=True)]
        if self.own:
            rows, more = class_of, {"face_id": face_id, "own": crops}
            number = [variant_of(self.key, face, self.variants) for face in face_id]
        else:
            rows, more = np.repeat(np.arange(len(ids)), self.variants), {"face_id": [""] * (len(ids) * self.variants)}
            number = list(range(self.variants)) * len(ids)
        return {
            **take(batch, rows),
            **more,
            "number": number,
            # A single face is the class mean itself.
            "variant": [None] * len(rows) if self.variants == 1 else number,
            "wanted": [wanted[row] for row in rows],
        }

    def _planned(self, parts: np.ndarray, rows: np.ndarray) -> tuple[list[str], list[dict[str, str]]]:
        face_id, released = [""] * len(parts), [dict[str, str]() for _ in parts]
        for part in np.unique(parts):
            where = np.flatnonzero(parts == part)
            found = self.plan.read_rows(int(part), [int(r) for r in rows[where]], ["face_id", "released"])
            for at, row in zip(where, found.to_pylist(), strict=True):
                face_id[at], released[at] = row["face_id"], dict(row["released"])
        return face_id, released

    def _wanted(self, class_id: int, released: dict[str, str]) -> dict[str, bool]:
        return shown_by_class(self.key, class_id, released, self.priors)


def shown_by_class(key: RunKey, class_id: int, released: dict[str, str], priors: dict[str, float]) -> dict[str, bool]:
    """What the faces of a class show: its released values, and draws for those it leaves open."""
    shown = {}
    for name, prior in priors.items():
        value = int(truth([released.get(name)])[0])
        if released.get(name) == ANY:
            value = int(key.generator("open", f"{class_id}/{name}").random() < prior)
        if value >= 0:
            shown[name] = bool(value)
    return shown


def variant_of(key: RunKey, face_id: str, variants: int) -> int:
    """Which of its class's faces stands for a face: drawn for it alone, whoever it shows and whatever they have."""
    return int.from_bytes(key.digest("variant", face_id)[:8], "big") % variants


@dataclass(frozen=True)
class SurrogateSink:
    surrogates: Parts

    def __call__(self, part: int, batch: Batch) -> int:
        names = ("class_id", "face_id", "subjects", "faces", "status", "reason")
        ok = [s == OK for s in batch["status"]]
        return self.surrogates.write(
            part,
            {
                **{name: batch[name] for name in names},
                "variant": batch.get("number", batch["variant"]),
                "image": _where(ok, batch["image"]),
                "detected": [bool(d) if o else None for o, d in zip(ok, batch["detected"], strict=True)],
                "embedding": _where(ok, batch["embedding"]),
                "attributes": _probabilities(batch),
                **_perturbed(batch, ok),
                "realised": _realised(batch),
            },
        )


def _realised(batch: Batch) -> list[dict[str, bool]]:
    """Of each face, the attributes it was edited to show: whether they are seen."""
    if "realised" not in batch:
        return [{} for _ in range(rows(batch))]
    names = predictable()
    return [{names[i]: bool(row[i]) for i in np.flatnonzero(row >= 0)} for row in batch["realised"]]


@dataclass(frozen=True)
class Rendering:
    """How the generator's stages are set up.

    size : side of a face in px; steering : predictor by which attributes are realised; gpus : of each worker
    """

    method: Method
    key: RunKey
    size: int
    folder: str | None
    steering: str | None
    gpus: float

    @property
    def at_once(self) -> int:
        return GPU_AT_ONCE if self.gpus else 1

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @property
    def half(self) -> bool:
        return self.device == "cuda"

    @property
    def bits(self) -> tuple[str, bool, int]:
        """What of the machine decides the last bits of a picture: those of a CPU and of a GPU must not mix in a run."""
        return self.device, self.half, self.at_once


GPU_AT_ONCE = 16
"""Faces that go through the generator together on a GPU; on a CPU more than one gains nothing."""


def together(stages: tuple[Stage, ...], gpus: float) -> tuple[Stage, ...]:
    """The stages as one group: neighbours with the same share of a GPU run in one actor, pixels never leaving it."""
    for stage in stages:
        stage.resources = Resources(stage.resources.cpus, gpus)
    return stages


def latent_stages(rendering: Rendering) -> tuple[Stage, ...]:
    """Faces of classes, generated."""
    from facecrowd.stages.edits import SHIPPED_DIRECTIONS
    from facecrowd.stages.networks import encoder
    from facecrowd.stages.surrogate import Surrogate, Surrogates

    stage = Surrogate(
        rendering.key,
        Surrogates(psi=rendering.method.truncation),
        size=rendering.size,
        keeping=rendering.method.keep,
        predictor=str(rendering.steering),
        encoder=encoder.SHIPPED,
        directions=SHIPPED_DIRECTIONS,
        at_once=rendering.at_once,
        device=rendering.device,
        half=rendering.half,
        folder=rendering.folder,
    )
    return (stage,)


def average_stages(config: DetectConfig) -> tuple[Stage, ...]:
    """Faces of classes, as means of pixels."""
    return (Average(size=config.crop_size),)


def shown(
    config: DetectConfig, quality: int, predictor: str | None = None, perturb: Stage | None = None
) -> tuple[Stage, ...]:
    """Rendered pixels made a file and judged; where they are perturbed, without the perturbation and then with it."""
    last = (Encode(column="rendered", quality=quality), *judges(config, predictor))
    if perturb is None:
        return last
    from facecrowd.stages.perturb import Before

    return (*last, Before(), perturb, *last)


def judges(config: DetectConfig, predictor: str | None = None, column: str = "image") -> tuple[Stage, ...]:
    """What looks at released pixels: the run's own detector and recogniser, and the judge of attributes if any."""
    found = Judge(
        config.recogniser, detector=config.detector, threshold=config.threshold, folder=config.models, column=column
    )
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
    """Every planned face with its surrogate, already encoded and judged once: of its class, the variant drawn for it;
    with ``own``, its own. A surrogate that failed takes its faces with it."""

    plan: Parts
    surrogates: Parts
    key: RunKey
    variants: int
    own: bool

    def __call__(self, part: int) -> Batch:
        table = self.plan.read(part, ["face_id", "photo", "status", "reason", "class_id"])
        batch = _named(table)
        classes = table["class_id"].to_numpy()
        faces = Faces.empty(len(table))
        for shard in np.unique(classes[classes >= 0] // CLASSES_PER_PART):
            where = np.flatnonzero((classes >= 0) & (classes // CLASSES_PER_PART == shard))
            index = self.surrogates.read(int(shard), ["class_id", "variant", "face_id"])
            at = {named: i for i, named in enumerate(zip(*(c.to_pylist() for c in index.columns), strict=True))}
            place = np.array([at[self._named(int(classes[row]), batch["face_id"][row])] for row in where])
            wanted = np.unique(place)
            found = self.surrogates.read_rows(
                int(shard), wanted.tolist(), ["status", "reason", *(f.name for f in fields(Faces))]
            )
            for row, i in zip(where, np.searchsorted(wanted, place), strict=True):
                faces.set(int(row), found, int(i))
                batch["status"][row], batch["reason"][row] = found["status"][i].as_py(), found["reason"][i].as_py()
        return {**batch, **faces.columns()}

    def _named(self, class_id: int, face_id: str) -> tuple[int, int, str]:
        return class_id, variant_of(self.key, face_id, self.variants), face_id if self.own else ""


@dataclass
class Faces:
    """Rendered faces being gathered."""

    image: list[bytes | None]
    detected: list[bool | None]
    embedding: list[Any]
    attributes: list[Any]
    detected_before: list[bool | None]
    embedding_before: list[Any]
    attributes_before: list[Any]
    target: list[int | None]
    linf: list[int | None]
    rms: list[float | None]

    @classmethod
    def empty(cls, rows: int) -> Faces:
        columns: dict[str, Any] = {f.name: [None] * rows for f in fields(cls)}
        return cls(**columns)

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
class WantedSource:
    """Every planned face with its own crop, and what its class shall show of what the translator can change.

    priors : as in ``LatentSource``, of those attributes alone
    """

    crops: CropSource
    key: RunKey
    priors: dict[str, float]

    def __call__(self, part: int) -> Batch:
        planned = self.crops.plan.read(part, ["class_id", "released"]).to_pylist()
        wanted = [
            shown_by_class(self.key, row["class_id"], dict(row["released"] or ()), self.priors) for row in planned
        ]
        return {**self.crops(part), "wanted": wanted}


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
                **_perturbed(batch, ok),
                **{
                    name: self._found(batch, name, ok)
                    for name in ("search_loss", "search_steps", "converged", "passes")
                },
                "wanted": [w if o else {} for o, w in zip(ok, batch.get("wanted", [{}] * len(ok)), strict=True)],
                "realised": [r if o else {} for o, r in zip(ok, _realised(batch), strict=True)],
                "obfuscated": self._parts(batch, ok),
                "activation": _where(ok, batch.get("activation", [None] * len(ok))),
            },
        )

    @staticmethod
    def _found(batch: Batch, name: str, ok: list[bool]) -> list[Any]:
        return _where(ok, np.asarray(batch[name]).tolist() if name in batch else [None] * len(ok))

    @staticmethod
    def _parts(batch: Batch, ok: list[bool]) -> list[list[str] | None]:
        if "obfuscate" not in batch:
            return [None] * len(ok)
        from facecrowd.stages.regions import PARTS

        names = list(PARTS)
        return _where(ok, [[names[i] for i in np.flatnonzero(row)] for row in batch["obfuscate"]])


def obscure_stages(method: Method, key: RunKey) -> tuple[Stage, ...]:
    """A baseline; with method none, the crop as it is."""
    if method.name == CLOAK:
        return (DecodeImages("crop_image", "rendered"),)
    how: dict[str, Blur | Pixelate | Mask | Noise] = {
        "blur": Blur(method.sigma),
        "pixelate": Pixelate(method.blocks),
        "mask": Mask(method.mask),
        "noise": Noise(method.gamma, method.noise_sigma, method.invert),
    }
    return DecodeImages("crop_image", "crop"), Obscure(how[method.name], key)


def search_stages(rendering: Rendering) -> tuple[Stage, ...]:
    """DeepBlur or inpainting."""
    from facecrowd.stages.deepblur import DeepBlur
    from facecrowd.stages.inpaint import Inpaint
    from facecrowd.stages.networks import encoder
    from facecrowd.stages.searching import Searching

    method = rendering.method
    how = Searching(
        steps=method.search_steps,
        # An encoder's guess is made for whole faces.
        start=method.start if method.name == "deepblur" else "mean",
        size=rendering.size,
        encoder=encoder.SHIPPED,
        at_once=rendering.at_once,
        device=rendering.device,
        half=rendering.half,
        folder=rendering.folder,
    )
    stage: Stage = (
        DeepBlur(method.latent_sigma, how) if method.name == "deepblur" else Inpaint("drawn", rendering.key, how)
    )
    return DecodeImages("crop_image", "crop"), stage


def translate_stages(rendering: Rendering) -> tuple[Stage, ...]:
    """Attribute translation; for identity-preserving in the parts that are least tied to the person."""
    from facecrowd.stages.regions import Regions
    from facecrowd.stages.translate import Translate

    method = rendering.method
    regions: tuple[Stage, ...] = ()
    if method.keeps_identity:
        found = Regions(
            "adaptive" if method.parts == "adaptive" else int(method.parts),
            method.part_threshold,
            at_once=rendering.at_once,
            device=rendering.device,
            folder=rendering.folder,
        )
        regions = (found,)
    stage = Translate(
        os.path.expanduser(str(method.translator)),
        str(rendering.steering),
        opposite=method.keeps_identity,
        passes=method.passes,
        steps=method.search_steps,
        size=rendering.size,
        at_once=rendering.at_once,
        device=rendering.device,
        half=rendering.half,
        folder=rendering.folder,
    )
    return DecodeImages("crop_image", "crop"), *regions, stage


# --------------------------------------------------------------------------------------------------------- perturb


def perturb_stage(
    config: PerturbConfig, rendering: Rendering, quality: int, of_class: bool, vector: Perturbation | None = None
) -> Stage:
    """What perturbs a rendered face; ``vector``: what ``universal`` adds. The face of a class, which has no id, is told
    from others by its class."""
    from facecrowd.stages.perturb import Perturb
    from facecrowd.stages.tipim import Mask, TipIm
    from facecrowd.stages.universal import Universal

    names = ("class_id", "variant", "face_id") if of_class else ("face_id",)
    if config.name == "universal":
        assert vector is not None
        return Perturb(Universal(vector), names)
    how = Mask(
        epsilon=float(config.bound or 0),
        alpha=config.step,
        steps=config.steps,
        norm=config.norm,
        choice="advnoise" if config.name == "advnoise" else "G",
        gamma=config.gamma,
        # Over a batch a face's mask would depend on who else is in it, and on how the work is cut.
        naturalness="augment",
        jpeg=quality if config.jpeg else None,
    )
    masks = TipIm(
        rendering.key,
        how,
        surrogates=[os.path.expanduser(name) for name in config.surrogates],
        targets=config.targets,
        device=rendering.device,
        folder=rendering.folder,
    )
    return Perturb(masks, names)


@dataclass(frozen=True)
class SampleSource:
    """Rows of another source.

    picks : part and row there, and whom the face shows
    """

    source: Any
    picks: tuple[tuple[int, int, str], ...]

    def __call__(self, part: int) -> Batch:
        chosen = self.picks[part * IMAGES_PER_PART : (part + 1) * IMAGES_PER_PART]
        batches = []
        for of in sorted({pick[0] for pick in chosen}):
            batch = take(self.source(of), [row for at, row, _ in chosen if at == of])
            batches.append({**batch, "person": [person for at, _, person in chosen if at == of]})
        return concatenate(batches)


@dataclass(frozen=True)
class SampleSink:
    sample: Parts

    def __call__(self, part: int, batch: Batch) -> int:
        ok = [s == OK for s in batch["status"]]
        same = {name: list(batch[name]) for name in ("person", "status", "reason")}
        return self.sample.write(part, {**same, "image": _where(ok, batch["image"])})


@dataclass(frozen=True)
class FitSource:
    """The whole sample as one row."""

    sample: Parts
    parts: int

    def __call__(self, part: int) -> Batch:
        found = self.sample.read_all(self.parts, ["person", "status", "image"]).to_pylist()
        live = [row for row in found if row["status"] == OK]
        return {"crops": [[row["image"] for row in live]], "people": [[row["person"] for row in live]]}


def fit_stage(config: PerturbConfig, rendering: Rendering, quality: int, predictor: str) -> Stage:
    from facecrowd.stages.perturb import Fit

    return Fit(
        rendering.key,
        [os.path.expanduser(name) for name in config.surrogates],
        config.attributes,
        predictor,
        config.norm,
        float(config.bound or 0),
        quality if config.jpeg else None,
        rendering.device,
        rendering.folder,
        delta=config.delta,
    )


@dataclass(frozen=True)
class PerturbationSink:
    perturbation: Parts

    def __call__(self, part: int, batch: Batch) -> int:
        found = batch["perturbation"]
        columns = {
            "side": [one.vector.shape[-1] for one in found],
            "norm": [one.norm for one in found],
            "xi": [one.xi for one in found],
            "vector": [one.vector.astype("<i2").tobytes() for one in found],
            "about": [json.dumps(one.about, sort_keys=True) for one in found],
        }
        return self.perturbation.write(part, columns)


def perturbation(table: pa.Table) -> Perturbation:
    """The perturbation of such a row."""
    from facecrowd.stages.universal import Perturbation

    (row,) = table.to_pylist()
    vector = np.frombuffer(row["vector"], "<i2").reshape(3, row["side"], row["side"]).copy()
    return Perturbation(vector, row["norm"], row["xi"], json.loads(row["about"]))


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


def blend_stages(config: DetectConfig, quality: int, method: Method | None = None) -> tuple[Stage, ...]:
    """A generated face takes the photo's light, its own being the generator's. A translated one has it already, unless
    the generator made it, and so has an inpainted one, which is put back as far as it was hidden from the search:
    nearer in, the old face would show.
    """
    from facecrowd.stages.inpaint import MARGIN

    inpainted = method is not None and method.name == "inpaint"
    matched = method is not None and method.generated and not inpainted
    return (
        ReadPhotos(max_pixels=config.max_pixels),
        DecodeImages("image", "rendered"),
        Blend(key="path", match_colour=matched, reach=MARGIN if inpainted else 1.0),
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
class Published:
    """The images of a release as they lie in its folder, by name; asked for by rows of the link."""

    release: Folder

    def __call__(self, links: Sequence[dict[str, Any]]) -> dict[str, bytes]:
        shown = {(row["name"], row["file"]): row for row in links}
        return dict(read_images(self.release, sorted(shown.values(), key=lambda row: str(row["file"]))))


@dataclass(frozen=True)
class Kept:
    """The same images as the workspace keeps them: the faces, or in photo output the photos, that were published."""

    rendered: Parts
    rendered_photos: Parts | None

    def __call__(self, links: Sequence[dict[str, Any]]) -> dict[str, bytes]:
        out: dict[str, bytes] = {}
        for part in sorted({row["part"] for row in links}):
            own = [row for row in links if row["part"] == part]
            if self.rendered_photos is not None:
                table = self.rendered_photos.read(part, ["photo", "image"])
                image_of = dict(zip(table["photo"].to_pylist(), table["image"].to_pylist(), strict=True))
                out |= {row["name"]: image_of[row["photo"]] for row in own}
                continue
            rows = sorted({row["row"] for row in own})
            images = self.rendered.read_rows(part, rows, ["image"])["image"].to_pylist()
            at = dict(zip(rows, images, strict=True))
            out |= {row["name"]: at[row["row"]] for row in own}
        return out


@dataclass(frozen=True)
class ReleasedSource:
    """The faces of a published release, by the private link; ``images``: ``Published`` or ``Kept``."""

    images: Published | Kept
    link: Parts
    faces: Parts

    def __call__(self, part: int) -> Batch:
        link = self.link.read(part)
        image_of = self.images(link.select(["name", "file", "photo", "part", "row"]).to_pylist())
        landmarks = np.full((len(link), 10), np.nan, np.float32)
        parts = link["part"].to_numpy()
        for source in np.unique(parts):
            where = np.flatnonzero(parts == source)
            found = self.faces.read_rows(int(source), link["row"].to_numpy()[where].tolist(), ["landmarks"])
            landmarks[where] = _floats(found["landmarks"].to_pylist(), 10)
        batch = _named(link.select(["face_id", "photo"]))
        image = [image_of[name] for name in link["name"].to_pylist()]
        return {**batch, "status": [OK] * len(link), "reason": [""] * len(link), "image": image, "landmarks": landmarks}


@dataclass(frozen=True)
class OriginalSource:
    """The crop of every face of a workspace, released or not."""

    faces: Parts

    def __call__(self, part: int) -> Batch:
        table = self.faces.read(part, ["face_id", "status", "reason", "crop"])
        return {**_named(table.drop_columns(["crop"])), "crop": table["crop"].to_pylist()}


@dataclass(frozen=True)
class ImageSource:
    """The files of rendered faces, as they will be released."""

    rendered: Parts

    def __call__(self, part: int) -> Batch:
        return _named(self.rendered.read(part, ["face_id", "status", "reason", "image"]))


@dataclass(frozen=True)
class WitnessSink:
    witnessed: Parts

    def __call__(self, part: int, batch: Batch) -> int:
        columns = ("face_id", "status", "reason", "detected", "landmarks", "embeddings")
        return self.witnessed.write(part, {name: list(batch[name]) for name in columns})


def witnesses(config: DetectConfig, recognisers: Sequence[str], column: str) -> tuple[Stage, ...]:
    """What looks at faces with several recognisers; ``column``: crops, or released photos to cut them from first."""
    cut = (DecodeImages("image", "photo"), Align(crop_size=config.crop_size)) if column == "photo" else ()
    where = "crop" if column == "photo" else column
    seen = Witness(recognisers, config.detector, config.threshold, folder=config.models, column=where)
    return (*cut, seen)


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


def _perturbed(batch: Batch, ok: list[bool]) -> Batch:
    """What the perturbation did to the faces of a batch, and what the judges said before; None where there was none."""
    missing = [None] * len(ok)
    out: Batch = {
        name: _where(ok, np.asarray(batch[name], dtype=object).tolist() if name in batch else missing)
        for name in ("detected_before", "target", "linf", "rms")
    }
    out["target"] = [None if target is None or target < 0 else target for target in out["target"]]
    for name in ("embedding_before", "attributes_before"):
        out[name] = _where(ok, batch.get(name, missing))
    return out


def _floats(cells: list[Any], size: int) -> np.ndarray:
    """(N, size) float32; NaN where a cell is null."""
    return np.array([[np.nan] * size if cell is None else cell for cell in cells], dtype=np.float32).reshape(-1, size)


def _named(table: pa.Table) -> Batch:
    """The columns of a manifest as a batch, where ``photo`` is kept for pixels: the name becomes ``photo_name``."""
    return {"photo_name" if name == "photo" else name: table[name].to_pylist() for name in table.column_names}


def embedding_array(column: pa.ChunkedArray, width: int | None = None) -> np.ndarray:
    """(N, width) float32; zeros where a row has none. Without ``width`` it is that of the vectors, 0 where none is."""
    return _vectors(column, width, 0.0)


def attribute_array(column: pa.ChunkedArray) -> np.ndarray:
    """(N, 40) float32 probabilities; NaN where a row has none."""
    return _vectors(column, ATTRIBUTES, np.nan)


def _vectors(column: pa.ChunkedArray, width: int | None, missing: float) -> np.ndarray:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    found = array.drop_null()
    if width is None:
        width = len(found[0]) if len(found) else 0
    out = np.full((len(array), width), missing, dtype=np.float32)
    out[np.asarray(array.is_valid())] = found.flatten().to_numpy().reshape(len(found), width)
    return out
