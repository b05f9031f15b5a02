"""4 bits that are chosen for what a matrix multiplies: closer products from the same form of folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nano3.kernels import Scaled, quantize_int4
from torch import Tensor

from nano3.config.errors import UserError
from nano3.model.hf.config import read_config
from nano3.model.hf.folder import load, save
from nano3.model.lm import LM
from nano3.quantize.gptq import gptq
from nano3.quantize.int_calibrated import calibrated_parts
from nano3.quantize.int_folder import quantize_folder
from nano3.quantize.int_formats import integer_model
from nano3.quantize.rows import CalibrationRows

SIZES = {"d_model": 64, "d_expert": 64, "d_shared": 64, "d_ff": 64, "mamba_n_heads": 8, "vocab_size": 96}
"""Rows that divide into groups of 32."""


def inputs(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Activations that hang together, of which column 5 is always 0."""
    mixed = torch.randn(count, 12, generator=generator) @ torch.randn(12, width, generator=generator)
    x = mixed + 0.1 * torch.randn(count, width, generator=generator)
    x[:, 5] = 0
    return x


def distance(weight: Scaled, matrix: Tensor, x: Tensor) -> float:
    return float((x @ (weight.dequantized() - matrix).T).square().mean())


@pytest.mark.parametrize(("count", "least"), [(400, 4.0), (20, 1.5)])
def test_products_with_other_activations_of_the_kind_are_closer(count, least):
    generator = torch.Generator().manual_seed(0)
    matrix, x = torch.randn(48, 96, generator=generator), inputs(count + 200, 96, generator)
    seen, other = x[:count], x[count:]
    assert distance(gptq(matrix, seen.T @ seen), matrix, other) * least < distance(quantize_int4(matrix), matrix, other)


def test_by_itself_a_group_is_closer_than_with_the_scale_of_its_largest_number():
    matrix = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    errors = [(w.dequantized() - matrix).square().mean() for w in (gptq(matrix), quantize_int4(matrix))]
    assert errors[0] < 0.9 * errors[1]


def test_what_4_bits_hold_stays_as_it_is():
    generator = torch.Generator().manual_seed(2)
    numbers = torch.randint(-7, 8, (6, 2, 32), generator=generator).float()
    numbers[..., 0] = 7.0  # the largest: -8 times a negative scale would hit it as well
    matrix = (numbers * torch.tensor([0.25, 2.0]).reshape(1, 2, 1)).flatten(1)
    matrix[3] = 0
    x = inputs(100, 64, generator)
    for moments in (None, x.T @ x):
        assert torch.equal(gptq(matrix, moments).dequantized(), matrix)


def test_how_large_the_activations_are_changes_nothing():
    generator = torch.Generator().manual_seed(3)
    matrix, x = torch.randn(16, 64, generator=generator), inputs(100, 64, generator)
    moments = x.T @ x
    assert torch.equal(gptq(matrix, moments).data, gptq(matrix, moments * 2.0**-30).data)


@pytest.fixture
def plain(small_config, tmp_path) -> Path:
    model = LM(replace(small_config, **SIZES)).init_weights(1).eval()
    save(model, tmp_path / "plain", dtype=torch.float32)
    return tmp_path / "plain"


def drawn(count: int, seed: int) -> CalibrationRows:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 60, (count,), generator=generator).tolist()
    return CalibrationRows([torch.randint(0, 96, (n,), generator=generator).tolist() for n in lengths])


def divergence(folder: Path, reference: Path, rows: CalibrationRows) -> float:
    """Mean KL divergence of a folder's next tokens from those of the reference, in nats."""
    total, first, second = 0.0, load(reference, torch.float32), load(folder, torch.float32)
    with torch.inference_mode():
        for row in rows.rows:
            p, q = (model(torch.from_numpy(row)[None])[0].log_softmax(-1) for model in (first, second))
            total += float((p.exp() * (p - q)).sum())
    return total / rows.tokens


def test_a_calibrated_folder_says_more_of_what_the_model_says(plain, tmp_path):
    quantize_folder(plain, tmp_path / "alone", 4)
    quantize_folder(plain, tmp_path / "calibrated", 4, drawn(200, 0))
    other = drawn(30, 1)
    alone, calibrated = (divergence(tmp_path / name, plain, other) for name in ("alone", "calibrated"))
    assert calibrated < 0.85 * alone, (calibrated, alone)
    names = [sorted(load(tmp_path / name).state_dict()) for name in ("alone", "calibrated")]
    assert names[0] == names[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "calibrated", "plain"]


def test_what_a_killed_run_leaves_is_what_the_next_one_removes(plain, tmp_path):
    quantized = integer_model(read_config(plain), 4)
    parts = calibrated_parts(plain, quantized, torch.float32, drawn(3, 0), tmp_path / "calibrated")
    next(parts)
    (left,) = {path for path in tmp_path.iterdir() if path.name != "plain"}
    kept = tmp_path / "kept"
    left.rename(kept)  # as a killed run leaves it: whole, and no process's
    del parts
    kept.rename(left)
    quantize_folder(plain, tmp_path / "calibrated", 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibrated", "plain"]


def test_experts_that_no_token_reached_are_rounded_by_themselves(plain, tmp_path):
    quantize_folder(plain, tmp_path / "calibrated", 4, CalibrationRows([[3]]))
    assert load(tmp_path / "calibrated").cfg.quantization is not None


def test_rows_that_do_not_fit_end_it_and_leave_nothing(plain, tmp_path):
    with pytest.raises(UserError, match="a calibration row has token 96; the model has 96"):
        quantize_folder(plain, tmp_path / "calibrated", 4, CalibrationRows([[96]]))
    with pytest.raises(ValueError, match="only 4 bits"):
        quantize_folder(plain, tmp_path / "calibrated", 8, CalibrationRows([[3]]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]
