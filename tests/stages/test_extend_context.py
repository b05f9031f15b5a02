import json
from dataclasses import replace

import pytest
import torch

from nano3.config.errors import UserError
from nano3.config.presets import load_extend_context, load_pretrain
from nano3.model.hf.config import read_stage
from nano3.model.hf.folder import load
from nano3.stages import extend_context, pretrain
from nano3.stages.start import heldout_warning
from nano3.train.tracking.metrics import read_metrics, without_clock
from nano3.train.tracking.progress import Silent
from nano3.train.world import World

LENGTHS = "context.lengths={256=1,64=1}"


@pytest.fixture(autouse=True)
def _no_charts(monkeypatch):
    monkeypatch.setattr("nano3.train.tracking.record.charts.draw", lambda *args: [])


@pytest.fixture
def common(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"the note number {i} says that {i * i} is the square of {i}.\n" * 9)
    return [
        "data.blend={notes=1}", f"data.sources={{notes=['{folder}']}}", "data.heldout_fraction=0.2",
        "schedule.warmup_tokens=0", "sample.tokens=0", f"data.cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip


@pytest.fixture
def start(tmp_path, common):
    """The folder of a pretrained model that advertises 128 tokens."""
    settings = [
        "model.pattern=M*E", "model.d_model=32", "model.d_expert=32", "model.d_shared=32", "model.vocab_size=512",
        "model.max_position_embeddings=128", "data.seq_len=64", "train.tokens=256", "train.batch_size=2",
        "train.micro_batch_size=2",
    ]  # fmt: skip
    pretrain.main(load_pretrain("tiny", settings + common), tmp_path / "start", progress=Silent())
    return tmp_path / "start"


def config(common, tokens=2048, **settings):
    steps = ["train.batch_size=2", "train.micro_batch_size=1", f"train.tokens={tokens}", "checkpoint.every_tokens=512"]
    return load_extend_context("tiny", [*common, LENGTHS, *steps, *(f"train.{k}={v}" for k, v in settings.items())])


def lines_of(run_dir):
    return without_clock(read_metrics(run_dir / "metrics.jsonl"))


def test_a_mixture_trains_at_a_constant_rate_and_the_model_advertises_the_longest_length(tmp_path, common, start):
    result = extend_context.main(config(common), tmp_path / "run", start, progress=Silent())
    train = [line for line in lines_of(tmp_path / "run") if line["kind"] == "train"]
    assert [line["seq_len"] for line in train].count(256) == [line["seq_len"] for line in train].count(64) == 2
    assert [line["tokens"] for line in train] == [512, 1024, 1536, 2048]
    assert {line["lr"] for line in train} == {5e-4}
    final = [line for line in lines_of(tmp_path / "run") if line["kind"] == "heldout" and line.get("final")]
    assert [line["seq_len"] for line in final] == [64, 256]
    scores = result.summary()["heldout_by_length"]
    assert [score["seq_len"] for score in scores] == [64, 256]
    assert result.summary()["heldout_loss"] == scores[0]["loss"] == final[0]["loss"]
    exported = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert exported["max_position_embeddings"] == 256
    assert read_stage(tmp_path / "run" / "model") == "pretrain"
    before, after = (load(folder / "model").state_dict() for folder in (start, tmp_path / "run"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, common, start):
    extend_context.main(config(common), tmp_path / "whole", start, progress=Silent())
    extend_context.main(config(common, tokens=1024), tmp_path / "parts", start, progress=Silent())
    longer = load_extend_context(str(tmp_path / "parts"), ["train.tokens=2048"])
    extend_context.main(longer, tmp_path / "parts", resume=True, progress=Silent())
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")
    one, two = (load(tmp_path / name / "model").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_resume_with_another_mixture_is_refused(tmp_path, common, start):
    extend_context.main(config(common, tokens=1024), tmp_path / "run", start, progress=Silent())
    other = config(common)
    other = replace(other, context=replace(other.context, lengths={"256": 1.0, "64": 3.0}))
    with pytest.raises(UserError, match=r"cannot resume .*context.lengths"):
        extend_context.main(other, tmp_path / "run", resume=True, progress=Silent())


def test_pieces_train_the_same_model_to_rounding(tmp_path, common, start):
    extend_context.main(config(common), tmp_path / "whole", start, progress=Silent())
    pieces = config(common, checkpoint_activations="block", sequence_chunk=64)
    extend_context.main(pieces, tmp_path / "pieces", start, progress=Silent())
    for whole, piece in zip(lines_of(tmp_path / "whole"), lines_of(tmp_path / "pieces"), strict=True):
        assert whole.get("loss", 0.0) == pytest.approx(piece.get("loss", 0.0), rel=1e-3)


def test_a_run_that_does_not_fit_is_refused_before_its_data_are_prepared(tmp_path, common, start, monkeypatch, capsys):
    monkeypatch.setattr("nano3.stages.room.available_memory", lambda device: 4_000_000)
    with pytest.raises(UserError) as caught:
        extend_context.main(config(common, dtype="float32"), tmp_path / "run", start, progress=Silent())
    line = str(caught.value)
    assert "context.lengths: training on 1 x 256 tokens takes about" in line
    assert "4 MB are free in main memory: the longest that fits is 128; lower it, or try" in line
    assert "--set train.checkpoint_activations=block --set train.sequence_chunk=4096" in line
    assert "preparing" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_batch_that_ranks_cannot_share_is_refused_before_its_data_are_prepared(tmp_path, common, start, monkeypatch):
    world = World(size=3)
    monkeypatch.setattr("nano3.stages.run_folder.init_world", lambda *_: world)
    monkeypatch.setattr("nano3.stages.run_folder.check_shared", lambda *_: None)  # there are no other processes to ask
    monkeypatch.setattr("nano3.stages.training.prepare", lambda *args: pytest.fail("data were prepared"))
    with pytest.raises(ValueError, match="by 3 processes"):
        extend_context.main(config(common), tmp_path / "run", start, progress=Silent())


def test_there_must_be_a_model_to_start_from(tmp_path, common):
    with pytest.raises(UserError, match="goes on from a trained model: name a run or Hugging Face folder with --from"):
        extend_context.main(config(common), tmp_path / "run", progress=Silent())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.heldout_fraction=0.3", "data.heldout_fraction (there 0.2, here 0.3)"),
        ("data.seed=7", "data.seed (there 1234, here 7)"),
        ("data.heldout_fraction=0.1", None),
        ("data.heldout_fraction=0", None),
    ],
)
def test_held_out_text_that_the_weights_were_trained_on_is_told(tmp_path, common, start, capsys, setting, words):
    cfg = load_extend_context("tiny", [*common, LENGTHS, setting])
    for folder in (start, start / "model"):
        found = heldout_warning(cfg, folder)
        if words is None:
            assert found is None
        else:
            assert found is not None
            assert found.startswith("warning: ")
            assert words in found


def test_the_warning_is_one_line_of_the_run_and_a_split_of_its_own_needs_none(tmp_path, common, start, capsys):
    extend_context.main(config(common, tokens=512), tmp_path / "same", start, progress=Silent())
    assert "warning" not in capsys.readouterr().err
    other = load_extend_context("tiny", [
        *common, LENGTHS, "train.batch_size=2", "train.micro_batch_size=1", "train.tokens=512",
        "data.heldout_fraction=0.3",
    ])  # fmt: skip
    extend_context.main(other, tmp_path / "other", start, progress=Silent())
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].endswith("use --set data.heldout_fraction=0.2")


def test_damaged_weights_are_refused_before_data_are_prepared(tmp_path, common, start, monkeypatch):
    monkeypatch.setattr("nano3.stages.training.prepare", lambda *args: pytest.fail("data were prepared"))
    file = start / "model" / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:100], whole[: len(whole) // 2], b"no weights"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model.safetensors: cannot be read .* copy the file again"):
            extend_context.main(config(common), tmp_path / "run", start, progress=Silent())
    assert not (tmp_path / "run").exists()
