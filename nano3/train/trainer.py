"""The training loop that all stages share; a stage gives it a step source and a loss."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from nano3.config.model import MOE
from nano3.model.count import flops_per_token
from nano3.parallel.tensor import sharing
from nano3.train.balance import load_stats
from nano3.train.checkpoint.checkpointer import Checkpointer, CheckpointError, Saved, load_tensors, step_folders
from nano3.train.checkpoint.run_identity import (
    HORIZON,
    check_same_run,
    check_start,
    deciding_settings,
    rounding_settings,
)
from nano3.train.checkpoint.snapshot import optimizer_steps, rng_tensors, set_optimizer_steps, set_rng, state_tensors
from nano3.train.checkpoint.source_state import SourceState, restore_source, stored_source
from nano3.train.faults import Patience, patience_of, steps_limited
from nano3.train.feed import Feed, MeasuredSource, PausedError, StepSource, sequence_length
from nano3.train.heldout import Heldout, HeldoutScore, evaluate
from nano3.train.loss import LossFunction, NextTokenLoss, check_shared, check_stages
from nano3.train.optimizer import build_optimizer, set_lr
from nano3.train.parallel import place
from nano3.train.position import Position, Result, RunLength
from nano3.train.schedule import build_schedule
from nano3.train.settings import TrainerConfig
from nano3.train.signals import StopRequest
from nano3.train.step import NonFiniteError, Recipe, StepResult, Totals, count, names_of, run_step
from nano3.train.tally import Tally
from nano3.train.tracking.display import make_progress
from nano3.train.tracking.metrics import FINAL
from nano3.train.tracking.progress import Progress, Status
from nano3.train.tracking.record import Record
from nano3.train.tracking.throughput import Meter, peak_flops
from nano3.train.waits import Pace
from nano3.train.world import World, attempt, init_world


class Trainer:
    """Trains `model` in place and leaves metrics, checkpoints and charts in a run folder.

    Args:
        cfg: settings; of its sections the trainer reads those of nano3.train.settings.TrainerConfig.
        model: moved to this rank's device, its train.freeze frozen, and parallelised here. With initial weights; or on
            the meta device, to be filled by the caller after this, or by `resume` or `continue_from`.
        source: this rank's micro-batches of each optimizer step.
        run_dir: RUN folder; must not hold another run unless `resume` is called.
        heldout: held-out text and when it is scored; none by default.
        loss: micro-batch loss; next-token loss with the load-balancing loss by default. Where ranks share out each
            sequence it is given slices of them, and its attribute `shared` must say so (nano3.train.loss.check_shared).
        progress: where to report; the terminal by default.
        world: the ranks; from torchrun's environment by default.
        inputs: name and fingerprint of whatever else decides the numbers (tokenizer, texts); a resume with others is
            refused by name.

    Raises:
        ValueError: settings that do not fit together or the number of ranks.
    """

    def __init__(
        self,
        cfg: TrainerConfig,
        model: Any,
        source: StepSource,
        run_dir: Path,
        heldout: Heldout | None = None,
        loss: LossFunction | None = None,
        progress: Progress | None = None,
        world: World | None = None,
        inputs: dict[str, str] | None = None,
    ) -> None:
        self.cfg, self.heldout, self.run_dir, self.inputs = cfg, heldout, Path(run_dir), inputs or {}
        self.world = world or init_world()
        self.length = RunLength(cfg.train.tokens, cfg.train.steps)
        self._move_to(Position(schedule_start=cfg.schedule.start_tokens, schedule_start_step=cfg.schedule.start_steps))
        self.progress = progress or make_progress(self.world.is_main)
        self.shared = sharing(self.world.sequence.handle, self.world.context.handle, self.world.tensor.handle)
        loss = check_shared(loss or NextTokenLoss.of(cfg.balance, self.shared), self.shared)
        check_stages(loss, self.world.pipeline.size)
        self.model, self.pipeline = place(model, cfg, self.world)
        self.optimizer = build_optimizer(model, cfg.optimizer)
        self.recipe = self._recipe(loss)
        self.checkpoints = Checkpointer(
            self.run_dir / "checkpoints",
            cfg.checkpoint.keep,
            cfg.checkpoint.asynchronous,
            self.world,
            self.progress.say,
        )
        self.feed = Feed(source, self.shared and self.shared.cut)
        self.record = Record(self.run_dir, self.recipe.loss.shown, self.progress, self.world.is_main)
        self._flops = cache(lambda seq_len: flops_per_token(model.cfg, seq_len))
        self._pace = Pace(self.world, self.progress.say)
        self._resumed, self._saved_step = False, -1
        self._scores: dict[int, HeldoutScore] = {}

    def resume(self, step: int | None = None) -> Path | None:
        """Continue from the newest undamaged checkpoint of the run folder; None (and a fresh start) if there is none.
        With `step` from that of this step: later ones are renamed, and it is not deleted when newer ones come.

        Raises:
            CheckpointError: all checkpoints are damaged, or they belong to other settings; or none is of `step`.
        """
        saved = self.checkpoints.find(self._tensors(), step)
        self._resumed = True
        if saved is None:
            self.progress.say("no checkpoint yet: starting from the beginning")
        else:
            self._move_to(Position(**saved.state["position"]))
            notes = check_same_run(saved, self._settings(), self.cfg)
            values, tensors = stored_source(saved, self.world)
            self._load(saved, tensors)
            restore_source(self.feed.source, values, tensors, self.world)
            self._saved_step = self.position.step
            self.progress.say(f"resuming from {saved.path}")
            for note in notes:
                self.progress.say(note)
        self.checkpoints.clean(saved)
        # Without another step the expert load of the last one cannot be measured again.
        self.record.cut(self.position.step, ("load",) if self._done else ())
        return saved.path if saved else None

    def continue_from(self, run_dir: Path) -> None:
        """Take weights, moments and schedule position from another run's newest checkpoint (phase 2 after phase 1).

        This run's data and step counter still begin at 0.

        Raises:
            UserError: no checkpoint there, or schedule.start_tokens or start_steps says another position than its own.
        """
        other = Checkpointer(Path(run_dir) / "checkpoints", 1, False, self.world, self.progress.say)
        saved = other.find(self._tensors())
        if saved is None:
            raise CheckpointError(
                f"{run_dir} has no checkpoint to continue from (train.continue_state): use its weights only"
            )
        before = Position(**saved.state["position"])
        start = Position(
            schedule_start=before.schedule_start + before.tokens,
            schedule_start_step=before.schedule_start_step + before.step,
        )
        check_start(self.cfg.schedule, saved.path, start, before.tokens // max(1, before.step))
        self._load(saved, {})
        self._move_to(start)

    def fit(self) -> Result:
        """Train to train.tokens or train.steps, or until SIGTERM or Ctrl-C; see `Result`.

        Raises:
            NonFiniteError: the loss or gradient became NaN or infinite.
            LostProcessError: another rank did not answer in time, or ended.
            CheckpointError: a checkpoint could not be written.
            PausedError: the source has no step for now; all is saved.
        """
        self._check_fresh()
        try:
            with StopRequest(self.progress.say) as stop:
                self._open()
                with steps_limited(self.world, self._patience, self.cfg.parallel.timeout_s):
                    result = self._run(stop)
            # All is saved: from here on a signal ends the run at once; a resume comes back here.
            done = self._done
            if done:
                try:
                    self._evaluate(final=True)
                except KeyboardInterrupt:
                    done = False
            return self._result(result, done)
        finally:
            self._close()

    @property
    def _patience(self) -> Patience:
        """How long ranks wait for each other in a step; rollouts take some of them much longer than others."""
        source = self.feed.source
        rollouts = isinstance(source, MeasuredSource)
        return patience_of(self.cfg.parallel.timeout_s, rollouts, source.server_seconds if rollouts else 0)

    @property
    def _done(self) -> bool:
        return self.length.reached(self.position.step, self.position.tokens)

    def _run(self, stop: StopRequest) -> StepResult | None:
        """Train and save; the last step's result, None if there was no step to do."""
        result, stopped = None, False
        while not self._done and not stopped:
            before = self.position.tokens
            try:
                result = self._step(stop)
            except PausedError:
                self._save()
                self.checkpoints.wait()
                raise
            stopped = result.stop
            # The end of the run has its own evaluation and checkpoint.
            if not stopped and not self._done:
                self._between_steps(result, before)
        if result is not None and self._done:
            self._write_load(result, {FINAL: True})
        self._save()
        self.checkpoints.wait()
        return result

    def _result(self, result: StepResult | None, done: bool) -> Result:
        rate = self.meter.tokens / max(self.meter.seconds, 1e-9)
        loss, scores, at = result and result.loss, self._scores if done else {}, self.position
        return Result(at.step, at.tokens, not done, loss, scores, at.seconds, rate)

    def _step(self, stop: StopRequest) -> StepResult:
        position = self.position
        started = time.perf_counter()
        batches, totals = self._read(position.step)
        if not self.length.reached(position.step + 1, position.tokens + totals.tokens):
            self.feed.prepare(position.step + 1)
        lr = self._lr(totals.tokens)
        set_lr(self.optimizer, lr)
        try:
            if not totals.targets:
                documents = f"documents {names_of(batches, self.world)}"
                self.progress.say(f"step {position.step + 1} has no targets: weights stay as they are ({documents})")
            result = run_step(self.recipe, batches, lambda: stop.requested, totals)
        except NonFiniteError as error:
            raise NonFiniteError(self._locate(error)) from None
        position.step += 1
        position.tokens += totals.tokens
        seconds = time.perf_counter() - started
        clock = {**self.meter.add(totals.tokens, seconds, totals.flops), **self._pace.add(seconds)}
        if isinstance(self.feed.source, MeasuredSource):
            values, times = self.feed.source.measured()
            result, clock = replace(result, metrics={**values, **result.metrics}), {**clock, **times}
        position.seconds += seconds
        self._report(result, lr, max(map(sequence_length, batches)), clock)
        self.checkpoints.poll()
        return result

    def _read(self, step: int) -> tuple[Sequence[Any], Totals]:
        """This rank's micro-batches of a step, and the step's size; what fails on one rank fails on all."""
        try:
            batches, error = self.feed.get(step), None
        except Exception as problem:
            batches, error = [], problem
        return batches, count(batches, self.world, self._flops, error)

    def _lr(self, tokens: int) -> float:
        """Learning rate of a step of so many tokens: the schedule's at its end."""
        position = self.position
        if self.schedule.unit == "steps":
            return self.schedule.lr(position.schedule_start_step + position.step + 1)
        return self.schedule.lr(position.schedule_start + position.tokens + tokens)

    def _between_steps(self, result: StepResult, before: int) -> None:
        """Evaluation and checkpoint, where one is due; `before`: tokens before the last step."""
        heldout, checkpoint = self.heldout, self.cfg.checkpoint
        evaluated = heldout is not None and self._due(heldout.cfg.every_tokens, heldout.cfg.every_steps, before)
        if evaluated:
            self._evaluate()
            self._write_load(result, {})
        if saved := self._due(checkpoint.every_tokens, checkpoint.every_steps, before):
            self._save()
        if evaluated or saved:
            self.record.redraw()

    def _write_load(self, result: StepResult, marks: dict[str, bool]) -> None:
        """Each expert's share of the step's routing decisions, a row a block, and which blocks those are."""
        shares = load_stats(result.loads).shares
        if shares:
            values = {"shares": shares, "blocks": self.model.cfg.blocks(MOE), **marks}
            self.record.write(self.position, "load", values)

    def _due(self, every_tokens: int, every_steps: int, before: int) -> bool:
        """Whether the last step passed a multiple of one of these intervals; 0: no interval."""
        by_tokens = every_tokens > 0 and self.position.tokens // every_tokens > before // every_tokens
        return by_tokens or (every_steps > 0 and self.position.step % every_steps == 0)

    def _evaluate(self, final: bool = False) -> None:
        """Score held-out text at each length and write it down."""
        for seq_len, source in (self.heldout.sources if self.heldout else {}).items():
            if len(source):
                self._evaluate_at(seq_len, final)

    def _evaluate_at(self, seq_len: int, final: bool) -> None:
        assert self.heldout is not None
        heldout = self.heldout
        place, tick = f" at {seq_len}" if len(heldout.sources) > 1 else "", None
        rows, n_sequences = heldout.rows(seq_len), heldout.sequences(seq_len, final)
        if final:
            self.progress.say(f"scoring {n_sequences:,} held-out sequences of {seq_len:,} tokens")
            tick = self._scoring(n_sequences, rows, place)
        started = time.perf_counter()
        text, how = heldout.text(seq_len, final), (self.shared, self.pipeline)
        score = evaluate(self.model, text, n_sequences, rows, self.world, tick, *how)
        self._scores[seq_len] = score
        clock = {"seconds": self.position.seconds, "evaluation_seconds": time.perf_counter() - started}
        marks = {FINAL: True} if final else {}
        self.record.write(self.position, "heldout", {"seq_len": seq_len, **asdict(score), **marks}, clock)
        part = "all of it" if n_sequences == len(heldout.sources[seq_len]) else "the first" if final else "a sample"
        self.progress.say(
            f"held-out loss{place} {score.loss:.4f}, {score.bits_per_byte:.4f} bits per byte "
            f"({score.targets:,} tokens, {part})"
        )

    def _scoring(self, n_sequences: int, rows: int, place: str) -> Callable[[], None]:
        """Shows a scoring that begins; what it returns is called after each forward pass."""
        passes = itertools.count()

        def tick() -> None:
            done = next(passes) * rows * self.world.data.size
            self.progress.score(min(done, n_sequences), n_sequences, place)

        tick()
        return tick

    def _save(self) -> None:
        if self.position.step == self._saved_step:
            return
        source = SourceState(self.feed.source, self.world, self.record.sync)
        state = {
            "position": asdict(self.position),
            "optimizer_steps": optimizer_steps(self.optimizer),
            "world_size": self.world.size,
            "settings": self._settings(),
            "rounding": rounding_settings(self.cfg),
            **source.values,
        }
        self.checkpoints.save(self.position.step, self._tensors() | source.tensors, state, source.safe_step)
        self._saved_step = self.position.step

    def _move_to(self, position: Position) -> None:
        """Take a position, and the schedule that it lies on: without a set horizon, that ends where this run does."""
        self.position = position
        cfg = self.cfg.schedule
        unit = cfg.unit or ("steps" if self.cfg.train.steps else "tokens")
        start = position.schedule_start_step if unit == "steps" else position.schedule_start
        cfg = replace(cfg, **{f"start_{unit}": start})
        self.schedule = build_schedule(cfg, self.cfg.train.tokens, self.cfg.train.steps)

    def _settings(self) -> dict[str, Any]:
        horizon = {HORIZON + self.schedule.unit: self.schedule.horizon if self.schedule.decays else 0}
        return deciding_settings(self.cfg) | horizon | self.inputs

    def _tensors(self) -> dict[str, Any]:
        return state_tensors(self.model, self.optimizer) | rng_tensors(self.world.rank, self.world.device)

    def _load(self, saved: Saved, source: dict[str, Any]) -> None:
        tensors = load_tensors(saved.path, self._tensors() | source, self.world)
        set_optimizer_steps(self.optimizer, saved.state["optimizer_steps"])
        set_rng(tensors, self.world.rank, self.world.device)

    def _report(self, result: StepResult, lr: float, seq_len: int, clock: dict[str, float]) -> None:
        position, total = self.position, self.length.total_steps(self.position)
        if position.step % max(1, self.cfg.log.every_steps) == 0 or self._done:
            self.record.step(position, result, lr, seq_len, {**clock, "seconds": position.seconds})
        rate = self.meter.rate
        left = (total - position.step) * position.tokens / position.step / max(rate, 1e-9)
        bits = next((score.bits_per_byte for score in self._scores.values()), None)
        facts = (position.step, total, position.tokens, result.loss, lr, rate, self.meter.mfu, left, bits)
        first = self.feed.source.shown if isinstance(self.feed.source, MeasuredSource) else ()
        metrics = {name: result.metrics[name] for name in first if name in result.metrics}
        self.progress.show(Status(*facts, result.shown, metrics))

    def _locate(self, error: NonFiniteError) -> str:
        self.checkpoints.wait()
        folders = step_folders(self.checkpoints.folder)
        last = f"the last good checkpoint is {folders[0]}" if folders else "there is no checkpoint yet"
        return f"step {self.position.step + 1} stopped before its update: {error}; {last}"

    def _recipe(self, loss: LossFunction) -> Recipe:
        clip_norm, bias_rate = self.cfg.optimizer.clip_norm, self.cfg.balance.bias_rate
        tally = Tally(self.world)
        return Recipe(self.model, self.optimizer, loss, self.world, clip_norm, bias_rate, tally, self.pipeline)

    def _check_fresh(self) -> None:
        if not self._resumed and step_folders(self.run_dir / "checkpoints"):
            raise ValueError(f"{self.run_dir} already holds a run: resume it, or choose another run folder")

    def _open(self) -> None:
        # Of all processes, whatever they do: their peaks add up.
        self.meter = Meter(peak_flops(self.world.device, self.model.compute_dtype) * self.world.size)
        self.world.agree(attempt(self._open_record) if self.world.is_main else None)

    def _open_record(self) -> None:
        self.record.open(self.cfg.log, deciding_settings(self.cfg), not self._resumed)

    def _close(self) -> None:
        self.feed.close()
        self.checkpoints.close()
        self.record.close()
        self.progress.close()
