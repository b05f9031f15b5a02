"""Serves a very small model for the load tests on a free port, and says where on stdout.

Takes the command `check` on stdin, to be sent when nothing runs: empties the prefix cache and prints the counters.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict

import torch

from nano3.config.model import ModelConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.model.lm import LM
from nano3.serve.app import create_app
from nano3.serve.settings import Settings
from nano3.serve.transport.server import bind, run

TEXT = ["the lamp in the old attic was on, and then it rained for days over the town. " * 3, '{"room": "kitchen"}']
CONFIG = ModelConfig(
    pattern="ME*ME", d_model=32, init_std=0.3, n_heads=4, n_kv_heads=2, head_dim=8, mamba_n_heads=4, mamba_head_dim=16,
    d_state=16, n_groups=2, n_experts=4, top_k=2, d_expert=32, d_shared=32, vocab_size=320,
)  # fmt: skip
MEMORY = 1 << 20
"""Less than all sequences need, so that some lose their memory to others."""
SETTINGS = Settings(max_queue=100, max_body_bytes=1 << 20)


def parts() -> tuple[LM, Tokenizer]:
    """A model with random weights, and its tokenizer."""
    return LM(CONFIG).init_weights(seed=1).eval(), Tokenizer.train(TEXT, CONFIG.vocab_size)


def build() -> Engine:
    """The engine under load: more clients than sequences, more sequences than memory."""
    return Engine(
        *parts(), memory=MEMORY, max_sequences=32, max_context=1500, page_size=16, snapshot_every=32,
        step_tokens=512, mixed_step_tokens=128,
    )  # fmt: skip


def answer_commands(engine: Engine) -> None:
    """Commands are only sent while the engine sleeps, so this thread may touch it."""
    for line in sys.stdin:
        if line.strip() == "check":
            kept = len(engine.cache)
            before = asdict(engine.stats())
            engine.cache.clear()
            print(json.dumps({"kept": kept, "before": before, "after": asdict(engine.stats())}), flush=True)


def main() -> None:
    """Serve until told to end."""
    torch.set_num_threads(1)
    engine = build()
    threading.Thread(target=answer_commands, args=(engine,), daemon=True).start()
    app = create_app(engine, name="tiny", settings=SETTINGS)
    run(app, bind("127.0.0.1", 0), on_ready=lambda url: print(json.dumps({"url": url}), flush=True))


if __name__ == "__main__":
    main()
