"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

LINE_EVERY_S = 10.0


@dataclass
class Progress:
    """Where progress is shown. ``quiet`` shows none."""

    quiet: bool = False
    stream: TextIO | None = None

    @property
    def _out(self) -> TextIO:
        return self.stream or sys.stderr

    def say(self, text: str) -> None:
        """One plain line."""
        if not self.quiet:
            print(text, file=self._out, flush=True)

    @contextmanager
    def step(self, name: str, total: int, unit: str = "rows") -> Iterator[Callable[[int], None]]:
        """Show the progress of ``total`` units of work; call what is yielded once a unit, with the rows it made."""
        if self.quiet:
            yield lambda rows: None
        elif self._out.isatty():
            yield from self._bar(name, total)
        else:
            yield from self._lines(name, total, unit)

    def _bar(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rows]} rows"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(file=self._out)) as bar:
            task = bar.add_task(name, total=total, rows=0)
            made = 0

            def advance(rows: int) -> None:
                nonlocal made
                made += rows
                bar.update(task, advance=1, rows=made)

            yield advance

    def _lines(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        start = last = time.monotonic()
        made = done = 0

        def line() -> None:
            seconds = time.monotonic() - start
            self.say(f"{name}: {done}/{total} parts, {made} {unit}, {seconds:.1f} s")

        def advance(rows: int) -> None:
            nonlocal made, done, last
            made, done = made + rows, done + 1
            if time.monotonic() - last >= LINE_EVERY_S and done < total:
                last = time.monotonic()
                line()

        yield advance
        line()
