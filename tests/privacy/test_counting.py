"""Claims of privacy/packing.py and privacy/counting.py: a table seen batch by batch counts as one that is held."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy import counting, packing
from facecrowd.privacy.classes import histogram, partial_histogram, per_subject_majority
from facecrowd.privacy.errors import ColumnError, EmptyTableError, NullValueError

QUASI, SENSITIVE = ["a", "b", "c", "d", "e"], ["s", "r"]
ROW = st.tuples(
    st.sampled_from(["ann", "bob", "cyd", "dan", "eve"]),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from(["x", "y", "z"]),
    st.booleans(),
    st.sampled_from([-1.5, 0.0, 2.25]),
    st.sampled_from(["p", "q", "r"]),
    st.booleans(),
)
ROWS = st.lists(ROW, min_size=1, max_size=60)


def table_of(rows: list[tuple[Any, ...]]) -> pa.Table:
    subject, *columns = zip(*rows, strict=True)
    names = [*QUASI, *SENSITIVE]
    table = pa.table({"who": list(subject), **{n: list(c) for n, c in zip(names, columns, strict=True)}})
    return table.set_column(table.schema.get_field_index("c"), "c", table["c"].dictionary_encode())


def batches(table: pa.Table, columns: Any, size: int) -> Iterator[pa.RecordBatch]:
    yield from table.select(list(columns)).to_batches(max_chunksize=size)


def layout_of(table: pa.Table, size: int, quasi: list[str] = QUASI) -> counting.Layout:
    def look(one: Any) -> Any:
        for batch in batches(table, one.columns, size):
            one.add(batch)
        return one

    return counting.surveyed(look, table.schema, "who", quasi, SENSITIVE)


def by_class(table: pa.Table, size: int, piece: int) -> Any:
    layout = layout_of(table, size)
    runs = counting.runs_of(batches(table, layout.columns, size), layout, "class")
    count = counting.counted(
        runs, lambda keys: counting.class_piece(keys, layout.subject_bits, layout.value_bits), rows=piece
    )
    return counting.histogram_of(count, layout)


def by_subject(table: pa.Table, size: int, piece: int) -> Any:
    layout = layout_of(table, size)
    runs = counting.runs_of(batches(table, layout.columns, size), layout, "subject")
    return counting.majority_of(counting.counted(runs, lambda k: counting.subject_piece(k, layout), rows=piece), layout)


def plain(table: pa.Table) -> pa.Table:
    """Dictionaries decoded and chunks joined, as results are."""
    return pa.table({n: table[n].cast(pa.string()) if n == "c" else table[n] for n in table.column_names})


def same_histogram(one: Any, two: Any) -> None:
    for field in ("rows", "subjects", "largest_share"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    np.testing.assert_array_equal(one.weights.toarray(), two.weights.toarray())
    np.testing.assert_allclose(one.reference, two.reference, rtol=1e-12)
    assert one.classes.to_pydict() == two.classes.to_pydict()
    assert one.values.to_pydict() == two.values.to_pydict()
    assert (one.total_rows, one.total_subjects) == (two.total_rows, two.total_subjects)


def same_partial(one: Any, two: Any) -> None:
    for field in ("cell_class", "cell_subject", "cell_value", "cell_rows"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    assert one.subjects.to_pylist() == two.subjects.to_pylist()
    assert one.classes.to_pydict() == two.classes.to_pydict()
    assert one.values.to_pydict() == two.values.to_pydict()


@given(ROWS, st.integers(1, 20), st.integers(1, 20))
def test_counting_by_batches_and_pieces_is_the_histogram(rows: Any, size: int, piece: int) -> None:
    table = table_of(rows)
    held = histogram(table["who"], quasi_identifiers=table.select(QUASI), sensitive=table.select(SENSITIVE))
    same_histogram(by_class(table, size, piece), held)


@given(ROWS, st.integers(1, 20), st.integers(1, 20))
def test_the_majority_by_batches_is_that_of_the_held_table(rows: Any, size: int, piece: int) -> None:
    table = table_of(rows)
    vectors = per_subject_majority(table["who"], table.select(QUASI)).rows()
    held = partial_histogram(table["who"], quasi_identifiers=vectors, sensitive=table.select(SENSITIVE))
    same_partial(by_subject(table, size, piece), held)


@given(ROWS, st.integers(1, 20))
def test_cells_keep_every_subject(rows: Any, size: int) -> None:
    table = table_of(rows)
    layout = layout_of(table, size)
    runs = counting.runs_of(batches(table, layout.columns, size), layout, "class")
    found = counting.partial_of(counting.counted(runs, counting.cell_piece, rows=7), layout)
    held = partial_histogram(table["who"], quasi_identifiers=table.select(QUASI), sensitive=table.select(SENSITIVE))
    same_partial(found, held)


@given(ROWS, st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_nor_of_pieces_changes_a_bit(rows: Any, random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, two = by_class(table_of(rows), 7, 5), by_class(table_of(shuffled), 3, 11)
    np.testing.assert_array_equal(one.reference, two.reference)
    same_histogram(one, two)
    table = table_of(rows)
    layout = layout_of(table, 7)
    runs = counting.runs_of(batches(table, layout.columns, 7), layout, "class")
    pieces = list(
        counting.counted(runs, lambda k: counting.class_piece(k, layout.subject_bits, layout.value_bits), rows=5)
    )
    random.shuffle(pieces)
    same_histogram(counting.histogram_of(pieces, layout), one)


@given(ROWS, st.integers(8, 14))
def test_words_that_are_too_wide_are_replaced_by_ranks(rows: Any, bits: int) -> None:
    table = table_of(rows)
    whole = by_class(table, 9, 9), by_subject(table, 9, 9)
    wide, counting.WORD_BITS = counting.WORD_BITS, bits
    try:
        layout = layout_of(table, 9)
    except ColumnError as error:
        assert "measure fewer attributes" in str(error)  # noqa: PT017 a table this small may fit no word at all
        return
    finally:
        counting.WORD_BITS = wide
    assert layout.subject_bits + layout.class_bits + layout.value_bits <= bits
    runs = counting.runs_of(batches(table, layout.columns, 9), layout, "class")
    piece = counting.counted(runs, lambda k: counting.class_piece(k, layout.subject_bits, layout.value_bits), rows=9)
    same_histogram(counting.histogram_of(piece, layout), whole[0])
    runs = counting.runs_of(batches(table, layout.columns, 9), layout, "subject")
    same_partial(
        counting.majority_of(counting.counted(runs, lambda k: counting.subject_piece(k, layout)), layout), whole[1]
    )


@pytest.mark.parametrize("piece", [1, 1000])
def test_the_reference_is_the_same_where_it_does_not_fit_densely(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    rng = np.random.default_rng(2)
    rows = [(str(w), True, int(b), "x", True, 0.0, "p", bool(b % 2)) for w, b in rng.integers(0, 9, (200, 2))]
    dense = by_class(table_of(rows), 30, 50)
    monkeypatch.setattr(counting.Reference, "DENSE", 1)
    monkeypatch.setattr(counting, "PIECE_ROWS", piece)
    same_histogram(by_class(table_of(rows), 30, 50), dense)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize("flags", [1, 8, 40, 64])
def test_bitmaps_pack_like_shifts_and_unpack_to_themselves(rows: int, flags: int) -> None:
    rng = np.random.default_rng(rows * flags)
    table = pa.table({f"f{i}": rng.random(rows + 3) < 0.4 for i in range(flags)})
    (batch,) = table.to_batches()
    for part in (batch.slice(0, rows), batch.slice(3, rows)):  # an offset within a byte
        codings = [packing.Flag(name) for name in table.column_names]
        words = packing.pack(codings, part)
        expected = np.zeros(rows, dtype=np.uint64)
        for name in table.column_names:
            expected = (expected << np.uint64(1)) | part[name].to_numpy(zero_copy_only=False).astype(np.uint64)
        np.testing.assert_array_equal(words, expected)
        assert packing.unpack(codings, words).to_pydict() == part.to_pydict()


def test_a_subject_with_more_rows_than_a_byte_counts_has_its_majority() -> None:
    rng = np.random.default_rng(1)
    who = np.repeat([3, 1, 2], [2000, 255, 511])
    table = pa.table({"who": who, "a": rng.random(len(who)) < 0.5, "b": who == 3, "s": who > 1, "r": who > 2})
    table = table.take(pa.array(rng.permutation(len(who))))
    layout = layout_of(table, 100, ["a", "b"])
    runs = counting.runs_of(batches(table, layout.columns, 100), layout, "subject")
    found = counting.majority_of(counting.counted(runs, lambda k: counting.subject_piece(k, layout), rows=9), layout)
    vectors = per_subject_majority(table["who"], table.select(["a", "b"])).rows()
    held = partial_histogram(table["who"], quasi_identifiers=vectors, sensitive=table.select(SENSITIVE))
    same_partial(found, held)


def test_wide_integers_dates_and_other_kinds_are_ranked() -> None:
    days = [datetime.date(2020, 1, 1 + i % 5) for i in range(40)]
    table = pa.table({"who": pa.array([(7**i) % 2**40 for i in range(40)]), "a": days, "s": ["u", "v"] * 20})
    table = table.append_column("r", pa.array([i % 3 == 0 for i in range(40)]))
    layout = layout_of(table, 6, ["a"])
    assert isinstance(layout.subject, packing.Vocabulary)
    runs = counting.runs_of(batches(table, layout.columns, 6), layout, "class")
    piece = counting.counted(runs, lambda k: counting.class_piece(k, layout.subject_bits, layout.value_bits))
    held = histogram(table["who"], quasi_identifiers=table.select(["a"]), sensitive=table.select(SENSITIVE))
    same_histogram(counting.histogram_of(piece, layout), held)


def test_surveys_of_shards_merge_into_the_survey_of_all() -> None:
    table = table_of(
        [(w, True, i, c, False, 0.0, "p", True) for i, (w, c) in enumerate(zip("badce", "zxyzx", strict=True))]
    )
    names = ("who", "b", "c", "e")
    whole, merged = packing.Survey(names), packing.Survey(names)
    for batch in table.to_batches(max_chunksize=2):
        whole.add(batch)
        part = packing.Survey(names)
        part.add(batch)
        merged.merge(part)
    assert merged.rows == whole.rows == 5
    for name in names:
        one, two = merged.coding(name), whole.coding(name)
        assert one.bits == two.bits
        if isinstance(one, packing.Vocabulary) and isinstance(two, packing.Vocabulary):
            assert one.distinct.to_pylist() == two.distinct.to_pylist() == sorted(set(table[name].to_pylist()))


@pytest.mark.parametrize("column, values", [("a", [True, None]), ("b", [1, None]), ("e", [1.0, float("nan")])])
def test_a_null_names_its_column_and_row(column: str, values: list[Any]) -> None:
    table = table_of([("ann", True, 1, "x", True, 0.0, "p", True)] * 6)
    bad = pa.array([values[0]] * 4 + [values[1], values[0]])
    table = table.set_column(table.schema.get_field_index(column), column, bad)
    with pytest.raises(NullValueError, match=f"'{column}' is null in row 4"):
        by_class(table, 3, 3)


def test_a_table_without_rows_is_refused() -> None:
    table = table_of([("ann", True, 1, "x", True, 0.0, "p", True)]).slice(0, 0)
    with pytest.raises(EmptyTableError):
        by_class(table, 3, 3)
