"""The house: small files, small folders, no two files that import each other, and imports that point one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES, MOST_FILES = 400, 20
LAYERS = (
    ("config",),
    ("client", "kernels", "sandbox"),
    ("data", "model"),
    ("parallel",),
    ("engine", "train"),
    ("quantize",),
    ("bench", "rl"),
    ("curate", "eval", "serve"),
    ("chat",),
    ("stages",),
    ("cli",),
)
"""A folder of nano3/ imports only folders of the rows above its own."""


@cache
def sources() -> dict[str, Path]:
    """Every module of the package -> its file."""
    found = {}
    for top, package in (("nano3", "nano3"), ("kernels", "nano3.kernels")):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of the package that a module imports, anywhere in its file: in functions and for types alone too."""
    path = sources()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for base, name in imported(ast.parse(path.read_text("utf-8")), package):
        whole = f"{base}.{name}"
        found.add(whole if whole in sources() else base)
    return frozenset(found & sources().keys() - {module})


def imported(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """(module, name in it) for all import statements of a file of `package`; the name may be a module itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((base, alias.name) for alias in node.names)


def circle(graph: dict[str, frozenset[str]]) -> list[str]:
    """Modules that import each other, each the next one; empty where none do."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def folder(module: str) -> str:
    """The folder of nano3/ that a module lies in: data of nano3.data.texts.readers; "" beside the folders."""
    path = sources()[module]
    return "kernels" if ROOT / "kernels" in path.parents else "".join(path.relative_to(ROOT / "nano3").parts[:-1][:1])


def in_the_machines_encoding(tree: ast.AST) -> list[int]:
    """Lines with calls that read or write text in the encoding of the machine: cp1252 on many Windows."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    open_to_all = [call for call in calls if not {"encoding", None} & {given.arg for given in call.keywords}]
    return [call.lineno for call in open_to_all if is_text(call)]


def is_text(call: ast.Call) -> bool:
    """Whether a call without the keyword `encoding` reads or writes text, and has no encoding by position either."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    match call.func:
        case ast.Name("open") | ast.Attribute(ast.Name("os"), "fdopen"):
            mode = given.get("mode", call.args[1] if len(call.args) > 1 else ast.Constant("r"))
            return not isinstance(mode, ast.Constant) or "b" not in mode.value
        case ast.Attribute(_, "read_text"):
            return not call.args
        case ast.Attribute(_, "write_text"):
            return len(call.args) < 2
        case ast.Attribute(ast.Name("subprocess"), _):
            return bool(given.keys() & {"text", "universal_newlines"})
        case ast.Attribute(owner, "open") if ast.unparse(owner) != "tarfile":  # of a path, if it names a mode
            mode = given.get("mode", call.args[0] if call.args else None)
            return isinstance(mode, ast.Constant) and bool(re.fullmatch(r"[rwax]\+?t?", str(mode.value)))
        case _:
            return False


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import nano3.data.progress", ("nano3.data.progress", "")),
        ("from nano3.model import lm", ("nano3.model", "lm")),
        ("def f():\n    from .. import ops", ("nano3.kernels", "ops")),
        ("if TYPE_CHECKING:\n    from .native import native", ("nano3.kernels.cpu.native", "native")),
    ],
)
def test_every_way_to_import_is_seen(code, found):
    assert list(imported(ast.parse(code), "nano3.kernels.cpu")) == [found]


def test_a_circle_is_found():
    graph = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a"), "d": frozenset("a")}
    assert set(circle(graph)) == {"a", "b", "c"}


def test_no_files_import_each_other():
    # nano3 itself gives out what lies below it, and its version to what lies there.
    assert circle({module: imports(module) - {"nano3"} for module in sources()}) == []


def test_imports_point_one_way():
    height = {name: row for row, names in enumerate(LAYERS) for name in names}
    wrong = [
        f"{module} imports {other}"
        for module in sources()
        for other in imports(module)
        if folder(module) and folder(other) not in ("", folder(module))
        if height[folder(other)] >= height[folder(module)]
    ]
    assert wrong == []


def test_kernels_import_nothing_of_nano3():
    kernels = [module for module in sources() if folder(module) == "kernels"]
    wrong = {module: others for module in kernels if (others := {o for o in imports(module) if folder(o) != "kernels"})}
    assert wrong == {}


def test_files_are_short():
    lines = {path: path.read_text("utf-8").count("\n") for path in sources().values()}
    assert [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lines.items() if n > MOST_LINES] == []


def test_folders_hold_few_files():
    folders = [path.parent for path in sources().values()]
    crowded = {str(f.relative_to(ROOT)): folders.count(f) for f in set(folders) if folders.count(f) > MOST_FILES}
    assert crowded == {}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("open(path)", [1]),
        ("open(path, mode)", [1]),
        ("open(path, 'rb'), open(path, encoding='utf-8'), os.open(path, os.O_RDONLY)", []),
        ("os.fdopen(1, 'w'), os.fdopen(1, mode='wb')", [1]),
        ("path.read_text(), path.read_text('utf-8'), path.read_text(errors='replace')", [1, 1]),
        ("path.write_text(text), path.write_text(text, 'utf-8')", [1]),
        ("path.open('w'), path.open('wb'), target.open(), path.open(mode='r+')", [1, 1]),
        ("subprocess.run(command, text=True), subprocess.run(command)", [1]),
    ],
)
def test_text_in_the_machines_encoding_is_seen(code, found):
    assert in_the_machines_encoding(ast.parse(code)) == found


def test_text_is_read_and_written_as_utf_8():
    helpers = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_")]
    files = [*sources().values(), *(ROOT / "docs").rglob("*.py"), *helpers]
    lines = {path.relative_to(ROOT): in_the_machines_encoding(ast.parse(path.read_text("utf-8"))) for path in files}
    assert {str(path): found for path, found in lines.items() if found} == {}


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_what_a_page_names_is_there(page):
    text = (ROOT / page).read_text("utf-8")
    paths = re.findall(r"(?<![\w./-])(?:nano3|kernels|tests|presets|docs|completions)/[\w./-]*\w", text)
    assert [path for path in paths if not (ROOT / path).exists() and not (ROOT / "docs" / path).exists()] == []
    assert [module for module in re.findall(r"python -m (nano3[\w.]*\w)", text) if module not in sources()] == []
