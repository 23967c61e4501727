"""Tables: a heat map as rows, one per known occlusion, for DuckDB, Parquet and data frames.

`heatmap` and `files` use it, and the session for INTO TABLE: DuckDB reads a dictionary of arrays as a table.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krypton.errors import BindError
from krypton.results.heatmap import Heatmap


def columns(heatmap: Heatmap) -> dict[str, NDArray[Any]]:
    """Arrays of one length, in this order: image, class, row, column, top, left, height, width, score, drop, logit, exact.

    Rows and columns are those of the grid; a mask is a row, its column is 0. Positions that are not known are left out.
    """
    known = heatmap.known.numpy().ravel()
    rows, columns = np.indices(heatmap.known.shape if heatmap.known.ndim == 2 else (known.size, 1))
    boxes = heatmap.positions.reshape(-1, 4).numpy()
    logit = heatmap.logits[..., heatmap.target].float().numpy()
    table: dict[str, NDArray[Any]] = {
        "image": np.full(known.size, heatmap.image.name, dtype=object),
        "class": np.full(known.size, heatmap.label, dtype=object),
        "row": rows.ravel(),
        "column": columns.ravel(),
        **{name: boxes[:, axis] for axis, name in enumerate(("top", "left", "height", "width"))},
        "score": heatmap.heatmap.ravel(),
        "drop": heatmap.drop().ravel(),
        "logit": logit.ravel(),
        "exact": heatmap.exact.numpy().ravel(),
    }
    return {name: values[known] for name, values in table.items()}


def rows(heatmap: Heatmap) -> list[dict[str, Any]]:
    """The table as one dictionary of Python values per row."""
    table = columns(heatmap)
    return [dict(zip(table, values, strict=True)) for values in zip(*(v.tolist() for v in table.values()), strict=True)]


def arrow(heatmap: Heatmap) -> Any:
    """The table as a pyarrow.Table; raises BindError when pyarrow is not installed."""
    try:
        pyarrow = importlib.import_module("pyarrow")
    except ImportError:
        raise BindError("to_arrow() needs pyarrow: pip install pyarrow, or use to_rows()") from None
    return pyarrow.table(columns(heatmap))
