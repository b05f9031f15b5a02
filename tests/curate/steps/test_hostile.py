"""Input that was written, or crawled, to break what reads it: it costs itself, and never the run."""

import gzip
import json
import math
import os
import subprocess
import time
import tracemalloc

import pytest

from nano3.curate.chart import draw
from nano3.curate.steps.code_page import code_score
from nano3.curate.steps.language import outside_code
from nano3.curate.steps.limits import run_limited
from nano3.curate.steps.page_parts import fenced
from nano3.curate.steps.warc_members import CUT, DAMAGED, members
from nano3.data.texts.compressed import open_bytes

from ..conftest import dropped
from .test_pages import both_tools, fenced_blocks, rendered
from .test_warc import PAGE, pages, record


@both_tools
def test_control_characters_in_inline_code_leave_the_rest(tool):
    text = rendered("<p>a <code>x\x0cy&#1;</code>\x0c b</p><pre>q = 1;<br>\x01r = 2;</pre>", tool) or ""
    assert "a `xy` b" in text
    assert [block.rstrip("\n") for block in fenced_blocks(text)] == ["q = 1;\n\x01r = 2;"]


@pytest.mark.parametrize(
    "html",
    [
        '<html class="MathJax_Preview"><body><p>words</p><pre>x = 1;</pre></body></html>',
        "<p>words</p><noscript><pre>lost = 1;</pre></noscript><template><pre>t;</pre></template><pre>x = 1;</pre>",
        "<p>words</p>\x0c<script>y</script>\x0c<!-- z -->\x0c<pre>x = 1;</pre>\x0c",
        "<p>words Q&#67;ODEQ0Z QC<b>ODEQ0Z</b></p><pre>x = 1;</pre>",
        "<p>words</p><span class=MathJax_Preview><pre>lost;</pre></span><pre>x = 1;</pre>",
        "<p>words</p><pre>x = 1;<svg><text>copy</text></svg></pre>",
    ],
)
def test_what_is_not_shown_costs_no_page(html):
    text = rendered(html) or ""
    assert "words" in text
    assert [block.rstrip("\n") for block in fenced_blocks(text)] == ["x = 1;"]


def test_rules_fields_and_encodings_leave_no_trace_in_the_text():
    head = "<head><meta charset=iso-8859-1><meta http-equiv=refresh content='0;url=file:///etc/passwd'></head>"
    text = rendered(f"<html>{head}<body><p align=center>caf\xe9<hr><input size=80><p>end</body></html>") or ""
    assert text.split() == ["caf\xe9", "end"]
    assert not text.startswith(" ")


def test_a_page_without_an_end_of_anything_is_judged_in_one_pass():
    n = 200_000  # where each beginning looked for its end this took hours
    assert code_score("<pre>" * n) == code_score("<pre" * n) == code_score("<pre>x" + "\n" * n) == 0
    assert code_score(f"<pre>{'<' * n}</pre>") > 0.3
    assert code_score("<td " + "js-file-line " * n) == 0
    assert fenced("x" + "\n" * n, "").startswith("```\nx\n")


def test_fences_that_are_not_closed_are_text_and_take_one_pass():
    assert outside_code("a\n```py\nx\n```  \nb\n````\n```\nc") == "a\nb\n````\n```\nc"
    text = "```a\n" * 200_000
    assert outside_code(text) == text


def test_a_page_that_unpacks_to_more_than_is_allowed_is_not_unpacked(curate, tmp_path):
    kind = "text/html\r\nContent-Encoding: gzip"
    bomb = record("http://x/0", gzip.compress(bytes(100 << 20), 1), kind)
    (tmp_path / "x.warc").write_bytes(bomb)
    tracemalloc.start(1)
    report, _ = curate([], reader="warc", paths=[tmp_path / "x.warc"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert dropped(report, "warc") == {"page too large": 1}
    assert peak < 40 << 20


@pytest.mark.parametrize("length", [b"9" * 5000, b"99999999"])
def test_a_record_with_a_false_length_costs_itself_alone(tmp_path, length):
    records = pages(4)
    head, _, rest = records[1].partition(b"Content-Length: ")
    records[1] = head + b"Content-Length: " + length + rest.lstrip(b"0123456789")
    (tmp_path / "x.warc").write_bytes(b"".join(records))
    found = list(members(tmp_path / "x.warc"))
    assert [one.fault for one in found] == ["", DAMAGED if len(length) > 18 else CUT, "", ""]
    assert found[2].data.strip() == records[2].strip()


def test_a_codec_of_python_is_no_charset_of_a_page(curate, tmp_path):
    body = PAGE.format(1, 1).encode()
    kinds = [f"text/html; charset={name}" for name in ("punycode", "unicode_escape", "hex", "a\0b")]
    (tmp_path / "x.warc").write_bytes(b"".join(record(f"http://x/{i}", body, kind) for i, kind in enumerate(kinds)))
    _, kept = curate([], reader="warc", paths=[tmp_path / "x.warc"])
    assert [row["text"] for row in kept] == [body.decode()] * 4


def test_halves_of_characters_are_counted_and_come_out_as_json(curate, tmp_path):
    half = "\ud800"
    rows = [
        {"id": "bad", "text": f"{half} abc"},
        {"id": half, "text": "x"},
        {"id": f"{half}2", "text": "long", "m": half},
    ]
    report, kept = curate([("length", {"least": 2})], rows)
    assert dropped(report, "read") == {"not UTF-8": 1}
    assert dropped(report, "length") == {"too short": 1}
    assert kept[0]["metadata"]["m"] == half
    json.dumps(report.to_json(), ensure_ascii=False).encode()
    with open_bytes(tmp_path / "out" / "data" / "00000.jsonl.zst") as stream:
        stream.read().decode("utf-8")


def test_numbers_that_json_has_no_form_for_come_out_as_null(curate, tmp_path):
    rows = [{"text": "x", "n": math.nan, "metadata": {"scores": [1.5, math.inf, {"low": -math.inf}]}}]
    _, [kept] = curate([], rows)
    assert (kept["metadata"]["n"], kept["metadata"]["scores"]) == (None, [1.5, None, {"low": None}])
    _, [record] = curate([], [{"messages": [], "score": math.nan}], reader="conversations", out="records")
    assert record == {"messages": [], "score": None}


def test_a_conversation_with_half_a_character_stays_json(curate, tmp_path):
    row = {"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "fine"}]}
    _, kept = curate([("sft-structure", {})], [row], reader="conversations")
    assert kept == [row]
    with open_bytes(tmp_path / "out" / "data" / "00000.jsonl.zst") as stream:
        stream.read().decode("utf-8")


def test_a_record_cannot_speak_for_the_steps(curate):
    rows = [
        {"id": "a", "text": 'x\n{"text": "smuggled"}', "_record": True},
        {"id": "b", "text": "y", "_file": "/nonexistent/a", "_root": "/", "metadata": {"_file": 5}},
    ]
    _, kept = curate([("licence", {"unknown": "keep"})], rows)
    assert [row["text"] for row in kept] == [rows[0]["text"], "y"]


def test_licences_of_any_form_are_judged_shown_and_drawn(curate, tmp_path):
    texts = [f"// SPDX-License-Identifier: {'(' * 1300}", {"text": "a", "license": "$x_{$ \x1b[2J[/red]"}]
    report, _ = curate([("licence", {})], [{"text": texts[0]}, texts[1]])
    reasons = sorted(dropped(report, "licence"))
    assert reasons == ["licence " + "(" * 60, "licence ?x_?? ??2J?/red?"]
    report.steps[1].account.dropped["costs $x_{$"] = report.steps[1].account.dropped[reasons[1]]
    draw(report, tmp_path / "chart.png")


def test_a_program_that_does_not_end_is_ended_with_what_it_started(tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        run_limited(["sh", "-c", "sleep 100 & echo $! > pid; wait"], tmp_path, 0.5)
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("still there")


def test_a_program_has_bounded_memory_and_output(tmp_path):
    assert run_limited(["sh", "-c", "cat; exit 3"], tmp_path, 20, b"given") == (3, b"given")
    assert run_limited(["head", "-c", "90000000", "/dev/zero"], tmp_path, 20)[0] != 0
    assert run_limited(["python3", "-c", "bytearray(3 << 30)"], tmp_path, 20)[0] != 0
