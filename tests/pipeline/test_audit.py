"""Claims of pipeline/audit.py: figures are of released faces, say what they are, and lead back to nobody."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from facecrowd.pipeline import attributes
from facecrowd.pipeline import audit as audits
from facecrowd.pipeline.audit import Released, left_out
from facecrowd.pipeline.release import Outcome
from facecrowd.stages.attributes import STEER
from facecrowd.stages.runkey import RunKey

Settings = Callable[..., Any]
Make = Callable[..., Outcome]


def private(outcome: Outcome, table: str) -> list[dict[str, Any]]:
    (folder,) = (Path(outcome.workspace.root) / "tables" / table).iterdir()
    return [row for file in sorted(folder.glob("part-*")) for row in pq.read_table(file).to_pylist()]


def test_an_attack_on_originals_counts_what_the_nearest_original_gives_away(
    tmp_path: Path, settings: Settings, make_release: Make
) -> None:
    """Rank-1 per subject and per face against an independent reckoning with NumPy, on weakly blurred faces."""
    outcome = make_release(
        settings(tmp_path / "release", **{"method.name": "blur", "method.sigma": 2, "policy.k": None})
    )
    plan, rendered = private(outcome, "plan"), private(outcome, "rendered")
    gallery = np.array([row["embedding"] for row in private(outcome, "faces")])
    probes = np.array([row["embedding"] for row in rendered])
    subject = np.array([row["subject_id"] for row in plan])
    for name, likeness in (("originals", probes @ gallery.T), ("other originals", probes @ gallery.T)):
        if name == "other originals":
            np.fill_diagonal(likeness, -2)
        right = subject[likeness.argmax(axis=1)] == subject
        by_person = defaultdict(list)
        for person, hit in zip(subject, right, strict=True):
            by_person[person].append(hit)
        (attack,) = (a for a in outcome.audit["reidentification"] if a["gallery"] == name)
        assert attack["rank1_per_face"] == pytest.approx(right.mean(), abs=1e-6)
        assert attack["rank1_per_subject"] == pytest.approx(np.mean([np.mean(v) for v in by_person.values()]), abs=1e-6)
        assert attack["low"] <= attack["rank1_per_subject"] <= attack["high"]
        assert (attack["probes"], attack["subjects"], attack["gallery_subjects"]) == (12, 6, 6)
    # Two pixels of blur hide nobody: the attack works at all.
    assert outcome.audit["reidentification"][0]["rank1_per_face"] > 0.9


def test_the_attacks_name_gallery_and_recogniser(released: Outcome) -> None:
    attacks = released.audit["reidentification"]
    assert [a["gallery"] for a in attacks] == ["originals", "other originals", "released"]
    assert {a["recogniser"] for a in attacks} == {"arcface-mobilefacenet"}
    assert all(a["chance"] == pytest.approx(1 / 6, abs=1e-6) for a in attacks)


def test_class_sizes_and_effective_k_are_those_of_the_link(
    tmp_path: Path, settings: Settings, make_release: Make, people: list[Path]
) -> None:
    # 1 to 4 photos per person: the largest share of a class's faces is what guessing gains.
    for i, person in enumerate(people[:4]):
        (tmp_path / "in" / person.name).mkdir(parents=True)
        for picture in sorted(person.glob("*.jpg"))[: i + 1]:
            (tmp_path / "in" / person.name / picture.name).write_bytes(picture.read_bytes())
    source = {"input.path": str(tmp_path / "in")}
    outcome = make_release(settings(tmp_path / "release", **source))
    assert outcome.audit["classes"]["sizes"] == {"4": 1}
    assert outcome.audit["classes"]["effective_k"] == pytest.approx(10 / 4, abs=1e-3)
    equal = make_release(settings(tmp_path / "equal", **source, **{"method.surrogates_per_subject": 2}))
    assert equal.audit["classes"]["effective_k"] == pytest.approx(4)
    assert equal.audit["counts"]["released_images"] == 8
    plan = {row["face_id"]: row["subject_id"] for row in private(equal, "plan")}
    assert set(Counter(plan[link["face_id"]] for link in private(equal, "link")).values()) == {2}


def test_t_weighs_a_persons_photos_and_not_how_many_images_stand_for_each(
    tmp_path: Path, settings: Settings, make_release: Make, people: list[Path]
) -> None:
    rows = ["image_id,smile"]
    for i, person in enumerate(people[:4]):
        (tmp_path / "in" / person.name).mkdir(parents=True)
        for j, picture in enumerate(sorted(person.glob("*.jpg"))[:3]):
            (tmp_path / "in" / person.name / picture.name).write_bytes(picture.read_bytes())
            rows.append(f"{person.name}/{picture.name},{int((i + j) % 2 == 0)}")
    (tmp_path / "smile.csv").write_text("\n".join(rows))
    asked = {
        "input.path": str(tmp_path / "in"),
        "input.attributes": str(tmp_path / "smile.csv"),
        "policy.k": 2,
        "policy.sensitive": ["smile"],
        "policy.t": {"value": 0.5},
    }
    outcomes = [
        make_release(settings(tmp_path / f"release-{images}", **asked, **{"method.surrogates_per_subject": images}))
        for images in (None, 1)
    ]
    found = [[r["found"] for r in outcome.audit["requirements"] if r["name"].startswith("t ")] for outcome in outcomes]
    assert found[0] == found[1]


def test_an_attribute_that_no_predictor_knows_is_said_to_be_neither_drawn_nor_shown(settings: Settings) -> None:
    def said(surrogate: str, *names: str) -> str:
        asked = {"method.surrogate": surrogate, "policy.quasi_identifiers": list(names), "input.attributes": "t.csv"}
        config = settings("out", **asked)
        plan: Any = SimpleNamespace(subjects=SimpleNamespace(source="folder"))
        return audits._guarantee(config, plan, None, True, names)

    priors = attributes.priors(STEER, ("Male", "Badge", "Hat"))
    assert list(priors) == ["Male"]  # what is drawn and realised, by LatentSource
    text = said("latent", "Male", "Badge", "Hat")
    assert "Of Badge and Hat, which no predictor knows, faces show what their class's mean happens to show" in text
    assert "nothing is drawn for one left open (*)." in text
    assert "no predictor knows" not in said("latent", "Male") + said("average", "Hat")


def test_nothing_in_an_audit_leads_to_a_source(released: Outcome) -> None:
    text = json.dumps(released.audit)
    for row in private(released, "plan"):
        assert row["photo"] not in text
        assert row["face_id"] not in text
        assert f'"{row["subject_id"]}"' not in text


def test_a_sample_takes_whole_subjects_and_follows_the_run_key(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = np.repeat([f"s{i}" for i in range(50)], 4)
    assert audits._sample(subject, RunKey(bytes(32))).tolist() == list(range(200))
    monkeypatch.setattr(audits, "PROBES", 41)
    taken = audits._sample(subject, RunKey(bytes(32)))
    assert len(taken) == 40
    assert set(Counter(subject[taken]).values()) == {4}
    assert taken.tolist() == audits._sample(subject, RunKey(bytes(32))).tolist()
    assert taken.tolist() != audits._sample(subject, RunKey(bytes([1] * 32))).tolist()


def test_a_face_counts_as_often_as_images_show_it() -> None:
    released = Released(np.array([0, 2]), np.eye(2), np.array([True, False]), np.array(["a", "b"], dtype=object))
    repeated = released.repeated(np.array([3, 9, 1]))
    assert repeated.row.tolist() == [0, 0, 0, 2]
    assert repeated.hashes.tolist() == ["a", "a", "a", "b"]


def test_three_people_of_ten_left_out_are_three_tenths_and_no_more() -> None:
    assert left_out(7, 10) <= 0.3
    assert left_out(10, 10) == 0
