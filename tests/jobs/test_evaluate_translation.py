"""Claims of jobs/evaluate_translation.py: figures that are known beforehand, with a translator that does nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from facecrowd.jobs import evaluate_translation as evaluation
from facecrowd.jobs.evaluate_translation import Order
from facecrowd.jobs.labelled import Faces
from facecrowd.jobs.renditions import Networks
from facecrowd.jobs.translations import Makers, planned
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.stages.attributes import ATTRIBUTES
from facecrowd.stages.networks import stargan
from facecrowd.stages.regions import PARTS

pytestmark = pytest.mark.usefixtures("model_folder")


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights that have learned nothing, and so leave every face as it is."""
    made = stargan.Generator(stargan.Shape(("Male", *PARTS.values()), 4, 32))
    file = tmp_path_factory.mktemp("weights") / "idle.safetensors"
    save_file(made.state_dict(), str(file), metadata=made.metadata())
    return str(file)


@pytest.fixture(scope="module")
def test_people(labelled: Faces) -> Faces:
    return labelled.of("test").take(np.arange(10))


@pytest.fixture
def order(idle: str, tmp_path: Path) -> Order:
    return Order(4, 4, 10, 0, (idle,), idle, recognisers=("sface",), inpaint=0, work=tmp_path)


@pytest.fixture
def makers(tmp_path: Path) -> Makers:
    return Makers(Networks(), tmp_path)


def nothing(line: str) -> None:
    pass


def test_a_translator_that_does_nothing_flips_nothing_and_moves_nothing(
    makers: Makers, test_people: Faces, order: Order
) -> None:
    for row in evaluation.flip_figures(makers, test_people, order, nothing):
        assert row["steer"] <= 0.25  # a file encoded once more may tip a face that lies on the threshold
        assert row["others"] < 0.05
        assert row["psnr"] > 30


def test_quality_is_measured_beside_the_baselines_and_the_papers_figures(
    makers: Makers, test_people: Faces, order: Order
) -> None:
    rows = {row["method"]: row for row in evaluation.quality_figures(makers, test_people, order, nothing)}
    assert set(evaluation.BASELINES) < set(rows)
    own = rows[f"planned, {order.translators[0]}"]
    assert own["psnr"]["mean"] > rows["blur"]["psnr"]["mean"]
    assert rows["blur"]["paper"] == (24.532, 0.8281, 0.8842)
    assert own["fid"] is None  # of four faces it says nothing


def test_faces_that_were_not_changed_verify_as_well_as_the_originals(
    makers: Makers, test_people: Faces, order: Order
) -> None:
    found = evaluation.parts_figures(makers, test_people, order, nothing)
    assert found["genuine_pairs"] >= 1
    assert found["impostor_pairs"] > found["genuine_pairs"]
    before, *after = (row["tar"]["sface"]["0.1"] for row in found["rows"])
    assert [row["parts"] for row in found["rows"]] == [0, 1, 2, 3, 4, "adaptive"]
    for row in after:
        assert row["low"] <= before["rate"] <= row["high"] or row["rate"] == pytest.approx(before["rate"], abs=0.2)


def test_a_plan_gives_all_of_a_class_the_same_attributes(makers: Makers, labelled: Faces) -> None:
    faces = labelled.take(np.arange(16))
    wanted = planned(makers, faces, k=4)
    assert wanted.shape == (16, len(ATTRIBUTES))
    assert len(np.unique(wanted, axis=0)) <= 2


def test_the_recogniser_of_the_identity_loss_is_no_judge_of_it(labelled: Faces, order: Order) -> None:
    with pytest.raises(ConfigError, match="identity loss"):
        evaluation.evaluate(Networks(), labelled, Order(recognisers=(evaluation.STEER,)), nothing)


def test_a_keeper_that_does_not_know_the_parts_is_refused(
    makers: Makers, test_people: Faces, order: Order, tmp_path: Path
) -> None:
    other = stargan.Generator(stargan.Shape(("Male",), 4, 32))
    file = tmp_path / "other.safetensors"
    save_file(other.state_dict(), str(file), metadata=other.metadata())
    with pytest.raises(ConfigError, match="translates no Big_Lips"):
        evaluation.parts_figures(makers, test_people, replace(order, keeper=str(file)), nothing)


def test_without_test_people_nothing_is_measured(labelled: Faces, order: Order) -> None:
    with pytest.raises(InputError, match="test subject"):
        evaluation.evaluate(Networks(), labelled.of("steer"), order, nothing)
