"""Where API keys come from."""

import pytest

from nano3.config.errors import UserError
from nano3.serve.transport.keys import collect_keys


def test_keys_of_all_sources_count_once_each(tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text("# ours\n b \n\nc\n")
    assert collect_keys(["a", "b"], file, {"NANO3_API_KEYS": "c, d\te"}) == ("a", "b", "c", "d", "e")
    assert collect_keys([], None, {}) == ()


def test_an_empty_source_is_refused_since_the_server_would_be_open(tmp_path):
    with pytest.raises(UserError, match="--api-key is empty"):
        collect_keys([" "], None, {})
    file = tmp_path / "keys.txt"
    file.write_text("# none yet\n")
    with pytest.raises(UserError, match=r"keys\.txt: no key"):
        collect_keys([], file, {})
    with pytest.raises(FileNotFoundError):
        collect_keys([], tmp_path / "nothing", {})
