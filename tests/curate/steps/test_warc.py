"""WARC files with everything that crawls have in them."""

import gzip
import random

import pytest

from nano3.config.errors import UserError
from nano3.curate.steps.warc_members import members

from ..conftest import dropped

PAGE = "<html><body><p>Page {}</p><pre>x = {}\n</pre></body></html>"


def record(url, body, kind="text/html", status="200 OK", warc_type="response"):
    named = f"Content-Type: {kind}\r\n" if kind else "Server: x\r\n"
    http = f"HTTP/1.1 {status}\r\n{named}\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: {warc_type}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2025-04-15T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:{url}>\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def pages(n):
    return [record(f"http://x/{i}", PAGE.format(i, i).encode() + b" " * 400) for i in range(n)]


def odd_records():
    noise = random.Random(1).randbytes(3000)
    return [
        record(
            "http://x/latin1", "<p>café naïve résumé à la carte</p>".encode("latin-1"), "text/html; charset=latin-1"
        ),
        record("http://x/utf16", "<p>hello wörld</p>".encode("utf-16"), "text/html; charset=utf-16"),
        record("http://x/noise", noise),
        record("http://x/404", b"<p>not found</p>", status="404 Not Found"),
        record("http://x/pdf", b"%PDF-1.4", "application/pdf"),
        record("http://x/empty", b""),
        record("http://x/request", b"", warc_type="request"),
    ]


def write(path, records, packed=True):
    """The offset of every record."""
    pieces = [gzip.compress(one, mtime=0) if packed else one for one in records]
    path.write_bytes(b"".join(pieces))
    return [sum(map(len, pieces[:i])) for i in range(len(pieces))]


def test_every_good_record_is_read_and_every_bad_one_counted_with_its_place(curate, tmp_path):
    path = tmp_path / "bad.warc.gz"
    records = [*pages(20), *odd_records(), *pages(40)[20:]]
    offsets = write(path, records)
    data = bytearray(path.read_bytes())
    for number in (5, 30):
        middle = (offsets[number] + offsets[number + 1]) // 2
        for i in range(20):
            data[middle + i] ^= 0x5A
    path.write_bytes(data[: (offsets[-1] + len(data)) // 2])
    report, kept = curate([], reader="warc", paths=[path])
    assert dropped(report, "warc") == {
        "damaged record": 2, "record cut short": 1, "no text in any encoding": 1, "HTTP status 404": 1, "not HTML": 1,
        "empty page": 1,
    }  # fmt: skip
    bad = {sample.id for _, reason, sample in report.samples() if "record" in reason}
    assert bad == {f"bad.warc.gz@{offsets[number]}" for number in (5, 30, len(records) - 1)}
    assert report.entered.documents == len(records) - 1, "the request is no page"
    assert report.steps[0].account.notes == {"records that are no responses": 1}
    texts = {row["metadata"]["url"]: row["text"] for row in kept}
    assert len(texts) == 40 - 3 + 2
    assert "café naïve" in texts["http://x/latin1"]
    assert "hello wörld" in texts["http://x/utf16"]
    assert kept[0]["metadata"]["date"] == "2025-04-15T00:00:00Z"
    assert kept[1]["metadata"]["source"] == f"bad.warc.gz@{offsets[1]}"


@pytest.mark.parametrize("packed", [True, False])
def test_wherever_bytes_are_damaged_all_other_records_are_read(tmp_path, packed):
    path = tmp_path / ("x.warc.gz" if packed else "x.warc")
    records = pages(6)
    offsets = [*write(path, records, packed), path.stat().st_size]
    good = path.read_bytes()
    rng = random.Random(2)
    for _ in range(60):
        data = bytearray(good)
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        hit = next(i for i in range(6) if offsets[i] <= place < offsets[i + 1])
        read = [one.data for one in members(path) if not one.fault]
        intact = [one.strip() for i, one in enumerate(records) if i not in (hit, hit + 1 if not packed else hit)]
        assert {one.strip() for one in read} >= set(intact)


@pytest.mark.parametrize("packed", [True, False])
def test_the_files_that_crawls_leave_give_every_good_record_and_count_every_bad_one(curate, tmp_path, packed):
    """127 records: 2 damaged, the last one cut, Latin-1, UTF-16, noise, 404, PDF, empty, no payload type."""
    odd = [one for one in odd_records() if b"WARC-Type: request" not in one]
    records = [*pages(60), *odd, record("http://x/untyped", PAGE.format(1, 1).encode(), kind="")]
    records = [*records, *pages(127 - len(records))]
    path = tmp_path / ("bad.warc.gz" if packed else "bad.warc")
    offsets = write(path, records, packed)
    data = bytearray(path.read_bytes())
    for number in (5, 30):
        at = (offsets[number] + offsets[number + 1]) // 2 if packed else offsets[number] + 2
        data[at : at + 20] = bytes(byte ^ 0x5A for byte in data[at : at + 20])
    path.write_bytes(data[: (offsets[-1] + len(data)) // 2])
    report, kept = curate([], reader="warc", paths=[path])
    faults = {"damaged record": 2, "record cut short": 1}
    content = {"no text in any encoding": 1, "HTTP status 404": 1, "not HTML": 1, "empty page": 1}
    assert dropped(report, "warc") == faults | content
    bad = {sample.id for _, reason, sample in report.samples() if reason in faults}
    assert bad == {f"{path.name}@{offsets[number]}" for number in (5, 30, 126)}
    assert len(kept) == 127 - 3 - 4
    assert report.entered.documents == len(kept) + sum(dropped(report, "warc").values()) == 127


def test_what_is_no_record_between_packed_ones_costs_itself_alone(tmp_path):
    records = [gzip.compress(one, mtime=0) for one in pages(6)]
    noise = random.Random(3).randbytes(500)
    path = tmp_path / "x.warc.gz"
    path.write_bytes(b"".join([*records[:2], noise, *records[2:4], b"\0" * 300, *records[4:]]))
    start = sum(map(len, records[:2]))
    second = start + len(noise) + sum(map(len, records[2:4]))
    found = list(members(path))
    assert [one.offset for one in found if one.fault] == [start, second]
    assert len([one for one in found if not one.fault]) == 6


def test_an_empty_file_and_noise_end(tmp_path):
    (tmp_path / "empty.warc.gz").touch()
    assert list(members(tmp_path / "empty.warc.gz")) == []
    (tmp_path / "noise.warc").write_bytes(b"no warc\n" * 100)
    assert [one.fault for one in members(tmp_path / "noise.warc")] == ["damaged record"]


def test_folders_are_searched_for_warc_files(curate, tmp_path):
    folder = tmp_path / "crawl" / "segment"
    folder.mkdir(parents=True)
    write(folder / "a.warc.gz", pages(2))
    write(folder / "b.warc", pages(3), packed=False)
    (folder / "notes.txt").write_text("no warc")
    report, kept = curate([], reader="warc", paths=[tmp_path / "crawl"], tasks=2)
    assert (len(kept), report.manifest.left_out) == (5, "1 file that is no WARC")
    with pytest.raises(UserError, match="the step `warc` reads it"):
        curate([], reader="read", paths=[folder / "b.warc"], out="read")
    with pytest.raises(UserError, match=r"no WARC file .* a folder of HTML files is read by the step `read`"):
        curate([], reader="warc", paths=[tmp_path / "out"], out="other")


PAGES_BY_CHARSET = {
    "iso-8859-1": ("caf\u00e9 \u201cquoted\u201d \u20ac", "cp1252"),  # what browsers, and so authors, take it for
    "gb2312": ("\u6731\u9555\u57fa", "gbk"),
    "shift_jis": ("\u2460 \u65e5\u672c", "cp932"),
    "windows-1251": ("\u0434\u0430", "cp1251"),
    "us-ascii": ("na\u00efve", "utf-8"),
}


def pages_by_charset():
    for name, (text, codec) in PAGES_BY_CHARSET.items():
        yield f"<html><head><meta charset={name}></head><body>{text} {'some words ' * 9}</body></html>".encode(codec)


def test_a_page_in_a_file_is_read_by_the_charset_that_it_declares(curate, tmp_path):
    (tmp_path / "html").mkdir()
    for number, page in enumerate(pages_by_charset()):
        (tmp_path / "html" / f"{number}.html").write_bytes(page)
    (tmp_path / "html" / "program.html").write_bytes(b"<meta charset=latin-1>" + bytes(range(256)) * 9)
    report, kept = curate([], reader="read", paths=[tmp_path / "html"])
    assert [text in one["text"] for (text, _), one in zip(PAGES_BY_CHARSET.values(), kept, strict=True)] == [True] * 5
    assert dropped(report, "read") == {"not UTF-8": 1}


def test_a_crawled_page_is_read_by_its_servers_charset_else_by_its_own(curate, tmp_path):
    named = [f"text/html; charset={name}" for name in PAGES_BY_CHARSET if name != "us-ascii"]
    kinds = [*named, *["text/html"] * 5]
    bodies = [*pages_by_charset()]
    bodies = [*bodies[:4], *bodies]
    write(tmp_path / "x.warc", [record("http://x", *one) for one in zip(bodies, kinds, strict=True)], packed=False)
    _, kept = curate([], reader="warc", paths=[tmp_path / "x.warc"])
    texts = [text for text, _ in PAGES_BY_CHARSET.values()]
    assert [text in one["text"] for text, one in zip([*texts[:4], *texts], kept, strict=True)] == [True] * 9
