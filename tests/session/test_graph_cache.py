"""Captured graphs are found again when nothing changed, and never otherwise."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from session_net import SHAPE, SmallNet
from torch import Tensor, nn

from krypton import sources
from krypton.errors import CaptureError
from krypton.fingerprint import NotKeptError, fingerprint, hash_tensors, tensors_of
from krypton.graphs import GraphCache
from krypton.models import Definition, Loaded, Model, make_model
from krypton.planner.whole import run_whole


class Store:
    """A catalog of graphs, in a dictionary."""

    def __init__(self) -> None:
        self.graphs: dict[str, tuple[str, bytes]] = {}

    def get_graph(self, key: str) -> tuple[str, bytes] | None:
        return self.graphs.get(key)

    def put_graph(self, key: str, graph: str, tensors: bytes) -> None:
        self.graphs[key] = graph, tensors


def model_of(module: nn.Module) -> Model:
    return make_model(Loaded(module), Definition("net", input_shape=SHAPE))


def key_of(module: nn.Module, shape: tuple[int, int, int] = SHAPE) -> str:
    return fingerprint(module, None, shape, hash_tensors(tensors_of(module)))


@pytest.fixture(scope="module")
def filled() -> Store:
    """A store that has the graph of SmallNet."""
    store = Store()
    assert GraphCache(store).captured(model_of(SmallNet())).origin == "captured"
    assert len(store.graphs) == 1
    return store


@pytest.fixture
def store(filled: Store) -> Store:
    copy = Store()
    copy.graphs = dict(filled.graphs)
    return copy


def test_another_session_finds_the_graph_and_it_computes_what_the_model_does(store: Store) -> None:
    model = model_of(SmallNet())
    cache = GraphCache(store)
    found = cache.captured(model)
    assert found.origin == "catalog"
    assert found.model is not None
    images = torch.randn(3, *SHAPE)
    with torch.no_grad():
        wanted = model.module.eval()(images)
    assert torch.allclose(run_whole(found.model.graph, found.model.weights, images), wanted, atol=1e-5)
    again = cache.captured(model)
    assert again.origin == "memory"
    assert again.same_as(found)


def test_weights_that_changed_are_captured_anew(store: Store) -> None:
    module = SmallNet()
    cache = GraphCache(store)
    cache.captured(model_of(module))
    with torch.no_grad():
        module.conv1.weight[0, 0, 0, 0] += 1
    changed = cache.captured(model_of(module))
    assert changed.origin == "captured"
    assert len(store.graphs) == 2


def test_weights_that_became_nan_are_refused(store: Store) -> None:
    module = SmallNet()
    model = model_of(module)
    cache = GraphCache(store)
    cache.captured(model)
    module.fc.bias.data[0] = torch.nan
    with pytest.raises(CaptureError, match=r"fc\.bias"):
        cache.captured(model)


def test_an_entry_that_the_model_no_longer_agrees_with_is_not_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fingerprint cannot see: a function elsewhere that the model calls."""
    monkeypatch.setattr(nn.functional, "max_pool2d", nn.functional.avg_pool2d)
    assert GraphCache(store).captured(model_of(SmallNet())).origin == "captured"


@pytest.mark.parametrize("damage", [lambda graph, blob: ("{", blob), lambda graph, blob: (graph, blob[:-5])])
def test_a_damaged_entry_is_not_used(damage: Any, store: Store) -> None:
    store.graphs = {key: damage(*entry) for key, entry in store.graphs.items()}
    assert GraphCache(store).captured(model_of(SmallNet())).origin == "captured"


def test_the_catalog_is_not_used_when_the_setting_says_so(store: Store) -> None:
    module = SmallNet()
    module.fc.bias.data += 1
    cache = GraphCache(store)
    assert cache.captured(model_of(module), keep=False).origin == "captured"
    assert len(store.graphs) == 1


def test_memory_does_not_keep_modules_alive(store: Store) -> None:
    cache = GraphCache(store)
    cache.captured(model_of(SmallNet()))
    assert not cache._memory


# ---------------------------------------------------------------------------------------------------- fingerprints


class Configured(SmallNet):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def _twice(x: Tensor) -> Tensor:
    return x * 2


def test_equal_models_have_equal_fingerprints() -> None:
    attributes = {
        "rate": 0.5,
        "shape": (1, [2, {"a": None}]),
        "f": functools.partial(_twice),
        "kind": nn.ReLU,
        "t": torch.ones(2),
    }
    assert key_of(Configured(**attributes)) == key_of(Configured(**attributes))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"rate": 0.5}, {"rate": 0.25}),
        ({"rate": 1}, {"rate": 1.0}),
        ({"shape": (1, 2)}, {"shape": (2, 1)}),
        ({"table": {"a": 1}}, {"table": {"a": 2}}),
        ({"f": _twice}, {"f": torch.relu}),
        ({"kind": nn.ReLU}, {"kind": nn.GELU}),
        ({"t": torch.ones(2)}, {"t": torch.zeros(2)}),
    ],
)
def test_attributes_are_part_of_the_fingerprint(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert key_of(Configured(**one)) != key_of(Configured(**other))


def test_size_class_and_structure_are_part_of_the_fingerprint() -> None:
    keys = {key_of(SmallNet()), key_of(SmallNet(), (3, 20, 25)), key_of(Configured()), key_of(nn.Sequential(SmallNet()))}
    assert len(keys) == 4


def test_training_mode_is_not() -> None:
    assert key_of(SmallNet().train()) == key_of(SmallNet().eval())


def test_the_source_of_the_class_is_part_of_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "written_net.py"
    text = "from torch import nn\n\nclass Net(nn.Flatten):\n    def forward(self, x):\n        return super().forward(x)"
    monkeypatch.syspath_prepend(str(tmp_path))
    file.write_text(text)
    import written_net  # type: ignore[import-not-found]

    before = key_of(written_net.Net())
    file.write_text(text + " + 1\n")
    assert key_of(written_net.Net()) != before


def test_hooks_and_live_objects_are_not_kept() -> None:
    hooked = SmallNet()
    hooked.conv2.register_forward_hook(lambda module, args, output: output * 2)
    live = Configured(log=iter([1]))
    for module in (hooked, live):
        with pytest.raises(NotKeptError):
            key_of(module)


def test_hooked_models_are_captured_with_their_hooks_each_time() -> None:
    module = SmallNet()
    cache = GraphCache(Store())
    handle = module.conv2.register_forward_hook(lambda module, args, output: output * 2)
    found = cache.captured(model_of(module))
    images = torch.randn(1, *SHAPE)
    with torch.no_grad():
        wanted = module.eval()(images)
    assert found.model is not None
    assert torch.allclose(run_whole(found.model.graph, found.model.weights, images), wanted, atol=1e-5)
    handle.remove()
    assert cache.captured(model_of(module)).origin == "captured"


# ---------------------------------------------------------------------------------------------------- other models


class Leaving(SmallNet):
    """Leaves PyTorch on the way, where no graph can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(super().forward(x).tolist())


class Mixing(SmallNet):
    """Its answer for an image depends on the others in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True) * (len(x) > 1))


def test_a_model_that_cannot_be_captured_says_why() -> None:
    found = GraphCache().captured(model_of(Leaving()))
    assert found.model is None
    assert found.reason
    assert not found.alone


def test_a_model_that_mixes_a_batch_runs_alone() -> None:
    found = GraphCache().captured(model_of(Mixing()))
    assert (found.model, found.alone) == (None, True)
    assert GraphCache().uncaptured(model_of(Mixing())).alone
    assert not GraphCache().uncaptured(model_of(SmallNet())).alone


@pytest.mark.parametrize("batch", [1, 2])
def test_exported_programs_are_captured_and_kept(batch: int, tmp_path: Path) -> None:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if batch > 1 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(SmallNet().eval(), (torch.randn(batch, *SHAPE),), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "net.pt2")
    store = Store()
    origins = []
    for _ in range(2):
        model = make_model(sources.load(str(tmp_path / "net.pt2")), Definition("net"))
        found = GraphCache(store).captured(model)
        origins.append(found.origin)
        assert found.model is not None
        images = torch.randn(3, *SHAPE)
        with torch.no_grad():
            wanted = SmallNet().eval()(images)
        assert torch.allclose(run_whole(found.model.graph, found.model.weights, images), wanted, atol=1e-5)
    assert origins == ["captured", "catalog"]
