"""LoRA in a training stage: adapters into its model, their first values, and the folders that the run leaves.

In a stage's order: `settle` the settings, `add` to the empty model before the trainer takes it, `begin` when the base
weights are there (not in a resume, whose checkpoint has the adapters too), `export` around the writing of model/.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from nano3.config.lora import LoraConfig
from nano3.model.find import model_folder
from nano3.model.hf.folder import stored_dtype
from nano3.model.hf.write import write_generation_config
from nano3.model.lm import LM
from nano3.model.lora.apply import apply_lora, has_adapters, init_lora
from nano3.model.lora.folder import save_adapter
from nano3.model.lora.merge import merged

ADAPTER = "adapter"
"""In the run folder: PEFT's folder of the adapters."""
Config = TypeVar("Config", bound=Any)


def settle(cfg: Config, source: Path | None) -> Config:
    """`cfg` with what follows from its adapters, where it has any: expert biases stand still, since they are no part of
    an adapter's folder, and lora.base_dtype is the type that the weights in `source` (a run or Hugging Face folder) are
    stored in, where it is auto."""
    if not cfg.lora.rank:
        return cfg
    lora = cfg.lora
    if lora.base_dtype == "auto":
        narrow = source is not None and stored_dtype(model_folder(source)) == torch.bfloat16
        lora = dataclasses.replace(lora, base_dtype="bfloat16" if narrow else "float32")
    return dataclasses.replace(cfg, lora=lora, balance=dataclasses.replace(cfg.balance, bias_rate=0.0))


def add(model: LM, cfg: LoraConfig, say: Callable[[str], None] | None = None) -> None:
    """Put adapters into a model on the meta device, where lora.rank asks for them, and say which.

    Raises:
        UserError: a pattern of lora.targets matches nothing.
    """
    if not cfg.rank:
        return
    report = apply_lora(model, cfg)
    if say is not None:
        for line in report.lines():
            say(line)


def begin(model: LM, seed: int, rank: int = 0) -> None:
    """Give the adapters, where there are any, the values with which they change nothing.

    Args:
        model: with the weights of its base.
        seed: of the values, and of what this process drops in training.
        rank: of this process, which drops others than the other ranks.
    """
    if has_adapters(model):
        init_lora(model, seed)
        torch.manual_seed(seed * 0x9E3779B1 + rank)


@contextmanager
def export(
    model: LM, cfg: LoraConfig, run_dir: Path, base: Path | None, extra: Callable[[Path], None]
) -> Iterator[None]:
    """Write RUN/adapter; while this lasts the weights hold the adapters' products, so that model/ can be written.

    Every rank must enter. Without adapters nothing is done.

    Args:
        model: after its training.
        cfg: of the adapters.
        run_dir: RUN.
        base: the model that the run started from.
        extra: writes what belongs beside the adapters as beside a whole model, such as the tokenizer; there is a
            generation_config.json by then.
    """
    if not cfg.rank:
        yield
        return

    def rest(folder: Path) -> None:
        write_generation_config(folder, model.cfg)
        extra(folder)

    save_adapter(model, run_dir / ADAPTER, str(base.resolve()) if base is not None else "", rest)
    with merged(model):
        yield
