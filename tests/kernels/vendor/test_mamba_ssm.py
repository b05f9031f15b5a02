"""The adapter runs mamba-ssm's real kernels; no GPU is needed, as Triton interprets them."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

RELEASE = "mamba-ssm==2.3.2.post1"
PURE = {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE"}
"""Its Triton kernels need nothing compiled."""


def pip(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        pytest.skip(f"environment: {' '.join(arguments[:2])} cannot be had here: {done.stderr.strip()[-300:]}")


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A folder that holds mamba-ssm and einops, which it imports."""
    folder = tmp_path_factory.mktemp("mamba")
    if find_spec("mamba_ssm") is not None:
        return folder
    tools, built = folder / "tools", folder / "built"
    pip("install", "--target", str(tools), "setuptools", "wheel", "packaging", "ninja")
    pip("wheel", "--no-deps", "--no-build-isolation", RELEASE, "-w", str(folder), PYTHONPATH=str(tools), **PURE)
    (wheel,) = folder.glob("mamba_ssm-*.whl")
    pip("install", "--no-deps", "--target", str(built), str(wheel))
    if find_spec("einops") is None:
        pip("install", "--no-deps", "--target", str(built), "einops")
    return built


@pytest.mark.slow
@pytest.mark.any_isa
def test_its_kernels_through_the_adapter_equal_the_float64_reference(packages):
    pytest.importorskip("triton", reason="environment: triton is not installed")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")]),
        "TRITON_INTERPRET": "1",
        "MAMBA_DETERMINISTIC": "1",  # one configuration of each kernel: the interpreter cannot measure several
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__).with_name("mamba_ssm_cases.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout)
    assert errors.pop("ran")
    assert set(errors) == {"scan", "documents", "norm", "step"}
    assert max(errors.values()) < 1e-5, errors
