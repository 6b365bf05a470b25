"""Claims of perturbations as stages of a release: their bound, their order, one file per class, what the audit says."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from facecrowd.jobs.audit import audit_release
from facecrowd.pipeline import config as configs
from facecrowd.pipeline import perturbation, preflight, steps, summary
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.attributes import find
from facecrowd.pipeline.config import ReleaseConfig, load
from facecrowd.pipeline.errors import ConfigError
from facecrowd.pipeline.preflight import Network
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.record import Record
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.run import Run
from facecrowd.pipeline.storage import NAMESPACE, Workspace
from facecrowd.stages import models, recognise
from facecrowd.stages.attributes import JUDGE
from facecrowd.stages.channel import Channel
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import Encode
from facecrowd.stages.judge import Judge
from facecrowd.stages.networks import stargan
from facecrowd.stages.networks.stargan import Generator, Shape
from facecrowd.stages.perturb import Before, Fit, Perturb
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import OK
from facecrowd.stages.universal import Perturbation

Settings = Callable[..., ReleaseConfig]
Make = Callable[..., Outcome]
Tree = Callable[[Path | str], dict[str, bytes]]

SMALL = {"detect.crop_size": 128, "policy.k": None, "method.name": "none", "compute.micro_batch": 4}
UNIVERSAL = {**SMALL, "perturb.name": "universal", "perturb.sample": 4, "perturb.delta": 0.2}
MASKS = {"perturb.name": "tip-im", "perturb.steps": 2, "perturb.targets": 2, "perturb.step": 6, "perturb.bound": 8}


@pytest.fixture(scope="module", autouse=True)
def generator() -> None:
    try:
        models.path("mobilestylegan-ffhq")
    except models.Unobtainable as error:
        pytest.skip(f"the generator of the targets cannot be had here: {error}")


@pytest.fixture(scope="module")
def cloaked(settings: Settings, make_release: Make, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Originals with one universal vector."""
    return make_release(settings(tmp_path_factory.mktemp("cloaked") / "release", **UNIVERSAL))


@pytest.fixture(scope="module")
def crowd(settings: Settings, make_release: Make, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Two classes of three people, each shown by a mean of pixels with a mask."""
    more = {"detect.crop_size": 128, **MASKS}
    return make_release(settings(tmp_path_factory.mktemp("crowd") / "release", **more))


def private(outcome: Outcome, table: str) -> list[dict[str, Any]]:
    folders = sorted((Path(outcome.workspace.root) / "tables" / table).iterdir(), key=lambda f: f.stat().st_mtime)
    return [row for file in sorted(folders[-1].glob("part-*")) for row in pq.read_table(file).to_pylist()]


# ------------------------------------------------------------------------------------------------------------- bounds


def stage_of(name: str, norm: str, folder: str | None) -> Perturb:
    """Steps long enough to reach the bound of 4 grey levels, or a vector that does."""
    masks = {"perturb.steps": 3, "perturb.step": 3} if name != "universal" else {}
    masks |= {"perturb.targets": 2} if name == "tip-im" else {}
    config = load(None, {"perturb.name": name, "perturb.norm": norm, "perturb.bound": 4, **masks})
    signs = np.random.default_rng(1).choice([-4, 4], (3, 128, 128)).astype(np.int16)
    vector = Perturbation(signs, config.perturb.norm, 4.0 if norm == "linf" else 4.0 * np.sqrt(signs.size))
    rendering = steps.Rendering(config.method, RunKey(bytes(32)), 128, folder, None, 0.0)
    stage = steps.perturb_stage(config.perturb, rendering, 92, False, vector)
    assert isinstance(stage, Perturb)
    return stage


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", list(configs.PERTURBATIONS))
def test_the_bound_holds_of_the_rendered_pixels_before_they_are_encoded(
    cloaked: Outcome, model_folder: str | None, name: str, norm: str
) -> None:
    faces = [decode(row["crop"]) for row in private(cloaked, "faces")[:2]]
    batch = {
        "rendered": [*faces, None],
        "face_id": ["a", "b", "c"],
        "status": [OK, OK, "failed"],
        "reason": ["", "", ""],
    }
    done = stage_of(name, norm, model_folder)(batch)
    for i, face in enumerate(faces):
        moved = done["rendered"][i].astype(float) - face
        largest, rms = np.abs(moved).max(), np.sqrt((moved**2).mean())
        assert 3 < (largest if norm == "linf" else rms) <= 4
        assert (done["linf"][i], done["rms"][i]) == (largest, pytest.approx(rms, rel=1e-6))
    assert list(done["status"]) == [OK, OK, "failed"]
    assert done["rendered"][2] is None
    assert (done["target"][:2] >= 0).all() == (name == "tip-im")


def test_the_manifest_keeps_how_far_each_face_was_moved_and_towards_which_target(
    cloaked: Outcome, crowd: Outcome
) -> None:
    for row in private(cloaked, "rendered"):
        assert row["target"] is None
        assert 4 < row["linf"] <= 8
        assert 0 < row["rms"] <= row["linf"]
    for row in private(crowd, "rendered"):
        assert row["target"] in (0, 1)
        assert 0 < row["linf"] <= 8
    assert cloaked.audit["perturbation"]["largest_change"] <= 8
    assert sum(crowd.audit["perturbation"]["faces_by_target"].values()) == 12


def test_a_natural_mask_depends_on_its_own_face_alone(cloaked: Outcome, model_folder: str | None) -> None:
    """Not on who else is in the batch, as the MMD of a batch would."""
    asked = {"perturb.name": "tip-im", "perturb.steps": 2, "perturb.targets": 1, "perturb.gamma": 0.4}
    config = load(None, asked)
    rendering = steps.Rendering(config.method, RunKey(bytes(32)), 128, model_folder, None, 0.0)
    stage = steps.perturb_stage(config.perturb, rendering, 92, False)
    first, second = (decode(row["crop"]) for row in private(cloaked, "faces")[:2])
    alone = stage({"rendered": [first], "face_id": ["a"]})["rendered"][0]
    beside = stage({"rendered": [second, first], "face_id": ["b", "a"]})["rendered"][1]
    assert (alone == beside).all()


# -------------------------------------------------------------------------------------------------------------- order


def test_faces_are_rendered_judged_perturbed_encoded_and_judged_again() -> None:
    config = load(None, {**SMALL, **MASKS})
    rendering = steps.Rendering(config.method, RunKey(bytes(32)), 128, None, None, 0.0)
    perturb = steps.perturb_stage(config.perturb, rendering, 92, False)
    stages = steps.shown(config.detect, 92, None, perturb)
    assert [type(stage) for stage in stages] == [Encode, Judge, Before, Perturb, Encode, Judge]
    assert stages[0].column == "rendered"  # type: ignore[attr-defined]
    assert len(steps.shown(config.detect, 92)) == 2


def test_what_was_judged_before_the_perturbation_stays_beside_what_was_judged_after_it(cloaked: Outcome) -> None:
    own = {row["face_id"]: np.array(row["embedding"]) for row in private(cloaked, "faces")}
    before, after = [], []
    for row in private(cloaked, "rendered"):
        assert row["detected_before"] is True
        before.append(own[row["face_id"]] @ np.array(row["embedding_before"]))
        after.append(own[row["face_id"]] @ np.array(row["embedding"]))
    assert min(before) > 0.9
    assert np.mean(after) < np.mean(before) - 0.1


def test_the_audit_states_the_worse_of_before_and_after_and_both_beside_it(cloaked: Outcome) -> None:
    found = {row["gallery"]: row for row in cloaked.audit["perturbation"]["rank1_per_subject"]}
    for attack in cloaked.audit["reidentification"]:
        both = found[attack["gallery"]]
        assert attack["rank1_per_subject"] == max(both["before"], both["after"])
        assert attack["when"] in summary.attack_line(attack)
    assert found["originals"]["before"] == 1.0
    assert any(line.startswith("rank-1, gallery: originals: 100.0% before") for line in perturbed_lines(cloaked))


def perturbed_lines(outcome: Outcome) -> list[str]:
    lines = perturbation.lines(outcome.audit["perturbation"])
    readme = outcome.release.read("README.md").decode()
    assert all(line in readme and line in summary.verdict_lines(outcome.audit) for line in lines)
    return lines


def test_worse_is_more_recognised_or_where_recognition_is_meant_less() -> None:
    now: list[dict[str, Any]]
    then: list[dict[str, Any]]
    now, then = [{"rank1": 0.2, "of": "after"}, {"of": "after"}], [{"rank1": 0.9, "of": "before"}, {"of": "before"}]
    assert perturbation.worse(now, then, "rank1", higher=True) == [{**then[0], "when": perturbation.BEFORE}, now[1]]
    assert perturbation.worse(now, then, "rank1", higher=False)[0] == {**now[0], "when": perturbation.AFTER}
    assert perturbation.worse(now, now, "rank1", higher=True)[0]["when"] == perturbation.AFTER


def test_the_audit_names_the_surrogates_with_their_hash_and_says_that_they_flatter(
    cloaked: Outcome, crowd: Outcome
) -> None:
    for outcome, name in ((cloaked, "universal"), (crowd, "tip-im")):
        (surrogate,) = (m for m in outcome.audit["models"] if m["purpose"] == preflight.SURROGATE)
        assert surrogate["sha256"] == models.MODELS["arcface-mobilefacenet"].sha256
        text = outcome.audit["guarantee"]["text"]
        assert f"({name}) of at most 8 grey levels" in text
        assert "made with the gradients of arcface-mobilefacenet (white box)" in text
        assert "measured, never guaranteed" in text
        assert perturbation.WHITE_BOX in text
    other = [{"purpose": "recogniser", "sha256": "1"}, {"purpose": preflight.SURROGATE, "sha256": "2"}]
    assert not perturbation.white_box(other)
    assert {"generator of the perturbation's targets"} <= {m["purpose"] for m in crowd.audit["models"]}


def test_an_audit_with_the_workspace_finds_the_same_again(cloaked: Outcome, crowd: Outcome) -> None:
    for outcome in (cloaked, crowd):
        report, _ = audit_release(outcome.release.root, outcome.workspace.root, Progress(quiet=True))
        for name in ("perturbation", "reidentification", "guarantee", "models"):
            assert report[name] == outcome.audit[name]


# ------------------------------------------------------------------------------------------------------------ cloaking


def test_a_cloak_says_everywhere_that_originals_are_released(cloaked: Outcome) -> None:
    audit = cloaked.audit
    assert audit["guarantee"]["text"].startswith("No guarantee: every released face is its own original")
    assert summary.conclusion(audit).startswith("verdict: what the policy asks holds; these are original faces")
    readme = cloaked.release.read("README.md").decode()
    assert readme.startswith("# Altered faces of recognisable people (universal)")
    assert "altered, not anonymised, by universal" in cloaked.release.read("metadata.json").decode()
    metadata = pq.read_schema(cloaked.release.at("manifest.parquet")).metadata
    assert metadata[b"facecrowd"].decode().startswith("No guarantee")


def test_the_leak_scan_allows_a_cloak_what_it_declares_and_no_other_method(
    settings: Settings, cloaked: Outcome
) -> None:
    assert cloaked.audit["leaks"] == []
    (name,) = cloaked.workspace.child("releases").names()
    record = Record.read(cloaked.workspace, f"releases/{name}")
    prepared = releases.prepare(record.config)
    run = Run(prepared, prepared.workspace, prepared.workspace.key(), Progress(quiet=True))
    assert releases._originals(run) == set()
    run.names.update(record.runs)
    blur = prepared.config.model_copy(update={"method": configs.Method(name="blur")})
    run.prepared = replace(prepared, config=blur)
    assert len(releases._originals(run)) == 12


# ----------------------------------------------------------------------------------------------------------- universal


def test_the_vector_is_kept_in_the_workspace_for_looking_and_for_use_and_not_in_the_release(
    cloaked: Outcome, tree: Tree
) -> None:
    (row,) = private(cloaked, "perturbation")
    files = tree(f"{cloaked.workspace.root}/perturbations")
    assert sorted(Path(name).suffix for name in files) == [".png", ".safetensors"]
    (file,) = (name for name in files if name.endswith(".safetensors"))
    vector = Perturbation.load(f"{cloaked.workspace.root}/perturbations/{file}")
    assert vector.vector.astype("<i2").tobytes() == row["vector"]
    assert (row["side"], row["norm"], row["xi"]) == (128, "linf", 8.0)
    assert vector.about["sample"] == len(private(cloaked, "sample")) == 4
    assert not any("perturbation" in name for name in tree(cloaked.release.root))
    # It is what was added, up to what the files keep of it.
    crops = {r["face_id"]: decode(r["crop"]).astype(int) for r in private(cloaked, "faces")}
    moved = [decode(r["image"]) - crops[r["face_id"]] for r in private(cloaked, "rendered")]
    assert np.corrcoef(np.mean(moved, axis=0).ravel(), vector.vector.transpose(1, 2, 0).ravel())[0, 1] > 0.7


def test_the_same_key_gives_the_same_vector_and_release_however_the_work_is_cut(
    tmp_path: Path, settings: Settings, make_release: Make, cloaked: Outcome, tree: Tree
) -> None:
    again = make_release(settings(tmp_path / "release", **{**UNIVERSAL, "compute.micro_batch": 5}))
    assert [r["vector"] for r in private(again, "perturbation")] == [
        r["vector"] for r in private(cloaked, "perturbation")
    ]
    first, second = (
        {name: data for name, data in tree(o.release.root).items() if name.startswith("images/")}
        for o in (cloaked, again)
    )
    assert first == second


def test_one_person_alone_makes_no_recogniser_take_them_for_another(
    tmp_path: Path, settings: Settings, make_release: Make, photos: Path
) -> None:
    person = min(path for path in photos.iterdir())
    more = {**UNIVERSAL, "input.path": str(person), "input.subjects": "clusters"}
    with pytest.raises(ConfigError, match="its sample of 2 faces needs two people, or classes, at least"):
        make_release(settings(tmp_path / "release", **more))


# ------------------------------------------------------------------------------------------------------------- classes


def test_the_files_of_a_class_stay_one_file_and_the_bound_stays_formal(crowd: Outcome) -> None:
    classes = {row["face_id"]: row["class_id"] for row in private(crowd, "plan")}
    files: dict[int, set[bytes]] = {}
    for row in private(crowd, "rendered"):
        files.setdefault(classes[row["face_id"]], set()).add(row["image"])
    assert [len(shown) for shown in files.values()] == [1, 1]
    assert crowd.audit["counts"]["distinct_faces"] == 2
    assert crowd.audit["guarantee"]["kind"] == "formal"
    assert "It is made once for each face of a class" in crowd.audit["guarantee"]["text"]


def test_each_class_has_draws_of_its_own(crowd: Outcome, model_folder: str | None) -> None:
    """Though the face of a class has no id."""
    config = load(None, {"perturb.name": "advnoise", "perturb.steps": 1, "perturb.step": 0.01})
    rendering = steps.Rendering(config.method, RunKey(bytes(32)), 128, model_folder, None, 0.0)
    stage = steps.perturb_stage(config.perturb, rendering, 92, True)
    face = np.full((128, 128, 3), 128, np.uint8)
    of = {"class_id": [0, 1, 0, 0, 0], "variant": [0, 0, 0, 1, 0], "face_id": ["", "", "", "", "kept"]}
    first, other, same, variant, kept = stage({"rendered": [face] * 5, **of})["rendered"]
    assert (first == same).all()
    for another in (other, variant, kept):
        assert (first != another).any()


def test_what_is_asked_of_a_perturbation_reaches_what_makes_it() -> None:
    asked = {"perturb.name": "tip-im", "perturb.gamma": 0.3, "perturb.norm": "l2", "perturb.bound": 7.0}
    rendering = steps.Rendering(load(None, {}).method, RunKey(bytes(32)), 128, None, None, 0.0)
    for jpeg, quality in ((True, 77), (False, None)):
        config = load(None, {**asked, "perturb.steps": 9, "perturb.step": 0.5, "perturb.jpeg": jpeg})
        how = steps.perturb_stage(config.perturb, rendering, 77, False).method.how  # type: ignore[attr-defined]
        assert (how.jpeg, how.gamma, how.norm, how.epsilon) == (quality, 0.3, "l2", 7.0)
        assert (how.steps, how.alpha, how.naturalness) == (9, 0.5, "augment")
        one = load(None, {"perturb.name": "universal", "perturb.delta": 0.25, "perturb.jpeg": jpeg})
        fit = steps.fit_stage(one.perturb, rendering, 77, "attributes-arcface")
        assert isinstance(fit, Fit)
        assert fit.channel == (Channel(jpeg=(77, 77)) if jpeg else Channel())
        assert fit.delta == 0.25


def test_a_recogniser_that_a_fooled_predictor_builds_on_is_no_independent_one() -> None:
    used = [
        {"purpose": "recogniser", "sha256": "1"},
        {"purpose": f"backbone of the {preflight.FOOLED}", "sha256": "1"},
    ]
    assert perturbation.white_box(used)
    assert not perturbation.white_box([used[0], {**used[1], "purpose": "backbone of the judge"}])


def test_a_face_of_one_member_alone_is_looked_for_before_the_perturbation_hides_it(
    tmp_path: Path, settings: Settings, make_release: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[pa.Table] = []

    def looked(plan: Any, table: pa.Table) -> list[int]:
        seen.append(table)
        return []

    monkeypatch.setattr(releases, "lone_surrogates", looked)
    outcome = make_release(settings(tmp_path / "release", **{"detect.crop_size": 128, **MASKS, "perturb.steps": 1}))
    (table,) = seen
    rows = private(outcome, "surrogates")
    assert table["embedding"].to_pylist() == [row["embedding_before"] for row in rows]
    assert table["embedding"].to_pylist() != [row["embedding"] for row in rows]


# --------------------------------------------------------------------------------------------------------- interrupted


def test_a_job_killed_over_and_over_ends_as_if_undisturbed(
    tmp_path: Path, settings: Settings, given_key: Callable[[str], None], cloaked: Outcome, tree: Tree
) -> None:
    config = settings(tmp_path / "release", **UNIVERSAL)
    given_key(config.workspace_path)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    kills = 0
    for life in (44, 30, 60, 400):
        arguments = [sys.executable, str(Path(__file__).with_name("kill_run.py")), str(life), str(file)]
        run = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
        kills += run.returncode == -signal.SIGKILL
    assert run.returncode == 0, run.stderr
    assert kills == 3
    assert tree(str(config.release.path)) == tree(cloaked.release.root)
    catalog = Workspace(config.workspace_path).catalog()
    for name, rows in (("sample", 4), ("perturbation", 1), ("rendered", 12)):
        runs = catalog.load_table((NAMESPACE, name)).scan(selected_fields=("run",)).to_arrow()["run"].to_pylist()
        assert list(Counter(runs).values()) == [rows]


def test_another_perturbation_is_another_run_of_the_same_plan(tmp_path: Path, settings: Settings) -> None:
    def runs(**more: Any) -> dict[str, str]:
        prepared = releases.prepare(settings(tmp_path / "release", **{**SMALL, **MASKS, **more}))
        return Run(prepared, prepared.workspace, RunKey(bytes(32)), Progress(quiet=True)).names

    first = runs()
    for change in ({"perturb.bound": 5}, {"perturb.jpeg": False}, {"perturb.norm": "l2"}, {"perturb.gamma": 0.4}):
        changed = runs(**change)
        assert changed["plan"] == first["plan"]
        assert changed["rendered"] != first["rendered"]


# ------------------------------------------------------------------------------------------------- AnonymousNet, whole


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped one, or a small one with drawn weights."""
    if stargan.locate("stargan").is_file():
        return "stargan"
    file = tmp_path_factory.mktemp("translator") / "small.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = Generator(Shape(("Male", "Young"), width=8, side=64, blocks=1), {"splits": [], "labels": "given"})
    tensors = {name: value.half().contiguous() for name, value in made.state_dict().items()}
    save_file(tensors, str(file), metadata=made.metadata())
    return str(file)


def test_anonymousnets_path_runs_whole_predict_plan_translate_perturb(
    tmp_path: Path, settings: Settings, make_release: Make, translator: str
) -> None:
    try:
        models.path("bisenet")
    except models.Unobtainable as error:
        pytest.skip(f"the judge cannot be had here: {error}")
    whole = {
        "detect.crop_size": 128,
        "compute.micro_batch": 6,
        "method.name": "translation",
        "method.surrogate": "latent",
        "method.planner": "ppas-verified",
        "method.translator": translator,
        "policy.quasi_identifiers": ["Male", "Young"],
        "policy.sensitive": ["Attractive"],
        "perturb.name": "universal",
        "perturb.sample": 4,
        "perturb.surrogates": ["arcface-mobilefacenet"],
        "perturb.attributes": ["Male"],
    }
    outcome = make_release(settings(tmp_path / "release", **whole))
    audit = outcome.audit
    assert outcome.met
    assert audit["attributes"]["predicted"] == ["Male", "Young", "Attractive"]
    assert audit["rendering"]["planned"]["planner"] == "ppas-verified"
    assert sum(audit["translation"]["faces_by_passes"].values()) == 12
    found = audit["perturbation"]
    assert [row["model"] for row in found["fooled_of_sample"]] == ["arcface-mobilefacenet", "attributes-arcface"]
    (row,) = found["attributes"]
    assert (row["attribute"], row["faces"]) == ("Male", 12)
    assert {m["purpose"] for m in audit["models"]} >= {preflight.TRANSLATOR, preflight.SURROGATE, preflight.FOOLED}
    # The judge speaks of faces as they were translated and as they were perturbed, and the worse stands.
    assert all(r["when"] in (perturbation.BEFORE, perturbation.AFTER) for r in audit["translation"]["attributes"])
    assert (
        outcome.release.read("README.md")
        .decode()
        .startswith("# Faces with translated attributes (translation + universal)")
    )
    rendered = private(outcome, "rendered")
    assert all(len(r["attributes_before"]) == 40 and 0 < r["linf"] <= 8 for r in rendered)


# --------------------------------------------------------------------------------------------------- before any work


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method.name": "none"},
            "method none releases originals as they are, so name what perturbs them: perturb.name",
        ),
        ({"perturb.bound": 3}, "bound is for universal, tip-im or advnoise; perturb.name is none"),
        ({"perturb.name": "universal", "perturb.targets": 3}, "targets is for tip-im; perturb.name is universal"),
        ({"perturb.name": "tip-im", "perturb.sample": 9}, "sample is for universal; perturb.name is tip-im"),
        (
            {"perturb.name": "tip-im", "perturb.attributes": ["Male"]},
            "attributes is for universal; perturb.name is tip-im",
        ),
        ({"perturb.name": "tip-im", "perturb.bound": 0.5}, "perturb.bound: Input should be greater than or equal to 1"),
        ({"perturb.name": "universal", "perturb.attributes": "Male,Kind"}, "attributes: Kind cannot be predicted"),
        ({"perturb.name": "tip-im", "perturb.surrogates": "sface,sface"}, "surrogates names something twice"),
        (
            {"method.name": "identity-preserving", "perturb.name": "tip-im"},
            "identity-preserving keeps people recognisable, and a perturbation against recognisers contradicts it",
        ),
    ],
)
def test_what_does_not_go_together_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        load(None, changes)
    assert "\n" not in str(raised.value)


def test_bounds_and_surrogates_have_defaults_and_attributes_stand_alone() -> None:
    bounds = {name: load(None, {"perturb.name": name}).perturb.bound for name in configs.PERTURBATIONS}
    assert bounds == {"universal": 8.0, "tip-im": 12.0, "advnoise": 12.0}
    assert load(None, {"perturb.name": "tip-im"}).perturb.surrogates == ("arcface-mobilefacenet",)
    fooled = {"perturb.name": "universal", "perturb.attributes": "five-parts"}
    assert load(None, fooled).perturb.surrogates == ()
    assert len(load(None, fooled).perturb.attributes) == 5
    assert load(None, {**fooled, "method.name": "identity-preserving"}).perturb.on
    for changes in (fooled, {"perturb.name": "advnoise"}, {}):
        config = load(None, changes)
        assert ReleaseConfig.model_validate(config.model_dump(mode="json")) == config
    # A GPU serves a perturbation of what needs none itself.
    assert load(None, {"method.name": "none", "perturb.name": "tip-im", "compute.gpus_per_worker": 1}).neural


def test_the_public_config_names_no_surrogates_file() -> None:
    config = load(None, {"perturb.name": "tip-im", "perturb.surrogates": "/home/ann/own.onnx,sface"})
    assert config.public()["perturb"]["surrogates"] == [configs.OWN_FILE, "sface"]


def test_a_surrogate_without_a_gradient_is_refused_before_anything_is_written(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(recognise.NETWORKS, "arcface-mobilefacenet")
    with pytest.raises(ConfigError, match="no gradient passes through arcface-mobilefacenet, so nothing can be made"):
        releases.prepare(settings(tmp_path / "release", **SMALL, **MASKS))
    assert not (tmp_path / "release.workspace").exists()


def test_a_judge_that_the_perturbation_fools_is_refused() -> None:
    judge = find(JUDGE, download=False)
    with pytest.raises(ConfigError, match=f"{JUDGE} is the predictor that the perturbation fools itself"):
        preflight.judged_by_another([Network(JUDGE, preflight.FOOLED, judge.sha256, "")], judge)
