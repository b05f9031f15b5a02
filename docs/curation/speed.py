"""What `near-dedup` costs: signatures beside datatrove's own stage, and the memory of a large corpus.

python docs/curation/speed.py                    # datatrove's own words need spaCy: pip install spacy
python docs/curation/speed.py --megabytes 1000   # and a whole run over so much text, made of lines of the texts

Texts are the Python standard library's files of 800 to 20,000 characters. Times are CPU time of one process.
"""

import argparse
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import cpu_seconds, machine, texts, write_rows
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.utils.word_tokenizers import WordTokenizer

from nano3.curate.catalog import is_importable
from nano3.curate.steps.dedup.near import NearDedupSettings, Signatures

FILES, LINES = 16, 120
"""Files of the large corpus, and lines of each of its documents."""


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=3, help="of each stage, in turn; the median counts")
    asked.add_argument("--megabytes", type=int, default=0, help="of a corpus for a whole run; 0: none")
    asked.add_argument("--seed", type=int, default=0, help="draws its lines")
    options = asked.parse_args()
    print(machine())
    if options.megabytes:
        large(options.megabytes, random.Random(options.seed))
    else:
        signatures(options.rounds)


class RegexWords(WordTokenizer):
    """Words by a regular expression, in place of those of spaCy, for datatrove's stage."""

    def word_tokenize(self, text: str) -> list[str]:
        """Words of a text."""
        return re.findall(r"\w+", text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Not asked for."""
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Not asked for."""
        raise NotImplementedError


def signatures(rounds: int) -> None:
    """Both stages over the same texts, in turn, with as many hashes."""
    settings = NearDedupSettings()
    makers: dict[str, Callable[[str], Any]] = {
        "nano3": lambda folder: Signatures(Path(folder), settings),
        "datatrove, words by a regular expression": lambda folder: MinhashDedupSignature(
            folder,
            settings.minhash,
            language=RegexWords(),  # type: ignore[arg-type]
        ),
    }
    if is_importable("spacy"):
        makers["datatrove, words by spaCy (its default)"] = lambda folder: MinhashDedupSignature(
            folder, settings.minhash
        )
    rows = texts()
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds + 1):
        for name, make in makers.items():
            with tempfile.TemporaryDirectory() as folder:
                stage, documents = make(folder), [Document(text, str(i)) for i, text in enumerate(rows)]
                seconds[name].append(cpu_seconds(lambda s=stage, d=documents: s.run(iter(d))))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first round loads
    n, size = len(rows), sum(len(text.encode()) for text in rows)
    print(f"\n{n} texts of {size / n:,.0f} bytes, {settings.buckets} x {settings.rows} hashes\n")
    print("| stage | documents/s | MB/s | time of nano3's |\n|---|---|---|---|")
    for name, own in medians.items():
        print(f"| {name} | {n / own:,.0f} | {size / own / 1e6:.1f} | {own / medians['nano3']:.1f} times |")


def large(megabytes: int, rng: random.Random) -> None:
    """Exact and near-duplicates of a large corpus, in one process."""
    lines = [line for text in texts() for line in text.splitlines() if line.strip()]
    with tempfile.TemporaryDirectory() as name:
        folder, number = Path(name), 0
        (folder / "in").mkdir()
        for i in range(FILES):
            rows, size = [], 0
            while size < megabytes * 1e6 / FILES:
                text = "\n".join(rng.choices(lines, k=LINES))
                rows.append({"id": f"{i}-{number}", "text": text})
                size, number = size + len(text.encode()), number + 1
            write_rows(folder / "in" / f"{i}.jsonl", rows)
        (folder / "own.toml").write_text(
            "".join(f'[[step]]\nuse = "{s}"\n' for s in ("read", "exact-dedup", "near-dedup")), "utf-8"
        )
        command = [sys.executable, "-m", "nano3", "data", "curate", "own.toml", "--from", "in", "--workers", "1"]
        used = cpu_seconds(lambda: subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL))
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\n{number:,} documents, {megabytes:,} MB: {used:,.0f} s of CPU, {most:.2f} GiB at most")


if __name__ == "__main__":
    main()
