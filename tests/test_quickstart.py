"""The README's first command, whole: the default preset learns real text and leaves a model that others load."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.slow
def test_the_default_run_beats_the_compressors_and_its_model_loads_elsewhere(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "nano3", "pretrain", "--out", "run", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["heldout_bits_per_byte"] < result["compressors_bits_per_byte"]["xz -9"]
    assert result["heldout_bits_per_byte"] > 1.0  # better than that would mean that held-out text leaked
    assert all(sample["text"].strip() for sample in result["samples"])
    for chart in ("loss", "learning_rate", "expert_load"):
        assert (tmp_path / "run" / "charts" / f"{chart}.png").stat().st_size > 5000

    folder = tmp_path / "run" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer("import os\nimport sys\n\n\ndef main():\n")["input_ids"]]])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    assert loss < 5.5  # far below the log of the vocabulary that a broken export would give
