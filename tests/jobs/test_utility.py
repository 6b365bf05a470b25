"""Use and inference on planted releases: one that equals its originals, one that says nothing, one with a mark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from sklearn.metrics.pairwise import polynomial_kernel
from torch import Tensor

from facecrowd.jobs import utility
from facecrowd.jobs.figures import NAMES, Figure, from_table, to_table
from facecrowd.jobs.labelled import Faces
from facecrowd.jobs.utility import EVERY, Eyes, Pairs, inference_figures, kernel_distance, sampled, utility_figures
from facecrowd.stages.align import template
from facecrowd.stages.attributes import ATTRIBUTES, Calibration
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode

pytestmark = pytest.mark.usefixtures("one_thread")


class Grey:
    """LPIPS' place."""

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean((1, 2, 3))


class Spectrum:
    """Inception's place: 48 colours."""

    def features(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 4).flatten(1)


class Descriptor:
    size = 64

    def __call__(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 4).flatten(1)


class Judge:
    """A predictor that calls a face by the brightness of one of 40 colours in its picture."""

    name, sha256, about = "a judge", "of no file", {"backbone": "cells"}
    calibration = Calibration(np.ones(40, np.float32), np.full(40, 0.5, np.float32))
    descriptor = Descriptor()

    def score(self, descriptors: Tensor) -> Tensor:
        return 20 * (descriptors[:, :40] - 0.5)

    def values(self, probabilities: np.ndarray) -> np.ndarray:
        return self.calibration.values(probabilities)


EYES: Any = Eyes(Grey(), Spectrum(), Judge())  # type: ignore[arg-type]
BLIND = Eyes()


@pytest.fixture(scope="module")
def pairs(labelled: Faces) -> Pairs:
    """40 people with 2 photos each, released as they are, with attributes of persons drawn at random."""
    draws = np.random.default_rng(1)
    n, people = len(labelled), np.unique(labelled.subject, return_inverse=True)[1]
    labels = {name: (draws.random(40) < 0.45).astype(np.int8)[people] for name in utility.ASKED}
    points = template(64) + draws.normal(0, 2, (n, 5, 2))
    groups = {"Male": labels["Male"].astype(str)}
    return Pairs(labelled.crop, labelled.crop, labelled.subject, points, points.copy(), labels, {}, groups)


def painted(pairs: Pairs, paint: Callable[[np.ndarray, int], np.ndarray]) -> Pairs:
    """The pairs with ``paint(picture, i)`` released."""
    return replace(pairs, released=[encode(paint(decode(crop), i), 95) for i, crop in enumerate(pairs.original)])


def noise(pairs: Pairs, seed: int = 5) -> Pairs:
    """Pictures of nothing."""
    draws = np.random.default_rng(seed)
    return painted(pairs, lambda picture, i: draws.integers(0, 256, picture.shape, dtype=np.uint8))


def marked(pairs: Pairs, has: np.ndarray) -> Pairs:
    """Noise, with a white corner where ``has`` is true."""
    base = noise(pairs)

    def paint(picture: np.ndarray, i: int) -> np.ndarray:
        picture = decode(base.released[i]).copy()
        picture[:16, :16] = 255 if has[i] else 0
        return picture

    return painted(pairs, paint)


def use(pairs: Pairs, work: Path, eyes: Eyes = EYES, **more: Any) -> list[Figure]:
    return utility_figures(pairs, eyes, np.random.default_rng(0), work=work, **more)


def attack(pairs: Pairs, work: Path, eyes: Eyes = BLIND, **more: Any) -> list[Figure]:
    return inference_figures(pairs, eyes, np.random.default_rng(0), work=work, **more)


def only(found: list[Figure], name: str, setting: str | None = None, by: str | None = None, group: str = "") -> Figure:
    (one,) = [
        one
        for one in found
        if one.name == name
        and one.group == group
        and (setting is None or one.setting == setting)
        and (by is None or one.by == by)
    ]
    return one


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was seen is kept under what it was seen in, so the tests share it."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def same(pairs: Pairs, work: Path) -> list[Figure]:
    return use(pairs, work)


def test_a_release_that_equals_its_originals_is_at_the_best_of_every_measure(same: list[Figure]) -> None:
    psnr = only(same, "psnr")
    assert psnr.value is None
    assert "infinite for 80 pictures" in psnr.note
    best = {"ssim": 1, "ms_ssim": 1, "lpips": 0, "fid": 0, "kid": 0, "landmark_distance": 0, "downstream_loss": 0}
    for name, value in best.items():
        assert only(same, name).value == pytest.approx(value, abs=1e-3 if name == "fid" else 1e-6)
    for angle in utility.ANGLES:
        assert only(same, "pose_difference", angle).value == 0
        assert only(same, "pose_correlation", angle).value == pytest.approx(1)
    for setting in (EVERY, *utility.ASKED):
        assert only(same, "agreement", setting).value == pytest.approx(1)
    assert only(same, "detected", "released").value == only(same, "detected", "originals").value == pytest.approx(1)


def test_every_figure_says_of_whom_it_is_how_sure_it_is_and_reads_back_from_its_table(same: list[Figure]) -> None:
    assert [one.as_dict() for one in from_table(to_table(same))] == [one.as_dict() for one in same]
    assert {one.name for one in same} <= set(NAMES["utility"])
    keys = [(one.name, one.by, one.setting, one.group) for one in same]
    assert len(set(keys)) == len(keys)
    for one in same:
        assert one.section == "utility"
        assert one.better in ("higher", "lower")
        if one.value is None:
            assert one.note
        elif one.name == "fid":
            assert one.low is None
            assert "no interval" in one.note
        else:
            assert one.low is not None
            assert one.high is not None
            assert one.low - 1e-9 <= one.value <= one.high + 1e-9
            assert (one.faces, one.subjects) == (80, 40) or one.group


def test_pictures_of_nothing_have_no_use(pairs: Pairs, work: Path) -> None:
    found = use(noise(pairs), work)
    assert only(found, "psnr").value == pytest.approx(9, abs=3)
    ssim, lpips, agreement = (only(found, name) for name in ("ssim", "lpips", "kid"))
    assert ssim.value is not None
    assert ssim.value < 0.2
    assert lpips.low is not None
    assert lpips.low > 0.1
    assert agreement.low is not None
    assert agreement.low > 0


def test_without_weights_what_they_measure_is_not_measured_and_says_what_to_do(pairs: Pairs, work: Path) -> None:
    found = use(pairs, work, BLIND)
    for name, model in (("lpips", "lpips-vgg16"), ("fid", "inception-fid"), ("kid", "inception-fid")):
        one = only(found, name)
        assert one.value is None
        assert f"facecrowd models pull {model}" in one.note
    assert "no judge predictor" in only(found, "agreement", EVERY).note
    assert only(found, "ssim").value == pytest.approx(1)
    assert only(found, "downstream_auc", "Male", "hog, trained on the release").value is not None


def test_faces_that_no_detector_finds_count_against_detection_alone_and_the_worst_group_is_named(
    pairs: Pairs, work: Path
) -> None:
    lost = pairs.released_points.copy()
    women = pairs.groups["Male"] == "0"
    lost[women] = np.nan
    lost[~women] += 1.0
    found = use(replace(pairs, released_points=lost), work)
    detected = only(found, "detected", "released")
    share = np.mean([women[pairs.subject == name].any() for name in np.unique(pairs.subject)])
    assert detected.value == pytest.approx(1 - share)
    assert detected.note == "worst group: Male = 0 (0)"
    assert only(found, "detected", "released", group="Male = 1").value == pytest.approx(1)
    moved = only(found, "landmark_distance")
    eyes = np.linalg.norm(np.diff(pairs.original_points[~women, :2], axis=1)[:, 0], axis=1)
    assert moved.value == pytest.approx(np.mean(np.sqrt(2) / eyes), rel=1e-6)
    assert moved.faces == (~women).sum()
    assert f"not of the {women.sum()} faces" in moved.note


def test_planned_attributes_are_asked_for_in_the_release_and_left_out_of_what_should_stay(
    pairs: Pairs, work: Path
) -> None:
    seen = np.array([decode(crop)[:16, :16, 0].mean() / 255 for crop in pairs.original])
    first, other = ATTRIBUTES[0], "Village"
    stated = np.where(seen > 0.5, "1", "0")
    stated[:10] = "*"
    planned = replace(pairs, shown={first: stated, other: np.full(len(pairs), "1")}, labels={first: (seen > 0.5) * 1})
    found = use(planned, work)
    shown = only(found, "shown", first)
    assert shown.value is not None
    assert shown.value > 0.9
    assert shown.faces == len(pairs) - 10
    assert "agrees with the labels of" in shown.note
    assert only(found, "shown", other).note == "not measured: the predictor does not know it"
    assert only(found, "agreement", EVERY).note.startswith("39 attributes")
    flipped = np.select([stated == "1", stated == "0"], ["0", "1"], "*")
    wrong = only(use(replace(planned, shown={first: flipped}), work), "shown", first)
    assert wrong.value == pytest.approx(1 - shown.value)


def test_a_classifier_learns_what_the_release_states_and_is_tested_on_originals(pairs: Pairs, work: Path) -> None:
    male = pairs.labels["Male"] == 1
    base = marked(pairs, male)
    plain = replace(base, original=base.released)  # originals with a mark that tells the attribute
    by = "inception, trained on the release"
    right = only(use(plain, work), "downstream_accuracy", "Male", by)
    assert right.value == pytest.approx(1)
    stated = {"Male": np.where(male, "0", "1")}
    found = use(replace(plain, shown=stated), work)
    assert only(found, "downstream_accuracy", "Male", by).value == pytest.approx(0)
    by = "inception, trained on originals"
    assert only(found, "downstream_accuracy", "Male", by).value == pytest.approx(1)
    loss = only(found, "downstream_loss")
    assert loss.value == pytest.approx(0.25, abs=0.1)  # all of it for one attribute of four


def test_a_release_that_says_nothing_leaves_the_attack_at_the_majority(pairs: Pairs, work: Path) -> None:
    found = attack(noise(pairs), work)
    for name in utility.ASKED:
        for measure in ("accuracy", "balanced_accuracy", "auc"):
            one = only(found, measure, name)
            assert one.low is not None
            assert one.high is not None
            assert one.chance is not None
            assert one.low <= one.chance
            assert one.value == pytest.approx(one.chance, abs=0.17)
    one_face = replace(pairs, released=[pairs.released[0]] * len(pairs))
    for one in (only(attack(one_face, work), measure, "Male") for measure in ("balanced_accuracy", "auc")):
        assert one.value == pytest.approx(0.5)


def test_a_mark_of_an_attribute_in_the_pixels_is_inferred_and_of_no_other(pairs: Pairs, work: Path) -> None:
    found = attack(marked(pairs, pairs.labels["Male"] == 1), work, EYES)
    for measure in ("accuracy", "balanced_accuracy", "auc"):
        for by in ("hog", "inception", "cells"):
            assert only(found, measure, "Male", by).value == pytest.approx(1)
            assert only(found, measure, "Young", by).value == pytest.approx(0.5, abs=0.25)
    assert only(found, "balanced_accuracy", "Male", "hog").better == "lower"
    notes = [one.note for one in found if one.setting == "Young" and "strongest" in one.note]
    assert len(notes) == 3
    assert len({one.by for one in found if one.setting == "Young" and "strongest of hog" in one.note}) == 1
    assert "on the originals themselves" in notes[0]


def test_people_whose_attributes_the_attacker_knows_are_not_the_ones_attacked(pairs: Pairs, work: Path) -> None:
    # Every person has a pattern of their own: it tells all of a known person and nothing of others.
    pattern = np.random.default_rng(2).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    person = np.unique(pairs.subject, return_inverse=True)[1]
    own = painted(pairs, lambda picture, i: pattern[person[i]])
    auc = only(attack(own, work), "auc", "Smiling")
    assert auc.low is not None
    assert auc.low < 0.5


def test_inference_of_what_the_release_states_anyway_says_so(pairs: Pairs, work: Path) -> None:
    found = attack(replace(pairs, shown={"Male": pairs.labels["Male"].astype(str)}), work)
    assert "the release states this attribute" in only(found, "accuracy", "Male").note
    assert "the release states" not in only(found, "accuracy", "Young").note


def test_an_attribute_that_few_people_have_or_nobody_labelled_is_not_measured(pairs: Pairs, work: Path) -> None:
    rare = np.where(np.isin(pairs.subject, np.unique(pairs.subject)[:9]), 1, 0).astype(np.int8)
    planted = replace(pairs, labels={"Male": pairs.labels["Male"], "Bald": rare})
    found = attack(planted, work, attributes=["Bald"])
    assert only(found, "balanced_accuracy", "Bald").note == "not measured: only 9 people have its rarer value"
    assert only(found, "balanced_accuracy", "Young").note == "not measured: the originals have no such label"
    assert only(found, "balanced_accuracy", "Male").value is not None


def test_faces_of_unknown_value_are_neither_learned_nor_tested(pairs: Pairs, work: Path) -> None:
    male = pairs.labels["Male"].copy()
    male[::4] = -1
    has = (pairs.labels["Male"] == 1) & (male >= 0)
    found = only(attack(replace(marked(pairs, has), labels={"Male": male}), work), "accuracy", "Male")
    assert found.value == pytest.approx(1)
    assert found.faces == (male >= 0).sum()


def test_pictures_are_looked_at_once_and_what_was_seen_is_kept(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = utility._seen

    def watched(crops: list[np.ndarray], eyes: Eyes) -> dict[str, np.ndarray]:
        seen.append(len(crops))
        return real(crops, eyes)

    monkeypatch.setattr(utility, "_seen", watched)
    one_face = replace(pairs, released=[*pairs.original[:40], *[noise(pairs).released[0]] * 40])
    first = utility.look(one_face, EYES, tmp_path)
    assert sum(seen) == len(pairs) + 1
    again = utility.look(one_face, EYES, tmp_path)
    assert sum(seen) == len(pairs) + 1
    for name in ("hog", "inception", "cells"):
        np.testing.assert_array_equal(first.features[name], again.features[name])
    assert (first.original[:40] == first.released[:40]).all()
    assert len(set(first.released[40:].tolist())) == 1


def test_what_is_not_asked_for_is_not_looked_at(
    pairs: Pairs, same: list[Figure], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unasked(*_: Any) -> Any:
        pytest.fail("nobody asked")

    for name in ("compared", "_distance", "_downstream", "_geometry"):
        monkeypatch.setattr(utility, name, unasked)
    found = use(pairs, work, names=("agreement",))
    assert {one.name for one in found} == {"agreement"}
    assert only(found, "agreement", EVERY).value == only(same, "agreement", EVERY).value
    monkeypatch.undo()
    monkeypatch.setattr(utility, "look", unasked)
    assert only(use(pairs, work, names=("ssim",)), "ssim").value == only(same, "ssim").value


def test_a_sample_takes_whole_subjects_the_same_for_every_release(pairs: Pairs, work: Path) -> None:
    subject = np.repeat([f"p{i}" for i in range(50)], np.arange(50) % 7 + 1)
    rows = sampled(subject, 60)
    assert 50 < len(rows) <= 60
    for name in set(subject[rows]):
        assert (subject[rows] == name).sum() == (subject == name).sum()
    shuffled = np.random.default_rng(0).permutation(len(subject))
    assert set(subject[shuffled][sampled(subject[shuffled], 60)]) == set(subject[rows])
    assert len(sampled(subject, 1)) == (subject == subject[rows[0]]).sum()
    assert len(sampled(subject, 10_000)) == len(subject)
    note = only(attack(replace(pairs, out_of=500), work), "accuracy", "Male").note
    assert "a sample of whole subjects, of 500 faces" in note


def test_a_release_without_faces_is_not_measured(work: Path) -> None:
    empty = Pairs([], [], np.array([], str), np.empty((0, 5, 2)), np.empty((0, 5, 2)))
    for found in (use(empty, work), attack(empty, work)):
        assert all(one.value is None and one.note for one in found)


def by_the_formula(a: np.ndarray, b: np.ndarray, person: np.ndarray) -> float:
    apart = person[:, None] != person[None]
    kernels = [polynomial_kernel(x, y, degree=3, coef0=1)[apart].mean() for x, y in ((a, a), (b, b), (a, b))]
    return kernels[0] + kernels[1] - 2 * kernels[2]


def test_kid_is_the_published_kernels_over_pairs_of_different_people_with_a_jackknife() -> None:
    draws = np.random.default_rng(0)
    a, person = draws.normal(0, 1, (30, 8)), draws.integers(0, 12, 30)
    b = a + draws.normal(0.3, 0.5, a.shape)
    value, low, high = kernel_distance(a, b, person)
    assert value == pytest.approx(by_the_formula(a, b, person))
    people = np.unique(person)
    without = np.array([by_the_formula(a[person != p], b[person != p], person[person != p]) for p in people])
    error = np.sqrt((len(people) - 1) / len(people) * np.sum((without - without.mean()) ** 2))
    assert (low, high) == pytest.approx((value - 1.96 * error, value + 1.96 * error))
    assert kernel_distance(a, a, person)[0] == pytest.approx(0, abs=1e-12)


def test_kid_of_two_draws_of_one_distribution_is_zero_within_its_interval() -> None:
    held = 0
    for seed in range(40):
        a, b = np.random.default_rng(seed).normal(0, 1, (2, 60, 4))
        _, low, high = kernel_distance(a, b, np.arange(60))
        held += low <= 0 <= high
    assert held >= 34
