"""`nano3 data curate --list` and `--show`: pipelines and steps, and the text of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nano3.curate.catalog import StepInfo


def check_named(name: str) -> None:
    """Raise UserError unless a pipeline was named."""
    from nano3.config.errors import UserError

    if not name:
        raise UserError("name a pipeline: nano3 data curate PIPELINE; --list shows those there are")


def show_file(name: str) -> None:
    """Print a pipeline's TOML as it stands."""
    from nano3.curate.pipeline import pipeline_text

    check_named(name)
    print(pipeline_text(name)[1].rstrip("\n"))


def show_list(as_json: bool) -> None:
    """Print all pipelines and steps, and what is not installed for them."""
    from nano3.cli.output import print_json
    from nano3.config.presets import preset_names
    from nano3.curate.catalog import EXTRA, FRAME_PACKAGES, PRESETS, STEPS, is_importable
    from nano3.curate.pipeline import read_pipeline
    from nano3.installation import install_command

    pipelines = []
    for name in preset_names(PRESETS):
        _, table = read_pipeline(name)
        uses = [step["use"] for step in table["step"]]
        absent = sorted({missing for use in uses for missing in STEPS[use].missing()})
        asks = [use for use in uses if STEPS[use].model]
        pipelines.append(
            {"name": name, "summary": table["pipeline"]["summary"], "steps": uses, "model": asks, "missing": absent}
        )
    frame = [name for name in FRAME_PACKAGES if not is_importable(name)]
    steps = [
        {"step": use, "summary": info.summary, "needs": _needs(info), "missing": info.missing()}
        for use, info in STEPS.items()
    ]
    if as_json:
        print_json({"pipelines": pipelines, "steps": steps, "missing": frame})
        return
    absent = [", ".join([*frame, *one["missing"]]) for one in pipelines]
    rows = [(one["name"], one["summary"], " > ".join(one["steps"])) for one in pipelines]
    _print_columns("pipelines", ("name", "for", "steps"), rows, absent)
    rows = [(one["step"], one["summary"], ", ".join(one["needs"]) or "-") for one in steps]
    _print_columns("steps", ("step", "does", "needs"), rows, [", ".join(one["missing"]) for one in steps])
    packages = {name for info in STEPS.values() for name in info.packages}
    if frame or packages & {name for one in steps for name in one["missing"]}:
        print(f"install the packages that are not: {install_command(EXTRA)}")
    print("try it: nano3 data curate tiny (nothing to download)")
    print("one of your own: nano3 data curate NAME --show > mine.toml, then nano3 data curate mine.toml --from PATH")
    print("settings of a pipeline, without a run: nano3 data curate NAME --from PATH --dry-run")


def _print_columns(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], absent: list[str]) -> None:
    """A table, with a column for what is not installed where something is not."""
    from nano3.cli.output import plain_table, print_table, results

    table = plain_table(title, *columns, *(["not installed"] if any(absent) else []))
    for row, missing in zip(rows, absent, strict=True):
        table.add_row(*row, *([missing or "-"] if any(absent) else []))
    print_table(results(), table)


def _needs(info: StepInfo) -> list[str]:
    sandbox = ["bubblewrap (where there are tests)"] if info.sandbox else []
    return [*info.packages, *info.programs, *sandbox, *(["a language model (--url)"] if info.model else [])]
