"""What a stage is: one per-face step that declares what it needs and what it makes.

A stage never sees Ray. ``setup`` runs once per worker (load networks there), then ``__call__`` turns one batch into the
next. ``pipeline/ray_data.py`` is the one place that maps stages onto workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

Batch = dict[str, Any]
"""Columns of equal length: NumPy arrays, or lists where a cell is ragged (pixels, bytes, strings)."""

OK = "ok"
"""The status of a row that every later stage works on. Rows with another status pass through untouched."""


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage occupies: ``cpus`` and ``gpus`` in Ray's (fractional) units."""

    cpus: float = 1.0
    gpus: float = 0.0


class Stage:
    """One step. Subclass it, declare the class variables, implement ``__call__``.

    ``inputs`` are the columns read, ``outputs`` the columns added or replaced, ``transient`` those of the outputs that
    hold decoded pixels and so never leave the process that made them.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ()
    transient: ClassVar[tuple[str, ...]] = ()
    resources: Resources = Resources()

    def setup(self) -> None:
        """Load what the worker keeps (networks, look-up tables). Called once, before the first batch."""

    def __call__(self, batch: Batch) -> Batch:
        raise NotImplementedError


def rows(batch: Batch) -> int:
    """The number of rows of a batch."""
    return len(next(iter(batch.values()))) if batch else 0


def live(batch: Batch) -> np.ndarray:
    """The positions of the rows whose status is ``ok``: (n,) int64."""
    return np.flatnonzero(np.asarray(batch["status"], dtype=object) == OK)
