"""Scores against the reference's rules."""

from __future__ import annotations

import pytest

from nano3.eval.ruler import TASKS, score
from nano3.eval.ruler.scoring import METRICS, postprocess

NEW_TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}


@pytest.mark.parametrize(
    ("output", "references", "expected"),
    [
        ("1234567", ["1234567"], 1.0),
        (" The NUMBER is 1234567, I think", ["1234567"], 1.0),
        ("1 and 3", ["1", "2", "3", "4"], 0.5),
        ("Red-Car", ["red-car"], 1.0),
        ("", ["a"], 0.0),
    ],
)
def test_all_takes_the_share_of_references_found(output: str, references: list[str], expected: float) -> None:
    assert score("niah_multivalue", output, references) == expected


@pytest.mark.parametrize("right", ["Denver Broncos", "the denver broncos won", "Broncos"])
def test_one_right_alias_gives_the_full_score(right: str) -> None:
    aliases = ["Denver Broncos", "The Denver Broncos of Colorado", "Broncos"]
    assert METRICS["string_match_part"](right, aliases) == 1.0
    assert METRICS["string_match_part"]("Carolina Panthers", aliases) == 0.0


def test_control_characters_become_line_breaks() -> None:
    assert postprocess(" a\x00b\tc\x1f ") == "a\nb\nc"
    assert score("niah_single_1", "12\x07345", ["12345"]) == 0.0


def test_answer_lengths_and_metrics_are_the_references() -> None:
    for name, task in TASKS.items():
        family = name.split("_")[0]
        assert task.max_new_tokens == NEW_TOKENS[family]
        assert task.metric == ("string_match_part" if family == "qa" else "string_match_all")
