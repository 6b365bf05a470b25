"""Claims of pipeline/attributes.py: attributes that the input does not bring are predicted, released pixels are judged,
and what either says is called measured.

The shipped predictor infers; the judge of most tests is a file made here: a GoogLeNet with drawn weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from facecrowd.jobs.audit import audit_release
from facecrowd.jobs.cli import app
from facecrowd.pipeline import attributes, ray_data
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.config import Attributes, Policy, ReleaseConfig
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.run import Run
from facecrowd.stages import models
from facecrowd.stages.attributes import ATTRIBUTES, JUDGE, SHIPPED, STEER, Calibration, Predictor, locate
from facecrowd.stages.decode import decode

Settings = Callable[..., ReleaseConfig]
Make = Callable[..., Outcome]
Write = Callable[..., Path]

WIDTH = 14336
"""Numbers that say what the ArcFace backbone sees of a face: 896 maps of 4 x 4."""
ASKED = {"policy.quasi_identifiers": ["Male", "Young"], "policy.sensitive": ["Attractive"]}


def private(outcome: Outcome, table: str) -> list[dict[str, Any]]:
    (folder,) = (Path(outcome.workspace.root) / "tables" / table).iterdir()
    return [row for file in sorted(folder.glob("part-*")) for row in pq.read_table(file).to_pylist()]


def public(outcome: Outcome) -> pa.Table:
    return pq.read_table(outcome.release.at("manifest.parquet"))


@pytest.fixture(scope="module")
def write_head(write_predictor: Write) -> Write:
    """``write_head(file, **about)``: a predictor with a drawn head on the recogniser."""

    def write(file: Path, **about: Any) -> Path:
        weight = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1)).half() * 0.05
        tensors = {"head.weight": weight, "head.bias": torch.zeros(40)}
        return write_predictor(file, tensors, **{"backbone": "arcface-mobilefacenet", **about})

    return write


@pytest.fixture(scope="module")
def judge(draw_predictor: Write, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(draw_predictor(tmp_path_factory.mktemp("judge") / "drawn.safetensors", temperature=0.1))


@pytest.fixture(scope="module")
def predicted(settings: Settings, make_release: Make, judge: str, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A release of a folder of photos that brings no attribute."""
    output = tmp_path_factory.mktemp("predicted") / "release"
    return make_release(settings(output, **ASKED, **{"attributes.judge": judge, "policy.l": {"value": 1}}))


@pytest.fixture(scope="module")
def table(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Male is brought, and true of the first alone; Hat is no attribute of CelebA."""
    rows = ["image_id,Male,Attractive,Hat"]
    for i, person in enumerate(sorted(photos.iterdir())):
        rows += [f"{person.name}/{p.name},{int(i == 0)},{i % 2},{i % 2}" for p in sorted(person.iterdir())]
    file = tmp_path_factory.mktemp("brought") / "attributes.csv"
    file.write_text("\n".join(rows))
    return file


# --------------------------------------------------------------------------------------------------------- predicted


def test_a_folder_without_any_table_is_released_with_predicted_attributes(predicted: Outcome) -> None:
    shown = public(predicted)
    assert predicted.met
    assert {"Male", "Young"} <= set(shown.column_names)
    assert "Attractive" not in shown.column_names
    assert set(shown["Male"].to_pylist()) <= {"0", "1", "*"}
    assert predicted.audit["attributes"]["predictor"] == STEER
    assert predicted.audit["attributes"]["predicted"] == ["Male", "Young", "Attractive"]


def test_the_faces_carry_the_predictors_probabilities_and_the_plan_its_values(
    predicted: Outcome, model_folder: str | None
) -> None:
    faces, plan = private(predicted, "faces"), private(predicted, "plan")
    predictor = Predictor.load(STEER, model_folder)
    found = np.array([face["attributes"] for face in faces], np.float32)
    # The workspace keeps its crops as JPEG, so they are not quite the pixels that were looked at.
    again = predictor.predict([decode(face["crop"]) for face in faces])
    assert np.abs(found - again).mean() < 0.05
    assert np.corrcoef(found.ravel(), again.ravel())[0, 1] > 0.98
    for values, row in zip(predictor.values(found), plan, strict=True):
        for name in ("Male", "Young", "Attractive"):
            assert dict(row["originals"])[name] == str(values[ATTRIBUTES.index(name)])


def test_the_workspace_says_which_weights_spoke_and_where_their_thresholds_lie(
    predicted: Outcome, model_folder: str | None
) -> None:
    folders = sorted((Path(predicted.workspace.root) / "tables" / "predictors").iterdir())
    rows = [pq.read_table(folder).to_pylist() for folder in folders]
    (steer,) = (r for r in rows if r[0]["purpose"] == "predictor")
    (judge,) = (r for r in rows if r[0]["purpose"] == "judge")
    predictor = Predictor.load(STEER, model_folder)
    assert [row["attribute"] for row in steer] == list(ATTRIBUTES)
    assert np.float32([row["threshold"] for row in steer]).tolist() == predictor.calibration.threshold.tolist()
    assert {row["sha256"] for row in steer} == {predictor.sha256}
    assert {row["sha256"] for row in judge} != {predictor.sha256}


def test_the_audit_names_predictor_judge_and_what_they_build_on_with_their_terms(
    predicted: Outcome, judge: str
) -> None:
    used = {m["purpose"]: m for m in predicted.audit["models"]}
    assert used["attribute predictor"]["name"] == STEER
    assert "non-commercial" in used["attribute predictor"]["licence"]
    assert used["backbone of the attribute predictor"]["name"] == "arcface-mobilefacenet"
    assert used["judge of attributes"]["name"] == "the user's own (drawn.safetensors)"
    assert used["judge of attributes"]["sha256"] == models.sha256(judge)
    licences = predicted.release.read("LICENCES.md").decode()
    assert all(m["sha256"] in licences for m in used.values())
    assert str(Path(judge).parent) not in json.dumps(predicted.audit) + predicted.release.read("release.yaml").decode()


def test_l_and_t_of_predicted_values_are_measured_and_k_stays_formal(predicted: Outcome) -> None:
    kinds = {r["name"].split(" ")[0]: r["kind"] for r in predicted.audit["requirements"]}
    assert kinds["k"] == "formal"
    assert kinds["l"] == f"measured against predictor {STEER}"


def test_near_the_threshold_a_quasi_identifier_is_unknown_and_a_sensitive_value_never(
    tmp_path: Path, settings: Settings, make_release: Make, judge: str
) -> None:
    """A margin that nothing clears: the release leaves all open, and l still counts values, not unknowns."""
    margin = {"attributes.unknown_margin": 0.99, "attributes.judge": judge}
    names = {"policy.quasi_identifiers": ["Pale_Skin", "Young"], "policy.sensitive": ["Attractive"]}
    for method in ("k-same", "blur"):
        outcome = make_release(
            settings(tmp_path / method, **names, **margin, **{"method.name": method, "policy.k": None})
        )
        open_faces = [name for name, share in outcome.audit["attributes"]["unknown"].items() if share == 1]
        assert open_faces, outcome.audit["attributes"]["unknown"]
        for name in open_faces:
            assert set(public(outcome)[name].to_pylist()) == {"*"}
            (shown,) = (row for row in outcome.audit["attributes"]["shown"] if row["attribute"] == name)
            assert (shown["left_open"], shown["released_pictures"]) == (1, 0)
        assert all(dict(row["originals"])["Attractive"] in "01" for row in private(outcome, "plan"))


def test_values_nearer_to_the_threshold_than_the_margin_are_unknown_and_so_is_what_nobody_predicted() -> None:
    """A tenth of the way: from 0.3 down to 0.27 and up to 0.37."""
    predictor = attributes.Predictor("a", "", "", "", (float(np.float32(0.3)),) * 40)
    probabilities = np.full((1, 40), 0.3, np.float32)
    probabilities[0, :5] = [0.26, 0.28, 0.36, 0.38, np.nan]
    assert predictor.values(probabilities)[0, :6].tolist() == [0, 0, 1, 1, -1, 1]
    assert predictor.values(probabilities, 0.1)[0, :6].tolist() == [0, -1, -1, 1, -1, -1]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_pipeline_and_the_stage_take_the_same_probabilities_for_the_same_values(name: str) -> None:
    with safe_open(str(locate(name)), framework="np") as stored:
        calibration = Calibration(stored.get_tensor("temperature"), stored.get_tensor("prior"))
    threshold = calibration.threshold
    predictor = attributes.Predictor(name, "", "", "", tuple(float(t) for t in threshold))
    around = [threshold, np.nextafter(threshold, np.float32(0)), np.nextafter(threshold, np.float32(1))]
    probabilities = np.stack([*around, *np.random.default_rng(0).random((200, 40), np.float32)])
    for margin in (0.0, 0.3):
        assert (predictor.values(probabilities, margin) == calibration.values(probabilities, margin)).all()


# ----------------------------------------------------------------------------------------------------------- brought


def test_what_the_input_brings_wins_and_the_rest_is_predicted(
    tmp_path: Path, settings: Settings, make_release: Make, table: Path, judge: str, predicted: Outcome
) -> None:
    brought = {"input.attributes": str(table), "attributes.judge": judge}
    outcome = make_release(settings(tmp_path / "release", **ASKED, **brought))
    people = sorted({row["subject_id"] for row in private(outcome, "plan")})
    theirs = {row["photo"]: dict(row["originals"]) for row in private(predicted, "plan")}
    for row in private(outcome, "plan"):
        own = dict(row["originals"])
        assert own["Male"] == str(int(row["subject_id"] == people[0]))
        assert own["Young"] == theirs[row["photo"]]["Young"]
    assert outcome.audit["attributes"]["brought"] == ["Male", "Attractive"]
    assert outcome.audit["attributes"]["predicted"] == ["Young"]


def test_an_input_that_brings_all_is_not_predicted(
    tmp_path: Path, settings: Settings, make_release: Make, table: Path
) -> None:
    names = {"policy.quasi_identifiers": ["Hat"], "policy.sensitive": ["Attractive"], "input.attributes": str(table)}
    config = settings(tmp_path / "release", **names)
    assert releases.prepare(config).predictors == attributes.Predictors()
    outcome = make_release(config)
    assert {row["attributes"] for row in private(outcome, "faces")} == {None}
    assert outcome.audit["attributes"] is None
    assert not (Path(outcome.workspace.root) / "tables" / "predictors").exists()


def test_a_predictor_that_is_named_speaks_of_what_is_brought_and_the_disagreement_is_counted(
    tmp_path: Path, settings: Settings, make_release: Make, table: Path, predicted: Outcome
) -> None:
    named = {"input.attributes": str(table), "attributes.predictor": STEER, "attributes.judge": "none"}
    outcome = make_release(settings(tmp_path / "release", **named, **{"policy.quasi_identifiers": ["Male", "Hat"]}))
    (row,) = outcome.audit["attributes"]["disagreement"]
    guess: dict[str, list[int]] = {}
    for face in private(predicted, "plan"):
        guess.setdefault(face["subject_id"], []).append(int(dict(face["originals"])["Male"]))
    truth = {person: int(i == 0) for i, person in enumerate(sorted(guess))}
    wrong = [v != truth[person] for person, values in guess.items() for v in values]
    majority = [(2 * sum(values) > len(values)) != truth[person] for person, values in guess.items()]
    assert row == {
        "attribute": "Male",
        "faces": 12,
        "share_of_faces": round(float(np.mean(wrong)), 6),
        "subjects": 6,
        "share_of_subjects": round(float(np.mean(majority)), 6),
        "neither": 0.0,
    }
    assert f"Male by predictor {STEER}: differs from the input's" in outcome.release.read("README.md").decode()


def test_disagreement_is_a_share_of_faces_and_of_subjects_majorities() -> None:
    """Ann has three photos and is predicted rightly once, Bob and Eve one, rightly; Cat's is neither yes nor no."""
    steer = attributes.Predictor("a", "", "", "", (0.5,) * 40)
    predicted = np.zeros((6, 40), np.float32)
    predicted[[0, 3, 4], ATTRIBUTES.index("Male")] = 1
    looked = attributes.Looked(attributes.Predictors(steer), ("Male",), 0.0, predicted)
    male = np.array(["1", "1", "1", "1", "1", "?"], dtype=object)
    subject = np.array(["ann", "ann", "ann", "bob", "eve", "cat"], dtype=object)
    found = attributes.measured(
        Policy(quasi_identifiers=("Male",)), looked, subject, {"Male": male}, {"Male": male}, np.arange(6), None
    )
    assert found is not None
    assert found["disagreement"] == [
        {"attribute": "Male", "faces": 5, "share_of_faces": 0.4, "subjects": 3, "share_of_subjects": 0.333333}
        | {"neither": 0.166667}
    ]
    subject[1] = "dan"
    again = attributes.measured(
        Policy(quasi_identifiers=("Male",)), looked, subject, {"Male": male}, {"Male": male}, np.arange(5), None
    )
    assert again is not None
    # Ann's two photos tie, and a tie is false.
    assert again["disagreement"][0]["share_of_subjects"] == 0.5


def test_words_for_yes_and_no_are_read_as_tables_have_them() -> None:
    words = ["1", "1.0", "True", "yes", "0", "-1", "0.0", "-1.0", "FALSE", "no", "*", "", None, "2", "nan"]
    assert attributes.truth(words).tolist() == [1] * 4 + [0] * 6 + [-1] * 5


# ------------------------------------------------------------------------------------------------------------- judge


def test_a_class_is_judged_once_and_all_its_faces_carry_that(predicted: Outcome) -> None:
    surrogates = {row["class_id"]: row["attributes"] for row in private(predicted, "surrogates")}
    plan = {row["face_id"]: row["class_id"] for row in private(predicted, "plan")}
    for row in private(predicted, "rendered"):
        assert row["attributes"] == surrogates[plan[row["face_id"]]]


def test_agreement_is_of_the_judge_on_released_bytes_with_released_values_beside_that_on_originals(
    predicted: Outcome, judge: str, model_folder: str | None
) -> None:
    """Reckoned anew from the files: released images, the crops of the originals, the plan."""
    predictor = Predictor.load(judge, model_folder)
    plan = {row["face_id"]: row for row in private(predicted, "plan")}
    crops = {row["face_id"]: row["crop"] for row in private(predicted, "faces")}
    links = private(predicted, "link")
    images = [decode(predicted.release.read(*link["file"].split("/"))) for link in links]
    shown = predictor.values(predictor.predict(images))
    seen = predictor.values(predictor.predict([decode(crops[link["face_id"]]) for link in links]))
    for row in predicted.audit["attributes"]["shown"]:
        at = ATTRIBUTES.index(row["attribute"])
        released = [dict(plan[link["face_id"]]["released"])[row["attribute"]] for link in links]
        own = [dict(plan[link["face_id"]]["originals"])[row["attribute"]] for link in links]
        told = [r != "*" for r in released]
        same = {
            link["sha256"]: r == str(v) for link, r, v in zip(links, released, shown[:, at], strict=True) if r != "*"
        }
        assert row["left_open"] == pytest.approx(1 - np.mean(told), abs=1e-6)
        assert row["released_pictures"] == len(same)
        assert row["released_agreement"] == (pytest.approx(np.mean(list(same.values())), abs=1e-6) if same else None)
        agreed = [o == str(v) for o, v in zip(own, seen[:, at], strict=True)]
        assert row["originals_agreement"] == pytest.approx(np.mean(agreed), abs=1e-6)


def shown(agree: list[int], picture: list[str], group: list[str], told: str = "1") -> dict[str, Any]:
    """What is measured of Male where the judge sees ``agree`` and the release states ``told``."""
    n = len(agree)
    pixels = np.repeat(np.array(agree, np.float32)[:, None], 40, axis=1)
    judge = attributes.Predictor("j", "", "", "", (0.5,) * 40)
    looked = attributes.Looked(attributes.Predictors(judge=judge), ("Male",), 0.0)
    male = {"Male": np.array([told] * n, dtype=object)}
    found = attributes.measured(
        *(Policy(quasi_identifiers=("Male",)), looked, np.array(group, dtype=object), male, male, np.arange(n), pixels),
        picture=picture,
        unit=("classes", np.array(group)),
    )
    assert found is not None
    (row,) = found["shown"]
    return dict(row)


def test_a_picture_that_many_faces_show_counts_once() -> None:
    row = shown([1, 1, 1, 1, 0], ["a", "a", "a", "b", "c"], ["x", "x", "x", "y", "z"])
    assert (row["released_pictures"], row["groups"], row["over"]) == (3, 3, "classes")
    assert row["released_agreement"] == 0.666667


def test_the_interval_is_over_classes_repeats_exactly_and_holds_the_usual_one() -> None:
    """Of 200 pictures in as many classes the normal approximation; in 20 classes that agree within, a wider one."""
    values = [int(i % 10 < 3) for i in range(200)]
    alone = shown(values, [str(i) for i in range(200)], [str(i) for i in range(200)])
    assert alone == shown(values, [str(i) for i in range(200)], [str(i) for i in range(200)])
    assert alone["released_agreement"] == 0.3
    assert [alone["low"], alone["high"]] == pytest.approx([0.3 - 1.96 * 0.0324, 0.3 + 1.96 * 0.0324], abs=0.015)
    grouped = shown(sorted(values), [str(i) for i in range(200)], [str(i // 10) for i in range(200)])
    assert grouped["high"] - grouped["low"] > 2 * (alone["high"] - alone["low"])


def test_where_all_pictures_agree_the_interval_still_claims_no_certainty() -> None:
    row = shown([1, 1, 1], ["a", "b", "c"], ["x", "y", "z"])
    assert (row["released_agreement"], row["low"], row["high"]) == (1, round(0.025 ** (1 / 3), 6), 1)


@pytest.mark.parametrize("told, neither, pictures", [("1.0", 0, 1), ("-1.0", 0, 1), ("*", 0, 0), ("old", 1, 0)])
def test_values_that_are_not_yes_or_no_are_told_from_those_left_open(told: str, neither: int, pictures: int) -> None:
    row = shown([1], ["a"], ["x"], told)
    assert (row["neither"], row["released_pictures"], row["left_open"]) == (neither, pictures, int(told == "*"))


def test_what_is_shown_is_called_measured_and_never_guaranteed(predicted: Outcome) -> None:
    text = predicted.release.read("README.md").decode()
    measured = text.partition("## What was measured")[2]
    assert "Male shown, measured against predictor the user's own (drawn.safetensors)" in measured
    assert "predict" not in text.partition("## What was measured")[0].replace("measured against predictor", "")


@pytest.mark.parametrize("method", ["blur", "k-same"])
def test_in_photo_output_the_released_photo_is_judged(
    tmp_path: Path, settings: Settings, make_release: Make, judge: str, method: str
) -> None:
    asked = {"policy.quasi_identifiers": ["Male"], "attributes.judge": judge, "method.name": method, "policy.k": None}
    outcome = make_release(settings(tmp_path / "release", output="photo", **asked, **{"compute.micro_batch": 6}))
    assert {row["attributes"] for row in private(outcome, "rendered")} == {None}
    assert all(len(row["attributes"]) == 40 for row in private(outcome, "judged"))
    (shown,) = outcome.audit["attributes"]["shown"]
    assert shown["originals_faces"] == 12
    assert shown["originals_agreement"] is not None


def test_without_a_judge_nothing_of_released_pixels_is_claimed(
    tmp_path: Path, settings: Settings, make_release: Make
) -> None:
    outcome = make_release(settings(tmp_path / "release", **ASKED, **{"attributes.judge": "none"}))
    assert outcome.audit["attributes"]["shown"] == []
    assert {row["attributes"] for row in private(outcome, "rendered")} == {None}
    assert not (Path(outcome.workspace.root) / "tables" / "originals").exists()


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_an_audit_of_the_released_files_judges_their_attributes_again(
    predicted: Outcome, monkeypatch: pytest.MonkeyPatch, in_process: releases.Execute, judge: str, draw_predictor: Write
) -> None:
    done: list[str] = []

    def run(step: ray_data.Step, *rest: Any) -> None:
        done.extend(stage.name for stage in step.stages)
        in_process(step, *rest)

    monkeypatch.setattr(ray_data, "run", run)
    monkeypatch.setattr(ray_data, "session", lambda *_: _Nothing())
    report, lines = audit_release(predicted.release.root, predicted.workspace.root, Progress(quiet=True))
    assert done == ["judge", "attributes"]
    assert report["attributes"] == predicted.audit["attributes"]
    assert report["models"] == predicted.audit["models"]
    assert any(line.startswith("Male shown, measured against predictor") for line in lines)
    kept = Path(judge).read_bytes()
    draw_predictor(Path(judge), seed=2, temperature=0.1)
    try:
        with pytest.raises(ConfigError, match="not the file that judged this release"):
            audit_release(predicted.release.root, predicted.workspace.root, Progress(quiet=True))
    finally:
        Path(judge).write_bytes(kept)


def test_the_shipped_predictor_and_the_shipped_judge_work_a_release_off_on_ray(
    tmp_path: Path, settings: Settings, make_release: Make, model_folder: str | None, ray_session: None
) -> None:
    try:
        models.path("bisenet", folder=model_folder, download=False)
    except models.Unobtainable as error:
        pytest.skip(f"the judge's backbone is not here: {error}")
    tree = {}
    for name, execute in (("ray", None), ("here", "default")):
        config = settings(tmp_path / name, **ASKED, **{"compute.micro_batch": 6})
        outcome = make_release(config, **({} if execute else {"execute": None}))
        assert outcome.audit["attributes"]["judge"] == JUDGE
        tree[name] = {f.name: f.read_bytes() for f in sorted((tmp_path / name).rglob("*")) if f.is_file()}
    assert tree["ray"] == tree["here"]


# ---------------------------------------------------------------------------------------------- what decides, refusals


def test_another_predictor_makes_the_faces_anew_and_the_same_one_does_not(
    tmp_path: Path, settings: Settings, judge: str
) -> None:
    def names(**changes: Any) -> dict[str, str]:
        config = settings(tmp_path / "release", **{**ASKED, "attributes.judge": "none", **changes})
        prepared = releases.prepare(config)
        key = prepared.workspace
        with key.locked():
            return Run(prepared, key, key.create(), Progress(quiet=True)).names

    usual, other = names(), names(**{"attributes.predictor": judge})
    assert names(**{"attributes.predictor": STEER})["faces"] == usual["faces"]
    assert names(**{"policy.k": 2})["faces"] == usual["faces"]
    assert other["faces"] != usual["faces"]
    plain = {"policy.quasi_identifiers": [], "policy.sensitive": []}
    assert names(**plain)["faces"] not in (usual["faces"], other["faces"])
    judged = names(**{"attributes.judge": judge})
    assert judged["plan"] == usual["plan"]
    assert judged["rendered"] != usual["rendered"]
    margin = names(**{"attributes.unknown_margin": 0.2})
    assert (margin["faces"], margin["plan"] != usual["plan"]) == (usual["faces"], True)


def test_a_judge_that_is_the_predictor_itself_is_refused(tmp_path: Path, settings: Settings, judge: str) -> None:
    same = {"attributes.predictor": judge, "attributes.judge": judge}
    with pytest.raises(ConfigError, match=r"judge: .* is the predictor itself, and would judge itself"):
        releases.prepare(settings(tmp_path / "release", **ASKED, **same))


@pytest.mark.parametrize(
    "steer, judge, why",
    [
        ("attributes-googlenet", "googlenet-forest", "both build on attributes-googlenet"),
        ("googlenet-forest", "attributes-googlenet", "both build on attributes-googlenet"),
        ("auto", "attributes-googlenet", "both learned from people of steer"),
        ("auto", "auto", None),
        ("googlenet-forest", JUDGE, None),
    ],
)
def test_a_judge_that_is_not_independent_of_the_predictor_is_refused(steer: str, judge: str, why: str | None) -> None:
    config, policy = Attributes(predictor=steer, judge=judge), Policy(quasi_identifiers=("Male",))
    if why is None:
        assert attributes.predictors(config, policy, (), download=False).judge is not None
        return
    with pytest.raises(ConfigError, match=f"{judge} is not independent of the predictor: {why}; name another, or none"):
        attributes.predictors(config, policy, (), download=False)


@pytest.mark.parametrize("what", ["missing", "junk", "tensors", "other attributes", "pickle", "other backbone"])
def test_what_is_no_predictor_is_refused_before_any_work(
    tmp_path: Path, settings: Settings, write_head: Write, what: str
) -> None:
    file = tmp_path / ("p.pt" if what == "pickle" else "p.safetensors")
    if what in ("junk", "pickle"):
        file.write_bytes(b"something else")
    elif what == "tensors":
        save_file({"a": torch.zeros(1)}, str(file))
    elif what == "other attributes":
        write_head(file, attributes=["Hat"])
    elif what == "other backbone":
        write_head(file, backbone="unheard-of")
    with pytest.raises(models.ModelError) as error:
        releases.prepare(settings(tmp_path / "release", **ASKED, **{"attributes.predictor": str(file)}))
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "release.workspace").exists()


@pytest.mark.parametrize("what", ["no backbone", "a list", "prior 1", "temperature 0", "NaN"])
def test_a_malformed_predictor_is_one_sentence_and_ends_the_command_with_2(
    tmp_path: Path, flags: Callable[..., list[str]], write_head: Write, what: str
) -> None:
    file = tmp_path / "p.safetensors"
    about: dict[str, Any] = {"backbone": None} if what == "no backbone" else {}
    write_head(file, **about)
    tensors = load_file(str(file))
    with safe_open(str(file), framework="np") as stored:
        said = json.loads(stored.metadata()["facecrowd"])
    bad = {"prior 1": ("prior", 1.0), "temperature 0": ("temperature", 0.0), "NaN": ("prior", float("nan"))}
    if what in bad:
        tensors[bad[what][0]][7] = bad[what][1]
    save_file(tensors, str(file), metadata={"facecrowd": json.dumps([said] if what == "a list" else said)})
    asked = ("--quasi-identifiers", "Male", "--predictor", str(file))
    result = CliRunner().invoke(app, flags(tmp_path / "release", *asked))
    assert result.exit_code == 2, result.output
    assert " ".join(result.stderr.split()).count("is no attribute predictor of this version") == 1
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "release").exists()


def test_a_column_that_neither_the_table_nor_a_predictor_knows_is_named_with_what_there_is(
    tmp_path: Path, settings: Settings, table: Path
) -> None:
    asked = {"input.attributes": str(table), "policy.quasi_identifiers": ["Mail"]}
    with pytest.raises(InputError, match=r"no column 'Mail' .*presets: anonymousnet, five-parts; what can be .*Young"):
        releases.prepare(settings(tmp_path / "release", **asked))
    with pytest.raises(InputError, match=r"no column 'Young' .*presets: anonymousnet, five-parts$"):
        releases.prepare(
            settings(
                tmp_path / "release",
                **{**asked, "policy.quasi_identifiers": ["Young"], "attributes.predictor": "none"},
            )
        )


def test_a_dry_run_says_who_predicts_and_who_judges(tmp_path: Path, settings: Settings, judge: str) -> None:
    prepared = releases.prepare(settings(tmp_path / "release", **ASKED, **{"attributes.judge": judge}), dry=True)
    assert f"attributes: predicted by {STEER}, judged by the user's own (drawn.safetensors)" in prepared.lines()
