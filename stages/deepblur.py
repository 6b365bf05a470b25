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

import numpy as np
import torch
from torch import Tensor

from facecrowd.stages.attributes import pictures
from facecrowd.stages.inversion import Networks, Search, search
from facecrowd.stages.searching import OUTPUTS, Searching, render_all
from facecrowd.stages.stage import Batch, Resources, Stage

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

    Columns as in ``searching.render_all``; the loss is of the latent before it was filtered.
    """

    name = "deepblur"
    inputs = ("crop",)
    outputs = OUTPUTS
    transient = ("rendered",)

    def __init__(self, sigma: float = SIGMA, how: Searching | None = None, resources: Resources | None = None) -> None:
        """
        sigma : of ``low_pass``, 0.5 (close) to 100 (the average face)
        how : 0 steps from an encoder's guess filter the guess itself
        """
        self.sigma, self.how = sigma, how or Searching()
        if not sigma > 0:
            raise ValueError(f"deepblur: sigma is {sigma}, but must be above 0")
        if self.how.steps == 0 and self.how.start == "mean":
            raise ValueError("deepblur: without a step from the average face, every face would be the average face")
        self.resources = resources or Resources()
        self.networks: Networks | None = None

    def setup(self) -> None:
        self.networks = self.how.networks()

    def __call__(self, batch: Batch) -> Batch:
        if self.networks is None:
            self.setup()
        return render_all(
            self.name, batch, self.how.at_once, lambda rows: self._blurred([batch["crop"][i] for i in rows])
        )

    def _blurred(self, crops: list[np.ndarray]) -> tuple[np.ndarray, Search | None]:
        networks, how = self.networks, self.how
        assert networks is not None
        x = pictures(crops, how.look_size).to(how.device)
        latent, found = networks.start(x), None
        if how.steps:
            found = search(
                networks.generator,
                networks.backbone,
                x,
                start=latent,
                steps=how.steps,
                size=how.look_size,
                optimiser=how.optimiser,
                space=networks.space,
                half=networks.half,
            )
            latent = found.latent
        assert latent is not None
        return networks.render(low_pass(latent, networks.space.mean, self.sigma), how.size), found
