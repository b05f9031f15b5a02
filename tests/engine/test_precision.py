"""In bfloat16 too, log-probabilities are those of float32 logits: of prompts, of first tokens and of later ones."""

import copy
import random

import pytest
import torch

from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.model.head import logits

PROMPT = tuple(random.Random(0).choices(range(7, 300), k=300))


@pytest.fixture(scope="module")
def narrow(model):
    """Logits of up to 30, as trained models have, which bfloat16 rounds by up to 0.06."""
    narrow = copy.deepcopy(model).to_dtype(torch.bfloat16)
    with torch.no_grad():
        narrow.lm_head.weight.mul_(4)
    return narrow


@torch.no_grad()
def exact_log_probs(model, hidden):
    """(T, V) of hidden states (T, D), in float64."""
    return (hidden.double() @ model.lm_head.weight.double().T).log_softmax(-1)


@pytest.mark.parametrize("backend", ["", "eager"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("top", [0, 3])
def test_prompts_and_first_tokens_have_unrounded_logits(narrow, tokenizer, monkeypatch, top, exact, backend):
    monkeypatch.setenv("NANO3_BACKEND", backend)
    passes, hidden = [], narrow.hidden
    monkeypatch.setattr(narrow, "hidden", lambda *a, **options: passes.append(hidden(*a, **options)) or passes[-1])
    sampling = Sampling(max_tokens=1, temperature=0, ignore_eos=True, prompt_log_probs=top)
    engine = Engine(narrow, tokenizer, memory=64 << 20, exact=exact, snapshot_every=512)
    [[output]] = run(engine, [Request("r", PROMPT, sampling)])
    states = torch.cat([done.x[0] for done in passes])
    expected = exact_log_probs(narrow, states)
    scored = torch.tensor([token.log_prob for token in output.prompt[1:]], dtype=torch.float64)
    wanted = expected[:299].gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0]
    assert (scored - wanted).abs().max() < 1e-4
    if len(states) == 300:  # else the last token came with a decoding step
        first = output.tokens[0]
        assert first.log_prob == pytest.approx(float(expected[-1, first.id]), abs=1e-4)
        assert first.id == int(expected[-1, : tokenizer.vocab_size].argmax())


@pytest.mark.parametrize("rows", [1, 3, 64, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_a_head_are_float32(narrow, rows, dtype):
    hidden = torch.randn(rows, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        got = logits(narrow.lm_head, hidden)
        expected = hidden.double() @ narrow.lm_head.weight.double().T
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)
