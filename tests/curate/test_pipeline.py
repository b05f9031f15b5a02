"""Pipelines from TOML."""

import pytest

from nano3.config.errors import UserError
from nano3.config.presets import preset_names
from nano3.curate.catalog import PRESETS, STEPS
from nano3.curate.pipeline import load_pipeline
from nano3.curate.step import Reader, Step

READ = '[[step]]\nuse = "read"\n'


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        (tmp_path / "p.toml").write_text(text)
        return load_pipeline(str(tmp_path / "p.toml"), overrides)

    return load


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no steps; write [[step]]"),
        ("[[stp]]\n", "unknown key 'stp'; did you mean 'step'?"),
        ("step = 3\n", "no steps"),
        ("[[step]]\nleast = 3\n", 'step 1 has no use; write use = "read" below its [[step]]'),
        (READ + '[[step]]\nname = "length"\n', 'step 2 has no use; write use = "length" in place of name = "length"'),
        (READ + '[[step]]\nname = "lenght"\n', 'write use = "length" in place of name = "lenght"'),
        ('[[step]]\nuse = "lenght"\n', "unknown step 'lenght'; did you mean 'length'?"),
        ('[[step]]\nuse = "length"\n', "the first step is 'length'; it must be a reader"),
        (READ + READ, "step 2 is the reader 'read'"),
        (READ + '[[step]]\nuse = "length"\nleest = 3\n', "step 2 (length): unknown key 'leest'; did you mean 'least'?"),
        (READ + '[[step]]\nuse = "length"\nleast = "x"\n', "'least' must be a whole number, not 'x'"),
        (READ + '[[step]]\nuse = "length"\nleast = -1\n', "length.least is -1; it must be at least 0"),
        ('[pipeline]\ncategori = "x"\n' + READ, "unknown key 'categori'; did you mean 'category'?"),
        ('[pipeline]\ncategory = "a b"\n' + READ, "pipeline.category is 'a b'"),
        ("[[step]\n", "not valid TOML"),
        ('base = "code"\n' + READ, "begin with a copy of a preset, nano3 data curate NAME --show"),
        (
            READ + '[[step]]\nuse = "length"\nleast = 9\nmost = 5\n',
            "length.most is 5; it must be at least length.least, 9",
        ),
    ],
)
def test_what_is_wrong_is_named(load, text, told):
    with pytest.raises(UserError) as error:
        load(text)
    assert told in str(error.value)
    assert "p.toml" in str(error.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("length.leest=3", "unknown key 'leest'; did you mean 'least'?"),
        ("lenght.least=3", "the pipeline has no step 'lenght'; did you mean 'length'?"),
        ("least=3", "write step.key=value"),
        ("length.least", "write step.key=value"),
        ("length.least=x", "must be a whole number"),
    ],
)
def test_a_wrong_override_is_named(load, override, told):
    with pytest.raises(UserError) as error:
        load(READ + '[[step]]\nuse = "length"\n', override)
    assert told in str(error.value)


def test_an_override_changes_a_step(load):
    pipeline = load(READ + '[[step]]\nuse = "length"\n', "length.least=7", "pipeline.category=mine")
    assert pipeline.steps[1].settings.least == 7
    assert pipeline.config.category == "mine"
    assert pipeline.labels == ["00-read", "01-length"]


def test_a_step_that_occurs_twice_is_changed_in_both_places_or_by_its_label_in_one(load):
    twice = READ + '[[step]]\nuse = "length"\n' * 2
    both, one = load(twice, "length.least=4"), load(twice, "length.least=4", "02-length.least=3")
    assert [step.settings.least for step in both.steps[1:]] == [4, 4]
    assert both.notices == (
        "--set length.least=4 changes 01-length and 02-length; --set 01-length.least=4 changes one",
    )
    assert [step.settings.least for step in one.steps[1:]] == [4, 3]
    assert load(READ + '[[step]]\nuse = "length"\n', "length.least=4").notices == ()


def test_a_licence_of_an_unknown_name_is_told(load):
    pipeline = load(READ + '[[step]]\nuse = "licence"\nallow = ["GPL", "MIT", "mit license", "LicenseRef-ours"]\n')
    (line,) = pipeline.notices
    assert "licence.allow: 'GPL' is no SPDX name" in line
    assert "near: GPL-1.0-only, GPL-2.0-only, GPL-3.0-only" in line


def test_an_unknown_preset_is_named():
    with pytest.raises(UserError, match="unknown pipeline 'tinny'; did you mean 'tiny'"):
        load_pipeline("tinny")


def test_a_pipeline_named_without_its_ending_is_found_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.toml").write_text(READ)
    with pytest.raises(UserError, match=r"unknown pipeline 'notes'; did you mean the file 'notes\.toml'"):
        load_pipeline("notes")


@pytest.mark.parametrize("name", preset_names(PRESETS))
def test_every_preset_loads_and_says_what_it_is_for(name):
    pipeline = load_pipeline(name)
    assert pipeline.config.summary
    assert pipeline.config.category != "curated"


@pytest.mark.parametrize("use", STEPS)
def test_every_step_in_the_list_is_one(use):
    step = STEPS[use].load()
    assert issubclass(step, Step)
    assert issubclass(step, Reader) == STEPS[use].reader
