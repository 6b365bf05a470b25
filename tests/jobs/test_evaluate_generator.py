"""Evaluation of the generator: figures that are known beforehand, on networks that fit into a few lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from facecrowd.jobs import evaluate_generator as evaluation
from facecrowd.jobs import renditions
from facecrowd.jobs.labelled import Faces
from facecrowd.jobs.renditions import Networks
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.stages import inversion
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def unit() -> Any:
    """``unit(n)``: n random unit vectors."""

    def draw(n: int) -> np.ndarray:
        vectors = np.random.default_rng(n).standard_normal((n, 16)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return draw


def test_a_picture_compared_with_itself_is_perfect(networks: Networks, labelled: Faces, tmp_path: Path) -> None:
    crops = labelled.crop[:3]
    same = evaluation.compared(networks, crops, networks.pixels(crops), "same", tmp_path)
    assert same["lpips"] == pytest.approx(0)
    assert same["ssim"] == pytest.approx(1, abs=1e-6)
    assert same["ms_ssim"] == pytest.approx(1, abs=1e-6)
    assert (same["psnr"] > 100).all()
    other = evaluation.compared(networks, crops, networks.pixels(crops[::-1]), "other", tmp_path)
    assert (other["psnr"][[0, 2]] < 40).all()
    assert other["ssim"][0] < 0.99


def test_equal_faces_have_the_cosine_1(networks: Networks, labelled: Faces, tmp_path: Path) -> None:
    crops = [labelled.crop[0], labelled.crop[2], labelled.crop[0]]
    for vectors in evaluation.embeddings(networks, crops, ["sface"], tmp_path).values():
        if vectors.ndim == 2:
            assert vectors[0] @ vectors[2] == pytest.approx(1, abs=1e-6)
            assert vectors[0] @ vectors[1] < 0.999


def test_a_surrogate_that_is_one_member_names_that_member_and_nobody_else(unit: Any) -> None:
    subject = np.array([f"s{i // 2}" for i in range(24)])
    vectors = unit(24)
    first = np.arange(24) // 6 * 6  # classes of three people; all show the first one's first photo
    rows = evaluation.attacks(vectors, vectors[first], subject, 3, "any")
    assert [row["gallery"] for row in rows] == ["originals", "other originals", "released"]
    assert rows[0]["rank1"] == pytest.approx(1 / 3)
    assert all(row["at_most"] == pytest.approx(1 / 3) for row in rows)
    alone = evaluation.attack("originals", vectors[:2], subject[:2], vectors, subject, None)
    assert alone["rank1"] == 1


def test_what_is_released_unchanged_is_named_always_and_reported_as_not_held(unit: Any) -> None:
    subject, vectors = np.array([f"s{i // 2}" for i in range(40)]), unit(40)
    rows = evaluation.attacks(vectors, vectors, subject, 5, "any")
    assert rows[0]["rank1"] == 1
    assert not rows[0]["held"]


def test_one_face_per_class_is_named_by_at_most_one_in_k_from_any_gallery(unit: Any) -> None:
    subject = np.array([f"s{i // 4:02d}" for i in range(120)])  # 30 people with 4 photos
    classes = np.arange(120) // 20  # of 5 people each
    rows = evaluation.attacks(unit(120), unit(6)[classes], subject, 5, "any")
    assert all(row["held"] for row in rows)
    assert all(row["rank1"] <= 1 / 5 + 1e-9 for row in rows)
    assert rows[2]["rank1"] == pytest.approx(1 / 5)  # enrolled under true names, a class is a tie of five


def test_nobody_left_in_a_gallery_is_said_and_not_counted(unit: Any) -> None:
    subject = np.array(["a", "b", "c"])
    rows = evaluation.attacks(unit(3), unit(3), subject, 2, "any")
    assert rows[1]["rank1"] is None
    assert "gallery" in rows[1]["not_measured"]


def test_intervals_count_people_not_photos() -> None:
    many = evaluation.interval(np.array([1.0] * 99 + [0.0]), np.array(["often"] * 99 + ["once"]))
    assert many["mean"] == 0.5
    assert (many["low"], many["high"]) == (0, 1)


def test_a_sample_of_faces_has_as_many_people_as_can_be_whatever_their_order(labelled: Faces) -> None:
    sample = renditions.spread(labelled, 40)
    assert len(set(sample.subject.tolist())) == 40
    turned = renditions.spread(labelled.take(np.arange(len(labelled))[::-1]), 40)
    assert turned.name.tolist() == sample.name.tolist()
    assert renditions.spread(labelled, 10).name.tolist() == sample.name[:10].tolist()


def test_what_was_made_is_not_made_again_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    calls = []

    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("killed")
        return {"x": np.arange(3)}

    with pytest.raises(RuntimeError):
        renditions.kept(tmp_path, "part", [1], make)
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        assert renditions.kept(tmp_path, "part", [1], make)["x"].tolist() == [0, 1, 2]
    renditions.kept(tmp_path, "part", [2], make)
    assert len(calls) == 3


def test_a_larger_sample_takes_up_what_a_smaller_one_made(tmp_path: Path) -> None:
    made: list[int] = []

    def make(some: Any) -> dict[str, np.ndarray]:
        made.append(len(some))
        return {"x": np.array([int(crop) for crop in some])}

    crops = [str(i).encode() for i in range(7)]
    assert renditions.by_chunk(crops[:4], tmp_path, "part", 0, make, chunk=2)["x"].tolist() == [0, 1, 2, 3]
    assert renditions.by_chunk(crops, tmp_path, "part", 0, make, chunk=2)["x"].tolist() == list(range(7))
    assert made == [2, 2, 2, 1]


def test_a_class_is_shown_by_the_mean_of_its_subjects_means(networks: Networks, labelled: Faces) -> None:
    faces = labelled.take(np.array([0, 1, 2]))  # two photos of one person, one of another
    assert len(set(faces.subject.tolist())) == 2
    latents = torch.randn(3, ROWS, STYLE, generator=torch.Generator().manual_seed(0))
    by = renditions.crowds(faces.subject, np.eye(3, dtype=np.float32), 2)
    made = renditions.class_latents(networks, faces.crop, latents, by)
    assert made.shape == (1, 1, ROWS, STYLE)
    wanted = (latents[:2].mean(0) + latents[2]) / 2
    torch.testing.assert_close(made[0, 0], wanted, rtol=0, atol=1e-6)


def test_every_face_of_a_class_gets_the_same_surrogate(networks: Networks, labelled: Faces, tmp_path: Path) -> None:
    faces = labelled.take(np.arange(24))
    latents = renditions.encoded(networks, faces.crop, tmp_path)
    by = renditions.crowds(faces.subject, latents.mean(1).numpy(), 3)
    released = renditions.surrogates(networks, faces, latents, by, 0, tmp_path)
    assert len(released.images) == by.classes == 4
    assert np.array_equal(released.of, by.ids[by.person])
    assert np.bincount(by.ids).min() >= 3


@pytest.fixture(scope="module")
def figures(
    networks: Networks, labelled: Faces, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    order = evaluation.Order(
        faces=4,
        search=(0, 3),
        optimisers=2,
        optimiser_steps=4,
        reidentify=(2, 5),
        recognisers=("sface", "edgeface-s"),
        compare=3,
        altered=("reconstruction", "deepblur:100", "inpaint"),
        fid=6,
        speed=(2,),
        work=tmp_path_factory.mktemp("work"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "ENOUGH_S", 0.02)
        patch.setattr(evaluation, "STEPS", 3)
        yield evaluation.evaluate(networks, labelled, order)


def test_every_part_that_is_asked_for_is_reported_in_plain_json_and_printed(
    figures: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert {"inversion", "optimisers", "reidentification", "fid", "speed"} <= set(figures)
    assert "edits" not in figures
    json.dumps(figures, allow_nan=False)
    evaluation.show(figures)
    shown = capsys.readouterr().out
    for word in ("Inversion: 4 faces", "rank 1", "FID, surrogates of k = 2", "s/face", "lbfgs"):
        assert word in shown


def test_a_search_only_brings_a_face_nearer_to_the_picture_and_to_the_person(figures: dict[str, Any]) -> None:
    average, encoder, searched = figures["inversion"]["rows"]
    assert [row["from"] for row in (average, encoder, searched)] == ["average face", "encoder", "3 steps"]
    assert average["psnr"]["mean"] < encoder["psnr"]["mean"] < searched["psnr"]["mean"] + 0.1
    for name in evaluation.UNSEEN:
        assert average["identity"][name]["mean"] < encoder["identity"][name]["mean"]
        scale = figures["inversion"]["identity_scale"][name]
        assert scale["other people"] < encoder["identity"][name]["mean"]
    assert figures["inversion"]["subjects"] == 4


def test_only_people_the_encoder_never_saw_are_inverted(networks: Networks, labelled: Faces, tmp_path: Path) -> None:
    order = evaluation.Order(faces=500, search=(0,), work=tmp_path)
    found = evaluation.evaluate(networks, labelled, order)["inversion"]
    assert found["faces"] == len(labelled.of("test"))
    with pytest.raises(InputError, match="test subject"):
        evaluation.evaluate(networks, labelled.of("steer"), order)


def test_every_optimiser_starts_at_the_same_loss_and_never_reports_a_worse_one(figures: dict[str, Any]) -> None:
    rows = figures["optimisers"]["rows"]
    assert len(rows) == 2 * len(inversion.OPTIMISERS)
    for start in ("average face", "encoder"):
        losses = np.array([row["loss"] for row in rows if row["start"] == start])
        assert losses.shape == (len(inversion.OPTIMISERS), 5)
        assert np.ptp(losses[:, 0]) < 1e-6
        assert (np.diff(losses, axis=1) <= 1e-9).all()
    assert all(np.all(np.diff(row["seconds_per_face"]) >= 0) for row in rows)


def test_the_comparison_of_optimisers_is_drawn(figures: dict[str, Any], tmp_path: Path) -> None:
    file = evaluation.plot(figures["optimisers"], tmp_path / "plots")
    picture = cv2.imread(str(file))
    assert file.suffix == ".png"
    assert picture.shape[0] > 400
    assert picture.std() > 5


def test_reidentification_says_1_in_k_beside_every_attack_by_every_recogniser(figures: dict[str, Any]) -> None:
    found = figures["reidentification"]
    unprotected = [row for row in found["rows"] if row["method"] == "originals"]
    attacked = [row for row in found["rows"] if row["method"] == "k-same"]
    assert [row["recogniser"] for row in unprotected] == ["sface", "edgeface-s"]
    assert len(attacked) == 2 * 2 * 3
    assert {(row["k"], row["at_most"]) for row in attacked} == {(2, 0.5), (5, 0.2)}
    # One face per class, and as many photos of everybody: the bound is met exactly, not only within the interval.
    assert all(row["rank1"] <= row["at_most"] + 1e-9 for row in attacked)
    assert found["subjects"] == 40
    assert [row["classes"] for row in found["k"]] == [20, 8]
    assert all(row["rank1"] > 2 / 40 for row in unprotected)


def test_fid_compares_equal_counts_and_states_them(figures: dict[str, Any]) -> None:
    rows = figures["fid"]["rows"]
    assert all(row["pictures"] == [6, 6] for row in rows)
    by = {(row["of"], row["against"]): row["fid"] for row in rows}
    assert by["real crops", "other real crops"] < by["generator samples", "real crops"]


def test_speed_is_given_with_batch_threads_and_memory(figures: dict[str, Any]) -> None:
    for row in figures["speed"]:
        assert row["batch"] == 2
        assert row["threads"] == 1
        assert row["seconds_per_face"] > 0
        assert row["faces_per_second"] == pytest.approx(1 / row["seconds_per_face"])


def test_the_peak_of_memory_is_what_a_batch_takes_for_a_moment() -> None:
    _, large = evaluation.timed(lambda: np.ones(2**25), torch.device("cpu"))  # 256 MiB
    _, small = evaluation.timed(lambda: np.ones(2**17), torch.device("cpu"))
    if small is None or large is None:
        pytest.skip("the system does not tell")
    assert small < 64
    assert 200 < large < 400


def test_what_cannot_be_measured_is_refused_before_any_work(
    networks: Networks, labelled: Faces, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="only 40 people"):
        evaluation.evaluate(networks, labelled, evaluation.Order(reidentify=(2, 50), work=tmp_path / "work"))
    assert not (tmp_path / "work").exists()
    with pytest.raises(ConfigError, match="128 or 256"):
        evaluation.Order(size=512)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="below 2"):
        evaluation.Order(reidentify=(1, 2))
    with pytest.raises(ConfigError, match="facecrowd train encoder"):
        Networks(tmp_path / "none.safetensors")


def test_the_command_refuses_what_is_wrong_in_one_sentence(command: Any, photos: Path, tmp_path: Path) -> None:
    wrong = command("evaluate", "generator", "--data", str(photos), "--search", "ten")
    assert wrong.returncode == 2
    assert wrong.stderr == "facecrowd: --search ten: give whole numbers, as in 2,5,10, or none\n"
    wrong = command(
        "sheet", "--data", str(photos), "--output", str(tmp_path / "s.png"), "--columns", "original,blurred"
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("facecrowd: --columns: blurred is none of reconstruction")
