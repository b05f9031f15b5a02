"""Make the JSONL files beside this one: `python -m nano3.eval.lm.tasks.make`. The same files each time."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
N_CHOICES = 4
SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
OPPOSITES = """
hot cold; tall short; wet dry; empty full; early late; loud quiet; rough smooth; rich poor; heavy light; wide
narrow; young old; fast slow; strong weak; deep shallow; near far; open closed; clean dirty; sharp blunt;
thick thin; true false; happy sad; alive dead; high low; hard soft; sweet bitter; safe dangerous; simple
complex; public private; first last; left right; up down; inside outside; above below; before after; win lose;
buy sell; push pull; rise fall; begin end; arrive depart; remember forget; accept refuse; build destroy; give
take; laugh cry; love hate; summer winter; day night; friend enemy; question answer; victory defeat; north
south; east west; top bottom; front back; profit loss
"""
MODULES = {
    "heapq": "heappush heappop heapify nlargest",
    "bisect": "bisect_left insort",
    "json": "loads dumps",
    "math": "gcd isqrt factorial hypot",
    "shutil": "copytree rmtree which",
    "itertools": "chain permutations groupby",
    "functools": "lru_cache reduce singledispatch",
    "textwrap": "dedent indent fill",
    "random": "shuffle randint gauss",
    "statistics": "median stdev quantiles",
    "re": "fullmatch finditer",
    "glob": "iglob",
    "tempfile": "mkdtemp gettempdir",
    "csv": "reader DictWriter",
    "hashlib": "sha256 blake2b",
    "base64": "b64encode b85decode",
    "difflib": "unified_diff get_close_matches",
    "inspect": "getsource signature",
    "shlex": "split quote",
    "secrets": "token_hex",
    "threading": "Lock Barrier",
    "subprocess": "Popen check_output",
    "collections": "Counter deque OrderedDict",
    "datetime": "timedelta timezone",
    "struct": "unpack calcsize",
    "zlib": "crc32 decompress",
    "socket": "getaddrinfo",
    "argparse": "ArgumentParser",
    "pprint": "pformat",
    "calendar": "monthrange isleap",
}
PROSE = (
    "The kettle clicked off before the toast was ready. She poured the water anyway, set the cup by the window, and "
    "watched the postman work his way up the hill, one gate at a time.",
    "A river carries what the hills give it. In spring it is brown with soil, in late summer so clear that one can "
    "count the stones, and after the first frost a thin line of ice marks each bank.",
    "To repair a bicycle tyre, take the wheel off the frame, ease one side of the tyre over the rim, and pull out the "
    "tube. Pump a little air into it and listen for the leak, or hold it under water and look for bubbles.",
    "Bread needs flour, water, salt and time. Of the four, time is the one that cannot be bought: a dough that has "
    "rested overnight tastes better than one that was hurried with more yeast.",
    "The meeting began ten minutes late. Nobody had brought the figures, so they agreed to meet again on Thursday, and "
    "this time to send the tables round the day before.",
    "Maps leave things out on purpose. A map of the railway has no use for trees, and one of footpaths can do without "
    "the price of a ticket. What is left out is as much a choice as what is drawn.",
    "When the lights failed, the cellist went on playing. She knew the piece by heart; the others found their places "
    "again one by one, and by the last movement half the hall had not noticed that the lamps were back.",
    "A library that nobody uses is a store of paper. The books in the corner by the heater were worn at the edges, and "
    "the old man who sat there most afternoons knew which of them had lost a page.",
    "Set the table by the door for six, not for eight. The cousins will come later, if the roads are clear, and they "
    "can have the bench from the kitchen.",
    "The first version of the program was short and slow. The second was fast, and twice as long. The third was "
    "short again, because by then its author knew which parts had never mattered.",
    "From the top of the tower you can see both coasts on a clear day. There are not many clear days. Most visitors "
    "see a grey wall of cloud, eat their sandwiches, and walk down again content.",
    "Water boils at a lower temperature in the mountains, because the air presses on it less. Potatoes take longer "
    "there, and anyone who forgets this eats late.",
)


def arithmetic(rng: random.Random) -> Iterable[dict[str, Any]]:
    """Sums and differences of two-digit numbers and products of one-digit numbers; no result below zero."""
    seen: set[str] = set()
    while len(seen) < 88:
        sign = "+-*"[len(seen) % 3]
        top = 9 if sign == "*" else 99
        a, b = sorted((rng.randint(2, top), rng.randint(2, top)), reverse=True)
        task = f"{a} {sign} {b}"
        if task not in seen:
            seen.add(task)
            yield {"question": task, "answer": str(SIGNS[sign](a, b))}


def opposites(rng: random.Random) -> Iterable[dict[str, Any]]:
    """Each word's opposite among words that are opposites of others."""
    pairs = [pair.split() for pair in OPPOSITES.replace("\n", " ").split(";")]
    for word, opposite in pairs:
        example, *wrong = rng.sample([pair for pair in pairs if pair[0] != word], N_CHOICES)
        choices = [opposite, *(pair[1] for pair in wrong)]
        rng.shuffle(choices)
        yield {"example": example, "word": word, "choices": choices, "answer": choices.index(opposite)}


def stdlib(rng: random.Random) -> Iterable[dict[str, Any]]:
    """Which module has a name; the wrong ones are asked, and do not have it."""
    found = {module: importlib.import_module(module) for module in MODULES}
    for module, names in MODULES.items():
        for name in names.split():
            assert hasattr(found[module], name), f"{module} has no {name}"
            without = [other for other in MODULES if not hasattr(found[other], name)]
            choices = [module, *rng.sample(without, N_CHOICES - 1)]
            rng.shuffle(choices)
            yield {"name": name, "choices": choices, "answer": choices.index(module)}


def files() -> dict[str, str]:
    """Name and text of every file."""
    made = {
        "arithmetic.jsonl": arithmetic(random.Random(1)),
        "opposites.jsonl": opposites(random.Random(2)),
        "stdlib.jsonl": stdlib(random.Random(3)),
        "prose.jsonl": ({"text": text} for text in PROSE),
    }
    return {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in made.items()}


if __name__ == "__main__":
    for file_name, text in files().items():
        (FOLDER / file_name).write_text(text, "utf-8")
