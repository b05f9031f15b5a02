"""Translation by a model that is told what to write, and what a translation must keep."""

import pytest

from ...conftest import dropped

SENTENCES = {
    "zh": "排序算法是计算机科学中的一个重要主题。我们可以用很多方法来排列一个列表，每一种都有优点和缺点。",
    "fr": "Les algorithmes de tri sont un sujet important de l'informatique. On peut trier une liste. ",
    "de": "Sortierverfahren sind ein wichtiges Thema der Informatik. Eine Liste kann auf viele Arten sortiert werden. ",
    "it": "Gli algoritmi di ordinamento sono un argomento importante dell'informatica. Una lista può essere ordinata. ",
    "ja": "整列アルゴリズムは計算機科学の重要な話題です。リストはさまざまな方法で並べ替えることができます。",
    "pl": "Algorytmy sortowania są ważnym tematem informatyki. Listę można posortować na wiele różnych sposobów. ",
    "pt": "Os algoritmos de ordenação são um tema importante da informática. Uma lista pode ser ordenada. ",
    "ru": "Алгоритмы сортировки являются важной темой информатики. Список можно отсортировать разными способами. ",
    "es": "Los algoritmos de ordenación son un tema importante de la informática. Una lista se puede ordenar. ",
}
TEXTS = {language: text * 3 for language, text in SENTENCES.items()}
ENGLISH = "Sorting algorithms are an important subject of computer science. A list can be sorted in many ways. " * 3
CODE = "```python\nxs.sort()  # sortiert 3 Zahlen\n```"
NAMES = ["Chinese", "French", "German", "Italian", "Japanese", "Polish", "Portuguese", "Russian", "Spanish"]


def translated(curate, server, reply, texts, **settings):
    server.reply = reply
    report, kept = curate([("translate", settings)], texts, server=server.url)
    return kept, dropped(report, "translate")


def test_nine_languages_are_translated_and_others_are_not_sent(curate, model_server):
    rows = [{"id": name, "text": text} for name, text in TEXTS.items()]
    dutch = "Sorteeralgoritmen zijn een belangrijk onderwerp van de informatica. Een lijst kan worden gesorteerd. " * 3
    rows += [{"id": "en", "text": ENGLISH}, {"id": "nl", "text": dutch}]
    kept, reasons = translated(curate, model_server, lambda prompt, body: ENGLISH, rows)
    assert {row["id"]: row["metadata"]["translated_from"] for row in kept} == {f"{name}/en": name for name in TEXTS}
    assert all(row["metadata"]["text_language"] == "en" for row in kept)
    assert reasons == {"language en": 1, "language nl": 1}
    asked = [prompt.split("from ")[1].split(" to English")[0] for prompt in model_server.prompts]
    assert sorted(asked) == NAMES


def test_code_and_equations_go_round_the_model(curate, model_server):
    page = f"{TEXTS['de']}\n\n{CODE}\n\nFormel:\n\n$$\nn \\log n\n$$\n"
    reply = lambda p, b: f"{ENGLISH}\n\n[[CODE 1 python]]\n\nFormula:\n\n[[EQUATION 2]]"  # noqa: E731
    [row], _ = translated(curate, model_server, reply, [page])
    assert CODE in row["text"]
    assert "Formula:\n\n$$\nn \\log n\n$$" in row["text"]
    assert "sort()" not in model_server.prompts[0]


GERMAN = TEXTS["de"] + "Im Jahr 1959 schrieb er `quick` in 1.250 Zeilen: https://example.org/q."
RIGHT = ENGLISH + "In 1959 he wrote `quick` in 1,250 lines: https://example.org/q."


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (RIGHT, ""),
        ("Here is the translation:\n\n" + RIGHT, ""),
        (RIGHT.replace("1959", "1969"), "numbers changed"),
        (RIGHT.replace("1,250", "12,500"), "numbers changed"),
        (RIGHT.replace(".org/q", ".org"), "addresses changed"),
        (RIGHT.replace("`quick`", "`fast`"), "code changed"),
        (RIGHT.replace("`quick`", "quick"), "code changed"),
        (GERMAN, "translation not English"),
        ("1959, `quick` 1250 https://example.org/q", "length out of proportion"),
        (RIGHT + ENGLISH * 4, "length out of proportion"),
        (RIGHT + "\n```\nx\n```", "code block added"),
    ],
)
def test_a_translation_that_changes_what_it_must_not_is_dropped(curate, model_server, said, reason):
    kept, reasons = translated(curate, model_server, lambda prompt, body: said, [GERMAN])
    assert reasons == ({reason: 1} if reason else {})
    assert [row["text"] for row in kept] == ([] if reason else [RIGHT + "\n"])


def test_lost_code_drops_the_document(curate, model_server):
    kept, reasons = translated(curate, model_server, lambda prompt, body: ENGLISH, [f"{TEXTS['de']}\n\n{CODE}"])
    assert kept == []
    assert reasons == {"markers not once each and in order": 1}


def test_long_documents_go_in_pieces(curate, model_server):
    page = "\n\n".join([TEXTS["de"]] * 5)
    [row], _ = translated(curate, model_server, lambda prompt, body: ENGLISH.strip(), [page], chunk=700)
    assert row["text"].strip().split("\n\n") == [ENGLISH.strip()] * 3


def test_a_piece_that_was_not_translated_drops_the_document(curate, model_server):
    page = "\n\n".join([*[f"{TEXTS['de']} Teil eins."] * 24, f"{TEXTS['de']} Ende."])
    reply = lambda p, b: p.split("The text:\n\n")[1] if "Ende." in p else ENGLISH * (p.count("Teil eins."))  # noqa: E731
    kept, reasons = translated(curate, model_server, reply, [page], chunk=2_400)
    assert (kept, reasons) == ([], {"translation not English": 1})


def test_a_first_line_that_announces_what_follows_is_translated_too(curate, model_server):
    text = "Hier ist der Text:\n\n" + TEXTS["de"]
    kept, _ = translated(curate, model_server, lambda p, b: "Here is the text:\n\n" + ENGLISH, [text, TEXTS["de"]])
    assert [row["text"] for row in kept] == ["Here is the text:\n\n" + ENGLISH.strip() + "\n", ENGLISH.strip() + "\n"]


def test_a_short_text_that_comes_back_as_it_was_is_no_translation(curate, model_server):
    reply = lambda p, b: p.split("\n\n")[-1]  # noqa: E731
    kept, reasons = translated(curate, model_server, reply, [SENTENCES["de"]])
    assert (kept, reasons) == ([], {"translation not English": 1})
