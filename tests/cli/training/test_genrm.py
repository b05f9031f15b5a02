"""`nano3 rlhf genrm` on the command line: what it refuses, what it would do, and what it prints of a run."""

import copy
import json

import pytest
from typer.testing import CliRunner

from nano3.cli.app import app, main
from nano3.cli.training.genrm_report import show_genrm_summary
from nano3.config.presets import load_model
from nano3.model.hf.config import to_hf
from nano3.rl.genrm import Judgement
from nano3.stages.genrm.figures import Judged, score


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANO3_MODEL", raising=False)


def nano3(*args):
    return CliRunner().invoke(app, ["rlhf", "genrm", *map(str, args)], env={"COLUMNS": "120"})


def test_a_dry_run_tells_both_parts_and_what_the_report_says_otherwise():
    done = nano3("--preset", "genrm", "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["samples_per_step"] == 128 * 8
    assert facts["warm_start"]["steps"] == 300
    assert {row["report"] for row in facts["differences"]} == {"unpublished"}
    tiny = json.loads(nano3("--dry-run", "--json", "--data", "generate:preferences?tasks=count").stdout)
    assert tiny["sources"] == ["generate:preferences?tasks=count"]
    differences = {row["key"]: row["report"] for row in tiny["differences"]}
    assert differences["rollout.prompts"] == 128
    assert "reward.c1" not in differences
    shown = nano3("--dry-run").output
    assert "supervised start" in shown
    assert "Difference from the report (genrm)" in shown


def test_without_a_model_it_says_which_verb_makes_one():
    done = nano3()
    assert done.exit_code != 0
    assert "holds no finished sft run" in str(done.exception)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data", "nowhere.jsonl"], "--data: no file or folder at nowhere.jsonl"),
        (["--data", "generate:preferences?tasks=talk"], "cannot be judged by rule"),
        (["--data", "generate:count"], "generate:count: not generate:preferences"),
        (["--set", "warm_start.train.batch_size=0"], "warm_start.train.batch_size is 0; it must be at least 1"),
        (["--set", "warm_start.train.batch_size=3"], "train.batch_size 3 is not a multiple of train.micro_batch_size"),
        (["--set", "judging.pairs=0"], "judging.pairs is 0; it must be at least 1"),
        (["--set", "rollout.max_turns=2"], "rollout.max_turns: a prompt of this stage is answered once"),
        (["--set", "reward.c1=-1"], "reward.c1 is -1.0; it must be at least 0"),
        (["--set", "data.heldout_fraction=0"], "data.heldout_fraction is 0.0; it must be above 0"),
        (["--set", "warm_start.steps=3"], "(also warm_start.train.steps)"),
        (["--checkpoint", "3"], "add --resume"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(args, words, capsys, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(to_hf(load_model("tiny"))))
    with pytest.raises(SystemExit) as end:
        main(["rlhf", "genrm", "--from", str(model), *args])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_the_summary_sets_each_figure_beside_the_best_constant(capsys):
    truths = [Judgement(5, 1, 1), Judgement(1, 5, 6)] * 20
    right, wrong = [Judged(t, t) for t in truths], [Judged(t, t.swapped()) for t in truths]
    rates = {"steps": 3, "tokens": 4000, "seconds": 2.0, "tokens_per_second": 2000.0}
    summary = {
        "run": "runs/genrm-tiny", "model": "runs/genrm-tiny/model", "interrupted": False, "stopped": None,
        "last_good_checkpoint": None, "last_good_step": None, "pairs": {"train": 9, "heldout": 40, "refused": 2},
        "warm_start": rates, "grpo": rates, "judging": score({"warm_start": wrong, "grpo": right}).table(),
    }  # fmt: skip
    show_genrm_summary("genrm", summary, False)
    shown = capsys.readouterr().out
    (agreement,) = [line for line in shown.splitlines() if "in the right order" in line]
    assert agreement.split("order")[1].split()[0] == "0.500"
    assert "0.000 (0.000 to 0.088) -" in agreement
    assert "1.000 (0.912 to 1.000) +" in agreement
    assert "+1.000 (+1.000 to +1.000)" in agreement
    assert "nano3 rlhf --judge runs/genrm-tiny" in shown
    assert "2 rows left out" in shown
    # Also with numbers of two digits each row stays one line of 120 columns.
    wide = copy.deepcopy(summary)
    for stage in (wide["judging"]["measures"][-1]["stages"]).values():
        stage |= {"value": -12.345, "low": -13.456, "high": -11.234}
    show_genrm_summary("genrm", wide, False)
    lines = capsys.readouterr().out.splitlines()
    rows = lines[lines.index(next(line for line in lines if "──" in line)) + 1 :]
    assert [line for line in rows[:5] if line.startswith("   ")] == []
    assert "-12.3 (-13.5 to -11.2)" in rows[4]
    stopped = summary | {"stopped": "why", "model": None, "last_good_step": 2}
    show_genrm_summary("genrm", stopped, False)
    assert "nano3 rlhf genrm --resume --out runs/genrm-tiny --checkpoint 2 --set KEY=VALUE" in " ".join(
        capsys.readouterr().out.split()
    )
    show_genrm_summary("genrm", summary, True)
    assert json.loads(capsys.readouterr().out) == summary
