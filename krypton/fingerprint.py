"""Fingerprints: a hash over everything that a captured graph depends on, so that it may be kept and found again.

The module's structure as printed, the classes' source files, all plain attributes, all weights by content, the input's
size, and the versions of the libraries. What cannot be hashed for good (forward hooks, attributes that are live objects,
classes typed into a shell) makes a model one that is not kept; that is slower, never wrong.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import importlib.metadata
import inspect
import os
import sys
import types
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from krypton.ir.weights import Reference, content_hash

_LIBRARIES = ("torch", "torchvision", "timm", "krypton")
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format)


class NotKeptError(Exception):
    """The model has something that cannot be hashed; its text says what."""


def hash_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Reference]:
    """The content hash of every tensor, by name; hashing lets other threads run, so several go at once."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(tensors, pool.map(content_hash, tensors.values()), strict=True))


def tensors_of(module: nn.Module, program: ExportedProgram | None = None) -> dict[str, Tensor]:
    """All tensors a graph may refer to, by name: parameters, buffers (also those not saved), a program's constants."""
    if program is not None:
        return {name: value for name, value in {**program.state_dict, **program.constants}.items() if isinstance(value, Tensor)}
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def fingerprint(
    module: nn.Module, program: ExportedProgram | None, input_shape: tuple[int, int, int], hashes: Mapping[str, Reference]
) -> str:
    """SHA-256 in hex over the model and the input's shape, `hashes` those of `tensors_of`; raises NotKeptError."""
    digest = hashlib.sha256()
    parts = _program(program) if program is not None else _structure(module)
    for part in (*_versions(), str(tuple(input_shape)), *parts, *(f"{name}={value}" for name, value in hashes.items())):
        digest.update(part.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


@functools.cache
def _versions() -> tuple[str, ...]:
    found = [f"python {sys.version_info[0]}.{sys.version_info[1]}"]
    for library in _LIBRARIES:
        try:
            found.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{library} none")
    return tuple(found)


def _program(program: ExportedProgram) -> Iterator[str]:
    yield str(program.graph_module.graph)
    yield str(program.graph_signature)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        yield f"{node.name} {tuple(map(str, value.shape))} {value.dtype}" if isinstance(value, Tensor) else node.name


def _structure(module: nn.Module) -> Iterator[str]:
    yield repr(module)
    seen: set[int] = set()
    for name, part in module.named_modules():
        if any(vars(part).get(hooks) for hooks in _HOOKS):
            raise NotKeptError(f"{name or 'the model'} has forward hooks")
        yield f"{name}: {_class(type(part))}"
        for attribute, value in sorted(vars(part).items()):
            if attribute not in _INTERNAL and attribute != "training":
                yield f"{name}.{attribute} = {_canonical(value, seen)}"


def _class(kind: type) -> str:
    """A class by name, and by the source files of all its bases that are not PyTorch's own."""
    files = (
        source_hash(base.__module__)
        for base in kind.__mro__
        if base is not object and base.__module__.partition(".")[0] not in ("torch", "builtins", "typing", "abc")
    )
    return f"{kind.__module__}.{kind.__qualname__} {' '.join(files)}"


def source_hash(module: str) -> str:
    """The hash of the file that defines a Python module; raises NotKeptError when there is none."""
    try:
        path = Path(inspect.getsourcefile(sys.modules[module]) or "")
        stat = path.stat()
        return _file_hash(path, stat.st_mtime_ns, stat.st_size)
    except (KeyError, TypeError, OSError):
        raise NotKeptError(f"the source of {module} is not in a file") from None


@functools.lru_cache(maxsize=1024)
def _file_hash(path: Path, modified: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _canonical(value: object, seen: set[int]) -> str:
    """A text that is equal for equal values, in any process; raises NotKeptError for what has none."""
    if isinstance(value, enum.Enum):
        return f"{_class(type(value))}.{value.name}"
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, Tensor):
        return content_hash(value)
    if isinstance(value, type):
        return f"type {value.__module__}.{value.__qualname__}" if value.__module__ in ("builtins", "torch") else _class(value)
    if isinstance(value, nn.Module):
        return "module"  # a part, which has its own entry; parts outside the tree show when the graph is tried
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        return _function(value, seen)
    return _compound(value, seen)


def _compound(value: object, seen: set[int]) -> str:
    if id(value) in seen:
        return "seen"
    seen.add(id(value))
    try:
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{_canonical(k, seen)}: {_canonical(v, seen)}" for k, v in value.items()) + "}"
        if isinstance(value, (tuple, list)):
            return f"{type(value).__name__}[{', '.join(_canonical(item, seen) for item in value)}]"
        if isinstance(value, (set, frozenset)):
            return f"set[{', '.join(sorted(_canonical(item, seen) for item in value))}]"
        if isinstance(value, functools.partial):
            return f"partial {_canonical((value.func, value.args, value.keywords), seen)}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields: dict[str, Any] = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return f"{_class(type(value))} {_canonical(fields, seen)}"
    finally:
        seen.discard(id(value))
    raise NotKeptError(f"an attribute is a live {type(value).__name__}")


def _function(function: types.FunctionType | types.BuiltinFunctionType, seen: set[int]) -> str:
    name = f"function {function.__module__}.{function.__qualname__}"
    if isinstance(function, types.BuiltinFunctionType):
        return name
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return f"{name} {source_hash(function.__module__)} {_canonical(cells, seen)} {_canonical(function.__defaults__, seen)}"
