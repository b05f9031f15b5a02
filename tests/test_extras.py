"""Every extra brings what its part of nano3 imports: each runs with the packages of nano3 and of that extra alone."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from .only_extra import PROJECT, closure

EXTRAS = PROJECT["optional-dependencies"]

CLI = "from nano3.cli.app import main; main()"

IMPORT_ALL = """
import importlib, pkgutil, {room}
for module in pkgutil.walk_packages({room}.__path__, "{room}."):
    importlib.import_module(module.name)
"""

PIPELINE = """
[pipeline]
category = "code"
summary = "every step that needs a package"
[[step]]
use = "read"
[[step]]
use = "language"
keep = ["en"]
[[step]]
use = "redact"
[[step]]
use = "exact-dedup"
[[step]]
use = "near-dedup"
"""


def run_with(extra: str, code: str, *arguments: str, folder: Path) -> str:
    """What `code` prints where pip installed nano3 and this extra alone."""
    if absent := [line for line in EXTRAS[extra] if not is_here(Requirement(line))]:
        pytest.skip(f"not installed here: {', '.join(absent)}")
    command = [sys.executable, str(Path(__file__).with_name("only_extra.py")), extra, code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def is_here(requirement: Requirement) -> bool:
    try:
        return bool(distribution(requirement.name))
    except PackageNotFoundError:
        return bool(requirement.marker and not requirement.marker.evaluate())


def test_a_closure_has_what_requirements_require_and_their_extras():
    assert {"huggingface-hub", "fsspec", "regex"} <= closure(["transformers"])
    assert "aiohttp" in closure(["lm-eval[api]"])
    assert "lxml" not in closure(["typer"])


@pytest.mark.slow
def test_a_pipeline_over_documents_runs_with_curate_alone(tmp_path):
    words = "This is a text of plain English words, written by a person who likes to write about the weather. "
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(words * 4 + f"Number {number}.", encoding="utf-8")
    (tmp_path / "all.toml").write_text(PIPELINE, encoding="utf-8")
    printed = run_with(
        "curate", CLI, "data", "curate", "all.toml", "--from", ".", "--out", "out", "--workers", "1", folder=tmp_path
    )
    assert "near-duplicate" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "room"),
    [("curate", "nano3.curate"), ("gguf", "nano3.model.gguf"), ("eval", "nano3.eval"), ("rl", "nano3.rl")],
)
def test_a_room_can_be_imported_with_its_extra_alone(extra, room, tmp_path):
    run_with(extra, IMPORT_ALL.format(room=room), folder=tmp_path)
