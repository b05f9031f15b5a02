"""Steps for code: licences, syntax, Pylint, a C++ compiler."""

import json
import shutil
import subprocess
import sys

import pytest
from datatrove.data import Document

from nano3.config.errors import UserError
from nano3.curate.step import Context
from nano3.curate.steps.cpp import Cpp, CppSettings, PrecompiledHeaders, compile_error, leading_headers
from nano3.curate.steps.licence_texts import is_allowed, licence_of_text
from nano3.curate.steps.pylint_gate import OPTIONS, pylint_scores

from ..conftest import dropped

MIT = "MIT License\n\nPermission is hereby granted, free of charge, to any person\nobtaining a copy of this software"
BSD = "Redistribution and use in source and binary forms, with or without modification, are permitted"
GPL = "GNU GENERAL PUBLIC LICENSE Version 3, 29 June 2007"
GOOD_PYTHON = '"""Adds."""\n\n\ndef add(one, two):\n    """The sum."""\n    return one + two\n'
BAD_PYTHON = "import os, sys\ndef f(l,X):\n  global Q\n  try: Q=l\n  except: pass\n  x=eval(X);return l\n"
ODD_PYTHON = '"""Module."""\nclass A:\n    """d"""\nasync def f():\n    """d"""\n    match 3:\n        case 3: pass\n'
GOOD_CODE = {
    "c": "int main(void) { return 0; }", "cpp": "template <class T> T id(T x) { return x; }", "go": "package main\n",
    "java": "class A { int x = 1; }", "javascript": "const f = (x) => x + 1;", "rust": "fn main() { let x = 1; }",
    "typescript": "let x: number = 1;", "ruby": "def f(x)\n  x + 1\nend\n", "bash": "if true; then echo x; fi\n",
    "python": GOOD_PYTHON, "json": '{"a": [1, 2]}', "php": "<?php echo 1; ?>", "sql": "SELECT a FROM b;",
}  # fmt: skip
BROKEN_CODE = {
    "c": "int main(void) { return 0; ", "cpp": "template <class T> T id(T x { return x; }", "go": "package a\nfunc {",
    "java": "class A { int x = ; }", "javascript": "const f = (x => x + 1;", "rust": "fn main() { let x = ; ",
    "typescript": "let x: = 1;", "ruby": "def f(x\n  x + \n", "bash": "if true; then echo x\n", "python": "def f(:\n",
    "json": '{"a": [1, 2}', "php": "<?php if (1 { ?>", "sql": "SELECT FROM WHERE b (;",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (MIT, "MIT"),
        (BSD, "BSD-2-Clause"),
        (BSD + ": Neither the name of the copyright holder", "BSD-3-Clause"),
        (GPL, "GPL-3.0-only"),
        ("Mozilla Public License Version 2.0 ... GNU General Public License", "MPL-2.0"),
        ("Apache License\n  Version 2.0, January 2004", "Apache-2.0"),
        (f"{MIT}\n\nParts are under the\n{GPL}", "GPL-3.0-only AND MIT"),
        (BSD + ". All advertising materials mentioning features ... Neither the name of", "BSD-4-Clause"),
        ("GNU GENERAL PUBLIC LICENSE\nVersion 2, June 1991 ... the GNU Lesser General Public License", "GPL-2.0-only"),
        (GPL + " ... version 3 of the GNU Affero General Public License", "GPL-3.0-only"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\nVersion 2.1 ... GNU General Public License", "LGPL-2.1-only"),
        ("Mozilla Public License Version 1.1", "MPL-1.1"),
        (f"{MIT} ... you may use it under the terms of the GNU General Public License too", "LicenseRef-GNU AND MIT"),
        (f"{MIT}. The Software shall be used for Good, not Evil.", "JSON AND MIT"),
        ("All rights reserved.", ""),
    ],
)
def test_a_licence_is_known_by_its_text(text, licence):
    assert licence_of_text(text) == licence


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("mit", True),
        ("Apache 2.0".replace(" ", "-"), True),
        ("MIT OR GPL-3.0-only", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR GPL-2.0-only) AND Apache-2.0", True),
        ("(MIT OR Apache-2.0) AND GPL-2.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("no_license", False),
        ("", False),
        ("MIT )", False),
    ],
)
def test_an_expression_is_allowed_where_it_leaves_a_way(expression, allowed):
    assert is_allowed(expression, frozenset({"MIT", "Apache-2.0"})) is allowed


def test_licences_come_from_metadata_headers_and_files_above(curate, tmp_path):
    repository = tmp_path / "repos" / "one"
    (repository / "deep" / "inner").mkdir(parents=True)
    (repository / "LICENSE").write_text(MIT)
    (repository / "deep" / "a.py").write_text("a = 1\n")
    (repository / "deep" / "inner" / "COPYING.txt").write_text(GPL)
    (repository / "deep" / "inner" / "b.py").write_text("b = 1\n")
    (repository / "deep" / "inner" / "c.py").write_text("# SPDX-License-Identifier: Apache-2.0\nc = 1\n")
    (tmp_path / "repos" / "d.py").write_text("d = 1\n")
    rows = [{"text": "e = 1", "license": "MIT"}, {"text": "f = 1", "detected_licenses": ["MIT", "GPL-2.0"]}]
    (tmp_path / "repos" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report, kept = curate([("licence", {})], paths=[tmp_path / "repos"])
    found = {row["text"].splitlines()[-1][0]: row["metadata"] for row in kept}
    assert {name: (one["license"], one["license_source"]) for name, one in found.items() if name in "ace"} == {
        "a": ("MIT", "one/LICENSE"),
        "c": ("Apache-2.0", "header"),
        "e": ("MIT", "metadata license"),
    }
    assert dropped(report, "licence") == {
        "licence GPL-3.0-only": 2, "licence MIT AND GPL-2.0-only": 1, "no licence known": 1,
    }  # fmt: skip
    assert not any(key.startswith("_") for one in found.values() for key in one)


@pytest.mark.parametrize("spec", ["~/repos", "~/repos::text"])
def test_a_licence_above_the_folder_that_was_named_is_not_its(curate, tmp_path, monkeypatch, spec):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "LICENSE").write_text(GPL)
    (tmp_path / "repos/one").mkdir(parents=True)
    (tmp_path / "repos/a.py").write_text("a = 1\n")
    (tmp_path / "repos/one/LICENSE").write_text(MIT)
    (tmp_path / "repos/one/b.py").write_text("b = 1\n")
    report, kept = curate([("licence", {})], paths=[spec])
    assert [row["metadata"]["license_source"] for row in kept if row["id"] == "one/b.py"] == ["one/LICENSE"]
    assert dropped(report, "licence")["no licence known"] >= 1
    assert not any("GPL" in reason for reason in dropped(report, "licence"))


def test_code_that_does_not_parse_is_dropped_in_every_language(curate):
    rows = [{"id": f"good.{name}", "text": text, "language": name} for name, text in GOOD_CODE.items()]
    rows += [{"id": f"broken.{name}", "text": text, "language": name} for name, text in BROKEN_CODE.items()]
    rows += [{"id": "notes.md", "text": "def f(:"}, {"id": "x.py", "text": "def f(:"}]
    report, kept = curate([("syntax", {})], rows)
    assert sorted(row["id"] for row in kept) == sorted([*(f"good.{name}" for name in GOOD_CODE), "notes.md"])
    assert dropped(report, "syntax") == {"syntax error": len(BROKEN_CODE) + 1}


def test_languages_are_chosen(curate):
    rows = [{"id": "a.py", "text": "x = 1"}, {"id": "b.go", "text": "package b"}, {"id": "c", "text": "?"}]
    report, kept = curate([("syntax", {"languages": ["go"], "unknown": "drop"})], rows)
    assert [(row["id"], row["metadata"]["language"]) for row in kept] == [("b.go", "go")]
    assert dropped(report, "syntax") == {"language python": 1, "language not known": 1}


@pytest.mark.parametrize(("name", "told"), [("py", "'python'"), ("Rust", "'rust'"), ("cobol", "languages: bash, c")])
def test_a_language_that_no_document_can_be_in_is_refused(curate, name, told):
    with pytest.raises(UserError, match=f"syntax.languages: unknown language '{name}'; .*{told}"):
        curate([("syntax", {"languages": ["go", name]})], ["x"])


def test_scores_of_a_batch_are_those_that_pylint_gives_each_file(tmp_path):
    texts = [GOOD_PYTHON, BAD_PYTHON, ODD_PYTHON]
    scores = pylint_scores(texts, 120)
    for text, score in list(zip(texts, scores, strict=True))[2:]:
        (tmp_path / "module_0.py").write_text(text)
        command = [sys.executable, "-m", "pylint", *OPTIONS, "module_0.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert score == pytest.approx(json.loads(done.stdout)["statistics"]["score"])
    assert scores[0] == 10


def test_python_that_pylint_finds_bad_is_dropped(curate):
    rows = [{"id": "good.py", "text": GOOD_PYTHON}, {"id": "bad.py", "text": BAD_PYTHON}]
    rows += [{"id": "broken.py", "text": "def f(:\n"}, {"id": "x.go", "text": "package x"}]
    report, kept = curate([("pylint", {"batch": 2})], rows)
    assert [row["id"] for row in kept] == ["good.py", "x.go"]
    assert report.steps[1].account.notes == {"documents that are no Python": 1}
    assert kept[0]["metadata"]["pylint_score"] == 10
    assert dropped(report, "pylint") == {"pylint score too low": 2}


def test_python_that_tells_pylint_to_look_away_is_not_believed(curate):
    lines = ["# pylint: skip-file", "# pylint: disable=all", "# a comment"]
    rows = [{"id": f"{i}.py", "text": f"{line}\n{GOOD_PYTHON}"} for i, line in enumerate(lines)]
    report, kept = curate([("pylint", {"least": 1.0})], rows)
    assert dropped(report, "pylint") == {"pylint cannot judge it": 2}
    assert [row["id"] for row in kept] == ["2.py"]


def test_a_batch_that_takes_too_long_is_judged_file_by_file(curate):
    report, _ = curate([("pylint", {"timeout": 0.001})], [{"id": "good.py", "text": GOOD_PYTHON}])
    assert dropped(report, "pylint") == {"pylint cannot judge it": 1}


def test_cpp_that_does_not_compile_is_dropped(curate):
    assert shutil.which("g++"), "this step needs g++, which every runner of the tests has"
    texts = {
        "good": "#include <vector>\nint main() { std::vector<int> v{1, 2}; return v.size(); }",
        "type": '#include <string>\nint main() { std::string s = 3.0 + "x"; }',
        "header": '#include "mine.h"\nint main() {}',
        "hang": "#include </dev/zero>\n",
    }
    rows = [{"id": f"{name}.cpp", "text": text} for name, text in texts.items()]
    report, kept = curate([("cpp", {"timeout": 3})], [*rows, {"id": "x.py", "text": "x"}])
    assert [row["id"] for row in kept] == ["good.cpp", "x.py"]
    assert sum(dropped(report, "cpp").values()) == 3


@pytest.mark.slow
def test_headers_that_several_programs_begin_with_are_compiled_once_and_change_no_judgement(curate):
    all_of_them = "#include <bits/stdc++.h>\nusing namespace std;\nint main() { map<string, int> m; m[%s] = 1; }"
    some = "// A program.\n#include <vector>\n#include <map> // of words\nint main() { std::map<int, int> m; %s; }"
    texts = [all_of_them % ('"x"' if i % 2 else "i") for i in range(8)]
    texts += [some % ("m[1] = 2" if i % 2 else 'std::string s = std::string("a"); std::regex r(s)') for i in range(8)]
    _, kept = curate([("cpp", {})], [{"id": f"{i}.cpp", "text": text} for i, text in enumerate(texts)])
    assert [row["id"] for row in kept] == [f"{i}.cpp" for i in range(16) if i % 2]


@pytest.mark.slow
def test_headers_come_from_what_was_compiled_once(tmp_path):
    headers = PrecompiledHeaders(tmp_path, "c++17")
    text = "#include <vector>\nint main() { std::vector<int> v; }"
    assert headers.options(text) == []
    options = headers.options(text)
    assert options[0] == "-include"
    (tmp_path / options[1]).write_text("#error not from the precompiled header")
    assert compile_error(text, "c++17", 20, options) == ""


@pytest.mark.slow
def test_compiled_headers_lie_where_a_killed_run_leaves_nothing(tmp_path):
    documents = [Document("#include <vector>\n", f"{i}.cpp", metadata={"language": "cpp"}) for i in range(2)]
    passed = Cpp(CppSettings(), Context("01-cpp", tmp_path, 1)).run(iter(documents))
    next(passed), next(passed)
    assert list(tmp_path.glob("work/01-cpp/*/0.hpp.gch")), "work is removed when the run is done"
    assert list(passed) == []
    assert not list(tmp_path.glob("work/01-cpp/*"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("#include <vector>\n# include  <map>\n\n#include <vector>\nint x;\n#include <set>\n", ("map", "vector")),
        ("/* a\n b */ #include <map>\n// c \\\n#include <set>\n#include <list>", ("list", "map")),
        ("#define NDEBUG\n#include <cassert>\n", ()),
        ("#include <map>\n#include <windows.h>\n#include <set>\n", ("map",)),
        ("#include <map> int x;\n", ()),
        ('#include "map"\n', ()),
        ("/* open\n#include <map>\n", ()),
    ],
)  # fmt: skip
def test_leading_headers_are_those_before_anything_else(text, names):
    assert leading_headers(text) == names
