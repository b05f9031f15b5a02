"""The engine protocol on real servers: the outputs of a local engine, and what becomes of a server that fails."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from nano3.config.errors import UserError
from nano3.engine.engine import Engine
from nano3.engine.protocol import ServersGoneError, run
from nano3.engine.request import Grammar, Request, Sampling, ThinkingBudget
from nano3.model.hf.folder import save
from nano3.model.lm import LM
from nano3.rl.remote import place
from nano3.rl.remote.engine import RemoteEngine
from nano3.rl.sync import MismatchError, WeightSync
from nano3.train.world import World

from ...serve.conftest import running

SIZES: dict[str, Any] = {"memory": 64 << 20, "page_size": 16, "snapshot_every": 64, "max_sequences": 16}
NEAR = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(place, "FIRST_WAIT", 0.01)


@pytest.fixture
def serve(model, tokenizer, tmp_path):
    """Serve copies of the model, by engines of these kinds; the addresses."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(*kinds, **settings):
            engines = [kind(copy.deepcopy(model), tokenizer, **SIZES) for kind in kinds]
            options = {"weights_folder": tmp_path} | settings
            return [stack.enter_context(running(engine, **options)) for engine in engines]

        yield start


@pytest.fixture
def connect(tokenizer, tmp_path):
    said = []

    def connect(servers, **options):
        return RemoteEngine([s.url for s in servers], tokenizer, tmp_path / "w", say=said.append, **options)

    connect.said = said  # type: ignore[attr-defined]
    return connect


def send(engine, model):
    save(model, engine.folder)
    return engine.load_weights(engine.folder)


class Breaking(Engine):
    """Fails at its fifth step after the weights came, as a server does that dies in its work."""

    left = None

    def load_weights(self, folder):
        self.left = 5
        return super().load_weights(folder)

    def step(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("out of memory")
        return super().step()


class DiesAtOnce(Breaking):
    """Fails at its first step after the weights came."""

    def load_weights(self, folder):
        version = super().load_weights(folder)
        self.left = 0
        return version


class Stale(Engine):
    """Says that it took the weights, and did not."""

    def load_weights(self, folder):
        return self.weights_changed()


def requests(tokenizer):
    free = Sampling(seed=(1 << 63) + 7, max_tokens=40)
    ended = Sampling(seed=5, max_tokens=200, stop_ids=(tokenizer.token_id("a"),))
    budget = Sampling(seed=9, max_tokens=120, ignore_eos=True, thinking=ThinkingBudget(3, open=True))
    texts = ["the quick brown fox", "lazy dog; pack", "jugs<think>\n", "the quick brown dog"]
    sampling = [free, ended, budget, Sampling(seed=-3, max_tokens=9, min_tokens=9)]
    return [
        Request(f"r{i}", tuple(tokenizer.encode(text, special=True)), s, n=1 + i % 3)
        for i, (text, s) in enumerate(zip(texts, sampling, strict=True))
    ]


def test_servers_give_what_a_local_engine_gives(serve, connect, model, tokenizer):
    wanted = requests(tokenizer)
    engine = connect(serve(Engine, Engine, logprobs_mode="processed_logprobs"))  # since min_tokens takes ends out
    version = send(engine, model)
    local = run(Engine(model, tokenizer, **SIZES), wanted)
    for outputs, expected in zip(run(engine, wanted), local, strict=True):
        for output, known in zip(outputs, expected, strict=True):
            assert output.ids == known.ids
            assert (output.text, output.finish, output.stop_reason) == (known.text, known.finish, known.stop_reason)
            assert output.forced.tolist() == known.forced.tolist()
            drawn = ~known.forced
            assert torch.allclose(
                torch.from_numpy(output.sampled_log_probs[drawn]), torch.from_numpy(known.sampled_log_probs[drawn]),
                **NEAR,
            )  # fmt: skip
            assert output.weights_version == version
    assert {output.finish for outputs in local for output in outputs} == {"stop", "length"}
    assert local[2][0].forced.any()
    assert engine.stats().output_tokens == sum(output.n_tokens for outputs in local for output in outputs)
    assert not engine.has_work


@pytest.mark.parametrize("mode", ["processed_logprobs", "raw_logprobs"])
def test_a_model_with_more_ids_than_its_tokenizer(connect, model, tokenizer, tmp_path, mode):
    """The trainer scores what is drawn over the tokenizer's ids, and so must servers."""
    wide = LM(replace(model.cfg, vocab_size=tokenizer.vocab_size * 3 // 2)).init_weights(seed=5)
    served = Engine(copy.deepcopy(wide), tokenizer, **SIZES)
    with running(served, weights_folder=tmp_path, logprobs_mode=mode) as server:
        sync = WeightSync(wide, connect([server], vocab_size=wide.cfg.vocab_size))
        if mode == "processed_logprobs":
            sync.sync()
            return
        with pytest.raises(MismatchError, match=r"tokens are drawn from another.*--logprobs-mode processed_logprobs"):
            sync.sync()


def test_a_prompt_is_scored(serve, connect, model, tokenizer):
    engine = connect(serve(Engine))
    send(engine, model)
    asked = [Request("a", tuple(range(40, 90)), Sampling(max_tokens=0, prompt_log_probs=0))]
    [[output]], [[known]] = run(engine, asked), run(Engine(model, tokenizer, **SIZES), asked)
    scores, expected = ([token.log_prob for token in o.prompt or ()] for o in (output, known))
    assert torch.allclose(torch.tensor(scores), torch.tensor(expected), equal_nan=True, **NEAR)
    assert output.ids == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"sampling": Sampling(grammar=Grammar("regex", "a"))}, "grammar"),
        ({"sampling": Sampling(log_probs=3)}, "log_probs"),
        ({"sampling": Sampling(thinking=ThinkingBudget(3, grace=1))}, "grace"),
        ({"return_experts": True}, "experts"),
    ],
)
def test_what_servers_cannot_do_is_refused_in_a_line(serve, connect, more, words):
    engine = connect(serve(Engine))
    with pytest.raises(UserError, match=words):
        engine.add(Request("a", (5, 6), **more))
    with pytest.raises(ValueError, match="too long"):
        engine.add(Request("a", (5,) * 3000))
    assert not engine.has_work


def test_a_request_that_a_server_refuses_ends_with_an_error_and_the_server_stays(serve, connect, model):
    engine = connect(serve(Engine))
    send(engine, model)
    [[wrong], [right]] = run(engine, [Request("a", (9999,)), Request("b", (5,), Sampling(max_tokens=2))])
    assert wrong.finish == "error"
    assert "9999" in wrong.error
    assert "\n" not in wrong.error
    assert right.n_tokens == 2


def test_a_prompt_with_thinking_marks_in_its_text_costs_no_server(serve, connect, model, tokenizer):
    engine = connect(serve(Engine, Engine))
    send(engine, model)
    closed = Sampling(max_tokens=3, ignore_eos=True, thinking=ThinkingBudget(3, open=False))
    prompts = [tuple(tokenizer.encode(text, special=True)) for text in ("why <think>?", "why?")]
    [[wrong], [right]] = run(engine, [Request(f"r{i}", prompt, closed) for i, prompt in enumerate(prompts)])
    assert wrong.finish == "error"
    assert "thinking is closed, but the prompt ends in <think>" in wrong.error
    assert right.n_tokens == 3
    assert len(engine.parts) == 2


def test_requests_of_a_server_that_dies_go_to_the_others(serve, connect, model, tokenizer):
    engine = connect(serve(Engine, Breaking), sequences=4)
    send(engine, model)
    wanted = [Request(f"r{i}", (40 + i, 50), Sampling(seed=i, max_tokens=20, ignore_eos=True), 2) for i in range(8)]
    outputs = run(engine, wanted)
    local = run(Engine(model, tokenizer, **SIZES), wanted)
    assert [[o.ids for o in found] for found in outputs] == [[o.ids for o in found] for found in local]
    [line] = connect.said
    assert "is lost until the next weights" in line
    assert "out of memory" in line


def test_without_any_server_left_it_says_why(serve, connect, model):
    engine = connect(serve(Breaking, Breaking))
    send(engine, model)
    with pytest.raises(ServersGoneError, match=r"no server of rollout\.servers is left .*out of memory.*out of mem"):
        run(engine, [Request(f"r{i}", (40, i), Sampling(max_tokens=20, ignore_eos=True)) for i in range(4)])
    assert not engine.has_work


def test_answers_with_other_weights_are_not_taken(serve, connect, model, tokenizer):
    servers = serve(Engine, Engine)
    engine = connect(servers)
    send(engine, model)
    intruder = connect(servers[1:])
    send(intruder, model)
    asked = [Request(f"r{i}", (40, i), Sampling(seed=i, max_tokens=3, ignore_eos=True)) for i in range(6)]
    run(engine, asked)
    [line] = connect.said
    assert servers[1].url in line
    assert "another run" in line
    assert send(engine, model) == 2  # the server is there again
    run(engine, asked)
    assert len(connect.said) == 1


def test_a_server_that_did_not_take_the_weights_is_found(serve, connect, model):
    servers = serve(Engine, Stale)
    sync = WeightSync(model, connect(servers))
    sync.sync()  # the weights that they were started with
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    with pytest.raises(MismatchError, match=f"engine at {servers[1].url} and trainer differ.*did not all arrive"):
        sync.sync()


class Rank(World):
    """One of two ranks that are threads of a process."""

    meeting, said = threading.Barrier(2), [None, None]

    def gather(self, value):
        self.said[self.rank] = value
        self.meeting.wait(60)
        found = list(self.said)
        self.meeting.wait(60)
        return found

    def from_main(self, value):
        return self.gather(value)[0]


@pytest.mark.parametrize("dies", [False, True])
def test_ranks_that_outnumber_the_servers_ask_none_twice(serve, tokenizer, model, tmp_path, dies):
    urls = [server.url for server in serve(*([Engine, DiesAtOnce] if dies else [Engine]))]

    def sync(rank):
        engine = RemoteEngine(urls, tokenizer, tmp_path / f"w{rank}")
        world = Rank(rank=rank, size=2)
        return WeightSync(copy.deepcopy(model), engine, world=world).sync().measured

    with ThreadPoolExecutor(2) as ranks:
        first, second = ranks.map(sync, range(2))
    assert first == second
    assert first.cached_at_first == 0
    assert first.generated.largest < 1e-4


def test_log_probs_of_another_temperature_are_refused(serve, connect, model):
    cold = Sampling(temperature=0.7)
    sync = WeightSync(model, connect(serve(Engine)), sampling=cold, temperature=0.7)
    with pytest.raises(MismatchError, match="--logprobs-mode processed_logprobs"):
        sync.sync()
    processed = connect(serve(Engine, logprobs_mode="processed_logprobs"))
    assert WeightSync(model, processed, sampling=cold, temperature=0.7).sync().measured.generated.largest < 1e-4


def test_a_server_that_takes_no_weights_is_refused(serve, connect, model):
    engine = connect(serve(Engine, weights_folder=None))
    with pytest.raises(UserError, match="takes no weights: start it with --weights-folder"):
        send(engine, model)


def test_a_server_that_is_not_there(connect, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"is a server running there\? see rollout\.servers"):
        RemoteEngine(["http://127.0.0.1:9"], tokenizer, tmp_path)
