"""What clients of the Responses API may send; unknown fields are let through."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from nano3.serve.schemas import INT64, MOST_MESSAGES, MOST_TOOLS, Finite, JsonObject, Loose, Many, Text, Whole
from nano3.serve.transport.errors import wrong_field

UNSUPPORTED = {
    "previous_response_id": "no response is stored; send the whole conversation as input",
    "conversation": "no conversation is stored; send all of it as input",
    "background": "no response is stored; stream it instead",
    "prompt": "no prompt is stored; send instructions and input",
    "top_logprobs": "ask for logprobs at /v1/chat/completions",
}
LOGPROBS = "message.output_text.logprobs"


def _few_items(value: object) -> object:
    """Before each item is looked at: their parts count as items do."""
    if isinstance(value, list):
        parts = (item.get(key) for item in value[:MOST_MESSAGES] if isinstance(item, dict) for key in _PARTS)
        count = len(value) + sum(len(part) for part in parts if isinstance(part, list))
        if count > MOST_MESSAGES:
            raise ValueError(f"holds {count} items and parts; at most {MOST_MESSAGES}")
    return value


_PARTS = ("content", "output", "summary")


class Part(Loose):
    """A part of an item; only text exists."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal"]
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Part:
        field = "refusal" if self.type == "refusal" else "text"
        if getattr(self, field) is None:
            raise wrong_field(field, f"is missing in a part of type {self.type}")
        return self


Parts = str | Many[Part]
_NEEDED = {
    "message": ("role", "content"),
    "function_call": ("name", "call_id"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


class Item(Loose):
    """One item of a conversation: a message, a call, its result, or reasoning."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Parts | None = None
    call_id: Text | None = None
    name: Text | None = None
    arguments: str | None = None
    output: Parts | None = None
    summary: Many[Part] | None = None

    @model_validator(mode="after")
    def _check(self) -> Item:
        for field in _NEEDED[self.type]:
            if getattr(self, field) is None:
                raise wrong_field(field, f"is missing in an item of type {self.type}")
        return self


class ResponsesTool(Loose):
    """A tool. Functions reach the model; others would run on OpenAI's servers or in a form of their own."""

    type: Text
    name: str | None = None
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> ResponsesTool:
        name = self.name or ""
        if self.type == "function" and (not name or any(letter in "<>=" or letter.isspace() for letter in name)):
            raise wrong_field("name", "must be a name without white space, <, > and =")
        return self


class ResponsesNamedTool(Loose):
    """tool_choice: call this one."""

    type: Literal["function"]
    name: Text


class TextFormat(Loose):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _check(self) -> TextFormat:
        if self.type == "json_schema" and self.schema_ is None:
            raise wrong_field("schema", "is missing; give a JSON schema object")
        return self


class TextConfig(Loose):
    """What the text should be like."""

    format: TextFormat | None = None


class Reasoning(Loose):
    """Whether to think before the answer."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class ResponsesRequest(Loose):
    """Body of /v1/responses."""

    model: str | None = None
    input: str | Annotated[Many[Item], BeforeValidator(_few_items)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Whole | None = Field(None, ge=1)
    temperature: Finite | None = Field(None, ge=0)
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_k: Whole | None = Field(None, ge=-1)
    min_p: Finite | None = Field(None, ge=0, le=1)
    seed: Whole | None = Field(None, ge=-INT64, lt=INT64)
    tools: Many[ResponsesTool] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ResponsesNamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    enable_thinking: bool | None = None
    thinking_budget: Whole | None = Field(None, ge=0)
    metadata: dict[str, str] | None = None
    include: Many[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @model_validator(mode="after")
    def _check_request(self) -> ResponsesRequest:
        for name, instead in UNSUPPORTED.items():
            if (self.model_extra or {}).get(name):
                raise wrong_field(name, f"is not supported: {instead}")
        if LOGPROBS in (self.include or ()):
            raise wrong_field("include", f"{LOGPROBS} is not supported: ask for logprobs at /v1/chat/completions")
        if self.truncation == "auto":
            raise wrong_field(
                "truncation", "auto is not supported: nothing is left out of a conversation; shorten the input"
            )
        if not self.input and not self.instructions:
            raise wrong_field("input", "must not be empty")
        return self
