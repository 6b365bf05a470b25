"""Inpainting: a new face where the old one was, made by a search that sees only what is around it.

The baseline of the obfuscation papers (Sun et al., ECCV 2018; compared in DeepBlur and AnonymousNet) replaces the face
by what a generator finds likely there. Here the latent is searched (``inversion``) whose picture agrees with the
context, and its face is put in, colour-matched along a faded rim.

    identity "average"   the baseline: where the context decides nothing, the pull to the mean latent does, and people
                         come out as relatives of the average face
    identity "drawn"     the run key and the face's id draw random faces of the generator. Half of the steps find the
                         average's latent; to its rows that shape a face each draw adds how it differs from the mean
                         latent; from the sum that disturbs the context least, and held to it, goes the other half

Before anything looks at the crop its face region is overwritten by the average face, so the output is the same to the
last bit whatever was there: the new face cannot depend on the old one. What is around the face is kept and shown (hair,
neck, background, clothes), and where the face lies is known from the crop's alignment: these may still identify a
person, and how often they do is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from facecrowd.stages.attributes import pictures
from facecrowd.stages.inversion import HOLD, PULL, Networks, Optimiser, Search, Size, search
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE
from facecrowd.stages.obscure import FACE_AXES, FACE_CENTRE
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.searching import OUTPUTS, Searching, render_all
from facecrowd.stages.stage import Batch, Resources, Stage

MARGIN = 1.1
"""The hidden region is the template's face ellipse (brow to chin, ear to ear) this much larger."""

RIM = 1.3
"""The new face fades into the context between the hidden region and this multiple of the template's ellipse."""

REACH = 0.06
"""Standard deviation of the colour match, as a share of the crop's side: how far the rim's difference is carried."""

DRAWN_ROWS = slice(2, 10)
"""Rows of w+ at 8 to 32 pixels, which shape a face. Pose comes before them, colour and light after: the context's."""

DRAWS = 4

PSI = 0.7
DRAWN_HOLD = 0.05
"""Of the drawn identity: how many faces it is chosen from, their truncation, and the weight that holds the search."""

Identity = Literal["average", "drawn"]


@lru_cache(maxsize=8)
def region(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The hidden pixels (size, size) bool, and the weight of the new face (size, size) float32.

    The weight is 1 on every hidden pixel and falls smoothly to 0 at ``RIM``, over pixels of the context.
    """
    y, x = np.mgrid[:size, :size].astype(np.float32)
    radius = np.hypot(
        (x + 0.5 - FACE_CENTRE[0] * size) / (FACE_AXES[0] * size),
        (y + 0.5 - FACE_CENTRE[1] * size) / (FACE_AXES[1] * size),
    )
    t = np.clip((RIM - radius) / (RIM - MARGIN), 0, 1)
    return radius <= MARGIN, (t * t * (3 - 2 * t)).astype(np.float32)


def conceal(crop: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """A copy of ``crop`` with its hidden pixels from ``fill``; both (S, S, 3) uint8 RGB."""
    hidden, _ = region(crop.shape[0])
    return np.where(hidden[..., None], fill, crop)


def composite(context: np.ndarray, face: np.ndarray) -> np.ndarray:
    """The new face in its context: (S, S, 3) uint8 RGB.

    context : (S, S, 3) uint8, of which no hidden pixel is read
    face : (S, S, 3) uint8, of which what lies beyond the rim is not shown

    The face's colours are shifted by the difference to the context along the rim, carried inwards by a Gaussian of
    ``REACH`` and, where that fades, by the rim's mean: no edge, and no other light on the face than around it.
    """
    hidden, weight = region(context.shape[0])
    rim = ((weight > 0) & ~hidden).astype(np.float32)
    difference = (context.astype(np.float32) - face) * rim[..., None]
    sigma = REACH * context.shape[0]
    near = cv2.GaussianBlur(difference, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    amount = cv2.GaussianBlur(rim, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)[..., None]
    # One hundredth of a full rim's weight: the mean takes over where the rim is some two sigma away.
    shift = (near + 0.01 * difference.sum((0, 1)) / rim.sum()) / (amount + 0.01)
    shown = np.clip(face + shift, 0, 255)
    out = context + (shown - context) * weight[..., None]
    return np.where(hidden[..., None], np.rint(shown), np.rint(out)).astype(np.uint8)


def draw(networks: Networks, key: RunKey, face_id: str | bytes) -> Tensor:
    """What draws add to a latent, (4, 23, 512): in ``DRAWN_ROWS`` a random face less the mean latent, else 0."""
    generator, mean = networks.generator, networks.space.mean
    z = torch.from_numpy(key.generator("inpaint", face_id).standard_normal((DRAWS, STYLE), dtype=np.float32))
    with torch.no_grad():
        added = generator.truncate(generator.mapping(z.to(mean.device)), PSI) - mean
    kept = torch.zeros_like(added)
    kept[:, DRAWN_ROWS] = added[:, DRAWN_ROWS]
    return kept


def inpaint(
    networks: Networks,
    crops: Sequence[np.ndarray],
    drawn: Tensor | None = None,
    steps: int = 10,
    size: int = 256,
    look_size: Size = 128,
    optimiser: Optimiser = "lbfgs",
) -> tuple[np.ndarray, Search]:
    """New faces in the contexts of crops, (N, size, size, 3) uint8 RGB, and the search that ended at them.

    crops : (S, S, 3) uint8 RGB in FFHQ's alignment; brought to ``size``
    drawn : (N, draws, 23, 512) by ``draw``; without, the baseline
    steps, optimiser : of the search, which compares at ``look_size`` pixels; with draws half of
        them, the other half having gone before. Choosing among the draws costs one or two more
    """
    mean = networks.space.mean
    fill = networks.render(mean.expand(1, ROWS, -1), size)[0]
    contexts = [_context(crop, fill) for crop in crops]
    x = pictures(contexts, look_size).to(mean.device)
    visible = cv2.resize((~region(size)[0]).astype(np.float32), (look_size, look_size), interpolation=cv2.INTER_AREA)
    mask = torch.from_numpy((visible == 1).astype(np.float32)).to(mean.device).expand(len(crops), 1, -1, -1)

    def look(start: Tensor | None, steps: int, pull: float = PULL, hold: float = HOLD) -> Search:
        return search(
            networks.generator,
            networks.backbone,
            x,
            start=start,
            steps=steps,
            size=look_size,
            optimiser=optimiser,
            mask=mask,
            pull=pull,
            hold=hold,
            space=networks.space,
            half=networks.half,
        )

    found = look(networks.start(x), steps if drawn is None else (steps + 1) // 2)
    if drawn is not None:
        sums = found.latent[:, None] + drawn.to(mean.device)
        losses = torch.stack([look(sums[:, i], 0, 0.0).loss[0] for i in range(sums.shape[1])], dim=1)
        best = losses.argmin(dim=1).to(mean.device)
        found = look(sums[torch.arange(len(sums), device=mean.device), best], steps // 2, 0.0, DRAWN_HOLD)
    faces = networks.render(found.latent, size)
    return np.stack([composite(context, face) for context, face in zip(contexts, faces, strict=True)]), found


def _context(crop: np.ndarray, fill: np.ndarray) -> np.ndarray:
    side, size = crop.shape[0], fill.shape[0]
    if side != size:
        # Before the crop is resized, which would carry the face over the edge of the hidden region.
        crop = conceal(crop, cv2.resize(fill, (side, side), interpolation=cv2.INTER_AREA))
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
    return conceal(crop, fill)


class Inpaint(Stage):
    """Puts a new face into every crop of a batch.

    Columns as in ``searching.render_all``. Of a drawn identity, loss, steps and convergence are those of the second
    half, which ends at the face that is shown.
    """

    name = "inpaint"
    inputs = ("crop", "face_id")
    outputs = OUTPUTS
    transient = ("rendered",)

    def __init__(
        self,
        identity: Identity = "drawn",
        key: RunKey | None = None,
        how: Searching | None = None,
        resources: Resources | None = None,
    ) -> None:
        """
        identity : see above; "drawn" draws from ``key`` by ``face_id``
        how : from the mean latent by default; an encoder guesses for the crop with the average face in it
        """
        self.identity, self.key, self.how = identity, key, how or Searching(start="mean")
        if identity not in ("average", "drawn"):
            raise ValueError(f"inpaint: identity is {identity!r}, but must be average or drawn")
        if identity == "drawn" and key is None:
            raise ValueError("inpaint: a drawn identity needs the run key, but none was given")
        if self.how.steps < 1:
            raise ValueError(f"inpaint: steps is {self.how.steps}, but a search takes at least 1")
        self.resources = resources or Resources()
        self.networks: Networks | None = None

    def setup(self) -> None:
        self.networks = self.how.networks()

    def __call__(self, batch: Batch) -> Batch:
        if self.networks is None:
            self.setup()
        return render_all(self.name, batch, self.how.at_once, lambda rows: self._inpainted(batch, rows))

    def _inpainted(self, batch: Batch, rows: np.ndarray) -> tuple[np.ndarray, Search]:
        assert self.networks is not None
        drawn = None
        if self.identity == "drawn":
            assert self.key is not None
            drawn = torch.stack([draw(self.networks, self.key, batch["face_id"][i]) for i in rows])
        crops = [batch["crop"][i] for i in rows]
        how = self.how
        return inpaint(self.networks, crops, drawn, how.steps, how.size, how.look_size, how.optimiser)
