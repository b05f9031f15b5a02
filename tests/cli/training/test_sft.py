"""`nano3 sft`: what it shows, and what it refuses."""

import json
import re

import pytest
from typer.testing import CliRunner

from nano3.cli.app import app
from nano3.config.errors import UserError

TOOL = {"name": "add", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
ROWS = [
    {
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": "add <b> é"},
            {"role": "assistant", "content": "", "reasoning_content": "I call", "tool_calls": [CALL]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "three é日", "reasoning_content": "so"},
        ],
    },
    {"messages": [{"role": "user", "content": "no answer"}]},
    {"prompt": "next", "completion": "row"},
]


def invoke(*args):
    return CliRunner().invoke(app, ["sft", *map(str, args)], env={"COLUMNS": "100"})


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def preview(model_folder, chats, *args):
    plain = ["--set", "reasoning.strip_fraction=0", "--set", "reasoning.truncate_fraction=0"]
    return invoke("preview", "--from", model_folder, "--data", chats, *plain, *args)


def test_the_preview_marks_what_is_trained(model_folder, chats):
    text = preview(model_folder, chats).stdout
    assert re.findall("«(.*?)»", text, re.S) == [
        "I call\n</think>\n<tool_call>\n<function=add>\n</function>\n</tool_call>\n<|im_end|>",
        "so\n</think>\nthree é日<|im_end|>",
        "row<|im_end|>",
        "trained",
    ]
    assert "chats · chats.jsonl:1 · " in text
    assert "left out of the first 3 records: 1 roles out of order; the first: chats.jsonl:2: " in text


def test_the_page_marks_every_trained_token_and_escapes_what_users_wrote(model_folder, chats, tmp_path):
    done = preview(model_folder, chats, "--html", tmp_path / "rows.html")
    assert done.exit_code == 0
    assert done.stderr.endswith(f"page: {tmp_path / 'rows.html'}\n")
    page = (tmp_path / "rows.html").read_text()
    marked = "".join(re.findall(r"<mark title=[^>]*>(.*?)</mark>", page, re.S))
    assert "three é日&lt;|im_end|&gt;" in marked
    assert "tool_response" not in marked
    assert "tool_response" in re.sub(r"<[^>]*>", "", page)
    assert "<b>" not in page
    assert "\ufffd" not in page


def test_a_preview_of_data_that_leaves_no_row_is_an_error_with_the_reason(model_folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1?", "reply": "2"}\n')
    done = preview(model_folder, tmp_path / "rows.jsonl")
    assert done.exit_code
    assert "no row to train on" in str(done.exception)
    assert "to be written" not in done.stdout
    assert "fields there: question, reply" in str(done.exception)


def test_options_before_preview_are_refused_and_not_forgotten(model_folder, chats):
    done = invoke("--data", chats, "preview")
    assert done.exit_code != 0
    assert "give options behind preview" in done.output + str(done.exception)


def test_the_dry_run_of_the_reports_preset_differs_in_nothing():
    facts = json.loads(invoke("--preset", "sft", "--dry-run", "--json").stdout)
    assert (facts["report_phase"], facts["differences"]) == ("sft", [])
    assert (facts["steps"], facts["tokens_per_step"]) == (13_000, 64 * 262_144)
    changed = json.loads(invoke("--preset", "sft", "--dry-run", "--json", "--set", "schedule.peak_lr=1e-4").stdout)
    assert [(row["key"], row["report"], row["section"]) for row in changed["differences"]] == [
        ("schedule.peak_lr", 5e-5, "§3.1")
    ]


def test_a_dry_run_from_a_model_has_its_sizes_and_runs_nothing(model_folder, chats, tmp_path):
    done = invoke("--from", model_folder, "--data", chats, "--dry-run", "--json", "--out", tmp_path / "run")
    facts = json.loads(done.stdout)
    assert facts["config"]["model"]["d_model"] == 32
    assert facts["config"]["data"]["blend"] == {"chats": 1.0}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data", "none.jsonl"], "no file or folder at none.jsonl"),
        (["--data", "generate:cuont"], "did you mean generate:count"),
        (["--preset", "sft"], "data set 'chat' has no source"),
        (["--set", "data.pack_lenght=3"], "did you mean 'data.pack_length'"),
        (["--set", "reasoning.strip_fraction=2"], "more than 1 together"),
        (["--set", "heldout.seq_len=3"], "unknown key 'heldout.seq_len'"),
    ],
)
def test_wrong_input_is_one_line(model_folder, args, words):
    done = invoke("--from", model_folder, *args)
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception)


def test_its_settings_are_listed():
    done = CliRunner().invoke(app, ["config", "--preset", "sft/tiny", "reasoning", "--json"])
    rows = {row["key"]: row for row in json.loads(done.stdout)["settings"]}
    assert rows["reasoning.strip_fraction"]["default"] == "0.1"
    assert "enable_thinking" in rows["reasoning.strip_fraction"]["text"]
    assert rows["reasoning.budgets"]["value"] == "[4, 8, 16, 32]"


def test_a_run_takes_the_models_own_tokenizer(model_folder, tmp_path, monkeypatch):
    began = []
    monkeypatch.setattr("nano3.stages.sft.main", lambda cfg, *rest, **options: began.append(cfg))
    invoke("--from", model_folder, "--data", "generate:count", "--out", tmp_path / "run")
    assert [cfg.data.tokenizer for cfg in began] == [""]
