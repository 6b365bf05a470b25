"""Claims of stages/obscure.py: the baselines as published, the same at every crop size and in every order of work."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import scipy.ndimage

from facecrowd.stages.align import template
from facecrowd.stages.obscure import FACE_AXES, FACE_CENTRE, METHODS, Blur, Mask, Noise, Obscure, Pixelate
from facecrowd.stages.runkey import RunKey

KEY = RunKey(bytes(range(32)))


@pytest.fixture(scope="module")
def crop(portrait) -> np.ndarray:
    return cv2.resize(portrait, (256, 256))


def render(method, crop: np.ndarray, face: str = "f") -> np.ndarray:
    out = Obscure(method, KEY)({"crop": [crop], "face_id": [face], "status": ["ok"]})
    assert out["status"][0] == "ok", out["reason"][0]
    return out["rendered"][0]


def test_blur_is_the_gaussian_of_scipy(crop):
    ours = render(Blur(8), crop).astype(float)
    theirs = scipy.ndimage.gaussian_filter(crop.astype(float), (8, 8, 0), mode="mirror")
    assert np.abs(ours - theirs).max() < 2


def test_sigma_means_the_same_at_every_size(crop):
    large = cv2.resize(crop, (512, 512), interpolation=cv2.INTER_CUBIC)
    small = cv2.resize(render(Blur(8), large), (256, 256), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - render(Blur(8), crop)).mean() < 1.5


@pytest.mark.parametrize("size", [128, 256, 300])
def test_pixelate_has_as_many_blocks_across_the_face_as_asked(crop, size):
    out = render(Pixelate(8), cv2.resize(crop, (size, size)))
    x = round(FACE_CENTRE[0] * size)
    left, right = x - round(FACE_AXES[0] * size), x + round(FACE_AXES[0] * size)
    steps = np.flatnonzero((out[:, left + 1 : right] != out[:, left : right - 1]).any(axis=(0, 2)))
    assert 7 <= len(steps) <= 9
    assert len(np.unique(out.reshape(-1, 3), axis=0)) <= round(8 / (2 * FACE_AXES[0])) ** 2


def test_a_pixelated_block_is_the_mean_of_its_pixels(crop):
    out = render(Pixelate(round(16 * 2 * FACE_AXES[0])), crop)
    cells = out[8::16, 8::16]
    assert cells.shape == (16, 16, 3)
    means = crop.reshape(16, 16, 16, 16, 3).mean(axis=(1, 3))
    assert np.abs(means - cells).max() <= 1


def test_the_eye_bar_covers_both_eyes_of_this_face(crop):
    points = template(256) + np.array([[6, -10], [-2, 14], [0, 0], [0, 0], [0, 0]])
    matrix = np.array([[2.0, 0, 3], [0, 2.0, 5]])
    landmarks = ((points - [3, 5]) / 2).ravel()
    batch = {"crop": [crop], "face_id": ["f"], "status": ["ok"]}
    batch |= {"landmarks": [landmarks], "matrix": [matrix.ravel()]}
    out = Obscure(Mask("eyes"))(batch)["rendered"][0]
    for eye in points[:2]:
        x, y = eye.astype(int)
        assert (out[y - 8 : y + 9, x - 10 : x + 11] == 0).all()
    assert np.array_equal(out[190:], crop[190:])
    assert np.array_equal(out[:60], crop[:60])


def test_the_face_box_covers_eyes_nose_mouth_and_chin(crop):
    out = render(Mask("face"), crop)
    assert (out[70:232, 60:196] == 0).all()
    assert np.array_equal(out[:, :50], crop[:, :50])


def test_noise_touches_the_share_gamma_of_the_pixels(crop):
    crop = np.clip(crop, 60, 190)
    changed = (render(Noise(0.3, 15), crop) != crop).any(axis=2)
    assert changed.mean() == pytest.approx(0.3, abs=0.002)
    assert np.array_equal(render(Noise(0.0, 15), crop), crop)


def test_noise_is_normal_with_the_sigma_asked(crop):
    grey = np.full_like(crop, 128)
    noise = render(Noise(1.0, 20), grey).astype(float) - 128
    assert noise.mean() == pytest.approx(0, abs=0.3)
    assert noise.std() == pytest.approx(20, abs=0.3)
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02


def test_inverted_pixels_are_255_less_x(crop):
    out = render(Noise(0.5, 0, invert=True), crop)
    flipped = (out == 255 - crop).all(axis=2)
    assert flipped.mean() == pytest.approx(0.5, abs=0.01)
    assert (out[~flipped] == crop[~flipped]).all()


def test_noise_is_the_face_s_own_whatever_the_order_of_work(crop):
    faces = ["a", "b", "c"]
    forward = Obscure(Noise(), KEY)({"crop": [crop] * 3, "face_id": faces, "status": ["ok"] * 3})["rendered"]
    backward = Obscure(Noise(), KEY)({"crop": [crop] * 3, "face_id": faces[::-1], "status": ["ok"] * 3})["rendered"]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward[::-1], strict=True))
    assert not np.array_equal(forward[0], forward[1])
    other = Obscure(Noise(), RunKey(bytes(32)))({"crop": [crop], "face_id": ["a"], "status": ["ok"]})["rendered"][0]
    assert not np.array_equal(forward[0], other)


def test_noise_without_a_run_key_is_refused():
    with pytest.raises(ValueError, match="run key"):
        Obscure(Noise())


@pytest.mark.parametrize(
    "method,options",
    [("blur", {"sigma": 0}), ("pixelate", {"blocks": 0}), ("mask", {"region": "nose"}), ("noise", {"gamma": 1.1})],
)
def test_a_meaningless_parameter_is_refused_by_name(method, options):
    with pytest.raises(ValueError, match=f"{method}: {next(iter(options))}"):
        METHODS[method](**options)


@pytest.mark.parametrize("name", list(METHODS))
def test_the_crop_itself_is_never_changed(crop, name):
    before = crop.copy()
    out = render(METHODS[name](), crop)
    assert np.array_equal(crop, before)
    assert out.shape == crop.shape
    assert out.dtype == np.uint8
    assert not np.array_equal(out, crop)


def test_rows_that_are_not_ok_get_no_rendering(crop):
    batch = {"crop": [crop, None, None], "face_id": ["a", "b", "c"], "status": ["ok", "no_face", "ok"]}
    out = Obscure(Blur())(batch)
    assert list(out["status"]) == ["ok", "no_face", "failed"]
    assert [image is None for image in out["rendered"]] == [False, True, True]
