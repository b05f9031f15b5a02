"""The short form of docs/life/life.sh: every stage of a model's life by one script, and its report card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "life" / "life.sh"
TRAINED = ("pretrain", "long", "sft", "rlvr-1", "rlhf", "rlvr-2")
POST = '"POST /v1/chat/completions HTTP/1.1" 200'
EXAM = ("count?levels=10-13", "spell?levels=5-6", "sort?levels=3-5", "json?levels=1-3", "tool", "talk")


def live(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script in `folder`, with no data of the developer's."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"LIFE": "short", "PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        ["bash", str(SCRIPT), str(folder / "life")], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_model_goes_through_all_stages_and_gets_a_card(tmp_path):
    done = live(tmp_path)
    assert done.returncode == 0, done.stderr
    life = tmp_path / "life"
    page = (life / "card.md").read_text("utf-8")
    assert f"|  | length | {' | '.join((*TRAINED, 'fp8'))} |" in page
    for task in EXAM:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {task}, accuracy |"))
        assert row.count(" (") == len(TRAINED) + 1, "every stage took the same exam"
    assert page.count("| niah_single_1 | 1k |") == 1
    assert (life / "card.png").read_bytes().startswith(b"\x89PNG")
    came_from = {name: Path(json.loads((life / name / "start.json").read_text())["from"]).name for name in TRAINED[1:]}
    assert list(came_from.values()) == list(TRAINED[:-1])
    assert POST in (life / "served.log").read_text(), "the last model was asked over HTTP"
    times = [line.split()[0] for line in (life / "times.txt").read_text().splitlines()]
    assert times == [*TRAINED, "fp8"]
    # What is done is not done again.
    before = {name: (life / name / "model" / "model.safetensors").stat().st_mtime_ns for name in TRAINED}
    assert live(tmp_path).returncode == 0
    assert {name: (life / name / "model" / "model.safetensors").stat().st_mtime_ns for name in TRAINED} == before
    assert [line.split()[0] for line in (life / "times.txt").read_text().splitlines()] == times
