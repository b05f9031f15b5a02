"""vLLM's option names on `nano3 serve`: they set what nano3's names set, or say that they have no effect."""

import pytest
from typer.testing import CliRunner

from nano3.cli import serve
from nano3.cli.app import app


@pytest.fixture
def invoke(monkeypatch):
    """Runs the verb up to where it would listen; gives the options it would run with, or its refusal."""

    def invoke(*arguments):
        found = {}
        monkeypatch.setattr(serve, "_run", found.update)
        result = CliRunner().invoke(app, ["serve", "--model", "tiny", *arguments])
        return result, found

    return invoke


@pytest.mark.parametrize(
    ("arguments", "own"),
    [
        (("--served-model-name", "mine"), {"served_name": "mine"}),
        (("--max-model-len", "8192"), {"max_context": 8192}),
        (("--max-model-len", "32k"), {"max_context": 32000}),
        (("--max-model-len", "1M"), {"max_context": 1 << 20}),
        (("--max-model-len", "auto"), {"max_context": None}),
        (("--max-num-seqs", "4"), {"max_sequences": 4}),
        (("--max-num-seqs", "4", "--max-sequences", "4"), {"max_sequences": 4}),
    ],
)
def test_the_same_under_another_name(invoke, arguments, own):
    result, options = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert {name: options[name] for name in own} == own


def test_a_recipe_of_vllm_is_taken_as_it_is(invoke):
    result, options = invoke(
        "--served-model-name", "nano", "--max-model-len", "4096", "--trust-remote-code", "--enable-auto-tool-choice",
        "--tool-call-parser", "qwen3_coder", "--reasoning-parser", "nano_v3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    notes = result.stderr.splitlines()
    for flag in ("--trust-remote-code", "--enable-auto-tool-choice", "--tool-call-parser", "--reasoning-parser"):
        assert sum(line.startswith(f"note: {flag} has no effect: ") for line in notes) == 1
    assert result.stdout == ""
    assert not {"tool_call_parser", "served_model_name"} & set(options)


def test_without_them_nothing_is_said(invoke):
    result, options = invoke("--served-name", "mine")
    assert (result.exit_code, result.output) == (0, "")
    assert options["served_name"] == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--served-name", "a", "--served-model-name", "b"),
        ("--max-context", "512", "--max-model-len", "1024"),
        ("--max-model-len", "long"),
        ("--max-model-len", "1"),
        ("--max-num-seqs", "0"),
    ],
)
def test_two_values_and_no_numbers_are_refused(invoke, arguments):
    result, options = invoke(*arguments)
    assert result.exit_code != 0
    assert options == {}
    assert arguments[-2] in result.output + str(result.exception)
