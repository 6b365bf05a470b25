import numpy as np
import pytest

from facecrowd.privacy.anonymity import class_sizes, effective_k, k_anonymity
from facecrowd.privacy.classes import histogram

SUBJECTS = ["ann"] * 8 + ["bob", "cyd"] + ["dan", "eve", "fay", "gus"]
MALE = {"Male": [False] * 10 + [True] * 4}


def test_k_is_the_smallest_crowd_of_people_and_rows_are_for_comparison():
    found = histogram(SUBJECTS, quasi_identifiers=MALE)
    assert k_anonymity(found).value == 3
    assert found.describe(k_anonymity(found).worst_class) == {"Male": False}
    assert k_anonymity(found, unit="rows").value == 4
    assert found.describe(k_anonymity(found, unit="rows").worst_class) == {"Male": True}


def test_effective_k_is_what_naming_the_most_photographed_leaves():
    found = histogram(SUBJECTS, quasi_identifiers=MALE)
    assert effective_k(found).per_class.tolist() == [10 / 8, 4.0]
    assert (effective_k(found).per_class <= k_anonymity(found).per_class).all()


def test_class_sizes_say_what_suppression_would_cost():
    rng = np.random.default_rng(3)
    found = histogram(np.arange(200), class_ids=rng.integers(0, 30, 200))
    sizes = class_sizes(found)
    assert sizes.minimum == found.subjects.min()
    assert sizes.maximum == found.subjects.max()
    assert sizes.mean == pytest.approx(found.subjects.mean())
    assert sizes.median == np.sort(found.subjects)[(len(found.subjects) - 1) // 2]
    assert sizes.rows.sum() == 200
    assert sizes.rows_below(5) == found.rows[found.subjects < 5].sum()


def test_counting_rows_overstates_k_on_the_real_table(celeba):
    q12 = ["Male", "Young", "Black_Hair", "Blond_Hair", "Brown_Hair", "Big_Nose", "Big_Lips", "Eyeglasses", "Bangs"]
    q12 += ["Oval_Face", "Pointy_Nose", "Straight_Hair"]
    found = histogram(celeba["subject_id"], quasi_identifiers=celeba.select(q12))
    assert len(found.subjects) == 1_628
    assert (found.rows == 1).sum() == 267
    assert class_sizes(found).rows_below(10) / found.total_rows == pytest.approx(0.018, abs=5e-4)
    large_only_in_rows = (found.rows >= 10) & (found.subjects < 10)
    assert large_only_in_rows.any()
