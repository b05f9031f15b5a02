"""A served model for lm-eval: the harness's own API models, with the server's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from nano3.config.errors import UserError
from nano3.eval.prompt import Prompt, ServerGone

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from nano3.eval.server_target import ServerTarget

USUAL_CONTEXT = 2048
"""Where a server does not say; it is lm-eval's own."""
T = TypeVar("T")


class _Answering:
    """Failures of the harness's requests in nano3's words."""

    target: ServerTarget

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the harness's."""
        return self._asked(super().loglikelihood, requests, disable_tqdm)  # pyright: ignore

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As the harness's."""
        return self._asked(super().loglikelihood_rolling, requests, disable_tqdm)  # pyright: ignore

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As the harness's."""
        return self._asked(super().generate_until, requests, disable_tqdm)  # pyright: ignore

    def _asked(self, ask: Callable[..., T], requests: list[Instance], quiet: bool) -> T:
        import aiohttp
        import requests as http
        from tenacity import RetryError

        try:
            return ask(requests, disable_tqdm=quiet)
        except (http.RequestException, aiohttp.ClientError, RetryError, TimeoutError, ConnectionError) as error:
            status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
            reason = f"{type(error).__name__} {error}".splitlines()[0][:300]
            if isinstance(status, int) and 400 <= status < 500 and status not in (408, 409, 425, 429):
                raise UserError(f"{self.target.url} refuses a request: {reason}") from error
            raise ServerGone(f"{self.target.url} does not answer ({reason})") from error


class Completions(_Answering, LocalCompletionsAPI):
    """/v1/completions: likelihoods and continued texts; token ids are sent, made by the server's own tokenizer."""

    def __init__(self, target: ServerTarget, **options: Any) -> None:
        """Ask `target`'s server.

        Args:
            target: the server and its tokenizer.
            options: as of lm-eval's `local-completions`.

        Raises:
            UserError: the server has no /tokenize, and no tokenizer was given.
        """
        self.target = target
        start = target.tokens.ids(Prompt(text=""))
        super().__init__(**_common(target), tokenizer_backend="none", **options)  # pyright: ignore[reportCallIssue]
        self.tokenizer, self.tokenized_requests = target, True
        self._start = start[0] if start else target.encode("\n")[0]

    @property
    def prefix_token_id(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What a text of the server's begins with."""
        return self._start

    @property
    def eot_token_id(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The same: servers do not tell their end of text."""
        return self._start

    @property
    def eos_string(self) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Servers end texts themselves."""
        return None

    def tok_encode(self, string: str | Sequence[str], left_truncate_len: int | None = None, **_: Any) -> Any:
        """Token ids of a text, or of several."""
        if not isinstance(string, str):
            return [self.tok_encode(text, left_truncate_len) for text in string]
        ids = self.target.encode(string)
        return ids[-left_truncate_len:] if left_truncate_len else ids


class ChatCompletions(_Answering, LocalChatCompletion):
    """/v1/chat/completions: answers only."""

    def __init__(self, target: ServerTarget, **options: Any) -> None:
        """As Completions."""
        self.target = target
        super().__init__(**_common(target, "chat/"), **options)


def _common(target: ServerTarget, chat: str = "") -> dict[str, Any]:
    return {
        "base_url": f"{target.url}/v1/{chat}completions",
        "model": target.name,
        "num_concurrent": target.concurrency,
        "max_length": target.max_context or USUAL_CONTEXT,
        "batch_size": 1,
    }
