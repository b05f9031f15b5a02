"""The harness's generation settings as what the engine is asked."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from nano3.engine.request import MAX_STOP, Sampling

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from nano3.data.tokens.tokenizer import Tokenizer

log = logging.getLogger(__name__)
MAX_GEN_TOKS = 256
"""New tokens where a task does not say; it is lm-eval's own."""
TAKEN = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""Settings that the engine has under the same name."""
MEANINGLESS = frozenset({"do_sample", "use_cache", "num_beams", "num_return_sequences", "pad_token_id", "max_length"})
"""Settings of transformers that are met already, or have no meaning here; beams and several answers are refused."""
_said: set[str] = set()


@dataclass(frozen=True)
class Generation:
    """What one request asks for."""

    max_tokens: int
    temperature: float
    until: tuple[str, ...]
    """Texts before which the answer ends."""
    stop: tuple[str, ...]
    """Those of them that the engine looks for in the text."""
    stop_ids: tuple[int, ...]
    """Those that are one special token, which no text shows."""
    settings: Mapping[str, Any]

    def sampling(self, seed: int) -> Sampling:
        """For the engine."""
        return Sampling(temperature=self.temperature, max_tokens=self.max_tokens, stop=self.stop,
                        stop_ids=self.stop_ids, seed=seed, **self.settings)  # fmt: skip


def plain_settings(settings: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    """A request's settings under the harness's names, with `temperature`: 0 is greedy, 1 where sampling is asked for
    without a temperature (transformers' own)."""
    known = {name: value for name, value in settings.items() if value is not None}
    if known.get("do_sample") and "temperature" not in known:
        known["temperature"] = 1.0
    wanted: dict[str, Any] = dict(normalize_gen_kwargs(known, max_tokens))
    return {**wanted, "temperature": float(wanted.get("temperature") or 0.0)}


def prompt_room(settings: Mapping[str, Any], max_tokens: int, context: int) -> int:
    """Tokens that a context has for the prompt beside the answer.

    Raises:
        ValueError: none.
    """
    wanted = plain_settings(settings, max_tokens)["max_gen_toks"]
    if wanted >= context:
        raise ValueError(f"{wanted} new tokens leave no room in a context of {context}: lower max_gen_toks")
    return context - wanted


def read_generation(
    settings: Mapping[str, Any], tokenizer: Tokenizer, max_tokens: int, thinking: bool = False
) -> Generation:
    """A request's settings, in the harness's or transformers' words.

    Args:
        settings: `until`, `max_gen_toks` and its other names, `do_sample`, `temperature`, `top_p` and the like.
        tokenizer: whose end of a document ends every answer.
        max_tokens: where the settings do not say.
        thinking: the answer follows after a thinking part, in which the stop texts do not count: the engine is given
            none.

    Raises:
        ValueError: beam search or several answers at once, which the engine does not have; a value out of range.
    """
    wanted = plain_settings(settings, max_tokens)
    for name in ("num_beams", "num_return_sequences"):
        if wanted.get(name, 1) != 1:
            raise ValueError(f"generation_kwargs: {name} is {wanted[name]}; only 1 is supported")
    until = [text for text in handle_stop_sequences(wanted.pop("until"), tokenizer.decode([tokenizer.eos_id])) if text]
    added = {token.content: i for i, token in tokenizer.inner.get_added_tokens_decoder().items() if token.special}
    for name in wanted.keys() - {"temperature", "max_gen_toks", *TAKEN, *MEANINGLESS} - _said:
        _said.add(name)
        log.warning("generation setting %s is not known to nano3's engine and left out", name)
    return Generation(
        max_tokens=wanted["max_gen_toks"],
        temperature=wanted["temperature"],
        until=tuple(until),
        stop=() if thinking else tuple(text for text in until if text not in added and len(text) <= MAX_STOP),
        stop_ids=tuple(added[text] for text in until if text in added),
        settings={name: wanted[name] for name in TAKEN if wanted.get(name) is not None},
    )


def repeats(requests: Sequence[Instance]) -> list[int]:
    """How many requests before each one are the same: what tells the samples of one prompt apart."""
    seen: Counter[str] = Counter()
    counts = []
    for request in requests:
        key = json.dumps(request.args, sort_keys=True, default=str)
        counts.append(seen[key])
        seen[key] += 1
    return counts
