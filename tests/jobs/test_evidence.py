"""What an audit looks at is what lies in the release, each face beside the original it stands for."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from facecrowd.jobs.evidence import Evidence
from facecrowd.pipeline import ray_data
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.errors import ConfigError
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.release import Execute, Outcome
from facecrowd.stages import models

OWN = "arcface-mobilefacenet"


@pytest.fixture(scope="module")
def found(released: Outcome, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    workspace = shutil.copytree(released.workspace.root, tmp_path_factory.mktemp("evidence") / "workspace")
    return Evidence(released.release.url, str(workspace))


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch, in_process: Execute) -> None:
    class Nothing:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(ray_data, "run", in_process)
    monkeypatch.setattr(ray_data, "session", lambda *_: Nothing())


def test_every_released_image_stands_beside_the_original_it_is_for(found: Evidence, released: Outcome) -> None:
    assert len(found) == released.audit["counts"]["released_images"]
    assert found.face_id.tolist() == [found.plan.face_id[row] for row in found.row]
    picks = [len(found) - 1, 0]
    for data, i in zip(found.released(picks), picks, strict=True):
        assert hashlib.sha256(data).hexdigest() == found.links[i]["sha256"]
    crops = found.faces.read_all(found.record.parts, ["face_id", "crop"]).to_pylist()
    own = {row["face_id"]: row["crop"] for row in crops}
    assert found.originals(found.row[picks]) == [own[found.face_id[i]] for i in picks]


@pytest.mark.usefixtures("without_ray")
def test_recognisers_see_what_the_release_saw_and_look_only_once(
    found: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    after, before = found.look([OWN], Progress(quiet=True))
    assert after.embeddings[OWN].shape == (len(found), found.plan.embedding.shape[1])
    assert before.landmarks.shape == (len(found.plan.face_id), 5, 2)
    # A crop is the face that was embedded when it was detected, encoded once: nearly the same vector.
    has = (found.plan.embedding != 0).any(axis=1)
    assert ((before.embeddings[OWN] * found.plan.embedding).sum(axis=1)[has] > 0.9).all()
    monkeypatch.setattr(ray_data, "run", None)
    again, _ = found.look([OWN], Progress(quiet=True))
    np.testing.assert_array_equal(again.embeddings[OWN], after.embeddings[OWN])


def test_recognisers_whose_files_are_not_here_are_not_fetched(found: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "at_hand", lambda name, task, folder: name == "sface")
    assert found.recognisers() == (OWN, "sface")


def test_attributes_are_known_that_no_policy_names(
    settings: Callable[..., ReleaseConfig],
    make_release: Callable[..., Outcome],
    photos: Path,
    tmp_path: Path,
) -> None:
    """Of the table that the input came with, by a photo's path or its name."""
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    (tmp_path / "table.csv").write_text(
        "image_id,Male,Nobody\n" + "".join(f"{name},{i % 2 * 2 - 1},1\n" for i, name in enumerate(names[:-1]))
    )
    more = {"method.name": "blur", "policy.k": None, "input.attributes": str(tmp_path / "table.csv")}
    made = make_release(settings(tmp_path / "release", **more))
    found = Evidence(made.release.url, made.workspace.url)
    assert set(found.labels) == {"Male"}
    said = {name: i % 2 for i, name in enumerate(names[:-1])} | {names[-1]: -1}
    assert {str(p): v for p, v in zip(found.plan.photo, found.labels["Male"].tolist(), strict=True)} == said
    assert set(found.groups(["Male", "Young"])["Male"]) == {"0", "1", ""}
    (tmp_path / "table.csv").unlink()
    assert Evidence(made.release.url, made.workspace.url).labels == {}


def test_a_workspace_that_did_not_make_the_release_is_refused(
    released: Outcome, given_key: Callable[..., None], tmp_path: Path
) -> None:
    given_key(tmp_path)
    with pytest.raises(ConfigError, match="did not make this release"):
        Evidence(released.release.url, str(tmp_path))
