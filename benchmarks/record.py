"""Results on disk: files appear when they are complete, in folders made for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from krypton.results.files import write_whole


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        temporary.write_text(text)

    write_whole(path, write)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1) + "\n")
