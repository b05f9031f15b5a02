"""A run with rollouts, and the environment by which its rewards are right."""

import pytest

from nano3.data.tokens.tokenizer import Tokenizer

from ...rollout_run import ENVIRONMENT, make_run

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs of ale, 0123456789.\n"
CONFIG = """[environments.weights]
echo = 1.0
judged = 1.0

[environments.specs]
echo = "echo_tasks:Echo"
judged = "judged_tasks:Judged"
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "made", Tokenizer.train([TEXT * 3], 320), steps=3)


@pytest.fixture
def folder(made, tmp_path):
    """The run of three steps, by itself in a folder."""
    import shutil

    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run" / "config.toml").write_text(CONFIG, "utf-8")
    return tmp_path / "run"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that environments are imported from."""
    import sys

    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (tmp_path / "modules").mkdir()

    def write(code=ENVIRONMENT, name="echo_tasks"):
        (tmp_path / "modules" / f"{name}.py").write_text(code, "utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)

    yield write
    for name in ("echo_tasks", "judged_tasks"):
        sys.modules.pop(name, None)
