"""The frame of steps that ask a language model: many documents at once, in and out in the same order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from datatrove.data import Document

from nano3.client.asynchronous import FORM, RefusedError
from nano3.client.attempts import NoAnswerError
from nano3.client.chat import ChatAnswer
from nano3.config.checks import check
from nano3.curate.ask.answers import CUT, KEPT_BACK, NOTHING, REFUSED, SILENT, Answer, DropError, usable
from nano3.curate.ask.asker import Asker, connection, open_answers
from nano3.curate.ask.model import no_model
from nano3.curate.ask.prompts import Prompt, check_fields
from nano3.curate.step import Context, Step

Meter = Callable[[Document, str, ChatAnswer, float], None]
"""Document, message, answer, seconds that the answer took up a place."""
LEAST_WINDOW, WINDOW_SHARE = 256, 16
"""Documents under way or waiting for an earlier one: so many, or so many for each request under way."""
MOST_TEXT = 64 << 20
"""Characters of all of them, above which there are only as many as requests."""
TOLD_SECONDS = 10.0
"""Between two lines on how far a step has come, times the workers, each of which has its own."""
ASKED = "asked"
"""In a document's metadata: what each step asked for it."""
PARENTS = "_parents"
FORMLESS = f"answers asked for without {FORM}, which the server refuses"
"""Note of the report."""


@dataclass(frozen=True)
class AskSettings:
    """Settings of every step that asks a model; subclasses add their own."""

    temperature: float = 0.7
    """Of sampling; 0: the likeliest token."""
    top_p: float = 1.0
    """Share of the probability that sampling draws from."""
    max_tokens: int = 2048
    """Tokens of an answer, its reasoning among them; one that is cut is asked for once more with twice as many."""

    def __post_init__(self) -> None:
        check("", self, ">=", 0, "temperature")
        check("", self, ">", 0, "top_p")
        check("", self, "<=", 1, "top_p")
        check("", self, ">=", 1, "max_tokens")


class AskStep(Step):
    """A step that asks a language model. A subclass says what in `write`, with prompts that it names in `PROMPTS`.

    Documents are written at the same time and go on in the order in which they came.
    """

    Settings: ClassVar[type] = AskSettings
    PROMPTS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Name of each prompt -> its fields."""

    def __init__(self, settings: Any, context: Context) -> None:
        """A step with its settings; its prompts are read and checked.

        Raises:
            UserError: no such prompt, or one with other fields.
        """
        super().__init__(settings, context)
        self.meter: Meter | None = None
        """Is told of every answer; of a pilot."""
        self.loaded = {one.name: one for one in check_fields(self.prompts(), f"step '{context.label}'")}

    def prompts(self) -> Mapping[str, tuple[str, ...]]:
        """Name of each prompt that these settings use -> its fields."""
        return self.PROMPTS

    def prompt_hashes(self) -> dict[str, str]:
        """Name -> hash of the prompts."""
        return {name: self.loaded[name].hash for name in sorted(self.loaded)}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """What becomes of a document: itself, changed or not, or others (`child`) in its place.

        Raises:
            DropError: the document is dropped, for this reason; `ask` raises it too.
        """
        raise NotImplementedError

    def child(
        self, document: Document, text: str, suffix: str, parents: Sequence[str] = (), **metadata: Any
    ) -> Document:
        """A document made of another one: `id/suffix`, with its metadata and some more.

        Args:
            document: the one that it is made of.
            text: of the new one.
            suffix: tells it from its siblings.
            parents: ids of all that it is made of; empty: of `document` alone.
            metadata: beside, or in place of, the parent's.
        """
        kept = {key: value for key, value in document.metadata.items() if key != "_record"}
        return Document(text, f"{document.id}/{suffix}", metadata=kept | metadata | {PARENTS: list(parents)})

    def process(self, documents: Iterator[Document]) -> Iterator[Document]:
        """What was written, in the order of the documents."""
        model = self.context.server
        if model is None:
            raise no_model(self.context.label)
        concurrency = max(1, model.concurrency // self.workers)
        with connection(model, concurrency) as shared:
            cache = open_answers(model.answers, self.rank, self.context.tasks)
            asker = Asker(model, shared, cache)
            window = _Window(concurrency)
            told = time.monotonic()
            try:
                for document in documents:
                    window.add(document, asker.start(self._written(document, asker)))
                    while window.is_ready():
                        yield from self._result(*window.pop())
                    told = self._tell(asker, window, told)
                while window:
                    yield from self._result(*window.pop())
                    told = self._tell(asker, window, told)
            finally:
                asker.close()

    def _tell(self, asker: Asker, window: _Window, told: float) -> float:
        """Print how far this task is where it is time for it; when the last line was printed."""
        now = time.monotonic()
        if now - told <= TOLD_SECONDS * self.workers:
            return told
        read = window.done + len(window)
        asker.tell(f"{self.context.label}, task {self.rank}: {window.done:,} of {read:,} documents read so far done")
        return now

    async def _written(self, document: Document, asker: Asker) -> Sequence[Document]:
        ask = Ask(self, asker, document)
        parent, before = document.id, document.text
        try:
            written = list(await self.write(document, ask))
        except DropError as error:
            error.reply = error.reply or ask.last_reply
            raise
        if document.text != before:
            document.metadata.pop("_record", None)  # what a model wrote is a text, no record any more
        entry = ask.entry()
        for one in written:
            parents = one.metadata.pop(PARENTS, None) or [parent]
            earlier = one.metadata.get(ASKED) or []
            one.metadata[ASKED] = [*earlier, entry | {"parents": parents}]
        return written

    def _result(self, document: Document, future: Future[Sequence[Document]]) -> Sequence[Document]:
        try:
            written = future.result()
        except DropError as error:
            self.drop(document, error.reason, error.reply)
            return []
        if not written:
            self.drop(document, NOTHING)
        else:
            self.ledger.becomes(document, written)
        return written


class _Window:
    """Documents that are being written, the oldest first.

    Attributes:
        done: how many were taken out.
    """

    def __init__(self, concurrency: int) -> None:
        """An empty one, for so many requests at once."""
        self._fewest, self._most = concurrency, max(LEAST_WINDOW, WINDOW_SHARE * concurrency)
        self._items: deque[tuple[Document, Future[Sequence[Document]], int]] = deque()
        self._characters = self.done = 0

    def add(self, document: Document, future: Future[Sequence[Document]]) -> None:
        """One more is being written."""
        size = len(document.text)
        self._items.append((document, future, size))
        self._characters += size

    def is_ready(self) -> bool:
        """Whether the oldest is to be taken out: it is done, or there are enough."""
        n = len(self._items)
        full = n >= self._most or (self._characters > MOST_TEXT and n >= self._fewest)
        return n > 0 and (full or self._items[0][1].done())

    def pop(self) -> tuple[Document, Future[Sequence[Document]]]:
        """The oldest."""
        document, future, size = self._items.popleft()
        self._characters -= size
        self.done += 1
        return document, future

    def __len__(self) -> int:
        return len(self._items)


class Ask:
    """Asks a model for one document."""

    def __init__(self, step: AskStep, asker: Asker, document: Document) -> None:
        """Ask for a step."""
        self._step, self._asker, self._document = step, asker, document
        self._used: dict[str, dict[str, Any]] = {}
        self._replies: list[str] = []

    @property
    def last_reply(self) -> str:
        """Of all requests, in the order in which they were begun, the last one's reply; empty: none came."""
        return next((reply for reply in reversed(self._replies) if reply), "")

    async def __call__(
        self,
        name: str,
        values: Mapping[str, object],
        *,
        max_tokens: int | None = None,
        sample: int = 0,
        body: Mapping[str, Any] | None = None,
        again: bool = True,
    ) -> Answer:
        """The model's answer to a prompt.

        Args:
            name: of one of the step's prompts.
            values: for each of its fields.
            max_tokens: of the answer; None: as the settings say.
            sample: another number is another independent answer.
            body: other keys of the request, such as `response_format`; they come before the settings.
            again: whether an answer that is cut is asked for once more, with twice the tokens.

        Raises:
            DropError: no answer that can be used.
        """
        step, number = self._step, len(self._replies)
        self._replies.append("")
        prompt = step.loaded[name]
        message = prompt.filled(values)
        limit = max_tokens or step.settings.max_tokens
        given = {key: value for key, value in (body or {}).items() if key != FORM}
        given |= {"max_tokens": limit} if max_tokens else {}
        self._used[name] = given
        sampling = {"temperature": step.settings.temperature, "top_p": step.settings.top_p} | dict(body or {})
        answer = await self._asked(message, sampling | {"max_tokens": limit}, prompt, sample)
        if answer.finish_reason == "length" and again:
            answer = await self._asked(message, sampling | {"max_tokens": 2 * limit}, prompt, sample, again=True)
        self._replies[number] = answer.text or answer.reasoning
        if answer.finish_reason == "length":
            raise DropError(CUT, self._replies[number])
        return usable(answer, message, prompt.fixed())

    def entry(self) -> dict[str, Any]:
        """What was asked, for the metadata."""
        step = self._step
        settings = asdict(step.settings)
        assert step.context.server is not None
        given = {name: self._used[name] for name in sorted(self._used) if self._used[name]}
        return {
            "step": step.context.label,
            "prompts": {name: step.loaded[name].hash for name in sorted(self._used)},
            "model": step.context.server.name,
            "sampling": {key: settings[key] for key in ("temperature", "top_p", "max_tokens")} | given,
        }

    async def _asked(
        self, message: str, sampling: dict[str, Any], prompt: Prompt, sample: int, again: bool = False
    ) -> ChatAnswer:
        try:
            answer, seconds, formless = await self._asker.chat(message, sampling, prompt.hash, sample)
        except NoAnswerError as error:
            raise DropError(SILENT, str(error)) from error
        except RefusedError as error:
            refused = KEPT_BACK if error.filtered else f"{REFUSED} (HTTP {error.status})"
            raise DropError(CUT if again and not error.filtered else refused, str(error)) from error
        if self._step.meter:
            self._step.meter(self._document, message, answer, seconds)
        self._step.note("answers of the model")
        if formless:
            self._step.note(FORMLESS)
        self._step.note("tokens sent", answer.prompt_tokens)
        self._step.note("tokens written", answer.completion_tokens)
        return answer
