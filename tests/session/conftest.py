"""A small CNN, a picture and a session that knows both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from session_net import LABELS, SHAPE, SMALL, SmallNet

import krypton
from krypton.query import Query


@pytest.fixture(scope="session")
def net() -> SmallNet:
    """Shared, and so captured once: tests that change a module make their own."""
    return SmallNet()


@pytest.fixture(scope="session")
def shared_session(net: SmallNet) -> Iterator[krypton.Connection]:
    with krypton.connect() as connection:
        connection.register_model("net", net, input_shape=SHAPE, mean=0.5, std=0.25, labels=LABELS)
        yield connection


@pytest.fixture
def con(shared_session: krypton.Connection) -> Iterator[krypton.Connection]:
    """A session in memory that knows `net`; tests leave no tables and settings behind, and use no results of others."""
    shared_session.settings.set("reuse_results", False)
    yield shared_session
    for name, _ in shared_session.settings.items():
        shared_session.settings.reset(name)
    for (name,) in shared_session.sql("SHOW TABLES").fetchall():
        shared_session.sql(f'DROP TABLE "{name}"')


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    """A picture of the model's size."""
    return np.random.default_rng(0).integers(0, 256, (SHAPE[1], SHAPE[2], 3), dtype=np.uint8)


@pytest.fixture
def scan(tmp_path: Path, pixels: NDArray[np.uint8]) -> Path:
    """The picture as a file."""
    path = tmp_path / "scan.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def query(con: krypton.Connection, pixels: NDArray[np.uint8]) -> Query:
    lazy = con.sql(SMALL, {"img": pixels})
    assert isinstance(lazy, Query)
    return lazy
