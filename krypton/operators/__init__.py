"""Operators, one file per family; importing this package registers them all."""

from krypton.operators import (
    channels,
    combine,
    conv,
    dense,
    gate,
    group_norm,
    norm,
    opaque,
    pad,
    pool,
    product,
    reduce,
    source,
)
from krypton.operators.base import BY_TARGET, OPERATORS, Operator, operator_of, register

__all__ = [
    "BY_TARGET",
    "OPERATORS",
    "Operator",
    "channels",
    "combine",
    "conv",
    "dense",
    "gate",
    "group_norm",
    "norm",
    "opaque",
    "operator_of",
    "pad",
    "pool",
    "product",
    "reduce",
    "register",
    "source",
]
