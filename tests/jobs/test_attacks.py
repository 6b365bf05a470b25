"""Claims of jobs/attacks.py, on made-up people whose answers are known; scikit-learn, SciPy and loops are oracles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve

from facecrowd.jobs.attacks import identity_figures, linkage_figures, membership_figures
from facecrowd.jobs.figures import Figure

K = 5


def draws() -> np.random.Generator:
    return np.random.default_rng(2)


class Made:
    """People with photos, and a release of most of them: originals with noise, or the mean of their class."""

    def __init__(self, subjects: int = 60, photos: int = 6, noise: float = 0.5, change: float = 0.3, left: int = 15):
        rng = np.random.default_rng(7)
        self.subject = np.repeat([f"p{i:03}" for i in range(subjects)], photos)
        centre = np.repeat(rng.standard_normal((subjects, 64)), photos, axis=0)
        self.originals = (centre + noise * rng.standard_normal(centre.shape)).astype(np.float32)
        inside = self.subject < f"p{subjects - left:03}"
        self.row = rng.permutation(np.flatnonzero(inside))
        self.who = self.subject[self.row]
        noisy = self.originals[self.row] + change * rng.standard_normal((len(self.row), 64))
        self.released = noisy.astype(np.float32)
        self.classes = np.array([int(name[1:]) // K for name in self.who])

    @property
    def embedded(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {"r": (self.released, self.originals)}

    def averaged(self) -> Made:
        """Everybody shows their class: one surrogate each."""
        means = np.stack([self.released[self.classes == c].mean(axis=0) for c in range(self.classes.max() + 1)])
        self.released = means[self.classes]
        return self


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a.astype(float), b.astype(float)))
    return a @ b.T


def one(figures: Sequence[Figure], name: str, setting: str, at: float | None = None, group: str = "") -> Figure:
    (found,) = [
        f for f in figures if (f.name, f.setting, f.group) == (name, setting, group) and (at is None or f.at == at)
    ]
    return found


@pytest.fixture(scope="module")
def made() -> Made:
    return Made(noise=1.2, change=1.5)


@pytest.fixture(scope="module")
def identity(made: Made) -> list[Figure]:
    groups = {"Male": np.where(np.arange(60) % 2, "1", "0")[[int(name[1:]) for name in made.who]]}
    return identity_figures(made.embedded, made.subject, made.row, draws(), groups=groups)


# --------------------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize("gallery", ["originals", "other originals", "released"])
def test_each_gallery_is_what_the_protocol_says(made: Made, identity: list[Figure], gallery: str) -> None:
    inside = np.flatnonzero(np.isin(made.subject, made.who))
    if gallery == "released":
        score, names = cosines(made.released, made.released), made.who
        np.fill_diagonal(score, -np.inf)
    else:
        score, names = cosines(made.released, made.originals[inside]), made.subject[inside]
        if gallery == "other originals":
            score[made.row[:, None] == inside] = -np.inf
    people = np.unique(names)
    best = np.stack([score[:, names == name].max(axis=1) for name in people], axis=1)
    own = people == made.who[:, None]
    rank = 1 + (best > best[own][:, None]).sum(axis=1)
    for n in (1, 5):
        found = one(identity, f"rank{n}", gallery)
        assert found.value == pytest.approx(np.mean([(rank[made.who == name] <= n).mean() for name in people]))
        assert found.chance == pytest.approx(n / 45)
        assert found.low is not None and found.high is not None and found.low < found.value < found.high  # noqa: PT018
        assert (found.faces, found.subjects, found.better) == (270, 45, "lower")
    false, true, _ = roc_curve(own.ravel(), best.ravel(), drop_intermediate=False)
    for far in (0.1, 1e-2, 1e-3):
        found = one(identity, "tar", gallery, far)
        assert found.value == pytest.approx(true[false <= far + 1e-12].max(), abs=1.1 / 270)
        assert found.chance == far


def test_the_source_photo_helps_the_attacker_and_its_absence_is_a_gallery_of_its_own(identity: list[Figure]) -> None:
    values = [one(identity, "rank1", gallery).value for gallery in ("originals", "other originals")]
    assert values[0] > values[1] > 1 / 45


def test_groups_are_measured_by_themselves_and_the_worst_is_named(made: Made, identity: list[Figure]) -> None:
    whole = one(identity, "rank1", "other originals")
    parts = [one(identity, "rank1", "other originals", group=f"Male = {value}") for value in "01"]
    assert whole.value == pytest.approx((parts[0].value * parts[0].subjects + parts[1].value * parts[1].subjects) / 45)
    worst = max(parts, key=lambda part: part.value)
    assert f"worst group: {worst.group}" in whole.note
    assert parts[0].chance == pytest.approx(1 / 45)


def test_one_surrogate_per_class_is_named_one_time_in_k_and_the_bound_stands() -> None:
    made = Made(left=0).averaged()
    found = identity_figures(made.embedded, made.subject, made.row, draws(), classes=made.classes, bound=1 / K)
    for gallery in ("originals", "other originals", "released"):
        rank1, p = one(found, "rank1", gallery), one(found, "p-value", gallery)
        assert rank1.value is not None
        assert rank1.value <= 1 / K + 1e-9
        assert (p.value, p.at, p.better) == (1.0, 1 / K, "")
        assert "not refuted" in p.note
    assert one(found, "rank1", "released").value == pytest.approx(1 / K)


def test_a_release_that_breaks_the_bound_is_refuted_and_without_a_formal_method_nothing_is_tested(made: Made) -> None:
    given = {"classes": made.classes, "bound": 1 / K}
    broken = identity_figures(made.embedded, made.subject, made.row, draws(), **given)
    p = one(broken, "p-value", "originals")
    assert p.value is not None
    assert p.value < 1e-3
    assert "The bound is refuted" in p.note
    assert not [f for f in identity_figures(made.embedded, made.subject, made.row, draws()) if f.name == "p-value"]


def test_faces_that_a_recogniser_does_not_find_are_left_out_and_counted(made: Made) -> None:
    released, originals = made.released.copy(), made.originals.copy()
    released[:20], originals[3] = 0, np.nan
    found = one(identity_figures({"r": (released, originals)}, made.subject, made.row, draws()), "rank1", "originals")
    assert found.faces == 250
    assert "no face found in 20 of 270 released pictures" in found.note
    blind = identity_figures({"r": (0 * released, originals)}, made.subject, made.row, draws())
    assert all(f.value is None and f.note.startswith("not measured: ") for f in blind)


def test_people_with_one_photo_have_no_other_gallery_face_and_the_reason_is_told() -> None:
    made = Made(photos=1)
    found = identity_figures(made.embedded, made.subject, made.row, draws())
    assert one(found, "rank1", "originals").value is not None
    for gallery in ("other originals", "released"):
        lost = one(found, "rank1", gallery)
        assert (lost.value, lost.chance) == (None, None)
        assert "nobody can be identified" in lost.note


def test_of_too_many_faces_whole_people_are_drawn(made: Made) -> None:
    found = one(identity_figures(made.embedded, made.subject, made.row, draws(), most=100), "rank1", "originals")
    assert (found.faces, found.subjects) == (96, 16)
    assert "96 of 270 released faces" in found.note
    assert found.chance == pytest.approx(1 / 45)


# ---------------------------------------------------------------------------------------------------------- linkage


def pairs_by_hand(made: Made, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, whether of one person, and weights that make people weigh the same."""
    first, second = np.triu_indices(len(made.who), 1)
    kept = crowd[first] == crowd[second]
    first, second = first[kept], second[kept]
    score = cosines(made.released, made.released)[first, second]
    same = made.who[first] == made.who[second]
    people, person = np.unique(made.who[first], return_inverse=True)
    genuine = np.bincount(person[same], minlength=len(people))
    return score, same, np.where(same, 1 / np.maximum(1, genuine[person]), 1.0)


@pytest.mark.parametrize("setting", ["released pairs", "pairs of one class"])
def test_linkage_is_that_of_the_roc_curve_over_all_pairs(setting: str) -> None:
    made = Made(noise=1.5, change=2.5)
    drop = np.random.default_rng(0).random(len(made.who)) < 0.7  # people with different counts
    made.row, made.who, made.released, made.classes = (
        x[drop] for x in (made.row, made.who, made.released, made.classes)
    )
    crowd = made.classes if setting == "pairs of one class" else np.zeros(len(made.who))
    score, same, weight = pairs_by_hand(made, crowd)
    found = linkage_figures(made.embedded, made.subject, made.row, draws(), classes=made.classes)
    area = one(found, "auc", setting)
    assert area.value == pytest.approx(roc_auc_score(same, score, sample_weight=weight), abs=1e-4)
    assert area.low < area.value < area.high
    false, true, _ = roc_curve(same, score, sample_weight=weight, drop_intermediate=False)
    equal = brentq(lambda x: 1 - x - np.interp(x, false, true), 0, 1)
    assert one(found, "eer", setting).value == pytest.approx(equal, abs=4e-3)
    for far in (0.1, 1e-2):
        assert one(found, "tar", setting, far).value == pytest.approx(true[false <= far + 1e-12].max(), abs=5e-3)
    assert area.chance == 0.5
    assert area.note == f"{same.sum():,} pairs of one person, {(~same).sum():,} of two"


def test_inside_a_class_one_surrogate_links_nobody_and_between_classes_the_class_does() -> None:
    made = Made(left=0).averaged()
    found = linkage_figures(made.embedded, made.subject, made.row, draws(), classes=made.classes)
    inside = {name: one(found, name, "pairs of one class") for name in ("auc", "eer")}
    assert inside["auc"].value == inside["eer"].value == 0.5
    assert one(found, "tar", "pairs of one class", 0.1).value == 0
    assert one(found, "auc", "released pairs").value > 0.9


def test_linkage_without_two_photos_of_anybody_is_not_measured() -> None:
    made = Made(photos=1)
    found = linkage_figures(made.embedded, made.subject, made.row, draws())
    assert {f.value for f in found} == {None}
    assert "no pair of faces of one person" in found[0].note


# ------------------------------------------------------------------------------------------------------- membership


def test_membership_is_told_from_the_nearest_released_face_and_people_weigh_the_same() -> None:
    made = Made(noise=1.0, change=4.0)
    keep = np.random.default_rng(1).random(len(made.subject)) < 0.8
    keep[made.row] = True
    originals, subject = made.originals[keep], made.subject[keep]
    row = (np.cumsum(keep) - 1)[made.row]
    found = membership_figures({"r": (made.released, originals)}, subject, row, draws())
    score = cosines(originals, made.released).max(axis=1)
    member = np.isin(subject, made.who)
    _, person, count = np.unique(subject, return_inverse=True, return_counts=True)
    weight = 1 / count[person]
    area = one(found, "auc", "people not released")
    assert area.value == pytest.approx(roc_auc_score(member, score, sample_weight=weight), abs=1e-4)
    assert area.low < area.value < area.high
    assert (area.subjects, area.faces) == (60, len(subject))
    false, true, _ = roc_curve(member, score, sample_weight=weight, drop_intermediate=False)
    for fpr in (0.1, 0.01):
        assert one(found, "tpr", "people not released", fpr).value == pytest.approx(true[false <= fpr + 1e-9].max())


def test_outsiders_may_be_brought_and_may_be_called_like_members() -> None:
    made = Made(left=2)
    rng = draws()
    others = rng.standard_normal((40, 64)).astype(np.float32)
    found = membership_figures(
        made.embedded, made.subject, made.row, rng, outsiders={"r": others}, outsider=np.repeat(made.who[:20], 2)
    )
    assert one(found, "auc", "outsiders").value > 0.9
    assert one(found, "auc", "outsiders").subjects == 58 + len(set(made.who[:20]))


def test_fewer_than_ten_people_outside_the_release_are_too_few() -> None:
    made = Made(left=9)
    found = membership_figures(made.embedded, made.subject, made.row, draws())
    assert [f.value for f in found] == [None] * 3
    assert "9 people who are not in the release are too few" in found[0].note


def test_a_release_that_shows_nobody_tells_no_member() -> None:
    made = Made(subjects=120, left=60, noise=1.0)
    made.released = draws().standard_normal(made.released.shape).astype(np.float32)
    area = one(membership_figures(made.embedded, made.subject, made.row, draws()), "auc", "people not released")
    assert area.low < 0.5 < area.high


def test_figures_are_the_same_for_the_same_draws(made: Made, identity: list[Figure]) -> None:
    assert identity_figures(made.embedded, made.subject, made.row, draws())[0].value == identity[0].value
    assert [membership_figures(made.embedded, made.subject, made.row, draws()) for _ in range(2)] == [
        membership_figures(made.embedded, made.subject, made.row, draws())
    ] * 2
