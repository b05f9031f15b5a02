import json
import math
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from nano3.config.errors import UserError
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.grammar.masks import GrammarCompiler
from nano3.engine.protocol import MixedWeightsError, run
from nano3.engine.request import Grammar, Request, Sampling, ThinkingBudget
from nano3.engine.vllm.arguments import check_arguments, engine_arguments, sampling_options
from nano3.engine.vllm.control import CONTROL, control_row, controlled_row
from nano3.engine.vllm.engine import VllmEngine, VllmOutput

pytestmark = pytest.mark.any_isa

TOKENIZER = Tokenizer.train(["plain"], 263)
EOS = frozenset([TOKENIZER.eos_id])


def options(sampling, prompt=(10, 11, 12), max_context=100):
    return sampling_options(Request("r", prompt, sampling), 7, EOS, max_context, TOKENIZER.vocab_size)


@dataclass
class Logprob:
    """As vLLM has it."""

    logprob: float
    rank: int | None


def answer(ids, finished=False, reason=None, top=(), prompt_logprobs=None, cached=0):
    """A RequestOutput of vLLM with one completion, new tokens only."""
    logprobs = [{i: Logprob(-1.5, 4)} | {t: Logprob(p, r + 1) for r, (t, p) in enumerate(top)} for i in ids]
    completion = SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason=reason)
    return SimpleNamespace(
        outputs=[completion],
        finished=finished,
        prompt_logprobs=prompt_logprobs,
        prompt_token_ids=[10, 11, 12],
        num_cached_tokens=cached,
    )


def output(sampling, room=97):
    return VllmOutput(Request("r", (10, 11, 12), sampling), 0, TOKENIZER, EOS, room)


def test_settings_are_handed_on():
    sampling = Sampling(temperature=0.4, top_p=0.9, top_k=3, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.3,
                        frequency_penalty=-0.2, logit_bias={5: 2.0}, max_tokens=20, min_tokens=4, stop_ids=(30,),
                        log_probs=6, prompt_log_probs=2)  # fmt: skip
    given = options(sampling)
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"):
        assert given[name] == getattr(sampling, name)
    assert (given["max_tokens"], given["min_tokens"], given["seed"]) == (20, 4, 7)
    assert given["stop_token_ids"] == [TOKENIZER.eos_id, 30]
    assert (given["logprobs"], given["prompt_logprobs"], given["logit_bias"]) == (6, 2, {5: 2.0})
    assert given["structured_outputs"] is None
    assert given["extra_args"] is None
    assert options(Sampling(ignore_eos=True))["stop_token_ids"] == []


def test_numbers_beyond_any_use_fit_what_vllm_takes():
    huge = Sampling(top_k=2**70, stop_ids=(30, 2**70), thinking=ThinkingBudget(2**70, 2**70))
    given = options(huge)
    assert given["top_k"] == TOKENIZER.vocab_size
    assert given["stop_token_ids"] == [TOKENIZER.eos_id, 30]
    assert max(given["extra_args"][CONTROL]["thinking"]) < 2**63


def test_the_output_fits_the_context():
    assert options(Sampling())["max_tokens"] == 97
    assert options(Sampling(max_tokens=500))["max_tokens"] == 97
    assert options(Sampling(max_tokens=0))["max_tokens"] == 1
    with pytest.raises(ValueError, match="too long"):
        options(Sampling(), prompt=(1,) * 100)


@pytest.mark.parametrize("request_", [{"prompt": (263,)}, {"sampling": Sampling(logit_bias={9999: 1.0})}])
def test_tokens_that_do_not_exist_are_refused(request_):
    with pytest.raises(ValueError, match="no token has the id"):
        options(**{"sampling": Sampling(), **request_})


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        (Grammar("json_schema", '{"type": "object"}'), {"json": '{"type": "object"}'}),
        (Grammar("json_object"), {"json_object": True}),
        (Grammar("regex", "a+"), {"regex": "a+"}),
        (Grammar("choice", '["a", "b"]'), {"choice": ["a", "b"]}),
        (Grammar("lark", 'start: "a"'), {"grammar": 'start: "a"'}),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_grammars_are_handed_on(grammar, expected):
    assert options(Sampling(grammar=grammar))["structured_outputs"] == expected


def test_memory_and_limits_are_handed_on_when_given():
    given = engine_arguments("folder", "auto", 1 << 30, 8, 4096)
    assert (given["kv_cache_memory_bytes"], given["max_num_seqs"], given["max_model_len"]) == (1 << 30, 8, 4096)
    unlimited = engine_arguments("folder", "auto", None, None, None)
    assert "max_num_seqs" not in unlimited
    assert unlimited["enable_prefix_caching"]
    assert not engine_arguments("folder", "auto", None, None, None, prefix_cache=False)["enable_prefix_caching"]


def test_pieces_of_output_become_updates():
    out = output(Sampling(log_probs=2))
    first = out.update(answer(TOKENIZER.encode("héé")[:2], top=[(40, -0.1), (41, -0.9)], cached=2))
    assert (first.text, first.finish, first.cached_tokens) == ("h", None, 2)
    assert [token.log_prob for token in first.tokens] == [-1.5, -1.5]
    assert first.tokens[0].sampled_log_prob == -1.5
    assert first.tokens[0].top == ((40, -0.1), (41, -0.9))
    last = out.update(answer([*TOKENIZER.encode("héé")[2:], TOKENIZER.eos_id], finished=True, reason="stop"))
    assert (last.text, last.finish, last.stop_reason, last.cached_tokens) == ("éé", "stop", None, 0)


def test_a_stop_string_cuts_tokens_and_text():
    out = output(Sampling(stop=("b,",)))
    update = out.update(answer(TOKENIZER.encode("a b, c")))
    assert (update.text, update.finish, update.stop_reason) == ("a ", "stop", "b,")
    assert [token.id for token in update.tokens] == TOKENIZER.encode("a b,")


def test_stop_tokens_and_limits_end_the_output():
    stopped = output(Sampling(stop_ids=(30,))).update(answer([50, 30], finished=True, reason="stop"))
    assert (stopped.finish, stopped.stop_reason) == ("stop", 30)
    full = output(Sampling(max_tokens=2)).update(answer([50, 51], finished=True, reason="length"))
    assert (full.finish, len(full.tokens)) == ("length", 2)
    scored = output(Sampling(max_tokens=0)).update(answer([50], finished=True, reason="length"))
    assert (scored.finish, scored.tokens, scored.text) == ("length", (), "")


def test_prompt_scores_come_with_the_first_update():
    scores = [None, {11: Logprob(-3.0, 5), 60: Logprob(-0.2, 1)}, {12: Logprob(-0.1, 1)}]
    out = output(Sampling(prompt_log_probs=1))
    prompt = out.update(answer([50], prompt_logprobs=scores)).prompt
    assert [token.id for token in prompt] == [10, 11, 12]
    assert math.isnan(prompt[0].log_prob)
    assert (prompt[1].log_prob, prompt[1].top) == (-3.0, ((60, -0.2),))
    assert out.update(answer([51])).prompt is None


def test_log_probs_that_vllm_does_not_report_are_not_made_up():
    changed = output(Sampling(top_p=0.5)).update(answer([50])).tokens[0]
    assert changed.log_prob == -1.5
    assert math.isnan(changed.sampled_log_prob)
    greedy = output(Sampling(temperature=0, top_p=0.5)).update(answer([50])).tokens[0]
    assert greedy.sampled_log_prob == -1.5


def test_budget_and_late_grammar_are_enforced_by_the_logits_processor():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    grammar = Grammar("json_schema", json.dumps(schema), after_thinking=True)
    sampling = Sampling(grammar=grammar, thinking=ThinkingBudget(5, 3))
    given = options(sampling)
    assert given["structured_outputs"] is None
    control = json.loads(json.dumps(given["extra_args"]))[CONTROL]
    compiler = GrammarCompiler(TOKENIZER, 300, EOS)
    process = control_row(controlled_row(control, TOKENIZER, compiler.compile, 300))
    generator = torch.Generator().manual_seed(0)
    ids, out = [], output(sampling)
    while not ids or ids[-1] not in (TOKENIZER.eos_id, TOKENIZER.token_id("<|im_end|>")):
        logits = process(ids, torch.randn(300, generator=generator))
        logits[TOKENIZER.token_id("</think>")] -= 5
        logits[TOKENIZER.vocab_size :] = -math.inf
        ids.append(int(logits.argmax()))
    update = out.update(answer(ids))
    _, text = update.text.split("</think>")
    assert set(json.loads(text)) == {"a"}
    assert TOKENIZER.token_id("</think>") in [token.id for token in update.tokens if token.forced]


def test_a_missing_vllm_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="pip install") as caught:
        VllmEngine(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """The engine on a vLLM that takes requests, two at once, and computes nothing."""
    import nano3
    from nano3.model.load import load_model

    nano3.save(load_model("tiny"), str(tmp_path))
    TOKENIZER.save(tmp_path)
    calls = []
    core = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=64, get_vocab_size=lambda: 4096),
        vllm_config=SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=2), cache_config=SimpleNamespace(block_size=16)
        ),
        add_request=lambda *_: None,
        abort_request=lambda _: None,
        reset_prefix_cache=lambda: calls.append("reset_prefix_cache"),
        collective_rpc=calls.append,
    )
    fields = dict.fromkeys(("SamplingParams", "StructuredOutputsParams"), SimpleNamespace)
    parameters = SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA=1), **fields)
    config = SimpleNamespace(StructuredOutputsConfig=SimpleNamespace)
    llm = SimpleNamespace(from_engine_args=lambda _: core)
    package = SimpleNamespace(LLMEngine=llm, EngineArgs=SimpleNamespace, config=config, sampling_params=parameters)
    for name, module in {"": package, ".config": config, ".sampling_params": parameters}.items():
        monkeypatch.setitem(sys.modules, f"vllm{name}", module)
    engine = VllmEngine(str(tmp_path))
    engine.core, engine.calls = core, calls
    return engine


def test_changed_weights_reset_vllms_prefix_cache(engine):
    engine.core.step = lambda: [SimpleNamespace(request_id="a#0", **vars(answer([50], finished=True, reason="length")))]
    engine.add(Request("a", (10, 11)))
    for change in (engine.weights_changed, engine.reload_weights):
        with pytest.raises(RuntimeError, match="under way"):
            change()
    assert engine.step()[0].weights_version == 0
    assert (engine.weights_changed(), engine.reload_weights()) == (1, 2)
    assert engine.calls == ["reset_prefix_cache", "reload_weights", "reset_prefix_cache"]
    engine.add(Request("a", (10, 11)))
    assert engine.step()[0].weights_version == 2
    engine.core.reset_prefix_cache = lambda: False
    with pytest.raises(RuntimeError, match="kept its prefix cache"):
        engine.weights_changed()


def test_a_load_that_breaks_off_leaves_no_states_of_the_old_weights(engine, tmp_path):
    def fail(*_, **__):
        raise OSError("input/output\nerror")

    engine.core.collective_rpc = fail
    with pytest.raises(MixedWeightsError, match=r"load again \(input/output error\)"):
        engine.load_weights(tmp_path)
    assert engine.calls == ["reset_prefix_cache"]


def test_outputs_beyond_those_that_run_at_once_wait(engine):
    engine.add(Request("a", (10, 11), n=5))
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (2, 3)
    engine.abort("a")
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)


def test_an_idle_engine_does_not_ask_vllm_which_would_wait_for_ever(engine):
    def step():
        raise AssertionError("vLLM's step blocks while nothing is outstanding")

    engine.core.step = step
    assert engine.step() == []
    engine.add(Request("a", (10, 11)))
    engine.abort("a")
    assert engine.step() == []


def test_settings_of_vllm_are_checked_against_those_that_it_has():
    known = ("mamba_ssm_cache_dtype", "max_num_seqs", "enforce_eager")
    check_arguments({"mamba_ssm_cache_dtype": "float32"}, {"max_num_seqs": 2}, known)
    with pytest.raises(
        UserError, match=r"mamba_ssm_cache_dtyp: vLLM has no such .* did you mean mamba_ssm_cache_dtype"
    ):
        check_arguments({"mamba_ssm_cache_dtyp": "float32"}, {}, known)
    with pytest.raises(UserError, match="max_num_seqs: nano3 sets it itself"):
        check_arguments({"max_num_seqs": 4}, {"max_num_seqs": 2}, known)


@pytest.mark.parametrize("after_thinking", [False, True])
def test_a_grammar_that_would_fail_inside_vllm_is_refused_before(engine, after_thinking):
    wrong = Sampling(grammar=Grammar("regex", "[", after_thinking))
    for take in (engine.prepare, engine.add):
        with pytest.raises(UserError, match="regular expression"):
            take(Request("a", (10, 11), wrong))
    assert not engine.has_work


@pytest.mark.gpu
def test_vllm_writes_what_it_is_asked(tmp_path):
    import nano3
    from nano3.model.load import load_model

    nano3.save(load_model("tiny"), str(tmp_path))
    Tokenizer.train(["some text for a vocabulary"], 300).save(tmp_path)
    engine = VllmEngine(str(tmp_path), max_context=256)
    try:
        prompt = tuple(engine.tokenizer.encode("some text"))
        greedy = Request("a", prompt, Sampling(temperature=0, max_tokens=8, ignore_eos=True))
        choice = Request("b", prompt, Sampling(grammar=Grammar("choice", '["yes", "no"]'), seed=1), n=2)
        budget = Request("c", prompt, Sampling(thinking=ThinkingBudget(3, 2), max_tokens=12, ignore_eos=True, seed=1))
        (first,), choices, (thought,) = run(engine, [greedy, choice, budget])
        assert len(first.ids) == 8
        assert all(output.text in ("yes", "no") for output in choices)
        assert engine.tokenizer.token_id("</think>") in thought.ids[:7]
        assert not engine.has_work
    finally:
        engine.close()


def test_a_grammar_begins_at_its_opener_in_the_logits_processor_too():
    grammar = Grammar("lark", 'start: "<tool_call>ab"', after_thinking=True, opener="<tool_call>")
    control = json.loads(json.dumps(options(Sampling(grammar=grammar))["extra_args"]))[CONTROL]
    process = control_row(controlled_row(control, TOKENIZER, GrammarCompiler(TOKENIZER, 300, EOS).compile, 300))
    ids = TOKENIZER.encode("so <tool_call>")
    before = process(ids[:-1], torch.zeros(300))
    assert before[TOKENIZER.encode("b")[0]] == 0
    after = process(ids, torch.zeros(300))
    assert (after > -math.inf).nonzero().flatten().tolist() == TOKENIZER.encode("a")
