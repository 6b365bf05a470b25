"""Claims of privacy/misprediction.py: what a predictor's errors do to k, l and t, held against enumeration and hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from facecrowd.privacy.classes import Histogram, histogram
from facecrowd.privacy.closeness import earth_movers_distance, hamming_ground
from facecrowd.privacy.errors import ColumnError
from facecrowd.privacy.misprediction import (
    ConfusionError,
    Rates,
    corrected,
    draws_for,
    misprediction,
    posterior,
    rogan_gladen,
    true_crowds,
    true_positives,
)
from facecrowd.privacy.policy import Closeness, Diversity, Policy
from facecrowd.privacy.verdict import judge

RATES = st.builds(Rates, st.floats(0.55, 1), st.floats(0.55, 1))
EXACT = Rates(1, 1)


def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def people(n: int = 300, seed: int = 2) -> Histogram:
    draw = np.random.default_rng(seed)
    return histogram(
        np.arange(n),
        quasi_identifiers={
            "tall": draw.random(n) < 0.4,
            "old": draw.random(n) < 0.2,
            "town": draw.choice(["Ayr", "Bath"], n),
        },
        sensitive={"sick": draw.random(n) < 0.3, "rich": draw.random(n) < 0.5},
    )


def asking(**limits: object) -> Policy:
    return Policy("who", ("tall", "old", "town"), ("sick", "rich"), **limits)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- rates


def test_the_corrected_rate_is_rogan_and_gladens_clipped_to_a_share():
    rates = Rates(0.9, 0.8)  # of 100 people, 40 of them positive, 36 + 12 = 48 are predicted so
    np.testing.assert_allclose(rogan_gladen([0.48, 0.1, 0.95], rates), [0.4, 0, 1])


def test_the_posterior_is_bayes_rule_at_the_corrected_prevalence():
    found = posterior(0.48, Rates(0.9, 0.8))
    assert found.prevalence == pytest.approx(0.4)
    assert found.positive == pytest.approx(36 / 48)
    assert found.negative == pytest.approx(4 / 52)
    assert posterior(0.48, Rates(0.9, 0.8, 0.5)).positive == pytest.approx(0.45 / 0.55)


@given(RATES, st.floats(0.01, 0.99))
def test_posteriors_average_to_the_prevalence_of_which_they_are(rates, share):
    observed = rates.tpr * share + (1 - rates.tnr) * (1 - share)
    found = posterior(observed, rates)
    assert found.prevalence == pytest.approx(share)
    assert observed * found.positive + (1 - observed) * found.negative == pytest.approx(share)


@pytest.mark.parametrize(
    "rates, says",
    [((0.5, 0.5), "no better than chance"), ((1.2, 0.9), "tpr is 1.2"), ((0.9, 0.9, -1), "prevalence is -1")],
)
def test_rates_that_are_none_or_no_better_than_chance_are_refused(rates, says):
    with pytest.raises(ConfusionError, match=says):
        Rates(*rates)


def test_a_prevalence_that_the_table_contradicts_is_refused():
    with pytest.raises(ConfusionError, match="'tall' is 1 in the table, which a prevalence of 0"):
        misprediction(people(), asking(k=2), {"tall": Rates(0.9, 1, 0)}, rng())


# ---------------------------------------------------------------------------------------------------- k

TINY = {"a": [True, True, False, False, False], "b": [False, True, True, False, False]}
TINY_RATES = {"a": Rates(0.9, 0.8, 0.45), "b": Rates(0.7, 0.95, 0.3)}


def enumerated(k: int) -> tuple[float, float, float, float]:
    """Over all 2^10 true tables: the smallest class, the share of people under k, a crowd, and of who is right."""
    chance = {}
    for name, rates in TINY_RATES.items():
        hit, false, prior = rates.tpr, 1 - rates.tnr, rates.prevalence or 0.0
        of_one = hit * prior / (hit * prior + false * (1 - prior))
        of_zero = (1 - hit) * prior / ((1 - hit) * prior + rates.tnr * (1 - prior))
        chance[name] = [of_one if value else of_zero for value in TINY[name]]
    totals = np.zeros(4)
    for truth in product([0, 1], repeat=10):
        a, b = truth[:5], truth[5:]
        weight = 1.0
        for name, values in (("a", a), ("b", b)):
            for value, p in zip(values, chance[name], strict=True):
                weight *= p if value else 1 - p
        vectors = list(zip(a, b, strict=True))
        crowd = np.array([vectors.count(vector) for vector in vectors])
        right = np.mean([(x, y) == (p, q) for x, y, p, q in zip(a, b, TINY["a"], TINY["b"], strict=True)])
        totals += weight * np.array([crowd.min(), (crowd < k).mean(), crowd.mean(), right])
    return tuple(totals)  # type: ignore[return-value]


def test_true_crowds_are_those_of_all_true_tables_weighed():
    released = histogram(np.arange(5), quasi_identifiers=TINY)
    smallest, below, mean, right = enumerated(3)
    _, found = true_crowds(released, TINY_RATES, rng(), k=3, draws=20_000)
    assert found.right == pytest.approx(right)
    assert found.closed_form
    assert found.mean == pytest.approx(mean)
    assert found.smallest.mean == pytest.approx(smallest, abs=0.02)
    assert found.below.mean == pytest.approx(below, abs=0.01)
    assert (found.smallest_released, found.below_released, found.people) == (1, 1.0, 5)


def test_without_the_closed_form_the_crowd_is_that_of_the_draws(monkeypatch):
    released, rates = people(), {"tall": Rates(0.9, 0.7), "old": Rates(0.8, 0.95)}
    _, exact = true_crowds(released, rates, rng(), k=5)
    monkeypatch.setattr("facecrowd.privacy.misprediction.PAIRS", 0)
    _, drawn = true_crowds(released, rates, rng(), k=5)
    assert (exact.closed_form, drawn.closed_form) == (True, False)
    assert drawn.mean == pytest.approx(exact.mean, rel=0.01)
    assert drawn.below == exact.below


def test_people_who_differ_in_an_exact_attribute_never_share_a_crowd():
    released = histogram(
        np.arange(4), quasi_identifiers={"tall": [True, True, False, False], "town": ["Ayr", "Bath", "Ayr", "Bath"]}
    )
    _, found = true_crowds(released, {"tall": Rates(0.6, 0.6)}, rng(), k=2, draws=200)
    assert found.smallest.high <= 2
    assert found.mean == pytest.approx(
        1.48
    )  # at prevalence 1/2 two who show different values are alike with 2 · 0.6 · 0.4
    assert found.mean_released == 1


def test_a_generalised_value_stays_generalised():
    shown = pa.table({"tall": ["*", "*", "True", "False"], "old": ["True", "False", "*", "*"]})
    released = histogram(np.arange(8), quasi_identifiers=pa.concat_tables([shown, shown]))
    rates = {"tall": Rates(0.9, 0.9), "old": Rates(0.9, 0.9)}
    _, found = true_crowds(released, rates, rng(), k=5, draws=300)
    assert found.right == pytest.approx(0.9)
    assert found.below.low == 1  # who shows only tall is never among the four who show only old
    assert found.mean == pytest.approx(1 + 0.82 + 2 * 0.18)
    everything = histogram(np.arange(3), quasi_identifiers={"tall": ["*"] * 3})
    _, hidden = true_crowds(everything, rates, rng(), k=3)
    assert (hidden.right, hidden.mean, hidden.smallest.low, hidden.below.high) == (1, 3, 3, 0)


def test_more_attributes_than_a_code_has_bits_are_counted_exactly():
    columns = {f"a{i}": [i < 3 and bool(who >> i & 1) for who in range(8)] for i in range(70)}
    released = histogram(np.arange(8), quasi_identifiers=columns)
    _, found = true_crowds(released, dict.fromkeys(columns, EXACT), rng(), k=2, draws=3)
    assert (found.smallest.high, found.below.low, found.mean) == (1, 1, 1)


def test_values_may_be_flags_numbers_or_words_and_two_at_most():
    for low, high in ((False, True), (-1, 1), (0, 1), ("no", "yes")):
        released = histogram(np.arange(4), quasi_identifiers={"tall": [low, high, high, high]})
        (found,), _ = true_crowds(released, {"tall": Rates(0.9, 0.9)}, rng(), k=2)
        assert found.observed == 0.75
    single = histogram(np.arange(2), quasi_identifiers={"tall": [-1, -1]})
    assert true_crowds(single, {"tall": Rates(0.9, 0.9)}, rng(), k=2)[0][0].observed == 0
    with pytest.raises(ColumnError, match=r"'town' has error rates and 3 values"):
        true_crowds(histogram(np.arange(3), quasi_identifiers={"town": ["A", "B", "C"]}), {"town": EXACT}, rng(), k=2)
    with pytest.raises(ColumnError, match="'town' is 'A' everywhere"):
        true_crowds(histogram(np.arange(3), quasi_identifiers={"town": ["A"] * 3}), {"town": EXACT}, rng(), k=2)


def test_draws_come_from_the_given_generator_and_are_fewer_for_many_people():
    rates = {"tall": Rates(0.8, 0.8)}
    first, again = (misprediction(people(), asking(k=20), rates, rng()) for _ in range(2))
    assert first == again
    assert (draws_for(1000, 10), draws_for(10**6, 4), draws_for(10**8, 40)) == (200, 50, 20)


# ---------------------------------------------------------------------------------------------------- l and t


def classes_of(*rates: tuple[int, int]) -> Histogram:
    """One class per (people, predicted positives)."""
    ids = np.repeat(np.arange(len(rates)), [n for n, _ in rates])
    sick = np.concatenate([np.arange(n) < o for n, o in rates])
    return histogram(np.arange(len(ids)), class_ids=ids, sensitive={"sick": sick})


def asked(**limits: object) -> Policy:
    return Policy("who", (), ("sick",), **limits)  # type: ignore[arg-type]


def test_t_is_taken_between_corrected_rates():
    rates = {"sick": Rates(0.9, 0.8)}  # 0.48 was 0.4; 0.2 was 0; 0.34 was 0.2
    released = classes_of((50, 24), (50, 10))
    (found,) = corrected(released, asked(t=Closeness(0.15)), rates)
    assert found.found == pytest.approx(0.14)
    assert found.corrected == pytest.approx(0.2)
    assert (found.met, found.met_corrected, found.fail, found.fail_corrected, found.changed) == (True, False, 0, 2, 2)
    assert found.interval is not None
    assert found.interval[0] < 0.2 < found.interval[1]
    assert found.changed_interval is not None
    assert found.changed_interval[0] <= 2 <= found.changed_interval[1]


def test_t_against_a_public_distribution_corrects_only_the_classes():
    found = corrected(
        classes_of((50, 24), (50, 10)), asked(t=Closeness(0.5)), {"sick": Rates(0.9, 0.8)}, {True: 0.1, False: 0.9}
    )
    assert found[0].corrected == pytest.approx(0.3)


def test_l_counts_and_weighs_corrected_values():
    released = classes_of((50, 24), (50, 10))
    rates = {"sick": Rates(0.9, 0.8)}
    (distinct,) = corrected(released, asked(l=Diversity("distinct", 2)), rates)
    assert (distinct.found, distinct.corrected, distinct.met, distinct.met_corrected) == (2, 1, True, False)
    assert distinct.interval == (1, 2)
    assert distinct.changed_interval == (0, 1)  # of the second class some may be positive after all
    (entropy,) = corrected(classes_of((50, 24)), asked(l=Diversity("entropy", 1.9)), rates)
    assert entropy.corrected == pytest.approx(np.exp(-0.4 * np.log(0.4) - 0.6 * np.log(0.6)))


def test_a_joint_distribution_is_corrected_by_both_confusion_matrices_and_measured_by_pot():
    released, rates = people(), {"sick": Rates(0.9, 0.85), "rich": Rates(0.8, 0.95)}
    (found,) = corrected(released, asking(t=Closeness(0.3, "hamming")), rates)
    names = [tuple(row.values()) for row in released.values.to_pylist()]  # (sick, rich), False before True
    confusion = [np.array([[r.tnr, 1 - r.tnr], [1 - r.tpr, r.tpr]]) for r in rates.values()]
    true_to_seen = np.kron(*confusion)

    def solved(weights: np.ndarray) -> np.ndarray:
        truth = np.maximum(np.linalg.solve(true_to_seen.T, weights), 0)
        return truth / truth.sum()

    everybody = solved(released.reference)
    distances = [
        earth_movers_distance(solved(row), everybody, hamming_ground(names)) for row in released.weights.toarray()
    ]
    assert found.corrected == pytest.approx(max(distances))
    assert found.interval is None
    (half,) = corrected(released, asking(t=Closeness(0.3, "hamming")), {"sick": EXACT})
    assert half.corrected == pytest.approx(half.found)


@pytest.mark.parametrize("rates", [Rates(0.9, 0.8), Rates(0.6, 1), Rates(0.99, 0.7)])
@pytest.mark.parametrize("size", [5, 20, 60])
def test_the_interval_holds_the_truth_nineteen_times_of_twenty(size, rates):
    o = np.arange(size + 1)
    low, high = true_positives(o, np.full(size + 1, size), rates)
    assert (low == np.round(low)).all()
    assert (high == np.round(high)).all()
    for truth in range(size + 1):
        predicted = np.convolve(
            binom.pmf(np.arange(truth + 1), truth, rates.tpr),
            binom.pmf(np.arange(size - truth + 1), size - truth, 1 - rates.tnr),
        )
        assert predicted[(low <= truth) & (truth <= high)].sum() > 0.95
    assert (high - low).max() <= size if size < 20 else (high - low).max() < 0.8 * size


def test_intervals_are_of_every_class_by_itself():
    """Ten of ten classes fail as predicted; how many truly do is told between the ends of their intervals."""
    released = classes_of(*[(20, 10)] * 5, *[(20, 2)] * 5)
    (found,) = corrected(released, asked(t=Closeness(0.19)), {"sick": Rates(0.95, 0.95)})
    assert (found.fail, found.fail_corrected, found.changed) == (10, 10, 0)
    low, high = found.changed_interval or (0, 0)
    assert low == 0
    assert high == 10


# ---------------------------------------------------------------------------------------------------- limits


def test_exact_rates_give_exactly_the_old_figures():
    released = people()
    policy = asking(k=30, l=Diversity("entropy", 1.8), t=Closeness(0.1))
    names = ("tall", "old", "sick", "rich")
    found = misprediction(released, policy, dict.fromkeys(names, EXACT), rng())
    crowds = found.crowds
    assert crowds is not None
    assert crowds.right == 1
    assert crowds.smallest.low == crowds.smallest.high == crowds.smallest_released == released.subjects.min()
    assert crowds.below.low == crowds.below.high == crowds.below_released
    assert crowds.mean == pytest.approx(crowds.mean_released)
    assert found.exact == ("town",)
    verdict = {r.name: r for r in judge(released, policy).requirements}
    assert {r.name for r in found.requirements} == verdict.keys() - {"k"}
    for requirement in found.requirements:
        assert requirement.found == verdict[requirement.name].found
        assert requirement.met == verdict[requirement.name].met == requirement.met_corrected
        assert requirement.corrected == pytest.approx(requirement.found)
        assert requirement.interval == pytest.approx((requirement.found, requirement.found))
        assert (requirement.changed, requirement.changed_interval) == (0, (0, 0))


def test_what_has_no_rates_is_exact_and_what_has_no_role_is_passed_over():
    found = misprediction(people(), asking(k=2, t=Closeness(0.2)), {"sick": Rates(0.9, 0.9), "hat": EXACT}, rng())
    assert found.crowds is None
    assert [r.name for r in found.requirements] == ["t (equal) of sick"]
    assert found.exact == ("tall", "old", "town", "rich")
    with pytest.raises(ConfusionError, match="no attribute of this table has error rates"):
        misprediction(people(), asking(k=2), {"hat": EXACT}, rng())


def test_lines_and_plain_values_carry_the_same_figures():
    found = misprediction(
        people(),
        asking(k=60, t=Closeness(0.1)),
        {"tall": Rates(0.8, 0.9), "rich": Rates(0.9, 0.9)},
        rng(),
        predictor="X",
    )
    plain = found.as_dict()
    head, right, smallest, below, mean, t = found.lines()
    assert head.startswith(
        "were the attributes predicted by X with these error rates (the verdict is of the table as it is"
    )
    assert f"{plain['crowds']['right']:.1%} of people" in right
    assert f"as released {plain['crowds']['smallest_released']}" in smallest
    assert f"under 60: {plain['crowds']['below']['mean']:.1%}" in below
    assert f"{plain['crowds']['mean']:,.1f}, as released" in mean
    assert f"corrected {plain['requirements'][0]['corrected']:.4g}" in t
