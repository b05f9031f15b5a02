"""What a generation engine is asked, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark"]
FinishReason = Literal["stop", "length", "abort", "error"]
MAX_TOP = 100
MAX_STOP = 1000
"""Characters of a stop string."""
MAX_BIAS = 1e30
"""Logits stay within float32 with it."""


@dataclass(frozen=True)
class Grammar:
    """What the output must look like, enforced token by token."""

    kind: GrammarKind
    value: str = ""
    """JSON text of the schema (json_schema) or of the list of strings (choice), the pattern (regex), the grammar in
    Lark's notation (lark), nothing (json_object)."""
    after_thinking: bool = False
    """The thinking part is free: the grammar begins where the output says </think>."""
    opener: str = ""
    """A text that ends the thinking part too, and begins the grammar with itself: the head of a call."""


@dataclass(frozen=True)
class ThinkingBudget:
    """Hard end of the thinking part: closed at the first line break after `tokens` of it, or at `tokens + grace`."""

    tokens: int
    grace: int = 64
    open: bool = True
    """The prompt ends inside the thinking part; else it opens where the output says <think>."""

    def __post_init__(self) -> None:
        for name in ("tokens", "grace"):
            _require(
                getattr(self, name) >= 0, f"thinking budget: {name} is {getattr(self, name)}; it must be 0 or more"
            )


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens and when to stop. Order: penalties and bias, grammar, temperature, top-k, top-p, min-p."""

    temperature: float = 1.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """Smallest set of tokens whose probability reaches this."""
    top_k: int = 0
    """This many most probable tokens; 0: all."""
    min_p: float = 0.0
    """Only tokens with at least this share of the best token's probability."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or output (arXiv 1909.05858)."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens in the output."""
    frequency_penalty: float = 0.0
    """Taken off for each time a token is in the output."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids, from -1e30 to 1e30, or -inf."""
    seed: int | None = None
    """Same seed, same output, whatever else runs; None draws one."""
    max_tokens: int | None = None
    """Most new tokens; None: as many as fit; 0 only scores the prompt."""
    min_tokens: int = 0
    """No end of text and no stop before this many new tokens."""
    stop: tuple[str, ...] = ()
    """Output ends before the first of these strings, of at most 1000 characters each."""
    stop_ids: tuple[int, ...] = ()
    """Output ends at the first of these tokens, beside the model's own ends of text; its text is not shown."""
    include_stop: bool = False
    """Keep the stop string in the text."""
    ignore_eos: bool = False
    """The model's own end of text is a token like any other (`stop_ids` still stop)."""
    log_probs: int | None = None
    """Number of most probable alternatives to report with each token; None: no alternatives."""
    prompt_log_probs: int | None = None
    """The same for the prompt's tokens; None: prompt not scored."""
    grammar: Grammar | None = None
    thinking: ThinkingBudget | None = None

    def __post_init__(self) -> None:
        _check_sampling(self)


@dataclass(frozen=True)
class Request:
    """One prompt to continue, `n` times."""

    id: str
    """Unique among the requests in the engine."""
    prompt: tuple[int, ...]
    """Token ids, at least one."""
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    cache_at: tuple[int, ...] = ()
    """Prompt lengths at which another prompt will likely part from this one: their states are kept if there is room."""
    return_experts: bool = False
    """Report the experts that each token used, for training passes that are to use the same (router replay)."""

    def __post_init__(self) -> None:
        _require(bool(self.prompt), "prompt is empty; give at least one token")
        _require(1 <= self.n <= 128, f"n is {self.n}; it must be from 1 to 128")


class Token(NamedTuple):
    """One token of output or prompt."""

    id: int
    log_prob: float
    """Under the model as it is: temperature 1, nothing cut off. NaN for a prompt's first token."""
    sampled_log_prob: float
    """Under the distribution it was drawn from (temperature, penalties, cuts); log_prob when temperature is 0."""
    top: tuple[tuple[int, float], ...] = ()
    """(id, log_prob) of the most probable alternatives, best first."""
    forced: bool = False
    """Written by the thinking budget, not drawn."""


class Update(NamedTuple):
    """What one step added to one of a request's outputs."""

    request_id: str
    index: int = 0
    """Which of the request's n outputs."""
    tokens: tuple[Token, ...] = ()
    """New tokens, a stopping one included."""
    text: str = ""
    """New text: whole characters only, nothing that may still turn out to be a stop string; without special tokens."""
    finish: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop id or stop string that ended it; None for an end of text of the model's own."""
    prompt: tuple[Token, ...] | None = None
    """Scored prompt, once, with the first update, when asked for."""
    cached_tokens: int = 0
    """Prompt tokens that needed no computing, with the first update."""
    error: str = ""
    """What went wrong, when finish is error."""
    weights_version: int = 0
    """Of the weights that computed it; see GenerationEngine.weights_changed."""
    experts: np.ndarray | None = None
    """(MoE blocks, tokens, K) uint8, or int16 beyond 256 experts: those of the tokens that were computed since the last
    update, the prompt's with the first; where the request wants them."""
    dead_end: bool = False
    """The error is the request's own: its form, or its biases, leave no next token."""


def _check_sampling(s: Sampling) -> None:
    _require(s.temperature >= 0, f"temperature is {s.temperature}; it must be 0 or more")
    _require(0 < s.top_p <= 1, f"top_p is {s.top_p}; it must be above 0 and at most 1")
    _require(s.top_k >= 0, f"top_k is {s.top_k}; it must be 0 (all) or more")
    _require(0 <= s.min_p <= 1, f"min_p is {s.min_p}; it must be from 0 to 1")
    _require(s.repetition_penalty > 0, f"repetition_penalty is {s.repetition_penalty}; it must be above 0")
    for name in ("presence_penalty", "frequency_penalty"):
        _require(-2 <= getattr(s, name) <= 2, f"{name} is {getattr(s, name)}; it must be from -2 to 2")
    _require(s.max_tokens is None or s.max_tokens >= 0, f"max_tokens is {s.max_tokens}; it must be 0 or more")
    _require(s.min_tokens >= 0, f"min_tokens is {s.min_tokens}; it must be 0 or more")
    if s.max_tokens is not None:
        _require(s.min_tokens <= s.max_tokens, f"min_tokens is {s.min_tokens}, more than max_tokens {s.max_tokens}")
    for name in ("log_probs", "prompt_log_probs"):
        count = getattr(s, name)
        _require(count is None or 0 <= count <= MAX_TOP, f"{name} is {count}; it must be from 0 to {MAX_TOP}")
    for token, bias in s.logit_bias.items():
        _require(
            -MAX_BIAS <= bias <= MAX_BIAS or bias == -math.inf,
            f"logit_bias of token {token} is {bias}; it must be from {-MAX_BIAS:g} to {MAX_BIAS:g}, or -inf",
        )
    _require(all(s.stop), "stop holds an empty string; it would stop at once")
    longest = max(map(len, s.stop), default=0)
    _require(longest <= MAX_STOP, f"stop holds a string of {longest} characters; at most {MAX_STOP} are taken")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
