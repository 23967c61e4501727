"""Krypton: a query engine for occlusion explanations of CNNs.

`connect()` gives a session, whose `sql("EXPLAIN OCCLUSION ...")` queries; `explain_occlusion(module, image)` is the same in
one call; `sql.parse(text)` is the language without a session. What needs PyTorch is loaded when it is first used.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from krypton import sql
from krypton.errors import (
    BindError,
    CaptureError,
    CatalogError,
    ExecutionError,
    ImageError,
    KryptonError,
    ParserError,
    PlanError,
)

if TYPE_CHECKING:
    from krypton.api import explain_occlusion
    from krypton.estimates import Estimate
    from krypton.query import Query
    from krypton.results import Heatmap
    from krypton.session import Connection, connect

__version__ = version("krypton")

__all__ = [
    "BindError",
    "CaptureError",
    "CatalogError",
    "Connection",
    "Estimate",
    "ExecutionError",
    "Heatmap",
    "ImageError",
    "KryptonError",
    "ParserError",
    "PlanError",
    "Query",
    "__version__",
    "connect",
    "explain_occlusion",
    "sql",
]

_WHERE = {
    "Connection": "krypton.session",
    "Estimate": "krypton.estimates",
    "Heatmap": "krypton.results",
    "Query": "krypton.query",
    "connect": "krypton.session",
    "explain_occlusion": "krypton.api",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'krypton' has no attribute '{name}'")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
