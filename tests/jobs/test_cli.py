"""Claims of jobs/cli.py: every field is a flag, help has examples that run, and the exit code says how it went."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from facecrowd.jobs import cli
from facecrowd.pipeline import config as configs
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.summary import verdict_lines
from facecrowd.stages import models

Command = Callable[..., subprocess.CompletedProcess[str]]
Flags = Callable[..., list[str]]
Make = Callable[..., Outcome]
Settings = Callable[..., configs.ReleaseConfig]
Tree = Callable[[Path | str], dict[str, bytes]]


def invoke(*arguments: object) -> Result:
    """The command line in this process; an exception that would be a traceback fails the test."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def sentence(result: Result) -> str:
    """The one line on standard error."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("facecrowd: ")
    return lines[0].removeprefix("facecrowd: ")


def commands() -> dict[str, Any]:
    """Every command by its words."""

    def below(node: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, command in getattr(node, "commands", {}).items():
            if hasattr(command, "commands"):
                yield from below(command, (*words, name))
            else:
                yield " ".join((*words, name)), command

    return dict(below(typer.main.get_command(cli.app), ()))


def examples() -> dict[str, str]:
    """The example in the help of each command."""
    return {name: re.findall("`([^`]+)`", command.epilog or "")[0] for name, command in commands().items()}


def test_version_says_what_is_installed() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout == f"facecrowd {importlib.metadata.version('facecrowd')}\n"


# ------------------------------------------------------------------------------------------------------ config, flags


def test_every_config_leaf_is_a_flag_and_every_flag_a_config_leaf() -> None:
    leaves = set()
    for name, field in configs.ReleaseConfig.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        leaves |= {f"{name}.{leaf}" for leaf in inner} if inner else {name}
    assert {dotted for dotted, *_ in cli.leaves()} == leaves
    flags = [flag for _, flag, *_ in cli.leaves()]
    assert len(flags) == len(set(flags))
    own = {"--config", "--dry-run", "--plan-resources", "--json", "--quiet", "--help"}
    offered = {o for p in commands()["release"].params for o in p.opts if o.startswith("--")}
    assert offered - own == set(flags)


def value_of(dotted: str, kind: Any) -> tuple[str, Any]:
    """Another value than the default, as typed and as in YAML."""
    special = {
        "policy.l": ("entropy:1.5", {"kind": "entropy", "value": 1.5}),
        "policy.t": ("0.2:ordered", {"value": 0.2, "ground": "ordered"}),
        "policy.quasi_identifiers": ("Young, Male", ["Young", "Male"]),
        "policy.sensitive": ("Attractive", ["Attractive"]),
        "detect.crop_size": ("128", 128),
        "release.quality": ("77", 77),
        "input.subjects": ("clusters", "clusters"),
        "method.select": ("Male", "Male"),
        "method.keep": ("pose, lighting", ["pose", "lighting"]),
        "method.latent_sigma": ("2.5", 2.5),
        "method.planner": ("mondrian", "mondrian"),
        "method.name": ("noise", "noise"),
        "perturb.bound": ("4.5", 4.5),
        "perturb.surrogates": ("sface, facex-zoo-1", ["sface", "facex-zoo-1"]),
        "perturb.attributes": ("Young, Male", ["Young", "Male"]),
    }
    if dotted in special:
        return special[dotted]
    options = [a for a in typing.get_args(kind) if a is not type(None)]
    kind = options[0] if options and typing.get_origin(kind) is not typing.Literal else kind
    if typing.get_origin(kind) is typing.Literal:
        return (options[-1], options[-1])
    return {int: ("7", 7), float: ("0.25", 0.25), bool: ("", False), str: ("some", "some")}[kind]


def settings_of(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> configs.ReleaseConfig:
    """The config that the arguments come to."""
    seen: list[configs.ReleaseConfig] = []

    def stop(config: configs.ReleaseConfig, dry: bool) -> releases.Prepared:
        seen.append(config)
        raise configs.ConfigError("far enough")

    monkeypatch.setattr(releases, "prepare", stop)
    result = invoke("release", *arguments)
    assert seen, result.stderr
    return seen[0]


@pytest.mark.parametrize("dotted, flag, kind", [leaf[:3] for leaf in cli.leaves()])
def test_yaml_and_flag_come_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dotted: str, flag: str, kind: Any
) -> None:
    typed, value = value_of(dotted, kind)
    base: dict[str, Any] = {
        "input.attributes": "a.csv",
        "policy.sensitive": ["Attractive"],
        "input.subject_column": "who",
    }
    if dotted == "method.surrogates_per_subject":
        base["output"] = "crop"
    arguments = ["--attributes", "a.csv", "--sensitive", "Attractive", "--subject-column", "who"]
    if dotted == "method.select":
        base["method.name"] = "k-same-select"
        arguments += ["--method", "k-same-select"]
    if dotted in ("verify.recogniser", "verify.retries"):
        base["verify.recognition"] = 0.5
        arguments += ["--verify-recognition", "0.5"]
    if dotted in ("policy.epsilon", "method.translator", "verify.attributes"):
        base |= {"method.name": "translation", "policy.quasi_identifiers": ["Male"]}
        arguments += ["--method", "translation", "--quasi-identifiers", "Male"]
    if dotted.startswith("perturb.") and dotted != "perturb.name":
        masks = dotted.split(".")[1] in ("steps", "step", "targets", "gamma")
        base["perturb.name"] = "tip-im" if masks else "universal"
        arguments += ["--perturb", base["perturb.name"]]
    alone = list(arguments)
    data: dict[str, Any] = {}
    for key, given in {**base, dotted: value}.items():
        *sections, leaf = key.split(".")
        target = data
        for section in sections:
            target = target.setdefault(section, {})
        target[leaf] = given
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(data))
    arguments += ["--no-" + flag[2:]] if kind is bool else [flag, typed]
    by_file = settings_of(monkeypatch, "--config", tmp_path / "all.yaml")
    by_flag = settings_of(monkeypatch, *arguments)
    assert by_flag == by_file
    if dotted not in (*base, "method.select"):  # which k-same-select cannot be without
        assert by_flag != settings_of(monkeypatch, *alone)


def test_flags_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "release.yaml").write_text("policy: {k: 10, max_suppression: 0.1}\nmethod: {sigma: 4}\n")
    config = settings_of(monkeypatch, "--config", tmp_path / "release.yaml", "--k", 3)
    assert (config.policy.k, config.policy.max_suppression, config.method.sigma) == (3, 0.1, 4.0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("polcy: {k: 3}", "polcy: no such key"),
        ("policy: {kk: 3}", "policy.kk: no such key"),
        ("policy: {k: 1}", "policy.k: Input should be greater than or equal to 2 (given: 1)"),
        ("policy: {k: many}", "policy.k: "),
        ("policy: [k]", "policy: "),
        ("method: {name: magic}", "method.name: "),
        ("- k", "expected keys like 'policy:' at the top, found list"),
        ("a: [", "not readable as YAML"),
        ("1: 2", ""),
        ("input: {attributes: a.csv}\npolicy: {quasi_identifiers: [A], sensitive: [A]}", "A: an attribute is either"),
        ("policy: {sensitive: [A]}", "policy names attributes, and the input brings none"),
        ("policy: {t: {value: 0.2}}", "l and t are about sensitive attributes, and policy.sensitive names none"),
        ("input: {subjects: column}", "input.subjects: column needs input.subject_column"),
        ("output: photo\nmethod: {surrogates_per_subject: 3}", "method.surrogates_per_subject is for k-same with"),
    ],
)
def test_a_bad_config_is_a_sentence_that_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "release.yaml"
    file.write_text(text)
    result = invoke("release", "--config", file, "--input", tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 2
    said = sentence(result)
    assert said.startswith(f"config {file}: ")
    assert message in said
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("role", ["--quasi-identifiers", "--sensitive"])
def test_a_column_that_names_people_is_never_released(tmp_path: Path, role: str) -> None:
    (tmp_path / "m.csv").write_text("path,celebrity\n1.jpg,ann\n2.jpg,bob\n")
    for flag in ("--subject-column", "--subject"):
        where = ("--input", tmp_path / "m.csv", "--output", tmp_path / "out")
        result = invoke("release", *where, flag, "celebrity", role, "celebrity", "--k", 2)
        assert result.exit_code == 2
        assert sentence(result).startswith("celebrity names people or photos")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x80"])
def test_an_unreadable_config_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "c.yaml").write_bytes(content)
    result = invoke("release", "--config", tmp_path / "c.yaml")
    assert result.exit_code == 2
    assert sentence(result).startswith(f"config {tmp_path}/c.yaml: ")


@pytest.mark.parametrize("flag, value", [("--l", "much"), ("--l", "recursive:2"), ("--t", "far"), ("--l", "odd:1:2")])
def test_a_bad_short_form_of_l_or_t_is_named(flag: str, value: str) -> None:
    result = invoke("release", "--sensitive", "A", flag, value)
    assert result.exit_code == 2
    assert f"policy.{flag[2:]}" in sentence(result)


@pytest.mark.parametrize("arguments", [("--no-such-flag",), ("--k", "few"), ("--method", "magic"), ("extra",)])
def test_bad_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert invoke("release", *arguments).exit_code == 2


def test_a_file_of_settings_is_not_needed_to_run(photos: Path, tmp_path: Path) -> None:
    result = invoke("release", "--output", tmp_path / "out")
    assert (result.exit_code, sentence(result)) == (
        2,
        "no input: give --input PHOTOS (a folder, or a Parquet/CSV manifest)",
    )


# ------------------------------------------------------------------------------------------------- what it does, says


def test_a_dry_run_checks_everything_and_writes_nothing(
    tmp_path: Path, flags: Flags, command: Command, photos: Path, tree: Tree
) -> None:
    before = tree(photos)
    result = command(
        *flags(tmp_path / "release", "--dry-run"), cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("input: 12 photos, subjects from folder (6 people)\n")
    assert result.stdout.endswith("everything checked; nothing was written\n")
    assert list(tmp_path.iterdir()) == []
    assert tree(photos) == before


def test_a_dry_run_fetches_nothing_and_says_what_a_run_would(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACECROWD_MODELS", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("INSIGHTFACE_HOME", raising=False)
    monkeypatch.setattr(models, "_fetch", lambda *_: pytest.fail("fetched in a dry run"))
    result = invoke("release", "--input", photos, "--output", tmp_path / "release", "--k", 3, "--dry-run")
    assert result.exit_code == 0, result.output
    assert (
        "models: scrfd-500m and arcface-mobilefacenet, not here yet and fetched first: scrfd-500m, "
        "arcface-mobilefacenet" in result.stdout.splitlines()
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    "flag, name, said",
    [
        ("--detector", "arcface-mobilefacenet", "arcface-mobilefacenet is no face detector: it is a recogniser"),
        ("--recogniser", "scrfd-500m", "scrfd-500m is no recogniser: it is a face detector"),
    ],
)
def test_a_model_for_another_task_is_refused_before_any_work(
    tmp_path: Path, flags: Flags, dry: tuple[str, ...], flag: str, name: str, said: str
) -> None:
    result = invoke(*flags(tmp_path / "release", flag, name, *dry))
    assert result.exit_code == 2
    assert sentence(result).startswith(said)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, in_process: releases.Execute) -> None:
    """``facecrowd release`` in this process, without Ray."""
    whole = releases.release
    monkeypatch.setattr(releases, "release", lambda prepared, progress: whole(prepared, progress, in_process))


def test_the_json_figures_are_the_printed_ones(tmp_path: Path, flags: Flags, run_here: None) -> None:
    result = invoke(*flags(tmp_path / "release", "--json", str(tmp_path / "made" / "figures.json"), "--quiet"))
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "made" / "figures.json").read_text())
    assert figures == json.loads((tmp_path / "release" / "audit.json").read_text())
    lines = result.stdout.splitlines()
    assert lines[:-2] == verdict_lines(figures)
    assert lines[-2:] == [f"release: {tmp_path}/release", f"workspace (private): {tmp_path}/release.workspace"]
    assert result.stderr == ""


@pytest.mark.parametrize("recogniser, width", [("sface", 128), ("facex-zoo-2", 512)])
def test_a_release_may_use_any_recogniser_of_the_registry_however_wide(
    tmp_path: Path, flags: Flags, run_here: None, photos: Path, recogniser: str, width: int
) -> None:
    try:
        models.path(recogniser)
    except models.Unobtainable as error:
        pytest.skip(f"{recogniser} cannot be had here: {error}")
    shutil.copytree(photos, tmp_path / "photos")
    for name in ("torn", "worn"):  # a whole micro-batch without an embedding
        (max((tmp_path / "photos").iterdir()) / f"{name}.jpg").write_bytes(b"torn")
    arguments = [*flags(tmp_path / "release", "--recogniser", recogniser), "--input", str(tmp_path / "photos")]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert f"rank-1 by {recogniser}, gallery: originals" in result.stdout
    for table in ("faces", "surrogates", "rendered"):
        files = (tmp_path / "release.workspace").glob(f"tables/{table}/*/part-*.parquet")
        found = [vector for file in files for vector in pq.read_table(file)["embedding"].to_pylist()]
        assert {len(vector) for vector in found if vector is not None} == {width}
        assert found.count(None) == (0 if table == "surrogates" else 2)


def test_a_finished_release_is_not_made_again(tmp_path: Path, flags: Flags, run_here: None, tree: Tree) -> None:
    assert invoke(*flags(tmp_path / "release")).exit_code == 0
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    again = invoke(*flags(tmp_path / "release"))
    assert again.exit_code == 0
    assert again.stdout.startswith("already released with these settings and inputs; nothing to do\n")
    assert {f: t for f, t in before.items() if f.exists() and f.stat().st_mtime_ns != t and f.is_file()}.keys() <= {
        tmp_path / "release.workspace" / "lock"
    }


def test_a_policy_that_is_not_met_exits_with_1(tmp_path: Path, flags: Flags, run_here: None) -> None:
    result = invoke(*flags(tmp_path / "release", "--method", "blur"))
    assert result.exit_code == 1, result.output
    assert "k: asked 3, found 1: NOT MET" in result.stdout
    assert "verdict: NOT as the policy asks" in result.stdout
    assert json.loads((tmp_path / "release" / "audit.json").read_text())["met"] is False


def test_a_job_that_finds_nobody_exits_with_2(tmp_path: Path, flags: Flags, run_here: None) -> None:
    result = invoke(*flags(tmp_path / "release", "--min-face", "10000"))
    assert result.exit_code == 2
    assert "no usable face in the input" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "release").exists()


def test_what_the_machine_refuses_exits_with_3(tmp_path: Path, flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/disk/part")

    monkeypatch.setattr(releases, "release", full)
    result = invoke(*flags(tmp_path / "release"))
    assert (result.exit_code, sentence(result)) == (3, "/disk/part No space left on device")


def test_an_interrupted_job_says_that_it_can_go_on(
    tmp_path: Path, flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(releases, "release", interrupt)
    result = invoke(*flags(tmp_path / "release"))
    assert (result.exit_code, sentence(result)) == (3, "interrupted; start it again to go on")


def test_what_nobody_foresaw_is_a_sentence_and_a_traceback_only_for_who_asks(
    tmp_path: Path, flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: Any) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(releases, "release", break_down)
    monkeypatch.delenv("FACECROWD_DEBUG", raising=False)
    result = invoke(*flags(tmp_path / "release"))
    assert result.exit_code == 3
    assert sentence(result) == "unexpected: ZeroDivisionError: division by zero; please report it"
    monkeypatch.setenv("FACECROWD_DEBUG", "1")
    result = invoke(*flags(tmp_path / "release"))
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "in break_down" in result.stderr


@pytest.mark.parametrize(
    "words, unbuffered, code", [(("audit",), "", 0), (("audit",), "1", 3), (("models", "list"), "", 3)]
)
def test_a_reader_that_goes_away_is_no_complaint(
    words: tuple[str, ...], unbuffered: str, code: int, released: Outcome
) -> None:
    arguments = [*words, *([released.release.root] if words == ("audit",) else [])]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "facecrowd.jobs.cli", *arguments],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (code, "")


def test_a_file_for_figures_that_cannot_be_is_refused_before_the_job(
    tmp_path: Path, flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "prepare", lambda *_, **__: pytest.fail("the job began"))
    (tmp_path / "file").write_text("")
    for file, why in ((tmp_path / "file" / "x.json", f"{tmp_path}/file is not a folder"), (tmp_path, "a folder is in")):
        result = invoke(*flags(tmp_path / "release", "--json", str(file)))
        assert result.exit_code == 2
        assert sentence(result).startswith(f"--json {file}: {why}")


def test_the_help_of_audit_says_what_it_proves() -> None:
    assert "proves integrity, not origin" in " ".join(commands()["audit"].help.split())


def test_progress_goes_to_standard_error_and_the_verdict_to_standard_output(
    tmp_path: Path, flags: Flags, run_here: None
) -> None:
    result = invoke(*flags(tmp_path / "release"))
    assert "photos: 12, subjects from: folder" in result.stderr
    assert "plan: 6 subjects, 2 classes" in result.stderr
    assert "photos: 12, subjects" not in result.stdout


# ---------------------------------------------------------------------------------------------------------- examples


def test_every_command_has_an_example_that_calls_it() -> None:
    for name, example in examples().items():
        assert example.startswith(f"facecrowd {name}"), name
        result = invoke(*name.split(), "--help")
        assert result.exit_code == 0
        assert "Example:" in result.stdout


@pytest.fixture
def desk(tmp_path: Path, people: list[Path], settings: Settings, make_release: Make, model_folder: str | None) -> Path:
    """Where the examples run: a folder with ``photos`` of six people and a release by blurring."""
    for person in people[:6]:
        (tmp_path / "photos" / person.name).mkdir(parents=True)
        shutil.copy(sorted(person.glob("*.jpg"))[0], tmp_path / "photos" / person.name)
    make_release(
        settings(
            tmp_path / "released-blurred",
            **{"input.path": str(tmp_path / "photos"), "method.name": "blur", "policy.k": None},
        )
    )
    return tmp_path


def test_the_examples_of_release_audit_and_compare_run(desk: Path, command: Command, model_folder: str | None) -> None:
    environment = dict(os.environ)
    if model_folder:
        environment["INSIGHTFACE_HOME"] = model_folder
    for name in ("release", "audit", "compare"):
        words = shlex.split(examples()[name])[1:]
        result = command(*words, cwd=desk, env=environment)
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
    assert len(list((desk / "released" / "images").iterdir())) == 6


@pytest.mark.parametrize("name", ["models list", "models pull", "models verify"])
def test_the_examples_of_models_run(name: str, command: Command, model_folder: str | None) -> None:
    environment = dict(os.environ)
    if model_folder:
        environment["INSIGHTFACE_HOME"] = model_folder
    result = command(*shlex.split(examples()[name])[1:], env=environment)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(examples()) - {"release", "audit", "compare", "plan"}))
def test_every_other_example_runs(name: str, tmp_path: Path, command: Command, model_folder: str | None) -> None:
    environment = dict(os.environ)
    if model_folder:
        environment["INSIGHTFACE_HOME"] = model_folder
    result = command(*shlex.split(examples()[name])[1:], cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
