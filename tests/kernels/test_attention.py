import pytest
import torch

from nano3 import kernels
from tests.kernels.conftest import assert_same, outputs_and_grads


@pytest.fixture(params=["eager", None], ids=["eager", "default"])
def check(request):
    """Like conftest's, of PyTorch's formulation in float64 and of what runs by default in float32."""

    def run(op, inputs, *, tolerance=1e-10, **options):
        if request.param is None:
            inputs = {k: v.float() if v.dtype == torch.float64 else v for k, v in inputs.items()}
            exact_zeros = inputs["k"].shape[1] == 1  # gradients of q and k: only rounding is left of them
            tolerance = max(tolerance, 1e-3 if exact_zeros else 2e-5)
        results = [
            outputs_and_grads(lambda name=name, **leaves: op(**leaves, **options, backend=name), inputs)
            for name in (request.param, "reference")
        ]
        assert_same(*results, tolerance)

    return run


def make(B=2, T=13, S=None, Hq=4, Hkv=2, D=8, dtype=torch.float64):
    S = S or T
    return {
        "q": torch.randn(B, T, Hq, D, dtype=dtype),
        "k": torch.randn(B, S, Hkv, D, dtype=dtype),
        "v": torch.randn(B, S, Hkv, D, dtype=dtype),
    }


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"T": 1},
        {"T": 1, "S": 9},
        {"T": 4, "S": 9},
        {"Hkv": 4},
        {"Hkv": 1, "B": 1},
        {"T": 70, "dtype": torch.float32},
    ],
)
def test_attention_equals_reference(check, shape):
    check(kernels.attention, make(**shape), tolerance=2e-5 if "dtype" in shape else 1e-10)


@pytest.mark.parametrize("row", [[0] * 5 + [1, 2, 3] + [0] * 5, [0] * 13, list(range(13))])
def test_documents_do_not_see_each_other(check, row):
    check(kernels.attention, make(), document_ids=torch.tensor([row, [0] * 12 + [1]]))


def test_long_rows_of_mixed_documents(check):
    lengths = [1, 1, 300, 2, 260, 5, 100, 90, 41]
    row = torch.repeat_interleave(torch.arange(9), torch.tensor(lengths))
    other = torch.zeros(800, dtype=torch.int64)
    inputs = make(T=800, Hq=2, Hkv=1, D=4)
    check(kernels.attention, inputs, document_ids=torch.stack([row, other]))


@pytest.mark.parametrize("backend", ["eager", None])
def test_long_rows_need_no_quadratic_memory(largest_tensor, backend):
    T = 4096
    inputs = make(B=1, T=T, Hq=1, Hkv=1, dtype=torch.float32)
    inputs["q"].requires_grad_()
    lengths = torch.tensor([2000, 1, 1, 30, 64, 2000])
    ids = torch.repeat_interleave(torch.arange(6), lengths).unsqueeze(0)
    with largest_tensor() as seen:
        kernels.attention(**inputs, document_ids=ids, backend=backend).sum().backward()
    assert seen.elements <= T * 32


@pytest.mark.parametrize("backend", ["eager", None])
def test_queries_behind_a_long_cache_need_no_mask(largest_tensor, backend):
    inputs = make(B=1, T=1024, S=4096, Hq=1, Hkv=1, dtype=torch.float32)
    for leaf in inputs.values():
        leaf.requires_grad_()
    with largest_tensor() as seen:
        kernels.attention(**inputs, backend=backend).sum().backward()
    assert seen.elements <= 4096 * 32


def test_queries_behind_a_cache_have_exact_gradients_of_all_that_they_see(check):
    check(kernels.attention, make(T=10, S=30))
    check(kernels.attention, make(T=100, S=900, Hq=6, Hkv=3))


@pytest.mark.parametrize("T", [1, 4, 9, 30])
@pytest.mark.parametrize(
    "starts",
    [[], [21], [20], [22], [29], [5, 18, 25, 26], list(range(30))],
    ids=["one", "at the first query", "before it", "after it", "at the last", "some", "of one token each"],
)
def test_documents_of_queries_behind_other_keys(check, T, starts):
    ids = torch.zeros(2, 30, dtype=torch.int32)
    for start in starts:
        ids[0, start:] += 1
    ids[1, 7:] = 4
    check(kernels.attention, make(T=T, S=30), document_ids=ids)


def test_long_documents_of_queries_behind_other_keys(check):
    row = torch.repeat_interleave(torch.arange(6), torch.tensor([300, 500, 5, 280, 3, 12]))
    ids = torch.stack([row, torch.zeros_like(row), row % 2])
    check(kernels.attention, make(B=3, T=500, S=1100, Hq=2, Hkv=1, D=4), document_ids=ids)


@pytest.mark.parametrize("backend", ["eager", None])
def test_keys_of_other_documents_in_front_change_nothing(backend):
    inputs = make(B=1, T=40, S=90, dtype=torch.float32)
    ids = torch.repeat_interleave(torch.tensor([-1, 3, 7]), torch.tensor([35, 20, 35])).unsqueeze(0)
    expected = kernels.attention(**inputs, document_ids=ids, backend=backend)
    short = {"q": inputs["q"], "k": inputs["k"][:, 35:], "v": inputs["v"][:, 35:]}
    assert torch.equal(kernels.attention(**short, document_ids=ids[:, 35:], backend=backend), expected)
    for name in ("k", "v"):
        inputs[name][:, :35] = torch.nan
    assert torch.equal(kernels.attention(**inputs, document_ids=ids, backend=backend), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cached_queries_equal_the_whole(dtype):
    inputs = make(T=13, dtype=dtype)
    whole = kernels.attention(**inputs)
    tail = kernels.attention(inputs["q"][:, 9:], inputs["k"], inputs["v"])
    torch.testing.assert_close(tail, whole[:, 9:])


@pytest.fixture(params=[False, True], ids=["wide", "as the machine is"])
def products(request, monkeypatch):
    """Matrix products of bf16 values in float32, as on machines without instructions for them, and as this machine."""
    if not request.param:
        wide = lambda dtype, device: torch.promote_types(dtype, torch.float32)  # noqa: E731
        monkeypatch.setattr("nano3.kernels.eager.attention.matmul_dtype", wide)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("shape", [{}, {"T": 1, "S": 9}, {"T": 4, "S": 9}, {"Hkv": 4}, {"Hkv": 1, "B": 1}])
def test_bf16(check, shape):
    inputs = {k: v.bfloat16() for k, v in make(**shape, dtype=torch.float32).items()}
    check(kernels.attention, inputs, tolerance=3e-2)


@pytest.mark.usefixtures("products")
def test_bf16_documents(check):
    inputs = {k: v.bfloat16() for k, v in make(T=300, dtype=torch.float32).items()}
    row = torch.repeat_interleave(torch.arange(4), torch.tensor([270, 10, 1, 19]))
    check(kernels.attention, inputs, tolerance=3e-2, document_ids=torch.stack([row, row // 4]))


@pytest.mark.usefixtures("products")
def test_bf16_inputs_of_any_layout_and_none_at_all():
    scattered = torch.randn(2, 13, 8, 4).bfloat16().transpose(2, 3).requires_grad_()
    results = []
    for x in (scattered, scattered.detach().contiguous().requires_grad_()):
        y = kernels.attention(x, x, x)
        results.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), x)])
    assert_same(*results, 2e-2)  # PyTorch's own rounding may turn on the layout
    empty = torch.zeros(2, 0, 4, 8).bfloat16()
    assert kernels.attention(empty, empty, empty).shape == empty.shape


def bytes_kept(run) -> int:
    """Bytes of the tensors that autograd is given to keep while `run` makes a result."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    assert result.requires_grad
    return sum(kept.values())


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("backend", ["eager", None])
def test_autograd_keeps_narrow_tensors_and_checkpointing_sees_them(backend):
    T, Hq, D = 512, 4, 32
    inputs = {k: v.bfloat16().requires_grad_() for k, v in make(1, T, Hq=Hq, Hkv=2, D=D, dtype=torch.float32).items()}
    narrow = 2 * T * D * (2 * Hq + 2 * 2)
    kept = bytes_kept(lambda: kernels.attention(**inputs, backend=backend))
    assert narrow <= kept <= 1.1 * narrow


@pytest.mark.parametrize(
    ("shape", "ids", "words"),
    [
        ({"T": 5, "S": 3}, None, "5 queries for only 3 keys"),
        ({"T": 3, "S": 5}, torch.zeros(2, 3), r"document_ids has shape \(2, 3\); it must be \(B, keys\) = \(2, 5\)"),
        ({"Hq": 3, "Hkv": 2}, None, "3 heads are not divisible by 2"),
    ],
)
def test_bad_arguments_are_named(shape, ids, words):
    with pytest.raises(ValueError, match=words):
        kernels.attention(**make(**shape), document_ids=ids)
