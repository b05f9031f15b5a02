"""Tasks whose prompts leave room for an answer."""

from __future__ import annotations

from collections.abc import Mapping

from nano3.config.errors import UserError
from nano3.rl.rollout import RolloutWorker
from nano3.rl.training.domains import Domain


def refuse_long_prompts(domains: Mapping[str, Domain], worker: RolloutWorker) -> None:
    """Refuse an environment none of whose training tasks fits, before any is drawn; single long ones are dropped later.

    Raises:
        UserError: which environment, and how long its shortest prompt is.
    """
    for name, domain in domains.items():
        shortest = 0
        for task in domain.train.values():
            tokens = len(worker.prompt(task).ids)
            if worker.fits(tokens):
                break
            shortest = min(shortest or tokens, tokens)
        else:
            raise UserError(
                f"environment {name}: all of its {len(domain.train):,} prompts are too long: the shortest has "
                f"{shortest:,} tokens, which leaves no room for an answer in a context of {worker.context:,}; raise "
                "train.pack_length or rollout.max_context, or leave the environment out"
            )
