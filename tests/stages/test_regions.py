"""Claims of stages/regions.py: where a recogniser sees a person, which part that is, and what may be changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from facecrowd.pipeline import presets
from facecrowd.stages import align, regions
from facecrowd.stages.align import Align
from facecrowd.stages.attributes import ATTRIBUTES
from facecrowd.stages.decode import decode
from facecrowd.stages.detect import Detect
from facecrowd.stages.encode import encode
from facecrowd.stages.regions import (
    PARTS,
    SIDE,
    ActivationMaps,
    Cam,
    Landmarks,
    Masks,
    Parsing,
    Regions,
    activation,
    fit_cam,
    heatmaps,
    indicator,
    overlay,
    ranking,
    seen,
)

pytestmark = pytest.mark.usefixtures("one_thread")

PEOPLE = Path(__file__).resolve().parents[2] / "jobs" / "faces"
HAIR, BROWS, EYES, NOSE, LIPS = range(5)


@pytest.fixture(scope="module")
def folder(weights: Callable[[str], Path]) -> list[Path]:
    """Where the networks lie."""
    return [weights(name).parent for name in ("scrfd-500m", "arcface-mobilefacenet", "landmarks-2d106")]


@pytest.fixture(scope="module")
def crops(folder: list[Path]) -> list[np.ndarray]:
    """Three people who do not exist, two pictures each, FFHQ-aligned: (256, 256, 3) uint8 RGB."""
    photos = [decode((PEOPLE / person / f"{i}.jpg").read_bytes()) for person in ("p01", "p05", "p09") for i in (1, 2)]
    found = Align()(Detect(folder=folder)({"photo": photos, "path": [str(i) for i in range(6)]}))
    assert list(found["status"]) == ["ok"] * 6
    return list(found["crop"])


SUBJECTS = ("p01", "p01", "p05", "p05", "p09", "p09")


@pytest.fixture(scope="module")
def maps(folder: list[Path]) -> ActivationMaps:
    return ActivationMaps.load(folder, at_once=4)


@pytest.fixture(scope="module")
def heat(maps: ActivationMaps, crops: list[np.ndarray]) -> np.ndarray:
    return maps.grad_cam(crops)


@pytest.fixture(scope="module")
def parts(folder: list[Path], crops: list[np.ndarray]) -> Masks:
    return Landmarks.load(folder).find(crops)


def centre(weight: np.ndarray) -> np.ndarray:
    """(x, y) in shares of the crop, of the mean of a mask or heatmap (SIDE, SIDE)."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def moved(crop: np.ndarray, dx: int, dy: int) -> np.ndarray:
    return cv2.warpAffine(crop, np.float64([[1, 0, dx], [0, 1, dy]]), crop.shape[:2], borderMode=cv2.BORDER_REPLICATE)


# ----------------------------------------------------------------------------------------------------------- heatmaps


@pytest.mark.parametrize("layer, cells", [("middle", 14), ("last", 7)])
def test_grad_cam_is_the_relu_of_the_maps_weighed_by_their_mean_gradients(maps, crops, layer, cells):
    """captum against the equations of Grad-CAM written out, with the network cut at the layer."""
    network, chips = maps.network, maps.chips(crops[:3])
    person = F.normalize(torch.randn(3, 512, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        cut = network.maps(chips)[1 if layer == "middle" else 2]
    cut.requires_grad_()
    last = network.expand(network.stage3(cut)) if layer == "middle" else cut
    out = network.norm(network.embedding(network.head(last)))
    (gradient,) = torch.autograd.grad((out * person).sum(), cut)
    expected = (gradient.mean((2, 3), keepdim=True) * cut).sum(1).relu().detach()
    assert expected.shape == (3, cells, cells)
    assert expected.max() > 0
    found = ActivationMaps(network, layer).attribute(chips, 7 * person)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_face_s_own_embedding_is_its_person_where_none_is_given(maps, crops, heat):
    """By the logit: the cosine of an embedding to itself is at its maximum and has no gradient."""
    with torch.no_grad():
        own = maps.network(maps.chips(crops)).numpy()
    np.testing.assert_allclose(maps.grad_cam(crops, own), heat, atol=1e-4)
    mixed = np.where(np.arange(6)[:, None] < 3, own[::-1], np.nan)
    found = maps.grad_cam(crops, mixed)
    np.testing.assert_allclose(found[3:], heat[3:], atol=1e-4)
    assert np.abs(found[:3] - heat[:3]).max() > 0.1
    out = maps.network(maps.chips(crops[:1]).requires_grad_())
    cosine = F.cosine_similarity(out, out.detach()).sum()
    (gradient,) = torch.autograd.grad(cosine, out)
    assert gradient.abs().max() < 1e-5


def test_heatmaps_lie_in_0_to_1_on_the_crop_and_are_0_where_the_recogniser_does_not_look(heat):
    assert heat.shape == (6, SIDE, SIDE)
    assert heat.dtype == np.float32
    assert heat.min() == 0
    np.testing.assert_array_equal(heat.max(axis=(1, 2)), 1)
    assert (heat[:, ~seen()] == 0).all()
    assert 0.55 < seen().mean() < 0.65


def test_a_cell_of_the_chip_s_map_lights_up_where_the_chip_shows_the_crop():
    matrix = align.similarity(align.template(SIDE)[None], align.template(align.ARCFACE_SIZE, "arcface"))[0]
    for row, column in ((1, 1), (3, 11), (12, 6)):
        own = torch.zeros(1, 14, 14)
        own[0, row, column] = 5
        at = np.array([column, row]) * 8 + 3.5
        x, y = align.apply(align.invert(matrix), at)
        found = heatmaps(own)[0]
        assert np.abs(np.array(np.unravel_index(found.argmax(), found.shape)) - [y, x]).max() <= 1
        assert centre(found) * SIDE - 0.5 == pytest.approx([x, y], abs=0.8)


def test_negative_evidence_is_none_and_a_face_without_evidence_is_0_all_over():
    own = torch.linspace(-1, 1, 196).reshape(1, 14, 14)
    found = heatmaps(torch.cat([own, -own.abs() - 0.1]))
    assert (found[0][: SIDE // 3] == 0).all()
    assert found[0].max() == 1
    assert not found[1].any()
    assert heatmaps(torch.zeros(0, 14, 14)).shape == (0, SIDE, SIDE)


@pytest.mark.parametrize("dx, dy", [(24, 0), (-24, 0), (0, 16), (0, -16)])
def test_the_heatmap_follows_the_face_when_it_is_moved_in_the_crop(maps, crops, heat, dx, dy):
    """Held to the person of the unmoved face."""
    with torch.no_grad():
        person = maps.network(maps.chips(crops)).numpy()
    found = maps.grad_cam([moved(crop, dx, dy) for crop in crops], person)
    step = SIDE / 256
    followed = np.stack([moved(one, round(dx * step), round(dy * step)) for one in heat])
    assert alike(found, followed) > alike(found, heat) + 0.1


def test_the_heatmap_of_a_mirrored_face_is_the_mirrored_heatmap(maps, crops, heat):
    found = maps.grad_cam([np.ascontiguousarray(crop[:, ::-1]) for crop in crops])
    assert alike(found[:, :, ::-1], heat) > 0.8
    assert alike(found[:, :, ::-1], np.roll(heat, 4, axis=2)) < alike(found[:, :, ::-1], heat) - 0.1


def alike(some: np.ndarray, others: np.ndarray) -> float:
    """The mean correlation of heatmaps, over what the recogniser sees."""
    return float(np.mean([np.corrcoef(a[seen()], b[seen()])[0, 1] for a, b in zip(some, others, strict=True)]))


def test_heatmaps_depend_on_the_face_but_neither_on_its_company_nor_much_on_the_crop_s_size(maps, crops, heat):
    np.testing.assert_allclose(maps.grad_cam(crops[4:]), heat[4:], atol=1e-4)
    assert np.abs(heat[0] - heat[2]).mean() > 0.02
    large = [cv2.resize(crop, (512, 512), interpolation=cv2.INTER_CUBIC) for crop in crops]
    assert alike(maps.grad_cam(large), heat) > 0.95


def test_a_layer_that_is_none_is_told(maps):
    with pytest.raises(ValueError, match="layer is 'first', not 'middle' or 'last'"):
        ActivationMaps(maps.network, "first")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- the paper's CAM


def drawn_maps() -> tuple[torch.Tensor, list[str]]:
    """Maps of 40 faces of 4 subjects; each subject has a channel that is active for them in one corner."""
    draws = torch.Generator().manual_seed(3)
    found = torch.rand(40, 8, 6, 6, generator=draws)
    subjects = [f"s{i % 4}" for i in range(40)]
    corners = [(slice(0, 3), slice(0, 3)), (slice(0, 3), slice(3, 6)), (slice(3, 6), slice(0, 3)), (slice(3, 6),) * 2]
    for i, subject in enumerate(subjects):
        who = int(subject[1])
        found[i, who, corners[who][0], corners[who][1]] += 1
    return found, subjects


def test_the_score_of_equation_1_is_the_mean_of_the_map_of_equation_2():
    draws = torch.Generator().manual_seed(1)
    head = Cam(torch.randn(3, 8, generator=draws), ("a", "b", "c"))
    own = torch.randn(5, 8, 4, 6, generator=draws)
    scores = head.scores(own)
    for c, subject in enumerate(head.subjects):
        found = head.activation(own, [subject] * 5)
        assert found.shape == (5, 4, 6)
        torch.testing.assert_close(found.mean((1, 2)), scores[:, c])
        by_hand = sum(head.weight[c, d] * own[:, d, 1, 2] for d in range(8))
        torch.testing.assert_close(found[:, 1, 2], by_hand)
    mixed = head.activation(own[:2], ["c", "a"])
    torch.testing.assert_close(mixed[0], head.activation(own[:1], ["c"])[0])


def test_a_fitted_head_tells_its_subjects_and_its_maps_show_what_is_theirs():
    own, subjects = drawn_maps()
    head = fit_cam(own, subjects)
    assert head.subjects == ("s0", "s1", "s2", "s3")
    assert [head.subjects[i] for i in head.scores(own).argmax(1)] == subjects
    found = head.activation(own, subjects)
    for i, subject in enumerate(subjects):
        blocks = F.avg_pool2d(found[i][None], 3)[0].flatten()
        assert blocks.argmax() == int(subject[1])
    # What a softmax cannot tell, the penalty takes away: evidence is that for one rather than the others.
    torch.testing.assert_close(head.weight.sum(0), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(fit_cam(own, subjects).weight, head.weight)


def test_the_fit_is_scikit_learn_s_softmax_regression():
    from sklearn.linear_model import LogisticRegression

    own, subjects = drawn_maps()
    x = own.mean((2, 3))
    x = (x / x.std(0)).numpy()
    # Its C weighs the summed losses of 40 faces against half the squared weights.
    oracle = LogisticRegression(C=1 / (40 * 0.05), fit_intercept=False, max_iter=2000, tol=1e-8).fit(x, subjects)
    head = fit_cam(own, subjects, penalty=0.05, steps=500)
    scaled = head.weight * own.mean((2, 3)).std(0)
    np.testing.assert_allclose(scaled.numpy(), oracle.coef_, atol=5e-3)


def test_cam_draws_the_heatmaps_of_a_head_and_tells_of_a_subject_it_does_not_know(maps, crops):
    head = fit_cam(maps.maps(crops), SUBJECTS)
    found = maps.cam(crops, head, SUBJECTS)
    assert found.shape == (6, SIDE, SIDE)
    assert [head.subjects[i] for i in head.scores(maps.maps(crops)).argmax(1)] == list(SUBJECTS)
    expected = heatmaps(head.activation(maps.maps(crops[:1]), ["p01"]))
    np.testing.assert_allclose(found[:1], expected, atol=1e-4)
    with pytest.raises(ValueError, match="map of nobody"):
        maps.cam(crops[:1], head, ["nobody"])


@pytest.mark.parametrize("subjects", [["a", "a"], ["a", "b", "c"], []])
def test_one_subject_or_another_number_of_names_fits_no_head(subjects):
    with pytest.raises(ValueError, match=r"2 faces of \d names, \d of them different, fit no head"):
        fit_cam(torch.rand(2, 3, 4, 4), subjects)


# -------------------------------------------------------------------------------------------------------------- parts


@pytest.fixture(scope="module", params=["landmarks", "parsing"])
def masks(request: pytest.FixtureRequest, weights: Callable[[str], Path], crops: list[np.ndarray]) -> Masks:
    if request.param == "parsing":
        return Parsing.load(weights("bisenet").parent).find(crops)
    return request.getfixturevalue("parts")


def test_parts_lie_where_the_five_points_of_the_alignment_are(masks):
    template = align.template(512) / 512
    left, right, nose, corners = template[0], template[1], template[2], template[3:]
    for five in masks.parts:
        where = [centre(mask) for mask in five]
        assert where[EYES] == pytest.approx((left + right) / 2, abs=0.03)
        assert where[LIPS] == pytest.approx(corners.mean(0), abs=0.04)
        assert where[NOSE][0] == pytest.approx(nose[0], abs=0.04)
        assert where[EYES][1] < where[NOSE][1] < corners[0, 1]
        assert 0.03 < where[EYES][1] - where[BROWS][1] < 0.12
        tops = [np.flatnonzero(five[part].any(axis=1)).min() for part in (HAIR, BROWS)]
        assert tops[0] < tops[1]
        for eye in (left, right):
            x, y = (eye * SIDE).astype(int)
            assert five[EYES, y - 1 : y + 2, x - 1 : x + 2].max() > 0.5


def test_masks_are_shares_of_cells_that_the_recogniser_sees_and_parts_belong_to_the_face(masks):
    assert masks.parts.shape == (6, 5, SIDE, SIDE)
    assert masks.face.shape == (6, SIDE, SIDE)
    assert masks.parts.dtype == masks.face.dtype == np.float32
    assert masks.parts.min() >= 0
    assert masks.parts.max() <= 1
    assert not masks.parts[..., ~seen()].any()
    assert (masks.parts[:, BROWS:].sum(1) <= masks.face + 0.5).mean() > 0.99
    assert (masks.parts[:, BROWS:].sum((2, 3)) >= 5).all()


def test_landmarks_and_parsing_find_the_same_parts_and_the_same_order_of_them(parts, weights, crops, heat):
    other = Parsing.load(weights("bisenet").parent).find(crops)
    both, either = (np.minimum(parts.parts, other.parts), np.maximum(parts.parts, other.parts))
    overlap = both.sum((0, 2, 3)) / either.sum((0, 2, 3))
    assert (overlap[[EYES, NOSE, LIPS]] > 0.5).all()
    one, two = (ranking(activation(heat, m)[:, BROWS:]) for m in (parts, other))
    assert np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one, two, strict=True)]) > 0.8


def test_parts_are_where_they_were_at_any_size_of_the_crop(folder, crops, parts):
    found = Landmarks.load(folder).find(
        [cv2.resize(crops[0], (s, s), interpolation=cv2.INTER_AREA) for s in (128, 512)]
    )
    for five in found.parts:
        for mask, own in zip(five, parts.parts[0], strict=True):
            assert np.abs(centre(mask) - centre(own)).max() < 0.015


def test_a_picture_of_no_face_has_no_parts_to_a_parser(weights):
    found = Parsing.load(weights("bisenet").parent).find([np.full((256, 256, 3), 128, np.uint8)])
    assert np.isnan(activation(np.ones((1, SIDE, SIDE), np.float32), found)[0, BROWS:]).all()


def test_no_crops_have_no_parts(folder, weights):
    for finder in (Landmarks.load(folder), Parsing.load(weights("bisenet").parent)):
        assert finder.find([]).parts.shape == (0, 5, SIDE, SIDE)


# --------------------------------------------------------------------------------------------- activation and ranking


def painted() -> tuple[np.ndarray, Masks]:
    """One face of 32 x 32 cells with four parts of 8 x 8, no eyes; a heatmap of 0.1, 0.2, 0.3, 0.4 there, else 0.1."""
    parts, face, heat = np.zeros((1, 5, SIDE, SIDE)), np.zeros((1, SIDE, SIDE)), np.full((1, SIDE, SIDE), 0.1)
    face[0, 16:48, 16:48] = 1
    for i, part in enumerate((HAIR, BROWS, NOSE, LIPS)):
        block = (0, slice(16, 24), slice(16 + 8 * i, 24 + 8 * i))
        parts[(0, part, *block[1:])] = 1
        heat[block] = 0.1 * (i + 1)
    return heat, Masks(parts.astype(np.float32), face.astype(np.float32))


def test_activation_is_the_mean_over_a_part_in_units_of_the_face_s_and_nan_for_what_is_absent():
    heat, masks = painted()
    whole = (4 * 0.25 + 12 * 0.1) / 16
    found = activation(heat, masks)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], np.array([0.1, 0.2, np.nan, 0.3, 0.4]) / whole, rtol=1e-5)
    np.testing.assert_allclose(activation(heat * 3, masks), found, rtol=1e-5)


def test_a_part_of_less_than_two_cells_is_absent():
    heat, masks = painted()
    masks.parts[0, NOSE] = 0
    masks.parts[0, NOSE, 30, 30:34] = 0.48
    assert np.isnan(activation(heat, masks)[0, NOSE])
    masks.parts[0, NOSE, 30, 30:34] = 0.51
    assert activation(heat, masks)[0, NOSE] > 0


def test_a_cell_that_shows_half_a_part_counts_half():
    heat, masks = painted()
    heat[0, 40, 40:50], masks.parts[0, EYES, 40, 40:50] = 0.9, 0.5
    heat[0, 41, 40:45], masks.parts[0, EYES, 41, 40:45] = 0.3, 1.0
    found = activation(heat, masks)[0]
    assert found[EYES] / found[HAIR] == pytest.approx((0.9 * 5 + 0.3 * 5) / 10 / 0.1, rel=1e-4)


def test_a_face_without_evidence_or_without_a_face_has_no_activation():
    heat, masks = painted()
    assert np.isnan(activation(heat * 0, masks)).all()
    masks.face[:] = 0
    assert np.isnan(activation(heat, masks)).all()


def test_ranking_counts_up_from_the_least_active_part_and_leaves_out_the_absent():
    values = np.array([[0.5, 2.0, 0.1, np.nan, 1.0], [1, 1, 1, 1, 1]])
    assert ranking(values).tolist() == [[1, 3, 0, -1, 2], [0, 1, 2, 3, 4]]


def test_the_most_active_parts_of_a_face_are_not_the_lips(heat, parts):
    """Faces are told by eyes and brows; on all 6 pictures both together are more active than nose and lips."""
    found = activation(heat, parts)
    assert (found[:, [BROWS, EYES]].mean(1) > found[:, [NOSE, LIPS]].mean(1)).all()


# ---------------------------------------------------------------------------------------------------------- indicator

ACTIVATIONS = arrays(np.float32, st.tuples(st.integers(1, 6), st.just(5)), elements=st.floats(0, 4, width=32))
WITH_ABSENT = arrays(
    np.float32, st.tuples(st.integers(1, 6), st.just(5)), elements=st.one_of(st.floats(0, 4, width=32), st.just(np.nan))
)


@given(ACTIVATIONS, st.integers(1, 4))
def test_the_n_least_active_parts_are_obfuscated_and_the_hair_is_spared(values, n):
    found = indicator(values, n)
    assert found.dtype == bool
    assert (found.sum(1) == n).all()
    assert not found[:, HAIR].any()
    for row, chosen in zip(values, found, strict=True):
        kept = [row[i] for i in range(1, 5) if not chosen[i]]
        assert not kept or row[chosen].max() <= min(kept)


@given(WITH_ABSENT, st.sampled_from([1, 2, 3, 4, "adaptive"]))
def test_an_absent_part_is_never_obfuscated_and_of_too_few_parts_all_are(values, n):
    found = indicator(values, n, threshold=1.5)
    assert not (found & np.isnan(values)).any()
    there = (~np.isnan(values[:, 1:])).sum(1)
    if n != "adaptive":
        assert (found.sum(1) == np.minimum(n, there)).all()
    assert (found.any(1) == (there > 0)).all()


@given(WITH_ABSENT, st.floats(0.01, 4), st.floats(0.01, 4))
def test_adaptive_takes_what_lies_below_the_threshold_and_no_fewer_with_a_higher_one(values, one, two):
    low, high = (indicator(values, "adaptive", t) for t in sorted((one, two)))
    assert (high >= low).all()
    expected = values < np.float32(min(one, two))
    expected[:, HAIR] = False
    several = expected.sum(1) > 0
    np.testing.assert_array_equal(low[several], expected[several])
    assert (low[~several].sum(1) == (~np.isnan(values[~several, 1:])).any(1)).all()


def test_adaptive_takes_the_least_of_all_at_any_rate_and_at_most_four():
    values = np.array([[3.0, 3.0, 2.0, 4.0, 5.0], [0.5, 0.4, 0.3, 0.2, 0.1]])
    assert indicator(values, "adaptive", 1.0, spare=()).tolist() == [
        [False, False, True, False, False],
        [False, True, True, True, True],
    ]
    assert indicator(values, "adaptive", 1.0)[0].tolist() == [False, False, True, False, False]


def test_other_parts_can_be_spared():
    values = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    assert indicator(values, 2, spare=()).tolist() == [[True, True, False, False, False]]
    assert indicator(values, 2, spare=("eyebrows", "nose")).tolist() == [[True, False, True, False, False]]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"parts": 0}, "parts is 0, but must be 'adaptive' or 1 to 4 where hair are spared"),
        ({"parts": 5, "spare": ()}, "parts is 5, but must be 'adaptive' or 1 to 4$"),
        ({"parts": True}, "parts is True"),
        ({"parts": "all"}, "parts is 'all'"),
        ({"parts": 4, "spare": ("hair", "eyes")}, "1 to 3 where hair, eyes are spared"),
        ({"spare": ("ears",)}, "spare names 'ears', which is none of hair, eyebrows, eyes, nose, lips"),
        ({"spare": tuple(PARTS)}, "5 of 5 parts are spared"),
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"threshold": float("nan")}, "threshold is nan"),
    ],
)
def test_settings_that_mean_nothing_are_told_before_any_work(settings, message):
    with pytest.raises(ValueError, match=message):
        indicator(np.ones((1, 5)), **settings)
    with pytest.raises(ValueError, match=message):
        Regions(**settings)


def test_each_part_has_the_attribute_of_the_preset_and_of_the_predictors():
    assert tuple(PARTS.values()) == presets.FIVE_PARTS
    assert set(PARTS.values()) <= set(ATTRIBUTES)


# ------------------------------------------------------------------------------------------------ pictures, and a stage


def test_an_overlay_is_red_where_the_heatmap_is_1_blue_where_it_is_0_and_shows_the_crop():
    heat = np.zeros((SIDE, SIDE), np.float32)
    heat[: SIDE // 2] = 1
    crop = np.full((256, 256, 3), 100, np.uint8)
    crop[:, :128] = 180
    found = overlay(crop, heat).astype(int)
    assert found.shape == (256, 256, 3)
    assert found[60, 200, 0] > found[60, 200, 2] + 30
    assert found[200, 200, 2] > found[200, 200, 0] + 30
    assert (found[:, 50] > found[:, 200] + 30).all()
    np.testing.assert_array_equal(overlay(crop, heat, 0), crop)


def test_the_stage_gives_activation_and_indicator_of_pixels_and_of_bytes(folder, crops, heat, parts):
    stage = Regions(parts=2, folder=folder, at_once=4)
    stage.setup()
    out = stage({"crop": crops, "status": ["ok"] * 6})
    assert list(out["status"]) == ["ok"] * 6
    expected = activation(heat, parts)
    np.testing.assert_allclose(out["activation"], expected, atol=1e-3)
    np.testing.assert_array_equal(out["obfuscate"], indicator(expected, 2))
    assert out["activation"].dtype == np.float32
    assert out["obfuscate"].dtype == bool
    files = [encode(crop) for crop in crops]
    read, seen_ = (stage({"crop": cells}) for cells in (files, [decode(file) for file in files]))
    np.testing.assert_array_equal(read["activation"], seen_["activation"])


def test_the_stage_takes_the_persons_embedding_from_a_column_where_a_row_has_one(folder, maps, crops, heat, parts):
    stage = Regions(folder=folder, identity="centroid", column="image")
    assert stage.inputs == ("image", "centroid")
    with torch.no_grad():
        others = maps.network(maps.chips(crops[3:4])).numpy()[0]
    out = stage({"image": crops[:3], "centroid": [None, others, np.ones(3)], "status": ["ok"] * 3})
    assert list(out["status"]) == ["ok", "ok", "failed"]
    assert "not an embedding of 512 numbers" in out["reason"][2]
    own = activation(heat, parts)
    np.testing.assert_allclose(out["activation"][0], own[0], atol=1e-3)
    assert np.abs(out["activation"][1] - own[1]).max() > 0.05


def test_a_bad_row_gets_a_status_and_costs_no_other(folder, crops, heat, parts):
    cells = [crops[0], encode(crops[1])[:200], None, crops[2][:, :80], crops[3].astype(np.float32), crops[1], crops[2]]
    batch = {"crop": cells, "status": np.array(["ok"] * 6 + ["no_face"], dtype=object)}
    out = Regions(folder=folder)(batch)
    assert list(out["status"]) == ["ok", "unreadable", "failed", "failed", "failed", "ok", "no_face"]
    assert all(reason.startswith("regions: ") for reason in out["reason"][2:5])
    assert out["reason"][1]
    assert np.isnan(out["activation"][[1, 2, 3, 4, 6]]).all()
    assert not out["obfuscate"][[1, 2, 3, 4, 6]].any()
    np.testing.assert_allclose(out["activation"][[0, 5]], activation(heat, parts)[:2], atol=1e-3)
    assert out["obfuscate"][[0, 5]].any(axis=1).all()
    assert list(batch["status"]) == ["ok"] * 6 + ["no_face"]


def test_a_face_in_which_no_part_is_found_is_a_row_with_a_reason(folder, crops, weights):
    stage = Regions(folder=[*folder, weights("bisenet").parent], finder="parsing")
    out = stage({"crop": [np.full((256, 256, 3), 128, np.uint8), crops[0]]})
    assert list(out["status"]) == ["failed", "ok"]
    assert out["reason"][0] == "regions: no part that may be obfuscated was found in the face"
    assert np.isnan(out["activation"][0]).all()
    assert not out["obfuscate"][0].any()
    with pytest.raises(ValueError, match="finder is 'ears', not one of landmarks, parsing"):
        Regions(finder="ears")  # type: ignore[arg-type]


def test_an_empty_batch_stays_empty(folder):
    out = Regions(folder=folder)({"crop": [], "status": np.array([], dtype=object)})
    assert out["activation"].shape == out["obfuscate"].shape == (0, 5)


def test_nothing_here_needs_torchvision():
    import sys

    assert regions.ActivationMaps
    assert "torchvision" not in sys.modules
