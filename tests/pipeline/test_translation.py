"""Claims of the methods that translate attributes: translation (AnonymousNet) and identity-preserving.

The translator of most tests is a file made here, a small StarGAN with drawn weights: it changes pixels, and hardly what
they show. The shipped weights are used where they are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from facecrowd.jobs.audit import audit_release
from facecrowd.pipeline import config as configs
from facecrowd.pipeline import preflight, steps, summary, translation
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.attributes import Predictor, find
from facecrowd.pipeline.audit import Counts
from facecrowd.pipeline.config import ReleaseConfig, load
from facecrowd.pipeline.errors import ConfigError
from facecrowd.pipeline.plan import Planned
from facecrowd.pipeline.presets import FIVE_PARTS, predictable
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.record import Record
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.run import Run
from facecrowd.pipeline.translation import Translations, measured, to_change
from facecrowd.stages import models, regions
from facecrowd.stages.attributes import JUDGE, STEER
from facecrowd.stages.blend import Blend
from facecrowd.stages.decode import decode
from facecrowd.stages.networks import stargan
from facecrowd.stages.networks.stargan import Generator, Shape
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.translate import SHIPPED

Settings = Callable[..., ReleaseConfig]
Make = Callable[..., Outcome]
Tree = Callable[[Path | str], dict[str, bytes]]

TRANSLATES = ("Male", "Young", *FIVE_PARTS[1:])
SMALL = {"detect.crop_size": 128, "compute.micro_batch": 6}
ABOUT = {"splits": ["steer"], "labels": f"given, else by {STEER}"}


@pytest.fixture(scope="module", autouse=True)
def networks() -> None:
    try:
        for name in ("bisenet", "landmarks-2d106"):
            models.path(name)
    except models.Unobtainable as error:
        pytest.skip(f"judge or landmarks cannot be had here: {error}")


def write(file: Path, attributes: tuple[str, ...] = TRANSLATES, **about: Any) -> str:
    """A translator with drawn weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = Generator(Shape(attributes, width=8, side=64, blocks=1), {**ABOUT, **about})
        (last,) = (p for p in made.parameters() if p.ndim == 4 and not p.any())  # which begins as no change at all
        torch.nn.init.normal_(last, std=0.02)
    tensors = {name: value.half().contiguous() for name, value in made.state_dict().items()}
    save_file(tensors, str(file), metadata=made.metadata())
    return str(file)


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("translator") / "anns.safetensors")


def private(outcome: Outcome, table: str) -> list[dict[str, Any]]:
    folders = sorted((Path(outcome.workspace.root) / "tables" / table).iterdir(), key=lambda f: f.stat().st_mtime)
    return [row for file in sorted(folders[-1].glob("part-*")) for row in pq.read_table(file).to_pylist()]


def asked(translator: str, **more: Any) -> dict[str, Any]:
    """Of a translation of two attributes, and one that the translator does not know."""
    return {
        **SMALL,
        "method.surrogate": "latent",
        "method.name": "translation",
        "method.translator": translator,
        "policy.quasi_identifiers": ["Male", "Young", "Eyeglasses"],
        "policy.sensitive": ["Attractive"],
        **more,
    }


@pytest.fixture(scope="module")
def translated(
    settings: Settings, make_release: Make, tmp_path_factory: pytest.TempPathFactory, translator: str
) -> Outcome:
    return make_release(settings(tmp_path_factory.mktemp("translated") / "release", **asked(translator)))


def kept(translator: str, **more: Any) -> dict[str, Any]:
    return {
        **SMALL,
        "method.surrogate": "latent",
        "method.name": "identity-preserving",
        "method.translator": translator,
        "policy.k": None,
        **more,
    }


@pytest.fixture(scope="module")
def preserved(
    settings: Settings, make_release: Make, tmp_path_factory: pytest.TempPathFactory, translator: str
) -> Outcome:
    return make_release(settings(tmp_path_factory.mktemp("preserved") / "release", **kept(translator)))


# ------------------------------------------------------------------------------------------------------- translation


def test_a_translation_releases_planned_vectors_that_meet_the_policy_and_claims_no_more(translated: Outcome) -> None:
    audit = translated.audit
    assert translated.met
    (k,) = (r for r in audit["requirements"] if r["name"] == "k")
    assert (k["met"], k["kind"]) == (True, "of the released attributes only")
    assert k["found"] >= 3
    assert audit["guarantee"]["kind"] == "measured"
    assert audit["guarantee"]["text"].startswith("No guarantee of identity")
    assert audit["rendering"]["planned"]["planner"] == "ppas-verified"
    rows = pq.read_table(translated.release.at("manifest.parquet")).to_pylist()
    crowd: dict[tuple[str, ...], int] = {}
    for row in rows:
        vector = tuple(row[name] for name in ("Male", "Young", "Eyeglasses"))
        crowd[vector] = crowd.get(vector, 0) + 1
    assert min(crowd.values()) >= 6  # three people with two photos each
    assert summary.conclusion(audit).startswith("verdict: what the policy asks holds of the released attributes;")


def test_faces_are_to_show_what_their_class_releases_of_what_the_translator_can_change(translated: Outcome) -> None:
    shown: dict[int, set[tuple[tuple[str, bool], ...]]] = {}
    for planned, row in zip(private(translated, "plan"), private(translated, "rendered"), strict=True):
        wanted, released = dict(row["wanted"]), dict(planned["released"])
        assert set(wanted) == {"Male", "Young"} == set(dict(row["realised"]))
        assert all(wanted[name] == (released[name] == "1") for name in wanted if released[name] != "*")
        assert row["passes"] in (0, 1, 2)
        assert row["obfuscated"] is None
        shown.setdefault(planned["class_id"], set()).add(tuple(sorted(wanted.items())))
    # Where a class leaves a value open, one draw holds for all of it: never each face's own.
    assert all(len(vectors) == 1 for vectors in shown.values())


def test_a_value_left_open_is_drawn_once_for_a_class_by_the_run_key() -> None:
    def drawn(key: int, class_id: int = 0) -> bool:
        return steps.shown_by_class(RunKey(bytes([key]) * 32), class_id, {"Male": "*"}, {"Male": 0.5})["Male"]

    assert {drawn(key) for key in range(16)} == {True, False} == {drawn(0, number) for number in range(16)}
    assert steps.shown_by_class(RunKey(bytes(32)), 0, {"Male": "1", "Hat": "0"}, {"Male": 0.0}) == {"Male": True}
    assert steps.shown_by_class(RunKey(bytes(32)), 0, {"Male": "unheard of"}, {"Male": 0.5}) == {}


def test_what_needs_no_change_is_left_as_it_is_and_the_audit_counts_and_says_it(translated: Outcome) -> None:
    crops = {row["face_id"]: decode(row["crop"]).astype(int) for row in private(translated, "faces")}
    unchanged = 0
    for row in private(translated, "rendered"):
        difference = np.abs(decode(row["image"]).astype(int) - crops[row["face_id"]]).mean()
        assert (difference < 2.5) == (row["passes"] == 0)
        unchanged += row["passes"] == 0
    found = translated.audit["translation"]["faces_by_passes"]
    assert found.get("0", 0) == unchanged
    assert sum(found.values()) == 12
    assert translated.audit["translation"]["unchanged"]["faces"] == unchanged
    said = f"{unchanged} of 12 faces are released unchanged but for re-encoding"
    assert (said in translated.audit["guarantee"]["text"]) == bool(unchanged)


def test_a_translation_is_never_called_anonymised(translated: Outcome) -> None:
    readme = translated.release.read("README.md").decode()
    assert readme.startswith("# Faces with translated attributes (translation)")
    card = json.loads(translated.release.read("metadata.json"))
    assert "people, altered by translation. No guarantee of identity" in card["description"]
    assert not any("nonymised" in text for text in (readme, str(card), json.dumps(translated.audit)))


def test_an_attribute_that_the_translator_cannot_change_is_named(translated: Outcome) -> None:
    assert translated.audit["translation"]["not_translated"] == ["Eyeglasses"]
    assert "The translator cannot change Eyeglasses" in translated.audit["guarantee"]["text"]
    assert any(line.startswith("not translated, and in the pixels") for line in summary.verdict_lines(translated.audit))


def test_success_is_published_for_both_predictors_of_all_faces(translated: Outcome) -> None:
    rows = {row["attribute"]: row for row in translated.audit["translation"]["attributes"]}
    assert set(rows) == {"Male", "Young"}
    rendered = private(translated, "rendered")
    for name, row in rows.items():
        assert row["faces"] == row["judged"] == 12
        assert row["realised"] == pytest.approx(np.mean([dict(r["realised"])[name] for r in rendered]), abs=1e-6)
    lines = [line for line in summary.verdict_lines(translated.audit) if "wanted by the translation" in line]
    assert len(lines) == 2
    assert all(f"{STEER} (which steers)" in line and JUDGE in line for line in lines)
    readme = translated.release.read("README.md").decode()
    assert all(line in readme for line in lines)


def test_the_translator_is_named_with_its_hash_and_not_by_its_path(translated: Outcome, translator: str) -> None:
    used = {m["purpose"]: m for m in translated.audit["models"]}
    assert used[preflight.TRANSLATOR]["name"] == "the user's own (anns.safetensors)"
    assert used[preflight.TRANSLATOR]["sha256"] == models.sha256(Path(translator))
    assert used[preflight.STEERING]["name"] == STEER
    told = translated.release.read("release.yaml").decode() + translated.release.read("README.md").decode()
    assert translator not in told


def test_the_audit_of_a_translation_can_be_measured_again(translated: Outcome) -> None:
    report, _ = audit_release(translated.release.root, translated.workspace.root, Progress(quiet=True))
    for name in ("guarantee", "translation", "rendering", "models"):
        assert report[name] == translated.audit[name]
    # An audit adds how the judge sees k.
    assert [{k: v for k, v in one.items() if k != "shown"} for one in report["requirements"]] == translated.audit[
        "requirements"
    ]
    assert report["requirements"][0]["shown"]["by"] == "attributes-bisenet"


def test_the_same_key_gives_the_same_translation_however_the_work_is_cut(
    translated: Outcome, tmp_path: Path, settings: Settings, make_release: Make, tree: Tree, translator: str
) -> None:
    cut = asked(translator, **{"compute.micro_batch": 5})
    again = make_release(settings(tmp_path / "release", **cut))
    first, second = (
        {name: data for name, data in tree(o.release.root).items() if name.startswith("images/")}
        for o in (translated, again)
    )
    assert first == second


def test_other_weights_or_options_are_another_run_and_a_baselines_plan_knows_no_planner(
    tmp_path: Path, settings: Settings, translator: str
) -> None:
    def runs(**more: Any) -> dict[str, str]:
        prepared = releases.prepare(settings(tmp_path / "release", **asked(translator, **more)))
        return Run(prepared, prepared.workspace, RunKey(bytes(32)), Progress(quiet=True)).names

    first = runs()
    other = write(tmp_path / "other.safetensors", note="other")
    for change in ({"method.translator": other}, {"method.passes": 1}):
        changed = runs(**change)
        assert changed["plan"] == first["plan"]
        assert changed["rendered"] != first["rendered"]
    assert runs(**{"method.planner": "mondrian"})["plan"] != first["plan"]


def test_epsilon_is_a_requirement_and_said_never_to_cover_pixels(
    tmp_path: Path, settings: Settings, make_release: Make, translator: str
) -> None:
    more = {"policy.epsilon": 2.0, "policy.k": 2, "method.passes": 1, "attributes.judge": "none"}
    audit = make_release(settings(tmp_path / "release", **asked(translator, **more))).audit
    (spent,) = (r for r in audit["requirements"] if r["name"] == "epsilon")
    assert spent["asked"] == 2.0
    assert 0 < spent["found"] <= 2.0
    assert spent["met"]
    assert "never covers pixels rendered from an original" in spent["note"]
    assert audit["rendering"]["planned"]["epsilon"] == spent["found"]
    # Without a judge the predictor that steers speaks alone.
    assert all("judged" not in row for row in audit["translation"]["attributes"])


def test_what_ppas_swapped_and_who_had_to_change_are_published_to_nobody_and_what_it_missed_is_not_met(
    tmp_path: Path, settings: Settings, make_release: Make, translator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    more = {
        "method.planner": "ppas",
        "policy.k": None,
        "policy.t": {"value": 0.01},
        "method.passes": 1,
        "policy.quasi_identifiers": ["Male", "Young"],
    }
    outcome = make_release(settings(tmp_path / "release", **asked(translator, **more)))
    assert not outcome.met
    (folder,) = (Path(outcome.workspace.root) / "releases").iterdir()
    choices = json.loads(folder.read_text())["planned"]["choices"]
    assert [choice["attribute"] for choice in choices] == ["Male", "Young"]
    assert any(choice["flipped"] for choice in choices)
    told = [outcome.release.read(name) for name in ("audit.json", "README.md", "release.yaml", "metadata.json")]
    assert all(b"flipped" not in text and b"choices" not in text for text in told)
    had = [line for line in said if "had to change" in line]
    rendered, planned = private(outcome, "rendered"), private(outcome, "plan")
    for name, line in zip(("Male", "Young"), had, strict=True):
        assert line.startswith(f"keep it to yourself: {name} had to change and did: as {STEER} (which steers) sees it")
        off = [
            dict(r["wanted"])[name] != (dict(p["originals"])[name] == "1")
            for r, p in zip(rendered, planned, strict=True)
        ]
        assert f" of {sum(off)} faces; as {JUDGE}" in line
    assert not any(
        word in text for text in told for word in (b"to_change", b"to change", b'"changed', b"judge_changed")
    )
    for row in outcome.audit["translation"]["attributes"]:
        assert set(row) == {"attribute", "faces", "realised", "judged", "judge_realised"}
    # No k was asked, and what it came out as is stated all the same.
    crowds: dict[tuple[str, ...], set[str]] = {}
    for row in planned:
        crowds.setdefault(tuple(dict(row["released"]).values()), set()).add(row["subject_id"])
    smallest = min(map(len, crowds.values()))
    assert outcome.audit["classes"]["smallest"] == smallest
    line = f"smallest class: {smallest} people (k as it came out)"
    assert line in summary.verdict_lines(outcome.audit)
    assert f"- {line}\n" in outcome.release.read("README.md").decode()


def test_translations_of_one_workspace_are_warned_of_with_the_sum_of_their_epsilons(
    tmp_path: Path, settings: Settings, translator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    prepared = releases.prepare(settings(tmp_path / "release", **asked(translator)))
    run = Run(prepared, prepared.workspace, RunKey(bytes(32)), Progress())

    def release(name: str, plan: str, epsilon: float | None, card: str = "card") -> str:
        names, counts = {**run.names, "plan": plan}, Counts(12, 6)
        planned = Planned("ppas-verified", epsilon)
        record = Record(card, prepared.config, names, 6, counts, "folder", None, 0, planned=planned)
        record.write(run.workspace.folder, f"releases/{name}.json")
        said.clear()
        releases._warn_of_epsilons(run)
        return "".join(said)

    assert release("one", "a", 1.5) == ""
    assert release("same plan", "a", 1.5) == ""
    assert release("not published", "x", 9.0, card="") == ""
    assert "2 different translations" in (two := release("two", "b", 0.75))
    assert "their epsilons add up: 2.25 in total. Who holds several can join their rows by the pixels" in two
    assert "2.25 in total, and no epsilon covers the rest" in release("three", "c", None)


def test_in_photo_output_a_translated_face_keeps_its_own_light(
    tmp_path: Path, settings: Settings, make_release: Make, translator: str
) -> None:
    def matched(**more: Any) -> list[bool]:
        config = load(None, {"method.name": "translation", "policy.quasi_identifiers": ["Male"], **more})
        stages = steps.blend_stages(config.detect, 92, config.method)
        return [stage.match_colour for stage in stages if isinstance(stage, Blend)]

    assert matched() == [False]
    assert matched(**{"method.translator": "latent"}) == [True]
    outcome = make_release(settings(tmp_path / "release", **asked(translator, output="photo")))
    assert outcome.audit["counts"]["released_images"] == 12
    assert {row["passes"] for row in private(outcome, "rendered")} <= {0, 1, 2}
    assert outcome.audit["translation"]["attributes"][0]["judged"] > 0


# ----------------------------------------------------------------------------------------------- identity-preserving


def test_identity_preserving_says_everywhere_that_recognisers_are_meant_to_match(preserved: Outcome) -> None:
    audit = preserved.audit
    said = "Recognisers are MEANT to match these faces: this is no de-identification, and no k is claimed."
    assert audit["guarantee"]["text"].startswith(said)
    assert audit["guarantee"]["kind"] == "identity kept"
    assert "recognisers are MEANT to match these faces" in summary.conclusion(audit)
    readme = preserved.release.read("README.md").decode()
    assert readme.startswith("# Altered faces of recognisable people (identity-preserving)")
    assert said in readme
    assert "Anonymised" not in readme
    card = json.loads(preserved.release.read("metadata.json"))
    assert "altered, not anonymised, by identity-preserving" in card["description"]
    assert said in card["description"]
    metadata = pq.read_schema(preserved.release.at("manifest.parquet")).metadata
    assert metadata[b"facecrowd"].decode().startswith(said)


def test_the_identity_figures_of_identity_preserving_are_labelled_as_intended(
    preserved: Outcome, translated: Outcome
) -> None:
    assert len(preserved.audit["reidentification"]) == 3
    for attack in preserved.audit["reidentification"]:
        assert attack["intended"] is True
        assert "(intended: recognisers are meant to match)" in summary.attack_line(attack)
        assert attack["rank1_per_subject"] > 0.5
    assert all("intended" not in attack for attack in translated.audit["reidentification"])


def test_identity_preserving_forms_no_class_and_releases_no_attribute(preserved: Outcome) -> None:
    assert preserved.met
    assert {r["name"] for r in preserved.audit["requirements"]} == {"max_suppression"}
    assert preserved.audit["counts"]["classes"] == 0
    columns = pq.read_schema(preserved.release.at("manifest.parquet")).names
    assert columns == ["name", "file", "width", "height", "sha256", "identity"]


def test_the_parts_least_tied_to_the_person_are_turned_round_and_kept_in_the_workspace(preserved: Outcome) -> None:
    parts = list(regions.PARTS)
    for row in private(preserved, "rendered"):
        assert len(row["activation"]) == 5
        active = {name: value for name, value in zip(parts, row["activation"], strict=True) if name != "hair"}
        assert 1 <= len(row["obfuscated"]) <= 4
        assert min(active, key=active.__getitem__) in row["obfuscated"]
        assert {regions.PARTS[part] for part in row["obfuscated"]} == set(dict(row["realised"]))
        assert row["wanted"] == []
        assert row["passes"] in (1, 2)
    found = preserved.audit["translation"]
    assert sum(found["faces_by_parts"].values()) == 12
    assert sum(found["parts"].values()) == sum(row["faces"] for row in found["attributes"])


def test_as_many_parts_are_obfuscated_as_were_asked_for(
    tmp_path: Path, settings: Settings, make_release: Make, translator: str
) -> None:
    """And a release that is hardly altered passes the leak scan: what the method carries over is declared."""
    small = {"method.parts": 2, "method.passes": 1, "attributes.judge": "none"}
    outcome = make_release(settings(tmp_path / "release", **kept(translator, **small)))
    assert outcome.audit["translation"]["faces_by_parts"] == {"2": 12}
    assert outcome.audit["leaks"] == []
    report, _ = audit_release(outcome.release.root, outcome.workspace.root, Progress(quiet=True))
    assert report["met"]
    assert report["translation"] == outcome.audit["translation"]


# ----------------------------------------------------------------------------------------------------------- figures


def figures(first: bool = True, **columns: Any) -> tuple[dict[str, Any], list[str]]:
    """Of three faces that are to show Male, two of which did not: what is published, and what is not.

    first : whether the one that no pass was made for shows it
    """
    done = Translations(
        wanted=[{"Male": True}] * 3 + [{}],
        realised=[{"Male": first}, {"Male": False}, {"Male": True}, {}],
        passes=[0, 2, 1, None],
        obfuscated=[None] * 4,
        activation=[None] * 4,
    )
    config = load(None, {"method.name": "translation", "policy.quasi_identifiers": ["Male", "Young"]})
    originals = {name: np.array(["1", "0", "0", None], dtype=object) for name in ("Male", "Young")}
    probabilities = {}
    for when, values in columns.items():
        probabilities[when] = np.full((len(values), 40), 0.01, np.float32)
        probabilities[when][:, predictable().index("Male")] = values
    judge = find(JUDGE, download=False)
    half = Predictor(judge.file, "", "", "", (0.5,) * 40)
    judged = (half, probabilities["before"], probabilities["after"])
    rows = np.array([0, 1, 2])
    found = measured(config, done, rows, "steers", *judged)
    return found, to_change(config, done, originals, rows, "steers", *judged)


def test_each_predictor_is_asked_of_the_faces_that_it_saw_otherwise() -> None:
    found, had = figures(before=[0.9, 0.1, 0.9, 0.9], after=[0.9, 0.1, 0.1])
    (row,) = found["attributes"]
    assert (row["faces"], row["judged"]) == (3, 3)
    assert (row["realised"], row["judge_realised"]) == (pytest.approx(2 / 3, abs=1e-6), pytest.approx(1 / 3, abs=1e-6))
    # The judge saw one face that was to change, and it did not.
    assert had == [
        "Male had to change and did: as steers (which steers) sees it, 50.0% of 2 faces; "
        f"as {JUDGE} sees it, 0.0% of 1 faces"
    ]
    assert found["faces_by_passes"] == {"0": 1, "1": 1, "2": 1}
    assert found["not_translated"] == ["Young"]
    said = translation.lines(found)
    assert said[0].endswith("1 in 1, 1 in 2")
    assert said[1] == (
        "1 of 3 faces are released unchanged but for re-encoding: their originals showed all that was wanted already"
    )
    assert "66.7% of 3 faces show it" in said[2]
    assert translation.lines(None) == []


def test_a_face_that_was_left_as_it_was_and_does_not_show_what_was_wanted_is_never_said_to_show_it() -> None:
    found, _ = figures(first=False, before=[0.9, 0.1, 0.9, 0.9], after=[0.9, 0.1, 0.1])
    assert translation.unchanged(found) == (
        "1 of 3 faces are released unchanged but for re-encoding: 0 showed all that was wanted already, 1 do not, and "
        "the translator changed nothing"
    )


# --------------------------------------------------------------------------------------------------- before any work


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.name": "translation"}, "translation needs policy.quasi_identifiers"),
        (
            {"method.translator": "stargan"},
            "translator is for translation and identity-preserving; the method is k-same",
        ),
        ({"policy.epsilon": 1.0}, "policy.epsilon is for method translation; k-same randomises no attributes"),
        (
            {"method.name": "translation", "policy.quasi_identifiers": ["Male"], "method.planner": "ppas"},
            "ppas compares distances with t: give policy.t",
        ),
        (
            {
                "method.name": "translation",
                "policy.quasi_identifiers": ["Male"],
                "method.planner": "mondrian",
                "policy.epsilon": 1.0,
            },
            "policy.epsilon needs method.planner ppas or ppas-verified; mondrian randomises nothing",
        ),
        ({"method.name": "identity-preserving", "policy.k": 5}, r"policy.k: identity-preserving keeps people recogn"),
        (
            {"method.name": "identity-preserving", "policy.quasi_identifiers": ["Male"]},
            r"policy.quasi_identifiers: identity-preserving keeps people recognisable, so no crowd is claimed",
        ),
        ({"method.name": "identity-preserving", "method.parts": 5}, "method.parts"),
        ({"method.name": "identity-preserving", "release.identity": "class"}, "identity: class needs classes"),
        (
            {
                "method.name": "translation",
                "policy.quasi_identifiers": ["Male"],
                "method.translator": "latent",
                "detect.crop_size": 200,
            },
            "the generator makes faces of",
        ),
    ],
)
def test_what_does_not_go_together_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, changes)


def test_a_translation_without_k_asks_for_5_unless_ppas_as_printed_plans_it_and_identity_preserving_for_none() -> None:
    of = {"method.name": "translation", "policy.quasi_identifiers": ["Male"]}
    assert load(None, of).policy.k == 5
    near = {"method.planner": "ppas", "policy.sensitive": ["Young"], "policy.t": {"value": 0.2}}
    assert load(None, {**of, **near}).policy.k is None
    assert load(None, {"method.name": "identity-preserving"}).policy.k is None
    assert load(None, of).method.translator == "stargan"
    assert load(None, {"method.name": "identity-preserving"}).method.translator == "stargan-identity"
    assert set(configs.TRANSLATING_METHODS.values()) == set(SHIPPED)
    assert load(None, {"method.name": "identity-preserving"}).method.part_threshold == regions.THRESHOLD
    assert load(None, {"method.name": "identity-preserving", "method.parts": 3}).method.parts == "3"


def test_the_public_config_names_no_translators_file() -> None:
    config = load(None, {"method.name": "identity-preserving", "method.translator": "/home/ann/own.safetensors"})
    assert "ann/" not in str(config.public())
    assert ReleaseConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_translator_that_is_not_there_is_named_before_anything_is_written(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stargan, "WEIGHTS", tmp_path)
    with pytest.raises(models.ModelError, match=r"weights \(stargan.safetensors\) are not installed; train them"):
        releases.prepare(settings(tmp_path / "release", **asked("stargan")))
    with pytest.raises(models.ModelError, match="no translator is called cyclegan; there are: stargan, stargan-ident"):
        releases.prepare(settings(tmp_path / "release", **asked("cyclegan")))
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(models.ModelError, match="is no attribute translator of this version"):
        releases.prepare(settings(tmp_path / "release", **asked(str(tmp_path / "torn.safetensors"))))
    assert not (tmp_path / "release.workspace").exists()


def test_a_judge_that_shares_people_with_the_translator_or_is_close_to_who_labelled_for_it_is_refused(
    tmp_path: Path,
) -> None:
    judge = find(JUDGE, download=False)
    preflight.judged_by_another([], judge, write(tmp_path / "fine.safetensors"))
    preflight.judged_by_another([], judge, "latent")
    with pytest.raises(ConfigError, match="not independent of the translator: both learned from people of judge"):
        preflight.judged_by_another([], judge, write(tmp_path / "people.safetensors", splits=["steer", "judge"]))
    with pytest.raises(ConfigError, match=f"{JUDGE} is the predictor that labelled what the translator learned from"):
        preflight.judged_by_another([], judge, write(tmp_path / "labels.safetensors", labels=f"by {JUDGE}"))
    preflight.judged_by_another([], judge, write(tmp_path / "taught.safetensors", teachers=[STEER]))
    with pytest.raises(ConfigError, match=f"{JUDGE} is a predictor that taught the translator itself"):
        preflight.judged_by_another([], judge, write(tmp_path / "teachers.safetensors", teachers=[STEER, JUDGE]))


def test_a_translator_that_can_change_nothing_that_is_asked_is_refused(tmp_path: Path, settings: Settings) -> None:
    some = write(tmp_path / "some.safetensors", ("Male", "Big_Nose"))
    with pytest.raises(ConfigError, match="cannot change Bushy_Eyebrows, Narrow_Eyes, Big_Lips, which identity-pres"):
        releases.prepare(settings(tmp_path / "release", **kept(some)))
    young = asked(some, **{"policy.quasi_identifiers": ["Young", "Eyeglasses"]})
    with pytest.raises(ConfigError, match=r"can change none of the quasi-identifiers \(Young, Eyeglasses\), so every"):
        releases.prepare(settings(tmp_path / "release", **young))
    prepared = releases.prepare(settings(tmp_path / "release", **asked(some)))
    assert preflight.untranslatable(prepared.config) == ("Young", "Eyeglasses")
    assert not (tmp_path / "release.workspace").exists()


def test_the_latent_translator_is_the_generator_with_its_search_and_directions(model_folder: str | None) -> None:
    config = load(None, {**asked("latent"), "detect.models": model_folder})
    try:
        purposes = {network.purpose for network in preflight.renderer(config, download=False)}
    except models.Unobtainable as error:
        pytest.skip(str(error))
    assert {"generator", "loss of the latent search", "encoder of faces", preflight.STEERING} <= purposes
    assert preflight.TRANSLATOR not in purposes
    assert set(FIVE_PARTS) < set(preflight.translatable(config))


# ------------------------------------------------------------------------------------------------------ shipped weights


@pytest.mark.parametrize("method", ["translation", "identity-preserving"])
def test_the_shipped_weights_release_faces_and_were_taught_apart_from_the_judge(
    tmp_path: Path, settings: Settings, make_release: Make, method: str
) -> None:
    name = configs.TRANSLATING_METHODS[method]
    if not stargan.locate(name).is_file():
        pytest.skip(f"{name} is not shipped yet")
    more = asked(name) if method == "translation" else kept(name)
    audit = make_release(settings(tmp_path / "release", **more)).audit
    assert audit["translation"]["translator"] == name
    assert audit["counts"]["released_faces"] == 12
