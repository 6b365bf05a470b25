"""Claims of jobs/attackers.py, on made-up people who are told by colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from facecrowd.jobs import attackers
from facecrowd.jobs.attackers import PAPER, PRESETS, TEST, THREATS, TRAIN, VALIDATION, chosen, split, table2
from facecrowd.jobs.figures import Figure
from facecrowd.pipeline.errors import ConfigError
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode

PEOPLE, PHOTOS = 8, 6
SMOKE = replace(PRESETS["smoke"], networks=("ResNet18",))
QUICK = replace(SMOKE, epochs=2)
"""Where it does not matter what is learnt."""
pytestmark = pytest.mark.usefixtures("one_thread")


def people(count: int = PEOPLE, photos: int = PHOTOS) -> tuple[list[bytes], np.ndarray]:
    """Each person has 4 x 4 colours of their own, each photo some noise."""
    rng = np.random.default_rng(0)
    crops, subject = [], []
    for person in range(count):
        own = rng.uniform(40, 215, (4, 4, 3))
        for _ in range(photos):
            seen = cv2.resize(own + rng.normal(0, 12, own.shape), (64, 64), interpolation=cv2.INTER_LINEAR)
            crops.append(encode(np.clip(seen, 0, 255).astype(np.uint8), 95))
            subject.append(f"person {person}")
    return crops, np.array(subject)


def blurred(crops: list[bytes]) -> list[bytes]:
    return [encode(cv2.GaussianBlur(decode(crop), (0, 0), 2), 95) for crop in crops]


def seen(crops: list[bytes]) -> np.ndarray:
    """A recogniser's place: unit vectors of 4 x 4 colours."""
    small = np.stack([cv2.resize(decode(crop), (4, 4), interpolation=cv2.INTER_AREA).ravel() for crop in crops]) - 128.0
    return (small / np.linalg.norm(small, axis=1, keepdims=True)).astype(np.float32)


def run(
    crops: list[bytes],
    released: list[bytes],
    subject: np.ndarray,
    work: Path,
    order: attackers.Order = SMOKE,
    seed: int = 1,
) -> list[Figure]:
    embeddings = {"colours": (seen(crops), seen(released))}
    return attackers.trained_figures(crops, released, subject, embeddings, order, seed=seed, work=work)[0]


def value(figures: list[Figure], by: str, threat: str, name: str = "top1") -> float:
    (one,) = [one for one in figures if (one.by, one.setting, one.name) == (by, threat, name)]
    assert one.value is not None
    return one.value


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The trainings that are really made."""
    made: list[str] = []
    train: Callable[..., dict[str, np.ndarray]] = attackers._Learn.__call__

    def counted(self: attackers._Learn) -> dict[str, np.ndarray]:
        made.append(self.name)
        return train(self)

    monkeypatch.setattr(attackers._Learn, "__call__", counted)
    return made


# ------------------------------------------------------------------------------------------------------------ attacks


def test_every_attacker_learns_people_who_can_be_told_apart(tmp_path: Path) -> None:
    crops, subject = people()
    figures = run(crops, blurred(crops), subject, tmp_path, PRESETS["smoke"])
    for by in ("VGG16", "ResNet18", "colours head"):
        for threat in THREATS:
            assert value(figures, by, threat) >= 0.75, (by, threat)
            assert value(figures, by, threat, "top5") >= value(figures, by, threat)


def test_attackers_do_not_name_people_whose_release_says_nothing(tmp_path: Path) -> None:
    crops, subject = people()
    noise = np.random.default_rng(5).integers(0, 255, (len(crops), 64, 64, 3), dtype=np.uint8)
    figures = run(crops, [encode(one, 95) for one in noise], subject, tmp_path)
    for by in ("ResNet18", "colours head"):
        assert value(figures, by, "originals") >= 0.75
        for threat in ("T1", "T2", "T3"):
            assert value(figures, by, threat) <= 0.5


def test_t1_learns_from_originals_t2_and_t3_from_the_release(tmp_path: Path) -> None:
    """Released people are each other, in a circle: who learnt from originals names the next person, who learnt from the
    release is right in its own world alone."""
    crops, subject = people()
    others = crops[PHOTOS:] + crops[:PHOTOS]
    figures = run(crops, others, subject, tmp_path)
    for by in ("ResNet18", "colours head"):
        assert value(figures, by, "originals") >= 0.75
        assert value(figures, by, "T1") <= 0.25
        assert value(figures, by, "T2") <= 0.25
        assert value(figures, by, "T3") >= 0.75


def test_one_surrogate_for_a_class_of_k_lets_nobody_be_named_more_often_than_one_time_in_k(tmp_path: Path) -> None:
    crops, subject = people()
    faces, _ = people(2, 1)
    released = [faces[i // (4 * PHOTOS)] for i in range(len(crops))]
    figures = run(crops, released, subject, tmp_path)
    for by in ("ResNet18", "colours head"):
        assert value(figures, by, "T3") == pytest.approx(1 / 4)
        assert value(figures, by, "T1") <= 1 / 4 + 1e-9
    (one,) = [one for one in figures if (one.by, one.setting, one.name) == ("ResNet18", "T3", "top1")]
    assert one.chance == 1 / PEOPLE
    assert "stands for 4.0 of these people; naming one of them achieves 0.25" in one.note
    assert "100% of the pictures shown are files that the attacker learnt from" in one.note


def test_equal_scores_count_as_the_success_of_a_guess_and_others_as_scikit_learn_counts_them() -> None:
    assert attackers.success(np.zeros((4, 10)), np.arange(4), 1) == pytest.approx(0.1)
    assert attackers.success(np.array([[1.0, 1.0, 0.0]]), np.array([1]), 1) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    score, person = rng.normal(size=(50, 12)), rng.integers(0, 12, 50)
    for rank in (1, 5):
        theirs = top_k_accuracy_score(person, score, k=rank, labels=np.arange(12))
        assert attackers.success(score, person, rank).mean() == pytest.approx(theirs)


# -------------------------------------------------------------------------------------------------------------- split


def test_ten_photos_are_split_7_1_2_and_no_photo_is_in_two_parts() -> None:
    crops, subject = people(5, 10)
    crops[3] = crops[0]
    cut = split(crops, subject, PRESETS["cpu"], seed=0)
    for person in range(1, 5):
        parts = cut.part[cut.person == person].tolist()
        assert [parts.count(part) for part in (TRAIN, VALIDATION, TEST)] == [7, 1, 2]
    of: dict[bytes, set[int]] = {}
    for row, part in zip(cut.rows.tolist(), cut.part.tolist(), strict=True):
        of.setdefault(crops[row], set()).add(part)
    assert all(len(parts) == 1 for parts in of.values())
    # The photo that the first person has twice counts once.
    assert (cut.person == 0).sum() == 9
    assert len(set(cut.rows.tolist())) == len(cut.rows)


@pytest.mark.parametrize(("photos", "parts"), [(4, [2, 1, 1]), (5, [3, 1, 1]), (10, [7, 1, 2]), (20, [14, 2, 4])])
def test_the_split_scales_to_other_numbers_of_photos(photos: int, parts: list[int]) -> None:
    cut = split([b"%d" % i for i in range(photos)], np.full(photos, "a"), replace(SMOKE, photos=20), seed=0)
    assert [(cut.part == part).sum() for part in (TRAIN, VALIDATION, TEST)] == parts


def test_people_with_fewer_than_four_photos_are_left_out_and_counted(tmp_path: Path) -> None:
    crops, subject = people()
    subject[:3], subject[3:6] = "few", ""
    figures = run(crops, crops, subject, tmp_path, replace(SMOKE, networks=()))
    (left,) = [one for one in figures if one.name == "people left out"]
    assert (left.value, left.subjects) == (1.0, PEOPLE - 1)


def test_without_two_people_nothing_is_measured_and_the_figures_say_why(tmp_path: Path) -> None:
    crops, _ = people(1)
    figures = run(crops, crops, np.full(len(crops), "alone"), tmp_path)
    assert {one.setting for one in figures} == set(THREATS)
    assert all(one.value is None and "fewer than 2 people" in one.note for one in figures)


def test_those_with_most_photos_are_taken_and_whole_classes_where_one_picture_stands_for_a_class() -> None:
    subject = np.repeat([f"p{i:02d}" for i in range(40)], 5)
    order = replace(SMOKE, subjects=12)
    more = np.append(subject, "p07")
    assert "p07" in more[chosen(more, replace(order, subjects=2), seed=3)]
    # Of ten classes of four, each with one more person who has too few photos.
    crowd = np.append(np.repeat(np.arange(40) % 10, 5), np.repeat(np.arange(10), 3))
    all_of_them = np.append(subject, np.repeat([f"few {i}" for i in range(10)], 3))
    taken = set(all_of_them[chosen(all_of_them, order, 3, crowd)].tolist())
    assert len(taken) == 12
    assert len({int(name[1:]) % 10 for name in taken}) == 3
    # Alone, people of almost as many classes as there are would be taken.
    assert len({int(name[1:]) % 10 for name in subject[chosen(subject, order, 3)].tolist()}) > 3


# --------------------------------------------------------------------------------------------------------- repeatable


def test_the_same_seed_gives_the_same_figures_in_whatever_order_faces_come(tmp_path: Path) -> None:
    crops, subject = people()
    released = blurred(crops)
    mixed = np.random.default_rng(3).permutation(len(crops))
    first = run(crops, released, subject, tmp_path / "a", QUICK)
    again = run([crops[i] for i in mixed], [released[i] for i in mixed], subject[mixed], tmp_path / "b", QUICK)
    assert first == again
    assert first != run(crops, released, subject, tmp_path / "c", QUICK, seed=2)


def test_a_killed_run_goes_on_with_the_attacker_that_it_was_at(tmp_path: Path, trainings: list[str]) -> None:
    crops, subject = people()
    released = blurred(crops)

    class Killed(BaseException):
        pass

    def die(line: str) -> None:
        if "learns from released" in line:
            raise Killed

    with pytest.raises(Killed):
        attackers.trained_figures(crops, released, subject, {}, QUICK, seed=1, work=tmp_path / "a", say=die)
    assert trainings == ["ResNet18"]
    resumed = run(crops, released, subject, tmp_path / "a", QUICK)
    assert trainings == ["ResNet18"] * 2
    assert resumed == run(crops, released, subject, tmp_path / "b", QUICK)


def test_the_training_on_originals_is_shared_by_all_releases_of_them(tmp_path: Path, trainings: list[str]) -> None:
    crops, subject = people()
    run(crops, blurred(crops), subject, tmp_path, QUICK)
    run(crops, blurred(blurred(crops)), subject, tmp_path, QUICK)
    assert len(trainings) == 3
    run(crops, crops, subject, tmp_path, QUICK)
    assert len(trainings) == 3
    run(crops, crops, subject, tmp_path, replace(QUICK, epochs=1))
    assert len(trainings) == 4


def test_a_training_stops_where_validation_no_longer_gains_and_its_curve_is_told(tmp_path: Path) -> None:
    crops, subject = people()
    order = replace(SMOKE, epochs=30, patience=3)
    curves = attackers.trained_figures(crops, crops, subject, {}, order, seed=1, work=tmp_path)[1]
    assert curves.schema == attackers.CURVES
    assert set(curves["threat"].to_pylist()) == {"T1", "T2, T3"}
    epochs = curves["epoch"].to_pylist()
    assert max(epochs) < 30
    assert epochs[: max(epochs)] == list(range(1, max(epochs) + 1))
    assert curves["train_loss"].to_pylist()[0] > curves["train_loss"].to_pylist()[max(epochs) - 1]


def test_varied_pictures_are_mirrored_moved_and_lit_otherwise_but_remain_the_picture() -> None:
    x = torch.from_numpy(np.stack([decode(crop) for crop in people(4, 1)[0]])).permute(0, 3, 1, 2)
    draw = torch.Generator().manual_seed(0)
    varied = attackers.vary(x, draw)
    assert varied.shape == x.shape
    distance = (varied[:, None] - x[None].float()).abs().mean((2, 3, 4))
    mirrored = (varied[:, None] - x[None].flip(4).float()).abs().mean((2, 3, 4))
    assert torch.minimum(distance, mirrored).argmin(1).tolist() == [0, 1, 2, 3]
    assert torch.equal(varied, attackers.vary(x, torch.Generator().manual_seed(0)))


def test_an_order_that_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 subjects, 4 photos"):
        replace(SMOKE, photos=3)


def test_the_papers_preset_trains_whole_networks_for_500_epochs_on_100_people() -> None:
    paper = PRESETS["paper"]
    assert (paper.epochs, paper.vgg_width, paper.resnet_width) == (500, 64, 64)
    assert (paper.subjects, paper.photos) == (100, 10)
    assert PRESETS["cpu"].epochs == 60


# ---------------------------------------------------------------------------------------------------------- the paper


def test_the_papers_table_is_the_papers(shared: Path) -> None:
    text = (shared / "papers" / "deepblur.txt").read_text()
    printed = {}
    for line in text.splitlines():
        cells = line.split("\t")
        if len(cells) == 13 and cells[1].replace(".", "").isdigit():
            printed[cells[0]] = [float(cell) for cell in cells[1:]]
    names = dict(zip(PAPER, printed, strict=True))
    assert names["AdvNoise"] == "AdvNoise"
    assert names["DeepBlur 0.5"].startswith("DeepBlur")
    for row, cells in PAPER.items():
        assert [value for threat in ("T1", "T2", "T3") for value in cells[threat]] == printed[names[row]], row


def test_figures_of_the_papers_table_by_eye() -> None:
    assert PAPER["Original"]["T1"][:2] == (0.208, 0.421)
    assert PAPER["Blurring"]["T2"] == (0.193, 0.056, 0.942, 0.684)
    assert PAPER["DeepBlur 1.0"]["T3"] == (0.026, 0.032, 0.070, 0.126)


def test_our_table_has_the_papers_layout_with_the_papers_figures_beside_ours() -> None:
    def figures(top1: float) -> list[Figure]:
        return [
            Figure("trained", "top1", by, threat, value=top1)
            for by in ("VGG16", "ResNet18", "arcface head")
            for threat in THREATS
        ]

    lines = table2(
        {"blur": figures(0.5), "deepblur sigma 1": figures(0.125), "k-same k = 5": figures(0.2)}
    ).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in lines}
    assert lines[0].startswith("| method | T1 VGG16 | T1 ResNet18 | T1 arcface head | T2 VGG16 |")
    assert {len(line.split(" | ")) for line in lines} == {10}
    assert cells["blur"][1:4] == ["0.500 (0.151)", "0.500 (0.157)", "0.500 (0.922, 0.592)"]
    assert cells["deepblur sigma 1"][9] == "0.125 (0.070, 0.126)"
    assert cells["k-same k = 5"][1:] == ["0.200"] * 9
    assert cells["original"][2] == "0.500 (0.421)"
    assert cells["AdvNoise (the paper's)"][1] == "– (0.180)"
    assert "Blurring (the paper's)" not in cells
    beside = table2({"advnoise 10": figures(0.5)})
    assert "| advnoise 10 | 0.500 (0.180) |" in beside
    assert "AdvNoise (the paper's)" not in beside


def test_a_head_on_other_embeddings_stands_in_the_same_column_and_is_named() -> None:
    usual = [Figure("trained", "top1", "arcface head", threat, value=0.5) for threat in THREATS]
    other = [Figure("trained", "top1", "sface head", threat, value=0.25) for threat in THREATS]
    lines = table2({"blur": usual, "tip-im": other}).splitlines()
    assert lines[0] == "| method | T1 arcface head | T2 arcface head | T3 arcface head |"
    assert "| tip-im | 0.250 sface | 0.250 sface | 0.250 sface |" in lines
    assert "| blur | 0.500 (0.922, 0.592) |" in "\n".join(lines)


def test_without_a_trained_attacker_there_is_a_sentence_and_no_table() -> None:
    assert table2({"blur": []}) == "No attacker was trained: too few people have 4 photos.\n"
