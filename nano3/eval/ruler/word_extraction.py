"""The most common words of a list: `cwe` and `fwe` (common_words_extraction.py and freq_words_extraction.py of the
reference's scripts/data/synthetic).
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence

from nano3.eval.ruler import templates
from nano3.eval.ruler.sample import Draft, Plan, Request

N_COMMON = 10
SHORT = 4096
"""Below this length words are repeated less often, and the example is shorter."""
REPEATS = {"common": 30, "uncommon": 3}
SHORT_REPEATS = {"common": 6, "uncommon": 1}
EXAMPLE = (40, {"common": 10, "uncommon": 3})
"""Words of the solved example and how often they appear."""
SHORT_EXAMPLE = (20, {"common": 3, "uncommon": 1})

ALPHA = 2.0
ZETA = math.pi**2 / 6
"""The zeta function at ALPHA."""
WORD_LETTERS = 6
TOKENS_PER_CODED_WORD = 50
"""One coded word in the vocabulary for that many tokens of the length."""
NOISE_WORD = "..."
N_ASKED = 3
LEAST_WORDS = 53
"""From here the third and the fourth most frequent coded word always differ in number."""


def common_words(request: Request) -> Plan:
    """The prompt of `cwe`, in different words of the list.

    A tokenizer so small that the long form does not fit at 4096 or more gets the short one.
    """
    if request.length >= SHORT:
        plan = _common_words(request, EXAMPLE, REPEATS)
        if request.count(plan.build(plan.least).prompt) + request.other <= request.length:
            return plan
    return _common_words(request, SHORT_EXAMPLE, SHORT_REPEATS)


def _common_words(request: Request, example: tuple[int, dict[str, int]], repeats: dict[str, int]) -> Plan:
    n_example, example_repeats = example
    drawn = Drawn(request, "words")
    shown, answer = _numbered_list(Drawn(request, "example").first(n_example), example_repeats, request.rng("shown"))
    solved = f"{templates.CWE.format(context=shown)}{templates.CWE_PREFIX} {_numbered(answer)}\n"

    def build(n: int) -> Draft:
        context, common = _numbered_list(drawn.first(n), repeats, request.rng("order"))
        return Draft(solved + templates.CWE.format(context=context), templates.CWE_PREFIX, common)

    return Plan(build, least=N_COMMON + 1)


class Drawn:
    """Different words in random order, as many as are asked for.

    Where the list has too few, coined words come in at random places, so that the common words, which are the first
    ones, are coined as often as the others: else their kind would give them away.
    """

    def __init__(self, request: Request, stream: str) -> None:
        self._words = request.sources.words
        self._rng = request.rng(stream)
        self._places: list[float] = []

    def first(self, n: int) -> Sequence[str]:
        """The first `n` words of a list that has `n` or more."""
        words = self._words.at_least(n)
        while len(self._places) < len(words):
            self._places.append(self._rng.random())
        return [words[i] for i in sorted(range(len(words)), key=self._places.__getitem__)[:n]]


def _numbered_list(words: Sequence[str], repeats: dict[str, int], rng: random.Random) -> tuple[str, list[str]]:
    """The shuffled list as text, and its common words."""
    common = list(words[:N_COMMON])
    items = common * repeats["common"] + list(words[N_COMMON:]) * repeats["uncommon"]
    rng.shuffle(items)
    return _numbered(items), common


def _numbered(items: Sequence[str]) -> str:
    return " ".join(f"{number}. {item}" for number, item in enumerate(items, 1))


def frequent_words(request: Request) -> Plan:
    """The prompt of `fwe`, in words drawn from a zeta distribution.

    As in the reference the numbers of words are the distribution's expected ones, and its most frequent word is written
    as dots that the question says to ignore.
    """
    coded = _coded_words(request.rng("words"), max(request.length // TOKENS_PER_CODED_WORD, N_ASKED + 2))

    def build(n: int) -> Draft:
        items = [word for word, number in zip(coded, frequencies(n, len(coded)), strict=True) for _ in range(number)]
        request.rng("order").shuffle(items)
        text = templates.FWE.format(context=" ".join(items))
        return Draft(text, templates.FWE_PREFIX, coded[1 : N_ASKED + 1])

    return Plan(build, least=LEAST_WORDS)


def frequencies(n: int, n_words: int) -> list[int]:
    """How often each of `n_words` words, the most frequent first, is expected among `n` draws."""
    return [int(n * rank**-ALPHA / ZETA) for rank in range(1, n_words + 1)]


def _coded_words(rng: random.Random, n: int) -> list[str]:
    """Dots, then different words of random letters."""
    words: dict[str, None] = {NOISE_WORD: None}
    while len(words) < n:
        words["".join(rng.choices(string.ascii_lowercase, k=WORD_LETTERS))] = None
    return list(words)
