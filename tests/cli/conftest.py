"""A small model folder and a way to run the command line inside the test's process."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import nano3
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.model.lm import LM

from ..commands import run  # noqa: F401 (a fixture)

TEXT = "def main(argv):\n    return 0\n\nThe quick brown fox jumps over the lazy dog, and counts to 1234567890.\n"


@pytest.fixture(scope="session")
def model_folder(small_config, tmp_path_factory) -> Path:
    """A Hugging Face folder of a random model with every kind of block, with its tokenizer."""
    tokenizer = Tokenizer.train([TEXT], 320)
    cfg = dataclasses.replace(small_config, pattern="ME*-", vocab_size=tokenizer.vocab_size)
    folder = tmp_path_factory.mktemp("model") / "small-model"
    nano3.save(LM(cfg).init_weights(seed=3), folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def base_folder(model_folder, tmp_path_factory) -> Path:
    """The same model as pretraining would leave it: marked as never having seen a conversation."""
    folder = tmp_path_factory.mktemp("base") / "base-model"
    shutil.copytree(model_folder, folder)
    keys = json.loads((folder / "config.json").read_text("utf-8")) | {"nano3_stage": "pretrain"}
    (folder / "config.json").write_text(json.dumps(keys), "utf-8")
    return folder
