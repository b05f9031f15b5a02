"""One server of several: what it is asked, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nano3.client.attempts import NoAnswerError, Tries
from nano3.client.server import Server, base_address
from nano3.config.errors import UserError
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.request import Request, Update
from nano3.rl.remote.dialects import dialect_of
from nano3.rl.remote.tokens import AnswerError, body_of, unclear_thinking, updates_of

PATH = "/v1/completions"
KEY = "NANO3_API_KEY"
TRIES, FIRST_WAIT, LONGEST_WAIT = 4, 0.5, 10.0
"""Of each request: a server that fails for some seconds is lost; a full one is asked again for as long as one answer
may take."""


class LostError(Exception):
    """The server is of no use until weights are sent again; the message says why, in one line."""


class RefusedError(Exception):
    """This request cannot be asked of any server; the message says why, in one line."""


class UnusableError(Exception):
    """The server's answer to this request cannot be used; the message says why, in one line."""


class Place:
    """A server and what is under way there.

    Attributes:
        url: without /v1.
        running: sequences that were asked for and have not come.
        lost: why it is asked nothing; empty: it is asked.
    """

    def __init__(self, url: str, api_key: str, seconds: float, name: str) -> None:
        """Ask it which model it has.

        Args:
            url: its address.
            api_key: sent as bearer token.
            seconds: for one answer, all tries together.
            name: of the setting that gave the address, for people.

        Raises:
            UserError: no address, no server there, or it refuses the key.
        """
        self.url = base_address(url, name)
        # A deadline: what ran out of time is not sent again, to be computed twice.
        tries = Tries(TRIES, FIRST_WAIT, LONGEST_WAIT, deadline=seconds, patient=True)
        self._server = Server(self.url, api_key, timeout=seconds, tries=tries, key_names=KEY, url_name=name)
        self._model, listed = self._server.find_model()
        self.max_context: int | None = listed.get("max_model_len")
        self.dialect = dialect_of(listed)
        self.running, self.lost = 0, ""

    def ask(
        self,
        request: Request,
        tokenizer: Tokenizer,
        eos_ids: frozenset[int],
        room: int,
        weights: tuple[int, str],
        ids_limit: int,
    ) -> list[Update]:
        """The outputs of a request.

        Args:
            request: for one server.
            tokenizer, eos_ids: of the trainer.
            room: tokens that fit behind the prompt.
            weights: number and name of those that the answer must come from.
            ids_limit: only ids below it may have been drawn.

        Raises:
            LostError, RefusedError, UnusableError: as they say.
        """
        if reason := unclear_thinking(request, tokenizer):
            raise RefusedError(reason)
        try:
            reply = self._server.request("POST", PATH, body_of(request, self._model, eos_ids, room))
            if reply.status in (400, 422):
                raise RefusedError(f"{self.url} refuses the request: {self._server.error_text(reply)}")
            if reply.status != 200:
                raise LostError(f"HTTP {reply.status}: {self._server.error_text(reply)}")
            answer = reply.json()
            self._check_weights(answer, weights[1])
            return updates_of(request, answer, tokenizer, eos_ids, weights[0], ids_limit)
        except NoAnswerError as error:
            raise LostError(error.reason) from error
        except (AnswerError, ValueError) as error:
            raise UnusableError(f"its answer cannot be used: {error}") from error
        except AttributeError as error:
            raise UnusableError(f"its answer cannot be used: no JSON object where one belongs ({error})") from error

    def load_weights(self, folder: Path, version: str) -> None:
        """Put the weights of a folder there under a name.

        Raises:
            LostError: it is not there.
            UserError: it refuses.
        """
        try:
            self.dialect.load_weights(self._server, folder, version)
        except NoAnswerError as error:
            raise LostError(error.reason) from error
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise LostError(f"its answer is no JSON: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def _check_weights(self, answer: dict[str, Any], wanted: str) -> None:
        found = self.dialect.version(self._server, answer)
        if found is not None and found != wanted:
            has = f"the weights {found}" if found else "the weights that it was started with"
            raise LostError(f"it answers with {has}, not with {wanted}: it was restarted, or another run uses it too")
