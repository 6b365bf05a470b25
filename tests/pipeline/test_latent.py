"""Claims of the methods that the generator serves: k-same in latent space, k-same-select, deepblur and inpaint.

They hold for any weights, so that nothing here says how good a face looks.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from facecrowd.jobs.audit import audit_release
from facecrowd.pipeline import config as configs
from facecrowd.pipeline import preflight, ray_data, steps
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.config import GENERATED_SIZES, ReleaseConfig, load
from facecrowd.pipeline.errors import ConfigError, PolicyError
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.release import Outcome
from facecrowd.stages import models
from facecrowd.stages.decode import decode
from facecrowd.stages.networks import encoder
from facecrowd.stages.networks.mobilestylegan import SIZES
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import OK

Settings = Callable[..., ReleaseConfig]
Make = Callable[..., Outcome]
Tree = Callable[[Path | str], dict[str, bytes]]

LATENT = {"method.surrogate": "latent", "detect.crop_size": 128}


@pytest.fixture(scope="module", autouse=True)
def generator() -> None:
    try:
        models.path("mobilestylegan-ffhq")
        models.path("lpips-vgg16")
    except models.Unobtainable as error:
        pytest.skip(f"the generator cannot be had here: {error}")


def private(outcome: Outcome, table: str) -> list[dict[str, Any]]:
    """The rows of a workspace's table, of its latest run."""
    folders = sorted((Path(outcome.workspace.root) / "tables" / table).iterdir(), key=lambda f: f.stat().st_mtime)
    return [row for file in sorted(folders[-1].glob("part-*")) for row in pq.read_table(file).to_pylist()]


def public(outcome: Outcome) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(outcome.release.at("manifest.parquet")).to_pylist()
    return rows


@pytest.fixture(scope="module")
def latent(settings: Settings, make_release: Make, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Two classes of three people, two faces around each."""
    asked = {**LATENT, "method.surrogates": 2}
    return make_release(settings(tmp_path_factory.mktemp("latent") / "release", **asked))


# ----------------------------------------------------------------------------------------------------------- k-same


def test_every_class_shows_as_many_faces_as_were_asked_for_and_no_other(latent: Outcome) -> None:
    surrogates = private(latent, "surrogates")
    assert sorted((row["class_id"], row["variant"]) for row in surrogates) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {row["status"] for row in surrogates} == {OK}
    made = {(row["class_id"], row["image"]) for row in surrogates}
    assert len({image for _, image in made}) == 4
    class_of = {row["face_id"]: row["class_id"] for row in private(latent, "plan")}
    shown = {(class_of[row["face_id"]], row["image"]) for row in private(latent, "rendered")}
    assert shown <= made
    # All are drawn by someone of these twelve faces, with this key.
    assert latent.audit["counts"]["distinct_faces"] == len(shown) == 4


def test_which_face_stands_for_a_photo_is_drawn_from_the_key_and_the_faces_id_alone(latent: Outcome) -> None:
    key = RunKey(bytes(range(32)))
    image_of = {(row["class_id"], row["variant"]): row["image"] for row in private(latent, "surrogates")}
    planned = {row["face_id"]: row for row in private(latent, "plan")}
    for row in private(latent, "rendered"):
        drawn = int.from_bytes(key.digest("variant", row["face_id"])[:8], "big") % 2
        assert row["image"] == image_of[planned[row["face_id"]]["class_id"], drawn]
    many = Counter(steps.variant_of(key, f"face {i}", 3) for i in range(3000))
    assert max(many.values()) < 1100


def test_the_same_key_gives_the_same_release_however_the_work_is_cut(
    latent: Outcome, tmp_path: Path, settings: Settings, make_release: Make, tree: Tree
) -> None:
    asked = {**LATENT, "method.surrogates": 2, "compute.micro_batch": 5}
    again = make_release(settings(tmp_path / "release", **asked))
    first, second = (
        {name: data for name, data in tree(o.release.root).items() if name.startswith("images/")}
        for o in (latent, again)
    )
    assert first == second


def test_the_bound_of_the_class_is_formal_and_says_why(latent: Outcome) -> None:
    assert latent.met
    said = latent.audit["guarantee"]
    assert said["kind"] == "formal"
    assert "rendered from the mean of its class's subjects" in said["text"]
    assert "Each class shows up to 2 faces" in said["text"]
    assert {r["name"]: r["kind"] for r in latent.audit["requirements"]}["k"] == "formal"
    assert latent.audit["rendering"] == {"surrogate": "latent", "surrogates": 2, "select": None, "keep": []}


def test_the_audit_names_what_rendered_with_its_hash_and_terms(latent: Outcome) -> None:
    used = {m["purpose"]: m for m in latent.audit["models"]}
    assert used["generator"]["name"] == "mobilestylegan-ffhq"
    assert used["encoder of faces"]["sha256"] == models.sha256(encoder.SHIPPED)
    assert "attribute directions of the generator" in used
    assert all("non-commercial" in used[p]["licence"] for p in ("generator", "encoder of faces"))
    report, _ = audit_release(str(latent.release.root), str(latent.workspace.root), Progress(quiet=True))
    assert report["models"] == latent.audit["models"]
