"""Byte-level BPE vocabularies: training, loading and saving as a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.config.errors import UserError
from nano3.data.chat.template import default_text
from nano3.data.tokens.tekken import mistral_file
from nano3.data.tokens.vocabulary import CHAT_TOKENS, THINK_TOKENS, byte_level_split
from nano3.files import write_atomic
from nano3.reading import read_json, read_text
from nano3.splits import SPLIT

if TYPE_CHECKING:
    import tokenizers

PAD, BOS, EOS = "<pad>", "<s>", "</s>"

SMALLEST_VOCABULARY = 3 + len(CHAT_TOKENS) + len(THINK_TOKENS) + 256
EOS_NAMES = (EOS, "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[EOS]")
BOS_NAMES = (BOS, "<|begin_of_text|>", "<bos>", "[BOS]")
PAD_NAMES = (PAD, "[PAD]", "<unk>")
_SURROGATE = re.compile("[\ud800-\udfff]")


def tokenizer_file(path_or_name: str | Path) -> Path:
    """The tokenizer.json behind `mistral`, a file or a folder.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: mistral-common is not installed.
    """
    if str(path_or_name) == "mistral":
        return mistral_file()
    path = Path(path_or_name)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}: give `mistral`, a tokenizer.json, or a folder that holds one")
    return file


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Ordinary text never yields special tokens: a document that contains "</s>" is encoded letter by letter, unless
    `special=True` asks for chat markup to be recognised.
    """

    inner: tokenizers.Tokenizer
    """The Hugging Face tokenizer, with special tokens switched off in `encode`."""
    eos_id: int
    """Ends a document; also the token before its first one (see nano3.data.tokens.packing)."""
    bos_id: int
    pad_id: int
    config: dict[str, Any] = field(default_factory=dict)
    """Contents of tokenizer_config.json, kept when a loaded tokenizer is saved again."""
    chat_template: str = ""
    """Contents of chat_template.jinja, kept likewise; empty: `save` writes the project's own beside chat tokens."""

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, split: str = SPLIT) -> Tokenizer:
        """Train byte-level BPE; the result depends on the texts alone, not on threads or their order of arrival.

        A text too short for `vocab_size` entries gives a smaller vocabulary. `split`: regular expression that cuts text
        into the pieces within which bytes are merged.

        Raises:
            ValueError: `vocab_size` has no room for all bytes and the special tokens.
        """
        from tokenizers import AddedToken, pre_tokenizers, trainers

        if vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"vocabulary of {vocab_size} is too small: the least is {SMALLEST_VOCABULARY} (model.vocab_size)"
            )
        inner = _empty_bpe(split)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[
                *(AddedToken(token, special=True, normalized=False) for token in (PAD, BOS, EOS, *CHAT_TOKENS)),
                *(AddedToken(token, special=False, normalized=False) for token in THINK_TOKENS),
            ],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls._named(_mark_plain(inner, THINK_TOKENS))

    @classmethod
    def load(cls, path_or_name: str | Path) -> Tokenizer:
        """Load `mistral` (the 131072-entry vocabulary of mistral-common), a tokenizer.json, or a folder with one.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: not a tokenizer, no end-of-document token, or mistral-common is not installed.
        """
        return cls._from_file(tokenizer_file(path_or_name))

    @classmethod
    def _from_file(cls, file: Path) -> Tokenizer:
        import tokenizers

        try:
            inner = tokenizers.Tokenizer.from_str(read_text(file))
        except UserError:
            raise
        except Exception as error:
            raise ValueError(f"{file} is not a tokenizer.json that `tokenizers` can read: {error}") from error
        config_file, template_file = file.with_name("tokenizer_config.json"), file.with_name("chat_template.jinja")
        config = read_json(config_file) if config_file.is_file() else {}
        template = read_text(template_file) if template_file.is_file() else ""
        if not isinstance(config, dict):
            raise UserError(f"{config_file}: expected a JSON object")
        for key in ("eos_token", "bos_token", "pad_token"):
            if not isinstance(_name(config.get(key)), str | None):
                raise UserError(f"{config_file}: {key} is neither a text nor an object with a text as its content")
        try:
            return cls._named(inner, config, template)
        except LookupError as error:
            raise ValueError(
                f"{file} names no end-of-document token: set eos_token in tokenizer_config.json beside it"
            ) from error

    @classmethod
    def _named(cls, inner: tokenizers.Tokenizer, config: dict[str, Any] | None = None, template: str = "") -> Tokenizer:
        config = config or {}
        eos = _token_id(inner, config.get("eos_token"), EOS_NAMES)
        if eos is None:
            raise LookupError("no end-of-document token")
        bos, pad = (
            _token_id(inner, config.get("bos_token"), BOS_NAMES),
            _token_id(inner, config.get("pad_token"), PAD_NAMES),
        )
        inner.encode_special_tokens = True
        inner.no_padding()
        inner.no_truncation()
        return cls(inner, eos, eos if bos is None else bos, eos if pad is None else pad, config, template)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included; where ids are left out, more than there are tokens."""
        known = self.__dict__.get("_size")
        count = self.inner.get_vocab_size(with_added_tokens=True)
        if known is None or known[0] != count:  # tokens may have been added to `inner` since
            largest = max(self.inner.get_vocab(with_added_tokens=True).values(), default=-1)
            known = self.__dict__["_size"] = (count, largest + 1)
        return known[1]

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text, nothing added around it; `special=True` recognises special tokens written in it.

        Raises:
            UserError: half a surrogate pair in the text, which is no character.
        """
        with _told_of_surrogates([text]):
            return self._encoder(special).encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """`encode` of several texts, on all cores. Raises as `encode`."""
        with _told_of_surrogates(texts):
            encodings = self._encoder(special).encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of token ids; bytes that are no UTF-8 (a character cut in two) become U+FFFD."""
        return self.inner.decode(list(ids), skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int | None:
        """Id of one vocabulary entry, None when there is none of that name."""
        return self.inner.token_to_id(token)

    def fingerprint(self) -> str:
        """Hash of everything that decides the ids of a text."""
        return hashlib.blake2b(f"{self.eos_id} {self.inner.to_str()}".encode(), digest_size=16).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json as transformers' AutoTokenizer reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "tokenizer.json", self.inner.to_str(pretty=True).encode())
        config = self.config or {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.inner.id_to_token(self.bos_id),
            "eos_token": self.inner.id_to_token(self.eos_id),
            "pad_token": self.inner.id_to_token(self.pad_id),
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1 << 20,
        }
        write_atomic(folder / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())
        if template := self.chat_template or self._default_template():
            write_atomic(folder / "chat_template.jinja", template.encode())

    def _default_template(self) -> str:
        """The project's chat template, when this vocabulary has the tokens that mark its turns."""
        if "chat_template" in self.config or any(self.token_id(token) is None for token in CHAT_TOKENS):
            return ""
        return default_text()

    def _encoder(self, special: bool) -> tokenizers.Tokenizer:
        if not special:
            return self.inner
        parsing = self.__dict__.get("_parsing")
        if parsing is None:
            parsing = type(self.inner).from_str(self.inner.to_str())
            parsing.encode_special_tokens = False
            self.__dict__["_parsing"] = parsing
        return parsing


@contextmanager
def _told_of_surrogates(texts: Iterable[str]) -> Iterator[None]:
    """What tokenizers calls a text of another type is told as what it is. JSON can write it, UTF-8 cannot."""
    try:
        yield
    except TypeError as error:
        half = next((found for text in texts if (found := _SURROGATE.search(text))), None)
        if half is None:
            raise
        code = f"\\u{ord(half.group()):04x}"
        raise UserError(f"half a surrogate pair ({code}) in a text is no character; remove it") from error


def _empty_bpe(split: str) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import Regex, decoders, models, pre_tokenizers

    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = byte_level_split(pre_tokenizers, Regex(split))
    inner.decoder = decoders.ByteLevel()
    return inner


def _mark_plain(inner: tokenizers.Tokenizer, tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """The same tokenizer with `tokens` no longer special (the trainer makes all of its added tokens special)."""
    settings = json.loads(inner.to_str())
    for added in settings["added_tokens"]:
        if added["content"] in tokens:
            added["special"] = False
    return type(inner).from_str(json.dumps(settings))


def _name(token: Any) -> Any:
    """The text of a token in tokenizer_config.json, where it stands alone or as the content of an object."""
    return token.get("content") if isinstance(token, dict) else token


def _token_id(inner: tokenizers.Tokenizer, named: Any, usual: Sequence[str]) -> int | None:
    """Id of the token named in tokenizer_config.json (a string or an object), else of the first usual name."""
    named = _name(named)
    for token in (named, *usual) if named else usual:
        token_id = inner.token_to_id(token)
        if token_id is not None:
            return token_id
    return None
