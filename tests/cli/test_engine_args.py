"""`--engine-arg` on the command line."""

from __future__ import annotations

import pytest

from nano3.cli.options.engine import parse_engine_args
from nano3.config.errors import UserError


def test_values_are_json_or_words_and_names_as_vllm_writes_them():
    given = ["mamba_ssm_cache_dtype=float32", "--mamba-backend=triton", "enforce_eager=true", "seed=3", "a=[1]"]
    assert parse_engine_args(given) == {
        "mamba_ssm_cache_dtype": "float32", "mamba_backend": "triton", "enforce_eager": True, "seed": 3, "a": [1],
    }  # fmt: skip


@pytest.mark.parametrize("given", [["enforce_eager"], ["=1"], ["seed=1", "--seed=2"]])
def test_what_is_no_setting_is_one_line(given):
    with pytest.raises(UserError, match="--engine-arg"):
        parse_engine_args(given)


@pytest.mark.parametrize("verb", [("generate", "--prompt", "a"), ("serve", "--port", 0), ("chat",)])
def test_the_native_engine_takes_none(run, verb):
    done = run(*verb, "--model", "tiny", "--engine-arg", "enforce_eager=true")
    assert done.code == 2
    assert done.err.splitlines()[-1] == "error: --engine-arg enforce_eager: a setting of vLLM; add --engine vllm"
