"""Weights by content: names, derivations, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from krypton.errors import PlanError
from krypton.ir.weights import WeightStore, content_hash, derived, leaves


def test_names_depend_on_bytes_shape_and_type_and_on_nothing_else() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert content_hash(x) == content_hash(x.clone())
    assert content_hash(x.t().contiguous().t()) == content_hash(x)
    others = [x.reshape(3, 2), x.double(), x + 1, x.half(), x.bfloat16(), x[:0]]
    assert len({content_hash(other) for other in (x, *others)}) == 1 + len(others)


def test_equal_tensors_are_kept_once() -> None:
    store = WeightStore()
    assert store.add(torch.ones(3)) == store.add(torch.ones(3))
    assert len(store) == 1


def test_derived_weights_are_computed_from_what_is_stored() -> None:
    store = WeightStore()
    weight, scale, shift = (store.add(torch.randn(*shape)) for shape in ((4, 2, 3, 3), (4,), (4,)))
    scaled = derived("scale_rows", weight, scale)
    assert torch.equal(store.get(scaled), store.get(weight) * store.get(scale)[:, None, None, None])
    nested = derived("add", derived("multiply", shift, scale), shift)
    assert torch.equal(store.get(nested), store.get(shift) * store.get(scale) + store.get(shift))
    assert leaves(nested) == [shift, scale, shift]
    assert store.get(nested) is store.get(nested)


def test_all_tensors_of_a_store_go_to_one_device() -> None:
    store = WeightStore()
    references = [store.add(torch.ones(3)), store.add(torch.zeros(2))]
    moved = store.on(torch.device("meta"))
    assert [moved.get(reference).device.type for reference in references] == ["meta", "meta"]
    assert store.on(torch.device("cpu")).get(references[0]) is store.get(references[0])


def test_a_restricted_store_has_what_references_are_made_of() -> None:
    store = WeightStore()
    a, b, c = (store.add(torch.full((2,), float(i))) for i in range(3))
    small = store.restrict([derived("multiply", a, b)])
    assert len(small) == 2
    assert torch.equal(small.get(derived("add", a, b)), torch.ones(2))
    with pytest.raises(PlanError, match=c):
        small.get(c)


@pytest.mark.parametrize("reference", ["eval(sha256:0)", "add(sha256:0", "add", "add(add(sha256:0,sha256:1)", "(sha256:0)"])
def test_malformed_references_are_refused(reference: str) -> None:
    with pytest.raises(PlanError):
        WeightStore().get(reference)


def test_an_unknown_derivation_cannot_be_named() -> None:
    with pytest.raises(PlanError, match="unknown weight derivation 'power'"):
        derived("power", "sha256:0")


def test_weights_come_back_from_their_file(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tensors = [base, base[:, ::2], base.t(), torch.tensor(3), torch.randn(2).bfloat16(), torch.zeros(0, 3)]
    store = WeightStore()
    references = [store.add(tensor) for tensor in tensors]
    store.save(tmp_path / "weights.safetensors")
    again = WeightStore.load(tmp_path / "weights.safetensors")
    assert [torch.equal(again.get(r), t) for r, t in zip(references, tensors, strict=True)] == [True] * len(tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_something_prepared_is_made_once() -> None:
    store, made = WeightStore(), []
    for _ in range(2):
        assert store.prepared(("kernel", 1), lambda: made.append(1) or "ready") == "ready"
    assert made == [1]
