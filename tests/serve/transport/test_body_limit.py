"""Bodies that are too large: the client gets to read why."""

import socket
import time

import pytest

from ..conftest import new_engine, running

SIZE = 4 << 20


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_everything_first_reads_the_refusal(tokenizer, chunked):
    with running(new_engine(tokenizer), max_body_bytes=1 << 20) as server:
        host, port = server.url.removeprefix("http://").split(":")
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % SIZE
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (SIZE, b" " * SIZE) if chunked else b" " * SIZE
        with socket.create_connection((host, int(port)), timeout=120) as connection:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(head + length + b"\r\n\r\n" + body)
            # A reset of the connection would take what was not yet read with it.
            time.sleep(0.2)
            answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"larger than 1048576 bytes" in answer
