"""Filters by a yes-or-no question to a model, as JSON or by the probability of its first word."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import Answer, DropError
from nano3.curate.ask.forms import json_form, one_of, sentence
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.steps.llm.replies import gathered, json_object
from nano3.data.chat.conversation import RowError, read_conversation

YES, NO = "yes", "no"
FORMS = {
    "json": 'Reply with a JSON object and nothing else: {"reason": one sentence, "verdict": "yes" or "no"}.',
    "logprobs": "Reply with one word: yes or no.",
}
"""What a prompt's field {form} becomes."""
ONE_WORD = {"logprobs": True, "top_logprobs": 20}
VERDICT = json_form("verdict", {"reason": sentence(), "verdict": one_of((YES, NO))})
"""The same as a schema, for servers that hold the model to it."""
OMITTED = "\n\n[...]\n\n"


@dataclass(frozen=True)
class JudgeSettings(AskSettings):
    """Settings of `judge`."""

    temperature: float = 0.0
    """Of sampling; 0: the likeliest token. Several passes need more."""
    prompt: str = "about-programming"
    """A yes-or-no question with the fields {text} and {form}: one of nano3's, or a file of your own. Yes: keep it."""
    answer: Literal["json", "logprobs"] = "json"
    """A reason and a verdict as JSON; or one word, and yes when yes is likelier than no."""
    passes: int = 1
    """Independent answers for each document, which must agree."""
    disagreement: Literal["drop", "keep"] = "drop"
    """What becomes of a document on which the passes disagree."""
    shown: int = 8_000
    """Characters of a document that the model sees: of a longer one the beginning and the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("", self, ">=", 1, "passes")
        check("", self, ">=", 100, "shown")
        if self.passes > 1 and self.temperature == 0:
            raise ValueError(".passes is above 1 at temperature 0: all passes would say the same")
        if self.passes > 1 and self.answer == "logprobs":
            raise ValueError('.passes is above 1 with answer = "logprobs": a probability needs no second pass')


class Judge(AskStep):
    """Keeps the documents for which the model's answer to a question is yes; the passes that disagree are counted.

    Metadata: `judged` maps the prompt's name to the share of yes, or with log-probabilities to yes's probability.
    """

    Settings = JudgeSettings

    def prompts(self) -> Mapping[str, tuple[str, ...]]:
        """The one of the settings."""
        return {self.settings.prompt: ("text", "form")}

    def subject(self, document: Document) -> str:
        """What the question is about. Raises DropError where the document has no such thing."""
        return document.text

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The document, if the model says yes."""
        name, settings = self.settings.prompt, self.settings
        subject = self.subject(document)
        if len(subject) > settings.shown:
            self.note("texts judged by their beginning and end")
        values = {"text": shortened(subject, settings.shown), "form": FORMS[settings.answer]}
        body = ONE_WORD if settings.answer == "logprobs" else VERDICT
        asked = [ask(name, values, sample=sample, body=body) for sample in range(settings.passes)]
        scores = [self._score(answer) for answer in await gathered(asked)]
        verdicts = {score > 0.5 for score in scores}
        if len(verdicts) > 1:
            self.note("documents on which the passes disagree")
            if settings.disagreement == "drop":
                raise DropError("passes disagree")
        elif not verdicts.pop():
            raise DropError(f"judged no: {name}")
        score = round(sum(scores) / len(scores), 4)
        document.metadata["judged"] = {**(document.metadata.get("judged") or {}), name: score}
        return [document]

    def _score(self, answer: Answer) -> float:
        """1 for yes and 0 for no, or the probability of yes."""
        if self.settings.answer == "logprobs":
            if answer.reasoning:
                self.note("documents about which the model reasoned before it said yes or no")
            return yes_probability(answer.choice, answer.text)
        verdict = str(json_object(answer.text).get("verdict", "")).strip().lower()
        if verdict not in (YES, NO):
            raise DropError("no verdict in the reply")
        return float(verdict == YES)


@dataclass(frozen=True)
class InformativeSettings(JudgeSettings):
    """Settings of `informative`: those of `judge`."""

    prompt: str = "informative"
    """The question: one of nano3's, or a file of your own. Yes: keep it."""


class Informative(Judge):
    """The later filter of uninformative texts (report section 2.2.3), whose share of tokens the report publishes."""

    Settings = InformativeSettings


class JudgeConversation(Judge):
    """The same of conversations; the model sees them as text, with tools, calls and results."""

    def subject(self, document: Document) -> str:
        """The conversation, turn by turn."""
        try:
            conversation = read_conversation(json.loads(document.text), document.id)
        except RowError as error:
            raise DropError(error.reason) from error
        return conversation_text(conversation.messages, conversation.tools)


def yes_probability(choice: Mapping[str, Any], answer: str = "") -> float:
    """Probability of yes, given that the first token of the answer says yes or no.

    Args:
        choice: as the server gave it; the tokens of reasoning may stand before those of the answer.
        answer: without its reasoning; empty: the tokens are those of the answer alone.

    Raises:
        DropError: the answer has no log-probabilities, or neither word among them.
    """
    try:
        tokens = choice["logprobs"]["content"]
        first = tokens[_first([str(one.get("token") or "") for one in tokens], answer)]["top_logprobs"]
        found = [(_word(one["token"]), float(one["logprob"])) for one in first]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DropError("no log-probabilities in the reply") from error
    yes, no = (sum(math.exp(logprob) for token, logprob in found if token == word) for word in (YES, NO))
    if yes + no == 0:
        raise DropError("no verdict in the reply")
    return yes / (yes + no)


def _first(tokens: Sequence[str], answer: str) -> int:
    """Which of the tokens is the first with a letter of the answer, which they end with."""
    begins = "".join(tokens).rfind(answer) if answer else 0
    read = 0
    for index, token in enumerate(tokens):
        read += len(token)
        if read > begins and _word(token):
            return index
    return 0


def _word(token: str) -> str:
    return token.strip().strip('"*').lower()


def shortened(text: str, most: int) -> str:
    """A text, or of a longer one the beginning and the end, with the gap marked."""
    if len(text) <= most:
        return text
    end = most // 3
    return text[: most - end] + OMITTED + text[-end:]


def conversation_text(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
    """A conversation to read: tools as JSON, then each message below its role, with reasoning and calls."""
    parts = [f"## tools\n{json.dumps(list(tools), ensure_ascii=False)}"] if tools else []
    for message in messages:
        said = [f"## {message['role']}"]
        if message.get("reasoning_content"):
            said.append(f"(reasoning) {message['reasoning_content']}")
        content = message.get("content")
        said += [content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)] if content else []
        for call in message.get("tool_calls") or ():
            said.append(f"(call) {json.dumps(call.get('function', call), ensure_ascii=False, default=str)}")
        parts.append("\n".join(said))
    return "\n\n".join(parts)
