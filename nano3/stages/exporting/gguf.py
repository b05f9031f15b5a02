"""Models for other programs: one GGUF file, as llama.cpp, Ollama and LM Studio run it."""

from __future__ import annotations

import json
from pathlib import Path

from nano3.config.errors import UserError
from nano3.data.chat.template import default_text
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.data.tokens.vocabulary import CHAT_TOKENS
from nano3.engine.launch import find_tokenizer
from nano3.files import check_writable
from nano3.model.find import check_named, local_model, model_name
from nano3.model.gguf.metadata import check_exportable
from nano3.model.gguf.vocabulary import Vocabulary, checked_split
from nano3.model.gguf.write import Written, check_place, check_type, require_gguf, write_gguf
from nano3.model.load import load_model
from nano3.model.lora.merge import merge
from nano3.model.stage import weights_stage


def main(model: str, file: Path, kind: str) -> Written:
    """Write the model in a folder as a GGUF file, with its tokenizer and chat template; adapters are merged.

    Args:
        model: a run folder, a Hugging Face folder or a LoRA adapter's.
        file: appears whole or not at all; a GGUF file there is replaced.
        kind: type of the matrices, see nano3.model.gguf.write.TYPES.

    Raises:
        UserError: an unknown type, a model or tokenizer that llama.cpp would run otherwise than nano3, or a place that
            must not be written.
        OSError: the disk is full.
    """
    check_type(kind)
    check_place(file)
    check_writable(file.parent)
    model = local_model(model)
    check_named(model)
    tokenizer = find_tokenizer(model)
    vocabulary = None if tokenizer is None else vocabulary_of(tokenizer)
    _check_both(vocabulary)
    lm = load_model(model)
    check_exportable(lm.cfg)
    merge(lm)
    if Path(model).exists():
        lm.stage = weights_stage(model)
    return write_gguf(lm, file, kind, vocabulary, model_name(model))


def _check_both(vocabulary: Vocabulary | None) -> None:
    """Raise UserError, before the weights are read, for the tokenizer and a missing package: for both at once, since
    another tokenizer takes another training."""
    found = []
    for check in (lambda: vocabulary and checked_split(vocabulary.settings), require_gguf):
        try:
            check()
        except UserError as error:
            found.append(str(error))
    if found:
        raise UserError("; besides, ".join(found))


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """What a GGUF file tells of a tokenizer."""
    template = tokenizer.chat_template or tokenizer.config.get("chat_template", "")
    if not template and all(tokenizer.token_id(token) is not None for token in CHAT_TOKENS):
        template = default_text()
    return Vocabulary(
        settings=json.loads(tokenizer.inner.to_str()),
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        turn_end_id=tokenizer.token_id(CHAT_TOKENS[1]),
        add_bos=tokenizer.config.get("add_bos_token") is True,
        chat_template=template if isinstance(template, str) else "",
    )
