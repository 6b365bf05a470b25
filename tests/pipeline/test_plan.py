"""Claims of pipeline/plan.py: classes are made of subjects, every row has its fate, and a plan reads back as it was."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from facecrowd.pipeline import plan as planning
from facecrowd.pipeline import record
from facecrowd.pipeline.config import ReleaseConfig, load
from facecrowd.pipeline.errors import PolicyError
from facecrowd.pipeline.plan import Plan, subject_means
from facecrowd.pipeline.schema import FACES, PHOTOS, PLAN
from facecrowd.privacy.errors import UnreachableError
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import OK

PART = 4


def tables(people: dict[str, int], missing: tuple[str, ...] = ()) -> tuple[pa.Table, pa.Table]:
    """Photos and faces of ``people`` (person → photos); the embeddings of a person lie together. Photos in ``missing``
    have no face."""
    draws = np.random.Generator(np.random.Philox(5))
    photos: dict[str, list[Any]] = {"photo": [], "subject": [], "attributes": []}
    faces: dict[str, list[Any]] = {
        n: [] for n in ("face_id", "photo", "part", "face_index", "status", "reason", "embedding")
    }
    for i, (person, count) in enumerate(people.items()):
        centre = draws.standard_normal(512)
        for j in range(count):
            photo = f"{person}/{j}"
            found = photo not in missing
            photos["photo"].append(photo)
            photos["subject"].append(person)
            photos["attributes"].append([("Hat", str(i % 2)), ("Smile", str(j % 2))])
            vector = centre + 0.1 * draws.standard_normal(512)
            row = (f"id-{photo}", photo, len(faces["photo"]) // PART, 0 if found else -1)
            row += (OK, "", (vector / np.linalg.norm(vector)).tolist()) if found else ("no_face", "none", None)
            for name, value in zip(faces, row, strict=True):
                faces[name].append(value)

    def typed(columns: dict[str, list[Any]], schema: pa.Schema) -> pa.Table:
        return pa.table({name: pa.array(values, schema.field(name).type) for name, values in columns.items()})

    return typed(photos, PHOTOS.arrow), typed(faces, FACES.arrow)


def config(**changes: Any) -> ReleaseConfig:
    values = {"input.path": "in.parquet", "policy.k": 3, "policy.quasi_identifiers": ["Hat", "Smile"]}
    return load(None, {**values, **changes})


def planned(people: dict[str, int], missing: tuple[str, ...] = (), **changes: Any) -> Plan:
    return planning.make(config(**changes), "folder", *tables(people, missing))


SEVEN = {"ann": 1, "bob": 5, "cat": 2, "dan": 1, "eve": 9, "fay": 2, "gus": 3}


def test_every_class_has_k_subjects_however_many_photos_they_have() -> None:
    plan = planned(SEVEN)
    members = {c: set(plan.subject_id[plan.class_id == c]) for c in range(plan.classes)}
    assert sorted(len(people) for people in members.values()) == [3, 4]
    assert sum(len(people) for people in members.values()) == 7


def test_all_faces_of_a_person_are_in_one_class() -> None:
    plan = planned(SEVEN)
    assert all(len(set(plan.class_id[plan.subject_id == person])) == 1 for person in SEVEN)


def test_a_row_without_a_face_stays_with_its_reason_and_without_a_class() -> None:
    plan = planned(SEVEN, missing=("bob/2", "ann/0"))
    assert len(plan.status) == sum(SEVEN.values())
    (row,) = np.flatnonzero(plan.photo == "bob/2")
    assert (plan.status[row], plan.subjects.reason[row], plan.subject_id[row], plan.class_id[row]) == (
        "no_face",
        "none",
        "",
        -1,
    )
    assert plan.subjects.count == 6
    assert row not in plan.kept


def test_too_few_people_are_refused() -> None:
    with pytest.raises(PolicyError, match="k = 3 cannot be reached: 2 people have a usable face"):
        planned({"ann": 40, "bob": 40})
    with pytest.raises(PolicyError, match="no usable face in the input"):
        planned({"ann": 1}, missing=("ann/0",))


def test_one_vector_per_class_is_released_and_it_is_what_most_of_its_subjects_have() -> None:
    plan = planned(SEVEN)
    for c in range(plan.classes):
        rows = np.flatnonzero(plan.class_id == c)
        (shown,) = set(plan.released["Hat"][rows])
        own = {plan.subject_id[r]: plan.originals["Hat"][r] for r in rows}
        votes = Counter(own.values())
        assert votes[shown] == max(votes.values())


def test_a_baseline_releases_a_subjects_majority_and_its_classes_are_what_that_makes_them() -> None:
    plan = planned(SEVEN, **{"method.name": "blur", "policy.k": None})
    for person in SEVEN:
        rows = np.flatnonzero(plan.subject_id == person)
        assert len({(plan.released["Hat"][r], plan.released["Smile"][r]) for r in rows}) == 1
    vectors = {(plan.released["Hat"][r], plan.released["Smile"][r], plan.class_id[r]) for r in plan.kept}
    assert len(vectors) == plan.classes == len({v[:2] for v in vectors})
    assert plan.released["Smile"][plan.subject_id == "bob"][0] == "0"


def test_a_baseline_without_released_attributes_has_no_classes() -> None:
    plan = planned(SEVEN, **{"method.name": "blur", "policy.quasi_identifiers": []})
    assert plan.classes == 0
    assert len(plan.kept) == sum(SEVEN.values())


def test_members_are_whole_classes_and_every_face_once() -> None:
    plan = planned({f"p{i:02d}": 1 + i % 3 for i in range(20)})
    parts = [plan.members_columns(part, 2) for part in range(-(-plan.classes // 2))]
    assert [set(p["class_id"]) for p in parts] == [
        {c for c in (2 * i, 2 * i + 1) if c < plan.classes} for i in range(len(parts))
    ]
    where = [(int(a), int(b)) for p in parts for a, b in zip(p["part"], p["row"], strict=True)]
    assert sorted(where) == sorted((int(plan.part[r]), int(plan.row[r])) for r in plan.kept)


def test_a_plan_reads_back_as_it_was_written() -> None:
    plan = planned(SEVEN, missing=("bob/2",))
    parts = [plan.part_columns(part) for part in range(int(plan.part.max()) + 1)]
    columns = {name: [v for p in parts for v in p[name]] for name in parts[0]}
    for name in ("originals", "released"):
        columns[name] = [sorted(cell.items()) for cell in columns[name]]
    table = pa.table({name: pa.array(values, PLAN.arrow.field(name).type) for name, values in columns.items()})
    again = planning.load(config(), table, tables(SEVEN, ("bob/2",))[1], "folder", None, 0)
    for name in ("face_id", "photo", "part", "row", "class_id", "subject_id", "status", "images"):
        assert getattr(again, name).tolist() == getattr(plan, name).tolist()
    assert again.originals["Hat"].tolist() == plan.originals["Hat"].tolist()
    assert again.released["Smile"].tolist() == plan.released["Smile"].tolist()
    assert np.array_equal(again.embedding, plan.embedding)


@pytest.mark.parametrize("images", [1, 3, 7])
def test_surrogates_per_subject_gives_everybody_as_many(images: int) -> None:
    plan = planned(SEVEN, missing=("bob/2",), **{"method.surrogates_per_subject": images})
    for person in SEVEN:
        dealt = plan.images[plan.subject_id == person]
        assert dealt.sum() == images
        assert dealt.max() - dealt.min() <= 1
    assert plan.images[plan.subject_id == ""].sum() == 0


def test_a_subjects_mean_weighs_every_photo_and_has_length_one() -> None:
    vectors = np.random.Generator(np.random.Philox(2)).standard_normal((6, 4)).astype(np.float32)
    person = np.array([1, 0, 1, 2, 1, 0])
    means = subject_means(vectors, person, 3)
    for i in range(3):
        mean = vectors[person == i].mean(axis=0)
        assert means[i] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_a_class_never_shows_a_value_that_only_one_of_its_people_has() -> None:
    """Ages all different: the most frequent one would be somebody's own."""
    photos, faces = tables(SEVEN)
    number = {person: str(20 + i) for i, person in enumerate(SEVEN)}
    attributes = [[("Age", number[person]), ("Hat", "1")] for person in photos["subject"].to_pylist()]
    column = pa.array(attributes, photos.schema.field("attributes").type)
    photos = photos.set_column(photos.schema.get_field_index("attributes"), "attributes", column)
    plan = planning.make(config(**{"policy.quasi_identifiers": ["Age", "Hat"]}), "folder", photos, faces)
    assert set(plan.released["Age"]) == {"*"}
    assert set(plan.released["Hat"]) == {"1"}


def test_a_surrogate_that_is_one_members_own_face_is_found() -> None:
    plan = planned(SEVEN)
    mean = [plan.embedding[plan.class_id == c].mean(axis=0) for c in range(plan.classes)]
    faces = [vector / np.linalg.norm(vector) for vector in mean]

    def table(embeddings: list[Any]) -> pa.Table:
        typed = pa.array([e.tolist() for e in embeddings], pa.list_(pa.float32(), 512))
        return pa.table({"class_id": list(range(plan.classes)), "embedding": typed})

    assert record.lone_surrogates(plan, table(faces)) == []
    copied = [plan.embedding[plan.class_id == 0][0], *faces[1:]]
    assert record.lone_surrogates(plan, table(copied)) == [0]


def guessed(values: dict[str, list[str | None]]) -> dict[str, np.ndarray]:
    """Predicted Young of every photo of ``values`` (person → photos), in the order of the faces."""
    return {"Young": np.array([v for person in values.values() for v in person], dtype=object)}


def predicted_plan(values: dict[str, list[str | None]], **changes: Any) -> Plan:
    photos, faces = tables({person: len(v) for person, v in values.items()})
    asked = config(**{"policy.quasi_identifiers": ["Hat", "Young"], **changes})
    return planning.make(asked, "folder", photos, faces, guessed(values))


BLUR = {"method.name": "blur", "policy.k": None}


def test_an_unknown_value_takes_no_part_in_a_subjects_majority_and_unknown_alone_is_any() -> None:
    plan = predicted_plan({"ann": [None, None, "1"], "bob": ["0", "0", None, "1"], "cat": [None, None]}, **BLUR)
    shown = {person: set(plan.released["Young"][plan.subject_id == person]) for person in ("ann", "bob", "cat")}
    assert shown == {"ann": {"1"}, "bob": {"0"}, "cat": {"*"}}
    assert plan.originals["Young"].tolist() == [None, None, "1", "0", "0", None, "1", None, None]


@pytest.mark.parametrize(
    "values, shown",
    [
        ([["1"], [None], ["1"], [None]], "1"),  # two who are known outvote those who are not
        ([["1"], [None], [None], [None]], "*"),  # one alone would be that member's own
        ([[None], [None], [None], [None]], "*"),
        ([["1"], ["0"], ["0"], ["1", "1"]], "0"),
    ],
)
def test_whoever_is_unknown_has_no_vote_in_a_class(values: list[list[str | None]], shown: str) -> None:
    people = dict(zip(("ann", "bob", "cat", "dan"), values, strict=True))
    plan = predicted_plan(people, **{"policy.k": 4})
    assert plan.classes == 1
    assert set(plan.released["Young"]) == {shown}


def test_what_the_input_brings_is_not_predicted_over() -> None:
    photos, faces = tables(SEVEN)
    wrong = {"Hat": np.full(len(faces), "predicted", dtype=object)}
    plan = planning.make(config(**{"policy.quasi_identifiers": ["Hat"]}), "folder", photos, faces, wrong)
    assert set(plan.originals["Hat"]) == {"0", "1"}


# ------------------------------------------------------------------------------------------------------- translation

KEY = RunKey(bytes(range(32)))
TRANSLATED = {"method.name": "translation", "policy.k": 2}
EIGHT = {**SEVEN, "hal": 1}


def crowds(plan: Plan) -> dict[tuple[str, ...], set[str]]:
    """Who shows each released vector."""
    shown: dict[tuple[str, ...], set[str]] = {}
    for row in plan.kept:
        shown.setdefault(tuple(plan.released[n][row] for n in plan.released), set()).add(plan.subject_id[row])
    return shown


def test_a_translation_releases_one_planned_vector_per_subject_and_its_classes_are_what_they_show() -> None:
    plan = planned(EIGHT, **TRANSLATED)
    assert all(len(people) >= 2 for people in crowds(plan).values())
    assert plan.classes == len(crowds(plan))
    assert sum(len(people) for people in crowds(plan).values()) == 8
    for vector, people in crowds(plan).items():
        rows = np.flatnonzero(np.isin(plan.subject_id.astype(str), list(people)))
        assert len(set(plan.class_id[rows])) == 1
        assert all(plan.released["Hat"][row] == vector[0] for row in rows)
    assert plan.planned is not None
    assert (plan.planned.planner, plan.planned.epsilon) == ("ppas-verified", None)


def test_whom_no_class_takes_in_is_suppressed_with_a_reason_and_no_more_people_than_may_be() -> None:
    people = {f"p{i:02d}": 1 + 9 * (i == 0) for i in range(21)}
    photos, faces = tables(people)
    # One person differs from all others and is on a third of the photos.
    column = pa.array(
        [[("Hat", str(int(who == "p00")))] for who in photos["subject"].to_pylist()],
        photos.schema.field("attributes").type,
    )
    photos = photos.set_column(photos.schema.get_field_index("attributes"), "attributes", column)
    asked = {**TRANSLATED, "policy.quasi_identifiers": ["Hat"], "method.planner": "suppress"}

    def made(most: float) -> Plan:
        return planning.make(config(**asked, **{"policy.max_suppression": most}), "folder", photos, faces, key=KEY)

    kept = made(0.5)
    left = np.flatnonzero(kept.status == "suppressed")
    assert set(kept.subject_id[left]) == {"p00"}
    assert set(kept.subjects.reason[left]) == {planning.LEFT_OUT}
    assert set(kept.class_id[left]) == {-1}
    assert set(kept.released["Hat"][left]) == {None}
    assert set(kept.released["Hat"][kept.kept]) == {"0"}
    assert set(made(0.04).released["Hat"]) == {"*"}


def test_many_people_with_few_photos_are_not_left_out_for_few_with_many() -> None:
    """Planners count rows; the share is of people."""
    people = {f"p{i:02d}": 1 if i < 3 else 9 for i in range(10)}
    photos, faces = tables(people)
    # Three people, a photo each, each with a vector of their own; all others are alike.
    hat, smile = {"p00": "1", "p02": "1"}, {"p01": "1", "p02": "1"}
    values = [[("Hat", hat.get(who, "0")), ("Smile", smile.get(who, "0"))] for who in photos["subject"].to_pylist()]
    column = pa.array(values, photos.schema.field("attributes").type)
    photos = photos.set_column(photos.schema.get_field_index("attributes"), "attributes", column)
    asked = config(**{**TRANSLATED, "policy.k": 3, "method.planner": "suppress", "policy.max_suppression": 0.2})
    plan = planning.make(asked, "folder", photos, faces, key=KEY)
    assert len(set(plan.subject_id[plan.status == "suppressed"])) <= 2


def test_an_unknown_value_is_drawn_for_its_subject_by_the_run_key_before_a_translation_is_planned() -> None:
    values: dict[str, list[str | None]] = {f"p{i:02d}": [str(i % 2)] for i in range(10)}
    values |= {"who": [None, None], "whom": [None]}
    photos, faces = tables({person: len(v) for person, v in values.items()})
    asked = config(**TRANSLATED, **{"policy.quasi_identifiers": ["Young"]})

    def drawn(key: RunKey) -> tuple[str, str]:
        plan = planning.make(asked, "folder", photos, faces, guessed(values), key)
        assert plan.planned is not None
        assert plan.planned.drawn == {"Young": 2}
        assert plan.originals["Young"][-3:].tolist() == [None] * 3
        (one,), (other,) = (set(plan.released["Young"][plan.subject_id == person]) for person in ("who", "whom"))
        return str(one), str(other)

    assert len({drawn(RunKey(bytes([i]) * 32)) for i in range(24)}) == 4
    assert drawn(KEY) == drawn(KEY)


def test_epsilon_randomises_by_the_run_key_and_the_plan_keeps_what_was_spent() -> None:
    near = {"policy.sensitive": ["Smile"], "policy.t": {"value": 0.9}, "policy.quasi_identifiers": ["Hat"]}
    asked = {**TRANSLATED, **near, "policy.epsilon": 0.5}

    def made(key: RunKey) -> Plan:
        return planning.make(config(**asked), "folder", *tables({f"p{i:02d}": 1 for i in range(40)}), key=key)

    one, other = made(KEY), made(RunKey(bytes(32)))
    assert one.planned is not None
    assert one.planned.epsilon is not None
    assert 0 < one.planned.epsilon <= 0.5
    assert one.released["Hat"].tolist() == made(KEY).released["Hat"].tolist()
    assert one.released["Hat"].tolist() != other.released["Hat"].tolist()
    assert (one.released["Hat"] != one.originals["Hat"]).any()
    assert [choice["attribute"] for choice in one.planned.choices] == ["Hat"]
    read = planning.Planned.read(json.loads(json.dumps(one.planned.as_dict())))
    assert read == one.planned


def alike(value: str, **changes: Any) -> Plan:
    """A translation of 40 people who are all of one value."""
    values: dict[str, list[str | None]] = {f"p{i:02d}": [value] for i in range(40)}
    photos, faces = tables(dict.fromkeys(values, 1))
    asked = {**TRANSLATED, "policy.sensitive": ["Smile"], "policy.t": {"value": 0.9}, **changes}
    asked = {"policy.quasi_identifiers": ["Young"], **asked}
    return planning.make(config(**asked), "folder", photos, faces, guessed(values), KEY)


@pytest.mark.parametrize("value", ["0", "1"])
def test_an_attribute_in_which_all_are_alike_is_randomised_like_any_other(value: str) -> None:
    """What a predictor knows is there or not there; that everybody here has it is nothing public."""
    plan = alike(value, **{"policy.epsilon": 1.0})
    assert plan.planned is not None
    assert plan.planned.epsilon == pytest.approx(1.0, abs=1e-6)
    shown = Counter(plan.released["Young"][plan.kept])
    assert set(shown) >= {"0", "1"}


def test_an_unknown_value_is_drawn_of_what_is_public_where_epsilon_is_asked_and_else_as_others_have_it() -> None:
    values = {"Young": np.array(["1"] * 100 + ["*"] * 100, dtype=object)}
    people = np.array([f"p{i:03d}" for i in range(200)])
    for epsilon, drawn in ((1.0, {"0", "1"}), (None, {"1"})):
        policy = config(**TRANSLATED, **{"policy.epsilon": epsilon}).policy
        own, count = planning._known({name: v.copy() for name, v in values.items()}, people, policy, KEY)
        assert set(own["Young"][100:]) == drawn
        assert count == {"Young": 100}


@pytest.mark.parametrize("planner", ["ppas-verified", "ppas", "mondrian", "suppress"])
def test_every_planner_keeps_a_value_that_all_have_where_nothing_is_randomised(planner: str) -> None:
    plan = alike("1", **{"method.planner": planner})
    assert len(set(plan.released["Young"][plan.kept])) == 1
    assert set(plan.released["Young"]) <= ({"0", "1"} if planner.startswith("ppas") else {"1"})


def test_a_policy_that_no_plan_reaches_is_one_sentence_before_anything_is_rendered() -> None:
    asked = {"policy.sensitive": ["Smile"], "policy.l": {"kind": "distinct", "value": 3}}
    with pytest.raises(UnreachableError, match="l"):
        planned(EIGHT, **TRANSLATED, **asked, **{"policy.quasi_identifiers": ["Hat"]})
