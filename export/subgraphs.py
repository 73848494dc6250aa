"""Nodes whose attributes hold graphs (``Scan``), which read values of the graph around them without naming them as inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

__all__ = ["reads", "rename"]


def reads(node: onnx.NodeProto) -> set[str]:
    """All values that a node reads, those that its subgraphs take from around them included."""
    found = set(node.input)
    for graph in _bodies(node):
        made = {each.name for each in (*graph.input, *graph.initializer)} | {each for inner in graph.node for each in inner.output}
        for inner in graph.node:
            found |= reads(inner) - made
    return found


def rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Values that a node reads or makes get new names, in its subgraphs too. No subgraph may have a name of its own among them."""
    for row in (node.input, node.output):
        for at, each in enumerate(row):
            row[at] = names.get(each, each)
    for graph in _bodies(node):
        for inner in graph.node:
            rename(inner, names)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
