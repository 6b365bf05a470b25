"""Claims of stages/universal.py: one vector for a release, in its ball to the grey level, that fools models."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from facecrowd.stages import universal
from facecrowd.stages.attributes import ATTRIBUTES, Calibration
from facecrowd.stages.channel import Channel
from facecrowd.stages.chip import Chip
from facecrowd.stages.encode import metadata
from facecrowd.stages.recognise import NotDifferentiable
from facecrowd.stages.universal import Gallery, Perturbation, PerturbationError, Traits, Universal, fit, fooled, noise

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 32


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy pictures of ten kinds: (count, 3, 32, 32) uint8, and which kind each is."""
    kinds = nn.functional.interpolate(
        torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(5)), SIDE, mode="bilinear"
    )
    chance = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (count,), generator=chance)
    x = 0.25 * kinds[y] + 0.75 * torch.rand(count, 3, SIDE, SIDE, generator=chance)
    return (x * 255).round().to(torch.uint8), y


class Toy:
    """A classifier of ``pictures``, or of two labels: is the kind odd, is it above four."""

    def __init__(self, kind: universal.Kind = "classes", seed: int = 0) -> None:
        self.name, self.sha256, self.kind = f"toy-{kind}-{seed}", f"{seed:064}", kind
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 24), (24, 24)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU()]
        network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 16, 10 if kind == "classes" else 2))
        optimiser = torch.optim.Adam(network.parameters(), 2e-3)
        for step in range(100):
            x, y = pictures(48, 100 * seed + step)
            scores = network(x.float() / 255)
            if kind == "classes":
                loss = nn.functional.cross_entropy(scores, y)
            else:
                loss = nn.functional.binary_cross_entropy_with_logits(scores, torch.stack([y % 2, y // 5], 1).float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.network = network.eval().requires_grad_(False)

    def scores(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        return out


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="module")
def sample() -> Tensor:
    return pictures(80, 9001)[0]


@pytest.fixture(scope="module")
def unseen() -> Tensor:
    return pictures(200, 9002)[0]


def rate(target: universal.Target, perturbation: Perturbation, faces: Tensor) -> float:
    moved = torch.from_numpy(perturbation.add(faces.numpy()))
    return float(fooled(target, faces, moved).any(dim=1).float().mean())


@pytest.mark.parametrize("form", ["deepfool", "sgd"])
@pytest.mark.parametrize("norm, xi", [("linf", 8.0), ("l2", 7.0 * np.sqrt(3) * SIDE)])
def test_both_forms_fool_unseen_pictures_where_noise_of_the_same_norm_does_not(toy, sample, unseen, form, norm, xi):
    found = fit([toy], sample, draws(), form=form, norm=norm, xi=xi, delta=0.05, passes=4)
    length = np.abs(found.vector).max() if norm == "linf" else np.linalg.norm(found.vector.astype(float))
    assert 0.9 * xi < length <= xi
    assert rate(toy, found, sample) > 0.3
    assert rate(toy, found, unseen) > 0.3
    assert found.about["fooling_rates"] == [pytest.approx(rate(toy, found, sample), abs=1e-4)]
    assert rate(toy, noise(found, "gaussian", draws(1)), unseen) < 0.05
    assert rate(toy, noise(found, "sign", draws(1)), unseen) < 0.05


def test_sgd_fools_as_many_as_arts_universal_perturbation_in_a_tenth_of_its_time(toy, sample, unseen):
    pytest.importorskip("art")
    from art.attacks.evasion import UniversalPerturbation
    from art.estimators.classification import PyTorchClassifier

    xi, sample = 8.0, sample[:100]
    model = PyTorchClassifier(toy.network, nn.CrossEntropyLoss(), (3, SIDE, SIDE), 10, clip_values=(0, 1))
    random.seed(0)
    settings = {"verbose": False, "max_iter": 10, "epsilon": 0.02, "batch_size": 1}
    theirs = UniversalPerturbation(
        model, "deepfool", settings, delta=0.05, max_iter=2, eps=xi / 255, norm=np.inf, verbose=False
    )
    start = time.process_time()
    theirs.generate(sample.numpy().astype(np.float32) / 255)
    taken = time.process_time() - start
    own = []
    for _ in range(3):  # so short that one pause would count for half of it
        start = time.process_time()
        ours = fit([toy], sample, draws(), xi=xi, delta=0.05, passes=4)
        own.append(time.process_time() - start)
    expected = Perturbation(np.rint(theirs.noise[0] * 255).astype(np.int16), "linf", xi)
    assert rate(toy, ours, sample) >= rate(toy, expected, sample) > 0.1
    assert rate(toy, ours, unseen) >= rate(toy, expected, unseen)
    assert 10 * min(own) <= taken, (own, taken)


def test_a_batch_of_one_is_the_papers_algorithm(toy, sample):
    from facecrowd.stages.deepfool import deepfool

    few = sample[:6]
    found = fit([toy], few, draws(3), form="deepfool", xi=6, delta=0, passes=1, batch=1)
    v = torch.zeros(3, SIDE, SIDE)
    for i in draws(3).permutation(6):
        x = few[i : i + 1].float() / 255
        before = toy.scores(x).argmax(dim=1, keepdim=True)
        start = (x + v / 255).clamp(0, 1)
        if toy.scores(start).argmax(dim=1, keepdim=True) == before:
            v = (v + (deepfool(toy.scores, start, decided=before, max_iter=10, clamp=False).x - start)[0] * 255).clamp(
                -6, 6
            )
    assert np.array_equal(found.vector, np.rint(v.numpy()).astype(np.int16))


def test_fitting_stops_at_the_fooling_rate_asked_for(toy, sample):
    eager = fit([toy], sample, draws(), xi=12, delta=0.7, passes=6)
    assert eager.about["passes"] < 6
    assert eager.about["fooling_rates"][0] >= 0.3
    whole = fit([toy], sample, draws(), xi=12, delta=0, passes=6)
    assert whole.about["passes"] == 6
    assert whole.about["fooling_rates"][0] >= eager.about["fooling_rates"][0]


def test_the_same_draws_make_the_same_vector(toy, sample):
    one, same, other = (fit([toy], sample, draws(seed), delta=0, passes=1).vector for seed in (5, 5, 6))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_one_vector_fools_several_models_and_reports_each(toy, sample, unseen):
    labels = Toy("labels", seed=1)
    found = fit([toy, labels], sample, draws(), xi=10, delta=0, passes=4)
    assert [t["name"] for t in found.about["targets"]] == [toy.name, labels.name]
    for target in (toy, labels):
        assert rate(target, found, unseen) > 0.3


def test_steps_may_be_signs(toy, sample):
    found = fit([toy], sample, draws(), step="sign", rate=2, xi=8, delta=0, passes=4)
    assert rate(toy, found, sample) > 0.3


class Linear:
    """One label that is mostly about fine stripes, and a little about the slope of the whole picture."""

    name, sha256, kind = "linear", "3" * 64, "labels"

    def __init__(self) -> None:
        self.fine = torch.where(torch.arange(SIDE) % 2 == 0, 1.0, -1.0).expand(3, SIDE, SIDE)
        self.coarse = torch.linspace(-1, 1, SIDE).expand(3, SIDE, SIDE)

    def scores(self, x: Tensor) -> Tensor:
        return ((x - 0.5) * (3 * self.fine + self.coarse)).sum(dim=(1, 2, 3))[:, None] + 3


def test_a_vector_that_saw_resizing_in_its_loop_survives_resizing():
    target, faces = Linear(), torch.full((20, 3, SIDE, SIDE), 128, dtype=torch.uint8)
    shrunk = Channel(scale=(0.4, 0.5))

    def survives(channel: Channel) -> float:
        found = fit([target], faces, draws(), norm="l2", xi=150, delta=0, passes=20, batch=4, channel=channel)
        moved = torch.from_numpy(found.add(faces.numpy())).float() / 255
        return float((target.scores(shrunk(moved, draws(1))) <= 0).float().mean())

    assert survives(Channel()) == 0
    assert survives(shrunk) == 1


@pytest.mark.parametrize("size", [SIDE, 20, 77])
@pytest.mark.parametrize("norm, xi", [("linf", 8.0), ("linf", 3.7), ("l2", 150.0), ("l2", 40.0)])
def test_the_bound_holds_exactly_in_the_rounded_picture_at_any_size(norm, xi, size):
    raw = draws(2).standard_normal((3, SIDE, SIDE)) * 50
    raw = universal.project(torch.from_numpy(raw), norm, xi).numpy()
    perturbation = Perturbation(universal._whole(raw, norm, xi), norm, xi)
    crops = draws(3).integers(0, 256, (5, size, size, 3), dtype=np.uint8)
    crops[0], crops[1] = 0, 255
    made = Universal(perturbation)({"rendered": list(crops)})["rendered"]
    bound = xi if norm == "linf" else xi * size / SIDE
    for before, after in zip(crops, made, strict=True):
        change = after.astype(np.float64) - before
        assert after.dtype == np.uint8
        assert (np.abs(change).max() if norm == "linf" else np.sqrt((change**2).sum())) <= bound
        assert np.array_equal(np.clip(before + perturbation.sized(size).vector.transpose(1, 2, 0), 0, 255), after)


@pytest.mark.parametrize("size", [16, 24, 80])
def test_a_coarse_vector_means_as_much_per_pixel_at_another_size(size):
    coarse = cv2.resize(draws(2).standard_normal((3, 3, 3)), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    raw = coarse.transpose(2, 0, 1) * (400 / np.linalg.norm(coarse))
    resized = Perturbation(universal._whole(raw, "l2", 400), "l2", 400).sized(size)
    assert resized.xi == 400 * size / SIDE
    assert 0.9 * resized.xi < np.linalg.norm(resized.vector.astype(float)) <= resized.xi


def test_rounding_in_l2_wastes_little_of_the_bound():
    raw = draws(2).standard_normal((3, SIDE, SIDE))
    for xi in (40.0, 150.0):
        raw *= xi / np.linalg.norm(raw)
        assert np.linalg.norm(universal._whole(raw, "l2", xi).astype(float)) > 0.97 * xi


def test_the_stage_adds_the_vector_to_every_row_that_is_ok(tmp_path):
    vector = draws(4).integers(-8, 9, (3, SIDE, SIDE)).astype(np.int16)
    Perturbation(vector, "linf", 8).save(tmp_path / "v.safetensors")
    crops = [draws(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for i in range(4)]
    batch = {"crop": [crops[0], crops[1][:, :5], crops[2], None], "status": ["ok", "ok", "ok", "no_face"]}
    stage = Universal(tmp_path / "v.safetensors", column="crop")
    stage.setup()
    out = stage(batch)
    assert list(out["status"]) == ["ok", "failed", "ok", "no_face"]
    assert out["reason"][1].startswith("universal: ValueError: not an (S, S, 3) uint8 crop")
    for i in (0, 2):
        expected = np.clip(crops[i].astype(int) + vector.transpose(1, 2, 0), 0, 255)
        assert np.array_equal(out["rendered"][i], expected)
    assert out["rendered"][1] is None
    assert out["rendered"][3] is None
    assert np.array_equal(batch["crop"][0], crops[0])


def test_a_saved_perturbation_comes_back_with_what_it_says_and_no_more(toy, sample, tmp_path):
    found = fit([toy], sample, draws(), delta=0, passes=1)
    found.save(tmp_path / "v.safetensors")
    back = Perturbation.load(tmp_path / "v.safetensors")
    assert np.array_equal(back.vector, found.vector)
    assert (back.norm, back.xi, back.about) == (found.norm, found.xi, found.about)
    with safe_open(str(tmp_path / "v.safetensors"), framework="np") as file:
        assert list(file.keys()) == ["vector"]
        said = json.loads(file.metadata()["facecrowd"])
    assert set(said) == {"kind", "norm", "xi", "form", "targets", "fooling_rates", "sample", "passes"}
    assert said["targets"] == [{"name": toy.name, "sha256": toy.sha256}]


def test_a_file_that_holds_no_perturbation_is_refused(tmp_path):
    vector = torch.full((3, 8, 8), 9, dtype=torch.int16)
    good = {"kind": universal.KIND, "norm": "linf", "xi": 9.0}
    for name, tensor, about in (
        ("other", vector, {**good, "kind": "encoder"}),
        ("beyond", vector, {**good, "xi": 8.0}),
        ("shape", vector[:2].contiguous(), good),
        ("float", vector.float(), good),
        ("norm", vector, {**good, "norm": "l7"}),
    ):
        file = tmp_path / f"{name}.safetensors"
        save_file({"vector": tensor}, str(file), metadata={"facecrowd": json.dumps(about)})
        with pytest.raises(PerturbationError, match=name):
            Perturbation.load(file)
    (tmp_path / "text.safetensors").write_text("no")
    for name in ("text.safetensors", "nowhere.safetensors"):
        with pytest.raises(PerturbationError, match=name):
            Perturbation.load(tmp_path / name)


def test_the_picture_shows_the_vector_amplified_around_grey():
    vector = np.zeros((3, SIDE, SIDE), np.int16)
    vector[0, 3, 5], vector[2, 7, 1] = 4, -2
    file = Perturbation(vector, "linf", 4).picture()
    assert metadata(file) == []
    seen = cv2.cvtColor(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert seen.shape == (SIDE, SIDE, 3)
    assert seen[3, 5].tolist() == [255, 128, 128]
    assert seen[7, 1].tolist() == [128, 128, 64]
    assert seen[0, 0].tolist() == [128, 128, 128]


class Reader:
    """A predictor of CelebA's 40 attributes that reads the mean colour."""

    name, sha256, attributes = "reader", "1" * 64, ATTRIBUTES

    def __init__(self) -> None:
        prior = np.linspace(0.05, 0.9, 40).astype(np.float32)
        self.calibration = Calibration(np.ones(40, np.float32), prior)
        self.weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(1)) * 6

    def logits(self, x: Tensor) -> Tensor:
        return (x.mean(dim=(2, 3)) - 0.5) @ self.weight


def test_the_scores_of_attributes_have_the_sign_of_the_values_a_predictor_gives():
    reader, names = Reader(), ("Male", "Smiling", "Bald")
    x = torch.rand(50, 3, 1, 1, generator=torch.Generator().manual_seed(2)).expand(-1, -1, SIDE, SIDE)
    target = Traits(reader, names)  # type: ignore[arg-type]
    values = reader.calibration.values(torch.sigmoid(reader.logits(x)).numpy())
    expected = values[:, [ATTRIBUTES.index(n) for n in names]]
    assert np.array_equal((target.scores(x) > 0).numpy(), expected == 1)
    with pytest.raises(ValueError, match="Moustache"):
        Traits(reader, ["Moustache"])  # type: ignore[arg-type]


class Eye:
    """A recogniser that sees 4 x 4 mean colours of the chip."""

    name, sha256, width, differentiable = "eye", "2" * 64, 48, True

    def embed(self, faces: Tensor) -> Tensor:
        assert faces.shape[1:] == (3, 112, 112)
        means = nn.functional.adaptive_avg_pool2d(faces, 4).flatten(1)
        return nn.functional.normalize(means - 0.5)


def test_a_recognisers_classes_are_the_subjects_of_its_gallery():
    kinds = nn.functional.interpolate(torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(3)), 64)
    subjects = [i % 6 for i in range(18)]
    chance = torch.Generator().manual_seed(4)
    x = (0.6 * kinds[subjects] + 0.4 * torch.rand(18, 3, 64, 64, generator=chance)).mul(255).round().to(torch.uint8)
    eye = Eye()
    target = Gallery.of(eye, x, [f"person {i}" for i in subjects])
    vectors = eye.embed(Chip(64)(x.float() / 255))
    means = torch.stack([vectors[torch.tensor(subjects) == s].mean(dim=0) for s in range(6)])
    cosines = vectors @ nn.functional.normalize(means).T
    torch.testing.assert_close(target.scores(x.float() / 255), universal.SCALE * cosines, rtol=1e-4, atol=1e-4)
    assert target.scores(x.float() / 255).argmax(dim=1).tolist() == subjects
    found = fit([target], x, draws(), xi=30, delta=0, passes=6, batch=6)
    assert rate(target, found, x) > rate(target, noise(found, "gaussian", draws(1)), x)


def test_a_recogniser_without_a_gradient_is_no_target():
    class Blind(Eye):
        differentiable = False

    with pytest.raises(NotDifferentiable, match="eye"):
        Gallery(Blind(), torch.rand(3, 48))
    with pytest.raises(ValueError, match="gallery"):
        Gallery(Eye(), torch.rand(1, 48))


@pytest.mark.parametrize("form", ["deepfool", "sgd"])
def test_an_attribute_classifier_is_fooled_when_a_label_flips(sample, unseen, form):
    labels = Toy("labels", seed=1)
    found = fit([labels], sample, draws(), form=form, xi=8, delta=0.05, passes=4)
    assert rate(labels, found, unseen) > 0.4


def test_settings_that_make_no_sense_are_refused(toy, sample):
    for change in ({"xi": 0.5}, {"norm": "l1"}, {"delta": 1.0}, {"passes": 0}):
        with pytest.raises(ValueError, match="universal"):
            fit([toy], sample, draws(), **change)
    with pytest.raises(ValueError, match="8-bit"):
        fit([toy], sample.float() / 255, draws())
    with pytest.raises(ValueError, match="target"):
        fit([], sample, draws())


def test_the_models_of_the_project_are_targets(weights: object, tmp_path: Path):
    from facecrowd.stages import recognise
    from facecrowd.stages.attributes import Predictor

    folder = weights("arcface-mobilefacenet").parent  # type: ignore[operator]
    faces = torch.from_numpy(draws().integers(0, 256, (4, 3, 128, 128), dtype=np.uint8))
    targets: list[universal.Target] = [
        Gallery.of(recognise.load("arcface-mobilefacenet", folder=folder), faces, list("abcd")),
        Traits(Predictor.load("attributes-arcface", folder=folder), ["Male", "Young"]),
    ]
    found = fit(targets, faces, draws(), delta=0, passes=1, batch=2)
    assert found.vector.shape == (3, 128, 128)
    assert [t["name"] for t in found.about["targets"]] == ["arcface-mobilefacenet", "attributes-arcface"]
