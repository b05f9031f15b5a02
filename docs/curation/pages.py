"""What `render` keeps of the code of real pages, what `warc` finds in a damaged file, and how fast both are.

apt-get download maxima-doc sqlite3-doc bash-doc
for package in *-doc_*.deb; do dpkg-deb -x $package pages; done
python docs/curation/pages.py pages

Times are CPU time of one process and of the programs that it starts.
"""

import argparse
import gzip
import random
import re
import shutil
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from common import cpu_seconds, machine
from datatrove.data import Document
from lxml import html as lxml_html

from nano3.curate.inputs import file_unit
from nano3.curate.step import Context, Step
from nano3.curate.steps.render import Render, RenderSettings
from nano3.curate.steps.warc import Warc, WarcSettings

BLOCKS = ("pre", "textarea", "listing", "xmp")
UNSEEN = ("script", "style", "noscript", "template", "svg", "iframe", "object", "canvas")
Page = tuple[str, str]
"""Name and HTML."""


def main() -> None:
    """Measure and print both parts."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folders", nargs="+", type=Path, help="with .html files below them")
    asked.add_argument("--count", type=int, default=300, help="pages to render")
    asked.add_argument("--records", type=int, default=2000, help="of the WARC file; where there are fewer pages, again")
    asked.add_argument("--damaged", type=int, default=25, help="records with false bytes")
    asked.add_argument("--rounds", type=int, default=3, help="of what is timed; the median counts")
    asked.add_argument("--seed", type=int, default=0, help="draws the pages and the damage")
    options = asked.parse_args()
    rng = random.Random(options.seed)
    files = list(html_files(options.folders))
    if not files:
        asked.error("no .html file in these folders; see --help for where to find some")
    pages = [(path.as_posix(), path.read_text("utf-8", "replace")) for path in files]
    print(machine())
    render(rng.sample(pages, min(options.count, len(pages))), options.rounds)
    warc([pages[i % len(pages)] for i in range(options.records)], options.damaged, options.rounds, rng)


def html_files(folders: Iterable[Path]) -> Iterator[Path]:
    """HTML files below some folders, in order; links count once, as what they point to."""
    for folder in folders:
        yield from sorted(path for path in folder.rglob("*.html") if path.is_file() and not path.is_symlink())


def run(step: Step, documents: Iterable[Document] | None, rounds: int) -> tuple[list[Document], dict[str, int], float]:
    """What a step lets through, what it drops by reason, and the median of its CPU seconds."""
    rows, seconds, found = None if documents is None else [(one.text, one.id) for one in documents], [], []
    for _ in range(rounds):
        given = None if rows is None else (Document(text, name) for text, name in rows)
        found.clear()
        seconds.append(cpu_seconds(lambda given=given: found.extend(step.run(given))))
    dropped = {reason: one.size.documents for reason, one in step.ledger.account.dropped.items()}
    return found, dropped, statistics.median(seconds)


def render(pages: list[Page], rounds: int) -> None:
    """Code blocks of the pages as a parser reads them, against the fences of the rendered text."""
    print(f"\n{len(pages)} pages of {sum(len(html.encode()) for _, html in pages) / len(pages):,.0f} bytes\n")
    print("| tool | code blocks | equal byte for byte, in order | pages/s | dropped |\n|---|---|---|---|---|")
    for tool in ("lynx", "resiliparse") if shutil.which("lynx") else ("resiliparse",):
        with tempfile.TemporaryDirectory() as folder:
            step = Render(RenderSettings(tool), Context("render", Path(folder), 1))
            found, dropped, seconds = run(step, [Document(html, name) for name, html in pages], rounds)
        texts = {document.id: document.text for document in found}
        wanted = [(code_blocks(html), fences(texts[name])) for name, html in pages if name in texts]
        equal = sum(one == other for own, given in wanted for one, other in zip(own, given, strict=False))
        blocks = sum(len(own) for own, _ in wanted)
        print(f"| {tool} | {blocks:,} | {equal:,} | {len(pages) / seconds:,.0f} | {reasons(dropped)} |")


def code_blocks(html: str) -> list[str]:
    """Text of the outermost blocks of a page that hold more than digits, as lxml reads them."""
    tree = lxml_html.fromstring(html.encode(), parser=lxml_html.HTMLParser(encoding="utf-8", huge_tree=True))
    found = []
    for element in tree.iter(*BLOCKS):
        if any(above.tag in (*BLOCKS, *UNSEEN) for above in element.iterancestors()):
            continue
        for line_break in element.iter("br"):
            line_break.text = "\n"
        text = element.text_content().removeprefix("\n")
        if re.sub(r"[\d\s]", "", text):
            found.append(text if text.endswith("\n") else text + "\n")
    return found


def fences(text: str) -> list[str]:
    """What stands between the fences of a text."""
    found: list[str] = []
    fence = ""
    for line in re.findall(r"[^\n]*\n", text):
        if not fence and (opened := re.match(r"(`{3,})[\w+#-]*\n", line)):
            fence = opened[1]
            found.append("")
        elif fence and line.rstrip("\n") == fence:
            fence = ""
        elif fence:
            found[-1] += line
    return found


def warc(pages: list[Page], damaged: int, rounds: int, rng: random.Random) -> None:
    """A file with records of false bytes and a cut end, and what the reader finds in it."""
    records = [record(*page) for page in pages]
    for i in rng.sample(range(len(records) - 1), min(damaged, len(records) - 1)):
        at = rng.randrange(len(records[i]) // 4, len(records[i]) // 2)
        records[i] = records[i][:at] + bytes(byte ^ 0x5A for byte in records[i][at : at + 20]) + records[i][at + 20 :]
    records[-1] = records[-1][: len(records[-1]) // 2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pages.warc.gz")
        path.write_bytes(b"".join(records))
        step = Warc(WarcSettings(), Context("warc", Path(folder), 1), [[file_unit(path)]])
        found, dropped, seconds = run(step, None, rounds)
        size = path.stat().st_size / 1e6
    print(
        f"\n{len(records):,} records ({size:.1f} MB), {damaged} with false bytes, the last one cut: "
        f"{len(found):,} found, {sum(dropped.values())} counted as bad ({reasons(dropped)}), "
        f"{len(records) / seconds:,.0f} records/s"
    )


def record(name: str, html: str) -> bytes:
    """A page as a member of a WARC file."""
    body = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + html.encode()
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:{len(html)}>\r\nWARC-Target-URI: file:{name}\r\n"
    head += f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(body)}\r\n\r\n"
    return gzip.compress(head.encode() + body + b"\r\n\r\n", 6, mtime=0)


def reasons(dropped: dict[str, int]) -> str:
    """Numbers by reason, in a line."""
    return ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "0"


if __name__ == "__main__":
    main()
