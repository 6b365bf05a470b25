"""Contact sheets: a row per person, a column per method, captions on top."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from facecrowd.jobs import renditions, sheet
from facecrowd.jobs.labelled import Faces
from facecrowd.jobs.renditions import Networks
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.stages.decode import decode

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 64


def tiles(picture: np.ndarray, columns: int) -> np.ndarray:
    """The pictures of a sheet with captions on top: (rows, columns, 64, 64, 3)."""
    below = picture[sheet.CAPTION :]
    return below.reshape(-1, SIDE, columns, SIDE, 3).swapaxes(1, 2)


def test_a_sheet_has_a_row_per_person_and_a_column_per_method(
    networks: Networks, labelled: Faces, tmp_path: Path
) -> None:
    columns = ["original", "reconstruction", "deepblur:0.5", "deepblur:100", "k-same:40", "inpaint", "inpaint:average"]
    made = sheet.sheet(networks, labelled, 3, columns, steps=1, tile=SIDE, work=tmp_path)
    assert made.dtype == np.uint8
    assert made.shape == (sheet.CAPTION + 3 * SIDE, len(columns) * SIDE, 3)
    shown = tiles(made, len(columns)).astype(float)
    people = renditions.spread(labelled, 3)
    for row, crop in enumerate(people.crop):
        wanted = cv2.resize(decode(crop), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        assert np.array_equal(shown[row, 0], wanted)
        assert abs(shown[row, 1] - wanted).mean() < 20
    # sigma 100 is the average face, and a class of everybody is one face: the same in every row.
    for column in (3, 4):
        assert np.ptp(shown[:, column], axis=0).max() <= 3
    assert np.ptp(shown[:, 0], axis=0).max() > 50


def test_people_of_one_class_are_shown_by_one_face(networks: Networks, labelled: Faces, tmp_path: Path) -> None:
    made = tiles(sheet.sheet(networks, labelled, 40, ["k-same"], k=20, tile=SIDE, work=tmp_path), 1)
    distinct = {tile.tobytes() for tile in made[:, 0]}
    assert len(distinct) == 2


def test_a_face_smaller_than_k_same_asks_is_refused(networks: Networks, labelled: Faces, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only 40 people"):
        sheet.sheet(networks, labelled, 2, ["k-same:41"], work=tmp_path)


@pytest.mark.parametrize("column", ["blurred", "deepblur", "deepblur:0", "deepblur:x", "k-same:1", "k-same:x", ""])
def test_a_column_that_there_is_not_is_refused(column: str) -> None:
    with pytest.raises(ConfigError, match=r"deepblur|k is a whole number"):
        sheet.checked(Path("sheet.png"), ["original", column])


def test_a_sheet_is_written_as_png_without_loss_or_as_jpeg(tmp_path: Path) -> None:
    picture = np.kron(np.random.default_rng(0).integers(0, 256, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    sheet.write(picture, tmp_path / "new" / "sheet.png")
    assert np.array_equal(cv2.imread(str(tmp_path / "new" / "sheet.png"))[..., ::-1], picture)
    sheet.write(picture, tmp_path / "sheet.JPG")
    assert abs(decode((tmp_path / "sheet.JPG").read_bytes()).astype(int) - picture).mean() < 15
    with pytest.raises(ConfigError, match="png"):
        sheet.checked(tmp_path / "sheet.gif", ["original"])


def test_captions_stand_on_paper_beside_or_above_the_pictures_and_fit() -> None:
    black = [[np.zeros((32, 32, 3), np.uint8)] * 2] * 3
    left = sheet.draw(black, 64, left=["a", "long caption that would not fit", ""])
    assert left.shape == (3 * 64, 3 * 64, 3)
    assert (left[:, 64:] == 0).all()
    assert (left[:, 60:64] == sheet.PAPER).all()
    assert left[:64, :64].min() < 128
    assert left[64:128, :64].min() < 200
    assert (left[128:, :64] == sheet.PAPER).all()
    top = sheet.draw(black, 64, top=["a", "b"])
    assert top.shape == (3 * 64 + sheet.CAPTION, 2 * 64, 3)
    assert top[: sheet.CAPTION].min() < 128
    assert (top[sheet.CAPTION :] == 0).all()
