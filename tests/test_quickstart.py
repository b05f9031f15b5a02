"""Every command of the README, as printed and in its order, in one folder: what a newcomer does. Those that need
nothing of the others are in test_quickstart_own.py."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .newcomer import environment, make_folder, printed_commands, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the commands run."""
    return make_folder(tmp_path_factory.mktemp("newcomer"))


@pytest.fixture(scope="module")
def served(folder) -> Iterator[None]:
    """`nano3 serve` in the background until the last command is done."""
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(["nano3", "serve"], cwd=folder, env=environment(folder), stderr=log)
        end = time.monotonic() + 300
        while "serving" not in (folder / "serve.log").read_text():
            assert process.poll() is None, (folder / "serve.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        yield
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", printed_commands(own=False))
def test_a_command_of_the_readme_works_as_printed(command, folder, request):
    words = command.split(" #")[0].split()
    if words == ["nano3", "serve"]:
        return  # started for the command that needs it
    if "http://127.0.0.1:8000" in command:
        request.getfixturevalue("served")
    done = run(command, folder)
    if words == ["nano3", "pretrain"]:
        check_first_run(folder / "runs" / "pretrain-tiny")
    if words == ["nano3", "sft"]:
        check_first_chat_model(done.stdout)


FLOORS = {"count": 40, "spell": 45, "sort": 30, "json": 25, "tool": 25, "talk": 20}
"""Percent of the held-out tasks; also below what three quarters of the steps left (docs/sft.md)."""


def check_first_chat_model(shown: str) -> None:
    """The default recipe solves tasks that it was not trained on, tool calls among them."""
    solved = {name: int(rate) for name, rate in re.findall(r"^ *(\w+) +(\d+)% +\d+ ", shown, re.M)}
    assert solved.keys() == FLOORS.keys(), shown
    assert all(solved[name] >= floor for name, floor in FLOORS.items()), shown


def check_first_run(folder: Path) -> None:
    """The default preset learns real text and leaves a model that others load."""
    # Resuming a finished run trains nothing and shows its result again.
    command = ["nano3", "pretrain", "--resume", "--out", str(folder), "--json"]
    newcomer = folder.parent.parent
    done = subprocess.run(command, cwd=newcomer, env=environment(newcomer), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["heldout_bits_per_byte"] < result["compressors_bits_per_byte"]["xz -9"]
    assert result["heldout_bits_per_byte"] > 1.0  # better than that would mean that held-out text leaked
    assert all(sample["text"].strip() for sample in result["samples"])
    for chart in ("loss", "learning_rate", "expert_load"):
        assert (folder / "charts" / f"{chart}.png").stat().st_size > 5000

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer("import os\nimport sys\n\n\ndef main():\n")["input_ids"]]])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    assert loss < 5.5  # far below the log of the vocabulary that a broken export would give
