"""Whole runs: books that balance, killed runs, other settings."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nano3.config.errors import UserError
from nano3.curate.executor import run_segment, worker_pool
from nano3.curate.ledger import Ledger, Measure
from nano3.curate.pieces import count_words
from nano3.curate.pipeline import load_pipeline
from nano3.curate.report import read_report
from nano3.curate.run import plan_run, run_pipeline
from nano3.curate.shards import ShardReader
from nano3.curate.step import Segment
from nano3.curate.steps.length import Length

from .conftest import documents, dropped

TEXTS = ["a", "one two three", "one two three", "a longer text of seven words here", "   ", "x" * 40]


def folder_of(path, texts=30):
    """Three files of JSON lines, some of which are equal, broken or short."""
    path.mkdir()
    rng = random.Random(1)
    for name in "abc":
        lines = [json.dumps({"text": "word " * rng.randrange(1, 12), "n": i}) for i in range(texts)]
        lines[3] = "{broken"
        (path / f"{name}.jsonl").write_text("\n".join(lines))
    return path


def content(folder):
    """Everything that a run leaves and that must not depend on how it got there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_what_is_dropped_is_counted_by_reason_and_shown(curate):
    report, kept = curate([("length", {"least": 3, "most": 35}), ("exact-dedup", {})], TEXTS)
    assert dropped(report, "read") == {"empty": 1}
    assert dropped(report, "length") == {"too short": 1, "too long": 1}
    assert dropped(report, "exact-dedup") == {"duplicate": 1}
    assert [row["text"] for row in kept] == [TEXTS[1], TEXTS[3]]
    assert (report.entered.documents, report.result.documents, report.result.tokens) == (6, 2, 3 + 7)
    assert {sample.id: reason for _, reason, sample in report.samples()} == {
        "d0": "too short", "d5": "too long", "d2": "duplicate", "d4": "empty",
    }  # fmt: skip


def test_records_keep_their_other_fields(curate):
    row = {"text": "some text", "id": "mine", "license": "MIT", "metadata": {"stars": 3}}
    _, [kept] = curate([], [row])
    assert (kept["id"], kept["metadata"]["license"], kept["metadata"]["stars"]) == ("mine", "MIT", 3)
    assert kept["metadata"]["source"] == "texts.jsonl:1"


def test_ids_and_metadata_of_another_type_are_not_lost(curate):
    rows = [{"text": "one text", "id": 7, "metadata": '{"stars": 3}'}, {"text": "two", "id": None, "metadata": None}]
    _, [first, second] = curate([], rows)
    assert (first["id"], second["id"]) == ("texts.jsonl:1", "texts.jsonl:2")
    assert first["metadata"] == {"source": "texts.jsonl:1", "id": 7, "metadata": '{"stars": 3}'}
    assert second["metadata"] == {"source": "texts.jsonl:2"}


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=20),
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.just("length"), st.fixed_dictionaries({"least": st.integers(0, 5), "most": st.integers(0, 9)})
            ),
            st.tuples(st.just("exact-dedup"), st.fixed_dictionaries({"ignore_white_space": st.booleans()})),
        ),
        max_size=3,
    ),
    tasks=st.integers(1, 2),
)
def test_of_any_pipeline_what_enters_is_kept_or_dropped(curate, tmp_path, texts, steps, tasks):
    out = f"out{len(list(tmp_path.iterdir()))}"
    report, kept = curate(steps, texts, out=out, tasks=tasks)
    lost = sum(one.size.documents for step in report.steps for one in step.account.dropped.values())
    assert len(texts) == len(kept) + lost
    assert sum(len(row["text"].encode()) for row in kept) == report.result.bytes


def test_a_step_that_loses_a_document_is_found_out(curate, tmp_path, monkeypatch):
    def process(self, documents):
        yield from (document for document in documents if document.id != "d1")

    monkeypatch.setattr(Length, "process", process)
    with pytest.raises(AssertionError):
        curate([("length", {})], TEXTS[:4])
    (fault,) = read_report(tmp_path / "out").faults()
    assert fault.startswith("01-length: 4 documents,")
    assert "3 documents, " in fault


def test_what_one_step_lets_through_and_the_next_one_does_not_get_is_found_out(curate, tmp_path):
    curate([("length", {})], TEXTS[:4])
    path = tmp_path / "out/accounts/01-length/00000.json"
    table = json.loads(path.read_text())
    table["entered"] = table["kept"] = {"documents": 3, "bytes": 1, "tokens": 1}
    path.write_text(json.dumps(table))
    assert "left 00-read" in read_report(tmp_path / "out").faults()[0]


def test_samples_do_not_depend_on_the_division_into_tasks(curate, tmp_path):
    rows = [{"id": f"d{i}", "text": "ab"} for i in range(200)]
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows[i::4]))
    one, _ = curate([("length", {"least": 5})], paths=paths, tasks=1, out="one")
    four, _ = curate([("length", {"least": 5})], paths=paths, tasks=4, out="four")
    assert one.samples() == four.samples()
    assert len(one.samples()) == 20


@pytest.mark.slow
def test_workers_do_not_change_a_byte(curate, tmp_path):
    source = folder_of(tmp_path / "in")
    steps = [("length", {"least": 8}), ("exact-dedup", {}), ("length", {"most": 50})]
    curate(steps, paths=[source], out="one", workers=1, tasks=3)
    curate(steps, paths=[source], out="two", workers=2, tasks=3)
    assert content(tmp_path / "one") == content(tmp_path / "two")


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from nano3.curate.pipeline import load_pipeline
from nano3.curate.run import plan_run, run_pipeline
from nano3.curate import run as module

module.draw = lambda report, path: path.write_bytes(b"chart")

pipeline_file, source, whole, out = sys.argv[1:]
replace = os.replace

def run(at):
    count = 0
    def counted(*names):
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)
    os.replace = counted
    run_pipeline(plan_run(load_pipeline(pipeline_file), Path(out), [source], tasks=2), 1)

def forked(at):
    child = os.fork()
    if not child:
        try:
            run(at)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file() and p.name != ".lock"}

killed = 0
for at in range(1, 200):
    shutil.rmtree(out, ignore_errors=True)
    code = forked(at)
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    killed += 1
    assert not any(p.name.startswith(tuple("0123456789")) and not p.stat().st_size
                   for p in (Path(out) / "data").glob("*")), "half a file under its final name"
    assert forked(0) == 0
    other, same = content(out), content(whole)
    assert other.keys() == same.keys(), at
    assert [name for name in same if other[name] != same[name]] == [], at
print(killed)
"""


@pytest.mark.slow
def test_a_run_killed_anywhere_and_started_again_leaves_the_same_bytes(curate, tmp_path):
    source = folder_of(tmp_path / "in", 8)
    steps = [("length", {"least": 8}), ("exact-dedup", {}), ("near-dedup", {"buckets": 4})]
    curate(steps, paths=[source], out="whole", tasks=2)
    arguments = [tmp_path / "pipeline.toml", source, tmp_path / "whole", tmp_path / "killed"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 12, "it was killed before each file that it renames"


def test_workers_end_with_the_run_that_is_killed(tmp_path):
    code = (
        "import os, signal; from nano3.curate.executor import worker_pool\n"
        "def pids(pool): return list(pool._processes)\n"
        "if __name__ == '__main__':\n"
        "    import time\n"
        "    with worker_pool(2) as pool:\n"
        "        futures = [pool.submit(time.sleep, 600) for _ in range(2)]\n"
        "        while len(pids(pool)) < 2 or not all(f.running() for f in futures): time.sleep(0.05)\n"
        "        print(*pids(pool), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -9, done.stderr
    workers = done.stdout.split()
    assert len(workers) == 2
    until = time.monotonic() + 30
    while any(map(is_alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert [pid for pid in workers if is_alive(pid)] == []


def test_a_worker_that_the_system_ends_is_told_in_a_line(tmp_path):
    def run():
        with worker_pool(2) as pool:
            assert pool is not None
            pool.submit(os._exit, 9).exception()
            run_segment(Segment("x", 2, [ShardReader(tmp_path)]), tmp_path / "x", pool, lambda: None)

    with pytest.raises(UserError, match="again to go on, with fewer --workers"):
        run()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tasks": 2}, "--tasks 3 -> 2"),
        ({"overrides": ["length.least=4"]}, "length.least 2 -> 4"),
        ({"steps": [("length", {"least": 2}), ("exact-dedup", {})]}, "steps 00-read 01-length -> 00-read 01-length"),
        ({"limit": 5}, "--limit 0 -> 5"),
        ({"touch": True}, "inputs: 1 changed"),
        ({"more": True}, "inputs: 1 new"),
    ],
)
def test_a_run_with_other_settings_or_inputs_does_not_go_on(curate, tmp_path, change, told):
    source = folder_of(tmp_path / "in")
    steps = [("length", {"least": 2})]
    curate(steps, paths=[source], tasks=3)
    before = content(tmp_path / "out")
    change = dict(change)
    if change.pop("touch", False):
        (source / "a.jsonl").write_text('{"text": "another"}')
    if change.pop("more", False):
        (source / "d.jsonl").write_text('{"text": "another"}')
    given = {"steps": steps, "paths": [source], "tasks": 3} | change
    if "limit" in given:
        del given["tasks"]
    with pytest.raises(UserError, match="begun with other settings") as error:
        curate(**given)
    assert told in str(error.value)
    assert content(tmp_path / "out") == before


def test_a_finished_run_is_told_again_and_not_done_again(curate, tmp_path):
    first, _ = curate([("length", {})], TEXTS)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    again, _ = curate([("length", {})], ())
    assert again.to_json() == first.to_json()
    del times[tmp_path / "out/.lock"]
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_folder_with_other_files_is_not_written_to(curate, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"--out .*out: holds other files \(mine.txt\)"):
        curate([], TEXTS)


def test_a_folder_of_names_as_ours_is_not_taken_for_a_result(curate, tmp_path):
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/data/00000.jsonl.zst").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"--out .*out: holds other files \(data\)"):
        curate([], TEXTS)
    assert (tmp_path / "out/data/00000.jsonl.zst").read_bytes() == b"mine"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such name")
def test_a_file_whose_name_is_not_utf8_is_read(curate, tmp_path):
    (tmp_path / "in").mkdir()
    for name in (b"caf\xe9.txt", b"th\xe9.txt"):
        Path(os.fsdecode(tmp_path), "in", os.fsdecode(name)).write_text("same")
    report, [kept] = curate([("exact-dedup", {})], paths=[tmp_path / "in"])
    assert kept["id"] == os.fsdecode(b"caf\xe9.txt")
    assert read_report(tmp_path / "out").to_json()["balanced"]
    assert dropped(report, "dedup") == {"duplicate": 1}


def test_limit_reads_so_many_documents(curate, tmp_path):
    report, kept = curate([], paths=[folder_of(tmp_path / "in")], limit=7)
    assert report.entered.documents == 7
    assert len(kept) == 6, "one line is broken"


def test_limit_counts_what_is_dropped_while_reading(curate):
    texts = [*(["good"] * 2), *([" "] * 30), "good"]
    for limit in (2, 3, 20, 33):
        report, kept = curate([], texts, out=f"out{limit}", limit=limit)
        assert report.entered.documents == limit
        assert len(kept) == (3 if limit == 33 else 2)


def test_a_damaged_file_that_was_found_is_counted_and_one_that_was_named_is_an_error(curate, tmp_path):
    source = folder_of(tmp_path / "in")
    (source / "cut.txt.gz").write_bytes(b"\x1f\x8b")
    report, _ = curate([], paths=[source], out="found")
    assert dropped(report, "read") == {"not a JSON object": 3, "files damaged or cut short": 1}
    with pytest.raises(UserError, match=r"cut\.txt\.gz is damaged"):
        curate([], paths=[source / "cut.txt.gz"], out="named")


def test_a_document_that_never_entered_spoils_the_balance():
    class Document:
        text, id = "new", "x"

    ledger = Ledger("s", 0, Measure(count_words))
    ledger.leaves(Document())
    assert not ledger.account.is_balanced()


def test_the_result_is_what_preparing_reads_and_only_when_it_is_whole(curate, tmp_path):
    from nano3.data.texts.sources import find_inputs, read_blend_file

    curate([], TEXTS)
    (file,) = find_inputs([str(tmp_path / "out")]).inputs
    assert file.name == "00000.jsonl.zst"
    assert read_blend_file(tmp_path / "out/blend.toml") == {"curated": [str(tmp_path / "out/data")]}
    (tmp_path / "out/report.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        find_inputs([str(tmp_path / "out")])


def test_a_report_while_it_runs_tells_what_is_done(curate, tmp_path, monkeypatch):
    source = folder_of(tmp_path / "in")
    curate([], paths=[source], tasks=3)
    (tmp_path / "out/report.json").unlink()
    (tmp_path / "out/accounts/00-read/00002.json").unlink()
    report = read_report(tmp_path / "out")
    assert (report.finished, report.running, report.steps[0].tasks, report.entered.documents) == (False, False, 2, 60)


def test_tokens_of_a_tokenizer_are_counted(curate, tmp_path):
    from nano3.data.tokens.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["one two three"], 300)
    tokenizer.save(tmp_path / "tokenizer")
    report, _ = curate([], TEXTS, overrides=[f"pipeline.tokenizer={tmp_path / 'tokenizer'}"])
    assert report.token_unit == "tokens"
    assert report.result.tokens == sum(len(tokenizer.encode(text)) for text in TEXTS if text.strip())


def test_the_embedded_corpus_passes_the_trial_pipeline_whole(tmp_path):
    plan = plan_run(load_pipeline("tiny"), tmp_path / "out", limit=40)
    report = run_pipeline(plan, 1)
    assert report.entered.documents == 40
    assert len(documents(tmp_path / "out")) == report.result.documents > 30


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_an_address_of_ray_where_nothing_listens_is_refused_before_anything_is_written(tmp_path, monkeypatch, form):
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", form.format(port=bound.getsockname()[1]))
        plan = plan_run(load_pipeline("tiny"), tmp_path / "out", [str(folder_of(tmp_path / "in"))])
        with pytest.raises(UserError, match=r"no cluster of Ray .*refused"):
            run_pipeline(plan, ray=True)
    assert not (tmp_path / "out").exists()
