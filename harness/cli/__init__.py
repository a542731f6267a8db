"""The command ``sluicegate``. Its commands come through the entry-point group ``sluicegate.commands``."""

from __future__ import annotations

from importlib.metadata import entry_points

import typer


def build() -> typer.Typer:
    application = typer.Typer(
        help="The correctness and regression gate for the kernels of hybrid linear-attention models.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    application.callback()(_root)
    for entry in sorted(entry_points(group="sluicegate.commands"), key=lambda e: e.name):
        application.command(entry.name)(entry.load())
    return application


def _root() -> None:
    """The correctness and regression gate for the kernels of hybrid linear-attention models."""


def app() -> None:
    build()()
