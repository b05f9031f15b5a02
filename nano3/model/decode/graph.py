"""Work that is the same every time but for the numbers in its tensors: as a CUDA graph, or on a CPU as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Recorder:
    """Makes the graphs of one device; they share the memory of what they compute in between.

    So only one of them may run at a time, and what is to outlive the next one's run is copied to tensors from outside.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.problem: str | None = None
        """Why no graph could be made of some work, which has been done all the same."""
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        # One for all graphs, since libraries keep memory for each stream; and of this device: a stream of the current
        # one, which PyTorch takes by itself, would record nothing of this one.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The launches of `work`, none of which takes place; None on other devices, or where it cannot be."""
        if self._pool is None or self.problem is not None:
            return None
        graph, device = torch.cuda.CUDAGraph(), self.device
        try:
            # Other threads may allocate meanwhile. A graph that cannot be made leaves its stream as the current one.
            with (
                torch.cuda.device(device),
                torch.cuda.stream(torch.cuda.current_stream(device)),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                work()
        except RuntimeError as error:
            self.problem = f"no CUDA graph can be made of it: {str(error).splitlines()[0]}"
            return None
        return graph


class Graph:
    """One piece of work on tensors that stay in their places."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Do it: the first time as it stands, which compiles kernels and lets libraries prepare; then as recorded."""
        if self._graph is not None:
            self._graph.replay()
            return
        work()
        self._graph = self._recorder.record(work)
