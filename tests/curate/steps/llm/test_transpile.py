"""Python to C++ by a model that is told what to write, through the gates of the preset."""

import shutil

import pytest

from ...conftest import dropped

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
STEPS = [("python-to-cpp", {}), ("cpp", {}), ("same-output", {})]
HEAD = '#include <cstdio>\nint main() { int n; scanf("%d", &n); '
CPP = {
    "right": HEAD + 'printf("%d\\n", 2 * n); }',
    "wrong": HEAD + 'printf("%d\\n", 3 * n); }',
    "broken": HEAD + "printf(2 * m) }",
    "untested": HEAD + 'printf("%d\\n", 3 * n); }',
}


@needs_bwrap
def test_what_compiles_and_writes_the_same_is_kept(curate, model_server):
    names = [*CPP, "python"]

    def reply(prompt, body):
        name = next(name for name in names if f"# {name}\n" in prompt)
        return f"```cpp\n{CPP[name]}\n```" if name in CPP else "```python\nprint()\n```"

    model_server.reply = reply
    rows = [
        {"id": f"{name}.py", "text": f"# {name}\nprint(2 * int(input()))\n", "language": "python"}
        | ({} if name == "untested" else {"tests": [{"stdin": "4", "stdout": "8"}, {"stdin": "-1"}]})
        for name in names
    ]
    rows.append({"id": "main.go", "text": "package main"})
    report, kept = curate(STEPS, rows, server=model_server.url)
    assert {row["id"]: row["metadata"].get("tests_passed") for row in kept} == {
        "right.py/cpp": 2, "untested.py/cpp": None,
    }  # fmt: skip
    assert all(row["metadata"]["language"] == "cpp" for row in kept)
    assert dropped(report, "python-to-cpp") == {"reply in another programming language": 1, "no Python": 1}
    assert dropped(report, "02-cpp") == {"does not compile": 1}
    assert dropped(report, "same-output") == {"another output than the Python's": 1}
