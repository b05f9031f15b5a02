"""mamba_step in Triton on a GPU, in bfloat16 at the 30B model's shapes."""

import pytest
import torch

from nano3 import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned", "no_eager")]
H, P, N, G = 64, 64, 128, 8
C = H * P + 2 * G * N


@pytest.mark.parametrize("sequences", [1, 3, 64])
def test_mamba_step(sequences, assert_close):
    B = sequences + 1
    projected = torch.randn(B, H * P + C + H).bfloat16()
    z, xBC, dt = projected[:, : H * P], projected[:, H * P : H * P + C], projected[:, H * P + C :]
    states = torch.randn(B, C, 3).bfloat16(), torch.randn(B, H, P, N)
    weights = torch.randn(C, 4).bfloat16(), torch.randn(C).bfloat16(), *torch.randn(3, H), torch.randn(H * P)
    slots = torch.randperm(B)[:sequences]
    wide = [state.double() for state in states]
    on_gpu = [state.cuda() for state in states]
    inputs, padded = [t.cuda() for t in (xBC, dt, z)], torch.cat([slots, torch.tensor([-1])]).cuda()
    got = kernels.mamba_step(
        *inputs, *on_gpu, padded, *(w.cuda() for w in weights), eps=1e-5, n_groups=G, backend="triton"
    )
    rows = [t[:sequences].double() for t in (xBC, dt, z)]
    expected = kernels.mamba_step(
        *rows, *wide, slots, *(w.double() for w in weights), eps=1e-5, n_groups=G, backend="reference"
    )
    assert_close(got[:sequences], expected, 1e-2)
    assert not got[sequences:].any()
    for state, new in zip(on_gpu, wide, strict=True):
        assert_close(state, new, 1e-2)
