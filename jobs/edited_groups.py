"""Generated faces and the same faces with one attribute changed, for training a translator (``train_stargan``).

A latent edit changes far more of a picture than its attribute: pose, background, who it is. So of the edited picture
only the region is taken where the attribute lies, faded into the face as it was; hair keeps its shape and takes the
edited picture's colours. What is left is a pair that differs in little else, which a network can learn pixel by pixel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facecrowd.jobs import training
from facecrowd.stages import edits, models
from facecrowd.stages.attributes import ATTRIBUTES, STEER, Predictor
from facecrowd.stages.networks.bisenet import CLASSES, BiSeNet
from facecrowd.stages.networks.mobilestylegan import ROWS, SHIPPED_HEADS, STYLE, MobileStyleGAN
from facecrowd.stages.places import REGIONS, region

SEED = 20261123
SIZE = 128
"""Pixels at which pictures are made and put together."""

KEPT = 96
"""At least so many are kept, so that trainings at smaller sizes share a file."""

CHUNK = 20
VARIANTS = 4
BEYOND = (1.0, 2.5)
"""How far past the threshold an edit aims, in logits, try by try: of the region alone the predictor sees less."""

LIMIT = 3.0
"""Largest edit, in the direction's typical scale: beyond it faces fall apart."""


def matched(base: np.ndarray, edited: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The edited picture in the light of the base: its mean colour along the region's rim made the base's."""
    rim = ((where > 0.02) & (where < 0.6)).astype(np.float32)[..., None]
    shift = ((base.astype(np.float32) - edited) * rim).sum(axis=(0, 1)) / max(float(rim.sum()), 1.0)
    return np.clip(edited + shift, 0, 255)


def composed(base: np.ndarray, edited: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The edited picture where ``where`` (S, S) is 1, the base where it is 0; all pictures (S, S, 3) uint8."""
    weight = where[..., None]
    return np.rint(base * (1 - weight) + edited * weight).astype(np.uint8)


def recoloured(base: np.ndarray, edited: np.ndarray, hair: np.ndarray, edited_hair: np.ndarray) -> np.ndarray:
    """The base with its hair's mean and spread of L*a*b* those of the edited picture's hair (Reinhard et al., 2001).

    hair, edited_hair : (S, S) in [0, 1]; the base comes back where one of them is all but empty
    """
    if min(hair.sum(), edited_hair.sum()) < 0.01 * hair.size:
        return base
    one, other = (cv2.cvtColor(p.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for p in (base, edited))

    def moments(lab: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = (lab * mask[..., None]).sum(axis=(0, 1)) / mask.sum()
        return mean, np.sqrt((((lab - mean) ** 2) * mask[..., None]).sum(axis=(0, 1)) / mask.sum())

    (mean, spread), (target, wide) = moments(one, hair), moments(other, edited_hair)
    shifted = (one - mean) * np.clip(wide / np.maximum(spread, 1e-3), 0.5, 2.0) + target
    rgb = np.clip(cv2.cvtColor(shifted.astype(np.float32), cv2.COLOR_LAB2RGB), 0, 1) * 255
    return composed(base, rgb, cv2.GaussianBlur(hair, (0, 0), 1.0))


@torch.inference_mode()
def groups(
    count: int, attributes: Sequence[str], side: int, work: Path, say: Callable[[str], None]
) -> tuple[Tensor, Tensor]:
    """Generated faces, each with ``VARIANTS`` others that differ in one attribute, and what the predictor that steers
    sees in them: (B, 1 + VARIANTS, 3, side, side) uint8 and (B, 1 + VARIANTS, A) of 0 and 1. Kept in ``work``, by the
    chunk: a killed run goes on, and a larger one builds on a smaller.

    An edit that the predictor does not see is made stronger, once; then it stays, and its values tell.
    """
    larger = max(side, KEPT)
    told = json.dumps([list(attributes), larger, SEED, VARIANTS, BEYOND, LIMIT])
    folder = work / f"groups-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    maker: Maker | None = None
    chunks = []
    for first in range(0, count, CHUNK):
        file = folder / f"{first:06d}.pt"
        if not file.exists():
            maker = maker or Maker(attributes)
            say(f"generated groups: {first} of {count}")
            pixels, values = [], []
            for number in range(first, first + CHUNK):
                pictures, seen = maker.group(training.generator(SEED, number))
                x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
                pixels.append(shrunk(x, larger))
                values.append(torch.from_numpy(seen))
            training.write({"photos": torch.stack(pixels), "values": torch.stack(values)}, file)
        chunks.append(torch.load(file, weights_only=True))
    photos, told_values = (torch.cat([chunk[name] for chunk in chunks])[:count] for name in ("photos", "values"))
    return shrunk(photos, side), told_values


def shrunk(x: Tensor, side: int) -> Tensor:
    """(..., 3, S, S) uint8 at ``side`` pixels."""
    if x.shape[-1] == side:
        return x
    flat = F.interpolate(x.flatten(0, -4).float() if x.ndim > 4 else x.float(), (side, side), mode="area")
    return flat.round().to(torch.uint8).reshape(*x.shape[:-2], side, side)


class Maker:
    """Makes groups. attributes : of which each variant changes one"""

    def __init__(self, attributes: Sequence[str]) -> None:
        self.device = training.device()
        self.attributes = list(attributes)
        self.generator = MobileStyleGAN.load(models.path("mobilestylegan-ffhq"), SHIPPED_HEADS).to(self.device)
        self.parser = BiSeNet.load(models.path("bisenet")).to(self.device)
        self.predictor = Predictor.load(STEER, device=str(self.device))
        self.directions = edits.Directions.load().to(self.device)
        self.at = self.directions.positions(attributes)
        self.columns = [ATTRIBUTES.index(name) for name in attributes]
        self.threshold = torch.logit(torch.from_numpy(self.predictor.calibration.threshold))[self.columns]

    def group(self, draw: torch.Generator) -> tuple[list[np.ndarray], np.ndarray]:
        """One face and its variants: (SIZE, SIZE, 3) uint8 each, and values (1 + VARIANTS, A) float32."""
        w = self.generator.mapping(torch.randn(1, STYLE, generator=draw).to(self.device))
        psi = (0.5 + 0.4 * torch.rand(1, 1, generator=draw)).to(self.device)
        latent = (self.generator.mean_latent + psi * (w - self.generator.mean_latent))[:, None].expand(-1, ROWS, -1)
        base = self.picture(latent)
        logits = self.logits(base)
        pictures, seen = [base], [logits]
        hair = cache(lambda: self.hair(base))
        for a in torch.randperm(len(self.attributes), generator=draw)[:VARIANTS].tolist():
            for beyond in BEYOND:
                edited, told = self.variant(latent, base, logits, hair, a, beyond)
                if (told[a] > self.threshold[a]) != (logits[a] > self.threshold[a]):
                    break
            pictures.append(edited)
            seen.append(told)
        return pictures, (torch.stack(seen) > self.threshold).float().numpy()

    def variant(
        self, latent: Tensor, base: np.ndarray, logits: Tensor, hair: Callable[[], np.ndarray], a: int, beyond: float
    ) -> tuple[np.ndarray, Tensor]:
        """The base with attribute ``a`` changed where it lies, and the logits of that; ``hair`` : the base's."""
        on = bool(logits[a] > self.threshold[a])
        name, limit = self.attributes[a], LIMIT * float(self.directions.scale[self.at[a]])
        need = float(self.threshold[a] - logits[a]) + (-beyond if on else beyond)
        coefficients = torch.zeros(1, len(self.directions.names), device=self.device)
        coefficients[:, self.at[a]] = min(max(need, -limit), limit)
        edited = self.picture(edits.apply(latent, self.directions, coefficients))
        where = REGIONS.get(name, "face")
        made = (
            recoloured(base, edited, hair(), self.hair(edited))
            if where == "hair"
            else composed(base, matched(base, edited, region(where, SIZE)), region(where, SIZE))
        )
        return made, self.logits(made)

    def picture(self, latent: Tensor) -> np.ndarray:
        x = edits.pictures(self.generator, latent, SIZE, 1)[0]
        return (x * 255).round().byte().permute(1, 2, 0).cpu().numpy()

    def logits(self, picture: np.ndarray) -> Tensor:
        return self.predictor.logits(self.tensor(picture))[0, self.columns].cpu()

    def hair(self, picture: np.ndarray) -> np.ndarray:
        """(SIZE, SIZE) float32, 1 where there is hair."""
        large = F.interpolate(self.tensor(picture), (256, 256), mode="bilinear", align_corners=False)
        found = (self.parser.parse(large).argmax(1)[0] == CLASSES.index("hair")).float()
        return F.interpolate(found[None, None], (SIZE, SIZE), mode="area")[0, 0].cpu().numpy()

    def tensor(self, picture: np.ndarray) -> Tensor:
        return torch.from_numpy(picture).to(self.device).permute(2, 0, 1)[None].float() / 255
