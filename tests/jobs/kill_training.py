"""A small GoogLeNet training that kills its own process (SIGKILL) in its Nth step; run by test_training.py.

    python kill_training.py FACES.parquet FOLDER N

N = 0 kills nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from facecrowd.jobs import training
from facecrowd.jobs.labelled import Faces
from facecrowd.jobs.train_attributes import GoogLeNetTask, Preset

PRESET = Preset("adamw", 1e-3, 5e-2, 4, 5, side=64)
EVERY = 2


class Killed(GoogLeNetTask):
    """Dies after it has computed a step and before anybody hears of it."""

    def step(self, number: int) -> dict[str, float]:
        figures = super().step(number)
        if number + 1 == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return figures


if __name__ == "__main__":
    torch.set_num_threads(1)
    faces = Faces.read(Path(sys.argv[1]))
    training.train(lambda: Killed(faces, None, PRESET), Path(sys.argv[2]), EVERY, say=print)
