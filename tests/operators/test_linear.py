"""Linear layers against PyTorch's, whatever memory their weights and rows lie in."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from krypton.operators.dense import linear

LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.t().contiguous().t(),
    "strided": lambda t: torch.cat((t, t), 1)[:, : t.shape[1]],
    "every second": lambda t: t.repeat_interleave(2, 1)[:, ::2],
}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(1, 70),
    st.integers(1, 50),
    st.booleans(),
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from(sorted(LAYOUTS)),
)
def test_linear_layers_are_those_of_pytorch(rows, inner, columns, with_bias, of_x, of_weight) -> None:
    generator = torch.Generator().manual_seed(rows + 100 * inner + columns)
    x, weight = torch.randn(rows, inner, generator=generator), torch.randn(columns, inner, generator=generator)
    bias = torch.randn(columns, generator=generator) if with_bias else None
    found = linear(LAYOUTS[of_x](x), LAYOUTS[of_weight](weight), bias)
    assert torch.allclose(found, F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


def test_a_linear_layer_of_one_row_expanded_to_many_gives_the_same_row_many_times() -> None:
    x, weight = torch.randn(1, 300), torch.randn(64, 300)
    found = linear(x.expand(20, 300), weight, None)
    assert torch.equal(found, found[:1].expand(20, 64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_pytorchs_own(dtype) -> None:
    x, weight = torch.randn(5, 30, dtype=dtype), torch.randn(7, 30, dtype=dtype)
    assert torch.equal(linear(x, weight, None), F.linear(x, weight))


def test_gradients_go_through_linear_layers() -> None:
    x, weight = torch.randn(5, 30, requires_grad=True), torch.randn(7, 30)
    (found,) = torch.autograd.grad(linear(x, weight, None).sum(), [x])
    assert torch.allclose(found, weight.sum(0).expand(5, 30))
