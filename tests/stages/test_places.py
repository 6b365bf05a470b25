"""Claims of stages/places.py."""

from __future__ import annotations

import numpy as np

from facecrowd.stages import align
from facecrowd.stages.places import ELLIPSES, REGIONS, place, region


def test_each_region_lies_where_its_part_of_the_aligned_face_does() -> None:
    left, right, nose, *mouth = np.rint(align.template(128)).astype(int)
    x, y = np.mean(mouth, axis=0).astype(int)
    assert region("eyes", 128)[left[1], left[0]] == region("eyes", 128)[right[1], right[0]] == 1
    assert region("nose", 128)[nose[1], nose[0]] == 1
    assert region("lips", 128)[y, x] == 1
    assert region("lips", 128)[left[1], left[0]] == region("eyes", 128)[y, x] == 0
    assert region("brows", 128)[left[1] - 11, left[0]] == 1
    assert region("face", 128)[nose[1], nose[0]] == 1
    assert region("face", 128)[2, 2] == 0


def test_every_region_that_an_attribute_names_is_known() -> None:
    assert set(REGIONS.values()) <= {*ELLIPSES, "hair", "face"}


def test_hair_may_be_anywhere_and_what_has_no_place_of_its_own_is_in_the_face() -> None:
    assert (place("Blond_Hair", 64) == 1).all()
    assert np.array_equal(place("Male", 64), region("face", 64))
