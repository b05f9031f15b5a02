"""Files of text in the folders that the user names."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from nano3.config.errors import UserError
from nano3.data.texts.compressed import open_bytes
from nano3.data.texts.containers import bare_suffix
from nano3.data.texts.readers import READERS, InputFile
from nano3.data.texts.skipped import CURATED, LINKED, NO_FILE, NO_TEXT, UNKNOWN, UNREADABLE, Skipped
from nano3.reading import read_json

_TEXT_SUFFIXES = """
.txt .md .rst .py .pyi .text .markdown .tex .html .htm .xml .css .csv .tsv .json .yaml .yml .toml
.ini .cfg .c .h .cc .cpp .hpp .cu .cuh .rs .go .java .kt .scala .swift .js .mjs .ts .tsx .jsx .rb
.php .pl .lua .r .jl .sql .sh .bash .zsh .fish .f90 .hs .ml .lean .v .org .adoc .log .srt
"""
TEXT_SUFFIXES = frozenset(_TEXT_SUFFIXES.split())
"""Suffixes read as one document a file when a folder is searched; a file named by the user may have any."""
SNIFFED = 1 << 16
"""Bytes that tell whether a file without a suffix is text."""
CURATION, CURATION_REPORT, CURATED_DATA = "curation.json", "report.json", "data"
"""What `nano3 data curate` leaves in its folder: what was done, the report at the end, the folder of documents."""
CONVERSATIONS = "00-conversations"
"""Step of a curation that read conversations; `nano3.curate.pipeline.step_label` names it."""
_SUFFIX = re.compile(r"\.[a-z][a-z0-9_+-]*")
"""What counts as a suffix: that of Apache-2.0 or notes.1 does not."""
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def find_files(spec: str, skipped: Skipped) -> list[InputFile]:
    """Files of one source: a file or a folder (searched in sorted order), with `::FIELD` for another text field.

    Of a folder that `nano3 data curate` wrote, the documents alone; one below the folder is left out.

    Raises:
        FileNotFoundError: nothing at that path.
        UserError: a curated folder that is not finished.
    """
    path, text_field = _split_field(spec)
    if path.is_dir():
        return list(_walk(_documents_of(path), text_field, skipped))
    if not path.is_file():
        raise FileNotFoundError(f"no file or folder at {path}")
    return [_input_file(path, path.name, text_field, found=False)]


def _documents_of(folder: Path) -> Path:
    """The folder, or the one in it that holds the documents, where `nano3 data curate` wrote it."""
    if not (folder / CURATION).is_file():
        return folder
    check_curated(str(folder))
    return folder / CURATED_DATA


def check_curated(spec: str, texts: bool = False) -> None:
    """Refuse a folder of `nano3 data curate` that cannot be read, without a look at its documents.

    Args:
        spec: as for `find_files`; whatever is no such folder passes.
        texts: it is to hold texts, not conversations.

    Raises:
        UserError: its curation is not finished, or it holds conversations in place of texts.
    """
    folder, text_field = _split_field(spec)
    if not (folder / CURATION).is_file():
        return
    if not (folder / CURATION_REPORT).is_file():
        raise UserError(f"{folder}: its curation is not finished: give the same nano3 data curate again to go on")
    if not texts or text_field != "text":
        return
    manifest = read_json(folder / CURATION)
    if isinstance(manifest, dict) and CONVERSATIONS in manifest.get("settings", ()):
        raise UserError(f"{folder}: it holds conversations, no texts: nano3 sft --data {folder} trains on them")


def is_there(spec: str) -> bool:
    """Whether `find_files` finds a file or folder."""
    return _split_field(spec)[0].exists()


def _split_field(spec: str) -> tuple[Path, str]:
    head, mark, text_field = spec.rpartition("::")
    if mark and head and text_field and not Path(spec).exists():
        return Path(head).expanduser(), text_field
    return Path(spec).expanduser(), "text"


def _walk(root: Path, text_field: str, skipped: Skipped) -> Iterator[InputFile]:
    def unreadable(error: OSError) -> None:
        skipped.add(UNREADABLE, name=_below(root, Path(os.fsdecode(error.filename))))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in [name for name in folders if (Path(folder) / name).is_symlink()]:
            folders.remove(name)
            skipped.add(LINKED, name=_below(root, Path(folder) / name))
        for name in [name for name in folders if (Path(folder) / name / CURATION).is_file()]:
            folders.remove(name)  # its texts are those of other files, often of this very folder
            skipped.add(CURATED, name=_below(root, Path(folder) / name))
        for name in sorted(files):
            if name.startswith("."):
                continue
            path = Path(folder) / name
            reason = _left_out(path)
            if reason:
                skipped.add(reason, name=_below(root, path))
            else:
                yield _input_file(path, path.relative_to(root).as_posix(), text_field, found=True)


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else str(root)


def _left_out(path: Path) -> str:
    """Why a file that was found in a folder is not read; empty when it is."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return NO_FILE
        if not os.access(path, os.R_OK):
            raise PermissionError
        suffix = bare_suffix(path)
        if suffix in TEXT_SUFFIXES or suffix in READERS:
            return ""
        if _SUFFIX.fullmatch(suffix):
            return UNKNOWN
        return "" if _is_text(path) else NO_TEXT
    except PermissionError:
        return UNREADABLE
    except OSError:
        return NO_FILE


def _is_text(path: Path) -> bool:
    """Whether the beginning of a file is UTF-8 text without control characters."""
    try:
        with open_bytes(path) as stream:
            data = stream.read(SNIFFED)
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=len(data) < SNIFFED)
    except PermissionError:
        raise
    except Exception:  # not UTF-8, or damaged
        return False
    return not _CONTROL.search(text)


def _input_file(path: Path, name: str, text_field: str, found: bool) -> InputFile:
    status = path.stat()
    return InputFile(path, name, text_field, status.st_size, status.st_mtime_ns, found)
