"""The chat page in headless Chromium."""

from __future__ import annotations

import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

from .scripted import WAIT_S, Handler, Script

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip

expect.set_options(timeout=1000 * WAIT_S)


@pytest.fixture
def script():
    """A running scripted server; `script.url` is its address."""
    script = Script()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Scripted", (Handler,), {"script": script}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    script.url = f"http://127.0.0.1:{server.server_port}/"
    script.close = lambda: (server.shutdown(), server.server_close())
    yield script
    script.go_on.set()
    script.close()


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        pytest.fail(f"{CHROMIUM} is missing: the chat page is tested in it (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def windows(browser):
    """Where the pages open: a context of its own for each would take a second of the processor each time."""
    context = browser.new_context(
        viewport={"width": 1000, "height": 800}, permissions=["clipboard-read", "clipboard-write"]
    )
    yield context
    context.close()


@pytest.fixture(scope="module")
def forget(windows):
    """Forgets what pages of an address have stored; `forget(url)`."""
    session = windows.new_cdp_session(windows.new_page())  # of a page that stays

    def forget(url):
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        session.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})

    return forget


@pytest.fixture
def tab(windows, forget):
    """A fresh page that finds nothing stored; any script error or refused resource fails the test."""
    tab = windows.new_page()
    wrong: list[str] = []
    visited: set[str] = set()
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda line: "Content Security" in line.text and wrong.append(line.text))
    tab.on("framenavigated", lambda frame: visited.add(frame.url))
    yield tab
    tab.close()
    for url in visited:
        if url.startswith("http"):
            forget(url)
    assert not wrong


@pytest.fixture
def chat(tab, script):
    tab.goto(script.url)
    expect(tab.locator("#model")).to_contain_text("scripted-model")
    return tab


@pytest.fixture
def paper(tab, script):
    """The page that continues a text, of a base model whose texts begin with "def "."""
    script.models[0] |= {"thinking_default": False, "base_model": True, "opening": "def "}
    tab.goto(f"{script.url}continue.html")
    expect(tab.locator("#model")).to_contain_text("scripted-model")
    return tab
