"""The kernels that do nothing but read."""

import pytest
import torch
from nano3.kernels.cpu.memory.read import WIDTHS, readers
from nano3.kernels.cpu.native import native


@pytest.mark.parametrize("n", [0, 1, 7, 129, 1000, 4096])
def test_every_number_is_read_once_a_pass(n):
    data = torch.arange(n, dtype=torch.float32)
    for reader in readers():
        assert reader.read(data, passes=3) == 3 * float(data.sum())


def test_there_is_a_reader_wherever_there_are_kernels():
    assert bool(list(readers())) == (native().library is not None)
    assert {reader.level for reader in readers()} <= WIDTHS.keys()
    assert len({reader.name for reader in readers()}) == len(list(readers()))


def test_what_is_no_plain_memory_is_refused():
    for reader in readers():
        with pytest.raises(ValueError, match="contiguous float32"):
            reader.read(torch.zeros(4, 4).t()[1:])
        with pytest.raises(ValueError, match="contiguous float32"):
            reader.read(torch.zeros(4, dtype=torch.bfloat16))
