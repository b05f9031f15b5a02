import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nano3.config.errors import UserError
from nano3.config.presets import load_model
from nano3.engine.sizing import bytes_of_page, fit
from nano3.memory import container_free
from nano3.model.state.pool import StatePool, page_bytes, slot_bytes

pytestmark = pytest.mark.any_isa

CFG = load_model("tiny")
REPORT = load_model("nano3-30b-a3b")


def sizes(memory, cfg=CFG, dtype=torch.float32, **more):
    options = {"max_sequences": 16, "max_context": 4096, "page_size": 64, "snapshot_every": 256, **more}
    return fit(cfg, dtype, memory, **options)


def test_bytes_are_those_of_the_tensors():
    pool = StatePool(CFG, n_slots=3, n_pages=5, page_size=64)
    tensors = [t for b in pool.blocks if b for t in vars(b).values() if isinstance(t, torch.Tensor)]
    expected = 3 * slot_bytes(CFG, torch.float32) + 5 * page_bytes(CFG, 64, torch.float32)
    assert sum(t.nbytes for t in tensors) == expected


def test_keys_and_values_may_have_a_type_of_their_own():
    pool = StatePool(CFG, n_slots=3, n_pages=5, page_size=64, kv_dtype=torch.bfloat16)
    tensors = [t for b in pool.blocks if b for t in vars(b).values() if isinstance(t, torch.Tensor)]
    expected = 3 * slot_bytes(CFG, torch.float32) + 5 * page_bytes(CFG, 64, torch.bfloat16)
    assert sum(t.nbytes for t in tensors) == expected
    memory = 3 * slot_bytes(CFG, torch.float32) + 100 * page_bytes(CFG, 64, torch.bfloat16)
    narrow, wide = (sizes(memory, max_sequences=1, max_context=1 << 20, kv_dtype=t) for t in (torch.bfloat16, None))
    assert narrow.max_context > 1.9 * wide.max_context
    with pytest.raises(ValueError, match="pages of float8_e5m2 need scales"):
        StatePool(CFG, 1, 1, 64, kv_dtype=torch.float8_e5m2)


def test_state_of_the_report_model_is_48_mib_a_sequence_and_6_kib_a_token():
    assert 46 << 20 < slot_bytes(REPORT, torch.bfloat16) < 49 << 20
    assert page_bytes(REPORT, 64, torch.bfloat16) == 64 * 6 * 1024


@given(st.integers(700_000, 1 << 31), st.integers(1, 300), st.integers(1, 1 << 20))
def test_never_more_than_the_budget_and_always_one_whole_context(memory, max_sequences, max_context):
    got = sizes(memory, max_sequences=max_sequences, max_context=max_context)
    assert got.total_bytes <= memory
    assert 1 <= got.max_sequences <= min(max_sequences, got.n_slots)
    assert got.max_context <= got.n_pages * 64
    assert (got.max_context < max_context) == any("context lowered" in note for note in got.notes)
    assert (got.max_sequences < max_sequences) == any("sequences at once" in note for note in got.notes)


@pytest.mark.parametrize(("pattern", "n_experts"), [("M*EEEEE", 8), ("*E", 300), ("MEE", 8)])
@pytest.mark.parametrize("memory", [1 << 20, 3 << 20, 64 << 20])
def test_the_experts_of_all_tokens_fit_beside_the_pages(pattern, n_experts, memory):
    cfg = dataclasses.replace(CFG, pattern=pattern, n_experts=n_experts)
    got = sizes(memory, cfg, max_context=1 << 20)
    pages = got.n_pages * page_bytes(cfg, 64, torch.float32)
    experts = got.n_pages * 64 * pattern.count("E") * cfg.top_k * (2 if n_experts > 256 else 1)
    assert got.n_slots * slot_bytes(cfg, torch.float32) + pages + experts == got.total_bytes <= memory


def test_enough_memory_gives_what_was_asked_without_a_word():
    got = sizes(4 << 30)
    assert (got.max_sequences, got.max_context, got.notes) == (16, 4096, ())


def test_too_little_names_the_least():
    with pytest.raises(UserError, match=r"memory of 1000 B has no room for one sequence: it takes .* (M|K)iB"):
        sizes(1000)


@pytest.mark.parametrize("pattern", ["MEM", "*E*"])
def test_models_without_one_of_the_mixers(pattern):
    got = sizes(64 << 20, dataclasses.replace(CFG, pattern=pattern))
    assert got.max_sequences == 16
    assert got.n_pages * 64 >= 4096


def test_a_container_leaves_what_is_below_its_limit_and_files_do_not_count(tmp_path):
    assert container_free(tmp_path) > 1 << 60
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 600\nactive_file 60\ninactive_file 40\n")
    assert container_free(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert container_free(tmp_path) > 1 << 60


@given(st.integers(1, 64), st.integers(1, 1 << 16))
def test_without_kept_states_so_many_whole_sequences_fit_as_their_bytes_say(n, tokens):
    each = slot_bytes(CFG, torch.float32) + -(-tokens // 64) * bytes_of_page(CFG, 64, torch.float32)
    got = sizes(n * each, max_sequences=n, max_context=tokens, kept=False)
    assert (got.max_sequences, got.max_context, got.n_slots, got.notes) == (n, tokens, n, ())
    assert got.n_pages == n * -(-tokens // 64)
    assert got.total_bytes == n * each
