"""The trainer's weights in the engine that makes its rollouts, and the proof that they are there."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nano3.config.errors import UserError
from nano3.engine.protocol import GenerationEngine, ServersGoneError
from nano3.engine.request import Sampling
from nano3.model.hf.folder import save, stored_dtype
from nano3.model.hf.names import is_adapter
from nano3.model.lora.merge import merged, unmerged
from nano3.rl.probe import Gap, Measured, Probe, ProbeRollouts, make_prompts
from nano3.rl.remote.served import write_served
from nano3.rl.rounding import FAR_TIMES, TIMES
from nano3.train.world import World, attempt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bound:
    """Largest mismatch that is let through, in nats."""

    mean: float
    largest: float

    def holds(self, gap: Gap) -> bool:
        """Whether it is within; NaN is not."""
        return gap.mean <= self.mean and gap.largest <= self.largest

    def __str__(self) -> str:
        return f"mean {self.mean:g}, largest {self.largest:g}"


FLOAT32 = Bound(1e-5, 1e-4)
"""Of float32 rollouts. Measured with the model of `nano3 pretrain` after 1.2M tokens: mean 8e-7, largest 6e-6. Narrower
rollouts have no such numbers: what their rounding explains is measured at each sync (nano3.rl.rounding)."""


class MismatchError(UserError):
    """The engine does not compute what the trainer computes; training on its rollouts would be off-policy unseen."""


@runtime_checkable
class ReadsFolder(Protocol):
    """An engine with weights of its own, read from a folder (VllmEngine)."""

    folder: Path

    def reload_weights(self) -> int:
        """Read the folder again; the version of weights_changed."""
        ...


@runtime_checkable
class OnServers(Protocol):
    """An engine whose weights are those of servers (nano3.rl.remote.engine.RemoteEngine)."""

    folder: Path
    """Through which they go."""
    weights: Any
    """What the servers have."""

    def load_weights(self, folder: Path) -> int:
        """Send the folder's weights to all servers; the version of weights_changed."""
        ...

    def adopt(self, weights: Any) -> None:
        """Know what another process has sent."""
        ...

    @property
    def parts(self) -> list[tuple[str, GenerationEngine]]:
        """(address, engine on it alone) of each server that has the weights."""
        ...


@dataclass(frozen=True)
class SyncReport:
    """One sync."""

    version: int
    """Of the weights, as outputs carry it."""
    measured: Measured
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Figures for metrics.jsonl."""
        found = {}
        for name, gap in (("generated", self.measured.generated), ("prompt", self.measured.prompt)):
            found |= {f"dlogp_{name}_{key}": value for key, value in asdict(gap).items() if key != "tokens"}
        for name, rounding in self.measured.rounding.items():
            found |= {f"rounding_{name}_{key}": value for key, value in asdict(rounding).items()}
        return found | {"weights_version": self.version, "sync_seconds": self.seconds}


class WeightSync:
    """Brings a model's weights to an engine and measures that it then computes what the training pass computes.

    How they get there follows from the engine: nothing is copied where it runs the very model; they are copied in
    place into another LM of its own (of the rollouts' type; addresses stay, so its decoding program holds); they are
    saved to the folder of an engine that reads one, or to one that servers read, each of which is measured by a rank.
    Of a model with LoRA adapters the merged weights are sent, so that an engine on a copy decodes at full speed; one
    that runs the very model computes them unmerged. Under FSDP the model's shards are gathered, every rank must call
    `sync` and has an engine of its own, on an LM of its own or on the same servers.
    """

    def __init__(
        self,
        model: Any,
        engine: GenerationEngine,
        *,
        sampling: Sampling | None = None,
        temperature: float = 1.0,
        dtype: torch.dtype | None = None,
        bound: Bound | None = None,
        probe: Probe | None = None,
        replaced_folder: Path | None = None,
        world: World | None = None,
    ) -> None:
        """Nothing is sent yet: call `sync` before the first rollout.

        Args:
            model: the trainer's LM.
            engine: of the rollouts.
            sampling: of the rollouts; None: Sampling().
            temperature: by which the trainer divides logits.
            dtype: of the rollouts' activations; None: as the model's.
            bound: None: `FLOAT32` in float32; in narrower types what rounding to them explains (nano3.rl.rounding). So
                give one for an engine that rounds more than that, such as one of quantized weights.
            probe: None: random prompts of more than two pages.
            replaced_folder: for an engine that reads a folder: that folder, which every sync overwrites; so open the
                engine on a copy of the model that training starts from.
            world: the ranks that sync together.

        Raises:
            UserError: the engine's weights cannot be reached, or its context is too short for the probe.
        """
        self.model, self.engine, self.temperature = model, engine, temperature
        self.world = world or World()
        self.dtype = dtype or model.compute_dtype
        self.bound = bound or (FLOAT32 if self.dtype == torch.float32 else None)
        self.probe = probe or _default_probe(engine, sampling or Sampling())
        if self.probe.n_tokens > engine.max_context:
            raise UserError(
                f"weight sync: the probe takes {self.probe.n_tokens} tokens of context, the engine has "
                f"{engine.max_context}; raise max_context, or give a probe of shorter prompts"
            )
        self._gone: list[str] = []
        self._send = _way(model, engine, replaced_folder, self.world)

    def sync(self) -> SyncReport:
        """Send the weights, tell the engine, and measure.

        Raises:
            RuntimeError: the engine has requests.
            MismatchError: it computes something else than the trainer; with the figures and what to look for.
        """
        self.world.agree(attempt(self._check_idle))
        started = time.perf_counter()
        version = self._send()
        self.world.agree(attempt(self._check_dropped))
        narrow = self.dtype if self.bound is None else None
        probed: list[tuple[str, ProbeRollouts]] = []
        self.world.agree(attempt(lambda: probed.extend(self._probed(narrow is not None))))
        if isinstance(self.engine, OnServers):
            # None is asked twice, since it then keeps states of its own answer: a rank without one measures another's.
            everywhere = [each for rank in self.world.gather(probed) for each in rank]
            gone = [reason for rank in self.world.gather(self._gone) for reason in rank]
            if not everywhere:
                raise ServersGoneError("; ".join(gone))
            probed = probed or everywhere[:1]
        reports = []
        # A sharded model needs every rank in every pass: one with fewer servers than another measures its last again.
        for i in range(max(self.world.gather(len(probed)))):
            where, rollouts = probed[min(i, len(probed) - 1)]
            measured = self.probe.compare(rollouts, self.model, self.temperature, narrow)
            report = SyncReport(version, measured, time.perf_counter() - started)
            log.info("weights %d%s: generated %s; prompt %s", version, where, measured.generated, measured.prompt)
            self.world.agree(attempt(lambda where=where, report=report: self._judge(report, where)))
            reports.append(report)
        return max(reports, key=lambda report: report.measured.generated.largest)

    def _probed(self, narrow: bool) -> list[tuple[str, ProbeRollouts]]:
        """What the engine answers to the probe; of servers, what those answer that are this rank's to ask, if any."""
        if not isinstance(self.engine, OnServers):
            experts = narrow and getattr(self.engine, "reports_experts", False)
            return [("", self.probe.rollouts(self.engine, experts))]
        found, self._gone = [], []
        for url, part in self.engine.parts[self.world.rank :: self.world.size]:
            try:
                found.append((f" at {url}", self.probe.rollouts(part)))
            except ServersGoneError as error:  # this one; the others go on
                self._gone.append(str(error))
        return found

    def _check_idle(self) -> None:
        if self.engine.has_work:
            raise RuntimeError("weight sync: the engine has unfinished requests; run them to their end or abort them")

    def _check_dropped(self) -> None:
        # Not by the probe alone, whose own entries may have been evicted since the last sync.
        if kept := self.engine.stats().cached_prefixes:
            raise MismatchError(
                f"weight sync: the engine keeps {kept} beginnings of prompts with states of the old weights: its "
                "weights_changed() must drop its prefix cache"
            )

    def _judge(self, report: SyncReport, where: str = "") -> None:
        measured = report.measured
        if measured.cached_at_first == 0 and self._holds("generated", measured) and self._holds("prompt", measured):
            return
        parts = [f"{name} {self._shown(name, measured)}" for name in ("generated", "prompt")]
        by_rounding = f"what rounding makes, {TIMES:g} times typically and {FAR_TIMES:g} times at far tokens"
        limits = by_rounding if self.bound is None else str(self.bound)
        raise MismatchError(
            f"weight sync {report.version}: engine{where} and trainer differ: {'; '.join(parts)}; bounds: {limits}. "
            f"{self._likely_cause(measured)}"
        )

    def _holds(self, part: str, measured: Measured) -> bool:
        return measured.rounding[part].explains if self.bound is None else self.bound.holds(getattr(measured, part))

    def _shown(self, part: str, measured: Measured) -> str:
        gap = str(getattr(measured, part))
        return f"{gap} ({measured.rounding[part]})" if self.bound is None else gap

    def _likely_cause(self, measured: Measured) -> str:
        if measured.cached_at_first:
            return (
                f"The engine took {measured.cached_at_first} tokens of the first prompt from states of the old "
                "weights: its weights_changed() must drop its prefix cache"
            )
        computes = getattr(getattr(self.engine, "model", None), "compute_dtype", self.dtype)
        if computes != self.dtype:
            names = [str(dtype).removeprefix("torch.") for dtype in (computes, self.dtype)]
            return f"The engine computes in {names[0]}, {names[1]} was expected: load it in {names[1]}, or give dtype="
        prompt, generated = (self._agrees(part, measured) for part in ("prompt", "generated"))
        if prompt and generated and self.bound is None:
            return (
                "Only single tokens differ, by more than rounding explains: look for what the engine does otherwise at "
                "the edges of pages and chunks, or give a bound if the loss masks such tokens"
            )
        if prompt and generated:
            return (
                "Only single tokens differ: beside rounding in bfloat16, routers near a tie choose other experts. Roll "
                "out in float32, or raise the bound if the loss masks such tokens"
            )
        if prompt:
            s = self.probe.sampling
            return (
                f"Prompts agree, so the weights arrived, but tokens are drawn from another distribution: rollouts have "
                f"temperature {s.temperature:g}, top_p {s.top_p:g}, top_k {s.top_k}, min_p {s.min_p:g}, the trainer "
                f"temperature {self.temperature:g} and no cut: make them equal{self._of_servers()}"
            )
        return "Prompts differ already: the weights did not all arrive, or the two do not run the same model"

    def _of_servers(self) -> str:
        return (
            ", and start servers with --logprobs-mode processed_logprobs" if isinstance(self.engine, OnServers) else ""
        )

    def _agrees(self, part: str, measured: Measured) -> bool:
        """Whether it is within the bounds but for single tokens."""
        if self.bound is None:
            return measured.rounding[part].explains_most
        return getattr(measured, part).mean <= self.bound.mean


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and buffers into those of another model, which keep their types and places in memory.

    Shards (DTensor) are gathered one tensor at a time; every rank must call then. Of a model with adapters the weights
    that hold their products go to a target without (nano3.model.lora.merge.merged).

    Raises:
        UserError: the models have not the same tensors.
    """
    given, places = source.state_dict(), target.state_dict()
    if not unmerged(source):
        given = {name: tensor for name, tensor in given.items() if name in places or not is_adapter(name)}
    odd = sorted(given.keys() ^ places.keys()) + sorted(
        name for name in given.keys() & places.keys() if given[name].shape != places[name].shape
    )
    if odd:
        raise UserError(f"weight sync: the engine's model has another {odd[0]} than the trainer's; build it alike")
    with torch.no_grad():
        for name, tensor in given.items():
            places[name].copy_(_whole(tensor))


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _way(model: Any, engine: Any, replaced_folder: Path | None, world: World) -> Callable[[], int]:
    """What sends the weights and returns their version."""
    if isinstance(engine, OnServers):
        return lambda: _to_servers(model, engine, world)
    if isinstance(engine, ReadsFolder):
        if replaced_folder is None or Path(replaced_folder).resolve() != engine.folder.resolve():
            raise UserError(
                f"weight sync: each sync overwrites {engine.folder}, which the engine reads; "
                "give it as replaced_folder if it may be"
            )
        return lambda: _through_folder(model, engine)
    target = getattr(engine, "model", None)
    if target is None:
        raise UserError(f"weight sync: a {type(engine).__name__} has no model and reads no folder")
    if target is model:
        return engine.weights_changed

    def copy() -> int:
        with merged(model):
            copy_weights(model, target)
        return engine.weights_changed()

    return copy


def _to_servers(model: Any, engine: OnServers, world: World) -> int:
    """The main rank sends, in the type that is computed with; all know what became of it."""
    with merged(model):
        write_served(model, engine.folder, world)
    world.agree(attempt(lambda: engine.load_weights(engine.folder)) if world.is_main else None)
    weights = world.from_main(engine.weights)
    if not world.is_main:
        engine.adopt(weights)
    return weights.number


def _through_folder(model: Any, engine: Any) -> int:
    folder = engine.folder
    written = ("config.json", "generation_config.json", "hf_quant_config.json")  # the last only where `save` sees fit
    others = [f for f in folder.iterdir() if f.name not in written and "safetensors" not in f.name]

    def keep(new: Path) -> None:
        for file in others:
            shutil.copy(file, new / file.name)

    with merged(model):
        save(model, folder, dtype=stored_dtype(folder), extra=keep)
    return engine.reload_weights()


def _default_probe(engine: GenerationEngine, sampling: Sampling) -> Probe:
    # Of ids that the tokenizer has too, and so every server takes.
    prompts, shared = make_prompts(min(engine.ids_limit, engine.tokenizer.vocab_size), engine.page_size)
    return Probe(prompts, shared, sampling)
