"""Inpainting: the new face cannot depend on the old one, and differs from face to face by the run key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from facecrowd.stages.inpaint import Identity, Inpaint, composite, conceal, draw, region
from facecrowd.stages.inversion import Networks, Search, search
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.searching import Searching

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = RunKey(bytes(range(32)))


@pytest.fixture(scope="module")
def networks(searching: Networks) -> Networks:
    generator = searching.generator
    # A guess that sees the whole picture: were the face not hidden from it, it would carry the face over.
    spy = torch.randn(12, STYLE, generator=torch.Generator().manual_seed(14)) / 4

    def encoder(x: torch.Tensor) -> torch.Tensor:
        seen = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1) - 0.5
        return (generator.mean_latent + seen @ spy)[:, None].expand(-1, 23, -1)

    return replace(searching, encoder=encoder)


@pytest.fixture(scope="module")
def crop(networks: Networks) -> np.ndarray:
    z = torch.randn(1, STYLE, generator=torch.Generator().manual_seed(15))
    return networks.render(networks.generator.truncate(networks.generator.mapping(z)), 128)[0]


def run(networks: Networks, crops: list[np.ndarray], identity: Identity = "drawn", key: RunKey = KEY) -> list:
    stage = Inpaint(identity, key, Searching(steps=2, start="encoder", size=128))
    stage.networks = networks
    out = stage({"crop": crops, "face_id": [f"face-{i}" for i in range(len(crops))]})
    assert list(out["status"]) == ["ok"] * len(crops), out["reason"]
    return out["rendered"]


def noisy(crop: np.ndarray, seed: int = 16) -> np.ndarray:
    """The crop with its hidden pixels replaced by noise."""
    noise = np.random.default_rng(seed).integers(0, 256, crop.shape, dtype=np.uint8)
    return np.where(region(crop.shape[0])[0][..., None], noise, crop)


@pytest.mark.parametrize("identity", ["average", "drawn"])
def test_the_output_is_bit_identical_whatever_the_face_was(
    networks: Networks, crop: np.ndarray, identity: Identity
) -> None:
    first, second = (run(networks, [face], identity)[0] for face in (crop, noisy(crop)))
    assert np.array_equal(first, second)


def test_the_output_is_bit_identical_where_the_crop_is_resized_too(networks: Networks, crop: np.ndarray) -> None:
    large = np.repeat(np.repeat(crop, 2, 0), 2, 1)
    assert np.array_equal(run(networks, [large])[0], run(networks, [noisy(large)])[0])


def test_the_drawn_face_changes_with_the_key_and_the_context_stays(networks: Networks, crop: np.ndarray) -> None:
    first, again = (run(networks, [crop])[0] for _ in range(2))
    other = run(networks, [crop], key=RunKey(bytes(32)))[0]
    hidden, weight = region(128)
    assert np.array_equal(first, again)
    assert np.abs(first[hidden].astype(int) - other[hidden]).mean() > 8
    assert np.array_equal(first[weight == 0], crop[weight == 0])


def test_faces_of_one_key_are_drawn_apart_and_by_their_id(networks: Networks) -> None:
    a, b = (draw(networks, KEY, name) for name in ("a", "b"))
    assert torch.equal(a, draw(networks, KEY, "a"))
    assert (a - b).norm() > 0.5 * a.norm()


def test_hidden_region_holds_the_template_face_and_every_hidden_pixel_is_replaced() -> None:
    from facecrowd.stages import align
    from facecrowd.stages.blend import face_mask

    hidden, weight = region(256)
    assert hidden[face_mask(256) == 255].all()
    assert all(hidden[int(y), int(x)] for x, y in align.template(256))
    assert (weight[hidden] == 1).all()
    assert 0.3 < hidden.mean() < 0.5


def test_composite_reads_no_hidden_pixel_and_matches_the_light_of_the_context() -> None:
    draws = np.random.default_rng(17)
    context = draws.integers(90, 110, (128, 128, 3), dtype=np.uint8)
    face = draws.integers(150, 170, (128, 128, 3), dtype=np.uint8)
    out = composite(context, face)
    assert np.array_equal(out, composite(noisy(context), face))
    hidden, _ = region(128)
    assert abs(out[hidden].mean() - 99.5) < 2


def test_concealed_crop_keeps_its_context() -> None:
    crop, fill = np.full((64, 64, 3), 10, np.uint8), np.full((64, 64, 3), 200, np.uint8)
    hidden, _ = region(64)
    out = conceal(crop, fill)
    assert (out[hidden] == 200).all()
    assert (out[~hidden] == 10).all()


def test_a_bad_row_costs_no_other(networks: Networks, crop: np.ndarray) -> None:
    stage = Inpaint("drawn", KEY, Searching(steps=1, start="mean", size=128))
    stage.networks = networks
    out = stage({"crop": [None, crop], "face_id": ["a", "b"]})
    assert list(out["status"]) == ["failed", "ok"]
    assert out["rendered"][0] is None
    assert out["rendered"][1].shape == (128, 128, 3)


@pytest.mark.parametrize(("identity", "taken"), [("average", 2), ("drawn", 1)])
def test_how_the_search_that_ended_at_the_shown_face_went_is_told(
    networks: Networks, crop: np.ndarray, identity: Identity, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[Search] = []

    def noted(*arguments: Any, **options: Any) -> Search:
        searches.append(search(*arguments, **options))
        return searches[-1]

    monkeypatch.setattr("facecrowd.stages.inpaint.search", noted)
    stage = Inpaint(identity, KEY, Searching(steps=2, start="encoder", size=128))
    stage.networks = networks
    out = stage({"crop": [crop], "face_id": ["face-0"]})
    last = searches[-1]
    context = conceal(crop, networks.render(networks.space.mean.expand(1, ROWS, -1), 128)[0])
    assert np.array_equal(out["rendered"][0], composite(context, networks.render(last.latent, 128)[0]))
    assert out["search_steps"].tolist() == last.steps_taken.tolist() == [taken]
    assert out["search_loss"].tolist() == last.loss[-1].tolist()
    assert last.loss[-1] < last.loss[0]
    assert out["converged"].tolist() == last.converged.tolist()


def test_settings_that_make_no_sense_are_refused_before_work() -> None:
    with pytest.raises(ValueError, match="needs the run key"):
        Inpaint("drawn")
    with pytest.raises(ValueError, match="average or drawn"):
        Inpaint("random", KEY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        Inpaint("drawn", KEY, Searching(steps=0))
