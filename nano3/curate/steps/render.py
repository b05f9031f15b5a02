"""Pages to text, by Lynx or resiliparse; code and equations go round the program and come out as they were."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datatrove.data import Document

from nano3.config.checks import check
from nano3.curate.step import Context, Step
from nano3.curate.steps.limits import run_limited
from nano3.curate.steps.page_parts import take_out

LYNX = (
    "lynx", "-cfg=lynx.cfg", "-dump", "-stdin", "-force_html", "-nolist", "-nonumbers", "-nomargins", "-width=1000",
    "-assume_charset=utf-8", "-display_charset=utf-8", "-localhost", "-noreferer", "-restrictions=all",
)  # fmt: skip

LYNX_CONFIGURATION = """\
GLOBAL_EXTENSION_MAP:/dev/null
PERSONAL_EXTENSION_MAP:/dev/null
GLOBAL_MAILCAP:/dev/null
PERSONAL_MAILCAP:/dev/null
MINIMAL_COMMENTS:TRUE
NESTED_TABLES:FALSE
"""
"""In place of the machine's own: the lists of file types alone take Lynx longer to read than most pages take."""


@dataclass(frozen=True)
class RenderSettings:
    """Settings of `render`."""

    tool: Literal["lynx", "resiliparse"] = "lynx"
    """`lynx` (the report's), where it is installed; else, and for pages that it fails on, `resiliparse`."""
    timeout: float = 20.0
    """Seconds for a page."""

    def __post_init__(self) -> None:
        check("render", self, ">", 0, "timeout")


class Render(Step):
    """Turns HTML into text: code blocks as fences, byte for byte; equations as LaTeX; the rest as the tool lays it out.

    Dropped: what is no HTML, pages of which a block got lost, and those without text.
    """

    Settings = RenderSettings

    def __init__(self, settings: Any, context: Context) -> None:
        """A renderer with the tool of the settings, if it is there."""
        super().__init__(settings, context)
        self._lynx = settings.tool == "lynx" and shutil.which("lynx") is not None

    def check(self, document: Document) -> str:
        """Why a page is dropped; empty: it is kept, and its text is what was rendered."""
        try:
            parts = take_out(document.text)
        except Exception:  # whatever lxml says of a page of a crawl: it ends no run
            parts = None
        if parts is None:
            return "not HTML that can be parsed"
        text = parts.restored(lynx_text(parts.html(), self.settings.timeout)) if self._lynx else None
        tool = "lynx"
        if text is None:
            tool, text = "resiliparse", parts.restored(resiliparse_text(parts.html(for_lynx=False)))
        if text is None:
            return "code or equations lost"
        if not text.strip():
            return "no text in the page"
        why = {"lynx": " (lynx failed)" if self._lynx else " (lynx is not installed)"}.get(self.settings.tool, "")
        self.note(f"pages by {tool}{why if tool == 'resiliparse' else ''}")
        for what, n in parts.notes.items():
            self.note(what, n)
        document.text = text
        document.metadata["rendered_by"] = tool
        return ""


def lynx_text(html: str, timeout: float) -> str:
    """What Lynx makes of a page; empty where it fails. It reads no file and asks no server."""
    with tempfile.TemporaryDirectory() as home:
        Path(home, "lynx.cfg").write_text(LYNX_CONFIGURATION, "utf-8")
        environment = {
            "HOME": home, "TMPDIR": home, "PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "TERM": "dumb",
        }  # fmt: skip
        try:
            status, output = run_limited(LYNX, home, timeout, html.encode("utf-8"), environment)
        except (subprocess.TimeoutExpired, OSError):
            return ""
    return output.decode("utf-8", "replace") if status == 0 else ""


def resiliparse_text(html: str) -> str:
    """What resiliparse makes of a page."""
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(html, preserve_formatting=True, alt_texts=False)
