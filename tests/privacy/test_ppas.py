"""PPAS as printed does what is printed; verified, it never returns what breaks the policy."""

import hmac
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy.cells import CellPlan, cells, planned
from facecrowd.privacy.classes import histogram
from facecrowd.privacy.errors import ColumnError, PolicyError, UnreachableError
from facecrowd.privacy.policy import Closeness, Diversity, Policy
from facecrowd.privacy.ppas import ppas, ppas_verified
from facecrowd.privacy.verdict import judge


def digest(purpose, name, key=b"p" * 32):
    return hmac.digest(key, purpose.encode() + b"\0" + name, "sha256")


def asked(t=0.2, **more):
    return Policy("subject", ("a", "b", "c"), ("sick",), t=None if t is None else Closeness(t), **more)


def people(n=300, seed=0, bits=3):
    rng = np.random.default_rng(seed)
    sick = rng.random(n) < 0.3
    table = {"abcdefghij"[i]: (rng.random(n) < np.where(sick, 0.2 + 0.1 * i, 0.4)) for i in range(bits)}
    return cells(np.arange(n), table, {"sick": sick})


tables = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.integers(0, 1), st.integers(0, 2)), min_size=4, max_size=40
).map(
    lambda rows: cells(
        np.arange(len(rows)), {n: [r[i] for r in rows] for i, n in enumerate("abc")}, {"sick": [r[3] for r in rows]}
    )
)


def independent(result, policy, sensitive, epsilon=None):
    """The verdict from the released vectors alone, by grouping their words anew."""
    shown = result.vectors()
    kept = np.flatnonzero(shown["a"].is_valid())
    at = np.asarray(pc.index_in(shown["subject"], pa.array(np.arange(len(sensitive)))))
    table = histogram(
        shown["subject"].take(pa.array(kept)),
        quasi_identifiers=shown.drop_columns(["subject"]).take(pa.array(kept)),
        sensitive={"sick": np.asarray(sensitive)[at][kept]},
    )
    return judge(table, policy, epsilon=epsilon)


def test_an_attribute_is_kept_where_the_distance_is_under_t_and_swapped_elsewhere():
    sick = np.r_[np.ones(4), np.zeros(6)].astype(bool)
    a = np.r_[np.ones(4), np.zeros(6)].astype(bool)  # only the sick have it: d = 0.6
    b = np.arange(10) % 2 == 0  # 2 of 5 are sick, as of all
    c = np.zeros(10, dtype=bool)
    found = ppas(cells(np.arange(10), {"a": a, "b": b, "c": c}, {"sick": sick}), asked(0.2))
    one, two, three = found.choices
    assert (one.flipped, two.flipped, three.flipped) == (True, False, False)
    assert one.showing == 4
    assert one.before == pytest.approx(0.6)
    assert one.other == one.after == pytest.approx(0.4)  # still over t: the swap does not repair what it is for
    assert two.before == pytest.approx(0.0)
    assert found.flipped == ("a",)
    shown = found.vectors()
    assert shown["a"].to_pylist() == [str(not value) for value in a]
    assert shown["b"].to_pylist() == [str(bool(value)) for value in b]
    assert not found.verdict.met


@given(tables, st.floats(0.01, 0.6))
def test_the_printed_rule_on_any_table(table, t):
    policy = Policy("subject", ("a", "b", "c"), ("sick",), t=Closeness(t))
    found = ppas(table, policy)
    everybody = table.histogram
    for a, choice in enumerate(found.choices):
        # brute force: total variation of the subjects who show it
        mine = [everybody.weights.toarray()[i] for i in range(len(table)) if table.codes[i, a] == 1]
        if mine and table.attributes[a].size == 2:
            p = np.sum(mine, axis=0)
            d = 0.5 * np.abs(p / p.sum() - everybody.reference).sum()
            assert choice.before == pytest.approx(d)
            assert choice.flipped == (not choice.before < t)
            n, n_e = everybody.total_subjects, choice.showing
            assert n_e * choice.before == pytest.approx((n - n_e) * choice.other)
            if choice.flipped:
                assert choice.after == pytest.approx(choice.other)
        else:
            assert not choice.flipped
    # a swap is a bijection: the classes have the same people
    before, after = table.histogram, planned(found.cells, found.plan)
    assert sorted(before.subjects.tolist()) == sorted(after.subjects.tolist())


def test_as_printed_a_swap_can_raise_the_distance():
    """An attribute that most people have: swapping it points at the few."""
    sick = np.r_[np.ones(2), np.zeros(98)].astype(bool)
    a = np.r_[np.zeros(2), np.zeros(2), np.ones(96)].astype(bool)
    b = np.arange(100) % 2 == 0
    table = cells(np.arange(100), {"a": a, "b": b, "c": b}, {"sick": sick})
    found = ppas(table, asked(0.015))
    assert found.choices[0].flipped
    assert found.choices[0].before == pytest.approx(0.02)
    assert found.choices[0].after == pytest.approx(0.48)
    verified = ppas_verified(table, asked(0.015))
    assert verified.verdict.met
    assert verified.choices[0].after <= 0.015 + 1e-9
    assert verified.flipped == ()


@given(
    tables,
    st.sampled_from([None, 0.05, 0.2, 0.5]),
    st.sampled_from([None, Diversity("distinct", 2), Diversity("entropy", 1.5)]),
    st.integers(1, 6),
    st.sampled_from([None, 0.5, 4.0]),
)
def test_verified_never_returns_a_plan_that_breaks_the_policy(table, t, diversity, k, epsilon):
    policy = asked(t, k=k, l=diversity, epsilon=epsilon)
    sensitive = [int(v) for v in table.partial.values["sick"].take(pa.array(by_subject(table))).to_pylist()]
    try:
        found = ppas_verified(table, policy, digest=digest)
    except UnreachableError:
        with pytest.raises(UnreachableError):  # nor does the class of everybody
            raise_if_unmet(table, replace(policy, epsilon=None))
        return
    assert found.verdict.met
    assert independent(found, policy, sensitive, found.epsilon).met
    assert found.k >= k
    if t is not None:
        assert all(choice.after <= t + 1e-9 for choice in found.choices)  # equation 5 follows from the classes
    if epsilon is not None:
        assert found.epsilon <= epsilon


def by_subject(table):
    value = np.empty(len(table.partial.subjects), dtype=np.int64)
    value[table.partial.cell_subject] = table.partial.cell_value
    return value


def raise_if_unmet(table, policy):
    one = table.regroup(np.zeros(len(table), dtype=np.int64))
    try:
        met = judge(one, policy).met
    except Exception as error:
        raise UnreachableError(str(error)) from None
    if not met:
        raise UnreachableError("unmet")


def test_break_it_a_planner_that_does_not_keep_the_policy_is_found_out():
    def idle(table, policy):
        return CellPlan(np.arange(len(table)), table.codes, table.codes, "idle")

    with pytest.raises(UnreachableError, match=r"does not meet the policy: k = 50 is asked"):
        ppas_verified(people(), asked(k=50), planner=idle)


def test_as_printed_perturbation_leaves_no_crowd_and_verified_keeps_one():
    table = people(200, bits=10)
    policy = Policy("subject", tuple("abcdefghij"), ("sick",), k=5, t=Closeness(0.3), epsilon=5.0)
    printed, verified = ppas(table, policy, digest=digest), ppas_verified(table, policy, digest=digest)
    assert printed.k == 1
    assert not printed.verdict.met
    assert verified.k >= 5
    assert verified.verdict.met
    assert printed.epsilon == pytest.approx(5.0)
    assert verified.epsilon == pytest.approx(5.0)
    assert "the choices were computed on this table" in printed.plan.notes[-1]
    assert "depends on the sensitive values" in verified.plan.notes[-1]


def test_choices_can_be_public_or_have_their_own_epsilon():
    table, other = people(300, 0), people(300, 1)
    policy = asked(0.05, epsilon=2.0)
    public = ppas(table, policy, digest=digest, public=other)
    assert public.flipped == ppas(other, policy, digest=digest).flipped
    assert public.epsilon == pytest.approx(2.0)
    drawn = ppas(table, policy, digest=digest, choice_epsilon=3.0)
    assert drawn.epsilon == pytest.approx(5.0)
    certain = ppas(people(20_000), asked(0.05), digest=digest, choice_epsilon=1000.0)
    assert certain.flipped == ppas(people(20_000), asked(0.05)).flipped
    with pytest.raises(ColumnError, match="other attributes"):
        ppas(table, policy, digest=digest, public=people(bits=2))


@given(tables, st.integers(0, 10**6))
def test_no_person_moves_a_choice_s_score_by_more_than_is_allowed_for(table, seed):
    """The score n_E (t - d) of every attribute, with one person's vector and sensitive value replaced."""
    rng = np.random.default_rng(seed)
    n, t = len(table.partial.subjects), 0.3
    bits = table.codes[table.partial.cell_class[np.argsort(table.partial.cell_subject)]]
    # codes are ranks of the values that occur; what matters is only that both tables share the second value
    sick = by_subject(table)
    person = int(rng.integers(n))

    def scores(b, s):
        out = []
        whole = np.bincount(s, minlength=3) / n
        for a in range(3):
            mine = s[b[:, a] == 1]
            d = 0.5 * np.abs(np.bincount(mine, minlength=3) / len(mine) - whole).sum() if len(mine) else 0.0
            out.append(len(mine) * (t - d))
        return np.array(out)

    other_bits, other_sick = bits.copy(), sick.copy()
    other_bits[person], other_sick[person] = rng.integers(0, 2, 3), rng.integers(0, 3)
    assert np.abs(scores(bits, sick) - scores(other_bits, other_sick)).max() <= 2 + t + 1e-9


def test_bad_input_gets_one_clear_sentence():
    table = people()
    with pytest.raises(PolicyError, match="PPAS compares distances with t"):
        ppas(table, asked(None))
    for method in (ppas, ppas_verified):
        with pytest.raises(PolicyError, match="no run key"):
            method(table, asked(epsilon=1.0))
    three = cells(np.arange(9), {"a": np.arange(9) % 3}, {"sick": np.arange(9) % 2})
    policy = Policy("subject", ("a",), ("sick",), t=Closeness(0.5), k=3)
    with pytest.raises(ColumnError, match="3 values and algorithm 1 is for binary ones"):
        ppas(three, policy)
    assert ppas_verified(three, policy).verdict.met
    several = cells([1, 1, 2], {"a": [0, 1, 0]}, {"sick": [0, 1, 1]}, per_subject=False)
    with pytest.raises(PolicyError, match="several quasi-identifier vectors"):
        ppas(several, policy)
