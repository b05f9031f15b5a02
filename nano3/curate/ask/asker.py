"""Asks for the steps of one process: an event loop in a thread, one client for all steps, a file of answers a task."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from nano3.client.asynchronous import FORM, AsyncServer, FormRefusedError
from nano3.client.attempts import Tries
from nano3.client.cache import SUFFIX, AnswerCache, answer_key
from nano3.client.chat import ChatAnswer, read_chat
from nano3.curate.ask.forms import looser
from nano3.curate.ask.model import KEY_NAMES, Model, api_key

TRIES = 5
Result = TypeVar("Result")


class Asked(NamedTuple):
    """What came of a request."""

    answer: ChatAnswer
    seconds: float
    """That it took when it was asked for."""
    formless: bool
    """Whether a form was wanted and the server was not asked to keep to one."""


class Connection:
    """An event loop in a thread, with a client; the steps of a process share it.

    Attributes:
        server: the client.
    """

    def __init__(self, model: Model, concurrency: int) -> None:
        """Start it."""
        self._refused: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self.users = 0
        self.server = AsyncServer(
            model.url, api_key(), concurrency=concurrency, timeout=model.timeout,
            tries=Tries(TRIES, deadline=model.deadline, patient=True), key_names=KEY_NAMES, tell=_tell,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._loop.run_forever, name="nano3-ask", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Begin some work in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def ask(self, bodies: Sequence[dict[str, Any]]) -> tuple[int, tuple[Any, float]]:
        """The answer to one request, of which the server may refuse the form, and which of its bodies it was given to.

        Args:
            bodies: the same request with looser and looser forms, the last without any.
        """
        for number, body in enumerate(bodies):
            form = repr(body.get(FORM))
            if form in self._refused:
                continue
            try:
                return number, await self.server.chat(body)
            except FormRefusedError as error:
                if form not in self._refused:
                    self._refused.add(form)
                    then = "a looser one is tried" if FORM in bodies[number + 1] else "it is left out from now on"
                    _tell(f"{self.server.url} refuses a {FORM} ({error}); {then}")
        raise AssertionError("a request without a form is answered or fails")

    def close(self) -> None:
        """Close the client and end the thread."""
        self.start(self._ended()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _ended(self) -> None:
        """Cancel what is under way, and close."""
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.server.close()


_open: dict[tuple[Model, int], Connection] = {}
_lock = threading.Lock()


@contextmanager
def connection(model: Model, concurrency: int) -> Iterator[Connection]:
    """The connection of this process to a model, made by the first that wants it and closed by the last."""
    key = (model, concurrency)
    with _lock:
        found = _open.get(key) or _open.setdefault(key, Connection(model, concurrency))
        found.users += 1
    try:
        yield found
    finally:
        with _lock:
            found.users -= 1
            if not found.users:
                del _open[key]
        if not found.users:
            found.close()


class Asker:
    """Chat completions for one step in one task, each from the file of answers where it was given before."""

    def __init__(self, model: Model, shared: Connection, cache: AnswerCache) -> None:
        """Ask a model by the connection of this process; answers go into `cache`."""
        self._model, self._shared, self._server, self._cache = model, shared, shared.server, cache
        self._under_way: dict[bytes, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._begun = time.monotonic()

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Begin some work that asks."""
        return self._shared.start(self._known(work))

    def close(self) -> None:
        """Cancel work that is not done, and close the file of answers when it has ended."""
        self._shared.start(self._ended()).result()
        self._cache.close()

    def tell(self, done: str) -> None:
        """Print a line on how far a step has come."""
        counts, limit = self._server.counts, self._server.limit
        rate = counts.requests / max(1e-9, time.monotonic() - self._begun)
        _tell(f"{done}; {counts.requests:,} requests sent ({rate:.1f}/s, {counts.tried_again:,} of them again), "
              f"{int(limit.now)} of {limit.most} at once")  # fmt: skip

    async def _known(self, work: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await work
        finally:
            self._tasks.remove(task)

    async def _ended(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def chat(self, message: str, sampling: dict[str, Any], prompt: str, sample: int) -> Asked:
        """The answer to one user message.

        An answer is kept by the request that was sent. Of a server that refuses the wanted form that is one of a looser
        form, which is looked for as well, so that nothing is asked twice.

        Args:
            message: what is asked.
            sampling: other keys of the request.
            prompt: the prompt's hash.
            sample: number of the independent answer.

        Raises:
            NoAnswerError, RefusedError, UserError: as `AsyncServer.chat`.
        """
        message = message.encode("utf-8", "replace").decode()  # halves of surrogate pairs, of an earlier answer's JSON
        messages = [{"role": "user", "content": message}]
        choices = looser(sampling)
        keys = [answer_key(self._model.name, messages, one, prompt, sample) for one in choices]
        while keys[0] in self._under_way:
            await asyncio.wait([self._under_way[keys[0]]])
        found = self._kept(keys)
        if found is None:
            self._under_way[keys[0]] = asyncio.get_running_loop().create_future()
            try:
                found = await self._shared.ask(
                    [{"model": self._model.name, "messages": messages, **one} for one in choices]
                )
                self._cache.put(keys[found[0]], *found[1])
            finally:
                self._under_way.pop(keys[0]).set_result(None)
        number, (body, seconds) = found
        return Asked(read_chat(body), seconds, FORM in sampling and FORM not in choices[number])

    def _kept(self, keys: Sequence[bytes]) -> tuple[int, tuple[Any, float]] | None:
        """The first of some answers that was given before, and which it is."""
        kept = ((number, self._cache.get(key)) for number, key in enumerate(keys))
        return next(((number, one) for number, one in kept if one is not None), None)


def answer_file(rank: int, tasks: int) -> str:
    """Name of a task's file of answers."""
    return f"{rank:05d}-of-{tasks:05d}{SUFFIX}"


def open_answers(folder: Path, rank: int, tasks: int) -> AnswerCache:
    """The answers of a task; those of a pilot, and of a run with other tasks, are looked into too."""
    own = f"-of-{tasks:05d}{SUFFIX}"
    others: Sequence[Path] = sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.endswith(own))
    if others:
        _allow_open_files()
    return AnswerCache(folder / answer_file(rank, tasks), others)


def _allow_open_files() -> None:
    """As many as the system lets this process have: each file of answers takes three, and there is one a task."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
