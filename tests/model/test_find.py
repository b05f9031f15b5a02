"""Names of models: folders, presets, and ids of the Hugging Face hub (a server on the loopback stands for it)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nano3.config.errors import UserError
from nano3.files import exclusive
from nano3.model.find import local_model, model_folder, model_name

from ..fake_hub import COMMIT, fake_hub
from ..forked import run_forked

pytestmark = pytest.mark.any_isa

CONFIG = {
    "model_type": "nemotron_h", "hybrid_override_pattern": "-", "vocab_size": 9, "hidden_size": 4,
    "layer_norm_epsilon": 1e-5, "intermediate_size": 8,
}  # fmt: skip
ASK = (
    "import sys; from nano3.model.find import local_model; print(local_model(sys.argv[1], weights=sys.argv[2] == '1'))"
)


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository with weights in two files, and files that nano3 has no use for."""
    folder = tmp_path / "repository"
    (folder / "onnx").mkdir(parents=True)
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    texts = {"config.json": json.dumps(CONFIG), "model.safetensors.index.json": json.dumps(index),
             "tokenizer.json": "{}", "chat_template.jinja": "x"}  # fmt: skip
    useless = ("README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx/config.json")
    for name in (*texts, *useless, "part-1.safetensors", "part-2.safetensors"):
        (folder / name).write_text(texts.get(name, name))
    return folder


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Runs `local_model(name, weights)` in a process of its own with a cache of its own: its last line, by stream."""

    monkeypatch.chdir(tmp_path)

    def ask(name: str, url: str, weights: bool = True, **variables: str) -> str:
        own = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", **variables}
        done = run_forked("-c", ASK, name, str(int(weights)), env=os.environ | own)
        return (done.stdout or done.stderr).strip().splitlines()[-1]

    return ask


def test_only_the_files_that_are_read_are_downloaded_and_once(repository, ask):
    with fake_hub("org/small", repository) as hub:
        folder = Path(ask("org/small", hub.url, weights=False))
        assert sorted(hub.gets) == ["chat_template.jinja", "config.json", "model.safetensors.index.json",
                                    "tokenizer.json"]  # fmt: skip
        assert ask("org/small@v1", hub.url) == str(folder)
        assert sorted(hub.gets)[-3:] == ["part-1.safetensors", "part-2.safetensors", "tokenizer.json"]
        assert (folder / "part-2.safetensors").read_text() == "part-2.safetensors"
        assert model_name(folder) == "small"
        before = list(hub.gets)
        assert ask(f"org/small@{COMMIT}", hub.url) == str(folder)
        assert hub.gets == before
    # A filled cache serves when the hub cannot be reached, and when it must not be asked.
    assert ask("org/small", hub.url) == str(folder)
    assert ask("org/small", hub.url, HF_HUB_OFFLINE="1") == str(folder)


def test_a_model_that_nano3_cannot_run_is_refused_before_its_weights_come(repository, ask):
    (repository / "config.json").write_text(json.dumps(CONFIG | {"model_type": "llama"}))
    with fake_hub("org/small", repository) as hub:
        assert "nano3 reads nemotron_h only" in ask("org/small", hub.url)
        assert not any(name.endswith("safetensors") for name in hub.gets)


def test_what_the_hub_does_not_give_is_one_line_that_says_what_to_do(repository, ask):
    with fake_hub("org/small", repository, token="secret") as hub:
        assert f"no model of that name at {hub.url}/org/small" in ask("org/small", hub.url)
        assert ask("org/small", hub.url, weights=False, HF_TOKEN="secret").endswith(COMMIT)
        assert "org/small has no branch, tag or commit v9" in ask("org/small@v9", hub.url, HF_TOKEN="secret")
    # The cache has the small files only.
    assert "run `hf download org/small`" in ask("org/small", hub.url, HF_HUB_OFFLINE="1")
    assert "part-1.safetensors is not in the hub's cache" in ask("org/small", hub.url, HF_HUB_OFFLINE="1")
    line = ask("org/other@v1", hub.url)
    assert f"{hub.url} cannot be reached: run `hf download org/other --revision v1`" in line
    assert "HF_HUB_OFFLINE is set" in ask("org/other", hub.url, HF_HUB_OFFLINE="1")


@pytest.mark.parametrize("name", ["tiny", "runs/none", "here/none", "a/b/c", "./a", "../a", "/a/b", "a b/c", "a/b@"])
def test_nothing_but_a_hub_id_is_looked_up(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert local_model(name) == name


def test_a_folder_goes_before_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="hf download org/small"):
        local_model("org/small")
    (tmp_path / "org" / "small").mkdir(parents=True)
    assert local_model("org/small") == "org/small"


def make_run(folder, *, steps=(), settings="[train]\ntokens = 5\n"):
    folder.mkdir()
    (folder / "config.toml").write_text(settings)
    for step in steps:
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("steps", "settings", "words"),
    [
        (
            (),
            "[train]\n",
            ["has not finished: it has no model yet (nor a checkpoint)", "nano3 pretrain --resume --out"],
        ),
        ((9, 120), "[context]\n", ["newest checkpoint, of step 120,", "nano3 extend-context --resume --out"]),
        ((9, "120.old"), "[train]\n", ["newest checkpoint, of step 120,"]),
        (("9.damaged",), "[train]\n", ["nor a checkpoint"]),
    ],
)
def test_an_unfinished_run_says_what_it_has_and_how_to_finish_it(tmp_path, steps, settings, words):
    run = make_run(tmp_path / "run", steps=steps, settings=settings)
    with pytest.raises(UserError) as told:
        model_folder(run)
    assert all(word in str(told.value) for word in words)
    with exclusive(run), pytest.raises(UserError, match="goes on: it has no model yet"):
        model_folder(run)


def test_a_checkpoint_given_as_a_model_leads_to_its_run(tmp_path):
    run = make_run(tmp_path / "run", steps=[3])
    with pytest.raises(UserError, match="has not finished"):
        model_folder(run / "checkpoints" / "step-3")
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    assert model_folder(run) == run / "model"
    with pytest.raises(UserError, match=f"step-3 is a part of a run, and no model: give the run folder, {run}$"):
        model_folder(run / "checkpoints" / "step-3")


def test_a_preset_is_told_from_a_folder_that_is_missing():
    with pytest.raises(UserError, match=r"^tiny: a model preset, which has no weights; give a run folder"):
        model_folder("tiny")
    with pytest.raises(UserError, match=r"^tinny: no such folder"):
        model_folder("tinny")
