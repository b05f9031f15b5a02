"""How often `language` names the language of a text: translated manual pages, and code.

for language in de es fr it ja pl pt-br ru zh; do apt-get download manpages-$language; done
apt-get download manpages
for package in manpages*.deb; do dpkg-deb -x $package pages; done
python docs/curation/languages.py pages

A piece is prose of one page, 200 to 1,000 characters. The label is the folder's. What was not translated is left out by
rules that do not ask the step: translations hold English paragraphs, so a piece goes if more than a tenth of its Latin
words are common English ones, or if under a twentieth of its words are common ones of the language (Japanese, Russian,
Chinese: of its letters).
"""

import argparse
import gzip
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common import cpu_seconds, machine

from nano3.curate.steps.language import LanguageSettings, language_of_text, outside_code

FOLDERS = {
    name: {"en": "", "pt": "pt_BR", "zh": "zh_CN"}.get(name, name)
    for name in ("en", "de", "es", "fr", "it", "ja", "pl", "pt", "ru", "zh")
}
"""Folder of manual pages, by language."""
COMMON = {
    "en": "the of and to is in that for are with this be by not it on as or an from",
    "de": "der die das und ist in den von zu mit ein eine nicht auf wird werden für dem des oder im sich als",
    "es": "de la que el en y a los se del las un por con no una para es al lo como o si",
    "fr": "de la le les des et est en du à un une pour que dans par sur ne pas qui ce il si ou se",
    "it": "di che e la il un a in per è una non del le si da con i dei se alla viene o sono",
    "pl": "w i na z do się jest nie że dla o to lub są przez jako od po tego może jeśli za",
    "pt": "de que o a e do da em um para com não uma os no se na por as dos é ou ser",
}
"""Common words."""
LETTERS = {"ja": r"[぀-ヿ]", "ru": r"[Ѐ-ӿ]", "zh": r"[一-鿿]"}
"""Letters that a text of the language has many of; Japanese and Chinese share others."""
SHORTEST, LONGEST = 200, 1000
ENGLISH, OWN, OWN_LETTERS = 0.1, 0.05, 0.05
"""Most common English words among the Latin ones; least share of the language's common words, and of its letters."""
PROGRAMS = (".py", ".js", ".c", ".h", ".cpp", ".java", ".pl", ".sh", ".rs", ".go", ".rb", ".lua", ".css")


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folders", nargs="+", type=Path, help="with usr/share/man below them")
    asked.add_argument("--count", type=int, default=1000, help="pieces of a language")
    asked.add_argument("--seed", type=int, default=0, help="draws them")
    asked.add_argument("--show", type=int, default=0, help="misses of each language to print")
    asked.add_argument("--code", type=Path, help="a folder with programs, to count what they are called")
    options = asked.parse_args()
    least = LanguageSettings().least
    print(machine())
    all_right = all_pieces = 0
    for language in FOLDERS:
        pieces = drawn(options.folders, language, options.count, options.seed)
        found: list[tuple[str, float]] = []
        seconds = cpu_seconds(lambda pieces=pieces, found=found: found.extend(told(piece) for piece in pieces))
        right = sum(name == language for name, _ in found)
        sure = sum(name == language and score >= least for name, score in found)
        other = Counter(name for name, _ in found if name != language).most_common(5)
        all_right, all_pieces = all_right + right, all_pieces + len(pieces)
        share = 100 / max(1, len(pieces))
        shares = f"{right * share:6.2f} % right  {sure * share:6.2f} % with least = {least}"
        rate = f"{len(pieces) / max(seconds, 1e-9):7.0f} a second"
        print(f"{language}  {len(pieces):5} pieces  {shares}  {rate}  {other}")
        misses = [(name, score, piece) for (name, score), piece in zip(found, pieces, strict=True) if name != language]
        for name, score, piece in misses[: options.show]:
            print(f"      {name} {score:.2f}  {piece[:300]!r}")
    print(f"all {all_pieces:5} pieces  {100 * all_right / max(1, all_pieces):6.2f} % right")
    if options.code:
        code(options.code, options.count, options.seed)


def told(piece: str) -> tuple[str, float]:
    """What the step calls a text."""
    return language_of_text(outside_code(piece).strip())


def drawn(folders: list[Path], language: str, count: int, seed: int) -> list[str]:
    """Pieces of a language."""
    man = Path("usr/share/man", FOLDERS[language])
    pages = sorted({page for folder in folders for page in folder.glob(f"**/{man}/man[1-9]/*.gz") if page.is_file()})
    pieces = list(dict.fromkeys(piece for page in pages for piece in prose(page) if is_of(piece, language)))
    return random.Random(seed).sample(pieces, min(count, len(pieces)))


def prose(page: Path) -> Iterator[str]:
    """Pieces of a manual page: paragraphs of sentences, without macros, fonts and lists."""
    try:
        source = gzip.decompress(page.read_bytes()).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError):
        return
    piece = ""
    for paragraph in re.split(r"\n(?:[.'][^\n]*)?(?=\n)|\n[.'][^\n]*", source):
        text = re.sub(r"\\f(?:\[\w*\]|\(..|.)|\\[&/,|^%c:]|\\s[-+]?\d", "", paragraph)
        text = re.sub(r"\\\((?:aq|cq|oq|lq|rq|dq)", "'", text).replace("\\-", "-").replace("\\e", "\\")
        text = " ".join(re.sub(r"\\\(..|\\\[\w*\]|\\\*.|\\.", " ", text).split())
        if len(text) < 60 or not re.search(r"[.。！？!?:：]$", text):
            continue
        piece = f"{piece}\n{text}".strip()
        if len(piece) >= SHORTEST:
            yield piece[:LONGEST]
            piece = ""


def is_of(piece: str, language: str) -> bool:
    """Whether a piece is surely of its page's language."""
    words = re.findall(r"[^\W\d_]+", piece.lower())
    latin = [word for word in words if word.isascii()]
    english = set(COMMON["en"].split()) - set(COMMON.get(language, "").split())  # "in" and "a" are words of several
    if language != "en" and len(latin) > 10 and sum(word in english for word in latin) > ENGLISH * len(latin):
        return False
    if language in LETTERS:
        return len(re.findall(LETTERS[language], piece)) >= OWN_LETTERS * len(piece)
    return sum(word in COMMON[language].split() for word in words) >= OWN * max(1, len(words))


def code(folder: Path, count: int, seed: int) -> None:
    """What programs are called that stand in no fence."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in PROGRAMS and path.is_file())
    texts = [path.read_text("utf-8", "replace") for path in random.Random(seed).sample(files, min(count, len(files)))]
    found = Counter(told(text)[0] for text in texts if len(text) >= SHORTEST)
    print(f"programs  {sum(found.values())}  {found.most_common(8)}")


if __name__ == "__main__":
    sys.exit(main())
