"""The catalog: what it keeps and gives back, and DuckDB's complaints as errors of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from krypton.catalog import Catalog
from krypton.errors import BindError, CatalogError
from krypton.models import Definition

FULL = Definition(
    "Net", "/models/net.pt2", (1, 32, 48), (0.5,), (0.25,), ("normal", "drusen, 'soft'", 'ein "Ödem"'), "sigmoid", trusted=True
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "work.krypton"


def test_definitions_outlive_the_session(file: Path) -> None:
    bare = Definition("bare", "torchvision:resnet18")
    first = Catalog(file)
    first.put_model(FULL)
    first.put_model(bare)
    first.close()
    second = Catalog(file)
    assert second.find_model("NET") == FULL
    assert second.models() == [bare, FULL]
    second.drop_model("net")
    assert second.find_model("Net") is None
    second.close()


def test_a_definition_takes_the_place_of_one_of_its_name() -> None:
    catalog = Catalog()
    catalog.put_model(FULL)
    catalog.put_model(Definition("NET", "other.pt2"))
    assert catalog.models() == [Definition("NET", "other.pt2")]


def test_graphs_are_found_by_key(file: Path) -> None:
    first = Catalog(file)
    first.put_graph("k", '{"a": 1}', b"\x00\xff")
    first.put_graph("k", '{"a": 2}', b"\x01")
    first.close()
    second = Catalog(file)
    assert second.get_graph("k") == ('{"a": 2}', b"\x01")
    assert second.get_graph("other") is None
    second.close()


def test_our_tables_are_not_among_the_users() -> None:
    catalog = Catalog()
    assert catalog.sql("SHOW TABLES").fetchall() == []
    catalog.sql("CREATE TABLE models (a INTEGER)")
    assert catalog.has_table("MODELS")
    assert not catalog.has_table("graphs")


def test_mistakes_in_sql_keep_duckdbs_words() -> None:
    with pytest.raises(CatalogError, match=r"^Table with name nowhere does not exist"):  # and no "Catalog Error: " before it
        Catalog().sql("SELECT * FROM nowhere")
    with pytest.raises(CatalogError, match=r"^Could not convert string 'a'"):
        Catalog().query_paths("SELECT 'a'::INTEGER AS path")


ENDLESS = "SELECT count(*) FROM range(100000000000) t(i) WHERE i % 7 = 3"


@pytest.fixture
def interrupted() -> Iterator[Callable[[Callable[[], object]], float]]:
    """Runs something, presses Ctrl-C after a moment, and says how many seconds it took to stop."""
    timers = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored

    def run(work: Callable[[], object]) -> float:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timers.append(timer)
        started = time.perf_counter()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            work()
        return time.perf_counter() - started - 0.3

    yield run
    for timer in timers:
        timer.cancel()
    signal.signal(signal.SIGINT, before)


def test_long_statements_hear_an_interrupt(interrupted: Callable[[Callable[[], object]], float]) -> None:
    catalog = Catalog()
    relation = catalog.sql(ENDLESS)
    works: list[Callable[[], object]] = [
        lambda: catalog.fetch(relation),
        lambda: catalog.fetch(relation, 1),
        lambda: catalog.sql(f"CREATE TABLE t AS {ENDLESS}"),
        lambda: catalog.query_paths(ENDLESS),
    ]
    for work in works:
        assert interrupted(work) < 2
        assert catalog.sql("SELECT 1").fetchall() == [(1,)]
    assert not catalog.has_table("t")


def test_the_first_rows_are_fetched() -> None:
    catalog = Catalog()
    relation = catalog.sql("SELECT * FROM range(5)")
    assert catalog.fetch(relation, 2) == [(0,), (1,)]
    assert len(catalog.fetch(relation)) == 5


def test_parameters_reach_duckdb() -> None:
    assert Catalog().sql("SELECT $a + 1", {"a": 4}).fetchall() == [(5,)]


@pytest.mark.parametrize("content", [b"this is no database", b""])
def test_a_file_that_is_no_database(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(CatalogError, match=r"work\.krypton' cannot be opened"):
        Catalog(file)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be opened"):
        Catalog(tmp_path / "missing" / "work.krypton")


def test_a_file_that_another_process_has_open(file: Path) -> None:
    script = f"import duckdb, sys; c = duckdb.connect({str(file)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "open"
        with pytest.raises(CatalogError, match="lock"):
            Catalog(file)
        other.stdin.close()


def test_a_catalog_of_another_version_is_refused(file: Path) -> None:
    first = Catalog(file)
    first.sql("UPDATE krypton.about SET version = 99")
    first.close()
    with pytest.raises(CatalogError, match="another version"):
        Catalog(file)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_catalog_of_an_earlier_version_gets_the_tables_that_it_lacks(version: int, file: Path) -> None:
    first = Catalog(file)
    first.put_model(FULL)
    for table in ("profiles", "queries", "sensitivities", "results", "tunings")[version - 1 :]:
        first.sql(f"DROP TABLE krypton.{table}")
    first.sql(f"UPDATE krypton.about SET version = {version}")
    first.close()
    second = Catalog(file)
    assert second.find_model("net") == FULL
    second.put_profile("cpu", "{}")
    second.put_query("cpu", "net", "{}", 1.5, 10)
    assert second.finished_queries("cpu") == [("net", "{}", 1.5)]
    second.put_tuning("k", "net", "{}")
    assert second.tunings("k") == ["{}"]
    second.close()
    Catalog(file).close()  # is of this version now


def test_the_latest_finished_queries_of_each_device_are_kept() -> None:
    catalog = Catalog()
    catalog.put_query("cuda", "net", "{}", 9.0, 2)
    for number in range(4):
        catalog.put_query("cpu", f"net{number}", "{}", float(number), 2)
    assert [row[0] for row in catalog.finished_queries("cpu")] == ["net3", "net2"]
    catalog.forget_queries("cpu")
    assert catalog.finished_queries("cpu") == []
    assert len(catalog.finished_queries("cuda")) == 1


def test_a_tuning_takes_the_place_of_one_of_its_key(file: Path) -> None:
    first = Catalog(file)
    for key, tuning in (("a", "1"), ("b", "2"), ("a", "3")):
        first.put_tuning(key, "net", tuning)
    first.close()
    second = Catalog(file)
    assert (second.tunings(), second.tunings("a"), second.tunings("c")) == (["2", "3"], ["3"], [])
    second.close()


def test_a_closed_catalog_says_so() -> None:
    catalog = Catalog()
    catalog.close()
    with pytest.raises(CatalogError, match="closed"):
        catalog.models()


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("SELECT 'a' AS file, 1 AS size", 'must have a column "path", or only one column; it has file, size'),
        ("SELECT 'a' AS path WHERE false", "gives no rows"),
        ("SELECT unnest(['a', NULL]) AS path", "row 2 .* NULL"),
        ("SELECT 3 AS path", "row 1 .* 3, which is no text"),
    ],
)
def test_queries_for_images_that_give_no_paths(select: str, message: str) -> None:
    with pytest.raises(BindError, match=message):
        Catalog().query_paths(select)


@pytest.mark.parametrize("select", ["SELECT 1 AS size, 'a.png' AS PATH", "SELECT 'a.png'"])
def test_paths_are_the_column_of_that_name_or_the_only_one(select: str) -> None:
    assert Catalog().query_paths(select) == ["a.png"]


def part(name: str, values: list[float]) -> dict[str, object]:
    return {"image": np.full(len(values), name, dtype=object), "score": np.array(values, dtype=np.float32)}


def test_tables_are_written_part_after_part() -> None:
    catalog = Catalog()
    catalog.write_table('my "results"', [part("a", [1, 2]), part("b", [3])])
    found = catalog.sql('SELECT * FROM "my ""results""" ORDER BY score').fetchall()
    assert found == [("a", 1.0), ("a", 2.0), ("b", 3.0)]
    assert catalog.has_table('MY "RESULTS"')


def test_a_table_is_there_as_a_whole_or_not_at_all() -> None:
    catalog = Catalog()
    with pytest.raises(CatalogError, match="table results cannot be written"):
        catalog.write_table("results", [part("a", [1]), {"image": np.array(["b"]), "score": np.array(["no number"])}])
    assert not catalog.has_table("results")
    catalog.write_table("results", [part("a", [1])])
    with pytest.raises(CatalogError, match="exists"):
        catalog.write_table("results", [part("b", [2])])
    assert catalog.sql("SELECT image FROM results").fetchall() == [("a",)]
    catalog.write_table("results", [part("c", [3])], replace=True)
    assert catalog.sql("SELECT image FROM results").fetchall() == [("c",)]
