"""Rollouts with a user: every turn's prompt is what a served model sees, and what was drawn is trained on as drawn."""

import re

import numpy as np
import pytest

from nano3.data.chat.encoder import ChatEncoder
from nano3.rl.environments.base import Reward, Task, user
from nano3.rl.rollout import RolloutSettings, RolloutWorker

CALL = "<tool_call>\n<function=run>\n<parameter=name>\nfox\n</parameter>\n</function>\n</tool_call>\n"
TOOL = {"type": "function", "function": {"name": "run", "parameters": {"properties": {"name": {"type": "string"}}}}}
RESULT = {"role": "tool", "tool_call_id": "x", "content": "quick"}


def says(text):
    return {"role": "user", "content": text}


class Talk:
    """Gives these messages, one list a turn."""

    name = "talk"

    def __init__(self, *given):
        self.given = given

    def tasks(self):
        return [Task("t", user("The fox?"), tools=(TOOL,))]

    def step(self, task, rollout):
        turn = sum(message["role"] == "assistant" for message in rollout.messages) - 1
        return self.given[turn] if turn < len(self.given) else []

    def verify(self, task, rollout):
        return Reward(1.0)


def draw(scripted, environment, answers, **template):
    """The one sample, the prompts that the engine was given, and the template's rendering before each answer."""
    left = iter(answers)
    engine = scripted(lambda prompt: next(left))
    worker = RolloutWorker(engine, RolloutSettings(group=1, max_tokens=400, template=template))
    [task] = environment.tasks()
    [group] = worker.draw([(environment, task)], 1, 0)
    [sample] = group.samples
    assert not sample.fault
    spoken = [i for i, message in enumerate(sample.messages) if message["role"] == "assistant"]
    encoder = ChatEncoder(engine.tokenizer)
    rendered = [encoder.encode([*task.messages, *sample.messages[:i]], task.tools, **template).ids for i in spoken]
    return sample, engine.prompts, rendered


def drawn_texts(sample, tokenizer):
    """What was drawn, run by run."""
    texts = []
    for segment in sample.segments:
        runs = np.split(np.arange(len(segment.ids)), np.flatnonzero(np.diff(segment.drawn.astype(int))) + 1)
        texts += [tokenizer.decode(segment.ids[run].tolist()) for run in runs if segment.drawn[run[0]]]
    return texts


def test_a_users_turn_begins_a_sequence_without_the_reasoning_before_it(scripted, tokenizer):
    answers = ["the dog\n</think>\nlazy", "my box\n</think>\npack", "a jug\n</think>\nale"]
    sample, prompts, rendered = draw(scripted, Talk([says("dog?")], [says("box?")]), answers)
    assert prompts == rendered
    assert len(sample.segments) == 3
    for segment, prompt, answer in zip(sample.segments, prompts, answers, strict=True):
        drawn = [*tokenizer.encode(answer, special=True), tokenizer.token_id("<|im_end|>")]
        assert segment.ids.tolist() == [*prompt, *drawn]
        assert segment.drawn.tolist() == [False] * len(prompt) + [True] * len(drawn)
        assert segment.log_probs.tolist() == [0.0] * len(prompt) + [-0.5] * len(drawn)
    text = tokenizer.decode(prompts[2])
    assert "the dog" not in text
    assert "my box" not in text
    assert re.search("lazy.*pack", text, re.DOTALL)


def test_results_of_tools_keep_the_reasoning_of_the_same_users_turn(scripted, tokenizer):
    answers = ["the dog\n</think>\n" + CALL, "my box\n</think>\npack", "jugs\n</think>\nale"]
    sample, prompts, rendered = draw(scripted, Talk([RESULT], [says("box?")]), answers)
    assert [len(segment.ids) > len(prompt) for segment, prompt in zip(sample.segments, prompts[1:], strict=True)]
    assert tokenizer.decode(prompts[1]) == tokenizer.decode(rendered[1])
    assert "the dog" in tokenizer.decode(prompts[1])
    assert prompts[2] == rendered[2]
    assert drawn_texts(sample, tokenizer) == [answer + "<|im_end|>" for answer in answers]


@pytest.mark.parametrize("template", [{"enable_thinking": False}, {"truncate_history_thinking": False}])
def test_the_sequence_goes_on_where_the_template_leaves_all_as_it_was(scripted, tokenizer, template):
    thoughts = "" if "enable_thinking" in template else "the dog\n</think>\n"
    answers = [thoughts + answer for answer in ("lazy", "pack", "ale")]
    sample, prompts, rendered = draw(scripted, Talk([says("dog?")], [says("box?")]), answers, **template)
    assert len(sample.segments) == 1
    assert [tokenizer.decode(prompt) for prompt in prompts] == [tokenizer.decode(prompt) for prompt in rendered]
    assert drawn_texts(sample, tokenizer) == [answer + "<|im_end|>" for answer in answers]


@pytest.mark.parametrize("answer", ["lazy \n", "", "the dog\n</think>\n", "<tool_call>\n<function=run>\n", CALL + "x"])
def test_odd_answers_are_seen_in_a_users_next_turn_as_served(scripted, tokenizer, answer):
    for template in ({}, {"enable_thinking": False}):
        sample, prompts, rendered = draw(scripted, Talk([says("dog?")]), [answer, "ale"], **template)
        assert tokenizer.decode(prompts[1]) == tokenizer.decode(rendered[1])
        assert drawn_texts(sample, tokenizer)[0] == answer + "<|im_end|>"


def test_all_sequences_of_a_sample_are_trained_on_with_its_advantage(scripted):
    sample, *_ = draw(scripted, Talk([says("dog?")]), ["the\n</think>\nlazy", "my\n</think>\npack"])
    rows = sample.training_samples(0.5)
    assert [row.advantage for row in rows] == [0.5, 0.5]
    assert [row.name for row in rows] == ["t sample 0", "t sample 0 sequence 1"]
    assert sum(row.n_targets for row in rows) == sample.n_drawn
    assert sample.rollout.token_ids.tolist() == [
        token for segment in sample.segments for token in segment.ids[int(segment.drawn.argmax()) :].tolist()
    ]
    sample.truncated = True
    assert not any(row.n_targets for row in sample.training_samples(0.5))
