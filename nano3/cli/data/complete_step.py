"""Shell completion of `--set STEP.KEY=` of a pipeline. Only the step whose keys are shown is imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer


def complete_step_setting(ctx: typer.Context, incomplete: str) -> list[str]:
    """Steps of the pipeline that the command line names, or of one of them its keys, each with its equals sign."""
    from nano3.curate.pipeline import read_pipeline

    # An option without its value ends the parsing before arguments get their names.
    pipeline = ctx.params.get("name") or next(iter(ctx.args), "")
    try:
        steps = read_pipeline(pipeline)[1]["step"]
        uses = dict.fromkeys([*(step["use"] for step in steps), "pipeline"])
        step, dot, _ = incomplete.partition(".")
        found = [use for use in uses if (use == step if dot else use.startswith(step))]
        if len(found) != 1:
            return [f"{use}." for use in found]
        return [key for name in _keys(found[0]) if (key := f"{found[0]}.{name}=").startswith(incomplete)]
    except (ValueError, LookupError, TypeError, OSError, ImportError):
        return []  # no such pipeline, or a package that it needs is missing: the run says so


def _keys(use: str) -> Iterable[str]:
    from nano3.config.typed import field_types
    from nano3.curate.catalog import find_step
    from nano3.curate.pipeline import PipelineConfig

    schema: Any = PipelineConfig if use == "pipeline" else find_step(use, "").load().Settings
    return field_types(schema)
