"""A chat answer while it grows: the deltas of a stream, and the message that they add up to."""

from __future__ import annotations

from typing import Any

from nano3.data.chat.parsing.output_parser import Delta, OutputParser, ParsedOutput
from nano3.engine.request import Token, Update
from nano3.serve.chat.prompt import ChatPlan
from nano3.serve.service import Service
from nano3.serve.tokens import chat_logprobs

END_THINK = "</think>"


class ChatAnswer:
    """One of a request's n outputs."""

    def __init__(self, service: Service, plan: ChatPlan, with_logprobs: bool, with_ids: bool) -> None:
        self._service, self._one_call = service, plan.one_call
        self._with_logprobs, self._with_ids = with_logprobs, with_ids
        grammar = plan.request.sampling.grammar
        self._parser = OutputParser(
            plan.tools,
            thinking_open=plan.prompt.thinking_open,
            parse_tools=bool(plan.tools),
            # A grammar that is still to begin has no hold on those.
            loose_calls_in_thinking=grammar is None or not grammar.opener,
        )
        self._end_think = service.tokenizer.token_id(END_THINK)
        self._thinking = plan.prompt.thinking_open
        self._message = ParsedOutput()
        self._tokens: list[Token] = []
        self._finish: Update | None = None
        self.output_tokens = 0
        self.reasoning_tokens = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more of the output counts: it has ended, or a second call began where one is wanted."""
        return self._finish is not None

    @property
    def end(self) -> Update:
        """The update that ended it, once it has ended."""
        assert self._finish is not None
        return self._finish

    def add(self, update: Update) -> list[dict[str, Any]]:
        """Take an update in; the choices (without index) of the chunks that tell of it."""
        if self.ended:
            return []
        deltas = self.read(update)
        return self._chunks(self._finish or update, deltas)

    def read(self, update: Update) -> list[Delta]:
        """Take an update in; what it adds to the message."""
        deltas = self._parser.push(update.text)
        if update.finish is not None:
            deltas += self._parser.finish(cut_off=update.finish == "length")
            self._finish = update
        if self._one_call and (later := [i for i, delta in enumerate(deltas) if _is_later_call(delta)]):
            deltas = deltas[: later[0]]
            self._finish = update = update._replace(finish="stop", stop_reason=None)
        for delta in deltas:
            self._message.add(delta)
        self._count(update, deltas)
        return deltas

    def choice(self) -> dict[str, Any]:
        """The whole choice (without index) of an answer that has ended."""
        message: dict[str, Any] = {"role": "assistant", "content": self._message.content or None, "refusal": None}
        if self._message.reasoning:
            message |= {"reasoning": self._message.reasoning, "reasoning_content": self._message.reasoning}
        if self._message.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self._message.tool_calls
            ]
        elif message["content"] is None:
            message["content"] = ""
        return {"message": message, **self._extras(self._tokens), **self._end()}

    def _count(self, update: Update, deltas: list[Delta]) -> None:
        """Tokens of the thinking part: up to </think>, or up to the first sign of an answer."""
        self.output_tokens += len(update.tokens)
        if self._with_logprobs or self._with_ids:
            self._tokens += update.tokens
        for token in update.tokens if self._thinking else ():
            self.reasoning_tokens += 1
            if token.id == self._end_think:
                self._thinking = False
                break
        if any(delta.content or delta.tool_call for delta in deltas):
            self._thinking = False
        elif not self.reasoning_tokens and any(delta.reasoning for delta in deltas):
            self._thinking, self.reasoning_tokens = True, self.output_tokens

    def _chunks(self, update: Update, deltas: list[Delta]) -> list[dict[str, Any]]:
        bodies = [_body(delta) for delta in deltas]
        if update.finish is not None or (not bodies and update.tokens and (self._with_logprobs or self._with_ids)):
            bodies.append({})
        chunks = [{"delta": body, "logprobs": None, "finish_reason": None} for body in bodies]
        if chunks:
            chunks[0] |= self._extras(update.tokens)
        if update.finish is not None:
            chunks[-1] |= self._end()
        return chunks

    def _extras(self, tokens: Any) -> dict[str, Any]:
        extras: dict[str, Any] = {"logprobs": None}
        if self._with_logprobs:
            extras["logprobs"] = {"content": chat_logprobs(self._service.texts, tokens), "refusal": None}
        if self._with_ids:
            extras["token_ids"] = [token.id for token in tokens]
        return extras

    def _end(self) -> dict[str, Any]:
        called = self.end.finish == "stop" and bool(self._message.tool_calls)
        return {
            "finish_reason": "tool_calls" if called else self.end.finish,
            "stop_reason": self.end.stop_reason,
        }


def _is_later_call(delta: Delta) -> bool:
    return delta.tool_call is not None and delta.tool_call.index > 0


def _body(delta: Delta) -> dict[str, Any]:
    """A delta in OpenAI's form; reasoning goes out under both of its names."""
    body: dict[str, Any] = {}
    if delta.reasoning:
        body |= {"reasoning": delta.reasoning, "reasoning_content": delta.reasoning}
    if delta.content:
        body["content"] = delta.content
    if (call := delta.tool_call) is not None:
        function: dict[str, Any] = {"arguments": call.arguments}
        entry: dict[str, Any] = {"index": call.index}
        if call.id is not None:
            entry |= {"id": call.id, "type": "function"}
            function = {"name": call.name, "arguments": call.arguments}
        body["tool_calls"] = [entry | {"function": function}]
    return body
