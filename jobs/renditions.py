"""What the generator's methods make of a set of faces: latents, pictures and what recognisers say of them.

For evaluations and sheets, which look at many methods and recognisers on the same faces. What takes long is kept in a
work folder, chunk by chunk, under a hash of all that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facecrowd.jobs import training
from facecrowd.jobs.labelled import QUALITY, Faces
from facecrowd.pipeline.errors import ConfigError
from facecrowd.pipeline.subjects import subject_means
from facecrowd.privacy.microaggregation import microaggregate
from facecrowd.stages import align, deepblur, edits, inpaint, inversion, models, recognise, surrogate
from facecrowd.stages.attributes import pictures as tensor_of
from facecrowd.stages.decode import decode
from facecrowd.stages.detect import Detector
from facecrowd.stages.encode import encode
from facecrowd.stages.networks.encoder import SHIPPED as SHIPPED_ENCODER
from facecrowd.stages.networks.encoder import Encoder
from facecrowd.stages.networks.inception import Inception
from facecrowd.stages.networks.mobilestylegan import SHIPPED_HEADS, MobileStyleGAN
from facecrowd.stages.networks.vgg import Lpips
from facecrowd.stages.runkey import RunKey

SIDE = 256
"""Pictures are looked at and rendered at this size."""

STEER = "arcface-mobilefacenet"
"""The recogniser that classes are cut by, and the one in the encoder's loss."""

CHUNK = 64
WORK = Path.home() / ".cache" / "facecrowd" / "renditions"
KEY = RunKey(hashlib.sha256(b"facecrowd evaluate generator").digest())
"""A key of its own, so that figures can be repeated; a release draws its key from the operating system."""

Say = Callable[[str], None]


class Networks:
    """The networks of an evaluation, each loaded when it is first needed, frozen, on one device."""

    def __init__(
        self,
        encoder: str | os.PathLike[str] = SHIPPED_ENCODER,
        folder: str | None = None,
        device: str | None = None,
    ) -> None:
        self.file, self.folder = Path(encoder), folder
        self.device = torch.device(device) if device else training.device()
        if not self.file.is_file():
            raise ConfigError(f"{self.file} is not there; make an encoder by: facecrowd train encoder")
        self.recognisers: dict[str, recognise.Recogniser] = {}

    @property
    def half(self) -> bool:
        """Whether searches run in bfloat16."""
        return self.device.type == "cuda"

    @property
    def searched_at_once(self) -> int:
        """Faces in one search: on a CPU more take as long one after the other."""
        return 32 if self.device.type == "cuda" else 1

    @cached_property
    def told(self) -> list[str]:
        """The hashes of what makes pictures: generator, heads, encoder."""
        files = (self._path("mobilestylegan-ffhq"), SHIPPED_HEADS, self.file)
        return [models.sha256(file) if file.is_file() else "" for file in files]

    @cached_property
    def generator(self) -> MobileStyleGAN:
        return MobileStyleGAN.load(self._path("mobilestylegan-ffhq")).to(self.device)

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder.load(self.file, self.folder).to(self.device)

    @cached_property
    def lpips(self) -> Lpips:
        return Lpips.load(self._path("lpips-vgg16")).to(self.device)

    @cached_property
    def searching(self) -> inversion.Networks:
        """Those of them that a latent search takes."""
        return inversion.Networks(
            self.generator, self.lpips, inversion.Space.of(self.generator), self.encoder, self.half
        )

    @cached_property
    def inception(self) -> Inception:
        return Inception.load(self.device, self.folder)

    @cached_property
    def detector(self) -> Detector:
        return Detector.load("scrfd-500m", folder=self.folder)

    @cached_property
    def directions(self) -> edits.Directions:
        return edits.Directions.load().to(self.device)

    def recogniser(self, name: str) -> recognise.Recogniser:
        if name not in self.recognisers:
            device: models.Device = "gpu" if self.half else "cpu"
            self.recognisers[name] = recognise.load(name, device, gradients=False, folder=self.folder)
        return self.recognisers[name]

    def pixels(self, crops: Sequence[bytes], side: int = SIDE) -> Tensor:
        """Encoded crops to (N, 3, side, side) in [0, 1]."""
        return tensor_of([decode(crop) for crop in crops], side).to(self.device)

    @torch.no_grad()
    def render(self, latents: Tensor, side: int = SIDE, at_once: int = 4) -> Tensor:
        """w+ (N, 23, 512) to (N, 3, side, side) in [0, 1], on the CPU."""
        parts = [self.generator.synthesis(part.to(self.device), side).float() for part in latents.split(at_once)]
        return torch.cat(parts).clamp(0, 1).cpu()

    def _path(self, name: str) -> Path:
        return models.path(name, folder=self.folder)


# ------------------------------------------------------------------------------------------------------ what is kept


def kept(work: Path, what: str, told: object, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays that are made once: a file in ``work``, named after a hash of ``told``, all that they depend on."""
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:20]
    file = work / f"{what}-{digest}.npz"
    if not file.is_file():
        made = make()
        work.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        with open(partial, "wb") as stream:
            np.savez(stream, allow_pickle=False, **made)
        os.replace(partial, file)
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def by_chunk(
    crops: Sequence[bytes],
    work: Path,
    what: str,
    told: object,
    make: Callable[[Sequence[bytes]], dict[str, np.ndarray]],
    chunk: int = CHUNK,
    say: Say = lambda line: None,
) -> dict[str, np.ndarray]:
    """The arrays of ``make``, first axis the crops, made and kept by the chunk. At least one crop."""
    parts = []
    for start in range(0, len(crops), chunk):
        some = crops[start : start + chunk]
        names = [hashlib.sha256(crop).hexdigest() for crop in some]
        parts.append(kept(work, what, [told, names], lambda some=some: make(some)))  # type: ignore[misc]
        if start // chunk % 10 == 9:
            say(f"{what}: {start + len(some)} of {len(crops)}")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def encoded(networks: Networks, crops: Sequence[bytes], work: Path, say: Say = lambda line: None) -> Tensor:
    """What the encoder makes of crops: (N, 23, 512), on the CPU, kept as float16."""

    @torch.no_grad()
    def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
        return {"latent": networks.encoder(networks.pixels(some)).half().cpu().numpy()}

    return torch.from_numpy(by_chunk(crops, work, "encoded", networks.told, make, say=say)["latent"]).float()


@dataclass(frozen=True)
class Inverted:
    """latent : (N, 23, 512); seconds : (N,), of the batch over its faces; taken : (N,) steps; converged : (N,) bool."""

    latent: Tensor
    seconds: np.ndarray
    taken: np.ndarray
    converged: np.ndarray


def inverted(networks: Networks, crops: Sequence[bytes], steps: int, size: inversion.Size, work: Path) -> Inverted:
    """Latents of crops: the encoder's, then ``steps`` of L-BFGS."""

    def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
        x, space = networks.pixels(some), networks.searching.space
        began = time.perf_counter()
        with torch.no_grad():
            latent = networks.encoder(x)
        taken, converged = torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(x), dtype=torch.bool)
        if steps:
            found = inversion.search(
                networks.generator,
                networks.lpips,
                x,
                start=latent,
                steps=steps,
                size=size,
                space=space,
                half=networks.half,
            )
            latent, taken, converged = found.latent, found.steps_taken, found.converged
        latent = latent.cpu()
        return {
            "latent": latent.numpy(),
            "seconds": np.full(len(x), (time.perf_counter() - began) / len(x)),
            "taken": taken.numpy(),
            "converged": converged.numpy(),
        }

    told = [*networks.told, steps, size, networks.device.type]
    found = by_chunk(crops, work, "inverted", told, make, networks.searched_at_once)
    return Inverted(torch.from_numpy(found["latent"]), found["seconds"], found["taken"], found["converged"])


def embeddings(
    networks: Networks,
    crops: Sequence[bytes],
    names: Sequence[str],
    work: Path,
    say: Say = lambda line: None,
) -> dict[str, np.ndarray]:
    """By recogniser the unit vectors of crops, (N, D) float32; ``detected``: (N,) bool, whether a face was found.

    As in ``stages/judge.py`` the face is searched in every picture, and aligned by the landmarks found; where none are
    found, by those of the FFHQ template.
    """

    def find(some: Sequence[bytes]) -> dict[str, np.ndarray]:
        points = np.full((len(some), 5, 2), np.nan, np.float32)
        for i, crop in enumerate(some):
            found = networks.detector.find(decode(crop))
            if len(found) and found.scores[0] >= networks.detector.threshold:
                points[i] = found.landmarks[0].reshape(5, 2)
        return {"landmarks": points}

    points = by_chunk(crops, work, "landmarks", "scrfd-500m", find, say=say)["landmarks"]
    out = {"detected": np.isfinite(points).all((1, 2))}
    at = {hashlib.sha256(crop).digest(): i for i, crop in enumerate(crops)}
    for name in names:
        recogniser = networks.recogniser(name)

        @torch.no_grad()
        def embed(some: Sequence[bytes], recogniser: recognise.Recogniser = recogniser) -> dict[str, np.ndarray]:
            rows = [at[hashlib.sha256(crop).digest()] for crop in some]
            return {"vector": recogniser.embed(chips(some, points[rows])).numpy()}

        out[name] = by_chunk(crops, work, name, recogniser.sha256, embed, say=say)["vector"]
    return out


def chips(crops: Sequence[bytes], points: np.ndarray) -> Tensor:
    """Crops and landmarks (N, 5, 2), NaN for the template's, to (N, 3, 112, 112) in [0, 1], ArcFace's alignment."""
    target, cut = align.template(align.ARCFACE_SIZE, "arcface"), []
    for crop, own in zip(crops, points, strict=True):
        picture = decode(crop)
        where = own if np.isfinite(own).all() else align.template(picture.shape[0])
        cut.append(align.warp(picture, align.similarity(where[None], target)[0], align.ARCFACE_SIZE, "black"))
    return torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).float() / 255


def files(x: Tensor) -> list[bytes]:
    """(N, 3, S, S) in [0, 1] to JPEG files, as crops are kept."""
    levels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [encode(picture, QUALITY) for picture in levels]


# ----------------------------------------------------------------------------------------------------------- methods


def spread(faces: Faces, count: int) -> Faces:
    """At most ``count`` faces of as many people as can be, in an order that only names decide."""
    order = sorted(range(len(faces)), key=lambda i: _draw(f"{faces.subject[i]}/{faces.name[i]}"))
    turn: Counter[str] = Counter()
    ranked = []
    for i in order:
        person = str(faces.subject[i])
        ranked.append((turn[person], _draw(person), i))
        turn[person] += 1
    return faces.take(np.array([i for *_, i in sorted(ranked)[:count]], np.int64))


def _draw(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@dataclass(frozen=True)
class Crowds:
    """People in classes of at least k. people : (P,) sorted names; person : (N,) of each face; ids : (P,) its class."""

    k: int
    people: np.ndarray
    person: np.ndarray
    ids: np.ndarray

    @property
    def classes(self) -> int:
        return int(self.ids.max()) + 1


def crowds(subject: np.ndarray, vectors: np.ndarray, k: int) -> Crowds:
    """The classes that ``pipeline/plan.py`` cuts for k-same, by mean embeddings (vectors (N, D)). At least k people."""
    people, person = np.unique(subject, return_inverse=True)
    return Crowds(k, people, person, microaggregate(subject_means(vectors, person, len(people)), k).ids)


def class_latents(networks: Networks, crops: Sequence[bytes], latents: Tensor, by: Crowds, variants: int = 0) -> Tensor:
    """The latents that stand for each class: (classes, 1 or variants, 23, 512), from ``stages/surrogate.py``.

    crops, latents : of all faces of the crowds, (N,) and (N, 23, 512)
    """
    names = [surrogate.digest(crop) for crop in crops]
    row = {name: i for i, name in enumerate(names)}
    of = by.ids[by.person]
    out = []
    for number in range(by.classes):
        members: dict[int, surrogate.Photos] = {}
        for i in np.flatnonzero(of == number):
            photos = members.setdefault(int(by.person[i]), {})
            photos[names[i]] = photos.get(names[i], 0) + 1
        share = surrogate.shares(list(members.values()))
        chosen, weight = latents[[row[name] for name in share]], torch.tensor(list(share.values()))
        if not variants:
            out.append(surrogate.class_mean(chosen, weight)[None])
            continue
        stage = surrogate.Surrogate(KEY)
        stage.networks = surrogate.Networks(networks.encoder, networks.generator, None, networks.directions)
        device = networks.device
        with torch.no_grad():
            made = [stage.latent(f"{by.k}/{number}", v, chosen.to(device), weight.to(device)) for v in range(variants)]
        out.append(torch.stack(made).cpu())
    return torch.stack(out)


@dataclass(frozen=True)
class Released:
    """What k-same shows: ``images``, JPEG, and for each of N faces which of them stands for it."""

    images: list[bytes]
    of: np.ndarray


def surrogates(networks: Networks, faces: Faces, latents: Tensor, by: Crowds, variants: int, work: Path) -> Released:
    """The surrogate of each face: its class's, or one of its class's variants, drawn by the face's name."""

    def make() -> dict[str, np.ndarray]:
        made = class_latents(networks, faces.crop, latents, by, variants).flatten(0, 1)
        return {"images": (networks.render(made) * 255).round().byte().permute(0, 2, 3, 1).numpy()}

    told = [*networks.told, faces.fingerprint, by.ids.tolist(), variants]
    images = kept(work, "surrogates", told, make)["images"]
    each = max(1, variants)
    drawn = np.array(
        [
            KEY.generator("evaluate variant", f"{subject}/{name}").integers(each)
            for subject, name in zip(faces.subject.tolist(), faces.name.tolist(), strict=True)
        ]
    )
    return Released([encode(image, QUALITY) for image in images], by.ids[by.person] * each + drawn)


def known(method: str) -> None:
    """Raises ConfigError for what ``altered`` does not know."""
    if method.partition(":")[0] == "deepblur":
        sigma_of(method)
    elif method not in ("reconstruction", "inpaint", "inpaint:drawn", "inpaint:average"):
        raise ConfigError(f"{method} is none of reconstruction, deepblur:SIGMA, inpaint, inpaint:average")


def sigma_of(method: str) -> float:
    """The sigma of ``deepblur:SIGMA``. Raises ConfigError."""
    try:
        sigma = float(method.partition(":")[2])
    except ValueError:
        sigma = 0.0
    if not 0 < sigma < float("inf"):
        raise ConfigError(f"{method}: deepblur needs a sigma above 0, as in deepblur:1")
    return sigma


def altered(
    networks: Networks, crops: Sequence[bytes], method: str, steps: int, size: inversion.Size, work: Path
) -> Tensor:
    """What a method makes of each crop by itself: (N, 3, 256, 256) in [0, 1].

    method : see ``known``; ``inpaint`` draws an identity per face
    steps : of the latent search, from the encoder's latent, comparing at ``size`` pixels
    """
    if not method.startswith("inpaint"):
        latent = inverted(networks, crops, steps, size, work).latent
        if method != "reconstruction":
            latent = deepblur.low_pass(latent, networks.generator.mean_latent.cpu(), sigma_of(method))
        return networks.render(latent)

    def make(some: Sequence[bytes]) -> dict[str, np.ndarray]:
        drawn = None
        if method != "inpaint:average":
            drawn = torch.stack([inpaint.draw(networks.searching, KEY, surrogate.digest(crop)) for crop in some])
        given = [decode(crop) for crop in some]
        return {"images": inpaint.inpaint(networks.searching, given, drawn, steps, SIDE, size)[0]}

    told = [*networks.told, method.removesuffix(":drawn"), steps, size]
    images = by_chunk(crops, work, "inpainted", told, make, networks.searched_at_once)["images"]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
