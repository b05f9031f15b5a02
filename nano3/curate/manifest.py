"""What a folder of curated data was made of and how: a run goes on only with the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.data.texts.find import CURATION
from nano3.files import write_atomic
from nano3.reading import read_json

MANIFEST = CURATION
VERSION = 8
"""Raised when the same settings make other documents, or steps leave other files for each other."""
NAMED = 3


@dataclass
class Manifest:
    """A run's pipeline and inputs."""

    name: str
    """The pipeline's."""
    settings: dict[str, Any]
    """All settings, by step."""
    inputs: dict[str, str]
    """Identity of every input, by path."""
    against: dict[str, str]
    """The same, of the existing corpus."""
    tasks: int
    against_tasks: int = 0
    limit: int = 0
    segments: dict[str, int] = field(default_factory=dict)
    """Tasks of each executor, in order."""
    left_out: str = ""
    """What was found among the inputs and is of a type that is not read."""
    model: str = ""
    """Name of the language model that steps ask; the server's address may change."""
    prompts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Hash of each prompt, by step."""
    window: int = 0
    """Tokens of its context, where steps divide texts by it; 0: it is large enough, or unknown."""
    version: int = VERSION

    @property
    def labels(self) -> list[str]:
        """Of all steps, in order."""
        return [label for label in self.settings if label != "pipeline"]

    def save(self, out: Path) -> None:
        """Write it into the folder of the run."""
        write_atomic(out / MANIFEST, json.dumps(asdict(self), indent=1))


def read_manifest(out: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        UserError: no `nano3 data curate` has written there.
    """
    path = out / MANIFEST
    if not path.is_file():
        raise UserError(f"{out}: no curated data ({MANIFEST} is missing); nano3 data curate writes such folders")
    try:
        return Manifest(**read_json(path))
    except TypeError as error:
        raise UserError(f"{path}: not written by this version of nano3") from error


def check_same(old: Manifest, new: Manifest, out: Path) -> None:
    """Raise UserError, naming what changed, unless a run may go on in the folder of another."""
    changes = [
        *([f"nano3's version of the steps {old.version} -> {new.version}"] if old.version != new.version else []),
        *_setting_changes(old.settings, new.settings),
        *([f"--model {old.model} -> {new.model}"] if old.model != new.model else []),
        *([f"the model's context {old.window} -> {new.window} tokens"] if old.window != new.window else []),
        *_prompt_changes(old.prompts, new.prompts),
        *_input_changes("inputs", old.inputs, new.inputs),
        *_input_changes("--against", old.against, new.against),
        *(
            f"{name} {getattr(old, key)} -> {getattr(new, key)}"
            for name, key in (("--tasks", "tasks"), ("--limit", "limit"))
            if getattr(old, key) != getattr(new, key)
        ),
    ]
    if changes:
        raise UserError(
            f"{out} was begun with other settings ({'; '.join(changes)}): give another --out, or delete that folder"
        )


def _setting_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    if list(old) != list(new):
        steps = [" ".join(label for label in table if label != "pipeline") for table in (old, new)]
        return [f"steps {steps[0]} -> {steps[1]}"]
    return [
        f"{label.partition('-')[2] or label}.{key} {_shown(old[label].get(key))} -> {_shown(new[label].get(key))}"
        for label in old
        for key in {**old[label], **new[label]}
        if old[label].get(key) != new[label].get(key) and key != "summary"
    ]


def _prompt_changes(old: dict[str, dict[str, str]], new: dict[str, dict[str, str]]) -> list[str]:
    return [
        f"prompt {name} of {label}"
        for label in new
        for name, value in new[label].items()
        if old.get(label, {}).get(name, value) != value
    ]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _input_changes(what: str, old: dict[str, str], new: dict[str, str]) -> list[str]:
    kinds = {
        "changed": [path for path in old if path in new and old[path] != new[path]],
        "new": [path for path in new if path not in old],
        "gone": [path for path in old if path not in new],
    }
    return [
        f"{what}: {len(paths)} {kind} ({', '.join(paths[:NAMED])}{', ...' if paths[NAMED:] else ''})"
        for kind, paths in kinds.items()
        if paths
    ]
