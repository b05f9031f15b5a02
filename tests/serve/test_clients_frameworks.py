"""litellm, langchain-openai and pydantic-ai against a running server: their usual calls give typed objects."""

from __future__ import annotations

import importlib
import os
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

# None of them may look for price lists or report anything.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("LANGSMITH_TRACING", "false")
os.environ.setdefault("LANGCHAIN_TRACING_V2", "false")


class Package:
    """A package that is imported when it is first used: the four take seconds, and each process collects all tests."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.name), name)


litellm, messages, langchain_openai = map(Package, ("litellm", "langchain_core.messages", "langchain_openai"))
pydantic_ai, models, providers = map(
    Package, ("pydantic_ai", "pydantic_ai.models.openai", "pydantic_ai.providers.openai")
)
PLAIN = {"enable_thinking": False}


class Light(BaseModel):
    """Switch a light."""

    room: Literal["kitchen", "attic"]
    level: int = Field(ge=0, le=9)
    warm: bool


LIGHT_TOOL = {
    "type": "function",
    "function": {"name": "Light", "description": "Switch a light.", "parameters": Light.model_json_schema()},
}


class TestLiteLLM:
    @pytest.fixture
    def complete(self, server):
        importlib.import_module("litellm").telemetry = False

        def call(**options):
            options = {"max_tokens": 12, "temperature": 0, "extra_body": PLAIN} | options
            return litellm.completion(
                model=f"openai/{server.model}", api_base=f"{server.url}/v1", api_key="none",
                messages=[{"role": "user", "content": "Say something."}], **options,
            )  # fmt: skip

        return call

    def test_a_stream_is_the_answer_in_pieces(self, complete):
        whole = complete()
        pieces = [chunk.choices[0].delta.content or "" for chunk in complete(stream=True)]
        assert "".join(pieces) == whole.choices[0].message.content
        assert whole.usage.completion_tokens <= 12

    def test_tools(self, complete):
        options = {"tools": [LIGHT_TOOL], "tool_choice": "required", "max_tokens": 300, "temperature": 1, "seed": 3}
        choice = complete(**options, parallel_tool_calls=False).choices[0]
        assert choice.finish_reason == "tool_calls"
        Light.model_validate_json(choice.message.tool_calls[0].function.arguments)
        chunks = list(complete(**options, parallel_tool_calls=False, stream=True))
        rebuilt = litellm.stream_chunk_builder(chunks)
        assert (
            rebuilt.choices[0].message.tool_calls[0].function.arguments
            == choice.message.tool_calls[0].function.arguments
        )

    def test_reasoning_and_json(self, complete):
        answer = complete(
            response_format=Light, max_tokens=300, temperature=1, seed=1,
            extra_body={"enable_thinking": True, "reasoning_budget": 4},
        )  # fmt: skip
        Light.model_validate_json(answer.choices[0].message.content)
        assert answer.choices[0].message.reasoning_content

    def test_errors_are_its_own(self, complete):
        with pytest.raises(litellm.BadRequestError, match="temperature"):
            complete(temperature=-3)


class TestLangchain:
    @pytest.fixture
    def chat(self, server):
        return langchain_openai.ChatOpenAI(
            model=server.model, base_url=f"{server.url}/v1", api_key="none", max_tokens=300, temperature=1, seed=7,
            extra_body=PLAIN, max_retries=0, stream_usage=True,
        )  # fmt: skip

    def test_invoke_and_stream(self, chat):
        chat = chat.bind(max_tokens=12, temperature=0)
        whole = chat.invoke("Say something.")
        assert isinstance(whole, messages.AIMessage)
        assert whole.usage_metadata["output_tokens"] <= 12
        pieces = list(chat.stream("Say something."))
        assert "".join(piece.content for piece in pieces) == whole.content
        total = sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata)
        assert total == whole.usage_metadata["output_tokens"]

    def test_tools_and_their_results(self, chat):
        bound = chat.bind_tools([Light], tool_choice="required", parallel_tool_calls=False)
        message = bound.invoke("Light!")
        (call,) = message.tool_calls
        assert call["name"] == "Light"
        Light.model_validate(call["args"])
        result = messages.ToolMessage("done", tool_call_id=call["id"])
        history = [messages.HumanMessage("Light!"), message, result]
        assert isinstance(chat.bind(max_tokens=4).invoke(history), messages.AIMessage)

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_structured_output(self, chat, method):
        structured = chat.with_structured_output(Light, method=method)
        assert isinstance(structured.invoke("Light!"), Light)


class TestPydanticAI:
    @pytest.fixture
    def model(self, server):
        provider = providers.OpenAIProvider(base_url=f"{server.url}/v1", api_key="none")
        return models.OpenAIChatModel(server.model, provider=provider)

    @pytest.fixture
    def settings(self):
        return {"max_tokens": 400, "temperature": 1.0, "seed": 11, "extra_body": PLAIN, "parallel_tool_calls": False}

    def test_text(self, model, settings):
        agent = pydantic_ai.Agent(model, model_settings=settings | {"max_tokens": 12})
        result = agent.run_sync("Say something.")
        assert isinstance(result.output, str)
        assert 1 <= result.usage.output_tokens <= 12

    @pytest.mark.parametrize("form", ["tool", "native"])
    def test_output_type(self, model, settings, form):
        output_type = Light if form == "tool" else pydantic_ai.NativeOutput(Light)
        agent = pydantic_ai.Agent(model, output_type=output_type, model_settings=settings)
        assert isinstance(agent.run_sync("Light!").output, Light)

    def test_a_tool_and_its_result_come_before_the_answer(self, model, settings):
        seen = []

        async def while_new(context, definition):
            return definition if len(seen) < 2 else None

        def dim(level: Literal[1, 2, 3]) -> str:
            """Dim all lights."""
            seen.append(level)
            return "dimmed"

        tool = pydantic_ai.Tool(dim, prepare=while_new)
        agent = pydantic_ai.Agent(model, output_type=Light, tools=[tool], model_settings=settings)
        result = agent.run_sync("Light!")
        assert isinstance(result.output, Light)
        assert 1 <= len(seen) <= 2
        assert set(seen) <= {1, 2, 3}
        returned = [part.content for message in result.all_messages() for part in message.parts
                    if part.part_kind == "tool-return" and part.tool_name == "dim"]  # fmt: skip
        assert returned == ["dimmed"] * len(seen)
