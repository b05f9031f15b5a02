"""Personal data and secrets become placeholders; what only looks like them stays."""

import json
import time

import pytest

from nano3.config.errors import UserError
from nano3.curate.steps.redaction.private_data import FINDERS, find_private
from nano3.curate.steps.redaction.redact import redacted

KINDS = list(FINDERS)
KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + ("MIIEpAIBAAKCAQEA7bq9" * 3 + "\n") * 4 + "-----END RSA PRIVATE KEY-----"
WEB_TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"


@pytest.mark.parametrize(
    ("kind", "private"),
    [
        ("email", "ada.lovelace+x@mail.analytical-engine.org"),
        ("ip", "93.184.216.34"),
        ("ip", "2606:2800:220:1:248:1893:25c8:1946"),
        ("phone", "+49 30 901820"),
        ("phone", "+1 (415) 555-2671"),
        ("secret", "AKIA" + "QWERTYUIOPASDFGH"),
        ("secret", "ghp_" + "a1B2" * 9),
        ("secret", "hf_" + "aB" * 17),
        ("secret", "AIza" + "Sy-Z_" * 7),
        ("secret", "xoxb-" + "123456789012-abcdefghij"),
        ("secret", "sk-ant-" + "api03-" + "x9Y_" * 10),
        ("secret", WEB_TOKEN),
        ("private-key", KEY),
        ("private-key", KEY.replace("\n", "\\n")),
    ],
)
def test_what_is_private_becomes_a_placeholder(kind, private):
    text, counts = redacted(f'before = "{private}"  # after', KINDS)
    assert text == f'before = "<{kind.upper().replace("-", "_")}_1>"  # after'
    assert counts == {kind: 1}


@pytest.mark.parametrize(
    "text",
    [
        "x@property", "git@github.com:me/it.git", "someone@example.com and me@host.example", "a @ b.T",
        "user@localhost",
        "version 7.1.4.34, section 8.2.4.45", "10.0.0.1 192.168.1.254 127.0.0.1 255.255.255.0 203.0.113.7 224.0.0.251",
        "300.1.2.3 and 1.2.3.4.5", "1.0.0.127.in-addr.arpa", "a[1::2] + b[::3] std::string fe80::1 2001:db8::1",
        "x = +35236450.6 + 12345678901", "2024-05-06 12:13:14", "AKIASHORT", "ghp_short", "sk-learn hf_model",
        'if line == "-----BEGIN RSA PRIVATE KEY-----":\n    end = "-----END RSA PRIVATE KEY-----"',
        "https://host:8080/path@2", "d41d8cd98f00b204e9800998ecf8427e", "password = 'hunter2'",
    ],
)  # fmt: skip
def test_what_only_looks_private_stays(text):
    assert redacted(text, KINDS) == (text, {})


def test_a_password_in_a_url_is_taken_and_the_rest_stays():
    text, counts = redacted("postgres://app:s3cr3tpw@db.internal:5432/x app s3cr3t", KINDS)
    assert text == "postgres://app:<SECRET_1>@db.internal:5432/x app s3cr3t"
    assert counts == {"secret": 1}


def test_the_same_value_has_the_same_placeholder():
    text, counts = redacted("a@one.net b@two.net a@one.net; c@two.net", KINDS)
    assert text == "<EMAIL_1> <EMAIL_2> <EMAIL_1>; <EMAIL_3>"
    assert counts == {"email": 4}


def test_a_key_without_its_end_is_taken():
    text, _ = redacted(KEY[: len(KEY) // 2] + "\n\nThen a text.", KINDS)
    assert text.startswith("<PRIVATE_KEY_1>")
    assert text.endswith("Then a text.")


def test_numbers_of_a_country_are_found_where_it_is_named():
    assert redacted("call (415) 555-2671 now", KINDS)[1] == {}
    assert redacted("call (415) 555-2671 now", KINDS, "US") == ("call <PHONE_1> now", {"phone": 1})


@pytest.mark.slow
def test_a_number_behind_a_long_table_is_found():
    assert redacted("99999,\n" * 66_000 + "call (415) 555-2671", ["phone"], "US")[1] == {"phone": 1}


def test_the_step_counts_by_kind_and_drops_nothing(curate):
    report, kept = curate(
        [("redact", {"kinds": ["email", "secret"]})], ["mail a@one.net", "93.184.216.34", "b@x.org " * 2]
    )
    assert [row["text"] for row in kept] == ["mail <EMAIL_1>", "93.184.216.34", "<EMAIL_1> <EMAIL_1> "]
    assert [row["metadata"].get("redacted") for row in kept] == [{"email": 1}, None, {"email": 2}]
    assert report.steps[1].account.notes == {"documents with something replaced": 2, "email replaced": 3}


def test_conversations_stay_json(curate, tmp_path):
    call = {"name": "mail", "arguments": json.dumps({"to": "a@one.net", "text": "Hi,\nb@two.net"})}
    rows = [{"messages": [{"role": "user", "content": "To:\nb@two.net"}, {"role": "assistant", "tool_calls": [call]}]}]
    source = tmp_path / "chats.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, kept = curate([("redact", {})], reader="conversations", paths=[source])
    user, assistant = kept[0]["messages"]
    assert user == {"role": "user", "content": "To:\n<EMAIL_1>"}
    (call,) = assistant["tool_calls"]
    assert json.loads(call["arguments"]) == {"to": "<EMAIL_2>", "text": "Hi,\n<EMAIL_1>"}


def test_escapes_in_source_code_stay():
    assert (
        redacted(r'print("to:\nada@one.net", "\tgit@host.net")', KINDS)[0]
        == r'print("to:\n<EMAIL_1>", "\tgit@host.net")'
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kinds": ["emails"]}, "did you mean 'email'"),
        ({"kinds": []}, "is empty"),
        ({"phone_region": "XX"}, "no country 'XX'"),
    ],
)
def test_settings_are_checked(curate, settings, told):
    with pytest.raises(UserError, match=told):
        curate([("redact", settings)], ["a"])


@pytest.mark.parametrize(
    "piece",
    ["a", "a.", "1.", "+1 ", "eyJ", "eyJa.", "sk-", "//a/", "://a", "2001:", "-----BEGIN PRIVATE KEY-----", "xoxa-1-",
     "aws", "A" * 20 + "\n", "a@", "a@b.", "(415) "],
)  # fmt: skip
def test_no_text_takes_more_than_time_in_proportion(piece):
    """Sixteen times the text takes about so many times as long, not its square."""
    find_private(piece * 100, KINDS)
    seconds = []
    for size in (20_000, 320_000):
        started = time.process_time()
        find_private(piece * (size // len(piece)), KINDS)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 80 * max(seconds[0], 0.002)
