"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from nano3.serve.chat_prompt import make_prompt, plain
from nano3.serve.documents import errors
from nano3.serve.errors import ApiError
from nano3.serve.routing import StrictJsonRoute
from nano3.serve.schemas import DetokenizeRequest, TokenizeRequest
from nano3.serve.service import Service, service_of

router = APIRouter(tags=["tokens"], route_class=StrictJsonRoute)
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
async def tokenize(body: TokenizeRequest, service: Annotated[Service, Depends(service_of)]) -> Tokenized:
    """Token ids of a prompt, or of a conversation as the chat template writes it; special tokens are recognised."""
    service.check_model(body.model)
    tokens = await asyncio.to_thread(_ids, service, body)
    texts = [service.texts.text(token) for token in tokens] if body.return_token_strs else None
    return Tokenized(count=len(tokens), max_model_len=service.max_context, tokens=tokens, token_strs=texts)


@router.post("/detokenize", responses=_ERRORS)
async def detokenize(body: DetokenizeRequest, service: Annotated[Service, Depends(service_of)]) -> Detokenized:
    """Text of token ids, special tokens written out."""
    service.check_model(body.model)
    largest = max(body.tokens, default=0)
    if largest >= service.tokenizer.vocab_size:
        raise ApiError(
            400, f"tokens: {largest} is no token id; the vocabulary has {service.tokenizer.vocab_size}",
            param="tokens", code="invalid_value",
        )  # fmt: skip
    return Detokenized(prompt=service.tokenizer.decode(body.tokens))


def _ids(service: Service, body: TokenizeRequest) -> list[int]:
    if body.prompt is not None:
        return service.encode(body.prompt, body.add_special_tokens)
    tools: list[dict[str, Any]] = plain(body.tools)
    return list(make_prompt(service.chat, body, tools).ids)
