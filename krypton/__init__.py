"""Krypton: a query engine for occlusion explanations of CNNs.

con = krypton.connect()                                   a session; con.sql("EXPLAIN OCCLUSION ...") queries
krypton.explain_occlusion(module, image)                  the same in one call
krypton.sql.parse(text)                                   the language without a session
"""

from importlib.metadata import version

from krypton import sql
from krypton.api import explain_occlusion
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
from krypton.query import Query
from krypton.results import Heatmap
from krypton.session import Connection, connect

__version__ = version("krypton")

__all__ = [
    "BindError",
    "CaptureError",
    "CatalogError",
    "Connection",
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
