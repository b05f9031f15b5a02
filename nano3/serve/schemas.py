"""What clients may send: OpenAI's fields, vLLM's beside them; fields that nano3 does not know are let through."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from nano3.engine.request import MAX_TOP
from nano3.serve.transport.errors import wrong_field

INT64 = 1 << 63
MOST_STOPS, MOST_CHOICES, MOST_TOP_CHAT, MOST_BIASES, MOST_MESSAGES, MOST_TOOLS = 64, 128, 20, 4096, 10_000, 1024
Finite = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Text = Annotated[str, Field(min_length=1)]
JsonObject = dict[str, JsonValue]
T = TypeVar("T")
Many = Annotated[list[T], Field(fail_fast=True)]
"""A list of which only the first wrong item is told: telling of a million would take minutes and gigabytes."""


def _whole(value: object) -> object:
    """A number without a fraction is an integer, as JSON Schema has it, however it is written."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _all_whole(value: object) -> object:
    """`_whole` of each item, and of the items of lists in a list; a list without such numbers is not copied."""
    if not isinstance(value, list):
        return value
    if any(isinstance(item, float) for item in value):
        return [_whole(item) for item in value]
    return [_all_whole(item) for item in value] if any(isinstance(item, list) for item in value) else value


Whole = Annotated[int, BeforeValidator(_whole)]
TokenIds = Annotated[Many[TokenId], BeforeValidator(_all_whole)]


def _few(value: object) -> object:
    """Before each entry is looked at."""
    if isinstance(value, dict) and len(value) > MOST_BIASES:
        raise ValueError(f"holds {len(value)} tokens; at most {MOST_BIASES}")
    return value


def _few_messages(value: object) -> object:
    """Before each message is looked at: text parts and calls count as messages do."""
    if isinstance(value, list):
        count = len(value)
        for message in value[:MOST_MESSAGES]:
            parts = (message.get("content"), message.get("tool_calls")) if isinstance(message, dict) else ()
            count += sum(len(part) for part in parts if isinstance(part, list))
        if count > MOST_MESSAGES:
            raise ValueError(f"holds {count} messages, text parts and calls; at most {MOST_MESSAGES}")
    return value


Bias = Annotated[float, Field(allow_inf_nan=False, ge=-100, le=100)]
LogitBias = Annotated[dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Bias], BeforeValidator(_few)]
FORM_FIELDS = (
    "response_format", "json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "structured_outputs",
)  # fmt: skip
UNSUPPORTED = {
    "continue_final_message": "every answer begins a new message",
    "use_beam_search": "there is no beam search",
    "functions": "send `tools` instead",
    "function_call": "send `tool_choice` instead",
    "audio": "the model writes text only",
    "web_search_options": "there is no web search",
    "allowed_token_ids": "enforce a form with `guided_regex` or `guided_choice`",
    "bad_words": "lower single tokens with `logit_bias`",
    "prompt_logprobs": "send `echo` and `logprobs` to /v1/completions",
    "skip_special_tokens": "answers never show special tokens; ask for `return_token_ids`",
    "length_penalty": "there is no beam search",
    "extra_body": "it is an argument of OpenAI's Python client; over HTTP its entries stand beside the other fields",
    "grammar": "GBNF is not read; send `guided_grammar` in Lark notation",
    "ebnf": "send `guided_grammar` in Lark notation",
    "regex": "send `guided_regex`",
    "structural_tag": "send `tools`, or `guided_grammar` in Lark notation",
    "guided_whitespace_pattern": "send `structured_outputs` with `disable_any_whitespace`",
}
CHAT_ONLY = ("messages", "tools", "thinking", "reasoning", "reasoning_budget", "thinking_budget")
"""Fields that would change an answer, but mean nothing for a plain text."""
_HARMLESS = {"skip_special_tokens": (None, True), "length_penalty": (None, 1), "prompt_logprobs": (None,)}
"""Values that ask for nothing; of other fields that is every false one."""


class Loose(BaseModel):
    """Types must match; unknown fields are kept, not refused."""

    model_config = ConfigDict(strict=True, extra="allow")


class StreamOptions(Loose):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None


class StructuredOutputs(Loose):
    """vLLM's field for outputs of a given form; one of them."""

    json_: JsonObject | str | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Many[Text] | None = Field(None, min_length=1)
    grammar: Text | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> StructuredOutputs:
        for name in ("structural_tag", "whitespace_pattern"):
            if (self.model_extra or {}).get(name):
                raise wrong_field(name, "is not supported; see json, regex, choice, grammar and disable_any_whitespace")
        return self


class GenerationRequest(Loose):
    """Fields that chat and plain completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Whole | None = Field(None, ge=1, le=MOST_CHOICES)
    temperature: Finite | None = Field(None, ge=0)
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_k: Whole | None = Field(None, ge=-1)
    min_p: Finite | None = Field(None, ge=0, le=1)
    seed: Whole | None = Field(None, ge=-INT64, lt=INT64)
    stop: Text | Many[Text] | None = None
    stop_token_ids: TokenIds | None = Field(None, max_length=MOST_STOPS)
    presence_penalty: Finite | None = Field(None, ge=-2, le=2)
    frequency_penalty: Finite | None = Field(None, ge=-2, le=2)
    repetition_penalty: Finite | None = Field(None, gt=0)
    logit_bias: LogitBias | None = None
    min_tokens: Whole | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: Whole | None = Field(None, ge=-1)
    guided_json: JsonObject | str | None = None
    guided_regex: Text | None = None
    guided_choice: Many[Text] | None = Field(None, min_length=1)
    guided_grammar: Text | None = None
    structured_outputs: StructuredOutputs | None = None
    response_format: JsonObject | None = None
    json_schema: JsonObject | str | None = None

    @model_validator(mode="after")
    def _check(self) -> GenerationRequest:
        for name, instead in UNSUPPORTED.items():
            value = (self.model_extra or {}).get(name)
            if value not in _HARMLESS[name] if name in _HARMLESS else value:
                raise wrong_field(name, f"is not supported: {instead}")
        if isinstance(self.stop, list) and len(self.stop) > MOST_STOPS:
            raise wrong_field("stop", f"holds {len(self.stop)} strings; at most {MOST_STOPS}")
        if self.truncate_prompt_tokens == 0:
            raise wrong_field("truncate_prompt_tokens", "is 0; give the number of tokens to keep, or -1 for what fits")
        return self

    @property
    def form_field(self) -> str | None:
        """The field that sets the form of the output."""
        return next((name for name in FORM_FIELDS if getattr(self, name)), None)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerationRequest):
    """Body of /v1/completions."""

    prompt: Annotated[str | Many[TokenId] | Many[str] | Many[Many[TokenId]], BeforeValidator(_all_whole)]
    add_special_tokens: bool | None = None
    max_tokens: Whole | None = Field(16, ge=0)
    echo: bool | None = None
    logprobs: Whole | None = Field(None, ge=0, le=MAX_TOP)
    suffix: str | None = None
    thinking_token_budget: Whole | None = Field(None, ge=-1)
    best_of: Whole | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check_completion(self) -> CompletionRequest:
        for name in CHAT_ONLY:
            if (self.model_extra or {}).get(name):
                raise wrong_field(name, "is not supported for plain texts; send it to /v1/chat/completions")
        if self.suffix:
            raise wrong_field("suffix", "is not supported: the model only continues a text")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise wrong_field("best_of", "is not supported beyond n; ask for n outputs and choose")
        return self


class WeightsRequest(Loose):
    """Body of /update_weights_from_disk, as SGLang has it."""

    model_path: Text
    weight_version: Text | None = None


class FunctionName(Loose):
    """The function that must be called."""

    name: Text


class NamedTool(Loose):
    """tool_choice: call this one."""

    type: Literal["function"]
    function: FunctionName


class Function(Loose):
    """One function that the model may call."""

    name: str = Field(min_length=1, pattern=r"^[^<>\s=]+$")
    description: str | None = None
    parameters: JsonObject | None = None


class Tool(Loose):
    """A tool; only functions exist."""

    type: Literal["function"]
    function: Function


class CalledFunction(Loose):
    """A call that the model made earlier."""

    name: str
    arguments: JsonObject | str | None = None


class ToolCall(Loose):
    """A tool call of an assistant message."""

    function: CalledFunction
    id: str | None = None
    type: str | None = None


class TextPart(Loose):
    """A part of a message; only text exists."""

    type: Literal["text"]
    text: str


class Message(Loose):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Many[TextPart] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: Many[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Message:
        if self.role == "tool" and not self.tool_call_id:
            raise wrong_field("tool_call_id", "is missing; give the id of the call that this is the result of")
        if self.content is None and self.role != "assistant":
            raise wrong_field("content", "is missing; only an assistant's message may lack it")
        return self


Messages = Annotated[Many[Message], BeforeValidator(_few_messages)]


class ChatTemplateFields(Loose):
    """What decides how messages become a prompt."""

    messages: Messages = Field(min_length=1)
    tools: Many[Tool] | None = Field(None, max_length=MOST_TOOLS)
    add_generation_prompt: bool | None = None
    enable_thinking: bool | None = None
    truncate_history_thinking: bool | None = None
    chat_template_kwargs: JsonObject | None = None
    thinking: JsonObject | bool | None = None
    reasoning: JsonObject | None = None


class ChatRequest(ChatTemplateFields, GenerationRequest):
    """Body of /v1/chat/completions."""

    max_tokens: Whole | None = Field(None, ge=1)
    max_completion_tokens: Whole | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=MOST_TOP_CHAT)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    reasoning_budget: Whole | None = Field(None, ge=0)
    thinking_budget: Whole | None = Field(None, ge=0)
    thinking_token_budget: Whole | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _check_chat(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise wrong_field("top_logprobs", "needs logprobs: true")
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise wrong_field("tools", "holds two functions of one name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise wrong_field("tool_choice", f"names {self.tool_choice.function.name!r}, which is not among the tools")
        if self.tool_choice == "required" and not names:
            raise wrong_field("tool_choice", "is required, but there are no tools")
        return self


class TokenizeRequest(Loose):
    """Body of /tokenize: `prompt`, or `messages` with what the chat template needs."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    messages: Messages | None = None
    tools: Many[Tool] | None = Field(None, max_length=MOST_TOOLS)
    add_generation_prompt: bool | None = None
    enable_thinking: bool | None = None
    truncate_history_thinking: bool | None = None
    chat_template_kwargs: JsonObject | None = None
    thinking: JsonObject | bool | None = None
    reasoning: JsonObject | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> TokenizeRequest:
        if (self.prompt is None) == (not self.messages):
            raise wrong_field("prompt", "give either prompt or messages")
        return self


class DetokenizeRequest(Loose):
    """Body of /detokenize."""

    model: str | None = None
    tokens: TokenIds
