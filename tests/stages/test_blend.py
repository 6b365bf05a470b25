"""Claims of stages/blend.py: no original pixel of any detected face is left, and no seam shows."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from facecrowd.stages.align import apply, invert, similarity, template
from facecrowd.stages.blend import COVER, FADE, SHIFT, Blend, blend, cover, face_mask, paste
from facecrowd.stages.inpaint import MARGIN
from facecrowd.stages.obscure import FACE_AXES, FACE_CENTRE


def ellipse(shape: tuple[int, ...], centre: np.ndarray, half: np.ndarray) -> np.ndarray:
    y, x = np.indices(shape[:2])
    return np.hypot((x - centre[0]) / half[0], (y - centre[1]) / half[1]) <= 1


def placed(x: float, y: float, size: float, turn: float = 0.2) -> np.ndarray:
    """The matrix of a face whose crop would be ``size`` photo pixels wide around (x, y)."""
    z = template(256) - 128
    c, s = np.cos(turn), np.sin(turn)
    face = z @ np.array([[c, s], [-s, c]]) * (size / 256) + [x, y]
    return similarity(face[None], template(256))[0]


@pytest.mark.parametrize("reach", [1.0, MARGIN])
@pytest.mark.parametrize("size", [60, 200, 700])
def test_no_original_pixel_is_left_inside_the_face(size, reach):
    """Two photos that differ only inside the face give the same result; an inpainted face reaches as far as hidden."""
    draws = np.random.Generator(np.random.Philox(3))
    photo = draws.integers(0, 256, (500, 600, 3), dtype=np.uint8)
    crop = draws.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    matrix = placed(300, 250, size)
    inside = invert(matrix)
    y, x = np.indices(photo.shape[:2])
    u, v = np.moveaxis(apply(matrix, np.stack([x, y], -1)), -1, 0)
    face = np.hypot(u / 256 - FACE_CENTRE[0], (v / 256 - FACE_CENTRE[1]) * FACE_AXES[0] / FACE_AXES[1]) < (
        reach * FACE_AXES[0] - 2.5 / 256 * max(1, 256 / size)
    )
    assert face.sum() > 0.1 * size**2 * 0.5
    assert inside.shape == (2, 3)
    other = photo.copy()
    other[face] = draws.integers(0, 256, (int(face.sum()), 3), dtype=np.uint8)
    results = [blend(p, [(crop, matrix, None)], [], reach=reach) for p in (photo, other)]
    assert np.array_equal(results[0][face], results[1][face])


def test_no_original_pixel_is_left_inside_the_detected_box_s_ellipse():
    draws = np.random.Generator(np.random.Philox(4))
    photo = draws.integers(0, 256, (400, 400, 3), dtype=np.uint8)
    crop = np.full((256, 256, 3), 90, np.uint8)
    # A profile: the box reaches beyond the template's ellipse, and even beyond the crop.
    box = np.array([100, 120, 330, 300], np.float32)
    out = blend(photo, [(crop, placed(180, 200, 200, 0.0), box)], [])
    face = ellipse(photo.shape, np.array([215, 210]), np.array([115, 90]) - 1.0)
    assert (out[face] == 90).all()


def test_outside_the_mask_the_photo_is_as_it_was():
    photo = np.full((400, 400, 3), 200, np.uint8)
    out = blend(photo, [(np.zeros((256, 256, 3), np.uint8), placed(200, 200, 200, 0.0), None)], [])
    away = ~ellipse(photo.shape, np.array([200, 217]), np.array(FACE_AXES) * 200 * FADE + 2)
    assert (out[away] == 200).all()
    assert (photo == 200).all()


def test_no_seam_is_visible_however_different_the_colours():
    photo = np.full((400, 400, 3), 255, np.uint8)
    out = blend(photo, [(np.zeros((256, 256, 3), np.uint8), placed(200, 200, 256), None)], []).astype(int)
    assert out.min() == 0
    # Black on white over some 16 pixels: the steepest step of a smooth ramp is 1.5 × 255 / 16.
    assert max(np.abs(np.diff(out, axis=0)).max(), np.abs(np.diff(out, axis=1)).max()) < 30


def test_an_unchanged_crop_pastes_back_without_a_trace(portrait):
    from facecrowd.stages.align import warp

    photo = np.repeat(np.repeat(portrait, 2, 0), 2, 1)
    matrix = placed(220, 220, 256, 0.1)
    out = blend(photo, [(warp(photo, matrix, 256), matrix, None)], [])
    assert np.abs(out.astype(int) - photo).mean() < 1


def test_the_mask_is_whole_on_the_face_and_nothing_at_the_crop_s_edge():
    for reach in (1.0, MARGIN):
        edge = face_mask(256, reach=reach)
        assert max(edge[0].max(), edge[-1].max(), edge[:, 0].max(), edge[:, -1].max()) == 0
    mask = face_mask(256)
    assert (mask[template(256)[:, 1].astype(int), template(256)[:, 0].astype(int)] == 255).all()


def test_a_cover_keeps_nothing_of_the_face():
    draws = np.random.Generator(np.random.Philox(5))
    photo = draws.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    box = np.array([100, 90, 180, 190], np.float32)
    hidden = ellipse(photo.shape, np.array([140, 140]), COVER * np.array([40, 50]))
    assert hidden[90:190, 100:180].all()
    results = []
    for _ in range(2):
        other = photo.copy()
        other[hidden] = draws.integers(0, 256, (int(hidden.sum()), 3), dtype=np.uint8)
        cover(other, box)
        results.append(other)
    assert np.array_equal(*results)
    assert len(np.unique(results[0][hidden], axis=0)) == 1
    assert np.array_equal(results[0][~hidden], photo[~hidden])


def test_a_cover_has_the_colour_of_its_surroundings_and_grey_without_any():
    photo = np.full((200, 200, 3), (10, 120, 230), np.uint8)
    photo[80:120, 80:120] = 0
    cover(photo, np.array([80, 80, 120, 120]))
    assert (photo == (10, 120, 230)).all()
    full = np.zeros((50, 50, 3), np.uint8)
    cover(full, np.array([0, 0, 50, 50]))
    assert (full == 128).all()


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [290, 290, 300, 300], [-50, -50, 20, 20], [10, 10, 11, 400]])
def test_boxes_at_and_over_the_edge_are_covered(box):
    photo = np.random.Generator(np.random.Philox(6)).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    cover(photo, np.array(box, np.float32))
    x1, y1, x2, y2 = np.clip(box, 0, 299)
    assert len(np.unique(photo[y1:y2, x1:x2].reshape(-1, 3), axis=0)) <= 1


def test_a_face_half_outside_the_photo_is_replaced_in_its_visible_half():
    photo = np.full((200, 200, 3), 255, np.uint8)
    paste(photo, np.zeros((256, 256, 3), np.uint8), placed(0, 100, 150, 0.0))
    assert (photo[100:130, :20] == 0).all()
    paste(photo, np.zeros((256, 256, 3), np.uint8), placed(-900, 100, 150))


def test_every_face_of_a_photo_is_replaced_or_covered_whatever_its_status():
    photo = np.random.Generator(np.random.Philox(8)).integers(0, 256, (300, 900, 3), dtype=np.uint8)
    boxes = np.array([[x, 100, x + 60, 180] for x in (60, 260, 460, 660)], np.float32)
    crop = np.full((256, 256, 3), 7, np.uint8)
    nothing = np.full(4, np.nan, np.float32)
    matrices = np.stack([placed(x + 30, 130, 110, 0.0).ravel() for x in (60, 260, 460, 660)])
    batch = {
        "path": np.array(["a"] * 4 + ["b", "c"], dtype=object),
        "photo": [photo] * 4 + [photo, None],
        "rendered": [crop, None, None, crop, None, None],
        "matrix": np.vstack([matrices, np.full((2, 6), np.nan)]).astype(np.float32),
        "box": np.vstack([boxes, nothing, nothing]),
        "status": np.array(["ok", "too_small", "suppressed", "low_score", "no_face", "unreadable"], dtype=object),
        "reason": np.array(["", "small", "alone", "unsure", "none", "torn"], dtype=object),
    }
    out = Blend()(batch)
    assert list(out["path"]) == ["a", "b", "c"]
    assert list(out["status"]) == ["ok", "no_face", "unreadable"]
    assert out["faces_replaced"].tolist() == [1, 0, 0]
    assert out["faces_covered"].tolist() == [3, 0, 0]
    blended = out["blended"][0]
    assert (blended[110:170, 70:110] == 7).all()
    for x in (260, 460, 660):
        assert len(np.unique(blended[100:180, x : x + 60].reshape(-1, 3), axis=0)) == 1
    assert np.array_equal(out["blended"][1], photo)
    assert out["blended"][2] is None


def one_face(**changes: object) -> dict:
    batch = {
        "path": ["a"],
        "photo": [np.zeros((100, 100, 3), np.uint8)],
        "rendered": [np.zeros((256, 256, 3), np.uint8)],
        "matrix": placed(30, 30, 60).reshape(1, 6),
        "box": np.array([[10, 10, 50, 50]], np.float32),
        "status": ["ok"],
    }
    return batch | changes


def test_a_face_that_cannot_be_replaced_is_covered():
    assert Blend()(one_face())["faces_replaced"].tolist() == [1]
    for changes in ({"matrix": np.full((1, 6), np.nan)}, {"rendered": [None]}, {"status": ["failed"]}):
        out = Blend()(one_face(**changes))
        assert out["faces_covered"].tolist() == [1]
        assert out["status"][0] == "ok"


def test_a_photo_that_cannot_be_treated_is_withheld():
    nowhere = np.full((1, 4), np.nan, np.float32)
    for changes in (
        {"box": nowhere, "rendered": [None]},
        {"box": nowhere, "status": ["failed"], "reason": ["detect: no memory"]},
        {"rendered": [np.zeros((0, 0, 3), np.uint8)]},
    ):
        out = Blend()(one_face(**changes))
        assert out["status"][0] == "failed"
        assert out["blended"] == [None]
    with pytest.raises(ValueError, match="no alignment"):
        paste(np.zeros((9, 9, 3), np.uint8), np.zeros((256, 256, 3), np.uint8), np.full(6, np.nan))


def test_what_became_of_a_face_may_stand_apart_from_how_its_photo_fares():
    nowhere, crop = np.full((1, 4), np.nan, np.float32), np.zeros((256, 256, 3), np.uint8)
    out = Blend()(one_face(face_status=["suppressed"], rendered=[crop]))
    assert (out["status"][0], out["faces_covered"][0], out["faces_replaced"][0]) == ("ok", 1, 0)
    out = Blend()(one_face(face_status=["no_face"], rendered=[None], box=nowhere))
    assert out["status"][0] == "no_face"
    out = Blend()(one_face(face_status=["failed"], rendered=[None], box=nowhere))
    assert (out["status"][0], out["blended"]) == ("failed", [None])


def test_colour_matching_is_off_unless_asked():
    photo = np.full((300, 300, 3), 180, np.uint8)
    crop = np.full((256, 256, 3), 160, np.uint8)
    plain = blend(photo, [(crop, placed(150, 150, 200), None)], [])
    matched = blend(photo, [(crop, placed(150, 150, 200), None)], [], match_colour=True)
    assert plain[150, 150, 0] == 160
    assert abs(int(matched[150, 150, 0]) - 180) <= 1


def test_a_colour_is_matched_within_limits_so_that_skin_before_a_dark_wall_stays_skin():
    photo = np.full((300, 300, 3), (0, 60, 0), np.uint8)
    crop = np.full((256, 256, 3), (200, 150, 130), np.uint8)
    matched = blend(photo, [(crop, placed(150, 150, 200), None)], [], match_colour=True)
    ours, shown = (
        cv2.cvtColor(np.float32([[p]]) / 255, cv2.COLOR_RGB2LAB)[0, 0] for p in (crop[0, 0], matched[150, 150])
    )
    assert np.allclose(np.abs(shown - ours), SHIFT, atol=1)
