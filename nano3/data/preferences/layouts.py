"""Preference files, row by row: HelpSteer3, both layouts of HelpSteer2, and a plain one.

plain                   {"prompt": "..." or [messages], "response_1": "...", "response_2": "...", "score_1": 4,
                         "score_2": 2, "ranking": 2, "analysis": "..."}            analysis may be missing
HelpSteer3, preference  {"context": [messages], "response1": "...", "response2": "...", "overall_preference": -3..3,
                         "individual_preference": [{"score": ..., "reasoning": "..."}]}
HelpSteer2-Preference   {"prompt": "...", "response_1": "...", "response_2": "...", "preference_strength": -3..3}
HelpSteer2              {"prompt": "...", "response": "...", "helpfulness": 0..4}      two rows one after the other

A preference from -3 (the first response is much better) to 3 becomes a ranking: 1, 2, 3, 3.5 (a tie, which is kept), 4,
5, 6. Rows that have no scores get those of SCORES: they are ours, the data sets do not give them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nano3.config.errors import UserError
from nano3.data.chat.messages import normal_messages
from nano3.data.chat.records import Record, read_records
from nano3.data.preferences.pair import MIDDLE, PreferencePair
from nano3.data.tasks.task import Message, user
from nano3.data.texts.skipped import Skipped

Refuse = Callable[[str, str], None]
"""Gets the name of a row that is left out, `prefs.jsonl:12`, and why."""
TURN = "<extra_id_1>"
"""Before each later turn of a HelpSteer2 prompt, with the role behind it."""
SCORES = {0: (3, 3), 1: (4, 3), 2: (4, 2), 3: (5, 1)}
"""Helpfulness of the better and the worse response by strength of the preference, where a row has none."""
LEAST_HELPFUL, MOST_HELPFUL = 0, 4
"""Of HelpSteer2, one less than ours."""

NO_PARTNER = "the row beside it does not rate another response to the same prompt"


class RowError(Exception):
    """A row that is no preference, and what is wrong with it."""


def read_pairs(spec: str, refuse: Refuse | None = None) -> Iterator[PreferencePair]:
    """All pairs of a file, a folder, or a data set of the hub.

    Args:
        spec: a path (jsonl, json, parquet, plain or compressed), or `hub:ORG/NAME[:CONFIG][@REVISION][::SPLIT]`, as
            `hub:nvidia/HelpSteer3:preference`.
        refuse: is given rows that are no preference, which are then left out; None: the first ends the reading.

    Raises:
        FileNotFoundError: nothing at that path.
        UserError: a file that holds no records, or a bad row where there is no `refuse`.
    """
    for record, found in read_pair_records(spec, Skipped()):
        if isinstance(found, PreferencePair):
            yield found
        elif refuse is None:
            raise UserError(f"{record.name}: {found}")
        else:
            refuse(record.name, found)


def read_pair_records(spec: str, skipped: Skipped) -> Iterator[tuple[Record, PreferencePair | str]]:
    """As `read_pairs`, each with the record that it ends with; a row that is no preference as why it is none.

    Args:
        spec: see `read_pairs`.
        skipped: counts the files of a folder that are no records.

    Raises:
        FileNotFoundError: nothing at that path.
        UserError: a file that holds no records.
    """
    waiting: Record | None = None
    for record in read_records(spec, skipped):
        rated = _is_rated(record)
        if waiting is not None and not (rated and _same_prompt(waiting, record)):
            yield waiting, NO_PARTNER
            waiting = None
        if rated and waiting is None:
            waiting = record
            continue
        try:
            yield record, pair_of(record.value, record.problem) if waiting is None else _rated(waiting, record)
        except RowError as error:
            yield record, str(error)
        waiting = None
    if waiting is not None:
        yield waiting, NO_PARTNER


def pair_of(row: Mapping[str, Any] | None, problem: str = "") -> PreferencePair:
    """One row of the layouts that have both responses.

    Raises:
        RowError: it is none, or a field is out of form.
    """
    if row is None:
        raise RowError(problem)
    for column, read in _LAYOUTS.items():
        if column in row:
            return read(row)
    raise RowError(f"no preference: a row has one of the columns {', '.join(_LAYOUTS)}, or response and helpfulness")


def ranking_of(preference: float) -> float:
    """The ranking, 1 to 6, of a preference from -3 (the first is much better) to 3."""
    return MIDDLE if preference == 0 else preference + (3 if preference > 0 else 4)


def _plain(row: Mapping[str, Any]) -> PreferencePair:
    return PreferencePair(
        _prompt(row, "prompt"), _text(row, "response_1"), _text(row, "response_2"),
        _number(row, "score_1", 1, 5), _number(row, "score_2", 1, 5), _number(row, "ranking", 1, 6),
        str(row.get("analysis") or ""),
    )  # fmt: skip


def _helpsteer3(row: Mapping[str, Any]) -> PreferencePair:
    preference = _preference(row, "overall_preference")
    texts = _text(row, "response1"), _text(row, "response2")
    return _preferred(_prompt(row, "context"), *texts, preference, _reasoning(row, preference))


def _helpsteer2(row: Mapping[str, Any]) -> PreferencePair:
    texts = _text(row, "response_1"), _text(row, "response_2")
    return _preferred(_prompt(row, "prompt"), *texts, _preference(row, "preference_strength"))


_LAYOUTS: dict[str, Callable[[Mapping[str, Any]], PreferencePair]] = {
    "ranking": _plain,
    "overall_preference": _helpsteer3,
    "preference_strength": _helpsteer2,
}
"""By the column that tells the layout."""


def _preferred(prompt: list[Message], first: str, second: str, preference: int, analysis: str = "") -> PreferencePair:
    better, worse = SCORES[abs(preference)]
    scores = (worse, better) if preference > 0 else (better, worse)
    return PreferencePair(prompt, first, second, *scores, ranking_of(preference), analysis)


def _rated(first: Record, second: Record) -> PreferencePair:
    rows = [record.value or {} for record in (first, second)]
    scores = [_number(row, "helpfulness", LEAST_HELPFUL, MOST_HELPFUL) + 1 for row in rows]
    ranking = ranking_of(max(-3, min(3, scores[1] - scores[0])))
    return PreferencePair(
        _prompt(rows[0], "prompt"),
        _text(rows[0], "response"),
        _text(rows[1], "response"),
        scores[0],
        scores[1],
        ranking,
    )


def _is_rated(record: Record) -> bool:
    return record.value is not None and {"response", "helpfulness"} <= record.value.keys()


def _same_prompt(one: Record, other: Record) -> bool:
    return (one.value or {}).get("prompt") == (other.value or {}).get("prompt")


def _reasoning(row: Mapping[str, Any], preference: int) -> str:
    """Why, by the annotator nearest to the overall preference."""
    given = row.get("individual_preference") or []
    if not isinstance(given, list) or not all(isinstance(each, Mapping) for each in given):
        raise RowError("individual_preference is no list of objects")
    told = [each for each in given if each.get("reasoning") and isinstance(each.get("score"), int)]
    return str(min(told, key=lambda each: abs(each["score"] - preference))["reasoning"]) if told else ""


def _prompt(row: Mapping[str, Any], column: str) -> list[Message]:
    given = row.get(column)
    if isinstance(given, str) and given.strip():
        return turns_of(given)
    if isinstance(given, str) or not given:
        raise RowError(f"{column} is missing or empty")
    try:
        normal_messages(given)
    except UserError as error:
        raise RowError(f"{column}: {error}") from error
    return [dict(message) for message in given]


def turns_of(text: str) -> list[Message]:
    """A prompt that is one text; of HelpSteer2 it may hold several turns.

    Raises:
        RowError: a turn of neither assistant nor user.
    """
    first, *later = text.split(f"\n{TURN}")
    messages = [user(first)]
    for turn in later:
        role, _, content = turn.partition("\n")
        if role.strip() not in ("Assistant", "User"):
            raise RowError(f"prompt: {TURN} stands before Assistant or User, not before {role[:20]!r}")
        messages.append({"role": role.strip().lower(), "content": content})
    return messages


def _text(row: Mapping[str, Any], column: str) -> str:
    given = row.get(column)
    if not isinstance(given, str):
        raise RowError(f"{column} is missing or no text")
    return given


def _number(row: Mapping[str, Any], column: str, low: int, high: int) -> float:
    given = row.get(column)
    if isinstance(given, bool) or not isinstance(given, int | float) or not low <= given <= high:
        raise RowError(f"{column} is {given!r}; it must be a number from {low} to {high}")
    return given


def _preference(row: Mapping[str, Any], column: str) -> int:
    given = _number(row, column, -3, 3)
    if given != int(given):
        raise RowError(f"{column} is {given!r}; it must be a whole number from -3 to 3")
    return int(given)
