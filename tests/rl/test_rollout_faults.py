"""What one environment, one prompt or one request gets wrong costs its group, not the run."""

import threading
from dataclasses import replace

import pytest

from nano3.engine.engine import Engine
from nano3.engine.protocol import ends_of_text
from nano3.rl.asking import Asker
from nano3.rl.environments.base import EnvironmentFaultError, Reward, Task, user
from nano3.rl.environments.registry import Source
from nano3.rl.rollout import RolloutSettings, RolloutWorker
from nano3.rl.rollout_files import read_rollouts, save_rollouts
from nano3.rl.samples import faults

SETTINGS = RolloutSettings(group=2, max_tokens=6, workers=2, template={"enable_thinking": False})


class Fixed:
    """Tasks of these prompts, each answer worth what is given."""

    name = "fixed"

    def __init__(self, prompts, worth=None):
        self.prompts, self.worth = prompts, worth or {}

    def tasks(self):
        return [Task(f"t{i}", user(prompt)) for i, prompt in enumerate(self.prompts)]

    def verify(self, task, rollout):
        return self.worth.get(task.id, Reward(1.0))


class Asking(Fixed):
    """Answers the first turn as given."""

    def step(self, task, rollout):
        return self.worth.get(task.id, [])

    def verify(self, task, rollout):
        return Reward(1.0)


@pytest.fixture
def engine(model, tokenizer):
    ends = frozenset(range(0, tokenizer.vocab_size, 3)) | ends_of_text(tokenizer)
    made = Engine(model, tokenizer, memory=32 << 20, page_size=8, max_context=96, eos_ids=ends)
    yield made
    made.close()


def draw(engine, environment, **changes):
    tasks = [(environment, task) for task in environment.tasks()]
    return RolloutWorker(engine, replace(SETTINGS, **changes)).draw(tasks, 1, 0)


@pytest.mark.parametrize("worth", [1.0, None, (1.0, "right")])
def test_what_is_no_reward_is_a_fault_of_its_group(engine, worth):
    class Wrong(Fixed):
        def verify(self, task, rollout):
            return worth if task.id == "t1" else Reward(1.0)

    groups = draw(engine, Wrong(["a", "b", "c"]))
    assert [group.fault for group in groups] == ["", "no reward", ""]
    assert faults(groups) == {"fixed: no reward": 1}


@pytest.mark.parametrize(
    "answer", ["more", [3], [{"role": "nobody", "content": "x"}], [{"role": "user", "content": 3}]]
)
def test_what_are_no_messages_is_a_fault_of_its_group(engine, answer):
    groups = draw(engine, Asking(["a", "b"], {"t1": answer}), group=6)
    assert [group.fault for group in groups] == ["", "no messages"]


def test_a_prompt_that_fills_the_context_is_a_fault_of_its_group(engine, tmp_path):
    groups = draw(engine, Fixed(["a", "the lazy dog " * 60, "c"]))
    assert [group.fault for group in groups] == ["", "prompt too long", ""]
    assert "task t1 has" in groups[1].samples[0].fault_message
    assert groups[0].rewards == groups[2].rewards == [1.0, 1.0]
    path = save_rollouts(tmp_path, 0, groups, {"fixed": Source("fixed", "tests", "1", "0" * 64)})
    assert [saved.fault for saved in read_rollouts(path)][2:4] == ["prompt too long"] * 2


def test_a_request_that_fails_is_a_fault_of_its_group(model, tokenizer, engine):
    [broken] = set(tokenizer.encode("~")) - set(tokenizer.encode("abc"))
    model.embeddings.weight.data[broken] = float("nan")
    groups = draw(engine, Fixed(["a", "~", "c"]))
    assert [group.fault for group in groups] == ["", "engine", ""]
    [group] = draw(engine, Fixed(["~"]))
    assert "the engine fails on task t0: the model gave no number" in group.fault_message


def test_an_environment_that_hangs_is_a_fault_of_its_group(engine):
    released = threading.Event()

    class Hanging(Fixed):
        def verify(self, task, rollout):
            if task.id == "t0":
                released.wait(120)
            return Reward(1.0)

    groups = draw(engine, Hanging(["a", "b", "c"]), workers=1, environment_seconds=1.5)
    released.set()
    assert [group.fault for group in groups] == ["time", "", ""]
    assert "1.5 seconds" in groups[0].samples[0].fault_message


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt, MemoryError])
def test_an_environment_that_ends_its_thread_is_a_fault_of_its_group(engine, ending):
    class Ending(Fixed):
        def verify(self, task, rollout):
            if task.id == "t0":
                raise ending("enough")
            return Reward(1.0)

    groups = draw(engine, Ending(["a", "b"]))
    assert [group.fault for group in groups] == [ending.__name__, ""]
    assert groups[0].samples[0].fault_message == "enough"


def test_a_step_that_breaks_leaves_the_engine_without_work(engine, monkeypatch):
    steps = iter([engine.step, engine.step])

    def step():
        return next(steps)()

    monkeypatch.setattr(engine, "step", step)
    with pytest.raises(StopIteration):
        draw(engine, Fixed(["a", "b"]))
    assert not engine.has_work
    engine.weights_changed()


def test_questions_are_asked_by_so_many_threads_and_answers_come_with_their_keys():
    running, most, lock, together = 0, 0, threading.Lock(), threading.Barrier(3, timeout=60)

    def question(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1
        if number == 4:
            raise EnvironmentFaultError("judge", "no answer")
        return 1 // (number - 5)

    asker = Asker(3, 120.0)
    assert not asker.busy
    assert list(asker.answers(wait=True)) == []
    for number in range(9):
        asker.ask(number, lambda number=number: question(number))
    answers = {}
    while asker.busy:
        answers |= dict(asker.answers(wait=True))
    assert {key: a.value for key, a in answers.items()} == {
        n: 1 // (n - 5) if n not in (4, 5) else None for n in range(9)
    }
    assert answers[4][1:] == ("judge", "no answer")
    assert answers[5].fault == "ZeroDivisionError"
    assert most == 3


def test_who_does_not_wait_is_given_what_is_there():
    asker, released = Asker(1, 120.0), threading.Event()
    asker.ask("slow", lambda: released.wait(120))
    asker.ask("fast", lambda: 2)
    assert list(asker.answers(wait=False)) == []
    assert asker.busy
    released.set()
    found = []
    while asker.busy:
        found += asker.answers(wait=True)
    assert [(key, answer.value) for key, answer in found] == [("slow", True), ("fast", 2)]
