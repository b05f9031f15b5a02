"""`nano3 eval lm` and `nano3 eval experts` from the command line."""

from __future__ import annotations

import json
import re

import pytest

from nano3.eval.lm.answers import Remembering
from nano3.installation import install_command
from nano3.progress import Progress

QUICK = ("--memory", "128MiB", "--dtype", "float32")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_scores_samples_and_resumption(run, model_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    ask = ("eval", "lm", "--from", model_folder, "--tasks", "nano3", *QUICK)
    done = run(*ask, "--limit", 3, "--out", out, "--json")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert shown == result_of(out)
    assert (shown["kind"], shown["complete"], shown["settings"]["limit"]) == ("lm", True, 3)
    scores = {(score["task"], score["metric"]): score for score in shown["scores"]}
    assert {task for task, _ in scores} == {"nano3_arithmetic", "nano3_opposites", "nano3_stdlib", "nano3_prose"}
    assert scores["nano3_prose", "bits_per_byte"]["higher_is_better"] is False
    samples = lines(out / "samples.jsonl")
    for task in ("nano3_opposites", "nano3_stdlib"):
        own = [sample["score"] for sample in samples if sample["task"] == task]
        assert len(own) == scores[task, "acc"]["n"] == 3
        assert scores[task, "acc"]["value"] == pytest.approx(100 * sum(own) / 3)
    asked = len(lines(out / "answers.jsonl"))
    assert asked == 3 + 2 * 3 * 4 + 3

    again = run(*ask, "--limit", 3, "--out", out, "--json")
    assert json.loads(again.out) == shown
    assert len(lines(out / "answers.jsonl")) == asked
    more = run(*ask, "--limit", 4, "--out", out)
    assert more.code == 0
    assert len(lines(out / "answers.jsonl")) == asked + 1 + 2 * 4 + 1
    assert len(lines(out / "samples.jsonl")) == 4 * 4
    other = run(*ask, "--limit", 4, "--num-fewshot", 1, "--out", out)
    assert other.code == 2
    assert "num_fewshot" in other.err


def test_an_interrupted_evaluation_goes_on(run, model_folder, tmp_path, monkeypatch):
    ask = ("eval", "lm", "--from", model_folder, "--tasks", "nano3_stdlib,nano3_prose", "--limit", 5, *QUICK)
    whole = json.loads(run(*ask, "--out", tmp_path / "whole", "--json").out)
    out, seen = tmp_path / "cut", []

    def stop(self, cost, what=""):
        seen.append(cost)
        if len(seen) == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "sample", stop)
        cut = run(*ask, "--out", out)
    assert cut.code == 130
    assert result_of(out)["complete"] is False
    kept = len(lines(out / "answers.jsonl"))
    assert kept == 7
    with (out / "answers.jsonl").open("a") as file:
        file.write('{"key": "torn')
    done = run(*ask, "--out", out, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["scores"] == whole["scores"]
    assert len(lines(out / "answers.jsonl")) == len(lines(tmp_path / "whole" / "answers.jsonl"))
    keys = [answer["key"] for answer in lines(out / "answers.jsonl")]
    assert len(set(keys)) == len(keys)


def test_tasks_of_the_users_own_and_chat(run, model_folder, tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text('{"q": "2+2?", "a": "4"}\n{"q": "1+1?", "a": "2"}\n')
    (tasks / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tasks / 'rows.jsonl'}}}, cache_dir: {tmp_path / 'cache'}}}\n"
        "test_split: test\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\noutput_type: generate_until\n"
        "generation_kwargs: {until: [], max_gen_toks: 5}\nmetric_list: [{metric: exact_match}]\n"
    )
    ask = ("eval", "lm", "--from", model_folder, "--tasks", "mine", "--include", tasks, *QUICK)
    done = run(*ask, "--chat", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    (score,) = json.loads(done.out)["scores"]
    assert (score["task"], score["metric"], score["n"]) == ("mine", "exact_match", 2)
    text = (tasks / "mine.yaml").read_text().replace("dataset_kwargs", "metadata")
    (tasks / "mine.yaml").write_text(text.replace("dataset_path: json", "dataset_path: nobody/has-this"))
    missing = run(*ask, "--out", tmp_path / "other")
    assert missing.code == 2
    assert "mine" in missing.err
    assert "cannot be downloaded" in missing.err
    assert missing.err.count("\n") == 1, missing.err
    assert not (tmp_path / "other").exists()


def task_file(folder, name, rows, body):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}, cache_dir: {folder / 'cache'}}}\n"
        f"test_split: test\n{body}"
    )


WRITE = (
    "doc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\noutput_type: generate_until\n"
    "generation_kwargs: {until: [], max_gen_toks: 5}\nmetric_list: [{metric: exact_match}]\n"
)
CHOOSE = "doc_to_text: '{{q}}'\ndoc_to_choice: '{{c}}'\ndoc_to_target: 0\noutput_type: multiple_choice\n"


def test_an_edited_task_is_another_evaluation(run, model_folder, tmp_path):
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    ask = ("eval", "lm", "--from", model_folder, "--tasks", "mine", "--include", tasks, *QUICK, "--out", out)
    task_file(tasks, "mine", [{"q": "2+2?", "a": "4"}], WRITE)
    assert run(*ask).code == 0
    assert run(*ask).code == 0
    settings = result_of(out)["settings"]
    assert (settings["engine"], settings["prefix"], settings["max_gen_toks"]) == ("native", "bos", None)
    task_file(tasks, "mine", [{"q": "2+2?", "a": "4"}], WRITE.replace("{{q}}", "Q: {{q}}"))
    edited = run(*ask)
    assert edited.code == 2
    assert "configurations.mine" in edited.err
    task_file(tasks, "mine", [{"q": "2+3?", "a": "5"}], WRITE)
    assert run(*ask).code == 2


def test_more_new_tokens_than_a_task_says(run, model_folder, tmp_path):
    task_file(tmp_path / "tasks", "mine", [{"q": "2+2?", "a": "4"}], WRITE)
    ask = ("eval", "lm", "--from", model_folder, "--tasks", "mine", "--include", tmp_path / "tasks", *QUICK)
    texts = {}
    for tokens in (None, 40):
        more = () if tokens is None else ("--max-gen-toks", tokens)
        out = tmp_path / str(tokens)
        assert run(*ask, *more, "--out", out).code == 0
        (texts[tokens],) = lines(out / "samples.jsonl")[0]["output"]
    assert len(texts[40]) > len(texts[None])
    assert texts[40].startswith(texts[None])
    out = tmp_path / "thinking"
    thinking = run(*ask, "--chat", "--thinking", "--max-context", 80, "--out", out)
    assert thinking.code == 0, thinking.err
    assert result_of(out)["settings"]["max_gen_toks"] == 40


def test_a_task_that_fails_leaves_what_was_done(run, model_folder, tmp_path):
    task_file(tmp_path / "tasks", "good", [{"q": "2+2?", "a": "4"}], WRITE)
    rows = [{"q": "2+2?", "c": ["4", "5"]}, {"q": "2+2?", "c": ["4", ""]}]
    task_file(tmp_path / "tasks", "bad", rows, CHOOSE + "target_delimiter: ''\n")
    out = tmp_path / "out"
    done = run("eval", "lm", "--from", model_folder, "--tasks", "good,bad", "--include", tmp_path / "tasks", *QUICK,
               "--out", out)  # fmt: skip
    assert done.code == 2
    assert "task bad: an empty continuation" in done.err
    found = result_of(out)
    assert not found["complete"]
    assert [score["task"] for score in found["scores"]] == ["good"]
    assert len(lines(out / "samples.jsonl")) == 1


def test_a_tasks_own_code_that_fails_is_one_line(run, model_folder, tmp_path):
    (tmp_path / "own.py").write_text("def process(docs):\n    return {}['nothing']\n")
    task_file(tmp_path, "mine", [{"q": "2+2?", "a": "4"}], WRITE + "process_docs: !function own.process\n")
    done = run("eval", "lm", "--from", model_folder, "--tasks", tmp_path / "mine.yaml", *QUICK, "--out", tmp_path / "o")
    assert done.code == 2
    assert "KeyError 'nothing'" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "o").exists()


def test_a_context_that_does_not_fit_is_refused(run, model_folder, tmp_path):
    ask = ("eval", "lm", "--from", model_folder, "--tasks", "nano3_prose", "--limit", 1, "--dtype", "float32")
    out = tmp_path / "out"
    done = run(*ask, "--memory", "2MiB", "--max-context", 100000, "--out", out)
    assert done.code == 2
    assert not out.exists()
    found = re.search(r"does not fit in memory: give --max-context (\d+)", done.err)
    assert found is not None, done.err
    done = run(*ask, "--memory", "2MiB", "--max-context", found[1], "--out", out)
    assert done.code == 0, done.err
    assert result_of(out)["settings"]["max_context"] == int(found[1])


def test_a_context_far_too_long_is_one_line(run, model_folder, tmp_path):
    done = run("eval", "lm", "--from", model_folder, "--tasks", "nano3_prose", "--memory", "8MiB", "--max-context",
               99999999, "--out", tmp_path / "out")  # fmt: skip
    assert done.code == 2
    assert done.err.startswith("error: a context of 99999999 tokens does not fit in memory: give --max-context")
    assert done.err.count("\n") == 1, done.err


def test_a_task_that_runs_code_is_refused_before_its_data_is_loaded(run, model_folder, tmp_path):
    (tmp_path / "base.yaml").write_text("dataset_path: nobody/has-this\ntest_split: test\nunsafe_code: true\n" + WRITE)
    (tmp_path / "code.yaml").write_text("include: base.yaml\ntask: code\ntag: coding\n")
    (tmp_path / "both.yaml").write_text("group: both\ntask:\n  - nano3_prose\n  - task: code\n    num_fewshot: 0\n")
    ask = ("eval", "lm", "--from", model_folder, "--include", tmp_path, "--tasks")
    for tasks in ("code", "nano3_prose,both", "coding"):
        done = run(*ask, tasks)
        assert done.code == 2
        assert done.err.startswith("error: task code runs code that the model writes, outside any sandbox")
        assert done.err.count("\n") == 1, done.err


@pytest.mark.slow  # reads the harness's 14,000 task files
def test_an_unknown_task_is_told_the_nearest(run, model_folder):
    done = run("eval", "lm", "--from", model_folder, "--tasks", "hellasvag,nano3")
    assert done.code == 2
    assert "hellasvag" in done.err
    assert "hellaswag" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--from", "{model}", "--thinking"), "--thinking needs --chat"),
        (("--from", "{model}", "--system", "x"), "--system needs --chat"),
        (("--from", "{model}", "--prefix", "pad"), "--prefix pad"),
        (("--from", "{model}", "--tasks", " , "), "--tasks"),
        (("--from", "{model}", "--tasks", "none.yaml"), "none.yaml: no such file"),
        (("--from", "/nowhere/at/all", "--tasks", "nano3_prose"), "no such folder"),
        (("--from", "nope", "--tasks", "hellaswag"), "error: nope: no such folder"),
        ((), "give --from with a folder"),
        (("--from", "{model}", "--model", "x"), "--from and --model name two models"),
        (("--url", "http://127.0.0.1:9", "--memory", "2"), "--memory is an option of a model of this machine: leave"),
        (("--from", "{model}", "--max-context", "200", "--max-gen-toks", "200"), "nano3_arithmetic: 200 new tokens"),
        (("--url", "http://127.0.0.1:9", "--chat", "--tasks", "nano3_stdlib"), "leave out --chat"),
    ],
)
def test_wrong_input_is_one_line(run, model_folder, options, words):
    done = run("eval", "lm", *(option.replace("{model}", str(model_folder)) for option in options))
    assert done.code == 2
    assert words in done.err
    assert done.err.strip().count("\n") == 0, done.err


def test_without_the_harness_it_is_said_what_to_install(run, model_folder, monkeypatch):
    monkeypatch.setattr("nano3.cli.eval.lm.find_spec", lambda name: None)
    done = run("eval", "lm", "--from", model_folder)
    assert done.code == 2
    assert f"needs lm-evaluation-harness: {install_command('eval')}" in done.err


def test_sampled_answers_are_never_remembered(tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

    class Counting(LM):
        asked = 0

        def generate_until(self, requests, disable_tqdm=False):
            for request in requests:
                self.asked += 1
                self.cache_hook.add_partial("generate_until", request.args, str(self.asked))
            return [str(i) for i in range(len(requests))]

        loglikelihood = loglikelihood_rolling = generate_until

    sampled = [{"do_sample": True, "temperature": 1.0}, {"temperature": 0.5}, {"do_sample": True},
               {"do_sample": None, "temperature": 0.5}]  # fmt: skip
    settings = [*sampled, {"temperature": 0.0}, {"do_sample": False, "temperature": 0.5}, {}]
    requests = [Instance("generate_until", {}, (f"{i}", s), i, ("t", i, 1)) for i, s in enumerate(settings)]
    lm = Counting()
    for asked in (7, 11):
        model = Remembering(lm, tmp_path, lambda n: Progress(n, n))
        model.generate_until(requests)
        model.close()
        assert lm.asked == asked
    assert len(lines(tmp_path / "answers.jsonl")) == 3
