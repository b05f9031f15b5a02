"""An OpenAI-compatible server whose every answer is written beforehand."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field

import pytest

from ..commands import run  # noqa: F401 (a fixture)


def event(**fields):
    return f"data: {json.dumps(fields)}\n\n"


def piece(text, key="content"):
    return event(choices=[{"index": 0, "delta": {key: text}, "text": text, "finish_reason": None}])


FINISH = event(choices=[{"index": 0, "delta": {}, "text": "", "finish_reason": "length"}])
DONE = "data: [DONE]\n\n"


def usage(prompt=7, output=3, cached=2):
    counts = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}
    return event(choices=[], usage=counts)


WHOLE = [event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]),
         piece("a"), piece("b"), piece("c"), FINISH, usage(), DONE]  # fmt: skip


@dataclass
class Scripted:
    """Answers GET /v1/models, POST /tokenize (a token a letter) and generation; keeps the bodies it was sent.

    `answer(body, number)` gives (status, parts): the number counts generation requests from 0; of the parts, strings
    are sent as they are, numbers are seconds to wait, and None drops the connection.
    """

    answer: object = staticmethod(lambda body, number: (200, WHOLE))
    tokenize: bool = True
    key: str = ""
    bodies: list = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    url: str = ""

    async def handle(self, reader, writer):
        try:
            while await self.one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = head[0].split()[1]
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return await self.reply(writer, 401, {"error": {"message": "wrong key"}})
        if path == "/v1/models":
            return await self.reply(writer, 200, {"data": [{"id": "scripted"}]})
        if path == "/tokenize":
            text = json.loads(body)["prompt"]
            return await self.reply(writer, 200 if self.tokenize else 404, {"count": len(text)})
        return await self.generate(writer, path, json.loads(body))

    async def generate(self, writer, path, body):
        number = len(self.bodies)
        self.bodies.append(body | {"path": path})
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            status, parts = self.answer(body, number)
            if status != 200:
                return await self.reply(writer, status, parts)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for part in parts:
                if part is None:
                    return False
                if isinstance(part, str):
                    writer.write(f"{len(part.encode()):x}\r\n{part}\r\n".encode())
                    await writer.drain()
                else:
                    await asyncio.sleep(part)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return True
        finally:
            self.under_way -= 1

    async def reply(self, writer, status, value):
        data = json.dumps(value).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        return True


@pytest.fixture
def scripted():
    """A running Scripted server; change its fields at will."""
    server = Scripted()
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(server.handle, "127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(cancel_all())
    listening.close()
    loop.close()


async def cancel_all():
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
