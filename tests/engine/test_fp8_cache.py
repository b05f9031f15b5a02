"""Keys and values in e4m3 pages: what the engine answers is what the model computes, and twice as many fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.model.lm import LM

E4M3 = torch.float8_e4m3fn
PROMPTS = torch.randint(0, 97, (3, 30), generator=torch.Generator().manual_seed(4)).tolist()


@pytest.fixture
def model(small_config) -> LM:
    """Every block after the first is attention, so that what is cached counts."""
    model = LM(replace(small_config, pattern="M***", vocab_size=300)).init_weights(3).eval()
    for i, block in enumerate(model.blocks[1:]):
        for letter in "kv":
            projection = block.get_submodule(f"mixer.{letter}_proj")
            projection.register_buffer(f"{letter}_scale", torch.tensor(0.02 + 0.01 * i))
    return model


def answers(model: LM, **options) -> list:
    engine = Engine(model, Tokenizer.train(["a b"], 263), memory=8 << 20, page_size=8, max_context=64, **options)
    sampling = Sampling(temperature=0.0, max_tokens=8, ignore_eos=True)
    return [outputs[0] for outputs in run(engine, [Request(str(i), tuple(p), sampling)
                                                   for i, p in enumerate(PROMPTS)])]  # fmt: skip


def log_probs(model: LM, prompt: list[int], ids: list[int]) -> list[float]:
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *ids]])).log_softmax(-1)[0, len(prompt) - 1 : -1]
    return logits.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


def test_the_engine_answers_as_the_model_computes(model):
    model.use_fp8_cache()
    for prompt, output in zip(PROMPTS, answers(model, kv_dtype=E4M3), strict=True):
        found = [token.log_prob for token in output.tokens]
        assert found == pytest.approx(log_probs(model, prompt, list(output.ids)), abs=1e-4)


def test_rounding_counts_and_can_be_left_out_again(model):
    tokens = torch.tensor(PROMPTS)
    with torch.inference_mode():
        before = model(tokens)
        rounded = model.use_fp8_cache()(tokens)
        after = model.use_fp8_cache(False)(tokens)
    assert (rounded - before).abs().max() > 1e-3
    assert torch.equal(after, before)


def test_twice_as_many_tokens_fit(model):
    model.use_fp8_cache()
    narrow, wide = (
        Engine(model, Tokenizer.train(["a b"], 263), memory=1 << 20, max_sequences=1, max_context=1 << 20, kv_dtype=t)
        for t in (E4M3, torch.bfloat16)
    )
    assert 1.9 < narrow.max_context / wide.max_context < 2.1


def test_without_scales_it_is_refused(small_config):
    model = LM(small_config).init_weights(1).eval()
    with pytest.raises(ValueError, match="block 2 has no scales of keys and values"):
        model.use_fp8_cache()


def test_pages_without_rounding_are_refused(model):
    """Before there is an engine that no request can be given to."""
    with pytest.raises(ValueError, match=r"needs a model that rounds keys and values: model.use_fp8_cache"):
        Engine(model, Tokenizer.train(["a b"], 263), memory=8 << 20, max_context=64, kv_dtype=E4M3)


def test_a_kept_beginning_inside_a_page_brings_its_keys(model):
    """The copy of a page of e4m3 numbers."""
    model.use_fp8_cache()
    engine = Engine(model, Tokenizer.train(["a b"], 263), memory=8 << 20, page_size=16, max_context=96, kv_dtype=E4M3)
    sampling = Sampling(temperature=0.0, max_tokens=8, ignore_eos=True)
    prompt = (*PROMPTS[0], *PROMPTS[1][:10])
    first, again = (run(engine, [Request(name, prompt, sampling)])[0][0] for name in ("first", "again"))
    assert again.cached_tokens == 39
    assert again.ids == first.ids
    assert [t.log_prob for t in again.tokens] == pytest.approx([t.log_prob for t in first.tokens], abs=1e-4)
