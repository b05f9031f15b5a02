"""Personal data and secrets out of texts: each becomes a placeholder, the same for the same value in a document."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from datatrove.data import Document

from nano3.config.errors import UserError
from nano3.config.typed import nearest
from nano3.curate.shards import json_text
from nano3.curate.step import Step
from nano3.curate.steps.redaction.private_data import FINDERS, find_private, is_region


@dataclass(frozen=True)
class RedactSettings:
    """Settings of `redact`."""

    kinds: list[str] = field(default_factory=lambda: list(FINDERS))
    """What is replaced: private-key, secret, email, ip, phone."""
    phone_region: str = ""
    """Country (`US`) whose telephone numbers are found without +; empty: only international ones."""

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in FINDERS:
                close = nearest(kind, FINDERS)
                hint = f"did you mean '{close}'?" if close else f"there are {', '.join(FINDERS)}"
                raise UserError(f"redact.kinds: no kind '{kind}'; {hint}")
        if not self.kinds:
            raise UserError("redact.kinds is empty: nothing would be replaced")
        if self.phone_region and not is_region(self.phone_region):
            raise UserError(f"redact.phone_region: no country '{self.phone_region}' (ISO 3166: US, DE)")


class Redact(Step):
    """Replaces private data by `<EMAIL_1>`, `<SECRET_2>` and so on, counted by kind in the metadata (`redacted`) and in
    the report; no document is dropped."""

    Settings = RedactSettings

    def check(self, document: Document) -> str:
        """Every document is kept."""
        redact = redacted_record if document.metadata.get("_record") else redacted
        document.text, counts = redact(document.text, self.settings.kinds, self.settings.phone_region)
        if counts:
            document.metadata["redacted"] = dict(counts)
            self.note("documents with something replaced")
        for kind, n in counts.items():
            self.note(f"{kind} replaced", n)
        return ""


def redacted_record(text: str, kinds: list[str], region: str = "") -> tuple[str, Counter[str]]:
    """The same of a record as JSON: of every text in it, also of JSON in such a text, as the arguments of calls are."""
    numbers: dict[str, dict[str, int]] = {}
    counts: Counter[str] = Counter()

    def inside(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: inside(one) for key, one in value.items()}
        if isinstance(value, list):
            return [inside(one) for one in value]
        return of_text(value) if isinstance(value, str) else value

    def of_text(value: str) -> str:
        if value.startswith(("{", "[")):
            try:
                return of_json(value)
            except (ValueError, RecursionError):
                pass
        found, own = redacted(value, kinds, region, numbers)
        counts.update(own)
        return found

    def of_json(value: str) -> str:
        before = counts.total()
        found = inside(json.loads(value))
        return json_text(found) if counts.total() > before else value

    return of_json(text), counts


def redacted(
    text: str, kinds: list[str], region: str = "", numbers: dict[str, dict[str, int]] | None = None
) -> tuple[str, Counter[str]]:
    """A text with placeholders, numbered by kind in the order in which different values first occur (or as `numbers`
    says, by kind and value, to which those of this text are added); and how many places of each kind were replaced."""
    numbers = {} if numbers is None else numbers
    counts: Counter[str] = Counter()
    pieces, place = [], 0
    for begin, end, kind in find_private(text, kinds, region):
        own = numbers.setdefault(kind, {})
        number = own.setdefault(text[begin:end], len(own) + 1)
        pieces += [text[place:begin], f"<{kind.upper().replace('-', '_')}_{number}>"]
        place = end
        counts[kind] += 1
    return "".join([*pieces, text[place:]]), counts
