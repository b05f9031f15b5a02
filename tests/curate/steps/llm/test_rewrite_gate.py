"""The gate of rewritten Python, with pairs planted here."""

import json
import random

import pytest
from datatrove.data import Document

from nano3.curate.step import Context
from nano3.curate.steps.llm.rewrite_gate import ORIGINAL, RewriteGate, RewriteGateSettings

NAMES = ["total", "largest", "smallest", "average", "median"]
PLAIN = "def {name}_{i}(values):\n    x=0\n    for v in values: x+=v\n    return x\n"
BETTER = '"""Sums of lists."""\n\n\ndef {name}_{i}(values):\n    """The sum of all values."""\n    return sum(values)\n'
WORSE = [
    "import os, sys\n" + PLAIN,
    PLAIN + "def other(l, X):\n  global Q\n  try: Q=l\n  except: pass\n  return eval(X)\n",
    BETTER.replace("return sum(values)", "return sum(valuse)"),
]
BROKEN = [
    BETTER.replace("values):", "values:"),
    BETTER.replace("return sum(values)", "return sum(values"),
    BETTER.replace('"""Sums', '""Sums'),
    BETTER.replace("    return", "  return"),
    "print 'sum'\n" + BETTER,
]


def pair(kind, i):
    """(original, rewrite) of a kind."""
    given = {"name": NAMES[i % len(NAMES)], "i": i}
    fill = lambda text: text.replace("{name}", given["name"]).replace("{i}", str(given["i"]))  # noqa: E731
    match kind:
        case "broken":
            return fill(PLAIN), fill(BROKEN[i % len(BROKEN)])
        case "worse":
            return fill(BETTER), fill(WORSE[i % len(WORSE)])
        case "same":
            return fill(PLAIN), fill(PLAIN).replace("x", "y")
        case _:
            return fill(PLAIN), fill(BETTER)


def judged(tmp_path, pairs, **settings):
    """Ids kept, and reasons of the others."""
    gate = RewriteGate(RewriteGateSettings(**settings), Context("01-rewrite-gate", tmp_path, 1))
    documents = [Document(after, name, metadata={ORIGINAL: before}) for name, (before, after) in pairs]
    for document in documents:  # as the step before does
        document.metadata["language"] = "python"
    kept = list(gate.run(iter(documents)))
    account = json.loads((tmp_path / "accounts/01-rewrite-gate/00000.json").read_text())
    return kept, {reason: one["size"]["documents"] for reason, one in account["dropped"].items()}


def planted(counts):
    kinds = [kind for kind, n in counts.items() for _ in range(n)]
    random.Random(3).shuffle(kinds)
    return [(f"{kind}-{i}", pair(kind, i)) for i, kind in enumerate(kinds)]


def check(tmp_path, counts, **settings):
    pairs = planted(counts)
    kept, dropped = judged(tmp_path, pairs, **settings)
    assert [document.id for document in kept] == [name for name, _ in pairs if not name.startswith(("broken", "worse"))]
    assert dropped == {"syntax error": counts["broken"], "pylint score below the original's": counts["worse"]}
    assert all(one.metadata["pylint_score"] >= one.metadata["original_pylint_score"] for one in kept)


def test_only_rewrites_that_parse_and_are_no_worse_are_kept(tmp_path):
    check(tmp_path, {"broken": 5, "worse": 3, "better": 4, "same": 2}, batch=50)


@pytest.mark.slow
def test_of_two_hundred_planted_rewrites_exactly_the_good_hundred_are_kept(tmp_path):
    check(tmp_path, {"broken": 50, "worse": 50, "better": 80, "same": 20})


def test_what_tells_pylint_to_look_away_or_has_no_original_is_dropped(tmp_path):
    skipping = "# pylint: skip-file\nx=1\n"
    kept, dropped = judged(tmp_path, [("a", ("x=1\n", skipping)), ("b", (None, "x=1\n"))])
    assert kept == []
    assert dropped == {"pylint cannot judge it": 1, "no original to compare with": 1}


@pytest.mark.parametrize("rewrite", ['"""Sums of lists."""\n', "# The rest stays as it is.\n"])
def test_a_rewrite_without_a_statement_is_dropped(tmp_path, rewrite):
    kept, dropped = judged(tmp_path, [("a", ("def f(x):\n    return x\n", rewrite)), ("b", ("# a\n", rewrite))])
    assert [document.id for document in kept] == ["b"]
    assert dropped == {"rewrite without a statement": 1}
