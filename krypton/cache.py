"""Where things are kept that take time to make and can be made again: compiled kernels, the grammar's tables."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$KRYPTON_CACHE`, or krypton/ in the user's cache. It holds code that runs: nobody else should be able to write there."""
    if configured := os.environ.get("KRYPTON_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "krypton"
