"""Prompts of a wanted length, and prompts from a file."""

import asyncio
import json

import pytest

from nano3.bench.serving_client import Target
from nano3.bench.serving_prompts import TOKENS_A_WORD, Lengths, random_prompts, read_prompts
from nano3.config.errors import UserError


def make(scripted, lengths, n=20, seed=3):
    return asyncio.run(random_prompts(Target(scripted.url, model="m"), lengths, n, seed))


def test_lengths_are_those_that_the_server_counts(scripted):
    prompts, notes = make(scripted, Lengths(prompt=400, output=50, spread=0.5))
    sizes = [len(prompt.text) for prompt in prompts]
    assert notes == []
    assert all(190 <= size <= 610 for size in sizes)
    assert max(sizes) - min(sizes) > 150
    assert all(25 <= prompt.output_tokens <= 75 for prompt in prompts)
    equal, _ = make(scripted, Lengths(prompt=400, output=50, spread=0))
    assert all(abs(len(prompt.text) - 400) < 15 for prompt in equal)
    assert {prompt.output_tokens for prompt in equal} == {50}


def test_without_tokenize_the_length_is_an_estimate_and_says_so(scripted):
    scripted.tokenize = False
    prompts, notes = make(scripted, Lengths(prompt=130, spread=0))
    assert {len(prompt.text.split()) for prompt in prompts} == {round(130 / TOKENS_A_WORD)}
    assert len(notes) == 1
    assert "no /tokenize" in notes[0]


def test_a_seed_decides_everything_and_no_two_prompts_begin_alike(scripted):
    lengths = Lengths(prompt=300)
    first, again, other = (make(scripted, lengths, seed=seed)[0] for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert len({prompt.text[:40] for prompt in first}) == len(first)


def test_the_shared_prefix_comes_before_the_prompts_own_words(scripted):
    prompts, _ = make(scripted, Lengths(prompt=100, spread=0, shared_prefix=200))
    starts = {prompt.text[:190] for prompt in prompts}
    assert len(starts) == 1
    assert all(280 <= len(prompt.text) <= 320 for prompt in prompts)


def write(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_a_file_of_prompts(tmp_path):
    talk = [{"role": "user", "content": "hi"}]
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, '"b"\n', "\n", {"messages": talk, "output_tokens": 9})
    prompts = read_prompts(path, Target("http://x"), Lengths(output=5, spread=0), 6, seed=0)
    assert sorted((p.text, p.messages, p.output_tokens) for p in prompts) == sorted(
        [("a", (), 5), ("b", (), 5), ("", tuple(talk), 9)] * 2, key=lambda entry: entry[0]
    )
    assert prompts[:3] == prompts[3:]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{half\n", "line 2 is not JSON"),
        ({"text": "x"}, "line 2 has neither a prompt"),
        ({"prompt": ["x"]}, "line 2 has neither a prompt"),
        ({"prompt": "x", "output_tokens": -1}, "output_tokens is -1"),
        ("[1]\n", "line 2: give a string"),
        ({"messages": [{"role": "user", "content": "x"}]}, "--endpoint completions needs a prompt"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, words):
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, line)
    with pytest.raises(UserError, match=words):
        read_prompts(path, Target("http://x", endpoint="completions"), Lengths(), 2, seed=0)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no prompts"):
        read_prompts(write(tmp_path / "p.jsonl", "\n"), Target("http://x"), Lengths(), 2, seed=0)
