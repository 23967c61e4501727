"""A session with a small model and an image, and screens that a test can read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small_net import LABELS, Net

import krypton
from krypton.cli.screen import Screen


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `scan.png` in it and no home elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save("scan.png")
    return tmp_path


@pytest.fixture
def connection(net: Net, folder: Path) -> Iterator[krypton.Connection]:
    with krypton.connect() as connection:
        connection.register_model("net", net, input_shape=(3, 24, 24), labels=LABELS)
        yield connection


@pytest.fixture
def make_screen() -> Callable[..., Screen]:
    """A screen whose consoles write to `io.StringIO`; `tty=True` makes them terminals."""

    def make(tty: bool = False, width: int = 100) -> Screen:
        return Screen(
            *(
                Console(
                    file=io.StringIO(),
                    force_terminal=tty,
                    color_system="truecolor" if tty else None,
                    width=width,
                    highlight=False,
                    markup=False,
                    emoji=False,
                )
                for _ in range(2)
            )
        )

    return make
