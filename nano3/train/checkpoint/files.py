"""The files of a checkpoint: who writes which, their sizes and checksums, and which of them a rank reads.

Each rank writes safetensors files of its own, and checksums them; the main rank lists them all in the manifest.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from nano3.reading import read_json

MANIFEST, STATE = "manifest.json", "state.json"
FILE_BYTES = 1 << 30
"""Tensors are grouped into files of about this size; one file at a time is copied in memory while it is written."""


@dataclass(frozen=True)
class Written:
    """A file on disk."""

    name: str
    bytes: int
    crc32: int

    @classmethod
    def of(cls, path: Path) -> Written:
        """Read the file at `path`."""
        return cls(path.name, path.stat().st_size, crc32(path))


class Writer(HuggingFaceStorageWriter):
    """Writes each rank's shares of the tensors to files of about FILE_BYTES that no other rank writes to.

    Ranks may hold different tensors: the files are numbered from the plans of all of them.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), {}, save_distributed=True)
        self.folder = folder
        self.written: list[Written] = []
        """On the main rank, once all is written: every rank's files."""

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tell each rank its number and the file of each of its tensors."""
        return [
            dataclasses.replace(plan, storage_data={"shard_index": i, "fqn_to_index_mapping": file_numbers(plan.items)})
            for i, plan in enumerate(plans, start=1)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files, then checksum them."""
        results = super().write_data(plan, planner).wait()
        files = {name: Written.of(self.folder / name) for name in {r.storage_data.relative_path for r in results}}
        done: Future[list[WriteResult]] = Future()
        done.set_result([dataclasses.replace(r, storage_data=files[r.storage_data.relative_path]) for r in results])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the main rank: take what every rank says of its files."""
        self.written = sorted({r.storage_data for of_rank in results for r in of_rank}, key=lambda file: file.name)


class Reader(HuggingFaceStorageReader):
    """Reads tensors whose places in the files are known."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(str(path))
        self.metadata = metadata

    def read_metadata(self) -> Metadata:
        """What the headers of all files say."""
        return self.metadata


def read_headers(path: Path) -> Metadata:
    """Names, shapes and places of all tensors of the checkpoint at `path`."""
    return HuggingFaceStorageReader(str(path)).read_metadata()


def files_read(tensors: Mapping[str, Tensor], metadata: Metadata) -> set[str]:
    """Names of the files that hold parts of `tensors` (those of them that the checkpoint has)."""
    there = metadata.state_dict_metadata
    known = {name: value for name, value in tensors.items() if saved_shape(there.get(name)) == tuple(value.shape)}
    plan = create_default_local_load_plan(known, metadata)
    places: dict[Any, Any] = metadata.storage_data
    return {Path(places[item.storage_index].relative_path).name for item in plan.items}


def saved_shape(saved: Any) -> tuple[int, ...] | None:
    """Shape of a tensor of a checkpoint; None if there is none."""
    return tuple(saved.size) if isinstance(saved, TensorStorageMetadata) else None


def file_numbers(items: Collection[WriteItem]) -> dict[str, int]:
    """File number (from 1) of each tensor that one rank writes, so that its files stay near FILE_BYTES."""
    sizes: dict[str, int] = {}
    for item in items:
        assert item.tensor_data is not None, "only tensors are saved"
        size = math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize
        sizes[item.index.fqn] = sizes.get(item.index.fqn, 0) + size
    numbers, number, filled = {}, 1, 0
    for name, size in sizes.items():
        if filled and filled + size > FILE_BYTES:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += size
    return numbers


def manifest_of(files: Collection[Written]) -> dict[str, Any]:
    """Contents of the manifest."""
    return {"format": 1, "files": {file.name: {"bytes": file.bytes, "crc32": file.crc32} for file in files}}


def listed_files(path: Path) -> list[str]:
    """Names of the files of the checkpoint at `path`, whose manifest is whole."""
    return list(read_json(path / MANIFEST)["files"])


def damage(path: Path, checked: Collection[str] | None = None) -> str | None:
    """What is wrong with the checkpoint at `path`: a missing, short or altered file; None if nothing was found.

    Args:
        path: its folder.
        checked: names of the files whose contents are compared with their checksums; None: all of them.
    """
    try:
        files = read_json(path / MANIFEST)["files"]
        problems = (
            _damage(path / name, expected, checked is None or name in checked) for name, expected in files.items()
        )
        problem = next(filter(None, problems), None)
        return problem or (None if STATE in files else f"{STATE} is not listed")
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return f"{MANIFEST} cannot be read: {error}"


def _damage(file: Path, expected: dict[str, int], contents: bool) -> str | None:
    try:
        size = file.stat().st_size
        if size != expected["bytes"]:
            return f"{file.name} has {size} bytes, not {expected['bytes']}"
        if contents and crc32(file) != expected["crc32"]:
            return f"{file.name} does not match its checksum"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
    return None


def crc32(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
