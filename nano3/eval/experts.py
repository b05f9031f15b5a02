"""Which experts a model uses: exact counts of routing decisions by layer (the audit in section 8 of PAPER.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nano3.config.errors import UserError

if TYPE_CHECKING:
    from nano3.data.tokens.tokenizer import Tokenizer
    from nano3.model.lm import LM

ROW_TOKENS = 4096
"""Tokens that go through the model at a time."""
PASSAGE_CHARACTERS = 2000
PASSAGES = 200
"""Held-out passages in the default prompt set."""
QUESTIONS = (
    "What is the capital of Portugal, and what is it known for?",
    "Explain photosynthesis to a ten-year-old.",
    "Write a Python function that returns the n-th Fibonacci number without recursion.",
    "A train leaves at 9:40 and arrives at 13:05. How long does it take?",
    "Solve for x: 3x + 7 = 25. Show each step.",
    "Translate into French: The library closes at six on Fridays.",
    "Was ist der Unterschied zwischen Wetter und Klima?",
    "¿Cómo se prepara una tortilla de patatas?",
    "日本で一番高い山は何ですか。",
    "Quelles sont les causes de la Révolution française ?",
    "Summarise the plot of Romeo and Juliet in three sentences.",
    "Give me five names for a bakery near a lighthouse.",
    "Why does ice float on water?",
    "Write a SQL query that counts orders per customer in 2024, largest first.",
    "My cat has not eaten since yesterday. When should I call a vet?",
    "Draft a polite e-mail that moves a meeting from Tuesday to Thursday.",
    "Compare arrays and linked lists: access, insertion, memory.",
    "What is the probability of two sixes in a row with a fair die?",
    'Return JSON with the keys "city" and "country" for Nairobi.',
    "Fix this code: for i in range(10) print(i)",
    "Write a haiku about the first snow.",
    "How do vaccines work?",
    "What does a central bank do when inflation rises?",
    "List the planets from the sun outwards, with one fact each.",
)
"""Conversations in the default prompt set."""


@dataclass(frozen=True)
class Prompts:
    """Texts as the model reads them."""

    ids: list[tuple[int, ...]]
    what: str
    """For people: where they came from."""


@dataclass(frozen=True)
class Group:
    """Prompts that go through the model together, one after the other in a row without padding."""

    index: int
    first: int
    """The first prompt's number."""
    ids: list[tuple[int, ...]]

    @property
    def n_tokens(self) -> int:
        """Tokens of all of them."""
        return sum(map(len, self.ids))


def group_prompts(prompts: Sequence[tuple[int, ...]], row_tokens: int = ROW_TOKENS) -> Iterator[Group]:
    """Prompts in their order, in groups of at most `row_tokens`; a longer one is alone."""
    held: list[tuple[int, ...]] = []
    index = first = 0
    for number, ids in enumerate(prompts):
        if held and sum(map(len, held)) + len(ids) > row_tokens:
            yield Group(index, first, held)
            held, index, first = [], index + 1, number
        held.append(ids)
    if held:
        yield Group(index, first, held)


@torch.inference_mode()
def count_group(model: LM, group: Group, row_tokens: int = ROW_TOKENS) -> Tensor:
    """(mixture blocks, E) int64: routing decisions for each expert, over every token of the group once. Prompts see
    nothing of each other; one of more than `row_tokens` is read in pieces that carry its state."""
    device = model.device
    if len(group.ids) == 1 and len(group.ids[0]) > row_tokens:
        (ids,) = group.ids
        state = model.new_state(1, len(ids))
        pieces = [ids[start : start + row_tokens] for start in range(0, len(ids), row_tokens)]
        return sum_loads(model.hidden(torch.tensor([piece], device=device), state=state).loads for piece in pieces)
    tokens = torch.tensor([[token for ids in group.ids for token in ids]], device=device)
    documents = torch.tensor([[i for i, ids in enumerate(group.ids) for _ in ids]], device=device, dtype=torch.int32)
    return model.hidden(tokens, documents).loads.cpu()


def sum_loads(parts: Iterator[Tensor]) -> Tensor:
    """Their sum, on the CPU."""
    total = next(parts).cpu()
    for part in parts:
        total = total + part.cpu()
    return total


@dataclass(frozen=True)
class Use:
    """How often each expert was chosen."""

    loads: np.ndarray
    """(mixture blocks, E) int64."""
    blocks: list[int]
    """Number of each mixture block in the model."""
    tokens: int

    @property
    def shares(self) -> np.ndarray:
        """(mixture blocks, E): percent of the block's decisions; each row sums to 100."""
        return 100.0 * self.loads / np.maximum(self.loads.sum(1, keepdims=True), 1)

    @property
    def even(self) -> float:
        """Percent of each expert if all were chosen alike."""
        return 100.0 / self.loads.shape[1]

    @property
    def variation(self) -> np.ndarray:
        """(mixture blocks,): standard deviation of the shares over their mean."""
        return self.shares.std(1) / self.even

    def above(self, threshold: float) -> list[tuple[int, int, float]]:
        """(block, expert, percent) of the experts with more than `threshold` percent, the largest first."""
        found = [(self.blocks[i], int(j), float(self.shares[i, j])) for i, j in np.argwhere(self.shares > threshold)]
        return sorted(found, key=lambda one: (-one[2], one[0], one[1]))

    def unused(self) -> int:
        """Experts that no token was sent to."""
        return int((self.loads == 0).sum())

    def table(self) -> list[dict[str, Any]]:
        """A row for each mixture block."""
        shares = self.shares
        return [
            {
                "block": block,
                "max_share": float(shares[i].max()),
                "expert": int(shares[i].argmax()),
                "min_share": float(shares[i].min()),
                "variation": float(self.variation[i]),
                "unused": int((self.loads[i] == 0).sum()),
                "shares": shares[i].tolist(),
                "counts": self.loads[i].tolist(),
            }
            for i, block in enumerate(self.blocks)
        ]


def mixture_blocks(model: LM) -> list[int]:
    """Numbers of the blocks with experts.

    Raises:
        UserError: there are none.
    """
    found = [i for i, symbol in enumerate(model.cfg.pattern) if symbol == "E"]
    if not found:
        raise UserError(f"this model has no experts (its blocks: {model.cfg.pattern}); there is nothing to count")
    return found


def default_prompts(tokenizer: Tokenizer) -> Prompts:
    """Held-out passages of the embedded corpus, which pretraining with the default settings never sees, and questions
    of many kinds as conversations."""
    from nano3.config.schema import DataConfig
    from nano3.data.texts.corpus import is_heldout
    from nano3.data.texts.skipped import Skipped
    from nano3.data.texts.stdlib_corpus import StandardLibrary
    from nano3.data.tokens.build import content_hash

    settings = DataConfig()
    texts = [document.text for document in StandardLibrary().documents(Skipped()) if document is not None]
    hashes = np.array([content_hash(text) for text in texts], np.uint64)
    held = np.flatnonzero(is_heldout(hashes, settings.heldout_fraction, settings.seed))
    passages = [texts[i][:PASSAGE_CHARACTERS] for i in held[np.argsort(hashes[held])][:PASSAGES]]
    rows: list[Mapping[str, Any]] = [{"prompt": text} for text in passages]
    rows += [{"messages": [{"role": "user", "content": text}]} for text in QUESTIONS]
    what = f"{len(passages)} held-out passages of the Python standard library, {len(QUESTIONS)} questions"
    return Prompts(encode_prompts(tokenizer, rows), what)


def encode_prompts(tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, ...]]:
    """Token ids: of a `prompt` (a text, begun as documents begin in training, or token ids), or of `messages` by the
    chat template.

    Raises:
        UserError: messages out of form.
    """
    from nano3.data.chat.encoder import ChatEncoder

    chat = ChatEncoder(tokenizer)
    ids: list[tuple[int, ...]] = []
    for row in rows:
        if row.get("messages") is not None:
            ids.append(chat.encode(row["messages"]).ids)
        elif isinstance(row["prompt"], str):
            ids.append((tokenizer.eos_id, *tokenizer.encode(row["prompt"])))
        else:
            ids.append(tuple(row["prompt"]))
    return ids
