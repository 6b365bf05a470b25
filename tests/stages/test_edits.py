"""Claims of stages/edits.py: an edit changes its attribute and hardly another, and stops where the predictor agrees."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from facecrowd.stages import edits
from facecrowd.stages.edits import Directions, DirectionsError, Edit, apply, fit, realise
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("Male", "No_Beard", "Smiling", "Young", "yaw")
ATTRIBUTES = NAMES[:4]
SIDE = 8


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    """Faces whose readings are linear in w, with correlated w: Male and No_Beard share most of their normals."""
    draws = np.random.default_rng(5)
    mix = draws.standard_normal((STYLE, STYLE)) * np.geomspace(1, 0.02, STYLE) / np.sqrt(STYLE)
    normals = draws.standard_normal((len(NAMES), STYLE))
    normals[1] = -0.8 * normals[0] + 0.6 * normals[1]
    mean = draws.standard_normal(STYLE) * 0.1
    w = mean + draws.standard_normal((1200, STYLE), dtype=np.float32) @ mix.T
    readings = (w - mean) @ normals.T
    readings += 0.1 * readings.std(axis=0) * draws.standard_normal(readings.shape)
    return SimpleNamespace(w=w, readings=readings, normals=normals, mean=mean)


@pytest.fixture(scope="module")
def directions(world) -> Directions:
    return fit(world.w, world.readings, NAMES, world.mean)


@pytest.fixture(scope="module")
def exact(world) -> Directions:
    return fit(world.w, world.readings, NAMES, world.mean, overlap=0)


class LinearGenerator:
    """Pictures of which a linear map finds back the mean row of w+."""

    def __init__(self, mean: np.ndarray) -> None:
        spread = torch.randn(STYLE, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(3))
        self.to_pixels = 0.002 * spread
        self.mean_latent = torch.as_tensor(mean).float()
        self.pictures = 0

    def synthesis(self, w_plus: Tensor, size: int) -> Tensor:
        self.pictures += len(w_plus)
        return 0.5 + ((w_plus.mean(1) - self.mean_latent) @ self.to_pixels).view(-1, 3, size, size)


class LinearPredictor:
    """Logits linear in the pixels, and so in w: what the pixels still say of the world's readings."""

    attributes = ATTRIBUTES
    calibration = SimpleNamespace(threshold=np.array([0.5, 0.4, 0.5, 0.7], np.float32))

    def __init__(self, generator: LinearGenerator, world: SimpleNamespace) -> None:
        pixels = (torch.from_numpy(world.w).float() - generator.mean_latent) @ generator.to_pixels
        wanted = torch.from_numpy(world.readings[:, :4]).float()
        self.weight = torch.linalg.lstsq(pixels, wanted).solution

    def logits(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight


@pytest.fixture(scope="module")
def networks(world) -> tuple[LinearGenerator, LinearPredictor]:
    generator = LinearGenerator(world.mean)
    return generator, LinearPredictor(generator, world)


def faces(world, count: int, start: int = 0) -> Tensor:
    return torch.from_numpy(world.w[start : start + count]).float()[:, None].repeat(1, ROWS, 1)


def test_normals_are_those_of_ridge_regression(world, monkeypatch):
    monkeypatch.setattr(edits, "RIDGES", (0.01,))
    ours = fit(world.w, world.readings, NAMES, world.mean).normals
    x = world.w - world.w.mean(axis=0)
    theirs = Ridge(alpha=0.01 * (x**2).sum() / STYLE).fit(x, world.readings).coef_
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4 * np.abs(theirs).max())


def test_a_direction_reads_one_more_of_its_own_and_nothing_of_the_others(exact):
    torch.testing.assert_close(exact.normals @ exact.directions.T, torch.eye(len(NAMES)), rtol=0, atol=1e-3)


def test_editing_one_attribute_disturbs_the_others_less_than_its_plain_normal_does(world, directions):
    true = torch.from_numpy(world.normals).float()

    def disturbance(steps: Tensor) -> Tensor:
        change = true @ steps.T / torch.from_numpy(world.readings.std(axis=0)).float()[:, None]
        change = change / change.diagonal()
        return (change - torch.eye(len(NAMES))).square().mean(dim=0).sqrt()

    assert (disturbance(directions.directions)[:2] < 0.5 * disturbance(directions.normals)[:2]).all()
    assert disturbance(directions.directions).max() < 0.25


def test_overlap_lets_correlated_attributes_move_along_and_shortens_the_step(directions, exact):
    along = (directions.normals @ directions.directions.T)[1, 0]
    assert along < -0.02
    assert (directions.directions[0].norm() < exact.directions[0].norm()).item()


def test_of_all_steps_with_the_same_readings_the_direction_is_the_most_like_generated_faces(world, exact):
    x = world.w - world.w.mean(axis=0)
    root = np.linalg.cholesky(x.T @ x / len(x) + 1e-9 * np.eye(STYLE))
    normals = exact.normals.double().numpy()
    least = np.linalg.lstsq(normals @ root, np.eye(len(NAMES)), rcond=None)[0]  # of least length where w is white
    np.testing.assert_allclose(exact.directions.T, root @ least, atol=1e-3 * np.abs(root @ least).max())


def test_how_well_a_reading_can_be_read_is_said_of_faces_it_was_not_fitted_on(world):
    noise = np.random.default_rng(2).standard_normal(world.readings.shape)
    honest = fit(world.w[:300], noise[:300], NAMES, world.mean).about["variance_read"]
    assert max(honest) < 0.05
    assert min(fit(world.w, world.readings, NAMES, world.mean).about["variance_read"]) > 0.95


def test_a_reading_that_never_changes_has_no_direction(world):
    readings = world.readings.copy()
    readings[:, 2] = 1
    with pytest.raises(ValueError, match="Smiling is the same"):
        fit(world.w, readings, NAMES, world.mean)


def test_directions_come_back_from_their_file_to_fp16(directions, tmp_path):
    file = tmp_path / "directions.safetensors"
    directions.save(file)
    back = Directions.load(file)
    assert back.names == NAMES
    assert back.about["overlap"] == edits.OVERLAP
    for name in ("normals", "directions", "scale", "mean"):
        torch.testing.assert_close(getattr(back, name), getattr(directions, name), rtol=1e-3, atol=1e-4)
    assert back.rows.tolist() == directions.rows.tolist()


def test_a_file_without_directions_is_refused_by_name(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(DirectionsError, match=r"other\.safetensors holds no directions"):
        Directions.load(tmp_path / "other.safetensors")
    with pytest.raises(DirectionsError, match="facecrowd train directions"):
        Directions.load(tmp_path / "none.safetensors")


def test_an_edit_touches_only_the_rows_of_its_direction_and_reads_back(world, exact):
    rows = exact.rows.clone()
    rows[4] = torch.tensor([0, 4])
    directions = edits.replace(exact, rows=rows)
    before = faces(world, 3)
    coefficients = torch.zeros(3, len(NAMES))
    coefficients[:, 4] = torch.tensor([1.0, -2.0, 0.0])
    after = apply(before, directions, coefficients)
    assert torch.equal(after[:, 4:], before[:, 4:])
    assert not torch.equal(after[:2, :4], before[:2, :4])
    assert torch.equal(after[2], before[2])
    change = directions.read(after) - directions.read(before)
    torch.testing.assert_close(change[:, 4], coefficients[:, 4], rtol=1e-3, atol=1e-3)


def wish(predictor, generator, latent: Tensor, name: str) -> np.ndarray:
    """The other value of one attribute."""
    logits = predictor.logits(generator.synthesis(latent, SIDE))
    a = ATTRIBUTES.index(name)
    wanted = np.full((len(latent), len(ATTRIBUTES)), -1, np.int8)
    wanted[:, a] = torch.sigmoid(logits)[:, a] < predictor.calibration.threshold[a]
    return wanted


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_is_flipped_by_the_margin_and_the_others_hardly_move(world, networks, exact, name):
    generator, predictor = networks
    latent = faces(world, 12)
    wanted = wish(predictor, generator, latent, name)
    made = realise(generator, predictor, exact, latent, wanted, limit=8, size=SIDE, margin=0.5)
    a = ATTRIBUTES.index(name)
    assert (made.agrees[:, a] == 1).all()
    assert (np.delete(made.agrees, a, axis=1) == -1).all()
    before, after = (predictor.logits(generator.synthesis(w, SIDE)) for w in (latent, made.latent))
    threshold = torch.logit(torch.tensor(predictor.calibration.threshold))
    beyond = (after - threshold)[:, a] * torch.from_numpy(wanted[:, a] * 2.0 - 1)
    assert (beyond >= 0.5 - 1e-3).all()
    assert (beyond < 1.5).all()
    moved = (after - before).abs() / torch.from_numpy(world.readings.std(axis=0)[:4]).float()
    assert moved[:, a].mean() > 5 * moved[:, [i for i in range(4) if i != a]].mean()


def test_several_attributes_are_realised_together(world, networks, directions):
    generator, predictor = networks
    made = realise(
        generator,
        predictor,
        directions,
        faces(world, 10),
        {"Male": True, "No_Beard": True, "Smiling": False},
        limit=8,
        size=SIDE,
    )
    assert (made.agrees[:, :3] == 1).mean() > 0.95
    assert (made.agrees[:, 3] == -1).all()


def test_what_already_agrees_is_left_as_it_is(world, networks, directions):
    generator, predictor = networks
    latent = faces(world, 6)
    wanted = 1 - wish(predictor, generator, latent, "Smiling")
    wanted[wanted == 2] = -1
    made = realise(generator, predictor, directions, latent, wanted, size=SIDE, margin=0)
    assert torch.equal(made.latent, latent)
    assert (made.agrees[:, 2] == 1).all()


def test_what_agrees_is_not_pulled_back_while_another_attribute_is_edited(world, networks, exact):
    generator, predictor = networks
    latent = faces(world, 12)
    wanted = wish(predictor, generator, latent, "Male")
    wanted[:, 2] = 1 - wish(predictor, generator, latent, "Smiling")[:, 2]
    logits = predictor.logits(generator.synthesis(latent, SIDE))[:, 2]
    sure = logits.abs() > 2
    made = realise(generator, predictor, exact, latent, wanted, limit=8, size=SIDE)
    assert sure.any()
    assert (made.coefficients[sure, 2] == 0).all()
    assert (made.agrees[:, [0, 2]] == 1).all()


def test_beyond_the_limit_the_edit_stops_and_says_that_it_failed(world, networks, directions):
    generator, predictor = networks
    latent = faces(world, 12)
    wanted = wish(predictor, generator, latent, "Male")
    made = realise(generator, predictor, directions, latent, wanted, limit=0.05, size=SIDE)
    assert (made.coefficients.abs() <= 0.05 * directions.scale + 1e-6).all()
    assert (made.agrees[:, 0] == 0).any()
    seen = torch.sigmoid(predictor.logits(generator.synthesis(made.latent, SIDE)))[:, 0] >= 0.5
    assert (made.agrees[:, 0] == (seen.numpy() == wanted[:, 0])).all()


def test_a_face_is_edited_the_same_in_any_company(world, networks, directions):
    generator, predictor = networks
    latent = faces(world, 7)
    wanted = wish(predictor, generator, latent, "Young")
    together = realise(generator, predictor, directions, latent, wanted, size=SIDE, at_once=4).latent
    for i in (0, 5):
        alone = realise(
            generator, predictor, directions, latent[i : i + 1], wanted[i : i + 1], size=SIDE, at_once=4
        ).latent
        assert torch.equal(alone[0], together[i])


def test_an_attribute_nobody_predicts_is_refused(networks, directions, world):
    with pytest.raises(ValueError, match="Tall is no attribute"):
        realise(*networks, directions, faces(world, 1), {"Tall": True}, size=SIDE)


def test_the_stage_edits_good_rows_and_gives_reasons_for_bad_ones(world, networks, directions):
    stage = Edit(size=SIDE, limit=8)
    stage.networks = (*networks, directions)
    latent = faces(world, 4).numpy()
    batch = {
        "latent": [latent[0], latent[1][:5], latent[2], None],
        "wanted": [{"Smiling": True}, {"Smiling": True}, {"Tall": True}, {}],
        "status": np.array(["ok", "ok", "ok", "no_face"], object),
    }
    out = stage(batch)
    assert list(out["status"]) == ["ok", "failed", "failed", "no_face"]
    assert "(5, 512)" in out["reason"][1]
    assert "Tall" in out["reason"][2]
    assert out["realised"].tolist() == [[-1, -1, 1, -1]] + [[-1] * 4] * 3
    assert out["latent"][0].shape == (ROWS, STYLE)
    assert out["latent"][1:] == [None, None, None]


def test_the_shipped_directions_are_small_and_cover_all_attributes_pose_and_light():
    from facecrowd.stages.attributes import ATTRIBUTES as ALL

    assert edits.SHIPPED_DIRECTIONS.stat().st_size < 100_000
    shipped = Directions.load()
    assert shipped.names == (*ALL, *edits.POSE, *edits.LIGHT)
    assert set(edits.EXPRESSION) < set(shipped.names)
    torch.testing.assert_close((shipped.normals * shipped.directions).sum(1), torch.ones(45), rtol=0, atol=0.02)
    # Two attributes that go together among faces: moving one may take the other along, but no further than itself.
    cross = shipped.normals @ shipped.directions.T * shipped.scale / shipped.scale[:, None]
    assert (cross - torch.eye(45)).abs().max() < 1


def test_with_the_published_generator_a_man_smiles_and_a_smile_goes(weights):
    from facecrowd.stages.attributes import STEER, Predictor
    from facecrowd.stages.networks.mobilestylegan import MobileStyleGAN

    weights("arcface-mobilefacenet")
    generator = MobileStyleGAN.load(weights("mobilestylegan-ffhq"))
    predictor = Predictor.load(STEER)
    z = torch.randn(2, STYLE, generator=torch.Generator().manual_seed(11))
    latent = generator.truncate(generator.mapping(z))
    a = predictor.attributes.index("Smiling")
    smiles = torch.sigmoid(edits.look(generator, predictor, latent, 128, 1))[:, a] > predictor.calibration.threshold[a]
    made = realise(generator, predictor, Directions.load(), latent, {"Smiling": (~smiles).tolist()})
    assert (made.agrees[:, a] == 1).all()
    assert 0 < (made.latent - latent).norm() < 12 * ROWS**0.5
