"""nano3 as a model of lm-evaluation-harness: the same scores as its `hf` model, whatever the order and the batch."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import random
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

import nano3
from nano3.config.errors import UserError
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.eval.lm import harness as lm_harness
from nano3.eval.lm import tasks as lm_tasks
from nano3.eval.lm.model import Nano3LM
from nano3.eval.lm.tasks import make
from nano3.model.lm import LM

MEMORY = 1 << 28
CONTEXT = 96
ROUNDING = 1e-4
"""A product of one row rounds otherwise than one of many."""
SCORED = ("nano3_opposites", "nano3_stdlib", "nano3_prose")


@pytest.fixture(scope="module")
def folder(small_config, tmp_path_factory):
    """A random model with every kind of block, whose context is shorter than the texts of nano3_prose."""
    tokenizer = Tokenizer.train(make.PROSE[:4], 330)
    cfg = dataclasses.replace(
        small_config, pattern="ME*-", vocab_size=tokenizer.vocab_size, max_position_embeddings=CONTEXT
    )
    folder = tmp_path_factory.mktemp("lm") / "small"
    nano3.save(LM(cfg).init_weights(seed=5), folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    lm = Nano3LM(str(folder), memory=MEMORY, dtype="float32")
    yield lm
    lm.close()


@pytest.fixture(scope="module")
def theirs(folder):
    import accelerate  # noqa: F401 - without it lm-eval's hf model fails in the middle
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(str(folder), device="cpu", dtype="float32", batch_size=1)
    for module in lm.model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))  # its configuration cannot say so: PAPER.md section 1
    return lm


def evaluate(lm, tasks, **options):
    manager = TaskManager(include_path=str(lm_tasks.FOLDER), include_defaults=False)
    return simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **options)


def answers(result, task):
    return [sample["resps"] for sample in sorted(result["samples"][task], key=lambda sample: sample["doc_id"])]


def flat(answers):
    """Log-likelihoods and whether they are the most probable, of all requests in order."""
    pairs = [answer[0] if isinstance(answer[0], tuple) else (answer[0], False) for each in answers for answer in each]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def instances(kind, arguments):
    return [Instance(kind, {}, args, i, ("task", i, 1)) for i, args in enumerate(arguments)]


@pytest.mark.parametrize("shots", [0, 2])
def test_log_likelihoods_are_those_of_hf(ours, theirs, shots):
    tasks = SCORED if not shots else SCORED[:2]  # the third has no examples
    mine, hf = (evaluate(lm, tasks, limit=6, num_fewshot=shots) for lm in (ours, theirs))
    for task in tasks:
        scores, greedy = flat(answers(mine, task))
        expected, expected_greedy = flat(answers(hf, task))
        assert len(scores) >= 6
        assert scores == pytest.approx(expected, abs=1e-3)
        assert greedy == expected_greedy
        for metric, value in hf["results"][task].items():
            if isinstance(value, float):
                assert mine["results"][task][metric] == pytest.approx(value, rel=1e-4), metric


def test_generated_answers_are_those_of_hf(ours, theirs):
    mine, hf = (evaluate(lm, ["nano3_arithmetic"], limit=6, num_fewshot=1) for lm in (ours, theirs))
    assert answers(mine, "nano3_arithmetic") == answers(hf, "nano3_arithmetic")
    assert any(answer[0][0].strip() for answer in answers(mine, "nano3_arithmetic"))


EDGES = [
    ("", "The kettle"),
    ("", "x"),
    ("a context that ends in blanks   ", "and goes on"),
    ("ends in a line\n", "next"),
    ("word " * 200, "cut from the left"),
    ("short", " word" * 25),
    ("</s>", "after a special token"),
    ("<s>", " begun already"),
    ("same context", " one"),
    ("same context", " two"),
    ("same context", " one"),
]


def test_edges_of_contexts_are_those_of_hf(ours, theirs):
    mine, hf = (lm.loglikelihood(instances("loglikelihood", EDGES), disable_tqdm=True) for lm in (ours, theirs))
    assert [score for score, _ in mine] == pytest.approx([score for score, _ in hf], abs=1e-3)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in hf]


def test_one_continuation_is_the_most_probable(ours, theirs):
    ids, vocabulary = ours.tok_encode("Bread needs"), range(0, ours.engine.tokenizer.vocab_size)
    found = ours._loglikelihood_tokens([(("", str(i)), ids, [i]) for i in vocabulary], disable_tqdm=True)
    best = max(vocabulary, key=lambda i: found[i][0])
    assert [i for i in vocabulary if found[i][1]] == [best]
    assert sum(math.exp(score) for score, _ in found) == pytest.approx(1, abs=1e-4)
    assert theirs._loglikelihood_tokens([(("", ""), ids, [best])], disable_tqdm=True)[0][1]


def test_special_tokens_of_tokenizer_json_and_the_wanted_beginning(folder, theirs, ours):
    begun = Nano3LM(ours.engine, add_bos_token=True)
    assert begun.tok_encode("abc") == [ours._tokenizer.bos_id, *ours.tok_encode("abc")]
    assert begun.tok_encode("<s>abc") == [ours._tokenizer.bos_id, *ours.tok_encode("abc")]
    for text in ("plain", "</s> written", "<|im_start|>user\nhi<|im_end|>\n", "é<think>"):
        assert ours.tok_encode(text) == theirs.tok_encode(text)
    assert (ours.prefix_token_id, ours.eot_token_id) == (theirs.prefix_token_id, theirs.eot_token_id)
    assert ours.max_length == theirs.max_length == CONTEXT


def test_texts_begin_as_documents_do_in_training(ours):
    lm, end = Nano3LM(ours.engine, prefix="eos"), ours.engine.tokenizer.eos_id
    plain = ours.tok_encode("The kettle")
    assert plain[0] != end
    assert lm.tok_encode("The kettle") == lm.tok_encode("</s>The kettle") == [end, *plain]
    assert lm.tok_encode("The kettle", add_special_tokens=False) == plain
    talk = lm.apply_chat_template([{"role": "user", "content": "hi"}])
    assert lm.tok_encode(talk) == ours.tok_encode(talk)
    for context, text in (("The kettle", " boils"), ("", "The kettle")):
        (found,) = lm.loglikelihood(instances("loglikelihood", [(context, text)]), disable_tqdm=True)
        ids = [end, *ours.tok_encode(context + text)]
        seen = 1 + len(ours.tok_encode(context))
        (expected,) = ours._loglikelihood_tokens([(("", ""), ids[:seen], ids[seen:])], disable_tqdm=True)
        assert found == expected
    whole = [("The kettle boils",)]
    (rolling,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", whole), disable_tqdm=True)
    (alone,) = lm.loglikelihood(instances("loglikelihood", [("", *whole[0])]), disable_tqdm=True)
    assert rolling == pytest.approx(alone[0], abs=1e-6)


def test_the_stage_of_a_model_decides_what_texts_begin_with(folder, ours, tmp_path):
    trained = tmp_path / "trained"
    shutil.copytree(folder, trained)
    keys = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps(keys | {"nano3_stage": "sft"}))
    lm = Nano3LM(str(trained), memory=MEMORY, dtype="float32")
    of_hf = Nano3LM(lm.engine, prefix="bos")
    own = Nano3LM(lm.engine)
    try:
        assert lm.prefix_token_id == own.prefix_token_id == lm.eot_token_id
        assert own.tok_encode("a") == lm.tok_encode("a") == [lm.eot_token_id, *ours.tok_encode("a")]
        assert of_hf.tok_encode("a") == ours.tok_encode("a")
        assert of_hf.prefix_token_id == ours.prefix_token_id != lm.prefix_token_id
    finally:
        lm.close()
    with pytest.raises(UserError, match="prefix pad"):
        Nano3LM(ours.engine, prefix="pad")


def test_cut_prompts_are_noted(ours):
    lm = Nano3LM(ours.engine)
    lm.loglikelihood(instances("loglikelihood", EDGES[:3]), disable_tqdm=True)
    assert not lm.notes
    lm.loglikelihood(instances("loglikelihood", EDGES), disable_tqdm=True)
    lm.generate_until(instances("generate_until", [("word " * 200, {"max_gen_toks": 2})] * 2), disable_tqdm=True)
    (note,) = lm.notes
    assert "cut from the left" in note
    assert str(CONTEXT) in note


@pytest.mark.parametrize("size", [1, 3, "auto"])
def test_order_and_batch_size_change_nothing(folder, ours, size):
    lm = Nano3LM(str(folder), memory=MEMORY, dtype="float32", batch_size=size)
    pairs = [*EDGES, *((text[:40], text[40:70]) for text in make.PROSE)]
    texts = [(text,) for text in make.PROSE[:5]]
    order = list(range(len(pairs)))
    random.Random(0).shuffle(order)
    try:
        expected = ours.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
        found = lm.loglikelihood(instances("loglikelihood", [pairs[i] for i in order]), disable_tqdm=True)
        again = ours.loglikelihood(instances("loglikelihood", [pairs[i] for i in order]), disable_tqdm=True)
        assert again == [expected[i] for i in order]
        assert [score for score, _ in found] == pytest.approx([expected[i][0] for i in order], abs=ROUNDING)
        assert [greedy for _, greedy in found] == [expected[i][1] for i in order]
        rolling = ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
        backwards = lm.loglikelihood_rolling(instances("loglikelihood_rolling", texts[::-1]), disable_tqdm=True)
        assert backwards == pytest.approx(rolling[::-1], abs=ROUNDING)
    finally:
        lm.close()


def test_generation_settings(ours):
    def ask(*settings):
        return ours.generate_until(instances("generate_until", [("A river", s) for s in settings]), disable_tqdm=True)

    long, short = ask({"max_gen_toks": 30, "until": []}, {"max_new_tokens": 4})
    assert long.startswith(short)
    assert short
    middle = long[len(long) // 2]
    (stopped,) = ask({"max_gen_toks": 30, "until": [middle]})
    assert stopped == long.split(middle)[0]
    draw = {"max_gen_toks": 30, "do_sample": True, "temperature": 1.0}
    first, second = ask(draw, draw)
    assert first != second
    assert [first, second] == ask(draw, draw)
    assert ask(draw | {"top_k": 1}) == [long]
    assert ask(draw | {"top_p": 1e-6}) == [long]
    assert ask(draw | {"do_sample": False}) == [long]
    assert ask({"max_gen_toks": 30, "do_sample": True}) != [long]
    with pytest.raises(ValueError, match="num_beams"):
        ask({"num_beams": 4})
    with pytest.raises(ValueError, match="max_gen_toks"):
        ask({"max_gen_toks": CONTEXT})


def test_special_tokens_end_answers(ours):
    ids = ours.engine.tokenizer
    (text,) = ours.generate_until(instances("generate_until", [("x", {"max_gen_toks": 40, "until": ["<pad>", "~"]})]))
    assert "~" not in text
    assert "<pad>" not in text
    assert ids.decode(ids.encode(text)) == text


def test_chat_template_is_rendered_as_transformers_does(ours, theirs):
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?"},
    ]
    assert ours.apply_chat_template(talk) == theirs.apply_chat_template(talk)
    begun = [*talk, {"role": "assistant", "content": "The answer is "}]
    assert ours.apply_chat_template(begun, add_generation_prompt=False) == theirs.apply_chat_template(
        begun, add_generation_prompt=False
    )
    assert ours.chat_template(True) == theirs.chat_template(True)
    quiet = Nano3LM(ours.engine, enable_thinking=False)
    assert quiet.apply_chat_template(talk) != ours.apply_chat_template(talk)
    mine = evaluate(ours, ["nano3_arithmetic"], limit=2, apply_chat_template=True)
    (prompt, _) = mine["samples"]["nano3_arithmetic"][0]["arguments"][0]
    assert prompt.startswith("<|im_start|>")


def test_what_comes_before_the_end_of_thinking_is_no_answer(ours):
    (whole,) = ours.generate_until(instances("generate_until", [("A river", {"max_gen_toks": 30})]), disable_tqdm=True)
    mark = whole[len(whole) // 2]
    thinker = Nano3LM(ours.engine, think_end_token=mark)
    (answer,) = thinker.generate_until(instances("generate_until", [("A river", {"max_gen_toks": 30})]))
    assert answer == whole.split(mark)[-1].lstrip()
    # What ends an answer may stand in the thinking part.
    before = whole.split(mark)[0][:3]
    (answer,) = thinker.generate_until(
        instances("generate_until", [("A river", {"max_gen_toks": 30, "until": [before]})])
    )
    assert answer == whole.split(mark)[-1].lstrip().split(before)[0]
    assert answer or whole.split(mark)[-1].lstrip().startswith(before)


def test_the_harness_knows_the_model():
    assert get_model("nano3") is Nano3LM
    entry = tomllib.loads((Path(nano3.__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    module, _, name = entry["project"]["entry-points"]["lm_eval.models"]["nano3"].partition(":")
    assert getattr(importlib.import_module(module), name) is Nano3LM


@pytest.mark.slow  # reads the harness's 14,000 task files
def test_the_harness_finds_the_model_by_name(folder, monkeypatch, capsys):
    arguments = ["--model", "nano3", "--model_args", f"pretrained={folder},memory={MEMORY}", "--tasks", "nano3_prose",
                 "--include_path", str(lm_tasks.FOLDER), "--limit", "2", "--batch_size", "2"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    lm_harness.main()
    assert "bits_per_byte" in capsys.readouterr().out


def test_wrong_model_arguments(folder):
    with pytest.raises(UserError, match="no such folder"):
        Nano3LM("/nowhere/at/all")
    with pytest.raises(UserError, match="batch_size many"):
        Nano3LM(str(folder), batch_size="many")


def test_task_files_are_what_the_script_makes():
    for name, text in make.files().items():
        assert (lm_tasks.FOLDER / name).read_text("utf-8") == text, f"run python -m nano3.eval.lm.tasks.make: {name}"
