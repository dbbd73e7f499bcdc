"""What a person sees: a line a stage, a bar for the long ones, tables at the end. Drawn by rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import rich.console
from rich import box
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from rankc.progress import Stage
from rankc.report import metrics_table, search_lines, sites_table, source_of

if TYPE_CHECKING:
    from rankc.inspection import Inspection
    from rankc.passbase import Skip
    from rankc.planning import Plan
    from rankc.validate.schema import Metrics

_NAME_WIDTH = 11
_BAR_WIDTH = 75  # of a bar with its name and numbers; a note goes behind it
_PIPED_WIDTH = 200  # a file has no width: nothing is cut short there
_SKIPS_SHOWN = 5
TOLD_EVERY = 60.0  # seconds between two lines about a long stage, where there is no terminal


class _Stage:
    """A bar on a terminal; elsewhere, and only where it takes long, a line a minute."""

    def __init__(
        self,
        bars: Bars | None = None,
        task: TaskID | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._bars, self._task, self._say = bars, task, say
        self._first: tuple[float, int] | None = None  # when, and what was done by then
        self._told = time.monotonic()
        self.text = ""

    def advance(self, done: int, total: int | None = None) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total)
            return
        now = time.monotonic()
        self._first = self._first or (now, done)
        if self._say is not None and total and now - self._told >= TOLD_EVERY:
            self._told = now
            left = _left(now - self._first[0], done - self._first[1], total - done)
            self._say(f"{100 * done // total:>3} %{left}{self.text and '   ' + self.text}")

    def note(self, text: str) -> None:
        self.text = text
        if self._bars is not None and self._task is not None:
            room = max(0, self._bars.console.width - _BAR_WIDTH)
            self._bars.update(self._task, note=text[:room])


def _left(seconds: float, done: int, remaining: int) -> str:
    """How long it will take still, at the pace so far."""
    if not done:
        return ""
    return f", {timedelta(seconds=round(seconds * remaining / done))!s} left"


class Console:
    """Implements `rankc.progress.Progress`. Colour and bars only on a terminal; NO_COLOR counts."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        to_stderr: bool = False,
        console: rich.console.Console | None = None,
    ) -> None:
        """Args: what to leave out, where to write; `console` replaces both streams (tests)."""
        self._quiet = quiet
        self._rich = console or rich.console.Console(stderr=to_stderr, highlight=False)
        if console is None and not self._rich.is_terminal:
            self._rich.width = _PIPED_WIDTH

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Announce a stage; its line is printed when it ends, whichever way it does."""
        started = time.monotonic()
        with self._bar(name) as stage:
            try:
                yield stage
            except BaseException:
                self._stage_line(name, Text("stopped", "red"), started)
                raise
        self._stage_line(name, Text(stage.text), started)

    @contextmanager
    def _bar(self, name: str) -> Iterator[_Stage]:
        if self._quiet:
            yield _Stage()
            return
        if not self._rich.is_terminal:
            yield _Stage(say=lambda text: self.say(f"  {name:<{_NAME_WIDTH}} {text}"))
            return
        columns = (
            TextColumn(f"  {name:<{_NAME_WIDTH}}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Bars(*columns, console=self._rich, transient=True) as bars:
            yield _Stage(bars, bars.add_task(name, total=None, note=""))

    def _stage_line(self, name: str, text: Text, started: float) -> None:
        seconds = f"{time.monotonic() - started:.1f} s"
        self._print(
            Text.assemble(f"  {name:<{_NAME_WIDTH}} ", (f"{seconds:>8}", "dim"), "   ", text)
        )

    def say(self, text: str) -> None:
        """One line, as it is."""
        self._print(Text(text))

    def _print(self, item: Text | Table) -> None:
        if not self._quiet:
            self._rich.print(item, soft_wrap=True)

    def show_metrics(self, metrics: Metrics) -> None:
        """The original against the result, with the gates beside what they are about."""
        self._print(Text())
        self._print(metrics_table(metrics))
        self._print(Text())

    def show_result(self, metrics: Metrics, plan: Plan, out: Path) -> None:
        """What a compile came to, and where to read on."""
        self.show_metrics(metrics)
        for line in search_lines(metrics):
            self.say(f"  {line}")
        self._show_skips(plan.skips[:_SKIPS_SHOWN])
        if len(plan.skips) > _SKIPS_SHOWN:
            self.say(f"  and {len(plan.skips) - _SKIPS_SHOWN} more, in the report")
        self.say(f"  bundle {out} · report {out / 'report.html'}")

    def show_columns(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of text; nothing is cut short."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in head:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        self._print(Text())
        self._print(table)

    def show_table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Cells as they are; the first column is folded where the terminal is narrow."""
        table = _table(*head)
        table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._print(table)

    def show_plan(self, plan: Plan) -> None:
        """Every rewrite and every refusal."""
        table = _table("pass", "site", "shape", "rank", "variance lost", "bytes")
        for choice in plan.choices:
            table.add_row(
                choice.pass_name,
                Text(choice.site),
                f"{choice.shape[0]} x {choice.shape[1]}",
                f"{choice.rank} of {choice.full_rank}",
                f"{100 * choice.error:.2f} %",
                f"{choice.dense_size_bytes:,} → {choice.size_bytes:,}",
            )
        self._print(table)
        self._show_skips(plan.skips)
        self.say(f"  {len(plan.choices)} rewrites, {plan.spent}")
        self.say(f"  {100 * plan.gap:.1f} % from the bound")

    def show_model(self, model: Inspection) -> None:
        """What is in a model, and what passes can do about it."""
        for line in model.lines():
            self.say(line)
        if model.sites:
            found = model.to_dict()
            self._print(Text())
            self._rich.print(sites_table(found, self._rich.width))
            self._print(Text())
            self.say(f"  from {source_of(found)}")
            self.say("  rank: effective/full; 90 %, 99 %: ranks with so much of the energy")
            self.say("  1/2, 1/3, 1/4: variance of the output lost where so many parameters stay")
            self.say("  pays to: at higher ranks the factors are no smaller than the original")
        self._show_skips(model.skips)

    def _show_skips(self, skips: Sequence[Skip]) -> None:
        for skip in skips:
            self.say(f"  left alone: {skip.name} ({skip.pass_name}: {skip.reason})")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        # On a narrow terminal long names of sites are folded, so that no number is cut short.
        table.add_column(column, no_wrap=column != "site", overflow="fold")
    return table
