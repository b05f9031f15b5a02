"""Personal data and secrets out of texts: each becomes a placeholder, the same for the same value in a document."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from datatrove.data import Document

from nano3.config.errors import UserError
from nano3.config.typed import nearest
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
        document.text, counts = redacted(document.text, self.settings.kinds, self.settings.phone_region)
        if counts:
            document.metadata["redacted"] = dict(counts)
            self.note("documents with something replaced")
        for kind, n in counts.items():
            self.note(f"{kind} replaced", n)
        return ""


def redacted(text: str, kinds: list[str], region: str = "") -> tuple[str, Counter[str]]:
    """A text with placeholders, numbered by kind in the order in which different values first occur; and how many
    places of each kind were replaced."""
    numbers: dict[str, dict[str, int]] = {}
    counts: Counter[str] = Counter()
    pieces, place = [], 0
    for begin, end, kind in find_private(text, kinds, region):
        own = numbers.setdefault(kind, {})
        number = own.setdefault(text[begin:end], len(own) + 1)
        pieces += [text[place:begin], f"<{kind.upper().replace('-', '_')}_{number}>"]
        place = end
        counts[kind] += 1
    return "".join([*pieces, text[place:]]), counts
