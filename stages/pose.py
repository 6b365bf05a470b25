r"""Head pose from five landmarks, in closed form.

Under scaled orthographic projection, five centred landmarks p (5, 2) of a head with centred points X (5, 3) are

    p = s X [r1 r2]'

with r1, r2 the first rows of its rotation R. The least squares for M = s [r1 r2]' are M' = X^+ p (DeMenthon and Davis,
Model-based object pose in 25 lines of code, IJCV 15, 1995, the step POS); the rotation nearest to M comes from its
singular value decomposition, and r3 = r1 × r2.

The head is one for all people: eyes, nose and mouth corners of FFHQ's template, whose mean face looks ahead, with the
tip of the nose 0.55 distances of the eyes before them and the mouth in their plane. With that depth M is nearest to a
scaled rotation (its two singular values differ by 11 % in the mean) over the landmarks of 10,259 CelebA crops; 0.45 or
0.65 would make all yaws about a tenth larger or smaller. One person's nose and mouth shift the pitch, and the depth
scales the yaw: take it to compare two pictures of one person, not as a protractor.
"""

from __future__ import annotations

import numpy as np

from facecrowd.stages.align import FFHQ

NOSE_DEPTH = 0.55
"""Of the tip of the nose before the eyes, in distances of the eyes."""


def head() -> np.ndarray:
    """(5, 3) float64, centred: x right, y down, z away from the viewer, in distances of the eyes."""
    points = np.zeros((5, 3))
    points[:, :2] = FFHQ / np.linalg.norm(FFHQ[1] - FFHQ[0])
    points[2, 2] = -NOSE_DEPTH
    return points - points.mean(0)


def pose(landmarks: np.ndarray) -> np.ndarray:
    """Yaw, pitch and roll in degrees, (n, 3) float64, of landmarks (n, 5, 2) in pixels; NaN where these are.

    R = Rz(roll) Ry(yaw) Rx(pitch). Yaw above 0 turns the face to the left of the picture, pitch down, roll clockwise.
    """
    points = np.asarray(landmarks, np.float64)
    out = np.full((len(points), 3), np.nan)
    centred = points - points.mean(1, keepdims=True)
    seen = np.flatnonzero(np.isfinite(centred).all((1, 2)) & (centred != 0).any((1, 2)))
    fitted = np.einsum("xp,npc->ncx", np.linalg.pinv(head()), centred[seen])
    u, _, v = np.linalg.svd(fitted, full_matrices=False)
    first = u @ v
    third = np.cross(first[:, 0], first[:, 1])
    yaw = np.arcsin(np.clip(-third[:, 0], -1, 1))
    pitch = np.arctan2(third[:, 1], third[:, 2])
    roll = np.arctan2(first[:, 1, 0], first[:, 0, 0])
    out[seen] = np.degrees(np.stack([yaw, pitch, roll], 1))
    return out
