"""Claims of the methods that the generator serves: k-same in latent space, k-same-select, deepblur and inpaint.

They hold for any weights, so that nothing here says how good a face looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facecrowd.jobs.audit import audit_release
from facecrowd.pipeline import ray_data, steps
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.config import GENERATED_SIZES, ReleaseConfig, load
from facecrowd.pipeline.errors import ConfigError, PolicyError
from facecrowd.pipeline.presets import predictable
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.record import Record
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.run import Run
from facecrowd.pipeline.schema import FACES, MEMBERS, PLAN, Manifest
from facecrowd.pipeline.storage import Folder, Parts, Workspace
from facecrowd.stages import models
from facecrowd.stages.attributes import STEER
from facecrowd.stages.blend import Blend
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


def latent_config(folder: str | None) -> ReleaseConfig:
    return load(None, {"detect.models": folder, "detect.crop_size": 128})


def _latest(workspace: Folder, manifest: Manifest) -> Parts:
    folders = sorted(Path(workspace.root, "tables", manifest.name).iterdir(), key=lambda f: f.stat().st_mtime)
    return Parts(Folder(str(folders[-1])), manifest, folders[-1].name)


@dataclass(frozen=True)
class Showing(Parts):
    """A plan whose classes all show ``shown``."""

    shown: tuple[tuple[str, str], ...] = ()

    def read_rows(self, part: int, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        table = super().read_rows(part, rows, columns)
        at = table.column_names.index("released")
        shown = pa.array([list(self.shown)] * len(table), table.schema.field("released").type)
        return table.set_column(at, "released", shown)


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


def test_which_face_stands_for_a_photo_is_drawn_from_the_releases_own_key_and_the_faces_id_alone(
    latent: Outcome,
) -> None:
    image_of = {(row["class_id"], row["variant"]): row["image"] for row in private(latent, "surrogates")}
    planned = {row["face_id"]: row for row in private(latent, "plan")}
    rows = private(latent, "rendered")

    def drawn_by(key: RunKey) -> bool:
        return all(
            row["image"] == image_of[planned[row["face_id"]]["class_id"], steps.variant_of(key, row["face_id"], 2)]
            for row in rows
        )

    folder = latent.workspace
    record = Record.read(folder, f"releases/{min(folder.child('releases').names())}")
    key = RunKey(bytes(range(32)))
    run = Run(releases.prepare(record.config), Workspace(folder.url), key, Progress(quiet=True))
    # By the workspace's key itself, two releases of these people would draw alike and so could be laid side by side.
    assert drawn_by(run.draws)
    assert not drawn_by(run.key)
    many = Counter(steps.variant_of(run.draws, f"face {i}", 3) for i in range(3000))
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


def test_a_single_face_is_the_class_mean_and_what_a_class_leaves_open_is_drawn_for_it_once(
    latent: Outcome, model_folder: str | None
) -> None:
    """Rows to render are told what the class shows; ``*`` is a draw of the class, never a member's own value."""
    space = latent.workspace
    members, plan, faces = (_latest(space, manifest) for manifest in (MEMBERS, PLAN, FACES))
    key = RunKey(bytes(range(32)))

    def rows(own: bool, variants: int, key: RunKey = key) -> dict[str, Any]:
        source = steps.LatentSource(
            steps.MemberSource(members, faces),
            Showing(plan.folder, plan.manifest, plan.run, (("Male", "1"), ("Young", "*"), ("Bald", "x"))),
            key,
            variants,
            own,
            {"Male": 0.5, "Young": 0.5, "Bald": 0.5},
        )
        return source(0)

    alone = rows(own=False, variants=1)
    assert alone["variant"] == [None, None]
    assert [len(people) for people in alone["crops"]] == [3, 3]
    assert all(wanted["Male"] is True and "Bald" not in wanted for wanted in alone["wanted"])
    drawn = {rows(False, 1, RunKey(bytes([i]) * 32))["wanted"][0]["Young"] for i in range(12)}
    assert drawn == {True, False}
    several = rows(own=False, variants=3)
    assert several["variant"] == [0, 1, 2] * 2
    assert several["wanted"] == [w for w in alone["wanted"] for _ in range(3)]
    each = rows(own=True, variants=2)
    assert len(each["face_id"]) == 12 == len(set(each["face_id"]))
    assert each["variant"] == [steps.variant_of(key, face, 2) for face in each["face_id"]]


def test_the_order_of_people_and_of_photos_in_a_class_changes_no_pixel(
    latent: Outcome, model_folder: str | None
) -> None:
    space = latent.workspace
    source = steps.LatentSource(
        steps.MemberSource(_latest(space, MEMBERS), _latest(space, FACES)),
        _latest(space, PLAN),
        RunKey(bytes(range(32))),
        2,
        False,
        {},
    )
    method = load(None, {"method.surrogates": 2}).method
    how = steps.Rendering(method, source.key, 128, model_folder, STEER, 0)
    stage = steps.latent_stages(how)[0]
    batch = source(0)
    turned = {**batch, "crops": [[list(reversed(own)) for own in reversed(people)] for people in batch["crops"]]}
    first, second = (stage(b)["rendered"] for b in (batch, turned))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# ---------------------------------------------------------------------------------------------------- k-same-select


@pytest.fixture(scope="module")
def hats(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``hats(1, 0, …)``: a table with Hat of each person."""

    def make(*worn: int) -> str:
        rows = ["image_id,Hat"]
        for person, hat in zip(sorted(photos.iterdir()), worn, strict=True):
            rows += [f"{person.name}/{picture.name},{hat}" for picture in sorted(person.iterdir())]
        file = tmp_path_factory.mktemp("hats") / "hats.csv"
        file.write_text("\n".join(rows))
        return str(file)

    return make


SELECT = {"method.name": "k-same-select", "method.select": "Hat"}


def test_k_same_select_keeps_the_attribute_of_everybody(
    tmp_path: Path, settings: Settings, make_release: Make, hats: Callable[..., str]
) -> None:
    table = hats(1, 0, 1, 0, 1, 0)
    outcome = make_release(settings(tmp_path / "release", **SELECT, **{"input.attributes": table}))
    for row in private(outcome, "plan"):
        assert dict(row["released"])["Hat"] == dict(row["originals"])["Hat"]
    assert Counter(row["Hat"] for row in public(outcome)) == {"0": 6, "1": 6}
    assert outcome.audit["guarantee"]["kind"] == "formal"
    assert "All people of a class have the same Hat" in outcome.audit["guarantee"]["text"]
    assert outcome.audit["classes"]["sizes"] == {"3": 2}


def test_k_same_select_leaves_out_whom_no_class_can_hold_and_says_why(
    tmp_path: Path, settings: Settings, make_release: Make, hats: Callable[..., str]
) -> None:
    asked = {**SELECT, "input.attributes": hats(1, 0, 0, 0, 0, 0)}
    outcome = make_release(settings(tmp_path / "loose", **asked, **{"policy.max_suppression": 0.2}))
    left = [row for row in private(outcome, "plan") if row["status"] != OK]
    assert [row["status"] for row in left] == ["suppressed"] * 2
    assert {row["reason"] for row in left} == {
        "k-same-select: Hat = 1 is held by 1 people, fewer than can form a class"
    }
    assert {row["class_id"] for row in left} == {-1}
    assert outcome.audit["counts"]["subjects_released"] == 5
    assert outcome.audit["counts"]["not_released"] == {"suppressed": 2}
    suppressed = next(r for r in outcome.audit["requirements"] if r["name"] == "max_suppression")
    assert suppressed["found"] == pytest.approx(1 / 6, abs=1e-6)
    with pytest.raises(PolicyError, match=r"k-same-select cannot keep Hat with k = 3: Hat = 1 is held by 1 people"):
        make_release(settings(tmp_path / "strict", **asked))


# ------------------------------------------------------------------------------------------------------------- keep


def test_what_is_kept_of_a_photo_ends_the_claim_and_makes_a_face_for_each(
    tmp_path: Path, settings: Settings, make_release: Make
) -> None:
    outcome = make_release(settings(tmp_path / "release", **LATENT, **{"method.keep": "pose, lighting"}))
    assert outcome.audit["guarantee"]["kind"] == "measured"
    assert "keeps pose and lighting of its own photo" in outcome.audit["guarantee"]["text"]
    assert {r["name"]: r["kind"] for r in outcome.audit["requirements"]}["k"] == "measured"
    assert outcome.audit["rendering"]["keep"] == ["pose", "lighting"]
    surrogates = {row["face_id"]: row["image"] for row in private(outcome, "surrogates")}
    assert len(surrogates) == 12
    assert all(row["image"] == surrogates[row["face_id"]] for row in private(outcome, "rendered"))


# ---------------------------------------------------------------------------------------------- deepblur and inpaint


@pytest.mark.parametrize("method", ["deepblur", "inpaint"])
def test_a_latent_search_releases_every_face_and_promises_nothing(
    tmp_path: Path, settings: Settings, make_release: Make, photos: Path, method: str
) -> None:
    for person in sorted(photos.iterdir())[:2]:
        (tmp_path / "in" / person.name).mkdir(parents=True)
        picture = sorted(person.iterdir())[0]
        (tmp_path / "in" / person.name / picture.name).write_bytes(picture.read_bytes())
    asked = {"method.name": method, "method.search_steps": 1, "detect.crop_size": 128, "policy.k": None}
    outcome = make_release(settings(tmp_path / "release", **asked, **{"input.path": str(tmp_path / "in")}))
    assert outcome.audit["counts"]["released_faces"] == outcome.audit["counts"]["distinct_faces"] == 2
    assert outcome.audit["guarantee"]["kind"] == "measured"
    assert outcome.audit["guarantee"]["text"].startswith("No guarantee")
    crops = [row["crop"] for row in private(outcome, "faces")]
    for crop, row in zip(crops, private(outcome, "rendered"), strict=True):
        shown, original = decode(row["image"]).astype(int), decode(crop).astype(int)
        assert np.abs(shown - original)[32:96, 32:96].mean() > 3
        # How the search went is kept; of inpainting's two halves the second, which has none of a single step.
        assert row["search_steps"] == (1 if method == "deepblur" else 0)
        assert row["search_loss"] > 0
        assert row["converged"] is False
        if method == "inpaint":  # what is around the face is the original's
            assert np.abs(shown - original)[:12, :12].mean() < 6
    purposes = {m["purpose"] for m in outcome.audit["models"]}
    assert ("encoder of faces" in purposes) == (method == "deepblur")
    assert "loss of the latent search" in purposes


def test_what_a_surrogate_was_edited_to_show_is_kept_with_whether_it_does() -> None:
    male, young = predictable().index("Male"), predictable().index("Young")
    realised = np.full((2, 40), -1, np.int8)
    realised[0, male], realised[0, young] = 1, 0
    assert steps._realised({"class_id": [0, 1], "realised": realised}) == [{"Male": True, "Young": False}, {}]
    assert steps._realised({"class_id": [0, 1]}) == [{}, {}]


# --------------------------------------------------------------------------------------------------- before any work


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.name": "k-same-select"}, "k-same-select needs select"),
        ({"method.select": "Male"}, "select is for k-same-select, and the method is k-same"),
        ({"method.name": "blur", "method.keep": "pose"}, "keep is for k-same; blur shows no faces of classes"),
        ({"method.name": "deepblur", "method.surrogates": 2}, "surrogates is for k-same; deepblur"),
        ({"method.surrogate": "average", "method.surrogates": 2}, "surrogates needs surrogate: latent"),
        ({"method.surrogate": "average", "method.keep": "pose"}, "keep needs surrogate: latent"),
        ({"method.surrogate": "average", "method.truncation": 0.7}, "truncation needs surrogate: latent"),
        ({"method.surrogates": 2, "method.surrogates_per_subject": 3}, "contradict each other: copies of a face"),
        ({"method.keep": "hair"}, "Input should be 'pose', 'expression' or 'lighting'"),
        ({"method.keep": "pose,pose"}, "keep names something twice"),
        ({"method.name": "deepblur", "method.latent_sigma": 0.1}, "latent_sigma"),
        ({"method.name": "deepblur", "method.start": "mean", "method.search_steps": 0}, "every face would be the"),
        ({"method.name": "inpaint", "method.search_steps": 0}, "at least 1 step"),
        ({"detect.crop_size": 200}, "detect.crop_size 200: the generator makes faces of 128, 256, 512, 1024 px"),
        ({"compute.gpus_per_worker": 1, "method.name": "blur"}, "blur as it is asked for needs no GPU"),
        (
            {"method.name": "k-same-select", "method.select": "Male", "policy.sensitive": ["Male"]},
            "method.select Male is sensitive",
        ),
    ],
)
def test_what_does_not_go_together_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, changes)


def test_the_sizes_of_a_config_are_those_of_the_generator() -> None:
    assert sorted(SIZES) == list(GENERATED_SIZES)


def test_what_classes_share_is_released() -> None:
    config = load(
        None, {"method.name": "k-same-select", "method.select": "Male", "policy.quasi_identifiers": ["Young"]}
    )
    assert config.policy.quasi_identifiers == ("Young", "Male")
    assert config.policy.k == 5


def test_an_encoder_that_is_not_there_is_named_before_anything_is_written(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "SHIPPED", tmp_path / "encoder.safetensors")
    with pytest.raises(models.ModelError, match=r"encoder's weights .* are not installed; train them"):
        releases.prepare(settings(tmp_path / "release", **LATENT))
    assert not (tmp_path / "release.workspace").exists()


def test_a_judge_that_steers_the_rendering_is_refused(
    tmp_path: Path, settings: Settings, hats: Callable[..., str]
) -> None:
    """Even where the input brings all attributes, and nobody predicts."""
    file = Path(hats(1, 0, 1, 0, 1, 0))
    file.write_text(file.read_text().replace("Hat", "Male"))
    asked = {"policy.quasi_identifiers": ["Male"], "input.attributes": str(file), "attributes.judge": STEER}
    with pytest.raises(ConfigError, match="steers the rendering itself, and would judge itself"):
        releases.prepare(settings(tmp_path / "release", **LATENT, **asked))


def test_a_gpu_that_is_not_there_is_named(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"gpus_per_worker 0.5: there is no GPU here"):
        releases.prepare(settings(tmp_path / "release", **LATENT, **{"compute.gpus_per_worker": 0.5}))
    with pytest.raises(ConfigError, match=r"gpus_per_worker 0.5: the Ray cluster has 0 GPUs"):
        ray_data.pool(4, 8, 1, 0, 0.5)


@pytest.mark.parametrize("method", ["k-same", "deepblur", "inpaint"])
def test_a_job_begun_on_a_cpu_does_not_go_on_on_a_gpu_whose_last_bits_differ(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    def names(gpus: float, asked: dict[str, Any]) -> dict[str, str]:
        prepared = releases.prepare(settings(tmp_path / "release", **asked, **{"compute.gpus_per_worker": gpus}))
        return Run(prepared, prepared.workspace, RunKey(bytes(32)), Progress(quiet=True)).names

    generated = {"method.name": method, "method.surrogate": "latent", "detect.crop_size": 128}
    cpu, half, whole = (names(gpus, generated) for gpus in (0, 0.5, 1))
    # Several workers on one GPU compute as one does.
    assert half == whole
    assert {name for name in cpu if cpu[name] != half[name]} == {"rendered", "release"}
    monkeypatch.setattr(steps, "GPU_AT_ONCE", 8)
    assert names(1, generated)["rendered"] != half["rendered"]
    assert names(0, generated) == cpu


def test_what_a_generator_runs_on_names_no_run_of_the_methods_that_have_none(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = releases.prepare(settings(tmp_path / "release", **{"method.name": "blur"}))
    names = []
    for bits in (("cpu", False, 1), ("cuda", True, 16)):
        monkeypatch.setattr(steps.Rendering, "bits", bits)
        names.append(Run(prepared, prepared.workspace, RunKey(bytes(32)), Progress(quiet=True)).names)
    assert names[0] == names[1]


@pytest.mark.parametrize("method", ["deepblur", "inpaint"])
def test_a_search_is_in_bfloat16_on_a_gpu_alone(model_folder: str | None, method: str) -> None:
    asked = load(None, {"method.name": method, "detect.crop_size": 128})
    for gpus, wanted in ((0.0, ("cpu", False, 1)), (0.5, ("cuda", True, steps.GPU_AT_ONCE))):
        rendering = steps.Rendering(asked.method, RunKey(bytes(32)), 128, model_folder, STEER, gpus)
        how = steps.search_stages(rendering)[1].how  # type: ignore[attr-defined]
        assert (how.device, how.half, how.at_once) == wanted == rendering.bits


def test_as_many_workers_share_a_gpu_as_fit(model_folder: str | None) -> None:
    assert ray_data.pool(100, 64, 1, 1, 0.1) == 10
    assert ray_data.pool(100, 4, 1, 2, 0.25) == 4
    assert ray_data.pool(3, 64, 1, 8, 1) == 3
    how = steps.Rendering(load(None, {}).method, RunKey(bytes(32)), 256, model_folder, STEER, 0.5)
    shown = steps.shown(latent_config(model_folder).detect, 92)
    stages = steps.together((*steps.latent_stages(how), *shown), how.gpus)
    assert (stages[0].device, stages[0].half) == ("cuda", True)  # type: ignore[attr-defined]
    assert ray_data.groups(stages) == [stages]
    assert {stage.resources.gpus for stage in stages} == {0.5}


# ----------------------------------------------------------------------------------------------------- whole photos


def test_in_photo_output_generated_faces_take_the_photos_light_and_the_bound_is_no_longer_formal(
    tmp_path: Path, settings: Settings, make_release: Make
) -> None:
    """With a released attribute, so that the faces are edited to show it."""
    blends: list[bool] = []
    faces: dict[str, int] = {}

    def watched(step: ray_data.Step, parts: Sequence[int], progress: Progress) -> None:
        faces[step.name] = step.at_once
        blends.extend(stage.match_colour for stage in step.stages if isinstance(stage, Blend))
        for stage in step.stages:
            stage.setup()
        for part in parts:
            step.sink(part, ray_data.apply(step.stages, step.source(part), step.at_once))

    asked = {**LATENT, "output": "photo", "policy.quasi_identifiers": ["Male"], "attributes.judge": "none"}
    outcome = make_release(settings(tmp_path / "release", **asked, **{"compute.micro_batch": 12}), execute=watched)
    assert blends == [True]
    # However many faces a part has, so many are decoded at a time.
    assert faces["surrogates"] == faces["render"] == steps.FACES_AT_ONCE
    assert outcome.audit["guarantee"]["kind"] == "measured"
    assert outcome.audit["counts"]["released_images"] == 12
    assert "attribute predictor of the renderer" in {m["purpose"] for m in outcome.audit["models"]}
