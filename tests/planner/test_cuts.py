"""Cut fields: their size and place against brute force, and the answers against whole maps cut by hand."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from support.judge import Oracle, settings_of
from support.random_nets import Case, cases
from support.small import GRID, MODELS, captured_model, image_and_fill, model
from torch import Tensor

from krypton.executor import execute
from krypton.executor.engine import TensorEngine
from krypton.executor.occluder import Occluder
from krypton.executor.program import Program
from krypton.ir.geometry import Interval
from krypton.ir.occlusions import Grid, Masks, OcclusionTile, tile_around
from krypton.ir.plan import Approximation, QueryPlan, TensorPlan
from krypton.ir.serde import plan_from_json, plan_to_json
from krypton.operators.base import spatial_size
from krypton.planner.capture import capture
from krypton.planner.explain import explain
from krypton.planner.fields import Fields
from krypton.planner.optimizer import plan_query
from krypton.planner.projection import AXES, projections, windowed
from krypton.planner.whole import WholeBatch, run_node

DELTAS = {"disabled_rules": "full_when_cheaper"}
SMALL = DELTAS | {"batch": 2}  # larger tiles cover so small a map, whatever is cut


def planned(name: str, approximation: Approximation, asked: Grid | Masks = GRID) -> QueryPlan:
    return plan_query(captured_model(name), asked, mode="approximate", approximation=approximation, settings=settings_of(SMALL))


def tensor_of(plan: QueryPlan) -> TensorPlan:
    assert plan.tensor is not None
    return plan.tensor


def intervals(side: int, patch: int) -> list[Interval]:
    return [Interval(start, start + patch) for start in range(side - patch + 1)]


@pytest.mark.parametrize("name", MODELS)
def test_projections_are_the_middles_of_fields(name: str) -> None:
    """Far from the border a field grows alike on both sides, but for strides, which skip at most what one step is wide."""
    graph = tensor_of(planned(name, Approximation(tau=1.0))).graph
    fields, found = Fields(graph), projections(graph)
    compared = 0
    for axis in AXES:
        for interval in intervals(graph.image.shape[1 + axis], 2):
            for node_id, field in fields.changed(axis, interval).items():
                node = graph.index()[node_id]
                if not node.spatial or node.op == "adaptive_avg_pool" or field.empty or node.id not in found:
                    continue
                if field.start > 0 and field.stop < spatial_size(node, axis):
                    first, last = found[node_id][axis].of(interval)
                    compared += 1
                    assert abs((field.start + field.stop - 1) / 2 - (first + last) / 2) <= 1
    assert compared > 20


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("tau", [0.3, 0.6, 0.9])
def test_tau_bounds_the_size_of_what_one_occlusion_changes(name: str, crop: bool, tau: float) -> None:
    plan = planned(name, Approximation(tau=tau, crop=crop))
    cut, whole = Fields(tensor_of(plan).graph), Fields(tensor_of(plan).uncut().graph)
    for axis in AXES:
        for interval in GRID.intervals(axis):
            fields, uncut = cut.changed(axis, interval), whole.changed(axis, interval)
            for node in tensor_of(plan).graph:
                if node.id not in fields or not node.spatial:
                    continue
                assert uncut[node.id].contains(fields[node.id])
                assert uncut[node.id].empty == fields[node.id].empty
                if windowed(node):
                    assert fields[node.id].size <= max(1, round(tau * spatial_size(node, axis)))


@pytest.mark.parametrize("name", MODELS)
def test_cut_fields_grow_with_what_is_occluded(name: str) -> None:
    graph = tensor_of(planned(name, Approximation(tau=0.5))).graph
    fields = Fields(graph)
    for axis in AXES:
        for small in intervals(graph.image.shape[1 + axis], GRID.patch[axis]):
            for large in (Interval(max(small.start - 2, 0), small.stop), Interval(small.start, small.stop + 1)):
                if large.stop <= graph.image.shape[1 + axis]:
                    larger, smaller = fields.changed(axis, large), fields.changed(axis, small)
                    assert all(larger[node].contains(smaller[node]) for node in smaller if graph.index()[node].spatial)


@pytest.mark.parametrize("crop", [False, True])
def test_tau_1_is_exact(crop: bool) -> None:
    plan = planned("residual", Approximation(tau=1.0, crop=crop, quality_share=0.5))
    assert not tensor_of(plan).cut
    assert [stage.kind for stage in plan.stages] == ["every"]


def test_cropped_inputs_leave_less_of_the_change_than_cut_outputs() -> None:
    """By hand, for the first convolution: 3 rows in steps of 2 make 10 rows, of which 0.2 leaves 2; 2·2 - 3 + 1 make these."""
    plan = planned("residual", Approximation(tau=0.2, crop=True))
    graph = tensor_of(plan).graph
    inputs = [graph.index()[node.inputs[0]] for node in graph if windowed(node) and "kernel" in node.attrs]
    assert {node.op for node in inputs} == {"combine"}
    fields = Fields(graph)
    assert fields.changed(0, Interval(8, 12))[inputs[0].id].size == 2
    for node in (node for node in graph if windowed(node)):
        stride, kernel = node.attrs["stride"][0], node.attrs["kernel"][0]
        read = fields.changed(0, Interval(8, 12))[node.inputs[0]]
        assert read.size <= max(1, stride * max(1, round(0.2 * node.shape[1])) - kernel + 1)
    assert "projective_threshold" in explain(plan)


def test_explain_shows_cut_fields_and_what_they_leave() -> None:
    whole, cut = planned("residual", Approximation(tau=1.0)), planned("residual", Approximation(tau=0.4))
    fields = [{n: c.field for n, c in tensor_of(plan).costs.items() if c.field} for plan in (whole, cut)]
    assert any(fields[1][node][0] < fields[0][node][0] for node in fields[1])
    (note,) = [note for note in cut.notes if "are cut" in note]
    adds = [sum(cost.multiply_adds for cost in tensor_of(plan).costs.values()) for plan in (whole, cut)]
    assert adds[1] < 0.8 * adds[0]
    assert note in explain(cut)
    assert "projective_threshold" in explain(cut)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "approximation",
    [Approximation(tau=0.5), Approximation(tau=0.5, crop=True), Approximation(keep=0.9), Approximation(0.7, 0.99)],
    ids=str,
)
def test_plans_with_cuts_survive_json(name: str, approximation: Approximation) -> None:
    plan = planned(name, approximation)
    assert tensor_of(plan).cut
    assert plan_from_json(plan_to_json(plan)) == plan
    assert not tensor_of(plan).uncut().cut


# ---------------------------------------------------------------------------------------------------- answers


@torch.no_grad()
def cut_by_hand(program: Program, occluder: Occluder, tile: OcclusionTile) -> Tensor:
    """Logits of a tile from whole maps, in which every cut node's change is set to zero outside each occlusion's field."""
    graph, fields = program.graph, program.fields
    values: dict[int, Tensor] = {graph.image.id: occluder.images(tile.indices)}
    base: dict[int, Tensor] = {graph.image.id: occluder.image[None]}
    for node in graph.nodes[1:]:
        for known, batch in ((base, 1), (values, len(tile.indices))):
            whole = WholeBatch(batch, program.device, program.weight)
            known[node.id] = run_node(node, [known[source] for source in node.inputs], whole)[1]
        if node.cuts:
            kept = base[node.id].expand_as(values[node.id]).clone()
            for i, own in enumerate(zip(*tile.own, strict=True)):
                rows, columns = (slice(*fields.changed(axis, own[axis])[node.id]) for axis in AXES)
                kept[i, :, rows, columns] = values[node.id][i, :, rows, columns]
            values[node.id] = kept
    return values[graph.output]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(
    "approximation",
    [Approximation(tau=0.5), Approximation(tau=0.5, crop=True), Approximation(keep=0.9), Approximation(0.7, 0.95)],
    ids=str,
)
def test_answers_are_those_of_whole_maps_cut_by_hand(name: str, kernels: str, approximation: Approximation) -> None:
    image, fill = image_and_fill()
    asked, chosen = Grid((19, 16), (4, 3), (2, 3)), settings_of(SMALL | {"kernels": kernels})
    plan = plan_query(captured_model(name), asked, mode="approximate", approximation=approximation, settings=chosen)
    occluder = Occluder(asked, image, fill)
    tiles = tensor_of(plan).tiling.tiles(asked)
    engine = TensorEngine(plan, captured_model(name).weights, occluder, tiles, settings=chosen)
    if approximation.keep is not None:
        singles = [tile_around([i], asked.rectangles().reshape(-1, 4)) for i in range(asked.count)]
        assert len(list(engine.measure(singles))) > 0
        assert plan.tensor is not None
        plan = engine.settled(plan, plan.tensor.keep)
        tiles = tensor_of(plan).tiling.tiles(asked)
    assert any(node.cuts for node in tensor_of(plan).graph)
    changed, change = 0.0, 0.0
    for tile in tiles:
        (batch,) = engine.run([tile])
        wanted = cut_by_hand(engine._program, occluder, tile)
        assert torch.allclose(batch.logits, wanted, atol=1e-5)
        assert not batch.exact
        (exact,) = engine.run([tile], exact=True)
        assert exact.exact
        changed = max(changed, float((exact.logits - batch.logits).abs().max()))
        change = max(change, float((exact.logits - engine.base_logits).abs().max()))
    assert changed > 1e-3 * change
    oracle = Oracle(model(name), image, fill, asked)
    logits = torch.cat([batch.logits for batch in engine.run(tiles, exact=True)])
    order = torch.tensor([index for tile in tiles for index in tile.indices])
    oracle.judge(logits[order.argsort()])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=25)
@given(cases(), st.sampled_from([0.3, 0.6, 0.9, None]), st.sampled_from([0.8, 0.99, None]), st.booleans())
def test_random_nets_keep_to_their_cut_fields(case: Case, tau: float | None, keep: float | None, crop: bool) -> None:
    """Debug mode checks I1; every value is finite, and exact where it says so."""
    net, (image, fill) = case.net(), case.tensors()
    captured = capture(net, case.image)
    approximation = Approximation(tau, keep, quality_share=0.3, crop=crop)
    plan = plan_query(captured, case.occlusions, mode="approximate", approximation=approximation, settings=settings_of(SMALL))
    plan = plan_from_json(plan_to_json(plan))
    oracle = Oracle(net, image, fill, case.occlusions)
    logits, exact = torch.full_like(oracle.reference, torch.nan), torch.zeros(len(oracle.reference), dtype=torch.bool)
    for batch in execute(plan, image, fill, weights=captured.weights, settings=settings_of()):
        logits[batch.indices], exact[batch.indices] = batch.logits.double(), torch.tensor(batch.exact)
    assert torch.isfinite(logits).all()
    assert ((logits - oracle.reference).abs() <= oracle.allowed)[exact].all()
    if not tensor_of(plan).cut:
        assert exact.all()


def test_masks_are_cut_as_well() -> None:
    masks = torch.zeros(24, 19, 16, dtype=torch.bool)  # of fewer than 16 none would be cut to what was measured
    for number, mask in enumerate(masks):
        down, across = number % 6, number // 6
        mask[2 * down : 2 * down + 3, 3 * across : 3 * across + 2 + down] = True
    image, fill = image_and_fill()
    for approximation in (Approximation(tau=0.5, quality_share=0.4), Approximation(keep=0.8)):
        plan = planned("residual", approximation, Masks(masks))
        batches = list(execute(plan, image, fill, weights=captured_model("residual").weights, settings=settings_of()))
        assert {batch.exact for batch in batches} == {True, False}
        assert batches[-1].stage == "hold_out"
        reference = Oracle(model("residual"), image, fill, Masks(masks)).reference
        last = batches[-1]
        assert torch.allclose(last.logits.double(), reference[last.indices], atol=1e-4)
