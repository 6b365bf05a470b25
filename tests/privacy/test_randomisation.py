"""What randomisation claims: its epsilon is that of the words it draws, and nobody can subtract two releases."""

import hashlib
import hmac
import math
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facecrowd.privacy import randomisation
from facecrowd.privacy.attributes import Attribute, Hierarchy
from facecrowd.privacy.cells import cells
from facecrowd.privacy.errors import LengthError, PolicyError
from facecrowd.privacy.randomisation import (
    WORD,
    Channel,
    accounted_epsilon,
    attribute_channel,
    attribute_distance,
    debias,
    epsilon_each,
    exponential_mechanism,
    obfuscate,
    obfuscate_codes,
    private_choice,
    randomise,
    randomised_response,
    recoded,
    subject_codes,
    synthesise,
    words,
)


def digest(purpose, name, key=b"k" * 32):
    return hmac.digest(key, purpose.encode() + b"\0" + name, "sha256")


def people(n=2000, bits=4, seed=0, first=0):
    table = np.random.default_rng(seed).random((n, bits)) < 0.3
    return cells(np.arange(first, first + n), {f"b{i}": table[:, i] for i in range(bits)})


@given(st.integers(2, 12), st.floats(1e-6, 60))
def test_the_realised_epsilon_is_never_above_the_asked_and_hardly_below(size, epsilon):
    channel = randomised_response(size, epsilon)
    assert all(sum(row) == WORD for row in channel.weights)
    assert channel.epsilon <= epsilon
    assert channel.epsilon == pytest.approx(min(epsilon, 44.3), rel=1e-3 if epsilon < 30 else 0.1)


@given(st.integers(2, 9), st.floats(0.01, 20), st.integers(0, 99))
def test_the_exponential_mechanism_spends_what_is_asked_whatever_the_distance(size, epsilon, seed):
    points = np.sort(np.random.default_rng(seed).random(size))
    distance = np.abs(points[:, None] - points)
    channel = exponential_mechanism(distance, epsilon)
    assert all(sum(row) == WORD for row in channel.weights)
    assert channel.epsilon <= epsilon
    assert channel.epsilon > 0.99 * epsilon  # half of it would be lost with the bound for an unknown distance
    p = channel.probabilities
    for x in range(size):  # nearer values are never less likely
        assert (np.diff(p[x][np.argsort(distance[x])]) <= 1e-12).all()


def test_with_equal_distances_the_exponential_mechanism_is_randomised_response():
    for size in (2, 5):
        np.testing.assert_allclose(
            exponential_mechanism(1 - np.eye(size), 1.3).probabilities,
            randomised_response(size, 1.3).probabilities,
            atol=1e-10,
        )


@given(st.integers(2, 6), st.floats(0.05, 5))
def test_words_are_divided_exactly_as_the_weights_say(size, epsilon):
    channel = randomised_response(size, epsilon)
    for truth, row in enumerate(channel.weights):
        ends = list(accumulate(row, initial=0))
        edge = np.array([*ends[:-1], *[end - 1 for end in ends[1:]]], dtype=np.uint64)
        released = channel.draw(np.full(len(edge), truth, dtype=np.int32), edge)
        assert released.tolist() == [*range(size), *range(size)]


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("count", [1, 7])
def test_probability_and_composition_are_those_of_the_accountant(epsilon, count):
    pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    channel = randomised_response(2, epsilon)
    flip = channel.probabilities[0, 1]
    theirs = pld.from_randomized_response(2 * flip, 2)
    assert theirs.get_epsilon_for_delta(0.0) == pytest.approx(epsilon, abs=1e-9)
    whole = theirs.self_compose(count) if count > 1 else theirs
    assert whole.get_epsilon_for_delta(1e-15) == pytest.approx(count * epsilon, abs=2e-3)
    ours = accounted_epsilon([channel.epsilon] * count, 1e-6)
    assert ours == pytest.approx(min(whole.get_epsilon_for_delta(1e-6), count * epsilon), abs=1e-6)
    assert accounted_epsilon([channel.epsilon] * count, 0.0) == pytest.approx(count * epsilon)


def test_the_library_s_own_composition_of_a_count_is_not_used():
    """PLDAccountant forgets the count of a RandomizedResponseDpEvent in dp-accounting 0.6; the sum does not."""
    flip = randomised_response(2, 0.5).probabilities[0, 1]
    assert accounted_epsilon([0.5] * 40, 1e-9) > 10
    assert flip == pytest.approx(1 / (1 + math.exp(0.5)))


def test_epsilon_8_with_delta_flips_44_percent_of_40_bits():
    each = epsilon_each(8.0, 40, 1e-6)
    assert randomised_response(2, each).probabilities[0, 1] == pytest.approx(0.436, abs=5e-4)
    assert epsilon_each(8.0, 40) == 0.2


def test_k_ary_channels_are_dominated_as_the_accountant_assumes():
    """The exact privacy loss distribution of a channel never composes to more than its binary stand-in."""
    pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    channel = exponential_mechanism(np.abs(np.subtract.outer(np.arange(4), np.arange(4))) / 3, 1.0)
    log_p = np.log(channel.probabilities)
    for x, y in [(0, 3), (1, 2), (0, 1)]:
        own = pld.from_two_probability_mass_functions(dict(enumerate(log_p[x])), dict(enumerate(log_p[y])))
        assert own.self_compose(5).get_epsilon_for_delta(1e-4) <= accounted_epsilon([channel.epsilon] * 5, 1e-4) + 1e-3


def test_epsilon_is_the_total_over_the_attributes_and_constant_ones_cost_nothing():
    table = cells(np.arange(60), {"a": np.arange(60) % 2, "b": np.arange(60) % 5, "c": np.zeros(60, dtype=int)})
    found = randomise(table, 2.0, digest)
    assert found.epsilon <= 2.0
    assert found.epsilon == pytest.approx(2.0)
    assert [channel.epsilon for channel in found.channels] == pytest.approx([1.0, 1.0, 0.0])
    uneven = randomise(table, 2.0, digest, shares={"a": 3, "b": 1, "c": 5})
    assert [channel.epsilon for channel in uneven.channels] == pytest.approx([1.5, 0.5, 0.0])
    with pytest.raises(PolicyError, match="shares of epsilon name"):
        randomise(table, 2.0, digest, shares={"a": 1})
    with pytest.raises(PolicyError, match="epsilon is 0"):
        randomise(table, 0.0, digest)


@given(st.permutations(range(30)))
def test_neither_the_order_of_people_nor_who_else_is_there_changes_a_draw(order):
    bits = np.random.default_rng(1).random((30, 3)) < 0.5
    names = np.array([f"s{i:02}" for i in range(30)])

    def released(rows):
        table = cells(names[rows], {f"b{i}": bits[rows, i] for i in range(3)})
        found = randomise(table, 1.0, digest)
        return dict(zip(found.subjects.to_pylist(), map(tuple, found.codes.tolist()), strict=True))

    whole, shuffled = released(np.arange(30)), released(np.array(order))
    assert whole == shuffled
    part = released(np.array([i for i in order if i not in (3, 17)]))
    assert part == {name: whole[name] for name in part}


def test_observed_flips_are_as_many_as_the_channel_says():
    table = people(20_000, 3)
    found = randomise(table, 3.0, digest)
    truth = subject_codes(table)
    for a, channel in enumerate(found.channels):
        flip = channel.probabilities[0, 1]
        seen = (found.codes[:, a] != truth[:, a]).mean()
        assert abs(seen - flip) < 5 * math.sqrt(flip * (1 - flip) / 20_000)
    flips = found.codes != truth
    assert np.abs(np.corrcoef(flips.T) - np.eye(3)).max() < 0.03  # attributes are drawn independently


def test_photos_people_and_sensitive_values_stay_as_they_are():
    subject = np.repeat(np.arange(50), 3)
    sick = np.arange(150) % 4 == 0
    table = cells(subject, {"a": subject % 2, "b": subject % 3}, {"sick": sick})
    found = randomise(table, 0.5, digest).cells
    assert found.additive
    before, after = table.histogram, found.histogram
    assert (after.total_rows, after.total_subjects) == (before.total_rows, before.total_subjects)
    np.testing.assert_allclose(after.reference, before.reference)
    same = recoded(table, subject_codes(table))
    np.testing.assert_array_equal(same.codes, table.codes)
    np.testing.assert_array_equal(same.partial.cell_rows, table.partial.cell_rows)
    assert same.partial.classes.equals(table.partial.classes)


def test_two_releases_of_one_vector_say_nothing_new_and_of_two_vectors_share_no_noise():
    """A subject's flips are drawn for its vector; drawn for the subject alone, the xor of two releases is the truth."""
    old = people(4000, 4, seed=0)
    truth_old = subject_codes(old)
    changed = 1 - truth_old
    new = recoded(old, changed)
    first, again, second = (randomise(c, 2.0, digest).codes for c in (old, old, new))
    assert np.array_equal(first, again)
    flips_old, flips_new = first != truth_old, second != changed
    expected = 2 * 0.3775 * 0.6225  # at 0.5 per bit, 1 / (1 + e^0.5) = 0.3775 are flipped
    assert abs((flips_old != flips_new).mean() - expected) < 0.02
    differ = first != second
    assert 0.6 < (first[differ] == truth_old[differ]).mean() < 0.8  # two answers at 0.5 each: 0.73, and no certainty
    other = randomise(old, 4.0, digest).codes != truth_old
    assert np.corrcoef(other.ravel(), flips_old.ravel())[0, 1] < 0.03


def test_break_it_flips_drawn_for_the_subject_alone_give_the_truth_away(monkeypatch):
    monkeypatch.setattr(randomisation, "_names", lambda subjects, codes: [b"%d" % s for s in subjects.to_pylist()])
    old = people(500, 4)
    truth = subject_codes(old)
    changed = truth.copy()
    changed[:, 0] = 1 - changed[:, 0]
    first, second = (randomise(c, 2.0, digest).codes for c in (old, recoded(old, changed)))
    assert np.array_equal(first[:, 1:], second[:, 1:])
    differ = first[:, 0] != second[:, 0]
    assert differ.sum() > 50
    assert np.array_equal(first[differ, 0], truth[differ, 0])  # whoever's releases differ is read without any doubt


def test_several_vectors_of_one_person_are_refused():
    table = cells([1, 1, 2, 2], {"a": [0, 1, 0, 0]}, per_subject=False)
    with pytest.raises(PolicyError, match="several quasi-identifier vectors"):
        randomise(table, 1.0, digest)


def test_randomised_bits_are_no_crowd():
    """Epsilon is not k: at 1 per bit nearly every one of 24-bit vectors is unique."""
    found = randomise(people(2000, 24), 24.0, digest)
    assert (found.cells.histogram.subjects == 1).mean() > 0.95


@pytest.mark.parametrize("size,epsilon", [(2, 1.0), (4, 2.0)])
def test_true_rates_are_found_again_within_their_stated_error(size, epsilon):
    rates = np.arange(1, size + 1) / np.arange(1, size + 1).sum()
    channel = randomised_response(size, epsilon)
    errors = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth = rng.choice(size, 5000, p=rates).astype(np.int32)
        seen = np.bincount(channel.draw(truth, rng.integers(0, WORD, 5000, dtype=np.uint64)), minlength=size)
        found = debias(seen, channel)
        assert found.rate.sum() == pytest.approx(1)
        errors.append((found.rate - rates) / found.standard_error)
    assert np.abs(np.mean(errors)) < 0.4
    assert 0.8 < np.std(errors) < 1.25
    with pytest.raises(LengthError, match="counts are given"):
        debias([1, 2, 3, 4, 5, 6, 7], channel)
    with pytest.raises(PolicyError, match="left nothing"):
        debias([1] * size, Channel(((WORD // size,) * size,) * size))


def test_ordered_and_hierarchical_values_move_to_near_ones():
    ordered = Attribute("age", "ordered", ("child", "young", "adult", "old"))
    np.testing.assert_allclose(attribute_distance(ordered)[0], [0, 1 / 3, 2 / 3, 1])
    numeric = Attribute("x", "numeric", (0, 1, 10))
    np.testing.assert_allclose(attribute_distance(numeric)[0], [0, 0.1, 1])
    tree = Hierarchy((("red", "warm", "*"), ("orange", "warm", "*"), ("blue", "cold", "*")))
    hair = Attribute("hair", "categorical", ("blue", "orange", "red"), tree)
    np.testing.assert_allclose(attribute_distance(hair), [[0, 1, 1], [1, 0, 0.5], [1, 0.5, 0]])
    p = attribute_channel(hair, 2.0).probabilities
    assert p[2, 1] > p[2, 0]
    with pytest.raises(PolicyError, match="2000 values"):
        attribute_channel(Attribute("y", "numeric", tuple(range(2000))), 1.0)


@given(st.floats(-50, 50), st.floats(0.01, 4), st.floats(0.1, 10))
def test_a_private_choice_changes_by_at_most_its_epsilon(score, epsilon, sensitivity):
    def chance(s):
        low, high = 0, WORD
        agreeing = private_choice(s, sensitivity, epsilon, 0)
        while high - low > 1:  # the words that say yes lie at one end
            middle = (low + high) // 2
            low, high = (middle, high) if private_choice(s, sensitivity, epsilon, middle) == agreeing else (low, middle)
        return high / WORD if agreeing else 1 - high / WORD

    here, there = chance(score), chance(score + sensitivity)
    assert there >= here
    assert there <= here * math.exp(epsilon) * (1 + 1e-5)
    assert 1 - here <= (1 - there) * math.exp(epsilon) * (1 + 1e-3)


def test_the_papers_noise_touches_a_share_gamma_and_leaves_the_rest():
    x = np.random.default_rng(0).random((400, 10))
    names = [b"%d" % i for i in range(400)]
    noisy = obfuscate(x, names, digest, gamma=0.3, sigma=0.1)
    assert ((noisy != x).sum(axis=1) == 3).all()
    assert np.std((noisy - x)[noisy != x]) == pytest.approx(0.1, rel=0.1)
    mirrored = obfuscate(x, names, digest, gamma=1.0, sigma=0.0, mirror=True)
    np.testing.assert_allclose(mirrored, 1 - x)
    codes = (np.random.default_rng(1).random((400, 8)) * 3).astype(np.int32)
    moved = obfuscate_codes(codes, [3] * 8, names, digest, gamma=0.5)
    assert ((moved != codes).sum(axis=1) == 4).all()
    assert set(np.unique(moved)) == {0, 1, 2}
    assert "No formal guarantee" in obfuscate.__doc__
    with pytest.raises(PolicyError, match="gamma is 2"):
        obfuscate(x, names, digest, gamma=2, sigma=0)
    rows = synthesise(x, 20, digest, gamma=0.5, sigma=0.0)
    assert rows.shape == (20, 10)
    for row in rows:  # half of each is somebody's own
        assert max((np.isclose(row, one)).sum() for one in x) >= 5


def test_words_come_from_purpose_and_name_alone():
    names = [b"a", b"b"]
    assert np.array_equal(words(digest, "p", names, 3)[1], words(digest, "p", names[1:], 3)[0])
    assert not np.array_equal(words(digest, "p", names, 3), words(digest, "q", names, 3))
    first = int.from_bytes(hashlib.shake_256(digest("p", b"a")).digest(8), "little")
    assert words(digest, "p", names, 3)[0, 0] == first


def test_text_and_numbers_name_subjects_alike():
    table = cells(pa.array(["é", "z"]), {"a": [0, 1]})
    assert len(randomise(table, 1.0, digest).codes) == 2
