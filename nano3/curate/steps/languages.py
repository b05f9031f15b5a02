"""The programming language of a document: from its metadata, else from its file's name."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

_SUFFIXES = {
    "bash": ".sh .bash", "c": ".c .h", "cpp": ".cpp .cc .cxx .hpp .hh .hxx", "csharp": ".cs", "css": ".css",
    "fortran": ".f90 .f95", "go": ".go", "haskell": ".hs", "html": ".html .htm", "java": ".java",
    "javascript": ".js .mjs .cjs .jsx", "json": ".json", "julia": ".jl", "kotlin": ".kt", "lua": ".lua",
    "ocaml": ".ml", "perl": ".pl .pm", "php": ".php", "python": ".py .pyi", "r": ".r", "ruby": ".rb",
    "rust": ".rs", "scala": ".scala", "sql": ".sql", "swift": ".swift", "toml": ".toml", "tsx": ".tsx",
    "typescript": ".ts", "xml": ".xml", "yaml": ".yaml .yml",
}  # fmt: skip
LANGUAGES = tuple(_SUFFIXES)
BY_SUFFIX = {suffix: name for name, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
OTHER_NAMES = {
    "c++": "cpp", "c#": "csharp", "shell": "bash", "sh": "bash", "js": "javascript", "ts": "typescript",
    "py": "python", "python3": "python", "golang": "go", "jupyter notebook": "json", "yml": "yaml",
}  # fmt: skip
"""What datasets call a language."""
KEYS = ("language", "lang", "programming_language")
PATH_KEYS = ("path", "max_stars_repo_path", "file_path", "filename", "source")


def language_of(document: Any) -> str:
    """A name of `_SUFFIXES`; empty where neither metadata nor a file's name tells."""
    metadata = document.metadata
    for key in KEYS:
        value = metadata.get(key)
        if isinstance(value, str) and value:
            name = OTHER_NAMES.get(value.lower(), value.lower())
            if name in _SUFFIXES:
                return name
    names = [metadata.get(key) for key in PATH_KEYS] + [document.id]
    suffixes = (PurePath(name).suffix.lower() for name in names if isinstance(name, str))
    return next((BY_SUFFIX[suffix] for suffix in suffixes if suffix in BY_SUFFIX), "")
