"""Problems of ordered steps by a model that is told what to write, and what their steps must be."""

import pytest

from nano3.config.errors import UserError
from nano3.curate.ask.answers import DropError
from nano3.curate.steps.llm.scientific_code import ScientificProblemSettings, check_steps

from ...conftest import dropped

INTRO = "## Problem\n\nA body falls from $h$ metres. When does it land, with air resistance?\n\n"


def step(number, name="", code="", uses=""):
    """A step of one function, which calls the one before it."""
    name = name or f"part_{number}"
    uses = uses or (f"part_{number - 1}" if number > 1 else "abs")
    code = code or (
        f'import math\n\n\ndef {name}(x: float) -> float:\n    """Part."""\n    y = {uses}(x)\n    if y > 1:\n'
        f"        y = math.sqrt(y)\n    return y\n"
    )
    return f"### Step {number}: do {name}\n\nIt computes part {number}.\n\n```python\n{code}```\n\n"


def problem(n, **changed):
    """A problem of `n` steps, some of which are changed: `s3` is step 3."""
    return INTRO + "".join(changed.get(f"s{i}", step(i)) for i in range(1, n + 1))


def reason(text, **settings):
    """Why a problem is dropped; empty: it is not."""
    try:
        check_steps(text, ScientificProblemSettings(**settings))
    except DropError as error:
        return error.reason
    return ""


@pytest.mark.parametrize(("n", "told"), [(4, "number of steps"), (5, ""), (15, ""), (16, "number of steps")])
def test_problems_have_five_to_fifteen_steps(n, told):
    assert reason(problem(n)) == told


TRIVIAL = 'def part_3(x):\n    """Part."""\n    return part_2(x)\n'
TWO = "def part_3(x):\n    y = part_2(x)\n    y += 1\n    return y\n\n\ndef other(x):\n    return x\n"
CLASS = "class Part:\n    def part_3(self, x):\n        y = x\n        y += 1\n        return y\n"
RUNS = "def part_3(x):\n    y = part_2(x)\n    y += 1\n    return y\n\n\nprint(part_3(1))\n"
NUMPY = "import numpy as np\n\n\ndef part_1(x: np.ndarray):\n    y = np.sqrt(x)\n    y += 1\n    return y\n"
NESTED = (
    "def part_3(x):\n    def inner(z):\n        return [part_2(w) for w in z] + [y]\n\n    y = part_2(x)\n"
    "    return inner([y, x])\n"
)
CONSTANT = "G = 9.81\n\n\ndef part_3(x):\n    y = part_2(x)\n    y += G\n    return y\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (problem(5, s3=step(4), s4=step(3)), "steps out of order"),
        (problem(5, s3=step(2)), "steps out of order"),
        (problem(5, s1=step(1, uses="part_4")), "function used before its step"),
        (problem(5, s3=step(3, code=TRIVIAL)), "trivial step"),
        (problem(5, s3=step(3, code=TWO)), "step without one function"),
        (problem(5, s3=step(3, code=CLASS)), "step without one function"),
        (problem(5, s3=step(3, code=RUNS)), "step without one function"),
        (problem(5, s3=step(3, code=CONSTANT)), ""),
        (problem(5, s3=step(3, code=CONSTANT.replace("G = 9.81", ""))), "name that is nowhere defined"),
        (problem(5, s3=step(3, uses="np.sqrt")), "name that is nowhere defined"),
        (problem(5, s1=step(1, code=NUMPY), s3=step(3, uses="np.sqrt")), ""),
        (problem(5, s3=step(3, code="from math import *\n" + CONSTANT)), "wildcard import"),
        (problem(5, s3=step(3, code=NESTED)), ""),
        (problem(5, s3=step(3, code="def part_3(:\n")), "syntax error"),
        (problem(5, s3=step(3, name="part_2", uses="part_1")), "two functions of one name"),
        (problem(5, s3="### Step 3: think\n\nThink.\n\n"), "step without one block of Python"),
        (problem(5, s3=step(3) + "```python\nx = 1\n```\n\n"), "step without one block of Python"),
        (INTRO + "".join(step(i, uses="abs") for i in range(1, 6)), "steps that do not build on each other"),
        (problem(5).removeprefix(INTRO), "steps without a problem"),
        (problem(5, s3=step(3) + "```text\n1.0\n```\n\n"), ""),
    ],
)
def test_steps_are_ordered_functions_one_each(text, told):
    assert reason(text) == told


def test_a_problem_is_kept_with_the_names_of_its_steps(curate, model_server):
    model_server.reply = lambda prompt, body: "NONE" if "nothing here" in prompt else problem(6)
    report, [row] = curate([("scientific-problem", {})], ["falling bodies", "nothing here"], server=model_server.url)
    assert row["text"].strip() == problem(6).strip()
    assert row["id"] == "d0/problem"
    assert row["metadata"]["steps"] == [f"part_{i}" for i in range(1, 7)]
    assert dropped(report, "problem") == {"no problem in it": 1}
    assert "to 15 steps" in model_server.prompts[0]


def test_numbers_of_steps_that_contradict_are_refused(curate):
    with pytest.raises(UserError, match=r"scientific-problem\.most is 3; it must be at least fewest, 5"):
        curate([("scientific-problem", {"most": 3})], ["x"])
