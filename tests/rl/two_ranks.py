"""Work of one of two ranks: a sharded trainer sends its weights to this rank's engine; started by test_two_ranks.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from nano3.config.errors import UserError
from nano3.config.model import ModelConfig
from nano3.config.schema import ParallelConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.model.lm import LM
from nano3.rl.sync import WeightSync
from nano3.train.parallel import parallelize
from nano3.train.world import init_world


def main() -> None:
    """Sync, change the shards, sync again; then rank 1's engine alone keeps states of the old weights."""
    folder, world = Path(sys.argv[1]), init_world()
    cfg = ModelConfig(**json.loads((folder / "config.json").read_text("utf-8")))
    model, twin = LM(cfg).init_weights(seed=1), LM(cfg).init_weights(seed=2)
    parallelize(model, world, ParallelConfig(fsdp=True))
    engine = Engine(twin, Tokenizer.load(folder), memory=32 << 20, page_size=8)
    sync = WeightSync(model, engine, world=world)
    sync.sync()
    for parameter in model.parameters():
        parameter.detach().mul_(1.05)
    largest = sync.sync().measured.generated.largest
    shard = model.embeddings.weight.to_local()  # pyright: ignore[reportAttributeAccessIssue]
    part = twin.embeddings.weight.chunk(2)[world.rank]
    print(json.dumps({"largest": largest, "arrived": torch.equal(shard, part), "type": type(model).__name__}))
    if world.rank == 1:
        engine.weights_changed = lambda: 3  # pyright: ignore[reportAttributeAccessIssue]
    for parameter in model.parameters():
        parameter.detach().mul_(1.05)
    try:
        sync.sync()
    except UserError as error:
        print(f"refused: {type(error).__name__}: {error}")
    world.close()


if __name__ == "__main__":
    main()
