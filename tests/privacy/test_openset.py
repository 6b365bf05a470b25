"""Claims of privacy/openset.py: identify, verify and scikit-learn are the oracles."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from facecrowd.privacy.errors import EmptyTableError, LengthError
from facecrowd.privacy.openset import GRID, ScoreCounts, levels, recognise
from facecrowd.privacy.reidentification import identify
from facecrowd.privacy.verification import verify


def people(subjects: int, photos: int, noise: float, seed: int = 0, d: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(subjects), photos)
    return (rng.standard_normal((subjects, d))[who] + noise * rng.standard_normal((len(who), d))).astype(
        np.float32
    ), who


def scores_by_hand(
    probe: np.ndarray, who: np.ndarray, gallery: np.ndarray, whose: np.ndarray, exclude: np.ndarray
) -> np.ndarray:
    """σ(p, s) in float64, (P, S); -inf where a subject has no face left."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (probe.astype(float), gallery.astype(float))]
    cosine = unit[0] @ unit[1].T
    rows = np.flatnonzero(exclude >= 0)
    cosine[rows, exclude[rows]] = -np.inf
    return np.stack([cosine[:, whose == s].max(axis=1) for s in np.unique(whose)], axis=1)


def on_grid(scores: np.ndarray) -> np.ndarray:
    return np.rint(scores * GRID) / GRID


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("block_bytes", [256, 4000, 2**26])
def test_ranks_and_accepts_are_those_of_identify_and_verify(block_bytes: int, rng: np.random.Generator) -> None:
    photo, who = people(40, 6, 1.0)
    keep = np.random.default_rng(1).random(len(who)) < 0.6  # subjects with one to six gallery faces
    gallery, whose, source = photo[keep], who[keep], np.flatnonzero(keep)
    place = np.full(len(who), -1)
    place[source] = np.arange(len(source))
    found = recognise(
        photo, who, gallery, whose, exclude=place, rng=rng, fars=(0.1, 0.01), ranks=(1, 5), block_bytes=block_bytes
    )
    other = identify(photo, who, gallery, whose, exclude=place, rng=rng, ranks=(1, 5))
    assert found.identification.above.tolist() == other.above.tolist()
    assert found.identification.tied.tolist() == other.tied.tolist()
    assert found.identification.rates[5].per_subject == other.rates[5].per_subject

    score = scores_by_hand(photo, who, gallery, whose, place)
    own = who[:, None] == np.unique(whose)
    genuine, impostor = score[own], score[~own]
    mated = np.isfinite(genuine)
    by_hand = verify(
        on_grid(genuine[mated]), on_grid(impostor[np.isfinite(impostor)]), (0.1, 0.01), rng=rng, subject=who[mated]
    )
    assert found.impostor_pairs == np.isfinite(impostor).sum()
    for far, accepts in by_hand.rates.items():
        assert found.tar[far].rate.per_face == pytest.approx(accepts.rate, abs=1.5 / mated.sum())
        assert found.tar[far].threshold == pytest.approx(accepts.threshold, abs=2 / GRID)
        assert found.tar[far].false <= far
        per_person = [np.mean(genuine[mated & (who == s)] > accepts.threshold) for s in np.unique(who[mated])]
        assert found.tar[far].rate.per_subject == pytest.approx(np.mean(per_person), abs=0.01)


def test_a_million_scores_on_the_grid_have_verifys_threshold(rng: np.random.Generator) -> None:
    score = np.tanh(rng.normal(0, 0.1, 10**6))
    counts = ScoreCounts()
    for part in np.array_split(score, 7):
        counts.add(part.reshape(-1, 1))
    exact = verify([0.5], on_grid(score), (0.1, 0.01, 0.001, 1e-7), rng=rng)
    for far, accepts in exact.rates.items():
        level = counts.threshold(far)
        assert (level - GRID) / GRID == accepts.threshold
        assert counts.above(level) == accepts.false
        assert abs((level - GRID) / GRID - np.sort(score)[::-1][int(far * 10**6 + 1e-9)]) <= 0.5 / GRID


def test_the_area_from_counts_is_that_of_the_roc_curve_with_ties_half(rng: np.random.Generator) -> None:
    genuine, impostor = np.round(rng.normal(0.3, 0.2, 500), 1).clip(-1, 1), np.round(rng.normal(0, 0.2, 800), 1)
    counts = ScoreCounts()
    counts.add(impostor)
    area = counts.exceeded(levels(genuine)).mean()
    assert area == pytest.approx(roc_auc_score(np.r_[np.ones(500), np.zeros(800)], np.r_[genuine, impostor]))


def test_float32_noise_does_not_part_equal_scores() -> None:
    """The cosine of equal surrogates is 1 within rounding; all of these are one level."""
    assert len(set(levels(np.float32([1 - 3e-7, 1, 1 + 3e-7])).tolist())) == 1


def test_identification_at_a_threshold_searches_every_probe_without_its_own_subject(rng: np.random.Generator) -> None:
    photo, who = people(30, 4, 1.0)
    gallery, whose = photo[::4][:20], who[::4][:20]  # the last ten people are not enrolled
    probe, person = np.delete(photo, np.s_[::4], 0), np.delete(who, np.s_[::4])
    found = recognise(probe, person, gallery, whose, rng=rng, fpirs=(0.1, 0.5))
    score = scores_by_hand(probe, person, gallery, whose, np.full(len(person), -1))
    own = person[:, None] == whose
    rival = np.where(own, -np.inf, score).max(axis=1)
    mated = own.any(axis=1)
    mine = np.where(own, score, -np.inf).max(axis=1)
    false, _, thresholds = roc_curve(np.r_[np.ones(1), np.zeros(len(rival))], np.r_[2, rival], drop_intermediate=False)
    for fpir, accepts in found.tpir.items():
        assert accepts.false == pytest.approx(false[false <= fpir + 1e-12].max())
        hit = (mine > rival) & (mine > accepts.threshold)
        assert accepts.rate.per_face == pytest.approx(hit[mated].mean())
        # Thresholds above which no more pass: the next lower score would let too many in.
        assert (rival >= accepts.threshold - 1 / GRID).mean() > fpir
    assert found.identification.skipped_probes == (~mated).sum()
    assert len(thresholds)


def test_probes_in_blocks_or_from_a_file_give_what_an_array_gives(tmp_path: Path) -> None:
    photo, who = people(300, 8, 1.0)
    probe, person, gallery, whose = photo[who % 3 > 0], who[who % 3 > 0], photo[::8], who[::8]
    mapped = np.memmap(tmp_path / "probes", np.float32, "w+", shape=probe.shape)
    mapped[:] = probe
    whole, blocks, file = (
        recognise(given, person, gallery, whose, rng=np.random.default_rng(0), impostor_pairs=10**4)
        for given in (probe, iter(np.array_split(probe, [5, 700, 1500])), mapped)
    )
    assert whole.identification.above.tolist() == blocks.identification.above.tolist()
    assert whole.tar[0.01].rate.per_face == pytest.approx(blocks.tar[0.01].rate.per_face, abs=0.03)
    assert whole.tar == file.tar
    with pytest.raises(LengthError, match="1600 probe subjects for 1599"):
        recognise(iter([probe[:-1]]), person, gallery, whose, rng=np.random.default_rng(0))


def test_sampled_impostors_are_at_least_as_many_as_asked_and_come_near_all(rng: np.random.Generator) -> None:
    photo, who = people(1000, 2, 1.0, d=32)
    every, some = (
        recognise(photo[::2], who[::2], photo[1::2], who[1::2], rng=rng, impostor_pairs=pairs, fars=(0.01,))
        for pairs in (10**7, 10**5)
    )
    assert every.impostor_pairs == every.all_impostor_pairs == 1000 * 999
    assert 10**5 <= some.impostor_pairs < 1.3 * 10**5
    assert some.all_impostor_pairs == every.all_impostor_pairs
    assert some.tar[0.01].threshold == pytest.approx(every.tar[0.01].threshold, abs=0.02)


def test_equal_surrogates_are_accepted_no_more_often_than_impostors(rng: np.random.Generator) -> None:
    """Everybody shows one face: nothing tells a genuine claim from another one."""
    probe = np.ones((50, 8), np.float32)
    found = recognise(probe, np.arange(50), probe, np.arange(50), rng=rng, fpirs=(0.1,))
    assert found.tar[0.1].rate.per_face == found.tpir[0.1].rate.per_face == 0
    assert found.identification.rates[1].per_face == pytest.approx(1 / 50)


def test_memory_does_not_grow_with_the_probes() -> None:
    gallery, whose = people(2000, 1, 1.0, d=64)
    who = np.arange(20000) % 2000

    def blocks():
        for start in range(0, len(who), 1000):
            yield gallery[who[start : start + 1000]]

    tracemalloc.start()
    recognise(blocks(), who, gallery, whose, rng=np.random.default_rng(0), impostor_pairs=10**5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 130e6  # scores alone would take 160 MB


def test_what_cannot_be_measured_is_refused(rng: np.random.Generator) -> None:
    face = np.eye(3, dtype=np.float32)
    with pytest.raises(EmptyTableError, match="no impostor score"):
        recognise(face[:1], [0], face, [0, 0, 0], rng=rng)
    with pytest.raises(ValueError, match="between 0 and 1"):
        recognise(face, [0, 1, 2], face, [0, 1, 2], rng=rng, fars=(0.0,))
    with pytest.raises(EmptyTableError, match="nobody can be identified"):
        recognise(face, [0, 1, 2], face, [3, 4, 5], rng=rng)
