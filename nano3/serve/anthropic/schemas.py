"""What clients of the Messages API may send; unknown fields are let through."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from nano3.serve.schemas import MOST_MESSAGES, MOST_STOPS, MOST_TOOLS, Finite, JsonObject, Loose, Many, Text, Whole
from nano3.serve.transport.errors import wrong_field

_NEEDED = {
    "text": "text",
    "thinking": "thinking",
    "tool_use": "name",
    "tool_result": "tool_use_id",
    "redacted_thinking": "type",
}


def _few_messages(value: object) -> object:
    """Before each message is looked at: blocks count as messages do."""
    if isinstance(value, list):
        contents = (message.get("content") for message in value[:MOST_MESSAGES] if isinstance(message, dict))
        count = len(value) + sum(len(content) for content in contents if isinstance(content, list))
        if count > MOST_MESSAGES:
            raise ValueError(f"holds {count} messages and blocks; at most {MOST_MESSAGES}")
    return value


class TextBlock(Loose):
    """Text of a system message or of a tool's result."""

    type: Literal["text"]
    text: str


class Block(Loose):
    """A part of a message."""

    type: Literal["text", "thinking", "redacted_thinking", "tool_use", "tool_result"]
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: Text | None = None
    input: JsonObject | None = None
    tool_use_id: Text | None = None
    content: str | Many[TextBlock] | None = None
    is_error: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Block:
        needed = _NEEDED[self.type]
        if getattr(self, needed) is None:
            raise wrong_field(needed, f"is missing in a block of type {self.type}")
        return self


class MessagesTurn(Loose):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Many[Block]

    @model_validator(mode="after")
    def _check(self) -> MessagesTurn:
        allowed = {
            "user": ("text", "tool_result"),
            "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
            "system": ("text",),
        }[self.role]
        for i, block in enumerate(self.content if isinstance(self.content, list) else ()):
            if block.type not in allowed:
                raise wrong_field(
                    f"content[{i}].type", f"is {block.type}, which a message of role {self.role} cannot hold"
                )
        return self


class MessagesTool(Loose):
    """A function that the model may call; the client runs it."""

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, pattern=r"^[^<>\s=]+$")
    description: str | None = None
    input_schema: JsonObject
    strict: bool | None = None


class ToolChoice(Loose):
    """Whether and what to call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> ToolChoice:
        if self.type == "tool" and not self.name:
            raise wrong_field("name", "is missing; give the tool that must be called")
        return self


class Thinking(Loose):
    """Whether to think before the answer."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Whole | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Thinking:
        if self.type == "enabled" and self.budget_tokens is None:
            raise wrong_field("budget_tokens", "is missing; give the most tokens of thinking")
        return self


class OutputFormat(Loose):
    """The form of the answer."""

    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Loose):
    """What the answer should be like."""

    format: OutputFormat | None = None


class CountRequest(Loose):
    """Body of /v1/messages/count_tokens."""

    model: str | None = None
    messages: Annotated[Many[MessagesTurn], BeforeValidator(_few_messages)] = Field(min_length=1)
    system: str | Many[TextBlock] | None = None
    tools: Many[MessagesTool] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    @model_validator(mode="after")
    def _check_messages(self) -> CountRequest:
        if self.messages[-1].role == "assistant":
            raise wrong_field(
                "messages", "ends with an assistant's message; every answer begins a new one (no prefill)"
            )
        return self


class MessagesRequest(CountRequest):
    """Body of /v1/messages."""

    max_tokens: Whole = Field(ge=1)
    stream: bool | None = None
    temperature: Finite | None = Field(None, ge=0)
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_k: Whole | None = Field(None, ge=-1)
    stop_sequences: Many[Text] | None = Field(None, max_length=MOST_STOPS)


class TokenCount(BaseModel):
    """Tokens of a request's prompt."""

    input_tokens: int


class MessagesErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class MessagesError(BaseModel):
    """Body of every answer that is not a success."""

    type: Literal["error"]
    error: MessagesErrorDetail


def plain(block: Any) -> str:
    """Text of a string or of text blocks, each on lines of its own."""
    return block if isinstance(block, str) else "\n".join(part.text for part in block or ())
