"""The processor of vLLM's second model runner gives the logits of the first one's, on the real base classes."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.request import Grammar, Sampling, ThinkingBudget
from nano3.engine.vllm.arguments import control_of, engine_arguments
from nano3.engine.vllm.control import Controls, step_control

pytestmark = [
    pytest.mark.any_isa,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
]
V, SLOTS, LONGEST = 512, 7, 64
SAMPLINGS = [
    Sampling(thinking=ThinkingBudget(tokens=4, grace=2)),
    Sampling(),
    Sampling(thinking=ThinkingBudget(tokens=6, grace=0), grammar=Grammar("regex", "[0-9]{4}", after_thinking=True)),
    Sampling(
        thinking=ThinkingBudget(tokens=3, grace=1), grammar=Grammar("choice", '["yes", "no"]', after_thinking=True)
    ),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["The capital of France is Paris. Some text for a vocabulary: yes, no, 0123456789."], V).save(
        folder
    )
    model = SimpleNamespace(tokenizer=str(folder), get_vocab_size=lambda: V)
    return SimpleNamespace(model_config=model, speculative_config=None)


def params(sampling):
    return SimpleNamespace(extra_args=control_of(sampling))


class Runner:
    """Slots of requests as vLLM's model runner keeps them, and its steps."""

    def __init__(self, config):
        self.tokens = torch.zeros(SLOTS, LONGEST, dtype=torch.int32)
        self.prompts = torch.zeros(SLOTS, dtype=torch.int32)
        buffers = SimpleNamespace(gpu=self.tokens), SimpleNamespace(np=self.prompts.numpy())
        self.control = step_control()(config, SimpleNamespace(all_token_ids=buffers[0], prompt_len=buffers[1]))
        self.lengths = {}

    def add(self, slot, sampling, prompt, output=()):
        given = torch.tensor([*prompt, *output], dtype=torch.int32)
        self.tokens[slot], self.prompts[slot], self.lengths[slot] = -1, len(prompt), len(given)
        self.tokens[slot, : len(given)] = given
        return self.control.add_request(slot, params(sampling))

    def step(self, slots, logits):
        """Logits after the processor, and the greedy tokens, which are committed."""
        places = torch.tensor(slots)
        context = SimpleNamespace(
            expanded_idx_mapping=places, idx_mapping=places, idx_mapping_np=places.numpy(),
            seq_lens_upper_bound_np=torch.tensor([self.lengths[slot] for slot in slots]).numpy(),
        )  # fmt: skip
        found = self.control.apply(logits.clone(), context)
        for slot, token in zip(slots, found.argmax(-1).tolist(), strict=True):
            self.tokens[slot, self.lengths[slot]] = token
            self.lengths[slot] += 1
        return found


def test_vllm_takes_the_class():
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
        names = engine_arguments("m", "auto", None, None, None)["logits_processors"]
    (found,) = _load_v2_logitsprocs_by_fqcns(names)
    assert found.__name__ == "StepControl"
    assert not found.__abstractmethods__
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
        assert engine_arguments("m", "auto", None, None, None)["logits_processors"][0].endswith(":LogitsControl")


def test_every_step_gives_the_logits_of_the_first_runners_processor(config):
    """Slots in another order than rows, rows that change places, one that is none of ours."""
    generator, runner, controls = torch.Generator().manual_seed(0), Runner(config), Controls(config)
    slots = [4, 2, 6, 1]
    taken = [
        runner.add(slot, s, [5, 6, 7][: 1 + i % 3]) for i, (slot, s) in enumerate(zip(slots, SAMPLINGS, strict=True))
    ]
    assert taken == [True, False, True, True]
    single = {slot: controls.row(params(s)) for slot, s in zip(slots, SAMPLINGS, strict=True)}
    outputs = {slot: [] for slot in slots}
    changed = 0
    for number in range(14):
        order = slots[number % 4 :] + slots[: number % 4]
        logits = torch.randn(4, V, generator=generator)
        expected = torch.stack([
            logits[i] if single[slot] is None else single[slot](outputs[slot], logits[i].clone())
            for i, slot in enumerate(order)
        ])  # fmt: skip
        found = runner.step(order, logits)
        assert torch.equal(found, expected)
        changed += int((found != logits).any())
        for slot, token in zip(order, found.argmax(-1).tolist(), strict=True):
            outputs[slot].append(token)
    assert changed > 5


def test_a_request_that_comes_back_goes_on_where_it_was_and_a_slot_forgets_the_one_before(config):
    generator, runner = torch.Generator().manual_seed(1), Runner(config)
    runner.add(3, SAMPLINGS[2], [5, 6])
    for _ in range(8):
        runner.step([3], torch.randn(1, V, generator=generator))
    output = runner.tokens[3, 2 : runner.lengths[3]].tolist()
    assert runner.add(0, SAMPLINGS[2], [5, 6], output)  # after a preemption
    logits = torch.randn(1, V, generator=generator)
    assert torch.equal(runner.step([3], logits), runner.step([0], logits))
    assert not runner.add(3, Sampling(), [9])
    assert torch.equal(runner.step([3], logits), logits)


def test_speculation_is_refused(config):
    with pytest.raises(ValueError, match="no speculation"):
        step_control()(SimpleNamespace(**vars(config) | {"speculative_config": object()}), None)
