"""How nano3 was installed: the command that adds an extra to it, and which nano3 runs."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

CHECKOUT = Path(__file__).resolve().parents[1]


def install_command(extra: str) -> str:
    """The command that adds an extra to this nano3: from where it came (a checkout, a repository or the registry), by
    what installed it (pip, uv or pipx).

    A checkout is written `.` where it is the current folder.
    """
    record = _direct_url()
    url, editable = str(record.get("url", "")), bool(record.get("dir_info", {}).get("editable"))
    install = _installer()
    if "vcs_info" in record:
        return f"{install} 'nano3[{extra}] @ {record['vcs_info'].get('vcs', 'git')}+{url}'"
    folder = Path(unquote(urlparse(url).path)) if url.startswith("file:") else CHECKOUT
    if not (folder / "pyproject.toml").is_file():
        return f"{install} 'nano3[{extra}]'"
    path = "." if folder.resolve() == Path.cwd() else str(folder)
    return f"{install} {'-e ' if editable else ''}{_quoted(f'{path}[{extra}]')}"


def _installer() -> str:
    """What installs packages beside this nano3: environments of pipx and of `uv tool` have no pip of their own."""
    parts = Path(sys.prefix).parts[-3:]
    if parts[:2] == ("pipx", "venvs"):
        return f"pipx runpip {parts[-1]} install"
    if parts[:2] == ("uv", "tools"):
        return f"uv pip install --python {_quoted(sys.prefix)}"
    return "uv pip install" if _record("INSTALLER").strip() == "uv" else "pip install"


def _record(name: str) -> str:
    """A file of the installed package's metadata; empty where there is none."""
    try:
        return distribution("nano3").read_text(name) or ""
    except PackageNotFoundError:
        return ""


def _direct_url() -> dict[str, Any]:
    """What pip wrote down of an installation that is from no registry (PEP 610)."""
    try:
        record = json.loads(_record("direct_url.json") or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def module_command(module: str) -> list[str]:
    """Command that runs the module's `main` in a process with this nano3, whatever lies in the current folder.

    `python -m` would look there first, and PYTHONPATH may name another; of a folder that Python does not search by
    itself (a checkout) the path is handed on.
    """
    own = str(CHECKOUT)
    code = f"import sys; own = {own!r}; own in sys.path or sys.path.insert(0, own); from {module} import main; main()"
    return [sys.executable, "-P", "-c", code]


def which_nano3() -> str:
    """Version and folder of the nano3 that runs; and that it is not the one in the current folder, where that holds
    another."""
    from nano3 import __version__

    own = Path(__file__).resolve().parent
    here = Path.cwd() / "nano3"
    other = "; the nano3 in the current folder is another one" if _is_package(here) and here.resolve() != own else ""
    return f"nano3 {__version__} in {own}{other}"


def which_kernels() -> str:
    """Which kernels this process computes with on the CPU; it loads torch."""
    from nano3.kernels.cpu.native import native

    found = native()
    return f"C++ kernels ({found.isa})" if found.library is not None else f"no C++ kernels: {found.reason}"


def _is_package(folder: Path) -> bool:
    return (folder / "__init__.py").is_file()
