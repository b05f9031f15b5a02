"""Records to encoded rows on all cores, in the order of the records."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from nano3.config.errors import UserError
from nano3.config.sft import SftConfig
from nano3.cores import usable_cores
from nano3.data.chat.conversation import RowError
from nano3.data.chat.maker import RowMaker
from nano3.data.chat.records import Record
from nano3.data.chat.rows import EncodedRow
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.installation import module_command

ALONE = 1000
"""Records of a data set that are encoded here, before it is worth starting processes."""
BATCH = 16
"""Records that a process is sent at a time; with long traces these are some megabytes."""
AHEAD = 2
"""Batches under way for each process."""


class Kept(NamedTuple):
    """A row that a record became."""

    encoded: EncodedRow
    heldout: bool
    cut: bool
    reasoning: str
    """What became of its reasoning; empty for none."""


class Outcome(NamedTuple):
    """What a record became."""

    kept: list[Kept]
    refused: list[tuple[str, str, str]]
    """Name, reason and detail of the record, or of each of its rows, that is left out."""


def outcome_of(record: Record, maker: RowMaker) -> Outcome:
    """Encode one record."""
    refused: list[tuple[str, str, str]] = []

    def refuse(name: str, error: RowError) -> None:
        refused.append((name, error.reason, str(error)))

    rows = maker.rows(record, refuse)
    return Outcome([Kept(row.encoded, row.heldout, row.cut, row.turn.reasoning) for row in rows], refused)


class Encoders:
    """Context manager: encodes the records of one data set after another, by processes that end with it."""

    def __init__(self, cfg: SftConfig, tokenizer: Tokenizer, processes: int = 0) -> None:
        """Nothing is started yet.

        Args:
            cfg, tokenizer: as for RowMaker.
            processes: how many at the most; 0: as many as there are cores.

        Raises:
            UserError: as RowMaker.
        """
        self._maker = RowMaker(cfg, tokenizer)
        self._begin = pickle.dumps((cfg, tokenizer))
        self._count = processes or usable_cores()
        self._threads: ThreadPoolExecutor | None = None
        self._running: list[_Process] = []
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._running:
            process.end()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def outcomes(self, records: Iterator[Record]) -> Iterator[Outcome]:
        """What each record becomes, in their order.

        Raises:
            UserError: a process ended before its work was done.
        """
        alone = 0 if self._running else ALONE
        for record in itertools.islice(records, None if self._count == 1 else alone):
            yield outcome_of(record, self._maker)
        under_way: deque[Future[list[Outcome]]] = deque()
        while batch := list(itertools.islice(records, BATCH)):
            under_way.append(self._pool().submit(self._ask, batch))
            if len(under_way) >= AHEAD * self._count:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()

    def _pool(self) -> ThreadPoolExecutor:
        """One thread for each process, which waits for its answers; both are started here the first time."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="nano3-encode")
            for _ in range(self._count):
                self._running.append(_Process(self._begin))
                self._idle.put(self._running[-1])
        return self._threads

    def _ask(self, batch: Sequence[Record]) -> list[Outcome]:
        process = self._idle.get()
        try:
            return process.ask(batch)
        finally:
            self._idle.put(process)


class _Process:
    """Runs `main` below; it ends when its input does, so it never outlives this process."""

    def __init__(self, begin: bytes) -> None:
        pipe, own = subprocess.PIPE, {"TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            module_command(__name__), stdin=pipe, stdout=pipe, env=os.environ | own, bufsize=-1
        )
        self._begin = begin

    def ask(self, batch: Sequence[Record]) -> list[Outcome]:
        """The outcomes of a batch. Raises UserError where the process has ended."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        try:
            requests.write(self._begin)
            self._begin = b""
            pickle.dump(batch, requests, pickle.HIGHEST_PROTOCOL)
            requests.flush()
            return pickle.load(answers)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise UserError(
                f"a process that encodes rows ended ({f'signal {-code}' if code < 0 else f'exit code {code}'}); "
                "it may have lacked memory: with fewer cores (taskset) there are fewer of them"
            ) from error

    def end(self) -> None:
        """Whatever it is at: nobody waits for it any more."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def main() -> None:
    """Answer batches of records from stdin on stdout, both pickled, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    cfg, tokenizer = pickle.load(requests)
    tokenizer.inner.encode_special_tokens = True  # pickling forgets it
    maker = RowMaker(cfg, tokenizer)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            batch = pickle.load(requests)
            pickle.dump([outcome_of(record, maker) for record in batch], answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
