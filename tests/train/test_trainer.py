import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from nano3.config.errors import UserError
from nano3.train.checkpoint.checkpointer import CheckpointError, damage, step_folders
from nano3.train.checkpoint.files import crc32
from nano3.train.loss import NextTokenLoss
from nano3.train.step import NonFiniteError, run_step
from nano3.train.tracking.metrics import read_metrics, without_clock
from nano3.train.tracking.progress import Silent


class Messages(Silent):
    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


def _lines(run_dir):
    return without_clock(read_metrics(run_dir / "metrics.jsonl"))


def _state(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def _same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def _short(tiny, steps):
    """Settings of a run that ends after `steps` steps but follows the schedule of the six-step run."""
    return tiny.config(train={"tokens": steps * 64}, schedule={"horizon_tokens": 384})


@pytest.fixture
def whole(tiny, tmp_path):
    """An uninterrupted run of six steps."""
    run = tiny.trainer(tmp_path / "whole", tiny.config(schedule={"horizon_tokens": 384}))
    result = run.fit()
    return run, result


def test_a_run_learns_and_leaves_its_folder(draws_charts, whole, tmp_path):
    _, result = whole
    lines = _lines(tmp_path / "whole")
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.2
    assert (result.step, result.tokens, result.interrupted) == (6, 384, False)
    assert result.heldout.bits_per_byte == lines[-1]["bits_per_byte"]
    assert [p.name for p in step_folders(tmp_path / "whole" / "checkpoints")] == ["step-6", "step-5"]
    assert {p.name for p in (tmp_path / "whole" / "charts").iterdir()} == {
        "loss.png",
        "learning_rate.png",
        "expert_load.png",
    }
    assert [line["step"] for line in lines if line["kind"] == "heldout"] == [2, 4, 6]


def test_the_learning_rate_is_the_schedule_at_the_end_of_each_step(whole, tmp_path):
    run, _ = whole
    rates = [line["lr"] for line in _lines(tmp_path / "whole") if line["kind"] == "train"]
    assert rates == [run.schedule.lr(64 * step) for step in range(1, 7)]


def test_three_steps_and_a_resume_equal_six_steps_bit_for_bit(whole, tiny, tmp_path):
    run, _ = whole
    tiny.trainer(tmp_path / "parts", _short(tiny, 3)).fit()
    second = tiny.trainer(tmp_path / "parts", tiny.config(schedule={"horizon_tokens": 384}))
    assert second.resume().name == "step-3"
    second.fit()
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")
    _same(_state(second), _state(run))
    assert any(bias.abs().sum() > 0 for bias in second.model.expert_biases())


def test_the_expert_bias_is_saved_and_not_zero(tiny, tmp_path):
    first = tiny.trainer(tmp_path, _short(tiny, 3))
    first.fit()
    second = tiny.trainer(tmp_path, _short(tiny, 3))
    second.resume()
    for saved, live in zip(second.model.expert_biases(), first.model.expert_biases(), strict=True):
        assert torch.equal(saved, live)
        assert saved.abs().max() > 0


def test_ctrl_c_in_the_last_scoring_leaves_a_run_that_a_resume_finishes(whole, tiny, tmp_path, monkeypatch):
    def interrupted(self, done, total, place):
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr(Silent, "score", interrupted)
    cfg = tiny.config(schedule={"horizon_tokens": 384})
    stopped = tiny.trainer(tmp_path / "parts", cfg).fit()
    assert (stopped.interrupted, stopped.step, stopped.heldout) == (True, 6, None)
    monkeypatch.undo()
    again = tiny.trainer(tmp_path / "parts", cfg)
    again.resume()
    assert not again.fit().interrupted
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")


def test_a_resume_from_an_older_checkpoint_is_the_run_from_there(whole, tiny, tmp_path):
    before = _lines(tmp_path / "whole")
    cfg, messages = tiny.config(schedule={"horizon_tokens": 384}), Messages()
    again = tiny.trainer(tmp_path / "whole", cfg, progress=messages)
    assert again.resume(step=5).name == "step-5"
    assert any("resuming from" in said and "step-5" in said for said in messages.said)
    again.fit()
    assert _lines(tmp_path / "whole") == before


def test_from_a_named_checkpoint_a_run_may_learn_otherwise_but_not_from_something_else(whole, tiny, tmp_path):
    schedule = {"horizon_tokens": 384, "peak_lr": 1e-4, "min_lr": 1e-5}
    slower, messages = tiny.config(schedule=schedule), Messages()
    with pytest.raises(CheckpointError, match=r"peak_lr.*or leave what came after .* --checkpoint 6"):
        tiny.trainer(tmp_path / "whole", slower).resume()
    other = tiny.config(schedule=schedule, train={"batch_size": 8})
    with pytest.raises(CheckpointError, match=r"cannot resume .*train.batch_size: 4 -> 8.*: use a new run folder$"):
        tiny.trainer(tmp_path / "whole", other).resume(step=5)
    again = tiny.trainer(tmp_path / "whole", slower, progress=messages)
    again.resume(step=5)
    assert any(
        "from step 5 on with another setting, schedule.peak_lr: 0.01 -> 0.0001" in said for said in messages.said
    )
    again.fit()
    rates = [line["lr"] for line in _lines(tmp_path / "whole") if line["kind"] == "train"]
    assert rates[4] > 1e-4 > rates[5]


def test_a_finished_run_resumes_to_the_same_file(whole, tiny, tmp_path):
    before = _lines(tmp_path / "whole")
    again = tiny.trainer(tmp_path / "whole", tiny.config(schedule={"horizon_tokens": 384}))
    again.resume()
    assert again.fit().step == 6
    assert _lines(tmp_path / "whole") == before


def test_random_numbers_continue_after_a_resume(tiny, tmp_path):
    class NoisyLoss(NextTokenLoss):
        def __call__(self, model, batch, scale):
            parts = super().__call__(model, batch, scale)
            return replace(parts, total=parts.total * (1 + torch.rand(())))

    cfg = tiny.config(schedule={"horizon_tokens": 384})
    torch.manual_seed(5)
    whole = tiny.trainer(tmp_path / "a", cfg, loss=NoisyLoss(0.0))
    whole.fit()
    torch.manual_seed(5)
    tiny.trainer(tmp_path / "b", _short(tiny, 3), loss=NoisyLoss(0.0)).fit()
    torch.manual_seed(99)
    second = tiny.trainer(tmp_path / "b", cfg, loss=NoisyLoss(0.0))
    second.resume()
    second.fit()
    _same(_state(second), _state(whole))


def test_recomputed_blocks_count_loads_once_and_train_the_same(tiny, tmp_path):
    results = []
    for mode in ("none", "block"):
        run = tiny.trainer(tmp_path / mode, tiny.config(train={"checkpoint_activations": mode}))
        assert run.model.checkpoint_activations == (mode == "block")
        results.append(run_step(run.recipe, run.feed.get(0), lambda: False))
        run.feed.close()
    plain, recomputed = results
    assert plain.loads.sum(1).tolist() == [4 * tiny.SEQ_LEN * tiny.MODEL.top_k] * 2
    assert torch.equal(plain.loads, recomputed.loads)
    assert recomputed.grad_norm == pytest.approx(plain.grad_norm, rel=1e-6)


def test_accumulation_does_not_change_the_step(tiny, tmp_path):
    results = []
    for micro in (1, 4):
        run = tiny.trainer(
            tmp_path / str(micro), tiny.config(train={"micro_batch_size": micro}, balance={"loss_coef": 0.0})
        )
        results.append(run_step(run.recipe, run.feed.get(0), lambda: False))
        run.feed.close()
    assert results[0].loss == pytest.approx(results[1].loss, abs=1e-6)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-5)
    assert torch.equal(results[0].loads, results[1].loads)


def test_the_update_uses_the_clipped_gradient(tiny, tmp_path):
    run = tiny.trainer(tmp_path)
    before = _state(run)
    plain_descent = torch.optim.SGD(run.model.parameters(), lr=1.0)
    recipe = replace(run.recipe, optimizer=plain_descent, clip_norm=0.25, bias_rate=0.0)
    result = run_step(recipe, run.feed.get(0), lambda: False)
    run.feed.close()
    moved = sum((value - before[name]).square().sum() for name, value in run.model.state_dict().items()) ** 0.5
    assert result.grad_norm > 0.5
    assert moved.item() == pytest.approx(0.25, rel=1e-3)


class PoisonedLoss(NextTokenLoss):
    """Becomes NaN, in the loss or only in its gradient, at one document."""

    def __init__(self, where):
        super().__init__(0.0)
        self.where = where

    def __call__(self, model, batch, scale):
        parts = super().__call__(model, batch, scale)
        if "doc-10" not in batch.documents:
            return parts
        if self.where == "loss":
            return replace(parts, total=parts.total * torch.nan)
        # Its value is 0, its derivative is not finite.
        return replace(parts, total=parts.total + torch.sqrt(model.lm_head.weight.sum() * 0.0))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_before_the_update_and_says_where(tiny, tmp_path, where):
    run = tiny.trainer(tmp_path / "nan", loss=PoisonedLoss(where))
    with pytest.raises(NonFiniteError) as error:
        run.fit()
    text = str(error.value)
    assert text.startswith("step 3 ")
    assert "doc-10" in text
    assert "\n" not in text
    assert text.endswith("nan/checkpoints/step-2")
    assert ("doc-8" in text) == (where == "gradient")
    assert damage(tmp_path / "nan" / "checkpoints" / "step-2") is None
    good = tiny.trainer(tmp_path / "good", tiny.config(train={"tokens": 128}, schedule={"horizon_tokens": 384}))
    good.recipe = replace(good.recipe, loss=NextTokenLoss(0.0))
    good.fit()
    _same(_state(run), _state(good))


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(whole, tiny, tmp_path):
    newest = tmp_path / "whole" / "checkpoints" / "step-6"
    file = next(newest.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    before, messages = _lines(tmp_path / "whole"), Messages()
    again = tiny.trainer(tmp_path / "whole", tiny.config(schedule={"horizon_tokens": 384}), progress=messages)
    assert again.resume().name == "step-5"
    assert "step-6 is damaged" in messages.said[0]
    again.fit()
    assert _lines(tmp_path / "whole") == before
    assert damage(newest) is None


def test_a_damaged_checkpoint_is_set_aside_and_never_costs_the_good_one(tiny, tmp_path):
    settings = {"schedule": {"horizon_tokens": 384}, "checkpoint": {"every_tokens": 128, "keep": 1}}
    tiny.trainer(tmp_path, tiny.config(**settings, train={"tokens": 256})).fit()
    good, ahead = (tmp_path / "checkpoints" / f"step-{step}" for step in (4, 6))
    shutil.copytree(good, ahead)
    (ahead / "manifest.json").unlink()
    messages = Messages()
    again = tiny.trainer(tmp_path, tiny.config(**settings, train={"tokens": 320}), progress=messages)
    assert again.resume() == good
    assert again.fit().step == 5
    assert [p.name for p in step_folders(tmp_path / "checkpoints")] == ["step-5"]
    assert (tmp_path / "checkpoints" / "step-6.damaged").is_dir()
    assert any("step-6.damaged" in said for said in messages.said)


def test_a_run_whose_horizon_follows_its_tokens_keeps_it(tiny, tmp_path):
    tiny.trainer(tmp_path, tiny.config(train={"tokens": 192})).fit()
    with pytest.raises(CheckpointError, match=r"horizon_tokens: 192 -> 384.*--set schedule\.horizon_tokens=192"):
        tiny.trainer(tmp_path, tiny.config()).resume()
    longer = tiny.trainer(tmp_path, tiny.config(schedule={"horizon_tokens": 192}))
    assert longer.resume().name == "step-3"
    longer.feed.close()


@pytest.mark.parametrize(("change", "n_notes"), [({}, 0), ({"micro_batch_size": 4}, 1), ({"dtype": "bfloat16"}, 1)])
def test_a_resume_that_cannot_be_exact_says_so(tiny, tmp_path, change, n_notes):
    tiny.trainer(tmp_path, tiny.config(train={"tokens": 64}, schedule={"horizon_tokens": 384})).fit()
    messages = Messages()
    again = tiny.trainer(tmp_path, tiny.config(train=change, schedule={"horizon_tokens": 384}), progress=messages)
    again.resume()
    again.feed.close()
    notes = [said for said in messages.said if "not exactly" in said]
    assert len(notes) == n_notes
    assert all(key in note for key, note in zip(change, notes, strict=True))


def test_resuming_with_another_input_is_refused_by_name(tiny, tmp_path):
    cfg = tiny.config(train={"tokens": 64}, schedule={"horizon_tokens": 384})
    tiny.trainer(tmp_path, cfg, inputs={"tokenizer": "a", "text of notes": "b"}).fit()
    with pytest.raises(CheckpointError, match=r"\(text of notes: b -> c\)"):
        tiny.trainer(tmp_path, cfg, inputs={"tokenizer": "a", "text of notes": "c"}).resume()


def test_resuming_with_other_settings_is_refused_by_name(whole, tiny, tmp_path):
    other = tiny.trainer(tmp_path / "whole", tiny.config(optimizer={"beta2": 0.9}, schedule={"horizon_tokens": 384}))
    with pytest.raises(CheckpointError, match=r"optimizer\.beta2: 0\.95 -> 0\.9"):
        other.resume()


def test_a_folder_that_holds_a_run_is_not_overwritten(whole, tiny, tmp_path):
    with pytest.raises(ValueError, match="already holds a run"):
        tiny.trainer(tmp_path / "whole").fit()


def test_continuing_takes_moments_and_schedule_but_starts_its_own_data(tiny, tmp_path):
    first = tiny.trainer(tmp_path / "phase1", _short(tiny, 3))
    first.fit()
    second = tiny.trainer(tmp_path / "phase2", _short(tiny, 3))
    second.continue_from(tmp_path / "phase1")
    assert second.position.step == 0
    _same(_state(second), _state(first))
    second.fit()
    rates = [line["lr"] for line in _lines(tmp_path / "phase2") if line["kind"] == "train"]
    assert rates == [first.schedule.lr(64 * step) for step in (4, 5, 6)]
    assert json.loads((tmp_path / "phase2/checkpoints/step-3/state.json").read_text())["optimizer_steps"] == 6


def test_a_continued_run_without_a_horizon_decays_over_its_own_tokens(tiny, tmp_path):
    tiny.trainer(tmp_path / "phase1", _short(tiny, 3)).fit()
    cfg = tiny.config(schedule={"stable_fraction": 0.5})
    second = tiny.trainer(tmp_path / "phase2", cfg)
    second.continue_from(tmp_path / "phase1")
    second.fit()
    rates = [line["lr"] for line in _lines(tmp_path / "phase2") if line["kind"] == "train"]
    assert second.schedule.horizon == 192 + 384
    assert rates[0] == cfg.schedule.peak_lr
    assert rates[-2] > rates[-1] == pytest.approx(cfg.schedule.min_lr)
    again = tiny.trainer(tmp_path / "phase2", cfg)
    assert again.resume().name == "step-6"
    assert again.schedule.horizon == 192 + 384
    again.feed.close()


@pytest.mark.parametrize(("stated", "fits"), [(192, True), (250, True), (384, False), (64, False)])
def test_a_stated_start_must_be_where_the_other_run_ended(tiny, tmp_path, stated, fits):
    tiny.trainer(tmp_path / "phase1", _short(tiny, 3)).fit()
    second = tiny.trainer(tmp_path / "phase2", tiny.config(schedule={"start_tokens": stated, "horizon_tokens": 800}))
    second.feed.close()
    if fits:
        second.continue_from(tmp_path / "phase1")
        assert second.position.schedule_start == 192
        return
    with pytest.raises(UserError, match=r"start_tokens is .*step-3 is at token 192.*start_tokens=192"):
        second.continue_from(tmp_path / "phase1")


def test_bfloat16_keeps_float32_weights_and_trains(tiny, tmp_path):
    run = tiny.trainer(tmp_path, tiny.config(train={"dtype": "bfloat16"}))
    run.fit()
    assert run.model.compute_dtype == torch.bfloat16
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    losses = [line["loss"] for line in _lines(tmp_path) if line["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.2


def test_intervals_may_count_steps_and_a_run_may_end_by_steps(tiny, tmp_path):
    cfg = tiny.config(
        train={"steps": 5, "tokens": 10**9},
        schedule={"warmup_tokens": 0, "warmup_steps": 2},
        heldout={"every_tokens": 0, "every_steps": 2},
        checkpoint={"every_tokens": 0, "every_steps": 3, "keep": 9},
    )
    result = tiny.trainer(tmp_path, cfg).fit()
    assert (result.step, result.tokens) == (5, 5 * 64)
    lines = _lines(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "heldout"] == [2, 4, 5]
    assert [line["lr"] for line in lines if line["kind"] == "train"][:4] == [5e-3, 1e-2, 1e-2, 1e-2]
    assert [line["lr"] for line in lines if line["kind"] == "train"][-1] == pytest.approx(1e-3)
    assert [folder.name for folder in step_folders(tmp_path / "checkpoints")] == ["step-5", "step-3"]
    again = tiny.trainer(tmp_path, replace(cfg, train=replace(cfg.train, steps=7)))
    with pytest.raises(CheckpointError, match=r"horizon_steps: 5 -> 7.*--set schedule\.horizon_steps=5"):
        again.resume()


def test_a_checkpoint_from_before_a_setting_was_there_has_its_default(tiny, tmp_path):
    horizon = {"horizon_tokens": 384}
    tiny.trainer(tmp_path, _short(tiny, 3)).fit()
    file = tmp_path / "checkpoints" / "step-3" / "state.json"
    manifest = file.with_name("manifest.json")
    state = json.loads(file.read_text())
    for key in ("train.freeze", "schedule.start_lr", "schedule.warmup_steps"):
        del state["settings"][key]
    # Saved by earlier versions, as if it decided something.
    state["settings"]["export.dtype"] = "bfloat16"
    del state["source"]
    file.write_text(json.dumps(state))
    listed = json.loads(manifest.read_text())
    listed["files"]["state.json"] = {"bytes": file.stat().st_size, "crc32": crc32(file)}
    manifest.write_text(json.dumps(listed))
    frozen = tiny.trainer(tmp_path, tiny.config(train={"freeze": ["*.gate.weight"]}, schedule=horizon))
    with pytest.raises(CheckpointError, match=r"train\.freeze: \[\] -> \['\*\.gate\.weight'\]"):
        frozen.resume()
    assert tiny.trainer(tmp_path, tiny.config(schedule=horizon)).resume().name == "step-3"


class Batches:
    """A step source of given batches."""

    ahead = False

    def __init__(self, *steps):
        self.steps = steps

    def step(self, n):
        return self.steps[n]

    def state(self):
        return {}

    def restore(self, state):
        pass

    def close(self):
        pass


def test_a_step_without_targets_leaves_everything_as_it_is_and_says_so(tiny, tmp_path):
    batches = [tiny.TinySource().batch(4 * n, 4) for n in range(2)]
    empty = replace(batches[1], targets=torch.full_like(batches[1].targets, -100))
    cfg, messages = tiny.config(train={"steps": 2}, schedule={"horizon_tokens": 384}), Messages()
    run = tiny.trainer(tmp_path / "two", cfg, Batches([batches[0]], [empty]), heldout=None, progress=messages)
    result = run.fit()
    assert (result.step, result.tokens) == (2, 128)
    assert math.isnan(result.loss)
    assert ["step 2 has no targets" in said and "doc-4" in said for said in messages.said].count(True) == 1
    assert "loss" not in [line for line in _lines(tmp_path / "two") if line["kind"] == "train"][-1]
    cfg = tiny.config(train={"steps": 1}, schedule={"horizon_tokens": 384})
    alone = tiny.trainer(tmp_path / "one", cfg, Batches([batches[0]]), heldout=None)
    alone.fit()
    _same(_state(run), _state(alone))


def test_micro_batches_of_padding_alone_do_not_dilute_the_balance_loss(tiny, tmp_path):
    text = tiny.TinySource().batch(0, 2)
    padding = replace(text, valid=torch.zeros_like(text.tokens, dtype=torch.bool), targets=text.targets * 0 - 100)
    lines = []
    for name, batches in (("with", [text, padding]), ("without", [text])):
        cfg = tiny.config(train={"tokens": 32}, schedule={"warmup_tokens": 0}, balance={"loss_coef": 0.5})
        tiny.trainer(tmp_path / name, cfg, Batches(batches), heldout=None).fit()
        lines.append(next(line for line in _lines(tmp_path / name) if line["kind"] == "train"))
    assert lines[0]["balance_loss"] == lines[1]["balance_loss"] > 1
    assert lines[0]["grad_norm"] == pytest.approx(lines[1]["grad_norm"], rel=1e-5)
