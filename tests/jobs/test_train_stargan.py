"""Claims of jobs/train_stargan.py, on a few generated pictures and tiny networks."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from facecrowd.jobs import train_stargan as recipe
from facecrowd.jobs import training
from facecrowd.jobs.edited_groups import VARIANTS
from facecrowd.jobs.train_stargan import HELD, PRESETS, Data, Preset, StarganTask
from facecrowd.pipeline.errors import ConfigError

NAMES = ("Male", "Black_Hair", "Blond_Hair", "Brown_Hair")
TINY = Preset(3, 2, 2, side=32, width=4, layers=3, groups=HELD + 4)


@pytest.fixture
def data() -> Data:
    draw = torch.Generator().manual_seed(0)

    def pixels(*shape: int) -> torch.Tensor:
        return torch.randint(256, (*shape, 3, 32, 32), generator=draw, dtype=torch.uint8)

    def values(*shape: int) -> torch.Tensor:
        return torch.randint(2, (*shape, len(NAMES)), generator=draw).float()

    groups = HELD + 4, 1 + VARIANTS
    return Data(pixels(6), values(6), pixels(*groups), values(*groups))


def test_a_killed_training_goes_on_to_the_same_bits(data: Data, tmp_path: Path) -> None:
    whole = training.train(partial(StarganTask, data, TINY, NAMES, tmp_path, None), tmp_path / "a", 1)
    make = partial(StarganTask, data, TINY, NAMES, tmp_path, None)
    training.train(make, tmp_path / "b", 1, until=1)
    resumed = training.train(make, tmp_path / "b", 1)
    for one, other in zip(whole.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.equal(one, other)


def test_losses_are_logged_and_samples_written_as_training_goes(data: Data, tmp_path: Path) -> None:
    training.train(partial(StarganTask, data, TINY, NAMES, tmp_path, None), tmp_path, 1)
    logged = [json.loads(line) for line in (tmp_path / training.LOG).read_text().splitlines()]
    assert [row["step"] for row in logged] == [1, 2, 3]
    assert {"d_adv", "d_gp", "d_cls", "g_adv", "g_cls", "g_rec", "g_pair", "held_pair"} <= set(logged[0])
    assert (tmp_path / "samples.jpg").is_file()


def test_the_identity_loss_comes_in_during_the_second_half(data: Data, tmp_path: Path, model_folder: str) -> None:
    task = StarganTask(data, replace(TINY, steps=4, id=1.0, side=32), NAMES, tmp_path, None)
    assert "g_id" not in task.step(1)
    assert "g_id" in task.step(3)


def test_the_papers_presets_are_the_papers_schedules() -> None:
    anonymous, adaptive = PRESETS["anonymousnet"], PRESETS["adaptive"]
    # StarGAN's 200,000 updates of the discriminator, five for one of the generator, batches of 16, 128 pixels.
    assert anonymous.steps * anonymous.critics == 200_000
    for preset in (anonymous, adaptive):
        assert (preset.batch, preset.critics, preset.side, preset.width, preset.rate) == (16, 5, 128, 64, 1e-4)
        assert (preset.residual, preset.encoding, preset.groups, preset.hold) == (False, "target", 0, 0.5)
    assert adaptive.epochs == 20
    assert adaptive.id > 0


def test_epochs_count_the_photos_and_the_critics(data: Data, tmp_path: Path) -> None:
    preset = replace(TINY, steps=0, epochs=20, batch=2, critics=5)
    assert StarganTask(data, preset, NAMES, tmp_path, None).steps == 20 * 6 // 2 // 5


def test_a_mixed_target_takes_the_colours_of_hair_together(data: Data, tmp_path: Path) -> None:
    task = StarganTask(data, TINY, NAMES, tmp_path, None)
    source, other = torch.zeros(200, 4), torch.ones(200, 4)
    mixed = task.mixed(source, other, torch.Generator().manual_seed(3))
    assert torch.equal(mixed[:, 1], mixed[:, 2])
    assert torch.equal(mixed[:, 2], mixed[:, 3])
    assert not torch.equal(mixed[:, 0], mixed[:, 1])


def test_going_on_from_weights_of_another_shape_is_refused(data: Data, tmp_path: Path) -> None:
    other = recipe.stargan.Generator(recipe.stargan.Shape(("Male",), 4, 32))
    with pytest.raises(ConfigError, match="another shape"):
        StarganTask(data, TINY, NAMES, tmp_path, other)


def test_without_photos_and_groups_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    nothing = Data(*(torch.empty(0, dtype=torch.uint8),) * 4)
    with pytest.raises(ConfigError, match="nothing to train on"):
        StarganTask(nothing, TINY, NAMES, tmp_path, None)


@pytest.mark.slow
def test_the_smoke_preset_trains_on_generated_faces_alone_and_writes_weights(tmp_path: Path, model_folder: str) -> None:
    output = tmp_path / "t.safetensors"
    recipe.run(output, [], "smoke", recipe.SHOWN, None, None, 0, 2, None, None, lambda line: None)
    assert recipe.stargan.Generator.load(output).shape.attributes == recipe.SHOWN
