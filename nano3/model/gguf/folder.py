"""A GGUF file as a Hugging Face folder: sizes, tokenizer and chat template written out once, the weights left where
they are.

The folder lies in nano3's cache; its `weights.gguf.json` names the file, from which tensors are read when they are
needed. So everything that takes a folder takes the file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from nano3.cache import cache_root
from nano3.config.errors import UserError
from nano3.files import atomic_folder
from nano3.model.gguf.metadata import STAGE, read_model_config
from nano3.model.gguf.read import GgufFile
from nano3.model.gguf.vocabulary import write_tokenizer
from nano3.model.hf.config import STAGE_KEY, to_hf
from nano3.model.hf.layout import GGUF_LINK
from nano3.model.hf.write import write_generation_config

VERSION = 1
"""Of what is written into the folder."""


def folder_of(file: Path) -> Path:
    """The folder that stands for a GGUF file.

    Raises:
        UserError: no GGUF file, a damaged one, another architecture, or a tokenizer that nano3 does not have.
    """
    file = file.resolve()
    try:
        stat = file.stat()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    identity = f"{VERSION} {file} {stat.st_size} {stat.st_mtime_ns}"
    digest = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    folder = cache_root() / "gguf" / digest / file.stem
    if not (folder / "config.json").is_file():
        opened = GgufFile(file)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as temporary:
            _write(opened, temporary)
    return folder


def _write(opened: GgufFile, folder: Path) -> None:
    cfg = read_model_config(opened.fields, str(opened.path))
    stage = opened.fields.get(STAGE)
    keys = to_hf(cfg, "bfloat16") | ({STAGE_KEY: stage} if isinstance(stage, str) else {})
    (folder / "config.json").write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")
    write_generation_config(folder, cfg)
    write_tokenizer(opened.fields, folder, str(opened.path))
    (folder / GGUF_LINK).write_text(json.dumps({"file": str(opened.path)}) + "\n", encoding="utf-8")
