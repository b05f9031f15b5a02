"""An adapter's folder and its model's to one model's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from nano3.model.find import model_folder
from nano3.model.hf.folder import load, save
from nano3.model.hf.write import copy_companions, matches
from nano3.model.lora.apply import LoraReport
from nano3.model.lora.folder import load_adapter
from nano3.model.lora.merge import merge

OF_THE_TEXT = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
OF_THE_TEXT += ("generation_config.json",)
"""What an adapter was trained with."""


def merge_folder(adapter: Path, base: str | Path, out: Path) -> LoraReport:
    """Write the model in `base` with the adapter added to its weights: W + alpha/r * B A, computed in float32 and
    rounded once to the type of W. Tokenizer, chat template and generation settings come along; an adapter's own
    win, and the model is of the adapter's stage.

    Args:
        adapter: PEFT's folder.
        base: run folder or Hugging Face folder.
        out: appears whole or not at all; a model there is replaced.

    Raises:
        UserError: the two do not belong together, the weights are quantized, or `out` holds anything but a model.
    """
    folder = model_folder(base)
    model = load(folder)
    report = load_adapter(model, adapter)
    merge(model)

    def copy_rest(new: Path) -> None:
        copy_companions(folder, new)
        for file in adapter.iterdir():
            if matches(file, OF_THE_TEXT):
                shutil.copy(file, new / file.name)

    save(model, out, extra=copy_rest)
    return report
