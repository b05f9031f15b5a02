"""`nano3 rlvr show`: tables of steps, environments and groups, and samples with their tokens marked."""

import html
import json
import re
import shutil

import pytest

from nano3.rl.rollout_files import rollouts_path


@pytest.fixture
def show(run, folder):
    return lambda *args: run("rlvr", "show", folder, *args)


def cells(text, first):
    """Cells of the table's line that begins so."""
    [line] = [line for line in text.splitlines() if line.split()[:1] == [first]]
    return line.split()


def test_the_first_screen_has_steps_and_environments(show):
    done = show()
    assert done.code == 0, done.err
    # Step 1: rewards of echo 2 + 4 + 2 of 12, of judged 0 and 0.25; the group with a fault counts as such alone.
    assert cells(done.out, "1") == ["1", "5", "0.589", "57%", "25%", "7%", "12", "1", "judge"]
    assert cells(done.out, "2")[2:4] == ["0.661", "64%"]
    assert cells(done.out, "echo") == ["echo", "9", "0.694", "69%", "67%", "67%", "33%", "8%"]
    assert cells(done.out, "judged")[-2:] == ["3", "judge"]


def test_many_steps_share_rows_and_one_environment_can_be_asked_for(show):
    text = show("--limit", 2, "--env", "judged").out
    assert cells(text, "1-2")[:3] == ["1-2", "4", "0.125"]
    assert cells(text, "3")[:3] == ["3", "2", "0.125"]
    assert "echo" not in text


def test_the_first_screen_as_json_has_every_step(show):
    found = json.loads(show("--json", "--limit", 1).out)
    assert [row["step"] for row in found["steps"]] == [1, 2, 3]
    assert found["steps"][0]["pass_rate"] == pytest.approx(8 / 14)
    assert found["steps"][0]["faults"] == {"judge": 1}
    assert found["environments"][0]["environment"] == "echo"
    assert found["environments"][0]["last_pass_rate"] == pytest.approx(8 / 12)


def test_a_step_has_its_groups(show):
    text = show("--step", 1).out
    rows = {line.split()[1]: " ".join(line.split()[2:]) for line in text.splitlines() if "say-" in line}
    assert rows["say-0"] == "2 of 4 0.500 2 x 0, 2 x 1"
    assert rows["say-1"] == "4 of 4 1.000 4 x 1 all equal"
    assert rows["say-2"] == "2 of 4 0.500 2 x 0, 2 x 1 1 cut off"
    assert "dropped: judge" in text
    groups = json.loads(show("--step", 1, "--env", "judged", "--json").out)["groups"]
    assert [group["rewards"] for group in groups] == [[0.5, None], [0.0, 0.25]]


def test_a_sample_is_shown_as_the_policy_wrote_it(show):
    text = show("--step", 1, "--task", "say-2").out
    assert re.findall("«(.*?)»", text, re.S)[:2] == [
        "I call\n</think>\n<tool_call>\n<function=add>\n</function>\n</tool_call><|im_end|>",
        "so\n</think>\n2<|im_end|>",
    ]  # fmt: skip
    assert "<tool_response>\n7\n</tool_response>" in text
    assert "«so»‹\n</think>\n›«2<|im_end|>»" in text
    assert "passed · reward 1 · advantage +1.155 · " in text
    assert "parts: said 2, calls 1" in text
    assert "failed · reward 0 · advantage -1.155 · cut off at its limit, so not trained on" in text
    # The prompt stands once.
    assert text.count("Say 2.") == 1
    assert text.count("(the prompt, as above)") == 3


@pytest.mark.parametrize(
    ("args", "samples"),
    [
        (["--step", 1, "--task", "say-0"], [(1, 0), (1, 1), (1, 2), (1, 3)]),
        (["--task", "say-0", "--passed", "--limit", 3], [(3, 2), (3, 3), (2, 1)]),
        (["--step", 1, "--env", "echo", "--failed"], [(1, 0), (1, 1), (1, 1), (1, 3)]),
        (["--truncated"], [(3, 1), (2, 1), (1, 1)]),
        (["--task", "say-1", "--sample", 2], [(3, 2), (2, 2), (1, 2)]),
    ],
)
def test_samples_are_chosen_newest_step_first(show, args, samples):
    found = json.loads(show(*args, "--json").out)["samples"]
    assert [(one["step"], one["sample"]) for one in found] == samples


def test_a_sample_as_json_has_messages_and_stretches_by_kind(show):
    [one] = json.loads(show("--step", 1, "--task", "say-2", "--sample", 2, "--json").out)["samples"]
    assert [part["kind"] for part in one["sequences"][0]] == ["given", "drawn", "forced", "drawn"]
    assert [part["text"] for part in one["sequences"][0][1:]] == ["so", "\n</think>\n", "2<|im_end|>"]
    assert one["messages"] == [{"role": "assistant", "content": "2", "reasoning_content": "so"}]
    assert (one["reward"], one["passed"], one["truncated"]) == (1.0, True, False)
    [faulty] = json.loads(show("--step", 1, "--task", "essay <0>", "--sample", 1, "--json").out)["samples"]
    assert (faulty["fault"], faulty["fault_message"]) == ("judge", "no answer of the judge")
    assert (faulty["reward"], faulty["advantage"]) == (None, None)


def test_where_there_are_more_it_says_how_to_see_them(show):
    assert "the first 2 samples; there are more: --limit 4" in show("--task", "say-1", "--limit", 2).err
    assert "there are more" not in show("--truncated").err


def test_only_the_files_of_what_is_shown_are_read(run, folder):
    for step in (1, 2):
        rollouts_path(folder, step).write_text("damaged\n", "utf-8")
    one = run("rlvr", "show", folder, "--task", "say-1", "--limit", 1, "--sample", 0)
    assert one.code == 0, one.err
    assert "the first 1 samples; steps before 3 are not read for more: --limit 2, or one --step" in one.err
    # A file that does not have the name cannot have the task.
    more = run("rlvr", "show", folder, "--task", "say-1", "--limit", 99, "--json")
    assert more.code == 0, more.err


def test_without_a_folder_the_newest_run_is_shown(run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no run is named and runs/ holds no finished rlvr or rlhf run" in run("rlvr", "show").err
    shutil.copytree(folder, tmp_path / "runs" / "rlvr-a")
    config = tmp_path / "runs" / "rlvr-a" / "config.toml"
    config.write_text(config.read_text("utf-8") + "[curriculum]\n", "utf-8")
    assert "holds no finished" in run("rlvr", "show").err
    (tmp_path / "runs" / "rlvr-a" / "model").mkdir()
    (tmp_path / "runs" / "rlvr-a" / "model" / "config.json").write_text("{}", "utf-8")
    found = run("rlvr", "show")
    assert found.err.startswith("run: runs/rlvr-a (the newest finished rlvr or rlhf run;")
    assert "Rollouts of runs/rlvr-a" in found.out


def test_without_a_tokenizer_the_messages_are_shown(show, folder):
    shutil.rmtree(folder / "tokenizer")
    done = show("--step", 1, "--task", "say-2", "--sample", 0)
    assert "has no tokenizer" in done.err
    assert "<think>\nI call\n</think>\ncalls add({})" in done.out
    assert "[tool]\n7" in done.out


def test_the_page_marks_what_was_drawn_and_escapes_what_the_model_wrote(show, tmp_path):
    done = show("--step", 1, "--html", tmp_path / "page.html")
    assert done.err.endswith(f"page: {tmp_path / 'page.html'}\n")
    page = (tmp_path / "page.html").read_text("utf-8")
    drawn = re.findall(r'<mark title="token [\d ]+, probability 0\.[\d]+">(.*?)</mark>', page, re.S)
    assert "é日" in "".join(drawn)
    assert "tool_response" not in "".join(drawn)
    forced = re.findall(r'<mark class=forced title="token [\d ]+">(.*?)</mark>', page, re.S)
    assert html.unescape(re.sub("<i>.*?</i>", "", "".join(forced))) == "\n</think>\n"
    assert "<b>words</b>" not in page
    assert "essay &lt;0&gt;" in page
    assert page.count("<h3>prompt</h3>") == 5
    assert "http" not in page


def test_the_page_takes_the_samples_that_are_asked_for(show, tmp_path):
    show("--truncated", "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert re.findall(r"<h3>sample (\d) · (\w+)", page) == [("1", "failed")] * 3


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--step", "9"], "no rollouts of step 9: there are 3 files, of steps 1 to 3"),
        (["--env", "ecko"], "--env ecko: there are rollouts of echo, judged"),
        (["--task", "say-9"], "--task say-9: there is no such task in these steps; there is say-"),
        (["--env", "judged", "--passed"], "no saved sample is of that kind"),
        (["--passed", "--failed"], "--passed and --failed exclude each other"),
        (["--step", "1", "--env", "nope"], "--env nope: there are rollouts of echo, judged"),
    ],
)
def test_what_is_not_there_is_one_line(show, args, words):
    done = show(*args)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def test_a_folder_without_rollouts_and_a_damaged_file_are_one_line(run, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run("rlvr", "show", tmp_path / "empty")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "has no rollouts" in done.err
    path = rollouts_path(folder, 2)
    path.write_text(path.read_text("utf-8")[:-30], "utf-8")
    done = run("rlvr", "show", folder)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "step-2.jsonl, line 16: no saved rollout" in done.err
    path.with_suffix(".npz").unlink()
    assert "is missing" in run("rlvr", "show", folder).err
