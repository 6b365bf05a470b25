import time
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy import classes
from facecrowd.privacy.classes import equivalence_classes, histogram, merge, partial_histogram, per_subject_majority
from facecrowd.privacy.errors import ColumnError, EmptyTableError, LengthError, NullValueError

ROW = st.tuples(
    st.sampled_from(["ann", "bob", "cyd", "dan", "eve"]),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from(["x", "y", "z"]),
    st.booleans(),
)
ROWS = st.lists(ROW, min_size=1, max_size=40)


def split(rows):
    subject, a, b, s, r = zip(*rows, strict=True)
    return list(subject), {"a": list(a), "b": list(b)}, {"s": list(s), "r": list(r)}


def counted(rows):
    subject, qi, sensitive = split(rows)
    return partial_histogram(subject, quasi_identifiers=qi, sensitive=sensitive)


def same(one, two):
    for field in ("rows", "subjects", "largest_share", "reference"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    np.testing.assert_array_equal(one.weights.toarray(), two.weights.toarray())
    assert one.classes.equals(two.classes)
    assert one.values.equals(two.values)


def by_hand(rows):
    """class → (rows, subjects, largest share, {value: weight}), straight from the definition."""
    photos = defaultdict(lambda: defaultdict(list))
    for subject, a, b, s, r in rows:
        photos[(a, b)][subject].append((s, r))
    result = {}
    for vector, people in photos.items():
        total = sum(len(values) for values in people.values())
        weight = Counter()
        for values in people.values():
            for value in values:
                weight[value] += 1 / len(values)
        result[vector] = total, len(people), max(len(v) for v in people.values()) / total, weight
    return result


def test_class_size_counts_subjects_not_images():
    ten_photos_of_one = histogram(["ann"] * 10, quasi_identifiers={"Male": [True] * 10})
    assert ten_photos_of_one.rows.tolist() == [10]
    assert ten_photos_of_one.subjects.tolist() == [1]


def test_a_subject_with_several_photos_weighs_one():
    found = histogram(
        ["ann", "ann", "ann", "bob"],
        quasi_identifiers={"Male": [False] * 4},
        sensitive={"Smiling": [True, True, False, False]},
    )
    np.testing.assert_allclose(found.weights.toarray(), [[1 / 3 + 1, 2 / 3]])
    np.testing.assert_allclose(found.reference, [(1 / 3 + 1) / 2, 1 / 3])
    assert found.largest_share.tolist() == [0.75]


@given(ROWS)
def test_the_histogram_is_its_definition(rows):
    subject, qi, sensitive = split(rows)
    found = histogram(subject, quasi_identifiers=qi, sensitive=sensitive)
    expected = by_hand(rows)
    values = [tuple(v.values()) for v in found.values.to_pylist()]
    assert len(found.subjects) == len(expected)
    for i, (vector, (n, k, share, weight)) in enumerate(sorted(expected.items())):
        assert tuple(found.describe(i).values()) == vector
        assert (found.rows[i], found.subjects[i]) == (n, k)
        assert found.largest_share[i] == pytest.approx(share)
        np.testing.assert_allclose(found.weights.toarray()[i], [weight[v] for v in values], atol=1e-12)


@given(ROWS, st.lists(st.integers(0, 3), min_size=40, max_size=40))
def test_merged_histograms_are_the_histogram_of_the_union(rows, shard):
    shards = [[row for row, place in zip(rows, shard, strict=False) if place == i] for i in range(4)]
    parts = [counted(part) for part in shards if part]
    same(merge(parts).finish(), counted(rows).finish())
    same(merge([merge(parts[:1]), *parts[1:]][::-1]).finish(), counted(rows).finish())


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    same(counted(shuffled).finish(), counted(rows).finish())


@given(ROWS)
def test_without_sensitive_attributes_or_with_given_classes(rows):
    subject, qi, sensitive = split(rows)
    by_vector = histogram(subject, quasi_identifiers=qi, sensitive=sensitive)
    by_id = histogram(subject, class_ids=equivalence_classes(qi).ids, sensitive=sensitive)
    np.testing.assert_array_equal(by_vector.weights.toarray(), by_id.weights.toarray())
    halves = (slice(0, None, 2), slice(1, None, 2)) if len(rows) > 1 else (slice(None),)
    plain = [partial_histogram(subject[h], quasi_identifiers={n: c[h] for n, c in qi.items()}) for h in halves]
    plain = merge(plain)
    np.testing.assert_array_equal(plain.finish().subjects, by_vector.subjects)
    np.testing.assert_allclose(plain.finish().weights.toarray()[:, 0], by_vector.subjects)


@given(st.lists(st.lists(st.integers(0, 2**40), min_size=3, max_size=3), min_size=1, max_size=30))
def test_more_than_64_bits_group_exactly(rows):
    columns = {str(i): np.array([row[i % 3] for row in rows], dtype=np.int64) for i in range(30)}
    tight, classes.CODE_BITS = classes.CODE_BITS, 5  # makes every few columns overflow
    try:
        found = equivalence_classes(columns)
    finally:
        classes.CODE_BITS = tight
    order = {vector: i for i, vector in enumerate(sorted({tuple(row) for row in rows}))}
    assert found.ids.tolist() == [order[tuple(row)] for row in rows]


def test_a_triple_too_wide_for_one_code_counts_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    subject, qi = rng.integers(0, 20, 300), {"a": rng.integers(0, 5, 300)}
    sensitive = {"s": rng.integers(0, 3, 300)}
    packed = histogram(subject, quasi_identifiers=qi, sensitive=sensitive)
    monkeypatch.setattr(classes, "CODE_BITS", 6)
    same(histogram(subject, quasi_identifiers=qi, sensitive=sensitive), packed)


@given(ROWS)
def test_the_majority_vector_is_constant_per_subject_and_ties_go_to_the_smaller_value(rows):
    subject, qi, sensitive = split(rows)
    found = per_subject_majority(subject, {**qi, **sensitive})
    for name, column in {**qi, **sensitive}.items():
        for person, chosen in zip(found.subjects.to_pylist(), found.vectors[name].to_pylist(), strict=True):
            votes = Counter(value for s, value in zip(subject, column, strict=True) if s == person)
            assert chosen == min(value for value in votes if votes[value] == max(votes.values()))
    released = found.rows()
    assert len(histogram(subject, quasi_identifiers=released).subjects) <= len(set(subject))
    assert released.num_rows == len(rows)


def test_two_subjects_named_by_a_boolean_do_not_overflow():
    found = per_subject_majority([False, True] * 300, {"age": np.arange(600)})
    assert found.vectors["age"].to_pylist() == [0, 1]
    assert found.row_subject.dtype == np.int64


def test_majority_of_an_attribute_with_a_value_per_row():
    found = per_subject_majority(np.repeat(np.arange(2000), 2), {"age": np.arange(4000)[::-1]})
    assert found.vectors["age"].to_pylist() == [3998 - 2 * i for i in range(2000)]


@pytest.mark.parametrize(
    "column",
    [
        np.array([3, 1, 3, 2**62], dtype=np.int64),
        np.array([3, 1, 3, 2**64 - 1], dtype=np.uint64),
        np.array([0, -1, 0, 5], dtype=np.int8),
        np.array([0.5, -1.5, 0.5, 9.0]),
        np.array(["b", "a", "b", "c"]),
        np.array(["b", "a", "b", "c"], dtype=object),
        pd.Series(["b", "a", "b", "c"], dtype="category", index=[7, 7, 7, 7]),
        pa.chunked_array([["b", "a"], ["b", "c"]]),
        pa.array(["b", "a", "b", "c"]).dictionary_encode(),
        np.array(["2020-01-02", "2020-01-01", "2020-01-02", "2021-01-01"], dtype="datetime64[D]"),
    ],
)
def test_any_sortable_column_groups_in_the_order_of_its_values(column):
    assert equivalence_classes({"q": column}).ids.tolist() == [1, 0, 1, 2]
    assert histogram(column, quasi_identifiers={"all": [1] * 4}).subjects.tolist() == [3]


def test_marginals_add_up():
    rows = [("ann", True, 0, "x", True), ("bob", True, 0, "y", True), ("cyd", True, 0, "x", False)]
    found = counted(rows).finish().marginal(["s"])
    assert found.values.to_pylist() == [{"s": "x"}, {"s": "y"}]
    np.testing.assert_allclose(found.weights.toarray(), [[2, 1]])
    with pytest.raises(ColumnError, match="'height' is not a sensitive attribute"):
        found.marginal(["height"])


def test_bad_tables_get_one_clear_sentence():
    with pytest.raises(EmptyTableError, match="no rows"):
        histogram([], quasi_identifiers={"a": []})
    with pytest.raises(NullValueError, match="'a' is null in 1 of 2 rows, first in row 1"):
        histogram([1, 2], quasi_identifiers={"a": [True, None]})
    with pytest.raises(NullValueError, match="'a' is null"):
        equivalence_classes({"a": np.array([1.0, np.nan])})
    with pytest.raises(NullValueError, match="'subject'"):
        histogram(["ann", None], quasi_identifiers={"a": [1, 2]})
    with pytest.raises(LengthError, match="'a' has 2 rows where 3"):
        histogram([1, 2, 3], quasi_identifiers={"a": [True, True]})
    with pytest.raises(ColumnError, match="mixes types"):
        equivalence_classes({"a": [1, "one"]})
    with pytest.raises(ColumnError, match="give numbers, text or booleans"):
        equivalence_classes({"a": [[1], [2]]})
    with pytest.raises(ColumnError, match="either"):
        histogram([1])
    with pytest.raises(ColumnError, match="differ in their quasi-identifiers"):
        merge([partial_histogram([1], quasi_identifiers={n: [1]}) for n in "ab"])
    with pytest.raises(EmptyTableError):
        merge([])


def test_the_real_table_has_the_known_classes_and_is_counted_in_a_moment(celeba):
    attributes = celeba.column_names[3:]
    sensitive = ["Attractive", "Chubby", "Heavy_Makeup"]
    known = [name for name in attributes if name not in sensitive]
    began = time.perf_counter()
    found = histogram(celeba["subject_id"], quasi_identifiers=celeba.select(known), sensitive=celeba.select(sensitive))
    assert time.perf_counter() - began < 3  # 0.1 s alone on a core; the bound only catches a change of order
    assert len(found.subjects) == 96_489
    assert (found.rows == 1).sum() == 70_790
    assert found.rows[found.subjects < 10].sum() / found.total_rows == pytest.approx(0.730, abs=5e-4)
    assert (found.total_rows, found.total_subjects) == (202_599, 10_177)


def test_shards_of_the_real_table_merge_to_the_whole(celeba):
    columns = celeba.column_names[3:15]
    parts = [
        partial_histogram(part["subject_id"], quasi_identifiers=part.select(columns), sensitive=part.select(["Young"]))
        for part in (celeba.slice(i, 50_000) for i in range(0, celeba.num_rows, 50_000))
    ]
    whole = histogram(
        celeba["subject_id"], quasi_identifiers=celeba.select(columns), sensitive=celeba.select(["Young"])
    )
    same(merge(parts).finish(), whole)
