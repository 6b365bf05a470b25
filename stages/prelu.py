"""PReLU layers of an ONNX graph, written so that ONNX Runtime computes them fast on a CPU, bit for bit the same.

ONNX Runtime has one slow loop for PReLU and leaves its blocked (NCHWc) layout around every layer: two thirds of an
ArcFace network's time go there. With slope a per channel, PReLU is

    y = max(x, 0) + min(x, 0) a = relu(x) + (−a) relu(−x)

where of the two terms one is always zero, so nothing is rounded that was not before. The products are written as
depthwise 1 × 1 convolutions, which stay in the blocked layout and take the activation and the sum along.
"""

from __future__ import annotations

import os

import numpy as np


def fast(file: str | os.PathLike[str]) -> bytes | None:
    """The graph of an .onnx file without PReLU over images; None where it has none.

    Only layers of one slope per channel, (C, 1, 1), stored in the file, are rewritten: what is left over is PReLU.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(os.fspath(file))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    found = False
    for node in model.graph.node:
        slope = numpy_helper.to_array(weights[node.input[1]]) if _rewritable(node, weights) else None
        if slope is None:
            nodes.append(node)
            continue
        found = True
        x, y = node.input[0], node.output[0]
        name = {part: f"{y}/prelu/{part}" for part in ("positive", "negated", "negative", "scaled", "minus", "slope")}
        channels = slope.shape[0]
        factors = {"minus": np.full(slope.shape, -1, np.float32), "slope": -slope.astype(np.float32)}
        for part, values in factors.items():
            weight = numpy_helper.from_array(values.reshape(channels, 1, 1, 1), name[part])
            model.graph.initializer.append(weight)
        each = {"group": channels, "kernel_shape": [1, 1]}
        nodes += [
            helper.make_node("Relu", [x], [name["positive"]]),
            helper.make_node("Conv", [x, name["minus"]], [name["negated"]], **each),
            helper.make_node("Relu", [name["negated"]], [name["negative"]]),
            helper.make_node("Conv", [name["negative"], name["slope"]], [name["scaled"]], **each),
            helper.make_node("Add", [name["positive"], name["scaled"]], [y]),
        ]
    if not found:
        return None
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    data: bytes = model.SerializeToString()
    return data


def _rewritable(node: object, weights: dict) -> bool:
    """A PReLU with one stored float32 slope per channel of an image."""
    kind, inputs = node.op_type, node.input  # type: ignore[attr-defined]
    if kind != "PRelu" or inputs[1] not in weights:
        return False
    slope = weights[inputs[1]]
    return slope.data_type == 1 and len(slope.dims) == 3 and tuple(slope.dims[1:]) == (1, 1)
