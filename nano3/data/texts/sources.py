"""From a blend to inputs: which files, folders and prepared folders each category reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from nano3.config.errors import UserError
from nano3.config.generate import PREFIX
from nano3.config.own_texts import is_generated
from nano3.config.schema import DataConfig
from nano3.data.generated.inputs import CATEGORIES, GeneratedTexts, category_of
from nano3.data.texts import stdlib_corpus
from nano3.data.texts.corpus import is_heldout
from nano3.data.texts.find import check_curated, find_files, is_there
from nano3.data.texts.readers import Input
from nano3.data.texts.skipped import Skipped
from nano3.data.tokens.build import content_hash
from nano3.data.tokens.shards import ShardFolder, is_prepared
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.reading import read_toml

NEED_NO_PATH = {stdlib_corpus.NAME: stdlib_corpus.NAME} | {name: PREFIX + name for name in CATEGORIES}
"""Categories that need no entry in data.sources, and what they read without one."""


@dataclass(frozen=True)
class CategorySources:
    """What one category reads."""

    specs: list[str]
    """As the user wrote them."""
    inputs: list[Input] = field(default_factory=list)
    """Texts to encode."""
    prepared: list[Path] = field(default_factory=list)
    """Folders that hold shards already."""
    skipped: Skipped = field(default_factory=Skipped)
    """Files left out while searching folders."""

    @property
    def generated(self) -> list[GeneratedTexts]:
        """The inputs that are generated: all or none of the category's."""
        return [source for source in self.inputs if isinstance(source, GeneratedTexts)]

    def with_tokenizer(self, tokenizer: Tokenizer) -> CategorySources:
        """The same, with generated texts measured by this tokenizer."""
        if not self.generated:
            return self
        return replace(self, inputs=[source.with_tokenizer(tokenizer) for source in self.generated])

    def with_cut_ends(self, cut_ends: bool) -> CategorySources:
        """The same, with generated texts that leave out the ends of documents or not."""
        if not self.generated:
            return self
        return replace(self, inputs=[replace(source, cut_ends=cut_ends) for source in self.generated])


def resolve(cfg: DataConfig) -> dict[str, CategorySources]:
    """Sources of every category of the blend that has a share.

    Raises:
        UserError: categories without data (all in one message), or a bad blend file.
        FileNotFoundError: a path that is not there.
    """
    table, wanted = source_table(cfg), [name for name, weight in cfg.blend.items() if weight > 0]
    missing = [name for name in wanted if not table.get(name) and name not in NEED_NO_PATH]
    if missing:
        raise UserError(_missing_message(missing, [name for name in table if name not in cfg.blend]))
    _check_named(cfg, table)
    found = {name: find_inputs(table.get(name) or [NEED_NO_PATH[name]], cfg) for name in wanted}
    read = [sources for sources in found.values() if not sources.generated]
    if not read or len(read) == len(found) or cfg.heldout_fraction <= 0:
        return found
    cut_ends = not any(_is_split(sources, cfg) for sources in read)
    return {name: sources.with_cut_ends(cut_ends) for name, sources in found.items()}


def source_table(cfg: DataConfig) -> dict[str, list[str]]:
    """What each category reads, as the settings and the blend file say."""
    return {**cfg.sources, **(read_blend_file(Path(cfg.sources_file)) if cfg.sources_file else {})}


def _check_named(cfg: DataConfig, table: Mapping[str, list[str]]) -> None:
    """Refuse texts that the blend does not name: nobody who names a source means it to be left unread.

    A blend file may serve several blends: it is refused only where this blend names nothing of it.
    """
    unread = {
        f"data.sources.{key_text(name)}": name
        for name, specs in cfg.sources.items()
        if name not in cfg.blend and not is_generated(specs)
    }
    if not unread and cfg.sources_file and not table.keys() & cfg.blend.keys():
        unread = {f"{cfg.sources_file}: {key_text(name)}": name for name in table if name not in cfg.sources}
    if not unread:
        return
    shares = ", ".join(f"{key_text(name)}=1" for name in unread.values())
    raise UserError(
        f"{', '.join(unread)}: not read, since data.blend names only {', '.join(map(key_text, cfg.blend))}: "
        f"add --set 'data.blend={{{shares}}}', or give the texts with --data PATH, which sets both"
    )


def check_paths(cfg: DataConfig) -> None:
    """Raise UserError for a source that no blend names, and for a path that the blend needs and that is not there or
    holds no finished texts.

    The message names the setting. No text is read.
    """
    table = source_table(cfg)
    wanted = {name: table.get(name) or [] for name, weight in cfg.blend.items() if weight > 0}
    _check_named(cfg, table)
    specs = {f"data.sources.{name}": listed for name, listed in wanted.items()}
    if any(category_of(spec) for listed in wanted.values() for spec in listed) or any(
        category_of(NEED_NO_PATH.get(name, "")) for name, listed in wanted.items() if not listed
    ):
        specs["data.generate.sources"] = cfg.generate.sources
    for setting, listed in specs.items():
        for spec in listed:
            if spec != stdlib_corpus.NAME and not category_of(spec) and not is_there(spec):
                raise UserError(f"{setting}: no file or folder at {spec}")
            check_curated(spec, texts=True)


def _is_split(sources: CategorySources, cfg: DataConfig) -> bool:
    """Whether some documents of a category are held out by their hashes and some not; reads no more than it must."""
    found: set[bool] = set()
    for path in sources.prepared:
        found |= set(is_heldout(ShardFolder(path).hashes, cfg.heldout_fraction, cfg.seed).tolist())
    texts = (document for source in sources.inputs for document in source.documents(Skipped()) if document is not None)
    while len(found) < 2 and (document := next(texts, None)) is not None:
        hashes = np.array([content_hash(document.text)], np.uint64)
        found.add(bool(is_heldout(hashes, cfg.heldout_fraction, cfg.seed)[0]))
    return len(found) == 2


def find_inputs(specs: Sequence[str], cfg: DataConfig | None = None) -> CategorySources:
    """Inputs of a list of files, folders, prepared folders, or the name `python-stdlib`.

    With `cfg`, also of `generate:document-qa` and `generate:retrieval`, which are made as it says.

    Raises:
        UserError: nothing to read there.
        FileNotFoundError: a path that is not there.
    """
    found = CategorySources(list(specs))
    for spec in specs:
        category = category_of(spec)
        if category is not None:
            found.inputs.append(_generated(spec, category, cfg))
        elif spec == stdlib_corpus.NAME and not Path(spec).exists():
            found.inputs.append(stdlib_corpus.StandardLibrary())
        elif is_prepared(Path(spec).expanduser()):
            found.prepared.append(Path(spec).expanduser())
        else:
            check_curated(spec, texts=True)
            found.inputs.extend(find_files(spec, found.skipped))
    if found.generated and (found.prepared or len(found.inputs) > len(found.generated)):
        raise UserError(f"{', '.join(specs)}: generated texts need a category of their own; give the others another")
    if not found.inputs and not found.prepared:
        detail = f" ({found.skipped.line()})" if found.skipped.line() else ""
        raise UserError(
            f"no readable file in {', '.join(specs)}{detail}: txt, md, py, jsonl and parquet are read, see docs/data.md"
        )
    return found


def _generated(spec: str, category: str, cfg: DataConfig | None) -> GeneratedTexts:
    if cfg is None:
        raise UserError(f"{spec} is no text that can be read here: name files or folders")
    try:
        sources = find_inputs(cfg.generate.sources)
    except (FileNotFoundError, UserError) as error:
        raise UserError(f"data.generate.sources: {error}") from error
    if sources.prepared:
        raise UserError(
            f"data.generate.sources: {sources.prepared[0]} holds tokens: name the texts they were made from"
        )
    return GeneratedTexts(
        category,
        cfg.generate,
        tuple(sources.inputs),
        cfg.seq_len,
        cfg.heldout_fraction,
        cfg.seed,
        cfg.cache_dir,
    )


def read_blend_file(path: Path) -> dict[str, list[str]]:
    """The [sources] table of a blend file; relative paths are taken from the file's folder.

    Raises:
        FileNotFoundError: no such file.
        UserError: not TOML, or not a table of lists of paths.
    """
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no blend file at {path} (data.sources_file)")
    table = read_toml(path)
    unknown = [key for key in table if key != "sources"]
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r}; a blend file has one table, [sources]")
    sources = table.get("sources", {})
    if not isinstance(sources, Mapping):
        raise UserError(f'{path}: sources is not a table; write [sources] and below it category = ["PATH"]')
    return {
        name: [_from_folder(spec, path.parent) for spec in _paths(path, name, value)] for name, value in sources.items()
    }


def _paths(path: Path, name: str, value: Any) -> list[str]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(spec, str) for spec in paths):
        raise UserError(f"{path}: sources.{name} is not a path or a list of paths")
    return paths


def _from_folder(spec: str, folder: Path) -> str:
    if spec == stdlib_corpus.NAME or spec.startswith(PREFIX):
        return spec
    return str(folder / Path(spec).expanduser())


def key_text(name: str) -> str:
    """A category's name as a key of TOML: in quotes where it is no bare key."""
    bare = name.replace("-", "").replace("_", "").isalnum() and name.isascii()
    return name if bare else f'"{name}"'


def _missing_message(missing: list[str], unused: list[str]) -> str:
    """All categories without data, and the lines that would map them."""
    hints = []
    for name in missing:
        close = get_close_matches(name, unused, n=1)
        hints += [f"; is '{close[0]}' meant for '{name}'?"] if close else []
    lines = "\n".join(f'{key_text(name)} = ["PATH"]' for name in missing)
    return (
        f"blend categories without data: {', '.join(missing)}{''.join(hints)}. "
        f"Map them in a blend file (--set data.sources_file=FILE.toml):\n[sources]\n{lines}"
    )
