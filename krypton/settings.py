"""One table of settings; SET, SHOW SETTINGS, `connect(config=)` and the docs all derive from it.

A new setting is one row in `SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from krypton.errors import BindError, unknown


@dataclass(frozen=True)
class Setting:
    """A named value with its default, the function that checks and converts user input, and its help line."""

    name: str
    default: Any
    convert: Callable[[object], Any]
    help: str


def _integer(minimum: int) -> Callable[[object], int]:
    def convert(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError(f"a whole number of at least {minimum}")
        number = float(value)
        if number != int(number) or number < minimum:
            raise ValueError(f"a whole number of at least {minimum}")
        return int(number)

    return convert


def _number(minimum: float) -> Callable[[object], float]:
    def convert(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)) or not minimum <= float(value) < float("inf"):
            raise ValueError(f"a number of at least {minimum:g}")
        return float(value)

    return convert


def _optional_integer(minimum: int) -> Callable[[object], int | None]:
    whole = _integer(minimum)

    def convert(value: object) -> int | None:
        return None if value is None or value == 0 else whole(value)

    return convert


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "on", "1", "false", "off", "0"):
        return value.lower() in ("true", "on", "1")
    if value in (0, 1):
        return bool(value)
    raise ValueError("true or false")


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise ValueError("names separated by commas")


def _kernels(value: object) -> tuple[str, ...]:
    """Names; which there are is known where kernels are."""
    return tuple(name.lower() for name in _names(value) if name.lower() != "auto")


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("a text")


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("batch", None, _optional_integer(1), "most occlusions computed together (0: the planner chooses)"),
        Setting("cache_graphs", True, _boolean, "keep captured graphs in the catalog"),
        Setting("debug", False, _boolean, "check the invariants of every delta while running (slow)"),
        Setting("device", "cpu", _text, "where queries run unless they say DEVICE"),
        Setting("disabled_rules", (), _names, "optimizer rules to leave out, separated by commas"),
        Setting(
            "kernels",
            (),
            _kernels,
            "kernels preferred to those predicted to be fastest, by name; reference: plain PyTorch; auto: none",
        ),
        Setting("max_image_pixels", 100_000_000, _integer(1), "images with more pixels are refused"),
        Setting("memory_limit_mb", 4096, _integer(64), "memory for the deltas of one batch and the views"),
        Setting("results_megabytes", 256, _integer(0), "the catalog's exact results take at most so much; the oldest go first"),
        Setting("reuse_results", True, _boolean, "take exact results from the catalog, and keep them there"),
        Setting(
            "tolerance", 0.0, _number(0.0), "largest relative error of score changes that low precision may cause; 0: exact"
        ),
        Setting("threads", None, _optional_integer(1), "threads of PyTorch's CPU operators (0: as they are)"),
    )
}


class Settings:
    """The settings of one session: defaults from `SETTINGS`, changed by `set` and `reset`."""

    def __init__(self, values: Mapping[str, object] | None = None) -> None:
        self._values: dict[str, Any] = {}
        for name, value in (values or {}).items():
            self.set(name, value)

    def __getitem__(self, name: str) -> Any:
        return self._values.get(name, _lookup(name).default)

    def set(self, name: str, value: object) -> None:
        """Check and store a value; raises BindError naming the setting and what it takes."""
        setting = _lookup(name)
        try:
            self._values[setting.name] = setting.convert(value)
        except ValueError as error:
            raise BindError(f"krypton.{setting.name} takes {error}, not {value!r}") from None

    def reset(self, name: str) -> None:
        self._values.pop(_lookup(name).name, None)

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self[name]) for name in SETTINGS]


def _lookup(name: str) -> Setting:
    key = name.lower().removeprefix("krypton.")
    if key not in SETTINGS:
        raise BindError(unknown("setting", key, SETTINGS))
    return SETTINGS[key]
