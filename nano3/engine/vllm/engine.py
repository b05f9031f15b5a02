"""The engine protocol on vLLM (0.12 or later, V1), for machines with GPUs: `--engine vllm`.

vLLM computes and samples; text, stop strings and the ends of outputs are this package's own, so that both engines
answer alike. Thinking budgets and grammars that begin after thinking run inside vLLM as a logits processor.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.detokenize import TextStream
from nano3.engine.grammar.masks import GrammarCompiler, one_line
from nano3.engine.protocol import MixedWeightsError, Stats, ends_of_text, require_idle
from nano3.engine.request import FinishReason, Request, Sampling, Token, Update
from nano3.engine.sequence_sampler import derive_seed, has_penalties
from nano3.engine.thinking import ThinkingTracker, thinking_tracker
from nano3.engine.vllm.arguments import RUNNER, check_arguments, control_of, engine_arguments, sampling_options
from nano3.engine.vllm.control import logits_control, step_control
from nano3.installation import install_command


class VllmEngine:
    """nano3.engine.protocol.GenerationEngine on vLLM's LLMEngine.

    Each of a request's outputs is a vLLM request of its own, with a seed of its own.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        memory: int | None = None,
        max_sequences: int | None = None,
        max_context: int | None = None,
        prefix_cache: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model onto the GPU.

        Args:
            model: a run folder or a Hugging Face folder, with its tokenizer.
            dtype: auto, float32 or bfloat16.
            memory: bytes for keys, values and states; None: vLLM's own share.
            max_sequences: most sequences computed at once; None: vLLM's own default.
            max_context: most tokens of prompt and output together; None: what the model was made for.
            prefix_cache: keep keys, values and states of prompts for others that begin alike.
            arguments: further settings of vLLM, by the names of its EngineArgs.

        Raises:
            UserError: vLLM is not installed, there is no model in the folder, or vLLM has no such setting or cannot
                meet it.
        """
        vllm = _import_vllm()
        from nano3.model.find import model_folder, refuse_adapter

        refuse_adapter(model)
        self.folder = model_folder(model)
        folder = str(self.folder)
        self.tokenizer = Tokenizer.load(folder)
        self.eos_ids = ends_of_text(self.tokenizer)
        own = engine_arguments(folder, dtype, memory, max_sequences, max_context, prefix_cache)
        check_arguments(arguments or {}, own, vars(vllm.EngineArgs).get("__dataclass_fields__", {}))
        # The same library as the native engine's; white space without end is a known way for JSON to fail.
        structured = vllm.config.StructuredOutputsConfig(backend="guidance", disable_any_whitespace=True)
        try:
            asked = vllm.EngineArgs(**own, **(arguments or {}), structured_outputs_config=structured)
            self._llm = vllm.LLMEngine.from_engine_args(asked)
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"--engine vllm: {one_line(str(error))}") from error
        self._vllm = vllm
        self.max_context: int = self._llm.model_config.max_model_len
        self.page_size: int = self._llm.vllm_config.cache_config.block_size
        self._max_running: int = self._llm.vllm_config.scheduler_config.max_num_seqs
        self.ids_limit: int = self._llm.model_config.get_vocab_size()
        self._grammars = GrammarCompiler(self.tokenizer, self.ids_limit, self.eos_ids)
        self._outputs: dict[str, VllmOutput] = {}
        self._weights_version = 0
        self._counts = {"prompt": 0, "cached": 0, "output": 0}

    @property
    def reports_experts(self) -> bool:
        """vLLM does not tell."""
        return False

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._outputs)

    def prepare(self, request: Request) -> None:
        """Compile the request's grammar, from any thread: what fails inside vLLM would end it for everybody."""
        if request.sampling.grammar is not None:
            self._grammars.compile(request.sampling.grammar)

    def add(self, request: Request) -> None:
        """Take a request in; see GenerationEngine.add."""
        self.prepare(request)
        if request.return_experts:
            raise UserError("return_experts: vLLM does not report them; take the native engine, or roll out in float32")
        if any(output.request.id == request.id for output in self._outputs.values()):
            raise ValueError(f"request id {request.id!r} is in use")
        seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        prompt = list(request.prompt)
        for index in range(request.n):
            room = self.max_context - len(request.prompt)
            output = VllmOutput(request, index, self.tokenizer, self.eos_ids, room)
            own_seed = derive_seed(seed, index)
            options = sampling_options(request, own_seed, self.eos_ids, self.max_context, self.ids_limit)
            try:
                self._submit(output.id, prompt, options)
            except (ValueError, TypeError) as error:
                self.abort(request.id)
                raise UserError(one_line(str(error))) from error
            self._outputs[output.id] = output
        self._counts["prompt"] += len(request.prompt)

    def abort(self, request_id: str) -> None:
        """Drop a request with all it holds."""
        mine = [key for key, output in self._outputs.items() if output.request.id == request_id]
        self._outputs = {key: output for key, output in self._outputs.items() if key not in mine}
        if mine:
            self._llm.abort_request(mine)

    def step(self) -> list[Update]:
        """One pass of the model over some tokens of some requests."""
        updates: list[Update] = []
        if not self._outputs:
            return updates  # vLLM would wait for one without end
        for answer in self._llm.step():
            output = self._outputs.get(answer.request_id)
            if output is None:
                continue
            update = output.update(answer)._replace(weights_version=self._weights_version)
            self._counts["cached"] += update.cached_tokens
            self._counts["output"] += len(update.tokens)
            if update.finish is not None:
                del self._outputs[output.id]
                if not answer.finished:
                    self._llm.abort_request([output.id])
            updates.append(update)
        return updates

    def progress(self, request_id: str) -> tuple[int, int] | None:
        """(prompt tokens computed, prompt tokens): vLLM tells no more than whether the prompt is done."""
        for output in self._outputs.values():
            if output.request.id == request_id:
                length = len(output.request.prompt)
                return (length if output.reported else 0), length
        return None

    def stats(self) -> Stats:
        """Counters and use; what vLLM alone knows (pages, recomputation) stays 0."""
        return Stats(
            running=min(len(self._outputs), self._max_running),
            max_running=self._max_running,
            waiting=max(0, len(self._outputs) - self._max_running),
            prompt_tokens=self._counts["prompt"],
            cached_tokens=self._counts["cached"],
            output_tokens=self._counts["output"],
        )

    def reload_weights(self) -> int:
        """Read the weights anew from the folder that the engine was opened on, then `weights_changed`."""
        require_idle(len(self._outputs))
        self._llm.collective_rpc("reload_weights")
        return self.weights_changed()

    def load_weights(self, folder: Path) -> int:
        """See GenerationEngine.load_weights; what vLLM says of another architecture is its own."""
        require_idle(len(self._outputs))
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        except Exception as error:  # vLLM does not tell how far it came
            self.weights_changed()
            raise MixedWeightsError(error) from error
        return self.weights_changed()

    def weights_changed(self) -> int:
        """Drop vLLM's prefix cache; see GenerationEngine.weights_changed. vLLM does not tell which requests it has
        begun, so none may be unfinished."""
        require_idle(len(self._outputs))
        if self._llm.reset_prefix_cache() is False:  # None before vLLM told
            raise RuntimeError("vLLM kept its prefix cache, which holds states of the old weights; close the engine")
        self._weights_version += 1
        return self._weights_version

    def close(self) -> None:
        """Drop all requests and end vLLM's process."""
        if self._outputs:
            self._llm.abort_request(list(self._outputs))
            self._outputs.clear()
        self._llm.engine_core.shutdown()

    def _submit(self, key: str, prompt: list[int], options: dict[str, Any]) -> None:
        sampling_params = self._vllm.sampling_params
        structured = options.pop("structured_outputs")
        parameters = sampling_params.SamplingParams(
            **options,
            output_kind=sampling_params.RequestOutputKind.DELTA,
            structured_outputs=structured and sampling_params.StructuredOutputsParams(**structured),
        )
        self._llm.add_request(key, {"prompt_token_ids": prompt}, parameters)


class VllmOutput:
    """One output in the making, on this side of vLLM."""

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer, eos_ids: frozenset[int], room: int) -> None:
        """`room`: most tokens the context can still take."""
        s = request.sampling
        self.request, self.index = request, index
        self.id = f"{request.id}#{index}"
        self.reported = False
        self._eos_ids = frozenset() if s.ignore_eos else eos_ids
        self._text = TextStream(tokenizer, s.stop, s.include_stop)
        self._thinking: ThinkingTracker | None = thinking_tracker(s, tokenizer) if control_of(s) else None
        self._n_tokens = 0
        self._room = room if s.max_tokens is None else min(room, s.max_tokens)

    def update(self, answer: Any) -> Update:
        """What a RequestOutput of vLLM brought, up to the stop string if there is one."""
        (completion,) = answer.outputs
        tokens, text = [], ""
        finish: FinishReason | None = None
        reason: int | str | None = None
        for token_id, choices in zip(completion.token_ids, completion.logprobs or (), strict=True):
            if self._n_tokens >= self._room:
                break
            tokens.append(self._token(token_id, choices))
            piece, finish, reason = self._take(token_id)
            text += piece
            if finish is not None:
                break
        if finish is None and answer.finished:
            finish = "abort" if completion.finish_reason == "abort" else "length"
        if finish is not None and self._text.stopped is None:
            text += self._text.flush()
        first, self.reported = not self.reported, True
        return Update(
            self.request.id,
            self.index,
            tuple(tokens),
            text,
            finish,
            reason,
            prompt=_prompt_tokens(answer, self.request.sampling.prompt_log_probs) if first else None,
            cached_tokens=(answer.num_cached_tokens or 0) if first else 0,
        )

    def _take(self, token_id: int) -> tuple[str, FinishReason | None, int | str | None]:
        """Text of the next token, and whether and why the output ends with it."""
        s = self.request.sampling
        self._n_tokens += 1
        is_eos, is_stop = token_id in self._eos_ids, token_id in s.stop_ids
        piece = self._text.push(token_id, hidden=is_eos or is_stop, check_stop=self._n_tokens >= s.min_tokens)
        if self._text.stopped is not None:
            return piece, "stop", self._text.stopped
        if is_eos or is_stop:
            return piece, "stop", None if is_eos else token_id
        return piece, "length" if self._n_tokens >= self._room else None, None

    def _token(self, token_id: int, choices: Mapping[int, Any]) -> Token:
        s = self.request.sampling
        forced = self._thinking is not None and self._thinking.forced is not None
        if self._thinking is not None:
            self._thinking.accept(token_id)
        log_prob = choices[token_id].logprob
        known = log_prob if draws_from_model(s) else float("nan")
        return Token(token_id, log_prob, 0.0 if forced else known, best(choices, s.log_probs), forced)


def draws_from_model(s: Sampling) -> bool:
    """Whether tokens come from the model's own distribution, or the best one is taken.

    vLLM reports the model's log-probabilities or those of the changed distribution, not both: where they differ,
    `sampled_log_prob` is NaN.
    """
    changed = s.logit_bias or s.grammar or s.min_tokens or has_penalties(s)
    return s.temperature == 0 or not (changed or s.temperature != 1 or s.top_p < 1 or s.top_k or s.min_p)


def best(choices: Mapping[int, Any], count: int | None) -> tuple[tuple[int, float], ...]:
    """The `count` most probable of vLLM's alternatives; it adds the chosen token to them."""
    ranked = sorted((choice.rank or 0, token_id, choice.logprob) for token_id, choice in choices.items())
    return tuple((token_id, log_prob) for rank, token_id, log_prob in ranked if 0 < rank <= (count or 0))


def _prompt_tokens(answer: Any, count: int | None) -> tuple[Token, ...] | None:
    if count is None or answer.prompt_logprobs is None:
        return None
    tokens: list[Token] = []
    for token_id, choices in zip(answer.prompt_token_ids, answer.prompt_logprobs, strict=True):
        log_prob = choices[token_id].logprob if choices else float("nan")
        tokens.append(Token(token_id, log_prob, log_prob, best(choices or {}, count)))
    return tuple(tokens)


CONTROLS = {"LogitsControl": logits_control, "StepControl": step_control}


def __getattr__(name: str) -> Any:
    # vLLM finds its processor here by name; its base class exists only where vLLM does.
    if name in CONTROLS:
        return CONTROLS[name]()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _import_vllm() -> Any:
    # Its second model runner is the default on GPUs since 0.32, and StepControl never ran in one.
    os.environ.setdefault(RUNNER, "0")
    try:
        import vllm  # pyright: ignore[reportMissingImports]
        import vllm.config  # pyright: ignore[reportMissingImports]
        import vllm.sampling_params  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"--engine vllm: vLLM cannot be loaded ({error}); {install_command('vllm')}") from error
    return vllm
