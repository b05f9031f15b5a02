"""What every stage of reinforcement learning does around its steps: model and engine open, begin or resume, export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from nano3.config.errors import UserError
from nano3.config.rlhf import AnyPolicyConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.files import exclusive
from nano3.model.find import model_folder
from nano3.model.hf.folder import fill, read_config
from nano3.parallel.tensor import sharing
from nano3.rl.feedback.scoring import Feedback
from nano3.rl.grpo import GRPOLoss
from nano3.rl.remote.served import remove_served
from nano3.rl.training.domains import Domain, open_domains
from nano3.rl.training.engines import bytes_beside, objective, open_engine, rollout_worker, weight_sync
from nano3.rl.training.prompts import refuse_long_prompts
from nano3.rl.training.reference import open_reference
from nano3.rl.training.steps import PolicySteps, Sampling
from nano3.stages import adapters
from nano3.stages.chat_folder import write_chat
from nano3.stages.room import check_room
from nano3.stages.run_folder import (
    TOKENIZER,
    empty_model,
    export,
    keep_settings,
    keep_start,
    processes,
    say,
    start,
    with_token_ids,
)
from nano3.stages.settings import check_policy_settings
from nano3.stages.sft_tokenizer import find_tokenizer
from nano3.stages.start import check_weights
from nano3.train.checkpoint.checkpointer import keep_checkpoint, step_folders, step_of
from nano3.train.freeze import frozen_names
from nano3.train.position import Result
from nano3.train.tracking.progress import Progress
from nano3.train.trainer import Trainer
from nano3.train.world import World, attempt

Config = TypeVar("Config", bound=AnyPolicyConfig)
SERVED = "served"
"""Folder of a run through which servers get the weights of its rollouts."""


@dataclass(frozen=True)
class PolicyRun(Generic[Config]):
    """A run whose model has its weights and whose engine draws with them."""

    cfg: Config
    """With the architecture of the model that it starts from."""
    source: Path
    """Run folder or Hugging Face folder that the weights came from."""
    run_dir: Path
    tokenizer: Tokenizer
    domains: dict[str, Domain]
    steps: PolicySteps
    trainer: Trainer
    sampling: Sampling
    world: World
    begun: bool
    """It goes on from a checkpoint."""

    def say(self, line: str) -> None:
        """A line to the user, of the main rank alone."""
        if self.world.is_main:
            say(line)

    def export(self) -> None:
        """Write RUN/model, and with adapters RUN/adapter."""
        cfg, model = self.cfg, self.trainer.model
        write = partial(write_chat, self.tokenizer)
        with adapters.export(model, cfg.lora, self.run_dir, self.source, write):
            export(model, self.run_dir / "model", cfg.export, self.world, write)

    def stopped_at(self) -> Result:
        """Where a run is that ended before its last step."""
        at = self.trainer.position
        return Result(at.step, at.tokens, False, None, {}, at.seconds, 0.0)

    def last_good(self, since: int | None = None) -> Path | None:
        """The newest checkpoint, or the newest of at most `since` steps, which then stays also when the run goes on;
        None where there is none."""
        folders = step_folders(self.run_dir / "checkpoints")
        if since is None:
            return folders[0] if folders else None
        good = next((folder for folder in folders if step_of(folder) <= since), None)
        if good is not None and self.world.is_main:
            keep_checkpoint(good)
        return good


@contextmanager
def open_run(
    stage: str,
    cfg: Config,
    run_dir: Path,
    from_path: str | Path | None,
    resume: bool,
    progress: Progress | None,
    checkpoint: int | None,
    make_feedback: Callable[[Config, Tokenizer, World, Mapping[str, Domain]], Feedback] | None = None,
    beside: int = 0,
) -> Iterator[PolicyRun[Config]]:
    """Open a run of `stage`, or open it again, up to before its first step; `config.toml` is written then.

    Args:
        stage: verb of the run; it goes into the model's folder.
        cfg: all settings.
        run_dir: the run folder; with `resume`, one that holds this run.
        from_path: what to start from; a resume knows it from the run folder.
        resume: continue from the newest checkpoint, or begin as the run began if there is none yet.
        progress: where training reports; None: the terminal.
        checkpoint: with `resume`, continue from that of this step instead of the newest; None: from the newest.
        make_feedback: makes what gives rewards, where environments have none; called before weights are loaded.
        beside: bytes that the models of that take.

    Raises:
        UserError: environments, model or settings that cannot be used, or neither `from_path` nor `resume` is given.
    """
    source, fresh = start(run_dir, from_path, resume)
    if source is None:
        raise UserError(f"{stage} goes on from a trained model: name a run or Hugging Face folder with --from")
    if fresh or from_path is not None:
        cfg = dataclasses.replace(cfg, model=read_config(model_folder(source)))
    with processes(cfg, run_dir) as world:
        cfg = adapters.settle(cfg, source)
        left = _check(cfg, source, fresh, world, beside)
        tokenizer = _tokenizer(source, run_dir / TOKENIZER if resume else None)
        cfg = cast(Config, with_token_ids(cast(Any, cfg), tokenizer))
        domains = open_domains(cfg.environments, cfg.heldout.tasks)
        feedback = make_feedback(cfg, tokenizer, world, domains) if make_feedback is not None else None
        with exclusive(run_dir) if world.is_main else nullcontext():
            shared = sharing(world.sequence.handle, world.context.handle, world.tensor.handle)
            loss = GRPOLoss(objective(cfg), shared)
            steps = PolicySteps(cfg, domains, loss, run_dir, world, say, feedback)
            trainer = _trainer(stage, cfg, steps, loss, domains, tokenizer, run_dir, progress, world)
            begun = resume and trainer.resume(checkpoint) is not None
            if not begun:
                fill(trainer.model, model_folder(source))
                adapters.begin(trainer.model, cfg.rollout.seed, world.rank)
            steps.open(sampling := _sampling(cfg, trainer.model, tokenizer, source, run_dir, world, left))
            refuse_long_prompts(domains, sampling.worker)
            if not begun:  # from here on it is a run, of which the folder holds no other
                keep_start(run_dir, source, tokenizer, world)
            keep_settings(run_dir, cfg, world)
            try:
                yield PolicyRun(cfg, source, run_dir, tokenizer, domains, steps, trainer, sampling, world, begun)
            finally:
                if sends_through_run(cfg):
                    remove_served(run_dir / SERVED, world)


def sends_through_run(cfg: AnyPolicyConfig) -> bool:
    """Whether servers get weights through a folder of the run, of which no copy need stay: each sync writes it anew."""
    return bool(cfg.rollout.servers) and not cfg.rollout.server_weights


def _check(cfg: AnyPolicyConfig, source: Path, fresh: bool, world: World, beside: int) -> int:
    """Refuse what cannot be before any work. Returns the bytes that training leaves free on this rank."""
    if fresh:
        check_weights(cfg.model, source)
    check_policy_settings(cfg)
    model = empty_model(cfg.model)
    adapters.add(model, cfg.lora)
    frozen_names(model, cfg.train.freeze)
    left: list[int] = []

    def room() -> None:
        others = beside + bytes_beside(cfg, model_folder(source), world)
        left.append(check_room(cast(Any, cfg), world, others))

    world.agree(attempt(room))
    return left[0]


def _tokenizer(source: Path, kept: Path | None) -> Tokenizer:
    """That of the run to resume, else that of the model."""
    return Tokenizer.load(kept) if kept is not None and kept.is_dir() else find_tokenizer("", source)


def _trainer(
    stage: str,
    cfg: AnyPolicyConfig,
    steps: PolicySteps,
    loss: GRPOLoss,
    domains: dict[str, Domain],
    tokenizer: Tokenizer,
    run_dir: Path,
    progress: Progress | None,
    world: World,
) -> Trainer:
    """The training loop with a model without weights."""
    model = empty_model(cfg.model)
    model.stage = stage
    adapters.add(model, cfg.lora, say if world.is_main else None)
    inputs = {"tokenizer": tokenizer.fingerprint()[:16]}
    inputs |= {f"tasks of {name}": domain.fingerprint() for name, domain in domains.items()}
    return Trainer(cfg, model, steps, run_dir, None, loss, progress, world, inputs)


def _sampling(
    cfg: AnyPolicyConfig, model: Any, tokenizer: Tokenizer, source: Path, run_dir: Path, world: World, left: int
) -> Sampling:
    """The engine with what draws from it, and the model that a KL term compares with; `left`: bytes that training
    leaves free."""
    tell = (lambda line: say(f"rollouts: {line}")) if world.is_main else (lambda line: None)
    engine = open_engine(cfg, model, tokenizer, world, run_dir / SERVED, left, tell)
    wanted = cfg.objective.kl_coef > 0
    reference = open_reference(cfg, model_folder(source), model.compute_dtype, world) if wanted else None
    return Sampling(rollout_worker(cfg, engine), weight_sync(cfg, model, engine, world), reference)
