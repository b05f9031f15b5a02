"""What quantizing costs: the loss of folders on held-out rows of the data that their model learnt from.

python docs/quantize-cost.py runs/sft-tiny runs/sft-tiny-fp8 runs/sft-tiny-all --cache

The first is the model that the others were made from, in bf16. Losses are of what the assistant says, in the types in
which a folder is served; the increase has a 95 % interval, by bootstrap over rows.
"""

import argparse
from pathlib import Path

import torch

from nano3.data.chat.calibration import draw_rows
from nano3.eval.intervals import bootstrap_means, middle95
from nano3.model.find import model_folder
from nano3.model.hf.folder import load
from nano3.model.lm import LM
from nano3.stages.quantizing.rows import Calibration, settings_of
from nano3.stages.sft_tokenizer import find_tokenizer


def main() -> None:
    """Print a table in Markdown: a line a folder."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("source", type=Path, help="run that the folders were made from")
    asked.add_argument("folders", nargs="+", help="quantized ones")
    asked.add_argument("--rows", type=int, default=200)
    asked.add_argument("--length", type=int, default=1024, help="tokens at which rows are cut")
    asked.add_argument("--cache", action="store_true", help="also with keys and values in FP8")
    options = asked.parse_args()
    cfg, _ = settings_of(options.source, Calibration((), 4000, options.length))
    drawn = draw_rows(cfg, find_tokenizer("", model_folder(options.source)), options.rows, heldout=True)
    pairs = zip(drawn.rows, drawn.targets, strict=True)
    rows = [(ids[: options.length], targets[: options.length]) for ids, targets in pairs]
    first = losses(load(model_folder(options.source), torch.bfloat16), rows)
    print(f"| {len(rows)} rows | loss |\n|---|---|\n| bf16 | {float(first.mean()):.4f} nats a row |")
    for folder in options.folders:
        for cache in (False, True) if options.cache else (False,):
            model = load(model_folder(folder), torch.bfloat16)
            shares = (losses(model.use_fp8_cache() if cache else model, rows) - first) / first.mean()
            low, high = middle95(bootstrap_means(shares.tolist(), 0))
            name = f"{folder}{', FP8 cache' if cache else ''}"
            print(f"| {name} | {float(shares.mean()):+.2%} ({100 * low:+.2f} to {100 * high:+.2f}) |", flush=True)


@torch.inference_mode()
def losses(model: LM, rows: list[tuple]) -> torch.Tensor:
    """Nats of each row, float64."""
    model.eval()
    found = []
    for ids, targets in rows:
        scores = model(torch.tensor([list(ids)]))[0].float().log_softmax(-1)
        wanted = torch.tensor(list(targets))
        at = (wanted >= 0).nonzero()[:, 0]
        found.append(-scores[at, wanted[at]].double().sum())
    return torch.stack(found)


if __name__ == "__main__":
    main()
