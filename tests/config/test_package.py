"""What pyproject.toml installs is what lies on disk."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def folders(top, package):
    """Packages with code; what only builds the wheel needs no place in it."""
    builders = {command.rpartition(".")[0] for command in SETUPTOOLS["cmdclass"].values()}
    found = {package}
    for path in top.rglob("*.py"):
        parts = path.parent.relative_to(top).parts
        folder = ".".join([package, *parts])
        if "__pycache__" not in parts and f"{folder}.{path.stem}" not in builders:
            found.add(folder)
    return found


def test_every_folder_with_code_is_installed():
    mapped = SETUPTOOLS["package-dir"]
    found = set().union(*(folders(ROOT / folder, package) for package, folder in mapped.items()))
    assert set(SETUPTOOLS["packages"]) == found


def test_every_package_has_an_init():
    mapped = sorted(SETUPTOOLS["package-dir"].items(), key=lambda item: -len(item[0]))
    for package in SETUPTOOLS["packages"]:
        top, folder = next((t, f) for t, f in mapped if package == t or package.startswith(f"{t}."))
        rest = package.removeprefix(top).strip(".").split(".")
        assert (ROOT / folder).joinpath(*filter(None, rest), "__init__.py").is_file(), package


def test_every_preset_is_package_data():
    patterns = SETUPTOOLS["package-data"]["nano3.presets"]
    installed = {path for pattern in patterns for path in (ROOT / "presets").glob(pattern)}
    files = {path for path in (ROOT / "presets").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert installed == files


def test_every_file_of_the_pages_is_package_data():
    serve = ROOT / "nano3" / "serve"
    installed = {path for pattern in SETUPTOOLS["package-data"]["nano3.serve"] for path in serve.glob(pattern)}
    assert {path for path in (serve / "page").rglob("*") if path.is_file()} <= installed


def test_python_started_in_a_checkout_finds_all_parts_without_an_editable_install():
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)];"
        "import nano3.kernels, nano3.presets; print(nano3.kernels.__name__, nano3.presets.__name__)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["nano3.kernels", "nano3.presets"], done.stderr
