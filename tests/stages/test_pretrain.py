import gzip
import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from nano3.config.errors import UserError
from nano3.config.presets import load_pretrain, to_toml
from nano3.data.tokens.prepare import prepare
from nano3.model.hf.config import read_stage
from nano3.model.hf.folder import load
from nano3.stages.finished import RESULT, find_opening
from nano3.stages.outcome import LEAST_COMPARED, compressors, opening_of
from nano3.stages.pretrain import main
from nano3.train.tracking.progress import Silent
from nano3.train.trainer import Trainer


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"the note number {i} says that {i * i} is the square of {i}.\n" * 5)
    return folder


@pytest.fixture
def cfg(tmp_path, notes):
    """A run of two steps on a few notes."""
    settings = [
        "model.pattern=M*E", "model.d_model=32", "model.d_expert=32", "model.d_shared=32", "model.vocab_size=512",
        "data.seq_len=64", "train.tokens=256", "train.batch_size=2", "train.micro_batch_size=2",
        "data.blend={notes=1}", f"data.sources.notes={notes}", "data.heldout_fraction=0.2",
        "schedule.warmup_tokens=0", "sample.tokens=0", f"data.cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    return load_pretrain("tiny", settings)


@pytest.fixture(autouse=True)
def _no_charts(monkeypatch):
    monkeypatch.setattr("nano3.train.tracking.record.charts.draw", lambda *args: [])


def _run(cfg, run_dir, **options):
    return main(cfg, run_dir, progress=Silent(), **options)


class Died(BaseException):
    """The process was killed here."""


def _dies(monkeypatch):
    def die(self):
        raise Died

    monkeypatch.setattr(Trainer, "fit", die)


def _weights(monkeypatch):
    """What the next run begins with, in place of the run."""
    seen = {}

    def look(self):
        seen.update({name: value.clone() for name, value in self.model.state_dict().items()}, start=self.position)
        raise Died

    monkeypatch.setattr(Trainer, "fit", look)
    return seen


@pytest.mark.parametrize("continue_state", [False, True])
def test_a_run_that_died_before_its_first_checkpoint_begins_again_as_it_began(
    cfg, tmp_path, monkeypatch, continue_state
):
    _run(cfg, tmp_path / "first")
    second = replace(cfg, train=replace(cfg.train, continue_state=continue_state, seed=7))
    with monkeypatch.context() as patch:
        _dies(patch)
        with pytest.raises(Died):
            _run(second, tmp_path / "second", from_path=tmp_path / "first")
    seen = _weights(monkeypatch)
    with pytest.raises(Died):
        _run(load_pretrain(str(tmp_path / "second")), tmp_path / "second", resume=True)
    assert seen.pop("start").schedule_start == (256 if continue_state else 0)
    for name, value in load(tmp_path / "first" / "model").state_dict().items():
        assert torch.equal(seen[name], value), name


def test_a_resume_from_another_model_is_refused(cfg, tmp_path):
    _run(cfg, tmp_path / "first")
    with pytest.raises(UserError, match=r"started from new weights, not .*other: resume it without --from"):
        _run(cfg, tmp_path / "first", from_path=tmp_path / "other", resume=True)


def test_a_resume_keeps_its_tokenizer_and_refuses_other_text(cfg, tmp_path, notes):
    _run(cfg, tmp_path / "run")
    kept = (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_bytes()
    vocabularies = sorted((tmp_path / "cache" / "tokenizers").iterdir())
    (notes / "3.txt").touch()
    (tmp_path / "run" / RESULT).unlink()
    assert _run(cfg, tmp_path / "run", resume=True).training.step == 2
    (tmp_path / "run" / RESULT).unlink()
    (notes / "3.txt").write_text("quite another note, zebra quagga okapi " * 20)
    with pytest.raises(UserError, match=r"cannot resume .*\(text of notes: \w+ -> \w+\)"):
        _run(cfg, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_bytes() == kept
    assert sorted((tmp_path / "cache" / "tokenizers").iterdir()) == vocabularies


def test_the_exported_model_says_its_stage_and_the_special_tokens_of_the_text(cfg, tmp_path):
    odd = replace(cfg, model=replace(cfg.model, bos_id=300, eos_id=301, pad_id=302))
    _run(odd, tmp_path / "run")
    for name in ("config.json", "generation_config.json"):
        exported = json.loads((tmp_path / "run" / "model" / name).read_text())
        assert [exported[f"{token}_token_id"] for token in ("pad", "bos", "eos")] == [0, 1, 2], name
    assert read_stage(tmp_path / "run" / "model") == "pretrain"
    model = load_pretrain(str(tmp_path / "run")).model
    assert (model.pad_id, model.bos_id, model.eos_id) == (0, 1, 2)
    assert "eos_id = 2" in to_toml(load_pretrain(str(tmp_path / "run")))


def test_a_model_exported_in_bfloat16_is_a_start_for_the_next_run(cfg, tmp_path, monkeypatch):
    narrow = replace(cfg, export=replace(cfg.export, dtype="bfloat16"))
    _run(narrow, tmp_path / "narrow")
    _run(cfg, tmp_path / "wide")
    stored, trained = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("narrow", "wide"))
    for name, value in trained.items():
        kept = name.endswith((".A_log", ".D", ".dt_bias", ".gate.weight", ".e_score_correction_bias"))
        assert value.dtype == torch.float32
        assert torch.equal(stored[name], value if kept else value.bfloat16()), name
        assert stored[name].dtype == (torch.float32 if kept else torch.bfloat16), name
    config = tmp_path / "narrow" / "model" / "config.json"
    assert json.loads(config.read_text())["torch_dtype"] == "bfloat16"
    assert _run(cfg, tmp_path / "narrow", resume=True).training.step == 2
    assert json.loads(config.read_text())["torch_dtype"] == "float32"
    assert _run(narrow, tmp_path / "narrow", resume=True).training.step == 2
    seen = _weights(monkeypatch)
    with pytest.raises(Died):
        _run(cfg, tmp_path / "next", from_path=tmp_path / "narrow")
    assert torch.equal(seen["lm_head.weight"], stored["lm_head.weight"].float())


def test_compressors_pack_the_bytes_that_the_model_scored(cfg, tmp_path, notes):
    for i in range(40):
        (notes / f"{i}.txt").write_text("".join(f"the square of {n} is {n * n}.\n" for n in range(i, i + 120)))
    short = replace(cfg, heldout=replace(cfg.heldout, final_tokens=7168, seq_len=64))
    result = _run(short, tmp_path / "run")
    prepared = prepare(cfg.data, cfg.model.vocab_size)
    text = "".join(prepared.heldout_texts()).encode()
    scored = result.training.heldout.bytes
    assert LEAST_COMPARED <= scored < len(text)
    assert result.compressors["gzip -9"] == 8 * len(gzip.compress(text[:scored], 9)) / scored
    assert compressors(prepared, LEAST_COMPARED - 1) == {}
    assert compressors(prepared, LEAST_COMPARED).keys() == {"gzip -9", "xz -9"}


def test_samples_go_on_from_held_out_texts_unless_prompts_are_given(cfg, tmp_path):
    sampled = replace(cfg, sample=replace(cfg.sample, tokens=2))
    result = _run(sampled, tmp_path / "run")
    texts = list(prepare(cfg.data, cfg.model.vocab_size).heldout_texts())
    assert result.compressors == {}
    assert len(result.samples) == 2
    for sample, text in zip(result.samples, texts, strict=False):
        assert sample.prompt
        assert text.startswith(sample.prompt)
        assert len(sample.prompt) < len(text)
    own = replace(sampled, sample=replace(sampled.sample, prompts=["a", "b", "c"]))
    assert [sample.prompt for sample in _run(own, tmp_path / "own").samples] == ["a", "b", "c"]


def test_where_nothing_is_held_out_a_sample_is_a_document_of_the_models_own(cfg, tmp_path):
    settings = replace(cfg, data=replace(cfg.data, heldout_fraction=0.0), sample=replace(cfg.sample, tokens=2))
    (sample,) = _run(settings, tmp_path / "run").samples
    assert sample.prompt == ""
    assert sample.text


def test_a_run_keeps_how_a_text_of_its_kind_begins(cfg, tmp_path):
    opening = _run(cfg, tmp_path / "run").opening
    heldout = next(iter(prepare(cfg.data, cfg.model.vocab_size).heldout_texts()))
    assert opening
    assert heldout.lstrip().startswith(opening)
    assert find_opening(tmp_path / "run") == find_opening(tmp_path / "run" / "model") == opening
    assert _run(cfg, tmp_path / "run", resume=True).opening == opening
    (tmp_path / "run" / RESULT).write_text("{}")
    assert find_opening(tmp_path / "run") == find_opening("tiny") == ""


def test_an_opening_ends_with_a_word_and_has_letters():
    assert opening_of(["", "  \n", "12 34\n", "\n\n  One two.\n"]) == "One two."
    long = "def f(argument):\n" + "    word" * 20
    assert opening_of([long]) == "def f(argument):\n    word    word    word    word    word"
    assert opening_of(["x" * 1000, "short"]) == "short"
    assert opening_of(["x" * 60 + " y"]) == "x" * 60
    assert opening_of([]) == ""


def test_phase_2_reads_in_another_order_and_holds_out_the_same_documents(cfg):
    first, second = load_pretrain("phase1").data, load_pretrain("phase2").data
    assert (first.seed, first.heldout_fraction) == (second.seed, second.heldout_fraction)
    one, two = (
        prepare(replace(cfg.data, order_seed=data.order_seed), cfg.model.vocab_size) for data in (first, second)
    )
    assert list(one.heldout_texts()) == list(two.heldout_texts())
    assert not torch.equal(one.train.batch(0, 8).tokens, two.train.batch(0, 8).tokens)


def test_a_pattern_of_frozen_weights_that_matches_nothing_is_refused_before_data_are_prepared(
    cfg, tmp_path, monkeypatch
):
    monkeypatch.setattr("nano3.stages.training.prepare", lambda *args: pytest.fail("data were prepared"))
    wrong = replace(cfg, train=replace(cfg.train, freeze=["*.router.weight"]))
    with pytest.raises(UserError, match=r"train\.freeze: no weight matches '\*\.router\.weight'"):
        _run(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_resume_of_a_finished_run_shows_its_result_again_and_does_nothing(cfg, tmp_path, monkeypatch, capsys):
    first = _run(cfg, tmp_path / "run").summary()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("nano3.stages.training.prepare", _no_work)
        assert _run(load_pretrain(str(tmp_path / "run")), tmp_path / "run", resume=True).summary() == first
        assert _run(cfg, tmp_path / "run", resume=True).summary() == first
    assert "already finished" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    longer = replace(cfg, train=replace(cfg.train, tokens=512), schedule=replace(cfg.schedule, horizon_tokens=256))
    assert _run(longer, tmp_path / "run", resume=True).training.tokens == 512


def test_a_finished_run_without_its_model_or_with_other_settings_is_resumed(cfg, tmp_path):
    _run(cfg, tmp_path / "run")
    (tmp_path / "run" / "model" / "model.safetensors").unlink()
    _run(cfg, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    sampled = replace(cfg, sample=replace(cfg.sample, tokens=2))
    assert len(_run(sampled, tmp_path / "run", resume=True).samples) == 2


def test_a_missing_tracker_is_refused_before_the_data_are_prepared(cfg, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr("nano3.stages.training.prepare", _no_work)
    with pytest.raises(UserError, match="pip install mlflow"):
        _run(replace(cfg, log=replace(cfg.log, mlflow="x")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _no_work(*args, **options):
    raise AssertionError("data are prepared")


def test_text_that_fills_no_sequence_is_refused_and_leaves_no_run(cfg, tmp_path, notes):
    for file in notes.iterdir():
        file.unlink()
    (notes / "a.txt").write_text("a b")
    with pytest.raises(UserError, match=r"too little text: \d tokens? to train on, and one sequence takes 64"):
        main(cfg, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "config.toml").exists()
