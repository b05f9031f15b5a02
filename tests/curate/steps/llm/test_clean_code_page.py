"""Pages cleaned by a model that is told what to write by rule, as good and bad ones would."""

import re

import pytest

from nano3.config.errors import UserError
from nano3.curate.steps.llm.clean_code_page import own_words

CODE = "```python\ndef secret(x):\n    total = 0\n\tkept = '  byte for byte '   \n    return total\n```"
EQUATION = "$$\nE = m c^2\n$$"
PAGE = f"Home | Login\n\nSorting lists takes time.\n\n{CODE}\n\nThe energy is\n\n{EQUATION}\n\nSubscribe now!\n"
CLEAN = f"Sorting lists takes time.\n\n{CODE}\n\nThe energy is\n\n{EQUATION}\n"


def page_in(prompt):
    """The page that a prompt shows."""
    return prompt.split("The part of the page:\n\n")[1]


def without_noise(prompt, body=None):
    """A good model: it takes lines of menus out, and nothing else."""
    lines = [line for line in page_in(prompt).split("\n") if "Login" not in line and "Subscribe" not in line]
    return "\n".join(lines).strip() or "NOTHING"


def cleaned(curate, server, reply, texts=(PAGE,), **settings):
    server.reply = reply
    report, kept = curate([("clean-code-page", settings)], texts, server=server.url)
    notes = {what: n for what, n in report.steps[-1].account.notes.items() if what.startswith("pages")}
    return [(row["text"], row["metadata"]["cleaned"]) for row in kept], notes


def test_a_page_is_cleaned_and_its_code_never_passes_through_the_model(curate, model_server):
    found, notes = cleaned(curate, model_server, without_noise)
    assert found == [(CLEAN, True)]
    assert notes == {"pages cleaned": 1}
    [prompt] = model_server.prompts
    assert "total = 0" not in prompt
    assert "kept" not in prompt
    assert "[[CODE 1 python]] def secret(x): ... return total" in prompt
    assert "[[EQUATION 2]] E = m c^2" in prompt


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (lambda p, b: without_noise(p).replace("[[CODE 1 python]]", ""), "markers not once each and in order"),
        (lambda p, b: without_noise(p).replace("[[CODE 1 python]]", "[[CODE 1]]"),
         "markers not once each and in order"),
        (lambda p, b: without_noise(p) + "\n[[EQUATION 2]]", "markers not once each and in order"),
        (lambda p, b: without_noise(p).replace("[[EQUATION 2]]", "").replace("[[CODE", "[[EQUATION 2]] [[CODE"),
         "markers not once each and in order"),
        (lambda p, b: without_noise(p) + "\n```python\nprint()\n```", "code block added"),
        (lambda p, b: without_noise(p) + "\nThis summary explains quicksort algorithms thoroughly.", "words added"),
        (lambda p, b: without_noise(p).replace("takes", "takes `x(0)`"), "inline code changed"),
        (lambda p, b: without_noise(p) + "\n> ```\n> print()\n> ```", "code block added"),
        (lambda p, b: "NOTHING", "markers not once each and in order"),
        (lambda p, b: "", "empty answer"),
        (lambda p, b: "I'm sorry, I can't help with that.", "refused by the model"),
        (lambda p, b: {"message": {"content": "[[CODE 1 python]]"}, "finish_reason": "length"}, "answer cut"),
    ],
)  # fmt: skip
def test_a_page_with_any_other_reply_stays_as_it_was_and_is_counted(curate, model_server, reply, why):
    found, notes = cleaned(curate, model_server, reply)
    assert found == [(PAGE, False)]
    assert notes == {f"pages left uncleaned: {why}": 1}


def test_a_page_that_the_server_refuses_stays_and_a_server_that_refuses_all_ends_the_run(curate, model_server):
    reply = lambda p, b: (400, "too long") if "Login" in p else page_in(p)  # noqa: E731
    found, notes = cleaned(curate, model_server, reply, ["A short page.\n", PAGE])
    assert found == [("A short page.\n", True), (PAGE, False)]
    assert notes == {"pages cleaned": 1, "pages left uncleaned: request refused by the server (HTTP 400)": 1}
    model_server.reply = lambda p, b: (401, "no key")
    with pytest.raises(UserError, match="no key"):
        curate([("clean-code-page", {})], ["Another page."], server=model_server.url, out="refused")


GUIDE = "Sorting a list takes time, which grows with the number of its items. " * 6


@pytest.mark.parametrize(
    ("page", "kept"),
    [
        (f"Home | Login\n\n{GUIDE}\n\n{CODE}\n", False),
        (f"Home | Login\n\n{CODE}\n\nSubscribe now!\n", True),  # a menu and its code: little text to begin with
    ],
)
def test_a_page_whose_explanations_are_taken_out_stays_as_it_was(curate, model_server, page, kept):
    found, notes = cleaned(curate, model_server, lambda p, b: "[[CODE 1 python]]", [page])
    if kept:
        assert (found, notes) == ([(f"{CODE}\n", True)], {"pages cleaned": 1})
    else:
        assert (found, notes) == ([(page, False)], {"pages left uncleaned: too little text left": 1})


def test_how_much_must_be_left_is_a_setting(curate, model_server):
    page = f"{GUIDE}\n\n{CODE}\n"
    found, _ = cleaned(curate, model_server, lambda p, b: "[[CODE 1 python]]", [page], least=0)
    assert found == [(f"{CODE}\n", True)]


def test_a_reply_in_a_fence_is_taken_out_of_it(curate, model_server):
    found, _ = cleaned(curate, model_server, lambda p, b: f"```markdown\n{without_noise(p)}\n```")
    assert found == [(CLEAN, True)]


def test_a_page_of_which_nothing_is_worth_keeping_is_dropped(curate, model_server):
    model_server.reply = without_noise
    report, kept = curate([("clean-code-page", {})], ["Home | Login\n\nSubscribe\n"], server=model_server.url)
    assert kept == []
    assert report.steps[-1].account.dropped["nothing worth keeping"].size.documents == 1


def test_long_pages_go_in_chunks_that_end_between_blocks_and_one_bad_chunk_leaves_the_page(curate, model_server):
    page = "\n\n".join(
        f"Paragraph number {i}, Login\n\n```c\nint x{i} = {i};\n```\n\n{'word ' * 30}" for i in range(12)
    )
    found, notes = cleaned(curate, model_server, without_noise, [page], chunk=400)
    assert len(model_server.prompts) > 4
    assert all(len(page_in(prompt)) <= 400 for prompt in model_server.prompts)
    [(text, was_cleaned)] = found
    assert was_cleaned
    assert re.findall(r"int x\d+ = \d+;", text) == [f"int x{i} = {i};" for i in range(12)]
    assert "Login" not in text
    assert notes == {"pages cleaned": 1}


def test_a_line_of_the_page_that_announces_its_code_is_no_announcement_of_the_model(curate, model_server):
    page = f"Here is the function:\n\n{CODE}\n\nIt is Login-free.\n"
    reply = lambda p, b: page_in(p).replace("It is Login-free.", "")  # noqa: E731
    found, _ = cleaned(curate, model_server, reply, [page])
    assert found == [(f"Here is the function:\n\n{CODE}\n", True)]


def test_one_bad_chunk_leaves_the_page_as_it_was(curate, model_server):
    page = "\n\n".join(f"Part {i}\n\n```c\nint x{i};\n```\n\n{'word ' * 60}" for i in range(4))
    reply = lambda p, b: page_in(p).replace("[[CODE 3 c]]", "")  # noqa: E731
    found, notes = cleaned(curate, model_server, reply, [page], chunk=300)
    assert found == [(page, False)]
    assert notes == {"pages left uncleaned: markers not once each and in order": 1}


def test_chunks_fit_the_context_of_the_model(curate, model_server):
    model_server.reply = without_noise
    page = "\n\n".join("word " * 40 for _ in range(40))
    curate([("clean-code-page", {})], [page], server=model_server.url, ask={"window": 800})
    assert max(len(page_in(prompt)) for prompt in model_server.prompts) <= 1000
    assert {body["max_tokens"] for body in model_server.bodies} == {400}


def test_a_page_of_code_alone_asks_nothing(curate, model_server):
    found, _ = cleaned(curate, model_server, without_noise, [CODE])
    assert found == [(CODE + "\n", True)]
    assert model_server.prompts == []


def test_words_of_a_reply_are_compared_with_the_pages():
    page = "The energy of a moving body is given by Einstein"
    assert own_words("Energy of a body: $\\frac{1}{2} mv^2$", page) == 1
    assert own_words("Entropy grows always", page) == 0
    assert own_words("", page) == 1


def test_settings_out_of_range_are_refused(curate):
    with pytest.raises(UserError, match=r"clean-code-page\.chunk is 100; it must be at least 200"):
        curate([("clean-code-page", {"chunk": 100})], ["x"])


@pytest.mark.parametrize("open_fence", ["```python\nsecret = 1\n````", "> ```\n> secret = 1\n> ```"])
def test_code_whose_fence_is_not_closed_is_not_shown_to_the_model(curate, model_server, open_fence):
    page = f"Login | Home\n\n{open_fence}\n\nText.\n"
    found, notes = cleaned(curate, model_server, lambda p, b: "Text.", [page])
    assert found == [(page, False)]
    assert notes == {"pages left uncleaned: code block that is not closed as it was opened": 1}
    assert model_server.prompts == []
