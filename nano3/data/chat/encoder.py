"""Conversations to token ids, by our chat template or that of a loaded model: prompts, and rows to train on."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from nano3.config.errors import UserError
from nano3.data.chat.marks import Piece, Protection, pieces, without_blocks
from nano3.data.chat.messages import normal_messages, normal_tools
from nano3.data.chat.template import ChatTemplate

if TYPE_CHECKING:
    from nano3.data.tokens.tokenizer import Tokenizer

TURN, THINK, END_THINK = "<|im_start|>", "<think>", "</think>"
_PROBE = ({"role": "user", "content": "a"},)
_PROBED = "0b0"
"""An answer to it."""


class TooLongError(UserError):
    """A conversation of more text than can fit."""


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the model sees it."""

    ids: tuple[int, ...]
    thinking_open: bool
    """The answer begins inside a thinking part."""
    cache_at: tuple[int, ...] = ()
    """Length of the part that the next turn's prompt will begin with."""


class TrainingRow(NamedTuple):
    """A conversation to learn from."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    """For each of the ids, whether the model is trained to write it."""


class ChatEncoder:
    """Conversations to token ids. Only the template opens and closes turns: a special token that is written in a
    message, a tool or a variable is text like any other, and so is a thinking tag but in an assistant's message."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> None:
        """Encode for `tokenizer`, by its own template unless another is given.

        Raises:
            UserError: its template cannot be compiled.
        """
        self.template = template or template_for(tokenizer)
        self._tokenizer = tokenizer
        added = {token.content: token.special for token in tokenizer.inner.get_added_tokens_decoder().values()}
        tags = {THINK, END_THINK} & added.keys()
        special = {token for token, is_special in added.items() if is_special}
        self._protection = Protection(sorted(special | tags))
        # Templates look for the thinking tags in what an assistant said, so there they stay whole.
        self._of_assistant = Protection(sorted(special - tags))

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> ChatPrompt:
        """Token ids of a conversation; the arguments are those of `ChatTemplate.render`.

        The ids part where an earlier answer began, as they did when it was written: so the prompt of the next step
        begins with that of the step before.

        Args:
            max_length: most characters; more are refused before they are encoded.

        Raises:
            TooLongError: more than `max_length`.
            UserError: as `ChatTemplate.render`.
        """
        values = self._values(messages, tools, max_length, kwargs)
        text = self.template.fill(values, add_generation_prompt, marked=True)
        _check_length(len(text), max_length)
        ids = self._ids(pieces(text))
        shared = self._shared(ids, text, kwargs) if add_generation_prompt else ()
        return ChatPrompt(ids, thinking_open(without_blocks(text)), shared)

    def encode_following(
        self, following: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None, **kwargs: Any
    ) -> ChatPrompt:
        """Token ids of what comes after an answer whose own ids are kept as they were sampled, its end of turn
        included: further messages, and the opening of the next answer.

        Args:
            following: results of the answer's calls, or a user's message.
            tools, kwargs: as for `ChatTemplate.render`.

        Raises:
            UserError: as `ChatTemplate.render`, or the template renders an answer otherwise when more follows.
        """
        answer: dict[str, Any] = {"role": "assistant", "content": _PROBED}
        if following and following[0].get("role") == "tool":
            answer["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
        before = [*_PROBE, answer]
        begin = self.template.fill(self._values(before, tools, None, kwargs), False)
        text = self.template.fill(self._values([*before, *following], tools, None, kwargs))
        if not text.startswith(begin):
            raise UserError("the chat template renders an answer otherwise when more messages follow it")
        ends = list(self._of_assistant.tokens.finditer(begin, begin.rindex(_PROBED)))
        return ChatPrompt(self._ids(pieces(text[ends[-1].end() if ends else len(begin) :])), thinking_open(text))

    def encode_training(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        last_turn: bool = False,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> TrainingRow:
        """Token ids of a conversation, and which of them to train on: those that the model writes.

        These are the assistant's tokens as the template's generation blocks enclose them. By our template: all that
        follows the generation prompt (`<think>\\n` or `<think></think>`) up to and including `<|im_end|>`, in every
        turn but those before the last user message whose reasoning it leaves out. Up to an answer the ids are those
        that `encode` gives for its prompt.

        Args:
            messages, tools, kwargs: as for `ChatTemplate.render`.
            last_turn: train only on what follows the last user message (report, section 3.1: a conversation with
                reasoning becomes one row a user turn).
            max_length: most characters; more are refused before they are encoded.

        Raises:
            TooLongError: more than `max_length`.
            UserError: as `ChatTemplate.render`, or the template does not tell what the assistant writes.
        """
        values = self._values(messages, tools, max_length, kwargs, keep_broken=False)
        text = self._rendered_for_training(values)
        _check_length(len(text), max_length)
        begin = len(self._up_to_last_user(values, text)) if last_turn else 0
        parts = pieces(text)
        encoded = self._tokenizer.encode_batch([part.text for part in parts], special=True)
        return TrainingRow(
            tuple(token for ids in encoded for token in ids),
            tuple(part.written and part.start >= begin for part, ids in zip(parts, encoded, strict=True) for _ in ids),
        )

    def _values(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        max_length: int | None,
        kwargs: Mapping[str, Any],
        keep_broken: bool = True,
    ) -> dict[str, Any]:
        """What the template reads, cut where special tokens are written."""
        normal = normal_messages(messages, keep_broken=keep_broken)
        # Of an assistant's text templates may leave out much.
        _check_length(sum(len(m["content"]) for m in normal if m["role"] != "assistant"), max_length)
        marked = [(self._of_assistant if m["role"] == "assistant" else self._protection).mark(m) for m in normal]
        return {**self._protection.mark({**kwargs, "tools": normal_tools(tools) or None}), "messages": marked}

    def _ids(self, parts: Sequence[Piece]) -> tuple[int, ...]:
        # Encoded one by one, so that no special token is whole but those of the template.
        encoded = self._tokenizer.encode_batch([part.text for part in parts], special=True)
        return tuple(token for ids in encoded for token in ids)

    def _rendered_for_training(self, values: Mapping[str, Any]) -> str:
        """The marked text, by the model's own template or by ours where that gives the same."""
        if self.template.has_generation_blocks:
            return self.template.fill(values, add_generation_prompt=False, marked=True)
        text = self._own.fill(values, add_generation_prompt=False, marked=True)
        if without_blocks(text) != self.template.fill(values, add_generation_prompt=False):
            raise UserError(
                "the model's chat template does not mark what the assistant writes, and nano3's own renders this "
                "conversation otherwise; enclose the assistant's text in {% generation %} and {% endgeneration %}"
            )
        return text

    @functools.cached_property
    def _own(self) -> ChatTemplate:
        return ChatTemplate.default()

    def _up_to_last_user(self, values: Mapping[str, Any], text: str) -> str:
        """The beginning of a marked text that ends with the last user message."""
        messages = values["messages"]
        last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
        if last < 0:
            return ""
        begin = self._rendered_for_training({**values, "messages": messages[: last + 1]})
        if not text.startswith(begin):
            raise UserError("the chat template renders the last user message otherwise when an answer follows")
        return begin

    def _shared(self, ids: Sequence[int], text: str, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
        """Tokens before the opening of the answer, where the tokens part there."""
        opening = self._opening(kwargs)
        if not opening or not text.endswith(opening):
            return ()
        tokens = self._ids(pieces(opening))
        length = len(ids) - len(tokens)
        return (length,) if length > 0 and tuple(ids[length:]) == tokens else ()

    def _opening(self, kwargs: Mapping[str, Any]) -> str:
        """How the template opens an answer: found with a short conversation, since rendering a long one takes time."""
        try:
            values = {**self._protection.mark(kwargs), "messages": normal_messages(_PROBE), "tools": None}
            text, history = self.template.fill(values), self.template.fill(values, False)
        except UserError:
            return ""
        return text.removeprefix(history) if text.startswith(history) else ""


def _check_length(length: int, most: int | None) -> None:
    if most is not None and length > most:
        raise TooLongError(f"the conversation has {length} characters or more; at most {most} can fit")


def has_template(tokenizer: Tokenizer) -> bool:
    """Whether a template came with the tokenizer; without one the model was hardly trained on conversations."""
    return bool(_own_template(tokenizer))


def template_for(tokenizer: Tokenizer) -> ChatTemplate:
    """The template that came with the tokenizer (as a file, or inside its configuration), else the project's own."""
    text = _own_template(tokenizer)
    if not text:
        return ChatTemplate.default()
    return ChatTemplate(text, _token_variables(tokenizer))


def thinking_open(rendered: str) -> bool:
    """Whether what follows this prompt is inside a thinking part."""
    _, turn, last = rendered.rpartition(TURN)
    if turn:
        return last.startswith("assistant") and last.rfind(THINK) > last.rfind(END_THINK)
    # In an unknown format only the very end tells: a user may have written the tag.
    return rendered.rstrip().endswith(THINK)


def _own_template(tokenizer: Tokenizer) -> str:
    return tokenizer.chat_template or _configured(tokenizer.config.get("chat_template"))


def _configured(template: Any) -> str:
    """tokenizer_config.json has one template, or a list of named ones."""
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default") or next(iter(named.values()), "")
    return template or ""


def _token_variables(tokenizer: Tokenizer) -> dict[str, str]:
    """What templates call bos_token and so on; a name that the configuration leaves out stays undefined."""
    variables = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = tokenizer.config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token:
            variables[name] = token
    return variables
