"""Classes by index or label: one way to find them, for queries and for finished heat maps."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from krypton.errors import BindError, did_you_mean, unknown

# So many labels are listed when somebody names another.
_FEW = 12


def find_class(which: str | int, labels: Sequence[str] | None, outputs: int) -> int:
    """The index of a class, from its index or its label in any case; raises BindError with the nearest label."""
    if not isinstance(which, str):
        try:
            index = operator.index(which)
        except TypeError:
            raise BindError(f"a class is an index or a label, not {type(which).__name__}") from None
        if not 0 <= index < outputs:
            raise BindError(f"class {which} does not exist: the model's classes are 0 to {outputs - 1}")
        return index
    if labels is None:
        raise BindError(f"this model's classes have no labels: give an index from 0 to {outputs - 1}, not {which!r}")
    # Labels that differ in case alone are told apart by an exact match.
    for same in (which.__eq__, lambda label: label.lower() == which.lower()):
        found = [index for index, label in enumerate(labels) if same(label)]
        if len(found) == 1:
            return found[0]
        if found:
            raise BindError(f"label {which!r} names classes {', '.join(map(str, found))}: give the index")
    if len(labels) <= _FEW:
        raise BindError(unknown("class", which, labels))
    raise BindError(f'unknown class "{which}".{did_you_mean(which, labels)} The model has {outputs:,} classes.')


def label_of(index: int, labels: Sequence[str] | None, outputs: int) -> str:
    """The name of a class, or `class 3` when the classes have no names."""
    if labels is not None and index < len(labels):
        return labels[index]
    return "output" if outputs == 1 else f"class {index}"
