"""The generated table of settings."""

from dataclasses import dataclass
from pathlib import Path

from nano3.config.document import field_docs, settings_table, with_table
from nano3.config.extend_context import ExtendContextConfig
from nano3.config.typed import keys

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


@dataclass
class Sample:
    """A section."""

    documented: int = 1
    """What it does,
    over two lines."""
    bare: int = 2


def test_field_docs_are_the_strings_after_the_fields():
    assert field_docs(Sample) == {"documented": "What it does,\nover two lines."}


def test_every_key_is_in_the_table():
    table = settings_table()
    for key in keys(ExtendContextConfig):
        assert f"| `{key}` | `" in table


def test_the_page_is_fresh():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run: python -m nano3.config.document"


def test_the_values_of_the_tiny_presets_stand_beside_the_defaults():
    rows = {line.split("`")[1]: line for line in settings_table().splitlines() if line.startswith("| `")}
    assert rows["train.tokens"].startswith("| `train.tokens` | `4000000` | `1400000` | ")
    assert rows["train.seed"].startswith("| `train.seed` | `0` |  | ")
    assert "context.lengths" in rows
