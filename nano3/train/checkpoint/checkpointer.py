"""Checkpoints of the full training state: sharded, atomic, checked, written in the background.

A checkpoint is a folder `step-N` that holds safetensors files written by torch.distributed.checkpoint (so that it
loads on any number of ranks; nothing in it is pickled), `state.json`, and `manifest.json` with the size and CRC-32 of
every file. It is written under a temporary name and renamed when all of it is on disk; one of the same step that is in
the way is `step-N.old` meanwhile, which counts as a checkpoint too. Each rank checksums what it
wrote, and before a resume what it is about to read; what one rank finds counts for all.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from nano3.config.errors import UserError
from nano3.files import fsync
from nano3.model.find import STEP_FOLDER
from nano3.reading import read_json
from nano3.train.checkpoint.files import (
    MANIFEST,
    STATE,
    Reader,
    Writer,
    Written,
    damage,
    files_read,
    listed_files,
    manifest_of,
    read_headers,
)
from nano3.train.checkpoint.snapshot import RNG
from nano3.train.world import World, attempt

OLD = ".old"
"""Ends the name of a checkpoint that another of the same step takes the place of."""
KEPT = "kept"
"""An empty file in a checkpoint's folder: this one is not deleted when newer ones are written."""

# Saving from one process is what a world of one means to do.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class CheckpointError(UserError):
    """A checkpoint could not be written or read."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk."""

    path: Path
    """Its folder."""
    state: dict[str, Any]
    """Contents of state.json."""
    named: bool = False
    """It was asked for by its step."""


class Checkpointer:
    """Writes, finds and prunes checkpoints in one folder; at most one save is under way at a time.

    Args:
        folder: RUN/checkpoints.
        keep: newest checkpoints kept.
        asynchronous: write in the background, from a copy of the state in main memory.
        world: the processes that save together.
        say: takes messages for the user.
    """

    def __init__(self, folder: Path, keep: int, asynchronous: bool, world: World, say: Callable[[str], None]) -> None:
        if keep < 1:
            raise ValueError(f"checkpoint.keep is {keep}; at least one checkpoint must be kept")
        self.folder, self.keep, self.asynchronous, self.world, self.say = folder, keep, asynchronous, world, say
        self._pending: tuple[Future[Any], Path] | None = None

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any], safe_step: int | None = None) -> None:
        """Save `tensors` and the JSON values `state` as step-N; an asynchronous save goes on after this returns.

        Ranks may have different tensors; those of one name are the same, or parts of one (DTensor). Of the older
        checkpoints the newest `keep` - 1 stay, those that are marked by `keep_checkpoint`, and the newest one of
        `safe_step` or before.

        Raises:
            CheckpointError: this save, or the one before, failed on some rank; older checkpoints are intact.
        """
        self.wait()
        final = self.folder / f"step-{step}"
        partial = partial_name(final)
        self._agree(final, attempt(lambda: _make_empty(partial)) if self.world.is_main else None)
        writer = Writer(partial)
        if self.asynchronous:
            future = async_save(tensors, storage_writer=writer, **group_options(self.world))
            assert isinstance(future, Future)
            self._pending = _chain(future, lambda: self._publish(writer, final, state, safe_step)), final
            return
        error = attempt(lambda: save(tensors, storage_writer=writer, **group_options(self.world)))
        self._agree(final, error or attempt(lambda: self._publish(writer, final, state, safe_step)))

    def poll(self) -> None:
        """Raise CheckpointError if a background save failed; ranks with peers learn it together, at the next `wait`."""
        if self.world.size == 1 and self._pending is not None and self._pending[0].done():
            self.wait()

    def wait(self) -> None:
        """Wait for a background save, on every rank; raise CheckpointError on all of them if it failed on one."""
        if self._pending is None:
            return
        (future, final), self._pending = self._pending, None
        self._agree(final, attempt(future.result))

    def close(self) -> None:
        """Wait for a background save without the other ranks, which may be gone; a failure is only reported."""
        if self._pending is None:
            return
        (future, final), self._pending = self._pending, None
        error = attempt(future.result)
        if error is not None:
            self.say(str(self._failed(final, _reason(error))))

    def find(self, tensors: Mapping[str, Tensor] | None = None, step: int | None = None) -> Saved | None:
        """The newest undamaged checkpoint, or that of `step`; None if there is none at all and no step is named.
        Damaged ones are reported and passed over.

        Every rank compares the sizes of all files, and the contents of those that it is going to read; files that none
        reads are shared out.

        Args:
            tensors: what this rank is going to load.
            step: take its checkpoint and no other.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged; or none of `step`, or that one is damaged.
        """
        found = self.world.from_main(step_folders(self.folder) if self.world.is_main else [])
        folders = found if step is None else [folder for folder in found if step_of(folder) == step]
        if step is not None and not folders:
            raise CheckpointError(_no_such_step(self.folder, step, found))
        for folder in folders:
            problem = self._damage(folder, tensors or {})
            if problem is None:
                return Saved(folder, read_json(folder / STATE), named=step is not None)
            if self.world.is_main:
                before = "; trying the one before" if step is None else ""
                self.say(f"checkpoint {folder} is damaged ({problem}){before}")
        if step is not None:
            raise CheckpointError(f"the checkpoint of step {step} in {self.folder} is damaged: name another step")
        if folders:
            many = f"all {len(folders)} checkpoints in {self.folder} are damaged"
            raise CheckpointError(f"{many}: start again in another run folder")
        return None

    def clean(self, used: Saved | None = None) -> None:
        """Remove what an interrupted save left behind, and rename the checkpoints after `used`: they are damaged, or
        were passed over for one that was asked for by its step, which is then kept."""
        if not self.world.is_main or not self.folder.exists():
            return
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        folders = step_folders(self.folder)
        for later in folders[: folders.index(used.path)] if used is not None else []:
            aside = later.with_name(f"{later.name}.{'later' if used is not None and used.named else 'damaged'}")
            shutil.rmtree(aside, ignore_errors=True)
            later.rename(aside)
            self.say(f"{later} is now {aside.name}: delete it when you need the space")
        if used is not None and used.named:
            keep_checkpoint(used.path)
        for replaced in self.folder.glob(f"step-*{OLD}"):
            if replaced.with_suffix("").exists():
                _remove(replaced)

    def _damage(self, folder: Path, tensors: Mapping[str, Tensor]) -> str | None:
        """The first thing that any rank finds wrong with a checkpoint, on every rank."""
        if (problem := self._first(damage(folder, [STATE]))) is not None:
            return problem
        headers, problem = _headers(folder, self.world)
        if headers is None:
            return problem
        mine: set[str] = set()
        error = attempt(lambda: mine.update(files_read(tensors, headers)))
        if (problem := self._first(f"its headers do not fit together: {error}" if error else None)) is not None:
            return problem
        rest = sorted(set(listed_files(folder)).difference(*self.world.gather(mine)))
        return self._first(damage(folder, [*mine, *rest[self.world.rank :: self.world.size]]))

    def _first(self, problem: str | None) -> str | None:
        return next((found for found in self.world.gather(problem) if found is not None), None)

    def _agree(self, final: Path, error: BaseException | None) -> None:
        """Raise CheckpointError on every rank if any of them has an error."""
        reasons = [reason for reason in self.world.gather(None if error is None else _reason(error)) if reason]
        if reasons:
            raise self._failed(final, reasons[0]) from error

    def _publish(self, writer: Writer, final: Path, state: dict[str, Any], safe_step: int | None) -> None:
        """On the main rank, after every rank wrote its files: add the manifest, rename, prune."""
        if not self.world.is_main:
            return
        partial = writer.folder
        _write_json(partial / STATE, state)
        _write_json(partial / MANIFEST, manifest_of([*writer.written, Written.of(partial / STATE)]))
        fsync(partial)
        _rename_over(partial, final)
        self._prune(step_of(final), safe_step)

    def _prune(self, step: int, safe_step: int | None) -> None:
        """Remove checkpoints from before `step` that nothing keeps."""
        older = [folder for folder in step_folders(self.folder) if step_of(folder) < step]
        safe = next((f for f in older if safe_step is not None and step_of(f) <= safe_step), None)
        for old in [folder for folder in older if not (folder / KEPT).exists()][self.keep - 1 :]:
            if old != safe:
                _remove(old)

    def _failed(self, final: Path, reason: str) -> CheckpointError:
        shutil.rmtree(partial_name(final), ignore_errors=True)
        kept = next((str(f) for f in step_folders(self.folder) if damage(f, []) is None), None)
        last = f"the last good checkpoint is {kept}" if kept else "there is no earlier checkpoint"
        return CheckpointError(f"cannot write checkpoint {final}: {reason}; {last}")


def load_tensors(path: Path, tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Fill `tensors` in place from checkpoint `path`; returns those it has (optional ones may be missing).

    Raises:
        CheckpointError: a weight or moment is missing or has another shape.
    """
    headers = _headers_or_error(path, world)
    there = headers.state_dict_metadata
    wanted = {name: value for name, value in tensors.items() if name in there or not name.startswith(RNG)}
    for name, value in wanted.items():
        saved = there.get(name)
        if not isinstance(saved, TensorStorageMetadata):
            raise CheckpointError(f"checkpoint {path} has no tensor {name}: it belongs to another model")
        if tuple(saved.size) != tuple(value.shape):
            shapes = f"{tuple(saved.size)} in the checkpoint, {tuple(value.shape)} in the model"
            raise CheckpointError(f"checkpoint {path}: tensor {name} is {shapes}")
    load(wanted, storage_reader=Reader(path, headers), **group_options(world))
    return wanted


def stored_tensors(path: Path, prefix: str, world: World) -> dict[str, Tensor]:
    """Empty tensors of the type and shape of those in checkpoint `path` whose names begin with `prefix`."""
    there = _headers_or_error(path, world).state_dict_metadata
    found = {name: value for name, value in there.items() if name.startswith(prefix)}
    return {
        name: torch.empty(value.size, dtype=value.properties.dtype)
        for name, value in found.items()
        if isinstance(value, TensorStorageMetadata)
    }


def _headers(path: Path, world: World) -> tuple[Metadata | None, str | None]:
    """What the headers of all files of a checkpoint say, or why they cannot be read; the main rank reads them for all.

    Each rank for itself would open ranks x files.
    """

    def read() -> tuple[Metadata | None, str | None]:
        try:
            return read_headers(path), None
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            return None, f"a header cannot be read: {error}"

    return world.from_main(read() if world.is_main else (None, None))


def _headers_or_error(path: Path, world: World) -> Metadata:
    headers, problem = _headers(path, world)
    if headers is None:
        raise CheckpointError(f"checkpoint {path}: {problem}")
    return headers


def step_folders(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, newest first, whether damaged or not."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and STEP_FOLDER.fullmatch(p.name)]
    return sorted(found, key=lambda p: (step_of(p), p.suffix != OLD), reverse=True)


def keep_checkpoint(folder: Path) -> None:
    """Mark a checkpoint, so that it is not deleted when newer ones are written."""
    (folder / KEPT).touch()


def step_of(folder: Path) -> int:
    """Step of a checkpoint, from its name."""
    return int(folder.name.removeprefix("step-").removesuffix(OLD))


def group_options(world: World) -> dict[str, Any]:
    """Arguments that tell torch.distributed.checkpoint which processes take part."""
    return {"process_group": world.background, "no_dist": world.size == 1}


def partial_name(final: Path) -> Path:
    """Temporary name of a checkpoint that is being written."""
    return final.with_name(f".{final.name}.partial")


def _chain(future: Future[Any], then: Callable[[], None]) -> Future[None]:
    """A future that is done after `future` and then `then()`; errors of both come out of `result()`."""
    after: Future[None] = Future()

    def run(done: Future[Any]) -> None:
        try:
            done.result()
            then()
            after.set_result(None)
        except BaseException as error:
            after.set_exception(error)

    future.add_done_callback(run)
    return after


def _no_such_step(folder: Path, step: int, found: list[Path]) -> str:
    steps = ", ".join(str(there) for there in sorted({step_of(path) for path in found}))
    return f"{folder} has no checkpoint of step {step}: " + (f"there is {steps}" if steps else "there is none yet")


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _rename_over(new: Path, final: Path) -> None:
    """Put `new` at `final`; what is in the way stays a checkpoint until it is there."""
    aside = final.with_name(f"{final.name}{OLD}")
    if final.exists():
        _remove(aside)
        final.rename(aside)
    new.rename(final)
    fsync(final.parent)
    _remove(aside)


def _remove(folder: Path) -> None:
    """Remove a checkpoint: first the manifest, so that a half-removed one is never taken for whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _reason(error: BaseException) -> str:
    """The first operating system error inside `error` in few words, else its last line."""
    failures = getattr(error, "failures", {})
    for failure in failures.values():
        cause = failure[0] if isinstance(failure, tuple) else failure
        return _reason(cause)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
