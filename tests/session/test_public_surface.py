"""What `import krypton` gives, and what it does not drag in."""

from __future__ import annotations

import json
import subprocess
import sys

import krypton


def test_import_is_light() -> None:
    program = "import json, sys, krypton; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert {"krypton", "torch"} <= loaded
    assert not loaded & {"matplotlib", "triton", "fastapi", "torchvision", "skimage", "typer", "rich", "prompt_toolkit"}


def test_everything_promised_is_there() -> None:
    assert all(hasattr(krypton, name) for name in krypton.__all__)
    assert krypton.__version__.count(".") == 2


def test_the_language_works_without_a_session() -> None:
    text = "EXPLAIN OCCLUSION OF 'cat.jpg' USING MODEL net"
    assert krypton.sql.to_sql(krypton.sql.parse(text)) == text


def test_every_error_is_a_krypton_error() -> None:
    errors = [getattr(krypton, name) for name in krypton.__all__ if name.endswith("Error")]
    assert len(errors) == 8
    assert all(issubclass(error, krypton.KryptonError) for error in errors)
