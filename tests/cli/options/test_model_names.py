"""Every verb that takes a model's folder takes it by both names, and names the options near a wrong one."""

import pytest

from nano3.cli.app import VERBS, VerbGroup

OTHER_MEANING = {"data curate", "data generate", "bench serve"}
"""Verbs whose --from are texts and whose --model is a server's."""


def verbs(command, path):
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, f"{path} {name}")


ALL = [each for verb in VERBS for each in verbs(VerbGroup(name="nano3").get_command(None, verb), verb)]


def names(command, shown_only=False):
    return {name for each in command.params if not (shown_only and each.hidden) for name in each.opts}


def test_whoever_takes_a_model_takes_both_names_and_shows_one():
    takes = {path: command for path, command in ALL if {"--from", "--model", "--base"} & names(command)}
    assert {"eval tasks", "quantize", "export", "merge", "info", "rlvr profile", "serve"} <= set(takes)
    for path in set(takes) - OTHER_MEANING:
        assert {"--from", "--model"} <= names(takes[path]), path
    both = {path for path, command in takes.items() if {"--from", "--model"} <= names(command, shown_only=True)}
    assert both == {"data curate", "data generate", "eval ruler", "eval lm"}, "those in which they mean two things"


@pytest.mark.parametrize("verb", ["eval tasks", "eval lm", "eval ruler", "export --gguf q8_0 x.gguf", "serve", "chat"])
@pytest.mark.parametrize("name", ["--from", "--model"])
def test_both_names_reach_the_verb(run, verb, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = run(*verb.split(), name, "nowhere")
    assert wrong.code == 2
    assert "error: nowhere: no such folder" in wrong.err


@pytest.mark.parametrize(
    "typed",
    [
        "eval tasks --from a --model b",
        "serve --from a --model b",
        "export --gguf q8_0 x.gguf --model a --from b",
        "merge x --out y --base a --from b",
    ],
)
def test_two_models_are_refused_whichever_comes_last(run, typed):
    wrong = run(*typed.split())
    assert wrong.code == 2
    assert "name the same model: give" in wrong.err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ("eval", "tasks", "--modl", "x"),
            "no such option: --modl; did you mean --from? (see nano3 eval tasks --help)",
        ),
        (("generate", "--max-tok", "3"), "no such option: --max-tok; did you mean --max-tokens?"),
        (("pretrain", "--batch", "3"), "no such option: --batch; settings go with --set KEY=VALUE"),
        (("info", "--xyz"), "no such option: --xyz (see nano3 info --help)"),
    ],
)
def test_an_unknown_option_is_told_with_those_near_it(run, args, told):
    wrong = run(*args)
    assert wrong.code == 2
    assert wrong.err.startswith(f"error: {told}")
