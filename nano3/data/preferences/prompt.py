"""What a judge is shown and what it says: one text for its warm start, its training on rewards, and its work."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nano3.data.preferences.pair import PreferencePair
from nano3.data.tasks.task import Message, answer, user

EMPTY = "(empty)"
"""In place of a response that says nothing."""
ASKED = """Two responses continue this conversation.
<conversation>
{conversation}
</conversation>
<response_1>
{first}
</response_1>
<response_2>
{second}
</response_2>
Analyse both. Then answer with JSON alone: {{"score_1": 1 to 5, "score_2": 1 to 5, "ranking": 1 to 6}}
Scores: 5 is as helpful as can be, 1 is no help. Ranking: 1 if response 1 is far better, to 6 if response 2 is."""
_TAG = re.compile(r"<(?=\s*/?\s*(?:conversation|response_[12])\s*>)", re.IGNORECASE)


def judge_prompt(prompt: Sequence[Mapping[str, Any]], response_1: str, response_2: str) -> list[Message]:
    """The judge's conversation: one user message.

    Only answers belong here, never the reasoning before them. What is shown cannot close its own tags, so a response
    cannot write the other one.

    Args:
        prompt: the conversation that both responses answer, in OpenAI's form.
        response_1, response_2: final answers; an empty one is shown as such.
    """
    conversation = "\n".join(f"{message['role']}: {_text(message)}" for message in prompt)
    shown = {"conversation": conversation, "first": response_1, "second": response_2}
    return [user(ASKED.format(**{name: _TAG.sub("&lt;", text.strip()) or EMPTY for name, text in shown.items()}))]


def judgement_text(score_1: int, score_2: int, ranking: int) -> str:
    """A judgement as the judge is to write it."""
    return json.dumps({"score_1": score_1, "score_2": score_2, "ranking": ranking})


def training_row(pair: PreferencePair) -> dict[str, Any]:
    """A row of chat data that shows the judge its work: the pair's prompt, its analysis as reasoning, and the scores.

    Scores and rankings are written as whole numbers. A tie's ranking lies between 3 and 4: it is 3 in the order that
    the pair came in and 4 in the other, so that neither place is preferred.
    """
    ranking = math.floor(pair.ranking + 0.5) if pair.order else math.ceil(pair.ranking - 0.5)
    scores = math.floor(pair.score_1 + 0.5), math.floor(pair.score_2 + 0.5)
    said = answer(pair.analysis, judgement_text(*scores, ranking))
    if not pair.analysis:
        del said["reasoning_content"]
    return {"messages": [*judge_prompt(pair.prompt, pair.response_1, pair.response_2), said]}


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")
