"""How the C++ library is compiled and packed; pyproject.toml names these classes. Not part of the installed package.

The library has a plain C interface and is loaded by ctypes, so one file, and one wheel, serves every version of Python:
`nano3-*-py3-none-linux_x86_64.whl`. Where there is none (another system or processor, no compiler, or NANO3_PURE_WHEEL
set) the wheel is `py3-none-any`, and PyTorch does the work.
"""

from __future__ import annotations

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

LIBRARY = Path("nano3", "kernels", "cpu", "_native.so")
SOURCES = Path("kernels", "cpu", "src")
PURE = "NANO3_PURE_WHEEL"
"""Set: no library is compiled."""


def no_library_because() -> str:
    """Why no library is compiled here; empty: one is."""
    if os.environ.get(PURE):
        return f"{PURE} is set"
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"they are for Linux on x86-64, not {sys.platform} on {platform.machine()}"
    return ""


class BuildLibrary(build_ext):
    """Compiles the library under a name without a version of Python in it."""

    def finalize_options(self) -> None:
        super().finalize_options()
        for extension in self.extensions:
            extension.depends = [str(path) for path in _sources()]

    def run(self) -> None:
        why = no_library_because()
        if why:
            self.announce(f"the C++ kernels are left out: {why}", level=2)
            self.extensions = []
        self._remove_old(Path(self.build_lib, LIBRARY), bool(why))
        super().run()

    def _remove_old(self, built: Path, always: bool) -> None:
        """Remove the library of an earlier build where this one takes none, or may fail to make another."""
        changed = max(path.stat().st_mtime for path in _sources())
        if built.is_file() and (always or built.stat().st_mtime < changed):
            built.unlink()

    def build_extensions(self) -> None:
        """Compile as many sources at a time as there are cores; setuptools takes one after the other."""
        compile_some = self.compiler.compile

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
                done = threads.map(lambda source: compile_some([source], **options), sources)
                return [path for paths in done for path in paths]

        self.compiler.compile = compile_all
        super().build_extensions()

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(LIBRARY.suffix))

    def get_source_files(self) -> list[str]:
        """What a source distribution holds: all that is compiled, and this file."""
        return [str(path) for path in _sources()]


class LibraryWheel(bdist_wheel):
    """A wheel for every version of Python: of this platform with the library in it, of any without."""

    def get_tag(self) -> tuple[str, str, str]:
        built = Path(self.get_finalized_command("build_ext").build_lib) / LIBRARY
        if no_library_because() or not built.is_file():
            return "py3", "none", "any"
        return "py3", "none", super().get_tag()[2]


def _sources() -> list[Path]:
    return sorted(path for path in SOURCES.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
