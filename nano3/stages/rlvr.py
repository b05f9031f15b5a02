"""`nano3 rlvr`: a model that sft left learns from verifiable rewards of many environments at once (report section 3.2).

The run folder:

    config.toml, start.json, tokenizer/, checkpoints/, charts/, model/      as of every stage; with lora.rank adapter/
    metrics.jsonl                   nano3.rl.training.steps names its figures
    profile.json                    nano3.rl.training.profile; after a stall also profile-step-N.json
    heldout.json                    nano3.stages.policy.scores
    rollouts/step-N.jsonl, .npz     nano3.rl.rollout_files
    served/                         with rollout.servers, while it runs: the newest weights, as the servers read them
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

from nano3.config.rlvr import RlvrConfig
from nano3.engine.protocol import ServersGoneError
from nano3.model.dtype import compute_dtype
from nano3.model.find import model_folder
from nano3.model.hf.folder import load, read_config
from nano3.rl.remote.served import remove_served
from nano3.rl.training.domains import open_domains
from nano3.rl.training.engines import open_engine, rollout_worker, weight_sync
from nano3.rl.training.profile import FILE, Profile, check_fingerprint, fingerprint, measure
from nano3.rl.training.prompts import refuse_long_prompts
from nano3.rl.training.stops import TrainingStoppedError
from nano3.stages.policy.outcome import ProfileResult, RlvrResult
from nano3.stages.policy.run import SERVED, PolicyRun, open_run, sends_through_run
from nano3.stages.policy.scores import Score, ask_heldout, check_same, compare, read_before, write_heldout
from nano3.stages.run_folder import processes, say, with_token_ids
from nano3.stages.sft_tokenizer import find_tokenizer
from nano3.train.feed import PausedError
from nano3.train.tracking.progress import Progress

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
        Also where a stop rule ended the run, or no server of its rollouts answers any more: `stopped` says why. In the
        second case all is saved, and a resume is the run that was not stopped.

    Raises:
        UserError: environments, model or settings that cannot be used, or neither `from_path` nor `resume` is given.
        NonFiniteError: the loss became NaN or infinite.
    """
    run_dir = Path(run_dir)
    with open_run(STAGE, cfg, run_dir, from_path, resume, progress, checkpoint) as run:
        verdicts, scores = [], []
        try:
            profile = _begin(run)
            verdicts = profile.verdicts() if profile is not None else []
            training = run.trainer.fit()
            if not training.interrupted:
                run.steps.judge_update()
                run.export()
                scores = _scores_after(run)
            return RlvrResult(run_dir, training, scores, profile=verdicts)
        except (PausedError, ServersGoneError) as stop:
            good = run.last_good()
            return RlvrResult(run_dir, run.stopped_at(), [], str(stop), good, paused=True, profile=verdicts)
        except TrainingStoppedError as stop:
            good = run.last_good(stop.since)
            return RlvrResult(run_dir, run.stopped_at(), [], str(stop), good, profile=verdicts)


def profile_tasks(cfg: RlvrConfig, source: str | Path, out: str | Path) -> ProfileResult:
    """Measure the pass rates of all training tasks with the model in `source` and write them to the file `out`.

    Called again after an interruption or a stop it goes on with the tasks that are left.

    Raises:
        UserError: environments, model or settings that cannot be used.
    """
    folder = model_folder(source)
    cfg = dataclasses.replace(cfg, model=read_config(folder))
    with processes(cfg, Path(out).parent) as world:
        tokenizer = find_tokenizer("", Path(source))
        cfg = with_token_ids(cast(Any, cfg), tokenizer)
        domains = open_domains(cfg.environments, cfg.heldout.tasks)
        model = load(folder, device=world.device)
        model.compute_dtype = compute_dtype(cfg.train.dtype, world.device)
        alone = dataclasses.replace(cfg, lora=dataclasses.replace(cfg.lora, rank=0, targets=[]))
        parallel = dataclasses.replace(cfg.parallel, fsdp=False)
        alone = dataclasses.replace(alone, parallel=parallel)
        served = Path(out).with_suffix(f".{SERVED}")
        engine = open_engine(alone, model, tokenizer, world, served)
        worker = rollout_worker(cfg, engine)
        refuse_long_prompts(domains, worker)
        found = fingerprint(cfg, domains, folder)
        try:
            if cfg.rollout.servers:
                weight_sync(alone, model, engine, world).sync()
            profile = measure(cfg, domains, worker, 0, world, say, found, Path(out))
        except (TrainingStoppedError, ServersGoneError) as stop:
            return ProfileResult(Path(out), stopped=str(stop))
        finally:
            if sends_through_run(cfg):
                remove_served(served, world)
        return ProfileResult(Path(out), profile.verdicts(), profile.faults)


def _begin(run: PolicyRun[RlvrConfig]) -> Profile | None:
    """The profile that the curriculum begins with, and the scores before the first step; a run that has begun has
    both."""
    cfg, run_dir = run.cfg, run.run_dir
    if run.begun:
        check_same(cfg.heldout, run_dir)
        return Profile.read(run_dir / FILE) if (run_dir / FILE).is_file() else None
    run.sampling.sync.sync()
    profile = None
    if cfg.curriculum.sampling == "gaussian":
        profile = _profile(run)
        if run.world.is_main:
            profile.write(run_dir / FILE)  # a given one too
        for verdict in profile.verdicts():
            run.say(verdict.line())
    run.steps.begin(profile)
    if cfg.heldout.tasks and run.world.from_main(read_before(run_dir)) is None:
        before = ask_heldout(cfg, run.domains, run.sampling.worker, run.world)
        if run.world.is_main:
            write_heldout(run_dir, before, samples=cfg.heldout.samples)
    return profile


def _profile(run: PolicyRun[RlvrConfig]) -> Profile:
    """That of the settings or of this run from before it was interrupted, else made here."""
    cfg, domains = run.cfg, run.domains
    wanted = fingerprint(cfg, domains, model_folder(run.source))
    given = Path(cfg.curriculum.profile) if cfg.curriculum.profile else run.run_dir / FILE
    if cfg.curriculum.profile or given.is_file():
        profile = Profile.read(given)
        check_fingerprint(profile, wanted, str(given))
        return profile
    n = sum(len(domain.train) for domain in domains.values())
    run.say(f"profile: {n:,} tasks, {cfg.curriculum.profile_samples} samples each")
    return measure(cfg, domains, run.sampling.worker, 0, run.world, say, wanted, given)


def _scores_after(run: PolicyRun[RlvrConfig]) -> list[Score]:
    before = run.world.from_main(read_before(run.run_dir))
    if not run.cfg.heldout.tasks or before is None:
        return []
    run.sampling.sync.sync()
    after = ask_heldout(run.cfg, run.domains, run.sampling.worker, run.world)
    scores = compare(before, after)
    if run.world.is_main:
        write_heldout(run.run_dir, before, after, scores, samples=run.cfg.heldout.samples)
    return scores
