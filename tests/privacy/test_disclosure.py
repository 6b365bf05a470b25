"""Claims of privacy/disclosure.py: planted cases with known answers, outside oracles, and attacks done by hand."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from facecrowd.privacy.disclosure import (
    ANY,
    Rate,
    Risk,
    inference,
    linkability,
    of_subjects,
    singling_out,
    tables,
)
from facecrowd.privacy.errors import ColumnError, EmptyTableError, LengthError

NAMES = [f"a{i:02d}" for i in range(24)]


def rng(seed=0):
    return np.random.default_rng(seed)


def people(n, seed=0, names=NAMES):
    """n different people whose attributes hang together: each is one of six types with some bits flipped."""
    draws = rng(seed)
    types = rng(99).random((6, len(names))) < 0.5
    bits = types[draws.integers(6, size=n)] ^ (draws.random((n, len(names))) < 0.15)
    return {name: np.where(column, "1", "0") for name, column in zip(names, bits.T, strict=True)}


def apart(*many):
    """Tables without the rows that an earlier one has."""
    seen, out = set(), []
    for table in many:
        rows = list(zip(*table.values(), strict=True))
        first = {row: i for i, row in reversed(list(enumerate(rows))) if row not in seen}
        seen |= set(rows)
        keep = sorted(first.values())
        out.append({name: values[keep] for name, values in table.items()})
    return out


HALVES = (NAMES[:12], NAMES[12:])
HERE, OUTSIDE = apart(people(400, 1), people(400, 2))


# ------------------------------------------------------------------------------------------------------------- rates


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_rates_have_wilsons_interval(case):
    successes, n = case
    rate, oracle = Rate(successes, n), binomtest(successes, n).proportion_ci(method="wilson")
    assert rate.centre - rate.error == pytest.approx(oracle.low, abs=1e-9)
    assert rate.centre + rate.error == pytest.approx(oracle.high, abs=1e-9)


def test_the_risk_is_what_the_attack_gains_over_people_outside():
    risk = Risk(Rate(900, 1000), Rate(100, 1000), Rate(500, 1000))
    r, c = Rate(900, 1000).centre, Rate(500, 1000).centre
    assert risk.value == pytest.approx((r - c) / (1 - c))
    assert risk.value == pytest.approx(0.8, abs=0.004)


@pytest.mark.parametrize(("attack", "control"), [((900, 1000), (500, 1000)), ((700, 1000), (40, 100))])
def test_the_interval_is_of_both_rates_together(attack, control):
    r, c = (rng(i).binomial(n, s / n, size=20000) / n for i, (s, n) in enumerate((attack, control)))
    simulated = np.quantile((r - c) / (1 - c), [0.025, 0.975])
    assert Risk(Rate(*attack), Rate(0, 1000), Rate(*control)).interval == pytest.approx(simulated, abs=0.02)


def test_without_people_outside_the_risk_is_the_attacks_rate():
    risk = Risk(Rate(30, 100), Rate(1, 100))
    assert risk.value == Rate(30, 100).centre
    assert not risk.naive_wins


def test_an_attack_that_does_worse_than_outside_is_no_negative_risk():
    risk = Risk(Rate(10, 100), Rate(20, 100), Rate(60, 100))
    assert risk.value == 0
    assert risk.interval[0] == 0
    assert risk.naive_wins


# ------------------------------------------------------------------------------------------------------ planted cases


def test_an_exact_copy_of_the_table_is_singled_out_linked_and_inferred():
    table = tables(HERE, HERE, OUTSIDE)
    single = singling_out(table, rng=rng(), width=len(NAMES))
    assert single.attack == Rate(len(HERE["a00"]), len(HERE["a00"]))
    assert single.control.share == 0
    assert single.value > 0.98
    link = linkability(table, HALVES, rng=rng())
    assert link.attack.share > 20 * link.naive.share
    assert link.value > 0.1
    guess = inference(table, "a00", rng=rng())
    assert guess.attack.share > 0.95
    assert guess.value > 0.5


def test_a_constant_table_singles_out_links_and_tells_nothing():
    same = {name: np.full(400, "1") for name in NAMES}
    table = tables(same, HERE, OUTSIDE)
    for width in (1, 3, len(NAMES)):
        single = singling_out(table, rng=rng(), width=width)
        assert (single.value, single.interval, single.attack.guesses) == (0.0, None, 0)
    link = linkability(table, HALVES, rng=rng())
    assert link.attack.share == pytest.approx(1 / 400)
    assert link.naive_wins
    guess = inference(table, "a00", rng=rng())
    assert guess.attack.share == pytest.approx(np.mean(HERE["a00"] == "1"))
    assert guess.interval[0] == 0


def test_one_person_alone_with_a_value_is_singled_out_by_it_and_nobody_else():
    hair = np.array(["brown"] * 50 + ["black"] * 49 + ["green"])
    single = singling_out(tables({"hair": hair}, {"hair": hair}), rng=rng(), width=1)
    assert single.attack == Rate(1, 1)
    twice = np.append(hair, "green")
    assert singling_out(tables({"hair": hair}, {"hair": twice}), rng=rng(), width=1).attack == Rate(0, 1)
    assert singling_out(tables({"hair": twice}, {"hair": hair}), rng=rng(), width=1).attack == Rate(0, 0)


def test_numbers_are_singled_out_by_their_ends():
    age = {"age": np.array([20, 30, 30, 40, 40, 71])}
    shown = {"age": np.array([25, 30, 30, 40, 40, 65])}
    single = singling_out(tables(shown, age), rng=rng(), width=1)
    # at most 25 and at least 65 each hold of one original, though nobody is 25 or 65
    assert single.attack == Rate(2, 2)


def test_each_released_subject_is_guessed_about_once():
    colours = {"a": np.arange(30), "b": np.arange(30)[::-1], "c": np.arange(30) % 2}
    single = singling_out(tables(colours, colours), rng=rng(), width=1)
    assert single.attack == Rate(30, 30)
    wide = singling_out(tables(HERE, HERE), rng=rng(), width=12, attempts=10**5)
    assert wide.attack.guesses <= len(HERE["a00"])


@pytest.mark.parametrize("width", [1, 3, 8, 24])
def test_in_classes_of_k_nobody_is_singled_out_and_at_most_one_in_k_linked(width):
    k, n = 5, len(HERE["a00"]) // 5 * 5
    classes = np.arange(n) // k
    shown = {name: values[: len(classes)][classes * k] for name, values in HERE.items()}
    table = tables(shown, {name: values[:n] for name, values in HERE.items()}, OUTSIDE)
    assert singling_out(table, rng=rng(), width=width).attack.guesses == 0
    assert linkability(table, HALVES, rng=rng()).attack.share <= 1 / k


def test_what_is_true_of_people_outside_too_is_no_risk():
    """A release of other people of the same kind tells how attributes hang together, and nothing of anybody."""
    table = tables(people(3000, 7), people(3000, 8), people(3000, 9))
    guess = inference(table, "a03", rng=rng())
    assert guess.attack.share > guess.naive.share + 0.1
    assert guess.interval[0] == 0
    assert guess.value < 0.1
    link = linkability(table, HALVES, rng=rng())
    assert link.interval[0] == 0
    single = singling_out(table, rng=rng(), width=12)
    assert single.interval[0] == 0


# ------------------------------------------------------------------------------------------------------------ the star


def test_a_predicate_may_hold_of_whoever_is_left_open():
    truth = {"hair": np.array(["brown", "brown", "green"]), "hat": np.array(["0", "1", "0"])}
    shown = {"hair": np.array(["brown", ANY, "green"]), "hat": np.array(["0", "1", "0"])}
    # 'green' may be the second, so only the hat singles out
    assert singling_out(tables(shown, truth), rng=rng(), width=1).attack == Rate(1, 1)
    everything_open = {name: np.full(3, ANY) for name in truth}
    assert singling_out(tables(everything_open, truth), rng=rng(), width=2).attack.guesses == 0


def test_a_row_of_stars_is_not_everybodys_nearest():
    n = len(HERE["a00"])
    with_one = {name: np.append(values, ANY) for name, values in HERE.items()}
    plain, one = (linkability(tables(shown, HERE), HALVES, rng=rng()).attack for shown in (HERE, with_one))
    assert one.share == pytest.approx(plain.share, rel=0.02)
    assert n == plain.guesses


def test_a_secret_left_open_is_guessed_as_the_naive_attack_does():
    name = np.arange(len(HERE["a00"])).astype(str)  # so that everybody's nearest is their own row
    half = {"name": name, "a00": np.where(np.arange(len(name)) % 2, HERE["a00"], ANY)}
    table = tables(half, {**HERE, "name": name})
    share = np.mean(half["a00"][half["a00"] != ANY] == "1")
    guess = inference(table, "a00", rng=rng())
    right = np.where(HERE["a00"] == "1", share, 1 - share)
    known = half["a00"] != ANY
    assert guess.attack.share == pytest.approx((known.sum() + right[~known].sum()) / len(known), abs=1e-9)
    with pytest.raises(EmptyTableError, match="released as \\* of everybody"):
        inference(tables({**HERE, "a00": np.full(len(known), ANY)}, HERE), "a00", rng=rng())


def test_who_has_an_unknown_secret_is_not_attacked():
    truth = {**HERE, "a00": np.where(np.arange(len(HERE["a00"])) < 100, HERE["a00"], None)}
    assert inference(tables(HERE, truth), "a00", rng=rng()).attack.guesses == 100
    nobody = {**HERE, "a00": np.full(len(HERE["a00"]), None)}
    with pytest.raises(EmptyTableError, match="not known of anybody"):
        inference(tables(HERE, nobody), "a00", rng=rng())


# ------------------------------------------------------------------------------------------------- attacks done by hand

VALUES = st.sampled_from(["x", "y", "z", ANY])
ROWS = st.lists(st.tuples(VALUES, VALUES, VALUES, st.integers(0, 4)), min_size=1, max_size=8)


def columns(rows):
    names = ("p", "q", "r", "n")
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}


def gap(released, name, shown, told, numbers):
    """The distance of one attribute as the documentation has it."""
    if told == ANY:
        return 0.0
    if name == "n":
        return abs(int(shown) - int(told)) / max(max(numbers) - min(numbers), 1e-300)
    if shown == ANY:
        known = [value for value in released[name] if value != ANY]
        return 1 - (known.count(told) / len(known) if known else 0)
    return float(shown != told)


def nearest(released, target, names, numbers):
    far = [
        sum(gap(released, name, released[name][i], target[name], numbers) for name in names)
        for i in range(len(released["p"]))
    ]
    return {i for i, d in enumerate(far) if d <= min(far) + 1e-5}


@given(ROWS, ROWS)
def test_linkability_is_as_worked_out_by_hand(shown, truth):
    released, originals = columns(shown), columns(truth)
    numbers = [int(row[3]) for row in shown + truth]
    sides = (["p", "n"], ["q", "r"])
    found = linkability(tables(released, originals), sides, rng=rng()).attack
    success = 0.0
    for i in range(len(truth)):
        target = {name: values[i] for name, values in originals.items()}
        a, b = (nearest(released, target, side, numbers) for side in sides)
        success += len(a & b) / (len(a) * len(b))
    assert found.guesses == len(truth)
    assert found.successes == pytest.approx(success)


@given(ROWS, ROWS)
def test_inference_is_as_worked_out_by_hand(shown, truth):
    released, originals = columns(shown), columns(truth)
    known = [value for value in released["p"] if value != ANY]
    targets = [i for i, value in enumerate(originals["p"]) if value != ANY]
    if not known or not targets:
        return
    numbers = [int(row[3]) for row in shown + truth]
    found = inference(tables(released, originals), "p", rng=rng())
    success = naive = 0.0
    for i in targets:
        target = {name: values[i] for name, values in originals.items()}
        base = known.count(target["p"]) / len(known)
        says = [
            base if released["p"][j] == ANY else float(released["p"][j] == target["p"])
            for j in nearest(released, target, ["q", "r", "n"], numbers)
        ]
        success, naive = success + sum(says) / len(says), naive + base
    assert found.attack.successes == pytest.approx(success)
    assert found.naive.successes == pytest.approx(naive)


@given(ROWS, ROWS)
def test_singling_out_by_all_attributes_is_as_worked_out_by_hand(shown, truth):
    shown, truth = [row[:3] for row in shown], [row[:3] for row in truth]
    released, originals = (
        {n: np.array(c) for n, c in zip("pqr", zip(*rows, strict=True), strict=True)} for rows in (shown, truth)
    )

    def may(row, record):
        return all(ANY in pair or pair[0] == pair[1] for pair in zip(row, record, strict=True))

    def surely(row, record):
        return all(told == ANY or value == told for value, told in zip(row, record, strict=True))

    alone = [record for record in shown if set(record) != {ANY} and sum(may(row, record) for row in shown) == 1]
    right = sum(sum(surely(row, record) for row in truth) == 1 for record in alone)
    assert singling_out(tables(released, originals), rng=rng(), width=3).attack == Rate(right, len(alone))


def test_people_outside_are_taken_to_the_size_of_the_originals():
    """Against samples of a quarter of them, the corrected successes come out as against all."""
    shown, rows = people(400, 5, NAMES[:12]), people(400, 3, NAMES[:12])

    def control(others):
        return singling_out(tables(shown, rows, others), rng=rng(), width=8, attempts=2000).control

    few = [
        control({n: v[p] for n, v in rows.items()}) for p in (rng(s).choice(400, 100, replace=False) for s in range(20))
    ]
    assert 0.1 < control(rows).share < 0.5
    assert np.mean([rate.share for rate in few]) == pytest.approx(control(rows).share, rel=0.1)
    more = {n: np.concatenate([v, v]) for n, v in rows.items()}
    # twice everybody, of whom a sample of half sees one of the two just as often as none or both
    found = singling_out(tables(rows, rows, more), rng=rng(), width=8, attempts=2000)
    assert found.control.share == pytest.approx(0.5, abs=0.01)


# ------------------------------------------------------------------------------------------------------------ the rows


def test_a_subject_is_one_row_with_what_most_of_their_photos_show():
    subject = ["bob", "ann", "bob", "bob", "cyd"]
    found = of_subjects(subject, {"hat": ["1", ANY, "0", "1", None], "age": [3, 4, 3, 5, 6]})
    assert found.to_pylist() == [
        {"hat": ANY, "age": "4"},
        {"hat": "1", "age": "3"},
        {"hat": ANY, "age": "6"},
    ]


def test_photos_of_one_subject_are_one_guess():
    many = np.repeat(np.arange(50), np.arange(1, 51))
    shown = of_subjects(many, {name: values[:50][many] for name, values in HERE.items()})
    table = tables(shown, shown)
    assert linkability(table, HALVES, rng=rng()).attack.guesses == 50
    assert inference(table, "a00", rng=rng()).attack.guesses == 50


def test_the_same_generator_makes_the_same_figures():
    table = tables(HERE, HERE, OUTSIDE)
    one, other = (
        (singling_out(table, rng=r, width=6, guesses=50), inference(table, "a01", rng=r, guesses=50))
        for r in (rng(4), rng(4))
    )
    assert one == other


def test_some_of_the_people_can_be_attacked_in_the_whole_release():
    table = tables(HERE, HERE, OUTSIDE)
    men, men_outside = HERE["a05"] == "1", OUTSIDE["a05"] == "1"
    part = table.only(men, men_outside)
    assert linkability(part, HALVES, rng=rng()).attack.guesses == men.sum()
    assert linkability(part, HALVES, rng=rng()).control.guesses == men_outside.sum()
    assert len(part.released) == len(HERE["a00"])


def test_what_cannot_be_attacked_is_said():
    table = tables(HERE, HERE)
    with pytest.raises(ColumnError, match="'Hat' is not released"):
        inference(table, "Hat", rng=rng())
    with pytest.raises(ColumnError, match="give each attributes of its own"):
        linkability(table, (["a00"], ["a00", "a01"]), rng=rng())
    with pytest.raises(ColumnError, match="is to be guessed from"):
        inference(table, "a00", ["a00"], rng=rng())
    with pytest.raises(ColumnError, match="column 'a00' is released but not known"):
        tables(HERE, {"a01": ["1"]})
    with pytest.raises(EmptyTableError, match="shows no attributes"):
        tables({}, {})
    with pytest.raises(EmptyTableError, match="no subjects"):
        tables({"a": []}, {"a": []})
    with pytest.raises(LengthError):
        tables({"a": ["1"], "b": ["1", "0"]}, {"a": ["1"], "b": ["1"]})


def test_columns_may_be_of_any_kind():
    for kind in (pa.string(), pa.bool_(), pa.dictionary(pa.int32(), pa.string())):
        column = pa.array(["true", "false", "true", None]).cast(pa.string()).cast(kind)
        table = tables(pa.table({"a": column}), pa.table({"a": column}))
        assert table.released[:, 0].tolist() == [1, 0, 1, -1]
    ages = tables({"age": [30, 5, 100]}, {"age": [np.nan, 5, 30]})
    assert (ages.released[:, 0].tolist(), ages.originals[:, 0].tolist()) == ([1, 0, 2], [-1, 0, 1])


def test_two_hundred_thousand_subjects_are_attacked_in_bounded_memory():
    n = 200_000
    table = tables(people(n, 1), people(n, 1), people(20_000, 2))
    assert singling_out(table, rng=rng(), width=24, guesses=200, attempts=2000).attack.share == 1
    assert linkability(table, HALVES, rng=rng(), guesses=200).attack.guesses == 200
    assert inference(table, "a00", rng=rng(), guesses=200).attack.share > 0.5
