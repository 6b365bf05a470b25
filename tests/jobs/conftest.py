"""Labelled faces of people who do not exist: the demo's, with a made-up table of the 40 attributes."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facecrowd.jobs.labelled import TABLE, Faces
from facecrowd.stages.attributes import ATTRIBUTES
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode


def table_of(names: list[str], seed: int = 0) -> pa.Table:
    """A drawn table: each attribute true of about every third photo."""
    drawn = np.random.default_rng(seed).random((len(names), len(ATTRIBUTES))) < 1 / 3
    return pa.table({"image_id": names, **{name: drawn[:, a] for a, name in enumerate(ATTRIBUTES)}})


@pytest.fixture(scope="session")
def collection(people: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 people with 2 photos each as ``people/<subject>/<photo>``, the table beside; not to be written to."""
    folder = tmp_path_factory.mktemp("collection") / "people"
    for person in people[:20]:
        (folder / person.name).mkdir(parents=True)
        for picture in sorted(person.glob("*.jpg"))[:2]:
            shutil.copy(picture, folder / person.name / f"{person.name}-{picture.name}")
    pq.write_table(table_of(sorted(p.name for p in folder.glob("*/*"))), folder.parent / TABLE)
    return folder


@pytest.fixture(scope="session")
def labelled(people: list[Path]) -> Faces:
    """40 people with 2 small crops each, cut without any network. The first attribute says whether a face is bright,
    the second whether it is red, the rest is drawn.
    """
    files = [picture for person in people for picture in sorted(person.glob("*.jpg"))[:2]]
    crops = [cv2.resize(decode(file.read_bytes()), (64, 64), interpolation=cv2.INTER_AREA) for file in files]
    labels = np.random.default_rng(0).random((len(files), len(ATTRIBUTES))) < 0.4
    light = np.array([crop.mean() for crop in crops])
    red = np.array([crop[..., 0].mean() / crop.mean() for crop in crops])
    labels[:, 0], labels[:, 1] = light > np.median(light), red > np.median(red)
    return Faces(
        np.array([f"{file.parent.name}-{file.name}" for file in files]),
        np.array([file.parent.name for file in files]),
        [encode(crop, 95) for crop in crops],
        labels.astype(np.float32),
    )
