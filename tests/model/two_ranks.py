"""Work of one of two ranks on a model that FSDP sharded; started as a process of its own by tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nano3.config.model import ModelConfig
from nano3.config.schema import ParallelConfig
from nano3.model.hf.folder import fill, save
from nano3.model.lm import LM
from nano3.train.parallel import parallelize
from nano3.train.world import init_world


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor of float numbers that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.is_floating_point()]
        self.elements = max([self.elements, *(t.untyped_storage().nbytes() // t.element_size() for t in made)])
        return out


def full_disk(folder: Path) -> None:
    """What a writer meets when the disk is full."""
    raise OSError(28, "No space left on device")


def main() -> None:
    """Initialise the model of the config in FOLDER/config.json and save it; fill it and save; fail to save."""
    folder, world = Path(sys.argv[1]), init_world()
    cfg = ModelConfig(**json.loads((folder / "config.json").read_text("utf-8")))
    with torch.device("meta"):
        model = LM(cfg)
    parallelize(model, world, ParallelConfig(fsdp=True))
    model.to_empty(device="cpu")
    model.init_weights(seed=1)
    with Largest() as seen:
        save(model, folder / "saved", max_shard_bytes=20_000)
    parts = [p.to_local().numel() for p in model.parameters()]  # pyright: ignore[reportAttributeAccessIssue]
    print(f"largest {seen.elements} of {max(parts)}", flush=True)
    save(model, folder / "narrow", torch.bfloat16, max_shard_bytes=20_000)
    print(f"{sum(parts)} values", flush=True)
    fill(model, folder / "given")
    save(model, folder / "filled")
    try:
        save(model, folder / "failed", extra=full_disk)
    except (OSError, ValueError) as error:
        print(f"rank {world.rank}: {error}", flush=True)
    world.close()


if __name__ == "__main__":
    main()
