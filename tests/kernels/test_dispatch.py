import os
import subprocess
import sys

import pytest
import torch
from nano3.kernels import dispatch
from nano3.kernels.common import ForNow

from nano3 import kernels

pytestmark = pytest.mark.any_isa


@pytest.fixture(autouse=True)
def _forget_choices():
    yield
    dispatch._chosen.cache_clear()


def test_every_op_has_a_fast_backend_a_reference_and_an_explanation():
    choices = kernels.explain("cpu")
    assert [c.op for c in choices] == dispatch.ops()
    for op, backend, reason in choices:
        assert kernels.backends(op)[-2:] == ["eager", "reference"]
        assert backend in ("cpu", "eager")
        assert reason


def test_without_the_library_everything_runs_on_pytorch_and_says_why():
    code = "from nano3.kernels import explain; print(*explain('cpu'), sep='\\n')"
    environment = {**os.environ, "NANO3_CPU_ISA": "none"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "backend='cpu'" not in done.stdout
    assert "not cpu: switched off by NANO3_CPU_ISA" in done.stdout


def test_a_level_that_no_machine_has_is_an_error_at_the_first_call():
    code = "import torch; from nano3 import kernels; kernels.rms_norm(torch.ones(1, 2), torch.ones(2), 1e-5)"
    for command in (["-c", code], ["-m", "nano3", "serve", "--model", "tiny"]):
        environment = {**os.environ, "NANO3_CPU_ISA": "avx1024"}
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        last = done.stderr.splitlines()[-1]
        levels = "amx, avx512bf16, avx512vnni, avx512, avxvnni, avx2, none"
        assert f"NANO3_CPU_ISA is 'avx1024': must be one of {levels}; this machine" in last
        assert done.returncode == (1 if command[0] == "-c" else 2)


def test_every_op_is_public():
    assert set(dispatch.ops()) <= set(kernels.__all__)


def test_unknown_backend_names_the_valid_ones():
    with pytest.raises(ValueError, match=r"unknown backend 'fast' for rms_norm; backends: cpu, .*eager, reference"):
        kernels.rms_norm(torch.ones(2), torch.ones(2), 1e-5, backend="fast")


def test_unknown_op_names_the_valid_ones():
    with pytest.raises(ValueError, match=r"unknown op 'rmsnorm'; ops: .*rms_norm"):
        kernels.choose("rmsnorm", "cpu")


def test_environment_forces_a_backend(monkeypatch):
    monkeypatch.setenv("NANO3_BACKEND", "reference")
    name, function = kernels.choose("ssd_scan", "cpu")
    assert name == "reference"
    assert function.__module__.endswith("reference.ssd")
    assert {c.backend for c in kernels.explain("cpu")} == {"reference"}
    assert "NANO3_BACKEND" in kernels.explain("cpu")[0].reason
    assert kernels.choose("ssd_scan", "cpu", "eager")[0] == "eager"


def test_a_forced_backend_that_cannot_run_is_told_by_explain_and_refused_by_calls(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("NANO3_BACKEND", "triton")
    choices = {choice.op: choice for choice in kernels.explain("cpu")}
    assert choices["rms_norm"].backend == "none"
    assert "NANO3_BACKEND is triton, which cannot run it: Triton kernels run on CUDA" in choices["rms_norm"].reason
    assert choices["log_probs"].backend != "none", "an op that Triton has not"
    with pytest.raises(ValueError, match="backend 'triton' cannot run rms_norm on device cpu"):
        kernels.choose("rms_norm", "cpu")


def test_unknown_backend_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("NANO3_BACKEND", "fast")
    with pytest.raises(
        ValueError, match=r"NANO3_BACKEND names an unknown backend 'fast'; backends: cpu, .*eager, reference"
    ):
        kernels.choose("ssd_scan", "cpu")


@pytest.fixture
def only_cuda(monkeypatch):
    """A preferred backend that has one op and runs on CUDA only."""

    def problem(device, _op):
        return None if device.type == "cuda" else "it needs a CUDA device"

    extra = dispatch.Backend({"rms_norm": lambda *a: None}, lambda _: "extra", problem)
    monkeypatch.setattr(dispatch, "BACKENDS", {"extra": extra, **dispatch.BACKENDS})


@pytest.mark.usefixtures("only_cuda")
def test_an_unavailable_backend_is_passed_over(monkeypatch):
    assert kernels.choose("rms_norm", "cpu")[0] != "extra"
    assert kernels.choose("rms_norm", "cuda")[0] == "extra"
    with pytest.raises(ValueError, match="'extra' cannot run rms_norm on device cpu: it needs a CUDA device"):
        kernels.choose("rms_norm", "cpu", "extra")
    monkeypatch.setenv("NANO3_BACKEND", "extra")
    assert kernels.choose("ssd_scan", "cpu")[0] != "extra"


@pytest.mark.usefixtures("only_cuda")
def test_backends_of_a_device_are_those_that_run_there():
    assert kernels.backends("rms_norm")[:3] == ["extra", "cpu", "triton"]
    assert kernels.backends("rms_norm", "cpu")[-2:] == ["eager", "reference"]
    assert not {"extra", "triton"} & set(kernels.backends("rms_norm", "cpu"))


def test_triton_says_what_it_needs():
    with pytest.raises(ValueError, match="'triton' cannot run rms_norm on device cpu: Triton kernels run on CUDA"):
        kernels.rms_norm(torch.ones(2), torch.ones(2), 1e-5, backend="triton")


def test_a_gpu_is_told_why_its_backend_is_passed_over_and_not_why_others_are(monkeypatch):
    broken = dispatch.Backend({"rms_norm": print}, lambda _: "broken", lambda *_: "cannot be imported", made_for="cuda")
    monkeypatch.setattr(dispatch, "BACKENDS", {"broken": broken, **dispatch.BACKENDS, "triton": broken})
    reasons = {choice.op: choice.reason for choice in kernels.explain("cuda")}
    assert reasons["rms_norm"].endswith("; not broken: cannot be imported; not triton: cannot be imported")
    assert "not cpu" not in reasons["rms_norm"]
    assert "broken" not in {choice.op: choice.reason for choice in kernels.explain("cpu")}["rms_norm"]


def test_nothing_imports_triton_before_it_is_used():
    code = "import sys; from nano3.kernels import explain; explain('cpu'); print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_reason_that_passes_is_asked_for_again(monkeypatch):
    """Full memory during a self-check does not switch a backend off for good."""
    reasons = [ForNow("no memory"), ForNow("no memory"), None]
    backend = dispatch.Backend({"route": lambda: None}, lambda _: "fast", lambda *_: reasons.pop(0))
    monkeypatch.setattr(dispatch, "BACKENDS", {"new": backend, **dispatch.BACKENDS})
    assert [kernels.choose("route", "meta")[0] for _ in range(4)] == ["eager", "eager", "new", "new"]


def test_cuda_without_a_number_is_the_current_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    asked = lambda device, _op: f"not {device}"  # noqa: E731
    monkeypatch.setattr(dispatch, "BACKENDS", {"new": dispatch.Backend({"route": print}, str, asked)})
    for current in (1, 0):
        with pytest.raises(ValueError, match="no backend runs route on device cuda:" + str(current)):
            kernels.choose("route", "cuda")
        with pytest.raises(ValueError, match="not cuda:" + str(current)):
            kernels.choose("route", "cuda", "new")
