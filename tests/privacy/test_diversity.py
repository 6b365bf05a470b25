import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy.classes import histogram
from facecrowd.privacy.diversity import distinct_l, entropy_l, recursive_c
from facecrowd.privacy.errors import ColumnError, PolicyError


def one_class(values, subjects=None):
    n = len(values)
    return histogram(
        np.arange(n) if subjects is None else subjects, class_ids=np.zeros(n, dtype=int), sensitive={"illness": values}
    )


def test_recursive_diversity_of_98_to_2_needs_c_above_49():
    found = recursive_c(one_class(["flu"] * 98 + ["cold"] * 2), 2)
    assert found.value == 49


def test_a_class_with_too_few_values_is_never_recursively_diverse():
    assert recursive_c(one_class(["flu"] * 5), 2).value == math.inf
    assert recursive_c(one_class(["flu"] * 5), 1).value == 1
    with pytest.raises(PolicyError, match="at least 1"):
        recursive_c(one_class(["flu"]), 0)


def test_ten_photos_of_one_illness_do_not_hide_another():
    crowd = one_class(["flu"] * 10 + ["cold"], ["ann"] * 10 + ["bob"])
    assert entropy_l(crowd).value == pytest.approx(2)


@given(st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=12), min_size=1, max_size=6), st.integers(1, 4))
def test_diversity_is_its_definition_in_every_class(classes, l):  # noqa: E741
    ids = np.repeat(np.arange(len(classes)), [len(c) for c in classes])
    values = [v for c in classes for v in c]
    found = histogram(np.arange(len(ids)), class_ids=ids, sensitive={"s": values})
    for i, members in enumerate(classes):
        p = np.array(sorted((members.count(v) / len(members) for v in set(members)), reverse=True))
        assert distinct_l(found).per_class[i] == len(p)
        assert entropy_l(found).per_class[i] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
        tail = p[l - 1 :].sum()
        assert recursive_c(found, l).per_class[i] == pytest.approx(p[0] / tail if tail else math.inf)
        assert 1 - 1e-9 <= entropy_l(found).per_class[i] <= distinct_l(found).per_class[i] + 1e-9
    for measure in (distinct_l(found), entropy_l(found)):
        assert measure.value == measure.per_class.min()
    assert recursive_c(found, l).value == recursive_c(found, l).per_class.max()


def test_one_attribute_is_never_more_diverse_than_all_jointly():
    rng = np.random.default_rng(0)
    found = histogram(
        rng.integers(0, 40, 300),
        class_ids=rng.integers(0, 9, 300),
        sensitive={"a": rng.integers(0, 3, 300), "b": rng.integers(0, 2, 300)},
    )
    for attribute in "ab":
        assert (entropy_l(found, attribute).per_class <= entropy_l(found).per_class + 1e-12).all()
        assert (distinct_l(found, attribute).per_class <= distinct_l(found).per_class).all()
    with pytest.raises(ColumnError, match="'c' is not a sensitive attribute"):
        distinct_l(found, "c")
