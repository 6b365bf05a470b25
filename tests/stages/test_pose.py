"""Pose from five landmarks: what turned a head is found again, as OpenCV finds it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from facecrowd.stages.align import template
from facecrowd.stages.pose import head, pose

ANGLES = np.array([[0, 0, 0], [30, 0, 0], [0, -20, 0], [0, 0, 15], [-45, 10, -8], [25, 25, 40]], np.float64)


def turned(angles: np.ndarray) -> np.ndarray:
    """Landmarks (n, 5, 2) of heads turned by yaw, pitch and roll in degrees, of 60 px between the eyes."""
    rotation = Rotation.from_euler("ZYX", angles[:, [2, 0, 1]], degrees=True).as_matrix()
    return 60 * np.einsum("nij,pj->npi", rotation, head())[..., :2] + 128


def test_a_turned_heads_angles_are_found_again() -> None:
    np.testing.assert_allclose(pose(turned(ANGLES)), ANGLES, atol=1e-9)


def test_pose_agrees_with_opencv_through_a_long_lens() -> None:
    focal = 1e5
    camera = np.array([[focal, 0, 128], [0, focal, 128], [0, 0, 1.0]])
    noisy = turned(ANGLES) + np.random.default_rng(0).normal(0, 0.5, (len(ANGLES), 5, 2))
    for points, ours in zip(noisy, pose(noisy), strict=True):
        start = cv2.Rodrigues(Rotation.from_euler("ZYX", ours[[2, 0, 1]], degrees=True).as_matrix())[0]
        place = np.array([0, 0, focal / 60])
        _, turn, _ = cv2.solvePnP(head(), points, camera, None, start, place, True, cv2.SOLVEPNP_ITERATIVE)
        roll, yaw, pitch = Rotation.from_rotvec(turn[:, 0]).as_euler("ZYX", degrees=True)
        np.testing.assert_allclose(ours, [yaw, pitch, roll], atol=2.5)


def test_the_template_looks_ahead_and_a_nose_to_the_left_of_the_picture_is_a_yaw_above_zero() -> None:
    points = np.stack([template(256)] * 3)
    points[1, 2, 0] -= 10
    points[2, 2, 1] += 10
    straight, left, down = pose(points)
    assert np.abs(straight).max() == pytest.approx(0, abs=1e-9)
    assert left[0] > straight[0] + 5
    assert down[1] > straight[1] + 5


def test_a_mirrored_face_looks_the_other_way() -> None:
    order = [1, 0, 2, 4, 3]
    mirrored = (np.array([256, 0]) - turned(ANGLES) * np.array([1, -1]))[:, order]
    symmetric = pose(mirrored) * np.array([-1, 1, -1])
    np.testing.assert_allclose(symmetric, ANGLES, atol=1.5)


def test_neither_place_nor_size_changes_the_pose_and_no_landmarks_have_none() -> None:
    points = turned(ANGLES)
    np.testing.assert_allclose(pose(3 * points - 500), ANGLES, atol=1e-9)
    points[1, 3] = np.nan
    points[2] = 7
    assert np.isnan(pose(points)).all(1).tolist() == [False, True, True, False, False, False]
    assert pose(np.empty((0, 5, 2))).shape == (0, 3)
