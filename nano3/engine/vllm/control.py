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


class Controls:
    """Makes the rows of one engine; what it reads it reads once."""

    def __init__(self, vllm_config: Any) -> None:
        self.tokenizer = Tokenizer.load(vllm_config.model_config.tokenizer)
        self.vocab_size = vllm_config.model_config.get_vocab_size()
        self.compiler = GrammarCompiler(self.tokenizer, self.vocab_size, ends_of_text(self.tokenizer))

    def row(self, params: Any) -> Callable[[list[int], Any], Any] | None:
        """A processor of one output; None where vLLM alone does what is asked for."""
        control = (params.extra_args or {}).get(CONTROL)
        if control is None:
            return None
        return control_row(controlled_row(control, self.tokenizer, self.compiler.compile, self.vocab_size))


def logits_control() -> type:
    """vLLM's wrapper around processors of single requests, with ours in it; made in vLLM's process."""
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor  # pyright: ignore[reportMissingImports]

    class LogitsControl(AdapterLogitsProcessor):
        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            super().__init__(vllm_config, device, is_pin_memory)
            self.controls = Controls(vllm_config)

        def is_argmax_invariant(self) -> bool:
            return False

        def new_req_logits_processor(self, params: Any) -> Callable[[list[int], Any], Any] | None:
            return self.controls.row(params)

    return LogitsControl


def step_control() -> type:
    """The same for vLLM's second model runner, which calls one processor for all rows of a step, and keeps tokens on
    the device: those that are new to a controlled output are read from there, one wait for each such output."""
    from vllm.v1.worker.gpu.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
        LogitsProcessor,
    )

    class StepControl(LogitsProcessor):
        def __init__(self, vllm_config: Any, req_states: Any) -> None:
            super().__init__(vllm_config, req_states)
            if vllm_config.speculative_config is not None:
                raise ValueError("nano3's thinking budgets and late grammars take one token a step: no speculation")
            self.controls, self.states = Controls(vllm_config), req_states
            self.rows: dict[int, tuple[Callable[[list[int], Any], Any], list[int]]] = {}

        def add_request(self, req_idx: int, sampling_params: Any) -> bool:
            row = self.controls.row(sampling_params)
            self.rows.pop(req_idx, None)  # slots are used again
            if row is not None:
                self.rows[req_idx] = row, []
            return row is not None

        def apply(self, logits: Any, ctx: Any) -> Any:
            for place, slot in enumerate(ctx.idx_mapping_np.tolist()):
                if slot not in self.rows:
                    continue
                process, tokens = self.rows[slot]
                first = int(self.states.prompt_len.np[slot]) + len(tokens)
                end = int(ctx.seq_lens_upper_bound_np[place])
                if first < end:
                    tokens += self.states.all_token_ids.gpu[slot, first:end].tolist()
                logits[place] = process(tokens, logits[place])
            return logits

    return StepControl
