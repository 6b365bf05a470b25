"""Claims of pipeline/summary.py: the words say what the figures say, and never more."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.summary import (
    attack_line,
    attribute_lines,
    conclusion,
    leak_lines,
    licences,
    readme,
    verdict_lines,
)


@pytest.fixture
def audit(released: Outcome) -> dict[str, Any]:
    return copy.deepcopy(released.audit)


def test_every_requirement_and_every_attack_has_its_line(audit: dict[str, Any]) -> None:
    lines = verdict_lines(audit)
    for r in audit["requirements"]:
        assert any(line.startswith(f"{r['name']}: asked ") for line in lines)
    for attack in audit["reidentification"]:
        assert attack_line(attack) in lines
        assert f"{attack['rank1_per_subject']:.1%} of subjects" in attack_line(attack)
        assert attack["recogniser"] in attack_line(attack)
    assert lines[-1] == conclusion(audit)


def test_what_is_not_met_is_never_called_as_asked(audit: dict[str, Any]) -> None:
    audit["met"] = False
    audit["requirements"][0]["met"] = False
    text = "\n".join(verdict_lines(audit))
    assert "NOT MET" in text
    assert text.endswith("verdict: NOT as the policy asks")
    assert "| **no** |" in readme(audit, "files")


def test_only_a_formal_guarantee_is_called_formal(audit: dict[str, Any]) -> None:
    assert "formal" in conclusion(audit)
    audit["guarantee"] = {"kind": "measured", "text": "No guarantee: …"}
    assert "formal" not in conclusion(audit)
    assert "nothing is guaranteed" in conclusion(audit)


def test_people_left_out_are_counted_by_reason(audit: dict[str, Any]) -> None:
    audit["counts"]["not_released"] = {"bystander": 3, "no_face": 1}
    assert "not released: 3 bystander, 1 no_face" in verdict_lines(audit)


def test_an_attack_that_could_not_be_made_says_so(audit: dict[str, Any]) -> None:
    line = attack_line({"gallery": "released", "recogniser": "R", "not_measured": "one person only"})
    assert line == "rank-1 by R, gallery: released: not measured (one person only)"


def test_many_leaks_are_counted_and_three_are_shown() -> None:
    leaks = [{"kind": "metadata", "where": f"i{n}", "what": "EXIF (9 bytes)"} for n in range(5)]
    assert leak_lines(leaks).endswith("metadata in i2: EXIF (9 bytes); and 2 more")
    assert "more" not in leak_lines(leaks[:3])


@pytest.mark.parametrize(
    "form, where", [("files", ".jpg"), ("parquet", "shard-*.parquet"), ("webdataset", "shard-*.tar")]
)
def test_the_readme_says_where_the_images_are_and_what_holds(audit: dict[str, Any], form: str, where: str) -> None:
    text = readme(audit, form)
    assert where in text
    assert audit["guarantee"]["text"] in text
    for name in re.findall(r"- `([a-zA-Z]+\.[a-z]+)`", text):
        assert name in {"manifest.parquet", "audit.json", "release.yaml", "metadata.json", "LICENCES.md"}


def test_the_licences_name_every_model_its_use_and_its_terms(audit: dict[str, Any]) -> None:
    text = licences(audit)
    for model in audit["models"]:
        assert f"| {model['name']} | {model['purpose']} | {model['licence']} | `{model['sha256']}` |" in text


def test_what_predictors_said_has_a_line_for_each_attribute_and_names_who_said_it(audit: dict[str, Any]) -> None:
    assert attribute_lines(audit) == []
    audit["attributes"] = {
        "predictor": "steer",
        "judge": "judge",
        "brought": ["Male"],
        "predicted": ["Young"],
        "unknown_margin": 0.1,
        "unknown": {"Young": 0.25},
        "disagreement": [
            {"attribute": "Male", "faces": 8, "share_of_faces": 0.5, "subjects": 4, "share_of_subjects": 0.25}
            | {"neither": 0.0},
            {"attribute": "Age", "faces": 0, "share_of_faces": None, "subjects": 0, "share_of_subjects": None}
            | {"neither": 1.0},
        ],
        "shown": [
            {
                "attribute": "Young",
                "left_open": 0.25,
                "neither": 0.0,
                "released_pictures": 6,
                "released_agreement": 0.5,
                "low": 0.2,
                "high": 0.8,
                "over": "classes",
                "groups": 3,
                "originals_faces": 8,
                "originals_agreement": 0.75,
            },
            {"attribute": "Male", "left_open": 1.0, "neither": 0.0, "released_pictures": 0, "released_agreement": None},
            {"attribute": "Age", "left_open": 0.0, "neither": 1.0, "released_pictures": 0, "released_agreement": None},
            {"attribute": "Hat", "not_measured": "no predictor knows this attribute"},
        ],
    }
    lines = [
        "attributes predicted by steer: Young; unknown: Young of 25.0% of faces",
        "Male by predictor steer: differs from the input's for 50.0% of 8 faces, 25.0% of 4 subjects",
        "Age by predictor steer: nothing to compare: the input's values are not yes and no",
        "Young shown, measured against predictor judge: 50.0% [20.0%, 80.0%] of 6 distinct pictures show the "
        "released value, over 3 classes (of originals and the value predicted by steer: 75.0%); 25.0% left open (*)",
        "Male shown, measured against predictor judge: nothing to compare: the release leaves it open (*)",
        "Age shown, measured against predictor judge: nothing to compare: its values are not yes and no",
        "Hat shown, measured against predictor judge: not measured (no predictor knows this attribute)",
    ]
    assert attribute_lines(audit) == lines
    audit["attributes"]["predicted"] = []
    assert "(of originals and their own value: 75.0%)" in "\n".join(attribute_lines(audit))
    audit["attributes"]["predicted"] = ["Young"]
    assert set(lines) < set(verdict_lines(audit))
    assert all(line in readme(audit, "files") for line in lines)


def test_an_audit_from_before_there_were_predictors_still_reads(audit: dict[str, Any]) -> None:
    del audit["attributes"]
    assert attribute_lines(audit) == []
    assert verdict_lines(audit)
