"""Where models come from: torchvision by name, exported programs, checkpoints, pickled modules.

    torchvision:resnet18                    torchvision's best weights if their file is on this computer, else random ones
    torchvision:resnet18@lesions.pth        the same architecture with a checkpoint: .pth, .pt, .ckpt, .bin, .safetensors
    lesions.safetensors                     where the file's metadata has the key "architecture", such as "resnet18"
    lesions.pth                             a dictionary with "architecture" beside "state_dict"; or, TRUSTED, a pickled module
    net.pt2                                 a program saved by torch.export.save

Nothing is ever downloaded. A checkpoint may have another number of classes, or of input channels, than the
architecture's own. `models` makes a `Model` of what is loaded here.
"""

from __future__ import annotations

import functools
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from krypton.errors import BindError, CaptureError, did_you_mean
from krypton.images import nearest_file
from krypton.models import Loaded, first_line, quietly

PREFIX = "torchvision:"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SEED = 0
"""Of random weights, so that they are the same every time."""

_EXPECTED = (
    "Expected 'torchvision:<name>', 'torchvision:<name>@<checkpoint>', a .pt2 file, a .safetensors or .pth checkpoint, "
    "or without quotes the name of a registered model."
)


def load(source: str, *, trusted: bool = False) -> Loaded:
    """The module behind a source, as the head of this file lists them.

    `trusted` allows pickled modules, which can run any code when they are read. Raises BindError for names and files
    that do not exist, CaptureError for files that cannot be read or do not fit.
    """
    if source.lower().startswith(PREFIX):
        name, _, checkpoint = source[len(PREFIX) :].partition("@")
        architecture = _architecture(name)
        return _with_checkpoint(architecture, checkpoint, trusted) if checkpoint else _with_own_weights(architecture)
    path = Path(source).expanduser()
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        near = f" Did you mean '{PREFIX}{source.lower()}'?" if source.lower() in _names() else ""
        raise BindError(f"unknown model source '{source}'.{near} {_EXPECTED}")
    return reader(_existing(path), trusted)


def file_of(source: str) -> Path | None:
    """The file that a source reads, or None."""
    if source.lower().startswith(PREFIX):
        _, _, checkpoint = source.partition("@")
        return Path(checkpoint).expanduser() if checkpoint else None
    return Path(source).expanduser()


def absolute(source: str) -> str:
    """The source with its file, if it has one, named from the root, so that it can be found from any folder."""
    file = file_of(source)
    if file is None:
        return source
    head = source[: source.index("@") + 1] if source.lower().startswith(PREFIX) else ""
    return head + str(file.resolve())


# ---------------------------------------------------------------------------------------------------- torchvision


@dataclass(frozen=True)
class _Architecture:
    """One of torchvision's classifiers; `weights` are its weight enum's members, the best first."""

    name: str
    weights: tuple[Any, ...]

    def build(self, **options: Any) -> nn.Module:
        import torchvision

        with quietly():
            module: nn.Module = torchvision.models.get_model(self.name, **options)
        return module

    def describe(self, channels: int = 3, outputs: int | None = None, weights: Any = None) -> dict[str, Any]:
        """What torchvision says about inputs and classes, as fields of `Loaded`."""
        member = weights or (self.weights[0] if self.weights else None)
        transform = member.transforms() if member is not None else None
        mean = tuple(getattr(transform, "mean", IMAGENET_MEAN))
        std = tuple(getattr(transform, "std", IMAGENET_STD))
        size = tuple(getattr(transform, "crop_size", [224]))
        if channels != len(mean):
            mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
        categories = tuple(member.meta.get("categories") or ()) if member is not None else ()
        return {
            "input_shape": (channels, size[0], size[-1]),
            "mean": mean,
            "std": std,
            "labels": categories if outputs in (None, len(categories)) else None,
            "outputs": outputs if outputs is not None else len(categories) or None,
        }


@functools.cache
def _names() -> tuple[str, ...]:
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


def _architecture(name: str) -> _Architecture:
    import torchvision

    lower = name.strip().lower().removeprefix(PREFIX)
    if lower not in _names():
        raise BindError(
            f'torchvision has no classifier "{name}".{did_you_mean(lower, _names())} '
            f"There are {len(_names())}, among them resnet18, vgg16, densenet121, mobilenet_v2"
        )
    enum = torchvision.models.get_model_weights(lower)
    members = list(enum)
    best = [enum.DEFAULT] if members else []
    return _Architecture(lower, tuple(best + [member for member in members if member not in best]))


def _with_own_weights(architecture: _Architecture) -> Loaded:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for member in architecture.weights:
        file = folder / PurePosixPath(urlparse(member.url).path).name
        if file.is_file():
            try:
                module = architecture.build(weights=member)
            except Exception as error:  # zip, pickle and shapes each fail in their own ways
                raise CaptureError(f"weights file '{file}' cannot be read, delete it: {first_line(error)}") from error
            return Loaded(module, **architecture.describe(weights=member))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = architecture.build(weights=None)
    return Loaded(module, **architecture.describe(), random=True)


def _with_checkpoint(architecture: _Architecture, checkpoint: str, trusted: bool) -> Loaded:
    path = Path(checkpoint).expanduser()
    if path.suffix.lower() == ".safetensors":
        return _fit(architecture, _safetensors(_existing(path))[0], path)
    content = _unpickle(_existing(path), trusted)
    if isinstance(content, nn.Module):
        raise CaptureError(f"'{path}' holds a whole module, not a checkpoint: name the file alone, with TRUSTED")
    return _fit(architecture, _state(content, path), path)


def _fit(architecture: _Architecture, state: Mapping[str, Tensor], path: Path) -> Loaded:
    """The architecture with this state, its classes and channels as many as the state has."""
    with torch.device("meta"):
        options = _options(architecture, state)
        module = architecture.build(weights=None, **options)
        channels = _adapt_channels(module, state)
    _compare(module.state_dict(), state, f"'{path}' does not fit torchvision's {architecture.name}")
    complete = OrderedDict(
        (name, state.get(name, torch.zeros(tensor.shape, dtype=tensor.dtype))) for name, tensor in module.state_dict().items()
    )
    # Some of torchvision's modules load old versions of themselves differently; files without versions are new.
    complete._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    module.load_state_dict(complete, assign=True)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_meta:
            raise CaptureError(f"'{path}' does not hold all of torchvision's {architecture.name}")
        tensor.requires_grad_(False)
    outputs = options.get("num_classes")
    return Loaded(module, **architecture.describe(channels, outputs))


def _options(architecture: _Architecture, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the builder must be told for this state: number of classes, no auxiliary heads."""
    reference = architecture.build(weights=None).state_dict()
    options: dict[str, Any] = {}
    # The classifier comes last, and is the last thing with as many rows as there are classes.
    heads = [name for name, tensor in reference.items() if tensor.dim() and tensor.shape[0] == 1000]
    if heads and heads[-1] in state:
        options["num_classes"] = int(state[heads[-1]].shape[0])
    auxiliary = [name for name in reference if name.lower().startswith("aux")]
    if auxiliary and not any(name in state for name in auxiliary):
        options["aux_logits"] = False
    return options


def _adapt_channels(module: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Make the first convolution take as many channels as the state's does; returns how many."""
    name, conv = next((name, part) for name, part in module.named_modules() if isinstance(part, nn.Conv2d))
    weight = state.get(f"{name}.weight")
    if weight is None or weight.dim() != 4 or weight.shape[1] == conv.weight.shape[1] or conv.groups != 1:
        return conv.in_channels
    changed = nn.Conv2d(
        int(weight.shape[1]),
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, changed)
    return changed.in_channels


def _compare(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], problem: str) -> None:
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in wanted]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    found = [("missing", missing), ("unexpected", extra), ("of another shape", shapes)]
    listing = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in found if names)
    if listing:
        raise CaptureError(f"{problem}: {listing}. Name the architecture it was trained with")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


# ---------------------------------------------------------------------------------------------------- files


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise BindError(f"model file '{path}' is a folder: name one file in it")
    if not path.exists():
        raise BindError(f"model file '{path}' does not exist.{nearest_file(path)}")
    return path


def _load_safetensors(path: Path, trusted: bool) -> Loaded:
    state, metadata = _safetensors(path)
    return _fit(_named_architecture(metadata.get("architecture"), path), state, path)


def _load_pickled(path: Path, trusted: bool) -> Loaded:
    content = _unpickle(path, trusted)
    if isinstance(content, nn.Module):
        return Loaded(content)
    named = content if isinstance(content, dict) else {}
    name = named.get("architecture", named.get("arch"))
    return _fit(_named_architecture(name, path), _state(content, path), path)


def _named_architecture(name: object, path: Path) -> _Architecture:
    if not isinstance(name, str):
        raise BindError(
            f"'{path}' holds weights but no architecture: say '{PREFIX}<name>@{path}', or save the file with "
            'the name under the key "architecture"'
        )
    return _architecture(name)


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return _clean({name: file.get_tensor(name) for name in names}), dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unpickle(path: Path, trusted: bool) -> Any:
    """What torch.save wrote: tensors and plain data for everybody, any object for those who trust the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as error:
        if not trusted and ("GLOBAL" in str(error) or "Unsupported" in str(error)):
            raise CaptureError(
                f"'{path}' holds pickled objects, and reading those can run any code. If you trust the file: "
                f"CREATE MODEL <name> FROM '{path}' TRUSTED"
            ) from None
        raise _unreadable(path, error) from error
    except Exception as error:  # zip, pickle and what a class does when it is made: each fails in its own way
        if "TorchScript" in str(error):
            raise CaptureError(f"'{path}' is a TorchScript archive: export the model with torch.export instead") from None
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CaptureError:
    return CaptureError(f"model file '{path}' cannot be read, it may be truncated or of another kind: {first_line(error)}")


def _state(content: object, path: Path) -> dict[str, Tensor]:
    """The state dictionary in what was saved: itself, or under one of the usual names."""
    if isinstance(content, dict):
        for key in ("state_dict", "model_state_dict", "model"):
            if isinstance(content.get(key), dict):
                content = content[key]
                break
    if isinstance(content, dict):
        tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if tensors:
            return _clean(tensors)
    raise CaptureError(f"'{path}' holds no weights: expected a state_dict, but it is {type(content).__name__}")


def _clean(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefix that DistributedDataParallel puts before them, floats of single precision."""
    wrapped = all(name.startswith("module.") for name in state)
    return {
        name.removeprefix("module.") if wrapped else name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def _load_program(path: Path, trusted: bool) -> Loaded:
    """A `.pt2` file; the input's shape, without the batch, is the program's."""
    try:
        with quietly():
            program = torch.export.load(path)
            module = program.module()
    except Exception as error:  # zip, schema and version each fail in their own ways
        raise _unreadable(path, error) from error
    inputs = program.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [tuple(values[name].shape) for name in inputs if isinstance(values.get(str(name)), Tensor)]
    if len(inputs) != 1 or len(shapes) != 1 or len(shapes[0]) != 4:
        raise CaptureError(f"the program in '{path}' must take one tensor (batch, channels, height, width), not {shapes}")
    shape = shapes[0][1:]
    whole = all(isinstance(length, int) for length in shape)
    return Loaded(module, program, input_shape=shape if whole else None)


_READERS: dict[str, Callable[[Path, bool], Loaded]] = {
    ".pt2": _load_program,
    ".safetensors": _load_safetensors,
    ".pt": _load_pickled,
    ".pth": _load_pickled,
    ".ckpt": _load_pickled,
    ".bin": _load_pickled,
}
