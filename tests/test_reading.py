"""Files with a byte-order mark, JSON nested too deeply and numbers too long, wherever a user's file is read."""

from __future__ import annotations

import json

import pytest

from nano3.chat.prompts import read_prompts
from nano3.cli.generate import grammar_of
from nano3.config.errors import UserError
from nano3.config.presets import load_pretrain
from nano3.data.texts.sources import read_blend_file
from nano3.data.tokens.shards import read_manifest
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.eval.ruler.questions import read_squad
from nano3.model.hf.config import read_stage
from nano3.model.hf.folder import read_config
from nano3.reading import parse_json, parse_toml, read_json, read_text, read_toml
from nano3.report import read_lines
from nano3.serve.transport.keys import collect_keys
from nano3.train.checkpoint.files import damage

BOM = b"\xef\xbb\xbf"
DEEP = b"[" * 200_000
LONG = "1" * 5000


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    file = tmp_path / "a"
    for data, read, value in (
        (b"text \xef\xbb\xbf", read_text, "text \ufeff"),
        (b'{"a": 1}', read_json, {"a": 1}),
        (b"a = 1", read_toml, {"a": 1}),
    ):
        file.write_bytes(BOM + data)
        assert read(file) == value


@pytest.mark.parametrize("read", [read_text, read_json, read_toml])
def test_errors_name_the_file(tmp_path, read):
    file = tmp_path / "latin.txt"
    file.write_bytes(b'"\xe9"')
    with pytest.raises(UserError, match=rf"^{file}: not UTF-8 text \(invalid continuation byte at byte 1\)"):
        read(file)


@pytest.mark.parametrize(("parse", "text"), [(parse_json, DEEP), (parse_json, b'{"a":' * 9999),
                                             (parse_toml, "a = " + "[" * 9999)])  # fmt: skip
def test_what_is_nested_too_deeply_is_a_value_error(parse, text):
    with pytest.raises(ValueError, match="nested too deeply"):
        parse(text)


@pytest.mark.parametrize("text", ["x" * 9, LONG + "x", "", BOM])
def test_what_is_no_json_stays_an_error(text):
    with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
        parse_json(text)


def test_numbers_too_long_for_an_integer_are_floats():
    assert parse_json(f'{{"text": "x", "n": [{LONG}, -{LONG}, 7]}}') == {"text": "x", "n": [1e999, -1e999, 7]}


def test_api_keys_prompts_presets_and_blend_files_may_begin_with_a_mark(tmp_path):
    def file(name, text):
        (tmp_path / name).write_bytes(BOM + text.encode())
        return tmp_path / name

    assert collect_keys((), file("keys", "secret-one\nsecret-two\n"), {}) == ("secret-one", "secret-two")
    assert read_prompts(str(file("p.jsonl", '{"prompt": "a"}\n')))[0].text == "a"
    assert load_pretrain(str(file("p.toml", "[train]\ntokens = 77\n"))).train.tokens == 77
    assert list(read_blend_file(file("b.toml", '[sources]\nweb = ["x"]\n'))) == ["web"]
    grammar = grammar_of(str(file("s.json", '{"type": "object"}')), None)
    assert json.loads(grammar.value) == {"type": "object"}
    assert read_stage(file("config.json", '{"nano3_stage": "sft"}')) == "sft"
    squad = {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [{"text": "c"}]}]}]}]}
    assert len(read_squad(file("squad.json", json.dumps(squad))).questions) == 1


def test_tokenizer_files_may_begin_with_a_mark(tmp_path):
    tokenizer = Tokenizer.train(["some text of words"], 270)
    tokenizer.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes(BOM + (tmp_path / name).read_bytes())
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("some words") == tokenizer.encode("some words")
    assert not loaded.chat_template.startswith("\ufeff")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not valid JSON"), (DEEP, "nested too deeply"), (b"[]", "expected a JSON object"),
        (b"\xff", "not UTF-8"), (b'{"eos_token": ["</s>"]}', "eos_token is neither"),
        (b'{"pad_token": {"content": 2}}', "pad_token is neither"),
    ],
)  # fmt: skip
def test_a_bad_tokenizer_config_is_named(tmp_path, text, words):
    Tokenizer.train(["some text of words"], 270).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(text)
    with pytest.raises(UserError, match=f"tokenizer_config.json: .*{words}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", [DEEP, b"{", b'"x"', b"\xff\xfe"])
def test_damaged_files_are_told_in_one_line(tmp_path, text):
    for name in ("config.json", "tokenizer.json", "manifest.json", "squad.json", "prompts.jsonl"):
        (tmp_path / name).write_bytes(text)
    for read in (
        lambda: read_config(tmp_path),
        lambda: Tokenizer.load(tmp_path),
        lambda: read_manifest(tmp_path),
        lambda: read_squad(tmp_path / "squad.json"),
        lambda: read_prompts(str(tmp_path / "prompts.jsonl")),
    ):
        with pytest.raises(ValueError, match=str(tmp_path)):
            read()
    assert damage(tmp_path).startswith("manifest.json cannot be read")


def test_a_damaged_line_of_metrics_is_left_out(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b'{"a": 1}\n' + DEEP + b'\n{"a": 2}\n')
    assert read_lines(tmp_path / "m.jsonl") == [{"a": 1}, {"a": 2}]
