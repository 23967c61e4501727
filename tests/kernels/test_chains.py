"""Chains: convolutions that run together, a few occlusions at a time, give what they give one after the other, to the bit."""

from __future__ import annotations

import os
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from support.judge import Oracle, run_plan
from support.nets import SpecNet, Step

from krypton.errors import PlanError
from krypton.executor import execute
from krypton.executor.program import Program
from krypton.ir.occlusions import Grid
from krypton.ir.plan import QueryPlan
from krypton.ir.verify import verify_plan
from krypton.kernels import chain as chains
from krypton.kernels import native
from krypton.planner.capture import CapturedModel, capture
from krypton.planner.explain import explain
from krypton.planner.optimizer import plan_query
from krypton.settings import Settings

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")

IMAGE = (3, 21, 18)
GRID = Grid(IMAGE[1:], (5, 4), (1, 1))


def conv(source: int, out: int, kernel: int = 1, **numbers: int) -> Step:
    return Step("conv", (source,), {"out": out, "kernel": kernel, **numbers})


def relu(source: int) -> Step:
    return Step("activation", (source,), {"name": "relu"})


MOBILE = (
    conv(0, 20, 3, padding=1, stride=2),
    relu(1),
    conv(2, 36),  # an inverted residual
    relu(3),
    conv(4, 36, 3, padding=1, groups=36),
    relu(5),
    conv(6, 20),
    Step("add", (2, 7)),
    conv(8, 20, 3, padding=1, groups=20),  # a separable one
    conv(9, 24),
    relu(10),
    conv(11, 24, 5, padding=2, stride=2, groups=24),  # and one whose neighbour belongs to the one before
    conv(12, 17),
    Step("mean_head", (13,), {"out": 4}),
)


def plan_of(captured: CapturedModel, **values: object) -> QueryPlan:
    wanted = {"disabled_rules": "full_when_cheaper", "batch": 24, **values}
    return plan_query(captured, GRID, settings=Settings(wanted))


def modules_of(plan: QueryPlan) -> list[list[str]]:
    assert plan.tensor is not None
    nodes = plan.tensor.graph.index()
    return [[nodes[node].module for node in chain] for chain in plan.tensor.chains]


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    return capture(SpecNet(IMAGE, MOBILE), IMAGE)


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(IMAGE, generator=generator), torch.zeros(3, 1, 1)


def test_depthwise_convolutions_are_chained_with_their_neighbours(captured: CapturedModel) -> None:
    plan = plan_of(captured)
    assert modules_of(plan) == [["parts.2", "parts.4", "parts.6"], ["parts.8", "parts.9"], ["parts.11", "parts.12"]]
    assert "a few occlusions at a time go together through %" in explain(plan)
    assert modules_of(plan_of(captured, kernels="reference")) == []
    assert modules_of(plan_of(captured, disabled_rules="full_when_cheaper,chain_depthwise")) == []


def test_chains_on_whole_maps_give_the_same_bits(captured: CapturedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    run = chains.Chain.run
    monkeypatch.setattr(chains.Chain, "run", lambda chain: (ran.append(len(chain)), run(chain))[1])
    plan, apart = (plan_of(captured, disabled_rules=rules) for rules in ("incremental", "incremental,chain_depthwise"))
    assert modules_of(plan) == [["parts.2", "parts.4", "parts.6"], ["parts.8", "parts.9"], ["parts.11", "parts.12"]]
    assert modules_of(apart) == []
    wanted = run_plan(apart, captured, *pictures(), Settings())
    assert not ran
    for slots in (1, chains.SLOTS):
        monkeypatch.setattr(chains, "SLOTS", slots)
        assert torch.equal(run_plan(plan, captured, *pictures(), Settings()), wanted)
    assert set(ran) == {3, 2}
    Oracle(SpecNet(IMAGE, MOBILE), *pictures(), GRID).judge(wanted)


def test_the_time_of_chains_on_whole_maps_is_told_apart(captured: CapturedModel) -> None:
    plan = plan_of(captured, disabled_rules="incremental")
    assert plan.tensor is not None
    execution = execute(plan, *pictures(), weights=captured.weights, timed=True)
    list(execution)
    assert all(execution.actual[node] > 0 for chain in plan.tensor.chains for node in chain)


def test_a_chain_may_begin_with_a_gated_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every occlusion has gates of its own, which the chain has to find."""
    steps = [conv(0, 20, 3, padding=1), Step("gate", (1,)), conv(2, 18), relu(3), conv(4, 18, 3, padding=1, groups=18)]
    steps += [Step("mean_head", (5,), {"out": 3})]
    net = SpecNet(IMAGE, steps)
    captured = capture(net, IMAGE)
    plan = plan_of(captured)
    assert plan.tensor is not None
    nodes = plan.tensor.graph.index()
    assert [[nodes[node].mode for node in chain] for chain in plan.tensor.chains] == [["full", "full"]]
    assert nodes[nodes[plan.tensor.chains[0][0]].inputs[0]].kernel == "deferred"
    monkeypatch.setattr(chains, "SLOTS", 1)
    Oracle(net, *pictures(), GRID).judge(run_plan(plan, captured, *pictures(), Settings()))


def test_what_somebody_else_reads_is_not_kept_inside_a_chain() -> None:
    steps = (
        conv(0, 24),
        conv(1, 24, 3, padding=1, groups=24),
        Step("add", (1, 2)),
        conv(3, 5),
        Step("mean_head", (4,), {"out": 2}),
    )
    assert modules_of(plan_of(capture(SpecNet(IMAGE, steps), IMAGE))) == []


@pytest.mark.parametrize("slots", [1, 60_000, chains.SLOTS])
def test_chains_give_the_same_bits(captured: CapturedModel, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fits into the cache: one occlusion at a time, several, or every thread's share."""
    monkeypatch.setattr(chains, "SLOTS", slots)
    plan, apart = plan_of(captured), plan_of(captured, disabled_rules="full_when_cheaper,chain_depthwise")
    logits = run_plan(plan, captured, *pictures(), Settings())
    assert torch.equal(logits, run_plan(apart, captured, *pictures(), Settings()))
    Oracle(SpecNet(IMAGE, MOBILE), *pictures(), GRID).judge(logits)


def test_chains_run_as_such_and_their_time_is_told_apart(captured: CapturedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a tile has occlusions enough for all threads; a few run one convolution after the other."""
    ran: list[int] = []
    run = Program._run_chain
    monkeypatch.setattr(Program, "_run_chain", lambda *given: (ran.append(len(given[1])), run(*given)))
    plan = plan_of(captured)
    assert plan.tensor is not None
    tiles = plan.tensor.tiling.tiles(GRID)
    least = 4 * torch.get_num_threads()
    large, small = [[tile for tile in tiles if (len(tile.indices) >= least) is wanted][:1] for wanted in (True, False)]
    for some, expected in ((large, [3, 2, 2]), (small, [])):
        ran.clear()
        execution = execute(plan, *pictures(), weights=captured.weights, tiles=some, timed=True)
        list(execution)
        assert not some or ran == expected
        assert not some or all(execution.actual[node] > 0 for chain in plan.tensor.chains for node in chain)
    assert large


@given(data=st.data())
@settings(deadline=None, max_examples=int(os.environ.get("KRYPTON_EXAMPLES", "12")))
def test_random_chains_give_the_same_bits(data: st.DataObject) -> None:
    into, wide = data.draw(st.integers(1, 40)), data.draw(st.integers(2, 50))
    kernel, stride = data.draw(st.sampled_from([1, 3, 5])), data.draw(st.integers(1, 2))
    steps = [conv(0, into, 3, padding=1), conv(1, wide)]
    if data.draw(st.booleans()):
        steps.append(relu(len(steps)))
    steps.append(conv(len(steps), wide, kernel, padding=data.draw(st.integers(0, 2)), stride=stride, groups=wide))
    if data.draw(st.booleans()):
        steps.append(relu(len(steps)))
    steps += [conv(len(steps), data.draw(st.integers(1, 40))), Step("mean_head", (len(steps) + 1,), {"out": 3})]
    captured = capture(SpecNet(IMAGE, steps), IMAGE)
    plan = plan_of(captured)
    assert plan.tensor is not None
    apart = replace(plan, tensor=replace(plan.tensor, chains=()))
    assert plan.tensor.chains
    assert torch.equal(*(run_plan(p, captured, *pictures(), Settings()) for p in (plan, apart)))


def test_damaged_chains_are_refused(captured: CapturedModel) -> None:
    plan = plan_of(captured)
    assert plan.tensor is not None
    first, second = plan.tensor.chains[:2]
    for damaged, problem in (
        (((first[0],),), "two nodes at least"),
        ((first, first), "each in one chain"),
        (((0, first[0]),), "are deltas" if plan.tensor.graph.image.mode != "delta" else "only reader"),
        (((first[0], second[0]),), "only reader"),
        (((first[0], 10**6),), "of the graph"),
    ):
        with pytest.raises(PlanError, match=problem):
            verify_plan(replace(plan, tensor=replace(plan.tensor, chains=damaged)))
