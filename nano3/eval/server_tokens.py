"""The tokenizer of a served model: asked of the server, or loaded from a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nano3.config.errors import UserError
from nano3.eval.engine_target import prompt_ids
from nano3.eval.pieces import PieceTokenizer
from nano3.eval.prompt import Prompt

if TYPE_CHECKING:
    from nano3.client.server import Reply

Ask = Callable[[str, str, Mapping[str, Any]], "Reply"]
"""(method, path, body) to the server's answer."""


class Tokens(Protocol):
    """Texts and prompts to token ids."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added around it."""
        ...

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a whole prompt."""
        ...


class LocalTokens:
    """A tokenizer in a folder of this machine."""

    def __init__(self, path: str) -> None:
        """Load it. Raises UserError where there is none."""
        from nano3.data.tokens.tokenizer import Tokenizer

        folder = next((f for f in (Path(path) / "model", Path(path)) if (f / "tokenizer.json").is_file()), Path(path))
        try:
            self.tokenizer = PieceTokenizer.of(Tokenizer.load(folder))
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"--tokenizer {path}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self.tokenizer.encode(text)

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a whole prompt."""
        return prompt_ids(self.tokenizer, prompt)


class ServerTokens:
    """POST /tokenize, as nano3 serve and vLLM have it."""

    def __init__(self, ask: Ask, model: str, error_text: Callable[[Reply], str]) -> None:
        """Ask a server about a model; `error_text`: what an error answer says, the key not in it."""
        self._ask, self._model, self._error_text = ask, model, error_text

    def works(self) -> bool:
        """Whether the server answers it in this form."""
        response = self._ask("POST", "/tokenize", self._text("a b", False))
        try:
            return response.status == 200 and bool(response.json()["tokens"])
        except (ValueError, LookupError, TypeError):
            return False

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._tokens(self._text(text, False)) if text else []

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a whole prompt."""
        if prompt.ids is not None:
            return (*prompt.ids, *self.encode(prompt.prefix))
        if prompt.text is not None:
            return tuple(self._tokens(self._text(prompt.text + prompt.prefix, True)))
        body = {
            "model": self._model,
            "messages": [dict(message) for message in prompt.messages or ()],
            "add_generation_prompt": True,
            "chat_template_kwargs": {"enable_thinking": prompt.thinking},
        }
        return (*self._tokens(body), *self.encode(prompt.prefix))

    def _text(self, text: str, special: bool) -> dict[str, Any]:
        return {"model": self._model, "prompt": text, "add_special_tokens": special}

    def _tokens(self, body: Mapping[str, Any]) -> list[int]:
        reply = self._ask("POST", "/tokenize", body)
        if reply.status != 200:
            raise UserError(f"/tokenize answers HTTP {reply.status}: {self._error_text(reply)}")
        try:
            return list(reply.json()["tokens"])
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"/tokenize answers in another form: {type(error).__name__}: {error}") from error
