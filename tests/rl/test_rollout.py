"""Rollouts through the engine: token in, token out over several turns; seeds, forced tokens, experts, faults, files."""

import json
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from nano3.config.errors import UserError
from nano3.data.chat.encoder import ChatEncoder
from nano3.engine.engine import Engine
from nano3.engine.protocol import ends_of_text
from nano3.model.head import log_probs
from nano3.rl.advantage import group_advantages
from nano3.rl.batch import pack_samples
from nano3.rl.environments.base import EnvironmentFaultError, Reward, Rollout, Task, user
from nano3.rl.environments.registry import Source
from nano3.rl.grpo import GRPOLoss, Objective
from nano3.rl.rollout import RolloutSettings, RolloutWorker, seed_of
from nano3.rl.rollout_files import arrays_path, read_rollouts, rollouts_path, save_rollouts
from nano3.rl.samples import faults, pass_rates
from nano3.rl.saved.rescore import rescore
from nano3.train.loss import Scale

SETTINGS = RolloutSettings(group=3, max_tokens=24, workers=2, template={"enable_thinking": False})
SOURCE = Source("echo", "tests", "1", "0" * 64)


class Asking:
    """Asks on, `turns` times, as results of tools by default; worth the share of even letters."""

    name = "asking"

    def __init__(self, turns=0, n=2, role="tool"):
        self.turns, self.n, self.role = turns, n, role

    def tasks(self):
        return [Task(f"t{i}", user(f"Say {i} of the lazy dog.")) for i in range(self.n)]

    def step(self, task, rollout):
        asked = sum(message["role"] == self.role for message in rollout.messages)
        return [{"role": self.role, "content": f"And {asked}?"}] if asked < self.turns else []

    def verify(self, task, rollout):
        text = "".join(message["content"] for message in rollout.messages)
        return Reward(sum(ord(letter) % 2 == 0 for letter in text) / max(1, len(text)), parts={"letters": len(text)})


class Faulty(Asking):
    """Fails on the second task."""

    name = "faulty"

    def verify(self, task, rollout):
        if task.id == "t1":
            raise EnvironmentFaultError("judge", "no answer")
        if task.id == "t2":
            return 1 / 0
        return Reward(1.0)


@pytest.fixture
def engine(model, tokenizer):
    """Answers are short: of these random weights every sixth token ends one."""
    ends = frozenset(range(0, tokenizer.vocab_size, 6)) | ends_of_text(tokenizer)
    made = Engine(model, tokenizer, memory=32 << 20, page_size=8, eos_ids=ends)
    yield made
    made.close()


def pairs(environment):
    return [(environment, task) for task in environment.tasks()]


def samples_of(groups):
    return [sample for group in groups for sample in group.samples]


def drawn_of(sample):
    return tuple(token for segment in sample.segments for token in segment.ids[segment.drawn].tolist())


def same_segments(ones, others):
    """Values and types of all arrays but the experts."""
    names = ("ids", "drawn", "forced", "log_probs")
    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(ones, others, strict=True) for name in names]
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_turns_are_appended_to_what_was_drawn_and_the_trainer_agrees_with_it(model, engine, tokenizer):
    groups = RolloutWorker(engine, SETTINGS).draw(pairs(Asking(turns=2)), 7, 0)
    encoder = ChatEncoder(tokenizer)
    several = 0
    for sample in samples_of(groups):
        [segment] = sample.segments
        given = [sample.task.messages, *([m] for m in sample.messages if m["role"] == "tool")]
        expected = [encoder.encode(given[0], enable_thinking=False).ids]
        expected += [encoder.encode_following(messages, enable_thinking=False).ids for messages in given[1:]]
        # Between the answers stand exactly the prompts; taken out, only what was drawn is left.
        ends = np.flatnonzero(np.diff(np.append(segment.drawn, False).astype(int)))
        parts = np.split(segment.ids, ends + 1)
        assert tuple(np.concatenate(parts[:-1][::2])) == tuple(token for ids in expected for token in ids)
        assert sample.turns == len(expected)
        assert segment.drawn.sum() == sum(len(part) for part in parts[1::2])
        several += sample.turns > 1
        ids = torch.from_numpy(segment.ids).long()
        with torch.no_grad():
            trainer = log_probs(model.lm_head, model.hidden(ids[None, :-1]).x, ids[None, 1:])[0].numpy()
        difference = np.abs(trainer - segment.log_probs[1:])[segment.drawn[1:]]
        assert difference.mean() < 1e-5
        assert difference.max() < 1e-4
        assert not segment.log_probs[~segment.drawn].any()
    assert several >= 2


def test_what_is_drawn_depends_on_run_step_prompt_and_sample_alone(model, tokenizer):
    ends = frozenset(range(0, tokenizer.vocab_size, 6)) | ends_of_text(tokenizer)
    engine = Engine(model, tokenizer, memory=32 << 20, page_size=8, eos_ids=ends, exact=True)
    tasks = pairs(Asking(turns=1, n=3))
    whole = RolloutWorker(engine, SETTINGS).draw(tasks, 7, 4)
    engine.weights_changed()
    fewer = RolloutWorker(engine, replace(SETTINGS, workers=1)).draw(tasks[:2], 7, 4)
    for one, other in zip(samples_of(whole), samples_of(fewer), strict=False):
        assert same_segments(one.segments, other.segments)
        assert one.messages == other.messages
    drawn = {drawn_of(sample) for sample in samples_of(whole)}
    assert len(drawn) > 6
    for changed in ((8, 4), (7, 5)):
        other = RolloutWorker(engine, SETTINGS).draw(tasks, *changed)
        assert {drawn_of(sample) for sample in samples_of(other)} != drawn
    places = [(r, s, p, k, t) for r in range(2) for s in range(2) for p in range(3) for k in range(3) for t in range(2)]
    assert len({seed_of(*place) for place in places}) == len(places)
    engine.close()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_sample_goes_on_while_another_one_is_still_being_drawn(scripted, overlap):
    measured, gave_up = threading.Event(), time.monotonic() + 120

    class Noting(Asking):
        def verify(self, task, rollout):
            if task.id == "t1":
                measured.set()
            return Reward(len(rollout.messages))

    def waits(request_id):
        """The first prompt's answer, until the second prompt's sample has had all its turns and its reward."""
        return request_id == "rollout-0-0" and not measured.wait(0.001) and time.monotonic() < gave_up

    engine = scripted(lambda prompt: "the dog", waits=waits)
    settings = replace(SETTINGS, group=1, overlap=overlap)
    groups = RolloutWorker(engine, settings).draw(pairs(Noting(turns=3)), 7, 0)
    assert time.monotonic() < gave_up
    assert [group.rewards for group in groups] == [[7.0], [7.0]]


def test_with_overlap_others_are_drawn_while_an_environment_answers(scripted):
    drawn = threading.Event()

    class Slow(Asking):
        def step(self, task, rollout):
            if task.id == "t0":
                assert drawn.wait(120)
            return super().step(task, rollout)

        def verify(self, task, rollout):
            drawn.set()
            return Reward(1.0)

    engine = scripted(lambda prompt: "the dog", waits=lambda request_id: False)
    settings = replace(SETTINGS, group=1, overlap=True)
    groups = RolloutWorker(engine, settings).draw(pairs(Slow(turns=2)), 7, 0)
    assert [group.fault for group in groups] == ["", ""]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("slow", ["t0", "t1"])
def test_what_is_drawn_does_not_depend_on_who_answers_first(model, tokenizer, slow, exact):
    """To the last bit: by an exact engine, or where the engine waits for environments."""

    class Slow(Asking):
        def step(self, task, rollout):
            time.sleep(0.03 if task.id == slow else 0)
            return super().step(task, rollout)

    ends = frozenset(range(0, tokenizer.vocab_size, 6)) | ends_of_text(tokenizer)
    found = []
    for kind in (Asking, Slow):
        engine = Engine(model, tokenizer, memory=32 << 20, page_size=8, eos_ids=ends, exact=exact)
        worker = RolloutWorker(engine, replace(SETTINGS, overlap=exact))
        found.append(samples_of(worker.draw(pairs(kind(turns=2)), 7, 4)))
        engine.close()
    for one, other in zip(*found, strict=True):
        assert same_segments(one.segments, other.segments)
        assert (one.messages, one.reward, one.turns) == (other.messages, other.reward, other.turns)


def test_one_answer_of_an_environment_without_turns(engine):
    class Plain:
        name = "plain"
        tasks, verify = Asking.tasks, Asking.verify
        n = 2

    groups = RolloutWorker(engine, SETTINGS).draw(pairs(Plain()), 1, 0)
    assert all(sample.turns == 1 for sample in samples_of(groups))
    limited = RolloutWorker(engine, replace(SETTINGS, max_turns=2)).draw(pairs(Asking(turns=9)), 1, 0)
    assert {sample.turns for sample in samples_of(limited)} <= {1, 2}


def test_truncated_samples_are_in_the_baseline_but_not_trained_on(engine):
    groups = RolloutWorker(engine, replace(SETTINGS, max_tokens=3)).draw(pairs(Asking(n=4)), 3, 0)
    cut = [sample for sample in samples_of(groups) if sample.truncated]
    whole = [sample for sample in samples_of(groups) if not sample.truncated]
    assert cut
    assert whole
    assert all(len(group.rewards) == 3 for group in groups)
    for sample in cut:
        assert sample.n_drawn == 3
        assert not any(row.trained.any() for row in sample.training_samples(1.0))
    for sample in whole:
        [row] = sample.training_samples(1.0)
        assert np.array_equal(row.trained, sample.segments[0].drawn)


def test_forced_tokens_are_marked_and_not_drawn(engine, tokenizer):
    settings = replace(SETTINGS, max_tokens=40, thinking_budget=2, template={"enable_thinking": True})
    engine.eos_ids = frozenset()
    found = samples_of(RolloutWorker(engine, settings).draw(pairs(Asking()), 5, 0))
    segments = [segment for sample in found for segment in sample.segments]
    assert any(segment.forced.any() for segment in segments)
    for segment in segments:
        assert not (segment.drawn & segment.forced).any()
        assert not segment.log_probs[segment.forced].any()


def test_experts_are_those_of_all_tokens_of_all_turns_and_can_be_replayed(model, engine):
    settings = replace(SETTINGS, return_experts=True)
    groups = RolloutWorker(engine, settings).draw(pairs(Asking(turns=1)), 7, 0)
    found = samples_of(groups)
    # They do not go to the rank that saves.
    assert all(s.segments[0].experts is None for group in groups for s in group.as_saved.samples)
    for sample in found:
        [segment] = sample.segments
        assert segment.experts is not None
        assert segment.experts.shape == (1, len(segment.ids) - 1, 2)
    advantages = group_advantages(torch.tensor([[s.reward.value for s in found[i : i + 3]] for i in (0, 3)])).flatten()
    rows = [row for sample, a in zip(found, advantages.tolist(), strict=True) for row in sample.training_samples(a)]
    batches = pack_samples(rows, 256, 2)
    loss, n = GRPOLoss(Objective()), sum(batch.n_targets for batch in batches)
    for batch in batches:
        parts = loss(model, batch, Scale(n, len(batches)))
        assert parts.loads.sum() == 2 * batch.n_tokens
    assert 0 < loss.take_largest_mismatch() < 1e-4


def test_a_fault_drops_its_group_and_is_counted_by_kind(engine):
    groups = RolloutWorker(engine, SETTINGS).draw(pairs(Faulty(n=3)) + pairs(Asking(n=1)), 1, 0)
    assert [group.fault for group in groups] == ["", "judge", "ZeroDivisionError", ""]
    assert faults(groups) == {"faulty: judge": 1, "faulty: ZeroDivisionError": 1}
    rates = pass_rates(groups)
    assert rates["faulty"] == {"t0": 1.0}
    assert set(rates["asking"]) == {"t0"}


def test_a_prompt_that_fills_the_context_costs_its_group_alone(model, tokenizer):
    engine = Engine(model, tokenizer, memory=32 << 20, page_size=8, max_context=64)
    task = Task("long", user("the lazy dog " * 40))
    [group] = RolloutWorker(engine, SETTINGS).draw([(Asking(), task)], 1, 0)
    assert group.fault == "prompt too long"
    assert re.search("task long has .* leaves no room", group.fault_message)
    small = RolloutWorker(engine, SETTINGS).draw([(Asking(turns=50), Task("a", user("Say.")))], 1, 0)
    assert all(len(segment.ids) <= 64 for sample in samples_of(small) for segment in sample.segments)
    engine.close()


def test_saved_rollouts_read_the_same_and_are_measured_the_same(engine, tmp_path):
    environment = Asking(turns=1, role="user")
    groups = RolloutWorker(engine, SETTINGS).draw(pairs(environment), 7, 12)
    path = save_rollouts(tmp_path, 12, groups, {"asking": SOURCE})
    assert path == rollouts_path(tmp_path, 12)
    saved = list(read_rollouts(path))
    assert any(len(one.segments) > 1 for one in saved)
    for one, sample in zip(saved, samples_of(groups), strict=True):
        assert (one.step, one.task, one.index, one.seed) == (12, sample.task.id, sample.index, sample.seed)
        assert one.source == SOURCE
        assert one.rollout == sample.rollout
        assert one.reward == sample.reward
        assert same_segments(one.segments, sample.segments)
        prompt = ChatEncoder(engine.tokenizer).encode(sample.task.messages, enable_thinking=False).ids
        tokens = sample.rollout.token_ids
        assert [*prompt, *tokens][: len(sample.segments[0].ids)] == sample.segments[0].ids.tolist()
        assert np.array_equal(one.rollout.token_ids, tokens)
    found = list(rescore(saved, {"asking": environment}))
    assert [one.reward for one in found] == [sample.reward for sample in samples_of(groups)]
    assert {one.outcome for one in found} == {"equal"}
    path.write_text(path.read_text() + '{"step": 3}\n')
    with pytest.raises(UserError, match="line 7: no saved rollout"):
        list(read_rollouts(path))


def test_arrays_of_other_rollouts_are_refused(engine, tmp_path):
    groups = RolloutWorker(engine, SETTINGS).draw(pairs(Asking()), 7, 1)
    path = save_rollouts(tmp_path, 1, groups, {"asking": SOURCE})
    size = arrays_path(path).stat().st_size
    assert size < 10 * sum(sample.n_tokens for sample in samples_of(groups)) + 2000
    for tokens, message in ((b"", "holds no tokens"), (None, "is missing")):
        arrays_path(path).unlink() if tokens is None else arrays_path(path).write_bytes(tokens)
        with pytest.raises(UserError, match=message):
            list(read_rollouts(path))
    other = save_rollouts(tmp_path, 2, groups[1:], {"asking": SOURCE})
    arrays_path(other).rename(arrays_path(path))
    with pytest.raises(UserError, match="of another file"):
        list(read_rollouts(path))


def test_calls_of_tools_come_from_the_drawn_text(engine, monkeypatch):
    """The text stands in for a model that can write calls; ids and log-probabilities are what the engine drew."""
    written = "<tool_call>\n<function=run>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>"
    monkeypatch.setattr("nano3.engine.output.Output.text", property(lambda output: written))

    class Shell(Asking):
        name = "shell"

        def tasks(self):
            tool = {"name": "run", "parameters": {"type": "object", "properties": {"command": {"type": "string"}}}}
            return [Task("t", user("Look."), tools=({"type": "function", "function": tool},))]

        def step(self, task, rollout):
            if any(message["role"] == "tool" for message in rollout.messages):
                return []
            return [{"role": "tool", "tool_call_id": "x", "content": "notes.txt"}]

        def verify(self, task, rollout):
            return Reward(float(rollout.calls == [("run", {"command": "ls"})] * 2))

    [group] = RolloutWorker(engine, SETTINGS).draw(pairs(Shell()), 2, 0)
    finished = [sample for sample in group.samples if sample.turns == 2]
    assert finished
    for sample in finished:
        assert sample.reward == Reward(1.0)
        assert [m["role"] for m in sample.messages] == ["assistant", "tool", "assistant"]
        assert sample.messages[0]["tool_calls"][0]["id"] == "call_0_0"
        assert "<tool_response>" in engine.tokenizer.decode(sample.segments[0].ids.tolist())
        json.dumps(sample.messages)
    assert Rollout(tuple(finished[0].messages)).calls


def test_a_call_that_its_limit_cut_off_is_not_made(engine, monkeypatch):
    """The text stands in for a model that can write calls; which samples are cut off is the engine's word."""
    written = "<tool_call>\n<function=run>\n<parameter=command>\nrm -r notes"
    monkeypatch.setattr("nano3.engine.output.Output.text", property(lambda output: written))

    class Shell(Asking):
        name = "shell"

        def verify(self, task, rollout):
            return Reward(float(any(arguments is not None for _, arguments in rollout.calls)))

    groups = RolloutWorker(engine, replace(SETTINGS, max_tokens=3)).draw(pairs(Shell(n=4)), 3, 0)
    assert {sample.truncated for sample in samples_of(groups)} == {True, False}
    for sample in samples_of(groups):
        assert sample.reward == Reward(0.0 if sample.truncated else 1.0)
