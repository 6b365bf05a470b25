"""Reading the constants of an OpenVINO IR pair (``.xml`` graph, ``.bin`` values) without OpenVINO.

The XML lists layers and edges; a ``Const`` layer carries the type, shape, offset and size of its values, which lie in
the ``.bin``. A converter needs no more: it looks a constant up by name, or finds an unnamed one through its reader.
Format: https://docs.openvino.ai/2023.3/openvino_ir.html
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TYPES = {"f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32}


class IrError(ValueError):
    """The file is not the OpenVINO IR that was expected."""


@dataclass(frozen=True)
class Node:
    """One layer: its name, its type, the ids of the layers it reads (by port), and the place of a constant's values."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    data: dict[str, str]


class Graph:
    """The layers of one IR file by id, with the ids that use each."""

    def __init__(self, nodes: dict[str, Node], values: bytes) -> None:
        self.nodes = nodes
        self.values = values
        self.ids = {node.name: key for key, node in nodes.items()}
        self.readers: dict[str, list[Node]] = {}
        for node in nodes.values():
            for source in node.inputs:
                self.readers.setdefault(source, []).append(node)

    def value(self, name: str) -> np.ndarray:
        """The values of the constant called ``name``, in its stored shape."""
        return self.constant(self.node(name))

    def node(self, name: str) -> Node:
        """The layer called ``name``."""
        if name not in self.ids:
            raise IrError(f"the graph has no layer called {name}")
        return self.nodes[self.ids[name]]

    def reader(self, node: Node) -> Node:
        """The one layer that reads ``node``, past reshapes, which change no value."""
        readers = [r for r in self.readers.get(self.ids[node.name], []) if r.kind != "ShapeOf"]
        if len(readers) != 1:
            raise IrError(f"{node.name} is read by {len(readers)} layers, not by one")
        return self.reader(readers[0]) if readers[0].kind == "Reshape" else readers[0]

    def inputs(self, node: Node, kind: str | None = None) -> list[Node]:
        """The layers that ``node`` reads, in the order of its ports; only those of one ``kind`` where it is given."""
        return [self.nodes[i] for i in node.inputs if kind in (None, self.nodes[i].kind)]

    def constant(self, node: Node) -> np.ndarray:
        """The values of a constant layer, in its stored shape. Reads past a reshape."""
        if node.kind == "Reshape":
            return self.constant(self.inputs(node)[0])
        if node.kind != "Const" or node.data.get("element_type") not in TYPES:
            raise IrError(f"{node.name} is a {node.kind}, not a constant of a known type")
        offset, size = int(node.data["offset"]), int(node.data["size"])
        if offset + size > len(self.values):
            raise IrError(f"{node.name} lies outside the .bin file, which is cut short or belongs to another graph")
        kind = np.dtype(TYPES[node.data["element_type"]])
        shape = [int(n) for n in node.data["shape"].split(",") if n.strip()]
        flat = np.frombuffer(self.values, kind, offset=offset, count=size // kind.itemsize)
        return flat.reshape(shape).copy()


def read(path: Path) -> Graph:
    """The graph of ``path`` (the ``.xml``), with the values of the ``.bin`` beside it."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise IrError(f"{path.name} is not XML: {error}") from error
    layers, edges = root.find("layers"), root.find("edges")
    if layers is None or edges is None:
        raise IrError(f"{path.name} holds no layers and edges; is it an OpenVINO IR file?")
    sources: dict[str, list[tuple[int, str]]] = {}
    for edge in edges:
        sources.setdefault(edge.attrib["to-layer"], []).append((int(edge.attrib["to-port"]), edge.attrib["from-layer"]))
    nodes = {}
    for layer in layers:
        key, data = layer.attrib["id"], layer.find("data")
        inputs = tuple(source for _, source in sorted(sources.get(key, [])))
        nodes[key] = Node(
            layer.attrib["name"], layer.attrib["type"], inputs, dict(data.attrib) if data is not None else {}
        )
    return Graph(nodes, path.with_suffix(".bin").read_bytes())
