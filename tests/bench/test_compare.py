"""`nano3 bench compare`: a verdict only where the spreads are apart."""

from __future__ import annotations

import copy
import json

import pytest

from nano3.bench.compare import compare
from nano3.cli.app import main
from nano3.config.errors import UserError


def result(*rates, name="1 sequence", **changes):
    rates = sorted(rates)
    speeds = {"median": rates[len(rates) // 2], "min": rates[0], "max": rates[-1]}
    side = {"seconds": {"all": [1 / rate for rate in rates]}, "tokens_per_second": speeds}
    machine = {"cpu": "a CPU", "threads": 2, "torch": "2.13.0"}
    sides = {"nano3": {"version": "1", "weights": "bfloat16"}}
    case = {"name": name, "sides": {"nano3": side, "peer": {"failed": "did not finish"}}}
    whole = {"kind": "decode", "model": "tiny", "machine": machine, "sides": sides, "repeat": len(rates)}
    return whole | {"cases": [case]} | changes


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [
        ((13, 14, 15), "faster"),
        ((5, 6, 7), "slower"),
        ((9, 14, 20), "within the spread"),
        ((99,), "one run proves nothing"),
    ],
)
def test_a_difference_counts_where_all_runs_agree(rates, verdict):
    (row,) = compare(result(10, 11, 12), result(*rates))["rows"]
    assert (row["side"], row["verdict"]) == ("nano3", verdict)


def test_the_ratio_has_the_spread_of_both():
    (row,) = compare(result(10, 20, 40), result(20, 40, 80))["rows"]
    assert row["ratio"] == {"median": 2.0, "min": 0.5, "max": 8.0}


def test_only_the_same_work_is_compared():
    before, after = result(10, 11, 12), result(20, 21, 22)
    before["cases"][0] |= {"length": 8192, "output": 16384}
    after["cases"][0] |= {"length": 8192, "output": 128}
    with pytest.raises(UserError, match="no case in common"):
        compare(before, after)
    after["cases"][0] |= {"output": 16384}
    assert compare(before, after)["rows"][0]["verdict"] == "faster"
    with pytest.raises(UserError, match="no case in common"):
        compare(before | {"work": "train"}, after | {"work": "decode"})


def test_an_op_is_compared_by_its_time():
    results = []
    for seconds in ([0.4, 0.5, 0.8], [0.1, 0.2, 0.25]):
        side = {"seconds": {"median": seconds[1], "min": seconds[0], "max": seconds[2], "all": seconds}}
        whole = result(1, 2, kind="kernels")
        whole["cases"] = [{"name": "linear, forward", "shapes": "8x8", "sides": {"cpu": side}}]
        results.append(whole)
    (row,) = compare(*results)["rows"]
    assert (row["side"], row["verdict"]) == ("cpu", "faster")
    assert row["ratio"]["median"] == pytest.approx(2.5)


def test_other_circumstances_are_told():
    after = copy.deepcopy(result(1, 2))
    after["machine"]["threads"], after["sides"]["nano3"]["weights"] = 4, "float32"
    assert compare(result(1, 2), after)["differences"] == ["threads: 2 -> 4", "nano3: weights: bfloat16 -> float32"]


def test_the_verb_reads_files_and_folders(tmp_path, capsys):
    for name, rates in (("a", (1, 2)), ("b", (3, 4))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result(*rates)))
    with pytest.raises(SystemExit) as end:
        main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b" / "result.json"), "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["verdict"] == "faster"


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "is no result of nano3 bench"), ('{"kind": "decode"}', "is no whole result"), ("[", "result.json"),
     (json.dumps(result(1, name="2 sequences")), "no case in common"),
     (json.dumps(result(1, kind="train")), "compare like with like")],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, text, message):
    (tmp_path / "a.json").write_text(json.dumps(result(1, 2)))
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path)])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
