"""What the tests of the whole job share: a small set of photos, its config, and ways to run a release.

The photos are pictures of the demo's synthetic people, 6 people with 2 pictures each. Most tests work the steps off in
this process; ``tests/pipeline/test_ray_data.py`` shows that Ray makes the same files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from facecrowd.pipeline import config as configs
from facecrowd.pipeline import ray_data
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.progress import Progress
from facecrowd.stages import models

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread, as in a worker."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos beside the checkout, or a skip."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real photos at hand: {SHARED / 'data'} is not there")
    return SHARED


@pytest.fixture(scope="session")
def model_folder() -> str | None:
    """Where the detector and the recogniser are, for ``detect.models``; a skip where they cannot be had."""
    folder = str(SHARED / "models" / "insightface") if (SHARED / "models" / "insightface").is_dir() else None
    try:
        for name in ("scrfd-500m", "arcface-mobilefacenet"):
            models.path(name, folder=folder)
    except models.Unobtainable as error:
        pytest.skip(f"the models cannot be had here: {error}")
    return folder


@pytest.fixture(scope="session")
def people() -> list[Path]:
    """The folders of the demo's synthetic people."""
    found = sorted(path for path in (ROOT / "jobs" / "faces").glob("*") if path.is_dir())
    assert len(found) >= 6
    return found


@pytest.fixture(scope="session")
def photos(people: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 people with 2 pictures each, as PERSON/PICTURE.jpg; not to be written to."""
    folder = tmp_path_factory.mktemp("input") / "photos"
    for person in people[:6]:
        (folder / person.name).mkdir(parents=True)
        for picture in sorted(person.glob("*.jpg"))[:2]:
            shutil.copy(picture, folder / person.name / picture.name)
    return folder


@pytest.fixture(scope="session")
def write_predictor() -> Callable[..., Path]:
    """``write_predictor(file, tensors, **about)``: an attribute predictor of these weights, with this in its metadata,
    and a calibration where they have none."""
    import torch
    from safetensors.torch import save_file

    from facecrowd.stages.attributes import ATTRIBUTES

    calibration = {"temperature": torch.ones(40), "prior": torch.linspace(0.2, 0.8, 40)}
    card = {"kind": "attribute predictor", "attributes": ATTRIBUTES, "splits": ["own people"], "subjects": 5}

    def write(file: Path, tensors: dict[str, Any], **about: Any) -> Path:
        save_file(calibration | tensors, str(file), metadata={"facecrowd": json.dumps(card | about)})
        return file

    return write


@pytest.fixture(scope="session")
def draw_predictor(photos: Path, write_predictor: Callable[..., Path]) -> Callable[..., Path]:
    """``draw_predictor(file, seed=1, temperature=1.0, **about)``: a GoogLeNet at 64 px that was never trained but knows
    the scale of its activations. It is the surer of what it says the lower the temperature."""
    import torch

    from facecrowd.stages.attributes import pictures
    from facecrowd.stages.decode import decode
    from facecrowd.stages.networks.googlenet import GoogLeNet

    def draw(file: Path, seed: int = 1, temperature: float = 1.0, **about: Any) -> Path:
        torch.manual_seed(seed)
        network = GoogLeNet().train()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            network(pictures([decode(p.read_bytes()) for p in sorted(photos.rglob("*.jpg"))[:6]], 64))
        state = {f"googlenet.{k}": v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
        state["temperature"] = torch.full((40,), temperature)
        return write_predictor(file, state, **{"backbone": "googlenet", "side": 64, **about})

    return draw


@pytest.fixture(scope="session")
def settings(photos: Path, model_folder: str | None) -> Callable[..., configs.ReleaseConfig]:
    """``settings(output, **{"policy.k": 2})``: the config of a small release with many micro-batches. Classes show the
    mean of pixels, which takes no generator: ``tests/pipeline/test_latent.py`` has the generated faces."""

    def make(output: Path | str, /, **changes: Any) -> configs.ReleaseConfig:
        values: dict[str, Any] = {
            "input.path": str(photos),
            "release.path": str(output),
            "detect.models": model_folder,
            "policy.k": 3,
            "method.surrogate": "average",
            "compute.micro_batch": 2,
            "compute.cpus": 2,
        }
        return configs.load(None, {**values, **changes})

    return make


@pytest.fixture(scope="session")
def flags(photos: Path, model_folder: str | None) -> Callable[..., list[str]]:
    """``flags(output, …)``: the same as arguments of ``facecrowd release``."""

    def make(output: Path | str, *more: str) -> list[str]:
        where = ["--models", model_folder] if model_folder else []
        small = ["--k", "3", "--surrogate", "average", "--micro-batch", "2", "--cpus", "2"]
        return ["release", "--input", str(photos), "--output", str(output), *where, *small, *more]

    return make


def loop(step: ray_data.Step, parts: Sequence[int], progress: Progress) -> None:
    """The micro-batches one after the other in this process."""
    for stage in step.stages:
        stage.setup()
    for part in parts:
        step.sink(part, ray_data.apply(step.stages, step.source(part), step.at_once))


@pytest.fixture(scope="session")
def in_process() -> releases.Execute:
    return loop


@pytest.fixture(scope="session")
def make_release() -> Callable[..., releases.Outcome]:
    """``make_release(config)``: a release with the tests' run key, without Ray unless ``execute=None`` is given."""

    def make(
        config: configs.ReleaseConfig, key: bytes | None = KEY, execute: releases.Execute | None = loop
    ) -> releases.Outcome:
        if key is not None:
            give_key(config.workspace_path, key)
        return releases.release(releases.prepare(config), Progress(quiet=True), execute)

    return make


@pytest.fixture(scope="session")
def given_key() -> Callable[..., None]:
    """``given_key(workspace)``: put a run key into a workspace before its first run."""
    return give_key


def give_key(workspace: Path | str, key: bytes = KEY) -> None:
    folder = Path(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run.key").exists():
        (folder / "run.key").write_text(key.hex())


@pytest.fixture(scope="session")
def released(
    settings: Callable[..., configs.ReleaseConfig],
    make_release: Callable[..., releases.Outcome],
    tmp_path_factory: pytest.TempPathFactory,
) -> releases.Outcome:
    """A finished release of ``photos`` by k-same with k = 3; not to be written to."""
    return make_release(settings(tmp_path_factory.mktemp("released") / "release"))


@pytest.fixture(scope="session")
def tree() -> Callable[[Path | str], dict[str, bytes]]:
    """``tree(folder)``: every file below a folder with its bytes."""

    def read(folder: Path | str) -> dict[str, bytes]:
        root = Path(folder)
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    return read


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``command("release", …)``: the command line in a process of its own."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "facecrowd.jobs.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray session on 2 CPUs for the whole test run."""
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    with ray_data.session("local", cpus=2):
        yield
