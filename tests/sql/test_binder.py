"""The binder: what statements mean, and where it says what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from krypton.approximation import APPROXIMATE_OPTIONS
from krypton.bound import BoundQuery
from krypton.errors import BindError, CatalogError, KryptonError
from krypton.images import LoadedImage, Preprocessing
from krypton.ir.occlusions import Grid, Masks
from krypton.models import Model
from krypton.settings import Settings
from krypton.sql import ast, parse
from krypton.sql.binder import bind, parameters
from krypton.sql.lexemes import split
from krypton.sql.places import clause, find_clause, placed

PICTURE = np.zeros((30, 30, 3), dtype=np.uint8)
MODEL = Model("net", nn.Identity(), Preprocessing(3, 32, 40, (0.5,) * 3, (0.25,) * 3), 3, "softmax", ("cat", "dog", "owl"))


class Session:
    """A resolver that knows one model, one table and what it is given."""

    def __init__(self, **given: Any) -> None:
        self.given = {"img": PICTURE, **given}
        self.settings = Settings()
        self.asked: list[str] = []

    def parameter(self, name: str) -> Any:
        return self.given[name]

    def model_named(self, name: str) -> Model:
        if name != "net":
            raise BindError(f'unknown model "{name}"')
        return MODEL

    def model_from(self, source: str) -> Model:
        self.asked.append(source)
        return MODEL

    def live_model(self, given: Any) -> Model:
        assert given is MODEL.module
        return MODEL

    def query_paths(self, sql: str) -> list[str]:
        self.asked.append(sql)
        return list(self.given["paths"])

    def check_new_table(self, name: str) -> None:
        if name == "taken":
            raise BindError(f"table {name} exists already")


def bound(clauses: str = "", model: str = "net", image: str = "$img", **given: Any) -> BoundQuery:
    statement = parse(f"EXPLAIN OCCLUSION OF {image} USING MODEL {model} {clauses}")
    assert isinstance(statement, ast.ExplainOcclusion)
    return bind(statement, Session(**given))


def test_defaults_are_those_of_the_language() -> None:
    query = bound()
    assert query.occlusions == Grid((32, 40), (16, 16), (4, 4))
    assert (query.fill, query.score, query.mode, query.device) == ("gray", "probability", "exact", "cpu")
    assert (query.target, query.seed, query.into, query.several) == (ast.ClassPredicted(), 0, None, False)
    assert query.prepare(0).fill.description == "gray"


def test_clauses_are_what_they_say(tmp_path: Path) -> None:
    query = bound(
        f"FOR CLASS 'Dog' SCORE MARGIN PATCH 8x6 STRIDE 2 FILL RGB(1, 2, 3) IN REGION (0, 4, 20, 30) MODE NAIVE "
        f"WITH (batch => 5, seed => 9, tolerance => 0) DEVICE CPU INTO '{tmp_path}/x.png'"
    )
    assert query.occlusions == Grid((32, 40), (8, 6), (2, 2), (0, 4, 20, 30))
    assert (query.fill, query.score, query.mode, query.seed) == ((1, 2, 3), "margin", "naive", 9)
    assert query.target == ast.ClassIndex(1)
    assert query.settings["batch"] == 5
    assert query.into == ast.IntoFile(f"{tmp_path}/x.png")
    assert query.statement.startswith("EXPLAIN OCCLUSION OF $img USING MODEL net FOR CLASS 'Dog'")


def test_options_do_not_leak_into_the_session() -> None:
    session = Session()
    statement = parse("EXPLAIN OCCLUSION OF $img USING MODEL net WITH (BATCH => 5)")
    assert isinstance(statement, ast.ExplainOcclusion)
    assert bind(statement, session).settings["batch"] == 5
    assert session.settings["batch"] is None


def test_models_come_by_name_source_or_parameter() -> None:
    assert bound(model="net").model is MODEL
    assert bound(model="'torchvision:resnet18'").model is MODEL
    assert bound(model="$m", m=MODEL.module).model is MODEL


@pytest.mark.parametrize(
    ("clauses", "target", "several"),
    [
        ("", ast.ClassPredicted(), False),
        ("FOR CLASS PREDICTED", ast.ClassPredicted(), False),
        ("FOR CLASS 2", ast.ClassIndex(2), False),
        ("FOR CLASS 'owl'", ast.ClassIndex(2), False),
        ("FOR CLASS TOP 3", ast.ClassTop(3), True),
        ("FOR CLASS ALL", ast.ClassAll(), True),
    ],
)
def test_classes(clauses: str, target: object, several: bool) -> None:
    query = bound(clauses)
    assert (query.target, query.several) == (target, several)


def test_the_classes_asked_for_follow_the_base_logits() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    answers = [bound(f"FOR CLASS {which}").targets(logits) for which in ("PREDICTED", "0", "TOP 2", "ALL")]
    assert answers == [[1], [0], [1, 2], [0, 1, 2]]


def test_masks_replace_the_grid() -> None:
    masks = np.zeros((2, 32, 40), dtype=bool)
    masks[:, 3:5, 4:9] = True
    occlusions = bound("MASKS $m", m=masks).occlusions
    assert isinstance(occlusions, Masks)
    assert occlusions.count == 2
    query = bound("MASKS SUPERPIXELS 4", img=np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8))
    assert query.occlusions == ast.Superpixels(4)
    assert isinstance(query.prepare(0).occlusions, Masks)


def test_a_fill_may_be_a_parameter() -> None:
    fill = torch.full((3, 1, 1), 0.25)
    assert torch.allclose(bound("FILL $f", f=fill).prepare(0).fill.values, torch.tensor(-1.0))


def test_rows_of_a_subquery_are_read_when_their_turn_comes(scans: list[str]) -> None:
    query = bound(image="(SELECT path FROM t)", paths=scans)
    assert (query.images, query.several) == (tuple(scans), True)
    Path(scans[1]).write_bytes(b"no image any more")
    assert isinstance(query.prepare(0).image, LoadedImage)
    with pytest.raises(BindError, match="scan1"):
        query.prepare(1)


def test_every_row_must_be_a_file_that_exists(scans: list[str]) -> None:
    with pytest.raises(BindError, match=r"scan7\.png' does not exist"):
        bound(image="(SELECT path FROM t)", paths=[*scans, scans[0].replace("scan0", "scan7")])


@pytest.fixture
def scans(tmp_path: Path) -> list[str]:
    from PIL import Image

    paths = [str(tmp_path / f"scan{number}.png") for number in range(2)]
    for path in paths:
        Image.fromarray(PICTURE).save(path)
    return paths


# ---------------------------------------------------------------------------------------------------- mistakes

MASK = np.ones((1, 32, 40), dtype=bool)


@pytest.mark.parametrize(
    ("clauses", "where", "message"),
    [
        ("PATCH 33", "PATCH", r"patch 33×33 is larger than the image, 32×40"),
        ("PATCH 8x41", "PATCH", r"patch 8×41 is larger"),
        ("PATCH 0", "PATCH", "at least 1×1"),
        ("STRIDE 0", "STRIDE", "stride 0×0: must be at least 1×1"),
        ("STRIDE 4x-1", "STRIDE", "at least 1×1"),
        ("IN REGION (0, 0, 33, 4)", "IN REGION", "does not lie inside the image"),
        ("IN REGION (-1, 0, 20, 20)", "IN REGION", "does not lie inside the image"),
        ("IN REGION (0, 0, 9, 9)", "IN REGION", "no patch"),
        ("FOR CLASS 3", "FOR CLASS", "classes are 0 to 2"),
        ("FOR CLASS -1", "FOR CLASS", "classes are 0 to 2"),
        ("FOR CLASS 'dgo'", "FOR CLASS", 'Did you mean "dog"'),
        ("FOR CLASS TOP 4", "FOR CLASS", "from 1 to 3"),
        ("FOR CLASS TOP 0", "FOR CLASS", "from 1 to 3"),
        ("MASKS $m PATCH 8", "PATCH", "PATCH and MASKS contradict"),
        ("MASKS $m STRIDE 8", "STRIDE", "STRIDE and MASKS contradict"),
        ("MASKS $m IN REGION (0, 0, 9, 9)", "IN REGION", "IN REGION and MASKS contradict"),
        ("MASKS SUPERPIXELS 0", "MASKS", "SUPERPIXELS takes a number"),
        ("MASKS 'missing.npz'", "MASKS", "does not exist"),
        ("MASKS $none", "MASKS", r"\$none is None"),
        ("FILL RGB(1, 2, 300)", "FILL", "from 0 to 255"),
        ("FILL RGB(1, 2, 0.5)", "FILL", "whole numbers"),
        ("FILL 'missing.png'", "FILL", "does not exist"),
        ("FILL 'missing'", "FILL", "does not exist"),
        ("FILL $none", "FILL", r"\$none is None"),
        ("MODE APPROXIMATE STRIDE 16 WITH (speedup => 3)", "WITH", "grid of 2×2 positions allows a speed-up of at most"),
        ("MODE APPROXIMATE MASKS $m", "MODE", "drilldown needs a grid"),
        ("MODE APPROXIMATE MASKS SUPERPIXELS 4", "MODE", "drilldown needs a grid"),
        ("MODE APPROXIMATE WITH (drilldown => 0.5, speedup => 2)", "WITH", "contradict each other"),
        ("MODE APPROXIMATE WITH (drilldown => 0.1, speedup => 9.9)", "WITH", "at most"),
        ("MODE APPROXIMATE WITH (drilldown => 1.5)", "WITH", "of at least 0, at most 1"),
        ("MODE APPROXIMATE WITH (speedup => 0.5)", "WITH", "of at least 1"),
        ("MODE APPROXIMATE WITH (tau => 0)", "WITH", "above 0, at most 1"),
        ("MODE APPROXIMATE WITH (keep => 1.1)", "WITH", "above 0, at most 1"),
        ("MODE APPROXIMATE WITH (keep => TRUE)", "WITH", "takes a number"),
        ("MODE APPROXIMATE WITH (ssim => 0.9, keep => 0.9)", "WITH", "ssim is a goal, and keep already says"),
        ("MODE APPROXIMATE WITH (quality_share => 2)", "WITH", "at most 1"),
        ("MODE APPROXIMATE WITH (quality_shore => 2)", "WITH", 'Did you mean "quality_share"'),
        ("WITHIN 0 SECONDS", "WITHIN", "a number of seconds above 0"),
        ("WITH (bacth => 3)", "WITH", 'unknown option "bacth". Did you mean "batch"'),
        ("WITH (batch => 0)", "WITH", "at least 1"),
        ("WITH (batch => 2.5)", "WITH", "whole number"),
        ("WITH (batch => TRUE)", "WITH", "whole number"),
        ("WITH (seed => -1)", "WITH", "at least 0"),
        ("WITH (seed => often)", "WITH", "whole number"),
        ("WITH (tolerance => -0.1)", "WITH", "at least 0"),
        ("WITH (tolerance => low)", "WITH", "takes a number"),
        *((f"WITH ({name} => 1)", "WITH", f"{name} needs MODE APPROXIMATE") for name in APPROXIMATE_OPTIONS),
        ("DEVICE 'gpu'", "DEVICE", 'unknown device "gpu"'),
        ("INTO 'heat.gif'", "INTO", "unknown file type"),
        ("INTO 'missing/heat.png'", "INTO", "there is no folder"),
        ("INTO TABLE taken", "INTO TABLE", "exists already"),
        ("FOR CLASS ALL INTO 'heat.png'", "INTO", "write 'heat-{class}.png'"),
        ("FOR CLASS TOP 2 INTO 'maps/heat.v2.png'", "INTO", "write 'maps/heat.v2-{class}.png'"),
    ],
)
def test_mistakes_are_shown_in_their_clause(clauses: str, where: str, message: str) -> None:
    text = f"EXPLAIN OCCLUSION OF $img USING MODEL net {clauses}"
    with pytest.raises(KryptonError, match=message) as caught:
        bound(clauses, m=MASK, none=None)
    shown = str(placed(caught.value, text, split(text)[0])).splitlines()
    start = shown[-1].index("^") - len("LINE 1: ")
    assert shown[-2] == f"LINE 1: {text}"
    assert text[start:].startswith(where)
    assert type(placed(caught.value, text, split(text)[0])) is type(caught.value)


def test_a_missing_cuda_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "CUDA:1"):
        with pytest.raises(BindError, match="no CUDA device on this computer"):
            bound(f"DEVICE '{device}'")


def test_devices_that_are_there_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"H{index}")
    assert [bound(f"DEVICE '{device}'").device for device in ("cuda", "cuda:1", "CPU")] == ["cuda:0", "cuda:1", "cpu"]
    with pytest.raises(BindError, match=r"cpu, cuda:0, cuda:1"):
        bound("DEVICE 'cuda:2'")


def test_several_images_need_a_place_for_their_name(scans: list[str]) -> None:
    with pytest.raises(BindError, match=r"a map per image.*write 'heat-\{image\}\.png'"):
        bound("INTO 'heat.png'", image="(SELECT path FROM t)", paths=scans)
    bound("INTO 'heat.png'", image="(SELECT path FROM t)", paths=scans[:1])
    bound("FOR CLASS TOP 1 INTO 'heat.png'")


def test_mistakes_in_image_and_model_are_placed() -> None:
    for text, where in (
        ("OF 'missing.png' USING MODEL net", "OF 'missing.png'"),
        ("OF $img USING MODEL nte", "USING MODEL nte"),
    ):
        statement = parse(f"EXPLAIN OCCLUSION {text}")
        assert isinstance(statement, ast.ExplainOcclusion)
        with pytest.raises(BindError) as caught:
            bind(statement, Session())
        last = str(placed(caught.value, text, split(text)[0])).splitlines()[-1]
        assert last == " " * (8 + text.index(where)) + "^" * len(where)


# ---------------------------------------------------------------------------------------------------- places


def test_names_that_look_like_clauses_are_not_taken_for_them() -> None:
    text = (
        "EXPLAIN OCCLUSION OF (SELECT patch FROM stride) USING MODEL patch WITH (fill => 3) INTO TABLE fill FILL BLACK patch 3"
    )
    lexemes = split(text)[0]
    found = {words: find_clause(lexemes, words) for words in ("PATCH", "FILL", "STRIDE", "INTO", "USING MODEL")}
    shown = {words: text[slice(*span)] if span else None for words, span in found.items()}
    assert shown == {
        "PATCH": "patch 3",
        "FILL": "FILL BLACK",
        "STRIDE": None,
        "INTO": "INTO TABLE fill",
        "USING MODEL": "USING MODEL patch",
    }


def test_the_innermost_clause_is_the_place() -> None:
    with pytest.raises(CatalogError) as caught, clause("FROM"), clause("LABELS"):
        raise CatalogError("no")
    text = "CREATE MODEL m FROM 'a'\n  LABELS 'b' TRUSTED"
    error = placed(caught.value, text, split(text)[0])
    assert str(error).splitlines() == ["no", "", "LINE 2:   LABELS 'b' TRUSTED", "          ^^^^^^^^^^"]
    assert placed(error, text, split(text)[0]) is error


def test_an_error_without_a_clause_stays_as_it_is() -> None:
    error = BindError("no")
    assert placed(error, "SHOW RULES", split("SHOW RULES")[0]) is error


@pytest.mark.parametrize("params", [[1], "img", {1: 2}])
def test_parameters_that_are_no_dictionary(params: Any) -> None:
    with pytest.raises(BindError, match="params is a dictionary"):
        parameters(params)


def test_parameters_may_be_written_with_their_dollar() -> None:
    value: Tensor = torch.zeros(1)
    assert parameters({"$img": value})["img"] is value
