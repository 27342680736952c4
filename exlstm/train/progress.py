"""What a person sees while a model trains."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BEFORE_VALIDATION_LINE = 1.0
_SMOOTHING = 0.9


class Display:
    """A progress bar with loss, rate and time left on a terminal, plain lines at intervals elsewhere.

    `step` steps, a fraction `progress` of the whole, were done in earlier sessions. `quiet` shows nothing at
    all. `console` defaults to the standard output.
    """

    def __init__(
        self,
        total_steps: int | None,
        *,
        step: int = 0,
        progress: float = 0.0,
        console: Console | None = None,
        quiet: bool = False,
    ) -> None:
        self._console = console or Console()
        self._quiet = quiet
        self._bar: Progress | None = None
        self._total_steps = total_steps
        self._first_step = self._step = self._shown_step = step
        self._first_progress = self._progress = progress
        self._start = time.monotonic()
        self._last_line = -float("inf")
        self._loss: float | None = None
        self._validation = ""

    def __enter__(self) -> "Display":
        if not self._quiet and self._console.is_terminal:
            status = TextColumn("{task.description}", table_column=Column(no_wrap=True))
            percentage = TextColumn("{task.percentage:>3.0f}%")
            self._bar = Progress(BarColumn(12), percentage, status, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._step > self._shown_step:
            self._show(pause=0.0)

    def update(self, step: int, progress: float, loss: float | None) -> None:
        """Step number `step` is done with the given loss, None when it was not finite."""
        self._step, self._progress = step, progress
        if loss is not None:
            self._loss = loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._show(pause=_SECONDS_BETWEEN_LINES)

    def validated(self, loss: float | None, best: float | None) -> None:
        """A validation gave `loss`, and `best` is the lowest so far; None: not finite."""
        self._validation = f"  validation {_short(loss)} (best {_short(best)})"
        self._show(pause=_SECONDS_BEFORE_VALIDATION_LINE)

    def note(self, text: str) -> None:
        """Say something once."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self, pause: float) -> None:
        """Bring the bar up to date, or write a line if the last one was at least `pause` seconds ago."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._progress, description=self._status())
        elif time.monotonic() - self._last_line >= pause:
            self._last_line, self._shown_step = time.monotonic(), self._step
            self.note(self._status())

    def _status(self) -> str:
        total = "" if self._total_steps is None else f"/{self._total_steps}"
        loss = "" if self._loss is None else f"  loss {_short(self._loss)}"
        return f"step {self._step}{total}{loss}{self._validation}{self._pace()}"

    def _pace(self) -> str:
        seconds = time.monotonic() - self._start
        if self._progress <= self._first_progress or seconds <= 0:
            return ""
        rate = (self._step - self._first_step) / seconds
        if self._progress >= 1:
            return f"  {rate:.3g} steps/s  {format_seconds(seconds)} in all"
        left = seconds * (1 - self._progress) / (self._progress - self._first_progress)
        return f"  {rate:.3g} steps/s  {format_seconds(left)} left"


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def format_seconds(seconds: float) -> str:
    """`75` as `1:15`, `4000` as `1:06:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
