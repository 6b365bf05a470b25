"""Gradients are binned as scikit-image bins them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from skimage.feature import hog

from facecrowd.stages.hog import SIDE, WIDTH, features, histograms

FACES = Path(__file__).resolve().parents[2] / "jobs" / "faces"


def face() -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(FACES / "p01" / "1.jpg")), cv2.COLOR_BGR2RGB)


def test_histograms_of_gradients_equal_scikit_images() -> None:
    grey = cv2.cvtColor(cv2.resize(face(), (SIDE, SIDE)), cv2.COLOR_RGB2GRAY) / 255
    expected = hog(grey, 9, (8, 8), (2, 2), block_norm="L2", feature_vector=False)
    np.testing.assert_allclose(histograms(grey), expected, atol=1e-6)


def test_features_are_gradients_and_then_colours_whatever_the_size_of_the_crop() -> None:
    crop = np.full((128, 128, 3), (255, 0, 51), np.uint8)
    found = features(crop)
    assert found.shape == features(face()).shape == (WIDTH,)
    assert not found[: -3 * 16**2].any()
    np.testing.assert_allclose(found[-3 * 16**2 :].reshape(-1, 3), [[1, 0, 0.2]] * 256, atol=1e-6)
