"""Memory of training and of what runs beside it, reckoned before a run."""

import dataclasses
import re
import shlex
from importlib.resources import files

import pytest

from nano3.config.errors import UserError
from nano3.config.genrm import GenrmConfig
from nano3.config.policy import PolicyConfig
from nano3.config.presets import load_extend_context, load_genrm, load_pretrain, load_rlhf, load_rlvr, load_sft
from nano3.config.rlhf import RlhfConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.sizing import available_memory
from nano3.model.lm import LM
from nano3.parallel.estimate import process_bytes
from nano3.rl.feedback.open import judge_bytes
from nano3.rl.training.engines import bytes_beside, open_engine
from nano3.stages.room import check_room
from nano3.stages.settings import check_parallel, fit_micro_batch
from nano3.train.world import World

from .policy_runs import save_base

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base") / "base")


def test_what_runs_beside_training_leaves_less_and_may_be_too_much():
    cfg, free = load_rlhf("tiny"), available_memory(World().device)
    alone, beside = check_room(cfg, World()), check_room(cfg, World(), GIB)
    assert alone - beside == pytest.approx(GIB, abs=free / 10)  # others take and free memory meanwhile
    told = r"takes about .* MB, other models and rollouts .* GB, and .* are free"
    with pytest.raises(UserError, match=rf"{told}.*drawn elsewhere: --set 'rollout\.servers="):
        check_room(cfg, World(), 2 * free)
    with pytest.raises(UserError, match=told) as refused:
        check_room(load_rlhf("tiny", ['rollout.servers=["http://127.0.0.1:9"]']), World(), 2 * free)
    assert "elsewhere" not in str(refused.value)


LOADS = {
    "pretrain/phase1": load_pretrain, "pretrain/phase2": load_pretrain, "sft/sft": load_sft, "rlvr/rlvr": load_rlvr,
    "rlhf/rlhf": load_rlhf, "genrm/genrm": load_genrm, "extend-context/long-context": load_extend_context,
}  # fmt: skip


@pytest.mark.parametrize("name", LOADS)
def test_the_arrangement_that_a_preset_names_is_possible_and_takes_the_memory_that_it_says(name):
    text = (files("nano3.presets") / f"{name}.toml").read_text("utf-8")
    told = re.search(r"holds about (\d+) GB on (\d+) of them.*\n# (--set .*)\n", text)
    assert told is not None
    size, most = int(told[2]), int(told[1])
    cfg = LOADS[name](name.partition("/")[2], shlex.split(told[3].replace("--set ", "")))
    check_parallel(cfg, size)
    needs = []
    for run in (cfg.sft(""), cfg.rlvr("")) if isinstance(cfg, GenrmConfig) else (cfg,):
        if not isinstance(run, PolicyConfig):
            run = fit_micro_batch(run, size // run.parallel.readers_of_one)
        needs += [process_bytes(run, "bfloat16", ranks=size, stage=stage) for stage in range(run.parallel.pipeline)]
        assert not isinstance(run, RlhfConfig) or run.judge.spec.startswith("http")  # else it is in every process too
    assert 0.9 * most < max(needs) / 1e9 < 1.1 * most


def test_many_short_rows_in_many_slices_have_no_room():
    cfg = load_extend_context("long-context", ["parallel.context=64", "parallel.expert=8", "train.micro_batch_size=48"])
    advice = "train sequences of 4096 tokens without parallel.context, or with less of it and parallel.tensor beside it"
    with pytest.raises(UserError, match=rf"takes about [0-9]+ GB a rank and .*{advice}"):
        check_room(cfg, World(size=256))
    # One row of the longest in a pass, as the preset has it, and 128 of 4,096 tokens.
    arranged = ["parallel.context=64", "parallel.expert=8", "parallel.pipeline=4"]
    fits = [process_bytes(load_extend_context("long-context", arranged), ranks=256, stage=i) for i in range(4)]
    assert max(fits) < 70e9


def test_copies_rollouts_references_and_judges_count(base):
    stored = (base / "model.safetensors").stat().st_size
    tiny = load_rlhf("tiny", ["objective.kl_coef=0"])
    assert bytes_beside(tiny, base, World()) == 0
    cfg = load_rlhf("tiny", ["rollout.memory=2", "objective.kl_coef=0.1", "lora.rank=2"])
    parameters = sum(weight.numel() for weight in LM(cfg.model).parameters())
    assert bytes_beside(cfg, base, World()) == pytest.approx(2 * GIB + stored + 4 * parameters, rel=0.01)
    judged = load_rlhf("tiny", [f"judge.spec={base}", "judge.memory=3", "heldout.judge=rules"])
    assert judge_bytes(judged) == pytest.approx(3 * GIB + stored, abs=0.1 * stored)
    assert judge_bytes(dataclasses.replace(judged, judge=tiny.judge)) == 0


@pytest.mark.parametrize("left", [64 * MIB, -GIB])
def test_rollouts_take_a_part_of_what_training_leaves(left, base):
    tokenizer = Tokenizer.load(base)
    model = LM(dataclasses.replace(load_rlhf("tiny").model, vocab_size=tokenizer.vocab_size)).init_weights(0)
    cfg = load_rlhf("tiny", ["rollout.sequences=100000", "rollout.max_tokens=64"])
    before = available_memory(World().device)
    taken = open_engine(cfg, model, tokenizer, World(), base, left).sizes.total_bytes
    free = max(before, available_memory(World().device))  # others take and free memory meanwhile
    if left > 0:
        assert taken <= max(left, 0.06 * free)
    assert 0 < taken < 0.1 * free
