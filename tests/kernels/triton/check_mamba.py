"""mamba_step in Triton against the float64 reference; run by test_interpreted.py."""

import pytest
import torch

from nano3 import kernels

pytestmark = pytest.mark.usefixtures("poisoned", "no_eager")
MOST = {torch.float32: 1e-6, torch.float16: 1e-3}
EPS = 1e-5


def case(slots, H, P, N, G, width, dtype, n_slots=6):
    """States, and the rest of a call's arguments; rows are parts of wider ones, as the input projection gives them."""
    B, C = len(slots), H * P + 2 * G * N
    projected = torch.randn(B, H * P + C + H + 3).to(dtype)
    z, xBC, dt = projected[:, : H * P], projected[:, H * P : H * P + C], projected[:, H * P + C : H * P + C + H]
    states = torch.randn(n_slots, C, width - 1).to(dtype), torch.randn(n_slots, H, P, N)
    heads = [torch.randn(H) for _ in range(3)]
    weights = torch.randn(C, width).to(dtype), torch.randn(C).to(dtype), *heads, torch.randn(H * P).to(dtype)
    dt[:, 0], dt[:, -1] = 30, -12  # softplus is the identity above 20, and small below
    return (xBC, dt, z), states, weights


def expected_step(inputs, states, slots, weights, G):
    """The reference on rows that are no padding: y, zero in padding, and new states; all in float64."""
    rows = [row for row, slot in enumerate(slots) if slot >= 0]
    wide = [state.double() for state in states]
    y = inputs[2].double() * 0
    y[rows] = kernels.mamba_step(
        *(x[rows].double() for x in inputs), *wide, torch.tensor([slots[row] for row in rows]),
        *(w.double() for w in weights), eps=EPS, n_groups=G, backend="reference",
    )  # fmt: skip
    return y, wide


@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize(
    ("slots", "sizes"),
    [
        ([3, -1, 0], (4, 5, 3, 2, 4)),
        pytest.param([5], (2, 64, 128, 1, 4), marks=pytest.mark.slow),
        pytest.param([-1, 2, -1, 1], (6, 33, 40, 3, 3), marks=pytest.mark.slow),
        pytest.param([1, 4], (8, 8, 16, 8, 2), marks=pytest.mark.slow),
    ],
)
def test_mamba_step(slots, sizes, dtype, assert_close):
    G = sizes[3]
    inputs, states, weights = case(slots, *sizes, dtype=dtype)
    inputs[0][[row for row, slot in enumerate(slots) if slot < 0]] = torch.nan  # whatever padding holds
    y, new = expected_step(inputs, states, slots, weights, G)
    got = kernels.mamba_step(*inputs, *states, torch.tensor(slots), *weights, eps=EPS, n_groups=G, backend="triton")
    assert got.dtype == dtype
    assert_close(got, y, MOST[dtype])
    assert torch.equal(states[0].double(), new[0]), "inputs are moved, not computed"
    assert_close(states[1], new[1], MOST[dtype])


def test_padding_alone_writes_nowhere_and_gives_zeros():
    inputs, states, weights = case([0, 0], 2, 4, 3, 1, 4, torch.float32)
    before = [state.clone() for state in states]
    slots = torch.tensor([-1, -1], dtype=torch.int32)
    got = kernels.mamba_step(*inputs, *states, slots, *weights, eps=EPS, n_groups=1, backend="triton")
    assert not got.any()
    assert all(torch.equal(*pair) for pair in zip(states, before, strict=True))


def test_slots_that_are_a_column_of_a_table():
    inputs, states, weights = case([2, 0], 2, 4, 3, 1, 4, torch.float32)
    y, new = expected_step(inputs, states, [2, 0], weights, 1)
    slots = torch.tensor([[2, 4], [0, 4]])[:, 0]
    got = kernels.mamba_step(*inputs, *states, slots, *weights, eps=EPS, n_groups=1, backend="triton")
    torch.testing.assert_close(got.double(), y, rtol=1e-5, atol=1e-5)
    assert torch.equal(states[0].double(), new[0])


def test_a_slot_that_is_not_there_gives_nan_and_writes_nowhere():
    inputs, states, weights = case([0, 0], 2, 4, 3, 1, 4, torch.float32)
    before = [state.clone() for state in states]
    got = kernels.mamba_step(*inputs, *states, torch.tensor([-1, 6]), *weights, eps=EPS, n_groups=1, backend="triton")
    assert got[1].isnan().all()
    assert not got[0].any()
    assert all(torch.equal(*pair) for pair in zip(states, before, strict=True))
