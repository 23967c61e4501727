"""The modules of examples/, which is no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    """A module of examples/, as "finetune" or "retina/phantoms"; always the same one."""
    known = f"krypton_examples_{name.replace('/', '_')}"
    if known not in sys.modules:
        specification = importlib.util.spec_from_file_location(known, EXAMPLES / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        sys.modules[known] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules[known])
    return sys.modules[known]
