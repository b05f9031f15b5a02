"""InfiniByte: problems crossed with a concept of another field (report section 2.2.4)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.ask.answers import DropError
from nano3.curate.ask.forms import json_form, one_of, sentence
from nano3.curate.ask.step import Ask, AskSettings, AskStep
from nano3.curate.step import Context
from nano3.curate.steps.llm.concepts import OTHER_NAMES, read_concepts
from nano3.curate.steps.llm.rephrase import copied
from nano3.curate.steps.llm.replies import gathered, is_english, json_object, without_preamble

Crossing = Literal["obfuscate", "complicate"]
CHOICE = "cross-choice"
_SPOKEN = re.compile(
    r"\b(?:original|above) (?:problem|question|task|exercise|formulation)s?\b|"
    r"\bprevious (?:problem|question|exercise)s?\b|\b(?:problem|question|exercise|text) (?:given )?above\b",
    re.IGNORECASE,
)
"""Not every "text": many problems of coding have one."""


@dataclass(frozen=True)
class CrossSettings(AskSettings):
    """Settings of `cross`; the two crossings are the report's, the rest is ours."""

    temperature: float = 1.0
    """Of sampling: the candidates are to differ."""
    crossings: list[Crossing] = field(default_factory=lambda: ["obfuscate", "complicate"])
    """What is made of each problem, one each: the same in the clothes of the concept; a harder one that needs it."""
    candidates: int = 2
    """Written for each crossing; of several the model chooses one, or none."""
    own_field: str = "field"
    """Metadata that names the problem's own field, from which no concept comes."""
    concepts: str = ""
    """A file with lines `field: concept`; empty: nano3's own."""
    copied: float = 0.3
    """Share of a crossing's runs of eight words that may be the problem's."""
    most: float = 6.0
    """Length that it may have, of the problem's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("cross", self, ">=", 1, "candidates")
        check("cross", self, ">=", 0, "copied")
        check("cross", self, ">", 0, "most")
        if not self.crossings or len(set(self.crossings)) < len(self.crossings):
            raise ValueError("cross.crossings must name one or both of obfuscate and complicate, each once")
        if self.candidates > 1 and self.temperature == 0:
            raise ValueError("cross.candidates is above 1 at temperature 0: all candidates would be the same")


class Cross(AskStep):
    """Problems crossed with concepts; `reasoning-answer` solves them. A crossing that fails is counted, and where all
    fail, the problem is dropped.

    Which concept is drawn depends on `pipeline.seed` and the problem's id alone. Metadata: `crossing`, `concept`,
    `concept_field`.
    """

    Settings = CrossSettings

    def __init__(self, settings: Any, context: Context) -> None:
        """A step with its concepts read."""
        super().__init__(settings, context)
        self._concepts = read_concepts(settings.concepts)

    def prompts(self) -> Mapping[str, tuple[str, ...]]:
        """One for each crossing, and one for the choice among several candidates."""
        own = {f"cross-{crossing}": ("problem", "concept", "field") for crossing in self.settings.crossings}
        return own | ({CHOICE: ("problem", "concept", "candidates")} if self.settings.candidates > 1 else {})

    def prompt_hashes(self) -> dict[str, str]:
        """Those of the prompts, and one of the concepts."""
        concepts = hashlib.blake2b(repr(self._concepts).encode(), digest_size=8).hexdigest()
        return super().prompt_hashes() | {"concepts": concepts}

    async def write(self, document: Document, ask: Ask) -> Sequence[Document]:
        """The crossings."""
        written = []
        if self._field(document) not in {name.lower() for name in self._concepts}:
            self.note("problems of no field that has concepts: theirs may be of their own field")
        for crossing in self.settings.crossings:
            other, concept = self._drawn(document, crossing)
            try:
                text = await self._crossed(document.text, crossing, other, concept, ask)
            except DropError as error:
                self.note(f"{crossing} not kept: {error.reason}")
                continue
            fields = {"crossing": crossing, "concept": concept, "concept_field": other}
            written.append(self.child(document, text + "\n", crossing, **fields))
        if not written:
            raise DropError("no crossing kept")
        return written

    def _field(self, document: Document) -> str:
        """A problem's own field, by its name among the concepts; empty where the record has none."""
        own = str(document.metadata.get(self.settings.own_field) or "").strip().lower()
        return own if own in {name.lower() for name in self._concepts} else OTHER_NAMES.get(own, own)

    def _drawn(self, document: Document, crossing: Crossing) -> tuple[str, str]:
        """Field and concept for a problem: of all concepts of fields that are not its own."""
        own = self._field(document)
        choice = [(name, one) for name, concepts in self._concepts.items() if name.lower() != own for one in concepts]
        text = f"{self.context.seed}\0{crossing}\0{document.id}".encode("utf-8", "replace")
        return choice[int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % len(choice)]

    async def _crossed(self, problem: str, crossing: Crossing, other: str, concept: str, ask: Ask) -> str:
        """The best candidate. Raises DropError where none is fit."""
        values = {"problem": problem, "concept": concept, "field": other}
        asked = [ask(f"cross-{crossing}", values, sample=sample) for sample in range(self.settings.candidates)]
        fit, reasons = [], []
        for answer in await gathered(asked):
            text = without_preamble(answer.text)
            reason = self._unfit(text, problem)
            (reasons if reason else fit).append(reason or text)
        if not fit:
            raise DropError(reasons[0])
        if len(fit) == 1:
            return fit[0]
        listed = "\n\n".join(f"Candidate {i}:\n\n{text}" for i, text in enumerate(fit, start=1))
        form = json_form("choice", {"reason": sentence(), "best": one_of(range(len(fit) + 1))})
        asked_for = {"problem": problem, "concept": concept, "candidates": listed}
        answer = await ask(CHOICE, asked_for, body={"temperature": 0.0} | form)
        best = json_object(answer.text).get("best")
        if best == 0:
            raise DropError("no candidate good enough")
        if not isinstance(best, int) or isinstance(best, bool) or not 0 < best <= len(fit):
            raise DropError("no choice in the reply")
        return fit[best - 1]

    def _unfit(self, text: str, problem: str) -> str:
        """Why a candidate is none; empty: it is one."""
        if not is_english(text):
            return "not English"
        if copied(text, problem) > self.settings.copied:
            return "copied from the problem"
        if len(text) > self.settings.most * len(problem):
            return "too long"
        return "speaks of the problem it is made of" if _SPOKEN.search(text) else ""
