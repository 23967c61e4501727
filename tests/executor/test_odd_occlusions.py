"""Odd occlusions are exact: masks of any shape, patches that no operator sees, that fill the image, or that change nothing."""

from __future__ import annotations

import pytest
import torch
from support.judge import Oracle, check_exact
from support.nets import SpecNet, Step
from support.runs import PAIRS, gathered, planned
from support.small import GRID, IMAGE, captured_model, image_and_fill, model

from krypton.executor import execute
from krypton.ir.occlusions import Grid, Masks


def masks_of_all_kinds() -> Masks:
    """Corners, a cross, a frame, scattered pixels, everything, and what is far apart in one mask."""
    _, height, width = IMAGE
    masks = torch.zeros(8, height, width, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, -1, -1] = True
    masks[2, 0, 0] = masks[2, -1, -1] = True
    masks[3, 9], masks[3, :, 7] = True, True
    masks[4, [0, -1]], masks[4, :, [0, -1]] = True, True
    masks[5] = torch.rand(height, width, generator=torch.Generator().manual_seed(0)) < 0.1
    masks[6] = True
    masks[7, 4:7, 2:5] = masks[7, 12:14, 11:15] = True
    return Masks(masks)


@pytest.mark.parametrize("name", ["residual", "dense", "gated", "plain"])
def test_masks_of_any_shape_are_exact(name: str) -> None:
    for disabled in ("full_when_cheaper", "full_when_cheaper,position_tiles", ""):
        check_exact(model(name), *image_and_fill(), masks_of_all_kinds(), {"disabled_rules": disabled})


STRIDED = (
    Step("conv", (0,), {"out": 4, "kernel": 1, "stride": 2}),
    Step("activation", (1,), {"name": "relu"}),
    Step("conv", (2,), {"out": 4, "kernel": 3, "padding": 1}),
)


@pytest.mark.parametrize("head", ["mean_head", "flatten_head", "max_head"])
def test_pixels_that_a_stride_steps_over_change_nothing(head: str) -> None:
    """1×1 patches on a 1×1 convolution of stride 2: three of four fields are empty, and their answer is the base."""
    net = SpecNet((3, 6, 5), [*STRIDED, Step(head, (3,), {"out": 2, "bias": True} if head == "flatten_head" else {"out": 2})])
    generator = torch.Generator().manual_seed(1)
    image, fill = torch.randn(3, 6, 5, generator=generator), torch.randn(3, 6, 5, generator=generator)
    for disabled in ("full_when_cheaper", "full_when_cheaper,position_tiles"):
        grid = Grid((6, 5), (1, 1), (1, 1))
        check_exact(net, image, fill, grid, {"disabled_rules": disabled})


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "concat"])
def test_fields_that_are_empty_along_different_axes_change_nothing(kind: str) -> None:
    """Two opposite quarters of the image: an occlusion in one of the others shares rows with one, columns with the other."""
    first = {"top": 0, "bottom": 4, "left": 0, "right": 4}
    second = {"top": 4, "bottom": 8, "left": 4, "right": 8}
    steps = [Step("crop", (0,), first), Step("crop", (0,), second), Step(kind, (1, 2)), *_then(3)]
    fused = [*steps[:2], Step("conv", (1,), {"out": 2, "kernel": 1}), Step(kind, (3, 2)), *_then(4)]
    generator = torch.Generator().manual_seed(1)
    image, fill = torch.randn(2, 8, 8, generator=generator), torch.randn(2, 8, 8, generator=generator)
    for net in (SpecNet((2, 8, 8), steps), SpecNet((2, 8, 8), fused)):
        for kernels in ("auto", "reference"):
            settings = {"disabled_rules": "full_when_cheaper,position_tiles", "kernels": kernels}
            check_exact(net, image, fill, Grid((8, 8), (2, 2), (2, 2)), settings)


def _then(last: int) -> list[Step]:
    steps = [Step("conv", (last,), {"out": 3, "kernel": 3, "padding": 1}), Step("activation", (last + 1,), {"name": "silu"})]
    return [*steps, Step("mean_head", (last + 2,), {"out": 2})]


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("out", [1, 2])
def test_results_one_pixel_wide_of_one_channel_are_exact(out: int, kernels: str) -> None:
    """PyTorch's oneDNN gets them wrong in some memory layouts; gray images have one channel, and fields can be that narrow."""
    steps = [Step("conv", (0,), {"out": out, "kernel": 4, "padding": (2, 0), "stride": (1, 3)})]
    steps.append(Step("conv", (1,), {"out": 2, "kernel": (3, 1), "padding": (1, 0)}))
    net = SpecNet((1, 16, 9), [*steps, Step("flatten_head", (2,), {"out": 3, "bias": True})])
    generator = torch.Generator().manual_seed(1)
    image, fill = torch.randn(1, 16, 9, generator=generator), torch.randn(1, 16, 9, generator=generator)
    settings = {"disabled_rules": "full_when_cheaper", "kernels": kernels, "batch": 2}
    for grid in (Grid((16, 9), (12, 3), (4, 2)), Grid((16, 9), (2, 2), (14, 1))):
        check_exact(net, image, fill, grid, settings)


def test_a_patch_as_large_as_the_image_is_exact() -> None:
    check_exact(
        model("inception"), *image_and_fill(), Grid(IMAGE[1:], IMAGE[1:], (1, 1)), {"disabled_rules": "full_when_cheaper"}
    )


def test_occlusions_that_change_nothing_cost_nothing() -> None:
    """Where the fill equals the image the answer is the base's, to the bit; patches half over it are exact as all others."""
    plan = planned(tiling=PAIRS)
    image, fill = image_and_fill()
    image = image.clone()
    image[:, :, : image.shape[2] // 2] = fill[:, :, : image.shape[2] // 2]
    run = execute(plan, image, fill, weights=captured_model("residual").weights)
    logits = gathered(run)
    assert run.trimmed
    Oracle(model("residual"), image, fill, GRID).judge(logits)
    boxes = GRID.rectangles().reshape(-1, 4)
    unchanged = boxes[:, 1] + boxes[:, 3] <= image.shape[2] // 2
    assert unchanged.any()
    assert torch.equal(logits[unchanged], run.base_logits.expand(int(unchanged.sum()), -1))


def test_an_occlusion_of_what_is_there_already_is_no_change_at_all() -> None:
    image, _ = image_and_fill()
    run = execute(planned(tiling=PAIRS), image, image, weights=captured_model("residual").weights)
    assert torch.equal(gathered(run), run.base_logits.expand(GRID.count, -1))
