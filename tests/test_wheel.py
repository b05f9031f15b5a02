"""What is built for users: one wheel a platform for every Python, with all files, and sources that can be built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from nano3.kernels.cpu.native import _file

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "nano3", "kernels", "presets")
SETUP = [sys.executable, "-c", "from setuptools import setup; setup()", "-q"]
PLATFORM = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
BUILT = Path("build", f"lib.{PLATFORM}", "nano3", "kernels", "cpu", "_native.so")
"""Where setuptools leaves the library."""
ON_LINUX_X86 = sys.platform == "linux" and os.uname().machine == "x86_64"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what is built, without what is compiled."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(checkout: Path, *words: str, **settings: str) -> Path:
    """What a command of setuptools leaves in dist/."""
    environment = os.environ | settings
    done = subprocess.run([*SETUP, *words], cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = (checkout / "dist").iterdir()
    return result


def installed(path: Path) -> str:
    """Where a file of the checkout goes."""
    return str(path if path.parts[0] == "nano3" else Path("nano3") / path)


def test_without_the_library_a_wheel_is_for_any_platform_and_has_every_file(checkout):
    wheel = build(checkout, "bdist_wheel", NANO3_PURE_WHEEL="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [
        path.relative_to(checkout) for top in ("nano3", "kernels", "presets") for path in (checkout / top).rglob("*")
    ]
    compiled = Path("kernels", "cpu", "src")
    wanted = {installed(f) for f in files if (checkout / f).is_file() and compiled not in f.parents}
    assert wanted - names == set()
    assert not any(name.endswith(".so") or "/src/" in name for name in names)


def test_a_library_of_an_earlier_build_is_in_no_wheel_for_any_platform(checkout):
    for at in (checkout / BUILT, checkout / "kernels/cpu/_native.so"):
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(b"an earlier library")
    wheel = build(checkout, "bdist_wheel", NANO3_PURE_WHEEL="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")] == []


def test_a_library_older_than_its_sources_is_not_packed_where_it_cannot_be_compiled_again(checkout):
    old = checkout / BUILT
    old.parent.mkdir(parents=True)
    old.write_bytes(b"an earlier library")
    os.utime(old, (0, 0))
    wheel = build(checkout, "bdist_wheel", CC="false", CXX="false")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")] == []


@pytest.mark.skipif(not ON_LINUX_X86 or _file() is None, reason="no C++ kernels on this machine")
def test_with_the_library_a_wheel_is_for_this_platform_and_every_python(checkout):
    # setuptools compiles only what is older than its sources.
    (checkout / BUILT).parent.mkdir(parents=True)
    shutil.copyfile(_file(), checkout / BUILT)
    wheel = build(checkout, "bdist_wheel")
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    libraries = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    assert libraries == ["nano3/kernels/cpu/_native.so"]


def test_the_source_distribution_has_all_that_is_compiled(checkout):
    sdist = build(checkout, "sdist")
    with tarfile.open(sdist) as archive:
        names = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    found = (checkout / "kernels" / "cpu" / "src").rglob("*")
    sources = {path.relative_to(checkout) for path in found if path.is_file() and path.suffix != ".pyc"}
    assert len(sources) > 40
    assert sources - names == set()


def runs(python: str) -> bool:
    """Whether this Python is one, not pyenv's word that it is not chosen here."""
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not ON_LINUX_X86 or shutil.which("g++") is None, reason="needs g++ on Linux on x86-64")
def test_the_source_distribution_compiles_to_a_library_that_loads_in_any_python(checkout, tmp_path):
    sdist = build(checkout, "sdist")
    # That it compiles with optimization, in minutes, was seen when nano3 was installed for these tests.
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')
    compiler.chmod(0o755)
    environment = os.environ | {"CC": str(compiler), "CXX": str(compiler)}
    command = [sys.executable, "-m", "pip", "wheel", str(sdist), "--no-deps", "--wheel-dir", str(tmp_path / "wheels")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    zipfile.ZipFile(wheel).extract("nano3/kernels/cpu/_native.so", tmp_path)
    code = f"import ctypes; print(ctypes.CDLL({str(tmp_path / 'nano3/kernels/cpu/_native.so')!r}).nano3_abi())"
    pythons = [sys.executable, *(found for v in range(11, 16) if (found := shutil.which(f"python3.{v}")))]
    for python in filter(runs, pythons):
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
