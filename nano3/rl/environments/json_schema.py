"""JSON for a schema: rewarded exactly when it is valid, nothing for what it says (report section 3.2)."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.data.tasks.source import Split
from nano3.installation import install_command
from nano3.reading import parse_json
from nano3.rl.environments.base import NOTHING, Reward, Rollout, Task, all_or_nothing, check_ids, user
from nano3.rl.environments.made import given_or_made
from nano3.rl.environments.rows import Row, column, id_of, task_of
from nano3.rl.environments.worker.process import Worker

LONGEST = 1_000_000
"""Characters of an answer that is looked at."""


class JsonSchema:
    """The whole answer is one JSON value, white space around it, valid by the row's schema.

    Columns: `schema` (also `json_schema`, `schema_str`) as an object or JSON text; a prompt, made where there is none.
    """

    name = "json_schema"

    def __init__(
        self,
        rows: str | Path | Iterable[Row] | None = None,
        n: int = 200,
        seed: int = 0,
        split: Split | None = None,
        seconds: float = 5.0,
    ) -> None:
        """
        Args:
            rows: a jsonl file or its rows; None: schemas made here.
            n, seed: of those.
            split: train or heldout, which share no prompt; None: train of made ones, all of given ones.
            seconds: for one answer; one whose patterns take longer is wrong.

        Raises:
            UserError: a row without a schema, or with one that is none, or jsonschema is not installed.
        """
        if importlib.util.find_spec("jsonschema") is None:
            raise UserError(f"environment {self.name}: jsonschema is not installed: {install_command('rl')}")
        found = given_or_made(rows, _made, n, seed, split, self.name)
        self._tasks = [_task(row, f"environment json_schema, row {i + 1}") for i, row in enumerate(found)]
        check_ids(self._tasks, self.name)
        self._worker = Worker("schema", seconds)

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """1 for a valid value, else 0."""
        if rollout.truncated or len(rollout.answer) > LONGEST:
            return NOTHING
        try:
            value = json.loads(rollout.answer, parse_constant=_refuse, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError):
            return NOTHING
        return all_or_nothing(self._worker.ask({"schema": task.truth, "value": value}) is True)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two values of one key they take, so such an object is not valid."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _task(row: Row, where: str) -> Task:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    schema = column(row, "schema", "json_schema", "schema_str", where=where)
    try:
        schema = parse_json(schema) if isinstance(schema, str) else schema
        if not isinstance(schema, Mapping):
            raise UserError(f"{where}: the schema is no JSON object")
        validator_for(schema, default=Draft202012Validator).check_schema(dict(schema))
    except (SchemaError, ValueError) as error:
        raise UserError(f"{where}: no JSON schema: {str(error).splitlines()[0]}") from error
    if any(row.get(name) for name in ("prompt", "question", "messages", "responses_create_params")):
        return task_of(row, schema, where)
    return Task(id_of(row), user(f"Give a JSON value for this schema, and nothing else: {json.dumps(schema)}"), schema)


def _made(rng: random.Random) -> Iterator[Row]:
    for i in itertools.count():
        names = rng.sample(["name", "age", "city", "price", "size", "rank", "score", "team", "year"], 1 + i % 4)
        properties = {name: _made_type(rng) for name in names}
        schema = {"type": "object", "properties": properties, "required": names, "additionalProperties": False}
        yield {"schema": schema}


def _made_type(rng: random.Random) -> dict[str, Any]:
    low, n = rng.randrange(80), rng.randint(1, 3)
    return rng.choice(
        [
            {"type": "integer", "minimum": low, "maximum": low + rng.randint(3, 19)},
            {"enum": rng.sample(["red", "blue", "green", "black", "white"], 3)},
            {"type": "boolean"},
            {"type": "array", "items": {"type": "integer"}, "minItems": n, "maxItems": n},
        ]
    )
