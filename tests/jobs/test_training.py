"""Claims of jobs/training.py: a training that was killed ends with the same bits as one that never was; Ray or not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facecrowd.jobs import training
from facecrowd.jobs.labelled import Faces
from facecrowd.jobs.train_attributes import GoogLeNetTask, Preset
from facecrowd.jobs.training import CHECKPOINT, LOG, train, train_on_ray
from facecrowd.pipeline.errors import ConfigError, UnfinishedError

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = Path(__file__).with_name("kill_training.py")
PRESET = Preset("adamw", 1e-3, 5e-2, 4, 5, side=64)
EVERY = 2


@pytest.fixture(scope="module")
def few(labelled: Faces) -> Faces:
    return labelled.take(labelled.folds(4) == 0)


@pytest.fixture(scope="module")
def whole(few: Faces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of five steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(partial(GoogLeNetTask, few, None, PRESET), folder, EVERY)
    return folder


def state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    return found


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a checkpoint by its path."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, part in pairs for path, leaf in flat(part, f"{name}/{key}").items()}
    return {name: value}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    a, b = flat(one), flat(other)
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def losses(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "steps_per_s"} for row in log(folder)]


class Counter:
    """A task of one number that grows by the draw of each step."""

    def __init__(self, steps: int = 7, identity: str = "counter") -> None:
        self.identity, self.steps, self.value, self.taken = identity, steps, 0.0, list[int]()

    def step(self, number: int) -> dict[str, float]:
        self.taken.append(number)
        self.value += float(torch.rand(1, generator=training.generator(3, number)))
        return {"step_number": float(number)}

    def measure(self) -> dict[str, float]:
        return {"value": self.value}

    def state(self) -> dict[str, Any]:
        return {"value": self.value}

    def restore(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


# ----------------------------------------------------------------------------------------------------------- the loop


def test_every_step_is_taken_once_and_figures_are_means_since_the_last_report(tmp_path):
    task = train(Counter, tmp_path, every=3)
    assert task.taken == list(range(7))
    assert [row["step"] for row in log(tmp_path)] == [3, 6, 7]
    assert [row["step_number"] for row in log(tmp_path)] == [1, 4, 6]
    assert log(tmp_path)[-1]["value"] == task.value == state(tmp_path)["task"]["value"]


def test_a_resumed_training_takes_the_steps_since_its_checkpoint_and_no_other(tmp_path):
    straight = train(Counter, tmp_path / "straight", every=2)
    first = train(Counter, tmp_path / "cut", every=2, until=5)
    said: list[str] = []
    second = train(Counter, tmp_path / "cut", every=2, say=said.append)
    assert (first.taken, second.taken) == ([0, 1, 2, 3, 4], [5, 6])
    assert second.value == straight.value
    assert said[0] == "resuming at step 5 of 7"
    assert [row["step_number"] for row in log(tmp_path / "cut")] == [0.5, 2.5, 4, 5, 6]
    again = train(Counter, tmp_path / "cut", every=2)
    assert again.taken == []
    assert again.value == straight.value


def test_the_log_forgets_what_comes_after_the_checkpoint_and_a_torn_line(tmp_path):
    train(Counter, tmp_path, every=2, until=4)
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 6, "value": 9}\n{"step": 7, "va')
    train(Counter, tmp_path, every=2)
    assert [row["step"] for row in log(tmp_path)] == [2, 4, 6, 7]
    assert log(tmp_path)[2]["value"] != 9


def test_a_checkpoint_of_other_data_or_settings_is_refused(tmp_path):
    train(Counter, tmp_path, until=2)
    with pytest.raises(ConfigError, match="holds a training of other data or settings; give another --work folder"):
        train(partial(Counter, identity="another"), tmp_path)


def test_what_ray_workers_have_not_finished_is_not_begun_anew(tmp_path):
    (tmp_path / "ray-counter").mkdir()
    with pytest.raises(
        ConfigError, match="holds a training that Ray workers have not finished; give --workers to go on"
    ):
        train(Counter, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()
    training.write({"identity": "counter", "step": 3, "task": {"value": 0.0}}, tmp_path / CHECKPOINT)
    assert train(Counter, tmp_path).taken == [3, 4, 5, 6]


def test_draws_of_a_step_depend_on_the_seed_and_the_step():
    draws = {
        (seed, step): float(torch.rand(1, generator=training.generator(seed, step)))
        for seed in (0, 1, 2)
        for step in (0, 1, 599_999)
    }
    assert len(set(draws.values())) == len(draws)
    assert draws[1, 1] == float(torch.rand(1, generator=training.generator(1, 1)))


# ---------------------------------------------------------------------------------------------------------- GoogLeNet


def test_a_tiny_training_of_googlenet_lowers_the_loss(labelled):
    """On eight faces, seen in twenty steps."""
    task = GoogLeNetTask(labelled.take(np.arange(10)), None, Preset("adamw", 1e-3, 5e-2, 8, 20, side=64, augment=False))
    found = [task.step(number)["loss"] for number in range(task.steps)]
    assert found[0] > 0.6
    assert np.mean(found[-5:]) < 0.75 * found[0]


def test_a_training_killed_and_resumed_ends_with_the_same_bits(few, whole, tmp_path):
    few.write(tmp_path / "faces.parquet")
    folder = tmp_path / "work"

    def run(kill_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), str(tmp_path / "faces.parquet"), str(folder), str(kill_at)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    killed = run(4)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert state(folder)["step"] == 2
    assert not same(state(folder)["task"], state(whole)["task"])
    resumed = run(0)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at step 2 of 5" in resumed.stdout
    assert same(state(folder), state(whole))
    assert losses(folder) == losses(whole)


def test_another_seed_ends_elsewhere(few, whole, tmp_path):
    train(partial(GoogLeNetTask, few, None, PRESET, 1), tmp_path, EVERY, until=1)
    one = state(tmp_path)["task"]["network"]["body.0.0.weight"]
    other = GoogLeNetTask(few, None, PRESET)
    other.step(0)
    assert not torch.equal(one, other.network.state_dict()["body.0.0.weight"])


# ----------------------------------------------------------------------------------------------------------- Ray Train


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_one_worker_of_ray_train_ends_with_the_bits_of_plain_torch(few, whole, tmp_path):
    make = partial(GoogLeNetTask, few, None, PRESET)
    task = train_on_ray(make, tmp_path, EVERY, workers=1)
    assert same(state(tmp_path), state(whole))
    assert same(task.state(), state(whole)["task"])
    assert losses(tmp_path) == losses(whole)
    before = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    assert same(train_on_ray(make, tmp_path, EVERY, workers=1).state(), task.state())
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="other data or settings"):
        train_on_ray(partial(GoogLeNetTask, few, None, replace(PRESET, steps=6)), tmp_path, EVERY)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_ray_train_goes_on_from_what_plain_torch_left_and_after_a_worker_died(few, whole, tmp_path):
    from facecrowd.jobs import train_attributes

    train(partial(GoogLeNetTask, few, None, PRESET), tmp_path, EVERY, until=2)
    marker = tmp_path / "died"

    def make() -> Any:
        class Dying(train_attributes.GoogLeNetTask):
            def step(self, number: int) -> dict[str, float]:
                import os
                import signal

                assert number >= 2
                if number == 4 and not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().step(number)

        return Dying(few, None, PRESET)

    train_on_ray(make, tmp_path, EVERY, workers=1)
    assert marker.exists()
    assert same(state(tmp_path), state(whole))
    assert losses(tmp_path) == losses(whole)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_two_workers_share_each_batch_and_end_with_one_network(few, whole, tmp_path):
    task = train_on_ray(partial(GoogLeNetTask, few, None, PRESET), tmp_path, EVERY, workers=2)
    assert state(tmp_path)["step"] == PRESET.steps
    assert not same(task.state(), state(whole)["task"])
    assert all(torch.isfinite(p).all() for p in task.network.parameters())


@pytest.mark.usefixtures("ray_session")
def test_more_workers_than_cpus_are_refused_before_anything_waits_for_them(few, tmp_path):
    with pytest.raises(ConfigError, match="--workers 50: there are only 2 CPUs"):
        train_on_ray(partial(GoogLeNetTask, few, None, PRESET), tmp_path, workers=50)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_training_that_keeps_failing_ends_in_one_sentence(tmp_path):
    def make() -> Any:
        class Failing:
            identity, steps = "failing", 2

            def step(self, number: int) -> dict[str, float]:
                raise ValueError("the loss is no number")

        return Failing()

    with pytest.raises(UnfinishedError, match=r"the training failed \(.*the loss is no number.*start it again") as e:
        train_on_ray(make, tmp_path)
    assert "\n" not in str(e.value)


def test_workers_shares_of_a_batch_are_the_batch_and_gradients_their_mean(tmp_path):
    """Two processes of torch.distributed, without Ray."""
    script = tmp_path / "pair.py"
    script.write_text(
        "import sys, torch, torch.distributed as d\n"
        "from facecrowd.jobs.training import average, share\n"
        "d.init_process_group('gloo', init_method=f'file://{sys.argv[1]}', rank=int(sys.argv[2]), world_size=2)\n"
        "w = torch.nn.Parameter(torch.zeros(1))\n"
        "(w * share(torch.tensor([1., 2., 3., 10.])).mean()).backward()\n"
        "average([w]); print(share(torch.arange(4)).tolist(), w.grad.item())\n"
        "d.destroy_process_group()\n"
    )
    pair = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "meet"), str(rank)], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    assert [p.communicate(timeout=200)[0].strip() for p in pair] == ["[0, 2] 4.0", "[1, 3] 4.0"]
    assert torch.equal(training.share(torch.arange(4)), torch.arange(4))
