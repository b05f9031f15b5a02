"""What `near-dedup` finds and keeps: planted copies, pages of one template, copies of an existing corpus.

python docs/curation/duplicates.py

Texts are the Python standard library's files of 800 to 20,000 characters. Each part is a run of `nano3 data curate`;
its result is judged by Python's sets of word n-grams, in which nothing is hashed.
"""

import argparse
import random
import re
from collections import Counter
from collections.abc import Sequence

from common import curated, machine, texts

from nano3.curate.steps.dedup.near import NearDedupSettings

SHARES = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05)
"""Of words replaced in copies."""
BANDS = ((1.0, "equal"), (0.9, "0.9 to 1"), (0.8, "0.8 to 0.9"), (0.7, "0.7 to 0.8"), (0.0, "below 0.7"))
NGRAM, VERIFY = NearDedupSettings().ngram, NearDedupSettings().verify
PIPELINE = '[[step]]\nuse = "read"\n[[step]]\nuse = "near-dedup"\n'
TEMPLATES, FRAME, OWN = 500, 130, 75
"""Pages of one template, and words of the template and of each page."""


def main() -> None:
    """Measure and print all parts."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--copies", type=int, default=900, help="planted among the texts")
    asked.add_argument("--seed", type=int, default=0, help="draws copies and words")
    options = asked.parse_args()
    rng, originals = random.Random(options.seed), texts()
    vocabulary = sorted({word for text in originals for word in re.findall(r"[a-z]{4,10}", text)})
    print(machine())
    planted(originals, options.copies, vocabulary, rng)
    template(vocabulary, rng)
    corpus(originals, vocabulary, rng)


def planted(originals: Sequence[str], copies: int, vocabulary: Sequence[str], rng: random.Random) -> None:
    """Copies among their originals, in any order."""
    rows = [(f"text {i}", text, -1) for i, text in enumerate(originals)]
    for i in range(copies):
        number = rng.randrange(len(originals))
        rows.append((f"copy {i}", replaced(originals[number], SHARES[i % len(SHARES)], vocabulary, rng), number))
    rng.shuffle(rows)
    names = curated(PIPELINE, [{"id": name, "text": text} for name, text, _ in rows])
    sets = {name: ngrams(text) for name, text, _ in rows}
    bands = {label: [0, 0] for _, label in BANDS}
    for name, _, number in rows:
        if number >= 0:
            count = bands[band(jaccard(sets[name], sets[f"text {number}"]))]
            count[0] += 1
            count[1] += not {name, f"text {number}"} <= names
    removed = [sets[name] for name in sets if name not in names]
    least = min(nearest(removed, {name: sets[name] for name in names}))
    print(f"\n{len(originals)} texts and {copies} copies of them with 0 to 5 % of the words replaced, in any order\n")
    print("| Jaccard of copy and original | pairs | not both kept | share |\n|---|---|---|---|")
    for label, (n, gone) in bands.items():
        print(f"| {label} | {n} | {gone} | {f'{gone / n:.3f}' if n else '-'} |")
    print(f"\n{len(removed)} removed; least similarity of one of them to the nearest that is kept: {least:.4f}")


def template(vocabulary: Sequence[str], rng: random.Random) -> None:
    """Pages that share a frame, and no more."""
    frame = " ".join(rng.choices(vocabulary, k=FRAME))
    pages = [f"{frame} {' '.join(rng.choices(vocabulary, k=OWN))}" for _ in range(TEMPLATES)]
    names = curated(PIPELINE, [{"id": str(i), "text": page} for i, page in enumerate(pages)])
    similar = [jaccard(ngrams(pages[0]), ngrams(page)) for page in pages[1:]]
    print(
        f"\n{TEMPLATES} pages of one template, Jaccard {min(similar):.2f} to {max(similar):.2f}: {len(names)} kept "
        f"({TEMPLATES - len(names)} lost)"
    )


def corpus(originals: Sequence[str], vocabulary: Sequence[str], rng: random.Random) -> None:
    """Half of the texts are an existing corpus; the other half comes with copies of them."""
    half = len(originals) // 2
    old = {f"old {i}": text for i, text in enumerate(originals[:half])}
    copies = {
        f"copy {i}": replaced(text, rng.choice(SHARES[:3]), vocabulary, rng) for i, text in enumerate(old.values())
    }
    new = {f"new {i}": text for i, text in enumerate(originals[half:])}
    given, existing = ([{"id": name, "text": text} for name, text in table.items()] for table in (copies | new, old))
    names = curated(PIPELINE, given, existing)
    sets = {name: ngrams(text) for name, text in (old | copies | new).items()}
    near = [name for name in copies if jaccard(sets[name], sets[name.replace("copy", "old")]) >= VERIFY]
    lost = [sets[name] for name in new if name not in names]
    kept = {name: sets[name] for name in (*names, *old)}
    print(
        f"\n--against {half} texts: of {len(near)} copies at Jaccard {VERIFY} or more {sum(n in names for n in near)} "
        f"came through; {len(names & set(old))} texts of the corpus in the result; {len(lost)} of {len(new)} others "
        f"removed, the least similar one to what is kept at {min(nearest(lost, kept), default=1.0):.4f}"
    )


def replaced(text: str, share: float, vocabulary: Sequence[str], rng: random.Random) -> str:
    """A text with a share of its words replaced."""
    words = re.split(r"(\s+)", text)
    return "".join(rng.choice(vocabulary) if word.strip() and rng.random() < share else word for word in words)


def ngrams(text: str) -> frozenset[tuple[str, ...]]:
    """All runs of words, as they are."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(zip(*(words[i:] for i in range(NGRAM)), strict=False))


def jaccard(one: frozenset, other: frozenset) -> float:
    """What two sets have in common, as a part of all."""
    return len(one & other) / len(one | other)


def band(similarity: float) -> str:
    """Name of the band of a similarity."""
    return next(label for least, label in BANDS if similarity >= least)


def nearest(removed: Sequence[frozenset], kept: dict[str, frozenset]) -> list[float]:
    """The largest similarity of each removed document to one that is kept."""
    holders: dict[tuple, list[str]] = {}
    for name, own in kept.items():
        for ngram in own:
            holders.setdefault(ngram, []).append(name)
    found = []
    for one in removed:
        shared = Counter(name for ngram in one for name in holders.get(ngram, ()))
        found.append(max((n / (len(one) + len(kept[name]) - n) for name, n in shared.items()), default=0.0))
    return found


if __name__ == "__main__":
    main()
