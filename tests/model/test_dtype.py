import copy

import pytest
import torch
from nano3.kernels import choose

from nano3.model import dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "name", "stored", "expected"),
    [
        ({"amx_bf16"}, "auto", torch.float32, (torch.bfloat16, torch.bfloat16)),
        ({"amx_bf16"}, "float32", torch.bfloat16, (torch.float32, torch.float32)),
        (set(), "auto", torch.float32, (torch.float32, torch.float32)),
        (set(), "float32", torch.bfloat16, (torch.float32, torch.float32)),
    ],
)
def test_types_by_processor(monkeypatch, flags, name, stored, expected):
    monkeypatch.setattr(dtype, "cpu_flags", lambda: flags)
    assert dtype.inference_dtypes(name, CPU, stored) == expected


@pytest.mark.parametrize("name", ["auto", "bfloat16"])
def test_a_cpu_without_fast_bfloat16_computes_in_float32_and_keeps_narrow_weights_for_the_kernels(monkeypatch, name):
    monkeypatch.setattr(dtype, "cpu_flags", set)
    narrow = torch.bfloat16 if choose("linear", CPU)[0] == "cpu" else torch.float32
    assert dtype.inference_dtypes(name, CPU, torch.bfloat16) == (narrow, torch.float32)


def test_narrow_weights_under_wide_activations(small_model):
    tokens = torch.randint(0, 60, (2, 90))
    narrow = copy.deepcopy(small_model).to_dtype(torch.bfloat16, torch.float32)
    with torch.inference_mode():
        expected = copy.deepcopy(narrow).to_dtype(torch.float32)(tokens)
        assert narrow(tokens).dtype == torch.float32
        torch.testing.assert_close(narrow(tokens), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(narrow(tokens[:, :1]), expected[:, :1], rtol=1e-4, atol=1e-4)
