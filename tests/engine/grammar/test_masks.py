import json
import re
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from nano3.config.errors import UserError
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.grammar.masks import COMPACT, GrammarCompiler, spaced
from nano3.engine.request import Grammar, Sampling
from nano3.engine.sampler import sample
from nano3.engine.sequence_sampler import SequenceSampler
from nano3.engine.thinking import thinking_tracker

pytestmark = pytest.mark.any_isa

WORDS = 'the name of a city: {"name": "x", "items": [1, 2.5, true, null], "size": "large"}\n  </think> and so on. '
TOKENIZER = Tokenizer.train([WORDS * 20, WORDS.replace(" ", "  ") * 9], 400)
END = TOKENIZER.token_id("<|im_end|>")
VOCAB_SIZE = 420
COMPILER = GrammarCompiler(TOKENIZER, VOCAB_SIZE, [TOKENIZER.eos_id, END])

SCHEMAS = {
    "nested": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "place": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": -3, "maximum": 40}, "ok": {"type": "boolean"}},
                "required": ["x"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "place"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["red", "dark green", 7, None]},
    "array": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 9.5}, "minItems": 2, "maxItems": 4},
    "reference": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/leaf"}]}},
                "required": ["next"],
                "additionalProperties": False,
            },
            "leaf": {"type": ["boolean", "null"]},
        },
        "$ref": "#/$defs/node",
    },
    "pattern": {
        "type": "object",
        "properties": {
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            "day": {"type": "string", "format": "date"},
        },
        "required": ["code", "day"],
        "additionalProperties": False,
    },
    "any": {"anyOf": [{"type": "string", "maxLength": 5}, {"const": {"a": [1]}}]},
}


OVERLAP = {
    "type": "object",
    "properties": {"score": {"type": "integer"}},
    "required": ["score"],
    "additionalProperties": False,
    "patternProperties": {"^score$": {"type": "integer"}},
}


def write(sampling, seed, compiler=COMPILER, limit=600, boost=()):
    """Output of a model with random logits: its text and whether it ended by itself."""
    tracker = thinking_tracker(sampling, TOKENIZER)
    row = SequenceSampler(
        sampling,
        (1,),
        seed=seed,
        eos_ids=frozenset([TOKENIZER.eos_id, END]),
        vocab_size=VOCAB_SIZE,
        grammar=compiler.compile(sampling.grammar),
        thinking=tracker,
    )
    generator = torch.Generator().manual_seed(seed)
    ids = []
    for _ in range(limit):
        logits = torch.randn(1, 512, generator=generator) * 2
        for token, value in boost:
            logits[0, token] += value
        token = sample(logits, [row], ids_limit=TOKENIZER.vocab_size)[0].id
        if token in (TOKENIZER.eos_id, END):
            return TOKENIZER.decode(ids), True
        row.accept(token)
        ids.append(token)
    return TOKENIZER.decode(ids), False


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_logits_write_json_of_the_schema(name):
    grammar = Grammar("json_schema", json.dumps(SCHEMAS[name]))
    for seed in range(12):
        text, ended = write(Sampling(grammar=grammar, temperature=0.7 * (seed % 3)), seed)
        assert ended
        jsonschema.validate(json.loads(text), SCHEMAS[name], format_checker=jsonschema.FormatChecker())


def test_any_object_is_an_object():
    closing = [(TOKENIZER.encode(text)[0], 4.0) for text in ('"', "}")]
    finished = [write(Sampling(grammar=Grammar("json_object")), seed, boost=closing) for seed in range(8)]
    assert sum(ended for _, ended in finished) >= 6
    assert all(isinstance(json.loads(text), dict) for text, ended in finished if ended)


@pytest.mark.parametrize("pattern", [r"[a-c]{2,5}-[0-9]{3}", r"(yes|no)( indeed){0,2}", r"a/b\n?[^x-z]é", r".{3}"])
def test_random_logits_match_the_regular_expression(pattern):
    for seed in range(12):
        text, ended = write(Sampling(grammar=Grammar("regex", pattern)), seed)
        assert ended
        assert re.fullmatch(pattern, text)


def test_output_is_one_of_the_choices_and_may_be_any():
    choices = ["yes", "no", 'a "quoted\\" one\n', "", "naïve 👋", "yes please"]
    grammar = Grammar("choice", json.dumps(choices))
    seen = {write(Sampling(grammar=grammar), seed) for seed in range(200)}
    assert seen <= {(choice, True) for choice in choices}
    assert len(seen) > 3


def test_a_lark_grammar_is_followed():
    text, ended = write(Sampling(grammar=Grammar("lark", 'start: "<" word ("," word)~1..2 ">"\nword: /[ab]{1,3}/')), 3)
    assert ended
    assert re.fullmatch(r"<[ab]{1,3}(,[ab]{1,3}){1,2}>", text)


def test_a_model_that_loves_spaces_still_ends():
    spaces = [(token, 30.0) for token in {TOKENIZER.encode(text)[0] for text in (" ", "  ", "\n", "\n  ")}]
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    text, ended = write(Sampling(grammar=Grammar("json_schema", json.dumps(schema))), 0, boost=spaces)
    assert ended
    assert len(text) < 200
    assert set(json.loads(text)) == {"a"}
    assert "\n" not in text
    assert "  " not in text
    grammar = Grammar("json_schema", json.dumps(spaced(schema, COMPACT)))
    compact, ended = write(Sampling(grammar=grammar), 0, boost=spaces)
    assert ended
    assert compact in ('{"a":true}', '{"a":false}')


def test_the_end_is_allowed_exactly_when_the_grammar_is_complete():
    matcher = COMPILER.compile(Grammar("regex", "ab?"))
    (a, b), ends = TOKENIZER.encode("a") + TOKENIZER.encode("b"), [TOKENIZER.eos_id, END]
    assert not matcher.mask()[ends].any()
    matcher.accept(a)
    assert matcher.mask()[[b, *ends]].all()
    assert (matcher.complete, matcher.done) == (True, False)
    matcher.accept(b)
    assert matcher.done
    assert sorted(matcher.mask().nonzero()[0]) == sorted(ends)


def test_a_finished_grammar_ends_before_min_tokens():
    assert write(Sampling(grammar=Grammar("choice", '["a"]'), min_tokens=9), 0) == ("a", True)


def test_matchers_of_one_grammar_do_not_disturb_each_other():
    first, second = (COMPILER.compile(Grammar("regex", "ab")) for _ in range(2))
    first.accept(TOKENIZER.encode("a")[0])
    assert second.mask()[TOKENIZER.encode("a")[0]]
    assert first.mask()[TOKENIZER.encode("b")[0]]


def test_a_wrong_token_leaves_nothing_but_the_end():
    matcher = COMPILER.compile(Grammar("regex", "ab"))
    matcher.accept(TOKENIZER.encode("z")[0])
    assert matcher.error
    assert "\n" not in matcher.error
    assert sorted(matcher.mask().nonzero()[0]) == sorted([TOKENIZER.eos_id, END])


@pytest.mark.parametrize("boosted", ["</think>", "</s>"])
def test_the_grammar_begins_where_thinking_ends(boosted):
    sampling = Sampling(grammar=Grammar("json_schema", json.dumps(SCHEMAS["nested"]), after_thinking=True))
    close = TOKENIZER.token_id("</think>")
    boost = [(close, 5.0)] if boosted == "</think>" else [(TOKENIZER.eos_id, 30.0), (close, 4.0)]
    for seed in range(6):
        text, ended = write(sampling, seed, boost=boost)
        assert ended
        thought, answer = text.split("</think>", 1)
        jsonschema.validate(json.loads(answer), SCHEMAS["nested"])
    assert thought


def test_text_joined_to_the_end_of_thinking_belongs_to_the_grammar():
    inner = type(TOKENIZER.inner).from_str(TOKENIZER.inner.to_str().replace("think>", "other>"))
    inner.add_tokens([AddedToken(">{", special=False, normalized=False)])
    inner.encode_special_tokens = True
    tokenizer = Tokenizer(inner, TOKENIZER.eos_id, TOKENIZER.bos_id, TOKENIZER.pad_id)
    sampling = Sampling(grammar=Grammar("regex", r"\{a\}", after_thinking=True))
    row = SequenceSampler(
        sampling,
        (1,),
        seed=0,
        eos_ids=frozenset([tokenizer.eos_id]),
        vocab_size=tokenizer.vocab_size,
        grammar=GrammarCompiler(tokenizer, tokenizer.vocab_size, [tokenizer.eos_id]).compile(sampling.grammar),
        thinking=thinking_tracker(sampling, tokenizer),
    )
    for token in [*tokenizer.encode("so</think"), tokenizer.token_id(">{")]:
        row.accept(token)
    allowed = row.active_grammar.mask().nonzero()[0]
    assert tokenizer.encode("a")[0] in allowed
    assert tokenizer.encode("{")[0] not in allowed


@pytest.mark.parametrize(
    ("kind", "value", "part"),
    [
        ("json_schema", '{"type": "objekt"}', "objekt"),
        ("json_schema", '{"type":', "not JSON"),
        ("json_schema", "[]", "object"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"$ref": "#/nowhere"}', "nowhere"),
        ("regex", "a(b", "unclosed"),
        ("regex", "a(?=b)", "look-around"),
        ("choice", "[]", "at least one"),
        ("choice", '["a", 1]', "strings"),
        ("choice", "a", "list"),
        ("lark", "start: missing", "missing"),
        ("regex", r"[^\s\S]", "no text has this form"),
        ("regex", r"a[^\s\S]|b[^\s\S]", "no text has this form"),
        ("lark", "start: A\nA: /a/ & /b/", "no text has this form"),
        ("json_schema", json.dumps(OVERLAP), "'\\^score\\$' also names the property 'score'"),
        ("json_schema", json.dumps({"anyOf": [{"type": "null"}, {"items": OVERLAP}]}), "also names"),
        ("lark", "start: %json " + json.dumps(OVERLAP), "also names"),
        ("json_schema", json.dumps({"properties": {"aab": {}}, "patternProperties": {"a+b": {}}}), "also names"),
        (
            "json_schema",
            json.dumps({"properties": {"a": {}}, "patternProperties": {str(n): {} for n in range(65)}}),
            "65 patterns",
        ),
    ],
)
def test_what_cannot_be_enforced_is_refused_in_one_line(kind, value, part):
    with pytest.raises(UserError, match=part) as caught:
        COMPILER.compile(Grammar(kind, value))
    assert "\n" not in str(caught.value)


def test_formats_that_nobody_knows_are_notes():
    text, ended = write(
        Sampling(grammar=Grammar("json_schema", '{"type": "string", "format": "colour", "maxLength": 4}')), 1
    )
    assert ended
    assert len(json.loads(text)) <= 4


def whole(multiple):
    return {"type": "integer", "multipleOf": multiple}


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("json_schema", json.dumps(whole(999983))),
        Grammar("json_schema", json.dumps({"allOf": [whole(n) for n in (97, 89, 83, 79)]})),
        Grammar("json_schema", '{"multipleOf": 1e30, "multipleOf": 7919e15, "type": "integer"}'),
        Grammar("json_schema", '{"type": "integer", "multiple\\u004ff": 99991}'),
        Grammar("lark", "start: %json " + json.dumps(whole(99991))),
        Grammar("lark", 'start: "%json {" a\na: %json\n ' + json.dumps({"items": whole(99991)})),
    ],
    ids=["plain", "combined", "twice", "hidden", "lark", "lark later"],
)
def test_multiples_that_would_take_minutes_are_refused(grammar):
    with pytest.raises(UserError, match=r"multipleOf .* cannot be enforced"):
        COMPILER.compile(grammar)


@pytest.mark.parametrize(
    ("multiple", "number", "other"),
    [
        (5, "735", "736"),
        (0.25, "7.75", "7.7"),
        (1000000, "7000000", "7000001"),
        (9973, "69811", "69812"),
    ],
)
def test_ordinary_multiples_are_enforced(multiple, number, other):
    grammar = Grammar("json_schema", json.dumps({"type": "number", "multipleOf": multiple}))
    for text, right in ((number, True), (other, False)):
        matcher = COMPILER.compile(grammar)
        for token in TOKENIZER.encode(text):
            matcher.accept(token)
        assert matcher.complete == right


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("regex", "a" * 300_000), "300000 characters"),
        (Grammar("json_schema", json.dumps({"properties": {f"p{n}": {} for n in range(1001)}})), "1001 keys"),
        (Grammar("json_schema", "[" * 100_000), "nested too deeply"),
        (Grammar("json_schema", '{"items": ' * 20_000 + "{}" + "}" * 20_000), "nested too deeply"),
    ],
    ids=["text", "keys", "list", "depth"],
)
def test_grammars_that_are_too_large_are_refused_in_one_line(grammar, message):
    with pytest.raises(UserError, match=message) as caught:
        COMPILER.compile(grammar)
    assert "\n" not in str(caught.value)


def test_threads_may_compile_at_once():
    compiler = GrammarCompiler(TOKENIZER, VOCAB_SIZE, [TOKENIZER.eos_id, END])
    grammars = [Grammar("choice", json.dumps([f"word {n % 50}"])) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        matchers = list(pool.map(compiler.compile, grammars))
    starts = {TOKENIZER.decode([i]) for matcher in matchers for i in np.flatnonzero(matcher.mask())}
    assert all("word".startswith(text) or text.startswith("word") for text in starts)


def test_a_form_that_ends_halfway_says_so():
    matcher = COMPILER.compile(Grammar("lark", 'start: "a" B\nB: /b[^\\s\\S]/ | "c"'))
    assert matcher.error == ""
    matcher.accept(TOKENIZER.encode("z")[0])
    matcher.mask()
    assert matcher.error.startswith("the Lark grammar cannot be met to its end: ")


def test_patterns_beside_other_properties_are_enforced():
    schema = {
        "type": "object",
        "properties": {"name": {"type": "boolean"}},
        "required": ["name"],
        "patternProperties": {"^x[0-9]$": {"type": "null"}, "^(a+)+$": {"type": "null"}},
        "additionalProperties": False,
    }
    for seed in range(6):
        text, ended = write(Sampling(grammar=Grammar("json_schema", json.dumps(schema))), seed)
        if ended:
            jsonschema.validate(json.loads(text), schema)
