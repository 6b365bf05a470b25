"""PReLU is computed in another way, and nothing but the time changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from facecrowd.stages import models, prelu, recognise


def network(file: Path, slope: np.ndarray) -> Path:
    """Convolution, PReLU, convolution, on a picture of 3 channels."""
    rng = np.random.default_rng(1)
    weights = {
        "first": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "slope": slope,
        "second": rng.normal(size=(4, 8, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"]),
        helper.make_node("PRelu", ["a", "slope"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 10, 10])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def run(graph: bytes | str, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, **models.session())
    return np.asarray(session.run(None, {session.get_inputs()[0].name: pixels})[0])


def test_slopes_of_any_sign_and_size_give_the_same_bits(tmp_path: Path) -> None:
    slope = np.array([-2, -0.5, 0, 0.25, 0.7, 1, 1.5, 3], np.float32).reshape(8, 1, 1)
    file = network(tmp_path / "n.onnx", slope)
    graph = prelu.fast(file)
    assert graph is not None
    assert "PRelu" not in {node.op_type for node in onnx.load_from_string(graph).graph.node}
    pixels = np.random.default_rng(2).normal(size=(2, 3, 12, 12)).astype(np.float32)
    assert np.array_equal(run(graph, pixels), run(str(file), pixels))


@pytest.mark.parametrize("shape", [(1,), (8, 10, 10)])
def test_other_slopes_are_left_alone(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert prelu.fast(network(tmp_path / "n.onnx", np.full(shape, 0.5, np.float32))) is None


def test_embeddings_of_the_recogniser_are_the_same_bits() -> None:
    try:
        file = models.path("arcface-mobilefacenet", download=False)
    except models.ModelError as error:
        pytest.skip(str(error))
    recogniser = recognise.load(file, gradients=False)
    assert isinstance(recogniser, recognise.OnnxRecogniser)
    crop = np.random.default_rng(3).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    blob = (crop.transpose(2, 0, 1)[None].astype(np.float32) - 127.5) / 127.5
    plain = run(str(file), blob)
    ours = recogniser.model.forward((crop.transpose(2, 0, 1)[None]).astype(np.float32))
    assert np.array_equal(ours, plain)
