"""k-same in latent space: one photo-realistic surrogate per class, or several around it, from the class alone.

k-Same (Newton, Sweeney, Malin, IEEE TKDE 17(2), 2005) averages the faces of a class. On pixels an average is blurred;
the average of latents is a face. The unit is the subject: with w+ of photo p of subject s,

    class mean = mean over s of (mean over p of w+(s, p))

A further variant of a class moves from there: by a jitter of stated size that leaves the readings of attributes, pose
and light alone, then to a pose, an expression and a light that follow the class's own photos. Each of those
coefficients is drawn by itself from the quantile function of the class's pool, in which every subject weighs the same:
a shuffle that knows neither subject nor photo nor any other value of theirs, and that mixes what one photo had
together. All draws are HMAC(run key, class, variant).

What is rendered is therefore a function of the class's photos as a set of sets, and of the key: of nobody's order,
place or number of photos, and of nothing of a member that swapping him with another member would not keep.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from facecrowd.stages import edits, models
from facecrowd.stages.attributes import STEER, Predictor, pictures
from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.decode import decode
from facecrowd.stages.edits import SHIPPED_DIRECTIONS, Directions
from facecrowd.stages.inversion import precision
from facecrowd.stages.networks.encoder import SHIPPED as SHIPPED_ENCODER
from facecrowd.stages.networks.encoder import Encoder
from facecrowd.stages.networks.mobilestylegan import STYLE, MobileStyleGAN
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import Batch, Resources, Stage, live

POOLED = (*edits.POSE, *edits.EXPRESSION, *edits.LIGHT)
"""What a variant takes from its class's pool."""

KEPT = {"pose": edits.POSE, "expression": edits.EXPRESSION, "lighting": edits.LIGHT}
"""What a surrogate can keep of one photo, by its readings. It then depends on more than its class."""


@dataclass(frozen=True)
class Surrogates:
    """How surrogates are made.

    psi : truncation of the class mean towards the generator's mean latent, in [0, 1]; 1 keeps it where it is
    jitter : size of a variant's jitter: share of the way from the mean latent to a random face of the generator, 0 or
        more, before the readings' directions are taken out of it
    limit : largest departure of a pooled coefficient from 0, in the direction's typical scale
    """

    psi: float = 1.0
    jitter: float = 0.35
    limit: float = 2.5

    def __post_init__(self) -> None:
        if not 0 <= self.psi <= 1:
            raise ValueError(f"surrogates: psi is {self.psi}, but lies between 0 and 1")
        if not self.jitter >= 0:
            raise ValueError(f"surrogates: jitter is {self.jitter}, but must not be negative")
        if not self.limit > 0:
            raise ValueError(f"surrogates: limit is {self.limit}, but must be above 0")


Photos = dict[bytes, int]
"""The photos of one subject: digest of the photo to how often it is there."""


def shares(subjects: Sequence[Photos]) -> dict[bytes, float]:
    """How much each photo of a class weighs: 1 / subjects, shared evenly among a subject's photos.

    In the order of the digests, and every sum rounded once: neither the order of anything nor repeating all photos of a
    subject changes a bit.
    """
    if not subjects or not all(subjects):
        raise ValueError("a class mean needs at least one subject, and at least one face of each")
    parts: dict[bytes, list[float]] = {}
    for photos in subjects:
        faces = sum(photos.values())
        for photo, count in photos.items():
            parts.setdefault(photo, []).append(count / faces / len(subjects))
    return {photo: math.fsum(parts[photo]) for photo in sorted(parts)}


def class_mean(latents: Tensor, share: Tensor) -> Tensor:
    """The mean of subject means, summed in double precision: latents (P, 23, 512), share (P,) to (23, 512) float32."""
    return torch.einsum("p,prk->rk", share.double(), latents.double()).float()


def quantile(values: np.ndarray, share: np.ndarray, u: float) -> float:
    """The quantile function of a weighted pool, linear between its members.

    values : (P,); share : (P,), summing to 1; u : in [0, 1]. A member stands at the middle of its share.
    """
    order = np.lexsort((share, values))
    middle = np.cumsum(share[order]) - share[order] / 2
    return float(np.interp(u, middle, values[order]))


def jitter(draws: np.random.Generator, network: MobileStyleGAN, directions: Directions) -> Tensor:
    """A random face's departure from the mean latent, (512,), less what the readings would see of it."""
    z = torch.from_numpy(draws.standard_normal((1, STYLE), dtype=np.float32))
    away = (network.mapping(z.to(network.mean_latent.device)) - network.mean_latent)[0]
    normals = directions.normals.double()
    seen = torch.linalg.lstsq(normals.cpu(), (normals @ away.double()).cpu()[:, None], driver="gelsd").solution[:, 0]
    return away - seen.float().to(away.device)


def follow(
    latent: Tensor, pool: Tensor, share: Tensor, directions: Directions, draws: np.random.Generator, limit: float
) -> Tensor:
    """A latent with pose, expression and light like those of its class's photos.

    latent : (23, 512); pool : (P, D), the readings of the class's photos; share : (P,); limit : see ``Surrogates``

    Returns (23, 512). Directions that are not there are left out.
    """
    chosen = directions.positions([name for name in POOLED if name in directions.names])
    weight = share.double().cpu().numpy()
    values = pool[:, chosen].double().cpu().numpy()
    drawn = [quantile(values[:, i], weight, draws.random()) for i in range(len(chosen))]
    return meet(latent, latent.new_tensor(drawn), chosen, directions, limit)


def keep(latent: Tensor, own: Tensor, names: Sequence[str], directions: Directions, limit: float) -> Tensor:
    """A latent (23, 512) with those of ``KEPT`` that ``names`` lists as the readings ``own`` (D,) of one photo."""
    wanted = [name for what in names for name in KEPT[what] if name in directions.names]
    chosen = directions.positions(wanted)
    return meet(latent, own[chosen], chosen, directions, limit) if chosen else latent


def meet(latent: Tensor, readings: Tensor, chosen: Sequence[int], directions: Directions, limit: float) -> Tensor:
    """A latent (23, 512) moved along the directions ``chosen`` until they read ``readings``, cut at ``limit``."""
    most = limit * directions.scale[chosen]
    wanted = torch.minimum(torch.maximum(readings, -most), most)
    missing = wanted - directions.read(latent[None])[0, chosen]
    # A direction also moves what its neighbours read; with those effects solved for, all are met at once.
    basis = torch.zeros(len(chosen), len(directions.names), device=latent.device)
    basis[range(len(chosen)), chosen] = 1
    nothing = torch.zeros_like(latent).expand(len(chosen), -1, -1) + directions.mean
    response = directions.read(edits.apply(nothing, directions, basis))[:, chosen]
    coefficients = torch.linalg.solve(response.T.double().cpu(), missing.double().cpu()).float().to(latent.device)
    return edits.apply(latent[None], directions, (coefficients @ basis)[None])[0]


class Surrogate(Stage):
    """Renders the surrogate of each row: of a class, or of one variant of it.

    class_id : names the class in the run key's draws
    crops : a list of subjects, each a list of aligned crops, encoded or (S, S, 3) uint8 RGB
    variant : int, optional. Without it, or where it is None, the row is the class mean itself; m rows with the same
        class and crops and variants 0 … m - 1 are m faces around it
    wanted : optional, (40,) int8 in the predictor's order, 1 and 0 to be shown, -1 free, the same for the whole class;
        or a dict of attribute to bool
    own : with ``keeping``, the crop of the one photo whose pose, expression or light the row's face keeps

    rendered : (size, size, 3) uint8 RGB; None in rows that are not ``ok``
    realised : (40,) int8, 1 the predictor sees what was wanted, 0 it does not, -1 nothing was wanted
    """

    name = "surrogate"
    inputs = ("class_id", "crops")
    outputs = ("rendered", "realised", "status", "reason")
    transient = ("rendered", "crops")

    def __init__(
        self,
        key: RunKey,
        how: Surrogates | None = None,
        size: int = 256,
        look_size: int = 128,
        limit: float = 4.0,
        steps: int = 10,
        margin: float = 0.5,
        predictor: str | os.PathLike[str] = STEER,
        encoder: str | os.PathLike[str] = SHIPPED_ENCODER,
        directions: str | os.PathLike[str] = SHIPPED_DIRECTIONS,
        at_once: int = 1,
        device: str = "cpu",
        threads: int = 1,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        resources: Resources | None = None,
        keeping: Sequence[str] = (),
        half: bool = False,
    ) -> None:
        """``limit``, ``steps`` and ``margin`` as in ``edits.realise``, which looks at ``look_size`` pixels.

        keeping : of ``KEPT``, what each row's face keeps of its own photo
        at_once : pictures that go through a network together, always that many (``edits.pictures`` says why)
        half : bfloat16 in the generator, for GPUs; what is read, from photos or from its pictures, is read in float32
        """
        self.key, self.how, self.size, self.look_size = key, how or Surrogates(), size, look_size
        self.keeping = tuple(keeping)
        self.limit, self.steps, self.margin = limit, steps, margin
        self.files = (encoder, predictor, directions)
        self.at_once, self.device, self.threads, self.folder = at_once, device, threads, folder
        self.resources = resources or Resources()
        self.half = half
        self.networks: Networks | None = None
        self.members: Members | None = None

    def setup(self) -> None:
        cv2.setNumThreads(1)
        torch.set_num_threads(self.threads)
        encoder, predictor, directions = self.files
        self.networks = Networks(
            Encoder.load(encoder, self.folder).to(self.device),
            MobileStyleGAN.load(models.path("mobilestylegan-ffhq", folder=self.folder)).to(self.device),
            Predictor.load(predictor, self.folder, self.device),
            Directions.load(directions).to(self.device),
            self.half,
        )

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Batch:
        if self.networks is None:
            self.setup()
        assert self.networks is not None
        networks, predictor = self.networks, self.networks.predictor
        if self.members is None:
            self.members = Members(networks.encoder, self.at_once, self.device)
        status, reason = outcomes(batch)
        rendered: list[np.ndarray | None] = [None] * len(status)
        realised = np.full((len(status), len(predictor.attributes)), -1, np.int8)
        found: dict[int, Tensor] = {}
        asked = realised.copy()
        self.members.begin()
        for i in live({"status": status}):
            try:
                variant = batch["variant"][i] if "variant" in batch else None
                latent = self.latent(batch["class_id"][i], variant, *self.members(batch["crops"][i]))
                if self.keeping:
                    directions = networks.directions
                    own = directions.read(self.members([[batch["own"][i]]])[0])[0]
                    latent = keep(latent, own, self.keeping, directions, self.how.limit)
                if "wanted" in batch and batch["wanted"][i] is not None:
                    asked[i] = edits.wishes(batch["wanted"][i], predictor.attributes, 1)[0]
                found[i] = latent
            except Exception as error:
                status[i], reason[i] = "failed", explain(self.name, error)
        rows = list(found)
        try:
            wishing = [i for i in rows if (asked[i] >= 0).any()]
            if wishing:
                made = edits.realise(
                    networks,
                    predictor,
                    networks.directions,
                    torch.stack([found[i] for i in wishing]),
                    asked[wishing],
                    self.limit,
                    self.steps,
                    self.margin,
                    self.look_size,
                    self.at_once,
                )
                realised[wishing] = made.agrees
                found |= dict(zip(wishing, made.latent, strict=True))
            for i, picture in zip(rows, self._render([found[i] for i in rows]), strict=True):
                rendered[i] = picture
        except Exception as error:
            status[rows], reason[rows] = "failed", explain(self.name, error)
        return {**batch, "rendered": rendered, "realised": realised, "status": status, "reason": reason}

    def _render(self, latents: list[Tensor]) -> list[np.ndarray]:
        assert self.networks is not None
        shown: list[np.ndarray] = []
        for start in range(0, len(latents), self.at_once):
            chosen = torch.stack(latents[start : start + self.at_once])
            images = edits.pictures(self.networks, chosen, self.size, self.at_once)
            pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            shown += [np.ascontiguousarray(picture) for picture in pixels]
        return shown

    def latent(self, class_id: Any, variant: int | None, latents: Tensor, share: Tensor) -> Tensor:
        """The w+ (23, 512) of a class, or of one variant of it, before its attributes are realised.

        latents : (P, 23, 512) of the class's photos; share : (P,), what each weighs
        """
        assert self.networks is not None
        generator, directions = self.networks.generator, self.networks.directions
        mean = generator.mean_latent
        latent = mean + self.how.psi * (class_mean(latents, share) - mean)
        if variant is None:
            return latent
        draws = self.key.generator("surrogate", f"{class_id}/{int(variant)}")
        latent = latent + self.how.jitter * jitter(draws, generator, directions)
        return follow(latent, directions.read(latents), share, directions, draws, self.how.limit)


@dataclass(frozen=True)
class Networks:
    """What one worker of ``Surrogate`` holds."""

    encoder: Callable[[Tensor], Tensor]
    generator: MobileStyleGAN
    predictor: Any
    directions: Directions
    half: bool = False

    def synthesis(self, w_plus: Tensor, size: int) -> Tensor:
        """The generator's, in bfloat16 where ``half``: w+ (N, 23, 512) to RGB (N, 3, size, size) float32."""
        with precision(w_plus.device, self.half):
            return self.generator.synthesis(w_plus, size).float()


class Members:
    """The latents of classes' photos; a photo that comes again, in this batch or the next, is not encoded again.

    A class may go on from one batch to the next, and no photo is needed for longer.
    """

    def __init__(self, encoder: Callable[[Tensor], Tensor], at_once: int, device: str) -> None:
        self.encoder, self.at_once, self.device = encoder, at_once, device
        self.latents: dict[bytes, Tensor] = {}
        self.earlier: dict[bytes, Tensor] = {}

    def begin(self) -> None:
        """A batch begins: what the last one had no use for is forgotten."""
        self.latents, self.earlier = {}, self.latents

    def __call__(self, crops: Sequence[Sequence[bytes | np.ndarray]]) -> tuple[Tensor, Tensor]:
        """Subjects' crops to latents (P, 23, 512) and shares (P,), of the different photos in a fixed order."""
        photos: dict[bytes, bytes | np.ndarray] = {}
        subjects: list[Photos] = []
        for faces in crops:
            counts: Photos = {}
            for crop in faces:
                name = digest(crop)
                photos[name] = crop
                counts[name] = counts.get(name, 0) + 1
            subjects.append(counts)
        share = shares(subjects)
        self.latents |= {name: self.earlier[name] for name in share if name in self.earlier}
        self._encode({name: photos[name] for name in share if name not in self.latents})
        return torch.stack([self.latents[name] for name in share]), torch.tensor(list(share.values()))

    def _encode(self, photos: dict[bytes, bytes | np.ndarray]) -> None:
        names = list(photos)
        for start in range(0, len(names), self.at_once):
            chosen = names[start : start + self.at_once]
            crops = [decode(crop) if isinstance(crop, bytes) else crop for crop in (photos[name] for name in chosen)]
            x = [pictures([crop], crop.shape[0]) for crop in crops]
            filled = torch.cat(x + x[-1:] * (self.at_once - len(x))).to(self.device)
            for name, latent in zip(chosen, self.encoder(filled)[: len(x)].float(), strict=True):
                self.latents[name] = latent


def digest(crop: bytes | np.ndarray) -> bytes:
    """What tells one photo from another: the SHA-256 of its bytes, or of its pixels."""
    return hashlib.sha256(crop if isinstance(crop, bytes) else np.ascontiguousarray(crop).tobytes()).digest()
