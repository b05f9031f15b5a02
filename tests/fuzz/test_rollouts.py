"""`nano3 rlvr show` and `rescore` on saved rollouts with wrong lines and wrong arrays: they are shown or told of."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.cli.rollouts.rescore import rescore
from nano3.cli.rollouts.show import show
from nano3.engine.launch import small_tokenizer
from nano3.rl.rollout_files import arrays_path, rollouts_path
from tests.fuzz.inputs import damaged, files, fuzz, works_or_tells
from tests.rollout_run import ENVIRONMENT, make_run

SETTINGS = '[environments.weights]\necho = 1.0\n[environments.specs]\necho = "echo_tasks:Echo"\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of one step, of which a copy is damaged, and the module of its environment."""
    folder = tmp_path_factory.mktemp("rollouts")
    make_run(folder / "run", small_tokenizer(320), steps=1)
    (folder / "run" / "config.toml").write_text(SETTINGS)
    (folder / "modules").mkdir()
    (folder / "modules" / "echo_tasks.py").write_text(ENVIRONMENT)
    shutil.copytree(folder / "run", folder / "wrong")
    sys.path.insert(0, str(folder / "modules"))
    yield folder
    sys.path.remove(str(folder / "modules"))
    sys.modules.pop("echo_tasks", None)


def look(run, page):
    """Every way of looking at a run."""
    for target, action in {
        "overview": lambda: show(run),
        "groups": lambda: show(run, step=1),
        "samples": lambda: show(run, failed=True, limit=99),
        "values": lambda: (show(run, as_json=True), show(run, step=1, as_json=True), show(run, sample=0, as_json=True)),
        "page": lambda: show(run, html=page),
        "rescore": lambda: rescore(run, env="echo", out=page.with_suffix(".jsonl")),
    }.items():
        with works_or_tells(f"rollouts {target}"):
            action()


@fuzz(15)
@given(data=st.data())
def test_lines(made, data):
    lines = rollouts_path(made / "run", 1).read_bytes().splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    lines[place] = data.draw(files(json.loads(lines[place])))
    rollouts_path(made / "wrong", 1).write_bytes(b"\n".join(lines))
    shutil.copy(arrays_path(rollouts_path(made / "run", 1)), arrays_path(rollouts_path(made / "wrong", 1)))
    look(made / "wrong", made / "page.html")


@fuzz(15)
@given(data=st.data())
def test_arrays(made, data):
    path = arrays_path(rollouts_path(made / "run", 1))
    shutil.copy(rollouts_path(made / "run", 1), rollouts_path(made / "wrong", 1))
    arrays_path(rollouts_path(made / "wrong", 1)).write_bytes(data.draw(damaged(path.read_bytes())))
    look(made / "wrong", made / "page.html")
