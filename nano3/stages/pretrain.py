"""`nano3 pretrain`: packed text to a trained model (report sections 2.3 and 2.4)."""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nano3.config.errors import UserError
from nano3.config.presets import to_toml
from nano3.config.schema import PretrainConfig, SampleConfig
from nano3.data.prepare import Prepared, prepare
from nano3.data.progress import progress_bar
from nano3.data.tokenizer import Tokenizer
from nano3.engine.generate import generate
from nano3.files import write_atomic
from nano3.model.hf import load, read_config, save
from nano3.model.lm import LM
from nano3.model.load import model_folder
from nano3.train.numerics import tune_process
from nano3.train.progress import Progress
from nano3.train.trainer import Result, Trainer
from nano3.train.world import World, init_world


@dataclass(frozen=True)
class Sample:
    """Text that the trained model wrote."""

    prompt: str
    text: str


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run came to."""

    run_dir: Path
    """The run folder."""
    training: Result
    """Steps, tokens, losses and rates."""
    compressors: dict[str, float] = field(default_factory=dict)
    """Bits per byte of the same held-out text under `gzip -9` and `xz -9`."""
    samples: list[Sample] = field(default_factory=list)
    """Text sampled from the model."""

    @property
    def model_dir(self) -> Path:
        """The Hugging Face folder of the trained model."""
        return self.run_dir / "model"

    def summary(self) -> dict[str, Any]:
        """The result as JSON values."""
        training, heldout = self.training, self.training.heldout
        return {
            "run": str(self.run_dir),
            "model": None if training.interrupted else str(self.model_dir),
            "interrupted": training.interrupted,
            "steps": training.step,
            "tokens": training.tokens,
            "seconds": round(training.seconds, 2),
            "tokens_per_second": round(training.tokens_per_second, 1),
            "train_loss": training.loss,
            "heldout_loss": heldout.loss if heldout else None,
            "heldout_bits_per_byte": heldout.bits_per_byte if heldout else None,
            "heldout_bytes": heldout.bytes if heldout else None,
            "compressors_bits_per_byte": self.compressors,
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
        }


def main(
    cfg: PretrainConfig,
    run_dir: str | Path,
    from_path: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> PretrainResult:
    """Train a model and leave a run folder: config.toml, metrics.jsonl, checkpoints/, charts/ and model/.

    Args:
        cfg: all settings.
        run_dir: the run folder; with `resume`, one that holds this run.
        from_path: run folder or Hugging Face folder to start from; its architecture and tokenizer replace cfg's.
        resume: continue from the newest checkpoint of `run_dir`.
        progress: where training reports; the terminal by default.

    Raises:
        UserError: data, model or settings that cannot be used; nothing is written then.
        NonFiniteError: the loss became NaN or infinite.
    """
    run_dir = Path(run_dir)
    if not resume and (run_dir / "checkpoints").exists():
        raise UserError(f"{run_dir} already holds a run: resume it, or choose another run folder")
    world = init_world()
    tune_process(world.device)
    try:
        cfg = adopt(cfg, Path(from_path)) if from_path is not None else cfg
        prepared = _prepare(cfg, world)
        model = load(model_folder(from_path), torch.float32) if from_path is not None else _new_model(cfg)
        heldout = prepared.heldout.with_seq_len(cfg.heldout.seq_len or cfg.data.seq_len)
        trainer = Trainer(cfg, model, prepared.train, heldout, run_dir, progress=progress, world=world)
        _begin(trainer, cfg, run_dir, world, from_path, resume)
        training = trainer.fit()
        if training.interrupted:
            return PretrainResult(run_dir, training)
        _export(model, prepared.tokenizer, run_dir / "model", world)
        samples = write_samples(run_dir / "model", prepared.tokenizer, cfg.sample) if world.is_main else []
        return PretrainResult(run_dir, training, compressors(prepared), samples)
    finally:
        world.close()


def adopt(cfg: PretrainConfig, source: Path) -> PretrainConfig:
    """`cfg` with the architecture of the model in `source`, and its tokenizer unless cfg names one."""
    folder = model_folder(source)
    data = cfg.data
    if data.tokenizer == "train":
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder} has no tokenizer.json: name its tokenizer with --set data.tokenizer=PATH")
        data = dataclasses.replace(data, tokenizer=str(folder))
    return dataclasses.replace(cfg, model=read_config(folder), data=data)


def compressors(prepared: Prepared) -> dict[str, float]:
    """Bits per byte that `gzip -9` and `xz -9` need for the held-out text, as a yardstick for the model's."""
    text = "".join(prepared.heldout_texts()).encode()
    if not text:
        return {}
    packed = {"gzip -9": gzip.compress(text, 9), "xz -9": lzma.compress(text, preset=9)}
    return {name: 8 * len(data) / len(text) for name, data in packed.items()}


def write_samples(folder: Path, tokenizer: Tokenizer, cfg: SampleConfig) -> list[Sample]:
    """Continue each prompt with the model in `folder`, as it would be loaded by anybody else."""
    if not cfg.prompts or not cfg.tokens:
        return []
    model = load(folder)
    samples = []
    for seed, prompt in enumerate(cfg.prompts):
        # A document begins after the end-of-document token, in training and here.
        tokens = torch.tensor([[tokenizer.eos_id, *tokenizer.encode(prompt)]])
        (ids,) = generate(
            model,
            tokens,
            cfg.tokens,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            stop_ids=(tokenizer.eos_id,),
            seed=seed,
        )
        samples.append(Sample(prompt, tokenizer.decode(ids)))
    return samples


def _prepare(cfg: PretrainConfig, world: World) -> Prepared:
    """The main rank builds the cache, the others read it."""
    if not world.is_main:
        world.barrier()
        return prepare(cfg.data, cfg.model.vocab_size)
    _say(f"preparing data: {', '.join(cfg.data.blend)}")
    with progress_bar() as show:
        prepared = prepare(cfg.data, cfg.model.vocab_size, show)
    world.barrier()
    for note in prepared.notes:
        _say(note)
    train, heldout = prepared.n_train_tokens, prepared.heldout
    _say(f"{train:,} training tokens, {heldout.n_tokens:,} held out ({heldout.n_bytes:,} bytes)")
    return prepared


def _new_model(cfg: PretrainConfig) -> LM:
    return LM(cfg.model).init_weights(cfg.train.seed)


def _begin(
    trainer: Trainer, cfg: PretrainConfig, run_dir: Path, world: World, from_path: str | Path | None, resume: bool
) -> None:
    """Restore what the run starts from, then write down its settings."""
    if resume:
        trainer.resume()
    elif cfg.train.continue_state:
        if from_path is None or not (Path(from_path) / "checkpoints").is_dir():
            raise UserError("train.continue_state needs --from with a run folder that has checkpoints")
        trainer.continue_from(Path(from_path))
    if world.is_main:
        write_atomic(run_dir / "config.toml", to_toml(cfg))


def _export(model: LM, tokenizer: Tokenizer, folder: Path, world: World) -> None:
    """The model with its tokenizer, appearing together."""
    model.eval()
    save(model, folder, extra=tokenizer.save)
    world.barrier()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
