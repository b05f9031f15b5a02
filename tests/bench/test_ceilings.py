"""What a measurement is held against."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nano3.bench.ceilings import MATMULS, MOVES, READS, Ceilings, largest_bytes, read_ceiling
from nano3.bench.device.ceilings import DeviceCeilings
from nano3.bench.workload import Case, Job

GIB, MIB = 1 << 30, 1 << 20


@given(st.lists(st.floats(1, 1e3), min_size=len(READS), max_size=len(READS)), st.integers(1, 1 << 40))
def test_nothing_measured_of_as_many_bytes_or_more_beats_its_ceiling(found, size):
    rates = dict(zip(READS, found, strict=True))
    name, best = read_ceiling(size, rates)
    assert rates[name] == best
    assert all(rates[other] <= best for other, held in READS.items() if held >= size)


@pytest.mark.parametrize(
    ("size", "best"),
    [
        (10, ("read_256_KiB", 90)),
        (3 * MIB, ("read_4_MiB", 70)),  # a call's own cost slowed the smaller one down
        (5 * MIB, ("read_4_MiB", 70)),
        (100 * MIB, ("read_256_MiB", 21)),  # 256 MiB cannot be read faster than 64
        (1 << 40, ("copy", 12)),
    ],
)
def test_a_size_is_held_against_the_next_smaller_one(size, best):
    rates = dict(zip(READS, (90, 60, 70, 40, 20, 21, 11), strict=True)) | {"copy": 12, "triad": 10}
    assert read_ceiling(size, rates) == best


def test_without_sizes_that_were_read_copying_is_the_ceiling():
    assert read_ceiling(1 << 30, {"matmul_bfloat16": 1e15, "copy": 4e12}) == ("copy", 4e12)


def test_rates_of_a_device_are_those_of_its_product_and_copy(monkeypatch):
    asked = []

    def seconds(self, run, count=1):
        asked.append(run)
        run()
        return 0.5 + len(asked)

    monkeypatch.setattr("nano3.bench.device.timer.Timer.seconds", seconds)
    side = DeviceCeilings(torch.device("cpu"), product=64, copied=2 << 20)
    rates = side.run()
    # The best of each five tries.
    assert rates == {
        "matmul_bfloat16": 2 * 64**3 / 1.5, "matmul_float32": 2 * 64**3 / 6.5, "copy": 2 * (2 << 20) / 11.5,
    }  # fmt: skip
    assert side.about()["matmul"] == [64, 64, 64]


@pytest.mark.parametrize(
    ("cache", "free", "largest"),
    [(32 * MIB, 16 * GIB, 64 * MIB), (300 * MIB, 16 * GIB, GIB), (0, 16 * GIB, 256 * MIB), (300 * MIB, GIB, 256 * MIB)],
)
def test_the_largest_buffer_lies_beyond_the_caches_where_memory_allows(cache, free, largest):
    assert largest_bytes(cache, free) == largest


def test_every_ceiling_is_measured(monkeypatch):
    monkeypatch.setattr("nano3.bench.ceilings.MATMUL", 128)
    side = Ceilings(Job("ceilings", "decode"), largest=1 << 20)
    rates = side.run(Case("decode", 1, 1, 1))
    assert rates.keys() == {*MATMULS.values(), *MOVES, "read_256_KiB", "read_1_MiB"}
    assert all(rate > 1e6 for rate in rates.values())
    about = side.about()
    assert about["read_bytes"] == [256 << 10, 1 << 20]
    assert all(about["read_by"].values())
    # As fast as a row is multiplied by the same weights, or faster: one of the ways is that.
    assert torch.equal(side.data, torch.ones(1 << 18))
