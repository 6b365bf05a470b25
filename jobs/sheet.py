"""``facecrowd sheet``: what each method makes of some people's faces, side by side in one picture with captions.

The picture in the docs is made by ``facecrowd sheet --data jobs/faces --output docs/images/generator.jpg``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from facecrowd.jobs import renditions
from facecrowd.jobs.labelled import Faces
from facecrowd.jobs.renditions import SIDE
from facecrowd.jobs.translations import Makers, planned
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.stages import inversion, regions
from facecrowd.stages.attributes import ATTRIBUTES
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode

TILE = 128
PARTS = ("1", "2", "3", "4", "adaptive")
QUALITY = 88
CAPTION = 22
"""Height of a line of captions, in pixels."""

INK, PAPER = (40, 40, 40), 255
FONT = cv2.FONT_HERSHEY_SIMPLEX

COLUMNS = (
    "original",
    "reconstruction",
    "deepblur:0.5",
    "deepblur:1",
    "deepblur:2",
    "deepblur:5",
    "deepblur:100",
    "k-same",
    "inpaint",
)
TRANSLATED = ("flip", "planned", "heatmap", "parts")
"""Columns of translators: an attribute turned round, a class's attributes, what ties a face to its identity, and parts
obfuscated."""
SUFFIXES = (".png", ".jpg", ".jpeg")


def checked(output: Path, columns: Sequence[str]) -> None:
    """Raises ConfigError for a column or a kind of picture that there is not."""
    if output.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--output {output}: a sheet is a .png or a .jpg")
    if not columns:
        raise ConfigError("--columns names none")
    for column in columns:
        name, _, value = column.partition(":")
        if name == "k-same":
            if value and (not value.isdecimal() or int(value) < 2):
                raise ConfigError(f"--columns {column}: k is a whole number of 2 or more")
        elif name in TRANSLATED:
            if (name == "flip" and value not in ATTRIBUTES) or (name == "parts" and value not in PARTS):
                raise ConfigError(f"--columns {column}: as in flip:Male, or parts:1 to parts:4 and parts:adaptive")
        elif column != "original":
            try:
                renditions.known(column)
            except ConfigError as error:
                raise ConfigError(
                    f"--columns: {error}, original, k-same[:K], flip:ATTRIBUTE, planned, heatmap or parts:N"
                ) from None


def sheet(
    networks: renditions.Networks,
    faces: Faces,
    rows: int,
    columns: Sequence[str] = COLUMNS,
    k: int = 5,
    steps: int = 10,
    size: inversion.Size = 128,
    tile: int = TILE,
    work: Path = renditions.WORK,
    say: renditions.Say = lambda line: None,
) -> np.ndarray:
    """The sheet as (H, W, 3) uint8 RGB: a row per person, a face of each; a column per method.

    k : of ``k-same`` without a number of its own; the classes are cut from all of ``faces``
    steps : of the latent search that reconstruction and DeepBlur start from

    Raises InputError where there are fewer people than k.
    """
    people = len(set(faces.subject.tolist()))
    sizes = [int(column.partition(":")[2] or k) for column in columns if column.startswith("k-same")]
    if sizes and max(sizes) > people:
        raise InputError(f"k-same: k = {max(sizes)}, but there are only {people} people")
    chosen = renditions.spread(faces, min(rows, people))
    tiles = {}
    for column in columns:
        say(f"sheet: {column}")
        if column == "original":
            tiles[column] = [decode(crop) for crop in chosen.crop]
        elif column.partition(":")[0] in TRANSLATED:
            tiles[column] = _translated(Makers(networks, work), faces, chosen, column, k)
        elif column.startswith("k-same"):
            tiles[column] = _k_same(networks, faces, chosen, int(column.partition(":")[2] or k), work)
        else:
            made = renditions.altered(networks, chosen.crop, column, steps, size, work)
            tiles[column] = list((made * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    captions = [_caption(column, k) for column in columns]
    return draw([[tiles[column][i] for column in columns] for i in range(len(chosen))], tile, top=captions)


def _k_same(networks: renditions.Networks, faces: Faces, chosen: Faces, k: int, work: Path) -> list[np.ndarray]:
    """The surrogates of the chosen people's classes."""
    steer = renditions.STEER
    vectors = renditions.embeddings(networks, faces.crop, [steer], work)[steer]
    by = renditions.crowds(faces.subject, vectors, k)
    released = renditions.surrogates(networks, faces, renditions.encoded(networks, faces.crop, work), by, 0, work)
    of = dict(zip(faces.subject.tolist(), released.of.tolist(), strict=True))
    return [decode(released.images[of[person]]) for person in chosen.subject.tolist()]


def _translated(makers: Makers, faces: Faces, chosen: Faces, column: str, k: int) -> list[np.ndarray]:
    """What StarGAN makes of the chosen faces; parts by the weights that keep the identity."""
    name, _, value = column.partition(":")
    if name == "heatmap":
        crops = [decode(crop) for crop in chosen.crop]
        heat = makers.maps.grad_cam(crops)
        return [regions.overlay(crop, own) for crop, own in zip(crops, heat, strict=True)]
    if name == "parts":
        made = makers.obfuscated("stargan-identity", chosen.crop, int(value) if value.isdecimal() else value, SIDE)
        return [decode(crop) for crop in made]
    if name == "flip":
        wanted = np.full((len(chosen), len(ATTRIBUTES)), -1, np.int8)
        at = ATTRIBUTES.index(value)
        wanted[:, at] = 1 - makers.values(chosen.crop)[:, at]
    else:
        place = {key: i for i, key in enumerate(zip(faces.subject.tolist(), faces.name.tolist(), strict=True))}
        rows = [place[key] for key in zip(chosen.subject.tolist(), chosen.name.tolist(), strict=True)]
        known = np.isin(ATTRIBUTES, makers.translator("stargan").attributes)
        wanted = np.where(known, planned(makers, faces, k)[rows], -1).astype(np.int8)
    return [decode(crop) for crop in makers.translated("stargan", chosen.crop, wanted, SIDE)]


def _caption(column: str, k: int) -> str:
    name, _, value = column.partition(":")
    if name == "k-same":
        return f"k-same, k = {value or k}"
    return f"{name} {value}".strip()


def draw(
    tiles: Sequence[Sequence[np.ndarray]],
    side: int = TILE,
    left: Sequence[str] | None = None,
    top: Sequence[str] | None = None,
) -> np.ndarray:
    """Rows of square RGB pictures, each shown at ``side`` pixels, with captions at the left or on top.

    Returns (H, W, 3) uint8 RGB. A caption is drawn smaller where it would not fit.
    """
    lines = [np.hstack([_tile(picture, side) for picture in row]) for row in tiles]
    if left is not None:
        lines = [np.hstack([_label(text, side, side), line]) for text, line in zip(left, lines, strict=True)]
    if top is not None:
        corner = [_label("", side, CAPTION)] if left is not None else []
        lines.insert(0, np.hstack([*corner, *(_label(text, side, CAPTION) for text in top)]))
    return np.vstack(lines)


def write(picture: np.ndarray, output: Path, quality: int = QUALITY) -> None:
    """(H, W, 3) uint8 RGB into a .png or .jpg file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix.lower() == ".png":
        _, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
        output.write_bytes(data.tobytes())
    else:
        output.write_bytes(encode(picture, quality))


def _tile(picture: np.ndarray, side: int) -> np.ndarray:
    smaller = picture.shape[0] > side
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _label(text: str, width: int, height: int) -> np.ndarray:
    tile = np.full((height, width, 3), PAPER, np.uint8)
    scale = 0.6 if height == width else 0.45
    across = cv2.getTextSize(text, FONT, scale, 1)[0][0]
    scale *= min(1.0, (width - 12) / max(across, 1))
    cv2.putText(tile, text, (8, height // 2 + 5), FONT, scale, INK, 1, cv2.LINE_AA)
    return tile
