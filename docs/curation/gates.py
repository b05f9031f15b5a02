"""What the gates of code cost: C++ by g++, Python by Pylint. Files a second of CPU, of one worker.

python docs/curation/gates.py

C++: programs of 30 functions that use the standard library, made by a seeded draw, with five headers or the one of all;
what programs begin with the gate compiles once. Python: the standard library's files of 800 to 20,000 characters.
"""

import argparse
import random
import tempfile
from pathlib import Path

from common import cpu_seconds, machine, texts
from datatrove.data import Document

from nano3.curate.step import Context, Step
from nano3.curate.steps.cpp import Cpp, CppSettings
from nano3.curate.steps.pylint_gate import PylintGate, PylintSettings

HEADERS = "#include <algorithm>\n#include <iostream>\n#include <map>\n#include <string>\n#include <vector>\n"
ALL_HEADERS = "#include <bits/stdc++.h>\n"
FUNCTION = """
std::map<std::string, int> count_{i}(const std::vector<std::string>& words) {{
  std::map<std::string, int> counts;
  for (const auto& word : words) counts[word] += {number};
  return counts;
}}
"""
FUNCTIONS = 30


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--files", type=int, default=20, help="of each language")
    asked.add_argument("--seed", type=int, default=0, help="draws the files")
    options = asked.parse_args()
    rng = random.Random(options.seed)
    print(f"{machine()}\n\n| gate | files | kept | files/s of CPU |\n|---|---|---|---|")
    programs = [
        "".join(FUNCTION.format(i=i, number=rng.randrange(9)) for i in range(FUNCTIONS)) for _ in range(options.files)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, headers in {"five-headers": HEADERS, "all-headers": ALL_HEADERS}.items():
            cpp = Cpp(CppSettings(), Context(f"01-cpp-{name}", Path(folder), 1))
            measure("cpp", cpp, [headers + program for program in programs])
        pylint = PylintGate(PylintSettings(least=-100.0), Context("01-pylint", Path(folder), 1))
        measure("python", pylint, rng.sample(texts(), options.files))


def measure(language: str, step: Step, files: list[str]) -> None:
    """Print a row."""
    documents = [Document(text, f"{i}", metadata={"language": language}) for i, text in enumerate(files)]
    kept: list[Document] = []
    seconds = cpu_seconds(lambda: kept.extend(step.run(iter(documents))))
    print(f"| {step.name[3:]} | {len(files)} | {len(kept)} | {len(files) / seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
