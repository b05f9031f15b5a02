"""Texts named on the command line (`--data PATH`) as the settings of a blend and its sources."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from nano3.config.generate import PREFIX
from nano3.config.schema import DataConfig

MANIFEST = "manifest.json"
"""In a prepared folder, which holds tokens instead of text."""
_SUFFIX = re.compile(r"(\.[A-Za-z][A-Za-z0-9]{0,9})?(\.gz|\.zst)?$")


def own_texts(paths: Sequence[str], data: DataConfig) -> list[str]:
    """`--set` overrides that make these paths the text of a run, a category each with equal shares.

    Categories of the preset that are generated from text (`generate:document-qa`) keep their share of the whole and are
    made from these paths; every other category of the preset goes.

    Args:
        paths: files, folders, prepared folders or `python-stdlib`; `PATH::FIELD` for another text field.
        data: settings of the preset.
    """
    made = {name: share for name, share in data.blend.items() if is_generated(data.sources.get(name, ()))}
    names = category_names(paths, made)
    total = sum(share for name, share in data.blend.items() if name not in made)
    share = total / len(paths) if made else 1.0
    blend = dict.fromkeys(names, share) | made
    sources = {name: [path] for name, path in zip(names, paths, strict=True)} | {
        name: data.sources[name] for name in made
    }
    whole = [name for name in data.whole_documents if name in blend]
    changes = [
        f"data.blend={_table(blend)}", f"data.sources={_table(sources)}", 'data.sources_file=""',
        f"data.whole_documents={json.dumps(whole)}",
    ]  # fmt: skip
    texts = [path for path in paths if not (Path(path).expanduser() / MANIFEST).is_file()]
    return changes + ([f"data.generate.sources={json.dumps(texts, ensure_ascii=False)}"] if made and texts else [])


def is_generated(specs: Sequence[str]) -> bool:
    """Whether a category's sources are all generated texts."""
    return bool(specs) and all(spec.startswith(PREFIX) for spec in specs)


def category_names(paths: Sequence[str], taken: Sequence[str] | dict[str, float] = ()) -> list[str]:
    """A name for each path: that of its file or folder without suffix, in letters, digits, `-` and `_`; each once."""
    names: list[str] = []
    for path in paths:
        bare = Path(path.rpartition("::")[0] or path if not Path(path).exists() else path).expanduser()
        last = bare.name if bare.name not in ("", ".", "..") else bare.resolve().name
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", _SUFFIX.sub("", last) or last).strip("-") or "text"
        number, free = 1, name
        while free in names or free in taken:
            number, free = number + 1, f"{name}-{number + 1}"
        names.append(free)
    return names


def _table(values: dict) -> str:
    """A table as inline TOML; JSON strings, lists and numbers are TOML too."""
    entries = (f"{json.dumps(name)} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items())
    return "{" + ", ".join(entries) + "}"
