"""Names of lm-eval's tasks to the tasks themselves, with their documents loaded."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.config.errors import UserError
from nano3.eval.lm.tasks import FOLDER
from nano3.reading import read_text

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.manager import TaskDict

UNSAFE = (
    "task {task} runs code that the model writes, outside any sandbox: leave it out of --tasks; where that is wanted, "
    "use python -m nano3.eval.lm.harness with --confirm_run_unsafe_code"
)
NEAREST = 4
GROUP = re.compile(r"^group:", re.MULTILINE)
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""What differs from run to run in the name of a function without source."""


@dataclass(frozen=True)
class Found:
    """What one name stands for."""

    name: str
    loaded: TaskDict
    """A task, a group with its tasks, or the tasks of a tag, as the harness runs them."""

    @property
    def tasks(self) -> dict[str, Task]:
        """All single tasks among them."""
        return self.loaded["tasks"]


def find_tasks(names: Sequence[str], include: Sequence[Path], metadata: Mapping[str, Any]) -> list[Found]:
    """Load tasks, groups and tags by name, by a pattern such as `mmlu_*`, or from a YAML file.

    Args:
        names: what to load.
        include: folders with further task files.
        metadata: what tasks are told that ask for it.

    Raises:
        UserError: no such task, its data cannot be loaded, or it runs code that a model wrote.
    """
    from lm_eval.tasks import TaskManager

    folders: list[str | Path] = [FOLDER, *include]
    told = dict(metadata)
    # The harness's own folder holds some 14,000 files, which take a minute to read.
    manager = TaskManager(include_path=folders, include_defaults=False, metadata=told)
    try:
        return _load(manager, names)
    except (UnknownPartError, UnknownTaskError):
        print("reading lm-eval's list of tasks ...", file=sys.stderr, flush=True)
    manager = TaskManager(include_path=folders, metadata=told)
    return _load(manager, names)


@contextmanager
def quiet(part: str = "lm_eval", least: int = logging.ERROR) -> Iterator[None]:
    """No lines from the harness, a part of it or another library, but errors: what a user must know is told
    elsewhere."""
    harness = logging.getLogger(part)
    before = harness.level
    harness.setLevel(least)
    try:
        yield
    finally:
        harness.setLevel(before)


class UnknownTaskError(UserError):
    """There is no task of a name."""


class UnknownPartError(UserError):
    """A group cannot be loaded, perhaps for it names a task of the harness."""


def _load(manager: TaskManager, names: Sequence[str]) -> list[Found]:
    expanded = list(dict.fromkeys(match for name in names for match in _match(manager, name)))
    for name in expanded:
        _refuse_unsafe(manager, name)
    return [_load_one(manager, name) for name in expanded]


def _match(manager: TaskManager, name: str) -> list[str]:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"--tasks {name}: no such file")
        return [str(Path(name).absolute())]
    matches = sorted(fnmatch.filter(manager.all_tasks, name))
    if not matches:
        near = difflib.get_close_matches(name, manager.all_tasks, NEAREST, 0.5)
        hint = f"nearest: {', '.join(near)}" if near else "`lm_eval ls tasks` lists all"
        raise UnknownTaskError(f"--tasks {name}: no such task; {hint}")
    return matches


def _refuse_unsafe(manager: TaskManager, name: str) -> None:
    """Raise UserError where a name stands for a task, or has one among its own, that runs code of the model; known
    before any data is loaded."""
    left: list[Any] = [name]
    seen: set[str] = set()
    while left:
        part = left.pop()
        config = part if isinstance(part, Mapping) else {}
        known = part if isinstance(part, str) else config.get("task", config.get("group"))
        entry = manager.task_index.get(known) if isinstance(known, str) and known not in seen else None
        if entry is not None:
            seen.add(entry.name)
            left += sorted(entry.tags) if entry.cfg is None else []
            config = {**(entry.cfg or {}), **config}
        if config.get("unsafe_code"):
            raise UserError(UNSAFE.format(task=known))
        members = (entry.cfg or {}).get("task") if entry is not None else config.get("task")
        left += members if isinstance(members, list) else []


def _load_one(manager: TaskManager, name: str) -> Found:
    try:
        with quiet(), quiet("huggingface_hub"), quiet("datasets"):
            loaded = manager.load([name])
    except ModuleNotFoundError as error:
        raise UserError(f"task {name} needs the package {error.name}: pip install it") from error
    except Exception as error:
        raise (UnknownPartError if _is_group(manager, name) else UserError)(_why(name, error)) from error
    for task_name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(UNSAFE.format(task=task_name))
    return Found(Path(name).stem, loaded)


def _is_group(manager: TaskManager, name: str) -> bool:
    """Whether a name, or a YAML file, is that of a group."""
    return name in manager.all_groups or (Path(name).is_file() and GROUP.search(read_text(Path(name))) is not None)


def _why(name: str, error: BaseException) -> str:
    """One line: what keeps a task from being loaded."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    said = f"{type(error).__name__} {error}" if isinstance(error, LookupError) else str(error)
    reason = (said.strip() or type(error).__name__).splitlines()[0][:200]
    words = " ".join(f"{type(link).__name__} {link}" for link in chain).lower()
    if any(word in words for word in ("offline", "connection", "connect to", "resolve", "couldn't reach", "timed out")):
        return (f"task {name}: its data is not on this machine and cannot be downloaded ({reason}); connect to the "
                "network, or fill the cache of Hugging Face datasets beforehand (HF_HOME)")  # fmt: skip
    return f"task {name} cannot be loaded: {reason}"


def fingerprints(found: Sequence[Found]) -> dict[str, str]:
    """A hash of each task's configuration, the source of its functions and the data files of this machine that it
    names: what an answer depends on besides the model."""
    return {name: _fingerprint(task) for one in found for name, task in one.tasks.items()}


def _fingerprint(task: Task) -> str:
    config = {key: value for key, value in task.dump_config().items() if key != "metadata"}
    text = json.dumps(config, sort_keys=True, default=str)
    digest = hashlib.blake2b(ADDRESS.sub("", text).encode(), digest_size=8)
    for file in sorted(_files((config.get("dataset_kwargs") or {}).get("data_files"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _files(value: Any) -> Iterator[Path]:
    """The files of this machine among names, lists and mappings of names."""
    if isinstance(value, (str, Path)):
        if Path(value).is_file():
            yield Path(value)
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _files(part)
