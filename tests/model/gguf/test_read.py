"""GGUF files in: what was written comes back, and a file that cannot be read is refused in one line."""

from __future__ import annotations

import dataclasses
import struct
from contextlib import suppress

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nano3
from nano3.config.errors import UserError
from nano3.config.presets import load_model
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.model.find import local_model, model_folder
from nano3.model.gguf.splits import SPLITS
from nano3.model.gguf.write import write_gguf
from nano3.model.hf.folder import named_tensors
from nano3.model.lm import LM
from nano3.splits import LLAMA_CPP_SPLIT
from nano3.stages.exporting.gguf import main, vocabulary_of

pytestmark = pytest.mark.any_isa

CFG = dataclasses.replace(load_model("tiny"), pattern="ME*", vocab_size=320, d_model=64, d_shared=64, n_experts=4)
TEXT = "def main(argv):\n    return 0\n\nIt doesn't count to 1234567890 in café, naïve.\n" * 4


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small"
    model = LM(CFG).init_weights(2)
    model.stage = "pretrain"
    nano3.save(model.to_dtype(torch.bfloat16), path)
    Tokenizer.train([TEXT], 300, LLAMA_CPP_SPLIT).save(path)
    return path


@pytest.fixture(scope="module")
def file(folder):
    main(str(folder), folder.parent / "small.gguf", "bf16")
    return folder.parent / "small.gguf"


def test_bf16_weights_come_back_as_they_were(folder, file):
    before, after = nano3.load(folder), nano3.load(file)
    found = dict(named_tensors(after))
    for name, tensor in named_tensors(before):
        exact = {"rtol": 1e-6, "atol": 1e-6} if name.endswith("A_log") else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(found[name], tensor, **exact, msg=name)
    steers_training = {"init_std": CFG.init_std, "chunk_size": CFG.chunk_size}
    assert dataclasses.replace(after.cfg, **steers_training) == before.cfg
    assert after.stage == "pretrain"


def test_the_tokenizer_comes_back_with_its_template(folder, file):
    before, after = Tokenizer.load(folder), Tokenizer.load(model_folder(file))
    assert after.inner.to_str() == before.inner.to_str()
    assert after.chat_template == before.chat_template
    ids = lambda t: (t.bos_id, t.eos_id, t.pad_id, t.config["add_bos_token"])  # noqa: E731
    assert ids(after) == ids(before)


def test_every_verbs_way_in_takes_the_file(file):
    assert local_model(file) == str(model_folder(file))
    assert model_folder(file).name == "small"


def test_a_file_that_was_written_anew_is_read_anew(folder, tmp_path):
    main(str(folder), tmp_path / "m.gguf", "q4_0")
    first = nano3.load(tmp_path / "m.gguf").lm_head.weight.clone()
    changed = nano3.load(folder)
    with torch.no_grad():
        changed.lm_head.weight.mul_(2)
    write_gguf(changed, tmp_path / "m.gguf", "bf16", vocabulary_of(Tokenizer.load(folder)))
    assert not torch.equal(nano3.load(tmp_path / "m.gguf").lm_head.weight, first)


@pytest.mark.parametrize(("kind", "error"), [("q8_0", 0.01), ("q5_0", 0.08), ("q4_0", 0.16)])
def test_blocks_are_near_the_weights(folder, tmp_path, kind, error):
    written = main(str(folder), tmp_path / "m.gguf", kind)
    before, after = nano3.load(folder, torch.float32), nano3.load(tmp_path / "m.gguf", torch.float32)
    near = lambda a, b, most: (a - b).norm() < most * b.norm()  # noqa: E731
    up = lambda model: model.blocks[1].mixer.experts.up_proj  # noqa: E731
    assert near(up(after), up(before), error)
    assert near(after.lm_head.weight, before.lm_head.weight, 0.01)  # 8 bits in every file
    assert torch.equal(after.blocks[1].mixer.gate.weight, before.blocks[1].mixer.gate.weight)
    assert written.kept == []


def test_rows_that_are_no_whole_blocks_stay_bf16(tmp_path):
    model = LM(dataclasses.replace(CFG, d_expert=48)).init_weights(0)
    assert write_gguf(model, tmp_path / "m.gguf", "q8_0").kept == ["blk.1.ffn_down_exps.weight"]
    back = nano3.load(tmp_path / "m.gguf", torch.float32).blocks[1].mixer.experts.down_proj
    assert torch.equal(back, model.blocks[1].mixer.experts.down_proj.bfloat16().float())


def test_quantized_weights_are_written_as_the_numbers_they_stand_for(folder, tmp_path):
    from nano3.kernels import Scaled

    model = nano3.load(folder, torch.float32)
    projection = model.blocks[0].mixer.out_proj
    scaled = Scaled((projection.weight.detach() * 100).to(torch.float8_e4m3fn), torch.tensor(0.01), None)
    projection.use_scaled(scaled)
    write_gguf(model, tmp_path / "m.gguf", "f32")
    back = nano3.load(tmp_path / "m.gguf", torch.float32).blocks[0].mixer.out_proj.weight
    torch.testing.assert_close(back, scaled.dequantized(), rtol=0, atol=0)


@pytest.mark.parametrize("keep", [0, 3, 30, 300, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(file, tmp_path, keep):
    data = file.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"cut\.gguf: .*copy the file again"):
        nano3.load(tmp_path / "cut.gguf")


@given(at=st.integers(0, 4000), value=st.integers(0, 255))
def test_a_damaged_beginning_is_read_or_refused(file, tmp_path_factory, at, value):
    data = bytearray(file.read_bytes())
    data[at] = value
    damaged = tmp_path_factory.mktemp("damaged") / "m.gguf"
    damaged.write_bytes(data)
    with suppress(UserError):
        nano3.load(damaged)


def _written(path, architecture="nemotron_h", **fields):
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        writer.add_uint32(key.replace("__", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_other_architectures_and_parts_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is a model of 'llama'; nano3 reads nemotron_h and nemotron_h_moe"):
        nano3.load(_written(tmp_path / "a.gguf", "llama"))
    with pytest.raises(UserError, match=r"one of 3 parts"):
        nano3.load(_written(tmp_path / "b.gguf", split__count=3))
    with pytest.raises(UserError, match=r"moe_latent_size is 8, which nano3 does not support"):
        nano3.load(_written(tmp_path / "c.gguf", nemotron_h__moe_latent_size=8))


def test_tensors_of_unknown_types_are_refused(file, tmp_path):
    data = bytearray(file.read_bytes())
    name = b"blk.0.ssm_in.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8
    assert struct.unpack_from("<I", data, at) == (30,)
    for code, shown in ((250, "type 250"), (24, "type I8")):
        struct.pack_into("<I", data, at, code)
        (tmp_path / f"{code}.gguf").write_bytes(data)
        with pytest.raises(UserError, match=rf"{name.decode()} is of {shown}, which nano3 cannot read"):
            nano3.load(tmp_path / f"{code}.gguf")


def test_a_split_that_llama_cpp_does_not_have_is_refused(folder, tmp_path):
    Tokenizer.train([TEXT], 300).save(tmp_path / "other")
    vocabulary = vocabulary_of(Tokenizer.load(tmp_path / "other"))
    with pytest.raises(UserError, match=r"cannot cut text into words .* data\.tokenizer=train:qwen2"):
        write_gguf(nano3.load(folder), tmp_path / "m.gguf", "bf16", vocabulary)
    assert list(tmp_path.glob("*.gguf")) == []
    assert list(tmp_path.glob(".*")) == []


def test_mistrals_split_is_known(mistral):
    assert vocabulary_of(mistral).settings["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] in {
        pattern for split in SPLITS if split.pre == "tekken" for pattern in split.patterns
    }


@pytest.fixture(scope="session")
def mistral():
    return Tokenizer.load("mistral")


@pytest.mark.parametrize("kind", ["q4_k_m", "iq4_xs", "q6_K"])
def test_blocks_of_256_are_refused_with_the_reason(folder, tmp_path, kind):
    with pytest.raises(UserError, match=r"no whole number of them fits rows of 2688, 1856 or 3712"):
        main(str(folder), tmp_path / "m.gguf", kind)


def test_a_file_that_is_no_gguf_is_not_replaced(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt: is no GGUF file, and would be lost"):
        main(str(folder), tmp_path / "notes.txt", "bf16")
    assert (tmp_path / "notes.txt").read_text() == "mine"
