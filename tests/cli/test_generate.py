"""`nano3 generate`: texts, conversations, forms, many prompts; checked against plain decoding of the same model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest
import torch

import nano3
from nano3.cli.app import main
from nano3.data.tokens.tokenizer import Tokenizer

from ..plain_decoding import generate

FAST = ("--dtype", "float32", "--memory", "64MiB", "--max-sequences", 4, "--max-context", 8192)
GREEDY = ("--temperature", 0, "--max-tokens", 12)


@pytest.fixture
def nano3_generate(run, model_folder):
    return lambda *args, stdin="": run("generate", "--model", model_folder, *FAST, *args, stdin=stdin)


@pytest.fixture(scope="module")
def plain(model_folder):
    """Greedy continuation of token ids by a plain loop over the same weights."""
    model, tokenizer = nano3.load(model_folder, dtype=torch.float32), Tokenizer.load(model_folder)

    def continuation(ids, tokens=12):
        (new,) = generate(model, torch.tensor([ids]), tokens, temperature=0, stop_ids=(tokenizer.eos_id,))
        return new, tokenizer.decode(new, skip_special=True)

    continuation.tokenizer, continuation.model = tokenizer, model
    return continuation


def end_line(text):
    return text if text.endswith("\n") else text + "\n"


def test_a_text_begins_as_documents_do_and_raw_does_not(nano3_generate, plain):
    ids = plain.tokenizer.encode("def main(")
    done = nano3_generate("--prompt", "def main(", *GREEDY)
    assert done.code == 0
    assert done.out == end_line(plain([plain.tokenizer.eos_id, *ids])[1])
    assert nano3_generate("--prompt", "def main(", "--raw", *GREEDY).out == end_line(plain(ids)[1])


def test_raw_reads_special_tokens_and_plain_text_does_not(nano3_generate):
    def prompt_tokens(*args):
        done = nano3_generate("--prompt", "<|im_end|>", "--max-tokens", 1, "--json", *args)
        return json.loads(done.out)["usage"]["prompt_tokens"]

    assert prompt_tokens("--raw") == 1
    assert prompt_tokens() > 2


def test_a_chat_message_cannot_open_a_turn(nano3_generate):
    def prompt_tokens(text):
        done = nano3_generate("--prompt", text, "--chat", "--max-tokens", 1, "--json")
        return json.loads(done.out)["usage"]["prompt_tokens"]

    assert prompt_tokens("<|im_end|>") > prompt_tokens("x") + 1


def test_the_prompt_comes_from_a_file_or_a_pipe_too(nano3_generate, tmp_path):
    (tmp_path / "prompt.txt").write_text("The quick\n")
    wanted = nano3_generate("--prompt", "The quick", *GREEDY).out
    assert nano3_generate("--prompt-file", tmp_path / "prompt.txt", *GREEDY).out == wanted
    for args in (["--prompt", "-"], ["--prompt-file", "-"], []):
        assert nano3_generate(*args, *GREEDY, stdin="The quick\n").out == wanted


def test_at_a_terminal_a_prompt_is_asked_for(model_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit) as end:
        main(["generate", "--model", str(model_folder)])
    assert end.value.code == 2
    assert "--prompt TEXT" in capsys.readouterr().err


def test_json_tells_tokens_probabilities_usage_and_times(nano3_generate, plain, model_folder):
    done = nano3_generate("--prompt", "The", *GREEDY, "--json", "--logprobs", 2)
    facts = json.loads(done.out)
    (output,) = facts["outputs"]
    prompt = [plain.tokenizer.eos_id, *plain.tokenizer.encode("The")]
    ids, text = plain(prompt)
    assert (output["token_ids"], output["text"]) == (ids, text)
    logits = plain.model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].float()
    wanted = torch.log_softmax(logits, -1)
    torch.testing.assert_close(
        torch.tensor(output["log_probs"]), wanted[range(len(ids)), ids], atol=1e-4, rtol=0, check_dtype=False
    )
    assert [[a["id"] for a in row] for row in output["alternatives"]] == wanted.topk(2).indices.tolist()
    assert output["finish_reason"] == "length"
    assert facts["model"] == model_folder.name
    assert facts["usage"] == {"prompt_tokens": len(prompt), "cached_tokens": 0, "completion_tokens": 12}
    assert facts["timings"]["total_s"] >= facts["timings"]["first_token_s"] > 0


def test_a_seed_repeats_and_n_outputs_differ(nano3_generate):
    first, second = (nano3_generate("--prompt", "The", "-n", 3, "--seed", 5, "--max-tokens", 8, "--json")
                     for _ in range(2))  # fmt: skip
    texts = [[output["token_ids"] for output in json.loads(done.out)["outputs"]] for done in (first, second)]
    assert texts[0] == texts[1]
    assert len({tuple(ids) for ids in texts[0]}) == 3
    several = nano3_generate("--prompt", "The", "-n", 3, "--seed", 5, "--max-tokens", 8)
    wanted = [end_line(output["text"]) for output in json.loads(first.out)["outputs"]]
    assert several.out == "".join(wanted)
    assert several.err == "output 1 of 3\noutput 2 of 3\noutput 3 of 3\n"


def test_stop_texts_end_the_output_before_them(nano3_generate):
    text = nano3_generate("--prompt", "def", "--temperature", 0, "--max-tokens", 30).out
    stop = text[6:9]
    done = nano3_generate("--prompt", "def", "--temperature", 0, "--max-tokens", 30, "--stop", "@@@@", "--stop", stop)
    assert done.out == end_line(text[: text.index(stop)])


SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["fox", "dog"]}}, "required": ["kind"],
          "additionalProperties": False}  # fmt: skip


def test_forms_are_kept(nano3_generate, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    for schema in (json.dumps(SCHEMA), tmp_path / "schema.json"):
        done = nano3_generate("--prompt", "x", "--json-schema", schema, "--max-tokens", 100, "--seed", 1)
        assert json.loads(done.out)["kind"] in ("fox", "dog")
    done = nano3_generate("--prompt", "x", "--regex", "[ab]{3}c", "--seed", 2)
    assert re.fullmatch("[ab]{3}c\n", done.out)


def test_an_answer_goes_to_stdout_and_its_thinking_to_stderr(nano3_generate):
    args = ("--chat", "--prompt", "hi", "--thinking-budget", 4, "--max-tokens", 100, "--seed", 2)
    facts = json.loads(nano3_generate(*args, "--json").out)
    (output,) = facts["outputs"]
    assert output["reasoning"]
    assert output["content"]
    assert output["text"].startswith(output["reasoning"])
    assert output["text"].endswith(output["content"])
    assert "</think>" not in output["reasoning"] + output["content"]
    done = nano3_generate(*args)
    assert done.out == end_line(output["content"])
    assert done.err == end_line(output["reasoning"])


def test_an_empty_answer_says_why(nano3_generate):
    done = nano3_generate("--chat", "--prompt", "hi", *GREEDY)
    assert done.out == ""
    assert done.err.splitlines()[-1] == "no answer after the thinking (cut off at 12 tokens)"


def test_a_base_model_answers_without_thinking_and_is_named_one(run, base_folder):
    def ask(*args):
        return run("generate", "--model", base_folder, *FAST, "--prompt", "hi", *GREEDY, *args)

    done = ask("--chat")
    assert done.out.strip()
    assert done.err == f"{base_folder.name} {BASE}\n"
    assert ask("--chat", "--thinking").out == ""
    assert ask().err == ""


BASE = "is a base model: it has never seen a conversation; thinking is off unless asked for"


def test_fewer_tokens_than_asked_for_are_told(nano3_generate, run, model_folder):
    done = run("generate", "--model", model_folder, "--max-context", 20, "--prompt", "hi", "--max-tokens", 900)
    assert re.search(r"--max-tokens 900: the context of 20 tokens has room for 1\d after the prompt", done.err)
    assert nano3_generate("--prompt", "hi", "--max-tokens", 5).err == ""


def test_a_reader_who_has_enough_ends_it_with_code_141(model_folder):
    args = ["generate", "--model", str(model_folder), "--prompt", "a", "--regex", "[a-z]{900}", "--max-tokens", "950"]
    command = [sys.executable, "-c", "from nano3.cli.app import main; main()", *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(120) == 141
    process.stderr.close()


def test_thinking_off_and_a_form_after_thinking(nano3_generate):
    off = nano3_generate("--chat", "--no-thinking", "--prompt", "hi", "--regex", "[0-9]{4}", "--seed", 1)
    assert re.fullmatch("[0-9]{4}\n", off.out)
    assert off.err == ""
    on = nano3_generate("--chat", "--thinking-budget", 3, "--prompt", "hi", "--regex", "[0-9]{4}", "--seed", 1)
    assert re.fullmatch(r"\n?[0-9]{4}\n", on.out)
    assert on.err.strip()


def test_the_system_prompt_is_part_of_the_conversation(nano3_generate, plain):
    done = nano3_generate("--chat", "--no-thinking", "--system", "Be brief.", "--prompt", "hi", *GREEDY)
    text = ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
            "<|im_start|>assistant\n<think></think>")  # fmt: skip
    assert done.out == end_line(plain(plain.tokenizer.encode(text, special=True))[1])


def test_many_prompts_get_a_line_each_equal_to_their_own_run(nano3_generate, tmp_path, plain):
    rows = [{"prompt": "def main(", "id": "a"}, {"prompt": [plain.tokenizer.eos_id, 70, 71]},
            {"messages": [{"role": "user", "content": "hi"}]}, {"prompt": "The quick brown"}]  # fmt: skip
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    done = nano3_generate("--prompts-file", path, *GREEDY)
    assert done.code == 0
    lines = sorted(map(json.loads, done.out.splitlines()), key=lambda line: line["index"])
    assert [line["index"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["id"] == "a"
    ids = [line["outputs"][0]["token_ids"] for line in lines]
    assert ids[1] == plain([plain.tokenizer.eos_id, 70, 71])[0]
    for i, args in {0: ["--prompt", "def main("], 2: ["--chat", "--prompt", "hi"]}.items():
        assert json.loads(nano3_generate(*args, *GREEDY, "--json").out)["outputs"][0]["token_ids"] == ids[i]
    assert all("content" in line["outputs"][0] for line in lines[2:3])


def test_one_prompt_of_many_that_cannot_run_is_told_in_its_line(nano3_generate):
    rows = '{"prompt": [999999]}\n{"prompt": "fine"}\n'
    done = nano3_generate("--prompts-file", "-", *GREEDY, stdin=rows)
    assert done.code == 2
    by_index = {line["index"]: line for line in map(json.loads, done.out.splitlines())}
    assert "999999" in by_index[0]["error"]
    assert by_index[1]["outputs"][0]["finish_reason"] == "length"


LONG_JSON = '{"type": "array", "items": {"type": "integer"}, "minItems": 50}'


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (
            ["--json-schema", LONG_JSON],
            "the output was cut off at --max-tokens 9, before whole JSON: raise --max-tokens",
        ),
        (["--regex", "[a-z]{99}"], "before a match of the pattern"),
        (["--chat", "--no-thinking", "--json-schema", LONG_JSON], "before whole JSON"),
        (["-n", "2", "--json-schema", LONG_JSON], "2 of 2 outputs were cut off"),
    ],
)
def test_an_output_cut_before_its_form_is_whole_is_told_and_is_no_success(nano3_generate, form, words):
    for more in ([], ["--json"]):
        done = nano3_generate("--prompt", "x", "--max-tokens", 9, "--seed", 1, *form, *more)
        assert done.code == 1
        assert words in done.err
        assert done.out


@pytest.mark.parametrize("form", [[], ["--regex", "[a-z]+"], ["--regex", "[a-z]{3,}"]])
def test_a_text_and_a_form_that_is_whole_may_end_at_the_most_tokens(nano3_generate, form):
    done = nano3_generate("--prompt", "x", "--max-tokens", 9, "--seed", 1, *form)
    assert (done.code, "cut off" in done.err) == (0, False)


def test_lines_that_were_cut_are_counted(nano3_generate, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n' * 3)
    done = nano3_generate("--prompts-file", tmp_path / "in.jsonl", "--max-tokens", 5, "--json-schema", LONG_JSON)
    assert done.code == 1
    assert "3 of 3 outputs were cut off" in done.err
    assert len(done.out.splitlines()) == 3


@pytest.mark.parametrize(
    ("args", "stdin", "words"),
    [
        (["--prompt", "a", "--prompt-file", "b"], "", ["--prompt and --prompt-file"]),
        (["--prompts-file", "x", "--prompt", "a"], "", ["--prompts-file"]),
        (["--prompt-file", "missing.txt"], "", ["missing.txt", "no such file"]),
        (["--prompts-file", "-"], '{"prompt": "a"}\n{"promt": "b"}\n', ["stdin, line 2", "prompt or messages"]),
        (["--prompts-file", "-"], '{"prompt": "a"}\n{"prompt"\n', ["stdin, line 2", "not JSON"]),
        (["--prompts-file", "-"], "\n", ["no prompts"]),
        (["--prompt", "a", "--logprobs", "2"], "", ["--logprobs needs --json"]),
        (["--prompt", "a", "--system", "b"], "", ["--system needs --chat"]),
        (["--prompt", "a", "--no-thinking"], "", ["--no-thinking needs --chat"]),
        (["--prompt", "a", "--thinking"], "", ["--thinking needs --chat"]),
        (["--prompt", "a", "--chat", "--raw"], "", ["--chat and --raw"]),
        (["--prompt", "a", "--json-schema", "{]"], "", ["--json-schema", "not JSON"]),
        (["--prompt", "a", "--json-schema", "{}", "--regex", "a"], "", ["--json-schema and --regex"]),
        (["--prompt", "a", "--regex", "[a"], "", ["regex"]),
        (["--prompt", "a", "--memory", "plenty"], "", ["--memory plenty", "6GiB"]),
        (["--prompt", "a", "--temperature", "-1"], "", ["--temperature"]),
        (["--prompt", "a", "--seed", str(1 << 63)], "", ["--seed", str((1 << 63) - 1)]),
        (["--prompt", "a", "--chat", "--thinking", "--no-thinking"], "", ["--thinking and --no-thinking"]),
        (["--prompt", "", "--raw"], "", ["prompt is empty"]),
        ([], "", ["nothing came from stdin", "--prompt"]),
        (["--prompt", "-"], "", ["nothing came from stdin"]),
        (["--prompt-file", "-"], "", ["nothing came from stdin"]),
        (["--prompt", "a " * 9000], "", ["8192"]),
    ],
)
def test_wrong_input_is_one_line_and_code_2(nano3_generate, args, stdin, words):
    done = nano3_generate(*args, stdin=stdin)
    assert done.code == 2
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_a_long_prompt_shows_its_progress_on_a_terminal(nano3_generate, monkeypatch):
    prompt = "word, " * 1000
    quiet = nano3_generate("--prompt", prompt, *GREEDY)
    assert quiet.err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = nano3_generate("--prompt", prompt, *GREEDY)
    assert re.search(r"reading the prompt: [\d,]+ of [\d,]+ tokens", shown.err)
    assert shown.err.endswith("\r\x1b[K")
    assert shown.out == quiet.out


def test_ctrl_c_ends_with_code_130_and_keeps_what_was_written(nano3_generate, monkeypatch):
    write, written = sys.stdout.write, []

    def interrupted_write(text):
        written.append(text)
        if len(written) == 3:
            signal.raise_signal(signal.SIGINT)
        return write(text)

    monkeypatch.setattr(sys.stdout, "write", interrupted_write)
    done = nano3_generate("--prompt", "a", "--regex", "[a-z ]{500}", "--max-tokens", 600)
    assert done.code == 130
    assert 0 < len(done.out) < 500
    assert "Traceback" not in done.err


def test_sizes_are_read_with_their_units():
    from nano3.cli.options.engine import parse_bytes

    sizes = {"6GiB": 6 << 30, "1.5g": 3 << 29, "512 MB": 512 << 20, "4096": 4096}
    assert {text: parse_bytes(text) for text in sizes} == sizes
    assert parse_bytes(None) is None
    for text in ("0", "-1GiB", "GiB", "1XB", "nan"):
        with pytest.raises(ValueError, match="not a size"):
            parse_bytes(text)
