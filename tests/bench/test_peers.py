"""What is said about a peer that cannot run, and how vLLM is run."""

import sys
from types import SimpleNamespace

import pytest

from nano3.bench.compute import Plan
from nano3.bench.native import full_tokenizer, open_model
from nano3.bench.peers import table as peers
from nano3.bench.peers.table import Chosen, check_peers, choose_peers
from nano3.bench.peers.types import is_converted
from nano3.bench.peers.vllm_engine import Vllm
from nano3.bench.workload import Case, Job
from nano3.config.errors import UserError
from nano3.engine.engine import Engine


def test_peers_that_can_run_pass(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: object())
    check_peers(["transformers", "llama.cpp"], "decode", "model.gguf")
    check_peers([], "train", "")


@pytest.mark.parametrize(
    ("names", "kind", "installed", "words"),
    [
        (["ollama"], "decode", True, "--against ollama: not known; use one or several of transformers,llama.cpp,vllm"),
        *(
            (
                ["llama.cpp"],
                kind,
                True,
                f"--against llama.cpp: nano3 bench {kind} cannot compare with it, only with transformers; "
                "llama.cpp takes part in prefill and decode and throughput",
            )
            for kind in ("train", "rl")
        ),
        (["transformers", "llama.cpp"], "decode", False, "transformers not installed; pip install transformers"),
        (["llama.cpp"], "decode", False, "llama-cpp-python and gguf not installed; pip install llama-cpp-python gguf"),
    ],
)
def test_what_is_missing_is_one_line(monkeypatch, names, kind, installed, words):
    monkeypatch.setattr(peers, "find_spec", lambda name: object() if installed else None)
    with pytest.raises(UserError) as told:
        check_peers(names, kind, "")
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_a_peer_on_the_cpu_is_not_compared_with_nano3_on_a_gpu(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: object())
    for name in ("transformers", "llama.cpp"):
        with pytest.raises(UserError, match=f"--against {name}: it would run on the CPU beside nano3 on cuda:1"):
            Plan("throughput", (), against=(name,), device="cuda:1")
    Plan("throughput", (), against=("vllm",), device="cuda")


def test_llama_cpp_needs_gguf_or_a_file(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "gguf" else object())
    check_peers(["llama.cpp"], "decode", "model.gguf")
    with pytest.raises(UserError, match="pip install gguf"):
        check_peers(["llama.cpp"], "decode", "")


def test_a_peer_without_a_type_is_taken_in_each():
    assert choose_peers(["transformers", "llama.cpp:q4_0"], ["float32", "bfloat16"]) == [
        Chosen("transformers", "float32"),
        Chosen("transformers", "bfloat16"),
        Chosen("llama.cpp", "q4_0"),
    ]


def test_types_are_named_as_one_names_them():
    named = ["llama.cpp:bf16", "llama.cpp:Q4_K_M", "llama.cpp:float32", "llama.cpp:f32", "transformers:bfloat16"]
    found = [peer.title for peer in choose_peers(named, [])]
    assert found == ["llama.cpp bfloat16", "llama.cpp q4_k_m", "llama.cpp float32", "transformers bfloat16"]


@pytest.mark.parametrize("text", ["transformers:q4_0", "llama.cpp:int8", "llama.cpp:", "ollama:q4_0"])
def test_a_type_that_is_none_is_one_line(text):
    with pytest.raises(UserError, match=f"--against {text.partition(':')[0]}"):
        choose_peers([text], ["float32"])


def test_only_what_nano3_does_not_write_is_made_by_llama_cpp():
    assert [kind for kind in ("float32", "bf16", "q8_0", "q5_0", "q4_0", "q4_k_m", "f16") if is_converted(kind)] == [
        "q4_k_m",
        "f16",
    ]


def test_vllm_keeps_no_prompts_and_is_warm_before_the_clock_starts(monkeypatch):
    model, opened, given = open_model("tiny"), [], []

    class Recorded(Engine):
        def __init__(self, folder, *, dtype, max_sequences, max_context, prefix_cache):
            opened.append((max_sequences, max_context, prefix_cache))
            tokenizer = full_tokenizer(model.cfg.vocab_size)
            sizes = {"max_sequences": max_sequences, "max_context": max_context, "memory": 64 << 20}
            super().__init__(model, tokenizer, prefix_cache=prefix_cache, **sizes)

        def add(self, request):
            given.append((len(request.prompt), request.sampling.max_tokens))
            super().add(request)

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0"))
    monkeypatch.setattr("nano3.engine.vllm.engine.VllmEngine", Recorded)
    side = Vllm(Job("vllm", "throughput", "folder", dtype="float32"))
    case = Case("throughput", 2, 9, 6, requests=3)
    for _ in range(2):
        assert side.run(case)["details"]["output_tokens"] == 18
    assert opened == [(2, 15, False)]
    assert given == [(9, 4)] * 2 + [(9, 6)] * 6
