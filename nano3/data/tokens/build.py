"""From inputs to a prepared folder: read, encode on all cores, write shards, go on where a killed run stopped."""

from __future__ import annotations

import hashlib
import itertools
import json
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nano3.config.errors import UserError
from nano3.data.files import locked
from nano3.data.progress import Progress, silent
from nano3.data.texts.readers import Document, Input
from nano3.data.texts.skipped import Skipped
from nano3.data.tokens.shards import (
    PLAN,
    SHARD_TOKENS,
    EncodedDocument,
    Manifest,
    ShardMeta,
    finished_shards,
    is_prepared,
    read_manifest,
    token_dtype,
    write_manifest,
    write_shard,
)
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.files import write_atomic
from nano3.reading import read_json

BATCH_CHARACTERS = 1 << 22
PIECE_CHARACTERS = 1 << 20
"""Longer documents are encoded in pieces: on all cores, in bounded memory."""


@dataclass(frozen=True)
class _Item:
    """One document (None: skipped) and where the inputs stand after it."""

    document: Document | None
    input_number: int
    next_item: int
    skipped: Skipped
    bytes_done: int


def content_hash(text: str) -> int:
    """64-bit hash of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def build_key(inputs: Sequence[Input], tokenizer: Tokenizer) -> str:
    """Hash of all that decides the shards."""
    digest = hashlib.blake2b(tokenizer.fingerprint().encode(), digest_size=12)
    for source in inputs:
        digest.update(
            b"\0"
            + source.name.encode("utf-8", "surrogateescape")
            + b"\0"
            + source.identity().encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


def build(
    folder: Path,
    inputs: Sequence[Input],
    tokenizer: Tokenizer,
    *,
    sources: Sequence[str] = (),
    left_out: Skipped | None = None,
    progress: Progress = silent,
    shard_tokens: int = SHARD_TOKENS,
) -> Manifest:
    """Fill `folder` with the shards of all inputs; what an earlier, killed run finished is kept.

    `left_out`: files that are no inputs, for the manifest.

    Raises:
        UserError: the folder holds shards of other inputs, or no input has a usable document.
    """
    key = build_key(inputs, tokenizer)
    manifest = _complete(folder, key)
    if manifest is not None:
        return manifest
    with locked(folder):
        manifest = _complete(folder, key)
        if manifest is not None:
            return manifest
        _write_plan(folder, key, shard_tokens)
        tokenizer.save(folder / "tokenizer")
        metas, skipped = _write_shards(folder, inputs, tokenizer, finished_shards(folder), progress, shard_tokens)
        all_skipped = skipped + left_out if left_out else skipped
        if not metas:
            line = all_skipped.line() or "none"
            raise UserError(f"no usable document in {', '.join(sources) or 'the inputs'} (skipped: {line})")
        manifest = _manifest(key, metas, tokenizer, all_skipped, sources)
        write_manifest(folder, manifest)
        return manifest


def _complete(folder: Path, key: str) -> Manifest | None:
    """The manifest of a folder that holds all it should; None when shards are to be written."""
    if not is_prepared(folder):
        return None
    manifest = read_manifest(folder)
    _check_same(folder, manifest.key, key)
    return manifest if len(finished_shards(folder)) >= manifest.shards else None


def _manifest(
    key: str, metas: list[ShardMeta], tokenizer: Tokenizer, skipped: Skipped, sources: Sequence[str]
) -> Manifest:
    return Manifest(
        key=key,
        shards=len(metas),
        documents=sum(meta.documents for meta in metas),
        tokens=sum(meta.tokens for meta in metas),
        bytes=sum(meta.bytes for meta in metas),
        dtype=metas[0].dtype,
        vocab_size=tokenizer.vocab_size,
        skipped=dict(skipped.counts),
        named=skipped.names,
        sources=list(sources),
    )


def _check_same(folder: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise UserError(
            f"{folder} holds shards of other inputs or of another tokenizer: choose another folder or delete it"
        )


def _write_plan(folder: Path, key: str, shard_tokens: int) -> None:
    """Note what this folder is going to hold, so that a later run can tell whether to go on or to refuse."""
    path = folder / PLAN
    plan = {"key": key, "shard_tokens": shard_tokens}
    if path.is_file():
        _check_same(folder, json.dumps(read_json(path)), json.dumps(plan))
    elif any(entry.name != ".lock" for entry in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no prepared data: choose another folder")
    write_atomic(path, json.dumps(plan).encode())


def _write_shards(
    folder: Path,
    inputs: Sequence[Input],
    tokenizer: Tokenizer,
    metas: list[ShardMeta],
    progress: Progress,
    shard_tokens: int,
) -> tuple[list[ShardMeta], Skipped]:
    """Write all shards after the finished ones; returns every meta and what was left out in all."""
    dtype = token_dtype(tokenizer.vocab_size)
    total = sum(source.size for source in inputs)
    last = metas[-1] if metas else None
    reached, skipped = ((last.next_input, last.next_item), last.left_out()) if last else ((0, 0), Skipped())
    pending: list[EncodedDocument] = []
    n_pending = 0
    for item, encoded in _encode(_items(inputs, reached, skipped), tokenizer):
        reached, skipped = (item.input_number, item.next_item), item.skipped
        if encoded is not None:
            pending.append(encoded)
            n_pending += len(encoded.ids)
        if n_pending >= shard_tokens:
            metas.append(write_shard(folder, len(metas), pending, dtype, reached, skipped))
            pending, n_pending = [], 0
        progress("tokens", item.bytes_done, total)
    if pending:
        metas.append(write_shard(folder, len(metas), pending, dtype, (len(inputs), 0), skipped))
    return metas, skipped


def _items(inputs: Sequence[Input], start: tuple[int, int], before: Skipped) -> Iterator[_Item]:
    """Items of all inputs from position `start` on; `before`: what was left out until there."""
    skipped, now = before.copy(), before
    done = sum(source.size for source in inputs[: start[0]])
    for number in range(start[0], len(inputs)):
        passed = start[1] if number == start[0] else 0
        documents = inputs[number].documents(skipped)
        for _ in itertools.islice(documents, passed):
            pass
        if passed:
            skipped.reset(before)
        read = 0
        for position, document in enumerate(documents, start=passed + 1):
            if document is None:
                now = skipped.copy()
            else:
                read += len(document.text)
            yield _Item(document, number, position, now, done + min(read, inputs[number].size))
        done += inputs[number].size


def _encode(items: Iterator[_Item], tokenizer: Tokenizer) -> Iterator[tuple[_Item, EncodedDocument | None]]:
    """Items with their token ids, in order; reading runs ahead in a thread while the tokenizer uses all cores."""
    for batch in _read_ahead(_batches(items)):
        documents = [item.document for item in batch if item.document is not None]
        encoded = iter(encode_documents(documents, tokenizer))
        for item in batch:
            yield item, None if item.document is None else next(encoded)


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[EncodedDocument]:
    """Token ids of documents, on all cores."""
    pieces = [list(_pieces(document.text)) for document in documents]
    ids = _encode_pieces([piece for document in pieces for piece in document], tokenizer)
    for document, parts in zip(documents, pieces, strict=True):
        tokens = [next(ids) for _ in parts]
        yield EncodedDocument(
            document.name, np.concatenate(tokens), len(document.text.encode()), content_hash(document.text)
        )


def _encode_pieces(pieces: Sequence[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Ids of each piece. The tokenizer takes about 40 bytes for one of text while it works, so few go at once."""
    group: list[str] = []
    for number, piece in enumerate(pieces, start=1):
        group.append(piece)
        if number == len(pieces) or sum(map(len, group)) + len(pieces[number]) > BATCH_CHARACTERS:
            yield from (np.asarray(ids, dtype=np.uint32) for ids in tokenizer.encode_batch(group))
            group = []


def _pieces(text: str) -> Iterator[str]:
    """A long text cut at starts of lines, where the tokenizer would cut too."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        stop = start + PIECE_CHARACTERS
        cut = text.rfind("\n", start, stop - 1) + 1
        while cut > start and not text[cut].isalpha():
            cut = text.rfind("\n", start, cut - 1) + 1
        stop = cut if cut > start else stop
        yield text[start:stop]
        start = stop
    yield text[start:]


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item.document.text) if item.document else 64
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_ahead(batches: Iterator[list[_Item]]) -> Iterator[list[_Item]]:
    """The same batches, produced by a thread that stays at most two ahead."""
    ready: queue.Queue[list[_Item] | BaseException | None] = queue.Queue(maxsize=2)
    stop = threading.Event()

    def put(value: list[_Item] | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            if all(put(batch) for batch in batches):
                put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=produce, name="nano3-read-ahead", daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not None:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
