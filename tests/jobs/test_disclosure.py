"""Claims of jobs/disclosure.py: the section ``table`` of an audit, figure by figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from facecrowd.jobs.disclosure import table_figures
from facecrowd.jobs.figures import Figure, from_table, to_table

NAMES = tuple("ABCDEFGHIJ")


def photos(people: int, seed: int, each: int = 3) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """``each`` photos of people with attributes of their own."""
    draws = np.random.default_rng(seed)
    bits = (draws.random((people, len(NAMES))) < 0.5).astype(np.int8)
    subject = np.repeat(np.array([f"{seed}-{i:03d}" for i in range(people)]), each)
    return subject, {name: np.repeat(column, each) for name, column in zip(NAMES, bits.T, strict=True)}


SUBJECT, TRUTH = photos(120, 1)
OTHER, OUTSIDE = photos(90, 2)
COPY = {name: np.where(values == 1, "1", "0") for name, values in TRUTH.items()}
CLASSES = {name: np.repeat(values[::15], 15) for name, values in COPY.items()}


def figures(shown: dict[str, np.ndarray], **more: Any) -> list[Figure]:
    return table_figures(SUBJECT, shown, TRUTH, np.random.default_rng(0), **more)


def one(found: list[Figure], name: str, setting: str = "", at: float | None = None, group: str = "") -> Figure:
    (figure,) = [
        f for f in found if (f.name, f.group) == (name, group) and setting in ("", f.setting) and at in (None, f.at)
    ]
    return figure


def test_a_copy_is_singled_out_and_classes_of_five_are_not() -> None:
    copied = figures(COPY, outside_subject=OTHER, outside=OUTSIDE)
    assert one(copied, "singling_out", at=10.0).value > 0.5  # type: ignore[operator]
    assert one(copied, "singling_out", at=10.0).subjects <= 120
    hidden = figures(CLASSES, outside_subject=OTHER, outside=OUTSIDE)
    for width in (1.0, 3.0, 8.0, 10.0):
        figure = one(hidden, "singling_out", at=width)
        assert (figure.value, figure.low, figure.subjects) == (0.0, None, 120)
        assert "hold of a single released subject" in figure.note
    assert one(hidden, "linkability").value < one(copied, "linkability").value  # type: ignore[operator]


def test_there_is_one_inference_for_each_released_attribute() -> None:
    found = [f for f in figures(COPY) if f.name == "inference"]
    assert [f.setting for f in found] == list(NAMES)
    for figure in found:
        assert figure.subjects == 120
        assert figure.faces == 360
        assert figure.low <= figure.value <= figure.high  # type: ignore[operator]
        assert figure.chance == pytest.approx(0.5, abs=0.1)
        assert figure.better == "lower"


def test_what_is_known_of_people_outside_is_taken_off_and_said() -> None:
    alone, compared = figures(COPY), figures(COPY, outside_subject=OTHER, outside=OUTSIDE)
    assert "no people outside the release to compare with" in one(alone, "inference", "A").note
    assert "about people who are not in the release" in one(compared, "inference", "A").note
    assert one(compared, "inference", "A").value < one(alone, "inference", "A").value  # type: ignore[operator]


def test_where_guessing_does_as_well_the_figure_says_so() -> None:
    same = {name: np.full(len(SUBJECT), "1") for name in NAMES}
    assert "says little" in one(figures(same), "linkability").note
    assert "says little" not in one(figures(COPY), "linkability").note


def test_what_cannot_be_measured_says_why() -> None:
    found = figures({})
    assert [(f.name, f.value) for f in found] == [("singling_out", None), ("linkability", None), ("inference", None)]
    assert all(f.note == "the release shows no attributes" for f in found)
    single = figures({"A": COPY["A"]})
    assert one(single, "linkability").note == "the release shows one attribute, and two datasets need one each"
    assert one(single, "inference").note == "the release shows no other attribute to infer it from"
    left_open = figures({**COPY, "A": np.full(len(SUBJECT), "*")})
    assert one(left_open, "inference", "A").value is None
    assert "released as * of everybody" in one(left_open, "inference", "A").note


def test_groups_of_people_have_figures_of_their_own() -> None:
    men = np.where(np.arange(len(SUBJECT)) < 120, "1", "0")  # the first 40 people
    found = figures(COPY, groups={"Male": men}, outside_subject=OTHER, outside=OUTSIDE)
    assert one(found, "linkability", group="Male = 1").subjects == 40
    assert one(found, "linkability", group="Male = 0").subjects == 80
    whole = [f for f in found if f.name == "inference" and not f.group]
    worst = max(whole, key=lambda f: f.value or 0.0)
    assert one(found, "inference", group="Male = 1").setting == worst.setting


def test_the_figures_fit_into_the_tables_of_an_audit_and_repeat() -> None:
    found = figures(COPY, outside_subject=OTHER, outside=OUTSIDE)
    assert found == figures(COPY, outside_subject=OTHER, outside=OUTSIDE)
    again = from_table(to_table(found))
    assert [f.value for f in again] == pytest.approx([f.value for f in found], abs=1e-6)
    assert {f.section for f in again} == {"table"}
