"""Gate of licences: a document's own, its file's header, or the LICENSE file nearest above it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from datatrove.data import Document

from nano3.config.errors import UserError
from nano3.curate.step import Context, Step
from nano3.curate.steps.licence_texts import (
    is_allowed,
    is_known,
    licence_of_header,
    licence_of_text,
    near_names,
    spdx_name,
)

PERMISSIVE = ("MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "0BSD", "Unlicense", "CC0-1.0")
KEYS = ("license", "licence", "licenses", "detected_licenses", "max_stars_repo_licenses")
FILES = ("license", "licence", "copying", "unlicense")
MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class LicenceSettings:
    """Settings of `licence`."""

    allow: list[str] = field(default_factory=lambda: list(PERMISSIVE))
    """SPDX names of the licences to keep."""
    unknown: Literal["drop", "keep"] = "drop"
    """What becomes of documents of which no licence is known."""

    def __post_init__(self) -> None:
        if not self.allow:
            raise UserError("licence.allow is empty: nothing would be kept")

    def notices(self) -> list[str]:
        """A line for each name of `allow` that nano3 finds in no LICENSE file, with those that may be meant."""
        return [
            f"licence.allow: {name!r} is no SPDX name that nano3 knows; only what is marked exactly so is kept"
            f"{f' (near: {near})' if (near := ', '.join(near_names(name))) else ''}"
            for name in self.allow
            if not is_known(name)
        ]


class Licence(Step):
    """Keeps documents of allowed licences; metadata `license` and `license_source` tell which, and how it was found."""

    Settings = LicenceSettings

    def __init__(self, settings: Any, context: Context) -> None:
        """A gate for the licences of the settings."""
        super().__init__(settings, context)
        self._allowed = frozenset(map(spdx_name, settings.allow))

    def check(self, document: Document) -> str:
        """Why a document is dropped; empty: it is kept."""
        expression, source = _find(document)
        if not expression:
            return "no licence known" if self.settings.unknown == "drop" else ""
        document.metadata |= {"license": expression, "license_source": source}
        return "" if is_allowed(expression, self._allowed) else f"licence {_shown(expression)}"


def _find(document: Document) -> tuple[str, str]:
    """SPDX expression, and how it was found; both empty where there is none."""
    for key in KEYS:
        value = document.metadata.get(key)
        names = [value] if isinstance(value, str) else value
        if isinstance(names, list) and names and all(isinstance(name, str) and name.strip() for name in names):
            return " AND ".join(spdx_name(name) for name in names), f"metadata {key}"
    if header := licence_of_header(document.text):
        return header, "header"
    file, root = document.metadata.get("_file"), document.metadata.get("_root")
    return _above(os.path.dirname(file), os.path.abspath(root)) if file and root else ("", "")


def _shown(expression: str) -> str:
    """An expression as part of a reason: metadata and headers may hold anything."""
    return re.sub(r"[^\w.+() /,:-]", "?", expression[:60])


@cache
def _above(folder: str, root: str) -> tuple[str, str]:
    """The licence of the nearest LICENSE file of a folder and those above it, up to `root`."""
    for name in sorted(os.listdir(folder)):
        path = Path(folder, name)
        if name.lower().startswith(FILES) and path.is_file():
            with path.open("rb") as file:
                found = licence_of_text(file.read(MOST_BYTES).decode("utf-8", "replace"))
            if found:
                return found, os.path.relpath(path, root)
    if os.path.abspath(folder) == root or folder in ("", os.path.dirname(folder)):
        return "", ""
    return _above(os.path.dirname(folder), root)
