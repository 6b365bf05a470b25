"""Claims of jobs/train_attributes.py: probes, calibration, augmentation, and what the command writes and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from facecrowd.jobs import cli, training
from facecrowd.jobs import train_attributes as recipes
from facecrowd.jobs.labelled import Faces, split
from facecrowd.jobs.train_attributes import (
    PRESETS,
    GoogLeNetTask,
    Order,
    Taught,
    augment,
    calibrate,
    finish_googlenet,
    fit_probe,
    out_of_fold,
    train_forest,
    train_probe,
)
from facecrowd.pipeline.errors import ConfigError
from facecrowd.stages import models
from facecrowd.stages.attributes import ATTRIBUTES, Predictor

pytestmark = pytest.mark.usefixtures("one_thread")

SMOKE = PRESETS["smoke"]


def about(file: Path) -> dict[str, Any]:
    with safe_open(str(file), framework="np") as stored:
        found: dict[str, Any] = json.loads(stored.metadata()["facecrowd"])
        return found


# ------------------------------------------------------------------------------------------------------------ probes


def problem(faces: int = 60, width: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """More numbers per face than faces, of unlike scales and means, and three attributes that depend on them."""
    rng = np.random.default_rng(3)
    x = rng.normal(rng.normal(0, 2, width), rng.gamma(2, 1, width), (2 * faces, width)).astype(np.float32)
    centred = (x - x.mean(0)) / x.std(0)
    score = centred @ rng.standard_normal((width, 3)) / np.sqrt(width)
    return x, (score + rng.normal(0, 0.5, score.shape) > (0, 0.5, -1)).astype(np.float32)


@pytest.mark.parametrize("ridge", [0.03, 0.1, 1.0])
def test_a_probe_is_scikit_learn_s_logistic_regression_with_c_one_over_ridge(ridge):
    x, y = problem()
    seen, new = x[:60], x[60:]
    found = fit_probe(seen, y[:60], ridge).logits(new)
    mean, spread = seen.mean(0), seen.std(0)
    scale = 1 / ((spread + 1e-3 * seen.std()) * np.sqrt(seen.shape[1]))
    for a in range(3):
        theirs = LogisticRegression(C=1 / ridge, tol=1e-8, max_iter=10_000)
        theirs.fit((seen - mean) * scale, y[:60, a])
        expected = theirs.decision_function((new - mean) * scale)
        np.testing.assert_allclose(found[:, a], expected, atol=0.01 * np.abs(expected).max())


def test_a_probe_learns_from_probabilities_as_from_repeated_faces():
    """A face of label 0.75 pulls like three that have the attribute and one that has not."""
    x, y = problem(20, 50)
    x, y = x[:20], 0.25 + 0.5 * y[:20]
    soft = fit_probe(x, y, 0.1).logits(x)
    often = np.repeat(x, 4, axis=0)
    hard = np.concatenate([[[(j < 4 * value) for value in row] for j in range(4)] for row in y]).astype(np.float32)
    np.testing.assert_allclose(fit_probe(often, hard, 0.4).logits(x), soft, atol=0.02)


def test_an_attribute_that_nobody_has_is_improbable_and_no_error():
    x, y = problem()
    y[:, 1] = 0
    assert (fit_probe(x[:60], y[:60]).logits(x[60:])[:, 1] < -3).all()


def test_out_of_fold_never_fits_on_the_subject_it_judges(labelled):
    person = np.unique(labelled.subject, return_inverse=True)[1].astype(np.float32)[:, None]
    judged = []

    def fit(x: np.ndarray, y: np.ndarray) -> Any:
        assert len(x) == len(y)
        known = set(x[:, 0].tolist())

        def logits(new: np.ndarray) -> np.ndarray:
            assert known.isdisjoint(new[:, 0].tolist())
            assert len(known) + len(set(new[:, 0].tolist())) == 40
            judged.extend(new[:, 0].tolist())
            return np.repeat(new, len(ATTRIBUTES), axis=1)

        return logits

    found = out_of_fold(labelled, person, fit)
    np.testing.assert_array_equal(found, np.repeat(person, len(ATTRIBUTES), axis=1))
    assert sorted(judged) == sorted(person[:, 0].tolist())


def test_calibration_finds_the_temperature_by_which_logits_were_too_large():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, (20_000, 3)).astype(np.float32)
    labels = (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(np.float32)
    temperature = np.array([0.5, 1, 3], np.float32)
    found = calibrate(true * temperature, labels, labels.mean(0))
    np.testing.assert_allclose(found.temperature, temperature, rtol=0.05)
    np.testing.assert_allclose(found.prior, labels.mean(0))
    assert found.temperature.dtype == found.prior.dtype == found.threshold.dtype == np.float32


def test_a_prior_of_nobody_or_everybody_still_has_a_threshold():
    found = calibrate(np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32), np.array([0.0, 1.0]))
    assert ((found.threshold > 0) & (found.threshold < 1)).all()


def test_a_probe_s_file_is_a_predictor_that_says_what_the_probe_says(labelled, tmp_path, model_folder):
    file = tmp_path / "probe.safetensors"
    train_probe("arcface", labelled, file, model_folder)
    predictor = Predictor.load(file, model_folder)
    features = recipes.descriptors(predictor.descriptor, labelled)
    logits = fit_probe(features, labelled.labels).logits(features)
    expected = 1 / (1 + np.exp(-logits / predictor.calibration.temperature))
    np.testing.assert_allclose(predictor.predict(labelled.pixels()), expected, atol=5e-3)
    np.testing.assert_allclose(predictor.calibration.prior, labelled.labels.mean(0), atol=1e-6)
    said = about(file)
    assert said["backbone"] == "arcface-mobilefacenet"
    assert said["splits"] == sorted(set(labelled.splits.tolist()))
    assert (said["faces"], said["subjects"]) == (80, 40)
    assert file.stat().st_mode & 0o444 == 0o444 & ~_umask()


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


# -------------------------------------------------------------------------------------------------------- GoogLeNet


def pictures(count: int = 4, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_augmentation_keeps_shape_and_range_and_changes_every_picture():
    x = pictures()
    found = augment(x, training.generator(0, 5))
    assert found.shape == x.shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert ((found - x).abs().mean((1, 2, 3)) > 0.01).all()


def test_augmentation_is_a_function_of_its_generator():
    x = pictures()
    once, again, other = (augment(x, training.generator(seed, 5)) for seed in (0, 0, 1))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert not torch.equal(once, augment(x, training.generator(0, 6)))


def test_augmentation_mirrors_half_of_the_faces_and_moves_none_out_of_sight():
    """A bright spot left of the middle is found again: mirrored or not, and within reach of turn, scale and shift."""
    x = torch.zeros(400, 3, 64, 64)
    x[:, :, 30:34, 14:18] = 1
    found = augment(x, training.generator(2, 0)).mean(1)
    at = found.flatten(1).argmax(1)
    column, row = at % 64, at // 64
    mirrored = (column > 32).float().mean()
    assert 0.4 < mirrored < 0.6
    assert (row - 32).abs().max() <= 64 * (0.06 + 0.045 * 1.12) + 3
    distance = (column - 31.5).abs()
    assert distance.min() >= 16 * 0.85 - 64 * 0.06 - 3
    assert distance.max() <= 16 * 1.2 + 64 * 0.06 + 3


def test_a_preset_says_how_often_a_checkpoint_is_written_and_every_overrules_it(labelled):
    def order(preset: str, every: int | None = None) -> Order:
        return Order(Path("data"), "googlenet", Path("g.safetensors"), preset=preset, every=every)

    assert [order(p).settings.every for p in ("paper", "adamw", "smoke")] == [100, 100, 2]
    assert order("smoke", 5).settings.every == 5
    often = GoogLeNetTask(labelled, None, replace(SMOKE, every=1))
    assert often.identity == GoogLeNetTask(labelled, None, SMOKE).identity


@pytest.mark.parametrize("count,warned", [(19, True), (20, False)])
def test_a_probe_of_few_people_is_trained_with_a_warning(labelled, tmp_path, monkeypatch, count, warned):
    labelled.take(np.arange(2 * count)).write(tmp_path / "faces.parquet")
    monkeypatch.setattr(recipes, "train_probe", lambda *_: None)
    said: list[str] = []
    recipes.run(Order(tmp_path / "faces.parquet", "arcface", tmp_path / "a.safetensors", split="all"), said.append)
    assert any(line.startswith("warning: 19 people are few to learn from") for line in said) == warned


def test_the_paper_s_preset_is_the_paper_s():
    paper = PRESETS["paper"]
    assert (paper.optimiser, paper.rate, paper.decay, paper.momentum) == ("sgd", 1e-5, 2e-4, 0.9)
    assert (paper.batch, paper.steps, paper.side) == (64, 600_000, 128)


def test_the_paper_s_rate_decays_by_a_square_root_and_its_optimiser_is_sgd_with_momentum(labelled):
    task = GoogLeNetTask(labelled, None, replace(PRESETS["paper"], steps=100, side=64))
    assert [task.rate(n) / 1e-5 for n in (0, 75, 99)] == pytest.approx([1, 0.5, 0.1])
    (group,) = task.optimiser.param_groups
    assert isinstance(task.optimiser, torch.optim.SGD)
    assert (group["momentum"], group["weight_decay"]) == (0.9, 2e-4)


def test_a_fold_of_subjects_is_held_out_of_googlenet_s_training(labelled):
    """Also where the further faces show them."""
    left_out = labelled.folds(recipes.FOLDS) == recipes.VALIDATION_FOLD
    more = np.concatenate([np.flatnonzero(left_out)[:2], np.flatnonzero(~left_out)[:3]])
    task = GoogLeNetTask(labelled, labelled.take(more), SMOKE)
    held = set(task.held.subject.tolist())
    assert 0.1 < len(task.held) / len(labelled) < 0.3
    assert len(task.pixels) == len(labelled) - len(task.held) + 3
    assert held.isdisjoint(labelled.take(labelled.folds(recipes.FOLDS) != recipes.VALIDATION_FOLD).subject.tolist())


def test_a_training_is_known_by_its_settings_faces_and_labels(labelled):
    other = Faces(labelled.name, labelled.subject, labelled.crop, 1 - labelled.labels)
    tasks = [
        GoogLeNetTask(labelled, None, SMOKE),
        GoogLeNetTask(labelled, None, replace(SMOKE, rate=2e-3)),
        GoogLeNetTask(labelled, None, SMOKE, seed=1),
        GoogLeNetTask(other, None, SMOKE),
        GoogLeNetTask(labelled, other, SMOKE),
        GoogLeNetTask(labelled, labelled, SMOKE),
    ]
    assert len({task.identity for task in tasks}) == len(tasks)
    assert GoogLeNetTask(labelled, None, SMOKE).identity == tasks[0].identity


@pytest.fixture(scope="module")
def googlenet(labelled: Faces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GoogLeNet of two steps at 64 px, on the people of one split."""
    faces = labelled.of("steer", "judge")
    task = GoogLeNetTask(faces, None, replace(SMOKE, steps=2))
    for step in range(2):
        task.step(step)
    file = tmp_path_factory.mktemp("googlenet") / "small.safetensors"
    finish_googlenet(task, faces, file, Taught(splits=("test",), unlabelled_splits=("judge",), unlabelled_crops=("c",)))
    small = Predictor.load(file)
    logits = task.logits(faces) / small.calibration.temperature
    np.testing.assert_allclose(small.predict(faces.pixels()), 1 / (1 + np.exp(-logits)), atol=0.02)
    return file


def test_googlenet_s_file_answers_at_the_size_it_was_trained_at(googlenet):
    said = about(googlenet)
    assert (said["backbone"], said["side"]) == ("googlenet", 64)
    assert googlenet.stat().st_size < 13e6


@pytest.mark.parametrize("kind", ["per-attribute", "multi-output"])
def test_forests_take_over_the_splits_that_their_base_was_trained_on(googlenet, labelled, kind):
    file = googlenet.with_name("forest.safetensors")
    train_forest(googlenet, labelled.of("steer", "judge"), file, kind, trees=3, leaves=8)
    said = about(file)
    assert said["splits"] == ["judge", "steer", "test"]
    assert (said["unlabelled_splits"], said["unlabelled_crops"]) == (["judge"], ["c"])
    assert (said["backbone"], said["backbone_sha256"]) == ("small", models.sha256(googlenet))
    found = Predictor.load(file).predict(labelled.pixels()[:4])
    assert found.shape == (4, 40)
    assert ((found > 0) & (found < 1)).all()


def test_forests_lie_beside_a_base_that_is_not_shipped(googlenet, labelled, tmp_path):
    with pytest.raises(ConfigError, match="must lie beside"):
        train_forest(googlenet, labelled, tmp_path / "forest.safetensors", trees=1)


def test_forests_on_other_people_than_their_base_s_are_refused(googlenet, labelled):
    """Their folds would be others, and the held-out people the base's own."""
    both = labelled.of("steer", "judge")
    for faces in (labelled, labelled.of("judge"), both.take(both.subject != both.subject[0]), both.take(np.arange(9))):
        with pytest.raises(
            ConfigError, match=r"--base .* was trained on \d+ faces of \d+ people .* train a base on these$"
        ):
            train_forest(googlenet, faces, googlenet.with_name("other.safetensors"), trees=1)
    assert not googlenet.with_name("other.safetensors").exists()


# ------------------------------------------------------------------------------------------------------------ command


@pytest.fixture(scope="module")
def packed(labelled: Faces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("packed") / "faces.parquet"
    labelled.write(file)
    return file


@pytest.mark.parametrize(
    "change,said",
    [
        ({"kind": "resnet"}, "--kind resnet: is none of arcface, bisenet"),
        ({"split": "train"}, "--split train: is none of all, steer, judge, test"),
        ({"preset": "fast"}, "--preset fast: is none of paper, adamw, smoke"),
        ({"forest": "one"}, "--forest one: is none of per-attribute, multi-output"),
        ({"output": Path("a.pkl")}, "--output a.pkl: must end in .safetensors"),
        ({"workers": 3}, "--workers 3: cannot share a batch of 64 faces equally"),
    ],
)
def test_a_wrong_flag_is_one_sentence_before_any_work(change, said):
    with pytest.raises(ConfigError, match=said):
        Order(**{"data": Path("nowhere"), "kind": "googlenet", "output": Path("a.safetensors"), **change})


def test_too_few_people_are_one_sentence(labelled, tmp_path):
    labelled.take(np.arange(6)).write(tmp_path / "few.parquet")
    order = Order(tmp_path / "few.parquet", "arcface", tmp_path / "a.safetensors", split="all")
    with pytest.raises(ConfigError, match=r"6 labelled faces of 3 people .* 5 people are the least"):
        recipes.run(order, lambda line: None)


def test_the_command_trains_googlenet_resumes_and_writes_a_predictor(packed, labelled, tmp_path):
    """Faces of a second folder are labelled by a teacher; the data's other splits and held-out people are left out."""
    unlabelled = Faces(
        labelled.name,
        np.array([*labelled.subject[:40], *(f"x{i}" for i in range(40))]),
        labelled.crop,
        np.full_like(labelled.labels, np.nan),
    )
    unlabelled.write(tmp_path / "more.parquet")
    teacher = tmp_path / "teacher.safetensors"
    task = GoogLeNetTask(labelled.of("judge"), None, SMOKE)
    finish_googlenet(task, labelled.of("judge"), teacher)
    output = tmp_path / "out" / "g.safetensors"
    arguments = ["train", "attributes", "--data", str(packed), "--kind", "googlenet", "--output", str(output)]
    arguments += ["--preset", "smoke", "--steps", "2", "--every", "1", "--cache", str(tmp_path / "cache")]
    arguments += ["--unlabelled", str(tmp_path / "more.parquet"), "--teacher", str(teacher)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.stderr
    steer = labelled.of("steer")
    seen = steer.take(steer.folds(recipes.FOLDS) != recipes.VALIDATION_FOLD)
    allowed = set(seen.subject.tolist()) | {f"x{i}" for i in range(40)}
    assert len(set(unlabelled.subject[:40].tolist()) & set(seen.subject.tolist())) > 0
    assert set(unlabelled.subject[:40].tolist()) & (set(steer.subject.tolist()) - set(seen.subject.tolist()))
    count = int(np.isin(unlabelled.subject, list(allowed)).sum())
    assert count < 80
    assert f"teacher labels {count} faces" in result.stderr
    assert about(output)["splits"] == ["judge", "steer"]
    used = {split(name) for name in set(unlabelled.subject.tolist()) & allowed}
    assert about(output)["unlabelled_splits"] == sorted(used) == ["judge", "steer", "test"]
    assert about(output)["unlabelled_crops"] == [unlabelled.crops_sha256]
    assert not any(name in json.dumps(about(output)) for name in ("p01", "x39"))
    first = output.read_bytes()
    output.unlink()
    result = CliRunner().invoke(cli.app, arguments)
    assert "resuming at step 2 of 2" in result.stderr
    assert "labels" not in result.stderr
    assert output.read_bytes() == first
    log = [json.loads(line) for line in output.with_suffix(".work").joinpath("log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2]
    assert {"loss", "held_loss", "held_accuracy"} <= set(log[0])


def test_a_checkpoint_of_other_settings_stops_the_command_with_one_sentence(packed, tmp_path):
    arguments = ["train", "attributes", "--data", str(packed), "--kind", "googlenet", "--preset", "smoke"]
    arguments += ["--output", str(tmp_path / "g.safetensors")]
    assert CliRunner().invoke(cli.app, [*arguments, "--steps", "1"]).exit_code == 0
    result = CliRunner().invoke(cli.app, [*arguments, "--steps", "2"])
    assert result.exit_code == 2
    assert "holds a training of other data or settings; give another --work folder" in result.stderr
