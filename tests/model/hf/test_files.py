from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nano3.config.errors import UserError
from nano3.model.hf.files import locate, open_weights

pytestmark = pytest.mark.any_isa

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "a Git LFS pointer, not the weights: git lfs pull in"),
        (b"", "cannot be read .*; copy the file again"),
        (b"\xff" * 100, "cannot be read .*; copy the file again"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, content, words):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    for read in (lambda: open_weights(file), lambda: locate(tmp_path)):
        with pytest.raises(UserError, match=f"^{file}: {words}"):
            read()


def test_a_file_that_is_gone_or_forbidden_is_told_so(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"gone: cannot be read \(No such file or directory\)"):
        open_weights(tmp_path / "gone")
    save_file({"a": torch.zeros(1)}, tmp_path / "m")

    def refuse(self, *args, **kwargs):  # as for a user who may not; tests may run as root, who may
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="m: may not be read; change its permissions"):
        open_weights(tmp_path / "m")


@pytest.mark.parametrize("file", ["../other/model.safetensors", "/etc/passwd", 5, None, "a/../../b"])
def test_an_index_that_leaves_the_folder_is_refused(tmp_path, file):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": file}}))
    with pytest.raises(UserError, match=r"index\.json: weight_map has .* for a\.weight: it must be a file's name"):
        locate(tmp_path)


def test_an_index_with_a_byte_order_mark_is_read(tmp_path):
    text = json.dumps({"weight_map": {"a": "one.safetensors"}})
    (tmp_path / "model.safetensors.index.json").write_text("\ufeff" + text, encoding="utf-8")
    assert locate(tmp_path) == {"a": "one.safetensors"}
