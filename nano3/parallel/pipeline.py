"""Pipeline parallelism: each process holds some blocks, and activations of micro-batches travel from one to the next.

A process may hold several stages. It acts by a timetable that all know, and after each turn the results of that turn
travel at once: so no two processes wait for each other, whatever the order of their actions. What travels has the shape
of the micro-batch, which every process of a pipeline reads; nothing is sent to tell it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nano3.parallel.stages import Action, next_stage, timetable


class Part:
    """The blocks of one stage, as a loss calls a model: `hidden`, and `lm_head` in the last stage alone."""

    def __init__(self, model: Any, blocks: range) -> None:
        self.model, self.blocks = model, blocks
        self.entered: Tensor | None = None
        """(B, T, D) from the stage before; None in the first one."""
        self.left: Tensor | None = None
        """(B, T, D) of the last pass."""

    @property
    def lm_head(self) -> Any:
        """The output projection; None: the loss is another stage's."""
        return self.model.lm_head if self.blocks.stop == self.model.cfg.n_blocks else None

    def hidden(self, tokens: Tensor, document_ids: Tensor | None = None, **options: Any) -> Any:
        """As LM.hidden, through these blocks."""
        hidden = self.model.hidden(tokens, document_ids, inputs=self.entered, part=self.blocks, **options)
        self.left = hidden.x
        return hidden


class Pipeline:
    """The stages of a model, of which this process holds every `size`-th.

    Args:
        model: with the blocks of this process (`keep_stages`).
        stages: blocks of each stage.
        group: torch process group of the pipeline, in its order; every process of it must make one.
        device: where this process computes; its weights may be elsewhere (parallel.offload).
    """

    def __init__(self, model: Any, stages: Sequence[range], group: Any, device: torch.device) -> None:
        self.model, self.group, self.device = model, group, device
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        # The first call in a group has to be one of all its processes (batch_isend_irecv); messages are of two.
        dist.all_reduce(torch.zeros((), device=device), group=group)
        self.n_stages = len(stages)
        self._parts = {stage: Part(model, stages[stage]) for stage in range(self.rank, len(stages), self.size)}

    def train(self, shapes: Sequence[tuple[int, int]], loss: Callable[[Part, int], Tensor]) -> None:
        """Forward and backward passes of a step's micro-batches.

        Args:
            shapes: rows and tokens of each.
            loss: runs micro-batch i through a part and returns what this stage adds to the loss.
        """
        running = _Running(self, shapes, loss)
        for turn in timetable(self.size, self.n_stages // self.size, len(shapes)):
            action = turn[self.rank]
            running.exchange(turn, None if action is None else running.act(action))

    def through(self, shape: tuple[int, int], run: Callable[[Part], Any]) -> Any:
        """A forward pass of one micro-batch: what `run` returns of the last stage there, None on other processes."""
        found = None
        for stage, part in self._parts.items():
            part.entered = None
            if stage:
                part.entered = self.room(shape)
                self.wait(dist.irecv(part.entered, group=self.group, group_src=(stage - 1) % self.size))
            found = run(part)
            if stage < self.n_stages - 1:
                assert part.left is not None
                result = part.left.contiguous()
                self.wait(dist.isend(result, group=self.group, group_dst=(stage + 1) % self.size))
            part.entered = part.left = None
        return found if self.n_stages - 1 in self._parts else None

    def wait(self, message: Any) -> None:
        """Until a message is through, as long as collectives may take at present (World.limit_waits): gloo would keep
        to what the group was made with. NCCL ends late messages itself, and given a limit would hold up the host."""
        on_cpu = self.device.type == "cpu"
        message.wait(*([self.group._get_backend(self.device).options._timeout] if on_cpu else []))

    def part(self, stage: int) -> Part:
        """A stage of this process."""
        return self._parts[stage]

    def room(self, shape: tuple[int, int]) -> Tensor:
        """Memory for the activations of a micro-batch, or their gradients."""
        return torch.empty(*shape, self.model.cfg.d_model, dtype=self.model.compute_dtype, device=self.device)


class _Running:
    """One step: what has arrived, and what waits for its backward pass."""

    def __init__(
        self, pipeline: Pipeline, shapes: Sequence[tuple[int, int]], loss: Callable[[Part, int], Tensor]
    ) -> None:
        self.pipeline, self.shapes, self.loss = pipeline, shapes, loss
        self.arrived: dict[Action, Tensor] = {}
        self.waiting: dict[tuple[int, int], tuple[Tensor | None, Tensor | None, Tensor]] = {}

    def act(self, action: Action) -> Tensor | None:
        """Do it; what another process needs of it."""
        given = self.arrived.pop(action, None)
        return (self._forward if action.forward else self._backward)(action, given)

    def exchange(self, turn: Sequence[Action | None], result: Tensor | None) -> None:
        """Send what this process made in a turn, and take what others made for it."""
        pipeline, ops = self.pipeline, []
        for rank, action in enumerate(turn):
            goal = None if action is None else next_stage(action, pipeline.n_stages)
            if goal is None:
                continue
            owner = goal.stage % pipeline.size
            if rank == pipeline.rank:
                assert result is not None
                ops.append(dist.P2POp(dist.isend, result, group=pipeline.group, group_peer=owner))
            elif owner == pipeline.rank:
                self.arrived[goal] = pipeline.room(self.shapes[goal.batch])
                ops.append(dist.P2POp(dist.irecv, self.arrived[goal], group=pipeline.group, group_peer=rank))
        for work in dist.batch_isend_irecv(ops) if ops else []:
            pipeline.wait(work)

    def _forward(self, action: Action, given: Tensor | None) -> Tensor | None:
        part = self.pipeline.part(action.stage)
        part.entered = None if given is None else given.requires_grad_()
        loss = self.loss(part, action.batch)
        left = None if action.stage == self.pipeline.n_stages - 1 else part.left
        self.waiting[action.stage, action.batch] = given, left, loss
        part.entered = part.left = None
        return None if left is None else left.detach().contiguous()

    def _backward(self, action: Action, given: Tensor | None) -> Tensor | None:
        entered, left, loss = self.waiting.pop((action.stage, action.batch))
        # Weights of a stage may all be frozen, and those before it too.
        roots = [(m, d) for m, d in ((left, given), (loss, None)) if m is not None and m.requires_grad]
        if roots:
            tensors, gradients = zip(*roots, strict=True)
            torch.autograd.backward(tensors, gradients)
        if entered is None:
            return None
        return torch.zeros_like(entered) if entered.grad is None else entered.grad.contiguous()


def keep_stages(model: Any, stages: Sequence[range]) -> None:
    """Drop the blocks of `model` that are in none of `stages`, and the ends that none of them has, in place.

    Blocks keep their numbers, and so all parameters their names.
    """
    kept = nn.ModuleList()
    for number in (i for blocks in stages for i in blocks):
        kept.add_module(str(number), model.blocks[number])
    if 0 not in {blocks.start for blocks in stages}:
        model.embeddings = None
    if model.cfg.n_blocks not in {blocks.stop for blocks in stages}:
        model.norm_f = model.lm_head = None
    model.blocks = kept


def numbered_blocks(model: Any) -> Iterator[tuple[int, nn.Module]]:
    """The blocks that this process holds, with their numbers in the whole model."""
    return ((int(name), block) for name, block in model.blocks.named_children())
