"""How the three commands talk to people: errors in one sentence, progress with an ETA. Imports nothing heavy."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol

import typer
from typer.main import get_command

from shards.errors import Stopped, UserError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_SECONDS = 10.0


class Progress(Protocol):
    """Counts finished pieces of work."""

    def advance(self, n: int = 1) -> None: ...

    def say(self, line: str) -> None:
        """Prints a line that stays, above the bar."""
        ...


def run(app: typer.Typer, args: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line application and ends the process.

    Args:
        args: Words after the program's name; None reads `sys.argv`.

    The status is 0, or what the command chose, 2 for a mistake of the user (`UserError`, or an option typer refuses)
    and the error's own, mostly 1, for what stopped the work (`Stopped`). Messages go to stderr; other exceptions are
    ours and keep their traceback.
    """
    try:
        get_command(app)(args=None if args is None else list(args))
    except UserError as error:
        fail(str(error), status=2)
    except Stopped as error:
        fail(str(error), status=error.status)
    sys.exit(0)


def fail(message: str, status: int) -> NoReturn:
    """Prints `error: message` on stderr and ends the process."""
    sys.stderr.write(f"error: {message}\n")  # one write, so that ranks do not cut into each other's lines
    sys.exit(status)


@contextmanager
def progress(title: str, total: int) -> Iterator[Progress]:
    """Shows count, rate and remaining time on stderr: a bar on a terminal, else a line every `PLAIN_SECONDS`.

    Example:
        with progress("build", total=1000) as bar:
            bar.advance()
    """
    if sys.stderr.isatty():
        with _bar(title, total) as bar:
            yield bar
        return
    lines = _Lines(title, total)
    yield lines
    lines.finish()


@contextmanager
def _bar(title: str, total: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.1f}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as rich:
        task = rich.add_task(title, total=total)
        yield _Bar(rich, task)


class _Bar:
    def __init__(self, rich: "RichProgress", task: "TaskID") -> None:
        self.rich, self.task = rich, task

    def advance(self, n: int = 1) -> None:
        self.rich.advance(self.task, n)

    def say(self, line: str) -> None:
        self.rich.console.print(line, highlight=False, markup=False)


class _Lines:
    """The same for logs and pipes."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self.start = self.last = time.monotonic()

    def advance(self, n: int = 1) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.last >= PLAIN_SECONDS:
            self.last = now
            rate = self.done / (now - self.start)
            self._print(f"{rate:,.1f}/s, ETA {clock((self.total - self.done) / rate)}")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self.last = time.monotonic()

    def finish(self) -> None:
        seconds = time.monotonic() - self.start
        self._print(f"{self.done / max(seconds, 1e-9):,.1f}/s, took {clock(seconds)}")

    def _print(self, rest: str) -> None:
        print(f"{self.title}: {self.done}/{self.total}, {rest}", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
