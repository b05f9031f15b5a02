"""What a reply must be: one block of code, turns of a dialogue, numbers and addresses unchanged, English."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

from nano3.curate.ask.answers import DropError
from nano3.curate.myriads import without_myriads
from nano3.curate.steps.language import language_of_text, outside_code
from nano3.curate.steps.llm.markers import text_parts
from nano3.reading import parse_json

_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|here (?:it is|they are|you go))\b|"
    r"(?:here(?:['’]s| is| are)|below (?:is|are))\b"
    # What was asked for. "Below are the half-lives of three isotopes:" is the text itself.
    r"(?=[^\n]*\b(?:translat|rewrit|rephras|revis|clean|summar|english|version|text|questions?\b|problem\b|dialogue|"
    r"conversation|review|answers?\b|json|code\b|file\b|program\b|c\+\+|result\b|article|passage|section|list\b|part\b|"
    r"output\b|request|solution)))[^\n]*:[ \t]*\n+",
    re.IGNORECASE,
)
_WRAPPED = re.compile(r"(`{3,})(markdown|md)?(?:text)?[ \t]*\n(.*?)\n?\1", re.DOTALL)
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)
_URL = re.compile(r"\b(?:https?|ftp)://[^\s<>\"'`)\]}、。，；]+|\bwww\.[^\s<>\"'`)\]}、。，；]+")
_NUMBER = re.compile(r"\d+(?:[.,'\u00a0\u202f ](?=\d{3}(?!\d))\d{3}|[.,]\d+)*")
_MONTH = re.compile(r"(\d{1,2})(?=\s*月)|\b\d{1,2}\.(\d{1,2})\.\d{4}\b")
_INLINE = re.compile(r"(?<!`)(`+)(?!`)((?:[^\n]|\n(?!\s*\n))+?)(?<!`)\1(?!`)")
_HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t:]*$")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w{3,}")
_COMMENT = re.compile(r"[ \t]*(?:#|//|/\*|\*|$)")
_AS_IT_WAS = r"(?: (?:is|are|remains?|stays?|goes|continues))? ?(?:unchanged|the same|as before|as is|here|omitted)"
_LEFT_OUT = re.compile(
    r"[ \t]*(?:#|//|/\*)[ \t]*[\[(<]?(?:"
    r"(?:\.{3}|…)[ \t]*(?:[^\w\n]*$|\(?(?:the )?(?:rest|others?|remaining|existing|same|previous|unchanged|omitted)\b)|"
    r"(?:the )?(?:rest|remainder) of (?:the |this |your )?(?:original |existing )?"
    rf"(?:code|file|class|functions?|methods?|module|program|script|implementation)(?:{_AS_IT_WAS})?[^\w\n]*$|"
    rf"(?:remaining|existing|other|previous) (?:code|methods|functions|classes|implementations?){_AS_IT_WAS}[^\w\n]*$)",
    re.IGNORECASE,
)
SHORTEST = 200
"""Characters below which the language of a text is not judged."""


async def gathered(asked: Iterable[Awaitable[Any]]) -> list[Any]:
    """Results of requests made at once; where some fail, the error of the first in their order, not in time.

    What ends the run comes before what drops a document."""
    results = await asyncio.gather(*asked, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        raise next((failure for failure in failures if not isinstance(failure, DropError)), failures[0])
    return results


def without_preamble(reply: str, source: str = "") -> str:
    """A reply without a first line that announces it, if the source has no such line, and without a fence around it."""
    text = reply.strip()
    announced = _PREAMBLE.match(text)
    if announced and announced[0].strip() not in source:
        text = text[announced.end() :].strip()
    found = _WRAPPED.fullmatch(text)
    if not found or (
        not found[2] and found[1] in found[3]
    ):  # several blocks, the first and the last without a language
        return text
    return found[3].strip()


def says(reply: str, word: str) -> bool:
    """Whether a reply is nothing but a word that it was told to be, whatever marks stand around it."""
    return reply.strip("`'\".* \n") == word


def code_blocks(reply: str) -> list[tuple[str, str]]:
    """(language, code) of the fenced blocks of a reply."""
    blocks = [(language, text) for text, kind, language in text_parts(reply) if kind == "CODE"]
    return [(language.lower(), "\n".join(text.split("\n")[1:-1]) + "\n") for language, text in blocks]


def one_block(reply: str, languages: Sequence[str]) -> str:
    """The code of a reply's only fenced block.

    Args:
        reply: of a model.
        languages: what may stand behind its fence; nothing may stand there always.

    Raises:
        DropError: none or several, or one of another language, or an empty one.
    """
    blocks = code_blocks(reply)
    if len(blocks) != 1:
        raise DropError("reply without a block of code" if not blocks else "reply with several blocks of code")
    language, code = blocks[0]
    if language and language not in languages:
        raise DropError("reply in another programming language")
    if not code.strip():
        raise DropError("reply without a block of code")
    return code


def check_whole(code: str, source: str) -> None:
    """Raise DropError where code that a model made of a source is nothing but comments, or one of its comments stands
    for code that it left out: `# ... rest of the file unchanged`."""
    lines, own = code.split("\n"), source.split("\n")
    if all(map(_COMMENT.match, lines)) and not all(map(_COMMENT.match, own)):
        raise DropError("code left out")
    known = {line.strip("#/* \t\r") for line in own}  # a comment is the same in another language
    if any(_LEFT_OUT.match(line) and line.strip("#/* \t\r") not in known for line in lines):
        raise DropError("code left out")


def json_object(reply: str) -> dict[str, Any]:
    """The JSON object of a reply, which may stand in a fence or after words.

    Raises:
        DropError: there is none.
    """
    found = _OBJECT.search(reply)
    try:
        value = parse_json(found[0]) if found else None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DropError("reply without a JSON object")
    return value


def turns(reply: str, speakers: Sequence[str]) -> list[tuple[str, str]]:
    """(speaker, text) of a dialogue whose turns have the speaker as heading: `### Student`. Code may hold headings.

    Raises:
        DropError: something stands before the first turn, or a turn is empty.
    """
    found: list[tuple[str, list[str]]] = []
    for text, kind, _ in text_parts(reply.strip()):
        for line in [text] if kind else text.split("\n"):
            heading = None if kind else _HEADING.match(line)
            name = re.sub(r"[ \t]*\d+$", "", heading[1].strip("*")) if heading else ""
            if name in speakers:
                found.append((name, []))
            elif found:
                found[-1][1].append(line)
            elif line.strip():
                raise DropError("reply that does not begin with a turn")
    whole = [(name, "\n".join(lines).strip()) for name, lines in found]
    if not whole or any(not text for _, text in whole):
        raise DropError("reply without turns" if not whole else "empty turn")
    return whole


def identifiers(code: str) -> set[str]:
    """Names of four characters and more in a program, those in its comments among them."""
    return set(_IDENTIFIER.findall(code))


def is_english(text: str) -> bool:
    """Whether the text outside code is English; one that is too short to tell counts as English."""
    words = outside_code(text).strip()
    return len(words) < SHORTEST or language_of_text(words)[0] == "en"


def check_unchanged(source: str, reply: str) -> None:
    """Raise DropError where numbers, addresses or inline code of a source are not those of its translation.

    1.234,5 is 1,234.5. A single digit may be new, since languages spell small numbers out, and the number of a month,
    before 月 or in a date such as 11.03.2011, may become a name. 3万 is 30,000, 30 thousand and thirty thousand.
    """
    if addresses(source) != addresses(reply):
        raise DropError("addresses changed")
    if Counter(inline_code(source)) != Counter(inline_code(reply)):
        raise DropError("code changed")
    bare = (_INLINE.sub(" ", _URL.sub(" ", unicodedata.normalize("NFKC", text))) for text in (source, reply))
    before, after = map(numbers, without_myriads(*bare))
    found = (chinese or dotted for chinese, dotted in _MONTH.findall(unicodedata.normalize("NFKC", source)))
    months = Counter(map(_plain, found))
    if before - after - months or any(len(number) > 1 for number in after - before):
        raise DropError("numbers changed")


def numbers(text: str) -> Counter[str]:
    """The numbers of a text, the same however a language writes them: 1.234,50 and 1,234.5 are 1234.5."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return Counter(value for number in found for value in _values(number))


def _values(number: str) -> list[str]:
    """The value of a number, or of each part of a date or version.

    A single separator before three digits counts as one of thousands, in any language: whoever translates it keeps it.
    """
    first, *groups = re.split(r"\D", number)
    separators = re.findall(r"\D", number)
    if not groups or (first != "0" and all(len(group) == 3 for group in groups)):
        return [_plain(first + "".join(groups))]
    *thousands, decimals = groups
    if all(len(group) == 3 for group in thousands) and separators[-1] not in separators[:-1]:
        return [f"{_plain(first + ''.join(thousands))}.{decimals.rstrip('0')}".removesuffix(".")]
    return [_plain(group) for group in (first, *groups)]


def _plain(digits: str) -> str:
    return digits.lstrip("0") or "0"


def addresses(text: str) -> Counter[str]:
    """The web addresses of a text, without the signs that end a sentence."""
    return Counter(url.rstrip(".,;:!?*_") for url in _URL.findall(text))


def inline_code(text: str) -> list[str]:
    """What stands between backticks inside paragraphs."""
    return [code.strip() for _, code in _INLINE.findall(text)]
