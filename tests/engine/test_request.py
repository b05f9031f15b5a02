"""What callers put into requests and collect from updates."""

import tracemalloc

import pytest

from nano3.engine.request import Output, Request, Sampling, Token, Update


def test_an_output_is_all_its_updates_together():
    output = Output(1)
    output.add(Update("r", 1, (Token(5, -0.1, -0.1),), "a ", cached_tokens=3))
    output.add(Update("r", 1, (Token(6, -0.2, -0.2),)))
    assert output.text == "a "
    output.add(Update("r", 1, (Token(7, -0.3, -0.3), Token(8, -0.3, -0.3)), "bé", "stop", "end"))
    assert (output.text, output.ids, output.cached_tokens) == ("a bé", [5, 6, 7, 8], 3)
    assert (output.finish, output.stop_reason) == ("stop", "end")
    assert Output().text == ""


def test_an_update_does_not_copy_the_text_before_it():
    output = Output()
    output.add(Update("r", text="x" * 10_000_000))
    tracemalloc.start()
    try:
        for _ in range(100):
            output.add(Update("r", text="yes"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert len(output.text) == 10_000_300


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1), ("top_p", 0), ("top_k", -1), ("min_p", 2), ("repetition_penalty", 0), ("stop", ("",))],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=field) as caught:
        Sampling(**{field: value})
    assert "\n" not in str(caught.value)


def test_a_request_has_a_prompt_and_some_outputs():
    with pytest.raises(ValueError, match="prompt is empty"):
        Request("r", ())
    with pytest.raises(ValueError, match="n is 129"):
        Request("r", (1,), n=129)
