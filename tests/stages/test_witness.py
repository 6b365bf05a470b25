"""Claims of stages/witness.py: what is seen in a file follows from the file alone, so one is looked at once."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from facecrowd.stages import witness
from facecrowd.stages.encode import encode
from facecrowd.stages.stage import OK
from facecrowd.stages.witness import Witness


class Detector:
    """Finds a face in every crop, at the place that its brightness says, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def find(self, crop: np.ndarray) -> Any:
        self.asked += 1

        class Faces:
            landmarks = np.full((1, 5, 2), float(crop.mean()), np.float32) + np.arange(10).reshape(5, 2)
            scores = np.array([0.9], np.float32)

            def __len__(self) -> int:
                return 1

        return Faces()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Witness:
    made = Witness(("one",))
    made._detector = Detector()  # type: ignore[assignment]
    made._recognisers = {"one": None}
    monkeypatch.setattr(witness, "vectors", lambda _, chips: [np.float32([chip.mean(), 1]) for chip in chips])
    return made


def pictures(*brightness: int) -> list[bytes]:
    return [encode(cv2.GaussianBlur(np.full((32, 32, 3), b, np.uint8), (3, 3), 0), 90) for b in brightness]


def seen(stage: Witness, files: list[Any]) -> list[tuple[Any, ...]]:
    found = stage({"image": files, "status": [OK] * len(files), "reason": [""] * len(files)})
    return [
        (found["detection_score"][i], found["landmarks"][i].tolist(), found["embeddings"][i]["one"].tolist())
        for i in range(len(files))
    ]


def test_a_file_that_comes_again_is_seen_as_before_and_not_looked_at(stage: Witness) -> None:
    first, second = pictures(40, 200)
    alone = [*seen(stage, [first]), *seen(stage, [second])]
    assert alone[0] != alone[1]
    assert stage._detector.asked == 2  # type: ignore[union-attr]
    assert seen(stage, [second, first, second, first]) == [alone[1], alone[0], alone[1], alone[0]]
    assert stage._detector.asked == 2  # type: ignore[union-attr]


def test_what_is_remembered_is_bounded(stage: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "REMEMBERED", 2)
    files = pictures(10, 90, 170, 250)
    expected = seen(stage, files)
    assert len(stage._known) == 2
    assert seen(stage, files) == expected
    assert stage._detector.asked == 8  # type: ignore[union-attr]


def test_pixels_are_looked_at_each_time_and_a_file_that_is_none_is_a_row_with_its_reason(stage: Witness) -> None:
    pixels = np.full((32, 32, 3), 90, np.uint8)
    assert seen(stage, [pixels]) == seen(stage, [pixels])
    assert stage._detector.asked == 2  # type: ignore[union-attr]
    bad = stage({"image": [b"no picture"], "status": [OK], "reason": [""]})
    assert bad["status"][0] == "unreadable"
    assert bad["embeddings"] == [None]
    assert not stage._known
