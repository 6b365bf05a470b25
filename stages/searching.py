"""What the stages that search a latent share (``deepblur``, ``inpaint``): how they are set up, and how they go through
a batch. The search itself is in ``inversion``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.inversion import SHIPPED_ENCODER, Networks, Optimiser, Search, Size, Start
from facecrowd.stages.networks.mobilestylegan import SIZES
from facecrowd.stages.stage import Batch, live

OUTPUTS = ("rendered", "search_loss", "search_steps", "converged", "status", "reason")


@dataclass(frozen=True)
class Searching:
    """How a stage searches latents and renders them.

    steps, optimiser : of ``inversion.search``, which compares at ``look_size`` pixels; 0 steps take the start
    start : the search's start: an encoder's guess or the mean latent
    size : pixels a side of what is rendered: 1024, 512, 256 or 128
    at_once : faces searched together; 1 is right on a CPU, and makes a face's result independent to the last bit
    device : "cpu" or "cuda"
    half : bfloat16 in the networks, for GPUs
    folder : of models, as in ``models.path``

    Raises ``ValueError`` for what makes no sense.
    """

    steps: int = 10
    start: Start = "encoder"
    size: int = 256
    look_size: Size = 128
    optimiser: Optimiser = "lbfgs"
    encoder: str | os.PathLike[str] = SHIPPED_ENCODER
    at_once: int = 1
    device: str = "cpu"
    half: bool = False
    threads: int = 1
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size is {self.size}, but the generator makes {', '.join(map(str, SIZES))}")
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}, but must not be negative")
        if self.at_once < 1:
            raise ValueError(f"at_once is {self.at_once}, but at least 1 face is searched")

    def networks(self) -> Networks:
        """What a worker keeps, in a process set up for it. Raises ``ModelError``."""
        cv2.setNumThreads(1)
        torch.set_num_threads(self.threads)
        return Networks.load(self.start, self.device, self.folder, self.encoder, self.half)


def render_all(
    stage: str, batch: Batch, at_once: int, render: Callable[[np.ndarray], tuple[np.ndarray, Search | None]]
) -> Batch:
    """The batch with every crop rendered, and how the searches went.

    render : rows (n,) of the batch, n at most ``at_once``, to their pictures (n, size, size, 3) uint8 RGB and what a
        search said of them, None without one. An error fails these rows, in the name of ``stage``

    rendered : (size, size, 3) uint8 RGB; None in rows that are not ``ok``
    search_loss : float32; NaN in rows that are not ``ok`` or were not searched
    search_steps : int32, steps taken; fewer than asked where the search converged
    converged : bool
    """
    status, reason = outcomes(batch)
    rendered: list[np.ndarray | None] = [None] * len(status)
    loss, taken = np.full(len(status), np.nan, np.float32), np.zeros(len(status), np.int32)
    converged = np.zeros(len(status), bool)
    rows = whole(batch, status, reason, stage)
    for first in range(0, len(rows), at_once):
        chosen = rows[first : first + at_once]
        try:
            shown, found = render(chosen)
            for i, picture in zip(chosen, shown, strict=True):
                rendered[i] = picture
            if found is not None:
                loss[chosen] = found.loss[-1].numpy()
                taken[chosen], converged[chosen] = found.steps_taken.numpy(), found.converged.numpy()
        except Exception as error:
            status[chosen], reason[chosen] = "failed", explain(stage, error)
    out = {"rendered": rendered, "search_loss": loss, "search_steps": taken, "converged": converged}
    return {**batch, **out, "status": status, "reason": reason}


def whole(batch: Batch, status: np.ndarray, reason: np.ndarray, stage: str) -> np.ndarray:
    """The live rows whose crop is one, (n,); the others are marked as failed. One bad crop then costs no other row."""
    for i in live({"status": status}):
        crop = batch["crop"][i]
        shape: tuple[int, ...] = getattr(crop, "shape", ())
        if len(shape) != 3 or shape[0] != shape[1] or shape[0] < 1 or shape[2] != 3 or crop.dtype != np.uint8:
            error = ValueError(f"a crop is (S, S, 3) uint8, not {shape or type(crop).__name__}")
            status[i], reason[i] = "failed", explain(stage, error)
    return live({"status": status})
