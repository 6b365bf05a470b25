"""Claims of jobs/whatif.py, on workspaces that hold what a plan needs and nothing else: no pixel, no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from facecrowd.jobs import whatif as whatifs
from facecrowd.jobs.whatif import Wishes, whatif
from facecrowd.pipeline import config as configs
from facecrowd.pipeline import plan as planning
from facecrowd.pipeline import publish
from facecrowd.pipeline.audit import Counts
from facecrowd.pipeline.errors import ConfigError, ReleaseError
from facecrowd.pipeline.record import Record
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.schema import FACES, PHOTOS, PLAN
from facecrowd.pipeline.storage import Workspace
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import OK

Tree = Callable[[Path | str], dict[str, bytes]]

PART, PEOPLE = 16, 48
KEY = RunKey(bytes(range(32)))
NAMES = ("Male", "Young", "Bangs", "Smiling")
SOLE: dict[str, Any] = {"input.same_person": 1.0}
SPARE: dict[str, Any] = {"policy.max_suppression": 0.2}
SECRET: dict[str, Any] = {"policy.sensitive": ["Chubby"]}


def tables(people: int = PEOPLE, seed: int = 0, faceless: int = 0) -> tuple[pa.Table, pa.Table]:
    """Photos and faces of people with one to three photos each, in three families of looks; the last ``faceless`` have
    photos without a face."""
    draws = np.random.default_rng(seed)
    families = draws.standard_normal((3, 64))
    photos: dict[str, list[Any]] = {"photo": [], "subject": [], "attributes": []}
    names = ("face_id", "photo", "part", "face_index", "status", "reason", "embedding")
    faces: dict[str, list[Any]] = {name: [] for name in names}
    for i in range(people):
        centre = 0.6 * families[i % 3] + draws.standard_normal(64)
        values = {name: str(int(draws.random() < 0.5)) for name in NAMES} | {
            "Chubby": str(int(i % 4 == 0)),
            "Bald": str(int(i in (5, 20, 33))),
        }
        for j in range(1 + i // 3 % 3):
            photo, found = f"p{i:03d}/{j}", i < people - faceless
            photos["photo"].append(photo)
            photos["subject"].append(f"p{i:03d}")
            photos["attributes"].append(sorted(values.items()))
            vector = centre + 0.2 * draws.standard_normal(64)
            row: tuple[Any, ...] = (f"id {photo}", photo, len(faces["photo"]) // PART, 0 if found else -1)
            row += (OK, "", (vector / np.linalg.norm(vector)).tolist()) if found else ("no_face", "none", None)
            for name, value in zip(faces, row, strict=True):
                faces[name].append(value)

    def typed(columns: dict[str, list[Any]], schema: pa.Schema) -> pa.Table:
        return pa.table({name: pa.array(values, schema.field(name).type) for name, values in columns.items()})

    return typed(photos, PHOTOS.arrow), typed(faces, FACES.arrow)


class Made:
    """A release and its workspace, with what a plan needs in them; the crops are no pictures."""

    def __init__(self, folder: Path, faceless: int = 0, people: int = PEOPLE, **changes: Any) -> None:
        values = {
            "policy.k": 4,
            "policy.quasi_identifiers": list(NAMES),
            "detect.models": "/nowhere",
            **SOLE,
            **changes,
        }
        self.config = configs.load(
            None, {"input.path": "in.parquet", "release.path": str(folder / "release"), **values}
        )
        photos, faces = tables(people, faceless=faceless)
        self.plan = planning.make(self.config, "column", photos, faces, key=KEY)
        self.url, self.folder = str(folder / "release"), folder / "workspace"
        place = Workspace(str(self.folder))
        place.folder.write(KEY.secret.hex().encode(), "run.key")
        card = json.dumps({"distribution": []}).encode()
        (folder / "release").mkdir()
        (folder / "release" / publish.CARD).write_bytes(card)
        parts = int(faces["part"].to_numpy().max()) + 1
        for part in range(parts):
            place.parts(PLAN, "plan").write(part, self.plan.part_columns(part))
            rows = faces.filter(pa.compute.equal(faces["part"], part))
            blank = {field.name: pa.nulls(len(rows), field.type) for field in FACES.arrow if field.name != "run"}
            held = {name: rows[name] for name in rows.column_names}
            crops = pa.array([b"no picture"] * len(rows), pa.binary())
            place.parts(FACES, "faces").write(part, {**blank, **held, "crop": crops})
        record = Record(
            hashlib.sha256(card).hexdigest(),
            self.config,
            {"plan": "plan", "faces": "faces"},
            parts,
            Counts(len(photos), people),
            "column",
            None,
            self.plan.subjects.merged,
            planned=self.plan.planned,
        )
        record.write(place.folder, "releases/one.json")

    def whatif(self, **wishes: Any) -> list[dict[str, Any]]:
        return whatif(self.url, str(self.folder), Wishes.read(**wishes))


@pytest.fixture(scope="module")
def k_same(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("k-same"), **SECRET)


@pytest.fixture(scope="module")
def translated(tmp_path_factory: pytest.TempPathFactory) -> Made:
    changes: dict[str, Any] = {
        "method.name": "translation",
        "method.planner": "mondrian",
        "policy.sensitive": ["Chubby"],
    }
    return Made(tmp_path_factory.mktemp("translated"), **changes | {"policy.t": {"value": 0.4}})


def test_the_first_row_is_the_release_as_it_was_planned(k_same: Made, translated: Made) -> None:
    for made in (k_same, translated):
        first = made.whatif(k="6")[0]
        plan = made.plan
        sizes = [len(set(plan.subject_id[plan.class_id == c])) for c in range(plan.classes)]
        assert (first["own"], first["reached"], first["classes"]) == (True, True, plan.classes)
        assert (first["smallest"], first["people"]) == (min(sizes), sum(sizes))
        assert first["faces"] == len(plan.kept)
        assert first["asked"]["k"] == 4


def test_a_larger_k_costs_more_and_a_plan_for_it_is_what_a_release_would_make(k_same: Made, tmp_path: Path) -> None:
    rows = k_same.whatif(k="2,8,24")
    by_k = {row["asked"]["k"]: row for row in rows}
    assert sorted(by_k) == [2, 4, 8, 24]
    for k, row in by_k.items():
        assert row["reached"]
        assert row["smallest"] >= k
        assert row["bound"] == pytest.approx(1 / row["smallest"], abs=1e-6)
        assert row["distinct_faces"] == row["classes"]
    cosines = [by_k[k]["member_cosine"] for k in sorted(by_k)]
    assert cosines == sorted(cosines, reverse=True)
    again = Made(tmp_path, **{**SECRET, "policy.k": 8}).whatif(k="8")[0]
    assert {**again, "own": False} == by_k[8]


def test_how_near_people_are_to_their_class_is_as_computed_by_hand(k_same: Made) -> None:
    row, plan = k_same.whatif(k="4")[0], k_same.plan
    people = {p: plan.embedding[plan.subject_id == p].mean(axis=0) for p in set(plan.subject_id[plan.kept])}
    people = {p: mean / np.linalg.norm(mean) for p, mean in people.items()}
    cosines = []
    for c in range(plan.classes):
        members = [people[p] for p in sorted(set(plan.subject_id[plan.class_id == c]))]
        mean = np.mean(members, axis=0)
        cosines += [float(m @ mean / np.linalg.norm(mean)) for m in members]
    assert row["member_cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)


def test_what_is_lost_of_attributes_is_as_counted_by_hand(k_same: Made, translated: Made) -> None:
    for made in (k_same, translated):
        row, plan = made.whatif(k="4")[0], made.plan
        first = {p: int(np.flatnonzero(plan.subject_id == p)[0]) for p in set(plan.subject_id) - {""}}
        pairs = [(plan.originals[n][at], plan.released[n][at]) for at in first.values() for n in NAMES]
        assert row["left_open"] == pytest.approx(np.mean([shown == "*" for _, shown in pairs]), abs=1e-6)
        assert row["changed"] == pytest.approx(np.mean([s not in (own, "*", None) for own, s in pairs]), abs=1e-6)
        assert row["lost"] == pytest.approx(np.mean([shown != own for own, shown in pairs]), abs=1e-6)
    assert k_same.whatif(k="4")[0]["changed"] > 0
    assert translated.whatif(k="4")[0]["left_open"] > 0


def test_one_thing_is_changed_at_a_time_unless_all_combinations_are_asked_for(translated: Made) -> None:
    def asked(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
        return [(row["asked"]["k"], row["asked"]["t"]["value"]) for row in rows]

    assert asked(translated.whatif(k="2,8", t="0.3")) == [(4, 0.4), (2, 0.4), (8, 0.4), (4, 0.3)]
    product = asked(translated.whatif(k="2,8", t="0.3", product=True))
    assert product[0] == (4, 0.4)
    assert sorted(product) == sorted((k, t) for k in (2, 4, 8) for t in (0.3, 0.4))


def test_without_wishes_a_grid_around_the_policy_is_tried(k_same: Made, translated: Made) -> None:
    rows = k_same.whatif()
    assert [row["asked"]["k"] for row in rows if row["asked"]["t"] is None] == [4, 2, 3, 5, 10, 20]
    assert {row["asked"]["t"]["value"] for row in rows if row["asked"]["t"]} == set(whatifs.T_GRID)
    assert not any(row["asked"]["l"] or row["asked"]["epsilon"] for row in rows)
    assert sum(row["own"] for row in rows) == 1


def test_l_and_t_are_measured_also_where_they_are_not_asked_for(k_same: Made) -> None:
    row, plan = k_same.whatif(k="4")[0], k_same.plan
    people = sorted(set(plan.subject_id[plan.kept]))
    chubby = {p: plan.originals["Chubby"][plan.subject_id == p][0] == "1" for p in people}
    rates = [
        np.mean([chubby[p] for p in sorted(set(plan.subject_id[plan.class_id == c]))]) for c in range(plan.classes)
    ]
    assert row["t"] == pytest.approx(max(abs(rate - np.mean(list(chubby.values()))) for rate in rates), abs=1e-6)
    tight = k_same.whatif(t="0.1")[1]
    assert tight["t"] <= 0.1 < row["t"]
    assert tight["member_cosine"] < row["member_cosine"]


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"k": "49"}, "k = 49 cannot be reached: 48 people"),
        ({"k": "1"}, "greater than or equal to 2"),
        ({"l": "3"}, "l (distinct) of Chubby"),
        ({"epsilon": "1"}, "policy.epsilon is for method translation"),
    ],
)
def test_a_policy_that_cannot_be_reached_is_a_row_that_says_why(k_same: Made, wish: dict[str, str], said: str) -> None:
    own, row = k_same.whatif(**wish)
    assert own["reached"]
    assert not row["reached"]
    assert said in row["why"]
    assert row["why"] in "\n".join(whatifs.lines([own, row]))
    assert row["policy"].split()[0] in {"k", "l", "epsilon"}


def test_without_a_sensitive_attribute_t_cannot_be_asked(tmp_path: Path) -> None:
    own, row = Made(tmp_path).whatif(t="0.2")
    assert (own["l"], own["t"]) == (None, None)
    assert "l and t are about sensitive attributes" in row["why"]


def test_a_smaller_epsilon_changes_more_and_draws_as_the_release_would(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method.name": "translation", "policy.epsilon": 4.0, "policy.k": 3}
    made = Made(tmp_path, **changes)
    rows = {row["asked"]["epsilon"]: row for row in made.whatif(epsilon="0.5,4,50")}
    assert rows[0.5]["changed"] > rows[50.0]["changed"]
    for epsilon, row in rows.items():
        assert row["epsilon"] <= epsilon + 1e-9
    assert rows[4.0]["classes"] == made.plan.classes
    assert {row["asked"]["epsilon"] for row in made.whatif()} == {*whatifs.EPSILON_GRID}


def test_whom_the_plan_left_out_may_be_taken_in_by_another(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method.name": "k-same-select", "method.select": "Bald", "policy.max_suppression": 0.1}
    made = Made(tmp_path, **changes)
    out = int((made.plan.status == planning.SUPPRESSED).sum())
    own, loose, strict = made.whatif(k="3,5")
    assert own["people"] == strict["people"] == PEOPLE - 3
    assert own["left_out"] == pytest.approx(3 / PEOPLE, abs=1e-6)
    assert own["faces_left_out"] == out > 0
    assert (loose["people"], loose["left_out"], loose["faces_left_out"]) == (PEOPLE, 0.0, 0)
    assert own["lost"] > own["left_open"] + own["changed"]
    assert loose["lost"] == pytest.approx(loose["left_open"] + loose["changed"], abs=1e-6)


def test_who_counted_as_one_person_still_does(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"input.same_person": 0.5}
    made = Made(tmp_path, **changes)
    assert made.plan.subjects.merged > 0
    (own, *_) = made.whatif(k="4")
    assert own["people"] == PEOPLE - made.plan.subjects.merged
    assert own["left_out"] == 0
    assert own["classes"] == made.plan.classes


def test_people_without_a_usable_face_count_as_left_out(tmp_path: Path) -> None:
    (own, *_) = Made(tmp_path, 6, **SPARE).whatif(k="4")
    assert own["left_out"] == pytest.approx(6 / PEOPLE)
    assert own["reached"]
    assert own["people"] == PEOPLE - 6


def test_people_without_a_usable_face_leave_fewer_to_be_left_out_by_a_plan(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method.name": "translation", "method.planner": "mondrian", "policy.k": 6}
    (own, *_) = Made(tmp_path, 6, **changes | {"policy.max_suppression": 6 / PEOPLE}).whatif(k="6")
    assert (own["people"], own["reached"]) == (PEOPLE - 6, True)


def test_a_method_without_classes_has_its_own_row_alone(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method.name": "blur", "policy.k": None, "policy.quasi_identifiers": []}
    made = Made(tmp_path, **changes)
    (row,) = made.whatif()
    assert (row["reached"], row["classes"], row["smallest"], row["bound"]) == (True, 0, None, None)
    assert row["distinct_faces"] == row["faces"]
    assert made.whatif(k="5")[1]["why"] == "blur forms no classes"


def test_nothing_is_written_and_no_picture_or_model_is_opened(
    tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facecrowd.stages import decode, models

    made = Made(tmp_path)
    before = tree(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(models, "path", refuse)
    monkeypatch.setattr(decode, "decode", refuse)
    assert len(made.whatif()) > 3
    assert tree(tmp_path) == before


def test_a_folder_that_is_no_release_or_another_workspace_is_refused(k_same: Made, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="this is no release"):
        whatif(str(tmp_path), str(k_same.folder))
    with pytest.raises(ConfigError, match="is it a facecrowd workspace"):
        whatif(k_same.url, str(tmp_path))
    other = Made(tmp_path, **{"policy.k": 5})
    (Path(other.url) / publish.CARD).write_text("{}")
    with pytest.raises(ConfigError, match="did not make this release"):
        whatif(other.url, str(other.folder))


@pytest.mark.parametrize("wish", [{"k": "few"}, {"l": "entropy"}, {"t": "near"}, {"epsilon": "x"}])
def test_a_wish_that_is_no_number_is_refused_before_any_work(k_same: Made, wish: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(wish))}: .* is not like"):
        k_same.whatif(**wish)


def test_bare_numbers_have_the_kind_and_ground_of_the_release(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "policy.l": {"kind": "entropy", "value": 1.05},
        "policy.t": {"value": 0.4, "ground": "equal"},
    }
    made = Made(tmp_path, **asked | {"policy.sensitive": ["Chubby"]})
    rows = made.whatif(l="1.2,distinct:2", t="0.3,0.3:ordered")
    assert [row["policy"].split(", ")[1] for row in rows[1:3]] == ["l (entropy) = 1.2", "l (distinct) = 2"]
    assert [row["policy"].split(", ")[2] for row in rows[3:]] == ["t (equal) = 0.3", "t (ordered) = 0.3"]
    assert all(row["l"] >= 1.05 - 1e-6 for row in rows if row["asked"]["l"]["kind"] == "entropy")


def test_the_table_is_markdown_with_the_releases_own_row_marked(k_same: Made) -> None:
    text = whatifs.markdown(k_same.whatif(k="8,49"))
    head, rule, *rows = text.splitlines()
    assert head.startswith("| policy | reached | classes | smallest class | effective k |")
    assert "epsilon" not in head
    assert set(rule) == set("| -")
    assert rows[0].startswith("| **k = 4** (this release) | yes |")
    assert rows[2].startswith("| k = 49 | no | – |")
    json.dumps(k_same.whatif(k="8,49"), allow_nan=False)


def test_of_a_real_release_it_says_what_its_audit_says(released: Outcome) -> None:
    (own, *more) = whatif(released.release.url, released.workspace.url)
    audit = released.audit
    assert own["smallest"] == audit["classes"]["smallest"]
    assert own["effective_k"] == pytest.approx(audit["classes"]["effective_k"], abs=1e-4)
    assert (own["classes"], own["people"]) == (audit["counts"]["classes"], audit["counts"]["subjects_released"])
    assert own["distinct_faces"] == audit["counts"]["distinct_faces"]
    assert [row["asked"]["k"] for row in more] == [2, 5]
    assert [row["reached"] for row in more] == [True, True]
