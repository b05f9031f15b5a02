"""One thread owns the engine; requests go in and updates come out through queues, a batch a step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from nano3.engine.protocol import GenerationEngine, Stats
from nano3.engine.request import Request, Update
from nano3.serve.stream import Stream

log = logging.getLogger(__name__)
SHUTTING_DOWN = "the server is shutting down"
MOST_AT_ONCE = 128
"""Outputs that one request may always ask for, however short the queue."""
Observer = Callable[[Stream, Update, float], None]
T = TypeVar("T")


class EngineFailedError(RuntimeError):
    """The engine broke in an earlier step and answers nothing any more."""


class BadGrammarError(ValueError):
    """The form that a request sets for its output cannot be enforced."""


class QueueFullError(RuntimeError):
    """As many sequences wait as may wait."""


class DrainingError(RuntimeError):
    """The server is about to end and takes nothing new."""


class _Change(NamedTuple):
    """What is to be done to the engine while it computes nothing."""

    action: Callable[[GenerationEngine], Any]
    done: asyncio.Future[Any]


class _Message(NamedTuple):
    kind: Literal["add", "abort", "abort_all", "change"]
    request_id: str = ""
    stream: Stream | None = None
    error: str = ""
    change: _Change | None = None


@dataclass
class _Live:
    """A request in the engine, as its thread sees it."""

    stream: Stream
    open: set[int]


class EngineThread:
    """Runs an engine for an asyncio program.

    Args:
        engine: from now on touched by this thread only.
        max_waiting: most sequences beyond those that run; None: no limit.
        observer: called in the event loop for each update that reaches a reader, with the time it came.
    """

    def __init__(
        self, engine: GenerationEngine, *, max_waiting: int | None = None, observer: Observer | None = None
    ) -> None:
        self.engine = engine
        self.max_waiting = max_waiting
        self.failure: BaseException | None = None
        """What ended the engine; None while it lives."""
        self.draining = False
        self.aborted = 0
        """Requests dropped before their end."""
        self._observer = observer
        self._stats = engine.stats()
        self._live: dict[str, _Live] = {}
        self._sequences = 0
        """Sequences submitted and not ended."""
        self._inbox: deque[_Message] = deque()
        self._changes: deque[_Change] = deque()
        self._held: list[Stream] = []
        """Submitted while a change waits; they run after it."""
        self._changed = threading.Condition()
        self._closing = False
        self._preparing = ThreadPoolExecutor(1, "nano3-prepare")
        self._thread = threading.Thread(target=self._run, name="nano3-engine", daemon=True)

    def start(self) -> EngineThread:
        """Begin to run what is submitted."""
        self._thread.start()
        return self

    @property
    def ready(self) -> bool:
        """Whether a request would be taken now, but for a full queue."""
        return self.failure is None and not self.draining and not self._closing and self._thread.is_alive()

    @property
    def queued(self) -> int:
        """Sequences submitted that the engine does not compute yet."""
        return max(0, self._sequences - self._stats.running)

    @property
    def unfinished(self) -> int:
        """Sequences submitted and not ended."""
        return self._sequences

    def stats(self) -> Stats:
        """The engine's counters as of its last step."""
        return self._stats

    def ensure_room(self, sequences: int) -> None:
        """Raise what `submit` of so many sequences would raise now."""
        self._ensure_open()
        if self.max_waiting is None:
            return
        most = max(self.max_waiting, MOST_AT_ONCE)
        if sequences > most:
            raise ValueError(f"the request asks for {sequences} outputs; at most {most} fit into one")
        # Places of the engine count as soon as they are spoken for, whether or not it has taken the sequences in yet.
        beyond = self._sequences - self._stats.max_running
        if beyond > 0 and beyond + sequences > self.max_waiting:
            raise QueueFullError(f"the queue is full ({beyond} of {self.max_waiting} waiting)")

    def _ensure_open(self) -> None:
        if self.draining or self._closing:
            raise DrainingError(SHUTTING_DOWN)
        if self.failure is not None:
            raise EngineFailedError(_reason(self.failure))

    async def submit(self, request: Request) -> Stream:
        """Hand a request to the engine; returns when it has been taken in.

        Raises:
            ValueError: it can never run, in one line.
            QueueFullError, DrainingError, EngineFailedError: not now.
        """
        return (await self.submit_all([request]))[0]

    async def submit_all(self, requests: Sequence[Request], arrived: asyncio.Event | None = None) -> list[Stream]:
        """`submit` of several: all are taken in, or none; `arrived` is set whenever updates of any of them come."""
        streams = [Stream(request, self.abort, arrived) for request in requests]
        sequences = sum(request.n for request in requests)
        self.ensure_room(sequences)
        for request in requests:
            await self._prepare(request)
        with self._changed:
            self.ensure_room(sequences)
            self._sequences += sequences
            self._inbox.extend(_Message("add", stream.request.id, stream) for stream in streams)
            self._changed.notify()
        try:
            await asyncio.gather(*(stream.accepted for stream in streams))
        except BaseException:
            for stream in streams:
                self.abort(stream.request.id)
            raise
        return streams

    async def _prepare(self, request: Request) -> None:
        """Compile a grammar beside the engine, one at a time, in a thread that nothing else waits for."""
        if request.sampling.grammar is None:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._preparing, self.engine.prepare, request)
        except ValueError as error:
            raise BadGrammarError(str(error)) from error

    async def change(self, action: Callable[[GenerationEngine], T]) -> T:
        """Call `action` with the engine once all requests that it has are done; those that come meanwhile wait, and run
        after it.

        Raises:
            DrainingError, EngineFailedError: not now; and what `action` raises, which does not end the engine.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._changed:  # in which the engine ends too: then nobody would answer
            self._ensure_open()
            self._post(_Message("change", change=_Change(action, done)))
        return await done

    def abort(self, request_id: str, error: str = "") -> None:
        """Drop a request before the next step; its reader gets finish `abort`, or `error` with a message."""
        self._post(_Message("abort", request_id, error=error))

    async def drain(self, seconds: float) -> bool:
        """Take nothing new, give accepted requests so long, end the rest with an error; whether none was left."""
        self.draining = True
        end = time.monotonic() + seconds
        while self._sequences and self.failure is None and time.monotonic() < end:
            await asyncio.sleep(0.02)
        left = self._sequences
        self._post(_Message("abort_all", error=SHUTTING_DOWN))
        return left == 0

    def close(self) -> None:
        """End the thread after its current step, and the engine with it."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._preparing.shutdown(wait=False)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _post(self, message: _Message) -> None:
        with self._changed:
            self._inbox.append(message)
            self._changed.notify()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wait_for_work()
                self._take_messages()
                self._make_changes()
                if self.engine.has_work and not self._closing:
                    self._step()
                self._stats = self.engine.stats()
        except BaseException as error:
            log.exception("the engine failed")
            self._end(error, EngineFailedError(_reason(error)))
        else:
            self._end(None, DrainingError(SHUTTING_DOWN))
        with contextlib.suppress(Exception):
            self.engine.close()

    def _wait_for_work(self) -> None:
        with self._changed:
            while not (self._inbox or self._changes or self._closing or self.engine.has_work):
                self._changed.wait()

    def _take_messages(self) -> None:
        while self._inbox:
            message = self._inbox.popleft()
            if message.change is not None:
                self._changes.append(message.change)
            elif message.stream is not None and self._changes:
                self._held.append(message.stream)
            elif message.stream is not None:
                self._add(message.stream)
            elif message.kind == "abort":
                self._drop(message.request_id, message.error)
            else:
                for request_id in [*self._live, *(stream.request.id for stream in self._held)]:
                    self._drop(request_id, message.error)

    def _make_changes(self) -> None:
        if not self._changes or self.engine.has_work:
            return
        while self._changes:
            change = self._changes.popleft()
            try:
                result = change.action(self.engine)
            except Exception as error:
                _call(change.done.get_loop(), _fail, change.done, error)
            else:
                _call(change.done.get_loop(), _finish, change.done, result)
        held, self._held = self._held, []
        for stream in held:
            self._add(stream)

    def _add(self, stream: Stream) -> None:
        try:
            self.engine.add(stream.request)
        except ValueError as error:
            self._forget(stream.request.n)
            _call(stream.loop, _fail, stream.accepted, error)
            return
        except BaseException as error:
            _call(stream.loop, _fail, stream.accepted, EngineFailedError(_reason(error)))
            raise
        self._live[stream.request.id] = _Live(stream, set(range(stream.request.n)))
        _call(stream.loop, _finish, stream.accepted)

    def _drop(self, request_id: str, error: str) -> None:
        live = self._live.pop(request_id, None)
        if live is None:
            for stream in [stream for stream in self._held if stream.request.id == request_id]:
                self._held.remove(stream)
                self._forget(stream.request.n)
                _call(stream.loop, _fail, stream.accepted, DrainingError(error or "the request was dropped"))
            return
        self.engine.abort(request_id)
        self.aborted += 1
        self._forget(len(live.open))
        self._tell_end(live, error)

    def _tell_end(self, live: _Live, error: str) -> None:
        finish = "error" if error else "abort"
        ends = [Update(live.stream.request.id, index, finish=finish, error=error) for index in sorted(live.open)]
        _call(live.stream.loop, _deliver, [(live.stream, end) for end in ends], time.perf_counter(), None)

    def _step(self) -> None:
        updates, now = self.engine.step(), time.perf_counter()
        batches: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Update]]] = {}
        for update in updates:
            live = self._live.get(update.request_id)
            if live is None:
                continue
            if update.finish is not None:
                live.open.discard(update.index)
                self._forget(1)
                if not live.open:
                    del self._live[update.request_id]
            batches.setdefault(live.stream.loop, []).append((live.stream, update))
        for loop, batch in batches.items():
            _call(loop, _deliver, batch, now, self._observer)
        for request_id, live in self._live.items():
            if not live.stream.last_at:
                live.stream.progress = self.engine.progress(request_id)

    def _forget(self, sequences: int) -> None:
        with self._changed:
            self._sequences -= sequences

    def _end(self, failure: BaseException | None, answer: RuntimeError) -> None:
        """Answer everybody that waits; who comes later is refused by `ensure_room`."""
        with self._changed:
            self._closing = self._closing or failure is None
            self.failure = failure
            messages, self._inbox = self._inbox, deque()
            self._sequences = 0
        streams = [message.stream for message in messages if message.stream is not None]
        for stream in (*self._held, *streams):
            _call(stream.loop, _fail, stream.accepted, answer)
        for change in (*self._changes, *(message.change for message in messages if message.change is not None)):
            _call(change.done.get_loop(), _fail, change.done, answer)
        for live in self._live.values():
            self._tell_end(live, str(answer))
        self._live.clear()


def _reason(failure: BaseException) -> str:
    return f"the engine has failed: {type(failure).__name__}: {failure}"


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: object) -> None:
    """Run a function in the event loop; one that has closed has nobody left to tell."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


def _finish(future: asyncio.Future[Any], result: Any = None) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _deliver(batch: Iterable[tuple[Stream, Update]], now: float, observer: Observer | None) -> None:
    for stream, update in batch:
        if stream.deliver(update) and observer is not None:
            observer(stream, update, now)
        if update.tokens:
            stream.last_at[update.index] = now
