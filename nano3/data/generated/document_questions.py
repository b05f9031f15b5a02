"""Kinds of questions on a set of documents, each with its answer and the evidence that only one place gives."""

from __future__ import annotations

import ast
import keyword
import random
import re
import textwrap
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

from nano3.data.generated.questions import Question

WORD = re.compile(r"\w+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
GIVEN = re.compile(r"""["']?[ \t]*(?::(?!:)|(?:\*\*|//|>>|<<|[-+*/%@&|^:])?=(?!=))""")
"""What stands between a name and its value."""
LONG_LINE = 240
"""Longer lines are asked for sentence by sentence."""
SHORTEST, LONGEST = 20, 200
"""Characters of a line that is quoted."""
BLANK = "____"


class Documents:
    """The documents of one text, and what occurs in them only once.

    Attributes:
        titles: name of each.
        texts: text of each.
        closed: numbers of documents that are neither quoted nor asked for.
    """

    def __init__(self, titles: Sequence[str], texts: Sequence[str], closed: frozenset[int] = frozenset()) -> None:
        self.titles, self.texts, self.closed = list(titles), list(texts), closed
        self._joined = "\n\n".join(texts)
        self._units: dict[int, list[tuple[int, str]]] = {}

    def units(self, document: int) -> list[tuple[int, str]]:
        """(first character, text) of every line of a document, without white space around it."""
        if document not in self._units:
            self._units[document] = _units(self.texts[document])
        return self._units[document]

    def unit_at(self, document: int, character: int) -> int:
        """Number of the line that holds a character, or of the one before it."""
        starts = [start for start, _ in self.units(document)]
        return max(0, bisect_right(starts, character) - 1)

    def once(self, text: str) -> bool:
        """Whether a text occurs once among all documents."""
        place = self._joined.find(text)
        return place >= 0 and self._joined.find(text, place + 1) < 0

    def named_once(self, name: str) -> bool:
        """Whether a name is given a value in one place only: `NAME=`, `x.NAME: int = `, `"NAME": `, `NAME:`."""
        found, place = 0, self._joined.find(name)
        while place >= 0 and found < 2:
            before, after = self._joined[place - 1 : place], self._joined[place + len(name) : place + len(name) + 16]
            found += not WORD.match(before) and GIVEN.match(after) is not None
            place = self._joined.find(name, place + 1)
        return found == 1

    @cached_property
    def rare_words(self) -> frozenset[str]:
        """Words that occur once among all documents."""
        return frozenset(word for word, n in Counter(WORD.findall(self._joined)).items() if n == 1)

    @cached_property
    def words(self) -> list[frozenset[str]]:
        """Words of each document."""
        return [frozenset(WORD.findall(text)) for text in self.texts]

    @cached_property
    def owners(self) -> Counter[str]:
        """Number of documents that each word occurs in."""
        return Counter(word for words in self.words for word in words)


def _units(text: str) -> list[tuple[int, str]]:
    units, start = [], 0
    for line in text.split("\n"):
        parts = [line] if len(line) <= LONG_LINE else SENTENCE_END.split(line)
        place = start
        for part in parts:
            place = text.index(part, place)
            stripped = part.strip()
            if stripped:
                units.append((place + part.index(stripped), stripped))
            place += len(part)
        start += len(line) + 1
    return units


def gives_away(question: Question, other: Question) -> bool:
    """Whether the answer to a question about a line stands in another question, or in the answer written below it."""
    if question.kind not in ("cloze", "follows", "precedes"):
        return False
    said = "\n".join((other.text, *other.answers))
    place = said.find(question.answer)
    while place >= 0:
        around = said[place - 1 : place] + said[place + len(question.answer) :][:1]
        if question.kind != "cloze" or not WORD.search(around):
            return True
        place = said.find(question.answer, place + 1)
    return False


def quotable(documents: Documents, line: str) -> bool:
    """Whether a line is text enough to be quoted, and occurs once."""
    return SHORTEST <= len(line) <= LONGEST and len(re.findall(r"[^\W\d_]{2,}", line)) >= 3 and documents.once(line)


def cloze(documents: Documents, document: int, unit: int, rng: random.Random) -> Question | None:
    """A line with its rarest word, name or number left out."""
    start, line = documents.units(document)[unit]
    if not quotable(documents, line):
        return None
    words = [
        match
        for match in WORD.finditer(line)
        if match[0] in documents.rare_words and len(match[0]) >= 4 and line.count(match[0]) == 1
    ]
    rng.shuffle(words)
    for match in words:
        before, after = line[: match.start()], line[match.end() :]
        if len(context := max(before, after, key=len).strip()) >= SHORTEST and documents.once(context):
            ask = rng.choice(CLOZE).format(line=_quoted(f"{before}{BLANK}{after}"))
            return _make(documents, "cloze", ask, (match[0],), document, start, line)
    return None


def source(documents: Documents, document: int, unit: int, rng: random.Random) -> Question | None:
    """Which document says a line."""
    start, line = documents.units(document)[unit]
    if not quotable(documents, line):
        return None
    ask = rng.choice(SOURCE).format(line=_quoted(line))
    return _make(documents, "source", ask, (documents.titles[document],), document, start, line)


def following(documents: Documents, document: int, unit: int, rng: random.Random) -> Question | None:
    """The line after a line, or before it."""
    units, later = documents.units(document), rng.random() < 0.7
    other = unit + 1 if later else unit - 1
    if not 0 <= other < len(units) or not quotable(documents, units[unit][1]) or not _sayable(units[other][1]):
        return None
    first, second = min(unit, other), max(unit, other)
    span = documents.texts[document][units[first][0] : units[second][0] + len(units[second][1])]
    ask = rng.choice(FOLLOWS if later else PRECEDES).format(line=_quoted(units[unit][1]))
    answer = units[other][1]
    aliases = (answer, bare) if (bare := answer.rstrip(" .,;:")) != answer else (answer,)
    return _make(documents, "follows" if later else "precedes", ask, aliases, document, units[first][0], span)


def next_document(documents: Documents, document: int, unit: int, rng: random.Random) -> Question | None:
    """Two steps: find the document that says a line, then the one after it."""
    start, line = documents.units(document)[unit]
    if document + 1 >= len(documents.titles) or not quotable(documents, line):
        return None
    ask = rng.choice(NEXT).format(line=_quoted(line))
    return _make(documents, "next-document", ask, (documents.titles[document + 1],), document, start, line)


def shared(documents: Documents, document: int, unit: int, rng: random.Random) -> Question | None:
    """Two documents: a word that occurs in both and in no other; one is named, the other asked for."""
    if len(documents.titles) < 3:
        return None
    start, line = documents.units(document)[unit]
    words = [w for w in WORD.findall(line) if len(w) >= 5 and not w.isdigit() and documents.owners[w] == 2]
    if not words or not documents.once(line):
        return None
    word = rng.choice(words)
    (other,) = [i for i, found in enumerate(documents.words) if word in found and i != document]
    if other in documents.closed:
        return None
    ask = rng.choice(SHARED).format(word=word, title=documents.titles[other])
    return _make(documents, "shared", ask, (documents.titles[document],), document, start, line)


def default_value(documents: Documents, document: int, unit: int, rng: random.Random) -> Question | None:
    """The default of a parameter of a Python function that is defined once."""
    start, line = documents.units(document)[unit]
    match = re.match(r"(?:async )?def (\w+)\(", line)
    if match is None or not documents.once(f"def {match[1]}("):
        return None
    signature = _signature(documents.texts[document][start : start + 1500])
    pairs = _defaults(signature) if signature else []
    if not pairs:
        return None
    name, value = rng.choice(pairs)
    ask = rng.choice(DEFAULT).format(name=name, function=match[1], title=documents.titles[document])
    return _make(documents, "default", ask, _spellings(value), document, start, signature)


def enclosing(documents: Documents, document: int, unit: int, rng: random.Random) -> Question | None:
    """The Python function around a line, or the class around a method."""
    start, line = documents.units(document)[unit]
    text = documents.texts[document]
    method = re.match(r"(?:async )?def (\w+)\(", line)
    if method is None and not quotable(documents, line):
        return None
    if method is not None and not documents.once(f"def {method[1]}("):
        return None
    header = _header(text, start, "class" if method else "def")
    if header is None:
        return None
    begin, name = header
    if method:
        ask = rng.choice(CLASS).format(method=method[1])
        return _make(documents, "class", ask, (name,), document, begin, text[begin : start + len(line)])
    ask = rng.choice(FUNCTION).format(line=_quoted(line))
    return _make(documents, "function", ask, (name, f"{name}()"), document, begin, text[begin : start + len(line)])


def value(documents: Documents, document: int, unit: int, rng: random.Random) -> Question | None:
    """What a constant is set to, or what stands after a key."""
    start, line = documents.units(document)[unit]
    match = re.match(r"([A-Z][A-Z0-9_]{3,}) *= *(\S.{0,80})$", line)
    forms = ASSIGNED
    if match is None:
        match, forms = re.match(r"([A-Za-z][\w -]{3,30}): (\S.{3,80})$", line), ENTRY
    if match is None or match[1].split()[0] in NO_KEYS or not documents.named_once(match[1]):
        return None
    found = re.sub(r"\s+#.*", "", match[2]).rstrip(" ,")
    if not found or found[-1] in "([{\\:" or found.count('"') % 2 or found.count("'") % 2:
        return None
    ask = rng.choice(forms).format(name=match[1], title=documents.titles[document])
    return _make(documents, "value", ask, _spellings(found), document, start, line)


Kind = Callable[[Documents, int, int, random.Random], Question | None]
KINDS: dict[str, Kind] = {
    "cloze": cloze,
    "source": source,
    "follows": following,
    "next-document": next_document,
    "shared": shared,
    "default": default_value,
    "enclosing": enclosing,
    "value": value,
}
WITHOUT_TITLES = ("cloze", "follows", "enclosing")
"""Kinds that can be asked where the titles of the documents are not shown."""
NO_KEYS = frozenset(keyword.kwlist)

CLOZE = (
    "What stands in place of the blank? {line}",
    "Fill in the blank as in the documents: {line}",
    "One word is missing from this line. Which? {line}",
    "Complete the line with the word that is left out: {line}",
)
SOURCE = (
    "Which document contains {line}?",
    "In which document is this found? {line}",
    "Name the document that says {line}.",
    "Where does this come from? {line}",
)
FOLLOWS = (
    "What comes right after {line}?",
    "Which line follows {line}?",
    "Give the line below {line}.",
    "Continue after {line} with the next line.",
)
PRECEDES = ("What comes right before {line}?", "Which line precedes {line}?", "Give the line above {line}.")
NEXT = (
    "Which document comes right after the one that contains {line}?",
    "Find the document that says {line}. Which document is next?",
    "Name the document that follows the one with {line}.",
)
SHARED = (
    "Besides {title}, one other document has the word “{word}”. Which?",
    "The word “{word}” is in exactly two of the documents. One is {title}. Which is the other?",
    "Which document shares the word “{word}” with {title}?",
)
DEFAULT = (
    "What is the default value of the parameter {name} of {function}?",
    "In {title}, what does {name} default to in the function {function}?",
    "Which value does {function} use for {name} where none is given?",
)
CLASS = ("Which class defines {method}?", "To which class does the method {method} belong?")
FUNCTION = (
    "Which function contains {line}?",
    "In which function is this line? {line}",
    "Name the function in which {line} stands.",
)
ASSIGNED = ("What is {name} set to?", "Give the value of {name} in {title}.", "Which value does {name} have?")
ENTRY = ("What stands after “{name}:” in {title}?", "What does {title} give for “{name}”?")


def _make(
    documents: Documents, kind: str, ask: str, answers: tuple[str, ...], document: int, start: int, evidence: str
) -> Question | None:
    """The question, unless its evidence is cut off or found twice."""
    if not documents.once(evidence) or document in documents.closed:
        return None
    return Question(kind, ask, answers, (evidence,), start / max(1, len(documents.texts[document])), document)


def _quoted(line: str) -> str:
    return f'"{line}"' if '"' not in line else f"`{line}`"


def _sayable(line: str) -> bool:
    return len(line) <= LONGEST and len(re.findall(r"[^\W_]{2,}", line)) >= 2


def _spellings(value: str) -> tuple[str, ...]:
    """The value, and for a quoted one the same with other quotes and with none."""
    if len(value) > 2 and value[0] == value[-1] and value[0] in "\"'" and value[0] not in value[1:-1]:
        inner = value[1:-1]
        return tuple(dict.fromkeys((value, inner, f"'{inner}'", f'"{inner}"')))
    return (value,)


def _signature(text: str) -> str:
    """`def f(a, b=1):` at the start of a text; empty where it has no end there."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == ":" and not depth:
            return text[: place + 1]
    return ""


def _defaults(signature: str) -> list[tuple[str, str]]:
    """(parameter, source of its default) of a function's signature."""
    snippet = textwrap.dedent(signature) + " pass"
    try:
        (function,) = ast.parse(snippet).body
    except (SyntaxError, ValueError):
        return []
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    plain = [*function.args.posonlyargs, *function.args.args]
    pairs = list(zip(reversed(plain), reversed(function.args.defaults), strict=False))
    pairs += [(arg, default) for arg, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)]
    found = [(arg.arg, ast.get_source_segment(snippet, default)) for arg, default in pairs if default is not None]
    return [(name, source) for name, source in found if source and "\n" not in source]


def _header(text: str, start: int, keyword: str) -> tuple[int, str] | None:
    """Start and name of the `def` or `class` around the line at `start`: the nearest with less indentation."""
    begin = text.rfind("\n", 0, start) + 1
    indent = start - begin
    for _ in range(80):
        if begin == 0 or indent == 0:
            return None
        begin = text.rfind("\n", 0, begin - 1) + 1
        line = text[begin : text.find("\n", begin)]
        stripped = line.lstrip()
        if not stripped or len(line) - len(stripped) >= indent or stripped[0] in "#)]}\"'":
            continue
        indent = len(line) - len(stripped)
        match = re.match(rf"(?:async )?{keyword} (\w+)", stripped)
        if match:
            return begin + indent, match[1]
        if re.match(r"(async )?(def|class) ", stripped):
            return None
    return None
