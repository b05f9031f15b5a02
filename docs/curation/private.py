"""What `redact` takes for personal data or secrets in the Python standard library's sources, and how fast it is.

python docs/curation/private.py            # counts by kind
python docs/curation/private.py --show 200 # and each of them with its surroundings, to be judged by hand
"""

import argparse
from collections import Counter

from common import cpu_seconds, machine

from nano3.curate.steps.redaction.private_data import FINDERS, find_private
from nano3.data.texts.skipped import Skipped
from nano3.data.texts.stdlib_corpus import StandardLibrary

AROUND = 40
"""Characters shown on both sides."""


def main() -> None:
    """Look, count and print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--show", type=int, default=0, help="of each kind")
    options = asked.parse_args()
    documents = [document for document in StandardLibrary().documents(Skipped()) if document is not None]
    found: list = []
    used = cpu_seconds(lambda: found.extend(find_private(document.text, list(FINDERS)) for document in documents))
    counts = Counter(kind for spans in found for _, _, kind in spans)
    size = sum(len(document.text.encode()) for document in documents)
    print(machine())
    print(f"{len(documents):,} files, {size / 1e6:.1f} MB: {size / used / 1e6:.1f} MB/s")
    print(f"{sum(map(bool, found))} files with something found: {dict(counts)}")
    shown: Counter[str] = Counter()
    for document, spans in zip(documents, found, strict=True):
        for begin, end, kind in spans:
            shown[kind] += 1
            if shown[kind] <= options.show:
                print(f"{kind} {document.name}: {document.text[max(0, begin - AROUND) : end + AROUND]!r}")


if __name__ == "__main__":
    main()
