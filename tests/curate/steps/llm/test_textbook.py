"""Sections of textbooks by a model that is told what to write."""

import json

import pytest

from nano3.config.errors import UserError

from ...conftest import dropped

SECTIONS = """## Groups

A symmetry can be undone, and two of them can be done one after the other. This is what a group says.

**Definition** A group is a set with an operation that is associative, has a neutral element and inverses.

**Example** The whole numbers with addition are a group; the neutral element is $0$, the inverse of $n$ is $-n$.

## Subgroups

A part of a group that is a group by itself is called a subgroup of it, and there are many of them.

$$
2\\mathbb{Z} \\subset \\mathbb{Z}
$$

**Example** The even numbers are a subgroup of the whole numbers, since sums of even numbers are even.
"""


def written(curate, server, level, sections=SECTIONS, **settings):
    def reply(prompt, body):
        if "Which level of education" in prompt:
            return json.dumps({"reason": "r", "level": level})
        return sections

    server.reply = reply
    report, kept = curate([("textbook", settings)], ["Let G be a group."], server=server.url)
    return kept, dropped(report, "textbook")


@pytest.mark.parametrize("level", ["undergraduate", "graduate", "Research"])
def test_texts_of_the_level_and_above_are_written_as_sections(curate, model_server, level):
    [row], _ = written(curate, model_server, level)
    assert row["text"] == SECTIONS
    assert row["metadata"]["level"] == level.lower()
    assert model_server.bodies[0]["temperature"] == 0


@pytest.mark.parametrize(
    ("level", "reason"),
    [("school", "level too low"), ("none", "no mathematics"), ("college", "no level in the reply")],
)
def test_other_texts_are_dropped_before_anything_is_written(curate, model_server, level, reason):
    kept, reasons = written(curate, model_server, level)
    assert (kept, reasons, len(model_server.prompts)) == ([], {reason: 1}, 1)


GERMAN = "Eine Gruppe ist eine Menge mit einer assoziativen Verknüpfung, einem neutralen Element und Inversen. " * 3


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        (SECTIONS.replace("## Sub", "Sub"), "too few sections"),
        (SECTIONS.replace("**Definition**", "By definition,"), "too few definitions"),
        (SECTIONS.replace("**Example**", "So"), "too few examples"),
        (SECTIONS.replace("\\mathbb{Z}\n$$", "\\mathbb{Z}"), "formula that does not end"),
        (SECTIONS + "\n$\\begin{matrix} 1$", "formula that does not end"),
        (SECTIONS.replace("**Example**", "*Exercise*", 1), ""),
        (GERMAN, "not English"),
    ],
)
def test_sections_that_no_textbook_has_are_dropped(curate, model_server, sections, reason):
    kept, reasons = written(curate, model_server, "graduate", sections)
    assert reasons == ({reason: 1} if reason else {})
    assert len(kept) == (not reason)


def test_an_unknown_level_is_refused(curate):
    with pytest.raises(UserError, match=r"textbook\.level is 'college'; it must be one of school, undergraduate"):
        curate([("textbook", {"level": "college"})], ["x"])
