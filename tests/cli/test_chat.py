"""`nano3 chat`: with a local model, with a server, piped and at a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

FAST = ("--dtype", "float32", "--memory", "64MiB", "--max-context", 2048)
GREEDY = ("--temperature", 0, "--max-tokens", 12)
WAIT_S = 120
RESET = object()
"""In a play: the connection breaks there."""


@pytest.fixture
def local(run, model_folder):
    return lambda stdin, *args: run("chat", "--model", model_folder, *FAST, *GREEDY, *args, stdin=stdin)


@pytest.fixture
def answers(run, model_folder):
    """What `nano3 generate` answers to conversations."""

    def answers(*conversations, thinking=False):
        rows = "\n".join(json.dumps({"messages": messages}) for messages in conversations)
        args = ["--chat", *([] if thinking else ["--no-thinking"])]
        done = run("generate", "--model", model_folder, *FAST, *GREEDY, *args, "--prompts-file", "-", stdin=rows)
        lines = sorted(map(json.loads, done.out.splitlines()), key=lambda line: line["index"])
        return [line["outputs"][0]["content"] for line in lines]

    return answers


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def end_line(text):
    return text if text.endswith("\n") else text + "\n"


def test_piped_lines_are_turns_of_one_conversation(local, answers):
    first = answers([said("user", "hello")])[0]
    second = answers([said("user", "hello"), said("assistant", first), said("user", "and now?")])[0]
    done = local("hello\n\nand now?\n", "--no-thinking")
    assert done.code == 0
    assert done.out == end_line(first) + end_line(second)
    assert done.err == ""


def test_commands_change_the_conversation(local, answers, tmp_path):
    brief = said("system", "Be brief.")
    wanted = answers([said("user", "one")], [brief, said("user", "one")], [brief, said("user", "two")])
    saved, later = tmp_path / "saved.json", tmp_path / "saved.md"
    lines = ["one", "/system Be brief.", "/retry", f"/save {saved}", "/new", "two", f"/save {later}", "/quit", "never"]
    done = local("\n".join(lines) + "\n", "--no-thinking")
    assert done.code == 0
    assert done.out == "".join(map(end_line, wanted))
    assert json.loads(saved.read_text()) == [brief, said("user", "one"), said("assistant", wanted[1])]
    assert later.read_text().startswith("## System\n\nBe brief.\n\n## User\n\ntwo\n\n## Assistant\n\n")
    assert "system prompt: Be brief." in done.err


@pytest.mark.parametrize("end", ["/bye", "/exit"])
def test_words_that_end_other_chats_end_this_one(local, end):
    done = local(f"{end}\nnever\n")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_thinking_is_kept_out_of_a_pipe_and_in_the_file(local, tmp_path):
    saved = tmp_path / "saved.json"
    stdin = f"hello\n/thinking off\nhello\n/save {saved}\n"
    done = local(stdin, "--thinking-budget", 3, "--max-tokens", 90, "--seed", 1, "--system", "S")
    messages = json.loads(saved.read_text())
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[2]["reasoning"]
    assert "reasoning" not in messages[4]
    assert done.out == end_line(messages[2]["content"]) + end_line(messages[4]["content"])


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        ("/nonsense\n", ["/nonsense", "/help"]),
        ("/retry\n", ["nothing to answer"]),
        ("/thinking maybe\n", ["on or off"]),
        ("/save\n", ["which file"]),
        ("/save /nowhere/x.md\n", ["/nowhere/x.md", "no such file"]),
        ("word " * 3000 + "\n", ["2048", "/new"]),
    ],
)
def test_a_wrong_line_of_a_script_ends_it_with_code_2(local, stdin, words):
    done = local(stdin)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_somebody_to_talk_to_is_needed(run):
    done = run("chat")
    assert done.code == 2
    assert "--model" in done.err
    assert "--url" in done.err


class Scripted(ThreadingHTTPServer):
    """Streams the chunks in `plays` one request after the other, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.plays: list = []
        self.asked: list = []
        self.keys: list = []
        self.left = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Scripted

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(200, {"data": [{"id": "scripted"}]})

    def do_POST(self):
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.keys.append(self.headers["Authorization"])
        play = self.server.plays.pop(0)
        if isinstance(play, tuple):
            return self.answer(*play)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for chunk in play:
                if chunk is RESET:
                    self.wfile.flush()
                    time.sleep(0.2)  # what was sent arrives before the reset
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return self.connection.close()
                text = chunk if isinstance(chunk, str) else json.dumps(chunk)
                self.wfile.write(f"data: {text}\n\n".encode())
        except OSError:
            self.server.left.set()

    def answer(self, status, body, headers=()):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def delta(finish=None, **fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def spoken(text):
    usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 7}}
    return [*(delta(content=letter) for letter in text), delta(finish="stop"), usage, "[DONE]"]


@pytest.fixture
def scripted():
    server = Scripted()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.left.set()
    server.shutdown()
    server.server_close()


def test_a_server_answers_with_everything_passed_on(run, scripted):
    scripted.plays = [[delta(reasoning_content="hm, "), delta(reasoning="so"), *spoken("Paris.")], spoken("Berlin.")]
    done = run("chat", "--url", scripted.url + "/v1/", "--api-key", "k", "--system", "S", "--thinking-budget", 9,
               "--temperature", 0.5, "--top-p", 0.9, "--max-tokens", 50, "--seed", 4, "--thinking",
               stdin="France?\n/thinking off\nGermany?\n")  # fmt: skip
    assert done.code == 0, done.err
    assert done.out == "Paris.\nBerlin.\n"
    first, second = scripted.asked
    assert scripted.keys == ["Bearer k"] * 2
    assert first["messages"] == [said("system", "S"), said("user", "France?")]
    assert second["messages"][2] == said("assistant", "Paris.", reasoning="hm, so")
    wanted = {"model": "scripted", "temperature": 0.5, "top_p": 0.9, "max_tokens": 50, "seed": 4,
              "enable_thinking": True, "thinking_budget": 9}  # fmt: skip
    assert {name: first[name] for name in wanted} == wanted
    assert second["enable_thinking"] is False
    assert "thinking_budget" not in second


def test_unless_told_the_server_chooses_whether_to_think_and_its_address_needs_no_http(run, scripted):
    scripted.plays = [spoken("Paris.")]
    done = run("chat", "--url", scripted.url.removeprefix("http://"), stdin="/thinking\nFrance?\n")
    assert (done.code, done.out, done.err) == (0, "Paris.\n", "thinking: as the server has it\n")
    assert "enable_thinking" not in scripted.asked[0]


def test_an_empty_answer_in_a_pipe_says_why(run, scripted):
    usage = {"choices": [], "usage": {"completion_tokens": 7}}
    scripted.plays = [
        [delta(reasoning="hm"), delta(finish="length"), usage, "[DONE]"],
        [delta(finish="stop"), "[DONE]"],
    ]
    done = run("chat", "--url", scripted.url, stdin="a\nb\n")
    assert done.out == "\n\n"
    assert done.err == "no answer after the thinking (cut off at 7 tokens)\nempty answer\n"


def test_a_base_model_does_not_think_unless_asked_to(run, base_folder, tmp_path):
    done = run("chat", "--model", base_folder, *FAST, *GREEDY, stdin="hello\n/thinking\n")
    assert done.code == 0
    assert done.out.strip()
    note, thinking = done.err.splitlines()
    assert "base model" in note
    assert thinking == "thinking: off"
    done = run("chat", "--model", base_folder, *FAST, *GREEDY, "--thinking", stdin="hello\n")
    assert done.out == "\n"
    assert done.err.splitlines()[1:] == ["no answer after the thinking (cut off at 12 tokens)"]


@pytest.mark.parametrize(
    ("play", "words"),
    [
        ((401, {"error": {"message": "wrong key"}}), ["wrong key", "--api-key"]),
        ((429, {"error": {"message": "full"}}, {"Retry-After": "7"}), ["busy", "7 s"]),
        ((400, {"error": {"message": "too long"}}), ["400", "too long"]),
        ((500, "no object"), ["500", "no object"]),
        ([delta(content="half")], ["ended before the answer did"]),
        ([delta(content="half"), {"error": {"message": "engine died"}}], ["engine died"]),
        (["{broken"], ["not JSON"]),
        ([delta(content="half"), RESET], ["ended before the answer did"]),
    ],
)
def test_what_goes_wrong_at_a_server_is_told_in_one_line(run, scripted, play, words):
    scripted.plays = [play]
    done = run("chat", "--url", scripted.url, stdin="hello\n")
    assert done.code == 2
    (line,) = done.err.splitlines()
    for word in words:
        assert word in line
    assert done.out in ("", "half\n")


def test_a_server_that_is_not_there_is_told(run, scripted):
    scripted.shutdown()
    scripted.server_close()
    for url, word in ((scripted.url, "is a server running there"), ("nonsense", "nonsense"), ("http://[", "http://[")):
        done = run("chat", "--url", url, stdin="hello\n")
        assert done.code == 2
        assert word in done.err
        assert len(done.err.splitlines()) == 1


IN_ITS_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches it
from nano3.cli.app import main
main()
"""


def test_a_server_is_talked_to_without_loading_torch(scripted, monkeypatch):
    monkeypatch.delenv("NANO3_CPU_ISA", raising=False)  # with it a command looks at the kernels first
    scripted.plays = [spoken("Paris.")]
    code = f"""
import sys
from nano3.cli.app import main
try:
    main(["chat", "--url", {scripted.url!r}])
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""
    done = subprocess.run([sys.executable, "-c", code], input="France?\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "Paris.\n"), done.stderr


class Terminal:
    """`nano3 chat` in a pseudo-terminal; `text` is all that it has shown."""

    def __init__(self, *args, **environment):
        self.text = ""
        main, side = pty.openpty()
        self.end = main
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_ITS_TERMINAL, "chat", *args],
            stdin=side, stdout=side, stderr=side, start_new_session=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"} | environment,
        )  # fmt: skip
        os.close(side)

    def type(self, text):
        os.write(self.end, text.encode())

    def expect(self, pattern):
        """Wait until the pattern shows after what was found before; the text up to its end."""
        deadline = time.monotonic() + WAIT_S
        while not (found := re.search(pattern, self.text, re.DOTALL)):
            assert time.monotonic() < deadline, f"{pattern!r} not in {self.text!r}"
            if select.select([self.end], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.end, 65536).decode(errors="replace")
                except OSError:
                    pytest.fail(f"ended without {pattern!r}: {self.text!r}")
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def code(self):
        return self.process.wait(WAIT_S)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.end)


@pytest.fixture
def terminal(scripted, tmp_path):
    opened = []

    def terminal(*args, **environment):
        opened.append(Terminal("--url", scripted.url, *args, XDG_STATE_HOME=str(tmp_path), **environment))
        return opened[-1]

    yield terminal
    for one in opened:
        one.close()


def endless(server):
    while not server.left.is_set():
        yield delta(content="word ")
        time.sleep(0.01)


def test_at_a_terminal_thinking_is_dim_and_figures_follow(terminal, scripted, tmp_path):
    scripted.plays = [[delta(reasoning="let me see"), *spoken("Paris.")], spoken("Rome.")]
    shown = terminal()
    shown.expect("scripted · /help for commands")
    shown.type("France?\n")
    shown.expect(r"\x1b\[2mlet me see\x1b\[0m\s+Paris\.\r\n\x1b\[2m7 tokens · [\d.]+ tokens/s · first token")
    shown.type("two \\\nlines\n")
    shown.expect(r"Rome\.")
    assert scripted.asked[1]["messages"][-1] == said("user", "two \nlines")
    shown.type("/nonsense\n")
    shown.expect("error: /nonsense: no such command")
    shown.type("/th\tmaybe\n")  # Tab completes
    shown.expect("error: /thinking: say on or off\r\n.*> ")
    shown.type("\x04")
    assert shown.code() == 0
    assert "France?" in (tmp_path / "nano3" / "chat_history").read_text()


def test_in_a_narrow_terminal_nothing_breaks_within_a_word(terminal, scripted):
    usage = {"choices": [], "usage": {"completion_tokens": 8192}}
    scripted.plays = [[delta(reasoning="so"), delta(reasoning="so"), delta(finish="length"), usage, "[DONE]"]]
    shown = terminal(COLUMNS="46", NO_COLOR="1")
    shown.expect("> ")
    shown.type("hello\n")
    text = shown.expect(r"first token [\d.]+ s\r\n")
    assert "no answer after the thinking\r\ncut off at 8,192 tokens · " in text
    assert max(map(len, text.split("\r\n"))) <= 46
    shown.type("/thinkin on and on and on and on and on\n")
    shown.expect("error: /thinkin: no such command; /help lists\r\nthem\r\n")
    shown.expect("> ")
    shown.type("/help\n")
    assert "/quit             leave (also /bye" in shown.expect("once more leaves")


def test_hidden_thinking_counts_seconds_and_no_color_shows_no_escapes(terminal, scripted):
    scripted.plays = [[delta(reasoning="let me see"), *spoken("Paris.")]]
    shown = terminal("--hide-thinking", NO_COLOR="1")
    shown.expect("> ")
    shown.type("France?\n")
    text = shown.expect(r"first token")
    assert re.search(r"thought for [\d.]+ s\r\nParis\.", text)
    assert "let me see" not in text
    assert "\x1b[2m" not in text


def test_ctrl_c_stops_an_answer_and_once_more_leaves(terminal, scripted):
    scripted.plays = [endless(scripted)]
    shown = terminal()
    shown.expect("> ")
    shown.type("talk\n")
    shown.expect("word word")
    shown.type("\x03")
    shown.expect("stopped")
    assert scripted.left.wait(WAIT_S), "the server still sends"
    shown.expect("> ")
    shown.type("\x03")
    assert shown.code() == 130


def test_ctrl_c_stops_a_local_answer_between_two_steps(local, monkeypatch, tmp_path):
    write, written = sys.stdout.write, []

    def interrupted_write(text):
        written.append(text)
        if len(written) == 2:
            signal.raise_signal(signal.SIGINT)
        return write(text)

    monkeypatch.setattr(sys.stdout, "write", interrupted_write)
    saved = tmp_path / "saved.json"
    done = local(
        f"hello\nagain\n/save {saved}\n", "--no-thinking", "--max-tokens", 300, "--temperature", 1, "--seed", 3
    )
    assert done.code == 0
    messages = json.loads(saved.read_text())
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert done.out == end_line(messages[1]["content"]) + end_line(messages[3]["content"])
    assert len(messages[1]["content"]) < 40
