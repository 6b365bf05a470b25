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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from facecrowd.privacy.embeddings import checked, unit
from facecrowd.privacy.errors import ColumnError, EmptyTableError, LengthError, NullValueError

TOLERANCE = 1e-6
BOOTSTRAPS = 2000
BLOCK_BYTES = 16 * 2**20
"""The largest block of scores held at once: it stays in the processor's last cache."""
PROBES_AT_ONCE = 1024


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


@dataclass(frozen=True, eq=False)
class Search:
    """What one pass over the gallery found for each probe, before it is summed up.

    Attributes
    ----------
    person : ndarray of int64, shape (P,)
        A number for each probe's subject.
    above, tied : ndarray of int64, shape (P,)
        As in ``Identification``.
    candidates : ndarray of int64, shape (P,)
        Subjects that could be named for each probe.
    score : ndarray of float32, shape (P,)
        σ(p, own subject); NaN where the subject has no gallery face left.
    rival : ndarray of float32, shape (P,)
        The best score of another subject: what a search finds where the probe's own is not enrolled. NaN unless asked.
    gallery_faces, gallery_subjects : int
    """

    person: NDArray[np.int64]
    above: NDArray[np.int64]
    tied: NDArray[np.int64]
    candidates: NDArray[np.int64]
    score: NDArray[np.float32]
    rival: NDArray[np.float32]
    gallery_faces: int
    gallery_subjects: int

    @property
    def mated(self) -> NDArray[np.bool_]:
        """Of each probe whether its subject is in the gallery, (P,)."""
        return self.tied > 0

    def success(self, rank: int) -> NDArray[np.float64]:
        """The expected success of each mated probe at a rank, (M,)."""
        mated = self.mated
        return np.clip((rank - self.above[mated]) / self.tied[mated], 0.0, 1.0)


def identify(
    probe: ArrayLike | Iterator[NDArray[Any]],
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
    probe, probe_subject, gallery, gallery_subject, exclude, tolerance, block_bytes
        As for ``search``.
    rng : numpy.random.Generator
        Draws the bootstrap only.
    ranks : sequence of int
        The ranks to report.

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
    Time is O(P · G · D) in single precision; memory is the gallery, a few numbers per probe and ``block_bytes``.
    """
    check_ranks(ranks)
    found = search(
        probe,
        probe_subject,
        gallery,
        gallery_subject,
        exclude=exclude,
        tolerance=tolerance,
        block_bytes=block_bytes,
    )
    return identified(found, ranks, rng)


def check_ranks(ranks: Sequence[int]) -> None:
    """Raises ColumnError unless there are ranks, counted from 1."""
    if not ranks or min(ranks) < 1:
        raise ColumnError(f"ranks are {list(ranks)}; give at least one, counted from 1")


def identified(found: Search, ranks: Sequence[int], rng: np.random.Generator) -> Identification:
    """The rates of a search at ranks."""
    mated = found.mated
    rates = {rank: rate(found.success(rank), found.person[mated], rng) for rank in sorted(set(ranks))}
    chance = {rank: float(np.minimum(1.0, rank / found.candidates[mated]).mean()) for rank in rates}
    subjects = len(np.unique(found.person[mated]))
    return Identification(
        rates=rates,
        chance=chance,
        probes=int(mated.sum()),
        subjects=subjects,
        gallery_faces=found.gallery_faces,
        gallery_subjects=found.gallery_subjects,
        skipped_probes=int((~mated).sum()),
        skipped_subjects=len(np.unique(found.person)) - subjects,
        above=found.above,
        tied=found.tied,
    )


def rate(success: NDArray[Any], subject: ArrayLike, rng: np.random.Generator) -> Rate:
    """The mean of successes in [0, 1], (P,), over probes and over their subjects, (P,), with its interval."""
    person = np.unique(np.asarray(subject), return_inverse=True)[1]
    per_subject = np.bincount(person, weights=success) / np.bincount(person)
    return Rate(float(success.mean()), float(per_subject.mean()), *_interval(per_subject, rng))


def search(
    probe: ArrayLike | Iterator[NDArray[Any]],
    probe_subject: ArrayLike | pa.Array | pa.ChunkedArray,
    gallery: ArrayLike,
    gallery_subject: ArrayLike | pa.Array | pa.ChunkedArray,
    *,
    exclude: ArrayLike | None = None,
    tolerance: float = TOLERANCE,
    block_bytes: int = BLOCK_BYTES,
    everybody: bool = False,
    watch: Callable[[NDArray[np.float32]], None] | None = None,
) -> Search:
    """Search a gallery for probes, in one blocked pass.

    Parameters
    ----------
    probe : array, shape (P, D), or iterator of arrays, shape (p, D)
        Embeddings of the faces to name; any length but zero (they are normalised). A memory-mapped array is read, and
        an iterator drawn from, in blocks, in order; blocks of 1024 or more are fastest.
    probe_subject : array, shape (P,)
        Who they really are.
    gallery : array, shape (G, D)
        Embeddings the adversary has enrolled.
    gallery_subject : array, shape (G,)
        Whose they are; of the same kind as ``probe_subject``.
    exclude : array of int, shape (P,), optional
        For each probe a gallery index to leave out, its own source photo; -1 for none.
    tolerance : float
        Scores that differ by no more are tied.
    block_bytes : int
        Bound on the scores held in memory at once.
    everybody : bool
        Also search for probes whose subject is not in the gallery, and keep everybody's ``rival``.
    watch : callable, optional
        Called with each block of impostor scores: σ of probes (columns) and *other* subjects (rows), -inf where the
        subject is the probe's own or has no face left. The array is used again: copy what is to be kept.

    Raises
    ------
    EmptyTableError, EmbeddingError, LengthError, ColumnError, NullValueError
        As ``identify``.
    """
    people = len(probe_subject)  # type: ignore[arg-type]
    probes: ArrayLike | Iterator[NDArray[Any]] = probe
    if not isinstance(probe, Iterator):
        probes = array = checked(probe, "probe")
        people = len(array)
    enrolled = _enrol(unit(gallery, "gallery"), probe_subject, people, gallery_subject, exclude)
    if not enrolled.mated.any():
        raise EmptyTableError(
            "no probe's subject has a gallery face left, so nobody can be identified; check that both sides name "
            "subjects alike and that the gallery has other photos than the probes' sources"
        )
    spans, room = _spans(enrolled.count, max(1, block_bytes // (4 * min(PROBES_AT_ONCE, people))))
    scores = np.empty(room * min(PROBES_AT_ONCE, people), np.float32)
    above = np.full(people, -1, dtype=np.int64)
    tied = np.zeros(people, dtype=np.int64)
    score = np.full(people, np.nan, np.float32)
    rival = np.full(people, np.nan, np.float32)
    at = 0
    for block in _blocks(probes):
        if block.ndim != 2 or block.shape[1] != enrolled.faces.shape[1]:
            raise LengthError(
                f"probes have shape {block.shape} and the gallery {enrolled.faces.shape[1]} dimensions; "
                "embed both with one network"
            )
        rows = np.arange(at, at + len(block))
        at += len(block)
        if at > people:
            break
        faces = unit(block, "probe", first=int(rows[0]))
        wanted = np.ones(len(rows), bool) if everybody else enrolled.mated[rows]
        rows, faces = rows[wanted], faces[wanted]
        if not len(rows):
            continue
        mated = enrolled.mated[rows]
        own = np.full(len(rows), np.inf, np.float32)
        own[mated] = _true_scores(enrolled, faces[mated], rows[mated], block_bytes)
        higher, level, best = _competition(enrolled, faces, rows, own, spans, scores, tolerance, everybody, watch)
        named = rows[mated]
        above[named], tied[named], score[named] = higher[mated], level[mated], own[mated]
        if everybody:
            rival[rows] = best
    if at != people:
        raise LengthError(f"there are {people} probe subjects for {at} or more probe faces; give one each")
    return Search(
        person=enrolled.person,
        above=above,
        tied=tied,
        candidates=enrolled.candidates,
        score=score,
        rival=rival,
        gallery_faces=len(enrolled.faces),
        gallery_subjects=len(enrolled.count),
    )


@dataclass(frozen=True, eq=False)
class _Enrolled:
    """The gallery in order: subjects with as many faces lie together, so the best face of each is one reduction.

    faces (G, D); start, count (S,): the faces of each subject; and of each probe (P,): person, the code of its subject;
    slot, the subject's place here or -1; left_out, the place of the face left out or -1; mated, whether a face of its
    subject is left; candidates, how many subjects have one left.
    """

    faces: NDArray[np.float32]
    start: NDArray[np.int64]
    count: NDArray[np.int64]
    person: NDArray[np.int64]
    slot: NDArray[np.int64]
    left_out: NDArray[np.int64]
    mated: NDArray[np.bool_]
    candidates: NDArray[np.int64]


def _enrol(
    faces: NDArray[np.float32], probe_subject: Any, probes: int, gallery_subject: Any, exclude: ArrayLike | None
) -> _Enrolled:
    person, owner, people = _codes(probe_subject, probes, gallery_subject, len(faces))
    left_out = _excluded(exclude, probes, len(faces))
    owned = np.bincount(owner, minlength=people)
    order = np.lexsort((owner, owned[owner]))
    owner = owner[order]
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    left_out = np.where(left_out >= 0, position[left_out], -1)
    start = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
    count = np.diff(np.append(start, len(owner)))
    place = np.full(people, -1, dtype=np.int64)
    place[owner[start]] = np.arange(len(start))
    # A subject whose only gallery face is the excluded one cannot be guessed for that probe.
    lone = (left_out >= 0) & (owned[owner[left_out]] == 1)
    own = owned[person] - ((left_out >= 0) & (owner[left_out] == person))
    return _Enrolled(
        faces=faces[order],
        start=start,
        count=count,
        person=person,
        slot=place[person],
        left_out=left_out,
        mated=own > 0,
        candidates=len(start) - lone.astype(np.int64),
    )


def _blocks(probe: Any) -> Iterator[NDArray[Any]]:
    """The probes in order, at most ``PROBES_AT_ONCE`` together."""
    for block in probe if isinstance(probe, Iterator) else (probe,):
        for start in range(0, len(block), PROBES_AT_ONCE):
            yield block[start : start + PROBES_AT_ONCE]


def _spans(count: NDArray[np.int64], height: int) -> tuple[list[tuple[int, int]], int]:
    """Runs of subjects with as many faces, of at most ``height`` faces or one subject, and the faces of the largest."""
    spans = []
    first = 0
    while first < len(count):
        each = int(count[first])
        alike = int(np.searchsorted(count, each, side="right"))
        last = min(alike, first + max(1, height // each))
        spans.append((first, last))
        first = last
    return spans, max(int(count[first]) * (last - first) for first, last in spans)


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
    enrolled: _Enrolled, faces: NDArray[np.float32], rows: NDArray[np.int64], block_bytes: int
) -> NDArray[np.float32]:
    """σ(p, own subject) for mated probes, (M, D), that are these rows, (M,)."""
    score = np.full(len(rows), -np.inf, dtype=np.float32)
    mates = enrolled.count[enrolled.slot[rows]]
    bounds = np.concatenate(([0], np.cumsum(mates)))
    pairs_at_once = max(1, block_bytes // (8 * faces.shape[1]))
    begin = 0
    while begin < len(rows):
        end = max(begin + 1, int(np.searchsorted(bounds, bounds[begin] + pairs_at_once, side="right")) - 1)
        probe = np.repeat(np.arange(begin, end), mates[begin:end])
        within = np.arange(len(probe)) - np.repeat(bounds[begin:end] - bounds[begin], mates[begin:end])
        mate = enrolled.start[enrolled.slot[rows[probe]]] + within
        cosine = np.einsum("ij,ij->i", faces[probe], enrolled.faces[mate])
        cosine[enrolled.left_out[rows[probe]] == mate] = -np.inf
        score[begin:end] = np.maximum.reduceat(cosine, bounds[begin:end] - bounds[begin])
        begin = end
    return score


def _competition(
    enrolled: _Enrolled,
    faces: NDArray[np.float32],
    rows: NDArray[np.int64],
    score: NDArray[np.float32],
    spans: Sequence[tuple[int, int]],
    scores: NDArray[np.float32],
    tolerance: float,
    rivals: bool,
    watch: Callable[[NDArray[np.float32]], None] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Per probe the subjects above ``score``, those level with it (one for its own), and the best of the others."""
    above = np.zeros(len(rows), dtype=np.int64)
    tied = np.ones(len(rows), dtype=np.int64)
    rival = np.full(len(rows), -np.inf, np.float32)
    columns = np.arange(len(rows))
    probes = np.ascontiguousarray(faces.T)
    slot, left_out = enrolled.slot[rows], enrolled.left_out[rows]
    over, under = score + np.float32(tolerance), score - np.float32(tolerance)
    for first, last in spans:
        each = int(enrolled.count[first])
        low = int(enrolled.start[first])
        high = low + each * (last - first)
        cosine = scores[: (high - low) * len(rows)].reshape(high - low, len(rows))
        np.matmul(enrolled.faces[low:high], probes, out=cosine)
        hidden = (left_out >= low) & (left_out < high)
        cosine[left_out[hidden] - low, columns[hidden]] = -np.inf
        best = cosine if each == 1 else cosine.reshape(last - first, each, len(rows)).max(axis=1)
        own = (slot >= first) & (slot < last)
        best[slot[own] - first, columns[own]] = -np.inf
        higher = _count(best > over)
        above += higher
        tied += _count(best >= under) - higher
        if rivals:
            np.maximum(rival, best.max(axis=0), out=rival)
        if watch is not None:
            watch(best)
    return above, tied, rival


def _count(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many are set in each column of (S, P): in bytes while they cannot overflow, ten times as fast as ``sum``."""
    counts = np.zeros(flags.shape[1], np.int64)
    for start in range(0, len(flags), 255):
        counts += np.add.reduce(flags[start : start + 255].view(np.uint8), axis=0, dtype=np.uint8)
    return counts


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
    at_once = max(1, BLOCK_BYTES // (8 * len(value)))
    sizes = [min(at_once, BOOTSTRAPS - done) for done in range(0, BOOTSTRAPS, at_once)]
    means = np.concatenate([rng.multinomial(n, count / n, size=size) @ value / n for size in sizes])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
