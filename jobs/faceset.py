"""The demo's people: about forty who do not exist, each with four to six pictures, made by a generator from a seed.

    python -m facecrowd.jobs.faceset --output jobs/faces [--sheet docs/images/demo-people.jpg]

A person is a draw of MobileStyleGAN. Their pictures keep that latent and add steps along directions that the pool of
draws shows to move a recogniser's embedding least (pose, expression, light, hair, background), a step of head turn and
one of smile, and finer rows mixed with another draw's; then each is framed and exposed like a photo of its own. A
picture stays only if the detector finds one face in the finished JPEG, and the recogniser takes it for the same person
as the others and for nobody else, so the set is separable by construction: it shows the pipeline, and measures no
recogniser.

Every choice comes from the seed, through a NumPy generator of its own per person and picture.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from facecrowd.stages import align, models, recognise
from facecrowd.stages.decode import decode
from facecrowd.stages.detect import Detector
from facecrowd.stages.embed import vectors
from facecrowd.stages.encode import encode
from facecrowd.stages.networks.mobilestylegan import ROWS, MobileStyleGAN

SEED = 20260000
PEOPLE = 40
POOL = 320
TRUNCATION = 0.7

# fmt: off
LEFT_OUT = frozenset(
    {
        2, 3, 8, 9, 13, 14, 18, 27, 31, 38, 46, 53, 56, 59, 62, 70, 75, 91, 92, 95, 96, 97, 101, 103, 105, 106,
        112, 115, 121, 127, 130, 133, 135, 136, 145, 149, 156, 166, 168, 171, 172, 178, 183, 184, 186, 201, 209,
        210, 217, 220, 228, 233, 234, 244, 255, 256, 258, 267, 271, 272, 284, 301, 302, 303, 304, 305, 310, 312,
        317, 318,
    }
)
# fmt: on
"""Draws of the pool of ``SEED`` left out by eye: they look like a child, or show a second face or sunglasses."""

SAME = 0.50
"""The least cosine between two pictures of one person."""
DIFFERENT = 0.35
"""The greatest cosine between pictures of two people."""
SCORE = 0.6
"""The least score of a detected face."""

COMPONENTS = 60
NUISANCE = 20
COARSE, MIDDLE, FINE = slice(0, 7), slice(4, 10), slice(10, ROWS)
"""Rows of w+ that set pose and shape (4 to 16 px), expression (16 to 32 px), and colour and light (from 64 px)."""

PICTURE = 512
QUALITY = 88
ATTRIBUTES = ("long_face", "component_1", "component_2", "wide_smile", "dark_background")
"""Columns of ``attributes.csv``; the first three are constant per person. ``faces/README.md`` defines them."""


class FaceSetError(RuntimeError):
    """The face set could not be made."""


@dataclass(frozen=True)
class Face:
    """What the networks see in one picture: five points in pixels, and the recogniser's unit vector."""

    points: np.ndarray
    embedding: np.ndarray


class Judge:
    """Detector and recogniser of the pipeline itself: they say which pictures stay."""

    def __init__(self, detector: str | Path, recogniser: str | Path) -> None:
        self.detector, self.recogniser = Detector.load(detector), recognise.load(recogniser, gradients=False)

    def __call__(self, photo: np.ndarray) -> Face | None:
        """The only face of a photo (H, W, 3) uint8 RGB; None where there is none, a weak one, or a second."""
        found = self.detector.find(photo)
        if len(found) != 1 or found.scores[0] < SCORE:
            return None
        points = found.landmarks[0].reshape(5, 2)
        matrix = align.similarity(points[None], align.template(align.ARCFACE_SIZE, "arcface"))[0]
        chip = align.warp(photo, matrix, align.ARCFACE_SIZE, "black")
        return Face(points, vectors(self.recogniser, [chip])[0])


@dataclass(frozen=True)
class Directions:
    """Steps in w, (n, 512) each: principal components of one standard deviation, and what the pool shows of them.

    ``nuisance`` move the embedding least, ``turn`` and ``smile`` change the head's yaw and the mouth's width by one
    standard deviation of the pool.
    """

    components: np.ndarray
    nuisance: np.ndarray
    turn: np.ndarray
    smile: np.ndarray


def make(
    output: Path,
    weights: Path,
    detector: str | Path = "scrfd-500m",
    recogniser: str | Path = "arcface-mobilefacenet",
    people: int = PEOPLE,
    seed: int = SEED,
    pool: int = POOL,
) -> dict[str, Any]:
    """Makes the set in ``output`` (``p01/1.jpg`` … and ``attributes.csv``) and returns its figures.

    weights : the converted generator (``stages.networks.mobilestylegan``)
    detector, recogniser : as in ``stages.models.resolve``
    pool : how many faces are drawn to choose the people from

    Raises ``FaceSetError`` where the pool holds too few people that the recogniser can tell apart.
    """
    judge, generator = Judge(detector, recogniser), MobileStyleGAN.load(weights)
    latents = _latents(generator, np.random.default_rng(seed).standard_normal((pool, 512), dtype=np.float32))
    faces = [
        judge(render(generator, latent[None].repeat(ROWS, axis=0)))
        for latent in _progress(latents, f"drawing {pool} faces")
    ]
    directions = explore(generator, latents, faces)

    kept: dict[int, list[tuple[bytes, Face]]] = {}
    order = iter(_order(faces, LEFT_OUT if seed == SEED else frozenset()))
    for _ in _progress(range(people), f"making {people} people"):
        for draw in order:
            others = [face for pictures in kept.values() for _, face in pictures]
            if pictures := _person(generator, judge, directions, latents, draw, seed, others):
                kept[draw] = pictures
                break
    if len(kept) < people:
        raise FaceSetError(f"{len(kept)} separable people in a pool of {pool} faces, not {people}: draw a larger pool")
    return _write(output, kept, latents, directions, generator) | {"seed": seed, "pool": pool}


def separation(embeddings: np.ndarray, subjects: np.ndarray) -> dict[str, float]:
    """How far the pairs of one person are from the pairs of two.

    embeddings : (n, d), unit length
    subjects : (n,) whose picture each is

    Returns ``auc``, the share of (same, different) pairs of pairs in which the same-person cosine is greater, the least
    and mean ``same`` and the mean and greatest ``different`` cosine, and the number of pairs of each kind.
    """
    cosine = embeddings @ embeddings.T
    upper = np.triu(np.ones(cosine.shape, bool), 1)
    alike = subjects[:, None] == subjects[None]
    same, different = np.sort(cosine[upper & alike]), np.sort(cosine[upper & ~alike])
    below = (np.searchsorted(different, same, "left") + np.searchsorted(different, same, "right")) / 2
    return {
        "auc": float(below.mean() / len(different)),
        "same_min": float(same[0]),
        "same_mean": float(same.mean()),
        "different_mean": float(different.mean()),
        "different_max": float(different[-1]),
        "same_pairs": len(same),
        "different_pairs": len(different),
    }


def contact_sheet(output: Path, people: int = 10, side: int = 112, columns: int = 4) -> np.ndarray:
    """RGB sheet of the first ``people`` of a set, two people per line, ``columns`` pictures each: (H, W, 3) uint8."""
    lines = []
    for person in sorted(path for path in output.iterdir() if path.is_dir())[:people]:
        tiles = []
        for path in sorted(person.glob("*.jpg"))[:columns]:
            picture = decode(path.read_bytes())
            scale = side / min(picture.shape[:2])
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
            tiles.append(picture[top : top + side, left : left + side])
        lines.append(np.hstack(tiles))
    gap = np.full((side, side // 8, 3), 255, np.uint8)
    return np.vstack([np.hstack([a, gap, b]) for a, b in zip(lines[::2], lines[1::2], strict=True)])


def _latents(generator: MobileStyleGAN, z: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return generator.truncate(generator.mapping(torch.from_numpy(z)), TRUNCATION)[:, 0].numpy()


def render(generator: MobileStyleGAN, w_plus: np.ndarray) -> np.ndarray:
    """w+ (23, 512) to RGB (512, 512, 3) uint8."""
    with torch.no_grad():
        image = generator.synthesis(torch.from_numpy(w_plus[None].astype(np.float32)), PICTURE)[0]
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def _order(faces: list[Face | None], left_out: frozenset[int]) -> list[int]:
    """The draws to try, each the one least like all before it."""
    usable = [i for i, face in enumerate(faces) if face is not None and i not in left_out]
    embeddings = np.array([faces[i].embedding for i in usable])  # type: ignore[union-attr]
    nearest = embeddings @ embeddings[0]
    order = [0]
    nearest[0] = np.inf
    while len(order) < len(usable):
        order.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, embeddings @ embeddings[order[-1]])
        nearest[order] = np.inf
    return [usable[i] for i in order]


def explore(generator: MobileStyleGAN, latents: np.ndarray, faces: list[Face | None]) -> Directions:
    """Principal components of w, and linear fits of the pool's embeddings, yaw and mouth width on them."""
    w = _latents(generator, np.random.default_rng(0).standard_normal((8192, 512), dtype=np.float32))
    mean = generator.mean_latent.numpy()
    _, spread, axes = np.linalg.svd(w - mean, full_matrices=False)
    # The sign of a singular vector is arbitrary; fix it, so that a side of a component means the same everywhere.
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    deviation = spread[:COMPONENTS] / np.sqrt(len(w))
    components = axes[:COMPONENTS] * deviation[:, None]

    seen = [(latent, face) for latent, face in zip(latents, faces, strict=True) if face is not None]
    x = (np.array([latent for latent, _ in seen]) - mean) @ axes[:COMPONENTS].T / deviation
    # Ridge: a tenth of the observations' weight keeps the fit from following noise.
    solve = np.linalg.solve(x.T @ x + 0.1 * len(x) * np.eye(COMPONENTS), x.T)
    embedding = solve @ np.array([face.embedding for _, face in seen])
    _, least = np.linalg.eigh(embedding @ embedding.T)
    shape = np.array([_shape(face.points) for _, face in seen])
    slope = solve @ ((shape - shape.mean(axis=0)) / shape.std(axis=0))
    steps = slope / np.square(slope).sum(axis=0)
    return Directions(
        components, least[:, :NUISANCE].T @ components, steps[:, 0] @ components, steps[:, 1] @ components
    )


def _shape(points: np.ndarray) -> tuple[float, float, float]:
    """Of five points (5, 2): yaw (nose off the eyes' middle), mouth width, eyes to mouth, in eye distances."""
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    across = points[1] - points[0]
    distance = float(np.linalg.norm(across))
    yaw = float((points[2] - eyes) @ across) / distance**2
    return yaw, float(np.linalg.norm(points[4] - points[3])) / distance, float(np.linalg.norm(mouth - eyes)) / distance


def _person(
    generator: MobileStyleGAN,
    judge: Judge,
    directions: Directions,
    latents: np.ndarray,
    draw: int,
    seed: int,
    others: list[Face],
) -> list[tuple[bytes, Face]]:
    """Four to six pictures of one draw that all agree with each other and with nobody in ``others``; else nothing."""
    wanted = int(np.random.default_rng([seed, draw]).integers(4, 7))
    known = np.array([face.embedding for face in others])
    kept: list[tuple[bytes, Face]] = []
    for attempt in range(4 * wanted):
        rng = np.random.default_rng([seed, draw, attempt])
        w_plus = _vary(latents[draw], directions, latents, rng, first=attempt == 0)
        jpeg = encode(frame(render(generator, w_plus), rng), QUALITY)
        face = judge(decode(jpeg))
        if face is None:
            continue
        if len(known) and (known @ face.embedding).max() > DIFFERENT:
            if not kept:
                return []
            continue
        if all(face.embedding @ other.embedding >= SAME for _, other in kept):
            kept.append((jpeg, face))
        if len(kept) == wanted:
            return kept
    return kept if len(kept) >= 4 else []


def _vary(
    latent: np.ndarray, directions: Directions, latents: np.ndarray, rng: np.random.Generator, *, first: bool
) -> np.ndarray:
    """w+ (23, 512) of another picture of the person at ``latent``; the ``first`` is the draw itself."""
    w_plus = np.repeat(latent[None], ROWS, axis=0)
    if first:
        return w_plus
    step = rng.normal(0, 0.7, NUISANCE) @ directions.nuisance
    w_plus[COARSE] += step + rng.uniform(-1.6, 1.6) * directions.turn
    w_plus[MIDDLE] += rng.uniform(-2.2, 2.2) * directions.smile
    w_plus[7:10] += step
    other = latents[rng.integers(len(latents))]
    w_plus[FINE] += rng.uniform(0.2, 0.7) * (other - latent)
    return w_plus


def frame(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A photo (H, W, 3) uint8 of its own framing, tilt and exposure from a square portrait (512, 512, 3) uint8.

    Half of them are close. In the others the portrait stands on the lower edge of a wider picture, whose rest is the
    portrait's edge drawn outwards and blurred, like a background out of focus.
    """
    wide, clear = rng.random() < 0.5, _clear_above(picture)
    width, height = ((320, 400), (400, 320), (352, 352))[rng.integers(3)] if clear else (400, 320)
    side = min(width, height) * (rng.uniform(0.74, 0.95) if clear else rng.uniform(1.04, 1.1))
    if not wide:
        width = height = 304
        side = width * rng.uniform(1.04, 1.2)
    tilt = float(rng.uniform(-7, 7))
    # A tilted square lifts one lower corner by this much off the frame's edge.
    lift = side / 2 * np.sin(np.radians(abs(tilt)))
    x = width / 2 + rng.uniform(-0.35, 0.35) * abs(width - side)
    y = height - side / 2 + lift if wide else height / 2 + rng.uniform(-0.3, 0.3) * (side - height)

    scale = side / PICTURE
    matrix = cv2.getRotationMatrix2D((PICTURE / 2, PICTURE / 2), tilt, scale)
    matrix[:, 2] += np.array([x, y]) - PICTURE / 2
    portrait = align.warp(picture, matrix, (width, height), "replicate")
    inside = np.zeros((PICTURE, PICTURE), np.uint8)
    inside[24:, 24:-24] = 255
    inside = align.warp(cv2.GaussianBlur(inside, (0, 0), 10), matrix, (width, height), "replicate")
    share = inside[:, :, None] / 255
    photo = share * portrait + (1 - share) * cv2.GaussianBlur(portrait, (0, 0), 14)

    exposure, warmth = rng.uniform(0.85, 1.15), rng.uniform(-0.06, 0.06)
    return np.clip(photo * exposure * np.array([1 + warmth, 1.0, 1 - warmth]), 0, 255).round().astype(np.uint8)


def _clear_above(picture: np.ndarray) -> bool:
    """Whether the middle of the upper edge shows what its corners show: background, and so the whole head."""
    edge = picture[:8].reshape(8, 16, -1, 3).mean(axis=(0, 2))
    return bool(np.abs(edge[4:12].mean(axis=0) - edge[[0, 1, -2, -1]].mean(axis=0)).max() < 30)


def _write(
    output: Path,
    kept: dict[int, list[tuple[bytes, Face]]],
    latents: np.ndarray,
    directions: Directions,
    generator: MobileStyleGAN,
) -> dict[str, Any]:
    for old in output.glob("p[0-9][0-9]"):
        shutil.rmtree(old)
    coordinates = (latents[list(kept)] - generator.mean_latent.numpy()) @ directions.components[:2].T
    shapes = [[_shape(face.points) for _, face in pictures] for pictures in kept.values()]
    length = np.array([np.median([shape[2] for shape in person]) for person in shapes])
    mouth = np.median([shape[1] for person in shapes for shape in person])
    rows, size = [], 0
    for person, pictures in enumerate(kept.values()):
        name = f"p{person + 1:02}"
        (output / name).mkdir(parents=True)
        for number, (jpeg, _) in enumerate(pictures, 1):
            (output / name / f"{number}.jpg").write_bytes(jpeg)
            size += len(jpeg)
            values = (
                length[person] > np.median(length),
                *(coordinates[person] > np.median(coordinates, axis=0)),
                shapes[person][number - 1][1] > mouth,
                _border(decode(jpeg)) < 96,
            )
            rows.append([f"{name}/{number}.jpg", *(int(value) for value in values)])
    with (output / "attributes.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_id", *ATTRIBUTES])
        writer.writerows(rows)
    faces = [(person, face) for person, pictures in enumerate(kept.values()) for _, face in pictures]
    figures = separation(np.array([face.embedding for _, face in faces]), np.array([person for person, _ in faces]))
    return {"people": len(kept), "pictures": len(rows), "bytes": size, **figures, "draws": list(kept)}


def _border(picture: np.ndarray) -> float:
    """Mean luma (0 to 255) of the upper three quarters of the frame's outer eighth: what is behind the person."""
    luma = picture @ np.array([0.299, 0.587, 0.114])
    height, width = luma.shape
    outer = np.zeros(luma.shape, bool)
    outer[: height // 8] = outer[:, : width // 8] = outer[:, -width // 8 :] = True
    outer[3 * height // 4 :] = False
    return float(luma[outer].mean())


def _progress(items: Iterable[Any], what: str) -> Iterable[Any]:
    return track(items, what, console=Console(stderr=True), disable=not sys.stderr.isatty())


def main() -> None:
    """The command line; weights come from the model cache where no file is named."""
    parser = argparse.ArgumentParser(description="Make the demo's face set of people who do not exist.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the set")
    parser.add_argument("--people", type=int, default=PEOPLE)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet (JPEG)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = make(
        arguments.output,
        models.path("mobilestylegan-ffhq"),
        people=arguments.people,
        seed=arguments.seed,
    )
    if arguments.sheet:
        arguments.sheet.write_bytes(encode(contact_sheet(arguments.output), QUALITY))
    for name, value in figures.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
