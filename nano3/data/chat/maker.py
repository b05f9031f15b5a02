"""From a record to encoded rows: read, checked, filtered, split into turns, reasoning controlled, encoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from nano3.config.errors import UserError
from nano3.config.sft import SftConfig
from nano3.data.chat.conversation import FORM, Conversation, RowError, read_conversation
from nano3.data.chat.encoder import ChatEncoder
from nano3.data.chat.filters import Filters
from nano3.data.chat.records import Record
from nano3.data.chat.rows import EncodedRow, row_name
from nano3.data.chat.structure import check_structure
from nano3.data.chat.turns import ReasoningControl, Turn, user_turns
from nano3.data.texts.corpus import is_heldout
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.data.tokens.vocabulary import CHAT_TOKENS

TOO_LONG, NOTHING, TEMPLATE = "too long", "nothing to train on", "refused by the chat template"
"""Reasons."""
Refuse = Callable[[str, RowError], None]


@dataclass(frozen=True)
class MadeRow:
    """An encoded row and where it came from."""

    turn: Turn
    encoded: EncodedRow
    heldout: bool
    cut: bool
    """It was longer than data.pack_length."""


class RowMaker:
    """Makes rows by a run's settings and the tokenizer's chat template."""

    def __init__(self, cfg: SftConfig, tokenizer: Tokenizer) -> None:
        """Raises UserError where the tokenizer has neither a chat template nor the tokens of nano3's own."""
        self.cfg, self._encoder = cfg, ChatEncoder(tokenizer)
        own = not (tokenizer.chat_template or tokenizer.config.get("chat_template"))
        missing = [token for token in CHAT_TOKENS if tokenizer.token_id(token) is None]
        if own and missing:
            raise UserError(
                f"the tokenizer has no chat template, and no token {missing[0]} for nano3's own: put a "
                "chat_template.jinja beside the model's tokenizer.json"
            )
        self._filters = Filters(cfg.filters)
        self._control = ReasoningControl(cfg.reasoning, tokenizer, cfg.data.seed)

    def rows(self, record: Record, refuse: Refuse) -> Iterator[MadeRow]:
        """The rows of a record; `refuse` is told the name of each record or row that is left out, and why."""
        try:
            conversation = self._conversation(record)
        except RowError as error:
            refuse(record.name, error)
            return
        heldout = record.heldout
        task = task_of(conversation, whole=heldout is not None)
        if heldout is None:
            data = self.cfg.data
            heldout = bool(is_heldout(np.array([task], np.uint64), data.heldout_fraction, data.seed)[0])
        for turn in user_turns(conversation):
            try:
                controlled = self._control.apply(turn)
                encoded, cut = self._encode(controlled, record, task)
            except RowError as error:
                refuse(row_name(record.label, record.number, turn.number), error)
                continue
            yield MadeRow(controlled, encoded, heldout, cut)

    def _conversation(self, record: Record) -> Conversation:
        if record.value is None:
            raise RowError(FORM, record.problem)
        conversation = read_conversation(record.value, record.name)
        check_structure(conversation)
        self._filters.check(conversation)
        return conversation

    def _encode(self, turn: Turn, record: Record, task: int) -> tuple[EncodedRow, bool]:
        """The row cut after its last trained token, and whether it was cut to data.pack_length."""
        said = turn.conversation
        try:
            row = self._encoder.encode_training(
                said.messages, said.tools or None, last_turn=turn.last_only, **said.variables
            )
        except UserError as error:
            raise RowError(TEMPLATE, str(error)) from error
        ids, trained = np.array(row.ids, np.uint32), np.array(row.trained, bool)
        last = int(np.flatnonzero(trained)[-1]) if trained.any() else 0
        if last == 0:
            raise RowError(NOTHING, "the template leaves nothing for the model to write")
        ids, trained = ids[: last + 1], trained[: last + 1]
        most = self.cfg.data.pack_length
        cut = last > most
        if cut and (self.cfg.data.too_long == "drop" or not trained[1 : most + 1].any()):
            beyond = "" if self.cfg.data.too_long == "drop" else ", and its answer begins behind that"
            raise RowError(TOO_LONG, f"takes {last:,} tokens; data.pack_length is {most:,}{beyond}")
        encoded = EncodedRow(record.label, record.number, turn.number, ids[: most + 1], trained[: most + 1], task)
        return encoded, cut


def task_of(conversation: Conversation, whole: bool) -> int:
    """64-bit hash of the tools and of all messages up to the first of the user; of `whole` conversations, which are one
    task each, up to the last."""
    users = [i for i, message in enumerate(conversation.messages) if message["role"] == "user"]
    asked = conversation.messages[: users[-1 if whole else 0] + 1]
    what = json.dumps([conversation.tools, asked], sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(what.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
