"""The training loop that all stages share; a stage gives it a batch source and a loss."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.config.schema import PretrainConfig
from nano3.model.count import flops_per_token
from nano3.model.dtype import compute_dtype
from nano3.train import charts
from nano3.train.balance import load_stats
from nano3.train.checkpoint import Checkpointer, CheckpointError, Saved, load_tensors, step_folders
from nano3.train.feed import BatchSource, Feed, make_plans
from nano3.train.heldout import HeldoutScore, HeldoutSource, evaluate
from nano3.train.loss import LossFunction, NextTokenLoss
from nano3.train.metrics import FINAL, MetricsWriter, cut_metrics
from nano3.train.optimizer import build_optimizer, set_lr
from nano3.train.parallel import parallelize
from nano3.train.position import Position, Result
from nano3.train.progress import Progress, Status, make_progress
from nano3.train.run_identity import HORIZON, check_same_run, deciding_settings, rounding_notes, rounding_settings
from nano3.train.schedule import build_schedule
from nano3.train.signals import StopRequest
from nano3.train.snapshot import (
    optimizer_steps,
    rng_tensors,
    set_optimizer_steps,
    set_rng,
    state_tensors,
)
from nano3.train.step import NonFiniteError, Recipe, StepResult, run_step
from nano3.train.throughput import Meter, peak_flops
from nano3.train.trackers import open_trackers
from nano3.train.world import World, attempt, init_world


class Trainer:
    """Trains `model` in place and leaves metrics, checkpoints and charts in a run folder.

    Args:
        cfg: settings; sections model, data, train, optimizer, schedule, balance, heldout, checkpoint, parallel, log.
        model: moved to this rank's device and parallelised here. With initial weights; or on the meta device, to be
            filled by the caller after this, or by `resume` or `continue_from`.
        source: training batches by global sequence index, for each of cfg.lengths; last indices follow from
            train.tokens.
        heldout: held-out text in sequences of each of cfg.heldout_lengths; the first gives the score of the run.
        run_dir: RUN folder; must not hold another run unless `resume` is called.
        loss: micro-batch loss; next-token loss with the load-balancing loss by default.
        progress: where to report; the terminal by default.
        world: the ranks; from torchrun's environment by default.
        inputs: name and fingerprint of whatever else decides the numbers (tokenizer, texts); a resume with others is
            refused by name.

    Raises:
        ValueError: settings that do not fit together or the number of ranks.
    """

    def __init__(
        self,
        cfg: PretrainConfig,
        model: Any,
        source: Mapping[int, BatchSource],
        heldout: Mapping[int, HeldoutSource],
        run_dir: Path,
        loss: LossFunction | None = None,
        progress: Progress | None = None,
        world: World | None = None,
        inputs: dict[str, str] | None = None,
    ) -> None:
        self.cfg, self.heldout, self.run_dir, self.inputs = cfg, heldout, Path(run_dir), inputs or {}
        self.world = world or init_world()
        self.plans = make_plans(cfg, self.world.rank, self.world.size)
        self.step_tokens = cfg.train.batch_size * cfg.data.seq_len
        self.steps = math.ceil(cfg.train.tokens / self.step_tokens)
        self._move_to(Position(schedule_start=cfg.schedule.start_tokens))
        self.progress = progress or make_progress(self.world.is_main)
        self.model = self._place(model)
        self.optimizer = build_optimizer(model, cfg.optimizer)
        self.recipe = self._recipe(loss or NextTokenLoss(cfg.balance.loss_coef, cfg.balance.loss_type))
        self.checkpoints = Checkpointer(
            self.run_dir / "checkpoints",
            cfg.checkpoint.keep,
            cfg.checkpoint.asynchronous,
            self.world,
            self.progress.say,
        )
        self.feed = Feed(source, self.plans, self.steps)
        self._resumed, self._saved_step = False, -1
        self._scores: dict[int, HeldoutScore] = {}

    @property
    def metrics_path(self) -> Path:
        """RUN/metrics.jsonl."""
        return self.run_dir / "metrics.jsonl"

    def resume(self) -> Path | None:
        """Continue from the newest undamaged checkpoint of the run folder; None (and a fresh start) if there is none.

        Raises:
            CheckpointError: all checkpoints are damaged, or they belong to other settings.
        """
        saved = self.checkpoints.newest()
        self._resumed = True
        if saved is None:
            self.progress.say("no checkpoint yet: starting from the beginning")
        else:
            self._move_to(Position(**saved.state["position"]))
            check_same_run(saved.path, saved.state["settings"], self._settings())
            self._load(saved)
            self._saved_step = self.position.step
            self.progress.say(f"resuming from {saved.path}")
            for note in rounding_notes(saved.state.get("rounding", {}), self.cfg):
                self.progress.say(note)
        self.checkpoints.clean(saved)
        if self.world.is_main:
            cut_metrics(self.metrics_path, self.position.step)
        return saved.path if saved else None

    def continue_from(self, run_dir: Path) -> None:
        """Take weights, moments and schedule position from another run's newest checkpoint (phase 2 after phase 1).

        This run's data and step counter still begin at 0.

        Raises:
            UserError: no checkpoint there, or schedule.start_tokens says another position than its own.
        """
        other = Checkpointer(Path(run_dir) / "checkpoints", 1, False, self.world, self.progress.say)
        saved = other.newest()
        if saved is None:
            raise CheckpointError(
                f"{run_dir} has no checkpoint to continue from (train.continue_state): use its weights only"
            )
        before = Position(**saved.state["position"])
        start, stated = before.schedule_start + before.tokens, self.cfg.schedule.start_tokens
        if stated and abs(start - stated) > max(self.step_tokens, before.tokens // max(1, before.step)):
            raise UserError(
                f"schedule.start_tokens is {stated}, but {saved.path} is at token {start}: finish that run, or say "
                f"--set schedule.start_tokens={start}"
            )
        self._load(saved)
        self._move_to(Position(schedule_start=start))

    def fit(self) -> Result:
        """Train to train.tokens, or until SIGTERM or Ctrl-C; see `Result`.

        Raises:
            NonFiniteError: the loss or gradient became NaN or infinite.
            CheckpointError: a checkpoint could not be written.
        """
        self._check_fresh()
        try:
            with StopRequest(self.progress.say) as stop:
                self._open()
                result = self._run(stop)
            # All is saved: from here on a signal ends the run at once, and a resume comes back here.
            done = self.position.step >= self.steps
            if done:
                try:
                    self._evaluate(self.cfg.heldout.final_tokens, {FINAL: True})
                except KeyboardInterrupt:
                    done = False
            return self._result(result, done)
        finally:
            self._close()

    def _run(self, stop: StopRequest) -> StepResult | None:
        """Train and save; the last step's result, None if there was no step to do."""
        result, stopped = None, False
        while self.position.step < self.steps and not stopped:
            result = self._step(stop)
            stopped = result.stop
            if not stopped:
                self._between_steps(result)
        self._save()
        self.checkpoints.wait()
        return result

    def _result(self, result: StepResult | None, done: bool) -> Result:
        rate = self.meter.tokens / max(self.meter.seconds, 1e-9)
        loss = result.loss if result is not None else None
        scores = self._scores if done else {}
        return Result(self.position.step, self.position.tokens, not done, loss, scores, self.position.seconds, rate)

    def _step(self, stop: StopRequest) -> StepResult:
        position = self.position
        started = time.perf_counter()
        seq_len = self.plans.seq_len(position.step)
        batches = self.feed.get(position.step)
        lr = self.schedule.lr(position.schedule_start + position.tokens + self.step_tokens)
        set_lr(self.optimizer, lr)
        try:
            result = run_step(self.recipe, batches, lambda: stop.requested)
        except NonFiniteError as error:
            raise NonFiniteError(self._locate(error)) from None
        position.step += 1
        position.tokens += self.step_tokens
        clock = self.meter.add(self.step_tokens, time.perf_counter() - started, self._flops[seq_len])
        position.seconds += time.perf_counter() - started
        self._report(result, lr, seq_len, {**clock, "seconds": position.seconds})
        self.checkpoints.poll()
        return result

    def _between_steps(self, result: StepResult) -> None:
        """Evaluation and checkpoint, where their token counts were just passed; the end of the run has its own."""
        if self.position.step >= self.steps:
            return
        if self._passed(self.cfg.heldout.every_tokens):
            self._evaluate(self.cfg.heldout.tokens, {})
            self._write("load", {"shares": load_stats(result.loads).shares})
        if self._passed(self.cfg.checkpoint.every_tokens):
            self._save()

    def _passed(self, every: int) -> bool:
        before = self.position.tokens - self.step_tokens
        return every > 0 and self.position.tokens // every > before // every

    def _evaluate(self, tokens: int, marks: dict[str, Any]) -> None:
        """Score about `tokens` held-out tokens (0: all of them) at each length and write it down."""
        for seq_len, heldout in self.heldout.items():
            if len(heldout):
                self._evaluate_at(seq_len, heldout, math.ceil(tokens / seq_len) if tokens else len(heldout), marks)

    def _evaluate_at(self, seq_len: int, heldout: HeldoutSource, n_sequences: int, marks: dict[str, Any]) -> None:
        place = f" at {seq_len}" if len(self.heldout) > 1 else ""
        rows = max(1, self.cfg.train.micro_batch_size * self.cfg.data.seq_len // seq_len)
        n_sequences = min(n_sequences, len(heldout))
        tick = None
        if FINAL in marks:
            self.progress.say(f"scoring {n_sequences * seq_len:,} held-out tokens")
            tick = self._scoring(n_sequences, rows, place)
        started = time.perf_counter()
        score = evaluate(self.model, heldout, n_sequences, rows, self.world, tick)
        self._scores[seq_len] = score
        clock = {"seconds": self.position.seconds, "evaluation_seconds": time.perf_counter() - started}
        self._write("heldout", {"seq_len": seq_len, **asdict(score), **marks}, clock)
        self.progress.say(
            f"held-out loss{place} {score.loss:.4f}, {score.bits_per_byte:.4f} bits per byte ({score.targets} tokens)"
        )

    def _scoring(self, n_sequences: int, rows: int, place: str) -> Callable[[], None]:
        """Shows a scoring that begins; what it returns is called after each forward pass."""
        passes = itertools.count()

        def tick() -> None:
            self.progress.score(min(next(passes) * rows * self.world.size, n_sequences), n_sequences, place)

        tick()
        return tick

    def _save(self) -> None:
        if self.position.step == self._saved_step:
            return
        if self.world.is_main:
            self.metrics.sync()
        state = {
            "position": asdict(self.position),
            "optimizer_steps": optimizer_steps(self.optimizer),
            "world_size": self.world.size,
            "settings": self._settings(),
            "rounding": rounding_settings(self.cfg),
        }
        self.checkpoints.save(self.position.step, self._tensors(), state)
        self._saved_step = self.position.step

    def _move_to(self, position: Position) -> None:
        """Take a position, and the schedule that it lies on: without a set horizon, that ends where this run does."""
        self.position = position
        cfg = replace(self.cfg.schedule, start_tokens=position.schedule_start)
        self.schedule = build_schedule(cfg, self.cfg.train.tokens)

    def _settings(self) -> dict[str, Any]:
        horizon = {HORIZON: self.schedule.horizon if self.schedule.decays else 0}
        return deciding_settings(self.cfg) | horizon | self.inputs

    def _tensors(self) -> dict[str, Any]:
        return state_tensors(self.model, self.optimizer) | rng_tensors(self.world.rank, self.world.device)

    def _load(self, saved: Saved) -> None:
        tensors = load_tensors(saved.path, self._tensors(), self.world)
        set_optimizer_steps(self.optimizer, saved.state["optimizer_steps"])
        set_rng(tensors, self.world.rank, self.world.device)

    def _report(self, result: StepResult, lr: float, seq_len: int, clock: dict[str, float]) -> None:
        if self.position.step % max(1, self.cfg.log.every_steps) == 0 or self.position.step == self.steps:
            stats = load_stats(result.loads)
            self._write(
                "train",
                {
                    "seq_len": seq_len,
                    "loss": result.loss,
                    "balance_loss": result.balance_loss,
                    "lr": lr,
                    "grad_norm": result.grad_norm,
                    "load_max_over_mean": stats.max_over_mean,
                    "load_variation": stats.variation,
                },
                clock,
            )
        self.progress.show(self._status(result, lr))

    def _status(self, result: StepResult, lr: float) -> Status:
        rate, position = self.meter.rate, self.position
        left = (self.steps - position.step) * self.step_tokens / max(rate, 1e-9)
        bits = next((score.bits_per_byte for score in self._scores.values()), None)
        mfu = self.meter.utilisation(rate)
        return Status(position.step, self.steps, position.tokens, result.loss, lr, rate, mfu, left, bits)

    def _write(self, kind: str, values: dict[str, Any], clock: dict[str, float] | None = None) -> None:
        if not self.world.is_main:
            return
        self.metrics.write(kind, self.position.step, self.position.tokens, values, clock)
        line = {"kind": kind, "step": self.position.step, **values, "clock": clock or {}}
        for track in self._trackers:
            track(line)

    def _locate(self, error: NonFiniteError) -> str:
        self.checkpoints.wait()
        folders = step_folders(self.checkpoints.folder)
        last = f"the last good checkpoint is {folders[0]}" if folders else "there is no checkpoint yet"
        return f"step {self.position.step + 1} stopped before its update: {error}; {last}"

    def _place(self, model: Any) -> Any:
        train = self.cfg.train
        empty = next(model.parameters()).is_meta
        if not empty:
            model.to(self.world.device)
        model.compute_dtype = compute_dtype(train.dtype, self.world.device)
        model.checkpoint_activations = train.checkpoint_activations == "block"
        model.sequence_chunk = train.sequence_chunk
        model.train()
        parallelize(model, self.world, self.cfg.parallel)
        if empty:
            # Not before: so no rank ever holds more than its shards.
            model.to_empty(device=self.world.device)
        return model

    def _recipe(self, loss: LossFunction) -> Recipe:
        return Recipe(
            self.model, self.optimizer, loss, self.world, self.cfg.optimizer.clip_norm, self.cfg.balance.bias_rate
        )

    def _check_fresh(self) -> None:
        if not self._resumed and step_folders(self.run_dir / "checkpoints"):
            raise ValueError(f"{self.run_dir} already holds a run: resume it, or choose another run folder")

    def _open(self) -> None:
        cfg, world = self.cfg, self.world
        self._trackers: list[Callable[[dict[str, Any]], None]] = []
        self._closers: list[Callable[[], None]] = []
        peak = peak_flops(world.device, self.model.compute_dtype) * world.size
        self._flops = {length: flops_per_token(cfg.model, length) for length in cfg.lengths}
        shares = sum(cfg.lengths.values())
        self.meter = Meter(sum(self._flops[length] * share / shares for length, share in cfg.lengths.items()), peak)
        world.agree(attempt(self._open_files) if world.is_main else None)

    def _open_files(self) -> None:
        if not self._resumed:
            self.metrics_path.unlink(missing_ok=True)
        self._trackers, self._closers = open_trackers(self.cfg.log, self.run_dir, deciding_settings(self.cfg))
        self.metrics = MetricsWriter(self.metrics_path)

    def _close(self) -> None:
        self.feed.close()
        self.checkpoints.close()
        if self.world.is_main:
            for close in self._closers:
                close()
            if hasattr(self, "metrics"):
                self.metrics.close()
                self._draw()
        self.progress.close()

    def _draw(self) -> None:
        try:
            charts.draw(self.metrics_path, self.run_dir / "charts")
        except OSError as error:
            self.progress.say(f"no charts: {error}")
