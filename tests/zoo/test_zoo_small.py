"""One model per family at a small input size: captured, incremental as far as expected, and exact. `make zoo` has them all."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from support.judge import Oracle, run_plan, settings_of
from torch import nn

from krypton.ir.occlusions import Grid
from krypton.planner.capture import capture
from krypton.planner.optimizer import plan_query


@dataclass(frozen=True)
class Entry:
    """A model's name, `timm:` before those of timm; its input size; and the opaque call at which increments end, if any."""

    name: str
    size: int = 64
    ends: str = ""

    def __str__(self) -> str:
        return self.name


ZOO = (
    Entry("alexnet"),
    Entry("squeezenet1_1"),
    Entry("vgg11"),
    Entry("resnet18"),
    Entry("densenet121"),
    Entry("googlenet"),
    Entry("inception_v3", 96),
    Entry("mobilenet_v2"),
    Entry("mobilenet_v3_small", ends="gate"),
    Entry("mnasnet0_5"),
    Entry("shufflenet_v2_x0_5"),
    Entry("efficientnet_b0", ends="gate"),
    Entry("regnet_y_400mf", ends="gate"),
    Entry("convnext_tiny"),
    Entry("timm:tf_efficientnet_lite0"),
    Entry("timm:resnetblur18", ends="pad"),
    Entry("timm:resnest14d", ends="view"),
    Entry("timm:hrnet_w18_small", ends="upsample_nearest2d"),
    Entry("timm:mixnet_s", ends="gate"),
    Entry("timm:vit_tiny_patch16_224", 224, ends="view"),
    Entry("timm:swin_tiny_patch4_window7_224", 224, ends="permute"),
)


def build(entry: Entry) -> nn.Module:
    """The model with random weights, its batch norms calibrated on noise so that activations are sane."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if entry.name.startswith("timm:"):
            timm = pytest.importorskip("timm")
            model = timm.create_model(entry.name.removeprefix("timm:"), num_classes=10)
        else:
            import torchvision

            # torchvision's pretrained Inceptions take their input apart by channel, so ours do as well
            extra = {"init_weights": True, "transform_input": True} if "ception" in entry.name or "goog" in entry.name else {}
            model = torchvision.models.get_model(entry.name, num_classes=10, **extra)
    norms = [part.train() for part in model.eval().modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model(torch.randn(4, 3, entry.size, entry.size))
    return model.eval()


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    yield
    gc.collect()


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_a_model_of_the_zoo_is_exact(entry: Entry) -> None:
    model = build(entry)
    captured = capture(model, (3, entry.size, entry.size))
    # a corner, where borders are felt, and from there inwards
    grid = Grid((entry.size, entry.size), (9, 13), (11, 7), (0, entry.size - 27, 20, 27))
    # whole maps are cheaper when they are so small, but here it is the increments that are tried
    plan = plan_query(captured, grid, settings=settings_of({"disabled_rules": "full_when_cheaper"}))
    assert plan.kind == "exact"
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, entry.size, entry.size, generator=generator)
    # not zero: without biases it makes whole regions zero, and the layer norms of an untrained ConvNeXt blow up the rounding
    # errors there a thousand times
    fill = torch.tensor([0.07, 0.2, 0.43]).view(3, 1, 1)
    logits = run_plan(plan, captured, image, fill, settings_of())
    Oracle(model, image, fill, grid).judge(logits)
    ends = [note for note in plan.notes if note.startswith("increments end before")]
    assert bool(ends) == bool(entry.ends), ends
    assert not ends or ends[0].startswith(f"increments end before {entry.ends}"), ends
