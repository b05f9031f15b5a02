"""Training on packed text, from data to a Hugging Face folder: what pretraining and context extension share."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import lzma
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from nano3.config.errors import UserError
from nano3.config.presets import to_toml
from nano3.config.schema import PretrainConfig, SampleConfig
from nano3.data.prepare import Prepared, prepare
from nano3.data.progress import progress_bar
from nano3.data.shards import finished_shards
from nano3.data.steps import TextSteps, make_plans
from nano3.data.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.files import atomic_folder, exclusive, write_atomic
from nano3.model.config import PRETRAINED, read_stage
from nano3.model.hf import fill, load, read_config, save
from nano3.model.lm import LM
from nano3.model.load import model_folder
from nano3.stages.room import check_room
from nano3.stages.start import check_start, heldout_warning
from nano3.train.checkpoint import step_folders
from nano3.train.heldout import Heldout
from nano3.train.numerics import tuned_process
from nano3.train.progress import Progress
from nano3.train.schedule import build_schedule
from nano3.train.trainer import Result, Trainer
from nano3.train.world import World, attempt, init_world

Config = TypeVar("Config", bound=PretrainConfig)
TOKENIZER, START = "tokenizer", "start.json"
"""In the run folder: the tokenizer, and where the weights came from. A resume relies on both."""


@dataclass(frozen=True)
class Sample:
    """Text that the trained model wrote."""

    prompt: str
    text: str


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to."""

    run_dir: Path
    """The run folder."""
    training: Result
    """Steps, tokens, losses and rates."""
    compressors: dict[str, float] = field(default_factory=dict)
    """Bits per byte of the text that `training.heldout` scored under `gzip -9` and `xz -9`."""
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
            # A resume of a finished run makes no step.
            "tokens_per_second": round(training.tokens_per_second, 1) or None,
            "train_loss": training.loss,
            "heldout_loss": heldout.loss if heldout else None,
            "heldout_bits_per_byte": heldout.bits_per_byte if heldout else None,
            "heldout_bytes": heldout.bytes if heldout else None,
            "heldout_by_length": [
                {"seq_len": length, "loss": score.loss, "bits_per_byte": score.bits_per_byte, "bytes": score.bytes}
                for length, score in training.heldouts.items()
            ],
            "compressors_bits_per_byte": self.compressors,
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
        }


def train_on_text(
    cfg: PretrainConfig,
    run_dir: str | Path,
    from_path: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a model and leave a run folder: config.toml, metrics.jsonl, tokenizer/, checkpoints/, charts/ and model/.

    Args:
        cfg: all settings.
        run_dir: the run folder; with `resume`, one that holds this run.
        from_path: run folder or Hugging Face folder to start from; its architecture and tokenizer replace cfg's. A
            resume knows it from the run folder.
        resume: continue from the newest checkpoint of `run_dir`, or begin as it began if there is none yet.
        progress: where training reports; the terminal by default.

    Raises:
        UserError: data, model or settings that cannot be used; nothing is written then.
        NonFiniteError: the loss became NaN or infinite.
    """
    run_dir = Path(run_dir)
    if not resume and (run_dir / "checkpoints").exists():
        raise UserError(f"{run_dir} already holds a run: resume it, or choose another run folder")
    source = _source(run_dir, from_path, resume)
    fresh = not (resume and step_folders(run_dir / "checkpoints"))
    if source is not None and (fresh or from_path is not None):
        cfg = adopt(cfg, source)
    if fresh:
        check_start(cfg, source)
    world = init_world()
    try:
        # What cannot be is told before any work.
        build_schedule(cfg.schedule, cfg.train.tokens, cfg.train.steps)
        make_plans(cfg, world.data.rank, world.data.size)
        world.agree(attempt(lambda: check_room(cfg, world)))
        if fresh and source is not None and world.is_main and (warning := heldout_warning(cfg, source)):
            _say(warning)
        with tuned_process(world.device):
            prepared = _prepare(_keep_tokenizer(cfg, run_dir) if resume else cfg, world)
            cfg = with_token_ids(cfg, prepared.tokenizer)
            with torch.device("meta"):
                model = LM(cfg.model)
            model.stage = _stage_after(source)
            with exclusive(run_dir) if world.is_main else nullcontext():
                return _train(cfg, model, prepared, run_dir, source, resume, progress, world)
    finally:
        world.close()


def _train(
    cfg: PretrainConfig,
    model: LM,
    prepared: Prepared,
    run_dir: Path,
    start: Path | None,
    resume: bool,
    progress: Progress | None,
    world: World,
) -> TrainingResult:
    rows = {length: prepared.train.with_seq_len(length, cfg.lengths) for length in cfg.lengths}
    source = TextSteps(rows, make_plans(cfg, world.data.rank, world.data.size))
    texts = {length: prepared.heldout.with_seq_len(length) for length in cfg.heldout_lengths}
    heldout = Heldout(cfg.heldout, texts, cfg.train.micro_batch_size * cfg.data.seq_len)
    inputs = fingerprints(prepared)
    trainer = Trainer(cfg, model, source, run_dir, heldout, progress=progress, world=world, inputs=inputs)
    if not resume or trainer.resume() is None:
        _begin(trainer, cfg, prepared.tokenizer, run_dir, start, world)
    if world.is_main:
        write_atomic(run_dir / "config.toml", to_toml(cfg))
    training = trainer.fit()
    if training.interrupted:
        return TrainingResult(run_dir, training)
    _export(model, prepared.tokenizer, run_dir / "model", world)
    if not world.is_main:
        return TrainingResult(run_dir, training)
    samples = write_samples(run_dir / "model", prepared.tokenizer, cfg.sample)
    scored = training.heldout.bytes if training.heldout else 0
    return TrainingResult(run_dir, training, compressors(prepared, scored), samples)


def adopt(cfg: Config, source: Path) -> Config:
    """`cfg` with the architecture of the model in `source`, and its tokenizer unless cfg names one."""
    folder = model_folder(source)
    model, data = read_config(folder), cfg.data
    if data.tokenizer == "train":
        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder} has no tokenizer.json: name its tokenizer with --set data.tokenizer=PATH")
        data = dataclasses.replace(data, tokenizer=str(folder))
    return dataclasses.replace(cfg, model=model, data=data)


def with_token_ids(cfg: PretrainConfig, tokenizer: Tokenizer) -> PretrainConfig:
    """`cfg` with the special tokens of the text that the model is trained on."""
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **ids))


def fingerprints(prepared: Prepared) -> dict[str, str]:
    """What a resume must find again: hashes of the tokenizer and of each category's tokens."""
    found = {"tokenizer": prepared.tokenizer.fingerprint()[:16]}
    for name, folders in prepared.folders.items():
        shards = [[m.documents, m.tokens, m.bytes, m.bin_crc32] for f in folders for m in finished_shards(f)]
        found[f"text of {name}"] = hashlib.blake2b(json.dumps(shards).encode(), digest_size=8).hexdigest()
    return found


def compressors(prepared: Prepared, n_bytes: int) -> dict[str, float]:
    """Bits per byte of `gzip -9` and `xz -9` on the first `n_bytes` of the held-out text, those the model scored."""
    text, parts = b"", (part.encode() for part in prepared.heldout_texts())
    while len(text) < n_bytes and (part := next(parts, None)) is not None:
        text += part
    text = text[:n_bytes]
    if not text:
        return {}
    packed = {"gzip -9": gzip.compress(text, 9), "xz -9": lzma.compress(text, preset=9)}
    return {name: 8 * len(data) / len(text) for name, data in packed.items()}


def write_samples(folder: Path, tokenizer: Tokenizer, cfg: SampleConfig) -> list[Sample]:
    """Continue each prompt with the model in `folder`, as it would be loaded by anybody else."""
    if not cfg.prompts or not cfg.tokens:
        return []
    # A document begins after the end-of-document token, in training and here.
    prompts = [(tokenizer.eos_id, *tokenizer.encode(prompt)) for prompt in cfg.prompts]
    longest = max(len(prompt) for prompt in prompts) + cfg.tokens
    engine = Engine(load(folder), tokenizer, max_context=longest, max_sequences=len(prompts), prefix_cache=False)
    sampling = Sampling(temperature=cfg.temperature, top_p=cfg.top_p, max_tokens=cfg.tokens)
    requests = [Request(str(i), prompt, dataclasses.replace(sampling, seed=i)) for i, prompt in enumerate(prompts)]
    return [Sample(prompt, output.text) for prompt, (output,) in zip(cfg.prompts, run(engine, requests), strict=True)]


def _prepare(cfg: PretrainConfig, world: World) -> Prepared:
    """The main rank builds the cache, the others read it."""
    if not world.is_main:
        world.barrier()
        return prepare(cfg.prepared_data, cfg.model.vocab_size)
    _say(f"preparing data: {', '.join(cfg.data.blend)}")
    with progress_bar() as show:
        prepared = prepare(cfg.prepared_data, cfg.model.vocab_size, show)
    world.barrier()
    for note in prepared.notes:
        _say(note)
    train, heldout = prepared.n_train_tokens, prepared.heldout
    _say(f"{train:,} training tokens, {heldout.n_tokens:,} held out ({heldout.n_bytes:,} bytes)")
    return prepared


def _source(run_dir: Path, from_path: str | Path | None, resume: bool) -> Path | None:
    """Where the weights of the run come from; a resume looks it up in the run folder."""
    given = Path(from_path).resolve() if from_path is not None else None
    file = run_dir / START
    if not resume or not file.is_file():
        return given
    recorded = json.loads(file.read_text(encoding="utf-8"))["from"]
    if given is not None and str(given) != recorded:
        raise UserError(f"{run_dir} started from {recorded or 'new weights'}, not {given}: resume it without --from")
    return Path(recorded) if recorded else None


def _stage_after(source: Path | None) -> str:
    """A base model, unless the weights come from one that may have seen conversations."""
    try:
        return PRETRAINED if source is None else read_stage(model_folder(source))
    except UserError:  # a resume: the folder that the run began with is gone
        return PRETRAINED


def _keep_tokenizer(cfg: PretrainConfig, run_dir: Path) -> PretrainConfig:
    """`cfg` for data preparation, with the tokenizer that the run began with."""
    folder = run_dir / TOKENIZER
    if not folder.is_dir():
        return cfg
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, tokenizer=str(folder)))


def _begin(
    trainer: Trainer, cfg: PretrainConfig, tokenizer: Tokenizer, run_dir: Path, source: Path | None, world: World
) -> None:
    """Fill the model from wherever the run starts, then write down what a resume needs to know."""
    if cfg.train.continue_state:
        assert source is not None, "check_start has seen to it"
        trainer.continue_from(source)
    elif source is not None:
        fill(trainer.model, model_folder(source))
    else:
        trainer.model.init_weights(cfg.train.seed)
    if world.is_main:
        with atomic_folder(run_dir / TOKENIZER) as folder:
            tokenizer.save(folder)
        write_atomic(run_dir / START, json.dumps({"from": str(source) if source else None}) + "\n")


def _export(model: LM, tokenizer: Tokenizer, folder: Path, world: World) -> None:
    """The model with its tokenizer, appearing together."""
    model.eval()
    save(model, folder, extra=tokenizer.save)
    world.barrier()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
