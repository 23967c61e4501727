"""Concats share buffers: whatever is nested, repeated, grown or read by several, every slot must hold its own delta."""

from __future__ import annotations

import pytest
import torch
from support.judge import check_exact, settings_of
from support.nets import SpecNet, Step

from krypton.executor.head_kernels import HeadKernels
from krypton.ir.graph import Graph, Node
from krypton.ir.occlusions import Grid
from krypton.kernels import native
from krypton.planner.capture import capture
from krypton.planner.optimizer import plan_query
from krypton.planner.placement import Place, placements

IMAGE = (2, 13, 11)
GRID = Grid((13, 11), (3, 4), (4, 3))

# value 0 is the image; a, b and c are values 1, 2 and 3, with fields of their own
ABC = (
    Step("conv", (0,), {"out": 3, "kernel": 1}),
    Step("conv", (0,), {"out": 2, "kernel": 3, "padding": 1}),
    Step("max_pool", (0,), {"kernel_size": 3, "stride": 1, "padding": 1}),
)

CONCATS = {
    "once": [(1, 2, 3)],
    "twice the same input": [(1, 1)],
    "the same input around another": [(1, 2, 1)],
    "the image itself": [(0, 1)],
    "nested first": [(1, 2), (4, 3)],
    "nested last": [(1, 2), (3, 4)],
    "nested twice": [(1, 2), (4, 4)],
    "an input inside and outside": [(1, 2), (1, 4)],
    "an input inside and behind": [(1, 2), (4, 1)],
    "the second input inside and outside": [(1, 2), (2, 4)],
    "growing": [(1, 2), (1, 2, 3)],
    "growing, two ways": [(1, 2), (1, 2, 3), (1, 2, 0)],
    "growing from a repeated input": [(1, 1), (1, 1, 2)],
    "growing and nested": [(1, 2), (1, 2, 3), (4, 5)],
    "one prefix, nested in another": [(1, 2), (4, 3), (1, 2, 3)],
    "another order": [(1, 2), (2, 1)],
    "deep": [(1, 2), (4, 3), (5, 1), (6, 4)],
    "the same concat written twice": [(1, 2), (1, 2)],
}


@pytest.mark.parametrize("with_readers", [False, True], ids=["concats", "read in between"])
@pytest.mark.parametrize("name", CONCATS)
def test_concats_are_exact(name: str, with_readers: bool) -> None:
    steps = [*ABC, *(Step("concat", inputs) for inputs in CONCATS[name])]
    ends = list(range(4, len(steps) + 1))
    if with_readers:  # each concat is read at once, and the results go on with the last concat
        for concat in ends[:]:
            steps.append(Step("conv", (concat,), {"out": 2, "kernel": 3, "padding": 1}))
            steps.append(Step("activation", (len(steps),), {"name": "relu"}))
            ends.append(len(steps))
    steps.append(Step("concat", tuple(ends)))
    steps.append(Step("conv", (len(steps),), {"out": 3, "kernel": 3, "padding": 1}))
    steps.append(Step("mean_head", (len(steps),), {"out": 3}))
    generator = torch.Generator().manual_seed(3)
    image, fill = torch.randn(IMAGE, generator=generator), torch.randn(IMAGE, generator=generator)
    for disabled in (
        "full_when_cheaper",
        "full_when_cheaper,fuse_activation",
        "full_when_cheaper,choose_kernel",
        "incremental",
    ):
        check_exact(SpecNet(IMAGE, steps), image, fill, GRID, {"disabled_rules": disabled})


def graph_of(*concats: tuple[int, ...]) -> Graph:
    nodes = [Node(0, "image", (), (2, 8, 8), mode="delta")]
    nodes += [Node(i, "conv", (0,), (i, 8, 8), mode="delta") for i in (1, 2, 3)]
    for inputs in concats:
        sizes = [nodes[i].shape[0] for i in inputs]
        nodes.append(Node(len(nodes), "concat", inputs, (sum(sizes), 8, 8), {"sizes": sizes}, mode="delta"))
    return Graph(tuple(nodes), len(nodes) - 1)


def test_inputs_are_written_straight_into_their_slots() -> None:
    assert placements(graph_of((1, 2, 3))) == {1: Place(4, 0), 2: Place(4, 1), 3: Place(4, 3)}


def test_growing_concats_share_the_longest_ones_buffer() -> None:
    places = placements(graph_of((1, 2), (1, 2, 3)))
    assert places == {4: Place(5, 0), 1: Place(5, 0), 2: Place(5, 1), 3: Place(5, 3)}


def test_nested_concats_lie_in_the_outermost_buffer() -> None:
    places = placements(graph_of((1, 2), (3, 4)))
    assert places == {4: Place(5, 3), 1: Place(5, 3), 2: Place(5, 4), 3: Place(5, 0)}


def test_an_input_that_stands_twice_is_copied() -> None:
    assert placements(graph_of((1, 2, 1))) == {2: Place(4, 1)}


def test_whole_values_have_no_place() -> None:
    graph = graph_of((1, 2))
    assert placements(graph.with_nodes(Node(n.id, n.op, n.inputs, n.shape, n.attrs) for n in graph)) == {}


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_whole_values_are_written_into_concats_as_well() -> None:
    steps = [*ABC, Step("concat", (1, 3)), Step("concat", (4, 2)), Step("mean_head", (5,), {"out": 3})]
    captured = capture(SpecNet(IMAGE, steps), IMAGE)
    plan = plan_query(captured, GRID, settings=settings_of({"disabled_rules": "incremental"}))
    assert plan.tensor is not None
    kernels = HeadKernels(plan.tensor, captured.weights)
    of_op = {op: [node for node in plan.tensor.graph if node.op == op] for op in ("conv", "max_pool", "concat")}
    (first, second), (pool,), (inner, outer) = of_op["conv"], of_op["max_pool"], of_op["concat"]
    rooms = kernels.rooms()
    parts = {node.id: rooms.of(node, 4) for node in (first, second, inner)}
    assert rooms.of(pool, 4) is None  # PyTorch pools whole values, and they are copied
    whole = rooms.of(outer, 4)
    assert whole is not None
    assert {node: part.data_ptr() - whole.data_ptr() for node, part in parts.items() if part is not None} == {
        first.id: 0, inner.id: 0, second.id: 4 * 5,
    }  # fmt: skip
    assert rooms.of(outer, 4).data_ptr() != whole.data_ptr()  # the next one has a buffer of its own


def test_settings_of_these_tests_check_every_delta() -> None:
    assert settings_of()["debug"] is True
