"""Which convolutions run in low precision: the fastest kernels whose errors together stay within a tolerance.

Errors of layers are taken as independent: the squared error of the score changes is the sum over convolutions of
(sensitivity · the
kernel's own relative error)². How sensitive the scores are to a layer differs between models by more than ten times, so that
is measured on the image itself (`executor.precision`), and remembered for the model's next query; before that all layers are
taken alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from krypton.ir.graph import Graph, Node
from krypton.ir.plan import TensorPlan
from krypton.ir.weights import Reference
from krypton.kernels import DEFERRED, find
from krypton.planner.norms import joined

USUAL_SENSITIVITY = 1.25
"""Error of the score changes per error of one convolution, as long as nothing was measured of a model."""

MARGIN = 0.7
"""The part of the tolerance that a sample's error may have: the sample is not the map."""

_AIM = 0.9 * MARGIN

SAMPLE_TILES, PER_TILE = 6, 4
"""Tiles that an error is measured on, and how many positions of each."""

USUAL_TRIALS = 3
"""How often that sample runs before the map does: twice when the proposal holds, up to five times when it has to be mended."""

WHOLE_BATCH = 32
"""Occlusions that run together on whole values."""

_STEPS = 60


@dataclass(frozen=True)
class Choice:
    """A kernel for a node: predicted milliseconds per occlusion, and its relative error."""

    kernel: str
    milliseconds: float
    error: float


def choices(graph: Graph, alternatives: Mapping[int, tuple[tuple[str, float], ...]]) -> dict[int, list[Choice]]:
    """What each convolution may run with, from the ranked kernels of a plan; exact kernels but the fastest are left out."""
    nodes = graph.index()
    found: dict[int, list[Choice]] = {}
    for node_id, ranked in alternatives.items():
        node = nodes[node_id]
        able = [Choice(name, ms, find(node.op, name).error) for name, ms in ranked if _fits(node, name, nodes)]
        exact = min((c for c in able if c.error == 0), key=lambda c: c.milliseconds, default=None)
        if exact is not None:
            faster = [c for c in able if c.error > 0 and c.milliseconds < exact.milliseconds]
            found[node_id] = [exact, *faster]
    return found


def _fits(node: Node, kernel: str, nodes: Mapping[int, Node]) -> bool:
    """Can the kernel read the node's input, if that is deferred?"""
    return nodes[node.inputs[0]].kernel != DEFERRED or find(node.op, kernel).begins


def assign(options: Mapping[int, list[Choice]], sensitivity: Mapping[int, float], tolerance: float) -> dict[int, str]:
    """The kernel of each node so that the predicted time is least and the predicted error at most the tolerance.

    By a price of squared error (Lagrange): for every price each node takes what is cheapest for it, and the lowest price that
    keeps the tolerance is found by bisection.
    """
    low, high = -12.0, 24.0  # powers of ten of the price
    best = {node: found[0].kernel for node, found in options.items()}
    for _ in range(_STEPS):
        price = 10 ** ((low + high) / 2)
        picked = {
            node: min(found, key=lambda c: c.milliseconds + price * (sensitivity[node] * c.error) ** 2)
            for node, found in options.items()
        }
        if predicted_error(picked, sensitivity) <= tolerance:
            best, high = {node: choice.kernel for node, choice in picked.items()}, math.log10(price)
        else:
            low = math.log10(price)
    return best


def propose(options: Mapping[int, list[Choice]], sensitivity: Mapping[int, float], tolerance: float) -> dict[int, str]:
    """The kernel of each node that is to be tried for a tolerance."""
    return assign(options, sensitivity, _AIM * tolerance)


def sensitivity_of(graph: Graph, nodes: Iterable[int], known: Mapping[Reference, float]) -> dict[int, float]:
    """The sensitivity of some convolutions, from those known by weight: the largest known for one that is new, the usual one
    for all where nothing is known."""
    index, largest = graph.index(), max(known.values(), default=USUAL_SENSITIVITY)
    return {node: known.get(index[node].weights["weight"], largest) for node in nodes}


def by_weight(graph: Graph, sensitivity: Mapping[int, float]) -> dict[Reference, float]:
    """The other way round; of convolutions that share a weight the larger."""
    index, found = graph.index(), dict[Reference, float]()
    for node, value in sensitivity.items():
        reference = index[node].weights["weight"]
        found[reference] = max(value, found.get(reference, 0.0))
    return found


def predicted_error(picked: Mapping[int, Choice], sensitivity: Mapping[int, float]) -> float:
    return math.sqrt(sum((sensitivity[node] * choice.error) ** 2 for node, choice in picked.items()))


def with_kernels(graph: Graph, kernels: Mapping[int, str]) -> Graph:
    """The graph with these convolutions run by these kernels, their endings as before."""

    def change(node: Node) -> Node:
        if node.id not in kernels:
            return node
        names = [kernels[node.id], *node.kernel.split("+")[1:]]
        return replace(node, kernel="+".join(dict.fromkeys(names)))

    return graph.with_nodes(change(node) for node in graph)


def exact_kernels(graph: Graph, alternatives: Mapping[int, tuple[tuple[str, float], ...]]) -> Graph:
    """The graph with all convolutions in float32."""
    options = choices(graph, alternatives)
    return with_kernels(graph, {node.id: options[node.id][0].kernel for node in in_low_precision(graph)})


def without_approximations(tensor: TensorPlan) -> TensorPlan:
    """The plan that computes exactly what this one approximates: whole fields, and all convolutions in float32."""
    if tensor.frozen:  # what is frozen ends increments when it is not
        return TensorPlan(joined(tensor.graph.whole()), tiling=tensor.tiling, head_batch=min(tensor.head_batch, WHOLE_BATCH))
    return without_cuts(tensor)


def without_cuts(tensor: TensorPlan) -> TensorPlan:
    """The plan with whole fields, and all convolutions in float32; what is frozen stays so."""
    uncut = tensor.uncut()
    return replace(uncut, graph=exact_kernels(uncut.graph, uncut.alternatives), tolerance=0.0)


def in_low_precision(graph: Graph) -> list[Node]:
    """The convolutions whose kernel is not exact."""
    return [n for n in graph if n.op == "conv" and n.kernel and find("conv", n.own_kernel).error > 0]
