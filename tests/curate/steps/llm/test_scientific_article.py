"""Articles with code by a model that is told what to write, and what they must be."""

import pytest

from nano3.config.errors import UserError
from nano3.curate.ask.answers import DropError
from nano3.curate.steps.llm.scientific_article import ScientificArticleSettings, check_article

from ...conftest import dropped

WORDS = (
    "A body that falls through air is slowed down by a force that grows with the square of its speed, so that after "
    "some time it goes no faster, and the energy that it loses warms the air around it by a small amount. "
) * 5
FIRST = "```python\nimport math\n\n\ndef terminal_speed(mass, area):\n    gravity = 9.81\n    density = 1.2\n" \
    "    force = mass * gravity\n    return math.sqrt(2 * force / (density * area))\n```\n"  # fmt: skip
SECOND = "```python\ndef falling_time(height, speed):\n    step = 0.01\n    time = 0.0\n    while height > 0:\n" \
    "        height -= speed * step\n        time += step\n    return time\n```\n"  # fmt: skip
BOTH = FIRST + SECOND
OUTPUT = "```text\n12.3 seconds\n```\n"
ARTICLE = (
    f"# Falling bodies\n\n{WORDS}\n\n{FIRST}\n## Time\n\nIt is then summed over steps.\n\n{SECOND}\n{OUTPUT}\nDone.\n"
)
SOURCE = "Bodies fall.\n\n```python\ndef terminal_speed(mass, area):\n    return mass / area\n```\n"
OTHER = "Bodies fall.\n\n```python\ndef other_thing(this_one, that_one):\n    return this_one / that_one\n```\n"


def reason(text, source=SOURCE, **settings):
    """Why an article is dropped; empty: it is not."""
    try:
        check_article(text, source, ScientificArticleSettings(**settings))
    except DropError as error:
        return error.reason
    return ""


@pytest.mark.parametrize(
    ("text", "source", "told"),
    [
        (ARTICLE, SOURCE, ""),
        (ARTICLE, "Bodies fall.", ""),
        (ARTICLE.replace("## Time", ""), SOURCE, "too few sections"),
        (ARTICLE.replace(WORDS, "A body falls."), SOURCE, "too few words around the code"),
        (ARTICLE.replace(SECOND, ""), SOURCE, "too few blocks of code between the words"),
        (ARTICLE.replace(FIRST, FIRST.replace("python", "text")), SOURCE, "too few blocks of code between the words"),
        (ARTICLE.replace("It is then summed over steps.", ""), SOURCE, "too few blocks of code between the words"),
        (ARTICLE.replace(SECOND, "").replace(FIRST, BOTH), SOURCE, "too few blocks of code between the words"),
        (ARTICLE.replace(FIRST, OUTPUT + FIRST), SOURCE, ""),
        (ARTICLE.replace("while height > 0:", "while height > 0"), SOURCE, "code with a syntax error"),
        (ARTICLE.replace("step = 0.01", "# ... rest of the code unchanged"), SOURCE, "code left out"),
        (ARTICLE, OTHER, "the text's own code left out"),
        (ARTICLE, WORDS, "copied from the original"),
    ],
)  # fmt: skip
def test_an_article_has_code_that_parses_between_its_own_words(text, source, told):
    assert reason(text, source) == told


def test_a_few_lines_are_no_program_and_other_languages_have_their_own_parser():
    short = ARTICLE.replace(FIRST, "```python\nx = 1\n```\n").replace(SECOND, "```python\ny = 2\n```\n")
    assert reason(short, "Bodies fall.") == "trivial code"
    other = ARTICLE.replace(SECOND, "```js\nfunction falls(x) {\n  return 2 * x;\n}\n```\n")
    assert reason(other, lines=8) == ""
    assert reason(other.replace("(x)", "(x"), lines=8) == "code with a syntax error"


def test_an_article_is_kept_with_its_languages(curate, model_server):
    model_server.reply = lambda prompt, body: (
        "NONE" if "nothing here" in prompt else f"Here is the article:\n\n{ARTICLE}"
    )
    report, [row] = curate([("scientific-article", {})], [SOURCE, "nothing here"], server=model_server.url)
    assert row["text"] == ARTICLE
    assert row["id"] == "d0/article"
    assert row["metadata"]["languages"] == ["python"]
    assert row["metadata"]["asked"][0]["prompts"].keys() == {"scientific-article"}
    assert dropped(report, "article") == {"nothing to compute in it": 1}


def test_numbers_that_cannot_be_are_refused(curate):
    with pytest.raises(UserError, match=r"scientific-article\.names is 2"):
        curate([("scientific-article", {"names": 2})], ["x"])
