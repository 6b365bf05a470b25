"""Claims of pipeline/release.py: what decides a release, what it holds, and who is left out, and why."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from facecrowd.pipeline import release as releases
from facecrowd.pipeline import summary
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.errors import ConfigError, FacecrowdError, LeakError, PolicyError, WorkspaceError
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.record import Record
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.schema import FACES, LINK, PLAN, RENDERED, SURROGATES, Manifest
from facecrowd.pipeline.storage import Workspace
from facecrowd.privacy.errors import UnreachableError
from facecrowd.stages.models import ModelError, WrongHash

Settings = Callable[..., ReleaseConfig]
Make = Callable[..., Outcome]
Tree = Callable[[Path | str], dict[str, bytes]]


def private(outcome: Outcome, manifest: Manifest) -> list[dict[str, Any]]:
    """The rows of a workspace table, in the order of its parts."""
    (folder,) = (Path(outcome.workspace.root) / "tables" / manifest.name).iterdir()
    return [row for file in sorted(folder.glob("part-*")) for row in pq.read_table(file).to_pylist()]


def public(outcome: Outcome) -> list[dict[str, Any]]:
    return pq.read_table(outcome.release.at("manifest.parquet")).to_pylist()


def crowd(outcome: Outcome) -> set[frozenset[str]]:
    """The classes, as sets of subjects."""
    members: dict[int, set[str]] = defaultdict(set)
    for row in private(outcome, PLAN):
        if row["class_id"] >= 0:
            members[row["class_id"]].add(row["subject_id"])
    return {frozenset(people) for people in members.values()}


def pixels(jpeg: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


# ------------------------------------------------------------------------------------------- what decides a release


def test_the_same_key_gives_the_same_bytes_wherever_input_and_workspace_lie(
    tmp_path: Path, settings: Settings, make_release: Make, released: Outcome, photos: Path, tree: Tree
) -> None:
    shutil.copytree(photos, tmp_path / "moved" / "elsewhere")
    moved = settings(
        tmp_path / "release",
        **{"input.path": str(tmp_path / "moved" / "elsewhere"), "workspace.path": str(tmp_path / "work")},
    )
    assert tree(make_release(moved).release.root) == tree(released.release.root)


def test_another_key_gives_other_names_and_another_order_and_the_same_classes(
    tmp_path: Path, settings: Settings, make_release: Make, released: Outcome
) -> None:
    other = make_release(settings(tmp_path / "release"), key=bytes(32))
    assert not {row["name"] for row in public(other)} & {row["name"] for row in public(released)}
    assert crowd(other) == crowd(released)
    photo_of = {link["name"]: link["photo"] for outcome in (other, released) for link in private(outcome, LINK)}
    order = [[photo_of[row["name"]] for row in public(outcome)] for outcome in (other, released)]
    assert sorted(order[0]) == sorted(order[1])
    assert order[0] != order[1]


def test_the_run_key_is_drawn_once_and_kept_for_the_owner_alone(
    tmp_path: Path, settings: Settings, make_release: Make
) -> None:
    config = settings(tmp_path / "release")
    make_release(config, key=None)
    file = Path(config.workspace_path) / "run.key"
    drawn = file.read_text()
    assert re.fullmatch("[0-9a-f]{64}", drawn)
    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0
    assert make_release(config, key=None).reused
    make_release(settings(tmp_path / "second", **{"workspace.path": config.workspace_path}), key=None)
    assert file.read_text() == drawn


def test_the_size_of_micro_batches_does_not_show_in_the_images(
    tmp_path: Path, settings: Settings, make_release: Make, released: Outcome, tree: Tree
) -> None:
    other = make_release(settings(tmp_path / "release", **{"compute.micro_batch": 5}))
    images = [
        {n: d for n, d in tree(o.release.root).items() if n.endswith((".jpg", ".parquet"))} for o in (other, released)
    ]
    assert images[0] == images[1]


# --------------------------------------------------------------------------------------------------- k-same, classes


def test_class_size_counts_subjects_not_photos(
    tmp_path: Path, settings: Settings, make_release: Make, people: list[Path]
) -> None:
    # Two people with four photos each are eight photos, and no crowd of three.
    for person in people[:2]:
        shutil.copytree(person, tmp_path / "two" / person.name)
    few = settings(tmp_path / "release", **{"input.path": str(tmp_path / "two")})
    with pytest.raises(PolicyError, match="k = 3 cannot be reached: the input names 2 people; lower k or add people"):
        make_release(few)
    shutil.copytree(people[2], tmp_path / "two" / people[2].name)
    outcome = make_release(few)
    assert crowd(outcome) == {frozenset(person.name for person in people[:3])}
    found = {r["name"]: r["found"] for r in outcome.audit["requirements"]}
    assert found["k"] == 3
    assert outcome.audit["counts"]["released_faces"] > 3 * 3


def test_a_surrogate_is_the_mean_of_its_subjects_means(
    tmp_path: Path, settings: Settings, make_release: Make, people: list[Path]
) -> None:
    # 1, 2 and 3 photos: the mean over photos would be another face.
    for count, person in enumerate(people[:3], start=1):
        (tmp_path / "in" / person.name).mkdir(parents=True)
        for picture in sorted(person.glob("*.jpg"))[:count]:
            shutil.copy(picture, tmp_path / "in" / person.name)
    outcome = make_release(
        settings(tmp_path / "release", **{"input.path": str(tmp_path / "in"), "release.quality": 100})
    )
    crops: dict[str, list[np.ndarray]] = defaultdict(list)
    for face in private(outcome, FACES):
        crops[face["photo"].split("/")[0]].append(pixels(face["crop"]).astype(float))
    assert sorted(len(c) for c in crops.values()) == [1, 2, 3]
    mean = np.mean([np.mean(c, axis=0) for c in crops.values()], axis=0)
    of_photos = np.mean([c for person in crops.values() for c in person], axis=0)
    (jpeg,) = set(_images(outcome).values())
    # 4:2:0 loses colour, not brightness.
    grey = [
        cv2.cvtColor(np.rint(a).astype(np.uint8), cv2.COLOR_RGB2GRAY).astype(float)
        for a in (pixels(jpeg), mean, of_photos)
    ]
    assert np.abs(grey[0] - grey[1]).mean() < 0.75
    assert np.abs(grey[0] - grey[2]).mean() > 2


def test_the_crop_of_a_row_is_cut_from_the_photo_of_that_row(released: Outcome, photos: Path) -> None:
    for face in private(released, FACES):
        photo = pixels((photos / face["photo"]).read_bytes())
        cut = cv2.warpAffine(photo, np.array(face["matrix"]).reshape(2, 3), (256, 256), flags=cv2.INTER_LINEAR)
        inside = cv2.warpAffine(np.ones_like(photo), np.array(face["matrix"]).reshape(2, 3), (256, 256)) == 1
        assert np.abs(cut.astype(float) - pixels(face["crop"]))[inside].mean() < 6


def _images(outcome: Outcome) -> dict[str, bytes]:
    return {row["name"]: outcome.release.read(*row["file"].split("/")) for row in public(outcome)}


def test_every_released_face_is_its_class_surrogate_and_nothing_else(released: Outcome) -> None:
    plan = {row["face_id"]: row for row in private(released, PLAN)}
    surrogates = {row["class_id"]: row["image"] for row in private(released, SURROGATES)}
    images = _images(released)
    links = private(released, LINK)
    assert len(links) == len(images) == 12
    for link in links:
        assert images[link["name"]] == surrogates[plan[link["face_id"]]["class_id"]]
    assert released.audit["counts"]["distinct_faces"] == len(surrogates) == 2


def test_formal_is_said_of_the_class_mean_on_crops_alone(
    tmp_path: Path, settings: Settings, make_release: Make, released: Outcome
) -> None:
    assert released.audit["guarantee"]["kind"] == "formal"
    assert released.audit["guarantee"]["text"].startswith("At most 1/3 per subject")
    photo = make_release(settings(tmp_path / "photo", output="photo"))
    blur = make_release(settings(tmp_path / "blur", **{"method.name": "blur", "policy.k": None}))
    for outcome in (photo, blur):
        assert outcome.audit["guarantee"]["kind"] == "measured"
        assert "At most 1/" not in outcome.audit["guarantee"]["text"]
        assert "formal" not in [r["kind"] for r in outcome.audit["requirements"] if r["name"] == "k"]


def test_clusters_say_so_and_are_never_formal(tmp_path: Path, settings: Settings, make_release: Make) -> None:
    outcome = make_release(settings(tmp_path / "release", **{"input.subjects": "clusters"}))
    assert outcome.audit["counts"]["subjects_from"] == "clusters"
    assert outcome.audit["counts"]["split_rate"] is not None
    assert outcome.audit["guarantee"]["kind"] == "measured"
    assert "clusters" in outcome.audit["guarantee"]["text"]
    assert "clusters" in outcome.release.read("README.md").decode()
    assert {r["kind"] for r in outcome.audit["requirements"] if r["name"] == "k"} == {"measured"}


@pytest.mark.parametrize("method", ["blur", "pixelate", "mask", "noise"])
def test_a_baseline_does_not_meet_k_and_promises_nothing(
    tmp_path: Path, settings: Settings, make_release: Make, method: str
) -> None:
    outcome = make_release(settings(tmp_path / "release", **{"method.name": method, "compute.micro_batch": 6}))
    assert not outcome.met
    assert outcome.audit["guarantee"]["text"].startswith("No guarantee")
    assert outcome.audit["counts"]["distinct_faces"] == 12
    crops = {row["face_id"]: row["crop"] for row in private(outcome, FACES)}
    images = _images(outcome)
    for link in private(outcome, LINK):
        assert np.abs(pixels(images[link["name"]]).astype(float) - pixels(crops[link["face_id"]])).mean() > 1


# ------------------------------------------------------------------------------------------------------- attributes


@pytest.fixture(scope="module")
def attributes(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hat is constant per person; Smile differs between a person's photos; Rich is sensitive."""
    rows = []
    for i, person in enumerate(sorted(photos.iterdir())):
        for j, picture in enumerate(sorted(person.iterdir())):
            rows.append(
                {
                    "image_id": f"{person.name}/{picture.name}",
                    "Hat": str(i % 2),
                    "Smile": str(j),
                    "Rich": str(int(i == 0)),
                }
            )
    file = tmp_path_factory.mktemp("attributes") / "attributes.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def test_one_attribute_vector_is_released_per_class_for_k_same_and_per_subject_for_a_baseline(
    tmp_path: Path, settings: Settings, make_release: Make, attributes: Path
) -> None:
    names = {"input.attributes": str(attributes), "policy.quasi_identifiers": ["Hat", "Smile"]}
    same = make_release(settings(tmp_path / "same", **names))
    blur = make_release(settings(tmp_path / "blur", **names, **{"method.name": "blur"}))
    for outcome, unit in ((same, "class_id"), (blur, "subject_id")):
        name_of = {link["face_id"]: link["name"] for link in private(outcome, LINK)}
        shown = {row["name"]: (row["Hat"], row["Smile"]) for row in public(outcome)}
        vectors: dict[Any, set[tuple[str, str]]] = defaultdict(set)
        for row in private(outcome, PLAN):
            vectors[row[unit]].add(shown[name_of[row["face_id"]]])
        assert {len(v) for v in vectors.values()} == {1}


def test_sensitive_attributes_are_held_to_the_policy_and_never_released(
    tmp_path: Path, settings: Settings, make_release: Make, attributes: Path
) -> None:
    sensitive = {"input.attributes": str(attributes), "policy.sensitive": ["Rich"]}
    loose = make_release(settings(tmp_path / "loose", **sensitive, **{"policy.t": {"value": 1.0}}))
    close = {"policy.t": {"value": 0.001}, "policy.l": {"kind": "distinct", "value": 2}}
    tight = make_release(settings(tmp_path / "tight", **sensitive, **close))
    assert "Rich" not in public(loose)[0]
    assert b"Rich" not in loose.release.read("manifest.parquet")
    assert loose.met
    assert len(crowd(loose)) == 2
    # One of six is rich; for a yes or no, t is by how much a class's share of yes departs from that of all.
    plan = {row["subject_id"]: row for row in private(loose, PLAN)}
    worst = 0.0
    for people in crowd(loose):
        share = np.mean([dict(plan[p]["originals"])["Rich"] == "1" for p in people])
        worst = max(worst, abs(share - 1 / 6))
    (t,) = (r for r in loose.audit["requirements"] if r["name"].startswith("t"))
    assert t["found"] == pytest.approx(worst)
    assert worst > 0.001
    # two classes cannot both be that close to one in six, so there is one
    assert tight.met
    assert len(crowd(tight)) == 1


def test_a_policy_that_no_partition_meets_is_refused_before_anything_is_rendered(
    tmp_path: Path, settings: Settings, make_release: Make, attributes: Path
) -> None:
    impossible = {"policy.sensitive": ["Rich"], "policy.l": {"kind": "entropy", "value": 1.9}}
    config = settings(tmp_path / "release", **{"input.attributes": str(attributes)}, **impossible)
    with pytest.raises(UnreachableError, match=r"no partition .* l \(entropy\) of Rich = 1.9 is asked .* have 1.569"):
        make_release(config)
    assert not (tmp_path / "release").exists()


# ------------------------------------------------------------------------------------------- photos that are trouble


def save(image: Image.Image, file: Path, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)


@pytest.fixture(scope="module")
def trouble(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos, and one more person whose photos are every kind of trouble."""
    folder = tmp_path_factory.mktemp("trouble") / "in"
    shutil.copytree(photos, folder)
    persons = sorted(folder.iterdir())
    source = sorted(persons[0].iterdir())[0]
    data, face = source.read_bytes(), Image.open(source).convert("RGB")
    odd = folder / "zz-odd"
    odd.mkdir()
    (odd / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (odd / "zero.jpg").write_bytes(b"")
    (odd / "text.jpg").write_text("no photo at all")
    save(Image.new("RGB", (200, 150), (90, 120, 90)), odd / "nobody.jpg")
    small = Image.new("RGB", (400, 400), (120, 120, 120))
    small.paste(face.resize((40, 40)), (180, 180))
    save(small, odd / "tiny.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(face.rotate(90, expand=True), odd / "rotated.jpg", exif=exif, quality=95)
    save(face.convert("L"), odd / "grey.png")
    save(face.convert("RGBA"), odd / "rgba.png")
    save(face.convert("CMYK"), odd / "cmyk.jpg", quality=95)
    sixteen = (np.asarray(face.convert("L")).astype(np.uint16) << 8) | 0x80
    assert cv2.imwrite(str(odd / "sixteen.png"), sixteen)
    size = face.size[0]
    many = Image.new("RGB", (4 * size, size))
    for i, person in enumerate(persons[1:5]):
        many.paste(Image.open(sorted(person.iterdir())[0]).convert("RGB").resize((size, size)), (i * size, 0))
    save(many, odd / "many.jpg", quality=95)
    save(face, folder / "top.jpg")
    return folder


@pytest.fixture(scope="module")
def troubled(
    trouble: Path, settings: Settings, make_release: Make, tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    output = tmp_path_factory.mktemp("troubled") / "release"
    return make_release(
        settings(
            output,
            **{
                "input.path": str(trouble),
                "input.same_person": 1,  # the odd photos are of somebody who has a folder of their own
                "policy.max_suppression": 0.5,
                "compute.micro_batch": 4,
                "detect.min_face": 45,
            },
        )
    )


def test_every_photo_has_a_row_with_a_status_and_a_reason_and_the_job_goes_on(troubled: Outcome, trouble: Path) -> None:
    plan = private(troubled, PLAN)
    of = {row["photo"]: row for row in plan if row["photo"].startswith("zz-odd/")}
    assert {row["photo"] for row in plan} == {str(f.relative_to(trouble)) for f in trouble.rglob("*.*") if f.is_file()}
    for name, status, reason in (
        ("truncated.jpg", "unreadable", "truncated"),
        ("zero.jpg", "unreadable", "empty file"),
        ("text.jpg", "unreadable", "not an image of a known kind"),
        ("nobody.jpg", "no_face", "no face"),
        ("tiny.jpg", "too_small", "px is below 45"),
    ):
        assert of[f"zz-odd/{name}"]["status"] == status
        assert reason in of[f"zz-odd/{name}"]["reason"]
    for name in ("rotated.jpg", "grey.png", "rgba.png", "cmyk.jpg", "sixteen.png"):
        assert (of[f"zz-odd/{name}"]["status"], of[f"zz-odd/{name}"]["subject_id"]) == ("ok", "zz-odd")
    assert all(bool(row["reason"]) == (row["status"] != "ok") for row in plan)


def test_rows_in_are_rows_out_at_every_stage(troubled: Outcome) -> None:
    ids = [[row["face_id"] for row in private(troubled, manifest)] for manifest in (FACES, PLAN, RENDERED)]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == len(ids[0])
    counts = troubled.audit["counts"]
    assert counts["rows"] == len(ids[0])
    assert counts["released_faces"] + sum(counts["not_released"].values()) == counts["rows"]
    assert counts["released_faces"] == counts["released_images"] == len(public(troubled))


def test_of_several_faces_one_is_the_subjects_and_bystanders_are_never_released_nor_counted(troubled: Outcome) -> None:
    rows = [row for row in private(troubled, PLAN) if row["photo"] == "zz-odd/many.jpg"]
    assert Counter(row["status"] for row in rows) == {"ok": 1, "bystander": len(rows) - 1}
    assert len(rows) == 4
    released = {link["face_id"] for link in private(troubled, LINK)}
    for row in rows:
        assert (row["face_id"] in released) == (row["status"] == "ok")
        assert (row["subject_id"] == "zz-odd") == (row["status"] == "ok")
        assert row["class_id"] >= 0 or row["status"] == "bystander"
    assert troubled.audit["counts"]["subjects"] == 7


def test_a_photo_that_lies_in_nobodys_folder_is_left_out_with_a_reason(troubled: Outcome) -> None:
    (row,) = (row for row in private(troubled, PLAN) if row["photo"] == "top.jpg")
    assert row["status"] == "no_subject"
    assert row["class_id"] == -1
    assert troubled.audit["counts"]["not_released"]["no_subject"] == 1
    assert troubled.audit["counts"]["subjects_released"] == 7


def test_people_without_a_usable_face_count_as_suppressed(
    tmp_path: Path, settings: Settings, make_release: Make, photos: Path
) -> None:
    shutil.copytree(photos, tmp_path / "in")
    (tmp_path / "in" / "ghost").mkdir()
    (tmp_path / "in" / "ghost" / "1.jpg").write_bytes(b"")
    outcome = make_release(settings(tmp_path / "release", **{"input.path": str(tmp_path / "in")}))
    (suppression,) = (r for r in outcome.audit["requirements"] if r["name"] == "max_suppression")
    assert suppression["found"] == pytest.approx(1 / 7, abs=1e-6)
    assert not suppression["met"]
    assert not outcome.met


def test_photo_output_releases_no_face_untreated(
    tmp_path: Path, settings: Settings, make_release: Make, trouble: Path
) -> None:
    outcome = make_release(
        settings(
            tmp_path / "release",
            output="photo",
            **{"input.path": str(trouble), "policy.max_suppression": 0.5, "compute.micro_batch": 4},
        )
    )
    name_of = {link["photo"]: link["name"] for link in private(outcome, LINK)}
    assert "zz-odd/nobody.jpg" not in name_of
    assert "top.jpg" not in name_of
    shown = pixels(_images(outcome)[name_of["zz-odd/many.jpg"]]).astype(float)
    before = pixels((trouble / "zz-odd" / "many.jpg").read_bytes()).astype(float)
    for row in private(outcome, FACES):
        if row["photo"] == "zz-odd/many.jpg":
            x1, y1, x2, y2 = (int(v) for v in row["box"])
            change = np.abs(shown - before)[max(y1, 0) : y2, max(x1, 0) : x2].max(axis=2)
            assert (change > 8).mean() > 0.6


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"policy.k": 7}, "k = 7 cannot be reached: the input names 6 people; lower k or add people"),
        ({"input.path": "{tmp}/nowhere"}, "input {tmp}/nowhere: no such folder"),
        (
            {"release.path": "{photos}/release"},
            "output {photos}/release lies inside input {photos}; keep the two apart",
        ),
        ({"workspace.path": "{photos}/work"}, "workspace {photos}/work lies inside input {photos}; keep the two apart"),
        (
            {"workspace.path": "{tmp}/out/work"},
            "workspace {tmp}/out/work lies inside output {tmp}/out; keep the two apart",
        ),
        ({"release.path": "{tmp}/full"}, "output {tmp}/full: not empty, and not this run's"),
        ({"release.path": "{tmp}/file"}, "output {tmp}/file: a file is in the way"),
        ({"release.path": None}, "no output: give --output RELEASE"),
        ({"workspace.catalog": "unheard-of"}, "workspace.catalog unheard-of: no PyIceberg catalog of this name"),
        ({"detect.detector": "unheard-of"}, "unheard-of"),
        ({"release.path": "s3://bucket/release"}, "SQLite cannot live on an object store"),
        ({"input.path": "nope://bucket/photos"}, "nope://bucket/photos: Protocol not known: nope"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence_before_anything_is_written(
    tmp_path: Path, settings: Settings, photos: Path, tree: Tree, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before, sources = tree(tmp_path), tree(photos)

    def filled(text: Any) -> Any:
        return text.format(tmp=tmp_path, photos=photos) if isinstance(text, str) else text

    with pytest.raises((FacecrowdError, ModelError)) as error:
        releases.prepare(settings(tmp_path / "out", **{key: filled(value) for key, value in changes.items()}))
    assert filled(message) in str(error.value)
    assert "\n" not in str(error.value)
    assert getattr(error.value, "exit_code", 2) == 2
    assert (tree(tmp_path), tree(photos)) == (before, sources)


def test_a_model_that_is_not_the_published_one_is_refused(tmp_path: Path, settings: Settings, tree: Tree) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "det_500m.onnx").write_bytes(b"something else")
    before = tree(tmp_path)
    with pytest.raises(WrongHash, match=r"scrfd-500m: the file at .*det_500m\.onnx is not the published one"):
        releases.prepare(settings(tmp_path / "out", **{"detect.models": str(tmp_path / "models")}))
    assert tree(tmp_path) == before


def test_a_folder_that_another_run_published_is_not_overwritten(
    tmp_path: Path, settings: Settings, make_release: Make, tree: Tree
) -> None:
    make_release(settings(tmp_path / "release"))
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match="not empty, and not this run's"):
        releases.prepare(settings(tmp_path / "release", **{"policy.k": 2}))
    assert tree(tmp_path) == before


def test_a_release_changed_since_is_not_said_to_be_done(tmp_path: Path, settings: Settings, make_release: Make) -> None:
    config = settings(tmp_path / "release")
    make_release(config)
    card = tmp_path / "release" / "metadata.json"
    card.write_text(card.read_text().replace("facecrowd", "somebody"))
    with pytest.raises(FacecrowdError, match="changed since it was published"):
        make_release(config)


def test_fewer_than_k_people_with_a_face_are_found_out_before_anything_is_rendered(
    tmp_path: Path, settings: Settings, make_release: Make, photos: Path
) -> None:
    shutil.copytree(photos, tmp_path / "in")
    for person in sorted((tmp_path / "in").iterdir())[:4]:
        for picture in person.iterdir():
            picture.write_bytes(b"")
    with pytest.raises(PolicyError, match="k = 3 cannot be reached: 2 people have a usable face"):
        make_release(settings(tmp_path / "release", **{"input.path": str(tmp_path / "in")}))
    assert not (tmp_path / "release").exists()


def test_nothing_is_published_where_the_scan_finds_a_leak(
    tmp_path: Path, settings: Settings, make_release: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = summary.readme
    config = settings(tmp_path / "release")
    listed = releases.prepare(config).listing.photos[0]
    monkeypatch.setattr(summary, "readme", lambda audit, form: words(audit, form) + f"made from {listed.photo}")
    with pytest.raises(LeakError, match=re.escape(f"source name in README.md: holds the source name {listed.photo!r}")):
        make_release(config)
    assert not (tmp_path / "release").exists()


def test_people_called_as_attributes_are_is_no_leak(
    tmp_path: Path, settings: Settings, make_release: Make, people: list[Path]
) -> None:
    rows = ["image_id,tall"]
    for i, person in enumerate(people[:4]):
        (tmp_path / "in" / str(i)).mkdir(parents=True)
        shutil.copy(sorted(person.glob("*.jpg"))[0], tmp_path / "in" / str(i) / f"{person.name}.jpg")
        rows.append(f"{person.name}.jpg,{i % 2}")
    (tmp_path / "tall.csv").write_text("\n".join(rows))
    asked = {
        "input.path": str(tmp_path / "in"),
        "input.attributes": str(tmp_path / "tall.csv"),
        "policy.quasi_identifiers": ["tall"],
        "policy.k": 2,
    }
    assert make_release(settings(tmp_path / "release", **asked)).met


def test_on_an_object_store_nothing_unscanned_is_ever_uploaded(
    tmp_path: Path, settings: Settings, make_release: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's memory file system stands for a store: no rename, so whatever was written there would be public."""
    store = fsspec.filesystem("memory")
    target, words = f"memory://bucket/{tmp_path.name}", summary.readme
    config = settings(target, **{"workspace.path": str(tmp_path / "work")})
    listed = releases.prepare(config).listing.photos[0]
    with monkeypatch.context() as patched:
        patched.setattr(summary, "readme", lambda audit, form: words(audit, form) + f"made from {listed.photo}")
        with pytest.raises(LeakError):
            make_release(config)
    assert not store.find(f"/bucket/{tmp_path.name}")
    assert make_release(config).met
    assert len(store.find(f"/bucket/{tmp_path.name}/images")) == 12


# -------------------------------------------------------------------------------------------------------- workspace


@pytest.mark.parametrize("key", ["", "zz" * 32, "00" * 31])
def test_a_damaged_run_key_is_refused(tmp_path: Path, settings: Settings, key: str) -> None:
    config = settings(tmp_path / "release")
    Path(config.workspace_path).mkdir()
    (Path(config.workspace_path) / "run.key").write_text(key)
    with pytest.raises(WorkspaceError, match=r"run\.key is damaged"):
        releases.release(releases.prepare(config), Progress(quiet=True))


def test_the_record_of_a_release_reads_back(released: Outcome) -> None:
    folder = released.workspace.child("releases")
    (name,) = folder.names()
    record = Record.read(released.workspace, f"releases/{name}")
    assert record.parts == 6
    assert record.counts.photos == 12
    assert json.loads(released.workspace.read("releases", name))["card"] == record.card
    assert Workspace(released.workspace.url).committed(LINK, record.runs["release"])


def test_pictures_in_the_release_open_everywhere(released: Outcome) -> None:
    for data in _images(released).values():
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 256))


def test_two_releases_of_the_same_people_share_no_name_and_no_label(
    tmp_path: Path, settings: Settings, make_release: Make
) -> None:
    """Joined by name, classes of one release would be cut by those of another."""
    shared = {"workspace.path": str(tmp_path / "work"), "release.identity": "pseudonym"}
    releases = [
        make_release(settings(tmp_path / "three", **shared)),
        make_release(settings(tmp_path / "two", **shared, **{"policy.k": 2})),
        make_release(settings(tmp_path / "blur", **shared, **{"method.name": "blur", "policy.k": None})),
    ]
    manifests = [pq.read_table(r.release.at("manifest.parquet")).to_pydict() for r in releases]
    for column in ("name", "identity"):
        seen = [set(m[column]) for m in manifests]
        assert len(set().union(*seen)) == sum(map(len, seen))


def test_a_crowd_of_names_for_one_person_is_no_crowd(
    tmp_path: Path, settings: Settings, in_process: releases.Execute, people: list[Path]
) -> None:
    picture = sorted(people[0].glob("*.jpg"))[0]
    for name in ("ann", "bea", "cleo"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.jpg").write_bytes(picture.read_bytes())
    prepared = releases.prepare(settings(tmp_path / "release", **{"input.path": str(tmp_path / "in"), "policy.k": 3}))
    with pytest.raises(PolicyError, match="1 people have a usable face"):
        releases.release(prepared, Progress(quiet=True), in_process)
    assert not (tmp_path / "release").exists()


def test_names_that_look_like_one_person_are_counted_once_and_said(
    tmp_path: Path, settings: Settings, make_release: Make, people: list[Path]
) -> None:
    for i, person in enumerate(people[:4]):
        for j, picture in enumerate(sorted(person.glob("*.jpg"))[:2]):
            # The first person's two photos lie under two names.
            folder = tmp_path / "in" / (f"{person.name}{'ab'[j]}" if i == 0 else person.name)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / picture.name).write_bytes(picture.read_bytes())
    outcome = make_release(settings(tmp_path / "release", **{"input.path": str(tmp_path / "in"), "policy.k": 2}))
    counts = outcome.audit["counts"]
    assert (counts["subjects_named"], counts["subjects"], counts["subjects_merged"]) == (5, 4, 1)
    assert next(r for r in outcome.audit["requirements"] if r["name"] == "max_suppression")["found"] == 0


def test_files_are_made_in_the_order_of_their_random_names(released: Outcome) -> None:
    """A file system remembers the order of creation (inode numbers, listings, archives)."""
    folder = Path(released.release.root) / "images"
    by_inode = sorted(folder.iterdir(), key=lambda file: file.stat().st_ino)
    assert [file.name for file in by_inode] == sorted(file.name for file in folder.iterdir())
