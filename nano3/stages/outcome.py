"""What a training run leaves beside its folder: scores of compressors to compare with, and text that it wrote."""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nano3.config.schema import SampleConfig
from nano3.data.tokens.prepare import Prepared
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.model.hf.folder import load
from nano3.train.position import Result

LEAST_COMPARED = 10_000
"""Bytes of held-out text from which compressors are compared with: they learn a text while they pack it."""
SAMPLED, PROMPT_TOKENS = 2, 24
"""Held-out documents whose beginnings are continued, and the most tokens of each that are given."""
OPENING = 60
"""Most characters of a text's first words."""


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
    """Bits per byte of the text that `training.heldout` scored under `gzip -9` and `xz -9`; empty below
    LEAST_COMPARED bytes."""
    samples: list[Sample] = field(default_factory=list)
    """Text sampled from the model."""
    readings: dict[str, float] = field(default_factory=dict)
    """Times that the run read the texts of each category."""
    opening: str = ""
    """First words of a held-out document: how a text of the kind that the model was trained on begins."""

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
            **training.summary(),
            "readings": {name: round(times, 3) for name, times in self.readings.items()},
            "heldout_bits_per_byte": heldout.bits_per_byte if heldout else None,
            "heldout_bytes": heldout.bytes if heldout else None,
            "heldout_by_length": [
                {"seq_len": length, "loss": score.loss, "bits_per_byte": score.bits_per_byte, "bytes": score.bytes}
                for length, score in training.heldouts.items()
            ],
            "compressors_bits_per_byte": self.compressors,
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
        }


def compressors(prepared: Prepared, n_bytes: int) -> dict[str, float]:
    """Bits per byte of `gzip -9` and `xz -9` on the first `n_bytes` of the held-out text, those the model scored;
    empty where these are too few for a comparison."""
    text, parts = b"", (part.encode() for part in prepared.heldout_texts())
    while len(text) < n_bytes and (part := next(parts, None)) is not None:
        text += part
    text = text[:n_bytes]
    if len(text) < LEAST_COMPARED:
        return {}
    packed = {"gzip -9": gzip.compress(text, 9), "xz -9": lzma.compress(text, preset=9)}
    return {name: 8 * len(data) / len(text) for name, data in packed.items()}


def opening_of(texts: Iterable[str]) -> str:
    """First words of the first text that has some, on at most OPENING characters; empty where none has."""
    for text in texts:
        whole_words = re.match(rf".{{1,{OPENING}}}(?=\s|\Z)", text.strip(), re.DOTALL)
        if whole_words and any(map(str.isalpha, whole_words[0])):
            return whole_words[0].rstrip()
    return ""


def write_samples(folder: Path, prepared: Prepared, cfg: SampleConfig) -> list[Sample]:
    """Continue each prompt with the model in `folder`, as it would be loaded by anybody else."""
    if not cfg.tokens:
        return []
    tokenizer, texts = prepared.tokenizer, cfg.prompts or heldout_beginnings(prepared)
    # A document begins after the end-of-document token, in training and here.
    prompts = [(tokenizer.eos_id, *tokenizer.encode(text)) for text in texts]
    longest = max(len(prompt) for prompt in prompts) + cfg.tokens
    engine = Engine(load(folder), tokenizer, max_context=longest, max_sequences=len(prompts), prefix_cache=False)
    sampling = Sampling(temperature=cfg.temperature, top_p=cfg.top_p, max_tokens=cfg.tokens)
    requests = [Request(str(i), prompt, dataclasses.replace(sampling, seed=i)) for i, prompt in enumerate(prompts)]
    return [Sample(text, output.text) for text, (output,) in zip(texts, run(engine, requests), strict=True)]


def heldout_beginnings(prepared: Prepared) -> list[str]:
    """The first words of SAMPLED held-out documents, at most half of each; where nothing is held out, an empty text,
    after which a model begins a document of its own."""
    corpus, decode = prepared.heldout.corpus, prepared.tokenizer.decode
    found: list[str] = []
    for document in range(len(corpus)):
        ids = corpus.tokens(document, 0, min(PROMPT_TOKENS, int(corpus.lengths[document]) // 2))
        text = decode(ids.tolist()).rstrip("\ufffd")  # a cut character
        if text.strip() and text not in found:
            found.append(text)
        if len(found) == SAMPLED:
            break
    return found or [""]
