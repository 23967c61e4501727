"""What one query measured of a model's layers is where the next one starts; the tolerance is kept on every image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processor import needs_pairs
from torch import Tensor, nn

import krypton
from krypton import planner
from krypton.executor.engine import TensorEngine
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import TensorPlan
from krypton.planner.precision import in_low_precision
from krypton.query import Query

pytestmark = needs_pairs

SHAPE, TOLERANCE = (3, 40, 40), 0.02
QUERY = f"EXPLAIN OCCLUSION OF $img USING MODEL net PATCH 8 STRIDE 4 WITH (tolerance => {TOLERANCE})"


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for into, out in ((3, 64), (64, 128), (128, 128), (128, 256)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(256, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)).eval()


def session(model: nn.Module, database: str = ":memory:") -> krypton.Connection:
    connection = krypton.connect(database, {"disabled_rules": "full_when_cheaper"})
    connection.register_model("net", model, input_shape=SHAPE)
    return connection


def image(seed: int) -> dict[str, Tensor]:
    return {"img": torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))}


def query(connection: krypton.Connection, seed: int = 3, text: str = QUERY) -> Query:
    found = connection.sql(text, params=image(seed))
    assert isinstance(found, Query)
    return found


def kernels(found: Query) -> list[str]:
    tensor = found.plan().tensor
    assert tensor is not None
    return [node.kernel for node in tensor.graph if node.op == "conv"]


def lowered(found: Query) -> int:
    tensor = found.plan().tensor
    assert tensor is not None
    return len(in_low_precision(tensor.graph))


@pytest.fixture
def hopeful(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody measured is thought to bear everything, so that the first proposal errs too much."""
    monkeypatch.setattr(planner.precision, "USUAL_SENSITIVITY", 1e-6)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[TensorPlan]:
    """The plans that queries run on the sample."""
    plans: list[TensorPlan] = []
    attempt = TensorEngine._attempt

    def watched(self: TensorEngine, candidate: TensorPlan, some: Sequence[OcclusionTile]) -> Tensor:
        plans.append(candidate)
        return attempt(self, candidate, some)

    monkeypatch.setattr(TensorEngine, "_attempt", watched)
    return plans


@pytest.mark.usefixtures("hopeful")
def test_the_next_query_proposes_what_the_first_one_settled_on(tmp_path: Path, tried: list[TensorPlan]) -> None:
    database = str(tmp_path / "work.krypton")
    with session(net(), database) as connection:
        first = query(connection)
        before, settled = lowered(first), first.run().info["precision"]
        assert settled["convolutions"] < before
        assert len(tried) > 2
    with session(net(), database) as connection:
        tried.clear()
        second = query(connection)
        assert lowered(second) == settled["convolutions"]
        assert "by what earlier queries measured of the model" in second.explain()
        assert second.run().info["precision"] == settled
        assert len(tried) == 2
        # and what holds is not changed
        assert kernels(query(connection)) == kernels(second)


@pytest.mark.usefixtures("hopeful")
def test_other_weights_patches_and_exact_queries_do_not_use_them() -> None:
    with session(net()) as connection:
        usual = kernels(query(connection))
        query(connection).run()
        assert kernels(query(connection)) != usual
        for text in (QUERY.replace("PATCH 8", "PATCH 6"), QUERY.split(" WITH")[0]):
            assert "earlier queries" not in query(connection, text=text).explain()
        connection.register_model("net", net(seed=1), input_shape=SHAPE)
        other = query(connection)
        assert kernels(other) == usual
        assert "earlier queries" not in other.explain()


def test_an_image_that_bears_less_than_is_remembered_is_mended(tried: list[TensorPlan]) -> None:
    with session(net()) as connection:
        asked = query(connection, seed=5)
        captured, _ = asked._plan_for(asked._prepared(0))
        assert captured.model is not None
        graph = captured.model.graph
        # layers are told apart, and all are said to bear far more than they do
        rosy = {node.weights["weight"]: 1e-6 * node.id for node in graph if node.op == "conv"}
        store, occlusions = connection.profiles.sensitivities, asked._prepared(0).occlusions
        store.learn(graph, occlusions, "cpu", rosy)
        asked = query(connection, seed=5)
        assert "earlier queries" in asked.explain()
        mine: Any = asked.run()
        assert len(tried) > 2
        exact: Any = query(connection, seed=5, text=QUERY.split(" WITH")[0]).run()
        target = int(exact.base_logits.argmax())
        scores = [found.logits.softmax(-1)[..., target] for found in (mine, exact)]
        drops = exact.base_logits.softmax(-1)[target] - scores[1]
        assert float((scores[0] - scores[1]).square().mean().sqrt() / drops.square().mean().sqrt()) <= TOLERANCE
        learned = store.of(graph, occlusions, "cpu")
        assert all(learned[layer] > rosy[layer] for layer in rosy)  # half way, in logarithms, to what was found


def test_a_map_that_is_approximate_in_its_precision_alone_says_its_quality() -> None:
    with session(net()) as connection:
        coarse = QUERY.replace("STRIDE 4 ", "STRIDE 16 MODE APPROXIMATE ")  # too small a grid for a drill-down
        asked = query(connection, text=coarse)
        assert lowered(asked) > 0
        found: Any = asked.run()
        assert not found.exact.all()
        assert found.info["approximations"] == [f"tolerance {TOLERANCE:g}"]
        assert found.quality is not None
