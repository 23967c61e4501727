"""The judge of exactness: all logits of a plan against naive inference in float64 (design, section 5)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from krypton.executor import execute
from krypton.executor.occluder import Occluder
from krypton.ir.occlusions import Occlusions
from krypton.ir.plan import QueryPlan
from krypton.planner.capture import CapturedModel, capture
from krypton.planner.optimizer import plan_query
from krypton.settings import Settings

ROUNDING = 1e-6  # of the largest logit: where nothing changes, and naive inference happens to be right to the last bit


def settings_of(values: Mapping[str, object] | None = None) -> Settings:
    return Settings({"debug": True, **(values or {})})


@torch.no_grad()
def occluded_images(image: Tensor, fill: Tensor, occlusions: Occlusions) -> Tensor:
    """(n, C, H, W)."""
    return Occluder(occlusions, image, fill.expand(image.shape)).images(range(occlusions.count))


@torch.no_grad()
def run_model(module: nn.Module, images: Tensor, double: bool = False) -> Tensor:
    """Logits (n, K), in eval mode; `double` in float64 on a copy."""
    module = copy.deepcopy(module).eval()
    if double:
        return torch.cat([module.double()(part.double()) for part in images.split(32)])
    return torch.cat([module(part) for part in images.split(32)])


class Oracle:
    """Naive answers to one question, in float64 and float32, and how far an exact answer may be from the former."""

    def __init__(self, module: nn.Module, image: Tensor, fill: Tensor, occlusions: Occlusions) -> None:
        images = occluded_images(image, fill, occlusions)
        self.base = run_model(module, image[None], double=True)[0]
        self.reference = run_model(module, images, double=True)
        single = run_model(module, images).double()
        change = (self.reference - self.base).abs().amax(0)
        noise = (single - self.reference).abs().max()
        self.allowed = 1e-4 * change + 10 * noise + ROUNDING * self.reference.abs().max()

    def judge(self, logits: Tensor) -> float:
        """AssertionError when inexact; the largest error as a part of what is allowed."""
        assert logits.shape == self.reference.shape
        assert torch.isfinite(logits).all()
        error = ((logits.double() - self.reference).abs() / self.allowed.clamp(min=1e-30)).max()
        assert error <= 1, f"inexact: {error:.3g} times the allowed error"
        return float(error)


def run_plan(plan: QueryPlan, captured: CapturedModel, image: Tensor, fill: Tensor, settings: Settings | None = None) -> Tensor:
    """All logits (n, K) of a plan, each occlusion exactly once."""
    execution = execute(plan, image, fill, weights=captured.weights, settings=settings or settings_of())
    result: Tensor | None = None
    seen: list[int] = []
    for batch in execution:
        if result is None:
            result = torch.full((plan.occlusions.count, batch.logits.shape[1]), float("nan"))
        result[batch.indices] = batch.logits
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(plan.occlusions.count))
    assert result is not None
    return result


def check_exact(
    module: nn.Module,
    image: Tensor,
    fill: Tensor,
    occlusions: Occlusions,
    settings: Mapping[str, object] | None = None,
) -> QueryPlan:
    """Capture, plan, execute and judge; the plan, for further questions."""
    captured = capture(module, tuple(image.shape))  # type: ignore[arg-type]
    plan = plan_query(captured, occlusions, settings=settings_of(settings))
    logits = run_plan(plan, captured, image, fill, settings_of(settings))
    Oracle(module, image, fill, occlusions).judge(logits)
    return plan
