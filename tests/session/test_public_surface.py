"""What `import krypton` gives, and what it does not drag in."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import krypton


def modules_after(program: str) -> set[str]:
    """The top-level modules that a new process has loaded after a program."""
    report = "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program + report], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_import_is_light() -> None:
    assert modules_after("import krypton").isdisjoint({"torch", "numpy", "duckdb", "lark"})
    loaded = modules_after("import krypton; krypton.connect(); krypton.explain_occlusion")
    assert {"krypton", "torch", "duckdb"} <= loaded
    assert loaded.isdisjoint({"matplotlib", "triton", "fastapi", "torchvision", "skimage", "typer", "rich", "prompt_toolkit"})


def test_everything_promised_is_there() -> None:
    assert all(hasattr(krypton, name) for name in krypton.__all__)
    assert set(krypton.__all__) <= set(dir(krypton))
    assert krypton.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="'conect'"):
        krypton.conect  # type: ignore[attr-defined]  # noqa: B018


def test_the_language_works_without_a_session() -> None:
    text = "EXPLAIN OCCLUSION OF 'cat.jpg' USING MODEL net"
    assert krypton.sql.to_sql(krypton.sql.parse(text)) == text


def test_every_error_is_a_krypton_error() -> None:
    errors = [getattr(krypton, name) for name in krypton.__all__ if name.endswith("Error")]
    assert len(errors) == 8
    assert all(issubclass(error, krypton.KryptonError) for error in errors)
