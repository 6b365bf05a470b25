"""Claims of pipeline/ray_data.py: stages that never heard of Ray run on it, and it shows in nothing they make."""

from __future__ import annotations

import io
import os
import pickle
import re
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facecrowd.pipeline import ray_data
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.errors import ConfigError, UnfinishedError
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.ray_data import Step, apply, groups
from facecrowd.pipeline.release import Outcome
from facecrowd.stages.stage import Batch, Resources, Stage

QUIET = Progress(quiet=True)
# What the actors of Ray run is sent to them by value: they cannot import this file.
pytestmark = pytest.mark.usefixtures("by_value")


@pytest.fixture(scope="module")
def by_value() -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Numbers:
    """A source: two rows per part."""

    def __call__(self, part: int) -> Batch:
        return {"n": np.array([10 * part, 10 * part + 1]), "pixels": [None, None]}


@dataclass(frozen=True)
class Written:
    """A sink: a file per part, with what the batch holds."""

    folder: str

    def __call__(self, part: int, batch: Batch) -> int:
        text = f"{[int(n) for n in batch['n']]} {sorted(batch)}"
        (Path(self.folder) / str(part)).write_text(text)
        return len(batch["n"])


class Double(Stage):
    name = "double"
    outputs = ("n", "pixels")
    transient = ("pixels",)

    def __init__(self, gpus: float = 0.0) -> None:
        self.resources = Resources(gpus=gpus)
        self.ready = False

    def setup(self) -> None:
        self.ready = True

    def __call__(self, batch: Batch) -> Batch:
        assert self.ready
        return {**batch, "n": np.asarray(batch["n"]) * 2, "pixels": [np.zeros((4, 4, 3), np.uint8)] * len(batch["n"])}


class Broken(Double):
    name = "broken"

    def __call__(self, batch: Batch) -> Batch:
        if 30 in batch["n"]:
            raise ValueError("the model is not made for this")
        return batch


class Dies(Double):
    """Kills its own worker the first time it sees part 2."""

    name = "dies"

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = str(mark)

    def __call__(self, batch: Batch) -> Batch:
        if 20 in batch["n"] and not os.path.exists(self.mark):
            Path(self.mark).touch()
            os.kill(os.getpid(), 9)
        return super().__call__(batch)


def made(folder: Path) -> dict[int, str]:
    return {int(file.name): file.read_text() for file in folder.iterdir()}


# ------------------------------------------------------------------------------------------------- without a cluster


def test_neighbours_that_need_the_same_hardware_share_a_worker() -> None:
    a, b, c, d = Double(), Double(), Double(gpus=0.5), Double()
    assert groups((a, b, c, d)) == [(a, b), (c,), (d,)]
    assert groups((a, b)) == [(a, b)]
    assert groups(()) == [()]


def test_pixels_do_not_leave_the_worker_that_made_them() -> None:
    first = ray_data._Group((Double(),), Numbers(), None, 0)
    (columns,) = first({"part": np.array([3])})["columns"]
    second = ray_data._Group((Double(),), None, lambda part, batch: len(batch["n"]), 0)
    assert set(pickle.loads(columns)) == {"n"}  # noqa: S301
    assert second({"part": [3], "columns": [columns]})["rows"] == [2]


@pytest.mark.parametrize("at_once", [0, 1, 2, 3, 5, 100])
def test_how_many_rows_go_through_together_shows_in_nothing(at_once: int) -> None:
    batch = {"n": np.arange(5), "name": list("abcde"), "pixels": [None] * 5}
    for stage in (stages := (Double(), Double())):
        stage.setup()
    out = apply(stages, batch, at_once)
    assert np.asarray(out["n"]).tolist() == [0, 4, 8, 12, 16]
    assert list(out["name"]) == list("abcde")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"])
def test_an_address_where_nothing_answers_is_named_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    start = time.monotonic()
    with pytest.raises(ConfigError) as error, ray_data.session(address):
        pass
    assert str(error.value).startswith(f"compute.address {address}: no Ray cluster answers there (")
    assert time.monotonic() - start < 60


def test_an_address_that_ray_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**_: Any) -> None:
        raise ValueError("Ray Client requires pip package `ray[client]`.\nPlease install it")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConfigError, match=r"requires pip package `ray\[client\]`\.\)$"), ray_data.session("auto"):
        pass


# ---------------------------------------------------------------------------------------------------- with a cluster


def test_ray_that_does_not_start_in_time_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def late() -> None:
        raise Exception("The current node timed out during startup.\nMore.")

    starts: list[object] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: (starts.append(options), late()))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(UnfinishedError) as error, ray_data.session():
        pass
    assert str(error.value) == "Ray did not start: The current node timed out during startup. Start it again."
    assert len(starts) == ray_data.STARTS


def test_ray_that_comes_up_late_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    begun: list[str] = []

    def second(**_: object) -> None:
        begun.append("start")
        if len(begun) == 1:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", second)
    monkeypatch.setattr(ray, "shutdown", lambda: begun.append("end"))
    with ray_data.session():
        assert begun == ["start", "end", "start"]


def test_every_part_is_made_once_and_as_in_one_process(ray_session: None, tmp_path: Path) -> None:
    seen: list[int] = []

    class Count(Progress):
        def step(self, name: str, total: int, unit: str = "rows") -> Any:
            assert (name, total) == ("double", 4)
            return nullcontext(seen.append)

    ray_data.run(Step("double", Numbers(), (Double(), Double()), Written(str(tmp_path))), [0, 2, 5, 7], Count())
    assert made(tmp_path) == {part: f"[{40 * part}, {40 * part + 4}] ['n', 'pixels']" for part in (0, 2, 5, 7)}
    assert seen == [2, 2, 2, 2]


def test_two_groups_of_stages_on_two_cpus_do_not_hang(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no second kind of hardware here, so every stage is made a group of its own.
    monkeypatch.setattr(ray_data, "groups", lambda stages: [(stage,) for stage in stages])
    start = time.monotonic()
    ray_data.run(Step("double", Numbers(), (Double(), Double(), Double()), Written(str(tmp_path))), range(6), QUIET)
    assert time.monotonic() - start < 120
    assert made(tmp_path)[1] == "[80, 88] ['n', 'pixels']"
    assert len(made(tmp_path)) == 6


def test_what_a_stage_raises_ends_the_step_in_its_own_words(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(UnfinishedError) as error:
        ray_data.run(Step("render", Numbers(), (Broken(),), Written(str(tmp_path))), range(6), QUIET)
    assert str(error.value) == "render: ValueError: the model is not made for this; start it again to go on"
    assert error.value.exit_code == 3
    assert 3 not in made(tmp_path)


def test_a_worker_that_dies_is_replaced_and_its_part_made_again(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    step = Step("double", Numbers(), (Dies(tmp_path / "died"),), Written(str(tmp_path / "out")))
    ray_data.run(step, range(5), QUIET)
    assert (tmp_path / "died").exists()
    assert sorted(made(tmp_path / "out")) == [0, 1, 2, 3, 4]


def test_what_a_step_took_is_said_at_its_end(ray_session: None, tmp_path: Path) -> None:
    out = io.StringIO()
    ray_data.run(Step("double", Numbers(), (Double(),), Written(str(tmp_path))), range(3), Progress(stream=out))
    last = out.getvalue().splitlines()[-1]
    found = re.fullmatch(
        r"double: the largest worker took (\d+) MB, the object store held at most (\d+) of (\d+) MB", last
    )
    assert found, last
    worker, held, size = map(int, found.groups())
    # Python, NumPy and OpenCV take as much at least; the session's store is 512 MiB.
    assert 50 < worker < 4000
    assert held <= size == 537


def test_a_session_that_is_open_is_used_and_left_open(ray_session: None) -> None:
    import ray

    with ray_data.session("local", cpus=1):
        assert ray.cluster_resources()["CPU"] == 2
    assert ray.is_initialized()


def test_nothing_to_do_starts_nothing() -> None:
    ray_data.run(Step("none", Numbers(), (Broken(),), Written("/nowhere")), [], QUIET)


def test_ray_makes_the_same_release_as_one_process(
    ray_session: None,
    tmp_path: Path,
    settings: Callable[..., ReleaseConfig],
    make_release: Callable[..., Outcome],
    released: Outcome,
    tree: Callable[[Path | str], dict[str, bytes]],
) -> None:
    config = settings(tmp_path / "release", **{"compute.address": "local"})
    assert tree(make_release(config, execute=None).release.root) == tree(released.release.root)
