"""Tables of saved rollouts: steps, environments, and the groups of a step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nano3.cli.output import count_text, plain_table, print_table, results
from nano3.rl.rollout_files import SavedSample
from nano3.rl.saved.groups import SavedGroup, Selection, read_groups
from nano3.rl.saved.tally import Tally, tally, together

ENDS = 0.1
"""Share of the steps that stand for a run's beginning, and for its end."""
FIGURES = ("groups", "reward", "pass", "equal", "cut", "tokens")
"""Heads of the columns of a tally."""
STEPS = ("step", *FIGURES, "faults")
ENVIRONMENTS = ("environment", *FIGURES[:3], "first", "last", *FIGURES[3:5], "faults")
KINDS = (
    "reward: mean; pass: samples that solve their task; equal: groups whose rewards are all the same, "
    "from which nothing is learnt; cut: samples that reached their limit; tokens: drawn, of a sample"
)
ENDS_ARE = "; first, last: pass in the first and the last tenth of the steps"


@dataclass(frozen=True)
class Overview:
    """What the rollouts of a run came to."""

    run: Path
    steps: Mapping[int, Mapping[str, Tally]]
    """By environment, by step."""

    @classmethod
    def read(cls, run: Path, steps: Mapping[int, Path], selection: Selection) -> Overview:
        """From a run's files; of the selection only the environment and the task are looked at."""
        chosen = Selection(selection.environment, selection.task)
        return cls(run, {n: tally(g for g, _ in chosen.groups(read_groups(path))) for n, path in steps.items()})

    @property
    def environments(self) -> list[str]:
        """Their names, in order of appearance."""
        return list(dict.fromkeys(name for found in self.steps.values() for name in found))

    def of_environment(self, name: str, steps: Sequence[int]) -> Tally:
        """Over these steps."""
        return together(self.steps[step][name] for step in steps if name in self.steps[step])

    def ends(self) -> tuple[list[int], list[int]]:
        """The first steps and the last ones."""
        steps = list(self.steps)
        n = max(1, round(ENDS * len(steps)))
        return steps[:n], steps[-n:]

    def ranges(self, limit: int) -> list[list[int]]:
        """The steps in at most `limit` parts of the same size, but for the last."""
        steps = list(self.steps)
        size = math.ceil(len(steps) / limit)
        return [steps[i : i + size] for i in range(0, len(steps), size)]

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        first, last = self.ends()
        return {
            "run": str(self.run),
            "steps": [{"step": step} | together(found.values()).table() for step, found in self.steps.items()],
            "environments": [
                {"environment": name} | self.of_environment(name, list(self.steps)).table() | {
                    "first_pass_rate": self.of_environment(name, first).table()["pass_rate"],
                    "last_pass_rate": self.of_environment(name, last).table()["pass_rate"],
                }
                for name in self.environments
            ],
        }  # fmt: skip

    def step_rows(self, limit: int) -> list[list[str]]:
        """Cells of STEPS, several steps to a row where there are more than `limit`."""
        rows = []
        for steps in self.ranges(limit):
            total = together(one for step in steps for one in self.steps[step].values())
            name = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]}-{steps[-1]}"
            rows.append([name, *_figures(total)])
        return rows

    def environment_rows(self) -> list[list[str]]:
        """Cells of ENVIRONMENTS."""
        first, last = self.ends()
        rows = []
        for name in self.environments:
            ends = [percent(self.of_environment(name, steps).table()["pass_rate"]) for steps in (first, last)]
            cells = _figures(self.of_environment(name, list(self.steps)))
            rows.append([name, *cells[:3], *ends, *cells[3:5], cells[-1]])
        return rows


def show_overview(found: Overview, limit: int) -> None:
    """Print the tables of steps and environments."""
    from rich.markup import escape

    console = results()
    for title, heads, rows in (
        (f"Rollouts of {found.run}", STEPS, found.step_rows(limit)),
        ("Environments", ENVIRONMENTS, found.environment_rows()),
    ):
        table = plain_table(title, *heads, right=heads[1:-1])
        for row in rows:
            table.add_row(*map(escape, row))
        print_table(console, table)
    console.print(KINDS + ENDS_ARE, style="dim")


def show_groups(run: Path, groups: Sequence[SavedGroup], limit: int) -> None:
    """Print the groups of a step."""
    from rich.markup import escape

    console = results()
    table = plain_table(
        f"Step {groups[0].step} of {run}",
        "environment",
        "task",
        "passed",
        "reward",
        "rewards",
        "",
        right=("passed", "reward"),
    )
    for group in groups[:limit]:
        table.add_row(escape(group.environment), escape(group.task), *map(escape, group_cells(group)))
    print_table(console, table)
    if len(groups) > limit:
        console.print(f"the first {limit} of {len(groups)} groups; --limit {len(groups)} shows all", style="dim")


def group_cells(group: SavedGroup) -> list[str]:
    """Passes, mean reward, the rewards, and what is to be said of a group."""
    rewards = Counter(sorted(group.rewards))
    listed = ", ".join(f"{value:g}" if n == 1 else f"{n} x {value:g}" for value, n in rewards.items())
    mean = sum(group.rewards) / len(group.rewards) if group.rewards else None
    return [f"{group.passes} of {len(group.samples)}", number(mean), listed, ", ".join(_notes(group))]


def group_values(group: SavedGroup) -> dict[str, Any]:
    """As JSON values; a sample without a reward has null."""
    return {
        "environment": group.environment,
        "task": group.task,
        "passes": group.passes,
        "rewards": [None if sample.reward is None else sample.reward.value for sample in group.samples],
        "zero_variance": group.no_variance,
        "truncated": sum(sample.truncated for sample in group.samples),
        "fault": group.fault,
    }


def number(value: float | None) -> str:
    """A mean; empty for none."""
    return "" if value is None else f"{value:.3f}"


def percent(share: float | None) -> str:
    """A share; a dash for none."""
    return "-" if share is None else f"{share:.0%}"


def _figures(one: Tally) -> list[str]:
    """Cells of FIGURES, and the faults."""
    values = one.table()
    shares = [percent(values[name]) for name in ("pass_rate", "zero_variance", "truncated")]
    tokens = "" if values["tokens"] is None else count_text(round(values["tokens"]))
    faults = ", ".join(f"{n} {kind}" for kind, n in one.faults.most_common())
    return [f"{one.groups:,}", number(values["reward"]), *shares, tokens, faults]


def _notes(group: SavedGroup) -> list[str]:
    cut = sum(sample.truncated for sample in group.samples)
    found = [f"dropped: {group.fault}"] if group.fault else ["all equal"] if group.no_variance else []
    return found + ([f"{cut} cut off"] if cut else [])


def name_of(group: SavedGroup, sample: SavedSample) -> str:
    """Where a sample stands: `step 4 · count · t3 · sample 2 of 16`."""
    return f"step {group.step} · {group.environment} · {group.task} · sample {sample.index} of {len(group.samples)}"
