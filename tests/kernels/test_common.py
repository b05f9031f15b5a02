import pytest
import torch
from nano3.kernels.common import accumulator, matmul_dtype, row_blocks, segments


def test_segments_number_documents_even_when_an_id_comes_back():
    ids = torch.tensor([[5, 5, 2, 5, 5], [1, 1, 1, 1, 1]])
    assert segments(ids).tolist() == [[0, 0, 1, 2, 2], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_row_blocks_cover_every_row_once(rows):
    blocks = list(row_blocks(rows, 4096, torch.device("cpu")))
    assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(rows))
    assert len(blocks) == -(-rows // 256)


def test_types_are_never_narrowed_for_sums():
    assert accumulator(torch.bfloat16) == accumulator(torch.float32) == torch.float32
    assert accumulator(torch.float64) == torch.float64
    assert matmul_dtype(torch.float64, torch.device("cpu")) == torch.float64
    assert matmul_dtype(torch.bfloat16, torch.device("cuda")) == torch.bfloat16
