"""Claims of stages/copies.py: a copy is found whatever was done to its file, and people who look alike are none."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.fft import dctn

from facecrowd.stages import copies
from facecrowd.stages.copies import VIEW, Prints, find, near, prints_of, view
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode


@pytest.fixture(scope="module")
def faces(people: list[Path]) -> list[np.ndarray]:
    """Every picture of the synthetic people: aligned alike, several of each."""
    return [decode(file.read_bytes()) for person in people for file in sorted(person.glob("*.jpg"))]


@pytest.fixture(scope="module")
def originals(faces: list[np.ndarray]) -> Prints:
    return of(faces)


def of(pictures: list[np.ndarray]) -> Prints:
    return prints_of([view(picture) for picture in pictures])


def scaled(picture: np.ndarray, share: float) -> np.ndarray:
    how = cv2.INTER_AREA if share < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, None, fx=share, fy=share, interpolation=how))


CHANGES = {
    "recompressed": lambda p: decode(encode(p, 60)),
    "recompressed badly": lambda p: decode(encode(p, 30)),
    "smaller": lambda p: scaled(p, 0.75),
    "larger": lambda p: scaled(p, 1.3),
    "mirrored": lambda p: p[:, ::-1],
    "mirrored, smaller and recompressed": lambda p: decode(encode(scaled(p, 0.75)[:, ::-1], 60)),
    "brighter": lambda p: np.clip(p * 1.1 + 5, 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_and_nothing_else_is(faces: list[np.ndarray], originals: Prints, change: str) -> None:
    changed = [CHANGES[change](face) for face in faces]
    found = find(of(changed), originals)
    assert sorted(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(i, i) for i in range(len(faces))]
    assert (found.mirrored == ("mirrored" in change)).all()
    assert (found.detail >= copies.DETAIL).all()


def test_different_photos_of_a_person_or_of_two_are_no_copies(originals: Prints) -> None:
    found = find(originals, originals)
    assert (found.first == found.second).all()
    # The hash alone would call some of them copies: they are aligned alike.
    close = [pair for a, b in near(originals.hashes, originals.hashes) for pair in zip(a, b, strict=True)]
    assert len(close) > len(originals)


def covered(picture: np.ndarray) -> np.ndarray:
    out, side = picture.copy(), len(picture)
    out[int(0.42 * side) : int(0.54 * side), int(0.25 * side) : int(0.75 * side)] = 0
    return out


@pytest.mark.parametrize(
    "alter",
    [lambda p: cv2.GaussianBlur(p, (0, 0), len(p) / 64), lambda p: scaled(scaled(p, 24 / len(p)), len(p) / 24)],
    ids=["blurred", "pixelated"],
)
def test_what_lost_its_detail_is_no_copy(faces: list[np.ndarray], originals: Prints, alter: object) -> None:
    altered = of([alter(face) for face in faces])  # type: ignore[operator]
    assert len(find(altered, originals).first) == 0
    # It is the same picture to the hash: only details tell.
    assert (np.bitwise_count(altered.hashes ^ originals.hashes) <= copies.BITS).mean() > 0.9


def test_a_covered_part_is_the_largest_change(faces: list[np.ndarray], originals: Prints) -> None:
    masked, again = of([covered(face) for face in faces]), of([decode(encode(face, 30)) for face in faces])
    assert (copies.largest_change(masked.views, originals.views) > copies.UNTOUCHED).all()
    assert (copies.largest_change(again.views, originals.views) < copies.UNTOUCHED / 4).all()


@pytest.mark.parametrize("gain, offset", [(1.0, 35), (1.25, -20), (0.7, 0)])
def test_brightness_and_contrast_of_the_whole_are_no_change(
    faces: list[np.ndarray], originals: Prints, gain: float, offset: int
) -> None:
    changed = of([(np.clip(face * gain + offset, 0, 255)).astype(np.uint8) for face in faces])
    masked = of([(np.clip(covered(face) * gain + offset, 0, 255)).astype(np.uint8) for face in faces])
    assert np.median(copies.largest_change(changed.views, originals.views)) < copies.UNTOUCHED / 4
    assert (copies.largest_change(changed.views, originals.views) < copies.UNTOUCHED).mean() > 0.9
    assert (copies.largest_change(masked.views, originals.views) > copies.UNTOUCHED).all()
    assert len(find(changed, originals).first) >= 0.9 * len(faces)


def test_the_mean_of_two_people_is_a_copy_of_neither(originals: Prints) -> None:
    pairs = np.array(list(combinations(range(0, len(originals), 6), 2)))
    views = originals.views.astype(np.float32)
    means = ((views[pairs[:, 0]] + views[pairs[:, 1]]) / 2).astype(np.uint8)
    assert len(find(prints_of(list(means)), originals).first) == 0
    # Not even where the other has no detail at all, so that all that is seen is the one's.
    ghosts = (views / 2 + 60).astype(np.uint8)
    assert np.allclose(copies.detail_kept(ghosts, originals.views), 0.75, atol=0.02)


def test_hashes_are_those_of_the_discrete_cosine_transform(originals: Prints) -> None:
    """Against SciPy's transform of the same 32 × 32 grey levels."""
    for at in (0, 50, 100):
        small = cv2.resize(originals.views[at], (32, 32), interpolation=cv2.INTER_AREA).astype(float)
        for picture, mine in ((small, originals.hashes[at]), (small[:, ::-1], originals.mirrored[at])):
            low = dctn(picture, norm="ortho")[:8, :8].ravel()
            bits = (low > np.median(low)).astype(np.uint8)
            assert int(np.bitwise_count(np.packbits(bits).view(np.uint64)[0] ^ mine)) <= 2  # of equal halves, rounded


def test_near_pairs_are_those_of_every_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ones, others = (rng.integers(0, 1 << 10, n, dtype=np.uint64) for n in (37, 53))
    wanted = {(i, j) for i in range(37) for j in range(53) if int(ones[i] ^ others[j]).bit_count() <= 2}
    assert wanted
    for block in (1 << 14, 53, 7):
        monkeypatch.setattr(copies, "_HASHES", block)
        found = [pair for a, b in near(ones, others, 2) for pair in zip(a.tolist(), b.tolist(), strict=True)]
        assert len(found) == len(wanted)
        assert set(found) == wanted


def test_grey_walls_are_no_copies_of_each_other() -> None:
    walls = of([np.full((80, 80, 3), level, np.uint8) for level in (90, 91)])
    assert len(find(walls, walls).first) == 0


def test_no_pictures_have_no_copies(originals: Prints) -> None:
    none = prints_of([])
    assert none.views.shape == (0, VIEW, VIEW)
    assert len(find(none, originals).first) == len(find(originals, none).first) == 0
