"""Reading the weights of a published ONNX graph into a module that was written for it.

Exporters name tensors as they like, or number them, but list the layers in the order in which they are computed. A
module that makes its layers in that order takes the weights one layer after the other.
Format: https://onnx.ai/onnx/intro/concepts.html
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from facecrowd.stages.models import WrongWeights

LAYERS: dict[type[nn.Module], str] = {
    nn.Conv2d: "Conv",
    nn.PReLU: "PRelu",
    nn.Linear: "Gemm",
    nn.BatchNorm1d: "BatchNormalization",
    nn.BatchNorm2d: "BatchNormalization",
}
"""What a layer with weights is called in a graph."""


@torch.no_grad()
def read_weights(file: str | os.PathLike[str], network: nn.Module) -> None:
    """Copy into the layers of ``network`` the weights of the graph's layers, the first into the first and so on.

    Raises ``WrongWeights`` where the file is no ONNX graph, or has other layers or weights of other shapes.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import numpy_helper

    where, kind = os.fspath(file), type(network).__name__
    try:
        graph = onnx.load(where).graph
    except DecodeError as error:
        raise WrongWeights(f"{where} is no ONNX file: {error}") from error
    stored = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in LAYERS.values()]
    layers = [layer for layer in network.modules() if type(layer) in LAYERS]
    if [node.op_type for node in nodes] != [LAYERS[type(layer)] for layer in layers]:
        raise WrongWeights(f"{where} has other layers than {kind}")
    for node, layer in zip(nodes, layers, strict=True):
        given = [stored[name] for name in node.input[1:] if name in stored]
        parts = [getattr(layer, name, None) for name in ("weight", "bias", "running_mean", "running_var")]
        own = [tensor for tensor in parts if tensor is not None]
        if [_shape(tensor) for tensor in given] != [_shape(tensor) for tensor in own]:
            raise WrongWeights(
                f"{where}: {node.op_type} {node.name} has weights of the shapes {[_shape(t) for t in given]}, "
                f"{kind} has {[_shape(t) for t in own]}"
            )
        for values, tensor in zip(given, own, strict=True):
            tensor.copy_(values.reshape(tensor.shape))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Without the ones at its end: a slope for each of C channels is (C, 1, 1) in a graph."""
    shape = list(tensor.shape)
    while shape and shape[-1] == 1:
        shape.pop()
    return tuple(shape)
