"""Files: a heat map written as a picture or as data, by the suffix of the name, whole or not at all.

`Heatmap.save` and INTO use it. A new kind of file is one row in `SUFFIXES`.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from krypton.errors import BindError, ExecutionError, unknown
from krypton.results import pictures, tables
from krypton.results.heatmap import Heatmap

# File systems allow 255 bytes for a name; two parts, each at most 4 bytes a letter in the worst case, stay below.
_LONGEST_PART = 60


def write(heatmap: Heatmap, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
    """Write the map as its suffix says (see `SUFFIXES`) and return the path.

    The file appears when it is complete; until then its content is in a temporary file in the same folder. Raises
    BindError for an unknown suffix, ExecutionError when the file cannot be written, or exists and `overwrite`
    is false.
    """
    target = check_target(path)
    if not overwrite and target.exists():
        raise ExecutionError(f"'{target}' exists already; choose another name, or allow it to be overwritten")
    write_whole(target, lambda temporary: SUFFIXES[target.suffix.lower()](heatmap, temporary))
    return target


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Have a file written beside the target, which it then replaces; raises ExecutionError when that cannot be done."""
    temporary = target.with_name(f".krypton-{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise ExecutionError(f"'{target}' cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_target(path: str | os.PathLike[str]) -> Path:
    """The path, if a heat map could be written there now; to be asked before a query spends its time.

    Raises BindError for an unknown suffix, ExecutionError when the folder does not exist or may not be written to.
    """
    target = Path(path).expanduser()
    if target.suffix.lower() not in SUFFIXES:
        raise BindError(f"'{target}': {unknown('file type', target.suffix, SUFFIXES)}")
    folder = target.parent
    if not folder.is_dir():
        raise ExecutionError(f"'{target}' cannot be written: there is no folder '{folder}'")
    if target.is_dir():
        raise ExecutionError(f"'{target}' cannot be written: it is a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ExecutionError(f"'{target}' cannot be written: no permission to write to folder '{folder}'")
    return target


def expand_name(pattern: str, image: str, cls: str) -> str:
    """The name with `{image}` replaced by the image's name without folder and suffix, and `{class}` by the class's.

    What is put in is one part of a name: everything but letters, digits, dots, dashes and underscores becomes `_`.
    Different images and classes may thus give the same name.
    """
    parts = {"image": _part(Path(image).stem), "class": _part(cls)}
    return re.sub(r"\{(image|class)\}", lambda match: parts[match[1]], pattern)


def _part(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:_LONGEST_PART] or "_"


def _write_png(heatmap: Heatmap, path: Path) -> None:
    with path.open("wb") as file:
        pictures.save_figure(heatmap, file, "png")


def _write_svg(heatmap: Heatmap, path: Path) -> None:
    with path.open("wb") as file:
        pictures.save_figure(heatmap, file, "svg")


def _write_npz(heatmap: Heatmap, path: Path) -> None:
    arrays: dict[str, Any] = {
        "heatmap": heatmap.heatmap,
        "logits": heatmap.logits.numpy(),
        "base_logits": heatmap.base_logits.numpy(),
        "positions": heatmap.positions.numpy(),
        "known": heatmap.known.numpy(),
        "exact": heatmap.exact.numpy(),
        "target": np.int64(heatmap.target),
        # Text arrays of fixed width load without pickle; an empty one stands for no labels.
        "labels": np.array(heatmap.labels or (), dtype=np.str_),
        "metadata": np.str_(json.dumps(_metadata(heatmap), default=str)),
    }
    if heatmap.masks is not None:
        arrays["masks"] = heatmap.masks.numpy()
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _write_parquet(heatmap: Heatmap, path: Path) -> None:
    import duckdb

    with duckdb.connect() as connection:
        connection.register("heatmap", tables.columns(heatmap))
        try:
            connection.table("heatmap").write_parquet(str(path))
        except duckdb.IOException as error:
            raise OSError(str(error)) from error


def _metadata(heatmap: Heatmap) -> dict[str, Any]:
    return {
        "image": heatmap.image.name,
        "image_hash": heatmap.image.content_hash,
        "image_size": heatmap.image_size,
        "label": heatmap.label,
        "score_kind": heatmap.score_kind,
        "activation": heatmap.activation,
        "base_score": heatmap.base_score,
        "quality": None if heatmap.quality is None else asdict(heatmap.quality),
        "info": dict(heatmap.info),
    }


SUFFIXES: MappingProxyType[str, Callable[[Heatmap, Path], None]] = MappingProxyType(
    {".png": _write_png, ".svg": _write_svg, ".npz": _write_npz, ".parquet": _write_parquet}
)
