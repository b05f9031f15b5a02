"""Filters of conversations (report section 3.1.3): those that `nano3 sft` has too, with the dropped ones to look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document

from nano3.config.sft import FilterConfig
from nano3.curate.step import Context, Step
from nano3.data.chat.conversation import Conversation, RowError, read_conversation
from nano3.data.chat.filters import Filters
from nano3.data.chat.structure import check_structure


@dataclass(frozen=True)
class SftStructureSettings:
    """Settings of `sft-structure`: none."""


class _ConversationStep(Step):
    """A filter that raises `RowError` for a conversation that it refuses."""

    def check(self, document: Document) -> str:
        """Why a conversation is dropped; empty: it is kept."""
        try:
            self.examine(read_conversation(json.loads(document.text), document.id))
        except RowError as error:
            return error.reason
        return ""

    def examine(self, conversation: Conversation) -> None:
        """Raise RowError to refuse it."""
        raise NotImplementedError


class SftStructure(_ConversationStep):
    """Drops conversations that no assistant has had: roles out of order, calls of tools that are not defined or have no
    result, results without a call, thinking tags in wrong places, empty answers."""

    Settings = SftStructureSettings

    def examine(self, conversation: Conversation) -> None:
        """See `nano3.data.chat.structure`."""
        check_structure(conversation)


class SftFilters(_ConversationStep):
    """Drops conversations whose assistant repeats itself, in a window or in all of a message, or says keywords or what
    a pattern matches."""

    Settings = FilterConfig

    def __init__(self, settings: Any, context: Context) -> None:
        """Filters with the settings that `nano3 sft` has under `filters`."""
        super().__init__(settings, context)
        self._filters = Filters(settings)

    def examine(self, conversation: Conversation) -> None:
        """See `nano3.data.chat.filters`."""
        self._filters.check(conversation)
