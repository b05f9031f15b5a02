"""A judge behind an OpenAI-compatible URL."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from nano3.client.attempts import Tries
from nano3.data.chat.parsing.output_parser import parse_output
from nano3.data.preferences.prompt import judge_prompt
from nano3.data.tokens.vocabulary import THINK_TOKENS
from nano3.rl.environments.base import EnvironmentFaultError
from nano3.rl.environments.judge import Judge, RefusedError
from nano3.rl.feedback.comparison import Comparison, JudgeStoppedError, Verdict
from nano3.rl.genrm import parse_judgement


class ServerJudge:
    """Asks a served model at temperature 0, several comparisons at once; each is asked once, its answer kept."""

    def __init__(
        self,
        url: str,
        model: str = "",
        cache: str | Path | None = None,
        max_tokens: int = 4096,
        workers: int = 8,
        tries: Tries | None = None,
        url_name: str = "--judge",
    ) -> None:
        """Nothing is asked yet; see nano3.rl.environments.judge.Judge for the key and the other arguments.

        Args:
            workers: comparisons that are asked for at once.
            max_tokens: of an answer, its reasoning included.
            url_name: where the URL comes from, for people.
        """
        self.calls = 0
        self._answered = False
        self.url, self.url_name = url, url_name
        self._judge, self._workers = Judge(url, model, cache, max_tokens, tries, url_name, "judge.model"), workers

    def find_model(self) -> None:
        """Ask the server which models it has. Raises UserError where none answers there in half a minute, or none has
        the name that is wanted."""
        self._judge.find_model()

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """See PairJudge. Reasoning that a server leaves in the text is no part of the judgement.

        A comparison that the server refuses, as one longer than its context, cannot be read. Where it refuses all that
        it was ever asked for, nothing is judged: it counts as a judge that does not answer.
        """
        with ThreadPoolExecutor(self._workers) as pool:
            futures = [pool.submit(self._one, each) for each in comparisons]
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                future.cancel()
            failed = next((e for f in futures if f.done() and not f.cancelled() and (e := f.exception())), None)
        if isinstance(failed, EnvironmentFaultError):
            raise JudgeStoppedError(f"judge {' '.join(str(failed).split())}") from failed
        if failed is not None:
            raise failed
        found = [future.result() for future in futures]
        self._answered |= any(not refused for _, refused in found)
        if found and not self._answered:
            raise JudgeStoppedError(f"judge {found[0][0].text}")
        self.calls += len(comparisons)
        return [verdict for verdict, _ in found]

    def _one(self, asked: Comparison) -> tuple[Verdict, bool]:
        """What was said, and whether the server refused to."""
        try:
            text = self._judge.chat([*judge_prompt(asked.task.messages, asked.response_1, asked.response_2)])
        except RefusedError as error:
            return Verdict(None, f"not judged: {' '.join(str(error).split())}"), True
        # A template may have opened the thinking part in the prompt, so that only its end is in the text.
        opened = THINK_TOKENS[1] in text and THINK_TOKENS[0] not in text
        return Verdict(parse_judgement(parse_output(text, thinking_open=opened).content), text), False
