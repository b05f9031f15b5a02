"""What runs inside vLLM's process: thinking budgets, and grammars that begin after thinking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.grammar.masks import GrammarCompiler
from nano3.engine.protocol import ends_of_text
from nano3.engine.request import Grammar, Sampling, ThinkingBudget
from nano3.engine.sequence_sampler import SequenceSampler
from nano3.engine.thinking import thinking_tracker

CONTROL = "nano3"
"""Key of what the logits processor has to know, in SamplingParams.extra_args."""


def control_row(row: SequenceSampler) -> Callable[[list[int], Any], Any]:
    """A logits processor of one output, as vLLM calls it: (its tokens so far, logits (V,)) to logits."""
    from nano3.engine.sampler import processed

    def process(output_ids: list[int], logits: Any) -> Any:
        while row.n_tokens < len(output_ids):
            row.accept(output_ids[row.n_tokens])
        if row.forced is None:
            return processed(logits, row) if row.has_extras else logits
        forced = logits.new_full(logits.shape, float("-inf"))
        forced[row.forced] = 0.0
        return forced

    return process


def controlled_row(
    control: Mapping[str, Any], tokenizer: Tokenizer, compile_grammar: Callable[[Grammar], Any], vocab_size: int
) -> SequenceSampler:
    """Thinking budget and late grammar of one output, from what `sampling_options` put into extra_args."""
    budget, grammar = control["thinking"], control["grammar"]
    sampling = Sampling(
        thinking=ThinkingBudget(*budget) if budget else None,
        grammar=Grammar(*grammar) if grammar else None,
    )
    return SequenceSampler(
        sampling,
        (),
        seed=0,
        eos_ids=ends_of_text(tokenizer),
        vocab_size=vocab_size,
        grammar=compile_grammar(sampling.grammar) if sampling.grammar else None,
        thinking=thinking_tracker(sampling, tokenizer),
    )


def logits_control() -> type:
    """vLLM's wrapper around processors of single requests, with ours in it; made in vLLM's process."""
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor  # pyright: ignore[reportMissingImports]

    class LogitsControl(AdapterLogitsProcessor):
        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            super().__init__(vllm_config, device, is_pin_memory)
            self.tokenizer = Tokenizer.load(vllm_config.model_config.tokenizer)
            self.vocab_size = vllm_config.model_config.get_vocab_size()
            self.compiler = GrammarCompiler(self.tokenizer, self.vocab_size, ends_of_text(self.tokenizer))

        def is_argmax_invariant(self) -> bool:
            return False

        def new_req_logits_processor(self, params: Any) -> Callable[[list[int], Any], Any] | None:
            control = (params.extra_args or {}).get(CONTROL)
            if control is None:
                return None
            return control_row(controlled_row(control, self.tokenizer, self.compiler.compile, self.vocab_size))

    return LogitsControl
