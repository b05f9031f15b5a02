"""Structured output: masks of the tokens that a grammar allows next, by llguidance."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from nano3.config.errors import UserError
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.grammar.costs import bytes_tokenizer, check_costs
from nano3.engine.request import Grammar
from nano3.reading import parse_json

CACHED_GRAMMARS, CACHED_TEXT = 32, 1 << 20
"""Grammars kept compiled, and characters of them in all: a compiled one takes up to some 200 times its text."""
SPACING = {"whitespace_pattern": " "}
"""Most white space at any gap in JSON: line breaks cost tokens, and a confused model would write spaces forever."""
COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
"""No white space in JSON."""
_DEAD_END = "NoExtensionBias"
"""llguidance's word for a state that no token leaves."""


class GrammarCompiler:
    """Turns grammars into matchers for one tokenizer; grammars seen lately are kept compiled.

    Any thread may compile. Others go on meanwhile: llguidance works without Python's lock.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Iterable[int]) -> None:
        """`vocab_size`: length of the masks; `eos_ids`: tokens that may end a text."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = sorted(eos_ids) or [tokenizer.eos_id]
        self._vocabulary: Any = None
        self._compiled: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._building = threading.Lock()
        self._finding = threading.Lock()

    def compile(self, grammar: Grammar) -> GrammarMatcher:
        """A matcher at the start of the grammar.

        JSON may have one space at each gap between its parts, and none around it.

        Raises:
            UserError: the schema, pattern or list is wrong, asks for what cannot be enforced, or costs too much.
        """
        key = (grammar.kind, grammar.value)
        found = self._find(key)
        if found is None:
            check_costs(grammar)
            with self._building:  # one at a time: the model needs the other cores
                found = self._find(key) or self._keep(key, self._build(grammar))
        return GrammarMatcher(found.deep_copy(), self, grammar.after_thinking, _NAMES[grammar.kind])

    def _find(self, key: tuple[str, str]) -> Any:
        with self._finding:
            if key in self._compiled:
                self._compiled.move_to_end(key)
            return self._compiled.get(key)

    def _keep(self, key: tuple[str, str], matcher: Any) -> Any:
        with self._finding:
            self._compiled[key] = matcher
            while len(self._compiled) > CACHED_GRAMMARS or sum(len(text) for _, text in self._compiled) > CACHED_TEXT:
                self._compiled.popitem(last=False)
        return matcher

    @property
    def vocabulary(self) -> Any:
        """llguidance's form of the vocabulary, made at the first use (a second for 131072 entries)."""
        if self._vocabulary is None:
            import llguidance

            self._vocabulary = llguidance.LLTokenizer(
                self._tokenizer.inner.to_str(),
                n_vocab=max(self._vocab_size, self._tokenizer.vocab_size),
                eos_token=self._eos_ids,
            )
        return self._vocabulary

    def unpack(self, bits: bytes) -> np.ndarray:
        """Bit mask as booleans (V,)."""
        return np.unpackbits(np.frombuffer(bits, np.uint8), count=self._vocab_size, bitorder="little").view(np.bool_)

    @property
    def end_mask(self) -> np.ndarray:
        """Nothing but an end of text."""
        mask = np.zeros(self._vocab_size, np.bool_)
        mask[[i for i in self._eos_ids if i < len(mask)]] = True
        return mask

    def _build(self, grammar: Grammar) -> Any:
        import llguidance

        text = _SOURCES[grammar.kind](grammar.value)
        wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(text, self.vocabulary)
        # Unknown formats are mere notes in JSON Schema; anything else that would not hold is refused.
        messages = [m for m in messages if wrong or not m.startswith("Unknown format")]
        matcher = llguidance.LLMatcher(self.vocabulary, text, log_level=0)
        if matcher.is_error():
            messages.append(matcher.get_error())
        elif not messages and not _has_beginning(matcher.deep_copy()):
            messages.append("no text has this form")
        if messages:
            raise UserError(f"{_NAMES[grammar.kind]} cannot be enforced: {one_line(messages[0])}")
        return matcher


def _has_beginning(matcher: Any) -> bool:
    """Whether any token can begin an output; validation does not find all forms that nothing has."""
    return any(matcher.compute_bitmask()) and not matcher.is_error()


class GrammarMatcher:
    """Where one output stands in its grammar."""

    def __init__(self, matcher: Any, compiler: GrammarCompiler, after_thinking: bool, form: str) -> None:
        """`form`: what error messages call the grammar."""
        self.after_thinking = after_thinking
        self._form = form
        self._matcher = matcher
        self._compiler = compiler

    @property
    def done(self) -> bool:
        """Whether the output can only end now."""
        return self._matcher.is_stopped()

    @property
    def complete(self) -> bool:
        """Whether the output may end now."""
        return self._matcher.is_accepting()

    @property
    def error(self) -> str:
        """Why matching was given up (a token not allowed, a dead end, a grammar beyond the limits); empty if it was
        not."""
        if not self._matcher.is_error():
            return ""
        reason = one_line(self._matcher.get_error())
        why = "no text goes on from here" if reason == _DEAD_END else reason
        return f"{self._form} cannot be met to its end: {why}"

    def mask(self) -> np.ndarray:
        """Which tokens may come next, (V,) bool; ends of text exactly when the grammar is complete.

        After an error only ends of text are left.
        """
        if self._matcher.is_error():
            return self._compiler.end_mask
        mask = self._compiler.unpack(self._matcher.compute_bitmask())
        return self._compiler.end_mask if self._matcher.is_error() else mask

    def accept(self, token_id: int) -> None:
        """Advance by one token; after the end, further ends of text change nothing."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)

    def accept_text(self, text: str) -> None:
        """Advance by text that came in one token with the end of thinking."""
        if text:
            self._matcher.consume_tokens(self._compiler.vocabulary.tokenize_str(text))


def is_whole(grammar: Grammar, text: str) -> bool:
    """Whether a text has the form from its beginning to its end; white space around it is not looked at."""
    import llguidance

    matcher = llguidance.LLMatcher(bytes_tokenizer(), _SOURCES[grammar.kind](grammar.value), log_level=0)
    data = text.strip().encode()
    return matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting()


def _json_source(value: str) -> str:
    import llguidance

    try:
        schema = json.loads(value)
    except ValueError as error:
        raise UserError(f"the JSON schema is not JSON: {error}") from error
    except RecursionError as error:
        raise UserError("the JSON schema is nested too deeply") from error
    if not isinstance(schema, dict | bool):
        raise UserError("the JSON schema must be an object, as in {'type': 'object'}")
    return llguidance.LLMatcher.grammar_from_json_schema(spaced(schema), overrides={"lenient": True})


def spaced(schema: Any, spacing: dict[str, Any] = SPACING) -> dict[str, Any]:
    """A JSON schema, true and false included, with a rule for white space where it has none (`x-guidance`)."""
    return {"x-guidance": spacing} | (schema if isinstance(schema, dict) else {"allOf": [schema]})


def _regex_source(value: str) -> str:
    import llguidance

    return llguidance.LLMatcher.grammar_from_regex(value)


def _choice_source(value: str) -> str:
    import llguidance

    try:
        choices = parse_json(value)
    except ValueError as error:
        raise UserError(f"the choices are not a JSON list: {error}") from error
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise UserError("the choices must be a list of strings, at least one")
    return llguidance.LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices)))


def _lark_source(value: str) -> str:
    import llguidance

    return llguidance.LLMatcher.grammar_from_lark(value)


_SOURCES: dict[str, Callable[[str], str]] = {
    "json_schema": _json_source,
    "json_object": lambda _: _json_source('{"type": "object"}'),
    "regex": _regex_source,
    "choice": _choice_source,
    "lark": _lark_source,
}
_NAMES = {
    "json_schema": "the JSON schema",
    "json_object": "a JSON object",
    "regex": "the regular expression",
    "choice": "the list of choices",
    "lark": "the Lark grammar",
}


def one_line(message: str) -> str:
    """The telling part of a message that may show the source with markers below it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    named = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    return (f"{lines[0].rstrip(':')}: {named}" if named else lines[0])[:300] if lines else "unknown reason"
