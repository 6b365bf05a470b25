"""Claims of the audit: what a faulty tool could have planted in a release is found, whatever the tool says of it.

A small release of synthetic people is made once, then tampered with as a faulty tool would have made it: its manifest
and its card list what lies there, and the workspace believes it. Only looking tells.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from facecrowd.jobs import audit as audits
from facecrowd.pipeline import publish, ray_data, traces
from facecrowd.pipeline.leaks import Leak
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.publish import MODIFIED
from facecrowd.pipeline.record import Record
from facecrowd.pipeline.release import Execute, Outcome
from facecrowd.pipeline.storage import Folder, Workspace
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode

Settings = Callable[..., Any]
Make = Callable[..., Outcome]


@dataclass(frozen=True)
class Made:
    """A release and the workspace that made it."""

    release: Path
    workspace: Path

    @property
    def record(self) -> Record:
        card = hashlib.sha256((self.release / "metadata.json").read_bytes()).hexdigest()
        return Record.of(Folder(str(self.workspace)), card)

    @property
    def manifest(self) -> pa.Table:
        return pq.read_table(self.release / "manifest.parquet")

    def images(self) -> list[Path]:
        """In the manifest's order."""
        return [self.release / file for file in self.manifest["file"].to_pylist()]

    def parts(self, table: str) -> list[Path]:
        (folder,) = (self.workspace / "tables" / table).iterdir()
        return sorted(folder.glob("part-*"))

    def rows(self, table: str) -> list[dict[str, Any]]:
        return [row for part in self.parts(table) for row in pq.read_table(part).to_pylist()]

    def change(self, table: str, new: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Change the rows of one of the workspace's tables."""
        for part in self.parts(table):
            old = pq.read_table(part)
            pq.write_table(pa.Table.from_pylist([new(row) for row in old.to_pylist()], schema=old.schema), part)

    def publish(self, manifest: pa.Table | None = None, stamp: bool = True) -> None:
        """List the files as they now lie there, in manifest, card and workspace, as the tool that wrote them would."""
        (record,) = (self.workspace / "releases").iterdir()
        manifest = self.manifest if manifest is None else manifest
        digests = [sha256(self.release / file) for file in manifest["file"].to_pylist()]
        place = manifest.column_names.index("sha256")
        manifest = manifest.set_column(place, "sha256", pa.array(digests))
        pq.write_table(manifest, self.release / "manifest.parquet")
        digest = dict(zip(manifest["name"].to_pylist(), digests, strict=True))
        self.change("link", lambda row: {**row, "sha256": digest[row["name"]]})
        card = json.loads((self.release / "metadata.json").read_text())
        for item in card["distribution"]:
            if "sha256" in item:
                item["sha256"] = sha256(self.release / item["contentUrl"])
        (self.release / "metadata.json").write_text(json.dumps(card))
        told = json.loads(record.read_text())
        record.write_text(json.dumps({**told, "card": sha256(self.release / "metadata.json")}))
        for file in [*self.release.rglob("*"), self.release] if stamp else []:
            os.utime(file, (MODIFIED, MODIFIED))

    def renamed(self, names: list[str]) -> pa.Table:
        """The manifest with these names for its images, which are moved; the workspace believes them too."""
        old = self.manifest
        new = dict(zip(old["name"].to_pylist(), names, strict=True))
        for file, name in zip(self.images(), names, strict=True):
            file.rename(file.with_name(f"{name}.jpg"))
        self.change("link", lambda row: {**row, "name": new[row["name"]], "file": f"images/{new[row['name']]}.jpg"})
        table = old.set_column(0, "name", pa.array(names))
        return table.set_column(1, "file", pa.array([f"images/{name}.jpg" for name in names])).sort_by("name")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def genuine(settings: Settings, make_release: Make, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """k-same of 6 people with 2 photos each, k = 3; hats are released, smiles sensitive: a class must know both."""
    folder = tmp_path_factory.mktemp("planted")
    rows = ["image_id,hat,smile"]
    for i, photo in enumerate(sorted(photos.rglob("*.jpg"))):
        rows.append(f"{photo.relative_to(photos)},{i // 2 % 2},{i // 2 % 2}")
    (folder / "table.csv").write_text("\n".join(rows))
    asked = {
        "input.attributes": str(folder / "table.csv"),
        "policy.quasi_identifiers": ["hat"],
        "policy.sensitive": ["smile"],
        "policy.l": {"kind": "distinct", "value": 2},
    }
    return make_release(settings(folder / "release", **asked))


@pytest.fixture
def made(genuine: Outcome, tmp_path: Path) -> Made:
    """A copy of it, to be tampered with."""
    release = Path(shutil.copytree(genuine.release.root, tmp_path / "release"))
    return Made(release, Path(shutil.copytree(genuine.workspace.root, tmp_path / "workspace")))


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch, in_process: Execute) -> None:
    monkeypatch.setattr(ray_data, "run", in_process)
    monkeypatch.setattr(ray_data, "session", lambda *_: _Nothing())


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def audited(made: Made) -> dict[str, Any]:
    report, _ = audits.audit_release(str(made.release), str(made.workspace), Progress(quiet=True))
    return report


def traced(made: Made) -> list[Leak]:
    """What only the workspace can tell."""
    record, workspace = made.record, Workspace(str(made.workspace))
    release, rows = Folder(str(made.release)), made.manifest.to_pylist()
    known = traces.Known.read(workspace, record.runs, record.parts)
    expected = {str(f.relative_to(made.release)) for f in made.release.rglob("*") if f.is_file()}
    originals = chain(traces.crops(workspace, record.runs, record.parts), traces.photos(known))
    images = publish.read_images(release, rows)
    return traces.scan(release, made.manifest, images, expected, known, record.config, originals)


def requirement(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (r for r in report["requirements"] if r["name"].startswith(name))
    return dict(found)


def crop_of(made: Made) -> bytes:
    return bytes(next(row["crop"] for row in made.rows("faces") if row["crop"] is not None))


# ------------------------------------------------------------------------------------------------ nothing was planted


def test_nothing_is_found_where_nothing_was_planted(made: Made) -> None:
    made.publish()
    report = audited(made)
    assert report["met"], report["requirements"]
    assert report["leaks"] == []
    assert traced(made) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"method.name": "blur", "policy.k": None},
        {"method.name": "blur", "policy.k": None, "method.sigma": 1.0},
        {"method.name": "pixelate", "policy.k": None, "release.identity": "pseudonym"},
        {"method.name": "mask", "policy.k": None, "release.format": "parquet"},
        {"method.name": "noise", "policy.k": None, "release.format": "webdataset"},
        {"method.surrogates_per_subject": 3, "release.identity": "class"},
        {"output": "photo"},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_no_method_is_accused_of_what_it_declares(
    settings: Settings, make_release: Make, tmp_path: Path, changes: dict[str, Any]
) -> None:
    outcome = make_release(settings(tmp_path / "release", **changes))
    assert traced(Made(Path(outcome.release.root), Path(outcome.workspace.root))) == []


# ------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    "planted",
    [
        lambda crop: crop,
        lambda crop: encode(decode(crop), quality=40),
        lambda crop: encode(np.ascontiguousarray(decode(crop)[:, ::-1]), quality=80),
        lambda crop: encode(np.clip(decode(crop) * 1.1 + 25, 0, 255).astype(np.uint8), quality=80),
    ],
    ids=["byte for byte", "recompressed", "mirrored", "brightened"],
)
def test_an_original_copied_into_the_release_is_found(made: Made, planted: Callable[[bytes], bytes]) -> None:
    made.images()[0].write_bytes(planted(crop_of(made)))
    made.publish()
    report = audited(made)
    found = {(leak["kind"], leak["where"]) for leak in report["leaks"]}
    # A recogniser may take it for the original too.
    own = made.images()[0].stem
    also = {("original face", own), ("not the class's face", own)}
    assert ("original pixels", own) in found <= {("original pixels", own), *also}
    assert not report["met"]


def test_a_photo_of_the_input_copied_into_the_release_is_found(made: Made, photos: Path) -> None:
    for i, photo in enumerate(sorted(photos.rglob("*.jpg"))[:2]):
        data = photo.read_bytes()
        made.images()[i].write_bytes(data if i == 0 else encode(decode(data), quality=50))
    made.publish()
    leaks = traced(made)
    assert {leak.where for leak in leaks if leak.kind == "original pixels"} == {f.stem for f in made.images()[:2]}


def test_exif_that_was_left_in_is_found(made: Made) -> None:
    image = made.images()[0]
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    out = io.BytesIO()
    Image.open(image).save(out, "JPEG", exif=exif)
    image.write_bytes(out.getvalue())
    made.publish()
    report = audited(made)
    found = [(leak["kind"], leak["where"]) for leak in report["leaks"]]
    assert found == [("metadata", image.stem), ("not the class's face", image.stem)]
    assert not report["met"]


def test_an_original_that_was_turned_a_little_is_none_of_the_faces_of_its_class(made: Made) -> None:
    """No search for copies need know it: what is released of a class is what was rendered for it, to the byte."""
    image = made.images()[0]
    picture = Image.open(io.BytesIO(crop_of(made))).rotate(12, resample=Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=92)
    image.write_bytes(out.getvalue())
    made.publish()
    report = audited(made)
    assert ("not the class's face", image.stem) in [(leak["kind"], leak["where"]) for leak in report["leaks"]]
    assert not report["met"]


# ------------------------------------------------------------------------------------------------------------ classes


def test_a_class_of_fewer_than_k_is_found(made: Made) -> None:
    """One person's photos are a class of their own, and two people are left in theirs."""
    person = made.rows("plan")[0]["subject_id"]
    made.change("plan", lambda row: {**row, "class_id": 2} if row["subject_id"] == person else row)
    made.publish()
    report = audited(made)
    assert requirement(report, "k")["found"] == 1
    assert not requirement(report, "k")["met"]
    assert not report["met"]


def test_a_class_that_shows_two_vectors_is_two_classes(made: Made) -> None:
    """What is released decides: a class whose people do not show the same hides nobody among all of them."""
    person = made.rows("plan")[0]["subject_id"]
    other = {"0": "1", "1": "0", "*": "0"}

    def told(row: dict[str, Any]) -> dict[str, Any]:
        if row["subject_id"] != person:
            return row
        return {**row, "released": [(name, other[value]) for name, value in row["released"]]}

    made.change("plan", told)
    made.publish()
    assert requirement(audited(made), "k")["found"] == 1


def test_a_person_whose_photos_are_in_different_classes_is_found(made: Made) -> None:
    rows = made.rows("plan")
    face, home = rows[0]["face_id"], rows[0]["class_id"]
    away = next(row for row in rows if row["class_id"] != home)
    moved = {"class_id": away["class_id"], "released": away["released"]}
    made.change("plan", lambda row: {**row, **moved} if row["face_id"] == face else row)
    made.publish()
    report = audited(made)
    found = requirement(report, "vectors per subject")
    assert (found["met"], found["found"]) == (False, pytest.approx(7 / 6, abs=1e-6))
    # Every class still has k people: counting them alone would miss it.
    assert requirement(report, "k")["met"]
    assert not report["met"]


def test_a_sensitive_attribute_that_is_constant_in_a_class_is_found(made: Made) -> None:
    def smiling(row: dict[str, Any]) -> dict[str, Any]:
        if row["class_id"] != 0:
            return row
        return {**row, "originals": [(n, "1" if n == "smile" else value) for n, value in row["originals"]]}

    made.change("plan", smiling)
    made.publish()
    report = audited(made)
    assert requirement(report, "l")["found"] == 1
    assert not requirement(report, "l")["met"]
    assert not report["met"]


# ----------------------------------------------------------------------------------------------------- names and order


def in_source_order(made: Made) -> list[int]:
    """Of each row of the manifest, the place of its face in the source."""
    place = {row["face_id"]: at for at, row in enumerate(made.rows("plan"))}
    of = {row["name"]: place[row["face_id"]] for row in made.rows("link")}
    return [of[name] for name in made.manifest["name"].to_pylist()]


def test_a_release_sorted_like_its_source_is_found(made: Made) -> None:
    made.publish(made.manifest.take(pa.array(np.argsort(in_source_order(made)))))
    leaks = [leak for leak in traced(made) if leak.kind == "order"]
    assert any("the rows follow the order of the source" in leak.what for leak in leaks)


def test_names_that_count_like_the_source_are_found(made: Made) -> None:
    made.publish(made.renamed([f"{at:032x}" for at in in_source_order(made)]))
    assert any("follow the order of the source" in leak.what for leak in traced(made) if leak.kind == "order")


def test_files_written_in_the_sources_order_are_found(made: Made) -> None:
    made.publish()
    for file, at in zip(made.images(), in_source_order(made), strict=True):
        os.utime(file, (MODIFIED + at, MODIFIED + at))
    assert any("the modification times follow" in leak.what for leak in traced(made))


@pytest.mark.parametrize(
    "name", [lambda photo: hashlib.md5(photo.encode()).hexdigest(), lambda photo: photo.replace("/", "-")[:-4]]
)
def test_names_made_of_the_sources_are_found(made: Made, name: Callable[[str], str]) -> None:
    of = {row["name"]: row["photo"] for row in made.rows("link")}
    made.publish(made.renamed([name(of[old]) for old in made.manifest["name"].to_pylist()]))
    assert any(leak.kind == "source name" and "column name" in leak.what for leak in traced(made))


# ------------------------------------------------------------------------------------------------------------ columns


def people(made: Made) -> list[str]:
    subject = {row["face_id"]: row["subject_id"] for row in made.rows("plan")}
    of = {row["name"]: subject[row["face_id"]] for row in made.rows("link")}
    return [of[name] for name in made.manifest["name"].to_pylist()]


def test_a_manifest_column_that_encodes_the_subject_is_found(made: Made) -> None:
    code = {person: f"c{(7 * i + 3) % 11}" for i, person in enumerate(sorted(set(people(made))))}
    made.publish(made.manifest.append_column("batch", pa.array([code[person] for person in people(made)])))
    (leak,) = traced(made)
    assert (leak.kind, leak.where) == ("column", "batch")
    assert "for 100% of the images it follows from the person, for 33% from what is released" in leak.what


@pytest.mark.parametrize("column", ["identity", "hat", "width"])
def test_a_column_of_every_release_that_encodes_the_subject_is_found(made: Made, column: str) -> None:
    code = {person: i for i, person in enumerate(sorted(set(people(made))))}
    old = made.manifest
    values = pa.array([code[person] for person in people(made)])
    values = values if column == "width" else pc.cast(values, pa.string())
    made.publish(old.set_column(old.column_names.index(column), column, pc.cast(values, old[column].type)))
    leaks = [leak for leak in traced(made) if (leak.kind, leak.where) == ("column", column)]
    assert any(leak.what.startswith("tells people apart") for leak in leaks)


def test_a_value_that_was_not_planned_is_found(made: Made) -> None:
    old = made.manifest
    hats = ["0" if i else "9" for i in range(len(old))]
    made.publish(old.set_column(old.column_names.index("hat"), "hat", pa.array(hats)))
    assert any("cells are not the values that were planned" in leak.what for leak in traced(made))
