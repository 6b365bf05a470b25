"""What several recognisers saw in faces, looked at over Ray Data once and kept in the workspace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from facecrowd.pipeline import ray_data, steps
from facecrowd.pipeline.config import Detect
from facecrowd.pipeline.schema import VERSION, WITNESSED
from facecrowd.pipeline.storage import Parts, Workspace, fingerprint
from facecrowd.stages import models
from facecrowd.stages.stage import OK


@dataclass(frozen=True)
class Seen:
    """What recognisers saw in M faces.

    face_id : (M,); detected : (M,) bool; landmarks : (M, 5, 2) float32, px of the crop, NaN where no face was found;
    embeddings : recogniser → (M, width) float32 unit vectors, zeros where there is none
    """

    face_id: np.ndarray
    detected: np.ndarray
    landmarks: np.ndarray
    embeddings: dict[str, np.ndarray]


def look(
    workspace: Workspace,
    run: Sequence[Any],
    source: ray_data.Source,
    column: str,
    count: int,
    detect: Detect,
    recognisers: Sequence[str],
    work: Callable[[ray_data.Step, list[int]], None],
) -> Seen:
    """What recognisers see in the faces of a source, in the order of its ``count`` parts.

    run : what tells these faces from others; column : of the source, as in ``steps.witnesses``; work : works off the
    given parts of a step. Only what is missing is looked at.
    """
    digests = [models.sha256(models.resolve(name, "recognition", folder=detect.models)) for name in recognisers]
    about = (VERSION, list(recognisers), digests, detect.detector, detect.threshold)
    parts = workspace.parts(WITNESSED, fingerprint(*run, *about))
    missing = sorted(set(range(count)) - parts.done())
    if missing:
        stages = steps.witnesses(detect, recognisers, column)
        work(ray_data.Step("look", source, stages, steps.WitnessSink(parts)), missing)
    return _read(parts, count, recognisers)


def _read(parts: Parts, count: int, recognisers: Sequence[str]) -> Seen:
    table = parts.read_all(count, ["face_id", "status", "detected", "landmarks", "embeddings"])
    cells = table["embeddings"].to_pylist()
    vectors = {}
    for name in recognisers:
        found = [None if cell is None else dict(cell).get(name) for cell in cells]
        width = next((len(v) for v in found if v is not None), 0)
        vectors[name] = np.array([np.zeros(width) if v is None else v for v in found], np.float32).reshape(-1, width)
    points = [[np.nan] * 10 if p is None else p for p in table["landmarks"].to_pylist()]
    ok = np.array([status == OK for status in table["status"].to_pylist()], dtype=bool)
    detected = np.array([bool(flag) for flag in table["detected"].to_pylist()], dtype=bool) & ok
    ids = np.array(table["face_id"].to_pylist(), dtype=object)
    return Seen(ids, detected, np.array(points, np.float32).reshape(-1, 5, 2), vectors)
