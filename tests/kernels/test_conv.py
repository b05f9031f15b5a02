import pytest
import torch

from nano3 import kernels

BACKENDS = [None, "eager", "reference"]
"""None: the one that runs float32 on this machine."""


def make(B=2, T=19, C=6, W=4, dtype=torch.float64, state=True):
    inputs = {
        "x": torch.randn(B, T, C, dtype=dtype),
        "weight": torch.randn(C, W).to(dtype),
        "bias": torch.randn(C).to(dtype),
    }
    if state:
        inputs["initial_state"] = torch.randn(B, C, W - 1, dtype=dtype)
    return inputs


@pytest.mark.parametrize("shape", [{}, {"T": 1}, {"T": 2}, {"T": 3}, {"W": 2}, {"W": 1}, {"B": 1, "C": 1}])
@pytest.mark.parametrize("state", [True, False])
def test_eager_equals_reference(check, shape, state):
    check(kernels.causal_conv1d, make(**shape, state=state))


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("row", [[0] * 9 + [1, 2, 3] + [4] * 7, [0] * 18 + [1], [7, 7, 5, 7] + [7] * 15])
def test_documents_do_not_mix(check, state, row):
    check(kernels.causal_conv1d, make(state=state), document_ids=torch.tensor([row, [0] * 19]))


def test_many_blocks_of_time(check):
    ids = torch.randint(0, 2, (1, 700)).cumsum(1)
    check(kernels.causal_conv1d, make(B=1, T=700, C=512), document_ids=ids)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_torch_convolution(backend):
    inputs = make(state=False, dtype=torch.float32)
    y, state = kernels.causal_conv1d(**inputs, backend=backend)
    expected = torch.nn.functional.conv1d(
        inputs["x"].transpose(1, 2), inputs["weight"].unsqueeze(1), inputs["bias"], padding=3, groups=6
    )[..., :19]
    torch.testing.assert_close(y.transpose(1, 2), torch.nn.functional.silu(expected))
    torch.testing.assert_close(state, inputs["x"][:, -3:].transpose(1, 2))


def test_bf16_activations_with_fp32_parameters(check):
    inputs = make(dtype=torch.float32)
    inputs["x"], inputs["initial_state"] = inputs["x"].bfloat16(), inputs["initial_state"].bfloat16()
    check(kernels.causal_conv1d, inputs, tolerance=1e-2)
    assert kernels.causal_conv1d(**inputs)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cut", [1, 2, 11])
def test_two_halves_equal_the_whole(cut, backend):
    inputs = make(dtype=torch.float32)
    y, final = kernels.causal_conv1d(**inputs, backend=backend)
    first, state = kernels.causal_conv1d(**{**inputs, "x": inputs["x"][:, :cut]}, backend=backend)
    rest = {**inputs, "x": inputs["x"][:, cut:], "initial_state": state}
    second, last = kernels.causal_conv1d(**rest, backend=backend)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(last, final)


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_equal_the_convolution(backend):
    inputs = make(dtype=torch.float32)
    y, final = kernels.causal_conv1d(**inputs, backend=backend)
    state = inputs["initial_state"].clone()
    for t in range(19):
        out = kernels.causal_conv1d_step(inputs["x"][:, t], state, inputs["weight"], inputs["bias"], backend=backend)
        torch.testing.assert_close(out, y[:, t])
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("backend", BACKENDS)
def test_final_state_forgets_earlier_documents(backend):
    inputs = make(B=1, T=5, dtype=torch.float32)
    ids = torch.tensor([[0, 0, 0, 0, 1]])
    _, state = kernels.causal_conv1d(**inputs, document_ids=ids, backend=backend)
    assert not state[..., :2].any()
    torch.testing.assert_close(state[..., 2], inputs["x"][:, -1])


def test_gradcheck():
    inputs = make(B=1, T=4, C=2)
    ids = torch.tensor([[0, 0, 1, 1]])

    def conv(*values):
        named = dict(zip(inputs, values, strict=True))
        return kernels.causal_conv1d(**named, document_ids=ids, backend="eager")

    assert torch.autograd.gradcheck(conv, [v.requires_grad_() for v in inputs.values()])
