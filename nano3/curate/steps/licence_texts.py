"""Licences as SPDX names: from names that people write, from headers, and from the text of a LICENSE file."""

from __future__ import annotations

import difflib
import re

_ALIASES = {
    "mit license": "MIT", "the mit license": "MIT", "apache 2.0": "Apache-2.0", "apache-2": "Apache-2.0",
    "apache license 2.0": "Apache-2.0", "apache license, version 2.0": "Apache-2.0", "apache2": "Apache-2.0",
    "bsd-2": "BSD-2-Clause", "bsd 2-clause": "BSD-2-Clause", "bsd-3": "BSD-3-Clause", "bsd 3-clause": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause", "cc0": "CC0-1.0", "the unlicense": "Unlicense", "mpl-2": "MPL-2.0", "psf": "Python-2.0",
    "gpl-2.0": "GPL-2.0-only", "gpl-3.0": "GPL-3.0-only",
}  # fmt: skip
_NAMES = """0BSD AGPL-3.0-only Apache-2.0 BSD-2-Clause BSD-3-Clause BSD-4-Clause BSL-1.0 CC0-1.0 CC-BY-4.0 CC-BY-SA-4.0
GFDL-1.2-only GFDL-1.3-only GPL-1.0-only GPL-2.0-only GPL-3.0-only ISC JSON LGPL-2.0-only LGPL-2.1-only LGPL-3.0-only
MIT MPL-1.1 MPL-2.0 Python-2.0 Unlicense WTFPL Zlib"""
_SPDX = {name.lower(): name for name in _NAMES.split()} | _ALIASES
_HEADER = re.compile(r"SPDX-License-Identifier:\s*([\w.+() -]+)", re.IGNORECASE)
_HEADER_CHARACTERS = 4000
_MOST_OPEN = 50
"""Brackets of an expression, which is read by recursion; none that people write has so many."""
_TEXTS = {
    "MPL-2.0": "mozilla public license,? version 2\\.0",
    "MPL-1.1": "mozilla public license,? version 1\\.1",
    "AGPL-3.0-only": "gnu affero general public license version 3",
    "LGPL-3.0-only": "gnu lesser general public license version 3",
    "LGPL-2.1-only": "gnu lesser general public license version 2\\.1",
    "LGPL-2.0-only": "gnu library general public license version 2",
    "GPL-3.0-only": "gnu general public license version 3",
    "GPL-2.0-only": "gnu general public license version 2",
    "GPL-1.0-only": "gnu general public license version 1",
    "GFDL-1.3-only": "gnu free documentation license version 1\\.3",
    "GFDL-1.2-only": "gnu free documentation license version 1\\.2",
    "JSON": "the software shall be used for good, not evil",
    "LicenseRef-Commons-Clause": "commons clause",
    "Apache-2.0": "apache license, version 2.0|apache license version 2.0",
    "MIT": "permission is hereby granted, free of charge, to any person obtaining a copy",
    "ISC": "permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is "
    "hereby granted, provided",
    "0BSD": "permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is "
    "hereby granted\\.",
    "BSD-4-Clause": "redistribution and use in source and binary forms.{0,1500}"
    "advertising materials mentioning features",
    "BSD-3-Clause": "redistribution and use in source and binary forms.{0,1500}"
    "(neither the name|names? of [^.]{0,80}may (?:not )?be used to endorse)",
    "BSD-2-Clause": "redistribution and use in source and binary forms",
    "Unlicense": "this is free and unencumbered software released into the public domain",
    "CC0-1.0": "cc0 1\\.0 universal",
    "BSL-1.0": "boost software license",
    "Python-2.0": "python software foundation license",
}  # fmt: skip
"""What tells a licence in its text, white space made single; those of the GNU family and Mozilla's name each other, and
are told by their titles."""
_BSD = ("BSD-4-Clause", "BSD-3-Clause", "BSD-2-Clause")
"""Each text holds those behind it."""
_TITLED = ("AGPL", "LGPL", "GPL", "GFDL", "MPL")
_GNU, SOME_GNU = "gnu (?:affero |lesser |library )?general public license", "LicenseRef-GNU"
"""A text that speaks of such a licence and holds none, as notices do, is under one of them that is not told."""


def spdx_name(name: str) -> str:
    """A licence as SPDX writes it, where it is known; else the name itself."""
    return _SPDX.get(name.strip().lower(), name.strip())


def is_known(name: str) -> bool:
    """Whether a licence's name is one that nano3 writes; those with LicenseRef- are the user's own."""
    return name.strip().lower() in _SPDX or name.startswith("LicenseRef-")


def near_names(name: str) -> list[str]:
    """Names that may be meant by one that is not known, at most three."""
    names, own = sorted(set(_SPDX.values())), name.strip().lower()
    longer = [one for one in names if one.lower().startswith(own)]
    shown = longer or difflib.get_close_matches(name, names, n=1)
    return shown[:3]


def licence_of_header(text: str) -> str:
    """The SPDX expression at the beginning of a source file; empty where there is none."""
    found = _HEADER.search(text[:_HEADER_CHARACTERS])
    return " ".join(found[1].replace("*/", "").replace("--", "").split()) if found else ""


def licence_of_text(text: str) -> str:
    """The licence that a LICENSE file holds; where it holds several, all of them with AND; empty for none known."""
    flat = " ".join(text.lower().split())
    found = [name for name, pattern in _TEXTS.items() if re.search(pattern, flat)]
    bsd = [name for name in found if name in _BSD]
    found = [name for name in found if name not in bsd[1:]]
    if not any(name.startswith(_TITLED) for name in found) and re.search(_GNU, flat):
        found.insert(0, SOME_GNU)
    return " AND ".join(found)


def is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """Whether an SPDX expression leaves a way to use the text under licences that are allowed."""
    words = re.findall(r"\(|\)|[^\s()]+", expression)
    if words.count("(") > _MOST_OPEN:
        return False
    value, rest = _either(words, allowed)
    return value and not rest


def _either(words: list[str], allowed: frozenset[str]) -> tuple[bool, list[str]]:
    value, words = _both(words, allowed)
    while words and words[0].upper() == "OR":
        other, words = _both(words[1:], allowed)
        value = value or other
    return value, words


def _both(words: list[str], allowed: frozenset[str]) -> tuple[bool, list[str]]:
    value, words = _single(words, allowed)
    while words and words[0].upper() in ("AND", "WITH"):
        if words[0].upper() == "WITH":  # an exception only allows more
            words = words[2:]
            continue
        other, words = _single(words[1:], allowed)
        value = value and other
    return value, words


def _single(words: list[str], allowed: frozenset[str]) -> tuple[bool, list[str]]:
    if not words:
        return False, []
    if words[0] == "(":
        value, rest = _either(words[1:], allowed)
        return value, rest[1:]
    return spdx_name(words[0]) in allowed, words[1:]
