"""The text of a page's bytes, by the charset that its server or the page itself names, read as browsers read it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

UNREADABLE, MOST_JUDGED = 0.05, 20_000
"""Share of control characters that no text has, and how much of a page is looked at."""
NO_CHARSETS = ("punycode", "idna", "unicode_escape", "raw_unicode_escape", "utf_7")
"""Codecs of Python that no page is in; they take hours for some, or see escapes in text."""
WIDER = {"gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs", "iso8859-11": "cp874"}
"""What browsers read such pages as: the charset with what Windows added to it."""
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\x1b"))
_DECLARED = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?([\w-]{1,40})", re.IGNORECASE)
_DECLARED_WITHIN = 1 << 12


def declared_charset(body: bytes) -> str:
    """The charset that a page's `meta` names; empty: none. One of several bytes a letter cannot be: it was found."""
    found = _DECLARED.search(body, 0, _DECLARED_WITHIN)
    name = found[1].decode("ascii", "ignore") if found else ""
    return "" if name.lower().startswith(("utf-16", "utf16", "utf-32", "utf32")) else name


def page_text(body: bytes, charset: str | None = None) -> str:
    """A page's text, by the charset that its server names, else UTF-8, which pages often are that declare another, else
    what it declares, else what its bytes look like; empty: none."""
    for encoding in filter(None, _encodings(body, charset)):
        try:
            text = body.decode(encoding)
            break
        except (LookupError, ValueError):
            continue
    else:
        judged = body[:MOST_JUDGED]
        if _controls(judged) > UNREADABLE * len(judged):  # a picture, a program
            return ""
        text = bytes_to_str(body, detect_encoding(body) or "utf-8")
    text = text.replace("\0", "").removeprefix("\ufeff").encode("utf-8", "replace").decode("utf-8")
    return "" if _is_noise(text[:MOST_JUDGED]) else text


def _encodings(body: bytes, charset: str | None) -> Iterator[str]:
    yield _codec(charset)
    yield "utf-8"
    yield _codec(declared_charset(body))


def _codec(charset: str | None) -> str:
    """Python's name of what browsers read a charset as: iso-8859-1 is cp1252. Empty: there is none."""
    try:
        own = codecs.lookup(charset or "").name
    except (LookupError, ValueError):  # also a name that holds a NUL
        own = ""
    if own.replace("-", "_") in NO_CHARSETS or not charset:
        return ""
    if own == "utf-16":  # which looks for a mark of the order of its bytes
        return own
    name = next(filter(None, (map_encoding_to_html5(one, fallback_utf8=False) for one in (charset, own))), own)
    return WIDER.get(name, name)


def _controls(data: bytes) -> int:
    """How many bytes are control characters that no text has."""
    return len(data) - len(data.translate(None, _CONTROLS))


def _is_noise(text: str) -> bool:
    """Whether so much of a text is control characters, or stands for bytes that are no characters."""
    return _controls(text.encode("utf-8")) + text.count("\ufffd") > UNREADABLE * len(text)
