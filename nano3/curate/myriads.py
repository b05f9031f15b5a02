"""Numbers that Chinese and Japanese write with 万, 億 and the like, against those of an English translation."""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal

_UNITS = {"百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8, "兆": 10**12}
_DIGITS = r"\d+(?:,\d{3})*(?:\.\d+)?"
# 兆 is also a megabyte, and 千 begins units of measure: 3千克 is 3 kg.
_PART = rf"({_DIGITS})\s?([百千]?[万萬亿億]|兆(?=[円元])|百(?![分])|千(?![克米瓦卡伏赫焦字]))"
_NUMBER = re.compile(rf"(?<![\d.,])(?:{_PART})+(?:\d+(?![\d.,年月日]))?")
_PARTS, _LAST = re.compile(rf"({_DIGITS})\s?([百千万萬亿億兆]+)"), re.compile(r"\d+\Z")
_WORDS = {
    "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60,
    "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = "|".join(["hundred", *_SCALES])
_WORD = "|".join([*sorted(_WORDS, key=len, reverse=True), _SCALE])
_ENGLISH = re.compile(
    rf"(?<![\w.,])(?:{_DIGITS}(?:[ \n-]+(?:{_SCALE})\b)+|(?:{_WORD})\b(?:[ \n-]+(?:and[ \n]+)?(?:{_WORD})\b)+)",
    re.IGNORECASE,
)


def without_myriads(source: str, reply: str) -> tuple[str, str]:
    """Both texts without the numbers of 万 and the like that the reply writes with words (30 thousand, 1.5 million,
    ten thousand); those that it writes in figures stand as figures at the end of the source: 3万 as 30000."""
    values = Counter(map(_value, (found[0] for found in _NUMBER.finditer(source))))
    if not values:
        return source, reply

    def taken(found: re.Match[str]) -> str:
        value = _english_value(found[0])
        if not values[value]:
            return found[0]
        values[value] -= 1
        return " "

    reply = _ENGLISH.sub(taken, reply)
    return " ".join([_NUMBER.sub(" ", source), *map(_plain, values.elements())]), reply


def _value(number: str) -> Decimal:
    """1億2000万 is 120,000,000; 3万5000 is 35,000."""
    total = Decimal(0)
    for digits, units in _PARTS.findall(number):
        value = Decimal(digits.replace(",", ""))
        for unit in units:
            value *= _UNITS[unit]
        total += value
    last = _LAST.search(number)
    return total + (Decimal(last[0]) if last else 0)


def _english_value(number: str) -> Decimal:
    total, current = Decimal(0), Decimal(0)
    for word in re.findall(rf"{_DIGITS}|[a-z]+", number.lower()):
        if word == "hundred":
            current = (current or 1) * Decimal(100)
        elif word in _SCALES:
            total, current = total + (current or 1) * _SCALES[word], Decimal(0)
        elif word != "and":
            current += _WORDS[word] if word in _WORDS else Decimal(word.replace(",", ""))
    return total + current


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
