"""`nano3 data curate` and `nano3 data report` as they are typed."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from nano3.cli.data.app import app
from nano3.cli.data.curate_report import _print_next
from nano3.config.errors import UserError
from nano3.config.presets import preset_names
from nano3.curate.ledger import Size
from nano3.curate.pipeline import load_pipeline
from nano3.data.texts.skipped import Skipped
from nano3.data.texts.stdlib_corpus import StandardLibrary

from ...curate.model_server import MODEL, ModelServer


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.txt").write_text("the same text\n" if i % 2 else f"text {i} " * 40)
    (folder / "x.pdf").write_bytes(b"%PDF")
    return folder


def run(*args, code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def refused(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_a_run_and_its_report(texts, tmp_path, monkeypatch):
    done = run("curate", "tiny", "--from", texts, "--set", "length.least=5", "--workers", 1)
    assert "left out: 1 file of unknown type (x.pdf)" in done.stderr
    assert "03-exact-dedup: duplicate" in done.stdout
    assert "nano3 pretrain --data curated/tiny\n" in done.stdout
    report = json.loads(run("report", "curated/tiny", "--json").stdout)
    assert (report["finished"], report["balanced"]) == (True, True)
    assert (report["entered"]["documents"], report["result"]["documents"]) == (6, 4)
    assert report["steps"][3]["dropped"]["duplicate"]["documents"] == 2
    shown = run("report", "curated/tiny", "--samples", 1).stdout
    assert "copy of 1.txt\nthe same text" in shown
    assert "──── kept · 0.txt ────\ntext 0" in shown
    assert (tmp_path / "curated/tiny/report.png").stat().st_size > 1000
    monkeypatch.setenv("COLUMNS", "44")  # names are folded in a narrow terminal, never numbers
    assert f" {report['entered']['bytes']:,} " in run("report", "curated/tiny").stdout


def test_a_table_fits_its_terminal(texts, monkeypatch):
    reason = f"licence {' AND '.join(f'LicenseRef-{i}' for i in range(9))}"[:60]
    (texts / "0.txt").write_text(f"# SPDX-License-Identifier: {reason[8:]}\n" + "text " * 40)
    run("curate", "code", "--from", texts, "--workers", 1)
    for columns in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = run("report", "curated/code").stdout.splitlines()
        assert max(map(len, lines[:-1])) <= columns
        assert [line for line in lines if re.search(r"02-licence:.* 1 .*\d%", line)], "a reason, its numbers beside it"
        assert [line for line in lines if re.search(r"step +documents +bytes +words +share", line)]


def test_steps_that_a_run_did_not_reach_are_not_shown_as_empty(texts, tmp_path):
    run("curate", "tiny", "--from", texts, "--workers", 1, "--tasks", 2)
    folder = tmp_path / "curated/tiny"
    (folder / "report.json").unlink()
    for path in [*folder.glob("accounts/04-*/*"), *folder.glob("accounts/03-*/00001.json")]:
        path.unlink()
    shown = run("report", folder).stdout
    assert re.search(r"after 04-near-dedup +not yet *\n", shown)
    assert re.search(r"after 03-exact-dedup \(1 of 2 tasks\) +\d", shown)
    assert "give the same command again to go on" in shown
    assert "nothing was left to do" not in run("curate", "tiny", "--from", texts, "--tasks", 2).stderr
    assert "nothing was left to do" in run("curate", "tiny", "--from", texts, "--tasks", 2).stderr


@pytest.mark.parametrize("name", preset_names("curate"))
def test_the_next_command_is_one_that_takes_the_result(tmp_path, capsys, name):
    """Whatever a preset makes, what is printed below its report names a command that exists and reads such records."""
    pipeline = load_pipeline(name)
    manifest = SimpleNamespace(settings=pipeline.to_json(), labels=pipeline.labels)
    _print_next(SimpleNamespace(manifest=manifest, result=Size(1), out=tmp_path))
    told = capsys.readouterr().out
    reads_chats = pipeline.steps[0].use == "conversations"
    assert ("nano3 sft" in told) == reads_chats
    following = re.findall(r"nano3 data curate (\S+) --from", told)
    assert ("nano3 pretrain" in told) == (not following and not reads_chats)
    assert following == (["rqa", "dqa"] if name == "rqa-seeds" else [])
    for one in following:
        assert load_pipeline(one).steps[0].use == "read"


def test_what_was_dropped_cannot_steer_the_terminal(texts, tmp_path):
    rows = [{"id": "\x1b]0;x\a", "text": "bad\x1b[2Jtext\tand\nline"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.toml").write_text('[[step]]\nuse = "read"\n[[step]]\nuse = "length"\nleast = 99\n')
    run("curate", "p.toml", "--from", "rows.jsonl", "--workers", 1)
    account = next((tmp_path / "curated/p/accounts/01-length").glob("*.json"))
    account.write_text(account.read_text().replace("too short", "too short [/red]"))
    shown = run("report", "curated/p", "--samples", 1).stdout
    assert "\x1b" not in shown
    assert "bad\\x1b[2Jtext\tand\nline" in shown
    assert "too short [/red]" in shown


def test_a_result_inside_its_input_is_no_input(texts, tmp_path):
    first = run("curate", "tiny", "--from", ".", "--workers", 1).stdout
    (tmp_path / "curated/tiny/report.json").unlink()
    assert run("curate", "tiny", "--from", ".", "--workers", 1).stdout == first
    assert "nothing but the result" in refused("curate", "tiny", "--from", "curated/tiny/accounts")


def test_what_is_read_once_or_not_at_all_is_told(texts, tmp_path):
    given = ("curate", "tiny", "--from", texts, "--set", "length.least=5", "--workers", 1)
    first = run(*given, "--from", texts / "1.txt", "--out", texts / "made")
    assert f"the result itself, {texts}/made, which lies in --from; 1 input that --from names again" in first.stderr
    assert json.loads((texts / "made/report.json").read_text())["entered"]["documents"] == 6
    other = run(*given, "--out", "other").stderr
    assert "1 folder that nano3 data curate wrote, which is read where you name it (made)" in other
    assert json.loads((tmp_path / "other/report.json").read_text())["entered"]["documents"] == 6


def test_a_curated_folder_is_no_prepared_one_and_says_where_it_is_shown(texts, tmp_path):
    run("curate", "tiny", "--from", texts, "--workers", 1)
    result = CliRunner().invoke(app, ["inspect", "curated/tiny"])
    assert "curated/tiny is curated, not prepared: `nano3 data report curated/tiny` shows it" in str(result.exception)


def test_an_empty_file_of_the_standard_library_is_named():
    skipped = Skipped()
    assert next(name for name, document in StandardLibrary().named(skipped) if document is None).endswith(".py")


def test_a_preset_can_be_printed_to_begin_ones_own(texts, tmp_path):
    (tmp_path / "mine.toml").write_text(run("curate", "tiny", "--show").stdout)
    assert load_pipeline("mine.toml").steps == load_pipeline("tiny").steps
    assert "name a pipeline" in refused("curate", "--show")


def test_a_run_ended_after_its_report_leaves_no_copies_of_the_texts(texts, tmp_path):
    run("curate", "tiny", "--from", texts, "--workers", 1)
    left = tmp_path / "curated/tiny/work/04-near-dedup/documents"
    left.mkdir(parents=True)
    run("curate", "tiny", "--from", texts, "--workers", 1)
    assert not (tmp_path / "curated/tiny/work").exists()


def test_a_dry_run_shows_the_plan_and_writes_nothing(texts, tmp_path):
    done = run("curate", "tiny", "--from", texts, "--tasks", 3, "--dry-run")
    assert "6 inputs in 3 tasks, into curated/tiny" in done.stdout
    assert "least = 200" in done.stdout
    assert not (tmp_path / "curated").exists()
    plan = json.loads(run("curate", "tiny", "--from", texts, "--dry-run", "--json").stdout)
    assert plan["settings"]["01-length"] == {"least": 200, "most": 0}


def test_books_that_do_not_balance_end_with_1(texts, tmp_path):
    run("curate", "tiny", "--from", texts, "--workers", 1)
    path = next((tmp_path / "curated/tiny/accounts/01-length").glob("*.json"))
    table = json.loads(path.read_text())
    table["kept"]["bytes"] += 1
    path.write_text(json.dumps(table))
    assert "error: the books do not balance: 01-length" in run("report", "curated/tiny", code=1).stderr


def test_the_list_names_pipelines_and_steps():
    table = json.loads(run("curate", "--list", "--json").stdout)
    assert "tiny" in {one["name"] for one in table["pipelines"]}
    assert {"step": "read", "needs": []}.items() <= {k: v for k, v in table["steps"][0].items() if k != "x"}.items()
    assert "python-stdlib" not in run("curate", "--list").stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "name a pipeline"),
        (("tinny",), "did you mean 'tiny'?"),
        (
            ("b.bin",),
            "unknown pipeline 'b.bin'; what it reads goes with --from: nano3 data curate PIPELINE --from b.bin",
        ),
        (("./b.bin",), "not UTF-8 text (byte 0); what it reads goes with --from"),
        (("texts",), "what it reads goes with --from"),
        (("./texts",), "cannot read the pipeline: is a directory; what it reads goes with --from"),
        (("tiny", "--from", "nowhere"), "no file or folder at nowhere"),
        (("tiny", "--limit", 3, "--tasks", 2), "--limit reads in one task"),
        (("plain.toml",), "has no inputs of its own: give --from PATH"),
        (("plain.toml", "--from", "texts", "--against", "texts"), "has no step that removes duplicates"),
    ],
)
def test_what_is_wrong_is_one_line(texts, tmp_path, args, told):
    (tmp_path / "plain.toml").write_text('[[step]]\nuse = "read"\n')
    (tmp_path / "b.bin").write_bytes(b"\xff\0")
    result = CliRunner().invoke(app, ["curate", *map(str, args)])
    assert isinstance(result.exception, UserError | FileNotFoundError), result.output
    assert told in str(result.exception)


def test_a_report_of_another_folder_is_refused(texts):
    assert "no curated data (curation.json is missing)" in refused("report", texts)


def command(code, *args):
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)


def test_without_the_extra_it_says_what_to_install():
    code = "import sys; sys.modules['datatrove'] = None; from nano3.cli.app import main; main()"
    done = command(code, "data", "curate", "tiny")
    assert done.returncode == 2
    assert done.stderr.startswith("error: nano3 data curate needs datatrove: ")
    assert "[curate]" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    listed = command(code, "data", "curate", "--list")
    assert (listed.returncode, "datatrove" in listed.stdout) == (0, True)
    assert re.search(r"install the packages that are not: .*\[curate\]", listed.stdout)


def test_nothing_is_imported_for_it_before_it_runs():
    code = "import sys; import nano3.cli.data.app; assert not {'datatrove', 'numpy', 'loguru'} & set(sys.modules)"
    assert command(code).returncode == 0


def test_a_classifier_is_trained_and_judged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, word in (("good", "code"), ("bad", "news")):
        for site in ("one", "two", "three"):
            folder = tmp_path / kind / site
            folder.mkdir(parents=True)
            for i in range(6):
                (folder / f"{i}.txt").write_text(f"{word} {word} {site} {'abcdef'[i]} " * 10)
    made = ("train-classifier", "--positive", "good", "--negative", "bad", "--out", "new/own.bin")
    done = run(*made)
    assert "hosts and folders that training has not seen" in done.stdout
    assert 'use = "relevance"\nmodel = "new/own.bin"' in done.stdout
    assert done.stderr == ""
    assert "--force to replace it" in refused(*made)
    made = (*made, "--force")
    found = json.loads(run(*made, "--json").stdout)
    held, trained = (set(found["examples"][name]["groups"]) for name in ("heldout", "training"))
    assert held.isdisjoint(trained)
    assert held | trained == {"one", "two", "three"}
    assert json.loads((tmp_path / "new/own.bin.json").read_text())["hash"] == found["hash"]
    (tmp_path / "good/one/picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "bad/two/rows.jsonl").write_text('{"text": "news"}\n{"no": 1}\n')
    told = run(*made).stderr.splitlines()
    assert any("good: " in line and ".png" in line for line in told), "a file that is not read is named"
    assert any("bad: 1 without a text in 'text'" in line for line in told), "a record that is none is counted"
    (tmp_path / "bad/two/same.txt").write_text((tmp_path / "good/two/0.txt").read_text())
    assert "warning: 1 document in both --positive and --negative" in run(*made).stderr
    assert "every document of --positive is in --negative too (18)" in refused(
        *made[:3], "--negative", "good", *made[5:]
    )
    for site in ("one", "two", "three"):
        (tmp_path / "good" / site / "odd.txt").write_text(f"news news {site} a " * 10)
    table = run(*made).stdout.partition("precision")[2].partition("at the threshold")[0]
    thresholds = re.findall(r"^\W*([01]\.\d{4} ?\*?)", table, re.M)
    assert thresholds == sorted(thresholds)
    assert "*" in "".join(thresholds[:-1]), "the recommended one stands among the others"
    flat = run("train-classifier", "--positive", "good/one", "--negative", "bad/two", "--out", "flat.bin")
    assert "warning: one kind comes from a single host or folder" in flat.stderr
    assert "no file or folder" in str(CliRunner().invoke(app, [*made, "--negative", "none"]).exception)


@pytest.fixture
def model_server():
    server = ModelServer(lambda prompt, body: "some words")
    yield server
    if not server.stopping.is_set():
        server.stop()


@pytest.fixture
def asking(texts, tmp_path):
    """A pipeline with a step that asks a model."""
    (tmp_path / "prompt.txt").write_text("# Ours.\nSay this again: {text}\n")
    steps = ['use = "read"', 'use = "length"\nleast = 20', 'use = "ask"\nprompt = "prompt.txt"', 'use = "exact-dedup"']
    (tmp_path / "own.toml").write_text("".join(f"[[step]]\n{step}\n" for step in steps))
    return ["own.toml", "--from", texts]


def test_a_pilot_says_what_a_run_will_cost_and_the_run_does_not_send_it_again(asking, model_server, tmp_path):
    url = ["--url", model_server.url]
    done = run("curate", *asking, *url, "--dry-run", "--price", "1000,3000").stdout
    assert "pilot: 3 of 6 documents came as far as the model, which was asked about 3 of them; 3 came out" in done
    sent = sum(len(prompt.split()) for prompt in model_server.prompts)
    assert f"tokens sent     {sent} ± 0" in done
    assert "tokens written  6 ± 0" in done
    assert f"cost            {sent / 1000 + 6 * 3 / 1000:.2f} at 1000 and 3000 a million tokens" in done
    assert "less what 03-exact-dedup will drop" in done
    assert not (tmp_path / "curated/own/data").exists()
    table = json.loads(run("curate", *asking, *url, "--dry-run", "--json").stdout)
    assert table["model"] == MODEL
    assert table["estimate"]["tokens_sent"] == sent
    assert table["estimate"]["cost"] is None
    assert len(model_server.prompts) == 3
    run("curate", *asking, *url, "--workers", 1)
    assert len(model_server.prompts) == 3
    model_server.stop()
    again = run("curate", *asking, *url, "--workers", 1).stdout
    assert "3 answers of the model" in again, "what is done is shown, whether or not the server is there"


def test_a_plan_without_a_model_can_be_looked_at(asking):
    done = run("curate", *asking, "--dry-run").stdout
    assert "asks a language model: 02-ask; give --url" in done
    assert "asks a language model" not in run("curate", "tiny", "--from", asking[-1], "--dry-run").stdout


def test_options_of_a_model_that_cannot_be_meant(asking, texts, model_server):
    assert "step '02-ask' asks a language model: give --url" in refused("curate", *asking)
    assert "no step that asks a language model" in refused("curate", "tiny", "--from", texts, "--url", model_server.url)
    assert "no step that asks" in refused("curate", "tiny", "--from", texts, "--answers", "kept")
    for option in ("--concurrency", "--timeout", "--deadline"):
        told = refused("curate", "tiny", "--from", texts, option, "7")
        assert f"{option}: pipeline 'tiny' has no step that asks a language model" in told
        assert f"{option} belongs to --url" in refused("curate", *asking, "--dry-run", option, "7")
    assert "--model belongs to --url" in refused("curate", *asking, "--dry-run", "--model", "other")
    assert "--pilot belongs to the estimate" in refused("curate", "tiny", "--from", texts, "--dry-run", "--pilot", "4")
    url = ["--url", model_server.url]
    assert "--pilot belongs to the estimate" in refused("curate", *asking, *url, "--pilot", "4")
    assert "has no such model; it has scripted" in refused("curate", *asking, *url, "--model", "other")
    assert "--price belongs to the estimate" in refused("curate", *asking, *url, "--price", "1,2")
    for price in ("1", "1,2,3", "a,b", "-1,2", "nan,1"):
        assert "give two prices" in refused("curate", *asking, *url, "--dry-run", f"--price={price}"), price


def test_the_list_says_which_pipelines_and_steps_need_a_model(texts):
    found = json.loads(run("curate", "--list", "--json").stdout)
    assert next(step for step in found["steps"] if step["step"] == "ask")["needs"] == ["a language model (--url)"]
    assert next(one for one in found["pipelines"] if one["name"] == "tiny")["model"] == []


def test_scripts_of_slurm_are_shown_and_nothing_is_written(texts, tmp_path):
    given = ("curate", "tiny", "--from", texts, "--executor", "slurm", "--slurm", "partition=cpu", "--dry-run")
    shown = run(*given).stdout
    assert shown.count("#!/bin/bash") == shown.count("#SBATCH --partition=cpu") > 3
    assert "──── finish.sbatch ────" in shown
    assert not (tmp_path / "curated").exists()
    assert "--slurm gives options of sbatch" in refused("curate", "tiny", "--slurm", "partition=cpu")
    scripts = json.loads(run(*given, "--json").stdout)["scripts"]
    assert list(scripts)[-1] == "finish"


def test_the_workers_of_a_cluster_of_ray_are_its_own(texts, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    told = refused("curate", "tiny", "--from", texts, "--executor", "ray", "--workers", "3")
    assert "--workers 3: the cluster of RAY_ADDRESS decides" in told


def test_ray_is_asked_for_where_it_is_missing(texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert (
        refused("curate", "tiny", "--from", texts, "--executor", "ray") == "--executor ray needs ray: pip install ray"
    )
