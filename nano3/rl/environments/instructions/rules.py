"""Rules that an answer follows or not, of the kinds of IFEval (arXiv 2311.07911) and IFBench (arXiv 2507.02833).

Each takes the answer and its own arguments, which have IFEval's names where the rule is one of its 25.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

Rule = Callable[..., bool]
LONGEST_FOR_LANGUAGE = 5000
"""Characters of which the language is looked for."""
RELATIONS = {"at least": lambda n, m: n >= m, "less than": lambda n, m: n < m, "exactly": lambda n, m: n == m}
RULES: dict[str, Rule] = {}


def _rule(name: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES[name] = rule
        return rule

    return add


def words(text: str) -> list[str]:
    """Words without the signs around them."""
    return re.findall(r"[\w]+(?:['’-][\w]+)*", text)


def sentences(text: str) -> list[str]:
    """Sentences, which . ! ? … or a line break end."""
    parts = re.split(r"(?<=[.!?…])[\"'”’)\]]*\s+|\n+", text.strip())
    return [part.strip() for part in parts if words(part)]


def paragraphs(text: str, divider: str = "***") -> list[str]:
    """Parts between dividers, as IFEval counts paragraphs."""
    return [part.strip() for part in text.split(divider)]


def _count(found: int, relation: str | None, wanted: int | None) -> bool:
    return RELATIONS[relation or "at least"](found, 1 if wanted is None else int(wanted))


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


@_rule("keywords:existence")
def existence(text: str, keywords: Sequence[str]) -> bool:
    """All of the keywords are there."""
    return all(_word(word).search(text) for word in keywords)


@_rule("keywords:forbidden_words")
def forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    """None of the words is there."""
    return not any(_word(word).search(text) for word in forbidden_words)


@_rule("keywords:frequency")
def frequency(text: str, keyword: str, frequency: int, relation: str = "at least") -> bool:
    """A word comes so often."""
    return _count(len(_word(keyword).findall(text)), relation, frequency)


@_rule("keywords:letter_frequency")
def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str = "at least") -> bool:
    """A letter comes so often, small or capital."""
    return _count(text.lower().count(letter.lower()), let_relation, let_frequency)


@_rule("language:response_language")
def response_language(text: str, language: str) -> bool:
    """The answer's language, by its ISO 639-1 code."""
    import langdetect
    from langdetect.lang_detect_exception import LangDetectException

    langdetect.DetectorFactory.seed = 0  # it draws at random otherwise
    try:
        found = langdetect.detect(text[:LONGEST_FOR_LANGUAGE])
    except LangDetectException:
        return False
    return found.partition("-")[0] == language.partition("-")[0]


@_rule("length_constraints:number_sentences")
def number_sentences(text: str, num_sentences: int, relation: str = "at least") -> bool:
    """So many sentences."""
    return _count(len(sentences(text)), relation, num_sentences)


@_rule("length_constraints:number_words")
def number_words(text: str, num_words: int, relation: str = "at least") -> bool:
    """So many words."""
    return _count(len(words(text)), relation, num_words)


@_rule("length_constraints:number_paragraphs")
def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """So many paragraphs with *** between them."""
    parts = paragraphs(text)
    return len(parts) == num_paragraphs and all(parts)


@_rule("length_constraints:nth_paragraph_first_word")
def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """So many paragraphs with an empty line between them, and what the nth begins with."""
    parts = [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]
    if len(parts) != num_paragraphs or not 0 < nth_paragraph <= len(parts):
        return False
    return [word.lower() for word in words(parts[nth_paragraph - 1])[:1]] == [first_word.lower()]


@_rule("detectable_content:number_placeholders")
def number_placeholders(text: str, num_placeholders: int) -> bool:
    """At least so many placeholders in square brackets."""
    return len(re.findall(r"\[[^\[\]\n]+\]", text)) >= num_placeholders


@_rule("detectable_content:postscript")
def postscript(text: str, postscript_marker: str = "P.S.") -> bool:
    """A postscript at the end, after its marker."""
    _, marker, after = text.rpartition(postscript_marker)
    return bool(marker) and bool(words(after))


@_rule("detectable_format:number_bullet_lists")
def number_bullet_lists(text: str, num_bullets: int) -> bool:
    """Exactly so many lines that begin with * or -."""
    return len(re.findall(r"^[ \t]*[*-][ \t]+\S", text, re.MULTILINE)) == num_bullets


@_rule("detectable_format:constrained_response")
def constrained_response(
    text: str, options: Sequence[str] = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
) -> bool:
    """Exactly one of the allowed answers."""
    return text.strip() in options


@_rule("detectable_format:number_highlighted_sections")
def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """At least so many parts between asterisks."""
    found = re.findall(r"\*\*([^*\n]+)\*\*|(?<!\*)\*([^*\n]+)\*(?!\*)", text)
    return sum(bool(words("".join(parts))) for parts in found) >= num_highlights


@_rule("detectable_format:multiple_sections")
def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections that begin with the splitter and a number."""
    return len(re.findall(rf"\b{re.escape(section_spliter)}\s+\d+", text, re.IGNORECASE)) >= num_sections


@_rule("detectable_format:json_format")
def json_format(text: str) -> bool:
    """The whole answer is JSON, maybe in a code block."""
    inner = re.fullmatch(r"\s*```(?:json)?\n(.*)```\s*", text, re.DOTALL | re.IGNORECASE)
    try:
        json.loads(inner[1] if inner else text)
    except (ValueError, RecursionError):
        return False
    return True


@_rule("detectable_format:title")
def title(text: str) -> bool:
    """A title in double angular brackets."""
    return any(words(found) for found in re.findall(r"<<([^<>\n]+)>>", text))


@_rule("combination:two_responses")
def two_responses(text: str) -> bool:
    """Two different answers with six asterisks between them."""
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


@_rule("combination:repeat_prompt")
def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    """The request word for word, then an answer."""
    text, prompt = text.strip(), prompt_to_repeat.strip()
    return text.lower().startswith(prompt.lower()) and bool(words(text[len(prompt) :]))


@_rule("startend:end_checker")
def end_checker(text: str, end_phrase: str) -> bool:
    """The answer ends with the phrase."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_rule("startend:quotation")
def quotation(text: str) -> bool:
    """The whole answer in double quotation marks."""
    text = text.strip()
    return len(text) > 2 and text[0] == text[-1] == '"'


@_rule("change_case:capital_word_frequency")
def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str = "at least") -> bool:
    """So many words in capitals."""
    return _count(sum(word.isupper() for word in words(text)), capital_relation, capital_frequency)


@_rule("change_case:english_capital")
def english_capital(text: str) -> bool:
    """Capital letters only."""
    return text.isupper()


@_rule("change_case:english_lowercase")
def english_lowercase(text: str) -> bool:
    """Small letters only."""
    return text.islower()


@_rule("punctuation:no_comma")
def no_comma(text: str) -> bool:
    """No comma; and something is said."""
    return "," not in text and bool(words(text))


@_rule("startend:start_checker")
def start_checker(text: str, start_phrase: str) -> bool:
    """The answer begins with the phrase."""
    return text.strip().lower().startswith(start_phrase.strip().lower())


@_rule("count:word_range")
def word_range(text: str, min_words: int, max_words: int) -> bool:
    """From so many to so many words."""
    return min_words <= len(words(text)) <= max_words


@_rule("count:unique_words")
def unique_words(text: str, num_words: int) -> bool:
    """At least so many different words."""
    return len({word.lower() for word in words(text)}) >= num_words


@_rule("count:numbers")
def numbers(text: str, num_numbers: int) -> bool:
    """Exactly so many numbers in digits."""
    return len(re.findall(r"\d+(?:[.,]\d+)*", text)) == num_numbers


@_rule("count:lines")
def lines(text: str, num_lines: int) -> bool:
    """Exactly so many lines that are not empty."""
    return sum(bool(line.strip()) for line in text.splitlines()) == num_lines


@_rule("words:no_repeats")
def no_repeats(text: str) -> bool:
    """No word twice; and something is said."""
    found = Counter(word.lower() for word in words(text))
    return bool(found) and max(found.values()) == 1


@_rule("words:alphabetical")
def alphabetical(text: str) -> bool:
    """Words in the order of the alphabet."""
    found = [word.lower() for word in words(text)]
    return bool(found) and found == sorted(found)


@_rule("words:no_letter")
def no_letter(text: str, letter: str) -> bool:
    """A letter is nowhere; and something is said."""
    return bool(words(text)) and letter.lower() not in text.lower()


@_rule("format:separator")
def separator(text: str, separator: str, num_items: int) -> bool:
    """So many items with the separator between them."""
    items = [item.strip() for item in text.strip().split(separator)]
    return len(items) == num_items and all(items)


def follows(text: str, rule: str, arguments: dict[str, Any]) -> bool:
    """Whether an answer follows a rule; an empty one follows none.

    Raises:
        KeyError: there is no such rule.
        TypeError: it does not take these arguments.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    return bool(text.strip()) and bool(RULES[rule](text, **given))
