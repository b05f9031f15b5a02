"""How nano3 was installed: the command that adds an extra to it, and which nano3 runs."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

CHECKOUT = Path(__file__).resolve().parents[1]


def install_command(extra: str) -> str:
    """The pip command that adds an extra to this nano3, from where it came: a checkout, a repository or the registry.

    A checkout is written `.` where it is the current folder.
    """
    record = _direct_url()
    url, editable = str(record.get("url", "")), bool(record.get("dir_info", {}).get("editable"))
    if "vcs_info" in record:
        return f"pip install 'nano3[{extra}] @ {record['vcs_info'].get('vcs', 'git')}+{url}'"
    folder = Path(unquote(urlparse(url).path)) if url.startswith("file:") else CHECKOUT
    if not (folder / "pyproject.toml").is_file():
        return f"pip install 'nano3[{extra}]'"
    path = "." if folder.resolve() == Path.cwd() else str(folder)
    return f"pip install {'-e ' if editable else ''}{_quoted(f'{path}[{extra}]')}"


def _direct_url() -> dict[str, Any]:
    """What pip wrote down of an installation that is from no registry (PEP 610)."""
    try:
        record = json.loads(distribution("nano3").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
