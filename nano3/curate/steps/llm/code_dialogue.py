"""Dialogues about code, seeded by a file each (report section 2.2.2): questions and answers, lessons, reviews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import DropError
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.fences import fenced
from nano3.curate.steps.languages import LANGUAGES, language_of
from nano3.curate.steps.llm.replies import check_whole, code_blocks, identifiers, turns, without_preamble
from nano3.curate.steps.syntax import has_syntax_error

Turns = list[tuple[str, str]]
SHORTEST = 0.5
"""Length that revised code has at the least, of the code's: what is shorter is not all of it."""


@dataclass(frozen=True)
class Kind:
    """One kind of dialogue."""

    prompt: str
    speakers: tuple[str, str]
    """Who begins, and who answers and has the last word."""
    languages: tuple[str, ...]
    """Of the code that the report makes it from; empty: any."""
    revised: bool = False
    """The last turn has the code as it is after the dialogue."""


KINDS = {
    "questions": Kind("code-questions", ("Question", "Answer"), ()),
    "lesson": Kind("code-lesson", ("Student", "Teacher"), ("python",)),
    "review": Kind("code-review", ("Reviewer", "Author"), ("python", "cpp"), revised=True),
}


@dataclass(frozen=True)
class CodeDialogueSettings(AskSettings):
    """Settings of `code-dialogue`; the report publishes no numbers: these are ours."""

    max_tokens: int = 6144
    """Tokens of an answer; one that is cut is asked for once more with twice as many."""
    kind: Literal["questions", "lesson", "review"] = "questions"
    """Questions and answers; a student and a teacher (Python); a code review (Python and C++)."""
    turns: int = 3
    """Pairs of turns that a dialogue must have at the least; the prompt asks for them."""
    named: int = 2
    """Names of the code, of four characters and more, that a dialogue must speak of: fewer where the code has fewer."""
    most: int = 20_000
    """Characters of a file above which it is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("code-dialogue", self, ">=", 1, "turns", "most")
        check("code-dialogue", self, ">=", 0, "named")


class CodeDialogue(AskStep):
    """A dialogue about each file, below it; dropped where its form is wrong or it leaves the code aside."""

    Settings = CodeDialogueSettings

    @property
    def kind(self) -> Kind:
        """Which dialogue is written."""
        return KINDS[self.settings.kind]

    def prompts(self) -> Mapping[str, tuple[str, ...]]:
        """The one of the kind."""
        return {self.kind.prompt: ("code", "language", "turns")}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The code and the dialogue as one text."""
        language = language_of(document)
        if language not in (self.kind.languages or LANGUAGES):
            raise DropError(f"no code in {' or '.join(self.kind.languages) or 'a known language'}")
        if len(document.text) > self.settings.most:
            raise DropError("too long to talk about")
        values = {"code": fenced(document.text, language), "language": language, "turns": str(self.settings.turns)}
        dialogue = turns(without_preamble((await ask(self.kind.prompt, values)).text), self.kind.speakers)
        check_dialogue(dialogue, self.kind.speakers, self.settings.turns)
        spoken = "\n".join(text for _, text in dialogue)
        own = identifiers(document.text)
        if len(own & identifiers(spoken)) < min(self.settings.named, len(own)):
            raise DropError("dialogue about something else")
        if self.kind.revised:
            check_revision(dialogue[-1][1], document.text, language)
        text = "\n\n".join([fenced(document.text, language), *(f"**{name}:** {said}" for name, said in dialogue)])
        return [self.child(document, text + "\n", self.settings.kind, kind=self.settings.kind)]


def check_dialogue(dialogue: Turns, speakers: tuple[str, str], pairs: int) -> None:
    """Raise DropError unless the speakers take turns, the first begins, the second ends, and there are enough pairs."""
    names = [name for name, _ in dialogue]
    if names[0] != speakers[0] or names[-1] != speakers[1] or any(a == b for a, b in pairwise(names)):
        raise DropError("speakers do not take turns")
    if len(names) < 2 * pairs:
        raise DropError("too few turns")
    said = [text for name, text in dialogue if name == speakers[0]]
    if len(set(said)) < len(said):
        raise DropError("the same turn twice")


def check_revision(turn: str, code: str, language: str) -> None:
    """Raise DropError unless a turn ends with the code, which parses and is not as it was."""
    blocks = code_blocks(turn)
    if not blocks:
        raise DropError("review without revised code")
    revised = blocks[-1][1]
    if len(revised) < SHORTEST * len(code):
        raise DropError("review with a part of the code")
    check_whole(revised, code)
    if revised.split() == code.split():
        raise DropError("review that changes nothing")
    if has_syntax_error(revised, language):
        raise DropError("revised code with a syntax error")
