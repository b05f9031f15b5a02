"""Wikipedia's pages: what is no article, sections that go, and what a revision must keep."""

import pytest

from nano3.curate.steps.llm.wikipedia import REMOVED, is_disambiguation, without_sections

from ...conftest import dropped

WIKI = """'''Heron''' is a bird.

== Habitat ==
Rivers.

=== Notes on nests ===
Twigs.

== References ==
{{reflist}}

=== Sources ===
Book.

== Life ==
Long.

==See also==
* [[Stork]]

== External links ==
* http://example.org
"""
MARKDOWN = "# Heron\n\nA bird.\n\n## Notes\n\n1. a\n\n### More\n\nx\n\n## Life\n\nLong.\n\n## References ##\n\n1. b\n"
PLAIN = """Heron

A heron is a bird.

Habitat

They live at rivers. See also the stork.

See also
Stork
List of birds

Life

It is long.

References

External links
 Official site
"""


@pytest.mark.parametrize(
    ("text", "kept", "gone", "n"),
    [
        (WIKI, ["Rivers.", "=== Notes on nests ===", "Twigs.", "== Life ==", "Long."],
         ["reflist", "Sources", "Book", "See also", "Stork", "External", "http"], 3),
        (MARKDOWN, ["# Heron", "A bird.", "## Life", "Long."], ["Notes", "1. a", "More", "x", "References", "1. b"], 2),
        (PLAIN, ["A heron is", "Habitat", "See also the stork.", "Life", "It is long."],
         ["List of birds", "References", "External links", "Official site"], 3),
        (WIKI + "\nStork\n\nReferences\n", ["== Life =="], ["Stork"], 3),
        ("# Heron\n\n```python\n# Notes\nx = 1\n```\n\nNotes\n", ["# Notes", "x = 1", "\nNotes"], [], 0),
        ("== Life ==\nLong.\n\n== See also ==\n# [[Stork]]\n# [[Crane]]\n", ["Long."], ["Stork", "Crane"], 1),
        ("An article.\n\nNotes are written on staves.\n", ["Notes are written on staves."], [], 0),
    ],
)  # fmt: skip
def test_sections_are_removed_with_all_below_them(text, kept, gone, n):
    found, removed = without_sections(text, REMOVED)
    assert [one for one in kept if one not in found] == []
    assert [one for one in gone if one in found] == []
    assert removed == n


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Mercury may refer to:\n\nMercury (planet)", ""),
        ("Mercury\n\nMercury most commonly may refer to:\n* a", ""),
        ("'''AB''' can stand for:\n* a", ""),
        ("* [[Mercury (planet)]]\n{{disambiguation|geo}}", ""),
        ("a planet\n\n__DISAMBIG__", ""),
        ("* [[Riverside School, Perth]]\n\n{{School disambiguation}}", ""),
        ("Planets and gods.", "Mercury (disambiguation)"),
        ("Mercury (disambiguation)\n\nx", ""),
    ],
)
def test_pages_that_tell_meanings_apart_are_known(text, title):
    assert is_disambiguation(text, title)


@pytest.mark.parametrize(
    "text",
    [
        "Mercury is a planet.\n\nIt may refer to time.",
        "Physicists may refer to the effect as drag, and write it so.",
        "'''Heron''' is named by [[Mercury]]{{Disambiguation needed|date=May 2020}} and others.",
        "In logic, disambiguation is the removal of what has several meanings.",
    ],
)
def test_articles_are_no_such_pages(text):
    assert not is_disambiguation(text)


def test_what_is_no_article_is_dropped_by_its_reason(curate):
    texts = ["#REDIRECT [[Heron]]", "Heron may refer to:\na\nb", "See also\nStork\n", WIKI]
    report, [kept] = curate([("wikipedia-article", {})], texts)
    assert dropped(report, "article") == {
        "redirect page": 1, "disambiguation page": 1, "nothing but sections that are removed": 1,
    }  # fmt: skip
    assert "Stork" not in kept["text"]
    assert report.steps[-1].account.notes == {"sections removed": 3}


def test_the_sections_are_a_setting(curate):
    _, [kept] = curate([("wikipedia-article", {"remove": ["Life"]})], [WIKI])
    assert "Long." not in kept["text"]
    assert "Stork" in kept["text"]


ARTICLE = (
    "Herons are birds of 13 genera that live near fresh water. There are 74 species of them in the world, and most of "
    "them build their nests in high trees, where they come back to for 20 years and more in a row.\n"
)
GERMAN = (
    "Reiher sind Vögel aus 13 Gattungen, die am Süßwasser leben. Es gibt 74 Arten von ihnen auf der Welt, und die "
    "meisten bauen ihre Nester auf hohen Bäumen, zu denen sie 20 Jahre lang und länger immer wieder zurückkehren."
)
REVISED = ARTICLE.replace("Herons are birds", "Herons are long-legged birds")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (REVISED, ""),
        ("Here is the revised part:\n\n" + REVISED, ""),
        (REVISED.replace("13", "many").replace("74", "some"), "numbers lost"),
        (REVISED + "They are 90 cm long, weigh 2 kg and live for 15 years.", "numbers added"),
        (REVISED[:60], "length out of proportion"),
        (GERMAN, "not English"),
    ],
)  # fmt: skip
def test_a_revision_keeps_the_facts_or_is_dropped(curate, model_server, said, reason):
    model_server.reply = lambda prompt, body: said
    report, kept = curate([("revise-article", {})], [ARTICLE], server=model_server.url)
    assert dropped(report, "revise-article") == ({reason: 1} if reason else {})
    assert [(row["id"], row["text"]) for row in kept] == ([] if reason else [("d0/revised", REVISED)])


def test_footnotes_that_a_revision_takes_out_are_no_numbers_lost(curate, model_server):
    model_server.reply = lambda prompt, body: REVISED
    marked = "".join(f"{word}[{i}] " for i, word in enumerate(ARTICLE.split(" "), start=1))
    referenced = ARTICLE.replace(".", '.<ref name="a">Smith 1999, pages 11 to 19</ref><ref name="a" />')
    _, kept = curate([("revise-article", {})], [marked, referenced], server=model_server.url)
    assert [row["text"] for row in kept] == [REVISED] * 2
