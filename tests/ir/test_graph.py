"""Graphs of frozen nodes: rewriting, reading, and what `verify_graph` refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from krypton.errors import PlanError
from krypton.ir.graph import Epilogue, Function, Graph, Node, Term
from krypton.ir.verify import verify_graph


def chain() -> Graph:
    """image → 1 → 2 → 4, with 3 beside 2."""
    shape = (2, 4, 4)
    return Graph(
        (
            Node(0, "image", (), shape),
            Node(1, "conv", (0,), shape, weights={"weight": "a", "bias": "b"}),
            Node(2, "combine", (1,), shape, epilogue=Epilogue((Term(0, "s", "t"),), Function("clamp", (0.0, 6.0)))),
            Node(3, "combine", (1, 0), shape, epilogue=Epilogue((Term(0), Term(1)))),
            Node(4, "combine", (2, 3), shape, epilogue=Epilogue((Term(0), Term(1)))),
        ),
        4,
    )


def test_substituted_nodes_are_read_through_in_chains() -> None:
    graph = chain().substitute({2: 1, 1: 0})
    assert [(node.id, node.inputs) for node in graph] == [(0, ()), (3, (0, 0)), (4, (0, 3))]
    assert chain().substitute({4: 3}).output == 3


def test_what_the_output_does_not_need_is_dropped() -> None:
    graph = Graph(chain().nodes, 2).without_dead()
    assert [node.id for node in graph] == [0, 1, 2]


def test_the_image_is_never_dropped() -> None:
    constant = Graph((Node(0, "image", (), (1, 2, 2)), Node(1, "constant", (), (3,))), 1)
    assert [node.id for node in constant.without_dead()] == [0, 1]


def test_consumers_are_listed_once_each() -> None:
    graph = chain()
    twice = graph.with_nodes([*graph, Node(5, "mul", (4, 4), (2, 4, 4))])
    assert {key: [c.id for c in readers] for key, readers in twice.consumers().items()} == {
        0: [1, 3], 1: [2, 3], 2: [4], 3: [4], 4: [5], 5: [],
    }  # fmt: skip


def test_all_references_of_a_graph_are_found() -> None:
    assert sorted(chain().references()) == ["a", "b", "s", "t"]


def test_networkx_sees_the_same_edges() -> None:
    assert sorted(chain().networkx().edges) == [(0, 1), (0, 3), (1, 2), (1, 3), (2, 4), (3, 4)]


def test_functions_are_written_with_their_numbers() -> None:
    assert str(Function("clamp", (0.0, 6.0))) == "clamp(0, 6)"
    assert str(Function("relu")) == "relu"


def test_a_sound_graph_passes() -> None:
    verify_graph(chain())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda nodes: nodes[::-1], "begins with its image"),
        (lambda nodes: [], "begins with its image"),
        (lambda nodes: [nodes[0], nodes[2], nodes[1], *nodes[3:]], "reads %1, which does not come before"),
        (lambda nodes: [*nodes, nodes[4]], "stands twice"),
        (lambda nodes: nodes[:4], "the output %4 is not in the graph"),
        (lambda nodes: [*nodes[:4], replace(nodes[4], mode="quick")], "unknown mode 'quick'"),
        (lambda nodes: [*nodes[:4], replace(nodes[4], inputs=(2,))], "sums input 1, which it does not have"),
    ],
)
def test_unsound_graphs_are_refused(change, why: str) -> None:
    graph = chain()
    with pytest.raises(PlanError, match=why):
        verify_graph(graph.with_nodes(change(list(graph.nodes))))
