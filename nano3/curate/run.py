"""A curation run from beginning to end: inputs, segments between barriers, the result and its report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nano3.config.errors import UserError
from nano3.cores import usable_cores
from nano3.curate.ask.model import Model, no_model
from nano3.curate.catalog import find_step
from nano3.curate.chart import draw
from nano3.curate.executor import RayPool, check_cluster, ray_pool, run_segment, worker_pool
from nano3.curate.inputs import Unit, default_tasks, divide
from nano3.curate.manifest import MANIFEST, Manifest, check_same, read_manifest
from nano3.curate.pipeline import Pipeline
from nano3.curate.report import REPORT, Report, read_report, save_report
from nano3.curate.shards import ShardReader, ShardWriter
from nano3.curate.step import Context, Segment, Step
from nano3.curate.steps.llm.markers import fitting
from nano3.data.texts.find import CURATED_DATA
from nano3.files import check_free, exclusive, fsync, write_atomic
from nano3.progress import Progress

DATA, WORK, ACCOUNTS, BLEND = CURATED_DATA, "work", "accounts", "blend.toml"
CHART, SLURM = "report.png", "slurm"
ANSWERS = "answers"
"""What a language model answered; kept, so that a further run sends nothing again."""
OWN_NAMES = (SLURM, DATA, WORK, ACCOUNTS, BLEND, MANIFEST, REPORT, CHART, ANSWERS)


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    pipeline: Pipeline
    out: Path
    manifest: Manifest
    segments: tuple[Segment, ...]
    model: Model | None = None


def plan_run(
    pipeline: Pipeline,
    out: Path,
    paths: Sequence[str] = (),
    against: Sequence[str] = (),
    tasks: int = 0,
    limit: int = 0,
    model: Model | None = None,
) -> Plan:
    """Find the inputs and divide the pipeline into segments; nothing is written.

    Args:
        pipeline: what to do.
        out: folder of the result.
        paths: what the reader reads; empty: the pipeline's own inputs.
        against: an existing corpus, which the steps that remove duplicates compare with.
        tasks: parts of the inputs; 0: by their size.
        limit: documents to read, in one task; 0: all.
        model: what steps ask that need a language model; None: the plan can only be looked at.

    Raises:
        UserError, FileNotFoundError: nothing to read, or a path is not there.
    """
    reader = find_step(pipeline.steps[0].use, "").load()
    units, left_out = reader.find(list(paths) or pipeline.config.inputs)
    units = [unit for unit in units if not _lies_in(unit.path, out)]  # of an earlier run, where `out` is in a path
    units, twice = _once(units)
    within = any(_lies_in(str(out), Path(path)) for path in paths) and not (out / MANIFEST).is_file()
    itself = f"the result itself, {out}, which lies in --from" if within else ""
    left_out = "; ".join(filter(None, [left_out, itself, twice]))
    if not units:
        raise UserError(f"{', '.join(paths)}: there is nothing but the result in it: give another --out")
    old, old_left_out = find_step("read", "").load().find(list(against)) if against else ([], "")
    left_out = "; ".join(filter(None, [left_out, old_left_out and f"of --against {old_left_out}"]))
    tasks = 1 if limit else tasks or default_tasks(units)
    old_parts = divide(old, default_tasks(old)) if old else ()
    place = out.absolute()  # datatrove remembers what a relative path meant when it was first used
    contexts = [
        Context(label, place, tasks, pipeline.config.seed, pipeline.config.tokenizer, limit, old_parts, model)
        for label in pipeline.labels
    ]
    steps = [reader(pipeline.steps[0].settings, contexts[0], divide(units, tasks))]
    for config, context in zip(pipeline.steps[1:], contexts[1:], strict=True):
        steps.append(find_step(config.use, "").load()(config.settings, context))
    segments = _segments(steps, tasks, place)
    manifest = Manifest(
        pipeline.name, pipeline.to_json(), _identities(units), _identities(old), tasks, len(old_parts), limit,
        {f"{i:02d}-{segment.name}": segment.tasks for i, segment in enumerate(segments)}, left_out,
        model.name if model else "", _prompts(steps), _window(steps, model),
    )  # fmt: skip
    return Plan(pipeline, out, manifest, tuple(segments), model)


def run_pipeline(plan: Plan, workers: int = 0, ray: bool = False) -> Report:
    """Carry a plan out, or go on with it where an earlier run was ended.

    Args:
        plan: of `plan_run`.
        workers: processes; 0: one for each core, at most one for each task.
        ray: Ray's processes, see `nano3.curate.executor.ray_pool`.

    Raises:
        UserError: the folder holds other files or a run with other settings, another process writes there, or there is
            no cluster where RAY_ADDRESS says.
    """
    if ray and not (plan.out / REPORT).is_file():
        check_cluster(os.environ.get("RAY_ADDRESS", ""))
    with opened(plan):
        if not (plan.out / REPORT).is_file():
            most = plan.model.concurrency if plan.model else plan.manifest.tasks  # a worker has one request at least
            there = most if ray and os.environ.get("RAY_ADDRESS") else workers or usable_cores()
            _run_segments(plan, min(there, plan.manifest.tasks, most), ray)
            _finish(plan)
        shutil.rmtree(plan.out / WORK, ignore_errors=True)
        return read_report(plan.out)


@contextmanager
def opened(plan: Plan, check: Callable[[], None] | None = None) -> Iterator[None]:
    """A plan's folder, in which nobody else writes, with the manifest of this run and nothing half written.

    Args:
        plan: of `plan_run`.
        check: raises what else speaks against it.

    Raises:
        UserError: the folder holds other files or a run with other settings, or another process writes there.
    """
    out = plan.out
    if plan.pipeline.model_steps and not plan.model:
        raise no_model(plan.pipeline.model_steps[0])
    check_free(out, own=OWN_NAMES if (out / MANIFEST).is_file() else (ANSWERS,))
    with exclusive(out):
        if check:
            check()
        for left in out.rglob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink()
        if (out / MANIFEST).is_file():
            check_same(read_manifest(out), plan.manifest, out)
        else:
            plan.manifest.save(out)
        yield


def executor_folder(out: Path, segment: str) -> Path:
    """Where it says which tasks of a segment are complete."""
    return out.absolute() / WORK / "executors" / segment


def _once(units: Sequence[Unit]) -> tuple[list[Unit], str]:
    """Every input once, the first time that it was named, and a line on those that were named again."""
    found = {(unit.identity, unit.part): unit for unit in reversed(units)}
    once = [unit for unit in units if found[unit.identity, unit.part] is unit]
    n = len(units) - len(once)
    return once, f"{n} {'inputs' if n > 1 else 'input'} that --from names again" if n else ""


def _lies_in(path: str, folder: Path) -> bool:
    return Path(path).resolve().is_relative_to(folder.resolve())


def _segments(steps: Sequence[Step], tasks: int, out: Path) -> list[Segment]:
    """The steps cut before each barrier, which begins a segment that reads what the one before has written."""
    segments: list[Segment] = []
    current: list = []
    for step in steps:
        if step.barrier:
            documents = step.context.work / "documents"
            segments.append(
                Segment(f"until-{step.context.label}", tasks, [*current, ShardWriter(documents), *step.before()])
            )
            segments += step.between()
            current = [ShardReader(documents)]
        current.append(step)
    return [*segments, Segment("result", tasks, [*current, ShardWriter(out / DATA, final=True)])]


def _identities(units: Sequence[Unit]) -> dict[str, str]:
    return {f"{unit.path}{f' part {unit.part[0]}' if unit.part[1] > 1 else ''}": unit.identity for unit in units}


def _prompts(steps: Sequence[Step]) -> dict[str, dict[str, str]]:
    return {step.context.label: step.prompt_hashes() for step in steps if step.prompt_hashes()}


def _window(steps: Sequence[Step], model: Model | None) -> int:
    """Tokens of the model's context if a step sees less of a text for it than its settings say; else 0."""
    dividing = [step.settings for step in steps if hasattr(step.settings, "chunk")]
    shorter = any(fitting(settings, model, 1.0) != fitting(settings, None) for settings in dividing)
    return model.window if model and shorter else 0


def _run_segments(plan: Plan, workers: int, ray: bool) -> None:
    pool_of = ray_pool if ray else worker_pool
    total = sum(segment.tasks for segment in plan.segments)
    with Progress(total, total, unit="tasks", things="tasks") as progress, pool_of(workers) as pool:
        for step in (step for segment in plan.segments for step in segment.steps if isinstance(step, Step)):
            step.workers = pool.workers if isinstance(pool, RayPool) else workers
        for name, segment in zip(plan.manifest.segments, plan.segments, strict=True):
            _run_one(executor_folder(plan.out, name), name, segment, pool, progress)


def _run_one(
    folder: Path, name: str, segment: Segment, pool: ProcessPoolExecutor | RayPool | None, progress: Progress
) -> None:
    run_segment(segment, folder, pool, lambda: progress.sample(1, name))


def _finish(plan: Plan) -> None:
    """Write the blend file, the chart and, last of all, the report."""
    name = plan.pipeline.config.category
    write_atomic(plan.out / BLEND, f'[sources]\n"{name}" = ["{DATA}"]\n')
    fsync(plan.out / DATA)
    draw(read_report(plan.out), plan.out / CHART)
    save_report(plan.out)
