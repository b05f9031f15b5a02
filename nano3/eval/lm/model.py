"""nano3's engine as a model of EleutherAI's lm-evaluation-harness, under the name `nano3`.

What is sent to the model is what the harness's `hf` model sends: context and continuation encoded together, cut from
the left where too long; so scores are comparable. Texts for models that nano3 trained begin as documents do there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import has_bos_prefix, postprocess_generated_text
from tqdm import tqdm

from nano3.config.errors import UserError
from nano3.data.chat.encoder import ChatTemplate, template_for
from nano3.engine.launch import open_engine
from nano3.eval.lm.generation import MAX_GEN_TOKS, prompt_room, read_generation, repeats
from nano3.eval.lm.scoring import Passage, Score, run_all, score_passages
from nano3.eval.lm.text import CUT_NOTE, PREFIXES, choose_prefix, stage_of, start_of

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from nano3.engine.protocol import GenerationEngine
    from nano3.engine.request import Sampling

log = logging.getLogger(__name__)
CONTINUE = "\ufdd2"
"""A noncharacter that marks the end of a message that the model is to continue; a blank comes after it."""


class Nano3LM(TemplateLM):
    """A model folder, or an engine that is open already, for the harness."""

    def __init__(
        self,
        pretrained: str | GenerationEngine,
        *,
        max_length: int | None = None,
        max_gen_toks: int = MAX_GEN_TOKS,
        prefix: str = "auto",
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        seed: int = 1234,
        **engine: Any,
    ) -> None:
        """Load the model.

        Args:
            pretrained: a run folder, a Hugging Face folder, a model preset, or an engine (whose settings stand then,
                and which stays the caller's to close).
            max_length: tokens of context that a prediction may see; None: what the model was made for.
            max_gen_toks: most new tokens where a task does not say.
            prefix: what texts begin with. bos: as in `hf`. eos: the end-of-document token before every text but
                conversations, as nano3 trains. auto: eos for models that nano3 trained, bos for others.
            add_bos_token: begin every text with the beginning token; None: as the tokenizer.json does it. Given, it
                goes before `prefix`, as the next one does.
            prefix_token_id: stands before a text without context; None: the beginning token, as in `hf`.
            enable_thinking, chat_template_args: variables of the chat template.
            think_end_token: an answer begins after the last of these, and its stop texts count from there.
            seed: of sampled answers; each depends on it, on its prompt and its settings alone.
            engine: how to load a folder or preset; see `_open`.

        Raises:
            UserError: no such model, or an option that cannot be met.
        """
        super().__init__()
        self._owned = isinstance(pretrained, str)
        self.engine, self.name, stage = _open(pretrained, max_length, **engine)
        self.max_length = min(max_length or self.engine.max_context, self.engine.max_context - 1)
        self.max_gen_toks, self.seed = int(max_gen_toks), seed
        self.notes: list[str] = []
        """What a reader of the results must know."""
        self._tokenizer, self._think_end_token = self.engine.tokenizer, think_end_token
        as_hf = add_bos_token is not None or prefix_token_id is not None
        self.prefix = _prefix("bos" if as_hf else prefix, stage)
        self._start = start_of(self._tokenizer, self.prefix, add_bos_token=add_bos_token,
                               prefix_token_id=prefix_token_id)  # fmt: skip
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._template_args = {**(chat_template_args or {}), **thinking}

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        return self._start.alone

    @property
    def tokenizer_name(self) -> str:
        """Tells the harness's caches of prompts apart."""
        return f"{self.name.replace('/', '__')}-{self._tokenizer.fingerprint()}"

    @property
    def context(self) -> int:
        """Tokens that a prediction may see."""
        return self.max_length

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Jinja source of the model's chat template, None where none is wanted."""
        return self._chat.text if chat_template else None

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """Text of a conversation, up to where the assistant's answer begins; without `add_generation_prompt` up to the
        end of its last message, to be continued.

        Raises:
            UserError: the template refuses the conversation.
        """
        if add_generation_prompt:
            return self._chat.render(chat_history, **self._template_args)
        *before, last = chat_history
        marked = [*before, {**last, "content": last["content"] + CONTINUE + " "}]
        text = self._chat.render(marked, add_generation_prompt=False, **self._template_args)
        head, found, tail = text.rpartition(CONTINUE)
        if not found:
            raise UserError("chat template leaves out the message that the answer is to continue")
        return head if tail.startswith(" ") else head.rstrip()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text, special tokens in it recognised; with what stands around a text, unless that is not
        wanted, the text begins with the prefix token already, or it is a conversation in nano3's form."""
        ids = self._tokenizer.encode(string, special=True)
        if add_special_tokens is None:
            begun = has_bos_prefix(string, self._tokenizer.decode([self.prefix_token_id]))
            add_special_tokens = not begun and not (self._start.document and self._opens_turn(string))
        return self._start.around(ids) if add_special_tokens else ids

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts: in windows of `max_length`, each token predicted once."""
        windows = [self._windows(request.args[0]) for request in requests]
        owner = [number for number, own in enumerate(windows) for _ in own]
        first = list(accumulate(map(len, windows), initial=0))
        scores, left, totals = [0.0] * len(owner), [len(own) for own in windows], [0.0] * len(requests)
        passages = [passage for own in windows for passage in own]
        for index, score in self._scored(passages, "rolling log-likelihoods", disable_tqdm):
            scores[index] = score.log_likelihood
            number = owner[index]
            left[number] -= 1
            if not left[number]:
                totals[number] = math.fsum(scores[first[number] : first[number + 1]])
                self.cache_hook.add_partial("loglikelihood_rolling", requests[number].args, totals[number])
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        passages = [self._passage(context, continuation) for _, context, continuation in requests]
        for index, score in self._scored(passages, "log-likelihoods", disable_tqdm):
            answers[index] = (score.log_likelihood, score.greedy)
            self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts that continue the contexts, each up to the first of its `until` strings."""
        plans = [self._plan(request, seen) for request, seen in zip(requests, repeats(requests), strict=True)]
        order = sorted(range(len(plans)), key=lambda i: (-len(plans[i].ids), i))
        answers = [""] * len(requests)
        runs = run_all(self.engine, ((i, plans[i].ids, plans[i].sampling) for i in order))
        for index, output in tqdm(runs, "answers", len(requests), disable=disable_tqdm):
            text = postprocess_generated_text(output.text, list(plans[index].until), self._think_end_token)
            answers[index] = text
            self.cache_hook.add_partial("generate_until", requests[index].args, text)
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {"model_name": self.name, "model_max_length": self.max_length}

    def close(self) -> None:
        """Free an engine that this model opened."""
        if self._owned:
            self.engine.close()

    @cached_property
    def _chat(self) -> ChatTemplate:
        return template_for(self._tokenizer)

    def _opens_turn(self, text: str) -> bool:
        return bool(self._turn) and text.startswith(self._turn)

    @cached_property
    def _turn(self) -> str:
        """The special token that conversations begin with by the chat template; empty where it is none."""
        text = self._chat.render([{"role": "user", "content": "a"}], **self._template_args)
        first = next(iter(self._tokenizer.encode(text, special=True)), None)
        tokens = self._tokenizer.inner.get_added_tokens_decoder()
        return tokens[first].content if first in tokens else ""

    def _windows(self, text: str) -> list[Passage]:
        ids = self._tokenizer.encode(text, special=True)
        return [self._passage(*window) for window in self._start.windows(ids, self.max_length)]

    def _passage(self, context: list[int], continuation: list[int]) -> Passage:
        if not continuation:
            raise ValueError("an empty continuation has no likelihood: the task gives a choice without text")
        if len(continuation) > self.max_length:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens is longer than the context of {self.max_length}"
            )
        ids = [*(context or [self.prefix_token_id]), *continuation]
        if len(ids) > self.max_length + 1:
            self._note_cut(len(ids) - self.max_length - 1)
        return Passage.of(ids[-(self.max_length + 1) :], len(continuation))

    def _note_cut(self, tokens: int) -> None:
        log.warning("%d tokens cut from the left: a context holds %d", tokens, self.max_length)
        note = CUT_NOTE.format(context=self.max_length)
        if note not in self.notes:
            self.notes.append(note)

    def _scored(self, passages: Sequence[Passage], what: str, quiet: bool) -> Iterator[tuple[int, Score]]:
        return iter(tqdm(score_passages(self.engine, passages), what, len(passages), disable=quiet))

    def _plan(self, request: Instance, seen: int) -> _Plan:
        context, settings = cast(tuple[str, Any], request.args)
        wanted = read_generation(settings, self._tokenizer, self.max_gen_toks, bool(self._think_end_token))
        room = prompt_room(settings, self.max_gen_toks, self.max_length)
        ids = self.tok_encode(context) or [self.prefix_token_id]
        if len(ids) > room:
            self._note_cut(len(ids) - room)
        key = json.dumps([self.seed, context, settings, seen], sort_keys=True, default=str)
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")
        return _Plan(tuple(ids[-room:]), wanted.sampling(seed), wanted.until)


# Called: as a decorator its type would be lost.
register_model("nano3")(Nano3LM)


class _Plan(NamedTuple):
    """A request to generate, as the engine takes it."""

    ids: tuple[int, ...]
    sampling: Sampling
    until: tuple[str, ...]


def _open(
    pretrained: str | GenerationEngine,
    max_length: int | None,
    *,
    batch_size: int | str | None = None,
    max_batch_size: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
    memory: int | None = None,
    engine: str = "native",
) -> tuple[GenerationEngine, str, str]:
    """The engine, its model's name, and the stage of nano3's training that it comes from.

    Args:
        pretrained: as of Nano3LM, as is max_length; for an engine all else is left out.
        max_length: likewise.
        batch_size: sequences computed at once, or auto; never changes a result.
        max_batch_size: the same for `auto`.
        device: auto, cpu, cuda or cuda:N.
        dtype: auto, float32 or bfloat16.
        memory: bytes for sequences; None: a share of what is free.
        engine: native or vllm.
    """
    if not isinstance(pretrained, str):
        return pretrained, "engine", getattr(getattr(pretrained, "model", None), "stage", "")
    limit = max_length or max_positions(pretrained)
    opened, name = open_engine(
        pretrained, device=_device(device), dtype=dtype, memory=memory, engine=engine,
        max_sequences=_sequences(batch_size, max_batch_size),
        max_context=limit + 1,  # the last token of a passage is predicted, never read
    )  # fmt: skip
    return opened, name, stage_of(pretrained)


def _prefix(wanted: str, stage: str) -> str:
    if wanted not in PREFIXES:
        raise UserError(f"prefix {wanted}: not known; use one of {', '.join(PREFIXES)}")
    return choose_prefix(wanted, stage)


def _sequences(batch_size: int | str | None, max_batch_size: int | None) -> int | None:
    """Sequences at once for the harness's batch size: a number, or `auto` (perhaps with `:n` behind it)."""
    if batch_size is None or str(batch_size).startswith("auto"):
        return max_batch_size
    try:
        number = int(batch_size)
    except ValueError:
        number = 0
    if number < 1:
        raise UserError(f"batch_size {batch_size}: give auto, or a number from 1")
    return number


def _device(name: str | None) -> str:
    """The harness asks for cuda:0 where nobody asked for anything; without CUDA that is the CPU, as with `hf`."""
    import torch

    return "auto" if name is None or (name.startswith("cuda") and not torch.cuda.is_available()) else name


def max_positions(model: str) -> int:
    """The context that a model was made for. Raises UserError where there is no model."""
    from nano3.config.presets import load_model, preset_names
    from nano3.model.find import model_folder
    from nano3.model.hf.folder import read_config

    if not Path(model).exists() and model in preset_names("models"):
        return load_model(model).max_position_embeddings
    return read_config(model_folder(model)).max_position_embeddings
