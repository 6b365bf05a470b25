"""Photos and models that the stages' tests share.

The group photo is the sample that insightface ships (six people). Models come through the registry; where they cannot
be had the tests that need them are skipped, and say so.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from facecrowd.stages import models
from facecrowd.stages.inversion import Networks, Space
from facecrowd.stages.networks.mobilestylegan import MobileStyleGAN
from facecrowd.stages.networks.vgg import Lpips

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session")
def weights() -> Callable[[str], Path]:
    """``weights(name)``: the verified file of a model, or a skip."""
    root = SHARED / "models" / "insightface"
    # A test may have put the user's cache and home aside.
    user = {name: os.environ.get(name) for name in ("FACECROWD_MODELS", "HOME", "INSIGHTFACE_HOME")}

    def find(name: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in user.items():
                if value is None:
                    patch.delenv(variable, raising=False)
                else:
                    patch.setenv(variable, value)
            try:
                return models.path(name, folder=root if root.is_dir() else None)
            except models.Unobtainable as error:
                pytest.skip(f"the model {name} cannot be had here: {error}")

    return find


@pytest.fixture(scope="session")
def searching(weights: Callable[[str], Path]) -> Networks:
    """What searches latents, from the average face."""
    generator = MobileStyleGAN.load(weights("mobilestylegan-ffhq"))
    return Networks(generator, Lpips.load(weights("lpips-vgg16")), Space.of(generator))


@pytest.fixture(scope="session")
def group() -> np.ndarray:
    """A photo of six people: (886, 1280, 3) uint8 RGB."""
    from insightface.data import get_image

    return cv2.cvtColor(get_image("t1", use_cache=False), cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="session")
def portrait(group: np.ndarray) -> np.ndarray:
    """One person of the group, with room around: (230, 220, 3) uint8 RGB."""
    return np.ascontiguousarray(group[100:330, 210:430])


@pytest.fixture(scope="session")
def texture() -> np.ndarray:
    """A photo of nothing, sides of no special size: (150, 203, 3) uint8 RGB."""
    draws = np.random.Generator(np.random.Philox(7))
    return cv2.resize(draws.integers(0, 255, (15, 20, 3), dtype=np.uint8), (203, 150), interpolation=cv2.INTER_CUBIC)
