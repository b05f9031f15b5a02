"""Supervised fine-tuning from a folder to a folder."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from nano3.config.errors import UserError
from nano3.config.presets import load_sft, to_toml
from nano3.data.chat.conversation import read_conversation
from nano3.data.chat.encoder import ChatEncoder
from nano3.data.chat.maker import task_of
from nano3.data.chat.sets import open_sets
from nano3.data.tasks.catalogue import check, find_tasks
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.protocol import run as engine_run
from nano3.engine.request import ThinkingBudget
from nano3.eval.tasks.answer import answer
from nano3.model.hf.config import read_stage
from nano3.model.hf.folder import load, save
from nano3.model.lm import LM
from nano3.reading import read_json
from nano3.stages.answers import check_tasks, heldout_tasks
from nano3.stages.sft import main
from nano3.train.tracking.progress import Silent
from nano3.train.trainer import Trainer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small model with a chat tokenizer, as pretraining leaves it."""
    cfg = load_sft("tiny").model
    tokenizer = Tokenizer.train(["the quick brown fox spells words and counts letters\n" * 3], 320)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 32, "d_expert": 32, "d_shared": 32, "pattern": "M*E"}
    model = LM(dataclasses.replace(cfg, **sizes, **ids)).init_weights(0)
    model.stage = "pretrain"
    folder = tmp_path_factory.mktemp("base") / "base"
    save(model, folder, extra=tokenizer.save)
    return folder


SETTINGS = [
    "data.blend={count=3, spell=1}",
    "data.generated_rows=40",
    "data.heldout_fraction=0.1",
    "data.pack_length=384",
    "train.steps=4",
    "train.dtype=float32",
    "checkpoint.every_steps=2",
    "heldout.every_steps=0",
    "answers.tasks=3",
    "answers.max_tokens=4",
]


@pytest.fixture(autouse=True)
def _no_charts(monkeypatch):
    monkeypatch.setattr("nano3.train.tracking.record.charts.draw", lambda *args: [])


def run(folder, base=None, *settings, **options):
    cfg = load_sft("tiny", [*SETTINGS, *settings])
    return main(cfg, folder, base, progress=Silent(), **options)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def steps_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return run(folder, base), folder


def test_the_model_folder_is_one_to_chat_with(finished):
    _, folder = finished
    model = folder / "model"
    tokenizer = Tokenizer.load(model)
    assert read_stage(model) == "sft"
    ends = read_json(model / "generation_config.json")["eos_token_id"]
    assert ends == [tokenizer.eos_id, tokenizer.token_id("<|im_end|>")]
    assert "{% generation %}" in (model / "chat_template.jinja").read_text()
    assert weights(folder).keys() == load_file(folder / "model" / "model.safetensors").keys()


def test_the_result_tells_what_became_of_the_data(finished):
    result, folder = finished
    summary = result.summary()
    assert [(row["name"], row["rows"], row["heldout_rows"]) for row in summary["data"]] == [
        ("count", 40, 4),
        ("spell", 40, 4),
    ]
    assert all(row["epochs"] > 0 for row in summary["data"])
    assert summary["heldout_tokens"] > 0
    assert set(summary["answers"]) == {"count", "spell"}
    assert summary["answers"]["count"]["tasks"] == 3
    assert read_json(folder / "data.json")[0]["rows"] == 40
    assert load_sft(str(folder)).data == load_sft("tiny", SETTINGS).data
    json.dumps(summary)


def test_training_lowers_the_loss_of_what_is_trained(base, tmp_path):
    folder = tmp_path / "longer"
    run(folder, base, "train.steps=12", "answers.tasks=0", "schedule.peak_lr=1e-2")
    losses = [loss for _, loss in steps_of(folder)]
    assert losses[-1] < 0.8 * losses[0]


class Stopped(BaseException):
    """The process was killed here."""


def test_a_resumed_run_is_the_run_that_was_not_stopped(finished, base, tmp_path, monkeypatch):
    _, whole = finished
    folder, done = tmp_path / "resumed", []
    step = Trainer._step

    def die(self, stop):
        if len(done) == 3:
            self.checkpoints.wait()
            raise Stopped
        done.append(1)
        return step(self, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", die)
        with pytest.raises(Stopped):
            run(folder, base)
    rows = (folder / "rows").stat().st_ino
    result = main(load_sft(str(folder)), folder, resume=True, progress=Silent())
    assert result.training.step == 4
    assert (folder / "rows").stat().st_ino == rows  # not made again
    assert [report.values() for report in result.sets] == read_json(folder / "data.json")
    assert steps_of(folder) == steps_of(whole)
    theirs = weights(whole)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(folder).items())


def test_a_resume_with_other_rows_is_refused(finished, base, tmp_path):
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"prompt": f"q {i}", "completion": "a"}) + "\n" for i in range(50)))
    settings = ["data.blend={chats=1}", f'data.sources={{chats=["{chats}"]}}', "answers.tasks=0"]
    folder = tmp_path / "run"
    run(folder, base, *settings)
    chats.write_text(chats.read_text().replace("q 7", "other"))
    with pytest.raises(UserError, match=r"cannot resume .*rows of chats: \w+ -> \w+"):
        main(load_sft(str(folder)), folder, resume=True, progress=Silent())


def test_data_that_cannot_be_used_leave_no_folder(base, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match="leaves nothing to train on"):
        run(tmp_path / "run", base, "data.blend={bad=1}", f'data.sources={{bad=["{bad}"]}}')
    assert not (tmp_path / "run").exists()
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        run(own, base, "data.blend={bad=1}", f'data.sources={{bad=["{bad}"]}}')
    assert [path.name for path in own.iterdir()] == ["thesis.txt"]


def test_without_weights_there_is_nothing_to_tune(tmp_path):
    with pytest.raises(UserError, match="name a run or Hugging Face folder with --from"):
        run(tmp_path / "run")


def test_held_out_tasks_are_none_of_those_trained_on(finished):
    _, folder = finished
    cfg = load_sft(str(folder))
    sets, tasks = open_sets(cfg.data, folder / "rows"), heldout_tasks(cfg)
    check_tasks(tasks, sets)
    one = tasks["count"][0]
    sets["spell"].tasks[0] = task_of(read_conversation(one.row(), "x"), whole=True)
    with pytest.raises(UserError, match=f"the held-out task {one.id} is trained on too"):
        check_tasks(tasks, sets)


def test_tools_are_carried_out_between_the_answers(finished, monkeypatch):
    """The replies to a tool task alternate between calls and their results, up to an answer without a call."""
    _, folder = finished
    tokenizer = Tokenizer.load(folder / "model")
    task = next(task for task in find_tasks("generate:tool?levels=2", 0).tasks(20) if len(task.solution) == 5)
    texts = iter([_text(message) for message in task.solution if message["role"] == "assistant"])
    monkeypatch.setattr("nano3.eval.tasks.answer.run", lambda engine, requests: [[_Output(next(texts))]])
    engine = Engine(load(folder / "model"), tokenizer, max_context=4096)
    (replies,) = answer(engine, ChatEncoder(tokenizer), [task], 8)
    assert [message["role"] for message in replies] == [message["role"] for message in task.solution]
    assert [m["content"] for m in replies if m["role"] == "tool"] == [
        m["content"] for m in task.solution if m["role"] == "tool"
    ]
    assert check("tool", task.truth, replies) == 1.0
    cut_off = _Output(_text(task.solution[0]).removesuffix("</function>\n</tool_call>\n"), "length")
    monkeypatch.setattr("nano3.eval.tasks.answer.run", lambda engine, requests: [[cut_off]])
    (replies,) = answer(engine, ChatEncoder(tokenizer), [task], 8)
    assert [message["role"] for message in replies] == ["assistant"]
    assert check("tool", task.truth, replies) == 0.0


@pytest.mark.parametrize("kind", ["on", "off", "budget"])
def test_tasks_are_asked_with_thinking_without_it_and_within_a_budget(finished, kind, monkeypatch):
    _, folder = finished
    tokenizer = Tokenizer.load(folder / "model")
    engine = Engine(load(folder / "model"), tokenizer, max_context=1024)
    thinking = {"on": True, "off": False, "budget": ThinkingBudget(3, 1)}[kind]
    tasks, seen = list(find_tasks("count").tasks(3)), []

    def watched(engine, requests):
        seen.extend(tokenizer.decode(list(request.prompt)[-4:]) for request in requests)
        return engine_run(engine, requests)

    monkeypatch.setattr("nano3.eval.tasks.answer.run", watched)
    replies = answer(engine, ChatEncoder(tokenizer), tasks, 24, thinking=thinking, temperature=1.0, seeds=[5, 6, 7])
    assert all(("</think>" in text) == (kind == "off") for text in seen)
    again = answer(engine, ChatEncoder(tokenizer), tasks, 24, thinking=thinking, temperature=1.0, seeds=[5, 6, 7])
    assert replies == again
    thought = [len(tokenizer.encode(given[0]["reasoning_content"] or "")) for given in replies]
    if kind == "off":
        assert thought == [0, 0, 0]
    if kind == "budget":
        assert 0 < max(thought) < 16  # of 24; bytes of an untrained model's text take more tokens


@dataclasses.dataclass
class _Output:
    text: str
    finish: str = "stop"


def _text(message):
    """What a model writes for this message, after the prompt that opens its thinking."""
    calls = ""
    for call in message.get("tool_calls", ()):
        arguments = json.loads(call["function"]["arguments"])
        inner = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in arguments.items())
        calls += f"<tool_call>\n<function={call['function']['name']}>\n{inner}</function>\n</tool_call>\n"
    return f"{message['reasoning_content']}\n</think>\n{message['content']}{calls}"


def test_settings_written_are_settings_read(finished):
    _, folder = finished
    cfg = load_sft(str(folder))
    assert to_toml(cfg) == (folder / "config.toml").read_text()
