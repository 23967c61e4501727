"""What tests need of the processor that they run on."""

from __future__ import annotations

import pytest

from krypton.kernels import native

needs_pairs = pytest.mark.skipif(
    native.library() is None or not native.loaded().krypton_has_pairs(), reason="bfloat16 needs a compiler and AVX-512 BF16"
)
