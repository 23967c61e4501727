"""What is imported is declared, and what is declared is pinned."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared() -> list[str]:
    """All requirements, those of extras too."""
    return PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]


def names(requirements: Iterable[str]) -> set[str]:
    """Distributions, as pip compares their names."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[; ]", line)[0]).lower() for line in requirements if line.strip()}


def imported(folder: str) -> set[str]:
    """The distributions of everything that the files of a package import, wherever they do it."""
    packages: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                packages |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                packages.add((node.module or "").partition(".")[0])
    known = importlib.metadata.packages_distributions()
    return names(name for package in packages - sys.stdlib_module_names for name in known.get(package, [package]))


def test_what_is_imported_is_declared() -> None:
    assert imported("krypton") - {"krypton"} <= names(PROJECT["dependencies"])
    assert imported("benchmarks") - {"krypton", "benchmarks"} <= names(declared())


def test_what_is_declared_is_pinned() -> None:
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in pinned)
    assert names(declared()) <= names(pinned)
