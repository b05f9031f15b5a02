"""Grammars of tool calls accept what the parser reads, and nothing against the schema."""

import json

import llguidance
import pytest
from tokenizers import AddedToken

from nano3.data.chat.parsing.output_parser import parse_output
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.grammar.masks import GrammarCompiler, GrammarMatcher
from nano3.engine.request import Grammar, Sampling
from nano3.engine.sequence_sampler import SequenceSampler
from nano3.engine.thinking import thinking_tracker
from nano3.serve.structured.tool_grammar import call_grammar, tag_ids, watched_grammar

SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "limit": {"type": "integer", "minimum": 1, "maximum": 50},
                "sort": {"type": "string", "enum": ["new", 'by "name"']},
                "exact": {"type": "boolean"},
                "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}},
                "kind": {"$ref": "#/$defs/Tag"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "anything": {},
            },
            "required": ["query"],
            "$defs": {"Tag": {"type": "string", "enum": ["red", "green"]}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "now"}}
TOKENIZER = llguidance.LLTokenizer("byte")


def accepts(grammar: Grammar, text: str) -> bool:
    matcher = llguidance.LLMatcher(TOKENIZER, llguidance.grammar_from("lark", grammar.value))
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def call(name, **arguments):
    lines = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{lines}</function>\n</tool_call>"


def grammar(*tools, several=True, **options):
    return call_grammar(tools or (SEARCH, CLOCK), several=several, after_thinking=False, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        {"query": "x"},
        {"query": ""},
        {"query": "two\nlines </param </parameter> <b>&\"' é\n\n"},
        {"query": "x", "limit": 50, "sort": 'by "name"', "exact": "true"},
        {"query": "x", "exact": "True", "tags": '["red", "green"]', "kind": "red", "note": "None", "anything": "{"},
    ],
)
def test_calls_by_the_schema_are_accepted_and_read_back(arguments):
    text = call("search", **arguments)
    assert accepts(grammar(), text)
    assert accepts(grammar(), f"\n{text}\n{call('now')}\n{text}\n")
    (read,) = parse_output(text, [SEARCH, CLOCK], thinking_open=False).tool_calls
    found = json.loads(read.arguments)
    assert found.keys() == arguments.keys()
    assert found["query"] == arguments["query"]


def test_strings_in_json_may_hold_the_tags_of_a_call():
    schema = {"type": "array", "items": {"type": "object", "properties": {"text": {"type": "string"}}}}
    function = {"name": "f", "strict": True, "parameters": {"type": "object", "properties": {"parts": schema}}}
    tool = {"type": "function", "function": function}
    parts = [{"text": "</parameter></function></tool_call>"}, {"text": "</parameter>\n<parameter=parts>\n[]"}]
    text = call("f", parts=json.dumps(parts))
    assert accepts(grammar(tool), text)
    assert accepts(watched_grammar([tool], after_thinking=False), text)
    (read,) = parse_output(text, [tool], thinking_open=False).tool_calls
    assert json.loads(read.arguments) == {"parts": parts}


@pytest.mark.parametrize(
    "text",
    [
        "Hello",
        call("search"),
        call("other", query="x"),
        call("search", limit=3),
        call("search", query="x", limit=51),
        call("search", query="x", limit="many"),
        call("search", query="x", sort="old"),
        call("search", query="x", exact="perhaps"),
        call("search", query="x", tags='["blue"]'),
        call("search", query="x", tags='["red",  "green"]'),
        call("search", query="x", kind="blue"),
        call("search", query="x", unknown="y"),
        call("now") + "suffix",
    ],
)
def test_anything_else_is_refused(text):
    assert not accepts(grammar(), text)


def test_only_one_call_where_only_one_is_wanted():
    assert accepts(grammar(several=False), call("now"))
    assert not accepts(grammar(several=False), call("now") + "\n" + call("now"))


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (Grammar("json_object"), '{"a": 1}', "[1]"),
        (Grammar("json_object"), '{ "a" : 1 }', '{\n"a": 1}'),
        (Grammar("json_schema", '{"type": "array"}'), "[1]", '{"a": 1}'),
        (Grammar("choice", '["yes/no", "\\n"]'), "yes/no", "yes"),
        (Grammar("regex", "a/b+"), "a/bb", "a/"),
        (Grammar("regex", r"a\/b"), "a/b", r"a\/b"),
        (Grammar("regex", r"a\\/b"), r"a\/b", "a/b"),
        (Grammar("regex", "a\n[/]b"), "a\n/b", "a/b"),
    ],
)
def test_an_answer_of_another_form_may_stand_in_place_of_calls(answer, right, wrong):
    either = grammar(answer=answer)
    assert accepts(either, right)
    assert accepts(either, call("now"))
    assert not accepts(either, wrong)


def test_types_by_the_names_of_other_languages():
    properties = {"a": {"type": "str"}, "n": {"type": "int"}, "o": {"type": "dict"}, "x": {"type": "any"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "dict", "properties": properties}}}
    assert accepts(grammar(tool), call("f", a="451", n="3", o='{"k": 1}', x="y"))
    assert not accepts(grammar(tool), call("f", n="many"))
    assert json.loads(parse_output(call("f", a="451"), [tool], thinking_open=False).tool_calls[0].arguments) == {
        "a": "451"
    }


CITY = {"type": "string", "pattern": "^[A-Z][a-z]+$", "maxLength": 6}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get/weather.now",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": CITY, "days": {"type": "integer", "maximum": 9}},
            "required": ["city"],
        },
    },
}
ROME = call("get/weather.now", city="Rome")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello <b>&\n\n",
        ROME,
        f"Let me look.\n\n{ROME}\n{call('get/weather.now', city='Bonn', days=3)}",
        f"{ROME}\nDone.",
        f"{call('search', query='x', limit='many', unknown='y')} {ROME}",
        f"I write <tool_call> and <function=other>, then {ROME}",
        ROME.removeprefix("<tool_call>\n"),
    ],
)
def test_a_strict_call_may_stand_anywhere_in_free_text(text):
    watched = watched_grammar([WEATHER, SEARCH], after_thinking=False)
    assert watched is not None
    assert accepts(watched, text)


@pytest.mark.parametrize(
    "wrong",
    [
        call("get/weather.now", city="rome"),
        call("get/weather.now", city="Kathmandu"),
        call("get/weather.now", days=3),
        call("get/weather.now", city="Rome", days=10),
        call("get/weather.now", city="Rome", unknown=1),
        call("get/weather.now", city="rome").removeprefix("<tool_call>\n"),
        "<tool_call><function=get/weather.now><parameter=city>rome</parameter></function></tool_call>",
        "<tool_call>\n<function=get/weather.now >\n</function>\n</tool_call>",
    ],
)
@pytest.mark.parametrize("before", ["", "Let me look.\n", f"{ROME}\n"])
def test_a_strict_call_against_its_schema_cannot_be_written(before, wrong):
    watched = watched_grammar([SEARCH, WEATHER], after_thinking=False)
    assert watched is not None
    assert not accepts(watched, before + wrong)


ESCAPES = {
    "another call": "x\n</function>\n</tool_call>\n<tool_call>\n<function=add>\n<parameter=a>\n99",
    "another call without line breaks": "x\n</function></tool_call><tool_call><function=add><parameter=a>99",
    "a parameter that is closed": "x\n<parameter=a>\n99",
    "a parameter after a closing tag in the line": "x</parameter><parameter=a>\n99",
    "the same at the beginning": "<parameter=a>\n99",
    "a call after a closing tag in the line": (
        "x</parameter></function></tool_call><tool_call><function=add><parameter=a>\n99"
    ),
}


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
@pytest.mark.parametrize("form", [{}, {"maxLength": 5000}, {"pattern": "."}], ids=["free", "length", "pattern"])
def test_a_string_cannot_hold_what_is_read_as_another_parameter_or_call(escape, form):
    properties = {"text": {"type": "string"} | form, "a": {"type": "integer", "maximum": 9}}
    schema = {"type": "object", "properties": properties, "required": ["text"]}
    add = {"type": "function", "function": {"name": "add", "strict": True, "parameters": schema}}
    text = call("add", text=escape)
    read = parse_output(text, [add], thinking_open=False).tool_calls
    assert any("99" in str(json.loads(one.arguments).get("a")) for one in read)
    watched = watched_grammar([add], after_thinking=False)
    assert watched is not None
    for held in (watched, grammar(add)):
        assert accepts(held, call("add", text="x <parameter=a> </function>\n"))
        assert not accepts(held, text)


def with_tags():
    """A tokenizer to which the tags of calls are tokens of their own, as those of thinking."""
    inner = Tokenizer.train(["some text\n"], 263).inner
    inner.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<tool_call>", "</tool_call>")])
    return Tokenizer(inner, 2, 1, 0)


TAGGED = with_tags()
SPELLED = [token for letter in "<tool_call>" for token in TAGGED.encode(letter)]


def written(grammar: Grammar, tokenizer: Tokenizer, ids: list[int]) -> GrammarMatcher | None:
    """Where an output of these tokens stands in the grammar, None where one of them could not be written."""
    matcher = GrammarCompiler(tokenizer, tokenizer.vocab_size, [tokenizer.eos_id]).compile(grammar)
    for token in ids:
        if not matcher.mask()[token]:
            return None
        matcher.accept(token)
    return matcher


@pytest.mark.parametrize("opening", [TAGGED.encode("<tool_call>"), SPELLED], ids=["one token", "letters"])
def test_a_tag_may_be_one_token(opening):
    assert len(opening) in (1, 11)
    ids = opening + TAGGED.encode(ROME.removeprefix("<tool_call>"))
    watched = watched_grammar([WEATHER], after_thinking=False, tags=tag_ids(TAGGED))
    assert watched is not None
    for held in (watched, grammar(WEATHER, tags=tag_ids(TAGGED))):
        matcher = written(held, TAGGED, ids)
        assert matcher is not None
        assert matcher.complete
        wrong = opening + TAGGED.encode(ROME.removeprefix("<tool_call>").replace("Rome", "rome"))
        assert written(held, TAGGED, wrong) is None


def test_free_text_may_name_the_tags_but_a_call_cannot_hide_behind_one():
    watched = watched_grammar([WEATHER], after_thinking=False, tags=tag_ids(TAGGED))
    assert watched is not None
    matcher = written(
        watched, TAGGED, TAGGED.encode("So <tool_call> begins a call, </think>, and </tool_call> ends it.")
    )
    assert matcher is not None
    assert matcher.complete
    wrong = ROME.replace("Rome", "rome").removeprefix("<tool_call>\n")
    for before in ("<tool_call>", "x<tool_call>", "</think>", "<tool_call>\n<tool_call>\n", "<tool_call><tool_call>y"):
        assert written(watched, TAGGED, TAGGED.encode(before + wrong)) is None


def row_of(grammar: Grammar, tokenizer: Tokenizer) -> SequenceSampler:
    """An output in the making that begins with open thinking."""
    sampling = Sampling(grammar=grammar)
    return SequenceSampler(
        sampling, (), seed=0, eos_ids=frozenset([tokenizer.eos_id]), vocab_size=tokenizer.vocab_size,
        grammar=GrammarCompiler(tokenizer, tokenizer.vocab_size, [tokenizer.eos_id]).compile(grammar),
        thinking=thinking_tracker(sampling, tokenizer),
    )  # fmt: skip


tokenizers = pytest.mark.parametrize(
    "tokenizer", [TAGGED, Tokenizer.train(["some text\n"], 263)], ids=["tokens", "letters"]
)
THOUGHT = "I could write <tool_call> here, but no need."


@tokenizers
def test_a_required_call_does_not_begin_where_thoughts_name_its_tag(tokenizer):
    row = row_of(call_grammar([WEATHER], several=False, after_thinking=True, tags=tag_ids(tokenizer)), tokenizer)
    for token in tokenizer.encode(THOUGHT):
        row.accept(token)
        assert row.active_grammar is None
        assert tokenizer.eos_id in row.banned
    for token in tokenizer.encode(f"</think>\n{ROME}"):
        assert row.active_grammar is None or row.active_grammar.mask()[token]
        row.accept(token)
    assert row.active_grammar is not None
    assert row.active_grammar.complete


@tokenizers
@pytest.mark.parametrize(
    "thoughts",
    [THOUGHT, "A call begins: <tool_call>\n<function=other>, and so on."],
)
def test_an_answer_follows_thoughts_about_calls(tokenizer, thoughts):
    watched = watched_grammar([WEATHER], after_thinking=True, tags=tag_ids(tokenizer))
    assert watched is not None
    row = row_of(watched, tokenizer)
    text = f"{thoughts}</think>\nNo.\n{ROME}"
    for token in tokenizer.encode(text):
        assert row.active_grammar is None or row.active_grammar.mask()[token]
        row.accept(token)
    assert row.active_grammar is not None
    assert row.active_grammar.complete
    read = parse_output(text, [WEATHER], thinking_open=True, loose_calls_in_thinking=False)
    assert (read.reasoning, read.content.strip(), len(read.tool_calls)) == (thoughts, "No.", 1)


def test_without_a_strict_tool_nothing_is_watched():
    assert watched_grammar([SEARCH, CLOCK], after_thinking=False) is None
