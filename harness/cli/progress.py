"""Bars of the commands that plant faults or compile: what takes long shows how far it is."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from harness.faults.verdict import Verdict


class StagesBar:
    """A bar for work that goes through stages, each with an end of its own.

    command: said at the left, in bold. words: what is the same in every stage.
    """

    def __init__(self, console: Console, command: str, words: str = "") -> None:
        columns = (TextColumn(f"[bold]{command}[/] {{task.description}}"), BarColumn(), MofNCompleteColumn())
        self.bar = Progress(*columns, TimeElapsedColumn(), console=console)
        self.words = words
        self.task = self.bar.add_task(words)

    def __enter__(self) -> StagesBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, what: str, done: int, total: int) -> None:
        description = f"{self.words}, {what}" if self.words else what
        self.bar.update(self.task, description=description, completed=done, total=total)


class VerdictsBar:
    """A bar that counts verdicts as they come."""

    def __init__(self, console: Console, words: str, total: int) -> None:
        self.bar = Progress(
            TextColumn("[bold]faults[/] {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[killed]} killed, {task.fields[alive]} not"),
            TimeElapsedColumn(),
            console=console,
        )
        self.task = self.bar.add_task(words, total=total, killed=0, alive=0)
        self.killed = self.alive = 0

    def __enter__(self) -> VerdictsBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, verdict: Verdict) -> None:
        self.killed += verdict.status == "killed"
        self.alive += verdict.status in ("survived", "error")
        self.bar.update(self.task, advance=1, killed=self.killed, alive=self.alive)
