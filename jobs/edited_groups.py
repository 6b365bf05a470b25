"""Generated faces and the same faces with one attribute changed, for training a translator (``train_stargan``).

A latent edit changes far more of a picture than its attribute: pose, background, who it is. So of the edited picture
only the region is taken where the attribute lies, faded into the face as it was; hair keeps its shape and takes the
edited picture's colours. What is left is a pair that differs in little else, which a network can learn pixel by pixel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facecrowd.jobs import training
from facecrowd.stages import align, edits, models
from facecrowd.stages.attributes import ATTRIBUTES, STEER, Predictor
from facecrowd.stages.networks.bisenet import CLASSES, BiSeNet
from facecrowd.stages.networks.mobilestylegan import ROWS, SHIPPED_HEADS, STYLE, MobileStyleGAN
from facecrowd.stages.obscure import FACE_AXES, FACE_CENTRE

SEED = 20261123
SIZE = 128
"""Pixels at which pictures are made and put together."""

VARIANTS = 4
BEYOND = (1.0, 2.5)
"""How far past the threshold an edit aims, in logits, try by try: of the region alone the predictor sees less."""

LIMIT = 3.0
"""Largest edit, in the direction's typical scale: beyond it faces fall apart."""

HAIR = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
"""Colours, of which a face has one."""

REGIONS = {
    "Bushy_Eyebrows": "brows",
    "Arched_Eyebrows": "brows",
    "Narrow_Eyes": "eyes",
    "Big_Nose": "nose",
    "Pointy_Nose": "nose",
    "Big_Lips": "lips",
    "Wearing_Lipstick": "lips",
    "Mouth_Slightly_Open": "lips",
    "Receding_Hairline": "forehead",
    "Bangs": "forehead",
    **dict.fromkeys(HAIR, "hair"),
}
"""Where an attribute lies; all others in the face as a whole."""

ELLIPSES = {
    "brows": (("left eye", (0.0, -0.36), (0.48, 0.22)), ("right eye", (0.0, -0.36), (0.48, 0.22))),
    "eyes": (("left eye", (0.0, 0.0), (0.44, 0.26)), ("right eye", (0.0, 0.0), (0.44, 0.26))),
    "nose": (("nose", (0.0, -0.2), (0.42, 0.6)),),
    "lips": (("mouth", (0.0, 0.0), (0.6, 0.36)),),
    "forehead": (("eyes", (0.0, -1.05), (1.0, 0.6)),),
}
"""By region: anchor on the template, centre from it and half axes, in distances between the eyes."""

FADE = 0.5
"""Over this share of an ellipse's radius, beyond it, the edit fades out."""


@lru_cache(maxsize=16)
def region(name: str, size: int = SIZE) -> np.ndarray:
    """The weight of an edit by pixel, (size, size) float32 in [0, 1], in FFHQ's alignment.

    name : "face", or of ``ELLIPSES``
    """
    points = align.template(size)
    apart = float(np.linalg.norm(points[1] - points[0]))
    anchors = {
        "left eye": points[0],
        "right eye": points[1],
        "nose": points[2],
        "mouth": points[3:].mean(axis=0),
        "eyes": points[:2].mean(axis=0),
    }
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    shapes = [(np.array(FACE_CENTRE) * size, np.array(FACE_AXES) * size)]
    if name != "face":
        shapes = [(anchors[a] + np.array(c) * apart, np.array(h) * apart) for a, c, h in ELLIPSES[name]]
    weight = np.zeros((size, size), np.float32)
    for (x, y), (a, b) in shapes:
        inside = np.clip((1 + FADE - np.hypot((columns - x) / a, (rows - y) / b)) / FADE, 0, 1)
        weight = np.maximum(weight, inside * inside * (3 - 2 * inside))
    return weight


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
    sees in them: (B, 1 + VARIANTS, 3, side, side) uint8 and (B, 1 + VARIANTS, A) of 0 and 1. Kept in ``work``.

    An edit that the predictor does not see is made stronger, once; then it stays, and its values tell.
    """
    kept = work / "groups.pt"
    told = json.dumps([count, list(attributes), side, SEED, VARIANTS, BEYOND])
    if kept.exists():
        stored = torch.load(kept, weights_only=True)
        if stored["told"] == told:
            return stored["photos"], stored["values"]
    maker = Maker(attributes)
    draw = torch.Generator().manual_seed(SEED)
    pixels, values = [], []
    for number in range(count):
        pictures, seen = maker.group(draw)
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        pixels.append(F.interpolate(x.float(), (side, side), mode="area").round().to(torch.uint8))
        values.append(torch.from_numpy(seen))
        if number % 100 == 0:
            say(f"generated groups: {number} of {count}")
    found = torch.stack(pixels), torch.stack(values)
    work.mkdir(parents=True, exist_ok=True)
    training.write({"told": told, "photos": found[0], "values": found[1]}, kept)
    return found


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
            else composed(base, matched(base, edited, region(where)), region(where))
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
