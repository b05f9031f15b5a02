"""Products of e4m3 numbers by torch._scaled_mm, which CPUs have too, give what the emulation in float32 gives."""

import pytest
import torch
from nano3.kernels import Scaled
from nano3.kernels.eager import FUNCTIONS, fp8
from torch.utils._python_dispatch import TorchDispatchMode

from nano3 import kernels

E4M3 = torch.float8_e4m3fn


def quantized(*shape, inputs=True, seed=0):
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    scale = w.abs().amax((-2, -1)) / 448
    data = (w / scale[..., None, None]).to(E4M3)
    return Scaled(data, scale, torch.tensor(0.0057) if inputs else None)


class Products(TorchDispatchMode):
    """Counts products of e4m3 numbers."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._scaled_mm.default
        return func(*args, **(kwargs or {}))


def emulated(op, *arguments):
    """In float32; then rounded as the activations are."""
    x, *rest = arguments
    return FUNCTIONS[op](x.float(), *rest).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_is_the_emulated_one(dtype):
    x, w = 2 * torch.randn(3, 2, 48, dtype=dtype), quantized(32, 48)
    x[0, 0, 0], x[1, 1, 3] = 40, -3e4  # beyond 448 * 0.0057
    got = fp8.product(x, w)
    assert got.dtype == dtype
    torch.testing.assert_close(got, emulated("linear", x, w), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    columns = x.flatten(0, 1).T.contiguous().T
    torch.testing.assert_close(fp8.product(columns, w), got.flatten(0, 1), rtol=0, atol=0)


def test_numbers_are_rounded_as_in_the_emulation():
    scale, x = torch.tensor(0.0057), 3 * torch.randn(5000).bfloat16()
    x[0] = torch.nan
    got, expected = fp8.rounded(x, scale).float(), kernels.quantize_e4m3(x.float(), scale)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


EXPERTS = quantized(4, 32, 16), quantized(4, 16, 32, seed=1)
CHOSEN = torch.tensor([[0, 3], [3, 1], [0, 1]]), torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
TAKEN = {
    "linear": (quantized(32, 16),),
    "squared_relu_mlp": (quantized(32, 16), quantized(16, 32, seed=1)),
    "grouped_mlp": (*EXPERTS, *CHOSEN),
}


@pytest.mark.parametrize("op", TAKEN)
def test_devices_with_such_units_multiply_so(op, monkeypatch):
    x = torch.randn(3, 16).bfloat16()
    expected = FUNCTIONS[op](x, *TAKEN[op])
    monkeypatch.setattr(fp8, "has_units", lambda _: True)
    with Products() as products, torch.no_grad():
        got = FUNCTIONS[op](x, *TAKEN[op])
    assert products.count == {"linear": 1, "squared_relu_mlp": 2, "grouped_mlp": 6}[op]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-2 * float(expected.abs().max()))


LEFT = {
    "float32": (torch.randn(3, 16), quantized(32, 16)),
    "a gradient": (torch.randn(3, 16).bfloat16().requires_grad_(), quantized(32, 16)),
    "activations as they are": (torch.randn(3, 16).bfloat16(), quantized(32, 16, inputs=False)),
    "no multiple of 16": (torch.randn(3, 16).bfloat16(), quantized(40, 16)),
    "nothing": (torch.randn(0, 16).bfloat16(), quantized(32, 16)),
}


@pytest.mark.parametrize("case", LEFT)
def test_the_emulation_stays_for(case, monkeypatch):
    monkeypatch.setattr(fp8, "has_units", lambda _: True)
    with Products() as products:
        kernels.linear(*LEFT[case], backend="eager")
    assert not products.count


def test_a_cpu_has_none():
    assert not fp8.has_units(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize(("outputs", "inputs"), [(10304, 2688), (1856, 2688), (2688, 1856)])
@pytest.mark.parametrize("rows", [1, 64, 2049])
def test_on_a_gpu(rows, outputs, inputs):
    """At the 30B model's sizes; where there are such units, as a CUDA graph too."""
    x, w = torch.randn(rows, inputs).bfloat16(), quantized(outputs, inputs)
    on_gpu = Scaled(*(t.cuda() for t in (w.data, w.scale, w.input_scale)))
    given = x.cuda()
    with Products() as products, torch.no_grad():
        got = kernels.linear(given, on_gpu)
    assert products.count == (torch.cuda.get_device_capability() >= fp8.OLDEST)
    expected = kernels.linear(x.double().cuda(), on_gpu, backend="reference")
    assert float((got.double() - expected).norm() / expected.norm()) < 1e-2
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        again = kernels.linear(given, on_gpu)
    graph.replay()
    assert torch.equal(again, got)
