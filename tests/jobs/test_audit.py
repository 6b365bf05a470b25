"""Claims of ``facecrowd audit``: a release is checked from its files; what was planted in it is found, and said."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from facecrowd.jobs import attackers
from facecrowd.jobs import audit as audits
from facecrowd.jobs.cli import app
from facecrowd.jobs.figures import Figure
from facecrowd.pipeline import ray_data
from facecrowd.pipeline.errors import ConfigError
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.publish import MODIFIED
from facecrowd.pipeline.release import Execute, Outcome
from facecrowd.pipeline.schema import LINK
from facecrowd.pipeline.storage import Workspace
from facecrowd.stages import models

Tree = Callable[[Path | str], dict[str, bytes]]


@pytest.fixture
def release(released: Outcome, tmp_path: Path) -> Path:
    """A copy of a release, times and all."""
    return Path(shutil.copytree(released.release.root, tmp_path / "release"))


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch, in_process: Execute) -> None:
    monkeypatch.setattr(ray_data, "run", in_process)
    monkeypatch.setattr(ray_data, "session", lambda *_: _Nothing())


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def audit(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["audit", *map(str, arguments), "--depth", "checks", "--quiet"])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def stamp(release: Path) -> None:
    for file in [*release.rglob("*"), release]:
        os.utime(file, (MODIFIED, MODIFIED))


def relist(release: Path) -> None:
    """Make manifest and card agree with the files again, as somebody would who repairs a release by hand."""
    table = pq.read_table(release / "manifest.parquet")
    rows = table.to_pylist()
    for row in rows:
        row["sha256"] = hashlib.sha256((release / row["file"]).read_bytes()).hexdigest()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), release / "manifest.parquet")
    card = json.loads((release / "metadata.json").read_text())
    for item in card["distribution"]:
        if "sha256" in item:
            item["sha256"] = hashlib.sha256((release / item["contentUrl"]).read_bytes()).hexdigest()
    (release / "metadata.json").write_text(json.dumps(card))
    stamp(release)


def test_a_release_as_it_was_published_passes(release: Path) -> None:
    result = audit(release)
    assert result.exit_code == 0, result.output
    assert "12 images, 5 files: all as published" in result.stdout
    assert "figures: recorded when the release was made; give --workspace to measure again" in result.stdout


def test_with_the_workspace_the_figures_are_measured_again_and_agree(
    released: Outcome, release: Path, tmp_path: Path, without_ray: None
) -> None:
    workspace = shutil.copytree(released.workspace.root, tmp_path / "workspace")
    result = audit(release, "--workspace", workspace, "--json", tmp_path / "audit.json")
    assert result.exit_code == 0, result.output
    assert "measured again, on the pixels of the released files" in result.stdout
    assert json.loads((tmp_path / "audit.json").read_text()) == released.audit


@pytest.mark.parametrize(
    "changes",
    [
        {"output": "photo"},
        {"method.name": "blur", "policy.k": None},
        {"method.surrogates_per_subject": 3},
        {"detect.recogniser": "sface"},
    ],
)
def test_every_kind_of_release_can_be_measured_again(
    tmp_path: Path,
    settings: Callable[..., Any],
    make_release: Callable[..., Outcome],
    without_ray: None,
    changes: dict[str, Any],
) -> None:
    if "detect.recogniser" in changes:
        try:
            models.path(changes["detect.recogniser"])
        except models.Unobtainable as error:
            pytest.skip(f"the recogniser cannot be had here: {error}")
    outcome = make_release(settings(tmp_path / "release", **changes))
    result = audit(tmp_path / "release", "--workspace", outcome.workspace.root, "--json", tmp_path / "audit.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "audit.json").read_text()) == outcome.audit


def test_a_workspace_that_did_not_make_it_is_refused(release: Path, tmp_path: Path, released: Outcome) -> None:
    result = audit(release, "--workspace", tmp_path / "nowhere")
    assert (result.exit_code, result.stderr) == (
        2,
        f"facecrowd: workspace {tmp_path}/nowhere: no run.key in it; is it a facecrowd workspace?\n",
    )
    (tmp_path / "other").mkdir()
    shutil.copy(released.workspace.at("run.key"), tmp_path / "other")
    result = audit(release, "--workspace", tmp_path / "other")
    assert result.exit_code == 2
    assert "did not make this release" in result.stderr


# ---------------------------------------------------------------------------------------------------- what is planted


def image_of(release: Path) -> Path:
    return sorted((release / "images").iterdir())[0]


def put_exif_in(release: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    out = io.BytesIO()
    Image.open(image_of(release)).save(out, "JPEG", exif=exif)
    image_of(release).write_bytes(out.getvalue())
    stamp(release)


def put_an_original_in(release: Path, photos: Path) -> None:
    shutil.copy(next(photos.rglob("*.jpg")), image_of(release))
    stamp(release)


def change_the_policy(release: Path) -> None:
    report = json.loads((release / "audit.json").read_text())
    report["policy"]["k"] = 50
    (release / "audit.json").write_text(json.dumps(report))
    stamp(release)


@pytest.mark.parametrize("plant", [put_exif_in, put_an_original_in])
def test_a_changed_image_is_refused(release: Path, photos: Path, plant: Callable[..., None]) -> None:
    plant(*([release, photos] if plant is put_an_original_in else [release]))
    result = audit(release)
    assert result.exit_code == 2
    assert f"image {image_of(release).stem} is not what its manifest row says" in result.stderr


def test_a_changed_text_is_refused(release: Path) -> None:
    change_the_policy(release)
    result = audit(release)
    assert (result.exit_code, result.stderr) == (
        2,
        f"facecrowd: release {release}: 1 files are missing or changed, first audit.json\n",
    )


def test_a_missing_image_is_refused(release: Path) -> None:
    image_of(release).unlink()
    result = audit(release)
    assert result.exit_code == 2
    assert "an image of the manifest is missing" in result.stderr


@pytest.mark.parametrize("card", [b"", b"no json", b"[]", b'{"distribution": 3}', b"{}"])
def test_a_card_that_is_none_is_refused(release: Path, card: bytes) -> None:
    (release / "metadata.json").write_bytes(card)
    result = audit(release)
    assert result.exit_code == 2
    assert "metadata.json is not the card of a release" in result.stderr


def test_a_folder_without_its_card_is_no_release(release: Path, tmp_path: Path) -> None:
    (release / "metadata.json").unlink()
    for folder in (release, tmp_path / "nowhere"):
        result = audit(folder)
        assert result.exit_code == 2
        assert "no metadata.json in it, so this is no release, or one that was not finished" in result.stderr


def test_an_extra_file_is_a_leak(release: Path) -> None:
    (release / "images" / "notes.txt").write_text("p01 is …")
    stamp(release)
    result = audit(release)
    assert result.exit_code == 1
    assert "LEAK unexpected file in images/notes.txt" in result.stdout
    assert "NOT" in result.stdout.splitlines()[-1]


def test_exif_is_a_leak_even_where_somebody_made_the_hashes_agree(release: Path) -> None:
    put_exif_in(release)
    relist(release)
    result = audit(release)
    assert result.exit_code == 1
    assert f"LEAK metadata in {image_of(release).stem}: EXIF" in result.stdout


def test_a_release_repaired_by_hand_is_not_the_workspaces(release: Path, released: Outcome, photos: Path) -> None:
    put_an_original_in(release, photos)
    relist(release)
    result = audit(release, "--workspace", released.workspace.root)
    assert result.exit_code == 2
    assert "did not make this release, or the release was changed since" in result.stderr


def test_a_copy_with_times_of_its_own_passes_and_says_so(release: Path) -> None:
    os.utime(image_of(release), (1_700_000_000, 1_700_000_000))
    result = audit(release)
    assert result.exit_code == 0, result.output
    assert "LEAK" not in result.stdout
    assert "note: 2 different modification times among the files, as a copy may have" in result.stdout


def without(release: Path, name: str) -> None:
    """Take a file out of the release and its card."""
    (release / name).unlink()
    card = json.loads((release / "metadata.json").read_text())
    card["distribution"] = [item for item in card["distribution"] if item.get("contentUrl") != name]
    (release / "metadata.json").write_text(json.dumps(card))


@pytest.mark.parametrize("name", ["manifest.parquet", "audit.json"])
def test_a_card_that_lists_no_manifest_or_audit_is_refused(release: Path, name: str) -> None:
    without(release, name)
    result = audit(release)
    assert (result.exit_code, result.stderr) == (
        2,
        f"facecrowd: release {release}: metadata.json lists no {name}, so this is no whole release\n",
    )


@pytest.mark.parametrize("table", [b"no table", None])
def test_a_manifest_that_is_none_is_refused(release: Path, table: bytes | None) -> None:
    if table is None:
        pq.write_table(pa.table({"x": [1]}), release / "manifest.parquet")
    else:
        (release / "manifest.parquet").write_bytes(table)
    card = json.loads((release / "metadata.json").read_text())
    for item in card["distribution"]:
        if item.get("contentUrl") == "manifest.parquet":
            item["sha256"] = hashlib.sha256((release / "manifest.parquet").read_bytes()).hexdigest()
    (release / "metadata.json").write_text(json.dumps(card))
    result = audit(release)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"facecrowd: release {release}: manifest.parquet ")


@pytest.mark.parametrize("command", ["audit", "compare"])
@pytest.mark.parametrize(
    "change",
    [
        lambda report: report.pop("counts"),
        lambda report: report.pop("requirements"),
        lambda report: report["counts"].clear(),
        lambda report: report.update(requirements=[{}]),
        lambda report: report.update(reidentification=3),
        lambda report: report.update(met="yes"),
    ],
)
def test_an_audit_that_is_none_is_refused(release: Path, command: str, change: Callable[[Any], Any]) -> None:
    report = json.loads((release / "audit.json").read_text())
    change(report)
    (release / "audit.json").write_text(json.dumps(report))
    relist(release)
    result = CliRunner().invoke(app, [command, str(release)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"facecrowd: release {release}: audit.json is not the audit of a release (")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"null", b"\xff"])
def test_an_audit_of_another_kind_is_refused(release: Path, content: bytes) -> None:
    (release / "audit.json").write_bytes(content)
    result = CliRunner().invoke(app, ["compare", str(release)])
    assert result.exit_code == 2
    assert "audit.json is not the audit of a release" in result.stderr


def test_an_audit_changes_nothing_in_the_release(release: Path, tree: Tree) -> None:
    before = tree(release)
    audit(release)
    assert tree(release) == before


def test_the_figures_are_the_lines(release: Path, tmp_path: Path) -> None:
    report, lines = audits.audit_release(str(release), None, audits.Progress(quiet=True))
    result = audit(release, "--json", tmp_path / "audit.json")
    assert json.loads((tmp_path / "audit.json").read_text()) == report
    assert result.stdout.splitlines() == lines


# ------------------------------------------------------------------------------------------------------------- report


@pytest.fixture
def owned(released: Outcome, release: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A release and its workspace, both copies."""
    return release, Path(shutil.copytree(released.workspace.root, tmp_path / "workspace"))


def look_alike(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sections that say a word each; which of them were measured."""
    seen: list[str] = []

    def section(name: str) -> Callable[..., Any]:
        def measured(self: Any) -> Any:
            seen.append(name)
            found = [Figure("identity" if name == "trained" else name, "rank1", "us", value=0.25, chance=0.1)]  # type: ignore[arg-type]
            return (found, attackers.CURVES.empty_table()) if name == "trained" else found

        return measured

    for name in audits.SECTIONS:
        monkeypatch.setattr(audits.Sections, name, section(name))
    return seen


@pytest.mark.usefixtures("without_ray")
def test_an_audit_writes_its_page_its_figures_and_its_tables(
    owned: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_alike(monkeypatch)
    release, workspace = owned
    report, _ = audits.audit_release(
        str(release), str(workspace), Progress(quiet=True), audits.Order(str(tmp_path / "audit"), "quick")
    )
    written = tmp_path / "audit"
    assert sorted(path.name for path in written.iterdir()) == sorted(audits.FILES)
    assert json.loads((written / "audit.json").read_text()) == json.loads(json.dumps(report))
    assert report["schema"] == audits.SCHEMA
    rows = pq.read_table(written / "figures.parquet").to_pylist()
    assert rows == report["figures"]
    assert len(rows) == len(audits.SECTIONS)
    sizes = pq.read_table(written / "classes.parquet")["subjects"].to_pylist()
    assert min(sizes) == report["classes"]["smallest"]
    assert sum(sizes) == report["counts"]["subjects_released"]
    assert "<html" in (written / "report.html").read_text()


@pytest.mark.usefixtures("without_ray")
def test_what_was_measured_is_not_measured_again(owned: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    release, workspace = owned
    seen = look_alike(monkeypatch)
    ask = (str(release), str(workspace), Progress(quiet=True))
    first, _ = audits.audit_release(*ask, audits.Order(depth="quick"))
    assert seen == list(audits.SECTIONS)
    again, _ = audits.audit_release(*ask, audits.Order(depth="quick"))
    assert seen == list(audits.SECTIONS)
    assert again["figures"] == first["figures"]
    audits.audit_release(*ask, audits.Order(depth="full"))
    assert seen == [*audits.SECTIONS, "trained"]


@pytest.mark.usefixtures("without_ray")
def test_a_snapshot_is_audited_wherever_its_release_is_now(owned: tuple[Path, Path]) -> None:
    release, workspace = owned
    before, _ = audits.audit_release(str(release), str(workspace), Progress(quiet=True))
    shutil.rmtree(release)
    (snapshot,) = Workspace(str(workspace)).snapshots(LINK)
    found, lines = audits.audit_snapshot(str(workspace), snapshot, Progress(quiet=True))
    assert found == {**before, "leaks": None}
    assert "no folder was scanned" in lines[0]
    with pytest.raises(ConfigError, match=f"which are: {snapshot}"):
        audits.audit_snapshot(str(workspace), 7, Progress(quiet=True))


@pytest.mark.usefixtures("without_ray")
def test_a_bound_that_an_attack_refutes_fails_the_audit(
    owned: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    look_alike(monkeypatch)
    p = [0.9, 0.001]
    tests = [Figure("identity", "p-value", "us", "originals", value=value) for value in p]
    monkeypatch.setattr(audits.Sections, "identity", lambda self: tests)
    release, workspace = owned
    ask = (str(release), str(workspace), Progress(quiet=True))
    report, _lines = audits.audit_release(*ask, audits.Order(depth="quick"))
    assert not report["met"]
    assert [r["name"] for r in report["requirements"] if not r["met"]] == ["p of the bound"]
    p[1] = 0.04  # one of two tests: chance alone makes one of twenty
    assert audits._refuted([Figure("identity", "p-value", value=value) for value in p]) is None


def test_without_the_workspace_the_page_says_what_was_not_measured(release: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["audit", str(release), "--quiet"])
    assert result.exit_code == 0, result.stderr
    report = json.loads((Path(f"{release}-audit") / "audit.json").read_text())
    missing = {row["what"] for row in report["not_measured"]}
    assert missing > set(audits.SECTIONS)
    assert any("copies" in what for what in missing)
    assert report["figures_origin"] == "recorded when the release was made"
    assert "nothing was measured again" in (Path(f"{release}-audit") / "report.html").read_text()
    assert report["figures"] == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--depth", "deep"], "--depth deep: none of checks, quick, full, paper"),
        (["--groups", "Mael"], "--groups: Mael is no attribute"),
        (["--snapshot", "1"], "give one of them"),
    ],
)
def test_an_audit_without_sense_is_refused(release: Path, arguments: list[str], why: str) -> None:
    result = CliRunner().invoke(app, ["audit", str(release), *arguments])
    assert (result.exit_code, why in result.stderr) == (2, True), result.stderr
