"""A tokenizer in a GGUF file's metadata: the vocabulary, its merges and special tokens, and the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.model.gguf.splits import GPT2, SPLITS, Split, split_named, split_of

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""llama.cpp's types of tokens: part of the BPE, special, an added one that is no special token, and a filler."""
OWN_BOS = "nano3.bos_token_id"
"""nano3's own key: the beginning token, where the file names the end-of-document token as one (see `describe`)."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, as what a file tells of it is made from."""

    settings: Mapping[str, Any]
    """Contents of a tokenizer.json."""
    bos_id: int
    eos_id: int
    pad_id: int
    turn_end_id: int | None = None
    """Ends a turn of a conversation."""
    add_bos: bool = False
    """Whether a text begins with bos_id."""
    chat_template: str = ""

    @property
    def size(self) -> int:
        """One more than the largest id."""
        added = (token["id"] for token in self.settings["added_tokens"])
        return 1 + max((*self.settings["model"].get("vocab", {}).values(), *added), default=-1)


def describe(writer: Any, vocabulary: Vocabulary, vocab_size: int, base: bool) -> None:
    """Write a tokenizer's metadata.

    Args:
        writer: gguf.GGUFWriter.
        vocabulary: of the model.
        vocab_size: entries that the model has; those that the tokenizer leaves out are written as fillers.
        base: of a model that knows no conversations. llama.cpp then begins a text as its training did, with the
            end-of-document token; a chat begins with its template alone.

    Raises:
        UserError: llama.cpp would tokenize otherwise than nano3.
    """
    settings, begin = vocabulary.settings, vocabulary.add_bos
    split = checked_split(settings)
    if vocabulary.size > vocab_size:
        raise UserError(f"the tokenizer has {vocabulary.size} entries, the model only {vocab_size}")
    tokens, kinds = _entries(settings, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split.pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in settings["model"]["merges"]])
    writer.add_bos_token_id(vocabulary.eos_id if base and not begin else vocabulary.bos_id)
    if base and not begin:
        writer.add_uint32(OWN_BOS, vocabulary.bos_id)
    writer.add_add_bos_token(begin or base)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_eos_token_id(vocabulary.eos_id)
    if vocabulary.turn_end_id is not None:
        writer.add_eot_token_id(vocabulary.turn_end_id)
    writer.add_pad_token_id(vocabulary.pad_id)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def checked_split(settings: Mapping[str, Any]) -> Split:
    """llama.cpp's cut for the settings of a tokenizer.json.

    Raises:
        UserError: it would tokenize otherwise: the reason, and what to do.
    """
    model = settings["model"]
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if model.get("type") != "BPE" or odd or model.get("byte_fallback"):
        raise UserError(f"llama.cpp has no tokenizer like this one ({model.get('type')}{' with ' * bool(odd)}"
                        f"{', '.join(odd)}): nano3 exports byte-level BPE only")  # fmt: skip
    if settings.get("normalizer") is not None:
        raise UserError(f"the tokenizer changes text first ({settings['normalizer'].get('type')}), which llama.cpp does"
                        " not: its tokens would be others than here")  # fmt: skip
    pattern = _pattern(settings.get("pre_tokenizer"))
    split = None if pattern is None else split_of(pattern, bool(model.get("ignore_merges")))
    if split is None:
        known = ", ".join(s.pre for s in SPLITS)
        raise UserError(
            "llama.cpp cannot cut text into words as this tokenizer does, so its tokens would be others than here (it "
            f"knows cuts by name; nano3 exports {known}): pretrain with --set data.tokenizer=train:qwen2, whose cut "
            "llama.cpp has, or with data.tokenizer=mistral"
        )
    return split


def _pattern(pre: Any) -> str | None:
    """The regular expression of a pre-tokenizer that cuts by one and then maps bytes to letters; else None."""
    steps = pre.get("pretokenizers", [pre]) if isinstance(pre, dict) else []
    *cuts, last = steps or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if not cuts:
        return GPT2 if last.get("use_regex", True) else None
    cut = cuts[0]
    plain = cut.get("type") == "Split" and cut.get("behavior") == "Isolated" and not cut.get("invert")
    if len(cuts) != 1 or last.get("use_regex", True) or not plain:
        return None
    return cut["pattern"].get("Regex")


def _entries(settings: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Each id's token and its type."""
    tokens, kinds = [f"[PAD{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size
    for token, i in settings["model"]["vocab"].items():
        tokens[i], kinds[i] = token, NORMAL
    for added in settings["added_tokens"]:
        i, token = added["id"], added["content"]
        if stripped := [flag for flag in ("single_word", "lstrip", "rstrip") if added.get(flag)]:
            raise UserError(f"token {token!r} is {stripped[0]}, which llama.cpp does not know")
        tokens[i], kinds[i] = token, CONTROL if added["special"] else USER_DEFINED
    return tokens, kinds


def write_tokenizer(fields: Mapping[str, Any], folder: Path, where: str) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja of a file's metadata; nothing where it holds
    no tokenizer.

    Args:
        fields: metadata by key.
        folder: to write into.
        where: the file, for errors.

    Raises:
        UserError: a tokenizer that nano3 does not have.
    """
    kind = fields.get("tokenizer.ggml.model", "no_vocab")
    if kind in ("no_vocab", "none"):
        return
    pre = fields.get("tokenizer.ggml.pre", "default")
    split = split_named(pre) if isinstance(pre, str) else None
    if kind != "gpt2" or split is None:
        known = ", ".join(s.pre for s in SPLITS)
        raise UserError(f"{where}: its tokenizer is {kind!r} with the cut {pre!r}; nano3 reads gpt2 with {known}")
    tokens, merges = _texts(fields, "tokens", where), _texts(fields, "merges", where)
    kinds = fields.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise UserError(f"{where}: its tokenizer has {len(tokens)} tokens and not as many types; copy the file again")
    settings = _settings(tokens, kinds, merges, split)
    (folder / "tokenizer.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    config = _config(fields, tokens, where)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    template = fields.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _texts(fields: Mapping[str, Any], key: str, where: str) -> list[str]:
    value = fields.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{where}: its tokenizer has no {key}; copy the file again")
    return value


def _settings(tokens: list[str], kinds: list[int], merges: list[str], split: Split) -> dict[str, Any]:
    """Settings of a tokenizer.json."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    shell = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(split.patterns[0]), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    shell.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    shell.decoder = decoders.ByteLevel()
    settings = json.loads(shell.to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    settings["added_tokens"] = [
        {"id": i, "content": token, **flags, "special": kind == CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    settings["model"]["vocab"] = {token: i for i, token in enumerate(tokens) if kinds[i] != UNUSED}
    settings["model"]["merges"] = [merge.split(" ", 1) for merge in merges]
    settings["model"]["ignore_merges"] = split.whole_words
    return settings


def _config(fields: Mapping[str, Any], tokens: list[str], where: str) -> dict[str, Any]:
    """Contents of tokenizer_config.json."""
    own_bos = fields.get(OWN_BOS)
    ids = {name: fields.get(f"tokenizer.ggml.{key}") for name, key in _SPECIAL.items()}
    if own_bos is not None:
        ids["bos_token"] = own_bos
    names = {}
    for name, i in ids.items():
        if i is None:
            continue
        if not isinstance(i, int) or not 0 <= i < len(tokens):
            raise UserError(f"{where}: its {name} is {i!r}, and it has {len(tokens)} tokens; copy the file again")
        names[name] = tokens[i]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "add_bos_token": own_bos is None and fields.get("tokenizer.ggml.add_bos_token") is True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 20,
    }


_SPECIAL = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id"}
"""Key of tokenizer_config.json -> what ends the key of the metadata."""
