"""Words for tasks: common ones, made-up ones, and names."""

from __future__ import annotations

import random


def _words(text: str) -> list[str]:
    return text.split()


WORDS = _words("""
apple arrow badge baker beach berry blade board boat bone book bottle bowl bread brick bridge brush button cabin cake
camel candle card carrot castle chair chalk cheese cherry circle cloud coat coin copper corn cotton cow crown cup
dance desk dinner dish doctor dog door dragon dream drum duck eagle earth egg engine fabric face farm feather field
fig finger fire fish flag floor flower forest fork fox frame frog fruit garden gate ghost gift glass glove goat gold
grape grass guitar hammer hand harbor hat heart hill honey horse house ice iron island jacket jar jewel juice key
king kitchen kite knife ladder lake lamp leaf lemon letter lime lion lock magnet map market melon milk mirror money
moon mouse music nail needle nest night nose nut ocean olive onion orange oven owl page paint palm paper parrot
peach pear pencil pepper piano pillow pilot plane plant plate plum pocket pond potato queen rabbit radio rain ribbon
rice ring river road robot rock roof room rope rose ruler sail salt sand school seed shadow sheep shell ship shoe
silver snake snow soap sock song soup spider spoon spring star stone storm strawberry street sugar summer sun swan
table tailor tea tiger tomato tower town train tree truck tunnel turtle valley violin wagon wall watch water wheel
wind window winter wolf wood wool yard zebra
""")

NAMES = _words("""
Ada Alan Amy Ana Ann Ben Bob Carl Cara Dan Dora Ed Ella Emil Eva Finn Fred Gina Greta Hal Hans Ida Igor Ina Ivan Jack
Jan Jane Joe John Jon Karl Kate Kim Lara Lena Leo Lily Lisa Lou Mara Mark Mary Max Mia Mona Nat Ned Nina Nora Olga
Omar Oscar Otto Pam Paul Pia Rita Rob Rosa Ruth Sam Sara Sue Tara Ted Tim Tina Tom Una Vera Viv Will Yara Zoe
""")

_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"
MADE_UP = 0.8
"""Share of the words of `word` that are made up: a model has to read letters, not to know words."""


def word(rng: random.Random, letters: int) -> str:
    """A word of so many letters, common or made up."""
    common = [w for w in WORDS if len(w) == letters]
    return rng.choice(common) if common and rng.random() >= MADE_UP else made_up(rng, letters)


def made_up(rng: random.Random, letters: int) -> str:
    """Letters that can be spoken: consonants and vowels by turns, with a double one here and there."""
    vowel, text = rng.random() < 0.3, ""
    while len(text) < letters:
        text += rng.choice(_VOWELS if vowel else _CONSONANTS) * (2 if rng.random() < 0.1 else 1)
        vowel = not vowel
    return text[:letters]
