"""What a rule is: one rewrite of a query plan, in a file of its name, listed with its reason in `RULES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from krypton.ir.graph import Graph, Node
from krypton.ir.plan import QueryPlan, TensorPlan
from krypton.ir.weights import Reference
from krypton.planner.cost import DeviceProfile
from krypton.settings import Settings


@dataclass(frozen=True)
class Context:
    """What rules may look at besides the plan. `sensitivities` are those that earlier queries measured, by a layer's weight."""

    settings: Settings = field(default_factory=Settings)
    profile: DeviceProfile = field(default_factory=DeviceProfile)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sensitivities: Mapping[Reference, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A named rewrite. Exact rules must not change the answer."""

    name: str
    apply: Callable[[QueryPlan, Context], QueryPlan]
    help: str
    exact: bool = True


def tensor_plan(plan: QueryPlan) -> TensorPlan:
    """The tensor plan of a query plan that has one; rules see no others."""
    assert plan.tensor is not None
    return plan.tensor


def with_graph(plan: QueryPlan, graph: Graph) -> QueryPlan:
    return replace(plan, tensor=replace(tensor_plan(plan), graph=graph))


def map_nodes(plan: QueryPlan, change: Callable[[Node], Node]) -> QueryPlan:
    """The plan with every node replaced by what `change` makes of it."""
    graph = tensor_plan(plan).graph
    return with_graph(plan, graph.with_nodes(change(node) for node in graph))
