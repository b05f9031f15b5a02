"""All tasks: lengths, determinism, and an oracle that reads the ground truth."""

from __future__ import annotations

import pytest

from nano3.config.errors import UserError
from nano3.eval.ruler import TASKS, CountTokens, Sources, TooShort, find_task, make_sample, score

REFERENCE_TASKS = {
    *(f"niah_single_{i}" for i in (1, 2, 3)),
    *(f"niah_multikey_{i}" for i in (1, 2, 3)),
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
}
SEED = 7


def check(task: str, length: int, index: int, count: CountTokens, sources: Sources, reserve: int = 0) -> None:
    sample = make_sample(task, length, index, SEED, count, sources, reserve)
    used = sample.n_tokens + reserve + TASKS[task].max_new_tokens
    assert sample.n_tokens == count(sample.prompt)
    assert 0.95 * length <= used <= length, (task, length, used / length)
    assert score(task, " ".join(sample.references), sample.references) == 1.0
    assert score(task, "I do not know.", sample.references) == 0.0
    assert sample.references


def least_length(task: str, index: int, count: CountTokens, sources: Sources) -> int:
    with pytest.raises(TooShort, match=rf"{task} does not fit in 150 tokens: the least length is \d+") as caught:
        make_sample(task, 150, index, SEED, count, sources)
    return caught.value.least


def test_the_tasks_are_the_references() -> None:
    assert set(TASKS) == REFERENCE_TASKS


@pytest.mark.parametrize("length", [512, 1024, 2048, 4096, 16384])
@pytest.mark.parametrize("task", sorted(REFERENCE_TASKS))
def test_samples_fill_their_length_and_an_oracle_scores_full(
    task: str, length: int, count: CountTokens, sources: Sources
) -> None:
    for index in range(3 if length < 4096 else 1):
        least = least_length(task, index, count, sources)
        assert least < 2048
        check(task, max(length, least), index, count, sources)


@pytest.mark.slow
@pytest.mark.parametrize("length", [65536, 131072])
@pytest.mark.parametrize("task", sorted(REFERENCE_TASKS))
def test_long_samples_fill_their_length(task: str, length: int, count: CountTokens, sources: Sources) -> None:
    check(task, length, 0, count, sources)


@pytest.mark.parametrize("task", sorted(REFERENCE_TASKS))
def test_room_for_a_template_is_kept_free(task: str, count: CountTokens, sources: Sources) -> None:
    check(task, 4096, 0, count, sources, reserve=300)


@pytest.mark.parametrize("task", sorted(REFERENCE_TASKS))
def test_arguments_decide_a_sample(task: str, count: CountTokens, sources: Sources) -> None:
    first = make_sample(task, 4096, 5, 1, count, sources)
    assert first == make_sample(task, 4096, 5, 1, count, Sources(words=sources.words))
    for other in (make_sample(task, 4096, 6, 1, count, sources), make_sample(task, 4096, 5, 2, count, sources)):
        assert other.text != first.text


def test_only_what_is_asked_for_is_written(count: CountTokens, sources: Sources) -> None:
    counted: list[str] = []

    def listen(text: str) -> int:
        counted.append(text)
        return count(text)

    make_sample("niah_single_1", 2048, 499, 0, listen, sources)
    assert len(counted) < 10


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("niah_single", "niah_single_1"),
        ("niah_multi_query", "niah_multiquery"),
        ("vt1", "vt"),
        ("xyz", "the tasks are"),
    ],
)
def test_an_unknown_task_gets_the_nearest_names(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=rf'no RULER task "{name}": .*{hint}'):
        find_task(name)
