"""Questions written by a model behind an OpenAI-compatible server, checked against the passages, kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import time
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx

from nano3.config.errors import UserError
from nano3.data.document_questions import Documents
from nano3.data.questions import Question
from nano3.files import write_atomic

PASSAGE = 1500
"""Characters of a passage that is sent."""
LONGEST_ANSWER, LONGEST_QUESTION = 160, 300
ATTEMPTS = 5
AT_ONCE = 8
TIMEOUT = 120.0
"""Seconds without a byte before a request is given up."""
PROMPT = """Here is a passage from a longer text.

<passage>
{passage}
</passage>

Write two questions that a reader can answer from this passage alone, and that would not fit other passages: name in
the question what it is about, and never mention "the passage". Each answer is a short stretch copied letter by letter
from the passage. Reply with JSON only:
[{{"question": "...", "answer": "..."}}, {{"question": "...", "answer": "..."}}]"""


class QuestionWriter:
    """Asks a server; the same passage is never sent twice to the same model."""

    def __init__(self, url: str, model: str, cache: Path, wait: float = 1.0) -> None:
        """`wait`: seconds before the second attempt, doubled before each further one; the key is in NANO3_API_KEY.

        Raises:
            UserError: `url` is no address, or no model is named and the server lists none.
        """
        base = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
        key = os.environ.get("NANO3_API_KEY", "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._http = httpx.Client(base_url=base, headers=headers, timeout=httpx.Timeout(TIMEOUT, connect=10.0))
        except (httpx.InvalidURL, ValueError) as error:
            raise UserError(f"data.generate.url {url!r} is no address of a server: {error}") from error
        self._url, self._wait, self._cache = base, wait, cache
        self._model = model or self._first_model()

    def ask(self, documents: Documents, n_questions: int, rng: random.Random) -> list[Question]:
        """At most `n_questions` about places spread evenly over the documents; see nano3.data.document_texts.Writer.

        Raises:
            UserError: the server refuses, or does not answer after several attempts.
        """
        places = list(_places(documents, -(-n_questions // 2), rng))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            written = list(pool.map(self.write, [passage for _, _, passage in places]))
        questions: list[Question] = []
        for (document, start, passage), pairs in zip(places, written, strict=True):
            for question, answer in pairs:
                made = _checked(documents, document, start, passage, question, answer)
                if made is not None:
                    questions.append(made)
        return questions

    def write(self, passage: str) -> list[tuple[str, str]]:
        """(question, answer) of a passage, from the cache where it was asked for before; unusable ones left out."""
        prompt = PROMPT.format(passage=passage)
        name = hashlib.blake2b(f"{self._model}\0{prompt}".encode(), digest_size=16).hexdigest()
        path = self._cache / name[:2] / f"{name}.json"
        if path.is_file():
            return [(question, answer) for question, answer in json.loads(path.read_text("utf-8"))]
        body = {"model": self._model, "messages": [{"role": "user", "content": prompt}], "temperature": 0.0}
        reply = self._request("POST", "/v1/chat/completions", body | {"max_tokens": 400})
        try:
            content = reply["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self._url} answers, but not as an OpenAI-compatible server: no message in it") from error
        pairs = [(q, a) for q, a in _pairs(content) if _usable(q, a, passage)]
        write_atomic(path, json.dumps(pairs, ensure_ascii=False))
        return pairs

    def _first_model(self) -> str:
        listed = self._request("GET", "/v1/models")
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self._url}/v1/models lists no model: name one in data.generate.model") from error

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """JSON of a reply; network failures, 408, 429 and 5xx are tried again."""
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self._wait * 2 ** (attempt - 1))
            try:
                reply = self._http.request(method, path, json=body)
                if reply.status_code < 400:
                    return reply.json()
                reason = f"status {reply.status_code}: {reply.text.strip()[:200]}"
                if reply.status_code not in (408, 429) and reply.status_code < 500:
                    raise UserError(f"{self._url}{path} refuses ({reason}); its key is read from NANO3_API_KEY")
            except UserError:
                raise
            except (httpx.HTTPError, ValueError) as error:
                reason = str(error) or type(error).__name__
        raise UserError(
            f"{self._url}{path} gave no answer in {ATTEMPTS} attempts ({reason}): run the same command again when it "
            "does; what it wrote so far is kept"
        )


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


def _pairs(content: str) -> Iterator[tuple[str, str]]:
    """Questions and answers of the JSON list in a reply, whatever stands around it."""
    match = re.search(r"\[.*\]", content, re.DOTALL)
    try:
        listed = json.loads(match[0]) if match else []
    except ValueError:
        return
    for item in listed:
        if isinstance(item, dict) and isinstance(item.get("question"), str) and isinstance(item.get("answer"), str):
            yield " ".join(item["question"].split()), item["answer"].strip()


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
