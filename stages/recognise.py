"""Face recognisers behind one interface: aligned faces in, unit vectors out, with a gradient wherever there is one.

    recogniser = load("sface")
    cosine = recogniser.embed(faces) @ recogniser.embed(others).T

An attack, a latent search or a judge asks for any recogniser by name and needs to know nothing of its size, channel
order and scaling. Those of the registry that are convolutional networks (``NETWORKS``) run in PyTorch, and pass a
gradient on to the faces; any other .onnx file that InsightFace takes for a recogniser runs in ONNX Runtime, without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facecrowd.stages import models
from facecrowd.stages.networks.facexzoo import FaceXZoo
from facecrowd.stages.networks.mobilefacenet import MobileFaceNet
from facecrowd.stages.networks.prelu import fix_slopes
from facecrowd.stages.networks.sface import SFace

SIZE = 112

NETWORKS: dict[str, Callable[[Path], nn.Module]] = {
    "arcface-mobilefacenet": MobileFaceNet.load,
    "sface": SFace.load,
    "facex-zoo-1": FaceXZoo.load,
    "facex-zoo-2": FaceXZoo.load,
}
"""The recognisers of the registry that pass a gradient on, by their name there."""


class NotDifferentiable(models.ModelError):
    """A gradient was asked of a recogniser that has none."""


class Recogniser(Protocol):
    """A face recogniser.

    name : as it was asked for
    sha256 : of its file
    width : numbers in an embedding
    differentiable : whether a gradient reaches the faces
    """

    name: str
    sha256: str
    width: int
    differentiable: bool

    def embed(self, faces: Tensor) -> Tensor:
        """Embeddings of length 1.

        faces : (N, 3, 112, 112) float RGB in [0, 1], in ArcFace's alignment, on any device

        Returns (N, width), on the device of the faces. Raises ``ValueError`` for another shape, ``NotDifferentiable``
        for faces that require a gradient where the recogniser has none.
        """
        ...


class TorchRecogniser:
    """A recogniser that is a PyTorch module: (N, 3, 112, 112) RGB in [0, 1] to embeddings of any length."""

    differentiable = True

    def __init__(self, name: str, sha256: str, network: nn.Module, device: models.Device = "cpu") -> None:
        self.name, self.sha256 = name, sha256
        self.device = torch.device("cuda" if device == "gpu" and torch.cuda.is_available() else "cpu")
        fix_slopes(network)
        # A third faster than the default layout on a CPU, where depthwise convolutions are most of the work.
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.width = int(self.embed(torch.full((1, 3, SIZE, SIZE), 0.5)).shape[1])

    def embed(self, faces: Tensor) -> Tensor:
        """See ``Recogniser.embed``. Computed in the precision of the network's weights."""
        _check(faces)
        dtype = next(self.network.parameters()).dtype
        own = faces.to(self.device, dtype).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.network(own)).to(faces.device)


class OnnxRecogniser:
    """A recogniser that ONNX Runtime runs, with the size and the scaling that InsightFace reads from its file."""

    differentiable = False

    def __init__(self, name: str, sha256: str, file: Path, device: models.Device = "cpu", threads: int = 1) -> None:
        """Raises ``WrongTask`` where InsightFace takes the file for something else."""
        self.name, self.sha256 = name, sha256
        self.model: Any = models.load(file, device, threads)
        if getattr(self.model, "taskname", None) != "recognition":
            raise models.WrongTask(f"{file} is not a face recogniser that InsightFace can run")
        self.size: tuple[int, int] = self.model.input_size[::-1]
        # One at a time is fastest on a CPU, and all that a graph with a fixed batch takes.
        self.at_once = 64 if device == "gpu" and not isinstance(self.model.input_shape[0], int) else 1
        self.width = int(self._run(torch.full((1, 3, SIZE, SIZE), 0.5)).shape[1])

    def embed(self, faces: Tensor) -> Tensor:
        """See ``Recogniser.embed``."""
        _check(faces)
        if faces.requires_grad and torch.is_grad_enabled():
            raise NotDifferentiable(
                f"{self.name} runs in ONNX Runtime and has no gradient; those that have one: {', '.join(NETWORKS)}"
            )
        own = faces.detach().to("cpu", torch.float32)
        out = np.empty((len(own), self.width), np.float32)
        for start in range(0, len(own), self.at_once):
            out[start : start + self.at_once] = self._run(own[start : start + self.at_once])
        length = np.linalg.norm(out, axis=1, keepdims=True)
        return torch.from_numpy(out / np.maximum(length, np.finfo(np.float32).tiny)).to(faces.device)

    def _run(self, faces: Tensor) -> np.ndarray:
        if faces.shape[-2:] != self.size:
            faces = F.interpolate(faces, self.size, mode="bilinear")
        # In NumPy: PyTorch's threads would wake for this and then wait in the way of ONNX Runtime's.
        found: np.ndarray = self.model.forward(faces.numpy() * np.float32(255))
        return found


def load(
    name: str | os.PathLike[str],
    device: models.Device = "cpu",
    *,
    gradients: bool = True,
    threads: int = 1,
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
) -> Recogniser:
    """A recogniser, ready to run.

    name : a model of the registry, an .onnx file or an InsightFace pack, as in ``models.resolve``; a file with the
        bytes of one of ``NETWORKS`` is that one
    gradients : without, ONNX Runtime runs every .onnx file: the same vectors, two to three times faster on a CPU
    threads : of ONNX Runtime; PyTorch has its own ``torch.set_num_threads``
    folder : where to look for the file, as in ``models.path``

    Raises ``ModelError``.
    """
    file = models.resolve(name, "recognition", folder=folder)
    digest = models.sha256(file)
    known = [entry for entry in NETWORKS if models.MODELS[entry].sha256 == digest]
    if known and (gradients or file.suffix != ".onnx"):
        return TorchRecogniser(os.fspath(name), digest, NETWORKS[known[0]](file), device)
    return OnnxRecogniser(os.fspath(name), digest, file, device, threads)


def _check(faces: Tensor) -> None:
    if faces.ndim != 4 or faces.shape[1:] != (3, SIZE, SIZE) or not faces.is_floating_point():
        raise ValueError(
            f"faces must be (N, 3, {SIZE}, {SIZE}) floating point in [0, 1], not {tuple(faces.shape)} {faces.dtype}"
        )
