"""Numbers: sort them, add two of them digit by digit."""

from __future__ import annotations

import random
from itertools import zip_longest

from nano3.data.tasks.task import Draft, Generator, answer, same_text, user

SORTS = ("Sort ascending: {numbers}", "Put these numbers in order, smallest first: {numbers}")
ADDS = ("{a} + {b} =", "What is {a} + {b}?", "Add {a} and {b}.")


def _sort(rng: random.Random, level: int) -> Draft:
    numbers = [rng.randrange(100) for _ in range(level)]
    left, lines = list(numbers), []
    for number in sorted(numbers):
        left.remove(number)
        lines.append(" ".join(map(str, [number, "|", *left])))
    result = " ".join(map(str, sorted(numbers)))
    prompt = rng.choice(SORTS).format(numbers=" ".join(map(str, numbers)))
    return Draft(f"sort {result}", [user(prompt)], result, [answer("\n".join(lines), result)])


def _add(rng: random.Random, level: int) -> Draft:
    least = 10 ** (level - 1) if level > 1 else 0
    a, b = (rng.randrange(least, 10**level) for _ in range(2))
    carry, lines = 0, []
    for x, y in zip_longest(reversed(str(a)), reversed(str(b)), fillvalue="0"):
        total = int(x) + int(y) + carry
        lines.append(f"{x}+{y}+{carry}={total}")
        carry = total // 10
    prompt = rng.choice(ADDS).format(a=a, b=b)
    content = f"add {min(a, b)} {max(a, b)}"
    return Draft(content, [user(prompt)], str(a + b), [answer("\n".join(lines), str(a + b))])


SORT = Generator("sort", "sort numbers from 0 to 99", "how many numbers", (2, 3, 4), 32, _sort, same_text)
ADD = Generator("add", "add two numbers", "digits of each", (1, 2, 3), 32, _add, same_text)
