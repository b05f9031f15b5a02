"""Lengths of the mixture, checked."""

import pytest

from nano3.config.errors import UserError
from nano3.config.extend_context import ExtendContextConfig
from nano3.config.presets import load_extend_context, to_toml
from nano3.config.schema import DataConfig


def load(*settings):
    return load_extend_context("tiny", settings)


def test_lengths_can_be_set_and_the_longest_counts_the_batch_and_is_advertised():
    cfg = load("context.lengths={512=1, 16384=3}")
    assert cfg.lengths == {16384: 3.0, 512: 1.0}
    assert cfg.data.seq_len == 16384
    assert cfg.model.max_position_embeddings == 16384
    assert load("context.lengths={512=1}").model.max_position_embeddings == 8192


def test_a_length_without_a_share_is_not_used():
    assert load("context.lengths={512=1, 4096=0}").lengths == {512: 1.0}


def test_held_out_text_is_scored_at_every_length_and_at_its_own_first():
    assert load().heldout_lengths == [512, 4096]
    assert load("heldout.seq_len=2048").heldout_lengths == [2048, 512, 4096]
    assert load("heldout.seq_len=4096").heldout_lengths == [4096, 512]


def test_texts_are_made_for_the_lengths_of_the_mixture():
    assert load("context.lengths={1024=1, 64=1}").prepared_data.generate.lengths == {"1024": 1.0}
    assert load("data.generate.lengths={700=1}").prepared_data.generate.lengths == {"700": 1.0}


def test_another_mixture_over_a_runs_own_settings_takes_all_with_it(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(to_toml(load("context.lengths={512=1, 16384=3}")))
    cfg = load_extend_context(str(path), ["context.lengths={2048=1}"])
    assert cfg.data.seq_len == 2048
    assert cfg.prepared_data.generate.lengths == {"2048": 1.0}


def test_a_sequence_length_beside_the_mixture_must_be_its_longest(tmp_path):
    path = tmp_path / "mine.toml"
    base = 'base = "extend-context/long-context"\n'
    path.write_text(base + "[context.lengths]\n65536 = 1.0\n")
    assert load_extend_context(str(path)).data.seq_len == 65536
    path.write_text(base + "[data]\nseq_len = 524288\n")
    assert load_extend_context(str(path)).data.seq_len == 524288
    path.write_text(base + "[data]\nseq_len = 4096\n")
    with pytest.raises(UserError, match=r"mine.toml: data.seq_len is 4096, but the longest .* is 524288: leave"):
        load_extend_context(str(path))
    with pytest.raises(ValueError, match=r"data.seq_len is 1024, but the longest of context.lengths is 4096"):
        ExtendContextConfig(data=DataConfig(seq_len=1024))


def test_a_resolved_configuration_loads_back_equal(tmp_path):
    cfg = load("context.lengths={512=1, 16384=3}")
    path = tmp_path / "config.toml"
    path.write_text(to_toml(cfg))
    assert load_extend_context(str(path)) == cfg


def test_pieces_are_no_shorter_than_a_chunk_of_the_scan():
    with pytest.raises(UserError, match=r"sequence_chunk is 63; it must be 0 or at least model.chunk_size, 64"):
        load("train.checkpoint_activations=block", "train.sequence_chunk=63")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("context.lengths={long=1}", "'long' is no sequence length: give whole numbers"),
        ("context.lengths={1=1}", "'1' is no sequence length"),
        ("context.lengths={-512=1}", "'-512' is no sequence length"),
        ("context.lengths={512=-1}", "context.lengths.512 is -1.0; a share must be at least 0"),
        ("context.lengths={512=0}", "gives no length a share above 0"),
        ("context.lengths={}", "gives no length a share above 0"),
        ("context.lengths={512=1, 0512=1}", "names a length twice"),
        ("context.lengths={4096=1, 3000=1}", "no whole number of rows of 3000 fills a batch of 8192 tokens"),
        ("context.lengths=512", "must be a table"),
        ("context.length={512=1}", "did you mean 'context.lengths'?"),
        ("train.sequence_chunk=64", 'needs train.checkpoint_activations = "block"'),
        ("data.seq_len=1024", "data.seq_len is 1024, but the longest of context.lengths is 4096: leave"),
        ("train.sequence_chunk=-1", "train.sequence_chunk is -1; it must be at least 0"),
    ],
)
def test_a_wrong_setting_is_named(setting, message):
    with pytest.raises(UserError) as caught:
        load(setting)
    assert message in str(caught.value)
