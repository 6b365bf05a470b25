import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy.errors import ColumnError, EmbeddingError, EmptyTableError, LengthError, NullValueError
from facecrowd.privacy.microaggregation import microaggregate
from facecrowd.privacy.reidentification import identify


def faces(n, d=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def draws():
    return np.random.default_rng(0)


def by_hand(probe, who, gallery, whose, exclude, rank):
    """Expected success of each probe, straight from the definition; NaN where there is nothing to find."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (probe.astype(float), gallery.astype(float))]
    success = []
    for i, p in enumerate(unit[0]):
        best = {}
        for j, g in enumerate(unit[1]):
            if j != exclude[i]:
                best[whose[j]] = max(best.get(whose[j], -2), p @ g)
        if who[i] not in best:
            success.append(np.nan)
            continue
        above = sum(s > best[who[i]] + 1e-6 for s in best.values())
        tied = sum(abs(s - best[who[i]]) <= 1e-6 for s in best.values())
        success.append(min(1, max(0, (rank - above) / tied)))
    return np.array(success)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 25), st.sampled_from([64, 2000, 2**26]))
def test_rates_are_their_definition(seed, probes, size, block_bytes):
    rng = np.random.default_rng(seed)
    # small whole coordinates make exact ties common
    probe, gallery = (rng.integers(-1, 2, (n, 3)) + np.array([0, 0, 3]) for n in (probes, size))
    who, whose = rng.integers(0, 5, probes), rng.integers(0, 5, size)
    exclude = rng.integers(-1, size, probes)
    expected = {rank: by_hand(probe, who, gallery, whose, exclude, rank) for rank in (1, 3)}
    if np.isnan(expected[1]).all():
        with pytest.raises(EmptyTableError, match="nobody can be identified"):
            identify(probe, who, gallery, whose, exclude=exclude, rng=draws())
        return
    found = identify(probe, who, gallery, whose, exclude=exclude, ranks=(1, 3), rng=draws(), block_bytes=block_bytes)
    for rank, success in expected.items():
        attacked = ~np.isnan(success)
        assert found.rates[rank].per_face == pytest.approx(success[attacked].mean())
        subjects = [success[attacked & (who == s)].mean() for s in np.unique(who[attacked])]
        assert found.rates[rank].per_subject == pytest.approx(np.mean(subjects))
        assert found.rates[rank].low - 1e-9 <= np.mean(subjects) <= found.rates[rank].high + 1e-9
    assert (found.probes, found.skipped_probes) == (attacked.sum(), probes - attacked.sum())
    assert found.skipped_subjects == len(set(who) - set(who[attacked]))


def test_a_tie_counts_as_the_expected_success_wherever_the_true_subject_stands():
    surrogate = np.ones((1, 4))
    gallery = np.ones((5, 4))
    for true in range(5):
        found = identify(surrogate, [true], gallery, np.arange(5), rng=draws(), ranks=(1, 2, 5))
        assert found.rank_one.per_face == pytest.approx(1 / 5)
        assert found.rates[2].per_face == pytest.approx(2 / 5)
        assert found.rates[5].per_face == 1


def test_float_noise_does_not_break_a_tie():
    gallery = np.repeat(faces(1, 512), 4, axis=0) * np.array([[1], [3], [0.7], [1e4]], dtype=np.float32)
    for true in range(4):
        assert identify(faces(1, 512), [true], gallery, np.arange(4), rng=draws()).rank_one.per_face == 0.25


def test_one_surrogate_per_class_of_subjects_is_named_once_in_k_and_per_image_classes_always():
    rng = np.random.default_rng(1)
    person = np.repeat(np.arange(60), 10)
    photo = (faces(60, 32)[person] + 0.1 * rng.standard_normal((600, 32))).astype(np.float32)
    mean = np.array([photo[person == p].mean(axis=0) for p in range(60)])
    classes = microaggregate(mean, 5)
    surrogate = np.array([mean[classes.ids == c].mean(axis=0) for c in range(12)])[classes.ids][person]
    per_subject = identify(surrogate, person, photo, person, rng=draws())
    assert per_subject.rank_one.per_subject == pytest.approx(1 / 5)

    images = microaggregate(photo, 5)
    surrogate = np.array([photo[images.ids == c].mean(axis=0) for c in range(120)])[images.ids]
    assert identify(surrogate, person, photo, person, rng=draws()).rank_one.per_subject > 0.99


def test_a_probe_never_finds_itself():
    points, person = faces(30), np.repeat(np.arange(15), 2)
    alone = identify(points, person, points, person, rng=draws())
    assert alone.rank_one.per_face == 1
    honest = identify(points, person, points, person, exclude=np.arange(30), rng=draws())
    assert honest.rank_one.per_face < 0.5


def test_a_subject_without_another_photo_is_skipped_and_counted():
    points = faces(4)
    found = identify(points, ["a", "a", "b", "c"], points[:3], ["a", "a", "b"], exclude=[0, 1, 2, -1], rng=draws())
    assert (found.probes, found.subjects, found.skipped_probes, found.skipped_subjects) == (2, 1, 2, 2)
    assert found.above[2:].tolist() == [-1, -1]


def test_subjects_weigh_one_however_many_photos_they_have():
    gallery = np.eye(3)
    probe = np.vstack([np.eye(3)[[0] * 8], np.eye(3)[[0, 0]]])  # all look like subject 0; the last two are 1 and 2
    found = identify(probe, [0] * 8 + [1, 2], gallery, [0, 1, 2], rng=draws()).rank_one
    assert found.per_face == pytest.approx(0.8)
    assert found.per_subject == pytest.approx(1 / 3)


def test_chance_is_what_guessing_gives():
    found = identify(faces(400, 64), np.arange(400) % 20, faces(20, 64, 1), np.arange(20), rng=draws(), ranks=(1, 5))
    assert found.chance == {1: 1 / 20, 5: 5 / 20}
    assert found.rates[5].low <= 0.25 <= found.rates[5].high


def test_the_interval_narrows_with_subjects_and_never_claims_certainty():
    few, many = (
        identify(faces(n, 4), np.arange(n), faces(n, 4, 1), np.arange(n), rng=draws(), ranks=(5,)).rank_one
        for n in (20, 500)
    )
    assert few.high - few.low > many.high - many.low
    never = identify(np.eye(3)[[1, 2, 0]], [0, 1, 2], np.eye(3), [0, 1, 2], rng=draws()).rank_one
    assert (never.per_subject, never.low) == (0, 0)
    assert never.high == pytest.approx(1 - 0.025 ** (1 / 3))
    always = identify(np.eye(3), [0, 1, 2], np.eye(3), [0, 1, 2], rng=draws()).rank_one
    assert (always.low, always.high) == (pytest.approx(0.025 ** (1 / 3)), 1)


@given(st.permutations(range(24)), st.permutations(range(30)))
def test_the_order_of_probes_and_gallery_changes_nothing(a, b):
    probe, gallery = np.round(faces(24, 3)) + 0.5, np.round(faces(30, 3, 1)) + 0.5
    who, whose = np.arange(24) % 7, np.arange(30) % 7
    one = identify(probe, who, gallery, whose, rng=draws())
    two = identify(probe[list(a)], who[list(a)], gallery[list(b)], whose[list(b)], rng=draws())
    assert np.array_equal(one.above[list(a)], two.above)
    assert np.array_equal(one.tied[list(a)], two.tied)


def test_names_may_be_of_any_kind_but_alike_on_both_sides():
    points = faces(3)
    for names in (["a", "b", "c"], pa.array(["a", "b", "c"]).dictionary_encode(), pa.chunked_array([[1, 2], [3]])):
        assert identify(points, names, points, names, rng=draws()).rank_one.per_face == 1
    with pytest.raises(ColumnError, match="name them alike"):
        identify(points, ["a", "b", "c"], points, [1, 2, 3], rng=draws())


def test_bad_input_gets_one_clear_sentence():
    points, who = faces(3), [0, 1, 2]
    zero = points.copy()
    zero[1] = 0
    with pytest.raises(EmbeddingError, match="probe embeddings have length zero, first in row 1"):
        identify(zero, who, points, who, rng=draws())
    with pytest.raises(LengthError, match="embed both with one network"):
        identify(points, who, faces(3, 5), who, rng=draws())
    with pytest.raises(LengthError, match="2 gallery subjects for 3"):
        identify(points, who, points, [0, 1], rng=draws())
    with pytest.raises(LengthError, match="outside 0 … 2"):
        identify(points, who, points, who, exclude=[0, 1, 3], rng=draws())
    with pytest.raises(NullValueError, match="1 probe subjects are null"):
        identify(points, [0, 1, None], points, who, rng=draws())
    with pytest.raises(EmptyTableError, match="no gallery embeddings"):
        identify(points, who, np.zeros((0, 8)), [], rng=draws())
    with pytest.raises(ColumnError, match="counted from 1"):
        identify(points, who, points, who, ranks=(0,), rng=draws())


def test_however_many_stand_above_they_are_counted():
    gallery = np.repeat(np.array([[1, 0.1], [0, 1]]), [1000, 1], axis=0) + np.arange(1001)[:, None] * [0, 1e-3]
    found = identify([[1, 0.1]], [1000], gallery, np.arange(1001), rng=draws())
    assert found.above.tolist() == [1000]
    level = identify([[1.0, 0]], [0], np.ones((1001, 2)), np.arange(1001), rng=draws())
    assert level.tied.tolist() == [1001]


def test_a_face_without_direction_is_named_by_its_row_in_whichever_block():
    probe = faces(2000)
    probe[1500] = 0
    for blocks in (probe, iter(np.split(probe, 4))):
        with pytest.raises(EmbeddingError, match="row 1500"):
            identify(blocks, np.zeros(2000, int), faces(2), [0, 1], rng=draws())
