"""GET /docs: every endpoint on one page that loads nothing from elsewhere; its commands work as printed."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser

import httpx2
import pytest

from nano3.serve.docs_page import docs_page


class Found(HTMLParser):
    """Links, anchors, table cells, commands, and tags that are not closed."""

    def __init__(self):
        super().__init__()
        self.links, self.anchors, self.commands, self.cells, self.open = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [given[name] for name in ("href", "src") if name in given]
        self.anchors += [given["id"]] if "id" in given else []
        if tag not in ("meta", "link"):
            self.open.append(tag)
        if tag in ("pre", "td"):
            (self.commands if tag == "pre" else self.cells).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "pre" in self.open:
            self.commands[-1] += data
        elif "td" in self.open:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def page(server):
    answer = httpx2.get(f"{server.url}/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    found = Found()
    found.feed(answer.text)
    assert found.open == []
    return found


def test_it_shows_every_endpoint_and_field(server, page):
    document = httpx2.get(f"{server.url}/openapi.json").json()
    commands = "\n".join(page.commands)
    for path in document["paths"]:
        assert f"curl {server.url}{path.replace('{name}', server.model)}" in commands
    for field in document["components"]["schemas"]["ChatRequest"]["properties"]:
        assert any(cell.startswith(field) for cell in page.cells), field
    assert any(cell == "messages required" for cell in page.cells)


def test_it_loads_nothing_from_elsewhere(server, page):
    assert page.links
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.anchors
        else:
            assert not re.match(r"[a-z]+:|//", link)
            assert httpx2.get(f"{server.url}/{link}").status_code == 200
    assert len(set(page.anchors)) == len(page.anchors)


def test_its_commands_work_as_printed(server, page):
    for command in page.commands:
        _, url, *rest = shlex.split(command.replace("\\\n", ""))
        if not rest:
            assert httpx2.get(url).status_code == 200
            continue
        flag, header, data, body = rest
        assert (flag, data) == ("-H", "-d")
        answer = httpx2.post(url, content=json.dumps(json.loads(body)), headers=[header.split(": ")], timeout=60)
        assert answer.status_code == 200, (command, answer.text)


def test_a_model_name_is_only_text():
    document = {"info": {"version": "1"}, "paths": {}}
    assert "<script>" not in docs_page(document, "http://x/<script>", "<script>alert(1)</script>")


def test_it_is_open_with_keys_and_answers_head(make_engine, start):
    locked = start(make_engine(), api_keys=("key",))
    assert httpx2.get(f"{locked.url}/docs").status_code == 200
    answer = httpx2.head(f"{locked.url}/docs")
    assert (answer.status_code, answer.content) == (200, b"")
