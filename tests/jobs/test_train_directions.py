"""Claims of jobs/train_directions.py: what is read off a face, how rows are chosen, and a training that resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from facecrowd.jobs import train_directions as td
from facecrowd.pipeline.errors import ConfigError
from facecrowd.stages import align


def test_the_templates_face_looks_straight_ahead():
    yaw, pitch = td.pose(align.template(256))
    assert abs(yaw) < 0.02
    assert 0.4 < pitch < 0.7
    low = align.template(256)
    low[2] = low[3:].mean(axis=0)
    assert td.pose(low)[1] == pytest.approx(1)


def test_yaw_and_pitch_follow_the_nose_and_not_place_size_or_roll():
    face = align.template(256)
    right, down = face.copy(), face.copy()
    right[2, 0] += 10
    down[2, 1] += 10
    assert td.pose(right)[0] - td.pose(face)[0] == pytest.approx(10 / (face[1, 0] - face[0, 0]), rel=1e-2)
    assert td.pose(down)[1] > td.pose(face)[1] + 0.1
    turn = 1.7 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    np.testing.assert_allclose(td.pose(right @ turn.T + 31), td.pose(right), atol=1e-9)


def test_a_mirrored_face_has_the_opposite_yaw_and_light_across_and_the_rest_alike():
    landmarks = align.template(256) + np.array([[3, 1], [-4, 2], [9, 5], [2, 0], [1, 3]])
    mirrored = (landmarks * [-1, 1])[[1, 0, 2, 4, 3]]
    np.testing.assert_allclose(td.pose(mirrored), np.array(td.pose(landmarks)) * [-1, 1], atol=0.02)
    crop = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(td.light(crop[:, ::-1]), np.array(td.light(crop)) * [-1, 1, 1], atol=1e-9)


def test_light_has_the_sign_its_units_say():
    ramp = np.linspace(0, 1, 64)
    across = (255 * np.broadcast_to(ramp[None, :, None], (64, 64, 3))).astype(np.uint8)
    assert td.light(across)[0] > 0.3
    assert td.light(across.transpose(1, 0, 2))[1] < -0.3
    assert td.light(np.full((64, 64, 3), 255, np.uint8)) == pytest.approx((0, 0, 1), abs=1e-5)


def test_a_direction_gets_the_rows_that_change_its_own_reading_and_little_else():
    effect = np.zeros((2, 4, 2))
    effect[0, 0] = [0.8, 0.1]
    effect[0, 2] = [0.2, 0.9]
    effect[1] = [[0.0, 0.0], [0.0, 0.4], [0.0, 0.4], [0.3, 0.2]]
    low, middle = td.EDGES[1], td.EDGES[3]
    assert td.choose_rows(effect).tolist() == [[0, low], [low, middle]]


def test_rows_that_are_selective_and_weak_are_not_enough():
    effect = np.zeros((2, 4, 2))
    effect[:, 0] = [[0.1, 0.0], [0.0, 1.0]]
    effect[0, 1] = [0.9, 0.3]
    assert td.choose_rows(effect)[0].tolist() == [0, td.EDGES[2]]


def test_where_no_part_of_the_rows_is_enough_all_are_kept():
    effect = np.full((1, 4, 2), 0.25)
    effect = np.concatenate([effect, effect[:, :, ::-1]])
    chosen = td.choose_rows(effect)
    assert (chosen[:, 1] - chosen[:, 0] >= td.EDGES[1]).all()


class Generator:
    mean_latent = torch.zeros(512)

    def mapping(self, z: torch.Tensor) -> torch.Tensor:
        return z

    def synthesis(self, w_plus: torch.Tensor, size: int) -> torch.Tensor:
        return torch.sigmoid(w_plus[:, 0, :12]).view(-1, 3, 2, 2)


def looker(seen: list[int]) -> td.Looker:
    def look(x: torch.Tensor) -> np.ndarray:
        seen.append(len(x))
        found = np.repeat(x.mean(dim=(1, 2, 3)).numpy()[:, None], len(td.NAMES), axis=1)
        found[found[:, 0] < 0.4] = np.nan
        return found

    return look  # type: ignore[return-value]


def test_a_killed_training_takes_up_the_faces_it_had_looked_at(tmp_path: Path):
    seen: list[int] = []
    look = looker(seen)
    w, y = td.sample(Generator(), look, 60, 2, tmp_path, lambda _: None)  # type: ignore[arg-type]
    whole = sum(seen)
    (tmp_path / "2-00001.safetensors").unlink()
    (tmp_path / "2-00000.partial").write_bytes(b"cut off")
    seen.clear()
    again = td.sample(Generator(), look, 60, 2, tmp_path, lambda _: None)  # type: ignore[arg-type]
    assert sum(seen) == td.CHUNK < whole
    np.testing.assert_array_equal(again[0], w)
    np.testing.assert_array_equal(again[1], y)


def test_faces_that_no_detector_finds_are_left_out(tmp_path: Path):
    w, y = td.sample(Generator(), looker([]), 60, 2, tmp_path, lambda _: None)  # type: ignore[arg-type]
    assert 0 < len(w) == len(y) < 60
    assert np.isfinite(y).all()


def test_faces_to_measure_on_are_none_that_directions_are_fitted_on():
    fitted = td.draw(Generator(), 25, td.SEED)  # type: ignore[arg-type]
    fresh = td.draw(Generator(), 25, td.FRESH, 1)  # type: ignore[arg-type]
    assert torch.cdist(fitted, fresh).min() > 1


@pytest.mark.parametrize(("given", "said"), [({"samples": 10}, "100 faces"), ({"size": 100}, "--size 100")])
def test_a_bad_order_is_one_sentence_before_any_work(given, said, tmp_path):
    order = {"samples": 100, "size": 128, **given}
    with pytest.raises(ConfigError, match=said):
        td.run(tmp_path / "d", order["samples"], order["size"], 0.1, 0, None, None, print)
