"""The IR reader finds constants by name and through the layers that use them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facecrowd.stages.networks import openvino

GRAPH = """<net><layers>
<layer id="0" name="x" type="Parameter"/>
<layer id="1" name="weight" type="Const"><data element_type="f32" shape="2, 3" offset="8" size="24"/></layer>
<layer id="2" name="product" type="MatMul"/>
<layer id="3" name="shape" type="ShapeOf"/>
<layer id="4" name="view" type="Reshape"/>
<layer id="5" name="7" type="Const"><data element_type="f32" shape="" offset="0" size="4"/></layer>
<layer id="6" name="scale" type="Multiply"/>
</layers><edges>
<edge from-layer="1" from-port="0" to-layer="2" to-port="1"/>
<edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
<edge from-layer="2" from-port="2" to-layer="3" to-port="0"/>
<edge from-layer="2" from-port="2" to-layer="4" to-port="0"/>
<edge from-layer="4" from-port="1" to-layer="6" to-port="0"/>
<edge from-layer="5" from-port="0" to-layer="6" to-port="1"/>
</edges></net>"""


@pytest.fixture
def graph(tmp_path: Path) -> openvino.Graph:
    (tmp_path / "net.xml").write_text(GRAPH)
    (tmp_path / "net.bin").write_bytes(np.array([0.5, 9, 1, 2, 3, 4, 5, 6], np.float32).tobytes())
    return openvino.read(tmp_path / "net.xml")


def test_a_named_constant_has_its_stored_shape_and_values(graph: openvino.Graph) -> None:
    np.testing.assert_array_equal(graph.value("weight"), np.array([[1, 2, 3], [4, 5, 6]], np.float32))


def test_an_unnamed_constant_is_found_through_its_reader(graph: openvino.Graph) -> None:
    scale = graph.reader(graph.node("product"))
    assert scale.name == "scale"
    assert graph.constant(graph.inputs(scale, "Const")[0]).item() == 0.5


def test_inputs_come_in_the_order_of_the_ports(graph: openvino.Graph) -> None:
    assert [node.name for node in graph.inputs(graph.node("product"))] == ["x", "weight"]


def test_a_bin_file_cut_short_is_named(graph: openvino.Graph) -> None:
    graph.values = graph.values[:16]
    with pytest.raises(openvino.IrError, match="cut short"):
        graph.value("weight")


def test_a_missing_layer_and_a_file_that_is_no_graph_are_named(graph: openvino.Graph, tmp_path: Path) -> None:
    with pytest.raises(openvino.IrError, match="no layer called"):
        graph.value("absent")
    (tmp_path / "other.xml").write_text("<html/>")
    with pytest.raises(openvino.IrError, match="no layers and edges"):
        openvino.read(tmp_path / "other.xml")
