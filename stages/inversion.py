"""Latent search: the w+ whose picture is closest to a given one.

Li and Choi: DeepBlur, CVPR Workshops 2021 (section 3.2, "Latent representation search", and 5.1). From the average
face, or from an encoder's guess, the latent is moved down the gradient of

    loss(w+) = deep + PIXELS * mean |x - x0|^2 + pull * mean z^2 + hold * mean (z - z_start)^2

    deep     mean over the feature maps l, and over their positions, of |y_l - y0_l|^2 with y the features of the LPIPS
             backbone, each position scaled to length 1 (without LPIPS' heads, which ignore half of the channels)
    x, x0    the picture made and the picture given, RGB in [0, 1], at ``size`` pixels
    z        w+ less the mean latent, scaled by its spread over random faces: z = (w+ - mean) C^-1/4, C the covariance

The search runs in z. Scaled by C^-1/2 every direction of the prior weighs the same (Zhu et al., arXiv:2012.09036),
which keeps faces natural but is slow; with no scaling it is fastest and drifts where random faces hardly ever are.
Half way loses nothing of the speed (loss after 20 steps 0.200, against 0.271 and 0.185) and stays near the prior
(root mean square of C^-1/2 (w+ - mean) 0.20, against 0.11 and 0.60).

Every face is a problem of its own: the optimisers share nothing across a batch, so that a face ends at the same latent
whoever is searched beside it, up to the rounding of batched convolutions. One step is one evaluation of loss and
gradient, for every optimiser; what a line search tries and rejects counts too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facecrowd.stages import models
from facecrowd.stages.networks.encoder import SHIPPED as SHIPPED_ENCODER
from facecrowd.stages.networks.encoder import Encoder
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE, MobileStyleGAN
from facecrowd.stages.networks.vgg import MEAN, Lpips

PIXELS = 2.0
PULL = 1e-3
HOLD = 1e-3
"""Weights of the loss above: PIXELS as measured in a first trial, the other two too weak to be seen in the picture."""

DEPTH = 3
"""Feature maps compared. On two faces of known latents, after 20 steps, LPIPS to the target is 0.146, 0.125 and 0.141
with 2, 3 and 4 maps; most of a step's time is the generator's."""

PATIENCE = 5
"""A face has converged when its loss fell by less than ``tolerance``, relatively, over so many steps."""

NOTHING = 1e-3
"""A loss below this is as good as none, and its falls are measured against this (an average face starts at about 1)."""

SPREAD_DRAWS = 4096
SPREAD_SEED = 20261121

HISTORY = 10
SUFFICIENT = 1e-4
"""Armijo's constant: a step is kept where it brings at least this share of what the slope promises."""

FIRST_STEP = 4.0
"""Length in z of the step along the first gradient; also after a reset."""

RATES = {"adam": 0.05, "adagrad": 0.1, "sgd": 3.0}
MOMENTUM = 0.9

Optimiser = Literal["lbfgs", "adam", "adagrad", "sgd"]
OPTIMISERS: tuple[Optimiser, ...] = ("lbfgs", "adam", "adagrad", "sgd")
Size = Literal[128, 256]
Start = Literal["encoder", "mean"]


@dataclass(frozen=True)
class Search:
    """What a search found.

    latent : (N, 23, 512), per face the best that was evaluated
    loss : (steps + 1, N), the lowest loss up to each step; row 0 is the start's
    seconds : (steps + 1,), wall time since the start when the step's loss was known
    steps_taken : (N,) int64, evaluations after the start; fewer than ``steps`` where the face converged
    converged : (N,) bool
    """

    latent: Tensor
    loss: Tensor
    seconds: Tensor
    steps_taken: Tensor
    converged: Tensor


@dataclass(frozen=True)
class Space:
    """The coordinates of the search: w = mean + z root, with ``mean`` (512,), ``root`` and its ``inverse`` (512, 512).

    root is C^1/4, C the covariance of w over random faces, times the factor that gives it the trace of C^1/2.
    """

    mean: Tensor
    root: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, generator: MobileStyleGAN) -> Space:
        """The mean and covariance of w over 4096 draws of z from a fixed seed, on the generator's device.

        Directions with less than a thousandth of the largest spread are given that much: nothing is divided by zero.
        """
        device = generator.mean_latent.device
        z = torch.randn(SPREAD_DRAWS, STYLE, generator=torch.Generator().manual_seed(SPREAD_SEED))
        with torch.no_grad():
            centred = generator.mapping(z.to(device)).double().cpu() - generator.mean_latent.double().cpu()
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        spread = values.clamp(min=0).sqrt()
        spread = spread.clamp(min=1e-3 * float(spread.max()))
        spread = spread.sqrt() * (spread.mean() / spread.sqrt().mean())
        root, inverse = (vectors * spread) @ vectors.T, (vectors / spread) @ vectors.T
        return cls(generator.mean_latent, root.float().to(device), inverse.float().to(device))

    def whiten(self, latent: Tensor) -> Tensor:
        """w+ (..., 512) to z of the same shape."""
        return (latent - self.mean) @ self.inverse

    def colour(self, z: Tensor) -> Tensor:
        """z (..., 512) to w+ of the same shape."""
        return self.mean + z @ self.root


def search(
    generator: MobileStyleGAN,
    backbone: Lpips,
    pictures: Tensor,
    *,
    start: Tensor | None = None,
    steps: int = 10,
    size: Size = 128,
    optimiser: Optimiser = "lbfgs",
    mask: Tensor | None = None,
    tolerance: float = 1e-3,
    depth: int = DEPTH,
    pull: float = PULL,
    hold: float = HOLD,
    space: Space | None = None,
    half: bool = False,
) -> Search:
    """The latents whose pictures are closest to ``pictures``.

    generator, backbone : on the device of the pictures
    pictures : (N, 3, H, W) RGB in [0, 1] in FFHQ's alignment; compared at ``size``, to which larger ones are averaged
    start : (N, 23, 512), held to weakly (an encoder's guess); the mean latent without
    steps : evaluations after the start; 0 only measures the start's loss
    mask : (N, 1, size, size) in [0, 1]; pixels of weight 0 are never looked at, whatever they hold
    tolerance : relative; 0 takes all the steps
    depth : feature maps compared, 1 to 5
    pull, hold : weights of the pulls to the mean latent and to the start
    space : of this generator, where a caller keeps it; measured here otherwise (a second)
    half : bfloat16 in the networks, for GPUs

    Raises ``ValueError`` for shapes, sizes or names that do not fit.
    """
    _check(pictures, start, steps, size, optimiser, mask, depth)
    space = space or Space.of(generator)
    count, device = len(pictures), pictures.device
    z0 = torch.zeros(count, ROWS, STYLE, device=device) if start is None else space.whiten(start.detach())
    loss_of = _Loss(generator, backbone, space, _resize(pictures, size), mask, z0, depth, pull, hold, half)
    walker = _walker(optimiser, z0.flatten(1))

    best, best_loss = z0.flatten(1).clone(), torch.full((count,), torch.inf, device=device)
    losses, seconds = torch.zeros(steps + 1, count), torch.zeros(steps + 1)
    taken, converged = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
    began = time.perf_counter()
    for step in range(steps + 1):
        open_ = (~converged).nonzero()[:, 0]
        if len(open_):
            rows = open_.to(device)
            last = step == steps
            loss, gradient = loss_of(walker.point[rows], rows, slope=not last)
            better = rows[loss < best_loss[rows]]
            best[better] = walker.point[better]
            best_loss[rows] = torch.minimum(best_loss[rows], loss.nan_to_num(torch.inf))
            if not last:
                walker.move(rows, loss, gradient)
            taken[open_] = step
        losses[step], seconds[step] = best_loss.cpu(), time.perf_counter() - began
        if step >= PATIENCE:
            fall = losses[step - PATIENCE] - losses[step]
            converged |= fall < tolerance * losses[step - PATIENCE].clamp(min=NOTHING)
    return Search(space.colour(best.view_as(z0)), losses, seconds, taken, converged)


@dataclass(frozen=True)
class Networks:
    """What a worker keeps to search latents and to render them.

    encoder : None where searches start from the average face
    half : bfloat16 in generator and backbone, for GPUs; the encoder, which runs once, stays in float32
    """

    generator: MobileStyleGAN
    backbone: Lpips
    space: Space
    encoder: Callable[[Tensor], Tensor] | None = None
    half: bool = False

    @classmethod
    def load(
        cls,
        start: Start = "encoder",
        device: str = "cpu",
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        encoder: str | os.PathLike[str] = SHIPPED_ENCODER,
        half: bool = False,
    ) -> Self:
        """The networks of the registry on ``device`` ("cpu", "cuda"). Raises ``ModelError``."""
        generator = MobileStyleGAN.load(models.path("mobilestylegan-ffhq", folder=folder)).to(device)
        backbone = Lpips.load(models.path("lpips-vgg16", folder=folder)).to(device)
        guess = Encoder.load(encoder, folder).to(device) if start == "encoder" else None
        return cls(generator, backbone, Space.of(generator), guess, half)

    def start(self, pictures: Tensor) -> Tensor | None:
        """The encoder's guess (N, 23, 512) for pictures (N, 3, S, S); None without an encoder."""
        if self.encoder is None:
            return None
        with torch.no_grad():
            return self.encoder(pictures)

    @torch.no_grad()
    def render(self, latent: Tensor, size: int) -> np.ndarray:
        """w+ (N, 23, 512) to (N, size, size, 3) uint8 RGB."""
        with precision(latent.device, self.half):
            made = self.generator.synthesis(latent, size).float().clamp(0, 1)
        return (made * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def precision(device: torch.device, half: bool) -> torch.autocast:
    """Within it networks on ``device`` compute in bfloat16 where ``half``, else in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


class _Loss:
    """Loss and gradient per face; what belongs to the given pictures is computed once."""

    def __init__(
        self,
        generator: MobileStyleGAN,
        backbone: Lpips,
        space: Space,
        pictures: Tensor,
        mask: Tensor | None,
        start: Tensor,
        depth: int,
        pull: float,
        hold: float,
        half: bool,
    ) -> None:
        self.generator, self.backbone, self.space = generator, backbone, space
        self.start, self.depth = start, depth
        self.pull, self.hold, self.half = pull, hold, half
        self.mask = torch.ones_like(pictures[:, :1]) if mask is None else mask.to(pictures)
        self.fill = pictures.new_tensor(MEAN).view(1, 3, 1, 1)
        self.pictures = self._seen(pictures, self.mask)
        with torch.no_grad(), precision(start.device, half):
            self.wanted = [_unit(maps) for maps in backbone.features(self.pictures, depth)]
        # The share of a feature's pixels that are seen; each map's weights have mean 1.
        self.weights = [
            _mean_one(F.adaptive_avg_pool2d(self.mask, (maps.shape[-2], maps.shape[-1]))) for maps in self.wanted
        ]
        self.pixel_weights = _mean_one(self.mask)

    def __call__(self, point: Tensor, rows: Tensor, slope: bool = True) -> tuple[Tensor, Tensor]:
        """point (n, 23 * 512) in z of the faces ``rows`` (n,) to their losses (n,) and gradients (n, 23 * 512).

        Without ``slope`` the gradients are zeros, at a third of the cost.
        """
        point = point.detach().requires_grad_(slope)
        z = point.view(-1, ROWS, STYLE)
        with torch.set_grad_enabled(slope):
            latent = self.space.colour(z)
            with precision(latent.device, self.half):
                made = self.generator.synthesis(latent, self.pictures.shape[-1]).float()
                seen = self._seen(made, self.mask[rows])
                maps = self.backbone.features(seen, self.depth)
            loss = PIXELS * ((seen - self.pictures[rows]).square() * self.pixel_weights[rows]).mean((1, 2, 3))
            for one, other, weight in zip(maps, self.wanted, self.weights, strict=True):
                apart = (_unit(one) - other[rows]).square().sum(1, keepdim=True)
                loss = loss + (apart * weight[rows]).mean((1, 2, 3)) / self.depth
            loss = loss + self.pull * z.square().mean((1, 2))
            loss = loss + self.hold * (z - self.start[rows]).square().mean((1, 2))
            # The faces' losses share nothing, so the gradient of their sum holds every face's own.
            gradient = torch.autograd.grad(loss.sum(), point)[0] if slope else torch.zeros_like(point)
        return loss.detach(), gradient

    def _seen(self, pictures: Tensor, mask: Tensor) -> Tensor:
        # Hidden pixels get the backbone's zero, in both pictures: no feature near the edge learns what was there.
        return torch.where(mask > 0, self.fill + (pictures - self.fill) * mask, self.fill)


class _Walker(Protocol):
    """An optimiser: ``point`` (N, D) is what to evaluate next; ``move`` takes loss and gradient there."""

    point: Tensor

    def move(self, rows: Tensor, loss: Tensor, gradient: Tensor) -> None: ...


class _FirstOrder:
    """PyTorch's optimisers that work number by number, and so face by face."""

    def __init__(self, name: Optimiser, start: Tensor) -> None:
        self.point = start.clone()
        if name == "adam":
            self.rule: torch.optim.Optimizer = torch.optim.Adam([self.point], RATES[name])
        elif name == "adagrad":
            self.rule = torch.optim.Adagrad([self.point], RATES[name])
        else:
            self.rule = torch.optim.SGD([self.point], RATES[name], MOMENTUM)

    def move(self, rows: Tensor, loss: Tensor, gradient: Tensor) -> None:
        self.point.grad = torch.zeros_like(self.point)
        self.point.grad[rows] = gradient
        self.rule.step()


class _Lbfgs:
    """Limited-memory BFGS (Nocedal and Wright, Numerical Optimization, 2nd ed., algorithm 7.4), many faces at a time.

    Each face has its own history and its own line search: a trial that does not bring Armijo's decrease is drawn back
    by quadratic interpolation, while other faces go on. Pairs without positive curvature are not stored.
    """

    def __init__(self, start: Tensor) -> None:
        count, width = start.shape
        self.point = start.clone()
        self.base, self.gradient = start.clone(), torch.zeros_like(start)
        self.direction, self.slope = torch.zeros_like(start), start.new_zeros(count)
        self.loss, self.length = start.new_full((count,), torch.inf), start.new_ones(count)
        self.s, self.y = start.new_zeros(count, HISTORY, width), start.new_zeros(count, HISTORY, width)
        self.rho = start.new_zeros(count, HISTORY)

    def move(self, rows: Tensor, loss: Tensor, gradient: Tensor) -> None:
        promised = SUFFICIENT * self.length[rows] * self.slope[rows]
        # The start is kept: nothing was known before it.
        kept = (loss <= self.loss[rows] + promised) | torch.isinf(self.loss[rows])
        self._keep(rows[kept], loss[kept], gradient[kept])
        self._draw_back(rows[~kept], loss[~kept])
        self.point[rows] = self.base[rows] + self.length[rows, None] * self.direction[rows]

    def _keep(self, rows: Tensor, loss: Tensor, gradient: Tensor) -> None:
        s, y = self.point[rows] - self.base[rows], gradient - self.gradient[rows]
        curvature = (s * y).sum(1)
        # At the start s is 0, and so is its curvature.
        stored = curvature > 1e-8 * s.norm(dim=1) * y.norm(dim=1)
        known = rows[stored]
        for memory, new in ((self.s, s[stored]), (self.y, y[stored]), (self.rho, 1 / curvature[stored])):
            memory[known] = torch.cat([memory[known, 1:], new[:, None]], dim=1)
        self.base[rows], self.gradient[rows], self.loss[rows] = self.point[rows], gradient, loss
        self._aim(rows)

    def _draw_back(self, rows: Tensor, loss: Tensor) -> None:
        length, slope = self.length[rows], self.slope[rows]
        rise = loss.nan_to_num(torch.inf) - self.loss[rows] - length * slope
        least = -slope * length.square() / (2 * rise)
        self.length[rows] = torch.minimum(torch.maximum(least.nan_to_num(0), 0.1 * length), 0.5 * length)
        lost = rows[self.length[rows] < 1e-2]
        self.rho[lost] = 0
        self._aim(lost)

    def _aim(self, rows: Tensor) -> None:
        """The direction from ``base`` by the two-loop recursion; along the gradient where nothing is stored."""
        s, y, rho = self.s[rows], self.y[rows], self.rho[rows]
        q, alphas = self.gradient[rows].clone(), []
        for i in reversed(range(HISTORY)):
            alphas.append(rho[:, i] * (s[:, i] * q).sum(1))
            q = q - alphas[-1][:, None] * y[:, i]
        fresh = rho[:, -1] == 0
        first = FIRST_STEP / self.gradient[rows].norm(dim=1).clamp(min=1e-12)
        scale = torch.where(fresh, first, 1 / (rho[:, -1] * y[:, -1].square().sum(1)).clamp(min=1e-12))
        q = q * scale[:, None]
        for i in range(HISTORY):
            beta = rho[:, i] * (y[:, i] * q).sum(1)
            q = q + (alphas[HISTORY - 1 - i] - beta)[:, None] * s[:, i]
        self.direction[rows] = -q
        self.slope[rows] = -(q * self.gradient[rows]).sum(1)
        # A direction that was drawn back to nothing along the gradient is tried ever shorter.
        self.length[rows] = torch.where(fresh & (self.length[rows] < 1e-2), self.length[rows], 1.0)


def _walker(optimiser: Optimiser, start: Tensor) -> _Walker:
    return _Lbfgs(start) if optimiser == "lbfgs" else _FirstOrder(optimiser, start)


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def _mean_one(weights: Tensor) -> Tensor:
    return weights / weights.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)


def _resize(pictures: Tensor, size: int) -> Tensor:
    side = pictures.shape[-1]
    if side == size:
        return pictures.float()
    if side % size == 0:
        return F.avg_pool2d(pictures.float(), side // size)
    return F.interpolate(pictures.float(), (size, size), mode="bilinear", antialias=True).clamp(0, 1)


def _check(
    pictures: Tensor,
    start: Tensor | None,
    steps: int,
    size: int,
    optimiser: str,
    mask: Tensor | None,
    depth: int,
) -> None:
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] != pictures.shape[3] or not len(pictures):
        raise ValueError(f"pictures must be (N, 3, S, S) with N > 0, not {tuple(pictures.shape)}")
    if start is not None and start.shape != (len(pictures), ROWS, STYLE):
        raise ValueError(f"start must be ({len(pictures)}, {ROWS}, {STYLE}), not {tuple(start.shape)}")
    if steps < 0:
        raise ValueError(f"steps is {steps}, but must not be negative")
    if size not in (128, 256):
        raise ValueError(f"size is {size}, but pictures are compared at 128 or 256")
    if optimiser not in OPTIMISERS:
        raise ValueError(f"optimiser is {optimiser!r}; it is one of {', '.join(OPTIMISERS)}")
    if mask is not None and mask.shape != (len(pictures), 1, size, size):
        raise ValueError(f"mask must be ({len(pictures)}, 1, {size}, {size}), not {tuple(mask.shape)}")
    if not 1 <= depth <= 5:
        raise ValueError(f"depth is {depth}, but the backbone has 5 maps")
