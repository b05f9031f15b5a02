"""A folder to an FP8 folder: calibrated and written block by block, one block in memory at a time (report section 4).

Beside the new folder a work folder holds the residual stream of the calibration rows, the files that are written and
how far they are; a run that was killed goes on from its last whole block and ends with the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.files import atomic_folder, exclusive, write_atomic
from nano3.kernels.scaled import E4M3
from nano3.model.hf.config import read_stage
from nano3.model.hf.files import weight_files
from nano3.model.hf.names import named_tensors
from nano3.model.hf.read import check_stored
from nano3.model.hf.write import check_replaceable, copy_companions, plan_files, write_rest
from nano3.model.lm import LM
from nano3.progress import Progress
from nano3.quantize.fp8 import error_of, scale_of, to_fp8
from nano3.quantize.hidden import HiddenFiles
from nano3.quantize.mark import marked_model
from nano3.quantize.observe import Observed
from nano3.quantize.policy import Selection
from nano3.quantize.rows import CalibrationRows
from nano3.quantize.shard_files import ShardFiles, check_disk
from nano3.quantize.walk import Walk
from nano3.reading import read_json

WORK_SUFFIX = ".part"
STATE, FILES = "state.json", "model"
EMBEDDINGS = -1
NOT_FINITE = "holds a number that is not finite: this model cannot be quantized"
SHARD_BYTES = 5_000_000_000


@dataclass
class State:
    """How far a run is, and what it has seen; kept as JSON, whose numbers are exact."""

    identity: str
    next: int = EMBEDDINGS
    """Part that comes next: -1 the embeddings, then the blocks, last what follows them."""
    largest: dict[str, dict[str, float]] = field(default_factory=dict)
    """Block -> largest magnitudes by module (nano3.quantize.observe)."""
    silent: dict[str, list[int]] = field(default_factory=dict)
    """Block -> experts that no calibration token was given to."""
    errors: dict[str, float] = field(default_factory=dict)
    """Published module of each FP8 matrix -> its relative error."""


@dataclass(frozen=True)
class Quantized:
    """What a run has made."""

    folder: Path
    selection: Selection
    bytes: int
    """Of the new files with tensors."""
    silent: dict[int, list[int]]
    """Block -> experts without a calibration token; their matrices have the inputs' scale of the whole block."""
    errors: dict[str, float]
    """Published module -> root of the mean squared error as a share of the root mean square of its weight."""
    unused: list[str]
    """Modules whose inputs were 0 for every calibration token; their input scale is 1."""


def quantize_folder(
    source: Path,
    out: Path,
    selection: Selection,
    rows: CalibrationRows,
    say: Callable[[str], None] = lambda line: None,
    shard_bytes: int = SHARD_BYTES,
) -> Quantized:
    """Write `out` as the FP8 form of the Hugging Face folder `source`.

    Args:
        source: unquantized weights of `selection.cfg`.
        out: appears whole or not at all; a model there is replaced.
        selection: what becomes FP8.
        rows: what activations are looked at with; row by row as ModelOpt's loop, in packed batches.
        say: gets lines for the user.
        shard_bytes: largest file.

    Raises:
        UserError: weights or rows that do not fit the model, nothing to quantize, or `out` holds anything but a model.
    """
    _check(source, out, selection, rows)
    work = work_folder(out)
    model = marked_model(selection, read_stage(source))
    shards = ShardFiles(work / FILES, plan_files(model, torch.bfloat16, shard_bytes))
    with exclusive(work):
        run = _Run(source, selection, rows, shards, work)
        run.begin(say)
        with torch.inference_mode(), Progress(selection.cfg.n_blocks, run.cost, things="blocks") as progress:
            run.go(progress)
        with atomic_folder(out) as folder:
            write_rest(folder, plan_files(model, torch.bfloat16, shard_bytes), model, torch.bfloat16, None)
            copy_companions(source, folder)
            for file in sorted((work / FILES).iterdir()):
                file.rename(folder / file.name)
    shutil.rmtree(work, ignore_errors=True)
    return run.result(out)


def work_folder(out: Path) -> Path:
    """Where a run keeps what it needs to go on."""
    return out.with_name(f".{out.name}{WORK_SUFFIX}")


def _check(source: Path, out: Path, selection: Selection, rows: CalibrationRows) -> None:
    if selection.nothing:
        raise UserError("the policy leaves everything as it is: nothing would be quantized")
    if out.resolve() in (source.resolve(), source.resolve().parent):
        raise UserError(f"--out {out}: is the model itself; give another folder")
    check_replaceable(out)
    if rows.largest_id >= selection.cfg.vocab_size:
        raise UserError(f"a calibration row has token {rows.largest_id}; the model has {selection.cfg.vocab_size}")
    with torch.device("meta"):
        check_stored(LM(selection.cfg), source)


class _Run:
    """One run; `go` may begin anywhere between two parts."""

    def __init__(
        self, source: Path, selection: Selection, rows: CalibrationRows, shards: ShardFiles, work: Path
    ) -> None:
        self.source, self.selection, self.rows, self.shards, self.work = source, selection, rows, shards, work
        with torch.device("meta"):
            self.model = LM(selection.cfg).eval()
        self.activations = torch.bfloat16  # whatever is fast here: scales are the same on every machine
        self.hidden = HiddenFiles(work, selection.cfg.d_model, self.activations)
        self.walk = Walk(source, self.model, torch.bfloat16, rows, self.hidden)  # as ModelOpt reads weights
        self.n_blocks = selection.cfg.n_blocks
        self.cost = float(rows.tokens * self.n_blocks)
        self.state = State(self._identity())

    def begin(self, say: Callable[[str], None]) -> None:
        """Take up what an earlier run of the same inputs left, or make room for a new one."""
        found = _read_state(self.work / STATE)
        if found is not None and found.identity == self.state.identity and self.shards.are_whole():
            self.state = found
            say(f"going on after {max(0, found.next)} of {self.n_blocks} blocks ({self.work})")
            return
        shutil.rmtree(self.work / FILES, ignore_errors=True)
        self.hidden.remove()
        need = self.shards.total_bytes + 2 * self._hidden_bytes()
        check_disk(self.work, need, ", or fewer or shorter calibration rows")
        self.shards.create()
        self._keep()

    def go(self, progress: Progress) -> None:
        """All parts that are left."""
        progress.done, progress.spent = max(0, self.state.next), max(0, self.state.next) * float(self.rows.tokens)
        for part in range(self.state.next, self.n_blocks + 1):
            if part == EMBEDDINGS:
                self._embeddings()
            elif part < self.n_blocks:
                self._block(part, progress)
            else:
                self._head()
            self.shards.sync()
            self.hidden.sync(part + 1)
            self.state.next = part + 1
            self._keep()

    def result(self, out: Path) -> Quantized:
        """What became of it."""
        silent = {int(block): experts for block, experts in self.state.silent.items() if experts}
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        return Quantized(out, self.selection, size, silent, self.state.errors, self._unused())

    def _embeddings(self) -> None:
        with self.walk.loaded("embeddings."):
            self.walk.embed()
            self._write("embeddings.", {})

    def _block(self, number: int, progress: Progress) -> None:
        prefix, found = f"blocks.{number}.", Observed()
        with self.walk.loaded(prefix):
            with self._finite(prefix, f"block {number}"):
                self.walk.block(number, found, progress.tick)
            self.state.largest[str(number)] = found.largest
            self.state.silent[str(number)] = found.silent()
            self._write(prefix, found.largest)
        progress.sample(float(self.rows.tokens), f"block {number}")

    def _head(self) -> None:
        found = Observed()
        with self.walk.loaded("norm_f."):
            if "lm_head" in self.selection.chosen:
                with self._finite("norm_f.", "the output projection"):
                    self.walk.final_norm(found)
            self._write("norm_f.", {})
        with self.walk.loaded("lm_head."):
            self.state.largest["head"] = found.largest
            self._write("lm_head.", found.largest)

    @contextmanager
    def _finite(self, prefix: str, where: str) -> Iterator[None]:
        """An activation of the part that no scale holds as an error for the user, and a weight that is why."""
        try:
            yield
        except FloatingPointError as error:
            for name in self.shards.names:
                stored = self.shards.place(name)
                if stored.ours.startswith(prefix) and not stored.ours.endswith("_scale"):
                    value = dict(named_tensors(self.model))[stored.ours]
                    if not bool((value if stored.expert is None else value[stored.expert]).isfinite().all()):
                        raise UserError(f"{self.source}: {name} {NOT_FINITE}") from None
            raise UserError(f"{self.source}: {where}: {error} as input or output in bf16, of which no scale can be "
                            "made: look for damage in the model or the calibration rows") from None  # fmt: skip

    def _write(self, prefix: str, largest: dict[str, float]) -> None:
        """All tensors of a part, its chosen matrices quantized."""
        values = {name: value for name, value in named_tensors(self.model) if name.startswith(prefix)}
        for name in self.shards.names:
            stored = self.shards.place(name)
            if not stored.ours.startswith(prefix):
                continue
            if stored.ours.endswith("_scale"):
                self._write_cache_scale(name, largest)
                continue
            value = values[stored.ours]
            value = value if stored.expert is None else value[stored.expert]
            if stored.dtype == E4M3:
                self._write_fp8(name, value, scale_of(largest.get(_module(stored.ours), 0.0)))
            else:
                self.shards.write(name, value)

    def _write_fp8(self, name: str, weight: Tensor, input_scale: Tensor) -> None:
        stem = name.removesuffix(".weight")
        try:
            data, scale = to_fp8(weight)
        except ValueError:
            raise UserError(f"{self.source}: {name} {NOT_FINITE}") from None
        self.shards.write(name, data)
        self.shards.write(f"{stem}.weight_scale", scale)
        self.shards.write(f"{stem}.input_scale", input_scale)
        self.state.errors[stem] = error_of(weight, data, scale)

    def _write_cache_scale(self, name: str, largest: dict[str, float]) -> None:
        """Of keys or values; those of matrices are written with these."""
        if name.endswith((".k_scale", ".v_scale")):
            self.shards.write(name, scale_of(largest.get(name.partition(".mixer.")[2], 0.0)))

    def _unused(self) -> list[str]:
        return [
            matrix.name
            for matrix in self.selection.matrices
            if matrix.name in self.selection.chosen
            and not self.state.largest["head" if matrix.block < 0 else str(matrix.block)].get(
                matrix.name.partition(".mixer.")[2] or matrix.name, 0.0
            )
        ]

    def _identity(self) -> str:
        """What a run is made of: it goes on only with the same."""
        files = [*weight_files(self.source), self.source / "config.json"]
        sizes = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        parts = [str(self.source.resolve()), sizes, sorted(self.selection.chosen), self.selection.cached]
        return json.dumps([*parts, self.rows.fingerprint, str(self.activations), self.shards.total_bytes])

    def _hidden_bytes(self) -> int:
        return self.rows.tokens * self.selection.cfg.d_model * self.activations.itemsize

    def _keep(self) -> None:
        write_atomic(self.work / STATE, json.dumps(asdict(self.state)) + "\n")


def _module(ours: str) -> str:
    """Of nano3's name of a weight its module's name as calibration has it."""
    name = ours.partition(".mixer.")[2] or ours
    return name.removesuffix(".weight")


def _read_state(file: Path) -> State | None:
    try:
        values: dict[str, Any] = read_json(file)
        return State(**values)
    except (OSError, UserError, TypeError):
        return None
