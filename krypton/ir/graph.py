"""The dataflow of a CNN: frozen nodes in topological order. The logical graph and the tensor plan are both made of these.

A value is either *spatial*, shape (C, H, W), or something else; the batch axis is never part of a shape. Capture makes nodes
in mode `full`; rules of the planner change modes, fuse epilogues and choose kernels, always by replacing nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import networkx as nx

from krypton.ir.geometry import Cut
from krypton.ir.weights import Reference

Mode = Literal["full", "delta", "project", "once", "frozen"]
"""full: on whole maps, once per occlusion. delta: on boxes. project: delta in, whole value out. once: not per occlusion."""


@dataclass(frozen=True)
class Function:
    """An elementwise function with its numbers, e.g. `Function("clamp", (0.0, 6.0))`."""

    name: str
    parameters: tuple[float, ...] = ()

    def __str__(self) -> str:
        numbers = ", ".join(f"{p:g}" for p in self.parameters)
        return f"{self.name}({numbers})" if self.parameters else self.name


@dataclass(frozen=True)
class Term:
    """One summand of an epilogue: an input (by its place in `Node.inputs`; -1 the node's own result), times `scale` plus
    `shift`, both per channel, shape (C,)."""

    input: int
    scale: Reference | None = None
    shift: Reference | None = None


@dataclass(frozen=True)
class Epilogue:
    """What follows a node's own arithmetic: `function(sum of terms)`."""

    terms: tuple[Term, ...]
    function: Function | None = None


@dataclass(frozen=True)
class Node:
    """One operator application.

    `attrs` are numbers, texts and lists (JSON); tensors are in `weights`, by reference. `module` is the model's own name for
    where this came from. `cuts`, along rows and columns, give up the outer part of its field. `rules` are the optimizer rules
    that made the node what it is.
    """

    id: int
    op: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Reference] = field(default_factory=dict)
    module: str = ""
    epilogue: Epilogue | None = None
    mode: Mode = "full"
    kernel: str = ""
    cuts: tuple[tuple[Cut, Cut], ...] = ()
    rules: tuple[str, ...] = ()

    @property
    def spatial(self) -> bool:
        return len(self.shape) == 3

    @property
    def function(self) -> Function | None:
        return self.epilogue.function if self.epilogue else None

    @property
    def own_kernel(self) -> str:
        """The kernel of the operator itself: `kernel` may be two, "direct+native", the second that of the epilogue."""
        return self.kernel.split("+")[0]

    def references(self) -> list[Reference]:
        """All weights this node needs."""
        found = list(self.weights.values())
        for term in self.epilogue.terms if self.epilogue else ():
            found += [reference for reference in (term.scale, term.shift) if reference]
        return found


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order; the first is the image, `output` the logits (K,)."""

    nodes: tuple[Node, ...]
    output: int

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def image(self) -> Node:
        return self.nodes[0]

    def index(self) -> dict[int, Node]:
        """Nodes by id."""
        return {node.id: node for node in self.nodes}

    def consumers(self) -> dict[int, list[Node]]:
        """For every node, the nodes that read it, once for each node."""
        readers: dict[int, list[Node]] = {node.id: [] for node in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(node.inputs):
                readers[source].append(node)
        return readers

    def references(self) -> list[Reference]:
        return [reference for node in self.nodes for reference in node.references()]

    def with_nodes(self, nodes: Iterable[Node], output: int | None = None) -> Graph:
        return Graph(tuple(nodes), self.output if output is None else output)

    def whole(self) -> Graph:
        """The same on whole values throughout, nothing left out, by PyTorch."""
        plain = self.substitute({node.id: node.inputs[0] for node in self.nodes if node.op == "project"})
        return plain.with_nodes(
            node if node.mode == "once" else replace(node, mode="full", cuts=(), kernel="") for node in plain.nodes
        )

    def substitute(self, replacements: Mapping[int, int]) -> Graph:
        """Drop the nodes that are keys, reading the values' nodes in their place (chains are followed)."""

        def final(node_id: int) -> int:
            while node_id in replacements:
                node_id = replacements[node_id]
            return node_id

        kept = [
            replace(node, inputs=tuple(final(source) for source in node.inputs))
            for node in self.nodes
            if node.id not in replacements
        ]
        return Graph(tuple(kept), final(self.output))

    def without_dead(self) -> Graph:
        """Only the image and what the output depends on."""
        needed = {self.image.id, self.output}
        for node in reversed(self.nodes):
            if node.id in needed:
                needed.update(node.inputs)
        return Graph(tuple(node for node in self.nodes if node.id in needed), self.output)

    def networkx(self) -> nx.DiGraph[int]:
        """The graph as networkx sees it: nodes by id, edges along the data."""
        graph: nx.DiGraph[int] = nx.DiGraph()
        graph.add_nodes_from(node.id for node in self.nodes)
        graph.add_edges_from((source, node.id) for node in self.nodes for source in node.inputs)
        return graph
