"""The display of a training run on a terminal: a bar that stays in place, in as much width as there is."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.text import Text

from nano3.train.tracking.progress import Part, Progress, Status, fitting, parts

NAME, WIDE = "train", 100
BAR_WIDTH, NARROW_BAR_WIDTH = 24, 8
"""Of the bar on terminals of at least WIDE columns, and on others."""


class Live(Progress):
    """Messages scroll above the bar."""

    def __init__(self, console: Console | None = None) -> None:
        """`console`: where to draw; stderr by default."""
        console = console or Console(stderr=True)
        columns = (TextColumn("[bold]{task.description}"), _Bar(console), TaskProgressColumn(), _Details(console))
        self._bar = Bar(*columns, console=console, transient=False)
        self._task = self._bar.add_task(NAME, parts=[Part("starting ...", 0)])
        self._last: Status | None = None
        self._bar.start()

    def show(self, status: Status) -> None:
        """Redraw the bar."""
        self._last = status
        self._bar.update(self._task, description=NAME, total=status.steps, completed=status.step, parts=parts(status))

    def score(self, done: int, total: int, place: str) -> None:
        """Redraw the bar for the scoring of held-out text."""
        text = Part(f"scoring held-out text{place}", 0)
        self._bar.update(self._task, description="score", total=total, completed=done, parts=[text])

    def say(self, message: str) -> None:
        """Print a message above the bar."""
        self._bar.console.print(message, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the last step on the screen."""
        if self._last is not None:
            self.show(self._last)
        self._bar.stop()


def _bar_width(columns: int) -> int:
    return BAR_WIDTH if columns >= WIDE else NARROW_BAR_WIDTH


class _Bar(BarColumn):
    """A bar that is shorter on narrow terminals."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> ProgressBar:
        """The bar for the terminal's present width."""
        self.bar_width = _bar_width(self._console.width)
        return super().render(task)


class _Details(ProgressColumn):
    """What fits beside the bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Text:
        """The parts of the task that fit into the terminal's present width."""
        columns = self._console.width
        taken = len(f"{task.description}  100% ") + _bar_width(columns)
        return Text(fitting(task.fields["parts"], columns - taken), no_wrap=True)
