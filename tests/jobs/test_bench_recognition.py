"""Claims of ``facecrowd bench recognition``, at a small size."""

from __future__ import annotations

import json

import pytest

from facecrowd.jobs.bench_recognition import Size, bench_recognition, measured, show

SMALL = Size(probes=3000, subjects=400, photos=2, dim=64, noise=0.8, impostor_pairs=10**5)


def test_it_measures_in_a_process_of_its_own_and_says_what_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench_recognition(SMALL)
    json.dumps(found)
    assert found["gflop"] == round(2 * 3000 * 800 * 64 / 1e9)
    # The peak that is accounted to a process holds what its parent had when it was forked.
    assert found["peak_mib"] > 50
    assert 10**5 <= found["impostor_pairs"] < 1.3e5
    assert found["all_impostor_pairs"] == 3000 * 399
    assert [aim["text"] for aim in found["aims"]] == ["minutes", "GiB", "impostor pairs"]
    show(found)
    printed = capsys.readouterr().out
    assert f"rank 1: {found['rank1']['per_subject']:.4f}" in printed
    assert "TAR at FAR 0.001" in printed
    assert "aim 100,000,000: missed" in printed


def test_the_seed_makes_the_people_so_figures_repeat() -> None:
    timed = {"seconds", "making_s", "product_s", "gflop_per_s", "product_gflop_per_s", "peak_mib"}
    first, second = ({k: v for k, v in measured(SMALL).items() if k not in timed} for _ in range(2))
    assert first == second
    assert 0.5 < first["rank1"]["per_subject"] < 1
    assert first["chance"][1] == pytest.approx(1 / 400)
