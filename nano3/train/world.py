"""The processes of a run, as torchrun's environment describes them; alone when there is none."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from nano3.config.errors import UserError
from nano3.train.waits import Waits

# Its name from torch 2.14 on, where the older one warns.
_set_timeout = getattr(dist, "set_timeout", distributed_c10d._set_pg_timeout)

DATA, CONTEXT, TENSOR, PIPELINE = "data", "context", "tensor", "pipeline"
"""Axes of the processes: those that read different sequences, those that hold other slices of each sequence, and those
that divide heads and, between mixers, the tokens of a slice. Along the pipeline they hold other blocks, for the same
sequences; what the loss reports adds up along it too. Processes along any other axis hold the same data."""
SEQUENCE, LOSS = "sequence", "loss"
"""Context and tensor together, the processes that share out each sequence; and these with data: over those the sums of
a step are made."""


PREPARING = timedelta(hours=24)
"""How long processes wait for each other outside training steps: the first one prepares data and writes the model."""
ROLLOUTS = timedelta(minutes=30)
"""The least that they wait for each other in a step with rollouts, whose lengths differ."""
SAVING, SAVING_TIMES = timedelta(minutes=10), 2
"""The least that they wait for each other's part of a checkpoint, and how many times as long as in a step."""


@dataclass(frozen=True)
class Group:
    """Processes that do something together, this one among them."""

    rank: int = 0
    """Position of this process in the group, from 0."""
    size: int = 1
    """Number of processes in the group."""
    handle: Any = None
    """Its torch process group; None for all processes."""

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over the group, in place; a no-op in a group of one."""
        if self.size > 1:
            dist.all_reduce(values, group=self.handle)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process of the group, on each of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.handle)
        return values


@dataclass(frozen=True)
class World:
    """This process among its peers. Every collective is a no-op in a world of one.

    What a step adds up goes over `loss`, which sequences a process reads goes by `data`: neither by `size`, since
    processes along the pipeline work on the same sequences.
    """

    rank: int = 0
    """Position of this process, from 0."""
    size: int = 1
    """Number of processes."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device of this process."""
    background: Any = None
    """Gloo group for work beside the training loop (asynchronous checkpoints); None in a world of one."""
    control: Any = None
    """Gloo group of the training loop itself: two threads must never share a group. None in a world of one."""
    owns_group: bool = False
    """Whether `close` ends torch.distributed."""
    mesh: DeviceMesh | None = None
    """The processes by axis, `data` first but for the pipeline; None: all are along `data`."""
    groups: Mapping[str, Group] = field(default_factory=dict)
    """This process's group along each axis of `mesh`, SEQUENCE and LOSS."""
    joined: DeviceMesh | None = None
    """The processes of LOSS as a mesh of one axis, where `mesh` has no axis of just these."""
    waits: Waits = field(default_factory=Waits)
    """How long this process waited for the others."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes metrics, charts and messages."""
        return self.rank == 0

    @property
    def data(self) -> Group:
        """The processes that read different sequences."""
        return self.groups.get(DATA, Group(self.rank, self.size))

    @property
    def context(self) -> Group:
        """The processes that hold slices of each sequence of this one; it alone where the world has no such axis."""
        return self.groups.get(CONTEXT, Group())

    @property
    def tensor(self) -> Group:
        """The processes that divide heads with this one; it alone where the world has no such axis."""
        return self.groups.get(TENSOR, Group())

    @property
    def sequence(self) -> Group:
        """The processes of both kinds, that share out each sequence of this one."""
        return self.groups.get(SEQUENCE, Group())

    @property
    def loss(self) -> Group:
        """The processes over which losses, counts and expert loads of a step are summed."""
        return self.groups.get(LOSS, self.data)

    @property
    def pipeline(self) -> Group:
        """The processes that hold the other blocks of the model; this one alone where it has all."""
        return self.groups.get(PIPELINE, Group())

    def report(self, values: Tensor) -> Tensor:
        """`values`, what the loss reports of this process's blocks and sequences, added up, in place."""
        return self.pipeline.sum(self.loss.sum(values))

    def loss_mesh(self) -> DeviceMesh:
        """The processes of `loss` as a mesh of one axis; every process must call."""
        if self.mesh is None:
            return init_device_mesh(self.device.type, (self.size,), mesh_dim_names=(DATA,))
        return self.joined or self.mesh[DATA]

    def everywhere(self, values: Tensor) -> Tensor:
        """`values`, the same on all processes of `loss`, summed over all processes, in place: for decisions that each
        process has to take alike, whatever axis it lies on. A no-op where `loss` is all of them."""
        return values if self.loss.size == self.size else Group(self.rank, self.size).sum(values)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def from_main(self, value: Any) -> Any:
        """The main rank's `value`, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def of_same_data(self, value: Any) -> list[Any]:
        """The `value` of every rank that reads the same data as this one, on each of them."""
        return [each for stage in self.pipeline.gather(self.sequence.gather(value)) for each in stage]

    def to_main(self, value: Any) -> list[Any]:
        """Every rank's `value` on the main rank; an empty list on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, dst=0, group=self.control)
        return values or []

    def agree(self, error: BaseException | None) -> None:
        """Raise the first error of any rank on all of them, so that they end alike and none waits for a dead one.

        Every rank must call. Another rank's error is of its own kind where that is a UserError, else a UserError; but a
        rank that has one of that kind itself raises its own, so that whoever waits for it (PausedError) gets it.
        """
        found = self.gather(None if error is None else (type(error).__qualname__, _sendable(error)))
        first = next((rank for rank, problem in enumerate(found) if problem is not None), None)
        if first is None:
            return
        kind, sent = found[first]
        alike = type(error).__qualname__ == kind and not isinstance(error, UserError)
        if error is not None and (first == self.rank or alike):
            raise error
        raise sent from error

    def limit_waits(self, seconds: float | None, saving: float | None = None) -> None:
        """From now on the run ends with an error where a process waits longer for others in a step; None: no limit but
        PREPARING. `saving`: seconds that SAVING_TIMES holds for; None: `seconds`."""
        if self.size == 1:
            return
        limit = PREPARING if seconds is None else timedelta(seconds=seconds)
        saves = max(SAVING, SAVING_TIMES * (limit if saving is None else timedelta(seconds=saving)))
        for group in list(distributed_c10d._world.pg_map):
            if not distributed_c10d._rank_not_in_group(group):
                _set_timeout(saves if group is self.background else limit, group)

    def close(self) -> None:
        """Leave torch.distributed, if `init_world` started it."""
        if self.owns_group and dist.is_initialized():
            dist.destroy_process_group()


def init_world(axes: Mapping[str, int] | None = None) -> World:
    """Join the processes that torchrun started (gloo on CPU, nccl on CUDA); a world of one without torchrun.

    Args:
        axes: number of processes along each axis beside `data`, the last one varying fastest: {"context": 2}.

    Raises:
        UserError: the processes do not divide into these axes.
    """
    device, owns, size = _local_device(), not dist.is_initialized(), n_processes()
    _check_axes(size, axes or {})
    if owns and size == 1:
        return World(device=device)
    if owns:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PREPARING)
    background, control = (dist.new_group(backend="gloo") if size > 1 else None for _ in range(2))
    mesh, groups, joined = _grouped(device, size, axes or {})
    world = World(dist.get_rank(), size, device, background, control, owns, mesh, groups, joined)
    world.limit_waits(None)
    return world


def n_processes() -> int:
    """Processes that torchrun started; one without it."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def _check_axes(size: int, axes: Mapping[str, int]) -> None:
    if size % math.prod(axes.values()):
        listed = " x ".join(f"{name} {n}" for name, n in axes.items())
        raise UserError(f"{size} processes do not divide into {listed}")


def _grouped(
    device: torch.device, size: int, axes: Mapping[str, int]
) -> tuple[DeviceMesh | None, dict[str, Group], DeviceMesh | None]:
    """The mesh of `axes` with `data` before them; this process's group along each, and those of SEQUENCE and LOSS; the
    mesh of LOSS."""
    if not axes:
        return None, {}, None
    n_data = size // math.prod(axes.values())
    # A stage's processes are neighbours: activations travel far, and what a block needs does not.
    sizes = {name: axes[name] for name in (PIPELINE,) if name in axes} | {DATA: n_data} | dict(axes)
    names = tuple(sizes)
    mesh = init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=names)
    groups = {name: _group(mesh[name]) for name in names}
    shared = [name for name in (CONTEXT, TENSOR) if name in axes]
    if not shared:
        return mesh, groups, None
    joined = _joined(mesh, (DATA, *shared), LOSS)
    # A mesh makes new process groups, which are not for nothing.
    groups[SEQUENCE] = groups[shared[0]] if len(shared) == 1 else _group(_joined(mesh, shared, SEQUENCE))
    return mesh, groups | {LOSS: _group(joined)}, joined


def _joined(mesh: DeviceMesh, names: Sequence[str], name: str) -> DeviceMesh:
    """The processes along several axes of `mesh` as one of its own, the last one varying fastest."""
    dims = [(mesh.mesh_dim_names or ()).index(axis) for axis in names]
    ranks = mesh.mesh.movedim(dims, list(range(-len(dims), 0)))
    rows = ranks.flatten(-len(dims)).reshape(-1, math.prod(mesh.shape[dim] for dim in dims))
    return DeviceMesh(mesh.device_type, rows, mesh_dim_names=("other", name))[name]


def _group(mesh: DeviceMesh) -> Group:
    return Group(mesh.get_local_rank(), mesh.size(), mesh.get_group())


def attempt(action: Callable[[], object]) -> BaseException | None:
    """What went wrong in `action()`; None if nothing did."""
    try:
        action()
    except (Exception, CheckpointException) as error:
        return error
    return None


def _sendable(error: BaseException) -> UserError:
    """`error` as another rank can raise it."""
    try:
        return pickle.loads(pickle.dumps(error)) if isinstance(error, UserError) else UserError(str(error))
    except Exception:  # of a class that does not keep its arguments
        return UserError(str(error))


def _local_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
