"""The 13 tasks of RULER (arXiv 2404.06654) and how one sample of each is made."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nano3.config.errors import UserError
from nano3.eval.ruler import niah, qa, variable_tracking, word_extraction
from nano3.eval.ruler.catalogue import SOURCES, VARIANTS
from nano3.eval.ruler.fit import NoRoom, fit
from nano3.eval.ruler.questions import FileQuestions
from nano3.eval.ruler.sample import CountTokens, Plan, Request, Sample, TooShort
from nano3.eval.ruler.scoring import METRICS
from nano3.eval.ruler.sources import Sources


@dataclass(frozen=True)
class Task:
    """One of RULER's tasks."""

    name: str
    max_new_tokens: int
    """Tokens of the answer (tokens_to_generate of the reference); a sample's length includes them."""
    metric: str
    """string_match_all or string_match_part."""
    plan: Callable[[Request], Plan]

    def make(
        self, length: int, index: int, seed: int, count_tokens: CountTokens, sources: Sources, reserve: int = 0
    ) -> Sample:
        """See `make_sample`."""
        other = self.max_new_tokens + reserve
        request = Request(self.name, length, index, seed, count_tokens, sources, other)
        try:
            draft, tokens = fit(self.plan(request), count_tokens, length, other)
        except NoRoom as error:
            raise TooShort(self.name, length, error.tokens + other) from None
        return Sample(
            self.name, length, index, seed, draft.text, draft.answer_prefix, list(draft.references), draft.depth, tokens
        )

    def most_samples(self, sources: Sources) -> int | None:
        """Samples that the sources have questions for; None: any number."""
        known = [source.count for source in (getattr(sources, name) for name in SOURCES[self.name])
                 if isinstance(source, FileQuestions)]  # fmt: skip
        return min(known) if known else None

    def least(
        self, length: int, index: int, seed: int, count_tokens: CountTokens, sources: Sources, reserve: int = 0
    ) -> int:
        """Tokens of the shortest prompt of a sample, answer and reserve included; `length` where it surely is not
        longer than that.

        Raises:
            TooShort: it is longer than `length`.
            UserError: the sources have no such sample.
        """
        other = self.max_new_tokens + reserve
        plan = self.plan(Request(self.name, length, index, seed, count_tokens, sources, other))
        prompt = plan.build(plan.least).prompt
        if len(prompt.encode()) + other <= length:  # a token is a byte at the least
            return length
        tokens = count_tokens(prompt) + other
        if tokens > length:
            raise TooShort(self.name, length, tokens)
        return tokens


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(Task(name, 128, "string_match_all", niah.plan) for name in VARIANTS),
        Task("vt", 30, "string_match_all", variable_tracking.plan),
        Task("cwe", 120, "string_match_all", word_extraction.common_words),
        Task("fwe", 50, "string_match_all", word_extraction.frequent_words),
        Task("qa_1", 32, "string_match_part", qa.single_hop),
        Task("qa_2", 32, "string_match_part", qa.multi_hop),
    )
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: no such task; the nearest names are given.
    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the tasks are {', '.join(TASKS)}"
    raise UserError(f'no RULER task "{name}": {hint}')


def make_sample(
    task: str,
    length: int,
    index: int,
    seed: int,
    count_tokens: CountTokens,
    sources: Sources,
    reserve: int = 0,
) -> Sample:
    """One sample, the same for the same arguments (and the same tokenizer), written when it is asked for.

    Args:
        task: One of `TASKS`.
        length: Tokens of prompt, reserve and answer together; the sample uses 95 to 100 % of them.
        index: Number of the sample, from 0.
        seed: Another seed gives other samples.
        count_tokens: Tokens of a text, exactly.
        sources: Words, essays and questions.
        reserve: Tokens that are added around the prompt: a beginning-of-text token, a chat template.

    Raises:
        TooShort: the task does not fit; the message and `least` name the length that it needs.
        UserError: unknown task, or data that cannot be read.
    """
    return find_task(task).make(length, index, seed, count_tokens, sources, reserve)


def score(task: str, output: str, references: Sequence[str]) -> float:
    """0 to 1: an answer against the sample's references, by the task's metric."""
    return METRICS[find_task(task).metric](output, references)
