import pytest
from tokenizers import AddedToken

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.request import Grammar, Sampling, ThinkingBudget
from nano3.engine.thinking import ThinkingTracker, thinking_tracker

pytestmark = pytest.mark.any_isa

ONE_TOKEN = Tokenizer.train(["some text\n"], 263)


def spelled_out():
    """A tokenizer that knows no tags: they are written letter by letter, or with what stands beside them."""
    inner = Tokenizer.train(["some text\n"], 263).inner
    inner = type(inner).from_str(inner.to_str().replace("think>", "other>"))
    inner.add_tokens([AddedToken(text, special=False, normalized=False) for text in (">{", ">\n")])
    inner.encode_special_tokens = True
    return Tokenizer(inner, 2, 1, 0)


SPELLED = spelled_out()
both = pytest.mark.parametrize("tokenizer", [ONE_TOKEN, SPELLED], ids=["one token", "several tokens"])


def write(tracker, tokenizer, text, limit=200):
    """Text of an output that goes on with `text`, wherever nothing is forced; and how many tokens were forced."""
    wanted, written, n_forced = tokenizer.encode(text), [], 0
    while wanted and len(written) < limit:
        n_forced += tracker.forced is not None
        token = wanted.pop(0) if tracker.forced is None else tracker.forced
        written.append(token)
        tracker.accept(token)
    return tokenizer.decode(written), n_forced


@both
def test_thinking_is_closed_at_the_first_line_break_after_the_budget(tokenizer):
    tracker = ThinkingTracker(ThinkingBudget(tokens=8, grace=20), tokenizer)
    text, _ = write(tracker, tokenizer, "ab\ncd\nefgh\nij\nANSWER\nmore\n")
    assert text == "ab\ncd\nefgh\n</think>ij\nANSWER\nmore\n"
    assert tracker.thinking_closed
    assert tracker.forced is None


@both
def test_thinking_without_a_line_break_is_closed_after_the_grace(tokenizer):
    text, _ = write(ThinkingTracker(ThinkingBudget(tokens=4, grace=3), tokenizer), tokenizer, "x" * 20)
    assert text == "x" * 7 + "\n</think>" + "x" * 13


@both
def test_no_budget_at_all_closes_at_once(tokenizer):
    text, _ = write(ThinkingTracker(ThinkingBudget(tokens=0, grace=0), tokenizer), tokenizer, "xy")
    assert text == "\n</think>xy"


@both
def test_thinking_that_ends_by_itself_is_left_alone(tokenizer):
    tracker = ThinkingTracker(ThinkingBudget(tokens=12, grace=0), tokenizer)
    wanted = "abc</think>" + "long answer\n" * 9
    assert write(tracker, tokenizer, wanted) == (wanted, 0)
    assert tracker.thinking_closed


@both
def test_thinking_that_the_output_opens_is_counted_from_there(tokenizer):
    tracker = ThinkingTracker(ThinkingBudget(tokens=3, grace=2, open=False), tokenizer)
    text, _ = write(tracker, tokenizer, "free text\n" * 3 + "<think>abcdefghij")
    assert text == "free text\n" * 3 + "<think>abcde\n</think>fghij"
    untouched = ThinkingTracker(ThinkingBudget(tokens=0, grace=0, open=False), tokenizer)
    assert write(untouched, tokenizer, "no thoughts\n" * 5) == ("no thoughts\n" * 5, 0)


def test_text_joined_to_the_end_of_thinking_is_reported():
    tracker = ThinkingTracker(None, SPELLED)
    for token in [*SPELLED.encode("so</think"), SPELLED.token_id(">{")]:
        assert not tracker.thinking_closed
        tracker.accept(token)
    assert tracker.thinking_closed
    assert tracker.rest == "{"


def test_white_space_joined_to_an_opener_is_the_grammars():
    inner = Tokenizer.train(["some text\n"], 263).inner
    inner.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("=f>\n", "</think>\n")])
    joined = Tokenizer(inner, 2, 1, 0)
    grammar = Grammar("lark", "start: /.*/", after_thinking=True, opener="<function=")
    for text, rest in (("so <function=f>\n", "<function=f>\n"), ("so </think>\n", "")):
        tracker = thinking_tracker(Sampling(grammar=grammar), joined)
        for token in joined.encode(text):
            tracker.accept(token)
        assert tracker.thinking_closed
        assert tracker.rest == rest


def test_a_tracker_is_made_where_a_request_needs_one():
    grammar = Grammar("json_object", after_thinking=True)
    assert thinking_tracker(Sampling(), ONE_TOKEN) is None
    assert thinking_tracker(Sampling(grammar=Grammar("json_object")), ONE_TOKEN) is None
    watching = thinking_tracker(Sampling(grammar=grammar), ONE_TOKEN)
    assert write(watching, ONE_TOKEN, "a\n" * 90)[1] == 0
    limited = thinking_tracker(Sampling(grammar=grammar, thinking=ThinkingBudget(0, 0)), ONE_TOKEN)
    assert limited.forced is not None


@both
def test_an_opener_ends_thinking_too_and_begins_the_grammar_with_itself(tokenizer):
    grammar = Grammar("lark", "start: /.*/", after_thinking=True, opener="<tool_call>\n<function=")
    head = "<tool_call>\n<function="
    for text, rest in ((f"so <tool_call> {head}", head), ("so <tool_call> </think>", "")):
        tracker = thinking_tracker(Sampling(grammar=grammar), tokenizer)
        *before, last = tokenizer.encode(text)
        for token in before:
            tracker.accept(token)
        assert not tracker.thinking_closed
        tracker.accept(last)
        assert tracker.thinking_closed
        assert tracker.rest == rest
