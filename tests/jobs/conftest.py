"""Labelled faces of people who do not exist: the demo's, with a made-up table of the 40 attributes. Networks of a few
lines in the generator's and its companions' place.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facecrowd.jobs.labelled import TABLE, Faces
from facecrowd.stages.attributes import ATTRIBUTES
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode
from facecrowd.stages.networks.mobilestylegan import ROWS, STYLE


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


class Painter(nn.Module):
    """A generator whose picture is linear in the latent: 12 × 12 colours, the first 432 numbers of the mean row."""

    COLOURS = 12

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_latent", torch.full((STYLE,), 0.5))

    def mapping(self, z: Tensor) -> Tensor:
        return 0.5 + 0.2 * z

    def truncate(self, w: Tensor, psi: float) -> Tensor:
        return (0.5 + psi * (w - 0.5))[:, None].expand(-1, ROWS, -1)

    def synthesis(self, w_plus: Tensor, size: int) -> Tensor:
        colours = w_plus.mean(1)[:, : 3 * self.COLOURS**2].unflatten(1, (3, self.COLOURS, self.COLOURS))
        return F.interpolate(colours, (size, size), mode="bilinear", align_corners=False)


class Guess(nn.Module):
    """An encoder that finds the Painter's colours."""

    def forward(self, x: Tensor) -> Tensor:
        colours = F.adaptive_avg_pool2d(x, Painter.COLOURS).flatten(1)
        return F.pad(colours, (0, STYLE - colours.shape[1]), value=0.5)[:, None].expand(-1, ROWS, -1)


class Grey:
    """LPIPS' place: differences of grey levels."""

    def features(self, x: Tensor, depth: int = 5) -> tuple[Tensor, ...]:
        return tuple(F.avg_pool2d(x, 2 ** (i + 1)) for i in range(depth))

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean((1, 2, 3))


class Colours:
    """A recogniser by colours, and a detector that finds nothing, so that the template aligns."""

    differentiable, width, threshold = False, 48, 0.5

    def __init__(self, name: str) -> None:
        self.name, self.sha256 = name, name

    def embed(self, faces: Tensor) -> Tensor:
        return F.normalize(F.adaptive_avg_pool2d(faces, 4).flatten(1) - 0.4)

    def find(self, photo: np.ndarray) -> Any:
        return ()


class Spectrum:
    """Inception's place."""

    def features(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``renditions.Networks`` that fit into a few lines, so that what they should make is known."""
    from facecrowd.jobs.renditions import Networks

    file = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    file.write_bytes(b"")
    made: Any = Networks(file, device="cpu")
    made.generator, made.encoder, made.lpips, made.inception = Painter(), Guess(), Grey(), Spectrum()
    made.detector, made.told = Colours("detector"), ["painter", "", "guess"]
    names = ("arcface-mobilefacenet", "sface", "facex-zoo-1", "facex-zoo-2", "edgeface-s")
    made.recognisers = {name: Colours(name) for name in names}
    return made
