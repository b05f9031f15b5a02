"""`nano3 eval`: how good a model is. Each kind of evaluation is a verb of its own."""

from __future__ import annotations

import typer

from nano3.cli.eval import compare as eval_compare
from nano3.cli.eval import experts as eval_experts
from nano3.cli.eval import lm as eval_lm
from nano3.cli.eval import ruler as eval_ruler
from nano3.cli.eval import tasks as eval_tasks
from nano3.cli.options.common import HELP

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", context_settings=HELP, help="Evaluate models.")


@app.callback()
def evaluate() -> None:
    """Evaluate models: long contexts, nano3's own tasks, benchmarks, expert shares; and compare results."""


app.command("ruler")(eval_ruler.ruler)
app.command("tasks")(eval_tasks.tasks)
app.command("lm")(eval_lm.lm)
app.command("experts")(eval_experts.experts)
app.command("compare")(eval_compare.compare)
