"""Words of needles' keys and of common words extraction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import metadata, resources
from itertools import product

PACKAGE = "wonderwords"
BUILT_IN = "nano3 word list"

CONSONANTS = (*"bdfgklmnprstvz", "br", "dr", "gr", "kl", "pl", "st", "tr")
VOWELS = "aeiou"


@dataclass(frozen=True)
class WordList:
    """Words by part of speech."""

    label: str
    """What the result says of their origin."""
    is_reference: bool
    """They are the words that the reference draws from."""
    adjectives: Sequence[str]
    nouns: Sequence[str]
    verbs: Sequence[str]

    @cached_property
    def all(self) -> tuple[str, ...]:
        """Every word once, sorted."""
        return tuple(sorted({*self.nouns, *self.adjectives, *self.verbs}))

    def at_least(self, n: int) -> Sequence[str]:
        """The words, and as many coined ones (`bramolu`) behind them as make `n`."""
        if n <= len(self.all):
            return self.all
        known = set(self.all)
        words = list(self.all)
        for word in _coined():
            if len(words) >= n:
                break
            if word not in known:
                words.append(word)
        return words


@lru_cache(maxsize=1)
def word_list() -> WordList:
    """The words of the package wonderwords, which the reference uses, where it is installed; else the project's own."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return built_in()
    adjectives, nouns, verbs = (_packaged(name) for name in ("adjectivelist.txt", "nounlist.txt", "verblist.txt"))
    return WordList(f"{PACKAGE} {version}", True, adjectives, nouns, verbs)


def built_in() -> WordList:
    """The project's own words: a heading and its words, once for each part of speech."""
    text = resources.files("nano3.eval.ruler").joinpath("words.txt").read_text("utf-8")
    parts = {heading: words.split() for heading, _, words in (part.partition("\n") for part in text.split("\n\n"))}
    return WordList(BUILT_IN, False, **parts)


def _packaged(name: str) -> list[str]:
    text = resources.files(PACKAGE).joinpath("assets", name).read_text("utf-8")
    return sorted({line.strip() for line in text.splitlines() if line.strip()})


def _coined() -> Iterator[str]:
    """Three-syllable words that can be spoken: 1 157 625 of them, neighbours unlike each other."""
    syllables = [consonant + vowel for vowel, consonant in product(VOWELS, CONSONANTS)]
    n = len(syllables)
    # 443 827 has no common divisor with n cubed, so this walk visits every word once.
    for i in range(n**3):
        place = i * 443_827 % n**3
        yield syllables[place // n**2] + syllables[place // n % n] + syllables[place % n]
