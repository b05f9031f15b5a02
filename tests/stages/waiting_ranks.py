"""Work of one of two ranks that give up after two seconds of waiting; started by test_sft_rows.py."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

import torch.distributed as dist

from nano3.config.errors import UserError
from nano3.stages.sft_rows import on_main
from nano3.train.world import World


def main() -> None:
    """The main rank works for five seconds, then fails; `seconds` lie between its signs of life."""
    seconds, rank = float(sys.argv[1]), int(os.environ["RANK"])
    dist.init_process_group("gloo")
    world = World(rank, 2, control=dist.new_group(backend="gloo", timeout=timedelta(seconds=2)))
    done: list[int] = []
    on_main(world, lambda: (time.sleep(5), done.append(1)), seconds)
    print("worked", len(done))

    def fail() -> None:
        raise UserError("no such file")

    try:
        on_main(world, fail, seconds)
    except UserError as error:
        print(f"refused: {error}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
