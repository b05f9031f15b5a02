"""Which vendor package is taken, why not another, and what happens when one cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nano3 import kernels

EXPLAIN = """
import sys
from nano3.kernels import choose, explain
for op, backend, reason in explain("cuda"):
    print(op, backend, reason, sep="|")
print("parent", "mamba_ssm" in sys.modules, sep="|")
"""
MAMBA_MODULES = {
    "ops/__init__.py": "",
    "ops/triton/__init__.py": "",
    "ops/triton/layernorm_gated.py": "def rmsnorm_fn(): ...",
    "ops/triton/selective_state_update.py": "def selective_state_update(): ...",
    "ops/triton/ssd_combined.py": "def mamba_chunk_scan_combined(): ...",
}


def explained(packages: Path) -> dict[str, tuple[str, str]]:
    """What a process that finds `packages` says of each op on CUDA."""
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    command = [sys.executable, "-c", EXPLAIN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    rows = [line.split("|", 2) for line in done.stdout.splitlines()]
    return {row[0]: (row[1], row[-1]) for row in rows}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.any_isa
def test_packages_that_fail_to_import_are_named_and_passed_over(tmp_path):
    write(tmp_path / "mamba_ssm", {"__init__.py": ""})
    write(tmp_path / "flash_attn", {"__init__.py": "raise ImportError('undefined symbol:\\n  _ZN3c10')"})
    write(tmp_path / "causal_conv1d", {"__init__.py": "import causal_conv1d_cuda"})
    said = explained(tmp_path)
    assert not {said[op][0] for op in said if op != "parent"} & {"mamba-ssm", "flash-attn", "causal-conv1d"}
    missing = "import of mamba-ssm failed: ModuleNotFoundError: No module named 'mamba_ssm.ops'"
    assert missing in said["ssd_scan"][1]
    assert "not flash-attn: import of flash-attn failed: ImportError: undefined symbol: _ZN3c10" in said["attention"][1]
    assert "No module named 'causal_conv1d_cuda'" in said["causal_conv1d"][1]


@pytest.mark.any_isa
def test_mamba_ssm_is_imported_without_its_own_initialisation_and_left_out_unless_named(tmp_path):
    write(tmp_path / "mamba_ssm", {"__init__.py": "import selective_scan_cuda", **MAMBA_MODULES})
    said = explained(tmp_path)
    for op in ("ssd_scan", "mamba_step", "gated_rms_norm"):
        assert said[op][0] in ("triton", "eager")
        assert "not mamba-ssm: used only with NANO3_BACKEND=mamba-ssm" in said[op][1]
    assert said["parent"][0] == "False"  # whoever imports the package itself gets the real one


@pytest.mark.parametrize(
    ("backend", "op"),
    [("mamba-ssm", "ssd_scan"), ("causal-conv1d", "causal_conv1d"), ("flash-attn", "paged_attention")],
)
def test_a_vendor_backend_forced_on_a_cpu_says_what_it_needs(monkeypatch, backend, op):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("NANO3_BACKEND", backend)
    message = f"backend '{backend}' cannot run {op} on device cpu: {backend}'s kernels run on CUDA devices"
    with pytest.raises(ValueError, match=message):
        kernels.choose(op, torch.device("cpu"))
    assert kernels.choose("route", "cpu")[0] != backend


def test_reasons_on_a_cpu_name_no_backend_for_gpus():
    assert not any(name in c.reason for c in kernels.explain("cpu") for name in ("mamba-ssm", "flash-attn", "conv1d's"))
