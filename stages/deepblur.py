"""DeepBlur: the latent of a face, low-pass filtered, rendered anew.

Li and Choi: DeepBlur, A Simple and Effective Method for Natural Image Obfuscation, CVPR Workshops 2021. With w the
latent found by a search (``inversion``) and g the Gaussian of equation 1, the face shown is that of g(w) (equation 2).

Departures, both because of the generator: what is filtered is w less the mean latent (filtered as it is, this
generator's w turns the picture grey at once), and beyond its edges the array continues with zeros, that is, the mean
latent. So a wider kernel leaves less of the person everywhere, and nothing in the limit: the average face.
Mirrored edges would keep the array's mean, a number of the person's own, at any sigma.

Privacy is measured, never promised: the picture still depends on the person.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from facecrowd.stages.attributes import pictures
from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.inversion import SHIPPED_ENCODER, Networks, Optimiser, Size, Start, search
from facecrowd.stages.networks.mobilestylegan import SIZES
from facecrowd.stages.stage import Batch, Resources, Stage, live

SIGMA = 1.0
"""The stronger of the two settings that the paper's table 2 compares (0.5 and 1.0)."""


def low_pass(latent: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """The latent with its residual from the mean filtered by a two-dimensional Gaussian.

        w'[i, j] = mean[j] + sum over rows k and numbers l of  G(i - k) G(j - l) (w[k, l] - mean[l])

    with G(d) = exp(-d^2 / (2 sigma^2)), scaled to sum 1 over all whole d (equation 1, sampled), not cut off anywhere.
    What lies outside the array counts as 0.

    latent : (N, 23, 512); mean : (512,); sigma : standard deviation in places of the array, above 0

    Returns (N, 23, 512). Raises ``ValueError`` for a sigma that is not above 0.
    """
    if not sigma > 0:
        raise ValueError(f"deepblur: sigma is {sigma}, but must be above 0")
    rows, numbers = (_gaussian(n, sigma).to(latent) for n in latent.shape[-2:])
    return mean + rows @ (latent - mean) @ numbers


def _gaussian(count: int, sigma: float) -> Tensor:
    """(count, count), entry [i, k] = G(i - k)."""
    reach = max(count, math.ceil(10 * sigma))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64).square()) / (2 * sigma**2))
    at = torch.arange(count)
    return (kernel / kernel.sum())[at[:, None] - at + reach]


class DeepBlur(Stage):
    """Renders every crop of a batch anew, from its low-pass filtered latent.

    rendered : (size, size, 3) uint8 RGB; None in rows that are not ``ok``
    search_loss : float32, of the latent before it was filtered; NaN in rows that are not ``ok``
    search_steps : int32, steps taken; fewer than asked where the search converged
    converged : bool
    """

    name = "deepblur"
    inputs = ("crop",)
    outputs = ("rendered", "search_loss", "search_steps", "converged", "status", "reason")
    transient = ("rendered",)

    def __init__(
        self,
        sigma: float = SIGMA,
        steps: int = 10,
        start: Start = "encoder",
        size: int = 256,
        look_size: Size = 128,
        optimiser: Optimiser = "lbfgs",
        encoder: str | os.PathLike[str] = SHIPPED_ENCODER,
        at_once: int = 1,
        device: str = "cpu",
        threads: int = 1,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        resources: Resources | None = None,
    ) -> None:
        """
        sigma : of ``low_pass``, 0.5 (close) to 100 (the average face)
        steps, optimiser : of ``inversion.search``, which compares at ``look_size`` pixels; 0 steps take the start
        start : the search's start, an encoder's guess or the mean latent
        size : pixels a side of what is rendered: 1024, 512, 256 or 128
        at_once : faces searched together; 1 is right on a CPU, and makes a face's result independent to the last bit
        device : "cpu" or "cuda"
        """
        if not sigma > 0:
            raise ValueError(f"deepblur: sigma is {sigma}, but must be above 0")
        if size not in SIZES:
            raise ValueError(f"deepblur: size is {size}, but the generator makes {', '.join(map(str, SIZES))}")
        if steps < 0 or (steps == 0 and start == "mean"):
            raise ValueError("deepblur: without a step from the average face, every face would be the average face")
        self.sigma, self.steps, self.start, self.size = sigma, steps, start, size
        self.look_size, self.optimiser, self.encoder = look_size, optimiser, encoder
        self.at_once, self.device, self.threads, self.folder = at_once, device, threads, folder
        self.resources = resources or Resources()
        self.networks: Networks | None = None

    def setup(self) -> None:
        cv2.setNumThreads(1)
        torch.set_num_threads(self.threads)
        self.networks = Networks.load(self.start, self.device, self.folder, self.encoder)

    def __call__(self, batch: Batch) -> Batch:
        if self.networks is None:
            self.setup()
        assert self.networks is not None
        status, reason = outcomes(batch)
        rendered: list[np.ndarray | None] = [None] * len(status)
        loss, taken = np.full(len(status), np.nan, np.float32), np.zeros(len(status), np.int32)
        converged = np.zeros(len(status), bool)
        rows = whole(batch, status, reason, self.name)
        for first in range(0, len(rows), self.at_once):
            chosen = rows[first : first + self.at_once]
            try:
                crops = [batch["crop"][i] for i in chosen]
                latent, found = self._latent(self.networks, crops)
                shown = render(self.networks, low_pass(latent, self.networks.space.mean, self.sigma), self.size)
                for n, i in enumerate(chosen):
                    rendered[i] = shown[n]
                if found is not None:
                    loss[chosen], taken[chosen], converged[chosen] = found
            except Exception as error:
                status[chosen], reason[chosen] = "failed", explain(self.name, error)
        out = {"rendered": rendered, "search_loss": loss, "search_steps": taken, "converged": converged}
        return {**batch, **out, "status": status, "reason": reason}

    def _latent(
        self, networks: Networks, crops: list[np.ndarray]
    ) -> tuple[Tensor, tuple[np.ndarray, np.ndarray, np.ndarray] | None]:
        x = pictures(crops, self.look_size).to(self.device)
        start = networks.start(x)
        if self.steps == 0:
            assert start is not None
            return start, None
        result = search(
            networks.generator,
            networks.backbone,
            x,
            start=start,
            steps=self.steps,
            size=self.look_size,
            optimiser=self.optimiser,
            space=networks.space,
        )
        return result.latent, (result.loss[-1].numpy(), result.steps_taken.numpy(), result.converged.numpy())


def whole(batch: Batch, status: np.ndarray, reason: np.ndarray, stage: str) -> np.ndarray:
    """The live rows whose crop is one, (n,); the others are marked as failed. One bad crop then costs no other row."""
    for i in live({"status": status}):
        crop = batch["crop"][i]
        shape: tuple[int, ...] = getattr(crop, "shape", ())
        if len(shape) != 3 or shape[0] != shape[1] or shape[0] < 1 or shape[2] != 3 or crop.dtype != np.uint8:
            error = ValueError(f"a crop is (S, S, 3) uint8, not {shape or type(crop).__name__}")
            status[i], reason[i] = "failed", explain(stage, error)
    return live({"status": status})


@torch.no_grad()
def render(networks: Networks, latent: Tensor, size: int) -> np.ndarray:
    """w+ (N, 23, 512) to (N, size, size, 3) uint8 RGB."""
    made = networks.generator.synthesis(latent, size).float().clamp(0, 1)
    return (made * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
