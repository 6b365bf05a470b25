"""What DeepBlur and inpainting share: how they are set up, and that one face's trouble is no other's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from facecrowd.stages.inversion import Search
from facecrowd.stages.searching import OUTPUTS, Searching, render_all

CROP = np.zeros((8, 8, 3), np.uint8)


def search(count: int) -> Search:
    """Of ``count`` faces, the last of which converged."""
    loss = torch.arange(2 * count).reshape(2, count).float()
    converged = torch.arange(count) == count - 1
    return Search(torch.zeros(count, 23, 512), loss, torch.zeros(2), torch.full((count,), 2), converged)


def render(rows: np.ndarray) -> tuple[np.ndarray, Search]:
    """Pictures that show their row."""
    return np.stack([np.full((4, 4, 3), row, np.uint8) for row in rows]), search(len(rows))


def test_every_face_is_rendered_in_its_place_at_most_so_many_at_once() -> None:
    seen: list[list[int]] = []

    def noted(rows: np.ndarray) -> Any:
        seen.append(rows.tolist())
        return render(rows)

    out = render_all("stage", {"crop": [CROP] * 5}, 2, noted)
    assert seen == [[0, 1], [2, 3], [4]]
    assert [picture[0, 0, 0] for picture in out["rendered"]] == [0, 1, 2, 3, 4]
    assert out["search_loss"].tolist() == [2, 3, 2, 3, 1]
    assert out["search_steps"].tolist() == [2] * 5
    assert out["converged"].tolist() == [False, True, False, True, True]
    assert set(OUTPUTS) < set(out)


def test_a_bad_crop_costs_no_other_and_rows_in_are_rows_out() -> None:
    batch = {
        "crop": [CROP, None, CROP[:4], CROP.astype(float), CROP, CROP],
        "status": np.array(["ok"] * 5 + ["no_face"], dtype=object),
        "reason": np.array([""] * 5 + ["nothing found"], dtype=object),
    }
    out = render_all("stage", batch, 16, render)
    assert list(out["status"]) == ["ok", "failed", "failed", "failed", "ok", "no_face"]
    assert out["reason"][1] == "stage: ValueError: a crop is (S, S, 3) uint8, not NoneType"
    assert out["reason"][5] == "nothing found"
    assert [picture is None for picture in out["rendered"]] == [False, True, True, True, False, True]
    assert np.isfinite(out["search_loss"]).tolist() == [True, False, False, False, True, False]


def test_an_error_fails_those_who_were_rendered_together_and_says_so() -> None:
    def broken(rows: np.ndarray) -> Any:
        if 2 in rows:
            raise RuntimeError("no memory")
        return render(rows)

    out = render_all("stage", {"crop": [CROP] * 5}, 2, broken)
    assert list(out["status"]) == ["ok", "ok", "failed", "failed", "ok"]
    assert out["reason"][3] == "stage: RuntimeError: no memory"
    assert out["rendered"][3] is None


def test_a_face_that_was_not_searched_has_no_loss() -> None:
    out = render_all("stage", {"crop": [CROP]}, 1, lambda rows: (render(rows)[0], None))
    assert list(out["status"]) == ["ok"]
    assert np.isnan(out["search_loss"]).all()
    assert out["search_steps"].tolist() == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"size": 200}, "size is 200"), ({"steps": -1}, "not be negative"), ({"at_once": 0}, "at least 1 face")],
)
def test_settings_that_make_no_sense_are_refused_before_work(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Searching(**change)  # type: ignore[arg-type]


def test_a_search_is_on_a_cpu_in_float32_unless_asked_otherwise() -> None:
    assert (Searching().device, Searching().half, Searching().at_once) == ("cpu", False, 1)
