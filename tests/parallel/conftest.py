"""The tiny run of tests/train, on several ranks, beside the same on one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nano3.model.lm import LM
from nano3.train.checkpoint.checkpointer import load_tensors
from nano3.train.checkpoint.snapshot import state_tensors
from nano3.train.freeze import freeze
from nano3.train.optimizer import build_optimizer
from nano3.train.tracking.metrics import read_metrics
from nano3.train.world import World

from ..train.conftest import _no_charts, _one_thread, complete, launch, processes, tiny  # noqa: F401

EXACT = ("shares", "load_max_over_mean", "tokens", "step", "kind", "targets", "bytes", "seq_len")


@dataclass(frozen=True)
class Finished:
    """A run that a test looks at."""

    folder: Path
    shapes: dict[str, torch.Tensor]
    """An empty tensor for each of the whole state."""

    def at(self, folder: Path) -> Finished:
        """Another folder with a state of the same names and shapes."""
        return Finished(folder, self.shapes)

    @property
    def metrics(self) -> list[dict]:
        return read_metrics(self.folder / "metrics.jsonl")

    def gradients(self, step: int) -> dict[str, torch.Tensor]:
        return torch.load(self.folder.with_name(f"{self.folder.name}.grads-{step}"))

    def state(self, step: int) -> dict[str, torch.Tensor]:
        """Weights, biases and moments of a checkpoint, read by this one process."""
        empty = {name: torch.zeros_like(value) for name, value in self.shapes.items()}
        return load_tensors(self.folder / "checkpoints" / f"step-{step}", empty, World())


def same_run(found: Finished, alone: Finished, first_gradients: int = 1) -> None:
    """Loss, norm and gradients as on one process, to rounding; loads and biases exactly."""
    lines, others = found.metrics, alone.metrics
    assert len(lines) == len(others) > 6
    for here, there in zip(lines, others, strict=True):
        assert {k: here[k] for k in EXACT if k in here} == {k: there[k] for k in EXACT if k in there}
        for key, most in (("loss", 1e-6), ("balance_loss", 1e-6), ("grad_norm", 1e-5), ("lr", 1e-12)):
            if key in there:
                # Each step starts from the rounding of those before it.
                assert here[key] == pytest.approx(there[key], rel=most * max(1, here["step"])), (here["step"], key)
    same_gradients(found.gradients(first_gradients), alone.gradients(first_gradients), 1e-5)
    last = lines[-1]["step"]
    states, biases = (found.state(last), alone.state(last)), 0
    for name, value in states[1].items():
        if name.endswith("e_score_correction_bias"):
            assert torch.equal(states[0][name], value), name
            biases += 1
    assert biases


def same_gradients(found: dict, alone: dict, most: float) -> None:
    assert found.keys() == alone.keys()
    for name, gradient in alone.items():
        error = (found[name] - gradient).abs().max() / gradient.abs().max().clamp_min(1e-20)
        assert error <= most, (name, error)


@pytest.fixture
def finish(tiny, complete, tmp_path):  # noqa: F811 (fixtures by name)
    """Trains the tiny model on `ranks` processes and returns what the run left."""

    def run(name: str, *flags: str, ranks: int = 1, **settings: dict) -> Finished:
        # A checkpoint after the last step, unless told otherwise: one after each costs as much as the steps.
        settings = {"checkpoint": {"every_tokens": 0}, **settings}
        folder, cfg = tmp_path / name, tiny.config(**settings)
        if ranks > 1:
            told = complete(folder, "--gradients", f"{folder}.grads", *flags, ranks=ranks, settings=settings)
            assert "done" in told, told
        else:
            source = tiny.SOURCES[flags[flags.index("--source") + 1]]() if "--source" in flags else None
            options = tiny.policy(cfg, World()) if "--policy" in flags else {"source": source}
            trainer = tiny.trainer(folder, cfg, **options)
            if "--resume" in flags:
                trainer.resume()
            tiny.keep_gradients(trainer, folder.with_name(f"{name}.grads"))
            if "--crowd" in flags:
                tiny.crowd(trainer.model)
            if "--resume" in flags:
                assert trainer.resume() is not None
            trainer.fit()
        model = LM(cfg.model)
        freeze(model, cfg.train.freeze)
        return Finished(folder, state_tensors(model, build_optimizer(model, cfg.optimizer)))

    return run
