"""Pipelines from TOML: an array of steps with their settings, a preset's or the user's own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.config.presets import preset_names
from nano3.config.typed import ShellValue, check_table, nearest
from nano3.curate.catalog import PRESETS, STEPS, check_frame, check_installed, find_step
from nano3.reading import decode, parse_toml

SECTIONS = ("pipeline", "step")
BASE_HINT = "a pipeline has no base: begin with a copy of a preset, nano3 data curate NAME --show > mine.toml"


@dataclass(frozen=True)
class PipelineConfig:
    """The [pipeline] table."""

    category: str = "curated"
    """Name of the result in a blend of training."""
    summary: str = ""
    """What the pipeline is for, in a line."""
    next: list[str] = field(default_factory=list)
    """Pipelines that read the result where it is no text to train on itself; empty: it is trained on."""
    inputs: list[str] = field(default_factory=list)
    """What it reads where no --from is given."""
    tokenizer: str = ""
    """What counts tokens: `mistral`, a tokenizer.json or a folder; empty: words between white space are counted."""
    seed: int = 0
    """Chooses the samples of the report, and whatever a step draws."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.category):
            raise ValueError(f"pipeline.category is {self.category!r}; letters, digits, - _ . + make a name")


def step_label(number: int, use: str) -> str:
    """What a run calls its step of some number, from 0: `01-length`."""
    return f"{number:02d}-{use}"


@dataclass(frozen=True)
class StepConfig:
    """One [[step]]: which, and its settings."""

    use: str
    settings: Any


@dataclass(frozen=True)
class Pipeline:
    """A pipeline that was checked."""

    name: str
    config: PipelineConfig
    steps: tuple[StepConfig, ...]
    notices: tuple[str, ...] = ()
    """Lines on what may not be meant, for people."""

    def label(self, number: int) -> str:
        """Number and name of a step, from 0: `00-read`."""
        return step_label(number, self.steps[number].use)

    @property
    def labels(self) -> list[str]:
        """Of all steps, in order."""
        return [self.label(i) for i in range(len(self.steps))]

    @property
    def model_steps(self) -> list[str]:
        """Labels of the steps that ask a language model."""
        return [self.label(i) for i, step in enumerate(self.steps) if find_step(step.use, "").model]

    def to_json(self) -> dict[str, Any]:
        """All settings, defaults too, by step."""
        steps = {self.label(i): asdict(step.settings) for i, step in enumerate(self.steps)}
        return {"pipeline": asdict(self.config), **steps}


def read_pipeline(name: str) -> tuple[str, dict[str, Any]]:
    """The TOML table of a preset or a file, and what errors call it; nothing in it is checked.

    Raises:
        UserError: no such preset or file, or no TOML.
    """
    where, text = pipeline_text(name)
    try:
        return where, parse_toml(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid TOML: {error}{_hint_of_input(name)}") from error


def pipeline_text(name: str) -> tuple[str, str]:
    """What errors call a preset or a file, and its text.

    Raises:
        UserError: no such preset or file, or no UTF-8.
    """
    if name.endswith(".toml") or "/" in name or "\\" in name:
        where, path = name, Path(name).expanduser()
        try:
            data = path.read_bytes()
        except OSError as error:
            reason = (error.strerror or str(error)).lower() + _hint_of_input(name)
            raise UserError(f"{path}: cannot read the pipeline: {reason}") from error
    else:
        known = preset_names(PRESETS)
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean '{close}'?" if close else "give a preset's name or the path of a .toml file"
            if Path(f"{name}.toml").expanduser().is_file():
                hint = f"did you mean the file '{name}.toml'?"
            hint = _hint_of_input(name) or f"; {hint}"
            raise UserError(f"unknown pipeline '{name}'{hint} (presets: {', '.join(known)})")
        where = f"preset '{name}'"
        data = (files("nano3.presets") / PRESETS / f"{name}.toml").read_bytes()
    try:
        return where, decode(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start}){_hint_of_input(name)}") from error


def _hint_of_input(name: str) -> str:
    """What to add where something to read was given in a pipeline's place; else empty."""
    if name.endswith(".toml") or not Path(name).expanduser().exists():
        return ""
    return f"; what it reads goes with --from: nano3 data curate PIPELINE --from {name}"


def load_pipeline(name: str, overrides: Sequence[str] = ()) -> Pipeline:
    """The pipeline of a preset or a file.

    Args:
        name: a preset's name, or a TOML file.
        overrides: `step.key=value` or `pipeline.key=value` each; a step that occurs twice is changed in both places,
            by its label (`01-length.least=3`) in one.

    Raises:
        UserError: no such pipeline, step or key (names the nearest), a wrong type, a step in a wrong place, or a
            package or program that is missing.
    """
    where, table = read_pipeline(name)
    for key in table:
        if key not in SECTIONS:
            close = nearest(key, SECTIONS)
            hint = f"did you mean '{close}'?" if close else "a pipeline has [pipeline] and [[step]]"
            hint = BASE_HINT if key == "base" else hint
            raise UserError(f"{where}: unknown key '{key}'; {hint}")
    steps = _step_tables(table.get("step", []), where)
    uses = [use for use, _ in steps]
    check_frame()
    for use in uses:
        find_step(use, where)
    check_installed(uses)
    changes = [_parse_change(text, uses) for text in overrides]
    config = _built(PipelineConfig, table.get("pipeline", {}), where, "pipeline", changes)
    built = []
    for i, (use, own) in enumerate(steps):
        given = [(use, key, value) for to, key, value in changes if to in (use, step_label(i, use))]
        schema = find_step(use, where).load().Settings
        built.append(StepConfig(use, _built(schema, own, f"{where}: step {i + 1} ({use})", use, given)))
    notices = _several_changed(changes, uses) + [
        f"{where}: {line}" for step in built if hasattr(step.settings, "notices") for line in step.settings.notices()
    ]
    pipeline = Pipeline(Path(name).stem if name.endswith(".toml") else name, config, tuple(built), tuple(notices))
    _check_order(pipeline, where)
    return pipeline


def _step_tables(value: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise UserError(f'{where}: no steps; write [[step]] and below it use = "read", once for each step')
    tables = []
    for number, item in enumerate(value, start=1):
        use = item.get("use")
        if not isinstance(use, str):
            meant = item.get("name")
            known = isinstance(meant, str) and (meant if meant in STEPS else nearest(meant, STEPS))
            instead = f" in place of name = {json.dumps(meant)}" if known else ""
            raise UserError(
                f'{where}: step {number} has no use; write use = "{known or "read"}"{instead or " below its [[step]]"}'
            )
        tables.append((use, {key: own for key, own in item.items() if key != "use"}))
    return tables


def _parse_change(text: str, uses: Sequence[str]) -> tuple[str, str, ShellValue]:
    """`step.key=value` in its three parts; the step is its name or its label."""
    key, equals, value = text.partition("=")
    use, dot, name = key.strip().rpartition(".")
    if not (equals and dot and use and name):
        raise UserError(f"--set {text}: write step.key=value, for example --set near-dedup.verify=0.9")
    known = [*uses, "pipeline", *map(step_label, range(len(uses)), uses)]
    if use not in known:
        close = nearest(use, known)
        hint = f"did you mean '{close}'?" if close else f"its steps: {', '.join(dict.fromkeys(uses))}"
        raise UserError(f"--set {text}: the pipeline has no step '{use}'; {hint}")
    return use, name, ShellValue(value.strip())


def _several_changed(changes: Sequence[tuple[str, str, ShellValue]], uses: Sequence[str]) -> list[str]:
    """A line for each change that reaches several steps of the same name."""
    lines = []
    for to, key, value in changes:
        labels = [step_label(i, use) for i, use in enumerate(uses) if use == to]
        if len(labels) > 1:
            one = f"--set {labels[0]}.{key}={value.text} changes one"
            lines.append(f"--set {to}.{key}={value.text} changes {' and '.join(labels)}; {one}")
    return lines


def _built(schema: type, table: Any, where: str, use: str, changes: Sequence[tuple[str, str, ShellValue]]) -> Any:
    if not isinstance(table, dict):
        raise UserError(f"{where}: '{use}' must be a table")
    checked = check_table(table, schema, where)
    for changed, key, value in changes:
        if changed == use:
            checked |= check_table({key: value}, schema, f"--set {use}.{key}={value.text}")
    try:
        return schema(**checked)
    except ValueError as error:
        # What settings of several steps say begins with the key: `.temperature is -1.0`.
        owner = use if str(error).startswith(".") else ""
        raise UserError(f"{where}: {owner}{error}") from error


def _check_order(pipeline: Pipeline, where: str) -> None:
    first, *others = [step.use for step in pipeline.steps]
    if not find_step(first, where).reader:
        raise UserError(f"{where}: the first step is '{first}'; it must be a reader, such as 'read'")
    for number, use in enumerate(others, start=2):
        if find_step(use, where).reader:
            raise UserError(f"{where}: step {number} is the reader '{use}'; only the first step reads")
