r"""Closed-set re-identification: how often an adversary with a gallery names the person behind a face.

A probe is matched with every subject by its best gallery face,

.. math:: \sigma(p, s) = \max_{g \in G_s} \frac{\langle p, g \rangle}{\lVert p \rVert \lVert g \rVert}

and is identified at rank *n* when its own subject is among the *n* best [1]_. **Ties count as their expected success**:
with *a* subjects above the true one and *m* sharing its score (itself included), a guess among equals is right with
probability

.. math:: \min\bigl(1, \max(0, (n - a) / m)\bigr)

One surrogate for a whole class makes exact ties, and breaking them by position would report luck as protection or harm.
Scores within ``tolerance`` (1e-6, the noise of float32 products) are equal.

.. [1] ISO/IEC 19795-1: cumulative match characteristic, closed-set identification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from facecrowd.privacy.embeddings import unit
from facecrowd.privacy.errors import ColumnError, EmptyTableError, LengthError, NullValueError

TOLERANCE = 1e-6
BOOTSTRAPS = 2000
BLOCK_BYTES = 64 * 2**20
"""The largest block of scores held at once."""


@dataclass(frozen=True)
class Rate:
    """How often probes are identified, as shares in [0, 1].

    Attributes
    ----------
    per_face : float
        Mean over probes: subjects with many photos weigh more.
    per_subject : float
        Mean over subjects of each subject's mean: the unit of privacy.
    low, high : float
        95 % confidence interval of ``per_subject``, by bootstrap over subjects.
    """

    per_face: float
    per_subject: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Identification:
    """The result of one attack.

    Attributes
    ----------
    rates : mapping of rank to Rate
    chance : Mapping of rank to float
        What guessing subjects of the gallery at random achieves, per face.
    probes, subjects : int
        Probes attacked, and their subjects.
    gallery_faces, gallery_subjects : int
    skipped_probes, skipped_subjects : int
        Probes left out because their subject has no gallery face (left), and subjects all of whose probes were.
    above, tied : ndarray of int64, shape (P,)
        Per probe, subjects that score higher than the true one, and those that share its score (itself included);
        -1 and 0 for skipped probes. A probe is found at rank 1 with expectation ``(above == 0) / tied``.
    """

    rates: Mapping[int, Rate]
    chance: Mapping[int, float]
    probes: int
    subjects: int
    gallery_faces: int
    gallery_subjects: int
    skipped_probes: int
    skipped_subjects: int
    above: NDArray[np.int64]
    tied: NDArray[np.int64]

    @property
    def rank_one(self) -> Rate:
        """The rate at the smallest rank asked for (rank 1 unless another was given)."""
        return self.rates[min(self.rates)]


def identify(
    probe: ArrayLike,
    probe_subject: ArrayLike | pa.Array | pa.ChunkedArray,
    gallery: ArrayLike,
    gallery_subject: ArrayLike | pa.Array | pa.ChunkedArray,
    *,
    rng: np.random.Generator,
    exclude: ArrayLike | None = None,
    ranks: Sequence[int] = (1,),
    tolerance: float = TOLERANCE,
    block_bytes: int = BLOCK_BYTES,
) -> Identification:
    """Attack probes with a gallery.

    Parameters
    ----------
    probe : array, shape (P, D)
        Embeddings of the faces to name; any length but zero (they are normalised).
    probe_subject : array, shape (P,)
        Who they really are.
    gallery : array, shape (G, D)
        Embeddings the adversary has enrolled.
    gallery_subject : array, shape (G,)
        Whose they are; of the same kind as ``probe_subject``.
    rng : numpy.random.Generator
        Draws the bootstrap only.
    exclude : array of int, shape (P,), optional
        For each probe a gallery index to leave out, its own source photo; -1 for none.
    ranks : sequence of int
        The ranks to report.
    tolerance : float
        Scores that differ by no more are tied.
    block_bytes : int
        Bound on the scores held in memory at once.

    Returns
    -------
    Identification

    Raises
    ------
    EmptyTableError
        If there is no probe, no gallery face, or no probe whose subject is in the gallery.
    EmbeddingError, LengthError, ColumnError, NullValueError

    Notes
    -----
    Time is O(P · G · D) in single precision; memory is the input plus ``block_bytes``.
    """
    if not ranks or min(ranks) < 1:
        raise ColumnError(f"ranks are {list(ranks)}; give at least one, counted from 1")
    faces = unit(probe, "probe")
    enrolled = unit(gallery, "gallery")
    if faces.shape[1] != enrolled.shape[1]:
        raise LengthError(
            f"probes have {faces.shape[1]} dimensions and the gallery {enrolled.shape[1]}; embed both with one network"
        )
    person, owner, people = _codes(probe_subject, len(faces), gallery_subject, len(enrolled))
    left_out = _excluded(exclude, len(faces), len(enrolled))

    # Gallery faces lie together by subject, so the best face of each subject is one reduceat.
    order = np.argsort(owner, kind="stable")
    enrolled, owner = enrolled[order], owner[order]
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    left_out = np.where(left_out >= 0, position[left_out], -1)
    names, start = np.unique(owner, return_index=True)
    count = np.diff(np.append(start, len(owner)))
    slot = np.full(people, -1, dtype=np.int64)
    slot[names] = np.arange(len(names))

    true_slot = slot[person]
    own_faces = np.where(true_slot >= 0, count[true_slot], 0)
    own_faces -= (left_out >= 0) & (owner[left_out] == person)
    attacked = np.flatnonzero(own_faces > 0)
    if len(attacked) == 0:
        raise EmptyTableError(
            "no probe's subject has a gallery face left, so nobody can be identified; check that both sides name "
            "subjects alike and that the gallery has other photos than the probes' sources"
        )
    above = np.full(len(faces), -1, dtype=np.int64)
    tied = np.zeros(len(faces), dtype=np.int64)
    true_score = _true_scores(faces, enrolled, attacked, true_slot, start, count, left_out, block_bytes)
    above[attacked], tied[attacked] = _competition(
        faces, enrolled, attacked, true_slot, true_score, start, left_out, tolerance, block_bytes
    )
    # A subject whose only gallery face is the excluded one cannot be guessed for that probe.
    lone = (left_out[attacked] >= 0) & (count[slot[owner[left_out[attacked]]]] == 1)
    candidates = len(names) - lone.astype(np.int64)

    subject = person[attacked]
    attacked_subjects, subject_slot = np.unique(subject, return_inverse=True)
    rates, chance = {}, {}
    for rank in sorted(set(ranks)):
        success = np.clip((rank - above[attacked]) / tied[attacked], 0.0, 1.0)
        per_subject = np.bincount(subject_slot, weights=success) / np.bincount(subject_slot)
        low, high = _interval(per_subject, rng)
        rates[rank] = Rate(float(success.mean()), float(per_subject.mean()), low, high)
        chance[rank] = float(np.minimum(1.0, rank / candidates).mean())
    return Identification(
        rates=rates,
        chance=chance,
        probes=len(attacked),
        subjects=len(attacked_subjects),
        gallery_faces=len(enrolled),
        gallery_subjects=len(names),
        skipped_probes=len(faces) - len(attacked),
        skipped_subjects=len(np.unique(person)) - len(attacked_subjects),
        above=above,
        tied=tied,
    )


def _codes(
    probe_subject: Any, probes: int, gallery_subject: Any, faces: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Subjects of both sides as positions in one sorted list of names."""
    sides = []
    for subject, length, what in ((probe_subject, probes, "probe"), (gallery_subject, faces, "gallery")):
        names = subject if isinstance(subject, pa.Array | pa.ChunkedArray) else pa.array(subject)
        names = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
        names = names.dictionary_decode() if pa.types.is_dictionary(names.type) else names
        if len(names) != length:
            raise LengthError(f"there are {len(names)} {what} subjects for {length} {what} faces; give one each")
        if names.null_count:
            raise NullValueError(f"{names.null_count} {what} subjects are null; name them or leave their faces out")
        sides.append(names)
    if sides[0].type != sides[1].type:
        try:
            sides[0] = sides[0].cast(sides[1].type)
        except pa.ArrowInvalid as error:
            raise ColumnError(
                f"probe subjects are {sides[0].type}, gallery subjects {sides[1].type}; name them alike on both sides"
            ) from error
    distinct = pc.unique(pa.chunked_array(sides))
    distinct = distinct.take(pc.sort_indices(distinct))
    person, owner = (np.asarray(pc.index_in(side, distinct)).astype(np.int64) for side in sides)
    return person, owner, len(distinct)


def _excluded(exclude: ArrayLike | None, probes: int, faces: int) -> NDArray[np.int64]:
    if exclude is None:
        return np.full(probes, -1, dtype=np.int64)
    index = np.asarray(exclude)
    if index.shape != (probes,) or index.dtype.kind not in "iu":
        raise LengthError(f"exclude has shape {index.shape} and type {index.dtype}; give one gallery index per probe")
    if index.max(initial=-1) >= faces or index.min(initial=-1) < -1:
        raise LengthError(f"exclude names gallery faces outside 0 … {faces - 1}; use -1 for none")
    return index.astype(np.int64)


def _true_scores(
    faces: NDArray[np.float32],
    enrolled: NDArray[np.float32],
    attacked: NDArray[np.int64],
    true_slot: NDArray[np.int64],
    start: NDArray[np.int64],
    count: NDArray[np.int64],
    left_out: NDArray[np.int64],
    block_bytes: int,
) -> NDArray[np.float32]:
    """σ(p, own subject) for each attacked probe."""
    score = np.full(len(attacked), -np.inf, dtype=np.float32)
    mates = count[true_slot[attacked]]
    bounds = np.concatenate(([0], np.cumsum(mates)))
    pairs_at_once = max(1, block_bytes // (8 * faces.shape[1]))
    begin = 0
    while begin < len(attacked):
        end = max(begin + 1, int(np.searchsorted(bounds, bounds[begin] + pairs_at_once, side="right")) - 1)
        probe = np.repeat(np.arange(begin, end), mates[begin:end])
        within = np.arange(len(probe)) - np.repeat(bounds[begin:end] - bounds[begin], mates[begin:end])
        mate = start[true_slot[attacked[probe]]] + within
        cosine = np.einsum("ij,ij->i", faces[attacked[probe]], enrolled[mate])
        cosine[left_out[attacked[probe]] == mate] = -np.inf
        score[begin:end] = np.maximum.reduceat(cosine, bounds[begin:end] - bounds[begin])
        begin = end
    return score


def _competition(
    faces: NDArray[np.float32],
    enrolled: NDArray[np.float32],
    attacked: NDArray[np.int64],
    true_slot: NDArray[np.int64],
    true_score: NDArray[np.float32],
    start: NDArray[np.int64],
    left_out: NDArray[np.int64],
    tolerance: float,
    block_bytes: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Per attacked probe, the subjects above the true one and those level with it (itself included)."""
    above = np.zeros(len(attacked), dtype=np.int64)
    tied = np.ones(len(attacked), dtype=np.int64)
    ends = np.append(start[1:], len(enrolled))
    width = min(1024, len(attacked))
    height = max(1, block_bytes // (4 * width))
    for left in range(0, len(attacked), width):
        block = attacked[left : left + width]
        score = true_score[left : left + width]
        columns = np.arange(len(block))
        probes = np.ascontiguousarray(faces[block].T)
        first = 0
        while first < len(start):
            # whole subjects only; one with more faces than fit is taken alone
            last = max(first + 1, int(np.searchsorted(ends, start[first] + height, side="right")))
            low, high = int(start[first]), int(ends[last - 1])
            cosine = enrolled[low:high] @ probes
            hidden = (left_out[block] >= low) & (left_out[block] < high)
            cosine[left_out[block][hidden] - low, columns[hidden]] = -np.inf
            best = np.maximum.reduceat(cosine, start[first:last] - low, axis=0)
            own = (true_slot[block] >= first) & (true_slot[block] < last)
            best[true_slot[block][own] - first, columns[own]] = -np.inf
            higher = (best > score + np.float32(tolerance)).sum(axis=0)
            above[left : left + width] += higher
            tied[left : left + width] += (best >= score - np.float32(tolerance)).sum(axis=0) - higher
            first = last
    return above, tied


def _interval(per_subject: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean over subjects.

    Where all subjects agree on 0 or 1 every resample does too, and the bootstrap would claim certainty; the exact
    (Clopper-Pearson) limit for S subjects, 1 - 0.025^(1/S), stands in.
    """
    n = len(per_subject)
    value, count = np.unique(per_subject, return_counts=True)
    exact = 1.0 - 0.025 ** (1.0 / n)
    if len(value) == 1 and value[0] == 0.0:
        return 0.0, exact
    if len(value) == 1 and value[0] == 1.0:
        return 1.0 - exact, 1.0
    # resampling subjects is a multinomial draw over the distinct rates
    means = rng.multinomial(n, count / n, size=BOOTSTRAPS) @ value / n
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
