"""`nano3 eval ruler` from end to end: a random model, an oracle behind a server, kills, and a server that goes away."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from nano3.cli import output
from nano3.cli.eval import ruler as eval_ruler
from nano3.eval.ruler import Sources
from nano3.eval.ruler.run import Plan, summarize
from nano3.eval.ruler.words import WordList
from nano3.eval.store import Result, Score

from ...eval.servers import answering
from ...forked import start_ranks

SMALL = ("--ctx", "512", "--tasks", "niah_single_1,niah_multikey_2", "--seed", 5)


def needles(prompt: str) -> str:
    """What an oracle answers: all values of the keys that the question names."""
    context, _, question = prompt.rpartition("\nWhat ")
    known = re.findall(r"One of the special magic \w+ for ([\w-]+) is: ([\w-]+)", context)
    return " ".join(value for key, value in known if key in question)


class Oracle:
    """An OpenAI-compatible server's answers; a token is a character."""

    def __init__(self, good: int | None = None) -> None:
        self.left = itertools.count() if good is None else iter(range(good))

    def __call__(self, path: str, body: dict) -> tuple[int, dict]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "oracle", "max_model_len": 8192}]}
        if path == "/tokenize":
            text = body["prompt"] if "prompt" in body else f"<user>{body['messages'][0]['content']}<assistant>"
            return 200, {"tokens": [ord(c) for c in text]}
        if next(self.left, None) is None:
            return 503, {}
        prompt = body["prompt"]
        text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        return 200, {"choices": [{"text": needles(text), "finish_reason": "stop"}]}


@pytest.fixture(autouse=True)
def here(request, tmp_path, monkeypatch):
    """A folder of the test's own; charts take longer than these evaluations, so only a test that asks for
    `draws_charts` draws them."""
    monkeypatch.chdir(tmp_path)
    if "draws_charts" not in request.fixturenames:
        monkeypatch.setattr("nano3.eval.ruler.report.heat_maps", lambda grids, path, *labels: path)


@pytest.fixture
def draws_charts():
    """Asks for charts."""


def rows(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "samples.jsonl").read_text().splitlines()]


def result(folder: str) -> dict:
    return json.loads(Path(folder, "result.json").read_text())


@pytest.mark.usefixtures("draws_charts")
def test_a_random_model_is_evaluated_and_its_folder_is_whole(run, base_folder):
    done = run("eval", "ruler", "--from", base_folder, *SMALL, "--samples", 2, "--out", "r")
    assert done.code == 0, done.err
    assert "niah_multikey_2" in done.out
    found = result("r")
    assert (found["kind"], found["name"], found["model"], found["complete"]) == (
        "ruler", "ruler-offline", "base-model", True,
    )  # fmt: skip
    assert [(s["task"], s["length"], s["n"]) for s in found["scores"]] == [
        ("niah_single_1", 512, 2), ("niah_multikey_2", 512, 2), ("average", 512, 4),
    ]  # fmt: skip
    for row in rows("r"):
        assert 0.9 * 512 <= row["prompt_tokens"] + 128 <= 512
        assert 0 <= row["depth"] <= 1
    assert {path.name for path in Path("r").glob("*.png")} == {"depth.png", "tasks.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in Path("r").glob("*.png"))
    before = Path("r", "samples.jsonl").read_bytes()
    again = run("eval", "ruler", "--from", base_folder, *SMALL, "--samples", 2, "--out", "r", "--json")
    assert json.loads(again.out)["scores"] == found["scores"]
    assert Path("r", "samples.jsonl").read_bytes() == before


def test_a_first_look_says_what_it_is_how_long_it_takes_and_what_zeros_mean(run, base_folder):
    done = run("eval", "ruler", "--from", base_folder, "--samples", 1, "--out", "r", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert {score["task"] for score in found["scores"]} == {"niah_single_1"}
    assert found["settings"]["reference"] == "NVIDIA/RULER c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a"
    first, start, time_line = done.err.splitlines()[:3]
    assert first.startswith("a first look: niah_single_1 at 512")
    assert re.match(r"\d samples to answer \([\d.]+K? tokens\); results go to r$", start)
    assert re.match(r"at most about [\dhms]+", time_line)
    assert "every score is 0: small models copy from their context only after" in done.err


def test_notes_name_the_sources_of_the_tasks_that_run(run, base_folder):
    first = ("eval", "ruler", "--from", base_folder, "--ctx", "2k", "--samples", 1, "--out", "r", "--json")
    assert any(note.startswith("squad:") for note in json.loads(run(*first, "--tasks", "qa_1").out)["notes"])
    notes = json.loads(run(*first, "--tasks", "niah_single_1").out)["notes"]
    assert [note.partition(":")[0] for note in notes if ": " in note] == ["words"]


def test_more_samples_and_lengths_go_on_in_the_same_folder(run, base_folder):
    first = ("eval", "ruler", "--from", base_folder, "--tasks", "niah_single_1")
    assert run(*first, "--ctx", "512", "--samples", 1).code == 0
    assert run(*first, "--ctx", "512,600", "--samples", 2).code == 0
    assert [path.name for path in Path("runs").iterdir()] == ["eval-ruler-base-model"]
    assert len(rows("runs/eval-ruler-base-model")) == 4
    other = run(*first, "--ctx", "512", "--samples", 1, "--seed", 1, "--out", "runs/eval-ruler-base-model")
    assert other.code == 2
    assert "seed: 0 -> 1" in other.err
    assert run(*first, "--ctx", "512", "--samples", 1, "--seed", 1).code == 0
    assert Path("runs/eval-ruler-base-model-2").is_dir()


@pytest.mark.parametrize("style", ["--chat", "--raw"])
def test_an_oracle_behind_a_server_has_all_needles(run, style):
    with answering(Oracle()) as url:
        done = run("eval", "ruler", "--url", url, "--ctx", "4k,6k", "--tasks", "niah", "--samples", 1,
                   "--out", "r", style, "--json")  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert {score["value"] for score in found["scores"]} == {100.0}
    assert len(found["scores"]) == 2 * 8 + 2
    for row in rows("r"):
        assert 0.95 * row["length"] <= row["prompt_tokens"] + 128 <= row["length"]


def test_the_longest_length_decides_the_name():
    words = WordList("wonderwords 3.0.1", True, *([f"{part}{i}" for i in range(9)] for part in "anv"))
    store = SimpleNamespace(rows={})
    for longest, name in ((131072, "ruler"), (1 << 20, "ruler-offline")):
        plan = Plan(("cwe",), (4096, longest), 1, 0, False, Sources(words=words))
        assert summarize(plan, store, "m", plan.settings("m", "i")).name == name


def test_other_tasks_go_on_in_the_folder_and_other_essays_are_refused(run, base_folder, tmp_path):
    command = ("eval", "ruler", "--from", base_folder, "--ctx", "1k", "--samples", 1, "--out", "r", "--raw")
    assert run(*command, "--tasks", "vt").code == 0
    done = run(*command, "--tasks", "vt,niah_single_2")
    assert done.code == 0, done.err
    assert len(rows("r")) == 2
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Some other prose. " * 60)
    other = run(*command, "--tasks", "vt,niah_single_2", "--essays", "texts")
    assert other.code == 2
    assert "sources.essays: prose of python-stdlib" in other.err
    assert len(rows("r")) == 2


def test_too_many_samples_for_a_file_are_told_before_the_first_answer(run, base_folder):
    context = "The tower was built by Ann of the green hill. " * 3
    asked = [{"question": "Who built it?", "answers": [{"text": "Ann"}], "is_impossible": False}]
    articles = [{"paragraphs": [{"context": f"{i} {context}", "qas": asked}]} for i in range(3)]
    Path("squad.json").write_text(json.dumps({"data": articles}))
    command = ("eval", "ruler", "--from", base_folder, "--tasks", "qa_1", "--ctx", "1k", "--squad", "squad.json",
               "--out", "r", "--raw")  # fmt: skip
    done = run(*command, "--samples", 4)
    assert done.code == 2
    assert "--samples 4: qa_1 has 3 questions in its file" in done.err
    assert not Path("r").exists()
    articles[2]["paragraphs"][0]["context"] = context * 60
    Path("squad.json").write_text(json.dumps({"data": articles}))
    long = run(*command, "--samples", 3)
    assert long.code == 2
    assert "qa_1 does not fit in 1024 tokens" in long.err, "the third question's document is too long"
    assert not Path("r").exists()


def test_a_server_that_goes_away_leaves_what_is_done_and_exit_code_3(run):
    command = ("eval", "ruler", "--ctx", "4k", "--tasks", "niah_single_1", "--samples", 6, "--out", "r", "--retries", 0,
               "--concurrency", 2)  # fmt: skip
    with answering(Oracle(good=3)) as url:
        gone = run(*command, "--url", url)
    assert gone.code == 3
    (line,) = [line for line in gone.err.splitlines() if line.startswith("error")]
    assert "HTTP 503" in line
    assert "r; give the same command again to go on" in line
    assert len(rows("r")) == 3
    assert result("r")["complete"] is False
    with answering(Oracle()) as other:
        refused = run(*command, "--url", other)
    assert refused.code == 2
    assert "identity: oracle at" in refused.err, "another server may have another model of that name"
    with answering(Oracle(), int(url.rpartition(":")[2])) as url:
        assert run(*command, "--url", url).code == 0
    assert result("r")["complete"] is True
    assert sorted(row["index"] for row in rows("r")) == list(range(6))


def test_a_killed_evaluation_goes_on_to_the_same_result(run, base_folder):
    command = ["eval", "ruler", "--from", base_folder, *SMALL, "--samples", 6, "--max-sequences", 1]
    (process,) = start_ranks("-m", "nano3", *map(str, command), "--out", "killed")
    file = Path("killed", "samples.jsonl")
    while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= file.read_bytes().count(b"\n") < 12
    with file.open("ab") as torn:
        torn.write(b'{"task": "niah_si')
    assert run(*command, "--out", "killed").code == 0
    assert run(*command, "--out", "whole").code == 0
    by_key = [sorted(rows(folder), key=lambda row: (row["task"], row["index"])) for folder in ("killed", "whole")]
    assert by_key[0] == by_key[1]
    assert result("killed") == result("whole")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "niah_singel_1"], "did you mean niah_single_1"),
        (["--tasks", "poetry"], "qa_2; groups of them are niah, qa, all"),
        (["--ctx", "4x"], "--ctx 4x: not a length"),
        (["--ctx", "100"], "too short"),
        (["--ctx", ","], "names no length"),
        (["--essays", "no/such/folder"], "--essays no/such/folder: no such file or folder"),
        (["--squad", "no.json"], "--squad no.json: no such file"),
        (["--dtype", "int3"], "--dtype int3: not known; use one of auto, float32, bfloat16"),
        (["--from", "runs/nothere"], "runs/nothere"),
        (["--url", "http://127.0.0.1:9"], "one of them"),
        (["--retries", "3"], "--retries is an option of a server's model: add --url"),
        (["--memory", "lots"], "--memory lots: not a size"),
        (["--ctx", "64k", "--memory", "1MiB"], "the largest that fits is"),
        (["--ctx", "256", "--tasks", "vt"], "does not fit in 256 tokens"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(run, base_folder, arguments, said):
    done = run("eval", "ruler", "--from", base_folder, "--samples", 1, *arguments)
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error")]
    assert said in line
    assert not list(Path().iterdir())


def test_the_length_that_is_told_is_enough_for_all_samples(run, base_folder):
    command = ("eval", "ruler", "--from", base_folder, "--tasks", "vt,cwe", "--samples", 8)
    done = run(*command, "--ctx", 400)
    assert done.code == 2
    found = re.search(r"do(?:es)? not fit in 400 tokens: the least length is (\d+) .*; give (--ctx \1)", done.err)
    assert found is not None, done.err
    fits = run(*command, *found[2].split())
    assert fits.code == 0, fits.err
    assert len(rows("runs/eval-ruler-base-model")) == 16


def test_lengths_and_tasks_that_fit_are_given_to_copy(run, base_folder):
    command = ("eval", "ruler", "--from", base_folder, "--samples", 1)
    done = run(*command, "--tasks", "niah_single_1,vt", "--ctx", "512,2k,4k")
    assert done.code == 2
    assert done.err.rstrip().endswith("; give --ctx 2k,4k, or --tasks niah_single_1")
    assert run(*command, "--tasks", "niah_single_1", "--ctx", "512").code == 0


def test_results_do_not_go_among_other_files(run, base_folder):
    Path("corpus").mkdir()
    Path("corpus", "a.txt").write_text("text")
    command = ("eval", "ruler", "--from", base_folder, *SMALL, "--samples", 1, "--out")
    for verb in (command, ("eval", "lm", "--from", base_folder, "--out"),
                 ("eval", "experts", "--from", base_folder, "--out")):  # fmt: skip
        done = run(*verb, "corpus")
        assert done.code == 2
        assert done.err == (
            "error: corpus holds other files (a.txt), no evaluation: give another --out, such as corpus/eval\n"
        )
    assert [path.name for path in Path("corpus").iterdir()] == ["a.txt"]
    assert run(*command, "corpus/eval").code == 0
    Path("empty").mkdir()
    assert run(*command, "empty").code == 0


@pytest.mark.parametrize(("name", "said"), [("result.json", "delete it and run the evaluation again"),
                                            ("settings.json", "give another --out, or delete the folder")])  # fmt: skip
def test_a_damaged_file_is_told_with_what_to_do(run, base_folder, name, said):
    command = ("eval", "ruler", "--from", base_folder, *SMALL, "--samples", 1, "--out", "r")
    assert run(*command).code == 0
    Path("r", name).write_text("{")
    done = run(*command)
    assert done.code == 2
    assert f"r/{name}: not JSON" in done.err
    assert said in done.err
    if name == "result.json":
        Path("r", name).unlink()
        assert run(*command).code == 0


def test_a_table_of_many_lengths_keeps_each_number_on_one_line(monkeypatch, capsys):
    monkeypatch.setattr(output, "PIPE_WIDTH", 80)
    tasks, lengths = ("niah_multikey_1", "average"), [1024 << i for i in range(7)]
    scores = [Score(task, length, "m", 100.0, 0.0, 9, True, 96.3, 100.0) for task in tasks for length in lengths]
    eval_ruler._show(Result("ruler", "ruler", "m", True, {}, scores), [], Path("r"), False)
    out = capsys.readouterr().out
    assert out.count("100.0 (96-100)") == 14
    assert max(map(len, out.splitlines())) <= 80
    for length in lengths:
        assert out.count(f" {length // 1024}k\n") + out.count(f" {length // 1024}k ") == 1


def test_a_server_that_answers_nothing_leaves_nothing(run):
    with answering(Oracle(0)) as url:
        done = run("eval", "ruler", "--url", url, "--ctx", "2k", "--tasks", "niah_single_1", "--samples", 2,
                   "--retries", 0)  # fmt: skip
        assert done.code == 3
        assert "nothing was answered; give the same command again" in done.err
        wrong = run("eval", "ruler", "--url", url, "--model", "foo", "--ctx", "2k", "--tasks", "niah_single_1")
        assert wrong.err == f"error: --model foo: {url} has no such model; it has oracle\n"
    assert not list(Path().iterdir())


def test_what_does_not_fit_is_told_with_a_length_that_does(run, base_folder):
    done = run("eval", "ruler", "--from", base_folder, "--ctx", "64k", "--memory", "1MiB", "--tasks", "niah_single_1")
    largest = int(re.search(r"the largest that fits is (\d+) tokens", done.err)[1])
    fits = run("eval", "ruler", "--from", base_folder, "--ctx", min(largest, 600), "--memory", "1MiB",
               "--tasks", "niah_single_1", "--samples", 1)  # fmt: skip
    assert fits.code == 0, fits.err


def test_a_context_beyond_what_the_model_was_made_for_is_noted(run, base_folder, tmp_path):
    folder = tmp_path / "short"
    shutil.copytree(base_folder, folder)
    keys = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 256}
    (folder / "config.json").write_text(json.dumps(keys))
    done = run("eval", "ruler", "--from", folder, "--ctx", "512", "--tasks", "niah_single_1", "--samples", 1, "--json")
    assert done.code == 0
    assert "512 tokens are more than the 256 that the model was made for" in json.loads(done.out)["notes"]


def test_ctrl_c_leaves_what_is_done(base_folder):
    (process,) = start_ranks("-m", "nano3", "eval", "ruler", "--from", base_folder, *map(str, SMALL), "--samples", "50",
                             "--max-sequences", "1", "--out", "r")  # fmt: skip
    file = Path("r", "samples.jsonl")
    while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") >= 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "give the same command again to go on" in err
    found = result("r")
    assert found["complete"] is False
    assert sum(score["n"] for score in found["scores"] if score["task"] != "average") == len(rows("r")) < 100


def test_no_target_and_no_server_are_one_line(run):
    assert "no model is named" in run("eval", "ruler").err
    done = run("eval", "ruler", "--url", "http://127.0.0.1:9")
    assert done.code == 2
    assert "is a server running there" in done.err
    assert not Path("runs").exists()
