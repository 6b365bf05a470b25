"""Claims of jobs/evaluate_attributes.py: figures equal scikit-learn's, intervals are over people, and nobody is judged
by weights that saw them.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from typer.testing import CliRunner, Result

from facecrowd.jobs import cli
from facecrowd.jobs import evaluate_attributes as evaluation
from facecrowd.jobs.evaluate_attributes import Judgement, accuracy, balanced, calibration_error, figures
from facecrowd.jobs.labelled import Faces
from facecrowd.pipeline.errors import InputError
from facecrowd.stages.attributes import ATTRIBUTES, Predictor

pytestmark = pytest.mark.usefixtures("one_thread")

ONES = np.ones(200)


def judged(people: int = 50, each: int = 4, seed: int = 0, common: float = 0.3) -> Judgement:
    """All faces of a person have the same labels and the same probabilities, mostly on the right side of a half."""
    rng = np.random.default_rng(seed)
    truth = rng.random((people, len(ATTRIBUTES))) < common
    p = np.clip(np.where(truth, 0.65, 0.35) + rng.normal(0, 0.2, truth.shape), 0.01, 0.99)
    labels, p = (np.repeat(a, each, axis=0).astype(np.float32) for a in (truth, p))
    subject = np.repeat([f"s{i}" for i in range(people)], each)
    faces = Faces(np.arange(len(p)).astype(str), subject, [b""] * len(p), labels)
    prior = np.full(len(ATTRIBUTES), common, np.float32)
    return Judgement("made up", "drawn", faces, p, np.full(len(ATTRIBUTES), 0.4, np.float32), prior)


# ------------------------------------------------------------------------------------------------------------ figures


def test_accuracy_balanced_accuracy_and_auc_are_scikit_learn_s():
    case = judged()
    truth, value = case.faces.labels > 0.5, case.probability >= 0.4
    found = figures(case)
    for a, row in enumerate(found["attributes"]):
        assert row["accuracy"] == pytest.approx(accuracy_score(truth[:, a], value[:, a]))
        assert row["balanced"] == pytest.approx(balanced_accuracy_score(truth[:, a], value[:, a]))
        assert row["auc"] == pytest.approx(roc_auc_score(truth[:, a], case.probability[:, a]))
        assert row["majority"] == pytest.approx(max(truth[:, a].mean(), 1 - truth[:, a].mean()))
    for name, rule in (("accuracy", accuracy_score), ("balanced", balanced_accuracy_score)):
        for cut, threshold in (("half", 0.4), ("0.5", 0.5), ("prior", 0.3)):
            each = [rule(truth[:, a], case.probability[:, a] >= np.float32(threshold)) for a in range(len(ATTRIBUTES))]
            assert found[f"{name}@{cut}"]["mean"] == pytest.approx(np.mean(each)), (name, cut)
            assert found[f"{name}@{cut}"]["low"] <= np.mean(each) <= found[f"{name}@{cut}"]["high"]


def test_weights_of_faces_count_as_repetitions():
    rng = np.random.default_rng(1)
    truth, value = rng.random((2, 200, 3)) < 0.4
    weight = rng.integers(0, 4, 200)
    often = np.repeat(np.arange(200), weight)
    for score in (accuracy, balanced):
        np.testing.assert_allclose(score(value, truth, weight), score(value[often], truth[often], np.ones(len(often))))
        assert not np.allclose(score(value, truth, weight), score(value, truth, ONES))


def test_the_calibration_error_is_the_mean_gap_of_ten_bins():
    """By hand: four faces said at 0.25 of which one is true, four at 0.95 of which two are, two at 1.0 both true."""
    probability = np.array([0.25] * 4 + [0.95] * 4 + [1.0] * 2)
    truth = np.array([True, False, False, False, True, True, False, False, True, True])
    last = (4 * 0.95 + 2) / 6 - 4 / 6
    assert calibration_error(probability, truth) == pytest.approx(0.4 * 0 + 0.6 * last)
    rng = np.random.default_rng(0)
    honest = rng.random(100_000)
    assert calibration_error(honest, rng.random(100_000) < honest) < 0.01
    assert calibration_error(honest, rng.random(100_000) < honest**3) > 0.1


def test_intervals_over_people_are_wider_than_over_faces_where_faces_repeat():
    case = judged(each=8)
    alone = Faces(case.faces.name, case.faces.name, case.faces.crop, case.faces.labels)
    over_people = figures(case)["accuracy@half"]
    over_faces = figures(Judgement("", "", alone, case.probability, case.threshold, case.prior))["accuracy@half"]
    assert over_people["mean"] == over_faces["mean"]
    ratio = (over_people["high"] - over_people["low"]) / (over_faces["high"] - over_faces["low"])
    assert ratio == pytest.approx(np.sqrt(8), rel=0.15)


def test_intervals_hold_what_they_promise():
    """The mean over many draws of people lies in nearly all of the intervals."""
    cases = [figures(judged(people=40, each=2, seed=seed)) for seed in range(20)]
    middle = np.mean([case["accuracy@0.5"]["mean"] for case in cases])
    inside = [case["accuracy@0.5"]["low"] <= middle <= case["accuracy@0.5"]["high"] for case in cases]
    assert np.mean(inside) >= 0.8


def test_an_attribute_of_one_value_has_no_balanced_accuracy_and_spoils_no_mean():
    case = judged()
    case.faces.labels[:, 3] = 0
    found = figures(case)
    row = found["attributes"][3]
    assert row["balanced"] is row["auc"] is row["balanced_low"] is None
    others = [r["balanced"] for r in found["attributes"] if r["balanced"] is not None]
    assert found["balanced@half"]["mean"] == pytest.approx(np.mean(others))
    assert ATTRIBUTES[3] not in found["confusion"]["attributes"]
    assert found["common_attributes"] == len(ATTRIBUTES) - 1
    json.dumps(found, allow_nan=False)


def test_the_confusion_rates_are_those_of_the_pipeline_s_thresholds():
    case = judged()
    truth, value = case.faces.labels[:, 0] > 0.5, case.probability[:, 0] >= 0.4
    rates = figures(case)["confusion"]["attributes"][ATTRIBUTES[0]]
    assert rates["tpr"] == pytest.approx(value[truth].mean())
    assert rates["tnr"] == pytest.approx((~value[~truth]).mean())
    # Another table has another one: the audit estimates it there.
    assert "prevalence" not in rates


def test_thresholds_may_differ_from_fold_to_fold():
    case = judged()
    rows = np.tile(case.threshold, (len(case.faces), 1))
    each = Judgement("", "", case.faces, case.probability, rows, np.tile(case.prior, (len(case.faces), 1)))
    for found, expected in zip(figures(each)["attributes"], figures(case)["attributes"], strict=True):
        assert found == {name: pytest.approx(value) for name, value in expected.items()}


# ------------------------------------------------------------------------------------------------- whom nobody has seen


def test_predictors_are_judged_on_test_subjects_alone(labelled, draw_predictor, tmp_path):
    file = draw_predictor(tmp_path / "g.safetensors", splits=["steer"])
    (found,) = evaluation.evaluate(labelled, [str(file)], [])
    test = labelled.of("test")
    assert (found["faces"], found["subjects"]) == (len(test), len(set(test.subject.tolist())))
    expected = Predictor.load(file).predict(test.pixels())
    right = (expected >= Predictor.load(file).calibration.threshold) == (test.labels > 0.5)
    assert found["accuracy@half"]["mean"] == pytest.approx(right.mean())


def test_evaluating_on_training_subjects_is_refused(labelled, draw_predictor, tmp_path):
    file = draw_predictor(tmp_path / "g.safetensors", splits=["steer", "test"])
    with pytest.raises(InputError, match="was trained on people of the split test; judge it on others"):
        evaluation.evaluate(labelled, [str(file)], [])
    with pytest.raises(InputError, match="split steer"):
        evaluation.shipped(str(file), labelled.of("steer"))


def test_evaluating_on_photos_that_were_seen_unlabelled_is_refused(labelled, draw_predictor, tmp_path):
    """Its metadata tells the collection by its crops: in any order, packed or not, whichever part is labelled."""
    seen = [labelled.take(np.random.default_rng(0).permutation(len(labelled))).crops_sha256]
    more = {"unlabelled_splits": ["steer", "judge", "test"], "unlabelled_crops": seen}
    file = draw_predictor(tmp_path / "g.safetensors", splits=["steer"], **more)
    partly = labelled.take(np.arange(len(labelled)))
    partly.labels[::3] = np.nan
    for faces in (labelled, partly):
        with pytest.raises(InputError, match="trained on these very photos, labelled by its teacher; judge it on"):
            evaluation.evaluate(faces, [str(file)], [])
    fewer = labelled.take(np.arange(1, len(labelled)))
    assert len(evaluation.evaluate(fewer, [str(file)], [])) == 1


def test_faces_without_labels_or_test_subjects_are_one_sentence(labelled):
    unknown = Faces(labelled.name, labelled.subject, labelled.crop, np.full_like(labelled.labels, np.nan))
    for faces in (unknown, labelled.of("steer")):
        with pytest.raises(InputError, match="no labelled face of a test subject"):
            evaluation.evaluate(faces, [], [])


def test_cross_validation_judges_every_face_by_a_fit_on_other_people(labelled, monkeypatch):
    """With descriptors that name the person, a fit on the person's own faces would know the label."""
    person = np.unique(labelled.subject, return_inverse=True)[1]
    named = np.eye(40, dtype=np.float32)[person]
    labels = np.random.default_rng(0).random((40, len(ATTRIBUTES)))[person] < 0.5
    faces = Faces(labelled.name, labelled.subject, labelled.crop, labels.astype(np.float32))
    monkeypatch.setattr(evaluation.Descriptor, "load", lambda *_: None)
    monkeypatch.setattr(evaluation.recipes, "descriptors", lambda *_: named)
    found = figures(evaluation.cross_validated("arcface", faces))
    assert found["faces"] == 80
    assert found["auc"] < 0.6
    seen = evaluation.recipes.fit_probe(named, faces.labels).logits(named) > 0
    assert (seen == labels).mean() > 0.95


def test_a_probe_that_can_know_is_found_to_know(labelled, monkeypatch):
    monkeypatch.setattr(evaluation.Descriptor, "load", lambda *_: None)
    noise = np.random.default_rng(1).normal(0, 0.3, (len(labelled), 60))
    visible = np.concatenate([labelled.labels, noise], axis=1).astype(np.float32)
    monkeypatch.setattr(evaluation.recipes, "descriptors", lambda *_: visible)
    found = figures(evaluation.cross_validated("arcface", labelled))
    assert found["auc"] > 0.9
    assert found["accuracy@half"]["mean"] > 0.8


# ------------------------------------------------------------------------------------------------------------ command


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_the_command_prints_and_writes_the_same_figures(labelled, draw_predictor, tmp_path, model_folder):
    labelled.write(tmp_path / "faces.parquet")
    file = draw_predictor(tmp_path / "small.safetensors", splits=["judge"])
    arguments = ["evaluate", "attributes", "--data", tmp_path / "faces.parquet", "--predictors", file]
    arguments += ["--models", model_folder] if model_folder else []
    result = invoke(*arguments, "--probes", "none", "--json", tmp_path / "figures.json", "--speed")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads((tmp_path / "figures.json").read_text())["predictors"]
    mean = row["accuracy@half"]
    assert f"{100 * mean['mean']:.1f} [{100 * mean['low']:.1f}, {100 * mean['high']:.1f}]" in result.stdout
    assert "Wearing_Necktie" in result.stdout
    assert "trained on judge (5 people)" in " ".join(result.stdout.split())
    assert "small: faces/s: fp32, 1 thread" in result.stdout
    assert "arcface-mobilefacenet: faces/s: ONNX Runtime, 1 thread" in result.stdout


def test_the_forests_are_also_timed_alone(labelled, model_folder):
    rows = evaluation.throughput(labelled, ["googlenet-forest"], model_folder, count=2)
    names = ["googlenet-forest", "googlenet-forest, forests alone", "arcface-mobilefacenet"]
    assert [row["predictor"] for row in rows] == names
    assert rows[1]["NumPy, 1 thread"] > rows[0]["fp32, 1 thread"]
    assert rows[2]["ONNX Runtime, 1 thread"] > 0


def test_detailed_names_only_what_is_judged(tmp_path):
    asked = (["attributes-arcface", "folder/mine.safetensors"], ["bisenet"])
    assert evaluation.detailed("all", *asked) == ["attributes-arcface", "mine", "probe bisenet"]
    assert evaluation.detailed("mine, probe bisenet", *asked) == ["mine", "probe bisenet"]
    assert evaluation.detailed("", *asked) == ["attributes-arcface", "mine"]
    result = invoke("evaluate", "attributes", "--data", tmp_path, "--detailed", "arcfce")
    assert result.exit_code == 2
    assert "--detailed arcfce: is none of all, attributes-arcface, " in result.stderr


def test_a_predictor_or_probe_that_is_none_is_one_sentence(labelled, tmp_path):
    labelled.write(tmp_path / "faces.parquet")
    arguments = ["evaluate", "attributes", "--data", tmp_path / "faces.parquet"]
    result = invoke(*arguments, "--predictors", "nothing", "--probes", "none")
    assert result.exit_code == 2
    assert "no attribute predictor is called nothing" in result.stderr
    result = invoke(*arguments, "--predictors", "none", "--probes", "resnet")
    assert result.exit_code == 2
    assert "--probes resnet: is none of arcface, bisenet, mobilenetv2" in result.stderr
