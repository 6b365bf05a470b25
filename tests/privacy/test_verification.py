"""Claims of privacy/verification.py; scikit-learn's ROC curve is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from facecrowd.privacy.errors import EmptyTableError, LengthError
from facecrowd.privacy.verification import pairs, verify


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_true_accepts_are_those_of_the_roc_curve(rng: np.random.Generator) -> None:
    genuine, impostor = rng.normal(1, 1, 300), rng.normal(0, 1, 1000)
    found = verify(genuine, impostor, [0.001, 0.01, 0.1, 0.29], rng=rng)
    false, true, _ = roc_curve(np.r_[np.ones(300), np.zeros(1000)], np.r_[genuine, impostor], drop_intermediate=False)
    for far, accepts in found.rates.items():
        assert accepts.rate == pytest.approx(true[false <= far + 1e-12].max())
        assert accepts.low <= accepts.rate <= accepts.high


def test_ties_among_impostors_never_accept_more_than_was_asked_for(rng: np.random.Generator) -> None:
    found = verify([0.5, 0.9], [0.5] * 50 + [0.1] * 50, [0.1], rng=rng).rates[0.1]
    assert found.false == 0
    assert found.rate == 0.5


def test_the_interval_is_over_people_and_wider_than_over_their_pairs(rng: np.random.Generator) -> None:
    person = np.repeat(np.arange(20), 50)
    genuine = np.where(person % 2, 1.0, 0.0) + rng.normal(0, 0.01, 1000)
    impostor = rng.normal(0.5, 0.01, 1000)
    alone = verify(genuine, impostor, [0.1], rng=rng).rates[0.1]
    people = verify(genuine, impostor, [0.1], rng=rng, subject=person).rates[0.1]
    assert people.high - people.low > 3 * (alone.high - alone.low)


def test_genuine_pairs_are_of_one_person_impostor_pairs_of_two_and_none_comes_twice(rng: np.random.Generator) -> None:
    subject = np.repeat(["a", "b", "c", "d"], [10, 5, 2, 1])
    genuine, impostor = pairs(subject, 20, 50, rng)
    assert (subject[genuine[:, 0]] == subject[genuine[:, 1]]).all()
    assert (genuine[:, 0] != genuine[:, 1]).all()
    assert (subject[impostor[:, 0]] != subject[impostor[:, 1]]).all()
    assert len({tuple(sorted(row)) for row in genuine.tolist()}) == 20
    assert len({tuple(row) for row in impostor.tolist()}) == 50
    # They take turns: nobody has two pairs before everybody who can has one.
    assert set(subject[genuine[:, 0]]) == {"a", "b", "c"}
    assert (subject[genuine[:, 0]] == "b").sum() >= 9


def test_there_are_no_more_pairs_than_there_are(rng: np.random.Generator) -> None:
    genuine, impostor = pairs(["a", "a", "b"], 10, 10, rng)
    assert len(genuine) == 1
    assert len(impostor) == 4


def test_what_cannot_be_measured_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(EmptyTableError):
        verify([], [1.0], [0.1], rng=rng)
    with pytest.raises(LengthError):
        verify([1.0], [1.0], [0.1], rng=rng, subject=[1, 2])
    with pytest.raises(ValueError, match="between 0 and 1"):
        verify([1.0], [1.0], [1.5], rng=rng)
