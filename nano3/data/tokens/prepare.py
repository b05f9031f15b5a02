"""Everything a training run needs of its data, built once and then taken from the cache."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nano3.cache import cache_root
from nano3.config.errors import UserError
from nano3.config.schema import DataConfig
from nano3.data.files import locked
from nano3.data.progress import Progress, silent
from nano3.data.texts.corpus import Corpus, is_heldout, shuffled, split
from nano3.data.texts.parts import short_pieces
from nano3.data.texts.readers import Input
from nano3.data.texts.skipped import OF_FILES, Skipped
from nano3.data.texts.sources import CategorySources, resolve
from nano3.data.tokens.blend import Blend
from nano3.data.tokens.build import build, build_key, content_hash
from nano3.data.tokens.shards import ShardFolder
from nano3.data.tokens.source import HeldoutSource, TokenSource
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.files import write_atomic
from nano3.splits import SPLIT, SPLITS

TRAINING_BYTES = 1 << 26
"""Text that a new vocabulary is trained on, divided among the categories by their shares."""


@dataclass(frozen=True)
class Prepared:
    """Data of a run."""

    tokenizer: Tokenizer
    train: TokenSource
    heldout: HeldoutSource
    folders: dict[str, list[Path]]
    """Prepared folders by category."""
    n_documents: int
    """Training documents."""
    n_bytes: int
    """Bytes of training text."""
    skipped: dict[str, Skipped] = field(default_factory=dict)
    """What was left out, by category."""
    notes: list[str] = field(default_factory=list)
    """Lines the user should see (documents skipped, nothing held out)."""

    @property
    def n_train_tokens(self) -> int:
        """Tokens of one pass over the training text."""
        return self.train.n_tokens

    @property
    def heldout_bytes(self) -> int:
        """Bytes of held-out text."""
        return self.heldout.n_bytes

    def heldout_texts(self) -> Iterator[str]:
        """Held-out documents as text, in the order in which they are scored."""
        return self.heldout.texts()


def prepare(cfg: DataConfig, vocab_size: int, progress: Progress = silent) -> Prepared:
    """Build, or take from the cache, the tokenizer and the shards of a blend.

    Args:
        cfg: the `data` section of a preset.
        vocab_size: entries of the model's vocabulary.
        progress: called while texts are read and encoded, see nano3.data.progress.

    Raises:
        UserError: categories without data, a damaged shard, a tokenizer that does not fit, or no usable text.
        FileNotFoundError: a path or tokenizer that is not there.
    """
    blend, sources, tokenizer = _plan(cfg, vocab_size, progress)
    root = cache_root(cfg.cache_dir)
    folders = {name: _shard_folders(name, found, tokenizer, root, progress) for name, found in sources.items()}
    corpora = {name: Corpus(opened) for name, opened in folders.items()}
    generated = frozenset(name for name, found in sources.items() if found.generated)
    train, heldout, notes = split_all(corpora, cfg, tokenizer, generated)
    whole = generated | (frozenset(cfg.whole_documents) & frozenset(sources))
    notes += _leave_out_long(train, whole, cfg.seq_len)
    skipped = {name: _skipped(sources[name], folders[name]) for name in sources}
    notes += _skip_notes(skipped) + _tokenizer_notes(cfg, sources, tokenizer)
    return Prepared(
        tokenizer=tokenizer,
        train=TokenSource(
            train,
            blend,
            seq_len=cfg.seq_len,
            eos_id=tokenizer.eos_id,
            seed=cfg.order_seed or cfg.seed,
            whole=whole,
        ),
        heldout=HeldoutSource(heldout, tokenizer, cfg.seq_len),
        folders={name: [folder.folder for folder in opened] for name, opened in folders.items()},
        n_documents=sum(len(corpus) for corpus in train.values()),
        n_bytes=sum(int(corpus.n_bytes.sum()) for corpus in train.values()),
        skipped=skipped,
        notes=notes,
    )


def prepare_out(
    cfg: DataConfig, vocab_size: int, out: Path, progress: Progress = silent
) -> tuple[dict[str, list[Path]], list[str]]:
    """Write the shards of a blend to a folder of the user's: `out` itself for one category, else `out`/CATEGORY.

    Several categories also get `out`/blend.toml, ready for data.sources_file. Returns folders and notes like
    `Prepared`. Raises what `prepare` raises, and UserError when the folder holds something else.
    """
    _, sources, tokenizer = _plan(cfg, vocab_size, progress)
    single = len(sources) == 1
    folders, skipped = {}, {}
    for name, found in sources.items():
        if found.prepared:
            raise UserError(f"{found.prepared[0]} is prepared already: give texts, or name that folder in a blend file")
        folder = out if single else out / _label(name)
        manifest = build(
            folder, found.inputs, tokenizer, sources=found.specs, left_out=found.skipped, progress=progress
        )
        ShardFolder(folder)
        folders[name] = [folder]
        skipped[name] = manifest.left_out()
    if not single:
        lines = [f"{json.dumps(name)} = [{json.dumps(folder.name)}]\n" for name, (folder,) in folders.items()]
        write_atomic(out / "blend.toml", ("[sources]\n" + "".join(lines)).encode())
    return folders, _skip_notes(skipped)


def _plan(cfg: DataConfig, vocab_size: int, progress: Progress) -> tuple[Blend, dict[str, CategorySources], Tokenizer]:
    if not 0 <= cfg.heldout_fraction < 1:
        raise UserError(f"data.heldout_fraction is {cfg.heldout_fraction}: it must be at least 0 and below 1")
    if cfg.seq_len < 1:
        raise UserError(f"data.seq_len is {cfg.seq_len}: it must be at least 1")
    blend, sources = Blend(cfg.blend), resolve(cfg)
    tokenizer = _choose_tokenizer(cfg, sources, blend, vocab_size, cache_root(cfg.cache_dir), progress)
    _check_vocabulary(cfg, tokenizer, vocab_size)
    return blend, {name: found.with_tokenizer(tokenizer) for name, found in sources.items()}, tokenizer


def _skip_notes(skipped: Mapping[str, Skipped]) -> list[str]:
    return [f"{name}: skipped {counts.line()}{counts.advice()}" for name, counts in skipped.items() if counts.line()]


def _tokenizer_notes(cfg: DataConfig, sources: Mapping[str, CategorySources], tokenizer: Tokenizer) -> list[str]:
    brought = [path for found in sources.values() for path in found.prepared]
    if cfg.tokenizer not in SPLITS or not brought:
        return []
    return [f"no vocabulary is trained: {brought[0]} brings its own, {tokenizer.vocab_size} entries"]


def _label(name: str) -> str:
    """A category's name as the name of a folder."""
    return "".join(letter if letter.isalnum() or letter in "-_+" else "_" for letter in name)


def train_tokenizer(
    inputs: Mapping[str, list[Input]],
    blend: Blend,
    vocab_size: int,
    cfg: DataConfig,
    root: Path,
    progress: Progress = silent,
) -> Tokenizer:
    """A vocabulary trained on the documents that are not held out, kept in the cache."""
    split = SPLITS[cfg.tokenizer]
    named = "" if split == SPLIT else f" {split}"
    settings = f"1 {vocab_size} {cfg.seed} {cfg.heldout_fraction}{named}"
    digest = hashlib.blake2b(settings.encode(), digest_size=12)
    for name, listed in sorted(inputs.items()):
        digest.update(f"\0{name} {blend.shares[name]}".encode())
        for source in listed:
            digest.update(f"\0{source.identity()}".encode("utf-8", "surrogateescape"))
    folder = root / "tokenizers" / f"bpe-{vocab_size}-{digest.hexdigest()}"
    if (folder / "tokenizer_config.json").is_file():
        return Tokenizer.load(folder)
    with locked(folder):
        if not (folder / "tokenizer_config.json").is_file():
            texts = _training_texts(inputs, blend, cfg, progress)
            Tokenizer.train(texts, vocab_size, split).save(folder)
    return Tokenizer.load(folder)


def _training_texts(
    inputs: Mapping[str, list[Input]], blend: Blend, cfg: DataConfig, progress: Progress
) -> Iterator[str]:
    total = 0
    budgets = {name: int(TRAINING_BYTES * blend.shares[name]) for name in inputs}
    expected = sum(min(budgets[name], sum(source.size for source in listed)) for name, listed in inputs.items())
    for name, listed in inputs.items():
        left = budgets[name]
        # A sample of the files where there is more than enough text; otherwise the order changes nothing.
        order = random.Random(cfg.seed).sample(range(len(listed)), len(listed))
        for number in order:
            for document in listed[number].documents(Skipped()):
                if document is None or _held(document.text, cfg):
                    continue
                yield from short_pieces(document.text[:left])
                left -= len(document.text)
                total += len(document.text)
                progress("vocabulary", min(total, expected), expected)
                if left <= 0:
                    break
            if left <= 0:
                break


def _held(text: str, cfg: DataConfig) -> bool:
    return bool(is_heldout(np.array([content_hash(text)], np.uint64), cfg.heldout_fraction, cfg.seed)[0])


def _choose_tokenizer(
    cfg: DataConfig,
    sources: Mapping[str, CategorySources],
    blend: Blend,
    vocab_size: int,
    root: Path,
    progress: Progress,
) -> Tokenizer:
    """The configured tokenizer; prepared folders bring theirs, and all of them must be the same."""
    brought = {path: Tokenizer.load(path / "tokenizer") for found in sources.values() for path in found.prepared}
    if cfg.tokenizer not in SPLITS:
        tokenizer = Tokenizer.load(cfg.tokenizer)
    elif brought:
        tokenizer = next(iter(brought.values()))
    else:
        return train_tokenizer(_vocabulary_inputs(sources), blend, vocab_size, cfg, root, progress)
    wanted = tokenizer.fingerprint()
    for path, other in brought.items():
        if other.fingerprint() != wanted:
            chosen = next(iter(brought)) if cfg.tokenizer in SPLITS else cfg.tokenizer
            raise UserError(f"{path} was prepared with another tokenizer than {chosen}: prepare it again with that one")
    return tokenizer


def _vocabulary_inputs(sources: Mapping[str, CategorySources]) -> dict[str, list[Input]]:
    """What a vocabulary is trained on: all but generated texts; if there are no others, what they are made from."""
    read = {name: found.inputs for name, found in sources.items() if not found.generated}
    return read or {name: list(found.generated[0].inputs) for name, found in sources.items()}


def _check_vocabulary(cfg: DataConfig, tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"tokenizer {cfg.tokenizer!r} has ids up to {tokenizer.vocab_size - 1}, model.vocab_size is {vocab_size}: "
            f"--set model.vocab_size={tokenizer.vocab_size}"
        )


def _shard_folders(
    name: str, found: CategorySources, tokenizer: Tokenizer, root: Path, progress: Progress
) -> list[ShardFolder]:
    opened = [ShardFolder(path) for path in found.prepared]
    if found.inputs:
        folder = root / "shards" / f"{_label(name)}-{build_key(found.inputs, tokenizer)}"
        build(folder, found.inputs, tokenizer, sources=found.specs, left_out=found.skipped, progress=progress)
        opened.append(ShardFolder(folder))
    return opened


def split_all(
    corpora: Mapping[str, Corpus], cfg: DataConfig, tokenizer: Tokenizer, generated: frozenset[str] = frozenset()
) -> tuple[dict[str, Corpus], Corpus, list[str]]:
    """Training documents by category, all held-out documents, and notes on categories too small to split.

    Of `generated` categories nothing is held out, unless there are no others: the held-out loss is that of real text.
    """
    read = {name: corpus for name, corpus in corpora.items() if name not in generated} or dict(corpora)
    train = dict(corpora)
    held, notes = [], []
    for name, corpus in read.items():
        train[name], heldout = split(corpus, cfg.heldout_fraction, cfg.seed)
        if len(train[name]):
            held.append(heldout)
        else:
            train[name] = corpus
    nothing = next(iter(read.values())).pick(np.zeros(0, np.int64))
    heldout = shuffled(Corpus.merge(held), cfg.seed) if held else nothing
    if len(heldout) or cfg.heldout_fraction <= 0:
        return train, heldout, notes
    name = max(read, key=lambda name: int(train[name].lengths.max()))
    train[name], heldout = _cut_longest(train[name], cfg.heldout_fraction, tokenizer)
    if len(heldout):
        notes.append(f"too few documents for a held-out split: the end of {heldout.name(0)} is held out instead")
    else:
        notes.append("nothing is held out: there is too little text")
    return train, heldout, notes


def _leave_out_long(train: dict[str, Corpus], whole: Collection[str], seq_len: int) -> list[str]:
    """Take out of `train` the documents of `whole` that no row holds; returns notes that count them.

    A category that would keep none stays as it is: its rows tell what is wrong.
    """
    notes = []
    for name in sorted(whole):
        corpus = train[name]
        long = corpus.lengths + 1 > seq_len
        if not long.any() or long.all():
            continue
        train[name] = corpus.pick(np.flatnonzero(~long))
        notes.append(
            f"{name}: {int(long.sum()):,} of {len(corpus):,} documents are longer than a row of {seq_len:,} tokens "
            f"and are left out (the longest takes {int(corpus.lengths.max()) + 1:,})"
        )
    return notes


def _cut_longest(corpus: Corpus, fraction: float, tokenizer: Tokenizer) -> tuple[Corpus, Corpus]:
    """The corpus without the last `fraction` of its longest document, and that part."""
    longest = int(corpus.lengths.argmax())
    length = int(corpus.lengths[longest])
    cut = length - max(1, round(length * fraction))
    tail = tokenizer.decode(corpus.tokens(longest, cut).tolist())
    while cut > 0 and tail.startswith("\ufffd"):
        cut -= 1
        tail = tokenizer.decode(corpus.tokens(longest, cut).tolist())
    if cut <= 0:
        return corpus, corpus.pick(np.zeros(0, np.int64))
    n_bytes = len(tail.encode())
    head = corpus.shorten(longest, 0, cut, int(corpus.n_bytes[longest]) - n_bytes)
    return head, corpus.shorten(longest, cut, length, n_bytes).pick(np.array([longest]))


def _skipped(found: CategorySources, folders: list[ShardFolder]) -> Skipped:
    total = Skipped(Counter(found.skipped.counts), dict(found.skipped.names))
    for folder in folders:
        known = folder.manifest.left_out()
        for reason, n in known.counts.items():
            # Files are counted anew with every search; the manifest of a cached folder has an earlier one's.
            if folder.folder in found.prepared or reason not in OF_FILES:
                total.counts[reason] += n
                total.names.setdefault(reason, known.names.get(reason, []))
    return total
