"""Other programs on the same work, each a side of a measurement (nano3.bench.worker)."""
