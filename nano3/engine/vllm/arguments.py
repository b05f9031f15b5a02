"""What vLLM is asked for: keywords of its EngineArgs and SamplingParams."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nano3.config.errors import UserError
from nano3.config.typed import nearest
from nano3.engine.request import MAX_TOP, Grammar, Request, Sampling
from nano3.engine.vllm.control import CONTROL

RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's own variable: 1 for its second model runner, whose logits processors are others."""
NEVER = 1 << 40
"""Tokens beyond any context."""


def engine_arguments(
    folder: str,
    dtype: str,
    memory: int | None,
    max_sequences: int | None,
    max_context: int | None,
    prefix_cache: bool = True,
) -> dict[str, Any]:
    """Keywords for vLLM's EngineArgs."""
    limits = {"kv_cache_memory_bytes": memory, "max_num_seqs": max_sequences, "max_model_len": max_context}
    return {
        "model": folder,
        "dtype": dtype,
        "max_logprobs": MAX_TOP,
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": prefix_cache,
        "disable_log_stats": True,
        "logits_processors": [
            f"nano3.engine.vllm.engine:{'StepControl' if os.environ.get(RUNNER) == '1' else 'LogitsControl'}"
        ],
        # The processor reads an output's tokens before it masks the next one.
        "async_scheduling": False,
        **{name: value for name, value in limits.items() if value is not None},
    }


def check_arguments(arguments: Mapping[str, Any], own: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse settings that vLLM has not (of this release), and those that are nano3's to make.

    Raises:
        UserError: the setting, and the nearest that there is.
    """
    for name in arguments:
        if name in own or name == "structured_outputs_config":
            raise UserError(f"--engine-arg {name}: nano3 sets it itself")
        if known and name not in known:
            close = nearest(name, known)
            hint = f"; did you mean {close}?" if close else ""
            raise UserError(f"--engine-arg {name}: vLLM has no such setting{hint}")


def sampling_options(
    request: Request, seed: int, eos_ids: frozenset[int], max_context: int, vocab_size: int
) -> dict[str, Any]:
    """Keywords for vLLM's SamplingParams, for one output; `structured_outputs` are those of StructuredOutputsParams.

    No stop strings: this side looks for them. The model's own ends of text are among the stop ids.

    Raises:
        ValueError: no room for the output, or a bias for a token that does not exist.
    """
    s = request.sampling
    room = max_context - len(request.prompt)
    if room < 1:
        raise ValueError(f"prompt of {len(request.prompt)} tokens is too long: the context holds {max_context} in all")
    wrong = [i for i in (*request.prompt, *s.logit_bias) if not 0 <= i < vocab_size]
    if wrong:
        raise ValueError(f"no token has the id {wrong[0]}; ids go from 0 to {vocab_size - 1}")
    room = max(1, room if s.max_tokens is None else min(room, s.max_tokens))
    same = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    return {
        **{name: getattr(s, name) for name in same},
        "top_k": min(s.top_k, vocab_size),
        "seed": seed & (1 << 63) - 1,
        "max_tokens": room,
        "min_tokens": min(s.min_tokens, room),
        "stop_token_ids": sorted({i for i in s.stop_ids if 0 <= i < vocab_size} | (set() if s.ignore_eos else eos_ids)),
        "ignore_eos": True,
        "logit_bias": dict(s.logit_bias) or None,
        "logprobs": s.log_probs or 0,
        "prompt_logprobs": s.prompt_log_probs,
        "detokenize": False,
        "structured_outputs": _structured(s.grammar),
        "extra_args": control_of(s),
    }


_GRAMMARS: dict[str, Callable[[str], dict[str, Any]]] = {
    "json_schema": lambda value: {"json": value},
    "json_object": lambda _: {"json_object": True},
    "regex": lambda value: {"regex": value},
    "choice": lambda value: {"choice": json.loads(value)},
    "lark": lambda value: {"grammar": value},
}


def _structured(grammar: Grammar | None) -> dict[str, Any] | None:
    return None if grammar is None or grammar.after_thinking else _GRAMMARS[grammar.kind](grammar.value)


def control_of(s: Sampling) -> dict[str, Any] | None:
    """What the logits processor does for this output, in plain types that cross to vLLM's process."""
    if (s.thinking is None) if s.grammar is None else not s.grammar.after_thinking:
        return None
    budget = s.thinking and [min(s.thinking.tokens, NEVER), min(s.thinking.grace, NEVER), s.thinking.open]
    g = s.grammar
    grammar = [g.kind, g.value, g.after_thinking, g.opener] if g is not None else None
    return {CONTROL: {"thinking": budget, "grammar": grammar}}
