"""`nano3 eval experts`: how evenly a model uses its experts."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.eval import options as shared
from nano3.cli.options import engine as engines
from nano3.cli.options.common import Json
from nano3.cli.options.model_choice import choose_model
from nano3.config.errors import UserError

if TYPE_CHECKING:
    from nano3.data.tokens.tokenizer import Tokenizer
    from nano3.eval.experts import Prompts, Use
    from nano3.eval.store import Result
    from nano3.model.lm import LM

EXIT_EXCEEDED, REPORT_THRESHOLD = 1, 5.0
DEFAULT = "default"
SHOWN = 5
"""Experts above the threshold that are named."""
PromptsFile = Annotated[
    str,
    typer.Option(
        help='JSONL, a line {"prompt": ...} or {"messages": [...]} each; or default: held-out passages of the embedded '
        "corpus, and questions.",
        metavar="FILE",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="Largest percentage of a layer's routing decisions that an expert may have. Default: 5, or twice the even "
        "share where that is more.",
        min=0, max=100, show_default=False,
    ),
]  # fmt: skip
Limit = Annotated[int | None, typer.Option(help="Only the first prompts.", min=1, metavar="N", show_default=False)]


def experts(
    ctx: typer.Context,
    from_: shared.From = None,
    prompts: PromptsFile = DEFAULT,
    threshold: Threshold = None,
    limit: Limit = None,
    out: Annotated[Path | None, shared.out_option("experts")] = None,
    as_json: Json = False,
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
) -> None:
    """Count how often each expert is chosen, layer by layer.

    Exit code 1 when one exceeds the threshold. A server does not show its routing, so there is no --url.

    [dim]The report's audit (over 10,000 prompts no expert takes more than 5 %):[/]
      nano3 eval experts --from PATH --prompts prompts.jsonl

    [dim]A tiny model with 8 experts, an even share of 12.5 % and so a threshold of 25 %:[/]
      nano3 eval experts --from runs/pretrain-tiny
    """
    shared.check_out(out)
    options = {**ctx.params, "from_": choose_model(from_, "--from")}
    model, tokenizer, name = _load(options["from_"], dtype, device)
    threshold = options["threshold"] = default_threshold(model.cfg.n_experts) if threshold is None else threshold
    use, result, folder = _run(options, model, tokenizer, name)
    _show(use, result, folder, threshold, as_json)
    if use.above(threshold):
        raise typer.Exit(EXIT_EXCEEDED)


def default_threshold(n_experts: int) -> float:
    """Percent: the report's 5, or twice the even share of few experts, which always exceed 5 somewhere."""
    return max(REPORT_THRESHOLD, 200.0 / max(n_experts, 1))


def _load(path: str, dtype: str, device: str) -> tuple[LM, Tokenizer, str]:
    """A model without an engine around it: nothing is generated."""
    import torch

    from nano3.engine.launch import DTYPES, find_device, find_tokenizer, small_tokenizer
    from nano3.model.dtype import inference_dtypes
    from nano3.model.find import model_folder, model_name
    from nano3.model.hf.folder import stored_dtype
    from nano3.model.load import load_model

    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: not known; use one of {', '.join(DTYPES)}")
    where = find_device(device)
    exists = Path(path).exists()
    weights, compute = inference_dtypes(dtype, where, stored_dtype(model_folder(path)) if exists else torch.float32)
    tokenizer = find_tokenizer(path)
    model = load_model(path, weights, str(where)).to_dtype(weights, compute).eval()
    if tokenizer is None:
        print(f"{path}: a preset has no training behind it: random weights", file=sys.stderr, flush=True)
        tokenizer = small_tokenizer(model.cfg.vocab_size)
    return model, tokenizer, model_name(path)


def _prompts(options: dict[str, Any], model: LM, tokenizer: Tokenizer) -> Prompts:
    from nano3.eval.experts import Prompts, default_prompts, encode_prompts

    if options["prompts"] == DEFAULT:
        found = default_prompts(tokenizer)
    else:
        from nano3.chat.prompts import read_prompts

        rows = [{"prompt": p.text if p.ids is None else p.ids, "messages": p.messages} for p in
                read_prompts(options["prompts"])]  # fmt: skip
        found = Prompts(encode_prompts(tokenizer, rows), f"{len(rows)} prompts of {options['prompts']}")
    ids = [one for one in found.ids[: options["limit"]] if one]
    wrong = next((i for one in ids for i in one if not 0 <= i < model.cfg.vocab_size), None)
    if wrong is not None:
        raise UserError(f"--prompts: no token has the id {wrong}; ids go from 0 to {model.cfg.vocab_size - 1}")
    return Prompts(ids, found.what if options["limit"] is None else f"the first {len(ids)} of {found.what}")


def _run(options: dict[str, Any], model: LM, tokenizer: Tokenizer, name: str) -> tuple[Use, Result, Path]:
    from nano3.eval.experts import ROW_TOKENS, group_prompts, mixture_blocks
    from nano3.eval.experts_chart import draw
    from nano3.eval.store import open_store
    from nano3.eval.target import model_identity

    blocks = mixture_blocks(model)
    prompts = _prompts(options, model, tokenizer)
    digest = hashlib.blake2b(repr(prompts.ids).encode(), digest_size=8).hexdigest()
    settings = {"kind": "experts", "model": name, "identity": model_identity(options["from_"]),
                "prompts": prompts.what, "prompt_ids": digest, "row_tokens": ROW_TOKENS,
                "dtype": str(model.compute_dtype)}  # fmt: skip
    folder = shared.result_folder(options["out"], f"eval-experts-{name}", settings)
    groups = list(group_prompts(prompts.ids))
    with open_store(folder, settings) as store:
        print(f"results go to {folder}", file=sys.stderr, flush=True)

        def result(complete: bool) -> Result:
            return _result(_use(store.rows.values(), model, blocks), prompts, settings, options["threshold"], complete)

        with shared.cut_short(lambda: store.finish(result(False)), folder):
            _count(model, groups, store)
        use, done = _use(store.rows.values(), model, blocks), result(True)
        title = f"{name}: percent of each block's routing decisions, {use.tokens:,} tokens"
        draw(use, folder / "experts.png", title, options["threshold"])
        store.finish(done)
    return use, done, folder


def _count(model: LM, groups: list[Any], store: Any) -> None:
    from nano3.eval.experts import count_group
    from nano3.progress import Progress

    left = [group for group in groups if ("experts", None, group.index) not in store.rows]
    with Progress(len(left), sum(group.n_tokens for group in left), things="rows") as progress:
        for group in left:
            loads = count_group(model, group)
            store.add({"task": "experts", "length": None, "index": group.index, "score": None, "depth": None,
                       "prompts": [group.first, group.first + len(group.ids)], "prompt_tokens": group.n_tokens,
                       "loads": loads.tolist()})  # fmt: skip
            progress.sample(group.n_tokens)


def _use(rows: Any, model: LM, blocks: list[int]) -> Use:
    """All groups together; of none, zeros."""
    import numpy as np

    from nano3.eval.experts import Use

    loads = np.zeros((len(blocks), model.cfg.n_experts), np.int64)
    tokens = 0
    for row in rows:
        loads += np.array(row["loads"], np.int64)
        tokens += row["prompt_tokens"]
    return Use(loads, blocks, tokens)


def _result(use: Use, prompts: Prompts, settings: dict[str, Any], threshold: float, complete: bool) -> Result:
    from nano3.eval.store import Result, Score

    above = use.above(threshold)
    values = {
        "largest share": float(use.shares.max()),
        "largest share over even share": float(use.shares.max() / use.even),
        "variation": float(use.variation.mean()),
        "experts above threshold": float(len(above)),
        "unused experts": float(use.unused()),
    }
    scores = [Score("experts", None, metric, value, None, use.tokens, False) for metric, value in values.items()]
    extra = {
        "threshold": threshold,
        "exceeded": bool(above),
        "even_share": use.even,
        "tokens": use.tokens,
        "above": [{"block": block, "expert": expert, "share": share} for block, expert, share in above],
        "blocks": use.table(),
    }
    return Result("experts", "experts", settings["model"], complete, settings, scores, (prompts.what,), extra)


def _show(use: Use, result: Result, folder: Path, threshold: float, as_json: bool) -> None:
    from nano3.cli.output import plain_table, print_json, print_table, results

    print(f"wrote {folder / 'experts.png'}", file=sys.stderr)
    if as_json:
        print_json(result.document())
    else:
        columns = ("largest share", "expert", "smallest share", "variation", "unused")
        table = plain_table(f"{result.model}: {use.tokens:,} tokens, {use.loads.shape[1]} experts a block, even share "
                            f"{use.even:.3g} %", "block", *columns, right=columns)  # fmt: skip
        for row in use.table():
            table.add_row(str(row["block"]), f"{row['max_share']:.2f} %", str(row["expert"]),
                          f"{row['min_share']:.2f} %", f"{row['variation']:.3f}", str(row["unused"]))  # fmt: skip
        print_table(results(), table)
    for line in verdict(use, threshold):
        print(line, file=sys.stderr)


def verdict(use: Use, threshold: float) -> list[str]:
    """Whether the experts keep within the threshold, in words."""
    above = use.above(threshold)
    if not above:
        return [f"no expert takes more than {threshold:g} % of its block's routing decisions"]
    what = f"{threshold:g} % of their block's routing decisions"
    lines = [f"{len(above)} of {use.loads.size} experts take more than {what}"]
    lines += [f"  block {block}, expert {expert}: {share:.2f} %" for block, expert, share in above[:SHOWN]]
    if use.even > threshold:
        lines.append(f"with {use.loads.shape[1]} experts a block the even share is {use.even:.3g} %, more than the "
                     f"threshold: some expert always exceeds it; give a larger --threshold")  # fmt: skip
    return lines
