"""Claims of pipeline/publish.py: what lies in a release folder, in which form, and nothing of it tells of a source."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.errors import ReleaseError
from facecrowd.pipeline.publish import MODIFIED, read_images
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.schema import RELEASED
from facecrowd.pipeline.storage import Folder
from facecrowd.stages import models
from facecrowd.stages.encode import metadata

Settings = Callable[..., ReleaseConfig]
Make = Callable[..., Outcome]
Tree = Callable[[Path | str], dict[str, bytes]]

TEXTS = {"manifest.parquet", "audit.json", "release.yaml", "README.md", "metadata.json", "LICENCES.md"}


def rows(release: Folder) -> list[dict[str, Any]]:
    return pq.read_table(release.at("manifest.parquet")).to_pylist()


def images(release: Folder) -> dict[str, bytes]:
    return dict(read_images(release, rows(release)))


@pytest.fixture(scope="module", params=["files", "parquet", "webdataset"])
def formatted(
    request: pytest.FixtureRequest, settings: Settings, make_release: Make, tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    output = tmp_path_factory.mktemp("formatted") / "release"
    return make_release(
        settings(output, **{"release.format": request.param, "release.shard_images": 5, "release.identity": "class"})
    )


def test_it_holds_the_files_that_are_expected_and_no_other(released: Outcome, tree: Tree) -> None:
    names = set(tree(released.release.root))
    pictures = {row["file"] for row in rows(released.release)}
    assert names == TEXTS | pictures
    assert all(re.fullmatch(r"images/[0-9a-f]{32}\.jpg", name) for name in pictures)
    assert not list(Path(released.release.root).parent.glob(".*"))


def test_every_format_holds_the_same_images_and_read_images_gives_them_back(
    formatted: Outcome, released: Outcome
) -> None:
    # Under other names, since one of the two tells classes: see the test of several releases of the same people.
    assert sorted(images(formatted.release).values()) == sorted(images(released.release).values())


@pytest.mark.parametrize("formatted", ["webdataset"], indirect=True)
def test_a_webdataset_shard_pairs_each_image_with_its_label(formatted: Outcome, released: Outcome) -> None:
    shards = sorted(Path(formatted.release.root).glob("images/*.tar"))
    label = {row["name"]: row["identity"] for row in rows(formatted.release)}
    seen = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} <= {(MODIFIED, 0, 0, "", "")}
            for picture, text in zip(members[::2], members[1::2], strict=True):
                assert picture.name.removesuffix(".jpg") == text.name.removesuffix(".json")
                seen.append(picture.name.removesuffix(".jpg"))
                stream = tar.extractfile(text)
                assert stream is not None
                assert json.load(stream) == {"identity": label[seen[-1]]}
    assert seen == sorted(label)


def test_all_modification_times_are_the_same(formatted: Outcome) -> None:
    root = Path(formatted.release.root)
    assert {file.stat().st_mtime for file in [root, *root.rglob("*")]} == {MODIFIED}


def test_rows_lie_in_the_order_of_their_random_names_and_have_the_declared_columns(released: Outcome) -> None:
    table = pq.read_table(released.release.at("manifest.parquet"))
    assert table.schema == RELEASED.arrow
    names = table["name"].to_pylist()
    assert names == sorted(names)
    assert len(set(names)) == len(names) == 12


def test_images_hold_pixels_and_nothing_else(formatted: Outcome) -> None:
    for name, data in images(formatted.release).items():
        assert metadata(data) == [], name
        with Image.open(io.BytesIO(data)) as image:
            assert not image.getexif()
            assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_nothing_in_it_names_a_source_a_place_or_a_time(
    formatted: Outcome, settings: Settings, photos: Path, tree: Tree
) -> None:
    everything = tree(formatted.release.root)
    workspace = Path(formatted.workspace.root)
    sources = [str(photos), str(workspace), photos.parent.name, (workspace / "run.key").read_text(), "pytest-of"]
    # Persons are called p01, p02, …: looked for as words, since any text may hold the letters.
    sources += [f"{file.parent.name}/{file.name}" for file in photos.rglob("*.jpg")]
    for name, data in everything.items():
        text = data.decode("latin-1")
        assert not [source for source in sources if source in text], name
        if name in TEXTS - {"manifest.parquet"}:
            assert not re.search(r"\bp\d\d\b|20[23]\d-\d\d|\d\d:\d\d", text.replace("/", " ")), name


def test_the_released_config_has_no_path_address_key_or_time(
    tmp_path: Path, settings: Settings, make_release: Make
) -> None:
    outcome = make_release(settings(tmp_path / "release"))
    config = yaml.safe_load(outcome.release.read("release.yaml"))
    assert config["policy"]["k"] == 3
    assert config["method"]["name"] == "k-same"

    def leaves(node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            yield from leaves(value) if isinstance(value, dict) else [(key, value)]

    found = dict(leaves(config))
    assert "micro_batch" in found
    assert not {"path", "workspace", "models", "catalog", "address", "cpus", "key", "seed"} & set(found)
    assert "attributes" not in config["input"]  # the path of a table; elsewhere the word names attributes
    assert [key for key, value in found.items() if "/" in str(value)] == ["licence"]


def test_a_model_given_as_a_file_is_named_by_its_hash_and_never_by_its_path(
    tmp_path: Path, settings: Settings, make_release: Make, model_folder: str | None, tree: Tree
) -> None:
    file = models.path("arcface-mobilefacenet", folder=model_folder)
    outcome = make_release(settings(tmp_path / "release", **{"detect.recogniser": str(file)}))
    for name, data in tree(outcome.release.root).items():
        assert str(file.parent).encode() not in data, name
    assert models.sha256(file) in outcome.release.read("LICENCES.md").decode()


def test_the_licences_of_the_models_travel_with_it(released: Outcome) -> None:
    text = released.release.read("LICENCES.md").decode()
    for model in released.audit["models"]:
        assert model["licence"] in text
        assert model["sha256"] in text
    assert "non-commercial" in text


def test_croissant_validates_its_card_and_reads_its_records(formatted: Outcome) -> None:
    croissant = pytest.importorskip("mlcroissant")
    dataset = croissant.Dataset(jsonld=formatted.release.at("metadata.json"))
    assert not dataset.metadata.ctx.issues.errors
    # Recommended and left out: a release carries no time, and who is to be cited is for its publisher to say.
    left_out = ("datePublished", "citeAs")
    assert not [w for w in dataset.metadata.ctx.issues.warnings if not any(name in w for name in left_out)]
    records = list(dataset.records(record_set="images-table"))
    name = "images-table/name" if "images-table/name" in records[0] else "manifest.parquet/name"
    assert [record[name].decode() for record in records] == [row["name"] for row in rows(formatted.release)]


def test_the_card_lists_the_hash_of_every_other_file(formatted: Outcome, tree: Tree) -> None:
    files = tree(formatted.release.root)
    card = json.loads(files.pop("metadata.json"))
    listed = {o["contentUrl"]: o["sha256"] for o in card["distribution"] if "sha256" in o}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    single = {row["file"]: row["sha256"] for row in rows(formatted.release) if row["file"].endswith(".jpg")}
    assert {**listed, **single} == hashes


def test_identity_none_shows_nothing_class_the_crowd_and_pseudonym_the_person(
    tmp_path: Path, settings: Settings, make_release: Make, released: Outcome, formatted: Outcome
) -> None:
    def labels(outcome: Outcome) -> list[str]:
        return [row["identity"] for row in rows(outcome.release)]

    named = make_release(settings(tmp_path / "release", **{"release.identity": "pseudonym"}))
    assert set(labels(released)) == {""}
    assert len(set(labels(formatted))) == 2
    assert len(set(labels(named))) == 6
    assert all(re.fullmatch("[0-9a-f]{16}", label) for label in labels(named) + labels(formatted))


@pytest.mark.parametrize("formatted", ["parquet", "webdataset"], indirect=True)
def test_a_shard_without_an_image_it_should_hold_is_named(formatted: Outcome) -> None:
    row = {**rows(formatted.release)[0], "name": "f" * 32}
    with pytest.raises(ReleaseError, match=f"{row['file']}: holds no image {'f' * 32}"):
        list(read_images(formatted.release, [row]))
