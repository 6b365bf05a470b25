"""Claims of stages/align.py: the least-squares similarity in closed form, and crops without aliasing."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from insightface.utils import face_align
from skimage.transform import SimilarityTransform

from facecrowd.stages.align import ARCFACE, ARCFACE_SIZE, Align, apply, invert, scale, similarity, template, warp

points = hnp.arrays(np.float64, (5, 2), elements=st.floats(0, 1000, width=32))


def spread(face: np.ndarray) -> float:
    return float(np.linalg.svd(face - face.mean(axis=0), compute_uv=False)[-1])


def test_scikit_image_and_insightface_fit_the_same():
    draws = np.random.Generator(np.random.Philox(1))
    for size, kind in ((112, "arcface"), (256, "ffhq")):
        target = template(size, kind)
        turn = draws.uniform(-0.8, 0.8, 200)
        zoom = draws.uniform(0.3, 8, 200)
        faces = (target - target.mean(0)) * zoom[:, None, None]
        c, s = np.cos(turn), np.sin(turn)
        faces = faces @ np.moveaxis(np.array([[c, -s], [s, c]]), -1, 0) + draws.uniform(0, 2000, (200, 1, 2))
        faces += draws.normal(0, 0.05, faces.shape) * (zoom * size)[:, None, None]
        ours = similarity(faces, target)
        for face, matrix in zip(faces, ours, strict=True):
            assert np.abs(SimilarityTransform.from_estimate(face, target).params[:2] - matrix).max() <= 1e-4
            if kind == "arcface":
                # In single precision, so compared where it counts: at the points it places, in pixels of the crop.
                theirs = face_align.estimate_norm(face.astype(np.float32))
                assert np.abs(apply(theirs, face) - apply(matrix, face)).max() <= 1e-3


@settings(max_examples=60, deadline=None)
@given(points, st.floats(-3.1, 3.1), st.floats(0.1, 10), st.floats(-500, 500), st.floats(-500, 500))
def test_an_exact_similarity_is_recovered(face, angle, zoom, dx, dy):
    if spread(face) < 1:
        return
    matrix = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]) * zoom
    matrix[:, 2] = dx, dy
    found = similarity(face[None], apply(matrix, face))[0]
    assert np.allclose(found, matrix, atol=1e-6 * max(1, zoom) * 1000)


@settings(max_examples=60, deadline=None)
@given(points)
def test_no_face_is_ever_mirrored(face):
    if spread(face) < 1:
        return
    matrix = similarity(face[None], template(256))[0]
    assert np.linalg.det(matrix[:, :2]) >= 0
    assert np.isclose(np.linalg.det(matrix[:, :2]), scale(matrix) ** 2)


def test_a_mirrored_face_is_fitted_as_well_as_a_turn_can():
    mirrored = template(256) * [-1, 1] + [256, 0]
    assert np.linalg.det(similarity(mirrored[None], template(256))[0][:, :2]) > 0


def test_the_fit_is_the_least_of_squares():
    draws = np.random.Generator(np.random.Philox(2))
    face, target = draws.uniform(0, 300, (5, 2)), template(256)
    best = similarity(face[None], target)[0]
    cost = ((apply(best, face) - target) ** 2).sum()
    for _ in range(200):
        a, b, x, y = draws.normal(0, 0.01, 4)
        other = best + np.array([[a, -b, x], [b, a, y]])
        assert ((apply(other, face) - target) ** 2).sum() >= cost


def test_coinciding_landmarks_are_refused():
    for bad in (np.ones((1, 5, 2)), np.full((1, 5, 2), np.nan)):
        with pytest.raises(ValueError, match="landmarks"):
            similarity(bad, template(256))


@settings(max_examples=40, deadline=None)
@given(st.floats(-3, 3), st.floats(0.05, 20), st.floats(-1000, 1000))
def test_the_inverse_leads_back(angle, zoom, shift):
    c, s = zoom * np.cos(angle), zoom * np.sin(angle)
    matrix = np.array([[c, -s, shift], [s, c, -shift]])
    assert np.allclose(apply(invert(matrix), apply(matrix, template(256))), template(256), atol=1e-6)
    assert np.allclose(invert(matrix.ravel()), invert(matrix).ravel())


def test_templates_scale_with_the_crop():
    assert np.allclose(template(512)[0], [192.98, 239.95])
    assert np.allclose(template(256) * 2, template(512))
    assert np.array_equal(template(ARCFACE_SIZE, "arcface"), ARCFACE)


def test_insightface_crops_the_same_chip(group):
    # Nearly one to one, where both take the same bilinear samples.
    face = ARCFACE * 1.1 + [455, 266] + np.array([[1, 0], [0, 1], [-1, 1], [0, 0], [1, -1]])
    theirs = face_align.norm_crop(group, face.astype(np.float32))
    ours = warp(group, similarity(face[None], ARCFACE)[0], 112, "black")
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 8
    assert np.abs(ours.astype(int) - theirs.astype(int)).mean() < 0.5


def test_fine_detail_of_a_large_face_is_averaged_not_aliased():
    board = np.indices((2000, 2000)).sum(0) % 2 * 255
    photo = np.repeat(board[..., None], 3, 2).astype(np.uint8)
    crop = warp(photo, np.array([[0.11, 0.02, 5], [-0.02, 0.11, 9]]), 200)
    assert np.abs(crop[20:-20, 20:-20].astype(int) - 127).max() <= 4


def test_shrinking_keeps_every_point_where_the_matrix_puts_it():
    photo = np.zeros((1200, 1600, 3), np.uint8)
    cv2.circle(photo, (900, 500), 24, (255, 255, 255), -1, cv2.LINE_AA)
    for matrix in (np.array([[0.2, 0, -80], [0, 0.2, 0]]), np.array([[0.6, 0.1, -520], [-0.1, 0.6, -60]])):
        crop = warp(photo, matrix, 256)[..., 0].astype(float)
        y, x = np.indices(crop.shape)
        centre = np.array([(x * crop).sum(), (y * crop).sum()]) / crop.sum()
        assert np.abs(centre - apply(matrix, np.array([900, 500]))).max() < 0.1


def test_outside_the_photo_is_mirrored_or_black(texture):
    out = np.array([[1.0, 0, 100], [0, 1.0, 60]])
    mirrored = warp(texture, out, 256, "reflect")
    assert np.array_equal(mirrored[60:200, 100:200], texture[:140, :100])
    assert np.array_equal(mirrored[60:200, 99], texture[:140, 1])
    black = warp(texture, out, 256, "black")
    assert (black[:60] == 0).all()
    assert np.array_equal(black[60:200, 100:200], texture[:140, :100])
    assert (warp(texture, np.array([[1.0, 0, -5000], [0, 1.0, 0]]), 64, "black") == 0).all()


@pytest.mark.parametrize("border,flag", [("reflect", cv2.BORDER_REFLECT_101), ("replicate", cv2.BORDER_REPLICATE)])
@pytest.mark.parametrize("x,y", [(0, 0), (-140, 10), (60, -60), (150, 90), (-20, 140), (-260, -230), (260, 220)])
def test_only_the_part_that_shows_is_touched_and_nothing_changes_by_it(texture, border, flag, x, y):
    matrix = np.array([[0.9, 0.3, x], [-0.3, 0.9, y]])
    whole = cv2.warpAffine(texture, matrix, (128, 128), flags=cv2.INTER_LINEAR, borderMode=flag)
    assert np.abs(warp(texture, matrix, 128, border).astype(int) - whole).max() <= 4


def test_the_stage_crops_ok_rows_and_passes_the_others(texture):
    face = (template(128) + 10).ravel().astype(np.float32)
    batch = {
        "photo": [texture, None, texture, texture],
        "landmarks": np.stack([face, face, np.full(10, np.nan, np.float32), face]),
        "status": np.array(["ok", "unreadable", "ok", "low_score"], dtype=object),
    }
    out = Align(crop_size=128)(batch)
    assert list(out["status"]) == ["ok", "unreadable", "failed", "low_score"]
    assert out["crop"][0].shape == (128, 128, 3)
    assert out["arcface"][0].shape == (112, 112, 3)
    assert [crop is None for crop in out["crop"]] == [False, True, True, True]
    assert np.isnan(out["matrix"][1:]).all()
    # The template lay 10 px into the photo, so the crop is the photo from there on.
    assert np.allclose(out["matrix"][0], [1, 0, -10, 0, 1, -10], atol=1e-4)
    inside = texture[10:138, 10:138]
    assert np.abs(out["crop"][0].astype(int) - inside).max() <= 1
