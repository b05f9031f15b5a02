"""The levels with bfloat16 products, compiled with emulated instructions, and the choice of a level."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from nano3.kernels import Scaled, quantize_int4, quantize_int8, reference
from nano3.kernels.cpu import call, dense, log_probs, native, ops
from nano3.kernels.cpu.native import TYPES, Native, _best
from nano3.kernels.cpu.program import check as program_check
from nano3.kernels.cpu.program import decode as program
from nano3.kernels.cpu.rounded import products as rounded
from nano3.kernels.scaled import E4M3

from tests.kernels.conftest import assert_same, outputs_and_grads

pytestmark = pytest.mark.any_isa

SOURCES = Path(native.__file__).parent / "src"
UNITS = ["unit_avx512bf16", "unit_amx"]
FLAGS = ["-std=c++17", "-O0", "-fno-math-errno", "-fPIC", "-fopenmp", "-DNANO3_EMULATE"]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """One with both levels and a kernel of the level below, one that knows no AMX."""
    folder = tmp_path_factory.mktemp("native")
    (folder / "below.cpp").write_text('extern "C" int nano3_other_avx512() { return 7; }')
    sources = [*(SOURCES / f"{unit}.cpp" for unit in UNITS), folder / "below.cpp"]
    compilers = [
        subprocess.Popen(["g++", *FLAGS, "-c", str(source), "-o", str(folder / f"{source.stem}.o")])
        for source in sources
    ]
    assert [compiler.wait() for compiler in compilers] == [0, 0, 0]
    found = {}
    for name, units in (("all", [*UNITS, "below"]), ("no_amx", UNITS[:1])):
        objects = [str(folder / f"{unit}.o") for unit in units]
        subprocess.run(["g++", "-shared", "-fopenmp", *objects, "-o", str(folder / f"{name}.so")], check=True)
        found[name] = ctypes.CDLL(str(folder / f"{name}.so"))
    return found


class Stacked:
    """Emulated levels, and the installed library's AVX2 in the place of the level below them."""

    def __init__(self, emulated):
        self.emulated, (self.installed, _) = emulated, native._load()

    def __getattr__(self, name):
        try:
            return getattr(self.emulated, name)
        except AttributeError:
            return getattr(self.installed, name.removesuffix("_avx512") + "_avx2")


@pytest.fixture(params=["avx512bf16", "amx"])
def level(request, libraries, monkeypatch):
    """Kernels of a level for the length of a test."""
    chosen = Native(Stacked(libraries["all"]), request.param, "")
    for module in (call, dense, log_probs, program):
        monkeypatch.setattr(module, "native", lambda: chosen)
    call._function.cache_clear()
    yield request.param
    call._function.cache_clear()


def off(got, exact):
    return float((got.double() - exact).abs().max() / exact.abs().max())


def product(x, weight):
    """The kernel's product of bfloat16 rows, with its sums as they are."""
    y = torch.empty(len(x), len(weight))
    places = x.data_ptr(), TYPES[x.dtype], len(x), weight.data_ptr(), TYPES[weight.dtype], *weight.shape, y.data_ptr()
    assert call.run("linear", *places, TYPES[y.dtype])
    return y


SIZES = [(1, 1), (7, 15), (16, 32), (17, 31), (33, 257), (129, 70), (37, 2100)]


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 7, 15, 16, 17, 33, 64])
@pytest.mark.parametrize(("outputs", "width"), SIZES)
@torch.inference_mode()
def test_products_of_bfloat16_with_sums_in_float(rows, outputs, width):
    x, weight = torch.randn(rows, width).bfloat16(), torch.randn(outputs, width).bfloat16()
    exact = x.double() @ weight.double().T
    assert off(product(x, weight), exact) < 2e-6
    assert off(ops.FUNCTIONS["linear"](x, weight), exact) < 4e-3


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("rows", [1, 4, 64])
@pytest.mark.parametrize(("outputs", "width"), SIZES)
@torch.inference_mode()
def test_float_rows_are_not_rounded(rows, outputs, width):
    x, weight = torch.randn(rows, width), torch.randn(outputs, width).bfloat16()
    assert off(ops.FUNCTIONS["linear"](x, weight), x.double() @ weight.double().T) < 2e-6


@pytest.mark.usefixtures("level")
@torch.inference_mode()
def test_float_weights_are_not_rounded():
    x, weight = torch.randn(9, 65), torch.randn(40, 65)
    assert off(ops.FUNCTIONS["linear"](x, weight), x.double() @ weight.double().T) < 2e-6


@pytest.mark.usefixtures("level")
@torch.inference_mode()
def test_a_row_too_wide_to_be_narrowed_at_once():
    x, weight = torch.randn(5, 40_001).bfloat16(), torch.randn(18, 40_001).bfloat16()
    assert off(product(x, weight), x.double() @ weight.double().T) < 2e-6


@pytest.mark.usefixtures("level")
@torch.inference_mode()
def test_nan_stays_in_its_row_and_infinity_in_its_output():
    x, weight = torch.randn(9, 40).bfloat16(), torch.randn(35, 40).bfloat16()
    x[4, 39], weight[20, 3] = torch.nan, torch.inf
    y = ops.FUNCTIONS["linear"](x, weight)
    assert y[4].isnan().all()
    rest = y[[row for row in range(9) if row != 4]]
    assert rest[:, 20].isinf().all()
    assert rest[:, [output for output in range(35) if output != 20]].isfinite().all()


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float32, 2e-6)])
@pytest.mark.parametrize("rows", [1, 5, 40])
@torch.inference_mode()
def test_mlps(rows, dtype, tolerance):
    x, up, down = torch.randn(rows, 72).to(dtype), torch.randn(100, 72).bfloat16(), torch.randn(72, 100).bfloat16()
    hidden = (x.double() @ up.double().T).relu() ** 2
    assert off(ops.FUNCTIONS["squared_relu_mlp"](x, up, down), hidden @ down.double().T) < tolerance
    ups, downs = torch.stack([up, -up]), torch.stack([down, down])
    ids, gates = torch.arange(2).expand(rows, 2).contiguous(), torch.rand(rows, 2)
    expected = sum(
        gates[:, e : e + 1].double() * ((x.double() @ ups[e].double().T).relu() ** 2 @ downs[e].double().T)
        for e in range(2)
    )
    assert off(ops.FUNCTIONS["grouped_mlp"](x, ups, downs, ids, gates), expected) < tolerance


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("rows", "width", "outputs"), [(1, 1, 1), (5, 15, 7), (33, 32, 64), (70, 95, 301), (40, 2100, 37)]
)
def test_log_probabilities_from_logits_that_nothing_rounds(rows, width, outputs, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    inputs = {"hidden": torch.randn(rows, width).bfloat16(), "weight": (torch.randn(outputs, width) / 9).bfloat16()}
    targets = torch.randint(0, outputs, (rows,)).index_fill_(0, torch.tensor([rows // 2]), -100)
    results = [
        outputs_and_grads(lambda f=f, **leaves: f(**leaves, targets=targets, temperature=0.8, entropy=True), values)
        for f, values in (
            (ops.FUNCTIONS["log_probs"], inputs),
            (reference.FUNCTIONS["log_probs"], {k: v.float() for k, v in inputs.items()}),
        )
    ]
    assert_same(results[0][:2], results[1][:2], 5e-6)
    assert_same(results[0][2:], results[1][2:], 1e-2)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("rows", [1, 3, 4, 17, 40])
@pytest.mark.parametrize(("outputs", "width"), [(7, 32), (35, 96), (64, 1056)])
@torch.inference_mode()
def test_products_of_integers_and_of_e4m3(rows, outputs, width):
    x, matrix = torch.randn(rows, width).bfloat16(), torch.randn(outputs, width)
    for weight in (quantize_int8(matrix), quantize_int4(matrix), Scaled((matrix * 90).to(E4M3), torch.tensor(1 / 90))):
        expected = reference.FUNCTIONS["linear"](x.float(), weight).double()
        assert off(rounded.linear(x, weight), expected) < 6e-3


def test_the_step_of_a_model(level):
    for dtype, tolerance in call.TOLERANCE.items():
        assert program_check._error(dtype) <= tolerance, (level, dtype)


@pytest.mark.usefixtures("level")
@torch.inference_mode()
def test_the_step_of_narrow_weights_under_float_activations():
    case = program_check.Case(program_check.SIZES, torch.bfloat16, (10, 4))
    case.states = [s and program.BlockState(*(t.float() for t in s)) for s in case.states]
    indices, states = (case.tokens, case.slots, case.table, case.lengths), case.copied_states()
    got = case.program(torch.float32).run(*indices, states, logits=True)[:2]
    for ours, exact in zip(got, case.expected(), strict=True):
        assert off(ours, exact.double()) < 3e-5


def test_the_best_level_that_is_there_and_allowed(libraries):
    assert _best(libraries["all"], ["amx", "avx512bf16", "avx512"]).isa == "amx"
    assert _best(libraries["no_amx"], ["amx", "avx512bf16", "avx512"]).isa == "avx512bf16"
    assert _best(libraries["no_amx"], ["amx", "avx512"]).isa == "avx512"
    none = _best(libraries["no_amx"], ["amx"])
    assert none.library is None
    assert none.reason.startswith("no AMX: the compiler did not know it")


def test_a_kernel_that_a_level_has_not_got_is_the_one_below(libraries):
    assert Native(libraries["all"], "amx", "").function("other")() == 7
    assert Native(libraries["all"], "amx", "").function("linear") is libraries["all"].nano3_linear_amx
    assert Native(libraries["all"], "amx", "").function("other", exact=True)() == 7
    with pytest.raises(AttributeError):
        Native(libraries["all"], "amx", "").function("nothing")


def test_every_level_is_chosen_by_its_flags(monkeypatch):
    for name, needs in native.NEEDS.items():
        assert native.BASES.get(name, name) in native.NEEDS
        monkeypatch.setattr(native, "cpu_flags", lambda needs=needs: needs - {"avx2"})
        monkeypatch.setenv(native.ENVIRONMENT, name)
        with pytest.raises(native.LevelError, match=f"this processor has no {name.upper()}; this machine can run none"):
            native.native.__wrapped__()


def test_a_level_that_is_not_there_is_an_error_that_names_what_is(monkeypatch, libraries):
    monkeypatch.setattr(native, "cpu_flags", lambda: native.NEEDS["amx"])
    monkeypatch.setattr(native, "_load", lambda: (libraries["no_amx"], ""))
    for name, why in (("amx", "compiler did not know it"), ("AVX2", "must be one of amx, ")):
        monkeypatch.setenv(native.ENVIRONMENT, name)
        with pytest.raises(native.LevelError, match=f"{why}.*; this machine can run avx512bf16, avx512, avx2, none"):
            native.native.__wrapped__()
    monkeypatch.setenv(native.ENVIRONMENT, "avx2")
    assert native.native.__wrapped__().isa == "avx2"
    monkeypatch.setattr(native, "_load", lambda: (None, "not built"))
    with pytest.raises(native.LevelError, match="not built; this machine can run none"):
        native.native.__wrapped__()
    monkeypatch.delenv(native.ENVIRONMENT)
    assert native.native.__wrapped__().reason == "not built"
