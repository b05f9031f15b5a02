"""Python rewritten by a model that is told what to write by rule; the gate keeps what is good."""

import pytest

from nano3.config.errors import UserError

from ...conftest import dropped
from .test_rewrite_gate import planted

STEPS = [("rewrite-code", {"passes": ["style"]}), ("rewrite-gate", {"batch": 50})]


def code_in(prompt):
    return prompt.rsplit("```python\n", 1)[1].removesuffix("\n```")


def rewriting(server, rewrites):
    """The server answers a file with its rewrite."""
    server.reply = lambda prompt, body: f"Here it is:\n\n```python\n{rewrites[code_in(prompt).strip()]}```\n"


def test_planted_rewrites_of_a_model_are_kept_only_where_good(curate, model_server):
    pairs = planted({"broken": 5, "worse": 4, "better": 6, "same": 3})
    rewriting(model_server, {before.strip(): after for _, (before, after) in pairs})
    rows = [{"id": name, "text": before, "language": "Python"} for name, (before, _) in pairs]
    report, kept = curate(STEPS, rows, server=model_server.url)
    good = [(f"{name}/rewrite", after) for name, (_, after) in pairs if not name.startswith(("broken", "worse"))]
    assert [(row["id"], row["text"]) for row in kept] == good
    lost = {**dropped(report, "rewrite-code"), **dropped(report, "rewrite-gate")}
    assert lost.pop("pylint score below the original's") == 4
    assert sum(lost.values()) == 5
    assert all("_original" not in row["metadata"] and row["metadata"]["pylint_score"] >= 0 for row in kept)


def test_each_pass_gets_what_the_one_before_wrote(curate, model_server):
    def reply(prompt, body):
        code = code_in(prompt)
        name = "styled" if "reviewer would accept" in prompt else "alone"
        return f"```python\n{code}\n{name} = 1\n```"

    model_server.reply = reply
    _, [kept] = curate([("rewrite-code", {})], [{"id": "a.py", "text": "x = 1\n"}], server=model_server.url)
    assert [line for line in kept["text"].split("\n") if line] == ["x = 1", "styled = 1", "alone = 1"]
    assert list(kept["metadata"]["asked"][0]["prompts"]) == ["rewrite-self-contained", "rewrite-style"]
    assert kept["metadata"]["language"] == "python"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("def f(): pass", "reply without a block of code"),
        ("```python\n\n```", "reply without a block of code"),
        ("```python\nx = 1\n```\nor\n```python\nx = 2\n```", "reply with several blocks of code"),
        ("```javascript\nlet x = 1\n```", "reply in another programming language"),
        ("```python\ndef f(:\n```", "syntax error after the pass 'style'"),
        ("```python\nimport os\n# ... rest of the file unchanged\n```", "code left out"),
    ],
)
def test_replies_that_are_no_file_are_dropped(curate, model_server, said, reason):
    model_server.reply = lambda prompt, body: said
    report, kept = curate(STEPS[:1], [{"id": "a.py", "text": "x = 1\n"}], server=model_server.url)
    assert kept == []
    assert dropped(report, "rewrite-code") == {reason: 1}


def test_other_languages_and_long_files_are_not_sent(curate, model_server):
    rows = [{"id": "a.c", "text": "int x;"}, {"id": "b.py", "text": "x = 1\n" * 50}, {"id": "notes", "text": "x = 1"}]
    report, kept = curate([("rewrite-code", {"most": 100})], rows, server=model_server.url)
    assert kept == []
    assert dropped(report, "rewrite-code") == {"no Python": 2, "too long to rewrite": 1}
    assert model_server.prompts == []


def test_no_pass_is_refused(curate):
    with pytest.raises(UserError, match="passes is empty"):
        curate([("rewrite-code", {"passes": []})], ["x"])
