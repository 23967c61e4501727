"""How plans run: batches as they come, stopping, cancelling, memory, tiles, threads, times."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.judge import Oracle, check_exact, run_plan, settings_of
from support.runs import PAIRS, planned, started
from support.small import GRID, captured_model, image_and_fill, model
from torch import Tensor

from krypton.errors import ExecutionError, PlanError
from krypton.executor import execute
from krypton.executor.program import Program
from krypton.ir.delta import Box, Delta
from krypton.ir.geometry import Interval
from krypton.ir.plan import TensorPlan
from krypton.ir.weights import WeightStore, leaves
from krypton.operators.conv import Conv
from krypton.planner.optimizer import plan_query
from krypton.planner.order import level_order


def test_batches_come_in_the_order_of_tiles_and_are_complete() -> None:
    plan = planned(tiling=PAIRS)
    assert plan.tensor is not None
    places = [int(i) for batch in started(plan) for i in batch.indices]
    assert places == [i for tile in PAIRS.tiles(GRID) for i in tile.indices]
    assert sorted(places) == list(range(GRID.count))


def test_what_runs_whole_is_gathered_from_several_tiles() -> None:
    plan = planned(tiling=PAIRS)
    assert plan.tensor is not None
    plan = replace(plan, tensor=replace(plan.tensor, head_batch=5))
    # the first batch is an early one
    assert [len(batch.indices) for batch in started(plan)] == [2, 5, 5, 4]


def test_the_first_batch_comes_before_the_rest_is_computed() -> None:
    run = started(planned(tiling=PAIRS), timed=True)
    assert run.actual == {}
    next(run)
    after_one = sum(run.actual.values())
    assert after_one > 0
    list(run)
    assert sum(run.actual.values()) > after_one


def test_base_logits_are_there_at_once() -> None:
    image, fill = image_and_fill()
    oracle = Oracle(model("residual"), image, fill, GRID)
    torch.testing.assert_close(started(planned()).base_logits.double(), oracle.base, rtol=1e-4, atol=1e-5)


def test_kernels_are_made_of_weights_where_the_plan_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may live elsewhere; compiled kernels take addresses, so they must not get weights of another device."""
    devices: list[str] = []

    class SeenError(Exception):
        pass

    def program(tensor: TensorPlan, weights: WeightStore, device: torch.device, *rest: object) -> None:
        devices.extend(weights.get(leaf).device.type for reference in tensor.graph.references() for leaf in leaves(reference))
        raise SeenError

    monkeypatch.setattr("krypton.executor.engine.Program", program)
    with pytest.raises(SeenError):
        started(replace(planned(), device="meta"))
    assert set(devices) == {"meta"}


def test_a_closed_run_yields_nothing_more() -> None:
    run = started(planned(tiling=PAIRS))
    next(run)
    run.close()
    assert list(run) == []


def test_a_closed_run_frees_its_views(monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[weakref.ref[Program]] = []

    def made(*given: object) -> Program:
        program = Program(*given)  # type: ignore[arg-type]
        programs.append(weakref.ref(program))
        return program

    monkeypatch.setattr("krypton.executor.engine.Program", made)
    run = started(planned(tiling=PAIRS))
    next(run)
    assert programs[0]() is not None
    run.close()
    gc.collect()
    assert programs[0]() is None


@pytest.mark.parametrize("after", [0, 1, 20, 40])
def test_a_cancelled_run_ends_without_an_error(after: int) -> None:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > after

    batches = list(started(planned(tiling=PAIRS), cancelled=cancelled))
    assert len(batches) < GRID.count
    assert len(asked) <= after + 2  # once more where values were waiting for the head
    full = run_plan(planned(), captured_model("residual"), *image_and_fill())
    for batch in batches:  # what came is valid
        torch.testing.assert_close(batch.logits, full[batch.indices], rtol=1e-4, atol=1e-5)


def test_a_naive_run_can_be_cancelled_between_batches() -> None:
    plan, seen = plan_query(None, GRID, settings=settings_of({"batch": 4})), []
    run = execute(plan, *image_and_fill(), module=model("residual"), cancelled=lambda: len(seen) == 2)
    for batch in run:
        seen.append(len(batch.indices))
    assert seen == [4, 4]


def test_out_of_memory_halves_the_tile_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    trunk = Program.trunk

    def greedy(self: Program, occluder: object, tile: object) -> dict[int, Tensor]:
        if len(tile.indices) > 3:  # type: ignore[attr-defined]
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to")
        sizes.append(len(tile.indices))  # type: ignore[attr-defined]
        return trunk(self, occluder, tile)  # type: ignore[arg-type]

    monkeypatch.setattr(Program, "trunk", greedy)
    logits = run_plan(planned(), captured_model("residual"), *image_and_fill())
    Oracle(model("residual"), *image_and_fill(), GRID).judge(logits)
    assert sum(sizes) == GRID.count
    assert max(sizes) == 2


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), MemoryError(), torch.OutOfMemoryError("no")])
def test_memory_that_is_not_enough_for_one_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def greedy(*given: object) -> dict[int, Tensor]:
        raise error

    monkeypatch.setattr(Program, "trunk", greedy)
    with pytest.raises(ExecutionError, match="not enough memory for a single occlusion"):
        list(started(planned()))


def test_what_runs_whole_is_halved_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    head = Program.head

    def greedy(self: Program, values: dict[int, Tensor], batch: int) -> Tensor:
        if batch > 3:
            raise RuntimeError("CUDA out of memory")
        sizes.append(batch)
        return head(self, values, batch)

    monkeypatch.setattr(Program, "head", greedy)
    logits = run_plan(planned("gated"), captured_model("gated"), *image_and_fill())
    Oracle(model("gated"), *image_and_fill(), GRID).judge(logits)
    assert sizes == [2] * 8


def test_naive_batches_are_halved_as_well() -> None:
    sizes: list[int] = []

    class Greedy(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 5:
                raise RuntimeError("CUDA out of memory")
            sizes.append(len(x))
            return x.mean((2, 3))

    run = execute(plan_query(None, GRID), *image_and_fill(), module=Greedy())
    places = [i for batch in run for i in batch.indices.tolist()]
    assert places == level_order(*GRID.shape)
    assert sizes == [1, 4, 4, 4, 4]


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> dict[int, Tensor]:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Program, "trunk", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(started(planned()))


def test_times_are_kept_per_node_when_asked_for() -> None:
    plan = planned("gated")
    assert plan.tensor is not None
    run = started(plan, "gated", timed=True)
    list(run)
    timed = {node.id for node in plan.tensor.graph if node.op not in ("image", "constant")}
    assert set(run.actual) == timed
    assert all(milliseconds > 0 for milliseconds in run.actual.values())
    assert 0 < sum(run.actual.values()) / 1e3 < run.seconds
    untimed = started(plan, "gated")
    list(untimed)
    assert untimed.actual == {}


def test_seconds_do_not_count_what_happens_between_batches() -> None:
    run = started(planned(tiling=PAIRS))
    next(run)
    before = run.seconds
    sum(range(10**6))
    assert run.seconds == before
    next(run)
    assert run.seconds > before


def test_a_run_can_be_restricted_to_some_tiles() -> None:
    plan = planned(tiling=PAIRS)
    chosen = PAIRS.tiles(GRID)[1:3]
    full = run_plan(planned(), captured_model("residual"), *image_and_fill())
    places = []
    for batch in started(plan, tiles=chosen):
        places += batch.indices.tolist()
        torch.testing.assert_close(batch.logits, full[batch.indices], rtol=1e-4, atol=1e-5)
    assert places == [i for tile in chosen for i in tile.indices]
    naive = execute(plan_query(None, GRID), *image_and_fill(), module=model("residual"), tiles=chosen)
    assert [i for batch in naive for i in batch.indices.tolist()] == places
    assert list(started(plan, tiles=[])) == []


def test_threads_are_those_of_the_settings_while_running_and_as_before_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    before, inside = torch.get_num_threads(), []
    trunk = Program.trunk

    def watched(self: Program, *given: object) -> dict[int, Tensor]:
        inside.append(torch.get_num_threads())
        return trunk(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Program, "trunk", watched)
    run = started(planned(tiling=PAIRS), settings=settings_of({"threads": before + 2}))
    assert torch.get_num_threads() == before
    for _ in run:
        assert torch.get_num_threads() == before
    assert set(inside) == {before + 2}


def test_gradients_are_not_recorded() -> None:
    batch = next(started(planned()))
    assert not batch.logits.requires_grad
    assert batch.logits.dtype == torch.float32
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("disabled", ["share_views", "materialise_views", "share_views,materialise_views"])
def test_views_may_live_for_a_batch_only(disabled: str) -> None:
    plan = planned(disabled_rules=f"full_when_cheaper,{disabled}")
    assert plan.tensor is not None
    assert (plan.tensor.view_scope == "batch") == ("share_views" in disabled)
    assert (plan.tensor.views is None) == ("materialise_views" in disabled)
    logits = run_plan(plan, captured_model("residual"), *image_and_fill())
    Oracle(model("residual"), *image_and_fill(), GRID).judge(logits)


def test_a_plan_that_forgets_a_view_says_which() -> None:
    plan = planned()
    assert plan.tensor is not None
    assert plan.tensor.views
    forgetful = replace(plan, tensor=replace(plan.tensor, views=plan.tensor.views[1:]))
    with pytest.raises(PlanError, match=rf"reads the view '{plan.tensor.views[0][1]}' of %{plan.tensor.views[0][0]}"):
        list(started(forgetful))


def test_what_a_plan_needs_must_be_given() -> None:
    image, fill = image_and_fill()
    with pytest.raises(ExecutionError, match="needs the weights"):
        execute(planned(), image, fill)
    with pytest.raises(ExecutionError, match="needs the model itself"):
        execute(plan_query(None, GRID), image, fill)
    with pytest.raises(ExecutionError, match=r"for images \(3, 19, 16\), this one is \(3, 16, 19\)"):
        execute(planned(), image.transpose(1, 2), fill.transpose(1, 2), weights=captured_model("residual").weights)


def test_images_and_fills_are_not_written_to() -> None:
    image, fill = image_and_fill()
    before = image.clone(), fill.clone()
    list(execute(planned("plain"), image, fill, weights=captured_model("plain").weights))
    assert torch.equal(image, before[0])
    assert torch.equal(fill, before[1])


def test_a_fill_may_be_one_value_per_channel() -> None:
    image, _ = image_and_fill()
    fill = torch.tensor([0.5, -1.0, 2.0]).view(3, 1, 1)
    check_exact(model("shuffled"), image, fill, GRID, {"disabled_rules": "full_when_cheaper"})


def test_a_fill_equal_to_the_image_changes_nothing() -> None:
    image, _ = image_and_fill()
    run = execute(planned(), image, image, weights=captured_model("residual").weights)
    for batch in run:
        torch.testing.assert_close(batch.logits, run.base_logits.expand_as(batch.logits), rtol=1e-5, atol=1e-6)


def _spoil(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Delta], None]) -> None:
    """Let every convolution's delta be changed by `spoil`."""
    honest = Conv.delta

    def delta(self: Conv, node: object, inputs: object, tile: object) -> object:
        result = honest(self, node, inputs, tile)  # type: ignore[arg-type]
        assert isinstance(result, Delta)
        spoil(result)
        return result

    monkeypatch.setattr(Conv, "delta", delta)


def test_debug_finds_a_wrong_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    _spoil(monkeypatch, lambda delta: delta.data.mul_(1.5))
    with pytest.raises(ExecutionError, match=r"the delta of %\d+ \(conv\) is wrong by"):
        list(started(planned(), settings=settings_of()))
    list(started(planned(), settings=settings_of({"debug": False})))


def test_debug_finds_what_lies_outside_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    def spill(delta: Delta) -> None:
        rows, columns = delta.field
        delta.field = Box(Interval(rows.start + 1, rows.stop), columns)

    _spoil(monkeypatch, spill)
    plan = planned()
    with pytest.raises(ExecutionError, match=r"invariant I1 broken at %\d+ \(conv\)"):
        list(started(plan, settings=settings_of(), tiles=plan.tensor.tiling.tiles(GRID)[:1]))  # type: ignore[union-attr]
