"""A tensor plan made ready for a device: kernels built, views materialised; then tile after tile through the trunk.

The *trunk* is what runs on deltas, once per tile, up to where values become whole. The *head* is what runs on whole values,
on batches gathered from several tiles.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from krypton.errors import PlanError
from krypton.executor.energy import EnergyMeter
from krypton.executor.head_kernels import HeadKernels
from krypton.executor.occluder import Occluder
from krypton.executor.own_fields import OwnFields
from krypton.executor.tile import RunningTile
from krypton.ir.delta import Delta
from krypton.ir.graph import Node
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import TensorPlan
from krypton.ir.weights import Reference, WeightStore
from krypton.kernels import DEFERRED, Kernel, choose, find
from krypton.kernels.chain import LEAST_TURNS
from krypton.kernels.registry import Runner
from krypton.operators.base import Value, ViewKey, channels_last, operator_of
from krypton.planner.fields import Fields
from krypton.planner.whole import WholeBatch, run_nodes


class StopExecutionError(Exception):
    """The run was cancelled; raised between operators."""


class Program:
    """See the module. `actual` collects milliseconds per node when given; `debug` checks every delta (slowly); a `meter` is
    shown all deltas."""

    def __init__(
        self,
        plan: TensorPlan,
        weights: WeightStore,
        device: torch.device,
        actual: dict[int, float] | None = None,
        cancelled: Callable[[], bool] | None = None,
        debug: bool = False,
        meter: EnergyMeter | None = None,
    ) -> None:
        self.plan = plan
        self.graph = plan.graph
        self.device = device
        self.fields = Fields(plan.graph)
        self.own_fields = OwnFields(self.fields, device)
        self.nodes = plan.graph.index()
        self.views: dict[ViewKey, Tensor] = {}
        self._weights = weights
        self._on_device: dict[Reference, Tensor] = {}
        self._actual = actual
        self._cancelled = cancelled
        self._debug = debug
        self._meter = meter
        self._image: Tensor | None = None
        self._trunk = [n for n in self.graph if n.mode in ("delta", "project") and n.op != "image"]
        self._head = _ancestors_of_output(plan)
        self._crossing = _crossing(plan)
        self._steps = _steps(plan, self._trunk, chained=not debug and meter is None)
        self._last = {source: place for place, step in enumerate(self._steps) for node in step for source in node.inputs}
        self.fused: set[int] = set()
        self.kernels, self.combines = self._build_kernels()
        self._head_kernels = HeadKernels(plan, weights)

    def weight(self, reference: Reference) -> Tensor:
        """A weight on the device; kept, since every batch asks again."""
        known = self._on_device.get(reference)
        if known is None:
            known = self._on_device[reference] = self._weights.get(reference).to(self.device)
        return known

    def _build_kernels(self) -> tuple[dict[int, Runner], dict[int, Runner]]:
        kernels: dict[int, Runner] = {}
        combines: dict[int, Runner] = {}
        for node in self._trunk:
            names = node.kernel.split("+") if node.kernel else ["reference"]
            served = choose(node.op, node, self.device, reference=True)  # does this operator use kernels at all?
            if node.op != "combine" and served:
                kernel = find(node.op, names[0])
                kernels[node.id] = self._build(kernel, node)
                if kernel.fused:
                    self.fused.add(node.id)
            if node.kernel == DEFERRED:
                continue
            if node.epilogue or node.id in self.fields.places or node.op == "conv":
                # a node without epilogue may still have to be copied to its place
                name = names[-1] if node.epilogue and node.id not in self.fused else choose("combine", node, self.device)
                combines[node.id] = self._build(find("combine", name), node)
        return kernels, combines

    def _build(self, kernel: Kernel, node: Node) -> Runner:
        """A kernel for a node, shared by all runs on these weights."""
        key = kernel, json.dumps(node.attrs), tuple(node.weights.items()), node.function, str(self.device)
        return self._weights.prepared(key, lambda: kernel.build(node, self._weights.get))

    def prepare(self, image: Tensor, tiles: Sequence[OcclusionTile]) -> Tensor:
        """Compute the base views of an image (C, H, W) on the device, and the tiles' geometry; returns base logits (K,)."""
        for axis, intervals in enumerate(({tile.rows for tile in tiles}, {tile.columns for tile in tiles})):
            for interval in intervals:
                self.fields.axis(axis, interval)  # type: ignore[arg-type]
        for tile in tiles:
            self.own_fields.of(tile)
        self._image = channels_last(image[None])
        logits = self._materialise(None)  # not to be cancelled: the base logits are promised
        if self.plan.view_scope == "batch":
            self.views.clear()
        return logits

    def adopt(self, other: Program) -> None:
        """Work on the views of another program on the same image, which differs in its kernels and cuts alone."""
        self.views, self._image = other.views, other._image
        if all(node.cuts == other.nodes[node.id].cuts for node in self.graph):
            self.fields, self.own_fields = other.fields, other.own_fields

    def _materialise(self, check: Callable[[], None] | None) -> Tensor:
        wanted = None if self.plan.views is None else {(node, kind) for node, kind in self.plan.views}
        assert self._image is not None
        views: dict[Any, Tensor] = {}
        image = self.graph.image.id

        def keep(key: ViewKey, value: Tensor) -> None:
            if (wanted is None or key in wanted) and isinstance(value, Tensor):
                views[key] = channels_last(value) if value.dim() == 4 else value

        keep((image, "out"), self._image)
        plain = [node for node in self.graph.nodes if node.op != "image"]
        values = run_nodes(plain, {image: self._image}, self._whole(1), {self.graph.output}, keep, check)
        self.views = views
        return values[self.graph.output].float()[0]

    def trunk(self, occluder: Occluder, tile: OcclusionTile) -> dict[int, Tensor]:
        """Whole values (B, *shape) by node id, where the increments of one tile end."""
        if self.graph.image.mode == "full":
            return {self.graph.image.id: occluder.images(tile.indices)}
        if self.plan.view_scope == "batch":
            self._materialise(self._check)
        running = RunningTile(self, len(tile.indices), tile)
        image = self.graph.image
        change = running.stored(image, occluder.delta(tile))
        values: dict[int, Value] = {image.id: change}
        results: dict[int, Tensor] = {}
        for place, step in enumerate(self._steps):
            self._check()
            if len(step) > 1 and running.batch >= LEAST_TURNS * torch.get_num_threads():
                self._run_chain(step, values, running)
            else:
                for node in step:
                    self._run(node, values, running, tile)
            for node in step:
                if node.id in self._crossing:
                    value = values[node.id]
                    assert isinstance(value, Tensor)
                    results[node.id] = value
            for source in {source for node in step for source in node.inputs}:
                if self._last.get(source) == place:
                    values.pop(source, None)
                    running.free(source)
        if self._debug:
            self._compare(occluder, tile, running)
        return results

    def _run(self, node: Node, values: dict[int, Value], running: RunningTile, tile: OcclusionTile) -> None:
        started = time.perf_counter()
        value = values[node.id] = self._step(node, [values.get(source) for source in node.inputs], running)
        if self._meter is not None and isinstance(value, Delta):
            self._meter.note(node, value, tile)
        self._took(node, time.perf_counter() - started)

    def _run_chain(self, nodes: Sequence[Node], values: dict[int, Value], running: RunningTile) -> None:
        """The nodes together, a few occlusions at a time."""
        started = time.perf_counter()
        linked: list[Node] = []
        with running.chained(nodes) as chain:
            for node in nodes:
                values[node.id] = self._step(node, [values.get(source) for source in node.inputs], running)
                linked += [node] * (len(chain) - len(linked))
        spent = chain.run()
        wall = (time.perf_counter() - started) / max(sum(spent), 1e-9)
        for node, seconds in zip(linked, spent, strict=True):
            self._took(node, seconds * wall)

    def _took(self, node: Node, seconds: float) -> None:
        if self._actual is not None:
            self._actual[node.id] = self._actual.get(node.id, 0.0) + seconds * 1e3

    def _step(self, node: Node, inputs: list[Value], running: RunningTile) -> Value:
        if node.mode == "project" and all(value is None for value in inputs):
            base = self._base_of(node)
            return base.expand(running.batch, *base.shape[1:])
        # axes are worked out apart: a union of boxes that are empty along different axes is not empty, and nothing changed
        if running.field(node).empty or all(value is None for value in inputs):
            return None
        if node.kernel == DEFERRED:
            assert isinstance(inputs[0], Delta)
            return running.deferred(node, inputs[0])
        value = operator_of(node).delta(node, inputs, running)
        if isinstance(value, Delta):
            value.fields = running.own_fields(node)
            if node.cuts and node.id not in self.fused:
                running.clear_outside(value)
        if self._debug and isinstance(value, Delta):
            running.record(node, value)
        return value

    def _base_of(self, node: Node) -> Tensor:
        source = node.inputs[0] if node.op == "project" else node.id
        return self.view(source, "out")

    def view(self, node: int, kind: Any) -> Tensor:
        """A base view (1, *shape); PlanError when the plan forgot to keep it."""
        try:
            return self.views[node, kind]
        except KeyError:
            raise PlanError(f"the plan reads the view {kind!r} of %{node} but does not keep it") from None

    def head(self, values: dict[int, Tensor], batch: int) -> Tensor:
        """Logits (B, K) from whole values."""
        if self.graph.output not in values:
            kernels = self._head_kernels
            whole = WholeBatch(batch, self.device, self.weight, kernels.runners, kernels.rooms())
            values = run_nodes(self._head, dict(values), whole, {self.graph.output}, check=self._check, took=self._took)
        return values[self.graph.output]

    def _whole(self, batch: int) -> WholeBatch:
        return WholeBatch(batch, self.device, self.weight)

    def _check(self) -> None:
        if self._cancelled is not None and self._cancelled():
            raise StopExecutionError

    def _compare(self, occluder: Occluder, tile: OcclusionTile, running: RunningTile) -> None:
        """Debug: every recorded delta against the difference of whole values (invariants I1 and I2); cut ones differ from it,
        but must keep to their fields as well."""
        whole: dict[ViewKey, Tensor] = {}
        base: dict[ViewKey, Tensor] = {}
        assert self._image is not None
        plain = [node for node in self.graph.nodes if node.op != "image"]
        for images, kept in ((occluder.images(tile.indices), whole), (self._image, base)):
            run_nodes(plain, {self.graph.image.id: images}, self._whole(len(images)), set(), kept.__setitem__)
        for node, delta in running.recorded:
            running.check_field(node, delta)
            if not self.plan.cut:
                running.compare(node, delta, whole[node.id, "out"] - base[node.id, "out"], base[node.id, "out"])


def _ancestors_of_output(plan: TensorPlan) -> list[Node]:
    """The nodes of the head, with the constants they read."""
    return [node for node in plan.graph if node.mode in ("full", "once") and node.op != "image"]


def _crossing(plan: TensorPlan) -> set[int]:
    """The whole values that the head reads, or the output itself."""
    sources = {node.id for node in plan.graph if node.mode == "project"}
    read = {source for node in plan.graph if node.mode == "full" for source in node.inputs}
    return (sources & read) | ({plan.graph.output} & sources)


def _steps(plan: TensorPlan, trunk: Sequence[Node], *, chained: bool) -> list[tuple[Node, ...]]:
    """The nodes of the trunk one by one; those of a chain together, at the place of its last."""
    nodes = plan.graph.index()
    chains = [tuple(nodes[node] for node in chain) for chain in plan.chains if nodes[chain[0]].mode == "delta"]
    chains = [chain for chain in chains if chained and all(find("conv", n.own_kernel).chained for n in chain)]
    inner, last = {node.id for chain in chains for node in chain[:-1]}, {chain[-1].id: chain for chain in chains}
    return [last.get(node.id, (node,)) for node in trunk if node.id not in inner]
