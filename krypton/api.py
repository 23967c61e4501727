"""`explain_occlusion`: a query in one call, over the same path as the statement."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch import nn

from krypton.bound import Clauses, build_query
from krypton.errors import BindError
from krypton.fills import FillSpec
from krypton.images import ImageSource, open_picture
from krypton.masks import MaskSource
from krypton.models import DEFAULT_SIZE, Shape, first_channels
from krypton.progress import Report
from krypton.query import Query
from krypton.results import Heatmap
from krypton.session import Connection, connect, make_definition

LARGEST = 1024 * 1024
"""Pixels of a picture that a module without `input_shape` is given as it is."""


def explain_occlusion(
    model: nn.Module | str,
    image: ImageSource,
    *,
    patch: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    masks: MaskSource | None = None,
    fill: FillSpec = "gray",
    target: int | str | None = None,
    score: str = "probability",
    region: tuple[int, int, int, int] | None = None,
    mode: str | None = None,
    device: str | None = None,
    within: float | None = None,
    progress: bool | Report = False,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    labels: Sequence[str] | None = None,
    activation: str | None = None,
    **options: Any,
) -> Heatmap:
    """Which parts of an image made a CNN say what it said: its answers with a patch over every place.

    - model: a module from (B, C, H, W) to logits (B, K), or a source such as "torchvision:resnet18", "net.pt2"
    - image: a path, a PIL image, a uint8 array (H, W, C); or a float tensor (C, H, W), taken as the model's input as it is
    - patch, stride: pixels, an int or (rows, columns); 16 and 4 unless said
    - masks: bool (n, H, W), or an .npz or .png file, in place of patch and stride
    - fill: "gray", "black", "white", "mean", "blur", "noise", an (r, g, b) of whole numbers to 255, or a picture; for a
      tensor image also a number or tensor in the model's input. A name of a colour is a level in [0, 1], gray
      128/255, then normalised by `mean` and `std`
    - target: a class by index or label; the predicted one unless said
    - score: "probability", "logit" or "margin"; region: (top, left, height, width), only patches inside it
    - within: seconds, for the best map by then, in mode "approximate"; it is exact if there is time
    - mode: "exact", unless said or implied; "naive", full inference for every position; or "approximate"
    - progress: True for a bar on standard error, or a function of (done, total)
    - input_shape: (C, H, W); for a module it is the tensor's or the picture's own size unless said, and pictures of more
      than 1024x1024 pixels need it. mean, std, labels, activation: as in `Connection.register_model`. These five are
      for modules; a source knows its own
    - options: those of WITH: batch, seed, tolerance; with mode "approximate" also drilldown, speedup, tau, keep,
      crop, freeze, correct, ssim and quality_share

    Raises KryptonError of the kind that fits. Graphs that were captured are kept as long as their module lives.
    """
    connection = _session()
    said: dict[str, Any] = {"input_shape": input_shape, "mean": mean, "std": std, "labels": labels, "activation": activation}
    if isinstance(model, str):
        superfluous = [name for name, value in said.items() if value is not None]
        if superfluous:
            raise BindError(f"{', '.join(superfluous)}: a model from a source has its own; CREATE MODEL can say others")
        bound_model = connection.library.from_source(model)
    else:
        if input_shape is None and isinstance(model, nn.Module):
            said["input_shape"] = input_shape_for(model, image)
        bound_model = connection.library.from_object(model, make_definition(type(model).__name__, **said))
    clauses = Clauses(
        patch=patch,
        stride=stride,
        masks=masks,
        region=region,
        fill=fill,
        target=target,
        score=score,
        mode=mode.lower() if isinstance(mode, str) else mode,
        within=within,
        device=device,
        options=options,
    )
    statement = f"explain_occlusion({bound_model.name})"
    bound = build_query(bound_model, [image], clauses, connection.settings, rows=False, statement=statement)
    heatmap = Query(bound, connection.graphs, connection.catalog, connection.profiles, connection.tunings).run(progress)
    assert isinstance(heatmap, Heatmap)
    return heatmap


def input_shape_for(module: nn.Module, image: ImageSource) -> Shape:
    """The input shape that a module of unknown size is asked with: the image's own; BindError for very large pictures."""
    if isinstance(image, torch.Tensor) or (isinstance(image, np.ndarray) and image.dtype.kind == "f"):
        if len(image.shape) < 3:
            return first_channels(module), *DEFAULT_SIZE  # images.py will say what is wrong
        channels, height, width = (int(length) for length in image.shape[-3:])
        return channels, height, width
    height, width = _size_of(image)
    if height * width > LARGEST:
        raise BindError(
            f"the picture has {height}x{width} pixels: say the size that the model takes, for example "
            f"input_shape=({first_channels(module)}, 224, 224), and it is resized"
        )
    return first_channels(module), height, width


def _size_of(image: ImageSource) -> tuple[int, int]:
    if isinstance(image, np.ndarray):
        return (int(image.shape[0]), int(image.shape[1])) if image.ndim >= 2 else DEFAULT_SIZE
    with open_picture(image, max_pixels=_session().settings["max_image_pixels"]) as picture:
        width, height = ImageOps.exif_transpose(picture).size
    return height, width


@functools.cache
def _session() -> Connection:
    """The session of all calls, in memory, so that a graph that was captured once is found again."""
    return connect()
