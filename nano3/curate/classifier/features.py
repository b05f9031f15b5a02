"""What a classifier sees of a document: a line of words, which for HTML are tags and classes too."""

from __future__ import annotations

import re
from collections.abc import Iterator

MOST_CHARACTERS = 200_000
"""Of a document; what comes after is not looked at."""
_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]+")
_TAG = re.compile(r"<(/?)([a-zA-Z][\w:-]*+)([^<>]*+)>")
"""Possessive: a page with a tag of endless length takes no longer than another."""
_CLASS = re.compile(r"""\b(?:class|data-lang|data-language)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_UNSEEN = ("script", "style")


def features(text: str, html: bool) -> str:
    """A document as words between spaces.

    Args:
        text: the document.
        html: it is a page's HTML: tags become `<name` and classes `.name`, scripts and styles are left out.
    """
    text = text[:MOST_CHARACTERS]
    return " ".join(_page_tokens(text) if html else _tokens(text))


def _tokens(text: str) -> Iterator[str]:
    """Words in lower case, numbers as 0, runs of signs."""
    for token in _TOKEN.findall(text.lower()):
        yield "0" if token.isdecimal() else token


def _page_tokens(html: str) -> Iterator[str]:
    place, inside = 0, ""
    for tag in _TAG.finditer(html):
        name = tag[2].lower()
        if not inside:
            yield from _tokens(html[place : tag.start()])
            if not tag[1]:
                yield f"<{name}"
                for found in _CLASS.finditer(tag[3]):
                    yield from (f".{one.lower()}" for one in "".join(filter(None, found.groups())).split())
        if name in _UNSEEN:
            inside = "" if tag[1] else inside or name
        place = tag.end()
    if not inside:
        yield from _tokens(html[place:])
