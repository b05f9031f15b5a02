"""Environments by name, by entry point and by module:object; rows in the forms of other projects."""

import importlib
import importlib.metadata
import json
import sys
import tomllib
from pathlib import Path

import pytest

from nano3.config.errors import UserError
from nano3.rl.environments import registry
from nano3.rl.environments.base import Environment, Reward, Rollout, Task, check_ids, user
from nano3.rl.environments.registry import LIBRARIES, OWN, load_environment, names
from nano3.rl.environments.rows import column, prompt_of, read_rows, task_of, tools_of

MODULE = """
from nano3.rl.environments.base import Reward, Task, user


class Echo:
    name = "echo"

    def __init__(self, word="a", n=2):
        self.word, self.n = word, n

    def tasks(self):
        return [Task(str(i), user("Say it."), self.word) for i in range(self.n)]

    def verify(self, task, rollout):
        return Reward(float(rollout.answer == task.truth))


def nothing():
    return object()


def short(completions, limit):
    return [float(len(text) <= n) for text, n in zip(completions, limit)]


class Game:
    def reset(self, **row):
        self.reward = 0.0

    def win(self) -> str:
        'Win.'
        self.reward = 1.0
        return "won"
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A module that defines an environment, and an installed package that names it."""
    (tmp_path / "echo_environment.py").write_text(MODULE)
    info = tmp_path / "echo_pack-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-pack\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[nano3.environments]\necho = echo_environment:Echo\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("echo_environment", None)


def test_ours_keep_the_contract():
    assert "mcq" in names()
    for name in ("mcq", "json_schema"):
        made, source = load_environment(name, n=5)
        assert made.name == name
        assert isinstance(made, Environment)
        tasks = made.tasks()
        assert len({task.id for task in tasks}) == 5
        assert tasks == load_environment(name, n=5)[0].tasks()
        assert (source.package, source.spec) == ("nano3", name)
        assert len(source.sha256) == 64
        json.dumps([task.truth for task in tasks])


def test_by_entry_point_and_by_module(package):
    assert "echo" in names()
    by_point, source = load_environment("echo", word="b")
    assert (source.package, source.version) == ("echo-pack", "1.2")
    by_module, other = load_environment("echo_environment:Echo", word="b")
    assert source.sha256 == other.sha256
    for made in (by_point, by_module):
        [first, _] = made.tasks()
        assert made.verify(first, Rollout.of_text("b")) == Reward(1.0)
        assert made.verify(first, Rollout()).passed is False


def test_the_source_changes_with_all_code_and_packages_that_a_reward_depends_on(tmp_path, monkeypatch):
    folder = tmp_path / "echo_parts" / "inner"
    folder.mkdir(parents=True)
    for place in (folder.parent, folder):
        (place / "__init__.py").write_text("")
    (folder / "echo.py").write_text(MODULE)
    (folder.parent / "helper.py").write_text("LIMIT = 1\n")
    info = tmp_path / "echo_parts-3.0.dist-info"
    info.mkdir()
    required = "Requires-Dist: pytest>=1\nRequires-Dist: not-there-at-all; extra == 'x'\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: echo_parts\nVersion: 3.0\n{required}")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    first = load_environment("echo_parts.inner.echo:Echo")[1]
    assert (first.version, first.requires) == ("3.0", {"pytest": pytest.__version__})
    assert load_environment("echo_parts.inner.echo:Echo")[1] == first
    (folder.parent / "helper.py").write_text("LIMIT = 2\n")
    assert load_environment("echo_parts.inner.echo:Echo")[1].sha256 != first.sha256
    for name in [name for name in sys.modules if name.startswith("echo_parts")]:
        del sys.modules[name]


def test_the_source_of_ours_names_the_libraries_that_measure():
    own = load_environment("mcq", n=2)[1]
    assert own.sha256 == load_environment("json_schema", n=2)[1].sha256
    assert own.requires["jsonschema"] == importlib.metadata.version("jsonschema")
    assert own.requires.keys() <= set(LIBRARIES)
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert [text.partition(">=")[0] for text in project["optional-dependencies"]["rl"]] == list(LIBRARIES)


def test_what_was_written_for_trl_is_found_by_its_name(package):
    made, source = load_environment("echo_environment:short", rows=[{"prompt": "q", "limit": 2}])
    assert made.verify(made.tasks()[0], Rollout.of_text("ab")).passed
    assert made.name == "short"
    assert len(source.sha256) == 64
    game, _ = load_environment("echo_environment:Game", rows=[{"prompt": "q"}])
    call = {"id": "1", "type": "function", "function": {"name": "win", "arguments": "{}"}}
    [result] = game.step(game.tasks()[0], Rollout(({"role": "assistant", "tool_calls": [call]},)))
    assert result == {"role": "tool", "tool_call_id": "1", "content": "won"}
    with pytest.raises(UserError, match=r"it takes .*rows"):
        load_environment("echo_environment:Game")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("mathh", {}, "did you mean math"),
        ("no.such:thing", {}, "cannot be imported"),
        ("json:nothing", {}, "cannot be imported"),
        ("json:__doc__", {}, "cannot be called"),
        ("mcq", {"sizes": 3}, "it takes rows, n, seed"),
        ("echo_environment:nothing", {}, "makes no environment"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_line(package, spec, options, message):
    with pytest.raises(UserError, match=message) as caught:
        load_environment(spec, **options)
    assert "\n" not in str(caught.value)


def test_all_names_can_be_imported():
    for name, target in OWN.items():
        assert callable(registry._imported(target, name))


def test_rows_of_other_projects():
    tool = {"name": "find", "parameters": {"type": "object"}}
    gym = {
        "responses_create_params": {
            "input": [{"role": "user", "content": "q"}],
            "tools": [{"type": "function", **tool}],
        },
        "verifier_metadata": {"answer": "4"},
        "uuid": 7,
    }
    verifiers = {"question": "q", "answer": "4", "info": json.dumps({"level": 3})}
    plain = {"id": "a", "prompt": "q", "answer": "4", "tools": [{"type": "function", "function": tool}]}
    for row in (gym, verifiers, plain):
        assert prompt_of(row, "row 1") == user("q")
        assert column(row, "expected", "answer", where="row 1") == "4"
    assert tools_of(gym, "row 1") == tools_of(plain, "row 1") == ({"type": "function", "function": tool},)
    assert column(verifiers, "level", where="row 1") == 3
    assert task_of(gym, "4", "row 1").id == "7"
    assert task_of(verifiers, "4", "row 1").id == task_of(dict(verifiers), "4", "row 1").id
    assert task_of(verifiers, "4", "row 1").id != task_of({**verifiers, "answer": "5"}, "4", "row 1").id


def test_a_file_of_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q"}\n\n{"prompt": "r"}\n')
    assert [row["prompt"] for row in read_rows(path)] == ["q", "r"]
    path.write_text('{"prompt": "a\u2028b\x85d"}\r\n{"prompt": "r"}', newline="")
    assert [row["prompt"] for row in read_rows(path)] == ["a\u2028b\x85d", "r"]
    path.write_text('{"prompt": "q"}\n[1]\n')
    with pytest.raises(UserError, match="line 2: a row is a JSON object"):
        read_rows(path)
    path.write_text("{")
    with pytest.raises(UserError, match="line 1: not valid JSON"):
        read_rows(path)


@pytest.mark.parametrize(
    "row", [{}, {"prompt": ""}, {"prompt": []}, {"responses_create_params": {}}, {"prompt": ["a"]}]
)
def test_a_row_without_a_prompt_is_refused(row):
    with pytest.raises(UserError, match=r"row 1: (no prompt|a message)"):
        prompt_of(row, "row 1")


def test_ids_are_unique_and_there_are_some():
    with pytest.raises(UserError, match="two tasks have the id 'a'"):
        check_ids([Task("a", user("q")), Task("a", user("r"))], "mine")
    with pytest.raises(UserError, match="no tasks"):
        check_ids([], "mine")


def test_rewards_that_differ_by_rounding_alone_are_equal():
    assert Reward(0.1 + 0.2) == Reward(0.3)
    assert Reward(1.0000000001).passed
    with pytest.raises(ValueError, match="finite"):
        Reward(float("nan"))


def test_calls_of_a_rollout():
    calls = [
        {"id": "1", "type": "function", "function": {"name": "a", "arguments": '{"x": 1}'}},
        {"id": "2", "type": "function", "function": {"name": "b", "arguments": "[1"}},
        {"id": "3", "type": "function", "function": {"name": "c", "arguments": {"y": 2}}},
        {"id": "4", "type": "function", "function": {"name": "d", "arguments": "[" * 100_000}},
    ]
    rollout = Rollout(({"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "content": "r"}))
    assert rollout.calls == [("a", {"x": 1}), ("b", None), ("c", {"y": 2}), ("d", None)]
    assert rollout.answer == ""
