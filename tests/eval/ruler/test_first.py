"""The first look: which lengths, and the estimate of time."""

from __future__ import annotations

import pytest

from nano3.cli.eval.ruler import _amount
from nano3.config.errors import UserError
from nano3.eval.prompt import Answer, Target
from nano3.eval.ruler import TASKS
from nano3.eval.ruler.first import estimate_seconds, first_lengths
from nano3.eval.ruler.run import lasting_notes


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ("[data]\nseq_len = 512\n", (512,)),
        ("[data]\nseq_len = 64\n", (512,)),
        ("[data]\nseq_len = 2500\n", (512, 1024, 2048)),
        ("[data]\nseq_len = 512\n[context.lengths]\n8192 = 1\n512 = 1\n", (512, 1024, 2048, 4096)),
    ],
)
def test_a_run_is_looked_at_as_far_as_it_was_trained(tmp_path, settings, lengths):
    (tmp_path / "config.toml").write_text(settings)
    assert first_lengths(str(tmp_path)) == lengths


def test_other_models_are_looked_at_as_far_as_they_were_made_for(tmp_path):
    assert first_lengths("tiny") == (512, 1024, 2048, 4096)
    assert first_lengths(None) == (512, 1024, 2048, 4096)
    with pytest.raises(UserError):
        first_lengths(str(tmp_path))


def test_tasks_or_lengths_asked_for_are_what_runs(capsys):
    assert _amount("1m", None, None, "tiny") == (tuple(TASKS), (1 << 20,), 100)
    assert _amount(None, "vt", 3, "tiny") == (("vt",), (4096,), 3)
    assert not capsys.readouterr().err
    assert _amount(None, None, None, "tiny") == (("niah_single_1",), (512, 1024, 2048, 4096), 20)
    assert _amount(None, None, 5, "tiny")[2] == 5
    assert (
        "a first look: niah_single_1 at 512,1k,2k,4k, 20 samples; all of RULER: --tasks all" in capsys.readouterr().err
    )


class Clocked(Target):
    """A target on which a prompt token takes 0.5 s and a new one 2 s of a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def encode(self, text):
        return [ord(letter) for letter in text]

    def generate(self, prompts, tick=None):
        for key, prompt in prompts:
            self.now += 0.5 * len(prompt.ids) + 2.0 * (prompt.max_tokens - 1)
            yield key, Answer("", len(prompt.ids), prompt.max_tokens)


def test_the_estimate_counts_prompts_and_answers(monkeypatch):
    left = [("niah_single_1", 512, 0), ("vt", 1024, 0)]
    assert estimate_seconds(Clocked(monkeypatch), left) == pytest.approx(0.5 * 1536 + 2.0 * (128 + 30))


def test_notes_of_sources_do_not_outlast_their_tasks():
    kept = "600 tokens are more than the 512 that the model was made for"
    assert lasting_notes(["squad: questions of Python", "words: nano3 word list", kept]) == [kept]
