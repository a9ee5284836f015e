"""The benchmarks' table of methods, their numbers in the docs, and the drawings of these."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import draw


@pytest.fixture(scope="module")
def methods():
    import methods

    return methods


def test_no_node_of_the_pack_is_forgotten(methods):
    files = (path.read_text(encoding="utf-8") for path in (ROOT / "nodes").glob("*.py"))
    nodes = {name for text in files for name in re.findall(r'node_id="(\w+)"', text)}
    known = {name for method in methods.METHODS for name in method.nodes if name.startswith("Boxwright")}
    assert known | set(methods.WITHOUT_A_MODEL) == nodes
    assert not known & set(methods.WITHOUT_A_MODEL)


def test_every_loop_of_our_own_is_run_for_its_count(methods):
    import evaluations

    assert set(evaluations.LOOPS) == {method.name for method in methods.METHODS if method.patch is None}


def test_a_run_is_counted(methods):
    import evaluations

    chosen = {"unpatched", "arranged noise", "box constraint", "find word"}
    counts = dict(evaluations.counted([method for method in methods.METHODS if method.name in chosen]))
    plain = {"calls": 20, "rows": 40, "with_gradient": 0}
    assert counts["unpatched"] == plain
    assert counts["arranged noise"] == {"calls": 21, "rows": 41, "with_gradient": 0}
    assert counts["box constraint"]["with_gradient"] == counts["box constraint"]["calls"] - 20 > 0
    assert counts["find word"]["calls"] < 20
    written = json.loads(draw.COSTS.read_text(encoding="utf-8"))["rows"]
    assert {name: written[name]["evaluations"] for name in chosen} == counts


def test_the_summary_has_a_row_for_every_method(methods):
    written = json.loads(draw.COSTS.read_text(encoding="utf-8"))["rows"]
    assert list(written) == [method.name for method in methods.METHODS if method.summary]
    assert all("evaluations" in row for row in written.values())


def test_the_drawings_and_the_table_are_those_of_the_numbers():
    costs, quality = (json.loads(path.read_text(encoding="utf-8")) for path in (draw.COSTS, draw.QUALITY))
    page = (draw.DOCS / "benchmarks.md").read_text(encoding="utf-8")
    remedy = "run `python benchmarks/draw.py`"
    assert draw.between(page, draw.summary_of(costs)) == page, remedy
    assert (draw.DOCS / "benchmarks.svg").read_text(encoding="utf-8") == draw.draw_costs(costs), remedy
    assert (draw.DOCS / "quality.svg").read_text(encoding="utf-8") == draw.draw_quality(quality), remedy


def test_what_is_drawn_of_quality_stands_in_the_results():
    """Results may have more than is drawn, not less."""
    read = draw.read_quality((draw.DOCS / "results.md").read_text(encoding="utf-8"))
    there = [(table["title"], row) for table in read["tables"] for row in table["rows"]]
    drawn = json.loads(draw.QUALITY.read_text(encoding="utf-8"))["tables"]
    assert [row for table in drawn for row in table["rows"] if (table["title"], row) not in there] == []
    assert len(drawn) >= 8 and all(re.search(r"workbench\.py test", table["command"]) for table in drawn)


def test_a_refusal_is_a_dash_with_its_reason_and_what_is_missing_is_said():
    rows = {
        "a": {"cells": {"one": {"step": [1.234, 1.0, 1.5], "peak": 0.5}}, "loop": False},
        "b": {"cells": {"one": {"refused": "No UNet."}}, "loop": False, "evaluations": {"calls": 2, "rows": 4}},
        "c": {"cells": {}, "loop": True},
    }
    rows["b"]["evaluations"]["with_gradient"] = 1
    found = {"columns": {"one": {"title": "One", "of": "x"}, "two": {"title": "Two", "of": "y"}}, "rows": rows}
    lines = draw.cost_table(found).splitlines()
    assert lines[2:5] == [
        "| a | not measured | not measured | not measured | 1.23 / 0.50 | not measured |",
        "| b | 2 | 4 | 1 | – (1) | not measured |",
        "| c | not measured | not measured | not measured | = | = |",
    ]
    assert lines[-1] == "1. No UNet."
