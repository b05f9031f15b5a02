"""Made tasks of the code and terminal environments; their column `solution` is for people, not for measuring."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nano3.rl.environments.rows import Row

WORDS = [
    "apple", "bread", "chair", "dream", "eagle", "flame", "grape", "house", "ivory", "jelly", "knife", "lemon", "mango",
    "night", "ocean", "paper", "queen", "river", "stone", "tiger", "uncle", "voice", "water", "zebra",
]  # fmt: skip
FILES = ["notes", "list", "draft", "names", "items", "log", "plan", "words", "table", "memo"]
ENDINGS = ["txt", "md", "csv", "log"]
BLOCK = "Put it in a ```python block."


def code_rows(rng: random.Random) -> Iterator[Row]:
    """Small programs and functions, with tests."""
    while True:
        prompt, tests, solution = rng.choice(_CODE)(rng)
        yield {"prompt": f"{prompt} {BLOCK}", "tests": tests, "solution": solution}


def terminal_rows(rng: random.Random) -> Iterator[Row]:
    """Chores with files, and how these are afterwards."""
    while True:
        prompt, files, expected, solution = rng.choice(_TERMINAL)(rng)
        yield {"prompt": prompt, "files": files, "expected": expected, "solution": solution}


Program = tuple[str, list[dict[str, Any]], str]
Chore = tuple[str, dict[str, str], dict[str, str | None], str]


def _calls(name: str, function: Callable[[Any], Any], arguments: list[Any]) -> list[dict[str, Any]]:
    return [{"call": f"{name}({argument!r})", "result": function(argument)} for argument in arguments]


def _numbers(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(-50, 100) for _ in range(count)]


def _linear(rng: random.Random) -> Program:
    a, b = rng.randrange(2, 40), rng.randrange(1, 100)
    tests = [{"stdin": f"{n}\n", "stdout": f"{a * n + b}\n"} for n in (0, 1, -7, *_numbers(rng, 3))]
    prompt = f"Write a Python program that reads a number and prints {a} times the number plus {b}."
    return prompt, tests, f"print({a} * int(input()) + {b})"


def _multiples(rng: random.Random) -> Program:
    k, least = rng.randrange(2, 12), rng.randrange(-20, 60)
    tests = _calls(
        "multiples", lambda xs: [x for x in xs if x % k == 0 and x >= least],
        [[], [k * least], *(_numbers(rng, 12) for _ in range(4))],
    )  # fmt: skip
    prompt = (
        f"Write a Python function multiples(xs) that returns the numbers of the list xs that are divisible by {k} and "
        f"not below {least}, in their order."
    )
    return prompt, tests, f"def multiples(xs):\n    return [x for x in xs if x % {k} == 0 and x >= {least}]"


def _limited(rng: random.Random) -> Program:
    low = rng.randrange(-30, 30)
    high = low + rng.randrange(5, 60)
    tests = _calls(
        "limited", lambda xs: [min(max(x, low), high) for x in xs], [[], *(_numbers(rng, 8) for _ in range(4))]
    )
    prompt = (
        f"Write a Python function limited(xs) that returns the list xs with numbers below {low} replaced by {low} and "
        f"numbers above {high} by {high}."
    )
    return prompt, tests, f"def limited(xs):\n    return [min(max(x, {low}), {high}) for x in xs]"


def _letters(rng: random.Random) -> Program:
    first, second, third = rng.sample("abcdeghilmnoprstuw", 3)
    texts = ["", *(" ".join(rng.sample(WORDS, 5)) for _ in range(5))]
    tests = _calls("letters", lambda text: sum(text.count(letter) for letter in (first, second, third)), texts)
    prompt = (
        f"Write a Python function letters(text) that returns how often the letters {first}, {second} and {third} occur "
        "in text, together."
    )
    return prompt, tests, f"def letters(text):\n    return sum(text.count(c) for c in '{first}{second}{third}')"


def _recurrence(rng: random.Random) -> Program:
    first, second, p, q = (rng.randrange(1, 6) for _ in range(4))

    def item(n: int) -> int:
        a, b = first, second
        for _ in range(n):
            a, b = b, p * b + q * a
        return a

    prompt = (
        f"Write a Python function item(n) for the sequence that begins with item(0) = {first} and item(1) = {second} "
        f"and goes on with item(n) = {p} * item(n - 1) + {q} * item(n - 2)."
    )
    solution = f"def item(n):\n    a, b = {first}, {second}\n    for _ in range(n):\n"
    solution += f"        a, b = b, {p} * b + {q} * a\n    return a"
    return prompt, _calls("item", item, [0, 1, 2, 3, 7, 12]), solution


def _long_words(rng: random.Random) -> Program:
    k, sign = rng.randrange(1, 5), rng.choice("-+/:;,")
    words = ["a", "an", "the", "four", *WORDS]
    lines = [" ".join(rng.sample(words, 6)) for _ in range(4)]
    tests = [{"stdin": f"{line}\n", "stdout": sign.join(w for w in line.split() if len(w) > k)} for line in lines]
    prompt = (
        f"Write a Python program that reads a line and prints its words of more than {k} letters in their order, with "
        f"{sign} between them."
    )
    return prompt, tests, f"print('{sign}'.join(w for w in input().split() if len(w) > {k}))"


_CODE = (_linear, _multiples, _limited, _letters, _recurrence, _long_words)


def _names(rng: random.Random, count: int) -> list[str]:
    return [f"{stem}.{rng.choice(ENDINGS)}" for stem in rng.sample(FILES, count)]


def _lines(rng: random.Random, count: int) -> list[str]:
    return rng.sample(WORDS, count)


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _rename(rng: random.Random) -> Chore:
    (old, new), text = _names(rng, 2), _text(_lines(rng, 3))
    return f"Rename {old} to {new}.", {old: text}, {new: text, old: None}, f"mv {old} {new}"


def _sort(rng: random.Random) -> Chore:
    (old, new), lines, backward = _names(rng, 2), _lines(rng, 5), rng.random() < 0.5
    order, option = ("backward by the alphabet", "-r ") if backward else ("by the alphabet", "")
    wanted = _text(sorted(lines, reverse=backward))
    prompt = f"Sort the lines of {old} {order} into {new}; leave {old} as it is."
    return prompt, {old: _text(lines)}, {new: wanted, old: _text(lines)}, f"sort {option}{old} > {new}"


def _count(rng: random.Random) -> Chore:
    (old, new), [word, *others] = _names(rng, 2), _lines(rng, 4)
    lines = [f"{rng.choice([word, *others])} {i}" for i in range(rng.randrange(4, 9))]
    wanted = f"{sum(line.startswith(word) for line in lines)}\n"
    prompt = f"Write the number of lines of {old} with the word {word} into {new}, and a line break."
    return prompt, {old: _text(lines)}, {new: wanted}, f"grep -c {word} {old} > {new}"


def _delete(rng: random.Random) -> Chore:
    stems, (gone, kept) = rng.sample(FILES, 4), rng.sample(ENDINGS, 2)
    files = {f"{stem}.{gone if i < 2 else kept}": f"{stem}\n" for i, stem in enumerate(stems)}
    expected = {name: None if name.endswith(gone) else text for name, text in files.items()}
    listed = ", ".join(sorted(files))
    return f"There are {listed}. Delete those that end in .{gone}, no others.", files, expected, f"rm *.{gone}"


def _replace(rng: random.Random) -> Chore:
    [name], (old, new, other) = _names(rng, 1), rng.sample(WORDS, 3)
    text = _text([f"{old} {other}", other, f"{other} {old}"])
    prompt = f"Replace the word {old} by {new} everywhere in {name}."
    return prompt, {name: text}, {name: text.replace(old, new)}, f"sed -i s/{old}/{new}/g {name}"


def _join(rng: random.Random) -> Chore:
    (first, second, whole), lines = _names(rng, 3), _lines(rng, 4)
    files = {first: _text(lines[:2]), second: _text(lines[2:])}
    prompt = f"Write {first} and behind it {second} into {whole}."
    return prompt, files, {whole: files[first] + files[second]}, f"cat {first} {second} > {whole}"


def _first(rng: random.Random) -> Chore:
    (old, new), lines, count = _names(rng, 2), _lines(rng, 7), rng.randrange(2, 6)
    prompt = f"Put the first {count} lines of {old} into {new}."
    return prompt, {old: _text(lines)}, {new: _text(lines[:count])}, f"head -n {count} {old} > {new}"


def _move(rng: random.Random) -> Chore:
    names, folder = _names(rng, 3), rng.choice(WORDS)
    files = {name: f"{name}\n" for name in names}
    expected: Mapping[str, str | None] = {f"{folder}/{name}": text for name, text in files.items()}
    prompt = f"Make a folder {folder} and move {names[0]}, {names[1]} and {names[2]} into it."
    solution = f"mkdir {folder} && mv {' '.join(names)} {folder}"
    return prompt, files, {**expected, **dict.fromkeys(names)}, solution


_TERMINAL = (_rename, _sort, _count, _delete, _replace, _join, _first, _move)
