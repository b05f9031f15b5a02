"""Commands that the README and the docs show are accepted as they stand."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import nano3
from nano3.cli.app import VERBS, main
from nano3.data.tokens.tokenizer import Tokenizer

from .command_lines import parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shown_commands() -> list[str]:
    """Indented lines that begin with `nano3`, as `page: command`; a backslash joins lines."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        found += [f"{page.name}: {line.strip()}" for line in re.findall(r"^ {4}(nano3 .*)$", text, re.M)]
    return found


# What makes a verb check its arguments and stop: files and models named in examples do not exist here.
HARMLESS = {
    "pretrain": ["--dry-run"],
    "extend-context": ["--dry-run"],
    "sft": ["--help"],
    "rlvr": ["--help"],
    "rlhf": ["--help"],
    "merge": ["--help"],
    "quantize": ["--help"],
    "export": ["--help"],
    "serve": ["--help"],
    "generate": ["--help"],
    "chat": ["--help"],
    "runs": ["--help"],
    "config": [],
    "eval": ["--help"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    nano3.save(nano3.load("tiny"), folder)
    Tokenizer.train(["some text"], 263).save(folder)
    return folder


@pytest.mark.parametrize("shown", shown_commands())
def test_shown_command_is_accepted(shown, tmp_path, model, capsys, monkeypatch):
    for name in re.findall(r"--from (runs/\S+)", shown):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(model)
    for name in re.findall(r"(?:data\.sources\.\w+=|--data )([\w./]+)", shown):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a text that fills a sequence " * 40_000)
    arguments = shlex.split(shown.split(": ", 1)[1], comments=True)[1:]
    verb = next((a for a in arguments if not a.startswith("-")), "")
    if verb == "data" or "bench" in arguments or not {"--resume", "my.toml", "RUN"}.isdisjoint(arguments):
        arguments = [verb, *(a for a in arguments[1:2] if not a.startswith("-")), "--help"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([*arguments, *HARMLESS.get(verb, [])])
    assert not end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("shown", shown_commands())
def test_the_options_and_arguments_of_a_shown_command_are_the_verbs_own(shown):
    """Also of those of which only the help is run above."""
    words = shlex.split(shown.split(": ", 1)[1], comments=True)
    verb, _ = parse([word for word, before in zip(words, ["", *words], strict=False) if "<" not in (word, before)][1:])
    assert verb


def test_the_first_screen_has_what_it_is_four_commands_and_two_pictures():
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    assert "report on Nemotron 3 Nano (arXiv 2512.20848)" in screen
    assert len(re.findall(r"^ {4}\S", screen, re.M)) == 4
    assert len(re.findall(r"!\[", screen)) == 2


def test_the_readme_says_how_to_run_the_tests():
    assert "pip install -e '.[dev]' && .venv/bin/pytest" in (ROOT / "README.md").read_text()


def test_every_file_that_the_readme_links_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_names_every_extra_and_what_it_is_for():
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    rows = re.findall(r"^\| `pip install '\.\[.*$", (ROOT / "README.md").read_text(), re.M)
    assert {name for row in rows for name in re.findall(r"'\.\[(\w+)\]'", row)} == extras - {"dev"}
    assert {verb for row in rows for verb in re.findall(r"`nano3 ([\w-]+)", row)} <= set(VERBS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_installs_nano3_from_an_index(page):
    """It is on none yet."""
    assert not re.search(r"pip install [^`\n]*nano3\b(?!/)", page.read_text())
