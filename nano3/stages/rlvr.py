"""`nano3 rlvr`: a model that sft left learns from verifiable rewards of many environments at once (report section 3.2).

The run folder:

    config.toml, start.json, tokenizer/, checkpoints/, charts/, model/      as of every stage; with lora.rank adapter/
    metrics.jsonl                   nano3.rl.training.steps names its figures
    profile.json                    nano3.rl.training.profile; after a stall also profile-step-N.json
    heldout.json                    nano3.stages.policy.scores
    rollouts/step-N.jsonl, .npz     nano3.rl.rollout_files
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

from nano3.config.errors import UserError
from nano3.config.presets import to_toml
from nano3.config.rlvr import RlvrConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.files import exclusive, write_atomic
from nano3.model.dtype import compute_dtype
from nano3.model.find import model_folder
from nano3.model.hf.folder import fill, load, read_config
from nano3.rl.grpo import GRPOLoss
from nano3.rl.training.domains import Domain, open_domains
from nano3.rl.training.engines import objective, open_engine, rollout_worker, weight_sync
from nano3.rl.training.profile import FILE, Profile, check_fingerprint, fingerprint, measure
from nano3.rl.training.prompts import refuse_long_prompts
from nano3.rl.training.steps import PolicySteps, Sampling
from nano3.rl.training.stops import TrainingStoppedError
from nano3.stages import adapters
from nano3.stages.chat_folder import write_chat
from nano3.stages.policy.outcome import ProfileResult, RlvrResult
from nano3.stages.policy.scores import Score, ask_heldout, check_same, read_before, write_scores
from nano3.stages.room import check_room
from nano3.stages.run_folder import TOKENIZER, empty_model, export, keep_start, processes, say, start, with_token_ids
from nano3.stages.settings import check_policy_settings
from nano3.stages.sft_tokenizer import find_tokenizer
from nano3.stages.start import check_weights
from nano3.train.checkpoint.checkpointer import keep_checkpoint, step_folders, step_of
from nano3.train.freeze import frozen_names
from nano3.train.position import Result
from nano3.train.tracking.progress import Progress
from nano3.train.trainer import Trainer
from nano3.train.world import World, attempt

STAGE = "rlvr"


def main(
    cfg: RlvrConfig,
    run_dir: str | Path,
    from_path: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    checkpoint: int | None = None,
) -> RlvrResult:
    """Train the model at `from_path` on the rewards of its own samples and leave a run folder; see the module.

    Args:
        cfg: all settings.
        run_dir: the run folder; with `resume`, one that holds this run.
        from_path: run folder or Hugging Face folder to start from; its architecture replaces cfg's. A resume knows it
            from the run folder.
        resume: continue from the newest checkpoint of `run_dir`, or begin as it began if there is none yet.
        progress: where training reports; the terminal by default.
        checkpoint: with `resume`, continue from that of this step instead.

    Returns:
        Also where a stop rule ended the run: `stopped` says why.

    Raises:
        UserError: environments, model or settings that cannot be used, or neither `from_path` nor `resume` is given.
        NonFiniteError: the loss became NaN or infinite.
    """
    run_dir = Path(run_dir)
    source, fresh = start(run_dir, from_path, resume)
    if source is None:
        raise UserError("rlvr goes on from a trained model: name a run or Hugging Face folder with --from")
    if fresh or from_path is not None:
        cfg = dataclasses.replace(cfg, model=read_config(model_folder(source)))
    with processes() as world:
        cfg = adapters.settle(cfg, source)
        _check(cfg, source if fresh else None, world)
        tokenizer = _tokenizer(source, run_dir / TOKENIZER if resume else None)
        cfg = with_token_ids(cast(Any, cfg), tokenizer)
        domains = open_domains(cfg.environments, cfg.heldout.tasks)
        with exclusive(run_dir) if world.is_main else nullcontext():
            steps = PolicySteps(cfg, domains, loss := GRPOLoss(objective(cfg)), run_dir, world, say)
            trainer = _trainer(cfg, steps, loss, domains, tokenizer, run_dir, progress, world)
            begun = resume and trainer.resume(checkpoint) is not None
            if not begun:
                fill(trainer.model, model_folder(source))
                adapters.begin(trainer.model, cfg.rollout.seed, world.rank)
                if world.is_main:
                    keep_start(run_dir, source, tokenizer)
            if world.is_main:
                write_atomic(run_dir / "config.toml", to_toml(cfg))
            steps.open(sampling := _sampling(cfg, trainer.model, tokenizer, source, world))
            refuse_long_prompts(domains, sampling.worker)
            profile = _begin(cfg, steps, domains, sampling, source, run_dir, begun, world)
            try:
                training = trainer.fit()
                if not training.interrupted:
                    steps.judge_update()
            except TrainingStoppedError as stop:
                return _stopped(stop, trainer, run_dir, profile)
            if training.interrupted:
                return RlvrResult(run_dir, training, _verdicts(profile))
            write = partial(write_chat, tokenizer)
            with adapters.export(trainer.model, cfg.lora, run_dir, source, write):
                export(trainer.model, run_dir / "model", cfg.export, world, write)
            scores = _scores_after(cfg, domains, sampling, run_dir, world)
            return RlvrResult(run_dir, training, _verdicts(profile), scores)


def profile_tasks(cfg: RlvrConfig, source: str | Path, out: str | Path) -> ProfileResult:
    """Measure the pass rates of all training tasks with the model in `source` and write them to the file `out`.

    Raises:
        UserError: environments, model or settings that cannot be used.
    """
    folder = model_folder(source)
    cfg = dataclasses.replace(cfg, model=read_config(folder))
    with processes() as world:
        tokenizer = find_tokenizer("", Path(source))
        cfg = with_token_ids(cast(Any, cfg), tokenizer)
        domains = open_domains(cfg.environments, cfg.heldout.tasks)
        model = load(folder, device=world.device)
        model.compute_dtype = compute_dtype(cfg.train.dtype, world.device)
        alone = dataclasses.replace(cfg, lora=dataclasses.replace(cfg.lora, rank=0, targets=[]))
        parallel = dataclasses.replace(cfg.parallel, fsdp=False)
        worker = rollout_worker(
            cfg, open_engine(dataclasses.replace(alone, parallel=parallel), model, tokenizer, world)
        )
        refuse_long_prompts(domains, worker)
        found = fingerprint(cfg, domains, folder)
        profile = measure(cfg, domains, worker, 0, world, say, found)
        if world.is_main:
            profile.write(Path(out))
        return ProfileResult(Path(out), profile.verdicts(), profile.faults)


def _check(cfg: RlvrConfig, begins_from: Path | None, world: World) -> None:
    """Refuse what cannot be before any work; `begins_from`: where a run that begins takes its weights from."""
    if begins_from is not None:
        check_weights(cfg.model, begins_from)
    check_policy_settings(cfg)
    model = empty_model(cfg.model)
    adapters.add(model, cfg.lora)
    frozen_names(model, cfg.train.freeze)
    world.agree(attempt(lambda: check_room(cast(Any, cfg), world)))


def _tokenizer(source: Path, kept: Path | None) -> Tokenizer:
    """That of the run to resume, else that of the model."""
    return Tokenizer.load(kept) if kept is not None and kept.is_dir() else find_tokenizer("", source)


def _trainer(
    cfg: RlvrConfig,
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
    model.stage = STAGE
    adapters.add(model, cfg.lora, say if world.is_main else None)
    inputs = {"tokenizer": tokenizer.fingerprint()[:16]}
    inputs |= {f"tasks of {name}": domain.fingerprint() for name, domain in domains.items()}
    return Trainer(cfg, model, steps, run_dir, None, loss, progress, world, inputs)


def _sampling(cfg: RlvrConfig, model: Any, tokenizer: Tokenizer, source: Path, world: World) -> Sampling:
    """The engine with what draws from it, and the model that a KL term compares with."""
    engine = open_engine(cfg, model, tokenizer, world)
    if world.is_main:
        for note in engine.sizes.notes:
            say(f"rollouts: {note}")
    reference = None
    if cfg.objective.kl_coef:
        reference = load(model_folder(source), device=world.device).requires_grad_(False)
        reference.compute_dtype = model.compute_dtype
    return Sampling(rollout_worker(cfg, engine), weight_sync(cfg, model, engine, world), reference)


def _begin(
    cfg: RlvrConfig,
    steps: PolicySteps,
    domains: dict[str, Domain],
    sampling: Sampling,
    source: Path,
    run_dir: Path,
    begun: bool,
    world: World,
) -> Profile | None:
    """The profile that the curriculum begins with, and the scores before the first step; a run that has begun has
    both."""
    if begun:
        check_same(cfg, run_dir)
        return Profile.read(run_dir / FILE) if (run_dir / FILE).is_file() else None
    sampling.sync.sync()
    profile = None
    if cfg.curriculum.sampling == "gaussian":
        profile = _profile(cfg, domains, sampling, source, run_dir, world)
        if world.is_main:
            profile.write(run_dir / FILE)
            for verdict in profile.verdicts():
                say(verdict.line())
    steps.begin(profile)
    if cfg.heldout.tasks and world.from_main(read_before(run_dir)) is None:
        if world.is_main:
            say(f"asking {sum(len(domain.heldout) for domain in domains.values()):,} held-out tasks")
        before = ask_heldout(cfg, domains, sampling.worker, world)
        if world.is_main:
            write_scores(run_dir, cfg.heldout.samples, before)
    return profile


def _profile(
    cfg: RlvrConfig, domains: dict[str, Domain], sampling: Sampling, source: Path, run_dir: Path, world: World
) -> Profile:
    """That of the settings or of this run from before it was interrupted, else made here."""
    wanted = fingerprint(cfg, domains, model_folder(source))
    given = Path(cfg.curriculum.profile) if cfg.curriculum.profile else run_dir / FILE
    if cfg.curriculum.profile or given.is_file():
        profile = Profile.read(given)
        check_fingerprint(profile, wanted, str(given))
        return profile
    if world.is_main:
        n = sum(len(domain.train) for domain in domains.values())
        say(f"profile: {n:,} tasks, {cfg.curriculum.profile_samples} samples each")
    return measure(cfg, domains, sampling.worker, 0, world, say, wanted)


def _scores_after(
    cfg: RlvrConfig, domains: dict[str, Domain], sampling: Sampling, run_dir: Path, world: World
) -> list[Score]:
    before = world.from_main(read_before(run_dir))
    if not cfg.heldout.tasks or before is None:
        return []
    sampling.sync.sync()
    after = ask_heldout(cfg, domains, sampling.worker, world)
    return write_scores(run_dir, cfg.heldout.samples, before, after) if world.is_main else []


def _stopped(stop: TrainingStoppedError, trainer: Trainer, run_dir: Path, profile: Profile | None) -> RlvrResult:
    """The result of a run that a stop rule ended: what was saved stays as it is, the last good checkpoint also when the
    run goes on."""
    position = trainer.position
    folders = step_folders(run_dir / "checkpoints")
    good = next((folder for folder in folders if step_of(folder) <= stop.since), None)
    if good is not None and trainer.world.is_main:
        keep_checkpoint(good)
    training = Result(position.step, position.tokens, False, None, {}, position.seconds, 0.0)
    return RlvrResult(run_dir, training, _verdicts(profile), stopped=str(stop), last_good=good)


def _verdicts(profile: Profile | None) -> list[Any]:
    return profile.verdicts() if profile is not None else []
