"""Claims of stages/attributes.py: calibrated probabilities from weights that hold no code, one row at a time."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from facecrowd.stages import models
from facecrowd.stages.attributes import (
    ATTRIBUTES,
    BACKBONES,
    JUDGE,
    SHIPPED,
    STEER,
    Attributes,
    Calibration,
    Card,
    Descriptor,
    Predictor,
    PredictorError,
    locate,
    pictures,
    shared,
)
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode
from facecrowd.stages.forests import fit_forests
from facecrowd.stages.networks.googlenet import GoogLeNet

pytestmark = pytest.mark.usefixtures("one_thread")

Write = Callable[..., Path]

PEOPLE = Path(__file__).resolve().parents[2] / "jobs" / "faces"
NEEDS = {STEER: "arcface-mobilefacenet", JUDGE: "bisenet"}
FOLDER = Path(str(resources.files("facecrowd.stages.weights")))
WEIGHTS = [FOLDER / f"{name}.safetensors" for name in SHIPPED]
BUDGET = 15e6
"""Bytes of one file: GoogLeNet's 6 million weights take 12 MB in 16 bits, the forests are to stay below 8 MB."""


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    """Six people who do not exist: (160, 160, 3) uint8 RGB."""
    files = sorted(PEOPLE.glob("p*/1.jpg"))[:6]
    return [cv2.resize(decode(file.read_bytes()), (160, 160), interpolation=cv2.INTER_AREA) for file in files]


@pytest.fixture(scope="module")
def googlenet(draw_predictor: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_predictor(tmp_path_factory.mktemp("weights") / "drawn.safetensors", splits=["steer"])


@pytest.fixture(scope="module")
def forest(googlenet: Path, write_predictor: Write) -> Path:
    """Forests on it, beside it."""
    rng = np.random.default_rng(0)
    features = Predictor.load(googlenet).descriptor(torch.rand(60, 3, 64, 64)).numpy()
    grown = fit_forests(features, rng.random((60, 40)) < 0.4, trees=5, leaves=8)
    tensors = {f"forests.{k}": v for k, v in grown.state().items()}
    about = {"backbone": "drawn", "backbone_sha256": models.sha256(googlenet)}
    return write_predictor(googlenet.with_name("forest.safetensors"), tensors, splits=["steer"], **about)


@pytest.fixture(params=[STEER, JUDGE, "googlenet", "forest"])
def predictor(request: pytest.FixtureRequest, weights: Callable[[str], Path]) -> Predictor:
    if request.param in NEEDS:
        return Predictor.load(request.param, weights(NEEDS[request.param]).parent)
    return Predictor.load(request.getfixturevalue(request.param))


# ------------------------------------------------------------------------------------------------------- predicting


def test_probabilities_of_all_40_lie_in_0_to_1_and_are_the_same_every_time(predictor, crops):
    found = predictor.predict(crops)
    assert found.shape == (6, 40)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.std(axis=0).max() > 0.005
    np.testing.assert_array_equal(predictor.predict(crops), found)
    assert predictor.predict([]).shape == (0, 40)


def test_a_face_is_judged_alike_alone_and_among_others(predictor, crops):
    alone = np.concatenate([predictor.predict([crop]) for crop in crops])
    np.testing.assert_allclose(predictor.predict(crops, at_once=4), alone, atol=1e-3)


def test_predict_is_the_sigmoid_of_the_calibrated_logits(predictor, crops):
    x = pictures(crops, predictor.descriptor.size)
    logits = predictor.logits(x).detach()
    np.testing.assert_allclose(predictor.predict(crops), torch.sigmoid(logits).numpy(), atol=1e-6)
    raw = predictor.score(predictor.descriptor(x)).detach().numpy()
    np.testing.assert_allclose(logits.numpy() * predictor.calibration.temperature, raw, atol=1e-4, rtol=1e-4)


def test_a_gradient_passes_from_a_logit_to_the_pixels_unless_forests_answer(predictor, crops, forest):
    x = pictures(crops[:1], 96).requires_grad_()
    logits = predictor.logits(x)
    assert logits.requires_grad == (predictor.name != forest.stem)
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(logits[0, 20], x)
        assert gradient.abs().max() > 0


def test_the_shipped_predictor_sees_that_the_demo_s_people_smile_or_do_not(weights):
    """Mouths of the same person: the demo's table says which pictures were made with a wide smile."""
    rows = [line.split(",") for line in (PEOPLE / "attributes.csv").read_text().splitlines()]
    smile, image = rows[0].index("wide_smile"), 0
    wide, narrow = ([PEOPLE / r[image] for r in rows[1:] if r[smile] in values] for values in (("1",), ("0",)))
    predictor = Predictor.load(STEER, weights(NEEDS[STEER]).parent)
    means = [
        predictor.predict([decode(f.read_bytes())[64:448, 64:448] for f in files[:16]])[:, ATTRIBUTES.index("Smiling")]
        for files in (wide, narrow)
    ]
    assert means[0].mean() > means[1].mean() + 0.2


def test_bf16_changes_a_probability_by_less_than_three_hundredths(predictor, crops):
    with torch.autocast("cpu", torch.bfloat16):
        coarse = predictor.predict(crops)
    assert np.abs(coarse - predictor.predict(crops)).mean() < 0.03


# --------------------------------------------------------------------------------------------------- thresholds


def test_the_threshold_is_half_way_in_log_odds_between_one_half_and_the_prior():
    prior = np.array([0.02, 0.3, 0.5, 0.9], np.float32)
    found = Calibration(np.ones(4, np.float32), prior).threshold
    expected = torch.sigmoid(torch.logit(torch.from_numpy(prior)) / 2).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert ((found > np.minimum(prior, 0.5)) == (prior != 0.5)).all()
    assert (found <= np.maximum(prior, 0.5)).all()


def test_values_are_true_from_the_threshold_on_and_unknown_within_the_margin(googlenet):
    """The margin is a share of the way to 0 below the threshold and to 1 above it."""
    predictor = Predictor.load(googlenet)
    threshold = predictor.calibration.threshold
    assert threshold.max() - threshold.min() > 0.3
    ways = np.array([-0.26, -0.24, 0.0, 0.24, 0.26])[:, None]
    probabilities = threshold + np.where(ways < 0, threshold, 1 - threshold) * ways
    probabilities[2] = threshold
    assert (predictor.values(probabilities) == np.array([0, 0, 1, 1, 1])[:, None]).all()
    assert (predictor.values(probabilities, 0.25) == np.array([0, -1, -1, -1, 1])[:, None]).all()
    assert predictor.values(probabilities, 0.25).dtype == np.int8
    assert (predictor.values(np.full((1, 40), np.nan)) == -1).all()


@pytest.mark.parametrize("margin", [0.0, 0.5, 0.99, np.nextafter(1, 0)])
def test_no_margin_makes_a_value_of_an_attribute_always_unknown(margin):
    prior = np.linspace(0.001, 0.999, 40).astype(np.float32)
    calibration = Calibration(np.ones(40, np.float32), prior)
    assert (calibration.values(np.zeros((1, 40), np.float32), margin) == 0).all()
    assert (calibration.values(np.ones((1, 40), np.float32), margin) == 1).all()


# ------------------------------------------------------------------------------------------------------------- stage


def test_a_bad_row_gets_a_status_and_costs_no_other(googlenet, crops):
    cells: list[Any] = [crops[0], encode(crops[1])[:200], None, crops[2][:, :80], crops[3].astype(np.float32), crops[1]]
    batch = {"crop": [*cells, crops[2]], "status": np.array(["ok"] * 6 + ["no_face"], dtype=object)}
    out = Attributes(googlenet)(batch)
    assert list(out["status"]) == ["ok", "unreadable", "failed", "failed", "failed", "ok", "no_face"]
    assert all(reason.startswith("attributes: ") for reason in out["reason"][2:5])
    assert out["reason"][1]
    assert np.isnan(out["attributes"][[1, 2, 3, 4, 6]]).all()
    expected = Predictor.load(googlenet).predict([crops[0], crops[1]])
    np.testing.assert_allclose(out["attributes"][[0, 5]], expected, atol=1e-4)
    assert list(batch["status"]) == ["ok"] * 6 + ["no_face"]


def test_bytes_and_pixels_give_the_same_answer(googlenet, crops):
    files = [encode(crop) for crop in crops]
    stage = Attributes(googlenet, column="image", at_once=4)
    stage.setup()
    bytes_, pixels = (
        stage({"image": cells, "status": ["ok"] * 6}) for cells in (files, [decode(file) for file in files])
    )
    np.testing.assert_array_equal(bytes_["attributes"], pixels["attributes"])
    assert bytes_["attributes"].shape == (6, 40)
    assert bytes_["attributes"].dtype == np.float32


def test_an_empty_batch_stays_empty(googlenet):
    out = Attributes(googlenet)({"crop": [], "status": np.array([], dtype=object)})
    assert out["attributes"].shape == (0, 40)


# ------------------------------------------------------------------------------------------------------------- files


def test_predictors_load_without_pickle(monkeypatch, googlenet, forest, weights):
    """MobileFaceNet's published file is ONNX; BiSeNet's is a torch file, read as tensors only."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pickle was loaded")

    folder = weights(NEEDS[STEER]).parent
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    monkeypatch.setattr(torch, "load", never)
    for name in (STEER, googlenet, forest):
        assert Predictor.load(name, folder).attributes == ATTRIBUTES


def test_the_name_and_hash_say_which_weights_spoke(googlenet, weights):
    found = Predictor.load(googlenet)
    assert (found.name, found.sha256) == ("drawn", models.sha256(googlenet))
    assert Predictor.load(STEER, weights(NEEDS[STEER]).parent).sha256 == models.sha256(locate(STEER))
    assert not any(p.requires_grad for p in found.parameters())


def test_googlenet_runs_at_the_size_it_was_trained_at(googlenet):
    assert Predictor.load(googlenet).descriptor.size == 64


def test_a_descriptor_is_the_4_by_4_means_of_the_maps(weights):
    for name, width in (("arcface-mobilefacenet", 896 * 16), ("bisenet", 896 * 16)):
        assert name in BACKBONES
        descriptor = Descriptor.load(name, weights(name).parent)
        x = torch.rand(1, 3, descriptor.size, descriptor.size, generator=torch.Generator().manual_seed(0))
        found = descriptor(x)
        assert found.shape == (1, width)
        finest = descriptor.backbone.maps(x)[0]
        side = finest.shape[-1] // 4
        assert found[0, 0].item() == pytest.approx(finest[0, 0, :side, :side].mean().item(), rel=1e-4)


def broken(tmp_path: Path, googlenet: Path, write_predictor: Write, what: str) -> Path:
    file, tensors = tmp_path / "broken.safetensors", load_file(str(googlenet))
    about: dict[str, Any] = {"backbone": "googlenet"}
    if what == "text":
        file.write_text("no weights")
        return file
    if what == "pickle":
        torch.save(GoogLeNet(1).state_dict(), file)
        return file
    if what == "another model":
        save_file({"a": torch.zeros(1)}, str(file))
        return file
    if what == "a backbone nobody knows":
        about = {"backbone": "resnet"}
    elif what == "other attributes":
        about["attributes"] = ["Male"]
    elif what == "no temperature":
        return _without(file, tensors, "temperature", about)
    elif what == "metadata that is a list":
        save_file(tensors, str(file), metadata={"facecrowd": json.dumps([about])})
        return file
    elif what == "no backbone":
        del about["backbone"]
    elif what == "a backbone that is a list":
        about["backbone"] = ["googlenet"]
    elif what == "no splits":
        about["splits"] = None
    elif what == "side 0":
        about["side"] = 0
    elif what in BAD_NUMBERS:
        name, value = BAD_NUMBERS[what]
        array = tensors.get(name, torch.full((40,), 0.5)).clone()
        array.view(-1)[3] = value
        tensors[name] = array
    elif what == "a missing layer":
        del tensors["googlenet.body.0.0.weight"]
    elif what == "39 outputs":
        for end in ("weight", "bias"):
            tensors[f"googlenet.head.1.{end}"] = tensors[f"googlenet.head.1.{end}"][:39].contiguous()
    return write_predictor(file, tensors, **about)


BAD_NUMBERS = {
    "prior 0": ("prior", 0.0),
    "prior 1": ("prior", 1.0),
    "prior NaN": ("prior", float("nan")),
    "temperature 0": ("temperature", 0.0),
    "temperature infinite": ("temperature", float("inf")),
    "temperature NaN": ("temperature", float("nan")),
    "a weight that is NaN": ("googlenet.head.1.bias", float("nan")),
}


def _without(file: Path, tensors: dict[str, torch.Tensor], name: str, about: dict[str, Any]) -> Path:
    said = {"kind": "attribute predictor", "attributes": ATTRIBUTES, **about}
    left = {k: v for k, v in tensors.items() if k != name}
    save_file(left, str(file), metadata={"facecrowd": json.dumps(said)})
    return file


@pytest.mark.parametrize(
    "what",
    [
        "text",
        "pickle",
        "another model",
        "a backbone nobody knows",
        "other attributes",
        "no temperature",
        "metadata that is a list",
        "no backbone",
        "a backbone that is a list",
        "no splits",
        "side 0",
        *BAD_NUMBERS,
        "a missing layer",
        "39 outputs",
    ],
)
def test_a_file_that_is_no_predictor_fails_with_one_clear_sentence(tmp_path, googlenet, write_predictor, what):
    file = broken(tmp_path, googlenet, write_predictor, what)
    with pytest.raises(PredictorError, match=r"is no attribute predictor of this version .* facecrowd train attr") as e:
        Predictor.load(file)
    assert str(file) in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_is_read_without_the_backbone_and_says_what_the_predictor_says(name, monkeypatch):
    monkeypatch.setattr(models, "path", None)
    card = Card.read(name)
    assert (card.backbone, list(card.splits)) == (about(name)["backbone"], about(name)["splits"])
    assert card.sha256 == models.sha256(locate(name))
    assert (card.base is not None) == (name == "googlenet-forest")
    if card.base is not None:
        assert card.base.sha256 == card.backbone_sha256 == models.sha256(locate("attributes-googlenet"))


def test_a_name_that_is_none_and_weights_that_are_not_installed_are_told(monkeypatch, tmp_path):
    with pytest.raises(PredictorError, match=f"no attribute predictor is called nothing; there are: {STEER}"):
        Predictor.load("nothing")
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    with pytest.raises(PredictorError, match=f"{STEER} are not installed"):
        Predictor.load(STEER)


def test_forests_go_only_with_the_weights_whose_features_they_were_grown_on(
    forest, googlenet, write_predictor, tmp_path
):
    (tmp_path / "forest.safetensors").write_bytes(forest.read_bytes())
    with pytest.raises(PredictorError, match="drawn"):
        Predictor.load(tmp_path / "forest.safetensors")
    tensors = load_file(str(googlenet))
    tensors["googlenet.head.1.bias"] += 1
    write_predictor(tmp_path / "drawn.safetensors", tensors, backbone="googlenet")
    with pytest.raises(PredictorError, match="other weights of drawn"):
        Predictor.load(tmp_path / "forest.safetensors")


# ----------------------------------------------------------------------------------------------------- what is shipped


def about(name: str) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(str(locate(name)), framework="np") as file:
        found: dict[str, Any] = json.loads(file.metadata()["facecrowd"])
        return found


def test_steer_and_judge_share_neither_backbone_nor_split_and_none_saw_the_test():
    steer, judge = about(STEER), about(JUDGE)
    assert steer["backbone"] != judge["backbone"]
    assert steer["backbone_sha256"] != judge["backbone_sha256"]
    assert set(steer["splits"]).isdisjoint(judge["splits"])
    for file in WEIGHTS:
        assert "test" not in about(file.stem)["splits"], file


@pytest.mark.parametrize("steer, judge", itertools.combinations(SHIPPED, 2))
def test_of_what_is_shipped_only_the_judge_is_independent_of_the_others(steer, judge):
    for one, other in ((steer, judge), (judge, steer)):
        found = shared(Card.read(one), Card.read(other))
        assert (found == "") == (JUDGE in (one, other))
    if (steer, judge) == ("attributes-googlenet", "googlenet-forest"):
        assert found == "both build on attributes-googlenet"


def test_a_backbone_a_base_or_people_in_common_are_named(googlenet, forest, write_predictor, tmp_path):
    def card(name: str, tensors: dict[str, torch.Tensor], backbone: str, *splits: str) -> Card:
        return Card.read(write_predictor(tmp_path / name, tensors, backbone=backbone, splits=splits))

    tensors = load_file(str(googlenet))
    theirs = card("g.safetensors", tensors, "googlenet", "judge")
    assert shared(Card.read(googlenet), theirs) == ""
    assert shared(Card.read(forest), Card.read(googlenet)) == "both build on drawn"
    same = card("s.safetensors", tensors, "googlenet", "judge", "steer")
    assert shared(Card.read(googlenet), same) == "both learned from people of steer"
    head = card("h.safetensors", {}, "bisenet", "other")
    assert shared(head, Card.read(JUDGE)) == "both build on bisenet"


def test_what_is_shipped_is_there_and_keeps_to_its_budget():
    for file in WEIGHTS:
        assert file.stat().st_size < (8e6 if "forest" in file.stem else BUDGET), file


def test_the_metadata_of_what_is_shipped_names_no_person_path_or_place():
    for file in WEIGHTS:
        text = json.dumps({k: v for k, v in about(file.stem).items() if k != "attributes"})
        assert "/" not in text
        assert "\\" not in text
        assert set(about(file.stem)) <= {
            *("kind", "attributes", "splits", "faces", "subjects", "note"),
            *("backbone", "backbone_sha256", "side", "unlabelled_splits", "unlabelled_crops"),
        }


def test_the_card_of_a_predictor_says_whom_it_learned_from():
    for file in WEIGHTS:
        said, card = about(file.stem), " ".join(file.with_suffix(".md").read_text(encoding="utf-8").split())
        learned = f"learned from **{'+'.join(said['splits'])}**: {said['faces']:,} faces of {said['subjects']} people"
        assert learned in card, file.stem
        assert "facecrowd train attributes" in card


def test_the_shipped_forests_go_with_the_shipped_googlenet():
    assert Predictor.load("googlenet-forest").predict([np.zeros((64, 64, 3), np.uint8)]).shape == (1, 40)


def test_backbones_of_what_is_shipped_are_the_registry_s(weights):
    for name, backbone in NEEDS.items():
        assert about(name)["backbone"] == backbone
        assert about(name)["backbone_sha256"] == models.sha256(weights(backbone))
