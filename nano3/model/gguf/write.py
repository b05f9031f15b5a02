"""A model as one GGUF file for llama.cpp and the programs built on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.config.model import MOE
from nano3.files import fsync
from nano3.installation import install_command
from nano3.kernels import Scaled
from nano3.kernels.scaled import FLOATS
from nano3.model.gguf import metadata, vocabulary
from nano3.model.gguf.header import MAGIC
from nano3.model.gguf.names import DENSE, OUTPUT, SPARSE, gguf_name, is_matrix, to_gguf
from nano3.model.hf.names import named_tensors
from nano3.model.lm import LM
from nano3.model.lora.merge import unmerged

TYPES = {"f32": "F32", "bf16": "BF16", "q8_0": "Q8_0", "q5_0": "Q5_0", "q4_0": "Q4_0"}
"""Type of a file's matrices -> llama.cpp's name. Those with q have blocks of 32 weights with one scale."""
FILE_TYPES = {"f32": 0, "bf16": 32, "q8_0": 7, "q5_0": 8, "q4_0": 2}
"""Type -> `general.file_type`."""
BLOCK, QUANTIZATION_VERSION = 32, 2


@dataclass
class Written:
    """What went into a file."""

    tensors: int = 0
    bytes: int = 0
    """Of the file."""
    kept: list[str] = field(default_factory=list)
    """Matrices that stayed bf16, by llama.cpp's names: their rows are no multiple of 32."""


def check_type(kind: str) -> None:
    """
    Raises:
        UserError: a type that is not written.
    """
    if kind in TYPES:
        return
    known = ", ".join(TYPES)
    if "_k" in kind.lower() or kind.lower().startswith("iq"):
        raise UserError(
            f"--gguf {kind}: its blocks have 256 weights, and no whole number of them fits rows of 2688, 1856 or 3712 "
            f"(Nemotron 3 Nano's), so llama.cpp itself falls back to blocks of 32: use one of {known}"
        )
    raise UserError(f"--gguf {kind}: not known; use one of {known}")


def require_gguf() -> None:
    """
    Raises:
        UserError: the package that packs and unpacks blocks is not installed.
    """
    if find_spec("gguf") is None:
        raise UserError(f"GGUF files need the package gguf: {install_command('gguf')}")


def check_place(path: Path) -> None:
    """
    Raises:
        UserError: a folder, or a file that is no GGUF file and would be lost.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file, such as {path / 'model.gguf'}")
    if path.is_file() and path.stat().st_size and not is_gguf(path):
        raise UserError(f"{path}: is no GGUF file, and would be lost; give another name")


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def write_gguf(
    model: LM, path: Path, kind: str, tokenizer: vocabulary.Vocabulary | None = None, name: str = ""
) -> Written:
    """Write a model; the file appears whole or not at all. One matrix, or one expert's, is packed at a time.

    Norms, convolutions, routers and what belongs to the state are float32, as llama.cpp wants them. In q4_0 and q5_0
    files the output projection is q8_0, as in llama.cpp's own.

    Args:
        model: with merged adapters; quantized weights are written as the numbers that they stand for.
        path: a GGUF file there is replaced.
        kind: of the matrices, one of TYPES.
        tokenizer: with it the file answers texts and chats; without, token ids only.
        name: what the model is called.

    Raises:
        UserError: an unknown type, blocks that llama.cpp cannot run, a tokenizer that it would run otherwise, adapters
            that are not merged, or a place that must not be written.
        OSError: the disk is full or not writable.
    """
    check_type(kind)
    require_gguf()
    check_place(path)
    cfg = model.cfg
    metadata.check_exportable(cfg)
    if left := unmerged(model):
        raise UserError(f"the model has {left[0]}, which a GGUF file has no place for: merge adapters first")
    import gguf

    with _replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, SPARSE if MOE in cfg.pattern else DENSE)
        _head(writer, model, kind, name)
        if tokenizer is None:
            writer.add_tokenizer_model("no_vocab")
        else:
            vocabulary.describe(writer, tokenizer, cfg.vocab_size, model.stage == "pretrain")
        written = _write_tensors(writer, model, kind)
        writer.close()
        written.bytes = temporary.stat().st_size
    return written


def _head(writer: Any, model: LM, kind: str, name: str) -> None:
    if name:
        writer.add_name(name)
    writer.add_type("model")
    writer.add_file_type(FILE_TYPES[kind])
    if kind.startswith("q"):
        writer.add_quantization_version(QUANTIZATION_VERSION)
    if model.stage:
        writer.add_string(metadata.STAGE, model.stage)
    metadata.describe(writer, model.cfg)


def _write_tensors(writer: Any, model: LM, kind: str) -> Written:
    """All tensors, first what they are and then their numbers."""
    import gguf

    types = gguf.GGMLQuantizationType
    written, plan = Written(), []
    for name, tensor in _stored(model):
        shape = tuple(to_gguf(name, torch.empty(tensor.shape, device="meta"), model.cfg.n_groups).shape)
        packing = types[_type(name, shape, kind)]
        if kind.startswith("q") and packing == types.BF16:
            written.kept.append(gguf_name(name))
        block, size = gguf.GGML_QUANT_SIZES[packing]
        packed = shape if packing == types.F32 else (*shape[:-1], shape[-1] // block * size)
        count, number = int(np.prod(packed)), np.dtype(np.float32 if packing == types.F32 else np.uint8)
        writer.add_tensor_info(gguf_name(name), packed, number, count * number.itemsize, raw_dtype=packing)
        plan.append((name, packing))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    tensors = dict(_stored(model))
    for name, packing in plan:
        writer.write_tensor_data(_packed(name, tensors[name], packing, model.cfg.n_groups))
    written.tensors = len(plan)
    return written


def _stored(model: LM) -> Iterator[tuple[str, Tensor | Scaled]]:
    """Tensors by nano3's names; a quantized one as the weight that it is, in the place of its numbers and scales."""
    for name, tensor in named_tensors(model):
        if name.endswith("_scale"):
            continue
        if tensor.dtype in FLOATS:
            yield name, tensor.detach()
            continue
        owner, leaf = name.rsplit(".", 1)
        module: Any = model.get_submodule(owner)
        yield name, module.operand() if leaf == "weight" else module.operand(leaf)


def _type(name: str, shape: tuple[int, ...], kind: str) -> str:
    """llama.cpp's type of one tensor in a file of a kind."""
    if not is_matrix(name):
        return "F32"
    if kind.startswith("q") and shape[-1] % BLOCK:
        return "BF16"
    return "Q8_0" if name == OUTPUT and kind.startswith("q") else TYPES[kind]


def _packed(name: str, tensor: Any, packing: Any, n_groups: int) -> np.ndarray:
    """A tensor's numbers as they lie in the file."""
    import gguf

    if isinstance(tensor, Scaled):
        if len(tensor.shape) == 3:  # one expert at a time: their numbers take several times the space
            return np.stack([_packed(name, tensor[e], packing, n_groups) for e in range(tensor.shape[0])])
        tensor = tensor.dequantized()
    whole = to_gguf(name, tensor, n_groups).cpu()
    if packing == gguf.GGMLQuantizationType.F32:
        return whole.float().contiguous().numpy()
    if packing == gguf.GGMLQuantizationType.BF16:
        return whole.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    parts = whole.unbind() if whole.dim() == 3 else (whole,)
    packed = [gguf.quants.quantize(part.float().contiguous().numpy(), packing) for part in parts]
    return np.stack(packed) if whole.dim() == 3 else packed[0]


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed into its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)
