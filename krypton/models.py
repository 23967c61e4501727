"""Models: a module with everything Krypton must know to ask it about a picture. `sources` reads them from files.

A `Definition` is what somebody said about a model (CREATE MODEL, register_model), and what the catalog keeps; a
`Model` is ready to be asked: loaded, tried once, its outputs counted, its labels checked against them.
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from krypton.errors import BindError, CaptureError, unknown
from krypton.images import Preprocessing, nearest_file
from krypton.planner.capture import check_weights
from krypton.planner.quiet import quiet
from krypton.planner.trials import device_of, evaluating
from krypton.results.scores import ACTIVATIONS, Activation, default_activation
from krypton.sql.places import clause

Shape = tuple[int, int, int]

DEFAULT_SIZE = (224, 224)
LIVE = "live module"
"""What stands in the place of a source when the model is an object of the running program."""


@dataclass(frozen=True)
class Definition:
    """What is said about a model; what is None is found out from the source, or has the default.

    `source` is as in `sources.load`, or None for a live module, which no catalog can keep. `input_shape` is
    (channels, height, width), `mean` and `std` have one number per channel, or one for all, in pixel space [0, 1].
    """

    name: str
    source: str | None = None
    input_shape: Shape | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None
    activation: Activation | None = None
    trusted: bool = False


@dataclass(frozen=True, eq=False)
class Loaded:
    """A module, and what its source says about it; `random` when the weights are not trained ones."""

    module: nn.Module
    program: ExportedProgram | None = None
    input_shape: Shape | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None
    outputs: int | None = None
    random: bool = False


@dataclass(frozen=True, eq=False)
class Model:
    """A model that can be asked. `outputs` is the number of logits K; `labels`, where there are any, has K names.

    `module` takes float32 (B, *preprocessing.shape) and gives (B, K); its training flags are never changed for good.
    `program` is there when the model came from a `.pt2` file: then it is what gets captured.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    outputs: int
    activation: Activation
    labels: tuple[str, ...] | None = None
    source: str = LIVE
    program: ExportedProgram | None = None
    weights_random: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What everybody who sees an answer of this model should know."""
        if not self.weights_random:
            return ()
        return (f"weights are random: {self.source} has no trained weights on this computer, its answers mean nothing",)


def make_model(loaded: Loaded, definition: Definition) -> Model:
    """The model that a definition describes: what it says comes first, then what the source says, then the defaults.

    Without INPUT, images have the channels of the first convolution and 224x224 pixels. Without MEAN and STD, pixels
    are not shifted and not scaled. Activation is softmax for two outputs or more, sigmoid for one. Raises CaptureError
    for weights that are not finite and outputs that are not (batch, K), BindError for what does not fit together.
    """
    check_weights(loaded.module)
    shape = definition.input_shape or loaded.input_shape or (first_channels(loaded.module), *DEFAULT_SIZE)
    mean = _per_channel(definition.mean, shape[0]) or _if_of_length(loaded.mean, shape[0]) or (0.0,) * shape[0]
    std = _per_channel(definition.std, shape[0]) or _if_of_length(loaded.std, shape[0]) or (1.0,) * shape[0]
    with clause("STD" if len(mean) == shape[0] else "MEAN"):
        preprocessing = Preprocessing(*shape, mean, std)
    outputs = loaded.outputs
    if outputs is None or shape != loaded.input_shape:
        with clause("INPUT"):
            outputs = count_outputs(loaded.module, shape)
    labels = definition.labels
    if labels is not None and len(labels) != outputs:
        with clause("LABELS"):
            raise BindError(f"there are {len(labels):,} LABELS, but the model has {outputs:,} outputs: give one label for each")
    return Model(
        definition.name,
        loaded.module,
        preprocessing,
        outputs,
        definition.activation or default_activation(outputs),
        labels or _if_of_length(loaded.labels, outputs),
        definition.source or LIVE,
        loaded.program,
        loaded.random,
    )


def first_channels(module: nn.Module) -> int:
    """The input channels of the first convolution in the module, 3 where there is none."""
    convolutions = (part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.LazyConv2d)))
    return next((part.in_channels for part in convolutions if part.in_channels), 3)


def count_outputs(module: nn.Module, shape: Shape) -> int:
    """K of the output (1, K) for an input (1, *shape) of noise.

    Raises BindError when the model does not take such an input, CaptureError when it gives something else.
    """
    output = try_out(module, torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)))
    return int(output.shape[1])


def try_out(module: nn.Module, images: Tensor) -> Tensor:
    """The logits (B, K) on the CPU of a module, in eval mode, on images (B, C, H, W); errors as `count_outputs`."""
    try:
        with evaluating(module), quiet():
            output = module(images.to(device_of(module)))
    except Exception as error:  # whatever the model's own code raises
        raise BindError(
            f"the model does not take images of {'x'.join(map(str, images.shape[1:]))} (channels x height x width): "
            f"{first_line(error)}. Say what it takes: INPUT <c>x<h>x<w>, input_shape=(c, h, w)"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images) or output.shape[1] == 0:
        kind = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise CaptureError(f"a model must give one tensor (batch, outputs) for a batch of images, not {kind}: wrap it")
    if not bool(torch.isfinite(output).all()):
        raise CaptureError("the model gives NaN or infinite outputs on an ordinary input; its weights are not sound")
    return output.float().cpu()


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of all classes in order: one per line, or a JSON list of texts; raises BindError."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise BindError(f"labels file '{path}' does not exist.{nearest_file(file)}")
    try:
        text = file.read_text(encoding="utf-8-sig")
        parsed = json.loads(text) if text.lstrip().startswith("[") else text.rstrip().splitlines()
    except (OSError, ValueError) as error:
        raise BindError(f"labels file '{path}' cannot be read: {error}. Expected one label per line, or a JSON list") from None
    return check_labels(parsed, f"labels file '{path}'")


def check_labels(labels: object, where: str = "labels") -> tuple[str, ...]:
    """Labels as a tuple of texts; raises BindError for anything else."""
    if isinstance(labels, str) or not isinstance(labels, Sequence) or not all(isinstance(label, str) for label in labels):
        raise BindError(f"{where}: expected a list of texts, one for each class")
    names = tuple(label.strip() for label in labels)
    if not all(names):
        raise BindError(f"{where}: line {names.index('') + 1} is empty; every class needs a name")
    return names


def check_shape(shape: object) -> Shape:
    """An input shape as three positive ints (channels, height, width); raises BindError."""
    try:
        lengths = tuple(operator.index(length) for length in shape)  # type: ignore[attr-defined]
    except TypeError:
        lengths = ()
    if len(lengths) != 3 or min(lengths) < 1:
        raise BindError(f"an input shape is (channels, height, width), three whole numbers of at least 1, not {shape!r}")
    return lengths


def check_channel_values(name: str, values: object) -> tuple[float, ...] | None:
    """Mean or standard deviation: a number for each channel, or one for all; raises BindError."""
    if values is None:
        return None
    try:
        numbers = tuple(float(value) for value in (values if isinstance(values, Iterable) else (values,)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BindError(f"{name} takes one number per channel, or one for all, not {values!r}") from None
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise BindError(f"{name} takes one finite number per channel, or one for all, not {values!r}")
    return numbers


def check_activation(activation: str | None) -> Activation | None:
    """A known activation, in any case, or None for the default; raises BindError."""
    if activation is None:
        return None
    for known in ACTIVATIONS:
        if isinstance(activation, str) and activation.lower() == known:
            return known
    raise BindError(unknown("activation", str(activation), ACTIVATIONS))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without warnings: models of others warn about themselves, which nobody here can mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def first_line(error: BaseException) -> str:
    """An exception's text, short enough for one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")


def _per_channel(values: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    return values * channels if values is not None and len(values) == 1 else values


def _if_of_length(values: tuple[Any, ...] | None, length: int) -> tuple[Any, ...] | None:
    return values if values is not None and len(values) == length else None
