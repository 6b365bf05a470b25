"""Claims of jobs/evaluate_perturbation.py: figures that are known beforehand, with recognisers of one matrix."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from facecrowd.jobs import evaluate_perturbation as evaluation
from facecrowd.jobs.evaluate_perturbation import FILES, RATES, Grid, Judges, Makers, Order, Sample
from facecrowd.jobs.labelled import Faces
from facecrowd.jobs.renditions import KEY
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.stages import tipim
from facecrowd.stages.encode import encode
from facecrowd.stages.universal import Perturbation

pytestmark = pytest.mark.usefixtures("one_thread")


class Matrix:
    """A recogniser by one matrix, as good with a gradient as without."""

    width = 32

    def __init__(self, name: str, seed: int, differentiable: bool = True) -> None:
        self.name, self.sha256, self.differentiable = name, name, differentiable
        self.weights = torch.randn(3 * 14 * 14, self.width, generator=torch.Generator().manual_seed(seed))

    def embed(self, faces: Tensor) -> Tensor:
        return F.normalize((F.adaptive_avg_pool2d(faces, 14).flatten(1) - 0.4) @ self.weights)


@pytest.fixture(scope="module")
def makers(networks: Any, order: Order) -> Makers:
    own = copy.copy(networks)
    white, black = Matrix("white", 0), Matrix("black", 1, differentiable=False)
    own.recognisers = {"white": white, "black": black}
    found = Makers(own, order.work)
    found.surrogates = {"white": white}
    return found


GRID = Grid(
    6,
    10,
    8,
    (0.0, 0.4),
    ("white",),
    targets=3,
    baselines=("single", "advnoise"),
    counts=(1, 3),
    curve=4,
    sample=Sample(6, (8.0,), 2, (8.0,), traits=False),
    speed=(1, 2),
    speed_steps=1,
)


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Order:
    return Order(GRID, recognisers=("white", "black"), work=tmp_path_factory.mktemp("work"))


def nothing(line: str) -> None:
    pass


def judges(makers: Makers, faces: Faces, order: Order) -> Judges:
    return Judges(makers, evaluation.protocol(makers, faces, order), order, nothing)


# -------------------------------------------------------------------------------------------------------------- ranks


def towards(*cosines: float) -> np.ndarray:
    """Unit vectors in the plane with these cosines to (1, 0)."""
    return np.array([(c, np.sqrt(1 - c * c)) for c in cosines], np.float32)


def one(
    gallery: Sequence[float], own: Sequence[bool], targets: Sequence[float], counted: Sequence[bool]
) -> list[float]:
    found = evaluation.successes(
        towards(1.0), towards(*gallery), np.array([own]), towards(*targets), np.array([counted])
    )
    return [float(found[rate][0]) for rate in RATES]


def test_a_target_that_is_nearest_of_all_pictures_is_rank_1_targeted_and_hides_the_person() -> None:
    assert one([0.8, 0.7], [True, False], [0.9], [True]) == [1, 1, 1, 0]


def test_a_person_who_is_still_nearest_is_not_hidden_though_a_target_comes_second() -> None:
    assert one([0.9, 0.7], [True, False], [0.8], [True]) == [0, 1, 0, 0]


def test_pictures_compete_and_not_people() -> None:
    others = [0.95, 0.94, 0.93, 0.92]
    assert one([*others, 0.91, 0.5], [False] * 4 + [False, True], [0.9], [True]) == [0, 0, 1, 1]
    assert one([*others, 0.5], [False] * 4 + [True], [0.9], [True]) == [0, 1, 1, 1]


def test_a_target_that_the_probe_may_not_become_counts_as_anybody_else() -> None:
    assert one([0.5], [True], [0.9, 0.8], [False, True]) == [0, 1, 1, 0]


def test_ties_count_against_the_mask() -> None:
    assert one([0.9, 0.9], [True, False], [0.9], [True]) == [0, 1, 0, 0]


def test_rates_are_those_of_sorting_the_gallery() -> None:
    rng = np.random.default_rng(0)

    def unit(*shape: int) -> np.ndarray:
        x = rng.standard_normal(shape).astype(np.float32)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    probe, gallery, targets = unit(40, 4), unit(30, 4), unit(8, 4)
    own, counted = rng.random((40, 30)) < 0.1, rng.random((40, 8)) < 0.5
    own[:, 0], counted[:, 0] = True, True
    found = evaluation.successes(probe, gallery, own, targets, counted)
    for i in range(40):
        scores = np.concatenate([gallery @ probe[i], targets @ probe[i]])
        best = np.argsort(-scores)
        is_own, is_target = np.append(own[i], np.zeros(8, bool)), np.append(np.zeros(30, bool), counted[i])
        for n in (1, 5):
            assert found[f"rank_{n}_t"][i] == is_target[best[:n]].any()
            assert found[f"rank_{n}_ut"][i] == (not is_own[best[:n]].any())


# ----------------------------------------------------------------------------------------------------------- protocol


def test_each_protected_person_has_one_probe_and_their_other_faces_are_in_the_gallery(
    makers: Makers, labelled: Faces, order: Order
) -> None:
    setting = evaluation.protocol(makers, labelled, order)
    assert len(setting.probes) == len(set(setting.probes.subject.tolist())) == 6
    keys = [set(zip(f.subject.tolist(), f.name.tolist(), strict=True)) for f in (setting.probes, setting.gallery)]
    assert not keys[0] & keys[1]
    assert set(setting.probes.subject.tolist()) < set(setting.gallery.subject.tolist())
    assert setting.figures["others"] == 10
    assert setting.figures["gallery_of_others"] == 20  # all they have


def test_a_small_collection_protects_half_of_its_people(makers: Makers, labelled: Faces, order: Order) -> None:
    wide = replace(order, grid=replace(GRID, protected=500, others=500))
    found = evaluation.protocol(makers, labelled, wide).figures
    people = len(set(labelled.subject.tolist()))
    assert found["protected"] == people // 2
    assert found["others"] == people - people // 2


def test_people_as_targets_are_neither_protected_nor_others_and_their_own_picture_is_not_in_the_gallery(
    makers: Makers, labelled: Faces, order: Order
) -> None:
    setting = evaluation.protocol(makers, labelled, replace(order, targets="people"))
    whose = dict(zip(labelled.crop, labelled.subject.tolist(), strict=True))
    aims = [whose[crop] for crop in setting.targets.pictures]
    assert len(set(aims)) == 3
    assert not set(aims) & set(setting.gallery.subject.tolist())
    assert [whose[crop] for crop in setting.targets.gallery] == [aims[i] for i in setting.targets.of]
    assert not set(setting.targets.pictures) & set(setting.targets.gallery)


def test_generated_targets_are_in_the_gallery_by_other_pictures_of_the_same_latents(
    makers: Makers, labelled: Faces, order: Order
) -> None:
    targets = evaluation.protocol(makers, labelled, order).targets
    drawn = tipim.generated_targets(KEY, 3, makers.networks.generator, 256)
    assert targets.pictures == [encode(picture, 95) for picture in drawn]
    for number in range(3):
        own = makers.networks.render(evaluation.target_latent(makers.networks, number), 256)
        assert (own[0] * 255).round().byte().permute(1, 2, 0).numpy() == pytest.approx(drawn[number], abs=1)
    assert not set(targets.pictures) & set(targets.gallery)
    assert targets.of.tolist() == [0, 0, 1, 1, 2, 2]


def test_one_person_with_two_faces_is_too_few(makers: Makers, labelled: Faces, order: Order) -> None:
    lone = labelled.take(np.flatnonzero(labelled.subject == labelled.subject[0]))
    with pytest.raises(InputError, match="two faces"):
        evaluation.protocol(makers, lone, order)


# -------------------------------------------------------------------------------------------------------------- masks


@pytest.fixture(scope="module")
def found(makers: Makers, labelled: Faces, order: Order) -> dict[str, Any]:
    return evaluation.mask_figures(makers, judges(makers, labelled, order), order, nothing)


def cell(found: dict[str, Any], method: str, recogniser: str, gamma: float = 0.0, file: str = "jpeg") -> dict[str, Any]:
    (row,) = (
        c
        for c in found["cells"]
        if (c["method"], c["recogniser"], c["gamma"], c["file"]) == (method, recogniser, gamma, file)
    )
    return row


def test_every_surrogate_method_and_gamma_meets_every_recogniser(found: dict[str, Any]) -> None:
    rows = [(c["method"], c["gamma"], c["file"]) for c in found["cells"] if c["recogniser"] == "black"]
    assert rows == [
        ("none", 0.0, "jpeg"),
        ("single", 0.0, "jpeg"),
        ("advnoise", 0.0, "jpeg"),
        ("G", 0.0, "jpeg"),
        ("G", 0.0, "png"),
        ("G", 0.4, "jpeg"),
    ]


def test_only_the_recogniser_that_served_is_white_box(found: dict[str, Any]) -> None:
    assert {(c["recogniser"], c["white"]) for c in found["cells"] if c["surrogate"]} == {
        ("white", True),
        ("black", False),
    }
    assert not any(c["white"] for c in found["cells"] if c["method"] == "none")


def test_masks_lead_the_recogniser_they_were_made_against_to_a_target(found: dict[str, Any]) -> None:
    assert cell(found, "none", "white")["rank_1_t"]["mean"] == 0
    assert cell(found, "G", "white")["rank_1_t"]["mean"] > 0.5
    assert cell(found, "G", "white")["rank_1_t"]["mean"] >= cell(found, "single", "white")["rank_1_t"]["mean"]


def test_a_weight_of_naturalness_brings_masks_nearer_to_the_face(found: dict[str, Any]) -> None:
    looks = {(q["method"], q["gamma"], q["file"]): q for q in found["quality"]}
    assert looks["G", 0.4, "jpeg"]["psnr"]["mean"] > looks["G", 0.0, "jpeg"]["psnr"]["mean"]


def test_success_and_likeness_are_those_of_the_decoded_file(
    makers: Makers, labelled: Faces, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = encode(np.full((112, 112, 3), 128, np.uint8))
    monkeypatch.setitem(FILES, "jpeg", lambda picture: grey)
    found = evaluation.mask_figures(makers, judges(makers, labelled, order), order, nothing)
    same = [cell(found, method, "white")["rank_1_ut"]["mean"] for method in ("none", "advnoise", "G")]
    assert same[0] == same[1] == same[2]
    assert {q["psnr"]["mean"] for q in found["quality"] if q["file"] == "jpeg"} == {found["quality"][0]["psnr"]["mean"]}


def test_of_a_single_target_only_that_one_counts(makers: Makers, labelled: Faces, order: Order) -> None:
    attack = judges(makers, labelled, order)
    files = attack.setting.targets.pictures * 2
    right = np.array([0, 1, 2] * 2)
    rates = [attack(files, "white", single)[0]["rank_1_t"]["mean"] for single in (right, (right + 1) % 3, None)]
    assert rates == [1, 0, 1]


def test_a_killed_evaluation_goes_on_with_the_masks_it_has(
    makers: Makers, labelled: Faces, order: Order, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tipim, "Masker", None)
    assert evaluation.mask_figures(makers, judges(makers, labelled, order), order, nothing) == found


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_file_without_loss_is_the_face_itself(labelled: Faces) -> None:
    crops = labelled.crop[:3]
    files = [evaluation.png(evaluation.chip_of(crop)) for crop in crops]
    look = evaluation.likeness(crops, files, labelled.subject[:3], 112)
    assert look["psnr"]["mean"] is None  # infinite
    assert look["ssim"]["mean"] == pytest.approx(1)
    assert look["mmd"] == pytest.approx(0, abs=1e-5)
    assert look["mmd_batch"] == 3


def test_of_fewer_targets_only_those_are_in_the_gallery(makers: Makers, labelled: Faces, order: Order) -> None:
    rows = evaluation.count_figures(makers, judges(makers, labelled, order), order, nothing)
    assert [(r["targets"], r["recogniser"], r["probes"]) for r in rows] == [
        (1, "white", 4),
        (1, "black", 4),
        (3, "white", 4),
        (3, "black", 4),
    ]
    attack = judges(makers, labelled, order)
    everybody = attack.setting.targets.pictures * 2
    few, all_of_them = (attack(everybody, "white", count=count)[0]["rank_1_t"]["mean"] for count in (1, 3))
    assert few < all_of_them == 1


def test_the_summary_takes_the_median_black_box_cell() -> None:
    def made(method: str, white: bool, share: float) -> dict[str, Any]:
        row: dict[str, Any] = {"method": method, "gamma": 0.0, "file": "jpeg", "white": white}
        return row | {"rank_1_t": {"mean": share}}

    cells = [made("G", False, s) for s in (0.2, 0.4, 0.9)] + [made("single", False, s) for s in (0.0, 0.1, 0.9)]
    looks = [{"method": "G", "gamma": 0.0, "file": "jpeg", "ssim": {"mean": 0.7}}]
    found = evaluation.summary([*cells, made("G", True, 0.98), made("none", False, 0.0)], looks)
    assert found == {
        "white_lowest": 0.98,
        "black_median": 0.4,
        "black_best": 0.9,
        "black_median_single": 0.1,
        "gain": pytest.approx(4),
        "ssim_lowest": 0.7,
    }


def test_the_papers_cells_are_as_printed() -> None:
    cells = evaluation.paper_cells()
    assert len(cells) == 4 * 5 * 6
    assert sum(c["white"] for c in cells) == 4 * 5
    (one,) = (c for c in cells if (c["surrogate"], c["method"], c["recogniser"]) == ("MobileFace", "G", "ResNet50"))
    assert [one[rate] for rate in RATES] == pytest.approx([0.628, 0.858, 0.814, 0.712])
    assert evaluation.paper_median("advnoise", "rank_1_t", white=True) is None


# ---------------------------------------------------------------------------------------------------------- universal


def test_fooled_is_who_is_decided_otherwise_of_the_decoded_file(labelled: Faces) -> None:
    pool = evaluation.Pool(labelled.take(np.arange(10)), labelled.take(np.arange(10, 20)), {})
    means = [evaluation.shown(crop, 256).mean() for crop in labelled.crop[:20]]
    line = float(np.median(means))

    def brighter(name: str, files: Sequence[bytes]) -> np.ndarray:
        return np.array([[evaluation.shown(file, 256).mean() > line] for file in files])

    up = Perturbation(np.full((3, 256, 256), 8, np.int16), "linf", 8.0)
    train, unseen = evaluation.fooling(brighter, pool, up, "up", "model", ["model"])
    for row, part in ((train, means[:10]), (unseen, means[10:])):
        assert row["fooled"]["mean"] == pytest.approx(np.mean([line - 7.9 < m <= line for m in part]), abs=0.1)
    still = Perturbation(np.zeros((3, 256, 256), np.int16), "linf", 1.0)
    assert evaluation.fooling(brighter, pool, still, "file alone", "model", ["model"])[0]["xi"] == 0


def test_universal_vectors_are_tried_on_both_sets_by_all_recognisers_beside_noise(
    makers: Makers, labelled: Faces, order: Order
) -> None:
    found = evaluation.universal_figures(makers, labelled, order, nothing)
    assert (found["train"], found["unseen"]) == (6, 6)
    what = [r["what"] for r in found["rows"] if (r["model"], r["faces"]) == ("black", "unseen")]
    assert what == ["file alone", "sgd", "gaussian", "sign", "deepfool"]
    share = {(r["what"], r["model"], r["faces"]): r["fooled"]["mean"] for r in found["rows"]}
    assert share["sgd", "white", "train"] > share["gaussian", "white", "train"]
    assert share["file alone", "white", "train"] <= share["gaussian", "white", "train"]


def test_nobody_of_the_pool_is_enrolled_by_the_face_that_is_tried(
    makers: Makers, labelled: Faces, order: Order
) -> None:
    found = evaluation.pool(makers, labelled, order, nothing)
    assert found is not None
    assert not set(found.train.subject.tolist()) & set(found.unseen.subject.tolist())
    assert len(found.centres["white"]) == 12
    people = sorted({*found.train.subject.tolist(), *found.unseen.subject.tolist()})
    tried = {*found.train.crop, *found.unseen.crop}
    others = [labelled.crop[i] for p in people for i in np.flatnonzero(labelled.subject == p)]
    enrolled = makers.vectors("white", [crop for crop in others if crop not in tried], 112)
    assert found.centres["white"] == pytest.approx(enrolled, abs=1e-5)


# -------------------------------------------------------------------------------------------------------------- speed


def test_a_step_is_measured_and_all_of_them_are_told(
    makers: Makers, labelled: Faces, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "timed", lambda action: 2.0)
    rows = evaluation.speed_figures(makers, evaluation.protocol(makers, labelled, order), order, nothing)
    own = [row for row in rows if row["stage"] == "tip-im"]
    assert [row["images_per_s"] for row in own] == [pytest.approx(1 / 16), pytest.approx(2 / 16)]
    assert {row["stage"] for row in rows} == {"tip-im", "universal", "copy of the pixels"}


# ---------------------------------------------------------------------------------------------------------------- all


def test_the_figures_are_printed_plotted_and_are_json(
    makers: Makers, labelled: Faces, order: Order, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    found = evaluation.evaluate(makers, labelled, order, nothing)
    assert set(found["targets_alike"]) == {"white", "black"}
    json.dumps(found, allow_nan=False)
    evaluation.show(found)
    printed = capsys.readouterr().out
    for what in ("Rank-1-T / Rank-5-T", "AdvNoise", "copy of the pixels"):
        assert what in printed
    pytest.importorskip("matplotlib")
    assert evaluation.plot(found, tmp_path / "plots").stat().st_size > 1000


def test_a_surrogate_without_a_gradient_is_refused(
    makers: Makers, labelled: Faces, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation.recognise, "load", lambda *a, **k: makers.networks.recognisers["black"])
    blind = replace(order, grid=replace(GRID, surrogates=("white+black",)))
    with pytest.raises(ConfigError, match="no gradient"):
        evaluation.evaluate(makers, labelled, blind, nothing)


@pytest.mark.parametrize("wrong", [{"size": 64}, {"targets": "me"}, {"parts": ("mask",)}, {"recognisers": ("black",)}])
def test_an_order_without_sense_is_refused(wrong: dict[str, Any], order: Order) -> None:
    with pytest.raises(ConfigError):
        replace(order, **wrong)


def test_the_named_grids_are_the_papers_and_smaller_ones() -> None:
    paper, reduced = evaluation.GRIDS["paper"], evaluation.GRIDS["reduced"]
    assert (paper.protected, paper.others, paper.targets, paper.steps) == (500, 500, 10, 50)
    assert paper.gammas == (0.0, 0.2, 0.4, 0.6)
    assert (reduced.protected, reduced.gammas, len(reduced.surrogates)) == (50, (0.0, 0.4), 1)
    how = Order(paper).mask
    assert (how.steps, how.alpha, how.epsilon, how.norm) == (50, 1.5, 12.0, "linf")


@pytest.mark.slow
def test_the_smoke_grid_runs_with_a_real_recogniser(
    collection: Path, model_folder: str | None, command: Any, tmp_path: Path
) -> None:
    where = ["--models", model_folder] if model_folder else []
    small = ["--recognisers", "arcface-mobilefacenet", "--targets", "people", "--parts", "masks,counts"]
    done = command(
        *("evaluate", "perturbation", "--data", str(collection), "--grid", "smoke", *small, *where),
        *("--work", str(tmp_path / "work"), "--cache", str(tmp_path / "faces"), "--json", str(tmp_path / "f.json")),
    )
    assert done.returncode == 0, done.stderr
    assert "TIP-IM" in done.stdout
