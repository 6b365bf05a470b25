"""Claims of ``facecrowd bench scale``: what is measured, that it is the project's own path, and what is made of it."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facecrowd.jobs import bench_scale as scale
from facecrowd.jobs import scale_page as page
from facecrowd.pipeline import ray_data, steps
from facecrowd.pipeline.errors import ConfigError
from facecrowd.stages.decode import decode
from facecrowd.stages.judge import Judge

TINY = scale.Settings(width=64, micro_batch=64, cpus=2, store=80 * 2**20)


def a_size(images: int, **cpu: float) -> dict[str, Any]:
    """Figures of a release in which each stage took these CPU seconds."""
    row = {"wall_s": 1.0, "read_mb": 1.0, "written_mb": 2.0, "driver_mb": 100.0, "worker_mb": 50.0, "private_mb": 200.0}
    return {
        "images": images,
        "people": images // 10,
        "merged": 0,
        "classes": images // 50,
        "released": images,
        "rank1": {"originals": 0.2},
        "wall_s": 10.0,
        "cpu_s": sum(cpu.values()),
        "workspace_mb": images * 0.004,
        "release_mb": images * 0.001,
        "peak_mb": {"driver": 100.0 + images * 0.002, "worker": 50.0, "private": 200.0},
        "store_mb": 1.0,
        "spilled_mb": 0.0,
        "stages": {name.replace("_", " "): {**row, "cpu_s": seconds} for name, seconds in cpu.items()},
        "line": [],
    }


def figures(*sizes: dict[str, Any]) -> dict[str, Any]:
    return {
        "settings": {**vars(scale.Settings()), "width": 128},
        "machine": {"cores": 2, "processor": "one", "memory_gb": 24, "load_before": 0.5},
        "versions": {"python": "3.11"},
        "images": {str(one["images"]): one for one in sizes},
        "rows": {},
        "stream": {},
        "kernels": {},
    }


# ------------------------------------------------------------------------------------------------------------- faces


def test_a_photo_follows_from_its_name_and_shows_its_person() -> None:
    names = [scale.named(i)[0] for i in (0, 1, 10, 11)]
    assert names == ["00000000/00.jpg", "00000000/01.jpg", "00000001/00.jpg", "00000001/01.jpg"]
    photos = [scale.picture(name) for name in names]
    assert photos == [scale.picture(name) for name in names]
    assert len(set(photos)) == 4
    assert decode(photos[0]).shape == (64, 64, 3)
    found = scale.Project(128)({"image": photos})["embedding"]
    alike = found @ found.T
    assert np.diag(alike) == pytest.approx(1, abs=1e-5)
    assert min(alike[0, 1], alike[2, 3]) > 0.9
    assert np.abs(alike[:2, 2:]).max() < 0.4


def test_faces_do_not_depend_on_how_the_work_is_cut() -> None:
    def all_of(size: int) -> list[bytes]:
        source = scale.Drawn(scale.Listed(70, size))
        return [image for part in range(-(-70 // size)) for image in source(part)["image"]]

    assert all_of(7) == all_of(64)
    assert len(all_of(64)) == 70


def test_only_what_sees_is_left_out_of_a_step() -> None:
    config = scale.configs.Detect()
    made = (*steps.average_stages(config), *steps.shown(config, 92))
    average = ray_data.Step("average", lambda part: {}, made, lambda p, b: 0)
    stages = scale._without_networks(average, 64).stages
    assert [stage.name for stage in stages] == ["average", "encode", "project"]
    assert [type(stage) for stage in average.stages if stage.name == "judge"] == [Judge]
    assert scale._without_networks(average, 64).sink is average.sink


# ------------------------------------------------------------------------------------------------------------- stages


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_what_a_stage_does_inside_another_counts_for_the_inner_alone() -> None:
    stages = scale.Stages(scale.Usage())
    inner = stages.within("inner", lambda: burn(0.3))
    with stages.stage("outer"):
        burn(0.1)
        inner()
        burn(0.1)
    found = stages.rows()
    assert found["inner"]["cpu_s"] == pytest.approx(0.3, abs=0.1)
    assert found["outer"]["cpu_s"] == pytest.approx(0.2, abs=0.1)
    assert found["other"]["cpu_s"] < 0.15


def test_bytes_are_those_that_went_through_system_calls(tmp_path: Path) -> None:
    stages = scale.Stages(scale.Usage())
    with stages.stage("write"):
        (tmp_path / "file").write_bytes(bytes(5_000_000))
    with stages.stage("read"):
        (tmp_path / "file").read_bytes()
    found = stages.rows()
    assert found["write"]["written_mb"] == pytest.approx(5, abs=0.2)
    assert found["read"]["read_mb"] == pytest.approx(5, abs=0.2)
    assert found["read"]["written_mb"] < 0.2


# -------------------------------------------------------------------------------------------------------------- page


def test_an_exponent_is_the_power_by_which_seconds_grow() -> None:
    sizes = [10**4, 10**5, 10**6]
    assert page.exponents(sizes, [3e-9 * n**2 for n in sizes]) == pytest.approx([2, 2])
    assert page.exponents(sizes, [7e-5 * n for n in sizes]) == pytest.approx([1, 1])
    assert page.exponents(sizes, [5.0, 5.0, 5.0]) == pytest.approx([0, 0])
    assert math.isnan(page.exponents(sizes[:2], [0.0, 1.0])[0])
    assert page.exponents(sizes[:1], [1.0]) == []


def test_stages_that_grow_faster_than_the_images_are_named_with_the_reason() -> None:
    sizes = [a_size(n, embed=n * 1e-3, same_person=n**2 * 1e-8, audit=n**2 * 1e-12) for n in (10**5, 10**6)]
    found = figures(*sizes)
    # The audit's square is a millionth of the work, and not judged.
    assert page.steeper(found) == ["same person"]
    told = page.markdown(found)
    assert "- `same person` compares everybody with everybody" in told
    assert "- `audit`" not in told
    linear = figures(*(a_size(n, embed=n * 1e-3) for n in (10**5, 10**6)))
    assert "Every stage that takes 1 % of the time is linear" in page.markdown(linear)


def test_what_is_ahead_is_in_proportion_but_for_who_is_compared_with_whom() -> None:
    found = figures(
        a_size(10**5, embed=100.0, write=10.0, same_person=1.0, rank_1=3.0),
        a_size(10**6, embed=1000.0, write=100.0, same_person=100.0, rank_1=30.0),
    )
    ahead = page.outlook(found, 10**8)
    assert ahead["core_s"]["own"] == pytest.approx(1e-3)
    assert ahead["methods"]["k-same, averages"]["core_hours"] == pytest.approx(1e5 / 3600)
    # 1e5 core-seconds are less than a node of 32 cores has in a day.
    assert ahead["methods"]["k-same, averages"]["nodes"] == 1
    hours = ahead["driver_hours"]
    assert hours["write"] == pytest.approx(100 * 100 / 3600)
    # Embeddings of 512 numbers in place of 128.
    assert hours["rank 1"] == pytest.approx(30 * 100 * 4 / 3600)
    assert hours["same person"] == pytest.approx(100 * 100**2 * 4 / 3600)
    assert ahead["driver_mb_per_million"] == pytest.approx(2000)
    assert ahead["kb_per_image"]["workspace"] == pytest.approx(4)


def test_real_networks_count_once_a_photo_and_judges_once_a_class() -> None:
    found = figures(a_size(10**6, embed=1000.0))
    ms = {"read": 1.0, "detect": 10.0, "align": 1.0, "embed": 6.0, "crop": 2.0}
    found["kernels"] = {
        "photos": 200,
        "size": "640×480",
        "detector": "d",
        "recogniser": "r",
        "crop_kb": 20.0,
        "rendered_kb": 10.0,
        "cpu_ms": {**ms, "average": 0.5, "encode": 5.0, "judge": 45.0},
    }
    ahead = page.outlook(found)
    assert ahead["core_s"]["eyes"] == pytest.approx(0.020)
    assert ahead["core_s"]["shown"] == pytest.approx(0.0005 + 0.050 / 50)
    assert ahead["kb_per_image"]["workspace_real"] == pytest.approx(34)
    assert "detect 10.00" in page.markdown(found)


# --------------------------------------------------------------------------------------------------------- the command


def test_what_the_file_holds_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, Any]] = []

    def child(what: str, images: Any, *_: Any) -> Any:
        measured.append((what, images))
        if what == "stream":
            return {str(n): {"images": n} for n in images}
        return a_size(images, embed=1.0) if what == "release" else {"cpu_ms": {}}

    def table(count: int, folder: Path) -> Any:
        measured.append(("table", count))
        return {"runs": []}

    monkeypatch.setattr(scale, "_child", child)
    monkeypatch.setattr(scale, "_table", table)
    file = tmp_path / "new" / "scale.json"
    scale.bench_scale([1000], [5000], file, settings=TINY, photos=0)
    assert measured == [("release", 1000), ("table", 5000)]
    found = scale.bench_scale([1000, 200], [5000], file, settings=TINY, stream=640, photos=10)
    assert measured[2:] == [("release", 200), ("stream", [64, 640]), ("kernels", 10)]
    assert list(found["images"]) == ["200", "1000"]
    assert json.loads(file.read_text()) == found
    scale.bench_scale([1000, 200], [5000], file, settings=TINY, stream=640, photos=10)
    assert len(measured) == 5


def test_a_file_of_other_settings_or_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "scale.json"
    scale.bench_scale([], [], file, settings=TINY, photos=0)
    file.write_text(json.dumps({"settings": {}}))
    with pytest.raises(ConfigError, match="name another file"):
        scale.bench_scale([], [], file, settings=TINY, photos=0)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="not a file of this benchmark"):
        scale.bench_scale([], [], file, settings=TINY, photos=0)


@pytest.mark.slow
def test_a_release_without_networks_is_measured_stage_by_stage(tmp_path: Path) -> None:
    found = scale.bench_scale([600], [], tmp_path / "scale.json", settings=TINY, photos=0, folder=tmp_path / "scratch")
    one = found["images"]["600"]
    assert set(one["stages"]) == set(page.ORDER)
    assert (one["people"], one["classes"], one["released"]) == (60, 12, 600)
    # The bound is exact where everybody has as many photos: one face for a class of five.
    assert one["rank1"]["originals"] == pytest.approx(1 / scale.K, abs=0.01)
    assert one["cpu_s"] >= 0.8 * sum(row["cpu_s"] for row in one["stages"].values())
    assert one["spilled_mb"] == 0
    assert one["release_mb"] > 0.05
    assert not list((tmp_path / "scratch").iterdir())
    told = page.markdown(found)
    assert all(f"`{name}`" in told for name in page.ORDER)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_faces_however_slow_their_sink(tmp_path: Path) -> None:
    # 8 kB an embedding: 20,000 faces are twice and a half the store.
    settings = scale.Settings(width=2048, micro_batch=64, cpus=2, store=80 * 2**20, slow=0.05)
    found = scale._child("stream", [5_000, 20_000], settings, tmp_path)
    few, many = found["5000"], found["20000"]
    assert many["through_store_mb"] > 2 * many["store_size_mb"]
    assert many["wall_s"] > 20_000 / 64 * settings.slow
    assert 0 < many["store_mb"] < 0.6 * many["store_size_mb"]
    assert many["spilled_mb"] == 0
    for kind in ("worker", "driver"):
        assert many["peak_mb"][kind] < few["peak_mb"][kind] + 40
        first, second = many[f"{kind}_mb_by_half"]
        assert second < first + 20
