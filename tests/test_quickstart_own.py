"""Commands of the README that need nothing of the others, as printed and in its order: a newcomer's own texts, the
story of context, several processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .newcomer import ROOT, make_folder, printed_commands, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the commands run."""
    return make_folder(tmp_path_factory.mktemp("newcomer"))


@pytest.mark.slow
@pytest.mark.parametrize("command", printed_commands(own=True))
def test_a_command_of_the_readme_works_as_printed(command, folder):
    words = command.split(" #")[0].split()
    if words[0] == "bash":
        command = f"bash {ROOT / words[1]} {words[2]}"  # from the checkout
    done = run(command, folder)
    if words[:3] == ["nano3", "eval", "ruler"] and "story/ruler" in words:
        assert float(re.findall(r"niah_single_1 +([\d.]+)", done.stdout)[0]) > 0


@pytest.mark.slow
def test_the_base_of_the_story_of_context_trains(folder):
    run(f"bash {ROOT}/docs/context-story/base.sh longer 30000", folder)
    assert (folder / "longer" / "base" / "model" / "config.json").is_file()
