"""Methods are compared on the same photos, each as it is named, attacked alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from facecrowd.jobs import audit as audits
from facecrowd.jobs.compare import ALL, METHODS, Order, attacked, chosen, methods, settings, side_by_side, tables
from facecrowd.jobs.figures import Figure
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.errors import ConfigError, InputError, ReleaseError
from facecrowd.pipeline.progress import Progress

QUIET = Progress(quiet=True)


@pytest.fixture
def people_folder(people: list[Path], tmp_path: Path) -> Path:
    """Four people with 3 photos each, one with 1."""
    for person, count in zip(people[:5], (3, 3, 3, 3, 1), strict=True):
        (tmp_path / "people" / person.name).mkdir(parents=True)
        for photo in sorted(person.glob("*.jpg"))[:count]:
            shutil.copy(photo, tmp_path / "people" / person.name)
    return tmp_path / "people"


@pytest.mark.parametrize("method", [*METHODS, *ALL])
def test_every_method_is_a_config_that_a_release_takes(method: str, tmp_path: Path) -> None:
    config = settings(Order("photos", tmp_path), method)
    assert config.workspace.path == str(tmp_path / "workspace")
    assert config.release.path == str(tmp_path / method.replace(":", "-"))


def test_the_number_behind_a_method_sets_what_it_is_named_for(tmp_path: Path) -> None:
    order = Order("photos", tmp_path)
    assert settings(order, "k-same:10").policy.k == 10
    assert settings(order, "deepblur:0.5").method.latent_sigma == 0.5
    assert settings(order, "blur:4").method.sigma == 4
    assert settings(order, "tip-im:7").perturb.steps == 7


def test_keys_behind_further_colons_set_the_config(tmp_path: Path) -> None:
    perturb = settings(Order("photos", tmp_path), "tip-im:7:perturb.targets=2:perturb.bound=8").perturb
    assert (perturb.steps, perturb.targets, perturb.bound) == (7, 2, 8)


@pytest.mark.parametrize(
    "method", ["bluur", "mask:3", "blur:much", "k-same:", "blur:method.sigmas=3", "blur:method.sigma=-1"]
)
def test_a_method_without_sense_is_refused_before_anything_is_made(method: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--methods"):
        Order("photos", tmp_path, methods=("blur", method))


def test_people_have_as_many_photos_as_are_asked_for(people_folder: Path, tmp_path: Path) -> None:
    photos = chosen(Order(str(people_folder), tmp_path / "out", people=3, photos=2))
    by = [photo.subject for photo in photos]
    assert len(by) == 6
    assert {by.count(person) for person in by} == {2}
    assert photos == chosen(Order(str(people_folder), tmp_path / "out", people=3, photos=2))
    assert len(chosen(Order(str(people_folder), tmp_path / "out", people=9, photos=3))) == 12
    with pytest.raises(InputError, match="fewer than two people with 4 photos"):
        chosen(Order(str(people_folder), tmp_path / "out", photos=4))


def test_each_method_releases_the_same_photos_and_is_attacked_alike(
    people_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Any, model_folder: str | None
) -> None:
    made = releases.release
    monkeypatch.setattr(releases, "release", lambda prepared, progress: made(prepared, progress, in_process))
    asked: list[tuple[str, audits.Order]] = []

    def attacked(url: str, workspace: str, progress: Progress, order: audits.Order) -> tuple[dict[str, Any], list[str]]:
        asked.append((Path(url).name, order))
        figures = [
            Figure("identity", "rank1", "sface", "originals", value=0.5),
            Figure("trained", "top1", "VGG16", "T1", value=0.25),
        ]
        return {"figures": [one.as_dict() for one in figures]}, []

    monkeypatch.setattr(audits, "audit_release", attacked)
    output = tmp_path / "out"
    order = Order(str(people_folder), output, ("mask", "blur:4"), 3, 2, models=model_folder, depth="quick", faces=50)
    found = methods(order, QUIET)
    assert [name for name, _ in asked] == ["mask", "blur-4"]
    assert {(one.depth, one.faces) for _, one in asked} == {("quick", 50)}
    assert asked[1][1].baselines == (f"{output / 'mask'}-audit",)
    counts = [len(list((output / name / "images").rglob("*.jpg"))) for name in ("mask", "blur-4")]
    assert counts == [6, 6]
    assert (output / "photos").stat().st_mode & 0o077 == 0
    assert (output / "compared.md").read_text() == tables(found) + "\n"
    assert "| mask | 50.0% |" in tables(found)
    # Done is done: a comparison that goes on makes no release twice.
    monkeypatch.setattr(releases, "release", lambda prepared, progress: made(prepared, progress, None))
    methods(order, QUIET)
    with pytest.raises(ConfigError, match="is not compared now"):
        methods(Order(str(people_folder), output, ("mask",), 2, 2, models=model_folder), QUIET)


def test_a_figure_that_was_not_measured_is_a_dash_and_one_that_never_was_no_column() -> None:
    psnr, none = Figure("utility", "psnr", value=20.123), Figure("utility", "fid", note="not at hand")
    ssim = Figure("utility", "ssim", value=0.5)
    lines = side_by_side({"blur": [psnr, none], "mask": [ssim, none]}).splitlines()
    assert lines[0] == "| method | PSNR | SSIM |"
    assert lines[2:4] == ["| blur | 20.1 | – |", "| mask | – | 0.5 |"]


def test_audits_beside_releases_are_put_side_by_side(tmp_path: Path) -> None:
    figures = [Figure("trained", "top1", "VGG16", "T1", value=0.25), Figure("utility", "psnr", value=21.0)]
    (tmp_path / "blur-8-audit").mkdir()
    report = {"figures": [one.as_dict() for one in figures]}
    (tmp_path / "blur-8-audit" / "audit.json").write_text(json.dumps(report))
    found = attacked([f"{tmp_path}/blur-8/", str(tmp_path / "mask")])
    assert found == {"blur-8": figures}
    said = side_by_side(found)
    assert "| method | PSNR |" in said
    assert "| blur-8 | 21 |" in said
    assert "| blur-8 | 0.250 (0.151) |" in said
    (tmp_path / "blur-8-audit" / "audit.json").write_text("{}")
    with pytest.raises(ReleaseError, match="is not the audit"):
        attacked([str(tmp_path / "blur-8")])
