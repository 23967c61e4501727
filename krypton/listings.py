"""Tables and messages: what statements give that are neither queries nor DuckDB's. SHOW and DESCRIBE are made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from krypton.bound import devices
from krypton.catalog import Catalog
from krypton.kernels import KERNELS
from krypton.models import LIVE, Definition, Model
from krypton.operators import OPERATORS
from krypton.planner.profile import DeviceProfile
from krypton.planner.rules import RULES
from krypton.settings import SETTINGS, Settings
from krypton.sql.ast import Listing
from krypton.tunings import Tuning, Tunings, by, described


@dataclass(frozen=True)
class Message:
    """What a statement says that has no rows: a plan, or what was done. Prints as its text."""

    text: str

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


@dataclass(frozen=True)
class Table:
    """A few rows under their column names. Prints as aligned text; `fetchall` and `columns` are as in DuckDB's relations."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows."""
        return list(self.rows)

    def limit(self, count: int) -> Table:
        """The first rows."""
        return Table(self.columns, self.rows[:count])

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        cells = [list(self.columns), *([_cell(value) for value in row] for row in self.rows)]
        widths = [max(len(row[index]) for row in cells) for index in range(len(self.columns))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True)
class Known:
    """What SHOW looks at."""

    catalog: Catalog
    settings: Settings
    live: Callable[[str], Model | None]


def show(what: Listing, known: Known) -> Table:
    """The table of SHOW <what>."""
    match what:
        case "models":
            return _models(known)
        case "rules":
            off = known.settings["disabled_rules"]
            return _table(
                ("name", "enabled", "exact", "description"),
                [(rule.name, rule.name not in off, rule.exact, rule.help) for rule in RULES],
            )
        case "operators":
            return _table(
                ("name", "linear", "reads", "lifts"),
                [(name, op.linear, op.reads, _calls(op.targets)) for name, op in sorted(OPERATORS.items())],
            )
        case "kernels":
            rows = [(k.operator, k.name, k.exact, k.fused, k.priority) for k in KERNELS]
            return _table(("operator", "name", "exact", "fused", "priority"), rows)
        case "settings":
            return _table(
                ("name", "value", "default", "description"),
                [(name, value, SETTINGS[name].default, SETTINGS[name].help) for name, value in known.settings.items()],
            )
        case "tunings":
            return _tunings(Tunings(known.catalog).all())
        case "devices":
            return _table(("name", "description"), devices())


def describe(definition: Definition, model: Model | None, problem: str = "") -> Table:
    """Everything about a model, as rows (property, value); `problem` is why it could not be loaded."""
    rows: list[tuple[str, Any]] = [("name", definition.name), ("source", definition.source or LIVE)]
    if model is not None:
        preprocessing = model.preprocessing
        parameters = sum(parameter.numel() for parameter in model.module.parameters())
        rows += [
            ("input", _shape(preprocessing.shape)),
            ("mean", _numbers(preprocessing.mean)),
            ("std", _numbers(preprocessing.std)),
            ("outputs", model.outputs),
            ("labels", _labels(model.labels)),
            ("activation", model.activation),
            ("weights", f"{parameters:,} parameters, {'random' if model.weights_random else 'as loaded'}"),
        ]
        rows += [("note", note) for note in model.notes]
    rows.append(("trusted", definition.trusted))
    rows.append(("kept", _kept(definition)))
    if problem:
        rows.append(("problem", problem))
    return _table(("property", "value"), rows)


def calibration(device: str, profile: DeviceProfile) -> Table:
    """What CALIBRATE found: for each kernel its best rate, in multiplications that it makes."""
    rows: list[tuple[Any, ...]] = []
    for name in dict.fromkeys(rate.kernel for rate in profile.rates):
        rates = [rate.per_ms for rate in profile.rates if rate.kernel == name]
        rows.append((device, name, len(rates), round(2 * max(rates) / 1e6), round(2 * sorted(rates)[len(rates) // 2] / 1e6)))
    return _table(("device", "kernel", "shapes", "best GFLOP/s", "median GFLOP/s"), rows)


def _models(known: Known) -> Table:
    rows = []
    for definition in known.catalog.models():
        model = known.live(definition.name)
        gone = definition.source is None and model is None
        shape = model.preprocessing.shape if model is not None else definition.input_shape
        rows.append(
            (
                definition.name,
                definition.source or (LIVE + " of an earlier session" if gone else LIVE),
                "" if shape is None else _shape(shape),
                "" if model is None else model.outputs,
                _kept(definition),
            )
        )
    return _table(("name", "source", "input", "outputs", "kept"), rows)


def _tunings(tunings: Sequence[Tuning]) -> Table:
    columns = ("model", "patch", "stride", "fill", "ssim", "setting", "over exact", "tau", "keep", "images", "made")
    rows = []
    for tuning in tunings:
        found = tuning.setting
        at_target = [None if value is None else round(value, 4) for value in (tuning.tau, tuning.keep)]
        rows.append(
            (
                tuning.model,
                by(tuning.patch),
                by(tuning.stride),
                tuning.fill,
                tuning.target,
                described(found.setting),
                round(1 / found.typical_cost, 1),
                *at_target,
                len(tuning.images),
                f"{tuning.created:%Y-%m-%d %H:%M}",
            )
        )
    return _table(columns, rows)


def _kept(definition: Definition) -> str:
    return "in the catalog" if definition.source is not None else "for this session only: it is a live module"


def _table(columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> Table:
    return Table(columns, tuple(tuple(_plain(value) for value in row) for row in rows))


def _plain(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _labels(labels: Sequence[str] | None) -> str:
    if labels is None:
        return "none"
    return f"{len(labels):,}: " + ", ".join(labels[:3]) + (" …" if len(labels) > 3 else "")


def _calls(targets: Sequence[str]) -> str:
    """ATen calls by name, without namespace and overload."""
    return ", ".join(dict.fromkeys(target.removeprefix("aten.").partition(".")[0] for target in targets))
