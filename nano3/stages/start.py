"""What can be told about the weights that a run starts from before its data are prepared."""

from __future__ import annotations

from pathlib import Path

import torch

from nano3.config.errors import UserError
from nano3.config.model import ModelConfig
from nano3.config.schema import DataConfig, PretrainConfig
from nano3.model.find import model_folder, refuse_adapter
from nano3.model.hf.folder import check_stored
from nano3.model.lm import LM
from nano3.reading import read_toml

CONFIG = "config.toml"


def check_start(cfg: PretrainConfig, source: Path | None) -> None:
    """Refuse weights that cannot be used, from the headers of their files.

    Raises:
        UserError: a file that is missing, cut short or damaged in its header, tensors that are not those of
            `cfg.model`, or train.continue_state without a run that has checkpoints.
    """
    if cfg.train.continue_state:
        if source is None or not (source / "checkpoints").is_dir():
            raise UserError("train.continue_state needs --from with a run folder that has checkpoints")
        return
    if source is not None:
        check_weights(cfg.model, source)


def check_weights(cfg: ModelConfig, source: Path) -> None:
    """Raise UserError where the weights in `source` cannot be those of `cfg`, from the headers of their files."""
    refuse_adapter(source)
    with torch.device("meta"):
        model = LM(cfg)
    check_stored(model, model_folder(source))


def heldout_warning(cfg: PretrainConfig, source: Path) -> str | None:
    """A line on held-out text of `cfg` that the run in `source` was trained on; None where its split leaves none.

    Documents are held out where a hash that depends on data.seed is below data.heldout_fraction: of two fractions
    with one seed the smaller holds out a part of what the greater does.
    """
    before, now = _split_of(source), (cfg.data.heldout_fraction, cfg.data.seed)
    if before is None or not now[0] or (before[1] == now[1] and now[0] <= before[0]):
        return None
    names = ("data.heldout_fraction", "data.seed")
    pairs = [(name, a, b) for name, a, b in zip(names, before, now, strict=True) if a != b]
    differ = " and ".join(f"{name} (there {a}, here {b})" for name, a, b in pairs)
    advice = f"use {' '.join(f'--set {name}={a}' for name, a, _ in pairs)}" if before[0] else "it held out nothing"
    return (
        f"warning: the run in {source} holds out other text, {differ}: it was trained on some of what is held out "
        f"here, and scores of that come out too good; {advice}"
    )


def _split_of(source: Path) -> tuple[float, int] | None:
    """data.heldout_fraction and data.seed of the run in `source`, or whose model folder it is; None for no run."""
    run, default = source if (source / CONFIG).is_file() else source.parent, DataConfig()
    try:
        data = read_toml(run / CONFIG)["data"]
        return float(data.get("heldout_fraction", default.heldout_fraction)), int(data.get("seed", default.seed))
    except (OSError, LookupError, AttributeError, TypeError, ValueError):
        return None
