"""nano3: the Nemotron 3 Nano system (arXiv 2512.20848) as one toolkit.

import nano3
model = nano3.load("runs/pretrain-tiny")          # a run folder, a Hugging Face folder, a GGUF file, or a model preset
logits = model(tokens)                            # (B, T) int64 -> (B, T, V)
nano3.save(model, "my-model")
engine = nano3.Engine(model, tokenizer)           # continuous batching: see nano3.engine
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.openmp import let_idle_threads_sleep

if TYPE_CHECKING:
    import torch

    from nano3.engine.engine import Engine
    from nano3.model.lm import LM

# Python started in a checkout finds this folder before an installed nano3; kernels and presets lie beside it.
_root = Path(__file__).resolve().parents[1]
if (_root / "pyproject.toml").is_file() and (_root / "kernels" / "__init__.py").is_file():
    __path__.append(str(_root))

# Before torch is loaded, as every command, worker and torchrun process does it: see nano3.openmp.
let_idle_threads_sleep()

__version__ = "0.1.0"
__all__ = ["Engine", "__version__", "load", "save"]


def __getattr__(name: str) -> Any:
    # Importing the engine imports torch, which `import nano3` must not.
    if name == "Engine":
        from nano3.engine.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(path_or_preset: str | Path, dtype: torch.dtype | None = None, device: str = "cpu") -> LM:
    """Load a model, ready for inference.

    Args:
        path_or_preset: a run folder, a Hugging Face folder, a GGUF file, or the name of a model preset
            (random weights, seed 0).
        dtype: dtype of weights and activations; None takes the stored one (float32 for a preset).
        device: where the weights go.

    Raises:
        nano3.config.errors.UserError: nothing of that name, another architecture, or damaged weights.
    """
    from nano3.model.load import load_model

    return load_model(path_or_preset, dtype, device)


def save(model: LM, path: str | Path) -> None:
    """Write `model` as a Hugging Face folder; `path` appears whole or not at all.

    A model at `path` is replaced.

    Raises:
        nano3.config.errors.UserError: `path` is a file, or a folder that holds anything but a model.
    """
    from nano3.model.hf.folder import save as save_folder

    save_folder(model, path)
