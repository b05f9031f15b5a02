"""The engine behind an event loop: every end of a request, seen from the loop."""

import asyncio
import threading

import pytest

from nano3.engine.engine import Engine
from nano3.engine.output import Output
from nano3.engine.protocol import run
from nano3.engine.request import Grammar, Request, Sampling
from nano3.serve.engine_thread import DrainingError, EngineFailedError, EngineThread, QueueFullError

PROMPT = (40, 41, 42, 43)


class Breaking(Engine):
    """Breaks where it is told to."""

    broken = ""

    def step(self):
        if self.broken == "step":
            raise RuntimeError("out of luck")
        return super().step()

    def add(self, request):
        if self.broken == "add":
            raise RuntimeError("out of luck")
        super().add(request)


class Slow(Engine):
    """Waits for leave to take each step."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.leave, self.began = threading.Semaphore(0), threading.Event()

    def step(self):
        self.began.set()
        assert self.leave.acquire(timeout=120)
        return super().step()


class SlowToPrepare(Engine):
    """Waits for leave to compile a grammar."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.leave, self.began = threading.Event(), threading.Event()

    def prepare(self, request):
        self.began.set()
        assert self.leave.wait(timeout=120)
        super().prepare(request)


class Counting(Engine):
    """Counts how often it is asked for work."""

    asked = 0

    @property
    def has_work(self):
        self.asked += 1
        return super().has_work


def request(name, n=1, **sampling):
    return Request(name, PROMPT, Sampling(seed=1, **({"max_tokens": 5} | sampling)), n)


async def collect(stream):
    outputs = {}
    async for update in stream:
        outputs.setdefault(update.index, Output(update.index)).add(update)
    return [outputs[index] for index in sorted(outputs)]


async def fate(thread, one):
    """The error of a request, told when it is submitted or later."""
    try:
        return (await collect(await thread.submit(one)))[0].error
    except EngineFailedError as error:
        return str(error)


def play(engine, scenario, **options):
    """Run `scenario(thread)` in an event loop with the engine's thread beside it."""

    async def main():
        thread = EngineThread(engine, **options).start()
        try:
            return await asyncio.wait_for(scenario(thread), 60)
        finally:
            await asyncio.to_thread(thread.close)

    return asyncio.run(main())


def test_outputs_are_those_of_the_engine_alone(make_engine):
    requests = [request("a", n=2), request("b", temperature=0), request("c", max_tokens=12)]

    async def scenario(thread):
        streams = [await thread.submit(one) for one in requests]
        return await asyncio.gather(*map(collect, streams))

    alone = make_engine()
    for found, one in zip(play(make_engine(), scenario), requests, strict=True):
        assert [output.ids for output in found] == [output.ids for output in run(alone, [one])[0]]


def test_a_request_that_cannot_run_is_refused_and_the_rest_goes_on(make_engine):
    async def scenario(thread):
        with pytest.raises(ValueError, match="10000000"):
            await thread.submit_all([request("a"), Request("b", (10_000_000,))])
        assert len((await collect(await thread.submit(request("a"))))[0].ids) == 5
        assert thread.unfinished == 0

    play(make_engine(), scenario)


def test_others_are_served_while_a_grammar_is_compiled(make_engine):
    engine = make_engine(SlowToPrepare)

    async def scenario(thread):
        digits = asyncio.create_task(thread.submit(request("digits", grammar=Grammar("regex", "[0-9]{3}"))))
        assert await asyncio.to_thread(engine.began.wait, 20)
        assert len((await collect(await thread.submit(request("other", ignore_eos=True))))[0].ids) == 5
        assert not digits.done()
        engine.leave.set()
        assert (await collect(await digits))[0].text.isdigit()
        with pytest.raises(ValueError, match="regular expression"):
            await thread.submit(request("wrong", grammar=Grammar("regex", "[")))
        assert thread.unfinished == 0

    play(engine, scenario)


def test_an_abort_takes_effect_before_the_next_step(make_engine):
    engine = make_engine(Slow)

    async def scenario(thread):
        stream = await thread.submit(request("a", max_tokens=1000, ignore_eos=True))
        await asyncio.to_thread(engine.began.wait)
        stream.close()
        engine.leave.release()
        (output,) = await collect(stream)
        assert output.finish == "abort"
        assert len(output.ids) <= 1
        assert thread.aborted == 1
        while thread.stats().running:
            await asyncio.sleep(0.01)

    try:
        play(engine, scenario)
    finally:
        engine.leave.release(100)


def test_a_full_queue_refuses_and_a_cancelled_submission_leaves_nothing(make_engine):
    engine = make_engine(Slow, max_sequences=1)

    async def scenario(thread):
        await thread.submit(request("a"))
        await asyncio.to_thread(engine.began.wait)
        second = asyncio.ensure_future(thread.submit(request("b")))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await thread.submit(request("c", n=2))
        second.cancel()
        engine.leave.release(100)
        while thread.unfinished:
            await asyncio.sleep(0.01)
        with pytest.raises(ValueError, match="at most 128"):
            thread.ensure_room(129)

    play(engine, scenario, max_waiting=2)


def test_free_places_of_the_engine_count_before_it_has_taken_anything_in(make_engine):
    engine = make_engine(Slow, max_sequences=2)

    async def scenario(thread):
        burst = [asyncio.ensure_future(thread.submit(request(str(i)))) for i in range(6)]
        engine.leave.release(100)
        found = await asyncio.gather(*burst, return_exceptions=True)
        assert [isinstance(one, QueueFullError) for one in found] == [False] * 3 + [True] * 3
        assert "1 of 1 waiting" in str(found[3])
        for stream in found[:3]:
            assert (await collect(stream))[0].finish == "length"

    play(engine, scenario, max_waiting=1)


@pytest.mark.parametrize("where", ["step", "add"])
def test_a_failure_ends_everything_that_waits_and_comes(make_engine, where, caplog):
    engine = make_engine(Breaking)

    async def scenario(thread):
        first = await thread.submit(request("a", n=2, max_tokens=2000, ignore_eos=True))
        engine.broken = where
        assert "out of luck" in await fate(thread, request("b"))
        outputs = await collect(first)
        assert [output.finish for output in outputs] == ["error", "error"]
        assert all("out of luck" in output.error for output in outputs)
        with pytest.raises(EngineFailedError):
            await thread.submit(request("c"))
        assert "out of luck" in str(thread.failure)
        assert not thread.ready
        assert thread.unfinished == 0

    play(engine, scenario)


def test_a_full_queue_does_not_refuse_a_change(make_engine):
    engine = make_engine(Slow)

    async def scenario(thread):
        running = [await thread.submit(request("a", n=engine.sizes.max_sequences + 2))]
        change = asyncio.ensure_future(thread.change(lambda _: "done"))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await thread.submit(request("b"))
        engine.leave.release(1000)
        assert await change == "done"
        await collect(running[0])

    play(engine, scenario, max_waiting=1)


def test_a_change_that_waits_is_answered_when_the_engine_breaks(make_engine, caplog):
    engine = make_engine(Breaking)

    async def scenario(thread):
        await thread.submit(request("a", max_tokens=2000, ignore_eos=True))
        change = asyncio.ensure_future(thread.change(lambda _: "done"))
        await asyncio.sleep(0)
        engine.broken = "step"
        with pytest.raises(EngineFailedError, match="out of luck"):
            await asyncio.wait_for(change, 20)

    play(engine, scenario)


def test_a_change_asked_for_while_the_engine_ends_is_refused(make_engine, monkeypatch):
    async def scenario(thread):
        loop = asyncio.get_running_loop()
        new = loop.create_future
        # The engine ends behind the first thing that `change` does, before it can have posted anything.
        monkeypatch.setattr(loop, "create_future", lambda: (thread.close(), monkeypatch.undo(), new())[-1])
        with pytest.raises(DrainingError):
            async with asyncio.timeout(20):
                await thread.change(lambda _: "done")

    play(make_engine(), scenario)


def test_draining_lets_accepted_requests_end(make_engine):
    async def scenario(thread):
        stream = await thread.submit(request("a", max_tokens=30, ignore_eos=True))
        drained = asyncio.ensure_future(thread.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(DrainingError):
            await thread.submit(request("b"))
        assert (await collect(stream))[0].finish == "length"
        assert await drained

    play(make_engine(), scenario)


def test_draining_ends_what_takes_too_long_with_an_error(make_engine):
    async def scenario(thread):
        stream = await thread.submit(request("a", max_tokens=4000, ignore_eos=True))
        assert not await thread.drain(0.05)
        (output,) = await collect(stream)
        assert output.finish == "error"
        assert "shutting down" in output.error

    play(make_engine(), scenario)


def test_closing_ends_what_runs(make_engine):
    async def scenario(thread):
        stream = await thread.submit(request("a", max_tokens=4000, ignore_eos=True))
        await asyncio.to_thread(thread.close)
        assert (await collect(stream))[0].finish == "error"
        assert thread.failure is None

    play(make_engine(), scenario)


def test_an_idle_thread_asks_for_nothing(make_engine):
    engine = make_engine(Counting)

    async def scenario(thread):
        await collect(await thread.submit(request("a")))
        await asyncio.sleep(0.1)
        asked = engine.asked
        await asyncio.sleep(0.2)
        assert engine.asked == asked

    play(engine, scenario)
