"""Measures training, prefill, decoding or rl: nano3, peers and the machine's ceilings in turn, each in its process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.bench.peers.table import Chosen, check_peers, choose_peers
from nano3.bench.peers.types import DTYPES, GGUF_TYPES, is_converted
from nano3.bench.processes import WORKER, SideError, Worker
from nano3.bench.workload import Case, Job, Kind
from nano3.config.errors import UserError
from nano3.config.presets import load_model
from nano3.cores import usable_cores

if TYPE_CHECKING:
    from nano3.model.lm import LM

OURS, SINGLE, CEILINGS = "nano3", "nano3, 1 thread", "ceilings"
PARTS = ("generate", "update")
FOLDER_PEERS = ("transformers", "vllm")
"""Those that read a Hugging Face folder."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    kind: Kind
    cases: Sequence[Case]
    model: str = "bench-110m"
    pattern: str = ""
    dtype: str = "auto"
    threads: int = 0
    """0: PyTorch's choice."""
    repeat: int = 5
    against: tuple[str, ...] = ()
    peer_dtypes: tuple[str, ...] = DTYPES
    """Those that peers run in; with `gguf`, llama.cpp's is that of the file."""
    peer_timeout: float = 300.0
    """Seconds until one run of a peer, or its loading, is given up."""
    gguf: str = ""
    """A file for llama.cpp; without one it gets the same weights as nano3."""
    scaling: bool = False
    """Also run nano3 with one thread."""
    profile: bool = False
    worker: str = WORKER
    """The module of nano3's own process."""
    warm: Case | None = None
    """The first run of each case, which does not count, where that is not the case itself."""
    device: str = "cpu"
    """Of nano3's own process, and of the ceilings; in throughput there are none elsewhere than on the CPU."""
    experts: int = 0
    """Of a block, in place of the preset's; 0: the preset's."""
    ceilings: bool = True
    """Whether the machine's rates are measured too."""
    memory: int = 0
    """throughput: bytes for sequences; 0: most of what is free."""

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", *DTYPES):
            raise UserError(f"--dtype {self.dtype}: not known; use auto, {', '.join(DTYPES)}")
        for name in self.peer_dtypes:
            if name not in DTYPES:
                raise UserError(f"--peer-dtype {name}: not known; use one or both of {','.join(DTYPES)}")
        for option, value in (("--repeat", self.repeat), ("--threads", self.threads or 1)):
            if value < 1:
                raise UserError(f"{option} is {value}; it must be at least 1")
        if self.threads > (cores := usable_cores()):
            raise UserError(f"--threads is {self.threads}, but nano3 may use {cores} cores of this machine")
        if not self.peer_timeout > 0:
            raise UserError(f"--peer-timeout is {self.peer_timeout:g}; it must be above 0")
        if self.gguf and not any(text.partition(":")[0] == "llama.cpp" for text in self.against):
            raise UserError("--gguf is a model for llama.cpp: add --against llama.cpp, or leave it out")
        for option, given in (("--profile", self.profile), ("--scaling", self.scaling)):
            if given and self.device != "cpu":
                raise UserError(f"{option} is about the CPU; leave it out, or --device cpu")
        check_peers(self.against, self.kind, self.gguf, self.device)


@dataclass
class Runs:
    """The runs of one side on one case."""

    seconds: list[float] = field(default_factory=list)
    peak_memory: int = 0
    failed: str = ""
    """Why there are no (more) runs, in one line."""
    details: list[dict[str, Any]] = field(default_factory=list)
    """throughput: figures of each run (nano3.bench.throughput.figures)."""
    parts: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of the parts of each run, where it has some: generate and update."""


@dataclass
class Measured:
    """All runs of a plan."""

    plan: Plan
    threads: int
    about: dict[str, dict[str, Any]]
    """What each side said about itself."""
    runs: list[dict[str, Runs]]
    """For each case: side -> its runs; runs of one index came one after the other."""
    ceilings: list[dict[str, float]]
    """The machine's rates, measured once in each round."""
    profiles: list[dict[str, Any]]
    """With --profile: one a case."""


def measure(plan: Plan, say: Say, decide: Callable[[Worker], Sequence[Case]] | None = None) -> Measured:
    """Run everything; `say` is told what goes on, and `decide` makes the cases when nano3's own process is ready.

    Raises:
        UserError: a wrong input.
        RuntimeError: nano3's own process failed.
    """
    if not Path(plan.model).is_dir():
        load_model(plan.model)  # a wrong name is told before anything is started
    if plan.device != "cpu":
        from nano3.engine.launch import find_device  # imports torch, as it needs to look

        plan = replace(plan, device=str(find_device(plan.device)))
    threads = plan.threads or _default_threads()
    with ExitStack() as stack:
        say("loading")
        rotation = Rotation(_start(plan, threads, stack), say)
        if decide is not None:
            try:
                plan = replace(plan, cases=decide(rotation.workers[OURS]))
            except SideError as failure:
                raise RuntimeError(f"{OURS}: {failure}") from failure
        measured = Measured(plan, threads, rotation.about, [], rotation.ceilings, [])
        for case in plan.cases:
            measured.runs.append(rotation.case(case, plan.repeat, plan.warm))
            if plan.profile:
                say(f"{case.name}: profile")
                measured.profiles.append(rotation.workers[OURS].profile(case))
        return measured


class Rotation:
    """The sides, which take turns so that the machine's moods meet all of them."""

    def __init__(self, workers: dict[str, Worker], say: Say) -> None:
        self.workers, self.say = workers, say
        self.lost: dict[str, str] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.ceilings: list[dict[str, float]] = []
        for name, worker in workers.items():
            self.about[name] = self._ask(name, worker.ready) or {}

    def case(self, case: Case, repeat: int, warm: Case | None = None) -> dict[str, Runs]:
        """One round that does not count (`warm`, else the case itself), then `repeat` that do."""
        runs = {name: Runs() for name in self.workers if name != CEILINGS}
        for number in range(repeat + 1):
            for name, worker in self.workers.items():
                if name in self.lost or (name == CEILINGS and number == 0):
                    continue
                self.say(f"{case.name}: {name}, " + (f"run {number} of {repeat}" if number else "first run"))
                work = case if number or warm is None else warm
                result = self._ask(name, lambda worker=worker, work=work: worker.run(work))
                if result is not None and number:
                    self._keep(name, result, runs)
        for name, reason in self.lost.items():
            runs[name].failed = reason
        return runs

    def _keep(self, name: str, result: dict[str, Any], runs: dict[str, Runs]) -> None:
        peak = int(result.pop("peak_memory"))
        if name == CEILINGS:
            self.ceilings.append(result)
            return
        runs[name].seconds.append(result["seconds"])
        runs[name].peak_memory = peak
        if "details" in result:
            runs[name].details.append(result["details"])
        for part in PARTS:
            if f"{part}_seconds" in result:
                runs[name].parts.setdefault(part, []).append(result[f"{part}_seconds"])

    def _ask(self, name: str, question: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The answer; None of a peer that failed, which is out from then on."""
        try:
            return question()
        except SideError as failure:
            if name in (OURS, SINGLE, CEILINGS):
                raise RuntimeError(f"{name}: {failure}") from failure
            self.lost[name] = str(failure)
            self.workers[name].close()
            return None


def _start(plan: Plan, threads: int, stack: ExitStack) -> dict[str, Worker]:
    """The processes by name, nano3's first; all end with `stack`."""
    workers: dict[str, Worker] = {}

    def start(name: str, job: Job, limit: float | None = None) -> None:
        workers[name] = Worker(job, limit, plan.worker if job.side == OURS else WORKER)
        stack.callback(workers[name].close)

    job = Job(
        OURS,
        plan.kind,
        plan.model,
        plan.pattern,
        plan.dtype,
        threads,
        device=plan.device,
        memory=plan.memory,
        experts=plan.experts,
    )
    start(OURS, job)
    if plan.scaling:
        start(SINGLE, replace(job, threads=1))
    if plan.against:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nano3-bench-")))
        for name, job in _peer_jobs(plan, temporary):
            start(name, replace(job, threads=threads), plan.peer_timeout)
    if plan.ceilings and (plan.device == "cpu" or plan.kind != "throughput"):
        start(CEILINGS, Job(CEILINGS, plan.kind, threads=threads, device=plan.device))
    return workers


def _peer_jobs(plan: Plan, temporary: Path) -> Iterator[tuple[str, Job]]:
    """(name, job) of each peer, with nano3's weights written to `temporary` in the peer's own form."""
    from nano3.bench.native import open_model

    chosen = choose_peers(plan.against, plan.peer_dtypes)
    if plan.gguf:  # a model of any size, which need not be opened here
        job = Job("llama.cpp", plan.kind, plan.gguf, dtype="that of the file", own=True)
        yield f"llama.cpp {Path(plan.gguf).stem}", job
        chosen = [peer for peer in chosen if peer.name in FOLDER_PEERS]
    if not chosen:
        return
    model = open_model(plan.model, plan.pattern, plan.experts)
    if any(peer.name in FOLDER_PEERS for peer in chosen):
        from nano3.bench.native import full_tokenizer
        from nano3.model.hf.folder import save

        save(model, temporary / "model")
        if any(peer.name == "vllm" for peer in chosen):
            full_tokenizer(model.cfg.vocab_size).save(temporary / "model")
    for peer in chosen:
        if peer.name in FOLDER_PEERS:
            yield peer.title, Job(peer.name, plan.kind, str(temporary / "model"), dtype=peer.dtype)
        else:
            yield peer.title, Job(peer.name, plan.kind, str(_gguf(model, peer, temporary)), dtype=peer.dtype)


def _gguf(model: LM, peer: Chosen, temporary: Path) -> Path:
    """The model's GGUF file in a peer's type; in bf16 where llama.cpp is to make the type itself."""
    from nano3.model.gguf.write import write_gguf

    kind = "bf16" if is_converted(peer.dtype) else GGUF_TYPES.get(peer.dtype, peer.dtype)
    path = temporary / f"{kind}.gguf"
    if not path.exists():
        write_gguf(model, path, kind)
    return path


def _default_threads() -> int:
    import torch

    return torch.get_num_threads()
