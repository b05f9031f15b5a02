"""Texts written anew in five ways by a model that is told what to write."""

import pytest

from nano3.config.errors import UserError
from nano3.curate.steps.llm.rephrase import STYLES, copied

from ...conftest import dropped

TEXT = (
    "Herons are long-legged birds that live near fresh water and hunt fish by standing still for a long time. "
    "There are about sixty species of them in the world, and most of them build their nests in high trees. "
)
PAIRS = (
    "### Question\nHow do herons hunt?\n\n### Answer\nBy standing still.\n\n"
    "### Question\nHow many species?\n\n### Answer\nSixty."
)
PROSE = (
    "The heron is a bird with long legs. It feeds on fish, for which it waits without a movement at rivers and lakes. "
    "Some sixty kinds are known today, which mostly breed high up in trees and come back there every year again. "
)
ITEMS = "- Herons are birds with long legs.\n- They wait for fish without moving.\n- About sixty species are known."
GOOD = {"diverse-qa": PAIRS, "distill": PROSE, "extract-knowledge": PROSE, "knowledge-list": ITEMS, "wikipedia": PROSE}
SIGNS = {
    "diverse-qa": "up to eight questions", "distill": "clear and concise",
    "extract-knowledge": "passages of a textbook", "knowledge-list": "one item a line", "wikipedia": "encyclopedia",
}  # fmt: skip
GERMAN = (
    "Der Reiher ist ein Vogel mit langen Beinen, der an Flüssen und Seen auf Fische wartet und in Bäumen nistet. " * 3
)


def style_of(prompt):
    return next(style for style, sign in SIGNS.items() if sign in prompt)


def rephrased(curate, server, said, texts=(TEXT,), **settings):
    server.reply = lambda prompt, body: said[style_of(prompt)]
    report, kept = curate([("rephrase", settings)], texts, server=server.url)
    notes = {what: n for what, n in report.steps[-1].account.notes.items() if "not kept" in what}
    return kept, notes, dropped(report, "rephrase")


def test_each_document_is_written_in_every_style(curate, model_server):
    kept, notes, _ = rephrased(curate, model_server, GOOD)
    assert [(row["id"], row["metadata"]["style"]) for row in kept] == [(f"d0/{style}", style) for style in STYLES]
    texts = {row["metadata"]["style"]: row["text"] for row in kept}
    assert texts["distill"] == PROSE.strip() + "\n"
    assert texts["diverse-qa"] == (
        f"{TEXT.strip()}\n\nQuestion: How do herons hunt?\n\nAnswer: By standing still.\n\n"
        "Question: How many species?\n\nAnswer: Sixty.\n"
    )
    assert notes == {}
    assert all(prompt.rstrip().endswith(TEXT.strip()) for prompt in model_server.prompts)


@pytest.mark.parametrize(
    ("style", "said", "why"),
    [
        ("diverse-qa", PROSE, "reply that does not begin with a turn"),
        ("diverse-qa", PAIRS + "\n\n### Question\nAnd?", "no pairs of question and answer"),
        ("distill", TEXT, "copied from the original"),
        ("distill", GERMAN, "not English"),
        ("distill", PROSE * 3, "length"),
        ("distill", "A.", "length"),
        ("knowledge-list", PROSE, "no list"),
        ("wikipedia", "", "empty answer"),
        ("wikipedia", "I'm sorry, but I cannot do this.", "refused by the model"),
        ("wikipedia", {"message": {"content": PROSE}, "finish_reason": "length"}, "answer cut"),
    ],
)
def test_a_style_that_fails_is_counted_and_the_others_stay(curate, model_server, style, said, why):
    kept, notes, reasons = rephrased(curate, model_server, GOOD | {style: said})
    assert [row["metadata"]["style"] for row in kept] == [one for one in STYLES if one != style]
    assert notes == {f"{style} not kept: {why}": 1}
    assert reasons == {}


def test_a_document_of_which_every_style_fails_is_dropped(curate, model_server):
    kept, _, reasons = rephrased(curate, model_server, dict.fromkeys(STYLES, GERMAN), styles=["distill", "wikipedia"])
    assert kept == []
    assert reasons == {"no style kept": 1}
    assert len(model_server.prompts) == 2


def test_an_announcement_is_no_part_of_the_text(curate, model_server):
    kept, _, _ = rephrased(curate, model_server, {"distill": "Here is the text:\n\n" + PROSE}, styles=["distill"])
    assert kept[0]["text"] == PROSE.strip() + "\n"


def test_long_documents_go_in_pieces(curate, model_server):
    page = "\n\n".join([TEXT.strip()] * 6)
    [row], _, _ = rephrased(curate, model_server, GOOD, [page], styles=["distill"], chunk=500)
    assert row["text"].strip().split("\n\n") == [PROSE.strip()] * 3


def test_copies_are_told_by_their_runs_of_words():
    assert copied(TEXT, TEXT) == 1
    assert copied(PROSE, TEXT) == 0
    assert copied("too short to tell", "too short to tell") == 0


@pytest.mark.parametrize(
    ("styles", "told"),
    [([], "styles is empty"), (["distill", "distill"], "names one twice"), (["distil"], "styles")],
)
def test_styles_that_cannot_be_are_refused(curate, styles, told):
    with pytest.raises(UserError, match=told):
        curate([("rephrase", {"styles": styles})], ["x"])


def test_a_short_text_may_have_many_questions(curate, model_server):
    many = "\n\n".join(PAIRS.replace("herons", f"herons of kind {i}") for i in range(4))
    [row], notes, _ = rephrased(curate, model_server, {"diverse-qa": many}, styles=["diverse-qa"])
    assert row["text"].count("Question: ") == 8
    assert notes == {}


def test_the_length_is_that_of_the_whole_not_of_the_last_piece(curate, model_server):
    page = "\n\n".join([TEXT.strip()] * 2 + ["They are birds."])
    [row], notes, _ = rephrased(curate, model_server, GOOD, [page], styles=["distill"], chunk=420)
    assert row["text"].strip().split("\n\n") == [PROSE.strip()] * 2
    assert notes == {}


@pytest.mark.parametrize("use", ["rephrase", "translate", "revise-article"])
def test_lengths_that_nothing_has_are_refused(curate, use):
    with pytest.raises(UserError, match=rf"{use}\.least is 3.0; it must be at most 1.5"):
        curate([(use, {"least": 3.0, "most": 1.5})], ["x"])
