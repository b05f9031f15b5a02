"""Every command of the README, as printed and in its order, in one folder: what a newcomer does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
INSTALL = "python3 -m venv"
"""How lines begin that .ci/run and tests/test_wheel.py do: they install."""
FORM = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}, "required": ["name"]}


def printed_commands() -> list[str]:
    """Lines of shell on the page."""
    lines = re.findall(r"^ {4}((?:nano3|torchrun|python3|source|bash) .*)$", README, re.M)
    return [line for line in lines if not line.startswith(INSTALL)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the commands run, with the files of the user's that they name."""
    made = tmp_path_factory.mktemp("newcomer")
    (made / "texts").mkdir()
    for module in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:80]:
        (made / "texts" / f"{module.stem}.txt").write_bytes(module.read_bytes())
    (made / "letter.txt").write_text("Dear reader, my name is Ada.")
    (made / "person.json").write_text(json.dumps(FORM))
    return made


def environment(folder: Path) -> dict[str, str]:
    """A fresh user's: no cache, no settings of nano3; the commands of this environment come first."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NANO3_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"XDG_CACHE_HOME": str(folder / "cache"), "PATH": path}


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"
    return done


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
@pytest.mark.parametrize("command", printed_commands())
def test_a_command_of_the_readme_works_as_printed(command, folder, request):
    words = command.split(" #")[0].split()
    if words[0] == "bash":
        command = f"bash {ROOT / words[1]} {words[2]}"  # from the checkout
    if words == ["nano3", "serve"]:
        return  # started for the command that needs it
    if "http://127.0.0.1:8000" in command:
        request.getfixturevalue("served")
    done = run(command, folder)
    if words == ["nano3", "pretrain"]:
        check_first_run(folder / "runs" / "pretrain-tiny")
    if words == ["nano3", "sft"]:
        check_first_chat_model(done.stdout)
    if words[:3] == ["nano3", "eval", "ruler"] and "story/ruler" in words:
        assert float(re.findall(r"niah_single_1 +([\d.]+)", done.stdout)[0]) > 0


@pytest.mark.slow
def test_the_base_of_the_story_of_context_trains(folder):
    run(f"bash {ROOT}/docs/context-story/base.sh longer 30000", folder)
    assert (folder / "longer" / "base" / "model" / "config.json").is_file()


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
