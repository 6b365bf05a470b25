"""What a judge sees of planned crowds is told apart from its own errors."""

from __future__ import annotations

from typing import Any

import numpy as np

from facecrowd.pipeline.presets import predictable
from facecrowd.pipeline.shown import _crowds, shown
from facecrowd.pipeline.verification import Seen

from .test_verification import plan_of

NAMES = ("Male", "Young", "Smiling", "Bangs")
TPR, TNR = 0.9, 0.95


def table(people: int, seed: int, failed: float = 0.0, rates: bool = True) -> Any:
    """``people`` in four crowds, a face each; a judge that errs, and a share of pictures that show other values."""
    rng = np.random.default_rng(seed)
    crowd = np.arange(people) % 4
    planned = np.stack([crowd % 2, crowd // 2, crowd % 2, crowd // 2])
    truth = rng.integers(2, size=planned.shape)
    shows = np.where(rng.random(planned.shape) < failed, 1 - planned, planned)

    def judged(x: np.ndarray) -> np.ndarray:
        right = np.where(x == 1, rng.random(x.shape) < TPR, rng.random(x.shape) < TNR)
        return np.where(right, x, 1 - x)

    values = {name: ([str(v) for v in truth[a]], [str(v) for v in planned[a]]) for a, name in enumerate(NAMES)}
    plan = plan_of([f"p{i}" for i in range(people)], crowd.tolist(), **values)
    at = [predictable().index(name) for name in NAMES]
    seen, known = (np.full((people, len(predictable())), -1, np.int8) for _ in range(2))
    seen[:, at], known[:, at] = judged(shows).T, judged(truth).T
    faces = Seen(np.arange(people), shows=seen, known=known if rates else None)
    return shown(plan, faces, 40, np.arange(people), "judge", np.random.default_rng(seed))


def test_a_judges_errors_alone_are_no_failure() -> None:
    found = [table(400, seed) for seed in range(10)]
    assert all(one["below"]["seen"] > 0.1 for one in found)
    assert sum(one["met"] for one in found) >= 8
    assert np.mean([one["below"]["excess"] for one in found]) < 0.03


def test_pictures_that_show_something_else_are() -> None:
    found = table(400, 1, failed=0.25)
    assert not found["met"]
    assert found["below"]["excess"] > 0.1


def test_without_known_error_rates_none_are_taken_off() -> None:
    found = table(400, 2, rates=False)
    assert (found["below"]["by_noise"], found["met"]) == (0.0, False)
    assert "not known here" in found["note"]


def test_a_picture_that_stands_for_many_errs_once() -> None:
    plan = plan_of(list("abcdef"), [0] * 6, Male=(["1"] * 6, ["1"] * 6))
    shows = np.full((6, len(predictable())), -1, np.int8)
    shows[:, predictable().index("Male")] = 0
    found = shown(plan, Seen(np.arange(6), shows=shows), 5, np.zeros(6), "judge", np.random.default_rng(0))
    assert found is not None
    assert (found["found"], found["below"]["seen"], found["met"]) == (6, 0.0, True)


def test_of_two_pictures_that_stand_for_twenty_each_no_error_makes_a_crowd_of_fewer() -> None:
    values = ["1"] * 20 + ["0"] * 20
    plan = plan_of([f"p{i}" for i in range(40)], [0] * 20 + [1] * 20, Male=(values, values))
    shows, known = (np.full((40, len(predictable())), -1, np.int8) for _ in range(2))
    at = predictable().index("Male")
    shows[:, at] = [int(v) for v in values]
    known[:, at] = ([1] * 14 + [0] * 6) + ([0] * 14 + [1] * 6)
    faces = Seen(np.arange(40), shows=shows, known=known)
    noise = []
    for picture in (np.repeat([0, 1], 20), np.arange(40)):
        found = shown(plan, faces, 20, picture, "judge", np.random.default_rng(0))
        assert found is not None
        noise.append(found["below"]["by_noise"])
    assert noise[0] == 0 < noise[1]


def test_a_person_has_the_majority_of_their_pictures() -> None:
    person = np.array([0, 0, 0, 1, 1, 2])
    values = np.array([[1], [1], [0], [1], [0], [1]])
    assert _crowds(values, person, 2) == (1, 1 / 3)


def test_without_planned_attributes_nothing_is_shown() -> None:
    plan = plan_of(["a", "b"], [0, 0])
    shows = np.zeros((2, len(predictable())), np.int8)
    assert shown(plan, Seen(np.arange(2), shows=shows), 2, np.arange(2), "judge", np.random.default_rng(0)) is None
