"""Runs a pipeline on a Slurm cluster: a job array for each segment, each after the one before, and a last job that
writes the report. `python -m nano3.curate.slurm FOLDER SEGMENT NUMBER` is what a job starts."""

from __future__ import annotations

import pickle
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nano3.config.errors import UserError
from nano3.curate.executor import incomplete_ranks, run_rank
from nano3.curate.run import SLURM as FOLDER
from nano3.curate.run import Plan, executor_folder, opened, run_pipeline
from nano3.files import write_atomic

LARGEST_ARRAY = 1000
"""Tasks of a job array: clusters allow 1,001 unless they are told otherwise."""
FINISH = "finish"
RUN, JOBS = "run.pickle", "jobs.txt"
"""The plan that the jobs carry out, and the numbers of the jobs."""
_OPTION = re.compile(r"[a-z][a-z-]*")
_OWN = ("array", "output", "error", "job-name", "dependency", "parsable")


@dataclass(frozen=True)
class Script:
    """A job script."""

    name: str
    text: str
    after: int
    """It begins when the jobs of all smaller numbers have ended well."""


def check_options(options: Sequence[str]) -> None:
    """Raise UserError unless every option of sbatch is `name=value` or `name`, in one line, and not one of ours."""
    for text in options:
        name = text.partition("=")[0]
        if not _OPTION.fullmatch(name) or "\n" in text:
            raise UserError(
                f"--slurm {text}: write an option of sbatch without dashes, as partition=cpu or time=12:00:00"
            )
        if name in _OWN:
            raise UserError(f"--slurm {text}: nano3 sets {name} itself")


def scripts(plan: Plan, workers: int, options: Sequence[str]) -> list[Script]:
    """The job scripts of what is not done yet, in order.

    Args:
        plan: of `plan_run`.
        workers: tasks at once; 0: as many as the cluster starts.
        options: of sbatch, for all jobs: `partition=cpu`.
    """
    check_options(options)
    folder = plan.out.absolute()
    found = []
    for number, (name, ranks) in enumerate(_waiting(plan).items()):
        for first in range(0, len(ranks), LARGEST_ARRAY):
            last = min(LARGEST_ARRAY, len(ranks) - first) - 1
            array = f"array=0-{last}{f'%{workers}' if workers else ''}"
            argument = f"{name} $(({first} + SLURM_ARRAY_TASK_ID))"
            found.append(
                Script(f"{name}-{first}", _script(folder, f"{name}-{first}", [array, *options], argument), number)
            )
    return [*found, Script(FINISH, _script(folder, FINISH, options, FINISH), len(plan.segments))]


def _waiting(plan: Plan) -> dict[str, list[int]]:
    """Tasks of each segment that are not complete."""
    return {
        name: incomplete_ranks(segment, executor_folder(plan.out, name))
        for name, segment in zip(plan.manifest.segments, plan.segments, strict=True)
    }


def _script(folder: Path, name: str, options: Sequence[str], argument: str) -> str:
    log = folder / "slurm" / f"{name}{'' if name == FINISH else '-%a'}.log"
    head = [f"job-name=nano3-{name}", f"output={log}", *options]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{_quoted(option)}" for option in head),
        "set -euo pipefail",
        f"cd {shlex.quote(str(Path.cwd()))}",
        f"exec {shlex.quote(sys.executable)} -m nano3.curate.slurm {shlex.quote(str(folder))} {argument}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(option: str) -> str:
    """An option with quotes around what sbatch would divide, such as a path with a space in it."""
    name, equals, value = option.partition("=")
    return f"{name}={shlex.quote(value)}" if equals else name


def submit(plan: Plan, workers: int, options: Sequence[str]) -> list[str]:
    """Hand all jobs to sbatch; their numbers.

    Raises:
        UserError: no sbatch, it refuses, or jobs of an earlier submission are still there.
    """
    if shutil.which("sbatch") is None:
        raise UserError("--executor slurm needs the program sbatch: run it on a login node of a Slurm cluster")
    with opened(plan, lambda: check_none_left(plan.out)):
        own = plan.out.absolute() / FOLDER
        own.mkdir(exist_ok=True)
        write_atomic(own / RUN, pickle.dumps(replace(plan, out=plan.out.absolute())))
        for name, ranks in _waiting(plan).items():
            write_atomic(own / f"{name}.ranks", "\n".join(map(str, ranks)))
    return _submitted(scripts(plan, workers, options), own)  # the first of them may begin at once


def _submitted(found: Sequence[Script], own: Path) -> list[str]:
    """The numbers of all jobs; those of a segment wait for all those of the segments before."""
    jobs: list[str] = []
    before, segment = 0, -1
    for script in found:
        if script.after != segment:
            before, segment = len(jobs), script.after
        write_atomic(own / f"{script.name}.sbatch", script.text)
        jobs.append(_sbatch(own / f"{script.name}.sbatch", jobs[:before]))
        write_atomic(own / JOBS, "\n".join(jobs) + "\n")
    return jobs


def check_none_left(out: Path) -> None:
    """Raise UserError where jobs that were submitted for a folder are queued or running, as far as squeue can say."""
    file = out / FOLDER / JOBS
    if not file.is_file() or shutil.which("squeue") is None:
        return
    jobs = ",".join(file.read_text("utf-8").split())
    left = subprocess.run(["squeue", "--noheader", "--jobs", jobs], capture_output=True, encoding="utf-8", check=False)
    if left.returncode == 0 and left.stdout.strip():
        raise UserError(
            f"jobs of this folder are still queued or running: wait for them, or scancel {jobs.replace(',', ' ')}"
        )


def _sbatch(script: Path, before: Sequence[str]) -> str:
    after = [f"--dependency=afterok:{':'.join(before)}", "--kill-on-invalid-dep=yes"] if before else []
    done = subprocess.run(
        ["sbatch", "--parsable", *after, str(script)], capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise UserError(f"sbatch refuses {script}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip().partition(";")[0]


def main(folder: str, what: str, number: str = "") -> None:
    """What a job does: one task of a segment, or the end of the run."""
    own = Path(folder, FOLDER)
    plan: Plan = pickle.loads((own / RUN).read_bytes())
    if what == FINISH:
        run_pipeline(plan, 1)
        return
    rank = int((own / f"{what}.ranks").read_text("utf-8").split()[int(number)])
    run_rank(plan.segments[list(plan.manifest.segments).index(what)], executor_folder(plan.out, what), rank)


if __name__ == "__main__":
    main(*sys.argv[1:])
