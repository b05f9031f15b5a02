"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi import Request as HttpRequest
from pydantic import BaseModel

from nano3.serve.chat.prompt import make_prompt, plain
from nano3.serve.documents import errors
from nano3.serve.schemas import DetokenizeRequest, TokenizeRequest
from nano3.serve.service import Service, service_of
from nano3.serve.transport.errors import ApiError
from nano3.serve.transport.routing import StrictJsonRoute
from nano3.serve.transport.streaming import while_connected

router = APIRouter(tags=["tokens"], route_class=StrictJsonRoute)
MOST_CHARACTERS = 1 << 20
"""Texts up to here are told their tokens even where they cannot fit."""
_ERRORS = errors(400, 401, 404, 413)


class Tokenized(BaseModel):
    """Token ids of a text or a conversation."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """Text of token ids."""

    prompt: str


@router.post("/tokenize", responses=_ERRORS)
async def tokenize(
    body: TokenizeRequest, request: HttpRequest, service: Annotated[Service, Depends(service_of)]
) -> Tokenized:
    """Token ids of a prompt, or of a conversation as the chat template writes it; special tokens are recognised."""
    service.check_model(body.model)
    return await while_connected(request, service.plan(request, _tokenized, service, body))


@router.post("/detokenize", responses=_ERRORS)
async def detokenize(
    body: DetokenizeRequest, request: HttpRequest, service: Annotated[Service, Depends(service_of)]
) -> Detokenized:
    """Text of token ids, special tokens written out."""
    service.check_model(body.model)
    largest = max(body.tokens, default=0)
    if largest >= service.tokenizer.vocab_size:
        raise ApiError(
            400, f"tokens: {largest} is no token id; the vocabulary has {service.tokenizer.vocab_size}",
            param="tokens", code="invalid_value",
        )  # fmt: skip
    text = await while_connected(request, service.plan(request, service.tokenizer.decode, body.tokens))
    return Detokenized(prompt=text)


def _tokenized(service: Service, body: TokenizeRequest) -> Tokenized:
    tokens = _ids(service, body, max(service.most_characters, MOST_CHARACTERS))
    texts = [service.texts.text(token) for token in tokens] if body.return_token_strs else None
    return Tokenized(count=len(tokens), max_model_len=service.max_context, tokens=tokens, token_strs=texts)


def _ids(service: Service, body: TokenizeRequest, most_characters: int) -> list[int]:
    if body.prompt is not None:
        return service.encode(body.prompt, body.add_special_tokens, most_characters)
    tools: list[dict[str, Any]] = plain(body.tools)
    return list(make_prompt(service, body, tools, most_characters).ids)
