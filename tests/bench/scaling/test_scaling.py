"""How time and memory grow, from figures that are known and as a user types it."""

import json

import pytest
from typer.testing import CliRunner

from nano3.bench.native import open_model
from nano3.bench.scaling.measure import Grid, growth_of
from nano3.bench.scaling.report import draw, growth_lines, rows
from nano3.bench.workload import Case
from nano3.cli.bench.app import app
from nano3.config.errors import UserError

GRID = Grid("train", (2048, 512), (2, 1), (8, 16))


def point(value, seconds, peak, **others):
    side = {"seconds": {"median": seconds}, "tokens_per_second": {"median": 1.0}, "peak_memory_bytes": peak}
    return {"axis": "length", "value": value, "sides": {"nano3": side, **others}}


def test_one_thing_changes_at_a_time():
    assert [GRID.case("length", n) for n in GRID.values("length")] == [Case("train", 1, 512), Case("train", 1, 2048)]
    assert [GRID.case("batch", n) for n in GRID.values("batch")] == [Case("train", 1, 512), Case("train", 2, 512)]
    assert {GRID.case("experts", n) for n in GRID.values("experts")} == {Case("train", 1, 512)}
    assert Grid("forward", (8, 16), (1, 2), (8, 16)).case("length", 8).forward_only
    assert Grid("decode", (8, 16), (1, 2), (8, 16)).case("batch", 2).sequences == 2


def test_growth_is_a_power():
    dead = {"failed": "no memory"}
    cases = [point(512, 1.0, 1 << 20, peer=dead), point(1024, 3.0, 2 << 20), point(2048, 16.0, 4 << 20)]
    for case in cases[1:]:
        case["sides"]["peer"] = dead
    found = growth_of(cases)
    assert found == {"nano3": {"time": 2.0, "memory": 1.0, "bytes_each": (3 << 20) / 1536}}
    figures = {"cases": cases, "growth": {"length": found}}
    table = list(rows(figures, "length"))
    assert [row[3] for row in table if row[1] == "nano3"] == ["1.00", "3.00", "16.00"]
    assert {row[2] for row in table if row[1] == "peer"} == {"-"}
    [line] = growth_lines(figures)
    assert "power 2.00" in line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--work", "sleep"], "--work sleep"),
        (["--axis", "width"], "--axis width"),
        (["--axis", "length", "--seq-len", "512"], "--seq-len: growth needs two values"),
        (["--batch", "1,x"], "--batch 1,x: not a list"),
        (["--axis", "length", "--against", "ollama"], "--against ollama"),
    ],
)
def test_a_wrong_input_is_one_line(args, words):
    done = CliRunner().invoke(app, ["scaling", *args])
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception)


def test_experts_are_the_models_unless_it_has_weights(tmp_path):
    assert open_model("tiny", experts=16).cfg.n_experts == 16
    with pytest.raises(UserError, match="--experts 1: "):
        open_model("tiny", experts=1)
    with pytest.raises(UserError, match="--axis experts"):
        open_model(str(tmp_path), experts=16)


def test_a_table_a_chart_and_the_figures(tmp_path):
    out = tmp_path / "o"
    args = ["scaling", "--axis", "length", "--seq-len", "8,16", "--work", "forward", "--threads", "1", "--repeat", "1"]
    done = CliRunner().invoke(app, [*args, "--json", "--out", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads((out / "result.json").read_text())
    assert [case["value"] for case in found["cases"]] == [8, 16]
    assert [case["tokens"] for case in found["cases"]] == [8, 16]
    assert found["growth"]["length"].keys() == {"nano3"}
    assert (out / "scaling.png").stat().st_size > 5000
    assert draw(found, tmp_path / "again.png").exists()
