"""What servers do not share: how weights get into one, and how it tells which ones it has.

Rollouts are asked of all by /v1/completions, in the fields of vLLM (nano3.rl.remote.tokens).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nano3.client.attempts import NoAnswerError
from nano3.config.errors import UserError

if TYPE_CHECKING:
    from nano3.client.server import Reply, Server
    from nano3.data.tokens.tokenizer import Tokenizer

UPDATE, INFO = "/update_weights_from_disk", "/weight_info"
PAUSED = "it stays paused and answers nobody until it takes weights: send it POST /resume, or restart it"


class Dialect(Protocol):
    """One kind of server."""

    marks_thinking: bool
    """Whether a thinking budget is kept as nano3 keeps it, so that it is known which tokens it wrote."""

    def ids_limit(self, tokenizer: Tokenizer) -> int | None:
        """That of an engine whose model has more ids than the tokenizer (GenerationEngine.ids_limit); None: it draws
        from all of the model's."""
        ...

    def load_weights(self, server: Server, folder: Path, version: str) -> None:
        """Put the weights of a folder into the server under a name.

        Raises:
            NoAnswerError: it is not there, or fails in a way that may pass.
            UserError: it refuses.
        """
        ...

    def version(self, server: Server, answer: dict[str, Any]) -> str | None:
        """Name of the weights that computed an answer; None where the server does not tell.

        Raises:
            NoAnswerError: it is not there any more.
        """
        ...


class Nano3Serve:
    """`nano3 serve --weights-folder DIR`."""

    marks_thinking = True

    def __init__(self, ids_limit: int | None = None) -> None:
        """`ids_limit`: what it lists."""
        self._ids_limit = ids_limit

    def ids_limit(self, tokenizer: Tokenizer) -> int | None:
        """Its own engine leaves out what no text comes of, vLLM behind it does not."""
        return self._ids_limit or tokenizer.vocab_size

    def load_weights(self, server: Server, folder: Path, version: str) -> None:
        """One request; the server drops its prefix cache itself."""
        reply = server.request("POST", UPDATE, {"model_path": str(folder), "weight_version": version})
        if reply.status == 404:
            raise UserError(f"{server.url} takes no weights: start it with --weights-folder {folder.parent}")
        _accepted(server, UPDATE, reply)

    def version(self, server: Server, answer: dict[str, Any]) -> str | None:
        """Each answer carries it."""
        del server
        return str((answer.get("metadata") or {}).get("weight_version", ""))


class Vllm:
    """`VLLM_SERVER_DEV_MODE=1 vllm serve`, 0.18 or later, whose workers' `reload_weights` takes a path.

    Endpoints as in vllm/entrypoints/serve/dev: rlhf, rpc and cache. Those of versions came later than the others, so
    a server without them is told from a stale one by the probe of the weight sync alone.
    """

    marks_thinking = False

    def ids_limit(self, tokenizer: Tokenizer) -> int | None:
        """Its sampler does not know the tokenizer."""
        del tokenizer
        return None

    def load_weights(self, server: Server, folder: Path, version: str) -> None:
        """Between a pause, which lets requests end, and its end."""
        _accepted(server, "/pause", server.request("POST", "/pause?mode=wait"))
        try:
            self._replace(server, folder, version)
        except UserError as error:
            raise UserError(f"{error}; {PAUSED}") from error
        except NoAnswerError as error:
            raise NoAnswerError(f"{error.reason}; {PAUSED}", error.tries, error.limit) from error
        except (ValueError, AttributeError) as error:
            raise NoAnswerError(f"its answer is not vLLM's: {error}; {PAUSED}", 1, "in 1 attempt") from error

    def _replace(self, server: Server, folder: Path, version: str) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        _accepted(server, "/collective_rpc", server.request("POST", "/collective_rpc", body))
        reply = server.request("POST", "/reset_prefix_cache")
        _accepted(server, "/reset_prefix_cache", reply)
        if reply.body and reply.json().get("success") is False:
            raise UserError(f"{server.url} kept its prefix cache, which holds states of the old weights: restart it")
        reply = server.request("POST", "/update_weight_version", {"new_version": version})
        if reply.status != 404:
            _accepted(server, "/update_weight_version", reply)
        _accepted(server, "/resume", server.request("POST", "/resume"))

    def version(self, server: Server, answer: dict[str, Any]) -> str | None:
        """Asked behind each answer: one that changes later is noticed then."""
        del answer
        reply = server.request("GET", INFO)
        return None if reply.status == 404 else str(reply.json().get("weight_version"))


def dialect_of(listed: dict[str, Any]) -> Dialect:
    """That of a server, by what it tells of its model at /v1/models."""
    return Nano3Serve(listed.get("ids_limit")) if listed.get("owned_by") == "nano3" else Vllm()


def _accepted(server: Server, path: str, reply: Reply) -> None:
    """Raise UserError for an answer that is none of success."""
    server.check_way(reply, path)
    if reply.status == 404:
        raise UserError(
            f"{server.url} has no {path}: start it as VLLM_SERVER_DEV_MODE=1 vllm serve (0.18 or later), or take "
            "nano3 serve --weights-folder"
        )
    if not 200 <= reply.status < 300:
        raise UserError(f"{server.url}{path} answers HTTP {reply.status}: {server.error_text(reply)}")
