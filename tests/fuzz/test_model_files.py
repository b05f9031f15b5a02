"""The JSON files and weights of a Hugging Face folder: it is loaded, or an error names the file or folder."""

from __future__ import annotations

import json
import os
import shutil
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.chat.encoder import ChatEncoder
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.launch import small_tokenizer
from nano3.model.find import model_folder
from nano3.model.hf.folder import load, read_config, save, stored_dtype, weight_bytes
from nano3.model.lm import LM
from nano3.model.load import load_model
from nano3.model.lora.apply import LoraConfig, apply_lora
from nano3.model.lora.folder import save_adapter
from tests.fuzz.inputs import damaged, files, fuzz, works_or_tells

pytestmark = pytest.mark.slow
QUANTIZATION = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_config):
    path = tmp_path_factory.mktemp("model") / "hf"
    save(LM(small_config).init_weights(0), path)
    small_tokenizer(600).save(path)
    names = [name for name in _header(path / "model.safetensors") if name != "__metadata__"]
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (path.parent / "index.json").write_text(json.dumps(index))
    return path


@pytest.fixture
def copy(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("copy") / "hf"
    shutil.copytree(folder, path)
    return path


def _header(file):
    data = file.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def _read(path):
    read_config(path)
    stored_dtype(path)
    load(path)


@fuzz(40)
@given(data=st.data())
def test_config(copy, folder, data):
    keys = json.loads((folder / "config.json").read_text())
    keys["quantization_config"] = data.draw(st.sampled_from([None, QUANTIZATION["quantization"]]))
    if keys["quantization_config"] is None:
        del keys["quantization_config"]
    (copy / "config.json").write_bytes(data.draw(files(keys)))
    with works_or_tells("config.json", str(copy)):
        read_config(copy)
        weight_bytes(copy, stored_dtype(copy))


@fuzz()
@given(data=files(QUANTIZATION))
def test_quantization(copy, data):
    (copy / "hf_quant_config.json").write_bytes(data)
    with works_or_tells("hf_quant_config.json", str(copy)):
        _read(copy)


@fuzz()
@given(data=st.data())
def test_index(copy, folder, data):
    index = json.loads((folder.parent / "index.json").read_text())
    (copy / "model.safetensors").rename(copy / "model-1.safetensors") if (copy / "model.safetensors").exists() else None
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-1.safetensors")
    (copy / "model.safetensors.index.json").write_bytes(data.draw(files(index)))
    with works_or_tells("model.safetensors.index.json", str(copy)):
        _read(copy)


@fuzz()
@given(data=st.data())
def test_weights(copy, folder, data):
    whole = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = data.draw(files(json.loads(whole[8 : 8 + size])) | damaged(whole[8 : 8 + size]))
    length = data.draw(st.sampled_from([len(header), len(header), len(header), 0, 2**63, len(header) + 1]))
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", length) + header + whole[8 + size :])
    with works_or_tells("header of model.safetensors", str(copy)):
        _read(copy)


@fuzz()
@given(data=st.data())
def test_adapter(copy, small_config, tmp_path_factory, data):
    path = copy.parent / "adapter"
    if not path.exists():
        model = LM(small_config).init_weights(0)
        apply_lora(model, LoraConfig(rank=2, alpha=4.0))
        save_adapter(model, path, str(copy))
        shutil.copy(path / "adapter_config.json", path.parent / "right.json")
    (path / "adapter_config.json").write_bytes(data.draw(files(json.loads((path.parent / "right.json").read_text()))))
    with works_or_tells("adapter_config.json"):
        load_model(path)


MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


@fuzz()
@given(data=st.data())
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizer(copy, folder, name, data):
    right = json.loads((folder / name).read_text())
    (copy / name).write_bytes(data.draw(files(right)))
    with works_or_tells(name):
        tokenizer = Tokenizer.load(copy)
        assert isinstance(tokenizer.decode(tokenizer.encode("a text \ud55c")), str)
        ChatEncoder(tokenizer).encode(MESSAGES)
        tokenizer.vocab_size, tokenizer.fingerprint()


TEMPLATES = [
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{{ messages[5].x.y }}",
    "{% if %}",
    "{{ 1 / 0 }}",
    "{{ x() }}",
    "{{ messages | tojson(indent='a') }}",
    "{% include 'a' %}",
    "{{ [] + 1 }}",
    "{{ raise_exception(1) }}",
    "{{ '%d' % 'a' }}",
    "{{ messages[0].__class__.__mro__ }}",
    "{{ ' ' * 3 }}{% break %}",
    "{{ {}[[]] }}",
    "{% for a in 5 %}{% endfor %}",
    "{{ range(10 ** 12) | list }}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{{ strftime_now(5) }}",
    "\0{{ '\0' }}",
    "{{ messages | sort }}",
    "{{ undefined_name.attribute }}",
    "{{ messages | map('x') | list }}",
    "{% set a = namespace(1) %}",
]


@fuzz(60)
@given(data=st.sampled_from(TEMPLATES).flatmap(lambda text: st.just(text.encode()) | damaged(text.encode())))
def test_template(copy, data):
    (copy / "chat_template.jinja").write_bytes(data)
    with works_or_tells("chat_template.jinja"):
        ChatEncoder(Tokenizer.load(copy)).encode(MESSAGES)


NAMES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["folder", "loop", "pointer", "nowhere", "empty"])
def test_what_is_no_file(copy, name, kind):
    file = copy / name
    file.unlink(missing_ok=True)
    if kind == "folder":
        file.mkdir()
    elif kind == "loop":
        os.symlink(file, file)
    elif kind == "nowhere":
        os.symlink(copy / "nothing", file)
    else:
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n" if kind == "pointer" else b"")
    with works_or_tells("what is no file"):
        _read(model_folder(copy))
    with works_or_tells("what is no file"):
        ChatEncoder(Tokenizer.load(copy))
