"""Statements to nodes, nodes to canonical text, scripts, completion, and keywords."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import get_args

import duckdb
import pytest

from krypton import sql
from krypton.sql import ast, reading
from krypton.sql.ast import (
    Calibrate,
    ClassAll,
    ClassIndex,
    ClassLabel,
    ClassPredicted,
    ClassTop,
    CreateModel,
    DescribeModel,
    DropModel,
    DuckDBStatement,
    Estimate,
    ExplainOcclusion,
    ExplainPlan,
    IntoFile,
    IntoTable,
    ModelName,
    ModelSource,
    NamedFill,
    Param,
    PathRef,
    Region,
    ResetOption,
    RgbFill,
    SetOption,
    Show,
    Size,
    Subquery,
    Superpixels,
    TuneModel,
    WithOption,
)

HEAD = "EXPLAIN OCCLUSION OF 'cat.png' USING MODEL net"
QUERY = ExplainOcclusion(PathRef("cat.png"), ModelName("net"))

EVERY_CLAUSE = (
    "EXPLAIN OCCLUSION OF $img USING MODEL net FOR CLASS TOP 3 SCORE LOGIT PATCH 16x24 STRIDE 4 MASKS $masks"
    " FILL RGB(1, 2.5, 3) IN REGION (0, 8, 64, 32) MODE APPROXIMATE WITH (tau => 0.5, keep => TRUE)"
    " WITHIN 2.5 SECONDS DEVICE 'cuda:0' INTO '{image}-{class}.png'"
)

# Canonical text and its statement, in both directions.
CANONICAL = {
    HEAD: QUERY,
    EVERY_CLAUSE: ExplainOcclusion(
        Param("img"),
        ModelName("net"),
        classes=ClassTop(3),
        score="logit",
        patch=Size(16, 24),
        stride=Size(4, 4),
        masks=Param("masks"),
        fill=RgbFill(1, 2.5, 3),
        region=Region(0, 8, 64, 32),
        mode="approximate",
        options=(WithOption("tau", 0.5), WithOption("keep", True)),
        within=2.5,
        device="cuda:0",
        into=IntoFile("{image}-{class}.png"),
    ),
    "EXPLAIN OCCLUSION OF (SELECT path FROM scans) USING MODEL 'torchvision:resnet18' FOR CLASS PREDICTED": (
        ExplainOcclusion(Subquery("SELECT path FROM scans"), ModelSource("torchvision:resnet18"), ClassPredicted())
    ),
    "EXPLAIN OCCLUSION OF 'cat.png' USING MODEL $model FOR CLASS 281": ExplainOcclusion(
        PathRef("cat.png"), Param("model"), ClassIndex(281)
    ),
    HEAD + " FOR CLASS 'tabby'": ExplainOcclusion(PathRef("cat.png"), ModelName("net"), ClassLabel("tabby")),
    HEAD + " FOR CLASS ALL": ExplainOcclusion(PathRef("cat.png"), ModelName("net"), ClassAll()),
    HEAD + " MASKS 'm.npz' FILL $fill": ExplainOcclusion(
        PathRef("cat.png"), ModelName("net"), masks=PathRef("m.npz"), fill=Param("fill")
    ),
    HEAD + " MASKS SUPERPIXELS 50 FILL 'dog.png' DEVICE CPU INTO TABLE maps": ExplainOcclusion(
        PathRef("cat.png"),
        ModelName("net"),
        masks=Superpixels(50),
        fill=PathRef("dog.png"),
        device="cpu",
        into=IntoTable("maps"),
    ),
    f"EXPLAIN PLAN FOR {HEAD}": ExplainPlan(QUERY),
    f"EXPLAIN ANALYZE VERBOSE (FORMAT JSON, COSTS OFF) PLAN FOR {HEAD}": ExplainPlan(
        QUERY, analyze=True, verbose=True, format="json", costs=False
    ),
    f"EXPLAIN VERBOSE (COSTS ON) PLAN FOR {HEAD}": ExplainPlan(QUERY, verbose=True, costs=True),
    f"ESTIMATE {HEAD}": Estimate(QUERY),
    "CREATE MODEL net FROM 'net.pt2'": CreateModel("net", ModelSource("net.pt2")),
    (
        "CREATE OR REPLACE MODEL net FROM $net INPUT 1x160x160 MEAN (0.5, 0, 1) STD (0.25) LABELS 'labels.txt'"
        " ACTIVATION SIGMOID TRUSTED"
    ): CreateModel(
        "net",
        Param("net"),
        or_replace=True,
        input_shape=(1, 160, 160),
        mean=(0.5, 0, 1),
        std=(0.25,),
        labels="labels.txt",
        activation="sigmoid",
        trusted=True,
    ),
    "DROP MODEL net": DropModel("net"),
    "DROP MODEL IF EXISTS net": DropModel("net", if_exists=True),
    "DESCRIBE MODEL net": DescribeModel("net"),
    "TUNE MODEL net OVER 'scans/*.png' FOR SSIM 0.9": TuneModel("net", PathRef("scans/*.png"), 0.9),
    "TUNE MODEL net OVER (FROM scans) PATCH 8 STRIDE 2x4 FILL MEAN FOR SSIM 1 SAMPLE 30 DEVICE CPU": TuneModel(
        "net", Subquery("FROM scans"), 1, Size(8, 8), Size(2, 4), NamedFill("mean"), sample=30, device="cpu"
    ),
    "CALIBRATE": Calibrate(),
    "CALIBRATE MODEL net DEVICE 'cuda'": Calibrate("net", "cuda"),
    "SET krypton.batch = 32": SetOption("batch", 32),
    "SET krypton.debug = FALSE": SetOption("debug", False),
    "SET krypton.disabled_rules = 'a,b'": SetOption("disabled_rules", "a,b"),
    "RESET krypton.batch": ResetOption("batch"),
    "SELECT 1": DuckDBStatement("SELECT 1"),
}
CANONICAL |= {f"SHOW {what.upper()}": Show(what) for what in get_args(ast.Listing)}
CANONICAL |= {
    f"{HEAD} FILL {name.upper()}": ExplainOcclusion(PathRef("cat.png"), ModelName("net"), fill=NamedFill(name))
    for name in get_args(ast.FillName)
}
CANONICAL |= {
    f"{HEAD} SCORE {score.upper()}": ExplainOcclusion(PathRef("cat.png"), ModelName("net"), score=score)
    for score in get_args(ast.Score)
}
CANONICAL |= {
    f"{HEAD} MODE {mode.upper()}": ExplainOcclusion(PathRef("cat.png"), ModelName("net"), mode=mode)
    for mode in get_args(ast.Mode)
}
CANONICAL |= {
    f"EXPLAIN (FORMAT {name.upper()}) PLAN FOR {HEAD}": ExplainPlan(QUERY, format=name) for name in get_args(ast.PlanFormat)
}
CANONICAL |= {
    f"CREATE MODEL net FROM 'n.pt2' ACTIVATION {name.upper()}": (CreateModel("net", ModelSource("n.pt2"), activation=name))
    for name in get_args(ast.Activation)
}


@pytest.mark.parametrize("text", CANONICAL)
def test_canonical_text_parses_to_its_statement_and_prints_back(text: str) -> None:
    assert sql.parse(text) == CANONICAL[text]
    assert sql.to_sql(CANONICAL[text]) == text


def test_numbers_keep_their_kind() -> None:
    statement = sql.parse("CREATE MODEL n FROM 'n' MEAN (0, 0.0, 1e-3, -2, .5, 3.)")
    assert isinstance(statement, CreateModel)
    assert [(type(number), number) for number in statement.mean or ()] == [
        (int, 0),
        (float, 0.0),
        (float, 0.001),
        (int, -2),
        (float, 0.5),
        (float, 3.0),
    ]


def test_keywords_have_any_case_and_clauses_any_order() -> None:
    text = "explain Occlusion oF 'cat.png' into table t stride 4 For cLass all using model net patch 16"
    assert sql.parse(text) == ExplainOcclusion(
        PathRef("cat.png"),
        ModelName("net"),
        classes=ClassAll(),
        patch=Size(16, 16),
        stride=Size(4, 4),
        into=IntoTable("t"),
    )


@pytest.mark.parametrize("keyword", sql.keywords())
def test_every_keyword_is_free_as_a_name(keyword: str) -> None:
    name = keyword.lower()
    for text, statement in {
        f"EXPLAIN OCCLUSION OF 'cat.png' USING MODEL {name} INTO TABLE {name}": ExplainOcclusion(
            PathRef("cat.png"), ModelName(name), into=IntoTable(name)
        ),
        f"EXPLAIN OCCLUSION OF ${name} USING MODEL net WITH ({name} => 1)": ExplainOcclusion(
            Param(name), ModelName("net"), options=(WithOption(name, 1),)
        ),
        f"CREATE MODEL {name} FROM 'n.pt2'": CreateModel(name, ModelSource("n.pt2")),
        f"DROP MODEL {name}": DropModel(name),
        f"DROP MODEL IF EXISTS {name}": DropModel(name, if_exists=True),
        f"DESCRIBE MODEL {name}": DescribeModel(name),
        f"TUNE MODEL {name} OVER 'a' FOR SSIM 0.9": TuneModel(name, PathRef("a"), 0.9),
        f"CALIBRATE MODEL {name}": Calibrate(name),
        f"SET krypton.{name} = 1": SetOption(name, 1),
        f"RESET krypton.{name}": ResetOption(name),
    }.items():
        assert sql.parse(text) == statement
        assert sql.to_sql(statement) == text


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("16", Size(16, 16)),
        ("16x24", Size(16, 24)),
        ("16 x 24", Size(16, 24)),
        ("16X24", Size(16, 24)),
        ("16×24", Size(16, 24)),
        ("0", Size(0, 0)),
        ("-1", Size(-1, -1)),
        ("0x10", Size(0, 10)),
        ("4x-2", Size(4, -2)),
    ],
)
def test_sizes_are_rows_first_and_may_be_senseless(written: str, size: Size) -> None:
    statement = ExplainOcclusion(PathRef("cat.png"), ModelName("net"), patch=size)
    assert sql.parse(f"{HEAD} PATCH {written}") == statement


def test_quotes_are_doubled_inside_strings_and_names() -> None:
    text = "EXPLAIN OCCLUSION OF 'it''s; -- here.png' USING MODEL \"my \"\"net\"\"\" FOR CLASS ''''"
    statement = ExplainOcclusion(PathRef("it's; -- here.png"), ModelName('my "net"'), ClassLabel("'"))
    assert sql.parse(text) == statement
    assert sql.to_sql(statement) == text


def test_bare_words_are_option_values_and_true_and_false_are_not_texts() -> None:
    statement = sql.parse(f"{HEAD} WITH (a => fast, b => True, c => 'true', d => \"false\", e => false)")
    assert isinstance(statement, ExplainOcclusion)
    assert [option.value for option in statement.options] == ["fast", True, "true", "false", False]


def test_comments_stand_wherever_space_may() -> None:
    text = "-- heat\nEXPLAIN/* a /* b */ ; */OCCLUSION OF'cat.png'USING MODEL net--end"
    assert sql.parse(text) == QUERY


def test_a_subquery_is_kept_verbatim_without_the_comments_around_it() -> None:
    inner = "SELECT ')' || path -- )\n FROM (VALUES ('a')) t(\"(\") /* ( */ WHERE $$ ( $$ <> E'\\'('"
    statement = sql.parse(f"EXPLAIN OCCLUSION OF ( {inner} -- last )\n) USING MODEL net")
    assert statement == ExplainOcclusion(Subquery(inner), ModelName("net"))
    assert sql.parse(sql.to_sql(statement)) == statement


DUCKDB = [
    "SELECT 1",
    "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE SELECT 'PLAN FOR'",
    "EXPLAIN (FORMAT JSON) SELECT 1",
    "EXPLAIN (SELECT 1)",
    "EXPLAIN",
    "CREATE TABLE model (a INT)",
    "CREATE OR REPLACE TABLE model (a INT)",
    "DROP TABLE model",
    'DESCRIBE "model"',
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "SET threads = 4",
    "SET krypton = 4",
    "RESET threads",
    "SELECT 'EXPLAIN OCCLUSION OF' -- kept\n, 16x24 FROM t",
    "SELECT 'never closed",
    "SELECT 1 /* never closed",
    "?!",
]


@pytest.mark.parametrize("text", DUCKDB)
def test_other_statements_go_to_duckdb_unchanged(text: str) -> None:
    assert sql.parse(f"  {text}") == DuckDBStatement(text)
    assert sql.to_sql(DuckDBStatement(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1; SELECT 2",
        "SELECT ';'; SELECT ''';'; ; SELECT \";\" FROM (SELECT 1 AS \";\");",
        "SELECT 1 -- ; \n; SELECT /* ; /* ; */ ; */ 2",
        "SELECT $$;$$, $tag$ ; $$ ; $tag$; SELECT 2",
        r"SELECT E'\';', e'a\\'; SELECT 2",
        "SELECT 'a\\'; SELECT 2",
        ";;",
    ],
)
def test_scripts_are_split_where_duckdb_splits_them(text: str) -> None:
    ours = [sql.to_sql(statement) for statement in sql.parse_script(text)]
    assert ours == [sql.parse_script(statement.query)[0].text for statement in duckdb.extract_statements(text)]


def test_a_script_mixes_our_statements_and_duckdbs() -> None:
    text = f"CREATE TABLE t (a INT);\n-- now the map\n{HEAD};\nSHOW MODELS; SELECT ';' -- last\n;"
    assert sql.parse_script(text) == [
        DuckDBStatement("CREATE TABLE t (a INT)"),
        QUERY,
        Show("models"),
        DuckDBStatement("SELECT ';'"),
    ]
    assert sql.parse_script(" -- nothing\n;") == []


def test_long_statements_parse() -> None:
    numbers = ", ".join(["1"] * 20_000)
    statement = sql.parse(f"CREATE MODEL net FROM 'a' MEAN ({numbers})")
    assert isinstance(statement, CreateModel)
    assert statement.mean == (1,) * 20_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("EXPLAIN ", ("ANALYZE", "OCCLUSION OF", "PLAN FOR", "VERBOSE")),
        ("explain occ", ("OCCLUSION OF",)),
        ("CREATE ", ("MODEL", "OR REPLACE MODEL")),
        ("SET kry", ("krypton.",)),
        ("SELECT 1; SHOW S", ("SETTINGS",)),
        ("EXPLAIN OCCLUSION OF ", ()),
        (f"{HEAD} STRIDE 2 INTO 'a' FOR CLASS 1 PATCH 16 S", ("SCORE",)),
        (f"{HEAD} M", ("MASKS", "MODE")),
        (f"{HEAD} FOR ", ("CLASS",)),
        (f"{HEAD} FILL B", ("BLACK", "BLUR")),
        ("TUNE MODEL net OVER 'a' F", ("FILL", "FOR SSIM")),
        ("CALIBRATE ", ("DEVICE", "MODEL")),
        ("CALIBRATE MODEL net ", ("DEVICE",)),
        ("SELECT ", ()),
        ("EXPLAIN OCCLUSION OF 'open", ()),
        ("EXPLAIN OCCLUSION OF (SELECT ", ()),
        ("DROP MODEL net ", ()),
    ],
)
def test_completion_offers_what_the_grammar_takes_and_is_not_written_yet(text: str, expected: tuple[str, ...]) -> None:
    assert sql.expected_after(text) == expected


def test_completion_of_an_empty_text_offers_the_statements() -> None:
    assert sql.expected_after("") == (
        "CALIBRATE",
        "CREATE",
        "DESCRIBE MODEL",
        "DROP MODEL",
        "ESTIMATE",
        "EXPLAIN",
        "RESET krypton.",
        "SET krypton.",
        "SHOW",
        "TUNE MODEL",
    )


def test_keywords_are_the_words_of_the_grammar() -> None:
    words = sql.keywords()
    assert list(words) == sorted(words)
    assert {"EXPLAIN", "OCCLUSION", "STRIDE", "DOT", "IF"} <= set(words)
    assert not {"NAME", "STRING", "INTEGER", "LPAR"} & set(words)


def test_the_import_needs_neither_lark_nor_torch_nor_the_rest_of_krypton() -> None:
    code = "import sys, krypton.sql; print(*sorted(m for m in sys.modules if m.startswith(('lark', 'torch', 'krypton.'))))"
    root = Path(sql.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert {name for name in modules if not name.startswith("krypton.sql")} == {"krypton.errors"}


@pytest.mark.parametrize("state", ["missing", "damaged", "occupied", "found"])
def test_tables_of_the_grammar_are_kept_and_never_trusted_blindly(
    state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Tables that are missing or damaged are made anew; without a place to keep them the grammar works all the same."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KRYPTON_CACHE", str(folder))
    tables = folder / "grammar.tables"
    made = functools.partial(reading.machine.__wrapped__)
    if state == "occupied":
        folder.write_text("")
    elif state != "missing":
        made()
        whole = tables.read_bytes()
        tables.write_bytes(whole if state == "found" else whole[: len(whole) // 2])
    monkeypatch.setattr(reading, "machine", functools.cache(made))
    assert sql.parse("SHOW MODELS") == Show("models")
    if state != "occupied":
        assert tables.stat().st_size > 10_000
