"""Pages, training texts and held-out texts of claim.sh.

python docs/curation/claim_texts.py pages crawled --count 300 --out pages.warc.gz
python docs/curation/claim_texts.py arms FOLDER --heldout heldout
"""

import argparse
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from lxml import html as lxml_html
from pages import html_files, record

from nano3.data.texts.compressed import open_bytes
from nano3.data.tokens.tokenizer import Tokenizer

MOST_PAGE = 300_000
"""Bytes of HTML; larger pages (all of a manual on one) are left out."""
KINDS = {
    "Python": ("python3-", (".py",)),
    "JavaScript": ("node-", (".js", ".mjs", ".cjs")),
    "C++": ("lib", (".h", ".hpp")),
    "Rust": ("librust-", (".rs",)),
    "prose": ("de", (".html",)),
}
"""Of held-out text: how its packages begin, and how its files end."""
SHORTEST, LONGEST, SHARE = 400, 2_500, 75_000
"""Bytes of a held-out text (longer ones are cut), and of all of a kind."""
COMMON = 0.2
"""Share of a held-out text's long lines that may also stand in a training text."""
LINE = 25
"""Characters of a long line."""
VOCABULARY = 2048
MOST = 2_500_000
"""Characters of a training set that are written: several times what is trained on, and prepared in seconds."""


def main() -> None:
    """Make pages, or all else."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = asked.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("pages")
    one.add_argument("crawled", type=Path)
    one.add_argument("--count", type=int, default=300, help="pages of a package at most")
    one.add_argument("--out", type=Path, required=True)
    other = verbs.add_parser("arms")
    other.add_argument("folder", type=Path)
    other.add_argument("--heldout", type=Path, required=True)
    options = asked.parse_args()
    if options.verb == "pages":
        pages(options.crawled, options.count, options.out)
    else:
        arms(options.folder, options.heldout)


def pages(crawled: Path, count: int, out: Path) -> None:
    """A WARC file of so many pages of each package at most, whose name is the host."""
    rng, found, records = random.Random(0), [], []
    for package in sorted(path for path in crawled.iterdir() if path.is_dir()):
        files = [path for path in html_files([package]) if 0 < path.stat().st_size <= MOST_PAGE]
        drawn = rng.sample(files, min(count, len(files)))
        found.append(f"{package.name} {len(drawn)} of {len(files)}")
        records += [(f"//{package.name}/{path.relative_to(package).as_posix()}", path) for path in drawn]
    rng.shuffle(records)
    out.write_bytes(b"".join(record(name, path.read_text("utf-8", "replace")) for name, path in records))
    print(f"{len(records):,} pages: {', '.join(found)}")


def arms(folder: Path, heldout: Path) -> None:
    """Training texts of each arm, the tokenizer, and held-out texts that none of them has."""
    (folder / "arms").mkdir(exist_ok=True)
    found = {"nano3": curated(folder / "kept")}
    for name in ("trafilatura", "trafilatura-recall", "resiliparse"):
        found[name] = dict(rows(folder / f"{name}.jsonl"))
    kept = found["nano3"].keys()
    found["resiliparse-kept"] = {url: text for url, text in found["resiliparse"].items() if url in kept}
    tokenizer = trained([found[name] for name in ("nano3", "trafilatura", "trafilatura-recall", "resiliparse")])
    tokenizer.save(folder / "tokenizer")
    print("| training texts | pages | MB | tokens |\n|---|---|---|---|")
    for name, texts in found.items():
        write(folder / "arms" / f"{name}.jsonl", ({"text": text} for text in first(texts.values(), MOST)))
        n = sum(len(tokenizer.encode(text)) for text in texts.values())
        print(f"| {name} | {len(texts):,} | {sum(len(t.encode()) for t in texts.values()) / 1e6:.2f} | {n:,} |")
    held_out(folder, heldout, found)


def curated(folder: Path) -> dict[str, str]:
    """Texts of a run by the address of their page."""
    found = {}
    for path in sorted((folder / "data").iterdir()):
        with open_bytes(path) as stream:
            for row in map(json.loads, stream):
                found[row["metadata"]["url"]] = row["text"]
    return found


def rows(path: Path) -> Iterator[tuple[str, str]]:
    """Address and text of each line."""
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        yield row["url"], row["text"]


def trained(found: list[dict[str, str]]) -> Tokenizer:
    """A tokenizer from as many characters of each arm: it favours none."""
    share = min(sum(map(len, texts.values())) for texts in found)
    return Tokenizer.train([text for texts in found for text in first(texts.values(), share)], VOCABULARY)


def first(texts: Iterable[str], most: int) -> Iterator[str]:
    """So many characters of some texts."""
    for text in texts:
        if most <= 0:
            return
        yield text[:most]
        most -= len(text)


def held_out(folder: Path, heldout: Path, found: dict[str, dict[str, str]]) -> None:
    """Texts of packages that no page is about, without what is nearly, or by its lines, in a training text."""
    rng = random.Random(1)
    drawn = [row for kind in KINDS for row in candidates(heldout, kind, rng)]
    write(folder / "candidates.jsonl", drawn)
    steps = "".join(f'[[step]]\nuse = "{step}"\n' for step in ("read", "exact-dedup", "near-dedup"))
    (folder / "apart.toml").write_text(steps, "utf-8")
    command = [
        sys.executable,
        "-m",
        "nano3",
        "data",
        "curate",
        "apart.toml",
        "--from",
        "candidates.jsonl",
        "--out",
        "apart",
    ]
    for name in ("nano3", "trafilatura", "trafilatura-recall", "resiliparse"):
        command += ["--against", f"arms/{name}.jsonl"]
    subprocess.run(command, cwd=folder, check=True)
    left = set()
    for path in (folder / "apart" / "data").iterdir():
        with open_bytes(path) as stream:
            left |= {json.loads(line)["id"] for line in stream}
    known = {line for texts in found.values() for text in texts.values() for line in long_lines(text)}
    apart = [row for row in drawn if row["id"] in left and common(row["text"], known) <= COMMON]
    write(folder / "heldout.jsonl", apart)
    print(
        "| held-out | texts drawn | apart from all pages | bytes | long lines also in a page |\n|---|---|---|---|---|"
    )
    for kind in KINDS:
        own = [row["text"] for row in apart if row["kind"] == kind]
        lines = sum((common(text, known) for text in own), 0.0) / max(1, len(own))
        n = sum(row["kind"] == kind for row in drawn)
        print(f"| {kind} | {n} | {len(own)} | {sum(len(t.encode()) for t in own):,} | {100 * lines:.1f} % |")


def candidates(heldout: Path, kind: str, rng: random.Random) -> Iterator[dict[str, str]]:
    """Texts of a kind, as many bytes of each package."""
    begins, ends = KINDS[kind]
    packages = [path for path in sorted(heldout.iterdir()) if path.name.startswith(begins)]
    if kind in ("C++", "prose"):
        packages = [path for path in packages if not path.name.startswith("librust-")]
    for package in packages:
        files = [path for path in sorted(package.rglob("*")) if path.suffix in ends and path.is_file()]
        files = [path for path in files if not path.is_symlink() and is_wanted(path)]
        rng.shuffle(files)
        left = SHARE // len(packages)
        for path in files:
            text = path.read_text("utf-8", "replace")
            text = paragraphs(text) if kind == "prose" else text
            text = text.encode()[:LONGEST].decode("utf-8", "ignore")
            if left > 0 and len(text) >= SHORTEST:
                left -= len(text.encode())
                yield {"id": f"{package.name}/{path.relative_to(package).as_posix()}", "kind": kind, "text": text}


def is_wanted(path: Path) -> bool:
    """Whether a file is written by hand, and in English where it is prose."""
    name = path.as_posix()
    if path.suffix == ".html":
        return "/en-US/" in name or (
            "developers-reference" in name and not re.search(r"/(de|fr|it|ja|ru)/|\.\w\w\.html", name)
        )
    return not re.search(r"\.min\.|/dist/|/locale/|/node_modules/", name)


def paragraphs(html: str) -> str:
    """What stands in a page's paragraphs: prose by any tool's measure."""
    tree = lxml_html.fromstring(html.encode(), parser=lxml_html.HTMLParser(encoding="utf-8"))
    found = (" ".join(element.text_content().split()) for element in tree.iter("p"))
    return "\n\n".join(text for text in found if len(text) > 40)


def long_lines(text: str) -> set[str]:
    """Lines that say something, without white space around them."""
    return {line.strip() for line in text.splitlines() if len(line.strip()) >= LINE}


def common(text: str, known: set[str]) -> float:
    """Share of a text's long lines that are known."""
    own = long_lines(text)
    return len(own & known) / max(1, len(own))


def write(path: Path, found: Iterable[dict[str, str]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")


if __name__ == "__main__":
    main()
