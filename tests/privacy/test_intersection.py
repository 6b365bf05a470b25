"""Several photos of one person: the crowd is what all their classes have in common."""

from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy.classes import partial_histogram, regrouped
from facecrowd.privacy.intersection import expected_candidates, intersection, pair_exposure

Q12 = [
    "Male",
    "Young",
    "Black_Hair",
    "Blond_Hair",
    "Brown_Hair",
    "Big_Nose",
    "Big_Lips",
    "Eyeglasses",
    "Bangs",
    "Oval_Face",
    "Pointy_Nose",
    "Straight_Hair",
]

faces = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=30)


def counted(rows):
    subject, of_class = np.array(rows).T
    return partial_histogram(subject, class_ids=of_class, sensitive={"x": np.arange(len(rows)) % 2})


def members(rows):
    return {c: {s for s, d in rows if d == c} for _, c in rows}


@given(faces)
def test_candidates_are_the_people_common_to_the_classes(rows):
    found = intersection(counted(rows))
    crowd = members(rows)
    for i, s in enumerate(found.subjects.to_pylist()):
        classes = sorted({c for t, c in rows if t == s})
        assert found.classes[i] == len(classes)
        everything = len(set.intersection(*(crowd[c] for c in classes)))
        assert found.all[i] == everything
        for m in range(1, len(found.smallest) + 1):
            best = min(
                len(set.intersection(*(crowd[c] for c in some))) for some in combinations(classes, min(m, len(classes)))
            )
            assert found.smallest[m - 1, i] >= best
            if m <= 2 or m >= len(classes):
                assert found.smallest[m - 1, i] == best
    assert (np.diff(found.smallest, axis=0) <= 0).all()
    assert (found.smallest[-1] == found.all).all()


@given(faces, st.integers(1, 3))
def test_the_mean_over_random_photos_is_exact(rows, m):
    found = expected_candidates(counted(rows), m)
    crowd = members(rows)
    for i, s in enumerate(sorted({t for t, _ in rows})):
        photos = [c for t, c in rows if t == s]
        draws = list(combinations(photos, min(m, len(photos))))
        mean = np.mean([len(set.intersection(*(crowd[c] for c in some))) for some in draws])
        assert found[i] == pytest.approx(mean)


@given(faces, st.integers(1, 5))
def test_the_chance_that_two_classes_leave_too_few_is_counted_over_all_pairs(rows, k):
    found = pair_exposure(counted(rows), k)
    crowd = members(rows)
    for i, s in enumerate(sorted({t for t, _ in rows})):
        pairs = list(combinations(sorted({c for t, c in rows if t == s}), 2))
        share = np.mean([len(crowd[a] & crowd[b]) < k for a, b in pairs]) if pairs else 0.0
        assert found[i] == pytest.approx(share)


def test_classes_of_ten_can_leave_a_person_alone():
    """Ten people in each class, and one in both."""
    subject = np.r_[np.arange(10), np.arange(9, 19)]
    found = intersection(partial_histogram(subject, class_ids=np.repeat([0, 1], 10)))
    assert found.smallest[0].min() == 10
    assert found.all[9] == 1
    assert found.alone(1) == 0
    assert found.alone() == pytest.approx(1 / 19)
    assert found.under(11, 1) == 1
    assert intersection(partial_histogram(subject, class_ids=np.repeat([0, 1], 10)), most=1).smallest.shape == (1, 19)


def test_each_photo_more_leaves_one_candidate_less():
    """Four classes of four people, each without another one of the five."""
    rows = [(s, c) for c in range(4) for s in range(5) if s != c + 1]
    found = intersection(counted(rows))
    assert found.smallest[:, 0].tolist() == [4, 3, 2, 1]
    assert found.all[0] == 1


def test_one_vector_per_person_leaves_the_whole_class():
    subject = np.repeat(np.arange(20), 3)
    found = intersection(partial_histogram(subject, quasi_identifiers={"a": subject % 4}))
    assert (found.all == 5).all()
    assert found.smallest.shape == (1, 20)


def test_on_celeba_all_photos_leave_71_percent_alone_and_two_leave_18_percent_under_ten(celeba: pa.Table):
    """Over 12 attributes, rows in classes under 10 people left out, so that every single photo has a crowd of 10."""
    rows = partial_histogram(celeba["subject_id"], quasi_identifiers=celeba.select(Q12))
    size = rows.finish().subjects
    kept = regrouped(rows, np.where(size >= 10, np.cumsum(size >= 10) - 1, -1))
    found = intersection(kept)
    assert found.under(10, 1) == 0
    assert found.alone() == pytest.approx(0.71, abs=0.005)
    assert pair_exposure(kept, 10).mean() == pytest.approx(0.18, abs=0.005)
    assert found.under(10, 2) > 0.5  # an adversary who may choose the two
    # without leaving anybody out
    everything = intersection(rows)
    assert everything.alone() == pytest.approx(0.7196, abs=1e-4)
    assert everything.alone(2) == pytest.approx(0.3894, abs=1e-4)
