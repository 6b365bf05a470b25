"""Copies of pictures: which of many pictures are one of many others, recompressed, resized or mirrored.

A 64-bit perceptual hash (the DCT hash of Zauner, "Implementation and benchmarking of perceptual image hash functions",
2010: signs of the 8 × 8 lowest frequencies against their median) finds candidates among millions of pairs. Faces that
were aligned alike have similar low frequencies, whoever they are, so a candidate is a copy only where its details are
the other's too: measured on 2,500 photos of celebrities, hashes of different
people come within 8 bits in 27 of a million pairs, while their details hardly correlate (up to 0.25 in all pairs but
one in 10,000).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 32
"""Side of what is hashed, in px."""

LOW = 8
"""Frequencies per direction in a hash."""

VIEW = 64
"""Side of what candidates are compared at, in px."""

BITS = 8
"""Bits of 64 up to which two hashes may be of one picture. JPEG of quality 10, half the size, or a sigma of 8 px of 256
change up to 6."""

DETAIL = 0.8
"""``detail_kept`` from which a picture is a copy. JPEG of quality 30 and resizing to three quarters keep 0.87 and more,
to half at quality 50 0.84; a mean of two people can keep 1 - (1 - 1/2)^2 = 0.75 of one of them at most, blur of sigma 4
px of 256 up to 0.6."""

FLAT = 0.5
"""Root mean square of a view's detail, in grey levels, up to which it has none. The blurriest of 800 faces has 0.6."""

BLOCK = 8
"""Side of a block of a view, in px."""

UNTOUCHED = 20.0
"""``largest_change`` up to which no part of a picture was replaced. Copies change by up to 16 grey levels, a black box
over the eyes by 50 and more."""

_HASHES = 1 << 14
"""Hashes that one is compared with at a time: what a core's cache holds."""

_VIEWS = 1 << 10
"""Pairs of views compared at a time: 32 MiB."""


@dataclass(frozen=True)
class Prints:
    """What n pictures are told by: 4 KiB each.

    hashes, mirrored : (n,) uint64, of each as it is and of its mirror image; views : (n, VIEW, VIEW) uint8, grey
    """

    hashes: np.ndarray
    mirrored: np.ndarray
    views: np.ndarray

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True)
class Copies:
    """Pairs of pictures that are one: ``first`` of the ones is a copy of ``second`` of the others.

    first, second : (m,) int64; detail : (m,) float32, see ``detail_kept``; change : (m,) float32, see
    ``largest_change``; mirrored : (m,) bool
    """

    first: np.ndarray
    second: np.ndarray
    detail: np.ndarray
    change: np.ndarray
    mirrored: np.ndarray


def view(picture: np.ndarray) -> np.ndarray:
    """(VIEW, VIEW) uint8 grey of a (H, W, 3) uint8 RGB picture; all of it, whatever its proportions."""
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (VIEW, VIEW), interpolation=cv2.INTER_AREA))


def perceptual_hashes(views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of (n, VIEW, VIEW) uint8 views and of their mirror images: two (n,) uint64."""
    small = [cv2.resize(v, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) for v in views]
    low = np.array([cv2.dct(s)[:LOW, :LOW] for s in small], dtype=np.float32).reshape(-1, LOW, LOW)
    # Mirroring turns the sign of every odd horizontal frequency.
    return _packed(low), _packed(low * np.where(np.arange(LOW) % 2, -1, 1).astype(np.float32))


def _packed(low: np.ndarray) -> np.ndarray:
    flat = low.reshape(-1, LOW * LOW)
    bits = flat > np.median(flat, axis=1, keepdims=True) if len(flat) else flat.astype(bool)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def prints_of(views: Sequence[np.ndarray]) -> Prints:
    """The prints of views, in their order."""
    held = np.array(views, dtype=np.uint8).reshape(-1, VIEW, VIEW)
    return Prints(*perceptual_hashes(held), held)


def near(ones: np.ndarray, others: np.ndarray, bits: int = BITS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of hashes, (n,) and (N,) uint64, that differ in at most ``bits``: positions in both, block by block.

    n N comparisons, some 0.7 billion a second on one core, in memory that depends on neither.
    """
    differ, count = np.empty(_HASHES, np.uint64), np.empty(_HASHES, np.uint8)
    for start in range(0, len(others), _HASHES):
        block = others[start : start + _HASHES]
        xor, popcount = differ[: len(block)], count[: len(block)]
        for position, one in enumerate(ones):
            np.bitwise_count(np.bitwise_xor(block, one, out=xor), out=popcount)
            if popcount.min() <= bits:
                second = np.flatnonzero(popcount <= bits)
                yield np.full(len(second), position), second + start


def detail_kept(copies: np.ndarray, views: np.ndarray) -> np.ndarray:
    """How much of the detail of ``views`` the ``copies`` have: 1 - |d' - d|^2 / |d|^2, (n,) float32, at most 1.

    d is a (VIEW, VIEW) view less its Gaussian blur of sigma 1: lines and edges, in which people differ that were
    aligned alike. Another picture's detail is mostly below 0, half of the amplitude 0.75. Both (n, VIEW, VIEW) uint8.
    """
    out = np.empty(len(views), dtype=np.float32)
    for i, (copy, of) in enumerate(zip(copies, views, strict=True)):
        own, detail = _detail(copy), _detail(of)
        all_of_it = float((detail**2).sum())
        # Grey walls are alike and no copies of each other.
        out[i] = 1 - ((own - detail) ** 2).sum() / all_of_it if all_of_it > FLAT**2 * VIEW * VIEW else 0.0
    return out


def _detail(one: np.ndarray) -> np.ndarray:
    grey = one.astype(np.float32)
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), 1.0, borderType=cv2.BORDER_REFLECT_101))


def largest_change(copies: np.ndarray, views: np.ndarray) -> np.ndarray:
    """The mean change of the BLOCK × BLOCK block of a view that changed most, in grey levels: (n,) float32.

    Brightness and contrast of the whole are no change: they are fitted first, by least squares over the three quarters
    of the pixels that agree best, so that a part that was replaced moves neither.
    """
    if not len(views):
        return np.zeros(0, np.float32)
    n, count = len(views), VIEW // BLOCK
    copied, of = (a.reshape(n, -1).astype(np.float32) for a in (copies, views))
    difference = np.abs(copied - of)
    weight = np.ones_like(of)
    for _ in range(3):
        total = weight.sum(1, keepdims=True)
        means = [(weight * a).sum(1, keepdims=True) / total for a in (copied, of)]
        along = (weight * (of - means[1]) ** 2).sum(1, keepdims=True)
        gain = (weight * (of - means[1]) * (copied - means[0])).sum(1, keepdims=True) / np.maximum(along, 1e-6)
        difference = np.abs(copied - means[0] - gain * (of - means[1]))
        weight = (difference <= np.quantile(difference, 0.75, axis=1, keepdims=True)).astype(np.float32)
    return np.asarray(difference.reshape(n, count, BLOCK, count, BLOCK).mean((2, 4)).max((1, 2), initial=0))


def find(ones: Prints, others: Prints, bits: int = BITS, detail: float = DETAIL) -> Copies:
    """Which of n pictures are a copy of which of N others, recompressed, resized or mirrored."""
    found = [np.zeros((5, 0))]
    for mirrored in (False, True):
        pairs = [np.stack(pair) for pair in near(ones.hashes, others.mirrored if mirrored else others.hashes, bits)]
        first, second = np.concatenate([np.zeros((2, 0), np.int64), *pairs], axis=1)
        for start in range(0, len(first), _VIEWS):
            a, b = first[start : start + _VIEWS], second[start : start + _VIEWS]
            copied, views = ones.views[a], others.views[b, :, ::-1] if mirrored else others.views[b]
            kept = detail_kept(copied, views)
            hit = kept >= detail
            changed = largest_change(copied[hit], views[hit])
            found.append(np.stack([a[hit], b[hit], kept[hit], changed, np.full(hit.sum(), mirrored)]))
    first, second, kept, changed, turned = np.concatenate(found, axis=1)
    places = (first.astype(np.int64), second.astype(np.int64))
    return Copies(*places, kept.astype(np.float32), changed.astype(np.float32), turned.astype(bool))
