"""``facecrowd train directions``: directions in the generator's latent space for attributes, pose and light.

Faces are drawn from the generator, each is looked at by the predictor that steers (never by the judge), by the detector
(for its landmarks) and by a light meter, and ``stages/edits.py`` fits how each of these can be read from w and changed.
Then the rows of w+ are chosen for each direction, from what each group of rows was seen to do to fresh faces.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from facecrowd.jobs import training
from facecrowd.pipeline.errors import ConfigError
from facecrowd.stages import edits, models
from facecrowd.stages.attributes import ATTRIBUTES, JUDGE, STEER, Predictor
from facecrowd.stages.detect import Detector
from facecrowd.stages.networks.mobilestylegan import ROWS, SHIPPED_HEADS, SIZES, STYLE, MobileStyleGAN
from facecrowd.stages.obscure import FACE_AXES, FACE_CENTRE

NAMES = (*ATTRIBUTES, *edits.POSE, *edits.LIGHT)
UNITS = {
    "attributes": "calibrated logits of the predictor",
    "yaw": "how far the nose lies towards the picture's right of the eyes' middle, in eye distances",
    "pitch": "how far down the nose lies between the eyes' middle (0) and the mouth's (1)",
    "light_across": "luminance of the face's right half less its left, over its mean",
    "light_down": "luminance of the face's upper half less its lower, over its mean",
    "brightness": "mean luminance of the face, in [0, 1]",
}
SEED = 20261121
FRESH = 20261122
"""Seeds of the faces that directions are fitted on, and of those they are measured on."""

LEAST, MOST = 0.7, 1.0
CHUNK = 25
EDGES = (0, 4, 8, 13, ROWS)
"""Groups of rows: pose and shape, parts, fine parts and hair, colour."""

ENOUGH = 0.6
"""The rows of a direction keep at least this share of the effect that all rows together have."""


class Looker:
    """Reads all of ``NAMES`` off pictures."""

    def __init__(self, folder: str | None = None, device: str = "cpu") -> None:
        self.predictor = Predictor.load(STEER, folder, device)
        self.detector = Detector.load("scrfd-500m", size=256, folder=folder)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> np.ndarray:
        """(N, 3, S, S) in [0, 1] to (N, D) float32; NaN in pose where no face is found."""
        logits = self.predictor.logits(x).cpu().numpy()
        crops = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        rest = [[*self._pose(crop), *light(crop)] for crop in crops]
        return np.concatenate([logits, np.array(rest, np.float32)], axis=1)

    def _pose(self, crop: np.ndarray) -> tuple[float, float]:
        found = self.detector.find(np.ascontiguousarray(crop))
        return pose(found.landmarks[0].reshape(5, 2)) if len(found) else (float("nan"), float("nan"))


def pose(landmarks: np.ndarray) -> tuple[float, float]:
    """Yaw and pitch, as in ``UNITS``, of five landmarks (5, 2); 3-D angles are monotone in them."""
    points = landmarks[:, 0] + 1j * landmarks[:, 1]
    eyes, mouth = points[:2].mean(), points[3:].mean()
    across = points[1] - points[0]
    nose, chin = (points[2] - eyes) / across, (mouth - eyes) / across
    return float(nose.real), float(nose.imag / chin.imag)


def light(crop: np.ndarray) -> tuple[float, float, float]:
    """Light across, light down and brightness, as in ``UNITS``, of an (S, S, 3) uint8 RGB crop in FFHQ's alignment."""
    luminance = crop.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    y, x = (np.mgrid[: crop.shape[0], : crop.shape[1]] + 0.5) / crop.shape[0]
    x, y = (x - FACE_CENTRE[0]) / FACE_AXES[0], (y - FACE_CENTRE[1]) / FACE_AXES[1]
    face = x**2 + y**2 < 1
    mean = luminance[face].mean() + 1e-6
    across = luminance[face & (x > 0)].mean() - luminance[face & (x < 0)].mean()
    down = luminance[face & (y < 0)].mean() - luminance[face & (y > 0)].mean()
    return float(across / mean), float(down / mean), float(mean)


@torch.inference_mode()
def draw(generator: MobileStyleGAN, count: int, seed: int, number: int = 0) -> Tensor:
    """w (count, 512) of random faces, each with a truncation of its own between 0.7 and 1."""
    random = training.generator(seed, number)
    z, psi = torch.randn(count, STYLE, generator=random), torch.rand(count, 1, generator=random)
    device = generator.mean_latent.device
    w = generator.mapping(z.to(device))
    return generator.mean_latent + (LEAST + (MOST - LEAST) * psi.to(device)) * (w - generator.mean_latent)


def rows_of(w: Tensor) -> Tensor:
    """The same w in every row: (N, 512) to (N, 23, 512)."""
    return w[:, None].expand(-1, ROWS, -1)


@torch.inference_mode()
def sample(
    generator: MobileStyleGAN,
    look: Looker,
    count: int,
    size: int,
    work: Path,
    say: Callable[[str], None],
) -> tuple[np.ndarray, np.ndarray]:
    """w (N, 512) and readings (N, D) of ``count`` random faces, less those in which no face is found.

    Every 25 faces are kept in ``work``, so that a killed training goes on where it was.
    """
    work.mkdir(parents=True, exist_ok=True)
    latents, readings = [], []
    for number in range(-(-count // CHUNK)):
        file = work / f"{size}-{number:05d}.safetensors"
        if not file.exists():
            w = draw(generator, CHUNK, SEED, number)
            seen = np.concatenate([look(edits.pictures(generator, rows_of(v[None]), size, 1)) for v in w])
            partial = file.with_suffix(".partial")
            save_file({"w": w.cpu().contiguous(), "readings": torch.from_numpy(seen)}, str(partial))
            os.replace(partial, file)
            say(f"{min(count, (number + 1) * CHUNK)} of {count} faces")
        stored = load_file(str(file))
        latents.append(stored["w"].numpy())
        readings.append(stored["readings"].numpy())
    x, y = np.concatenate(latents)[:count], np.concatenate(readings)[:count]
    whole = np.isfinite(y).all(axis=1)
    return x[whole], y[whole]


@torch.inference_mode()
def effects(generator: MobileStyleGAN, look: Looker, directions: edits.Directions, faces: int, size: int) -> np.ndarray:
    """What each direction does through each group of rows: (D, G, D), changes in readings over their typical scale.

    Every direction moves ``faces`` fresh faces by its typical scale, up or down by turns, in one group of rows.
    """
    start = draw(generator, faces, FRESH)
    before = np.concatenate([look(edits.pictures(generator, rows_of(w[None]), size, 1)) for w in start])
    scale = directions.scale.cpu().numpy()
    out = np.zeros((len(scale), len(EDGES) - 1, len(scale)))
    for d in range(len(scale)):
        for group in range(len(EDGES) - 1):
            changes = []
            for i, w in enumerate(start):
                way = 1 if i % 2 == 0 else -1
                moved = rows_of(w[None]).clone()
                moved[:, EDGES[group] : EDGES[group + 1]] += way * directions.scale[d] * directions.directions[d]
                changes.append(way * (look(edits.pictures(generator, moved, size, 1))[0] - before[i]) / scale)
            out[d, group] = np.nanmean(changes, axis=0)
    return out


def choose_rows(effect: np.ndarray) -> np.ndarray:
    """The rows of every direction: those that change its own reading most for what they change of the others.

    effect : (D, G, D) of ``effects``; the groups' effects are taken to add up

    Of all runs of neighbouring groups that keep ``ENOUGH`` of the whole effect, the one with the largest own effect
    over the root mean square of the others'. Returns (D, 2): first row, and one past the last.
    """
    groups = effect.shape[1]
    chosen = np.zeros((len(effect), 2), np.int64)
    runs = [(low, high) for low in range(groups) for high in range(low + 1, groups + 1)]
    for d, by_group in enumerate(effect):
        enough = ENOUGH * by_group[:, d].sum()
        worth = {}
        for low, high in sorted(runs, key=lambda run: run[1] - run[0]):
            total = by_group[low:high].sum(axis=0)
            if total[d] >= enough or high - low == groups:
                worth[low, high] = total[d] / (np.sqrt(np.mean(np.delete(total, d) ** 2)) + 1e-6)
        best = max(worth, key=lambda run: worth[run])
        chosen[d] = EDGES[best[0]], EDGES[best[1]]
    return chosen


def run(
    output: Path,
    samples: int,
    size: int,
    overlap: float,
    faces: int,
    work: Path | None,
    folder: str | None,
    say: Callable[[str], None],
) -> edits.Directions:
    """Draw, look, fit, choose rows and write. ``faces`` is how many each direction is tried on (0: edit all rows)."""
    if samples < 100:
        raise ConfigError(f"--samples {samples}: directions need 100 faces or more")
    if size not in SIZES:
        raise ConfigError(f"--size {size}: the generator makes {', '.join(str(s) for s in SIZES)}")
    generator = models.path("mobilestylegan-ffhq", folder=folder)
    network, look = MobileStyleGAN.load(generator), Looker(folder)
    about: dict[str, Any] = {
        "generator_sha256": models.sha256(generator),
        "heads_sha256": models.sha256(SHIPPED_HEADS) if SHIPPED_HEADS.is_file() else None,
        "predictor": look.predictor.name,
        "predictor_sha256": look.predictor.sha256,
        "size": size,
        "truncation": [LEAST, MOST],
        "seed": SEED,
        "units": UNITS,
    }
    # Faces of other weights or settings are never taken up.
    folder_of = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    w, readings = sample(network, look, samples, size, (work or output.with_suffix(".work")) / folder_of, say)
    directions = edits.fit(w, readings, NAMES, network.mean_latent.numpy(), overlap, about)
    if faces:
        say(f"choosing rows on {faces} faces")
        rows = choose_rows(effects(network, look, directions, faces, size))
        directions = edits.replace(directions, rows=torch.from_numpy(rows))
    output.parent.mkdir(parents=True, exist_ok=True)
    directions.save(output)
    say(f"wrote {output}")
    return directions


# ----------------------------------------------------------------------------------------------------------- measure


def measure(
    directions: edits.Directions,
    names: Sequence[str] = ATTRIBUTES,
    faces: int = 16,
    size: int = 128,
    limit: float = 4.0,
    steps: int = 10,
    margin: float = 0.5,
    folder: str | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Flip one attribute at a time on fresh faces; by attribute what came of it.

    steer, judge : share of faces in which that predictor, which saw the other value (or the same) before, sees the
        wanted one after; the judge had no part in fit or edit
    held : share in which the judge had seen what the steering predictor saw, so that there was a value to flip
    others, others_judge : mean absolute change of the other 39 attributes' probabilities, by predictor
    strength : mean coefficient over typical scale
    """
    generator = MobileStyleGAN.load(models.path("mobilestylegan-ffhq", folder=folder))
    steer, judge = Predictor.load(STEER, folder), Predictor.load(JUDGE, folder)
    w = rows_of(draw(generator, faces, FRESH, 1))

    @torch.inference_mode()
    def probabilities(predictor: Predictor, latent: Tensor) -> np.ndarray:
        return torch.sigmoid(edits.look(generator, predictor, latent, size, 1)).numpy()

    before = {p.name: probabilities(p, w) for p in (steer, judge)}
    found = []
    for name in names:
        a, d = steer.attributes.index(name), directions.positions([name])[0]
        values = {p.name: p.values(before[p.name])[:, a] for p in (steer, judge)}
        wanted = np.full((faces, len(steer.attributes)), -1, np.int8)
        wanted[:, a] = 1 - values[STEER]
        made = edits.realise(generator, steer, directions, w, wanted, limit, steps, margin, size)
        after = {STEER: torch.sigmoid(made.logits).numpy(), JUDGE: probabilities(judge, made.latent)}
        others = {n: float(np.abs(np.delete(after[n] - before[n], a, axis=1)).mean()) for n in after}
        same = values[STEER] == values[JUDGE]
        flipped = judge.values(after[JUDGE])[:, a] == wanted[:, a]
        row = {
            "attribute": name,
            "faces": faces,
            "steer": float((made.agrees[:, a] == 1).mean()),
            "held": float(same.mean()),
            "judge": float(flipped[same].mean()) if same.any() else float("nan"),
            "others": others[STEER],
            "others_judge": others[JUDGE],
            "strength": float((made.coefficients[:, d].abs() / directions.scale[d]).mean()),
        }
        found.append(row)
        say(" ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    return found
