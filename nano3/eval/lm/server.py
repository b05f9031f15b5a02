"""A served model for lm-eval: the harness's own API models, with the server's tokenizer."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.models.utils import postprocess_generated_text

from nano3.config.errors import UserError
from nano3.eval.lm import find as lm_find
from nano3.eval.lm.generation import MEANINGLESS, plain_settings, prompt_room, repeats
from nano3.eval.lm.requests import AnyType, ask_all
from nano3.eval.lm.text import CUT_NOTE, Start, choose_prefix, stage_of, start_of
from nano3.eval.prompt import Prompt
from nano3.eval.server_tokens import LocalTokens

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from nano3.eval.server_target import ServerTarget

USUAL_CONTEXT = 2048
"""Where a server does not say; it is lm-eval's own."""
BESIDE = 2
"""Tokens that a server must hold beside what a prediction sees: the predicted one, and one that it must generate."""
CONTEXT_NOTE = "the server does not say its context: {context} tokens are taken; --max-context sets it"
TEMPLATE_NOTE = "the server refuses chat_template_kwargs: it decided itself whether answers begin with thinking"
OWN = "server"
"""Where a server decides itself what texts begin with."""
T = TypeVar("T")


# To pyright the harness's decorator makes its classes plain LM: it sees none of their attributes.
class _Answering(LocalCompletionsAPI):
    """Failures of the harness's requests in nano3's words; each repeat of a sampled request with a seed of its own."""

    target: ServerTarget
    context: int
    """Tokens that a prediction may see."""
    prefix: str = OWN
    """What texts begin with: bos, eos or OWN."""
    verify_certificate: bool
    timeout: int
    max_retries: int
    amodel_call: Callable[..., Awaitable[Any]]
    _seed: int
    _max_gen_toks: int

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the harness's."""
        return self._asked(super().loglikelihood, requests, disable_tqdm)  # pyright: ignore

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As the harness's.

        Raises:
            ValueError: new tokens leave no room for the prompt.
        """
        rounds: defaultdict[int, list[int]] = defaultdict(list)
        for place, seen in enumerate(repeats(requests)):
            rounds[seen].append(place)
        answers, seed = [""] * len(requests), self._seed
        try:
            for seen, places in rounds.items():
                self._seed = seed + seen
                batch = [requests[place] for place in places]
                self._begin(batch)
                found = self._asked(super().generate_until, batch, disable_tqdm)  # pyright: ignore
                for place, text in zip(places, found, strict=True):
                    answers[place] = text
        finally:
            self._seed = seed
        return answers

    def _begin(self, requests: Sequence[Instance]) -> None:
        """Called with requests that the harness is about to send."""

    def _create_payload(
        self, messages: Any, generate: bool = False, gen_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> dict[str, Any]:
        if generate:
            wanted = plain_settings(gen_kwargs or {}, self._max_gen_toks)
            gen_kwargs = {name: value for name, value in wanted.items() if name not in MEANINGLESS}
        return super()._create_payload(messages, generate=generate, gen_kwargs=gen_kwargs, **options)  # pyright: ignore

    def _asked(self, ask: Callable[..., T], requests: Sequence[Any], quiet: bool) -> T:
        # Lines about single requests: what fails is told once.
        with lm_find.quiet("lm_eval.models.api_models", logging.CRITICAL):
            return ask(requests, disable_tqdm=quiet)

    async def get_batched_requests(
        self, requests: list[Any], cache_keys: list[Any], *, generate: bool = True, ctxlens: list[int] | None = None,
        **options: Any,
    ) -> list[Any]:  # fmt: skip
        """As the harness's, which sends a list for each request.

        Raises:
            UserError: the server refuses a request.
            ServerGone: it does not answer, after retries.
        """
        import asyncio

        from aiohttp import ClientSession, ClientTimeout, TCPConnector

        connector = TCPConnector(limit=self.target.concurrency, ssl=self.verify_certificate)
        unlimited = asyncio.Semaphore(len(requests))  # ask_all keeps the number
        timeout = ClientTimeout(total=self.timeout)
        async with ClientSession(connector=connector, timeout=timeout, response_class=AnyType) as session:

            def ask(i: int) -> Any:
                return self.amodel_call(
                    session, unlimited, [requests[i]], generate=generate, cache_keys=[cache_keys[i]],
                    ctxlens=ctxlens and [ctxlens[i]], **options,
                )  # fmt: skip

            return await ask_all(ask, len(requests), self.target.concurrency, self.max_retries, self.target.url)


class Completions(_Answering):
    """/v1/completions: likelihoods and continued texts; token ids are sent, made by the server's own tokenizer."""

    def __init__(
        self,
        target: ServerTarget,
        *,
        prefix: str = "auto",
        folder: str = "",
        max_context: int | None = None,
        **options: Any,
    ) -> None:
        """Ask `target`'s server.

        Args:
            target: the server and its tokenizer.
            prefix: as of Nano3LM; auto without `folder`: what the server itself puts before a text.
            folder: the model's tokenizer on this machine, if that was given; with a config.json it decides `prefix`.
            max_context: tokens that a prediction may see; None: as many as the server takes.
            options: as of lm-eval's `local-completions`.

        Raises:
            UserError: the server has no /tokenize, and no tokenizer was given; or a context that it does not take.
        """
        self.target, self.context = target, _context(target, max_context)
        self.prefix = _prefix(target, prefix, folder)
        self._start, self._rooms = _start(target, self.prefix), []
        super().__init__(**_common(target, self.context), tokenizer_backend="none", **options)  # pyright: ignore[reportCallIssue]
        self.tokenizer, self.tokenized_requests = target, True

    @property
    def prefix_token_id(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What stands before a text without context."""
        return self._start.alone

    @property
    def eot_token_id(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The same: servers do not tell their end of text."""
        return self._start.alone

    @property
    def eos_string(self) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Servers end texts themselves."""
        return None

    def tok_encode(
        self,
        string: str | Sequence[str],
        left_truncate_len: int | None = None,
        add_special_tokens: bool | None = None,
        **_: Any,
    ) -> Any:
        """Token ids of a text, with what stands before it unless that is not wanted; of several prompts, each cut to
        its room."""
        if not isinstance(string, str):
            return [self._cut(self.tok_encode(text) or [self.prefix_token_id], room)
                    for text, room in zip(string, self._rooms, strict=True)]  # fmt: skip
        ids = self._plain_ids(string)
        if add_special_tokens is not False and ids[:1] != [self.prefix_token_id]:
            ids = self._start.around(ids)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in the windows that Nano3LM makes."""
        return [self._rolling(request, disable_tqdm) for request in requests]

    def _rolling(self, request: Instance, quiet: bool) -> float:
        windows = self._start.windows(self._plain_ids(request.args[0]), self.context)
        parts = [(None, context, continuation) for context, continuation in windows]
        scores = self._asked(self._loglikelihood_tokens, parts, quiet) if parts else []
        total = math.fsum(score for score, _ in scores)
        self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return total

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> list[tuple[float, bool]]:
        asked = []
        for key, context, continuation in requests:
            if not continuation:
                raise ValueError("an empty continuation has no likelihood: the task gives a choice without text")
            if len(continuation) > self.context:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens is longer than the context of {self.context}"
                )
            before = context or [self.prefix_token_id]
            # The harness would cut as much, without a word.
            cut = self._cut([*before, *continuation], self.context + 1)
            asked.append((key, cut[: -len(continuation)], continuation))
        return super()._loglikelihood_tokens(asked, **options)  # pyright: ignore[reportAttributeAccessIssue]

    def _begin(self, requests: Sequence[Instance]) -> None:
        self._rooms = [
            prompt_room(cast(Any, request.args)[1], self._max_gen_toks, self.context) for request in requests
        ]

    def _plain_ids(self, text: str) -> list[int]:
        tokens = self.target.tokens
        if isinstance(tokens, LocalTokens):
            return tokens.tokenizer.encode(text, special=True)
        return self.target.encode(text)

    def _cut(self, ids: list[int], most: int) -> list[int]:
        if len(ids) > most:
            _note(self.target, CUT_NOTE.format(context=self.context))
        return ids[-most:]


class ChatCompletions(_Answering, LocalChatCompletion):
    """/v1/chat/completions: answers only."""

    def __init__(
        self, target: ServerTarget, *, thinking: bool = False, max_context: int | None = None, **options: Any
    ) -> None:
        """Ask `target`'s server.

        Args:
            target: the server.
            thinking: answers begin with a thinking part, in which the stop texts do not count.
            max_context: as of Completions.
            options: as of lm-eval's `local-chat-completions`.
        """
        self.target, self.context = target, _context(target, max_context)
        self._thinking, self._until = thinking, []
        self._asks_template = _takes_template(target, thinking)
        end = "</think>" if thinking else None
        super().__init__(**_common(target, self.context, "chat/"), think_end_token=end, **options)  # pyright: ignore

    def _create_payload(
        self, messages: Any, generate: bool = False, gen_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> dict[str, Any]:
        # The harness sends the requests of one setting together, so these are the texts to stop at for the answers.
        until = plain_settings(gen_kwargs or {}, 1)["until"]
        self._until = [text for text in until if text]
        if self._thinking:
            gen_kwargs = {**(gen_kwargs or {}), "until": []}
        body = super()._create_payload(messages, generate=generate, gen_kwargs=gen_kwargs, **options)
        asked = {"chat_template_kwargs": {"enable_thinking": self._thinking}} if self._asks_template else {}
        return {**body, **asked}

    def parse_generations(self, outputs: Any, **options: Any) -> list[str]:
        """Answers without their thinking part, cut at the texts to stop at: servers take only four of them."""
        texts = super().parse_generations(outputs, **options)  # pyright: ignore[reportAttributeAccessIssue]
        # The harness has a word of its own for an answer that is none.
        return [text and postprocess_generated_text(text, self._until, None) for text in texts]


def _prefix(target: ServerTarget, wanted: str, folder: str) -> str:
    """bos or eos, or `server`: what the server itself puts before a text."""
    if isinstance(target.tokens, LocalTokens):
        return choose_prefix(wanted, stage_of(folder) if folder else "")
    if wanted != "auto":
        raise UserError(
            f"--prefix {wanted} with --url needs --tokenizer PATH: a server does not tell which token that is"
        )
    return OWN


def _start(target: ServerTarget, prefix: str) -> Start:
    if isinstance(target.tokens, LocalTokens):
        return start_of(target.tokens.tokenizer, prefix)
    start = target.tokens.ids(Prompt(text=""))[:1]
    return Start(start, (), start[0] if start else target.encode("\n")[0], bool(start))


def _context(target: ServerTarget, wanted: int | None) -> int:
    """Tokens that a prediction may see."""
    if wanted is None and target.max_context is None:
        _note(target, CONTEXT_NOTE.format(context=USUAL_CONTEXT - BESIDE))
    largest = target.max_context or wanted or USUAL_CONTEXT
    most = largest - BESIDE if target.max_context or wanted is None else largest
    if wanted is not None and wanted > most:
        raise UserError(f"--max-context {wanted}: {target.url} takes {largest} tokens, of which {BESIDE} are needed "
                        f"beside the context: at most {most}")  # fmt: skip
    return wanted or most


def _takes_template(target: ServerTarget, thinking: bool) -> bool:
    """Whether the server takes variables of the chat template, which not every one knows."""
    body = {"model": target.name, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1,
            "chat_template_kwargs": {"enable_thinking": thinking}}  # fmt: skip
    taken = target.request("POST", "/v1/chat/completions", body).status not in (400, 422)
    if not taken:
        _note(target, TEMPLATE_NOTE)
    return taken


def _note(target: ServerTarget, note: str) -> None:
    if note not in target.notes:
        target.notes.append(note)


def _common(target: ServerTarget, context: int, chat: str = "") -> dict[str, Any]:
    return {
        "base_url": f"{target.url}/v1/{chat}completions",
        "model": target.name,
        # For one alone the harness has another way, which `get_batched_requests` is no part of.
        "num_concurrent": max(2, target.concurrency),
        "max_length": context + BESIDE,
        "batch_size": 1,
    }
