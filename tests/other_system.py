"""Runs nano3 as on a system that is not Linux: `python other_system.py WORDS...` is `nano3 WORDS...`, and `--modules`
imports every module of nano3 and prints those that fail.

For nano3's own files there are no Unix modules, no /proc, no C library of the process itself; for all there is no
`os.sched_getaffinity`, and asyncio catches no signals. Other packages keep what they need on this system.
"""

from __future__ import annotations

import asyncio
import builtins
import ctypes
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).resolve().parents[1]) + os.sep
OWN = tuple(ROOT + name + os.sep for name in ("nano3", "kernels", "presets"))
UNIX = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog", "posix"}
UNIX_FILES = ("/proc/", "/sys/", "/dev/")
LINUX_BY_NATURE = "nano3.sandbox."
"""Bubblewrap is Linux's."""
STANDARD = (os.sep + "pathlib", "<frozen ")


def hide_unix() -> None:
    """Take away what other systems lack."""
    real_import, real_library = builtins.__import__, ctypes.CDLL

    def own_import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if level == 0 and name in UNIX and str((globals or {}).get("__file__")).startswith(OWN):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, globals, locals, fromlist, level)

    def library(name: Any, *arguments: Any, **options: Any) -> Any:
        if name is None and _caller().startswith(OWN):
            raise TypeError("argument of type 'NoneType' is not iterable")
        return real_library(name, *arguments, **options)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(UNIX_FILES) and _caller().startswith(OWN):
            raise FileNotFoundError(2, "No such file or directory", arguments[0])

    def no_signals(*_: Any) -> None:
        raise NotImplementedError

    builtins.__import__, ctypes.CDLL = own_import, library  # type: ignore[assignment, misc]
    sys.addaudithook(watch)
    asyncio.SelectorEventLoop.add_signal_handler = no_signals  # type: ignore[assignment, method-assign]
    del os.sched_getaffinity


def _caller() -> str:
    """File of the nearest caller outside of this one and of the standard library's ways to open a file."""
    frame = sys._getframe(1)
    while frame and (frame.f_code.co_filename == __file__ or any(s in frame.f_code.co_filename for s in STANDARD)):
        frame = frame.f_back
    return frame.f_code.co_filename if frame else ""


def modules() -> list[str]:
    """Names of all modules of nano3 but `__main__`, which runs something, and those that are Linux's by nature."""
    folders = {
        "nano3": Path(ROOT, "nano3"),
        "nano3.kernels": Path(ROOT, "kernels"),
        "nano3.presets": Path(ROOT, "presets"),
    }
    files = [
        (name, path.relative_to(folder))
        for name, folder in folders.items()
        for path in folder.rglob("*.py")
        if (path.parent / "__init__.py").exists()
    ]
    names = {".".join([name, *path.with_suffix("").parts]).removesuffix(".__init__") for name, path in files}
    return sorted(name for name in names if not name.endswith("__main__") and LINUX_BY_NATURE not in name)


def failing_modules() -> dict[str, str]:
    """Modules that cannot be imported -> why."""
    failed = {}
    for name in modules():
        try:
            importlib.import_module(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return failed


if __name__ == "__main__":
    hide_unix()
    if sys.argv[1:] == ["--modules"]:
        print(json.dumps(failing_modules()))
    else:
        from nano3.cli.app import main

        main()
