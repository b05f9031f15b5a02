"""The chunked scan in C++ equals the recurrence, forward and backward: odd sizes, documents, states, views, threads."""

import pytest
import torch
from nano3.kernels.cpu.native import native
from torch.utils.checkpoint import checkpoint

from nano3 import kernels

TOKENS = ("x", "dt", "B", "C")


def make(B=2, T=23, H=4, P=3, N=5, G=2, state=True):
    inputs = {
        "x": torch.randn(B, T, H, P),
        "dt": torch.randn(B, T, H),
        "A": -torch.rand(H) * 4 - 0.1,
        "B": torch.randn(B, T, G, N),
        "C": torch.randn(B, T, G, N),
        "D": torch.randn(H),
        "dt_bias": torch.randn(H) - 1,
    }
    return inputs | ({"initial_state": torch.randn(B, H, P, N)} if state else {})


def results(inputs, backend=None, **options):
    """Outputs and gradients by name; those of a fixed random mixture of y and the final state."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items()}
    y, final = kernels.ssd_scan(**leaves, **options, backend=backend)
    g = torch.Generator().manual_seed(7)
    total = sum((o.double() * torch.randn(o.shape, generator=g, dtype=torch.float64)).sum() for o in (y, final))
    grads = torch.autograd.grad(total, list(leaves.values()))
    return {"y": y.detach(), "final": final.detach(), **{f"d{k}": v for k, v in zip(leaves, grads, strict=True)}}


def error(got, expected):
    scale = expected.double().abs().max().clamp_min(1e-3)
    return float((got.double() - expected.double()).abs().max() / scale)


def close(got, expected, tolerance=2e-5):
    assert got.keys() == expected.keys()
    for name in got:
        assert got[name].shape == expected[name].shape, name
        assert error(got[name], expected[name]) <= tolerance, name


def same(inputs, tolerance=2e-5, **options):
    got = results(inputs, **options)
    assert all(got[f"d{k}"].dtype == v.dtype for k, v in inputs.items())
    close(got, results({k: v.double() for k, v in inputs.items()}, "reference", **options), tolerance)


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize(
    ("shape", "chunk"),
    [
        ({}, 8),
        ({"T": 1}, 8),
        ({"T": 1, "P": 1, "N": 1, "H": 1, "G": 1}, 128),
        ({"T": 5}, 1),
        ({"T": 16}, 8),
        ({"T": 65, "P": 33, "N": 17}, 128),
        ({"T": 64, "P": 32, "N": 16, "G": 4}, 64),
        ({"T": 131, "P": 64, "N": 128, "H": 3, "G": 1, "B": 1}, 128),
        ({"T": 100, "H": 6, "G": 3, "P": 17, "N": 33}, 37),
        ({"T": 150, "H": 5, "G": 1, "P": 70, "N": 7}, 50),
    ],
)
def test_equals_the_recurrence(shape, chunk, state):
    same(make(**shape, state=state), chunk_size=chunk)


DOCUMENTS = {
    "one token each": list(range(40)),
    "of all lengths": [0] * 5 + [1, 2, 3] + [4] * 8 + [5] * 16 + [6] * 8,
    "at chunk starts": [0] * 8 + [1] * 8 + [2] * 24,
    "the last token": [0] * 39 + [1],
    "the second token": [0] + [1] * 39,
    "an id comes back": [3] * 10 + [1] * 10 + [3] * 20,
}


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("chunk", [8, 20, 64])
@pytest.mark.parametrize("which", DOCUMENTS)
def test_documents_reset_the_state(which, chunk, state):
    ids = torch.tensor([DOCUMENTS[which], DOCUMENTS["of all lengths"]])
    same(make(T=40, P=18, N=20, state=state), document_ids=ids, chunk_size=chunk)


def test_document_ids_of_another_type_and_layout():
    ids = torch.tensor([DOCUMENTS["of all lengths"]] * 2, dtype=torch.int32).t().contiguous().t()
    same(make(T=40), document_ids=ids, chunk_size=16)


def test_strong_and_weak_decay():
    inputs = make(T=70)
    inputs["A"], inputs["dt"] = torch.tensor([-500.0, -80.0, -1e-4, -1e-9]), inputs["dt"] * 10
    # fp32 sums of log decays near 1e5 carry an absolute error of 1e-2
    same(inputs, tolerance=1e-3)


@pytest.mark.skipif(native().library is None, reason="of the C++ kernel alone")
@torch.inference_mode()
def test_steep_decays_make_no_subnormal_numbers():
    inputs = make(T=9)
    inputs["A"], inputs["x"] = torch.full((4,), -500.0), torch.zeros_like(inputs["x"])
    for values in kernels.ssd_scan(**inputs):
        assert not ((values != 0) & (values.abs() < torch.finfo(torch.float32).tiny)).any()


def test_steps_from_tiny_to_large_are_exact():
    raw = torch.cat([torch.linspace(-60, 60, 1001), torch.tensor([-1e4, 0.0, 1e4])])
    one = torch.ones(1, 1004, 1, 1)
    y, _ = kernels.ssd_scan(
        one, raw.view(1, -1, 1), torch.zeros(1), one, one, torch.zeros(1), torch.zeros(1),
        document_ids=torch.arange(1004).unsqueeze(0),
    )  # fmt: skip
    expected = torch.nn.functional.softplus(raw.double(), threshold=100)
    torch.testing.assert_close(y.flatten().double(), expected, rtol=5e-7, atol=1e-36)


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_bfloat16_is_near_float32(parameters):
    inputs = make(T=150, P=20, N=24, state=False)
    inputs = {k: v.bfloat16() if k in TOKENS else v.to(parameters) for k, v in inputs.items()}
    got = results(inputs)
    assert all(got[f"d{k}"].dtype == v.dtype for k, v in inputs.items())
    assert got["y"].dtype == torch.bfloat16
    assert got["final"].dtype == torch.float32
    close(got, results({k: v.float() for k, v in inputs.items()}, "reference"), 1e-2)


def packed(inputs, offset, extra):
    """x, B, C and dt as views of wider rows, `offset` numbers behind the start of their storage."""
    B, T = inputs["x"].shape[:2]
    parts = {k: inputs[k].flatten(2) for k in TOKENS}
    row = torch.cat([*parts.values(), inputs["x"].new_full((B, T, extra), torch.nan)], 2)
    storage = torch.full((offset + row.numel(),), torch.nan, dtype=row.dtype)
    storage[offset:] = row.flatten()
    views = storage[offset:].view(row.shape).split([*(p.shape[2] for p in parts.values()), extra], 2)
    return {**inputs, **{k: v.unflatten(2, inputs[k].shape[2:]) for k, v in zip(parts, views[:4], strict=True)}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0, 1, 3])
@torch.inference_mode()
def test_views_of_one_projection(offset, dtype):
    inputs = {k: v.to(dtype) if k in TOKENS else v for k, v in make(T=70, P=9, N=18).items()}
    views = packed(inputs, offset, extra=5)
    for got, expected in zip(kernels.ssd_scan(**views), kernels.ssd_scan(**inputs), strict=True):
        assert torch.equal(got, expected)


def test_gradients_through_views_of_one_projection():
    inputs = make(T=40)
    widths = [inputs[k].flatten(2).shape[2] for k in TOKENS]
    grads = []
    for views in (True, False):
        row = torch.cat([inputs[k].flatten(2) for k in TOKENS], 2).requires_grad_()
        tokens = {k: v.unflatten(2, inputs[k].shape[2:]) for k, v in zip(TOKENS, row.split(widths, 2), strict=True)}
        y, _ = kernels.ssd_scan(**{**inputs, **(tokens if views else {k: v.clone() for k, v in tokens.items()})})
        grads.append(torch.autograd.grad(y.square().sum(), row)[0])
    assert torch.equal(*grads)


@torch.inference_mode()
def test_any_other_layout():
    inputs = make(T=30)
    odd = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in inputs.items()}
    odd["B"] = inputs["B"][:, :, :1].expand(-1, -1, 2, -1)
    plain = {**inputs, "B": odd["B"].contiguous()}
    for got, expected in zip(kernels.ssd_scan(**odd), kernels.ssd_scan(**plain), strict=True):
        assert error(got, expected) <= 1e-6


@pytest.mark.parametrize("B", [1, 3])
def test_threads_do_not_change_the_forward_and_hardly_the_gradients(B):
    inputs, before, all_results = make(B=B, T=90, H=12, G=2), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5, 16):
            torch.set_num_threads(count)
            all_results += [results(inputs), results(inputs)]
    finally:
        torch.set_num_threads(before)
    for first, second in zip(all_results[::2], all_results[1::2], strict=True):
        assert all(torch.equal(first[k], second[k]) for k in first)
        assert torch.equal(first["y"], all_results[0]["y"])
        assert torch.equal(first["final"], all_results[0]["final"])
        close(first, all_results[0], 1e-6)


@pytest.mark.parametrize("name", TOKENS)
def test_nan_reaches_what_follows_in_its_row_and_nothing_else(name):
    inputs = make(B=3, T=50)
    inputs[name][1, 30] = torch.nan
    before, got = torch.get_num_threads(), {}
    try:
        torch.set_num_threads(1)  # one thread's buffers see all rows
        got = results(inputs, chunk_size=16)
    finally:
        torch.set_num_threads(before)
    others = [v for k, v in got.items() if k in ("y", "final", "dx", "ddt", "dB", "dC", "dinitial_state")]
    assert all(v[[0, 2]].isfinite().all() for v in others)
    exact = kernels.dispatch.choose("ssd_scan", "cpu")[0] == "cpu"  # in PyTorch the token's chunk multiplies it by zero
    assert got["y"][1, : 30 if exact else 16].isfinite().all()
    assert got["y"][1, 30].isnan().all()
    if name != "C":
        assert got["y"][1, 31:].isnan().all()
        assert got["final"][1].isnan().all()


@pytest.mark.skipif(native().library is None, reason="of the C++ kernel alone")
@torch.inference_mode()
def test_nan_of_a_document_stays_within_a_few_tokens_of_it():
    inputs, ids = make(B=1, T=80, state=False), torch.arange(80).unsqueeze(0) // 20
    inputs["x"][0, 25] = torch.nan
    y, final = kernels.ssd_scan(**inputs, document_ids=ids, chunk_size=32)
    exact = kernels.dispatch.choose("ssd_scan", "cpu")[0] == "cpu"
    assert y[0, : 25 if exact else 20].isfinite().all()
    assert y[0, 25:40].isnan().all()
    assert y[0, 60:].isfinite().all()
    if exact:
        assert y[0, 51:].isfinite().all()
        assert final.isfinite().all()


def test_a_step_of_minus_infinity_leaves_the_state_alone():
    inputs = make(T=20)
    short = {k: v[:, :11] if k in TOKENS else v for k, v in inputs.items()}
    inputs["dt"][:, 11:] = -torch.inf
    (y, final), (y_short, final_short) = kernels.ssd_scan(**inputs), kernels.ssd_scan(**short)
    assert error(y[:, :11], y_short) <= 1e-6
    assert error(final, final_short) <= 1e-6
    inputs["dt"][:] = -torch.inf
    assert torch.equal(kernels.ssd_scan(**inputs)[1], inputs["initial_state"])


@pytest.mark.parametrize(("B", "T"), [(0, 5), (2, 0)])
def test_nothing_to_scan(B, T):
    inputs = make(B=B, T=T)
    got = results(inputs)
    assert got["y"].shape == (B, T, 4, 3)
    assert torch.equal(got["final"], inputs["initial_state"])


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("leaf", ["x", "dt", "A", "B", "C", "D", "dt_bias", "initial_state"])
def test_one_gradient_of_one_output(leaf, output):
    inputs, grads = make(T=20), []
    for backend in (None, "reference"):
        value = inputs[leaf].clone().requires_grad_()
        out = kernels.ssd_scan(**{**inputs, leaf: value}, chunk_size=8, backend=backend)[output]
        total = out.square().sum() + 0 * value.sum()  # the final state needs neither C nor D
        grads.append(torch.autograd.grad(total, value)[0])
    assert error(*grads) <= 2e-5


def test_checkpointing_gives_the_same_gradients():
    inputs = {k: v.requires_grad_() for k, v in make(T=30).items()}

    def scan(*values):
        return kernels.ssd_scan(**dict(zip(inputs, values, strict=True)), chunk_size=8)[0].square().sum()

    plain = torch.autograd.grad(scan(*inputs.values()), list(inputs.values()))
    again = torch.autograd.grad(checkpoint(scan, *inputs.values(), use_reentrant=False), list(inputs.values()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_no_gradient_no_chunk_states(largest_tensor):
    inputs = make(B=1, T=2048, H=1, P=2, N=64, G=1, state=False)
    with torch.no_grad(), largest_tensor() as seen:
        kernels.ssd_scan(**inputs)
    assert seen.elements == 2048 * 2


def test_double_precision_and_mixed_types_go_to_pytorch():
    inputs = {k: v.double() for k, v in make().items()}
    close(results(inputs), results(inputs, "reference"), 1e-12)
    mixed = {k: v.bfloat16() if k == "dt" else v.float() for k, v in inputs.items()}
    y, _ = kernels.ssd_scan(**mixed)
    assert error(y, kernels.ssd_scan(**mixed, backend="reference")[0]) <= 2e-5


@pytest.mark.parametrize("change", [{"A": (3,)}, {"C": (2, 23, 2, 6)}, {"initial_state": (2, 4, 3, 6)}])
def test_sizes_that_do_not_fit_are_an_error_not_a_wrong_address(change):
    inputs = make() | {k: torch.randn(shape) for k, shape in change.items()}
    with pytest.raises(RuntimeError):
        kernels.ssd_scan(**inputs)
