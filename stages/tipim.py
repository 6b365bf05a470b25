"""TIP-IM: an adversarial identity mask that takes a face towards one of several identities, and keeps it natural.

X. Yang, Y. Dong, T. Pang, J. Zhu, H. Su, "Towards Privacy Protection by Generating Adversarial Identity Masks", 2020
(arXiv:2003.06814). With D the squared distance between unit embeddings f, K target identities x' and the ball of
radius epsilon about the picture, each of T steps picks for every face the target whose candidate step has the largest
gain G (Algorithm 1), and takes a step down the gradient, with momentum, of

    J = 1/N sum_i [D(x_i, x'_i) - D(x_i, real_i)] + gamma MMD(X, X_real)                     (equations 3 to 7)

One forward pass serves all K targets: the first term's gradient at the embedding is 2 (f(real) - f(x')), whatever x.
An ensemble of M recognisers is one recogniser with their embeddings side by side, each times 1 / sqrt(M): squared
distances are then means over the ensemble.

The mask is made for the crop, and the recogniser sees the chip cut from it, after what a release does to it (resize,
JPEG). Success is to be measured on the decoded file, against recognisers that served no mask: it is no guarantee.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facecrowd.stages import models, recognise
from facecrowd.stages.align import ARCFACE_SIZE
from facecrowd.stages.batch import FAILED, explain, outcomes
from facecrowd.stages.chip import Chip
from facecrowd.stages.encode import Subsampling
from facecrowd.stages.networks.mobilestylegan import STYLE, MobileStyleGAN
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import Batch, Resources, Stage, live

Norm = Literal["linf", "l2"]
Choice = Literal["G", "G1", "G2", "rand", "single", "advnoise"]
GREEDY = ("G", "G1", "G2")

VARIANCES = (*(10.0**n for n in range(-6, 1)), 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 100.0, 1e3, 1e4, 1e5, 1e6)
"""The variances of the Gaussians whose sum is the kernel of ``mmd``, in squared grey levels summed over a chip: those
of the authors' code. With them the figures of the paper's table 3 come out: 0.76 is 2 x 19 / 50, the value for 50 pairs
of faces that all lie far apart. The widest is far below the distance of two people's faces, so no face sees another's:
the term then is a function of the norm of each face's own mask, and weaker the larger the batch (table 6)."""

BATCH = 50
"""Faces of one MMD: the paper's appendix C."""


class Embedder(Protocol):
    """What is asked of a surrogate: see ``recognise.Recogniser``."""

    def embed(self, faces: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Mask:
    """How a mask is made. The paper's experiments are the defaults.

    epsilon : radius of the ball, in grey levels of 255: of the largest change of a value ("linf"), or of the root mean
        square of all 3 S^2 changes ("l2")
    alpha : a step, measured the same way; steps : T
    momentum : share of the last direction that is kept, 0 or more
    choice : of the target, in each step and for each face: the largest gain ("G", equation 9, or "G1", "G2"), at random
        ("rand"), always the same one, drawn for the face ("single"). "advnoise" has no target: it moves the embedding
        away from the face's own, as Fawkes does and DeepBlur's comparison AdvNoise
    gamma : weight of the naturalness
    balance : what gamma multiplies. "losses": the MMD, as printed. "gradients": its gradient, scaled to the size of the
        identity's (mean absolute values), so that gamma means the same for any recogniser, picture size and batch
    naturalness : of the faces handled together ("batch"), or of each face's ``augmentations`` by itself ("augment",
        appendix C)
    diversity : largest standard deviation of the random affine jitter of what the recogniser sees in a step; 0 is none.
        The authors' code has 0.1; the paper does not speak of it
    resize : side in pixels that a release shrinks the crop to, or None
    jpeg : quality that a release saves it with, or None
    """

    epsilon: float = 12.0
    alpha: float = 1.5
    steps: int = 50
    norm: Norm = "linf"
    momentum: float = 1.0
    choice: Choice = "G"
    gamma: float = 0.0
    balance: Literal["losses", "gradients"] = "gradients"
    naturalness: Literal["batch", "augment"] = "batch"
    augmentations: int = BATCH
    diversity: float = 0.0
    resize: int | None = None
    jpeg: int | None = None
    subsampling: Subsampling = "420"

    def __post_init__(self) -> None:
        for name in ("epsilon", "alpha"):
            if not 0 < getattr(self, name) <= 255:
                raise ValueError(f"tip-im: {name} is {getattr(self, name)}, but lies above 0 and at most at 255")
        for name in ("momentum", "gamma", "diversity"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"tip-im: {name} is {getattr(self, name)}, but must not be negative")
        if self.steps < 1 or self.augmentations < 2:
            raise ValueError("tip-im: at least 1 step and 2 augmentations are needed")
        if self.jpeg is not None and not 1 <= self.jpeg <= 100:
            raise ValueError(f"tip-im: jpeg is {self.jpeg}, but a quality lies between 1 and 100")
        if self.jpeg is not None and self.subsampling not in ("444", "420"):
            raise ValueError(f"tip-im: subsampling is {self.subsampling}, but JPEG in the loop has 444 and 420")
        if self.resize is not None and self.resize < 16:
            raise ValueError(f"tip-im: resize is {self.resize}, but a face needs 16 pixels")

    @property
    def coupled(self) -> bool:
        """Whether a face's mask depends on the faces handled together with it."""
        return self.gamma > 0 and self.naturalness == "batch"


@dataclass(frozen=True)
class Masked:
    """What came out.

    pixels : (N, 3, S, S) uint8; chosen : (T, N) int64, the target of each step, -1 where there is none
    """

    pixels: Tensor
    chosen: Tensor


def mmd(x: Tensor, y: Tensor, variances: Sequence[float] = VARIANCES) -> Tensor:
    """The squared maximum mean discrepancy of equation 4, by the Gram matrix of both batches together.

        MMD = mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j),   k = sum_v exp(-|a - b|^2 / (2 v))

    x, y : (..., N, D) grey levels; squared distances are scaled by 3 x 112^2 / D, so that pictures of all sizes compare

    Returns (...). It is 0 where both batches are the same.
    """
    n, size = x.shape[-2:]
    if x.shape != y.shape:
        raise ValueError(f"two batches of the same shape have an MMD, not {tuple(x.shape)} and {tuple(y.shape)}")
    scale = 3 * ARCFACE_SIZE**2 / size
    both = torch.cat([x, y], dim=-2) - y.mean(dim=-2, keepdim=True)
    square = both.square().sum(dim=-1)
    distance = (square[..., :, None] + square[..., None, :] - 2 * both @ both.mT).clamp(min=0) * scale
    # A face and its own masked picture are so close that the Gram matrix would round their distance away.
    pair = (x - y).square().sum(dim=-1) * scale
    own = torch.eye(n, dtype=torch.bool, device=x.device)
    xx, yy = (_kernel(distance[..., part, part].masked_fill(own, 0), variances) for part in (slice(n), slice(n, None)))
    xy = _kernel(torch.where(own, pair[..., None], distance[..., :n, n:]), variances)
    return (xx + yy - 2 * xy).mean(dim=(-2, -1))


def _kernel(distance: Tensor, variances: Sequence[float]) -> Tensor:
    return sum((torch.exp(distance / (-2 * v)) for v in variances), torch.zeros_like(distance))


def gain(real: Tensor, targets: Tensor, choice: Choice = "G") -> Tensor:
    """How good a candidate is: equation 9, or the variants of section 5.1.

    real : (...), D to the real face; targets : (..., K), D to each target

    Returns (...) : log(1 + max_k exp(real - targets_k)), with the sum over k for "G1" and the minimum for "G2".
    """
    each = torch.exp(real[..., None] - targets)
    if choice == "G1":
        return torch.log1p(each.sum(dim=-1))
    return torch.log1p(each.amin(dim=-1) if choice == "G2" else each.amax(dim=-1))


def project(x: Tensor, real: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """The nearest point of the ball about ``real``, cut to what a picture holds: grey levels (..., 3, S, S)."""
    if norm == "linf":
        return torch.minimum(torch.maximum(x, real - epsilon), real + epsilon).clamp(0, 255)
    away = x - real
    length = away.square().mean(dim=(-3, -2, -1), keepdim=True).sqrt()
    return (real + away * (epsilon / length.clamp(min=epsilon))).clamp(0, 255)


def normalise(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of a gradient (..., 3, S, S): its signs ("linf"), or with a root mean square of 1 ("l2")."""
    if norm == "linf":
        return gradient.sign()
    return gradient / gradient.square().mean(dim=(-3, -2, -1), keepdim=True).sqrt().clamp(min=1e-20)


def quantise(x: Tensor, real: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """Grey levels as uint8, whole numbers *inside* the ball: (N, 3, S, S).

    real : (N, 3, S, S) uint8. For "l2" just enough of the values that were rounded up are rounded down instead, those
    nearest to the middle first.
    """
    # Of pictures whose channels lie last in memory, flatten would give copies, and what is saved in them be lost.
    away = (x.double() - real.double()).clamp(-255, 255).contiguous()
    if not away.isfinite().all():
        # Rounded, what is no number would be black, and far outside.
        raise ValueError("tip-im: the mask is not finite; is a weight too large?")
    whole = away.round()
    if norm == "linf":
        most = math.floor(epsilon)
        whole = whole.clamp(-most, most)
    else:
        for own, exact in zip(whole.flatten(1), away.flatten(1), strict=True):
            excess = own.square().sum() - epsilon**2 * len(own)
            if excess > 0:
                over = own.abs() - exact.abs()
                order = over.argsort(descending=True, stable=True)
                saved = torch.where(over > 0, 2 * own.abs() - 1, 0.0)[order].cumsum(0)
                chosen = order[: int((saved < excess).sum()) + 1]
                own[chosen] -= torch.where(over > 0, own.sign(), 0.0)[chosen]
    return (real.double() + whole).clamp(0, 255).to(torch.uint8)


LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)
CHROMINANCE = "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66" + " 99" * 38
"""The quantisation tables of ITU-T T.81, annex K."""


def jpeg(x: Tensor, quality: int, subsampling: Subsampling = "420") -> Tensor:
    """What is left of grey levels x (N, 3, H, W) after a JPEG file of this quality; a rounding passes its gradient on.

    As libjpeg does it: JFIF's colours, tables scaled by the quality, chroma halved by means and grown by triangles.
    """
    height, width = x.shape[-2:]
    half = 2 if subsampling == "420" else 1
    x = F.pad(x, (0, -width % (8 * half), 0, -height % (8 * half)), mode="replicate")
    colours = torch.tensor(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=x.dtype
    ).to(x.device)
    planes = _round(torch.einsum("ck,nkhw->nchw", colours, x))
    light, colour = planes[:, :1] - 128, planes[:, 1:]
    if half == 2:
        colour = F.avg_pool2d(colour, 2)
    light = _blocks(light, _table(LUMINANCE, quality).to(x)) + 128
    colour = _blocks(colour, _table(CHROMINANCE, quality).to(x))
    if half == 2:
        colour = _round(F.interpolate(colour, scale_factor=2, mode="bilinear"))
    back = torch.einsum("ck,nkhw->nchw", torch.linalg.inv(colours), torch.cat([light, colour], dim=1))
    return _round(back.clamp(0, 255))[..., :height, :width]


def _blocks(planes: Tensor, table: Tensor) -> Tensor:
    """Planes (N, C, H, W) about 0, the cosine coefficients of their 8 x 8 blocks rounded to the table's multiples."""
    n, c, height, width = planes.shape
    at = torch.arange(8, dtype=torch.float64)
    cosines = torch.cos((2 * at + 1) * at[:, None] * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    cosines = cosines.to(planes)
    blocks = _round(planes).reshape(n, c, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = cosines @ blocks @ cosines.T
    kept = _round(coefficients / table) * table
    return _round((cosines.T @ kept @ cosines).clamp(-128, 127)).transpose(3, 4).reshape(n, c, height, width)


def _round(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


@lru_cache
def _table(text: str, quality: int) -> Tensor:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = (torch.tensor([float(n) for n in text.split()]) * percent + 50).div(100, rounding_mode="floor")
    return table.clamp(1, 255).reshape(8, 8)


def target_gradients(embedding: Tensor, x: Tensor, cotangents: Tensor, batched: bool | None = None) -> Tensor:
    """Vector-Jacobian products of one forward pass: embedding (N, W) of x (N, 3, S, S), cotangents (K, N, W).

    batched : all K in one backward pass over tensors K times as large, or one after the other; without, the first on a
        GPU, where starting kernels is what takes long, and the second on a CPU, where it is faster from N = 4 on

    Returns (K, N, 3, S, S). The graph is kept.
    """
    if x.is_cuda if batched is None else batched:
        (found,) = torch.autograd.grad(embedding, x, cotangents, retain_graph=True, is_grads_batched=True)
        return found
    return torch.stack([torch.autograd.grad(embedding, x, one, retain_graph=True)[0] for one in cotangents])


class Masker:
    """Makes masks against surrogates, for crops of one size.

    surrogates : recognisers with a gradient
    targets : for each surrogate the unit embeddings of the K target identities, (K, width); None for "advnoise"
    size : S, pixels a side; alignment : of the crops, FFHQ's, or ArcFace's at 112 pixels
    """

    def __init__(
        self,
        surrogates: Sequence[Embedder],
        targets: Sequence[Tensor] | None,
        how: Mask,
        size: int,
        alignment: Literal["ffhq", "arcface"] = "ffhq",
        device: str | torch.device = "cpu",
    ) -> None:
        if not surrogates:
            raise ValueError("tip-im: at least one surrogate recogniser is needed")
        if how.choice == "advnoise":
            targets = None
        elif targets is None or len(targets) != len(surrogates) or not len(targets[0]):
            raise ValueError("tip-im: one target or more is needed, with an embedding by each surrogate")
        if alignment == "arcface" and size != ARCFACE_SIZE:
            raise ValueError(f"tip-im: a crop in ArcFace's alignment has {ARCFACE_SIZE} pixels a side, not {size}")
        self.how, self.size, self.device, self.surrogates = how, size, torch.device(device), surrogates
        self.cut: Callable[[Tensor], Tensor]
        if alignment == "arcface":
            self.cut = lambda x: x if x.shape[-1] == ARCFACE_SIZE else F.interpolate(x, ARCFACE_SIZE, mode="bilinear")
        else:
            self.cut = Chip(how.resize or size).to(self.device)
        self.targets = None if targets is None else self._side_by_side(targets).to(self.device)

    def __call__(self, pixels: Tensor, draws: Sequence[np.random.Generator]) -> Masked:
        """Masked pictures of ``pixels`` (N, 3, S, S) uint8, of the same shape, all of them inside the ball.

        draws : a generator of its own for each face, so that what is drawn for one depends on no other
        """
        how = self.how
        real = pixels.to(self.device).float()
        with torch.no_grad():
            own = self.embed(real)
        count = 0 if self.targets is None else len(self.targets)
        single = self._draw(draws, count) if how.choice == "single" else None
        x = real
        if how.choice == "advnoise":
            # At the face itself the distance has no slope.
            start = np.stack([one.uniform(-1, 1, real.shape[1:]).astype(np.float32) for one in draws])
            x = project(real + how.epsilon * torch.from_numpy(start).to(real), real, how.epsilon, how.norm)
        nature = self._nature(real, draws) if how.gamma else None
        velocity = torch.zeros_like(real)
        chosen = torch.full((how.steps, len(real)), -1, device=self.device)
        for step in range(how.steps):
            x = x.detach().requires_grad_()
            embedding = self.embed(x, self._jitter(draws) if how.diversity else None)
            if self.targets is None:
                (gradient,) = torch.autograd.grad(embedding, x, 2 * (own - embedding.detach()))
            elif how.choice in GREEDY:
                cotangents = 2 * (own - self.targets[:, None])
                each = target_gradients(embedding, x, cotangents)
                chosen[step] = self.greedy(x.detach(), each, real, own)
                gradient = each[chosen[step], torch.arange(len(x))]
            else:
                chosen[step] = single if single is not None else self._draw(draws, count)
                (gradient,) = torch.autograd.grad(embedding, x, 2 * (own - self.targets[chosen[step]]))
            # At the real faces the MMD has no slope, only rounding errors that "gradients" would make large.
            if nature is not None and step:
                (other,) = torch.autograd.grad(nature(x), x)
                scale = _size(gradient) / _size(other).clamp(min=1e-30) if how.balance == "gradients" else 1.0
                gradient = gradient + how.gamma * scale * other
            velocity = how.momentum * velocity + gradient / _size(gradient).clamp(min=1e-30)
            x = project(x.detach() - how.alpha * normalise(velocity, how.norm), real, how.epsilon, how.norm)
        return Masked(quantise(x, pixels.to(self.device), how.epsilon, how.norm), chosen)

    def greedy(self, x: Tensor, gradients: Tensor, real: Tensor, own: Tensor) -> Tensor:
        """Algorithm 1: for each face the target whose candidate has the largest gain, the first of equals.

        x, real : (N, 3, S, S) grey levels; gradients : (K, N, 3, S, S); own : (N, W), embeddings of ``real``

        Returns (N,) int64.
        """
        assert self.targets is not None
        how, gains = self.how, []
        with torch.no_grad():
            for part in gradients.split(len(gradients) if x.is_cuda else 1):
                candidates = project(x - how.alpha * normalise(part, how.norm), real, how.epsilon, how.norm)
                found = self.embed(candidates.flatten(0, 1)).unflatten(0, part.shape[:2])
                distances = (found[..., None, :] - self.targets).square().sum(dim=-1)
                gains.append(gain((found - own).square().sum(dim=-1), distances, how.choice))
        return torch.cat(gains).argmax(dim=0)

    def embed(self, x: Tensor, jitter: Tensor | None = None) -> Tensor:
        """What the surrogates make of crops x (N, 3, S, S) in grey levels after a release: (N, W), of length 1.

        jitter : (N, 2, 3), affine maps of the chips
        """
        how = self.how
        if how.resize is not None and how.resize != x.shape[-1]:
            x = F.interpolate(x, how.resize, mode="bilinear", antialias=True)
        if how.jpeg is not None:
            x = jpeg(x, how.jpeg, how.subsampling)
        chip = self.cut(x / 255)
        if jitter is not None:
            chip = F.grid_sample(chip, F.affine_grid(jitter, list(chip.shape), False), align_corners=False)
        return self._side_by_side([surrogate.embed(chip) for surrogate in self.surrogates])

    def _side_by_side(self, embeddings: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(embeddings), dim=1) / math.sqrt(len(embeddings))

    def _draw(self, draws: Sequence[np.random.Generator], count: int) -> Tensor:
        return torch.tensor([int(one.integers(count)) for one in draws], device=self.device)

    def _jitter(self, draws: Sequence[np.random.Generator]) -> Tensor:
        still = np.eye(2, 3)
        low = min(0.01, self.how.diversity)
        drawn = [still + one.uniform(low, self.how.diversity) * one.standard_normal((2, 3)) for one in draws]
        return torch.from_numpy(np.stack(drawn)).float().to(self.device)

    def _nature(self, real: Tensor, draws: Sequence[np.random.Generator]) -> Callable[[Tensor], Tensor]:
        """N times the MMD, as a function of x: what it adds to a face's own loss."""
        if self.how.naturalness == "batch":
            return lambda x: len(real) * mmd(x.flatten(1), real.flatten(1))
        grids, light = zip(*(_views(one, self.how.augmentations) for one in draws), strict=True)
        grid, bright = torch.stack(grids).to(self.device), torch.stack(light).to(self.device)

        def look(x: Tensor) -> Tensor:
            views = [
                F.grid_sample(one.expand(len(g), -1, -1, -1), g, padding_mode="reflection", align_corners=False)
                for one, g in zip(x[:, None], grid, strict=True)
            ]
            return torch.stack(views).flatten(2) * bright[..., None]

        still = look(real)
        return lambda x: self.how.augmentations * mmd(look(x), still).sum()


def _size(x: Tensor) -> Tensor:
    return x.abs().mean(dim=(-3, -2, -1), keepdim=True)


def _views(draws: np.random.Generator, count: int, side: int = ARCFACE_SIZE) -> tuple[Tensor, Tensor]:
    """Random views of one picture, for appendix C: turned, seen askew, lighter or darker.

    Returns grids (count, side, side, 2) for ``grid_sample``, and factors (count,). The first view changes nothing.
    """
    turn, askew, light = draws.normal(0, 0.15, count), draws.normal(0, 0.08, (count, 2)), draws.normal(1, 0.1, count)
    turn[0], askew[0], light[0] = 0, 0, 1
    maps = np.zeros((count, 3, 3))
    maps[:, 0, 0] = maps[:, 1, 1] = np.cos(turn)
    maps[:, 0, 1], maps[:, 1, 0] = -np.sin(turn), np.sin(turn)
    maps[:, 2, :2], maps[:, 2, 2] = askew, 1
    at = (np.arange(side) + 0.5) / side * 2 - 1
    points = np.stack([*np.meshgrid(at, at), np.ones((side, side))], axis=-1)
    seen = np.einsum("nij,hwj->nhwi", maps, points)
    return torch.from_numpy(seen[..., :2] / seen[..., 2:]).float(), torch.from_numpy(light).float()


@torch.inference_mode()
def generated_targets(
    key: RunKey, count: int, generator: MobileStyleGAN, size: int = 256, psi: float = 0.7, name: str = "tip-im"
) -> np.ndarray:
    """Faces of nobody, to be taken for: drawn by the run key for ``name``, (count, size, size, 3) uint8 RGB, FFHQ's
    alignment. The first ones are the same for every count.
    """
    device, made = generator.mean_latent.device, []
    for number in range(count):
        z = key.generator("target", f"{name}/{number}").standard_normal((1, STYLE), dtype=np.float32)
        latent = generator.truncate(generator.mapping(torch.from_numpy(z).to(device)), psi)
        made.append(generator.synthesis(latent, size)[0].float().clamp(0, 1))
    return (torch.stack(made) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def embeddings(surrogates: Sequence[Embedder], crops: Sequence[np.ndarray], device: str = "cpu") -> list[Tensor]:
    """Unit embeddings of (S, S, 3) uint8 RGB crops in FFHQ's alignment, or in ArcFace's at 112 pixels: for each
    surrogate (K, width).
    """
    x = torch.from_numpy(np.stack(crops)).to(device).permute(0, 3, 1, 2).float() / 255
    chips = x if x.shape[-1] == ARCFACE_SIZE else Chip(x.shape[-1]).to(device)(x)
    return [surrogate.embed(chips) for surrogate in surrogates]


class TipIm(Stage):
    """Masks the pictures of a batch: surrogates after rendering (``rendered``), or originals (``crop``: cloaking).

    <column> : (S, S, 3) uint8 RGB, FFHQ's alignment; masked, and None in rows that failed here
    target : int16, which of the targets the last step chose; -1 for "advnoise" and in rows that are not ``ok``

    All draws are HMAC(run key, face_id). A face's mask depends on it and its picture alone, except where the MMD is of
    a batch (``Mask.coupled``): there it also depends on the faces of its micro-batch, the live rows of one size, in
    their order, ``at_once`` at a time. Micro-batches that are fixed by the manifest keep that repeatable; augmentations
    (``naturalness="augment"``) avoid it.
    """

    name = "tip-im"

    def __init__(
        self,
        key: RunKey,
        how: Mask | None = None,
        column: Literal["rendered", "crop"] = "rendered",
        surrogates: Sequence[str | os.PathLike[str]] = ("arcface-mobilefacenet",),
        targets: int | Sequence[np.ndarray] = 10,
        at_once: int | None = None,
        device: str = "cpu",
        threads: int = 1,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        resources: Resources | None = None,
    ) -> None:
        """
        surrogates : as in ``recognise.load``, each with a gradient
        targets : how many faces to generate, or crops as in ``embeddings``; read before the rows, and shared by all
        at_once : faces handled together, always that many. Without: 50 where they share an MMD or a GPU, else 1
        device : "cpu" or "cuda"
        """
        self.key, self.how, self.column = key, how or Mask(), column
        self.inputs, self.outputs = (column, "face_id"), (column, "target", "status", "reason")  # type: ignore[misc]
        self.transient = (column,)  # type: ignore[misc]
        if isinstance(targets, int) and targets < 1 and self.how.choice != "advnoise":
            raise ValueError(f"tip-im: {targets} targets, but at least one is needed")
        together = self.how.coupled or device != "cpu"
        self.at_once = at_once if at_once is not None else BATCH if together else 1
        self.files, self.wanted, self.device, self.threads, self.folder = surrogates, targets, device, threads, folder
        self.resources = resources or Resources()
        self.surrogates: list[Embedder] | None = None
        self.targets: list[Tensor] | None = None
        self._maskers: dict[int, Masker] = {}

    def setup(self) -> None:
        cv2.setNumThreads(1)
        torch.set_num_threads(self.threads)
        kind: models.Device = "cpu" if self.device == "cpu" else "gpu"
        loaded = [recognise.load(file, kind, folder=self.folder) for file in self.files]
        blind = [recogniser.name for recogniser in loaded if not recogniser.differentiable]
        if blind:
            raise recognise.NotDifferentiable(f"tip-im: no gradient passes through {', '.join(blind)}")
        self.surrogates = list(loaded)
        if self.how.choice != "advnoise":
            faces = self.wanted
            if isinstance(faces, int):
                generator = MobileStyleGAN.load(models.path("mobilestylegan-ffhq", folder=self.folder))
                faces = list(generated_targets(self.key, faces, generator.to(self.device)))
            self.targets = embeddings(self.surrogates, faces, self.device)

    def __call__(self, batch: Batch) -> Batch:
        if self.surrogates is None:
            self.setup()
        status, reason = outcomes(batch)
        pictures: list[np.ndarray | None] = list(batch[self.column])
        target = np.full(len(status), -1, np.int16)
        sizes: dict[int, list[int]] = {}
        for i in live({"status": status}):
            try:
                sizes.setdefault(_side(pictures[i]), []).append(int(i))
            except ValueError as error:
                status[i], reason[i], pictures[i] = FAILED, explain(self.name, error), None
        for size, rows in sizes.items():
            for first in range(0, len(rows), self.at_once):
                chosen = rows[first : first + self.at_once]
                try:
                    masked = self._mask(size, [pictures[i] for i in chosen], [batch["face_id"][i] for i in chosen])
                    for i, (picture, last) in zip(chosen, masked, strict=True):
                        pictures[i], target[i] = picture, last
                except Exception as error:
                    status[chosen], reason[chosen] = FAILED, explain(self.name, error)
                    for i in chosen:
                        # A picture without its mask must not pass for a masked one.
                        pictures[i] = None
        return {**batch, self.column: pictures, "target": target, "status": status, "reason": reason}

    def _mask(self, size: int, pictures: Sequence[Any], names: Sequence[str | bytes]) -> list[tuple[np.ndarray, int]]:
        assert self.surrogates is not None
        if size not in self._maskers:
            self._maskers[size] = Masker(self.surrogates, self.targets, self.how, size, device=self.device)
        # Filled up, so that a face's last bits, which a sign makes large, do not depend on how many others there are.
        filler = 0 if self.how.coupled else self.at_once - len(pictures)
        filled = [*range(len(pictures)), *[len(pictures) - 1] * filler]
        pixels = torch.from_numpy(np.stack([pictures[i] for i in filled])).permute(0, 3, 1, 2)
        found = self._maskers[size](pixels, [self.key.generator("tip-im", names[i]) for i in filled])
        shown = found.pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return [(shown[i], int(found.chosen[-1, i])) for i in range(len(pictures))]


def _side(crop: Any) -> int:
    shape: tuple[int, ...] = getattr(crop, "shape", ())
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3 or shape[0] < 16 or crop.dtype != np.uint8:
        raise ValueError(f"a picture is (S, S, 3) uint8 with at least 16 pixels a side, not {shape or type(crop)}")
    return int(shape[0])
