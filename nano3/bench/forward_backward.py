"""Speed and memory of training steps and of long forward passes on random tokens, weights random.

    python -m nano3.bench.forward_backward --model bench-110m --batch 4 --seq-len 1024
    python -m nano3.bench.forward_backward --model bench-110m --pattern MEMEME --forward-only --batch 1 --seq-len 65536

Prints one JSON object. Peak memory is that of the whole process, so measure one size a process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import time
from collections.abc import Callable

import torch

from nano3.config.presets import load_model
from nano3.kernels import linear_cross_entropy
from nano3.model.dtype import compute_dtype
from nano3.model.lm import LM
from nano3.train.numerics import tune_process


def train_step(model: LM, tokens: torch.Tensor) -> None:
    """Forward and backward on tokens (B, T), each predicting the next; gradients are dropped afterwards."""
    hidden = model.hidden(tokens)
    x = hidden.x[:, :-1].flatten(0, 1)
    loss = linear_cross_entropy(x, model.lm_head.weight, tokens[:, 1:].flatten()) / x.shape[0]
    (loss + 1e-4 * hidden.balance_loss).backward()
    model.zero_grad()


@torch.inference_mode()
def forward(model: LM, tokens: torch.Tensor) -> None:
    """Blocks and final norm on tokens (B, T), and the logits of the last position."""
    model.lm_head(model.hidden(tokens).x[:, -1])


def median_seconds(run: Callable[[], None], repeat: int) -> float:
    """Median of `repeat` runs after one that is not counted."""
    run()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Tokens a second and peak resident memory of the step that `arguments` describe."""
    device = torch.device("cpu")
    tune_process(device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    cfg = load_model(arguments.model)
    cfg = dataclasses.replace(cfg, pattern=arguments.pattern) if arguments.pattern else cfg
    model = LM(cfg).init_weights(0)
    model.compute_dtype = compute_dtype(arguments.dtype, device)
    model.checkpoint_activations = arguments.checkpoint_activations
    model.train(not arguments.forward_only)
    tokens = torch.randint(5, cfg.vocab_size, (arguments.batch, arguments.seq_len))
    step = forward if arguments.forward_only else train_step
    seconds = median_seconds(lambda: step(model, tokens), arguments.repeat)
    return {
        "model": arguments.model,
        "pattern": cfg.pattern,
        "dtype": str(model.compute_dtype).removeprefix("torch."),
        "batch": arguments.batch,
        "seq_len": arguments.seq_len,
        "forward_only": arguments.forward_only,
        "tokens_per_second": round(tokens.numel() / seconds, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bench-110m", help="model preset or TOML file")
    parser.add_argument("--pattern", default="", help="other blocks than the preset's")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=4, help="sequences")
    parser.add_argument("--seq-len", type=int, default=1024, help="tokens a sequence")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs; the median counts")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")
    parser.add_argument("--forward-only", action="store_true", help="a forward pass instead of a training step")
    parser.add_argument("--checkpoint-activations", action="store_true", help="recompute blocks in the backward pass")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
