"""Queries, from statement to heat map: planned, explained, run, written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from session_net import LABELS, SHAPE, SMALL, SmallNet, run
from torch import Tensor, nn

import krypton
from krypton import Heatmap
from krypton.errors import CaptureError, ExecutionError
from krypton.ir.plan import QueryPlan
from krypton.ir.serde import plan_from_json, plan_to_json
from krypton.planner.capture import CapturedModel, capture
from krypton.query import Query


def by_hand(net: nn.Module, pixels: NDArray[np.uint8], patch: tuple[int, int], stride: int) -> Tensor:
    """Logits (rows, columns, K) of full inference on pictures with gray patches, written out."""
    height, width = pixels.shape[:2]
    rows = []
    for top in range(0, height - patch[0] + 1, stride):
        row = []
        for left in range(0, width - patch[1] + 1, stride):
            changed = pixels.astype(np.float32) / 255
            changed[top : top + patch[0], left : left + patch[1]] = 128 / 255
            with torch.no_grad():
                row.append(net.eval()(torch.from_numpy((changed - 0.5) / 0.25).permute(2, 0, 1)[None])[0])
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("mode", ["NAIVE", "EXACT"])
def test_the_map_is_what_full_inference_says(
    mode: str, con: krypton.Connection, net: SmallNet, pixels: NDArray[np.uint8]
) -> None:
    heatmap = run(con, f"{SMALL} MODE {mode}", img=pixels)
    wanted = by_hand(net, pixels, (6, 8), 4)
    assert torch.allclose(heatmap.logits, wanted, atol=1e-5)
    assert np.allclose(heatmap.heatmap, wanted.softmax(-1)[..., heatmap.predicted], atol=1e-5)
    assert heatmap.complete
    assert heatmap.label == LABELS[heatmap.predicted]
    assert heatmap.info["mode"] == mode.lower()


def test_nothing_runs_before_it_is_asked_for(query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krypton.query.execute", lambda *args, **kwargs: pytest.fail("the query ran"))
    assert isinstance(query.plan(), QueryPlan)
    assert "conv 3×3" in query.explain()
    assert "PATCH 6x8" in repr(query)


def test_a_plan_survives_json(query: Query) -> None:
    assert plan_from_json(plan_to_json(query.plan())) == query.plan()


@pytest.mark.parametrize(
    ("format", "start"), [("text", "occlusion"), ("JSON", "{"), ("dot", "digraph"), ("mermaid", "flowchart")]
)
def test_plans_show_in_all_formats(format: str, start: str, query: Query, con: krypton.Connection) -> None:
    assert query.explain(format=format).startswith(start)
    said = con.sql(f"EXPLAIN (FORMAT {format}, COSTS OFF) PLAN FOR {SMALL}", {"img": np.zeros((9, 9, 3), np.uint8)})
    assert str(said) == query.explain(format=format, costs=False)


def test_analyze_shows_measured_times(query: Query, con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    assert "act ms" not in query.explain()
    text = str(con.sql(f"EXPLAIN ANALYZE PLAN FOR {SMALL}", {"img": pixels}))
    assert "act ms" in text
    assert "measured" in text


def test_analyze_says_what_an_approximate_run_came_to(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    within = str(con.sql(f"EXPLAIN ANALYZE PLAN FOR {SMALL} WITHIN 60 SECONDS", {"img": pixels}))
    assert "note: 20 of 20 positions were computed within 60 s" in within
    con.sql("SET krypton.disabled_rules = 'full_when_cheaper'")
    cut = str(con.sql(f"EXPLAIN ANALYZE PLAN FOR {SMALL} MODE APPROXIMATE WITH (tau => 0.5)", {"img": pixels}))
    assert "note: approximate (tau 0.5): " in cut
    assert "measured on " in cut
    assert "computed within" not in cut
    exact = str(con.sql(f"EXPLAIN ANALYZE PLAN FOR {SMALL}", {"img": pixels}))
    assert "note: approximate" not in exact


def test_an_unknown_format_is_refused(query: Query) -> None:
    with pytest.raises(krypton.BindError, match='Did you mean "json"'):
        query.explain(format="jsn")


# ---------------------------------------------------------------------------------------------------- several maps


def test_several_classes_come_from_one_run(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    top = run(con, f"{SMALL} FOR CLASS TOP 2", img=pixels)
    everything = run(con, f"{SMALL} FOR CLASS ALL", img=pixels)
    assert [heatmap.label for heatmap in everything] == list(LABELS)
    assert {heatmap.logits.data_ptr() for heatmap in everything} == {everything[0].logits.data_ptr()}
    assert [heatmap.target for heatmap in top] == top[0].base_logits.topk(2).indices.tolist()
    assert np.array_equal(top[1].heatmap, everything[top[1].target].heatmap)


@pytest.mark.parametrize(("clause", "index"), [("2", 2), ("'Fluid'", 2), ("'exudate'", 3)])
def test_a_class_by_index_or_label(clause: str, index: int, con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    assert run(con, f"{SMALL} FOR CLASS {clause} MODE NAIVE", img=pixels).target == index


def test_one_map_per_row_of_a_subquery(con: krypton.Connection, tmp_path: Path) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"scan{number}.png")
    con.sql("CREATE TABLE scans AS SELECT * FROM glob($pattern)", {"pattern": f"{tmp_path}/*.png"})
    text = "EXPLAIN OCCLUSION OF (SELECT file FROM scans ORDER BY file DESC) USING MODEL net PATCH 8 STRIDE 8"
    heatmaps = con.sql(text).run()
    assert [Path(heatmap.image.name).name for heatmap in heatmaps] == ["scan2.png", "scan1.png", "scan0.png"]
    single = run(con, "EXPLAIN OCCLUSION OF $img USING MODEL net PATCH 8 STRIDE 8", img=pictures[0])
    assert torch.allclose(heatmaps[2].logits, single.logits, atol=1e-6)


def test_masks_and_superpixels(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    masks = torch.zeros(3, 20, 24, dtype=torch.bool)
    masks[0, 2:5, 3:9], masks[1, 10:, :], masks[2, ::2, ::3] = True, True, True
    heatmap = run(con, "EXPLAIN OCCLUSION OF $img USING MODEL net MASKS $m", img=pixels, m=masks)
    assert heatmap.heatmap.shape == (3,)
    assert heatmap.positions.tolist()[:2] == [[2, 3, 3, 6], [10, 0, 10, 24]]
    naive = run(con, "EXPLAIN OCCLUSION OF $img USING MODEL net MASKS $m MODE NAIVE", img=pixels, m=masks)
    assert torch.allclose(heatmap.logits, naive.logits, atol=1e-5)
    segments = run(con, "EXPLAIN OCCLUSION OF $img USING MODEL net MASKS SUPERPIXELS 6 MODE NAIVE", img=pixels)
    assert segments.masks is not None
    assert segments.masks.sum(0).eq(1).all()


def test_a_region_gives_the_values_of_the_full_map(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    full = run(con, SMALL, img=pixels)
    part = run(con, f"{SMALL} IN REGION (4, 8, 12, 16)", img=pixels)
    assert part.positions[0, 0].tolist() == [4, 8, 6, 8]
    assert torch.allclose(part.logits, full.logits[1:3, 2:5], atol=1e-6)


def test_clauses_reach_the_answer(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    margin = run(con, f"{SMALL} SCORE MARGIN FILL RGB(255, 0, 0) MODE NAIVE WITH (batch => 3)", img=pixels)
    assert (margin.score_kind, margin.info["fill"]) == ("margin", "RGB(255, 0, 0)")
    one, same, other = (
        run(con, f"{SMALL} FILL NOISE MODE NAIVE WITH (seed => {seed})", img=pixels).info["fill_hash"] for seed in (1, 1, 2)
    )
    assert one == same != other


def test_a_query_keeps_the_settings_it_was_made_with(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    con.sql("SET krypton.batch = 3")
    before = con.sql(f"{SMALL} MODE NAIVE", {"img": pixels})
    con.sql("SET krypton.batch = 5")
    assert (before.plan().batch, con.sql(f"{SMALL} MODE NAIVE", {"img": pixels}).plan().batch) == (3, 5)


def test_rules_can_be_disabled_and_the_answer_stays(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    wanted = run(con, SMALL, img=pixels).logits
    con.sql("SET krypton.disabled_rules = 'incremental, fold_batch_norm'")
    query = con.sql(SMALL, {"img": pixels})
    assert "delta" not in query.explain()
    assert torch.allclose(query.run().logits, wanted, atol=1e-5)


def test_images_are_taken_when_the_query_is_made(con: krypton.Connection) -> None:
    image = torch.randn(SHAPE)
    query = con.sql(f"{SMALL} MODE NAIVE", {"img": image})
    wanted = query.run().base_logits
    image.zero_()
    assert torch.equal(query.run().base_logits, wanted)


def test_a_model_is_asked_as_it_is_when_the_query_runs(pixels: NDArray[np.uint8]) -> None:
    module = SmallNet().train()
    with krypton.connect() as con:
        con.register_model("mine", module, input_shape=SHAPE, mean=0.5, std=0.25)
        query = con.sql("EXPLAIN OCCLUSION OF $img USING MODEL mine PATCH 8 STRIDE 8", {"img": pixels})
        query.plan()
        with torch.no_grad():
            module.fc.bias += torch.tensor([0.0, 3.0, 0.0, 0.0])
        heatmap = query.run()
    assert torch.allclose(heatmap.logits, by_hand(module, pixels, (8, 8), 8), atol=1e-5)


def test_a_run_leaves_train_mode_and_statistics_alone(pixels: NDArray[np.uint8]) -> None:
    module = SmallNet().train()
    module.norm.eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    for mode in ("naive", "exact"):
        krypton.explain_occlusion(module, pixels, patch=8, stride=8, mode=mode)
    assert module.training
    assert not module.norm.training
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


# ---------------------------------------------------------------------------------------------------- models that resist


class Mixing(SmallNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True) * (len(x) > 1))


def test_models_that_mix_a_batch_run_one_by_one_and_the_plan_says_so(pixels: NDArray[np.uint8]) -> None:
    module = Mixing()
    with krypton.connect() as con:
        con.register_model("mixing", module, input_shape=SHAPE, mean=0.5, std=0.25)
        query = con.sql("EXPLAIN OCCLUSION OF $img USING MODEL mixing PATCH 8 STRIDE 8", {"img": pixels})
        assert (query.plan().kind, query.plan().batch, query.plan().input_shape) == ("naive", 1, SHAPE)
        assert "mixes the examples" in query.explain()
        assert torch.allclose(query.run().logits, by_hand(module, pixels, (8, 8), 8), atol=1e-5)
        assert any("mixes the examples" in note for note in query.run().info["notes"])


def test_nan_for_this_image_alone_is_an_error(con: krypton.Connection) -> None:
    class Logarithm(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x + 50).log())

    con.register_model("logs", Logarithm(), input_shape=SHAPE)
    query = con.sql("EXPLAIN OCCLUSION OF $img USING MODEL logs PATCH 8 MODE NAIVE", {"img": torch.full(SHAPE, -60.0)})
    with pytest.raises(ExecutionError, match="NaN"):
        query.run()
    con.sql("DROP MODEL logs")  # the session is shared with other tests


# ---------------------------------------------------------------------------------------------------- INTO


@pytest.mark.parametrize("suffix", [".png", ".svg", ".npz", ".parquet"])
def test_into_a_file(suffix: str, con: krypton.Connection, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    heatmap = run(con, f"{SMALL} MODE NAIVE INTO '{tmp_path}/heat{suffix}'", img=pixels)
    assert heatmap.info["written"] == str(tmp_path / f"heat{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"heat{suffix}"]


def test_files_hold_what_was_asked(con: krypton.Connection, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    heatmap = run(con, f"{SMALL} MODE NAIVE INTO '{tmp_path}/heat.npz'", img=pixels)
    saved = np.load(tmp_path / "heat.npz")
    assert np.array_equal(saved["logits"], heatmap.logits.numpy())
    assert json.loads(str(saved["metadata"]))["info"]["statement"].startswith("EXPLAIN OCCLUSION OF $img")


def test_several_maps_have_several_files(con: krypton.Connection, tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    """Images of one name in different folders must not overwrite each other."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "eye.scan.png")
    con.sql(
        f"EXPLAIN OCCLUSION OF (SELECT file FROM glob('{tmp_path}/*/*.png') ORDER BY file) USING MODEL net FOR CLASS TOP 1 "
        f"PATCH 8 STRIDE 8 MODE NAIVE INTO '{tmp_path}/{{image}}_{{class}}.npz'"
    ).run()
    label = run(con, f"{SMALL} MODE NAIVE", img=pixels).label
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == [f"eye.scan-1_{label}.npz", f"eye.scan-2_{label}.npz"]


def test_classes_of_one_name_have_files_of_their_own(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    with krypton.connect() as con:
        con.register_model("birds", SmallNet(), input_shape=SHAPE, labels=["crane", "owl", "Crane", "c/rane"])
        text = f"EXPLAIN OCCLUSION OF $img USING MODEL birds FOR CLASS ALL PATCH 8 MODE NAIVE INTO '{tmp_path}/{{class}}.npz'"
        run(con, text, img=pixels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Crane-2.npz", "c_rane.npz", "crane-0.npz", "owl.npz"]


def test_into_a_table(con: krypton.Connection, pixels: NDArray[np.uint8], scan: Path) -> None:
    text = f"EXPLAIN OCCLUSION OF '{scan}' USING MODEL net PATCH 6x8 STRIDE 4 FOR CLASS ALL INTO TABLE \"my heat\""
    heatmaps = con.sql(text).run()
    columns = ["image", "class", "row", "column", "top", "left", "height", "width", "score", "drop", "logit", "exact"]
    relation = con.sql('SELECT * FROM "my heat"')
    assert relation.columns == columns
    assert con.sql('SELECT count(*) FROM "my heat"').fetchall() == [(4 * 20,)]
    best = con.sql("""SELECT top, "left", height, width FROM "my heat" WHERE class = 'fluid' ORDER BY "drop" DESC LIMIT 1""")
    assert best.fetchall() == [heatmaps[2].most_sensitive]


def test_a_lost_folder_is_noticed_before_the_run(con: krypton.Connection, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    query = con.sql(f"{SMALL} FOR CLASS TOP 1 INTO '{tmp_path}/{{class}}/heat.npz'", {"img": pixels})
    seen: list[int] = []
    with pytest.raises(ExecutionError, match="there is no folder"):
        query.run(progress=lambda done, total: seen.append(done))
    assert seen == []


def test_a_heatmap_is_what_comes_back(query: Query) -> None:
    assert isinstance(query.run(), Heatmap)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The modules that were captured."""
    seen: list[nn.Module] = []

    def counted(module: nn.Module, shape: tuple[int, int, int]) -> CapturedModel:
        seen.append(module)
        return capture(module, shape)

    monkeypatch.setattr("krypton.graphs.capture", counted)
    return seen


@pytest.fixture
def hooked(con: krypton.Connection) -> Iterator[SmallNet]:
    """A model without a fingerprint."""
    net = SmallNet()
    net.conv2.register_forward_hook(lambda module, args, output: output * 2)
    con.register_model("hooked", net, input_shape=SHAPE, mean=0.5, std=0.25)
    yield net
    con.sql("DROP MODEL hooked")


def test_a_model_without_a_fingerprint_is_captured_once_per_query(
    captures: list[nn.Module], con: krypton.Connection, hooked: SmallNet, pixels: NDArray[np.uint8], scan: Path
) -> None:
    text = SMALL.replace("MODEL net", "MODEL hooked")
    query = con.sql(text, {"img": pixels})
    query.plan(), query.explain(), query.run(), query.run()
    assert len(captures) == 1
    con.sql(f"CREATE TABLE two AS SELECT unnest(['{scan}', '{scan}']) AS path")
    con.sql(text.replace("$img", "(SELECT path FROM two)")).run()
    assert len(captures) == 2


def test_a_model_without_a_fingerprint_that_changed_is_captured_again(
    captures: list[nn.Module], hooked: SmallNet, con: krypton.Connection, pixels: NDArray[np.uint8]
) -> None:
    query = con.sql(SMALL.replace("MODEL net", "MODEL hooked"), {"img": pixels})
    query.plan()
    hooked.conv1.register_forward_hook(lambda module, args, output: -output)
    torch.testing.assert_close(query.run().logits, by_hand(hooked, pixels, (6, 8), 4), rtol=1e-4, atol=1e-4)
    assert len(captures) == 2
    with torch.no_grad():
        hooked.fc.bias += 1
    torch.testing.assert_close(query.run().logits, by_hand(hooked, pixels, (6, 8), 4), rtol=1e-4, atol=1e-4)
    assert len(captures) == 3
    hooked.fc.bias.data[0] = torch.nan
    with pytest.raises(CaptureError, match=r"fc\.bias"):
        query.run()
