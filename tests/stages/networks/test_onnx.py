"""Claims of stages/networks/onnx.py: a module takes the weights of a published graph, layer by layer, or refuses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save
from torch import nn

from facecrowd.stages import models
from facecrowd.stages.networks.onnx import read_weights

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "Conv": [(4, 3, 3, 3), (4,)],
    "PRelu": [(4, 1, 1)],
    "BatchNormalization": [(4,), (4,), (4,), (4,)],
    "Gemm": [(2, 4 * 6 * 6), (2,)],
}
"""Weights of the layers of ``network()``."""


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return written(tmp_path / "graph.onnx")


def written(file: Path, order: tuple[str, ...] = tuple(SHAPES), **shapes: list[tuple[int, ...]]) -> Path:
    """A graph of such layers, whose tensors are numbered."""
    draws = np.random.default_rng(4)
    nodes, tensors, flow = [], [], "x"
    for kind in order:
        if kind == "Gemm":
            nodes.append(helper.make_node("Flatten", [flow], ["flat"]))
            flow = "flat"
        values = [draws.uniform(0.1, 1, shape).astype(np.float32) for shape in (SHAPES | shapes)[kind]]
        names = [str(100 - len(tensors) - i) for i in range(len(values))]
        tensors += [numpy_helper.from_array(value, name) for value, name in zip(values, names, strict=True)]
        more = {"transB": 1} if kind == "Gemm" else {}
        nodes.append(helper.make_node(kind, [flow, *names], [f"after {kind}"], **more))
        flow = f"after {kind}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", flow)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), str(file))
    return file


def test_the_module_then_computes_what_onnx_runtime_does(graph: Path) -> None:
    own = network()
    read_weights(graph, own)
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    (theirs,) = onnxruntime.InferenceSession(str(graph), **models.session()).run(None, {"x": x.numpy()})
    assert np.abs(own(x).detach().numpy() - theirs).max() < 1e-4


def test_other_layers_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "other.onnx", ("Conv", "BatchNormalization", "PRelu", "Gemm"))
    with pytest.raises(models.WrongWeights, match=r"other\.onnx has other layers than Sequential"):
        read_weights(file, network())


@pytest.mark.parametrize(
    "shapes",
    [{"Conv": [(3, 4, 3, 3), (4,)]}, {"Conv": [(4, 3, 3, 3)]}, {"Gemm": [(4 * 6 * 6, 2), (2,)]}],
    ids=["transposed", "no bias", "of as many numbers"],
)
def test_weights_of_other_shapes_are_refused(tmp_path: Path, shapes: dict[str, list[tuple[int, ...]]]) -> None:
    file = written(tmp_path / "other.onnx", **shapes)
    with pytest.raises(models.WrongWeights, match=rf"other\.onnx: {next(iter(shapes))} .* has weights of the shapes"):
        read_weights(file, network())


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"not a network")
    with pytest.raises(models.WrongWeights, match=r"text\.onnx is no ONNX file"):
        read_weights(tmp_path / "text.onnx", network())
