"""Presets load, inherit, take overrides, refuse what is wrong, and survive a round trip."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.config.errors import UserError
from nano3.config.extend_context import ExtendContextConfig
from nano3.config.model import ModelConfig
from nano3.config.presets import load_extend_context, load_model, load_pretrain, load_sft, preset_names, to_toml
from nano3.config.schema import PretrainConfig


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def error_of(name, *overrides):
    with pytest.raises(UserError) as caught:
        load_pretrain(name, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_preset_loads():
    assert preset_names("models") == ["bench-110m", "nano3-30b-a3b", "tiny"]
    assert preset_names("pretrain") == ["phase1", "phase2", "tiny"]
    assert preset_names("extend-context") == ["long-context", "tiny"]
    for name in preset_names("extend-context"):
        assert isinstance(load_extend_context(name), ExtendContextConfig)
    for name in preset_names("models"):
        assert isinstance(load_model(name), ModelConfig)
    for name in preset_names("pretrain"):
        assert isinstance(load_pretrain(name), PretrainConfig)


def test_phases_carry_the_reports_schedule_and_blends():
    first, second = load_pretrain("phase1"), load_pretrain("phase2")
    assert first.train.tokens + second.train.tokens == first.schedule.horizon_tokens == second.schedule.horizon_tokens
    assert second.schedule.start_tokens == first.train.tokens == 23_500_000_000_000
    assert first.schedule.warmup_tokens == 8_400_000_000
    assert first.train.batch_size * first.data.seq_len == 25_165_824
    assert sum(first.data.blend.values()) == pytest.approx(100)
    assert sum(second.data.blend.values()) == pytest.approx(100.1)
    assert second.data.blend["math"] == 12.5
    assert "crawl-medium" in first.data.blend
    assert "crawl-medium" not in second.data.blend


def test_bench_model_has_the_peers_sizes():
    bench = load_model("bench-110m")
    peer = {"d_model": 512, "pattern": "MEMEM*EMEMEM*EME", "n_heads": 8, "n_kv_heads": 2, "head_dim": 64}
    peer |= {"mamba_n_heads": 16, "mamba_head_dim": 64, "d_state": 128, "n_groups": 2, "chunk_size": 128}
    peer |= {"n_experts": 32, "top_k": 4, "d_expert": 256, "d_shared": 512, "routed_scale": 2.5}
    peer |= {"vocab_size": 32000, "max_position_embeddings": 65536}
    assert {name: getattr(bench, name) for name in peer} == peer


@pytest.mark.parametrize("name", ["phase1", "phase2", "tiny"])
def test_a_written_configuration_loads_back_equal(name, tmp_path):
    cfg = load_pretrain(name, ["sample.prompts=['a\"b\\n']", "data.sources.x=['ä b', 'c']", "log.wandb=x"])
    assert load_pretrain(write(tmp_path, "config.toml", to_toml(cfg))) == cfg


@given(
    tokens=st.integers(1, 10**15),
    lr=st.floats(0, 1),
    blend=st.dictionaries(st.text(), st.floats(0.5, 100), min_size=1),
    prompts=st.lists(st.text()),
)
def test_any_values_survive_the_round_trip(tokens, lr, blend, prompts, tmp_path_factory):
    cfg = load_pretrain("tiny")
    cfg = replace(
        cfg,
        train=replace(cfg.train, tokens=tokens),
        schedule=replace(cfg.schedule, peak_lr=lr),
        data=replace(cfg.data, blend=blend),
        sample=replace(cfg.sample, prompts=prompts),
    )
    path = write(tmp_path_factory.getbasetemp(), "any.toml", to_toml(cfg))
    assert load_pretrain(path) == cfg


def test_a_run_folder_serves_as_a_preset(tmp_path):
    cfg = load_pretrain("tiny", ["train.tokens=64"])
    write(tmp_path, "config.toml", to_toml(cfg))
    assert load_pretrain(str(tmp_path)) == cfg


def test_a_file_inherits_key_by_key_and_replaces_the_blend(tmp_path):
    write(tmp_path, "parent.toml", 'base = "phase1"\n[train]\ntokens = 1000\nmicro_batch_size = 3\n')
    child = write(tmp_path, "child.toml", 'base = "parent.toml"\n[train]\ntokens = 2000\n[data.blend]\nmine = 1\n')
    cfg = load_pretrain(child)
    assert (cfg.train.tokens, cfg.train.micro_batch_size, cfg.train.batch_size) == (2000, 3, 3072)
    assert cfg.data.blend == {"mine": 1.0}
    assert cfg.model == load_model("nano3-30b-a3b")


def test_a_base_may_be_a_preset_of_another_stage(tmp_path):
    child = write(tmp_path, "child.toml", 'base = "pretrain/phase2"\n[context.lengths]\n1024 = 1\n[train]\nseed = 7\n')
    cfg = load_extend_context(child)
    assert (cfg.train.seed, cfg.lengths, cfg.data.blend["math"]) == (7, {1024: 1.0}, 12.5)


def test_a_circle_of_bases_is_an_error(tmp_path):
    first = write(tmp_path, "a.toml", 'base = "b.toml"\n')
    write(tmp_path, "b.toml", 'base = "a.toml"\n')
    assert "presets inherit in a circle" in error_of(first)
    assert "a.toml -> " in error_of(first)


def test_a_model_preset_fills_the_model_and_own_keys_win(tmp_path):
    path = write(tmp_path, "x.toml", 'base = "phase1"\n[model]\npreset = "bench-110m"\ntop_k = 2\n')
    assert load_pretrain(path).model == replace(load_model("bench-110m"), top_k=2)


def test_a_model_preset_may_be_a_file_beside_the_preset(tmp_path):
    write(tmp_path, "mine.toml", 'base = "tiny"\nd_model = 128\n')
    path = write(tmp_path, "x.toml", '[model]\npreset = "mine.toml"\n')
    assert load_pretrain(path).model == replace(load_model("tiny"), d_model=128)


def test_overrides_apply_in_order_and_take_toml_or_bare_strings():
    cfg = load_pretrain(
        "phase1",
        [
            "model.preset=tiny",
            "model.top_k=1",
            "train.tokens=23.5e12",
            "train.tokens=23_500_000_000_001",
            "train.dtype=float32",
            "train.continue_state=true",
            "model.pattern=ME*-",
            "schedule.peak_lr=1",
            "log.wandb=2024",
            "data.sources.mine=a b/c.txt",
            'data.sources.two=["x", "y"]',
            "data.blend.crawl++=3",
        ],
    )
    assert cfg.model == replace(load_model("tiny"), top_k=1, pattern="ME*-")
    assert cfg.train.tokens == 23_500_000_000_001
    assert cfg.train.dtype == "float32"
    assert cfg.train.continue_state is True
    assert isinstance(cfg.schedule.peak_lr, float)
    assert cfg.log.wandb == "2024"
    assert cfg.data.sources == {"mine": ["a b/c.txt"], "two": ["x", "y"]}
    assert cfg.data.blend["crawl++"] == 3
    assert cfg.data.blend["math"] == 6.4


def test_an_override_of_a_whole_table_replaces_it():
    assert load_pretrain("phase1", ["data.blend={mine=1}"]).data.blend == {"mine": 1.0}


def test_token_counts_may_be_written_as_floats(tmp_path):
    cfg = load_pretrain(write(tmp_path, "x.toml", "[train]\ntokens = 23.5e12\n"))
    assert cfg.train.tokens == 23_500_000_000_000
    assert type(cfg.train.tokens) is int


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.batchsize=3",
            "--set train.batchsize=3: unknown key 'train.batchsize'; did you mean 'train.batch_size'?",
        ),
        ("seq_len=3", "did you mean 'data.seq_len'?"),
        ("tokens=5", "did you mean 'train.tokens'? (also heldout.tokens"),
        ("token=5", "did you mean 'train.tokens'?"),
        ("data.tokens=5", "did you mean 'train.tokens'?"),
        ("steps=5", "did you mean 'train.steps'?"),
        ("seed=5", "did you mean 'train.seed'? (also data.seed"),
        ("batch=8", "did you mean 'train.batch_size'?"),
        ("train.lr=1e-3", "did you mean 'schedule.peak_lr'? (also schedule.min_lr"),
        ("learning_rate=1e-3", "did you mean 'schedule.peak_lr'?"),
        ("dropout=0.1", "valid keys: model, data, train"),
        ("trian.tokens=3", "did you mean 'train'?"),
        ("qqq=3", "valid keys: model, data, train"),
        ("train=3", "'train' is a section, not a value"),
        ("train.tokens=1.5", "'train.tokens' must be a whole number, not 1.5"),
        ("train.tokens=true", "'train.tokens' must be a whole number, not true"),
        ("train.tokens=many", "'train.tokens' must be a whole number, not 'many'"),
        ("train.continue_state=1", "'train.continue_state' must be true or false, not 1"),
        ("train.dtype=bf16", "'train.dtype' must be one of 'auto', 'bfloat16', 'float32', not 'bf16'"),
        ("schedule.peak_lr=nan", "'schedule.peak_lr' must be a finite number"),
        ("data.blend.x=much", "'data.blend.x' must be a finite number"),
        ("sample.prompts=[1]", "'sample.prompts[0]' must be a string, not 1"),
        ("train.tokens", "write section.key=value"),
        ("=3", "write section.key=value"),
        ("model.preset=tny", "unknown model preset 'tny'; did you mean 'tiny'?"),
        ("model.top_k=99", "model.top_k is 99, above model.n_experts 8"),
        ("model.pattern=MXE", "unknown symbol 'X' at position 1"),
        ("train.batch_size=7", "train.batch_size 7 is not a multiple of train.micro_batch_size 4"),
        ("schedule.stable_fraction=1.5", "schedule.stable_fraction is 1.5; it must be at most 1"),
        ("data.heldout_fraction=1", "data.heldout_fraction is 1.0; it must be below 1"),
        ("data.blend={a=-1}", "data.blend.a is -1.0"),
    ],
)
def test_a_wrong_override_is_named(override, message):
    assert message in error_of("tiny", override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nbatchsize = 3\n", "unknown key 'train.batchsize'; did you mean 'train.batch_size'?"),
        ("[train]\ntokens = 'x'\n", "'train.tokens' must be a whole number, not 'x'"),
        ("model = 3\n", "'model' is a section"),
        ("[train\n", "not valid TOML"),
        ('base = "phase3"\n', "base: unknown pretrain preset 'phase3'; did you mean 'phase"),
        ("base = 3\n", "'base' must be a string"),
        ("[model]\ntop_k = 99\n", "model.top_k is 99, above model.n_experts 8"),
        ("[data]\nseq_len = 1\n", "data.seq_len is 1; it must be at least 2"),
    ],
)
def test_an_error_in_a_file_names_the_file(text, message, tmp_path):
    path = write(tmp_path, "mine.toml", text)
    error = error_of(path)
    assert error.startswith(f"{path}: ")
    assert message in error


def test_a_wrong_type_in_a_parent_names_the_parent(tmp_path):
    parent = write(tmp_path, "parent.toml", "[train]\ntokens = 'x'\n")
    assert error_of(write(tmp_path, "child.toml", 'base = "parent.toml"\n')).startswith(f"{parent}: ")


def test_missing_and_unreadable_files_are_named(tmp_path):
    assert (
        error_of(f"{tmp_path}/none.toml") == f"{tmp_path}/none.toml: cannot read the preset: no such file or directory"
    )
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    assert "not UTF-8 text (byte 5)" in error_of(f"{tmp_path}/latin.toml")
    assert "(presets: phase1, phase2, tiny)" in error_of("nothing")


def test_tokens_that_the_steps_of_a_preset_would_hide_are_refused(tmp_path):
    idle = r"train\.tokens = 9000 would change nothing: train\.steps = 960 ends the run"
    with pytest.raises(UserError, match=rf"--set train\.tokens=9000: {idle}"):
        load_sft("tiny", ["train.tokens=9000"])
    (tmp_path / "mine.toml").write_text('base = "tiny"\n[train]\ntokens = 9000\n')
    with pytest.raises(UserError, match=rf"mine\.toml: {idle}"):
        load_sft(str(tmp_path / "mine.toml"))
    for steps in (0, 7):
        train = load_sft("tiny", [f"train.steps={steps}", "train.tokens=9000"]).train
        assert (train.steps, train.tokens) == (steps, 9000)
        train = load_sft(str(tmp_path / "mine.toml"), [f"train.steps={steps}"]).train  # which says so later
        assert (train.steps, train.tokens) == (steps, 9000)
    (tmp_path / "other.toml").write_text('base = "mine.toml"\n[train]\nsteps = 0\n')
    train = load_sft(str(tmp_path / "other.toml")).train
    assert (train.steps, train.tokens) == (0, 9000)
