"""From an `nn.Module` to a verified logical graph: `torch.export`, recognition, and a trial run against the model.

Height and width are static: one graph per input size. Whatever cannot be captured is a CaptureError whose text says why;
the session then runs such a model naively.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from krypton.errors import CaptureError
from krypton.ir.graph import Graph
from krypton.ir.weights import WeightStore
from krypton.planner.quiet import quiet
from krypton.planner.recognise import recognise
from krypton.planner.trials import Trial, device_of, evaluating
from krypton.planner.whole import run_whole


@dataclass(frozen=True, eq=False)
class CapturedModel:
    """A logical graph with its weights; `input_shape` is (C, H, W), `outputs` the number of logits."""

    graph: Graph
    weights: WeightStore
    input_shape: tuple[int, int, int]

    @property
    def outputs(self) -> int:
        return self.graph.index()[self.graph.output].shape[0]


def capture(module: nn.Module, input_shape: tuple[int, int, int], *, seed: int = 0) -> CapturedModel:
    """The logical graph of a model for inputs (C, H, W); raises CaptureError.

    The model is run on seeded noise: once to export, and once to compare the graph with it.
    """
    check_weights(module)
    generator = torch.Generator().manual_seed(seed)
    with evaluating(module):
        program = _export(module, _example(input_shape, generator, module))
        captured = from_program(program, input_shape, device_of(module))
        verify(captured, module, generator)
    return captured


def _example(input_shape: tuple[int, int, int], generator: torch.Generator, module: nn.Module) -> Tensor:
    """Two images of noise where the module is: equal on all devices, for they are made on the CPU."""
    return torch.randn(2, *input_shape, generator=generator).to(device_of(module))


def from_program(program: ExportedProgram, input_shape: tuple[int, int, int], device: torch.device) -> CapturedModel:
    """The logical graph of an exported program (a `.pt2` file), weights on that device; not compared with anything yet."""
    with quiet(), torch.no_grad():
        program = program.run_decompositions({})
    store = WeightStore()
    graph = recognise(program, input_shape, store)
    return CapturedModel(graph, store.restrict(graph.references()).on(device), input_shape)


def check_weights(module: nn.Module) -> None:
    """CaptureError for a model without a usable state: weights that are NaN or infinite."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        # a sum is finite but for such values or for overflow, and many times faster
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise CaptureError(f"weights of the model contain NaN or infinite values: {name}; load a sound checkpoint")


def _export(module: nn.Module, example: Tensor) -> ExportedProgram:
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(module, (example,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
    except Exception as error:  # torch.export raises whatever the model's own code raises
        raise CaptureError(f"torch.export cannot capture {type(module).__name__}: {_first_line(error)}") from error


def verify(captured: CapturedModel, module: nn.Module, generator: torch.Generator) -> None:
    """Compare the graph with the model on an input it was not made from, and a batch of two with two singles."""
    example = _example(captured.input_shape, generator, module)
    trial = Trial(module, example)
    if not torch.isfinite(trial.singles).all():
        raise CaptureError("the model gives NaN or infinite outputs on an ordinary input; its weights are not sound")
    if trial.mixes():
        raise CaptureError(
            "the model mixes the examples of a batch (a batch norm without running statistics, perhaps): its output for an "
            "image depends on the other images; it runs naively, one occlusion at a time"
        )
    if not trial.agrees(run_whole(captured.graph, captured.weights, example)):
        raise CaptureError("the captured graph does not compute what the model computes (does it draw random numbers?)")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
