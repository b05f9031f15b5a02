"""What callers put into requests and collect from updates."""

import tracemalloc

import numpy as np
import pytest

from nano3.engine.output import Output
from nano3.engine.request import Request, Sampling, Token, Update


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


def test_tokens_come_as_arrays():
    output = Output()
    output.add(Update("r", tokens=(Token(131071, -0.25, -0.5), Token(6, -3.0, 0.0, forced=True))))
    output.add(Update("r", tokens=(Token(7, -1.0, -1.0, ((7, -1.0), (9, -1.5))),)))
    assert (output.n_tokens, output.token_ids.tolist()) == (3, [131071, 6, 7])
    assert output.log_probs.tolist() == [-0.25, -3.0, -1.0]
    assert output.sampled_log_probs.tolist() == [-0.5, 0.0, -1.0]
    assert output.forced.tolist() == [False, True, False]
    dtypes = [a.dtype for a in (output.token_ids, output.log_probs, output.sampled_log_probs, output.forced)]
    assert dtypes == [np.int32, np.float32, np.float32, np.bool_]
    assert [token.top for token in output.tokens] == [(), (), ((7, -1.0), (9, -1.5))]
    output.token_ids[0] = 1
    output.add(Update("r", tokens=(Token(8, -1.0, -1.0),)))
    assert output.ids == [131071, 6, 7, 8]


def test_a_long_output_keeps_no_object_a_token():
    output, tokens = Output(), 200_000
    tracemalloc.start()
    try:
        for i in range(tokens):
            output.add(Update("r", tokens=(Token(1000 + i, -i / 7, -i / 9),), text="word "))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 20 * tokens  # 5 of them for the text
    assert output.text == "word " * tokens


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
