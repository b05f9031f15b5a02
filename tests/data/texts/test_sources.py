from __future__ import annotations

import pytest

from nano3.config.schema import DataConfig
from nano3.data.texts.sources import check_paths, find_inputs, read_blend_file, resolve


def test_all_categories_without_data_are_named_with_the_lines_that_map_them(write_texts):
    folder = write_texts({"a.txt": "a"})
    cfg = DataConfig(blend={"web": 50, "crawl++": 30, "code": 20}, sources={"web": [str(folder)], "coda": ["x"]})
    with pytest.raises(ValueError, match="blend categories without data") as error:
        resolve(cfg)
    message = str(error.value)
    assert "without data: crawl++, code" in message
    assert '[sources]\n"crawl++" = ["PATH"]\ncode = ["PATH"]' in message
    assert "is 'coda' meant for 'code'?" in message


def test_the_lines_of_that_error_are_a_valid_blend_file(write_texts):
    with pytest.raises(ValueError, match="without data") as error:
        resolve(DataConfig(blend={"crawl++": 30, "code": 20}))
    folder = write_texts({"blend.toml": str(error.value).partition("\n")[2], "PATH/a.txt": "a"})
    cfg = DataConfig(blend={"crawl++": 30, "code": 20}, sources_file=str(folder / "blend.toml"))
    assert {name: len(found.inputs) for name, found in resolve(cfg).items()} == {"crawl++": 1, "code": 1}


@pytest.mark.parametrize(
    ("blend", "unread"),
    [({"python-stdlib": 100}, "data.sources.mine"), ({"web": 1}, 'data.sources.mine, data.sources."a b"')],
)
def test_a_source_that_the_blend_does_not_name_is_refused(write_texts, blend, unread):
    folder = str(write_texts({"a.txt": "a"}))
    sources = {"mine": [folder]} | ({"web": [folder], "a b": [folder]} if "web" in blend else {})
    for check in (resolve, check_paths):
        with pytest.raises(ValueError, match=r"not read, since data\.blend names only") as error:
            check(DataConfig(blend=blend, sources=sources))
        assert str(error.value).startswith(f"{unread}: ")


def test_a_blend_file_may_hold_more_than_a_blend_names_but_not_only_that(write_texts):
    folder = write_texts({"b.toml": '[sources]\nweb = ["a.txt"]\nmath = ["a.txt"]\n', "a.txt": "a"})
    file = str(folder / "b.toml")
    assert list(resolve(DataConfig(blend={"web": 1}, sources_file=file))) == ["web"]
    with pytest.raises(ValueError, match=r"b\.toml: web, .*b\.toml: math: not read"):
        resolve(DataConfig(sources_file=file))


def test_a_source_with_a_share_of_zero_or_made_from_other_text_may_stay_unread(write_texts):
    folder = str(write_texts({"a.txt": "a"}))
    sources = {"mine": [folder], "off": [folder], "questions": ["generate:document-qa"]}
    assert list(resolve(DataConfig(blend={"mine": 1, "off": 0}, sources=sources))) == ["mine"]


def test_a_category_with_no_share_needs_no_data():
    assert list(resolve(DataConfig(blend={"python-stdlib": 1, "math": 0}))) == ["python-stdlib"]


def test_the_blend_file_wins_over_sources_and_its_paths_start_at_its_folder(write_texts):
    folder = write_texts(
        {"b.toml": '[sources]\nweb = ["texts", "python-stdlib"]\n', "texts/a.txt": "a", "texts/b.txt": "b"}
    )
    cfg = DataConfig(blend={"web": 1}, sources={"web": ["/nowhere"]}, sources_file=str(folder / "b.toml"))
    assert [file.name for file in resolve(cfg)["web"].inputs] == ["a.txt", "b.txt", "python-stdlib"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources = 3", "sources is not a table"),
        ("[sources]\nweb = 3", r"sources\.web is not a path or a list of paths"),
        ("[source]\nweb = []", "unknown key 'source'"),
        ("[sources", "not valid TOML"),
    ],
)
def test_bad_blend_files(write_texts, text, message):
    with pytest.raises(ValueError, match=message):
        read_blend_file(write_texts({"b.toml": text}) / "b.toml")


def test_missing_files_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no blend file at"):
        read_blend_file(tmp_path / "none.toml")
    with pytest.raises(FileNotFoundError, match="no file or folder at"):
        find_inputs([str(tmp_path / "none")])
    with pytest.raises(ValueError, match="no readable file in"):
        find_inputs([str(tmp_path)])


def test_a_prepared_folder_is_recognised(prepared_folder):
    found = find_inputs([str(prepared_folder)])
    assert (found.prepared, found.inputs) == ([prepared_folder], [])
