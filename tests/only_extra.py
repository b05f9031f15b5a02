"""Runs Python with what `pip install 'nano3[EXTRA]'` brings, and nothing else: python only_extra.py EXTRA CODE."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def normal(name: str) -> str:
    """A distribution's name as package indexes compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(lines: list[str]) -> set[str]:
    """Every distribution that pip would install for these requirements, from the metadata of those that are here."""
    found: set[tuple[str, str]] = set()
    waiting = [(line, "") for line in lines]
    while waiting:
        requirement = Requirement(waiting[-1][0])
        _, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            key = (normal(requirement.name), wanted)
            if key not in found:
                found.add(key)
                try:
                    waiting += [(line, wanted) for line in requires(requirement.name) or []]
                except PackageNotFoundError:
                    continue
    return {name for name, _ in found}


class Without:
    """A finder of sys.meta_path without the modules that only other distributions than `allowed` bring."""

    def __init__(self, finder: Any, allowed: set[str]) -> None:
        self.finder = finder
        owners = {module: {normal(name) for name in names} for module, names in packages_distributions().items()}
        self.absent = {module for module, names in owners.items() if not names & allowed}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """As the finder's own."""
        return None if name.partition(".")[0] in self.absent else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


if __name__ == "__main__":
    extra, code = sys.argv[1:3]
    allowed = closure([*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]) | {"nano3"}
    for name in [name for name in sys.modules if name.partition(".")[0] == "packaging"]:
        del sys.modules[name]
    sys.meta_path[:] = [Without(finder, allowed) for finder in sys.meta_path]
    sys.path[0] = str(Path(__file__).parents[1])
    sys.argv = ["nano3", *sys.argv[3:]]
    exec(code, {"__name__": "__main__"})
