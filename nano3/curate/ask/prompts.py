"""Prompts are text files: comment lines that name their section of the report, then a message with {fields}."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Formatter

from nano3.config.errors import UserError
from nano3.config.typed import nearest
from nano3.curate.catalog import PRESETS
from nano3.reading import decode

FOLDER = "prompts"


@dataclass(frozen=True)
class Prompt:
    """A prompt that was read."""

    name: str
    text: str
    """Without the comment lines."""
    hash: str
    """Of `text`, 16 hexadecimal digits."""
    fields: tuple[str, ...]
    """Names of its placeholders, sorted."""

    def filled(self, values: Mapping[str, object]) -> str:
        """The message, with a value for each field, taken as it is, braces and all.

        Raises:
            ValueError: a value is missing or is for no field.
        """
        if sorted(values) != list(self.fields):
            raise ValueError(f"prompt '{self.name}' has the fields {list(self.fields)}, not {sorted(values)}")
        return self.text.format_map(values)

    def fixed(self) -> str:
        """Its longest stretch without a field."""
        return max((literal for literal, *_ in Formatter().parse(self.text)), key=len, default="")


def prompt_names() -> list[str]:
    """Prompts that come with nano3."""
    folder = files("nano3.presets") / PRESETS / FOLDER
    if not folder.is_dir():
        return []
    return sorted(path.name.removesuffix(".txt") for path in folder.iterdir() if path.name.endswith(".txt"))


@cache
def read_prompt(name: str) -> Prompt:
    """A prompt of nano3 by its name, or one of the user's own by its path, which has a `/` or ends in `.txt`.

    Raises:
        UserError: no such prompt, no UTF-8, no message in it, or braces that are no field.
    """
    where = f"prompt {name}"
    if name.endswith(".txt") or "/" in name or "\\" in name:
        try:
            data = Path(name).expanduser().read_bytes()
        except OSError as error:
            raise UserError(f"{where}: cannot read it: {(error.strerror or str(error)).lower()}") from error
    else:
        known = prompt_names()
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean '{close}'?" if close else "give a name, or the path of a .txt file"
            raise UserError(f"unknown prompt '{name}'; {hint} (prompts: {', '.join(known) or 'none'})")
        data = (files("nano3.presets") / PRESETS / FOLDER / f"{name}.txt").read_bytes()
    try:
        text = _without_comments(decode(data))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start})") from error
    if not text:
        raise UserError(f"{where}: no message in it below the lines that begin with #")
    return Prompt(name, text, hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), _fields(text, where))


def check_fields(prompts: Mapping[str, Iterable[str]], where: str) -> list[Prompt]:
    """Prompts whose fields are those that a step fills.

    Args:
        prompts: name -> fields.
        where: what errors call the step.

    Raises:
        UserError: as `read_prompt`; or a prompt has another field, or lacks one.
    """
    found = []
    for name, wanted in prompts.items():
        prompt = read_prompt(name)
        listed = ", ".join(f"{{{field}}}" for field in sorted(wanted)) or "none"
        for field in prompt.fields:
            if field not in wanted:
                raise UserError(f"{where}: prompt {name} has the field {{{field}}}; this step fills {listed}")
        for field in wanted:
            if field not in prompt.fields:
                raise UserError(f"{where}: prompt {name} lacks the field {{{field}}}; this step fills {listed}")
        found.append(prompt)
    return found


def _without_comments(text: str) -> str:
    lines = text.splitlines()
    while lines and (lines[0].startswith("#") or not lines[0].strip()):
        lines.pop(0)
    return "\n".join(lines).strip()


def _fields(text: str, where: str) -> tuple[str, ...]:
    names = set()
    try:
        for _, name, spec, conversion in Formatter().parse(text):
            if name is None:
                continue
            if not name.isidentifier() or spec or conversion:
                raise ValueError(f"'{{{name}}}' is no field")
            names.add(name)
    except ValueError as error:
        raise UserError(f"{where}: {error}; write {{name}} for a field, and {{{{ or }}}} for a brace") from error
    return tuple(sorted(names))
