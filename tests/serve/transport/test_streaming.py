"""Streams send each part at once, end when their client stops reading, and then hold nothing."""

import asyncio
import socket

import pytest

from nano3.serve.service import Generation, Service
from nano3.serve.settings import Settings
from nano3.serve.transport.server import bind
from nano3.serve.transport.streaming import EventStream


class Client:
    """The ASGI side of a client that reads so many messages and then no more, without hanging up."""

    def __init__(self, reads: int) -> None:
        self.reads, self.got = reads, []

    async def send(self, message):
        if len(self.got) >= self.reads:
            await asyncio.Event().wait()
        self.got.append(message)

    async def receive(self):
        return await asyncio.Event().wait()


async def numbers():
    for number in range(5):
        yield {"number": number}


def play(client, patience):
    closed = []
    stream = EventStream(numbers(), lambda: closed.append(True), patience=lambda: patience)
    asyncio.run(asyncio.wait_for(stream({"type": "http"}, client.receive, client.send), 20))
    return closed


@pytest.mark.parametrize("reads", [1, 3])
def test_a_client_that_stops_reading_is_given_up(reads, caplog):
    client = Client(reads)
    assert play(client, 0.02) == [True]
    assert len(client.got) == reads
    assert "stopped reading" in caplog.text


def test_a_client_that_reads_gets_everything(caplog):
    client = Client(100)
    assert play(client, 0.02) == [True]
    assert client.got[-1] == {"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False}
    assert len(client.got) == 7
    assert not caplog.text


@pytest.mark.parametrize(("timeout", "most", "least"), [(None, 7, 7), (4, 4, 3), (0.001, 1, 1), (100, 7, 7)])
def test_the_time_limit_of_a_request_holds_for_reading_too(make_engine, timeout, most, least):
    settings = Settings(request_timeout=timeout, stall_seconds=7)

    async def patience():
        return Generation(Service(make_engine(), "small", settings), []).patience()

    assert least <= asyncio.run(patience()) <= most


def test_no_part_of_an_answer_waits_for_word_of_the_one_before():
    """By TCP_NODELAY: else the client's system, which acknowledges late, delays the second part by 40 ms."""

    async def delays() -> bool:
        found = asyncio.get_running_loop().create_future()

        def connected(_, writer):
            own = writer.get_extra_info("socket")
            found.set_result(not own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = bind("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            delays = await asyncio.wait_for(found, 60)
            writer.close()
        return delays

    assert not asyncio.run(delays())
