"""Which file of a Hugging Face folder holds which tensor, and what is wrong with a file that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from nano3.config.errors import UserError
from nano3.model.hf.layout import GGUF_LINK, INDEX, SINGLE
from nano3.reading import is_lfs_pointer, read_json


def open_weights(file: Path) -> Any:
    """The handle of a safetensors file, or of the GGUF file that a folder stands for.

    Raises:
        UserError: it cannot be read, with the reason and what to do.
    """
    if file.name == GGUF_LINK:
        from nano3.model.gguf.read import GgufFile

        return GgufFile(*weight_files(file.parent))
    try:
        with file.open("rb") as stream:
            begin = stream.read(200)
        return safe_open(file, framework="pt").__enter__()
    except (SafetensorError, OSError) as error:
        if isinstance(error, PermissionError):
            raise UserError(f"{file}: may not be read; change its permissions") from None
        if isinstance(error, SafetensorError) and is_lfs_pointer(begin):
            raise UserError(f"{file}: a Git LFS pointer, not the weights: git lfs pull in {file.parent}") from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{file}: cannot be read ({reason}); copy the file again") from None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: safetensors, or the GGUF file that it stands for."""
    if (link := folder / GGUF_LINK).is_file():
        return [Path(read_json(link)["file"])]
    return sorted(folder.glob("*.safetensors"))


def locate(folder: Path) -> dict[str, str]:
    """Stored tensor name -> file name.

    Raises:
        UserError: neither weights nor an index that can be read, or an index that names a file outside the folder.
    """
    if (folder / INDEX).is_file():
        try:
            files = dict(read_json(folder / INDEX)["weight_map"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{folder / INDEX}: not a safetensors index; copy the file again") from None
        for name, file in files.items():
            if not isinstance(file, str) or not file or not file.isprintable() or Path(file).name != file:
                raise UserError(f"{folder / INDEX}: weight_map has {file!r} for {name}: it must be a file's name")
        return files
    if (folder / GGUF_LINK).is_file():
        return dict.fromkeys(open_weights(folder / GGUF_LINK).keys(), GGUF_LINK)
    if not (folder / SINGLE).is_file():
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}; nano3 reads weights from safetensors only")
    return dict.fromkeys(open_weights(folder / SINGLE).keys(), SINGLE)
