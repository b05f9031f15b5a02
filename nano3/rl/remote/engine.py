"""The engine protocol on several servers: requests are shared out, and those of a server that is lost go to others."""

from __future__ import annotations

import copy
import os
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

from nano3.config.errors import UserError
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.protocol import ServersGoneError, Stats, ends_of_text, require_idle
from nano3.engine.request import Request, Update
from nano3.rl.remote.place import KEY, LostError, Place, RefusedError, UnusableError
from nano3.rl.remote.tokens import refusal

SETTING = "rollout.servers"
PAGE = 64
"""Tokens a page, since servers do not tell."""
TICK = 0.2
"""Seconds after which `step` returns without news, so that environments are heard and signals obeyed."""


@dataclass(frozen=True)
class Weights:
    """What was sent last; every rank holds the same."""

    number: int = 0
    name: str = ""
    """Of this process's own, so that other runs' weights are told from it."""
    lost: tuple[str, ...] = ()
    """Why each server did not take them; empty: it has them."""


class _Outcome(NamedTuple):
    request: Request
    place: Place
    updates: list[Update]
    lost: str = ""
    refused: str = ""
    unusable: str = ""


class RemoteEngine:
    """nano3.engine.protocol.GenerationEngine over /v1/completions of `nano3 serve` and vLLM.

    Prompts go out as token ids, and ids come back with their log-probabilities: nothing is made to text and read again.
    Each request's outputs are drawn by one server, with the request's own seed, so that who draws them does not matter:
    that with the fewest sequences under way gets it. A server that does not answer, or answers with other weights than
    those sent last, is lost until the next `load_weights`; its requests go to the others. So does one whose answer
    cannot be used: its server is lost once another answers it well, and without such another its outputs are errors.
    """

    reports_experts = False
    page_size = PAGE

    def __init__(
        self,
        urls: Sequence[str],
        tokenizer: Tokenizer,
        folder: Path,
        *,
        sequences: int = 64,
        max_context: int | None = None,
        seconds: float = 3600.0,
        say: Callable[[str], None] = lambda line: None,
        thinking: bool = False,
        vocab_size: int | None = None,
    ) -> None:
        """Ask each server which model it has; weights are not sent yet.

        Args:
            urls: at least one.
            tokenizer: of the trainer.
            folder: through which weights go, on a disk that the servers see at the same path.
            sequences: most that one server is asked for at once.
            max_context: most tokens of prompt and output; None: the least of the servers'.
            seconds: for one answer, and for taking weights; a server without it is lost.
            say: hears which server is lost, and why.
            thinking: requests will have thinking budgets.
            vocab_size: of the model; None: that of the tokenizer.

        Raises:
            UserError: an address is none, a server is not there or cannot do what is wanted, or servers draw from
                different ids.
        """
        self.tokenizer, self.folder, self._sequences, self._say = tokenizer, folder, sequences, say
        self.eos_ids = ends_of_text(tokenizer)
        self._places = [Place(url, os.environ.get(KEY, ""), seconds, SETTING) for url in urls]
        self._refuse(thinking)
        self.ids_limit = self._common_ids_limit(vocab_size or tokenizer.vocab_size)
        limits = [max_context, *(place.max_context for place in self._places)]
        self.max_context: int = min((limit for limit in limits if limit), default=0)
        if not self.max_context:
            raise UserError(f"{SETTING}: {urls[0]} does not tell max_model_len: set rollout.max_context")
        self._run = secrets.token_hex(4)
        self._probing = False  # whether an answer that cannot be used is the server's fault, whatever others answer
        self.weights = Weights(lost=("it has no weights of this run yet",) * len(urls))
        self._adopt_lost()
        self._begin()

    @property
    def parts(self) -> list[tuple[str, RemoteEngine]]:
        """(address, engine on this server alone) of each that has the weights, to be looked at one by one."""
        return [(place.url, self._on(place)) for place in self._places if not place.lost]

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._waiting or self._asked)

    def prepare(self, request: Request) -> None:
        """Nothing is slow here; see GenerationEngine.prepare."""
        if reason := refusal(request):
            raise UserError(reason)

    def add(self, request: Request) -> None:
        """Take a request in; see GenerationEngine.add."""
        self.prepare(request)
        if request.id in self._asked or any(each.id == request.id for each in self._waiting):
            raise ValueError(f"request id {request.id!r} is in use")
        least = 0 if request.sampling.max_tokens == 0 else 1
        if len(request.prompt) + least > self.max_context:
            raise ValueError(
                f"prompt of {len(request.prompt)} tokens is too long: the context holds {self.max_context} with the "
                "output"
            )
        self._waiting.append(request)
        self._counts["prompt"] += len(request.prompt)

    def abort(self, request_id: str) -> None:
        """Forget a request; what a server goes on to draw for it is not read."""
        self._waiting = deque(request for request in self._waiting if request.id != request_id)
        self._asked.pop(request_id, None)
        self._unusable.pop(request_id, None)

    def step(self) -> list[Update]:
        """The outputs that came since, whole; it waits a moment where none did.

        Raises:
            ServersGoneError: none is left, and requests wait.
        """
        self._share_out()
        if not self._asked:
            if self._waiting:
                raise self._gone()
            return []
        try:
            found = [self._outcomes.get(timeout=TICK)]
            while not self._outcomes.empty():
                found.append(self._outcomes.get())
        except Empty:
            return []
        return [update for outcome in found for update in self._take(outcome)]

    def progress(self, request_id: str) -> tuple[int, int] | None:
        """Servers do not tell; see GenerationEngine.progress."""
        request = self._asked.get(request_id) or next((r for r in self._waiting if r.id == request_id), None)
        return None if request is None else (0, len(request.prompt))

    def stats(self) -> Stats:
        """Counters and use; what servers alone know stays 0."""
        return Stats(
            running=sum(request.n for request in self._asked.values()),
            max_running=self._sequences * len(self._places),
            waiting=sum(request.n for request in self._waiting),
            prompt_tokens=self._counts["prompt"],
            cached_tokens=self._counts["cached"],
            output_tokens=self._counts["output"],
        )

    def load_weights(self, folder: Path) -> int:
        """Send the weights of a folder to all servers at once, lost ones included; one process does it for all.

        Raises:
            RuntimeError: requests are under way.
            ServersGoneError: no server took them.
            UserError: one refuses them.
        """
        require_idle(self._unfinished)
        number = self.weights.number + 1
        name = f"{self._run}-{number}"
        failed: dict[int, LostError | UserError] = {}

        def send(i: int, place: Place) -> None:
            try:
                place.load_weights(folder.resolve(), name)
            except (LostError, UserError) as error:
                failed[i] = error
            except BaseException as error:  # what is not told counts as taken
                failed[i] = LostError(f"{type(error).__name__}: {error}")

        threads = [Thread(target=send, args=pair, daemon=True) for pair in enumerate(self._places)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if refused := next((error for error in failed.values() if isinstance(error, UserError)), None):
            raise refused
        lost = tuple(str(failed.get(i, "")) for i in range(len(self._places)))
        self.adopt(Weights(number, name, lost), tell=True)
        if all(lost):
            raise self._gone()
        return number

    def adopt(self, weights: Weights, tell: bool = False) -> None:
        """Take what another process sent for what the servers have; `tell`: say which of them are lost."""
        self.weights = weights
        for place, reason in zip(self._places, weights.lost, strict=True):
            if tell and reason and not place.lost:
                self._say(_lost(place, reason))
        self._adopt_lost()

    def weights_changed(self) -> int:
        """Servers have weights of their own: only `load_weights` changes them."""
        raise UserError("weights of servers change by load_weights")

    def close(self) -> None:
        """Close the connections."""
        for place in self._places:
            place.close()

    def _begin(self) -> None:
        self._waiting: deque[Request] = deque()
        self._asked: dict[str, Request] = {}
        self._unusable: dict[str, dict[Place, str]] = {}  # by request: who answered it so, and why
        self._outcomes: SimpleQueue[_Outcome] = SimpleQueue()
        self._counts = {"prompt": 0, "cached": 0, "output": 0}

    def _on(self, place: Place) -> RemoteEngine:
        other = copy.copy(self)
        other._places = [place]
        other._probing = True
        other._begin()
        return other

    def _refuse(self, thinking: bool) -> None:
        for place in self._places:
            if thinking and not place.dialect.marks_thinking:
                raise UserError(
                    f"rollout.thinking_budget: {place.url} does not tell which tokens close thinking; serve the model "
                    "with nano3 serve, or leave the budget out"
                )

    def _common_ids_limit(self, vocab_size: int) -> int:
        limits = [min(p.dialect.ids_limit(self.tokenizer) or vocab_size, vocab_size) for p in self._places]
        if len(set(limits)) > 1:
            parts = ", ".join(f"{p.url} from {n:,}" for p, n in zip(self._places, limits, strict=True))
            raise UserError(
                f"{SETTING}: the servers draw from different numbers of ids ({parts}): nano3 serve from those of the "
                "tokenizer, vLLM from the model's; take servers of one kind"
            )
        return limits[0]

    @property
    def _unfinished(self) -> int:
        return sum(request.n for request in (*self._waiting, *self._asked.values()))

    def _adopt_lost(self) -> None:
        for place, reason in zip(self._places, self.weights.lost, strict=True):
            place.lost, place.running = reason, 0

    def _share_out(self) -> None:
        """Ask servers with room for what waits."""
        while self._waiting:
            request = self._waiting[0]
            live = [place for place in self._places if not place.lost]
            unusable = self._unusable.get(request.id, {})
            live = [place for place in live if place not in unusable] or live
            # What is asked again does not wait for room, and with it all behind it.
            free = [p for p in live if unusable or not p.running or p.running + request.n <= self._sequences]
            if not free:
                return
            self._waiting.popleft()
            place = min(free, key=lambda each: each.running)
            place.running += request.n
            self._asked[request.id] = request
            Thread(target=self._work, args=(request, place), daemon=True).start()

    def _work(self, request: Request, place: Place) -> None:
        outcome = _Outcome(request, place, [])
        try:
            room, weights = self.max_context - len(request.prompt), (self.weights.number, self.weights.name)
            updates = place.ask(request, self.tokenizer, self.eos_ids, room, weights, self.ids_limit)
            outcome = outcome._replace(updates=updates)
        except LostError as error:
            outcome = outcome._replace(lost=str(error))
        except RefusedError as error:
            outcome = outcome._replace(refused=str(error))
        except UnusableError as error:
            outcome = outcome._replace(unusable=str(error))
        except BaseException as error:  # a thread that ends without an outcome would be waited for for ever
            outcome = outcome._replace(lost=f"{type(error).__name__}: {error}")
        self._outcomes.put(outcome)

    def _take(self, outcome: _Outcome) -> list[Update]:
        request, place = outcome.request, outcome.place
        place.running = max(0, place.running - request.n)
        if self._asked.get(request.id) is not request:
            return []  # aborted
        del self._asked[request.id]
        if outcome.unusable:
            return self._take_unusable(outcome)
        if outcome.lost:
            self._lose(place, outcome.lost)
            self._waiting.appendleft(request)
            return []
        if outcome.refused:
            return self._errors(request, outcome.refused)
        for other, reason in self._unusable.pop(request.id, {}).items():
            self._lose(other, f"{reason}; {place.url} answers the same request well")
        self._counts["cached"] += sum(update.cached_tokens for update in outcome.updates)
        self._counts["output"] += sum(len(update.tokens) for update in outcome.updates)
        return outcome.updates

    def _take_unusable(self, outcome: _Outcome) -> list[Update]:
        """Ask another server; where none is left, the request is to blame."""
        request, place = outcome.request, outcome.place
        unusable = self._unusable.setdefault(request.id, {})
        unusable[place] = outcome.unusable
        if self._probing:
            self._lose(place, outcome.unusable)
        elif all(other.lost or other in unusable for other in self._places):
            reasons = "; ".join(f"{other.url}: {reason}" for other, reason in unusable.items())
            return self._errors(request, reasons)
        self._waiting.appendleft(request)
        return []

    def _lose(self, place: Place, reason: str) -> None:
        if not place.lost:
            place.lost = reason
            self._say(_lost(place, reason))

    def _errors(self, request: Request, reason: str) -> list[Update]:
        self._unusable.pop(request.id, None)
        return [Update(request.id, index, finish="error", error=reason) for index in range(request.n)]

    def _gone(self) -> ServersGoneError:
        reasons = "; ".join(f"{place.url}: {place.lost}" for place in self._places)
        return ServersGoneError(f"no server of {SETTING} is left ({reasons})")


def _lost(place: Place, reason: str) -> str:
    return f"{place.url} is lost until the next weights: {reason}"
