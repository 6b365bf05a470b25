"""Claims of docs/study.md: the page tells nothing, the key everything, and answers are scored against it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.stats import binomtest, norm
from typer.testing import CliRunner, Result

from facecrowd.jobs import study
from facecrowd.jobs.cli import app
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.pipeline.release import Outcome
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import metadata
from facecrowd.stages.regions import PARTS
from facecrowd.stages.runkey import RunKey

SEED = RunKey(bytes(range(32)))


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["study", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def refused(result: Result, what: str) -> None:
    """One sentence and exit 2."""
    assert result.exit_code == 2
    assert re.search(what, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def folders(people: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """12 people with 3 photos each, and the same blurred: as PNG, at half the size; not to be written to."""
    root = tmp_path_factory.mktemp("study")
    for person in people[:12]:
        for name in ("originals", "altered"):
            (root / name / person.name).mkdir(parents=True)
        for picture in sorted(person.glob("*.jpg"))[:3]:
            shutil.copy(picture, root / "originals" / person.name)
            pixels = cv2.imread(str(picture))
            small = cv2.resize(cv2.GaussianBlur(pixels, (0, 0), 6), None, fx=0.5, fy=0.5)
            cv2.imwrite(str(root / "altered" / person.name / f"{picture.stem}.png"), small)
    return root / "originals", root / "altered"


@pytest.fixture(scope="module")
def made(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, study.Key]:
    output = tmp_path_factory.mktemp("made") / "study"
    return output, study.make(study.Folders(*folders), output, questions=24, seed=SEED)


def page_of(output: Path) -> dict[str, Any]:
    text = (output / study.PAGE).read_text()
    found: dict[str, Any] = json.loads(
        text.split('<script type="application/json" id="study">')[1].split("</script>")[0]
    )
    return found


def jpeg(uri: str) -> bytes:
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    return base64.b64decode(data, validate=True)


def answers(key: study.Key, file: Path, answer: Callable[[study.Question], Any] | None = None, **changes: Any) -> Path:
    """A file of answers as the page saves it, all right by default."""

    def right(question: study.Question) -> Any:
        return question.truth if isinstance(question.truth, str) else [p for p, on in question.truth.items() if on]

    rows = [{"question": q.id, "answer": (answer or right)(q)} for q in key.questions]
    told = {
        "format": "facecrowd study answers",
        "version": 1,
        "study": key.study,
        "participant": file.stem,
        "answers": rows,
    }
    file.write_text(json.dumps({**told, **changes}))
    return file


def rates(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{row['kind']}: {row['group']}": row for row in report["rates"]}


# ------------------------------------------------------------------------------------------------------------ page


def test_the_page_holds_pictures_and_question_ids_and_nothing_of_the_truth(
    made: tuple[Path, study.Key], people: list[Path]
) -> None:
    output, key = made
    page = page_of(output)
    assert page.keys() == {"study", "questions"}
    assert [q["id"] for q in page["questions"]] == [q.id for q in key.questions]
    assert {frozenset(q) for q in page["questions"]} == {frozenset({"id", "kind", "pictures"})}
    text = (output / study.PAGE).read_text()
    without = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    for secret in (key.seed, "truth", "original", "released", "Real", "Fake", *(person.name for person in people)):
        assert secret not in without, secret


def test_all_pictures_are_encoded_alike_at_one_size_without_metadata(made: tuple[Path, study.Key]) -> None:
    output, key = made
    pictures = [jpeg(uri) for q in page_of(output)["questions"] for uri in q["pictures"]]
    assert len(pictures) == 24 + 2 * 48
    told = set()
    for data in pictures:
        assert metadata(data) == []
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (key.side, key.side)
            tables: Any = image.quantization  # type: ignore[attr-defined]
            told.add((image.mode, str(tables), str(image.info), str(image.layer)))  # type: ignore[attr-defined]
    assert len(told) == 1


def test_pictures_are_smaller_than_the_smallest_so_that_no_sharpness_of_its_own_tells_one(
    made: tuple[Path, study.Key], folders: tuple[Path, Path]
) -> None:
    smallest = min(min(decode(file.read_bytes()).shape[:2]) for file in folders[1].glob("*/*"))
    assert made[1].side <= 0.9 * smallest


def test_the_page_fetches_nothing_and_runs_only_itself(made: tuple[Path, study.Key]) -> None:
    text = (made[0] / study.PAGE).read_text()
    assert not re.search(r"https?:|src=|href=|@import|url\(|fetch\(|XMLHttp|WebSocket|sendBeacon", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert "default-src 'none'; img-src data:; script-src 'sha256-" in policy[1]
    assert not re.search(r"unsafe|\son\w+=", policy[1] + text.split("<body>")[1].split("<script")[0])


def test_page_and_key_are_for_their_owner_alone_and_the_page_says_so(made: tuple[Path, study.Key]) -> None:
    for name in (study.PAGE, study.KEY):
        assert stat.S_IMODE((made[0] / name).stat().st_mode) == 0o600
    assert "<strong>Private:</strong> shows photographs of people" in (made[0] / study.PAGE).read_text()


def test_the_seed_in_the_key_draws_the_same_study_again_and_another_seed_another(
    made: tuple[Path, study.Key], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    output, key = made
    again = study.make(study.Folders(*folders), tmp_path / "again", questions=24, seed=RunKey(bytes.fromhex(key.seed)))
    assert again == key
    assert (tmp_path / "again" / study.PAGE).read_bytes() == (output / study.PAGE).read_bytes()
    other = study.make(study.Folders(*folders), tmp_path / "other", questions=24)
    assert other.study != key.study
    assert [q.truth for q in other.questions] != [q.truth for q in key.questions]
    assert not {q.id for q in other.questions} & {q.id for q in key.questions}


# ------------------------------------------------------------------------------------------------------- questions


def test_half_of_each_kind_is_either_truth(made: tuple[Path, study.Key]) -> None:
    found = Counter((q.kind, q.group, str(q.truth)) for q in made[1].questions)
    assert found == {
        ("turing", "original", "photo"): 12,
        ("turing", "released", "made"): 12,
        ("same-person", "Fake", "same"): 6,
        ("same-person", "Fake", "different"): 6,
        ("same-person", "Real", "same"): 6,
        ("same-person", "Real", "different"): 6,
        ("parts", "parts", "{}"): 24,
    }


def test_kinds_come_in_turn_since_a_later_one_shows_what_answers_an_earlier(made: tuple[Path, study.Key]) -> None:
    kinds = [q.kind for q in made[1].questions]
    assert kinds == sorted(kinds, key=study.KINDS.index)


def test_the_turing_test_shows_nobody_both_ways_and_no_picture_twice(made: tuple[Path, study.Key]) -> None:
    shown = [q.pictures[0] for q in made[1].questions if q.kind == "turing"]
    people = {name: {p["subject"] for p in shown if p["picture"] == name} for name in ("original", "released")}
    assert not people["original"] & people["released"]
    assert len({(p["picture"], p["photo"]) for p in shown}) == len(shown)


def test_what_the_key_says_of_a_pair_is_what_the_pair_shows(made: tuple[Path, study.Key]) -> None:
    pairs = [q for q in made[1].questions if q.kind == "same-person"]
    for q in pairs:
        first, second = q.pictures
        assert (first["subject"] == second["subject"]) == (q.truth == "same")
        assert first["photo"] != second["photo"]
        wanted = ["original", "released"] if q.group == "Fake" else ["original", "original"]
        assert sorted([first["picture"], second["picture"]]) == wanted
    assert len({str(sorted(map(str, q.pictures))) for q in pairs}) == len(pairs)
    for kind in ("same-person", "parts"):
        mixed = [q.pictures for q in made[1].questions if q.kind == kind and q.group != "Real"]
        assert len({first["picture"] for first, _ in mixed}) == 2


def test_the_pictures_are_those_that_the_key_names(made: tuple[Path, study.Key], folders: tuple[Path, Path]) -> None:
    output, key = made
    for question, told in zip(page_of(output)["questions"], key.questions, strict=True):
        for uri, picture in zip(question["pictures"], told.pictures, strict=True):
            folder = folders[picture["picture"] == "released"]
            (file,) = folder.glob(picture["photo"] + ".*")
            pixels = decode(file.read_bytes())
            edge = min(pixels.shape[:2])
            top, left = ((n - edge) // 2 for n in pixels.shape[:2])
            square = pixels[top : top + edge, left : left + edge]
            wanted = cv2.resize(square, (key.side, key.side), interpolation=cv2.INTER_AREA)
            assert abs(decode(jpeg(uri)).astype(float) - wanted).mean() < 4


def faces(people: int, photos: int, **told: Any) -> list[study.Face]:
    return [
        study.Face(f"p{p}", f"p{p}/{i}", *(told.get("shown", lambda p, i: (f"{p} {i}", f"{p} {i}"))(p, i)))
        for p in range(people)
        for i in range(photos)
    ]


def test_people_with_one_photo_make_pairs_of_that_photo_and_have_no_baseline() -> None:
    found = study.draw("same-person", faces(9, 1), 16, np.random.default_rng(0))
    assert Counter((q.group, q.truth) for q in found) == {("Fake", "same"): 4, ("Fake", "different"): 4}


def test_a_face_that_stands_for_both_people_is_never_asked_of_them_as_two() -> None:
    crowd = faces(6, 2, shown=lambda p, i: (f"class {p // 3}", f"class {p // 3}"))
    for seed in range(20):
        for q in study.draw("same-person", crowd, 40, np.random.default_rng(seed)):
            if q.group == "Fake" and q.truth == "different":
                first, second = (crowd[picture.face] for picture in q.pictures)
                assert first.stands != second.stands


def test_a_released_face_of_several_photos_is_shown_once_in_the_turing_test() -> None:
    crowd = faces(12, 2, shown=lambda p, i: (f"class {p // 3}", f"class {p // 3}"))
    found = study.draw("turing", crowd, 40, np.random.default_rng(0))
    released = [q.pictures[0].face for q in found if q.truth == "made"]
    assert len(released) == len({crowd[i].shown for i in released}) == len(found) // 2


def test_mirrored_edges_are_left_out_of_the_turing_test_where_enough_faces_are_without() -> None:
    mixed = [replace(face, whole=i % 4 > 0) for i, face in enumerate(faces(12, 4))]
    found = study.draw("turing", mixed, 24, np.random.default_rng(0))
    assert len(found) == 24
    assert all(mixed[q.pictures[0].face].whole for q in found)
    assert len(study.draw("turing", mixed, 40, np.random.default_rng(0))) == 40


def test_only_the_people_named_are_shown(folders: tuple[Path, Path], tmp_path: Path) -> None:
    consented = sorted(path.name for path in folders[0].iterdir())[:4]
    (tmp_path / "people.txt").write_text("\n".join(consented) + "\n")
    pair = ("--originals", folders[0], "--released", folders[1])
    assert run("make", *pair, "--output", tmp_path / "study", "--people", tmp_path / "people.txt").exit_code == 0
    key = study.Key.model_validate_json((tmp_path / "study" / study.KEY).read_text())
    assert {p["subject"] for q in key.questions for p in q.pictures} == set(consented)
    refused(run("make", *pair, "--output", tmp_path / "other", "--people", "nobody"), "nobody is nobody of these")


# --------------------------------------------------------------------------------------------------------- release


@pytest.mark.parametrize("changes", [{}, {"output": "photo"}])
def test_a_release_is_joined_with_its_originals_by_the_private_link(
    tmp_path: Path, settings: Callable[..., Any], make_release: Callable[..., Outcome], changes: dict[str, Any]
) -> None:
    blur = {"method.name": "blur", "policy.k": None, **changes}
    make_release(settings(tmp_path / "release", **blur))
    source = study.collection(None, str(tmp_path / "release"), None)
    assert {face.subject for face in source.faces} == {face.photo.split("/")[0] for face in source.faces}
    pictures = [study.Picture(i, shown) for i in range(len(source.faces)) for shown in (False, True)]
    source.fetch(pictures)
    assert {source.pixels(picture).shape for picture in pictures} == {(256, 256, 3)}
    small = {p: cv2.resize(source.pixels(p), (12, 12), interpolation=cv2.INTER_AREA).astype(float) for p in pictures}
    for i in range(len(source.faces)):
        # Blurred is still nearest to its own original, where the two are framed alike.
        far = [
            abs(small[study.Picture(i, True)] - small[study.Picture(j, False)]).mean() for j in range(len(source.faces))
        ]
        assert int(np.argmin(far)) == i


def test_a_crop_that_reaches_beyond_its_photo_is_known(
    tmp_path: Path,
    settings: Callable[..., Any],
    make_release: Callable[..., Outcome],
    photos: Path,
) -> None:
    for file in photos.glob("*/*.jpg"):
        (tmp_path / "wide" / file.parent.name).mkdir(parents=True, exist_ok=True)
        pixels = cv2.imread(str(file))
        if file.name.startswith("1"):
            # A wide black frame, which no crop of the face leaves.
            pixels = cv2.copyMakeBorder(pixels, 300, 300, 300, 300, cv2.BORDER_CONSTANT)
        cv2.imwrite(str(tmp_path / "wide" / file.parent.name / file.name), pixels)
    blur = {"input.path": str(tmp_path / "wide"), "method.name": "blur", "policy.k": None}
    make_release(settings(tmp_path / "release", **blur))
    found = study.collection(None, str(tmp_path / "release"), None).faces
    framed = {face.photo for face in found if face.photo.split("/")[1].startswith("1")}
    assert len(framed) == 6
    assert framed <= {face.photo for face in found if face.whole}
    assert not all(face.whole for face in found)


def test_a_plan_tells_which_parts_it_changes() -> None:
    before = {"Big_Nose": "1", "Big_Lips": "0", "Narrow_Eyes": "1", "Male": "1"}
    after = {"Big_Nose": "0", "Big_Lips": "0", "Narrow_Eyes": "*", "Bushy_Eyebrows": "1", "Male": "0"}
    assert study._changed(before, after) == {"nose": True, "lips": False}


def test_of_a_translation_the_key_says_what_was_done_and_not_what_the_table_releases() -> None:
    before = {"Big_Nose": "1", "Big_Lips": "0", "Narrow_Eyes": "1"}
    released = {"Big_Nose": "0", "Big_Lips": "1", "Narrow_Eyes": "*"}
    found = study._changed(before, released, None, {"Big_Nose": False, "Narrow_Eyes": False, "Bushy_Eyebrows": True})
    assert found == {"hairline": False, "eyes": True, "nose": True, "lips": False}
    assert not any(study._changed(before, released, None, {}).values())


def test_a_face_that_was_left_as_it_was_is_no_face_made_by_a_computer(released: Outcome, tmp_path: Path) -> None:
    crowd = [replace(face, made=i % 3 > 0) for i, face in enumerate(faces(12, 3))]
    found = study.draw("turing", crowd, 40, np.random.default_rng(0))
    shown = {truth: [crowd[q.pictures[0].face].made for q in found if q.truth == truth] for truth in ("made", "photo")}
    assert all(shown["made"])
    assert not all(shown["photo"])
    # Which those are is in the manifest.
    workspace = Path(shutil.copytree(released.workspace.root, tmp_path / "workspace"))
    left = set()
    for file in workspace.glob("tables/rendered/*/*.parquet"):
        table = pq.read_table(file)
        left.add(table["photo"][0].as_py())
        column, passes = table.column_names.index("passes"), [0, *[2] * (len(table) - 1)]
        pq.write_table(table.set_column(column, "passes", pa.array(passes, pa.int32())), file)
    source = study.Released(released.release.root, str(workspace))
    assert {face.photo for face in source.faces if not face.made} == left != set()
    assert all(face.made for face in study.Released(released.release.root, released.workspace.root).faces)


def test_the_manifest_tells_which_parts_were_obfuscated(released: Outcome, tmp_path: Path) -> None:
    workspace = Path(shutil.copytree(released.workspace.root, tmp_path / "workspace"))
    before = study.Released(released.release.root, str(workspace)).faces
    assert {len(face.changed) for face in before} == {0}
    for file in workspace.glob("tables/rendered/*/*.parquet"):
        table = pq.read_table(file)
        column = table.column_names.index("obfuscated")
        values = pa.array([["hair", "nose"]] * len(table), table.schema.field(column).type)
        pq.write_table(table.set_column(column, table.schema.field(column), values), file)
    after = study.Released(released.release.root, str(workspace)).faces
    wanted = {"hairline": True, "eyebrows": False, "eyes": False, "nose": True, "lips": False}
    assert [face.changed for face in after] == [wanted] * len(after)
    assert {study._MANIFEST.get(part, part) for part in study.PARTS} == set(PARTS)


def test_a_workspace_of_before_there_was_obfuscation_can_be_asked_about(released: Outcome, tmp_path: Path) -> None:
    workspace = Path(shutil.copytree(released.workspace.root, tmp_path / "workspace"))
    for file in workspace.glob("tables/rendered/*/*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["obfuscated"]), file)
    assert study.Released(released.release.root, str(workspace)).faces


def test_a_release_without_its_workspace_or_with_other_originals_is_refused(
    released: Outcome, photos: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(released.release.root, tmp_path / "copy")
    refused(
        run("make", "--released", copy, "--output", tmp_path / "s"), r"copy\.workspace: not there; give --workspace"
    )
    told = ("make", "--released", copy, "--workspace", released.workspace.root)
    refused(
        run(*told, "--originals", photos, "--output", tmp_path / "s"), "originals of a release are in its --workspace"
    )
    refused(run(*told, "--output", copy / "study"), "lies in a folder of pictures")
    done = run(*told, "--output", tmp_path / "s", "--questions", 4, "--json", tmp_path / "s.json")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "s.json").read_text())["questions"]["parts"] == 4


# -------------------------------------------------------------------------------------------------------- refusals


def test_folders_that_make_no_study_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    originals, altered = folders
    (tmp_path / "flat").mkdir()
    shutil.copy(next(originals.glob("*/*.jpg")), tmp_path / "flat")
    out = ("--output", tmp_path / "study")
    refused(run("make", "--released", altered, *out), "no release; give --originals")
    refused(run("make", "--released", altered, "--originals", tmp_path / "flat", *out), "both hold <person>/<file>")
    refused(run("make", "--released", tmp_path / "none", "--originals", originals, *out), "none: no such folder")
    refused(run("make", "--released", altered, "--originals", originals, "--workspace", "w", *out), "no release, so")
    refused(run("make", "--released", altered, "--originals", originals, "--kind", "x", *out), "--kind x: neither")
    assert not (tmp_path / "study").exists()


def test_pictures_framed_in_two_ways_or_too_small_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for name, size in (("wide", (300, 200)), ("small", (40, 40))):
        for file in folders[0].glob("*/*.jpg"):
            (tmp_path / name / file.parent.name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / name / file.parent.name / file.name), np.zeros((*size[::-1], 3), np.uint8))
    with pytest.raises(InputError, match="framed"):
        study.make(study.Folders(folders[0], tmp_path / "wide"), tmp_path / "s", ["parts"])
    with pytest.raises(InputError, match="too small"):
        study.make(study.Folders(tmp_path / "small", tmp_path / "small"), tmp_path / "s", ["parts"])
    assert not (tmp_path / "s").exists()


def test_a_study_is_never_overwritten_since_its_key_would_be_lost(
    made: tuple[Path, study.Key], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(made[0], tmp_path / "study")
    with pytest.raises(ConfigError, match="holds a study already"):
        study.make(study.Folders(*folders), copy)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"study": "0" * 16}, "answers of another study"),
        ({"answers": []}, "holds no answers"),
        ({"answers": [{"question": "x", "answer": "photo"}]}, "'x' is none of this study"),
        ({"format": "other"}, "not the answers of a study"),
        ({"answers": [{"question": "x", "answer": 1}]}, "not the answers of a study"),
    ],
)
def test_answers_that_are_none_of_this_study_are_refused(
    made: tuple[Path, study.Key], tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    output, key = made
    refused(run("score", output / study.KEY, answers(key, tmp_path / "a.json", **changes)), what)


def test_double_and_impossible_answers_are_refused(made: tuple[Path, study.Key], tmp_path: Path) -> None:
    output, key = made
    turing, parts = (next(q.id for q in key.questions if q.kind == kind) for kind in ("turing", "parts"))

    def given(*rows: tuple[str, Any]) -> Result:
        listed = [{"question": q, "answer": a} for q, a in rows]
        return run("score", output / study.KEY, answers(key, tmp_path / "a.json", answers=listed))

    refused(given((turing, "photo"), (turing, "photo")), "answered twice")
    refused(given((turing, "same")), "'same' is no answer")
    refused(given((turing, ["nose"])), "is no answer")
    refused(given((parts, "same")), "is no answer")
    refused(given((parts, ["nose", "nose"])), "is no answer")
    refused(given((parts, ["ears"])), "is no answer")
    refused(given((parts, list(study.PARTS))), "is no answer")
    assert given((parts, [])).exit_code == 0


def test_one_participant_counts_once(made: tuple[Path, study.Key], tmp_path: Path) -> None:
    output, key = made
    first = answers(key, tmp_path / "a.json")
    again = answers(key, tmp_path / "b.json", participant="a")
    refused(run("score", output / study.KEY, first, again), r"b\.json: the same participant as .*a\.json")


def test_a_key_that_is_none_is_refused(made: tuple[Path, study.Key], tmp_path: Path) -> None:
    file = answers(made[1], tmp_path / "a.json")
    refused(run("score", file, file), "not the key of a study")
    refused(run("score", tmp_path / "none.json", file), "no such file")
    (tmp_path / "broken.json").write_text("{")
    refused(run("score", made[0] / study.KEY, tmp_path / "broken.json"), "not the answers of a study")


# ----------------------------------------------------------------------------------------------------------- score


def test_perfect_answers_score_one_with_the_exact_limit_of_their_number(
    made: tuple[Path, study.Key], tmp_path: Path
) -> None:
    output, key = made
    done = run("score", output / study.KEY, answers(key, tmp_path / "a.json"), "--json", tmp_path / "s.json")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "s.json").read_text())
    for row in report["rates"]:
        assert row["value"] == row["high"] == 1
        exact = binomtest(row["questions"], row["questions"]).proportion_ci(0.95, "exact").low
        assert row["low"] == pytest.approx(exact)
    found = rates(report)
    assert found["turing: all"]["against_chance"] == found["same-person: Fake"]["against_chance"] == "above"
    assert found["turing: all"]["d_prime"] == pytest.approx(2 * norm.ppf(12.5 / 13))
    assert found["same-person: Real"]["paper"] == 0.98
    assert found["same-person: Fake"]["paper"] == 0.88
    assert found["same-person: Fake, one person, two photos"]["chance"] is None
    assert "| same-person: Fake | 12 | 12 | 1.00 |" in done.stdout


def test_random_answers_are_not_told_from_chance_and_wrong_ones_are_below(
    made: tuple[Path, study.Key], tmp_path: Path
) -> None:
    output, key = made
    rng = np.random.default_rng(3)
    choices = {**study.CHOICES, "parts": ([], ["nose"])}

    def guess(question: study.Question) -> Any:
        return choices[question.kind][int(rng.integers(2))]

    def wrong(question: study.Question) -> Any:
        return next(choice for choice in choices[question.kind] if choice != question.truth)

    many = [answers(key, tmp_path / f"{i}.json", guess) for i in range(8)]
    found = rates(study.score(output / study.KEY, many))
    assert found["turing: all"]["against_chance"] == found["same-person: Real"]["against_chance"] == "at"
    assert abs(found["turing: all"]["d_prime"]) < 0.6
    found = rates(study.score(output / study.KEY, [answers(key, tmp_path / "w.json", wrong)]))
    assert found["turing: all"]["against_chance"] == "below"
    assert found["turing: all"]["value"] == 0


def test_unanswered_questions_do_not_count(made: tuple[Path, study.Key], tmp_path: Path) -> None:
    output, key = made
    turing = [q for q in key.questions if q.kind == "turing"][:10]
    rows = [{"question": q.id, "answer": "photo"} for q in turing]
    report = study.score(output / study.KEY, [answers(key, tmp_path / "a.json", answers=rows)])
    row = rates(report)["turing: all"]
    assert row["questions"] == row["answers"] == 10
    assert row["value"] == sum(q.truth == "photo" for q in turing) / 10
    assert report["parts"] == []


def test_parts_are_counted_as_the_paper_counts_them_and_against_the_truth_where_it_is_known(tmp_path: Path) -> None:
    asked = [
        study.Question(id=str(i), kind="parts", group="parts", truth={"nose": i < 4} if i < 8 else {}, pictures=[])
        for i in range(10)
    ]
    key = study.Key(study="s", seed="", side=64, questions=asked)
    (tmp_path / "key.json").write_text(key.model_dump_json())
    said = {str(i): ["nose", "eyes"] if i in (0, 1, 2, 9) else [] for i in range(10)}
    file = answers(key, tmp_path / "a.json", lambda q: said[q.id])
    found = {row["part"]: row for row in study.score(tmp_path / "key.json", [file])["parts"]}
    assert {part: row["value"] for part, row in found.items()} == {
        "hairline": 0,
        "eyebrows": 0,
        "eyes": 0.4,
        "nose": 0.4,
        "lips": 0,
    }
    assert [found[part]["paper"] for part in found] == [0.12, 0.34, 0.67, 0.38, 0.59]
    assert found["nose"]["named_when_changed"]["value"] == 0.75
    assert found["nose"]["named_when_kept"]["value"] == 0
    assert found["eyes"]["named_when_changed"] is None


def interval(right: np.ndarray) -> study.Rate:
    found = study.interval(right.astype(float))
    assert found is not None
    return found


def test_the_interval_of_one_participant_is_that_of_their_questions() -> None:
    found = interval(np.array([[1.0] * 60 + [0.0] * 40]))
    # A normal approximation nobody here wrote: 0.6 ± 1.96 sqrt(0.24 / 100)
    assert (found.low, found.high) == pytest.approx((0.504, 0.696), abs=0.015)


def test_participants_who_differ_widen_the_interval_however_many_questions_there_are() -> None:
    rng = np.random.default_rng(0)
    alike = (rng.random((10, 200)) < 0.7).astype(float)
    differ = (rng.random((10, 200)) < np.linspace(0.4, 1.0, 10)[:, None]).astype(float)
    one, other = interval(alike), interval(differ)
    assert one.high - one.low < 0.08
    assert other.high - other.low > 0.2


def test_the_interval_holds_the_truth_in_about_95_of_100_studies() -> None:
    rng = np.random.default_rng(1)
    held = []
    for _ in range(200):
        found = interval(rng.random((12, 40)) < 0.7)
        held.append(found.low <= 0.7 <= found.high)
    assert np.mean(held) >= 0.93


def test_d_prime_is_the_distance_of_hits_and_false_alarms() -> None:
    asked = [
        study.Question(id=str(i), kind="turing", group="x", truth="made" if i < 50 else "photo", pictures=[])
        for i in range(100)
    ]
    given: dict[str, Any] = {str(i): "made" if i % 50 < (42 if i < 50 else 8) else "photo" for i in range(100)}
    # z(0.84) - z(0.16) = 1.99, a little less by Hautus' correction
    assert study._d_prime(asked, [given], "made") == pytest.approx(1.95, abs=0.02)
    assert study._d_prime(asked[:50], [given], "made") is None


# --------------------------------------------------------------------------------------------------------- browser

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[Path], str]:
    """``browse(page)``: what the page has become when its scripts are done."""
    if BROWSER is None:
        pytest.skip("no chromium here")

    def look(page: Path) -> str:
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        return subprocess.run(
            [str(BROWSER), *options, "--virtual-time-budget=4000", "--dump-dom", page.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout

    return look


def driven(page: Path, script: str) -> Path:
    """A copy of the page with a script of the test's own, which the page's policy would not let run."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", (page / study.PAGE).read_text())
    file = page / "driven.html"
    file.write_text(text.replace("</body>", f"<script>{script}; document.title = text();</script></body>"))
    return file


@pytest.mark.slow
def test_in_a_browser_the_page_runs_under_its_own_policy(
    made: tuple[Path, study.Key], browse: Callable[[Path], str]
) -> None:
    assert '<strong id="count">72 questions</strong>' in browse(made[0] / study.PAGE)


@pytest.mark.slow
def test_in_a_browser_answers_are_given_kept_resumed_and_scored(
    made: tuple[Path, study.Key], browse: Callable[[Path], str], tmp_path: Path
) -> None:
    output = Path(shutil.copytree(made[0], tmp_path / "study"))
    press = "const press = (key) => document.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"
    half = browse(driven(output, f"{press}; at('start').click(); for (let i = 0; i < 30; i++) press('2')"))
    assert len(json.loads(half.split("<title>")[1].split("</title>")[0])["answers"]) == 30
    rest = (
        f"{press}; at('start').click(); press('ArrowLeft'); press('1');"
        "while (!at('ask').hidden && !ticks().length) press('2');"
        "while (!at('ask').hidden) {press('3'); press('5'); press('Enter')}"
    )
    dom = browse(driven(output, rest))
    saved = tmp_path / "answers.json"
    saved.write_text(dom.split("<title>")[1].split("</title>")[0])
    assert "You answered all 72 questions." in dom
    report = study.score(output / study.KEY, [saved])
    assert report["answers"] == 72
    found = {row["part"]: row["value"] for row in report["parts"]}
    assert found == {"hairline": 0, "eyebrows": 0, "eyes": 1, "nose": 0, "lips": 1}
    given = {row["question"]: row["answer"] for row in json.loads(saved.read_text())["answers"]}
    said = [given[q.id] for q in made[1].questions if q.kind == "same-person"]
    assert said == ["different"] * 5 + ["same"] + ["different"] * 18
