"""`nano3 pretrain --dry-run`, and where a run's folder goes."""

import json
import os
import tomllib

import pytest
from typer.testing import CliRunner

from nano3.cli.app import app, main
from nano3.cli.training.run_folder import choose_run_dir
from nano3.cli.training.summary import show_summary
from nano3.config.errors import UserError
from nano3.config.presets import load_extend_context, load_pretrain, to_toml
from nano3.data.texts.sources import resolve

from ...forked import ONE_THREAD, run_forked


def run(*args):
    done = CliRunner().invoke(app, ["pretrain", *args], env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    return done.stdout


def dry(*args):
    return json.loads(run("--dry-run", "--json", *args))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return tmp_path


def make_run(folder):
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(load_pretrain("tiny", ["train.tokens=64"])))
    return folder


def test_a_run_of_so_many_steps_says_its_tokens(here):
    facts = dry("--set", "train.steps=13", "--set", "train.tokens=5")
    assert (facts["steps"], facts["tokens"]) == (13, 13 * facts["tokens_per_step"])


def test_the_dry_run_of_phase1_gives_the_reports_size_and_no_difference(here):
    facts = dry("--preset", "phase1")
    assert facts["total_parameters"] == 31_577_937_344
    assert facts["active_parameters"] == 3_580_073_408
    assert facts["tokens"] == 23_500_000_000_000
    assert facts["tokens_per_step"] == 25_165_824
    assert facts["steps"] == 933_807
    assert facts["differences"] == []
    assert facts["memory_bytes"]["optimizer"] == 8 * 31_577_937_344
    assert facts["memory_bytes"]["total"] == sum(v for k, v in facts["memory_bytes"].items() if k != "total")


def test_the_dry_run_runs_nothing_and_leaves_no_folder(here):
    run("--dry-run")
    assert list(here.iterdir()) == []


def test_settings_and_differences_reach_the_dry_run(here):
    facts = dry("--set", "train.tokens=16385", "--set", "data.seq_len=256")
    assert facts["config"]["train"]["tokens"] == 16385
    assert facts["steps"] == 17
    differences = {row["key"]: row for row in facts["differences"]}
    assert differences["data.seq_len"] == {"key": "data.seq_len", "here": 256, "report": 8192, "section": "§2.4"}


def test_the_tables_show_the_same_as_json(here):
    text = run("--dry-run", "--preset", "phase1", "--set", "train.batch_size=6")
    for words in ("31,577,937,344", "3,580,073,408", "23,500,000,000,000", "3,072", "§2.4", "optimizer", "activations"):
        assert words in text
    settings = text[text.index("[model]") : text.index("Difference from")]
    assert tomllib.loads(settings)["train"]["batch_size"] == 6


def test_the_compute_dtype_decides_the_memory(here):
    half, full = (dry("--set", f"train.dtype={dtype}") for dtype in ("bfloat16", "float32"))
    assert half["memory_bytes"]["compute_copy"] == 2 * half["total_parameters"]
    assert full["memory_bytes"]["compute_copy"] == 0


def test_a_resumed_run_takes_its_own_settings(here):
    make_run(here / "runs" / "pretrain-tiny")
    assert dry("--resume")["config"]["train"]["tokens"] == 64
    assert dry("--resume", "--set", "train.tokens=65")["config"]["train"]["tokens"] == 65
    assert dry("--resume", "--preset", "tiny")["config"]["train"]["tokens"] != 64


def test_a_new_run_gets_a_fresh_name(here):
    names = []
    for _ in range(3):
        folder = choose_run_dir(None, "pretrain-tiny", resume=False)
        names.append(str(folder))
        make_run(here / folder)
    assert names == ["runs/pretrain-tiny", "runs/pretrain-tiny-2", "runs/pretrain-tiny-3"]
    assert str(choose_run_dir(None, "pretrain-tiny", resume=True)) == "runs/pretrain-tiny-3"


def test_a_folder_that_holds_a_run_is_not_overwritten(here):
    folder = make_run(here / "mine")
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        choose_run_dir(folder, "x", resume=False)
    assert choose_run_dir(folder, "x", resume=True) == folder
    assert choose_run_dir(here / "empty", "x", resume=False) == here / "empty"


@pytest.mark.parametrize("verb", ["pretrain", "extend-context", "sft", "rlvr"])
def test_a_checkpoint_is_named_with_a_resume(here, verb):
    done = CliRunner().invoke(app, [verb, "--checkpoint", "4"])
    assert "--checkpoint 4 says where a run goes on: add --resume" in str(done.exception)


def test_there_must_be_a_run_to_resume(here):
    with pytest.raises(UserError, match="no run to resume"):
        choose_run_dir(None, "pretrain-tiny", resume=True)


def test_a_run_of_another_verb_is_resumed_by_that_verb(here):
    make_run(here / "mine")
    (here / "long").mkdir()
    (here / "long" / "config.toml").write_text(to_toml(load_extend_context("tiny")))
    for verb, folder, words in (
        ("extend-context", "mine", "mine is a pretrain run: nano3 pretrain --resume --out mine"),
        ("pretrain", "long", "long is an extend-context run: nano3 extend-context --resume --out long"),
    ):
        done = CliRunner().invoke(app, [verb, "--resume", "--out", folder])
        assert isinstance(done.exception, UserError)
        assert str(done.exception) == words


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            ("data.blend={python-stdlib=80, document-qa=20}", "data.generate.sources=nothere"),
            "data.generate.sources: no file or folder at nothere",
        ),
        (("data.blend={mine=1}", "data.sources.mine=nothere"), "data.sources.mine: no file or folder at nothere"),
        (("data.blend={mine=1}", "data.sources.mine=here", "data.generate.sources=nothere"), None),
    ],
)
def test_the_dry_run_looks_for_the_texts(here, settings, line):
    (here / "here").mkdir()
    args = [part for setting in settings for part in ("--set", setting)]
    done = CliRunner().invoke(app, ["pretrain", "--dry-run", *args])
    assert (str(done.exception) if done.exception else None) == line
    if line and "generate" in line:
        with pytest.raises(UserError, match=line):
            resolve(load_pretrain("tiny", settings).data)


def test_own_texts_make_the_blend_with_equal_shares_that_set_weighs(here):
    (here / "notes").mkdir()
    (here / "notes" / "a.txt").write_text("a note " * 400)
    (here / "more.jsonl").write_text('{"text": "a record"}')
    own = ("--data", "notes", "--data", "more.jsonl::text")
    data = dry(*own)["config"]["data"]
    assert data["blend"] == {"notes": 1.0, "more": 1.0}
    assert data["sources"] == {"notes": ["notes"], "more": ["more.jsonl::text"]}
    assert dry(*own, "--set", "data.blend.more=3")["config"]["data"]["blend"] == {"notes": 1.0, "more": 3.0}


def test_own_texts_of_a_context_extension_are_what_its_questions_are_made_from(here):
    (here / "notes.txt").write_text("a note " * 400)
    done = CliRunner().invoke(app, ["extend-context", "--dry-run", "--json", "--data", "notes.txt"])
    data = json.loads(done.stdout)["config"]["data"]
    assert data["blend"] == {"notes": 79.0, "document-qa": 20.0, "retrieval": 1.0}
    assert data["generate"]["sources"] == ["notes.txt"]


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_a_source_that_no_blend_names_is_refused_with_the_way_to_name_it(here, dry_run):
    (here / "mine").mkdir()
    done = CliRunner().invoke(app, ["pretrain", "--set", "data.sources.mine=mine", *dry_run])
    assert isinstance(done.exception, UserError)
    assert str(done.exception).startswith("data.sources.mine: not read, since data.blend names only python-stdlib")
    assert "--set 'data.blend={mine=1}'" in str(done.exception)
    assert "--data PATH" in str(done.exception)


@pytest.mark.parametrize("args", [["pretrain"], ["pretrain", "--dry-run"], ["data", "prepare"]])
def test_a_curation_that_is_no_finished_text_is_refused_at_once_and_by_all(here, args, capsys):
    (here / "c").mkdir()
    (here / "c" / "curation.json").write_text('{"settings": {"pipeline": {}, "00-conversations": {}}}')
    (here / "c" / "report.json").write_text("{}")
    given = [*args, "c"] if args[0] == "data" else [*args, "--data", "c"]
    conversations = "it holds conversations, no texts: nano3 sft --data c trains on them"
    unfinished = "its curation is not finished: give the same nano3 data curate again to go on"
    for told, removed in ((conversations, "report.json"), (unfinished, "curation.json")):
        with pytest.raises(SystemExit) as end:
            main(given)
        assert end.value.code == 2
        assert capsys.readouterr().err == f"error: c: {told}\n"
        (here / "c" / removed).unlink()
    assert not (here / "runs").exists()


def test_the_dry_run_tells_how_often_each_text_is_read(here):
    (here / "notes.txt").write_text("a note " * 400)
    done = CliRunner().invoke(app, ["pretrain", "--dry-run", "--data", "notes.txt", "--set", "train.tokens=4e6"])
    assert "each text is read" in done.stdout
    assert "warning: texts read more than 4 times" in done.stderr
    facts = dry("--data", "notes.txt", "--set", "train.tokens=4e6")
    assert facts["readings"]["notes"] == pytest.approx(4e6 / (2800 / 4 * 0.95), rel=0.05)
    done = CliRunner().invoke(app, ["pretrain", "--dry-run"])
    assert "warning" not in done.stderr


def test_a_run_in_a_folder_with_a_plain_name_can_be_resumed(here):
    make_run(here / "mine")
    assert dry("--resume", "--out", "mine")["config"]["train"]["tokens"] == 64


def test_ranks_share_one_named_folder(here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="give --out DIR"):
        choose_run_dir(None, "pretrain-tiny", resume=False)
    folder = make_run(here / "made-by-rank-0")
    assert choose_run_dir(folder, "x", resume=False) == folder


@pytest.mark.parametrize("verb", ["pretrain", "extend-context"])
def test_a_folder_of_the_users_own_is_not_taken_for_a_run(here, verb, capsys):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit) as end:
        main([verb, "--out", "mine"])
    assert end.value.code == 2
    told = "error: --out mine: holds other files (thesis.tex): give a new or an empty folder\n"
    assert capsys.readouterr().err == told
    assert sorted(path.name for path in (here / "mine").iterdir()) == ["thesis.tex"]


@pytest.mark.parametrize("args", [["--out", "/proc/x"], ["--set", "data.cache_dir=/proc/x"]])
def test_a_place_that_cannot_be_written_is_refused_at_once(here, args, capsys):
    with pytest.raises(SystemExit) as end:
        main(["pretrain", *args])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {args[0].replace('--set', 'data.cache_dir')} /proc/x: cannot be written")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--data", "no where"], "--data: no file or folder at no where"),
        (["--data", "no where", "--dry-run"], "--data: no file or folder at no where"),
        (["--set", "data.sources.a=b", "--set", "data.blend={a=1}"], "data.sources.a: no file or folder at b"),
        (["--set", "data.tokenizer=nope"], "no tokenizer at nope: give `mistral`, a tokenizer.json, or a folder that "
         "holds one"),
    ],
)  # fmt: skip
def test_a_missing_text_or_tokenizer_is_one_line_in_the_words_of_the_command(here, args, told, capsys):
    with pytest.raises(SystemExit) as end:
        main(["pretrain", *args])
    assert (end.value.code, capsys.readouterr().err) == (2, f"error: {told}\n")


SMALL = [
    "model.pattern=M*E", "model.d_model=32", "model.d_expert=32", "model.d_shared=32", "model.vocab_size=512",
    "data.seq_len=64", "train.tokens=256", "train.batch_size=2", "train.micro_batch_size=2",
    "data.blend={notes=1}", "data.sources.notes=notes", "data.heldout_fraction=0.2", "schedule.warmup_tokens=0",
    "sample.tokens=4", "sample.prompts=the",
]  # fmt: skip


def test_a_run_leaves_its_folder_its_result_on_stdout_and_progress_on_stderr(here):
    (here / "notes").mkdir()
    for i in range(40):
        (here / "notes" / f"{i}.txt").write_text(f"the note number {i} says that {i * i} is the square of {i}.\n" * 5)
    args = [part for setting in SMALL for part in ("--set", setting)]
    environment = os.environ | ONE_THREAD | {"XDG_CACHE_HOME": str(here / "cache")}
    done = run_forked("-m", "nano3", "pretrain", "--json", *args, env=environment, charts=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["run"] == "runs/pretrain-tiny"
    assert facts["tokens"] == 256
    assert facts["heldout_bits_per_byte"] > 0
    assert 0 < facts["readings"]["notes"] < 1
    assert f"each text is read {facts['readings']['notes']:.2g} times" in done.stderr
    assert load_pretrain(str(here / facts["run"])).data.blend == {"notes": 1.0}
    assert "held-out loss" in done.stderr


FINISHED = {
    "run": "runs/x", "model": "runs/x/model", "interrupted": False, "steps": 2, "tokens": 256, "tokens_per_second": 1e3,
    "heldout_bits_per_byte": 1.9512,
    "heldout_by_length": [{"seq_len": 512, "bits_per_byte": 1.9512}],
    "compressors_bits_per_byte": {"gzip -9": 2.1}, "samples": [],
}  # fmt: skip


def test_the_summary_compares_with_gzip_and_shows_samples_as_they_are(capsys):
    sample = {"prompt": "def ", "text": "f(x): return x[0] [bold]"}
    show_summary("pretrain", FINISHED | {"samples": [sample]}, as_json=False)
    text = capsys.readouterr().out
    assert "def f(x): return x[0] [bold]" in text
    for words in ("Held-out text, bits per byte", "1.951", "2.100", "runs/x/model"):
        assert words in text


def test_a_short_held_out_text_is_not_compared_with_compressors(capsys):
    show_summary("pretrain", FINISHED | {"compressors_bits_per_byte": {}, "heldout_bytes": 812}, as_json=False)
    text = capsys.readouterr().out
    assert "1.951" in text
    assert "Not compared with gzip and xz: 812 bytes are too few." in text


def test_the_summary_of_a_stopped_run_says_how_to_go_on(capsys):
    stopped = {"interrupted": True, "model": None, "heldout_bits_per_byte": None, "compressors_bits_per_byte": {}}
    show_summary("pretrain", FINISHED | stopped, as_json=False)
    text = capsys.readouterr().out
    assert "nano3 pretrain --resume --out runs/x" in text
    assert "Held-out" not in text


def test_a_resume_that_made_no_step_has_no_rate(capsys):
    show_summary("pretrain", FINISHED | {"tokens_per_second": None}, as_json=False)
    text = capsys.readouterr().out
    assert "256 in 2 steps" in text
    assert "a second" not in text


def test_ctrl_c_after_the_run_has_begun_says_how_to_go_on(here, monkeypatch, capsys):
    def stop(cfg, run_dir, *args, **options):
        make_run(run_dir)
        raise KeyboardInterrupt

    monkeypatch.setattr("nano3.stages.pretrain.main", stop)
    with pytest.raises(SystemExit) as end:
        main(["pretrain", "--out", "mine"])
    assert end.value.code == 130
    assert capsys.readouterr().err == "continue: nano3 pretrain --resume --out mine\ninterrupted\n"


def test_sizes_and_weights_that_contradict_each_other_are_refused(here):
    done = CliRunner().invoke(app, ["pretrain", "--from", str(here), "--set", "model.d_model=64", "--dry-run"])
    assert isinstance(done.exception, UserError)
    assert "contradict each other" in str(done.exception)
