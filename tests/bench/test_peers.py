"""What is said about a peer that cannot run."""

import pytest

from nano3.bench import peers
from nano3.bench.peers import check_peers
from nano3.config.errors import UserError


def test_peers_that_can_run_pass(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: object())
    check_peers(["transformers", "llama.cpp"], "decode", "model.gguf")
    check_peers([], "train", "")


@pytest.mark.parametrize(
    ("names", "kind", "installed", "words"),
    [
        (["ollama"], "decode", True, "--against ollama: not known; use one or both of transformers,llama.cpp"),
        *(
            (
                ["llama.cpp"],
                kind,
                True,
                f"--against llama.cpp: nano3 bench {kind} cannot compare with it, only with transformers; "
                "llama.cpp takes part in prefill and decode",
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


def test_llama_cpp_needs_gguf_or_a_file(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "gguf" else object())
    check_peers(["llama.cpp"], "decode", "model.gguf")
    with pytest.raises(UserError, match="pip install gguf"):
        check_peers(["llama.cpp"], "decode", "")
