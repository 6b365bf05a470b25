"""The Inception network behind FID: 2048 features of a picture.

Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter: GANs Trained by a Two Time-Scale Update Rule Converge to a Local
Nash Equilibrium, NeurIPS 2017. FIDs compare only between the same network and the same resizing, so both are those of
the original TensorFlow graph (2015-12-05): bilinear to 299 pixels without half-pixel centres and without a filter,
levels (v - 128) / 128. That resizing aliases when it shrinks; comparing pictures of two sizes measures that too.

The published file is a TorchScript archive. Reading one imports nothing and runs no Python: torch's own unpickler knows
tensors, lists and the classes that the archive itself defines in TorchScript. But it *is* a program in that language,
which can write files, so no file is run here whose hash is not the pinned one; of that one a test states that it holds
convolutions, pooling and arithmetic and nothing else.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from facecrowd.stages import models

SIDE = 299
WIDTH = 2048


class Inception:
    """Pictures to the features whose Gaussian FID compares."""

    def __init__(self, network: torch.jit.ScriptModule) -> None:
        self.network = network.eval()

    @classmethod
    def load(
        cls,
        device: str | torch.device = "cpu",
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    ) -> Inception:
        """The registry's ``inception-fid``, its hash checked; ``folder`` as in ``models.path``.

        Raises ``ModelError``.
        """
        file = models.path("inception-fid", folder=folder)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            return cls(torch.jit.load(str(file), map_location=device))

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """x (N, 3, H, W), RGB in [0, 1], any size, to (N, 2048) float32."""
        return self.network(resize(x.float().clamp(0, 1)) * (255 / 128) - 1)


def resize(x: Tensor, side: int = SIDE) -> Tensor:
    """(N, C, H, W) to (N, C, side, side) as TensorFlow 1 did: output i lies at i * H / side of the input's rows."""
    rows, columns = (_bilinear(length, side).to(x) for length in x.shape[-2:])
    return rows @ x @ columns.T


def _bilinear(length: int, side: int) -> Tensor:
    """(side, length): the weights of ``length`` samples in each of ``side``."""
    where = torch.arange(side, dtype=torch.float64) * length / side
    low = where.long()
    matrix = torch.zeros(side, length, dtype=torch.float64)
    index = torch.arange(side)
    matrix[index, low] += 1 - (where - low)
    matrix[index, (low + 1).clamp(max=length - 1)] += where - low
    return matrix
