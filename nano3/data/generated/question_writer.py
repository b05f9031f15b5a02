"""Questions written by a model behind an OpenAI-compatible server, checked against the passages, kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

from nano3.client.attempts import NoAnswerError, Tries
from nano3.client.replies import listed_models
from nano3.client.server import Server, base_address
from nano3.config.errors import UserError
from nano3.data.generated.document_questions import Documents
from nano3.data.generated.questions import Question
from nano3.files import write_atomic
from nano3.reading import parse_json, read_json

ATTEMPTS = 5
DEADLINE = 900.0
"""Seconds for all attempts at one reply."""
PASSAGE = 1500
"""Characters of a passage that is sent."""
LONGEST_ANSWER, LONGEST_QUESTION = 160, 300
AT_ONCE = 8
MAX_TOKENS = 400
VERSION = 1
"""Raised with every change of what is sent or kept, so that passages are asked about anew."""
CUT, UNUSABLE, AMBIGUOUS, UNFOUND = (
    "replies of the question server (cut off or no list)",
    "written questions (answer not in the passage, too long, or given away)",
    "written questions (asked twice, with two answers)",
    "written questions (the line of the answer occurs twice)",
)
PROMPT = """Here is a passage from a longer text.

<passage>
{passage}
</passage>

Write two questions that a reader can answer from this passage alone, and that would not fit other passages: name in
the question what it is about, and never mention "the passage". Each answer is a short stretch copied letter by letter
from the passage. Reply with JSON only:
[{{"question": "...", "answer": "..."}}, {{"question": "...", "answer": "..."}}]"""


class ServerSilentError(UserError):
    """The server cannot be reached, or gave no answer in time."""


class QuestionWriter:
    """Asks a server; a passage that was answered is never sent again to the same model.

    Attributes:
        requests: requests for questions so far, attempts at the same one counted once.
        dropped: how many of what came back could not be used, by reason.
    """

    def __init__(self, url: str, model: str, cache: Path, wait: float = 1.0, deadline: float = DEADLINE) -> None:
        """`wait`: seconds before the second attempt, doubled before each further one; the key is in NANO3_API_KEY.

        Raises:
            UserError: `url` is no address, or no model is named and the server lists none.
        """
        key = os.environ.get("NANO3_API_KEY", "").strip()
        tries = Tries(ATTEMPTS, first_wait=wait, longest_wait=math.inf, deadline=deadline, json_only=True)
        self._server = Server(
            base_address(url, "data.generate.url"),
            key,
            tries=tries,
            key_names="NANO3_API_KEY",
            url_name="data.generate.url",
            proxies=True,
        )
        self._cache = cache
        self._model = model or self._first_model()
        self._lock = Lock()
        self.requests = 0
        self.dropped: Counter[str] = Counter()

    def ask(self, documents: Documents, n_questions: int, rng: random.Random) -> list[Question]:
        """At most `n_questions` about places spread evenly over the documents; see document_texts.Writer.

        Raises:
            UserError: the server refuses, or does not answer after several attempts.
        """
        places = list(_places(documents, -(-n_questions // 2), rng))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            written = list(pool.map(self.write, [passage for _, _, passage in places]))
        answers: dict[str, set[str]] = {}
        for question, answer in (pair for pairs in written for pair in pairs):
            answers.setdefault(question.casefold(), set()).add(answer)
        questions: dict[str, Question] = {}
        for (document, start, passage), pairs in zip(places, written, strict=True):
            for question, answer in pairs:
                made = _checked(documents, document, start, passage, question, answer)
                if len(answers[question.casefold()]) > 1 or question.casefold() in questions:
                    self._drop(AMBIGUOUS)
                elif made is None:
                    self._drop(UNFOUND)
                else:
                    questions[question.casefold()] = made
        return list(questions.values())

    def write(self, passage: str) -> list[tuple[str, str]]:
        """(question, answer) of a passage, from the cache where it was answered before; unusable ones left out."""
        prompt = PROMPT.format(passage=passage)
        key = json.dumps([VERSION, self._model, MAX_TOKENS, prompt])
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        path = self._cache / name[:2] / f"{name}.json"
        if path.is_file():
            pairs = [(question, answer) for question, answer in read_json(path)]
        else:
            pairs = self._written(prompt)
            if pairs is None:
                self._drop(CUT)
                return []
            write_atomic(path, json.dumps(pairs, ensure_ascii=False))
        usable = [(question, answer) for question, answer in pairs if _usable(question, answer, passage)]
        self._drop(UNUSABLE, len(pairs) - len(usable))
        return usable

    def state(self) -> str:
        """What was asked for and dropped so far, for an error."""
        lost = [f"{n} {reason}" for reason, n in sorted(self.dropped.items())]
        return f"{self.requests} requests; dropped: {', '.join(lost) or 'none'}"

    def _written(self, prompt: str) -> list[tuple[str, str]] | None:
        """All pairs of a reply; None where it was cut off or has no list."""
        with self._lock:
            self.requests += 1
        body = {"model": self._model, "messages": [{"role": "user", "content": prompt}], "temperature": 0.0}
        reply = self._ask("POST", "/v1/chat/completions", body | {"max_tokens": MAX_TOKENS})
        try:
            choice = reply["choices"][0]
            content, ended = choice["message"]["content"] or "", choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self._server.url} answers, but not as an OpenAI-compatible server: no message in it"
            ) from error
        return _pairs(content) if ended == "stop" else None

    def _drop(self, reason: str, n: int = 1) -> None:
        with self._lock:
            self.dropped[reason] += n

    def _first_model(self) -> str:
        models = listed_models(self._ask("GET", "/v1/models"))
        if not models:
            raise UserError(f"{self._server.url}/v1/models lists no model: name one in data.generate.model")
        return next(iter(models))

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """JSON of a reply. Raises ServerSilentError where there is none, UserError where the server refuses."""
        server = self._server
        try:
            reply = server.request(method, path, body)
        except NoAnswerError as error:
            raise ServerSilentError(
                f"{server.url}{path} gave {error}: run the same command again when it does; what it wrote is kept"
            ) from error
        server.check_way(reply, path)
        if reply.status >= 400:
            raise UserError(f"{server.url}{path} refuses (HTTP {reply.status}: {server.error_text(reply)})")
        return reply.json()


def _places(documents: Documents, n: int, rng: random.Random) -> Iterator[tuple[int, int, str]]:
    """(document, first character, passage) of `n` passages spread evenly, fewer where documents are closed or short."""
    ends = list(accumulate(len(text) for text in documents.texts))
    seen: set[tuple[int, int]] = set()
    for i in range(n):
        place = int((i + rng.random()) / n * ends[-1])
        document = min(bisect_right(ends, place), len(ends) - 1)
        text = documents.texts[document]
        start = max(0, min(place - ends[document] + len(text), len(text) - PASSAGE // 2))
        start = text.rfind("\n", 0, start) + 1
        stop = text.rfind("\n", start, start + PASSAGE)
        stop = len(text) if len(text) - start <= PASSAGE else stop if stop > start else start + PASSAGE
        if document not in documents.closed and (document, start) not in seen and stop - start >= 100:
            seen.add((document, start))
            yield document, start, text[start:stop]


def _pairs(content: str) -> list[tuple[str, str]] | None:
    """Questions and answers of the JSON list in a reply, whatever stands around it; None where there is no list."""
    match = re.search(r"\[.*\]", content, re.DOTALL)
    try:
        listed = parse_json(match[0]) if match else None
    except ValueError:
        return None
    if not isinstance(listed, list):
        return None
    return [
        (" ".join(item["question"].split()), item["answer"].strip())
        for item in listed
        if isinstance(item, dict) and isinstance(item.get("question"), str) and isinstance(item.get("answer"), str)
    ]


def _usable(question: str, answer: str, passage: str) -> bool:
    return (
        0 < len(answer) <= LONGEST_ANSWER
        and 10 <= len(question) <= LONGEST_QUESTION
        and answer in passage
        and answer.lower() not in question.lower()
    )


def _checked(
    documents: Documents, document: int, start: int, passage: str, question: str, answer: str
) -> Question | None:
    """The question with the line around its answer as evidence; None where that line is not found once."""
    place = passage.index(answer)
    first = passage.rfind("\n", 0, place) + 1
    last = passage.find("\n", place + len(answer))
    evidence = passage[first : last if last >= 0 else len(passage)].strip()
    if not documents.once(evidence):
        return None
    return Question(
        "written", question, (answer,), (evidence,), (start + first) / len(documents.texts[document]), document
    )
