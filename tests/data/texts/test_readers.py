from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from nano3.data.texts import parts
from nano3.data.texts.find import find_files
from nano3.data.texts.readers import PROBED_RECORDS
from nano3.data.texts.skipped import Skipped
from nano3.data.tokens.tokenizer import Tokenizer

TEXTS = ["first\ntext", "zweiter Text: äöü", "三"]


def parquet(column: str, values: list, type_: pa.DataType | None = None) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({column: pa.array(values, type_), "id": range(len(values))}), buffer, row_group_size=2)
    return buffer.getvalue()


def jsonl(field: str, values: list) -> bytes:
    return "".join(json.dumps({field: value, "id": i}) + "\n" for i, value in enumerate(values)).encode()


def read(spec) -> tuple[list[tuple[str, str]], dict[str, int]]:
    skipped = Skipped()
    found = [d for file in find_files(str(spec), skipped) for d in file.documents(skipped)]
    return [(d.name, d.text) for d in found if d is not None], dict(skipped.counts)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize(
    ("suffix", "content"), [(".jsonl", jsonl("text", TEXTS)), (".parquet", parquet("text", TEXTS))]
)
def test_records_in_every_compression(write_texts, ending, suffix, content):
    folder = write_texts({f"a{suffix}{ending}": COMPRESS[ending](content)})
    documents, skipped = read(folder)
    assert documents == [(f"a{suffix}{ending}:{i}", text) for i, text in enumerate(TEXTS, start=1)]
    assert not skipped


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst", ".py"])
def test_plain_texts_in_every_compression(write_texts, ending, suffix):
    folder = write_texts({f"sub/x{suffix}{ending}": COMPRESS[ending](TEXTS[1].encode())})
    assert read(folder) == ([(f"sub/x{suffix}{ending}", TEXTS[1])], {})


def test_zstandard_files_of_several_frames_are_read_to_the_end(write_texts):
    frames = b"".join(COMPRESS[".zst"](jsonl("text", [text])) for text in TEXTS)
    assert [text for _, text in read(write_texts({"a.jsonl.zst": frames}))[0]] == TEXTS


def test_another_text_field(write_texts):
    folder = write_texts({"a.jsonl": jsonl("body", TEXTS), "b.parquet": parquet("body", TEXTS)})
    assert [text for _, text in read(f"{folder}::body")[0]] == TEXTS * 2
    assert [text for _, text in read(f"{folder / 'a.jsonl'}::body")[0]] == TEXTS


def test_a_field_that_no_record_has_names_those_there(write_texts):
    folder = write_texts({"a.jsonl": jsonl("body", TEXTS), "b.parquet": parquet("body", TEXTS)})
    for name in ("a.jsonl", "b.parquet"):
        with pytest.raises(ValueError, match=rf"{name}: no record has a field 'text'; other fields: body, id \("):
            read(folder / name)


def test_a_field_of_any_record_is_suggested_for_a_mistyped_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "a", "score": 1}\n{"score": 2, "title": "b"}\n')
    with pytest.raises(ValueError, match=r"a field 'bdy'; did you mean 'body'\?; other fields: body, score, title"):
        read(f"{path}::bdy")


@pytest.mark.parametrize(
    ("value", "kind"), [(5, "a number"), (None, "null"), (["a"], "a list"), ({}, "an object"), (True, "true or false")]
)
def test_a_field_that_is_no_text_is_told_as_what_it_is(write_texts, value, kind):
    rows = [{"text": value, "id": 1}, {"text": value}]
    file = write_texts({"a.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}) / "a.jsonl"
    with pytest.raises(ValueError, match=rf"^{file}: no record has a text in 'text', it is {kind}; other fields: id "):
        read(file)


def test_a_wrong_field_is_noticed_before_a_long_file_is_read(write_texts):
    folder = write_texts({"a.jsonl": jsonl("body", ["x"] * PROBED_RECORDS) + jsonl("text", ["late"])})
    with pytest.raises(ValueError, match="no record has a field 'text'"):
        read(folder / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.jsonl", jsonl("messages", TEXTS), "file without a text in 'text'"),
        ("rows.jsonl", jsonl("messages", ["x"] * (PROBED_RECORDS + 5)), "file without a text in 'text'"),
        ("numbers.jsonl", b'{"text": 5}\n{"text": 6}\n', "file without a text in 'text'"),
        ("rows.parquet", parquet("body", TEXTS), "file without a text in 'text'"),
        ("rows.parquet", b"PAR1 is not enough", "file damaged or cut short, read as far as it goes"),
        ("notes.txt.gz", gzip.compress(b"notes", mtime=0)[:-6], "file damaged or cut short"),
    ],
)
def test_a_file_that_is_no_text_is_left_out_of_a_folder_and_an_error_by_its_name(write_texts, name, content, reason):
    folder = write_texts({"a.txt": "first", name: content, "z.txt": "last"})
    skipped = Skipped()
    found = [
        document.text for file in find_files(str(folder), skipped) for document in file.documents(skipped) if document
    ]
    assert [text for text in found if text != "notes"] == ["first", "last"]
    assert skipped.line() == f"1 {reason} ({name})"
    with pytest.raises(ValueError, match=name):
        read(folder / name)


def test_bad_and_empty_documents_are_skipped_and_counted(write_texts):
    lines = [
        b'{"text": "good"}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b"{broken",
        b"[1]",
        b'{"text": 3}',
        b'{"text": " "}',
    ]
    folder = write_texts(
        {
            "bad.txt": b"\xff\xfe\x00bad",
            "empty.txt": b"",
            "blank.md": b" \n\t\n",
            "lines.jsonl": b"\n".join(lines),
            "rows.parquet": parquet("text", ["good", None, ""]),
            "raw.parquet": parquet("text", [b"good", b"\xff"], pa.binary()),
            "picture.png": b"\x89PNG",
        }
    )
    documents, skipped = read(folder)
    assert [text for _, text in documents] == ["good"] * 3
    assert skipped == {
        "not UTF-8": 4,
        "empty": 4,
        "not a JSON object": 2,
        "without a text in 'text'": 2,
        "files of unknown type": 1,
    }


def test_folders_are_read_in_sorted_order_without_hidden_files(write_texts):
    folder = write_texts(
        {"b/1.txt": "b1", "a.txt": "a", "b/0.txt": "b0", ".git/x.txt": "no", "b/.y.txt": "no", "c.unknown": "no"}
    )
    assert [name for name, _ in read(folder)[0]] == ["a.txt", "b/0.txt", "b/1.txt"]


def test_a_named_file_may_have_any_suffix(write_texts):
    assert read(write_texts({"notes.unknown": "text"}) / "notes.unknown")[0] == [("notes.unknown", "text")]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet", "a.txt.zst"])
def test_a_damaged_file_is_an_error_that_names_it(write_texts, name):
    whole = {"gz": gzip.compress, "zst": COMPRESS[".zst"]}.get(name.rpartition(".")[2], bytes)(bytes(range(256)) * 99)
    folder = write_texts({name: whole[: len(whole) // 2]})
    with pytest.raises(ValueError, match=f"{name} is damaged or cut short"):
        read(folder / name)


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder at"):
        find_files(str(tmp_path / "none"), Skipped())


def test_byte_order_marks_are_no_part_of_a_document(write_texts):
    mark = b"\xef\xbb\xbf"
    folder = write_texts(
        {
            "a.txt": mark + b"plain",
            "b.jsonl": mark + b'{"text": "one"}\n' + mark + b'{"text": "two"}\n' + mark + b"\n",
            "c.txt.gz": gzip.compress(mark + b"packed"),
            "d.txt": mark,
        }
    )
    skipped = Skipped()
    files = find_files(str(folder), skipped)
    assert [d.text for file in files for d in file.documents(skipped) if d is not None] == [
        "plain", "one", "two", "packed",
    ]  # fmt: skip
    assert skipped.counts == {"empty": 1}


def test_records_nested_too_deeply_are_counted_and_long_numbers_lose_no_text(write_texts):
    deep = '{"text": "x", "m": ' + "[" * 200_000 + "]" * 200_000 + "}"
    lines = ['{"text": "a"}', deep, '{"text": "b", "n": ' + "9" * 5000 + "}", '{"a":' * 100_000]
    folder = write_texts({"a.jsonl": "\n".join(lines)})
    skipped = Skipped()
    (file,) = find_files(str(folder), skipped)
    assert [d.text for d in file.documents(skipped) if d is not None] == ["a", "b"]
    assert skipped.counts == {"not a JSON object": 2}


def test_text_without_a_suffix_is_read(write_texts):
    names = ["LICENSE", "Makefile", "Apache-2.0", "README", "nano3.1", "changelog.gz"]
    files: dict = {name: f"the text of {name}" for name in names}
    files["changelog.gz"] = gzip.compress(b"the text of changelog.gz")
    folder = write_texts(files | {"data": b"\x00\x01", "latin": b"\xe9t\xe9 ", "a.out": b"\x7fELF"})
    found, counts = read(folder)
    assert found == [(name, f"the text of {name}") for name in sorted(names)]
    assert counts == {"files without a suffix that are no UTF-8 text": 2, "files of unknown type": 1}


def test_a_character_across_the_end_of_what_is_looked_at_is_text(write_texts):
    text = "ä" * 40_000
    (_, longer), (_, shifted) = read(write_texts({"a": text, "b": "x" + text}))[0]
    assert (longer, shifted) == (text, "x" + text)


def test_what_a_folder_holds_besides_is_counted_and_named(write_texts, tmp_path):
    folder = write_texts({"a.txt": "a", **{f"{i}.pdf": "x" for i in range(7)}, "sub/b.txt": "b"})
    (folder / "gone.txt").symlink_to("nowhere")
    (folder / "round.txt").symlink_to("round.txt")
    os.mkfifo(folder / "pipe.txt")
    (folder / "linked").symlink_to(folder / "sub")
    skipped = Skipped()
    assert [file.name for file in find_files(str(folder), skipped)] == ["a.txt", "sub/b.txt"]
    assert skipped.line() == (
        "7 files of unknown type (0.pdf, 1.pdf, 2.pdf, 3.pdf, 4.pdf, ...), 1 link to a folder (linked), "
        "3 links to nothing, pipes and other things that are no files (gone.txt, pipe.txt, round.txt)"
    )
    assert "file that you name itself is read" in skipped.advice()


def test_folders_that_may_not_be_read_are_counted_and_named(write_texts, monkeypatch):
    folder = write_texts({"a.txt": "a", "sec/b.txt": "b", "sec/c.txt": "c"})
    real = os.scandir

    def scandir(path):  # as for a user who may not; tests may run as root, who may
        if os.fspath(path) == str(folder / "sec"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    skipped = Skipped()
    assert [file.name for file in find_files(str(folder), skipped)] == ["a.txt"]
    assert skipped.line() == "1 file or folder that may not be read (sec)"
    assert skipped.advice() == ""


@pytest.mark.parametrize("codec", ["snappy", "gzip", "zstd", "none"])
def test_a_damaged_parquet_page_is_one_line_that_names_the_file(write_texts, codec):
    buffer = io.BytesIO()
    rows = [f"row {i} of the table, number {i * i}" for i in range(500)]
    pq.write_table(pa.table({"text": rows}), buffer, compression=codec, use_dictionary=False)
    data = bytearray(buffer.getvalue())
    data[4:260] = b"\xff" * 256
    file = write_texts({"a.parquet": bytes(data)}) / "a.parquet"
    with pytest.raises(
        ValueError, match=rf"^{file} is damaged or cut short \(.*\): restore it or leave it out"
    ) as error:
        read(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [5, 28])
def test_an_error_of_the_disk_names_the_file(write_texts, monkeypatch, number):
    file = write_texts({"a.txt": "a"}) / "a.txt"

    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("nano3.data.texts.readers.open_bytes", fail)
    with pytest.raises(ValueError, match=rf"^{file} cannot be read \({os.strerror(number)}\)"):
        read(file)


@pytest.mark.parametrize("values", [[None] * 3, [1, 2, 3]])
def test_a_parquet_column_without_texts_is_an_error(write_texts, values):
    file = write_texts({"a.parquet": parquet("text", values)}) / "a.parquet"
    kind = "null" if values[0] is None else "int64"
    with pytest.raises(ValueError, match=rf"no record has a text in 'text', it is of type {kind}; other fields: id "):
        read(file)


def test_long_texts_come_in_parts_with_the_tokens_of_the_whole(write_texts, monkeypatch):
    lines = [f"word{i % 7} and {i} more,\n  of it.\n\nÄpfel {i}" for i in range(4000)]
    text = "\n".join(lines)
    files = {"a.txt": text, "b.jsonl": json.dumps({"text": text}), "c.parquet": parquet("text", [text])}
    folder = write_texts(files | {"d.txt.zst": zstandard.compress(text.encode())})
    tokenizer = Tokenizer.train([text], 400)
    whole = tokenizer.encode(text)
    monkeypatch.setattr(parts, "LONGEST", 30_000)
    found, counts = read(folder)
    assert counts == {}
    by_file: dict[str, list[str]] = {}
    for name, part in found:
        by_file.setdefault(name[0], []).append(part)
        assert len(part.encode()) <= 31_000
    assert [name for name, _ in found if name[0] == "a"][:2] == ["a.txt part 1", "a.txt part 2"]
    assert len(by_file) == 4
    for listed in by_file.values():
        assert "".join(listed) == text
        assert [token for part in listed for token in tokenizer.encode(part)] == whole


@pytest.mark.parametrize("text", ["ä" * 500, "x" * 1000, "a b" * 300, "\n" * 700 + "x", "三" * 400 + "\ud7ff"])
def test_texts_without_a_good_place_are_cut_between_characters(text):
    for longest in (100, 101, 102, 999):
        pieces = list(parts.byte_parts(io.BytesIO(text.encode()), longest))
        assert "".join(piece.decode() for piece in pieces) == text
        assert all(0 < len(piece) <= longest for piece in pieces)
        strings = list(parts.text_parts(text, longest))
        assert "".join(strings) == text
        assert all(0 < len(piece) <= longest for piece in strings)


def test_a_line_that_is_too_long_is_counted_and_the_next_is_read(write_texts, monkeypatch):
    monkeypatch.setattr("nano3.data.texts.containers.LONGEST_RECORD", 1 << 20)
    long = json.dumps({"text": "x" * (3 << 20)})
    file = write_texts({"a.jsonl": f'{{"text": "a"}}\n{long}\n{{"text": "b"}}\n{long}'}) / "a.jsonl"
    found, counts = read(file)
    assert [text for _, text in found] == ["a", "b"]
    assert counts == {"records longer than 1 MiB": 2}


@pytest.mark.slow
def test_a_compressed_bomb_takes_bounded_memory(tmp_path):
    file = tmp_path / "a.txt.zst"
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    with file.open("wb") as out:
        for _ in range(1500):
            out.write(packer.compress(bytes(1 << 20)))
        out.write(packer.flush())
    code = (
        "import sys; from nano3.data.texts.find import find_files; from nano3.data.texts.skipped import Skipped\n"
        "size = sum(len(d.text) for f in find_files(sys.argv[1], Skipped()) for d in f.documents(Skipped()) if d)\n"
        # Not ru_maxrss, which begins with what the process that started this one held.
        "print(size, next(int(line.split()[1]) >> 10 for line in open('/proc/self/status') if 'VmHWM' in line))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    size, peak = map(int, done.stdout.split())
    assert size == 1500 << 20
    assert peak < 600


def test_short_pieces_have_the_tokens_of_the_text():
    text = "\n".join(f"word{i % 7} and {i} more,\n  of it.\n\nÄpfel {i}" for i in range(4000))
    tokenizer = Tokenizer.train([text], 400)
    pieces = list(parts.short_pieces(text))
    assert "".join(pieces) == text
    assert all(parts.SHORT <= len(piece) < parts.SHORT + 100 for piece in pieces[:-1])
    assert [token for piece in pieces for token in tokenizer.encode(piece)] == tokenizer.encode(text)
    assert "".join(parts.short_pieces("x" * 3_000_000)) == "x" * 3_000_000


def test_pointers_of_git_lfs_are_no_text(write_texts):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    found, counts = read(write_texts({"a.txt": pointer, "README": pointer, "b.txt": "b"}))
    assert found == [("b.txt", "b")]
    assert counts == {"Git LFS pointers in place of files (git lfs pull)": 2}
