"""Claims of pipeline/preflight.py: what cannot be written, does not fit or cannot be joined is named beforehand."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from facecrowd.pipeline import attributes, preflight
from facecrowd.pipeline.config import Compute, Detect, ReleaseConfig, load
from facecrowd.pipeline.errors import ConfigError
from facecrowd.pipeline.photos import Photo
from facecrowd.stages import models
from facecrowd.stages.attributes import JUDGE, STEER, locate

Usage = namedtuple("Usage", "total used free")
MB = 10**6
PHOTOS = [Photo(f"{i}.jpg", f"/in/{i}.jpg", MB, "", {}, "") for i in range(10)]


def config(tmp_path: Path, **changes: object) -> ReleaseConfig:
    return load(None, {"release.path": str(tmp_path / "out"), **changes})


def free(monkeypatch: pytest.MonkeyPatch, space: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, space))


def test_whole_photos_take_about_three_times_the_input_and_faces_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, MB)
    preflight.room(config(tmp_path), PHOTOS)
    free(monkeypatch, 10 * 90_000 - 1)
    with pytest.raises(ConfigError, match=r"workspace .*/out.workspace and output .*/out: 0.0 GB free"):
        preflight.room(config(tmp_path), PHOTOS)
    free(monkeypatch, 31 * MB)
    preflight.room(config(tmp_path, output="photo"), PHOTOS)
    free(monkeypatch, 30 * MB)
    with pytest.raises(ConfigError, match=r"about 0\.0 GB needed"):
        preflight.room(config(tmp_path, output="photo"), PHOTOS)


@pytest.mark.parametrize("key, where", [("release.path", "output"), ("workspace.path", "workspace")])
def test_what_cannot_be_written_is_named_before_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, where: str
) -> None:
    free(monkeypatch, 0)
    (tmp_path / "shut").mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut" and real(path, mode))
    place = str(tmp_path / "shut" / "new" / "folder")
    with pytest.raises(ConfigError) as error:
        preflight.room(
            config(tmp_path, **{key: place}, **({"workspace.path": str(tmp_path)} if where == "output" else {})), PHOTOS
        )
    assert str(error.value) == f"{where} {place}: {tmp_path}/shut is not writable"


def test_a_release_is_moved_to_its_place_so_the_folder_above_must_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shut" / "out").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut")
    changes = {"release.path": str(tmp_path / "shut" / "out"), "workspace.path": str(tmp_path / "w")}
    with pytest.raises(ConfigError, match="shut is not writable"):
        preflight.room(config(tmp_path, **changes), PHOTOS)


def test_a_file_on_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is not a folder"):
        preflight.room(config(tmp_path, **{"workspace.path": str(tmp_path / "file" / "w")}), PHOTOS)


def test_a_store_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 0)
    preflight.room(load(None, {"release.path": "memory://out", "workspace.path": "memory://w"}), PHOTOS)


def test_a_cluster_needs_its_client_and_somebody_who_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    preflight.cluster(Compute())
    preflight.cluster(Compute(address="auto"))
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"ray://127.0.0.1:1: needs Ray's client; install ray\[client\]"):
        preflight.cluster(Compute(address="ray://127.0.0.1:1"))
    with pytest.raises(ConfigError, match="no Ray cluster answers there"):
        preflight.cluster(Compute(address="127.0.0.1:1"))


def test_a_file_for_another_task_is_refused(tmp_path: Path, model_folder: str | None) -> None:
    own = tmp_path / "own.onnx"
    shutil.copyfile(models.path("arcface-mobilefacenet", folder=model_folder), own)
    with pytest.raises(models.WrongTask, match=f"{own} is no face detector: it is one for recognition"):
        preflight.model_hashes(Detect(detector=str(own), models=model_folder))


def test_a_judge_that_steers_the_rendering_or_is_close_to_what_does_is_refused() -> None:
    steering = preflight.Network(STEER, preflight.STEERING, models.sha256(locate(STEER)), "")
    preflight.judged_by_another([steering], attributes.find(JUDGE, download=False))
    preflight.judged_by_another([steering], None)
    preflight.judged_by_another([], attributes.find(STEER, download=False))
    with pytest.raises(ConfigError, match=f"{STEER} is the predictor that steers the rendering itself"):
        preflight.judged_by_another([steering], attributes.find(STEER, download=False))
    with pytest.raises(ConfigError, match="not independent of the predictor that steers the rendering: both learned"):
        preflight.judged_by_another([steering], attributes.find("googlenet-forest", download=False))
