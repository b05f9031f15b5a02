"""Plain text of the pages of a WARC file, for claim.sh: by trafilatura or resiliparse, all pages, nothing filtered.

python docs/curation/claim_extract.py pages.warc.gz trafilatura --out trafilatura.jsonl

Needs fastwarc, resiliparse and trafilatura, and nothing of nano3: it runs in an environment of its own.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path


def trafilatura(html: str) -> str:
    """As datatrove 0.10.1 calls it by default."""
    from trafilatura import extract

    return extract(html, favor_precision=True, include_comments=False, deduplicate=True) or ""


def trafilatura_recall(html: str) -> str:
    """With what keeps more, and marks of code."""
    from trafilatura import extract

    return extract(html, favor_recall=True, include_comments=False, include_formatting=True) or ""


def resiliparse(html: str) -> str:
    """All that a page shows."""
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(html)


TOOLS: dict[str, Callable[[str], str]] = {
    "trafilatura": trafilatura,
    "trafilatura-recall": trafilatura_recall,
    "resiliparse": resiliparse,
}


def main() -> None:
    """Extract, write and count."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("warc", type=Path)
    asked.add_argument("tool", choices=list(TOOLS))
    asked.add_argument("--out", type=Path, required=True)
    options = asked.parse_args()
    rows = [(url, TOOLS[options.tool](html)) for url, html in pages(options.warc)]
    kept = [{"url": url, "text": text} for url, text in rows if text.strip()]
    options.out.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    size = sum(len(row["text"].encode()) for row in kept) / 1e6
    print(f"{options.tool}: {len(kept):,} of {len(rows):,} pages have text, {size:.1f} MB")


def pages(path: Path) -> Iterator[tuple[str, str]]:
    """Address and HTML of each record."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    with path.open("rb") as stream:
        for record in ArchiveIterator(stream, record_types=WarcRecordType.response):
            yield record.headers["WARC-Target-URI"], record.reader.read().decode("utf-8", "replace")


if __name__ == "__main__":
    main()
