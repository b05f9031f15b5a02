"""Generated texts as an input like any other: the sources `generate:document-qa` and `generate:retrieval`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nano3.cache import cache_root
from nano3.config.errors import UserError
from nano3.config.generate import PREFIX, GenerateConfig
from nano3.config.typed import nearest
from nano3.data.generated.document_texts import DocumentTexts
from nano3.data.generated.questions import GeneratedText
from nano3.data.generated.retrieval import RetrievalTexts
from nano3.data.texts.passages import PassageIndex
from nano3.data.texts.readers import Document, Input
from nano3.data.texts.skipped import Skipped
from nano3.data.tokens.lengths import TokenCounter, plan_lengths

if TYPE_CHECKING:
    from nano3.data.generated.question_writer import QuestionWriter
    from nano3.data.tokens.tokenizer import Tokenizer

DOCUMENT_QA, RETRIEVAL = "document-qa", "retrieval"
CATEGORIES = (DOCUMENT_QA, RETRIEVAL)
VERSION = 2
"""Raised with every change of what the generators write, so that prepared data are made anew."""
RETRIEVAL_PART = 20
"""Tokens of document-qa for one of retrieval: 20 % and 1 % of the report's blend."""
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class GeneratedTexts:
    """All texts of one category. Their lengths are in tokens, so `documents` needs `tokenizer`.

    One text and its end marker fill one sequence, where the tokenizer allows it to the token.
    """

    category: str
    cfg: GenerateConfig
    inputs: Sequence[Input]
    """The user's texts."""
    seq_len: int
    """Length of the sequences where cfg.lengths names none."""
    heldout_fraction: float
    """Share of the documents that the run holds out, and"""
    seed: int
    """the seed that chooses them: none of them is used."""
    cache_dir: str = ""
    """Where the answers of a question server are kept, see nano3.cache.cache_root."""
    cut_ends: bool | None = None
    """Whether the run holds out the end of a document, see nano3.data.texts.passages.PassageIndex.read."""
    tokenizer: Tokenizer | None = None

    @property
    def name(self) -> str:
        """As in data.sources."""
        return PREFIX + self.category

    @property
    def tokens(self) -> int:
        """Tokens of all texts, about."""
        if self.category == RETRIEVAL:
            return self.cfg.retrieval_tokens or -(-self.cfg.tokens // RETRIEVAL_PART)
        return self.cfg.tokens

    @property
    def size(self) -> int:
        """Bytes of all texts, at a guess."""
        return sum(self.lengths()) * BYTES_PER_TOKEN

    def lengths(self) -> list[int]:
        """Length of the sequence that each text fills."""
        shares: dict[int, float] = {}
        for text, share in (self.cfg.lengths or {str(self.seq_len): 1.0}).items():
            longest = self.cfg.retrieval_longest if self.category == RETRIEVAL else int(text)
            length = min(int(text), longest)
            shares[length] = shares.get(length, 0.0) + share
        return plan_lengths(self.tokens, shares)

    def identity(self) -> str:
        """All that decides the texts but the tokenizer, which every prepared folder has in its key anyway."""
        settings = {
            "category": self.category,
            "sources": [source.identity() for source in self.inputs],
            "tokens": self.tokens,
            "lengths": self.cfg.lengths or {str(self.seq_len): 1.0},
            "seed": self.cfg.seed,
            "heldout": [self.heldout_fraction, self.seed, self.cut_ends],
            "version": VERSION,
        }
        # What decides only the other category's texts is not in it, so that a change there makes nothing anew.
        if self.category == RETRIEVAL:
            settings["longest"] = self.cfg.retrieval_longest
        else:
            settings |= {"url": self.cfg.url, "model": self.cfg.model}
        return json.dumps(settings, sort_keys=True)

    def with_tokenizer(self, tokenizer: Tokenizer) -> GeneratedTexts:
        """The same texts, measured by this tokenizer."""
        return replace(self, tokenizer=tokenizer)

    def documents(self, skipped: Skipped) -> Iterator[Document | None]:
        """One document a text; its name has the length of its sequence and its number. None comes last, for counts."""
        for number, (length, made) in enumerate(zip(self.lengths(), self.texts(skipped), strict=True)):
            yield Document(f"{self.category}/{length}/{number}", made.text)
        yield None

    def texts(self, skipped: Skipped | None = None) -> Iterator[GeneratedText]:
        """All texts with their questions; `skipped` counts what of the sources and of written questions is not used.

        Raises:
            UserError: too little text in the sources, or a question server that cannot be used.
        """
        assert self.tokenizer is not None, "the tokenizer is chosen before texts are made"
        skipped = skipped if skipped is not None else Skipped()
        counter = TokenCounter.of(self.tokenizer)
        passages = PassageIndex.read(self.inputs, self.heldout_fraction, self.seed, self.tokenizer, self.cut_ends)
        writer = None
        if self.category == RETRIEVAL:
            maker = RetrievalTexts(counter, self.cfg.seed, passages)
        else:
            writer = self._writer()
            maker = DocumentTexts(counter, self.cfg.seed, passages, writer)
        for number, length in enumerate(self.lengths()):
            yield maker.make(number, length - 1)
        if passages.documents_left_out:
            reason = (
                f"documents of the sources (the others, {passages.share_kept:.1%} of the text, are all that is used)"
            )
            skipped.add(reason, passages.documents_left_out)
        if writer is not None:
            skipped.counts.update(writer.dropped)

    def _writer(self) -> QuestionWriter | None:
        if not self.cfg.url:
            return None
        from nano3.data.generated.question_writer import QuestionWriter

        return QuestionWriter(self.cfg.url, self.cfg.model, cache_root(self.cache_dir) / "questions")


def category_of(spec: str) -> str | None:
    """The category that `generate:CATEGORY` names; None for a source of another kind.

    Raises:
        UserError: there is no such category.
    """
    if not spec.startswith(PREFIX):
        return None
    category = spec.removeprefix(PREFIX)
    if category not in CATEGORIES:
        close = nearest(category, CATEGORIES)
        hint = f"did you mean {PREFIX}{close}?" if close else f"there are {', '.join(PREFIX + c for c in CATEGORIES)}"
        raise UserError(f"no texts can be made for {spec!r}; {hint}")
    return category
