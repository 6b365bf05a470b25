"""Claims of pipeline/config.py: frozen, no unknown key, contradictions named, nothing private in the public part."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from facecrowd.pipeline import config as configs
from facecrowd.pipeline.config import ReleaseConfig, Section, load, parse_closeness, parse_diversity
from facecrowd.pipeline.errors import ConfigError

PRIVATE = {
    "input.path": "/home/ann/photos",
    "input.attributes": "/home/ann/table.csv",
    "workspace.path": "/home/ann/work",
    "workspace.catalog": "anns-catalog",
    "release.path": "s3://anns-bucket/release",
    "detect.models": "/home/ann/models",
    "compute.address": "ray://ann:10001",
    "compute.cpus": 3,
    "input.path_column": "anns-files",
    "input.subject_column": "anns-people",
    "input.attributes_key": "anns-key",
}


def values(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [v for inner in node.values() for v in values(inner)]
    return [v for inner in node for v in values(inner)] if isinstance(node, list) else [node]


def test_the_public_config_holds_everything_but_paths_addresses_and_catalogs() -> None:
    public = load(None, PRIVATE).public()
    assert not {str(v) for v in values(public)} & {str(v) for v in PRIVATE.values()}
    assert not re.search(r"\bann", str(public))
    assert public["policy"]["k"] == 5
    assert public["method"]["name"] == "k-same"
    assert public["detect"]["crop_size"] == 256


@pytest.mark.parametrize("key", ["detect.detector", "detect.recogniser"])
def test_the_public_config_does_not_say_where_a_model_file_lay(key: str) -> None:
    assert not re.search(r"\bann", str(load(None, {key: "/home/ann/own.onnx"}).public()))
    assert "scrfd-500m" in str(load().public())


@pytest.mark.parametrize("key", ["attributes.predictor", "attributes.judge"])
@pytest.mark.parametrize("file", ["/home/ann/own.safetensors", "anns.safetensors"])
def test_the_public_config_names_no_predictors_file(key: str, file: str) -> None:
    assert not re.search(r"\bann", str(load(None, {key: file}).public()))


@pytest.mark.parametrize("role", ["quasi_identifiers", "sensitive"])
@pytest.mark.parametrize(
    "key, column",
    [
        ("input.subject_column", "celebrity"),
        ("policy.subject", "celebrity"),
        ("input.path_column", "file"),
        ("input.attributes_key", "key"),
        ("by default", "path"),
        ("by default", "subject_id"),
    ],
)
def test_a_column_that_names_people_or_photos_is_no_attribute(role: str, key: str, column: str) -> None:
    given = {key: column} if key != "by default" else {}
    with pytest.raises(ConfigError, match=f"{column} names people or photos"):
        load(None, {"input.path": "photos.csv", f"policy.{role}": [column], **given})


def test_the_subject_of_a_policy_is_the_column_of_people() -> None:
    config = load(None, {"input.path": "photos.csv", "policy.subject": "who"})
    assert config.input.subject_column == "who"
    assert load(None, {"input.path": "photos.csv", "policy.subject": "subject_id"}).input.subject_column == "subject_id"
    assert load(None, {"input.path": "photos.csv"}).input.subject_column is None
    for again in (config, load(None, {"input.path": "photos.csv"})):
        assert ReleaseConfig.model_validate(again.model_dump(mode="json")) == again


@pytest.mark.parametrize(
    "given, message",
    [
        ({"input.path": "photos"}, "policy.subject who names a column, and the input is a folder"),
        ({"input.path": "a.csv", "input.subjects": "clusters"}, "contradict each other"),
        ({"input.path": "a.csv", "input.subject_column": "x"}, "policy.subject who and input.subject_column x differ"),
    ],
)
def test_the_subject_of_a_policy_is_never_passed_over(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, {**given, "policy.subject": "who"})


def test_a_face_that_is_found_is_never_below_what_is_covered() -> None:
    with pytest.raises(ConfigError, match=r"cover_threshold 0.6 is above threshold 0.5"):
        load(None, {"detect.cover_threshold": 0.6})
    assert load(None, {"detect.threshold": 0.2}).detect.cover_threshold == 0.2


def test_a_config_is_frozen() -> None:
    config = load()
    with pytest.raises(ValidationError, match="frozen"):
        config.policy.k = 2  # type: ignore[misc]


def test_k_same_without_k_asks_for_5_and_a_baseline_for_nothing() -> None:
    assert load().policy.k == 5
    assert load(None, {"method.name": "blur"}).policy.k is None
    assert load(None, {"method.name": "blur", "policy.k": 4}).policy.k == 4


def test_the_workspace_lies_beside_the_release_unless_it_is_named() -> None:
    assert load(None, {"release.path": "out/"}).workspace_path == "out.workspace"
    assert load(None, {"release.path": "out", "workspace.path": "w"}).workspace_path == "w"


def test_a_config_reads_back_from_its_own_dump() -> None:
    config = load(None, {**PRIVATE, "policy.sensitive": ["A"], "policy.l": {"kind": "recursive", "c": 2, "value": 3}})
    assert ReleaseConfig.model_validate(config.model_dump(mode="json")) == config


def test_every_section_refuses_unknown_keys() -> None:
    sections = [kind for kind in vars(configs).values() if isinstance(kind, type) and issubclass(kind, Section)]
    assert len(sections) > 8
    for kind in sections:
        assert kind.model_config["extra"] == "forbid"
        assert kind.model_config["frozen"]


def test_every_field_of_a_release_is_described() -> None:
    for field in ReleaseConfig.model_fields.values():
        for leaf in getattr(field.annotation, "model_fields", {"": field}).values():
            assert leaf.description


def test_an_empty_file_is_the_default_config(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing yet\n")
    assert load(tmp_path / "c.yaml") == load()


def test_a_manifest_brings_any_attribute_and_a_folder_those_that_can_be_predicted() -> None:
    assert load(None, {"input.path": "photos.parquet", "policy.sensitive": ["A"]}).policy.sensitive == ("A",)
    assert load(None, {"input.path": "photos", "policy.sensitive": ["Young"]}).policy.sensitive == ("Young",)
    with pytest.raises(ConfigError, match="policy names attributes, and the input brings none: A cannot be predicted"):
        load(None, {"input.path": "photos", "policy.sensitive": ["A"]})


@pytest.mark.parametrize(
    "text, parsed",
    [
        ("2", {"kind": "distinct", "value": 2.0}),
        ("distinct:3", {"kind": "distinct", "value": 3.0}),
        ("entropy:1.5", {"kind": "entropy", "value": 1.5}),
        ("recursive:3:2", {"kind": "recursive", "c": 3.0, "value": 2.0}),
    ],
)
def test_short_forms_of_l(text: str, parsed: dict[str, Any]) -> None:
    assert parse_diversity(text) == parsed


def test_short_forms_of_t() -> None:
    assert parse_closeness("0.2") == {"value": 0.2}
    assert parse_closeness("0.2:ordered") == {"value": 0.2, "ground": "ordered"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["policy", "k", "input", "path", "method", "x"]) | st.integers(), inner)
        ),
        max_leaves=12,
    )
)
def test_whatever_a_file_holds_it_is_a_config_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    file = tmp_path_factory.mktemp("config") / "c.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    said = f"config {file}: "
    try:
        load(file, {"policy.k": 3})
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said
    assert said.startswith(f"config {file}: ")
