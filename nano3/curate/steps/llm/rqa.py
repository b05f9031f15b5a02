"""Reasoning questions and answers (RQA) and diverse ones (DQA) from texts of the sciences (report section 2.2.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import Answer, DropError
from nano3.curate.ask.forms import json_form, one_of
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.steps.llm.judge import shortened
from nano3.curate.steps.llm.replies import is_english, json_object, says, without_preamble

FILTER, QUESTION, ANSWER = "rqa-filter", "reasoning-question", "reasoning-answer"
LEVELS = ("school", "undergraduate", "graduate", "research")
BLOOM = ("remember", "understand", "apply", "analyze", "evaluate", "create")
"""Levels of Bloom's taxonomy in its revised order."""
FLAGS = ("artefacts", "correct", "reasoning")
JUDGEMENT = json_form(
    "judgement",
    {"level": one_of(LEVELS), **{flag: {"type": "boolean"} for flag in FLAGS}, "bloom": one_of(BLOOM),
     "subject": {"type": "string", "pattern": "^[0-9]{3}$"}},
)  # fmt: skip
NONE = "NONE"
"""What the model writes where a text gives no question."""
_SPOKEN = re.compile(
    r"\b(?:the|this|that|these|our|above|following|given|provided)\s+"
    r"(?:(?:given|provided|above|following|short|original|preceding|present|accompanying)\s+)?"
    r"(?:text|passage|article|excerpt|paragraph|author|snippet)s?\b|"
    r"\b(?:assigned|provided|above|preceding|accompanying) readings?\b|"
    r"\b(?:in|according to|based on) the reading\b(?! (?:of|on|from|at)\b)|"  # else it is an instrument's
    r"\b(?:this|above|given|provided|following)\s+(?:document|source|section|chapter)\b|"
    r"\baccording to (?:this|the (?:text|source|document|section|chapter|study))\b|"
    r"\b(?:as )?(?:mentioned|described|discussed|stated|presented) (?:above|here)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class RqaFilterSettings(AskSettings):
    """Settings of `rqa-filter`. The criteria are the report's, the levels ours."""

    temperature: float = 0.0
    """Of sampling; 0: the likeliest token."""
    characters: int = 1000
    """That a text must have more than (the report's number)."""
    level: str = "undergraduate"
    """Least level of education: school, undergraduate, graduate or research."""
    bloom: str = "analyze"
    """Least level of Bloom's taxonomy: remember, understand, apply, analyze, evaluate or create."""
    shown: int = 8_000
    """Characters of a text that the model sees: of a longer one the beginning and the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("rqa-filter", self, ">=", 0, "characters")
        check("rqa-filter", self, ">=", 100, "shown")
        for name, known in (("level", LEVELS), ("bloom", BLOOM)):
            if getattr(self, name) not in known:
                raise ValueError(f"rqa-filter.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")


class RqaFilter(AskStep):
    """Keeps English texts that are long and advanced enough, reason, are correct and whole.

    Metadata: `rqa` has the levels; `subject` gets the number in the decimal classification where the document has none,
    for `stratified-sample`.
    """

    Settings = RqaFilterSettings
    PROMPTS: ClassVar[Mapping[str, tuple[str, ...]]] = {FILTER: ("text", "levels", "bloom")}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The document, if it is fit."""
        if len(document.text) <= self.settings.characters:
            raise DropError("too short")
        if not is_english(document.text):
            raise DropError("not English")
        values = {"text": shortened(document.text, self.settings.shown), "levels": ", ".join(LEVELS),
                  "bloom": ", ".join(BLOOM)}  # fmt: skip
        found = read_judgement(json_object((await ask(FILTER, values, body=JUDGEMENT)).text))
        if LEVELS.index(found["level"]) < LEVELS.index(self.settings.level):
            raise DropError("level too low")
        if found["artefacts"]:
            raise DropError("artefacts of extraction")
        if not found["correct"]:
            raise DropError("not correct")
        if not found["reasoning"]:
            raise DropError("no reasoning in it")
        if BLOOM.index(found["bloom"]) < BLOOM.index(self.settings.bloom):
            raise DropError("too low in Bloom's taxonomy")
        document.metadata["rqa"] = {key: found[key] for key in ("level", "bloom")}
        if document.metadata.get("subject") in (None, ""):
            document.metadata["subject"] = found["subject"]
        return [document]


def read_judgement(reply: Mapping[str, Any]) -> dict[str, Any]:
    """A judgement with all its parts, in the form in which they are compared.

    Raises:
        DropError: one is missing, or is none of the values that it may have.
    """
    level, bloom = (str(reply.get(key, "")).strip().lower() for key in ("level", "bloom"))
    subject = str(reply.get("subject", "")).strip()
    flags = {key: reply.get(key) for key in FLAGS}
    whole = level in LEVELS and bloom in BLOOM and re.fullmatch(r"\d{1,3}(?:\.\d+)?", subject)
    if not whole or not all(isinstance(value, bool) for value in flags.values()):
        raise DropError("no judgement in the reply")
    whole_number, point, decimals = subject.partition(".")
    return {"level": level, "bloom": bloom, "subject": whole_number.zfill(3) + point + decimals, **flags}


@dataclass(frozen=True)
class ReasoningQuestionSettings(AskSettings):
    """Settings of `reasoning-question`."""

    max_tokens: int = 1024
    """Tokens of a question, beside its reasoning."""
    reasoning_tokens: int = 8192
    """Tokens of reasoning that a question may take (the report's number)."""
    shown: int = 16_000
    """Characters of a text that the model sees: of a longer one the beginning and the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("reasoning-question", self, ">=", 1, "reasoning_tokens")
        check("reasoning-question", self, ">=", 100, "shown")


class ReasoningQuestion(AskStep):
    """A question from each text that is hard to answer, can be understood without it, and never speaks of it.

    Metadata `question_reasoning` has the reasoning of the model that asks.
    """

    Settings = ReasoningQuestionSettings
    PROMPTS: ClassVar[Mapping[str, tuple[str, ...]]] = {QUESTION: ("text", "none")}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The question."""
        values = {"text": shortened(document.text, self.settings.shown), "none": NONE}
        limit = self.settings.reasoning_tokens
        answer = await ask(QUESTION, values, max_tokens=limit + self.settings.max_tokens, again=False)
        if reasoning_tokens(answer) > limit:
            raise DropError("question that took too much reasoning")
        if says(answer.text, NONE):
            raise DropError("no question in it")
        question = without_preamble(answer.text)
        if speaks_of_text(question):
            raise DropError("question that speaks of the text")
        if not is_english(question):
            raise DropError("question not English")
        return [self.child(document, question, "question", question_reasoning=answer.reasoning)]


def reasoning_tokens(answer: Answer) -> int:
    """Tokens of an answer's reasoning: its part, by characters, of what the server counts; where it does not count, one
    for four characters."""
    characters = len(answer.reasoning) + len(answer.text)
    if not answer.completion_tokens or not characters:
        return len(answer.reasoning) // 4
    return round(answer.completion_tokens * len(answer.reasoning) / characters)


def speaks_of_text(question: str) -> bool:
    """Whether a question refers to a text that who answers it does not see."""
    return _SPOKEN.search(question) is not None


@dataclass(frozen=True)
class ReasoningAnswerSettings(AskSettings):
    """Settings of `reasoning-answer`."""

    max_tokens: int = 32_768
    """Tokens of an answer, its reasoning among them."""
    in_text: bool = True
    """Whether the text has the reasoning too, between <think> tags, or question and answer alone."""


class ReasoningAnswer(AskStep):
    """The model's answer to each question; it sees the question alone.

    The text becomes question, reasoning and answer; metadata `question`, `reasoning` and `answer` have them apart.
    """

    Settings = ReasoningAnswerSettings
    PROMPTS: ClassVar[Mapping[str, tuple[str, ...]]] = {ANSWER: ("question",)}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """Question and answer as one text."""
        question = document.text.strip()
        answer = await ask(ANSWER, {"question": question})
        if not answer.reasoning:
            self.note("answers without reasoning")
        thought = f"<think>\n{answer.reasoning}\n</think>\n\n" if self.settings.in_text and answer.reasoning else ""
        text = f"{question}\n\n{thought}{answer.text}\n"
        fields = {"question": question, "reasoning": answer.reasoning, "answer": answer.text}
        return [self.child(document, text, "answer", **fields)]
