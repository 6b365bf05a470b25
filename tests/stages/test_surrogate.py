"""Claims of stages/surrogate.py: a surrogate is a function of its class as a whole and of the run key."""

from __future__ import annotations

import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from facecrowd.pipeline import ray_data, steps
from facecrowd.stages.decode import decode
from facecrowd.stages.edits import EXPRESSION, LIGHT, POSE, Directions
from facecrowd.stages.encode import Encode, encode
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import Batch
from facecrowd.stages.surrogate import (
    POOLED,
    Networks,
    Surrogate,
    Surrogates,
    class_mean,
    follow,
    jitter,
    quantile,
    shares,
)

SIDE = 16
pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("Male", *EXPRESSION, *POSE, *LIGHT)
KEY = RunKey(bytes(range(32)))


def weights(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Generator:
    """Pictures that show a random projection of every row of w+."""

    mean_latent = weights(1, STYLE)
    to_pixels = weights(2, ROWS * STYLE, 3 * SIDE * SIDE) / 300

    def mapping(self, z: Tensor) -> Tensor:
        return self.mean_latent + z

    def __init__(self) -> None:
        self.batches: set[int] = set()

    def synthesis(self, w_plus: Tensor, size: int) -> Tensor:
        self.batches.add(len(w_plus))
        picture = torch.sigmoid((w_plus - self.mean_latent).flatten(1) @ self.to_pixels).view(-1, 3, SIDE, SIDE)
        return torch.nn.functional.interpolate(picture, size=(size, size))


class Encoder:
    """A latent that depends on every pixel."""

    to_latent = weights(3, 3 * SIDE * SIDE, ROWS * STYLE) / 20

    def __init__(self) -> None:
        self.seen = 0
        self.batches: set[int] = set()

    def __call__(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.batches.add(len(x))
        return Generator.mean_latent + (x.flatten(1) @ self.to_latent).view(-1, ROWS, STYLE)


class Predictor:
    attributes = ("Male", *EXPRESSION)
    calibration = SimpleNamespace(threshold=np.full(3, 0.5, np.float32))
    weight = weights(4, 3 * SIDE * SIDE, 3)

    def logits(self, x: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x - 0.5, SIDE).flatten(1) @ self.weight


@pytest.fixture(scope="module")
def directions() -> Directions:
    normals = weights(5, len(NAMES), STYLE) / 10
    dual = torch.linalg.pinv(normals).T + 0.05 * weights(6, len(NAMES), STYLE)
    dual = dual / (normals * dual).sum(1, keepdim=True)
    rows = torch.tensor([[0, ROWS]] * 3 + [[0, 4]] * 2 + [[8, ROWS]] * 3)
    return Directions(NAMES, normals, dual, torch.full((len(NAMES),), 3.0), rows, Generator.mean_latent, {})


@pytest.fixture
def stage(directions) -> Surrogate:
    return make(directions)


def make(directions: Directions, key: RunKey = KEY, **options: Any) -> Surrogate:
    stage = Surrogate(key, options.pop("how", Surrogates()), size=SIDE, look_size=SIDE, **options)
    stage.networks = Networks(Encoder(), Generator(), Predictor(), directions)  # type: ignore[arg-type]
    return stage


def people(seed: int = 9, counts: tuple[int, ...] = (2, 3, 1, 4)) -> list[list[np.ndarray]]:
    draws = np.random.default_rng(seed)
    return [[draws.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(count)] for count in counts]


def render(stage: Surrogate, crops: Any, variants: tuple[int | None, ...] = (None, 0, 1, 2), **columns: Any) -> Any:
    n = len(variants)
    batch = {"class_id": [7] * n, "crops": [crops] * n, "variant": list(variants), **columns}
    out = stage(batch)
    assert list(out["status"]) == ["ok"] * n, list(out["reason"])
    return np.stack(out["rendered"])


def test_swapping_members_or_photos_changes_no_bit_of_any_variant(stage):
    crops = people()
    draws = np.random.default_rng(1)
    before = render(stage, crops)
    for _ in range(3):
        other = [[faces[i] for i in draws.permutation(len(faces))] for faces in crops]
        other = [other[i] for i in draws.permutation(len(other))]
        np.testing.assert_array_equal(render(stage, other), before)


@pytest.mark.parametrize("copies", [2, 3, 7])
def test_repeating_all_photos_of_one_subject_changes_no_bit(stage, copies):
    crops = people()
    more = [crops[0], crops[1] * copies, *crops[2:]]
    np.testing.assert_array_equal(render(stage, more), render(stage, crops))


def test_neither_order_nor_repeated_photos_change_a_bit_of_what_photos_weigh():
    draws = np.random.default_rng(2)
    subjects = [{bytes([p]): int(draws.integers(1, 4)) for p in draws.integers(0, 9, 4)} for _ in range(23)]
    first = list(shares(subjects).items())
    assert sum(weight for _, weight in first) == pytest.approx(1)
    for copies in (1, 2, 3, 7):
        other = [dict(reversed(subjects[i].items())) for i in draws.permutation(23)]
        other[3] = {photo: copies * count for photo, count in other[3].items()}
        assert list(shares(other).items()) == first


def test_a_further_photo_of_a_subject_moves_him_and_not_his_weight():
    subjects = [{b"a": 1}, {b"b": 1, b"c": 1, b"d": 1}]
    assert shares(subjects) == pytest.approx({b"a": 1 / 2, b"b": 1 / 6, b"c": 1 / 6, b"d": 1 / 6})


def test_the_class_mean_is_the_mean_of_subject_means():
    latents = [weights(20 + i, count, ROWS, STYLE) for i, count in enumerate((1, 4, 2))]
    wanted = torch.stack([latent.mean(0) for latent in latents]).mean(0)
    share = torch.tensor([1 / 3 / len(latent) for latent in latents for _ in range(len(latent))])
    torch.testing.assert_close(class_mean(torch.cat(latents), share), wanted, rtol=0, atol=1e-6)


def test_without_a_variant_the_surrogate_is_the_picture_of_the_class_mean(stage):
    crops = people()
    encoder, generator = Encoder(), Generator()
    means = []
    for faces in crops:
        x = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).float() / 255
        means.append(encoder(x).mean(0))
    picture = generator.synthesis(torch.stack(means).mean(0)[None], SIDE)[0].permute(1, 2, 0) * 255
    assert np.abs(render(stage, crops, (None,))[0] - picture.numpy()).max() <= 0.51


def test_psi_zero_is_the_generators_mean_face_for_every_class(directions):
    stage = make(directions, how=Surrogates(psi=0))
    np.testing.assert_array_equal(render(stage, people(1), (None,)), render(stage, people(2), (None,)))
    assert (render(make(directions), people(1), (None,)) != render(make(directions), people(2), (None,))).any()


def test_variants_differ_from_each_other_and_come_again_with_the_same_key(stage, directions):
    crops = people()
    first = render(stage, crops)
    for i in range(4):
        for j in range(i):
            assert (first[i] != first[j]).mean() > 0.3
    np.testing.assert_array_equal(render(make(directions), crops), first)


def test_another_key_draws_other_variants_and_the_same_mean(stage, directions):
    crops = people()
    other = render(make(directions, RunKey(bytes(32))), crops)
    first = render(stage, crops)
    np.testing.assert_array_equal(other[0], first[0])
    assert all((other[i] != first[i]).mean() > 0.3 for i in (1, 2, 3))


def test_another_class_with_the_same_crops_draws_other_variants(stage):
    crops = people()
    out = stage({"class_id": [1, 2], "crops": [crops, crops], "variant": [0, 0]})
    assert (out["rendered"][0] != out["rendered"][1]).mean() > 0.3


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_class_is_rendered_the_same_in_any_company(directions, at_once):
    stage = make(directions, at_once=at_once)
    first, second = people(1), people(2, (1, 1, 3))
    wanted = [{"Male": True}, {"Male": False}]
    alone = stage({"class_id": [1], "crops": [first], "variant": [0], "wanted": wanted[:1]})
    both = stage({"class_id": [2, 1], "crops": [second, first], "variant": [0, 0], "wanted": wanted[::-1]})
    np.testing.assert_array_equal(both["rendered"][1], alone["rendered"][0])


def test_networks_always_see_equally_many_pictures_so_that_last_bits_cannot_depend_on_the_rest(directions):
    stage = make(directions, at_once=4)
    render(stage, people(1, (1, 2)), (0, 1, 2, 3, 4), wanted=[{"Male": True}] * 5)
    assert stage.networks is not None
    assert stage.networks.encoder.batches == stage.networks.generator.batches == {4}  # type: ignore[attr-defined]


def test_the_jitter_leaves_attributes_pose_and_light_as_they_are(directions):
    away = jitter(np.random.default_rng(3), Generator(), directions)  # type: ignore[arg-type]
    assert (directions.normals @ away).abs().max() < 1e-4
    assert away.norm() > 20


def test_jitter_zero_leaves_only_the_pool(directions):
    """With one photo in the class the pool holds one value each, and the variant is the class mean again."""
    stage = make(directions, how=Surrogates(jitter=0, limit=1000))
    mean, variant = render(stage, people(4, (1,)), (None, 0)).astype(int)
    assert np.abs(mean - variant).max() <= 1


def test_pooled_readings_of_a_variant_lie_in_the_pool(directions):
    pool, share = 0.5 * weights(8, 6, len(NAMES)), torch.full((6,), 1 / 6)
    latent = Generator.mean_latent + 0.1 * weights(9, ROWS, STYLE)
    made = follow(latent, pool, share, directions, np.random.default_rng(1), limit=10)
    for name in POOLED:
        i = NAMES.index(name)
        read = directions.read(made[None])[0, i]
        assert pool[:, i].min() - 1e-3 <= read <= pool[:, i].max() + 1e-3


def test_a_pooled_coefficient_is_limited(directions):
    pool, share = torch.full((3, len(NAMES)), 100.0), torch.full((3,), 1 / 3)
    latent = Generator.mean_latent.expand(ROWS, -1)
    made = follow(latent, pool, share, directions, np.random.default_rng(1), limit=2)
    chosen = [NAMES.index(name) for name in POOLED]
    torch.testing.assert_close(directions.read(made[None])[0, chosen], torch.full((7,), 6.0), rtol=1e-3, atol=1e-3)


def test_a_pool_weighs_subjects_not_photos_and_belongs_to_none():
    values, share = np.array([0.0, 10.0, 10.0, 10.0]), np.array([0.5, 1 / 6, 1 / 6, 1 / 6])
    drawn = np.array([quantile(values, share, u) for u in np.linspace(0, 1, 2001)])
    assert abs(np.median(drawn) - 10 * 0.75) < 0.1
    assert np.mean((drawn > 0) & (drawn < 10)) > 0.3
    assert quantile(values, share, 0) == 0
    assert quantile(values, share, 1) == 10
    order = [2, 0, 3, 1]
    assert quantile(values[order], share[order], 0.4) == quantile(values, share, 0.4)


def test_variants_draw_each_coefficient_on_its_own(directions):
    """Two photos that are high or low in everything: variants mix them."""
    pool = torch.stack([torch.full((len(NAMES),), -1.0), torch.full((len(NAMES),), 1.0)])
    latent = Generator.mean_latent.expand(ROWS, -1)
    chosen = [NAMES.index(name) for name in POOLED]
    read = [
        directions.read(follow(latent, pool, torch.tensor([0.5, 0.5]), directions, np.random.default_rng(s), 10)[None])[
            0, chosen
        ]
        for s in range(60)
    ]
    correlation = np.corrcoef(torch.stack(read).numpy().T)
    assert np.abs(correlation - np.eye(len(POOLED))).max() < 0.5


def test_released_attributes_are_realised_and_reported(stage):
    crops = people()
    wanted = [np.array([value, -1, -1], np.int8) for value in (0, 1)]
    out = stage({"class_id": [1, 1], "crops": [crops, crops], "wanted": wanted})
    assert out["realised"].tolist() == [[1, -1, -1], [1, -1, -1]]
    assert (out["rendered"][0] != out["rendered"][1]).any()


def test_each_photo_is_encoded_once_however_many_variants(stage):
    crops = people()
    render(stage, crops, (0, 1, 2, 3, 4))
    assert stage.networks is not None
    assert stage.networks.encoder.seen == sum(len(faces) for faces in crops)  # type: ignore[attr-defined]


def test_a_photo_is_encoded_once_too_where_its_class_goes_on_in_the_next_slice_and_then_forgotten(stage):
    crops = people()
    for variants in ((0, 1), (2, 3)):
        render(stage, crops, variants)
    assert stage.networks.encoder.seen == sum(len(faces) for faces in crops)
    render(stage, people(2, (1, 1)), (0,))
    assert len(stage.members.latents) == 2
    render(stage, people(3, (1,)), (0,))
    assert len(stage.members.latents) == len(stage.members.earlier) - 1 == 1


class Alive:
    """Counts arrays that are still held by anybody."""

    def __init__(self) -> None:
        self.arrays: list[weakref.ref[np.ndarray]] = []
        self.most = 0

    def add(self, array: np.ndarray) -> np.ndarray:
        self.arrays = [*(ref for ref in self.arrays if ref() is not None), weakref.ref(array)]
        self.most = max(self.most, len(self.arrays))
        return array


def test_a_part_of_many_faces_has_few_decoded_at_a_time_and_the_same_faces_as_all_at_once(directions, monkeypatch):
    """In slices of the pipeline's length, as ``--keep`` needs them: one row for each photo of a class."""
    photos, rendered = Alive(), Alive()
    monkeypatch.setattr("facecrowd.stages.surrogate.decode", lambda data: photos.add(decode(data)))
    classes = [[[encode(crop) for crop in faces] for faces in people(seed, (30, 20, 25))] for seed in (1, 2)]
    rows = [(c, crop) for c, crops in enumerate(classes) for faces in crops for crop in faces]
    batch = {
        "class_id": [c for c, _ in rows],
        "crops": [classes[c] for c, _ in rows],
        "variant": [i % 3 for i in range(len(rows))],
        "own": [crop for _, crop in rows],
        "wanted": [{"Male": bool(c)} for c, _ in rows],
    }

    class Look(Encode):
        def __call__(self, batch: Batch) -> Batch:
            for picture in batch["rendered"]:
                rendered.add(picture)
            return super().__call__(batch)

    def made(at_once: int) -> Any:
        rendered.arrays, rendered.most = [], 0
        stage = make(directions, keeping=("pose",), at_once=4)
        return stage, ray_data.apply((stage, Look()), batch, at_once)

    _, whole = made(0)
    assert rendered.most == len(rows) == 150
    stage, sliced = made(steps.FACES_AT_ONCE)
    assert 0 < rendered.most <= steps.FACES_AT_ONCE <= 64
    assert 0 < photos.most <= 8
    assert stage.networks.encoder.seen <= len(rows) + 4 * 4
    assert list(sliced["status"]) == ["ok"] * len(rows)
    assert sliced["image"] == whole["image"]
    np.testing.assert_array_equal(sliced["realised"], whole["realised"])


def test_the_generator_runs_in_bfloat16_where_asked_and_the_face_stays_nearly_the_same(directions):
    stage, half = make(directions), make(directions)
    half.networks = replace(half.networks, half=True)
    single, rounded = (render(s, people(), wanted=[{"Male": True}] * 4).astype(float) for s in (stage, half))
    assert (single != rounded).any()
    assert 10 * np.log10(255**2 / ((single - rounded) ** 2).mean()) > 30
    assert not Surrogate(KEY).half


def test_a_damaged_class_is_a_row_with_a_reason_and_stops_no_other(stage):
    out = stage({"class_id": [1, 2, 3], "crops": [people(), [[b"no picture"]], []]})
    assert list(out["status"]) == ["ok", "failed", "failed"]
    assert "Undecodable" in out["reason"][1]
    assert "at least one subject" in out["reason"][2]
    assert out["rendered"][0].shape == (SIDE, SIDE, 3)
    assert out["rendered"][1:] == [None, None]
