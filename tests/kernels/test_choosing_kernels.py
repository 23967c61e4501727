"""Which kernel runs: the fastest that can, the reference when told so, and what happens without a compiler."""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.judge import check_exact, run_plan, settings_of
from support.nets import SpecNet, Step

import krypton
from krypton.cache import cache_folder
from krypton.errors import PlanError
from krypton.ir.graph import Epilogue, Function, Node, Term
from krypton.ir.occlusions import Grid
from krypton.ir.plan import QueryPlan
from krypton.kernels import KERNELS, Kernel, choose, find, native, register_kernel
from krypton.planner import patience
from krypton.planner.capture import capture
from krypton.planner.optimizer import plan_query

CPU = torch.device("cpu")
RELU = Node(1, "combine", (0,), (4, 8, 8), epilogue=Epilogue((Term(0),), Function("relu")))
NET = (
    Step("conv", (0,), {"out": 6, "kernel": 3, "padding": 1}),
    Step("activation", (1,), {"name": "relu"}),
    Step("max_pool", (2,), {"kernel_size": 3, "stride": 2, "padding": 1}),
    Step("conv", (3,), {"out": 6, "kernel": 3, "padding": 1, "groups": 6}),
    Step("add", (3, 4)),
    Step("activation", (5,), {"name": "hardswish"}),
    Step("avg_pool", (6,), {"kernel_size": 2}),
    Step("mean_head", (7,), {"out": 3}),
)
GRID = Grid((15, 12), (4, 3), (3, 2))
INCREMENTS = {"disabled_rules": "full_when_cheaper"}


@pytest.fixture
def forgotten_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is looked for anew within the test. Afterwards the one from before is back: prepared kernels are of it."""
    monkeypatch.setattr(native, "library", functools.cache(native.library.__wrapped__))


def kernels_of(settings: dict[str, object]) -> set[str]:
    captured = capture(SpecNet((3, 15, 12), NET), (3, 15, 12))
    return kernels_in(plan_query(captured, GRID, settings=settings_of(settings)))


def kernels_in(plan: QueryPlan) -> set[str]:
    assert plan.tensor is not None
    return {name for node in plan.tensor.graph for name in node.kernel.split("+") if name}


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_the_fastest_kernel_is_chosen_unless_the_reference_is_asked_for() -> None:
    assert choose("combine", RELU, CPU) == "native"
    assert choose("combine", RELU, CPU, reference=True) == "reference"
    assert kernels_of(INCREMENTS) == {"direct", "depthwise", "native"}
    assert kernels_of(INCREMENTS | {"kernels": "reference"}) == {"reference"}
    assert kernels_of({"disabled_rules": "full_when_cheaper,choose_kernel"}) == set()


def test_a_function_without_a_native_form_runs_in_the_reference() -> None:
    node = Node(1, "combine", (0,), (4, 8, 8), epilogue=Epilogue((Term(0),), Function("mish")))
    assert choose("combine", node, CPU) == "reference"


def convolution(channels: int, groups: int = 1) -> Node:
    attrs = {"kernel": [3, 3], "stride": [1, 1], "dilation": [1, 1], "padding": [1, 1, 1, 1], "groups": groups}
    return Node(1, "conv", (0,), (channels, 8, 8), attrs | {"in_channels": channels})


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_every_convolution_has_its_compiled_kernel() -> None:
    assert choose("conv", convolution(2), CPU) == "direct"
    assert choose("conv", convolution(32), CPU) == "winograd_4"
    assert choose("conv", convolution(32, groups=32), CPU) == "depthwise"
    assert choose("conv", convolution(32, groups=4), CPU) == "onednn"


def test_onednn_is_not_for_a_single_channel() -> None:
    """PyTorch's oneDNN gives wrong numbers for them where the result is one pixel wide."""
    assert not find("conv", "onednn").supports(convolution(1), CPU)
    assert find("conv", "onednn").supports(convolution(2), CPU)


def test_a_sum_of_more_terms_than_native_takes_runs_in_the_reference() -> None:
    terms = tuple(Term(i) for i in range(native.MOST_TERMS + 1))
    assert (
        choose("combine", Node(1, "combine", tuple(range(len(terms))), (4, 8, 8), epilogue=Epilogue(terms)), CPU) == "reference"
    )


def test_operators_without_kernels_get_none() -> None:
    assert choose("mean", Node(1, "mean", (0,), (4,)), CPU) == ""


def test_unknown_kernels_are_named_with_those_there_are() -> None:
    with pytest.raises(PlanError, match=r'unknown kernel for conv "onedn".*onednn'):
        find("conv", "onedn")


def test_a_kernel_registered_again_replaces_its_namesake() -> None:
    before = list(KERNELS)
    try:
        mine = register_kernel(Kernel("mine", "combine", lambda node, device: node.id == 1, lambda node, weight: print, 99))
        assert choose("combine", RELU, CPU) == "mine"
        again = register_kernel(Kernel("mine", "combine", lambda node, device: False, lambda node, weight: print, 99))
        assert find("combine", "mine") is again is not mine
        assert choose("combine", RELU, CPU) != "mine"
    finally:
        KERNELS[:] = before


@pytest.mark.usefixtures("forgotten_library")
@pytest.mark.parametrize("reason", ["told so", "no compiler", "broken compiler"])
def test_without_a_library_the_reference_gives_the_same_answers(
    reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KRYPTON_CACHE", str(tmp_path / "cache"))
    if reason == "told so":
        monkeypatch.setenv("KRYPTON_NO_COMPILER", "1")
    elif reason == "no compiler":
        monkeypatch.setattr(native, "compiler", lambda: None)
    else:
        monkeypatch.setenv("CXX", shutil.which("false") or "false")
    assert native.library() is None
    net, generator = SpecNet((3, 15, 12), NET), torch.Generator().manual_seed(0)
    image, fill = torch.randn(3, 15, 12, generator=generator), torch.zeros(3, 1, 1)
    plan = check_exact(net, image, fill, GRID, INCREMENTS)
    assert plan.tensor is not None
    assert not any("native" in node.kernel for node in plan.tensor.graph)


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
@pytest.mark.usefixtures("forgotten_library")
def test_a_plan_made_with_native_kernels_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plan names must be there: a plan from another machine says so, and does not run something else."""
    captured = capture(SpecNet((3, 15, 12), NET), (3, 15, 12))
    plan = plan_query(captured, GRID, settings=settings_of(INCREMENTS))
    monkeypatch.setenv("KRYPTON_NO_COMPILER", "1")
    native.library.cache_clear()
    with pytest.raises(PlanError, match="compiler"):
        run_plan(plan, captured, torch.randn(3, 15, 12), torch.zeros(3, 1, 1))


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
@pytest.mark.usefixtures("forgotten_library")
def test_the_library_is_compiled_once_and_then_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = native.compiler()
    assert compiler is not None
    made = native._compiled(compiler)  # by whatever test was first
    calls, fake = tmp_path / "calls", tmp_path / "c++"
    # a compiler that writes down its calls, and links by copying what is there
    fake.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nfor last; do :; done\ncp {made} "$last"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("KRYPTON_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        native.library.cache_clear()
        assert native.library() is not None
        assert len(calls.read_text().splitlines()) == len(native._SOURCES) + 1  # each is compiled, then all are linked
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
@pytest.mark.usefixtures("forgotten_library")
def test_a_small_first_query_does_not_wait_for_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is planned without compiled kernels, which are compiled behind it; a large one waits, and gets them."""
    compiler = native.compiler()
    assert compiler is not None
    made = native._compiled(compiler)
    monkeypatch.setattr(native, "_compiled", lambda cxx: made)
    monkeypatch.setenv("KRYPTON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "compiling", native.Compiling())
    con = krypton.connect()
    con.sql("SET krypton.disabled_rules = 'full_when_cheaper'")
    con.register_model("net", SpecNet((3, 15, 12), NET), input_shape=(3, 15, 12))
    query = con.sql("EXPLAIN OCCLUSION OF $image USING MODEL net PATCH 4x3 STRIDE 3x2", params={"image": torch.rand(3, 15, 12)})
    first = query.plan()
    assert kernels_in(first) <= {"onednn", "reference"}
    assert any("compile once" in note for note in first.notes)
    query.run()
    native.compiling.finish()
    second = query.plan()
    assert "direct" in kernels_in(second)
    assert not any("compile once" in note for note in second.notes)
    monkeypatch.setattr(native, "compiling", native.Compiling())
    monkeypatch.setattr(patience, "COMPILING", 0.0)
    monkeypatch.setattr(patience, "LEAST", 0.0)
    native.library.cache_clear()
    again = con.sql("EXPLAIN OCCLUSION OF $image USING MODEL net PATCH 4", params={"image": torch.rand(3, 15, 12)})
    assert "direct" in kernels_in(again.plan())


def test_waiting_for_the_compiler_is_worth_it_where_more_is_saved() -> None:
    captured = capture(SpecNet((3, 15, 12), NET), (3, 15, 12))
    plan = plan_query(captured, GRID)
    assert plan.tensor is not None
    (node, cost), *_ = plan.tensor.costs.items()

    def taking(seconds: float) -> QueryPlan:
        costs = {node: replace(cost, milliseconds=seconds * 1e3 / GRID.count)}
        return replace(plan, tensor=replace(plan.tensor, costs=costs))

    assert patience.worth_waiting(taking(13.0), 0.0)
    assert not patience.worth_waiting(taking(8.0), 0.0)
    assert patience.worth_waiting(taking(8.0), 2.0)
    assert not patience.worth_waiting(taking(1.0), 60.0)
    assert not patience.worth_waiting(replace(plan, tensor=None), 60.0)


@pytest.mark.usefixtures("forgotten_library")
def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    monkeypatch.setenv("KRYPTON_CACHE", str(occupied / "cache"))
    assert native.library() is None


def test_the_cache_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KRYPTON_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "krypton"
    monkeypatch.setenv("KRYPTON_CACHE", os.fspath(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
