"""Every preset that asks a model, whole, on a few documents, with a model that answers by rule."""

import gzip
import json
import time
from email.utils import formatdate
from functools import cache

import pytest

from nano3.config.presets import preset_names
from nano3.curate.catalog import PRESETS, STEPS
from nano3.curate.pipeline import load_pipeline
from nano3.curate.run import plan_run, run_pipeline

from .conftest import documents, model_at
from .steps.llm import test_infinibyte as crossing
from .steps.llm import test_rephrase as rephrasing
from .steps.llm.test_code_dialogue import GOOD as DIALOGUES
from .steps.llm.test_code_dialogue import dialogue, revised
from .steps.llm.test_rqa import GOOD as JUDGEMENT
from .steps.llm.test_rqa import QUESTION, TEXT, thought
from .steps.llm.test_scientific_article import ARTICLE as CODE_ARTICLE
from .steps.llm.test_scientific_code import problem
from .steps.llm.test_textbook import SECTIONS
from .steps.llm.test_translate import ENGLISH, TEXTS
from .steps.test_warc import record

YES = json.dumps({"reason": "good", "verdict": "yes"})
PYTHON = (
    '"""Counts."""\n\n\ndef count_words(text):\n    """Words of a text, and how often each is in it."""\n'
    + "".join(f"    counts = len(text.split()) + {i}\n    print(counts)\n" for i in range(8))
)
CPP = "#include <string>\nint count_words(const std::string& text) { return text.size(); }\n"
BETTER = PYTHON.replace("Counts.", "Counts words.")
CONVERSATION = [{"role": "user", "content": "What is 1 + 2?"}, {"role": "assistant", "content": "It is 3."}]
ARTICLE = "Herons are birds of 13 genera that live near fresh water and build their nests in high trees. " * 3
WIKI = f"'''Heron'''\n\n{ARTICLE}\n\n== References ==\n* x\n"
PROSE = "Sorting a list of numbers takes time, and there are many ways to do it that differ in their cost. " * 3
HTML = (
    f"<html><body><p>Home Login Subscribe</p><p>{PROSE}</p>"
    "<pre class='language-python'>def public(x):\n\tsecret = x + 1  \n\treturn secret\n</pre>"
    "<p>It is used in this way.</p></body></html>"
)

RULES = {
    "Clothe the problem": lambda p: crossing.NEW,
    "Make a new and harder problem": lambda p: crossing.NEW.replace("buoy", "raft on a lake far away from here"),
    "Which is the best?": lambda p: json.dumps({"best": 1}),
    "Reason step by step, check": lambda p: thought("It is 3.", "First, then."),
    "Judge the text below as a source": lambda p: json.dumps(JUDGEMENT),
    "Write one hard question": lambda p: thought(QUESTION),
    "Which level of education": lambda p: json.dumps({"level": "graduate"}),
    "as a part of a textbook": lambda p: SECTIONS,
    "problem of scientific computing": lambda p: problem(5),
    "write an article in English": lambda p: CODE_ARTICLE,
    "Remove everything that does not belong": lambda p: p.split("The part of the page:\n\n")[1].replace(
        "Home Login Subscribe", ""
    ),
    '"verdict"': lambda p: YES,
    "reviewer would accept it": lambda p: f"```python\n{BETTER}```",
    "learn from it and run it alone": lambda p: f"```python\n{BETTER}```",
    "Translate this Python program": lambda p: f"```cpp\n{CPP}```",
    "Ask about different things": lambda p: DIALOGUES["questions"],
    "dialogue of a student": lambda p: DIALOGUES["lesson"],
    "Write the review": lambda p: dialogue("review", end=revised(BETTER)),
    "Translate the text below from": lambda p: ENGLISH,
    "article of an encyclopedia": lambda p: rephrasing.GOOD["wikipedia"],
    "clear and concise": lambda p: rephrasing.GOOD["distill"],
    "passages of a textbook": lambda p: rephrasing.GOOD["extract-knowledge"],
    "one item a line": lambda p: rephrasing.GOOD["knowledge-list"],
    "up to eight questions": lambda p: rephrasing.GOOD["diverse-qa"],
    "encyclopedia's article": lambda p: p.split("\n\n")[-1],
}
"""What stands in a prompt -> what a model that does as it is told answers."""
LONG = TEXT + rephrasing.TEXT * 3
ROWS = {
    "cc-rephrase": ([{"text": rephrasing.TEXT * 3}], 5),
    "cc-translate": ([{"text": TEXTS["de"]}], 1),
    "code-lesson": ([{"id": "a.py", "text": PYTHON}], 1),
    "code-questions": ([{"id": "a.py", "text": PYTHON}], 1),
    "code-review": ([{"id": "a.py", "text": PYTHON}], 1),
    "code-rewrite": ([{"id": "a.py", "text": PYTHON}], 1),
    "code-to-cpp": ([{"id": "a.py", "text": PYTHON}], 1),
    "dqa": ([{"text": rephrasing.TEXT}], 1),
    "infinibyte": ([{"text": crossing.PROBLEM, "field": "coding"}], 2),
    "math-textbook": ([{"text": LONG}], 1),
    "rqa": ([{"text": TEXT}], 1),
    "rqa-seeds": ([{"text": f"{i} {TEXT}"} for i in range(14)], 9),
    "scientific-article": ([{"text": LONG}], 1),
    "scientific-code": ([{"text": LONG}], 1),
    "sft-judge": ([{"messages": CONVERSATION}], 1),
    "wikipedia": ([{"text": WIKI}, {"text": "#REDIRECT [[Heron]]"}], 1),
}
"""Preset -> what it reads, and how many documents it leaves."""
MODEL_PRESETS = [
    name for name in preset_names(PRESETS) if any(STEPS[step.use].model for step in load_pipeline(name).steps)
]


def answer(prompt, body):
    return next(rule(prompt) for sign, rule in RULES.items() if sign in prompt)


def write_pages(path, pages):
    """WARC file of HTML pages."""
    found = [record(f"http://x/{i}", page.encode()) for i, page in enumerate(pages, 1)]
    path.write_bytes(b"".join(gzip.compress(one) for one in found))
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@cache
def types_of_openai():
    """Keys of a request, its type, and the type of its messages, as openai's own client has them."""
    from openai.types.chat import ChatCompletionUserMessageParam
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as Request
    from pydantic import TypeAdapter

    return Request.__annotations__.keys(), TypeAdapter(Request), TypeAdapter(list[ChatCompletionUserMessageParam])


def check_body(body):
    """A request has no other keys and types than openai's own client sends."""
    keys, request, messages = types_of_openai()
    assert body.keys() <= keys
    request.validate_python(body, strict=True)
    messages.validate_python(body["messages"], strict=True)


@pytest.mark.parametrize("name", MODEL_PRESETS)
def test_a_preset_that_asks_a_model_runs_whole(model_server, tmp_path, name):
    if name == "cc-code":
        source, n = write_pages(tmp_path / "pages.warc.gz", [HTML, "<p>no code here</p>" * 40]), 1
    else:
        rows, n = ROWS[name]
        source = write_lines(tmp_path / "in.jsonl", rows)
    model_server.reply = answer
    plan = plan_run(
        load_pipeline(name), tmp_path / "out", [str(source)], model=model_at(model_server.url, tmp_path / "answers")
    )
    report = run_pipeline(plan, 1)
    assert report.faults() == []
    for body in model_server.bodies:
        check_body(body)
    kept = documents(tmp_path / "out")
    assert len(kept) == n, [(step.label, step.account.dropped, step.account.notes) for step in report.steps]
    if name == "cc-code":
        assert "def public(x):\n\tsecret = x + 1  \n\treturn secret\n" in kept[0]["text"]
        assert "Login" not in kept[0]["text"]
        assert sum("[[CODE 1 python]]" in prompt for prompt in model_server.prompts) == 1
        assert not any("secret = x" in prompt for prompt in model_server.prompts if "[[CODE 1" in prompt)
    elif name == "sft-judge":
        assert kept[0]["messages"] == CONVERSATION
        assert report.steps[-2].account.notes["answers of the model"] == 2
    else:
        assert all(row["metadata"]["asked"] for row in kept)


WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]


def several(tmp_path, name):
    """Six documents of a preset or more, each with a word of its own; how many, and the file."""
    if name == "cc-code":
        pages = [HTML.replace("It is used", f"The {word} is used") for word in WORDS]
        return len(pages), write_pages(tmp_path / "pages.warc.gz", pages)
    rows = []
    for i, word in enumerate(WORDS):
        row = ROWS[name][0][0] | {"id": f"{word}.py"}
        if name == "wikipedia":  # of which the end goes
            row["text"] = row["text"].replace("birds", f"{word} birds")
        elif "text" in row:
            row["text"] += f"\n# {word}\n"
        else:
            row["messages"] = [CONVERSATION[0] | {"content": f"{word}: what is 1 + 2?"}, CONVERSATION[1]]
        rows += [row] if i else [row, *ROWS[name][0][1:]]
    return len(rows), write_lines(tmp_path / "in.jsonl", rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODEL_PRESETS)
def test_a_preset_loses_nothing_where_requests_fail(model_server, tmp_path, name):
    failing = ["full", "answered", "full", "answered", "broken", "cut", "answered", "malformed", "hang"]
    waits = ["0.1", formatdate(time.time(), usegmt=True)]

    def draw():
        kind = failing.pop(0) if failing else "answered"
        if kind == "full":
            model_server.faults.retry_after = waits.pop(0)
        return kind

    model_server.reply, model_server.draw = answer, draw
    n, source = several(tmp_path, name)
    model = model_at(model_server.url, tmp_path / "answers", timeout=1.0)
    report = run_pipeline(plan_run(load_pipeline(name), tmp_path / "out", [str(source)], model=model), 1)
    assert report.faults() == []
    assert failing == [], "as many requests as fail"
    assert report.entered.documents == n
    kept = documents(tmp_path / "out")
    assert kept
    lost = {reason for step in report.steps for reason in step.account.dropped}
    assert not {reason for reason in lost if "no answer" in reason}
    model_server.clear()
    run_pipeline(plan_run(load_pipeline(name), tmp_path / "again", [str(source)], model=model), 1)
    assert model_server.prompts == []
    assert documents(tmp_path / "again") == kept
